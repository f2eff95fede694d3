/* SPDX-License-Identifier: Apache-2.0 */
#include "grpc_client.h"

static const struct peer_row rows[] = {
        { "/t/Unary", "h|m pong|t 0" },
        { "/t/Stream", "h|m a|m b|m c|t 0" },
};

static void test_basic(void **state) {
        (void)state;
        struct peer *peer = peer_new(rows, ARRAY_SIZE(rows));
        peer_start(peer);
        struct client *client = client_to(peer, "http");
        struct seen seen = client_call(client, "/t/Unary", false);
        assert_string_equal(seen.message, "");
        assert_int_equal(seen.status, GRPC_OK);
        assert_string_equal(seen.text, "pong");
        seen = client_call(client, "/t/Stream", true);
        assert_int_equal(seen.status, GRPC_OK);
        assert_string_equal(seen.text, "a,b,c");
        puts(peer->last_headers);
        client_free(client);
        peer_stop(peer);
}

int main(void) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_basic) };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
