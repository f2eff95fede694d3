/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The turn: gather → step → commit → act.
 *
 * Events are stepped as they arrive; what their steps changed and allow gathers in the operations that are
 * `touched`. A turn runs from a deferred source, after the I/O of one round of the loop: one scan for all who
 * search, the slots of the Workers, one transaction for everything that changed, and, when it is stored, the deeds.
 * While a commit runs what comes in meanwhile gathers for the next one: that is the group commit; the loop itself
 * never waits. The commit, and what is done when the disk does not take it, is in agent_commit.c.
 *
 * Stream bytes are given back to the control plane's window with the commit that stores their events. So whatever
 * the server sends, what we hold in memory and have not stored is bounded by the window.
 */
#include "agent_internal.h"

#include <search.h>

#define SKEW_WARN_USEC (30 * USEC_PER_SEC)
#define SCAN_APART_USEC (50 * USEC_PER_MSEC)

struct cancel_now agent_now(const struct agent *agent) {
        return (struct cancel_now){ event_now_usec(agent->event), event_real_usec(agent->event) };
}

static int compare_ids(const void *a, const void *b) {
        return strcmp(a, b); /* the id is the first member of struct operation */
}

struct operation *agent_find(const struct agent *agent, const char *operation_id) {
        void *const *node = tfind(operation_id, &agent->tree, compare_ids);
        return node ? *node : NULL;
}

int agent_insert(struct agent *agent, struct operation *o) {
        if (!tsearch(o, &agent->tree, compare_ids))
                return -ENOMEM;
        TAILQ_INSERT_TAIL(&agent->all, o, all_link);
        return 0;
}

void agent_forget(struct agent *agent, struct operation *o) {
        tdelete(o, &agent->tree, compare_ids);
        TAILQ_REMOVE(&agent->all, o, all_link);
        operation_free(o);
}

void agent_schedule_turn(struct agent *agent) {
        (void)event_deferred_schedule(agent->turn);
}

/* One timer for all that is tried again: armed for the earliest. */
void agent_try_again(struct agent *agent, uint64_t at_usec) {
        if (at_usec >= agent->again_usec)
                return;
        agent->again_usec = at_usec;
        (void)event_timer_set(agent->again, at_usec);
}

void agent_keep_touched(struct operation *o) {
        if (o->touched)
                return;
        o->touched = true;
        TAILQ_INSERT_TAIL(&o->agent->touched, o, touched_link);
}

void agent_touch(struct operation *o) {
        agent_keep_touched(o);
        agent_schedule_turn(o->agent);
}

void agent_counts_changed(struct agent *agent) {
        if (!agent->status_changed || agent->status_armed)
                return; /* not armed again: under a steady flow of changes it would never fire */
        agent->status_armed = event_timer_set_coarse(agent->status, event_now_usec(agent->event) + USEC_PER_SEC,
                                                     USEC_PER_SEC) == 0;
}

/* ---- gather --------------------------------------------------------------------------------------------------- */

/* A scan changes nothing and waits for no commit. But a commit is also what gathers a flood of commands into one scan:
 * while it is short it does so still, and where no commit gathers them, time does. */
static bool scan_must_wait(struct agent *agent) {
        uint64_t next = agent->scanned_usec + SCAN_APART_USEC;

        if ((!agent->commit_running && !agent->failing) || event_now_usec(agent->event) >= next)
                return false;
        agent_try_again(agent, next);
        return true;
}

static void gather_scan(struct agent *agent) {
        struct operation_list scanning = TAILQ_HEAD_INITIALIZER(scanning);
        struct operation *o;
        int r;

        if (TAILQ_EMPTY(&agent->scanning) || scan_must_wait(agent))
                return;
        agent->scanned_usec = event_now_usec(agent->event);
        r = driver_scan(agent->driver);
        if (r < 0) {
                if (!agent->scan_failing)
                        journal_write(JOURNAL_SCAN_FAILED, NULL, "cannot read the list of processes: %s; trying again each second", strerror(-r));
                agent->scan_failing = true;
                agent_try_again(agent, event_now_usec(agent->event) + USEC_PER_SEC);
                return;
        }
        agent->scan_failing = false;
        TAILQ_CONCAT(&scanning, &agent->scanning, scan_link); /* a step may ask for the next scan already */
        while ((o = TAILQ_FIRST(&scanning))) {
                TAILQ_REMOVE(&scanning, o, scan_link);
                o->wants_scan = false;
                operation_feed_scan(o);
        }
}

static void gather_failed(struct agent *agent) {
        struct operation *o, *next;

        TAILQ_FOREACH_SAFE_(o, &agent->touched, touched_link, next) {
                if (o->wants_hold)
                        operation_hold(o);
                if (o->ask_failed) {
                        o->ask_failed = false;
                        operation_feed(o, &(struct cancel_event){ .type = CANCEL_EVENT_STATUS,
                                                                  .answer = CANCEL_ANSWER_UNREACHABLE });
                }
        }
}

/* ---- act ------------------------------------------------------------------------------------------------------- */

/* Deeds of operations whose record is stored as it stands, or kept as one that cannot be. What must be tried again, or
 * waits for its commit, goes back into `touched`: for the next turn, not for this walk, which would never end. */
static void act(struct agent *agent) {
        struct operation_list walk = TAILQ_HEAD_INITIALIZER(walk);
        struct operation *o;
        uint32_t deeds;

        TAILQ_CONCAT(&walk, &agent->touched, touched_link);
        while ((o = TAILQ_FIRST(&walk))) {
                TAILQ_REMOVE(&walk, o, touched_link);
                o->touched = false;
                if (o->dirty || (o->committing && !agent->failing)) {
                        agent_keep_touched(o);
                        continue;
                }
                deeds = o->act;
                o->act = 0;
                operation_do(o, deeds);
                if (o->wants_hold || o->ask_failed)
                        agent_keep_touched(o);
        }
}

static void agent_update_gauges(struct agent *agent) {
        metrics_set(METRICS_OPERATIONS_OPEN, NULL, (double)agent->open_count);
        metrics_set(METRICS_STORE_FAILING, NULL, agent->failing);
        metrics_set(METRICS_RECORDS_UNWRITTEN, NULL, (double)agent->unwritten_count);
}

/* max_open: beyond it the stream's window is kept, so that the flood waits at the server. It bounds what is open, and,
 * while the disk does not take them, the records that only memory has. */
static void agent_update_full(struct agent *agent) {
        bool many = agent->unwritten_count >= agent->config->max_open;
        bool full = many || agent->open_count >= agent->config->max_open;

        if (full == agent->full)
                return;
        agent->full = full;
        control_set_reading(agent->control, !full);
        if (full && many) {
                journal_write(JOURNAL_FULL, NULL, "%zu records wait for the disk (max_open): not reading further commands until they are written",
                              agent->unwritten_count);
                return;
        }
        if (full) {
                journal_write(JOURNAL_FULL, NULL, "%zu operations are open (max_open): not reading further commands until some end", agent->open_count);
                return;
        }
        control_taken(agent->control, agent->revision, agent->held);
        agent->held = 0;
}

static int agent_turn(void *userdata) {
        struct agent *agent = userdata;

        gather_scan(agent);
        gather_failed(agent);
        if (!agent->stopping) /* no new work */
                pace_grant(agent);
        agent_update_full(agent);
        agent_commit(agent);
        agent_update_gauges(agent);
        act(agent);
        return 0;
}

static int agent_on_again(void *userdata) {
        struct agent *agent = userdata;

        agent->again_usec = USEC_NEVER;
        agent_schedule_turn(agent);
        return 0;
}

/* ---- events of the control plane ---------------------------------------------------------------------------------- */

static void command_refused(const struct command_event *event) {
        metrics_add(METRICS_COMMANDS_INVALID, NULL, 1);
        journal_write(event->verdict == COMMAND_UNREPORTABLE ? JOURNAL_COMMAND_UNREPORTABLE : JOURNAL_COMMAND_INVALID,
                      &(struct journal_subject){ .operation_id = event->operation_id, .job_id = event->job_id,
                                                 .requested_by = event->created_by },
                      "command refused, not acted on: %s", event->reason);
}

static uint64_t command_deadline(const struct agent *agent, const struct command_event *event) {
        if (!event->has_deadline)
                return event_now_usec(agent->event) + agent->config->default_deadline_usec;
        return control_deadline_usec(agent->control, event->deadline_real_usec);
}

static int command_fill(struct operation *o, const struct command_event *event) {
        base_text_copy(o->job_id, sizeof o->job_id, event->job_id);
        base_text_copy(o->cluster_id, sizeof o->cluster_id, event->cluster_id);
        base_text_copy(o->created_by, sizeof o->created_by, event->created_by);
        if (event->operation.size > 0) {
                o->raw = malloc(event->operation.size);
                if (!o->raw)
                        return -ENOMEM;
                memcpy(o->raw, event->operation.data, event->operation.size);
                o->raw_size = event->operation.size;
        }
        if (event->reason[0]) {
                o->message = strdup(event->reason);
                if (!o->message)
                        return -ENOMEM;
        }
        return 0;
}

/* A new operation. Out of memory: the daemon ends, and the command comes again by replay: it was never stored. */
static int command_begin(struct agent *agent, const struct command_event *event, struct operation **ret) {
        struct operation *o;
        int r = operation_new(agent, event->operation_id, &o);

        if (r < 0)
                return r;
        r = command_fill(o, event);
        if (r == 0)
                r = agent_insert(agent, o);
        if (r < 0) {
                operation_free(o);
                return r;
        }
        *ret = o;
        return 0;
}

static int on_cancel(struct agent *agent, const struct command_event *event) {
        struct operation *o = agent_find(agent, event->operation_id);
        struct cancel_now now = agent_now(agent);
        int r;

        metrics_add(METRICS_COMMANDS, NULL, 1);
        if (o) {
                metrics_add(METRICS_COMMANDS_DUPLICATE, NULL, 1);
                operation_journal(o, JOURNAL_COMMAND_DUPLICATE, "the cancel of job %s came again: nothing changes", o->job_id);
                operation_feed_simple(o, CANCEL_EVENT_DUPLICATE);
                return 0;
        }
        if (event->verdict != COMMAND_VALID)
                command_refused(event);
        if (event->verdict == COMMAND_UNREPORTABLE)
                return 0;
        r = command_begin(agent, event, &o);
        if (r < 0)
                return r;
        cancel_begin(&o->cancel, &now, command_deadline(agent, event), event->dry_run, event->verdict != COMMAND_VALID,
                     event->verdict == COMMAND_VALID ? event->driver_id : "");
        operation_observe(o);
        agent->open_count++;
        if (event->verdict == COMMAND_VALID)
                operation_journal(o, JOURNAL_COMMAND_RECEIVED, "cancel received: job %s, asked for by %s, %" PRIu64 " s to its deadline%s",
                                  o->job_id, o->created_by[0] ? o->created_by : "an unnamed caller",
                                  base_usec_sub(o->cancel.record.deadline_usec, now.usec) / USEC_PER_SEC,
                                  event->dry_run ? "; a dry run: nothing will be killed" :
                                  o->observed ? "; observe mode: nothing will be killed" : "");
        operation_feed_simple(o, CANCEL_EVENT_COMMAND);
        return 0;
}

/* A cancel that was ordered on this node: an operation like the others, with the peer's uid as who asked for it. */
int agent_add_local(struct agent *agent, const char *job_id, uint32_t uid, struct operation **ret) {
        struct command_event event = { .verdict = COMMAND_VALID };
        struct cancel_now now = agent_now(agent);
        struct operation *o;
        int r;

        (void)snprintf(event.operation_id, sizeof event.operation_id, AGENT_LOCAL_PREFIX "%016" PRIx64, base_random_u64());
        (void)snprintf(event.created_by, sizeof event.created_by, "%" PRIu32, uid);
        (void)base_text_copy(event.job_id, sizeof event.job_id, job_id);
        (void)base_text_copy(event.cluster_id, sizeof event.cluster_id, agent->config->cluster_id);
        r = command_begin(agent, &event, &o);
        if (r < 0)
                return r;
        o->local = true; /* see agent_silent.c */
        cancel_begin(&o->cancel, &now, command_deadline(agent, &event), false, false, "");
        operation_observe(o);
        agent->open_count++;
        metrics_add(METRICS_COMMANDS, NULL, 1);
        operation_journal(o, JOURNAL_LOCAL_CANCEL, "cancel ordered on this node: job %s, by local user %" PRIu32 ", %" PRIu64
                          " s to its deadline%s", o->job_id, uid,
                          base_usec_sub(o->cancel.record.deadline_usec, now.usec) / USEC_PER_SEC,
                          o->observed ? "; observe mode: nothing will be killed" : "");
        operation_feed_simple(o, CANCEL_EVENT_COMMAND);
        *ret = o;
        return 0;
}

static int on_withdrawn(struct agent *agent, const struct command_event *event) {
        struct operation *o = agent_find(agent, event->operation_id);
        struct cancel_now now = agent_now(agent);
        int r;

        if (event->verdict == COMMAND_UNREPORTABLE)
                return 0;
        if (o) {
                if (o->cancel.record.state != CANCEL_DONE)
                        operation_journal(o, JOURNAL_COMMAND_WITHDRAWN, "the control plane has withdrawn the cancel of job %s", o->job_id);
                operation_feed_simple(o, CANCEL_EVENT_WITHDRAWN);
                return 0;
        }
        r = command_begin(agent, event, &o); /* remembered, so that a late command under this id is not acted on */
        if (r < 0)
                return r;
        cancel_begin(&o->cancel, &now, now.usec, false, false, "");
        agent->open_count++;
        operation_feed_simple(o, CANCEL_EVENT_WITHDRAWN);
        return 0;
}

static void on_bookmark(struct agent *agent, const struct command_event *event) {
        uint64_t real = event_real_usec(agent->event), server = event->server_real_usec;
        uint64_t skew = real > server ? real - server : server - real;

        if (server == 0)
                return;
        if (skew > SKEW_WARN_USEC && !agent->skew_warned)
                journal_write(JOURNAL_CLOCK_SKEW, NULL, "this node's clock and the control plane's differ by %" PRIu64
                              " s; deadlines are not affected, the times in reports are", skew / USEC_PER_SEC);
        agent->skew_warned = skew > SKEW_WARN_USEC;
        agent->skew_usec = skew;
        agent->skew_known = true;
}

static int agent_on_event(const struct command_event *event, size_t size, void *userdata) {
        struct agent *agent = userdata;
        int r = 0;

        switch (event->kind) {
        case COMMAND_EVENT_CANCEL:
                r = on_cancel(agent, event);
                break;
        case COMMAND_EVENT_WITHDRAWN:
                r = on_withdrawn(agent, event);
                break;
        case COMMAND_EVENT_BOOKMARK:
                on_bookmark(agent, event);
                break;
        case COMMAND_EVENT_UNKNOWN:
                break;
        }
        if (r < 0)
                return r;
        agent->taken += size;
        if (event->revision > agent->revision_next)
                agent->revision_next = event->revision;
        agent_schedule_turn(agent);
        return 0;
}

static int agent_on_restart(void *userdata) {
        struct agent *agent = userdata;

        agent->revision = agent->revision_next = 0; /* a position of the order before says nothing in the new one */
        agent->revision_reset = true;
        agent_schedule_turn(agent);
        return 0;
}

static int agent_on_report(const char *operation_id, int64_t sequence, enum control_answer answer, const char *reason,
                           void *userdata) {
        struct operation *o = agent_find(userdata, operation_id);

        if (!o || sequence != o->report_sequence)
                return 0; /* an older progress report */
        if (answer == CONTROL_REPORT_REJECTED)
                operation_journal(o, JOURNAL_PROTOCOL, "the control plane rejected a report of job %s: %s", o->job_id, reason);
        o->acknowledged_sequence = sequence;
        if (!o->report_final)
                return 0; /* stored with the next turn that writes this operation; sent again after a crash, which is harmless */
        operation_feed(o, &(struct cancel_event){ .type = CANCEL_EVENT_REPORT_ANSWERED,
                                                  .accepted = answer == CONTROL_REPORT_ACCEPTED });
        return 0;
}

static enum journal_event notice_event(enum control_notice notice) {
        switch (notice) {
        case CONTROL_CONNECTED:
                return JOURNAL_CONNECTED;
        case CONTROL_DISCONNECTED:
        case CONTROL_SILENT:
                return JOURNAL_DISCONNECTED;
        case CONTROL_NODE_TAKEN:
                return JOURNAL_NODE_TAKEN;
        case CONTROL_HISTORY_GONE:
                return JOURNAL_HISTORY_GONE;
        case CONTROL_REPORTS_FAILING:
                return JOURNAL_REPORTS_FAILING;
        case CONTROL_REVISION_BACKWARD:
        case CONTROL_BAD_MESSAGE:
                return JOURNAL_PROTOCOL;
        case CONTROL_TOKEN_FAILED:
                return JOURNAL_TOKEN_FAILED;
        }
        return JOURNAL_PROTOCOL;
}

static const char *notice_words(enum control_notice notice) {
        switch (notice) {
        case CONTROL_CONNECTED:
                return "connected to the control plane at";
        case CONTROL_DISCONNECTED:
                return "no connection to the control plane:";
        case CONTROL_SILENT:
                return "the control plane is silent, reconnecting:";
        case CONTROL_NODE_TAKEN:
                return "another agent has this node's name:";
        case CONTROL_HISTORY_GONE:
                return "the control plane's history is gone, starting over:";
        case CONTROL_REPORTS_FAILING:
                return "no report has got through for 5 minutes; they are kept:";
        case CONTROL_REVISION_BACKWARD:
                return "a revision went backward within the stream:";
        case CONTROL_BAD_MESSAGE:
                return "a message of the control plane makes no sense, ignoring it:";
        case CONTROL_TOKEN_FAILED:
                return "no usable token for the control plane:";
        }
        return "";
}

static int agent_on_notice(enum control_notice notice, const char *detail, void *userdata) {
        struct agent *agent = userdata;
        bool connected = control_is_connected(agent->control);

        journal_write(notice_event(notice), NULL, "%s %s", notice_words(notice), detail);
        agent->connected = connected;
        if (connected)
                agent->notice[0] = 0;
        else
                (void)base_text_copy(agent->notice, sizeof agent->notice, detail);
        agent_counts_changed(agent);
        return 0;
}

const struct control_handlers agent_control_handlers = {
        .on_event = agent_on_event,
        .on_restart = agent_on_restart,
        .on_report = agent_on_report,
        .on_notice = agent_on_notice,
};

/* ---- the work directory ------------------------------------------------------------------------------------------- */

/* Measured on real Spark: the directory is there 70 to 100 ms after the submission, the process at 220 to 270. */
static const uint64_t rescan_after[] = { 20 * USEC_PER_MSEC, 150 * USEC_PER_MSEC, 300 * USEC_PER_MSEC, USEC_PER_SEC };

static void rescan_all(struct agent *agent) {
        struct operation *o;

        TAILQ_FOREACH(o, &agent->all, all_link)
                if (o->cancel.record.state == CANCEL_SEARCH && !o->wants_scan) {
                        o->wants_scan = true;
                        TAILQ_INSERT_TAIL(&agent->scanning, o, scan_link);
                }
        agent_schedule_turn(agent);
}

static int agent_on_rescan(void *userdata) {
        struct agent *agent = userdata;

        rescan_all(agent);
        if (++agent->rescans < ARRAY_SIZE(rescan_after))
                return event_timer_set(agent->rescan, event_now_usec(agent->event) + rescan_after[agent->rescans]);
        return 0;
}

int agent_driver_wake(void *userdata) {
        struct agent *agent = userdata;

        if (agent->open_count == 0)
                return 0;
        agent->rescans = 0;
        return event_timer_set(agent->rescan, event_now_usec(agent->event) + rescan_after[0]);
}

/* ---- life ---------------------------------------------------------------------------------------------------------- */

static int agent_on_status_timer(void *userdata) {
        struct agent *agent = userdata;

        agent->status_armed = false;
        return agent->status_changed ? agent->status_changed(agent->status_userdata) : 0;
}

static int agent_add_sources(struct agent *agent) {
        struct event *event = agent->event;
        int r = event_add_deferred(event, "turn", agent_turn, agent, &agent->turn);

        if (r == 0)
                r = event_add_timer(event, "again", agent_on_again, agent, &agent->again);
        if (r == 0)
                r = agent_commit_init(agent);
        if (r == 0)
                r = event_add_timer(event, "status", agent_on_status_timer, agent, &agent->status);
        if (r == 0)
                r = event_add_timer(event, "rescan", agent_on_rescan, agent, &agent->rescan);
        return r;
}

int agent_new(struct event *event, const struct agent_options *options, struct agent **ret) {
        struct agent *agent = calloc(1, sizeof *agent);
        int r;

        if (!agent)
                return -ENOMEM;
        agent->event = event;
        agent->agent_version = options->agent_version;
        agent->again_usec = USEC_NEVER;
        TAILQ_INIT(&agent->all);
        TAILQ_INIT(&agent->touched);
        TAILQ_INIT(&agent->committing_list);
        TAILQ_INIT(&agent->unwritten);
        TAILQ_INIT(&agent->scanning);
        TAILQ_INIT(&agent->done_list);
        TAILQ_INIT(&agent->workers);
        TAILQ_INIT(&agent->questions);
        agent_reconfigure(agent, options->config);
        r = agent_add_sources(agent);
        if (r < 0) {
                agent_free(agent);
                return r;
        }
        *ret = agent;
        return 0;
}

struct agent *agent_free(struct agent *agent) {
        struct agent_question *question;
        struct operation *o;

        if (!agent)
                return NULL;
        while ((question = TAILQ_FIRST(&agent->questions)))
                question->free(question);
        while ((o = TAILQ_FIRST(&agent->all)))
                agent_forget(agent, o);
        pace_deinit(agent);
        agent->turn = event_source_free(agent->turn);
        agent->again = event_source_free(agent->again);
        agent_commit_deinit(agent);
        agent->status = event_source_free(agent->status);
        agent->rescan = event_source_free(agent->rescan);
        free(agent);
        return NULL;
}

void agent_attach(struct agent *agent, struct control *control, struct driver *driver, struct spark *spark,
                  struct store *store) {
        agent->control = control;
        agent->driver = driver;
        agent->spark = spark;
        agent->store = store;
}

void agent_lend(struct agent *agent, struct http *http, struct token *spark_token) {
        agent->http = http;
        agent->spark_token = spark_token;
}

void agent_reconfigure(struct agent *agent, const struct config *config) {
        agent->config = config;
        agent->cancel_config = (struct cancel_config){
                .kill_retry_usec = config->kill_retry_usec,
                .escalate_after_usec = config->escalate_after_usec,
                .force_after_usec = config->force_after_usec,
                .relaunch_window_usec = config->relaunch_window_usec,
                .escalation = config->escalation,
                .search_interval_usec = AGENT_SEARCH_INTERVAL_USEC,
        };
}

int agent_start(struct agent *agent, const struct store_info *info) {
        int r;

        agent->revision = agent->revision_next = info->revision;
        /* What an earlier life reported and could not store is not known here. A number of its own from which each life
         * counts keeps its reports apart from those (the contract takes gaps). */
        agent->sequence_base = (int64_t)base_max_u64((uint64_t)info->sequence_base, event_real_usec(agent->event));
        r = agent_load(agent);
        if (r < 0)
                return r;
        agent_schedule_turn(agent);
        return control_start(agent->control, agent->revision);
}

int agent_stop(struct agent *agent, uint64_t timeout_usec) {
        if (agent->stopping)
                return 0;
        agent->stopping = true;
        return control_drain(agent->control, timeout_usec, agent_commit_last, agent);
}

void agent_on_status(struct agent *agent, int (*changed)(void *userdata), void *userdata) {
        agent->status_changed = changed;
        agent->status_userdata = userdata;
}
