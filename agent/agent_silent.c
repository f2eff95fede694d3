/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations whose end the control plane does not hear of: observed ones and local ones.
 *
 * Observed: the agent runs with mode = observe. The machine treats the operation as a dry run, so it plans no kill and
 * no signal; spark_kill() and driver_signal*() refuse as well, each at its own door, whatever the machine may ask for.
 * NOT_ON_NODE is still reported, since it is true and the control plane decides by it; anything else is not, and the
 * operation ends here in silence: a final report would end it there, with nothing done. Not observed is an operation
 * for which a kill may have left before the mode was changed: what was done is reported, whatever the mode is now.
 * The command's own dry_run is kept apart and is what the store gets, so that an operation that still searches is acted
 * on when the agent is started again with mode = act.
 *
 * Local: an operator of this node has ordered the cancel over the local bus. The contract knows reports about
 * operations that the control plane gave; it would answer UNKNOWN_OPERATION to this one, or wait unread where the
 * control plane is down, which is what a local cancel is for. So nothing is sent; the operation is DONE as soon as its
 * outcome is known. Such an operation never numbers a report, so it is stored with sequence 0, which no other's is; with
 * the prefix of its id that tells it apart after a restart, too, whatever ids a control plane makes up.
 */
#include "agent_internal.h"

bool operation_was_local(const struct store_operation *row) {
        return row->sequence == 0 && base_text_starts_with(row->operation_id, AGENT_LOCAL_PREFIX);
}

bool operation_is_silent(const struct operation *o, enum cancel_outcome outcome) {
        return o->local || (o->observed && outcome != CANCEL_NOT_ON_NODE);
}

/* Once, when the record is there: the command has come or the row was loaded. */
void operation_observe(struct operation *o) {
        struct cancel_record *r = &o->cancel.record;

        o->dry_run_asked = r->dry_run;
        o->observed = o->agent->config->observe && cancel_counts_open(r->state) && r->kill_requests == 0 &&
                      r->escalation == CANCEL_ESCALATION_NONE;
        r->dry_run |= o->observed;
}

/* The outcome is fixed: nobody waits for a report of it. Before any commit, so that REPORT is never stored. */
void operation_end_silently(struct operation *o, const struct cancel_record *before) {
        const struct cancel_record *r = &o->cancel.record;

        if (r->state != CANCEL_REPORT || before->state == CANCEL_REPORT || !operation_is_silent(o, r->outcome))
                return;
        o->act &= ~(uint32_t)(CANCEL_ACT_REPORT | CANCEL_ACT_RESEND);
        operation_feed(o, &(struct cancel_event){ .type = CANCEL_EVENT_REPORT_ANSWERED, .accepted = true });
}
