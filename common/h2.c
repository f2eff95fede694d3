/* SPDX-License-Identifier: Apache-2.0 */
/*
 * h2: one HTTP/2 client connection on the loop
 *
 * A connection goes one way: dial, TLS, SETTINGS, open, closed. Each wake-up of the loop (socket, timer, deferred
 * source) does a bounded amount of reading and all the writing the socket takes, and ends with on_turn as its very
 * last act, so that the owner may do anything there. connection_fail() is the one way to CLOSED and is never
 * called from inside nghttp2.
 *
 * Memory: reads go through a buffer on the stack; what is to be written is gathered to about 16 KiB so that a
 * request is one TLS record and one system call, and nghttp2 is asked for more only when the socket has taken it.
 * Answers that a peer can make us owe (PING and SETTINGS acks) are limited by nghttp2.
 *
 * Flow control: the connection's window is given back at once, so a stream that holds its bytes never blocks its
 * neighbours. A stream's window is ours alone: nghttp2_session_consume_stream() is not used, because it announces
 * only at half the window and knows nothing of messages; see h2_stream_grant().
 *
 * Traps:
 * - nghttp2 reports a peer's violation by queueing GOAWAY, not by an error: want_read and want_write say when it
 *   is over.
 * - A stream's memory belongs to the connection until nghttp2 has closed it, since nghttp2 keeps our pointer; a
 *   stream freed by its owner lives on, silent, until then.
 * - No RST_STREAM after a stream that has ended: servers count them as an attack (rapid reset).
 * - Decrypted bytes inside OpenSSL wake nobody up.
 */
#include "h2_internal.h"
#include "event.h"
#include "resolve.h"
#include "tls.h"

#include <nghttp2/nghttp2.h>
#include <sys/epoll.h>
#include <sys/queue.h>

#define READ_SIZE 16384 /* the largest TLS record, so that none is left inside OpenSSL */
#define READS_PER_TURN 4
#define OUTPUT_FILL 16384
#define OUTPUT_MAX (2 * OUTPUT_FILL + 1024) /* a frame more: 16 KiB and its header */
#define CONNECTION_WINDOW_MIN (1024 * 1024)
#define ACKS_MAX 1000
#define HEADERS_MAX 16
#define TEXT_MAX 256

enum stage { STAGE_DIAL, STAGE_TLS, STAGE_SETTINGS, STAGE_OPEN };

enum block { BLOCK_NONE, BLOCK_INFORMATIONAL, BLOCK_RESPONSE, BLOCK_TRAILER };

struct h2_stream {
        struct h2_connection *connection; /* NULL: that is gone */
        TAILQ_ENTRY(h2_stream) entry;
        int32_t id;
        struct span body;
        size_t body_done;
        const struct h2_stream_handlers *handlers;
        void *userdata;
        enum block block;
        bool response_seen, sent, peer_ended, closed, over_limit;
        bool deaf;      /* no note any more */
        bool abandoned; /* freed by its owner: goes when nghttp2 has closed it */
        size_t header_bytes;
};

struct h2_connection {
        struct event *event;
        enum h2_state state;
        enum stage stage;
        char host[256];
        uint16_t port;
        uint64_t connect_timeout_usec;
        uint32_t stream_window;
        struct tls_client *tls_client;

        struct h2_dial *dial;
        int fd;
        struct event_source *io, *timer, *work;
        struct tls_stream *tls;
        nghttp2_session *session;
        struct buffer output;
        size_t output_done;
        uint32_t interest;
        bool wants_write; /* the socket (or TLS) has to become writable first */
        bool input_seen;
        bool settings_acked; /* our window counts only from then on */
        bool broken;         /* no memory for a frame that must go out */
        bool pumping;        /* what is submitted goes out at the end of this turn anyway */

        TAILQ_HEAD(, h2_stream) streams;
        size_t open_streams;

        char peer[H2_ADDRESS_TEXT_MAX];
        char protocol_error[TEXT_MAX], goaway[TEXT_MAX];
        char error[TLS_ERROR_MAX + 64];
        h2_turn_handler on_turn;
        void *userdata;
};

/* ---- the end -------------------------------------------------------------------------------------- */

static void stream_end(struct h2_stream *stream, enum h2_end end, uint32_t error_code) {
        stream->closed = true;
        stream->connection->open_streams--;
        if (!stream->deaf)
                stream->handlers->on_close(end, error_code, stream->userdata);
        if (stream->abandoned) {
                TAILQ_REMOVE(&stream->connection->streams, stream, entry);
                free(stream);
        }
}

static void connection_release(struct h2_connection *connection) {
        connection->dial = h2_dial_free(connection->dial);
        connection->io = event_source_free(connection->io);
        connection->timer = event_source_free(connection->timer);
        connection->work = event_source_free(connection->work);
        connection->tls = tls_stream_free(connection->tls);
        base_close_pointer(&connection->fd);
        nghttp2_session_del(connection->session);
        connection->session = NULL;
        buffer_deinit(&connection->output);
        connection->output_done = 0;
}

__attribute__((format(printf, 2, 3))) static void connection_fail(struct h2_connection *connection, const char *format,
                                                                  ...) {
        struct h2_stream *stream, *next;
        va_list arguments;

        if (connection->state == H2_CLOSED)
                return;
        va_start(arguments, format);
        vsnprintf(connection->error, sizeof(connection->error), format, arguments);
        va_end(arguments);
        connection->state = H2_CLOSED;
        for (stream = TAILQ_FIRST(&connection->streams); stream; stream = next) {
                next = TAILQ_NEXT(stream, entry);
                if (!stream->closed)
                        stream_end(stream, H2_END_CONNECTION, 0);
        }
        connection_release(connection);
}

static const char *connection_stage(const struct h2_connection *connection) {
        switch (connection->stage) {
        case STAGE_DIAL:
                return connection->dial ? h2_dial_stage(connection->dial) : "connecting";
        case STAGE_TLS:
                return "TLS handshake";
        case STAGE_SETTINGS:
                return "waiting for SETTINGS";
        case STAGE_OPEN:
                return "open";
        }
        return "";
}

/* ---- the transport: TCP or TLS, with tls.h's answers ------------------------------------------------ */

static int transport_read(struct h2_connection *connection, void *bytes, size_t size, size_t *ret) {
        if (connection->tls)
                return tls_stream_read(connection->tls, bytes, size, ret);
        ssize_t n = recv(connection->fd, bytes, size, 0);
        if (n < 0)
                return errno == EAGAIN || errno == EINTR ? TLS_WANT_READ : -errno;
        if (n == 0)
                return TLS_CLOSED;
        *ret = (size_t)n;
        return 0;
}

static int transport_write(struct h2_connection *connection, const void *bytes, size_t size, size_t *ret) {
        if (connection->tls)
                return tls_stream_write(connection->tls, bytes, size, ret);
        ssize_t n = send(connection->fd, bytes, size, MSG_NOSIGNAL);
        if (n < 0)
                return errno == EAGAIN || errno == EINTR ? TLS_WANT_WRITE : -errno;
        *ret = (size_t)n;
        return 0;
}

static void connection_fail_transport(struct h2_connection *connection, int result) {
        const char *what = result == TLS_CLOSED ? "connection closed by the peer" : strerror(-result);

        if (connection->tls && result != TLS_CLOSED && *tls_stream_error(connection->tls))
                connection_fail(connection, "%s", tls_stream_error(connection->tls));
        else if (connection->state == H2_CONNECTING)
                connection_fail(connection, "%s (%s%s)", what, connection_stage(connection),
                                connection->tls && tls_stream_lacks_certificate(connection->tls)
                                        ? "; it asked for a client certificate, and none is configured"
                                        : "");
        else
                connection_fail(connection, "%s%s%s", what, *connection->goaway ? " after " : "", connection->goaway);
}

/* ---- notes from nghttp2. Nothing here may enter nghttp2's mem_recv or mem_send. ---------------------- */

static struct h2_stream *session_stream(nghttp2_session *session, int32_t id) {
        struct h2_stream *stream = nghttp2_session_get_stream_user_data(session, id);

        return stream && !stream->deaf ? stream : NULL;
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *userdata) {
        struct h2_stream *stream = session_stream(session, frame->hd.stream_id);

        (void)userdata;
        if (stream)
                stream->block = BLOCK_NONE;
        return 0;
}

/* A response's block begins with :status (RFC 9113 section 8.3); 1xx is informational; a block without is trailers. */
static enum block block_classify(struct span name, struct span value) {
        if (name.size != strlen(":status") || memcmp(name.data, ":status", name.size) != 0)
                return BLOCK_TRAILER;
        return value.size > 0 && value.data[0] == '1' ? BLOCK_INFORMATIONAL : BLOCK_RESPONSE;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_size,
                     const uint8_t *value, size_t value_size, uint8_t flags, void *userdata) {
        struct h2_stream *stream = session_stream(session, frame->hd.stream_id);
        struct span name_span = {name, name_size}, value_span = {value, value_size};

        (void)flags;
        (void)userdata;
        if (!stream)
                return 0;
        stream->header_bytes += name_size + value_size + 32;
        if (stream->header_bytes > H2_HEADER_BYTES_MAX) {
                stream->over_limit = true;
                return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE; /* nghttp2 resets the stream */
        }
        if (stream->block == BLOCK_NONE)
                stream->block = block_classify(name_span, value_span);
        if (stream->block != BLOCK_INFORMATIONAL)
                stream->handlers->on_header(stream->block == BLOCK_TRAILER, name_span, value_span, stream->userdata);
        return 0;
}

static void note_block(struct h2_stream *stream, bool last) {
        if (stream->block == BLOCK_INFORMATIONAL)
                return;
        bool trailer = stream->block == BLOCK_TRAILER || stream->response_seen;
        stream->response_seen = true;
        stream->peer_ended = last;
        stream->handlers->on_block(trailer, last, stream->userdata);
}

static void note_goaway(struct h2_connection *connection, const nghttp2_goaway *goaway) {
        char detail[128];

        base_text_escape(detail, sizeof(detail), goaway->opaque_data, goaway->opaque_data_len);
        snprintf(connection->goaway, sizeof(connection->goaway), "GOAWAY (%s)%s%s",
                 nghttp2_http2_strerror(goaway->error_code), *detail ? ": " : "", detail);
        if (connection->state == H2_READY || connection->state == H2_CONNECTING)
                connection->state = H2_DRAINING;
}

static void note_settings(struct h2_connection *connection, bool ack) {
        if (ack) {
                connection->settings_acked = true;
                return;
        }
        if (connection->stage == STAGE_OPEN)
                return;
        connection->stage = STAGE_OPEN;
        if (connection->state == H2_CONNECTING)
                connection->state = H2_READY;
}

static int on_frame_recv(nghttp2_session *session, const nghttp2_frame *frame, void *userdata) {
        struct h2_connection *connection = userdata;
        struct h2_stream *stream = session_stream(session, frame->hd.stream_id);
        bool last = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;

        switch (frame->hd.type) {
        case NGHTTP2_SETTINGS:
                note_settings(connection, frame->hd.flags & NGHTTP2_FLAG_ACK);
                break;
        case NGHTTP2_GOAWAY:
                note_goaway(connection, &frame->goaway);
                break;
        case NGHTTP2_HEADERS:
                if (stream)
                        note_block(stream, last);
                break;
        case NGHTTP2_DATA:
                if (stream && last) {
                        stream->peer_ended = true;
                        stream->handlers->on_data_end(stream->userdata);
                }
                break;
        default: /* the rest is nghttp2's business */
                break;
        }
        return 0;
}

static int on_data_chunk(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *bytes, size_t size,
                         void *userdata) {
        struct h2_stream *stream = session_stream(session, id);

        (void)flags;
        (void)userdata;
        if (nghttp2_session_consume_connection(session, size) < 0)
                return NGHTTP2_ERR_CALLBACK_FAILURE;
        if (stream)
                stream->handlers->on_data((struct span){bytes, size}, stream->userdata);
        return 0;
}

static void note_protocol_error(struct h2_connection *connection, const char *text) {
        if (!*connection->protocol_error)
                base_text_copy(connection->protocol_error, sizeof(connection->protocol_error), text);
}

static int on_invalid_frame(nghttp2_session *session, const nghttp2_frame *frame, int code, void *userdata) {
        (void)session;
        (void)frame;
        note_protocol_error(userdata, nghttp2_strerror(code));
        return 0;
}

static int on_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *userdata) {
        if (frame->hd.type == NGHTTP2_GOAWAY)
                note_protocol_error(userdata, nghttp2_http2_strerror(frame->goaway.error_code));
        if (frame->hd.type == NGHTTP2_HEADERS) {
                struct h2_stream *stream = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
                if (stream)
                        stream->sent = true;
        }
        return 0;
}

static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t error_code, void *userdata) {
        struct h2_stream *stream = nghttp2_session_get_stream_user_data(session, id);

        (void)userdata;
        if (!stream || stream->closed)
                return 0;
        if (stream->over_limit)
                stream_end(stream, H2_END_LIMIT, error_code);
        else if (error_code == NGHTTP2_REFUSED_STREAM || !stream->sent)
                stream_end(stream, H2_END_UNSEEN, error_code);
        else
                stream_end(stream, H2_END_STREAM, error_code);
        return 0;
}

/* Its text quotes the peer's bytes. */
static int on_error(nghttp2_session *session, int code, const char *text, size_t size, void *userdata) {
        struct h2_connection *connection = userdata;

        (void)session;
        (void)code;
        base_text_escape(connection->protocol_error, sizeof(connection->protocol_error), text, size);
        return 0;
}

static ssize_t on_body_read(nghttp2_session *session, int32_t id, uint8_t *bytes, size_t size, uint32_t *flags,
                            nghttp2_data_source *source, void *userdata) {
        struct h2_stream *stream = source->ptr;

        (void)session;
        (void)id;
        (void)userdata;
        if (stream->abandoned) /* the body went with its owner; RST_STREAM is on its way */
                return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
        size_t part = base_min_u64(size, stream->body.size - stream->body_done);
        if (part > 0)
                memcpy(bytes, stream->body.data + stream->body_done, part);
        stream->body_done += part;
        if (stream->body_done == stream->body.size)
                *flags |= NGHTTP2_DATA_FLAG_EOF;
        return (ssize_t)part;
}

/* ---- the session ---------------------------------------------------------------------------------- */

static void callbacks_free(nghttp2_session_callbacks **callbacks) {
        nghttp2_session_callbacks_del(*callbacks);
}

static void option_free(nghttp2_option **option) {
        nghttp2_option_del(*option);
}

static int session_make(struct h2_connection *connection) {
        _cleanup_(callbacks_free) nghttp2_session_callbacks *callbacks = NULL;
        _cleanup_(option_free) nghttp2_option *option = NULL;

        if (nghttp2_session_callbacks_new(&callbacks) < 0 || nghttp2_option_new(&option) < 0)
                return -ENOMEM;
        nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
        nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
        nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame_recv);
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data_chunk);
        nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_frame_send);
        nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(callbacks, on_invalid_frame);
        nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
        nghttp2_session_callbacks_set_error_callback2(callbacks, on_error);
        nghttp2_option_set_no_auto_window_update(option, 1);
        nghttp2_option_set_max_outbound_ack(option, ACKS_MAX);
        return nghttp2_session_client_new2(&connection->session, callbacks, connection, option) < 0 ? -ENOMEM : 0;
}

static int session_start(struct h2_connection *connection) {
        const nghttp2_settings_entry settings[] = {
                {NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
                {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, connection->stream_window},
                {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, H2_HEADER_BYTES_MAX},
        };
        uint64_t window = base_max_u64(connection->stream_window, CONNECTION_WINDOW_MIN);

        connection->stage = STAGE_SETTINGS;
        int r = session_make(connection);
        if (r < 0)
                return r;
        if (nghttp2_submit_settings(connection->session, NGHTTP2_FLAG_NONE, settings, ARRAY_SIZE(settings)) < 0 ||
            nghttp2_session_set_local_window_size(connection->session, NGHTTP2_FLAG_NONE, 0, (int32_t)window) < 0)
                return -ENOMEM;
        return 0;
}

/* A server that speaks HTTP/1.1 only answers our preface with an error in its own tongue. */
static bool is_http1(const uint8_t *bytes, size_t size) {
        return size >= 7 && memcmp(bytes, "HTTP/1.", 7) == 0;
}

static bool session_receive(struct h2_connection *connection, const uint8_t *bytes, size_t size) {
        if (!connection->input_seen && is_http1(bytes, size)) {
                connection_fail(connection, "the peer speaks HTTP/1.1, not HTTP/2");
                return false;
        }
        connection->input_seen = true;
        ssize_t n = nghttp2_session_mem_recv(connection->session, bytes, size);
        if (n < 0) {
                connection_fail(connection, "HTTP/2: %s", nghttp2_strerror((int)n));
                return false;
        }
        return true;
}

static bool connection_read(struct h2_connection *connection) {
        uint8_t bytes[READ_SIZE];

        for (unsigned i = 0; i < READS_PER_TURN; i++) {
                size_t size = 0;
                int r = transport_read(connection, bytes, sizeof(bytes), &size);
                if (r == TLS_WANT_READ)
                        return true;
                if (r == TLS_WANT_WRITE) {
                        connection->wants_write = true;
                        return true;
                }
                if (r != 0) {
                        connection_fail_transport(connection, r);
                        return false;
                }
                if (!session_receive(connection, bytes, size))
                        return false;
                if (!connection->tls && size < sizeof(bytes))
                        return true;
        }
        if (connection->tls && tls_stream_has_pending(connection->tls))
                (void)event_deferred_schedule(connection->work);
        return true;
}

/* output_fill() - ask nghttp2 for frames until there is enough for one go. */
static bool output_fill(struct h2_connection *connection) {
        while (connection->output.size < OUTPUT_FILL) {
                const uint8_t *bytes;
                ssize_t n = nghttp2_session_mem_send(connection->session, &bytes);
                if (n == 0)
                        return true;
                if (n < 0) {
                        connection_fail(connection, "HTTP/2: %s", nghttp2_strerror((int)n));
                        return false;
                }
                int r = buffer_append(&connection->output, bytes, (size_t)n);
                if (r < 0) {
                        connection_fail(connection, "HTTP/2 output: %s", strerror(-r));
                        return false;
                }
        }
        return true;
}

static bool connection_write(struct h2_connection *connection) {
        for (;;) {
                size_t done = 0;
                if (connection->output_done == connection->output.size) {
                        buffer_deinit(&connection->output);
                        connection->output_done = 0;
                        if (!output_fill(connection))
                                return false;
                        if (connection->output.size == 0)
                                return true;
                }
                int r = transport_write(connection, connection->output.data + connection->output_done,
                                        connection->output.size - connection->output_done, &done);
                if (r == TLS_WANT_READ || r == TLS_WANT_WRITE) {
                        connection->wants_write |= r == TLS_WANT_WRITE;
                        return true;
                }
                if (r != 0) {
                        connection_fail_transport(connection, r);
                        return false;
                }
                connection->output_done += done;
        }
}

/* ---- turns ---------------------------------------------------------------------------------------- */

static void connection_check_over(struct h2_connection *connection) {
        if (connection->broken)
                connection_fail(connection, "out of memory");
        else if (nghttp2_session_want_read(connection->session) || nghttp2_session_want_write(connection->session))
                return;
        else if (*connection->goaway)
                connection_fail(connection, "%s", connection->goaway);
        else
                connection_fail(connection, "HTTP/2 error%s%s", *connection->protocol_error ? ": " : "",
                                connection->protocol_error);
}

static void connection_set_interest(struct h2_connection *connection, uint32_t interest) {
        if (connection->state == H2_CLOSED || interest == connection->interest)
                return;
        int r = event_io_set(connection->io, interest);
        if (r < 0)
                connection_fail(connection, "watching the socket: %s", strerror(-r));
        else
                connection->interest = interest;
}

static bool connection_move(struct h2_connection *connection) {
        connection->wants_write = false;
        connection->pumping = true;
        bool ok = connection_read(connection) && connection_write(connection);
        connection->pumping = false;
        return ok;
}

static void connection_pump(struct h2_connection *connection) {
        bool connecting = connection->state == H2_CONNECTING;

        if (!connection_move(connection))
                return;
        connection_check_over(connection);
        if (connection->state == H2_CLOSED)
                return;
        if (connecting && connection->state != H2_CONNECTING)
                connection->timer = event_source_free(connection->timer);
        connection_set_interest(connection, EPOLLIN | (connection->wants_write ? (uint32_t)EPOLLOUT : 0));
}

static void connection_open(struct h2_connection *connection) {
        int r = session_start(connection);

        if (r < 0)
                connection_fail(connection, "HTTP/2: %s", strerror(-r));
        else
                connection_pump(connection);
}

static void connection_handshake(struct h2_connection *connection) {
        int r = tls_stream_handshake(connection->tls);

        if (r == 0)
                connection_open(connection);
        else if (r == TLS_WANT_READ || r == TLS_WANT_WRITE)
                connection_set_interest(connection, r == TLS_WANT_READ ? EPOLLIN : EPOLLOUT);
        else
                connection_fail_transport(connection, r);
}

static int on_io(uint32_t epoll_events, void *userdata) {
        struct h2_connection *connection = userdata;

        (void)epoll_events; /* reading and writing say more than EPOLLERR and EPOLLHUP */
        if (connection->stage == STAGE_TLS)
                connection_handshake(connection);
        else
                connection_pump(connection);
        return connection->on_turn(connection, connection->userdata);
}

static int on_work(void *userdata) {
        struct h2_connection *connection = userdata;

        if (connection->session)
                connection_pump(connection);
        return connection->on_turn(connection, connection->userdata);
}

static int on_timeout(void *userdata) {
        struct h2_connection *connection = userdata;
        const char *peer = *connection->peer ? connection->peer : connection->host;

        connection_fail(connection, "%s: no connection within %" PRIu64 " ms (%s)", peer,
                        connection->connect_timeout_usec / USEC_PER_MSEC, connection_stage(connection));
        return connection->on_turn(connection, connection->userdata);
}

static void connection_note_peer(struct h2_connection *connection) {
        struct sockaddr_storage address;
        socklen_t size = sizeof(address);

        if (getpeername(connection->fd, (struct sockaddr *)&address, &size) == 0)
                h2_address_to_text((const struct sockaddr *)&address, size, connection->peer);
        else
                base_text_copy(connection->peer, sizeof(connection->peer), connection->host);
}

static void connection_begin(struct h2_connection *connection) {
        char error[TLS_ERROR_MAX];

        connection_note_peer(connection);
        connection->interest = EPOLLIN;
        int r = event_add_io(connection->event, "h2", connection->fd, EPOLLIN, on_io, connection, &connection->io);
        if (r < 0) {
                connection_fail(connection, "watching the socket: %s", strerror(-r));
                return;
        }
        if (!connection->tls_client) {
                connection_open(connection);
                return;
        }
        connection->stage = STAGE_TLS;
        r = tls_stream_new(connection->tls_client, connection->fd, error, &connection->tls);
        if (r < 0)
                connection_fail(connection, "%s", error);
        else
                connection_handshake(connection);
}

static int on_dialled(int fd, const char *error, void *userdata) {
        struct h2_connection *connection = userdata;

        if (fd < 0)
                connection_fail(connection, "%s", *error ? error : strerror(-fd)); /* the dial and its text go there */
        else {
                connection->dial = h2_dial_free(connection->dial);
                connection->fd = fd;
                connection_begin(connection);
        }
        return connection->on_turn(connection, connection->userdata);
}

/* ---- the connection ------------------------------------------------------------------------------- */

static int connection_prepare(struct h2_connection *connection, struct resolve *resolve, unsigned rotation) {
        int r = event_add_deferred(connection->event, "h2-work", on_work, connection, &connection->work);
        if (r < 0)
                return r;
        r = event_add_timer(connection->event, "h2-connect-timeout", on_timeout, connection, &connection->timer);
        if (r < 0)
                return r;
        uint64_t limit = base_usec_add(event_now_usec(connection->event), connection->connect_timeout_usec);
        r = event_timer_set(connection->timer, limit);
        if (r < 0)
                return r;
        return h2_dial_start(connection->event, resolve, connection->host, connection->port, rotation, on_dialled,
                             connection, &connection->dial);
}

int h2_connection_new(struct event *event, struct resolve *resolve, const struct h2_options *options,
                      h2_turn_handler on_turn, void *userdata, struct h2_connection **ret) {
        if (options->stream_window < H2_WINDOW_MIN || options->stream_window > H2_WINDOW_MAX)
                return -EINVAL;
        _cleanup_(h2_connection_free_pointer) struct h2_connection *connection = calloc(1, sizeof(*connection));
        if (!connection)
                return -ENOMEM;
        TAILQ_INIT(&connection->streams);
        connection->fd = -1;
        connection->event = event;
        connection->output = BUFFER_INIT(OUTPUT_MAX);
        connection->port = options->port;
        connection->tls_client = options->tls;
        connection->connect_timeout_usec = options->connect_timeout_usec;
        connection->stream_window = options->stream_window;
        connection->on_turn = on_turn;
        connection->userdata = userdata;
        if (!base_text_copy(connection->host, sizeof(connection->host), options->host))
                return -EINVAL;
        int r = connection_prepare(connection, resolve, options->rotation);
        if (r < 0)
                return r;
        *ret = TAKE(connection);
        return 0;
}

/* Best effort: a peer that learns of our end forgets the streams at once. */
static void connection_say_goodbye(struct h2_connection *connection) {
        if (connection->state != H2_READY && connection->state != H2_DRAINING)
                return;
        /* Not nghttp2_session_terminate_session(): that drops the RST_STREAMs that still wait. */
        if (nghttp2_submit_goaway(connection->session, NGHTTP2_FLAG_NONE, 0, NGHTTP2_NO_ERROR, NULL, 0) < 0 ||
            !connection_write(connection))
                return;
        if (connection->tls)
                tls_stream_shutdown(connection->tls);
}

void h2_connection_close(struct h2_connection *connection, const char *reason) {
        connection_say_goodbye(connection);
        connection_fail(connection, "%s", reason);
}

struct h2_connection *h2_connection_free(struct h2_connection *connection) {
        struct h2_stream *stream;

        if (!connection)
                return NULL;
        for (stream = TAILQ_FIRST(&connection->streams); stream; stream = TAILQ_NEXT(stream, entry))
                stream->deaf = true;
        connection_say_goodbye(connection);
        while ((stream = TAILQ_FIRST(&connection->streams))) {
                TAILQ_REMOVE(&connection->streams, stream, entry);
                stream->connection = NULL;
                if (stream->abandoned)
                        free(stream);
        }
        connection_release(connection);
        free(connection);
        return NULL;
}

enum h2_state h2_connection_state(const struct h2_connection *connection) {
        return connection->state;
}

const char *h2_connection_error(const struct h2_connection *connection) {
        return connection->error;
}

const char *h2_connection_peer(const struct h2_connection *connection) {
        return connection->peer;
}

bool h2_connection_was_ready(const struct h2_connection *connection) {
        return connection->stage == STAGE_OPEN;
}

size_t h2_connection_streams(const struct h2_connection *connection) {
        return connection->open_streams;
}

bool h2_connection_has_room(const struct h2_connection *connection) {
        if (connection->state != H2_READY)
                return false;
        uint32_t max =
                nghttp2_session_get_remote_settings(connection->session, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
        return connection->open_streams < max;
}

/* connection_submitted() - nghttp2 was given something to send. */
static void connection_submitted(struct h2_connection *connection, int result) {
        if (result < 0)
                connection->broken = true;
        if (!connection->pumping)
                (void)event_deferred_schedule(connection->work);
}

/* ---- streams -------------------------------------------------------------------------------------- */

static nghttp2_nv header_to_nv(const struct h2_header *header) {
        return (nghttp2_nv){
                .name = (uint8_t *)(uintptr_t)header->name,
                .namelen = strlen(header->name),
                .value = (uint8_t *)(uintptr_t)header->value,
                .valuelen = strlen(header->value),
                .flags = header->secret ? NGHTTP2_NV_FLAG_NO_INDEX : NGHTTP2_NV_FLAG_NONE,
        };
}

static int stream_submit(struct h2_stream *stream, const struct h2_header *headers, size_t header_count) {
        struct h2_connection *connection = stream->connection;
        const nghttp2_data_provider body = {.source.ptr = stream, .read_callback = on_body_read};
        nghttp2_nv fields[HEADERS_MAX];

        if (header_count > HEADERS_MAX)
                return -EINVAL;
        for (size_t i = 0; i < header_count; i++)
                fields[i] = header_to_nv(&headers[i]);
        int32_t id = nghttp2_submit_request(connection->session, NULL, fields, header_count, &body, stream);
        if (id == NGHTTP2_ERR_STREAM_ID_NOT_AVAILABLE) {
                connection->state = H2_DRAINING;
                return -EAGAIN;
        }
        if (id < 0)
                return id == NGHTTP2_ERR_NOMEM ? -ENOMEM : -EINVAL;
        stream->id = id;
        return 0;
}

int h2_stream_start(struct h2_connection *connection, const struct h2_header *headers, size_t header_count,
                    struct span body, const struct h2_stream_handlers *handlers, void *userdata,
                    struct h2_stream **ret) {
        if (connection->state != H2_READY)
                return -EAGAIN;
        struct h2_stream *stream = calloc(1, sizeof(*stream));
        if (!stream)
                return -ENOMEM;
        stream->connection = connection;
        stream->body = body;
        stream->handlers = handlers;
        stream->userdata = userdata;
        int r = stream_submit(stream, headers, header_count);
        if (r < 0) {
                free(stream);
                return r;
        }
        TAILQ_INSERT_TAIL(&connection->streams, stream, entry);
        connection->open_streams++;
        connection_submitted(connection, 0);
        *ret = stream;
        return 0;
}

struct h2_stream *h2_stream_free(struct h2_stream *stream) {
        if (!stream)
                return NULL;
        struct h2_connection *connection = stream->connection;
        if (connection && !stream->closed) {
                uint32_t code = stream->peer_ended ? NGHTTP2_NO_ERROR : NGHTTP2_CANCEL;
                stream->deaf = stream->abandoned = true;
                connection_submitted(connection, nghttp2_submit_rst_stream(connection->session, NGHTTP2_FLAG_NONE,
                                                                           stream->id, code));
                return NULL;
        }
        if (connection)
                TAILQ_REMOVE(&connection->streams, stream, entry);
        free(stream);
        return NULL;
}

/*
 * The window W is what the peer may have sent and we hold, plus what it may still send (its credit). So the credit
 * to aim at is W - held. Padding is nghttp2's business and shows in its figures, which is why the credit is asked
 * for and not counted here.
 *
 * Small steps would be a WINDOW_UPDATE per message, so a step is at least a quarter of W. A peer that has begun a
 * message must always be able to end it: one larger than the window, or one that comes while others are held,
 * would else wait for a credit that only its own end can bring. So the credit never stays below `needed`, even
 * if the sum passes W for the time being; the caller has bounded `needed`.
 */
void h2_stream_grant(struct h2_stream *stream, size_t held, size_t needed) {
        struct h2_connection *connection = stream->connection;

        if (!connection || stream->closed || stream->peer_ended || !stream->response_seen ||
            !connection->settings_acked)
                return;
        int64_t window = connection->stream_window;
        int64_t credit = nghttp2_session_get_stream_effective_local_window_size(connection->session, stream->id) -
                         nghttp2_session_get_stream_effective_recv_data_length(connection->session, stream->id);
        int64_t wanted = (int64_t)base_min_u64(needed, H2_WINDOW_MAX) - credit;
        int64_t step = window - (int64_t)base_min_u64(held, H2_WINDOW_MAX) - credit;

        if (step < window / 4 && wanted <= 0)
                return;
        if (step < wanted)
                step = wanted;
        connection_submitted(connection, nghttp2_submit_window_update(connection->session, NGHTTP2_FLAG_NONE,
                                                                      stream->id, (int32_t)step));
}
