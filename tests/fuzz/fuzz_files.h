/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * fuzz_files: a directory of the process's own, in memory where there is a /dev/shm, gone when the process ends
 */
#include "fuzz.h"

#include <fcntl.h>
#include <ftw.h>
#include <sys/stat.h>

static char fuzz_directory[64];

static int fuzz_remove_entry(const char *path, const struct stat *status, int type, struct FTW *place) {
        (void)status;
        (void)type;
        (void)place;
        return remove(path);
}

static inline void fuzz_remove_below(const char *path) {
        (void)nftw(path, fuzz_remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static inline void fuzz_remove_directory(void) {
        fuzz_remove_below(fuzz_directory);
}

/* fuzz_make_directory() - once; `fuzz_directory` is its path. */
static inline void fuzz_make_directory(void) {
        if (fuzz_directory[0])
                return;
        (void)base_text_copy(fuzz_directory, sizeof(fuzz_directory),
                             access("/dev/shm", W_OK) == 0 ? "/dev/shm/fuzz-XXXXXX" : "/tmp/fuzz-XXXXXX");
        FUZZ_CHECK(mkdtemp(fuzz_directory));
        FUZZ_CHECK(atexit(fuzz_remove_directory) == 0);
}

/* fuzz_put_file() - make or replace `name` below `directory_fd` (AT_FDCWD: a path). */
static inline void fuzz_put_file(int directory_fd, const char *name, struct span bytes) {
        _cleanup_close_ int fd = openat(directory_fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

        FUZZ_CHECK(fd >= 0);
        FUZZ_CHECK(write(fd, bytes.data, bytes.size) == (ssize_t)bytes.size);
}
