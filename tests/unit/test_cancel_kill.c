/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The machine in KILL, WAIT, TERM and FORCE: drivers that are known by their directory, refusals, what is taken back, and
 * what a restart takes up again.
 */
#include "cancel_bench.h"

static struct cancel_event directory_of(const char *driver_id) {
        struct cancel_event event = { .type = CANCEL_EVENT_SCANNED, .scan = CANCEL_SCAN_DIRECTORY };

        base_text_copy(event.found.driver_id, sizeof event.found.driver_id, driver_id);
        return event;
}

static struct bench begin_directory(void) {
        const struct cancel_event directory = directory_of("driver-1");
        struct bench b = begin(false, &config);

        feed(&b, &directory);
        assert_state(&b, KILL);
        assert_int_equal(b.cancel.record.process.pid, 0);
        return b;
}

/* ---- a driver that is known by its directory -------------------------------------------------------------------- */

static void test_process_counts_not_the_named_id(void **state) {
        struct bench b = begin_directory();
        (void)state;

        feed_status(&b, CANCEL_WORD_RUNNING, true);
        assert_true(b.cancel.wants_slot);
        feed_scan_process(&b, 200, "driver-2", false);
        assert_string_equal(b.cancel.record.driver_id, "driver-2");
        assert_int_equal(b.cancel.record.process.pid, 200);
        assert_true(b.update.change & CANCEL_HOLD);
        assert_true(b.update.change & CANCEL_SLOT_RELEASED); /* its turn was at no Worker */
        assert_false(b.cancel.wants_slot);
        assert_int_equal(b.update.ask, CANCEL_ASK_STATUS);
        feed_type(&b, CANCEL_EVENT_SLOT);
        assert_int_equal(b.update.act, 0); /* where driver-2 is nobody has said */
}

static void test_process_of_the_directory_is_held(void **state) {
        struct bench b = begin_directory();
        (void)state;

        feed_status(&b, CANCEL_WORD_RUNNING, true);
        feed_scan_process(&b, 100, "driver-1", false);
        assert_true(b.update.change & CANCEL_HOLD);
        assert_true(b.update.change & CANCEL_SLOT_RELEASED); /* to be taken at its Worker */
        assert_true(b.update.durable);
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        assert_true(b.update.change & CANCEL_SLOT_WANTED);
        feed_type(&b, CANCEL_EVENT_SLOT);
        assert_int_equal(b.update.act, CANCEL_ACT_KILL);
        assert_int_equal(b.cancel.record.kill_requests, 1);
}

static void test_directory_of_a_driver_that_has_ended(void **state) {
        struct bench b = begin_directory();
        (void)state;

        feed_status(&b, CANCEL_WORD_FAILED, true);
        assert_state(&b, SETTLE);
        assert_true(b.update.durable);
        feed_scan_none(&b);
        feed_status(&b, CANCEL_WORD_FAILED, true);
        assert_outcome(&b, ALREADY_FAILED);
        assert_int_equal(b.cancel.record.kill_requests, 0);
}

static void test_driver_without_a_process_is_gone_when_spark_says_so(void **state) {
        struct bench b = begin_directory();
        (void)state;

        feed_status(&b, CANCEL_WORD_RUNNING, true);
        feed_type(&b, CANCEL_EVENT_SLOT);
        feed_kill(&b, CANCEL_ANSWER_ACCEPTED);
        assert_state(&b, WAIT);
        pass(&b, b.now + SEC / 10);
        feed_status(&b, CANCEL_WORD_KILLED, true);
        assert_state(&b, SETTLE);
        feed_scan_none(&b);
        feed_status(&b, CANCEL_WORD_KILLED, true);
        assert_outcome(&b, CANCELLED);
}

/* ---- answers ---------------------------------------------------------------------------------------------------- */

/* On no Worker yet, as far as Spark says: perhaps this process took the id of a driver that waits in the queue. */
static void test_driver_on_no_worker(void **state) {
        struct bench b = begin_found();
        (void)state;

        feed(&b, &(struct cancel_event){ .type = CANCEL_EVENT_STATUS, .answer = CANCEL_ANSWER_ACCEPTED,
                                         .word = CANCEL_WORD_SUBMITTED });
        assert_int_equal(b.update.ask, CANCEL_ASK_SCAN);
        assert_int_equal(b.cancel.aside.pid, 100);
        feed_scan_none(&b);
        assert_state(&b, KILL);
        assert_int_equal(b.update.wake_usec, b.now + SEC);
        pass(&b, b.now + SEC);
        assert_int_equal(b.update.ask, CANCEL_ASK_STATUS);
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        assert_true(b.cancel.wants_slot);
}

/* What no master passed on is not outstanding at the Worker, also after a restart; silence may be. */
static void test_what_is_outstanding(void **state) {
        static const struct { enum cancel_answer answer; bool outstanding; } table[] = {
                { CANCEL_ANSWER_ACCEPTED, true },  { CANCEL_ANSWER_UNREACHABLE, true },   { CANCEL_ANSWER_UNKNOWN_ID, false },
                { CANCEL_ANSWER_NOT_ALIVE, false }, { CANCEL_ANSWER_REFUSED, false }, { CANCEL_ANSWER_REFUSED_AUTH, false },
        };
        (void)state;

        for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
                struct bench b = begin_kill_sent();

                assert_int_equal(b.cancel.record.killed_usec, b.now);
                feed_kill(&b, table[i].answer);
                assert_int_equal(b.cancel.record.killed_usec, table[i].outstanding ? b.now : 0);
                assert_int_equal((b.update.change & CANCEL_SLOT_RELEASED) != 0, !table[i].outstanding);
                assert_true(b.update.durable);
                assert_int_equal(b.cancel.record.progress, CANCEL_IN_PROGRESS);
                assert_int_not_equal(b.cancel.record.answered_usec, 0);
        }
}

static void refuse_until(struct bench *b, uint64_t at) {
        while (b->cancel.record.state != CANCEL_REPORT && b->cancel.record.state != CANCEL_TERM && b->now < at) {
                if (b->cancel.asking)
                        feed_status_answer(b, CANCEL_ANSWER_REFUSED);
                else if (b->update.ask & CANCEL_ASK_SCAN)
                        feed_scan_none(b);
                else
                        feed_at(b, b->update.wake_usec);
        }
}

/* Its end was seen, its word is known from before, and Spark refuses to say it again: it stands. */
static void test_refused_after_the_end(void **state) {
        struct bench b = begin_found();
        (void)state;

        feed_status(&b, CANCEL_WORD_FAILED, true);
        exits(&b);
        feed_scan_none(&b);
        refuse_until(&b, START + 200 * SEC);
        assert_outcome(&b, ALREADY_FAILED);
        assert_in_range(b.now, START + 2 * config.kill_retry_usec, START + 3 * config.kill_retry_usec);
}

static void test_term_comes_before_refused(void **state) {
        struct cancel_config term = config;
        struct bench b = begin_found();
        (void)state;

        term.escalation = CANCEL_ESCALATION_SIGTERM;
        b.config = &term;
        refuse_until(&b, START + 200 * SEC);
        assert_state(&b, TERM);
        assert_in_range(b.now, START + 2 * config.kill_retry_usec, START + 2 * config.kill_retry_usec + 6 * SEC);
        assert_int_equal(b.cancel.record.escalation, CANCEL_ESCALATION_SIGTERM);
        assert_int_equal(b.update.wake_usec, b.now + config.kill_retry_usec); /* Spark is asked on */
}

/* Not only the first answer is stored: what is outstanding changes with each. */
static void test_what_is_outstanding_is_stored(void **state) {
        static const enum cancel_answer answers[] = { CANCEL_ANSWER_UNKNOWN_ID, CANCEL_ANSWER_NOT_ALIVE };
        (void)state;

        for (size_t i = 0; i < ARRAY_SIZE(answers); i++) {
                struct bench b = begin_accepted();

                pass(&b, b.now + config.kill_retry_usec);
                feed_type(&b, CANCEL_EVENT_SLOT);
                feed_kill(&b, answers[i]);
                assert_true(b.update.durable);
                assert_int_equal(b.cancel.record.killed_usec, 0);
        }
}

static void test_refusal_of_the_token_is_stored(void **state) {
        struct bench b = begin_found();
        (void)state;

        feed_status_answer(&b, CANCEL_ANSWER_UNREACHABLE);
        pass(&b, b.now + SEC);
        feed_status_answer(&b, CANCEL_ANSWER_REFUSED_AUTH);
        assert_true(b.update.durable);
        assert_true(b.cancel.record.refused_auth);
}

/* An answer of an ALIVE master in between ends the row: "for good" is counted from the next refusal on. */
static void test_row_of_refusals_is_broken_by_an_answer(void **state) {
        static const enum cancel_answer answers[] = { CANCEL_ANSWER_ACCEPTED, CANCEL_ANSWER_UNKNOWN_ID };
        (void)state;

        for (size_t i = 0; i < ARRAY_SIZE(answers); i++) {
                struct bench b = begin_kill_sent();
                uint64_t again;

                feed_kill(&b, CANCEL_ANSWER_REFUSED);
                pass(&b, b.now + SEC);
                b.now += 20 * SEC; /* its turn comes late */
                feed_type(&b, CANCEL_EVENT_SLOT);
                feed_kill(&b, answers[i]);
                if (!b.cancel.asking)
                        pass(&b, b.now + config.kill_retry_usec);
                again = b.now;
                while (b.cancel.record.state == CANCEL_KILL && b.now < START + 200 * SEC) {
                        if (b.cancel.wants_slot)
                                feed_type(&b, CANCEL_EVENT_SLOT);
                        else if (b.cancel.killing)
                                feed_kill(&b, CANCEL_ANSWER_REFUSED);
                        else if (b.cancel.asking)
                                feed_status_answer(&b, CANCEL_ANSWER_REFUSED);
                        else
                                feed_at(&b, b.update.wake_usec);
                }
                assert_outcome(&b, SPARK_REFUSED);
                assert_true(b.now >= again + 2 * config.kill_retry_usec);
        }
}

/* Known by its directory, on no Worker yet: its process may come at any time. */
static void test_driver_without_a_process_is_looked_for(void **state) {
        struct bench b = begin_directory();
        (void)state;

        feed(&b, &(struct cancel_event){ .type = CANCEL_EVENT_STATUS, .answer = CANCEL_ANSWER_ACCEPTED,
                                         .word = CANCEL_WORD_SUBMITTED });
        feed_at(&b, b.update.wake_usec);
        assert_int_equal(b.update.ask, CANCEL_ASK_SCAN | CANCEL_ASK_STATUS);
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        feed_type(&b, CANCEL_EVENT_SLOT);
        feed_kill(&b, CANCEL_ANSWER_UNKNOWN_ID);
        assert_int_equal(b.update.ask, CANCEL_ASK_SCAN | CANCEL_ASK_STATUS);
}

/* Its place must be proved anew before it is asked for again. */
static void test_lost_kill_after_a_restart(void **state) {
        struct bench b = begin_accepted();
        (void)state;

        restart(&b, true);
        feed_scan_process(&b, 100, "driver-1", false);
        assert_state(&b, WAIT);
        pass(&b, b.now + config.kill_retry_usec);
        assert_state(&b, KILL);
        assert_int_equal(b.update.ask, CANCEL_ASK_STATUS);
        assert_false(b.cancel.wants_slot);
}

/* ---- a restart in TERM and FORCE -------------------------------------------------------------------------------- */

static struct bench begin_signalled(enum cancel_state until, const struct cancel_config *c) {
        struct bench b = begin_accepted();

        b.config = c;
        b.cancel.retry_usec = USEC_NEVER;
        feed_at(&b, START + c->escalate_after_usec);
        if (until == CANCEL_FORCE)
                feed_at(&b, b.now + c->force_after_usec);
        assert_int_equal(b.cancel.record.state, until);
        return b;
}

/* A signal that was stored may not have been sent: sending it again is harmless. Spark is asked on. */
static void test_restart_sends_the_signal_again(void **state) {
        struct cancel_config kill = config;
        struct bench b;
        (void)state;

        kill.escalation = CANCEL_ESCALATION_SIGKILL;
        b = begin_signalled(CANCEL_TERM, &kill);
        restart(&b, true);
        assert_int_equal(b.update.act, 0);
        feed_scan_process(&b, 100, "driver-1", false);
        assert_int_equal(b.update.act, CANCEL_ACT_TERM);
        assert_int_equal(b.update.ask, CANCEL_ASK_STATUS);
        assert_true(b.update.change & CANCEL_HOLD);
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        assert_true(b.cancel.wants_slot);
        assert_int_equal(b.update.wake_usec, b.now + kill.force_after_usec);

        b = begin_signalled(CANCEL_FORCE, &kill);
        restart(&b, true);
        feed_scan_process(&b, 100, "driver-1", false);
        assert_int_equal(b.update.act, CANCEL_ACT_FORCE);
        assert_int_equal(b.update.ask, CANCEL_ASK_STATUS);
        assert_int_equal(b.cancel.record.escalation, CANCEL_ESCALATION_SIGKILL);
        exits(&b);
        feed_scan_none(&b);
        feed_status(&b, CANCEL_WORD_FAILED, true);
        assert_outcome(&b, CANCELLED);
}

/* It was denied and stored as such; the right is back after the restart. */
static void test_restart_after_a_denied_signal(void **state) {
        struct cancel_config kill = config;
        (void)state;

        kill.escalation = CANCEL_ESCALATION_SIGKILL;
        for (enum cancel_state at = CANCEL_TERM; at <= CANCEL_FORCE; at++) {
                struct bench b = begin_signalled(at, &kill);

                b.cancel.record.escalation = CANCEL_ESCALATION_NONE;
                restart(&b, true);
                feed_scan_process(&b, 100, "driver-1", false);
                assert_int_equal(b.update.act, at == CANCEL_TERM ? CANCEL_ACT_TERM : CANCEL_ACT_FORCE);
                assert_true(b.update.durable); /* counted before it goes out */
                assert_int_equal(b.cancel.record.escalation,
                                 at == CANCEL_TERM ? CANCEL_ESCALATION_SIGTERM : CANCEL_ESCALATION_SIGKILL);
        }
}

/* FORCE does not stop asking Spark either. */
static void test_force_asks_on(void **state) {
        struct cancel_config kill = config;
        struct bench b;
        (void)state;

        kill.escalation = CANCEL_ESCALATION_SIGKILL;
        b = begin_signalled(CANCEL_FORCE, &kill);
        assert_true(b.cancel.wants_slot);
        feed_type(&b, CANCEL_EVENT_SLOT);
        assert_int_equal(b.update.act, CANCEL_ACT_KILL);
        feed(&b, &(struct cancel_event){ .type = CANCEL_EVENT_KILL_ANSWERED, .answer = CANCEL_ANSWER_ACCEPTED, .asked = 3 });
        assert_state(&b, FORCE);
        assert_true(b.update.durable); /* three masters were asked, and one was counted */
        assert_int_equal(b.cancel.record.kill_requests, 4);
        assert_int_equal(b.update.wake_usec, b.now + config.kill_retry_usec);
        feed_at(&b, b.update.wake_usec); /* the Worker has given up on that one: the others have their turn first */
        assert_int_equal(b.update.change, CANCEL_SLOT_RELEASED | CANCEL_SLOT_WANTED);
}

/* ---- turns at the Worker ---------------------------------------------------------------------------------------- */

/* A stored kill held its slot over the restart; when it is over the slot is given back before the next one. */
static void test_slot_after_a_restart(void **state) {
        struct bench b = begin_kill_sent();
        (void)state;

        feed_kill(&b, CANCEL_ANSWER_UNREACHABLE);
        restart(&b, true);
        feed_scan_process(&b, 100, "driver-1", false);
        assert_int_equal(b.update.change, CANCEL_HOLD);
        assert_int_equal(b.update.ask, CANCEL_ASK_STATUS);
        b.now += config.kill_retry_usec;
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        assert_int_equal(b.update.change, CANCEL_SLOT_RELEASED | CANCEL_SLOT_WANTED);

        b = begin_kill_sent();
        restart(&b, true);
        feed_scan_process(&b, 100, "driver-1", false);
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        assert_int_equal(b.update.change, CANCEL_SLOT_WANTED); /* it has its turn: who holds a slot may ask again */
}

static void test_slot_that_comes_too_late(void **state) {
        struct bench b = begin_accepted();
        (void)state;

        feed_type(&b, CANCEL_EVENT_SLOT);
        assert_int_equal(b.update.change, CANCEL_SLOT_RELEASED);
        assert_int_equal(b.update.act, 0);
}

static void test_restart_of_a_driver_without_a_process(void **state) {
        const struct cancel_event directory = directory_of("driver-1");
        struct bench b = begin_directory();
        (void)state;

        feed_status(&b, CANCEL_WORD_RUNNING, true);
        feed_type(&b, CANCEL_EVENT_SLOT);
        feed_kill(&b, CANCEL_ANSWER_ACCEPTED);
        restart(&b, true);
        feed(&b, &directory);
        assert_state(&b, WAIT);
        assert_int_equal(b.update.ask, CANCEL_ASK_STATUS);
        feed_status(&b, CANCEL_WORD_KILLED, true);
        assert_state(&b, SETTLE);
}

/* While /proc could not be read Spark has placed the driver here. Whatever the scan then offers, the kill that is under way
 * is awaited: its end would be nobody's otherwise. */
static void test_look_that_comes_too_late(void **state) {
        struct bench b = begin_found();
        (void)state;

        feed(&b, &(struct cancel_event){ .type = CANCEL_EVENT_STATUS, .answer = CANCEL_ANSWER_ACCEPTED,
                                         .word = CANCEL_WORD_SUBMITTED });
        assert_true(b.update.ask & CANCEL_ASK_SCAN);
        pass(&b, b.now + 2 * SEC);
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        feed_type(&b, CANCEL_EVENT_SLOT);
        assert_int_equal(b.update.act, CANCEL_ACT_KILL);
        feed_scan_process(&b, 90, "driver-2", false);
        assert_string_equal(b.cancel.record.driver_id, "driver-1");
        assert_true(b.cancel.driver_held && b.cancel.killing);
        feed_kill(&b, CANCEL_ANSWER_UNKNOWN_ID); /* it was not: now the other one has its turn */
        assert_true(b.cancel.looking);
        feed_scan_process(&b, 90, "driver-2", false);
        assert_string_equal(b.cancel.record.driver_id, "driver-2");
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_process_counts_not_the_named_id),
                cmocka_unit_test(test_process_of_the_directory_is_held),
                cmocka_unit_test(test_directory_of_a_driver_that_has_ended),
                cmocka_unit_test(test_driver_without_a_process_is_gone_when_spark_says_so),
                cmocka_unit_test(test_driver_on_no_worker),
                cmocka_unit_test(test_what_is_outstanding),
                cmocka_unit_test(test_what_is_outstanding_is_stored),
                cmocka_unit_test(test_refusal_of_the_token_is_stored),
                cmocka_unit_test(test_row_of_refusals_is_broken_by_an_answer),
                cmocka_unit_test(test_driver_without_a_process_is_looked_for),
                cmocka_unit_test(test_lost_kill_after_a_restart),
                cmocka_unit_test(test_refused_after_the_end),
                cmocka_unit_test(test_term_comes_before_refused),
                cmocka_unit_test(test_restart_sends_the_signal_again),
                cmocka_unit_test(test_restart_after_a_denied_signal),
                cmocka_unit_test(test_force_asks_on),
                cmocka_unit_test(test_slot_after_a_restart),
                cmocka_unit_test(test_slot_that_comes_too_late),
                cmocka_unit_test(test_restart_of_a_driver_without_a_process),
                cmocka_unit_test(test_look_that_comes_too_late),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
