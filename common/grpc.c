/* SPDX-License-Identifier: Apache-2.0 */
/*
 * grpc: calls
 *
 * A call is a request on an HTTP/2 stream and what comes back on it: header fields, length-prefixed messages,
 * trailers. The notes below are called from inside nghttp2 and only write down; grpc_channel.c delivers.
 *
 * What a peer can do to us is bounded before it costs anything: a message's announced length is checked against
 * `response_max` and the buffer grows with the bytes, not with the announcement; of the header fields only the few
 * that we know are kept, cut to a length; h2 bounds the header blocks as a whole.
 *
 * The first verdict on a call stands. In order: what breaks the framing on the way; then the end of the stream:
 * grpc-status where there is one, else what the HTTP status says (doc/http-grpc-status-mapping.md), else that there
 * is none; then RST_STREAM's code, or the connection's death. Where gRPC's documents leave room (doc/statuscodes.md):
 * a status that can't be read or is missing from the trailers is UNKNOWN, an end without trailers INTERNAL, none or
 * two messages for a unary call UNIMPLEMENTED ("response cardinality violation").
 *
 * Flow control of `manual_window`: message bytes are charged from their arrival to grpc_call_consume(), the five
 * bytes of a prefix never (they carry no message, and nobody could give them back). A message that has begun is let
 * in to its end whatever is held, see h2_stream_grant(): so at most the window and one message wait here.
 */
#include "grpc_internal.h"
#include "event.h"

#include <nghttp2/nghttp2.h>

#define TOKEN_MAX (16 * 1024)
#define PATH_MAX_BYTES 1024
#define REQUEST_MAX (64 * 1024 * 1024)
#define INPUT_SLACK (256 * 1024) /* whole messages that one turn can bring beside an unfinished one */

/* ---- the end -------------------------------------------------------------------------------------- */

static void call_set_ready(struct grpc_call *call) {
        if (call->ready)
                return;
        call->ready = true;
        TAILQ_INSERT_TAIL(&call->channel->ready, call, ready_entry);
}

static bool call_is_over(const struct grpc_call *call) {
        return call->state == GRPC_CALL_ENDED || call->state == GRPC_CALL_CLOSED;
}

/* Takes the text over; a text that could not be made is an empty one. */
static void call_finish(struct grpc_call *call, enum grpc_status status, bool from_peer, char *text) {
        if (call_is_over(call)) {
                free(text);
                return;
        }
        if (call->state == GRPC_CALL_WAITING)
                TAILQ_REMOVE(&call->channel->waiting, call, waiting_entry);
        call->state = GRPC_CALL_ENDED;
        call->result_status = status;
        call->result_from_peer = from_peer;
        call->result_text = text;
        call->timer = event_source_free(call->timer);
        call_set_ready(call);
}

void grpc_call_end(struct grpc_call *call, enum grpc_status status, const char *format, ...) {
        va_list arguments;
        char *text = NULL;

        va_start(arguments, format);
        if (vasprintf(&text, format, arguments) < 0)
                text = NULL;
        va_end(arguments);
        call_finish(call, status, false, text);
}

void grpc_call_end_lost(struct grpc_call *call, const struct h2_connection *connection, const char *why) {
        const char *authority = call->channel->authority, *peer = connection ? h2_connection_peer(connection) : "";

        if (*peer && strcmp(peer, authority) != 0)
                grpc_call_end(call, GRPC_UNAVAILABLE, "%s at %s: %s", authority, peer, why);
        else
                grpc_call_end(call, GRPC_UNAVAILABLE, "%s: %s", authority, why);
}

static void call_finish_by_peer(struct grpc_call *call, enum grpc_status status) {
        const size_t size = GRPC_MESSAGE_MAX + 64;
        char *text = malloc(size);

        if (text) {
                const char *colon = call->message_size > 0 ? ": " : "";
                int used = 0;

                if (call->status > GRPC_UNAUTHENTICATED)
                        used = snprintf(text, size, "code %u%s", call->status, colon);
                base_text_escape(text + used, size - (size_t)used, call->message, call->message_size);
        }
        call_finish(call, status, true, text);
}

/* A peer's status OK is believed only if what came before it was whole. */
static void call_conclude_ok(struct grpc_call *call) {
        if (call->prefix_size > 0)
                grpc_call_end(call, GRPC_INTERNAL, "the last message is cut short");
        else if (!call->streaming && call->message_count == 0)
                grpc_call_end(call, GRPC_UNIMPLEMENTED, "status OK without a message");
        else
                call_finish_by_peer(call, GRPC_OK);
}

static void call_conclude_http(struct grpc_call *call) {
        if (call->http_status != 200)
                grpc_call_end(call, grpc_status_from_http(call->http_status), "HTTP status %u", call->http_status);
        else
                grpc_call_end(call, GRPC_UNKNOWN, "not a gRPC response: content-type %s",
                              *call->content_type ? call->content_type : "is missing");
}

/* call_conclude() - END_STREAM: what is the verdict? */
static void call_conclude(struct grpc_call *call) {
        if (call->has_status && call->status == UINT_MAX)
                grpc_call_end(call, GRPC_UNKNOWN, "grpc-status can't be read");
        else if (call->has_status && call->status > GRPC_UNAUTHENTICATED)
                call_finish_by_peer(call, GRPC_UNKNOWN);
        else if (call->has_status && call->status != GRPC_OK)
                call_finish_by_peer(call, (enum grpc_status)call->status);
        else if (call->has_status && call->is_grpc)
                call_conclude_ok(call);
        else if (call->http_status != 200 || !call->is_grpc)
                call_conclude_http(call);
        else if (call->trailers_seen)
                grpc_call_end(call, GRPC_UNKNOWN, "the trailers have no grpc-status");
        else
                grpc_call_end(call, GRPC_INTERNAL, "the stream ended without trailers");
}

/* ---- notes: header fields ------------------------------------------------------------------------- */

static bool name_is(struct span name, const char *text) {
        return name.size == strlen(text) && memcmp(name.data, text, name.size) == 0;
}

static void note_message(struct grpc_call *call, struct span value) {
        if (!call->message)
                call->message = malloc(GRPC_MESSAGE_MAX);
        call->message_size = call->message ? grpc_message_decode(value, call->message, GRPC_MESSAGE_MAX) : 0;
}

static void note_header(bool trailer, struct span name, struct span value, void *userdata) {
        struct grpc_call *call = userdata;

        if (call_is_over(call))
                return;
        if (!trailer && name_is(name, ":status"))
                call->http_status = grpc_status_parse(value);
        else if (!trailer && name_is(name, "content-type")) {
                base_text_escape(call->content_type, sizeof(call->content_type), value.data, value.size);
                call->is_grpc = grpc_content_type_is_grpc(call->content_type);
        } else if (name_is(name, "grpc-status")) {
                call->has_status = true;
                call->status = grpc_status_parse(value);
        } else if (name_is(name, "grpc-message"))
                note_message(call, value);
        else if (name_is(name, "grpc-retry-pushback-ms")) {
                call->has_pushback = true;
                call->pushback_ms = grpc_pushback_parse(value);
        }
}

/* Status fields count only in the block that ends the stream. */
static void call_forget_status(struct grpc_call *call) {
        call->has_status = false;
        call->has_pushback = false;
        call->message_size = 0;
}

static void note_block(bool trailer, bool last, void *userdata) {
        struct grpc_call *call = userdata;

        call->response_seen = true;
        call->trailers_seen |= trailer || last;
        if (call_is_over(call))
                return;
        if (last)
                call_conclude(call);
        else if (call->http_status != 200 || !call->is_grpc)
                call_conclude_http(call); /* its body may be long and is of no use */
        else
                call_forget_status(call);
}

/* ---- notes: messages ------------------------------------------------------------------------------ */

static void call_grant(struct grpc_call *call) {
        size_t needed = call->prefix_size == 0                 ? 0
                        : call->prefix_size < GRPC_PREFIX_SIZE ? GRPC_PREFIX_SIZE - call->prefix_size
                                                               : call->missing;

        h2_stream_grant(call->stream, call->manual_window ? call->charged : 0, needed);
}

static void input_append(struct grpc_call *call, const void *bytes, size_t size) {
        int r = buffer_append(&call->input, bytes, size);

        if (r < 0)
                grpc_call_end(call, GRPC_RESOURCE_EXHAUSTED, "no room for the message: %s", strerror(-r));
}

/* The prefix is whole. Everything is checked before the message costs a byte. */
static void message_begin(struct grpc_call *call) {
        uint32_t size = (uint32_t)call->prefix[1] << 24 | (uint32_t)call->prefix[2] << 16 |
                        (uint32_t)call->prefix[3] << 8 | call->prefix[4];

        if (!call->streaming && call->message_count > 0)
                grpc_call_end(call, GRPC_UNIMPLEMENTED, "more than one message in the answer to a unary call");
        else if (call->prefix[0] != 0)
                grpc_call_end(call, GRPC_INTERNAL, "a compressed message, and none was asked for");
        else if (size > call->response_max)
                grpc_call_end(call, GRPC_RESOURCE_EXHAUSTED, "a message of %" PRIu32 " bytes; the limit is %" PRIu32,
                              size, call->response_max);
        else {
                call->missing = size;
                input_append(call, &size, sizeof(size));
        }
}

static void message_end(struct grpc_call *call) {
        call->prefix_size = 0;
        call->complete = call->input.size;
        call->message_count++;
        if (call->streaming)
                call_set_ready(call);
}

static size_t take_prefix(struct grpc_call *call, struct span data) {
        size_t part = base_min_u64(data.size, GRPC_PREFIX_SIZE - call->prefix_size);

        memcpy(call->prefix + call->prefix_size, data.data, part);
        call->prefix_size += part;
        if (call->prefix_size == GRPC_PREFIX_SIZE)
                message_begin(call);
        return part;
}

static size_t take_message(struct grpc_call *call, struct span data) {
        size_t part = base_min_u64(data.size, call->missing);

        input_append(call, data.data, part);
        call->missing -= (uint32_t)part;
        call->charged += part;
        return part;
}

static void note_data(struct span data, void *userdata) {
        struct grpc_call *call = userdata;

        while (data.size > 0 && !call_is_over(call)) {
                size_t part = call->prefix_size < GRPC_PREFIX_SIZE ? take_prefix(call, data) : take_message(call, data);
                data.data += part;
                data.size -= part;
                if (!call_is_over(call) && call->prefix_size == GRPC_PREFIX_SIZE && call->missing == 0)
                        message_end(call);
        }
        if (!call_is_over(call))
                call_grant(call);
}

static void note_data_end(void *userdata) {
        call_conclude(userdata);
}

/* ---- notes: the stream's end ------------------------------------------------------------------------ */

void grpc_call_wait(struct grpc_call *call) {
        call->state = GRPC_CALL_WAITING;
        TAILQ_INSERT_TAIL(&call->channel->waiting, call, waiting_entry);
}

/* Transparent retry: the peer says that it has not acted on the call (RFC 9113 section 8.7). */
static void call_retry(struct grpc_call *call) {
        if (call->response_seen || call->attempts >= GRPC_ATTEMPTS_MAX)
                grpc_call_end_lost(call, NULL, "the peer refused the call");
        else
                grpc_call_wait(call);
}

static void call_end_reset(struct grpc_call *call, uint32_t error_code) {
        /* The peer cancels at our deadline, too, and its clock may be faster. */
        if (error_code == NGHTTP2_CANCEL && event_now_usec(call->channel->event) >= call->deadline_usec)
                grpc_call_end(call, GRPC_DEADLINE_EXCEEDED, "the peer cancelled the call at its deadline");
        else
                grpc_call_end(call, grpc_status_from_h2(error_code), "the peer reset the stream: %s",
                              nghttp2_http2_strerror(error_code));
}

static void note_close(enum h2_end end, uint32_t error_code, void *userdata) {
        struct grpc_call *call = userdata;

        if (call_is_over(call))
                return;
        switch (end) {
        case H2_END_STREAM:
                call_end_reset(call, error_code);
                break;
        case H2_END_UNSEEN:
                call_retry(call);
                break;
        case H2_END_CONNECTION:
                grpc_call_end_lost(call, call->connection, h2_connection_error(call->connection));
                break;
        case H2_END_LIMIT:
                grpc_call_end(call, GRPC_RESOURCE_EXHAUSTED, "header fields of more than %u bytes",
                              H2_HEADER_BYTES_MAX);
                break;
        }
}

static const struct h2_stream_handlers notes = {
        .on_header = note_header,
        .on_block = note_block,
        .on_data = note_data,
        .on_data_end = note_data_end,
        .on_close = note_close,
};

/* ---- the request ---------------------------------------------------------------------------------- */

int grpc_call_submit(struct grpc_call *call, struct h2_connection *connection) {
        const struct grpc_channel *channel = call->channel;
        const struct span body = {call->request.data, call->request.size};
        char timeout[GRPC_TIMEOUT_TEXT_MAX];
        struct h2_header headers[] = {
                {":method", "POST", false},
                {":scheme", channel->tls ? "https" : "http", false},
                {":path", call->path, false},
                {":authority", channel->authority, false},
                {"te", "trailers", false},
                {"content-type", "application/grpc", false},
                {"grpc-accept-encoding", "identity", false},
                {"user-agent", channel->user_agent, false},
                {NULL, NULL, false},
                {NULL, NULL, false},
        };
        size_t count = ARRAY_SIZE(headers) - 2;

        if (call->deadline_usec != USEC_NEVER) {
                grpc_timeout_format(base_usec_sub(call->deadline_usec, event_now_usec(channel->event)), timeout);
                headers[count++] = (struct h2_header){"grpc-timeout", timeout, false};
        }
        if (call->authorization)
                headers[count++] = (struct h2_header){"authorization", call->authorization, true};
        grpc_call_release_stream(call);
        int r = h2_stream_start(connection, headers, count, body, &notes, call, &call->stream);
        if (r < 0)
                return r;
        TAILQ_REMOVE(&call->channel->waiting, call, waiting_entry);
        call->state = GRPC_CALL_OPEN;
        call->connection = connection;
        call->attempts++;
        return 0;
}

void grpc_call_release_stream(struct grpc_call *call) {
        call->stream = h2_stream_free(call->stream);
        call->connection = NULL;
}

static int on_deadline(void *userdata) {
        struct grpc_call *call = userdata;
        struct grpc_channel *channel = call->channel;

        grpc_call_end(call, GRPC_DEADLINE_EXCEEDED, "%s: no answer within %" PRIu64 " ms%s", channel->authority,
                      call->timeout_usec / USEC_PER_MSEC,
                      call->state == GRPC_CALL_WAITING ? " (waiting for a connection)" : "");
        return grpc_channel_turn(channel);
}

static bool text_is_visible(const char *text, size_t max) {
        size_t size = strnlen(text, max + 1);

        if (size == 0 || size > max)
                return false;
        for (size_t i = 0; i < size; i++)
                if (text[i] <= 0x20 || text[i] > 0x7e)
                        return false;
        return true;
}

static int call_frame_request(struct grpc_call *call, struct span request) {
        const uint8_t prefix[GRPC_PREFIX_SIZE] = {0, (uint8_t)(request.size >> 24), (uint8_t)(request.size >> 16),
                                                  (uint8_t)(request.size >> 8), (uint8_t)request.size};

        call->request = BUFFER_INIT(sizeof(prefix) + request.size);
        int r = buffer_append(&call->request, prefix, sizeof(prefix));
        return r < 0 || request.size == 0 ? r : buffer_append(&call->request, request.data, request.size);
}

static int call_set_deadline(struct grpc_call *call, uint64_t timeout_usec) {
        struct event *event = call->channel->event;

        call->timeout_usec = timeout_usec;
        call->deadline_usec = base_usec_add(event_now_usec(event), timeout_usec);
        if (call->deadline_usec == USEC_NEVER)
                return 0;
        int r = event_add_timer(event, "grpc-deadline", on_deadline, call, &call->timer);
        return r < 0 ? r : event_timer_set(call->timer, call->deadline_usec);
}

static int call_fill(struct grpc_call *call, const struct grpc_call_options *options) {
        call->streaming = options->streaming;
        call->manual_window = options->streaming && options->manual_window;
        call->response_max = options->response_max;
        call->input = BUFFER_INIT((size_t)options->response_max + INPUT_SLACK);
        call->path = strdup(options->path);
        if (!call->path)
                return -ENOMEM;
        if (options->bearer_token && asprintf(&call->authorization, "Bearer %s", options->bearer_token) < 0) {
                call->authorization = NULL;
                return -ENOMEM;
        }
        int r = call_frame_request(call, options->request);
        return r < 0 ? r : call_set_deadline(call, options->timeout_usec);
}

int grpc_call_start(struct grpc_channel *channel, const struct grpc_call_options *options,
                    const struct grpc_call_handlers *handlers, void *userdata, struct grpc_call **ret) {
        if (options->path[0] != '/' || !text_is_visible(options->path, PATH_MAX_BYTES) ||
            options->request.size > REQUEST_MAX ||
            (options->bearer_token && !text_is_visible(options->bearer_token, TOKEN_MAX)))
                return -EINVAL;
        _cleanup_(grpc_call_free_pointer) struct grpc_call *call = calloc(1, sizeof(*call));
        if (!call)
                return -ENOMEM;
        call->channel = channel;
        call->handlers = *handlers;
        call->userdata = userdata;
        channel->call_count++;
        grpc_call_wait(call);
        int r = call_fill(call, options);
        if (r < 0)
                return r;
        r = grpc_channel_wake(channel);
        if (r < 0)
                return r;
        *ret = TAKE(call);
        return 0;
}

struct grpc_call *grpc_call_free(struct grpc_call *call) {
        if (!call)
                return NULL;
        struct grpc_channel *channel = call->channel;
        grpc_call_release_stream(call);
        if (call->state == GRPC_CALL_WAITING)
                TAILQ_REMOVE(&channel->waiting, call, waiting_entry);
        if (call->ready)
                TAILQ_REMOVE(&channel->ready, call, ready_entry);
        if (channel->delivering == call)
                channel->delivering = NULL;
        channel->call_count--;
        event_source_free(call->timer);
        if (call->authorization)
                explicit_bzero(call->authorization, strlen(call->authorization));
        free(call->authorization);
        free(call->path);
        free(call->message);
        free(call->result_text);
        buffer_deinit(&call->request);
        buffer_deinit(&call->input);
        free(call);
        return NULL;
}

void grpc_call_consume(struct grpc_call *call, size_t size) {
        call->charged -= base_min_u64(size, call->charged);
        if (call->state == GRPC_CALL_OPEN && call->manual_window)
                call_grant(call);
}
