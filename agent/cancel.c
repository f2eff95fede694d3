/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The machine of one cancel operation: its events.
 *
 * One switch by event, one function for each event, one helper for each move (cancel_move.c). Three ideas carry it:
 *
 * - Facts are gathered, conclusions are drawn in one place. Exits, scans and Spark's words only fill the record;
 *   cancel_settle.c alone turns them into an outcome, by the contract's table.
 * - The first kill request is counted when the driver is identified (SEARCH → KILL), in the same commit that stores
 *   the command. So a cancel costs one flush before its kill: Spark's status is asked while that commit is under
 *   way, and when the answer names this node's worker nothing more has to be stored. What was counted and not sent
 *   (`kill_planned`) is taken back when the driver is gone first. After a crash between the two it counts as sent:
 *   a crash right after sending looks the same.
 * - Times are absolute on the event clock. Every state before REPORT has the deadline as its last timer, so nothing
 *   waits without a bound.
 *
 * A job may have several processes that pass for its driver, and a hostile one makes them up. One is dealt with at a
 * time; one that leads nowhere (Spark places its driver elsewhere, does not know it, says that it ended long ago) must
 * not keep the others from their turn: cancel_set_aside(), look_for_another().
 */
#include "cancel_internal.h"

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

/* ---- events ------------------------------------------------------------------------------------------------- */

static void on_command(struct cancel *c, struct cancel_update *u) {
        u->durable = true;
        if (c->invalid) {
                cancel_conclude(c, u, CANCEL_INVALID_COMMAND);
                return;
        }
        cancel_ask_scan(c, u);
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
        if (c->record.state == CANCEL_SEARCH || (c->record.state == CANCEL_KILL && cancel_kills_sent(c) == 0) ||
            (c->record.state == CANCEL_SETTLE && cancel_kills_sent(c) == 0 && !cancel_we_ended_it(c)))
                cancel_finish(c, u, CANCEL_DONE);
}

static void on_restarted(struct cancel *c, const struct cancel_event *e, const struct cancel_now *now,
                         struct cancel_update *u) {
        struct cancel_record record = c->record;

        *c = (struct cancel){ .record = record, .since_usec = now->usec, .signalled = record.escalation };
        cancel_stop_timers(c);
        switch (record.state) {
        case CANCEL_SEARCH:
                cancel_ask_scan(c, u);
                return;
        case CANCEL_KILL:
        case CANCEL_WAIT:
        case CANCEL_TERM:
        case CANCEL_FORCE:
                if (cancel_has_process(c) && !e->same_boot)
                        cancel_begin_settle(c, now, u); /* the machine was started anew: the process is gone */
                else
                        cancel_ask_scan(c, u);
                c->unproved = record.state == c->record.state;
                return;
        case CANCEL_SETTLE:
                cancel_settle_resume(c);
                cancel_ask_scan(c, u);
                cancel_ask_status(c, u);
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
                cancel_ask_status(c, u);
                return;
        case CANCEL_WAIT:
                c->retry_usec = base_max_u64(now->usec, base_usec_add(c->record.killed_usec, config->kill_retry_usec));
                if (!cancel_has_process(c) && c->ask_usec == USEC_NEVER) /* else it is asked at its own pace */
                        cancel_ask_status(c, u);
                return;
        case CANCEL_TERM: /* a signal that was stored may not have been sent: sending it again is harmless */
                cancel_plan_signal(c, u, CANCEL_ESCALATION_SIGTERM);
                if (config->escalation == CANCEL_ESCALATION_SIGKILL)
                        c->force_usec = base_usec_add(now->usec, config->force_after_usec);
                cancel_ask_status(c, u);
                return;
        case CANCEL_FORCE:
                cancel_plan_signal(c, u, CANCEL_ESCALATION_SIGKILL);
                cancel_ask_status(c, u);
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
                        base_text_copy(c->record.driver_id, sizeof c->record.driver_id, e->found.driver_id);
                        c->record.process = e->found.process;
                        cancel_conclude(c, u, CANCEL_DEADLINE_EXCEEDED);
                } else {
                        cancel_finish(c, u, CANCEL_DONE);
                }
                return;
        }
        if (e->scan != CANCEL_SCAN_NONE) {
                cancel_begin_kill(c, &e->found, u);
                return;
        }
        cancel_pass_begin(c);
        cancel_report_progress(c, u, CANCEL_NOT_ON_NODE);
        /* On a common grid, so that all who search share one wake-up and one scan. */
        c->scan_usec = (now->usec / config->search_interval_usec + 1) * config->search_interval_usec;
}

static bool same_worker(const struct cancel_process *a, const struct cancel_process *b) {
        return a->worker_pid == b->worker_pid && a->worker_start_ticks == b->worker_start_ticks;
}

/* ---- several processes of one job -------------------------------------------------------------------------------- */

/* Spark will not kill the driver that this process says it is. Perhaps another process of the job is the real one. A
 * pass that found none is not made again before this one had its time, escalation included. */
static void look_for_another(struct cancel *c, struct cancel_update *u, const struct cancel_now *now) {
        if (c->record.state != CANCEL_KILL || !c->driver_held || c->kill_due || c->killing || c->looking)
                return;
        if (c->looked && now->usec < c->look_usec)
                return;
        if (!c->looked) /* else a new pass, from its head */
                c->aside = c->record.process;
        c->looked = false;
        c->looking = true;
        cancel_ask_scan(c, u);
}

static void looked_for_another(struct cancel *c, const struct cancel_config *config, const struct cancel_event *e,
                               const struct cancel_now *now, struct cancel_update *u) {
        if (e->scan == CANCEL_SCAN_PROCESS && cancel_same_process(&e->found.process, &c->record.process)) {
                cancel_set_aside(c, &e->found.process, now, u); /* it is the first of a new pass: and behind it? */
                return;
        }
        if (e->scan == CANCEL_SCAN_PROCESS) {
                cancel_begin_kill(c, &e->found, u);
                return;
        }
        c->looking = false;
        c->looked = true;
        c->look_usec = base_usec_add(now->usec, base_usec_add(config->escalate_after_usec, config->kill_retry_usec));
        cancel_pass_begin(c);
}

/* KILL, WAIT, TERM, FORCE: prove the stored process anew, or meet the process of a driver known by its directory. */
static void scanned_in_kill(struct cancel *c, const struct cancel_config *config, const struct cancel_event *e,
                            const struct cancel_now *now, struct cancel_update *u) {
        if (c->driver_held) {
                if (c->looking && (c->kill_due || c->killing))
                        c->looking = false; /* the scan came late: Spark has placed this one here, and its kill is under way */
                else if (c->looking)
                        looked_for_another(c, config, e, now, u);
                return;
        }
        if (cancel_has_process(c)) {
                if (!e->process_alive) {
                        cancel_begin_settle(c, now, u);
                        return;
                }
                c->driver_held = true;
                u->change |= CANCEL_HOLD;
        } else if (e->scan == CANCEL_SCAN_PROCESS && strcmp(c->record.driver_id, e->found.driver_id) != 0) {
                cancel_begin_kill(c, &e->found, u); /* the process counts, not the id that the command named */
                return;
        } else if (e->scan == CANCEL_SCAN_PROCESS) {
                if (c->wants_slot && !same_worker(&c->record.process, &e->found.process))
                        cancel_release_slot(c, u); /* its turn is at the Worker of this process */
                cancel_hold_process(c, &e->found, u);
        }
        if (now->usec >= c->record.deadline_usec)
                cancel_deadline_passed(c, now, u);
        else
                resume(c, config, now, u);
}

/* What the command names is a driver of its own. A process may claim any id, also that of another job's driver: which is
 * its place is proved by Spark naming this node, never by Spark naming none. */
static bool by_record_alone(const struct cancel *c, const struct cancel_event *e) {
        return e->scan == CANCEL_SCAN_RECORD && !cancel_has_process(c) &&
               (c->record.driver_id[0] == 0 || strcmp(c->record.driver_id, e->found.driver_id) == 0);
}

static void on_scanned(struct cancel *c, const struct cancel_config *config, const struct cancel_event *e,
                       const struct cancel_now *now, struct cancel_update *u) {
        c->unproved = false;
        c->by_record = by_record_alone(c, e);
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
                cancel_settle_scanned(c, config, e, now, u);
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
        cancel_begin_settle(c, now, u);
}

static void note_master(struct cancel *c) {
        c->attempts = 0;
        c->refused_usec = 0;
        c->record.master_answered = true; /* stored with what comes next: a flush of its own would hold up the kill */
}

/* Spark's word. A final one is not overwritten by "unknown id": the master may have trimmed its list. */
static void note_word(struct cancel *c, enum cancel_word word) {
        if (word == CANCEL_WORD_UNKNOWN_ID && cancel_word_is_final(c->record.word))
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
        if (c->record.state == CANCEL_WAIT || cancel_is_signalling(c->record.state) || cancel_is_hint(c))
                return false; /* a kill was accepted or a signal sent: its end is waited for; or nothing is known here */
        if (now->usec < base_usec_add(c->refused_usec, 2 * config->kill_retry_usec))
                return false;
        if (c->record.state == CANCEL_SETTLE && (!c->scanned || cancel_may_come_back(c, config, now)))
                return false;
        if (may_signal(c, config))
                cancel_begin_term(c, config, now, u);
        else if (c->record.state == CANCEL_SETTLE && !cancel_leftovers_are_settled(c, config, cancel_outcome_of_gone(c), now, u))
                return false;
        else if (c->record.state == CANCEL_SETTLE && cancel_outcome_of_gone(c) != CANCEL_OUTCOME_NONE)
                cancel_conclude(c, u, cancel_outcome_of_gone(c));
        else
                cancel_conclude(c, u, CANCEL_SPARK_REFUSED);
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

/* Spark has lost a driver that is not here: until then its own node may prove more. */
static bool may_be_told_more(const struct cancel *c, const struct cancel_config *config, const struct cancel_now *now) {
        return now->usec < base_usec_add(c->record.received_usec, config->relaunch_window_usec);
}

/* A driver that this agent answers for from Spark's records alone (queued_drivers). One that is SUBMITTED runs nowhere,
 * so nobody else can kill it; one that has ended is answered by Spark's word. A driver on a Worker is the business of
 * that node. ERROR says that Spark has lost its Worker, or that it could not be started: its node has until
 * relaunch_window to tell more. True: Spark's record is enough to go on. */
static bool record_answers(struct cancel *c, const struct cancel_config *config, const struct cancel_event *e,
                           const struct cancel_now *now, struct cancel_update *u) {
        if (e->here || (e->word == CANCEL_WORD_SUBMITTED && !e->elsewhere))
                return true;
        if (e->word == CANCEL_WORD_ERROR) {
                c->ask_usec = now->usec + POLL_USEC;
                return !may_be_told_more(c, config, now);
        }
        if (cancel_word_is_final(e->word))
                return true;
        cancel_report_progress(c, u, CANCEL_NOT_ON_NODE);
        c->ask_usec = now->usec + RETRY_USEC_MAX;
        return false;
}

static void status_in_kill(struct cancel *c, const struct cancel_config *config, const struct cancel_event *e,
                           const struct cancel_now *now, struct cancel_update *u) {
        if (c->by_record && c->record.state == CANCEL_KILL) {
                if (!record_answers(c, config, e, now, u))
                        return;
        } else if (e->elsewhere && cancel_kills_of_driver(c) == 0 && c->record.state == CANCEL_KILL) {
                cancel_back_to_search(c, config, now, u);
                return;
        } else if (!e->here) { /* known, but on no worker yet */
                c->ask_usec = now->usec + POLL_USEC;
                look_for_another(c, u, now);
                return;
        }
        c->placed_here = true;
        if (c->record.dry_run) {
                cancel_conclude(c, u, CANCEL_DRY_RUN);
                return;
        }
        if (!cancel_has_process(c) && cancel_word_is_final(e->word)) {
                cancel_begin_settle(c, now, u);
                return;
        }
        if (c->retry_usec == USEC_NEVER)
                cancel_want_slot(c, u);
}

static void status_in_wait(struct cancel *c, const struct cancel_config *config, const struct cancel_event *e,
                           const struct cancel_now *now, struct cancel_update *u) {
        bool lost = c->by_record && e->word == CANCEL_WORD_ERROR;

        if (cancel_has_process(c))
                return; /* the pidfd tells the end */
        if (cancel_word_is_final(e->word) && !(lost && may_be_told_more(c, config, now))) {
                cancel_begin_settle(c, now, u);
                return;
        }
        c->ask_usec = now->usec + POLL_USEC;
        cancel_ask_scan(c, u);
}

static void status_known(struct cancel *c, const struct cancel_config *config, const struct cancel_event *e,
                         const struct cancel_now *now, struct cancel_update *u) {
        note_master(c);
        note_word(c, e->word);
        c->unknown_answers = 0;
        switch (c->record.state) {
        case CANCEL_KILL:
        case CANCEL_TERM:
        case CANCEL_FORCE:
                status_in_kill(c, config, e, now, u);
                return;
        case CANCEL_WAIT:
                status_in_wait(c, config, e, now, u);
                return;
        case CANCEL_SETTLE:
                c->asked = true;
                cancel_settle_answered(c, config, now, u);
                return;
        case CANCEL_SEARCH:
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
                cancel_settle_answered(c, config, now, u);
                return;
        }
        if (c->record.state == CANCEL_KILL && c->orphan && !cancel_was_placed(c)) {
                cancel_back_to_search(c, config, now, u); /* neither a Worker nor Spark vouches for it */
                return;
        }
        if (c->record.state == CANCEL_KILL && c->by_record && !cancel_was_placed(c))
                cancel_report_progress(c, u, CANCEL_NOT_ON_NODE);
        c->ask_usec = now->usec + RETRY_USEC_MAX; /* no ALIVE master knows the driver: no kill goes out */
        look_for_another(c, u, now);
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
        if (cancel_has_suspect(c)) {
                if (e->answer == CANCEL_ANSWER_ACCEPTED || e->answer == CANCEL_ANSWER_UNKNOWN_ID)
                        c->record.master_answered = true;
                cancel_settle_suspect(c, e, now, u);
                return;
        }
        if (cancel_is_asking_kills(c->record.state) && !c->kill_due && !c->killing && !c->wants_slot &&
            now->usec >= base_usec_add(c->record.killed_usec, config->kill_retry_usec))
                cancel_release_slot(c, u); /* held since a restart for a kill that is over */
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
        c->ask_usec = now->usec + cancel_backoff(c->attempts - 1, ASK_RETRY_MIN);
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
                cancel_settle_answered(c, config, now, u);
                return;
        }
        if (!cancel_is_asking_kills(c->record.state))
                return;
        if (c->record.state == CANCEL_KILL)
                cancel_set_state(c, u, CANCEL_WAIT);
        c->looking = c->looked = false;
        c->retry_usec = base_usec_add(c->record.killed_usec, config->kill_retry_usec);
        if (!cancel_has_process(c))
                c->ask_usec = now->usec + WORD_RETRY_MIN;
}

/* "already finished or does not exist" proves nothing while the process lives: scan, ask, and kill again later. */
static void kill_unknown(struct cancel *c, const struct cancel_config *config, const struct cancel_now *now,
                         struct cancel_update *u) {
        note_master(c);
        if (c->record.state == CANCEL_SETTLE)
                cancel_settle_answered(c, config, now, u);
        if (!cancel_is_asking_kills(c->record.state))
                return;
        cancel_release_slot(c, u);
        c->record.killed_usec = 0; /* nothing is outstanding, also for a restart */
        u->durable = true;
        c->retry_usec = base_usec_add(now->usec, config->kill_retry_usec);
        if (c->driver_held)
                look_for_another(c, u, now);
        else
                cancel_ask_scan(c, u);
        cancel_ask_status(c, u);
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
                cancel_report_progress(c, u, CANCEL_IN_PROGRESS);
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
                cancel_settle_answered(c, config, now, u);
        if (!cancel_is_asking_kills(c->record.state))
                return;
        c->attempts++;
        c->retry_usec = now->usec + cancel_backoff(c->attempts - 1, ASK_RETRY_MIN);
        /* A refusal and a standby did not pass it on; after silence it may be under way, until kill_retry is over. */
        if (e->answer == CANCEL_ANSWER_UNREACHABLE && now->usec < base_usec_add(c->record.killed_usec, config->kill_retry_usec))
                return;
        cancel_release_slot(c, u);
        c->record.killed_usec = 0; /* nothing is outstanding, also for a restart */
        u->durable = true;
}

static void on_slot(struct cancel *c, struct cancel_update *u) {
        if (!cancel_is_asking_kills(c->record.state) || !c->wants_slot || !c->placed_here) {
                cancel_release_slot(c, u);
                return;
        }
        c->wants_slot = false;
        cancel_plan_kill(c, u); /* nothing to store when it was counted before */
        c->kill_due = true;
        u->act |= CANCEL_ACT_KILL;
}

static void on_kill_sent(struct cancel *c, const struct cancel_now *now) {
        if (!c->kill_due)
                return;
        c->kill_planned = c->kill_due = false;
        c->killing = true;
        c->record.killed_usec = now->usec; /* stored with what comes next */
}

/* What the process did not get did not end it. */
static void on_signalled(struct cancel *c, const struct cancel_event *e, struct cancel_update *u) {
        if (!cancel_is_signalling(c->record.state) || e->signal > c->record.escalation)
                return;
        c->denied = e->signal_result == CANCEL_SIGNAL_DENIED;
        if (e->signal_result == CANCEL_SIGNAL_SENT) {
                c->signalled = (enum cancel_escalation)base_max_u64(c->signalled, e->signal);
        } else if (e->signal == c->record.escalation && c->record.escalation != c->signalled) {
                c->record.escalation = c->signalled;
                u->durable = true;
        }
}

static void on_timer(struct cancel *c, const struct cancel_config *config, const struct cancel_now *now,
                     struct cancel_update *u) {
        if (!is_working(c->record.state) && c->record.state != CANCEL_SEARCH)
                return;
        if (now->usec >= c->record.deadline_usec) {
                cancel_deadline_passed(c, now, u);
                return;
        }
        if (now->usec >= escalation_usec(c, config)) {
                cancel_begin_term(c, config, now, u);
                return;
        }
        if (now->usec >= c->force_usec)
                cancel_begin_force(c, u);
        if (now->usec >= c->retry_usec) {
                c->retry_usec = USEC_NEVER;
                if (now->usec >= base_usec_add(c->record.killed_usec, config->kill_retry_usec))
                        u->change |= CANCEL_SLOT_RELEASED; /* the Worker has given up on it: the others have their turn */
                if (c->record.state == CANCEL_WAIT) /* a lost kill: the master never repeats one */
                        cancel_set_state(c, u, CANCEL_KILL);
                if (c->placed_here)
                        cancel_want_slot(c, u);
                else
                        cancel_ask_status(c, u);
        }
        if (now->usec >= c->scan_usec)
                cancel_ask_scan(c, u);
        if (now->usec >= c->ask_usec) {
                if (c->record.state == CANCEL_KILL && !cancel_has_process(c))
                        cancel_ask_scan(c, u); /* it may be starting, or run under another id */
                cancel_ask_status(c, u);
        }
        if (c->record.state == CANCEL_SETTLE)
                cancel_settle_evaluate(c, config, now, u);
}

static void on_report_answered(struct cancel *c, const struct cancel_event *e, struct cancel_update *u) {
        if (c->record.state != CANCEL_REPORT)
                return;
        cancel_set_state(c, u, e->accepted ? CANCEL_DONE : CANCEL_QUARANTINE);
}

static void on_retry(struct cancel *c, struct cancel_update *u) {
        if (c->record.state != CANCEL_QUARANTINE)
                return;
        cancel_set_state(c, u, CANCEL_REPORT);
        u->act |= CANCEL_ACT_RESEND;
}

/* The next time at which something must be looked at: the earliest of the operation's own timers. */
static uint64_t next_wake(const struct cancel *c, const struct cancel_config *config, const struct cancel_now *now) {
        uint64_t wake, deadline = c->record.deadline_usec;

        if (!is_working(c->record.state) && c->record.state != CANCEL_SEARCH)
                return USEC_NEVER;
        wake = base_min_u64(base_min_u64(c->ask_usec, c->scan_usec), base_min_u64(c->retry_usec, c->force_usec));
        wake = base_min_u64(wake, escalation_usec(c, config));
        if (c->record.state == CANCEL_SETTLE && c->scanned && cancel_we_ended_it(c) && !c->record.supervised && c->leftovers == 0)
                wake = base_min_u64(wake, base_usec_add(c->record.ended_usec, WORD_WAIT_USEC));
        if (now->usec >= deadline && (c->unproved || ((c->record.state == CANCEL_SETTLE || c->record.state == CANCEL_SEARCH) &&
                                                      !c->scanned)))
                deadline = cancel_last_scan_usec(c);
        return base_min_u64(wake, deadline);
}

/* ---- public ---------------------------------------------------------------------------------------------------- */

void cancel_begin(struct cancel *cancel, const struct cancel_now *now, uint64_t deadline_usec, bool dry_run,
                  bool invalid, const char *command_driver_id) {
        uint64_t left = base_usec_sub(deadline_usec, now->usec);

        *cancel = (struct cancel){ 0 };
        cancel_stop_timers(cancel);
        cancel->record.state = CANCEL_SEARCH;
        cancel->invalid = invalid;
        cancel->record.dry_run = dry_run;
        cancel->record.received_usec = cancel->since_usec = now->usec;
        cancel->record.received_real_usec = now->real_usec;
        cancel->record.deadline_usec = deadline_usec;
        cancel->record.deadline_real_usec = base_usec_add(now->real_usec, left);
        base_text_copy(cancel->record.command_driver_id, sizeof cancel->record.command_driver_id, command_driver_id);
}

const char *cancel_status_id(const struct cancel *cancel) {
        return cancel_has_suspect(cancel) ? cancel->suspect.driver_id : cancel->record.driver_id;
}

uint32_t cancel_kills_of_driver(const struct cancel *cancel) {
        return (uint32_t)base_usec_sub(cancel_kills_sent(cancel), cancel->kills_before);
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
        case CANCEL_EVENT_KILL_SENT:
                on_kill_sent(cancel, now);
                break;
        case CANCEL_EVENT_SIGNALLED:
                on_signalled(cancel, event, ret_update);
                break;
        case CANCEL_EVENT_SLOT:
                on_slot(cancel, ret_update);
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
