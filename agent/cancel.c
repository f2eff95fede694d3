/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The machine of one cancel operation.
 *
 * One switch by event, one function for each event, one helper for each move. Three ideas carry it:
 *
 * - Facts are gathered, conclusions are drawn in one place. Exits, scans and Spark's words only fill the record;
 *   settle_evaluate() and deadline_passed() alone turn them into an outcome, by the contract's table.
 * - The first kill request is counted when the driver is identified (SEARCH → KILL), in the same commit that stores
 *   the command. So a cancel costs one flush before its kill: Spark's status is asked while that commit is under
 *   way, and when the answer names this node's worker nothing more has to be stored. What was counted and not sent
 *   (`kill_planned`) is taken back when the driver is gone first. After a crash between the two it counts as sent:
 *   a crash right after sending looks the same.
 * - Times are absolute on the event clock. Every state before REPORT has the deadline as its last timer, so nothing
 *   waits without a bound.
 */
#include "cancel.h"

#define ASK_RETRY_MIN (200 * USEC_PER_MSEC)  /* no master answered: back-off of status questions and kills */
#define RETRY_USEC_MAX (5 * USEC_PER_SEC)
#define WORD_RETRY_MIN (10 * USEC_PER_MSEC)  /* the master learns of an exit some 10 ms after it (measured) */
#define WORD_WAIT_USEC (1 * USEC_PER_SEC)    /* for Spark's word after an accepted kill */
#define POLL_USEC (1 * USEC_PER_SEC)         /* a driver without a process: status and scan */
#define LEFTOVERS_WAIT_USEC (2 * USEC_PER_SEC)   /* from the driver's end to the count of what it left behind */
#define LEFTOVERS_LOOK_MIN (50 * USEC_PER_MSEC)  /* first look before that; each next one when the time has doubled */
#define SCAN_GRACE_USEC (5 * USEC_PER_SEC)   /* past the deadline, for the last scan */

static void set_state(struct cancel *c, struct cancel_update *u, enum cancel_state state) {
        c->record.state = state;
        u->durable = true;
}

static uint64_t backoff(uint32_t attempts, uint64_t min_usec) {
        uint64_t value = attempts >= 16 ? RETRY_USEC_MAX : min_usec << attempts;
        return base_min_u64(value, RETRY_USEC_MAX);
}

static bool word_is_final(enum cancel_word word) {
        return word == CANCEL_WORD_FINISHED || word == CANCEL_WORD_KILLED || word == CANCEL_WORD_FAILED ||
               word == CANCEL_WORD_ERROR;
}

static bool has_process(const struct cancel *c) {
        return c->record.process.pid > 0;
}

/* The number of kill requests that may have left this node: what was planned and not sent is not among them. */
static uint32_t kills_sent(const struct cancel *c) {
        return c->record.kill_requests - (c->kill_planned ? 1 : 0);
}

/* Only a directory with the id that the command names, and Spark has not placed that driver here: a hint, which
 * answers nothing. */
static bool is_hint(const struct cancel *c) {
        return c->record.state == CANCEL_KILL && !has_process(c) && !c->placed_here && kills_sent(c) == 0;
}

static void ask_status(struct cancel *c, struct cancel_update *u) {
        c->ask_usec = USEC_NEVER;
        if (c->asking)
                return;
        c->asking = true;
        u->ask |= CANCEL_ASK_STATUS;
}

/* In SETTLE nothing is concluded before the answer: a scan that does not come (the disk is stalled, no descriptor is
 * left) must not leave an older one standing. */
static void ask_scan(struct cancel *c, struct cancel_update *u) {
        if (c->record.state == CANCEL_SETTLE)
                c->scanned = false;
        c->scan_usec = USEC_NEVER;
        u->ask |= CANCEL_ASK_SCAN;
}

static void release_driver(struct cancel *c, struct cancel_update *u) {
        if (c->driver_held)
                u->change |= CANCEL_RELEASE;
        c->driver_held = false;
}

static void release_slot(struct cancel *c, struct cancel_update *u) {
        c->wants_slot = false;
        u->change |= CANCEL_SLOT_RELEASED;
}

static void want_slot(struct cancel *c, struct cancel_update *u) {
        c->retry_usec = USEC_NEVER;
        if (c->wants_slot || c->killing)
                return;
        c->wants_slot = true;
        u->change |= CANCEL_SLOT_WANTED;
}

static void plan_kill(struct cancel *c, struct cancel_update *u) {
        if (c->kill_planned)
                return;
        c->kill_planned = true;
        c->record.kill_requests++;
        u->durable = true;
}

static void unplan_kill(struct cancel *c, struct cancel_update *u) {
        if (!c->kill_planned)
                return;
        c->kill_planned = false;
        c->record.kill_requests--;
        u->durable = true;
}

static void stop_timers(struct cancel *c) {
        c->ask_usec = c->scan_usec = c->retry_usec = USEC_NEVER;
}

/* ---- moves ------------------------------------------------------------------------------------------------ */

static void finish(struct cancel *c, struct cancel_update *u, enum cancel_state state) {
        unplan_kill(c, u);
        release_driver(c, u);
        release_slot(c, u);
        stop_timers(c);
        set_state(c, u, state);
}

static void conclude(struct cancel *c, struct cancel_update *u, enum cancel_outcome outcome) {
        finish(c, u, CANCEL_REPORT);
        c->record.outcome = outcome;
        u->act = CANCEL_ACT_REPORT;
}

static void report_progress(struct cancel *c, struct cancel_update *u, enum cancel_outcome progress) {
        if (c->record.progress == progress)
                return;
        c->record.progress = progress;
        u->act |= CANCEL_ACT_PROGRESS;
        u->durable = true;
}

/* Another driver of the job. What Spark was asked about the one before says nothing about it: answers that are still
 * on their way are not believed. */
static void set_driver(struct cancel *c, const char *driver_id) {
        if (strcmp(c->record.driver_id, driver_id) == 0)
                return;
        base_text_copy(c->record.driver_id, sizeof c->record.driver_id, driver_id);
        c->record.word = CANCEL_WORD_NONE;
        c->placed_here = c->asking = c->killing = false;
}

/* escalate_after begins anew: a process that has just come is asked to go through Spark before it is signalled. */
static void hold_process(struct cancel *c, const struct cancel_event *e, struct cancel_update *u) {
        c->record.process = e->process;
        c->record.supervised = e->supervised;
        c->record.answered_usec = 0;
        c->orphan = e->orphan;
        c->driver_held = true;
        u->change |= CANCEL_HOLD;
}

/* To KILL for a driver that has just been identified. Spark must confirm its place before the first kill. */
static void begin_kill(struct cancel *c, const struct cancel_event *e, struct cancel_update *u) {
        set_driver(c, e->driver_id);
        stop_timers(c);
        c->attempts = c->unknown_answers = 0;
        c->refused_usec = 0;
        c->record.ended_usec = c->record.ended_real_usec = 0;
        c->record.leftover_processes = 0;
        c->record.killed_usec = 0; /* the kill before, if there was one, is over */
        if (e->scan == CANCEL_SCAN_PROCESS)
                hold_process(c, e, u);
        else
                c->record.process = (struct cancel_process){ 0 };
        c->orphan = e->orphan;
        set_state(c, u, CANCEL_KILL);
        if (!c->record.dry_run)
                plan_kill(c, u);
        ask_status(c, u);
}

static void begin_settle(struct cancel *c, const struct cancel_now *now, struct cancel_update *u) {
        unplan_kill(c, u);
        release_driver(c, u);
        release_slot(c, u);
        stop_timers(c);
        c->record.ended_usec = now->usec;
        c->record.ended_real_usec = now->real_usec;
        c->record.leftover_processes = 0;
        c->scanned = c->asked = c->leftovers_counted = false;
        c->leftovers = 0;
        c->leftovers_held = false;
        c->leftovers_usec = base_usec_add(now->usec, LEFTOVERS_WAIT_USEC);
        c->leftovers_signal = CANCEL_ESCALATION_NONE;
        c->attempts = c->unknown_answers = 0;
        c->unknown_usec = 0;
        set_state(c, u, CANCEL_SETTLE);
        ask_scan(c, u);
        ask_status(c, u);
}

/* The process belongs to a driver that Spark places on another node, or that is none of ours: not found. */
static void back_to_search(struct cancel *c, const struct cancel_config *config, const struct cancel_now *now,
                           struct cancel_update *u) {
        unplan_kill(c, u);
        release_driver(c, u);
        release_slot(c, u);
        stop_timers(c);
        c->record.process = (struct cancel_process){ 0 };
        c->record.driver_id[0] = 0;
        c->record.word = CANCEL_WORD_NONE;
        c->record.supervised = false;
        c->placed_here = false;
        c->scanned = true;
        set_state(c, u, CANCEL_SEARCH);
        report_progress(c, u, CANCEL_NOT_ON_NODE);
        c->scan_usec = base_usec_add(now->usec, config->search_interval_usec);
}

/* ---- outcomes ---------------------------------------------------------------------------------------------- */

/* Has Spark ever placed this driver here? A kill request goes out only after that. */
static bool was_placed(const struct cancel *c) {
        return c->placed_here || kills_sent(c) > 0;
}

static bool we_ended_it(const struct cancel *c) {
        return c->record.accepted_usec != 0 || c->record.escalation != CANCEL_ESCALATION_NONE;
}

/* The outcome that the words allow now, for a driver whose process is gone and that did not come back; NONE: more
 * must be known. Follows the rows of the contract's table. */
static enum cancel_outcome outcome_of_gone(const struct cancel *c) {
        if (c->record.dry_run)
                return CANCEL_DRY_RUN; /* it was here */
        if (we_ended_it(c))
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
                return c->unknown_answers >= 2 && was_placed(c) ? CANCEL_DRIVER_LOST : CANCEL_OUTCOME_NONE;
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
static bool may_come_back(const struct cancel *c, const struct cancel_config *config, const struct cancel_now *now) {
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
static bool leftovers_are_settled(struct cancel *c, const struct cancel_config *config, enum cancel_outcome outcome,
                                  const struct cancel_now *now, struct cancel_update *u) {
        return c->leftovers_counted && !signal_leftovers(c, config, outcome, now, u);
}

static void settle_poll(struct cancel *c, uint64_t interval, const struct cancel_now *now) {
        if (!c->asking)
                c->ask_usec = now->usec + interval;
}

/* SETTLE: the process is gone. Is all known that the outcome needs? */
static void settle_evaluate(struct cancel *c, const struct cancel_config *config, const struct cancel_now *now,
                            struct cancel_update *u) {
        bool word_in = c->asked && (word_is_final(c->record.word) || c->record.word == CANCEL_WORD_UNKNOWN_ID);
        bool waited = now->usec >= base_usec_add(c->record.ended_usec, WORD_WAIT_USEC);
        enum cancel_outcome outcome = outcome_of_gone(c);

        if (!c->scanned)
                return;
        if (c->killing && !we_ended_it(c))
                return; /* the answer to our kill is on its way, and it decides who ended the driver */
        if (may_come_back(c, config, now)) {
                if (c->asked && c->record.word == CANCEL_WORD_RUNNING && waited) { /* in Spark's back-off: kill the id again */
                        c->record.process.pid = 0; /* it still has its Worker, and its turn there */
                        c->record.process.start_ticks = 0;
                        c->record.killed_usec = 0;
                        set_state(c, u, CANCEL_KILL);
                        plan_kill(c, u);
                        if (c->placed_here)
                                want_slot(c, u);
                        else
                                ask_status(c, u); /* its place was proved before a restart: again */
                        return;
                }
                c->scan_usec = base_min_u64(c->scan_usec, now->usec + POLL_USEC);
                settle_poll(c, POLL_USEC, now);
                return;
        }
        if (c->record.supervised && c->record.word == CANCEL_WORD_RELAUNCHING) {
                back_to_search(c, config, now, u);
                return;
        }
        if (c->asked && c->record.word == CANCEL_WORD_UNKNOWN_ID && c->unknown_answers >= 2 && !was_placed(c) &&
            !c->record.dry_run && !we_ended_it(c)) { /* any job can make up an id that Spark never heard of */
                back_to_search(c, config, now, u);
                return;
        }
        if (outcome != CANCEL_OUTCOME_NONE && (word_in || (we_ended_it(c) && waited))) {
                if (leftovers_are_settled(c, config, outcome, now, u)) {
                        conclude(c, u, outcome);
                        return;
                }
                if (word_in)
                        return;
        }
        settle_poll(c, backoff(c->attempts, WORD_RETRY_MIN), now);
        c->attempts++;
}

/* SETTLE: an answer that was waited for has come. When that took long the last scan is made again first: the job may
 * have come back meanwhile. */
static void settle_answered(struct cancel *c, const struct cancel_config *config, const struct cancel_now *now,
                            struct cancel_update *u) {
        if (now->usec < base_usec_add(c->record.ended_usec, WORD_WAIT_USEC)) {
                settle_evaluate(c, config, now, u);
                return;
        }
        ask_scan(c, u);
}

/* Until when a scan is waited for that had not come at the deadline; the deadline may have passed while the command
 * was on its way, or while this program did not run. */
static uint64_t last_scan_usec(const struct cancel *c) {
        return base_usec_add(base_max_u64(c->record.deadline_usec, c->since_usec), SCAN_GRACE_USEC);
}

static void deadline_passed(struct cancel *c, const struct cancel_now *now, struct cancel_update *u) {
        const struct cancel_record *r = &c->record;
        enum cancel_outcome outcome;

        switch (r->state) {
        case CANCEL_SEARCH:
                if (c->scanned || now->usec >= last_scan_usec(c))
                        finish(c, u, CANCEL_DONE);
                return; /* past at arrival: the scan that was asked for decides */
        case CANCEL_SETTLE:
                if (!c->scanned && now->usec < last_scan_usec(c)) {
                        ask_scan(c, u);
                        c->scan_usec = now->usec + POLL_USEC;
                        c->ask_usec = USEC_NEVER; /* its word comes too late */
                        return;
                }
                outcome = c->scanned ? outcome_of_gone(c) : CANCEL_OUTCOME_NONE;
                if (outcome == CANCEL_OUTCOME_NONE)
                        outcome = r->master_answered ? CANCEL_DEADLINE_EXCEEDED : CANCEL_SPARK_UNREACHABLE;
                conclude(c, u, outcome);
                return;
        case CANCEL_KILL:
        case CANCEL_WAIT:
        case CANCEL_TERM:
        case CANCEL_FORCE:
                if (c->unproved && now->usec < last_scan_usec(c))
                        return; /* after a restart: it may have ended meanwhile */
                if (is_hint(c))
                        finish(c, u, CANCEL_DONE); /* as in SEARCH */
                else if (!r->master_answered)
                        conclude(c, u, CANCEL_SPARK_UNREACHABLE);
                else if (c->driver_held && word_is_final(r->word) && r->word != CANCEL_WORD_ERROR)
                        conclude(c, u, CANCEL_DRIVER_SURVIVED);
                else
                        conclude(c, u, CANCEL_DEADLINE_EXCEEDED);
                return;
        case CANCEL_REPORT:
        case CANCEL_QUARANTINE:
        case CANCEL_DONE:
        case CANCEL_STATE_MAX:
                return;
        }
}

/* ---- escalation: local signals, only where the operator allowed them ------------------------------------------ */

static bool may_signal(const struct cancel *c, const struct cancel_config *config) {
        return config->escalation != CANCEL_ESCALATION_NONE && c->driver_held && !c->record.dry_run &&
               (!c->orphan || c->placed_here);
}

static uint64_t escalation_usec(const struct cancel *c, const struct cancel_config *config) {
        if (!may_signal(c, config) || c->record.answered_usec == 0)
                return USEC_NEVER;
        if (c->record.state != CANCEL_KILL && c->record.state != CANCEL_WAIT)
                return USEC_NEVER;
        return base_usec_add(c->record.answered_usec, config->escalate_after_usec);
}

static void begin_term(struct cancel *c, const struct cancel_config *config, const struct cancel_now *now,
                       struct cancel_update *u) {
        unplan_kill(c, u);
        release_slot(c, u);
        stop_timers(c);
        c->record.escalation = CANCEL_ESCALATION_SIGTERM;
        set_state(c, u, CANCEL_TERM);
        u->act |= CANCEL_ACT_TERM;
        if (config->escalation == CANCEL_ESCALATION_SIGKILL)
                c->retry_usec = base_usec_add(now->usec, config->force_after_usec);
}

static void begin_force(struct cancel *c, struct cancel_update *u) {
        c->retry_usec = USEC_NEVER;
        c->record.escalation = CANCEL_ESCALATION_SIGKILL;
        set_state(c, u, CANCEL_FORCE);
        u->act |= CANCEL_ACT_FORCE;
}

/* ---- events ------------------------------------------------------------------------------------------------- */

static void on_command(struct cancel *c, struct cancel_update *u) {
        u->durable = true;
        if (c->invalid) {
                conclude(c, u, CANCEL_INVALID_COMMAND);
                return;
        }
        ask_scan(c, u);
}

static void on_duplicate(const struct cancel *c, struct cancel_update *u) {
        bool final = c->record.state == CANCEL_REPORT || c->record.state == CANCEL_DONE;

        if (final && c->record.outcome != CANCEL_OUTCOME_NONE)
                u->act |= CANCEL_ACT_RESEND;
}

static void on_withdrawn(struct cancel *c, struct cancel_update *u) {
        if (c->record.withdrawn || c->record.state == CANCEL_DONE)
                return;
        c->record.withdrawn = true;
        u->durable = true;
        if (c->record.state == CANCEL_SEARCH || (c->record.state == CANCEL_KILL && kills_sent(c) == 0) ||
            (c->record.state == CANCEL_SETTLE && kills_sent(c) == 0 && !we_ended_it(c)))
                finish(c, u, CANCEL_DONE);
}

static void on_restarted(struct cancel *c, const struct cancel_event *e, const struct cancel_now *now,
                         struct cancel_update *u) {
        struct cancel_record record = c->record;

        *c = (struct cancel){ .record = record, .since_usec = now->usec };
        stop_timers(c);
        switch (record.state) {
        case CANCEL_SEARCH:
                ask_scan(c, u);
                return;
        case CANCEL_KILL:
        case CANCEL_WAIT:
        case CANCEL_TERM:
        case CANCEL_FORCE:
                if (has_process(c) && !e->same_boot)
                        begin_settle(c, now, u); /* the machine was started anew: the process is gone */
                else
                        ask_scan(c, u);
                c->unproved = record.state == c->record.state;
                return;
        case CANCEL_SETTLE:
                c->leftovers_usec = base_usec_add(record.ended_usec, LEFTOVERS_WAIT_USEC);
                ask_scan(c, u);
                ask_status(c, u);
                return;
        case CANCEL_REPORT:
                u->act |= CANCEL_ACT_RESEND;
                return;
        case CANCEL_QUARANTINE:
        case CANCEL_DONE:
        case CANCEL_STATE_MAX:
                return;
        }
}

/* What a state does next once its process is (again) proved alive and held, or known to have none. */
static void resume(struct cancel *c, const struct cancel_config *config, const struct cancel_now *now,
                   struct cancel_update *u) {
        switch (c->record.state) {
        case CANCEL_KILL:
                ask_status(c, u);
                return;
        case CANCEL_WAIT:
                c->retry_usec = base_max_u64(now->usec, base_usec_add(c->record.killed_usec, config->kill_retry_usec));
                if (!has_process(c) && c->ask_usec == USEC_NEVER) /* else it is asked at its own pace */
                        ask_status(c, u);
                return;
        case CANCEL_TERM: /* a signal that was stored may not have been sent: sending it again is harmless */
                u->act |= CANCEL_ACT_TERM;
                if (config->escalation == CANCEL_ESCALATION_SIGKILL)
                        c->retry_usec = base_usec_add(now->usec, config->force_after_usec);
                return;
        case CANCEL_FORCE:
                u->act |= CANCEL_ACT_FORCE;
                return;
        case CANCEL_SEARCH:
        case CANCEL_SETTLE:
        case CANCEL_REPORT:
        case CANCEL_QUARANTINE:
        case CANCEL_DONE:
        case CANCEL_STATE_MAX:
                return;
        }
}

static void scanned_in_search(struct cancel *c, const struct cancel_config *config, const struct cancel_event *e,
                              const struct cancel_now *now, struct cancel_update *u) {
        c->scanned = true;
        if (now->usec >= c->record.deadline_usec) {
                if (e->scan == CANCEL_SCAN_PROCESS) { /* past at arrival: no kill */
                        base_text_copy(c->record.driver_id, sizeof c->record.driver_id, e->driver_id);
                        c->record.process = e->process;
                        conclude(c, u, CANCEL_DEADLINE_EXCEEDED);
                } else {
                        finish(c, u, CANCEL_DONE);
                }
                return;
        }
        if (e->scan != CANCEL_SCAN_NONE) {
                begin_kill(c, e, u);
                return;
        }
        if (c->record.progress == CANCEL_OUTCOME_NONE)
                report_progress(c, u, CANCEL_NOT_ON_NODE);
        /* On a common grid, so that all who search share one wake-up and one scan. */
        c->scan_usec = (now->usec / config->search_interval_usec + 1) * config->search_interval_usec;
}

static bool same_worker(const struct cancel_process *a, const struct cancel_process *b) {
        return a->worker_pid == b->worker_pid && a->worker_start_ticks == b->worker_start_ticks;
}

/* KILL, WAIT, TERM, FORCE: prove the stored process anew, or meet the process of a driver known by its directory. */
static void scanned_in_kill(struct cancel *c, const struct cancel_config *config, const struct cancel_event *e,
                            const struct cancel_now *now, struct cancel_update *u) {
        if (c->driver_held)
                return;
        if (has_process(c)) {
                if (!e->process_alive) {
                        begin_settle(c, now, u);
                        return;
                }
                c->driver_held = true;
                u->change |= CANCEL_HOLD;
        } else if (e->scan == CANCEL_SCAN_PROCESS && strcmp(c->record.driver_id, e->driver_id) != 0) {
                release_slot(c, u); /* the process counts, not the id that the command named: no kill was sent for it */
                begin_kill(c, e, u);
                return;
        } else if (e->scan == CANCEL_SCAN_PROCESS) {
                if (c->wants_slot && !same_worker(&c->record.process, &e->process))
                        release_slot(c, u); /* its turn is at the Worker of this process */
                hold_process(c, e, u);
                u->durable = true;
        }
        if (now->usec >= c->record.deadline_usec)
                deadline_passed(c, now, u);
        else
                resume(c, config, now, u);
}

static bool same_process(const struct cancel_process *a, const struct cancel_process *b) {
        return a->pid == b->pid && a->start_ticks == b->start_ticks;
}

static void scanned_in_settle(struct cancel *c, const struct cancel_config *config, const struct cancel_event *e,
                              const struct cancel_now *now, struct cancel_update *u) {
        if (e->scan == CANCEL_SCAN_PROCESS) {
                if (now->usec >= c->record.deadline_usec) { /* it came back and there is no time left */
                        conclude(c, u, CANCEL_DEADLINE_EXCEEDED);
                } else if (same_process(&e->process, &c->record.process)) {
                        c->scan_usec = now->usec + 50 * USEC_PER_MSEC; /* the kernel is still taking it down */
                } else {
                        begin_kill(c, e, u);
                }
                return;
        }
        c->scanned = true;
        note_leftovers(c, e, now, u);
        settle_evaluate(c, config, now, u);
        if (c->record.state == CANCEL_SETTLE && now->usec >= c->record.deadline_usec)
                deadline_passed(c, now, u);
}

static void on_scanned(struct cancel *c, const struct cancel_config *config, const struct cancel_event *e,
                       const struct cancel_now *now, struct cancel_update *u) {
        c->unproved = false;
        switch (c->record.state) {
        case CANCEL_SEARCH:
                scanned_in_search(c, config, e, now, u);
                return;
        case CANCEL_KILL:
        case CANCEL_WAIT:
        case CANCEL_TERM:
        case CANCEL_FORCE:
                scanned_in_kill(c, config, e, now, u);
                return;
        case CANCEL_SETTLE:
                scanned_in_settle(c, config, e, now, u);
                return;
        case CANCEL_REPORT:
        case CANCEL_QUARANTINE:
        case CANCEL_DONE:
        case CANCEL_STATE_MAX:
                return;
        }
}

static void on_exited(struct cancel *c, const struct cancel_now *now, struct cancel_update *u) {
        if (!c->driver_held)
                return;
        begin_settle(c, now, u);
}

static void note_master(struct cancel *c) {
        c->attempts = 0;
        c->refused_usec = 0;
        c->record.master_answered = true; /* stored with what comes next: a flush of its own would hold up the kill */
}

/* Spark's word. A final one is not overwritten by "unknown id": the master may have trimmed its list. */
static void note_word(struct cancel *c, enum cancel_word word) {
        if (word == CANCEL_WORD_UNKNOWN_ID && word_is_final(c->record.word))
                return;
        c->record.word = word;
}

static void note_unknown(struct cancel *c, const struct cancel_config *config, const struct cancel_now *now) {
        note_word(c, CANCEL_WORD_UNKNOWN_ID);
        if (c->unknown_answers > 0 && now->usec < base_usec_add(c->unknown_usec, config->kill_retry_usec))
                return;
        c->unknown_answers++;
        c->unknown_usec = now->usec;
}

/* Every master refused for good. Believed after rounds spread over twice kill_retry. True: concluded. */
static bool note_refused(struct cancel *c, const struct cancel_config *config, const struct cancel_event *e,
                         const struct cancel_now *now, struct cancel_update *u) {
        if (e->answer == CANCEL_ANSWER_REFUSED_AUTH && !c->record.refused_auth) {
                c->record.refused_auth = true;
                u->durable = true;
        }
        if (c->refused_usec == 0)
                c->refused_usec = now->usec;
        if (c->record.state == CANCEL_WAIT || is_hint(c))
                return false; /* a kill was accepted: its end is waited for; or nothing is known to be here */
        if (now->usec < base_usec_add(c->refused_usec, 2 * config->kill_retry_usec))
                return false;
        if (c->record.state == CANCEL_SETTLE && (!c->scanned || may_come_back(c, config, now)))
                return false;
        if (may_signal(c, config))
                begin_term(c, config, now, u);
        else if (c->record.state == CANCEL_SETTLE && !leftovers_are_settled(c, config, outcome_of_gone(c), now, u))
                return false;
        else if (c->record.state == CANCEL_SETTLE && outcome_of_gone(c) != CANCEL_OUTCOME_NONE)
                conclude(c, u, outcome_of_gone(c));
        else
                conclude(c, u, CANCEL_SPARK_REFUSED);
        return true;
}

/* No ALIVE master answered: again, with back-off. */
static void note_no_master(struct cancel *c, const struct cancel_now *now, struct cancel_update *u) {
        c->attempts++;
        if (c->record.answered_usec == 0) {
                c->record.answered_usec = now->usec;
                u->durable = true;
        }
}

static void status_in_kill(struct cancel *c, const struct cancel_config *config, const struct cancel_event *e,
                           const struct cancel_now *now, struct cancel_update *u) {
        if (e->elsewhere && kills_sent(c) == 0) {
                back_to_search(c, config, now, u);
                return;
        }
        if (!e->here) { /* known, but on no worker yet */
                c->ask_usec = now->usec + POLL_USEC;
                return;
        }
        c->placed_here = true;
        if (c->record.dry_run) {
                conclude(c, u, CANCEL_DRY_RUN);
                return;
        }
        if (!has_process(c) && word_is_final(e->word)) {
                begin_settle(c, now, u);
                return;
        }
        if (c->retry_usec == USEC_NEVER)
                want_slot(c, u);
}

static void status_in_wait(struct cancel *c, const struct cancel_event *e, const struct cancel_now *now,
                           struct cancel_update *u) {
        if (has_process(c))
                return; /* the pidfd tells the end */
        if (word_is_final(e->word)) {
                begin_settle(c, now, u);
                return;
        }
        c->ask_usec = now->usec + POLL_USEC;
        ask_scan(c, u);
}

static void status_known(struct cancel *c, const struct cancel_config *config, const struct cancel_event *e,
                         const struct cancel_now *now, struct cancel_update *u) {
        note_master(c);
        note_word(c, e->word);
        c->unknown_answers = 0;
        switch (c->record.state) {
        case CANCEL_KILL:
                status_in_kill(c, config, e, now, u);
                return;
        case CANCEL_WAIT:
                status_in_wait(c, e, now, u);
                return;
        case CANCEL_SETTLE:
                c->asked = true;
                settle_answered(c, config, now, u);
                return;
        case CANCEL_SEARCH:
        case CANCEL_TERM:
        case CANCEL_FORCE:
        case CANCEL_REPORT:
        case CANCEL_QUARANTINE:
        case CANCEL_DONE:
        case CANCEL_STATE_MAX:
                return;
        }
}

static void status_unknown(struct cancel *c, const struct cancel_config *config, const struct cancel_now *now,
                           struct cancel_update *u) {
        note_master(c);
        note_unknown(c, config, now);
        if (c->record.state == CANCEL_SETTLE) {
                c->asked = true;
                c->attempts = 8; /* it will not be known a moment later: ask at the slow pace */
                settle_answered(c, config, now, u);
                return;
        }
        if (c->record.state == CANCEL_KILL && c->orphan && !was_placed(c)) {
                back_to_search(c, config, now, u); /* neither a Worker nor Spark vouches for it */
                return;
        }
        c->ask_usec = now->usec + RETRY_USEC_MAX; /* no ALIVE master knows the driver: no kill goes out */
}

static bool is_working(enum cancel_state state) {
        return state == CANCEL_KILL || state == CANCEL_WAIT || state == CANCEL_TERM || state == CANCEL_FORCE ||
               state == CANCEL_SETTLE;
}

static void on_status(struct cancel *c, const struct cancel_config *config, const struct cancel_event *e,
                      const struct cancel_now *now, struct cancel_update *u) {
        if (!is_working(c->record.state) || !c->asking)
                return;
        c->asking = false;
        if (c->record.state == CANCEL_TERM || c->record.state == CANCEL_FORCE) {
                if (e->answer == CANCEL_ANSWER_ACCEPTED || e->answer == CANCEL_ANSWER_UNKNOWN_ID)
                        note_master(c);
                return; /* past asking: the pidfd or the deadline ends these */
        }
        if (c->record.state == CANCEL_KILL && !c->killing && !c->wants_slot &&
            now->usec >= base_usec_add(c->record.killed_usec, config->kill_retry_usec))
                release_slot(c, u); /* held since a restart for a kill that is over */
        switch (e->answer) {
        case CANCEL_ANSWER_ACCEPTED:
                status_known(c, config, e, now, u);
                return;
        case CANCEL_ANSWER_UNKNOWN_ID:
                status_unknown(c, config, now, u);
                return;
        case CANCEL_ANSWER_REFUSED:
        case CANCEL_ANSWER_REFUSED_AUTH:
                if (note_refused(c, config, e, now, u))
                        return;
                break;
        case CANCEL_ANSWER_NOT_ALIVE:
        case CANCEL_ANSWER_UNREACHABLE:
                c->refused_usec = 0;
                break;
        case CANCEL_ANSWER_MAX:
                return;
        }
        if (c->record.state != CANCEL_SETTLE)
                note_no_master(c, now, u);
        else
                c->attempts++;
        c->ask_usec = now->usec + backoff(c->attempts - 1, ASK_RETRY_MIN);
        if (c->record.state == CANCEL_SETTLE && we_ended_it(c))
                settle_evaluate(c, config, now, u);
}

static void kill_accepted(struct cancel *c, const struct cancel_config *config, const struct cancel_now *now,
                          struct cancel_update *u) {
        note_master(c);
        if (c->record.accepted_usec == 0) {
                c->record.accepted_usec = now->usec;
                c->record.accepted_real_usec = now->real_usec;
                u->durable = true;
        }
        if (c->record.state == CANCEL_SETTLE) {
                settle_answered(c, config, now, u);
                return;
        }
        if (c->record.state != CANCEL_KILL)
                return;
        set_state(c, u, CANCEL_WAIT);
        c->retry_usec = base_usec_add(c->record.killed_usec, config->kill_retry_usec);
        if (!has_process(c))
                c->ask_usec = now->usec + WORD_RETRY_MIN;
}

/* "already finished or does not exist" proves nothing while the process lives: scan, ask, and kill again later. */
static void kill_unknown(struct cancel *c, const struct cancel_config *config, const struct cancel_now *now,
                         struct cancel_update *u) {
        note_master(c);
        if (c->record.state == CANCEL_SETTLE)
                settle_answered(c, config, now, u);
        if (c->record.state != CANCEL_KILL)
                return;
        release_slot(c, u);
        c->record.killed_usec = 0; /* nothing is outstanding, also for a restart */
        u->durable = true;
        c->retry_usec = base_usec_add(now->usec, config->kill_retry_usec);
        ask_scan(c, u);
        ask_status(c, u);
}

static void on_kill_answered(struct cancel *c, const struct cancel_config *config, const struct cancel_event *e,
                             const struct cancel_now *now, struct cancel_update *u) {
        if (!is_working(c->record.state) || !c->killing)
                return;
        c->killing = false;
        if (e->asked != 1) { /* one was counted before it went out */
                c->record.kill_requests = c->record.kill_requests - 1 + e->asked;
                u->durable = true;
        }
        if (c->record.state != CANCEL_SETTLE)
                report_progress(c, u, CANCEL_IN_PROGRESS);
        if (c->record.answered_usec == 0) {
                c->record.answered_usec = now->usec;
                u->durable = true;
        }
        switch (e->answer) {
        case CANCEL_ANSWER_ACCEPTED:
                kill_accepted(c, config, now, u);
                return;
        case CANCEL_ANSWER_UNKNOWN_ID:
                kill_unknown(c, config, now, u);
                return;
        case CANCEL_ANSWER_REFUSED:
        case CANCEL_ANSWER_REFUSED_AUTH:
                if (c->record.state == CANCEL_KILL && note_refused(c, config, e, now, u))
                        return;
                break;
        case CANCEL_ANSWER_NOT_ALIVE:
        case CANCEL_ANSWER_UNREACHABLE:
                c->refused_usec = 0;
                break;
        case CANCEL_ANSWER_MAX:
                return;
        }
        if (c->record.state == CANCEL_SETTLE)
                settle_answered(c, config, now, u);
        if (c->record.state != CANCEL_KILL)
                return;
        c->attempts++;
        c->retry_usec = now->usec + backoff(c->attempts - 1, ASK_RETRY_MIN);
        /* A refusal and a standby did not pass it on; after silence it may be under way, until kill_retry is over. */
        if (e->answer == CANCEL_ANSWER_UNREACHABLE && now->usec < base_usec_add(c->record.killed_usec, config->kill_retry_usec))
                return;
        release_slot(c, u);
        c->record.killed_usec = 0; /* nothing is outstanding, also for a restart */
        u->durable = true;
}

static void on_slot(struct cancel *c, const struct cancel_now *now, struct cancel_update *u) {
        if (c->record.state != CANCEL_KILL || !c->wants_slot || !c->placed_here) {
                release_slot(c, u);
                return;
        }
        c->wants_slot = false;
        plan_kill(c, u); /* nothing to store when it was counted before */
        c->kill_planned = false;
        c->killing = true;
        c->record.killed_usec = now->usec;
        u->act |= CANCEL_ACT_KILL;
}

static void on_timer(struct cancel *c, const struct cancel_config *config, const struct cancel_now *now,
                     struct cancel_update *u) {
        if (!is_working(c->record.state) && c->record.state != CANCEL_SEARCH)
                return;
        if (now->usec >= c->record.deadline_usec) {
                deadline_passed(c, now, u);
                return;
        }
        if (now->usec >= escalation_usec(c, config)) {
                begin_term(c, config, now, u);
                return;
        }
        if (now->usec >= c->retry_usec) {
                c->retry_usec = USEC_NEVER;
                if (c->record.state == CANCEL_TERM) {
                        begin_force(c, u);
                        return;
                }
                if (c->record.state == CANCEL_WAIT) { /* a lost kill: the master never repeats one */
                        set_state(c, u, CANCEL_KILL);
                        u->change |= CANCEL_SLOT_RELEASED;
                }
                if (c->record.state == CANCEL_KILL) {
                        if (c->placed_here)
                                want_slot(c, u);
                        else
                                ask_status(c, u);
                }
        }
        if (now->usec >= c->scan_usec)
                ask_scan(c, u);
        if (now->usec >= c->ask_usec) {
                if (c->record.state == CANCEL_KILL && !has_process(c))
                        ask_scan(c, u); /* it may be starting, or run under another id */
                ask_status(c, u);
        }
        if (c->record.state == CANCEL_SETTLE)
                settle_evaluate(c, config, now, u);
}

static void on_report_answered(struct cancel *c, const struct cancel_event *e, struct cancel_update *u) {
        if (c->record.state != CANCEL_REPORT)
                return;
        set_state(c, u, e->accepted ? CANCEL_DONE : CANCEL_QUARANTINE);
}

static void on_retry(struct cancel *c, struct cancel_update *u) {
        if (c->record.state != CANCEL_QUARANTINE)
                return;
        set_state(c, u, CANCEL_REPORT);
        u->act |= CANCEL_ACT_RESEND;
}

/* The next time at which something must be looked at: the earliest of the operation's own timers. */
static uint64_t next_wake(const struct cancel *c, const struct cancel_config *config, const struct cancel_now *now) {
        uint64_t wake, deadline = c->record.deadline_usec;

        if (!is_working(c->record.state) && c->record.state != CANCEL_SEARCH)
                return USEC_NEVER;
        wake = base_min_u64(c->ask_usec, base_min_u64(c->scan_usec, c->retry_usec));
        wake = base_min_u64(wake, escalation_usec(c, config));
        if (c->record.state == CANCEL_SETTLE && c->scanned && we_ended_it(c) && !c->record.supervised && c->leftovers == 0)
                wake = base_min_u64(wake, base_usec_add(c->record.ended_usec, WORD_WAIT_USEC));
        if (now->usec >= deadline && (c->unproved || ((c->record.state == CANCEL_SETTLE || c->record.state == CANCEL_SEARCH) &&
                                                      !c->scanned)))
                deadline = last_scan_usec(c);
        return base_min_u64(wake, deadline);
}

/* ---- public ---------------------------------------------------------------------------------------------------- */

void cancel_begin(struct cancel *cancel, const struct cancel_now *now, uint64_t deadline_usec, bool dry_run,
                  bool invalid, const char *command_driver_id) {
        uint64_t left = base_usec_sub(deadline_usec, now->usec);

        *cancel = (struct cancel){ 0 };
        stop_timers(cancel);
        cancel->record.state = CANCEL_SEARCH;
        cancel->invalid = invalid;
        cancel->record.dry_run = dry_run;
        cancel->record.received_usec = cancel->since_usec = now->usec;
        cancel->record.received_real_usec = now->real_usec;
        cancel->record.deadline_usec = deadline_usec;
        cancel->record.deadline_real_usec = base_usec_add(now->real_usec, left);
        base_text_copy(cancel->record.command_driver_id, sizeof cancel->record.command_driver_id, command_driver_id);
}

void cancel_step(struct cancel *cancel, const struct cancel_config *config, const struct cancel_event *event,
                 const struct cancel_now *now, struct cancel_update *ret_update) {
        *ret_update = (struct cancel_update){ .wake_usec = USEC_NEVER };

        switch (event->type) {
        case CANCEL_EVENT_COMMAND:
                on_command(cancel, ret_update);
                break;
        case CANCEL_EVENT_DUPLICATE:
                on_duplicate(cancel, ret_update);
                break;
        case CANCEL_EVENT_WITHDRAWN:
                on_withdrawn(cancel, ret_update);
                break;
        case CANCEL_EVENT_RESTARTED:
                on_restarted(cancel, event, now, ret_update);
                break;
        case CANCEL_EVENT_SCANNED:
                on_scanned(cancel, config, event, now, ret_update);
                break;
        case CANCEL_EVENT_EXITED:
                on_exited(cancel, now, ret_update);
                break;
        case CANCEL_EVENT_STATUS:
                on_status(cancel, config, event, now, ret_update);
                break;
        case CANCEL_EVENT_KILL_ANSWERED:
                on_kill_answered(cancel, config, event, now, ret_update);
                break;
        case CANCEL_EVENT_SLOT:
                on_slot(cancel, now, ret_update);
                break;
        case CANCEL_EVENT_TIMER:
                on_timer(cancel, config, now, ret_update);
                break;
        case CANCEL_EVENT_REPORT_ANSWERED:
                on_report_answered(cancel, event, ret_update);
                break;
        case CANCEL_EVENT_RETRY:
                on_retry(cancel, ret_update);
                break;
        case CANCEL_EVENT_TYPE_MAX:
                break;
        }
        ret_update->wake_usec = next_wake(cancel, config, now);
}
