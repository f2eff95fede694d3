/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* bus_server: a real bus on a socket of its own in a child process, with an agent of fixed answers behind it, for
 * test_bus.c and test_ctl.c. The child ends when the parent closes its pipe, and its exit code says whether all
 * was well (a sanitizer's report included). */
#include "bus.h"
#include "event.h"

#include <fcntl.h>
#include <setjmp.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/epoll.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <cmocka.h>

#define SERVER_HOSTILE "nl\nesc\x1b[31m \"quote\" back\\slash \xff \xe2\x82\xac"
#define SERVER_HOSTILE_ESCAPED "nl\\x0Aesc\\x1B[31m \"quote\" back\\slash \\xFF \xe2\x82\xac"

struct server {
        int cancels, finds;  /* the child's: calls of these methods */
        struct bus_call *forgotten[BUS_CONNECTIONS_MAX];
        size_t forgotten_count;
        struct bus_call *kept; /* the child's: a Find that is not answered before the next one */
        char directory[64], path[96];
        pid_t pid;
        int pipe_fd;         /* the parent's end */
        uint64_t extra_rows; /* made up for List(all) */
        gid_t group;         /* not 0: becomes the id of group spark-cancel, in the child's own mount namespace */
        struct event *event; /* the child's */
};

/* ---- the agent of fixed answers ---------------------------------------------------------------------- */

static void server_status(struct bus_status *ret, void *userdata) {
        (void)userdata;
        *ret = (struct bus_status){
                .version = "0.1.0",
                .cluster_id = "c1",
                .node = "n1",
                .endpoint = "https://cp.example:443",
                .mode = "act",
                .connection_error = "",
                .summary = "Connected to cp.example:443; 2 open, 1 waiting for a driver",
                .connected = true,
                .open = 2,
                .searching = 1,
                .quarantined = 3,
                .reports_waiting = 4,
                .revision = INT64_C(9007199254740993),
        };
}

static int server_list(bool all, int (*visit)(const struct bus_operation *operation, void *visitor), void *visitor,
                       void *userdata) {
        const struct server *server = userdata;
        static const struct bus_operation operations[] = {
                {.operation_id = "op-1",
                 .job_id = "j1",
                 .state = "WAIT",
                 .driver_id = "driver-1",
                 .driver_pid = 4242,
                 .driver_state = "RUNNING",
                 .received_real_usec = UINT64_C(1795530123000000),
                 .kill_requests = 2},
                {.operation_id = "op-2", .job_id = "j2", .state = "SEARCH"},
                {.operation_id = "op-3",
                 .job_id = "j3",
                 .state = "DONE",
                 .outcome = "CANCELLED",
                 .message = SERVER_HOSTILE,
                 .ended_real_usec = UINT64_C(1795530125000000)},
        };
        for (size_t i = 0; i < (all ? 3 : 2); i++) {
                int r = visit(&operations[i], visitor);
                if (r < 0)
                        return r;
        }
        for (uint64_t i = 0; all && i < server->extra_rows; i++) {
                int r = visit(&operations[2], visitor);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int server_reload(char *error, size_t error_size, void *userdata) {
        const struct server *server = userdata;
        if (server->extra_rows == 0)
                return 0;
        (void)base_text_copy(error, error_size, "agent.conf:3: node: can't be changed \x1b[31m");
        return -EINVAL;
}

static int server_retry(const char *operation_id, void *userdata) {
        (void)userdata;
        if (strcmp(operation_id, "op-q") == 0)
                return 0;
        return strcmp(operation_id, "op-1") == 0 ? -EINVAL : -ENOENT;
}

static int server_metrics(struct buffer *out, void *userdata) {
        (void)userdata;
        return buffer_append_text(
                out, "# HELP x y\n# TYPE x counter\nx 5\nx{l=\"a\\\"b\\\\\"} 1.5\nx_bucket{le=\"+Inf\"} 7\n"
                     "y +Inf\n");
}

/* "later" is answered by the next Find, "busy" not taken; else at once. */
static int server_find(const char *job_id, struct bus_call *call, void *userdata) {
        static const struct bus_lookalike lookalikes[] = {{4243, "its main class is not DriverWrapper"},
                                                          {4244, "its parent is no Worker"}};
        struct server *server = userdata;
        const struct bus_find none = {.job_id = job_id, .mode = "act", .reason = "No driver", .recent_driver_id = "driver-9"};
        const struct bus_find hit = {
                .job_id = job_id,
                .mode = "act",
                .would_kill = true,
                .reason = SERVER_HOSTILE,
                .driver_id = "driver-1",
                .driver_state = "RUNNING",
                .app_name = "daily",
                .driver_pid = 4242,
                .worker_pid = 17,
                .started_real_usec = UINT64_C(1795530123000000),
        };

        if (strcmp(job_id, "busy") == 0)
                return -EBUSY;
        if (strcmp(job_id, "later") == 0) {
                server->kept = call;
                return 0;
        }
        if (strcmp(job_id, "forgotten") == 0) { /* until somebody else comes and it is not wanted any more */
                for (size_t i = 0; i < server->forgotten_count; i++)
                        if (!bus_call_is_wanted(server->forgotten[i])) {
                                bus_call_fail(server->forgotten[i], "");
                                server->forgotten[i] = call;
                                return 0;
                        }
                if (server->forgotten_count == ARRAY_SIZE(server->forgotten))
                        return -EBUSY;
                server->forgotten[server->forgotten_count++] = call;
                return 0;
        }
        if (server->kept)
                bus_call_answer_find(TAKE(server->kept), &none, NULL, 0);
        if (strcmp(job_id, "j1") == 0)
                bus_call_answer_find(call, &hit, lookalikes, ARRAY_SIZE(lookalikes));
        else
                bus_call_answer_find(call, &none, NULL, 0);
        return 0;
}

/* The job's id decides what becomes of it. */
static int server_cancel(const char *job_id, uint32_t uid, struct bus_call *call, void *userdata) {
        struct server *server = userdata;
        char id[OPERATION_ID_MAX + 1];

        server->cancels++;
        if (strcmp(job_id, "stopping") == 0)
                return -EAGAIN;
        if (strcmp(job_id, "fails") == 0) {
                bus_call_fail(call, "not stored \x1b[31m");
                return 0;
        }
        if (strcmp(job_id, "who") == 0)
                (void)snprintf(id, sizeof(id), "local-uid-%" PRIu32, uid);
        else
                (void)snprintf(id, sizeof(id), "%s", strcmp(job_id, "j3") == 0 ? "op-3" : "local-1");
        bus_call_answer_cancel(call, id);
        return 0;
}

static int server_check(struct bus_call *call, void *userdata) {
        const struct server *server = userdata;
        static const struct bus_finding findings[] = {{"control plane", "ok", "connected", ""},
                                                      {"master http://m1:6066", "failure", SERVER_HOSTILE, "start it"}};

        bus_call_answer_check(call, findings, server->extra_rows > 0 ? 2 : 1);
        return 0;
}

static const struct bus_handlers server_handlers = {
        .status = server_status,
        .list = server_list,
        .reload = server_reload,
        .retry = server_retry,
        .metrics = server_metrics,
        .find = server_find,
        .cancel = server_cancel,
        .check = server_check,
};

/* ---- the child ------------------------------------------------------------------------------------ */

static int server_on_pipe(uint32_t epoll_events, void *userdata) {
        const struct server *server = userdata;
        (void)epoll_events;
        event_exit(server->event, 0);
        return 0;
}

/* server_make_group() - an /etc/group of our own that has spark-cancel. */
static bool server_make_group(const struct server *server) {
        char path[160];
        (void)snprintf(path, sizeof(path), "%s/group", server->directory);
        FILE *file = fopen(path, "we");
        if (!file)
                return false;
        (void)fprintf(file, "root:x:0:\nspark-cancel:x:%u:\n", (unsigned)server->group);
        return fclose(file) == 0 && unshare(CLONE_NEWNS) == 0 &&
               mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
               mount(path, "/etc/group", NULL, MS_BIND, NULL) == 0;
}

static int server_serve(struct server *server, int fd) {
        _cleanup_(event_free_pointer) struct event *event = NULL;
        _cleanup_(event_source_free_pointer) struct event_source *source = NULL;
        _cleanup_(bus_free_pointer) struct bus *bus = NULL;

        if (server->group > 0 && !server_make_group(server))
                return 1;
        if (event_new(false, &event) < 0)
                return 2;
        server->event = event;
        if (event_add_io(event, "parent", fd, EPOLLIN, server_on_pipe, server, &source) < 0)
                return 3;
        if (bus_new(event, server->path, &server_handlers, server, &bus) < 0)
                return 4;
        if (write(fd, "r", 1) != 1)
                return 5;
        return event_run(event) == 0 ? 0 : 6;
}

/* ---- the parent ----------------------------------------------------------------------------------- */

static void server_start(struct server *server) {
        int fds[2];
        char byte;

        (void)base_text_copy(server->directory, sizeof(server->directory), "/tmp/test-bus-XXXXXX");
        assert_non_null(mkdtemp(server->directory));
        assert_int_equal(chmod(server->directory, 0755), 0);
        (void)snprintf(server->path, sizeof(server->path), "%s/bus", server->directory);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        (void)fflush(NULL);
        server->pid = fork();
        assert_true(server->pid >= 0);
        if (server->pid == 0) {
                (void)close(fds[0]);
                exit(server_serve(server, fds[1]));
        }
        assert_int_equal(close(fds[1]), 0);
        server->pipe_fd = fds[0];
        assert_int_equal(read(server->pipe_fd, &byte, 1), 1);
}

static void server_stop(struct server *server) {
        char group[160];
        int status;

        (void)snprintf(group, sizeof(group), "%s/group", server->directory);
        assert_int_equal(close(server->pipe_fd), 0);
        assert_int_equal(waitpid(server->pid, &status, 0), server->pid);
        assert_int_equal(status, 0);
        assert_int_equal(access(server->path, F_OK), -1); /* the socket is gone */
        (void)unlink(group);
        assert_int_equal(rmdir(server->directory), 0);
}
