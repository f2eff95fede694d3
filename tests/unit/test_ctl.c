/* SPDX-License-Identifier: Apache-2.0 */
/* ctl: what a person and a script get from spark-cancelctl. Its main() runs in a child process, with its output in a
 * pipe, against a real bus in another one. */
#define main ctl_main
#include "ctl.c"
#undef main

#include "bus_server.h"

#include <sys/un.h>

#include <json-c/json.h>

static char output[1024 * 1024], errors[4096];

static void read_all(int fd, char *text, size_t size) {
        size_t used = 0;
        ssize_t got;
        while (used < size - 1 && (got = read(fd, text + used, size - 1 - used)) > 0)
                used += (size_t)got;
        text[used] = '\0';
        assert_int_equal(close(fd), 0);
}

/* ctl() - run it with that command line (words split at blanks; @ is the socket's path); its exit code. */
static int ctl(const char *path, const char *line) {
        int out[2], err[2], status, argc = 1;
        char name[] = "spark-cancelctl", copy[512], path_copy[256], *argv[16] = {name}, *rest = copy, *word;

        (void)base_text_copy(path_copy, sizeof(path_copy), path);
        (void)base_text_copy(copy, sizeof(copy), line);
        while ((word = strsep(&rest, " ")) && argc < 15)
                argv[argc++] = strcmp(word, "@") == 0 ? path_copy : word;
        argv[argc] = NULL;
        assert_int_equal(pipe2(out, O_CLOEXEC), 0);
        assert_int_equal(pipe2(err, O_CLOEXEC), 0);
        (void)fflush(NULL);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                (void)close(out[0]);
                (void)close(err[0]);
                if (dup2(out[1], STDOUT_FILENO) < 0 || dup2(err[1], STDERR_FILENO) < 0)
                        _exit(100);
                optind = 0; /* getopt(3): start afresh */
                int code = ctl_main(argc, argv);
                (void)fflush(NULL);
                _exit(code);
        }
        assert_int_equal(close(out[1]), 0);
        assert_int_equal(close(err[1]), 0);
        read_all(out[0], output, sizeof(output));
        read_all(err[0], errors, sizeof(errors));
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFEXITED(status));
        return WEXITSTATUS(status);
}

static void assert_output_has(const char *text) {
        if (!strstr(output, text))
                fail_msg("no '%s' in:\n%s", text, output);
}

static json_object *parsed(void) {
        json_object *object = json_tokener_parse(output);
        if (!object)
                fail_msg("no JSON:\n%s", output);
        return object;
}

static json_object *member(json_object *object, const char *key) {
        json_object *value = NULL;
        if (!json_object_object_get_ex(object, key, &value))
                fail_msg("no '%s' in %s", key, json_object_to_json_string(object));
        return value;
}

static void test_status(void **state) {
        struct server server = {0};

        (void)state;
        server_start(&server);
        assert_int_equal(ctl(server.path, "status --socket @"), 0);
        assert_output_has("connected    yes, https://cp.example:443\n");
        assert_output_has("able         yes\n");
        assert_output_has("doing        2 open, 1 waiting for a driver, 3 quarantined, 4 reports to be answered\n\n");
        assert_output_has("cluster id        c1\n");
        assert_output_has("connected         yes\n");
        assert_output_has("revision          9007199254740993\n");
        assert_string_equal(errors, "");
        assert_int_equal(ctl(server.path, "--json --socket @ status"), 0);
        json_object *object = parsed();
        assert_string_equal(json_object_get_string(member(object, "node")), "n1");
        assert_true(json_object_is_type(member(object, "connected"), json_type_boolean));
        assert_true(json_object_get_int64(member(object, "revision")) == INT64_C(9007199254740993));
        json_object_put(object);
        server_stop(&server);
}

static void test_list(void **state) {
        struct server server = {0};

        (void)state;
        server_start(&server);
        assert_int_equal(ctl(server.path, "list --socket @"), 0);
        assert_output_has("RECEIVED              OPERATION  JOB  STATE   OUTCOME  DRIVER\n");
        assert_output_has("2026-11-24T14:22:03Z  op-1       j1   WAIT    -        driver-1\n");
        assert_output_has("-                     op-2       j2   SEARCH  -        -\n");
        assert_null(strchr(output, '\x1b'));
        assert_null(strstr(output, "op-3"));
        assert_int_equal(ctl(server.path, "list --all --json --socket @"), 0);
        json_object *object = parsed(), *rows = member(object, "operations");
        assert_int_equal(json_object_array_length(rows), 3);
        assert_int_equal(json_object_get_int64(member(object, "total")), 3);
        assert_string_equal(json_object_get_string(member(json_object_array_get_idx(rows, 2), "message")),
                            SERVER_HOSTILE_ESCAPED);
        json_object_put(object);
        server_stop(&server);
        struct server full = {.extra_rows = BUS_ROWS_MAX};
        server_start(&full);
        assert_int_equal(ctl(full.path, "list --all --socket @"), 0);
        assert_output_has("\n... and 3 more\n");
        server_stop(&full);
}

static void test_show(void **state) {
        struct server server = {0};

        (void)state;
        server_start(&server);
        assert_int_equal(ctl(server.path, "show op-1 --socket @"), 0);
        assert_output_has("operation id      op-1\n");
        assert_output_has("driver pid        4242\n");
        assert_output_has("received          2026-11-24T14:22:03Z\n");
        assert_output_has("ended             -\n");
        assert_output_has("outcome           -\n");
        assert_int_equal(ctl(server.path, "show op-3 --socket @"), 0);
        assert_output_has("message           " SERVER_HOSTILE_ESCAPED "\n");
        assert_int_equal(ctl(server.path, "show op-3 --json --socket @"), 0);
        json_object *object = parsed();
        assert_string_equal(json_object_get_string(member(object, "outcome")), "CANCELLED");
        assert_true(json_object_get_int64(member(object, "ended_real_usec")) == INT64_C(1795530125000000));
        assert_int_equal(json_object_get_int(member(object, "driver_pid")), 0);
        json_object_put(object);
        assert_int_equal(ctl(server.path, "show op-4 --socket @"), 1);
        assert_string_equal(output, "");
        assert_string_equal(errors, "spark-cancelctl: There is no operation 'op-4' on this node\n");
        server_stop(&server);
}

static void test_find(void **state) {
        struct server server = {0};

        (void)state;
        server_start(&server);
        assert_int_equal(ctl(server.path, "find j1 --socket @"), 0);
        assert_output_has("A cancel would kill this driver:\n");
        assert_output_has("driver pid        4242\n");
        assert_output_has("started           2026-11-24T14:22:03Z\n");
        assert_output_has("4243     its main class is not DriverWrapper\n");
        assert_int_equal(ctl(server.path, "find j1 --json --socket @"), 0);
        json_object *object = parsed(), *rows = member(object, "lookalikes");
        assert_true(json_object_get_boolean(member(object, "would_kill")));
        assert_string_equal(json_object_get_string(member(object, "reason")), SERVER_HOSTILE_ESCAPED);
        assert_int_equal(json_object_array_length(rows), 2);
        assert_int_equal(json_object_get_int(member(json_object_array_get_idx(rows, 1), "pid")), 4244);
        json_object_put(object);
        assert_int_equal(ctl(server.path, "find j2 --socket @"), 1);
        assert_output_has("A cancel would kill nothing here.\n");
        assert_output_has("recent driver id  driver-9\n");
        assert_int_equal(ctl(server.path, "find j2 --json --socket @"), 1);
        json_object_put(parsed());
        assert_int_equal(ctl(server.path, "find busy --socket @"), 1);
        assert_non_null(strstr(errors, "try again"));
        server_stop(&server);
}

static void test_cancel(void **state) {
        struct server server = {0};

        (void)state;
        server_start(&server);
        assert_int_equal(ctl(server.path, "cancel j1 --socket @"), 0);
        assert_string_equal(output, "local-1\n");
        assert_int_equal(ctl(server.path, "cancel j1 --json --socket @"), 0);
        assert_string_equal(output, "{\"operation_id\":\"local-1\"}\n");
        assert_int_equal(ctl(server.path, "cancel j3 --wait --socket @"), 0); /* it is op-3, which has ended */
        assert_output_has("CANCELLED: nl");
        assert_null(strchr(output, '\x1b'));
        assert_int_equal(ctl(server.path, "cancel j3 --wait --json --socket @"), 0);
        json_object *object = parsed();
        assert_string_equal(json_object_get_string(member(object, "outcome")), "CANCELLED");
        json_object_put(object);
        assert_int_equal(ctl(server.path, "cancel j1 --wait --socket @"), 1); /* it has vanished */
        assert_non_null(strstr(errors, "There is no operation 'local-1'"));
        assert_int_equal(ctl(server.path, "cancel stopping --socket @"), 1);
        assert_non_null(strstr(errors, "The agent is stopping"));
        assert_int_equal(ctl(server.path, "cancel fails --socket @"), 1);
        assert_string_equal(errors, "spark-cancelctl: not stored \\x1B[31m\n");
        server_stop(&server);
}

static void test_check(void **state) {
        struct server able = {0}, unable = {.extra_rows = 1};

        (void)state;
        server_start(&able);
        assert_int_equal(ctl(able.path, "check --socket @"), 0);
        assert_string_equal(output, "ok       control plane  connected\n\nThis node could cancel a job.\n");
        server_stop(&able);
        server_start(&unable);
        assert_int_equal(ctl(unable.path, "check --socket @"), 1);
        assert_output_has("failure  master http://m1:6066  " SERVER_HOSTILE_ESCAPED "\n         -> start it\n");
        assert_output_has("This node could not cancel a job.\n");
        assert_int_equal(ctl(unable.path, "check --json --socket @"), 1);
        json_object *object = parsed();
        assert_false(json_object_get_boolean(member(object, "able")));
        assert_string_equal(json_object_get_string(member(object, "checked_by")), "agent");
        assert_int_equal(json_object_array_length(member(object, "findings")), 2);
        json_object_put(object);
        assert_int_equal(ctl(unable.path, "status --socket @"), 0);
        assert_output_has("able         no; master http://m1:6066: ");
        server_stop(&unable);
}

static void test_changes(void **state) {
        struct server server = {0}, refusing = {.extra_rows = 1};

        (void)state;
        server_start(&server);
        assert_int_equal(ctl(server.path, "retry op-q --socket @"), 0);
        assert_string_equal(output, "");
        assert_int_equal(ctl(server.path, "retry op-1 --socket @"), 1);
        assert_non_null(strstr(errors, "was not rejected"));
        assert_int_equal(ctl(server.path, "retry op-9 --socket @"), 1);
        assert_int_equal(ctl(server.path, "reload --socket @"), 0);
        server_stop(&server);
        server_start(&refusing);
        assert_int_equal(ctl(refusing.path, "reload --socket @"), 1);
        assert_string_equal(errors, "spark-cancelctl: agent.conf:3: node: can't be changed \\x1B[31m\n");
        server_stop(&refusing);
}

static void test_metrics(void **state) {
        struct server server = {0};

        (void)state;
        server_start(&server);
        assert_int_equal(ctl(server.path, "metrics --socket @"), 0);
        assert_string_equal(output,
                            "# HELP x y\n# TYPE x counter\nx 5\nx{l=\"a\\\"b\\\\\"} 1.5\nx_bucket{le=\"+Inf\"} 7\n"
                            "y +Inf\n");
        assert_int_equal(ctl(server.path, "metrics --json --socket @"), 0);
        json_object *object = parsed(), *samples = member(object, "metrics");
        assert_int_equal(json_object_array_length(samples), 4);
        json_object *sample = json_object_array_get_idx(samples, 1);
        assert_string_equal(json_object_get_string(member(member(sample, "labels"), "l")), "a\"b\\");
        assert_string_equal(json_object_to_json_string(member(sample, "value")), "1.5");
        assert_string_equal(json_object_get_string(member(json_object_array_get_idx(samples, 3), "value")), "+Inf");
        json_object_put(object);
        server_stop(&server);
}

/* The JSON of odd metrics text stays JSON, whatever a future agent sends. */
static void test_metrics_lines(void **state) {
        static const char text[] =
                "good 1\nx\nx{\nx{=\nx{a=\"b\" 1\n{ 1\nx{a 5\n \nx \nx} 1\nx{a=\"b\\\"} 1\nx 1 2\nx{a=\"\n"
                "x \"\nx{a=\"1\",b=\"2\"} -1.5e+07\nx{} 2\nx NaN\nx{a=\"\\\\\"} 3\nx\"y 1\nx{a=\"b\"c=\"d\"} 1\nx 5";
        FILE *saved = stdout;
        char *written = NULL;
        size_t size;

        (void)state;
        stdout = open_memstream(&written, &size);
        assert_non_null(stdout);
        ctl_json_metrics(text);
        (void)fclose(stdout);
        stdout = saved;
        (void)base_text_copy(output, sizeof(output), written);
        free(written);
        json_object *object = parsed(), *samples = member(object, "metrics");
        assert_int_equal(json_object_array_length(samples), 6);
        assert_string_equal(
                json_object_get_string(member(member(json_object_array_get_idx(samples, 1), "labels"), "b")), "2");
        assert_string_equal(
                json_object_get_string(member(member(json_object_array_get_idx(samples, 4), "labels"), "a")), "\\");
        json_object_put(object);
}

static void test_usage(void **state) {
        static const struct {
                const char *line, *said;
        } cases[] = {
                {"", "unknown command: "},
                {"--json", "a command is missing"},
                {"find", "a job's id is missing after find"},
                {"cancel j\xc3\xa9", "not a job's id: j\xc3\xa9"},
                {"find 012345678901234567890123456789012345678901234567890", "not a job's id: 0123"},
                {"cancel a b", "too much: b"},
                {"find j1 --wait", "--wait does not go with find"},
                {"status --config /dev/null", "--config does not go with status"},
                {"cancel j1 --user root", "--user does not go with cancel"},
                {"\x1b[31m", "unknown command: \\x1B[31m"},
                {"show", "an operation's id is missing after show"},
                {"show a b", "too much: b"},
                {"status x", "too much: x"},
                {"status --all", "--all does not go with status"},
                {"show \xc3\xa9", "not an operation's id: \xc3\xa9"},
                {"list --bogus", "bogus"},
                {"list --socket", "socket"},
        };
        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                assert_int_equal(ctl("unused", cases[i].line), 2);
                assert_string_equal(output, "");
                if (!strstr(errors, cases[i].said))
                        fail_msg("no '%s' in %s", cases[i].said, errors);
        }
}

static void test_help_and_version(void **state) {
        (void)state;
        assert_int_equal(ctl("unused", "--help"), 0);
        assert_output_has("retry OPERATION");
        assert_output_has("find JOB");
        assert_output_has("cancel JOB");
        assert_output_has("check ");
        assert_int_equal(ctl("unused", "--version"), 0);
        assert_string_equal(output, "spark-cancelctl " VERSION "\n");
}

static void test_unreachable(void **state) {
        char directory[] = "/tmp/test-ctl-XXXXXX", path[64];
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        int status;

        (void)state;
        assert_non_null(mkdtemp(directory));
        (void)snprintf(path, sizeof(path), "%s/bus", directory);
        assert_int_equal(ctl(path, "status --socket @"), 3);
        assert_non_null(strstr(errors, "No such file or directory: is spark-cancel-agent running?"));
        (void)base_text_copy(address.sun_path, sizeof(address.sun_path), path);
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(bind(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
        assert_int_equal(ctl(path, "status --socket @"), 3); /* nobody listens */
        assert_non_null(strstr(errors, "Connection refused"));
        assert_int_equal(listen(fd, 4), 0);
        (void)fflush(NULL);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) { /* one that hangs up */
                int accepted = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
                (void)close(accepted);
                _exit(0);
        }
        assert_int_equal(ctl(path, "status --socket @"), 3);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(close(fd), 0);
        assert_int_equal(unlink(path), 0);
        assert_int_equal(rmdir(directory), 0);
        assert_int_equal(
                ctl("/012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789"
                    "0123456789012345678901234567890",
                    "status --socket @"),
                3);
        assert_non_null(strstr(errors, "File name too long"));
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_status),      cmocka_unit_test(test_list),
                cmocka_unit_test(test_show),        cmocka_unit_test(test_changes),
                cmocka_unit_test(test_metrics),     cmocka_unit_test(test_metrics_lines),
                cmocka_unit_test(test_usage),       cmocka_unit_test(test_help_and_version),
                cmocka_unit_test(test_unreachable),
                cmocka_unit_test(test_find),        cmocka_unit_test(test_cancel),
                cmocka_unit_test(test_check),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
