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

/* Not what SQLite makes by itself: the indexes behind UNIQUE and PRIMARY KEY follow from the tables, statistics hold
 * data. Nor the reserve, which a cut may have left behind. */
static const char objects_sql[] = "SELECT type || ' ' || name, tbl_name, sql FROM sqlite_master"
                                  " WHERE NOT (type = 'index' AND sql IS NULL)"
                                  " AND NOT (type = 'table' AND name LIKE 'sqlite_stat%')"
                                  " AND NOT (type = 'table' AND sql = '" STORE_RESERVE_TABLE "') ORDER BY type, name, sql";

static bool text_is_same(sqlite3_stmt *one, sqlite3_stmt *other, int column) {
        const char *a = (const char *)sqlite3_column_text(one, column);
        const char *b = (const char *)sqlite3_column_text(other, column);

        return a && b && strcmp(a, b) == 0;
}

static bool ran_out_of_memory(sqlite3_stmt *one, sqlite3_stmt *other) {
        return sqlite3_errcode(sqlite3_db_handle(one)) == SQLITE_NOMEM ||
               sqlite3_errcode(sqlite3_db_handle(other)) == SQLITE_NOMEM;
}

/* Both end together, and every row is the same. */
static int compare_objects(struct store *store, sqlite3_stmt *found, sqlite3_stmt *expected) {
        int found_code, expected_code;

        do {
                found_code = sqlite3_step(found);
                expected_code = sqlite3_step(expected);
                if (found_code != SQLITE_ROW && found_code != SQLITE_DONE)
                        return store_fail(store, found_code, "cannot read the schema");
                if (expected_code != SQLITE_ROW && expected_code != SQLITE_DONE)
                        return store_fail(store, expected_code, "cannot make the schema to compare with");
                bool same = found_code == expected_code;
                for (int column = 0; same && found_code == SQLITE_ROW && column < 3; column++)
                        same = text_is_same(found, expected, column);
                if (!same && ran_out_of_memory(found, expected))
                        return store_fail(store, SQLITE_NOMEM, "cannot check the schema");
                if (!same)
                        return store_set_error(store, -EBADMSG, "%s: its schema is not ours: %.80s", store->path,
                                               found_code == SQLITE_ROW ? (const char *)sqlite3_column_text(found, 0)
                                                                        : "something is missing");
        } while (found_code == SQLITE_ROW);
        return 0;
}

static int compare_schema(struct store *store, struct store *model) {
        sqlite3_stmt *found = NULL, *expected = NULL;
        int r, code = sqlite3_prepare_v2(store->db, objects_sql, -1, &found, NULL);

        if (code == SQLITE_OK)
                code = sqlite3_prepare_v2(model->db, objects_sql, -1, &expected, NULL);
        r = code == SQLITE_OK ? compare_objects(store, found, expected) : store_fail(store, code, "cannot read the schema");
        sqlite3_finalize(found);
        sqlite3_finalize(expected);
        return r;
}

/* The schema that the steps make, in memory, and the file's beside it. A file whose tables look like ours can still
 * turn a commit into something else: a unique column "ON CONFLICT REPLACE" lets one operation delete another, in
 * silence. So everything that stands in the schema must be ours, word for word. */
int store_schema_check(struct store *store, const struct store_step *steps, uint32_t version) {
        struct store model = {};
        int r = 0;

        if (version == 0)
                return 0;
        if (sqlite3_open_v2(":memory:", &model.db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL) != SQLITE_OK)
                r = store_set_error(store, -ENOMEM, "%s: no memory to check its schema", store->path);
        else if (run_steps(&model, steps, 0, version, 0) < 0)
                r = store_set_error(store, -ENOMEM, "%s: cannot check its schema: %.200s", store->path, model.error);
        if (r == 0)
                r = compare_schema(store, &model);
        sqlite3_close(model.db);
        return r;
}

int store_schema_read_meta(struct store *store, struct store_info *info) {
        int r;

        r = store_query_i64(store, "SELECT value FROM meta WHERE name = 'revision'", &info->revision);
        if (r < 0)
                return r;
        return store_query_i64(store, "SELECT value FROM meta WHERE name = 'sequence_base'", &info->sequence_base);
}
