/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile agent.db. The store refuses it, sets it aside or works with it; it never crashes, never runs SQL that the
 * file brings along, and what it says is stored is there after it was opened again.
 *
 * libFuzzer: -max_len=8192
 *
 * The first byte chooses what the rest is:
 * - patches of a sound database (or its log): [offset, size, bytes]...; a page's bytes are too many to guess;
 * - SQL that somebody ran on a sound database with all doors open (writable_schema): triggers, views, odd tables;
 * - the file's bytes as they are.
 */
#include "fuzz_files.h"
#include "fuzz_loop.h"
#include "store_internal.h"

#define NOW_REAL_USEC UINT64_C(1795530123000000)
#define SQL_STEPS_MAX 2000 /* hundreds of virtual machine steps */
#define OPERATIONS_MAX 64
#define FILE_BYTES_MAX (512 * 1024)
#define REVISION INT64_C(4711)

enum choice { CHOICE_PATCH, CHOICE_SQL, CHOICE_RAW, CHOICE_LOG, CHOICE_COUNT };

struct loaded {
        char *ids[OPERATIONS_MAX];
        size_t count;
        bool fresh; /* among them is the one that we put */
};

static struct buffer sound = BUFFER_INIT(FILE_BYTES_MAX), sound_log = BUFFER_INIT(FILE_BYTES_MAX);
static char state_directory[100], database[128], database_log[160];
static bool preparing; /* our own connection */

/* ---- SQL from the file is seen by the authorizer: its last argument names the trigger or view it came from ------- */

static int on_authorize(void *userdata, int action, const char *a, const char *b, const char *c, const char *source) {
        (void)userdata;
        (void)action;
        (void)a;
        (void)b;
        (void)c;
        FUZZ_CHECK(!source);
        return SQLITE_OK;
}

/* Traces a trigger's program as a comment that begins with "--". */
static int on_trace(unsigned kind, void *userdata, void *statement, void *text) {
        (void)kind;
        (void)userdata;
        (void)statement;
        FUZZ_CHECK(!base_text_starts_with(text, "--"));
        return 0;
}

static int on_connection(sqlite3 *db, char **error, const struct sqlite3_api_routines *routines) {
        (void)error;
        (void)routines;
        if (preparing)
                return SQLITE_OK;
        (void)sqlite3_set_authorizer(db, on_authorize, NULL);
        return sqlite3_trace_v2(db, SQLITE_TRACE_STMT, on_trace, NULL);
}

/* ---- a sound database ----------------------------------------------------------------------------------------- */

static struct store_operation make_operation(const char *id, int64_t sequence) {
        static const uint8_t bytes[40] = { 0x0a, 0x03 };

        return (struct store_operation){
                .operation_id = id,
                .cluster_id = "c1",
                .job_id = "j1",
                .created_by = "u1",
                .boot_id = "8f1d2f3c-0000-4000-8000-000000000000",
                .operation = { bytes, sizeof(bytes) },
                .sequence = sequence,
                .record = { .state = CANCEL_KILL, .word = CANCEL_WORD_RUNNING, .driver_id = "driver-20251124-0001" },
        };
}

static int open_store(struct store_info *info, char error[STORE_ERROR_MAX], struct store **ret) {
        return store_open_reserved(fuzz_loop()->event, state_directory, NOW_REAL_USEC, 0, info, error, STORE_ERROR_MAX,
                                   ret);
}

static int commit_result;

static int on_done(int result, const char *error, uint64_t took_usec, void *userdata) {
        (void)took_usec;
        (void)userdata;
        FUZZ_CHECK(fuzz_is_clean(error) && (result == 0 || *error));
        commit_result = result;
        event_exit(fuzz_loop()->event, 0);
        return 0;
}

static int commit(struct store *store, const char *id) {
        struct store_operation operation = make_operation(id, REVISION);
        struct store_turn *turn;

        FUZZ_CHECK(store_turn_new(store, &turn) == 0);
        FUZZ_CHECK(store_turn_put(turn, &operation) == 0);
        store_turn_set_revision(turn, REVISION);
        FUZZ_CHECK(store_commit(store, turn, on_done, NULL) == 0);
        FUZZ_CHECK(event_run(fuzz_loop()->event) == 0);
        return commit_result;
}

static void get_file(const char *path, struct buffer *ret) {
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        uint8_t bytes[4096];
        ssize_t n;

        ret->size = 0;
        FUZZ_CHECK(fd >= 0);
        while ((n = read(fd, bytes, sizeof(bytes))) > 0)
                FUZZ_CHECK(buffer_append(ret, bytes, (size_t)n) == 0);
        FUZZ_CHECK(n == 0);
}

static void make_sound(void) {
        char error[STORE_ERROR_MAX];
        struct store_info info;
        struct store *store;

        FUZZ_CHECK(mkdir(state_directory, 0700) == 0);
        FUZZ_CHECK(open_store(&info, error, &store) == 0 && info.created);
        FUZZ_CHECK(commit(store, "op-1") == 0 && commit(store, "op-2") == 0);
        get_file(database_log, &sound_log);
        store_close(store);
        get_file(database, &sound);
        fuzz_remove_below(state_directory);
}

static void start(void) {
        if (fuzz_directory[0])
                return;
        fuzz_make_directory();
        (void)snprintf(state_directory, sizeof(state_directory), "%s/state", fuzz_directory);
        (void)snprintf(database, sizeof(database), "%s/agent.db", state_directory);
        (void)snprintf(database_log, sizeof(database_log), "%s-wal", database);
        make_sound();
        FUZZ_CHECK(sqlite3_auto_extension((void (*)(void))on_connection) == SQLITE_OK);
}

/* ---- a hostile one -------------------------------------------------------------------------------------------- */

static void put_patched(const char *path, const struct buffer *good, struct span input) {
        _cleanup_free_ uint8_t *bytes = fuzz_bytes((struct span){ good->data, good->size });
        size_t size = good->size;

        while (input.size > 2) {
                size_t offset = fuzz_take_u16(&input) % good->size, length = fuzz_take_u8(&input);
                if (length == 0) { /* cut here */
                        size = offset;
                        continue;
                }
                struct span patch = fuzz_take(&input, base_min_u64(length, good->size - offset));
                memcpy(bytes + offset, patch.data, patch.size);
        }
        fuzz_put_file(AT_FDCWD, path, (struct span){ bytes, size });
}

static int on_progress(void *userdata) {
        unsigned *steps = userdata;
        return ++*steps > SQL_STEPS_MAX;
}

/* Nothing outside of the file: no ATTACH (and so no VACUUM), no pragma that names a directory. */
static int on_authorize_hostile(void *userdata, int action, const char *a, const char *b, const char *c,
                                const char *source) {
        (void)userdata;
        (void)b;
        (void)c;
        (void)source;
        if (action == SQLITE_ATTACH || (action == SQLITE_PRAGMA && strcasestr(a, "directory")))
                return SQLITE_DENY;
        return SQLITE_OK;
}

static void run_hostile(struct span input) {
        _cleanup_free_ char *sql = fuzz_text(input);
        unsigned steps = 0;
        sqlite3 *db;

        fuzz_put_file(AT_FDCWD, database, (struct span){ sound.data, sound.size });
        preparing = true;
        FUZZ_CHECK(sqlite3_open(database, &db) == SQLITE_OK);
        preparing = false;
        (void)sqlite3_db_config(db, SQLITE_DBCONFIG_DEFENSIVE, 0, NULL);
        (void)sqlite3_limit(db, SQLITE_LIMIT_LENGTH, FILE_BYTES_MAX);
        (void)sqlite3_exec(db,
                           "PRAGMA writable_schema = ON; PRAGMA synchronous = OFF; PRAGMA max_page_count = 100;"
                           "PRAGMA journal_mode = MEMORY;",
                           NULL, NULL, NULL);
        (void)sqlite3_set_authorizer(db, on_authorize_hostile, NULL);
        sqlite3_progress_handler(db, 100, on_progress, &steps);
        (void)sqlite3_exec(db, sql, NULL, NULL, NULL);
        (void)sqlite3_close_v2(db);
}

static void put_hostile(uint8_t choice, struct span input) {
        switch ((enum choice)(choice % CHOICE_COUNT)) {
        case CHOICE_PATCH:
                put_patched(database, &sound, input);
                return;
        case CHOICE_SQL:
                run_hostile(input);
                return;
        case CHOICE_LOG:
                fuzz_put_file(AT_FDCWD, database, (struct span){ sound.data, sound.size });
                put_patched(database_log, &sound_log, input);
                return;
        case CHOICE_RAW:
        case CHOICE_COUNT:
                fuzz_put_file(AT_FDCWD, database, input);
                return;
        }
}

/* ---- what the store makes of it --------------------------------------------------------------------------------- */

static int on_loaded(const struct store_operation *operation, void *userdata) {
        struct loaded *loaded = userdata;
        const char *column = "";

        FUZZ_CHECK(operation->operation_id && operation->operation_id[0]);
        FUZZ_CHECK(store_row_check(operation, &column) == 0);
        FUZZ_CHECK(operation->record.driver_id[0] == '\0' ||
                   base_driver_id_is_valid(operation->record.driver_id, strlen(operation->record.driver_id)));
        if (strcmp(operation->operation_id, "op-new") == 0)
                loaded->fresh = operation->sequence == REVISION && strcmp(operation->job_id, "j1") == 0 &&
                                operation->record.state == CANCEL_KILL;
        else if (loaded->count < OPERATIONS_MAX)
                loaded->ids[loaded->count++] = strdup(operation->operation_id);
        return 0;
}

static bool load(struct store *store, struct loaded *ret) {
        char error[STORE_ERROR_MAX];
        int r = store_load(store, on_loaded, ret, error, sizeof(error));

        FUZZ_CHECK(r >= 0 || (error[0] && fuzz_is_clean(error)));
        return r == 0;
}

static void unload(struct loaded *loaded) {
        for (size_t i = 0; i < loaded->count; i++)
                free(loaded->ids[i]);
}

/* After a commit that was told to be stored: everything that was there, and the new one. */
static void check_stored(const struct loaded *before) {
        struct loaded after = { 0 };
        char error[STORE_ERROR_MAX];
        struct store_info info;
        struct store *store = NULL;

        FUZZ_CHECK(open_store(&info, error, &store) == 0);
        FUZZ_CHECK(!info.set_aside && !info.created && info.revision == REVISION);
        FUZZ_CHECK(load(store, &after) && after.fresh && after.count == before->count);
        for (size_t i = 0; i < before->count; i++)
                FUZZ_CHECK(strcmp(before->ids[i], after.ids[i]) == 0);
        unload(&after);
        store_close(store);
}

static void work(struct store *store) {
        struct loaded before = { 0 };
        bool stored = load(store, &before) && commit(store, "op-new") == 0;

        store_close(store);
        if (stored)
                check_stored(&before);
        unload(&before);
}

/* "It is left alone": a database that is another's, or a newer version's. */
static void check_left_alone(const struct buffer *before, bool with_log) {
        _cleanup_(buffer_deinit) struct buffer after = BUFFER_INIT(FILE_BYTES_MAX);

        if (with_log) /* to read it at all, SQLite had to look into its log */
                return;
        get_file(database, &after);
        FUZZ_CHECK(before->size == after.size &&
                   (after.size == 0 || memcmp(before->data, after.data, after.size) == 0));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        _cleanup_(buffer_deinit) struct buffer before = BUFFER_INIT(FILE_BYTES_MAX);
        struct span input = { data, size };
        uint8_t choice = fuzz_take_u8(&input);
        char error[STORE_ERROR_MAX];
        struct store_info info = { 0 };
        struct store *store = NULL;

        start();
        FUZZ_CHECK(mkdir(state_directory, 0700) == 0);
        put_hostile(choice, input);
        get_file(database, &before);
        bool with_log = access(database_log, F_OK) == 0;
        int r = open_store(&info, error, &store);
        FUZZ_CHECK(r <= STORE_FOREIGN && r != -ENOMEM && r != -EFAULT);
        FUZZ_CHECK_TEXT(info.aside_reason);
        if (r != 0)
                FUZZ_CHECK(error[0] && fuzz_is_clean(error));
        if (r == STORE_NEWER || r == STORE_FOREIGN)
                check_left_alone(&before, with_log);
        if (r == 0)
                work(store);
        fuzz_remove_below(state_directory);
        return 0;
}
