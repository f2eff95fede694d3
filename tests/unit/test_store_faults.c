/* SPDX-License-Identifier: Apache-2.0 */
/* store under faults: damaged files, kill -9, a full disk, no memory. Nothing that was told as stored may be lost, no
 * turn may be there by half, and a fault that passes must leave no trace. */
#include "store_fixture.h"

#include <sched.h>
#include <stdatomic.h>
#include <sys/mount.h>

#define ROWS 40

/* ---- damaged files ------------------------------------------------------------------------------------------ */

static void make_rows(struct fixture *f) {
        struct store_turn *turn;
        char id[40];

        open_store(f);
        turn = new_turn(f);
        for (int i = 0; i < ROWS; i++) {
                snprintf(id, sizeof(id), "op-%d", i);
                struct store_operation operation = plain_operation(id, i);
                assert_int_equal(store_turn_put(turn, &operation), 0);
        }
        store_turn_set_revision(turn, 7);
        assert_int_equal(commit(f, turn), 0);
}

static void truncate_file(const struct fixture *f, const char *name, off_t size) {
        char path[480];

        assert_int_equal(truncate(path_of(f, name, path, sizeof(path)), size), 0);
}

/* A fresh store in its place, which works, and the old file as it was under the name that is told. */
static void assert_set_aside(struct fixture *f, const uint8_t *before, size_t size) {
        struct store_operation operation = plain_operation("op-new", 1);
        size_t size_after;
        uint8_t *after;

        open_store(f);
        assert_true(f->info.set_aside);
        assert_true(f->info.created);
        assert_true(strlen(f->info.aside_reason) > 0);
        assert_non_null(base_text_starts_with(f->info.aside, "agent.db.corrupt-2025-11-24-"));
        assert_int_equal(f->info.revision, 0);
        assert_int_equal(f->info.sequence_base, NOW_REAL_USEC);
        assert_int_equal(load(f), 0);
        assert_int_equal(f->loaded.count, 0);
        if (before) {
                after = read_bytes(f, f->info.aside, &size_after);
                assert_int_equal(size_after, size);
                assert_memory_equal(after, before, size);
                free(after);
        }
        assert_int_equal(commit_one(f, &operation), 0);
        reopen(f);
        assert_false(f->info.set_aside);
        assert_int_equal(load(f), 0);
        assert_int_equal(f->loaded.count, 1);
        close_store(f);
}

static void damage_magic(struct fixture *f) {
        write_bytes(f, "agent.db", 0, "not a database!!", 16);
}

static void damage_page_size(struct fixture *f) {
        write_bytes(f, "agent.db", 16, "\x7b\x7b", 2);
}

static void damage_schema_page(struct fixture *f) {
        uint8_t bytes[3000];

        memset(bytes, 0xa5, sizeof(bytes));
        write_bytes(f, "agent.db", 100, bytes, sizeof(bytes));
}

static void damage_table(struct fixture *f) {
        int64_t page = query_sql(f, "agent.db", "SELECT rootpage FROM sqlite_master WHERE name = 'operations'");
        uint8_t bytes[STORE_PAGE_BYTES];

        memset(bytes, 0xa5, sizeof(bytes));
        write_bytes(f, "agent.db", (size_t)(page - 1) * STORE_PAGE_BYTES, bytes, sizeof(bytes));
}

static void damage_length(struct fixture *f) {
        truncate_file(f, "agent.db", file_size(f, "agent.db") / 2);
}

static void damage_to_a_stub(struct fixture *f) {
        truncate_file(f, "agent.db", 99);
}

static void test_corrupt(void **state) {
        static void (*const damages[])(struct fixture *) = {
                damage_magic, damage_page_size, damage_schema_page, damage_table, damage_length, damage_to_a_stub,
        };
        struct fixture *f = *state;
        uint8_t *before;
        size_t size;

        for (size_t i = 0; i < ARRAY_SIZE(damages); i++) {
                make_rows(f);
                close_store(f);
                damages[i](f);
                before = read_bytes(f, "agent.db", &size);
                assert_set_aside(f, before, size);
                free(before);
                remove_files(f);
        }
}

static void test_set_aside_again(void **state) {
        struct fixture *f = *state;
        char name[300];

        for (int i = 1; i <= 3; i++) {
                open_store(f);
                close_store(f);
                damage_magic(f);
                open_store(f);
                snprintf(name, sizeof(name), "agent.db.corrupt-2025-11-24-%d", i);
                assert_string_equal(f->info.aside, name);
                close_store(f);
        }
        assert_int_equal(find_files(f, "agent.db.corrupt-2025-11-24-", name, sizeof(name)),
                         3 * 2); /* each with its log */
}

/* Damage anywhere: an answer, never a crash; and a file that is set aside is still there. */
static void test_random_damage(void **state) {
        struct fixture *f = *state;
        uint64_t seed = test_seed();
        uint8_t bytes[64];
        int64_t size;
        char name[300];
        int r, opened = 0, aside = 0, refused = 0;

        for (int i = 0; i < 150; i++) {
                make_rows(f);
                close_store(f);
                size = base_random_next(&seed) % 3 == 0 ? 200 : 12 * STORE_PAGE_BYTES;
                for (size_t b = 0; b < sizeof(bytes); b++)
                        bytes[b] = (uint8_t)base_random_next(&seed);
                write_bytes(f, "agent.db", base_random_next(&seed) % (uint64_t)size, bytes,
                            1 + base_random_next(&seed) % (sizeof(bytes) - 1));
                r = try_open(f);
                if (r == 0) {
                        aside += f->info.set_aside;
                        opened += !f->info.set_aside;
                        assert_int_equal(find_files(f, "agent.db.corrupt-", name, sizeof(name)) > 0, f->info.set_aside);
                        r = load(f);
                        assert_true(r == 0 || r == -EBADMSG || r == -EUCLEAN);
                        close_store(f);
                } else {
                        refused++;
                        assert_true(strlen(f->error) > 0);
                        assert_int_equal(find_files(f, "agent.db.corrupt-", name, sizeof(name)), 0);
                }
                remove_files(f);
        }
        print_message("opened %d, set aside %d, refused %d\n", opened, aside, refused);
}

/* ---- the log ------------------------------------------------------------------------------------------------ */

/* A process that commits and then dies without closing: the log is full of frames. */
static void crash_with_log(struct fixture *f) {
        int status;
        pid_t pid = fork();

        assert_true(pid >= 0);
        if (pid == 0) {
                struct store_operation operation = plain_operation("op-new", 1);

                loop_close(f);
                loop_open(f);
                CHECK(try_open(f) == 0);
                CHECK(commit_one(f, &operation) == 0);
                _exit(0);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
}

static void test_log_survives(void **state) {
        struct fixture *f = *state;

        crash_with_log(f);
        open_store(f);
        assert_false(f->info.set_aside);
        assert_int_equal(load(f), 0);
        assert_int_equal(f->loaded.count, 1);
}

static void test_log_garbage(void **state) {
        static const size_t sizes[] = {1, 8, 32, 20000};
        static const size_t offsets[] = {0, 4, 16, 0};
        struct fixture *f = *state;
        uint8_t bytes[20000];
        char name[300], log[320];

        memset(bytes, 0xa5, sizeof(bytes));
        for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
                make_rows(f);
                close_store(f);
                crash_with_log(f);
                write_bytes(f, "agent.db-wal", offsets[i], bytes, sizes[i]);
                assert_set_aside(f, NULL, 0);
                find_files(f, "agent.db.corrupt-", name, sizeof(name));
                assert_int_equal(find_files(f, "agent.db.corrupt-", name, sizeof(name)), 2);
                snprintf(log, sizeof(log), "agent.db.corrupt-2025-11-24-1-wal");
                assert_true(file_size(f, log) >= 32);
                remove_files(f);
        }
}

/* A header that was never synced, or a torn end: what a power cut leaves. The database stands as it was before. */
static void test_log_torn(void **state) {
        static const uint8_t zero[32];
        struct fixture *f = *state;

        for (int i = 0; i < 3; i++) {
                make_rows(f);
                close_store(f);
                crash_with_log(f);
                if (i == 0)
                        write_bytes(f, "agent.db-wal", 0, zero, sizeof(zero));
                else
                        truncate_file(f, "agent.db-wal", i == 1 ? 0 : 32 + 1000);
                open_store(f);
                assert_false(f->info.set_aside);
                assert_int_equal(load(f), 0);
                assert_int_equal(f->loaded.count, ROWS);
                close_store(f);
                remove_files(f);
        }
}

static void test_log_without_database(void **state) {
        struct fixture *f = *state;
        char path[480];

        crash_with_log(f);
        assert_int_equal(unlink(path_of(f, "agent.db", path, sizeof(path))), 0);
        assert_set_aside(f, NULL, 0);
        assert_true(file_size(f, "agent.db.corrupt-2025-11-24-1-wal") > 0);
}

/* An operator brings back a copy made while the agent was stopped; the log that lies there is not played into it. */
static void test_backup_brought_back(void **state) {
        struct fixture *f = *state;
        struct store_operation operation = plain_operation("op-after", 1);
        uint8_t *backup;
        size_t size;
        char path[480];

        make_rows(f);
        close_store(f);
        backup = read_bytes(f, "agent.db", &size);
        open_store(f);
        assert_int_equal(commit_one(f, &operation), 0);
        close_store(f);
        assert_int_equal(unlink(path_of(f, "agent.db", path, sizeof(path))), 0);
        write_bytes(f, "agent.db", 0, backup, size);
        free(backup);
        open_store(f);
        assert_false(f->info.set_aside);
        assert_int_equal(load(f), 0);
        assert_int_equal(f->loaded.count, ROWS);
        assert_null(find(f, "op-after"));
}

/* ---- kill -9 ------------------------------------------------------------------------------------------------ */

#define KILL_ROUNDS 30

static void write_turns_until_killed(struct fixture *f, int pipe_fd) {
        loop_close(f);
        loop_open(f);
        CHECK(try_open(f) == 0);
        CHECK(!f->info.set_aside);
        for (int64_t k = f->info.revision + 1;; k++) {
                CHECK(commit(f, numbered_turn(f, k)) == 0);
                CHECK(write(pipe_fd, &k, sizeof(k)) == (ssize_t)sizeof(k));
        }
}

static void kill_round(struct fixture *f, uint64_t *seed) {
        int fds[2], status, pidfd;
        int64_t told = 0, k;
        uint64_t turns = base_random_next(seed) % 60;
        pid_t pid;

        assert_int_equal(pipe(fds), 0);
        pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                close(fds[0]);
                write_turns_until_killed(f, fds[1]);
        }
        close(fds[1]);
        pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
        assert_true(pidfd >= 0);
        for (uint64_t i = 0; i < turns && read(fds[0], &k, sizeof(k)) == (ssize_t)sizeof(k); i++)
                told = k;
        usleep((useconds_t)(base_random_next(seed) % 1000)); /* somewhere within a turn */
        assert_int_equal(syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0), 0);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status));
        while (read(fds[0], &k, sizeof(k)) == (ssize_t)sizeof(k))
                told = k;
        close(fds[0]);
        close(pidfd);
        if (told > 0) /* else it may have died before it had read where to go on */
                assert_whole_turn(f, told);
}

static void test_kill(void **state) {
        struct fixture *f = *state;
        uint64_t seed = test_seed();

        for (int i = 0; i < KILL_ROUNDS; i++)
                kill_round(f, &seed);
        open_store(f);
        print_message("%d kills, %" PRId64 " turns\n", KILL_ROUNDS, f->info.revision);
}

/* ---- a full disk -------------------------------------------------------------------------------------------- */

#define DISK_OPTIONS "size=24m,mode=0700"

static bool mounts_work;

/* A mount namespace of our own, so nothing is left behind however this ends. */
static const char *why_no_mounts(void) {
        if (geteuid() != 0)
                return "not root, cannot mount a small disk";
        if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
                return "no mount namespaces here";
        return NULL;
}

static int setup_disk(void **state) {
        struct fixture *f;

        setup(state);
        f = *state;
        if (mounts_work)
                assert_int_equal(mount("store-test", f->directory, "tmpfs", 0, DISK_OPTIONS), 0);
        return 0;
}

static int teardown_disk(void **state) {
        struct fixture *f = *state;

        close_store(f);
        if (mounts_work)
                assert_int_equal(umount2(f->directory, MNT_DETACH), 0);
        return teardown(state);
}

static void fill_disk(const struct fixture *f) {
        static const uint8_t bytes[64 * 1024];
        char path[480];
        int fd = open(path_of(f, "filler", path, sizeof(path)), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        size_t size = sizeof(bytes);

        assert_true(fd >= 0);
        while (size > 0)
                if (write(fd, bytes, size) <= 0)
                        size /= 2;
        assert_int_equal(errno, ENOSPC);
        close(fd);
}

static void free_disk(const struct fixture *f) {
        char path[480];

        assert_int_equal(unlink(path_of(f, "filler", path, sizeof(path))), 0);
}

static void skip_without_mounts(void) {
        if (!mounts_work) {
                print_message("skipped: %s\n", why_no_mounts());
                if (getenv("REQUIRE_ALL") && strcmp(getenv("REQUIRE_ALL"), "1") == 0)
                        fail();
                skip();
        }
}

/* One new and one changed operation. */
static int commit_two(struct fixture *f, int i) {
        struct store_operation old = plain_operation("op-old", i), new;
        struct store_turn *turn = new_turn(f);
        char id[40];

        snprintf(id, sizeof(id), "op-%d", i);
        new = plain_operation(id, i);
        assert_int_equal(store_turn_put(turn, &new), 0);
        assert_int_equal(store_turn_put(turn, &old), 0);
        store_turn_set_revision(turn, i);
        return commit(f, turn);
}

/* Until the disk has no more; returns how many turns went. */
static int commit_until_full(struct fixture *f, int from) {
        for (int i = from;; i++) {
                if (commit_two(f, i) < 0)
                        return i - from;
                assert_true(i < LOADED_MAX);
        }
}

static void test_full_disk(void **state) {
        struct fixture *f = *state;
        int count, more;

        skip_without_mounts();
        assert_int_equal(try_open_reserved(f, STORE_RESERVE_PAGES), 0);
        assert_true(f->info.reserved);
        fill_disk(f);
        count = commit_until_full(f, 1);
        print_message("%d turns of two operations on a full disk\n", count);
        assert_true(count > 6000);
        assert_int_equal(f->result, -ENOSPC);
        assert_non_null(strstr(f->done_error, "full"));
        assert_int_equal(commit_two(f, count + 1), -ENOSPC);
        free_disk(f);
        assert_int_equal(commit_two(f, count + 1), 0);
        close_store(f);

        assert_int_equal(try_open_reserved(f, STORE_RESERVE_PAGES), 0);
        assert_true(f->info.reserved);
        assert_int_equal(f->info.revision, count + 1);
        assert_int_equal(load(f), 0);
        assert_int_equal(f->loaded.count, count + 2);
        assert_int_equal(find(f, "op-old")->sequence, count + 1);

        fill_disk(f); /* the reserve was made up again: a restart on a full disk, and on it goes */
        close_store(f);
        assert_int_equal(try_open_reserved(f, STORE_RESERVE_PAGES), 0);
        assert_true(f->info.reserved);
        more = commit_until_full(f, count + 2);
        print_message("%d more after a restart on the full disk\n", more);
        assert_true(more > 6000);
}

/* The reserve is made up while the store grows, not only at start. */
static void test_reserve_is_kept(void **state) {
        struct fixture *f = *state;
        struct store_turn *turn;
        struct store_operation operation;
        char id[40];
        int count;

        skip_without_mounts();
        assert_int_equal(try_open_reserved(f, STORE_RESERVE_PAGES), 0);
        for (int t = 0; t < 30; t++) {
                turn = new_turn(f);
                for (int i = 0; i < 200; i++) {
                        snprintf(id, sizeof(id), "first-%d-%d", t, i);
                        operation = plain_operation(id, 1);
                        assert_int_equal(store_turn_put(turn, &operation), 0);
                }
                assert_int_equal(commit(f, turn), 0);
        }
        fill_disk(f);
        count = commit_until_full(f, 1);
        print_message("%d turns on a full disk, after 6,000 operations before\n", count);
        assert_true(count > 3000); /* at least half of it is always there */
}

/* What the reserve is for: without one the first commits fail. */
static void test_full_disk_without_reserve(void **state) {
        struct fixture *f = *state;
        int count;

        skip_without_mounts();
        assert_int_equal(try_open_reserved(f, 0), 0);
        assert_false(f->info.reserved);
        fill_disk(f);
        count = commit_until_full(f, 1);
        assert_int_equal(f->result, -ENOSPC);
        assert_true(count < 20);
        free_disk(f);
        assert_int_equal(commit_two(f, count + 1), 0);
        reopen(f);
        assert_int_equal(load(f), 0);
        assert_int_equal(f->loaded.count, count + 2);
}

static void test_open_on_full_disk(void **state) {
        struct fixture *f = *state;

        skip_without_mounts();
        fill_disk(f);
        assert_int_equal(try_open_reserved(f, STORE_RESERVE_PAGES), -ENOSPC);
        assert_true(strlen(f->error) > 0);
        free_disk(f);
        assert_int_equal(try_open_reserved(f, STORE_RESERVE_PAGES), 0);
        assert_true(f->info.created);
        assert_false(f->info.set_aside);
}

/* A disk with too little space for the reserve, but not full: works without. */
static void test_small_disk(void **state) {
        struct fixture *f = *state;
        struct store_operation operation = plain_operation("op-1", 1);

        skip_without_mounts();
        fill_disk(f);
        truncate_file(f, "filler", file_size(f, "filler") - 6 * 1024 * 1024); /* the reserve takes 8.2 MB */
        assert_int_equal(try_open_reserved(f, STORE_RESERVE_PAGES), 0);
        assert_false(f->info.reserved);
        assert_int_equal(commit_one(f, &operation), 0);
        assert_true(file_size(f, "agent.db-wal") < 100000);
        close_store(f);
        free_disk(f);
        assert_int_equal(try_open_reserved(f, STORE_RESERVE_PAGES), 0);
        assert_true(f->info.reserved);
        assert_int_equal(load(f), 0);
        assert_int_equal(f->loaded.count, 1);
}

static void test_readonly_disk(void **state) {
        struct fixture *f = *state;

        skip_without_mounts();
        make_rows(f);
        close_store(f);
        assert_int_equal(mount(NULL, f->directory, NULL, MS_REMOUNT | MS_RDONLY, DISK_OPTIONS), 0);
        assert_int_equal(try_open(f), -EROFS);
        assert_non_null(strstr(f->error, f->directory));
        assert_int_equal(mount(NULL, f->directory, NULL, MS_REMOUNT, DISK_OPTIONS), 0);
        open_store(f);
        assert_false(f->info.set_aside);
}

static void test_readonly_directory(void **state) {
        struct fixture *f = *state;
        bool root = geteuid() == 0;

        assert_int_equal(chmod(f->directory, 0555), 0);
        if (root)
                assert_int_equal(seteuid(65534), 0);
        assert_int_equal(try_open(f), -EACCES);
        if (root)
                assert_int_equal(seteuid(0), 0);
        assert_non_null(strstr(f->error, f->directory));
        assert_int_equal(chmod(f->directory, 0700), 0);
        open_store(f);
}

static void test_readonly_database(void **state) {
        struct fixture *f = *state;
        char path[480];
        bool root = geteuid() == 0;
        int r;

        make_rows(f);
        close_store(f);
        assert_int_equal(chmod(f->directory, 0777), 0);
        assert_int_equal(chmod(path_of(f, "agent.lock", path, sizeof(path)), 0666), 0);
        assert_int_equal(chmod(path_of(f, "agent.db-wal", path, sizeof(path)), 0444), 0);
        assert_int_equal(chmod(path_of(f, "agent.db", path, sizeof(path)), 0444), 0);
        if (root)
                assert_int_equal(seteuid(65534), 0);
        r = try_open(f);
        if (root)
                assert_int_equal(seteuid(0), 0);
        assert_int_equal(r, -EACCES);
        assert_non_null(strstr(f->error, "for writing"));
        assert_int_equal(find_files(f, "agent.db.corrupt-", NULL, 0), 0);
}

/* ---- no memory ---------------------------------------------------------------------------------------------- */

static sqlite3_mem_methods real_memory;
static atomic_long memory_countdown = -1; /* the n-th allocation from now fails; negative: none */
static atomic_bool memory_stays_away;     /* and all after it */
static atomic_long memory_in_use;

static bool memory_fails(void) {
        long before = atomic_load(&memory_countdown);

        if (before < 0)
                return false;
        if (before == 0)
                return memory_stays_away;
        atomic_store(&memory_countdown, before - 1);
        return before == 1;
}

static void *memory_new(int size) {
        void *memory = memory_fails() ? NULL : real_memory.xMalloc(size);

        if (memory)
                atomic_fetch_add(&memory_in_use, 1);
        return memory;
}

static void memory_free(void *memory) {
        if (memory)
                atomic_fetch_sub(&memory_in_use, 1);
        real_memory.xFree(memory);
}

static void *memory_resize(void *memory, int size) {
        return memory_fails() ? NULL : real_memory.xRealloc(memory, size);
}

static void memory_arm(long n, bool stays_away) {
        atomic_store(&memory_stays_away, stays_away);
        atomic_store(&memory_countdown, n);
}

/* Was the fault reached? */
static bool memory_disarm(void) {
        return atomic_exchange(&memory_countdown, -1) == 0;
}

/* Open, load, commit, close with the n-th allocation failing. 1: stored. 0: not stored, and said so. */
static int run_without_memory(struct fixture *f, long n, bool stays_away, bool *reached) {
        struct store_operation operation = plain_operation("op-n", n);
        struct store_turn *turn;
        int r;

        memory_arm(n, stays_away);
        r = try_open(f);
        if (r == 0)
                r = load(f);
        if (r < 0) {
                *reached = memory_disarm();
                if (r != -ENOMEM)
                        print_message("allocation %ld: %d, %s\n", n, r, f->error);
                assert_int_equal(r, -ENOMEM);
                assert_true(strlen(f->error) > 0);
                close_store(f);
                return 0;
        }
        assert_false(f->info.set_aside);
        turn = new_turn(f);
        assert_int_equal(store_turn_put(turn, &operation), 0);
        r = commit(f, turn);
        *reached = memory_disarm();
        if (r < 0) {
                assert_int_equal(r, -ENOMEM);
                assert_true(strlen(f->done_error) > 0);
                assert_int_equal(commit_one(f, &operation), 0);
        }
        close_store(f);
        return 1;
}

static void without_memory(struct fixture *f, bool fresh, bool stays_away, long stride) {
        bool reached = true;
        long n, in_use, failed = 0;
        size_t descriptors;
        int stored;

        make_rows(f);
        close_store(f);
        unload(f);
        in_use = atomic_load(&memory_in_use);
        descriptors = count_descriptors();
        for (n = 1; reached; n += stride) {
                if (fresh)
                        remove_files(f);
                stored = run_without_memory(f, n, stays_away, &reached);
                failed += !stored;
                assert_int_equal(atomic_load(&memory_in_use), in_use);
                assert_int_equal(count_descriptors(), descriptors);

                open_store(f); /* memory is back, and nothing is worse than before */
                assert_false(f->info.set_aside);
                assert_int_equal(load(f), 0);
                assert_true(f->loaded.count >= (fresh ? 0 : ROWS));
                assert_true(!stored || find(f, "op-n")->sequence == n);
                close_store(f);
        }
        print_message("%s%s: %ld allocations, %ld opens refused\n", fresh ? "fresh" : "existing",
                      stays_away ? ", memory stays away" : "", n, failed);
        assert_true(n > 100);
}

static void test_no_memory(void **state) {
        without_memory(*state, false, false, 1);
}

static void test_no_memory_stays(void **state) {
        without_memory(*state, false, true, 7);
}

static void test_no_memory_fresh(void **state) {
        without_memory(*state, true, false, 7);
}

static int set_up_memory(void) {
        sqlite3_mem_methods methods;

        if (sqlite3_config(SQLITE_CONFIG_GETMALLOC, &real_memory) != SQLITE_OK)
                return -1;
        methods = real_memory;
        methods.xMalloc = memory_new;
        methods.xFree = memory_free;
        methods.xRealloc = memory_resize;
        return sqlite3_config(SQLITE_CONFIG_MALLOC, &methods) == SQLITE_OK ? 0 : -1;
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)
#define TEST_ON_DISK(function) cmocka_unit_test_setup_teardown(function, setup_disk, teardown_disk)

int main(void) {
        const struct CMUnitTest tests[] = {
                TEST(test_corrupt),
                TEST(test_set_aside_again),
                TEST(test_random_damage),
                TEST(test_log_survives),
                TEST(test_log_garbage),
                TEST(test_log_torn),
                TEST(test_log_without_database),
                TEST(test_backup_brought_back),
                TEST(test_kill),
                TEST_ON_DISK(test_full_disk),
                TEST_ON_DISK(test_reserve_is_kept),
                TEST_ON_DISK(test_full_disk_without_reserve),
                TEST_ON_DISK(test_open_on_full_disk),
                TEST_ON_DISK(test_small_disk),
                TEST_ON_DISK(test_readonly_disk),
                TEST(test_readonly_directory),
                TEST(test_readonly_database),
                TEST(test_no_memory),
                TEST(test_no_memory_stays),
                TEST(test_no_memory_fresh),
        };

        if (set_up_memory() < 0)
                return 1;
        mounts_work = !why_no_mounts();
        return cmocka_run_group_tests(tests, NULL, NULL);
}
