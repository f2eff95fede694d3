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

/* ---- several processes of one job -------------------------------------------------------------------------------- */

static void found_elsewhere(struct bench *b, int pid, const char *driver_id) {
        feed_scan_process(b, pid, driver_id, false);
        feed_status(b, CANCEL_WORD_RUNNING, false);
        assert_int_equal(b->cancel.aside.pid, pid);
}

/* The newest says that it is a driver of another node: the search goes on behind it, at once, and finds the real one. */
static void test_decoy_does_not_hide_the_driver(void **state) {
        struct bench b = begin(false, &config);
        (void)state;

        for (int i = 0; i < 10; i++) {
                found_elsewhere(&b, 900 - i, "driver-9");
                assert_state(&b, SEARCH);
                assert_int_equal(b.update.ask, CANCEL_ASK_SCAN);
                assert_int_equal(b.cancel.record.progress, CANCEL_OUTCOME_NONE);
        }
        feed_scan_process(&b, 100, "driver-1", false);
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        feed_type(&b, CANCEL_EVENT_SLOT);
        assert_int_equal(b.update.act, CANCEL_ACT_KILL);
        assert_int_equal(b.cancel.record.kill_requests, 1);
}

/* Any number of them costs no more than ten questions a second, and the pass begins anew at its end. */
static void test_many_decoys_are_asked_about_at_a_pace(void **state) {
        struct bench b = begin(false, &config);
        (void)state;

        for (int i = 0; i < 16; i++)
                found_elsewhere(&b, 900 - i, "driver-9");
        found_elsewhere(&b, 800, "driver-9");
        assert_int_equal(b.update.ask, 0);
        assert_int_equal(b.update.wake_usec, b.now + SEC / 10);
        pass(&b, b.now + SEC / 10);
        assert_int_equal(b.update.ask, CANCEL_ASK_SCAN);
        feed_scan_none(&b);
        assert_int_equal(b.cancel.aside.pid, 0);
        assert_int_equal(b.cancel.record.progress, CANCEL_NOT_ON_NODE);
        found_elsewhere(&b, 900, "driver-9");
        assert_int_equal(b.update.ask, CANCEL_ASK_SCAN);
}

/* The decoy is younger than the driver and outlives it: CANCELLED all the same, and about the driver. */
static void test_decoy_does_not_hold_up_the_outcome(void **state) {
        struct bench b = begin_accepted();
        (void)state;

        exits(&b);
        found_elsewhere(&b, 900, "driver-9");
        assert_state(&b, SETTLE);
        assert_string_equal(b.cancel.record.driver_id, "driver-1");
        feed_scan_none(&b);                         /* nothing behind it; but at the head? */
        assert_int_equal(b.update.ask, CANCEL_ASK_SCAN);
        assert_int_equal(b.cancel.aside.pid, 0);
        feed_scan_process(&b, 900, "driver-9", false); /* still the newest */
        assert_state(&b, SETTLE);
        pass(&b, b.now + SEC / 10);
        assert_true(b.cancel.asking);
        feed_status(&b, CANCEL_WORD_KILLED, true);
        assert_outcome(&b, CANCELLED);
        assert_string_equal(b.cancel.record.driver_id, "driver-1");
        assert_int_not_equal(b.cancel.record.accepted_usec, 0);
}

/* While Spark was asked about a decoy the job came back: it stands at the head of the order. */
static void test_pass_ends_at_its_head(void **state) {
        struct bench b = begin_accepted();
        (void)state;

        exits(&b);
        found_elsewhere(&b, 900, "driver-9");
        feed_scan_none(&b);
        feed_scan_process(&b, 901, "driver-2", false);
        assert_string_equal(cancel_status_id(&b.cancel), "driver-2");
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        assert_state(&b, KILL);
        assert_string_equal(b.cancel.record.driver_id, "driver-2");
}

/* Spark knows nothing of it, and it is no orphan: it may be a driver of the job. Nothing is concluded while it lives. */
static void test_unknown_process_holds_up_the_outcome(void **state) {
        struct bench b = begin_accepted(), end;
        (void)state;

        exits(&b);
        feed_scan_process(&b, 900, "driver-9", false);
        feed_status_answer(&b, CANCEL_ANSWER_UNKNOWN_ID);
        assert_state(&b, SETTLE);
        feed_scan_none(&b);
        feed_scan_process(&b, 900, "driver-9", false);
        feed_status(&b, CANCEL_WORD_KILLED, true);
        pass(&b, b.now + 10 * SEC);
        assert_state(&b, SETTLE);
        end = b;
        feed_scan_none(&end); /* it has ended */
        pass(&end, end.now + SEC);
        if (end.update.ask & CANCEL_ASK_SCAN)
                feed_scan_none(&end);
        assert_outcome(&end, CANCELLED);
        feed_at(&b, b.cancel.record.deadline_usec);
        feed_scan_process(&b, 900, "driver-9", false);
        assert_outcome(&b, DEADLINE_EXCEEDED);
        assert_string_equal(b.cancel.record.driver_id, "driver-9"); /* that one is to be looked at */
        assert_int_equal(b.cancel.record.ended_usec, 0);
}

/* No master answers: the suspect is asked about again, and an orphan that Spark does not know is nobody's. */
static void test_suspect_is_asked_about_again(void **state) {
        struct bench b = begin_accepted();
        (void)state;

        exits(&b);
        feed_scan_orphan(&b, 900, "driver-9");
        feed_status_answer(&b, CANCEL_ANSWER_UNREACHABLE);
        assert_state(&b, SETTLE);
        pass(&b, b.now + SEC / 2);
        assert_true(b.cancel.asking);
        feed_status_answer(&b, CANCEL_ANSWER_UNKNOWN_ID);
        assert_int_equal(b.update.ask, CANCEL_ASK_SCAN);
        feed_scan_none(&b);
        feed_scan_none(&b);
        pass(&b, b.now + 2 * SEC);
        if (b.update.ask & CANCEL_ASK_SCAN)
                feed_scan_none(&b);
        assert_outcome(&b, CANCELLED);
}

/* A suspect that ends before Spark has answered is nothing any more; the driver's own word is asked for again. */
static void test_suspect_that_ends(void **state) {
        struct bench b = begin_accepted();
        (void)state;

        exits(&b);
        feed_scan_process(&b, 900, "driver-9", false);
        feed_scan_none(&b);
        assert_int_equal(b.cancel.suspect.process.pid, 0);
        assert_false(b.cancel.asking); /* its answer would be taken for one about driver-1 */
        feed_scan_none(&b);
        assert_string_equal(cancel_status_id(&b.cancel), "driver-1");
        pass(&b, b.now + SEC / 10);
        assert_true(b.cancel.asking);
        feed_status(&b, CANCEL_WORD_KILLED, true);
        assert_outcome(&b, CANCELLED);
}

/* "Already finished or does not exist": a decoy may have taken the id of a driver that ended long ago. */
static void test_stuck_process_makes_room_for_another(void **state) {
        struct bench b = begin(false, &config);
        (void)state;

        feed_scan_process(&b, 900, "driver-9", false);
        feed_status(&b, CANCEL_WORD_FINISHED, true);
        feed_type(&b, CANCEL_EVENT_SLOT);
        feed_kill(&b, CANCEL_ANSWER_UNKNOWN_ID);
        assert_true(b.update.ask & CANCEL_ASK_SCAN);
        assert_int_equal(b.cancel.aside.pid, 900);
        feed_scan_process(&b, 100, "driver-1", false);
        assert_state(&b, KILL);
        assert_string_equal(b.cancel.record.driver_id, "driver-1");
        assert_int_equal(b.cancel.record.word, CANCEL_WORD_NONE); /* FINISHED was the other one's */
        assert_false(b.cancel.looking);
        assert_true(b.update.change & CANCEL_HOLD);
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        feed_type(&b, CANCEL_EVENT_SLOT);
        assert_int_equal(b.update.act, CANCEL_ACT_KILL);
        feed_kill(&b, CANCEL_ANSWER_ACCEPTED);
        assert_state(&b, WAIT);
        exits(&b);
        assert_int_equal(b.cancel.aside.pid, 0); /* the last scan begins at the head */
}

/* The named driver's directory is here, too, and Spark places it elsewhere as well: the next pass begins at the head. */
static void test_directory_behind_a_decoy(void **state) {
        struct cancel_event directory = { .type = CANCEL_EVENT_SCANNED, .scan = CANCEL_SCAN_DIRECTORY };
        struct bench b = begin(false, &config);
        (void)state;

        base_text_copy(directory.found.driver_id, sizeof directory.found.driver_id, "driver-9");
        found_elsewhere(&b, 900, "driver-9");
        feed(&b, &directory);
        feed_status(&b, CANCEL_WORD_RUNNING, false);
        assert_state(&b, SEARCH);
        assert_int_equal(b.cancel.aside.pid, 0);
        assert_int_equal(b.update.ask, 0);
        assert_int_equal(b.update.wake_usec, b.now + config.search_interval_usec);
        assert_int_equal(b.cancel.record.progress, CANCEL_NOT_ON_NODE);
}

/* The deadline passes in the midst of a pass: what stands behind the decoy is looked at before the operation ends. */
static void test_deadline_within_a_pass(void **state) {
        struct bench b = begin(false, &config);
        (void)state;

        feed_scan_none(&b);
        found_elsewhere(&b, 900, "driver-9");
        feed_at(&b, b.cancel.record.deadline_usec);
        assert_state(&b, SEARCH);
        feed_scan_process(&b, 100, "driver-1", false);
        assert_outcome(&b, DEADLINE_EXCEEDED);
        assert_string_equal(b.cancel.record.driver_id, "driver-1");
}

/* Alone it is held on to; a new pass begins when it had its time, and goes by itself. */
static void test_stuck_process_that_is_alone(void **state) {
        struct bench b = begin(false, &config);
        uint64_t looked;
        (void)state;

        feed_scan_process(&b, 900, "driver-9", false);
        feed_status_answer(&b, CANCEL_ANSWER_UNKNOWN_ID);
        assert_true(b.update.ask & CANCEL_ASK_SCAN);
        feed_scan_none(&b);
        assert_state(&b, KILL);
        looked = b.now;
        while (!(b.update.ask & CANCEL_ASK_SCAN)) {
                feed_at(&b, b.update.wake_usec);
                if (b.cancel.asking)
                        feed_status_answer(&b, CANCEL_ANSWER_UNKNOWN_ID);
        }
        assert_in_range(b.now - looked, config.escalate_after_usec + config.kill_retry_usec,
                        config.escalate_after_usec + config.kill_retry_usec + 10 * SEC);
        assert_int_equal(b.cancel.aside.pid, 0);
        feed_scan_process(&b, 900, "driver-9", false); /* itself */
        assert_int_equal(b.update.ask, CANCEL_ASK_SCAN);
        assert_int_equal(b.cancel.aside.pid, 900);
        feed_scan_process(&b, 100, "driver-1", false);
        assert_string_equal(b.cancel.record.driver_id, "driver-1");
        feed_status_answer(&b, CANCEL_ANSWER_UNKNOWN_ID); /* nor this one: on with the pass */
        assert_int_equal(b.update.ask, CANCEL_ASK_SCAN);
        assert_int_equal(b.cancel.aside.pid, 100);
}

/* ---- supervised drivers ----------------------------------------------------------------------------------------- */

static struct bench begin_supervised_gone(void) {
        struct bench b = begin(false, &config);

        feed_scan_process(&b, 100, "driver-1", true);
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        feed_type(&b, CANCEL_EVENT_SLOT);
        feed_kill(&b, CANCEL_ANSWER_ACCEPTED);
        exits(&b);
        feed_scan_none(&b);
        assert_state(&b, SETTLE);
        return b;
}

/* Spark calls it RUNNING and there is no process: it is in the Worker's back-off, and the id is killed again. */
static void test_driver_in_back_off_is_killed_again(void **state) {
        struct bench b = begin_supervised_gone();
        (void)state;

        feed_status(&b, CANCEL_WORD_RUNNING, true);
        for (int i = 0; i < 20 && b.cancel.record.state == CANCEL_SETTLE; i++) {
                if (b.update.ask & CANCEL_ASK_SCAN)
                        feed_scan_none(&b);
                else if (b.cancel.asking)
                        feed_status(&b, CANCEL_WORD_RUNNING, true);
                else
                        feed_at(&b, b.update.wake_usec);
        }
        assert_state(&b, KILL);
        assert_int_equal(b.cancel.record.process.pid, 0);
        assert_int_equal(b.cancel.record.process.worker_pid, 7); /* its turn is at that Worker */
        assert_int_equal(b.cancel.record.killed_usec, 0);        /* and the kill before is over */
        assert_true(b.update.change & CANCEL_SLOT_WANTED);
        assert_true(b.update.durable);
        assert_int_equal(b.cancel.record.kill_requests, 2);
        feed_type(&b, CANCEL_EVENT_SLOT);
        assert_int_equal(b.update.act, CANCEL_ACT_KILL);
        b.cancel.record.leftover_processes = 2; /* of the process before */
        feed_kill(&b, CANCEL_ANSWER_ACCEPTED);
        pass(&b, b.now + SEC / 10);
        feed_status(&b, CANCEL_WORD_KILLED, true);
        assert_state(&b, SETTLE);
        assert_int_equal(b.cancel.record.leftover_processes, 0);
}

/* After a restart its place must be proved anew before the id is killed again. */
static void test_driver_in_back_off_after_a_restart(void **state) {
        struct bench b = begin_supervised_gone();
        (void)state;

        b.now += 2 * SEC;
        restart(&b, true);
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        feed_scan_none(&b);
        assert_state(&b, KILL);
        assert_int_equal(b.update.ask, CANCEL_ASK_STATUS);
        assert_false(b.cancel.wants_slot);
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        assert_true(b.cancel.wants_slot);
}

/* The scan did not come in time: it is asked for once more before the end. */
static void test_deadline_without_a_last_scan(void **state) {
        struct bench b = begin_accepted();
        (void)state;

        exits(&b);
        feed_at(&b, b.cancel.record.deadline_usec);
        assert_state(&b, SETTLE);
        assert_int_equal(b.update.ask, CANCEL_ASK_SCAN);
        feed_scan_none(&b);
        assert_outcome(&b, CANCELLED);
}

/* RELAUNCHING until the window is over: it runs, or will run, on another node. */
static void test_relaunched_elsewhere(void **state) {
        struct bench b = begin_supervised_gone();
        (void)state;

        b.cancel.record.escalation = b.cancel.signalled = CANCEL_ESCALATION_SIGTERM;
        for (int i = 0; i < 1000 && b.cancel.record.state == CANCEL_SETTLE; i++) {
                if (b.cancel.asking)
                        feed_status(&b, CANCEL_WORD_RELAUNCHING, true);
                else
                        feed_at(&b, b.update.wake_usec);
                if (b.update.ask & CANCEL_ASK_SCAN)
                        feed_scan_none(&b);
        }
        assert_state(&b, SEARCH);
        assert_in_range(b.now, START + config.relaunch_window_usec, START + config.relaunch_window_usec + 2 * SEC);
        assert_int_equal(b.cancel.record.progress, CANCEL_NOT_ON_NODE);
        assert_int_equal(b.cancel.record.accepted_usec, 0);
        assert_int_equal(b.cancel.record.ended_usec, 0);
        assert_int_equal(b.cancel.record.escalation, CANCEL_ESCALATION_NONE);
        assert_string_equal(b.cancel.record.driver_id, "");
        feed_at(&b, b.cancel.record.deadline_usec);
        assert_state(&b, DONE); /* nothing is in the way of the end */
}

/* ---- one record, one driver ------------------------------------------------------------------------------------- */

/* Our kill ended the first; the second ended by itself, with exit code 0, before it was asked for. */
static void test_accepted_kill_is_about_one_driver(void **state) {
        struct bench b = begin_accepted();
        (void)state;

        exits(&b);
        feed_scan_process(&b, 200, "driver-2", false);
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        assert_state(&b, KILL);
        exits(&b);
        feed_scan_none(&b);
        feed_status(&b, CANCEL_WORD_FINISHED, true);
        assert_outcome(&b, ALREADY_DONE);
        assert_int_equal(b.cancel.record.accepted_usec, 0);
        assert_int_equal(b.cancel.record.kill_requests, 1);
}

static struct bench begin_term(const struct cancel_config *c) {
        struct bench b = begin_found();

        b.config = c;
        feed_status_answer(&b, CANCEL_ANSWER_UNREACHABLE);
        for (int i = 0; i < 200 && b.cancel.record.state != CANCEL_TERM; i++) {
                feed_at(&b, b.update.wake_usec);
                if (b.cancel.asking)
                        feed_status_answer(&b, CANCEL_ANSWER_UNREACHABLE);
        }
        assert_state(&b, TERM);
        return b;
}

static void test_signal_is_about_one_process(void **state) {
        struct cancel_config term = config;
        struct bench b;
        (void)state;

        term.escalation = CANCEL_ESCALATION_SIGTERM;
        b = begin_term(&term);
        exits(&b);
        feed_scan_process(&b, 200, "driver-1", true); /* Spark has started it again */
        assert_state(&b, KILL);
        assert_int_equal(b.cancel.record.escalation, CANCEL_ESCALATION_NONE);
        assert_int_equal(b.cancel.record.ended_usec, 0);
}

/* ---- signals that were not sent --------------------------------------------------------------------------------- */

/* The right was lost: said, nothing is put down to it, Spark is asked on, and the deadline ends it. */
static void test_denied_signal(void **state) {
        struct cancel_config kill = config;
        struct bench b;
        (void)state;

        kill.escalation = CANCEL_ESCALATION_SIGKILL;
        b = begin_term(&kill);
        b.cancel.signalled = CANCEL_ESCALATION_NONE;
        feed_signalled(&b, CANCEL_ESCALATION_SIGTERM, CANCEL_SIGNAL_DENIED);
        assert_true(b.update.durable);
        assert_int_equal(b.cancel.record.escalation, CANCEL_ESCALATION_NONE);
        assert_true(b.cancel.denied);
        b.stalled = true;
        while (cancel_counts_open(b.cancel.record.state)) {
                feed_at(&b, b.update.wake_usec);
                if (b.update.act & CANCEL_ACT_FORCE)
                        feed_signalled(&b, CANCEL_ESCALATION_SIGKILL, CANCEL_SIGNAL_DENIED);
                if (b.cancel.asking)
                        feed_status(&b, CANCEL_WORD_RUNNING, true);
                if (b.cancel.wants_slot)
                        feed_type(&b, CANCEL_EVENT_SLOT);
                if (b.update.act & CANCEL_ACT_KILL)
                        feed_type(&b, CANCEL_EVENT_KILL_SENT);
                if (b.cancel.killing)
                        feed_kill(&b, CANCEL_ANSWER_ACCEPTED);
        }
        assert_outcome(&b, DEADLINE_EXCEEDED);
        assert_int_equal(b.cancel.record.escalation, CANCEL_ESCALATION_NONE);
        assert_true(b.cancel.denied);
        assert_true(b.cancel.record.kill_requests > 20); /* every kill_retry */
}

/* The disk is stalled: the driver ends before the signal was sent. */
static void test_signal_that_was_not_sent_ended_nobody(void **state) {
        struct cancel_config kill = config;
        struct bench b;
        (void)state;

        kill.escalation = CANCEL_ESCALATION_SIGKILL;
        b = begin_found();
        b.config = &kill;
        b.stalled = true;
        feed_status_answer(&b, CANCEL_ANSWER_UNREACHABLE);
        b.cancel.retry_usec = b.cancel.ask_usec = USEC_NEVER;
        feed_at(&b, b.now + kill.escalate_after_usec);
        assert_state(&b, TERM);
        assert_int_equal(b.cancel.record.escalation, CANCEL_ESCALATION_SIGTERM);
        exits(&b);
        assert_int_equal(b.cancel.record.escalation, CANCEL_ESCALATION_NONE);
        feed_scan_none(&b);
        feed_status(&b, CANCEL_WORD_FINISHED, true);
        assert_outcome(&b, ALREADY_DONE);
}

/* The same for a kill: what was decided and has not left is not counted. */
static void test_kill_that_was_not_sent_is_not_counted(void **state) {
        struct bench b = begin_found();
        (void)state;

        b.stalled = true;
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        feed_type(&b, CANCEL_EVENT_SLOT);
        assert_int_equal(b.update.act, CANCEL_ACT_KILL);
        assert_int_equal(b.cancel.record.killed_usec, 0);
        feed_at(&b, START + 900 * SEC);
        assert_outcome(&b, DEADLINE_EXCEEDED);
        assert_int_equal(b.cancel.record.kill_requests, 0);
        assert_int_equal(b.cancel.record.killed_usec, 0);
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
                cmocka_unit_test(test_decoy_does_not_hide_the_driver),
                cmocka_unit_test(test_many_decoys_are_asked_about_at_a_pace),
                cmocka_unit_test(test_decoy_does_not_hold_up_the_outcome),
                cmocka_unit_test(test_pass_ends_at_its_head),
                cmocka_unit_test(test_unknown_process_holds_up_the_outcome),
                cmocka_unit_test(test_suspect_is_asked_about_again),
                cmocka_unit_test(test_suspect_that_ends),
                cmocka_unit_test(test_stuck_process_makes_room_for_another),
                cmocka_unit_test(test_directory_behind_a_decoy),
                cmocka_unit_test(test_deadline_within_a_pass),
                cmocka_unit_test(test_stuck_process_that_is_alone),
                cmocka_unit_test(test_driver_in_back_off_is_killed_again),
                cmocka_unit_test(test_driver_in_back_off_after_a_restart),
                cmocka_unit_test(test_deadline_without_a_last_scan),
                cmocka_unit_test(test_relaunched_elsewhere),
                cmocka_unit_test(test_accepted_kill_is_about_one_driver),
                cmocka_unit_test(test_signal_is_about_one_process),
                cmocka_unit_test(test_denied_signal),
                cmocka_unit_test(test_signal_that_was_not_sent_ended_nobody),
                cmocka_unit_test(test_kill_that_was_not_sent_is_not_counted),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
