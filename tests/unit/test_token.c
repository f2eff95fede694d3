/* SPDX-License-Identifier: Apache-2.0 */
/* token: files that change, vanish and are no token; a metadata service that is good, late and broken. */
#include "token.h"

#include <fcntl.h>
#include <setjmp.h>
#include <sys/inotify.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "event.h"
#include "http.h"
#include "resolve.h"
#include "scripted_server.h"

struct fixture {
        struct event *event;
        struct resolve *resolve;
        struct http *http;
        struct token *token;
        char directory[64], path[96];
};

static int setup(void **state) {
        struct fixture *fixture = calloc(1, sizeof(*fixture));

        assert_int_equal(event_new(false, &fixture->event), 0);
        assert_int_equal(resolve_new(fixture->event, &fixture->resolve), 0);
        assert_int_equal(http_new(fixture->event, fixture->resolve, &fixture->http), 0);
        base_text_copy(fixture->directory, sizeof(fixture->directory), "/tmp/test_token.XXXXXX");
        assert_non_null(mkdtemp(fixture->directory));
        snprintf(fixture->path, sizeof(fixture->path), "%s/token", fixture->directory);
        *state = fixture;
        return 0;
}

static int teardown(void **state) {
        struct fixture *fixture = *state;

        token_free(fixture->token);
        http_free(fixture->http);
        resolve_free(fixture->resolve);
        event_free(fixture->event);
        unlink(fixture->path);
        assert_int_equal(rmdir(fixture->directory), 0);
        free(fixture);
        return 0;
}

static void make(struct fixture *fixture, const char *file, const char *url) {
        struct token_options options = {.file = file, .url = url};
        assert_int_equal(token_new(fixture->event, fixture->http, &options, &fixture->token), 0);
}

static void write_bytes(const char *path, const void *bytes, size_t size) {
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        assert_int_equal(write(fd, bytes, size), (ssize_t)size);
        close(fd);
}

static void write_text(const char *path, const char *text) {
        write_bytes(path, text, strlen(text));
}

/* As if it had been written an hour ago. */
static void make_old(const char *path) {
        struct timespec times[2] = {{.tv_sec = time(NULL) - 3600}, {.tv_sec = time(NULL) - 3600}};
        assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static void expect(struct fixture *fixture, const char *expected) {
        const char *value = "unset";
        assert_int_equal(token_get(fixture->token, &value), 0);
        assert_string_equal(value, expected);
        assert_string_equal(token_error(fixture->token), "");
}

/* No output on failure, and an error text that does not quote the file. */
static void expect_error(struct fixture *fixture, int error) {
        const char *value = "unset";
        assert_int_equal(token_get(fixture->token, &value), error);
        assert_string_equal(value, "unset");
        assert_true(token_error(fixture->token)[0] != '\0');
        assert_null(strstr(token_error(fixture->token), "secret"));
}

static void test_none(void **state) {
        const char *value = "unset";

        (void)state;
        assert_int_equal(token_get(NULL, &value), 0);
        assert_null(value);
        assert_string_equal(token_error(NULL), "");
        token_refresh(NULL);
        assert_null(token_free(NULL));
}

static void test_options(void **state) {
        struct fixture *fixture = *state;
        struct token_options options = {0};

        assert_int_equal(token_new(fixture->event, fixture->http, &options, &fixture->token), -EINVAL);
        options.file = "a";
        options.url = "http://127.0.0.1:1/";
        assert_int_equal(token_new(fixture->event, fixture->http, &options, &fixture->token), -EINVAL);
        options.file = NULL;
        options.url = "nonsense";
        assert_int_equal(token_new(fixture->event, fixture->http, &options, &fixture->token), -EINVAL);
        assert_null(fixture->token);
}

/* ---- file ----------------------------------------------------------------------------------------- */

static void test_file_content(void **state) {
        static const struct {
                const char *text;
                size_t size;
                const char *token; /* NULL: -EINVAL */
        } table[] = {
                {"abc", 0, "abc"},
                {"  abc.DEF-_~+/=\r\n\t ", 0, "abc.DEF-_~+/="},
                {"\n\nabc\n\n", 0, "abc"},
                {"", 0, NULL},
                {" \n", 0, NULL},
                {"secret one", 0, NULL},
                {"secret\nline", 0, NULL},
                {"secret\0", 7, NULL},
                {"secret\x7f", 0, NULL},
                {"secr\xc3\xa9t", 0, NULL},
                {"secret\x1b[31m", 0, NULL},
        };
        struct fixture *fixture = *state;

        make(fixture, fixture->path, NULL);
        for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
                write_bytes(fixture->path, table[i].text, table[i].size > 0 ? table[i].size : strlen(table[i].text));
                if (table[i].token)
                        expect(fixture, table[i].token);
                else
                        expect_error(fixture, -EINVAL);
        }
}

static void test_redact(void **state) {
        static const struct {
                const char *text, *expected;
        } table[] = {
                {"", ""},
                {"secret-of-mine", "**************"},
                {"no: secret-of-mine, Bearer secret-of-mine!", "no: **************, Bearer **************!"},
                {"cut off: secret-of-", "cut off: **********"},
                {"a secret-of-minesecret-of-mine", "a ****************************"},
                {"secret", "secret"}, /* a word is no secret */
        };
        struct fixture *fixture = *state;
        char text[64];

        make(fixture, fixture->path, NULL);
        base_text_copy(text, sizeof(text), "secret-of-mine");
        token_redact(NULL, text);
        token_redact(fixture->token, text); /* not read yet */
        assert_string_equal(text, "secret-of-mine");
        write_bytes(fixture->path, "secret-of-mine\n", 15);
        expect(fixture, "secret-of-mine");
        for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
                base_text_copy(text, sizeof(text), table[i].text);
                token_redact(fixture->token, text);
                assert_string_equal(text, table[i].expected);
        }
        write_bytes(fixture->path, "abc", 3);
        expect(fixture, "abc");
        base_text_copy(text, sizeof(text), "xabcab");
        token_redact(fixture->token, text);
        assert_string_equal(text, "x***ab");
}

static void test_file_size(void **state) {
        struct fixture *fixture = *state;
        char *text = malloc(1 << 20);
        const char *value;

        memset(text, 'x', 1 << 20);
        make(fixture, fixture->path, NULL);
        write_bytes(fixture->path, text, TOKEN_BYTES_MAX);
        assert_int_equal(token_get(fixture->token, &value), 0);
        assert_int_equal(strlen(value), TOKEN_BYTES_MAX);
        write_bytes(fixture->path, text, TOKEN_BYTES_MAX + 1);
        expect_error(fixture, -EINVAL);
        write_bytes(fixture->path, text, 1 << 20);
        expect_error(fixture, -EINVAL);
        memset(text, ' ', 1 << 20);
        memcpy(text, "abc", 3);
        write_bytes(fixture->path, text, 1 << 20);
        expect_error(fixture, -EINVAL);
        write_bytes(fixture->path, text, 500);
        expect(fixture, "abc");
        free(text);
}

static void test_file_comes_changes_and_goes(void **state) {
        struct fixture *fixture = *state;
        char other[128];

        make(fixture, fixture->path, NULL);
        expect_error(fixture, -ENOENT);
        write_text(fixture->path, "first");
        expect(fixture, "first");
        /* the same length within the same tick */
        write_text(fixture->path, "secnd");
        expect(fixture, "secnd");
        write_text(fixture->path, "third");
        expect(fixture, "third");
        /* replaced by rename, with old times */
        make_old(fixture->path);
        expect(fixture, "third");
        snprintf(other, sizeof(other), "%s.new", fixture->path);
        write_text(other, "forth");
        make_old(other);
        assert_int_equal(rename(other, fixture->path), 0);
        expect(fixture, "forth");
        unlink(fixture->path);
        expect_error(fixture, -ENOENT);
        write_text(fixture->path, "fifth");
        expect(fixture, "fifth");
}

static void test_what_is_no_file(void **state) {
        struct fixture *fixture = *state;

        make(fixture, fixture->path, NULL);
        assert_int_equal(mkdir(fixture->path, 0700), 0);
        expect_error(fixture, -EINVAL);
        rmdir(fixture->path);
        /* a FIFO must not stop us */
        assert_int_equal(mkfifo(fixture->path, 0600), 0);
        expect_error(fixture, -EINVAL);
        unlink(fixture->path);
        assert_int_equal(symlink("/dev/zero", fixture->path), 0);
        expect_error(fixture, -EINVAL);
        unlink(fixture->path);
        assert_int_equal(symlink("token", fixture->path), 0);
        expect_error(fixture, -ELOOP);
}

static unsigned count_opens(int inotify) {
        char bytes[4096];
        ssize_t size = read(inotify, bytes, sizeof(bytes));
        return size > 0 ? (unsigned)((size_t)size / sizeof(struct inotify_event)) : 0; /* no names: a watch on a file */
}

/* Once its times are old enough to tell every later change a file is not opened for each use, only when asked to. */
static void test_settled_file_is_not_read_again(void **state) {
        struct fixture *fixture = *state;
        int inotify = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);

        write_text(fixture->path, "first");
        make(fixture, fixture->path, NULL);
        assert_true(inotify_add_watch(inotify, fixture->path, IN_OPEN) >= 0);
        expect(fixture, "first");
        expect(fixture, "first");
        assert_true(count_opens(inotify) >= 1); /* equal events in a row are one */
        assert_int_equal(loop_run_for(fixture->event, 2050 * USEC_PER_MSEC), 0);
        expect(fixture, "first");
        assert_int_equal(count_opens(inotify), 1);
        expect(fixture, "first");
        assert_int_equal(count_opens(inotify), 0);
        token_refresh(fixture->token);
        expect(fixture, "first");
        assert_int_equal(count_opens(inotify), 1);
        close(inotify);
}

/* ---- metadata service ----------------------------------------------------------------------------- */

struct service {
        _Atomic(const char *) body;
        atomic_int status;
        char last[512];
        struct event_source *poll;
};

static void script_service(struct server_exchange *exchange, void *userdata) {
        struct service *service = userdata;
        const char *body = atomic_load(&service->body);
        char *text = NULL;

        base_text_copy(service->last, sizeof(service->last), exchange->request);
        if (!body)
                return;
        int size = asprintf(&text, "HTTP/1.1 %d x\r\nContent-Length: %zu\r\n\r\n%s", atomic_load(&service->status),
                            strlen(body), body);
        assert(size > 0);
        exchange->answer = text;
        exchange->free_answer = true;
}

/* Run the loop until token_get() says `result` and, for 0, `value`. */
static void await(struct fixture *fixture, int result, const char *value) {
        uint64_t limit = server_now_usec() + 10 * USEC_PER_SEC;

        while (server_now_usec() < limit) {
                const char *now;
                int r = token_get(fixture->token, &now);
                if (r == result && (r < 0 || strcmp(now, value) == 0))
                        return;
                assert_int_equal(loop_run_for(fixture->event, 2 * USEC_PER_MSEC), 0);
        }
        fail_msg("still not %d %s: %s", result, value ? value : "", token_error(fixture->token));
}

static void test_url(void **state) {
        struct fixture *fixture = *state;
        struct service service = {.body = "{\"access_token\":\"abc\",\"expires_in\":3599,\"token_type\":\"Bearer\"}",
                                  .status = 200};
        struct server *server = server_start(script_service, &service);
        char url[128];

        snprintf(url, sizeof(url), "%s/computeMetadata/v1/instance/service-accounts/default/token", server->url);
        make(fixture, NULL, url);
        expect_error(fixture, -EAGAIN);
        await(fixture, 0, "abc");
        assert_string_equal(token_error(fixture->token), "");
        assert_non_null(
                strstr(service.last, "GET /computeMetadata/v1/instance/service-accounts/default/token HTTP/1.1\r\n"));
        assert_non_null(strstr(service.last, "\r\nMetadata-Flavor: Google\r\n"));
        assert_int_equal(loop_run_for(fixture->event, 20 * USEC_PER_MSEC), 0);
        assert_int_equal(atomic_load(&server->requests), 1); /* half its life is far */
        server_stop(server);
}

static void test_url_answers(void **state) {
        static const struct {
                int status;
                const char *body;
                int result;
                const char *value;
        } table[] = {
                {200, "{\"access_token\":\" abc \",\"expires_in\":1}", 0, "abc"},
                {200, "{\"access_token\":\"abc\",\"expires_in\":9000000000000}", 0, "abc"},
                {200, "{\"access_token\":\"secret\",\"expires_in\":0}", -EINVAL, NULL},
                {200, "{\"access_token\":\"secret\",\"expires_in\":-1}", -EINVAL, NULL},
                {200, "{\"access_token\":\"secret\",\"expires_in\":\"3600\"}", -EINVAL, NULL},
                {200, "{\"access_token\":\"secret\",\"expires_in\":3600.5}", -EINVAL, NULL},
                {200, "{\"access_token\":\"secret\",\"expires_in\":99999999999999999999}", -EINVAL, NULL},
                {200, "{\"access_token\":\"secret\"}", -EINVAL, NULL},
                {200, "{\"access_token\":\"\",\"expires_in\":3600}", -EINVAL, NULL},
                {200, "{\"access_token\":\"secret one\",\"expires_in\":3600}", -EINVAL, NULL},
                {200, "{\"access_token\":\"secret\\r\\nX: y\",\"expires_in\":3600}", -EINVAL, NULL},
                {200, "{\"access_token\":\"secret\\u0000\",\"expires_in\":3600}", -EINVAL, NULL},
                {200, "{\"access_token\":7,\"expires_in\":3600}", -EINVAL, NULL},
                {200, "{\"access_token\":\"secret\",\"expires_in\":3600", -EINVAL, NULL},
                {200, "<html>secret</html>", -EINVAL, NULL},
        };
        struct fixture *fixture = *state;

        for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
                struct service service = {.body = table[i].body, .status = table[i].status};
                struct server *server = server_start(script_service, &service);
                make(fixture, NULL, server->url);
                await(fixture, table[i].result, table[i].value);
                assert_null(strstr(token_error(fixture->token), "secret"));
                fixture->token = token_free(fixture->token);
                server_stop(server);
        }
}

static void test_url_back_off_and_recovery(void **state) {
        struct fixture *fixture = *state;
        struct service service = {.body = "no", .status = 503};
        struct server *server = server_start(script_service, &service);

        make(fixture, NULL, server->url);
        while (!strstr(token_error(fixture->token), "HTTP status 503"))
                assert_int_equal(loop_run_for(fixture->event, 2 * USEC_PER_MSEC), 0);
        expect_error(fixture, -EAGAIN);
        assert_int_equal(loop_run_for(fixture->event, 200 * USEC_PER_MSEC), 0);
        assert_int_equal(atomic_load(&server->requests), 1); /* 0.5 to 1 s until the next */
        atomic_store(&service.body, "{\"access_token\":\"abc\",\"expires_in\":3600}");
        atomic_store(&service.status, 200);
        await(fixture, 0, "abc");
        server_stop(server);
}

/* token_refresh() asks anew and keeps the old token meanwhile, also when the service is down by then. */
static void test_url_refresh(void **state) {
        struct fixture *fixture = *state;
        struct service service = {.body = "{\"access_token\":\"old\",\"expires_in\":3600}", .status = 200};
        struct server *server = server_start(script_service, &service);
        const char *value;

        make(fixture, NULL, server->url);
        await(fixture, 0, "old");
        atomic_store(&service.status, 500);
        for (int i = 0; i < 100; i++) /* however often it is called */
                token_refresh(fixture->token);
        while (atomic_load(&server->requests) < 2)
                assert_int_equal(loop_run_for(fixture->event, 2 * USEC_PER_MSEC), 0);
        while (!strstr(token_error(fixture->token), "HTTP status 500"))
                assert_int_equal(loop_run_for(fixture->event, 2 * USEC_PER_MSEC), 0);
        assert_int_equal(token_get(fixture->token, &value), 0);
        assert_string_equal(value, "old");
        for (int i = 0; i < 20; i++) { /* a caller in a hurry: at most one question a second */
                token_refresh(fixture->token);
                assert_int_equal(loop_run_for(fixture->event, 5 * USEC_PER_MSEC), 0);
        }
        assert_int_equal(atomic_load(&server->requests), 2);
        atomic_store(&service.body, "{\"access_token\":\"new\",\"expires_in\":3600}");
        atomic_store(&service.status, 200);
        await(fixture, 0, "new");
        server_stop(server);
}

static void test_url_expires(void **state) {
        struct fixture *fixture = *state;
        struct service service = {.body = "{\"access_token\":\"short\",\"expires_in\":1}", .status = 200};
        struct server *server = server_start(script_service, &service);

        make(fixture, NULL, server->url);
        await(fixture, 0, "short");
        atomic_store(&service.status, 500);
        await(fixture, -EAGAIN, NULL); /* after its second, although nobody answers */
        server_stop(server);
}

static void test_url_nobody_there(void **state) {
        struct fixture *fixture = *state;
        char url[64];
        int fd = server_dead_port(url, sizeof(url));

        make(fixture, NULL, url);
        while (!strstr(token_error(fixture->token), "Connection refused"))
                assert_int_equal(loop_run_for(fixture->event, 2 * USEC_PER_MSEC), 0);
        expect_error(fixture, -EAGAIN);
        close(fd);
}

static void test_url_free_while_asking(void **state) {
        struct fixture *fixture = *state;
        struct service service = {.body = NULL};
        struct server *server = server_start(script_service, &service);

        make(fixture, NULL, server->url);
        while (atomic_load(&server->requests) == 0)
                assert_int_equal(loop_run_for(fixture->event, USEC_PER_MSEC), 0);
        fixture->token = token_free(fixture->token);
        assert_int_equal(loop_run_for(fixture->event, 10 * USEC_PER_MSEC), 0);
        server_stop(server);
}

int main(void) {
        const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
                TEST(test_none),
                TEST(test_options),
                TEST(test_file_content),
                TEST(test_redact), TEST(test_file_size),
                TEST(test_file_comes_changes_and_goes),
                TEST(test_what_is_no_file),
                TEST(test_settled_file_is_not_read_again),
                TEST(test_url),
                TEST(test_url_answers),
                TEST(test_url_back_off_and_recovery),
                TEST(test_url_refresh),
                TEST(test_url_expires),
                TEST(test_url_nobody_there),
                TEST(test_url_free_while_asking),
        };
        if (signal(SIGPIPE, SIG_IGN) == SIG_ERR)
                return 1;
        return cmocka_run_group_tests(tests, NULL, NULL);
}
