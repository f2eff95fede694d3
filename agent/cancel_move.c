/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The moves of the machine, and the small steps that they are made of.
 *
 * What a record counts it counts before it happens: a kill request (`kill_requests`, with `kill_planned` until it has
 * left), a signal (`escalation`, with `signalled` as what is known to be sent). Whoever leaves a state takes back what
 * has not happened; after a crash it counts as done, since a crash right after doing it looks the same.
 *
 * A record speaks of one driver at a time. An accepted kill is about a driver id, a signal about a process: another
 * driver of the same job starts without both, or its own end would be called ours. The report's message names the
 * drivers before it.
 */
#include "cancel_internal.h"

#define ASIDES_AT_ONCE 16                     /* processes that are set aside one right after the other */
#define ASIDE_WAIT_USEC (100 * USEC_PER_MSEC) /* before the next one, beyond these */

void cancel_set_state(struct cancel *c, struct cancel_update *u, enum cancel_state state) {
        c->record.state = state;
        u->durable = true;
}

void cancel_stop_timers(struct cancel *c) {
        c->ask_usec = c->scan_usec = c->retry_usec = c->force_usec = USEC_NEVER;
}

/* ---- questions -------------------------------------------------------------------------------------------------- */

void cancel_ask_status(struct cancel *c, struct cancel_update *u) {
        c->ask_usec = USEC_NEVER;
        if (c->asking)
                return;
        c->asking = true;
        u->ask |= CANCEL_ASK_STATUS;
}

/* In SETTLE nothing is concluded before the answer: a scan that does not come (the disk is stalled, no descriptor is
 * left) must not leave an older one standing. */
void cancel_ask_scan(struct cancel *c, struct cancel_update *u) {
        if (c->record.state == CANCEL_SETTLE)
                c->scanned = false;
        c->scan_usec = USEC_NEVER;
        u->ask |= CANCEL_ASK_SCAN;
}

void cancel_pass_begin(struct cancel *c) {
        c->aside = c->head = (struct cancel_process){ 0 };
        c->asides = 0;
        c->passed = c->unresolved = false;
}

/* Any process of the drivers' user can say that it is a driver of this job. Those that are none must not hide the one
 * that is, however many there are: each scan offers the next, in a fixed order. */
void cancel_set_aside(struct cancel *c, const struct cancel_process *process, const struct cancel_now *now,
                      struct cancel_update *u) {
        c->aside = *process;
        c->scanned = false;
        if (++c->asides <= ASIDES_AT_ONCE)
                cancel_ask_scan(c, u);
        else
                c->scan_usec = now->usec + ASIDE_WAIT_USEC;
}

/* ---- kills ------------------------------------------------------------------------------------------------------ */

void cancel_release_slot(struct cancel *c, struct cancel_update *u) {
        c->wants_slot = false;
        u->change |= CANCEL_SLOT_RELEASED;
}

void cancel_want_slot(struct cancel *c, struct cancel_update *u) {
        c->retry_usec = USEC_NEVER;
        if (c->wants_slot || c->kill_due || c->killing)
                return;
        c->wants_slot = true;
        u->change |= CANCEL_SLOT_WANTED;
}

void cancel_plan_kill(struct cancel *c, struct cancel_update *u) {
        if (c->kill_planned)
                return;
        c->kill_planned = true;
        c->record.kill_requests++;
        u->durable = true;
}

static void unplan_kill(struct cancel *c) {
        if (!c->kill_planned)
                return;
        c->kill_planned = c->kill_due = false;
        c->record.kill_requests--;
}

/* Not a smaller one than was sent. */
void cancel_plan_signal(struct cancel *c, struct cancel_update *u, enum cancel_escalation signal) {
        u->act |= signal == CANCEL_ESCALATION_SIGKILL ? CANCEL_ACT_FORCE : CANCEL_ACT_TERM;
        if (c->record.escalation >= signal)
                return;
        c->record.escalation = signal;
        u->durable = true;
}


/* ---- moves ------------------------------------------------------------------------------------------------------ */

static void release_driver(struct cancel *c, struct cancel_update *u) {
        if (c->driver_held)
                u->change |= CANCEL_RELEASE;
        c->driver_held = false;
}

/* Whoever calls it goes to another state, and so stores it. */
static void leave(struct cancel *c, struct cancel_update *u) {
        unplan_kill(c);
        c->record.escalation = c->signalled; /* what was not sent did not end it */
        release_driver(c, u);
        cancel_release_slot(c, u);
        cancel_stop_timers(c);
        cancel_pass_begin(c);
        c->looking = c->looked = false;
        c->suspect = (struct cancel_found){ 0 };
}

void cancel_finish(struct cancel *c, struct cancel_update *u, enum cancel_state state) {
        leave(c, u);
        cancel_set_state(c, u, state);
}

void cancel_conclude(struct cancel *c, struct cancel_update *u, enum cancel_outcome outcome) {
        cancel_finish(c, u, CANCEL_REPORT);
        c->record.outcome = outcome;
        u->act = CANCEL_ACT_REPORT;
}

void cancel_report_progress(struct cancel *c, struct cancel_update *u, enum cancel_outcome progress) {
        if (c->record.progress == progress)
                return;
        c->record.progress = progress;
        u->act |= CANCEL_ACT_PROGRESS;
        u->durable = true;
}

/* Another driver of the job. What Spark was asked about the one before says nothing about it: answers that are still
 * on their way are not believed, and a kill that was accepted was not for it. */
void cancel_set_driver(struct cancel *c, const char *driver_id) {
        if (strcmp(c->record.driver_id, driver_id) == 0)
                return;
        base_text_copy(c->record.driver_id, sizeof c->record.driver_id, driver_id);
        c->record.word = CANCEL_WORD_NONE;
        c->record.accepted_usec = c->record.accepted_real_usec = 0;
        c->record.ended_usec = c->record.ended_real_usec = 0;
        c->record.leftover_processes = 0;
        c->kills_before = cancel_kills_sent(c);
        c->placed_here = c->asking = c->kill_due = c->killing = false;
}

/* escalate_after begins anew: a process that has just come is asked to go through Spark before it is signalled. */
void cancel_hold_process(struct cancel *c, const struct cancel_found *found, struct cancel_update *u) {
        c->record.process = found->process;
        c->record.supervised = found->supervised;
        c->record.answered_usec = 0;
        c->record.escalation = c->signalled = CANCEL_ESCALATION_NONE;
        c->denied = false;
        c->orphan = found->orphan;
        c->driver_held = true;
        c->by_record = false;
        u->change |= CANCEL_HOLD;
        u->durable = true;
}

/* To KILL for a driver that has just been identified. Spark must confirm its place before the first kill. */
void cancel_begin_kill(struct cancel *c, const struct cancel_found *found, struct cancel_update *u) {
        if (c->record.state == CANCEL_KILL)
                cancel_release_slot(c, u);
        cancel_set_driver(c, found->driver_id);
        cancel_stop_timers(c);
        c->attempts = c->unknown_answers = 0;
        c->refused_usec = 0;
        c->looking = false;
        c->record.ended_usec = c->record.ended_real_usec = 0;
        c->record.leftover_processes = 0;
        c->record.killed_usec = 0; /* the kill before, if there was one, is over */
        if (found->process.pid > 0)
                cancel_hold_process(c, found, u);
        else
                c->record.process = (struct cancel_process){ 0 };
        c->suspect = (struct cancel_found){ 0 };
        cancel_set_state(c, u, CANCEL_KILL);
        if (!c->record.dry_run)
                cancel_plan_kill(c, u);
        cancel_ask_status(c, u);
}

/* Spark did not do it. It is asked on: one kill that was lost may be all that is wrong. */
void cancel_begin_term(struct cancel *c, const struct cancel_config *config, const struct cancel_now *now,
                       struct cancel_update *u) {
        c->looking = c->looked = false;
        cancel_set_state(c, u, CANCEL_TERM);
        cancel_plan_signal(c, u, CANCEL_ESCALATION_SIGTERM);
        if (!c->killing && !c->kill_due && !c->wants_slot && !c->asking && c->retry_usec == USEC_NEVER && c->ask_usec == USEC_NEVER)
                c->retry_usec = base_usec_add(now->usec, config->kill_retry_usec); /* it was refused: later again */
        if (config->escalation == CANCEL_ESCALATION_SIGKILL)
                c->force_usec = base_usec_add(now->usec, config->force_after_usec);
}

void cancel_begin_force(struct cancel *c, struct cancel_update *u) {
        c->force_usec = USEC_NEVER;
        cancel_set_state(c, u, CANCEL_FORCE);
        cancel_plan_signal(c, u, CANCEL_ESCALATION_SIGKILL);
}

void cancel_begin_settle(struct cancel *c, const struct cancel_now *now, struct cancel_update *u) {
        leave(c, u);
        c->record.ended_usec = now->usec;
        c->record.ended_real_usec = now->real_usec;
        c->record.leftover_processes = 0;
        c->asked = c->leftovers_counted = false;
        c->leftovers = 0;
        c->leftovers_held = false;
        c->leftovers_usec = base_usec_add(now->usec, LEFTOVERS_WAIT_USEC);
        c->leftovers_signal = CANCEL_ESCALATION_NONE;
        c->attempts = c->unknown_answers = 0;
        c->unknown_usec = 0;
        cancel_set_state(c, u, CANCEL_SETTLE);
        cancel_ask_scan(c, u);
        cancel_ask_status(c, u);
}

/* What was found is none of ours: Spark places that driver on another node, or nobody vouches for it. Behind it may
 * stand one that is; "not found" is said when a scan has nothing more to offer. */
void cancel_back_to_search(struct cancel *c, const struct cancel_config *config, const struct cancel_now *now,
                           struct cancel_update *u) {
        struct cancel_process aside = c->aside, process = c->record.process;
        uint32_t asides = c->asides;
        bool proved = c->driver_held;

        leave(c, u);
        cancel_set_driver(c, "");
        c->record.process = (struct cancel_process){ 0 };
        c->record.escalation = c->signalled = CANCEL_ESCALATION_NONE;
        c->record.supervised = false;
        cancel_set_state(c, u, CANCEL_SEARCH);
        c->aside = aside;
        c->asides = asides;
        if (proved) {
                cancel_set_aside(c, &process, now, u);
                return;
        }
        cancel_report_progress(c, u, CANCEL_NOT_ON_NODE);
        cancel_pass_begin(c);
        c->scan_usec = base_usec_add(now->usec, config->search_interval_usec);
}
