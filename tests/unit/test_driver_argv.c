/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pure parsers behind the driver's identity: argument lists, /proc/PID/stat, /proc/PID/status, /proc/stat.
 * Tables of what a user of the node can make a process look like; then random bytes, with a printed seed.
 */
#include "driver_argv.h"
#include "driver_stat.h"

#include <setjmp.h>

#include <cmocka.h>

#define PROPERTY "spark.yandex.job.id"
#define WRAPPER "org.apache.spark.deploy.worker.DriverWrapper"
#define WORKER "org.apache.spark.deploy.worker.Worker"
#define HEAD "/usr/lib/jvm/bin/java\0-cp\0/opt/spark/conf/:/opt/spark/jars/*\0-Xmx1024M\0"
#define TAIL WRAPPER "\0spark://Worker@10.0.0.7:7078\0/opt/spark/work/driver-1/app.jar\0com.example.Main\0"
#define ID "-D" PROPERTY "="

/* A literal with NULs in it; the one that C adds at the end is not counted. */
#define BYTES(literal) literal, sizeof(literal) - 1

struct argv_case {
        const char *name;
        const char *bytes;
        size_t size;
        bool cut;
        enum driver_argv_kind kind;
        const char *job_id; /* NULL: none */
        const char *refusal;
};

static const char main_class_refusal[] = "its main class is not DriverWrapper";

static const struct argv_case argv_cases[] = {
        {"plain driver", BYTES(HEAD ID "42\0" TAIL), false, DRIVER_ARGV_DRIVER, "42", NULL},
        {"with application arguments", BYTES(HEAD ID "42\0" TAIL "a\0\0-b\0"), false, DRIVER_ARGV_DRIVER, "42", NULL},
        {"Spark 4 module options",
         BYTES("java\0-cp\0x\0-Xmx1M\0-XX:+IgnoreUnrecognizedVMOptions\0"
               "--add-modules=jdk.incubator.vector\0--add-opens=java.base/java.nio=ALL-UNNAMED\0"
               "-Djdk.reflect.useDirectMethodHandle=false\0" ID "42\0" TAIL),
         false, DRIVER_ARGV_DRIVER, "42", NULL},
        {"options of two elements",
         BYTES("java\0--add-opens\0java.base/java.nio=ALL-UNNAMED\0--class-path\0x\0-p\0y\0"
               "--module-path\0m\0--add-modules\0ALL\0--add-exports\0a=b\0--add-reads\0c=d\0"
               "--patch-module\0e=f\0--limit-modules\0g\0--enable-native-access\0h\0"
               "-classpath\0z\0" ID "42\0" TAIL),
         false, DRIVER_ARGV_DRIVER, "42", NULL},
        {"agents are one element", BYTES("java\0-javaagent:/a.jar=" ID "1\0-agentlib:jdwp\0" ID "42\0" TAIL), false,
         DRIVER_ARGV_DRIVER, "42", NULL},
        {"no job id", BYTES(HEAD TAIL), false, DRIVER_ARGV_DRIVER, NULL, NULL},
        {"empty job id", BYTES(HEAD ID "\0" TAIL), false, DRIVER_ARGV_DRIVER, "", NULL},
        {"job id with spaces and newlines", BYTES(HEAD ID "4 2\n\0" TAIL), false, DRIVER_ARGV_DRIVER, "4 2\n", NULL},
        {"longer id", BYTES(HEAD ID "420\0" TAIL), false, DRIVER_ARGV_DRIVER, "420", NULL},
        {"shorter id", BYTES(HEAD ID "4\0" TAIL), false, DRIVER_ARGV_DRIVER, "4", NULL},
        {"decoy in extraJavaOptions comes later", BYTES(HEAD ID "42\0" ID "666\0" TAIL), false, DRIVER_ARGV_DRIVER,
         "42", NULL},
        {"decoy is the class path", BYTES("java\0-cp\0" ID "666\0" ID "42\0" TAIL), false, DRIVER_ARGV_DRIVER, "42",
         NULL},
        {"class path looks like the main class", BYTES("java\0-cp\0" WRAPPER "\0" ID "42\0" TAIL), false,
         DRIVER_ARGV_DRIVER, "42", NULL},
        {"decoy as value of another property", BYTES(HEAD "-Dspark.driver.extraJavaOptions=" ID "666\0" ID "42\0" TAIL),
         false, DRIVER_ARGV_DRIVER, "42", NULL},
        {"decoy as application argument only", BYTES(HEAD TAIL ID "666\0"), false, DRIVER_ARGV_DRIVER, NULL, NULL},
        {"property with a longer name", BYTES(HEAD "-D" PROPERTY ".x=666\0" ID "42\0" TAIL), false, DRIVER_ARGV_DRIVER,
         "42", NULL},
        {"property without a value", BYTES(HEAD "-D" PROPERTY "\0" ID "42\0" TAIL), false, DRIVER_ARGV_DRIVER, "42",
         NULL},
        {"property in another case", BYTES(HEAD "-Dspark.Yandex.job.id=666\0" TAIL), false, DRIVER_ARGV_DRIVER, NULL,
         NULL},
        {"argument file does not hide the driver", BYTES(HEAD ID "42\0@/tmp/options\0" TAIL), false, DRIVER_ARGV_DRIVER,
         "42", NULL},
        {"lone dash is an option", BYTES(HEAD "-\0" ID "42\0" TAIL), false, DRIVER_ARGV_DRIVER, "42", NULL},
        {"long tail was cut", BYTES(HEAD ID "42\0" TAIL "aaaaaaaa"), true, DRIVER_ARGV_DRIVER, "42", NULL},
        {"appResource empty", BYTES(HEAD ID "42\0" WRAPPER "\0spark://Worker@h:1\0/opt/spark/work/driver-1\0M\0"),
         false, DRIVER_ARGV_DRIVER, "42", NULL},

        {"Worker",
         BYTES("java\0-cp\0x\0-Xmx1g\0" WORKER "\0--webui-port\0"
               "8081\0spark://m:7077\0"),
         false, DRIVER_ARGV_WORKER, NULL, NULL},
        {"Worker with an id", BYTES("java\0" ID "42\0" WORKER "\0"), false, DRIVER_ARGV_WORKER, NULL, NULL},

        {"submitter",
         BYTES("java\0-cp\0x\0-Xmx1g\0org.apache.spark.deploy.SparkSubmit\0--conf\0" PROPERTY "=42\0--class\0" WRAPPER
               "\0a.jar\0"),
         false, DRIVER_ARGV_OTHER, NULL, main_class_refusal},
        {"executor",
         BYTES(HEAD ID "42\0org.apache.spark.executor.CoarseGrainedExecutorBackend\0--driver-url\0spark://x\0"), false,
         DRIVER_ARGV_OTHER, NULL, main_class_refusal},
        {"shell with the command line", BYTES("sh\0-c\0java " ID "42 " WRAPPER "\0"), false, DRIVER_ARGV_OTHER, NULL,
         main_class_refusal},
        {"grep", BYTES("grep\0" ID "42\0"), false, DRIVER_ARGV_OTHER, NULL, "it has no main class"},
        {"wrapper is not the first class", BYTES(HEAD ID "42\0Evil\0" TAIL), false, DRIVER_ARGV_OTHER, NULL,
         main_class_refusal},
        {"class name goes on", BYTES(HEAD ID "42\0" WRAPPER "2\0spark://w\0/j\0M\0"), false, DRIVER_ARGV_OTHER, NULL,
         main_class_refusal},
        {"class name with slashes",
         BYTES(HEAD ID "42\0org/apache/spark/deploy/worker/DriverWrapper\0spark://w\0/j\0M\0"), false,
         DRIVER_ARGV_OTHER, NULL, main_class_refusal},
        {"jar", BYTES("java\0" ID "42\0-jar\0" TAIL), false, DRIVER_ARGV_OTHER, NULL, "it has no main class"},
        {"module", BYTES("java\0" ID "42\0-m\0" TAIL), false, DRIVER_ARGV_OTHER, NULL, "it has no main class"},
        {"empty element is the main class", BYTES(HEAD ID "42\0\0" TAIL), false, DRIVER_ARGV_OTHER, NULL,
         main_class_refusal},
        {"wrapper swallowed by an option", BYTES("java\0" ID "42\0-cp\0" TAIL), false, DRIVER_ARGV_OTHER, NULL,
         main_class_refusal},
        {"wrapper is argv[0]", BYTES(TAIL), false, DRIVER_ARGV_OTHER, NULL, main_class_refusal},
        {"no arguments after it", BYTES(HEAD ID "42\0" WRAPPER "\0"), false, DRIVER_ARGV_OTHER, NULL,
         "arguments after DriverWrapper are missing"},
        {"no user class", BYTES(HEAD ID "42\0" WRAPPER "\0spark://w\0/opt/spark/work/driver-1/a.jar\0"), false,
         DRIVER_ARGV_OTHER, NULL, "arguments after DriverWrapper are missing"},
        {"no worker URL", BYTES(HEAD ID "42\0" WRAPPER "\0/opt/spark/work/driver-1/a.jar\0M\0x\0"), false,
         DRIVER_ARGV_OTHER, NULL, "the argument after DriverWrapper is no worker URL"},
        {"value of the last option missing", BYTES("java\0-cp\0"), false, DRIVER_ARGV_OTHER, NULL,
         "it has no main class"},
        {"rewritten: no NUL at the end", BYTES(HEAD ID "42\0" TAIL "x"), false, DRIVER_ARGV_OTHER, NULL,
         "its argument list was rewritten"},
        {"rewritten to a title", BYTES("sshd: " ID "42 " WRAPPER), false, DRIVER_ARGV_OTHER, NULL,
         "its argument list was rewritten"},
        {"empty", BYTES(""), false, DRIVER_ARGV_OTHER, NULL, "its argument list is empty"},
        {"one NUL", BYTES("\0"), false, DRIVER_ARGV_OTHER, NULL, "it has no main class"},
        {"cut before the main class", BYTES(HEAD ID "42\0-Dx=aaaaaaa"), true, DRIVER_ARGV_OTHER, NULL,
         "its argument list is too long"},
        {"cut within the arguments", BYTES(HEAD ID "42\0" WRAPPER "\0spark://w\0/opt/spark/wo"), true,
         DRIVER_ARGV_OTHER, NULL, "its argument list is too long"},
};

/* parse_copy() - from a heap block of just that size, so that a sanitizer sees a read beyond it. */
static char *parse_copy(const char *bytes, size_t size, bool cut, struct driver_argv *ret) {
        char *copy = malloc(size ? size : 1);

        assert_non_null(copy);
        memcpy(copy, bytes, size);
        driver_argv_parse(copy, size, cut, PROPERTY, ret);
        return copy;
}

static void test_argv_table(void **state) {
        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(argv_cases); i++) {
                const struct argv_case *c = &argv_cases[i];
                struct driver_argv argv;
                char *copy = parse_copy(c->bytes, c->size, c->cut, &argv);

                if (argv.kind != c->kind)
                        fail_msg("%s: kind %d, refusal %s", c->name, (int)argv.kind,
                                 argv.refusal ? argv.refusal : "none");
                if ((argv.job_id.data == NULL) != (c->job_id == NULL))
                        fail_msg("%s: job id found or missed", c->name);
                if (c->job_id) {
                        assert_int_equal(argv.job_id.size, strlen(c->job_id));
                        assert_memory_equal(argv.job_id.data, c->job_id, argv.job_id.size);
                }
                if (c->refusal)
                        assert_string_equal(argv.refusal, c->refusal);
                else
                        assert_null(argv.refusal);
                free(copy);
        }
}

static void test_argv_extras(void **state) {
        static const struct {
                const char *bytes;
                size_t size;
                bool supervised;
                const char *app_name;
                const char *jar;
        } cases[] = {
                {BYTES(HEAD ID "42\0" TAIL), false, NULL, "/opt/spark/work/driver-1/app.jar"},
                {BYTES(HEAD "-Dspark.driver.supervise=true\0-Dspark.app.name=A b\0" ID "42\0" TAIL), true, "A b",
                 "/opt/spark/work/driver-1/app.jar"},
                {BYTES(HEAD "-Dspark.driver.supervise=TRUE\0-Dspark.app.name=\0" TAIL), true, "",
                 "/opt/spark/work/driver-1/app.jar"},
                {BYTES(HEAD "-Dspark.driver.supervise=false\0-Dspark.app.name=one\0-Dspark.app.name=two\0" TAIL), false,
                 "one", "/opt/spark/work/driver-1/app.jar"},
                {BYTES(HEAD TAIL "-Dspark.driver.supervise=true\0-Dspark.app.name=x\0"), false, NULL,
                 "/opt/spark/work/driver-1/app.jar"},
                {BYTES(HEAD "-Dspark.driver.supervise\0-Dspark.driver.supervisex=true\0" TAIL), false, NULL,
                 "/opt/spark/work/driver-1/app.jar"},
        };

        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                struct driver_argv argv;

                driver_argv_parse(cases[i].bytes, cases[i].size, false, PROPERTY, &argv);
                assert_int_equal(argv.kind, DRIVER_ARGV_DRIVER);
                assert_int_equal(argv.supervised, cases[i].supervised);
                assert_string_equal(argv.jar, cases[i].jar);
                assert_int_equal(argv.jar_size, strlen(cases[i].jar));
                assert_int_equal(argv.app_name.data != NULL, cases[i].app_name != NULL);
                if (cases[i].app_name)
                        assert_string_equal((const char *)argv.app_name.data, cases[i].app_name);
        }
}

static void test_mentions(void **state) {
        static const char bytes[] =
                "sh\0-c\0x " PROPERTY "=42; " PROPERTY "=\0" PROPERTY "\0" PROPERTY "=\xff\0" PROPERTY
                "=0123456789012345678901234567890123456789012345678901234567890\0" PROPERTY "=7";
        static const char *const expected[] = {"42;", "", "", "012345678901234567890123456789012345678901234567890",
                                               "7"};
        size_t offset = 0, count = 0;
        struct span text;

        (void)state;
        while (driver_argv_next_mention(bytes, sizeof(bytes) - 1, PROPERTY, &offset, &text)) {
                assert_true(count < ARRAY_SIZE(expected));
                assert_int_equal(text.size, strlen(expected[count]));
                assert_memory_equal(text.data, expected[count], text.size);
                count++;
        }
        assert_int_equal(count, ARRAY_SIZE(expected));
        assert_false(driver_argv_next_mention(bytes, sizeof(bytes) - 1, PROPERTY, &offset, &text));
}

static void test_mention_is(void **state) {
        (void)state;
        assert_true(driver_argv_mention_is("42", "42"));
        assert_true(driver_argv_mention_is("42;", "42"));
        assert_true(driver_argv_mention_is("42\"", "42"));
        assert_false(driver_argv_mention_is("420", "42"));
        assert_false(driver_argv_mention_is("42-b", "42"));
        assert_false(driver_argv_mention_is("42.1", "42"));
        assert_false(driver_argv_mention_is("42_", "42"));
        assert_false(driver_argv_mention_is("4", "42"));
        assert_false(driver_argv_mention_is("", "42"));
}

/* ---- /proc texts ------------------------------------------------------------------------------------------ */

#define STAT_REST " 100 100 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 31 0 8765432 1000 200 18446744073709551615 1 1"

static void test_stat_table(void **state) {
        static const struct {
                const char *text;
                int result;
                struct driver_stat stat;
        } cases[] = {
                {"42 (java) S 7" STAT_REST, 0, {42, 'S', 7, 31, 8765432}},
                {"42 (java) S 7" STAT_REST "\n", 0, {42, 'S', 7, 31, 8765432}},
                {"42 () R 1) R 1 () Z 9" STAT_REST, 0, {42, 'Z', 9, 31, 8765432}},
                {"42 (a) R 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20) D 0" STAT_REST,
                 0,
                 {42, 'D', 0, 31, 8765432}},
                {"42 (a\nb c) t 1" STAT_REST, 0, {42, 't', 1, 31, 8765432}},
                {"2147483647 (a) S 2147483647" STAT_REST, 0, {INT32_MAX, 'S', INT32_MAX, 31, 8765432}},
                {"2147483648 (a) S 1" STAT_REST, -EBADMSG, {0}},
                {"42 (a) S 2147483648" STAT_REST, -EBADMSG, {0}},
                {"42 (a) S -1" STAT_REST, -EBADMSG, {0}},
                {"-42 (a) S 1" STAT_REST, -EBADMSG, {0}},
                {"42 (a) SS 1" STAT_REST, -EBADMSG, {0}},
                {"42 (a) 7 1" STAT_REST, -EBADMSG, {0}},
                {"42 (a S 1" STAT_REST, -EBADMSG, {0}},
                {"42 (a)", -EBADMSG, {0}},
                {"42 (a) S", -EBADMSG, {0}},
                {"42 (a) S 1 1 1 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 31 0", -EBADMSG, {0}},
                {"42 (a) S 1 1 1 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 31 0 ", -EBADMSG, {0}},
                {"42 (a) S 1 1 1 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 31 0 876", -EBADMSG, {0}}, /* may be cut */
                {"42 (a) S 1 1 1 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 31 0 18446744073709551615 1",
                 0,
                 {42, 'S', 1, 31, UINT64_MAX}},
                {"42 (a) S 1 1 1 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 31 0 18446744073709551616 1", -EBADMSG, {0}},
                {"42 (a) S 1 1 1 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 x 0 1 1", -EBADMSG, {0}},
                {"", -EBADMSG, {0}},
                {"garbage", -EBADMSG, {0}},
        };

        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                struct driver_stat stat = {0};

                if (driver_stat_parse(cases[i].text, strlen(cases[i].text), &stat) != cases[i].result)
                        fail_msg("\"%s\": not %d", cases[i].text, cases[i].result);
                assert_int_equal(stat.pid, cases[i].stat.pid);
                assert_int_equal(stat.state, cases[i].stat.state);
                assert_int_equal(stat.parent, cases[i].stat.parent);
                assert_int_equal(stat.threads, cases[i].stat.threads);
                assert_true(stat.start_ticks == cases[i].stat.start_ticks);
        }
}

static void test_stat_alive(void **state) {
        static const struct {
                char state;
                uint32_t threads;
                bool alive;
        } cases[] = {
                {'R', 1, true},  {'S', 1, true},  {'D', 1, true}, {'T', 1, true},  {'t', 1, true},  {'I', 1, true},
                {'Z', 1, false}, {'Z', 0, false}, {'Z', 2, true}, {'X', 1, false}, {'x', 5, false},
        };

        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                struct driver_stat stat = {.state = cases[i].state, .threads = cases[i].threads};

                assert_int_equal(driver_stat_is_alive(&stat), cases[i].alive);
        }
}

static void test_status(void **state) {
        static const struct {
                const char *text;
                int result;
                uint32_t uids[4];
        } cases[] = {
                {"Name:\tjava\nUmask:\t0022\nUid:\t1\t2\t3\t4294967295\nGid:\t5\t5\t5\t5\n", 0, {1, 2, 3, UINT32_MAX}},
                {"Uid:\t0\t0\t0\t0\n", 0, {0}},
                {"Name:\tUid:\t7\t7\t7\t7\nUid:\t1\t2\t3\t4\n", 0, {1, 2, 3, 4}},
                {"Name:\tjava\n", -EBADMSG, {0}},
                {"Uid:\t1\t2\t3\n", -EBADMSG, {0}},
                {"Uid:\t1\t2\t3\t4", -EBADMSG, {0}},
                {"Uid:\t1\t2\t3\t4294967296\n", -EBADMSG, {0}},
                {"Uid:\t1\t2\t3\tx\n", -EBADMSG, {0}},
                {"Uid:", -EBADMSG, {0}},
                {"", -EBADMSG, {0}},
        };

        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                uint32_t uids[4] = {0};

                if (driver_status_parse_uids(cases[i].text, strlen(cases[i].text), uids) != cases[i].result)
                        fail_msg("\"%s\": not %d", cases[i].text, cases[i].result);
                assert_memory_equal(uids, cases[i].uids, sizeof(uids));
        }
}

static void test_boot(void **state) {
        static const char text[] = "cpu  1 2 3\nintr 5 0 0\nctxt 9\nbtime 1700000000\nprocesses 3\n";
        uint64_t seconds = 0;

        (void)state;
        assert_int_equal(driver_boot_parse(text, sizeof(text) - 1, &seconds), 0);
        assert_int_equal(seconds, 1700000000);
        assert_int_equal(driver_boot_parse("cpu 1\n", 6, &seconds), -EBADMSG);
        assert_int_equal(driver_boot_parse("btime x\n", 8, &seconds), -EBADMSG);
        assert_int_equal(driver_boot_parse("btime 99999999999999999\n", 24, &seconds), -EBADMSG);
}

/* ---- random bytes ------------------------------------------------------------------------------------------- */

static uint64_t test_seed(void) {
        const char *text = getenv("SEED");
        uint64_t seed;

        if (!text || base_parse_u64(text, 0, UINT64_MAX, &seed) < 0)
                seed = base_random_u64();
        print_message("SEED=%" PRIu64 "\n", seed);
        return seed;
}

/* mutate() - a valid list with some bytes changed and its end moved. */
static size_t mutate(char *bytes, size_t size, uint64_t *seed) {
        for (uint64_t n = base_random_next(seed) % 8; n > 0; n--)
                bytes[base_random_next(seed) % size] = "\0-=D@s/x"[base_random_next(seed) % 8];
        return base_random_next(seed) % 4 == 0 ? base_random_next(seed) % (size + 1) : size;
}

static void test_random(void **state) {
        static const char good[] = HEAD ID "42\0-Dspark.app.name=x\0" TAIL;
        static const char stat_text[] = "42 (ja) va) S 7" STAT_REST;
        uint64_t seed = test_seed();

        (void)state;
        for (unsigned i = 0; i < 20000; i++) {
                char list[sizeof(good) - 1], text[sizeof(stat_text) - 1];
                size_t size, offset = 0;
                struct driver_argv argv;
                struct driver_stat stat;
                _cleanup_free_ char *copy = NULL;
                struct span span;

                memcpy(list, good, sizeof(list));
                size = mutate(list, sizeof(list), &seed);
                copy = parse_copy(list, size, base_random_next(&seed) & 1, &argv);
                if (argv.kind == DRIVER_ARGV_DRIVER) {
                        assert_true(argv.jar >= copy && argv.jar + argv.jar_size < copy + size);
                        assert_int_equal(argv.jar[argv.jar_size], 0);
                } else {
                        assert_true(argv.kind == DRIVER_ARGV_WORKER || argv.refusal);
                }
                while (driver_argv_next_mention(copy, size, PROPERTY, &offset, &span))
                        assert_true(span.size <= JOB_ID_MAX + 1 && (const char *)span.data + span.size <= copy + size);
                memcpy(text, stat_text, sizeof(text));
                size = mutate(text, sizeof(text), &seed);
                (void)driver_stat_parse(text, size, &stat);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_argv_table), cmocka_unit_test(test_argv_extras),
                cmocka_unit_test(test_mentions),   cmocka_unit_test(test_mention_is),
                cmocka_unit_test(test_stat_table), cmocka_unit_test(test_stat_alive),
                cmocka_unit_test(test_status),     cmocka_unit_test(test_boot),
                cmocka_unit_test(test_random),
        };

        return cmocka_run_group_tests_name("driver_argv", tests, NULL, NULL);
}
