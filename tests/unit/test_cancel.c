/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The machine: conversations (a table of events and what must follow), an exhaustive walk over all reachable abstract
 * states, and random walks by seed. Each step is checked against the second statement (cancel_check()).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "cancel.h"

#define SEC USEC_PER_SEC
#define START (1000 * SEC)
#define REAL (1700000000 * SEC)

static const struct cancel_config config = {
        .kill_retry_usec = 25 * SEC,
        .escalate_after_usec = 60 * SEC,
        .force_after_usec = 30 * SEC,
        .relaunch_window_usec = 75 * SEC,
        .escalation = CANCEL_ESCALATION_NONE,
        .search_interval_usec = 5 * SEC,
};

/* One operation under test with its clock. */
struct bench {
        struct cancel cancel;
        struct cancel_update update;
        const struct cancel_config *config;
        uint64_t now;
};

static void feed(struct bench *b, const struct cancel_event *event) {
        struct cancel before = b->cancel;
        struct cancel_now now = { b->now, REAL + b->now };
        const char *broken;

        cancel_step(&b->cancel, b->config, event, &now, &b->update);
        broken = cancel_check(&before, &b->cancel, &b->update);
        if (broken)
                fail_msg("%s: %s -> %s", broken, cancel_state_to_text(before.record.state),
                         cancel_state_to_text(b->cancel.record.state));
}

static void feed_type(struct bench *b, enum cancel_event_type type) {
        feed(b, &(struct cancel_event){ .type = type });
}

static void feed_scan_none(struct bench *b) {
        feed(b, &(struct cancel_event){ .type = CANCEL_EVENT_SCANNED });
}

static void feed_scan_leftovers(struct bench *b, uint32_t leftovers) {
        feed(b, &(struct cancel_event){ .type = CANCEL_EVENT_SCANNED, .leftovers = leftovers, .leftovers_held = leftovers > 0 });
}

static void feed_scan_process(struct bench *b, int pid, const char *driver_id, bool supervised) {
        struct cancel_event event = { .type = CANCEL_EVENT_SCANNED, .scan = CANCEL_SCAN_PROCESS, .process_alive = true,
                                      .process = { pid, 7, (uint64_t)pid * 10, 70 }, .supervised = supervised };
        base_text_copy(event.driver_id, sizeof event.driver_id, driver_id);
        feed(b, &event);
}

static void feed_status(struct bench *b, enum cancel_word word, bool here) {
        feed(b, &(struct cancel_event){ .type = CANCEL_EVENT_STATUS, .answer = CANCEL_ANSWER_ACCEPTED, .word = word,
                                        .here = here, .elsewhere = !here });
}

static void feed_status_answer(struct bench *b, enum cancel_answer answer) {
        feed(b, &(struct cancel_event){ .type = CANCEL_EVENT_STATUS, .answer = answer });
}

static void feed_kill(struct bench *b, enum cancel_answer answer) {
        feed(b, &(struct cancel_event){ .type = CANCEL_EVENT_KILL_ANSWERED, .answer = answer, .asked = 1 });
}

static void feed_at(struct bench *b, uint64_t at) {
        b->now = at;
        feed_type(b, CANCEL_EVENT_TIMER);
}

/* Let timers fire one after the other until `at`. */
static void pass(struct bench *b, uint64_t at) {
        while (b->update.wake_usec <= at && cancel_is_open(b->cancel.record.state) && b->update.wake_usec != USEC_NEVER)
                feed_at(b, base_max_u64(b->update.wake_usec, b->now));
        b->now = at;
}

static struct bench begin(bool dry_run, const struct cancel_config *c) {
        struct bench b = { .config = c, .now = START };
        struct cancel_now now = { START, REAL + START };

        cancel_begin(&b.cancel, &now, START + 900 * SEC, dry_run, false, "");
        feed_type(&b, CANCEL_EVENT_COMMAND);
        assert_true(b.update.durable);
        assert_int_equal(b.update.ask, CANCEL_ASK_SCAN);
        return b;
}

#define assert_state(b, expected) assert_string_equal(cancel_state_to_text((b)->cancel.record.state), #expected)
#define assert_outcome(b, expected) assert_string_equal(cancel_outcome_to_text((b)->cancel.record.outcome), #expected)

static struct bench begin_found(void) {
        struct bench b = begin(false, &config);

        feed_scan_process(&b, 100, "driver-1", false);
        assert_state(&b, KILL);
        assert_true(b.update.change & CANCEL_HOLD);
        assert_int_equal(b.update.ask, CANCEL_ASK_STATUS);
        return b;
}

static struct bench begin_kill_sent(void) {
        struct bench b = begin_found();

        feed_status(&b, CANCEL_WORD_RUNNING, true);
        assert_true(b.update.change & CANCEL_SLOT_WANTED);
        feed_type(&b, CANCEL_EVENT_SLOT);
        assert_int_equal(b.update.act, CANCEL_ACT_KILL);
        assert_false(b.update.durable); /* counted when it was found: one flush before the kill */
        assert_int_equal(b.cancel.record.kill_requests, 1);
        return b;
}

static struct bench begin_accepted(void) {
        struct bench b = begin_kill_sent();

        feed_kill(&b, CANCEL_ANSWER_ACCEPTED);
        assert_state(&b, WAIT);
        assert_true(b.update.durable);
        assert_int_equal(b.update.act, CANCEL_ACT_PROGRESS);
        assert_int_equal(b.cancel.record.progress, CANCEL_IN_PROGRESS);
        return b;
}

static void exits(struct bench *b) {
        feed_type(b, CANCEL_EVENT_EXITED);
        assert_state(b, SETTLE);
        assert_int_equal(b->update.ask, CANCEL_ASK_SCAN | (b->cancel.asking ? b->update.ask & CANCEL_ASK_STATUS : 0));
}

static void finishes(struct bench *b) {
        feed(b, &(struct cancel_event){ .type = CANCEL_EVENT_REPORT_ANSWERED, .accepted = true });
        assert_state(b, DONE);
        assert_int_equal(b->update.wake_usec == USEC_NEVER, 1);
}

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
        assert_state(&b, KILL);
        assert_string_equal(b.cancel.record.driver_id, "driver-2");
        assert_int_equal(b.update.ask, CANCEL_ASK_STATUS); /* about driver-2, though driver-1's end was just asked about */
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

        b = begin_kill_sent();
        exits(&b);
        feed_scan_none(&b);
        feed_status(&b, CANCEL_WORD_FINISHED, true);
        feed_kill(&b, CANCEL_ANSWER_UNREACHABLE);
        pass(&b, b.now + 10 * SEC);
        assert_outcome(&b, ALREADY_DONE);
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
        assert_int_equal(b.cancel.record.progress, CANCEL_NOT_ON_NODE);
        feed_at(&b, START + 900 * SEC);
        assert_state(&b, DONE);
}

static void feed_scan_orphan(struct bench *b, int pid, const char *driver_id) {
        struct cancel_event event = { .type = CANCEL_EVENT_SCANNED, .scan = CANCEL_SCAN_PROCESS, .process_alive = true,
                                      .process = { .pid = pid, .start_ticks = 9 }, .orphan = true };
        base_text_copy(event.driver_id, sizeof event.driver_id, driver_id);
        feed(b, &event);
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

        base_text_copy(directory.driver_id, sizeof directory.driver_id, "driver-1");
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

/* A driver that is known by its directory alone: Spark is asked each second, not as fast as it answers. */
static void test_accepted_without_a_process_is_asked_at_a_pace(void **state) {
        struct cancel_event directory = { .type = CANCEL_EVENT_SCANNED, .scan = CANCEL_SCAN_DIRECTORY };
        struct bench b = begin(false, &config);
        (void)state;

        base_text_copy(directory.driver_id, sizeof directory.driver_id, "driver-1");
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

static void restart(struct bench *b, bool same_boot) {
        struct cancel_record record = b->cancel.record;

        b->cancel = (struct cancel){ .record = record };
        feed(b, &(struct cancel_event){ .type = CANCEL_EVENT_RESTARTED, .same_boot = same_boot });
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
        pass(&b, b.now);
        assert_outcome(&b, DEADLINE_EXCEEDED);

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

static void test_escalation(void **state) {
        struct cancel_config kill = config;
        struct bench b;
        (void)state;

        kill.escalation = CANCEL_ESCALATION_SIGKILL;
        b = begin_accepted();
        b.config = &kill;
        feed_type(&b, CANCEL_EVENT_DUPLICATE); /* recompute the timer */
        for (int i = 0; i < 200 && b.cancel.record.state != CANCEL_TERM; i++) {
                feed_at(&b, b.update.wake_usec);
                if (b.cancel.wants_slot)
                        feed_type(&b, CANCEL_EVENT_SLOT);
                if (b.cancel.killing)
                        feed_kill(&b, CANCEL_ANSWER_ACCEPTED);
        }
        assert_state(&b, TERM);
        assert_int_equal(b.now, START + kill.escalate_after_usec);
        feed_at(&b, b.update.wake_usec);
        assert_state(&b, FORCE);
        assert_int_equal(b.update.act, CANCEL_ACT_FORCE);
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
}

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

/* ---- all reachable abstract states ----------------------------------------------------------------------------- */

/* What the walk tells apart: everything but the clock; of times only whether they are set or due. */
struct abstract {
        struct cancel cancel;
        uint64_t escalation;
};

static uint64_t fold_time(uint64_t at, uint64_t now) {
        return at == 0 ? 0 : at == USEC_NEVER ? 3 : at <= now ? 1 : 2;
}

/* They steer nothing but SETTLE, and have a walk of their own. */
static void abstract_leftovers(struct cancel *c, uint64_t now, bool settling) {
        c->record.leftover_processes = settling && c->record.leftover_processes > 0;
        c->leftovers = settling && c->leftovers > 0;
        c->leftovers_held = settling && c->leftovers_held;
        c->leftovers_counted = settling && c->leftovers_counted;
        c->leftovers_usec = settling ? fold_time(c->leftovers_usec, now) : 0;
        c->leftovers_signal = settling ? c->leftovers_signal : CANCEL_ESCALATION_NONE;
}

static struct abstract abstract_of(const struct bench *b, bool settling) {
        struct abstract a = { b->cancel, b->config->escalation };
        struct cancel_record *r = &a.cancel.record;

        r->accepted_usec = r->accepted_usec > 0;
        r->ended_usec = r->ended_usec == 0 ? 0 : b->now >= r->ended_usec + SEC ? 2 : 1;
        r->killed_usec = r->killed_usec == 0 ? 0 : b->now >= r->killed_usec + config.kill_retry_usec ? 2 : 1;
        if (r->answered_usec > 0) /* whether a signal is what comes next */
                r->answered_usec = r->answered_usec + config.escalate_after_usec <= a.cancel.retry_usec ? 2 : 1;
        r->deadline_usec = fold_time(r->deadline_usec, b->now);
        r->accepted_real_usec = r->ended_real_usec = r->received_usec = r->received_real_usec = r->deadline_real_usec = 0;
        r->kill_requests = (uint32_t)base_min_u64(r->kill_requests, 2);
        if (!cancel_is_open(r->state) || r->state == CANCEL_REPORT) /* nothing but outcome and withdrawal steers these */
                a.cancel = (struct cancel){ .record = { .state = r->state, .outcome = r->outcome, .withdrawn = r->withdrawn } };
        if (r->word == CANCEL_WORD_OTHER || r->word == CANCEL_WORD_SUBMITTED)
                r->word = CANCEL_WORD_NONE;
        if (r->word == CANCEL_WORD_FAILED) /* steers as FINISHED does, to another name of outcome */
                r->word = CANCEL_WORD_FINISHED;
        if (r->driver_id[0]) /* which of the two drivers it is makes no difference: the events are relative to it */
                base_text_copy(r->driver_id, sizeof r->driver_id, "driver");
        r->process = (struct cancel_process){ .pid = r->process.pid > 0 };
        r->refused_auth = false;
        r->progress = CANCEL_OUTCOME_NONE;
        if (cancel_is_open(r->state) && r->state != CANCEL_REPORT)
                r->withdrawn = false;
        if (r->state != CANCEL_SEARCH && r->state != CANCEL_SETTLE)
                a.cancel.scanned = a.cancel.asked = false;
        if (r->state != CANCEL_SETTLE)
                a.cancel.unknown_answers = 0;
        if (r->state == CANCEL_TERM || r->state == CANCEL_FORCE || r->state == CANCEL_SEARCH)
                r->killed_usec = 0;
        if (b->config->escalation == CANCEL_ESCALATION_NONE)
                r->answered_usec = 0;
        abstract_leftovers(&a.cancel, b->now, settling);
        a.cancel.attempts = 0;
        a.cancel.unknown_answers = (uint32_t)base_min_u64(a.cancel.unknown_answers, 2);
        a.cancel.unknown_usec = 0;
        a.cancel.since_usec = 0;
        a.cancel.refused_usec = a.cancel.refused_usec > 0;
        a.cancel.ask_usec = fold_time(a.cancel.ask_usec, b->now);
        a.cancel.scan_usec = fold_time(a.cancel.scan_usec, b->now);
        a.cancel.retry_usec = fold_time(a.cancel.retry_usec, b->now);
        return a;
}

static uint64_t hash_of(const struct abstract *a) {
        const uint8_t *bytes = (const uint8_t *)a;
        uint64_t hash = UINT64_C(14695981039346656037);

        for (size_t i = 0; i < sizeof *a; i++)
                hash = (hash ^ bytes[i]) * UINT64_C(1099511628211);
        return hash ? hash : 1;
}

#define WALK_MAX (1u << 20)
#define SETTLING_STATES 60000 /* the walk with leftovers looks at so many */

/* How many states the walk looks at: all of them in the plain build, a part under sanitizers, which are slow;
 * $WALK_STATES says otherwise (valgrind is slower still). */
static size_t walk_states(void) {
        const char *given = getenv("WALK_STATES");
#ifdef DEBUG_CHECKS
        return given ? strtoull(given, NULL, 10) : 30000;
#else
        return given ? strtoull(given, NULL, 10) : WALK_MAX;
#endif
}

struct walk {
        struct bench *queue;
        uint64_t *seen; /* open addressing, by hash */
        size_t head, count;
        bool settling; /* within SETTLE only, with leftovers */
        unsigned pairs[CANCEL_STATE_MAX][CANCEL_EVENT_TYPE_MAX];
        unsigned moves[CANCEL_STATE_MAX][CANCEL_STATE_MAX];
};

static void walk_visit(struct walk *w, const struct bench *b) {
        struct abstract a = abstract_of(b, w->settling);
        uint64_t hash = hash_of(&a);

        if (w->settling && b->cancel.record.state != CANCEL_SETTLE)
                return;
        for (size_t i = hash % (2 * WALK_MAX);; i = (i + 1) % (2 * WALK_MAX)) {
                if (w->seen[i] == hash)
                        return;
                if (w->seen[i] == 0) {
                        w->seen[i] = hash;
                        break;
                }
        }
        if (w->count == WALK_MAX)
                fail_msg("more than %u abstract states: fold what does not steer", WALK_MAX);
        w->queue[w->count++] = *b;
}

static void walk_step(struct walk *w, const struct bench *from, const struct cancel_event *event) {
        struct bench b = *from;

        if (event->type == CANCEL_EVENT_TIMER) {
                if (b.update.wake_usec == USEC_NEVER)
                        return;
                b.now = base_max_u64(b.now, b.update.wake_usec);
        }
        if (event->type == CANCEL_EVENT_RESTARTED)
                b.cancel = (struct cancel){ .record = b.cancel.record };
        feed(&b, event);
        w->pairs[from->cancel.record.state][event->type]++;
        w->moves[from->cancel.record.state][b.cancel.record.state]++;
        walk_visit(w, &b);
}

/* Scans: none, the process that the record knows, another one (supervised or not), a directory; leftovers. */
static void walk_scans(struct walk *w, const struct bench *b) {
        bool first = strcmp(b->cancel.record.driver_id, "driver-1") == 0;

        for (int variant = 0; variant < 6; variant++) {
                struct cancel_event event = { .type = CANCEL_EVENT_SCANNED };
                bool another = variant == 3 || variant == 5;
                event.process_alive = variant == 0 || variant == 2;
                if (variant == 1) {
                        event.scan = CANCEL_SCAN_DIRECTORY;
                } else if (variant > 1) {
                        event.scan = CANCEL_SCAN_PROCESS;
                        event.process.pid = first != another ? 100 : 101;
                        event.process.worker_pid = 7;
                        event.supervised = variant > 3;
                        event.orphan = variant == 5;
                }
                if (event.scan != CANCEL_SCAN_NONE)
                        base_text_copy(event.driver_id, sizeof event.driver_id, first != another ? "driver-1" : "driver-2");
                walk_step(w, b, &event);
                event.leftovers = w->settling && event.scan == CANCEL_SCAN_NONE;
                for (int held = 0; held < 2 && event.leftovers > 0; held++) {
                        event.leftovers_held = held;
                        walk_step(w, b, &event);
                }
        }
}

static void walk_answers(struct walk *w, const struct bench *b) {
        for (unsigned answer = 0; answer < CANCEL_ANSWER_MAX; answer++) {
                walk_step(w, b, &(struct cancel_event){ .type = CANCEL_EVENT_KILL_ANSWERED, .answer = answer,
                                                        .asked = answer == CANCEL_ANSWER_UNREACHABLE ? 0 : 1 });
                if (answer != CANCEL_ANSWER_ACCEPTED)
                        walk_step(w, b, &(struct cancel_event){ .type = CANCEL_EVENT_STATUS, .answer = answer });
        }
        for (unsigned word = CANCEL_WORD_SUBMITTED; word <= CANCEL_WORD_OTHER; word++)
                for (int place = 0; place < 3; place++)
                        walk_step(w, b, &(struct cancel_event){ .type = CANCEL_EVENT_STATUS, .answer = CANCEL_ANSWER_ACCEPTED,
                                                                .word = word, .here = place == 1, .elsewhere = place == 2 });
}

static void walk_all(struct walk *w, const struct bench *b) {
        static const enum cancel_event_type plain[] = { CANCEL_EVENT_DUPLICATE, CANCEL_EVENT_WITHDRAWN, CANCEL_EVENT_EXITED,
                                                        CANCEL_EVENT_SLOT, CANCEL_EVENT_TIMER, CANCEL_EVENT_RETRY };

        for (size_t i = 0; i < ARRAY_SIZE(plain); i++)
                walk_step(w, b, &(struct cancel_event){ .type = plain[i] });
        for (int yes = 0; yes < 2; yes++) {
                walk_step(w, b, &(struct cancel_event){ .type = CANCEL_EVENT_RESTARTED, .same_boot = yes });
                walk_step(w, b, &(struct cancel_event){ .type = CANCEL_EVENT_REPORT_ANSWERED, .accepted = yes });
        }
        walk_scans(w, b);
        walk_answers(w, b);
}

static void walk_init(struct walk *w) {
        w->queue = calloc(WALK_MAX, sizeof *w->queue);
        w->seen = calloc(2 * WALK_MAX, sizeof *w->seen);
        assert_non_null(w->queue);
        assert_non_null(w->seen);
}

static void walk_deinit(struct walk *w) {
        free(w->queue);
        free(w->seen);
}

static void test_every_reachable_state(void **state) {
        struct cancel_config kill = config;
        struct walk w = { 0 };
        unsigned pairs = 0, moves = 0;
        size_t limit = walk_states();
        (void)state;

        kill.escalation = CANCEL_ESCALATION_SIGKILL;
        walk_init(&w);
        for (int variant = 0; variant < 3; variant++) {
                struct bench b = begin(variant == 1, variant == 2 ? &kill : &config);
                walk_visit(&w, &b);
        }
        while (w.head < w.count && w.head < limit) {
                struct bench b = w.queue[w.head++];
                walk_all(&w, &b);
        }
        for (unsigned s = 0; s < CANCEL_STATE_MAX; s++) {
                for (unsigned e = 0; e < CANCEL_EVENT_TYPE_MAX; e++)
                        pairs += w.pairs[s][e] > 0;
                for (unsigned t = 0; t < CANCEL_STATE_MAX; t++) {
                        if (s != t && cancel_transition_allowed(s, t) && w.moves[s][t] == 0 && w.head == w.count)
                                fail_msg("the allowed move %s -> %s was never made", cancel_state_to_text(s), cancel_state_to_text(t));
                        moves += s != t && w.moves[s][t] > 0;
                }
        }
        print_message("%zu abstract states, %u (state, event) pairs, %u different moves\n", w.count, pairs, moves);
        walk_deinit(&w);
}

/* From each way into SETTLE: all that leftovers can do there. What leaves SETTLE is checked and not followed. */
static void test_every_state_with_leftovers(void **state) {
        struct cancel_config term = config, kill = config;
        const struct cancel_config *const configs[] = { &config, &term, &kill };
        struct walk w = { .settling = true };
        (void)state;

        term.escalation = CANCEL_ESCALATION_SIGTERM;
        kill.escalation = CANCEL_ESCALATION_SIGKILL;
        walk_init(&w);
        for (size_t i = 0; i < ARRAY_SIZE(configs); i++) {
                struct bench starts[] = { begin_found(), begin_kill_sent(), begin_accepted(), begin(true, configs[i]) };

                feed_scan_process(&starts[3], 100, "driver-1", false);
                for (size_t k = 0; k < ARRAY_SIZE(starts); k++)
                        for (int supervised = 0; supervised < 2; supervised++) {
                                struct bench b = starts[k];

                                b.config = configs[i];
                                b.cancel.record.supervised = supervised;
                                exits(&b);
                                walk_visit(&w, &b);
                        }
        }
        while (w.head < w.count && w.head < base_min_u64(walk_states(), SETTLING_STATES)) {
                struct bench b = w.queue[w.head++];
                walk_all(&w, &b);
        }
        for (unsigned to = CANCEL_KILL; to <= CANCEL_REPORT; to++)
                if (to != CANCEL_SETTLE && cancel_transition_allowed(CANCEL_SETTLE, to) && w.head == w.count)
                        assert_int_not_equal(w.moves[CANCEL_SETTLE][to], 0);
        print_message("%zu abstract states of SETTLE with leftovers\n", w.count);
        walk_deinit(&w);
}

/* ---- random walks with a clock: every operation ends by its deadline plus a bound ------------------------------ */

static struct cancel_event random_event(uint64_t *seed) {
        struct cancel_event event = { .type = base_random_next(seed) % CANCEL_EVENT_TYPE_MAX };

        event.same_boot = base_random_next(seed) & 1;
        event.scan = base_random_next(seed) % CANCEL_SCAN_MAX;
        event.process_alive = base_random_next(seed) & 1;
        event.process.pid = 100 + (int32_t)(base_random_next(seed) % 2);
        event.supervised = base_random_next(seed) % 4 == 0;
        event.answer = base_random_next(seed) % CANCEL_ANSWER_MAX;
        event.word = base_random_next(seed) % CANCEL_WORD_UNKNOWN_ID;
        event.here = base_random_next(seed) & 1;
        event.elsewhere = !event.here && (base_random_next(seed) & 1);
        event.accepted = base_random_next(seed) & 1;
        event.orphan = base_random_next(seed) % 8 == 0;
        event.leftovers_held = base_random_next(seed) & 1;
        event.leftovers = (uint32_t)(base_random_next(seed) % 3);
        event.asked = (uint32_t)(base_random_next(seed) % 3);
        if (event.scan != CANCEL_SCAN_NONE)
                base_text_copy(event.driver_id, sizeof event.driver_id, event.process.pid == 100 ? "driver-1" : "driver-2");
        if (event.type == CANCEL_EVENT_COMMAND)
                event.type = CANCEL_EVENT_TIMER;
        return event;
}

/* An operation that waits for nothing but its deadline has been forgotten. `scanning`: a scan's answer is to come. */
static bool is_forgotten(const struct cancel *c, bool scanning) {
        enum cancel_state state = c->record.state;

        if (state != CANCEL_SEARCH && state != CANCEL_KILL && state != CANCEL_WAIT && state != CANCEL_SETTLE)
                return false;
        return !scanning && !c->asking && !c->killing && !c->wants_slot && c->ask_usec == USEC_NEVER &&
               c->scan_usec == USEC_NEVER && c->retry_usec == USEC_NEVER;
}

static void test_random_walks(void **state) {
        const char *given = getenv("SEED");
        uint64_t seed = given ? strtoull(given, NULL, 0) : base_random_u64(), first = seed;
        struct cancel_config force = config;
        (void)state;

        force.escalation = CANCEL_ESCALATION_SIGKILL;
        print_message("SEED=%" PRIu64 "\n", first);
        for (int round = 0; round < 3000; round++) {
                struct bench b = begin(base_random_next(&seed) % 8 == 0, base_random_next(&seed) % 2 ? &config : &force);
                bool scanning = true;
                for (int i = 0; i < 60; i++) {
                        struct cancel_event event = random_event(&seed);
                        if (event.type == CANCEL_EVENT_TIMER && b.update.wake_usec != USEC_NEVER)
                                b.now = base_max_u64(b.now, b.update.wake_usec);
                        feed(&b, &event);
                        if (event.type == CANCEL_EVENT_SCANNED || event.type == CANCEL_EVENT_RESTARTED)
                                scanning = false;
                        scanning |= (b.update.ask & CANCEL_ASK_SCAN) != 0;
                        if (b.now < b.cancel.record.deadline_usec && is_forgotten(&b.cancel, scanning))
                                fail_msg("SEED=%" PRIu64 ", round %d: %s waits for nothing after event %d", first, round,
                                         cancel_state_to_text(b.cancel.record.state), (int)event.type);
                }
                for (int i = 0; i < 100000 && b.update.wake_usec != USEC_NEVER; i++) /* silence: only timers */
                        feed_at(&b, base_max_u64(b.now, b.update.wake_usec));
                if (cancel_counts_open(b.cancel.record.state))
                        fail_msg("SEED=%" PRIu64 ", round %d: still %s", first, round, cancel_state_to_text(b.cancel.record.state));
                assert_true(b.now <= base_max_u64(b.cancel.record.deadline_usec, b.cancel.since_usec) + 10 * SEC);
        }
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
                cmocka_unit_test(test_directory_alone_answers_nothing),
                cmocka_unit_test(test_accepted_without_a_process_is_asked_at_a_pace),
                cmocka_unit_test(test_placed_elsewhere_is_not_found),
                cmocka_unit_test(test_orphan_counts_when_spark_places_it_here),
                cmocka_unit_test(test_lost_needs_a_driver_that_was_placed),
                cmocka_unit_test(test_lost_kill_is_repeated),
                cmocka_unit_test(test_every_master_asked_counts),
                cmocka_unit_test(test_refused_for_good),
                cmocka_unit_test(test_withdrawn),
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
                cmocka_unit_test(test_leftovers_are_counted_after_two_seconds),
                cmocka_unit_test(test_leftovers_that_end_are_none),
                cmocka_unit_test(test_leftovers_do_not_wait_for_a_word),
                cmocka_unit_test(test_leftovers_of_a_job_that_ended_by_itself),
                cmocka_unit_test(test_leftovers_at_the_deadline),
                cmocka_unit_test(test_leftovers_after_a_restart),
                cmocka_unit_test(test_leftovers_are_signalled_where_allowed),
                cmocka_unit_test(test_leftovers_and_a_driver_that_comes_back),
                cmocka_unit_test(test_every_reachable_state),
                cmocka_unit_test(test_every_state_with_leftovers),
                cmocka_unit_test(test_random_walks),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
