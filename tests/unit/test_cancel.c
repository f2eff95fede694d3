/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The machine: conversations, a table of events and what must follow.
 */
#include "cancel_bench.h"

/* ---- conversations --------------------------------------------------------------------------------------------- */

static void test_plain_cancel(void **state) {
        struct bench b = begin_accepted();
        (void)state;

        exits(&b);
        feed_scan_none(&b);
        assert_state(&b, SETTLE); /* Spark's word is still to come */
        feed_status(&b, CANCEL_WORD_KILLED, true);
        assert_state(&b, REPORT);
        assert_outcome(&b, CANCELLED);
        assert_int_equal(b.update.act, CANCEL_ACT_REPORT);
        finishes(&b);
}

static void test_cancelled_without_word_after_a_second(void **state) {
        struct bench b = begin_accepted();
        (void)state;

        exits(&b);
        feed_scan_none(&b);
        feed_status_answer(&b, CANCEL_ANSWER_UNREACHABLE);
        pass(&b, b.now + SEC);
        assert_outcome(&b, CANCELLED);
}

static void test_never_cancelled_without_last_scan(void **state) {
        struct bench b = begin_accepted();
        (void)state;

        exits(&b);
        feed_status(&b, CANCEL_WORD_KILLED, true);
        pass(&b, b.now + 10 * SEC);
        assert_state(&b, SETTLE);
        feed_scan_none(&b);
        assert_outcome(&b, CANCELLED);
}

static void test_scan_after_end_finds_another(void **state) {
        struct bench b = begin_accepted();
        (void)state;

        exits(&b);
        feed_scan_process(&b, 200, "driver-2", false);
        assert_state(&b, SETTLE);
        assert_string_equal(cancel_status_id(&b.cancel), "driver-2");
        assert_int_equal(b.update.ask, CANCEL_ASK_STATUS); /* about driver-2, though driver-1's end was just asked about */
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        assert_state(&b, KILL);
        assert_string_equal(b.cancel.record.driver_id, "driver-2");
        assert_int_equal(b.cancel.record.accepted_usec, 0); /* that was driver-1 */
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        feed_type(&b, CANCEL_EVENT_SLOT);
        assert_int_equal(b.update.act, CANCEL_ACT_KILL);
        assert_int_equal(b.cancel.record.kill_requests, 2);
}

/* The kill's answer is late, the driver is gone and another one is found: that answer is not about the other. */
static void test_late_answer_is_not_about_another_driver(void **state) {
        struct bench b = begin_kill_sent();
        (void)state;

        exits(&b);
        feed_scan_process(&b, 200, "driver-2", false);
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        assert_state(&b, KILL);
        feed_kill(&b, CANCEL_ANSWER_ACCEPTED);
        assert_state(&b, KILL);
        feed_status(&b, CANCEL_WORD_RUNNING, false);
        feed_type(&b, CANCEL_EVENT_SLOT);
        assert_int_equal(b.update.act, 0);
}

static void ended_by_itself(enum cancel_word word, const char *outcome) {
        struct bench b = begin_found();

        exits(&b);
        feed_scan_none(&b);
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        assert_state(&b, SETTLE);
        pass(&b, b.update.wake_usec);
        feed_status(&b, word, true);
        assert_state(&b, REPORT);
        assert_string_equal(cancel_outcome_to_text(b.cancel.record.outcome), outcome);
        assert_int_equal(b.cancel.record.kill_requests, 0);
}

static void test_ended_by_itself(void **state) {
        (void)state;
        ended_by_itself(CANCEL_WORD_FINISHED, "ALREADY_DONE");
        ended_by_itself(CANCEL_WORD_FAILED, "ALREADY_FAILED");
        ended_by_itself(CANCEL_WORD_ERROR, "ALREADY_FAILED");
        ended_by_itself(CANCEL_WORD_KILLED, "CANCELLED"); /* somebody else asked before us */
}

static void test_answer_of_kill_decides_when_exit_comes_first(void **state) {
        struct bench b = begin_kill_sent();
        (void)state;

        exits(&b);
        feed_scan_none(&b);
        feed_status(&b, CANCEL_WORD_FINISHED, true); /* exit 0 on SIGTERM looks the same */
        assert_state(&b, SETTLE);
        feed_kill(&b, CANCEL_ANSWER_ACCEPTED);
        assert_outcome(&b, CANCELLED);

        for (enum cancel_answer answer = CANCEL_ANSWER_UNKNOWN_ID; answer < CANCEL_ANSWER_MAX; answer++) {
                b = begin_kill_sent();
                exits(&b);
                feed_scan_none(&b);
                feed_status(&b, CANCEL_WORD_FINISHED, true);
                feed_kill(&b, answer);
                pass(&b, b.now + 10 * SEC);
                assert_outcome(&b, ALREADY_DONE);
        }
}

static void test_unknown_twice_is_lost(void **state) {
        struct bench b = begin_kill_sent();
        uint64_t first;
        (void)state;

        feed_kill(&b, CANCEL_ANSWER_UNREACHABLE);
        exits(&b);
        feed_scan_none(&b);
        first = b.now;
        feed_status_answer(&b, CANCEL_ANSWER_UNKNOWN_ID);
        while (b.cancel.record.state == CANCEL_SETTLE && b.now < first + 60 * SEC) {
                feed_at(&b, b.update.wake_usec);
                if (b.cancel.asking)
                        feed_status_answer(&b, CANCEL_ANSWER_UNKNOWN_ID);
                if (b.update.ask & CANCEL_ASK_SCAN)
                        feed_scan_none(&b);
        }
        assert_outcome(&b, DRIVER_LOST);
        assert_true(b.now >= first + config.kill_retry_usec);
}

/* Spark's word took long: the job may have come back meanwhile, and the scan that said no is old. */
static void test_late_word_makes_the_last_scan_again(void **state) {
        struct bench b = begin_found();
        (void)state;

        exits(&b);
        feed_scan_none(&b);
        b.now += 10 * SEC;
        feed_status(&b, CANCEL_WORD_FINISHED, true);
        assert_state(&b, SETTLE);
        assert_true(b.update.ask & CANCEL_ASK_SCAN);
        feed_scan_process(&b, 200, "driver-2", false);
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        assert_state(&b, KILL);
}

static void test_not_on_node_once_then_found(void **state) {
        struct bench b = begin(false, &config);
        (void)state;

        feed_scan_none(&b);
        assert_int_equal(b.update.act, CANCEL_ACT_PROGRESS);
        assert_int_equal(b.cancel.record.progress, CANCEL_NOT_ON_NODE);
        pass(&b, b.now + 5 * SEC);
        assert_true(b.update.ask & CANCEL_ASK_SCAN);
        feed_scan_none(&b);
        assert_int_equal(b.update.act, 0);
        feed_scan_process(&b, 100, "driver-1", false);
        assert_state(&b, KILL);
}

static void test_search_ends_without_report(void **state) {
        struct bench b = begin(false, &config);
        (void)state;

        feed_scan_none(&b);
        feed_at(&b, START + 900 * SEC);
        assert_state(&b, DONE);
        assert_outcome(&b, );
        assert_int_equal(b.update.act, 0);
}

static void test_deadline(void **state) {
        struct bench b = begin_found();
        (void)state;

        feed_status_answer(&b, CANCEL_ANSWER_UNREACHABLE);
        feed_at(&b, START + 900 * SEC);
        assert_outcome(&b, SPARK_UNREACHABLE);

        b = begin_accepted();
        feed_at(&b, START + 900 * SEC);
        assert_outcome(&b, DEADLINE_EXCEEDED);

        b = begin_found();
        feed_status(&b, CANCEL_WORD_FINISHED, true); /* Spark says ended, the process lives */
        feed_at(&b, START + 900 * SEC);
        assert_outcome(&b, DRIVER_SURVIVED);
}

/* The timer of a deadline that is past comes before the scan's answer: it must not end the search unseen. */
static void test_deadline_past_before_the_first_scan(void **state) {
        struct bench b = { .config = &config, .now = START };
        struct cancel_now now = { START, REAL };
        (void)state;

        cancel_begin(&b.cancel, &now, START - 100 * SEC, false, false, "");
        feed_type(&b, CANCEL_EVENT_COMMAND);
        feed_at(&b, START);
        assert_state(&b, SEARCH);
        assert_true(b.update.wake_usec > START);
        feed_scan_process(&b, 100, "driver-1", false);
        assert_outcome(&b, DEADLINE_EXCEEDED);

        cancel_begin(&b.cancel, &now, START - 100 * SEC, false, false, "");
        feed_type(&b, CANCEL_EVENT_COMMAND);
        pass(&b, START + 10 * SEC); /* no scan ever answers */
        assert_state(&b, DONE);
}

static void test_deadline_past_at_arrival(void **state) {
        struct bench b = { .config = &config, .now = START };
        struct cancel_now now = { START, REAL };
        (void)state;

        cancel_begin(&b.cancel, &now, START - 100 * SEC, false, false, "");
        feed_type(&b, CANCEL_EVENT_COMMAND);
        feed_type(&b, CANCEL_EVENT_TIMER); /* comes before the scan that decides */
        assert_true(b.update.wake_usec > b.now);
        feed_scan_process(&b, 100, "driver-1", false);
        assert_outcome(&b, DEADLINE_EXCEEDED);
        assert_int_equal(b.cancel.record.kill_requests, 0);

        cancel_begin(&b.cancel, &now, START - SEC, false, false, "");
        feed_type(&b, CANCEL_EVENT_COMMAND);
        feed_scan_none(&b);
        assert_state(&b, DONE);
}

static void test_placed_elsewhere_is_not_found(void **state) {
        struct bench b = begin_found();
        (void)state;

        feed_status(&b, CANCEL_WORD_RUNNING, false);
        assert_state(&b, SEARCH);
        assert_true(b.update.change & CANCEL_RELEASE);
        assert_int_equal(b.cancel.record.kill_requests, 0);
        assert_int_equal(b.cancel.record.progress, CANCEL_OUTCOME_NONE); /* behind it may stand the real one */
        assert_int_equal(b.update.ask, CANCEL_ASK_SCAN);
        feed_scan_none(&b);
        assert_int_equal(b.cancel.record.progress, CANCEL_NOT_ON_NODE);
        feed_at(&b, START + 900 * SEC);
        assert_state(&b, DONE);
}

/* Neither a Worker nor Spark vouches for it: not found. With Spark's word it counts, and holds up CANCELLED. */
static void test_orphan_counts_when_spark_places_it_here(void **state) {
        struct bench b = begin(false, &config);
        (void)state;

        feed_scan_orphan(&b, 100, "driver-1");
        feed_status_answer(&b, CANCEL_ANSWER_UNKNOWN_ID);
        assert_state(&b, SEARCH);
        assert_int_equal(b.cancel.record.kill_requests, 0);

        b = begin(false, &config);
        feed_scan_orphan(&b, 100, "driver-1");
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        feed_type(&b, CANCEL_EVENT_SLOT);
        assert_int_equal(b.update.act, CANCEL_ACT_KILL);

        b = begin_accepted();
        exits(&b);
        feed_scan_orphan(&b, 200, "driver-2");
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        assert_state(&b, KILL);
}

/* Any job can make up a driver id that Spark never heard of, and end: that is nobody's loss. */
static void test_lost_needs_a_driver_that_was_placed(void **state) {
        struct bench b = begin(false, &config);
        (void)state;

        feed_scan_process(&b, 100, "driver-1", false);
        exits(&b);
        feed_scan_none(&b);
        for (int i = 0; i < 1000 && b.cancel.record.state == CANCEL_SETTLE; i++) {
                if (b.cancel.asking)
                        feed_status_answer(&b, CANCEL_ANSWER_UNKNOWN_ID);
                else if (b.update.ask & CANCEL_ASK_SCAN)
                        feed_scan_none(&b);
                else
                        feed_at(&b, b.update.wake_usec);
        }
        assert_state(&b, SEARCH);
        assert_int_equal(b.cancel.record.progress, CANCEL_NOT_ON_NODE);
}

static void test_lost_kill_is_repeated(void **state) {
        struct bench b = begin_accepted();
        (void)state;

        pass(&b, b.now + config.kill_retry_usec);
        assert_state(&b, KILL);
        assert_true(b.update.change & CANCEL_SLOT_WANTED);
        feed_type(&b, CANCEL_EVENT_SLOT);
        assert_int_equal(b.update.act, CANCEL_ACT_KILL);
        assert_true(b.update.durable); /* the second request is counted before it goes out */
        assert_int_equal(b.cancel.record.kill_requests, 2);
        feed_kill(&b, CANCEL_ANSWER_ACCEPTED);
        exits(&b);
        feed_scan_none(&b);
        feed_status(&b, CANCEL_WORD_KILLED, true);
        assert_outcome(&b, CANCELLED);
}

static void test_every_master_asked_counts(void **state) {
        struct bench b = begin_kill_sent();
        (void)state;

        feed(&b, &(struct cancel_event){ .type = CANCEL_EVENT_KILL_ANSWERED, .answer = CANCEL_ANSWER_ACCEPTED, .asked = 3 });
        assert_int_equal(b.cancel.record.kill_requests, 3);

        b = begin_kill_sent(); /* no token: it was handed to nobody */
        feed(&b, &(struct cancel_event){ .type = CANCEL_EVENT_KILL_ANSWERED, .answer = CANCEL_ANSWER_UNREACHABLE });
        assert_int_equal(b.cancel.record.kill_requests, 0);
}

static void test_refused_for_good(void **state) {
        struct bench b = begin_found();
        (void)state;

        while (b.cancel.record.state == CANCEL_KILL && b.now < START + 800 * SEC) {
                if (b.cancel.asking)
                        feed_status_answer(&b, CANCEL_ANSWER_REFUSED_AUTH);
                else
                        feed_at(&b, b.update.wake_usec);
        }
        assert_outcome(&b, SPARK_REFUSED);
        assert_true(b.cancel.record.refused_auth);
        assert_true(b.now >= START + 2 * config.kill_retry_usec);
        assert_true(b.now < START + 3 * config.kill_retry_usec);
}

static void test_withdrawn(void **state) {
        struct bench b = begin(false, &config);
        (void)state;

        feed_type(&b, CANCEL_EVENT_WITHDRAWN);
        assert_state(&b, DONE);

        b = begin_found();
        feed_type(&b, CANCEL_EVENT_WITHDRAWN);
        assert_state(&b, DONE);
        assert_int_equal(b.cancel.record.kill_requests, 0);

        b = begin_found(); /* it ended by itself before a kill was sent */
        exits(&b);
        feed_type(&b, CANCEL_EVENT_WITHDRAWN);
        assert_state(&b, DONE);

        b = begin_kill_sent(); /* too late: it goes to its end and is reported */
        feed_type(&b, CANCEL_EVENT_WITHDRAWN);
        assert_state(&b, KILL);
        feed_kill(&b, CANCEL_ANSWER_ACCEPTED);
        exits(&b);
        feed_scan_none(&b);
        feed_status(&b, CANCEL_WORD_KILLED, true);
        assert_outcome(&b, CANCELLED);
        feed_type(&b, CANCEL_EVENT_WITHDRAWN);
        assert_state(&b, REPORT); /* a stored final report stays a duty */
}

/* A directory that Spark says nothing about is a hint: no report rests on it. */
static void test_directory_alone_answers_nothing(void **state) {
        static const enum cancel_answer answers[] = { CANCEL_ANSWER_UNREACHABLE, CANCEL_ANSWER_UNKNOWN_ID,
                                                      CANCEL_ANSWER_REFUSED };
        struct cancel_event directory = { .type = CANCEL_EVENT_SCANNED, .scan = CANCEL_SCAN_DIRECTORY };
        (void)state;

        base_text_copy(directory.found.driver_id, sizeof directory.found.driver_id, "driver-1");
        for (size_t i = 0; i < ARRAY_SIZE(answers); i++) {
                struct bench b = begin(false, &config);

                feed(&b, &directory);
                while (b.now < START + 900 * SEC) {
                        if (b.cancel.asking)
                                feed_status_answer(&b, answers[i]);
                        pass(&b, b.now + SEC);
                }
                assert_state(&b, DONE);
                assert_outcome(&b, );
        }
}

static struct bench begin_by_record(void) {
        struct cancel_event record = { .type = CANCEL_EVENT_SCANNED, .scan = CANCEL_SCAN_RECORD };
        struct bench b = begin(false, &config);

        base_text_copy(record.found.driver_id, sizeof record.found.driver_id, "driver-1");
        feed(&b, &record);
        assert_state(&b, KILL);
        return b;
}

static void scan_record(struct bench *b) {
        struct cancel_event record = { .type = CANCEL_EVENT_SCANNED, .scan = CANCEL_SCAN_RECORD };

        base_text_copy(record.found.driver_id, sizeof record.found.driver_id, "driver-1");
        feed(b, &record);
}

/* queued_drivers: Spark's record alone answers for a driver that runs nowhere, and for one that has ended. */
static void test_queued_driver_is_killed(void **state) {
        struct bench b = begin_by_record();
        (void)state;

        feed(&b, &(struct cancel_event){ .type = CANCEL_EVENT_STATUS, .answer = CANCEL_ANSWER_ACCEPTED,
                                         .word = CANCEL_WORD_SUBMITTED });
        assert_true(b.update.change & CANCEL_SLOT_WANTED);
        feed_type(&b, CANCEL_EVENT_SLOT);
        assert_true(b.update.act & CANCEL_ACT_KILL);
        feed_kill(&b, CANCEL_ANSWER_ACCEPTED);
        pass(&b, b.now + SEC);
        feed_status(&b, CANCEL_WORD_KILLED, false);
        assert_state(&b, SETTLE);
        scan_record(&b);
        feed_status(&b, CANCEL_WORD_KILLED, false);
        assert_outcome(&b, CANCELLED);
}

static void test_record_of_a_driver_that_has_ended(void **state) {
        static const struct {
                enum cancel_word word;
                enum cancel_outcome outcome;
        } cases[] = {
                { CANCEL_WORD_FINISHED, CANCEL_ALREADY_DONE },
                { CANCEL_WORD_FAILED, CANCEL_ALREADY_FAILED },
                { CANCEL_WORD_KILLED, CANCEL_CANCELLED },
        };
        (void)state;

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                struct bench b = begin_by_record();

                feed_status(&b, cases[i].word, false);
                assert_state(&b, SETTLE);
                scan_record(&b);
                feed_status(&b, cases[i].word, false);
                assert_int_equal(b.cancel.record.outcome, cases[i].outcome);
                assert_int_equal(b.cancel.record.kill_requests, 0);
        }
}

/* It was placed on another node just before our kill, which went to a Worker that Spark has lost since: it may live. */
static void test_queued_driver_that_was_placed_and_lost(void **state) {
        struct bench b = begin_by_record();
        (void)state;

        feed(&b, &(struct cancel_event){ .type = CANCEL_EVENT_STATUS, .answer = CANCEL_ANSWER_ACCEPTED,
                                         .word = CANCEL_WORD_SUBMITTED });
        feed_type(&b, CANCEL_EVENT_SLOT);
        feed_kill(&b, CANCEL_ANSWER_ACCEPTED);
        assert_state(&b, WAIT);
        while (b.now < START + config.relaunch_window_usec) {
                if (b.cancel.asking)
                        feed_status(&b, CANCEL_WORD_ERROR, false);
                assert_true(b.cancel.record.state == CANCEL_WAIT || b.cancel.record.state == CANCEL_KILL);
                if (b.update.ask & CANCEL_ASK_SCAN)
                        scan_record(&b);
                pass(&b, b.now + SEC);
        }
        for (unsigned i = 0; i < 60 && b.cancel.record.state != CANCEL_REPORT; i++) {
                if (b.cancel.wants_slot)
                        feed_type(&b, CANCEL_EVENT_SLOT);
                if (b.cancel.killing)
                        feed_kill(&b, CANCEL_ANSWER_ACCEPTED);
                if (b.cancel.asking)
                        feed_status(&b, CANCEL_WORD_ERROR, false);
                scan_record(&b);
                pass(&b, b.now + SEC);
        }
        assert_outcome(&b, DRIVER_LOST);
}

/* queued_drivers: a process of the job claims the id of another job's driver that waits in the queue, and the driver that
 * the command names has nothing here. Spark's "on no Worker" is no proof for an id that a process claims. */
static void test_record_vouches_for_no_process(void **state) {
        struct bench b = begin(false, &config);
        (void)state;

        feed_scan_process(&b, 100, "driver-9", false);
        assert_state(&b, KILL);
        for (unsigned i = 0; i < 3; i++) {
                feed(&b, &(struct cancel_event){ .type = CANCEL_EVENT_STATUS, .answer = CANCEL_ANSWER_ACCEPTED,
                                                 .word = CANCEL_WORD_SUBMITTED });
                assert_false(b.update.change & CANCEL_SLOT_WANTED);
                assert_false(b.cancel.placed_here);
                if (i == 0)
                        assert_true(b.update.ask & CANCEL_ASK_SCAN); /* perhaps another process is the real one */
                scan_record(&b);
                assert_false(b.cancel.by_record);
                pass(&b, b.now + 2 * SEC);
                assert_true(b.cancel.asking);
        }
}

/* The process was here and its end is proved: what the last scan says of the id that the command names changes nothing. */
static void test_record_of_a_process_that_is_gone(void **state) {
        struct bench b = begin_found();
        (void)state;

        feed_type(&b, CANCEL_EVENT_EXITED);
        scan_record(&b);
        feed_status(&b, CANCEL_WORD_ERROR, true);
        pass(&b, b.now + 10 * SEC);
        assert_outcome(&b, ALREADY_FAILED);
}

/* ERROR: the driver's own node has until relaunch_window to prove more. */
static void test_record_of_a_driver_that_spark_lost(void **state) {
        struct bench b = begin_by_record();
        (void)state;

        while (b.now < START + config.relaunch_window_usec) {
                if (b.cancel.asking)
                        feed_status(&b, CANCEL_WORD_ERROR, false);
                assert_state(&b, KILL);
                assert_int_equal(b.cancel.record.progress, CANCEL_OUTCOME_NONE);
                pass(&b, b.now + SEC);
        }
        feed_status(&b, CANCEL_WORD_ERROR, false);
        assert_state(&b, SETTLE);
        scan_record(&b);
        feed_status(&b, CANCEL_WORD_ERROR, false);
        assert_outcome(&b, DRIVER_LOST);
}

/* It runs on another node, or Spark does not know it: not ours, said once, and asked again. */
static void test_record_that_answers_nothing(void **state) {
        (void)state;

        for (int unknown = 0; unknown < 2; unknown++) {
                struct bench b = begin_by_record();
                uint32_t reports = 0;

                for (int i = 0; i < 60; i++) {
                        bool asked = b.cancel.asking;

                        if (asked && unknown)
                                feed_status_answer(&b, CANCEL_ANSWER_UNKNOWN_ID);
                        else if (asked)
                                feed(&b, &(struct cancel_event){ .type = CANCEL_EVENT_STATUS, .answer = CANCEL_ANSWER_ACCEPTED,
                                                                 .word = CANCEL_WORD_RUNNING, .elsewhere = true });
                        reports += asked && (b.update.act & CANCEL_ACT_PROGRESS);
                        assert_state(&b, KILL);
                        assert_false(b.update.act & CANCEL_ACT_KILL);
                        pass(&b, b.now + SEC);
                }
                assert_int_equal(reports, 1);
                assert_int_equal(b.cancel.record.progress, CANCEL_NOT_ON_NODE);
                pass(&b, START + 900 * SEC);
                assert_state(&b, DONE);
                assert_outcome(&b, );
        }
}

/* A driver that is known by its directory alone: Spark is asked each second, not as fast as it answers. */
static void test_accepted_without_a_process_is_asked_at_a_pace(void **state) {
        struct cancel_event directory = { .type = CANCEL_EVENT_SCANNED, .scan = CANCEL_SCAN_DIRECTORY };
        struct bench b = begin(false, &config);
        (void)state;

        base_text_copy(directory.found.driver_id, sizeof directory.found.driver_id, "driver-1");
        feed(&b, &directory);
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        feed_type(&b, CANCEL_EVENT_SLOT);
        feed_kill(&b, CANCEL_ANSWER_ACCEPTED);
        pass(&b, b.now + SEC / 10);
        assert_true(b.cancel.asking);
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        assert_int_equal(b.update.ask, CANCEL_ASK_SCAN);
        feed(&b, &directory);
        assert_int_equal(b.update.ask, 0);
        assert_true(b.update.wake_usec > b.now && b.update.wake_usec <= b.now + SEC);
}

static void test_duplicate_resends(void **state) {
        struct bench b = begin_accepted();
        (void)state;

        feed_type(&b, CANCEL_EVENT_DUPLICATE);
        assert_int_equal(b.update.act, 0);
        exits(&b);
        feed_scan_none(&b);
        feed_status(&b, CANCEL_WORD_KILLED, true);
        finishes(&b);
        feed_type(&b, CANCEL_EVENT_DUPLICATE);
        assert_int_equal(b.update.act, CANCEL_ACT_RESEND);
        assert_state(&b, DONE);
}

static void test_quarantine_and_retry(void **state) {
        struct bench b = begin(false, &config);
        (void)state;

        b.cancel.record.deadline_usec = START; /* any way to REPORT */
        feed_scan_process(&b, 100, "driver-1", false);
        feed(&b, &(struct cancel_event){ .type = CANCEL_EVENT_REPORT_ANSWERED, .accepted = false });
        assert_state(&b, QUARANTINE);
        feed_type(&b, CANCEL_EVENT_RETRY);
        assert_state(&b, REPORT);
        assert_int_equal(b.update.act, CANCEL_ACT_RESEND);
        finishes(&b);
}

static void test_dry_run(void **state) {
        struct bench b = begin(true, &config);
        (void)state;

        feed_scan_process(&b, 100, "driver-1", false);
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        assert_outcome(&b, DRY_RUN);
        assert_int_equal(b.cancel.record.kill_requests, 0);
}

static void test_invalid_command(void **state) {
        struct bench b = { .config = &config, .now = START };
        struct cancel_now now = { START, REAL };
        (void)state;

        cancel_begin(&b.cancel, &now, START + SEC, false, true, "");
        feed_type(&b, CANCEL_EVENT_COMMAND);
        assert_outcome(&b, INVALID_COMMAND);
        assert_int_equal(b.update.act, CANCEL_ACT_REPORT);
        assert_int_equal(b.update.ask, 0);
}

static void test_restart_with_driver_alive(void **state) {
        struct bench b = begin_kill_sent();
        (void)state;

        restart(&b, true);
        assert_int_equal(b.update.ask, CANCEL_ASK_SCAN);
        feed_scan_process(&b, 100, "driver-1", false);
        assert_true(b.update.change & CANCEL_HOLD);
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        feed_type(&b, CANCEL_EVENT_SLOT);
        assert_int_equal(b.cancel.record.kill_requests, 2); /* the first may have been sent */
        feed_kill(&b, CANCEL_ANSWER_ACCEPTED);
        exits(&b);
}

static void test_restart_with_driver_gone(void **state) {
        struct bench b = begin_accepted();
        (void)state;

        restart(&b, true);
        feed_scan_none(&b);
        assert_state(&b, SETTLE);
        feed_scan_none(&b);
        feed_status(&b, CANCEL_WORD_KILLED, true);
        assert_outcome(&b, CANCELLED);

        b = begin_found(); /* nothing was sent: ended by itself meanwhile */
        restart(&b, true);
        feed_scan_none(&b);
        feed_scan_none(&b);
        feed_status(&b, CANCEL_WORD_FINISHED, true);
        assert_outcome(&b, ALREADY_DONE);
}

/* The deadline passed while the agent did not run: it looks once before it says how the cancel ended. */
static void test_restart_past_the_deadline(void **state) {
        struct bench b = begin_accepted();
        (void)state;

        b.now = START + 2000 * SEC;
        feed(&b, &(struct cancel_event){ .type = CANCEL_EVENT_RESTARTED, .same_boot = true });
        feed_at(&b, b.now);
        assert_state(&b, WAIT);
        assert_true(b.update.wake_usec > b.now);
        feed_scan_none(&b); /* its process is gone */
        assert_state(&b, SETTLE);
        feed_scan_none(&b);
        assert_outcome(&b, CANCELLED);

        b = begin_accepted();
        b.now = START + 2000 * SEC;
        feed(&b, &(struct cancel_event){ .type = CANCEL_EVENT_RESTARTED, .same_boot = true });
        feed_scan_process(&b, 100, "driver-1", false);
        assert_outcome(&b, DEADLINE_EXCEEDED); /* at once: nothing is asked for or signalled any more */
        assert_int_equal(b.update.act, CANCEL_ACT_REPORT);
        assert_int_equal(b.update.ask, 0);

        b = begin(false, &config);
        feed_scan_none(&b);
        b.now = START + 2000 * SEC;
        feed(&b, &(struct cancel_event){ .type = CANCEL_EVENT_RESTARTED, .same_boot = true });
        feed_at(&b, b.now);
        assert_state(&b, SEARCH);
        feed_scan_process(&b, 100, "driver-1", false);
        assert_outcome(&b, DEADLINE_EXCEEDED);
}

static void test_reboot_means_gone(void **state) {
        struct bench b = begin_accepted();
        (void)state;

        restart(&b, false);
        assert_state(&b, SETTLE);
        feed_scan_none(&b);
        feed_status(&b, CANCEL_WORD_ERROR, true);
        assert_outcome(&b, CANCELLED);
}

/* Each kill is accepted, and nothing happens. */
static void go_on_killing(struct bench *b, enum cancel_state until) {
        for (int i = 0; i < 200 && b->cancel.record.state != until; i++) {
                feed_at(b, b->update.wake_usec);
                if (b->cancel.record.state == until)
                        return;
                if (b->cancel.wants_slot)
                        feed_type(b, CANCEL_EVENT_SLOT);
                if (b->cancel.killing)
                        feed_kill(b, CANCEL_ANSWER_ACCEPTED);
        }
        fail_msg("never in %s", cancel_state_to_text(until));
}

static void test_escalation(void **state) {
        struct cancel_config kill = config;
        struct bench b;
        uint32_t kills;
        (void)state;

        kill.escalation = CANCEL_ESCALATION_SIGKILL;
        b = begin_accepted();
        b.config = &kill;
        feed_type(&b, CANCEL_EVENT_DUPLICATE); /* recompute the timer */
        go_on_killing(&b, CANCEL_TERM);
        assert_int_equal(b.now, START + kill.escalate_after_usec);
        assert_int_equal(b.update.act, CANCEL_ACT_TERM);
        kills = b.cancel.record.kill_requests;
        go_on_killing(&b, CANCEL_FORCE);
        assert_int_equal(b.now, START + kill.escalate_after_usec + kill.force_after_usec);
        assert_int_equal(b.update.act, CANCEL_ACT_FORCE);
        assert_int_equal(b.cancel.record.kill_requests, kills + 1); /* Spark is asked on, each kill_retry */
        exits(&b);
        feed_scan_none(&b);
        feed_status(&b, CANCEL_WORD_FAILED, true);
        assert_outcome(&b, CANCELLED);
        assert_int_equal(b.cancel.record.escalation, CANCEL_ESCALATION_SIGKILL);
}

/* It came back long after the first kill: Spark is asked first, the time before a signal is its own. */
static void test_escalation_counts_for_each_process(void **state) {
        struct cancel_config term = config;
        struct bench b = begin_accepted();
        (void)state;

        term.escalation = CANCEL_ESCALATION_SIGTERM;
        b.config = &term;
        b.now += 70 * SEC;
        exits(&b);
        feed_scan_process(&b, 200, "driver-1", true);
        assert_state(&b, KILL);
        pass(&b, b.now + SEC);
        assert_state(&b, KILL);
}

/* Our signal ended the first driver and another one is found: withdrawn now, no kill request is made for it. */
static void test_withdrawn_after_a_signal(void **state) {
        struct cancel_config term = config;
        struct bench b = begin_found();
        (void)state;

        term.escalation = CANCEL_ESCALATION_SIGTERM;
        b.config = &term;
        feed_status_answer(&b, CANCEL_ANSWER_UNREACHABLE);
        for (int i = 0; i < 200 && b.cancel.record.state != CANCEL_TERM; i++) {
                feed_at(&b, b.update.wake_usec);
                if (b.cancel.asking)
                        feed_status_answer(&b, CANCEL_ANSWER_UNREACHABLE);
        }
        assert_state(&b, TERM);
        exits(&b);
        feed_scan_process(&b, 200, "driver-2", true);
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        assert_state(&b, KILL);
        feed_type(&b, CANCEL_EVENT_WITHDRAWN);
        assert_state(&b, DONE);
}

static void test_supervised_driver_comes_back(void **state) {
        struct bench b = begin(false, &config);
        (void)state;

        feed_scan_process(&b, 100, "driver-1", true);
        feed_status(&b, CANCEL_WORD_RUNNING, true);
        feed_type(&b, CANCEL_EVENT_SLOT);
        feed_kill(&b, CANCEL_ANSWER_ACCEPTED);
        exits(&b);
        feed_scan_none(&b);
        feed_status(&b, CANCEL_WORD_KILLED, true);
        assert_state(&b, SETTLE); /* not before the window is over */
        pass(&b, b.now + 10 * SEC);
        assert_true(b.cancel.record.state == CANCEL_SETTLE);
        feed_scan_process(&b, 101, "driver-1", true);
        assert_state(&b, KILL);
        assert_int_equal(b.cancel.record.process.pid, 101);
        assert_int_equal(b.cancel.record.killed_usec, 0); /* that kill is over */
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_plain_cancel),
                cmocka_unit_test(test_cancelled_without_word_after_a_second),
                cmocka_unit_test(test_never_cancelled_without_last_scan),
                cmocka_unit_test(test_scan_after_end_finds_another),
                cmocka_unit_test(test_late_answer_is_not_about_another_driver),
                cmocka_unit_test(test_ended_by_itself),
                cmocka_unit_test(test_answer_of_kill_decides_when_exit_comes_first),
                cmocka_unit_test(test_unknown_twice_is_lost),
                cmocka_unit_test(test_late_word_makes_the_last_scan_again),
                cmocka_unit_test(test_not_on_node_once_then_found),
                cmocka_unit_test(test_search_ends_without_report),
                cmocka_unit_test(test_deadline),
                cmocka_unit_test(test_deadline_past_before_the_first_scan),
                cmocka_unit_test(test_deadline_past_at_arrival),
                cmocka_unit_test(test_placed_elsewhere_is_not_found),
                cmocka_unit_test(test_orphan_counts_when_spark_places_it_here),
                cmocka_unit_test(test_lost_needs_a_driver_that_was_placed),
                cmocka_unit_test(test_lost_kill_is_repeated),
                cmocka_unit_test(test_every_master_asked_counts),
                cmocka_unit_test(test_refused_for_good),
                cmocka_unit_test(test_withdrawn),
                cmocka_unit_test(test_directory_alone_answers_nothing),
                cmocka_unit_test(test_queued_driver_is_killed),
                cmocka_unit_test(test_record_of_a_driver_that_has_ended),
                cmocka_unit_test(test_record_of_a_driver_that_spark_lost),
                cmocka_unit_test(test_queued_driver_that_was_placed_and_lost),
                cmocka_unit_test(test_record_vouches_for_no_process),
                cmocka_unit_test(test_record_of_a_process_that_is_gone),
                cmocka_unit_test(test_record_that_answers_nothing),
                cmocka_unit_test(test_accepted_without_a_process_is_asked_at_a_pace),
                cmocka_unit_test(test_duplicate_resends),
                cmocka_unit_test(test_quarantine_and_retry),
                cmocka_unit_test(test_dry_run),
                cmocka_unit_test(test_invalid_command),
                cmocka_unit_test(test_restart_with_driver_alive),
                cmocka_unit_test(test_restart_with_driver_gone),
                cmocka_unit_test(test_restart_past_the_deadline),
                cmocka_unit_test(test_reboot_means_gone),
                cmocka_unit_test(test_escalation),
                cmocka_unit_test(test_escalation_counts_for_each_process),
                cmocka_unit_test(test_withdrawn_after_a_signal),
                cmocka_unit_test(test_supervised_driver_comes_back),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
