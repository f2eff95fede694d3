/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The second, independent statement of the machine: which moves are allowed, what must hold after each step, and
 * the names of things. It was written from the design, not from cancel.c, and shares no code with it: where the two
 * disagree one of them is wrong.
 */
#include "cancel.h"

#define TO(state) (1u << CANCEL_##state)

static const unsigned allowed[CANCEL_STATE_MAX] = {
        /* found · invalid, dry run, deadline past at arrival · withdrawn, deadline without a driver */
        [CANCEL_SEARCH] = TO(KILL) | TO(REPORT) | TO(DONE),
        /* accepted · gone · escalation · refused for good, dry run, deadline · placed elsewhere · withdrawn unsent */
        [CANCEL_KILL] = TO(WAIT) | TO(SETTLE) | TO(TERM) | TO(REPORT) | TO(SEARCH) | TO(DONE),
        /* gone · lost kill · escalation · deadline */
        [CANCEL_WAIT] = TO(SETTLE) | TO(KILL) | TO(TERM) | TO(REPORT),
        [CANCEL_TERM] = TO(FORCE) | TO(SETTLE) | TO(REPORT),
        [CANCEL_FORCE] = TO(SETTLE) | TO(REPORT),
        /* another one found, or still called RUNNING · relaunched elsewhere · outcome · withdrawn unsent */
        [CANCEL_SETTLE] = TO(KILL) | TO(SEARCH) | TO(REPORT) | TO(DONE),
        [CANCEL_REPORT] = TO(DONE) | TO(QUARANTINE),
        [CANCEL_QUARANTINE] = TO(REPORT),
        [CANCEL_DONE] = 0,
};

bool cancel_transition_allowed(enum cancel_state from, enum cancel_state to) {
        if (from >= CANCEL_STATE_MAX || to >= CANCEL_STATE_MAX)
                return false;
        return from == to || (allowed[from] & (1u << to)) != 0;
}

static bool is_before_report(enum cancel_state state) {
        return state != CANCEL_REPORT && state != CANCEL_QUARANTINE && state != CANCEL_DONE;
}

/* A difference that a crash must not lose. Spark's word, that a master answered
 * and the time of the last kill follow with the next commit. */
static bool differs_durably(const struct cancel_record *a, const struct cancel_record *b) {
        return a->state != b->state || a->outcome != b->outcome || a->withdrawn != b->withdrawn ||
               a->progress != b->progress || a->kill_requests != b->kill_requests ||
               a->accepted_usec != b->accepted_usec || a->ended_usec != b->ended_usec ||
               a->escalation != b->escalation || a->process.pid != b->process.pid ||
               a->process.start_ticks != b->process.start_ticks || strcmp(a->driver_id, b->driver_id) != 0 ||
               a->answered_usec != b->answered_usec ||
               a->leftover_processes != b->leftover_processes;
}

static const char *check_outcome(const struct cancel_record *before, const struct cancel_record *after) {
        if (is_before_report(after->state) && after->outcome != CANCEL_OUTCOME_NONE)
                return "an outcome before REPORT";
        if ((after->state == CANCEL_REPORT || after->state == CANCEL_QUARANTINE) &&
            after->outcome <= CANCEL_NOT_ON_NODE)
                return "REPORT without a final outcome";
        if (before->outcome != CANCEL_OUTCOME_NONE && before->outcome != after->outcome)
                return "the outcome changed";
        if (before->outcome == CANCEL_OUTCOME_NONE && after->outcome != CANCEL_OUTCOME_NONE &&
            after->state != CANCEL_REPORT)
                return "the outcome was not set on entering REPORT";
        if (after->outcome == CANCEL_NOT_FOUND)
                return "NOT_FOUND is the control plane's word";
        return NULL;
}

static const char *check_cancelled(const struct cancel *before, const struct cancel *after) {
        const struct cancel_record *r = &after->record;

        if (r->outcome != CANCEL_CANCELLED || before->record.outcome == CANCEL_CANCELLED)
                return NULL;
        if (before->record.state != CANCEL_SETTLE || r->ended_usec == 0 || !after->scanned)
                return "CANCELLED without a proved end and a last scan";
        if (r->accepted_usec == 0 && r->word != CANCEL_WORD_KILLED && r->escalation == CANCEL_ESCALATION_NONE)
                return "CANCELLED that neither Spark nor we brought about";
        if (after->by_record && r->word == CANCEL_WORD_ERROR)
                return "CANCELLED by the record of a driver that Spark has lost";
        if (r->dry_run)
                return "CANCELLED in a dry run";
        return NULL;
}

/* What is left behind is counted after the driver's end, and signalled only after a cancel, never in a dry run. */
static const char *check_leftovers(const struct cancel *after, const struct cancel_update *update) {
        const struct cancel_record *r = &after->record;

        if (r->leftover_processes < 0 || (r->leftover_processes > 0 && (r->ended_usec == 0 || r->dry_run)))
                return "leftovers of a driver that has not ended, or in a dry run";
        if (r->outcome != CANCEL_OUTCOME_NONE || !(update->act & (CANCEL_ACT_TERM_LEFTOVERS | CANCEL_ACT_FORCE_LEFTOVERS)))
                return NULL;
        if (r->state != CANCEL_SETTLE || r->leftover_processes == 0 || r->dry_run)
                return "a signal to leftovers that were not counted";
        if (r->accepted_usec == 0 && r->word != CANCEL_WORD_KILLED && r->escalation == CANCEL_ESCALATION_NONE)
                return "a signal to what a job left behind that was not cancelled";
        return NULL;
}

/* A record speaks of one driver: what was done to another one of the job is not put down to it. */
static const char *check_driver(const struct cancel *before, const struct cancel *after) {
        const struct cancel_record *b = &before->record, *a = &after->record;
        bool other_driver = strcmp(b->driver_id, a->driver_id) != 0 && a->driver_id[0] != 0;
        bool other_process = a->process.pid > 0 &&
                             (a->process.pid != b->process.pid || a->process.start_ticks != b->process.start_ticks);

        if (other_driver && a->accepted_usec != 0)
                return "a kill that was accepted for another driver";
        if (after->by_record && a->process.pid > 0)
                return "a process for which Spark's record alone answers";
        if (other_process && a->escalation != CANCEL_ESCALATION_NONE)
                return "a signal that another process got";
        if (after->suspect.process.pid > 0 && (a->state != CANCEL_SETTLE || after->scanned))
                return "a suspect that is forgotten about";
        return NULL;
}

static const char *check_acts(const struct cancel *before, const struct cancel *after,
                              const struct cancel_update *update) {
        if (update->act & CANCEL_ACT_KILL) {
                const enum cancel_state state = after->record.state;

                if (state != CANCEL_KILL && state != CANCEL_TERM && state != CANCEL_FORCE)
                        return "a kill in a state that asks for none";
                if (!after->placed_here || after->record.driver_id[0] == 0)
                        return "a kill for a driver whose place is not proved";
                if (after->record.dry_run)
                        return "a kill in a dry run";
                if (after->record.kill_requests == 0 || !after->kill_planned || !after->kill_due)
                        return "a kill that was not counted";
        }
        if ((update->act & (CANCEL_ACT_TERM | CANCEL_ACT_FORCE)) &&
            (!after->driver_held || after->record.escalation == CANCEL_ESCALATION_NONE))
                return "a signal without a held process or without a record of it";
        if ((update->act & CANCEL_ACT_REPORT) && after->record.state != CANCEL_REPORT)
                return "a final report outside REPORT";
        if (before->record.dry_run && after->record.kill_requests > 0)
                return "a dry run that counts kills";
        return NULL;
}

const char *cancel_check(const struct cancel *before, const struct cancel *after, const struct cancel_update *update) {
        const char *broken;

        if (!cancel_transition_allowed(before->record.state, after->record.state))
                return "a move that the table does not allow";
        broken = check_outcome(&before->record, &after->record);
        if (!broken)
                broken = check_cancelled(before, after);
        if (!broken)
                broken = check_acts(before, after, update);
        if (!broken)
                broken = check_leftovers(after, update);
        if (!broken)
                broken = check_driver(before, after);
        if (broken)
                return broken;
        if (!update->durable && differs_durably(&before->record, &after->record))
                return "a durable change that is not stored";
        if (is_before_report(after->record.state) && update->wake_usec == USEC_NEVER)
                return "waiting without a timer";
        if (!is_before_report(after->record.state) && (after->driver_held || after->wants_slot))
                return "a finished operation holds a process or a place in the queue";
        return NULL;
}

bool cancel_is_open(enum cancel_state state) {
        return state != CANCEL_DONE && state != CANCEL_QUARANTINE;
}

bool cancel_counts_open(enum cancel_state state) {
        return cancel_is_open(state) && state != CANCEL_REPORT;
}

bool cancel_outcome_is_success(enum cancel_outcome outcome) {
        return outcome == CANCEL_CANCELLED || outcome == CANCEL_ALREADY_DONE || outcome == CANCEL_ALREADY_FAILED ||
               outcome == CANCEL_DRY_RUN;
}

/* ---- names ---------------------------------------------------------------------------------------------------- */

static const char *name_of(const char *const *names, size_t count, unsigned value) {
        return value < count && names[value] ? names[value] : "?";
}

const char *cancel_state_to_text(enum cancel_state state) {
        static const char *const names[CANCEL_STATE_MAX] = {
                [CANCEL_SEARCH] = "SEARCH", [CANCEL_KILL] = "KILL",     [CANCEL_WAIT] = "WAIT",
                [CANCEL_TERM] = "TERM",     [CANCEL_FORCE] = "FORCE",   [CANCEL_SETTLE] = "SETTLE",
                [CANCEL_REPORT] = "REPORT", [CANCEL_DONE] = "DONE",     [CANCEL_QUARANTINE] = "QUARANTINE",
        };
        return name_of(names, CANCEL_STATE_MAX, state);
}

const char *cancel_outcome_to_text(enum cancel_outcome outcome) {
        static const char *const names[CANCEL_OUTCOME_MAX] = {
                [CANCEL_OUTCOME_NONE] = "",
                [CANCEL_IN_PROGRESS] = "IN_PROGRESS",
                [CANCEL_NOT_ON_NODE] = "NOT_ON_NODE",
                [CANCEL_CANCELLED] = "CANCELLED",
                [CANCEL_ALREADY_DONE] = "ALREADY_DONE",
                [CANCEL_ALREADY_FAILED] = "ALREADY_FAILED",
                [CANCEL_DRY_RUN] = "DRY_RUN",
                [CANCEL_NOT_FOUND] = "NOT_FOUND",
                [CANCEL_SPARK_UNREACHABLE] = "SPARK_UNREACHABLE",
                [CANCEL_SPARK_REFUSED] = "SPARK_REFUSED",
                [CANCEL_DEADLINE_EXCEEDED] = "DEADLINE_EXCEEDED",
                [CANCEL_DRIVER_SURVIVED] = "DRIVER_SURVIVED",
                [CANCEL_DRIVER_LOST] = "DRIVER_LOST",
                [CANCEL_INVALID_COMMAND] = "INVALID_COMMAND",
        };
        return name_of(names, CANCEL_OUTCOME_MAX, outcome);
}

const char *cancel_word_to_text(enum cancel_word word) {
        static const char *const names[CANCEL_WORD_MAX] = {
                [CANCEL_WORD_NONE] = "",
                [CANCEL_WORD_SUBMITTED] = "SUBMITTED",
                [CANCEL_WORD_RUNNING] = "RUNNING",
                [CANCEL_WORD_FINISHED] = "FINISHED",
                [CANCEL_WORD_RELAUNCHING] = "RELAUNCHING",
                [CANCEL_WORD_KILLED] = "KILLED",
                [CANCEL_WORD_FAILED] = "FAILED",
                [CANCEL_WORD_ERROR] = "ERROR",
                [CANCEL_WORD_OTHER] = "UNKNOWN",
                [CANCEL_WORD_UNKNOWN_ID] = "",
        };
        return name_of(names, CANCEL_WORD_MAX, word);
}

const char *cancel_answer_to_text(enum cancel_answer answer) {
        static const char *const names[CANCEL_ANSWER_MAX] = {
                [CANCEL_ANSWER_ACCEPTED] = "accepted",
                [CANCEL_ANSWER_UNKNOWN_ID] = "unknown id",
                [CANCEL_ANSWER_NOT_ALIVE] = "no master is alive",
                [CANCEL_ANSWER_UNREACHABLE] = "unreachable",
                [CANCEL_ANSWER_REFUSED] = "refused",
                [CANCEL_ANSWER_REFUSED_AUTH] = "refused: not authorized",
        };
        return name_of(names, CANCEL_ANSWER_MAX, answer);
}
