/* SPDX-License-Identifier: Apache-2.0 */
/* store: what the agent stores it gets back; who else may have the file; what is refused and what is set aside. */
#include "store_fixture.h"

#include "metrics.h"

/* ---- a fresh one -------------------------------------------------------------------------------------------- */

static void test_fresh(void **state) {
        struct fixture *f = *state;

        open_store(f);
        assert_true(f->info.created);
        assert_false(f->info.set_aside);
        assert_true(f->info.reserved);
        assert_int_equal(f->info.revision, 0);
        assert_int_equal(f->info.sequence_base, NOW_REAL_USEC);
        assert_int_equal(f->info.schema_version, 1);
        assert_int_equal(load(f), 0);
        assert_int_equal(f->loaded.count, 0);
        assert_int_equal(file_size(f, "agent.db-shm"), -1);

        reopen(f);
        assert_false(f->info.created);
        assert_true(f->info.reserved);
        assert_int_equal(f->info.sequence_base, NOW_REAL_USEC);
}

static mode_t mode_of(const struct fixture *f, const char *name) {
        char path[480];
        struct stat status;

        assert_int_equal(stat(path_of(f, name, path, sizeof(path)), &status), 0);
        return status.st_mode & 07777;
}

static void test_modes(void **state) {
        static const mode_t masks[] = {0, 0077, 0777};
        struct fixture *f = *state;

        for (size_t i = 0; i < ARRAY_SIZE(masks); i++) {
                mode_t before = umask(masks[i]);

                open_store(f);
                umask(before);
                assert_int_equal(mode_of(f, "agent.db"), 0600);
                assert_int_equal(mode_of(f, "agent.db-wal"), 0600);
                close_store(f);
                run_sql(f, "agent.db", "SELECT 1"); /* a person has a look: SQLite removes the log */
                remove_tree(f->directory);
                assert_int_equal(mkdir(f->directory, 0700), 0);
        }
}

static void test_settings(void **state) {
        struct fixture *f = *state;
        uint8_t *log;
        size_t size;

        open_store(f);
        close_store(f);
        log = read_bytes(f, "agent.db-wal", &size);
        assert_true(size >= RESERVE_PAGES * STORE_PAGE_BYTES); /* kept, but empty: */
        for (size_t i = 0; i < 32; i++)
                assert_int_equal(log[i], 0);
        free(log);
        assert_int_equal(query_sql(f, "agent.db", "PRAGMA application_id"), STORE_APPLICATION_ID);
        assert_int_equal(query_sql(f, "agent.db", "PRAGMA user_version"), 1);
        assert_int_equal(query_sql(f, "agent.db", "PRAGMA auto_vacuum"), 0);
        assert_int_equal(
                query_sql(f, "agent.db", "SELECT count(*) FROM pragma_journal_mode WHERE journal_mode = 'wal'"), 1);
}

/* ---- what is stored comes back ------------------------------------------------------------------------------ */

#define SAMPLES 200

static void put_samples(struct fixture *f, struct sample *samples, uint64_t *seed) {
        struct store_turn *turn = new_turn(f);
        char id[40];

        for (size_t i = 0; i < SAMPLES; i++) {
                snprintf(id, sizeof(id), "op-%zu", i);
                sample_make(&samples[i], id, seed);
                assert_int_equal(store_turn_put(turn, &samples[i].operation), 0);
        }
        assert_int_equal(commit(f, turn), 0);
}

static void assert_samples(struct fixture *f, const struct sample *samples) {
        reopen(f);
        assert_int_equal(load(f), 0);
        assert_int_equal(f->loaded.count, SAMPLES);
        for (size_t i = 0; i < SAMPLES; i++)
                assert_true(operation_equal(&f->loaded.operations[i], &samples[i].operation));
}

static void test_round_trip(void **state) {
        struct fixture *f = *state;
        struct sample *samples = calloc(SAMPLES, sizeof(*samples));
        uint64_t seed = test_seed();

        assert_non_null(samples);
        open_store(f);
        put_samples(f, samples, &seed);
        assert_samples(f, samples);
        put_samples(f, samples, &seed); /* every field replaced; each keeps its place */
        assert_samples(f, samples);
        free(samples);
}

static void test_turn_copies(void **state) {
        struct fixture *f = *state;
        char id[] = "op-1", job[] = "job-1";
        uint8_t raw[] = {1, 2, 3};
        struct store_operation operation = plain_operation(id, 1);
        struct store_turn *turn;

        open_store(f);
        operation.job_id = job;
        operation.operation = (struct span){raw, sizeof(raw)};
        turn = new_turn(f);
        assert_int_equal(store_turn_put(turn, &operation), 0);
        memset(id, 'x', 4);
        memset(job, 'x', 5);
        memset(raw, 9, sizeof(raw));
        assert_int_equal(commit(f, turn), 0);

        reopen(f);
        assert_int_equal(load(f), 0);
        assert_int_equal(f->loaded.count, 1);
        assert_string_equal(f->loaded.operations[0].operation_id, "op-1");
        assert_string_equal(f->loaded.operations[0].job_id, "job-1");
        assert_memory_equal(f->loaded.operations[0].operation.data, "\1\2\3", 3);
}

/* A missing text is "", a missing span is an empty one; neither is NULL in the database. */
static void test_empty_operation(void **state) {
        struct fixture *f = *state;
        const struct store_operation bare = {.operation_id = "op-1"};

        open_store(f);
        assert_int_equal(commit_one(f, &bare), 0);
        reopen(f);
        assert_int_equal(load(f), 0);
        assert_int_equal(f->loaded.count, 1);
        assert_string_equal(f->loaded.operations[0].message, "");
        assert_int_equal(f->loaded.operations[0].operation.size, 0);
        assert_int_equal(f->loaded.operations[0].record.state, CANCEL_SEARCH);
}

static void test_people_can_read_it(void **state) {
        struct fixture *f = *state;
        struct store_operation operation = plain_operation("op-1", 1);

        open_store(f);
        operation.record.state = CANCEL_REPORT;
        operation.record.outcome = CANCEL_ALREADY_DONE;
        operation.record.word = CANCEL_WORD_FINISHED;
        operation.record.escalation = CANCEL_ESCALATION_SIGTERM;
        operation.record.deadline_usec = USEC_NEVER;
        assert_int_equal(commit_one(f, &operation), 0);
        close_store(f);
        assert_int_equal(query_sql(f, "agent.db",
                                   "SELECT count(*) FROM operations WHERE state = 'REPORT' AND outcome = "
                                   "'ALREADY_DONE' AND word = 'FINISHED' AND escalation = 'SIGTERM' AND "
                                   "deadline_usec = -1 AND typeof(operation) = 'blob'"),
                         1);
}

/* ---- turns -------------------------------------------------------------------------------------------------- */

static void put(struct store_turn *turn, const char *id, int64_t sequence) {
        struct store_operation operation = plain_operation(id, sequence);

        assert_int_equal(store_turn_put(turn, &operation), 0);
}

static void test_order_within_a_turn(void **state) {
        struct fixture *f = *state;
        struct store_turn *turn;

        open_store(f);
        turn = new_turn(f);
        put(turn, "a", 1);
        put(turn, "b", 1);
        put(turn, "a", 2); /* last wins */
        put(turn, "c", 1);
        assert_int_equal(store_turn_delete(turn, "b"), 0);
        assert_int_equal(store_turn_delete(turn, "c"), 0);
        put(turn, "c", 2); /* comes back */
        assert_int_equal(store_turn_delete(turn, "never-stored"), 0);
        assert_int_equal(commit(f, turn), 0);

        reopen(f);
        assert_int_equal(load(f), 0);
        assert_int_equal(f->loaded.count, 2);
        assert_int_equal(find(f, "a")->sequence, 2);
        assert_int_equal(find(f, "c")->sequence, 2);
}

static void test_oldest_first(void **state) {
        struct fixture *f = *state;
        struct store_turn *turn;

        open_store(f);
        turn = new_turn(f);
        put(turn, "z", 1);
        put(turn, "m", 1);
        assert_int_equal(commit(f, turn), 0);
        turn = new_turn(f);
        put(turn, "a", 1);
        put(turn, "z", 2);
        assert_int_equal(commit(f, turn), 0);

        reopen(f);
        assert_int_equal(load(f), 0);
        assert_string_equal(f->loaded.operations[0].operation_id, "z");
        assert_string_equal(f->loaded.operations[1].operation_id, "m");
        assert_string_equal(f->loaded.operations[2].operation_id, "a");
}

static void test_revision(void **state) {
        struct fixture *f = *state;
        struct store_turn *turn;

        open_store(f);
        turn = new_turn(f);
        assert_true(store_turn_is_empty(turn));
        store_turn_set_revision(turn, 41);
        store_turn_set_revision(turn, 42);
        assert_false(store_turn_is_empty(turn));
        assert_int_equal(commit(f, turn), 0);
        reopen(f);
        assert_int_equal(f->info.revision, 42);

        turn = new_turn(f);
        put(turn, "a", 1);
        assert_false(store_turn_is_empty(turn));
        assert_int_equal(commit(f, turn), 0); /* leaves the revision alone */
        assert_int_equal(commit(f, new_turn(f)), 0);
        reopen(f);
        assert_int_equal(f->info.revision, 42);

        turn = new_turn(f);
        store_turn_set_revision(turn, 0); /* OUT_OF_RANGE: start over */
        assert_int_equal(commit(f, turn), 0);
        reopen(f);
        assert_int_equal(f->info.revision, 0);
}

static void test_put_refuses(void **state) {
        static uint8_t bytes[STORE_BLOB_MAX + 1];
        static char text[STORE_TEXT_MAX + 2];
        struct fixture *f = *state;
        struct store_operation o[14];
        static const int results[] = {
                -EINVAL, -EINVAL, -EINVAL, -EINVAL,   -EINVAL,   -EINVAL, -EINVAL,
                -EINVAL, -EINVAL, -ERANGE, -EMSGSIZE, -EMSGSIZE, -EINVAL, -EINVAL,
        };
        _Static_assert(ARRAY_SIZE(o) == ARRAY_SIZE(results), "one result each");
        struct store_turn *turn;

        memset(text, 'x', sizeof(text) - 1);
        for (size_t i = 0; i < ARRAY_SIZE(o); i++)
                o[i] = plain_operation("op", 1);
        o[0].operation_id = NULL;
        o[1].operation_id = "";
        o[2].operation_id = "has space";
        o[3].operation_id = "123456789012345678901234567890123456789012345678901";
        o[4].record.state = CANCEL_STATE_MAX;
        o[5].record.outcome = CANCEL_OUTCOME_MAX;
        o[6].record.word = CANCEL_WORD_MAX;
        base_text_copy(o[7].record.driver_id, sizeof(o[7].record.driver_id), "../x");
        memset(o[8].record.command_driver_id, 'x', sizeof(o[8].record.command_driver_id));
        o[9].record.killed_usec = (uint64_t)INT64_MAX + 1;
        o[10].message = text;
        o[11].report = (struct span){bytes, sizeof(bytes)};
        o[12].operation = (struct span){NULL, 1};
        o[13].record.escalation = (enum cancel_escalation)3;

        open_store(f);
        turn = new_turn(f);
        for (size_t i = 0; i < ARRAY_SIZE(o); i++)
                assert_int_equal(store_turn_put(turn, &o[i]), results[i]);
        assert_int_equal(store_turn_delete(turn, ""), -EINVAL);
        assert_int_equal(store_turn_delete(turn, NULL), -EINVAL);
        assert_true(store_turn_is_empty(turn));
        store_turn_free(turn);
}

/* The limits themselves fit. */
static void test_put_limits(void **state) {
        static uint8_t bytes[STORE_BLOB_MAX];
        static char text[STORE_TEXT_MAX + 1];
        static const char id[] = "12345678901234567890123456789012345678901234567890";
        struct fixture *f = *state;
        struct store_operation operation = plain_operation(id, INT64_MAX);

        memset(text, 'x', sizeof(text) - 1);
        operation.cluster_id = operation.job_id = operation.created_by = operation.boot_id = text;
        operation.driver_state = operation.app_name = operation.message = text;
        operation.operation = operation.report = (struct span){bytes, sizeof(bytes)};
        memset(operation.record.driver_id, 'x', DRIVER_ID_MAX);

        open_store(f);
        assert_int_equal(commit_one(f, &operation), 0);
        reopen(f);
        assert_int_equal(load(f), 0);
        assert_true(operation_equal(&f->loaded.operations[0], &operation));
}

static void test_one_commit_at_a_time(void **state) {
        struct fixture *f = *state;
        struct store_turn *turn, *second;
        uint64_t before = metrics_get(METRICS_COMMITS, NULL);

        open_store(f);
        turn = new_turn(f);
        put(turn, "a", 1);
        second = new_turn(f);
        put(second, "b", 1);
        assert_int_equal(store_commit(f->store, turn, on_done, f), 0);
        assert_int_equal(store_commit(f->store, second, on_done, f), -EBUSY);
        assert_int_equal(load(f), -EBUSY);
        assert_int_equal(event_run(f->event), 0);
        assert_int_equal(f->done_count, 1);
        assert_int_equal(f->result, 0);
        assert_string_equal(f->done_error, "");
        assert_int_equal(commit(f, second), 0); /* the refused turn is still good */
        assert_int_equal(metrics_get(METRICS_COMMITS, NULL), before + 2);
}

static void test_turn_of_another_store(void **state) {
        struct fixture *f = *state;
        struct store_turn *turn;

        open_store(f);
        assert_int_equal(store_turn_new((struct store *)(void *)f, &turn), 0);
        assert_int_equal(store_commit(f->store, turn, on_done, f), -EINVAL);
        store_turn_free(turn);
        assert_null(store_turn_free(NULL));
        assert_null(store_close(NULL));
}

/* Within `done` the next commit may be handed over at once. */
static int on_done_again(int result, const char *error, uint64_t took_usec, void *userdata) {
        struct fixture *f = userdata;
        struct store_turn *turn;

        (void)took_usec;
        if (result < 0 || error[0] != '\0')
                return -EIO;
        if (++f->done_count == 50) {
                event_exit(f->event, 0);
                return 0;
        }
        turn = new_turn(f);
        store_turn_set_revision(turn, f->done_count);
        return store_commit(f->store, turn, on_done_again, f);
}

static void test_commit_within_done(void **state) {
        struct fixture *f = *state;

        open_store(f);
        assert_int_equal(store_commit(f->store, new_turn(f), on_done_again, f), 0);
        assert_int_equal(event_run(f->event), 0);
        reopen(f);
        assert_int_equal(f->info.revision, 49);
}

static int on_done_close(int result, const char *error, uint64_t took_usec, void *userdata) {
        struct fixture *f = userdata;

        (void)error;
        (void)took_usec;
        close_store(f);
        event_exit(f->event, result);
        return 0;
}

static void test_close(void **state) {
        struct fixture *f = *state;
        struct store_turn *turn;

        open_store(f);
        turn = new_turn(f);
        put(turn, "a", 1);
        assert_int_equal(store_commit(f->store, turn, on_done_close, f), 0); /* within done */
        assert_int_equal(event_run(f->event), 0);
        assert_null(f->store);

        open_store(f);
        assert_int_equal(load(f), 0);
        assert_int_equal(f->loaded.count, 1);
        turn = new_turn(f);
        put(turn, "b", 1);
        assert_int_equal(store_commit(f->store, turn, on_done, f), 0);
        close_store(f); /* while the commit is under way */
        assert_int_equal(f->done_count, 0);
        open_store(f);
        assert_int_equal(load(f), 0);
        assert_true(f->loaded.count == 1 || f->loaded.count == 2);
}

/* What `done` returns ends the loop, like any handler's. */
static int on_done_fail(int result, const char *error, uint64_t took_usec, void *userdata) {
        (void)result;
        (void)error;
        (void)took_usec;
        (void)userdata;
        return -ECANCELED;
}

static void test_done_fails(void **state) {
        struct fixture *f = *state;

        open_store(f);
        assert_int_equal(store_commit(f->store, new_turn(f), on_done_fail, f), 0);
        assert_int_equal(event_run(f->event), -ECANCELED);
}

static void test_many(void **state) {
        struct fixture *f = *state;
        struct store_turn *turn;
        uint64_t best_usec = UINT64_MAX, sum_usec = 0;
        char id[40];

        open_store(f);
        turn = new_turn(f);
        for (int i = 0; i < 10000; i++) {
                snprintf(id, sizeof(id), "op-%d", i);
                put(turn, id, i);
        }
        assert_int_equal(commit(f, turn), 0);
        print_message("10,000 operations in one turn: %" PRIu64 " us\n", f->took_usec);
        for (int i = 0; i < 200; i++) {
                turn = new_turn(f);
                put(turn, "op-77", i);
                store_turn_set_revision(turn, i);
                assert_int_equal(commit(f, turn), 0);
                best_usec = base_min_u64(best_usec, f->took_usec);
                sum_usec += f->took_usec;
        }
        print_message("one operation a turn: best %" PRIu64 " us, mean %" PRIu64 " us\n", best_usec, sum_usec / 200);
        reopen(f);
        assert_int_equal(load(f), 0);
        assert_int_equal(f->loaded.count, 10000);
        assert_int_equal(find(f, "op-77")->sequence, 199);
        assert_int_equal(find(f, "op-9999")->sequence, 9999);
}

static int stop_visit(const struct store_operation *operation, void *userdata) {
        (void)operation;
        (void)userdata;
        return -ENOTRECOVERABLE;
}

static void test_visit_ends_load(void **state) {
        struct fixture *f = *state;
        struct store_operation operation = plain_operation("op-1", 1);

        open_store(f);
        assert_int_equal(commit_one(f, &operation), 0);
        reopen(f);
        assert_int_equal(store_load(f->store, stop_visit, NULL, f->error, sizeof(f->error)), -ENOTRECOVERABLE);
        assert_string_equal(f->error, "");
        assert_int_equal(load(f), 0); /* and again */
}

/* ---- who else has it ---------------------------------------------------------------------------------------- */

static void test_locked(void **state) {
        struct fixture *f = *state;
        struct store_info info;
        struct store *second = NULL;
        char pid[40], error[300];

        open_store(f);
        assert_int_equal(store_open(f->event, f->directory, NOW_REAL_USEC, &info, error, sizeof(error), &second),
                         STORE_LOCKED);
        assert_null(second);
        snprintf(pid, sizeof(pid), "pid %ld", (long)getpid());
        assert_non_null(strstr(error, pid));
        assert_non_null(strstr(error, f->directory));

        write_bytes(f, "agent.lock", 0, "99999999999999999999999", 23); /* rubbish in it is no pid */
        assert_int_equal(store_open(f->event, f->directory, NOW_REAL_USEC, &info, error, sizeof(error), &second),
                         STORE_LOCKED);
        assert_non_null(strstr(error, f->directory));
        assert_null(strstr(error, "pid"));
        close_store(f);
        open_store(f); /* free again */
}

/* Another program, and so another process: POSIX locks do not keep a process from itself. */
static void test_locked_by_sqlite3(void **state) {
        struct fixture *f = *state;
        int ready[2], finish[2], status;
        char byte, path[400];
        sqlite3 *db;
        pid_t pid;

        open_store(f);
        close_store(f);
        assert_int_equal(pipe(ready), 0);
        assert_int_equal(pipe(finish), 0);
        pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                close(finish[1]);
                CHECK(sqlite3_open(path_of(f, "agent.db", path, sizeof(path)), &db) == SQLITE_OK);
                CHECK(sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL) == SQLITE_OK);
                CHECK(write(ready[1], "x", 1) == 1);
                CHECK(read(finish[0], &byte, 1) == 0);
                _exit(0);
        }
        close(finish[0]);
        assert_int_equal(read(ready[0], &byte, 1), 1);
        assert_int_equal(try_open(f), STORE_LOCKED);
        assert_non_null(strstr(f->error, "another program"));
        close(finish[1]);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
        close(ready[0]);
        close(ready[1]);
        open_store(f);
        assert_false(f->info.set_aside);
}

/* Neither is changed by a single byte. */
static void assert_left_alone(struct fixture *f, int result, const char *word) {
        size_t size, size_after;
        uint8_t *before = read_bytes(f, "agent.db", &size), *after;

        assert_int_equal(try_open(f), result);
        assert_non_null(strstr(f->error, word));
        after = read_bytes(f, "agent.db", &size_after);
        assert_int_equal(size, size_after);
        assert_memory_equal(before, after, size);
        free(before);
        free(after);
        assert_int_equal(find_files(f, "agent.db.corrupt", NULL, 0), 0);
}

static void test_newer(void **state) {
        struct fixture *f = *state;

        open_store(f);
        close_store(f);
        run_sql(f, "agent.db", "PRAGMA user_version = 2");
        assert_left_alone(f, STORE_NEWER, "newer version");
        run_sql(f, "agent.db", "PRAGMA user_version = 1");
        open_store(f);
}

static void test_foreign(void **state) {
        static const char *const sqls[] = {
                "CREATE TABLE t (a)",
                "PRAGMA application_id = 1",
                "PRAGMA user_version = 1",
                "PRAGMA journal_mode = WAL; CREATE TABLE t (a); INSERT INTO t VALUES (1)",
        };
        struct fixture *f = *state;
        char path[480];

        for (size_t i = 0; i < ARRAY_SIZE(sqls); i++) {
                run_sql(f, "agent.db", sqls[i]);
                assert_left_alone(f, STORE_FOREIGN, "another program");
                assert_int_equal(unlink(path_of(f, "agent.db", path, sizeof(path))), 0);
        }
}

static void test_empty_file_is_fresh(void **state) {
        struct fixture *f = *state;

        write_bytes(f, "agent.db", 0, "", 0); /* a crash just after it was made */
        open_store(f);
        assert_true(f->info.created);
        assert_false(f->info.set_aside);
}

static void test_directory(void **state) {
        struct fixture *f = *state;
        char directory[64], sub[600];

        base_text_copy(directory, sizeof(directory), f->directory);
        snprintf(f->directory, sizeof(f->directory), "%s/none", directory);
        assert_int_equal(try_open(f), -ENOENT);
        assert_non_null(strstr(f->error, "does not exist"));
        assert_non_null(strstr(f->error, "StateDirectory"));
        base_text_copy(f->directory, sizeof(f->directory), directory);

        write_bytes(f, "file", 0, "x", 1);
        snprintf(f->directory, sizeof(f->directory), "%s/file", directory);
        assert_int_equal(try_open(f), -ENOTDIR);
        base_text_copy(f->directory, sizeof(f->directory), directory);

        memset(sub, 'x', sizeof(sub) - 1);
        sub[sizeof(sub) - 1] = '\0';
        assert_int_equal(store_open(f->event, sub, NOW_REAL_USEC, &f->info, f->error, sizeof(f->error), &f->store),
                         -ENAMETOOLONG);
        assert_int_equal(symlink("elsewhere", path_of(f, "agent.db", sub, sizeof(sub))), 0);
        assert_int_equal(try_open(f), -EINVAL);
        assert_non_null(strstr(f->error, "regular file"));
}

/* ---- schema ------------------------------------------------------------------------------------------------- */

static void test_bad_rows(void **state) {
        static const struct {
                const char *sql, *column;
        } cases[] = {
                {"UPDATE operations SET state = 'SEARCHING'", "state"},
                {"UPDATE operations SET state = ''", "state"},
                {"UPDATE operations SET outcome = 3", "outcome"},
                {"UPDATE operations SET word = x'00'", "word"},
                {"UPDATE operations SET escalation = 'sigterm'", "escalation"},
                {"UPDATE operations SET dry_run = 2", "dry_run"},
                {"UPDATE operations SET dry_run = 'yes'", "dry_run"},
                {"UPDATE operations SET pid = 2147483648", "pid"},
                {"UPDATE operations SET kill_requests = -1", "kill_requests"},
                {"UPDATE operations SET kill_requests = 1.5", "kill_requests"},
                {"UPDATE operations SET killed_usec = -2", "killed_usec"},
                {"UPDATE operations SET driver_id = '../../etc'", "driver_id"},
                {"UPDATE operations SET driver_id = printf('%0129d', 1)", "driver_id"},
                {"UPDATE operations SET command_driver_id = '.'", "command_driver_id"},
                {"UPDATE operations SET message = x'41'", "message"},
                {"UPDATE operations SET message = 'a' || char(0) || 'b'", "message"},
                {"UPDATE operations SET message = printf('%017000d', 1)", "message"},
                {"UPDATE operations SET operation = 'text'", "operation"},
                {"UPDATE operations SET report = zeroblob(262145)", "report"},
                {"UPDATE operations SET sequence = 'many'", "sequence"},
        };
        struct fixture *f = *state;
        struct store_operation operation = plain_operation("op-1", 1);
        char column[80], path[400];

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                open_store(f);
                assert_int_equal(commit_one(f, &operation), 0);
                close_store(f);
                run_sql(f, "agent.db", cases[i].sql);
                open_store(f);
                assert_false(f->info.set_aside);
                assert_int_equal(load(f), -EBADMSG);
                snprintf(column, sizeof(column), "operation op-1: column %s is", cases[i].column);
                if (!strstr(f->error, column))
                        print_message("%s: %s\n", cases[i].sql, f->error);
                assert_non_null(strstr(f->error, column));
                close_store(f);
                assert_int_equal(unlink(path_of(f, "agent.db", path, sizeof(path))), 0);
                unlink(path_of(f, "agent.db-wal", path, sizeof(path)));
        }
}

/* The id itself is wrong: shown escaped. */
static void test_bad_id(void **state) {
        struct fixture *f = *state;
        struct store_operation operation = plain_operation("op-1", 1);

        open_store(f);
        assert_int_equal(commit_one(f, &operation), 0);
        close_store(f);
        run_sql(f, "agent.db", "UPDATE operations SET operation_id = 'a' || char(10) || 'b'");
        open_store(f);
        assert_int_equal(load(f), -EBADMSG);
        assert_non_null(strstr(f->error, "column operation_id is not an operation id"));
        assert_null(strchr(f->error, '\n'));
}

/* Tables that somebody took out: told, not set aside, not made anew. */
static void test_missing_table(void **state) {
        static const char *const sqls[] = {"DROP TABLE operations", "DROP TABLE meta", "DELETE FROM meta",
                                           "ALTER TABLE operations RENAME COLUMN word TO speech"};
        struct fixture *f = *state;
        char path[480];

        for (size_t i = 0; i < ARRAY_SIZE(sqls); i++) {
                open_store(f);
                close_store(f);
                run_sql(f, "agent.db", sqls[i]);
                assert_int_equal(try_open(f), -EBADMSG);
                assert_true(strlen(f->error) > 0);
                assert_int_equal(unlink(path_of(f, "agent.db", path, sizeof(path))), 0);
                unlink(path_of(f, "agent.db-wal", path, sizeof(path)));
        }
}

/* What somebody put into the schema is told, and neither run nor obeyed: the last one would let a commit delete another
 * operation. */
static void test_foreign_schema(void **state) {
        static const struct {
                const char *sql, *what;
        } cases[] = {
                {"CREATE TRIGGER t AFTER INSERT ON operations BEGIN DELETE FROM operations; END", "trigger t"},
                {"CREATE VIEW v AS SELECT * FROM operations", "view v"},
                {"CREATE UNIQUE INDEX i ON operations (job_id)", "index i"},
                {"CREATE TABLE extra (a)", "table extra"},
                {"ALTER TABLE operations ADD COLUMN x TEXT", "table operations"},
                {"DROP INDEX operations_done", "table meta"},
                {"DROP TABLE meta; CREATE TABLE meta (name TEXT NOT NULL PRIMARY KEY ON CONFLICT REPLACE, "
                 "value INTEGER NOT NULL) WITHOUT ROWID; INSERT INTO meta VALUES ('revision', 1), ('sequence_base', 1)",
                 "table meta"},
        };
        struct fixture *f = *state;
        char path[480];

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                open_store(f);
                close_store(f);
                run_sql(f, "agent.db", cases[i].sql);
                assert_int_equal(try_open(f), -EBADMSG);
                if (!strstr(f->error, cases[i].what))
                        print_message("%s: %s\n", cases[i].sql, f->error);
                assert_non_null(strstr(f->error, cases[i].what));
                assert_int_equal(unlink(path_of(f, "agent.db", path, sizeof(path))), 0);
                unlink(path_of(f, "agent.db-wal", path, sizeof(path)));
        }
}

/* Statistics of an operator's ANALYZE are data. */
static void test_statistics_are_fine(void **state) {
        struct fixture *f = *state;
        struct store_operation operation = plain_operation("op-1", 1);

        open_store(f);
        assert_int_equal(commit_one(f, &operation), 0);
        close_store(f);
        run_sql(f, "agent.db", "ANALYZE; VACUUM");
        open_store(f);
        assert_int_equal(load(f), 0);
        assert_int_equal(f->loaded.count, 1);
}

static int migrate(struct fixture *f, const struct store_step *steps, uint32_t from, uint32_t to) {
        struct store store = {};
        int r;

        path_of(f, "agent.db", store.path, sizeof(store.path));
        assert_int_equal(sqlite3_open(store.path, &store.db), SQLITE_OK);
        r = store_schema_migrate(&store, steps, from, to, NOW_REAL_USEC);
        if (r < 0)
                base_text_copy(f->error, sizeof(f->error), store.error);
        assert_int_equal(sqlite3_close(store.db), SQLITE_OK);
        return r;
}

static void test_migration(void **state) {
        const struct store_step steps[] = {
                store_schema_steps[0],
                {.sql = "ALTER TABLE operations ADD COLUMN colour TEXT NOT NULL DEFAULT 'blue'"},
                {.sql = "ALTER TABLE operations ADD COLUMN size INTEGER NOT NULL DEFAULT 7; no such statement"},
        };
        struct fixture *f = *state;
        struct store_operation operation = plain_operation("op-1", 17);

        open_store(f);
        assert_int_equal(commit_one(f, &operation), 0);
        close_store(f);
        assert_int_equal(migrate(f, steps, 1, 1), 0);
        assert_int_equal(query_sql(f, "agent.db", "PRAGMA user_version"), 1);

        assert_int_equal(migrate(f, steps, 1, 3), -EBADMSG); /* all or nothing */
        assert_non_null(strstr(f->error, "syntax error"));
        assert_int_equal(query_sql(f, "agent.db", "PRAGMA user_version"), 1);
        open_store(f); /* and as good as before */
        assert_int_equal(load(f), 0);
        assert_true(operation_equal(&f->loaded.operations[0], &operation));
        close_store(f);

        assert_int_equal(migrate(f, steps, 1, 2), 0);
        assert_int_equal(query_sql(f, "agent.db", "PRAGMA user_version"), 2);
        assert_int_equal(
                query_sql(f, "agent.db", "SELECT count(*) FROM operations WHERE colour = 'blue' AND sequence = 17"), 1);
        assert_int_equal(try_open(f), STORE_NEWER);
}

/* From nothing over all steps at once, and the first version's file is what store_open() makes. */
static void test_migration_from_nothing(void **state) {
        struct fixture *f = *state;

        assert_int_equal(migrate(f, store_schema_steps, 0, STORE_SCHEMA_VERSION), 0);
        open_store(f);
        assert_false(f->info.created);
        assert_int_equal(f->info.sequence_base, NOW_REAL_USEC);
        assert_int_equal(load(f), 0);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void) {
        const struct CMUnitTest tests[] = {
                TEST(test_fresh),
                TEST(test_modes),
                TEST(test_settings),
                TEST(test_round_trip),
                TEST(test_turn_copies),
                TEST(test_empty_operation),
                TEST(test_people_can_read_it),
                TEST(test_order_within_a_turn),
                TEST(test_oldest_first),
                TEST(test_revision),
                TEST(test_put_refuses),
                TEST(test_put_limits),
                TEST(test_one_commit_at_a_time),
                TEST(test_turn_of_another_store),
                TEST(test_commit_within_done),
                TEST(test_close),
                TEST(test_done_fails),
                TEST(test_many),
                TEST(test_visit_ends_load),
                TEST(test_locked),
                TEST(test_locked_by_sqlite3),
                TEST(test_newer),
                TEST(test_foreign),
                TEST(test_empty_file_is_fresh),
                TEST(test_directory),
                TEST(test_bad_rows),
                TEST(test_bad_id),
                TEST(test_missing_table),
                TEST(test_foreign_schema),
                TEST(test_statistics_are_fine),
                TEST(test_migration),
                TEST(test_migration_from_nothing),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
