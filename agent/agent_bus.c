/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the agent tells people: the STATUS= line and the functions behind the local bus.
 */
#include "agent_internal.h"
#include "bus.h"

static void count_states(const struct agent *agent, struct bus_status *ret) {
        const struct operation *o;

        TAILQ_FOREACH(o, &agent->all, all_link) {
                if (cancel_is_open(o->cancel.record.state))
                        ret->open++;
                if (o->cancel.record.state == CANCEL_SEARCH)
                        ret->searching++;
                if (o->cancel.record.state == CANCEL_QUARANTINE)
                        ret->quarantined++;
        }
}

/* Counted when somebody looks, so that a flood does not count itself. */
void agent_set_gauges(const struct agent *agent) {
        struct bus_status counts = { 0 };

        count_states(agent, &counts);
        metrics_set(METRICS_OPERATIONS_SEARCHING, NULL, (double)counts.searching);
        metrics_set(METRICS_OPERATIONS_QUARANTINED, NULL, (double)counts.quarantined);
}

void agent_status_text(const struct agent *agent, char *text, size_t size) {
        struct bus_status counts = { 0 };
        uint64_t now = event_now_usec(agent->event);
        char last[64] = "", stuck[64] = "", memory[256] = "";

        count_states(agent, &counts);
        if (agent->last_outcome_usec > 0)
                (void)snprintf(last, sizeof last, "; last cancel %" PRIu64 " min ago",
                               base_usec_sub(now, agent->last_outcome_usec) / USEC_PER_MINUTE);
        if (counts.quarantined > 0)
                (void)snprintf(stuck, sizeof stuck, ", %" PRIu64 " quarantined", counts.quarantined);
        if (agent->failing)
                (void)snprintf(memory, sizeof memory, "Working from memory, cannot write %s (%s), %zu records unwritten; ",
                               agent->config->state_directory, agent->failure < 0 ? strerror(-agent->failure) : "no answer",
                               agent->unwritten_count);
        (void)snprintf(text, size, "%s%s%s %s; %" PRIu64 " open, %" PRIu64 " waiting for a driver%s%s", memory,
                       agent->config->observe ? "Observe mode, kills nothing; " : "",
                       agent->connected ? "Connected to" : "Not connected to", agent->config->endpoint, counts.open,
                       counts.searching, stuck, last);
}

void agent_bus_status(struct bus_status *ret, void *userdata) {
        static char summary[512]; /* loop thread only; valid until the next call */
        struct agent *agent = userdata;

        *ret = (struct bus_status){
                .version = agent->agent_version,
                .cluster_id = agent->config->cluster_id,
                .node = agent->config->node,
                .endpoint = agent->config->endpoint,
                .mode = agent->config->observe ? "observe" : "act",
                .connected = agent->connected,
                .connection_error = agent->notice,
                .reports_waiting = control_reports_waiting(agent->control),
                .revision = agent->revision,
                .from_memory = agent->failing,
                .unwritten = agent->unwritten_count,
        };
        count_states(agent, ret);
        agent_status_text(agent, summary, sizeof summary);
        ret->summary = summary;
}

int agent_bus_list(bool all, int (*visit)(const struct bus_operation *operation, void *visitor), void *visitor,
                   void *userdata) {
        struct agent *agent = userdata;
        const struct operation *o;
        int r;

        TAILQ_FOREACH(o, &agent->all, all_link) {
                const struct cancel_record *record = &o->cancel.record;

                if (record->state == CANCEL_DONE && !all)
                        continue;
                r = visit(&(struct bus_operation){
                                  .operation_id = o->id,
                                  .job_id = o->job_id,
                                  .state = cancel_state_to_text(record->state),
                                  .outcome = cancel_outcome_to_text(record->outcome),
                                  .driver_id = record->driver_id,
                                  .driver_state = o->driver_state,
                                  .message = o->message ? o->message : "",
                                  .driver_pid = record->process.pid,
                                  .received_real_usec = record->received_real_usec,
                                  .deadline_real_usec = record->deadline_real_usec,
                                  .accepted_real_usec = record->accepted_real_usec,
                                  .ended_real_usec = record->ended_real_usec,
                                  .kill_requests = record->kill_requests,
                                  .requested_by = o->created_by,
                                  .local = o->local,
                                  .observed = o->observed,
                          },
                          visitor);
                if (r < 0)
                        return r;
        }
        return 0;
}

int agent_bus_retry(const char *operation_id, void *userdata) {
        struct operation *o = agent_find(userdata, operation_id);

        if (!o)
                return -ENOENT;
        if (o->cancel.record.state != CANCEL_QUARANTINE)
                return -EINVAL;
        operation_journal(o, JOURNAL_REPORT_RETRIED, "an operator sends the report of job %s again", o->job_id);
        operation_feed_simple(o, CANCEL_EVENT_RETRY);
        return 0;
}
