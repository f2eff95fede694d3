/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver module against the kernel: real processes in the real process directory, pidfds, inotify. This program
 * starts itself again as a Worker, which starts itself again as a driver, with the argument lists of those.
 */
#include "driver_tree.h"

#include <dirent.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define ROLE "TEST_DRIVER_ROLE" /* in the environment of our children: what to play */
#define LIMIT_USEC (10 * USEC_PER_SEC)

/* ---- waiting --------------------------------------------------------------------------------------------------- */

static int on_limit(void *userdata) {
        struct tree *tree = userdata;

        event_exit(tree->event, 1);
        return 0;
}

/* run() - until a handler exits the loop; false when nothing came within `usec`. */
static bool run(struct tree *tree, uint64_t usec) {
        struct event_source *timer = NULL;
        int r;

        assert_int_equal(event_add_timer(tree->event, "limit", on_limit, tree, &timer), 0);
        assert_int_equal(event_timer_set(timer, event_now_usec(tree->event) + usec), 0);
        r = event_run(tree->event);
        event_source_free(timer);
        assert_in_range(r, 0, 1);
        return r == 0;
}

static void expect_wake(struct tree *tree) {
        unsigned before = tree->wakes;

        if (!run(tree, LIMIT_USEC))
                fail_msg("no wake");
        assert_int_equal(tree->wakes, before + 1);
}

/* expect_quiet() - what was to come has come: inotify's events are queued before the call that makes them returns. */
static void expect_quiet(struct tree *tree) {
        assert_false(run(tree, 20 * USEC_PER_MSEC));
}

/* settle() - let pass what the building of the tree has woken. */
static void settle(struct tree *tree) {
        while (run(tree, 20 * USEC_PER_MSEC))
                ;
}

static void make_directory(const char *directory, const char *name) {
        _cleanup_free_ char *path = tree_path(directory, name);

        assert_int_equal(mkdir(path, 0755), 0);
}

static void make_file(const char *directory, const char *name) {
        _cleanup_free_ char *path = tree_path(directory, name);

        tree_write_text(path, "");
}

/* ---- the watch -----------------------------------------------------------------------------------------------------
 */

static void test_wakes(void **state) {
        struct tree *tree = *state;
        _cleanup_free_ char *one = tree_path(tree->work, DRIVER_1), *other = tree_path(tree->root, "elsewhere");

        expect_quiet(tree);
        make_directory(tree->work, DRIVER_1);
        expect_wake(tree);
        make_file(one, "stdout");
        make_file(one, "app.jar");
        expect_quiet(tree);
        make_file(one, "stderr");
        expect_wake(tree);

        /* The watch of that directory is gone now. */
        tree_remove(one);
        expect_quiet(tree);
        make_file(tree->work, "file");
        expect_quiet(tree);

        /* Moved in counts as made. */
        make_directory(tree->root, "elsewhere");
        {
                _cleanup_free_ char *target = tree_path(tree->work, DRIVER_2);

                assert_int_equal(rename(other, target), 0);
        }
        expect_wake(tree);
}

static void test_wakes_are_folded(void **state) {
        struct tree *tree = *state;

        for (int i = 0; i < 300; i++) { /* more than there are watches for */
                char name[32];
                _cleanup_free_ char *path = NULL;

                snprintf(name, sizeof(name), "driver-%d", i);
                make_directory(tree->work, name);
                path = tree_path(tree->work, name);
                make_file(path, "stderr");
        }
        expect_wake(tree);
        settle(tree);
        assert_in_range(tree->wakes, 1, 3);
}

static void test_oldest_watch_goes_first(void **state) {
        struct tree *tree = *state;
        _cleanup_free_ char *last = tree_path(tree->work, "driver-99"), *first = tree_path(tree->work, "driver-0");
        _cleanup_free_ char *middle = tree_path(tree->work, "driver-50");

        for (int i = 0; i < 100; i++) {
                char name[32];

                snprintf(name, sizeof(name), "driver-%d", i);
                make_directory(tree->work, name);
        }
        expect_wake(tree);
        settle(tree);
        make_file(first, "stderr");
        expect_quiet(tree);
        make_file(middle, "stderr");
        expect_wake(tree);
        make_file(last, "stderr");
        expect_wake(tree);
}

/* An application's directory gets one directory for each executor; no driver will start there. */
static void test_application_directory(void **state) {
        struct tree *tree = *state;
        _cleanup_free_ char *application = tree_path(tree->work, "app-20261107101500-0001");

        make_directory(tree->work, "app-20261107101500-0001");
        expect_wake(tree);
        make_directory(application, "0");
        expect_quiet(tree);
        make_file(application, "stderr");
        expect_quiet(tree);
}

static void test_late_work_directory(void **state) {
        struct tree *tree = *state;
        _cleanup_free_ char *deep = tree_path(tree->root, "a/b/work"), *a = tree_path(tree->root, "a"),
                            *b = tree_path(tree->root, "a/b");
        struct driver_options options = {
                .proc_fd = tree->proc_fd, .work_directory = deep, .job_id_property = PROPERTY, .driver_uid = -1};
        struct driver *driver = NULL;

        assert_int_equal(driver_new(tree->event, &options, tree_on_wake, tree, &driver), 0);
        assert_string_equal(driver_work_directory_status(driver), "does not exist");
        make_directory(tree->root, "other");
        make_directory(tree->root, "a");
        expect_quiet(tree);
        make_directory(a, "b");
        make_directory(b, "x");
        expect_quiet(tree);
        make_directory(b, "work");
        expect_wake(tree);
        make_directory(deep, DRIVER_1);
        expect_wake(tree);
        assert_int_equal(driver_scan(driver), 0);
        assert_null(driver_work_directory_status(driver));

        /* All of it at once, faster than we look. */
        tree_remove(a);
        expect_wake(tree);
        make_directory(tree->root, "a");
        make_directory(a, "b");
        make_directory(b, "work");
        expect_wake(tree);
        make_directory(deep, DRIVER_2);
        expect_wake(tree);
        driver_free(driver);
}

static void test_made_again(void **state) {
        struct tree *tree = *state;
        _cleanup_free_ char *aside = tree_path(tree->root, "aside");

        for (int i = 0; i < 3; i++) {
                tree_remove(tree->work);
                expect_wake(tree);
                assert_int_equal(mkdir(tree->work, 0755), 0);
                expect_wake(tree);
                make_directory(tree->work, DRIVER_1);
                expect_wake(tree);
        }
        assert_int_equal(rename(tree->work, aside), 0);
        expect_wake(tree);
        make_directory(aside, DRIVER_2);
        expect_quiet(tree);
        assert_int_equal(rename(aside, tree->work), 0);
        expect_wake(tree);
        make_directory(tree->work, "driver-3");
        expect_wake(tree);
}

/* A link that is turned tells nobody; the next scan sees it. */
static void test_turned_link(void **state) {
        struct tree *tree = *state;
        _cleanup_free_ char *one = tree_path(tree->root, "one"), *two = tree_path(tree->root, "two");

        assert_int_equal(rename(tree->work, one), 0);
        expect_wake(tree);
        assert_int_equal(mkdir(two, 0755), 0);
        assert_int_equal(symlink(one, tree->work), 0);
        expect_wake(tree);
        make_directory(one, DRIVER_1);
        expect_wake(tree);
        assert_int_equal(unlink(tree->work), 0);
        assert_int_equal(symlink(two, tree->work), 0);
        assert_int_equal(driver_scan(tree->driver), 0);
        make_directory(one, DRIVER_2);
        expect_quiet(tree);
        make_directory(two, DRIVER_2);
        expect_wake(tree);
}

static void test_overflow(void **state) {
        struct tree *tree = *state;
        _cleanup_free_ char *one = tree_path(tree->work, "one"), *two = tree_path(tree->work, "two");
        FILE *file = fopen("/proc/sys/fs/inotify/max_queued_events", "re");
        unsigned limit = 0;

        if (!file || fscanf(file, "%u", &limit) != 1 || limit > 100000) {
                if (file)
                        fclose(file);
                print_message("skipped: the queue of inotify is too long to fill\n");
                skip();
        }
        fclose(file);
        make_file(tree->work, "one");
        for (unsigned i = 0; i <= limit / 2 + 1; i++) {
                assert_int_equal(rename(one, two), 0);
                assert_int_equal(rename(two, one), 0);
        }
        expect_wake(tree);
        settle(tree);
        make_directory(tree->work, DRIVER_1); /* and the watch goes on */
        expect_wake(tree);
}

static void test_no_wake_callback(void **state) {
        struct tree *tree = *state;
        struct driver_options options = {
                .proc_fd = tree->proc_fd, .work_directory = tree->work, .job_id_property = PROPERTY, .driver_uid = -1};
        struct driver *driver = NULL;

        tree->driver = driver_free(tree->driver);
        assert_int_equal(driver_new(tree->event, &options, NULL, NULL, &driver), 0);
        make_directory(tree->work, DRIVER_1);
        expect_quiet(tree);
        driver_free(driver);
}

static void test_free_with_wake_pending(void **state) {
        struct tree *tree = *state;

        make_directory(tree->work, DRIVER_1);
        tree->driver = driver_free(tree->driver);
        expect_quiet(tree);
        assert_int_equal(tree->wakes, 0);
}

/* ---- holds: a real child, named by a built tree
 * ------------------------------------------------------------------------- */

/* spawn_sleeper() - a child that ends with us or when it is signalled. */
static pid_t spawn_sleeper(void) {
        pid_t pid = fork();

        assert_true(pid >= 0);
        if (pid > 0)
                return pid;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execlp("sleep", "sleep", "60", (char *)NULL);
        _exit(127);
}

static void end_child(pid_t pid) {
        int fd = (int)syscall(SYS_pidfd_open, pid, 0);

        if (fd >= 0) {
                syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0);
                close(fd);
        }
        waitpid(pid, NULL, 0);
}

static struct driver_found find_child(struct tree *tree, pid_t pid) {
        struct driver_found found = {0};

        tree_put(tree, TREE_DRIVER(.pid = pid));
        assert_int_equal(driver_scan(tree->driver), 0);
        assert_int_equal(driver_match(tree->driver, "42", NULL, &found), DRIVER_MATCH_ONE);
        assert_int_equal(found.pid, pid);
        settle(tree);
        return found;
}

static void test_hold_and_signal(void **state) {
        static const int signals[] = {SIGTERM, SIGKILL};
        struct tree *tree = *state;

        for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
                pid_t pid = spawn_sleeper();
                struct driver_found found = find_child(tree, pid);
                struct driver_hold *hold = NULL;
                int status = 0;

                tree->exits = 0;
                assert_int_equal(driver_hold(tree->driver, &found, tree_on_exit, tree, &hold), 0);
                expect_quiet(tree);
                assert_int_equal(tree->exits, 0);
                assert_int_equal(driver_signal(hold, SIGHUP), -EINVAL);
                assert_int_equal(driver_signal(hold, 0), -EINVAL);
                assert_int_equal(driver_signal(hold, signals[i]), 0);
                assert_true(run(tree, LIMIT_USEC));
                assert_int_equal(tree->exits, 1);
                expect_quiet(tree); /* once, although nobody has reaped it */
                assert_int_equal(tree->exits, 1);
                assert_int_equal(driver_signal(hold, signals[i]), -ESRCH);
                assert_int_equal(waitpid(pid, &status, 0), pid);
                assert_true(WIFSIGNALED(status) && WTERMSIG(status) == signals[i]);
                driver_hold_free(hold);
                tree_take(tree, pid);
        }
        assert_null(driver_hold_free(NULL));
}

static void test_hold_freed(void **state) {
        struct tree *tree = *state;
        pid_t pid = spawn_sleeper();
        struct driver_found found = find_child(tree, pid);
        struct driver_hold *hold = NULL;

        assert_int_equal(driver_hold(tree->driver, &found, tree_on_exit, tree, &hold), 0);
        end_child(pid);
        driver_hold_free(hold);
        expect_quiet(tree);
        assert_int_equal(tree->exits, 0);
}

struct self_free {
        struct tree *tree;
        struct driver_hold *hold;
};

static int on_exit_free(void *userdata) {
        struct self_free *self = userdata;

        self->hold = driver_hold_free(self->hold);
        return tree_on_exit(self->tree);
}

static void test_hold_freed_in_callback(void **state) {
        struct tree *tree = *state;
        pid_t pid = spawn_sleeper();
        struct driver_found found = find_child(tree, pid);
        struct self_free self = {.tree = tree};

        assert_int_equal(driver_hold(tree->driver, &found, on_exit_free, &self, &self.hold), 0);
        end_child(pid);
        assert_true(run(tree, LIMIT_USEC));
        assert_int_equal(tree->exits, 1);
        assert_null(self.hold);
}

/* The hold outlives the driver object. */
static void test_hold_outlives(void **state) {
        struct tree *tree = *state;
        pid_t pid = spawn_sleeper();
        struct driver_found found = find_child(tree, pid);
        struct driver_hold *hold = NULL;

        assert_int_equal(driver_hold(tree->driver, &found, tree_on_exit, tree, &hold), 0);
        tree->driver = driver_free(tree->driver);
        end_child(pid);
        assert_true(run(tree, LIMIT_USEC));
        assert_int_equal(tree->exits, 1);
        driver_hold_free(hold);
}

static void test_hold_of_the_gone(void **state) {
        struct tree *tree = *state;
        pid_t pid = spawn_sleeper();
        struct driver_found found = find_child(tree, pid);
        struct driver_hold *hold = NULL;

        /* The pid lives, but as another process: never held, so never signalled. */
        tree_put(tree, TREE_DRIVER(.pid = pid, .start = DRIVER_START + 1));
        assert_int_equal(driver_hold(tree->driver, &found, tree_on_exit, tree, &hold), 1);
        tree_put(tree, TREE_DRIVER(.pid = pid, .state = 'Z'));
        assert_int_equal(driver_hold(tree->driver, &found, tree_on_exit, tree, &hold), 1);
        tree_take(tree, pid);
        assert_int_equal(driver_hold(tree->driver, &found, tree_on_exit, tree, &hold), 1);
        tree_put(tree, TREE_DRIVER(.pid = pid));
        end_child(pid);
        assert_int_equal(driver_hold(tree->driver, &found, tree_on_exit, tree, &hold), 1);
        assert_null(hold);
        found.pid = 0;
        assert_int_equal(driver_hold(tree->driver, &found, tree_on_exit, tree, &hold), -EINVAL);
        assert_int_equal(tree->exits, 0);
}

/* ---- real Worker, real driver
 * ----------------------------------------------------------------------------------------------- */

/* wait_for_end() - the other end of our standard input is the test's; it closes it and all of us end. */
static void *wait_for_end(void *unused) {
        char byte;

        (void)unused;
        while (read(STDIN_FILENO, &byte, 1) > 0)
                ;
        _exit(0);
}

/* play_driver() - like a JVM: the threads live on when the first one has ended. */
static void play_driver(bool first_thread_ends) {
        pthread_t thread;

        if (pthread_create(&thread, NULL, wait_for_end, NULL) != 0)
                _exit(1);
        if (first_thread_ends)
                syscall(SYS_exit, 0);
        pthread_join(thread, NULL);
}

/* play_worker() - start the driver in its directory, as DriverRunner does. */
static void play_worker(char **argv, const char *role) {
        const char *work = argv[6], *directory = argv[7];
        char jar[512];
        char *list[] = {argv[0],
                        (char *)"-cp",
                        (char *)"/opt/spark/jars/*",
                        (char *)"-Xmx1024M",
                        (char *)"-Dspark.app.name=real",
                        (char *)ID "42",
                        (char *)ID "666",
                        (char *)WRAPPER,
                        (char *)"spark://Worker@127.0.0.1:7078",
                        jar,
                        (char *)"com.example.Main",
                        NULL};

        snprintf(jar, sizeof(jar), "%s/app.jar", directory);
        if (fork() == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                if (chdir(directory) < 0 || setenv(ROLE, role, 1) < 0)
                        _exit(1);
                execv("/proc/self/exe", list);
                _exit(127);
        }
        (void)work;
        wait_for_end(NULL);
}

/* play_parent() - a driver with a child and a grandchild that outlive it, in a directory that is not the driver's; the
 * grandchild goes on in a session of its own. All of them hold the pipe, and end when the test closes its end. */
static void play_parent(const char *role) {
        if (fork() == 0) {
                prctl(PR_SET_NAME, "child (\n) 1");
                if (chdir("/") < 0)
                        _exit(1);
                if (fork() == 0) {
                        prctl(PR_SET_NAME, "grandchild");
                        setsid();
                        if (strcmp(role, "parent-deaf") == 0)
                                signal(SIGTERM, SIG_IGN);
                        wait_for_end(NULL);
                }
                wait_for_end(NULL);
        }
        if (strcmp(role, "parent-dweller") == 0 && fork() == 0)
                execlp("cat", "cat", (char *)NULL); /* stays in the tree and in the directory: is one all the same */
        if (strcmp(role, "parent-dweller") == 0 && fork() == 0) { /* leaves the tree, stays in the directory */
                if (fork() == 0)
                        execlp("cat", "cat", (char *)NULL); /* reads what the others read; not a driver by its arguments */
                _exit(0);
        }
        play_driver(false);
}

static int play(const char *role, char **argv) {
        if (strncmp(role, "parent", 6) == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                play_parent(role);
                return 0;
        }
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (strcmp(role, "worker") == 0)
                play_worker(argv, "driver");
        else if (strcmp(role, "worker-of-headless") == 0)
                play_worker(argv, "headless");
        else if (strncmp(role, "worker-of-parent", 16) == 0)
                play_worker(argv, role + strlen("worker-of-"));
        else
                play_driver(strcmp(role, "headless") == 0);
        return 0;
}

struct cast {
        pid_t worker;
        int control; /* closing it ends them all */
        int proc_fd;
        struct driver *driver;
        struct driver_found found;
};

static void start_worker(struct tree *tree, const char *role, struct cast *cast) {
        _cleanup_free_ char *directory = tree_path(tree->work, DRIVER_1);
        char *list[] = {(char *)"/usr/bin/java",
                        (char *)"-cp",
                        (char *)"x",
                        (char *)"-Xmx1g",
                        (char *)WORKER,
                        (char *)"--work-dir",
                        tree->work,
                        directory,
                        NULL};
        int ends[2];

        mkdir(directory, 0755);
        assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
        cast->worker = fork();
        assert_true(cast->worker >= 0);
        if (cast->worker == 0) {
                if (dup2(ends[0], STDIN_FILENO) < 0 || setenv(ROLE, role, 1) < 0)
                        _exit(1);
                execv("/proc/self/exe", list);
                _exit(127);
        }
        close(ends[0]);
        cast->control = ends[1];
}

/* find_real() - scan until the driver has started. */
static void find_real(struct tree *tree, struct cast *cast) {
        cast->proc_fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        assert_true(cast->proc_fd >= 0);
        cast->driver = tree_make_driver(tree, cast->proc_fd, -1);
        for (unsigned i = 0; i < 5000; i++) {
                assert_int_equal(driver_scan(cast->driver), 0);
                if (driver_match(cast->driver, "42", NULL, &cast->found) == DRIVER_MATCH_ONE)
                        return;
                usleep(2000); /* between two looks; the limit is the loop's */
        }
        fail_msg("the real driver was not found");
}

static void end_cast(struct cast *cast) {
        close(cast->control);
        waitpid(cast->worker, NULL, 0);
        driver_free(cast->driver);
        close(cast->proc_fd);
}

static void count_lookalike(const struct driver_lookalike *lookalike, void *userdata) {
        unsigned *count = userdata;

        assert_non_null(lookalike->reason);
        *count += 1;
}

static void test_real_driver(void **state) {
        struct tree *tree = *state;
        uint64_t now = (uint64_t)time(NULL) * USEC_PER_SEC;
        struct driver_hold *hold = NULL;
        struct driver_found found;
        struct cast cast;
        unsigned decoys = 0;

        start_worker(tree, "worker", &cast);
        find_real(tree, &cast);
        settle(tree);
        assert_int_equal(cast.found.worker_pid, cast.worker);
        assert_string_equal(cast.found.driver_id, DRIVER_1);
        assert_string_equal(cast.found.app_name, "real");
        assert_in_range(cast.found.started_real_usec, now - 5 * USEC_PER_SEC, now + 60 * USEC_PER_SEC);
        assert_int_equal(driver_match(cast.driver, "666", NULL, &found), DRIVER_MATCH_NONE);
        driver_lookalikes(cast.driver, "666", count_lookalike, &decoys);
        assert_true(decoys >= 1); /* this is the machine's own /proc: another run of this test may be in it */
        assert_true(driver_process_alive(cast.driver, cast.found.pid, cast.found.start_ticks));
        assert_false(driver_process_alive(cast.driver, cast.found.pid, cast.found.start_ticks + 1));
        assert_int_equal(driver_hold(cast.driver, &cast.found, tree_on_exit, tree, &hold), 0);
        assert_int_equal(driver_signal(hold, SIGTERM), 0);
        assert_true(run(tree, LIMIT_USEC));
        assert_int_equal(tree->exits, 1);
        /* A zombie until its Worker reaps it, and dead all the same. */
        assert_false(driver_process_alive(cast.driver, cast.found.pid, cast.found.start_ticks));
        assert_int_equal(driver_scan(cast.driver), 0);
        assert_int_equal(driver_match(cast.driver, "42", NULL, &found), DRIVER_MATCH_NONE);
        driver_hold_free(hold);
        end_cast(&cast);
}

/* A driver whose first thread has ended looks like a zombie without arguments, and runs on. */
static void test_real_headless_driver(void **state) {
        struct tree *tree = *state;
        struct driver_hold *hold = NULL;
        struct cast cast;
        char path[64], text[512] = "";
        bool headless = false;

        start_worker(tree, "worker-of-headless", &cast);
        find_real(tree, &cast);
        settle(tree);
        snprintf(path, sizeof(path), "/proc/%d/stat", cast.found.pid);
        for (unsigned i = 0; i < 5000 && !headless; i++) {
                int fd = open(path, O_RDONLY | O_CLOEXEC);
                ssize_t size = read(fd, text, sizeof(text) - 1);

                close(fd);
                text[size > 0 ? size : 0] = 0;
                headless = strstr(text, ") Z ") != NULL;
                if (!headless)
                        usleep(2000);
        }
        assert_true(headless);
        assert_int_equal(driver_scan(cast.driver), 0);
        assert_int_equal(driver_match(cast.driver, "42", NULL, &cast.found), DRIVER_MATCH_ONE);
        assert_true(driver_process_alive(cast.driver, cast.found.pid, cast.found.start_ticks));
        assert_int_equal(driver_hold(cast.driver, &cast.found, tree_on_exit, tree, &hold), 0);
        expect_quiet(tree);
        assert_int_equal(tree->exits, 0);
        assert_int_equal(driver_signal(hold, SIGKILL), 0);
        assert_true(run(tree, LIMIT_USEC));
        assert_int_equal(tree->exits, 1);
        driver_hold_free(hold);
        end_cast(&cast);
}

/* ---- descendants
 * -------------------------------------------------------------------------------------------------------- */

struct seen {
        unsigned count;
        unsigned held;
        char names[256];
        int32_t pids[8];
};

static void see(const struct driver_leftover *leftover, void *userdata) {
        struct seen *seen = userdata;

        if (seen->count < ARRAY_SIZE(seen->pids))
                seen->pids[seen->count] = leftover->pid;
        seen->count++;
        seen->held += leftover->held;
        snprintf(seen->names + strlen(seen->names), sizeof(seen->names) - strlen(seen->names), "%s", leftover->comm);
}

static struct seen look(struct cast *cast, const struct driver_hold *hold) {
        struct seen seen = {0};
        uint32_t count = driver_leftovers(cast->driver, hold, DRIVER_1, see, &seen);

        assert_int_equal(count, seen.count);
        return seen;
}

/* wait_for_left() - until exactly `count` are left; the limit is the loop's. */
static struct seen wait_for_left(struct cast *cast, const struct driver_hold *hold, unsigned count) {
        struct seen seen = {0};

        for (unsigned i = 0; i < 5000; i++) {
                assert_int_equal(driver_scan(cast->driver), 0);
                seen = look(cast, hold);
                if (seen.count == count)
                        return seen;
                usleep(2000);
        }
        fail_msg("%u are left instead of %u: %s", seen.count, count, seen.names);
        return seen;
}

static void end_driver(struct tree *tree, struct driver_hold *hold) {
        assert_int_equal(driver_signal(hold, SIGKILL), 0);
        assert_true(run(tree, LIMIT_USEC));
        assert_int_equal(tree->exits, 1);
}

static void test_descendants(void **state) {
        struct tree *tree = *state;
        struct driver_hold *hold = NULL, *stranger = NULL;
        struct driver_found other = {0};
        struct seen seen;
        struct cast cast;
        pid_t sleeper;

        start_worker(tree, "worker-of-parent", &cast);
        find_real(tree, &cast);
        settle(tree);
        sleeper = spawn_sleeper();
        other = find_child(tree, sleeper);
        assert_int_equal(driver_hold(tree->driver, &other, tree_on_exit, tree, &stranger), 0);
        assert_int_equal(driver_hold(cast.driver, &cast.found, tree_on_exit, tree, &hold), 0);
        seen = wait_for_left(&cast, hold, 2); /* noted by the scans, whenever they were started */
        assert_int_equal(seen.held, 2);
        assert_int_equal(look(&cast, NULL).count, 0); /* the driver works in its directory itself */
        end_driver(tree, hold);
        assert_int_equal(driver_scan(cast.driver), 0);
        seen = look(&cast, hold);
        assert_int_equal(seen.count, 2);
        assert_non_null(strstr(seen.names, "child (\\x0A) 1")); /* hostile names are escaped */
        assert_non_null(strstr(seen.names, "grandchild"));
        assert_int_equal(look(&cast, stranger).count, 0); /* of another driver: none */
        assert_int_equal(look(&cast, NULL).count, 0);
        assert_int_equal(driver_signal_leftovers(hold, SIGHUP), -EINVAL);
        assert_int_equal(driver_signal_leftovers(hold, SIGTERM), 2);
        wait_for_left(&cast, hold, 0);
        assert_int_equal(driver_signal_leftovers(hold, SIGKILL), -ESRCH);
        driver_hold_free(hold);
        driver_hold_free(stranger);
        end_child(sleeper);
        end_cast(&cast);
}

/* What is not noted by a scan is noted by the pass that was asked for, and what a driver before it left is kept. */
static void test_descendants_after_a_kill(void **state) {
        struct tree *tree = *state;
        struct driver_hold *hold = NULL, *next = NULL;
        struct driver_found other;
        struct seen seen;
        struct cast cast;
        pid_t sleeper;

        start_worker(tree, "worker-of-parent-deaf", &cast);
        find_real(tree, &cast);
        settle(tree);
        assert_int_equal(driver_hold(cast.driver, &cast.found, tree_on_exit, tree, &hold), 0);
        for (unsigned i = 0; i < 500 && look(&cast, hold).count < 2; i++) {
                driver_note_descendants(hold);
                driver_note_descendants(hold); /* folded */
                expect_quiet(tree);
        }
        assert_int_equal(look(&cast, hold).count, 2);
        end_driver(tree, hold);
        driver_note_descendants(hold); /* too late: nothing happens */
        expect_quiet(tree);
        sleeper = spawn_sleeper();
        other = find_child(tree, sleeper);
        assert_int_equal(driver_hold(tree->driver, &other, tree_on_exit, tree, &next), 0);
        driver_hold_join(next, hold);
        driver_hold_join(next, NULL);
        assert_int_equal(look(&cast, next).count, 2);
        assert_int_equal(driver_signal_leftovers(next, SIGTERM), 2);
        seen = wait_for_left(&cast, next, 1); /* the other one is deaf */
        assert_string_equal(seen.names, "grandchild");
        assert_int_equal(driver_signal_leftovers(next, SIGKILL), 1);
        wait_for_left(&cast, next, 0);
        driver_hold_free(next);
        end_child(sleeper);
        end_cast(&cast);
}

/* A descendant that left the tree before it was noted is known by where it works, if at all, and never signalled. */
static void test_dweller(void **state) {
        struct tree *tree = *state;
        struct driver_hold *hold = NULL;
        struct seen seen;
        struct cast cast;

        start_worker(tree, "worker-of-parent-dweller", &cast);
        find_real(tree, &cast);
        settle(tree);
        assert_int_equal(driver_hold(cast.driver, &cast.found, tree_on_exit, tree, &hold), 0);
        wait_for_left(&cast, hold, 4);
        end_driver(tree, hold);
        seen = wait_for_left(&cast, NULL, 2); /* after a restart: nothing was noted */
        assert_string_equal(seen.names, "catcat");
        assert_int_equal(seen.held, 0);
        seen = wait_for_left(&cast, hold, 4);
        assert_in_range(seen.held, 3, 4); /* the one that left may have been noted before */
        assert_int_equal(driver_signal_leftovers(hold, SIGKILL), (int)seen.held);
        wait_for_left(&cast, hold, 4 - seen.held);
        driver_hold_free(hold);
        end_cast(&cast);
}

/* A process that a list calls a child and that is none: its parent is read again, after its pidfd was opened. */
static void test_strangers_are_not_noted(void **state) {
        struct tree *tree = *state;
        struct driver_hold *hold = NULL;
        pid_t pid = spawn_sleeper(), child = spawn_sleeper();
        struct driver_found found = find_child(tree, pid);
        struct seen seen = {0};

        tree_put(tree, TREE_DRIVER(.pid = child, .parent = pid, .start = 77, .raw = "sh", .raw_size = 3));
        assert_int_equal(driver_scan(tree->driver), 0);
        tree_put(tree, TREE_DRIVER(.pid = child, .parent = 1, .start = 77, .raw = "sh", .raw_size = 3));
        assert_int_equal(driver_hold(tree->driver, &found, tree_on_exit, tree, &hold), 0);
        assert_int_equal(driver_leftovers(tree->driver, hold, DRIVER_1, see, &seen), 0); /* another parent now */
        tree_put(tree, TREE_DRIVER(.pid = child, .parent = pid, .start = 77, .raw = "sh", .raw_size = 3));
        assert_int_equal(driver_scan(tree->driver), 0);
        assert_int_equal(driver_leftovers(tree->driver, hold, DRIVER_1, see, &seen), 1);
        assert_int_equal(seen.pids[0], child);
        end_child(child);
        assert_int_equal(driver_leftovers(tree->driver, hold, DRIVER_1, see, &seen), 0); /* whatever the tree says */
        driver_hold_free(hold);

        child = spawn_sleeper();
        tree_put(tree, TREE_DRIVER(.pid = child, .parent = pid, .start = 77, .raw = "sh", .raw_size = 3));
        assert_int_equal(driver_scan(tree->driver), 0);
        tree_put(tree, TREE_DRIVER(.pid = child, .parent = pid, .start = 78, .raw = "sh", .raw_size = 3));
        assert_int_equal(driver_hold(tree->driver, &found, tree_on_exit, tree, &hold), 0);
        assert_int_equal(driver_leftovers(tree->driver, hold, DRIVER_1, see, &seen), 0); /* another process */
        end_child(pid);
        tree_put(tree, TREE_DRIVER(.pid = child, .parent = pid, .start = 78, .raw = "sh", .raw_size = 3));
        assert_int_equal(driver_scan(tree->driver), 0); /* the loop has not seen the driver's end, the pidfd has */
        assert_int_equal(driver_leftovers(tree->driver, hold, DRIVER_1, see, &seen), 0);
        driver_hold_free(hold);
        end_child(child);
}

/* The driver is dead; a descendant of it that was noted has a child now. The loop has not seen the driver's end yet, and
 * the list still shows its tree: nobody is added. */
static void test_nobody_is_noted_after_the_end(void **state) {
        struct tree *tree = *state;
        struct driver_hold *hold = NULL;
        pid_t pid = spawn_sleeper(), child = spawn_sleeper(), late = spawn_sleeper();
        struct driver_found found = find_child(tree, pid);
        struct seen seen = {0};

        tree_put(tree, TREE_DRIVER(.pid = child, .parent = pid, .start = 77, .raw = "sh", .raw_size = 3));
        assert_int_equal(driver_scan(tree->driver), 0);
        assert_int_equal(driver_hold(tree->driver, &found, tree_on_exit, tree, &hold), 0);
        end_child(pid);
        tree_put(tree, TREE_DRIVER(.pid = late, .parent = child, .start = 78, .raw = "sh", .raw_size = 3));
        assert_int_equal(driver_scan(tree->driver), 0);
        assert_int_equal(driver_leftovers(tree->driver, hold, DRIVER_1, see, &seen), 1);
        assert_int_equal(seen.pids[0], child);
        driver_hold_free(hold);
        end_child(child);
        end_child(late);
}

static void test_more_descendants_than_are_noted(void **state) {
        struct tree *tree = *state;
        struct driver_hold *hold = NULL;
        pid_t pid = spawn_sleeper(), children[300];
        struct driver_found found = find_child(tree, pid);
        struct seen seen = {0};

        for (size_t i = 0; i < ARRAY_SIZE(children); i++) {
                children[i] = spawn_sleeper();
                tree_put(tree, TREE_DRIVER(.pid = children[i], .parent = i ? children[i - 1] : pid, .start = 77, .raw = "sh",
                                           .raw_size = 3)); /* a chain */
        }
        assert_int_equal(driver_scan(tree->driver), 0);
        assert_int_equal(driver_hold(tree->driver, &found, tree_on_exit, tree, &hold), 0);
        assert_int_equal(driver_leftovers(tree->driver, hold, DRIVER_1, see, &seen), 256);
        driver_hold_free(hold);
        for (size_t i = 0; i < ARRAY_SIZE(children); i++)
                end_child(children[i]);
        end_child(pid);
}

/* ---- leaks
 * -------------------------------------------------------------------------------------------------------------- */

static unsigned open_descriptors(void) {
        DIR *directory = opendir("/proc/self/fd");
        unsigned count = 0;

        assert_non_null(directory);
        while (readdir(directory))
                count++;
        closedir(directory);
        return count;
}

static void test_no_descriptor_leaks(void **state) {
        struct tree *tree = *state;
        unsigned before;

        tree_put(tree, TREE_DRIVER());
        tree_put(tree, TREE_DRIVER(.pid = 201, .jar = "/nowhere"));
        tree_put(tree, TREE_DRIVER(.pid = 202, .state = 'Z', .threads = 3, .raw = "", .raw_size = 0));
        tree_put(tree, TREE_DRIVER(.pid = 203, .parent = 1));
        assert_int_equal(driver_scan(tree->driver), 0);
        before = open_descriptors();
        for (int i = 0; i < 10; i++) {
                struct driver *driver = tree_make_driver(tree, tree->proc_fd, -1);

                assert_int_equal(driver_scan(driver), 0);
                driver_directory_exists(driver, DRIVER_1);
                driver_free(driver);
        }
        assert_int_equal(open_descriptors(), before);
}

int main(int argc, char **argv) {
        const struct CMUnitTest tests[] = {
                TREE_TEST(test_wakes),
                TREE_TEST(test_wakes_are_folded),
                TREE_TEST(test_oldest_watch_goes_first),
                TREE_TEST(test_application_directory),
                TREE_TEST(test_late_work_directory),
                TREE_TEST(test_made_again),
                TREE_TEST(test_turned_link),
                TREE_TEST(test_overflow),
                TREE_TEST(test_no_wake_callback),
                TREE_TEST(test_free_with_wake_pending),
                TREE_TEST(test_hold_and_signal),
                TREE_TEST(test_hold_freed),
                TREE_TEST(test_hold_freed_in_callback),
                TREE_TEST(test_hold_outlives),
                TREE_TEST(test_hold_of_the_gone),
                TREE_TEST(test_real_driver),
                TREE_TEST(test_real_headless_driver),
                TREE_TEST(test_descendants),
                TREE_TEST(test_descendants_after_a_kill),
                TREE_TEST(test_dweller),
                TREE_TEST(test_strangers_are_not_noted),
                TREE_TEST(test_nobody_is_noted_after_the_end),
                TREE_TEST(test_more_descendants_than_are_noted),
                TREE_TEST(test_no_descriptor_leaks),
        };
        const char *role = getenv(ROLE);

        (void)argc;
        if (role)
                return play(role, argv);
        return cmocka_run_group_tests_name("driver_live", tests, NULL, NULL);
}
