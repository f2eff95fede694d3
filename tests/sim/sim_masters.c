/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The masters and spark.h.
 *
 * One table of drivers is common to all masters (struct sim_driver: known, word); who leads may change. A fail-over
 * forgets what has ended, and a live driver that no Worker claims becomes ERROR or is relaunched. A request goes from
 * master to master like the real one. On its way it can be lost, its answer can be lost after the master has done
 * what was asked, the Worker may never get the kill. When the agent dies the request may still arrive.
 */
#include "sim.h"

#define REQUEST_TIMEOUT (10 * USEC_PER_SEC)

struct spark {
        unsigned alive; /* the master that answered as ALIVE last */
};

struct spark_request {
        spark_handler handler;
        void *userdata;
        struct round *round;
};

struct round {
        struct spark_request *request; /* NULL: nobody waits any more */
        bool is_kill, arrived;
        char driver_id[DRIVER_ID_MAX + 1];
        unsigned first, visited, current, asked;
        enum spark_answer answer;
        struct spark_result result;
};

/* ---- the masters' knowledge -------------------------------------------------------------------------------------------- */

bool sim_masters_listen(void) {
        for (unsigned i = 0; i < sim.master_count; i++)
                if (sim.masters[i].role == ROLE_ALIVE)
                        return true;
        return false;
}

bool sim_masters_fine(void) {
        for (unsigned i = 0; i < sim.master_count; i++)
                if (sim.masters[i].role == ROLE_ALIVE && sim.masters[i].mood == MOOD_FINE)
                        return true;
        return false;
}

static bool word_is_live(enum spark_driver_state word) {
        return word == SPARK_STATE_SUBMITTED || word == SPARK_STATE_RUNNING;
}

/* "completedDrivers" is short and in memory only. */
static void forget_ended(void) {
        for (unsigned i = 0; i < sim.driver_count; i++)
                if (!word_is_live(sim.drivers[i]->word) && sim.drivers[i]->known) {
                        sim.drivers[i]->known = false;
                        TRACE("masters: forget %s", sim.drivers[i]->id);
                }
}

static bool is_claimed(const struct sim_driver *driver) {
        if (driver->word == SPARK_STATE_SUBMITTED)
                return false;
        if (!driver->here)
                return sim_chance(800);
        return driver->runner && driver->worker && driver->worker->up && !driver->worker->lost;
}

/* Master.completeRecovery() */
static void complete_recovery(void) {
        forget_ended();
        for (unsigned i = 0, count = sim.driver_count; i < count; i++) {
                struct sim_driver *driver = sim.drivers[i];

                if (!word_is_live(driver->word) || is_claimed(driver))
                        continue;
                if (driver->word == SPARK_STATE_SUBMITTED && !driver->placed && sim_chance(500))
                        continue; /* not submitted yet */
                sim_driver_set_word(driver, driver->supervised ? SPARK_STATE_RELAUNCHING : SPARK_STATE_ERROR);
                if (driver->supervised)
                        sim_driver_succeed(driver);
        }
}

/* ---- faults of masters ------------------------------------------------------------------------------------------------------ */

static void lead(void *argument) {
        struct sim_master *master = argument;

        if (sim_masters_listen() || master->role != ROLE_RECOVERING)
                return;
        TRACE("master %d leads", (int)(master - sim.masters));
        master->role = ROLE_ALIVE;
        complete_recovery();
}

static void recover(void *argument) {
        struct sim_master *master = argument;

        if (sim_masters_listen())
                return;
        master->role = ROLE_RECOVERING;
        sim_after(sim_chance(500) ? 50 * USEC_PER_MSEC : sim_spread(USEC_PER_SEC, USEC_PER_MINUTE), lead, master);
}

static void stand_by(void *argument) {
        struct sim_master *master = argument;

        if (master->role == ROLE_DOWN)
                master->role = ROLE_STANDBY;
}

static void fail_over(void *argument) {
        (void)argument;
        if (!sim_faulty() || !sim_masters_listen())
                return;
        TRACE("fail-over");
        for (unsigned i = 0; i < sim.master_count; i++)
                if (sim.masters[i].role == ROLE_ALIVE) {
                        sim.masters[i].role = ROLE_DOWN;
                        sim_after(sim_spread(USEC_PER_SEC, USEC_PER_MINUTE), stand_by, &sim.masters[i]);
                }
        sim_after(sim_spread(100 * USEC_PER_MSEC, USEC_PER_MINUTE), recover, &sim.masters[sim_below(sim.master_count)]);
}

static void mood_over(void *argument) {
        ((struct sim_master *)argument)->mood = MOOD_FINE;
}

static void mood(void *argument) {
        enum sim_mood kind = (enum sim_mood)sim_between(1, MOOD_MAX - 1);
        uint64_t span = sim_spread(5 * USEC_PER_SEC, 5 * USEC_PER_MINUTE);
        bool all = sim_chance(600);

        (void)argument;
        if (!sim_faulty())
                return;
        for (unsigned i = 0; i < sim.master_count; i++)
                if (all || sim_chance(500)) {
                        TRACE("master %u is in mood %d for %.0f s", i, (int)kind, (double)span / 1e6);
                        sim.masters[i].mood = kind;
                        sim_after(span, mood_over, &sim.masters[i]);
                }
}

static void trim(void *argument) {
        (void)argument;
        if (sim_faulty() && sim_masters_listen())
                forget_ended();
}

void sim_masters_make(void) {
        uint64_t span = base_usec_sub(sim.faults_end, sim.time);

        sim.master_count = (unsigned)sim_between(1, SIM_MASTERS_MAX);
        for (unsigned i = 0; i < sim.master_count; i++)
                sim.masters[i] = (struct sim_master){ .role = ROLE_STANDBY };
        sim.masters[sim_below(sim.master_count)].role = ROLE_ALIVE;
        if (sim_chance(400))
                for (uint64_t n = sim_between(1, 5); n > 0; n--)
                        sim_after(sim_below(span), fail_over, NULL);
        if (sim_chance(400))
                for (uint64_t n = sim_between(1, 6); n > 0; n--)
                        sim_after(sim_below(span), mood, NULL);
        if (sim_chance(300))
                for (uint64_t n = sim_between(1, 4); n > 0; n--)
                        sim_after(sim_below(span), trim, NULL);
}

void sim_masters_heal(void) {
        for (unsigned i = 0; i < sim.master_count; i++) {
                sim.masters[i].mood = MOOD_FINE;
                if (sim.masters[i].role == ROLE_DOWN)
                        sim.masters[i].role = ROLE_STANDBY;
        }
        if (!sim_masters_listen()) {
                sim.masters[0].role = ROLE_RECOVERING;
                lead(&sim.masters[0]);
        }
        for (unsigned i = 0; i < sim.master_count; i++)
                if (sim.masters[i].role == ROLE_RECOVERING)
                        sim.masters[i].role = ROLE_STANDBY;
}

/* ---- what an ALIVE master does -------------------------------------------------------------------------------------------------- */

static void queued_is_killed(void *argument) {
        struct sim_driver *driver = argument;

        if (driver->word == SPARK_STATE_SUBMITTED)
                sim_driver_set_word(driver, SPARK_STATE_KILLED);
}

static enum spark_answer master_kill(const char *driver_id) {
        struct sim_driver *driver = sim_driver_find(driver_id);

        if (!driver || !driver->known || !word_is_live(driver->word))
                return SPARK_UNKNOWN_ID;
        driver->accepted++;
        if (driver->word == SPARK_STATE_SUBMITTED)
                sim_after(USEC_PER_MSEC, queued_is_killed, driver);
        else if (!driver->here)
                TRACE("a driver of another node is killed: %s", driver_id);
        else if (sim_fault(sim.faults.kill_lost))
                TRACE("the kill of %s is lost between master and Worker", driver_id);
        else
                sim_after(sim_between(500, 3000), sim_worker_kill, driver);
        return SPARK_ACCEPTED;
}

static const char *word_text(enum spark_driver_state word) {
        static const char *const texts[] = {
                [SPARK_STATE_NONE] = "", [SPARK_STATE_SUBMITTED] = "SUBMITTED", [SPARK_STATE_RUNNING] = "RUNNING",
                [SPARK_STATE_FINISHED] = "FINISHED", [SPARK_STATE_RELAUNCHING] = "RELAUNCHING",
                [SPARK_STATE_KILLED] = "KILLED", [SPARK_STATE_FAILED] = "FAILED", [SPARK_STATE_ERROR] = "ERROR",
                [SPARK_STATE_OTHER] = "ODD",
        };
        return texts[word];
}

static enum spark_answer master_status(const char *driver_id, struct spark_result *result) {
        const struct sim_driver *driver = sim_driver_find(driver_id);

        if (!driver || !driver->known)
                return SPARK_UNKNOWN_ID;
        result->state = driver->word;
        base_text_copy(result->state_text, sizeof result->state_text, word_text(driver->word));
        result->worker_named = driver->placed;
        result->worker_here = driver->placed && driver->here;
        base_text_copy(result->worker_host_port, sizeof result->worker_host_port, driver->here ? "node-1:1" : "node-2:1");
        return SPARK_ACCEPTED;
}

/* ---- a round -------------------------------------------------------------------------------------------------------------------------- */

static void round_ask(struct round *round);

static void round_deliver(void *argument) {
        struct round *round = argument;
        struct spark_request *request = round->request;
        struct operation *o;

        if (!request || sim.dying)
                return;
        o = request->userdata;
        request->round = NULL;
        round->result.master = "http://master:6066";
        round->result.detail = spark_answer_to_text(round->result.answer);
        round->result.asked = round->asked;
        TRACE("%s %s of %s: %s %s", round->is_kill ? "kill" : "status", round->driver_id, o->id, round->result.detail,
              round->result.state_text);
        if (round->is_kill)
                sim_check_kill_answer(o, round->result.answer, round->asked);
        else
                sim_check_status_answer(o, round->driver_id, &round->result);
        if (request->handler(&round->result, o) < 0)
                sim_fail("a handler of spark failed");
}

static int rank(enum spark_answer answer) {
        switch (answer) {
        case SPARK_UNREACHABLE:
                return 3;
        case SPARK_REFUSED_AUTH:
                return 2;
        case SPARK_REFUSED:
                return 1;
        case SPARK_NOT_ALIVE:
        case SPARK_ACCEPTED:
        case SPARK_UNKNOWN_ID:
        case SPARK_ANSWER_MAX:
                break;
        }
        return 0;
}

static void round_next(struct round *round, enum spark_answer answer) {
        if (rank(answer) > rank(round->answer))
                round->answer = answer;
        round->visited++;
        if (!round->request)
                return;
        if (round->visited < sim.master_count) {
                round_ask(round);
                return;
        }
        round->result = (struct spark_result){ .answer = round->answer };
        round_deliver(round);
}

static void round_timeout(void *argument) {
        round_next(argument, SPARK_UNREACHABLE);
}

/* The request has reached an ALIVE master: it is done, whoever still wants the answer. */
static void round_at_leader(struct round *round) {
        uint64_t back = sim_fault(sim.faults.answer_slow) ? sim_spread(50 * USEC_PER_MSEC, 9 * USEC_PER_SEC)
                                                          : sim_between(200, 4000);

        round->result = (struct spark_result){ 0 };
        round->result.answer = round->is_kill ? master_kill(round->driver_id)
                                              : master_status(round->driver_id, &round->result);
        if (sim.spark && round->request)
                sim.spark->alive = round->current;
        if (sim_fault(sim.faults.answer_lost)) {
                TRACE("the answer for %s is lost", round->driver_id);
                sim_after(REQUEST_TIMEOUT, round_timeout, round);
        } else {
                sim_after(back, round_deliver, round);
        }
}

static void round_arrive(void *argument) {
        struct round *round = argument;
        const struct sim_master *master = &sim.masters[round->current];

        if (!round->request && sim_chance(500))
                return; /* the agent is gone, and the request with it */
        if (master->role == ROLE_DOWN) {
                if (sim_chance(500))
                        round_next(round, SPARK_UNREACHABLE);
                else
                        sim_after(REQUEST_TIMEOUT, round_timeout, round);
                return;
        }
        switch (master->mood) {
        case MOOD_SILENT:
                sim_after(REQUEST_TIMEOUT, round_timeout, round);
                return;
        case MOOD_BUSY:
                round_next(round, SPARK_UNREACHABLE);
                return;
        case MOOD_REFUSING:
                round_next(round, SPARK_REFUSED);
                return;
        case MOOD_REFUSING_AUTH:
                round_next(round, SPARK_REFUSED_AUTH);
                return;
        case MOOD_FINE:
        case MOOD_MAX:
                break;
        }
        if (master->role != ROLE_ALIVE)
                round_next(round, SPARK_NOT_ALIVE);
        else if (sim_fault(sim.faults.request_lost))
                sim_after(REQUEST_TIMEOUT, round_timeout, round);
        else
                round_at_leader(round);
}

static void round_ask(struct round *round) {
        unsigned index = round->visited - (round->visited <= round->first ? 1 : 0);

        round->current = round->visited == 0 ? round->first : index;
        round->asked++;
        sim_after(sim_between(200, 4000), round_arrive, round);
}

/* ---- spark.h ------------------------------------------------------------------------------------------------------------------------------ */

static int request_start(struct spark *spark, bool is_kill, const char *driver_id, spark_handler handler, void *userdata,
                         struct spark_request **ret) {
        struct spark_request *request;
        struct round *round;

        if (!base_driver_id_is_valid(driver_id, strlen(driver_id)))
                return -EINVAL;
        request = calloc(1, sizeof *request);
        if (!request)
                return -ENOMEM;
        round = sim_alloc(sizeof *round);
        *request = (struct spark_request){ handler, userdata, round };
        round->request = request;
        round->is_kill = is_kill;
        round->answer = SPARK_NOT_ALIVE;
        round->first = spark->alive;
        base_text_copy(round->driver_id, sizeof round->driver_id, driver_id);
        *ret = request;
        if (!sim.dying)
                round_ask(round);
        return 0;
}

int spark_kill(struct spark *spark, const char *driver_id, spark_handler handler, void *userdata,
               struct spark_request **ret) {
        int r;

        sim_crash_point();
        if (!sim.dying)
                sim_check_kill(userdata, driver_id);
        r = request_start(spark, true, driver_id, handler, userdata, ret);
        sim_crash_point();
        return r;
}

int spark_status(struct spark *spark, const char *driver_id, spark_handler handler, void *userdata,
                 struct spark_request **ret) {
        return request_start(spark, false, driver_id, handler, userdata, ret);
}

struct spark_request *spark_request_free(struct spark_request *request) {
        if (!request)
                return NULL;
        if (request->round)
                request->round->request = NULL;
        free(request);
        return NULL;
}

const char *spark_answer_to_text(enum spark_answer answer) {
        static const char *const texts[SPARK_ANSWER_MAX] = {
                [SPARK_ACCEPTED] = "accepted", [SPARK_UNKNOWN_ID] = "unknown id", [SPARK_NOT_ALIVE] = "not alive",
                [SPARK_UNREACHABLE] = "unreachable", [SPARK_REFUSED] = "refused", [SPARK_REFUSED_AUTH] = "refused auth",
        };
        return texts[answer];
}

int spark_new(struct event *event, struct http *http, const struct spark_options *options, struct spark **ret) {
        (void)event;
        (void)http;
        (void)options;
        *ret = calloc(1, sizeof **ret);
        return *ret ? 0 : -ENOMEM;
}

struct spark *spark_free(struct spark *spark) {
        free(spark);
        return NULL;
}
