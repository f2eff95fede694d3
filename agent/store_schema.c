/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tables and versions. `user_version` of the file is the schema's version; each step brings it one further, all of
 * them in one transaction, so a crash in the midst leaves the old version. A step is frozen once it was released:
 * what this program reads and writes stands in store_row.c, and the round-trip test needs both to agree.
 *
 * How to add a column: a line in store_row.c, a step "ALTER TABLE operations ADD COLUMN x TYPE NOT NULL DEFAULT …"
 * here (never in step 1), STORE_SCHEMA_VERSION up. Old rows get the default. There are no CHECKs on purpose:
 * quick_check would call a database corrupt for a word that a later version knows; store_row_read() says better what is
 * wrong.
 *
 * SQLite 3.34 (RHEL 9) is the oldest we build for: no STRICT tables, no RETURNING, no DROP COLUMN.
 */
#include "store_internal.h"

#define TEXT_OF(macro) TEXT_OF_(macro)
#define TEXT_OF_(text) #text

static const char step_1[] =
        "CREATE TABLE meta ("
        "  name TEXT NOT NULL PRIMARY KEY,"
        "  value INTEGER NOT NULL"
        ") WITHOUT ROWID;"
        "CREATE TABLE operations (\n"
        "  id INTEGER PRIMARY KEY,                  -- order of arrival\n"
        "  operation_id TEXT NOT NULL UNIQUE,\n"
        "  cluster_id TEXT NOT NULL,\n"
        "  job_id TEXT NOT NULL,\n"
        "  created_by TEXT NOT NULL,\n"
        "  state TEXT NOT NULL,                     -- SEARCH KILL WAIT TERM FORCE SETTLE REPORT QUARANTINE DONE\n"
        "  outcome TEXT NOT NULL,                   -- NONE until REPORT\n"
        "  progress TEXT NOT NULL,                  -- last progress reported\n"
        "  word TEXT NOT NULL,                      -- Spark's last word\n"
        "  escalation TEXT NOT NULL,\n"
        "  dry_run INTEGER NOT NULL,\n"
        "  withdrawn INTEGER NOT NULL,\n"
        "  supervised INTEGER NOT NULL,\n"
        "  master_answered INTEGER NOT NULL,\n"
        "  refused_auth INTEGER NOT NULL,\n"
        "  command_driver_id TEXT NOT NULL,\n"
        "  driver_id TEXT NOT NULL,\n"
        "  driver_state TEXT NOT NULL,\n"
        "  boot_id TEXT NOT NULL,                   -- *_usec are of this boot, *_real_usec since 1970; -1: never\n"
        "  pid INTEGER NOT NULL,\n"
        "  start_ticks INTEGER NOT NULL,\n"
        "  worker_pid INTEGER NOT NULL,\n"
        "  worker_start_ticks INTEGER NOT NULL,\n"
        "  kill_requests INTEGER NOT NULL,\n"
        "  leftover_processes INTEGER NOT NULL,\n"
        "  received_usec INTEGER NOT NULL,\n"
        "  received_real_usec INTEGER NOT NULL,\n"
        "  deadline_usec INTEGER NOT NULL,\n"
        "  deadline_real_usec INTEGER NOT NULL,\n"
        "  killed_usec INTEGER NOT NULL,\n"
        "  answered_usec INTEGER NOT NULL,\n"
        "  accepted_usec INTEGER NOT NULL,\n"
        "  accepted_real_usec INTEGER NOT NULL,\n"
        "  ended_usec INTEGER NOT NULL,\n"
        "  ended_real_usec INTEGER NOT NULL,\n"
        "  started_real_usec INTEGER NOT NULL,\n"
        "  done_real_usec INTEGER NOT NULL,\n"
        "  app_name TEXT NOT NULL,\n"
        "  message TEXT NOT NULL,\n"
        "  sequence INTEGER NOT NULL,\n"
        "  acknowledged_sequence INTEGER NOT NULL,\n"
        "  report_sequence INTEGER NOT NULL,\n"
        "  report_final INTEGER NOT NULL,\n"
        "  operation BLOB NOT NULL,                 -- raw yandex.cloud.operation.Operation\n"
        "  report BLOB NOT NULL                     -- sparkcancel.agent.v1.CancelReport\n"
        ");"
        /* retention asks for the oldest that are done; only those are in it */
        "CREATE INDEX operations_done ON operations (done_real_usec) WHERE done_real_usec <> 0;"
        "PRAGMA application_id = " TEXT_OF(STORE_APPLICATION_ID) ";";

const struct store_step store_schema_steps[STORE_SCHEMA_VERSION] = {
        {.sql = step_1},
};

static int write_meta(struct store *store, uint64_t real_usec) {
        char sql[300];

        snprintf(sql, sizeof(sql),
                 "INSERT INTO meta (name, value) VALUES ('revision', 0), ('sequence_base', %" PRIu64 "),"
                 " ('created_real_usec', %" PRIu64 ")",
                 real_usec, real_usec);
        return store_exec(store, sql, "cannot write the first rows");
}

static int run_steps(struct store *store, const struct store_step *steps, uint32_t from, uint32_t to,
                     uint64_t real_usec) {
        char sql[60];
        int r;

        for (uint32_t version = from; version < to; version++) {
                r = store_exec(store, steps[version].sql, "cannot bring the tables to the next version");
                if (r < 0)
                        return r;
                if (version == 0 && (r = write_meta(store, real_usec)) < 0)
                        return r;
        }
        snprintf(sql, sizeof(sql), "PRAGMA user_version = %" PRIu32, to);
        return store_exec(store, sql, "cannot write the version");
}

int store_schema_migrate(struct store *store, const struct store_step *steps, uint32_t from, uint32_t to,
                         uint64_t real_usec) {
        int r;

        if (from >= to)
                return 0;
        r = store_exec(store, "BEGIN IMMEDIATE", "cannot begin to make the tables");
        if (r < 0)
                return r;
        r = run_steps(store, steps, from, to, real_usec);
        if (r >= 0)
                r = store_exec(store, "COMMIT", "cannot store the tables");
        if (r < 0)
                store_roll_back(store);
        return r;
}

int store_schema_read_meta(struct store *store, struct store_info *info) {
        int r;

        r = store_query_i64(store, "SELECT value FROM meta WHERE name = 'revision'", &info->revision);
        if (r < 0)
                return r;
        return store_query_i64(store, "SELECT value FROM meta WHERE name = 'sequence_base'", &info->sequence_base);
}
