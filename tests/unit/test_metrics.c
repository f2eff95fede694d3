/* SPDX-License-Identifier: Apache-2.0 */
/* metrics: the text must be valid for a Prometheus scraper, whatever was counted. Values are global to the program,
 * so tests count differences. */
#include "metrics.h"

#include <ftw.h>
#include <setjmp.h>
#include <sys/stat.h>
#include <cmocka.h>

/* ---- a strict reader of the exposition format 0.0.4 ------------------------------------------------- */

struct reader {
        char family[128], type[16];
        char seen[128][128]; /* families */
        size_t seen_count;
        double bucket_before, bucket_last, count;
        size_t samples;
};

static const char *read_name(const char *at, char *name, size_t size) {
        size_t length = strspn(at, "abcdefghijklmnopqrstuvwxyz_0123456789");
        assert_true(length > 0 && length < size && (*at < '0' || *at > '9'));
        memcpy(name, at, length);
        name[length] = '\0';
        return at + length;
}

static const char *read_labels(const char *at, char *value, size_t size) {
        char name[64];
        size_t used = 0;

        assert_int_equal(*at, '{');
        at = read_name(at + 1, name, sizeof(name));
        assert_int_equal(strncmp(at, "=\"", 2), 0);
        for (at += 2; *at != '"'; at++) {
                assert_true(*at && *at != '\n');
                if (*at == '\\') {
                        at++;
                        assert_true(*at == '\\' || *at == '"' || *at == 'n');
                }
                assert_true(used + 1 < size);
                value[used++] = *at;
        }
        value[used] = '\0';
        assert_int_equal(at[1], '}');
        return at + 2;
}

static void read_sample(struct reader *reader, const char *line) {
        char name[128], label[256] = "", expected[160];
        char *end;
        const char *at = read_name(line, name, sizeof(name));

        if (*at == '{')
                at = read_labels(at, label, sizeof(label));
        assert_int_equal(*at, ' ');
        double value = strtod(at + 1, &end);
        assert_true(end > at + 1 && *end == '\0');
        reader->samples++;
        if (strcmp(reader->type, "histogram") != 0) {
                assert_string_equal(name, reader->family);
                if (strcmp(reader->type, "counter") == 0)
                        assert_string_equal(name + strlen(name) - 6, "_total");
                return;
        }
        (void)snprintf(expected, sizeof(expected), "%s_bucket", reader->family);
        if (strcmp(name, expected) == 0) {
                assert_true(value >= reader->bucket_last); /* cumulative */
                reader->bucket_last = value;
                double bound = strtod(label, NULL);
                assert_true(bound > reader->bucket_before);
                reader->bucket_before = bound;
                if (strcmp(label, "+Inf") == 0)
                        reader->count = value;
                return;
        }
        (void)snprintf(expected, sizeof(expected), "%s_sum", reader->family);
        if (strcmp(name, expected) == 0)
                return;
        (void)snprintf(expected, sizeof(expected), "%s_count", reader->family);
        assert_string_equal(name, expected);
        assert_true(value >= reader->count && value <= reader->count);
}

static void read_line(struct reader *reader, const char *line) {
        char name[128];
        const char *rest = base_text_starts_with(line, "# HELP ");

        if (rest) {
                rest = read_name(rest, name, sizeof(name));
                assert_true(rest[0] == ' ' && rest[1]);
                for (size_t i = 0; i < reader->seen_count; i++)
                        assert_string_not_equal(name, reader->seen[i]); /* one block for each family */
                (void)base_text_copy(reader->seen[reader->seen_count++], 128, name);
                (void)base_text_copy(reader->family, sizeof(reader->family), name);
                reader->type[0] = '\0';
                return;
        }
        rest = base_text_starts_with(line, "# TYPE ");
        if (rest) {
                rest = read_name(rest, name, sizeof(name));
                assert_string_equal(name, reader->family);
                assert_int_equal(*rest, ' ');
                assert_true(base_text_copy(reader->type, sizeof(reader->type), rest + 1));
                assert_true(strcmp(reader->type, "counter") == 0 || strcmp(reader->type, "gauge") == 0 ||
                            strcmp(reader->type, "histogram") == 0);
                reader->bucket_before = reader->bucket_last = reader->count = -1;
                return;
        }
        assert_true(reader->type[0]);
        read_sample(reader, line);
}

static void check_text(char *text) {
        struct reader reader = {0};

        assert_true(base_text_is_utf8(text, strlen(text)));
        assert_true(strlen(text) > 0 && text[strlen(text) - 1] == '\n');
        for (char *line = text; *line;) {
                char *end = strchr(line, '\n');
                assert_non_null(end);
                *end = '\0';
                read_line(&reader, line);
                line = end + 1;
        }
        assert_true(reader.samples > METRICS_ID_MAX - 3);
        for (size_t i = 0; i < reader.seen_count; i++)
                assert_non_null(base_text_starts_with(reader.seen[i], "spark_cancel_agent_"));
}

/* rendered() - owned by the caller */
static char *rendered(void) {
        struct buffer text = BUFFER_INIT(1024 * 1024);
        assert_int_equal(metrics_render(&text), 0);
        assert_non_null(buffer_text(&text));
        return (char *)text.data;
}

static void assert_has_line(const char *text, const char *line) {
        char wanted[256];
        (void)snprintf(wanted, sizeof(wanted), "\n%s\n", line);
        if (!strstr(text, wanted))
                fail_msg("no line '%s' in:\n%s", line, text);
}

/* ---- tests ---------------------------------------------------------------------------------------- */

static void test_fresh(void **state) {
        (void)state;
        _cleanup_free_ char *text = rendered();
        assert_has_line(text, "spark_cancel_agent_commands_total 0");
        assert_has_line(text, "spark_cancel_agent_stream_up 0");
        assert_null(strstr(text, "outcomes_total")); /* no label seen yet */
        check_text(text);
}

static void test_counting(void **state) {
        (void)state;
        uint64_t before = metrics_generation();
        metrics_add(METRICS_COMMANDS, NULL, 2);
        metrics_add(METRICS_COMMANDS, NULL, 3);
        metrics_add(METRICS_OUTCOMES, "CANCELLED", 1);
        metrics_add(METRICS_OUTCOMES, "NOT_FOUND", 2);
        metrics_set(METRICS_STREAM_UP, NULL, 1);
        metrics_set(METRICS_BUILD_INFO, "0.1.0", 1);
        metrics_set(METRICS_LAST_CONTACT, NULL, 1795530123.125);
        metrics_set(METRICS_OPERATIONS_OPEN, NULL, -1);
        assert_true(metrics_generation() > before);
        before = metrics_generation();
        metrics_set(METRICS_STREAM_UP, NULL, 1);
        assert_true(metrics_generation() == before); /* nothing new: the file need not be written */
        assert_int_equal(metrics_get(METRICS_COMMANDS, NULL), 5);
        assert_int_equal(metrics_get(METRICS_OUTCOMES, "NOT_FOUND"), 2);
        assert_int_equal(metrics_get(METRICS_OUTCOMES, "CANCELLED"), 1);
        assert_int_equal(metrics_get(METRICS_OUTCOMES, "unseen"), 0);
        assert_int_equal(metrics_get(METRICS_STREAM_UP, NULL), 1);
        _cleanup_free_ char *text = rendered();
        assert_has_line(text, "spark_cancel_agent_commands_total 5");
        assert_has_line(text, "spark_cancel_agent_outcomes_total{outcome=\"NOT_FOUND\"} 2");
        assert_has_line(text, "spark_cancel_agent_build_info{version=\"0.1.0\"} 1");
        assert_has_line(text, "spark_cancel_agent_last_contact_timestamp_seconds 1795530123.125");
        assert_has_line(text, "spark_cancel_agent_operations_open -1");
        check_text(text);
}

static void test_histogram(void **state) {
        (void)state;
        metrics_observe_usec(METRICS_COMMIT_SECONDS, 0);
        metrics_observe_usec(METRICS_COMMIT_SECONDS, 1000); /* le is "less or equal" */
        metrics_observe_usec(METRICS_COMMIT_SECONDS, 1001);
        metrics_observe_usec(METRICS_COMMIT_SECONDS, 300 * USEC_PER_SEC);
        metrics_observe_usec(METRICS_COMMIT_SECONDS, 300 * USEC_PER_SEC + 1);
        assert_int_equal(metrics_get(METRICS_COMMIT_SECONDS, NULL), 5);
        _cleanup_free_ char *text = rendered();
        assert_has_line(text, "spark_cancel_agent_commit_duration_seconds_bucket{le=\"0.001\"} 2");
        assert_has_line(text, "spark_cancel_agent_commit_duration_seconds_bucket{le=\"0.0025\"} 3");
        assert_has_line(text, "spark_cancel_agent_commit_duration_seconds_bucket{le=\"60\"} 3");
        assert_has_line(text, "spark_cancel_agent_commit_duration_seconds_bucket{le=\"300\"} 4");
        assert_has_line(text, "spark_cancel_agent_commit_duration_seconds_bucket{le=\"+Inf\"} 5");
        assert_has_line(text, "spark_cancel_agent_commit_duration_seconds_sum 600.002002");
        assert_has_line(text, "spark_cancel_agent_commit_duration_seconds_count 5");
        check_text(text);
        metrics_observe_usec(METRICS_SCAN_SECONDS, USEC_NEVER);
        metrics_observe_usec(METRICS_SCAN_SECONDS, USEC_NEVER);
        _cleanup_free_ char *full = rendered();
        check_text(full);
}

/* A use that does not fit the metric's type must not damage the text. */
static void test_wrong_use(void **state) {
        (void)state;
        uint64_t before = metrics_generation();
        metrics_set(METRICS_COMMANDS, NULL, 99);
        metrics_add(METRICS_STREAM_UP, NULL, 99);
        metrics_add(METRICS_COMMIT_SECONDS, NULL, 99);
        metrics_observe_usec(METRICS_COMMANDS, 99);
        assert_true(metrics_generation() == before);
        metrics_add(METRICS_KILL_REQUESTS, "label", 1); /* has no label */
        assert_int_equal(metrics_get(METRICS_KILL_REQUESTS, NULL), 1);
        _cleanup_free_ char *text = rendered();
        assert_has_line(text, "spark_cancel_agent_kill_requests_total 1");
        check_text(text);
}

static void test_labels_are_bounded(void **state) {
        static char labels[100][300];

        (void)state;
        metrics_add(METRICS_MASTER_ANSWERS, "quote\" back\\slash\nline \xff", 1);
        memset(labels[0], 'x', sizeof(labels[0]) - 1);
        metrics_add(METRICS_MASTER_ANSWERS, labels[0], 1);
        for (size_t i = 1; i < ARRAY_SIZE(labels); i++) {
                (void)snprintf(labels[i], sizeof(labels[i]), "answer%zu", i);
                metrics_add(METRICS_MASTER_ANSWERS, labels[i], 1);
        }
        metrics_add(METRICS_MASTER_ANSWERS, NULL, 1);
        assert_int_equal(metrics_get(METRICS_MASTER_ANSWERS, "answer30"), 1);
        assert_int_equal(metrics_get(METRICS_MASTER_ANSWERS, "answer31"), 0);
        assert_int_equal(metrics_get(METRICS_MASTER_ANSWERS, "other"), 69 + 1);
        _cleanup_free_ char *text = rendered();
        assert_has_line(
                text,
                "spark_cancel_agent_master_answers_total{answer=\"quote\\\" back\\\\slash\\\\x0Aline \\\\xFF\"} 1");
        assert_has_line(text, "spark_cancel_agent_master_answers_total{answer=\"other\"} 70");
        check_text(text);
}

static void test_small_buffer(void **state) {
        struct buffer text = BUFFER_INIT(100);
        (void)state;
        assert_int_equal(metrics_render(&text), -ENOBUFS);
        buffer_deinit(&text);
}

static void test_file(void **state) {
        char directory[] = "/tmp/test-metrics-XXXXXX", path[64], temporary[80];
        struct stat status;

        (void)state;
        assert_non_null(mkdtemp(directory));
        (void)snprintf(path, sizeof(path), "%s/agent.prom", directory);
        (void)snprintf(temporary, sizeof(temporary), "%s.tmp", path);
        mode_t mask = umask(0077);
        assert_int_equal(metrics_write_file(path), 0);
        assert_int_equal(stat(path, &status), 0);
        assert_int_equal(status.st_mode & 07777, 0644);
        _cleanup_free_ char *text = rendered();
        assert_int_equal(status.st_size, strlen(text));
        assert_int_equal(access(temporary, F_OK), -1);

        /* a link left in its way is replaced, not followed */
        assert_int_equal(symlink("/dev/full", temporary), 0);
        ino_t before = status.st_ino;
        assert_int_equal(metrics_write_file(path), 0);
        assert_int_equal(stat(path, &status), 0);
        assert_true(status.st_ino != before); /* a new file, renamed: readers never see half of one */

        /* what can't be replaced is an error, and nothing is left behind */
        assert_int_equal(unlink(path), 0);
        assert_int_equal(mkdir(path, 0755), 0);
        assert_int_equal(metrics_write_file(path), -EISDIR);
        assert_int_equal(access(temporary, F_OK), -1);
        assert_int_equal(rmdir(path), 0);
        assert_int_equal(rmdir(directory), 0);
        assert_int_equal(metrics_write_file(path), -ENOENT);
        (void)umask(mask);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_fresh),
                cmocka_unit_test(test_counting),
                cmocka_unit_test(test_histogram),
                cmocka_unit_test(test_wrong_use),
                cmocka_unit_test(test_labels_are_bounded),
                cmocka_unit_test(test_small_buffer),
                cmocka_unit_test(test_file),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
