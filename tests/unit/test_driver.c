/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who is a job's driver? Built process trees: the perfect driver, and everything that looks like one or is one and
 * must not be taken for another's.
 */
#include "driver_tree.h"

#include "driver_argv.h"
#include "metrics.h"

#include <pthread.h>
#include <sys/inotify.h>

static void scan(struct tree *tree) {
        assert_int_equal(driver_scan(tree->driver), 0);
}

static enum driver_match match(struct tree *tree, const char *job_id) {
        struct driver_found found;

        return driver_match(tree->driver, job_id, NULL, &found);
}

struct seen {
        unsigned count;
        int32_t pid;
        const char *reason;
};

static void on_lookalike(const struct driver_lookalike *lookalike, void *userdata) {
        struct seen *seen = userdata;

        seen->count++;
        seen->pid = lookalike->pid;
        seen->reason = lookalike->reason;
}

static struct seen lookalikes(struct tree *tree, const char *job_id) {
        struct seen seen = {0};

        driver_lookalikes(tree->driver, job_id, on_lookalike, &seen);
        return seen;
}

/* ---- the driver --------------------------------------------------------------------------------------------- */

static void test_found(void **state) {
        struct tree *tree = *state;
        uint64_t scans = metrics_get(METRICS_SCANS, NULL);
        struct driver_found found;
        const uint64_t hz = (uint64_t)sysconf(_SC_CLK_TCK);

        tree_put(tree, TREE_DRIVER(.before = {"-Dspark.app.name=Nightly\x1b[1m \xff"}, .comm = "a) R 1 (b"));
        scan(tree);
        assert_int_equal(driver_match(tree->driver, "42", NULL, &found), DRIVER_MATCH_ONE);
        assert_int_equal(found.pid, DRIVER_PID);
        assert_true(found.start_ticks == DRIVER_START);
        assert_int_equal(found.worker_pid, WORKER_PID);
        assert_true(found.worker_start_ticks == WORKER_START);
        assert_string_equal(found.job_id, "42");
        assert_string_equal(found.driver_id, DRIVER_1);
        assert_string_equal(found.app_name, "Nightly\\x1B[1m \\xFF");
        assert_false(found.supervised);
        assert_true(found.started_real_usec == UINT64_C(1700000000) * USEC_PER_SEC + DRIVER_START * USEC_PER_SEC / hz);
        assert_int_equal(driver_scan_size(tree->driver), 3);
        assert_int_equal(lookalikes(tree, "42").count, 0);
        assert_true(metrics_get(METRICS_SCANS, NULL) == scans + 1);
        assert_true(metrics_get(METRICS_SCAN_PROCESSES, NULL) == 3);
}

static void test_supervised(void **state) {
        struct tree *tree = *state;
        struct driver_found found;

        tree_put(tree, TREE_DRIVER(.before = {"-Dspark.driver.supervise=true"}));
        scan(tree);
        assert_int_equal(driver_match(tree->driver, "42", NULL, &found), DRIVER_MATCH_ONE);
        assert_true(found.supervised);
}

static void test_ended(void **state) {
        struct tree *tree = *state;

        tree_put(tree, TREE_DRIVER());
        scan(tree);
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_ONE);
        tree_take(tree, DRIVER_PID);
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_ONE); /* until the next scan */
        scan(tree);
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_NONE);
}

static void test_long_name_is_cut(void **state) {
        struct tree *tree = *state;
        struct driver_found found;
        char option[600] = "-Dspark.app.name=";

        memset(option + strlen(option), 'n', 500);
        tree_put(tree, TREE_DRIVER(.before = {option}));
        scan(tree);
        assert_int_equal(driver_match(tree->driver, "42", NULL, &found), DRIVER_MATCH_ONE);
        assert_int_equal(strlen(found.app_name), sizeof(found.app_name) - 1);
}

/* ---- hostile tables -------------------------------------------------------------------------------------------- */

/* Each row changes one thing of the perfect driver. %W stands for the work directory, %R for what is above it. */
struct identity_case {
        const char *name;
        struct tree_process process;
        enum driver_match match; /* of job 42 */
        const char *reason;      /* of the look-alike; NULL: none */
};

#define CASE(...)                                                                                                      \
        { __VA_ARGS__ }
#define RAW(literal) .raw = literal, .raw_size = sizeof(literal)

static const char another_job[] = "it is the driver of another job, whose id comes first";
static const char no_class[] = "its main class is not DriverWrapper";
static const char not_below[] = "its jar is not in the work directory";
static const char not_directly[] = "its jar is not directly in a driver directory";

static const struct identity_case identity_cases[] = {
        {"cwd agrees", CASE(.cwd = "%W/" DRIVER_1), DRIVER_MATCH_ONE, NULL},
        {"cwd agrees, removed", CASE(.cwd = "%W/" DRIVER_1 " (deleted)"), DRIVER_MATCH_ONE, NULL},
        {"cwd elsewhere", CASE(.cwd = "/tmp"), DRIVER_MATCH_NONE,
         "its working directory is another than its driver id's"},
        {"cwd of another driver", CASE(.cwd = "%W/" DRIVER_2), DRIVER_MATCH_NONE,
         "its working directory is another than its driver id's"},
        {"cwd is the root", CASE(.cwd = "/"), DRIVER_MATCH_NONE,
         "its working directory is another than its driver id's"},

        {"job 420", CASE(.job = "420"), DRIVER_MATCH_NONE, NULL},
        {"job 4", CASE(.job = "4"), DRIVER_MATCH_NONE, NULL},
        {"job 42 with a space", CASE(.job = "42 "), DRIVER_MATCH_NONE, "its job id is not a valid one"},
        {"job 42 with a quote", CASE(.job = "\"42\""), DRIVER_MATCH_NONE, NULL},
        {"empty job", CASE(.job = ""), DRIVER_MATCH_NONE, NULL},
        {"too long job", CASE(.job = "012345678901234567890123456789012345678901234567890"), DRIVER_MATCH_NONE, NULL},
        {"claims 42 after its own", CASE(.job = "7", .after = {ID "42"}), DRIVER_MATCH_NONE, another_job},
        {"claims 42 in its arguments", CASE(.job = "7", .arguments = {ID "42"}), DRIVER_MATCH_NONE, another_job},
        {"claims 42 in its class path", CASE(.job = "7", .before = {"-cp", ID "42"}), DRIVER_MATCH_NONE, another_job},
        {"claims 42 in extraJavaOptions", CASE(.job = "7", .before = {"-Dspark.driver.extraJavaOptions=" ID "42"}),
         DRIVER_MATCH_NONE, another_job},
        {"no id but in its arguments", CASE(.no_job = true, .arguments = {ID "42"}), DRIVER_MATCH_NONE,
         "it names the job id, but not as a JVM option of its own"},
        {"decoys of 42 behind", CASE(.after = {ID "7"}, .arguments = {ID "8"}), DRIVER_MATCH_ONE, NULL},

        {"appResource empty", CASE(.jar = "%W/" DRIVER_1), DRIVER_MATCH_ONE, NULL},
        {"other spelling of the work directory", CASE(.jar = "%R/link/" DRIVER_1 "/app.jar"), DRIVER_MATCH_ONE, NULL},
        {"dots before the work directory", CASE(.jar = "%R/proc/../work/" DRIVER_1 "/app.jar"), DRIVER_MATCH_ONE, NULL},
        {"id of a custom pattern", CASE(.driver_id = "drv_7.x"), DRIVER_MATCH_ONE, NULL},
        {"directory is gone", CASE(.no_directory = true), DRIVER_MATCH_ONE, NULL},
        {"jar elsewhere", CASE(.jar = "/nowhere/" DRIVER_1 "/app.jar"), DRIVER_MATCH_NONE, not_below},
        {"jar beside the work directory", CASE(.jar = "%W2/" DRIVER_1 "/app.jar"), DRIVER_MATCH_NONE, not_below},
        {"jar is the work directory", CASE(.jar = "%W"), DRIVER_MATCH_NONE, not_below},
        {"jar is the work directory with a slash", CASE(.jar = "%W/"), DRIVER_MATCH_NONE,
         "the driver id in its jar path is not valid"},
        {"jar path is relative", CASE(.jar = "work/" DRIVER_1 "/app.jar"), DRIVER_MATCH_NONE,
         "its jar path is not absolute"},
        {"jar path is empty", CASE(.jar = ""), DRIVER_MATCH_NONE, "its jar path is not absolute"},
        {"jar path is a URL", CASE(.jar = "file:%W/" DRIVER_1 "/app.jar"), DRIVER_MATCH_NONE,
         "its jar path is not absolute"},
        {"jar path leads on to another driver", CASE(.jar = "%W/" DRIVER_1 "/../" DRIVER_2 "/app.jar"),
         DRIVER_MATCH_NONE, not_directly},
        {"jar path leads out", CASE(.jar = "%W/../" DRIVER_1 "/app.jar"), DRIVER_MATCH_NONE,
         "the driver id in its jar path is not valid"},
        {"jar is ..", CASE(.jar = "%W/" DRIVER_1 "/.."), DRIVER_MATCH_NONE, not_directly},
        {"jar is .", CASE(.jar = "%W/" DRIVER_1 "/."), DRIVER_MATCH_NONE, not_directly},
        {"jar has no name", CASE(.jar = "%W/" DRIVER_1 "/"), DRIVER_MATCH_NONE, not_directly},
        {"jar is deeper", CASE(.jar = "%W/" DRIVER_1 "/lib/app.jar"), DRIVER_MATCH_NONE, not_directly},
        {"driver id with a space", CASE(.jar = "%W/driver 1/app.jar"), DRIVER_MATCH_NONE,
         "the driver id in its jar path is not valid"},
        {"driver directory is a link", CASE(.jar = "%W/alias/app.jar"), DRIVER_MATCH_NONE,
         "its driver directory is a link"},
        {"driver directory is a file", CASE(.jar = "%W/file/app.jar"), DRIVER_MATCH_NONE,
         "its driver directory is none"},

        {"parent is init", CASE(.parent = 1), DRIVER_MATCH_ORPHAN, NULL},
        {"parent is none", CASE(.parent = -1), DRIVER_MATCH_ORPHAN, NULL},
        {"parent is not there", CASE(.parent = 999), DRIVER_MATCH_ORPHAN, NULL},
        {"parent is itself", CASE(.parent = DRIVER_PID), DRIVER_MATCH_NONE, "its parent is a driver, not a Worker"},
        {"Worker is younger than its child", CASE(.start = WORKER_START - 1), DRIVER_MATCH_ORPHAN, NULL},

        {"zombie", CASE(.state = 'Z'), DRIVER_MATCH_NONE, NULL},
        {"dead", CASE(.state = 'X'), DRIVER_MATCH_NONE, NULL},
        {"stopped", CASE(.state = 'T'), DRIVER_MATCH_ONE, NULL},
        {"first thread ended", CASE(.state = 'Z', .threads = 9), DRIVER_MATCH_ONE, NULL},
        {"comm plays the stat line", CASE(.comm = "a) Z 1 (b) X 1 1 1"), DRIVER_MATCH_ONE, NULL},
        {"another real user", CASE(.real_uid = 4242), DRIVER_MATCH_NONE, "its real, effective and saved user differ"},

        {"submitter", CASE(RAW("java\0-cp\0x\0org.apache.spark.deploy.SparkSubmit\0--conf\0" PROPERTY "=42\0x.jar")),
         DRIVER_MATCH_NONE, no_class},
        {"client-mode driver",
         CASE(RAW("java\0-cp\0x\0" ID "42\0org.apache.spark.deploy.SparkSubmit\0--class\0M\0x.jar")), DRIVER_MATCH_NONE,
         no_class},
        {"executor",
         CASE(RAW("java\0-cp\0x\0" ID "42\0org.apache.spark.executor.CoarseGrainedExecutorBackend\0--cores\0"
                  "1")),
         DRIVER_MATCH_NONE, no_class},
        {"shell", CASE(RAW("sh\0-c\0exec java -cp x " ID "42 " WRAPPER " spark://w:1 /j M")), DRIVER_MATCH_NONE,
         no_class},
        {"Worker with the id", CASE(RAW("java\0" ID "42\0" WORKER)), DRIVER_MATCH_NONE, "it is a Worker"},
        {"no NUL at the end", CASE(.raw = "java\0" ID "42\0x", .raw_size = 5 + sizeof(ID "42") + 1), DRIVER_MATCH_NONE,
         "its argument list was rewritten"},
        {"empty list", CASE(.raw = "", .raw_size = 0), DRIVER_MATCH_NONE, NULL},
        {"python child",
         CASE(RAW("python3\0/opt/job.py\0"
                  "42")),
         DRIVER_MATCH_NONE, NULL},
};

/* expand() - %W, %R in a path. */
static const char *expand(const struct tree *tree, const char *text, char *target, size_t size) {
        const char *mark = text ? strchr(text, '%') : NULL;

        if (!mark)
                return text;
        snprintf(target, size, "%.*s%s%s", (int)(mark - text), text, mark[1] == 'W' ? tree->work : tree->root,
                 mark + 2);
        return target;
}

/* put_traps() - a link to the work directory, and in it a link and a file where driver directories should be. */
static void put_traps(struct tree *tree) {
        _cleanup_free_ char *link = tree_path(tree->root, "link"), *alias = tree_path(tree->work, "alias");
        _cleanup_free_ char *file = tree_path(tree->work, "file"), *second = tree_path(tree->work, DRIVER_2);
        _cleanup_free_ char *beside = tree_path(tree->root, "work2"), *inner = tree_path(beside, DRIVER_1);

        assert_int_equal(symlink(tree->work, link), 0);
        assert_int_equal(mkdir(second, 0755), 0);
        assert_int_equal(symlink(second, alias), 0);
        assert_int_equal(mkdir(beside, 0755), 0);
        assert_int_equal(mkdir(inner, 0755), 0);
        tree_write_text(file, "");
}

static void check_identity(struct tree *tree, const struct identity_case *c) {
        struct tree_process process = c->process;
        char jar[256], cwd[256];
        enum driver_match got;
        struct seen seen;

        process.jar = expand(tree, process.jar, jar, sizeof(jar));
        process.cwd = expand(tree, process.cwd, cwd, sizeof(cwd));
        tree_put(tree, &process);
        scan(tree);
        got = match(tree, "42");
        seen = lookalikes(tree, "42");
        if (got != c->match || (seen.count > 0) != (c->reason != NULL) ||
            (c->reason && strcmp(seen.reason, c->reason) != 0))
                fail_msg("%s: match %d, %u look-alikes, \"%s\"", c->name, (int)got, seen.count,
                         seen.reason ? seen.reason : "");
        if (c->reason)
                assert_int_equal(seen.pid, DRIVER_PID);
        tree_take(tree, DRIVER_PID);
}

static void test_identity_table(void **state) {
        struct tree *tree = *state;

        put_traps(tree);
        for (size_t i = 0; i < ARRAY_SIZE(identity_cases); i++) {
                _cleanup_free_ char *directory = tree_path(tree->work, DRIVER_1);

                check_identity(tree, &identity_cases[i]);
                rmdir(directory);
        }
}

/* Every job is found under its own id only. */
static void test_similar_ids(void **state) {
        static const char *const jobs[] = {"4", "42", "420", "-42", "42-", "042", "4.2", "spark.yandex.job.id=42"};
        struct tree *tree = *state;

        for (size_t i = 0; i < ARRAY_SIZE(jobs); i++) {
                char driver_id[32];

                snprintf(driver_id, sizeof(driver_id), "driver-%zu", i);
                tree_put(tree, TREE_DRIVER(.pid = 300 + (int)i, .job = jobs[i], .driver_id = driver_id));
        }
        scan(tree);
        for (size_t i = 0; i < ARRAY_SIZE(jobs); i++) {
                struct driver_found found;

                assert_int_equal(driver_match(tree->driver, jobs[i], NULL, &found), DRIVER_MATCH_ONE);
                assert_int_equal(found.pid, 300 + (int)i);
        }
        assert_int_equal(match(tree, "2"), DRIVER_MATCH_NONE);
        assert_int_equal(match(tree, ""), DRIVER_MATCH_NONE);
        assert_int_equal(match(tree, "zzz"), DRIVER_MATCH_NONE);
}

/* ---- other users --------------------------------------------------------------------------------------------------
 */

static void test_other_user(void **state) {
        struct tree *tree = *state;

        if (geteuid() != 0) {
                print_message("skipped: needs root to give a process to another user\n");
                skip();
        }
        tree_put(tree, TREE_DRIVER(.uid = 4242));
        scan(tree);
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_NONE);
        assert_int_equal(lookalikes(tree, "42").count, 0); /* its arguments were not read at all */
        assert_int_equal(driver_scan_size(tree->driver), 3);

        /* Its Worker belongs to somebody else: as good as none. */
        tree_take(tree, DRIVER_PID);
        tree_put(tree, TREE_DRIVER());
        {
                _cleanup_free_ char *worker = tree_process_directory(tree, WORKER_PID);

                assert_int_equal(chown(worker, 4242, (gid_t)-1), 0);
        }
        scan(tree);
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_ORPHAN);
}

static void test_expected_user(void **state) {
        struct tree *tree = *state;
        struct driver *driver;
        struct driver_found found;

        if (geteuid() != 0) {
                print_message("skipped: needs root to give a process to another user\n");
                skip();
        }
        tree_put(tree, TREE_DRIVER(.uid = 4242));
        driver = tree_make_driver(tree, tree->proc_fd, 4242);
        assert_int_equal(driver_scan(driver), 0);
        assert_int_equal(driver_match(driver, "42", NULL, &found), DRIVER_MATCH_ORPHAN); /* the Worker is root's */
        driver_free(driver);

        /* Without a configured user it is the work directory's owner, looked up at each scan. */
        assert_int_equal(chown(tree->work, 4242, (gid_t)-1), 0);
        scan(tree);
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_ORPHAN);
}

/* ---- several processes ---------------------------------------------------------------------------------------------
 */

static void test_contested(void **state) {
        struct tree *tree = *state;
        struct driver_found found;

        tree_put(tree, TREE_DRIVER());
        tree_put(tree, TREE_DRIVER(.pid = 201, .job = "666"));
        tree_put(tree, TREE_DRIVER(.pid = 202, .job = "7", .driver_id = DRIVER_2));
        scan(tree);
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_CONTESTED);
        assert_int_equal(match(tree, "666"), DRIVER_MATCH_CONTESTED);
        assert_int_equal(match(tree, "7"), DRIVER_MATCH_ONE);

        tree_take(tree, 201);
        scan(tree);
        assert_int_equal(driver_match(tree->driver, "42", NULL, &found), DRIVER_MATCH_ONE);
        assert_int_equal(found.pid, DRIVER_PID);
}

static void test_contested_kinds(void **state) {
        struct tree *tree = *state;

        /* A driver without any job id has its driver id all the same. */
        tree_put(tree, TREE_DRIVER());
        tree_put(tree, TREE_DRIVER(.pid = 201, .no_job = true));
        scan(tree);
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_CONTESTED);

        /* So does an orphan. */
        tree_put(tree, TREE_DRIVER(.pid = 201, .job = "7", .parent = 1));
        scan(tree);
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_CONTESTED);
        assert_int_equal(match(tree, "7"), DRIVER_MATCH_CONTESTED);

        /* A refused process claims nothing: any job could make one. */
        tree_put(tree, TREE_DRIVER(.pid = 201, .job = "7", .parent = DRIVER_PID));
        scan(tree);
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_ONE);
        assert_int_equal(match(tree, "7"), DRIVER_MATCH_NONE);

        /* Two processes of one driver and one job contest nothing. */
        tree_put(tree, TREE_DRIVER(.pid = 201));
        scan(tree);
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_ONE);
}

static void test_order(void **state) {
        struct tree *tree = *state;
        struct driver_found found, after;

        tree_put(tree, TREE_DRIVER());
        tree_put(tree, TREE_DRIVER(.pid = 201, .start = DRIVER_START + 5, .driver_id = DRIVER_2));
        tree_put(tree, TREE_DRIVER(.pid = 202, .start = DRIVER_START + 9, .driver_id = "driver-3", .parent = 1));
        tree_put(tree, TREE_DRIVER(.pid = 203, .start = DRIVER_START + 20, .driver_id = "driver-4"));
        tree_put(tree, TREE_DRIVER(.pid = 204, .start = DRIVER_START + 20, .driver_id = "driver-4", .job = "7"));
        scan(tree);
        assert_int_equal(driver_match(tree->driver, "42", NULL, &found), DRIVER_MATCH_ORPHAN);
        assert_int_equal(found.pid, 202); /* the newest that is not contested */
        assert_int_equal(found.worker_pid, 0);
        assert_int_equal(driver_match(tree->driver, "42", &found, &found), DRIVER_MATCH_ONE);
        assert_int_equal(found.pid, 201);
        tree_take(tree, 201); /* what ended in the meantime keeps its place in the order */
        scan(tree);
        assert_int_equal(driver_match(tree->driver, "42", &found, &found), DRIVER_MATCH_ONE);
        assert_int_equal(found.pid, DRIVER_PID);
        after = found;
        assert_int_equal(driver_match(tree->driver, "42", &after, &found), DRIVER_MATCH_NONE);
        tree_take(tree, DRIVER_PID);
        tree_take(tree, 202);
        scan(tree);
        assert_int_equal(driver_match(tree->driver, "42", NULL, &found), DRIVER_MATCH_CONTESTED);
        assert_string_equal(found.driver_id, "driver-4");
        assert_int_equal(driver_match(tree->driver, "42", &found, &after), DRIVER_MATCH_NONE);
}

/* A job that makes up drivers, as many as it likes, does not hide the real one: each is offered in its turn. */
static void test_none_hides_another(void **state) {
        struct tree *tree = *state;
        struct driver_found found, *after = NULL;
        bool real = false;

        tree_put(tree, TREE_DRIVER());
        for (int i = 0; i < 500; i++) {
                char driver_id[32];

                snprintf(driver_id, sizeof(driver_id), "driver-made-up-%d", i);
                tree_put(tree, TREE_DRIVER(.pid = 1000 + i, .start = DRIVER_START + (uint64_t)i / 7, .driver_id = driver_id));
        }
        scan(tree);
        for (int i = 0; i < 501; i++) {
                assert_int_equal(driver_match(tree->driver, "42", after, &found), DRIVER_MATCH_ONE);
                real |= found.pid == DRIVER_PID;
                after = &found;
        }
        assert_true(real);
        assert_int_equal(driver_match(tree->driver, "42", after, &found), DRIVER_MATCH_NONE);
}

static void test_many(void **state) {
        struct tree *tree = *state;

        for (int i = 0; i < 300; i++) {
                char job[16], driver_id[32];

                snprintf(job, sizeof(job), "job-%d", i);
                snprintf(driver_id, sizeof(driver_id), "driver-%d", i);
                tree_put(tree, TREE_DRIVER(.pid = 1000 + i, .job = job, .driver_id = driver_id));
        }
        scan(tree);
        for (int i = 0; i < 100000; i++) {
                struct driver_found found;
                char job[16];

                snprintf(job, sizeof(job), "job-%d", i);
                assert_int_equal(driver_match(tree->driver, job, NULL, &found),
                                 i < 300 ? DRIVER_MATCH_ONE : DRIVER_MATCH_NONE);
                if (i < 300)
                        assert_int_equal(found.pid, 1000 + i);
        }
}

/* ---- bounds
 * ----------------------------------------------------------------------------------------------------------- */

static void put_big(struct tree *tree, bool before) {
        _cleanup_free_ char *filler = malloc(3U * 1024 * 1024 + 1);

        assert_non_null(filler);
        memset(filler, 'x', 3U * 1024 * 1024);
        memcpy(filler, "-D", 2);
        filler[3U * 1024 * 1024] = 0;
        if (before)
                tree_put(tree, TREE_DRIVER(.after = {filler}));
        else
                tree_put(tree, TREE_DRIVER(.arguments = {filler}));
}

static void test_big_argv(void **state) {
        struct tree *tree = *state;

        put_big(tree, true);
        scan(tree);
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_NONE);
        assert_string_equal(lookalikes(tree, "42").reason, "its argument list is too long");

        /* A job can't hide behind the length of its own arguments. */
        put_big(tree, false);
        scan(tree);
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_ONE);
}

static void test_lookalikes_bounded(void **state) {
        static const char many[] = "sh\0" ID "1\0" ID "2\0" ID "2\0" ID "3\0" ID "4\0" ID "5\0" ID "6";
        struct tree *tree = *state;

        for (int i = 0; i < 400; i++)
                tree_put(tree, TREE_DRIVER(.pid = 1000 + i, .raw = many, .raw_size = sizeof(many)));
        tree_put(tree, TREE_DRIVER());
        scan(tree);
        assert_int_equal(lookalikes(tree, "1").count, 64); /* 256 in all, four of one process */
        assert_int_equal(lookalikes(tree, "4").count, 64);
        assert_int_equal(lookalikes(tree, "5").count, 0);
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_ONE);
}

static void test_lookalike_once(void **state) {
        static const char twice[] = "sh\0-c\0x " ID "42; y " ID "42 && z";
        struct tree *tree = *state;

        tree_put(tree, TREE_DRIVER(.pid = 300, .raw = twice, .raw_size = sizeof(twice)));
        scan(tree);
        assert_int_equal(lookalikes(tree, "42").count, 1);
        assert_int_equal(lookalikes(tree, "4").count, 0);
}

/* ---- broken trees
 * ------------------------------------------------------------------------------------------------------ */

static void spoil(struct tree *tree, const char *file, const char *text) {
        _cleanup_free_ char *directory = tree_process_directory(tree, DRIVER_PID), *path = tree_path(directory, file);

        if (text)
                tree_write_text(path, text);
        else
                assert_int_equal(unlink(path), 0);
}

static void test_broken_processes(void **state) {
        static const struct {
                const char *file, *text;
        } cases[] = {
                {"stat", NULL},
                {"stat", ""},
                {"stat", "200 (java"},
                {"stat", "201 (java) S 100 1 1 0 -1 0 0 0 0 0 0 0 0 "
                         "0 20 0 1 0 9000 1"},
                {"status", NULL},
                {"status", "Uid:\tx\n"},
                {"cmdline", NULL},
        };
        struct tree *tree = *state;

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                tree_put(tree, TREE_DRIVER());
                tree_put(tree, TREE_DRIVER(.pid = 201, .job = "7", .driver_id = DRIVER_2));
                spoil(tree, cases[i].file, cases[i].text);
                scan(tree);
                assert_int_equal(match(tree, "42"), DRIVER_MATCH_NONE);
                assert_int_equal(match(tree, "7"), DRIVER_MATCH_ONE); /* the others are found all the same */
        }
}

static void test_odd_entries(void **state) {
        static const char *const names[] = {"self", "0", "00200x", "99999999999", "-5", "2e2", "sys"};
        struct tree *tree = *state;
        _cleanup_free_ char *file = tree_path(tree->proc, "77"), *link = tree_path(tree->proc, "78");

        for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
                _cleanup_free_ char *path = tree_path(tree->proc, names[i]);

                assert_int_equal(mkdir(path, 0755), 0);
        }
        tree_write_text(file, "");
        assert_int_equal(symlink("200", link), 0);
        tree_put(tree, TREE_DRIVER());
        scan(tree);
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_ONE);
}

static void test_no_fifo_hangs(void **state) {
        struct tree *tree = *state;
        _cleanup_free_ char *directory = tree_process_directory(tree, DRIVER_PID),
                            *path = tree_path(directory, "cmdline");

        tree_put(tree, TREE_DRIVER());
        unlink(path);
        assert_int_equal(mkfifo(path, 0600), 0);
        scan(tree);
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_NONE);
}

/* A pass that could not look must fail, and leave the last table. */
static void test_blind_scan_fails(void **state) {
        struct tree *tree = *state;
        _cleanup_free_ char *directory = tree_process_directory(tree, DRIVER_PID),
                            *path = tree_path(directory, "cmdline");

        tree_put(tree, TREE_DRIVER());
        scan(tree);
        unlink(path);
        assert_int_equal(symlink("stat", path), 0); /* ELOOP: no sign of an end */
        assert_int_equal(driver_scan(tree->driver), -ELOOP);
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_ONE);

        tree_take(tree, 1); /* hidepid: process 1 is not shown */
        assert_int_equal(driver_scan(tree->driver), -EACCES);
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_ONE);
}

/* ---- pid reuse
 * ---------------------------------------------------------------------------------------------------------- */

struct swapper {
        struct tree *tree;
        int inotify_fd;
};

/* swap_start() - when the scan opens cmdline, give the pid to another process. */
static void *swap_start(void *userdata) {
        struct swapper *swapper = userdata;
        _cleanup_free_ char *directory = tree_process_directory(swapper->tree, DRIVER_PID);
        _cleanup_free_ char *stat = tree_path(directory, "stat"), *next = tree_path(directory, "next");
        char bytes[4096];

        if (read(swapper->inotify_fd, bytes, sizeof(bytes)) > 0)
                rename(next, stat);
        return NULL;
}

static void test_pid_reuse(void **state) {
        struct tree *tree = *state;
        _cleanup_free_ char *directory = tree_process_directory(tree, DRIVER_PID),
                            *cmdline = tree_path(directory, "cmdline");
        _cleanup_free_ char *stat = tree_path(directory, "stat"), *next = tree_path(directory, "next");
        bool dropped = false;

        for (unsigned attempt = 0; attempt < 200 && !dropped; attempt++) {
                struct swapper swapper = {.tree = tree, .inotify_fd = inotify_init1(IN_CLOEXEC)};
                struct driver_found found;
                pthread_t thread;

                tree_put(tree, TREE_DRIVER(.start = DRIVER_START + 1));
                assert_int_equal(rename(stat, next), 0);
                put_big(tree, false); /* so that reading it takes a while */
                assert_true(inotify_add_watch(swapper.inotify_fd, cmdline, IN_OPEN) >= 0);
                assert_int_equal(pthread_create(&thread, NULL, swap_start, &swapper), 0);
                scan(tree);
                pthread_join(thread, NULL);
                close(swapper.inotify_fd);
                if (driver_match(tree->driver, "42", NULL, &found) == DRIVER_MATCH_NONE)
                        dropped = true;
                else
                        assert_true(found.start_ticks == DRIVER_START);
        }
        assert_true(dropped);
}

static void test_process_alive(void **state) {
        struct tree *tree = *state;

        tree_put(tree, TREE_DRIVER());
        assert_true(driver_process_alive(tree->driver, DRIVER_PID, DRIVER_START));
        assert_false(driver_process_alive(tree->driver, DRIVER_PID, DRIVER_START + 1));
        assert_false(driver_process_alive(tree->driver, DRIVER_PID + 1, DRIVER_START));
        assert_false(driver_process_alive(tree->driver, 0, DRIVER_START));
        assert_false(driver_process_alive(tree->driver, -1, DRIVER_START));
        tree_put(tree, TREE_DRIVER(.state = 'Z'));
        assert_false(driver_process_alive(tree->driver, DRIVER_PID, DRIVER_START));
        spoil(tree, "stat", "broken"); /* not to know is not to be dead */
        assert_true(driver_process_alive(tree->driver, DRIVER_PID, DRIVER_START));
}

/* ---- the work directory
 * ----------------------------------------------------------------------------------------------- */

static void test_no_work_directory(void **state) {
        struct tree *tree = *state;

        tree_put(tree, TREE_DRIVER());
        assert_null(driver_work_directory_status(tree->driver));
        tree_remove(tree->work);
        scan(tree);
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_NONE);
        assert_string_equal(driver_work_directory_status(tree->driver), "does not exist");
        tree_write_text(tree->work, "");
        scan(tree);
        assert_string_equal(driver_work_directory_status(tree->driver), "is not a directory");
        unlink(tree->work);
        assert_int_equal(mkdir(tree->work, 0755), 0);
        scan(tree);
        assert_null(driver_work_directory_status(tree->driver));
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_ONE);
}

static void test_no_work_directory_known_user(void **state) {
        struct tree *tree = *state;
        struct driver *driver = tree_make_driver(tree, tree->proc_fd, geteuid());
        struct driver_found found;
        struct seen seen = {0};

        tree_put(tree, TREE_DRIVER());
        tree_remove(tree->work);
        assert_int_equal(driver_scan(driver), 0);
        assert_int_equal(driver_match(driver, "42", NULL, &found), DRIVER_MATCH_NONE);
        driver_lookalikes(driver, "42", on_lookalike, &seen);
        assert_string_equal(seen.reason, "the work directory can't be read");
        driver_free(driver);
}

static void test_linked_work_directory(void **state) {
        struct tree *tree = *state;
        _cleanup_free_ char *real = tree_path(tree->root, "real"), *jar = tree_path(real, DRIVER_1 "/app.jar");

        /* The configuration names the link; one Worker spells the link, another what it leads to. */
        assert_int_equal(rename(tree->work, real), 0);
        assert_int_equal(symlink(real, tree->work), 0);
        tree_put(tree, TREE_DRIVER());
        tree_put(tree, TREE_DRIVER(.pid = 201, .job = "7", .jar = jar));
        scan(tree);
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_CONTESTED); /* one and the same driver id, by two ways */
        tree_take(tree, 201);
        scan(tree);
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_ONE);
        tree_put(tree, TREE_DRIVER(.jar = jar));
        scan(tree);
        assert_int_equal(match(tree, "42"), DRIVER_MATCH_ONE);
}

static void test_directory_exists(void **state) {
        struct tree *tree = *state;

        put_traps(tree);
        assert_true(driver_directory_exists(tree->driver, DRIVER_2));
        assert_false(driver_directory_exists(tree->driver, DRIVER_1));
        assert_false(driver_directory_exists(tree->driver, "alias"));
        assert_false(driver_directory_exists(tree->driver, "file"));
        assert_false(driver_directory_exists(tree->driver, "."));
        assert_false(driver_directory_exists(tree->driver, ".."));
        assert_false(driver_directory_exists(tree->driver, ""));
        assert_false(driver_directory_exists(tree->driver, "../work2"));
        tree_remove(tree->work);
        assert_false(driver_directory_exists(tree->driver, DRIVER_2));
}

/* ---- what ended drivers left ----------------------------------------------------------------------------------------
 */

static void put_header(struct tree *tree, const char *driver_id, time_t written, const char *text) {
        _cleanup_free_ char *directory = tree_path(tree->work, driver_id), *path = tree_path(directory, "stderr");
        const struct timespec times[2] = {{.tv_sec = written}, {.tv_sec = written}};

        mkdir(directory, 0755);
        tree_write_text(path, text);
        assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

#define LAUNCH "Launch Command: \"/usr/bin/java\" \"-cp\" \"/opt/spark/jars/*\" \"-Xmx1024M\" "

static void test_recent(void **state) {
        struct tree *tree = *state;
        char driver_id[DRIVER_ID_MAX + 1] = "";
        _cleanup_free_ char *fifo_directory = tree_path(tree->work, "fifo"),
                            *fifo = tree_path(fifo_directory, "stderr");
        _cleanup_free_ char *link_directory = tree_path(tree->work, "link"),
                            *link = tree_path(link_directory, "stderr");
        _cleanup_free_ char *target = tree_path(tree->work, "driver-1/stderr");

        assert_int_equal(driver_recent(tree->driver, "42", driver_id), 1);
        put_header(tree, "driver-1", 1000, LAUNCH "\"" ID "42\" \"" WRAPPER "\"\n====\n\nhello\n");
        put_header(tree, "driver-2", 2000, LAUNCH "\"" ID "420\" \"" WRAPPER "\"\n");
        put_header(tree, "driver-3", 3000, LAUNCH "\"" ID "7\" \"" ID "42\" \"" WRAPPER "\"\n");
        put_header(tree, "driver-4", 4000, "\"" ID "42\"\n");
        put_header(tree, "driver-5", 5000, LAUNCH "\"" ID "42");
        put_header(tree, "driver-6", 6000, "");
        put_header(tree, "driver 7", 7000, LAUNCH "\"" ID "42\"");
        assert_int_equal(mkdir(fifo_directory, 0755), 0);
        assert_int_equal(mkfifo(fifo, 0600), 0);
        assert_int_equal(mkdir(link_directory, 0755), 0);
        assert_int_equal(symlink(target, link), 0);
        assert_int_equal(driver_recent(tree->driver, "42", driver_id), 0);
        assert_string_equal(driver_id, "driver-1");
        assert_int_equal(driver_recent(tree->driver, "420", driver_id), 0);
        assert_string_equal(driver_id, "driver-2");
        assert_int_equal(driver_recent(tree->driver, "4", driver_id), 1);
        assert_int_equal(driver_recent(tree->driver, "", driver_id), -EINVAL);

        put_header(tree, "driver-8", 8000, LAUNCH "\"" ID "42\" "); /* the newest of several */
        assert_int_equal(driver_recent(tree->driver, "42", driver_id), 0);
        assert_string_equal(driver_id, "driver-8");
        if (geteuid() == 0) {
                _cleanup_free_ char *foreign = tree_path(tree->work, "driver-8/stderr");

                assert_int_equal(chown(foreign, 4242, (gid_t)-1), 0);
                assert_int_equal(driver_recent(tree->driver, "42", driver_id), 0);
                assert_string_equal(driver_id, "driver-1");
        }
        tree_remove(tree->work);
        assert_int_equal(driver_recent(tree->driver, "42", driver_id), 1);
}

static void test_recent_bounded(void **state) {
        struct tree *tree = *state;
        char driver_id[DRIVER_ID_MAX + 1] = "";
        _cleanup_free_ char *text = malloc(70 * 1024);

        put_header(tree, "driver-a", 1000, LAUNCH "\"" ID "42\" ");
        for (int i = 0; i < 300; i++) {
                char name[32];

                snprintf(name, sizeof(name), "driver-%d", i);
                put_header(tree, name, 2000 + i, LAUNCH "\"" ID "7\" ");
        }
        assert_int_equal(driver_recent(tree->driver, "7", driver_id), 0);
        assert_string_equal(driver_id, "driver-299");
        assert_int_equal(driver_recent(tree->driver, "42", driver_id), 1); /* 256 newer ones stand before it */

        assert_non_null(text);
        memset(text, 'x', 70 * 1024);
        memcpy(text, LAUNCH, strlen(LAUNCH));
        snprintf(text + 66 * 1024, 1024, "\"" ID "42\" ");
        put_header(tree, "driver-big", 9000, text);
        assert_int_equal(driver_recent(tree->driver, "42", driver_id), 1); /* beyond the first 64 KiB */
}

static void test_bad_options(void **state) {
        struct tree *tree = *state;
        const struct driver_options options[] = {
                {.proc_fd = tree->proc_fd, .work_directory = "relative", .job_id_property = PROPERTY},
                {.proc_fd = tree->proc_fd, .work_directory = tree->work, .job_id_property = ""},
        };
        struct driver *driver = NULL;

        for (size_t i = 0; i < ARRAY_SIZE(options); i++)
                assert_int_equal(driver_new(tree->event, &options[i], NULL, NULL, &driver), -EINVAL);
        assert_null(driver);
        assert_null(driver_free(NULL));
}

int main(void) {
        const struct CMUnitTest tests[] = {
                TREE_TEST(test_found),
                TREE_TEST(test_supervised),
                TREE_TEST(test_ended),
                TREE_TEST(test_long_name_is_cut),
                TREE_TEST(test_identity_table),
                TREE_TEST(test_similar_ids),
                TREE_TEST(test_other_user),
                TREE_TEST(test_expected_user),
                TREE_TEST(test_contested),
                TREE_TEST(test_contested_kinds),
                TREE_TEST(test_order),
                TREE_TEST(test_none_hides_another),
                TREE_TEST(test_many),
                TREE_TEST(test_big_argv),
                TREE_TEST(test_lookalikes_bounded),
                TREE_TEST(test_lookalike_once),
                TREE_TEST(test_broken_processes),
                TREE_TEST(test_odd_entries),
                TREE_TEST(test_no_fifo_hangs),
                TREE_TEST(test_blind_scan_fails),
                TREE_TEST(test_pid_reuse),
                TREE_TEST(test_process_alive),
                TREE_TEST(test_no_work_directory),
                TREE_TEST(test_no_work_directory_known_user),
                TREE_TEST(test_linked_work_directory),
                TREE_TEST(test_directory_exists),
                TREE_TEST(test_recent),
                TREE_TEST(test_recent_bounded),
                TREE_TEST(test_bad_options),
        };

        return cmocka_run_group_tests_name("driver", tests, NULL, NULL);
}
