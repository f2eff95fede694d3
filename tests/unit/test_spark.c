/* SPDX-License-Identifier: Apache-2.0 */
/* spark: rounds over scripted masters on the loopback. */
#include "spark.h"

#include <fcntl.h>
#include <setjmp.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "event.h"
#include "http.h"
#include "metrics.h"
#include "resolve.h"
#include "scripted_server.h"
#include "token.h"

#define ID "driver-20261124101112-0007"
#define MASTERS 3

enum behaviour {
        ALIVE,       /* knows ID, RUNNING on node-1 */
        ALIVE_EMPTY, /* knows no driver */
        STANDBY,
        FORBIDS,  /* 403 HTML */
        MISLEADS, /* 302 to the next one */
        BUSY,     /* 503 HTML */
        SILENT,
        CLOSES,
        BABBLES, /* HTML with 200 */
        FLOODS,  /* a body above the limit */
        LIES,    /* success:true for another id */
};

struct master {
        struct server *server;
        _Atomic enum behaviour behaviour;
        char last[512]; /* request line and headers */
};

struct fixture {
        struct event *event;
        struct resolve *resolve;
        struct http *http;
        struct token *token;
        struct spark *spark;
        struct master masters[MASTERS];
};

struct answer {
        struct event *event;
        unsigned called;
        struct spark_result result;
        char master[128], detail[600];
};

static char flood[70000];

static const char *body_of(enum behaviour behaviour, bool kill_asked) {
        switch (behaviour) {
        case ALIVE:
                return kill_asked ? "{\"action\":\"KillSubmissionResponse\",\"message\":\"Kill request for " ID
                                    " submitted\",\"submissionId\":\"" ID "\",\"success\":true}"
                                  : "{\"action\":\"SubmissionStatusResponse\",\"driverState\":\"RUNNING\","
                                    "\"submissionId\":\"" ID "\",\"success\":true,\"workerHostPort\":\"Node-1:7078\"}";
        case ALIVE_EMPTY:
                return kill_asked ? "{\"action\":\"KillSubmissionResponse\",\"message\":\"Driver " ID
                                    " has already finished or does not exist\",\"submissionId\":\"" ID
                                    "\",\"success\":false}"
                                  : "{\"action\":\"SubmissionStatusResponse\",\"submissionId\":\"" ID
                                    "\",\"success\":false}";
        case STANDBY:
                return kill_asked ? "{\"action\":\"KillSubmissionResponse\",\"message\":\"Current state is not alive: "
                                    "STANDBY. Can "
                                    "only kill drivers in ALIVE state.\",\"submissionId\":\"" ID "\",\"success\":false}"
                                  : "{\"action\":\"SubmissionStatusResponse\",\"message\":\"Exception from the "
                                    "cluster:\\njava.lang.Exception: Current state is not alive: STANDBY. Can only "
                                    "request "
                                    "driver status in ALIVE state.\\n\\tx\",\"submissionId\":\"" ID
                                    "\",\"success\":false}";
        case LIES:
                return "{\"action\":\"KillSubmissionResponse\",\"submissionId\":\"driver-1\",\"success\":true}";
        case FLOODS:
                return flood;
        case BABBLES:
        case FORBIDS:
        case MISLEADS:
        case BUSY:
        case SILENT:
        case CLOSES:
                break;
        }
        return "<html><title>Error 4711 oh\x1b[31m</title></html>";
}

static const char *status_of(enum behaviour behaviour) {
        switch (behaviour) {
        case FORBIDS:
                return "403 Forbidden";
        case MISLEADS:
                return "302 Found\r\nLocation: http://127.0.0.1:1/";
        case BUSY:
                return "503 Service Unavailable";
        case ALIVE:
        case ALIVE_EMPTY:
        case STANDBY:
        case SILENT:
        case CLOSES:
        case BABBLES:
        case FLOODS:
        case LIES:
                break;
        }
        return "200 OK";
}

static void script_master(struct server_exchange *exchange, void *userdata) {
        struct master *master = userdata;
        enum behaviour behaviour = atomic_load(&master->behaviour);
        const char *body = body_of(behaviour, strncmp(exchange->request, "POST /v1/submissions/kill/", 26) == 0);
        char *text = NULL;

        base_text_copy(master->last, sizeof(master->last), exchange->request);
        if (behaviour == SILENT)
                return;
        exchange->then = behaviour == CLOSES ? SERVER_CLOSE : SERVER_KEEP;
        if (behaviour == CLOSES)
                return;
        int size = asprintf(&text, "HTTP/1.1 %s\r\nContent-Type: x\r\nContent-Length: %zu\r\n\r\n%s",
                            status_of(behaviour), strlen(body), body);
        assert(size > 0);
        exchange->answer = text;
        exchange->free_answer = true;
}

static void make_spark(struct fixture *fixture) {
        const char *urls[MASTERS];
        static const char *const hosts[] = {"10.1.2.3", "node-1"};
        char slash[80];

        for (size_t i = 0; i < MASTERS; i++)
                urls[i] = fixture->masters[i].server->url;
        snprintf(slash, sizeof(slash), "%s/", urls[1]);
        urls[1] = slash;
        struct spark_options options = {
                .masters = urls,
                .master_count = MASTERS,
                .worker_hosts = hosts,
                .worker_host_count = ARRAY_SIZE(hosts),
                .request_timeout_usec = 200 * USEC_PER_MSEC,
                .token = fixture->token,
        };
        spark_free(fixture->spark);
        assert_int_equal(spark_new(fixture->event, fixture->http, &options, &fixture->spark), 0);
}

static int setup(void **state) {
        struct fixture *fixture = calloc(1, sizeof(*fixture));

        memset(flood, ' ', sizeof(flood) - 1);
        assert_int_equal(event_new(false, &fixture->event), 0);
        assert_int_equal(resolve_new(fixture->event, &fixture->resolve), 0);
        assert_int_equal(http_new(fixture->event, fixture->resolve, &fixture->http), 0);
        for (size_t i = 0; i < MASTERS; i++)
                fixture->masters[i].server = server_start(script_master, &fixture->masters[i]);
        make_spark(fixture);
        *state = fixture;
        return 0;
}

static int teardown(void **state) {
        struct fixture *fixture = *state;

        spark_free(fixture->spark);
        token_free(fixture->token);
        http_free(fixture->http);
        resolve_free(fixture->resolve);
        event_free(fixture->event);
        for (size_t i = 0; i < MASTERS; i++)
                server_stop(fixture->masters[i].server);
        free(fixture);
        return 0;
}

static void be(struct fixture *fixture, enum behaviour a, enum behaviour b, enum behaviour c) {
        atomic_store(&fixture->masters[0].behaviour, a);
        atomic_store(&fixture->masters[1].behaviour, b);
        atomic_store(&fixture->masters[2].behaviour, c);
}

static unsigned requests_to(struct fixture *fixture, size_t master) {
        return atomic_load(&fixture->masters[master].server->requests);
}

static int on_result(const struct spark_result *result, void *userdata) {
        struct answer *answer = userdata;

        answer->called++;
        answer->result = *result;
        base_text_copy(answer->master, sizeof(answer->master), result->master);
        base_text_copy(answer->detail, sizeof(answer->detail), result->detail);
        assert_true(strlen(result->detail) <= 512);
        assert_null(strpbrk(result->detail, "\x1b\n\r"));
        event_exit(answer->event, 0);
        return 0;
}

static void ask(struct fixture *fixture, bool kill_asked, struct answer *answer) {
        struct spark_request *request = NULL;

        *answer = (struct answer){.event = fixture->event};
        assert_int_equal((kill_asked ? spark_kill : spark_status)(fixture->spark, ID, on_result, answer, &request), 0);
        assert_int_equal(answer->called, 0);
        assert_int_equal(loop_run(fixture->event), 0);
        assert_int_equal(answer->called, 1);
        spark_request_free(request);
}

static void test_kill_accepted(void **state) {
        struct fixture *fixture = *state;
        struct answer answer;
        uint64_t before = metrics_get(METRICS_MASTER_ANSWERS, "accepted");

        ask(fixture, true, &answer);
        assert_int_equal(answer.result.answer, SPARK_ACCEPTED);
        assert_int_equal(answer.result.state, SPARK_STATE_NONE);
        assert_int_equal(answer.result.asked, 1);
        assert_string_equal(answer.master, fixture->masters[0].server->url);
        assert_string_equal(answer.detail, "Kill request for " ID " submitted");
        assert_ptr_equal(strstr(fixture->masters[0].last, "POST /v1/submissions/kill/" ID " HTTP/1.1\r\n"),
                         fixture->masters[0].last);
        assert_null(strstr(fixture->masters[0].last, "Authorization"));
        assert_int_equal(metrics_get(METRICS_MASTER_ANSWERS, "accepted"), before + 1);
}

static void test_status(void **state) {
        struct fixture *fixture = *state;
        struct answer answer;

        ask(fixture, false, &answer);
        assert_int_equal(answer.result.answer, SPARK_ACCEPTED);
        assert_int_equal(answer.result.state, SPARK_STATE_RUNNING);
        assert_string_equal(answer.result.state_text, "RUNNING");
        assert_true(answer.result.worker_named);
        assert_true(answer.result.worker_here);
        assert_string_equal(answer.result.worker_host_port, "Node-1:7078");
        assert_ptr_equal(strstr(fixture->masters[0].last, "GET /v1/submissions/status/" ID " HTTP/1.1\r\n"),
                         fixture->masters[0].last);
}

static void test_worker_elsewhere(void **state) {
        struct fixture *fixture = *state;
        struct spark_options options = {.masters = (const char *const[]){fixture->masters[0].server->url},
                                        .master_count = 1,
                                        .worker_hosts = (const char *const[]){"node-10", "node-1.example"},
                                        .worker_host_count = 2,
                                        .request_timeout_usec = USEC_PER_SEC};
        struct answer answer;

        fixture->spark = spark_free(fixture->spark);
        assert_int_equal(spark_new(fixture->event, fixture->http, &options, &fixture->spark), 0);
        ask(fixture, false, &answer);
        assert_true(answer.result.worker_named);
        assert_false(answer.result.worker_here);
}

/* What a round of three comes to, for kill and for status. */
static void test_rounds(void **state) {
        static const struct {
                enum behaviour masters[MASTERS];
                enum spark_answer answer;
                size_t decided; /* the master that is named */
        } table[] = {
                {{STANDBY, ALIVE, STANDBY}, SPARK_ACCEPTED, 1},
                {{STANDBY, STANDBY, ALIVE}, SPARK_ACCEPTED, 2},
                {{STANDBY, ALIVE_EMPTY, ALIVE}, SPARK_UNKNOWN_ID, 1}, /* the word of an ALIVE master ends it */
                {{CLOSES, ALIVE, STANDBY}, SPARK_ACCEPTED, 1},
                {{SILENT, BUSY, ALIVE}, SPARK_ACCEPTED, 2},
                {{FORBIDS, MISLEADS, ALIVE}, SPARK_ACCEPTED, 2},
                {{BABBLES, FLOODS, ALIVE_EMPTY}, SPARK_UNKNOWN_ID, 2},
                {{STANDBY, STANDBY, STANDBY}, SPARK_NOT_ALIVE, 2},
                {{STANDBY, MISLEADS, STANDBY}, SPARK_REFUSED, 2},
                {{MISLEADS, MISLEADS, MISLEADS}, SPARK_REFUSED, 2},
                {{FORBIDS, STANDBY, MISLEADS}, SPARK_REFUSED_AUTH, 2},
                {{MISLEADS, FORBIDS, FORBIDS}, SPARK_REFUSED_AUTH, 2},
                {{FORBIDS, CLOSES, FORBIDS}, SPARK_UNREACHABLE, 2},
                {{BUSY, STANDBY, FORBIDS}, SPARK_UNREACHABLE, 2},
                {{STANDBY, SILENT, STANDBY}, SPARK_UNREACHABLE, 2},
                {{STANDBY, BABBLES, STANDBY}, SPARK_UNREACHABLE, 2},
                {{STANDBY, LIES, STANDBY}, SPARK_UNREACHABLE, 2},
                {{FLOODS, FLOODS, FLOODS}, SPARK_UNREACHABLE, 2},
        };
        struct fixture *fixture = *state;

        for (size_t i = 0; i < ARRAY_SIZE(table) * 2; i++) {
                struct answer answer;
                size_t row = i / 2;
                make_spark(fixture); /* forgets which master is ALIVE */
                be(fixture, table[row].masters[0], table[row].masters[1], table[row].masters[2]);
                ask(fixture, i % 2, &answer);
                if (answer.result.answer != table[row].answer)
                        fail_msg("row %zu: %s (%s)", row, spark_answer_to_text(answer.result.answer), answer.detail);
                assert_string_equal(answer.master, fixture->masters[table[row].decided].server->url);
                assert_int_equal(answer.result.asked, table[row].decided + 1);
                if (table[row].answer == SPARK_ACCEPTED || table[row].answer == SPARK_UNKNOWN_ID)
                        continue;
                for (size_t j = 0; j < MASTERS; j++) /* each is named with its error */
                        assert_non_null(strstr(answer.detail, fixture->masters[j].server->url));
        }
}

static void test_the_alive_one_is_asked_first(void **state) {
        struct fixture *fixture = *state;
        struct answer answer;

        be(fixture, STANDBY, STANDBY, ALIVE);
        ask(fixture, true, &answer);
        ask(fixture, false, &answer);
        ask(fixture, true, &answer);
        assert_int_equal(requests_to(fixture, 0), 1);
        assert_int_equal(requests_to(fixture, 1), 1);
        assert_int_equal(requests_to(fixture, 2), 3);
        /* failover: the round begins there and goes on through the list */
        be(fixture, ALIVE_EMPTY, STANDBY, STANDBY);
        ask(fixture, true, &answer);
        assert_int_equal(answer.result.answer, SPARK_UNKNOWN_ID);
        assert_int_equal(requests_to(fixture, 2), 4);
        assert_int_equal(requests_to(fixture, 0), 2);
        assert_int_equal(requests_to(fixture, 1), 1);
        ask(fixture, true, &answer);
        assert_int_equal(requests_to(fixture, 0), 3);
        assert_int_equal(requests_to(fixture, 2), 4);
        /* a standby in the middle as the first */
        be(fixture, STANDBY, ALIVE, STANDBY);
        ask(fixture, true, &answer);
        be(fixture, STANDBY, STANDBY, STANDBY);
        ask(fixture, true, &answer);
        assert_int_equal(answer.result.answer, SPARK_NOT_ALIVE);
        assert_int_equal(answer.result.asked, 3);
}

static void test_dead_masters(void **state) {
        struct fixture *fixture = *state;
        char urls[2][64];
        int fds[2] = {server_dead_port(urls[0], sizeof(urls[0])), server_dead_port(urls[1], sizeof(urls[1]))};
        struct spark_options options = {.masters = (const char *const[]){urls[0], urls[1]},
                                        .master_count = 2,
                                        .request_timeout_usec = USEC_PER_SEC};
        struct answer answer;

        fixture->spark = spark_free(fixture->spark);
        assert_int_equal(spark_new(fixture->event, fixture->http, &options, &fixture->spark), 0);
        ask(fixture, true, &answer);
        assert_int_equal(answer.result.answer, SPARK_UNREACHABLE);
        assert_int_equal(answer.result.asked, 2);
        char expected[300];
        snprintf(expected, sizeof(expected), "%s: Connection refused; %s: Connection refused", urls[0], urls[1]);
        assert_string_equal(answer.detail, expected);
        close(fds[0]);
        close(fds[1]);
}

/* A round that is under way goes to its end with the masters that it began with; the next one has the new ones. */
static void test_reconfigure(void **state) {
        struct fixture *fixture = *state;
        struct spark_options options = {.masters = (const char *const[]){fixture->masters[2].server->url},
                                        .master_count = 1,
                                        .request_timeout_usec = USEC_PER_SEC};
        struct spark_request *request = NULL;
        struct answer answer = {.event = fixture->event};

        be(fixture, STANDBY, ALIVE, ALIVE);
        assert_int_equal(spark_kill(fixture->spark, ID, on_result, &answer, &request), 0);
        assert_int_equal(spark_reconfigure(fixture->spark, &options), 0);
        assert_int_equal(loop_run(fixture->event), 0);
        assert_int_equal(answer.result.answer, SPARK_ACCEPTED);
        assert_string_equal(answer.master, fixture->masters[1].server->url);
        spark_request_free(request);

        ask(fixture, true, &answer);
        assert_int_equal(answer.result.answer, SPARK_ACCEPTED);
        assert_string_equal(answer.master, fixture->masters[2].server->url);
        options.master_count = 0;
        assert_int_equal(spark_reconfigure(fixture->spark, &options), -EINVAL);
        ask(fixture, true, &answer); /* nothing has changed */
        assert_string_equal(answer.master, fixture->masters[2].server->url);
}

static void test_what_is_not_acceptable(void **state) {
        static const char *const ids[] = {"",      ".",   "..",   "a/b",        "a b",
                                          "a%2fb", "a?b", "a\nb", "driver-1;x", "\xc3\xa4"};
        struct fixture *fixture = *state;
        struct spark_request *request = NULL;
        struct spark *spark = NULL;
        struct answer answer = {.event = fixture->event};
        const char *many[SPARK_MASTERS_MAX + 1];

        for (size_t i = 0; i < ARRAY_SIZE(ids); i++) {
                assert_int_equal(spark_kill(fixture->spark, ids[i], on_result, &answer, &request), -EINVAL);
                assert_int_equal(spark_status(fixture->spark, ids[i], on_result, &answer, &request), -EINVAL);
        }
        assert_null(request);
        for (size_t i = 0; i < ARRAY_SIZE(many); i++)
                many[i] = "http://127.0.0.1:1";
        struct spark_options options = {.masters = many, .master_count = 0};
        assert_int_equal(spark_new(fixture->event, fixture->http, &options, &spark), -EINVAL);
        options.master_count = ARRAY_SIZE(many);
        assert_int_equal(spark_new(fixture->event, fixture->http, &options, &spark), -EINVAL);
        /* URLs that the HTTP client refuses still make a round, with an end on the loop */
        options.masters = (const char *const[]){"ftp://x", "gopher://y"};
        options.master_count = 2;
        assert_int_equal(spark_new(fixture->event, fixture->http, &options, &spark), 0);
        spark_free(fixture->spark);
        fixture->spark = spark;
        ask(fixture, true, &answer);
        assert_int_equal(answer.result.answer, SPARK_UNREACHABLE);
        assert_int_equal(answer.result.asked, 0);
}

static void write_file(const char *path, const char *text) {
        FILE *file = fopen(path, "w");
        assert_non_null(file);
        fputs(text, file);
        fclose(file);
}

static void test_token(void **state) {
        struct fixture *fixture = *state;
        char directory[] = "/tmp/test_spark.XXXXXX", path[64];
        struct answer answer;

        assert_non_null(mkdtemp(directory));
        snprintf(path, sizeof(path), "%s/token", directory);
        struct token_options options = {.file = path};
        assert_int_equal(token_new(fixture->event, fixture->http, &options, &fixture->token), 0);
        make_spark(fixture);
        /* nobody is asked without it */
        ask(fixture, true, &answer);
        assert_int_equal(answer.result.answer, SPARK_REFUSED_AUTH);
        assert_int_equal(answer.result.asked, 0);
        assert_non_null(strstr(answer.detail, "no token: "));
        assert_non_null(strstr(answer.detail, "No such file"));
        assert_int_equal(requests_to(fixture, 0), 0);
        write_file(path, "first\n");
        ask(fixture, true, &answer);
        assert_int_equal(answer.result.answer, SPARK_ACCEPTED);
        assert_non_null(strstr(fixture->masters[0].last, "\r\nAuthorization: Bearer first\r\n"));
        write_file(path, "second");
        be(fixture, STANDBY, ALIVE, ALIVE);
        ask(fixture, false, &answer);
        assert_non_null(strstr(fixture->masters[1].last, "\r\nAuthorization: Bearer second\r\n"));
        write_file(path, "a secret that is no token");
        ask(fixture, true, &answer);
        assert_int_equal(answer.result.answer, SPARK_REFUSED_AUTH);
        assert_null(strstr(answer.detail, "secret"));
        unlink(path);
        rmdir(directory);
}

/* A metadata service that is silent passes by itself: nothing is refused. */
static void test_token_not_there_yet(void **state) {
        struct fixture *fixture = *state;
        struct answer answer;

        be(fixture, ALIVE, ALIVE, SILENT);
        struct token_options options = {.url = fixture->masters[2].server->url};
        assert_int_equal(token_new(fixture->event, fixture->http, &options, &fixture->token), 0);
        make_spark(fixture);
        ask(fixture, true, &answer);
        assert_int_equal(answer.result.answer, SPARK_UNREACHABLE);
        assert_int_equal(answer.result.asked, 0);
}

/* ---- slots ---------------------------------------------------------------------------------------- */

static void test_cancel(void **state) {
        struct fixture *fixture = *state;
        struct spark_request *requests[10];
        struct answer answer = {.event = fixture->event};

        be(fixture, STANDBY, SILENT, ALIVE);
        for (uint64_t usec = 0; usec < 4000; usec += 500) {
                for (size_t i = 0; i < ARRAY_SIZE(requests); i++)
                        assert_int_equal(spark_kill(fixture->spark, ID, on_result, &answer, &requests[i]), 0);
                assert_int_equal(loop_run_for(fixture->event, usec), 0);
                for (size_t i = 0; i < ARRAY_SIZE(requests); i++)
                        spark_request_free(requests[i]);
        }
        assert_int_equal(loop_run_for(fixture->event, 250 * USEC_PER_MSEC), 0);
        assert_int_equal(answer.called, 0);
}

struct group {
        struct event *event;
        struct spark_request *requests[10];
        unsigned called;
};

static int on_result_free_all(const struct spark_result *result, void *userdata) {
        struct group *group = userdata;

        group->called++;
        for (size_t i = 0; i < ARRAY_SIZE(group->requests); i++)
                group->requests[i] = spark_request_free(group->requests[i]);
        assert_true(strlen(result->detail) > 0); /* still readable */
        assert_true(strlen(result->master) > 0);
        event_exit(group->event, 0);
        return 0;
}

static void test_free_all_in_a_handler(void **state) {
        struct fixture *fixture = *state;

        for (int round = 0; round < 2; round++) {
                struct group group = {.event = fixture->event};
                be(fixture, round ? STANDBY : ALIVE, STANDBY, CLOSES);
                for (size_t i = 0; i < ARRAY_SIZE(group.requests); i++)
                        assert_int_equal(spark_kill(fixture->spark, ID, on_result_free_all, &group, &group.requests[i]),
                                         0);
                assert_int_equal(loop_run(fixture->event), 0);
                assert_int_equal(loop_run_for(fixture->event, 20 * USEC_PER_MSEC), 0);
                assert_int_equal(group.called, 1);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
                TEST(test_kill_accepted),
                TEST(test_status),
                TEST(test_worker_elsewhere),
                TEST(test_rounds),
                TEST(test_the_alive_one_is_asked_first),
                TEST(test_dead_masters),
                TEST(test_reconfigure),
                TEST(test_what_is_not_acceptable),
                TEST(test_token),
                TEST(test_token_not_there_yet),
                TEST(test_cancel),
                TEST(test_free_all_in_a_handler),
        };
        if (signal(SIGPIPE, SIG_IGN) == SIG_ERR)
                return 1;
        return cmocka_run_group_tests(tests, NULL, NULL);
}
