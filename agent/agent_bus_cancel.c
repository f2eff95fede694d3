/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The local bus: `spark-cancelctl cancel JOB`, for the day on which the control plane is down.
 *
 * The operation goes the way of every other: same search, same proof, same machine, same store. The caller gets its id
 * when it is stored, so that what was answered survives a crash. A second cancel of a job while a local one is open is
 * that one.
 */
#include "agent_internal.h"
#include "bus.h"

#define LOCAL_ROOM 1000 /* open operations above max_open: a flood from the control plane must not shut out an operator */

static void on_stored(struct operation *o, bool stored) {
        struct bus_call *call = TAKE(o->stored_userdata);

        if (stored)
                bus_call_answer_cancel(call, o->id);
        else
                bus_call_fail(call, "The agent is stopping; the cancel was not stored and is not acted on");
}

static struct operation *find_open(const struct agent *agent, const char *job_id) {
        struct operation *o;

        TAILQ_FOREACH(o, &agent->all, all_link)
                if (o->local && cancel_is_open(o->cancel.record.state) && strcmp(o->job_id, job_id) == 0)
                        return o;
        return NULL;
}

int agent_bus_cancel(const char *job_id, uint32_t uid, struct bus_call *call, void *userdata) {
        struct agent *agent = userdata;
        struct operation *o = find_open(agent, job_id);
        int r;

        if (agent->stopping)
                return -EAGAIN;
        if (o && o->stored)
                return -EBUSY; /* the first caller's is about to be stored */
        if (o) {
                bus_call_answer_cancel(call, o->id);
                return 0;
        }
        if (agent->open_count >= agent->config->max_open + LOCAL_ROOM)
                return -ENOBUFS;
        r = agent_add_local(agent, job_id, uid, &o);
        if (r < 0)
                return r;
        o->stored_userdata = call;
        o->stored = on_stored;
        agent_touch(o);
        return 0;
}
