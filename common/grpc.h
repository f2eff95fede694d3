/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * grpc: unary and server-streaming calls over one HTTP/2 connection
 *
 * A channel owns at most one current connection (and draining ones after a GOAWAY). Calls are slots: the owner
 * holds a `struct grpc_call` and frees it; freeing cancels (RST_STREAM CANCEL) and means that no callback comes
 * any more. Every call ends with exactly one on_close unless it was freed before. Callbacks are never called
 * from within grpc_call_start(); they come from the loop. In a callback everything is allowed: to free this call
 * and others, to start calls, to drop the connection, to free the channel. A callback that returns a negative value
 * ends the loop with it.
 * A call that the peer has not acted on (REFUSED_STREAM, above GOAWAY's last stream) is tried once more unseen. A
 * failed connection ends the calls that wait for it with UNAVAILABLE; there is no back-off and no retry in here.
 * Statuses made here (`from_peer` false): UNAVAILABLE no connection, or it broke; DEADLINE_EXCEEDED; INTERNAL broken
 * framing, compression, no trailers; UNKNOWN no readable grpc-status; RESOURCE_EXHAUSTED a message above
 * `response_max`, header fields above 64 KiB, no memory; UNIMPLEMENTED none or several messages for a unary call
 * (doc/statuscodes.md); the mappings of HTTP statuses and of RST_STREAM codes.
 * Protocol: gRPC over HTTP/2 (github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md) and the mapping of HTTP
 * statuses of doc/http-grpc-status-mapping.md in the same repository.
 */
#include "base.h"

struct event;
struct resolve;
struct grpc_channel;
struct grpc_call;

enum grpc_status { /* the numbers are the protocol's */
        GRPC_OK = 0, GRPC_CANCELLED = 1, GRPC_UNKNOWN = 2, GRPC_INVALID_ARGUMENT = 3, GRPC_DEADLINE_EXCEEDED = 4,
        GRPC_NOT_FOUND = 5, GRPC_ALREADY_EXISTS = 6, GRPC_PERMISSION_DENIED = 7, GRPC_RESOURCE_EXHAUSTED = 8,
        GRPC_FAILED_PRECONDITION = 9, GRPC_ABORTED = 10, GRPC_OUT_OF_RANGE = 11, GRPC_UNIMPLEMENTED = 12,
        GRPC_INTERNAL = 13, GRPC_UNAVAILABLE = 14, GRPC_DATA_LOSS = 15, GRPC_UNAUTHENTICATED = 16,
};

const char *grpc_status_to_text(enum grpc_status status); /* "UNAVAILABLE"; "code 99" is never made */

struct grpc_channel_options { /* strings are copied; NULL where not set; the files and the name are for https */
        const char *endpoint;      /* https://host:port or http://host:port (cleartext, prior knowledge) */
        const char *ca_file;       /* NULL: the system's */
        const char *certificate_file, *private_key_file; /* both or none */
        const char *server_name;   /* NULL: the endpoint's host; checked against the certificate, sent as SNI and as
                                    * :authority */
        const char *user_agent;
        uint64_t connect_timeout_usec; /* whole of resolve, connect, TLS, SETTINGS */
        uint32_t stream_window;    /* bytes, 1 KiB to 1 GiB; the window of each server stream */
};

/* How a call ended. Valid during on_close. */
struct grpc_result {
        enum grpc_status status;
        const char *message;       /* percent-decoded, escaped, at most 1 KiB, never NULL */
        bool from_peer;            /* the status came in the peer's trailers; false: made here (transport, HTTP status,
                                    * our deadline) */
        bool has_pushback;         /* grpc-retry-pushback-ms was there */
        int64_t pushback_ms;       /* negative (or not to be read): the peer asks not to retry (gRFC A6) */
};

struct grpc_call_handlers {
        /* One whole message. The bytes are valid during the call. For a stream called with
         * `manual_window` the bytes stay charged to the stream's window until grpc_call_consume(); the peer may
         * always end a message that it has begun, so at most the window and one message are held.
         * A unary call has it only when its status is OK, right before on_close. */
        int (*on_message)(struct grpc_call *call, struct span message, void *userdata);
        int (*on_close)(struct grpc_call *call, const struct grpc_result *result, void *userdata);
};

struct grpc_call_options {
        const char *path;              /* "/package.Service/Method" */
        struct span request;           /* one message; copied */
        const char *bearer_token;      /* NULL: no authorization header; copied */
        uint64_t timeout_usec;         /* sent as grpc-timeout and enforced here; USEC_NEVER: none */
        uint32_t response_max;         /* a larger message is RESOURCE_EXHAUSTED before any allocation */
        bool streaming;                /* server streaming; else unary (exactly one message) */
        bool manual_window;            /* streaming only, see on_message */
};

/* grpc_channel_new() - checks the endpoint's syntax (-EINVAL; also a certificate without its key, a window out of
 * range) and makes no connection and reads no file yet. */
int grpc_channel_new(struct event *event, struct resolve *resolve, const struct grpc_channel_options *options,
                     struct grpc_channel **ret);
/* All calls must have been freed before (checked: abort). */
struct grpc_channel *grpc_channel_free(struct grpc_channel *channel);
DEFINE_CLEANUP(struct grpc_channel *, grpc_channel_free)

/* grpc_channel_drop() - close the current connection now, and those that drain: their calls and the ones that wait
 * end with UNAVAILABLE (told from the loop), the next call makes a new one. For a peer that has gone silent, and after
 * TLS files changed (which also drops the TLS session). */
void grpc_channel_drop(struct grpc_channel *channel);

/* grpc_channel_set_connect_timeout() - for connections from the next one on. */
void grpc_channel_set_connect_timeout(struct grpc_channel *channel, uint64_t connect_timeout_usec);

/* grpc_channel_peer() - "198.51.100.7:443" of the current connection, "" without one. */
const char *grpc_channel_peer(const struct grpc_channel *channel);

/* grpc_call_start() - opens the connection if there is none. -ENOMEM; -EINVAL: a path or token that is not visible
 * ASCII, a token above 16 KiB, a request above 64 MiB. */
int grpc_call_start(struct grpc_channel *channel, const struct grpc_call_options *options,
                    const struct grpc_call_handlers *handlers, void *userdata, struct grpc_call **ret);
struct grpc_call *grpc_call_free(struct grpc_call *call);
DEFINE_CLEANUP(struct grpc_call *, grpc_call_free)

/* grpc_call_consume() - give `size` message bytes (as counted in on_message's span) back to the stream's window; in any
 * order and size. Nothing happens without `manual_window` or after the call's end. */
void grpc_call_consume(struct grpc_call *call, size_t size);
