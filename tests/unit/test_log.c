/* SPDX-License-Identifier: Apache-2.0 */
/* log: what a reader of stderr and of the journal gets, with hostile text inside. stderr is a pipe of the test's
 * own; journald is a socket of the test's own in a private mount namespace (skipped without the right to make one). */
#include "log.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <cmocka.h>

static int stderr_saved = -1, pipe_fd = -1;

static void capture_begin(void) {
        int fds[2];
        assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
        stderr_saved = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 10);
        assert_true(stderr_saved >= 0);
        assert_int_equal(dup2(fds[1], STDERR_FILENO), STDERR_FILENO);
        assert_int_equal(close(fds[1]), 0);
        pipe_fd = fds[0];
        assert_int_equal(fcntl(pipe_fd, F_SETFL, O_NONBLOCK), 0);
}

static int capture_end(void **state) {
        (void)state;
        if (stderr_saved >= 0)
                (void)dup2(stderr_saved, STDERR_FILENO);
        base_close_pointer(&stderr_saved);
        base_close_pointer(&pipe_fd);
        log_set_level(LOG_PRIORITY_INFO);
        unsetenv("JOURNAL_STREAM");
        log_open();
        return 0;
}

/* captured() - what came since the last call, as text. */
static const char *captured(void) {
        static char text[8192];
        ssize_t size = read(pipe_fd, text, sizeof(text) - 1);
        text[size > 0 ? size : 0] = '\0';
        return text;
}

/* after_time() - checks the time stamp's form and gives the rest of the line. */
static const char *after_time(const char *line) {
        static const char form[] = "0000-00-00T00:00:00.000000Z ";
        for (size_t i = 0; form[i]; i++) {
                if (form[i] == '0')
                        assert_in_range(line[i], '0', '9');
                else
                        assert_int_equal(line[i], form[i]);
        }
        return line + strlen(form);
}

static void test_line(void **state) {
        const struct log_field fields[] = {
                {"SPARK_JOB_ID", "j1"}, {"SPARK_DRIVER_ID", ""}, {"SPARK_MASTER", NULL},
                {"SPARK_STATE", "a b"}, {"OTHER", "x=\"y\""},    {"SPARK_OUTCOME", "l1\nl2\x9b"},
        };
        (void)state;
        capture_begin();
        log_write(LOG_PRIORITY_WARNING, "0123456789abcdef0123456789abcdef", fields, ARRAY_SIZE(fields), "kill %d of %s",
                  1, "x");
        assert_string_equal(after_time(captured()),
                            "warning kill 1 of x  job_id=j1 state=\"a b\" other=\"x=\\\"y\\\"\" "
                            "outcome=l1\\x0Al2\\x9B\n");
        log_write(LOG_PRIORITY_ERR, NULL, NULL, 0, "bad\nfake 2026 info line\x1b[31m \xe2\x82\xac");
        assert_string_equal(after_time(captured()), "err bad\\x0Afake 2026 info line\\x1B[31m \xe2\x82\xac\n");
}

static void test_levels(void **state) {
        static const struct {
                const char *text;
                enum log_priority level;
        } cases[] = {
                {"err", LOG_PRIORITY_ERR},   {"warning", LOG_PRIORITY_WARNING}, {"notice", LOG_PRIORITY_NOTICE},
                {"info", LOG_PRIORITY_INFO}, {"debug", LOG_PRIORITY_DEBUG},
        };
        enum log_priority level = LOG_PRIORITY_NOTICE;

        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                assert_int_equal(log_level_from_text(cases[i].text, &level), 0);
                assert_int_equal(level, cases[i].level);
                assert_string_equal(log_level_to_text(level), cases[i].text);
        }
        level = LOG_PRIORITY_NOTICE;
        assert_int_equal(log_level_from_text("INFO", &level), -EINVAL);
        assert_int_equal(log_level_from_text("", &level), -EINVAL);
        assert_int_equal(level, LOG_PRIORITY_NOTICE);

        capture_begin();
        log_debug("hidden");
        log_set_level(LOG_PRIORITY_WARNING);
        assert_int_equal(log_get_level(), LOG_PRIORITY_WARNING);
        log_write(LOG_PRIORITY_NOTICE, NULL, NULL, 0, "hidden");
        assert_string_equal(captured(), "");
        log_set_level(LOG_PRIORITY_DEBUG);
        log_debug("seen %d", 7);
        assert_string_equal(after_time(captured()), "debug seen 7\n");
}

static void test_bounds(void **state) {
        char big[20000];
        struct log_field fields[40];

        (void)state;
        memset(big, 'm', sizeof(big) - 1);
        big[sizeof(big) - 1] = '\0';
        memcpy(big + 2046, "\xe2\x82\xac", 3); /* the cut at 2048 would fall into it */
        for (size_t i = 0; i < ARRAY_SIZE(fields); i++)
                fields[i] = (struct log_field){"SPARK_X", big};
        capture_begin();
        errno = EXDEV;
        log_write(LOG_PRIORITY_INFO, NULL, NULL, 0, "%s", big);
        assert_int_equal(errno, EXDEV);
        const char *line = after_time(captured());
        assert_int_equal(strlen(line), strlen("info ") + 2046 + 1);
        log_write(LOG_PRIORITY_INFO, NULL, fields, ARRAY_SIZE(fields), "%s", big);
        line = captured();
        assert_true(strlen(line) <= PIPE_BUF);
        assert_int_equal(line[strlen(line) - 1], '\n');
        assert_null(memchr(line, '\n', strlen(line) - 1));
}

static uint64_t monotonic_usec(void) {
        struct timespec now;
        (void)clock_gettime(CLOCK_MONOTONIC, &now);
        return (uint64_t)now.tv_sec * USEC_PER_SEC + (uint64_t)now.tv_nsec / 1000;
}

static void test_reader_hangs(void **state) {
        char text[4097];
        ssize_t size;
        size_t lines = 0;

        (void)state;
        capture_begin();
        uint64_t start = monotonic_usec();
        for (int i = 0; i < 5000; i++)
                log_write(LOG_PRIORITY_INFO, NULL, NULL, 0, "line %d %0100d", i, 0);
        assert_true(monotonic_usec() - start < 2 * USEC_PER_SEC); /* 0.1 s once, not for each line */
        while ((size = read(pipe_fd, text, sizeof(text) - 1)) > 0)
                for (ssize_t i = 0; i < size; i++)
                        lines += text[i] == '\n';
        assert_in_range(lines, 100, 4999);
        log_write(LOG_PRIORITY_INFO, NULL, NULL, 0, "after");
        char expected[128];
        (void)snprintf(expected, sizeof(expected), "warning %zu log lines dropped: stderr took no more\n",
                       5000 - lines);
        const char *rest = after_time(captured());
        assert_non_null(base_text_starts_with(rest, expected));
        assert_string_equal(after_time(rest + strlen(expected)), "info after\n");
}

static void test_stderr_closed(void **state) {
        (void)state;
        capture_begin();
        assert_int_equal(close(STDERR_FILENO), 0);
        log_write(LOG_PRIORITY_INFO, NULL, NULL, 0, "nobody hears this");
        assert_int_equal(dup2(stderr_saved, STDERR_FILENO), STDERR_FILENO);
        log_write(LOG_PRIORITY_INFO, NULL, NULL, 0, "end of test_stderr_closed"); /* says what was dropped */
}

/* An inherited $JOURNAL_STREAM that is not our stderr: text to stderr. */
static void test_foreign_journal_stream(void **state) {
        static const char *const cases[] = {"1:1", "", "x", "18446744073709551616:1", ":"};
        (void)state;
        capture_begin();
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                assert_int_equal(setenv("JOURNAL_STREAM", cases[i], 1), 0);
                log_open();
                log_write(LOG_PRIORITY_INFO, NULL, NULL, 0, "here");
                assert_string_equal(after_time(captured()), "info here\n");
        }
}

static void claim_stderr_is_journal(void) {
        struct stat status;
        char text[64];
        assert_int_equal(fstat(STDERR_FILENO, &status), 0);
        (void)snprintf(text, sizeof(text), "%ju:%ju", (uintmax_t)status.st_dev, (uintmax_t)status.st_ino);
        assert_int_equal(setenv("JOURNAL_STREAM", text, 1), 0);
        log_open();
}

/* Last: after unshare() this process has a /run/systemd of its own. */
static void test_journal(void **state) {
        static const struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/run/systemd/journal/socket"};
        char text[65536];
        struct log_field fields[40] = {{"SPARK_JOB_ID", "j1"}, {"SPARK_STATE", "a\nPRIORITY=0"}, {"SPARK_NONE", ""}};

        (void)state;
        if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
            mount("tmpfs", "/run", "tmpfs", 0, NULL) < 0) {
                print_message("skipped: no right to make a mount namespace\n");
                skip();
        }
        assert_int_equal(mkdir("/run/systemd", 0755), 0);
        assert_int_equal(mkdir("/run/systemd/journal", 0755), 0);
        _cleanup_close_ int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        assert_true(fd >= 0);
        assert_int_equal(bind(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
        capture_begin();
        claim_stderr_is_journal();

        log_write(LOG_PRIORITY_NOTICE, "0123456789abcdef0123456789abcdef", fields, 3, "one\n%s", "two");
        ssize_t size = recv(fd, text, sizeof(text) - 1, 0);
        assert_true(size > 0);
        text[size] = '\0';
        char expected[512];
        (void)snprintf(expected, sizeof(expected),
                       "MESSAGE=one\\x0Atwo\nPRIORITY=5\nSYSLOG_IDENTIFIER=%s\n"
                       "MESSAGE_ID=0123456789abcdef0123456789abcdef\nSPARK_JOB_ID=j1\nSPARK_STATE=a\\x0APRIORITY=0\n",
                       program_invocation_short_name);
        assert_string_equal(text, expected);
        assert_string_equal(captured(), "");

        char big[20000];
        memset(big, 'v', sizeof(big) - 1);
        big[sizeof(big) - 1] = '\0';
        for (size_t i = 0; i < ARRAY_SIZE(fields); i++)
                fields[i] = (struct log_field){"SPARK_X", big};
        log_write(LOG_PRIORITY_INFO, NULL, fields, ARRAY_SIZE(fields), "%s", big);
        size = recv(fd, text, sizeof(text) - 1, 0);
        assert_in_range(size, 2048, 20000); /* bounded */

        assert_int_equal(unlink(address.sun_path), 0); /* journald is gone: the event is not lost */
        base_close_pointer(&fd);
        log_write(LOG_PRIORITY_INFO, NULL, NULL, 0, "fallback");
        const char *rest = captured();
        if (*rest) /* libsystemd says success when there is no socket at all */
                assert_string_equal(after_time(rest), "info fallback\n");
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_teardown(test_line, capture_end),
                cmocka_unit_test_teardown(test_levels, capture_end),
                cmocka_unit_test_teardown(test_bounds, capture_end),
                cmocka_unit_test_teardown(test_reader_hangs, capture_end),
                cmocka_unit_test_teardown(test_stderr_closed, capture_end),
                cmocka_unit_test_teardown(test_foreign_journal_stream, capture_end),
                cmocka_unit_test_teardown(test_journal, capture_end),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
