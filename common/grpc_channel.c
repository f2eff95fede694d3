/* SPDX-License-Identifier: Apache-2.0 */
/*
 * grpc_channel: the connections behind calls, and the delivery of what came
 *
 * A channel has at most one connection for new calls, and those that a GOAWAY has closed to new ones, each until
 * its last stream ends. It connects when a call wants it to, and never by itself: when to try again is known best
 * by who calls.
 *
 * All callbacks to owners come from grpc_channel_turn(), which is the last act of every handler of the loop that
 * leads here. h2's notes only fill the calls' buffers and the list of ready calls; so nghttp2 is never on the stack
 * when an owner frees calls, starts calls, drops the connection or frees the channel.
 *
 * Calls that wait when a connection attempt fails all end with its error. Calls that wait when a connection begins
 * to drain go to the next one, but not for ever: a peer that answers each connection with GOAWAY would keep us
 * connecting in a circle.
 */
#include "grpc_internal.h"
#include "event.h"
#include "resolve.h"
#include "tls.h"

/* ---- connections ---------------------------------------------------------------------------------- */

static int on_connection_turn(struct h2_connection *connection, void *userdata) {
        (void)connection;
        return grpc_channel_turn(userdata);
}

static struct grpc_link *link_free(struct grpc_link *link) {
        if (!link)
                return NULL;
        h2_connection_free(link->h2);
        free(link);
        return NULL;
}

static int channel_connect(struct grpc_channel *channel) {
        const struct h2_options options = {
                .host = channel->host,
                .port = channel->port,
                .tls = channel->tls,
                .connect_timeout_usec = channel->connect_timeout_usec,
                .stream_window = channel->stream_window,
                .rotation = channel->rotation,
        };
        struct grpc_link *link = calloc(1, sizeof(*link));
        if (!link)
                return -ENOMEM;
        int r = h2_connection_new(channel->event, channel->resolve, &options, on_connection_turn, channel, &link->h2);
        if (r < 0) {
                link_free(link);
                return r;
        }
        channel->current = link;
        return 0;
}

static void end_waiting(struct grpc_channel *channel, const struct h2_connection *h2, const char *why) {
        struct grpc_call *call;

        while ((call = TAILQ_FIRST(&channel->waiting)))
                grpc_call_end_lost(call, h2, why);
}

/* move_waiting() - the connection takes no calls any more: those that wait go to the next one. */
static void move_waiting(struct grpc_channel *channel, const struct h2_connection *h2, const char *why) {
        struct grpc_call *call, *next;

        for (call = TAILQ_FIRST(&channel->waiting); call; call = next) {
                next = TAILQ_NEXT(call, waiting_entry);
                if (++call->moves >= GRPC_MOVES_MAX)
                        grpc_call_end_lost(call, h2, why);
        }
}

/* A peer that takes TCP and nothing else must not lock us out while others would serve: next time another first. */
static void sweep_closed(struct grpc_channel *channel) {
        struct h2_connection *h2 = channel->current->h2;

        if (h2_connection_was_ready(h2))
                move_waiting(channel, h2, h2_connection_error(h2));
        else {
                channel->rotation += *h2_connection_peer(h2) != '\0';
                end_waiting(channel, h2, h2_connection_error(h2));
        }
        channel->current = link_free(channel->current);
}

static void sweep_current(struct grpc_channel *channel) {
        switch (h2_connection_state(channel->current->h2)) {
        case H2_CONNECTING:
        case H2_READY:
                break;
        case H2_DRAINING:
                move_waiting(channel, channel->current->h2, "the peer closes its connections to new calls");
                TAILQ_INSERT_TAIL(&channel->draining, channel->current, entry);
                channel->current = NULL;
                break;
        case H2_CLOSED:
                sweep_closed(channel);
                break;
        }
}

static void sweep_draining(struct grpc_channel *channel) {
        struct grpc_link *link, *next;

        for (link = TAILQ_FIRST(&channel->draining); link; link = next) {
                next = TAILQ_NEXT(link, entry);
                if (h2_connection_state(link->h2) == H2_DRAINING && h2_connection_streams(link->h2) > 0)
                        continue;
                TAILQ_REMOVE(&channel->draining, link, entry);
                link_free(link);
        }
}

/* start_first() - the first call that waits; false: it has to go on waiting. */
static bool start_first(struct grpc_channel *channel, struct grpc_call *call) {
        int r = channel->current ? 0 : channel_connect(channel);

        if (r == 0 && !h2_connection_has_room(channel->current->h2))
                return false;
        if (r == 0)
                r = grpc_call_submit(call, channel->current->h2);
        if (r == -EAGAIN) { /* it has begun to drain under our hands */
                (void)grpc_channel_wake(channel);
                return false;
        }
        if (r < 0)
                grpc_call_end(call, r == -ENOMEM ? GRPC_RESOURCE_EXHAUSTED : GRPC_INTERNAL, "starting the call: %s",
                              strerror(-r));
        return true;
}

static void start_waiting(struct grpc_channel *channel) {
        struct grpc_call *call;

        while ((call = TAILQ_FIRST(&channel->waiting)))
                if (!start_first(channel, call))
                        return;
}

/* ---- delivery ------------------------------------------------------------------------------------- */

static int close_call(struct grpc_call *call) {
        const struct grpc_result result = {
                .status = call->result_status,
                .message = call->result_text ? call->result_text : "",
                .from_peer = call->result_from_peer,
                .has_pushback = call->has_pushback,
                .pushback_ms = call->pushback_ms,
        };
        char *text = TAKE(call->result_text); /* the owner may free the call and still read the result */

        call->state = GRPC_CALL_CLOSED;
        int r = call->handlers.on_close(call, &result, call->userdata);
        free(text);
        return r;
}

/* deliver_messages() - the whole messages in `input`; stops when the call is freed within a callback. */
static int deliver_messages(struct grpc_call *call, const struct buffer *input, size_t complete) {
        struct grpc_channel *channel = call->channel;
        size_t position = 0;
        int r = 0;

        while (r >= 0 && position < complete) {
                uint32_t size;
                memcpy(&size, input->data + position, sizeof(size));
                position += sizeof(size);
                struct span message = {input->data + position, size};
                position += size;
                r = call->handlers.on_message(call, message, call->userdata);
                if (channel->delivering != call)
                        return r;
        }
        return r;
}

/* The buffer is taken out of the call for the time of its callbacks: the bytes stay good when the call is freed
 * there. A unary call's message is its owner's only with an OK status. */
static int deliver_input(struct grpc_call *call) {
        struct grpc_channel *channel = call->channel;
        struct buffer input = call->input;
        size_t complete = call->complete;
        int r = 0;

        if (complete == 0 || (!call->streaming && (call->state != GRPC_CALL_ENDED || call->result_status != GRPC_OK)))
                return 0;
        call->input = BUFFER_INIT(input.max);
        call->complete = 0;
        r = deliver_messages(call, &input, complete);
        if (channel->delivering == call) {
                buffer_consume(&input, complete);
                call->input = input;
                if (input.size > 0)
                        return r;
                call->input = BUFFER_INIT(input.max);
        }
        buffer_deinit(&input);
        return r;
}

static int deliver_call(struct grpc_channel *channel, struct grpc_call *call) {
        TAILQ_REMOVE(&channel->ready, call, ready_entry);
        call->ready = false;
        if (call->state == GRPC_CALL_ENDED)
                grpc_call_release_stream(call);
        channel->delivering = call;
        int r = deliver_input(call);
        if (r >= 0 && channel->delivering == call && call->state == GRPC_CALL_ENDED)
                r = close_call(call);
        channel->delivering = NULL;
        return r;
}

static struct grpc_channel *channel_destroy(struct grpc_channel *channel) {
        struct grpc_link *link;

        link_free(channel->current);
        while ((link = TAILQ_FIRST(&channel->draining))) {
                TAILQ_REMOVE(&channel->draining, link, entry);
                link_free(link);
        }
        tls_client_free(channel->tls);
        event_source_free(channel->deferred);
        free(channel->host);
        free(channel->authority);
        free(channel->user_agent);
        free(channel);
        return NULL;
}

int grpc_channel_turn(struct grpc_channel *channel) {
        struct grpc_call *call;
        int r = 0;

        channel->in_turn = true;
        if (channel->current)
                sweep_current(channel);
        start_waiting(channel);
        while (r >= 0 && (call = TAILQ_FIRST(&channel->ready)))
                r = deliver_call(channel, call);
        sweep_draining(channel);
        channel->in_turn = false;
        if (channel->dead)
                channel_destroy(channel);
        return r;
}

int grpc_channel_wake(struct grpc_channel *channel) {
        return event_deferred_schedule(channel->deferred);
}

static int on_deferred(void *userdata) {
        return grpc_channel_turn(userdata);
}

/* ---- the channel ---------------------------------------------------------------------------------- */

static bool header_text_is_valid(const char *text) {
        for (; *text; text++)
                if (*text < 0x20 || *text > 0x7e)
                        return false;
        return true;
}

static int channel_make_tls(struct grpc_channel *channel, const struct grpc_channel_options *options) {
        const struct tls_options tls = {
                .ca_file = options->ca_file,
                .certificate_file = options->certificate_file,
                .private_key_file = options->private_key_file,
                .server_name = options->server_name ? options->server_name : channel->host,
        };

        return tls_client_new(&tls, &channel->tls);
}

static int channel_fill(struct grpc_channel *channel, const struct grpc_channel_options *options) {
        struct grpc_endpoint endpoint;

        int r = grpc_endpoint_parse(options->endpoint, &endpoint);
        if (r < 0)
                return r;
        channel->port = endpoint.port;
        channel->connect_timeout_usec = options->connect_timeout_usec;
        channel->stream_window = options->stream_window;
        channel->host = strdup(endpoint.host);
        /* As gRPC's target name override: who sets the name that is checked means that host. */
        channel->authority = strdup(endpoint.tls && options->server_name ? options->server_name : endpoint.authority);
        channel->user_agent = strdup(options->user_agent ? options->user_agent : "grpc-c");
        if (!channel->host || !channel->authority || !channel->user_agent)
                return -ENOMEM;
        return endpoint.tls ? channel_make_tls(channel, options) : 0;
}

int grpc_channel_new(struct event *event, struct resolve *resolve, const struct grpc_channel_options *options,
                     struct grpc_channel **ret) {
        if (options->stream_window < H2_WINDOW_MIN || options->stream_window > H2_WINDOW_MAX)
                return -EINVAL;
        if ((options->user_agent && !header_text_is_valid(options->user_agent)) ||
            (options->server_name && !header_text_is_valid(options->server_name)))
                return -EINVAL;
        _cleanup_(grpc_channel_free_pointer) struct grpc_channel *channel = calloc(1, sizeof(*channel));
        if (!channel)
                return -ENOMEM;
        channel->event = event;
        channel->resolve = resolve;
        TAILQ_INIT(&channel->draining);
        TAILQ_INIT(&channel->waiting);
        TAILQ_INIT(&channel->ready);
        int r = channel_fill(channel, options);
        if (r < 0)
                return r;
        r = event_add_deferred(event, "grpc", on_deferred, channel, &channel->deferred);
        if (r < 0)
                return r;
        *ret = TAKE(channel);
        return 0;
}

struct grpc_channel *grpc_channel_free(struct grpc_channel *channel) {
        if (!channel)
                return NULL;
        if (channel->call_count > 0)
                abort(); /* a call without its channel would be a use after free later on */
        if (channel->in_turn) {
                channel->dead = true;
                return NULL;
        }
        return channel_destroy(channel);
}

void grpc_channel_set_connect_timeout(struct grpc_channel *channel, uint64_t connect_timeout_usec) {
        channel->connect_timeout_usec = connect_timeout_usec;
}

void grpc_channel_drop(struct grpc_channel *channel) {
        struct grpc_link *link;

        if (channel->tls)
                tls_client_forget_session(channel->tls);
        end_waiting(channel, NULL, "connection dropped");
        while ((link = TAILQ_FIRST(&channel->draining))) {
                TAILQ_REMOVE(&channel->draining, link, entry);
                h2_connection_close(link->h2, "connection dropped");
                link_free(link);
        }
        if (channel->current) {
                h2_connection_close(channel->current->h2, "connection dropped");
                channel->current = link_free(channel->current);
        }
        (void)grpc_channel_wake(channel);
}

const char *grpc_channel_peer(const struct grpc_channel *channel) {
        return channel->current ? h2_connection_peer(channel->current->h2) : "";
}
