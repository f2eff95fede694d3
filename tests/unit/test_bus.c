/* SPDX-License-Identifier: Apache-2.0 */
/* bus: what a client on the node gets, who may change things, and what a hostile peer can't do. */
#include "bus_server.h"

#include <grp.h>
#include <poll.h>
#include <sys/un.h>
#include <systemd/sd-bus.h>

#define OTHER_USER 64321
#define OTHER_GROUP 64322
#define WAIT_MSEC 30000

static int raw_connect(const char *path) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        (void)base_text_copy(address.sun_path, sizeof(address.sun_path), path);
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
                return -1;
        return fd;
}

static sd_bus *client(const char *path) {
        sd_bus *bus;
        int fd = raw_connect(path);
        if (fd < 0 || sd_bus_new(&bus) < 0 || sd_bus_set_fd(bus, fd, fd) < 0 || sd_bus_start(bus) < 0)
                return NULL;
        return bus;
}

/* call_error() - the name of the error that a call gives, "" for success. */
static const char *call_error(sd_bus *bus, const char *method, const char *argument) {
        static char name[128];
        sd_bus_error error = SD_BUS_ERROR_NULL;
        int r = sd_bus_call_method(bus, NULL, BUS_PATH, BUS_NAME, method, &error, NULL, argument ? "s" : "", argument);
        (void)base_text_copy(name, sizeof(name), r < 0 ? (error.name ? error.name : "?") : "");
        sd_bus_error_free(&error);
        return name;
}

static void test_status_and_properties(void **state) {
        struct server server = {0};
        sd_bus_error error = SD_BUS_ERROR_NULL;
        sd_bus_message *reply = NULL;
        const char *key, *text;
        unsigned keys = 0;
        char *value = NULL;
        int64_t revision;
        int flag;

        (void)state;
        server_start(&server);
        sd_bus *bus = client(server.path);
        assert_non_null(bus);
        assert_true(sd_bus_call_method(bus, NULL, BUS_PATH, BUS_NAME, "Status", &error, &reply, "") >= 0);
        assert_true(sd_bus_message_enter_container(reply, 'a', "{sv}") > 0);
        while (sd_bus_message_enter_container(reply, 'e', "sv") > 0) {
                assert_true(sd_bus_message_read(reply, "s", &key) > 0);
                if (strcmp(key, "summary") == 0) {
                        assert_true(sd_bus_message_read(reply, "v", "s", &text) > 0);
                        assert_string_equal(text, "Connected to cp.example:443; 2 open, 1 waiting for a driver");
                } else
                        assert_true(sd_bus_message_skip(reply, "v") > 0);
                assert_true(sd_bus_message_exit_container(reply) > 0);
                keys++;
        }
        assert_int_equal(keys, 15);
        sd_bus_message_unref(reply);

        assert_true(sd_bus_get_property_string(bus, NULL, BUS_PATH, BUS_NAME, "Node", &error, &value) >= 0);
        assert_string_equal(value, "n1");
        free(value);
        assert_true(sd_bus_get_property_trivial(bus, NULL, BUS_PATH, BUS_NAME, "Connected", &error, 'b', &flag) >= 0);
        assert_int_equal(flag, 1);
        assert_true(sd_bus_get_property_trivial(bus, NULL, BUS_PATH, BUS_NAME, "Revision", &error, 'x', &revision) >=
                    0);
        assert_true(revision == INT64_C(9007199254740993));
        assert_true(sd_bus_get_property(bus, NULL, BUS_PATH, BUS_NAME, "Nothing", &error, &reply, "s") < 0);
        sd_bus_error_free(&error);

        assert_true(sd_bus_call_method(bus, NULL, "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello", &error,
                                       &reply, "") >= 0);
        assert_true(sd_bus_message_read(reply, "s", &text) > 0);
        assert_int_equal(text[0], ':');
        sd_bus_message_unref(reply);
        assert_true(sd_bus_call_method(bus, NULL, BUS_PATH, "org.freedesktop.DBus.Introspectable", "Introspect", &error,
                                       &reply, "") >= 0);
        assert_true(sd_bus_message_read(reply, "s", &text) > 0);
        assert_non_null(strstr(text, "<method name=\"Retry\">"));
        assert_non_null(strstr(text, "<property name=\"Summary\" type=\"s\" access=\"read\">"));
        sd_bus_message_unref(reply);
        sd_bus_close_unref(bus);
        server_stop(&server);
}

/* list() - operation ids of List, joined; *ret_total as the agent says. */
static size_t list(sd_bus *bus, bool all, uint64_t *ret_total, char *last_message, size_t size) {
        sd_bus_error error = SD_BUS_ERROR_NULL;
        sd_bus_message *reply = NULL;
        const char *key, *text;
        size_t rows = 0;

        assert_true(sd_bus_call_method(bus, NULL, BUS_PATH, BUS_NAME, "List", &error, &reply, "b", (int)all) >= 0);
        assert_true(sd_bus_message_enter_container(reply, 'a', "a{sv}") > 0);
        while (sd_bus_message_enter_container(reply, 'a', "{sv}") > 0) {
                rows++;
                while (sd_bus_message_enter_container(reply, 'e', "sv") > 0) {
                        assert_true(sd_bus_message_read(reply, "s", &key) > 0);
                        if (strcmp(key, "message") == 0) {
                                assert_true(sd_bus_message_read(reply, "v", "s", &text) > 0);
                                (void)base_text_copy(last_message, size, text);
                        } else
                                assert_true(sd_bus_message_skip(reply, "v") > 0);
                        assert_true(sd_bus_message_exit_container(reply) > 0);
                }
                assert_true(sd_bus_message_exit_container(reply) > 0);
        }
        assert_true(sd_bus_message_exit_container(reply) > 0);
        assert_true(sd_bus_message_read(reply, "t", ret_total) > 0);
        sd_bus_message_unref(reply);
        return rows;
}

static void test_list_and_show(void **state) {
        struct server server = {0};
        char message[256];
        uint64_t total;

        (void)state;
        server_start(&server);
        sd_bus *bus = client(server.path);
        assert_non_null(bus);
        assert_int_equal(list(bus, false, &total, message, sizeof(message)), 2);
        assert_int_equal(total, 2);
        assert_int_equal(list(bus, true, &total, message, sizeof(message)), 3);
        assert_int_equal(total, 3);
        assert_string_equal(message, SERVER_HOSTILE_ESCAPED);
        assert_string_equal(call_error(bus, "Show", "op-3"), "");
        assert_string_equal(call_error(bus, "Show", "op-4"), BUS_ERROR_NO_SUCH_OPERATION);
        assert_string_equal(call_error(bus, "Show", ""), BUS_ERROR_NO_SUCH_OPERATION);
        assert_string_equal(call_error(bus, "Show", NULL), SD_BUS_ERROR_INVALID_ARGS);
        assert_string_equal(call_error(bus, "Metrics", NULL), "");
        assert_string_equal(call_error(bus, "Nonsense", NULL), SD_BUS_ERROR_UNKNOWN_METHOD);
        sd_bus_close_unref(bus);
        server_stop(&server);
}

static void test_rows_are_bounded(void **state) {
        struct server server = {.extra_rows = BUS_ROWS_MAX};
        char message[256];
        uint64_t total;

        (void)state;
        server_start(&server);
        sd_bus *bus = client(server.path);
        assert_non_null(bus);
        assert_int_equal(list(bus, true, &total, message, sizeof(message)), BUS_ROWS_MAX);
        assert_int_equal(total, BUS_ROWS_MAX + 3);
        sd_bus_close_unref(bus);
        server_stop(&server);
}

static void test_changing_calls(void **state) {
        struct server server = {0}, refusing = {.extra_rows = 1};
        sd_bus_error error = SD_BUS_ERROR_NULL;

        (void)state;
        server_start(&server);
        sd_bus *bus = client(server.path);
        assert_non_null(bus);
        assert_string_equal(call_error(bus, "Reload", NULL), "");
        assert_string_equal(call_error(bus, "Retry", "op-q"), "");
        assert_string_equal(call_error(bus, "Retry", "op-1"), BUS_ERROR_NOT_QUARANTINED);
        assert_string_equal(call_error(bus, "Retry", "op-x"), BUS_ERROR_NO_SUCH_OPERATION);
        sd_bus_close_unref(bus);
        server_stop(&server);
        server_start(&refusing);
        bus = client(refusing.path);
        assert_non_null(bus);
        assert_true(sd_bus_call_method(bus, NULL, BUS_PATH, BUS_NAME, "Reload", &error, NULL, "") < 0);
        assert_string_equal(error.name, BUS_ERROR_RELOAD_FAILED);
        assert_string_equal(error.message, "agent.conf:3: node: can't be changed \\x1B[31m");
        sd_bus_error_free(&error);
        sd_bus_close_unref(bus);
        server_stop(&refusing);
}

/* ---- other users ---------------------------------------------------------------------------------- */

/* as_other_user() - what Status, Reload, Retry, Cancel, Find and Check say to a user in `group`: an exit code of bits, 1 for each refusal.
 */
static int as_other_user(const char *path, gid_t primary, const gid_t *groups, size_t group_count) {
        int status;

        (void)fflush(NULL);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                if (setgroups(group_count, groups) < 0 || setresgid(primary, primary, primary) < 0 ||
                    setresuid(OTHER_USER, OTHER_USER, OTHER_USER) < 0)
                        _exit(100);
                sd_bus *bus = client(path);
                if (!bus)
                        _exit(101);
                int code = *call_error(bus, "Status", NULL) ? 1 : 0;
                code |= strcmp(call_error(bus, "Reload", NULL), SD_BUS_ERROR_ACCESS_DENIED) == 0 ? 2 : 0;
                code |= strcmp(call_error(bus, "Retry", "op-q"), SD_BUS_ERROR_ACCESS_DENIED) == 0 ? 4 : 0;
                code |= strcmp(call_error(bus, "Cancel", "j1"), SD_BUS_ERROR_ACCESS_DENIED) == 0 ? 8 : 0;
                code |= *call_error(bus, "Find", "j1") ? 16 : 0;
                code |= *call_error(bus, "Check", NULL) ? 32 : 0;
                sd_bus_close_unref(bus);
                _exit(code);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFEXITED(status));
        return WEXITSTATUS(status);
}

static void test_privileges(void **state) {
        static const gid_t ours[] = {1, 2, OTHER_GROUP}, others[] = {1, 2, OTHER_GROUP + 1};
        struct server server = {.group = OTHER_GROUP};
        struct stat status;

        (void)state;
        if (geteuid() != 0) {
                print_message("skipped: only root can become other users\n");
                skip();
        }
        server_start(&server);
        assert_int_equal(stat(server.path, &status), 0);
        assert_int_equal(status.st_mode & 0777, 0666);
        assert_int_equal(as_other_user(server.path, 1, others, 3), 2 + 4 + 8);
        assert_int_equal(as_other_user(server.path, 1, NULL, 0), 2 + 4 + 8);
        assert_int_equal(as_other_user(server.path, 1, ours, 3), 0);
        assert_int_equal(as_other_user(server.path, OTHER_GROUP, NULL, 0), 0);
        server_stop(&server);
        struct server no_group = {0}; /* the machine has no such group: nobody gets in by it */
        if (!getgrnam(BUS_GROUP)) {
                server_start(&no_group);
                assert_int_equal(as_other_user(no_group.path, 0, ours, 3), 2 + 4 + 8);
                server_stop(&no_group);
        }
}

static bool serves(const char *path);

/* ---- calls that are answered later ------------------------------------------------------------------ */

static void begin_call(sd_bus *bus, const char *method, const char *signature, const char *argument) {
        sd_bus_message *message = NULL;
        uint64_t cookie; /* without one sd-bus asks for no reply */

        assert_true(sd_bus_message_new_method_call(bus, &message, NULL, BUS_PATH, BUS_NAME, method) >= 0);
        assert_true(sd_bus_message_append(message, signature, argument) >= 0);
        assert_true(sd_bus_send(bus, message, &cookie) >= 0);
        sd_bus_message_unref(message);
        assert_true(sd_bus_flush(bus) >= 0);
}

/* next_reply() - its signature; NULL: none within `msec`. */
static const char *next_reply(sd_bus *bus, uint64_t msec) {
        static char signature[32];
        sd_bus_message *message = NULL;
        int r;

        while ((r = sd_bus_process(bus, &message)) >= 0) {
                if (message) {
                        (void)base_text_copy(signature, sizeof(signature), sd_bus_message_get_signature(message, 1));
                        sd_bus_message_unref(message);
                        return signature;
                }
                if (r == 0 && sd_bus_wait(bus, msec * USEC_PER_MSEC) <= 0)
                        return NULL;
        }
        return NULL;
}

static void test_answers_that_take_time(void **state) {
        struct server server = {0};

        (void)state;
        server_start(&server);
        sd_bus *first = client(server.path), *other = client(server.path);
        assert_non_null(first);
        assert_non_null(other);
        assert_string_equal(call_error(first, "Status", NULL), ""); /* the connections are made */
        assert_string_equal(call_error(other, "Status", NULL), "");
        begin_call(first, "Find", "s", "later");
        begin_call(first, "Status", "", NULL);
        assert_string_equal(call_error(other, "Status", NULL), ""); /* nobody waits for the first one */
        assert_null(next_reply(first, 50));                          /* not even its own next call overtakes it */
        assert_string_equal(call_error(other, "Find", "j1"), "");   /* answers the kept one */
        const char *signature = next_reply(first, WAIT_MSEC);
        assert_non_null(signature);
        assert_string_equal(signature, "a{sv}aa{sv}");
        signature = next_reply(first, WAIT_MSEC);
        assert_non_null(signature);
        assert_string_equal(signature, "a{sv}");
        sd_bus_close_unref(first);
        sd_bus_close_unref(other);
        server_stop(&server);
}

/* The peer, or the whole bus, goes while an answer is made. */
static void test_answers_to_nobody(void **state) {
        struct server server = {0};

        (void)state;
        server_start(&server);
        sd_bus *other = client(server.path);
        assert_non_null(other);
        for (unsigned i = 0; i < 2 * BUS_CONNECTIONS_MAX; i++) {
                sd_bus *bus = client(server.path);
                assert_non_null(bus);
                assert_string_equal(call_error(bus, "Status", NULL), "");
                begin_call(bus, "Find", "s", "later");
                sd_bus_close_unref(bus);
                assert_string_equal(call_error(other, "Find", "j1"), "");
        }
        /* A peer that has hung up leaves its place at once: many more than there are connections come and go. */
        for (unsigned i = 0; i < 3 * BUS_CONNECTIONS_MAX; i++) {
                sd_bus *bus = client(server.path);
                assert_non_null(bus);
                begin_call(bus, "Find", "s", "forgotten");
                sd_bus_close_unref(bus);
        }
        assert_true(serves(server.path));
        begin_call(other, "Find", "s", "later");
        sd_bus_close_unref(other);
        server_stop(&server);
}

static void test_bad_jobs(void **state) {
        struct server server = {0};

        (void)state;
        server_start(&server);
        sd_bus *bus = client(server.path);
        assert_non_null(bus);
        assert_string_equal(call_error(bus, "Find", ""), BUS_ERROR_BAD_JOB);
        assert_string_equal(call_error(bus, "Find", "a b"), BUS_ERROR_BAD_JOB);
        assert_string_equal(call_error(bus, "Cancel", "012345678901234567890123456789012345678901234567890"),
                            BUS_ERROR_BAD_JOB);
        assert_string_equal(call_error(bus, "Cancel", "stopping"), BUS_ERROR_NOT_NOW);
        assert_string_equal(call_error(bus, "Find", "busy"), SD_BUS_ERROR_LIMITS_EXCEEDED);
        assert_string_equal(call_error(bus, "Status", NULL), ""); /* and it goes on */
        sd_bus_close_unref(bus);
        server_stop(&server);
}

/* The uid is the kernel's word, not the message's. */
static void test_cancel_knows_who(void **state) {
        struct server server = {0};
        sd_bus_message *reply = NULL;
        char expected[64];
        const char *id;

        (void)state;
        server_start(&server);
        sd_bus *bus = client(server.path);
        assert_non_null(bus);
        assert_true(sd_bus_call_method(bus, NULL, BUS_PATH, BUS_NAME, "Cancel", NULL, &reply, "s", "who") >= 0);
        assert_true(sd_bus_message_read(reply, "s", &id) > 0);
        (void)snprintf(expected, sizeof(expected), "local-uid-%u", (unsigned)geteuid());
        assert_string_equal(id, expected);
        sd_bus_message_unref(reply);
        sd_bus_close_unref(bus);
        server_stop(&server);
}

/* ---- hostile peers -------------------------------------------------------------------------------- */

/* closed_by_peer() - does the socket reach its end within the limit? */
static bool closed_by_peer(int fd) {
        char bytes[4096];
        struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
        while (poll(&poll_fd, 1, WAIT_MSEC) == 1)
                if (read(fd, bytes, sizeof(bytes)) <= 0)
                        return true;
        return false;
}

static bool serves(const char *path) {
        sd_bus *bus = client(path);
        bool good = bus && !*call_error(bus, "Status", NULL);
        sd_bus_close_unref(bus);
        return good;
}

static void test_connections_are_bounded(void **state) {
        struct server server = {0};
        sd_bus *clients[BUS_CONNECTIONS_MAX];

        (void)state;
        server_start(&server);
        for (size_t i = 0; i < ARRAY_SIZE(clients); i++) {
                clients[i] = client(server.path);
                assert_non_null(clients[i]);
                assert_string_equal(call_error(clients[i], "Status", NULL), "");
        }
        int fd = raw_connect(server.path);
        assert_true(fd >= 0);
        assert_true(closed_by_peer(fd));
        assert_int_equal(close(fd), 0);
        assert_string_equal(call_error(clients[0], "Status", NULL), "");
        for (size_t i = 0; i < ARRAY_SIZE(clients); i++)
                sd_bus_close_unref(clients[i]);
        assert_true(serves(server.path));
        server_stop(&server);
}

static void test_privileged_displaces(void **state) {
        struct server server = {0};
        int fds[2], status;
        char byte;

        (void)state;
        if (geteuid() != 0) {
                print_message("skipped: only root can become other users\n");
                skip();
        }
        server_start(&server);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        (void)fflush(NULL);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) { /* takes all there are and one more, and sits on them */
                int first = -1, last = -1;
                if (setgroups(0, NULL) < 0 || setresgid(1, 1, 1) < 0 ||
                    setresuid(OTHER_USER, OTHER_USER, OTHER_USER) < 0)
                        _exit(100);
                for (size_t i = 0; i < BUS_CONNECTIONS_MAX; i++) {
                        last = raw_connect(server.path);
                        first = first < 0 ? last : first;
                }
                int more = raw_connect(server.path);
                if (!closed_by_peer(more))
                        _exit(101);
                if (write(fds[1], "r", 1) != 1 || !closed_by_peer(first)) /* the longest idle one had to go */
                        _exit(102);
                _exit(0);
        }
        assert_int_equal(read(fds[0], &byte, 1), 1);
        assert_true(serves(server.path));
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
        assert_int_equal(close(fds[0]), 0);
        assert_int_equal(close(fds[1]), 0);
        server_stop(&server);
}

static void test_garbage(void **state) {
        struct server server = {0};
        uint64_t seed = base_random_u64();
        const char *text = getenv("SEED");
        char bytes[512];

        (void)state;
        if (text)
                assert_int_equal(base_parse_u64(text, 0, UINT64_MAX, &seed), 0);
        print_message("SEED=%" PRIu64 "\n", seed);
        server_start(&server);
        for (int round = 0; round < 200; round++) {
                size_t size = 1 + base_random_next(&seed) % sizeof(bytes);
                for (size_t i = 0; i < size; i++)
                        bytes[i] = (char)base_random_next(&seed);
                if (round % 2) /* authenticated, then nonsense */
                        memcpy(bytes, "\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\nl\1\0\1", size < 34 ? size : 34);
                int fd = raw_connect(server.path);
                assert_true(fd >= 0);
                (void)!send(fd, bytes, size, MSG_NOSIGNAL);
                assert_int_equal(close(fd), 0);
        }
        assert_true(serves(server.path));
        server_stop(&server);
}

/* A client that asks for much and reads nothing: the others are served, memory stays bounded, it is closed. */
static void test_reader_that_does_not_read(void **state) {
        struct server server = {.extra_rows = BUS_ROWS_MAX};
        char path[64], line[256];
        uint64_t resident = 0;

        (void)state;
        server_start(&server);
        sd_bus *bus = client(server.path);
        assert_non_null(bus);
        assert_string_equal(call_error(bus, "Status", NULL), "");
        for (int i = 0; i < 100; i++) {
                sd_bus_message *message = NULL;
                assert_true(sd_bus_message_new_method_call(bus, &message, NULL, BUS_PATH, BUS_NAME, "List") >= 0);
                assert_true(sd_bus_message_append(message, "b", 1) >= 0);
                uint64_t cookie; /* asked for, or the message would say that no reply is expected */
                assert_true(sd_bus_send(bus, message, &cookie) >= 0);
                sd_bus_message_unref(message);
        }
        (void)sd_bus_flush(bus);
        assert_true(serves(server.path));
        (void)snprintf(path, sizeof(path), "/proc/%d/statm", (int)server.pid);
        FILE *file = fopen(path, "re");
        assert_non_null(file);
        assert_non_null(fgets(line, sizeof(line), file));
        (void)fclose(file);
        assert_int_equal(sscanf(line, "%*u %" SCNu64, &resident), 1);
        assert_true(resident * 4096 < UINT64_C(60) * 1024 * 1024); /* 100 replies would be about 100 MB */
        struct pollfd poll_fd = {.fd = sd_bus_get_fd(bus), .events = POLLRDHUP};
        assert_int_equal(poll(&poll_fd, 1, WAIT_MSEC), 1);
        assert_true(poll_fd.revents & (POLLRDHUP | POLLHUP));
        sd_bus_close_unref(bus);
        server_stop(&server);
}

static uint64_t clock_usec(clockid_t clock) {
        struct timespec now;
        assert_int_equal(clock_gettime(clock, &now), 0);
        return (uint64_t)now.tv_sec * USEC_PER_SEC + (uint64_t)now.tv_nsec / 1000;
}

/* Other users hammer at the costly call: the loop keeps most of its time for its work. */
static void test_hammering(void **state) {
        struct server server = {.extra_rows = BUS_ROWS_MAX};
        pid_t pids[3];
        clockid_t clock;
        int status;

        (void)state;
        if (geteuid() != 0) {
                print_message("skipped: only root can become other users\n");
                skip();
        }
        server_start(&server);
        assert_int_equal(clock_getcpuclockid(server.pid, &clock), 0);
        uint64_t begin_usec = clock_usec(CLOCK_MONOTONIC), begin_cpu_usec = clock_usec(clock);
        (void)fflush(NULL);
        for (size_t i = 0; i < ARRAY_SIZE(pids); i++) {
                pids[i] = fork();
                assert_true(pids[i] >= 0);
                if (pids[i] > 0)
                        continue;
                if (setgroups(0, NULL) < 0 || setresgid(1, 1, 1) < 0 ||
                    setresuid(OTHER_USER, OTHER_USER, OTHER_USER) < 0)
                        _exit(100);
                sd_bus *bus = client(server.path);
                while (bus && clock_usec(CLOCK_MONOTONIC) < begin_usec + USEC_PER_SEC)
                        if (sd_bus_call_method(bus, NULL, BUS_PATH, BUS_NAME, "List", NULL, NULL, "b", 1) < 0)
                                _exit(101);
                _exit(bus ? 0 : 102);
        }
        for (size_t i = 0; i < ARRAY_SIZE(pids); i++) {
                assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
                assert_int_equal(status, 0);
        }
        uint64_t took_usec = clock_usec(CLOCK_MONOTONIC) - begin_usec, cpu_usec = clock_usec(clock) - begin_cpu_usec;
        print_message("%" PRIu64 "%% of the loop's time\n", cpu_usec * 100 / took_usec);
        assert_true(cpu_usec * 100 / took_usec < 35);
        server_stop(&server);
}

/* ---- the socket ----------------------------------------------------------------------------------- */

static void test_socket(void **state) {
        char directory[] = "/tmp/test-bus-XXXXXX", path[64], long_path[200];
        struct event *event;
        struct bus *bus = NULL;
        struct stat status;

        (void)state;
        assert_non_null(mkdtemp(directory));
        (void)snprintf(path, sizeof(path), "%s/bus", directory);
        assert_int_equal(event_new(false, &event), 0);

        int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600); /* something else than a socket stays */
        assert_true(fd >= 0);
        assert_int_equal(close(fd), 0);
        assert_int_equal(bus_new(event, path, &server_handlers, NULL, &bus), -EEXIST);
        assert_int_equal(unlink(path), 0);

        struct sockaddr_un address = {.sun_family = AF_UNIX}; /* a stale one of a process that was killed */
        (void)base_text_copy(address.sun_path, sizeof(address.sun_path), path);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(bind(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
        assert_int_equal(close(fd), 0);
        mode_t mask = umask(0077);
        assert_int_equal(bus_new(event, path, &server_handlers, NULL, &bus), 0);
        (void)umask(mask);
        assert_int_equal(stat(path, &status), 0);
        assert_int_equal(status.st_mode & 0777, 0666);
        assert_null(bus_free(bus));
        assert_int_equal(access(path, F_OK), -1);

        (void)snprintf(long_path, sizeof(long_path), "%s/%0120d", directory, 0);
        assert_int_equal(bus_new(event, long_path, &server_handlers, NULL, &bus), -ENAMETOOLONG);
        (void)snprintf(long_path, sizeof(long_path), "%s/none/bus", directory);
        assert_int_equal(bus_new(event, long_path, &server_handlers, NULL, &bus), -ENOENT);
        assert_null(bus_free(NULL));
        event_free(event);
        assert_int_equal(rmdir(directory), 0);
}

static void test_busctl(void **state) {
        struct server server = {0};
        char command[512], line[512];
        bool seen = false;

        (void)state;
        if (access("/usr/bin/busctl", X_OK) < 0) {
                print_message("skipped: no busctl\n");
                skip();
        }
        server_start(&server);
        (void)snprintf(command, sizeof(command), "busctl --address=unix:path=%s introspect :1.1 " BUS_PATH " " BUS_NAME,
                       server.path);
        FILE *output = popen(command, "re");
        assert_non_null(output);
        while (fgets(line, sizeof(line), output))
                seen = seen || (strstr(line, ".Retry ") && strstr(line, "method"));
        assert_int_equal(pclose(output), 0);
        assert_true(seen);
        (void)snprintf(command, sizeof(command),
                       "busctl --address=unix:path=%s get-property :1.1 " BUS_PATH " " BUS_NAME " ClusterId",
                       server.path);
        output = popen(command, "re");
        assert_non_null(output);
        assert_non_null(fgets(line, sizeof(line), output));
        assert_string_equal(line, "s \"c1\"\n");
        assert_int_equal(pclose(output), 0);
        server_stop(&server);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_status_and_properties),
                cmocka_unit_test(test_list_and_show),
                cmocka_unit_test(test_rows_are_bounded),
                cmocka_unit_test(test_changing_calls),
                cmocka_unit_test(test_privileges),
                cmocka_unit_test(test_connections_are_bounded),
                cmocka_unit_test(test_privileged_displaces),
                cmocka_unit_test(test_garbage),
                cmocka_unit_test(test_reader_that_does_not_read),
                cmocka_unit_test(test_hammering),
                cmocka_unit_test(test_socket),
                cmocka_unit_test(test_answers_that_take_time),
                cmocka_unit_test(test_answers_to_nobody),
                cmocka_unit_test(test_bad_jobs),
                cmocka_unit_test(test_cancel_knows_who),
                cmocka_unit_test(test_busctl),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
