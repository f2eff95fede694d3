/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The directory, the lock, and files that are set aside.
 *
 * SQLite's own lock would keep a second agent out, too, but it can't say who holds it, and it is taken only after
 * the file was opened. So the first thing is a lock file with the holder's pid in it. It is never removed: a name
 * that is unlinked while somebody waits for it gives two holders.
 *
 * Two things about the log (agent.db-wal) SQLite does not do for us:
 *  - A log whose header is damaged is silently taken for an empty one, and all turns since the last checkpoint are
 *    gone without a word. A header is synced before anything that follows it counts, so a bad one is damage, never
 *    the trace of a crash (all zero: never synced, nothing counts). The store is then corrupt. A frame damaged
 *    within the log still ends it there; that can't be told from the torn end that a power cut may leave.
 *  - We keep the log's blocks over a clean stop, for a restart on a full disk (store_reserve.c). A log at rest whose
 *    frames are still good would be played into whatever database lies beside it, for example one that an operator
 *    brought back from a backup. So after the last checkpoint its header is made zero: empty, like a removed one.
 *
 * Reading agent.db through a descriptor of our own while SQLite has it open would drop SQLite's locks at close
 * (POSIX locks belong to the process): everything here happens before it is opened or after it is closed.
 */
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "store_internal.h"

#define DATABASE_NAME "agent.db"
#define LOG_NAME DATABASE_NAME "-wal"
#define LOCK_NAME "agent.lock"
#define LOG_HEADER_BYTES 32
#define ASIDE_MAX 1000

/* ---- the lock ----------------------------------------------------------------------------------------------- */

/* The pid in the lock file, 0 when there is none that makes sense. */
static uint64_t lock_read_pid(int fd) {
        char text[24];
        uint64_t pid;
        ssize_t size = pread(fd, text, sizeof(text) - 1, 0);

        if (size <= 0)
                return 0;
        text[size] = '\0';
        text[strcspn(text, "\n")] = '\0';
        return base_parse_u64(text, 1, INT32_MAX, &pid) < 0 ? 0 : pid;
}

/* Only for people, and on a full disk it may not be possible: then the message names no pid, or an old one. */
static void lock_write_pid(int fd) {
        char text[24];
        int size = snprintf(text, sizeof(text), "%ld\n", (long)getpid());

        if (pwrite(fd, text, (size_t)size, 0) != size || ftruncate(fd, size) < 0)
                return;
}

static int lock_refused(struct store *store, const char *directory, int fd) {
        uint64_t pid = lock_read_pid(fd);

        if (pid > 0)
                return store_set_error(store, STORE_LOCKED,
                                       "%.160s: another agent works on this directory (pid %" PRIu64 ", by %s)",
                                       directory, pid, LOCK_NAME);
        return store_set_error(store, STORE_LOCKED, "%.160s: another agent works on this directory (it holds %s)",
                               directory, LOCK_NAME);
}

static int lock_take(struct store *store, const char *directory) {
        _cleanup_close_ int fd =
                openat(store->directory_fd, LOCK_NAME, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

        if (fd < 0)
                return store_fail_errno(store, errno, "%.200s: cannot open %s", directory, LOCK_NAME);
        if (flock(fd, LOCK_EX | LOCK_NB) < 0)
                return errno == EWOULDBLOCK
                               ? lock_refused(store, directory, fd)
                               : store_fail_errno(store, errno, "%.200s: cannot lock %s", directory, LOCK_NAME);
        lock_write_pid(fd);
        store->lock_fd = TAKE_FD(fd);
        return 0;
}

int store_files_open(struct store *store, const char *directory) {
        int size = snprintf(store->path, sizeof(store->path), "%s/" DATABASE_NAME, directory);

        if (size < 0 || (size_t)size >= sizeof(store->path))
                return store_fail_errno(store, ENAMETOOLONG, "%.100s…: the state directory's path", directory);
        store->directory_fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (store->directory_fd < 0 && errno == ENOENT)
                return store_set_error(
                        store, -ENOENT,
                        "%.120s: the state directory does not exist; systemd makes it "
                        "(StateDirectory=), elsewhere make it by hand, mode 0700, owned by the agent's user",
                        directory);
        if (store->directory_fd < 0)
                return store_fail_errno(store, errno, "%.200s: cannot open the state directory", directory);
        return lock_take(store, directory);
}

void store_files_close(struct store *store) {
        if (store->lock_fd >= 0)
                close(store->lock_fd);
        if (store->directory_fd >= 0)
                close(store->directory_fd);
        store->lock_fd = store->directory_fd = -1;
}

/* ---- the log's header: https://sqlite.org/fileformat2.html#walformat ------------------------------------------ */

static uint32_t read_u32(const uint8_t *bytes, bool big_endian) {
        uint32_t a = bytes[0], b = bytes[1], c = bytes[2], d = bytes[3];

        return big_endian ? a << 24 | b << 16 | c << 8 | d : d << 24 | c << 16 | b << 8 | a;
}

static bool log_header_is_sound(const uint8_t header[LOG_HEADER_BYTES]) {
        static const uint8_t zero[LOG_HEADER_BYTES];
        uint32_t magic = read_u32(header, true), sum_0 = 0, sum_1 = 0;

        if (memcmp(header, zero, sizeof(zero)) == 0)
                return true;
        if ((magic & ~UINT32_C(1)) != 0x377f0682 || read_u32(header + 4, true) != 3007000)
                return false;
        for (size_t i = 0; i < 24; i += 8) { /* the lowest bit of the magic: byte order of the checksum's words */
                sum_0 += read_u32(header + i, magic & 1) + sum_1;
                sum_1 += read_u32(header + i + 4, magic & 1) + sum_0;
        }
        return sum_0 == read_u32(header + 24, true) && sum_1 == read_u32(header + 28, true);
}

/* -1: there is none */
int64_t store_files_log_size(struct store *store) {
        struct stat status;

        if (fstatat(store->directory_fd, LOG_NAME, &status, AT_SYMLINK_NOFOLLOW) < 0)
                return -1;
        return status.st_size;
}

static int log_check(struct store *store) {
        uint8_t header[LOG_HEADER_BYTES];
        ssize_t size;
        _cleanup_close_ int fd = openat(store->directory_fd, LOG_NAME, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

        if (fd < 0)
                return errno == ENOENT ? 0 : store_fail_errno(store, errno, "%s-wal: cannot open", store->path);
        size = pread(fd, header, sizeof(header), 0);
        if (size < 0)
                return store_fail_errno(store, errno, "%s-wal: cannot read", store->path);
        if (size == (ssize_t)sizeof(header) && !log_header_is_sound(header))
                return store_set_error(store, -EUCLEAN, "%s-wal: the log's header is damaged", store->path);
        return 0;
}

void store_files_rest_log(struct store *store) {
        static const uint8_t zero[LOG_HEADER_BYTES];
        _cleanup_close_ int fd = openat(store->directory_fd, LOG_NAME, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);

        /* When it can't be done the log stays as it is: good frames that the database has already. */
        if (fd < 0 || pwrite(fd, zero, sizeof(zero), 0) != (ssize_t)sizeof(zero) || fdatasync(fd) < 0)
                return;
}

/* ---- the database file ---------------------------------------------------------------------------------------- */

/* Made here and not by SQLite: its mode would hang on the umask. The log takes its mode from this file. */
static int database_make(struct store *store) {
        _cleanup_close_ int fd =
                openat(store->directory_fd, DATABASE_NAME, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);

        if (fd < 0 || fchmod(fd, 0600) < 0 || fsync(store->directory_fd) < 0)
                return store_fail_errno(store, errno, "%s: cannot make the database", store->path);
        return 0;
}

int store_files_prepare(struct store *store) {
        struct stat status = {};
        bool missing = fstatat(store->directory_fd, DATABASE_NAME, &status, AT_SYMLINK_NOFOLLOW) < 0;

        if (missing && errno != ENOENT)
                return store_fail_errno(store, errno, "%s: cannot look at it", store->path);
        if (!missing && !S_ISREG(status.st_mode))
                return store_set_error(store, -EINVAL, "%s: is not a regular file", store->path);
        /* SQLite would play such a log into the new, empty database. Also the trace of a crash while setting aside. */
        if (status.st_size == 0 && store_files_log_size(store) > 0)
                return store_set_error(store, -EUCLEAN, "%s: there is a log (-wal) but no database", store->path);
        if (missing)
                return database_make(store);
        return log_check(store);
}

/* ---- setting aside -------------------------------------------------------------------------------------------- */

static int aside_rename(struct store *store, const char *aside, const char *suffix) {
        char from[sizeof(DATABASE_NAME) + 16], to[100];

        snprintf(from, sizeof(from), DATABASE_NAME "%s", suffix);
        snprintf(to, sizeof(to), "%s%s", aside, suffix);
        if (renameat(store->directory_fd, from, store->directory_fd, to) < 0 && errno != ENOENT)
                return store_fail_errno(store, errno, "%.150s: it is corrupt (%.60s), and cannot be renamed to %s",
                                        store->path, store->error, to);
        return 0;
}

/* A name under which neither a database nor a log lies. */
static int aside_name(struct store *store, uint64_t real_usec, char *name, size_t size) {
        time_t seconds = (time_t)(real_usec / USEC_PER_SEC);
        struct tm utc;
        char date[40], log_name[100];

        if (!gmtime_r(&seconds, &utc) || strftime(date, sizeof(date), "%Y-%m-%d", &utc) == 0)
                base_text_copy(date, sizeof(date), "undated");
        for (int n = 1; n <= ASIDE_MAX; n++) {
                snprintf(name, size, DATABASE_NAME ".corrupt-%s-%d", date, n);
                snprintf(log_name, sizeof(log_name), "%s-wal", name);
                if (faccessat(store->directory_fd, name, F_OK, AT_SYMLINK_NOFOLLOW) < 0 && errno == ENOENT &&
                    faccessat(store->directory_fd, log_name, F_OK, AT_SYMLINK_NOFOLLOW) < 0 && errno == ENOENT)
                        return 0;
        }
        return store_fail_errno(store, EEXIST, "%s: it is corrupt, and %d were set aside today already", store->path,
                                ASIDE_MAX);
}

int store_files_set_aside(struct store *store, uint64_t real_usec, struct store_info *info) {
        static const char *const suffixes[] = {"", "-wal", "-journal"};
        char name[80];
        int r;

        r = aside_name(store, real_usec, name, sizeof(name));
        /* The database first: what a crash leaves then is a log without one, which is known for what it is. */
        for (size_t i = 0; r >= 0 && i < ARRAY_SIZE(suffixes); i++)
                r = aside_rename(store, name, suffixes[i]);
        if (r < 0)
                return r;
        if (fsync(store->directory_fd) < 0)
                return store_fail_errno(store, errno, "%s: cannot sync the directory", store->path);
        info->set_aside = true;
        base_text_copy(info->aside, sizeof(info->aside), name);
        base_text_copy(info->aside_reason, sizeof(info->aside_reason), store->error);
        return 0;
}
