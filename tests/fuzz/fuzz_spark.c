/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A master's reply from its first byte on: a server on loopback says it, the real libcurl reads it, http.c, spark.c and
 * spark_reply.c make a word of it.
 *
 * libFuzzer: -max_len=8192
 *
 * Input: a byte of choices, [size (two bytes), first reply], the rest is the second one, should the round go on to the
 * second master. Choice 1: a kill; 2: a head of HTTP/1.1 200 with the right length is put before each, so that the body
 * is reached.
 *
 * What must never come of it: an answer that counts as an ALIVE master's and is not in the bytes.
 */
#include "fuzz_loop.h"
#include "http.h"
#include "spark_reply.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#define DRIVER_ID "driver-20261107101500-0001"
#define CONNECTIONS_MAX 8 /* of an input: two masters, and libcurl's second try on a connection that was closed */

#define REPLY_MAX (16 * 1024) /* fits into the socket: the server must not block */

enum choice { CHOICE_KILL = 1, CHOICE_HEAD = 2 };

struct server {
        uint8_t choices;
        struct span replies[2];
        struct buffer talk;
        int fd;       /* the connection that is served; -1: none */
        bool replied; /* on this connection: nothing more comes on it */
        unsigned connections;
        bool answered;
        struct spark_result result;
};

static int listen_fd = -1;
static char url[40];

static void start(void) {
        struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        socklen_t size = sizeof(address);

        if (listen_fd >= 0)
                return;
        listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        FUZZ_CHECK(listen_fd >= 0 && bind(listen_fd, (struct sockaddr *)&address, size) == 0);
        FUZZ_CHECK(listen(listen_fd, CONNECTIONS_MAX) == 0);
        FUZZ_CHECK(getsockname(listen_fd, (struct sockaddr *)&address, &size) == 0);
        (void)snprintf(url, sizeof(url), "http://127.0.0.1:%u", ntohs(address.sin_port));
}

/* ---- the master ----------------------------------------------------------------------------------------------- */

static void server_hang_up(struct server *server) {
        const struct linger linger = { .l_onoff = 1 };

        if (server->fd < 0)
                return;
        (void)setsockopt(server->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)); /* no TIME_WAIT */
        base_close_pointer(&server->fd);
        server->fd = -1;
}

static void make_talk(struct server *server, struct span reply) {
        server->talk.size = 0;
        if (server->choices & CHOICE_HEAD)
                FUZZ_CHECK(buffer_append_format(&server->talk,
                                                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                                                "Content-Length: %zu\r\n\r\n",
                                                reply.size) == 0);
        FUZZ_CHECK(buffer_append(&server->talk, reply.data, reply.size) == 0);
}

/* The whole reply at once, when the request is there, and then the end: no wait of libcurl's needs a clock to be over.
 */
static void server_talk(struct server *server, struct span reply) {
        uint8_t request[4096];

        if (server->replied || recv(server->fd, request, sizeof(request), MSG_DONTWAIT) <= 0)
                return;
        make_talk(server, reply);
        FUZZ_CHECK(send(server->fd, server->talk.data, server->talk.size, MSG_NOSIGNAL) == (ssize_t)server->talk.size);
        FUZZ_CHECK(shutdown(server->fd, SHUT_WR) == 0);
        server->replied = true;
        server->connections++;
}

static bool server_step(void *userdata) {
        struct server *server = userdata;
        int fd;

        if (server->answered)
                return false;
        fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0) {
                server_hang_up(server);
                server->fd = fd;
                server->replied = false;
                FUZZ_CHECK(server->connections < CONNECTIONS_MAX);
        }
        if (server->fd >= 0)
                server_talk(server, server->replies[server->connections > 0]);
        return true;
}

/* ---- the answer ------------------------------------------------------------------------------------------------- */

static int on_answer(const struct spark_result *result, void *userdata) {
        struct server *server = userdata;

        FUZZ_CHECK(!server->answered);
        server->answered = true;
        server->result = *result;
        FUZZ_CHECK(result->detail && strlen(result->detail) <= SPARK_DETAIL_MAX && fuzz_is_clean(result->detail));
        FUZZ_CHECK(result->master && strcmp(result->master, url) == 0);
        return 0;
}

static bool talk_has(const struct server *server, const char *text) {
        for (size_t i = 0; i < ARRAY_SIZE(server->replies); i++)
                if (memmem(server->replies[i].data, server->replies[i].size, text, strlen(text)))
                        return true;
        return false;
}

static void check(const struct server *server) {
        const struct spark_result *result = &server->result;

        FUZZ_CHECK(result->answer < SPARK_ANSWER_MAX && result->asked >= 1 && result->asked <= 2);
        FUZZ_CHECK_TEXT(result->state_text);
        FUZZ_CHECK_TEXT(result->worker_host_port);
        FUZZ_CHECK(!result->worker_here || result->worker_named);
        FUZZ_CHECK(result->worker_named || result->worker_host_port[0] == '\0');
        if (spark_reply_is_final(result->answer)) {
                /* Its words may be escaped or cut into chunks, but some of the letters must be there. */
                FUZZ_CHECK(talk_has(server, "{"));
                FUZZ_CHECK((server->choices & CHOICE_HEAD) || talk_has(server, "HTTP/1."));
        } else
                FUZZ_CHECK(result->state == SPARK_STATE_NONE && !result->worker_named);
}

static void ask(struct server *server) {
        const char *const masters[] = { url, url }, *const hosts[] = { "192.0.2.1" };
        const struct spark_options options = { .masters = masters,
                                               .master_count = 2,
                                               .worker_hosts = hosts,
                                               .worker_host_count = 1,
                                               .request_timeout_usec = USEC_PER_HOUR };
        struct event *event = fuzz_loop()->event;
        struct spark_request *request = NULL;
        struct spark *spark = NULL;
        struct http *http = NULL;

        FUZZ_CHECK(http_new(event, NULL, &http) == 0 && spark_new(event, http, &options, &spark) == 0);
        int r = server->choices & CHOICE_KILL ? spark_kill(spark, DRIVER_ID, on_answer, server, &request)
                                              : spark_status(spark, DRIVER_ID, on_answer, server, &request);
        FUZZ_CHECK(r == 0);
        fuzz_loop_run(fuzz_loop(), server_step, server);
        spark_request_free(request);
        spark_free(spark);
        http_free(http);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct span input = { data, size };
        struct server server = { .choices = fuzz_take_u8(&input), .fd = -1, .talk = BUFFER_INIT(256 * 1024) };

        start();
        server.replies[0] = fuzz_take(&input, base_min_u64(fuzz_take_u16(&input), REPLY_MAX));
        server.replies[1] = fuzz_take(&input, REPLY_MAX);
        ask(&server);
        check(&server);
        server_hang_up(&server);
        buffer_deinit(&server.talk);
        return 0;
}
