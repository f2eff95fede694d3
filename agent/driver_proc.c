/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver_proc: read one process's files below the process directory
 *
 * All is read through a descriptor of the process's own directory: in a real /proc it stays bound to that very
 * process, so a reused pid can't slip in between two reads (ESRCH instead). A built tree gives no such promise,
 * and a directory can be opened after the reuse, so the scan compares start times as well.
 *
 * Trap: a process whose first thread has ended shows state Z and an empty cmdline, and lives on in its other
 * threads. Its arguments are then read through one of those.
 */
#include "driver_internal.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#define READ_CHUNK (16U * 1024)
#define STATUS_MAX 4096U
#define TASKS_MAX 16 /* threads that are tried for a dead first thread's arguments */

bool driver_proc_vanished(int error) {
        return error == -ENOENT || error == -ESRCH;
}

int driver_proc_open(int proc_fd, int32_t pid, uid_t uid, int *ret_fd) {
        _cleanup_close_ int fd = -1;
        char name[16];
        struct stat st;

        snprintf(name, sizeof(name), "%" PRId32, pid);
        if (fstatat(proc_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
                return -errno;
        if (st.st_uid != uid || !S_ISDIR(st.st_mode))
                return 1;
        fd = openat(proc_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        /* Again, of what is open now: the pid may have gone to somebody else meanwhile. */
        if (fstat(fd, &st) < 0)
                return -errno;
        if (st.st_uid != uid)
                return 1;
        *ret_fd = TAKE_FD(fd);
        return 0;
}

/* open_file() - only regular files, and O_NONBLOCK so that a FIFO in a built tree can't hang the loop. */
static int open_file(int directory_fd, const char *name) {
        int fd = openat(directory_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

        return fd < 0 ? -errno : fd;
}

static ssize_t read_some(int fd, char *bytes, size_t size) {
        ssize_t n;

        do
                n = read(fd, bytes, size);
        while (n < 0 && errno == EINTR);
        return n < 0 ? -errno : n;
}

/* read_small() - the first `size` bytes of a file that the kernel gives in one piece. */
static ssize_t read_small(int directory_fd, const char *name, char *bytes, size_t size) {
        _cleanup_close_ int fd = open_file(directory_fd, name);
        size_t have = 0;

        if (fd < 0)
                return fd;
        while (have < size) {
                ssize_t n = read_some(fd, bytes + have, size - have);

                if (n < 0)
                        return n;
                if (n == 0)
                        break;
                have += (size_t)n;
        }
        return (ssize_t)have;
}

int driver_proc_read_stat(int process_fd, struct driver_stat *ret) {
        char bytes[STATUS_MAX];
        ssize_t size = read_small(process_fd, "stat", bytes, sizeof(bytes));

        return size < 0 ? (int)size : driver_stat_parse(bytes, (size_t)size, ret);
}

int driver_proc_stat(int proc_fd, int32_t pid, struct driver_stat *ret) {
        char name[32], bytes[STATUS_MAX];
        ssize_t size;

        snprintf(name, sizeof(name), "%" PRId32 "/stat", pid);
        size = read_small(proc_fd, name, bytes, sizeof(bytes));
        return size < 0 ? (int)size : driver_stat_parse(bytes, (size_t)size, ret);
}

void driver_proc_read_comm(int proc_fd, int32_t pid, char *ret, size_t size) {
        char name[32], bytes[64];
        ssize_t have;

        snprintf(name, sizeof(name), "%" PRId32 "/comm", pid);
        have = read_small(proc_fd, name, bytes, sizeof(bytes));
        if (have > 0 && bytes[have - 1] == '\n')
                have--;
        base_text_escape(ret, size, bytes, have > 0 ? (size_t)have : 0);
}

int driver_proc_check_uids(int process_fd, uid_t uid) {
        char bytes[STATUS_MAX];
        uint32_t uids[4];
        ssize_t size = read_small(process_fd, "status", bytes, sizeof(bytes));
        int r;

        if (size < 0)
                return (int)size;
        r = driver_status_parse_uids(bytes, (size_t)size, uids);
        if (r < 0)
                return r;
        for (size_t i = 0; i < ARRAY_SIZE(uids); i++)
                if (uids[i] != uid)
                        return 1;
        return 0;
}

/* read_all() - append a file up to the buffer's maximum. */
static int read_all(int directory_fd, const char *name, struct buffer *bytes, bool *ret_cut) {
        _cleanup_close_ int fd = open_file(directory_fd, name);
        char chunk[READ_CHUNK];

        if (fd < 0)
                return fd;
        for (;;) {
                size_t room = bytes->max - bytes->size;
                ssize_t n = read_some(fd, chunk, sizeof(chunk));
                int r;

                if (n < 0)
                        return (int)n;
                if (n == 0 || room == 0) {
                        *ret_cut = n > 0;
                        return 0;
                }
                r = buffer_append(bytes, chunk, base_min_u64((uint64_t)n, room));
                if (r < 0)
                        return r;
                if ((size_t)n > room) {
                        *ret_cut = true;
                        return 0;
                }
        }
}

/* read_task_argv() - through a thread that still has the process's memory. */
static int read_task_argv(int process_fd, struct buffer *bytes, bool *ret_cut) {
        int tasks_fd = openat(process_fd, "task", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        struct dirent *entry;
        unsigned tried = 0;
        int r = 0;
        DIR *tasks;

        if (tasks_fd < 0)
                return -errno;
        tasks = fdopendir(tasks_fd);
        if (!tasks) {
                r = -errno;
                close(tasks_fd);
                return r;
        }
        while (bytes->size == 0 && tried < TASKS_MAX && (entry = readdir(tasks))) {
                char path[sizeof(entry->d_name) + sizeof("/cmdline")];

                if (entry->d_name[0] < '0' || entry->d_name[0] > '9')
                        continue;
                tried++;
                snprintf(path, sizeof(path), "%s/cmdline", entry->d_name);
                r = read_all(dirfd(tasks), path, bytes, ret_cut);
                if (r < 0 && !driver_proc_vanished(r))
                        break;
                r = 0;
        }
        closedir(tasks);
        return r;
}

int driver_proc_read_argv(int process_fd, const struct driver_stat *stat, struct buffer *bytes, bool *ret_cut) {
        bool cut = false;
        int r;

        buffer_consume(bytes, bytes->size);
        r = read_all(process_fd, "cmdline", bytes, &cut);
        if (r == 0 && bytes->size == 0 && stat->threads > 1)
                r = read_task_argv(process_fd, bytes, &cut);
        if (r < 0)
                return r;
        *ret_cut = cut;
        return 0;
}

uint64_t driver_proc_read_boot(int proc_fd, struct buffer *bytes) {
        uint64_t seconds;
        bool cut;

        buffer_consume(bytes, bytes->size);
        if (read_all(proc_fd, "stat", bytes, &cut) < 0 ||
            driver_boot_parse((const char *)bytes->data, bytes->size, &seconds) < 0)
                return 0;
        return seconds * USEC_PER_SEC;
}
