/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store on a bad disk: a layer below SQLite (a VFS over the real one) that fails the n-th operation, or cuts the
 * power there. A cut keeps what was synced; of the writes since then any subset survives, each perhaps torn at a
 * sector, so that a later one can be there and an earlier one not. A sync that fails leaves its writes behind as the
 * kernel does: it calls them clean, and no later sync writes them unless they were written again. What `done` told as
 * stored must be there after it, and no turn by half.
 */
/* In memory: the layer below is the disk, and a thousand stores are made. */
#define DIRECTORY_TEMPLATE (access("/dev/shm", W_OK) == 0 ? "/dev/shm/store-test-XXXXXX" : "/tmp/store-test-XXXXXX")

#include "event.h"
#include "store_fixture.h"

#define SECTOR 512

/* ---- the layer ---------------------------------------------------------------------------------------------- */

enum disk_fault {
        DISK_FINE,
        DISK_FAILS_ONCE,
        DISK_FAILS,     /* from the n-th on */
        DISK_POWER_CUT, /* the same, and the writes that are not synced are at stake */
};

/* One write or truncation that is not synced. */
struct disk_write {
        struct disk_write *next;
        char *path;
        int64_t offset;
        int64_t old_length; /* of the file */
        size_t old_size, new_size;
        uint8_t *old_bytes, *new_bytes; /* new_bytes NULL: truncated to `offset` */
        bool stuck;                     /* its sync failed */
        uint8_t *written_again;         /* of a stuck one, a byte for each: synced with a later write */
};

struct disk_file {
        sqlite3_file base;
        char *path;
        sqlite3_file *real;
};

static struct {
        sqlite3_vfs vfs, *real;
        enum disk_fault fault;
        long countdown, reached;
        struct disk_write *first, **last;
} disk;

static bool disk_fails(void) {
        if (disk.fault == DISK_FINE || --disk.countdown > 0)
                return false;
        disk.reached++;
        if (disk.fault == DISK_FAILS_ONCE)
                disk.fault = DISK_FINE;
        return true;
}

static void write_free(struct disk_write *write) {
        free(write->path);
        free(write->old_bytes);
        free(write->new_bytes);
        free(write->written_again);
        free(write);
}

/* `path` NULL: of all files */
static void disk_forget(const char *path) {
        struct disk_write **at = &disk.first, *write;

        while ((write = *at)) {
                if (path && strcmp(path, write->path) != 0) {
                        at = &write->next;
                        continue;
                }
                *at = write->next;
                write_free(write);
        }
        disk.last = at;
}

static bool disk_is_of(const struct disk_write *write, const char *path) {
        return strcmp(path, write->path) == 0;
}

static void disk_stick(const char *path) {
        for (struct disk_write *write = disk.first; write; write = write->next) {
                if (!disk_is_of(write, path) || write->stuck || !write->new_bytes)
                        continue;
                write->stuck = true;
                write->written_again = calloc(write->new_size + 1, 1);
                CHECK(write->written_again);
        }
}

/* `later` is on the disk: what it shares with a stuck one before it is, too. */
static void disk_cover(const struct disk_write *later) {
        for (struct disk_write *write = disk.first; write && write != later; write = write->next) {
                int64_t from, to;

                if (!write->stuck || !disk_is_of(write, later->path) || !later->new_bytes)
                        continue;
                from = write->offset > later->offset ? write->offset : later->offset;
                to = write->offset + (int64_t)write->new_size;
                if (to > later->offset + (int64_t)later->new_size)
                        to = later->offset + (int64_t)later->new_size;
                if (from < to)
                        memset(write->written_again + (from - write->offset), 1, (size_t)(to - from));
        }
}

/* A sync that worked. */
static void disk_settle(const char *path) {
        struct disk_write **at = &disk.first, *write;

        for (write = disk.first; write; write = write->next)
                if (disk_is_of(write, path) && !write->stuck)
                        disk_cover(write);
        while ((write = *at)) {
                bool open = write->stuck && memchr(write->written_again, 0, write->new_size);

                if (!disk_is_of(write, path) || open) {
                        at = &write->next;
                        continue;
                }
                *at = write->next;
                write_free(write);
        }
        disk.last = at;
}

static sqlite3_file *real_file(sqlite3_file *file) {
        return ((struct disk_file *)(void *)file)->real;
}

/* Remember what lies in [offset, offset + size) now. */
static struct disk_write *disk_note(struct disk_file *file, int64_t offset, size_t size) {
        struct disk_write *write = calloc(1, sizeof(*write));
        sqlite3_int64 length;

        CHECK(write && file->real->pMethods->xFileSize(file->real, &length) == SQLITE_OK);
        write->path = strdup(file->path);
        write->offset = offset;
        write->old_length = length;
        if (offset < length)
                write->old_size = (size_t)base_min_u64(size, (uint64_t)(length - offset));
        write->old_bytes = malloc(write->old_size + 1);
        CHECK(write->path && write->old_bytes);
        CHECK(write->old_size == 0 ||
              file->real->pMethods->xRead(file->real, write->old_bytes, (int)write->old_size, offset) == SQLITE_OK);
        *disk.last = write;
        disk.last = &write->next;
        return write;
}

static int disk_write(sqlite3_file *base, const void *bytes, int size, sqlite3_int64 offset) {
        struct disk_file *file = (struct disk_file *)(void *)base;
        struct disk_write *write;

        if (disk_fails())
                return disk.reached % 2 ? SQLITE_IOERR_WRITE : SQLITE_FULL;
        write = disk_note(file, offset, (size_t)size);
        write->new_size = (size_t)size;
        write->new_bytes = malloc((size_t)size);
        CHECK(write->new_bytes);
        memcpy(write->new_bytes, bytes, (size_t)size);
        return file->real->pMethods->xWrite(file->real, bytes, size, offset);
}

static int disk_truncate(sqlite3_file *base, sqlite3_int64 size) {
        struct disk_file *file = (struct disk_file *)(void *)base;

        if (disk_fails())
                return SQLITE_IOERR_TRUNCATE;
        disk_note(file, size, SIZE_MAX);
        return file->real->pMethods->xTruncate(file->real, size);
}

static int disk_sync(sqlite3_file *base, int flags) {
        struct disk_file *file = (struct disk_file *)(void *)base;

        (void)flags; /* the real disk need not work for this */
        if (disk_fails()) {
                disk_stick(file->path);
                return SQLITE_IOERR_FSYNC;
        }
        disk_settle(file->path);
        return SQLITE_OK;
}

static int disk_read(sqlite3_file *base, void *bytes, int size, sqlite3_int64 offset) {
        if (disk_fails())
                return SQLITE_IOERR_READ;
        return real_file(base)->pMethods->xRead(real_file(base), bytes, size, offset);
}

static int disk_close(sqlite3_file *base) {
        struct disk_file *file = (struct disk_file *)(void *)base;
        int code = file->real->pMethods->xClose(file->real);

        free(file->path);
        free(file->real);
        return code;
}

static int disk_file_size(sqlite3_file *base, sqlite3_int64 *size) {
        return real_file(base)->pMethods->xFileSize(real_file(base), size);
}

static int disk_lock(sqlite3_file *base, int lock) {
        return real_file(base)->pMethods->xLock(real_file(base), lock);
}

static int disk_unlock(sqlite3_file *base, int lock) {
        return real_file(base)->pMethods->xUnlock(real_file(base), lock);
}

static int disk_check_lock(sqlite3_file *base, int *result) {
        return real_file(base)->pMethods->xCheckReservedLock(real_file(base), result);
}

static int disk_control(sqlite3_file *base, int operation, void *argument) {
        return real_file(base)->pMethods->xFileControl(real_file(base), operation, argument);
}

static int disk_sector_size(sqlite3_file *base) {
        return real_file(base)->pMethods->xSectorSize(real_file(base));
}

static int disk_characteristics(sqlite3_file *base) {
        return real_file(base)->pMethods->xDeviceCharacteristics(real_file(base));
}

/* Version 1: no shared memory, which the store does not need. */
static const sqlite3_io_methods disk_methods = {
        .iVersion = 1,
        .xClose = disk_close,
        .xRead = disk_read,
        .xWrite = disk_write,
        .xTruncate = disk_truncate,
        .xSync = disk_sync,
        .xFileSize = disk_file_size,
        .xLock = disk_lock,
        .xUnlock = disk_unlock,
        .xCheckReservedLock = disk_check_lock,
        .xFileControl = disk_control,
        .xSectorSize = disk_sector_size,
        .xDeviceCharacteristics = disk_characteristics,
};

static int disk_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *base, int flags, int *ret_flags) {
        struct disk_file *file = (struct disk_file *)(void *)base;
        int code;

        (void)vfs;
        *file = (struct disk_file){};
        if (disk_fails())
                return SQLITE_CANTOPEN;
        file->real = calloc(1, (size_t)disk.real->szOsFile);
        file->path = strdup(name ? name : "");
        CHECK(file->real && file->path);
        code = disk.real->xOpen(disk.real, name, file->real, flags, ret_flags);
        if (code != SQLITE_OK) {
                free(file->real);
                free(file->path);
                return code;
        }
        base->pMethods = &disk_methods;
        return SQLITE_OK;
}

static int disk_delete(sqlite3_vfs *vfs, const char *name, int sync_directory) {
        (void)vfs;
        if (disk_fails())
                return SQLITE_IOERR_DELETE;
        disk_forget(name);
        return disk.real->xDelete(disk.real, name, sync_directory);
}

static void disk_attach(void) {
        disk.real = sqlite3_vfs_find(NULL);
        disk.vfs = *disk.real;
        disk.vfs.zName = "bad-disk";
        disk.vfs.szOsFile = sizeof(struct disk_file);
        disk.vfs.xOpen = disk_open;
        disk.vfs.xDelete = disk_delete;
        disk.last = &disk.first;
        assert_int_equal(sqlite3_vfs_register(&disk.vfs, 1), SQLITE_OK);
}

static void disk_detach(void) {
        assert_int_equal(sqlite3_vfs_unregister(&disk.vfs), SQLITE_OK);
        disk_forget(NULL);
}

static void disk_arm(enum disk_fault fault, long n) {
        disk_forget(NULL);
        disk.fault = fault;
        disk.countdown = n;
        disk.reached = 0;
}

/* ---- the power cut ------------------------------------------------------------------------------------------ */

static void apply(const struct disk_write *write, int64_t offset, const uint8_t *bytes, size_t size, int64_t length) {
        int fd = open(write->path, O_WRONLY | O_CLOEXEC);

        assert_true(fd >= 0);
        if (length >= 0)
                assert_int_equal(ftruncate(fd, length), 0);
        if (size > 0)
                assert_int_equal(pwrite(fd, bytes, size, offset), (ssize_t)size);
        close(fd);
}

static void undo_all(struct disk_write *write) {
        if (!write)
                return;
        undo_all(write->next); /* the last first */
        if (!write->stuck) {
                apply(write, write->offset, write->old_bytes, write->old_size, write->old_length);
                return;
        }
        for (size_t i = 0; i < write->new_size; i++) { /* beyond the old end: nothing was there */
                static const uint8_t zero;

                if (!write->written_again[i])
                        apply(write, write->offset + (int64_t)i, i < write->old_size ? write->old_bytes + i : &zero, 1, -1);
        }
}

static void apply_again(const struct disk_write *write, size_t size) {
        if (!write->new_bytes)
                apply(write, 0, NULL, 0, write->offset);
        else if (!write->stuck) /* a stuck one stays where the failed sync left it: not on the disk */
                apply(write, write->offset, write->new_bytes, size, -1);
}

/* What the platter shows afterwards. */
static void power_cut(uint64_t *seed) {
        undo_all(disk.first);
        for (const struct disk_write *write = disk.first; write; write = write->next) {
                size_t size = write->new_size;

                if (base_random_next(seed) % 3 == 0)
                        continue; /* never got there */
                if (base_random_next(seed) % 4 == 0)
                        size = size / SECTOR > 0 ? base_random_next(seed) % (size / SECTOR) * SECTOR : 0; /* torn */
                apply_again(write, size);
        }
        disk_forget(NULL);
}

/* Go on with the numbered turns until the power is gone; returns the last that was told as stored. */
static int64_t write_turns_until_dark(struct fixture *f, int64_t told) {
        struct store_turn *turn;
        int r;

        r = try_open(f);
        if (r < 0) {
                assert_true(r == -EIO || r == -EACCES || r == -ENOSPC);
                return told;
        }
        assert_int_equal(r, 0);
        assert_false(f->info.set_aside);
        assert_true(f->info.revision >= told);
        told = f->info.revision;
        do {
                turn = numbered_turn(f, told + 1);
                r = commit(f, turn);
                told += r == 0;
        } while (r == 0);
        assert_true(r == -EIO || r == -ENOSPC || r == -EACCES);
        return told;
}

#define SCRIPT_TURNS 8

/* Open, some turns, close; the power goes at the n-th write, sync, truncation or read from its begin. True: it went. */
static bool cut_at(struct fixture *f, long n, bool fresh, uint64_t *seed) {
        int64_t told = 0;
        int r;

        remove_files(f);
        if (!fresh) {
                open_store(f);
                for (; told < 3; told++)
                        assert_int_equal(commit(f, numbered_turn(f, told + 1)), 0);
                close_store(f);
        }
        disk_arm(DISK_POWER_CUT, n);
        r = try_open(f);
        for (int i = 0; r == 0 && i < SCRIPT_TURNS; i++) {
                r = commit(f, numbered_turn(f, told + 1));
                told += r == 0;
        }
        close_store(f);
        disk.fault = DISK_FINE;
        power_cut(seed);
        assert_whole_turn(f, told);
        return disk.reached > 0;
}

static void cut_at_each(struct fixture *f, bool fresh) {
        uint64_t seed = test_seed();
        long n = 1;

        while (cut_at(f, n, fresh, &seed))
                n++;
        print_message("%ld power cuts, one at each operation of the disk in a script of %d turns\n", n - 1, SCRIPT_TURNS);
        assert_true(n > 200);
}

static void test_power_cut_at_each_operation(void **state) {
        cut_at_each(*state, false);
}

static void test_power_cut_at_each_operation_fresh(void **state) {
        cut_at_each(*state, true);
}

/* The process dies: descriptors are closed, nothing more is written. */
static void die(struct fixture *f) {
        struct store *store = f->store;

        disk.fault = DISK_FAILS;
        disk.countdown = 1;
        store->worker = event_worker_free(store->worker);
        store->turn = store_turn_free(store->turn);
        store_database_close(store, false);
        store_files_close(store);
        free(store);
        f->store = NULL;
        disk.fault = DISK_FINE;
}

/* A commit whose sync fails, and the process dies. The next one reads what the kernel has, acts on it, and syncs: now a
 * power cut must not take it, although the kernel had called it clean. */
static void test_what_is_loaded_stays(void **state) {
        struct fixture *f = *state;
        uint64_t seed = test_seed();
        int64_t loaded;
        bool reached = true;
        int result, unknown = 0;
        long n;

        for (n = 1; reached; n++) {
                remove_files(f);
                open_store(f);
                assert_int_equal(commit(f, numbered_turn(f, 1)), 0);
                disk_arm(DISK_FAILS, n);
                result = commit(f, numbered_turn(f, 2));
                reached = disk.reached > 0;
                die(f);
                open_store(f);
                assert_int_equal(load(f), 0);
                loaded = f->info.revision;
                unknown += result < 0 && loaded == 2;
                die(f);
                power_cut(&seed);
                assert_whole_turn(f, loaded);
                assert_int_equal(f->info.revision, loaded);
        }
        print_message("%ld failures of the disk; commits that failed and were found all the same: %d\n", n - 1, unknown);
        assert_true(unknown > 0);
}

static void power_cut_rounds(struct fixture *f, int rounds, bool fresh, long most) {
        uint64_t seed = test_seed();
        int64_t told = 0, turns = 0;

        for (int i = 0; i < rounds; i++) {
                if (fresh) {
                        remove_files(f);
                        told = 0;
                }
                disk_arm(DISK_POWER_CUT, 1 + (long)(base_random_next(&seed) % (uint64_t)most));
                told = write_turns_until_dark(f, told);
                close_store(f);
                disk.fault = DISK_FINE;
                power_cut(&seed);
                assert_whole_turn(f, told);
                told = f->info.revision;
                turns = fresh ? turns + told : told;
        }
        print_message("%d power cuts, %" PRId64 " turns\n", rounds, turns);
}

static void test_power_cut(void **state) {
        power_cut_rounds(*state, 300, false, 400);
}

static void test_power_cut_fresh(void **state) {
        power_cut_rounds(*state, 150, true, 250);
}

/* ---- failing operations ------------------------------------------------------------------------------------- */

static void test_power_cut_keeps_nothing_unsynced(void **state) {
        struct fixture *f = *state;
        uint64_t seed = 0;
        struct store_operation operation = plain_operation("op-1", 1);

        open_store(f);
        assert_int_equal(commit_one(f, &operation), 0);
        disk_arm(DISK_POWER_CUT, 1);
        close_store(f);
        disk.fault = DISK_FINE;
        undo_all(disk.first); /* the layer itself: what a commit wrote was synced before `done` */
        power_cut(&seed);
        open_store(f);
        assert_int_equal(load(f), 0);
        assert_int_equal(f->loaded.count, 1);
}

/* true: the fault was reached */
static bool run_on_bad_disk(struct fixture *f, enum disk_fault fault, long n, int64_t *told) {
        int r;

        disk_arm(fault, n);
        r = try_open(f);
        if (r == 0)
                r = load(f);
        if (r < 0) {
                assert_true(r == -EIO || r == -ENOSPC || r == -EACCES);
                assert_true(strlen(f->error) > 0);
        } else {
                assert_false(f->info.set_aside);
                r = commit(f, numbered_turn(f, *told + 1));
                if (r < 0) {
                        assert_true(r == -EIO || r == -ENOSPC || r == -EACCES);
                        assert_true(strlen(f->done_error) > 0);
                        disk.fault = DISK_FINE;
                        assert_int_equal(commit(f, numbered_turn(f, *told + 1)), 0);
                }
                ++*told;
        }
        close_store(f);
        disk.fault = DISK_FINE;
        return disk.reached > 0;
}

static void bad_disk_rounds(struct fixture *f, enum disk_fault fault, bool fresh) {
        int64_t told = 0;
        bool reached = true;
        long n;
        size_t descriptors = count_descriptors();

        for (n = 1; reached; n++) {
                if (fresh) {
                        remove_files(f);
                        told = 0;
                }
                reached = run_on_bad_disk(f, fault, n, &told);
                assert_int_equal(count_descriptors(), descriptors);
                assert_whole_turn(f, told);
        }
        print_message("%ld operations of the disk failed in turn\n", n);
        assert_true(n > 30);
}

static void test_fails_once(void **state) {
        bad_disk_rounds(*state, DISK_FAILS_ONCE, false);
}

static void test_fails_on(void **state) {
        bad_disk_rounds(*state, DISK_FAILS, false);
}

static void test_fails_fresh(void **state) {
        bad_disk_rounds(*state, DISK_FAILS_ONCE, true);
}

static int setup_bad_disk(void **state) {
        disk_attach();
        return setup(state);
}

static int teardown_bad_disk(void **state) {
        int r = teardown(state);

        disk_detach();
        return r;
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup_bad_disk, teardown_bad_disk)

int main(void) {
        const struct CMUnitTest tests[] = {
                TEST(test_power_cut_keeps_nothing_unsynced),
                TEST(test_power_cut),
                TEST(test_power_cut_fresh),
                TEST(test_power_cut_at_each_operation),
                TEST(test_power_cut_at_each_operation_fresh),
                TEST(test_what_is_loaded_stays),
                TEST(test_fails_once),
                TEST(test_fails_on),
                TEST(test_fails_fresh),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
