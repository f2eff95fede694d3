/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tls: the client side of TLS for HTTP/2
 *
 * Each connection makes its own SSL_CTX from the files as they are now: certificates are replaced under a running
 * daemon. Each file is read once, and the same bytes are parsed and hashed, so what the session was made with and
 * what the fingerprint says cannot differ.
 *
 * Traps:
 * - OpenSSL's socket BIO writes with write(2): a peer that has gone would be a SIGPIPE. Our own BIO uses
 *   MSG_NOSIGNAL.
 * - Without a password callback OpenSSL asks for an encrypted key's passphrase on the terminal.
 * - Session tickets of TLS 1.3 come after the handshake, on any read, also on a connection that was made before
 *   the files changed: the client's generation tells them apart.
 * - A ticket is used once (RFC 8446 appendix C.4): it is taken out when it is offered, so a session that the peer
 *   chokes on is not offered for ever. A TLS 1.2 server that resumes sends no new one: the old one goes back.
 * - SSL_free() without a shutdown spoils the session for ever, and a connection that was lost is the very case for
 *   which it was kept. TLS 1.1 and later do not ask for that: only an error of TLS itself spoils it here.
 * - With TLS 1.3 a server refuses our certificate after the handshake has ended for us; that error comes on read.
 */
#include "tls.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define FILE_MAX (1024 * 1024)
#define FINGERPRINT_SIZE 32

static const unsigned char alpn_h2[] = {2, 'h', '2'};

struct tls_client {
        char *ca_file, *certificate_file, *private_key_file, *server_name;
        bool name_is_address;
        BIO_METHOD *bio_method;
        SSL_SESSION *session;
        uint8_t fingerprint[FINGERPRINT_SIZE];
        uint64_t generation; /* which sessions still count */
};

struct tls_stream {
        struct tls_client *client;
        uint64_t generation;
        int fd;
        SSL *ssl;
        bool broken; /* TLS itself failed */
        bool lacks_certificate;
        char error[TLS_ERROR_MAX];
};

/* ---- errors --------------------------------------------------------------------------------------- */

/* What OpenSSL complains about, and forget it. A reason of 1000 and more is an alert of the peer. */
static int error_take(const char **ret_text) {
        unsigned long code = ERR_peek_error();
        const char *reason = code != 0 ? ERR_reason_error_string(code) : NULL;

        ERR_clear_error();
        if (code != 0 && ERR_GET_REASON(code) == ERR_R_MALLOC_FAILURE) {
                *ret_text = "out of memory";
                return -ENOMEM;
        }
        *ret_text = reason ? reason : "unknown error";
        return -EPROTO;
}

static int file_error(char error[TLS_ERROR_MAX], const char *path, const char *problem, int result) {
        snprintf(error, TLS_ERROR_MAX, "%s: %s", path, problem);
        return result;
}

static int openssl_error(char error[TLS_ERROR_MAX], const char *what) {
        const char *text;
        int r = error_take(&text);

        snprintf(error, TLS_ERROR_MAX, "%s: %s", what, text);
        return r;
}

/* ---- files ---------------------------------------------------------------------------------------- */

struct file {
        uint8_t *data;
        size_t size, allocated;
        struct timespec modified;
};

static void file_deinit(struct file *file) {
        if (file->data)
                OPENSSL_cleanse(file->data, file->allocated);
        free(file->data);
        *file = (struct file){0};
}

static int read_all(int fd, struct file *file) {
        while (file->size < file->allocated) {
                ssize_t n = read(fd, file->data + file->size, file->allocated - file->size);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return -errno;
                if (n == 0)
                        break;
                file->size += (size_t)n;
        }
        return 0;
}

static int file_load(const char *path, struct file *ret, char error[TLS_ERROR_MAX]) {
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
        _cleanup_(file_deinit) struct file file = {0};
        struct stat st;

        if (fd < 0 || fstat(fd, &st) < 0)
                return file_error(error, path, strerror(errno), -errno);
        if (!S_ISREG(st.st_mode))
                return file_error(error, path, "not a regular file", -EINVAL);
        if (st.st_size > FILE_MAX)
                return file_error(error, path, "larger than 1 MiB", -EFBIG);
        file.modified = st.st_mtim;
        file.allocated = (size_t)st.st_size + 1;
        file.data = malloc(file.allocated);
        if (!file.data)
                return file_error(error, path, strerror(ENOMEM), -ENOMEM);
        int r = read_all(fd, &file);
        if (r < 0)
                return file_error(error, path, strerror(-r), r);
        *ret = file;
        file.data = NULL;
        return 0;
}

static int digest_file(EVP_MD_CTX *digest, const struct file *file) {
        return EVP_DigestUpdate(digest, &file->size, sizeof(file->size)) == 1 &&
                               EVP_DigestUpdate(digest, &file->modified, sizeof(file->modified)) == 1 &&
                               EVP_DigestUpdate(digest, file->data, file->size) == 1
                       ? 0
                       : -ENOMEM;
}

/* The system's CAs may be thousands of files: their date must do. */
static int digest_system(EVP_MD_CTX *digest) {
        const char *const paths[] = {X509_get_default_cert_file(), X509_get_default_cert_dir()};

        for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
                struct stat st;
                if (stat(paths[i], &st) < 0)
                        continue;
                if (EVP_DigestUpdate(digest, &st.st_mtim, sizeof(st.st_mtim)) != 1)
                        return -ENOMEM;
        }
        return 0;
}

static void digest_free(EVP_MD_CTX **digest) {
        EVP_MD_CTX_free(*digest);
}

struct files {
        struct file ca, certificate, private_key;
};

static void files_deinit(struct files *files) {
        file_deinit(&files->ca);
        file_deinit(&files->certificate);
        file_deinit(&files->private_key);
}

static int files_fingerprint(const struct files *files, uint8_t ret[FINGERPRINT_SIZE]) {
        _cleanup_(digest_free) EVP_MD_CTX *digest = EVP_MD_CTX_new();
        unsigned int size = FINGERPRINT_SIZE;

        if (!digest || EVP_DigestInit_ex(digest, EVP_sha256(), NULL) != 1)
                return -ENOMEM;
        int r = files->ca.data ? digest_file(digest, &files->ca) : digest_system(digest);
        if (r < 0)
                return r;
        if (files->certificate.data) {
                r = digest_file(digest, &files->certificate);
                if (r < 0)
                        return r;
                r = digest_file(digest, &files->private_key);
                if (r < 0)
                        return r;
        }
        return EVP_DigestFinal_ex(digest, ret, &size) == 1 ? 0 : -ENOMEM;
}

/* files_load() - all files of the client; a change drops the session. */
static int files_load(struct tls_client *client, struct files *files, char error[TLS_ERROR_MAX]) {
        uint8_t fingerprint[FINGERPRINT_SIZE];
        int r = 0;

        if (client->ca_file)
                r = file_load(client->ca_file, &files->ca, error);
        if (r >= 0 && client->certificate_file)
                r = file_load(client->certificate_file, &files->certificate, error);
        if (r >= 0 && client->private_key_file)
                r = file_load(client->private_key_file, &files->private_key, error);
        if (r < 0)
                return r;
        r = files_fingerprint(files, fingerprint);
        if (r < 0)
                return openssl_error(error, "hashing the TLS files");
        if (memcmp(fingerprint, client->fingerprint, sizeof(fingerprint)) != 0) {
                tls_client_forget_session(client);
                memcpy(client->fingerprint, fingerprint, sizeof(fingerprint));
        }
        return 0;
}

/* ---- from files to a context ---------------------------------------------------------------------- */

static void context_free(SSL_CTX **context) {
        SSL_CTX_free(*context);
}

static void bio_free(BIO **bio) {
        BIO_free(*bio);
}

static BIO *file_bio(const struct file *file) {
        return BIO_new_mem_buf(file->data, (int)file->size);
}

/* The end of a PEM file shows as "no start line"; anything else in front of it is damage. */
static bool pem_ended(void) {
        unsigned long code = ERR_peek_last_error();
        bool ended = ERR_GET_LIB(code) == ERR_LIB_PEM && ERR_GET_REASON(code) == PEM_R_NO_START_LINE;

        if (ended)
                ERR_clear_error();
        return ended;
}

static int load_ca(SSL_CTX *context, const struct tls_client *client, const struct file *file,
                   char error[TLS_ERROR_MAX]) {
        X509_STORE *store = SSL_CTX_get_cert_store(context);
        size_t count = 0;
        X509 *certificate;

        if (!client->ca_file)
                return SSL_CTX_set_default_verify_paths(context) == 1 ? 0 : openssl_error(error, "the system's CAs");
        _cleanup_(bio_free) BIO *bio = file_bio(file);
        if (!bio)
                return openssl_error(error, client->ca_file);
        while ((certificate = PEM_read_bio_X509_AUX(bio, NULL, NULL, NULL))) {
                int ok = X509_STORE_add_cert(store, certificate);
                X509_free(certificate);
                if (ok != 1)
                        return openssl_error(error, client->ca_file);
                count++;
        }
        if (!pem_ended())
                return openssl_error(error, client->ca_file);
        if (count == 0)
                return file_error(error, client->ca_file, "no certificate in it", -EINVAL);
        /* What the operator puts into ca_file is trusted as it stands, be it an intermediate CA. */
        X509_STORE_set_flags(store, X509_V_FLAG_PARTIAL_CHAIN);
        return 0;
}

static int load_certificate(SSL_CTX *context, const char *path, const struct file *file, char error[TLS_ERROR_MAX]) {
        _cleanup_(bio_free) BIO *bio = file_bio(file);
        if (!bio)
                return openssl_error(error, path);
        X509 *certificate = PEM_read_bio_X509_AUX(bio, NULL, NULL, NULL);
        int ok = certificate ? SSL_CTX_use_certificate(context, certificate) : 0;
        X509_free(certificate);
        if (ok != 1)
                return openssl_error(error, path);
        while ((certificate = PEM_read_bio_X509(bio, NULL, NULL, NULL)))
                if (SSL_CTX_add0_chain_cert(context, certificate) != 1) {
                        X509_free(certificate);
                        return openssl_error(error, path);
                }
        return pem_ended() ? 0 : openssl_error(error, path);
}

static int no_passphrase(char *buffer, int size, int writing, void *userdata) {
        (void)buffer;
        (void)size;
        (void)writing;
        (void)userdata;
        return -1;
}

static int load_private_key(SSL_CTX *context, const char *path, const struct file *file, char error[TLS_ERROR_MAX]) {
        _cleanup_(bio_free) BIO *bio = file_bio(file);
        if (!bio)
                return openssl_error(error, path);
        EVP_PKEY *key = PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL);
        if (!key)
                return openssl_error(error, path);
        int ok = SSL_CTX_use_PrivateKey(context, key) == 1 && SSL_CTX_check_private_key(context) == 1;
        EVP_PKEY_free(key);
        return ok ? 0 : openssl_error(error, path);
}

static int load_files(SSL_CTX *context, const struct tls_client *client, const struct files *files,
                      char error[TLS_ERROR_MAX]) {
        int r = load_ca(context, client, &files->ca, error);
        if (r < 0 || !client->certificate_file)
                return r;
        r = load_certificate(context, client->certificate_file, &files->certificate, error);
        if (r < 0)
                return r;
        return load_private_key(context, client->private_key_file, &files->private_key, error);
}

/* stream_keep_session() - for the next connection; the last one wins. Takes the reference if it says true. */
static bool stream_keep_session(struct tls_stream *stream, SSL_SESSION *session) {
        struct tls_client *client = stream->client;

        if (stream->generation != client->generation || !SSL_SESSION_is_resumable(session))
                return false;
        SSL_SESSION_free(client->session);
        client->session = session;
        return true;
}

static int on_new_session(SSL *ssl, SSL_SESSION *session) {
        return stream_keep_session(SSL_get_app_data(ssl), session);
}

/* Called when the peer asks for a certificate and the context has none. 0: go on without. */
static int on_certificate_asked(SSL *ssl, X509 **certificate, EVP_PKEY **key) {
        struct tls_stream *stream = SSL_get_app_data(ssl);

        (void)certificate;
        (void)key;
        stream->lacks_certificate = true;
        return 0;
}

static int context_configure(SSL_CTX *context) {
        if (SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) != 1)
                return -EPROTO;
        if (SSL_CTX_set_alpn_protos(context, alpn_h2, sizeof(alpn_h2)) != 0) /* 0 is its success */
                return -ENOMEM;
        SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
        SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                                          SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
        /* RFC 9113 section 9.2.1: no renegotiation, no compression. A cut without close_notify is a plain end. */
        SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_IGNORE_UNEXPECTED_EOF);
        SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
        SSL_CTX_sess_set_new_cb(context, on_new_session);
        SSL_CTX_set_client_cert_cb(context, on_certificate_asked);
        return 0;
}

static int context_new(struct tls_client *client, char error[TLS_ERROR_MAX], SSL_CTX **ret) {
        _cleanup_(files_deinit) struct files files = {0};
        _cleanup_(context_free) SSL_CTX *context = SSL_CTX_new(TLS_client_method());
        if (!context || context_configure(context) < 0)
                return openssl_error(error, "TLS");
        int r = files_load(client, &files, error);
        if (r < 0)
                return r;
        r = load_files(context, client, &files, error);
        if (r < 0)
                return r;
        *ret = TAKE(context);
        return 0;
}

/* ---- the socket ----------------------------------------------------------------------------------- */

static int socket_result(BIO *bio, ssize_t n, bool writing) {
        BIO_clear_retry_flags(bio);
        if (n >= 0)
                return (int)n;
        if (errno == EAGAIN || errno == EINTR) {
                if (writing)
                        BIO_set_retry_write(bio);
                else
                        BIO_set_retry_read(bio);
        }
        return -1;
}

static int socket_fd(BIO *bio) {
        const struct tls_stream *stream = BIO_get_data(bio);

        return stream->fd;
}

static int socket_write(BIO *bio, const char *bytes, int size) {
        return socket_result(bio, send(socket_fd(bio), bytes, (size_t)size, MSG_NOSIGNAL), true);
}

static int socket_read(BIO *bio, char *bytes, int size) {
        ssize_t n = recv(socket_fd(bio), bytes, (size_t)size, 0);

        if (n == 0)
                BIO_set_flags(bio, BIO_FLAGS_IN_EOF);
        return socket_result(bio, n, false);
}

static long socket_control(BIO *bio, int command, long number, void *pointer) {
        (void)number;
        (void)pointer;
        if (command == BIO_CTRL_EOF)
                return BIO_test_flags(bio, BIO_FLAGS_IN_EOF) != 0;
        return command == BIO_CTRL_FLUSH;
}

static int socket_create(BIO *bio) {
        BIO_set_init(bio, 1);
        return 1;
}

static BIO_METHOD *socket_method_new(void) {
        BIO_METHOD *method = BIO_meth_new(BIO_TYPE_SOURCE_SINK | BIO_get_new_index(), "socket without SIGPIPE");

        if (method &&
            (BIO_meth_set_write(method, socket_write) != 1 || BIO_meth_set_read(method, socket_read) != 1 ||
             BIO_meth_set_ctrl(method, socket_control) != 1 || BIO_meth_set_create(method, socket_create) != 1)) {
                BIO_meth_free(method);
                return NULL;
        }
        return method;
}

/* ---- the client ----------------------------------------------------------------------------------- */

static int copy_text(const char *text, char **ret) {
        if (!text)
                return 0;
        *ret = strdup(text);
        return *ret ? 0 : -ENOMEM;
}

/* OpenSSL sets itself up once in a process. What failed then, for memory, fails for ever, while OPENSSL_init_ssl() says
 * that all is well; a process that starts again is better off than one that never gets a connection. */
static bool openssl_is_set_up(void) {
        _cleanup_(context_free) SSL_CTX *context = SSL_CTX_new(TLS_client_method());

        ERR_clear_error();
        return context;
}

int tls_client_new(const struct tls_options *options, struct tls_client **ret) {
        struct in6_addr address;

        if (!openssl_is_set_up())
                return -ENOMEM;
        if (!options->certificate_file != !options->private_key_file)
                return -EINVAL;
        _cleanup_(tls_client_free_pointer) struct tls_client *client = calloc(1, sizeof(*client));
        if (!client)
                return -ENOMEM;
        if (copy_text(options->ca_file, &client->ca_file) < 0 ||
            copy_text(options->certificate_file, &client->certificate_file) < 0 ||
            copy_text(options->private_key_file, &client->private_key_file) < 0 ||
            copy_text(options->server_name, &client->server_name) < 0)
                return -ENOMEM;
        client->name_is_address = inet_pton(AF_INET, client->server_name, &address) == 1 ||
                                  inet_pton(AF_INET6, client->server_name, &address) == 1;
        client->bio_method = socket_method_new();
        if (!client->bio_method) {
                ERR_clear_error();
                return -ENOMEM;
        }
        *ret = TAKE(client);
        return 0;
}

struct tls_client *tls_client_free(struct tls_client *client) {
        if (!client)
                return NULL;
        SSL_SESSION_free(client->session);
        BIO_meth_free(client->bio_method);
        free(client->ca_file);
        free(client->certificate_file);
        free(client->private_key_file);
        free(client->server_name);
        free(client);
        return NULL;
}

void tls_client_forget_session(struct tls_client *client) {
        SSL_SESSION_free(client->session);
        client->session = NULL;
        client->generation++;
}

/* ---- a stream ------------------------------------------------------------------------------------- */

static int stream_set_name(SSL *ssl, const struct tls_client *client) {
        if (client->name_is_address)
                return X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), client->server_name);
        SSL_set_hostflags(ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
        return SSL_set1_host(ssl, client->server_name) == 1 && SSL_set_tlsext_host_name(ssl, client->server_name) == 1;
}

/* A session that can't be set is no reason to fail: the handshake is a full one then. */
static void stream_offer_session(struct tls_stream *stream) {
        SSL_SESSION *session = TAKE(stream->client->session);

        if (!session)
                return;
        if (SSL_set_session(stream->ssl, session) != 1)
                ERR_clear_error();
        SSL_SESSION_free(session);
}

static int stream_prepare(struct tls_stream *stream, SSL_CTX *context) {
        stream->ssl = SSL_new(context);
        if (!stream->ssl || SSL_set_app_data(stream->ssl, stream) != 1)
                return -ENOMEM;
        BIO *bio = BIO_new(stream->client->bio_method);
        if (!bio)
                return -ENOMEM;
        BIO_set_data(bio, stream);
        SSL_set_bio(stream->ssl, bio, bio);
        if (stream_set_name(stream->ssl, stream->client) != 1)
                return -ENOMEM;
        stream_offer_session(stream);
        SSL_set_connect_state(stream->ssl);
        return 0;
}

int tls_stream_new(struct tls_client *client, int fd, char error[TLS_ERROR_MAX], struct tls_stream **ret) {
        _cleanup_(context_free) SSL_CTX *context = NULL;
        _cleanup_(tls_stream_free_pointer) struct tls_stream *stream = NULL;

        ERR_clear_error();
        int r = context_new(client, error, &context);
        if (r < 0)
                return r;
        stream = calloc(1, sizeof(*stream));
        if (!stream)
                return file_error(error, "TLS", strerror(ENOMEM), -ENOMEM);
        stream->client = client;
        stream->generation = client->generation;
        stream->fd = fd;
        r = stream_prepare(stream, context);
        if (r < 0)
                return openssl_error(error, "TLS");
        *ret = TAKE(stream);
        return 0;
}

struct tls_stream *tls_stream_free(struct tls_stream *stream) {
        if (!stream)
                return NULL;
        if (stream->ssl && !stream->broken)
                SSL_set_shutdown(stream->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
        SSL_free(stream->ssl);
        free(stream);
        return NULL;
}

static int stream_fail(struct tls_stream *stream, const char *what, const char *detail, int result) {
        snprintf(stream->error, sizeof(stream->error), "TLS with %s: %s%s%s", stream->client->server_name, what,
                 *detail ? ": " : "", detail);
        return result;
}

/* The verify error is the one that a person can act on: it names what is wrong with which certificate. */
static int stream_fail_ssl(struct tls_stream *stream) {
        long verify = SSL_get_verify_result(stream->ssl);
        bool alert = ERR_GET_REASON(ERR_peek_error()) >= SSL_AD_REASON_OFFSET;
        const char *text;
        int r = error_take(&text);

        stream->broken = true;
        if (verify != X509_V_OK && !alert)
                return stream_fail(stream, "the peer's certificate is not accepted",
                                   X509_verify_cert_error_string(verify), r);
        return stream_fail(stream, alert ? "the peer refused" : "failed", text, r);
}

static int stream_answer(struct tls_stream *stream, int result, int saved_errno) {
        switch (SSL_get_error(stream->ssl, result)) {
        case SSL_ERROR_WANT_READ:
                return TLS_WANT_READ;
        case SSL_ERROR_WANT_WRITE:
                return TLS_WANT_WRITE;
        case SSL_ERROR_ZERO_RETURN:
                return TLS_CLOSED;
        case SSL_ERROR_SYSCALL:
                if (ERR_peek_error() == 0)
                        return stream_fail(stream, saved_errno > 0 ? strerror(saved_errno) : "connection closed", "",
                                           saved_errno > 0 ? -saved_errno : -ECONNRESET);
                return stream_fail_ssl(stream);
        default:
                return stream_fail_ssl(stream);
        }
}

static int stream_check_alpn(struct tls_stream *stream) {
        const unsigned char *protocol;
        unsigned int size;

        SSL_get0_alpn_selected(stream->ssl, &protocol, &size);
        if (size == 2 && memcmp(protocol, "h2", 2) == 0)
                return 0;
        return stream_fail(stream, "the peer does not offer HTTP/2 (ALPN h2)", "", -EPROTO);
}

static void stream_put_session_back(struct tls_stream *stream) {
        if (!SSL_session_reused(stream->ssl) || SSL_version(stream->ssl) >= TLS1_3_VERSION || stream->client->session)
                return;
        SSL_SESSION *session = SSL_get1_session(stream->ssl);
        if (session && !stream_keep_session(stream, session))
                SSL_SESSION_free(session);
}

int tls_stream_handshake(struct tls_stream *stream) {
        ERR_clear_error();
        errno = 0;
        int n = SSL_do_handshake(stream->ssl);
        if (n == 1) {
                stream_put_session_back(stream);
                return stream_check_alpn(stream);
        }
        int r = stream_answer(stream, n, errno);
        return r == TLS_CLOSED ? stream_fail(stream, "the peer closed the connection during the handshake", "", -EPROTO)
                               : r;
}

int tls_stream_read(struct tls_stream *stream, void *bytes, size_t size, size_t *ret) {
        size_t got;

        ERR_clear_error();
        errno = 0;
        int n = SSL_read_ex(stream->ssl, bytes, size, &got);
        if (n != 1)
                return stream_answer(stream, n, errno);
        *ret = got;
        return 0;
}

int tls_stream_write(struct tls_stream *stream, const void *bytes, size_t size, size_t *ret) {
        size_t done;

        ERR_clear_error();
        errno = 0;
        int n = SSL_write_ex(stream->ssl, bytes, size, &done);
        if (n != 1)
                return stream_answer(stream, n, errno);
        *ret = done;
        return 0;
}

bool tls_stream_has_pending(const struct tls_stream *stream) {
        return SSL_pending(stream->ssl) > 0;
}

void tls_stream_shutdown(struct tls_stream *stream) {
        ERR_clear_error();
        if (SSL_is_init_finished(stream->ssl))
                (void)SSL_shutdown(stream->ssl);
        ERR_clear_error();
}

const char *tls_stream_error(const struct tls_stream *stream) {
        return stream->error;
}

bool tls_stream_lacks_certificate(const struct tls_stream *stream) {
        return stream->lacks_certificate;
}

bool tls_stream_is_resumed(const struct tls_stream *stream) {
        return SSL_session_reused(stream->ssl) == 1;
}
