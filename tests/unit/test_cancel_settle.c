/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The machine in SETTLE: what the driver left behind, and who else says that it is the job's driver.
 */
#include "cancel_bench.h"

/* ---- leftovers ------------------------------------------------------------------------------------------------- */

/* The driver is gone, Spark has said KILLED, and the first scan saw two of its descendants. */
static struct bench begin_leftovers(const struct cancel_config *c) {
        struct bench b = begin_accepted();

        b.config = c;
        exits(&b);
        feed_scan_leftovers(&b, 2);
        feed_status(&b, CANCEL_WORD_KILLED, true);
        assert_state(&b, SETTLE);
        assert_int_equal(b.cancel.record.leftover_processes, 0);
        return b;
}

/* look_at_leftovers() - answer each scan that a timer asks for until `until`; the number of scans. */
static unsigned look_at_leftovers(struct bench *b, uint32_t leftovers, uint64_t until) {
        unsigned scans = 0;

        while (b->cancel.record.state == CANCEL_SETTLE && b->update.wake_usec <= until) {
                assert_true(b->update.wake_usec > b->now);
                feed_at(b, b->update.wake_usec);
                assert_true(b->update.ask & CANCEL_ASK_SCAN);
                feed_scan_leftovers(b, leftovers);
                scans++;
        }
        return scans;
}

static void test_leftovers_are_counted_after_two_seconds(void **state) {
        struct bench b = begin_leftovers(&config);
        uint64_t ended = b.now;
        (void)state;

        assert_in_range(look_at_leftovers(&b, 2, ended + 2 * SEC), 4, 8);
        assert_outcome(&b, CANCELLED);
        assert_int_equal(b.now, ended + 2 * SEC);
        assert_int_equal(b.cancel.record.leftover_processes, 2);
        assert_int_equal(b.cancel.record.escalation, CANCEL_ESCALATION_NONE);
        assert_int_equal(b.update.act, CANCEL_ACT_REPORT); /* nobody is signalled */
}

static void test_leftovers_that_end_are_none(void **state) {
        struct bench b = begin_leftovers(&config);
        uint64_t ended = b.now;
        (void)state;

        look_at_leftovers(&b, 2, ended + 300 * USEC_PER_MSEC);
        look_at_leftovers(&b, 0, ended + 2 * SEC);
        assert_outcome(&b, CANCELLED);
        assert_true(b.now < ended + SEC); /* not longer than it takes */
        assert_int_equal(b.cancel.record.leftover_processes, 0);
}

static void test_leftovers_do_not_wait_for_a_word(void **state) {
        struct bench b = begin_accepted();
        uint64_t ended = b.now;
        (void)state;

        exits(&b);
        feed_scan_leftovers(&b, 1);
        for (int i = 0; i < 100 && b.cancel.record.state == CANCEL_SETTLE; i++) {
                if (b.cancel.asking)
                        feed_status_answer(&b, CANCEL_ANSWER_UNREACHABLE);
                feed_at(&b, b.update.wake_usec);
                if (b.update.ask & CANCEL_ASK_SCAN)
                        feed_scan_leftovers(&b, 1);
        }
        assert_outcome(&b, CANCELLED);
        assert_int_equal(b.now, ended + 2 * SEC);
        assert_int_equal(b.cancel.record.leftover_processes, 1);
}

static void test_leftovers_of_a_job_that_ended_by_itself(void **state) {
        struct cancel_config kill = config;
        struct bench b = begin_found();
        uint64_t ended = b.now;
        (void)state;

        kill.escalation = CANCEL_ESCALATION_SIGKILL;
        b.config = &kill;
        exits(&b);
        feed_scan_leftovers(&b, 1);
        feed_status(&b, CANCEL_WORD_FINISHED, true);
        look_at_leftovers(&b, 1, ended + 2 * SEC);
        assert_outcome(&b, ALREADY_DONE);
        assert_int_equal(b.cancel.record.leftover_processes, 1);
        assert_int_equal(b.update.act, CANCEL_ACT_REPORT); /* may be meant to stay: not signalled */

        b = begin(true, &kill); /* a dry run neither counts nor waits */
        feed_scan_process(&b, 100, "driver-1", false);
        exits(&b);
        feed_scan_leftovers(&b, 1);
        feed_status(&b, CANCEL_WORD_FINISHED, true);
        assert_outcome(&b, DRY_RUN);
        assert_int_equal(b.cancel.record.leftover_processes, 0);
}

static void test_leftovers_at_the_deadline(void **state) {
        struct bench b = begin_leftovers(&config);
        (void)state;

        b.cancel.record.deadline_usec = b.now + SEC;
        feed_type(&b, CANCEL_EVENT_DUPLICATE); /* recompute the timer */
        look_at_leftovers(&b, 2, b.now + 900 * USEC_PER_MSEC);
        feed_at(&b, b.cancel.record.deadline_usec);
        assert_outcome(&b, CANCELLED);
        assert_int_equal(b.cancel.record.leftover_processes, 0); /* seen alive, but not 2 s after: a lower bound */
}

static void test_leftovers_after_a_restart(void **state) {
        struct bench b = begin_leftovers(&config);
        uint64_t ended = b.now;
        (void)state;

        b.now = ended + SEC;
        restart(&b, true);
        feed_scan_leftovers(&b, 1);
        feed_status(&b, CANCEL_WORD_KILLED, true);
        assert_true(b.update.ask & CANCEL_ASK_SCAN); /* it took long: once more */
        feed_scan_leftovers(&b, 1);
        look_at_leftovers(&b, 1, ended + 2 * SEC);
        assert_outcome(&b, CANCELLED);
        assert_int_equal(b.now, ended + 2 * SEC);
        assert_int_equal(b.cancel.record.leftover_processes, 1);
}

static void test_leftovers_are_signalled_where_allowed(void **state) {
        struct cancel_config c = config;
        struct bench b;
        uint64_t ended;
        (void)state;

        c.escalation = CANCEL_ESCALATION_SIGTERM;
        b = begin_leftovers(&c);
        ended = b.now;
        look_at_leftovers(&b, 2, ended + 2 * SEC);
        assert_state(&b, SETTLE);
        assert_int_equal(b.update.act, CANCEL_ACT_TERM_LEFTOVERS);
        assert_true(b.update.durable); /* counted before they are signalled */
        look_at_leftovers(&b, 1, ended + 4 * SEC);
        assert_outcome(&b, CANCELLED);
        assert_int_equal(b.now, ended + 4 * SEC);
        assert_int_equal(b.cancel.record.leftover_processes, 1); /* counted after */
        assert_int_equal(b.cancel.record.escalation, CANCEL_ESCALATION_NONE); /* the driver got no signal */
        assert_int_equal(b.cancel.leftovers_signal, CANCEL_ESCALATION_SIGTERM);

        b = begin_leftovers(&c); /* known by their working directory only: nobody to signal, nothing to wait for */
        pass(&b, b.now + 2 * SEC);
        feed(&b, &(struct cancel_event){ .type = CANCEL_EVENT_SCANNED, .leftovers = 2 });
        assert_outcome(&b, CANCELLED);
        assert_int_equal(b.cancel.record.leftover_processes, 2);
        assert_int_equal(b.cancel.leftovers_signal, CANCEL_ESCALATION_NONE);

        c.escalation = CANCEL_ESCALATION_SIGKILL;
        b = begin_leftovers(&c);
        ended = b.now;
        look_at_leftovers(&b, 2, ended + 2 * SEC);
        assert_int_equal(b.update.act, CANCEL_ACT_TERM_LEFTOVERS);
        look_at_leftovers(&b, 2, ended + 4 * SEC);
        assert_int_equal(b.update.act, CANCEL_ACT_FORCE_LEFTOVERS);
        look_at_leftovers(&b, 0, ended + 6 * SEC);
        assert_outcome(&b, CANCELLED);
        assert_true(b.now < ended + 5 * SEC);
        assert_int_equal(b.cancel.record.leftover_processes, 0);
}

static void test_leftovers_and_a_driver_that_comes_back(void **state) {
        struct bench b = begin(false, &config);
        uint64_t ended;
        (void)state;

        feed_scan_process(&b, 100, "driver-1", true);
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        feed_type(&b, CANCEL_EVENT_SLOT);
        feed_kill(&b, CANCEL_ANSWER_ACCEPTED);
        exits(&b);
        ended = b.now;
        feed_scan_leftovers(&b, 1);
        feed_status(&b, CANCEL_WORD_KILLED, true);
        b.now = ended + 3 * SEC;
        feed_scan_leftovers(&b, 1);
        assert_int_equal(b.cancel.record.leftover_processes, 1);
        feed_scan_process(&b, 101, "driver-1", true);
        assert_state(&b, KILL);
        assert_int_equal(b.cancel.record.leftover_processes, 0); /* counted again at its end */
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_leftovers_are_counted_after_two_seconds),
                cmocka_unit_test(test_leftovers_that_end_are_none),
                cmocka_unit_test(test_leftovers_do_not_wait_for_a_word),
                cmocka_unit_test(test_leftovers_of_a_job_that_ended_by_itself),
                cmocka_unit_test(test_leftovers_at_the_deadline),
                cmocka_unit_test(test_leftovers_after_a_restart),
                cmocka_unit_test(test_leftovers_are_signalled_where_allowed),
                cmocka_unit_test(test_leftovers_and_a_driver_that_comes_back),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
