/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * grpc_internal: what grpc.c (calls), grpc_channel.c (connections, delivery) and grpc_status.c (words and numbers)
 * share. Nobody else includes it but their tests.
 */
#include "grpc.h"
#include "h2.h"

#include <sys/queue.h>

struct event_source;

#define GRPC_MESSAGE_MAX 1024 /* bytes kept of grpc-message, after decoding */
#define GRPC_ATTEMPTS_MAX 2   /* a call is tried again once, and only when the peer has not acted on it */
#define GRPC_MOVES_MAX 3      /* connections that a call may see going away before it is on one */
#define GRPC_PREFIX_SIZE 5

enum grpc_call_state {
        GRPC_CALL_WAITING, /* for a connection, or for room on it */
        GRPC_CALL_OPEN,    /* has a stream */
        GRPC_CALL_ENDED,   /* the result stands; messages may wait to be delivered before it */
        GRPC_CALL_CLOSED,  /* on_close was called */
};

struct grpc_call {
        struct grpc_channel *channel;
        enum grpc_call_state state;
        TAILQ_ENTRY(grpc_call) waiting_entry; /* only in GRPC_CALL_WAITING */
        TAILQ_ENTRY(grpc_call) ready_entry;
        bool ready; /* has something to deliver: is in the channel's list */

        struct grpc_call_handlers handlers;
        void *userdata;
        char *path, *authorization;
        struct buffer request; /* framed */
        uint64_t timeout_usec, deadline_usec;
        struct event_source *timer; /* NULL without a deadline */
        uint32_t response_max;
        bool streaming, manual_window;

        struct h2_connection *connection; /* of `stream`; good for as long as that is open */
        struct h2_stream *stream;
        unsigned attempts, moves;

        bool response_seen, trailers_seen, is_grpc;
        unsigned http_status;
        char content_type[64];
        bool has_status;
        unsigned status;  /* as it came; UINT_MAX: not a number */
        uint8_t *message; /* decoded */
        size_t message_size;
        bool has_pushback;
        int64_t pushback_ms;

        uint8_t prefix[GRPC_PREFIX_SIZE];
        size_t prefix_size;  /* bytes of the prefix that are there; 0 between messages */
        uint32_t missing;    /* bytes of the message behind a whole prefix */
        struct buffer input; /* [uint32_t size, message]… */
        size_t complete;     /* bytes of `input` that are whole messages */
        size_t message_count;
        size_t charged; /* message bytes received and not given back by grpc_call_consume() */

        enum grpc_status result_status;
        bool result_from_peer;
        char *result_text; /* NULL: "" */
};

TAILQ_HEAD(grpc_call_list, grpc_call);

/* A connection in the channel's hands. */
struct grpc_link {
        struct h2_connection *h2;
        TAILQ_ENTRY(grpc_link) entry;
};

struct grpc_channel {
        struct event *event;
        struct resolve *resolve;
        struct tls_client *tls; /* NULL: cleartext */
        char *host, *authority, *user_agent;
        uint16_t port;
        uint64_t connect_timeout_usec;
        uint32_t stream_window;
        unsigned rotation;

        struct grpc_link *current; /* connecting or ready; NULL: none */
        TAILQ_HEAD(, grpc_link) draining;
        struct grpc_call_list waiting, ready;
        size_t call_count;
        struct event_source *deferred;
        struct grpc_call *delivering; /* whose callback runs; NULL also when it was freed meanwhile */
        bool in_turn;
        bool dead; /* freed within a callback: goes at the end of the turn */
};

/* ---- grpc_channel.c ------------------------------------------------------------------------------- */

/* grpc_channel_turn() - sweep the connections, start what waits, deliver what is ready. Only from the loop, as the
 * last act of a handler: the channel may be gone after it. */
int grpc_channel_turn(struct grpc_channel *channel);
/* grpc_channel_wake() - a turn soon. */
int grpc_channel_wake(struct grpc_channel *channel);

/* ---- grpc.c --------------------------------------------------------------------------------------- */

/* grpc_call_submit() - onto this connection. -EAGAIN: it takes no new streams after all. */
int grpc_call_submit(struct grpc_call *call, struct h2_connection *connection);
/* grpc_call_end() - the first result stands. Only notes it: on_close comes in the channel's turn. */
void grpc_call_end(struct grpc_call *call, enum grpc_status status, const char *format, ...)
        __attribute__((format(printf, 3, 4)));
/* grpc_call_end_lost() - UNAVAILABLE, because of what this connection says (NULL: none was made). */
void grpc_call_end_lost(struct grpc_call *call, const struct h2_connection *connection, const char *why);
void grpc_call_wait(struct grpc_call *call); /* into the channel's waiting list */
void grpc_call_release_stream(struct grpc_call *call);

/* ---- grpc_status.c -------------------------------------------------------------------------------- */

/* doc/http-grpc-status-mapping.md: the status of a response that has no grpc-status. */
enum grpc_status grpc_status_from_http(unsigned http_status);
/* doc/PROTOCOL-HTTP2.md "Errors": RST_STREAM's code. */
enum grpc_status grpc_status_from_h2(uint32_t error_code);
/* grpc_status_parse() - decimal digits; UINT_MAX: not a number (or a very long one). */
unsigned grpc_status_parse(struct span text);
/* grpc_message_decode() - percent-decoding; bad escapes stay as they are. Returns the bytes written, at most
 * `size`; the rest is cut. */
size_t grpc_message_decode(struct span text, uint8_t *bytes, size_t size);
/* grpc_pushback_parse() - gRFC A6: what is negative or can't be read asks not to retry (-1). */
int64_t grpc_pushback_parse(struct span text);

#define GRPC_TIMEOUT_TEXT_MAX 12
/* grpc_timeout_format() - "1500m": at most 8 digits and a unit, rounded up. */
void grpc_timeout_format(uint64_t usec, char text[GRPC_TIMEOUT_TEXT_MAX]);
/* grpc_content_type_is_grpc() - application/grpc, then the end, "+" or ";". */
bool grpc_content_type_is_grpc(const char *content_type);

/* grpc_endpoint_parse() - https://host:port or http://host:port; the port may be missing (443, 80). `host` gets the
 * name or address without brackets. -EINVAL. */
#define GRPC_HOST_MAX 255
struct grpc_endpoint {
        bool tls;
        char host[GRPC_HOST_MAX + 1];
        uint16_t port;
        char authority[GRPC_HOST_MAX + 10]; /* host:port, with brackets again */
};
int grpc_endpoint_parse(const char *text, struct grpc_endpoint *ret);
