/* SPDX-License-Identifier: Apache-2.0 */
/* Flow control: what is not given back stays with the peer, and what has begun can always end. */
#include "grpc_client.h"

#define WINDOW 65536

static const struct peer_row rows[] = {
        {"/Unary", "h|m pong|t 0"},
        {"/Flood", "h|f 1000000 1000"},
        {"/Tiny", "h|f 1000000 1"},
        {"/Finite", "h|f 3000 1000|t 0"},
        {"/Padded", "h|o 20000 40|t 0"},
        {"/Empty", "h|f 50000 0|t 0"},
        {"/Large", "h|M 900000|t 0"},
        {"/HeldThenLarge", "h|f 60 1000|M 900000|t 0"},
        {"/HalfThenMore", "h|M 30000|M 40000|M 65531|M 65536|M 65537|t 0"},
};

struct world {
        struct peer *peer;
        struct client *client;
};

static struct world begin(void) {
        struct world world = {.peer = peer_new(rows, ARRAY_SIZE(rows))};

        peer_start(world.peer);
        world.client = client_to(world.peer, "http");
        return world;
}

static void finish(struct world *world) {
        client_free(world->client);
        peer_stop(world->peer);
}

static void start(struct world *world, const char *path, bool manual, struct seen *seen) {
        struct grpc_call_options options = client_options(path, true);

        options.manual_window = manual;
        client_start_with(world->client, &options, seen);
}

static bool is_stalled(void *userdata) {
        static unsigned long long last;
        static unsigned same;
        struct peer *peer = userdata;
        unsigned long long now = atomic_load(&peer->data_sent);

        same = now == last && now > 0 ? same + 1 : 0;
        last = now;
        if (same <= 30)
                return false;
        same = 0;
        return true; /* ticks of 2 ms; the peer looks at its windows each 10 ms */
}

struct goal {
        const size_t *bytes;
        size_t target;
};

static bool is_reached(void *userdata) {
        const struct goal *goal = userdata;

        return *goal->bytes >= goal->target;
}

/* settle() - until that many bytes have come, and then until no more do. */
static void settle(struct world *world, const struct seen *seen, size_t target) {
        struct goal goal = {&seen->bytes, target};

        client_run(world->client, is_reached, &goal);
        client_run(world->client, is_stalled, world->peer);
}

static void test_flood_is_held(void **state) {
        struct world world_here = begin(), *world = &world_here;
        (void)state;
        struct seen seen = {0};

        start(world, "/Flood", true, &seen);
        settle(world, &seen, WINDOW - 2000);
        unsigned long long sent = atomic_load(&world->peer->data_sent);
        assert_in_range(sent, WINDOW - 1010, WINDOW + 1005 + 5 * 70);
        assert_true(seen.bytes <= WINDOW + 1000);
        /* the neighbours do not feel it */
        for (int i = 0; i < 20; i++)
                assert_int_equal(client_call(world->client, "/Unary", false).status, GRPC_OK);
        assert_in_range(atomic_load(&world->peer->data_sent) - sent, 0, 20 * 9 + 1005);
        /* half is given back: half comes */
        size_t before = seen.bytes;
        grpc_call_consume(seen.call, before / 2);
        settle(world, &seen, before + before / 2 - WINDOW / 4);
        assert_true(seen.bytes - before <= before / 2 + 1000);
        grpc_call_consume(seen.call, seen.bytes); /* more than there is */
        before = seen.bytes;
        settle(world, &seen, before + WINDOW - WINDOW / 4);
        assert_true(seen.bytes - before <= WINDOW + 1000);
        seen.call = grpc_call_free(seen.call);
        assert_int_equal(client_call(world->client, "/Unary", false).status, GRPC_OK);
        finish(world);
}

static void test_tiny_messages_are_held(void **state) {
        struct world world_here = begin(), *world = &world_here;
        (void)state;
        struct seen seen = {0};

        start(world, "/Tiny", true, &seen);
        client_run(world->client, is_stalled, world->peer);
        assert_true(seen.bytes <= WINDOW);
        assert_true(atomic_load(&world->peer->data_sent) <= 6 * (WINDOW + 100));
        seen.call = grpc_call_free(seen.call);
        finish(world);
}

static void test_automatic(void **state) {
        struct world world_here = begin(), *world = &world_here;
        (void)state;
        struct seen seen = {0};

        start(world, "/Finite", false, &seen);
        client_finish(world->client, &seen);
        assert_int_equal(seen.status, GRPC_OK);
        assert_int_equal(seen.messages, 3000);
        /* in large steps, not one for each message: 3 MB by quarters of 64 KiB, for stream and connection */
        assert_in_range(atomic_load(&world->peer->window_updates), 10, 300);
        finish(world);
}

static void test_consumed_flows(void **state) {
        static const char *const paths[] = {"/Finite", "/Padded", "/Empty"};
        struct world world_here = begin(), *world = &world_here;
        (void)state;

        for (size_t i = 0; i < ARRAY_SIZE(paths); i++)
                for (int manual = 0; manual < 2; manual++) {
                        struct seen seen = {.consume = manual};
                        start(world, paths[i], manual, &seen);
                        client_finish(world->client, &seen);
                        assert_int_equal(seen.status, GRPC_OK);
                }
        finish(world);
}

static void test_larger_than_window(void **state) {
        static const char *const paths[] = {"/Large", "/HeldThenLarge", "/HalfThenMore"};
        struct world world_here = begin(), *world = &world_here;
        (void)state;

        for (size_t i = 0; i < ARRAY_SIZE(paths); i++)
                for (int manual = 0; manual < 2; manual++) {
                        struct seen seen = {0};
                        start(world, paths[i], manual, &seen);
                        if (i == 2 && manual) { /* several: each needs the one before given back */
                                seen.consume = true;
                        }
                        client_finish(world->client, &seen);
                        assert_int_equal(seen.status, GRPC_OK);
                }
        finish(world);
}

static void test_limit_of_buffer(void **state) {
        struct world world_here = begin(), *world = &world_here;
        (void)state;
        struct grpc_call_options options = client_options("/Large", true);
        struct seen seen = {0};

        options.response_max = 899999;
        client_start_with(world->client, &options, &seen);
        client_finish(world->client, &seen);
        assert_int_equal(seen.status, GRPC_RESOURCE_EXHAUSTED);
        assert_int_equal(seen.messages, 0);
        finish(world);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_flood_is_held),      cmocka_unit_test(test_tiny_messages_are_held),
                cmocka_unit_test(test_automatic),          cmocka_unit_test(test_consumed_flows),
                cmocka_unit_test(test_larger_than_window), cmocka_unit_test(test_limit_of_buffer),
        };

        return cmocka_run_group_tests_name("grpc_window", tests, NULL, NULL);
}
