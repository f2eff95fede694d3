/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Schedules: a seed makes a world, its faults and its operations. When the faults end the world heals, and everything
 * must come to its end; then the checker judges.
 *
 *   build/sim/sim [--seed N] [--schedules N] [--jobs N] [--trace] [--coverage] [--directory D]
 *
 * Schedule k of a run has the seed N + k, so a failure is repeated with --seed N+k --schedules 1 --trace.
 */
#include "sim.h"

#include <getopt.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define FAILURES_KEPT 20
#define TAIL_LINES 120

struct sim sim;

static jmp_buf failed;

struct failure {
        uint64_t seed;
        char text[500];
};

static struct totals {
        uint64_t passed, failed, steps, lives, boots, operations;
        bool crashed; /* a process of ours */
        struct failure failures[FAILURES_KEPT];
} *totals;

void sim_fail(const char *format, ...) {
        va_list arguments;

        va_start(arguments, format);
        (void)vsnprintf(sim.failure, sizeof sim.failure, format, arguments);
        va_end(arguments);
        TRACE("FAILED: %s", sim.failure);
        longjmp(failed, 1);
}

/* ---- a schedule ------------------------------------------------------------------------------------------------------------ */

/* Mostly none, sometimes a few, now and then many. */
static unsigned draw_chance(void) {
        static const unsigned permille[] = { 0, 0, 0, 5, 20, 100, 300 };
        return permille[sim_below(ARRAY_SIZE(permille))];
}

static void make_faults(void) {
        struct sim_faults *f = &sim.faults;

        if (sim_chance(100))
                return; /* a quiet one */
        f->request_lost = draw_chance();
        f->answer_lost = draw_chance();
        f->answer_slow = draw_chance();
        f->kill_lost = draw_chance();
        f->report_lost = draw_chance();
        f->report_rejected = draw_chance() / 2;
        f->stream_cut = draw_chance() / 2;
        f->crash_point = draw_chance() / 8;
        f->commit_slow = draw_chance();
        f->commit_stalled = draw_chance() / 4;
        f->disk_fails = draw_chance() / 4;
        f->scan_fails = draw_chance() / 2;
        f->hold_fails = draw_chance();
        f->wake_lost = draw_chance();
        f->signal_denied = draw_chance();
}

/* ---- a disk that stops working ---------------------------------------------------------------------------------------------- */

struct outage {
        enum sim_outage kind;
        uint64_t length;
};

static void outage_over(void *argument) {
        (void)argument;
        if (!sim_disk_works())
                TRACE("the disk works again");
        sim_disk_outage(OUTAGE_NONE);
}

static void outage_begins(void *argument) {
        static const char *const names[OUTAGE_MAX] = { "fine", "full", "read-only", "failing", "failing to flush" };
        const struct outage *o = argument;

        if (!sim_disk_works() || (sim.healed && !sim.faults.only_disk))
                return;
        TRACE("the disk is %s for %.1f s", names[o->kind], (double)o->length / 1e6);
        sim_disk_outage(o->kind);
        sim_after(o->length, outage_over, NULL);
}

static void make_outage(uint64_t after, uint64_t length) {
        struct outage *o = sim_alloc(sizeof *o);

        *o = (struct outage){ (enum sim_outage)sim_between(1, OUTAGE_MAX - 1), length };
        sim_after(after, outage_begins, o);
}

/* Several short ones, or few that last; with crashes in between. */
static void make_outages(void) {
        uint64_t span = sim.faults_end - sim.time;

        if (sim.faults.only_disk) {
                make_outage(sim_below(10 * USEC_PER_SEC), sim_between(30, 70) * USEC_PER_MINUTE);
                return;
        }
        for (uint64_t n = sim_chance(300) ? sim_between(1, 4) : 0; n > 0; n--)
                make_outage(sim_chance(500) ? sim_below(span) : sim_below(60 * USEC_PER_SEC),
                            sim_spread(100 * USEC_PER_MSEC, 20 * USEC_PER_MINUTE));
}

static void make_config(void) {
        static char node[] = SIM_NODE, cluster[] = SIM_CLUSTER, endpoint[] = "cp:443", directory[] = "/state";
        static const enum cancel_escalation escalations[] = {
                CANCEL_ESCALATION_NONE, CANCEL_ESCALATION_NONE, CANCEL_ESCALATION_SIGTERM, CANCEL_ESCALATION_SIGKILL,
        };

        sim.config = (struct config){
                .node = node,
                .cluster_id = cluster,
                .endpoint = endpoint,
                .state_directory = directory,
                .worker_heartbeat_usec = 15 * USEC_PER_SEC,
                .worker_terminate_timeout_usec = 10 * USEC_PER_SEC,
                .default_deadline_usec = 15 * USEC_PER_MINUTE,
                .kill_retry_usec = 25 * USEC_PER_SEC,
                .escalate_after_usec = 60 * USEC_PER_SEC,
                .force_after_usec = 30 * USEC_PER_SEC,
                .relaunch_window_usec = 75 * USEC_PER_SEC,
                .kills_per_worker = sim_chance(800) ? 1 : 2,
                .max_open = sim_chance(850) ? 100000 : sim_between(1, 5),
                .retention_usec = 7 * 24 * USEC_PER_HOUR,
                .retention_max = sim_chance(850) ? 200000 : sim_between(1, 4),
                .escalation = escalations[sim_below(ARRAY_SIZE(escalations))],
        };
}

/* Spark accepts kills and nothing happens: local signals, where they are allowed. */
static void make_deaf_world(void) {
        sim.faults.kill_lost = 950;
        sim.faults.crash_point = (unsigned)base_max_u64(sim.faults.crash_point, 10);
        sim.config.escalation = sim_chance(500) ? CANCEL_ESCALATION_SIGTERM : CANCEL_ESCALATION_SIGKILL;
}

/* From the first second on nothing fails but the disk, so whatever must happen without faults must happen. */
static void make_bad_disk(void) {
        sim.faults = (struct sim_faults){ .only_disk = true };
        sim.faults_end = sim.time + USEC_PER_SEC;
}

static void make_operation(unsigned job, uint64_t at) {
        struct sim_operation *operation = &sim.operations[sim.operation_count];
        const struct sim_driver *driver = NULL;

        for (unsigned i = 0; i < sim.driver_count && !driver; i++)
                if (sim.drivers[i]->job == job)
                        driver = sim.drivers[i];
        (void)snprintf(operation->id, sizeof operation->id, "op-%u", sim.operation_count);
        operation->job = job;
        operation->verdict = sim_chance(950) ? SIM_VALID : sim_chance(700) ? SIM_INVALID : SIM_UNREPORTABLE;
        operation->defect = (unsigned)sim_below(3);
        operation->dry_run = sim_chance(60);
        operation->deadline = sim_chance(150)  ? USEC_NEVER
                              : sim_chance(50) ? at - sim_below(10 * USEC_PER_SEC)
                                               : at + sim_spread(5 * USEC_PER_SEC, 2 * USEC_PER_HOUR);
        if (driver && sim_chance(350))
                base_text_copy(operation->driver_id, sizeof operation->driver_id, driver->id);
        sim.operation_count++;
        sim.operations_to_come++;
        sim_after(at - sim.time, sim_server_cancel, operation);
}

static void make_operations(void) {
        uint64_t span = sim.faults_end - sim.time;

        for (unsigned job = 0; job < sim.job_count && sim.operation_count < SIM_OPERATIONS_MAX; job++)
                if (sim_chance(800))
                        make_operation(job, sim.time + USEC_PER_SEC +
                                                    (sim_chance(700) ? sim_below(40 * USEC_PER_SEC) : sim_below(span)));
}

static void die(void *argument) {
        (void)argument;
        if (sim_faulty() && sim.up && !sim.dying) {
                TRACE("the agent is killed");
                sim.dying = true;
        }
}

static void stop(void *argument) {
        (void)argument;
        if (sim_faulty() && sim.up && !sim.dying)
                (void)agent_stop(sim.agent, 3 * USEC_PER_SEC);
}

static void step_clock(void *argument) {
        uint64_t before = sim.wall_offset;

        (void)argument;
        sim.wall_offset += sim_chance(500) ? sim_below(5 * USEC_PER_HOUR) : (uint64_t)0 - sim_below(5 * USEC_PER_HOUR);
        sim.clock_back |= sim.wall_offset < before;
        TRACE("the wall clock is stepped");
}

/* An operator looks, and sends quarantined reports again. */
static void look(void *argument) {
        char text[300];
        struct operation *o;

        (void)argument;
        sim_after(sim_between(1, 10) * USEC_PER_MINUTE, look, NULL);
        if (!sim.up || sim.dying)
                return;
        agent_status_text(sim.agent, text, sizeof text);
        TAILQ_FOREACH(o, &sim.agent->all, all_link)
                if (o->cancel.record.state == CANCEL_QUARANTINE) {
                        TRACE("an operator retries %s", o->id);
                        (void)agent_bus_retry(o->id, sim.agent);
                }
}

static void make_life(void) {
        uint64_t span = sim.faults_end - sim.time;

        for (uint64_t n = sim_chance(400) ? sim_between(1, 6) : 0; n > 0; n--)
                sim_after(sim_chance(500) ? sim_below(span) : sim_below(90 * USEC_PER_SEC), die, NULL);
        for (uint64_t n = sim_chance(200) ? sim_between(1, 2) : 0; n > 0; n--)
                sim_after(sim_below(span), stop, NULL);
        for (uint64_t n = sim_chance(200) ? sim_between(1, 3) : 0; n > 0; n--)
                sim_after(sim_below(span), step_clock, NULL);
        sim_after(sim_below(10 * USEC_PER_MINUTE), look, NULL);
        sim_after(0, sim_life_start, NULL);
}

static void heal(void *argument) {
        (void)argument;
        TRACE("==== the faults end");
        sim.healed = true;
        sim_masters_heal();
        sim_world_heal();
        sim_server_heal();
        if (!sim.faults.only_disk)
                outage_over(NULL);
}

static void make_schedule(uint64_t seed, const char *directory) {
        sim.seed = seed;
        sim.random = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
        sim.time = 100 * 24 * USEC_PER_HOUR;
        sim.wall_offset = UINT64_C(1750000000) * USEC_PER_SEC;
        sim.server_offset = sim.wall_offset + (sim_chance(800) ? sim_below(100 * USEC_PER_MSEC) : sim_below(3 * USEC_PER_HOUR));
        sim.faults_end = sim.time + sim_spread(USEC_PER_MINUTE, 3 * USEC_PER_HOUR);
        make_faults();
        make_config();
        if (sim_chance(80))
                make_deaf_world();
        else if (sim_chance(60))
                make_bad_disk();
        sim_life_make(directory);
        sim_masters_make();
        sim_world_make();
        make_operations();
        sim_server_make();
        make_life();
        make_outages();
        sim_after(sim.faults_end - sim.time, heal, NULL);
}

static uint64_t last_deadline(void) {
        uint64_t last = sim.faults_end;

        for (unsigned i = 0; i < sim.operation_count; i++) {
                const struct sim_operation *operation = &sim.operations[i];
                uint64_t deadline = operation->deadline != USEC_NEVER ? operation->deadline
                                                                       : operation->created_at + sim.config.default_deadline_usec;

                last = base_max_u64(last, deadline);
                if (sim.boots > 1) /* after a reboot by the wall clock, and at most the whole span */
                        last = base_max_u64(last, sim.faults_end + 2 * USEC_PER_HOUR + USEC_PER_MINUTE);
        }
        return last;
}

/* Everything must be over soon after the last deadline. (An agent that is down at the end of the faults may stay so
 * for an hour; an operator comes within ten minutes.) */
static void run_schedule(void) {
        uint64_t end;

        while (sim_loop_step(sim.faults_end)) {
        }
        while (!sim_check_all_done()) {
                end = last_deadline() + USEC_PER_HOUR + 21 * USEC_PER_MINUTE;
                if (!sim_loop_step(end)) {
                        struct operation *o;

                        if (sim.up)
                                TAILQ_FOREACH(o, &sim.agent->all, all_link)
                                        if (o->cancel.record.state != CANCEL_DONE)
                                                sim_fail("%s: in %s long after its deadline", o->id,
                                                         cancel_state_to_text(o->cancel.record.state));
                        sim_fail("not over in time (up %d, to come %u, quiet %d)", sim.up, sim.operations_to_come,
                                 sim_server_quiet());
                }
        }
        end = sim.time + 10 * USEC_PER_MINUTE;
        while (sim_loop_step(end)) {
        }
        sim_check_end();
}

static void clear(void) {
        sim_agenda_clear();
        sim_alloc_clear();
}

static bool run_one(uint64_t seed, const char *directory, bool tracing, bool echo) {
        struct sim_item **heap = sim.heap;
        size_t allocated = sim.heap_allocated;

        sim = (struct sim){ .heap = heap, .heap_allocated = allocated, .tracing = tracing, .echo = echo };
        sim_trace_clear();
        sim_loop_reset();
        sim_driver_reset();
        if (setjmp(failed) == 0) {
                make_schedule(seed, directory);
                run_schedule();
                sim_life_end();
                clear();
                return true;
        }
        sim.heap_size = 0; /* what is left is lost: the process ends after a failure */
        return false;
}

/* ---- many schedules, in several processes ------------------------------------------------------------------------------------ */

static void count_schedule(uint64_t seed, bool passed) {
        uint64_t place;

        __atomic_add_fetch(&totals->steps, sim.steps, __ATOMIC_RELAXED);
        __atomic_add_fetch(&totals->lives, sim.lives, __ATOMIC_RELAXED);
        __atomic_add_fetch(&totals->boots, sim.boots, __ATOMIC_RELAXED);
        __atomic_add_fetch(&totals->operations, sim.operation_count, __ATOMIC_RELAXED);
        if (passed) {
                __atomic_add_fetch(&totals->passed, 1, __ATOMIC_RELAXED);
                return;
        }
        place = __atomic_fetch_add(&totals->failed, 1, __ATOMIC_RELAXED);
        if (place < FAILURES_KEPT) {
                totals->failures[place].seed = seed;
                base_text_copy(totals->failures[place].text, sizeof totals->failures[place].text, sim.failure);
        }
}

static const char *parent_directory;

/* In memory where there is such a place. */
static bool make_directory(char *path, size_t size) {
        const char *parent = parent_directory ? parent_directory
                             : access("/dev/shm", W_OK) == 0 ? "/dev/shm" : getenv("TMPDIR");

        (void)snprintf(path, size, "%s/spark-cancel-sim-XXXXXX", parent ? parent : "/tmp");
        return mkdtemp(path) != NULL;
}

static void wait_for(pid_t pid) {
        int status = 0;

        if (waitpid(pid, &status, 0) < 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
                totals->crashed = true;
}

/* One process: its schedules, one after the other. */
static void run_share(uint64_t seed, uint64_t first, uint64_t step, uint64_t count, bool tracing, bool echo) {
        char directory[100];

        if (!make_directory(directory, sizeof directory) || sim_disk_init() < 0)
                abort();
        for (uint64_t i = first; i < count && totals->failed < FAILURES_KEPT; i += step) {
                bool passed = run_one(seed + i, directory, tracing, echo);

                count_schedule(seed + i, passed);
                if (!passed && tracing && !echo)
                        sim_trace_print(TAIL_LINES);
                if (!passed && !tracing) { /* what the failure left is not cleaned up: go on in a fresh process */
                        pid_t pid = i + step < count ? fork() : -1;

                        if (pid == 0) {
                                sim_disk_reset(directory);
                                (void)rmdir(directory);
                                run_share(seed, i + step, step, count, tracing, echo);
                                _exit(0);
                        }
                        if (pid > 0)
                                wait_for(pid);
                        break;
                }
        }
        sim_disk_reset(directory);
        (void)rmdir(directory);
}

static void run_all(uint64_t seed, uint64_t count, uint64_t jobs, bool trace) {
        pid_t pids[64];

        for (uint64_t job = 0; job < jobs; job++) {
                pids[job] = fork();
                if (pids[job] < 0)
                        abort();
                if (pids[job] == 0) {
                        run_share(seed, job, jobs, count, trace, trace);
                        (void)fflush(stdout);
                        _exit(0);
                }
        }
        for (uint64_t job = 0; job < jobs; job++)
                wait_for(pids[job]);
}

/* The end of the story of a failed schedule, told in a process of its own. */
static void retell(uint64_t seed) {
        pid_t pid;

        (void)fflush(stdout);
        pid = fork();
        if (pid == 0) {
                run_share(seed, 0, 1, 1, true, false);
                (void)fflush(stdout);
                _exit(0);
        }
        if (pid > 0)
                (void)waitpid(pid, NULL, 0);
}

static void print_failures(const char *program) {
        struct totals known = *totals;

        for (uint64_t i = 0; i < base_min_u64(known.failed, FAILURES_KEPT); i++)
                (void)printf("FAILED seed %" PRIu64 ": %s\n", known.failures[i].seed, known.failures[i].text);
        if (known.failed > 0) {
                (void)printf("---- the end of seed %" PRIu64 "\n", known.failures[0].seed);
                retell(known.failures[0].seed);
                (void)printf("---- all of it: %s --seed %" PRIu64 " --schedules 1 --trace\n", program, known.failures[0].seed);
        }
        *totals = known;
}

static void *shared(size_t size) {
        void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

        if (memory == MAP_FAILED)
                abort();
        return memory;
}

static uint64_t number(const char *text) {
        uint64_t value;

        if (base_parse_u64(text, 0, UINT64_MAX, &value) < 0) {
                (void)fprintf(stderr, "sim: '%s' is not a number\n", text);
                exit(2);
        }
        return value;
}

int main(int argc, char *argv[]) {
        static const struct option options[] = {
                { "seed", required_argument, NULL, 's' }, { "schedules", required_argument, NULL, 'n' },
                { "jobs", required_argument, NULL, 'j' }, { "trace", no_argument, NULL, 't' },
                { "coverage", no_argument, NULL, 'c' },   { "directory", required_argument, NULL, 'd' },
                { NULL, 0, NULL, 0 },
        };
        uint64_t seed = base_random_u64() % 1000000000, count = 100, jobs = (uint64_t)sysconf(_SC_NPROCESSORS_ONLN);
        bool trace = false, all = false;
        int option;

        while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
                switch (option) {
                case 's':
                        seed = number(optarg);
                        break;
                case 'n':
                        count = number(optarg);
                        break;
                case 'j':
                        jobs = number(optarg);
                        break;
                case 't':
                        trace = true;
                        break;
                case 'c':
                        all = true;
                        break;
                case 'd':
                        parent_directory = optarg;
                        break;
                default:
                        (void)fprintf(stderr, "usage: %s [--seed N] [--schedules N] [--jobs N] [--trace] [--coverage] [--directory D]\n", argv[0]);
                        return 2;
                }
        }
        jobs = base_max_u64(1, base_min_u64(base_min_u64(jobs, count), 64));
        (void)signal(SIGPIPE, SIG_IGN); /* a reader that has seen enough must not leave our directory behind */
        totals = shared(sizeof *totals);
        sim_coverage_set(shared(sim_coverage_size()));
        (void)printf("sim: seed %" PRIu64 ", %" PRIu64 " schedules\n", seed, count);
        (void)fflush(stdout);
        run_all(seed, count, jobs, trace);
        sim_coverage_print(all);
        print_failures(argv[0]);
        (void)printf("sim: %" PRIu64 " lives, %" PRIu64 " boots, %" PRIu64 " operations, %" PRIu64 " steps\n", totals->lives,
                     totals->boots, totals->operations, totals->steps);
        (void)printf("sim: %" PRIu64 " passed, %" PRIu64 " failed%s\n", totals->passed, totals->failed,
                     totals->crashed ? ", a process crashed" : "");
        return totals->failed == 0 && !totals->crashed && totals->passed == count ? 0 : 1;
}
