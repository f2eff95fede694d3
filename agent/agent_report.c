/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a report says: the record in the words of the contract, and a message that a person can act on.
 */
#include "agent_internal.h"

enum { STATUS_UNSPECIFIED = 0, STATUS_PENDING = 2, STATUS_RUNNING = 3, STATUS_ERROR = 4, STATUS_DONE = 5,
       STATUS_CANCELLED = 6, STATUS_CANCELLING = 7 }; /* yandex.cloud.spark.v1.Job.Status */

enum { CODE_OK = 0, CODE_INVALID_ARGUMENT = 3, CODE_DEADLINE_EXCEEDED = 4, CODE_PERMISSION_DENIED = 7,
       CODE_FAILED_PRECONDITION = 9, CODE_ABORTED = 10, CODE_INTERNAL = 13, CODE_UNAVAILABLE = 14 }; /* google.rpc.Code */

static int status_as_it_is(enum cancel_word word) {
        switch (word) {
        case CANCEL_WORD_SUBMITTED:
                return STATUS_PENDING;
        case CANCEL_WORD_RUNNING:
        case CANCEL_WORD_RELAUNCHING:
                return STATUS_RUNNING;
        case CANCEL_WORD_FINISHED:
                return STATUS_DONE;
        case CANCEL_WORD_FAILED:
        case CANCEL_WORD_ERROR:
                return STATUS_ERROR;
        case CANCEL_WORD_KILLED:
                return STATUS_CANCELLED;
        case CANCEL_WORD_NONE:
        case CANCEL_WORD_OTHER:
        case CANCEL_WORD_UNKNOWN_ID:
        case CANCEL_WORD_MAX:
                break;
        }
        return STATUS_UNSPECIFIED;
}

static int job_status(const struct cancel_record *r, enum cancel_outcome outcome) {
        switch (outcome) {
        case CANCEL_IN_PROGRESS:
                return STATUS_CANCELLING;
        case CANCEL_CANCELLED:
                return STATUS_CANCELLED;
        case CANCEL_ALREADY_DONE:
                return STATUS_DONE;
        case CANCEL_ALREADY_FAILED:
                return STATUS_ERROR;
        case CANCEL_DRY_RUN:
                return status_as_it_is(r->word);
        case CANCEL_DRIVER_LOST: /* with its Worker (queued_drivers), or out of the masters' memory */
                return r->word == CANCEL_WORD_ERROR ? STATUS_ERROR : STATUS_UNSPECIFIED;
        case CANCEL_OUTCOME_NONE:
        case CANCEL_NOT_ON_NODE:
        case CANCEL_NOT_FOUND:
        case CANCEL_SPARK_UNREACHABLE:
        case CANCEL_SPARK_REFUSED:
        case CANCEL_DEADLINE_EXCEEDED:
        case CANCEL_DRIVER_SURVIVED:
        case CANCEL_INVALID_COMMAND:
        case CANCEL_OUTCOME_MAX:
                break;
        }
        return STATUS_UNSPECIFIED;
}

static int error_code(const struct cancel_record *r) {
        switch (r->outcome) {
        case CANCEL_INVALID_COMMAND:
                return CODE_INVALID_ARGUMENT;
        case CANCEL_SPARK_UNREACHABLE:
                return CODE_UNAVAILABLE;
        case CANCEL_SPARK_REFUSED:
                return r->refused_auth ? CODE_PERMISSION_DENIED : CODE_FAILED_PRECONDITION;
        case CANCEL_DEADLINE_EXCEEDED:
                return CODE_DEADLINE_EXCEEDED;
        case CANCEL_DRIVER_SURVIVED:
                return CODE_INTERNAL;
        case CANCEL_DRIVER_LOST:
                return CODE_ABORTED;
        case CANCEL_OUTCOME_NONE:
        case CANCEL_IN_PROGRESS:
        case CANCEL_NOT_ON_NODE:
        case CANCEL_CANCELLED:
        case CANCEL_ALREADY_DONE:
        case CANCEL_ALREADY_FAILED:
        case CANCEL_DRY_RUN:
        case CANCEL_NOT_FOUND:
        case CANCEL_OUTCOME_MAX:
                break;
        }
        return CODE_OK;
}

static int message_of_end(const struct operation *o, struct buffer *out) {
        const struct cancel_record *r = &o->cancel.record;

        switch (r->outcome) {
        case CANCEL_CANCELLED:
                if (r->process.pid == 0)
                        return buffer_append_format(out, "Driver %s was cancelled; it has no process here.", r->driver_id);
                return buffer_append_format(out, "Driver %s was cancelled; its process %" PRId32 " is gone.", r->driver_id,
                                            r->process.pid);
        case CANCEL_ALREADY_DONE:
                return buffer_append_format(out, "Driver %s had ended by itself with exit code 0 before it could be killed.",
                                            r->driver_id);
        case CANCEL_ALREADY_FAILED:
                return buffer_append_format(out, "Driver %s had failed by itself before it could be killed.", r->driver_id);
        case CANCEL_DRY_RUN:
                if (r->ended_usec)
                        return buffer_append_format(out, "%s: driver %s was here and has ended; a cancel would find nothing to kill.",
                                                    o->observed ? "Observe mode" : "Dry run", r->driver_id);
                if (r->process.pid == 0)
                        return buffer_append_format(out, "%s: a cancel would have Spark kill driver %s; it has no process here.",
                                                    o->observed ? "Observe mode" : "Dry run", r->driver_id);
                return buffer_append_format(out, "%s: a cancel would kill driver %s, process %" PRId32 ".",
                                            o->observed ? "Observe mode" : "Dry run", r->driver_id, r->process.pid);
        case CANCEL_SPARK_UNREACHABLE:
                return buffer_append_format(out, "No Spark master answered as ALIVE until the deadline. Check the masters in "
                                            "[spark] masters and that spark.master.rest.enabled is true there; %s.",
                                            r->ended_usec ? "the driver's process has ended meanwhile" : "the driver still runs");
        case CANCEL_SPARK_REFUSED:
                return buffer_append_format(out, "Spark refuses the kill of driver %s for good. %s", r->driver_id,
                                            r->refused_auth ? "Check [spark] token_file." :
                                            "Check that [spark] masters names the REST port (6066) of the masters.");
        case CANCEL_DEADLINE_EXCEEDED:
                return buffer_append_format(out, "The deadline passed; %s. Look at driver %s on this node.",
                                            r->ended_usec ? "the process is gone, but how it ended is not known" :
                                            r->process.pid ? "the driver still runs" : "the driver has no process here, and its end "
                                            "is not known", r->driver_id);
        case CANCEL_DRIVER_SURVIVED:
                return buffer_append_format(out, "Spark calls driver %s ended, but its process %" PRId32 " still runs. End it by hand.",
                                            r->driver_id, r->process.pid);
        case CANCEL_DRIVER_LOST:
                if (r->word == CANCEL_WORD_ERROR)
                        return buffer_append_format(out, "Spark has lost driver %s with its worker (ERROR), and nobody has proved "
                                                    "its process gone. Look on that worker's node.", r->driver_id);
                return buffer_append_format(out, "Driver %s is gone, and no Spark master knows how it ended.", r->driver_id);
        case CANCEL_INVALID_COMMAND:
                return buffer_append_format(out, "The command is invalid: %s.", o->message ? o->message : "");
        case CANCEL_OUTCOME_NONE:
        case CANCEL_IN_PROGRESS:
        case CANCEL_NOT_ON_NODE:
        case CANCEL_NOT_FOUND:
        case CANCEL_OUTCOME_MAX:
                break;
        }
        return 0;
}

/* Which kill requests there were, when they did not simply do it. */
static int message_of_kills(const struct cancel_record *r, struct buffer *out) {
        if (r->kill_requests > 0 && r->accepted_usec == 0)
                return buffer_append_format(out, " %" PRIu32 " kill request%s sent, none known to be accepted.", r->kill_requests,
                                            r->kill_requests == 1 ? " was" : "s were");
        return 0;
}

static int message_of_signals(const struct operation *o, struct buffer *out) {
        if (!o->cancel.denied)
                return 0;
        return buffer_append_format(out, " This agent was not permitted to signal process %" PRId32 ": it has lost CAP_KILL, or "
                                    "does not run as the drivers' user any more.", o->cancel.record.process.pid);
}

/* All leftovers by name, as far as there is room; the journal names them, too. */
static int message_of_leftovers(const struct operation *o, struct buffer *out) {
        const struct cancel_record *r = &o->cancel.record;
        const char *still = r->leftover_processes == 1 ? "process of the driver is" : "processes of the driver are";
        int result = -ENOBUFS;

        if (r->leftover_processes == 0)
                return 0;
        if (o->leftovers)
                result = buffer_append_format(out, " %" PRId32 " %s left behind: %s.", r->leftover_processes, still, o->leftovers);
        if (result == -ENOBUFS)
                result = buffer_append_format(out, " %" PRId32 " %s left behind.", r->leftover_processes, still);
        return result;
}

static int report_message(struct operation *o, bool final) {
        struct buffer text = BUFFER_INIT(REPORT_MESSAGE_MAX);
        const char *whole;
        int r;

        if (!final)
                return 0;
        r = message_of_end(o, &text);
        if (r == 0)
                r = message_of_kills(&o->cancel.record, &text);
        if (r == 0)
                r = message_of_signals(o, &text);
        if (r == 0 && o->message && o->cancel.record.outcome != CANCEL_INVALID_COMMAND)
                r = buffer_append_format(&text, " Before it: %s.", o->message);
        if (r == 0)
                r = message_of_leftovers(o, &text);
        whole = r < 0 ? NULL : buffer_text(&text);
        if (whole) {
                free(o->message);
                o->message = strdup(whole);
        }
        buffer_deinit(&text);
        return r < 0 ? r : o->message ? 0 : -ENOMEM;
}

static int report_keep(struct operation *o, struct buffer *bytes, int64_t sequence, bool final) {
        free(o->report);
        o->report = TAKE(bytes->data);
        o->report_size = bytes->size;
        o->report_sequence = o->sequence = sequence;
        o->report_final = final;
        *bytes = BUFFER_INIT(bytes->max);
        return 0;
}

/* report_make() - build and keep the report of record.outcome (final) or record.progress. The old one is dropped:
 * an unanswered progress report has no worth beside the final one. */
int report_make(struct operation *o, bool final) {
        const struct cancel_record *r = &o->cancel.record;
        enum cancel_outcome outcome = final ? r->outcome : r->progress;
        bool success = final && cancel_outcome_is_success(outcome);
        struct buffer bytes = BUFFER_INIT(AGENT_REPORT_BYTES_MAX);
        int status = job_status(r, outcome);
        int result = report_message(o, final);

        if (result < 0 || operation_is_silent(o, outcome))
                return result;
        result = command_encode_report(
                &(struct command_report){
                        .operation = { o->raw, o->raw_size },
                        .operation_id = o->id,
                        .cluster_id = o->cluster_id,
                        .job_id = o->job_id,
                        .node = o->agent->config->node,
                        .driver_id = r->driver_id,
                        .driver_state = o->driver_state,
                        .message = final && o->message ? o->message : "",
                        .agent_version = o->agent->agent_version,
                        .outcome = (int)outcome,
                        .job_status = status,
                        .done = final,
                        .success = success,
                        .error_code = final && !success ? error_code(r) : 0,
                        .outcome_name = cancel_outcome_to_text(outcome),
                        .received_real_usec = r->received_real_usec,
                        .accepted_real_usec = r->accepted_real_usec,
                        .ended_real_usec = r->ended_real_usec,
                        .modified_real_usec = event_real_usec(o->agent->event),
                        .kill_requests = r->kill_requests,
                        .escalation = (int)base_max_u64(r->escalation, o->cancel.leftovers_signal),
                        .leftover_processes = r->leftover_processes,
                        .job_name = o->app_name[0] ? o->app_name : NULL,
                        .job_started_real_usec = o->started_real_usec,
                        .job_finished_real_usec = r->ended_real_usec,
                        .sequence = o->sequence + 1,
                },
                &bytes);
        if (result == 0)
                result = report_keep(o, &bytes, o->sequence + 1, final);
        buffer_deinit(&bytes);
        return result;
}
