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

#define FINDS_MAX 4       /* under way at once … */
#define FINDS_PRIVILEGED_MAX 16 /* … when a privileged peer asks for one more */
#define LOOKALIKES_MAX 64 /* told of one job */
#define CANDIDATES_MAX 8  /* processes that pass for its driver and are asked about */
#define REASON_MAX 1024

/* A process that passes for the job's driver, as far as this node can see. */
struct candidate {
        struct driver_found found;
        char state[DRIVER_STATE_MAX + 1]; /* Spark's word */
        char reason[REASON_MAX];
};

struct find {
        struct agent_question question; /* first */
        struct agent *agent;
        struct bus_call *call;
        char job_id[JOB_ID_MAX + 1];
        struct candidate candidates[CANDIDATES_MAX];
        size_t candidate_count; /* the last one is being asked about */
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

/* Candidates that are none stand before the look-alikes that the scan refused. */
static size_t find_add_candidates(const struct find *find, const struct candidate *chosen,
                                  struct bus_lookalike rows[CANDIDATES_MAX + LOOKALIKES_MAX]) {
        size_t count = 0;

        for (size_t i = 0; i < find->candidate_count; i++)
                if (&find->candidates[i] != chosen)
                        rows[count++] = (struct bus_lookalike){ find->candidates[i].found.pid, find->candidates[i].reason };
        for (size_t i = 0; i < find->lookalike_count; i++)
                rows[count++] = find->lookalikes[i];
        return count;
}

/* `candidate` is the one that a cancel would hit, or the first that it would have hit; NULL: there is none. */
static void find_answer(struct find *find, bool would_kill, const struct candidate *candidate, const char *reason) {
        static const struct candidate nobody;
        const struct candidate *c = candidate ? candidate : &nobody;
        struct bus_lookalike rows[CANDIDATES_MAX + LOOKALIKES_MAX];
        struct bus_find answer = {
                .job_id = find->job_id,
                .mode = find->agent->config->observe ? "observe" : "act",
                .would_kill = would_kill,
                .reason = reason,
                .driver_id = c->found.driver_id,
                .driver_state = c->state,
                .app_name = c->found.app_name,
                .driver_pid = c->found.pid,
                .worker_pid = c->found.worker_pid,
                .supervised = c->found.supervised,
                .started_real_usec = c->found.started_real_usec,
                .recent_driver_id = find->recent,
        };

        bus_call_answer_find(TAKE(find->call), &answer, rows, find_add_candidates(find, candidate, rows));
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

static int find_next(struct find *find);

/* Any process of the drivers' user can pass for a driver of any job, so one that is none hides no other. */
static int find_on_status(const struct spark_result *result, void *userdata) {
        struct find *find = userdata;
        struct candidate *candidate = &find->candidates[find->candidate_count - 1];
        bool here = find_judge(result, candidate->reason, sizeof candidate->reason);
        bool heard = result->answer == SPARK_ACCEPTED || result->answer == SPARK_UNKNOWN_ID;

        (void)base_text_copy(candidate->state, sizeof candidate->state, result->state_text);
        find->status = spark_request_free(find->status);
        if (here) {
                find_answer(find, true, candidate, candidate->reason);
                return 0;
        }
        if (!heard || find_next(find) < 0)
                find_answer(find, false, &find->candidates[0], find->candidates[0].reason);
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
        find_answer(find, false, NULL, reason);
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

/* The next process that passes for the job's driver: ask Spark about it. None left: answer. */
static int find_next(struct find *find) {
        const size_t count = find->candidate_count;
        struct candidate *candidate = &find->candidates[count];
        enum driver_match match = DRIVER_MATCH_NONE;
        int r;

        if (count < CANDIDATES_MAX)
                match = driver_match(find->agent->driver, find->job_id, count > 0 ? &find->candidates[count - 1].found : NULL,
                                     &candidate->found);
        switch (match) {
        case DRIVER_MATCH_NONE:
        case DRIVER_MATCH_CONTESTED:
                break;
        case DRIVER_MATCH_ONE:
        case DRIVER_MATCH_ORPHAN:
                r = spark_status(find->agent->spark, candidate->found.driver_id, find_on_status, find, &find->status);
                find->candidate_count += r == 0; /* it is answered from the loop */
                return r;
        }
        if (find->candidate_count > 0)
                find_answer(find, false, &find->candidates[0], find->candidates[0].reason);
        else if (match == DRIVER_MATCH_CONTESTED)
                find_answer(find, false, NULL, "Processes of two jobs claim the same driver id: a cancel touches neither");
        else
                return find_look_back(find);
        return 0;
}

static int find_begin(struct find *find) {
        int r = driver_scan(find->agent->driver);

        if (r < 0)
                return r;
        driver_lookalikes(find->agent->driver, find->job_id, find_add_lookalike, find);
        return find_next(find);
}

/* Is there room for one more? Those whose peers have gone make some, but for one that is reading: its thread would be
 * waited for. Privileged peers are not held up by others. */
static bool find_has_room(struct agent *agent, const struct bus_call *call) {
        struct agent_question *question, *next;
        size_t count = 0;

        TAILQ_FOREACH_SAFE_(question, &agent->questions, link, next) {
                struct find *find = (struct find *)question;

                if (question->free != find_free)
                        continue;
                if (!find->worker && !bus_call_is_wanted(find->call))
                        find_free(question);
                else
                        count++;
        }
        return count < (bus_call_is_privileged(call) ? FINDS_PRIVILEGED_MAX : FINDS_MAX);
}

int agent_bus_find(const char *job_id, struct bus_call *call, void *userdata) {
        struct agent *agent = userdata;
        struct find *find;
        int r;

        if (!find_has_room(agent, call))
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
