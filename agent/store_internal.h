/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * store_internal: what the parts of store share (store.c, store_database.c, store_schema.c, store_row.c,
 * store_files.c, store_reserve.c). Nobody else includes this, except the store's own test.
 */
#include <sqlite3.h>

#include "base.h"
#include "store.h"

#define STORE_APPLICATION_ID 0x53704361 /* "SpCa", in bytes 68 to 71 of the file: `file agent.db` shows it */
#define STORE_SCHEMA_VERSION 1
#define STORE_PAGE_BYTES 4096
#define STORE_RESERVE_PAGES 1000        /* kept free in the database and in its log: 4.1 MB each */
#define STORE_PATH_MAX 480              /* SQLite's unix layer takes paths of 512 bytes; "-journal" comes behind */
#define STORE_ERROR_MAX 300
#define STORE_TEXT_MAX (16 * 1024)      /* any text field; callers have their own, lower limits */
#define STORE_BLOB_MAX (256 * 1024)
#define STORE_ROW_MAX (1024 * 1024)     /* SQLite's own limit for one row or value, above the sum of all fields */

enum store_statement {
        STORE_BEGIN, STORE_COMMIT, STORE_PUT, STORE_DELETE, STORE_SET_REVISION, STORE_COUNT_FREE, STORE_STATEMENT_MAX,
};

enum store_state {
        STORE_IDLE,
        STORE_COMMITTING, /* the turn, the database and `error` belong to the writer thread */
};

struct store {
        struct event_worker *worker;
        int directory_fd;
        int lock_fd;
        char path[STORE_PATH_MAX + 1];
        sqlite3 *db;
        sqlite3_stmt *statements[STORE_STATEMENT_MAX];
        char error[STORE_ERROR_MAX]; /* of the last failure, for people */

        uint32_t reserve_pages;      /* 0: none is kept */
        uint32_t reserve_pause;      /* commits until the next try after one that failed */

        enum store_state state;
        bool committed;              /* the first commit was handed over: loading is over */
        struct store_turn *turn;
        uint64_t took_usec;
        int (*done)(int result, const char *error, uint64_t took_usec, void *userdata);
        void *userdata;
};

/* A step of the schema: brings version `n` (its place in the table) to `n + 1`. Frozen once released. */
struct store_step {
        const char *sql;
};

/* ---- store.c ---- */
/* store_open_reserved() - store_open() with a chosen reserve, for tests. */
int store_open_reserved(struct event *event, const char *directory, uint64_t real_usec, uint32_t reserve_pages,
                        struct store_info *ret_info, char *error, size_t error_size, struct store **ret);
/* store_set_error() - keep "text" as store->error, escaped; returns `result`. */
int store_set_error(struct store *store, int result, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* store_fail_errno() - the same with the system's words for `error_number` behind it; returns -error_number. */
int store_fail_errno(struct store *store, int error_number, const char *format, ...)
        __attribute__((format(printf, 3, 4)));
/* store_fail() - the same for SQLite's result `code` of the last call; returns store_code_to_errno(). */
int store_fail(struct store *store, int code, const char *what);

/* ---- store_database.c: the connection ---- */
/* store_database_open() - one try: 0; a positive store_open_result; -EUCLEAN: the file is corrupt. */
int store_database_open(struct store *store, uint64_t real_usec, struct store_info *info);
/* store_database_close() - `settled`: all is well, so bring the log into the database and leave an empty log. */
void store_database_close(struct store *store, bool settled);
int store_exec(struct store *store, const char *sql, const char *what);
void store_roll_back(struct store *store);
int store_query_i64(struct store *store, const char *sql, int64_t *ret);
int store_step(struct store *store, enum store_statement statement, const char *what);

/* ---- store_schema.c: tables and versions ---- */
extern const struct store_step store_schema_steps[STORE_SCHEMA_VERSION];
/* store_schema_migrate() - from version `from` to `to` in one transaction; a new database (version 0) also gets its
 * application id and the rows of `meta`. */
int store_schema_migrate(struct store *store, const struct store_step *steps, uint32_t from, uint32_t to,
                         uint64_t real_usec);
/* store_schema_check() - is the file's schema just what `steps` make up to `version`? -EBADMSG: it is not, and what
 * differs first is in store->error. */
int store_schema_check(struct store *store, const struct store_step *steps, uint32_t version);
int store_schema_read_meta(struct store *store, struct store_info *info);

/* ---- store_row.c: one operation as a row ---- */
int store_row_put_sql(struct buffer *sql);    /* INSERT … ON CONFLICT … of all columns, bound by store_row_bind() */
int store_row_select_sql(struct buffer *sql); /* SELECT of all columns, read by store_row_read() */
/* store_row_check() - would this operation be read back? -EINVAL, -ERANGE, -EMSGSIZE; `ret_column` names where. */
int store_row_check(const struct store_operation *operation, const char **ret_column);
int store_row_bind(sqlite3_stmt *statement, const struct store_operation *operation); /* SQLite's result code */
/* store_row_read() - all columns of the current row, strictly. -EBADMSG with operation and column in store->error. */
int store_row_read(struct store *store, sqlite3_stmt *statement, struct store_operation *ret);
size_t store_row_copy_size(const struct store_operation *operation);
/* store_row_copy() - copy with all that it points to into `arena` of store_row_copy_size() bytes. */
void store_row_copy(struct store_operation *target, const struct store_operation *source, char *arena);

/* ---- store_files.c: the directory, the lock, files that are set aside ---- */
int store_files_open(struct store *store, const char *directory); /* directory and lock; STORE_LOCKED */
/* store_files_prepare() - make the database file if there is none; -EUCLEAN: what is there can't be whole. */
int store_files_prepare(struct store *store);
int store_files_set_aside(struct store *store, uint64_t real_usec, struct store_info *info);
int64_t store_files_log_size(struct store *store);
/* store_files_rest_log() - after a close with everything checkpointed: mark the log empty, keep its blocks. */
void store_files_rest_log(struct store *store);
void store_files_close(struct store *store);

/* ---- store_reserve.c: commits on a full disk ---- */
/* Filled and dropped again at once, which leaves its pages free. A cut between the two leaves it in the schema, until
 * the next reserve is made. */
#define STORE_RESERVE_TABLE "CREATE TABLE reserve (bytes BLOB)"
/* store_reserve_configure() - the log's length, and how much of it is used before it is emptied. */
int store_reserve_configure(struct store *store);
/* store_reserve_open() - at start; returns whether the reserve is whole. */
bool store_reserve_open(struct store *store);
/* store_reserve_keep() - after a commit, on the writer thread. */
void store_reserve_keep(struct store *store);
