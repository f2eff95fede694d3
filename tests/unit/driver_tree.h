/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * driver_tree: a built process directory and a work directory, for the tests of the driver module
 *
 * A tree_process is a perfect driver of job 42 under the Worker 100, but for what the test says.
 */
#include "driver.h"
#include "event.h"

#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <sys/stat.h>

#include <cmocka.h>

#define PROPERTY "spark.yandex.job.id"
#define ID "-D" PROPERTY "="
#define WRAPPER "org.apache.spark.deploy.worker.DriverWrapper"
#define WORKER "org.apache.spark.deploy.worker.Worker"
#define DRIVER_1 "driver-20261107101500-0001"
#define DRIVER_2 "driver-20261107101500-0002"
#define WORKER_PID 100
#define WORKER_START 5000
#define DRIVER_PID 200
#define DRIVER_START 9000
#define LIST_MAX 12

struct tree {
        char root[64];
        char proc[80];
        char work[80];
        int proc_fd;
        struct event *event;
        struct driver *driver;
        unsigned wakes;
        unsigned exits;
};

/* What is zero stands for the perfect driver's. */
struct tree_process {
        int pid;          /* DRIVER_PID */
        int parent;       /* WORKER_PID; -1: 0 */
        uint64_t start;   /* DRIVER_START */
        char state;       /* 'S' */
        unsigned threads; /* 1 */
        const char *comm; /* "java" */
        const char *job;  /* "42" */
        bool no_job;
        const char *driver_id;        /* DRIVER_1 */
        const char *jar;              /* <work>/<driver_id>/app.jar */
        const char *cwd;              /* no link */
        const char *before[LIST_MAX]; /* JVM options before the job id */
        const char *after[LIST_MAX];  /* and after it */
        const char *arguments[LIST_MAX];
        const char *raw; /* instead of all that: the bytes of cmdline */
        size_t raw_size;
        uid_t uid;         /* the caller's */
        uid_t real_uid;    /* like uid */
        bool no_directory; /* do not make the driver's directory */
};

#define TREE_DRIVER(...) (&(struct tree_process){__VA_ARGS__})

static inline struct tree_process tree_complete(const struct tree_process *process) {
        struct tree_process full = *process;

        full.pid = full.pid ? full.pid : DRIVER_PID;
        full.parent = full.parent ? full.parent : WORKER_PID;
        full.parent = full.parent < 0 ? 0 : full.parent;
        full.start = full.start ? full.start : DRIVER_START;
        full.state = full.state ? full.state : 'S';
        full.threads = full.threads ? full.threads : 1;
        full.comm = full.comm ? full.comm : "java";
        full.job = full.job ? full.job : "42";
        full.driver_id = full.driver_id ? full.driver_id : DRIVER_1;
        full.uid = full.uid ? full.uid : geteuid();
        full.real_uid = full.real_uid ? full.real_uid : full.uid;
        return full;
}

static inline void tree_write(const char *path, const void *bytes, size_t size) {
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

        assert_true(fd >= 0);
        assert_true(write(fd, bytes, size) == (ssize_t)size);
        close(fd);
}

static inline void tree_write_text(const char *path, const char *text) {
        tree_write(path, text, strlen(text));
}

static inline char *tree_path(const char *directory, const char *name) {
        char *path = NULL;

        assert_true(asprintf(&path, "%s/%s", directory, name) > 0);
        return path;
}

static inline void tree_append(struct buffer *list, const char *element) {
        assert_int_equal(buffer_append(list, element, strlen(element) + 1), 0);
}

static inline void tree_append_all(struct buffer *list, const char *const *elements) {
        for (size_t i = 0; i < LIST_MAX && elements[i]; i++)
                tree_append(list, elements[i]);
}

static inline void tree_append_driver(struct tree *tree, struct buffer *list, const struct tree_process *process) {
        static const char *const head[LIST_MAX] = {"/usr/lib/jvm/java-17/bin/java", "-cp",
                                                   "/opt/spark/conf/:/opt/spark/jars/*", "-Xmx1024M"};
        _cleanup_free_ char *jar = NULL;

        tree_append_all(list, head);
        tree_append_all(list, process->before);
        if (!process->no_job) {
                assert_int_equal(buffer_append_text(list, ID), 0);
                tree_append(list, process->job);
        }
        tree_append_all(list, process->after);
        tree_append(list, WRAPPER);
        tree_append(list, "spark://Worker@127.0.0.1:7078");
        if (!process->jar)
                assert_true(asprintf(&jar, "%s/%s/app.jar", tree->work, process->driver_id) > 0);
        tree_append(list, jar ? jar : process->jar);
        tree_append(list, "com.example.Main");
        tree_append_all(list, process->arguments);
}

static inline void tree_put_stat(const char *directory, const struct tree_process *process) {
        _cleanup_free_ char *path = tree_path(directory, "stat");
        char text[512];

        snprintf(text, sizeof(text),
                 "%d (%s) %c %d 100 100 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 %u 0 %" PRIu64 " 1000 200 1\n", process->pid,
                 process->comm, process->state, process->parent, process->threads, process->start);
        tree_write_text(path, text);
}

static inline void tree_put_status(const char *directory, const struct tree_process *process) {
        _cleanup_free_ char *path = tree_path(directory, "status");
        const unsigned uid = process->uid, real = process->real_uid;
        char text[256];

        snprintf(text, sizeof(text),
                 "Name:\tjava\nUmask:\t0022\nState:\tS (sleeping)\nUid:\t%u\t%u\t%u\t%u\nGid:\t0\t0\t0\t0\n", real, uid,
                 uid, uid);
        tree_write_text(path, text);
}

static inline char *tree_process_directory(struct tree *tree, int pid) {
        char name[16];

        snprintf(name, sizeof(name), "%d", pid);
        return tree_path(tree->proc, name);
}

/* tree_put() - make or replace the process, and its driver's directory. */
static inline void tree_put(struct tree *tree, const struct tree_process *given) {
        const struct tree_process full = tree_complete(given), *process = &full;
        _cleanup_(buffer_deinit) struct buffer list = BUFFER_INIT(8U * 1024 * 1024);
        _cleanup_free_ char *directory = tree_process_directory(tree, process->pid);
        _cleanup_free_ char *cmdline = tree_path(directory, "cmdline"), *cwd = tree_path(directory, "cwd");
        _cleanup_free_ char *driver_directory = tree_path(tree->work, process->driver_id);

        mkdir(directory, 0755);
        if (process->raw)
                tree_write(cmdline, process->raw, process->raw_size);
        else {
                tree_append_driver(tree, &list, process);
                tree_write(cmdline, list.data, list.size);
                if (!process->no_directory)
                        mkdir(driver_directory, 0755);
        }
        tree_put_stat(directory, process);
        tree_put_status(directory, process);
        unlink(cwd);
        if (process->cwd)
                assert_int_equal(symlink(process->cwd, cwd), 0);
        if (process->uid != geteuid())
                assert_int_equal(chown(directory, process->uid, (gid_t)-1), 0);
}

static inline int tree_remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw) {
        (void)st;
        (void)type;
        (void)ftw;
        return remove(path);
}

static inline void tree_remove(const char *path) {
        nftw(path, tree_remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static inline void tree_take(struct tree *tree, int pid) {
        _cleanup_free_ char *directory = tree_process_directory(tree, pid);

        tree_remove(directory);
}

static inline void tree_put_worker(struct tree *tree, int pid, uint64_t start) {
        static const char worker[] =
                "/usr/lib/jvm/java-17/bin/java\0-cp\0/opt/spark/jars/*\0-Xmx1g\0" WORKER "\0--webui-port\0"
                "8081\0spark://m:7077";

        tree_put(tree, TREE_DRIVER(.pid = pid, .parent = 1, .start = start, .raw = worker, .raw_size = sizeof(worker)));
}

static inline int tree_on_wake(void *userdata) {
        struct tree *tree = userdata;

        tree->wakes++;
        event_exit(tree->event, 0);
        return 0;
}

static inline int tree_on_exit(void *userdata) {
        struct tree *tree = userdata;

        tree->exits++;
        event_exit(tree->event, 0);
        return 0;
}

static inline struct driver *tree_make_driver(struct tree *tree, int proc_fd, int64_t uid) {
        struct driver_options options = {
                .proc_fd = proc_fd, .work_directory = tree->work, .job_id_property = PROPERTY, .driver_uid = uid};
        struct driver *driver = NULL;

        assert_int_equal(driver_new(tree->event, &options, tree_on_wake, tree, &driver), 0);
        return driver;
}

/* tree_setup() - an init, a Worker, a work directory and a driver object that takes its owner for the expected one. */
static inline int tree_setup(void **state) {
        static const char init[] = "/sbin/init";
        struct tree *tree = calloc(1, sizeof(*tree));
        _cleanup_free_ char *stat_path = NULL;

        assert_non_null(tree);
        snprintf(tree->root, sizeof(tree->root), "/tmp/test-driver-XXXXXX");
        assert_non_null(mkdtemp(tree->root));
        snprintf(tree->proc, sizeof(tree->proc), "%s/proc", tree->root);
        snprintf(tree->work, sizeof(tree->work), "%s/work", tree->root);
        assert_int_equal(mkdir(tree->proc, 0755), 0);
        assert_int_equal(mkdir(tree->work, 0755), 0);
        stat_path = tree_path(tree->proc, "stat");
        tree_write_text(stat_path, "cpu  1 2 3\nctxt 1\nbtime 1700000000\nprocesses 9\n");
        tree_put(tree, TREE_DRIVER(.pid = 1, .parent = -1, .start = 1, .raw = init, .raw_size = sizeof(init)));
        tree_put_worker(tree, WORKER_PID, WORKER_START);
        tree->proc_fd = open(tree->proc, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        assert_true(tree->proc_fd >= 0);
        assert_int_equal(event_new(false, &tree->event), 0);
        tree->driver = tree_make_driver(tree, tree->proc_fd, -1);
        *state = tree;
        return 0;
}

static inline int tree_teardown(void **state) {
        struct tree *tree = *state;

        driver_free(tree->driver);
        event_free(tree->event);
        close(tree->proc_fd);
        tree_remove(tree->root);
        free(tree);
        return 0;
}

#define TREE_TEST(function) cmocka_unit_test_setup_teardown(function, tree_setup, tree_teardown)
