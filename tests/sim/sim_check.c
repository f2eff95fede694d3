/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What must never happen, what must happen, and how much of the machine was seen.
 *
 * The checker knows the truth: who runs, what a master accepted, what the agent was told. It judges each deed when it
 * is done, against the store as it is on the disk at that moment, and each outcome by the table of docs/contract.md.
 * Every step of the machine passes here (the linker wraps cancel_step()) and is checked against cancel_check().
 *
 * While the disk does not work deeds run ahead of their records, and a crash loses what was done. Then the next life
 * knows what is stored and no more, and is judged by that: it may kill again and report another outcome. What stays:
 * each decision is true when it is made, the control plane has one outcome, a sequence is never used twice, and no
 * position is acknowledged that is not stored, so that the command comes again.
 */
#include "sim.h"

#include "sparkcancel/agent/v1/cancel_agent_service.pb-c.h"

static struct coverage {
        uint64_t events[CANCEL_STATE_MAX][CANCEL_EVENT_TYPE_MAX];
        uint64_t moves[CANCEL_STATE_MAX][CANCEL_STATE_MAX];
        uint64_t outcomes[CANCEL_OUTCOME_MAX];
        uint64_t kills_ahead, signals_ahead, reports_ahead, outcomes_ahead; /* of a disk that does not work */
        uint64_t lost, lost_differ, stopped_ahead, scans_in_commit;
} *coverage;

static void judge_outcome(struct sim_operation *operation, const struct cancel *cancel, const struct cancel_now *now);
static void judge_silent_end(struct sim_operation *operation, const struct cancel *cancel, enum cancel_state before,
                             const struct cancel_now *now);

void sim_coverage_set(void *memory) {
        coverage = memory;
}

size_t sim_coverage_size(void) {
        return sizeof *coverage;
}

/* Only what was DONE may be forgotten, and only where the configuration keeps few. */
bool sim_may_be_pruned(const struct sim_operation *operation) {
        return operation->done_seen && sim.config.retention_max < sim.operation_count;
}

/* ---- each step ---------------------------------------------------------------------------------------------------------- */

void __real_cancel_step(struct cancel *cancel, const struct cancel_config *config, const struct cancel_event *event,
                        const struct cancel_now *now, struct cancel_update *ret_update);
void __wrap_cancel_step(struct cancel *cancel, const struct cancel_config *config, const struct cancel_event *event,
                        const struct cancel_now *now, struct cancel_update *ret_update);

static const char *const event_names[CANCEL_EVENT_TYPE_MAX] = {
        [CANCEL_EVENT_COMMAND] = "COMMAND",
        [CANCEL_EVENT_DUPLICATE] = "DUPLICATE",
        [CANCEL_EVENT_WITHDRAWN] = "WITHDRAWN",
        [CANCEL_EVENT_RESTARTED] = "RESTARTED",
        [CANCEL_EVENT_SCANNED] = "SCANNED",
        [CANCEL_EVENT_EXITED] = "EXITED",
        [CANCEL_EVENT_STATUS] = "STATUS",
        [CANCEL_EVENT_KILL_ANSWERED] = "KILL_ANSWERED",
        [CANCEL_EVENT_SLOT] = "SLOT",
        [CANCEL_EVENT_TIMER] = "TIMER",
        [CANCEL_EVENT_REPORT_ANSWERED] = "REPORT_ANSWERED",
        [CANCEL_EVENT_RETRY] = "RETRY",
};

static void note_step(struct sim_operation *operation, const struct cancel *before, const struct cancel *after,
                      const struct cancel_event *event, const struct cancel_now *now) {
        const struct cancel_record *r = &after->record;

        if (event->type == CANCEL_EVENT_SCANNED) {
                operation->scanned_at = sim.time;
                coverage->scans_in_commit += sim.agent->commit_running;
        }
        if (r->state == CANCEL_DONE)
                operation->done_seen = true;
        if (r->state == CANCEL_SETTLE || (r->state == CANCEL_KILL && strcmp(before->record.driver_id, r->driver_id) != 0))
                operation->kill_holds = false; /* proved gone; a deadline that has passed says nothing to the Worker */
        if (before->record.state != r->state && (r->state == CANCEL_TERM || r->state == CANCEL_FORCE))
                operation->escalated_life = sim.lives;
        if (before->record.state != r->state && (r->state == CANCEL_TERM || r->state == CANCEL_FORCE))
                operation->escalated_at = sim.time;
        operation->state = r->state;
        if (operation->excused)
                return;
        if (before->record.outcome == CANCEL_OUTCOME_NONE && r->outcome != CANCEL_OUTCOME_NONE) {
                coverage->outcomes[r->outcome]++;
                coverage->outcomes_ahead += sim.agent->failing;
                judge_outcome(operation, after, now);
        }
        if (before->record.state != CANCEL_DONE && r->state == CANCEL_DONE && r->outcome == CANCEL_OUTCOME_NONE)
                judge_silent_end(operation, after, before->record.state, now);
}

void __wrap_cancel_step(struct cancel *cancel, const struct cancel_config *config, const struct cancel_event *event,
                        const struct cancel_now *now, struct cancel_update *ret_update) {
        const struct operation *o = CONTAINER_OF(cancel, struct operation, cancel);
        struct sim_operation *operation = sim_operation_find(o->id);
        struct cancel before = *cancel;
        const char *broken;

        __real_cancel_step(cancel, config, event, now, ret_update);
        coverage->events[before.record.state][event->type]++;
        coverage->moves[before.record.state][cancel->record.state]++;
        TRACE("    %s %s: %s -> %s%s act %x ask %x change %x", o->id, event_names[event->type],
              cancel_state_to_text(before.record.state), cancel_state_to_text(cancel->record.state),
              ret_update->durable ? " store" : "", ret_update->act, ret_update->ask, ret_update->change);
        broken = cancel_check(&before, cancel, ret_update);
        if (broken)
                sim_fail("%s: invariant broken: %s (%s to %s on %s)", o->id, broken, cancel_state_to_text(before.record.state),
                         cancel_state_to_text(cancel->record.state), event_names[event->type]);
        if (!operation)
                sim_fail("%s: nobody sent this operation", o->id);
        note_step(operation, &before, cancel, event, now);
}

/* ---- outcomes -------------------------------------------------------------------------------------------------------------- */

static void wrong(const struct sim_operation *operation, const struct cancel *cancel, const char *why) {
        sim_fail("%s: %s %s: %s", operation->id, cancel_state_to_text(cancel->record.state),
                 cancel_outcome_to_text(cancel->record.outcome), why);
}

/* Does this process count as the driver of its job, by the contract? */
static bool counts(const struct sim_process *process) {
        const struct sim_driver *driver = sim_driver_find(process->claimed_id);

        return process->worker_pid != 0 && driver && driver->here && !sim_id_contested(process->claimed_id);
}

static const struct sim_process *counting_process(unsigned job) {
        for (unsigned i = sim.process_count; i > 0; i--) {
                const struct sim_process *process = sim.processes[i - 1];

                if (process->alive && process->job == job && counts(process))
                        return process;
        }
        return NULL;
}

/* Nothing of the job may be alive that a scan could have seen. */
static void judge_gone(const struct sim_operation *operation, const struct cancel *cancel) {
        const struct sim_process *process = counting_process(operation->job);

        for (unsigned i = 0; i < sim.process_count; i++) {
                const struct sim_process *own = sim.processes[i];

                if (own->alive && own->boot == sim.boot && own->pid == cancel->record.process.pid &&
                    own->start_ticks == cancel->record.process.start_ticks)
                        wrong(operation, cancel, "its process is alive");
        }
        if (!process)
                return;
        if (process->started_at <= operation->scanned_at)
                wrong(operation, cancel, "a process of the job is alive and was there at the last scan");
        if (sim.time - operation->scanned_at > 2 * USEC_PER_SEC)
                wrong(operation, cancel, "a process of the job is alive, and the last scan is old");
}

static bool driver_had_word(const char *driver_id, enum spark_driver_state word) {
        const struct sim_driver *driver = sim_driver_find(driver_id);

        return driver && driver->was_word[word];
}

static bool was_accepted(const struct sim_operation *operation, const struct cancel *cancel) {
        return operation->accepted_id[0] && strcmp(operation->accepted_id, cancel->record.driver_id) == 0;
}

/* Did a signal reach this driver's last process? (In Spark's back-off there is none.) */
static bool was_signalled(const struct sim_operation *operation, const struct cancel *cancel) {
        const struct sim_process *process = operation->signalled;

        return process && strcmp(process->claimed_id, cancel->record.driver_id) == 0 &&
               (cancel->record.process.pid == 0 || (process->pid == cancel->record.process.pid &&
                                                    process->start_ticks == cancel->record.process.start_ticks));
}

static void judge_cancelled(const struct sim_operation *operation, const struct cancel *cancel) {
        bool perhaps_signalled = operation->escalated_life > 0 && operation->escalated_life != sim.lives;

        judge_gone(operation, cancel);
        if (operation->dry_run)
                wrong(operation, cancel, "a dry run");
        if (cancel->record.accepted_usec != 0 && !was_accepted(operation, cancel))
                wrong(operation, cancel, "no kill of this driver was accepted");
        if (!was_accepted(operation, cancel) && !was_signalled(operation, cancel) && !perhaps_signalled &&
            !driver_had_word(cancel->record.driver_id, SPARK_STATE_KILLED))
                wrong(operation, cancel, "no kill was accepted, no signal was sent, and Spark never said KILLED");
}

static void judge_ended_by_itself(const struct sim_operation *operation, const struct cancel *cancel) {
        const char *id = cancel->record.driver_id;

        judge_gone(operation, cancel);
        if (was_accepted(operation, cancel))
                wrong(operation, cancel, "a kill was accepted");
        if (was_signalled(operation, cancel))
                wrong(operation, cancel, "a signal was sent");
        if (cancel->record.outcome == CANCEL_ALREADY_DONE && !driver_had_word(id, SPARK_STATE_FINISHED))
                wrong(operation, cancel, "Spark never said FINISHED");
        if (cancel->record.outcome == CANCEL_ALREADY_FAILED && !driver_had_word(id, SPARK_STATE_FAILED) &&
            !driver_had_word(id, SPARK_STATE_ERROR))
                wrong(operation, cancel, "Spark never said FAILED or ERROR");
}

static uint64_t nothing_hinders_since(void) {
        return base_max_u64(sim.faults_end, sim.up_since);
}

/* After the faults, a living driver that Spark knows and can kill must be cancelled well before its deadline. */
static bool should_have_been_cancelled(const struct sim_operation *operation) {
        uint64_t bound = 2 * USEC_PER_MINUTE + sim.operation_count * 40 * USEC_PER_SEC;
        const struct sim_process *process = counting_process(operation->job);
        const struct sim_driver *driver = process ? process->driver : NULL;
        uint64_t from = base_max_u64(nothing_hinders_since(), operation->delivered_at);

        for (unsigned i = 0; i < sim.process_count; i++) /* one that nobody can kill may stand before this one */
                if (sim.processes[i]->alive && sim.processes[i]->job == operation->job && sim.processes[i] != process &&
                    counts(sim.processes[i]))
                        return false;
        if (!driver || !driver->known || driver->word != SPARK_STATE_RUNNING || driver->unkillable)
                return false;
        from = base_max_u64(from, process->started_at);
        return sim.healed && sim.time > from + bound;
}

/* A signal that the process cannot ignore was decided on long ago, and the process is alive. */
static bool signal_had_no_effect(const struct sim_operation *operation, const struct cancel *cancel) {
        const struct sim_process *process = counting_process(operation->job);
        const struct sim_driver *driver = process ? process->driver : NULL;
        bool effective = driver && (cancel->record.escalation == CANCEL_ESCALATION_SIGKILL ? !driver->unkillable : !driver->deaf);

        return effective && cancel->record.escalation != CANCEL_ESCALATION_NONE && process->pid == cancel->record.process.pid &&
               process->start_ticks == cancel->record.process.start_ticks && sim.healed &&
               sim.time > base_max_u64(operation->escalated_at, nothing_hinders_since()) + USEC_PER_MINUTE;
}

static void judge_late(const struct sim_operation *operation, const struct cancel *cancel, const struct cancel_now *now) {
        if (now->usec < cancel->record.deadline_usec)
                wrong(operation, cancel, "before the deadline");
        if (sim.boots == 1 && operation->deadline != USEC_NEVER && sim.time + USEC_PER_SEC < operation->deadline)
                wrong(operation, cancel, "before the true deadline");
        if (signal_had_no_effect(operation, cancel))
                wrong(operation, cancel, "the signal was never sent");
        if (should_have_been_cancelled(operation))
                wrong(operation, cancel, "for a long time nothing hindered the cancel");
}

static void judge_outcome(struct sim_operation *operation, const struct cancel *cancel, const struct cancel_now *now) {
        if (operation->decided != CANCEL_OUTCOME_NONE)
                wrong(operation, cancel, "a second decision in one life");
        operation->decided = cancel->record.outcome;
        operation->decided_scan = operation->scanned_at;
        operation->asked_decided = operation->asked;
        if (operation->dry_run && operation->kills > 0)
                wrong(operation, cancel, "a dry run that killed");
        switch (cancel->record.outcome) {
        case CANCEL_CANCELLED:
                judge_cancelled(operation, cancel);
                return;
        case CANCEL_ALREADY_DONE:
        case CANCEL_ALREADY_FAILED:
                judge_ended_by_itself(operation, cancel);
                return;
        case CANCEL_DRY_RUN:
                if (!operation->dry_run)
                        wrong(operation, cancel, "it was none");
                return;
        case CANCEL_SPARK_UNREACHABLE:
                if (operation->alive_answer)
                        wrong(operation, cancel, "a master answered as ALIVE");
                judge_late(operation, cancel, now);
                return;
        case CANCEL_SPARK_REFUSED:
                if (operation->refused_since == 0 ||
                    sim.time - operation->refused_since + USEC_PER_SEC < 2 * sim.config.kill_retry_usec)
                        wrong(operation, cancel, "the masters did not refuse for long enough");
                return;
        case CANCEL_DEADLINE_EXCEEDED:
        case CANCEL_DRIVER_SURVIVED:
                judge_late(operation, cancel, now);
                return;
        case CANCEL_DRIVER_LOST:
                judge_gone(operation, cancel);
                if (was_accepted(operation, cancel) || was_signalled(operation, cancel))
                        wrong(operation, cancel, "a kill was accepted or a signal sent");
                return;
        case CANCEL_INVALID_COMMAND:
                if (operation->verdict != SIM_INVALID)
                        wrong(operation, cancel, "the command was valid");
                return;
        case CANCEL_OUTCOME_NONE:
        case CANCEL_IN_PROGRESS:
        case CANCEL_NOT_ON_NODE:
        case CANCEL_NOT_FOUND:
        case CANCEL_OUTCOME_MAX:
                wrong(operation, cancel, "that is no final outcome");
        }
}

static bool was_contested(const char *driver_id, uint64_t since) {
        const struct sim_process *first = NULL;

        for (unsigned i = 0; i < sim.process_count; i++) {
                const struct sim_process *process = sim.processes[i];

                if ((!process->alive && process->ended_at < since) || strcmp(process->claimed_id, driver_id) != 0)
                        continue;
                if (first && first->job != process->job)
                        return true;
                first = process;
        }
        return false;
}

/* DONE without a report: withdrawn before a kill, or the deadline passed without a driver here. (Both also after a
 * driver that was killed and came back on another node.) */
static void judge_silent_end(struct sim_operation *operation, const struct cancel *cancel, enum cancel_state before,
                             const struct cancel_now *now) {
        const struct sim_process *process = counting_process(operation->job);

        if (cancel->record.withdrawn) {
                if (operation->withdrawn_order == 0)
                        wrong(operation, cancel, "nobody has withdrawn it");
                if (before != CANCEL_SEARCH && operation->kills > 0 && strcmp(operation->killed_id, cancel->record.driver_id) == 0)
                        wrong(operation, cancel, "a kill was sent, and nothing is reported");
                return;
        }
        if (now->usec < cancel->record.deadline_usec)
                wrong(operation, cancel, "given up before the deadline");
        if (process && process->driver && process->driver->known && process->driver->word == SPARK_STATE_RUNNING &&
            sim.healed && sim.time > base_max_u64(nothing_hinders_since(), operation->delivered_at) + 20 * USEC_PER_SEC &&
            sim.time > process->started_at + 20 * USEC_PER_SEC &&
            !was_contested(process->claimed_id, sim.time - 20 * USEC_PER_SEC))
                wrong(operation, cancel, "the driver was here all the time and was not found");
}

/* ---- deeds ------------------------------------------------------------------------------------------------------------------- */

static struct sim_operation *acting(const struct operation *o) {
        struct sim_operation *operation = sim_operation_find(o->id);

        if (!operation)
                sim_fail("%s: nobody sent this operation", o->id);
        return operation;
}

static void check_target(const struct sim_operation *operation, const char *driver_id) {
        const struct sim_driver *driver = sim_driver_find(driver_id);

        if (!driver)
                sim_fail("%s: a kill for %s, which does not exist", operation->id, driver_id);
        if (strcmp(operation->placed_id, driver_id) != 0)
                sim_fail("%s: a kill for %s, and Spark was not asked where it is (%s was)", operation->id, driver_id,
                         operation->placed_id);
        if (!driver->here)
                sim_fail("%s: a kill for %s, which is on another node", operation->id, driver_id);
        if (driver->job != operation->job && (driver->runner || driver->process))
                sim_fail("%s of %s: a kill for %s of %s", operation->id, sim.jobs[operation->job].id, driver_id,
                         sim.jobs[driver->job].id);
        if (operation->verdict != SIM_VALID || operation->dry_run)
                sim_fail("%s: a kill for a command that asks for none", operation->id);
        if (operation->withdrawn_in_time && !operation->excused)
                sim_fail("%s: a kill after it was withdrawn", operation->id);
}

static void check_pace(const struct sim_operation *operation, const struct cancel_process *process) {
        const struct sim_operation *holders[SIM_OPERATIONS_MAX];
        unsigned outstanding = 0;

        for (unsigned i = 0; i < sim.operation_count; i++) {
                const struct sim_operation *other = &sim.operations[i];

                if (other != operation && other->kill_holds && other->kill_boot == sim.boot &&
                    other->kill_worker_pid == process->worker_pid &&
                    other->kill_worker_ticks == process->worker_start_ticks &&
                    sim.time < other->kill_at + sim.config.kill_retry_usec)
                        holders[outstanding++] = other;
        }
        if (outstanding >= sim.config.kills_per_worker)
                sim_fail("%s: a kill, and %u others are outstanding at this Worker, such as that of %s at %.6f", operation->id,
                         outstanding, holders[0]->id, (double)holders[0]->kill_at / 1e6);
}

void sim_check_kill(struct operation *o, const char *driver_id) {
        struct sim_operation *operation = acting(o);
        const struct cancel_process *process = &o->cancel.record.process;
        struct sim_row row;

        TRACE("the agent kills %s for %s", driver_id, operation->id);
        check_target(operation, driver_id);
        if (!sim_life_row(operation->id, &row))
                row = (struct sim_row){ .kill_requests = -1 };
        if (row.kill_requests < (int64_t)operation->kills + 1 && !operation->excused) {
                if (!sim.agent->failing)
                        sim_fail("%s: kill number %u, and %" PRId64 " are stored (-1: not even the operation)", operation->id,
                                 operation->kills + 1, row.kill_requests);
                coverage->kills_ahead++;
                operation->ahead = true;
        }
        if (row.withdrawn && operation->withdrawn_in_time && !operation->excused)
                sim_fail("%s: a kill, and Withdrawn is stored", operation->id);
        check_pace(operation, process);
        operation->kills++;
        base_text_copy(operation->killed_id, sizeof operation->killed_id, driver_id);
        operation->asked++;
        operation->confirmed |= row.kill_requests >= 0;
        operation->kill_at = sim.time;
        operation->kill_boot = sim.boot;
        operation->kill_worker_pid = process->worker_pid;
        operation->kill_worker_ticks = process->worker_start_ticks;
        operation->kill_holds = true;
}

static void note_answer(struct sim_operation *operation, enum spark_answer answer) {
        bool refused = answer == SPARK_REFUSED || answer == SPARK_REFUSED_AUTH;

        if (answer == SPARK_ACCEPTED || answer == SPARK_UNKNOWN_ID)
                operation->alive_answer = true;
        if (!refused)
                operation->refused_since = 0;
        else if (operation->refused_since == 0)
                operation->refused_since = sim.time;
}

void sim_check_kill_answer(struct operation *o, enum spark_answer answer, uint32_t asked) {
        struct sim_operation *operation = acting(o);

        operation->asked += asked - 1;
        note_answer(operation, answer);
        if (answer == SPARK_ACCEPTED)
                base_text_copy(operation->accepted_id, sizeof operation->accepted_id, o->cancel.record.driver_id);
        if (answer != SPARK_ACCEPTED && answer != SPARK_UNREACHABLE)
                operation->kill_holds = false; /* no master passed it on */
}

void sim_check_status_answer(struct operation *o, const char *driver_id, const struct spark_result *result) {
        struct sim_operation *operation = acting(o);

        note_answer(operation, result->answer);
        if (result->answer == SPARK_ACCEPTED && result->worker_here)
                base_text_copy(operation->placed_id, sizeof operation->placed_id, driver_id);
}

void sim_check_signal(struct operation *o, struct sim_process *process, int signal_number) {
        struct sim_operation *operation = acting(o);
        struct sim_row row;
        const char *needed = signal_number == SIGKILL ? "SIGKILL" : "SIGTERM";

        if (process->job != operation->job)
                sim_fail("%s of %s: a signal for a process of %s", operation->id, sim.jobs[operation->job].id,
                         sim.jobs[process->job].id);
        if (process->driver && process->driver->job != operation->job)
                sim_fail("%s: a signal for a driver of another job", operation->id);
        if (sim.config.escalation == CANCEL_ESCALATION_NONE ||
            (signal_number == SIGKILL && sim.config.escalation != CANCEL_ESCALATION_SIGKILL))
                sim_fail("%s: signal %d, which is not allowed", operation->id, signal_number);
        if (operation->dry_run || operation->verdict != SIM_VALID)
                sim_fail("%s: a signal for a command that asks for none", operation->id);
        if (!sim_life_row(operation->id, &row) || (strcmp(row.escalation, needed) != 0 && strcmp(row.escalation, "SIGKILL") != 0)) {
                if (!sim.agent->failing)
                        sim_fail("%s: signal %d before it was stored", operation->id, signal_number);
                coverage->signals_ahead++;
                operation->ahead = true;
        }
}

void sim_check_signalled(const struct operation *o, const struct sim_process *process) {
        acting(o)->signalled = process;
}

void sim_check_leftover_signal(const struct operation *o, const struct sim_process *process, int signal_number) {
        const struct sim_operation *operation = acting(o);

        if (process->job != operation->job)
                sim_fail("%s: a signal for what a process of %s left behind", operation->id, sim.jobs[process->job].id);
        if (sim.config.escalation == CANCEL_ESCALATION_NONE || operation->dry_run ||
            (signal_number == SIGKILL && sim.config.escalation != CANCEL_ESCALATION_SIGKILL))
                sim_fail("%s: signal %d for leftovers, which is not allowed", operation->id, signal_number);
}

/* ---- reports -------------------------------------------------------------------------------------------------------------------- */

enum cancel_outcome sim_report_outcome(struct span report, bool *ret_done, int64_t *ret_sequence, int64_t *ret_kills) {
        Sparkcancel__Agent__V1__CancelReport *message =
                sparkcancel__agent__v1__cancel_report__unpack(NULL, report.size, report.data);
        Sparkcancel__Agent__V1__CancelJobMetadata *metadata = NULL;
        enum cancel_outcome outcome;

        if (message && message->operation && message->operation->metadata)
                metadata = sparkcancel__agent__v1__cancel_job_metadata__unpack(NULL, message->operation->metadata->value.len,
                                                                              message->operation->metadata->value.data);
        if (!message || !metadata)
                sim_fail("a report cannot be decoded");
        outcome = (enum cancel_outcome)metadata->outcome;
        *ret_done = message->operation->done;
        *ret_sequence = message->sequence;
        *ret_kills = metadata->kill_requests;
        if (*ret_done != (message->operation->result_case != YANDEX__CLOUD__OPERATION__OPERATION__RESULT__NOT_SET))
                sim_fail("a report that is done must have a result, and only such a one");
        sparkcancel__agent__v1__cancel_job_metadata__free_unpacked(metadata, NULL);
        sparkcancel__agent__v1__cancel_report__free_unpacked(message, NULL);
        return outcome;
}

static void check_final(struct sim_operation *operation, enum cancel_outcome outcome, int64_t kills) {
        if (operation->outcome != CANCEL_OUTCOME_NONE && operation->outcome != outcome && operation->lost)
                coverage->lost_differ++;
        else if (operation->outcome != CANCEL_OUTCOME_NONE && operation->outcome != outcome)
                sim_fail("%s: two outcomes, %s and %s", operation->id, cancel_outcome_to_text(operation->outcome),
                         cancel_outcome_to_text(outcome));
        operation->outcome = outcome;
        if (kills < (int64_t)operation->kills)
                sim_fail("%s: %u kills were sent, and %" PRId64 " are reported", operation->id, operation->kills, kills);
        if (sim.lives == 1 && kills != (int64_t)operation->asked_decided)
                sim_fail("%s: %u kill requests were sent, %" PRId64 " are reported", operation->id, operation->asked_decided, kills);
        if (outcome <= CANCEL_NOT_ON_NODE || outcome >= CANCEL_OUTCOME_MAX)
                sim_fail("%s: no final outcome: %d", operation->id, (int)outcome);
}

static void check_sequence(struct sim_operation *operation, int64_t sequence, struct span report, bool owed) {
        if (operation->lost && (sim.clock_back || owed))
                return; /* the one thing that keeps the lives' sequences apart was taken away; what was stored comes again */
        if (sequence < operation->last_sequence && !sim_may_be_pruned(operation))
                sim_fail("%s: report %" PRId64 " after %" PRId64, operation->id, sequence, operation->last_sequence);
        if (sequence == operation->last_sequence &&
            (operation->last_size != report.size || memcmp(operation->last_bytes, report.data, report.size) != 0))
                sim_fail("%s: two different reports %" PRId64, operation->id, sequence);
        if (sequence == operation->last_sequence)
                return;
        operation->last_sequence = operation->own_sequence = sequence;
        operation->last_size = report.size;
        operation->last_bytes = sim_alloc(report.size);
        memcpy(operation->last_bytes, report.data, report.size);
}

void sim_check_report(const char *operation_id, int64_t sequence, bool final, struct span report) {
        struct sim_operation *operation = sim_operation_find(operation_id);
        struct sim_row row;
        int64_t sequence_inside, kills;
        bool done, stored, owed;
        enum cancel_outcome outcome = sim_report_outcome(report, &done, &sequence_inside, &kills);

        if (!operation)
                sim_fail("%s: a report, and nobody sent this operation", operation_id);
        TRACE("report of %s: %" PRId64 " %s", operation_id, sequence, cancel_outcome_to_text(outcome));
        stored = sim_life_row(operation_id, &row);
        if (!stored || row.report_sequence != sequence || row.report_size != report.size ||
            memcmp(row.report, report.data, report.size) != 0) {
                if (!sim.agent->failing)
                        sim_fail("%s: report %" PRId64 " (%s) is not stored, %" PRId64 " is", operation_id, sequence,
                                 cancel_outcome_to_text(outcome), stored ? row.report_sequence : -1);
                coverage->reports_ahead++;
                operation->ahead = true;
        } else {
                operation->ahead = false;
        }
        if (done != final || sequence != sequence_inside)
                sim_fail("%s: the report does not say what it is said to be", operation_id);
        owed = sequence == operation->owed_sequence;
        if (sequence >= operation->owed_sequence)
                operation->owed_sequence = 0;
        if (operation->excused)
                return;
        check_sequence(operation, sequence, report, owed);
        if (final)
                check_final(operation, outcome, kills);
        operation->confirmed |= stored;
}

/* ---- nothing is lost ---------------------------------------------------------------------------------------------------------------- */

void sim_check_taken(int64_t revision) {
        if (sim_life_stored_revision() < revision)
                sim_fail("revision %" PRId64 " is acknowledged, %" PRId64 " is stored", revision, sim_life_stored_revision());
        for (unsigned i = 0; i < sim.operation_count; i++) {
                struct sim_operation *operation = &sim.operations[i];
                bool command = operation->delivered_order == sim.order && operation->revision <= revision &&
                               operation->verdict != SIM_UNREPORTABLE;
                bool withdrawn = operation->withdrawn_order == sim.order && operation->withdrawn_revision <= revision;
                struct sim_row row;

                if ((!command && !withdrawn) || operation->done_seen)
                        continue;
                if (!sim_life_row(operation->id, &row))
                        sim_fail("%s: revision %" PRId64 " is acknowledged, and the operation is not stored", operation->id,
                                 revision);
                if (withdrawn && !row.withdrawn && strcmp(row.state, "DONE") != 0)
                        sim_fail("%s: revision %" PRId64 " is acknowledged, and Withdrawn is not stored", operation->id, revision);
                operation->confirmed = true;
        }
}

/* Nothing that is kept for a disk that works may be left behind by an agent that was asked to stop. */
void sim_check_stopped(void) {
        bool works = sim_disk_works() && sim.faults.disk_fails == 0;

        if (sim.agent->unwritten_count > 0 && works)
                sim_fail("stopped with %zu records unwritten, and the disk works", sim.agent->unwritten_count);
        coverage->stopped_ahead += sim.agent->unwritten_count > 0;
}

/* Was more done than is stored? `row` NULL: nothing is. */
static bool is_behind(const struct sim_operation *operation, const struct sim_row *row) {
        if (!row)
                return operation->kills > 0 || operation->signalled || operation->own_sequence > 0;
        return row->kill_requests < (int64_t)operation->kills || row->report_sequence < operation->own_sequence ||
               (operation->signalled && strcmp(row->escalation, "NONE") == 0);
}

/* An earlier life did what its disk did not take: this one knows what is stored, and is judged by that. */
static void note_loss(struct sim_operation *operation, const struct sim_row *row) {
        TRACE("lost: what was done for %s (%u kills, report %" PRId64 ")", operation->id, operation->kills,
              operation->own_sequence);
        coverage->lost++;
        operation->lost = true;
        operation->kills = row ? (unsigned)row->kill_requests : 0;
        operation->own_sequence = row ? row->report_sequence : 0;
        if (!row || strcmp(row->escalation, "NONE") == 0)
                operation->signalled = NULL;
        if (row)
                return;
        operation->accepted_id[0] = 0;
        operation->alive_answer = operation->kill_holds = operation->done_seen = false;
        operation->escalated_life = 0;
}

static void check_loaded_row(struct sim_operation *operation, const struct sim_row *row) {
        operation->done_seen &= strcmp(row->state, "DONE") == 0; /* it may have been in memory only */
        if (row->report_sequence > row->acknowledged_sequence && strcmp(row->state, "QUARANTINE") != 0 &&
            strcmp(row->state, "DONE") != 0)
                operation->owed_sequence = row->report_sequence;
        if (strcmp(row->outcome, "NONE") != 0)
                operation->decided = CANCEL_OUTCOME_MAX; /* by an earlier life */
        if (sim_may_be_pruned(operation))
                return; /* and have come again */
        operation->alive_answer = row->master_answered; /* what was not stored it does not know any more */
        base_text_copy(operation->accepted_id, sizeof operation->accepted_id, row->accepted ? row->driver_id : "");
        operation->kill_holds &= row->killed_usec > 0; /* else counted, and perhaps not sent */
        operation->kill_at = base_min_u64(operation->kill_at, row->killed_usec + sim.boot_at);
        if (row->kill_requests < (int64_t)operation->kills)
                sim_fail("%s: %u kills were sent, %" PRId64 " are stored", operation->id, operation->kills, row->kill_requests);
        if (row->report_sequence < operation->own_sequence)
                sim_fail("%s: report %" PRId64 " was sent, %" PRId64 " is stored", operation->id, operation->own_sequence,
                         row->report_sequence);
        operation->withdrawn_in_time = row->withdrawn && strcmp(row->state, "DONE") == 0 && operation->kills == 0;
}

void sim_check_loaded(void) {
        for (unsigned i = 0; i < sim.operation_count; i++) {
                struct sim_operation *operation = &sim.operations[i];
                struct sim_row row;
                bool found = sim_life_row(operation->id, &row);

                operation->decided = CANCEL_OUTCOME_NONE;
                operation->owed_sequence = 0;
                operation->kill_holds &= operation->kill_boot == sim.boot;
                operation->withdrawn_in_time = false;
                operation->refused_since = 0;
                if (operation->ahead && (found || !sim_may_be_pruned(operation)) && is_behind(operation, found ? &row : NULL))
                        note_loss(operation, found ? &row : NULL);
                operation->ahead = false;
                if (found)
                        check_loaded_row(operation, &row);
                else if (operation->confirmed && !sim_may_be_pruned(operation))
                        sim_fail("%s: acknowledged and lost", operation->id);
                else if (!sim_may_be_pruned(operation))
                        operation->done_seen = false;
        }
        if (sim.order > 0) /* the stream goes on after the stored position: what that covers does not come again */
                sim_check_taken(sim_life_stored_revision());
}

/* The control plane takes a final report: what it says of the job must be so. */
void sim_check_applied(const struct sim_operation *operation, enum cancel_outcome outcome) {
        const struct sim_process *process = counting_process(operation->job);

        if (outcome == CANCEL_CANCELLED && process && process->started_at <= operation->decided_scan)
                sim_fail("%s: the control plane calls it CANCELLED, and process %d runs", operation->id, process->pid);
}

/* ---- the end ---------------------------------------------------------------------------------------------------------------------------- */

bool sim_check_all_done(void) {
        struct operation *o;

        if (!sim.up || sim.operations_to_come > 0 || !sim_server_quiet() || !sim_disk_works())
                return false;
        TAILQ_FOREACH(o, &sim.agent->all, all_link)
                if (o->cancel.record.state != CANCEL_DONE)
                        return false;
        return !sim.agent->commit_running && !sim.agent->failing && !sim.agent->behind;
}

static void check_operation_end(const struct sim_operation *operation) {
        const struct operation *o = agent_find(sim.agent, operation->id);
        struct sim_row row;

        if (!operation->delivered || operation->verdict == SIM_UNREPORTABLE)
                return;
        if (!o && operation->confirmed && !sim_may_be_pruned(operation))
                sim_fail("%s: forgotten", operation->id);
        if (!o || operation->excused || sim_may_be_pruned(operation))
                return;
        if (o->cancel.record.state != CANCEL_DONE)
                sim_fail("%s: still in %s", operation->id, cancel_state_to_text(o->cancel.record.state));
        if (!sim_life_row(operation->id, &row) || strcmp(row.state, "DONE") != 0)
                sim_fail("%s: stored as %s", operation->id, row.state);
        if (operation->owed_sequence != 0)
                sim_fail("%s: report %" PRId64 " was stored, not answered, and not sent again", operation->id,
                         operation->owed_sequence);
        if (operation->lost) /* of an earlier life's outcome nothing is known here; the control plane has the first */
                return;
        if (o->cancel.record.outcome != operation->outcome)
                sim_fail("%s: outcome %s, reported %s", operation->id, cancel_outcome_to_text(o->cancel.record.outcome),
                         cancel_outcome_to_text(operation->outcome));
        if (operation->outcome != CANCEL_OUTCOME_NONE && !operation->server_final)
                sim_fail("%s: the server never got the outcome", operation->id);
        if (operation->server_final && operation->server_outcome != operation->outcome)
                sim_fail("%s: the server has %s", operation->id, cancel_outcome_to_text(operation->server_outcome));
}

void sim_check_end(void) {
        for (unsigned i = 0; i < sim.operation_count; i++)
                check_operation_end(&sim.operations[i]);
        if (sim.agent->open_count != 0)
                sim_fail("%zu operations are counted open, and none is", sim.agent->open_count);
        if (!TAILQ_EMPTY(&sim.agent->touched) || !TAILQ_EMPTY(&sim.agent->scanning) ||
            !TAILQ_EMPTY(&sim.agent->committing_list) || !TAILQ_EMPTY(&sim.agent->unwritten))
                sim_fail("all is done, and work is left in the lists");
        sim_control_check_end();
}

/* ---- coverage ------------------------------------------------------------------------------------------------------------------------------ */

static void print_moves(void) {
        (void)printf("moves made:");
        for (int from = 0; from < CANCEL_STATE_MAX; from++)
                for (int to = 0; to < CANCEL_STATE_MAX; to++)
                        if (from != to && coverage->moves[from][to] > 0)
                                (void)printf(" %s>%s=%" PRIu64, cancel_state_to_text((enum cancel_state)from),
                                             cancel_state_to_text((enum cancel_state)to), coverage->moves[from][to]);
        (void)printf("\nmoves never made:");
        for (int from = 0; from < CANCEL_STATE_MAX; from++)
                for (int to = 0; to < CANCEL_STATE_MAX; to++)
                        if (from != to && coverage->moves[from][to] == 0 &&
                            cancel_transition_allowed((enum cancel_state)from, (enum cancel_state)to))
                                (void)printf(" %s>%s", cancel_state_to_text((enum cancel_state)from),
                                             cancel_state_to_text((enum cancel_state)to));
        (void)printf("\noutcomes:");
        for (int i = 0; i < CANCEL_OUTCOME_MAX; i++)
                if (coverage->outcomes[i] > 0)
                        (void)printf(" %s=%" PRIu64, cancel_outcome_to_text((enum cancel_outcome)i), coverage->outcomes[i]);
        (void)printf("\n");
}

static void print_events(void) {
        for (int state = 0; state < CANCEL_STATE_MAX; state++) {
                (void)printf("%-10s", cancel_state_to_text((enum cancel_state)state));
                for (int event = 0; event < CANCEL_EVENT_TYPE_MAX; event++)
                        (void)printf(" %s=%" PRIu64, event_names[event], coverage->events[state][event]);
                (void)printf("\n");
        }
}

void sim_coverage_print(bool all) {
        unsigned pairs = 0, moves = 0, allowed = 0;

        for (int state = 0; state < CANCEL_STATE_MAX; state++)
                for (int event = 0; event < CANCEL_EVENT_TYPE_MAX; event++)
                        pairs += coverage->events[state][event] > 0;
        for (int from = 0; from < CANCEL_STATE_MAX; from++)
                for (int to = 0; to < CANCEL_STATE_MAX; to++) {
                        bool counts_ = from != to && cancel_transition_allowed((enum cancel_state)from, (enum cancel_state)to);

                        allowed += counts_;
                        moves += counts_ && coverage->moves[from][to] > 0;
                }
        if (all)
                print_events();
        print_moves();
        (void)printf("ahead of a disk that does not work: %" PRIu64 " kills, %" PRIu64 " signals, %" PRIu64 " reports, %" PRIu64
                     " outcomes; %" PRIu64 " stops\n", coverage->kills_ahead, coverage->signals_ahead, coverage->reports_ahead,
                     coverage->outcomes_ahead, coverage->stopped_ahead);
        (void)printf("operations that a crash took something of: %" PRIu64 "; another outcome after it: %" PRIu64
                     "; events of scans while a commit ran: %" PRIu64 "\n", coverage->lost, coverage->lost_differ,
                     coverage->scans_in_commit);
        (void)printf("coverage: %u of %d (state, event) pairs, %u of %u moves\n", pairs,
                     CANCEL_STATE_MAX * CANCEL_EVENT_TYPE_MAX, moves, allowed);
}
