/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver_place: hold a claimed jar path and working directory against the work directory
 *
 * A Worker puts each driver into <work directory>/<driver id> and gives the jar's path there as the second argument
 * after DriverWrapper (DriverRunner.createWorkingDirectory, downloadUserJar). The Worker may spell the work
 * directory otherwise than our configuration does, through links or "..", so the head of the path is compared by
 * device and inode, not by text. The tail is compared by text and strictly: exactly one element, the driver id,
 * and at most one more, the jar. The id's directory must be no link: a job can put links into the work directory,
 * and a link named like one driver must not lead to another.
 *
 * A driver directory that is gone is no reason to refuse: Spark's clean-up of old directories can take it away
 * from a running driver, and what does not exist leads nowhere else.
 */
#include "driver_internal.h"

#include <fcntl.h>
#include <sys/stat.h>

#define DELETED_SUFFIX " (deleted)" /* d_path() adds it to a removed directory's name */

/* find_tail() - what stands after the shortest head of `path` that is the work directory; NULL when none is. */
static const char *find_tail(const struct driver_place *place, const char *path) {
        char head[PATH_MAX];
        struct stat st;

        if (!base_text_copy(head, sizeof(head), path))
                return NULL;
        for (char *slash = strchr(head + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
                *slash = 0;
                if (stat(head, &st) < 0)
                        return NULL;
                if (st.st_dev == place->device && st.st_ino == place->inode)
                        return path + (slash - head) + 1;
                *slash = '/';
        }
        return NULL;
}

/* check_directory() - is <work>/<id> a directory itself, or gone? */
static const char *check_directory(const struct driver_place *place, const char *driver_id) {
        struct stat st;

        if (fstatat(place->fd, driver_id, &st, AT_SYMLINK_NOFOLLOW) < 0)
                return errno == ENOENT ? NULL : "its driver directory can't be looked at";
        if (S_ISLNK(st.st_mode))
                return "its driver directory is a link";
        return S_ISDIR(st.st_mode) ? NULL : "its driver directory is none";
}

const char *driver_place_find_id(const struct driver_place *place, const char *jar,
                                 char ret_driver_id[DRIVER_ID_MAX + 1]) {
        char driver_id[DRIVER_ID_MAX + 1];
        const char *tail, *slash, *refusal;
        size_t size;

        if (place->fd < 0)
                return "the work directory can't be read";
        if (jar[0] != '/')
                return "its jar path is not absolute";
        tail = find_tail(place, jar);
        if (!tail)
                return "its jar is not in the work directory";
        slash = strchr(tail, '/');
        size = slash ? (size_t)(slash - tail) : strlen(tail);
        if (!base_driver_id_is_valid(tail, size))
                return "the driver id in its jar path is not valid";
        if (slash &&
            (slash[1] == 0 || strchr(slash + 1, '/') || strcmp(slash + 1, ".") == 0 || strcmp(slash + 1, "..") == 0))
                return "its jar is not directly in a driver directory";
        memcpy(driver_id, tail, size);
        driver_id[size] = 0;
        refusal = check_directory(place, driver_id);
        if (!refusal)
                memcpy(ret_driver_id, driver_id, size + 1);
        return refusal;
}

const char *driver_place_check_cwd(int process_fd, const char *driver_id) {
        char path[PATH_MAX];
        const size_t suffix_size = strlen(DELETED_SUFFIX);
        const char *last;
        ssize_t size = readlinkat(process_fd, "cwd", path, sizeof(path) - 1);

        if (size < 0)
                return NULL; /* needs the right to trace the process: mostly not there */
        path[size] = 0;
        if ((size_t)size > suffix_size && strcmp(path + size - suffix_size, DELETED_SUFFIX) == 0)
                path[(size_t)size - suffix_size] = 0;
        last = strrchr(path, '/');
        last = last ? last + 1 : path;
        return strcmp(last, driver_id) == 0 ? NULL : "its working directory is another than its driver id's";
}
