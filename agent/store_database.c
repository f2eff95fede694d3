/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The connection: who may touch the file, and how SQLite is set up.
 *
 * Nothing is written before the file is known to be ours: even "PRAGMA journal_mode = WAL" or the checkpoint at
 * close would change another program's database, or a newer version's. So the application id and the version are
 * read first, and NO_CKPT_ON_CLOSE stays on for life: store_database_close() checkpoints by itself when it should.
 *
 * The file may come from anywhere (a backup, a curious hand), so its schema is not trusted: it must be ours word for
 * word, and even so no triggers, no views, no functions with side effects from it, bounded rows, cells checked, the whole of it through quick_check.
 * No memory map: an I/O error in one is a SIGBUS.
 */
#include "store_internal.h"

int store_exec(struct store *store, const char *sql, const char *what) {
        int code = sqlite3_exec(store->db, sql, NULL, NULL, NULL);

        return code == SQLITE_OK ? 0 : store_fail(store, code, what);
}

/* SQLite rolls back by itself after some failures and not after others. store->error stays that of the first one. */
void store_roll_back(struct store *store) {
        if (!sqlite3_get_autocommit(store->db))
                sqlite3_exec(store->db, "ROLLBACK", NULL, NULL, NULL);
}

/* The first column of the first row, or -EBADMSG when there is no row or no integer in it. */
int store_query_i64(struct store *store, const char *sql, int64_t *ret) {
        sqlite3_stmt *statement = NULL;
        int r, code = sqlite3_prepare_v2(store->db, sql, -1, &statement, NULL);

        if (code == SQLITE_OK)
                code = sqlite3_step(statement);
        if (code == SQLITE_ROW && sqlite3_column_type(statement, 0) == SQLITE_INTEGER) {
                *ret = sqlite3_column_int64(statement, 0);
                r = 0;
        } else if (code == SQLITE_ROW || code == SQLITE_DONE)
                r = store_set_error(store, -EBADMSG, "%s: no integer from: %s", store->path, sql);
        else
                r = store_fail(store, code, sql);
        sqlite3_finalize(statement);
        return r;
}

/* One row of text is expected, and nothing else. -EUCLEAN otherwise, with that text. */
static int expect_text(struct store *store, const char *sql, const char *expected) {
        sqlite3_stmt *statement = NULL;
        const char *text = NULL;
        int r = 0, code = sqlite3_prepare_v2(store->db, sql, -1, &statement, NULL);

        if (code == SQLITE_OK)
                code = sqlite3_step(statement);
        if (code == SQLITE_ROW)
                text = (const char *)sqlite3_column_text(statement, 0);
        if (code == SQLITE_ROW && !text)
                r = store_fail(store, SQLITE_NOMEM, sql);
        else if (code != SQLITE_ROW && code != SQLITE_DONE)
                r = store_fail(store, code, sql);
        else if (!text || strcmp(text, expected) != 0)
                r = store_set_error(store, -EUCLEAN, "%s: %s: %.100s", store->path, sql, text ? text : "no answer");
        sqlite3_finalize(statement);
        return r;
}

int store_step(struct store *store, enum store_statement statement, const char *what) {
        sqlite3_stmt *stmt = store->statements[statement];
        int r = 0, code = sqlite3_step(stmt);

        if (code != SQLITE_DONE)
                r = store_fail(store, code, what);
        sqlite3_reset(stmt);
        sqlite3_clear_bindings(stmt); /* what was bound is about to be freed */
        return r;
}

static int configure(struct store *store) {
        static const int switches[][2] = {
                {SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1},
                {SQLITE_DBCONFIG_DEFENSIVE, 1},
                {SQLITE_DBCONFIG_ENABLE_TRIGGER, 0},
                {SQLITE_DBCONFIG_ENABLE_VIEW, 0},
        };

        for (size_t i = 0; i < ARRAY_SIZE(switches); i++) {
                int code = sqlite3_db_config(store->db, switches[i][0], switches[i][1], NULL);

                if (code != SQLITE_OK)
                        return store_fail(store, code, "cannot set up the connection");
        }
        sqlite3_limit(store->db, SQLITE_LIMIT_LENGTH, STORE_ROW_MAX);
        sqlite3_limit(store->db, SQLITE_LIMIT_ATTACHED, 0);
        return store_exec(store,
                          "PRAGMA locking_mode = EXCLUSIVE;" /* before the first access: then there is no -shm */
                          "PRAGMA trusted_schema = OFF;"
                          "PRAGMA cell_size_check = ON;"
                          "PRAGMA mmap_size = 0;"
                          "PRAGMA cache_size = -256;" /* KiB; what does not fit goes to the log early */
                          "PRAGMA temp_store = MEMORY;",
                          "cannot set up the connection");
}

static int connect_database(struct store *store) {
        int code = sqlite3_open_v2(store->path, &store->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);

        if (code != SQLITE_OK)
                return store_fail(store, code, "cannot open");
        sqlite3_extended_result_codes(store->db, 1);
        if (sqlite3_db_readonly(store->db, "main") == 1) /* SQLite falls back to that by itself */
                return store_fail_errno(store, EACCES, "%s: cannot open for writing", store->path);
        return configure(store);
}

/* Ours, in a version that we know? `ret_version` 0: an empty file. */
static int identify(struct store *store, uint32_t *ret_version) {
        int64_t application = 0, version = 0, objects = 0;
        int r;

        if ((r = store_query_i64(store, "PRAGMA application_id", &application)) < 0 ||
            (r = store_query_i64(store, "PRAGMA user_version", &version)) < 0 ||
            (r = store_query_i64(store, "SELECT count(*) FROM sqlite_master", &objects)) < 0)
                return r;
        if (application != STORE_APPLICATION_ID && (application != 0 || version != 0 || objects > 0))
                return store_set_error(store, STORE_FOREIGN,
                                       "%s: a database of another program (application id %#" PRIx64
                                       ", not %#x); it is left alone",
                                       store->path, application, STORE_APPLICATION_ID);
        if (version > STORE_SCHEMA_VERSION)
                return store_set_error(store, STORE_NEWER,
                                       "%s: written by a newer version (schema %" PRId64
                                       "; this one knows up to %d); it is left alone",
                                       store->path, version, STORE_SCHEMA_VERSION);
        if (version < 0)
                return store_set_error(store, -EUCLEAN, "%s: schema version %" PRId64, store->path, version);
        *ret_version = (uint32_t)version;
        return 0;
}

/* From here on it is ours. auto_vacuum and page_size count for a new file only. */
static int settle(struct store *store) {
        int r;

        r = store_exec(store,
                       "PRAGMA page_size = 4096;"
                       "PRAGMA auto_vacuum = NONE;"
                       "PRAGMA secure_delete = OFF;" /* ON in some distributions: free pages would be written */
                       "PRAGMA synchronous = FULL;",
                       "cannot set up the database");
        if (r < 0 || (r = store_reserve_configure(store)) < 0)
                return r;
        r = expect_text(store, "PRAGMA journal_mode = WAL", "wal");
        return r == -EUCLEAN ? -ENOTSUP : r;
}

/* All bytes of the database or the log, through SQLite's own layer. 0, or SQLite's code. */
static int read_all(struct store *store, int which) {
        uint8_t bytes[STORE_PAGE_BYTES];
        sqlite3_file *file = NULL;
        sqlite3_int64 size = 0;
        int code = sqlite3_file_control(store->db, "main", which, &file);

        if (code != SQLITE_OK || !file || !file->pMethods)
                return code; /* there is none */
        code = file->pMethods->xFileSize(file, &size);
        for (sqlite3_int64 at = 0; at < size && code == SQLITE_OK; at += (sqlite3_int64)sizeof(bytes)) {
                code = file->pMethods->xRead(file, bytes, sizeof(bytes), at);
                if (code == SQLITE_IOERR_SHORT_READ)
                        code = SQLITE_OK;
        }
        return code;
}

/* A page that the disk does not give out is only a line of text for quick_check, like a page that is wrong. But a
 * disk that fails for a moment is no reason to set a sound database aside: only what can be read is judged, and
 * judged once more after it could be read. */
static int check_whole(struct store *store) {
        static const char sql[] = "PRAGMA quick_check(1)";
        int code, r = expect_text(store, sql, "ok");

        if (r != -EUCLEAN)
                return r;
        code = read_all(store, SQLITE_FCNTL_FILE_POINTER);
        if (code == SQLITE_OK)
                code = read_all(store, SQLITE_FCNTL_JOURNAL_POINTER);
        if (code != SQLITE_OK)
                return store_set_error(store, -EIO, "%s: cannot be read: %s", store->path, sqlite3_errstr(code));
        return expect_text(store, sql, "ok");
}

static int prepare(struct store *store, enum store_statement statement, const char *sql) {
        int code =
                sqlite3_prepare_v3(store->db, sql, -1, SQLITE_PREPARE_PERSISTENT, &store->statements[statement], NULL);

        return code == SQLITE_OK ? 0 : store_fail(store, code, "cannot prepare a statement");
}

static int prepare_put(struct store *store) {
        struct buffer sql = BUFFER_INIT(8 * 1024);
        const char *text;
        int r = store_row_put_sql(&sql);

        if (r >= 0) {
                text = buffer_text(&sql);
                r = text ? prepare(store, STORE_PUT, text) : -ENOMEM;
        }
        if (r == -ENOMEM)
                r = store_fail_errno(store, ENOMEM, "%s: cannot prepare a statement", store->path);
        buffer_deinit(&sql);
        return r;
}

static int prepare_all(struct store *store) {
        int r;

        if ((r = prepare(store, STORE_BEGIN, "BEGIN IMMEDIATE")) < 0 ||
            (r = prepare(store, STORE_COMMIT, "COMMIT")) < 0 ||
            (r = prepare(store, STORE_DELETE, "DELETE FROM operations WHERE operation_id = ?")) < 0 ||
            (r = prepare(store, STORE_SET_REVISION, "UPDATE meta SET value = ? WHERE name = 'revision'")) < 0 ||
            (r = prepare(store, STORE_COUNT_FREE, "PRAGMA freelist_count")) < 0)
                return r;
        return prepare_put(store);
}

/* The log's own bytes over themselves. Only a file system that copies on write can be too full for that; then no commit
 * can be stored either, and an agent that starts and goes on from memory is better than none. */
static int rewrite(sqlite3_file *file) {
        uint8_t bytes[STORE_PAGE_BYTES];
        sqlite3_int64 size = 0;
        int code = file->pMethods->xFileSize(file, &size);

        for (sqlite3_int64 at = 0; at < size && code == SQLITE_OK; at += (sqlite3_int64)sizeof(bytes)) {
                int part = (int)base_min_u64(sizeof(bytes), (uint64_t)(size - at));

                code = file->pMethods->xRead(file, bytes, part, at);
                if (code == SQLITE_OK)
                        code = file->pMethods->xWrite(file, bytes, part, at);
        }
        return code == SQLITE_FULL ? SQLITE_OK : code;
}

/* A process that died between writing a commit and flushing it has left it in the kernel's memory, where it reads like
 * any other, and a power cut would still take it back. What is loaded is acted on, and later commits are chained to it,
 * so it is flushed first. A flush alone is not enough: when one failed in the dead process, the kernel has said so to
 * that process, once, and calls the pages clean since; the next flush would say that all is well. So they are made
 * dirty again. (Within one process SQLite does so by itself: a commit that failed is overwritten by the next one.) The
 * log lies in one piece and is at most some megabytes. The database needs nothing of the kind: a checkpoint that did
 * not end is made again from the log. */
static int flush_log(struct store *store) {
        sqlite3_file *file = NULL;
        int code = sqlite3_file_control(store->db, "main", SQLITE_FCNTL_JOURNAL_POINTER, &file);

        if (code == SQLITE_OK && file && file->pMethods) {
                code = rewrite(file);
                if (code == SQLITE_OK)
                        code = file->pMethods->xSync(file, SQLITE_SYNC_NORMAL);
        }
        if (code == SQLITE_OK)
                return 0;
        return store_set_error(store, -EIO, "%s-wal: cannot flush the log: %s", store->path, sqlite3_errstr(code));
}

static int open_known(struct store *store, uint64_t real_usec, struct store_info *info) {
        uint32_t version = 0;
        int r;

        r = identify(store, &version);
        if (r != 0)
                return r;
        if ((r = check_whole(store)) < 0 || (r = store_schema_check(store, store_schema_steps, version)) < 0 ||
            (r = settle(store)) < 0 ||
            (r = store_schema_migrate(store, store_schema_steps, version, STORE_SCHEMA_VERSION, real_usec)) < 0 ||
            (r = prepare_all(store)) < 0 || (r = store_schema_read_meta(store, info)) < 0 ||
            (r = flush_log(store)) < 0)
                return r;
        info->created = version == 0;
        info->schema_version = STORE_SCHEMA_VERSION;
        info->reserved = store_reserve_open(store);
        return 0;
}

int store_database_open(struct store *store, uint64_t real_usec, struct store_info *info) {
        int r;

        if ((r = store_files_prepare(store)) >= 0 && (r = connect_database(store)) >= 0)
                r = open_known(store, real_usec, info);
        if (r == -EBUSY) /* at any of these, the first that looks into the file */
                return store_set_error(store, STORE_LOCKED, "%s: another program has the database open (sqlite3?)",
                                       store->path);
        return r;
}

void store_database_close(struct store *store, bool settled) {
        bool emptied;

        if (!store->db)
                return;
        for (size_t i = 0; i < STORE_STATEMENT_MAX; i++) {
                sqlite3_finalize(store->statements[i]);
                store->statements[i] = NULL;
        }
        emptied = settled &&
                  sqlite3_wal_checkpoint_v2(store->db, NULL, SQLITE_CHECKPOINT_RESTART, NULL, NULL) == SQLITE_OK;
        if (sqlite3_close(store->db) != SQLITE_OK) {
                sqlite3_close_v2(store->db); /* a statement is left: a defect of ours; do not leak it all the same */
                emptied = false;
        }
        store->db = NULL;
        if (emptied)
                store_files_rest_log(store);
}
