/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay: a fuzz target without a fuzzer: each file of the corpus once
 *
 * libFuzzer exists for clang alone. With this main() any compiler, valgrind or debugger runs what the fuzzers have
 * found worth keeping, so a defect that was found once stays found.
 *
 *     fuzz_NAME FILE|DIRECTORY...
 *
 * Each input is read into a heap block of its own size: a read behind its end is seen by a sanitizer.
 */
#include "fuzz.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#define INPUT_MAX (1024 * 1024)

static char current[PATH_MAX]; /* the file that is run, for the message when it breaks something */

static void on_abort(int signal_number) {
        static const char prefix[] = "replay: with ";

        (void)signal_number;
        if (write(STDERR_FILENO, prefix, sizeof(prefix) - 1) < 0 ||
            write(STDERR_FILENO, current, strlen(current)) < 0 || write(STDERR_FILENO, "\n", 1) < 0)
                return;
}

static int fail(const char *path) {
        (void)fprintf(stderr, "replay: %s: %s\n", path, strerror(errno));
        return -1;
}

static int replay_file(const char *path, int fd, size_t size) {
        _cleanup_free_ uint8_t *bytes = malloc(size > 0 ? size : 1);
        size_t used = 0;

        while (bytes && used < size) {
                ssize_t n = read(fd, bytes + used, size - used);
                if (n <= 0)
                        return fail(path);
                used += (size_t)n;
        }
        if (!bytes)
                return fail(path);
        (void)base_text_copy(current, sizeof(current), path);
        (void)LLVMFuzzerTestOneInput(bytes, size);
        return 0;
}

static int not_hidden(const struct dirent *entry) {
        return entry->d_name[0] != '.';
}

static int replay(const char *path, size_t *count);

/* By name: the order is the same on every machine. */
static int replay_directory(const char *path, size_t *count) {
        struct dirent **entries;
        int n = scandir(path, &entries, not_hidden, alphasort), r = 0;

        if (n < 0)
                return fail(path);
        for (int i = 0; i < n; i++) {
                char child[PATH_MAX];
                int length = snprintf(child, sizeof(child), "%s/%s", path, entries[i]->d_name);
                if (r == 0)
                        r = length > 0 && (size_t)length < sizeof(child) ? replay(child, count) : -1;
                free(entries[i]);
        }
        free(entries);
        return r;
}

static int replay(const char *path, size_t *count) {
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        struct stat status;

        if (fd < 0 || fstat(fd, &status) < 0)
                return fail(path);
        if (S_ISDIR(status.st_mode))
                return replay_directory(path, count);
        if (!S_ISREG(status.st_mode) || status.st_size > INPUT_MAX) {
                errno = EFBIG;
                return fail(path);
        }
        ++*count;
        return replay_file(path, fd, (size_t)status.st_size);
}

int main(int argc, char **argv) {
        const struct sigaction action = { .sa_handler = on_abort, .sa_flags = (int)(SA_RESETHAND | SA_NODEFER) };
        size_t count = 0;

        if (sigaction(SIGABRT, &action, NULL) < 0 || sigaction(SIGSEGV, &action, NULL) < 0)
                return 1;
        for (int i = 1; i < argc; i++)
                if (replay(argv[i], &count) < 0)
                        return 1;
        if (count == 0) {
                (void)fprintf(stderr, "replay: no input given\n");
                return 1;
        }
        printf("%zu inputs\n", count);
        return 0;
}
