/* SPDX-License-Identifier: Apache-2.0 */
/* observe: the doors through which something can be killed stay shut in observe mode, whoever knocks: a kill request at a
 * master, a signal to a driver, a signal to what it left behind. */
#include "driver.h"
#include "event.h"
#include "http.h"
#include "resolve.h"
#include "scripted_server.h"
#include "spark.h"

#include <fcntl.h>
#include <setjmp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <cmocka.h>

#define ID "driver-20260101000000-0001"

static void script(struct server_exchange *exchange, void *userdata) {
        (void)userdata;
        exchange->then = SERVER_CLOSE;
}

static int never(const struct spark_result *result, void *userdata) {
        (void)result;
        (void)userdata;
        fail_msg("an answer to a request that must not have been sent");
        return 0;
}

static void test_no_kill_request(void **state) {
        struct spark_request *request = NULL;
        struct resolve *resolve = NULL;
        struct event *event = NULL;
        struct spark *spark = NULL;
        struct http *http = NULL;

        (void)state;
        struct server *server = server_start(script, NULL);
        const char *url = server->url;
        assert_int_equal(event_new(false, &event), 0);
        assert_int_equal(resolve_new(event, &resolve), 0);
        assert_int_equal(http_new(event, resolve, &http), 0);
        struct spark_options options = {
                .masters = &url, .master_count = 1, .request_timeout_usec = USEC_PER_SEC, .observe = true};
        assert_int_equal(spark_new(event, http, &options, &spark), 0);
        for (unsigned i = 0; i < 3; i++)
                assert_int_equal(spark_kill(spark, ID, never, NULL, &request), -ECANCELED);
        assert_null(request);
        assert_int_equal(atomic_load(&server->requests), 0);
        spark_free(spark);
        http_free(http);
        resolve_free(resolve);
        event_free(event);
        server_stop(server);
}

/* ---- signals: a child of this program stands for a driver: a hold asks for pid and start time alone ------------- */

static pid_t spawn(void) {
        (void)fflush(NULL);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
                (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
                for (;;)
                        (void)pause();
        }
        return pid;
}

static uint64_t start_ticks(pid_t pid) {
        char path[64], text[1024] = "";
        uint64_t ticks = 0;

        (void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
        FILE *file = fopen(path, "re");
        assert_non_null(file);
        assert_non_null(fgets(text, sizeof(text), file));
        (void)fclose(file);
        const char *at = strrchr(text, ')');
        assert_non_null(at);
        assert_int_equal(sscanf(at + 1, " %*c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %" SCNu64, &ticks), 1);
        return ticks;
}

static int on_exit_seen(void *userdata) {
        (*(unsigned *)userdata)++;
        return 0;
}

static void try_to_signal(bool observe, int expected) {
        struct driver_hold *hold = NULL;
        struct driver *driver = NULL;
        struct event *event = NULL;
        unsigned exits = 0;
        pid_t pid = spawn();
        int status = 0, proc_fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        struct driver_options options = {
                .proc_fd = proc_fd, .work_directory = "/tmp", .job_id_property = "job", .driver_uid = -1, .observe = observe};
        struct driver_found found = {.pid = pid, .start_ticks = start_ticks(pid)};

        assert_true(proc_fd >= 0);
        assert_int_equal(event_new(false, &event), 0);
        assert_int_equal(driver_new(event, &options, NULL, NULL, &driver), 0);
        assert_int_equal(driver_hold(driver, &found, on_exit_seen, &exits, &hold), 0);
        assert_int_equal(driver_signal(hold, SIGTERM), expected);
        assert_int_equal(driver_signal(hold, SIGKILL), expected);
        if (observe) {
                assert_int_equal(driver_signal_leftovers(hold, SIGTERM), -ECANCELED);
                assert_int_equal(driver_signal_leftovers(hold, SIGKILL), -ECANCELED);
                assert_int_equal(waitpid(pid, &status, WNOHANG), 0); /* it lives */
                int pidfd = (int)syscall(SYS_pidfd_open, pid, 0U);
                assert_true(pidfd >= 0);
                assert_int_equal(syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0U), 0);
                (void)close(pidfd);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        driver_hold_free(hold);
        driver_free(driver);
        event_free(event);
        (void)close(proc_fd);
}

static void test_no_signal(void **state) {
        (void)state;
        try_to_signal(true, -ECANCELED);
        try_to_signal(false, 0); /* the same without: the test does reach the door */
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_no_kill_request),
                cmocka_unit_test(test_no_signal),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
