/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One life of the agent after the other, on one state directory.
 *
 * A crash leaves what was written: memory is given back, descriptors are closed, nothing is written any more, and no
 * callback comes. With the power the unflushed sectors go, too, the boot id changes and the boot clock begins anew.
 * A stop is the way of SIGTERM. A store that cannot be opened (a disk that fails) is tried again, as systemd would.
 */
#include "sim.h"
#include "bus.h"
#include "store_internal.h"

#define RESERVE_PAGES 32 /* small: thousands of stores are made */

static char state_directory[120];

/* ---- what is stored ---------------------------------------------------------------------------------------------------- */

static void column_text(sqlite3_stmt *statement, int column, char *target, size_t size) {
        base_text_copy(target, size, (const char *)sqlite3_column_text(statement, column));
}

/* Through the store's own connection (it holds the lock), between two transactions. */
bool sim_life_row(const char *operation_id, struct sim_row *ret) {
        static uint8_t report[AGENT_REPORT_BYTES_MAX];
        bool found;

        (void)sqlite3_bind_text(sim.row, 1, operation_id, -1, SQLITE_STATIC);
        found = sqlite3_step(sim.row) == SQLITE_ROW;
        if (found && ret) {
                *ret = (struct sim_row){
                        .kill_requests = sqlite3_column_int64(sim.row, 3),
                        .report_sequence = sqlite3_column_int64(sim.row, 4),
                        .withdrawn = sqlite3_column_int64(sim.row, 5) != 0,
                        .master_answered = sqlite3_column_int64(sim.row, 6) != 0,
                        .accepted = sqlite3_column_int64(sim.row, 7) != 0,
                        .killed_usec = (uint64_t)sqlite3_column_int64(sim.row, 8),
                        .acknowledged_sequence = sqlite3_column_int64(sim.row, 9),
                        .report = report,
                        .report_size = base_min_u64((size_t)sqlite3_column_bytes(sim.row, 10), sizeof report),
                };
                if (ret->report_size > 0)
                        memcpy(report, sqlite3_column_blob(sim.row, 10), ret->report_size);
                column_text(sim.row, 0, ret->state, sizeof ret->state);
                column_text(sim.row, 1, ret->outcome, sizeof ret->outcome);
                column_text(sim.row, 2, ret->escalation, sizeof ret->escalation);
                column_text(sim.row, 11, ret->driver_id, sizeof ret->driver_id);
        }
        sqlite3_reset(sim.row);
        return found;
}

static int prepare_row(void) {
        return sqlite3_prepare_v3(sim.store->db,
                                  "SELECT state, outcome, escalation, kill_requests, report_sequence, withdrawn, master_answered,"
                                  " accepted_usec, killed_usec, acknowledged_sequence, report, driver_id FROM operations WHERE operation_id = ?",
                                  -1, SQLITE_PREPARE_PERSISTENT, &sim.row, NULL);
}

int64_t sim_life_stored_revision(void) {
        int64_t revision = -1;

        (void)store_query_i64(sim.store, "SELECT value FROM meta WHERE name = 'revision'", &revision);
        return revision;
}

/* ---- start ------------------------------------------------------------------------------------------------------------------ */

static void new_boot(void) {
        sim.boot++;
        sim.boots++;
        sim.boot_at = sim.time - sim_spread(USEC_PER_SEC, 100 * USEC_PER_SEC);
        if (sim.boot == 1)
                sim.boot_at = sim.time - sim_spread(USEC_PER_MINUTE, 24 * USEC_PER_HOUR);
        (void)snprintf(sim.boot_id, sizeof sim.boot_id, "%08" PRIx64 "-0000-4000-8000-%012" PRIx64, sim.boot, sim.seed % 0xffffff);
}

void sim_life_make(const char *directory) {
        base_text_copy(state_directory, sizeof state_directory, directory);
        sim_disk_reset(directory);
        new_boot();
}

static bool open_store(struct store_info *info) {
        char error[STORE_ERROR_MAX] = "";
        int r;

        if (sim_fault(sim.faults.disk_fails))
                sim_disk_fail(sim.faults.disk_fails, sim_chance(500));
        r = store_open_reserved(&sim_event, state_directory, event_real_usec(&sim_event), RESERVE_PAGES, info, error,
                                sizeof error, &sim.store);
        sim_disk_fail(0, false);
        if (r < 0 && (sim_faulty() || !sim_disk_works())) {
                TRACE("the store cannot be opened: %s", error);
                sim_after(USEC_PER_SEC, sim_life_start, NULL);
                return false;
        }
        if (r != 0)
                sim_fail("the store cannot be opened: %s", error);
        if (info->set_aside)
                sim_fail("the database was set aside: %s", info->aside_reason);
        if (prepare_row() != SQLITE_OK)
                sim_fail("cannot prepare");
        return true;
}

void sim_life_start(void *unused) {
        struct store_info info = { 0 };
        int r;

        (void)unused;
        if (sim.up)
                return;
        sim.dying = sim.exited = false;
        sim_disk_revive();
        if (!open_store(&info))
                return;
        sim.up = true;
        sim.up_since = sim.time;
        sim.lives++;
        TRACE("---- life %u, boot %" PRIu64 ", revision %" PRId64, sim.lives, sim.boot, info.revision);
        r = agent_new(&sim_event, &(struct agent_options){ .config = &sim.config, .agent_version = "sim" }, &sim.agent);
        if (r == 0)
                r = spark_new(NULL, NULL, NULL, &sim.spark);
        if (r < 0)
                abort();
        if (sim_chance(500)) /* several commits for what an outage leaves */
                sim.agent->unwritten_batch = sim_between(1, 3);
        sim.driver = sim_driver_make(agent_driver_wake, sim.agent);
        sim.control = sim_control_make(&agent_control_handlers, sim.agent);
        agent_attach(sim.agent, sim.control, sim.driver, sim.spark, sim.store);
        sim_check_loaded();
        r = agent_start(sim.agent, &info);
        if (r < 0)
                sim_fail("the agent cannot start: %s", strerror(-r));
}

/* ---- end -------------------------------------------------------------------------------------------------------------------- */

static void free_parts(void) {
        sim.agent = agent_free(sim.agent);
        sim.control = control_free(sim.control);
        sim.driver = driver_free(sim.driver);
        sim.spark = spark_free(sim.spark);
        sqlite3_finalize(sim.row);
        sim.row = NULL;
        sim.up = false;
}

/* store_close() without what it writes. */
static void abandon_store(void) {
        struct store *store = sim.store;

        sim_disk_die_after(0);
        store->worker = event_worker_free(store->worker);
        store->turn = store_turn_free(store->turn);
        store_database_close(store, false);
        store_files_close(store);
        free(store);
        sim.store = NULL;
        sim_disk_revive();
}

void sim_life_crash(bool power) {
        sim.dying = true;
        if (sim.up) {
                TRACE("---- %s", power ? "power cut" : "crash");
                sim_worker_crash();
                free_parts();
                abandon_store();
        }
        sim.dying = false;
        if (power) {
                sim_disk_power_cut();
                sim_world_reboot();
        }
}

static void boot_up(void *argument) {
        (void)argument;
        new_boot();
        TRACE("---- boot %" PRIu64, sim.boot);
        sim_world_up();
        sim_life_start(NULL);
}

/* Not much longer than the faults last: what comes after them is to be seen. */
static uint64_t time_down(void) {
        uint64_t time = sim_chance(800) ? sim_spread(10 * USEC_PER_MSEC, 5 * USEC_PER_SEC)
                                        : sim_spread(5 * USEC_PER_SEC, USEC_PER_HOUR);

        return base_min_u64(time, base_usec_sub(sim.faults_end, sim.time) + 20 * USEC_PER_SEC);
}

static void stop_life(void) {
        TRACE("---- stopped");
        sim_check_stopped();
        free_parts();
        sim.store = store_close(sim.store);
        sim_after(time_down(), sim_life_start, NULL);
}

void sim_life_after_step(void) {
        if (sim.up && sim.exited) {
                stop_life();
        } else if (sim.up && sim.dying) {
                bool power = sim_chance(150);

                sim_life_crash(power);
                sim_after(time_down(), power ? boot_up : sim_life_start, NULL);
        }
}

void sim_life_end(void) {
        if (!sim.up)
                return;
        free_parts();
        sim.store = store_close(sim.store);
}
