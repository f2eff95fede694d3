/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * cancel_internal: what the parts of the machine share; nobody else includes it
 *
 * cancel.c: events. cancel_move.c: the moves from state to state, and what each of them must leave behind.
 * cancel_settle.c: what became of the driver, in SETTLE and at the deadline. cancel_check.c shares nothing with them.
 */
#include "cancel.h"

#define ASK_RETRY_MIN (200 * USEC_PER_MSEC)  /* no master answered: back-off of status questions and kills */
#define RETRY_USEC_MAX (5 * USEC_PER_SEC)
#define WORD_RETRY_MIN (10 * USEC_PER_MSEC)  /* the master learns of an exit some 10 ms after it (measured) */
#define WORD_WAIT_USEC (1 * USEC_PER_SEC)    /* for Spark's word after an accepted kill */
#define POLL_USEC (1 * USEC_PER_SEC)         /* a driver without a process: status and scan */

#define LEFTOVERS_WAIT_USEC (2 * USEC_PER_SEC) /* from the driver's end to the count of what it left behind */

/* ---- predicates ------------------------------------------------------------------------------------------------ */

static inline bool cancel_word_is_final(enum cancel_word word) {
        return word == CANCEL_WORD_FINISHED || word == CANCEL_WORD_KILLED || word == CANCEL_WORD_FAILED ||
               word == CANCEL_WORD_ERROR;
}

static inline bool cancel_has_process(const struct cancel *c) {
        return c->record.process.pid > 0;
}

static inline bool cancel_has_suspect(const struct cancel *c) {
        return c->suspect.process.pid > 0;
}

static inline bool cancel_same_process(const struct cancel_process *a, const struct cancel_process *b) {
        return a->pid == b->pid && a->start_ticks == b->start_ticks;
}

/* The number of kill requests that may have left this node: what was planned and not sent is not among them. */
static inline uint32_t cancel_kills_sent(const struct cancel *c) {
        return c->record.kill_requests - (c->kill_planned ? 1 : 0);
}

/* Has Spark ever placed this driver here? A kill request goes out only after that. */
static inline bool cancel_was_placed(const struct cancel *c) {
        return c->placed_here || cancel_kills_of_driver(c) > 0;
}

static inline bool cancel_we_ended_it(const struct cancel *c) {
        return c->record.accepted_usec != 0 || c->record.escalation != CANCEL_ESCALATION_NONE;
}

/* Only a directory with the id that the command names, and Spark has not placed that driver here: a hint, which
 * answers nothing. */
static inline bool cancel_is_hint(const struct cancel *c) {
        return c->record.state == CANCEL_KILL && !cancel_has_process(c) && !cancel_was_placed(c);
}

static inline bool cancel_is_signalling(enum cancel_state state) {
        return state == CANCEL_TERM || state == CANCEL_FORCE;
}

/* Spark is asked to kill: TERM and FORCE go on with it, since a kill that was lost may be all that is wrong. */
static inline bool cancel_is_asking_kills(enum cancel_state state) {
        return state == CANCEL_KILL || cancel_is_signalling(state);
}

static inline uint64_t cancel_backoff(uint32_t attempts, uint64_t min_usec) {
        uint64_t value = attempts >= 16 ? RETRY_USEC_MAX : min_usec << attempts;
        return base_min_u64(value, RETRY_USEC_MAX);
}

/* ---- cancel_move.c --------------------------------------------------------------------------------------------- */

void cancel_set_state(struct cancel *c, struct cancel_update *u, enum cancel_state state);
void cancel_stop_timers(struct cancel *c);

/* cancel_ask_status() - of the suspect, if there is one, else of the driver. */
void cancel_ask_status(struct cancel *c, struct cancel_update *u);
void cancel_ask_scan(struct cancel *c, struct cancel_update *u);

/* cancel_pass_begin() - the next scan offers the first of the job's processes again. cancel_set_aside() - this process
 * does not count: the next scan, which is asked for, offers the one behind it. */
void cancel_pass_begin(struct cancel *c);
void cancel_set_aside(struct cancel *c, const struct cancel_process *process, const struct cancel_now *now,
                      struct cancel_update *u);

void cancel_plan_kill(struct cancel *c, struct cancel_update *u);
void cancel_plan_signal(struct cancel *c, struct cancel_update *u, enum cancel_escalation signal);
void cancel_want_slot(struct cancel *c, struct cancel_update *u);
void cancel_release_slot(struct cancel *c, struct cancel_update *u);
void cancel_report_progress(struct cancel *c, struct cancel_update *u, enum cancel_outcome progress);

void cancel_set_driver(struct cancel *c, const char *driver_id);
void cancel_begin_kill(struct cancel *c, const struct cancel_found *found, struct cancel_update *u);
void cancel_hold_process(struct cancel *c, const struct cancel_found *found, struct cancel_update *u);
void cancel_begin_term(struct cancel *c, const struct cancel_config *config, const struct cancel_now *now,
                       struct cancel_update *u);
void cancel_begin_force(struct cancel *c, struct cancel_update *u);
void cancel_begin_settle(struct cancel *c, const struct cancel_now *now, struct cancel_update *u);
void cancel_back_to_search(struct cancel *c, const struct cancel_config *config, const struct cancel_now *now,
                           struct cancel_update *u);
void cancel_finish(struct cancel *c, struct cancel_update *u, enum cancel_state state);
void cancel_conclude(struct cancel *c, struct cancel_update *u, enum cancel_outcome outcome);

/* ---- cancel_settle.c ------------------------------------------------------------------------------------------- */

enum cancel_outcome cancel_outcome_of_gone(const struct cancel *c);
bool cancel_may_come_back(const struct cancel *c, const struct cancel_config *config, const struct cancel_now *now);
bool cancel_leftovers_are_settled(struct cancel *c, const struct cancel_config *config, enum cancel_outcome outcome,
                                  const struct cancel_now *now, struct cancel_update *u);
void cancel_settle_evaluate(struct cancel *c, const struct cancel_config *config, const struct cancel_now *now,
                            struct cancel_update *u);
void cancel_settle_answered(struct cancel *c, const struct cancel_config *config, const struct cancel_now *now,
                            struct cancel_update *u);
void cancel_settle_resume(struct cancel *c);
void cancel_settle_scanned(struct cancel *c, const struct cancel_config *config, const struct cancel_event *e,
                           const struct cancel_now *now, struct cancel_update *u);
/* cancel_settle_suspect() - the answer about a process of the job that is not the ended driver's. */
void cancel_settle_suspect(struct cancel *c, const struct cancel_event *e, const struct cancel_now *now,
                           struct cancel_update *u);
uint64_t cancel_last_scan_usec(const struct cancel *c);
void cancel_deadline_passed(struct cancel *c, const struct cancel_now *now, struct cancel_update *u);
