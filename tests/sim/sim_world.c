/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The truth: jobs, their drivers, processes and Workers of this node, as facts on Apache Spark say (core/.../deploy:
 * Worker.scala, DriverRunner.scala, Master.scala).
 *
 *  - A Worker kills one driver at a time: SIGTERM, driverTerminateTimeout, SIGKILL, the same time again, given up.
 *  - Exit code 0 is FINISHED, even after a kill; else KILLED after a kill, else FAILED; a supervised driver that
 *    fails comes back under the same id and a new pid, with back-off.
 *  - A Worker that the masters lose makes its drivers ERROR, or RELAUNCHING with a successor under a new id; when it
 *    is heard again it kills what the masters do not know as running.
 *  - What ends while no master is ALIVE is not heard of: after the fail-over such a driver is ERROR or relaunched.
 *
 * Drivers on other nodes have no processes here; theirs are words of the masters only. Some processes only claim to
 * be a driver: an id of another node or of another job.
 */
#include "sim.h"

#define TERMINATE_TIMEOUT (10 * USEC_PER_SEC)
#define FIRST_PID 300
#define PIDS 40 /* few, so that pids are used again soon */

/* ---- processes -------------------------------------------------------------------------------------------------------- */

static bool pid_in_use(int32_t pid) {
        for (unsigned i = 0; i < sim.process_count; i++)
                if (sim.processes[i]->alive && sim.processes[i]->pid == pid)
                        return true;
        for (unsigned i = 0; i < sim.worker_count; i++)
                if (sim.workers[i].up && sim.workers[i].pid == pid)
                        return true;
        return false;
}

static int32_t new_pid(void) {
        do
                sim.next_pid = FIRST_PID + (sim.next_pid - FIRST_PID + 1) % PIDS;
        while (pid_in_use(sim.next_pid));
        return sim.next_pid;
}

static uint64_t ticks(void) {
        return (sim.time - sim.boot_at) / (10 * USEC_PER_MSEC);
}

static struct sim_process *process_new(unsigned job, const char *claimed_id, struct sim_worker *worker) {
        struct sim_process *process;

        if (sim.process_count == SIM_PROCESSES_MAX)
                return NULL;
        process = sim_alloc(sizeof *process);
        process->pid = new_pid();
        process->start_ticks = ticks();
        process->started_at = sim.time;
        process->alive = true;
        process->job = job;
        process->boot = sim.boot;
        base_text_copy(process->claimed_id, sizeof process->claimed_id, claimed_id);
        if (worker) {
                process->worker_pid = worker->pid;
                process->worker_start_ticks = worker->start_ticks;
        }
        sim.processes[sim.process_count++] = process;
        return process;
}

struct sim_process *sim_process_of_job(unsigned job) {
        for (unsigned i = sim.process_count; i > 0; i--)
                if (sim.processes[i - 1]->alive && sim.processes[i - 1]->job == job)
                        return sim.processes[i - 1];
        return NULL;
}

/* Do living processes of two jobs claim this id? */
bool sim_id_contested(const char *driver_id) {
        const struct sim_process *first = NULL;

        for (unsigned i = 0; i < sim.process_count; i++) {
                const struct sim_process *process = sim.processes[i];

                if (!process->alive || strcmp(process->claimed_id, driver_id) != 0)
                        continue;
                if (first && first->job != process->job)
                        return true;
                first = process;
        }
        return false;
}

/* ---- drivers ------------------------------------------------------------------------------------------------------------ */

struct sim_driver *sim_driver_find(const char *id) {
        for (unsigned i = 0; i < sim.driver_count; i++)
                if (strcmp(sim.drivers[i]->id, id) == 0)
                        return sim.drivers[i];
        return NULL;
}

struct sim_driver *sim_driver_new(unsigned job, bool here, bool supervised) {
        struct sim_driver *driver;

        if (sim.driver_count == SIM_DRIVERS_MAX)
                return NULL;
        driver = sim_alloc(sizeof *driver);
        (void)snprintf(driver->id, sizeof driver->id, "driver-20251124100000-%04u", sim.driver_count);
        driver->job = job;
        driver->here = here;
        driver->supervised = supervised;
        driver->known = true;
        driver->word = SPARK_STATE_SUBMITTED;
        driver->last_exit = -1;
        driver->deaf = sim_chance(150);
        driver->unkillable = driver->deaf && sim_chance(150);
        driver->exit_code = sim_chance(500) ? 0 : 1;
        driver->term_code = sim_chance(250) ? 0 : 143;
        driver->start_delay = sim_chance(800) ? sim_between(100, 400) * USEC_PER_MSEC
                                              : sim_spread(USEC_PER_SEC, 90 * USEC_PER_SEC);
        driver->life_time = sim_chance(400) ? USEC_NEVER : sim_spread(50 * USEC_PER_MSEC, 30 * USEC_PER_MINUTE);
        sim.jobs[job].here |= here;
        sim.drivers[sim.driver_count++] = driver;
        return driver;
}

void sim_driver_set_word(struct sim_driver *driver, enum spark_driver_state word) {
        driver->word = word;
        driver->word_at = sim.time;
        driver->was_word[word] = true;
        TRACE("masters: %s (%s) is %d", driver->id, sim.jobs[driver->job].id, (int)word);
}

struct sim_worker *sim_any_worker(void) {
        struct sim_worker *worker = &sim.workers[sim_below(sim.worker_count)];

        return worker->up && !worker->lost ? worker : NULL;
}

static void start_elsewhere_end(void *argument) {
        struct sim_driver *driver = argument;

        if (driver->word == SPARK_STATE_RUNNING)
                sim_driver_set_word(driver, driver->exit_code == 0 ? SPARK_STATE_FINISHED : SPARK_STATE_FAILED);
}

static void driver_start(void *argument);

/* Placed on a Worker (NULL: of another node), or waiting for one. */
void sim_driver_launch(struct sim_driver *driver, struct sim_worker *worker) {
        if (driver->word != SPARK_STATE_SUBMITTED)
                return;
        driver->placed = true;
        sim_driver_set_word(driver, SPARK_STATE_RUNNING);
        if (!driver->here) {
                if (driver->life_time != USEC_NEVER)
                        sim_after(driver->life_time, start_elsewhere_end, driver);
                return;
        }
        driver->worker = worker;
        driver->runner = true;
        driver->directory = true;
        sim_driver_directory_made();
        sim_after(driver->start_delay, driver_start, driver);
}

/* A queued driver is placed when a Worker is there. */
static void launch_when_possible(void *argument) {
        struct sim_driver *driver = argument;
        struct sim_worker *worker = sim_any_worker();

        if (driver->word != SPARK_STATE_SUBMITTED)
                return;
        if (!sim_masters_listen() || (driver->here && !worker))
                sim_after(2 * USEC_PER_SEC, launch_when_possible, driver);
        else
                sim_driver_launch(driver, worker);
}

void sim_driver_succeed(struct sim_driver *driver) {
        struct sim_driver *next;

        if (driver->successor_made)
                return;
        driver->successor_made = true;
        next = sim_driver_new(driver->job, sim_chance(600), driver->supervised);
        if (!next)
                return;
        TRACE("masters: %s is relaunched as %s %s", driver->id, next->id, next->here ? "here" : "elsewhere");
        sim_after(sim_spread(10 * USEC_PER_MSEC, 50 * USEC_PER_SEC), launch_when_possible, next);
}

/* The Worker's report of the end reaches the master, or is lost with it. */
static void report_end(void *argument) {
        struct sim_driver *driver = argument;
        bool heard = driver->worker && driver->worker->up && !driver->worker->lost && sim_masters_listen();

        if (!heard || driver->word != SPARK_STATE_RUNNING)
                return;
        if (driver->last_exit == 0)
                sim_driver_set_word(driver, SPARK_STATE_FINISHED);
        else
                sim_driver_set_word(driver, driver->kill_flag ? SPARK_STATE_KILLED : SPARK_STATE_FAILED);
}

static void runner_ended(struct sim_driver *driver) {
        driver->runner = false;
        sim_after(sim_between(3, 20) * USEC_PER_MSEC, report_end, driver);
}

static void process_exit(struct sim_process *process, int code) {
        struct sim_driver *driver = process->driver;

        if (!process->alive)
                return;
        process->alive = false;
        process->ended_at = sim.time;
        if (sim_chance(80)) {
                process->leftovers = (unsigned)sim_between(1, 3);
                process->leftovers_until = sim.time + sim_spread(50 * USEC_PER_MSEC, 10 * USEC_PER_MINUTE);
                process->leftovers_deaf = sim_chance(300);
        }
        TRACE("process %d of %s (%s) ends: %d", process->pid, sim.jobs[process->job].id, process->claimed_id, code);
        sim_driver_exited(process);
        if (!driver || driver->process != process)
                return;
        driver->process = NULL;
        driver->last_exit = code;
        if (!driver->runner)
                return;
        if (code == 0 || driver->kill_flag || !driver->supervised) {
                runner_ended(driver);
                return;
        }
        sim_after(base_min_u64(8, UINT64_C(1) << driver->restarts) * USEC_PER_SEC, driver_start, driver);
        driver->restarts++;
}

static void life_ends(void *argument) {
        struct sim_process *process = argument;

        process_exit(process, process->driver ? process->driver->exit_code : 0);
}

static void driver_start(void *argument) {
        struct sim_driver *driver = argument;
        struct sim_process *process;

        if (!driver->runner || driver->process || !driver->worker->up)
                return;
        if (driver->kill_flag) { /* killed before the process exists, or in back-off */
                driver->last_exit = 143;
                runner_ended(driver);
                return;
        }
        process = process_new(driver->job, driver->id, driver->worker);
        if (!process)
                return;
        process->driver = driver;
        process->supervised = driver->supervised;
        driver->process = process;
        TRACE("process %d of %s starts: %s%s%s%s", process->pid, sim.jobs[driver->job].id, driver->id,
              driver->supervised ? ", supervised" : "", driver->deaf ? ", deaf" : "",
              driver->unkillable ? ", cannot be killed" : "");
        if (driver->life_time != USEC_NEVER)
                sim_after(driver->life_time, life_ends, process);
        if (driver->supervised && driver->restarts > 3)
                driver->exit_code = 0;
}

/* ---- signals ---------------------------------------------------------------------------------------------------------------- */

static void ends_by_signal(void *argument) {
        struct sim_process *process = argument;

        process_exit(process, process->driver && process->driver->term_code == 0 ? 0 : 143);
}

static void ends_by_force(void *argument) {
        process_exit(argument, 137);
}

void sim_process_signal(struct sim_process *process, int signal_number) {
        const struct sim_driver *driver = process->driver;

        if (!process->alive)
                return;
        if (signal_number == SIGKILL) {
                if (!driver || !driver->unkillable)
                        sim_after(sim_between(200, 30000), ends_by_force, process);
        } else if (!driver || !driver->deaf) {
                sim_after(sim_between(20, 500) * USEC_PER_MSEC, ends_by_signal, process);
        }
}

/* ---- the Worker: one kill after the other ---------------------------------------------------------------------------------------- */

static void worker_next(struct sim_worker *worker);

struct execution { /* one kill, under way */
        struct sim_worker *worker;
        uint64_t worker_started_at; /* another Worker process has nothing to do with it */
        struct sim_process *process;
        uint64_t began_at;
        bool forced;
};

/* Process.waitFor() in small pieces. */
static void execution_watch(void *argument) {
        struct execution *execution = argument;
        uint64_t age = sim.time - execution->began_at;

        if (!execution->worker->up || execution->worker->started_at != execution->worker_started_at)
                return;
        if (!execution->process->alive || age >= 2 * TERMINATE_TIMEOUT) {
                execution->worker->busy = false;
                worker_next(execution->worker);
                return;
        }
        if (age >= TERMINATE_TIMEOUT && !execution->forced) {
                execution->forced = true;
                sim_process_signal(execution->process, SIGKILL);
        }
        sim_after(age < USEC_PER_SEC ? 10 * USEC_PER_MSEC : 100 * USEC_PER_MSEC, execution_watch, execution);
}

static void worker_kill_one(struct sim_worker *worker, struct sim_driver *driver) {
        struct execution *execution;

        if (!driver->runner || driver->worker != worker)
                return;
        driver->kill_flag = true;
        if (!driver->process)
                return; /* its start or its back-off sees the flag */
        TRACE("worker %d kills %s", worker->pid, driver->id);
        execution = sim_alloc(sizeof *execution);
        *execution = (struct execution){ worker, worker->started_at, driver->process, sim.time, false };
        worker->busy = true;
        sim_process_signal(driver->process, SIGTERM);
        execution_watch(execution);
}

static void worker_next(struct sim_worker *worker) {
        while (!worker->busy && worker->queued > 0) {
                struct sim_driver *driver = worker->queue[0];

                memmove(worker->queue, worker->queue + 1, --worker->queued * sizeof worker->queue[0]);
                driver->is_queued = false;
                if (worker->up)
                        worker_kill_one(worker, driver);
        }
}

void sim_worker_kill(void *argument) {
        struct sim_driver *driver = argument;
        struct sim_worker *worker = driver->worker;

        if (!worker || !worker->up || worker->lost || !driver->runner || driver->is_queued)
                return;
        driver->is_queued = true;
        worker->queue[worker->queued++] = driver;
        worker_next(worker);
}

/* ---- faults of Workers -------------------------------------------------------------------------------------------------------------- */

static void worker_lost_drivers(const struct sim_worker *worker) {
        for (unsigned i = 0; i < sim.driver_count; i++) {
                struct sim_driver *driver = sim.drivers[i];

                if (driver->worker != worker || driver->word != SPARK_STATE_RUNNING)
                        continue;
                sim_driver_set_word(driver, driver->supervised ? SPARK_STATE_RELAUNCHING : SPARK_STATE_ERROR);
                if (driver->supervised)
                        sim_driver_succeed(driver);
        }
}

static void worker_heard_again(void *argument) {
        struct sim_worker *worker = argument;

        if (!worker->lost)
                return;
        worker->lost = false;
        TRACE("worker %d is heard again", worker->pid);
        for (unsigned i = 0; i < sim.driver_count; i++)
                if (sim.drivers[i]->worker == worker && sim.drivers[i]->runner &&
                    sim.drivers[i]->word != SPARK_STATE_RUNNING)
                        sim_worker_kill(sim.drivers[i]);
}

static void worker_lost(struct sim_worker *worker) {
        if (!worker->up || worker->lost)
                return;
        TRACE("worker %d is lost to the masters", worker->pid);
        worker->lost = true;
        worker_lost_drivers(worker);
        sim_after(sim_spread(USEC_PER_SEC, 2 * USEC_PER_MINUTE), worker_heard_again, worker);
}

static void worker_start(void *argument) {
        struct sim_worker *worker = argument;

        if (worker->up)
                return;
        worker->pid = new_pid();
        worker->start_ticks = ticks();
        worker->started_at = sim.time;
        worker->up = true;
        worker->lost = worker->busy = false;
        worker->queued = 0;
        TRACE("worker %d starts", worker->pid);
}

/* kill -9 of a Worker: most drivers see the broken connection and end, some stay as orphans. */
static void worker_dies(struct sim_worker *worker, bool restart) {
        if (!worker->up)
                return;
        TRACE("worker %d dies", worker->pid);
        worker->up = false;
        for (unsigned i = 0; i < sim.process_count; i++) {
                struct sim_process *process = sim.processes[i];

                if (!process->alive || process->worker_pid != worker->pid)
                        continue;
                process->worker_pid = 0;
                if (!process->driver || sim_chance(850))
                        sim_after(sim_between(20, 600) * USEC_PER_MSEC, ends_by_force, process);
        }
        for (unsigned i = 0; i < sim.driver_count; i++) {
                struct sim_driver *driver = sim.drivers[i];

                if (driver->worker != worker)
                        continue;
                driver->runner = driver->is_queued = false;
        }
        worker_lost_drivers(worker);
        worker->queued = 0;
        for (unsigned i = 0; i < sim.driver_count; i++)
                if (sim.drivers[i]->worker == worker)
                        sim.drivers[i]->worker = NULL;
        if (restart)
                sim_after(sim_spread(USEC_PER_SEC, 30 * USEC_PER_SEC), worker_start, worker);
}

static void worker_fault(void *argument) {
        struct sim_worker *worker = sim_any_worker();

        (void)argument;
        if (!sim_faulty() || !worker)
                return;
        if (sim_chance(500))
                worker_lost(worker);
        else
                worker_dies(worker, true);
}

/* ---- reboot --------------------------------------------------------------------------------------------------------------------------- */

void sim_world_reboot(void) {
        for (unsigned i = 0; i < sim.worker_count; i++)
                worker_dies(&sim.workers[i], false);
        for (unsigned i = 0; i < sim.process_count; i++) {
                struct sim_process *process = sim.processes[i];

                process->leftovers = 0;
                if (!process->alive)
                        continue;
                process->alive = false;
                process->ended_at = sim.time;
                if (process->driver) {
                        process->driver->process = NULL;
                        process->driver->last_exit = 137;
                }
        }
}

void sim_world_up(void) {
        sim.next_pid = FIRST_PID;
        for (unsigned i = 0; i < sim.worker_count; i++)
                sim_after(sim_between(1, 15) * USEC_PER_SEC, worker_start, &sim.workers[i]);
}

/* ---- making a world -------------------------------------------------------------------------------------------------------------------- */

static void submit(void *argument) {
        TRACE("submit %s", ((struct sim_driver *)argument)->id);
        launch_when_possible(argument);
}

struct claim {
        unsigned job;
        struct sim_driver *target;
};

/* A process of `job` that says it is another driver: one of another node, or an unsupervised one that runs here. */
static void claim_id(void *argument) {
        struct claim *claim = argument;
        struct sim_worker *worker = sim_any_worker();
        bool fits = !claim->target->here || (claim->target->process && !claim->target->supervised);
        struct sim_process *process;

        if (worker && fits && sim_faulty()) {
                process = process_new(claim->job, claim->target->id, worker);
                if (process) {
                        TRACE("process %d of %s claims %s of %s", process->pid, sim.jobs[claim->job].id,
                              claim->target->id, sim.jobs[claim->target->job].id);
                        sim_after(sim_spread(USEC_PER_SEC, 10 * USEC_PER_MINUTE), life_ends, process);
                }
        }
}

static void make_claims(uint64_t span) {
        for (uint64_t n = sim_below(4); n > 0; n--) {
                struct claim *claim = sim_alloc(sizeof *claim);

                claim->job = (unsigned)sim_below(sim.job_count);
                claim->target = sim.drivers[sim_below(sim.driver_count)];
                sim_after(sim_below(span), claim_id, claim);
        }
}

/* A job that hides its driver: one process after the other says that it is a driver of another node. */
static void make_decoys(uint64_t span) {
        unsigned job = (unsigned)sim_below(sim.job_count);
        uint64_t at = sim_below(span);

        for (unsigned i = 0; i < sim.driver_count; i++)
                for (uint64_t n = sim.drivers[i]->here ? 0 : sim_between(1, 6); n > 0; n--) {
                        struct claim *claim = sim_alloc(sizeof *claim);

                        *claim = (struct claim){ job, sim.drivers[i] };
                        sim_after(at + sim_below(USEC_PER_MINUTE), claim_id, claim);
                }
}

void sim_world_make(void) {
        uint64_t span = base_usec_sub(sim.faults_end, sim.time);

        sim.next_pid = FIRST_PID;
        sim.worker_count = (unsigned)sim_between(1, SIM_WORKERS_MAX);
        for (unsigned i = 0; i < sim.worker_count; i++)
                worker_start(&sim.workers[i]);
        sim.job_count = (unsigned)sim_spread(1, SIM_JOBS_MAX);
        for (unsigned i = 0; i < sim.job_count; i++) {
                struct sim_driver *driver;

                (void)snprintf(sim.jobs[i].id, sizeof sim.jobs[i].id, "job-%u", i);
                driver = sim_driver_new(i, sim_chance(750), sim_chance(250));
                if (driver && sim_chance(950))
                        sim_after(sim_chance(700) ? sim_below(20 * USEC_PER_SEC) : sim_below(span), submit, driver);
        }
        if (sim_chance(400))
                make_claims(span);
        if (sim_chance(150))
                make_decoys(base_min_u64(span, 10 * USEC_PER_MINUTE));
        if (sim_chance(300))
                for (uint64_t n = sim_between(1, 4); n > 0; n--)
                        sim_after(sim_below(span), worker_fault, NULL);
}

void sim_world_heal(void) {
        for (unsigned i = 0; i < sim.worker_count; i++) {
                if (sim.workers[i].lost)
                        worker_heard_again(&sim.workers[i]);
        }
}
