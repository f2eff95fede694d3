/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a restart finds: every stored operation, its clocks brought to this boot, and the event RESTARTED.
 *
 * Times of the event clock are good within one boot. After a reboot they are made anew from the wall clock that was
 * stored beside them; a deadline never gets more than its whole span, however the wall clock was stepped.
 */
#include "agent_internal.h"

/* A time of the earlier boot, `real` its wall clock: the same age on this boot's clock, at least 1 (set). */
static uint64_t rebase(uint64_t usec, uint64_t real_usec, const struct cancel_now *now) {
        uint64_t age;

        if (usec == 0)
                return 0;
        age = real_usec == 0 ? 0 : base_usec_sub(now->real_usec, real_usec);
        return base_max_u64(1, base_usec_sub(now->usec, age));
}

static void rebase_record(struct cancel_record *r, const struct cancel_now *now) {
        uint64_t span = base_usec_sub(r->deadline_usec, r->received_usec);
        uint64_t left = base_min_u64(base_usec_sub(r->deadline_real_usec, now->real_usec), span);

        r->received_usec = rebase(base_max_u64(r->received_usec, 1), r->received_real_usec, now);
        r->accepted_usec = rebase(r->accepted_usec, r->accepted_real_usec, now);
        r->ended_usec = rebase(r->ended_usec, r->ended_real_usec, now);
        r->killed_usec = rebase(r->killed_usec, 0, now);
        r->answered_usec = rebase(r->answered_usec, 0, now);
        r->deadline_usec = base_usec_add(now->usec, left);
}

static int copy_bytes(struct span from, uint8_t **ret, size_t *ret_size) {
        if (from.size == 0)
                return 0;
        *ret = malloc(from.size);
        if (!*ret)
                return -ENOMEM;
        memcpy(*ret, from.data, from.size);
        *ret_size = from.size;
        return 0;
}

static int load_fill(struct operation *o, const struct store_operation *row) {
        int r;

        base_text_copy(o->job_id, sizeof o->job_id, row->job_id);
        base_text_copy(o->cluster_id, sizeof o->cluster_id, row->cluster_id);
        base_text_copy(o->created_by, sizeof o->created_by, row->created_by);
        base_text_copy(o->driver_state, sizeof o->driver_state, row->driver_state);
        base_text_copy(o->app_name, sizeof o->app_name, row->app_name);
        o->cancel.record = row->record;
        o->started_real_usec = row->started_real_usec;
        o->sequence = row->sequence > o->agent->sequence_base ? row->sequence : o->agent->sequence_base;
        o->acknowledged_sequence = row->acknowledged_sequence;
        o->report_sequence = row->report_sequence;
        o->report_final = row->report_final;
        o->done_real_usec = row->done_real_usec;
        o->local = operation_was_local(row);
        operation_observe(o);
        if (row->message[0] && !(o->message = strdup(row->message)))
                return -ENOMEM;
        if (row->record.state != CANCEL_DONE) {
                r = copy_bytes(row->operation, &o->raw, &o->raw_size);
                if (r < 0)
                        return r;
        }
        return copy_bytes(row->report, &o->report, &o->report_size);
}

static int load_visit(const struct store_operation *row, void *userdata) {
        struct agent *agent = userdata;
        struct cancel_now now = agent_now(agent);
        bool same_boot = strcmp(row->boot_id, event_boot_id(agent->event)) == 0;
        struct operation *o;
        int r = operation_new(agent, row->operation_id, &o);

        if (r < 0)
                return r;
        r = load_fill(o, row);
        if (r == 0)
                r = agent_insert(agent, o);
        if (r < 0) {
                operation_free(o);
                return r;
        }
        if (!same_boot)
                rebase_record(&o->cancel.record, &now);
        if (o->cancel.record.state == CANCEL_DONE) {
                TAILQ_INSERT_TAIL(&agent->done_list, o, done_link);
                agent->done_count++;
        }
        if (cancel_counts_open(o->cancel.record.state))
                agent->open_count++;
        o->other_boot = !same_boot;
        return 0;
}

/* A stored kill holds its slot for the rest of its kill_retry. One that was counted and has no time was not sent, or
 * sent just before the end: it waits for its turn like the others, or all that had been found would kill at once. */
static bool load_holds_slot(const struct operation *o) {
        const struct cancel_record *r = &o->cancel.record;
        uint64_t now = event_now_usec(o->agent->event);

        return (r->state == CANCEL_WAIT || r->state == CANCEL_KILL || r->state == CANCEL_TERM || r->state == CANCEL_FORCE) &&
               r->killed_usec > 0 && now < base_usec_add(r->killed_usec, o->agent->config->kill_retry_usec);
}

static void load_restart(struct operation *o) {
        const struct cancel_record *r = &o->cancel.record;
        bool same_boot = !o->other_boot, unanswered;

        if (same_boot && !cancel_counts_open(r->state))
                pace_keep(o);
        if (!cancel_is_open(r->state))
                return;
        if (same_boot && load_holds_slot(o))
                pace_adopt(o);
        unanswered = o->report && !o->report_final && o->report_sequence > o->acknowledged_sequence;
        operation_feed(o, &(struct cancel_event){ .type = CANCEL_EVENT_RESTARTED, .same_boot = same_boot });
        if (unanswered)
                o->act |= CANCEL_ACT_RESEND;
        agent_touch(o);
}

int agent_load(struct agent *agent) {
        char error[300] = "";
        struct operation *o, *next;
        int r = store_load(agent->store, load_visit, agent, error, sizeof error);

        if (r < 0) {
                journal_write(JOURNAL_STORE_FAILED, NULL, "cannot read the state database: %s", error[0] ? error : strerror(-r));
                return r;
        }
        TAILQ_FOREACH_SAFE_(o, &agent->all, all_link, next)
                load_restart(o);
        return 0;
}
