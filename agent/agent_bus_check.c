/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The local bus: `spark-cancelctl check`, and the second question of `status`: is this node able to cancel?
 *
 * Reading is for everyone, so what everyone may cause is bounded: one preflight at a time, whose answer goes to all who
 * asked meanwhile, and the next one at the earliest CHECK_REST after it; who asks before that gets the last answer.
 */
#include "agent_internal.h"
#include "bus.h"
#include "preflight.h"

#define CHECK_REST_USEC (2 * USEC_PER_SEC)

struct agent_check {
        struct agent_question question; /* first */
        struct agent *agent;
        struct preflight *preflight; /* under way, or the last one; NULL: none */
        bool running;
        uint64_t done_usec;
        struct bus_call *waiting[BUS_CONNECTIONS_MAX]; /* a connection has one call, and a dead one's may be left */
        size_t waiting_count;
};

static void check_free(struct agent_question *question) {
        struct agent_check *check = (struct agent_check *)question;

        for (size_t i = 0; i < check->waiting_count; i++)
                bus_call_fail(check->waiting[i], "The agent is stopping");
        check->preflight = preflight_free(check->preflight);
        TAILQ_REMOVE(&check->agent->questions, question, link);
        check->agent->check = NULL;
        free(check);
}

static void check_answer(const struct agent_check *check, struct bus_call *call) {
        struct bus_finding rows[PREFLIGHT_FINDINGS_MAX];
        size_t count;
        const struct preflight_finding *findings = preflight_findings(check->preflight, &count);

        for (size_t i = 0; i < count; i++)
                rows[i] = (struct bus_finding){ findings[i].name, preflight_level_to_text(findings[i].level), findings[i].text,
                                                findings[i].remedy };
        bus_call_answer_check(call, rows, count);
}

static int check_on_done(void *userdata) {
        struct agent_check *check = userdata;

        check->running = false;
        check->done_usec = event_now_usec(check->agent->event);
        while (check->waiting_count > 0)
                check_answer(check, check->waiting[--check->waiting_count]);
        return 0;
}

static int check_begin(struct agent_check *check) {
        struct agent *agent = check->agent;
        const struct preflight_agent known = {
                .connected = agent->connected,
                .notice = agent->notice,
                .store_failing = agent->failing,
                .skew_known = agent->skew_known,
                .skew_usec = agent->skew_usec,
        };
        int r;

        check->preflight = preflight_free(check->preflight);
        r = preflight_new(agent->event,
                          &(struct preflight_options){
                                  .config = agent->config,
                                  .http = agent->http,
                                  .driver = agent->driver,
                                  .spark_token = agent->spark_token,
                                  .agent = &known,
                          },
                          check_on_done, check, &check->preflight);
        check->running = r == 0;
        return r;
}

/* Whoever has gone makes room. */
static void check_forget_gone(struct agent_check *check) {
        size_t kept = 0;

        for (size_t i = 0; i < check->waiting_count; i++) {
                if (bus_call_is_wanted(check->waiting[i]))
                        check->waiting[kept++] = check->waiting[i];
                else
                        bus_call_fail(check->waiting[i], "");
        }
        check->waiting_count = kept;
}

static struct agent_check *check_get(struct agent *agent) {
        struct agent_check *check = agent->check;

        if (check)
                return check;
        check = calloc(1, sizeof *check);
        if (!check)
                return NULL;
        check->agent = agent;
        check->question.free = check_free;
        TAILQ_INSERT_TAIL(&agent->questions, &check->question, link);
        agent->check = check;
        return check;
}

int agent_bus_check(struct bus_call *call, void *userdata) {
        struct agent *agent = userdata;
        struct agent_check *check = check_get(agent);
        int r;

        if (!check)
                return -ENOMEM;
        check_forget_gone(check);
        if (check->waiting_count == ARRAY_SIZE(check->waiting))
                return -EBUSY;
        if (!check->running && check->preflight &&
            event_now_usec(agent->event) < base_usec_add(check->done_usec, CHECK_REST_USEC)) {
                check_answer(check, call);
                return 0;
        }
        if (!check->running) {
                r = check_begin(check);
                if (r < 0)
                        return r;
        }
        check->waiting[check->waiting_count++] = call;
        return 0;
}
