/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A peer that says anything: scripts put together at random, whole frames and torn ones. Each call ends with exactly
 * one on_close, the messages keep to their limit, and when it is over the channel still serves. SEED=… repeats a run.
 */
#include "grpc_client.h"

#define ROUNDS 250
#define CALLS 4

static struct {
        uint64_t seed, round_seed;
        bool passed;
        char scripts[CALLS][1024];
        struct peer_row rows[CALLS + 1];
} world;

static unsigned pick(unsigned count) {
        return (unsigned)(base_random_next(&world.seed) % count);
}

static void add_hex(char *script, size_t size, unsigned max) {
        unsigned bytes = pick(max);

        for (unsigned i = 0; i < bytes; i++) {
                size_t used = strlen(script);
                snprintf(script + used, size - used, "%02x", pick(4) == 0 ? pick(256) : pick(3));
        }
}

static void add_operation(char *script, size_t size) {
        static const char *const operations[] = {
                "h",
                "h",
                "h",
                "H :status=200&content-type=text/plain",
                "H :status=503",
                "m word",
                "m word",
                "b word",
                "M 70000",
                "M 2000",
                "t 0",
                "t 0",
                "t 5",
                "T x=y",
                "T grpc-status=0&grpc-message=%41%zz",
                "T :status=200",
                "e",
                "i 3",
                "p 5",
                "r 7",
                "r 8",
                "r 0",
                "g 1 0",
                "g -1 0",
                "g 2147483647 0",
                "x",
                "f 30 500",
                "o 30 50",
                "H x=y",
                "H :status=abc",
                "T Upper=case",
                "H :status=200&:status=200",
                "c 2",
                "H content-length=5&:status=200",
        };
        unsigned kind = pick(10);
        size_t used = strlen(script);

        if (used > 0)
                snprintf(script + used, size - used, "|");
        used = strlen(script);
        if (kind < 8)
                snprintf(script + used, size - used, "%s", operations[pick(ARRAY_SIZE(operations))]);
        else {
                snprintf(script + used, size - used, kind == 8 ? "d " : "w ");
                add_hex(script, size, 40);
        }
}

static void make_scripts(void) {
        static const char *const paths[CALLS] = {"/0", "/1", "/2", "/3"};

        for (size_t i = 0; i < CALLS; i++) {
                unsigned operations = 1 + pick(7);
                world.scripts[i][0] = '\0';
                if (pick(2) == 0)
                        base_text_copy(world.scripts[i], sizeof(world.scripts[i]), "h");
                for (unsigned n = 0; n < operations; n++)
                        add_operation(world.scripts[i], sizeof(world.scripts[i]));
                world.rows[i] = (struct peer_row){paths[i], world.scripts[i]};
        }
        world.rows[CALLS] = (struct peer_row){"/Unary", "h|m pong|t 0"};
}

static bool all_closed(void *userdata) {
        const struct seen *seen = userdata;

        for (size_t i = 0; i < CALLS; i++)
                if (seen[i].call && seen[i].closed == 0)
                        return false;
        return true;
}

static void run_round(uint64_t seed) {
        world.seed = seed;
        make_scripts();
        struct peer *peer = peer_new(world.rows, ARRAY_SIZE(world.rows));
        peer_start(peer);
        struct client *client = client_to(peer, "http");
        struct seen seen[CALLS] = {0};

        for (size_t i = 0; i < CALLS; i++) {
                struct grpc_call_options options = client_options(world.rows[i].path, pick(3) > 0);
                options.timeout_usec = 60 * USEC_PER_MSEC;
                options.response_max = 69999;
                options.manual_window = pick(2);
                seen[i].consume = pick(2);
                seen[i].free_on_message = pick(6) == 0;
                client_start_with(client, &options, &seen[i]);
        }
        client_run(client, all_closed, seen);
        for (size_t i = 0; i < CALLS; i++) {
                assert_true(seen[i].closed <= 1);
                seen[i].call = grpc_call_free(seen[i].call);
        }
        grpc_channel_drop(client->channel);
        assert_int_equal(client_call(client, "/Unary", false).status, GRPC_OK);
        client_free(client);
        peer_stop(peer);
}

static void test_random(void **state) {
        const char *text = getenv("SEED");
        uint64_t seed = text ? strtoull(text, NULL, 0) : base_random_u64();
        (void)state;

        for (unsigned i = 0; i < ROUNDS; i++) {
                world.round_seed = seed;
                run_round(seed);
                if (text)
                        break;
                seed = base_random_next(&seed);
        }
        world.passed = true;
}

static int say_seed(void **state) {
        (void)state;
        if (!world.passed)
                print_error("repeat with SEED=%" PRIu64 "\n", world.round_seed);
        return 0;
}

int main(void) {
        const struct CMUnitTest tests[] = {cmocka_unit_test_teardown(test_random, say_seed)};

        return cmocka_run_group_tests_name("grpc_random", tests, NULL, NULL);
}
