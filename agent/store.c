/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store as its user sees it: open, load, gather a turn, commit it, close.
 *
 * One turn of the agent is one transaction, so after a crash the database shows the world between two turns, never
 * within one. The commit runs on a worker thread, since a flush may take milliseconds or, on a dying disk, minutes.
 * From store_commit() until `done` the turn, the database and `store->error` belong to that thread; there is no
 * lock, because the loop does not touch them meanwhile (`state` says so) and the worker's queue orders the rest.
 *
 * Of a turn that failed nothing is stored, and it is not kept: the agent has its records, with what was added since.
 * The store retries nothing by itself: when, how often and with what is the agent's policy.
 *
 * No clock is read here; the duration of a commit is what the loop saw of it, so the module runs unchanged in a
 * simulation.
 */
#include "event.h"
#include "metrics.h"
#include "store_internal.h"

enum change_kind {
        CHANGE_PUT,
        CHANGE_DELETE,
};

struct change {
        struct change *next;
        enum change_kind kind;
        struct store_operation operation; /* DELETE: only operation_id */
        char arena[];                     /* all that it points to */
};

struct store_turn {
        struct store *store;
        struct change *first, **last;
        int64_t revision;
        bool has_revision;
};

/* ---- errors ------------------------------------------------------------------------------------------------- */

/* The text may hold bytes out of the file, so it is escaped; it may also hold the last error, hence the copy. */
int store_set_error(struct store *store, int result, const char *format, ...) {
        char text[STORE_PATH_MAX + STORE_ERROR_MAX];
        va_list arguments;

        va_start(arguments, format);
        vsnprintf(text, sizeof(text), format, arguments);
        va_end(arguments);
        base_text_escape(store->error, sizeof(store->error), text, strlen(text));
        return result;
}

int store_fail_errno(struct store *store, int error_number, const char *format, ...) {
        char text[STORE_PATH_MAX + STORE_ERROR_MAX];
        va_list arguments;

        va_start(arguments, format);
        vsnprintf(text, sizeof(text), format, arguments);
        va_end(arguments);
        errno = error_number; /* %m, since strerror() is not for threads */
        return store_set_error(store, -error_number, "%s: %m", text);
}

/* What the system said, when it was about space: SQLite has its own code for that only where write() said ENOSPC. */
static int io_error(sqlite3 *db) {
        int number = sqlite3_system_errno(db);

        return number == ENOSPC || number == EDQUOT ? -ENOSPC : -EIO;
}

static int code_to_errno(sqlite3 *db, int code) {
        if (code == SQLITE_IOERR_NOMEM)
                return -ENOMEM;
        switch (code & 0xff) {
        case SQLITE_NOMEM:
                return -ENOMEM;
        case SQLITE_FULL:
                return -ENOSPC;
        case SQLITE_CORRUPT:
        case SQLITE_NOTADB:
                return -EUCLEAN;
        case SQLITE_BUSY:
        case SQLITE_LOCKED:
                return -EBUSY;
        case SQLITE_READONLY:
                return -EROFS;
        case SQLITE_CANTOPEN:
        case SQLITE_PERM:
        case SQLITE_AUTH:
                return -EACCES;
        case SQLITE_TOOBIG:
                return -EMSGSIZE;
        case SQLITE_IOERR:
                return io_error(db);
        default:
                return -EBADMSG; /* SQLITE_ERROR, …: the tables are not what they should be */
        }
}

int store_fail(struct store *store, int code, const char *what) {
        int r = code_to_errno(store->db, code);

        return store_set_error(store, r, "%.150s: %s: %.60s", store->path, what,
                               store->db ? sqlite3_errmsg(store->db) : sqlite3_errstr(code));
}

/* ---- open and close ----------------------------------------------------------------------------------------- */

/* A corrupt database is set aside once; when the fresh one can't be used either, the disk is to blame. */
static int open_or_replace(struct store *store, const char *directory, uint64_t real_usec, struct store_info *info) {
        int r;

        r = store_files_open(store, directory);
        if (r != 0)
                return r;
        r = store_database_open(store, real_usec, info);
        if (r != -EUCLEAN)
                return r;
        store_database_close(store, false);
        r = store_files_set_aside(store, real_usec, info);
        return r < 0 ? r : store_database_open(store, real_usec, info);
}

int store_open_reserved(struct event *event, const char *directory, uint64_t real_usec, uint32_t reserve_pages,
                        struct store_info *ret_info, char *error, size_t error_size, struct store **ret) {
        _cleanup_(store_close_pointer) struct store *store = calloc(1, sizeof(*store));
        struct store_info info = {};
        int r;

        base_text_copy(error, error_size, "");
        if (!store) {
                base_text_copy(error, error_size, "no memory");
                return -ENOMEM;
        }
        store->directory_fd = store->lock_fd = -1;
        store->reserve_pages = reserve_pages;
        r = open_or_replace(store, directory, base_min_u64(real_usec, INT64_MAX), &info);
        if (r == 0) {
                r = event_worker_new(event, "store", &store->worker);
                if (r < 0)
                        store_fail_errno(store, -r, "cannot start the writer thread");
        }
        if (r != 0) {
                base_text_copy(error, error_size, store->error);
                return r;
        }
        *ret_info = info;
        *ret = TAKE(store);
        return 0;
}

int store_open(struct event *event, const char *directory, uint64_t real_usec, struct store_info *ret_info, char *error,
               size_t error_size, struct store **ret) {
        return store_open_reserved(event, directory, real_usec, STORE_RESERVE_PAGES, ret_info, error, error_size, ret);
}

struct store *store_close(struct store *store) {
        if (!store)
                return NULL;
        /* the worker is made last, so it tells a store that was opened from one that could not be */
        bool opened = store->worker;

        store->worker = event_worker_free(store->worker);
        store_turn_free(store->turn);
        store_database_close(store, opened);
        store_files_close(store);
        free(store);
        return NULL;
}

/* ---- load --------------------------------------------------------------------------------------------------- */

static int load_rows(struct store *store, sqlite3_stmt *statement,
                     int (*visit)(const struct store_operation *operation, void *userdata), void *userdata) {
        struct store_operation operation;
        int code, r;

        while ((code = sqlite3_step(statement)) == SQLITE_ROW) {
                if ((r = store_row_read(store, statement, &operation)) < 0 || (r = visit(&operation, userdata)) < 0)
                        return r;
        }
        return code == SQLITE_DONE ? 0 : store_fail(store, code, "cannot read the operations");
}

static int load(struct store *store, int (*visit)(const struct store_operation *operation, void *userdata),
                void *userdata) {
        struct buffer sql = BUFFER_INIT(4 * 1024);
        sqlite3_stmt *statement = NULL;
        int code, r = store_row_select_sql(&sql);

        if (r >= 0 && !buffer_text(&sql))
                r = -ENOMEM;
        if (r < 0)
                store_fail_errno(store, -r, "%s: cannot read the operations", store->path);
        else if ((code = sqlite3_prepare_v2(store->db, (const char *)sql.data, -1, &statement, NULL)) != SQLITE_OK)
                r = store_fail(store, code, "cannot read the operations");
        else
                r = load_rows(store, statement, visit, userdata);
        sqlite3_finalize(statement);
        buffer_deinit(&sql);
        return r;
}

int store_load(struct store *store, int (*visit)(const struct store_operation *operation, void *userdata),
               void *userdata, char *error, size_t error_size) {
        int r;

        if (store->committed) {
                base_text_copy(error, error_size, "operations are loaded before the first commit only");
                return -EBUSY;
        }
        store_set_error(store, 0, "%s", "");
        r = load(store, visit, userdata);
        base_text_copy(error, error_size, store->error);
        return r;
}

/* ---- the turn ----------------------------------------------------------------------------------------------- */

int store_turn_new(struct store *store, struct store_turn **ret) {
        struct store_turn *turn = calloc(1, sizeof(*turn));

        if (!turn)
                return -ENOMEM;
        turn->store = store;
        turn->last = &turn->first;
        *ret = turn;
        return 0;
}

struct store_turn *store_turn_free(struct store_turn *turn) {
        struct change *next;

        if (!turn)
                return NULL;
        for (struct change *change = turn->first; change; change = next) {
                next = change->next;
                free(change);
        }
        free(turn);
        return NULL;
}

static int add_change(struct store_turn *turn, enum change_kind kind, const struct store_operation *operation) {
        struct change *change = malloc(sizeof(*change) + store_row_copy_size(operation));

        if (!change)
                return -ENOMEM;
        change->next = NULL;
        change->kind = kind;
        store_row_copy(&change->operation, operation, change->arena);
        *turn->last = change;
        turn->last = &change->next;
        return 0;
}

int store_turn_put(struct store_turn *turn, const struct store_operation *operation) {
        const char *column;
        int r = store_row_check(operation, &column);

        return r < 0 ? r : add_change(turn, CHANGE_PUT, operation);
}

int store_turn_delete(struct store_turn *turn, const char *operation_id) {
        const struct store_operation operation = {.operation_id = operation_id};
        const char *column;
        int r = store_row_check(&operation, &column);

        return r < 0 ? r : add_change(turn, CHANGE_DELETE, &operation);
}

void store_turn_set_revision(struct store_turn *turn, int64_t revision) {
        turn->revision = revision;
        turn->has_revision = true;
}

bool store_turn_is_empty(const struct store_turn *turn) {
        return !turn->first && !turn->has_revision;
}

/* ---- commit: on the writer thread --------------------------------------------------------------------------- */

static int write_put(struct store *store, const struct change *change) {
        int code = store_row_bind(store->statements[STORE_PUT], &change->operation);

        if (code != SQLITE_OK)
                return store_fail(store, code, "cannot bind an operation");
        return store_step(store, STORE_PUT, "cannot write an operation");
}

static int write_delete(struct store *store, const struct change *change) {
        int code = sqlite3_bind_text(store->statements[STORE_DELETE], 1, change->operation.operation_id, -1,
                                     SQLITE_STATIC);

        if (code != SQLITE_OK)
                return store_fail(store, code, "cannot bind an operation id");
        return store_step(store, STORE_DELETE, "cannot delete an operation");
}

static int write_revision(struct store *store, int64_t revision) {
        int code = sqlite3_bind_int64(store->statements[STORE_SET_REVISION], 1, revision);

        if (code != SQLITE_OK)
                return store_fail(store, code, "cannot bind the revision");
        return store_step(store, STORE_SET_REVISION, "cannot write the revision");
}

static int write_turn(struct store *store, const struct store_turn *turn) {
        int r = 0;

        for (const struct change *change = turn->first; change && r >= 0; change = change->next) {
                switch (change->kind) {
                case CHANGE_PUT:
                        r = write_put(store, change);
                        break;
                case CHANGE_DELETE:
                        r = write_delete(store, change);
                        break;
                }
        }
        if (r >= 0 && turn->has_revision)
                r = write_revision(store, turn->revision);
        return r;
}

static uint64_t monotonic_usec(void) {
        struct timespec now;

        (void)clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail with these arguments */
        return (uint64_t)now.tv_sec * USEC_PER_SEC + (uint64_t)now.tv_nsec / 1000;
}

/* The time is taken here: the loop's clock stands still while the loop works, so it would count a scan of the same
 * round as the disk's. */
static int run_commit(void *userdata) {
        struct store *store = userdata;
        const uint64_t begin_usec = monotonic_usec();
        int r;

        store_roll_back(store); /* what a roll-back that failed left behind */
        r = store_step(store, STORE_BEGIN, "cannot begin");
        if (r >= 0)
                r = write_turn(store, store->turn);
        if (r >= 0)
                r = store_step(store, STORE_COMMIT, "cannot commit");
        if (r < 0)
                store_roll_back(store);
        else
                store_reserve_keep(store);
        store->took_usec = monotonic_usec() - begin_usec;
        return r;
}

/* ---- commit: on the loop ------------------------------------------------------------------------------------ */

/* `done` may commit at once, after which the store's fields are the writer's again: work on copies. */
static int on_committed(int result, void *userdata) {
        struct store *store = userdata;
        uint64_t took_usec = store->took_usec;
        _cleanup_(store_turn_free_pointer) struct store_turn *turn = NULL;
        char error[STORE_ERROR_MAX] = "";

        store->state = STORE_IDLE;
        turn = TAKE(store->turn);
        if (result < 0) {
                base_text_copy(error, sizeof(error), store->error);
        } else {
                metrics_add(METRICS_COMMITS, NULL, 1);
                metrics_observe_usec(METRICS_COMMIT_SECONDS, took_usec);
        }
        return store->done(result, error, took_usec, store->userdata);
}

int store_commit(struct store *store, struct store_turn *turn,
                 int (*done)(int result, const char *error, uint64_t took_usec, void *userdata), void *userdata) {
        int r;

        if (turn->store != store)
                return -EINVAL;
        if (store->state != STORE_IDLE)
                return -EBUSY;
        store->turn = turn;
        store->done = done;
        store->userdata = userdata;
        store->state = STORE_COMMITTING;
        store->committed = true;
        r = event_worker_run(store->worker, run_commit, on_committed, store);
        if (r < 0) {
                store->state = STORE_IDLE;
                store->turn = NULL;
        }
        return r;
}
