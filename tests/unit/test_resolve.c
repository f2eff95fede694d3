/* SPDX-License-Identifier: Apache-2.0 */
#include "event.h"
#include "resolve.h"
#include "fake_names.h"

#include <setjmp.h>
#include <cmocka.h>

static struct {
        struct event *event;
        struct resolve *resolve;
        struct event_source *limit;
} world;

struct answer {
        struct resolve_query *query;
        unsigned calls;
        int result;
        size_t count;
        struct resolve_address addresses[RESOLVE_ADDRESSES_MAX];
        struct answer *also_cancel;
        bool free_resolve, stay;
};

static int on_limit(void *userdata) {
        (void)userdata;
        return -ETIMEDOUT;
}

static int on_answer(int result, const struct resolve_address *addresses, size_t count, void *userdata) {
        struct answer *answer = userdata;

        answer->calls++;
        answer->result = result;
        answer->count = count;
        if (result == 0)
                memcpy(answer->addresses, addresses, count * sizeof(*addresses));
        if (answer->also_cancel)
                answer->also_cancel->query = resolve_cancel(answer->also_cancel->query);
        answer->query = resolve_cancel(answer->query);
        if (answer->free_resolve)
                world.resolve = resolve_free(world.resolve);
        if (!answer->stay)
                event_exit(world.event, 0);
        return 0;
}

static int setup(void **state) {
        static const char *const addresses[] = {"192.0.2.1", "2001:db8::1"};
        (void)state;
        world.limit = NULL;
        assert_int_equal(event_new(false, &world.event), 0);
        assert_int_equal(resolve_new(world.event, &world.resolve), 0);
        assert_int_equal(event_add_timer(world.event, "limit", on_limit, NULL, &world.limit), 0);
        assert_int_equal(event_timer_set(world.limit, event_now_usec(world.event) + 10 * USEC_PER_SEC), 0);
        names_set(addresses, 2);
        atomic_store(&names.calls, 0);
        return 0;
}

static int teardown(void **state) {
        (void)state;
        resolve_free(world.resolve);
        event_source_free(world.limit);
        event_free(world.event);
        return 0;
}

static void ask(const char *host, struct answer *answer) {
        assert_int_equal(resolve_start(world.resolve, host, 4711, on_answer, answer, &answer->query), 0);
        assert_int_equal(answer->calls, 0);
}

static void run(void) {
        assert_int_equal(event_run(world.event), 0);
}

static void assert_address(const struct resolve_address *address, const char *text) {
        char host[64], port[8];

        assert_int_equal(getnameinfo((const struct sockaddr *)&address->address, address->size, host, sizeof(host),
                                     port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV),
                         0);
        assert_string_equal(host, text);
        assert_string_equal(port, "4711");
}

static void test_numeric(void **state) {
        static const char *const hosts[] = {"127.0.0.1", "::1", "2001:db8::7", "0.0.0.0"};
        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(hosts); i++) {
                struct answer answer = {0};
                ask(hosts[i], &answer);
                run();
                assert_int_equal(answer.calls, 1);
                assert_int_equal(answer.result, 0);
                assert_int_equal(answer.count, 1);
                assert_address(&answer.addresses[0], hosts[i]);
        }
        assert_int_equal(atomic_load(&names.calls), 0);
}

static void test_name(void **state) {
        struct answer answer = {0};
        (void)state;
        ask("cp.example", &answer);
        run();
        assert_int_equal(answer.result, 0);
        assert_int_equal(answer.count, 2);
        assert_address(&answer.addresses[0], "192.0.2.1");
        assert_address(&answer.addresses[1], "2001:db8::1");
        assert_int_equal(atomic_load(&names.calls), 1);
}

static void test_errors(void **state) {
        static const int rows[][2] = {
                {EAI_NONAME, -ENXIO}, {EAI_AGAIN, -EAGAIN}, {EAI_MEMORY, -ENOMEM}, {EAI_FAIL, -EIO},
#ifdef EAI_NODATA
                {EAI_NODATA, -ENXIO},
#endif
        };
        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                struct answer answer = {0};
                names.result = rows[i][0];
                ask("cp.example", &answer);
                run();
                assert_int_equal(answer.calls, 1);
                assert_int_equal(answer.result, rows[i][1]);
        }
        struct answer answer = {0};
        names_set(NULL, 0);
        ask("no.addresses", &answer);
        run();
        assert_int_equal(answer.result, -ENXIO);
}

static void test_many_addresses(void **state) {
        const char *many[31];
        struct answer answer = {0};
        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(many); i++)
                many[i] = "192.0.2.9";
        names_set(many, ARRAY_SIZE(many));
        ask("cp.example", &answer);
        run();
        assert_int_equal(answer.count, RESOLVE_ADDRESSES_MAX);
}

/* A name server that hangs: queries of the same host share the look-up. */
static void test_shared(void **state) {
        struct answer answers[50] = {0};
        (void)state;
        pthread_mutex_lock(&names.gate);
        for (size_t i = 0; i < ARRAY_SIZE(answers); i++) {
                ask("cp.example", &answers[i]);
                answers[i].stay = i + 1 < ARRAY_SIZE(answers);
                if (i % 2 == 0)
                        answers[i].query = resolve_cancel(answers[i].query);
        }
        pthread_mutex_unlock(&names.gate);
        run();
        for (size_t i = 0; i < ARRAY_SIZE(answers); i++)
                assert_int_equal(answers[i].calls, i % 2);
        assert_int_equal(atomic_load(&names.calls), 1);
}

static void test_cancel_in_callback(void **state) {
        static const char *const hosts[] = {"cp.example", "127.0.0.1"};
        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(hosts); i++) {
                struct answer first = {0}, second = {0};
                first.also_cancel = &second;
                ask(hosts[i], &first);
                ask(hosts[i], &second);
                run();
                assert_int_equal(first.calls, 1);
                assert_int_equal(second.calls, 0);
                assert_null(second.query);
        }
}

static void test_free_in_callback(void **state) {
        struct answer answer = {.free_resolve = true};
        (void)state;
        ask("cp.example", &answer);
        run();
        assert_null(world.resolve);
        assert_int_equal(resolve_new(world.event, &world.resolve), 0);
        answer = (struct answer){.free_resolve = true};
        ask("127.0.0.1", &answer);
        run();
        assert_null(world.resolve);
}

/* The end of the program comes while a look-up hangs and others wait behind it. */
static void test_free_with_pending(void **state) {
        struct answer answers[3] = {0};
        (void)state;
        ask("a.example", &answers[0]);
        ask("b.example", &answers[1]);
        ask("127.0.0.1", &answers[2]);
        world.resolve = resolve_free(world.resolve);
        for (size_t i = 0; i < ARRAY_SIZE(answers); i++)
                answers[i].query = resolve_cancel(answers[i].query);
}

static void test_limits(void **state) {
        struct answer answers[65] = {0};
        char host[300];
        (void)state;
        memset(host, 'a', sizeof(host));
        host[256] = '\0';
        assert_int_equal(resolve_start(world.resolve, host, 1, on_answer, &answers[0], &answers[0].query), -EINVAL);
        assert_int_equal(resolve_start(world.resolve, "", 1, on_answer, &answers[0], &answers[0].query), -EINVAL);
        pthread_mutex_lock(&names.gate);
        for (size_t i = 0; i < 64; i++) {
                snprintf(host, sizeof(host), "host-%zu", i);
                ask(host, &answers[i]);
        }
        assert_int_equal(resolve_start(world.resolve, "one-more", 1, on_answer, &answers[64], &answers[64].query),
                         -EAGAIN);
        pthread_mutex_unlock(&names.gate);
        for (size_t i = 0; i < 64; i++)
                answers[i].query = resolve_cancel(answers[i].query);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_numeric, setup, teardown),
                cmocka_unit_test_setup_teardown(test_name, setup, teardown),
                cmocka_unit_test_setup_teardown(test_errors, setup, teardown),
                cmocka_unit_test_setup_teardown(test_many_addresses, setup, teardown),
                cmocka_unit_test_setup_teardown(test_shared, setup, teardown),
                cmocka_unit_test_setup_teardown(test_cancel_in_callback, setup, teardown),
                cmocka_unit_test_setup_teardown(test_free_in_callback, setup, teardown),
                cmocka_unit_test_setup_teardown(test_free_with_pending, setup, teardown),
                cmocka_unit_test_setup_teardown(test_limits, setup, teardown),
        };

        return cmocka_run_group_tests_name("resolve", tests, NULL, NULL);
}
