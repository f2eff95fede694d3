/* SPDX-License-Identifier: Apache-2.0 */
/* event: order, freeing inside callbacks, failures that end the loop, workers. Each loop has a guard timer, so a
 * call that never comes ends the test instead of hanging it. */
#include "event.h"

#include <pthread.h>
#include <setjmp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <cmocka.h>

#define GUARD_USEC (10 * USEC_PER_SEC)

struct fixture {
        struct event *event;
        struct event_source *guard;
        struct event_source *source, *other;
        struct event_worker *worker;
        int fds[2];
        char order[256];
        int calls;
        int result;
        pthread_t thread;
};

static int on_guard(void *userdata) {
        (void)userdata;
        return -ETIMEDOUT;
}

static int setup(void **state) {
        struct fixture *f = calloc(1, sizeof(*f));
        assert_non_null(f);
        assert_int_equal(event_new(true, &f->event), 0);
        assert_int_equal(event_add_timer(f->event, "guard", on_guard, f, &f->guard), 0);
        assert_int_equal(event_timer_set(f->guard, event_now_usec(f->event) + GUARD_USEC), 0);
        assert_int_equal(pipe(f->fds), 0);
        *state = f;
        return 0;
}

static int teardown(void **state) {
        struct fixture *f = *state;
        event_worker_free(f->worker);
        event_source_free(f->source);
        event_source_free(f->other);
        event_source_free(f->guard);
        base_close_pointer(&f->fds[0]);
        base_close_pointer(&f->fds[1]);
        assert_null(event_free(f->event));
        free(f);
        return 0;
}

static void note(struct fixture *f, const char *word) {
        size_t used = strlen(f->order);
        (void)base_text_copy(f->order + used, sizeof(f->order) - used, word);
}

static int exit_five(void *userdata) {
        struct fixture *f = userdata;
        f->calls++;
        event_exit(f->event, 5);
        return 0;
}

/* ---- the loop ------------------------------------------------------------------------------------- */

static void test_clock(void **state) {
        struct fixture *f = *state;
        struct timespec boot;
        char expected[64] = "";

        assert_int_equal(clock_gettime(CLOCK_BOOTTIME, &boot), 0);
        uint64_t now = event_now_usec(f->event), usec = (uint64_t)boot.tv_sec * USEC_PER_SEC;
        assert_in_range(now, usec, usec + 5 * USEC_PER_SEC);
        assert_in_range(event_real_usec(f->event), (uint64_t)(time(NULL) - 5) * USEC_PER_SEC,
                        (uint64_t)(time(NULL) + 5) * USEC_PER_SEC);
        FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
        assert_non_null(file);
        assert_non_null(fgets(expected, sizeof(expected), file));
        (void)fclose(file);
        expected[strcspn(expected, "\n")] = '\0';
        assert_string_equal(event_boot_id(f->event), expected);
}

static int on_clock_busy(void *userdata) {
        struct fixture *f = userdata;
        uint64_t before = event_now_usec(f->event);
        struct timespec start, now;
        (void)clock_gettime(CLOCK_MONOTONIC, &start);
        do
                (void)clock_gettime(CLOCK_MONOTONIC, &now);
        while ((now.tv_sec - start.tv_sec) * 1000000000 + (now.tv_nsec - start.tv_nsec) < 3000000);
        assert_true(event_now_usec(f->event) == before); /* one reading per turn */
        return exit_five(f);
}

static void test_clock_stands_within_a_turn(void **state) {
        struct fixture *f = *state;
        assert_int_equal(event_add_timer(f->event, "t", on_clock_busy, f, &f->source), 0);
        assert_int_equal(event_timer_set(f->source, 0), 0);
        assert_int_equal(event_run(f->event), 5);
}

static void test_run_again(void **state) {
        struct fixture *f = *state;
        assert_int_equal(event_add_timer(f->event, "t", exit_five, f, &f->source), 0);
        for (int i = 1; i <= 3; i++) {
                assert_int_equal(event_timer_set(f->source, event_now_usec(f->event)), 0);
                assert_int_equal(event_run(f->event), 5);
                assert_int_equal(f->calls, i);
        }
        event_exit(f->event, 9); /* before the run: it returns at once */
        assert_int_equal(event_run(f->event), 9);
        event_exit(f->event, -EIO);
        event_exit(f->event, 0); /* a failure is not made good by what follows it */
        assert_int_equal(event_run(f->event), -EIO);
}

static int fail_after_exit(void *userdata) {
        struct fixture *f = userdata;
        event_exit(f->event, 5);
        return -EPIPE;
}

static int fail_on_io(uint32_t epoll_events, void *userdata) {
        (void)epoll_events;
        return fail_after_exit(userdata);
}

static void test_failure_ends_the_loop(void **state) {
        struct fixture *f = *state;

        assert_int_equal(event_add_timer(f->event, "t", fail_after_exit, f, &f->source), 0);
        assert_int_equal(event_timer_set(f->source, 1), 0);
        assert_int_equal(event_run(f->event), -EPIPE);
        f->source = event_source_free(f->source);

        assert_int_equal(event_add_deferred(f->event, "d", fail_after_exit, f, &f->source), 0);
        assert_int_equal(event_deferred_schedule(f->source), 0);
        assert_int_equal(event_run(f->event), -EPIPE);
        f->source = event_source_free(f->source);

        assert_int_equal(event_add_signal(f->event, "s", SIGUSR1, fail_after_exit, f, &f->source), 0);
        assert_int_equal(raise(SIGUSR1), 0);
        assert_int_equal(event_run(f->event), -EPIPE);
        f->source = event_source_free(f->source);

        assert_int_equal(event_add_io(f->event, "i", f->fds[1], EPOLLOUT, fail_on_io, f, &f->source), 0);
        assert_int_equal(event_run(f->event), -EPIPE);
}

/* ---- timers --------------------------------------------------------------------------------------- */

static int on_first(void *userdata) {
        struct fixture *f = userdata;
        note(f, "a");
        return event_timer_set(f->source, event_now_usec(f->event) + 20 * USEC_PER_MSEC);
}

static int on_second(void *userdata) {
        struct fixture *f = userdata;
        note(f, "b");
        if (strlen(f->order) >= 3)
                event_exit(f->event, 1);
        return 0;
}

static void test_timers(void **state) {
        struct fixture *f = *state;
        uint64_t start = event_now_usec(f->event);

        assert_int_equal(event_add_timer(f->event, "a", on_first, f, &f->source), 0);
        assert_int_equal(event_add_timer(f->event, "b", on_second, f, &f->other), 0);
        assert_int_equal(event_timer_set(f->source, start + 10 * USEC_PER_MSEC), 0);
        assert_int_equal(event_timer_set_coarse(f->other, start + 60 * USEC_PER_MSEC, 5 * USEC_PER_MSEC), 0);
        /* a at 10, 30 and 50 ms (or a little later), b last */
        assert_int_equal(event_run(f->event), 1);
        assert_true(event_now_usec(f->event) >= start + 60 * USEC_PER_MSEC);
        assert_string_equal(f->order + strlen(f->order) - 1, "b");
        assert_true(strlen(f->order) >= 3);
}

static int disarm_other(void *userdata) {
        struct fixture *f = userdata;
        assert_int_equal(event_timer_set(f->other, USEC_NEVER), 0);
        assert_int_equal(event_timer_set(f->source, USEC_NEVER), 0);
        return 0;
}

static int never(void *userdata) {
        (void)userdata;
        fail_msg("a disarmed or freed source was called");
        return 0;
}

/* Both are due in the same turn; whichever comes first disarms the other, which must stay silent. */
static int disarm_source(void *userdata) {
        struct fixture *f = userdata;
        f->calls++;
        f->source = event_source_free(f->source);
        f->other = event_source_free(f->other);
        return 0;
}

static void test_timer_disarmed(void **state) {
        struct fixture *f = *state;
        struct event_source *last;
        uint64_t now = event_now_usec(f->event);

        assert_int_equal(event_add_timer(f->event, "a", disarm_other, f, &f->source), 0);
        assert_int_equal(event_add_timer(f->event, "b", never, f, &f->other), 0);
        assert_int_equal(event_add_timer(f->event, "c", exit_five, f, &last), 0);
        assert_int_equal(event_timer_set(f->source, now), 0);
        assert_int_equal(event_timer_set(f->other, now + 15 * USEC_PER_MSEC), 0);
        assert_int_equal(event_timer_set(last, now + 40 * USEC_PER_MSEC), 0);
        assert_int_equal(event_run(f->event), 5);
        event_source_free(last);
}

static void test_free_in_callback(void **state) {
        struct fixture *f = *state;
        struct event_source *last;

        assert_int_equal(event_add_timer(f->event, "a", disarm_source, f, &f->source), 0);
        assert_int_equal(event_add_timer(f->event, "b", disarm_source, f, &f->other), 0);
        assert_int_equal(event_add_timer(f->event, "c", exit_five, f, &last), 0);
        assert_int_equal(event_timer_set(f->source, 1), 0);
        assert_int_equal(event_timer_set(f->other, 1), 0);
        assert_int_equal(event_timer_set(last, event_now_usec(f->event) + 30 * USEC_PER_MSEC), 0);
        assert_int_equal(event_run(f->event), 5);
        assert_int_equal(f->calls, 2); /* one of a and b, and c */
        event_source_free(last);
}

/* ---- deferred ------------------------------------------------------------------------------------- */

static int on_deferred(void *userdata) {
        struct fixture *f = userdata;
        note(f, "d");
        event_exit(f->event, 0);
        return 0;
}

static int on_readable(uint32_t epoll_events, void *userdata) {
        struct fixture *f = userdata;
        char byte;
        assert_true(epoll_events & EPOLLIN);
        assert_int_equal(read(f->fds[0], &byte, 1), 1);
        note(f, "i");
        return 0;
}

static void test_deferred_after_io(void **state) {
        struct fixture *f = *state;

        assert_int_equal(event_add_deferred(f->event, "d", on_deferred, f, &f->source), 0);
        assert_int_equal(event_add_io(f->event, "i", f->fds[0], EPOLLIN, on_readable, f, &f->other), 0);
        assert_int_equal(write(f->fds[1], "xyz", 3), 3);
        for (int i = 0; i < 3; i++)
                assert_int_equal(event_deferred_schedule(f->source), 0); /* several calls are one */
        assert_int_equal(event_run(f->event), 0);
        assert_string_equal(f->order, "iiid");
}

static int on_always_writable(uint32_t epoll_events, void *userdata) {
        struct fixture *f = userdata;
        (void)epoll_events;
        f->calls++;
        return 0;
}

static void test_deferred_is_not_starved(void **state) {
        struct fixture *f = *state;

        assert_int_equal(event_add_deferred(f->event, "d", on_deferred, f, &f->source), 0);
        assert_int_equal(event_add_io(f->event, "i", f->fds[1], EPOLLOUT, on_always_writable, f, &f->other), 0);
        assert_int_equal(event_deferred_schedule(f->source), 0);
        assert_int_equal(event_run(f->event), 0);
        assert_string_equal(f->order, "d");
        assert_in_range(f->calls, 1, 1000);
}

static int on_deferred_frees_the_last(void *userdata) {
        struct fixture *f = userdata;
        f->other = event_source_free(f->other);
        if (++f->calls > 1000)
                return -ELOOP;
        return event_deferred_schedule(f->source);
}

static int on_readable_exit(uint32_t epoll_events, void *userdata) {
        struct fixture *f = userdata;
        (void)epoll_events;
        event_exit(f->event, 0);
        return 0;
}

/* A pass over the scheduled ones ends, also when the one that was last in it is freed meanwhile. */
static void test_deferred_pass_ends(void **state) {
        struct fixture *f = *state;
        _cleanup_(event_source_free_pointer) struct event_source *io = NULL;

        assert_int_equal(event_add_deferred(f->event, "a", on_deferred_frees_the_last, f, &f->source), 0);
        assert_int_equal(event_add_deferred(f->event, "b", on_deferred, f, &f->other), 0);
        assert_int_equal(event_add_io(f->event, "i", f->fds[0], EPOLLIN, on_readable_exit, f, &io), 0);
        assert_int_equal(event_deferred_schedule(f->source), 0);
        assert_int_equal(event_deferred_schedule(f->other), 0);
        assert_int_equal(write(f->fds[1], "x", 1), 1);
        assert_int_equal(event_run(f->event), 0);
}

static int on_deferred_again(void *userdata) {
        struct fixture *f = userdata;
        if (++f->calls < 5)
                return event_deferred_schedule(f->source);
        event_exit(f->event, 0);
        return 0;
}

static void test_deferred_again(void **state) {
        struct fixture *f = *state;

        assert_int_equal(event_add_deferred(f->event, "a", on_deferred_again, f, &f->source), 0);
        assert_int_equal(event_deferred_schedule(f->source), 0);
        assert_int_equal(event_run(f->event), 0);
        assert_int_equal(f->calls, 5);
}

static int on_deferred_frees(void *userdata) {
        struct fixture *f = userdata;
        f->source = event_source_free(f->source);
        f->other = event_source_free(f->other); /* is scheduled: must not be called */
        return 0;
}

static void test_deferred_freed(void **state) {
        struct fixture *f = *state;
        struct event_source *last;

        assert_int_equal(event_add_deferred(f->event, "a", on_deferred_frees, f, &f->source), 0);
        assert_int_equal(event_add_deferred(f->event, "b", never, f, &f->other), 0);
        assert_int_equal(event_add_deferred(f->event, "c", exit_five, f, &last), 0);
        assert_int_equal(event_deferred_schedule(f->source), 0);
        assert_int_equal(event_deferred_schedule(f->other), 0);
        assert_int_equal(event_deferred_schedule(last), 0);
        assert_int_equal(event_run(f->event), 5);
        event_source_free(last);
}

/* ---- io and signals ------------------------------------------------------------------------------- */

static int on_hup(uint32_t epoll_events, void *userdata) {
        struct fixture *f = userdata;
        assert_true(epoll_events & EPOLLHUP);
        assert_int_equal(f->result, 1); /* not while it was paused */
        f->source = event_source_free(f->source);
        event_exit(f->event, 4);
        return 0;
}

static int resume_io(void *userdata) {
        struct fixture *f = userdata;
        f->result = 1;
        return event_io_set(f->source, EPOLLIN);
}

static void test_io_paused(void **state) {
        struct fixture *f = *state;

        assert_int_equal(event_add_io(f->event, "i", f->fds[0], 0, on_hup, f, &f->source), 0);
        base_close_pointer(&f->fds[1]); /* EPOLLHUP from now on: a paused source must not see it nor spin */
        assert_int_equal(event_add_timer(f->event, "t", resume_io, f, &f->other), 0);
        assert_int_equal(event_timer_set(f->other, event_now_usec(f->event) + 10 * USEC_PER_MSEC), 0);
        assert_int_equal(event_run(f->event), 4);
        assert_null(f->source);
}

static void test_signal(void **state) {
        struct fixture *f = *state;

        assert_int_equal(event_add_signal(f->event, "s", SIGHUP, exit_five, f, &f->source), 0);
        assert_int_equal(raise(SIGHUP), 0);
        assert_int_equal(event_run(f->event), 5);
        assert_int_equal(f->calls, 1);
}

/* ---- workers -------------------------------------------------------------------------------------- */

static int job_count(void *userdata) {
        struct fixture *f = userdata;
        sigset_t blocked;
        if (pthread_sigmask(SIG_SETMASK, NULL, &blocked) != 0 || !sigismember(&blocked, SIGTERM) ||
            !sigismember(&blocked, SIGUSR2))
                return -EINVAL;
        f->thread = pthread_self();
        return f->result + 1; /* 1, 2, 3: jobs run in order, done sees it */
}

static int done_count(int result, void *userdata) {
        struct fixture *f = userdata;
        assert_false(pthread_equal(f->thread, pthread_self()));
        f->result = result;
        if (++f->calls < 3)
                return event_worker_run(f->worker, job_count, done_count, f);
        event_exit(f->event, 0);
        return 0;
}

static void test_worker(void **state) {
        struct fixture *f = *state;

        assert_int_equal(event_worker_new(f->event, "test-worker-with-a-long-name", &f->worker), 0);
        assert_int_equal(event_worker_run(f->worker, job_count, done_count, f), 0);
        assert_int_equal(event_run(f->event), 0);
        assert_int_equal(f->calls, 3);
        assert_int_equal(f->result, 3);
}

struct step {
        struct fixture *fixture;
        int number;
        int gate; /* eventfd the job waits for; -1 */
};

static int job_gate(void *userdata) {
        struct step *step = userdata;
        eventfd_t value;
        if (step->gate >= 0 && eventfd_read(step->gate, &value) < 0)
                return -errno;
        return step->number;
}

static int done_order(int result, void *userdata) {
        struct step *step = userdata;
        char word[2] = {(char)('0' + result), '\0'};
        note(step->fixture, word);
        if (result == 9)
                event_exit(step->fixture->event, 0);
        return 0;
}

static void test_worker_order(void **state) {
        struct fixture *f = *state;
        struct step steps[10];

        assert_int_equal(event_worker_new(f->event, "worker", &f->worker), 0);
        for (int i = 0; i < 10; i++) {
                steps[i] = (struct step){.fixture = f, .number = i, .gate = -1};
                assert_int_equal(event_worker_run(f->worker, job_gate, done_order, &steps[i]), 0);
        }
        assert_int_equal(event_run(f->event), 0);
        assert_string_equal(f->order, "0123456789");
}

static int done_frees_worker(int result, void *userdata) {
        struct step *step = userdata;
        assert_int_equal(result, 1);
        step->fixture->worker = event_worker_free(step->fixture->worker);
        event_exit(step->fixture->event, 0);
        return 0;
}

static int done_never(int result, void *userdata) {
        (void)result;
        return never(userdata);
}

static void test_worker_freed_in_done(void **state) {
        struct fixture *f = *state;
        struct step first = {.fixture = f, .number = 1, .gate = -1};
        struct step second = {.fixture = f, .number = 2, .gate = -1};

        assert_int_equal(event_worker_new(f->event, "worker", &f->worker), 0);
        assert_int_equal(event_worker_run(f->worker, job_gate, done_frees_worker, &first), 0);
        assert_int_equal(event_worker_run(f->worker, job_gate, done_never, &second), 0);
        assert_int_equal(event_run(f->event), 0);
        assert_null(f->worker);
}

static void *open_gate(void *userdata) {
        struct step *step = userdata;
        (void)eventfd_write(step->gate, 1);
        return NULL;
}

/* The running job is waited for, the waiting ones are dropped, nobody is called. */
static void test_worker_freed_while_busy(void **state) {
        struct fixture *f = *state;
        struct step busy = {.fixture = f, .number = 1, .gate = eventfd(0, EFD_CLOEXEC)};
        struct step waiting = {.fixture = f, .number = 2, .gate = -1};
        pthread_t opener;

        assert_true(busy.gate >= 0);
        assert_int_equal(event_worker_new(f->event, "worker", &f->worker), 0);
        assert_int_equal(event_worker_run(f->worker, job_gate, done_never, &busy), 0);
        assert_int_equal(event_worker_run(f->worker, job_gate, done_never, &waiting), 0);
        assert_int_equal(pthread_create(&opener, NULL, open_gate, &busy), 0);
        f->worker = event_worker_free(f->worker);
        assert_int_equal(pthread_join(opener, NULL), 0);
        base_close_pointer(&busy.gate);
}

static int done_fails(int result, void *userdata) {
        (void)userdata;
        return result;
}

static void test_worker_failure_ends_the_loop(void **state) {
        struct fixture *f = *state;
        struct step step = {.fixture = f, .number = -EIO, .gate = -1};

        assert_int_equal(event_worker_new(f->event, "worker", &f->worker), 0);
        assert_int_equal(event_worker_run(f->worker, job_gate, done_fails, &step), 0);
        assert_int_equal(event_run(f->event), -EIO);
}

static void test_nulls(void **state) {
        (void)state;
        assert_null(event_free(NULL));
        assert_null(event_source_free(NULL));
        assert_null(event_worker_free(NULL));
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_clock, setup, teardown),
                cmocka_unit_test_setup_teardown(test_clock_stands_within_a_turn, setup, teardown),
                cmocka_unit_test_setup_teardown(test_run_again, setup, teardown),
                cmocka_unit_test_setup_teardown(test_failure_ends_the_loop, setup, teardown),
                cmocka_unit_test_setup_teardown(test_timers, setup, teardown),
                cmocka_unit_test_setup_teardown(test_timer_disarmed, setup, teardown),
                cmocka_unit_test_setup_teardown(test_free_in_callback, setup, teardown),
                cmocka_unit_test_setup_teardown(test_deferred_after_io, setup, teardown),
                cmocka_unit_test_setup_teardown(test_deferred_is_not_starved, setup, teardown),
                cmocka_unit_test_setup_teardown(test_deferred_again, setup, teardown),
                cmocka_unit_test_setup_teardown(test_deferred_pass_ends, setup, teardown),
                cmocka_unit_test_setup_teardown(test_deferred_freed, setup, teardown),
                cmocka_unit_test_setup_teardown(test_io_paused, setup, teardown),
                cmocka_unit_test_setup_teardown(test_signal, setup, teardown),
                cmocka_unit_test_setup_teardown(test_worker, setup, teardown),
                cmocka_unit_test_setup_teardown(test_worker_order, setup, teardown),
                cmocka_unit_test_setup_teardown(test_worker_freed_in_done, setup, teardown),
                cmocka_unit_test_setup_teardown(test_worker_freed_while_busy, setup, teardown),
                cmocka_unit_test_setup_teardown(test_worker_failure_ends_the_loop, setup, teardown),
                cmocka_unit_test(test_nulls),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
