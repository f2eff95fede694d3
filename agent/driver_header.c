/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver_header: which driver was it that ran a job here?
 *
 * As a driver starts, its Worker writes the command into <work directory>/<driver id>/stderr:
 *     Launch Command: "/usr/bin/java" "-cp" ... "-Dspark.yandex.job.id=42" ... "org.apache...DriverWrapper" ...
 * (DriverRunner.runDriver). It stays after the driver's end, and nothing else on the node names both ids then.
 *
 * It is a hint and no more: the job's owner can write there, and Spark neither escapes quotes nor newlines in values,
 * so the text can't be parsed, only searched. No kill and no report may rest on it.
 *
 * The newest directories only are read, and of each the first 64 KiB: the work directory can hold the drivers of
 * months. Nothing in it is trusted: no link is followed, nothing but a regular file of the expected user is read.
 */
#include "driver_internal.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#define HEADER_MAX (64U * 1024)
#define ENTRIES_MAX 16384 /* of the work directory that are looked at */
#define READ_MAX 256      /* headers that are read: the newest */
#define HEADER_START "Launch Command: "

struct entry {
        struct timespec written; /* the last time that its stderr was */
        char driver_id[DRIVER_ID_MAX + 1];
};

struct search {
        struct driver_place place;
        uid_t owner;
        struct entry *entries; /* newest first */
        size_t count;
        char pattern[256]; /* "-D<property>= with the quote before it */
};

static bool is_newer(const struct timespec *a, const struct timespec *b) {
        return a->tv_sec != b->tv_sec ? a->tv_sec > b->tv_sec : a->tv_nsec > b->tv_nsec;
}

/* keep() - insert by age; the oldest falls off the end. */
static void keep(struct search *search, const char *driver_id, const struct timespec *written) {
        size_t at = search->count;

        while (at > 0 && is_newer(written, &search->entries[at - 1].written))
                at--;
        if (at == READ_MAX)
                return;
        if (search->count < READ_MAX)
                search->count++;
        memmove(&search->entries[at + 1], &search->entries[at], (search->count - 1 - at) * sizeof(*search->entries));
        search->entries[at].written = *written;
        base_text_copy(search->entries[at].driver_id, sizeof(search->entries[at].driver_id), driver_id);
}

/* open_header() - the directory and its stderr, both the expected user's own and no links. -1: not to be had. */
static int open_header(const struct search *search, const char *driver_id, struct stat *ret_st) {
        _cleanup_close_ int directory_fd = -1, fd = -1;
        struct stat st;

        directory_fd = openat(search->place.fd, driver_id, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (directory_fd < 0 || fstat(directory_fd, &st) < 0 || st.st_uid != search->owner)
                return -1;
        /* A FIFO would block, a device could do anything: look before it is opened, and again after. */
        if (fstatat(directory_fd, "stderr", &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st.st_mode))
                return -1;
        fd = openat(directory_fd, "stderr", O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_uid != search->owner)
                return -1;
        *ret_st = st;
        return TAKE_FD(fd);
}

static void look_at(struct search *search, const char *name) {
        _cleanup_close_ int fd = -1;
        struct stat st;

        if (!base_driver_id_is_valid(name, strlen(name)))
                return;
        fd = open_header(search, name, &st);
        if (fd >= 0)
                keep(search, name, &st.st_mtim);
}

static int list(struct search *search) {
        int fd = openat(search->place.fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        struct dirent *entry;
        DIR *directory;

        if (fd < 0)
                return -errno;
        directory = fdopendir(fd);
        if (!directory) {
                int r = -errno;

                close(fd);
                return r;
        }
        for (unsigned i = 0; i < ENTRIES_MAX && (entry = readdir(directory)); i++)
                look_at(search, entry->d_name);
        closedir(directory);
        return 0;
}

/* names_job() - is the first -D<property>= of the command the job's? The service's own comes before any of the user's
 * options, as in argv. */
static bool names_job(const struct search *search, const char *header, size_t size, const char *job_id) {
        const size_t start_size = strlen(HEADER_START), id_size = strlen(job_id);
        const char *hit, *end = header + size;

        if (size < start_size || memcmp(header, HEADER_START, start_size) != 0)
                return false;
        hit = memmem(header, size, search->pattern, strlen(search->pattern));
        if (!hit)
                return false;
        hit += strlen(search->pattern);
        return (size_t)(end - hit) > id_size && memcmp(hit, job_id, id_size) == 0 && hit[id_size] == '"';
}

static bool header_names_job(const struct search *search, const char *driver_id, char *header, const char *job_id) {
        struct stat st;
        _cleanup_close_ int fd = open_header(search, driver_id, &st);
        size_t size = 0;

        if (fd < 0)
                return false;
        while (size < HEADER_MAX) {
                ssize_t n = read(fd, header + size, HEADER_MAX - size);

                if (n <= 0)
                        break;
                size += (size_t)n;
        }
        return names_job(search, header, size, job_id);
}

/* find() - read them, newest first. 0; 1: none. */
static int find(const struct search *search, const char *job_id, char ret_driver_id[DRIVER_ID_MAX + 1]) {
        _cleanup_free_ char *header = malloc(HEADER_MAX);

        if (!header)
                return -ENOMEM;
        for (size_t i = 0; i < search->count; i++) {
                if (header_names_job(search, search->entries[i].driver_id, header, job_id)) {
                        base_text_copy(ret_driver_id, DRIVER_ID_MAX + 1, search->entries[i].driver_id);
                        return 0;
                }
        }
        return 1;
}

static void search_deinit(struct search *search) {
        driver_place_close(&search->place);
        free(search->entries);
}

int driver_recent(const struct driver *driver, const char *job_id, char ret_driver_id[DRIVER_ID_MAX + 1]) {
        _cleanup_(search_deinit) struct search search = {.place = {.fd = -1}};
        int r;

        if (!base_id_is_valid(job_id, strlen(job_id), JOB_ID_MAX) ||
            (size_t)snprintf(search.pattern, sizeof(search.pattern), "\"-D%s=", driver->job_id_property) >=
                    sizeof(search.pattern))
                return -EINVAL;
        search.entries = calloc(READ_MAX, sizeof(*search.entries));
        if (!search.entries)
                return -ENOMEM;
        r = driver_place_open(driver, &search.place);
        if (r < 0)
                return r == -ENOENT ? 1 : r;
        search.owner = driver->driver_uid >= 0 ? (uid_t)driver->driver_uid : search.place.owner;
        r = list(&search);
        return r < 0 ? r : find(&search, job_id, ret_driver_id);
}
