/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The local bus: `spark-cancelctl find JOB`: what would a cancel hit on this node, and what not, and why?
 *
 * The same scan, the same proof and the same question to Spark as a cancel's, and nothing that changes anything. When no
 * driver of the job is here, the headers that Workers leave in the work directory tell which driver ran it not long
 * ago; reading up to 256 files takes its time on a slow disk, so a thread of the question's own does it.
 */
#include "agent_internal.h"
#include "bus.h"

#define FINDS_MAX 4       /* under way at once */
#define LOOKALIKES_MAX 64 /* told of one job */

struct find {
        struct agent_question question; /* first */
        struct agent *agent;
        struct bus_call *call;
        char job_id[JOB_ID_MAX + 1];
        enum driver_match match;
        struct driver_found found;
        struct bus_lookalike lookalikes[LOOKALIKES_MAX];
        size_t lookalike_count;
        struct spark_request *status;
        struct event_worker *worker; /* runs look_back() */
        char recent[DRIVER_ID_MAX + 1];
};

static void find_free(struct agent_question *question) {
        struct find *find = (struct find *)question;

        find->worker = event_worker_free(find->worker);
        find->status = spark_request_free(find->status);
        if (find->call)
                bus_call_fail(find->call, "The agent is stopping");
        TAILQ_REMOVE(&find->agent->questions, question, link);
        free(find);
}

static void find_answer(struct find *find, bool would_kill, const char *state, const char *reason) {
        const struct driver_found *found = &find->found;
        bool known = find->match != DRIVER_MATCH_NONE;
        struct bus_find answer = {
                .job_id = find->job_id,
                .mode = find->agent->config->observe ? "observe" : "act",
                .would_kill = would_kill,
                .reason = reason,
                .driver_id = known ? found->driver_id : "",
                .driver_state = state,
                .app_name = known ? found->app_name : "",
                .driver_pid = known ? found->pid : 0,
                .worker_pid = known ? found->worker_pid : 0,
                .supervised = known && found->supervised,
                .started_real_usec = known ? found->started_real_usec : 0,
                .recent_driver_id = find->recent,
        };

        bus_call_answer_find(TAKE(find->call), &answer, find->lookalikes, find->lookalike_count);
        find_free(&find->question);
}

/* ---- a process was found: does Spark place it here? ------------------------------------------------------------- */

static bool find_judge(const struct spark_result *result, char *reason, size_t size) {
        switch (result->answer) {
        case SPARK_ACCEPTED:
                if (result->worker_here)
                        (void)snprintf(reason, size, "Spark places this driver on this node and calls it %s", result->state_text);
                else if (result->worker_named)
                        (void)snprintf(reason, size, "Spark places this driver on %s, which is not among worker_hosts of this node: "
                                       "the process only claims its id", result->worker_host_port);
                else
                        (void)snprintf(reason, size, "Spark knows this driver, in state %s and on no Worker yet", result->state_text);
                return result->worker_here;
        case SPARK_UNKNOWN_ID:
                (void)snprintf(reason, size, "The ALIVE master %s knows no such driver", result->master);
                return false;
        case SPARK_NOT_ALIVE:
        case SPARK_UNREACHABLE:
        case SPARK_REFUSED:
        case SPARK_REFUSED_AUTH:
        case SPARK_ANSWER_MAX:
                break;
        }
        (void)snprintf(reason, size, "No master says where this driver runs, so a cancel would wait: %s (%s)",
                       spark_answer_to_text(result->answer), result->detail);
        return false;
}

static int find_on_status(const struct spark_result *result, void *userdata) {
        struct find *find = userdata;
        char reason[1024], state[DRIVER_STATE_MAX + 1];
        bool here = find_judge(result, reason, sizeof reason);

        (void)base_text_copy(state, sizeof state, result->state_text);
        find_answer(find, here, state, reason);
        return 0;
}

/* ---- none was found: which driver was it? ------------------------------------------------------------------------ */

/* On the thread: driver_recent() reads nothing of the driver module that changes. */
static int look_back(void *userdata) {
        struct find *find = userdata;

        return driver_recent(find->agent->driver, find->job_id, find->recent);
}

static int looked_back(int result, void *userdata) {
        struct find *find = userdata;
        char reason[300];

        if (result == 0)
                (void)snprintf(reason, sizeof reason, "No driver of this job runs on this node. Driver %s ran it here, by what its "
                               "Worker wrote into the work directory (a hint)", find->recent);
        else if (result > 0)
                (void)snprintf(reason, sizeof reason, "No driver of this job runs on this node, and none is known to have run here");
        else
                (void)snprintf(reason, sizeof reason, "No driver of this job runs on this node; whether one ran here is not known: %s",
                               strerror(-result));
        find_answer(find, false, "", reason);
        return 0;
}

static int find_look_back(struct find *find) {
        int r = event_worker_new(find->agent->event, "find", &find->worker);

        return r < 0 ? r : event_worker_run(find->worker, look_back, looked_back, find);
}

/* ---- begin ------------------------------------------------------------------------------------------------------- */

static void find_add_lookalike(const struct driver_lookalike *lookalike, void *userdata) {
        struct find *find = userdata;

        if (find->lookalike_count < LOOKALIKES_MAX)
                find->lookalikes[find->lookalike_count++] = (struct bus_lookalike){ lookalike->pid, lookalike->reason };
}

static int find_begin(struct find *find) {
        struct agent *agent = find->agent;
        int r = driver_scan(agent->driver);

        if (r < 0)
                return r;
        find->match = driver_match(agent->driver, find->job_id, &find->found);
        driver_lookalikes(agent->driver, find->job_id, find_add_lookalike, find);
        switch (find->match) {
        case DRIVER_MATCH_NONE:
                return find_look_back(find);
        case DRIVER_MATCH_CONTESTED:
                find->match = DRIVER_MATCH_NONE; /* `found` is not filled */
                find_answer(find, false, "", "Processes of two jobs claim the same driver id: a cancel touches neither");
                return 0;
        case DRIVER_MATCH_ONE:
        case DRIVER_MATCH_ORPHAN:
                break;
        }
        return spark_status(agent->spark, find->found.driver_id, find_on_status, find, &find->status);
}

static size_t questions_count(const struct agent *agent) {
        const struct agent_question *question;
        size_t count = 0;

        TAILQ_FOREACH(question, &agent->questions, link)
                count += question->free == find_free;
        return count;
}

int agent_bus_find(const char *job_id, struct bus_call *call, void *userdata) {
        struct agent *agent = userdata;
        struct find *find;
        int r;

        if (questions_count(agent) >= FINDS_MAX)
                return -EBUSY;
        find = calloc(1, sizeof *find);
        if (!find)
                return -ENOMEM;
        find->agent = agent;
        find->question.free = find_free;
        (void)base_text_copy(find->job_id, sizeof find->job_id, job_id);
        TAILQ_INSERT_TAIL(&agent->questions, &find->question, link);
        find->call = call;
        r = find_begin(find); /* may have answered, and freed it */
        if (r < 0) {
                find->call = NULL; /* the caller answers */
                find_free(&find->question);
        }
        return r;
}
