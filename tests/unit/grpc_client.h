/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* grpc_client: the loop, a channel and calls whose course is written down, for the tests of grpc. */
#include "event.h"
#include "grpc.h"
#include "resolve.h"
#include "grpc_peer.h"

#include <setjmp.h>
#include <cmocka.h>

#define CLIENT_LIMIT_USEC (20 * USEC_PER_SEC)

struct client {
        struct event *event;
        struct resolve *resolve;
        struct grpc_channel *channel;
        struct event_source *limit, *tick;
        bool (*until)(void *userdata);
        void *until_userdata;
};

struct seen { /* the course of one call */
        struct client *client;
        struct grpc_call *call;
        char text[256]; /* the messages, joined by ',' */
        size_t messages, bytes;
        unsigned closed;
        enum grpc_status status;
        char message[2048];
        bool from_peer, has_pushback;
        int64_t pushback_ms;
        bool free_on_message, free_on_close, consume;
        struct seen *also_free;          /* freed in the same callback */
        void (*hook)(struct seen *seen); /* called in on_message */
};

__attribute__((unused)) static int seen_on_message(struct grpc_call *call, struct span message, void *userdata) {
        struct seen *seen = userdata;
        size_t used = strlen(seen->text);

        assert_int_equal(seen->closed, 0);
        assert_ptr_equal(call, seen->call);
        snprintf(seen->text + used, sizeof(seen->text) - used, "%s%.*s", seen->messages > 0 ? "," : "",
                 (int)base_min_u64(message.size, 40), message.data);
        seen->messages++;
        seen->bytes += message.size;
        if (seen->hook)
                seen->hook(seen);
        if (seen->also_free)
                seen->also_free->call = grpc_call_free(seen->also_free->call);
        if (seen->consume)
                grpc_call_consume(call, message.size);
        if (seen->free_on_message) {
                seen->call = grpc_call_free(call);
                for (size_t i = 0; i < message.size; i++) /* still readable */
                        seen->bytes += message.data[i] == 0;
        }
        return 0;
}

static int seen_on_close(struct grpc_call *call, const struct grpc_result *result, void *userdata) {
        struct seen *seen = userdata;

        assert_ptr_equal(call, seen->call);
        seen->closed++;
        seen->status = result->status;
        seen->from_peer = result->from_peer;
        seen->has_pushback = result->has_pushback;
        seen->pushback_ms = result->pushback_ms;
        if (seen->also_free)
                seen->also_free->call = grpc_call_free(seen->also_free->call);
        if (seen->free_on_close)
                seen->call = grpc_call_free(call);
        base_text_copy(seen->message, sizeof(seen->message), result->message);
        return 0;
}

__attribute__((unused)) static const struct grpc_call_handlers seen_handlers = {seen_on_message, seen_on_close};

static int client_on_limit(void *userdata) {
        (void)userdata;
        return -ETIMEDOUT;
}

__attribute__((unused)) static int client_on_tick(void *userdata) {
        struct client *client = userdata;

        if (client->until(client->until_userdata))
                event_exit(client->event, 0);
        return event_timer_set(client->tick, event_now_usec(client->event) + 2 * USEC_PER_MSEC);
}

__attribute__((unused)) static struct client *client_new(const struct grpc_channel_options *options) {
        struct client *client = calloc(1, sizeof(*client));

        assert_int_equal(event_new(false, &client->event), 0);
        assert_int_equal(resolve_new(client->event, &client->resolve), 0);
        assert_int_equal(event_add_timer(client->event, "limit", client_on_limit, NULL, &client->limit), 0);
        assert_int_equal(event_add_timer(client->event, "tick", client_on_tick, client, &client->tick), 0);
        assert_int_equal(grpc_channel_new(client->event, client->resolve, options, &client->channel), 0);
        return client;
}

/* client_to() - a channel to the peer; `scheme` "http" or "https". */
__attribute__((unused)) static struct client *client_to(const struct peer *peer, const char *scheme) {
        char endpoint[64];

        snprintf(endpoint, sizeof(endpoint), "%s://127.0.0.1:%u", scheme, peer->port);
        return client_new(&(struct grpc_channel_options){.endpoint = endpoint,
                                                         .user_agent = "test/1",
                                                         .connect_timeout_usec = 10 * USEC_PER_SEC,
                                                         .stream_window = 65536});
}

__attribute__((unused)) static void client_free(struct client *client) {
        grpc_channel_free(client->channel);
        resolve_free(client->resolve);
        event_source_free(client->limit);
        event_source_free(client->tick);
        event_free(client->event);
        free(client);
}

/* client_run() - the loop, until `until` is true; fails the test after CLIENT_LIMIT_USEC. */
__attribute__((unused)) static void client_run(struct client *client, bool (*until)(void *), void *userdata) {
        uint64_t now = event_now_usec(client->event);

        client->until = until;
        client->until_userdata = userdata;
        assert_int_equal(event_timer_set(client->limit, now + CLIENT_LIMIT_USEC), 0);
        assert_int_equal(event_timer_set(client->tick, now), 0);
        assert_int_equal(event_run(client->event), 0);
        event_timer_set(client->limit, USEC_NEVER);
        event_timer_set(client->tick, USEC_NEVER);
}

__attribute__((unused)) static bool seen_is_closed(void *userdata) {
        const struct seen *seen = userdata;

        return seen->closed > 0;
}

__attribute__((unused)) static bool seen_has_message(void *userdata) {
        const struct seen *seen = userdata;

        return seen->messages > 0;
}

static struct grpc_call_options client_options(const char *path, bool streaming) {
        return (struct grpc_call_options){.path = path,
                                          .request = {(const uint8_t *)"ping", 4},
                                          .timeout_usec = USEC_NEVER,
                                          .response_max = 1024 * 1024,
                                          .streaming = streaming};
}

__attribute__((unused)) static void client_start_with(struct client *client, const struct grpc_call_options *options,
                                                      struct seen *seen) {
        seen->client = client;
        assert_int_equal(grpc_call_start(client->channel, options, &seen_handlers, seen, &seen->call), 0);
        assert_int_equal(seen->closed, 0);
}

__attribute__((unused)) static void client_start(struct client *client, const char *path, bool streaming,
                                                 struct seen *seen) {
        const struct grpc_call_options options = client_options(path, streaming);

        client_start_with(client, &options, seen);
}

__attribute__((unused)) static void client_finish(struct client *client, struct seen *seen) {
        client_run(client, seen_is_closed, seen);
        assert_int_equal(seen->closed, 1);
        seen->call = grpc_call_free(seen->call);
}

/* client_call() - one call from start to end. */
__attribute__((unused)) static struct seen client_call(struct client *client, const char *path, bool streaming) {
        struct seen seen = {0};

        client_start(client, path, streaming, &seen);
        client_finish(client, &seen);
        return seen;
}
