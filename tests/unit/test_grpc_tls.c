/* SPDX-License-Identifier: Apache-2.0 */
/* TLS: whom we believe, what we say when we do not, and when a session is resumed. */
#include "grpc_client.h"
#include "grpc_certificates.h"

#include <fcntl.h>
#include <sys/stat.h>

static const struct peer_row rows[] = {
        {"/t/Unary", "h|m pong|t 0"},
        {"/t/Large", "h|M 900000|t 0"},
        {"/t/Wait", "h|m first|k|m last|t 0"},
        {"/t/Many", "h|f 5000 100|t 0"},
        {"/t/LateTicket", "h|m first|g 1 0|k|y|m last|t 0"},
        {"/t/CloseBehind", "h|m pong|g 3 0|t 0"},
};

enum who { CA, OTHER_CA, GOOD, WRONG_NAME, EXPIRED, FUTURE, CLIENT, OTHER_CLIENT, WHO_MAX };

static struct {
        char directory[64];
        struct identity who[WHO_MAX];
} world;

static const char *path_of(const char *name) {
        static char paths[8][128];
        static unsigned turn;
        char *path = paths[turn++ % 8];

        snprintf(path, 128, "%s/%s", world.directory, name);
        return path;
}

static const char *const files[] = {"ca.pem",     "other-ca.pem",  "both.pem",  "client.pem",
                                    "client.key", "other.pem",     "other.key", "junk.pem",
                                    "empty.pem",  "encrypted.key", "chain.pem"};

static void write_text(const char *name, const char *text) {
        FILE *file = fopen(path_of(name), "we");
        assert_non_null(file);
        fputs(text, file);
        fclose(file);
}

static void write_encrypted_key(void) {
        FILE *file = fopen(path_of("encrypted.key"), "we");
        assert_non_null(file);
        assert_int_equal(
                PEM_write_PKCS8PrivateKey(file, world.who[CLIENT].key, EVP_aes_128_cbc(), "secret", 6, NULL, NULL), 1);
        fclose(file);
}

static int setup(void **state) {
        (void)state;
        base_text_copy(world.directory, sizeof(world.directory), "/tmp/test-grpc-tls-XXXXXX");
        assert_non_null(mkdtemp(world.directory));
        world.who[CA] = identity_make(NULL, "test CA", NULL, -3600, 3600);
        world.who[OTHER_CA] = identity_make(NULL, "other CA", NULL, -3600, 3600);
        world.who[GOOD] =
                identity_make(&world.who[CA], "server", "DNS:localhost,DNS:*.cp.example,IP:127.0.0.1", -3600, 3600);
        world.who[WRONG_NAME] =
                identity_make(&world.who[CA], "server", "DNS:elsewhere.example,IP:192.0.2.1", -3600, 3600);
        world.who[EXPIRED] = identity_make(&world.who[CA], "server", "IP:127.0.0.1", -7200, -3600);
        world.who[FUTURE] = identity_make(&world.who[CA], "server", "IP:127.0.0.1", 3600, 7200);
        world.who[CLIENT] = identity_make(&world.who[CA], "client", NULL, -3600, 3600);
        world.who[OTHER_CLIENT] = identity_make(&world.who[OTHER_CA], "client", NULL, -3600, 3600);
        identity_write(&world.who[CA], path_of("ca.pem"), NULL);
        identity_write(&world.who[OTHER_CA], path_of("other-ca.pem"), NULL);
        identity_write(&world.who[CLIENT], path_of("client.pem"), path_of("client.key"));
        identity_write(&world.who[OTHER_CLIENT], path_of("other.pem"), path_of("other.key"));
        write_text("junk.pem", "-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n");
        write_text("empty.pem", "");
        write_encrypted_key();
        return 0;
}

static int teardown(void **state) {
        (void)state;
        for (size_t i = 0; i < WHO_MAX; i++)
                identity_free(&world.who[i]);
        for (size_t i = 0; i < ARRAY_SIZE(files); i++)
                (void)unlink(path_of(files[i]));
        return rmdir(world.directory);
}

/* ---- the server's side ---------------------------------------------------------------------------- */

static int select_h2(SSL *ssl, const unsigned char **out, unsigned char *out_size, const unsigned char *in,
                     unsigned int in_size, void *userdata) {
        (void)ssl;
        (void)userdata;
        if (in_size != 3 || memcmp(in, "\2h2", 3) != 0) /* "h2" and nothing else is offered */
                return SSL_TLSEXT_ERR_ALERT_FATAL;
        *out = in + 1;
        *out_size = 2;
        return SSL_TLSEXT_ERR_OK;
}

static SSL_CTX *server_context(enum who who) {
        SSL_CTX *context = SSL_CTX_new(TLS_server_method());

        assert_int_equal(SSL_CTX_use_certificate(context, world.who[who].certificate), 1);
        assert_int_equal(SSL_CTX_use_PrivateKey(context, world.who[who].key), 1);
        SSL_CTX_set_alpn_select_cb(context, select_h2, NULL);
        SSL_CTX_set_session_id_context(context, (const unsigned char *)"test", 4);
        return context;
}

static struct peer *peer_tls(SSL_CTX *context) {
        struct peer *peer = peer_new(rows, ARRAY_SIZE(rows));

        peer->tls = context;
        peer_start(peer);
        return peer;
}

static void demand_client_certificate(SSL_CTX *context) {
        X509_STORE_add_cert(SSL_CTX_get_cert_store(context), world.who[CA].certificate);
        SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
}

/* ---- the client's side ---------------------------------------------------------------------------- */

struct want {
        const char *host; /* NULL: 127.0.0.1 */
        const char *ca, *certificate, *key, *server_name;
};

static struct client *client_tls(const struct peer *peer, struct want want) {
        char endpoint[64];

        snprintf(endpoint, sizeof(endpoint), "https://%s:%u", want.host ? want.host : "127.0.0.1", peer->port);
        return client_new(&(struct grpc_channel_options){
                .endpoint = endpoint,
                .ca_file = want.ca ? path_of(want.ca) : NULL,
                .certificate_file = want.certificate ? path_of(want.certificate) : NULL,
                .private_key_file = want.key ? path_of(want.key) : NULL,
                .server_name = want.server_name,
                .connect_timeout_usec = 10 * USEC_PER_SEC,
                .stream_window = 65536,
        });
}

static struct seen call_once(SSL_CTX *context, struct want want) {
        struct peer *peer = peer_tls(context);
        struct client *client = client_tls(peer, want);
        struct seen seen = client_call(client, "/t/Unary", false);

        client_free(client);
        peer_stop(peer);
        return seen;
}

static void assert_ok(const struct seen *seen) {
        if (seen->status != GRPC_OK)
                fail_msg("%s: %s", grpc_status_to_text(seen->status), seen->message);
        assert_string_equal(seen->text, "pong");
}

static void assert_refused(const struct seen *seen, const char *part) {
        assert_int_equal(seen->status, GRPC_UNAVAILABLE);
        assert_false(seen->from_peer);
        if (!strstr(seen->message, part))
                fail_msg("no \"%s\" in: %s", part, seen->message);
}

/* ---- tests ---------------------------------------------------------------------------------------- */

static void test_good(void **state) {
        (void)state;
        struct seen seen = call_once(server_context(GOOD), (struct want){.ca = "ca.pem"});
        assert_ok(&seen);
        seen = call_once(server_context(GOOD), (struct want){.host = "localhost", .ca = "ca.pem"});
        assert_ok(&seen);
        seen = call_once(server_context(GOOD), (struct want){.ca = "ca.pem", .server_name = "a.cp.example"});
        assert_ok(&seen);
        SSL_CTX *old = server_context(GOOD);
        SSL_CTX_set_max_proto_version(old, TLS1_2_VERSION);
        seen = call_once(old, (struct want){.ca = "ca.pem"});
        assert_ok(&seen);
}

static void test_sni(void **state) {
        (void)state;
        struct peer *peer = peer_tls(server_context(GOOD));
        struct client *client = client_tls(peer, (struct want){.ca = "ca.pem", .server_name = "a.cp.example"});
        struct seen seen = client_call(client, "/t/Unary", false);

        assert_ok(&seen);
        assert_non_null(strstr(peer->last_headers, ":authority: a.cp.example\n"));
        assert_non_null(strstr(peer->last_headers, ":scheme: https\n"));
        pthread_mutex_lock(&peer->mutex);
        assert_string_equal(peer->sni, "a.cp.example");
        pthread_mutex_unlock(&peer->mutex);
        client_free(client);
        client = client_tls(peer, (struct want){.ca = "ca.pem"}); /* an address is not sent: RFC 6066 section 3 */
        seen = client_call(client, "/t/Unary", false);
        assert_ok(&seen);
        assert_string_equal(peer->sni, "");
        client_free(client);
        peer_stop(peer);
}

static void test_refused(void **state) {
        static const struct {
                enum who server;
                struct want want;
                const char *part;
        } table[] = {
                {GOOD, {.ca = "other-ca.pem"}, "TLS with 127.0.0.1: the peer's certificate is not accepted: "},
                {GOOD, {.ca = "other-ca.pem"}, "unable to get local issuer certificate"},
                {GOOD, {.ca = NULL}, "unable to get local issuer certificate"},
                {WRONG_NAME, {.ca = "ca.pem"}, "IP address mismatch"},
                {WRONG_NAME, {.ca = "ca.pem", .host = "localhost"}, "TLS with localhost: "},
                {WRONG_NAME, {.ca = "ca.pem", .host = "localhost"}, "hostname mismatch"},
                {GOOD, {.ca = "ca.pem", .server_name = "cp.example"}, "hostname mismatch"},
                {GOOD, {.ca = "ca.pem", .server_name = "a.b.cp.example"}, "hostname mismatch"},
                {EXPIRED, {.ca = "ca.pem"}, "certificate has expired"},
                {FUTURE, {.ca = "ca.pem"}, "certificate is not yet valid"},
                {GOOD, {.ca = "missing.pem"}, "missing.pem: No such file"},
                {GOOD, {.ca = "junk.pem"}, "junk.pem: "},
                {GOOD, {.ca = "empty.pem"}, "empty.pem: no certificate"},
                {GOOD, {.ca = "."}, "not a regular file"},
                {GOOD,
                 {.ca = "ca.pem", .certificate = "client.pem", .key = "other.key"},
                 "other.key: key values mismatch"},
                {GOOD, {.ca = "ca.pem", .certificate = "client.pem", .key = "empty.pem"}, "empty.pem: "},
                {GOOD, {.ca = "ca.pem", .certificate = "empty.pem", .key = "client.key"}, "empty.pem: "},
                {GOOD, {.ca = "ca.pem", .certificate = "client.pem", .key = "encrypted.key"}, "encrypted.key: "},
        };
        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
                struct seen seen = call_once(server_context(table[i].server), table[i].want);
                assert_refused(&seen, table[i].part);
        }
}

static void test_old_or_foreign_server(void **state) {
        (void)state;
        SSL_CTX *context = server_context(GOOD);
        SSL_CTX_set_alpn_select_cb(context, NULL, NULL);
        struct seen seen = call_once(context, (struct want){.ca = "ca.pem"});
        assert_refused(&seen, "ALPN");

        context = server_context(GOOD);
        SSL_CTX_set_min_proto_version(context, 0);
        SSL_CTX_set_max_proto_version(context, TLS1_1_VERSION);
        SSL_CTX_set_cipher_list(context, "ALL:@SECLEVEL=0");
        seen = call_once(context, (struct want){.ca = "ca.pem"});
        assert_refused(&seen, "TLS with 127.0.0.1: ");

        struct peer *peer = peer_new(rows, ARRAY_SIZE(rows)); /* no TLS at all */
        peer->greeting = "HTTP/1.1 400 Bad Request\r\n\r\n";
        peer_start(peer);
        struct client *client = client_tls(peer, (struct want){.ca = "ca.pem"});
        seen = client_call(client, "/t/Unary", false);
        assert_refused(&seen, "TLS with 127.0.0.1: failed: wrong version number");
        client_free(client);
        peer_stop(peer);
}

static SSL_CTX *mutual_context(int version) {
        SSL_CTX *context = server_context(GOOD);

        demand_client_certificate(context);
        SSL_CTX_set_max_proto_version(context, version);
        return context;
}

static void test_client_certificate(void **state) {
        static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};
        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(versions); i++) {
                struct want want = {.ca = "ca.pem", .certificate = "client.pem", .key = "client.key"};
                struct seen seen = call_once(mutual_context(versions[i]), want);
                assert_ok(&seen);
                seen = call_once(mutual_context(versions[i]), (struct want){.ca = "ca.pem"});
                assert_refused(&seen, versions[i] == TLS1_3_VERSION
                                              ? "the peer refused: tlsv13 alert certificate required"
                                              : "the peer refused: ");
                want.certificate = "other.pem";
                want.key = "other.key";
                seen = call_once(mutual_context(versions[i]), want);
                assert_refused(&seen, "the peer refused: tlsv1 alert unknown ca");
        }
}

/* A server that closes without an alert, as gRPC's own core does. */
static int silent_verify(int ok, X509_STORE_CTX *store) {
        (void)store;
        return ok;
}

static void test_client_certificate_silently_missed(void **state) {
        (void)state;
        SSL_CTX *context = server_context(GOOD);
        SSL_CTX_set_verify(context, SSL_VERIFY_PEER, silent_verify); /* asks, and goes on without */
        struct peer *peer = peer_new(rows, ARRAY_SIZE(rows));
        peer->tls = context;
        peer->greeting = "";
        peer_start(peer);
        struct client *client = client_tls(peer, (struct want){.ca = "ca.pem"});
        struct seen seen = client_call(client, "/t/Unary", false);

        assert_refused(&seen, "asked for a client certificate, and none is configured");
        client_free(client);
        peer_stop(peer);
}

static void test_both_or_none(void **state) {
        struct grpc_channel_options options = {
                .endpoint = "https://a:1", .certificate_file = "x", .stream_window = 65536};
        struct grpc_channel *channel;
        (void)state;
        assert_int_equal(grpc_channel_new(NULL, NULL, &options, &channel), -EINVAL);
        options.certificate_file = NULL;
        options.private_key_file = "x";
        assert_int_equal(grpc_channel_new(NULL, NULL, &options, &channel), -EINVAL);
}

/* The last words go to a socket whose other end is gone: no SIGPIPE may come of it. */
static void test_goodbye_to_nobody(void **state) {
        (void)state;
        struct peer *peer = peer_tls(server_context(GOOD));
        struct client *client = client_tls(peer, (struct want){.ca = "ca.pem"});
        struct seen seen = client_call(client, "/t/Unary", false);

        assert_ok(&seen);
        peer_stop(peer);
        client_free(client);
}

/* Many records, small and large: nothing stays inside OpenSSL. */
static void test_sizes(void **state) {
        (void)state;
        struct peer *peer = peer_tls(server_context(GOOD));
        struct client *client = client_tls(peer, (struct want){.ca = "ca.pem"});
        struct seen seen = client_call(client, "/t/Large", false);

        assert_int_equal(seen.status, GRPC_OK);
        assert_int_equal(seen.bytes, 900000);
        seen = client_call(client, "/t/Many", true);
        assert_int_equal(seen.status, GRPC_OK);
        assert_int_equal(seen.messages, 5000);
        assert_int_equal(atomic_load(&peer->connections), 1);
        client_free(client);
        peer_stop(peer);
}

/* ---- session resumption --------------------------------------------------------------------------- */

static unsigned call_on_new_connection(struct peer *peer, struct client *client) {
        unsigned before = atomic_load(&peer->resumed), connections = atomic_load(&peer->connections);
        struct seen seen = client_call(client, "/t/CloseBehind", false);

        assert_ok(&seen);
        assert_int_equal(atomic_load(&peer->connections), connections + 1);
        return atomic_load(&peer->resumed) - before;
}

static const struct peer_row closing_rows[] = {{"/t/CloseBehind", "h|m pong|g 1 0|t 0"}};

static struct peer *peer_closing(SSL_CTX *context) {
        struct peer *peer = peer_new(closing_rows, ARRAY_SIZE(closing_rows));

        peer->tls = context;
        peer_start(peer);
        return peer;
}

/* PEM ignores what stands outside of it. */
static void key_write(const char *comment, time_t modified_sec) {
        const struct timespec times[2] = {{modified_sec, 0}, {modified_sec, 0}};

        identity_write(&world.who[CLIENT], "/dev/null", path_of("client.key"));
        FILE *file = fopen(path_of("client.key"), "ae");
        assert_non_null(file);
        fputs(comment, file);
        fclose(file);
        assert_int_equal(utimensat(AT_FDCWD, path_of("client.key"), times, 0), 0);
}

static void check_resumption(SSL_CTX *context) {
        struct peer *peer = peer_closing(context);
        identity_write(&world.who[CLIENT], path_of("client.pem"), path_of("client.key"));
        struct client *client =
                client_tls(peer, (struct want){.ca = "ca.pem", .certificate = "client.pem", .key = "client.key"});

        assert_int_equal(call_on_new_connection(peer, client), 0);
        for (int i = 0; i < 3; i++)
                assert_int_equal(call_on_new_connection(peer, client), 1);
        grpc_channel_drop(client->channel);
        assert_int_equal(call_on_new_connection(peer, client), 0);
        assert_int_equal(call_on_new_connection(peer, client), 1);
        key_write("# a\n", 1000); /* new bytes, new time */
        assert_int_equal(call_on_new_connection(peer, client), 0);
        assert_int_equal(call_on_new_connection(peer, client), 1);
        key_write("# a\n", 2000); /* the same bytes, new time */
        assert_int_equal(call_on_new_connection(peer, client), 0);
        assert_int_equal(call_on_new_connection(peer, client), 1);
        key_write("# b\n", 2000); /* new bytes, the same time and size */
        assert_int_equal(call_on_new_connection(peer, client), 0);
        assert_int_equal(call_on_new_connection(peer, client), 1);
        client_free(client);
        peer_stop(peer);
}

static void test_resumption(void **state) {
        (void)state;
        check_resumption(server_context(GOOD));
        SSL_CTX *old = server_context(GOOD);
        SSL_CTX_set_max_proto_version(old, TLS1_2_VERSION);
        check_resumption(old);
}

/* The old connection goes on after the files have changed; its ticket must not bring their session back. */
static void test_late_ticket(void **state) {
        (void)state;
        struct peer *peer = peer_new(rows, ARRAY_SIZE(rows));
        peer->tls = server_context(GOOD);
        peer->first_ticket_only = true;
        peer_start(peer);
        identity_write(&world.who[CA], path_of("both.pem"), NULL);
        struct client *client = client_tls(peer, (struct want){.ca = "both.pem"});
        struct seen stream = {0};

        client_start(client, "/t/LateTicket", true, &stream);
        client_run(client, seen_has_message, &stream);
        const struct timespec times[2] = {{1000000, 0}, {1000000, 0}};
        assert_int_equal(utimensat(AT_FDCWD, path_of("both.pem"), times, 0), 0);
        struct seen seen = client_call(client, "/t/Unary", false);
        assert_ok(&seen);
        peer_release(peer);
        client_finish(client, &stream);
        assert_int_equal(stream.status, GRPC_OK);
        seen = client_call(client, "/t/CloseBehind", false);
        assert_ok(&seen);
        seen = client_call(client, "/t/Unary", false);
        assert_ok(&seen);
        assert_int_equal(atomic_load(&peer->connections), 3);
        assert_int_equal(atomic_load(&peer->resumed), 0);
        client_free(client);
        peer_stop(peer);
}

/* A changed CA file counts from the next connection on. */
static void test_changed_ca(void **state) {
        (void)state;
        struct peer *peer = peer_tls(server_context(GOOD));
        identity_write(&world.who[CA], path_of("both.pem"), NULL);
        struct client *client = client_tls(peer, (struct want){.ca = "both.pem"});
        struct seen seen = client_call(client, "/t/Unary", false);

        assert_ok(&seen);
        identity_write(&world.who[OTHER_CA], path_of("both.pem"), NULL);
        grpc_channel_drop(client->channel);
        seen = client_call(client, "/t/Unary", false);
        assert_refused(&seen, "unable to get local issuer certificate");
        assert_int_equal(atomic_load(&peer->resumed), 0);
        identity_write(&world.who[CA], path_of("both.pem"), NULL);
        seen = client_call(client, "/t/Unary", false);
        assert_ok(&seen);
        client_free(client);
        peer_stop(peer);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_good),
                cmocka_unit_test(test_sni),
                cmocka_unit_test(test_refused),
                cmocka_unit_test(test_old_or_foreign_server),
                cmocka_unit_test(test_client_certificate),
                cmocka_unit_test(test_client_certificate_silently_missed),
                cmocka_unit_test(test_both_or_none),
                cmocka_unit_test(test_goodbye_to_nobody),
                cmocka_unit_test(test_sizes),
                cmocka_unit_test(test_resumption),
                cmocka_unit_test(test_late_ticket),
                cmocka_unit_test(test_changed_ca),
        };

        return cmocka_run_group_tests_name("grpc_tls", tests, setup, teardown);
}
