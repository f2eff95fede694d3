/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * tls: the client side of TLS for HTTP/2, on a non-blocking socket of the caller's
 *
 * TLS 1.2 or later, the peer's certificate and name always checked, ALPN "h2" offered and demanded. A client holds
 * what the connections to one peer share: names of files, and the session to resume. The files are read again for
 * each connection; the session is dropped when any of them has changed, because a resumed session stands on the
 * certificates of the old ones. Nothing here waits, logs or knows the loop.
 */
#include "base.h"

struct tls_client; /* one per peer; outlives its streams */
struct tls_stream; /* one connection */

#define TLS_ERROR_MAX 512

struct tls_options {                                     /* all copied */
        const char *ca_file;                             /* PEM; NULL: the system's */
        const char *certificate_file, *private_key_file; /* PEM; both or none */
        const char *server_name;                         /* never NULL: DNS name (sent as SNI) or address (not sent) */
};

/* Positive answers of handshake, read and write. */
enum tls_answer {
        TLS_WANT_READ = 1, /* call again when the socket is readable */
        TLS_WANT_WRITE,    /* call again when the socket is writable */
        TLS_CLOSED,        /* the peer has closed in order, or the socket ended (HTTP/2 frames tell a cut) */
};

/* tls_client_new() - -EINVAL: a certificate without a key or a key without a certificate. -ENOMEM: also when
 * OpenSSL could not set itself up, which this process cannot mend. Reads no file. */
int tls_client_new(const struct tls_options *options, struct tls_client **ret);
struct tls_client *tls_client_free(struct tls_client *client);
DEFINE_CLEANUP(struct tls_client *, tls_client_free)

/* tls_client_forget_session() - the next handshake is a full one; sessions that streams of before still hand in are
 * not taken. */
void tls_client_forget_session(struct tls_client *client);

/* tls_stream_new() - read the files and prepare a connection on `fd` (not owned). On failure (-ENOMEM; -EINVAL or
 * -errno: a file) `error` says for people which file and why. */
int tls_stream_new(struct tls_client *client, int fd, char error[TLS_ERROR_MAX], struct tls_stream **ret);
struct tls_stream *tls_stream_free(struct tls_stream *stream);
DEFINE_CLEANUP(struct tls_stream *, tls_stream_free)

/* These return 0, an enum tls_answer, or negative: -ENOMEM, -EPROTO, -errno, and tls_stream_error() says why. After
 * a negative value only tls_stream_free() may follow. Read and write do part of what is asked for, at least a byte;
 * a write that wanted more must be repeated with the same bytes in front. */
int tls_stream_handshake(struct tls_stream *stream);
int tls_stream_read(struct tls_stream *stream, void *bytes, size_t size, size_t *ret);
int tls_stream_write(struct tls_stream *stream, const void *bytes, size_t size, size_t *ret);

/* tls_stream_has_pending() - decrypted bytes wait inside, which no poll of the socket will tell. */
bool tls_stream_has_pending(const struct tls_stream *stream);
/* tls_stream_shutdown() - send close_notify if the socket takes it now. */
void tls_stream_shutdown(struct tls_stream *stream);

const char *tls_stream_error(const struct tls_stream *stream);
/* tls_stream_lacks_certificate() - the peer has asked for a client certificate and none is configured. With TLS 1.3
 * it finds out only after the handshake, and many just close then. */
bool tls_stream_lacks_certificate(const struct tls_stream *stream);
bool tls_stream_is_resumed(const struct tls_stream *stream);

/* tls_file_expires() - the end of the first certificate in a PEM file, by the wall clock. -errno: it can't be read;
 * -EINVAL: there is no certificate in it. */
int tls_file_expires(const char *path, uint64_t *ret_real_usec);
