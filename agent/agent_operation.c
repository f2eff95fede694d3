/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One operation in the shell: its value, the events that reach it, the effects of its steps.
 *
 * An event is stepped as it arrives; what the step allows is gathered. Questions (scan, status) go out at once or
 * with the turn, since they change nothing. Deeds wait in `act` until the record that allows them is stored; those
 * that a running commit covers are in `act_committing`, so that a later change of the record does not hold them up.
 */
#include "agent_internal.h"

static enum cancel_answer answer_from_spark(enum spark_answer answer) {
        switch (answer) {
        case SPARK_ACCEPTED:
                return CANCEL_ANSWER_ACCEPTED;
        case SPARK_UNKNOWN_ID:
                return CANCEL_ANSWER_UNKNOWN_ID;
        case SPARK_NOT_ALIVE:
                return CANCEL_ANSWER_NOT_ALIVE;
        case SPARK_UNREACHABLE:
                return CANCEL_ANSWER_UNREACHABLE;
        case SPARK_REFUSED:
                return CANCEL_ANSWER_REFUSED;
        case SPARK_REFUSED_AUTH:
                return CANCEL_ANSWER_REFUSED_AUTH;
        case SPARK_ANSWER_MAX:
                break;
        }
        return CANCEL_ANSWER_UNREACHABLE;
}

static enum cancel_word word_from_spark(enum spark_driver_state state) {
        switch (state) {
        case SPARK_STATE_NONE:
                return CANCEL_WORD_NONE;
        case SPARK_STATE_SUBMITTED:
                return CANCEL_WORD_SUBMITTED;
        case SPARK_STATE_RUNNING:
                return CANCEL_WORD_RUNNING;
        case SPARK_STATE_FINISHED:
                return CANCEL_WORD_FINISHED;
        case SPARK_STATE_RELAUNCHING:
                return CANCEL_WORD_RELAUNCHING;
        case SPARK_STATE_KILLED:
                return CANCEL_WORD_KILLED;
        case SPARK_STATE_FAILED:
                return CANCEL_WORD_FAILED;
        case SPARK_STATE_ERROR:
                return CANCEL_WORD_ERROR;
        case SPARK_STATE_OTHER:
                break;
        }
        return CANCEL_WORD_OTHER;
}

/* ---- life ------------------------------------------------------------------------------------------------- */

static int operation_on_timer(void *userdata) {
        operation_feed_simple(userdata, CANCEL_EVENT_TIMER);
        return 0;
}

int operation_new(struct agent *agent, const char *id, struct operation **ret) {
        struct operation *o = calloc(1, sizeof *o);
        int r;

        if (!o)
                return -ENOMEM;
        o->agent = agent;
        base_text_copy(o->id, sizeof o->id, id);
        o->sequence = agent->sequence_base;
        r = event_add_timer(agent->event, "operation", operation_on_timer, o, &o->timer);
        if (r < 0) {
                free(o);
                return r;
        }
        *ret = o;
        return 0;
}

/* Once, whoever waits for it. */
void operation_tell_stored(struct operation *o, bool stored) {
        if (o->stored)
                TAKE(o->stored)(o, stored);
}

/* Also takes it out of every list that it is in; the caller has taken it out of the tree. */
struct operation *operation_free(struct operation *o) {
        if (!o)
                return NULL;
        operation_tell_stored(o, false);
        if (o->touched)
                TAILQ_REMOVE(&o->agent->touched, o, touched_link);
        if (o->wants_scan)
                TAILQ_REMOVE(&o->agent->scanning, o, scan_link);
        o->status_request = spark_request_free(o->status_request);
        o->kill_request = spark_request_free(o->kill_request);
        o->hold = driver_hold_free(o->hold);
        o->ended = driver_hold_free(o->ended);
        free(o->leftovers);
        o->timer = event_source_free(o->timer);
        free(o->raw);
        free(o->message);
        free(o->report);
        free(o);
        return NULL;
}

void operation_journal(const struct operation *o, enum journal_event event, const char *format, ...) {
        const struct cancel_record *r = &o->cancel.record;
        char message[1024];
        va_list arguments;

        va_start(arguments, format);
        (void)vsnprintf(message, sizeof message, format, arguments);
        va_end(arguments);
        journal_write(event,
                      &(struct journal_subject){
                              .operation_id = o->id,
                              .requested_by = o->created_by,
                              .job_id = o->job_id,
                              .cluster_id = o->cluster_id,
                              .driver_id = r->driver_id,
                              .driver_pid = r->process.pid,
                              .master = o->master,
                              .state = cancel_state_to_text(r->state),
                              .outcome = cancel_outcome_to_text(r->outcome),
                      },
                      "%s", message);
}

void operation_to_store(const struct operation *o, struct store_operation *ret) {
        *ret = (struct store_operation){
                .operation_id = o->id,
                .cluster_id = o->cluster_id,
                .job_id = o->job_id,
                .created_by = o->created_by,
                .boot_id = event_boot_id(o->agent->event),
                .operation = { o->raw, o->raw_size },
                .record = o->cancel.record,
                .driver_state = o->driver_state,
                .app_name = o->app_name,
                .message = o->message ? o->message : "",
                .started_real_usec = o->started_real_usec,
                .sequence = o->local ? 0 : o->sequence,
                .acknowledged_sequence = o->acknowledged_sequence,
                .report_sequence = o->report_sequence,
                .report_final = o->report_final,
                .report = { o->report, o->report_size },
                .done_real_usec = o->done_real_usec,
        };
        ret->record.dry_run = o->dry_run_asked;
}

/* ---- what the world says ------------------------------------------------------------------------------------ */

static int operation_on_exited(void *userdata) {
        struct operation *o = userdata;

        driver_hold_join(o->hold, TAKE(o->ended));
        o->ended = TAKE(o->hold);
        operation_feed_simple(o, CANCEL_EVENT_EXITED);
        return 0;
}

/* The hold that the machine asked for. When the kernel has no descriptor left it is tried again: until then the
 * end of the process is not seen, and so not claimed. */
void operation_hold(struct operation *o) {
        const struct cancel_process *process = &o->cancel.record.process;
        const struct driver_found found = {
                .pid = process->pid,
                .start_ticks = process->start_ticks,
        };
        int r;

        if (o->hold || !o->cancel.driver_held) {
                o->wants_hold = false;
                return;
        }
        r = driver_hold(o->agent->driver, &found, operation_on_exited, o, &o->hold);
        o->wants_hold = r < 0;
        if (r > 0) {
                operation_feed_simple(o, CANCEL_EVENT_EXITED);
        } else if (r < 0) {
                if (!o->hold_failing)
                        operation_journal(o, JOURNAL_HOLD_FAILED,
                                          "cannot watch process %" PRId32 " of job %s: %s; trying again each second",
                                          process->pid, o->job_id, strerror(-r));
                agent_try_again(o->agent, event_now_usec(o->agent->event) + USEC_PER_SEC);
        }
        o->hold_failing = r < 0;
}

/* The same process is found again by each pass: it is told once. */
static void operation_tell_foreign(struct operation *o, int32_t pid, const char *worker_host_port) {
        if (o->told_foreign == pid)
                return;
        o->told_foreign = pid;
        operation_journal(o, JOURNAL_DRIVER_FOREIGN,
                          "process %" PRId32 " claims driver %s of job %s, but Spark places that driver on %s: left alone", pid,
                          cancel_status_id(&o->cancel), o->job_id, worker_host_port);
}

static int operation_on_status(const struct spark_result *result, void *userdata) {
        struct operation *o = userdata;
        const struct cancel_record *r = &o->cancel.record;
        bool suspect = r->state == CANCEL_SETTLE && o->cancel.suspect.process.pid > 0;
        struct cancel_event event = {
                .type = CANCEL_EVENT_STATUS,
                .answer = answer_from_spark(result->answer),
                .word = word_from_spark(result->state),
                .here = result->worker_named && result->worker_here,
                .elsewhere = result->worker_named && !result->worker_here,
        };

        o->status_request = spark_request_free(o->status_request);
        if (result->state_text[0] && !suspect)
                base_text_copy(o->driver_state, sizeof o->driver_state, result->state_text);
        log_debug("status of %s: %s (%s)", cancel_status_id(&o->cancel), spark_answer_to_text(result->answer),
                  result->answer == SPARK_ACCEPTED ? result->state_text : result->detail);
        if (event.elsewhere && (suspect || r->state == CANCEL_KILL))
                operation_tell_foreign(o, suspect ? o->cancel.suspect.process.pid : r->process.pid, result->worker_host_port);
        operation_feed(o, &event);
        return 0;
}

static void operation_ask_status(struct operation *o) {
        int r;

        o->status_request = spark_request_free(o->status_request);
        r = spark_status(o->agent->spark, cancel_status_id(&o->cancel), operation_on_status, o, &o->status_request);
        o->ask_failed = r < 0;
        if (r < 0)
                agent_touch(o);
        else
                log_debug("status of %s: asked", cancel_status_id(&o->cancel));
}

static int operation_on_killed(const struct spark_result *result, void *userdata) {
        struct operation *o = userdata;
        struct cancel_event event = {
                .type = CANCEL_EVENT_KILL_ANSWERED,
                .answer = answer_from_spark(result->answer),
                .asked = (uint32_t)result->asked,
        };

        o->kill_request = spark_request_free(o->kill_request);
        o->master = result->master;
        if (result->answer == SPARK_ACCEPTED)
                operation_journal(o, JOURNAL_KILL_ACCEPTED, "kill accepted: driver %s of job %s, by %s",
                                  o->cancel.record.driver_id, o->job_id, result->master);
        else
                operation_journal(o, JOURNAL_KILL_FAILED, "kill of driver %s of job %s not accepted: %s (%s)",
                                  o->cancel.record.driver_id, o->job_id, spark_answer_to_text(result->answer),
                                  result->detail);
        o->master = NULL;
        operation_feed(o, &event);
        return 0;
}

/* ---- deeds ----------------------------------------------------------------------------------------------------- */

static void operation_kill(struct operation *o) {
        uint64_t now = event_now_usec(o->agent->event);
        int r;

        o->kill_request = spark_request_free(o->kill_request);
        operation_feed_simple(o, CANCEL_EVENT_KILL_SENT);
        r = spark_kill(o->agent->spark, o->cancel.record.driver_id, operation_on_killed, o, &o->kill_request);
        if (r < 0) { /* handed to no master */
                operation_feed(o, &(struct cancel_event){ .type = CANCEL_EVENT_KILL_ANSWERED,
                                                          .answer = CANCEL_ANSWER_UNREACHABLE });
                return;
        }
        if (o->hold)
                driver_note_descendants(o->hold);
        log_debug("kill of %s: asked", o->cancel.record.driver_id);
        metrics_add(METRICS_KILL_REQUESTS, NULL, 1);
        if (o->cancel.record.kill_requests == 1)
                metrics_observe_usec(METRICS_KILL_SECONDS, base_usec_sub(now, o->cancel.record.received_usec));
}

static enum cancel_signal_result signal_result(int result) {
        if (result == 0)
                return CANCEL_SIGNAL_SENT;
        return result == -ESRCH ? CANCEL_SIGNAL_GONE : CANCEL_SIGNAL_DENIED;
}

static void operation_signal(struct operation *o, uint32_t act, int signal_number, const char *name) {
        int r;

        if (!o->hold && o->wants_hold) { /* there was no descriptor for it: with the next try */
                o->act |= act;
                agent_keep_touched(o);
                return;
        }
        r = o->hold ? driver_signal(o->hold, signal_number) : -ESRCH;
        operation_journal(o, JOURNAL_DRIVER_SIGNALLED, "%s to driver process %" PRId32 " of job %s: %s%s", name,
                          o->cancel.record.process.pid, o->job_id, r < 0 ? strerror(-r) : "sent",
                          r == -EPERM ? "; this agent has lost the right to signal it (CAP_KILL, or the drivers' user)" : "");
        operation_feed(o, &(struct cancel_event){
                                  .type = CANCEL_EVENT_SIGNALLED,
                                  .signal = act == CANCEL_ACT_FORCE ? CANCEL_ESCALATION_SIGKILL : CANCEL_ESCALATION_SIGTERM,
                                  .signal_result = signal_result(r),
                          });
}

static void operation_make_report(struct operation *o, uint32_t act) {
        int r;

        if (!(act & (CANCEL_ACT_PROGRESS | CANCEL_ACT_REPORT)))
                return;
        r = report_make(o, (act & CANCEL_ACT_REPORT) != 0);
        if (r < 0)
                operation_journal(o, JOURNAL_STORE_FAILED, "cannot make the report of job %s: %s", o->job_id, strerror(-r));
}

static void operation_send_report(struct operation *o) {
        int r;

        if (o->cancel.record.state == CANCEL_REPORT && !o->report_final) { /* there was no memory to make it */
                operation_make_report(o, CANCEL_ACT_REPORT);
                o->dirty = true;
                o->act |= CANCEL_ACT_RESEND;
                agent_keep_touched(o);
                agent_try_again(o->agent, event_now_usec(o->agent->event) + USEC_PER_SEC);
                return;
        }
        if (!o->report || o->report_sequence == 0)
                return;
        r = control_report(o->agent->control, o->id, o->report_sequence, o->report_final,
                           (struct span){ o->report, o->report_size });
        if (r < 0) { /* out of memory: it is stored; again in a moment */
                o->act |= CANCEL_ACT_RESEND;
                agent_keep_touched(o);
                agent_try_again(o->agent, event_now_usec(o->agent->event) + USEC_PER_SEC);
        }
}

void operation_do(struct operation *o, uint32_t act) {
        const uint32_t report = CANCEL_ACT_PROGRESS | CANCEL_ACT_REPORT | CANCEL_ACT_RESEND;

        if ((act & report) && o->dirty)
                o->act |= act & report; /* a newer report may have taken the stored one's place: after its commit */
        else if (act & report)
                operation_send_report(o);
        if (act & CANCEL_ACT_TERM)
                operation_signal(o, CANCEL_ACT_TERM, SIGTERM, "SIGTERM");
        if (act & CANCEL_ACT_FORCE)
                operation_signal(o, CANCEL_ACT_FORCE, SIGKILL, "SIGKILL");
        if (act & CANCEL_ACT_TERM_LEFTOVERS)
                operation_signal_leftovers(o, SIGTERM, "SIGTERM");
        if (act & CANCEL_ACT_FORCE_LEFTOVERS)
                operation_signal_leftovers(o, SIGKILL, "SIGKILL");
        if (act & CANCEL_ACT_KILL)
                operation_kill(o);
}

/* Deeds that wait for their commit are for the driver that they were decided for. When the operation has gone on
 * meanwhile (the driver ended, another one was found) they are dropped; the machine has taken them back. */
static void operation_drop_deeds(struct operation *o, const struct cancel_record *before) {
        const struct cancel_record *r = &o->cancel.record;
        bool other = strcmp(before->driver_id, r->driver_id) != 0;
        bool signalling = r->state == CANCEL_TERM || r->state == CANCEL_FORCE;
        uint32_t stale = 0;

        if (other) {
                o->status_request = spark_request_free(o->status_request);
                o->kill_request = spark_request_free(o->kill_request);
        }
        if (other || (r->state != CANCEL_KILL && !signalling))
                stale |= CANCEL_ACT_KILL;
        if (other || !signalling)
                stale |= CANCEL_ACT_TERM;
        if (other || r->state != CANCEL_FORCE)
                stale |= CANCEL_ACT_FORCE;
        o->act &= ~stale;
        o->act_committing &= ~stale;
}

/* ---- the step and its effects ------------------------------------------------------------------------------------ */

/* How an earlier driver was signalled is in no other field of the report: these speak of the last one. */
static const char *signal_words(enum cancel_escalation escalation) {
        return escalation == CANCEL_ESCALATION_SIGKILL   ? " (SIGKILL)"
               : escalation == CANCEL_ESCALATION_SIGTERM ? " (SIGTERM)"
                                                         : "";
}

/* The job came back under another driver id: the report names all that were killed. */
static void operation_note_earlier(struct operation *o, const struct cancel *before) {
        struct buffer text = BUFFER_INIT(REPORT_MESSAGE_MAX / 2);
        const struct cancel_record *r = &before->record;
        const char *whole;

        if (r->driver_id[0] == 0 || strcmp(r->driver_id, o->cancel.record.driver_id) == 0 ||
            (cancel_kills_of_driver(before) == 0 && r->escalation == CANCEL_ESCALATION_NONE))
                return;
        if (buffer_append_format(&text, "%s%s%s%s", o->message ? o->message : "", o->message ? ", " : "", r->driver_id,
                                 signal_words(r->escalation)) == 0 &&
            (whole = buffer_text(&text))) {
                free(o->message);
                o->message = strdup(whole);
        }
        buffer_deinit(&text);
}

/* A driver that leads nowhere is found again by each pass: it is told once. */
static bool operation_is_news(struct operation *o) {
        if (strcmp(o->told_driver_id, o->cancel.record.driver_id) == 0)
                return false;
        base_text_copy(o->told_driver_id, sizeof o->told_driver_id, o->cancel.record.driver_id);
        return true;
}

static void operation_tell(struct operation *o, const struct cancel_record *before) {
        const struct cancel_record *r = &o->cancel.record;
        uint64_t now = event_now_usec(o->agent->event);

        if (r->driver_id[0] != 0 && strcmp(before->driver_id, r->driver_id) != 0 && operation_is_news(o)) {
                if (o->cancel.by_record)
                        operation_journal(o, JOURNAL_DRIVER_FOUND,
                                          "driver %s of job %s is not on this node; Spark's records are asked (queued_drivers)",
                                          r->driver_id, o->job_id);
                else
                        operation_journal(o, JOURNAL_DRIVER_FOUND, r->process.pid ? "driver found: %s of job %s, process %" PRId32 :
                                          "driver found: %s of job %s, known to Spark here, no process (%" PRId32 ")",
                                          r->driver_id, o->job_id, r->process.pid);
                if (r->command_driver_id[0] && strcmp(r->command_driver_id, r->driver_id) != 0)
                        operation_journal(o, JOURNAL_DRIVER_DIFFERS,
                                          "the command names driver %s, the process of job %s is driver %s: the process counts",
                                          r->command_driver_id, o->job_id, r->driver_id);
        }
        if (before->ended_usec == 0 && r->ended_usec != 0) {
                operation_journal(o, JOURNAL_DRIVER_GONE, "driver is gone: process %" PRId32 " of job %s, %" PRIu64
                                  " ms after the cancel was received",
                                  r->process.pid, o->job_id, base_usec_sub(now, r->received_usec) / USEC_PER_MSEC);
                metrics_observe_usec(METRICS_DEATH_SECONDS, base_usec_sub(now, r->received_usec));
        }
        operation_tell_leftovers(o, before);
        if (before->progress != r->progress && r->progress == CANCEL_NOT_ON_NODE)
                operation_journal(o, JOURNAL_DRIVER_NOT_HERE, "no driver of job %s on this node; looking on until %s", o->job_id,
                                  "the operation is withdrawn or its deadline passes");
        if (before->outcome != r->outcome) {
                operation_journal(o, o->observed ? JOURNAL_OBSERVED : JOURNAL_OUTCOME, "outcome %s: %s",
                                  cancel_outcome_to_text(r->outcome),
                                  o->message ? o->message : "");
                metrics_add(METRICS_OUTCOMES, cancel_outcome_to_text(r->outcome), 1);
                o->agent->last_outcome_usec = now;
        }
        if (before->state != r->state && r->state == CANCEL_QUARANTINE)
                operation_journal(o, JOURNAL_REPORT_QUARANTINED,
                                  "the control plane rejected the report of job %s: kept, not sent again; "
                                  "see the control plane's log, then `spark-cancelctl retry %s`", o->job_id, o->id);
        if (before->state == CANCEL_REPORT && r->state == CANCEL_DONE && !operation_is_silent(o, r->outcome))
                operation_journal(o, JOURNAL_REPORT_ACKNOWLEDGED, "report acknowledged: job %s, %s", o->job_id,
                                  cancel_outcome_to_text(r->outcome));
}

/* DONE keeps only what a late duplicate needs. */
static void operation_shrink(struct operation *o) {
        o->raw_size = 0;
        free(o->raw);
        o->raw = NULL;
        o->status_request = spark_request_free(o->status_request);
        o->kill_request = spark_request_free(o->kill_request);
        o->hold = driver_hold_free(o->hold);
        free(o->leftovers);
        o->leftovers = NULL;
        o->done_real_usec = event_real_usec(o->agent->event);
        TAILQ_INSERT_TAIL(&o->agent->done_list, o, done_link);
        o->agent->done_count++;
}

static void operation_count(struct operation *o, enum cancel_state before) {
        struct agent *agent = o->agent;
        enum cancel_state after = o->cancel.record.state;

        if (before == after)
                return;
        if (cancel_counts_open(before) && !cancel_counts_open(after))
                agent->open_count--;
        if (!cancel_counts_open(before) && cancel_counts_open(after))
                agent->open_count++;
        if (after == CANCEL_SEARCH || !cancel_counts_open(after))
                o->ended = driver_hold_free(o->ended);
        if (after == CANCEL_DONE)
                operation_shrink(o);
        agent_counts_changed(agent);
}

static void operation_apply_changes(struct operation *o, uint32_t change) {
        if (change & CANCEL_RELEASE)
                o->hold = driver_hold_free(o->hold);
        if (change & CANCEL_SLOT_RELEASED)
                pace_release(o);
        if (change & CANCEL_SLOT_WANTED)
                pace_want(o);
        if (change & CANCEL_HOLD) {
                o->hold = driver_hold_free(o->hold);
                o->wants_hold = true;
                agent_touch(o);
        }
}

static void operation_apply_asks(struct operation *o, uint32_t ask) {
        if ((ask & CANCEL_ASK_SCAN) && !o->wants_scan) {
                o->wants_scan = true;
                TAILQ_INSERT_TAIL(&o->agent->scanning, o, scan_link);
                agent_schedule_turn(o->agent);
        }
        if (ask & CANCEL_ASK_STATUS)
                operation_ask_status(o);
}

static void operation_check(const struct cancel *before, const struct operation *o, const struct cancel_update *update) {
#ifdef DEBUG_CHECKS
        const char *broken = cancel_check(before, &o->cancel, update);
        if (broken) {
                (void)fprintf(stderr, "operation %s: invariant broken: %s (%s to %s)\n", o->id, broken,
                              cancel_state_to_text(before->record.state), cancel_state_to_text(o->cancel.record.state));
                abort();
        }
#else
        (void)before;
        (void)o;
        (void)update;
#endif
}

void operation_feed(struct operation *o, const struct cancel_event *event) {
        struct cancel before = o->cancel;
        struct cancel_now now = agent_now(o->agent);
        struct cancel_update update;

        cancel_step(&o->cancel, &o->agent->cancel_config, event, &now, &update);
        operation_check(&before, o, &update);
        operation_drop_deeds(o, &before.record);
        operation_note_earlier(o, &before);
        operation_make_report(o, update.act);
        operation_apply_changes(o, update.change);
        operation_apply_asks(o, update.ask);
        if (cancel_counts_open(o->cancel.record.state)) /* pace may have set it after the step */
                update.wake_usec = base_min_u64(update.wake_usec, o->cancel.retry_usec);
        (void)event_timer_set(o->timer, update.wake_usec);
        o->act |= update.act;
        o->dirty |= update.durable;
        if (update.act || update.durable)
                agent_touch(o);
        operation_tell(o, &before.record);
        operation_count(o, before.record.state);
        operation_end_silently(o, &before.record);
}

void operation_feed_simple(struct operation *o, enum cancel_event_type type) {
        operation_feed(o, &(struct cancel_event){ .type = type });
}

/* The job's process that stands behind those which do not count; DRIVER_MATCH_CONTESTED is told once. */
static enum driver_match operation_match(struct operation *o, struct driver_found *ret) {
        const struct cancel_process *aside = &o->cancel.aside;
        const struct driver_found after = {
                .pid = aside->pid,
                .start_ticks = aside->start_ticks,
        };
        enum driver_match match = driver_match(o->agent->driver, o->job_id, aside->pid > 0 ? &after : NULL, ret);

        if (match == DRIVER_MATCH_CONTESTED && strcmp(o->told_driver_id, ret->driver_id) != 0) {
                base_text_copy(o->told_driver_id, sizeof o->told_driver_id, ret->driver_id);
                operation_journal(o, JOURNAL_DRIVER_FOREIGN,
                                  "two processes claim driver %s under different job ids: neither is touched", ret->driver_id);
        }
        return match;
}

static void found_from_driver(const struct operation *o, const struct driver_found *found, struct cancel_found *ret) {
        const struct cancel_process *known = &o->cancel.record.process;

        *ret = (struct cancel_found){
                .process = { found->pid, found->worker_pid, found->start_ticks, found->worker_start_ticks },
                .supervised = found->supervised,
                .orphan = found->worker_pid == 0 && (found->pid != known->pid || found->start_ticks != known->start_ticks),
        };
        base_text_copy(ret->driver_id, sizeof ret->driver_id, found->driver_id);
}

/* What the scan that has just been made says of this operation's job. */
void operation_feed_scan(struct operation *o) {
        const struct cancel_record *r = &o->cancel.record;
        struct cancel_event event = { .type = CANCEL_EVENT_SCANNED };
        struct driver_found found;
        enum driver_match match = operation_match(o, &found);

        if (r->state == CANCEL_SETTLE)
                operation_look_for_leftovers(o, &event);
        if (r->process.pid > 0)
                event.process_alive = driver_process_alive(o->agent->driver, r->process.pid, r->process.start_ticks);
        if (match == DRIVER_MATCH_ONE || match == DRIVER_MATCH_ORPHAN) {
                event.scan = CANCEL_SCAN_PROCESS;
                found_from_driver(o, &found, &event.found);
                if (r->state != CANCEL_SETTLE) { /* there it may only claim to be of this job */
                        base_text_copy(o->app_name, sizeof o->app_name, found.app_name);
                        o->started_real_usec = found.started_real_usec;
                }
        } else if (match == DRIVER_MATCH_NONE && r->command_driver_id[0] &&
                   driver_directory_exists(o->agent->driver, r->command_driver_id)) {
                event.scan = CANCEL_SCAN_DIRECTORY;
                base_text_copy(event.found.driver_id, sizeof event.found.driver_id, r->command_driver_id);
        } else if (match == DRIVER_MATCH_NONE && r->command_driver_id[0] && o->agent->config->queued_drivers) {
                event.scan = CANCEL_SCAN_RECORD;
                base_text_copy(event.found.driver_id, sizeof event.found.driver_id, r->command_driver_id);
        }
        operation_feed(o, &event);
}
