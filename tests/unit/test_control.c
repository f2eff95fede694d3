/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control, the Watch stream, against a server that the test plays, on virtual time (control_world.h).
 */
#include "control_world.h"

/* ---- Watch ------------------------------------------------------------------------------------------ */

static void test_opens(void **state) {
        (void)state;
        start(77);
        assert_int_equal(asked_revision(), 77);
        assert_string_equal(channel.watch->path, "/sparkcancel.agent.v1.CancelAgentService/Watch");
        assert_string_equal(channel.watch->token, "secret");
        assert_true(channel.watch->options.streaming && channel.watch->options.manual_window);
        assert_int_equal(channel.watch->options.response_max, 65536);
        assert_int_equal(channel.watch->options.timeout_usec, USEC_NEVER);

        assert_false(control_is_connected(agent.control));
        send_bookmark(77, 10, 0);
        assert_true(control_is_connected(agent.control));
        send_bookmark(77, 10, 0);
        assert_int_equal(agent.notices[CONTROL_CONNECTED], 1);
        assert_string_equal(agent.detail[CONTROL_CONNECTED], "198.51.100.7:443");
        assert_int_equal(agent.events, 2);
}

static void test_new_refuses_long_names(void **state) {
        (void)state;
        struct control_options options = default_options();
        const struct control_handlers handlers = {};
        struct control *control = NULL;
        char name[300];

        memset(name, 'n', sizeof(name) - 1);
        name[sizeof(name) - 1] = '\0';
        options.node = name;
        assert_int_equal(control_new(NULL, NULL, NULL, &options, &handlers, NULL, &control), -EINVAL);
        assert_null(control);
}

static void test_window_and_resume(void **state) {
        (void)state;
        size_t first, second, third;

        agent.take_at_once = false;
        start(0);
        first = send_withdrawn(5);
        second = send_withdrawn(6);
        assert_int_equal(agent.size, second);
        assert_int_equal(channel.watch->consumed, 0);
        control_taken(agent.control, 5, first);
        assert_int_equal(channel.watch->consumed, first);

        /* 6 was delivered and not stored: it must come again, and its bytes belong to no window of the new stream */
        close_watch(GRPC_UNAVAILABLE, false);
        (void)wait_watch();
        assert_int_equal(asked_revision(), 5);
        third = send_withdrawn(6);
        control_taken(agent.control, 6, second);
        assert_int_equal(channel.watch->consumed, 0);
        control_taken(agent.control, 6, third);
        assert_int_equal(channel.watch->consumed, third);
        control_taken(agent.control, 6, 1000); /* more than was ever delivered */
        assert_int_equal(channel.watch->consumed, third);

        close_watch(GRPC_UNAVAILABLE, false);
        (void)wait_watch();
        assert_int_equal(asked_revision(), 6);
        assert_int_equal(agent.restarts, 0);
}

static void test_position_only_goes_forward(void **state) {
        (void)state;
        agent.take_at_once = false;
        start(0);
        send_withdrawn(9);
        control_taken(agent.control, 9, 0);
        control_taken(agent.control, 3, 0);    /* back */
        control_taken(agent.control, 1000, 0); /* above all that was delivered */
        close_watch(GRPC_UNAVAILABLE, false);
        (void)wait_watch();
        assert_int_equal(asked_revision(), 9);
}

static void test_silence(void **state) {
        (void)state;
        static const struct {
                uint64_t interval; /* 0: no Bookmark comes */
                uint64_t limit;
        } cases[] = { { 0, 30 }, { 1, 3 }, { 15, 45 }, { 60, 180 } };

        start(0);
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                unsigned drops = channel.drops;

                if (cases[i].interval) {
                        send_bookmark(0, cases[i].interval, 0);
                        run_for(cases[i].interval * USEC_PER_SEC); /* one heartbeat more */
                        send_bookmark(0, cases[i].interval, 0);
                }
                run_for(cases[i].limit * USEC_PER_SEC - 1);
                assert_non_null(channel.watch);
                assert_int_equal(channel.drops, drops);
                run_for(1);
                assert_null(channel.watch);
                assert_int_equal(channel.drops, drops + 1); /* the connection, not just the call */
                assert_int_equal(agent.notices[CONTROL_SILENT], i + 1);
                assert_false(control_is_connected(agent.control));
                (void)wait_watch();
        }
        assert_int_equal(agent.notices[CONTROL_DISCONNECTED], 0); /* one event, one notice */
}

static void test_heartbeats_cost_no_timers(void **state) {
        (void)state;
        start(0);
        send_bookmark(0, 10, 0);
        loop.timers_set = loop.wakeups = 0;
        for (int i = 0; i < 60; i++) {
                run_for(10 * USEC_PER_SEC);
                send_bookmark(0, 10, 0);
        }
        assert_in_range(loop.wakeups, 1, 30); /* in ten minutes with 60 heartbeats */
        assert_in_range(loop.timers_set, 1, 30);
        assert_int_equal(channel.watches, 1);
}

static void test_silence_does_not_count_while_held(void **state) {
        (void)state;
        start(0);
        send_bookmark(0, 1, 0);
        control_set_reading(agent.control, false);
        run_for(USEC_PER_HOUR);
        assert_int_equal(channel.drops, 0);
        control_set_reading(agent.control, true);
        run_for(3 * USEC_PER_SEC - 1); /* counted from here */
        assert_int_equal(channel.drops, 0);
        run_for(3 * USEC_PER_SEC);
        assert_int_equal(channel.drops, 1);
}

static void test_silence_does_not_count_with_a_full_window(void **state) {
        (void)state;
        struct buffer message = BUFFER_INIT(65536);
        char padding[60000] = "";
        size_t held = 0;

        agent.take_at_once = false;
        start(0);
        send_bookmark(0, 1, 0);
        put_number(&message, 1, 1);
        put(&message, 100, padding, sizeof(padding));
        for (; held < CONTROL_STREAM_WINDOW - message.size; held += message.size)
                send_message(channel.watch, &message);
        run_for(USEC_PER_HOUR);
        assert_int_equal(channel.drops, 0);
        control_taken(agent.control, 1, held);
        run_for(7 * USEC_PER_SEC);
        assert_int_equal(channel.drops, 1);
        buffer_deinit(&message);
}

static void test_backoff_grows_and_only_progress_resets_it(void **state) {
        (void)state;
        unsigned attempt = 0;

        start(0);
        for (; attempt < 12; attempt++) {
                if (attempt % 2)
                        send_bookmark(0, 10, 0); /* the opening Bookmark is no progress */
                close_watch(GRPC_UNAVAILABLE, false);
                assert_backoff(wait_watch(), attempt);
        }
        send_withdrawn(1); /* delivered and stored: progress */
        close_watch(GRPC_OK, true);
        assert_backoff(wait_watch(), 0);
        send_withdrawn(1); /* the same once more: none */
        close_watch(GRPC_UNAVAILABLE, true);
        assert_backoff(wait_watch(), 1);

        send_bookmark(1, 10, 0); /* a stream that lives for an interval: progress */
        run_for(10 * USEC_PER_SEC);
        send_bookmark(1, 10, 0);
        close_watch(GRPC_UNAVAILABLE, true);
        assert_backoff(wait_watch(), 0);
}

static void test_out_of_range_starts_over(void **state) {
        (void)state;
        size_t old, fresh;

        agent.take_at_once = false;
        start(500);
        send_bookmark(500, 10, 0);
        control_taken(agent.control, 500, agent.size);
        old = send_withdrawn(501); /* the agent is storing it while the server loses its history */
        close_watch(GRPC_OUT_OF_RANGE, true);
        assert_int_equal(agent.restarts, 1);
        assert_int_equal(agent.notices[CONTROL_HISTORY_GONE], 1);
        assert_int_equal(agent.notices[CONTROL_DISCONNECTED], 0);
        assert_int_equal(wait_watch(), 0);
        assert_int_equal(asked_revision(), 0);

        fresh = send_withdrawn(2);
        control_taken(agent.control, 501, old); /* of the old order: not to be believed */
        close_watch(GRPC_OUT_OF_RANGE, true);
        assert_backoff(wait_watch(), 0); /* not at once again */
        assert_int_equal(asked_revision(), 0);

        control_taken(agent.control, 2, fresh);
        send_withdrawn(3);
        control_taken(agent.control, 3, agent.size);
        assert_int_equal(channel.watch->consumed, agent.size);
        close_watch(GRPC_UNAVAILABLE, true);
        (void)wait_watch();
        assert_int_equal(asked_revision(), 3);
        assert_int_equal(agent.notices[CONTROL_REVISION_BACKWARD], 0); /* a new order compares with nothing before */
}

/* The new order may have passed the old one's revisions: a late position of the old order is still not believed. */
static void test_late_position_of_an_old_order(void **state) {
        (void)state;
        size_t old;

        agent.take_at_once = false;
        start(500);
        old = send_withdrawn(501);
        close_watch(GRPC_OUT_OF_RANGE, true);
        (void)wait_watch();
        send_withdrawn(900);
        control_taken(agent.control, 501, old);
        close_watch(GRPC_UNAVAILABLE, false);
        (void)wait_watch();
        assert_int_equal(asked_revision(), 0);
}

/* A stream that begins with 0 while nothing is stored yet is a new order, too. */
static void test_reopened_with_zero_is_a_new_order(void **state) {
        (void)state;
        size_t old, fresh;

        agent.take_at_once = false;
        start(0);
        old = send_withdrawn(10);
        close_watch(GRPC_UNAVAILABLE, false);
        assert_int_equal(agent.restarts, 0);
        (void)wait_watch();
        assert_int_equal(agent.restarts, 1);
        fresh = send_withdrawn(4);
        control_taken(agent.control, 4, old + fresh); /* one turn took both */
        assert_int_equal(channel.watch->consumed, fresh);
        close_watch(GRPC_UNAVAILABLE, false);
        (void)wait_watch();
        assert_int_equal(asked_revision(), 4);
        assert_int_equal(agent.restarts, 1);
}

static void test_aborted_waits(void **state) {
        (void)state;
        start(5);
        send_bookmark(5, 10, 0);
        close_watch(GRPC_ABORTED, true);
        assert_int_equal(agent.notices[CONTROL_NODE_TAKEN], 1);
        assert_non_null(strstr(agent.detail[CONTROL_NODE_TAKEN], "another agent calls itself node-1"));
        assert_int_equal(agent.notices[CONTROL_DISCONNECTED], 0);
        assert_true(wait_watch() >= MAX_USEC);
        assert_int_equal(asked_revision(), 5);
}

/* A status that was made up on our side (a transport failure, an HTTP status) says nothing about history or name. */
static void test_made_up_statuses(void **state) {
        (void)state;
        start(5);
        close_watch(GRPC_ABORTED, false);
        assert_backoff(wait_watch(), 0);
        close_watch(GRPC_OUT_OF_RANGE, false);
        assert_backoff(wait_watch(), 1);
        assert_int_equal(asked_revision(), 5);
        assert_int_equal(agent.restarts, 0);
        assert_int_equal(agent.notices[CONTROL_NODE_TAKEN], 0);
}

static void test_unauthenticated_refreshes_the_token(void **state) {
        (void)state;
        start(5);
        close_watch(GRPC_UNAUTHENTICATED, true);
        assert_int_equal(tokens.refreshed, 1);
        tokens.token = "fresh";
        assert_backoff(wait_watch(), 0);
        assert_string_equal(channel.watch->token, "fresh");
        close_watch(GRPC_PERMISSION_DENIED, true);
        assert_int_equal(tokens.refreshed, 1);
        assert_backoff(wait_watch(), 1);
}

static void test_no_token_configured(void **state) {
        (void)state;
        tokens.token = NULL;
        start(5);
        assert_null(channel.watch->token);
}

static void test_token_missing(void **state) {
        (void)state;
        tokens.result = -EAGAIN; /* a metadata service has not answered yet */
        assert_int_equal(control_start(agent.control, 5), 0);
        run_for(USEC_PER_SEC);
        assert_null(channel.watch);
        assert_int_equal(agent.notices[CONTROL_TOKEN_FAILED], 0);
        tokens.result = -ENOENT;
        tokens.error = "/etc/token: No such file or directory";
        run_for(USEC_PER_MINUTE);
        assert_null(channel.watch);
        assert_true(agent.notices[CONTROL_TOKEN_FAILED] > 1); /* the agent folds them */
        assert_string_equal(agent.detail[CONTROL_TOKEN_FAILED], tokens.error);
        tokens.result = 0;
        assert_true(wait_watch() <= MAX_USEC);
}

static void test_pushback(void **state) {
        (void)state;
        static const struct {
                int64_t pushback_ms;
                uint64_t min, max;
        } cases[] = {
                { 0, MIN_USEC, MIN_USEC },
                { 5000, 5 * USEC_PER_SEC, 5 * USEC_PER_SEC * 9 / 8 },
                { INT64_MAX, MAX_USEC, MAX_USEC },
                { -1, MAX_USEC, MAX_USEC },
        };

        start(5);
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                const struct grpc_result result = {
                        .status = GRPC_UNAVAILABLE, .from_peer = true, .has_pushback = true,
                        .pushback_ms = cases[i].pushback_ms,
                };

                close_call(channel.watch, &result);
                assert_in_range(wait_watch(), cases[i].min, cases[i].max);
        }
}

static void test_bad_message(void **state) {
        (void)state;
        struct buffer message = BUFFER_INIT(64);

        start(5);
        send_bookmark(5, 10, 0);
        size_t before = channel.watch->consumed;
        assert_int_equal(buffer_append(&message, "\x22\x7f", 2), 0);
        send_message(channel.watch, &message);
        assert_int_equal(agent.notices[CONTROL_BAD_MESSAGE], 1);
        assert_int_equal(agent.events, 1);
        assert_int_equal(channel.watch->consumed, before + 2);
        send_withdrawn(6); /* the stream goes on */
        assert_int_equal(agent.events, 2);
        buffer_deinit(&message);
}

static void test_backward_revisions(void **state) {
        (void)state;
        static const struct {
                bool bookmark;
                int64_t revision;
                unsigned notices; /* so far */
        } steps[] = {
                { true, 0, 0 },    /* the opening Bookmark may say 0 */
                { false, 6, 0 },
                { true, 6, 0 },    /* a Bookmark may repeat */
                { false, 6, 1 },
                { false, 3, 2 },
                { true, 5, 3 },
                { false, 7, 3 },
                { true, 9, 3 },
                { false, 9, 4 },   /* a Bookmark's revision is the position */
                { false, 10, 4 },
        };

        start(5);
        for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
                if (steps[i].bookmark)
                        send_bookmark(steps[i].revision, 10, 0);
                else
                        send_withdrawn(steps[i].revision);
                assert_int_equal(agent.events, i + 1); /* delivered all the same */
                assert_int_equal(agent.event.revision, steps[i].revision);
                if (agent.notices[CONTROL_REVISION_BACKWARD] != steps[i].notices)
                        fail_msg("step %zu: %u notices", i, agent.notices[CONTROL_REVISION_BACKWARD]);
        }
        close_watch(GRPC_UNAVAILABLE, false);
        (void)wait_watch();
        assert_int_equal(asked_revision(), 10);
}

static void test_disconnected_is_told_once(void **state) {
        (void)state;
        start(5);
        for (int i = 0; i < 5; i++) {
                close_watch(GRPC_UNAVAILABLE, false);
                (void)wait_watch();
        }
        assert_int_equal(agent.notices[CONTROL_DISCONNECTED], 1);
        assert_non_null(strstr(agent.detail[CONTROL_DISCONNECTED], "UNAVAILABLE: why; next try in 0."));
        close_watch(GRPC_PERMISSION_DENIED, true); /* another reason */
        (void)wait_watch();
        assert_int_equal(agent.notices[CONTROL_DISCONNECTED], 2);
        for (int i = 0; i < 2; i++) {
                send_bookmark(5, 10, 0);
                close_watch(GRPC_PERMISSION_DENIED, true); /* after a connection: each time */
                (void)wait_watch();
        }
        assert_int_equal(agent.notices[CONTROL_DISCONNECTED], 4);
}

static void test_call_start_fails(void **state) {
        (void)state;
        channel.start_result = -ENOMEM;
        assert_int_equal(control_start(agent.control, 5), 0);
        run_for(USEC_PER_MINUTE);
        assert_int_equal(agent.notices[CONTROL_DISCONNECTED], 1);
        channel.start_result = 0;
        (void)wait_watch();
}

static void test_deadline(void **state) {
        (void)state;
        uint64_t real = loop.real_usec + loop.now_usec, now = loop.now_usec;

        /* before the first Bookmark: our own clock */
        assert_int_equal(control_deadline_usec(agent.control, real + 5), now + 5);
        start(0);
        send_bookmark(0, 10, 5000); /* the server's clock is far off ours, and is the one that counts */
        now = loop.now_usec;
        run_for(20 * USEC_PER_SEC);
        assert_int_equal(control_deadline_usec(agent.control, 5060 * USEC_PER_SEC), now + 60 * USEC_PER_SEC);
        assert_int_equal(control_deadline_usec(agent.control, 4990 * USEC_PER_SEC), now - 10 * USEC_PER_SEC);
        assert_int_equal(control_deadline_usec(agent.control, 0), 0);
        assert_int_equal(control_deadline_usec(agent.control, USEC_NEVER), USEC_NEVER);
        send_bookmark(0, 10, 0); /* without `now`: the last one stands */
        close_watch(GRPC_UNAVAILABLE, false);
        assert_int_equal(control_deadline_usec(agent.control, 5060 * USEC_PER_SEC), now + 60 * USEC_PER_SEC);
}

static int reload_in_event(void) {
        control_reload(agent.control);
        assert_non_null(channel.watch); /* not within the callback of the very call */
        return 0;
}

static void test_reload(void **state) {
        (void)state;
        start(5);
        agent.in_event = reload_in_event;
        send_bookmark(5, 10, 0);
        agent.in_event = NULL;
        run_turn();
        assert_int_equal(channel.drops, 1);
        assert_int_equal(tokens.refreshed, 1);
        assert_int_equal(channel.watches, 2); /* at once */
        for (int i = 0; i < 8; i++) {
                close_watch(GRPC_UNAVAILABLE, false);
                (void)wait_watch();
        }
        close_watch(GRPC_UNAVAILABLE, false);
        control_reload(agent.control); /* cuts a back-off short */
        assert_int_equal(wait_watch(), 0);
}

static void test_times_can_be_changed(void **state) {
        (void)state;
        start(5);
        for (int i = 0; i < 8; i++) {
                close_watch(GRPC_UNAVAILABLE, false);
                (void)wait_watch();
        }
        control_set_times(agent.control, 2 * USEC_PER_SEC, USEC_PER_SEC, USEC_PER_SEC); /* the maximum is never below */
        close_watch(GRPC_UNAVAILABLE, false);
        uint64_t waited = wait_watch();
        assert_true(waited > 0 && waited <= 2 * USEC_PER_SEC);
}

static int fail_in_event(void) {
        return -EIO;
}

static void test_handler_failure_ends_the_loop(void **state) {
        (void)state;
        start(5);
        agent.in_event = fail_in_event;
        send_bookmark(5, 10, 0);
        assert_int_equal(loop.failure, -EIO);
        loop.failure = 0;
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void) {
        const struct CMUnitTest tests[] = {
                TEST(test_opens),
                TEST(test_new_refuses_long_names),
                TEST(test_window_and_resume),
                TEST(test_position_only_goes_forward),
                TEST(test_silence),
                TEST(test_heartbeats_cost_no_timers),
                TEST(test_silence_does_not_count_while_held),
                TEST(test_silence_does_not_count_with_a_full_window),
                TEST(test_backoff_grows_and_only_progress_resets_it),
                TEST(test_out_of_range_starts_over),
                TEST(test_late_position_of_an_old_order),
                TEST(test_reopened_with_zero_is_a_new_order),
                TEST(test_aborted_waits),
                TEST(test_made_up_statuses),
                TEST(test_unauthenticated_refreshes_the_token),
                TEST(test_no_token_configured),
                TEST(test_token_missing),
                TEST(test_pushback),
                TEST(test_bad_message),
                TEST(test_backward_revisions),
                TEST(test_disconnected_is_told_once),
                TEST(test_call_start_fails),
                TEST(test_deadline),
                TEST(test_reload),
                TEST(test_times_can_be_changed),
                TEST(test_handler_failure_ends_the_loop),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
