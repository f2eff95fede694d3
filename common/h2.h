/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * h2: one HTTP/2 client connection on the loop
 *
 * From the name to the last byte: look-up, TCP to the first address that answers, TLS where asked for, SETTINGS,
 * then streams, each one request with its body. nghttp2 does the frames and HPACK, this module the socket, the
 * limits and the flow control. It knows nothing of gRPC.
 *
 * Two kinds of callbacks, and the difference matters:
 * - h2_stream_handlers are notes: they come from inside nghttp2, which must not be entered again. They may copy
 *   bytes and set flags, and nothing else.
 * - on_turn comes from the loop with nothing of this module on the stack behind it: everything is allowed there,
 *   also to free the connection.
 * Protocol: RFC 9113.
 */
#include "base.h"

struct event;
struct resolve;
struct tls_client;
struct h2_connection;
struct h2_stream;

#define H2_HEADER_BYTES_MAX (64 * 1024) /* of all header blocks of one stream, as RFC 9113 6.5.2 counts them */
#define H2_WINDOW_MIN 1024
#define H2_WINDOW_MAX (1U << 30)

enum h2_state {
        H2_CONNECTING, /* look-up, TCP, TLS, waiting for the peer's SETTINGS */
        H2_READY,
        H2_DRAINING, /* no new streams: GOAWAY was received (or stream ids are used up); the old ones go on */
        H2_CLOSED,   /* dead; h2_connection_error() says why; all streams have had on_close */
};

/* Why a stream ended. */
enum h2_end {
        H2_END_STREAM,     /* both sides said their last word, or RST_STREAM: see error_code */
        H2_END_UNSEEN,     /* the peer has not acted on it and never will: REFUSED_STREAM, above GOAWAY's last stream,
                            * or not even sent; safe to try again (RFC 9113 section 8.7) */
        H2_END_CONNECTION, /* the connection died; what the peer did is not known */
        H2_END_LIMIT,      /* the peer's header blocks passed H2_HEADER_BYTES_MAX */
};

/* Notes (see above). Informational (1xx) blocks are dropped; data comes without padding. */
struct h2_stream_handlers {
        /* One field of the response's header block, or (`trailer`) of the block after the data. `:status` is the
         * first of the response's. */
        void (*on_header)(bool trailer, struct span name, struct span value, void *userdata);
        /* The block is whole; `last`: it ends the stream. */
        void (*on_block)(bool trailer, bool last, void *userdata);
        void (*on_data)(struct span data, void *userdata);
        /* END_STREAM on a DATA frame. */
        void (*on_data_end)(void *userdata);
        /* Once, unless the stream was freed before. */
        void (*on_close)(enum h2_end end, uint32_t error_code, void *userdata);
};

struct h2_options { /* host is copied; tls must outlive the connection */
        const char *host;
        uint16_t port;
        struct tls_client *tls;        /* NULL: cleartext with prior knowledge (RFC 9113 section 3.3) */
        uint64_t connect_timeout_usec; /* until READY */
        uint32_t stream_window;        /* bytes, H2_WINDOW_MIN to H2_WINDOW_MAX */
        unsigned rotation;             /* which address comes first; count up after a failure behind TCP */
};

struct h2_header {
        const char *name, *value;
        bool secret; /* never in an HPACK table (RFC 7541 section 7.1.3) */
};

/* Called whenever something may have changed: state, notes. */
typedef int (*h2_turn_handler)(struct h2_connection *connection, void *userdata);

/* h2_connection_new() - begin to connect. -ENOMEM, -EINVAL; every later failure is told by on_turn. */
int h2_connection_new(struct event *event, struct resolve *resolve, const struct h2_options *options,
                      h2_turn_handler on_turn, void *userdata, struct h2_connection **ret);
/* h2_connection_free() - says GOAWAY and close_notify if the socket takes them at once, closes. Streams that are
 * still held become dead shells: no note comes any more, free them as usual. */
struct h2_connection *h2_connection_free(struct h2_connection *connection);
DEFINE_CLEANUP(struct h2_connection *, h2_connection_free)

/* h2_connection_close() - at once, for the reason given: streams get on_close(H2_END_CONNECTION). No on_turn. */
void h2_connection_close(struct h2_connection *connection, const char *reason);

enum h2_state h2_connection_state(const struct h2_connection *connection);
const char *h2_connection_error(const struct h2_connection *connection); /* for people; "" unless closed */
const char *h2_connection_peer(const struct h2_connection *connection);  /* "198.51.100.7:443", "" before TCP */
bool h2_connection_was_ready(const struct h2_connection *connection);    /* the peer's SETTINGS have come */

/* h2_connection_streams() - not closed ones. h2_connection_has_room() - READY, and the peer's
 * SETTINGS_MAX_CONCURRENT_STREAMS lets one more in. */
size_t h2_connection_streams(const struct h2_connection *connection);
bool h2_connection_has_room(const struct h2_connection *connection);

/* h2_stream_start() - a request; `headers` are copied, `body` must stay valid and unchanged until the stream is
 * freed. -EAGAIN: not READY (any more); -ENOMEM. */
int h2_stream_start(struct h2_connection *connection, const struct h2_header *headers, size_t header_count,
                    struct span body, const struct h2_stream_handlers *handlers, void *userdata,
                    struct h2_stream **ret);
/* h2_stream_free() - RST_STREAM(CANCEL) if it has not ended, or NO_ERROR if the peer has finished and only our
 * body has not. No note comes any more. */
struct h2_stream *h2_stream_free(struct h2_stream *stream);
DEFINE_CLEANUP(struct h2_stream *, h2_stream_free)

/* h2_stream_grant() - flow control. `held` received bytes are to stay charged to the stream's window (0: none);
 * `needed` further bytes must be let in whatever is held, to finish what has begun. Call it when either changes;
 * WINDOW_UPDATEs go out in large steps. */
void h2_stream_grant(struct h2_stream *stream, size_t held, size_t needed);
