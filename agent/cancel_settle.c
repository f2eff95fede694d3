/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What became of the driver: SETTLE, its leftovers, and the deadline.
 *
 * Facts are gathered elsewhere; here alone they become an outcome, by the rows of the contract's table. The last scan
 * decides whether the job has come back. It may offer a process that only says so: in SETTLE Spark is asked where that
 * one's driver is before the record of the ended driver is given up for it (`suspect`): that must not be lost to a process
 * that turns out to be nobody's.
 */
#include "cancel_internal.h"

#define LEFTOVERS_LOOK_MIN (50 * USEC_PER_MSEC)  /* first look at leftovers; each next one when the time has doubled */
#define TAKEN_DOWN_USEC (50 * USEC_PER_MSEC)     /* until the kernel has taken down a process whose pidfd said its end */
#define SCAN_GRACE_USEC (5 * USEC_PER_SEC)       /* past the deadline, for the last scan */

/* The outcome that the words allow now, for a driver whose process is gone and that did not come back; NONE: more
 * must be known. Follows the rows of the contract's table. */
enum cancel_outcome cancel_outcome_of_gone(const struct cancel *c) {
        if (c->record.dry_run)
                return CANCEL_DRY_RUN; /* it was here */
        if (c->by_record && c->record.word == CANCEL_WORD_ERROR)
                return CANCEL_DRIVER_LOST; /* placed just before our kill, on a Worker that Spark has lost since: it may live */
        if (cancel_we_ended_it(c))
                return CANCEL_CANCELLED;
        switch (c->record.word) {
        case CANCEL_WORD_KILLED:
                return CANCEL_CANCELLED;
        case CANCEL_WORD_FINISHED:
                return CANCEL_ALREADY_DONE;
        case CANCEL_WORD_FAILED:
        case CANCEL_WORD_ERROR:
                return CANCEL_ALREADY_FAILED;
        case CANCEL_WORD_UNKNOWN_ID:
                return c->unknown_answers >= 2 && cancel_was_placed(c) ? CANCEL_DRIVER_LOST : CANCEL_OUTCOME_NONE;
        case CANCEL_WORD_NONE:
        case CANCEL_WORD_SUBMITTED:
        case CANCEL_WORD_RUNNING:
        case CANCEL_WORD_RELAUNCHING:
        case CANCEL_WORD_OTHER:
        case CANCEL_WORD_MAX:
                break;
        }
        return CANCEL_OUTCOME_NONE;
}

/* A supervised driver comes back under a new pid or a new id; until the window is over its end is not the end. */
bool cancel_may_come_back(const struct cancel *c, const struct cancel_config *config, const struct cancel_now *now) {
        uint64_t until = base_usec_add(c->record.ended_usec, config->relaunch_window_usec);
        return c->record.supervised && !c->record.dry_run && now->usec < base_min_u64(until, c->record.deadline_usec);
}

/* ---- leftovers: descendants that outlive the driver. They hinder no outcome, but 2 s are waited for their own end -- */

/* A scan of SETTLE says how many are alive. Most end a moment after the driver (a Python child whose pipe broke), so
 * they are looked at early and often first. */
static void note_leftovers(struct cancel *c, const struct cancel_event *e, const struct cancel_now *now,
                           struct cancel_update *u) {
        uint64_t since = base_usec_sub(now->usec, base_usec_sub(c->leftovers_usec, LEFTOVERS_WAIT_USEC));
        int32_t count;

        c->leftovers = c->record.dry_run ? 0 : e->leftovers;
        c->leftovers_held = c->leftovers > 0 && e->leftovers_held;
        c->leftovers_counted = c->leftovers == 0 || now->usec >= c->leftovers_usec;
        if (!c->leftovers_counted) {
                uint64_t next = now->usec + base_max_u64(since, LEFTOVERS_LOOK_MIN);

                c->scan_usec = base_min_u64(c->scan_usec, base_min_u64(next, c->leftovers_usec));
                return;
        }
        count = (int32_t)base_min_u64(c->leftovers, INT32_MAX);
        if (c->record.leftover_processes != count) {
                c->record.leftover_processes = count;
                u->durable = true;
        }
}

/* The next signal to those that stayed, where the operator allowed it: only after a cancel that ended the driver. What
 * a job that ended by itself leaves behind may be meant to stay. */
static bool signal_leftovers(struct cancel *c, const struct cancel_config *config, enum cancel_outcome outcome,
                             const struct cancel_now *now, struct cancel_update *u) {
        if (!c->leftovers_held || outcome != CANCEL_CANCELLED || c->leftovers_signal >= config->escalation)
                return false;
        u->act |= c->leftovers_signal == CANCEL_ESCALATION_NONE ? CANCEL_ACT_TERM_LEFTOVERS : CANCEL_ACT_FORCE_LEFTOVERS;
        c->leftovers_signal++;
        c->leftovers_counted = false;
        c->leftovers_usec = base_usec_add(now->usec, LEFTOVERS_WAIT_USEC);
        c->scan_usec = now->usec + LEFTOVERS_LOOK_MIN;
        return true;
}

/* May the outcome be concluded, as far as the leftovers go? If not a scan is due that brings it on. */
bool cancel_leftovers_are_settled(struct cancel *c, const struct cancel_config *config, enum cancel_outcome outcome,
                                  const struct cancel_now *now, struct cancel_update *u) {
        return c->leftovers_counted && !signal_leftovers(c, config, outcome, now, u);
}

static void settle_poll(struct cancel *c, uint64_t interval, const struct cancel_now *now) {
        if (!c->asking)
                c->ask_usec = now->usec + interval;
}

/* SETTLE: the process is gone. Is all known that the outcome needs? */
void cancel_settle_evaluate(struct cancel *c, const struct cancel_config *config, const struct cancel_now *now,
                            struct cancel_update *u) {
        bool word_in = c->asked && (cancel_word_is_final(c->record.word) || c->record.word == CANCEL_WORD_UNKNOWN_ID);
        bool waited = now->usec >= base_usec_add(c->record.ended_usec, WORD_WAIT_USEC);
        enum cancel_outcome outcome = cancel_outcome_of_gone(c);

        if (!c->scanned)
                return;
        if (c->killing && !cancel_we_ended_it(c))
                return; /* the answer to our kill is on its way, and it decides who ended the driver */
        if (cancel_may_come_back(c, config, now)) {
                if (c->asked && c->record.word == CANCEL_WORD_RUNNING && waited) { /* in Spark's back-off: kill the id again */
                        c->record.process.pid = 0; /* it still has its Worker, and its turn there */
                        c->record.process.start_ticks = 0;
                        c->record.killed_usec = 0;
                        cancel_set_state(c, u, CANCEL_KILL);
                        cancel_plan_kill(c, u);
                        if (c->placed_here)
                                cancel_want_slot(c, u);
                        else
                                cancel_ask_status(c, u); /* its place was proved before a restart: again */
                        return;
                }
                c->scan_usec = base_min_u64(c->scan_usec, now->usec + POLL_USEC);
                settle_poll(c, POLL_USEC, now);
                return;
        }
        if (c->record.supervised && c->record.word == CANCEL_WORD_RELAUNCHING) {
                cancel_back_to_search(c, config, now, u);
                return;
        }
        if (c->asked && c->record.word == CANCEL_WORD_UNKNOWN_ID && c->unknown_answers >= 2 && !cancel_was_placed(c) &&
            !c->record.dry_run && !cancel_we_ended_it(c)) { /* any job can make up an id that Spark never heard of */
                cancel_back_to_search(c, config, now, u);
                return;
        }
        if (outcome != CANCEL_OUTCOME_NONE && (word_in || (cancel_we_ended_it(c) && waited))) {
                if (cancel_leftovers_are_settled(c, config, outcome, now, u)) {
                        cancel_conclude(c, u, outcome);
                        return;
                }
                if (word_in)
                        return;
        }
        settle_poll(c, cancel_backoff(c->attempts, WORD_RETRY_MIN), now);
        c->attempts++;
}

/* SETTLE: an answer that was waited for has come. When that took long the last scan is made again first: the job may
 * have come back meanwhile. */
void cancel_settle_answered(struct cancel *c, const struct cancel_config *config, const struct cancel_now *now,
                            struct cancel_update *u) {
        if (now->usec < base_usec_add(c->record.ended_usec, WORD_WAIT_USEC)) {
                cancel_settle_evaluate(c, config, now, u);
                return;
        }
        cancel_ask_scan(c, u);
}

/* Until when a scan is waited for that had not come at the deadline; the deadline may have passed while the command
 * was on its way, or while this program did not run. */
uint64_t cancel_last_scan_usec(const struct cancel *c) {
        return base_usec_add(base_max_u64(c->record.deadline_usec, c->since_usec), SCAN_GRACE_USEC);
}

void cancel_deadline_passed(struct cancel *c, const struct cancel_now *now, struct cancel_update *u) {
        const struct cancel_record *r = &c->record;
        enum cancel_outcome outcome;

        switch (r->state) {
        case CANCEL_SEARCH:
                if (c->scanned || now->usec >= cancel_last_scan_usec(c))
                        cancel_finish(c, u, CANCEL_DONE);
                return; /* past at arrival: the scan that was asked for decides */
        case CANCEL_SETTLE:
                if (!c->scanned && now->usec < cancel_last_scan_usec(c)) {
                        cancel_ask_scan(c, u);
                        c->scan_usec = now->usec + POLL_USEC;
                        c->ask_usec = USEC_NEVER; /* its word comes too late */
                        return;
                }
                outcome = c->scanned ? cancel_outcome_of_gone(c) : CANCEL_OUTCOME_NONE;
                if (outcome == CANCEL_OUTCOME_NONE)
                        outcome = r->master_answered ? CANCEL_DEADLINE_EXCEEDED : CANCEL_SPARK_UNREACHABLE;
                cancel_conclude(c, u, outcome);
                return;
        case CANCEL_KILL:
        case CANCEL_WAIT:
        case CANCEL_TERM:
        case CANCEL_FORCE:
                if (c->unproved && now->usec < cancel_last_scan_usec(c))
                        return; /* after a restart: it may have ended meanwhile */
                if (cancel_is_hint(c))
                        cancel_finish(c, u, CANCEL_DONE); /* as in SEARCH */
                else if (!r->master_answered)
                        cancel_conclude(c, u, CANCEL_SPARK_UNREACHABLE);
                else if (c->driver_held && cancel_word_is_final(r->word) && r->word != CANCEL_WORD_ERROR)
                        cancel_conclude(c, u, CANCEL_DRIVER_SURVIVED);
                else
                        cancel_conclude(c, u, CANCEL_DEADLINE_EXCEEDED);
                return;
        case CANCEL_REPORT:
        case CANCEL_QUARANTINE:
        case CANCEL_DONE:
        case CANCEL_STATE_MAX:
                return;
        }
}

/* ---- the last scan ---------------------------------------------------------------------------------------------- */

/* After a restart: the stored end stands, what was seen since must be seen again. */
void cancel_settle_resume(struct cancel *c) {
        c->leftovers_usec = base_usec_add(c->record.ended_usec, LEFTOVERS_WAIT_USEC);
}

/* Its end is not awaited by a pidfd: it is looked at again until Spark has said what it is. */
static void suspect(struct cancel *c, const struct cancel_found *found, const struct cancel_now *now,
                    struct cancel_update *u) {
        c->scan_usec = base_usec_add(now->usec, POLL_USEC);
        if (cancel_same_process(&c->suspect.process, &found->process))
                return;
        c->suspect = *found;
        c->attempts = 0;
        c->asking = false; /* a question about the ended driver is dropped */
        cancel_ask_status(c, u);
}

/* Of three kinds: placed on this node's Worker, it is killed like the first. Placed elsewhere, or an orphan that Spark does
 * not know, it is none of ours. Else it is neither: it may be one, and holds up the outcome until it ends. */
void cancel_settle_suspect(struct cancel *c, const struct cancel_event *e, const struct cancel_now *now,
                           struct cancel_update *u) {
        struct cancel_found found = c->suspect;
        bool known = e->answer == CANCEL_ANSWER_ACCEPTED;

        if (!known && e->answer != CANCEL_ANSWER_UNKNOWN_ID) {
                c->ask_usec = now->usec + cancel_backoff(c->attempts++, ASK_RETRY_MIN);
                return;
        }
        c->attempts = 0;
        if (known && e->here) {
                cancel_begin_kill(c, &found, u);
                return;
        }
        c->unresolved |= known ? !e->elsewhere : !found.orphan;
        c->suspect = (struct cancel_found){ 0 };
        cancel_set_aside(c, &found.process, now, u);
}

/* It came back and there is no time left. */
static void found_too_late(struct cancel *c, const struct cancel_found *found, struct cancel_update *u) {
        cancel_set_driver(c, found->driver_id);
        c->record.process = found->process;
        c->record.escalation = c->signalled = CANCEL_ESCALATION_NONE;
        cancel_conclude(c, u, CANCEL_DEADLINE_EXCEEDED);
}

static void found_in_settle(struct cancel *c, const struct cancel_found *found, const struct cancel_now *now,
                            struct cancel_update *u) {
        c->scanned = false;
        if (now->usec >= c->record.deadline_usec)
                found_too_late(c, found, u);
        else if (cancel_same_process(&found->process, &c->record.process))
                c->scan_usec = now->usec + TAKEN_DOWN_USEC;
        else if (strcmp(found->driver_id, c->record.driver_id) == 0)
                cancel_begin_kill(c, found, u); /* Spark has started it again */
        else
                suspect(c, found, now, u);
}

static bool is_newer(const struct cancel_process *a, const struct cancel_process *b) {
        return a->start_ticks > b->start_ticks || (a->start_ticks == b->start_ticks && a->pid > b->pid);
}

/* Where does the pass stand after this scan? True: at its end. Asking about one after the other takes time, in which
 * others may start, so it ends when its head is still the newest. */
static bool pass_is_over(struct cancel *c, const struct cancel_event *e, struct cancel_update *u) {
        bool found = e->scan == CANCEL_SCAN_PROCESS;

        if (found && is_newer(&e->found.process, &c->head))
                c->head = e->found.process;
        else if (!found || c->passed) {
                c->passed = true;
                if (c->aside.pid == 0)
                        return true;
                c->aside = (struct cancel_process){ 0 };
                cancel_ask_scan(c, u);
        }
        return false;
}

void cancel_settle_scanned(struct cancel *c, const struct cancel_config *config, const struct cancel_event *e,
                           const struct cancel_now *now, struct cancel_update *u) {
        bool over = pass_is_over(c, e, u), unresolved = c->unresolved;

        if (u->ask & CANCEL_ASK_SCAN)
                return;
        if (!over) {
                found_in_settle(c, &e->found, now, u);
                return;
        }
        if (cancel_has_suspect(c)) { /* it has ended; so is the question about it */
                c->suspect = (struct cancel_found){ 0 };
                c->asking = false;
        }
        cancel_pass_begin(c);
        c->scanned = !unresolved;
        if (unresolved)
                c->scan_usec = base_usec_add(now->usec, POLL_USEC);
        note_leftovers(c, e, now, u);
        cancel_settle_evaluate(c, config, now, u);
        if (c->record.state == CANCEL_SETTLE && now->usec >= c->record.deadline_usec)
                cancel_deadline_passed(c, now, u);
}
