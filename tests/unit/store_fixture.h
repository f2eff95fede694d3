/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * store_fixture: what the store's tests share: a directory of their own, a loop, a store on it,
 * operations made from a seed, and a comparison that lists every field by hand (the store's own table of columns
 * would forget the same one twice).
 */
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
/* after setjmp.h */
#include <cmocka.h>

#include "base.h"
#include "event.h"
#include "store.h"
#include "store_internal.h"

#define GUARD_USEC (60 * USEC_PER_SEC)
#define NOW_REAL_USEC UINT64_C(1764000000123456) /* 2025-11-24 */
#define RESERVE_PAGES 8                          /* small, so that hundreds of stores can be made */
#define LOADED_MAX 40000

struct loaded {
        struct store_operation *operations;
        char **arenas;
        size_t count;
};

struct fixture {
        char directory[100];
        struct event *event;
        struct event_source *guard;
        struct store *store;
        struct store_info info;
        char error[STORE_ERROR_MAX];
        struct loaded loaded;

        int done_count;
        int result;
        char done_error[STORE_ERROR_MAX];
        uint64_t took_usec;
};

/* Fails the test, also in a forked child, where cmocka's asserts would run the parent's clean-up. */
#define CHECK(condition)                                                                                               \
        do {                                                                                                           \
                if (!(condition)) {                                                                                    \
                        fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                \
                        _exit(1);                                                                                      \
                }                                                                                                      \
        } while (0)

static inline uint64_t test_seed(void) {
        const char *text = getenv("SEED");
        uint64_t seed;

        if (!text || base_parse_u64(text, 0, UINT64_MAX, &seed) < 0)
                seed = base_random_u64();
        print_message("SEED=%" PRIu64 "\n", seed);
        return seed;
}

/* ---- files -------------------------------------------------------------------------------------------------- */

static inline const char *path_of(const struct fixture *f, const char *name, char *path, size_t size) {
        snprintf(path, size, "%s/%s", f->directory, name);
        return path;
}

static inline void remove_tree(const char *directory) {
        DIR *stream = opendir(directory);
        struct dirent *entry;

        while (stream && (entry = readdir(stream)))
                unlinkat(dirfd(stream), entry->d_name, 0);
        if (stream)
                closedir(stream);
        rmdir(directory);
}

static inline void remove_files(const struct fixture *f) {
        DIR *stream = opendir(f->directory);
        struct dirent *entry;

        assert_non_null(stream);
        while ((entry = readdir(stream)))
                if (entry->d_name[0] != '.')
                        assert_int_equal(unlinkat(dirfd(stream), entry->d_name, 0), 0);
        closedir(stream);
}

/* -1: there is no such file */
static inline int64_t file_size(const struct fixture *f, const char *name) {
        char path[480];
        struct stat status;

        return stat(path_of(f, name, path, sizeof(path)), &status) < 0 ? -1 : status.st_size;
}

static inline uint8_t *read_bytes(const struct fixture *f, const char *name, size_t *ret_size) {
        char path[480];
        FILE *file = fopen(path_of(f, name, path, sizeof(path)), "re");
        int64_t size = file_size(f, name);
        uint8_t *bytes;

        assert_non_null(file);
        bytes = malloc((size_t)size + 1);
        assert_non_null(bytes);
        assert_int_equal(fread(bytes, 1, (size_t)size, file), size);
        fclose(file);
        *ret_size = (size_t)size;
        return bytes;
}

static inline void write_bytes(const struct fixture *f, const char *name, size_t offset, const void *bytes,
                               size_t size) {
        char path[480];
        int fd = open(path_of(f, name, path, sizeof(path)), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

        assert_true(fd >= 0);
        assert_int_equal(pwrite(fd, bytes, size, (off_t)offset), (ssize_t)size);
        close(fd);
}

/* The name of the first file that starts so; "" when there is none. */
static inline size_t find_files(const struct fixture *f, const char *prefix, char *name, size_t size) {
        DIR *stream = opendir(f->directory);
        struct dirent *entry;
        size_t count = 0;

        assert_non_null(stream);
        while ((entry = readdir(stream)))
                if (base_text_starts_with(entry->d_name, prefix) && ++count == 1)
                        base_text_copy(name, size, entry->d_name);
        closedir(stream);
        return count;
}

static inline size_t count_descriptors(void) {
        DIR *stream = opendir("/proc/self/fd");
        size_t count = 0;

        assert_non_null(stream);
        while (readdir(stream))
                count++;
        closedir(stream);
        return count;
}

/* Run SQL on the closed store's file, like a person with sqlite3. */
static inline void run_sql(const struct fixture *f, const char *name, const char *sql) {
        char path[480];
        sqlite3 *db;

        assert_int_equal(sqlite3_open(path_of(f, name, path, sizeof(path)), &db), SQLITE_OK);
        assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
        assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static inline int64_t query_sql(const struct fixture *f, const char *name, const char *sql) {
        char path[480];
        sqlite3 *db;
        sqlite3_stmt *statement;
        int64_t value;

        assert_int_equal(sqlite3_open(path_of(f, name, path, sizeof(path)), &db), SQLITE_OK);
        assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &statement, NULL), SQLITE_OK);
        assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
        value = sqlite3_column_int64(statement, 0);
        sqlite3_finalize(statement);
        assert_int_equal(sqlite3_close(db), SQLITE_OK);
        return value;
}

/* ---- operations --------------------------------------------------------------------------------------------- */

#define OPERATION_ARENA (8 * 1024)

struct sample {
        struct store_operation operation;
        char id[OPERATION_ID_MAX + 1];
        char texts[7][400];
        uint8_t blobs[2][2000];
};

static inline void random_text(char *text, size_t size, uint64_t *seed) {
        static const char *const pieces[] = {"a",    "Z", "0",    "'",   "\"", "%s",  "\n",
                                             "\x01", "é", "日本", ";--", " ",  "\xff"};
        size_t pieces_count = base_random_next(seed) % 40;

        text[0] = '\0';
        for (size_t i = 0; i < pieces_count; i++) {
                size_t used = strlen(text);

                base_text_copy(text + used, size - used, pieces[base_random_next(seed) % ARRAY_SIZE(pieces)]);
        }
}

static inline void random_driver_id(char *text, uint64_t *seed) {
        static const char letters[] = "abcXYZ019-_";
        size_t size = base_random_next(seed) % (DRIVER_ID_MAX + 1);

        for (size_t i = 0; i < size; i++)
                text[i] = letters[base_random_next(seed) % (sizeof(letters) - 1)];
        text[size] = '\0';
}

static inline uint64_t random_u64(uint64_t *seed) {
        switch (base_random_next(seed) % 4) {
        case 0:
                return 0;
        case 1:
                return USEC_NEVER;
        case 2:
                return INT64_MAX;
        default:
                return base_random_next(seed) >> 1;
        }
}

static inline int64_t random_i64(uint64_t *seed) {
        return base_random_next(seed) % 4 == 0 ? INT64_MIN : (int64_t)base_random_next(seed);
}

static inline struct span random_blob(uint8_t *bytes, size_t max, uint64_t *seed) {
        size_t size = base_random_next(seed) % 5 == 0 ? 0 : base_random_next(seed) % max;

        for (size_t i = 0; i < size; i++)
                bytes[i] = (uint8_t)base_random_next(seed);
        return (struct span){.data = bytes, .size = size};
}

static inline void random_record(struct cancel_record *record, uint64_t *seed) {
        record->state = (enum cancel_state)(base_random_next(seed) % CANCEL_STATE_MAX);
        record->outcome = (enum cancel_outcome)(base_random_next(seed) % CANCEL_OUTCOME_MAX);
        record->progress = (enum cancel_outcome)(base_random_next(seed) % CANCEL_OUTCOME_MAX);
        record->word = (enum cancel_word)(base_random_next(seed) % CANCEL_WORD_MAX);
        record->escalation = (enum cancel_escalation)(base_random_next(seed) % 3);
        record->dry_run = base_random_next(seed) & 1;
        record->withdrawn = base_random_next(seed) & 1;
        record->supervised = base_random_next(seed) & 1;
        record->master_answered = base_random_next(seed) & 1;
        record->refused_auth = base_random_next(seed) & 1;
        random_driver_id(record->command_driver_id, seed);
        random_driver_id(record->driver_id, seed);
        record->process.pid = (int32_t)base_random_next(seed);
        record->process.worker_pid = (int32_t)base_random_next(seed);
        record->process.start_ticks = random_u64(seed);
        record->process.worker_start_ticks = random_u64(seed);
        record->kill_requests = (uint32_t)base_random_next(seed);
        record->leftover_processes = (int32_t)base_random_next(seed);
        record->received_usec = random_u64(seed);
        record->received_real_usec = random_u64(seed);
        record->deadline_usec = random_u64(seed);
        record->deadline_real_usec = random_u64(seed);
        record->killed_usec = random_u64(seed);
        record->answered_usec = random_u64(seed);
        record->accepted_usec = random_u64(seed);
        record->accepted_real_usec = random_u64(seed);
        record->ended_usec = random_u64(seed);
        record->ended_real_usec = random_u64(seed);
}

/* Every field from the seed; only the id is given. */
static inline void sample_make(struct sample *sample, const char *id, uint64_t *seed) {
        struct store_operation *operation = &sample->operation;

        *operation = (struct store_operation){};
        base_text_copy(sample->id, sizeof(sample->id), id);
        for (size_t i = 0; i < ARRAY_SIZE(sample->texts); i++)
                random_text(sample->texts[i], sizeof(sample->texts[i]), seed);
        operation->operation_id = sample->id;
        operation->cluster_id = sample->texts[0];
        operation->job_id = sample->texts[1];
        operation->created_by = sample->texts[2];
        operation->boot_id = sample->texts[3];
        operation->driver_state = sample->texts[4];
        operation->app_name = sample->texts[5];
        operation->message = sample->texts[6];
        operation->operation = random_blob(sample->blobs[0], sizeof(sample->blobs[0]), seed);
        operation->report = random_blob(sample->blobs[1], sizeof(sample->blobs[1]), seed);
        random_record(&operation->record, seed);
        operation->started_real_usec = random_u64(seed);
        operation->sequence = random_i64(seed);
        operation->acknowledged_sequence = random_i64(seed);
        operation->report_sequence = random_i64(seed);
        operation->report_final = base_random_next(seed) & 1;
        operation->done_real_usec = random_u64(seed);
}

/* A plain operation as the agent makes them. */
static inline struct store_operation plain_operation(const char *id, int64_t sequence) {
        static const uint8_t bytes[300] = {0x0a, 0x03};

        return (struct store_operation){
                .operation_id = id,
                .cluster_id = "c1",
                .job_id = "j1",
                .created_by = "u1",
                .boot_id = "8f1d2f3c-0000-4000-8000-000000000000",
                .driver_state = "RUNNING",
                .app_name = "",
                .message = "",
                .operation = {bytes, sizeof(bytes)},
                .sequence = sequence,
                .record = {.state = CANCEL_KILL, .word = CANCEL_WORD_RUNNING, .driver_id = "driver-20251124-0001"},
        };
}

static inline bool span_equal(struct span a, struct span b) {
        return a.size == b.size && (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}

static inline bool record_equal(const struct cancel_record *a, const struct cancel_record *b) {
        return a->state == b->state && a->outcome == b->outcome && a->dry_run == b->dry_run &&
               a->withdrawn == b->withdrawn && a->supervised == b->supervised &&
               a->master_answered == b->master_answered && a->refused_auth == b->refused_auth &&
               a->progress == b->progress && a->word == b->word && a->escalation == b->escalation &&
               strcmp(a->command_driver_id, b->command_driver_id) == 0 && strcmp(a->driver_id, b->driver_id) == 0 &&
               a->process.pid == b->process.pid && a->process.worker_pid == b->process.worker_pid &&
               a->process.start_ticks == b->process.start_ticks &&
               a->process.worker_start_ticks == b->process.worker_start_ticks && a->kill_requests == b->kill_requests &&
               a->leftover_processes == b->leftover_processes && a->received_usec == b->received_usec &&
               a->received_real_usec == b->received_real_usec && a->deadline_usec == b->deadline_usec &&
               a->deadline_real_usec == b->deadline_real_usec && a->killed_usec == b->killed_usec &&
               a->answered_usec == b->answered_usec &&
               a->accepted_usec == b->accepted_usec && a->accepted_real_usec == b->accepted_real_usec &&
               a->ended_usec == b->ended_usec && a->ended_real_usec == b->ended_real_usec;
}

static inline bool operation_equal(const struct store_operation *a, const struct store_operation *b) {
        return strcmp(a->operation_id, b->operation_id) == 0 && strcmp(a->cluster_id, b->cluster_id) == 0 &&
               strcmp(a->job_id, b->job_id) == 0 && strcmp(a->created_by, b->created_by) == 0 &&
               strcmp(a->boot_id, b->boot_id) == 0 && span_equal(a->operation, b->operation) &&
               record_equal(&a->record, &b->record) && strcmp(a->driver_state, b->driver_state) == 0 &&
               strcmp(a->app_name, b->app_name) == 0 && strcmp(a->message, b->message) == 0 &&
               a->started_real_usec == b->started_real_usec && a->sequence == b->sequence &&
               a->acknowledged_sequence == b->acknowledged_sequence && a->report_sequence == b->report_sequence &&
               a->report_final == b->report_final && span_equal(a->report, b->report) &&
               a->done_real_usec == b->done_real_usec;
}

/* ---- the store under test ----------------------------------------------------------------------------------- */

static inline int on_guard(void *userdata) {
        (void)userdata;
        return -ETIMEDOUT;
}

/* From now, and not from the loop's reading of the clock: that may be as old as the loop's last turn, and a test can open
 * stores for minutes without one. */
static inline void guard_arm(struct fixture *f) {
        struct timespec now;

        CHECK(clock_gettime(CLOCK_BOOTTIME, &now) == 0);
        CHECK(event_timer_set(f->guard, (uint64_t)now.tv_sec * USEC_PER_SEC + GUARD_USEC) == 0);
}

static inline void loop_open(struct fixture *f) {
        CHECK(event_new(false, &f->event) == 0);
        CHECK(event_add_timer(f->event, "guard", on_guard, f, &f->guard) == 0);
        guard_arm(f);
}

static inline void loop_close(struct fixture *f) {
        f->guard = event_source_free(f->guard);
        f->event = event_free(f->event);
}

static inline int try_open_reserved(struct fixture *f, uint32_t reserve_pages) {
        return store_open_reserved(f->event, f->directory, NOW_REAL_USEC, reserve_pages, &f->info, f->error,
                                   sizeof(f->error), &f->store);
}

static inline int try_open(struct fixture *f) {
        return try_open_reserved(f, RESERVE_PAGES);
}

static inline void open_store(struct fixture *f) {
        int r = try_open(f);

        if (r != 0)
                print_message("store_open: %d, %s\n", r, f->error);
        assert_int_equal(r, 0);
}

static inline void close_store(struct fixture *f) {
        f->store = store_close(f->store);
}

static inline void reopen(struct fixture *f) {
        close_store(f);
        open_store(f);
}

static inline int on_done(int result, const char *error, uint64_t took_usec, void *userdata) {
        struct fixture *f = userdata;

        f->done_count++;
        f->result = result;
        f->took_usec = took_usec;
        base_text_copy(f->done_error, sizeof(f->done_error), error);
        event_exit(f->event, 0);
        return 0;
}

/* Commit and wait for the answer; the turn is gone afterwards. */
static inline int commit(struct fixture *f, struct store_turn *turn) {
        guard_arm(f);
        CHECK(store_commit(f->store, turn, on_done, f) == 0);
        CHECK(event_run(f->event) == 0);
        return f->result;
}

static inline struct store_turn *new_turn(struct fixture *f) {
        struct store_turn *turn;

        CHECK(store_turn_new(f->store, &turn) == 0);
        return turn;
}

static inline int commit_one(struct fixture *f, const struct store_operation *operation) {
        struct store_turn *turn = new_turn(f);

        CHECK(store_turn_put(turn, operation) == 0);
        return commit(f, turn);
}

static inline void unload(struct fixture *f) {
        for (size_t i = 0; i < f->loaded.count; i++)
                free(f->loaded.arenas[i]);
        free(f->loaded.operations);
        free(f->loaded.arenas);
        f->loaded = (struct loaded){};
}

static inline int on_loaded(const struct store_operation *operation, void *userdata) {
        struct loaded *loaded = userdata;
        char *arena = malloc(store_row_copy_size(operation));

        CHECK(arena && loaded->count < LOADED_MAX);
        store_row_copy(&loaded->operations[loaded->count], operation, arena);
        loaded->arenas[loaded->count++] = arena;
        return 0;
}

static inline int load(struct fixture *f) {
        unload(f);
        f->loaded.operations = calloc(LOADED_MAX, sizeof(*f->loaded.operations));
        f->loaded.arenas = calloc(LOADED_MAX, sizeof(*f->loaded.arenas));
        CHECK(f->loaded.operations && f->loaded.arenas);
        return store_load(f->store, on_loaded, &f->loaded, f->error, sizeof(f->error));
}

static inline const struct store_operation *find(const struct fixture *f, const char *id) {
        for (size_t i = 0; i < f->loaded.count; i++)
                if (strcmp(f->loaded.operations[i].operation_id, id) == 0)
                        return &f->loaded.operations[i];
        return NULL;
}

/* ---- turns whose wholeness shows ---------------------------------------------------------------------------- */

#define NUMBERED_ROWS 20

/* Turn k: all of "op-*" get sequence k, "turn-k" comes, "turn-(k-1)" goes, the revision is k. */
static inline struct store_turn *numbered_turn(struct fixture *f, int64_t k) {
        struct store_turn *turn = new_turn(f);
        struct store_operation operation;
        char id[40];

        for (int i = 0; i < NUMBERED_ROWS; i++) {
                snprintf(id, sizeof(id), "op-%d", i);
                operation = plain_operation(id, k);
                CHECK(store_turn_put(turn, &operation) == 0);
        }
        snprintf(id, sizeof(id), "turn-%" PRId64, k - 1);
        CHECK(store_turn_delete(turn, id) == 0);
        snprintf(id, sizeof(id), "turn-%" PRId64, k);
        operation = plain_operation(id, k);
        CHECK(store_turn_put(turn, &operation) == 0);
        store_turn_set_revision(turn, k);
        return turn;
}

static inline void assert_whole_turn(struct fixture *f, int64_t told) {
        char id[40];

        open_store(f);
        assert_false(f->info.set_aside);
        assert_true(f->info.revision >= told); /* what was told is there; one more may be */
        assert_true(f->info.revision <= told + 1);
        assert_int_equal(load(f), 0);
        assert_int_equal(f->loaded.count, f->info.revision > 0 ? NUMBERED_ROWS + 1 : 0);
        for (size_t i = 0; i < f->loaded.count; i++)
                assert_int_equal(f->loaded.operations[i].sequence, f->info.revision);
        snprintf(id, sizeof(id), "turn-%" PRId64, f->info.revision);
        assert_true(f->info.revision == 0 || find(f, id));
        close_store(f);
}

#ifndef DIRECTORY_TEMPLATE
#define DIRECTORY_TEMPLATE "/tmp/store-test-XXXXXX"
#endif

static inline int setup(void **state) {
        struct fixture *f = calloc(1, sizeof(*f));

        assert_non_null(f);
        base_text_copy(f->directory, sizeof(f->directory), DIRECTORY_TEMPLATE);
        assert_non_null(mkdtemp(f->directory));
        loop_open(f);
        *state = f;
        return 0;
}

static inline int teardown(void **state) {
        struct fixture *f = *state;

        unload(f);
        close_store(f);
        loop_close(f);
        remove_tree(f->directory);
        free(f);
        return 0;
}
