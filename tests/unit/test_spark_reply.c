/* SPDX-License-Identifier: Apache-2.0 */
/* spark_reply: every reply that a real master gives, and what a broken or hostile one may give. */
#include "spark_reply.h"

#include <setjmp.h>

#include <cmocka.h>

#define ID "driver-20261124101112-0007"
#define KILL(success, message)                                                                                         \
        "{\n  \"action\" : \"KillSubmissionResponse\",\n  \"message\" : \"" message "\",\n  \"serverSparkVersion\" : " \
        "\"3.5.9\",\n  \"submissionId\" : \"" ID "\",\n  \"success\" : " success "\n}"
#define STATUS(fields)                                                                                                 \
        "{\n  \"action\" : \"SubmissionStatusResponse\",\n" fields "  \"serverSparkVersion\" : \"4.3.0\",\n  "         \
        "\"submissionId\" : \"" ID "\""
#define NOT_ALIVE(state, what) "Current state is not alive: " state ". Can only " what " in ALIVE state."
#define HTML(code, reason)                                                                                             \
        "<html>\n<head>\n<meta http-equiv=\"Content-Type\" "                                                           \
        "content=\"text/html;charset=ISO-8859-1\"/>\n<title>Error " code " " reason                                    \
        "</title>\n</head>\n<body><h2>HTTP ERROR " code " " reason "</h2>\n</body>\n</html>\n"

struct row {
        int status;
        const char *body;
        size_t size; /* 0: strlen(body) */
        enum spark_answer answer;
        const char *detail; /* is part of it; NULL: not looked at */
};

static void classify(enum spark_question question, const struct row *row, struct spark_reply *reply) {
        size_t size = row->size > 0 ? row->size : strlen(row->body);
        /* An exact copy on the heap: the sanitizer sees each read past its end. */
        char *copy = malloc(size > 0 ? size : 1);
        memcpy(copy, row->body, size);
        spark_reply_classify(question, ID, row->status, (struct span){.data = (const uint8_t *)copy, .size = size},
                             reply);
        free(copy);
}

static void check(enum spark_question question, const struct row *rows, size_t count) {
        for (size_t i = 0; i < count; i++) {
                struct spark_reply reply;
                classify(question, &rows[i], &reply);
                if (reply.answer != rows[i].answer)
                        fail_msg("row %zu is %s (%s), not %s: %s", i, spark_answer_to_text(reply.answer), reply.detail,
                                 spark_answer_to_text(rows[i].answer), rows[i].body);
                if (rows[i].detail && !strstr(reply.detail, rows[i].detail))
                        fail_msg("row %zu says: %s", i, reply.detail);
                assert_true(base_text_is_utf8(reply.detail, strlen(reply.detail)));
                assert_null(strpbrk(reply.detail, "\n\r\t\x1b"));
        }
}

static void test_kill(void **state) {
        static const struct row rows[] = {
                {200, KILL("true", "Kill request for " ID " submitted"), 0, SPARK_ACCEPTED,
                 "Kill request for " ID " submitted"},
                {200, "{\"action\":\"KillSubmissionResponse\",\"success\":true}", 0, SPARK_ACCEPTED, ""},
                {200,
                 "{\"action\":\"KillSubmissionResponse\",\"success\":true,\"message\":null,\"submissionId\":null}\r\n",
                 0, SPARK_ACCEPTED, ""},
                {200, "{\"action\":\"KillSubmissionResponse\",\"success\":true,\"new\":{\"a\":[1,2.5,null]}}", 0,
                 SPARK_ACCEPTED, ""},
                {200, KILL("false", "Driver " ID " has already finished or does not exist"), 0, SPARK_UNKNOWN_ID,
                 "already finished"},
                {200, KILL("false", NOT_ALIVE("STANDBY", "kill drivers")), 0, SPARK_NOT_ALIVE, "STANDBY"},
                {200, KILL("false", NOT_ALIVE("RECOVERING", "kill drivers")), 0, SPARK_NOT_ALIVE, "RECOVERING"},
                {200, KILL("false", NOT_ALIVE("COMPLETING_RECOVERY", "kill drivers")), 0, SPARK_NOT_ALIVE, NULL},
                {200, KILL("false", "Can only kill drivers in ALIVE state. Current state: STANDBY."), 0,
                 SPARK_NOT_ALIVE, NULL},
                {200, KILL("false", "The cluster is on holiday"), 0, SPARK_UNREACHABLE, "holiday"},
                {200, KILL("false", ""), 0, SPARK_UNREACHABLE, NULL},
                {200, "{\"action\":\"KillSubmissionResponse\",\"success\":false}", 0, SPARK_UNREACHABLE, NULL},
                {200, KILL("true", NOT_ALIVE("STANDBY", "kill drivers")), 0, SPARK_UNREACHABLE, "odd"},
                /* the phrase counts as a prefix only */
                {200, KILL("false", "x Current state is not alive"), 0, SPARK_UNREACHABLE, NULL},
        };
        (void)state;
        check(SPARK_QUESTION_KILL, rows, ARRAY_SIZE(rows));
}

static void test_http_statuses(void **state) {
        static const struct row rows[] = {
                {400, "{\"action\":\"ErrorResponse\",\"message\":\"Submission ID is missing in kill request.\"}", 0,
                 SPARK_REFUSED, "HTTP status 400: Submission ID is missing"},
                {400, HTML("400", "Ambiguous URI path separator"), 0, SPARK_REFUSED, "Ambiguous URI"},
                {468,
                 "{\"action\":\"ErrorResponse\",\"highestProtocolVersion\":\"v1\",\"message\":\"Unknown protocol "
                 "version 'v2'.\"}",
                 0, SPARK_REFUSED, "Unknown protocol version"},
                {403, HTML("403", "JWT Validate Fail"), 0, SPARK_REFUSED_AUTH,
                 "HTTP status 403: Error 403 JWT Validate Fail"},
                {401, "", 0, SPARK_REFUSED_AUTH, "HTTP status 401"},
                {404, "not found", 0, SPARK_REFUSED, NULL},
                {405, HTML("405", "x"), 0, SPARK_REFUSED, NULL},
                {414, HTML("414", "URI Too Long"), 0, SPARK_REFUSED, NULL},
                {431, HTML("431", "x"), 0, SPARK_REFUSED, NULL},
                {301, "", 0, SPARK_REFUSED, NULL},
                {302, "", 0, SPARK_REFUSED, "HTTP status 302"},
                {308, "", 0, SPARK_REFUSED, NULL},
                {408, "", 0, SPARK_UNREACHABLE, NULL},
                {425, "", 0, SPARK_UNREACHABLE, NULL},
                {429, "", 0, SPARK_UNREACHABLE, NULL},
                {500, HTML("500", "java.util.concurrent.TimeoutException"), 0, SPARK_UNREACHABLE, "TimeoutException"},
                {500, "{\"action\":\"ErrorResponse\",\"message\":\"Internal server error: x\"}", 0, SPARK_UNREACHABLE,
                 "Internal"},
                {501, "", 0, SPARK_UNREACHABLE, NULL},
                {502, HTML("502", "Bad Gateway"), 0, SPARK_UNREACHABLE, NULL},
                {503, "{\"action\":\"ErrorResponse\",\"message\":\"Master is not ready.\"}", 0, SPARK_UNREACHABLE,
                 "not ready"},
                /* a perfect answer under another status is none */
                {201, KILL("true", "Kill request for " ID " submitted"), 0, SPARK_UNREACHABLE, NULL},
                {204, "", 0, SPARK_UNREACHABLE, NULL},
                {500, KILL("true", "Kill request for " ID " submitted"), 0, SPARK_UNREACHABLE, NULL},
                {404, KILL("true", "Kill request for " ID " submitted"), 0, SPARK_REFUSED, NULL},
                {418, "", 0, SPARK_UNREACHABLE, NULL},
                {0, "", 0, SPARK_UNREACHABLE, NULL},
                {999, "", 0, SPARK_UNREACHABLE, NULL},
                {-1, "", 0, SPARK_UNREACHABLE, NULL},
                /* titles */
                {403, "<TITLE>no end", 0, SPARK_REFUSED_AUTH, "HTTP status 403"},
                {403, "<title>", 0, SPARK_REFUSED_AUTH, NULL},
                {403, "<title>a\x1b[31m\r\nb</title>", 0, SPARK_REFUSED_AUTH, "a\\x1B[31m\\x0D\\x0Ab"},
                {403, "<tit", 0, SPARK_REFUSED_AUTH, NULL},
        };
        (void)state;
        check(SPARK_QUESTION_KILL, rows, ARRAY_SIZE(rows));
        check(SPARK_QUESTION_STATUS, rows, ARRAY_SIZE(rows));
}

#define NUL_IN_MESSAGE KILL("true", "a\0b")
#define NUL_AFTER KILL("true", "a") "\0 garbage"

static void test_odd_bodies(void **state) {
        static const struct row rows[] = {
                {200, "", 0, SPARK_UNREACHABLE, "odd"},
                {200, " ", 0, SPARK_UNREACHABLE, NULL},
                {200, HTML("200", "welcome to the hotel's network"), 0, SPARK_UNREACHABLE, NULL},
                {200, "null", 0, SPARK_UNREACHABLE, NULL},
                {200, "true", 0, SPARK_UNREACHABLE, NULL},
                {200, "[]", 0, SPARK_UNREACHABLE, NULL},
                {200, "{}", 0, SPARK_UNREACHABLE, NULL},
                {200, "[" KILL("true", "") "]", 0, SPARK_UNREACHABLE, NULL},
                {200, KILL("true", "") "x", 0, SPARK_UNREACHABLE, NULL},
                {200, KILL("true", "") KILL("true", ""), 0, SPARK_UNREACHABLE, NULL},
                {200, "\xef\xbb\xbf" KILL("true", ""), 0, SPARK_UNREACHABLE, NULL},
                {200, "'" KILL("true", ""), 0, SPARK_UNREACHABLE, NULL},
                {200, "{'action':'KillSubmissionResponse','success':true}", 0, SPARK_UNREACHABLE, NULL},
                {200, "{\"action\":\"KillSubmissionResponse\",\"success\":true,}", 0, SPARK_UNREACHABLE, NULL},
                {200, "{\"action\":\"KillSubmissionResponse\",\"success\":\"true\"}", 0, SPARK_UNREACHABLE, "success"},
                {200, "{\"action\":\"KillSubmissionResponse\",\"success\":1}", 0, SPARK_UNREACHABLE, NULL},
                {200, "{\"action\":\"KillSubmissionResponse\",\"success\":null}", 0, SPARK_UNREACHABLE, NULL},
                {200, "{\"action\":\"KillSubmissionResponse\",\"success\":[true]}", 0, SPARK_UNREACHABLE, NULL},
                {200, "{\"action\":\"KillSubmissionResponse\"}", 0, SPARK_UNREACHABLE, NULL},
                {200, "{\"success\":true}", 0, SPARK_UNREACHABLE, "no action"},
                {200, "{\"action\":7,\"success\":true}", 0, SPARK_UNREACHABLE, NULL},
                {200, "{\"action\":{\"a\":1},\"success\":true}", 0, SPARK_UNREACHABLE, NULL},
                {200, "{\"action\":\"\",\"success\":true}", 0, SPARK_UNREACHABLE, NULL},
                {200, "{\"action\":\"KillSubmissionRespons\",\"success\":true}", 0, SPARK_UNREACHABLE, NULL},
                {200, "{\"action\":\"KillSubmissionResponse2\",\"success\":true}", 0, SPARK_UNREACHABLE, NULL},
                {200, "{\"action\":\"killsubmissionresponse\",\"success\":true}", 0, SPARK_UNREACHABLE, NULL},
                {200, "{\"action\":\"KillSubmissionResponse\\u0000\",\"success\":true}", 0, SPARK_UNREACHABLE, NULL},
                {200, "{\"action\":\"KillAllSubmissionResponse\",\"success\":true}", 0, SPARK_UNREACHABLE, NULL},
                {200, "{\"action\":\"SubmissionStatusResponse\",\"driverState\":\"KILLED\",\"success\":true}", 0,
                 SPARK_UNREACHABLE, "not asked for"},
                {200, "{\"action\":\"ErrorResponse\",\"message\":\"x\"}", 0, SPARK_UNREACHABLE, NULL},
                {200, "{\"action\":\"KillSubmissionResponse\",\"submissionId\":\"driver-other\",\"success\":true}", 0,
                 SPARK_UNREACHABLE, "another driver"},
                {200, "{\"action\":\"KillSubmissionResponse\",\"submissionId\":\"" ID "0\",\"success\":true}", 0,
                 SPARK_UNREACHABLE, NULL},
                {200, "{\"action\":\"KillSubmissionResponse\",\"submissionId\":\"\",\"success\":true}", 0,
                 SPARK_UNREACHABLE, NULL},
                {200, "{\"action\":\"KillSubmissionResponse\",\"submissionId\":7,\"success\":true}", 0,
                 SPARK_UNREACHABLE, NULL},
                {200, "{\"action\":\"KillSubmissionResponse\",\"submissionId\":\"" ID "\\u0000\",\"success\":true}", 0,
                 SPARK_UNREACHABLE, NULL},
                {200, "{\"action\":\"KillSubmissionResponse\",\"message\":7,\"success\":true}", 0, SPARK_UNREACHABLE,
                 NULL},
                {200, "{\"action\":\"KillSubmissionResponse\",\"message\":\"\xff\xfe\",\"success\":true}", 0,
                 SPARK_UNREACHABLE, NULL},
                {200, "{\"action\":\"KillSubmissionResponse\",\"message\":\"a\nb\",\"success\":tru}", 0,
                 SPARK_UNREACHABLE, NULL},
                {200, NUL_IN_MESSAGE, sizeof(NUL_IN_MESSAGE) - 1, SPARK_UNREACHABLE, NULL},
                {200, NUL_AFTER, sizeof(NUL_AFTER) - 1, SPARK_UNREACHABLE, NULL},
                {200,
                 "{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{}}}}}}}},\"action\":"
                 "\"KillSubmissionResponse\",\"success\":true}",
                 0, SPARK_UNREACHABLE, NULL},
                /* of two fields with one name the last counts */
                {200, "{\"action\":\"KillSubmissionResponse\",\"success\":true,\"success\":false}", 0,
                 SPARK_UNREACHABLE, NULL},
                {200, "{\"action\":\"x\",\"action\":\"KillSubmissionResponse\",\"success\":true}", 0, SPARK_ACCEPTED,
                 NULL},
        };
        (void)state;
        check(SPARK_QUESTION_KILL, rows, ARRAY_SIZE(rows));
}

/* Every beginning of a good answer is an odd one. */
static void test_truncated(void **state) {
        static const char kill_body[] = KILL("true", "Kill request for " ID " submitted");
        static const char status_body[] = STATUS("  \"driverState\" : \"KILLED\",\n") ",\n  \"success\" : true\n}";

        (void)state;
        for (size_t size = 1; size < sizeof(kill_body) - 1; size++) {
                struct row row = {200, kill_body, size, SPARK_UNREACHABLE, NULL};
                check(SPARK_QUESTION_KILL, &row, 1);
        }
        for (size_t size = 1; size < sizeof(status_body) - 1; size++) {
                struct row row = {200, status_body, size, SPARK_UNREACHABLE, NULL};
                check(SPARK_QUESTION_STATUS, &row, 1);
        }
}

static char *huge(const char *head, char filler, size_t count, const char *tail) {
        char *text = malloc(strlen(head) + count + strlen(tail) + 1);
        memcpy(text, head, strlen(head));
        memset(text + strlen(head), filler, count);
        memcpy(text + strlen(head) + count, tail, strlen(tail) + 1);
        return text;
}

static void test_huge(void **state) {
        static const char head[] = "{\"action\":\"KillSubmissionResponse\",\"success\":true,\"message\":\"";
        char *fits = huge(head, 'x', SPARK_REPLY_BYTES_MAX - strlen(head) - 2, "\"}");
        char *passes = huge(head, 'x', SPARK_REPLY_BYTES_MAX - strlen(head) - 1, "\"}");
        char *deep = huge("", '[', SPARK_REPLY_BYTES_MAX, "");
        char *wide = huge("{\"action\":[", '{', 5, "");
        const struct row rows[] = {
                {200, fits, 0, SPARK_ACCEPTED, "xxxx"},  {200, passes, 0, SPARK_UNREACHABLE, NULL},
                {200, deep, 0, SPARK_UNREACHABLE, NULL}, {200, wide, 0, SPARK_UNREACHABLE, NULL},
                {500, deep, 0, SPARK_UNREACHABLE, NULL},
        };
        (void)state;
        check(SPARK_QUESTION_KILL, rows, ARRAY_SIZE(rows));
        free(fits);
        free(passes);
        free(deep);
        free(wide);
}

#define TRACE                                                                                                          \
        "\\n\\torg.apache.spark.deploy.master.Master.applyOrElse(Master.scala:501)\\n\\tjava.lang.Thread.run(Thread."  \
        "java:840)"
#define STATUS_NOT_ALIVE(state)                                                                                        \
        STATUS("  \"message\" : \"Exception from the cluster:\\njava.lang.Exception: " NOT_ALIVE(                      \
                state, "request driver status") TRACE "\",\n")                                                         \
        ",\n  \"success\" : false\n}"

static void test_status(void **state) {
        static const struct row rows[] = {
                {200, STATUS("  \"driverState\" : \"RUNNING\",\n") ",\n  \"success\" : true\n}", 0, SPARK_ACCEPTED, ""},
                {200, STATUS("") ",\n  \"success\" : false\n}", 0, SPARK_UNKNOWN_ID, "does not know"},
                {200, STATUS("  \"message\" : null,\n") ",\n  \"success\" : false\n}", 0, SPARK_UNKNOWN_ID, NULL},
                {200, STATUS_NOT_ALIVE("STANDBY"), 0, SPARK_NOT_ALIVE, "STANDBY"},
                {200, STATUS_NOT_ALIVE("RECOVERING"), 0, SPARK_NOT_ALIVE, NULL},
                {200,
                 STATUS("  \"message\" : \"Can only request driver status in ALIVE state. Current state: "
                        "STANDBY.\",\n") ",\n  \"success\" : false\n}",
                 0, SPARK_NOT_ALIVE, NULL},
                {200,
                 STATUS("  \"message\" : \"Exception from the cluster:\\njava.io.IOException\",\n") ",\n  \"success\" "
                                                                                                    ": false\n}",
                 0, SPARK_UNREACHABLE, "IOException"},
                /* a job's own exception cannot make its master look like a standby */
                {200,
                 STATUS("  \"driverState\" : \"ERROR\",\n  \"message\" : \"Exception from the cluster:\\nx: " NOT_ALIVE(
                         "STANDBY", "request driver status") "\",\n") ",\n  \"success\" : true\n}",
                 0, SPARK_ACCEPTED, NULL},
                {200, STATUS("") ",\n  \"success\" : true\n}", 0, SPARK_UNREACHABLE, "without a state"},
                {200, STATUS("  \"driverState\" : null,\n") ",\n  \"success\" : true\n}", 0, SPARK_UNREACHABLE, NULL},
                {200, STATUS("  \"driverState\" : 3,\n") ",\n  \"success\" : true\n}", 0, SPARK_UNREACHABLE, NULL},
                {200,
                 STATUS("  \"driverState\" : \"RUNNING\",\n  \"workerHostPort\" : 7,\n") ",\n  \"success\" : true\n}",
                 0, SPARK_UNREACHABLE, "workerHostPort"},
                {200, STATUS("  \"driverState\" : \"RUNNING\",\n") "}", 0, SPARK_UNREACHABLE, NULL},
                {200, KILL("true", ""), 0, SPARK_UNREACHABLE, "not asked for"},
                {200,
                 "{\"action\":\"SubmissionStatusResponse\",\"driverState\":\"KILLED\",\"submissionId\":\"x\","
                 "\"success\":true}",
                 0, SPARK_UNREACHABLE, "another driver"},
        };
        struct row standby = {200, STATUS_NOT_ALIVE("STANDBY"), 0, SPARK_NOT_ALIVE, NULL};
        struct spark_reply reply;

        (void)state;
        check(SPARK_QUESTION_STATUS, rows, ARRAY_SIZE(rows));
        classify(SPARK_QUESTION_STATUS, &standby, &reply); /* the stack trace around it is of no use to people */
        assert_string_equal(reply.detail, NOT_ALIVE("STANDBY", "request driver status"));
}

static void test_driver_states(void **state) {
        static const struct {
                const char *word;
                enum spark_driver_state state;
                const char *shown;
        } table[] = {
                {"SUBMITTED", SPARK_STATE_SUBMITTED, "SUBMITTED"},
                {"RUNNING", SPARK_STATE_RUNNING, "RUNNING"},
                {"FINISHED", SPARK_STATE_FINISHED, "FINISHED"},
                {"RELAUNCHING", SPARK_STATE_RELAUNCHING, "RELAUNCHING"},
                {"KILLED", SPARK_STATE_KILLED, "KILLED"},
                {"FAILED", SPARK_STATE_FAILED, "FAILED"},
                {"ERROR", SPARK_STATE_ERROR, "ERROR"},
                {"UNKNOWN", SPARK_STATE_OTHER, "UNKNOWN"},
                {"", SPARK_STATE_OTHER, ""},
                {"killed", SPARK_STATE_OTHER, "killed"},
                {"KILLED ", SPARK_STATE_OTHER, "KILLED "},
                {"KILLEDKILLEDKILLEDKILLEDKILLEDKILLED", SPARK_STATE_OTHER, "KILLEDKILLEDKILLEDKILLEDKILLEDK"},
                {"\\u001b[2J", SPARK_STATE_OTHER, "\\x1B[2J"},
                {"KILLED\\u0000", SPARK_STATE_NONE, ""},
        };
        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
                char body[256];
                struct spark_reply reply;
                snprintf(body, sizeof(body),
                         "{\"action\":\"SubmissionStatusResponse\",\"driverState\":\"%s\",\"success\":true}",
                         table[i].word);
                struct row row = {200, body, 0, SPARK_ACCEPTED, NULL};
                classify(SPARK_QUESTION_STATUS, &row, &reply);
                assert_int_equal(reply.state, table[i].state);
                assert_string_equal(reply.state_text, table[i].shown);
                assert_int_equal(reply.answer, reply.state == SPARK_STATE_NONE ? SPARK_UNREACHABLE : SPARK_ACCEPTED);
                assert_false(reply.worker_named);
        }
}

static void test_worker_hosts(void **state) {
        static const struct {
                const char *host_port, *host;
        } table[] = {
                {"node-1.example:7078", "node-1.example"},
                {"10.0.0.1:41234", "10.0.0.1"},
                {"[fe80::1]:7078", "fe80::1"},
                {"fe80::1:7078", "fe80::1"},
                {"[::1]:7078", "::1"},
                /* a worker that cannot be read is named, and nowhere */
                {"", ""},
                {"host", ""},
                {"host:", ""},
                {"host:0", ""},
                {"host:65536", ""},
                {"host:70x", ""},
                {":7078", ""},
                {"[]:7078", ""},
        };
        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
                char body[512];
                struct spark_reply reply;
                snprintf(body, sizeof(body),
                         "{\"action\":\"SubmissionStatusResponse\",\"driverState\":\"RUNNING\",\"success\":true,"
                         "\"workerHostPort\":\"%s\"}",
                         table[i].host_port);
                struct row row = {200, body, 0, SPARK_ACCEPTED, NULL};
                classify(SPARK_QUESTION_STATUS, &row, &reply);
                assert_int_equal(reply.answer, SPARK_ACCEPTED);
                assert_true(reply.worker_named);
                assert_string_equal(reply.worker_host, table[i].host);
                assert_string_equal(reply.worker_host_port, table[i].host_port);
        }
        char *body = huge("{\"action\":\"SubmissionStatusResponse\",\"driverState\":\"RUNNING\",\"success\":true,"
                          "\"workerHostPort\":\"",
                          'h', 1000, ":7078\"}");
        struct row row = {200, body, 0, SPARK_ACCEPTED, NULL};
        struct spark_reply reply;
        classify(SPARK_QUESTION_STATUS, &row, &reply);
        assert_true(reply.worker_named);
        assert_string_equal(reply.worker_host, "");
        assert_int_equal(strlen(reply.worker_host_port), sizeof(reply.worker_host_port) - 1);
        free(body);
}

static void test_same_host(void **state) {
        static const struct {
                const char *a, *b;
                bool same;
        } table[] = {
                {"node-1", "node-1", true},
                {"Node-1.Example", "node-1.example", true},
                {"node-1", "node-10", false},
                {"node-1", "node-1.example", false},
                {"10.0.0.1", "10.0.0.1", true},
                {"10.0.0.1", "10.0.0.10", false},
                {"::1", "0:0:0:0:0:0:0:1", true},
                {"[::1]", "::1", true},
                {"fe80::A", "fe80::a", true},
                {"fe80::a", "fe80::b", false},
                {"::ffff:10.0.0.1", "10.0.0.1", true},
                {"10.0.0.1", "node-1", false},
                {"", "", false},
                {"[", "[", true},
                {"", "node-1", false},
                {"::", "0.0.0.0", false},
        };
        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(table); i++)
                if (spark_host_is_same(table[i].a, table[i].b) != table[i].same ||
                    spark_host_is_same(table[i].b, table[i].a) != table[i].same)
                        fail_msg("%s and %s", table[i].a, table[i].b);
}

static void test_combine(void **state) {
        static const enum spark_answer order[] = {SPARK_NOT_ALIVE, SPARK_REFUSED, SPARK_REFUSED_AUTH,
                                                  SPARK_UNREACHABLE};

        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(order); i++)
                for (size_t j = 0; j < ARRAY_SIZE(order); j++)
                        assert_int_equal(spark_reply_combine(order[i], order[j]), order[i > j ? i : j]);
        for (int answer = 0; answer < SPARK_ANSWER_MAX; answer++)
                assert_int_equal(spark_reply_is_final((enum spark_answer)answer),
                                 answer == SPARK_ACCEPTED || answer == SPARK_UNKNOWN_ID);
}

/* Random damage to real answers: no crash, and nothing but the intact ones is an ALIVE master's word unless the
 * damage left action, id and success alone. SEED repeats a run. */
static void test_random_damage(void **state) {
        static const char *const bodies[] = {
                KILL("true", "Kill request for " ID " submitted"),
                KILL("false", "Driver " ID " has already finished or does not exist"),
                STATUS("  \"driverState\" : \"RUNNING\",\n") ",\n  \"success\" : true,\n  \"workerHostPort\" : "
                                                             "\"h:1\"\n}",
                STATUS_NOT_ALIVE("STANDBY"),
        };
        const char *given = getenv("SEED");
        uint64_t seed = given ? strtoull(given, NULL, 0) : base_random_u64();

        (void)state;
        print_message("SEED=%" PRIu64 "\n", seed);
        for (int i = 0; i < 20000; i++) {
                const char *body = bodies[base_random_next(&seed) % ARRAY_SIZE(bodies)];
                size_t size = strlen(body);
                char *copy = malloc(size + 1);
                struct spark_reply reply;
                memcpy(copy, body, size + 1);
                for (uint64_t damage = base_random_next(&seed) % 4; damage < 4; damage++)
                        copy[base_random_next(&seed) % size] = (char)base_random_next(&seed);
                size = base_random_next(&seed) % 3 == 0 ? (size_t)(base_random_next(&seed) % size) : size;
                spark_reply_classify(i % 2 ? SPARK_QUESTION_KILL : SPARK_QUESTION_STATUS, ID, 200,
                                     (struct span){.data = (const uint8_t *)copy, .size = size}, &reply);
                assert_true(reply.answer < SPARK_ANSWER_MAX);
                assert_true(base_text_is_utf8(reply.detail, strlen(reply.detail)));
                if (reply.answer == SPARK_ACCEPTED) {
                        assert_non_null(memmem(copy, size, "true", 4));
                        assert_non_null(memmem(copy, size,
                                               i % 2 ? "\"KillSubmissionResponse\"" : "\"SubmissionStatusResponse\"",
                                               i % 2 ? 24 : 26));
                }
                free(copy);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_kill),          cmocka_unit_test(test_http_statuses),
                cmocka_unit_test(test_odd_bodies),    cmocka_unit_test(test_truncated),
                cmocka_unit_test(test_huge),          cmocka_unit_test(test_status),
                cmocka_unit_test(test_driver_states), cmocka_unit_test(test_worker_hosts),
                cmocka_unit_test(test_same_host),     cmocka_unit_test(test_combine),
                cmocka_unit_test(test_random_damage),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
