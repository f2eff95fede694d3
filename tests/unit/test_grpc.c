/* SPDX-License-Identifier: Apache-2.0 */
/* What each kind of answer becomes: one row, one answer. The peer is a scripted server (grpc_peer.h). */
#include "grpc_client.h"

#define S200 ":status=200&content-type=application/grpc"

struct row {
        const char *name, *script;
        bool streaming;
        enum grpc_status status;
        bool from_peer;
        const char *text;    /* the messages */
        const char *message; /* a part of the status message; NULL: must be empty */
};

#define LONG_50K "{50000}"

static const struct row table[] = {
        /* good answers */
        {"unary", "h|m pong|t 0", false, GRPC_OK, true, "pong", NULL},
        {"unary, empty message", "h|m |t 0", false, GRPC_OK, true, "", NULL},
        {"stream", "h|m a|m b|m c|t 0", true, GRPC_OK, true, "a,b,c", NULL},
        {"stream without a message", "h|t 0", true, GRPC_OK, true, "", NULL},
        {"byte by byte", "h|b pong|t 0", false, GRPC_OK, true, "pong", NULL},
        {"byte by byte, stream", "h|b one|b |b two|t 0", true, GRPC_OK, true, "one,,two", NULL},
        {"three messages in one frame",
         "h|d 000000000161"
         "000000000162"
         "000000000163|t 0",
         true, GRPC_OK, true, "a,b,c", NULL},
        {"messages across frames", "h|d 00000000|d 02616200|d 00000001|d 63|t 0", true, GRPC_OK, true, "ab,c", NULL},
        {"content-type with +proto", "H :status=200&content-type=application/grpc+proto|m x|t 0", false, GRPC_OK, true,
         "x", NULL},
        {"content-type with ;", "H :status=200&content-type=application/grpc;v=1|m x|t 0", false, GRPC_OK, true, "x",
         NULL},
        {"103 before 200", "i 2|h|m pong|t 0", false, GRPC_OK, true, "pong", NULL},
        {"empty DATA frames", "h|d |d |m pong|d |t 0", false, GRPC_OK, true, "pong", NULL},
        {"as large as allowed", "h|M 1048576|t 0", true, GRPC_OK, true, "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
         NULL},

        /* the peer's own statuses */
        {"trailers", "h|T grpc-status=5&grpc-message=no%20such%20job", false, GRPC_NOT_FOUND, true, "", "no such job"},
        {"trailers only", "T " S200 "&grpc-status=16&grpc-message=who", false, GRPC_UNAUTHENTICATED, true, "", "who"},
        {"trailers only, HTTP 403 but a status", "T :status=403&grpc-status=9", false, GRPC_FAILED_PRECONDITION, true,
         "", NULL},
        {"trailers only, OK, stream", "T " S200 "&grpc-status=0", true, GRPC_OK, true, "", NULL},
        {"message, then an error", "h|m a|T grpc-status=10&grpc-message=aborted", true, GRPC_ABORTED, true, "a",
         "aborted"},
        {"unary with message and error: none is told", "h|m a|t 10", false, GRPC_ABORTED, true, "", NULL},
        {"error after a cut message", "h|d 00000000ff61|t 13", true, GRPC_INTERNAL, true, "", NULL},
        {"UTF-8 percent-decoded", "h|T grpc-status=5&grpc-message=%E2%82%AC%20%c3%a4", false, GRPC_NOT_FOUND, true, "",
         "\xe2\x82\xac \xc3\xa4"},
        {"bad escapes left alone", "h|T grpc-status=5&grpc-message=100%%2%zz%4", false, GRPC_NOT_FOUND, true, "",
         "100%%2%zz%4"},
        {"control characters escaped", "h|T grpc-status=5&grpc-message=a%0Ab%00c%ff", false, GRPC_NOT_FOUND, true, "",
         "a\\x0Ab\\x00c\\xFF"},
        {"50 KB message", "h|T grpc-status=5&grpc-message=" LONG_50K, false, GRPC_NOT_FOUND, true, "", "xxxxxxxx"},
        {"status 99", "h|T grpc-status=99&grpc-message=odd", false, GRPC_UNKNOWN, true, "", "code 99: odd"},

        /* no status, or none to be read */
        {"garbage status", "h|m a|T grpc-status=fine", false, GRPC_UNKNOWN, false, "", "can't be read"},
        {"empty status", "h|m a|T grpc-status=", false, GRPC_UNKNOWN, false, "", "can't be read"},
        {"long status", "h|m a|T grpc-status=00000000000000000000", false, GRPC_UNKNOWN, false, "", "can't be read"},
        {"trailers without status", "h|m a|T x=y", false, GRPC_UNKNOWN, false, "", "no grpc-status"},
        {"no trailers", "h|m a|e", false, GRPC_INTERNAL, false, "", "without trailers"},
        {"status in the first block does not count", "H " S200 "&grpc-status=0|m a|e", false, GRPC_INTERNAL, false, "",
         "without trailers"},
        {"headers only", "T " S200, false, GRPC_UNKNOWN, false, "", NULL},

        /* HTTP */
        {"401", "T :status=401", false, GRPC_UNAUTHENTICATED, false, "", "HTTP status 401"},
        {"400", "T :status=400", false, GRPC_INTERNAL, false, "", "HTTP status 400"},
        {"403", "T :status=403", false, GRPC_PERMISSION_DENIED, false, "", "HTTP status 403"},
        {"404", "H :status=404&content-type=text/html|d 4e6f|e", false, GRPC_UNIMPLEMENTED, false, "",
         "HTTP status 404"},
        {"429", "T :status=429", false, GRPC_UNAVAILABLE, false, "", "HTTP status 429"},
        {"502", "T :status=502", false, GRPC_UNAVAILABLE, false, "", "HTTP status 502"},
        {"503", "T :status=503", false, GRPC_UNAVAILABLE, false, "", "HTTP status 503"},
        {"504", "T :status=504", false, GRPC_UNAVAILABLE, false, "", "HTTP status 504"},
        {"302", "T :status=302&location=/x", false, GRPC_UNKNOWN, false, "", "HTTP status 302"},
        {"500 with an endless body", "H :status=500|f 1000000 1000", false, GRPC_UNKNOWN, false, "", "HTTP status 500"},
        {"wrong content type", "H :status=200&content-type=text/html|d 3c68746d6c3e|e", false, GRPC_UNKNOWN, false, "",
         "content-type text/html"},
        {"almost the content type", "H :status=200&content-type=application/grpc-web|m x|t 0", false, GRPC_UNKNOWN,
         false, "", "content-type application/grpc-web"},
        {"no content type", "H :status=200|m x|t 0", false, GRPC_UNKNOWN, false, "", "content-type is missing"},

        /* framing */
        {"status 0 without a message", "h|t 0", false, GRPC_UNIMPLEMENTED, false, "", "without a message"},
        {"two messages in a unary", "h|m a|m b|t 0", false, GRPC_UNIMPLEMENTED, false, "", "more than one message"},
        {"message cut short", "h|d 00000000056162|t 0", false, GRPC_INTERNAL, false, "", "cut short"},
        {"prefix cut short", "h|m a|d 0000|t 0", true, GRPC_INTERNAL, false, "a", "cut short"},
        {"second prefix cut short, unary", "h|m a|d 0000|t 0", false, GRPC_INTERNAL, false, "", "cut short"},
        {"4 GB announced", "h|d 00ffffffff61|t 0", false, GRPC_RESOURCE_EXHAUSTED, false, "", "4294967295"},
        {"a byte too large", "h|d 0000100001|t 0", true, GRPC_RESOURCE_EXHAUSTED, false, "", "1048577"},
        {"compressed", "h|d 010000000161|t 0", false, GRPC_INTERNAL, false, "", "compressed"},
        {"flag 255", "h|m a|d ff0000000161|t 0", true, GRPC_INTERNAL, false, "a", "compressed"},

        /* resets */
        {"RST NO_ERROR", "h|m a|r 0", true, GRPC_INTERNAL, false, "a", "reset the stream: NO_ERROR"},
        {"RST PROTOCOL_ERROR", "r 1", false, GRPC_INTERNAL, false, "", "PROTOCOL_ERROR"},
        {"RST INTERNAL_ERROR", "h|r 2", false, GRPC_INTERNAL, false, "", "INTERNAL_ERROR"},
        {"RST FLOW_CONTROL_ERROR", "r 3", false, GRPC_INTERNAL, false, "", "FLOW_CONTROL"},
        {"RST STREAM_CLOSED", "r 5", false, GRPC_UNKNOWN, false, "", "STREAM_CLOSED"},
        {"RST CANCEL", "h|r 8", false, GRPC_CANCELLED, false, "", "CANCEL"},
        {"RST CANCEL mid-stream", "h|m a|d 0000|r 8", true, GRPC_CANCELLED, false, "a", "CANCEL"},
        {"RST ENHANCE_YOUR_CALM", "r 11", false, GRPC_RESOURCE_EXHAUSTED, false, "", "ENHANCE_YOUR_CALM"},
        {"RST INADEQUATE_SECURITY", "r 12", false, GRPC_PERMISSION_DENIED, false, "", "INADEQUATE"},
        {"RST HTTP_1_1_REQUIRED", "r 13", false, GRPC_UNKNOWN, false, "", "HTTP_1_1"},
        {"RST of a code nobody knows", "r 4242", false, GRPC_UNKNOWN, false, "", "reset"},
        {"REFUSED_STREAM twice", "r 7", false, GRPC_UNAVAILABLE, false, "", "refused"},
        {"REFUSED_STREAM after a message", "h|m a|r 7", true, GRPC_UNAVAILABLE, false, "a", "refused"},
        {"RST NO_ERROR behind the status", "h|m a|T grpc-status=0|r 0", false, GRPC_OK, true, "a", NULL},

        /* floods and violations */
        {"header fields of 70 KB", "H " S200 "&a={40000}&b={30000}|m a|t 0", false, GRPC_RESOURCE_EXHAUSTED, false, "",
         "header fields"},
        {"trailers of 70 KB", "h|m a|T grpc-status=0&a={40000}&b={30000}", true, GRPC_RESOURCE_EXHAUSTED, false, "a",
         "header fields"},
        {"endless 103", "i 3000", false, GRPC_RESOURCE_EXHAUSTED, false, "", "header fields"},
        {"endless CONTINUATION", "c 500", false, GRPC_UNAVAILABLE, false, "", NULL},
        {"a few PINGs", "p 200|h|m pong|t 0", false, GRPC_OK, true, "pong", NULL},
        {"PING flood", "P", false, GRPC_UNAVAILABLE, false, "", "Flooding"},
        {"data before headers", "m a|t 0", false, GRPC_UNAVAILABLE, false, "", "PROTOCOL_ERROR"},
        {"pseudo header in trailers", "h|m a|T :status=200&grpc-status=0", true, GRPC_INTERNAL, false, "a", ""},
        {"connection cut", "h|m a|x", true, GRPC_UNAVAILABLE, false, "a", "closed by the peer"},
        {"connection cut at once", "x", false, GRPC_UNAVAILABLE, false, "", "closed by the peer"},
        {"garbage frame", "h|m a|w ffffffffffffffffffffffff", true, GRPC_UNAVAILABLE, false, "a", ""},
        {"PUSH_PROMISE", "w 0000060504000000030000000288", false, GRPC_UNAVAILABLE, false, "", ""},
        {"window overflow",
         "w 00000408000000000"
         "07fffffff"
         "00000408000000000"
         "07fffffff",
         false, GRPC_UNAVAILABLE, false, "", ""},
        {"GOAWAY with an error, then the end", "h|m a|g 2147483647 11|x", true, GRPC_UNAVAILABLE, false, "a",
         "too_many\\x0Apings"},
};

static struct peer_row rows[ARRAY_SIZE(table)];
static char paths[ARRAY_SIZE(table)][16];

static bool message_fits(const struct row *row, const struct seen *seen) {
        return row->message && *row->message ? strstr(seen->message, row->message) != NULL
               : row->message                ? true
                                             : !row->from_peer || seen->message[0] == '\0';
}

static unsigned check_row(struct client *client, size_t i) {
        const struct row *row = &table[i];
        struct seen seen = client_call(client, paths[i], row->streaming);

        if (seen.status == row->status && seen.from_peer == row->from_peer && strcmp(seen.text, row->text) == 0 &&
            message_fits(row, &seen) && strlen(seen.message) <= 1100)
                return 0;
        print_error("%s: %s (%s), messages \"%s\", \"%.200s\"\n", row->name, grpc_status_to_text(seen.status),
                    seen.from_peer ? "peer's" : "ours", seen.text, seen.message);
        return 1;
}

static void check_table(struct client *client) {
        unsigned failures = 0;

        for (size_t i = 0; i < ARRAY_SIZE(table); i++)
                failures += check_row(client, i);
        assert_int_equal(failures, 0);
}

static struct peer *table_peer(void) {
        for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
                snprintf(paths[i], sizeof(paths[i]), "/t/%zu", i);
                rows[i] = (struct peer_row){paths[i], table[i].script};
        }
        struct peer *peer = peer_new(rows, ARRAY_SIZE(rows));
        peer_start(peer);
        return peer;
}

/* One channel through all of it: whatever an answer does to the connection, the next call is a good one. */
static void test_table(void **state) {
        (void)state;
        struct peer *peer = table_peer();
        struct client *client = client_to(peer, "http");

        check_table(client);
        client_free(client);
        peer_stop(peer);
}

/* A reset after a call that has ended counts as an attack with some servers. */
static void test_no_needless_reset(void **state) {
        (void)state;
        struct peer *peer = table_peer();
        struct client *client = client_to(peer, "http");

        for (int i = 0; i < 20; i++)
                assert_int_equal(client_call(client, "/t/0", false).status, GRPC_OK);
        assert_int_equal(client_call(client, "/t/2", true).status, GRPC_OK);
        assert_int_equal(atomic_load(&peer->resets), 0);
        assert_int_equal(atomic_load(&peer->connections), 1);
        client_free(client);
        peer_stop(peer);
}

static void assert_header(struct peer *peer, const char *line) {
        char text[8200];

        pthread_mutex_lock(&peer->mutex);
        snprintf(text, sizeof(text), "\n%s", peer->last_headers);
        pthread_mutex_unlock(&peer->mutex);
        char wanted[512];
        snprintf(wanted, sizeof(wanted), "\n%s\n", line);
        if (!strstr(text, wanted))
                fail_msg("no \"%s\" in %s", line, text);
}

static void test_request(void **state) {
        (void)state;
        struct peer *peer = table_peer();
        struct client *client = client_to(peer, "http");
        struct grpc_call_options options = client_options("/t/0", false);
        struct seen seen = {0};
        char authority[64];

        options.timeout_usec = 2500 * USEC_PER_MSEC;
        options.bearer_token = "se.cr-et";
        client_start_with(client, &options, &seen);
        client_finish(client, &seen);
        assert_int_equal(seen.status, GRPC_OK);
        assert_header(peer, ":method: POST");
        assert_header(peer, ":scheme: http");
        assert_header(peer, ":path: /t/0");
        snprintf(authority, sizeof(authority), ":authority: 127.0.0.1:%u", peer->port);
        assert_header(peer, authority);
        assert_header(peer, "te: trailers");
        assert_header(peer, "content-type: application/grpc");
        assert_header(peer, "grpc-accept-encoding: identity");
        assert_header(peer, "user-agent: test/1");
        assert_header(peer, "authorization: Bearer se.cr-et [secret]");
        const char *timeout = strstr(peer->last_headers, "grpc-timeout: ");
        assert_non_null(timeout);
        assert_in_range(strtoul(timeout + strlen("grpc-timeout: "), NULL, 10), 2000, 2500);
        assert_int_equal(peer->last_body_size, 9);
        assert_memory_equal(peer->last_body, "\0\0\0\0\4ping", 9);
        client_free(client);
        peer_stop(peer);
}

static void test_pushback(void **state) {
        static const struct peer_row pushback[] = {
                {"/none", "h|t 14"},
                {"/ms", "h|T grpc-status=14&grpc-retry-pushback-ms=1500"},
                {"/no", "h|T grpc-status=14&grpc-retry-pushback-ms=-1"},
                {"/junk", "T " S200 "&grpc-status=14&grpc-retry-pushback-ms=soon"},
        };
        (void)state;
        struct peer *peer = peer_new(pushback, ARRAY_SIZE(pushback));
        peer_start(peer);
        struct client *client = client_to(peer, "http");

        assert_false(client_call(client, "/none", false).has_pushback);
        struct seen seen = client_call(client, "/ms", false);
        assert_true(seen.has_pushback);
        assert_int_equal(seen.pushback_ms, 1500);
        seen = client_call(client, "/no", false);
        assert_true(seen.has_pushback && seen.pushback_ms < 0);
        seen = client_call(client, "/junk", false);
        assert_true(seen.has_pushback && seen.pushback_ms < 0);
        client_free(client);
        peer_stop(peer);
}

static void test_bad_arguments(void **state) {
        (void)state;
        struct peer *peer = table_peer();
        struct client *client = client_to(peer, "http");
        struct grpc_call *call;
        static const char *const tokens[] = {"", "a b", "a\nb", "\xc3\xa4"};
        static const char *const bad_paths[] = {"", "t/0", "/a b", "/\n"};

        for (size_t i = 0; i < ARRAY_SIZE(tokens); i++) {
                struct grpc_call_options options = client_options("/t/0", false);
                options.bearer_token = tokens[i];
                assert_int_equal(grpc_call_start(client->channel, &options, &seen_handlers, NULL, &call), -EINVAL);
                options = client_options(bad_paths[i], false);
                assert_int_equal(grpc_call_start(client->channel, &options, &seen_handlers, NULL, &call), -EINVAL);
        }
        client_free(client);
        peer_stop(peer);
}

/* A request larger than the peer's window goes out in parts, as the peer takes them. */
static void test_large_request(void **state) {
        (void)state;
        struct peer *peer = table_peer();
        struct client *client = client_to(peer, "http");
        struct grpc_call_options options = client_options("/t/0", false);
        struct seen seen = {0};
        uint8_t *bytes = calloc(1, 3 * 1024 * 1024);

        options.request = (struct span){bytes, 3 * 1024 * 1024};
        client_start_with(client, &options, &seen);
        free(bytes);
        client_finish(client, &seen);
        assert_int_equal(seen.status, GRPC_OK);
        client_free(client);
        peer_stop(peer);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_table),         cmocka_unit_test(test_no_needless_reset),
                cmocka_unit_test(test_request),       cmocka_unit_test(test_pushback),
                cmocka_unit_test(test_bad_arguments), cmocka_unit_test(test_large_request),
        };

        return cmocka_run_group_tests_name("grpc", tests, NULL, NULL);
}
