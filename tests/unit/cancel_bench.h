/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * One operation on a bench: its clock, the events it is fed, and its usual beginnings. Each step is checked against the
 * second statement (cancel_check()).
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
        bool stalled; /* the disk: deeds wait for their commit */
};

__attribute__((unused)) static void feed_alone(struct bench *b, const struct cancel_event *event) {
        struct cancel before = b->cancel;
        struct cancel_now now = { b->now, REAL + b->now };
        const char *broken;

        cancel_step(&b->cancel, b->config, event, &now, &b->update);
        broken = cancel_check(&before, &b->cancel, &b->update);
        if (broken)
                fail_msg("%s: %s -> %s", broken, cancel_state_to_text(before.record.state),
                         cancel_state_to_text(b->cancel.record.state));
}

__attribute__((unused)) static void feed_signalled(struct bench *b, enum cancel_escalation signal,
                                                   enum cancel_signal_result result) {
        feed_alone(b, &(struct cancel_event){ .type = CANCEL_EVENT_SIGNALLED, .signal = signal, .signal_result = result });
}

/* And do at once what the step allows: a kill is handed over, a signal sent. The update is the step's own. */
__attribute__((unused)) static void feed(struct bench *b, const struct cancel_event *event) {
        struct cancel_update update;

        feed_alone(b, event);
        update = b->update;
        if (b->stalled)
                return;
        if (update.act & CANCEL_ACT_KILL)
                feed_alone(b, &(struct cancel_event){ .type = CANCEL_EVENT_KILL_SENT });
        if (update.act & CANCEL_ACT_TERM)
                feed_signalled(b, CANCEL_ESCALATION_SIGTERM, CANCEL_SIGNAL_SENT);
        if (update.act & CANCEL_ACT_FORCE)
                feed_signalled(b, CANCEL_ESCALATION_SIGKILL, CANCEL_SIGNAL_SENT);
        update.wake_usec = b->update.wake_usec;
        b->update = update;
}

__attribute__((unused)) static void feed_type(struct bench *b, enum cancel_event_type type) {
        feed(b, &(struct cancel_event){ .type = type });
}

__attribute__((unused)) static void feed_scan_none(struct bench *b) {
        feed(b, &(struct cancel_event){ .type = CANCEL_EVENT_SCANNED });
}

__attribute__((unused)) static void feed_scan_leftovers(struct bench *b, uint32_t leftovers) {
        feed(b, &(struct cancel_event){ .type = CANCEL_EVENT_SCANNED, .leftovers = leftovers, .leftovers_held = leftovers > 0 });
}

__attribute__((unused)) static void feed_scan_process(struct bench *b, int pid, const char *driver_id, bool supervised) {
        struct cancel_event event = { .type = CANCEL_EVENT_SCANNED, .scan = CANCEL_SCAN_PROCESS, .process_alive = true,
                                      .found = { .process = { pid, 7, (uint64_t)pid * 10, 70 }, .supervised = supervised } };
        base_text_copy(event.found.driver_id, sizeof event.found.driver_id, driver_id);
        feed(b, &event);
}

__attribute__((unused)) static void feed_status(struct bench *b, enum cancel_word word, bool here) {
        feed(b, &(struct cancel_event){ .type = CANCEL_EVENT_STATUS, .answer = CANCEL_ANSWER_ACCEPTED, .word = word,
                                        .here = here, .elsewhere = !here });
}

__attribute__((unused)) static void feed_status_answer(struct bench *b, enum cancel_answer answer) {
        feed(b, &(struct cancel_event){ .type = CANCEL_EVENT_STATUS, .answer = answer });
}

__attribute__((unused)) static void feed_kill(struct bench *b, enum cancel_answer answer) {
        feed(b, &(struct cancel_event){ .type = CANCEL_EVENT_KILL_ANSWERED, .answer = answer, .asked = 1 });
}

__attribute__((unused)) static void feed_at(struct bench *b, uint64_t at) {
        b->now = at;
        feed_type(b, CANCEL_EVENT_TIMER);
}

/* Let timers fire one after the other until `at`. */
__attribute__((unused)) static void pass(struct bench *b, uint64_t at) {
        while (b->update.wake_usec <= at && cancel_is_open(b->cancel.record.state) && b->update.wake_usec != USEC_NEVER)
                feed_at(b, base_max_u64(b->update.wake_usec, b->now));
        b->now = at;
}

__attribute__((unused)) static struct bench begin(bool dry_run, const struct cancel_config *c) {
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

__attribute__((unused)) static struct bench begin_found(void) {
        struct bench b = begin(false, &config);

        feed_scan_process(&b, 100, "driver-1", false);
        assert_state(&b, KILL);
        assert_true(b.update.change & CANCEL_HOLD);
        assert_int_equal(b.update.ask, CANCEL_ASK_STATUS);
        return b;
}

__attribute__((unused)) static struct bench begin_kill_sent(void) {
        struct bench b = begin_found();

        feed_status(&b, CANCEL_WORD_RUNNING, true);
        assert_true(b.update.change & CANCEL_SLOT_WANTED);
        feed_type(&b, CANCEL_EVENT_SLOT);
        assert_int_equal(b.update.act, CANCEL_ACT_KILL);
        assert_false(b.update.durable); /* counted when it was found: one flush before the kill */
        assert_int_equal(b.cancel.record.kill_requests, 1);
        return b;
}

__attribute__((unused)) static struct bench begin_accepted(void) {
        struct bench b = begin_kill_sent();

        feed_kill(&b, CANCEL_ANSWER_ACCEPTED);
        assert_state(&b, WAIT);
        assert_true(b.update.durable);
        assert_int_equal(b.update.act, CANCEL_ACT_PROGRESS);
        assert_int_equal(b.cancel.record.progress, CANCEL_IN_PROGRESS);
        return b;
}

__attribute__((unused)) static void exits(struct bench *b) {
        feed_type(b, CANCEL_EVENT_EXITED);
        assert_state(b, SETTLE);
        assert_int_equal(b->update.ask, CANCEL_ASK_SCAN | (b->cancel.asking ? b->update.ask & CANCEL_ASK_STATUS : 0));
}

__attribute__((unused)) static void finishes(struct bench *b) {
        feed(b, &(struct cancel_event){ .type = CANCEL_EVENT_REPORT_ANSWERED, .accepted = true });
        assert_state(b, DONE);
        assert_int_equal(b->update.wake_usec == USEC_NEVER, 1);
}

__attribute__((unused)) static void restart(struct bench *b, bool same_boot) {
        struct cancel_record record = b->cancel.record;

        b->cancel = (struct cancel){ .record = record };
        feed(b, &(struct cancel_event){ .type = CANCEL_EVENT_RESTARTED, .same_boot = same_boot });
}

__attribute__((unused)) static void feed_scan_orphan(struct bench *b, int pid, const char *driver_id) {
        struct cancel_event event = { .type = CANCEL_EVENT_SCANNED, .scan = CANCEL_SCAN_PROCESS, .process_alive = true,
                                      .found = { .process = { .pid = pid, .start_ticks = 9 }, .orphan = true } };
        base_text_copy(event.found.driver_id, sizeof event.found.driver_id, driver_id);
        feed(b, &event);
}

