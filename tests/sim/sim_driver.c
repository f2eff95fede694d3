/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver.h over the processes of the made-up world. A scan copies what is alive at that moment; the order in which
 * several processes of one job are preferred is the real one's. Scans and holds can fail, a wake-up of the work
 * directory can be lost, an exit is seen a little later than it happens.
 */
#include "sim.h"

struct driver {
        int (*wake)(void *userdata);
        void *userdata;
        struct driver_found found[SIM_PROCESSES_MAX];
        bool contested[SIM_PROCESSES_MAX];
        unsigned count;
};

struct driver_hold {
        struct sim_process *process;
        int (*exited)(void *userdata);
        void *userdata;
        struct sim_item item;
        bool seen;
        struct driver_hold *earlier; /* joined to this one */
        TAILQ_ENTRY(driver_hold) entry;
};

static TAILQ_HEAD(, driver_hold) holds = TAILQ_HEAD_INITIALIZER(holds);

struct driver *sim_driver_make(int (*wake)(void *userdata), void *userdata) {
        struct driver *driver = calloc(1, sizeof *driver);

        if (!driver)
                abort();
        driver->wake = wake;
        driver->userdata = userdata;
        return driver;
}

struct driver *driver_free(struct driver *driver) {
        free(driver);
        return NULL;
}

/* ---- scan ------------------------------------------------------------------------------------------------------------ */

static void add(struct driver *driver, const struct sim_process *process) {
        struct driver_found *found = &driver->found[driver->count];

        *found = (struct driver_found){
                .pid = process->pid,
                .worker_pid = process->worker_pid,
                .start_ticks = process->start_ticks,
                .worker_start_ticks = process->worker_pid ? process->worker_start_ticks : 0,
                .started_real_usec = process->started_at + sim.wall_offset,
                .supervised = process->supervised,
        };
        base_text_copy(found->job_id, sizeof found->job_id, sim.jobs[process->job].id);
        base_text_copy(found->driver_id, sizeof found->driver_id, process->claimed_id);
        base_text_copy(found->app_name, sizeof found->app_name, "app");
        driver->count++;
}

int driver_scan(struct driver *driver) {
        if (sim_fault(sim.faults.scan_fails))
                return sim_chance(500) ? -EMFILE : -EACCES;
        driver->count = 0;
        for (unsigned i = 0; i < sim.process_count; i++)
                if (sim.processes[i]->alive)
                        add(driver, sim.processes[i]);
        for (unsigned i = 0; i < driver->count; i++)
                driver->contested[i] = sim_id_contested(driver->found[i].driver_id);
        return 0;
}

uint32_t driver_scan_size(const struct driver *driver) {
        return driver->count;
}

/* Does `a` stand before `b` in the order of a job's processes? */
static bool is_before(const struct driver_found *a, const struct driver_found *b) {
        if (a->start_ticks != b->start_ticks)
                return a->start_ticks > b->start_ticks;
        return a->pid > b->pid;
}

enum driver_match driver_match(const struct driver *driver, const char *job_id, const struct driver_found *after,
                               struct driver_found *ret) {
        const struct driver_found *best = NULL, *contested = NULL;

        for (unsigned i = 0; i < driver->count; i++) {
                const struct driver_found *found = &driver->found[i];

                if (strcmp(found->job_id, job_id) != 0 || (after && !is_before(after, found)))
                        continue;
                if (driver->contested[i])
                        contested = found;
                else if (!best || is_before(found, best))
                        best = found;
        }
        if (!best && !contested)
                return DRIVER_MATCH_NONE;
        *ret = best ? *best : *contested;
        if (!best)
                return DRIVER_MATCH_CONTESTED;
        return best->worker_pid == 0 ? DRIVER_MATCH_ORPHAN : DRIVER_MATCH_ONE;
}

static struct sim_process *process_find(int32_t pid, uint64_t start_ticks) {
        for (unsigned i = 0; i < sim.process_count; i++)
                if (sim.processes[i]->alive && sim.processes[i]->pid == pid &&
                    sim.processes[i]->start_ticks == start_ticks)
                        return sim.processes[i];
        return NULL;
}

bool driver_process_alive(const struct driver *driver, int32_t pid, uint64_t start_ticks) {
        (void)driver;
        return process_find(pid, start_ticks) || sim_fault(sim.faults.scan_fails);
}

bool driver_directory_exists(const struct driver *driver, const char *driver_id) {
        const struct sim_driver *found = sim_driver_find(driver_id);

        (void)driver;
        return found && found->directory;
}

void sim_driver_reset(void) {
        TAILQ_INIT(&holds);
}

/* ---- holds --------------------------------------------------------------------------------------------------------------- */

static void exit_seen(void *argument) {
        struct driver_hold *hold = argument;

        if (sim.dying)
                return;
        hold->seen = true;
        if (hold->exited(hold->userdata) < 0)
                sim_fail("a handler of driver failed");
}

int driver_hold(struct driver *driver, const struct driver_found *found, int (*exited)(void *userdata), void *userdata,
                struct driver_hold **ret) {
        struct sim_process *process = process_find(found->pid, found->start_ticks);
        struct driver_hold *hold;

        (void)driver;
        if (sim_fault(sim.faults.hold_fails))
                return -EMFILE;
        if (!process)
                return 1;
        hold = calloc(1, sizeof *hold);
        if (!hold)
                return -ENOMEM;
        hold->process = process;
        hold->exited = exited;
        hold->userdata = userdata;
        hold->item = (struct sim_item){ .action = exit_seen, .argument = hold };
        TAILQ_INSERT_TAIL(&holds, hold, entry);
        *ret = hold;
        return 0;
}

struct driver_hold *driver_hold_free(struct driver_hold *hold) {
        if (!hold)
                return NULL;
        TAILQ_REMOVE(&holds, hold, entry);
        sim_item_cancel(&hold->item);
        driver_hold_free(hold->earlier);
        free(hold);
        return NULL;
}

void sim_driver_exited(struct sim_process *process) {
        struct driver_hold *hold;

        TAILQ_FOREACH(hold, &holds, entry)
                if (hold->process == process)
                        sim_item_set(&hold->item, sim.time + sim_below(sim_chance(100) ? 200 * USEC_PER_MSEC : 2000));
}

int driver_signal(struct driver_hold *hold, int signal_number) {
        sim_crash_point();
        if (sim.dying)
                return 0;
        sim_check_signal(hold->userdata, hold->process, signal_number);
        if (!hold->process->alive || hold->seen)
                return -ESRCH;
        if (sim_fault(sim.faults.signal_denied))
                return -EPERM;
        sim_check_signalled(hold->userdata, hold->process);
        TRACE("the agent sends signal %d to process %d", signal_number, hold->process->pid);
        sim_process_signal(hold->process, signal_number);
        sim_crash_point();
        return 0;
}

/* ---- leftovers ---------------------------------------------------------------------------------------------------------------- */

void driver_note_descendants(struct driver_hold *hold) {
        (void)hold;
}

void driver_hold_join(struct driver_hold *hold, struct driver_hold *earlier) {
        while (hold->earlier)
                hold = hold->earlier;
        hold->earlier = earlier;
}

static uint32_t leftovers_of(const struct sim_process *process) {
        return !process->alive && process->boot == sim.boot && sim.time < process->leftovers_until ? process->leftovers : 0;
}

static bool is_noted(const struct driver_hold *hold, const struct sim_process *process) {
        for (; hold; hold = hold->earlier)
                if (hold->process == process)
                        return true;
        return false;
}

uint32_t driver_leftovers(struct driver *driver, const struct driver_hold *hold, const char *driver_id,
                          void (*visit)(const struct driver_leftover *leftover, void *userdata), void *userdata) {
        uint32_t count = 0;

        (void)driver;
        for (unsigned i = 0; i < sim.process_count; i++) {
                const struct sim_process *process = sim.processes[i];
                bool noted = is_noted(hold, process);

                if (!noted && strcmp(process->claimed_id, driver_id) != 0)
                        continue;
                for (uint32_t n = 0; n < leftovers_of(process); n++, count++)
                        visit(&(struct driver_leftover){ .pid = 10000 + process->pid, .held = noted, .comm = "python3" }, userdata);
        }
        return count;
}

int driver_signal_leftovers(struct driver_hold *hold, int signal_number) {
        int reached = 0;

        if (sim.dying)
                return 0;
        for (; hold; hold = hold->earlier) {
                uint32_t count = leftovers_of(hold->process);

                if (count == 0)
                        continue;
                sim_check_leftover_signal(hold->userdata, hold->process, signal_number);
                reached += (int)count;
                if (signal_number == SIGKILL || !hold->process->leftovers_deaf)
                        hold->process->leftovers_until = base_min_u64(hold->process->leftovers_until, sim.time + 20 * USEC_PER_MSEC);
        }
        return reached > 0 ? reached : -ESRCH;
}

/* ---- the rest --------------------------------------------------------------------------------------------------------------- */

static void wake(void *argument) {
        (void)argument;
        if (sim.up && !sim.dying && sim.driver && sim.driver->wake(sim.driver->userdata) < 0)
                sim_fail("the wake handler failed");
}

void sim_driver_directory_made(void) {
        if (!sim_fault(sim.faults.wake_lost))
                sim_after(sim_below(5000), wake, NULL);
}

void driver_lookalikes(const struct driver *driver, const char *job_id,
                       void (*visit)(const struct driver_lookalike *lookalike, void *userdata), void *userdata) {
        (void)driver;
        (void)job_id;
        (void)visit;
        (void)userdata;
}

const char *driver_work_directory_status(const struct driver *driver) {
        (void)driver;
        return NULL;
}

int driver_recent(const struct driver *driver, const char *job_id, char ret_driver_id[DRIVER_ID_MAX + 1]) {
        (void)driver;
        (void)job_id;
        (void)ret_driver_id;
        return 1;
}
