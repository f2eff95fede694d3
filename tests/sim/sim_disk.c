/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk below SQLite: a VFS around SQLite's own that keeps, for each file, what was flushed and which sectors
 * were written since. A process that dies leaves all that it wrote (the kernel has it); a power cut leaves, of each
 * sector written since the last flush, the old or the new content, as the seed says. Writes and flushes can fail; of
 * a flush that failed nobody knows what reached the disk.
 */
#include "sim.h"

#define SECTOR 512
#define FILES_MAX 4
#define BYTES_MAX (8 * 1024 * 1024)

struct disk_file {
        char path[160];
        uint8_t *present, *flushed;
        size_t size, flushed_size, allocated;
        uint8_t *dirty;         /* one byte a sector */
        bool any_dirty;
};

struct file {
        sqlite3_file base;
        struct disk_file *disk; /* NULL: none of ours */
        sqlite3_file *real;
};

static struct disk_file files[FILES_MAX];
static sqlite3_vfs *real_vfs, vfs;
static unsigned fail_permille, operations_left = UINT_MAX;
static bool fail_full;
static enum sim_outage outage;

enum { CLEAN, DIRTY, STUCK }; /* a sector: as flushed; to be flushed; not flushed, and taken for clean */

void sim_disk_outage(enum sim_outage kind) {
        outage = kind;
}

bool sim_disk_works(void) {
        return outage == OUTAGE_NONE;
}

void sim_disk_fail(unsigned permille, bool full) {
        fail_permille = permille;
        fail_full = full;
}

void sim_disk_die_after(unsigned operations) {
        operations_left = operations;
}

void sim_disk_revive(void) {
        operations_left = UINT_MAX;
        fail_permille = 0;
}

/* The process is dead: nothing more reaches the kernel. */
static bool is_dead(void) {
        if (operations_left == UINT_MAX)
                return false;
        if (operations_left == 0)
                return true;
        operations_left--;
        return false;
}

static bool fails(void) {
        return fail_permille > 0 && sim_chance(fail_permille);
}

/* A full disk still takes a block that is written over itself (not on a file system that copies on write; there the
 * store starts all the same, and only what a flush that failed had left is then at stake). */
static bool is_rewrite(const struct disk_file *disk, const void *bytes, size_t size, size_t at) {
        return disk && at + size <= disk->size && memcmp(disk->present + at, bytes, size) == 0;
}

static bool write_fails(bool rewrites, bool *ret_full) {
        *ret_full = outage == OUTAGE_FULL || (outage == OUTAGE_NONE && fail_full);
        return (outage == OUTAGE_FULL && !rewrites) || outage == OUTAGE_READ_ONLY || outage == OUTAGE_EIO || fails();
}

/* ---- what is on the disk ------------------------------------------------------------------------------------------------ */

static void disk_grow(struct disk_file *disk, size_t size) {
        size_t allocated = disk->allocated > 0 ? disk->allocated : 128 * 1024;

        if (size > BYTES_MAX)
                abort();
        if (size <= disk->allocated)
                return;
        while (allocated < size)
                allocated *= 2;
        disk->present = realloc(disk->present, allocated);
        disk->flushed = realloc(disk->flushed, allocated);
        disk->dirty = realloc(disk->dirty, allocated / SECTOR + 1);
        if (!disk->present || !disk->flushed || !disk->dirty)
                abort();
        memset(disk->present + disk->allocated, 0, allocated - disk->allocated);
        memset(disk->flushed + disk->allocated, 0, allocated - disk->allocated);
        memset(disk->dirty + disk->allocated / SECTOR, 0, (allocated - disk->allocated) / SECTOR + 1);
        disk->allocated = allocated;
}

static void disk_write(struct disk_file *disk, const void *bytes, size_t size, size_t at) {
        disk_grow(disk, at + size);
        memcpy(disk->present + at, bytes, size);
        if (size > 0)
                memset(disk->dirty + at / SECTOR, DIRTY, (at + size - 1) / SECTOR - at / SECTOR + 1);
        disk->size = base_max_u64(disk->size, at + size);
        disk->any_dirty = true;
}

static void disk_truncate(struct disk_file *disk, size_t size) {
        disk_grow(disk, size);
        if (size < disk->size)
                memset(disk->present + size, 0, disk->size - size);
        disk->size = size;
        disk->any_dirty = true;
}

static void disk_flush(struct disk_file *disk) {
        size_t sectors = (base_max_u64(disk->size, disk->flushed_size) + SECTOR - 1) / SECTOR;

        if (!disk->any_dirty)
                return;
        disk->any_dirty = false;
        for (size_t i = 0; i < sectors; i++) {
                disk->any_dirty |= disk->dirty[i] == STUCK;
                if (disk->dirty[i] != DIRTY)
                        continue;
                memcpy(disk->flushed + i * SECTOR, disk->present + i * SECTOR, SECTOR);
                disk->dirty[i] = CLEAN;
        }
        disk->flushed_size = disk->size;
}

static void disk_flush_fails(struct disk_file *disk) {
        size_t sectors = (base_max_u64(disk->size, disk->flushed_size) + SECTOR - 1) / SECTOR;

        for (size_t i = 0; i < sectors; i++)
                if (disk->dirty[i] == DIRTY)
                        disk->dirty[i] = STUCK;
}

/* store writes to these files behind SQLite's back as well (and flushes then): take in what is there. */
static void disk_read_in(struct disk_file *disk, sqlite3_file *file) {
        sqlite3_int64 size = 0;
        uint8_t sector[SECTOR];

        if (file->pMethods->xFileSize(file, &size) != SQLITE_OK)
                return;
        disk_grow(disk, (size_t)size + SECTOR);
        for (size_t at = 0; at < (size_t)size; at += SECTOR) {
                memset(sector, 0, sizeof sector);
                (void)file->pMethods->xRead(file, sector, SECTOR, (sqlite3_int64)at);
                if (memcmp(disk->present + at, sector, SECTOR) == 0)
                        continue;
                memcpy(disk->present + at, sector, SECTOR);
                memcpy(disk->flushed + at, sector, SECTOR);
                disk->dirty[at / SECTOR] = 0;
        }
        if (disk->size != (size_t)size)
                disk->size = disk->flushed_size = (size_t)size;
}

static void cut_file(struct disk_file *disk) {
        size_t sectors = (base_max_u64(disk->size, disk->flushed_size) + SECTOR - 1) / SECTOR, kept = 0, lost = 0;
        FILE *file;

        if (!disk->any_dirty)
                return;
        for (size_t i = 0; i < sectors; i++) {
                if (!disk->dirty[i])
                        continue;
                disk->dirty[i] = 0;
                if (sim_chance(500)) {
                        memcpy(disk->flushed + i * SECTOR, disk->present + i * SECTOR, SECTOR);
                        kept++;
                } else {
                        memcpy(disk->present + i * SECTOR, disk->flushed + i * SECTOR, SECTOR);
                        lost++;
                }
        }
        disk->any_dirty = false;
        if (sim_chance(500))
                disk->flushed_size = disk->size;
        disk->size = disk->flushed_size;
        TRACE("power cut: %s: %zu sectors written, %zu lost", disk->path, kept, lost);
        file = fopen(disk->path, "r+e");
        if (!file || fwrite(disk->present, 1, disk->size, file) != disk->size || fflush(file) != 0 ||
            ftruncate(fileno(file), (off_t)disk->size) < 0 || fclose(file) != 0)
                abort();
        memset(disk->present + disk->size, 0, disk->allocated - disk->size);
        memset(disk->flushed + disk->size, 0, disk->allocated - disk->size);
}

void sim_disk_power_cut(void) {
        for (size_t i = 0; i < FILES_MAX; i++)
                if (files[i].path[0])
                        cut_file(&files[i]);
}

/* ---- methods -------------------------------------------------------------------------------------------------------------- */

static int file_close(sqlite3_file *base) {
        struct file *file = (struct file *)base;

        return file->real->pMethods ? file->real->pMethods->xClose(file->real) : SQLITE_OK;
}

static int file_read(sqlite3_file *base, void *bytes, int size, sqlite3_int64 at) {
        struct file *file = (struct file *)base;

        return file->real->pMethods->xRead(file->real, bytes, size, at);
}

static int file_write(sqlite3_file *base, const void *bytes, int size, sqlite3_int64 at) {
        struct file *file = (struct file *)base;
        bool full;
        int code;

        if (is_dead())
                return SQLITE_IOERR_WRITE;
        if (write_fails(is_rewrite(file->disk, bytes, (size_t)size, (size_t)at), &full))
                return full ? SQLITE_FULL : outage == OUTAGE_NONE && sim_chance(200) ? SQLITE_IOERR_NOMEM : SQLITE_IOERR_WRITE;
        code = file->real->pMethods->xWrite(file->real, bytes, size, at);
        if (code == SQLITE_OK && file->disk)
                disk_write(file->disk, bytes, (size_t)size, (size_t)at);
        return code;
}

static int file_truncate(sqlite3_file *base, sqlite3_int64 size) {
        struct file *file = (struct file *)base;
        int code;

        if (is_dead() || outage == OUTAGE_READ_ONLY || outage == OUTAGE_EIO || fails())
                return SQLITE_IOERR_TRUNCATE;
        code = file->real->pMethods->xTruncate(file->real, size);
        if (code == SQLITE_OK && file->disk)
                disk_truncate(file->disk, (size_t)size);
        return code;
}

static int file_sync(sqlite3_file *base, int flags) {
        struct file *file = (struct file *)base;

        (void)flags;
        if (is_dead())
                return SQLITE_IOERR_FSYNC;
        if (outage == OUTAGE_EIO || outage == OUTAGE_FLUSH || fails()) {
                if (file->disk)
                        disk_flush_fails(file->disk);
                return SQLITE_IOERR_FSYNC;
        }
        if (file->disk)
                disk_flush(file->disk);
        return SQLITE_OK;
}

static int file_size(sqlite3_file *base, sqlite3_int64 *ret) {
        struct file *file = (struct file *)base;

        return file->real->pMethods->xFileSize(file->real, ret);
}

static int file_lock(sqlite3_file *base, int lock) {
        struct file *file = (struct file *)base;

        return file->real->pMethods->xLock(file->real, lock);
}

static int file_unlock(sqlite3_file *base, int lock) {
        struct file *file = (struct file *)base;

        return file->real->pMethods->xUnlock(file->real, lock);
}

static int file_check_lock(sqlite3_file *base, int *ret) {
        struct file *file = (struct file *)base;

        return file->real->pMethods->xCheckReservedLock(file->real, ret);
}

static int file_control(sqlite3_file *base, int operation, void *argument) {
        struct file *file = (struct file *)base;

        return file->real->pMethods->xFileControl(file->real, operation, argument);
}

static int file_sector_size(sqlite3_file *base) {
        struct file *file = (struct file *)base;

        return file->real->pMethods->xSectorSize(file->real);
}

/* "Powersafe overwrite" among them: a cut damages nothing beside what was written. So it is here, too. */
static int file_characteristics(sqlite3_file *base) {
        struct file *file = (struct file *)base;

        return file->real->pMethods->xDeviceCharacteristics(file->real);
}

/* Version 1: no shared memory. Exclusive locking, which the store uses, does without. */
static const sqlite3_io_methods methods = {
        .iVersion = 1,
        .xClose = file_close,
        .xRead = file_read,
        .xWrite = file_write,
        .xTruncate = file_truncate,
        .xSync = file_sync,
        .xFileSize = file_size,
        .xLock = file_lock,
        .xUnlock = file_unlock,
        .xCheckReservedLock = file_check_lock,
        .xFileControl = file_control,
        .xSectorSize = file_sector_size,
        .xDeviceCharacteristics = file_characteristics,
};

static struct disk_file *disk_of(const char *path) {
        for (size_t i = 0; path && i < FILES_MAX; i++) {
                if (strcmp(files[i].path, path) == 0)
                        return &files[i];
                if (files[i].path[0])
                        continue;
                base_text_copy(files[i].path, sizeof files[i].path, path);
                return &files[i];
        }
        return NULL;
}

static int disk_open(sqlite3_vfs *self, const char *path, sqlite3_file *base, int flags, int *ret_flags) {
        struct file *file = (struct file *)base;
        int code;

        (void)self;
        *file = (struct file){ .real = (sqlite3_file *)(file + 1) };
        code = real_vfs->xOpen(real_vfs, path, file->real, flags, ret_flags);
        if (code != SQLITE_OK)
                return code;
        file->base.pMethods = &methods;
        if (flags & (SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_WAL)) {
                file->disk = disk_of(path);
                if (file->disk)
                        disk_read_in(file->disk, file->real);
        }
        return SQLITE_OK;
}

/* SQLite seeds its generator with it when it likes; the schedule's own numbers must not hang on that. */
static int disk_random(sqlite3_vfs *self, int size, char *bytes) {
        (void)self;
        memset(bytes, 0x5a, (size_t)size);
        return size;
}

static int disk_delete(sqlite3_vfs *self, const char *path, int sync) {
        (void)self;
        (void)sync;
        return real_vfs->xDelete(real_vfs, path, 0);
}

int sim_disk_init(void) {
        if (real_vfs)
                return 0;
        real_vfs = sqlite3_vfs_find(NULL);
        if (!real_vfs)
                return -ENOENT;
        vfs = *real_vfs;
        vfs.zName = "sim";
        vfs.szOsFile = (int)sizeof(struct file) + real_vfs->szOsFile;
        vfs.xOpen = disk_open;
        vfs.xDelete = disk_delete;
        vfs.xRandomness = disk_random;
        return sqlite3_vfs_register(&vfs, 1) == SQLITE_OK ? 0 : -EIO;
}

void sim_disk_reset(const char *directory) {
        static const char *const names[] = { "agent.db", "agent.db-wal", "agent.db-journal", "agent.lock" };
        char path[200];

        for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
                (void)snprintf(path, sizeof path, "%s/%s", directory, names[i]);
                (void)unlink(path);
        }
        for (size_t i = 0; i < FILES_MAX; i++) {
                free(files[i].present);
                free(files[i].flushed);
                free(files[i].dirty);
                files[i] = (struct disk_file){ 0 };
        }
        sim_disk_revive();
        outage = OUTAGE_NONE;
        sqlite3_randomness(0, NULL);
}
