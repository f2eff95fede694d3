/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * scripted_server: a TCP server on a thread of the test, for the tests of http, token and spark
 *
 * Each request (all up to the empty line; there are no bodies) goes to the script, which says what bytes to send and
 * what to do with the connection. It listens on 127.0.0.1 on a free port. Also: a loop that ends when the test has what
 * it waits for, or after LOOP_LIMIT.
 */
#include <arpa/inet.h>
#include <assert.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "base.h"
#include "event.h"

#define SERVER_CONNECTIONS_MAX 64
#define SERVER_REQUEST_MAX 65536
#define LOOP_LIMIT_USEC (20 * USEC_PER_SEC)

enum server_then { SERVER_KEEP, SERVER_CLOSE, SERVER_RESET };

struct server_exchange {
        const char *request;                /* in */
        unsigned number;                    /* in: of the server, from 0 */
        unsigned connection, in_connection; /* in: which connection, which request on it, from 0 */
        const char *answer;                 /* out: NULL: nothing */
        size_t size;                        /* out: 0: strlen(answer) */
        bool free_answer;                   /* out */
        unsigned delay_msec;                /* out */
        enum server_then then;              /* out */
};

typedef void (*server_script)(struct server_exchange *exchange, void *userdata);

struct server_connection {
        int fd;
        unsigned number, requests;
        size_t used;
        uint64_t due_usec; /* 0: nothing pending */
        struct server_exchange exchange;
        char text[SERVER_REQUEST_MAX];
};

struct server {
        server_script script;
        void *userdata;
        int listener, wake[2];
        uint16_t port;
        char url[64];
        pthread_t thread;
        atomic_uint connections, open, open_max, requests;
        struct server_connection *slots[SERVER_CONNECTIONS_MAX];
};

static inline uint64_t server_now_usec(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (uint64_t)now.tv_sec * USEC_PER_SEC + (uint64_t)now.tv_nsec / 1000;
}

static inline void server_drop(struct server *server, size_t slot) {
        close(server->slots[slot]->fd);
        if (server->slots[slot]->exchange.free_answer)
                free((void *)(uintptr_t)server->slots[slot]->exchange.answer);
        free(server->slots[slot]);
        server->slots[slot] = NULL;
        atomic_fetch_sub(&server->open, 1);
}

static inline void server_accept(struct server *server) {
        int fd = accept4(server->listener, NULL, NULL, SOCK_CLOEXEC);
        for (size_t i = 0; fd >= 0 && i < SERVER_CONNECTIONS_MAX; i++) {
                if (server->slots[i])
                        continue;
                server->slots[i] = calloc(1, sizeof(struct server_connection));
                assert(server->slots[i]);
                server->slots[i]->fd = fd;
                server->slots[i]->number = atomic_fetch_add(&server->connections, 1);
                unsigned open = atomic_fetch_add(&server->open, 1) + 1;
                if (open > atomic_load(&server->open_max))
                        atomic_store(&server->open_max, open);
                return;
        }
        if (fd >= 0)
                close(fd);
}

/* -> false: the connection is gone */
static inline bool server_answer(struct server *server, size_t slot) {
        struct server_connection *connection = server->slots[slot];
        struct server_exchange exchange = connection->exchange;
        size_t size = exchange.answer ? exchange.size > 0 ? exchange.size : strlen(exchange.answer) : 0;

        connection->due_usec = 0;
        for (size_t sent = 0; sent < size;) {
                ssize_t count = send(connection->fd, exchange.answer + sent, size - sent, MSG_NOSIGNAL);
                if (count <= 0)
                        break;
                sent += (size_t)count;
        }
        if (exchange.then == SERVER_RESET) {
                struct linger linger = {.l_onoff = 1};
                setsockopt(connection->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
        }
        if (exchange.then != SERVER_KEEP) {
                server_drop(server, slot);
                return false;
        }
        if (exchange.free_answer)
                free((void *)(uintptr_t)exchange.answer);
        connection->exchange = (struct server_exchange){0};
        return true;
}

static inline void server_read(struct server *server, size_t slot) {
        struct server_connection *connection = server->slots[slot];
        ssize_t count = recv(connection->fd, connection->text + connection->used,
                             sizeof(connection->text) - connection->used - 1, 0);
        if (count <= 0) {
                server_drop(server, slot);
                return;
        }
        connection->used += (size_t)count;
        connection->text[connection->used] = '\0';
        if (!strstr(connection->text, "\r\n\r\n"))
                return;
        connection->exchange = (struct server_exchange){.request = connection->text,
                                                        .number = atomic_fetch_add(&server->requests, 1),
                                                        .connection = connection->number,
                                                        .in_connection = connection->requests++};
        server->script(&connection->exchange, server->userdata);
        connection->used = 0;
        if (connection->exchange.delay_msec > 0)
                connection->due_usec = server_now_usec() + connection->exchange.delay_msec * USEC_PER_MSEC;
        else
                server_answer(server, slot);
}

/* -> false: stop */
static inline bool server_turn(struct server *server) {
        struct pollfd fds[SERVER_CONNECTIONS_MAX + 2] = {{.fd = server->listener, .events = POLLIN},
                                                         {.fd = server->wake[0], .events = POLLIN}};
        int timeout = -1;

        for (size_t i = 0; i < SERVER_CONNECTIONS_MAX; i++) {
                fds[i + 2].fd = server->slots[i] ? server->slots[i]->fd : -1;
                fds[i + 2].events = POLLIN;
                if (server->slots[i] && server->slots[i]->due_usec > 0)
                        timeout = 2;
        }
        if (poll(fds, ARRAY_SIZE(fds), timeout) < 0)
                return true;
        if (fds[1].revents) {
                char command = 0;
                if (read(server->wake[0], &command, 1) != 1 || command == 'q')
                        return false;
                for (size_t i = 0; i < SERVER_CONNECTIONS_MAX; i++) /* 'c': close what is idle */
                        if (server->slots[i] && server->slots[i]->due_usec == 0)
                                server_drop(server, i);
                return true;
        }
        for (size_t i = 0; i < SERVER_CONNECTIONS_MAX; i++) {
                if (!server->slots[i] || fds[i + 2].fd != server->slots[i]->fd)
                        continue;
                if (fds[i + 2].revents)
                        server_read(server, i);
                else if (server->slots[i]->due_usec > 0 && server->slots[i]->due_usec <= server_now_usec())
                        server_answer(server, i);
        }
        if (fds[0].revents)
                server_accept(server);
        return true;
}

static inline void *server_thread(void *userdata) {
        while (server_turn(userdata))
                ;
        return NULL;
}

static inline struct server *server_start(server_script script, void *userdata) {
        struct server *server = calloc(1, sizeof(*server));
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t size = sizeof(address);

        assert(server);
        server->script = script;
        server->userdata = userdata;
        server->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        int r = bind(server->listener, (struct sockaddr *)&address, sizeof(address));
        assert(r == 0);
        r = listen(server->listener, 256);
        assert(r == 0);
        r = getsockname(server->listener, (struct sockaddr *)&address, &size);
        assert(r == 0);
        server->port = ntohs(address.sin_port);
        snprintf(server->url, sizeof(server->url), "http://127.0.0.1:%u", server->port);
        r = pipe(server->wake);
        assert(r == 0);
        r = pthread_create(&server->thread, NULL, server_thread, server);
        assert(r == 0);
        return server;
}

static inline void server_command(struct server *server, char command) {
        ssize_t count = write(server->wake[1], &command, 1);
        assert(count == 1);
}

/* Close the idle connections, and wait until that is done. */
static inline void server_close_idle(struct server *server) {
        server_command(server, 'c');
        while (atomic_load(&server->open) > 0)
                usleep(500);
}

static inline struct server *server_stop(struct server *server) {
        if (!server)
                return NULL;
        server_command(server, 'q');
        pthread_join(server->thread, NULL);
        for (size_t i = 0; i < SERVER_CONNECTIONS_MAX; i++)
                if (server->slots[i])
                        server_drop(server, i);
        close(server->listener);
        close(server->wake[0]);
        close(server->wake[1]);
        free(server);
        return NULL;
}

/* A loopback port on which nobody listens: bound, not listening. Close the descriptor afterwards. */
static inline int server_dead_port(char *url, size_t size) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t length = sizeof(address);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        int r = bind(fd, (struct sockaddr *)&address, sizeof(address));
        assert(r == 0);
        r = getsockname(fd, (struct sockaddr *)&address, &length);
        assert(r == 0);
        snprintf(url, size, "http://127.0.0.1:%u", ntohs(address.sin_port));
        return fd;
}

/* ---- the loop --------------------------------------------------------------------------------------- */

static int loop_on_limit(void *userdata) {
        (void)userdata;
        return -ETIME;
}

/* Run until somebody calls event_exit(), at most LOOP_LIMIT (then -ETIME). */
static inline int loop_run(struct event *event) {
        struct event_source *limit = NULL;
        int r = event_add_timer(event, "limit", loop_on_limit, NULL, &limit);
        assert(r == 0);
        r = event_timer_set(limit, event_now_usec(event) + LOOP_LIMIT_USEC);
        assert(r == 0);
        r = event_run(event);
        event_source_free(limit);
        return r;
}

static int loop_on_pause(void *userdata) {
        event_exit(userdata, 0);
        return 0;
}

/* Run for `usec`: for what must not happen. */
static inline int loop_run_for(struct event *event, uint64_t usec) {
        struct event_source *pause = NULL;
        int r = event_add_timer(event, "pause", loop_on_pause, event, &pause);
        assert(r == 0);
        r = event_timer_set(pause, event_now_usec(event) + usec);
        assert(r == 0);
        r = event_run(event);
        event_source_free(pause);
        return r;
}
