/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The gRPC receiver, from the first byte of the control plane's HTTP/2 on: h2 (nghttp2) and grpc, with a socket pair in
 * place of the dial (h2_dial.c is replaced when the program is linked). Cleartext: TLS would only hide the bytes.
 *
 * libFuzzer: -max_len=16384
 *
 * Input: one byte of choices, then
 * - raw: what the server says, cut into pieces of the chosen size; or
 * - framed (choice 0x80): [type, flags, stream, size, payload]..., to which the frame headers and the server's first
 *   SETTINGS are made here, so that changing a byte does not break the framing of all that follows.
 *
 * A stream (number 1, like Watch) and a unary call (number 3, like Report) wait for the answer. However it goes, each
 * ends once, no message comes after the end or above its limit, and what is said of it is clean text.
 */
#include "fuzz_loop.h"
#include "grpc.h"
#include "h2_internal.h"

#include <fcntl.h>
#include <sys/socket.h>

#define MESSAGE_MAX 4096
#define STREAM_WINDOW 8192
#define FRAMES_MAX 200
#define TALK_MAX (128 * 1024)
#define END_STEPS_MAX 16 /* for the calls that waited to fail at the next connection, and one that is made then */
#define PIECES_MAX 64    /* each costs turns of the loop */

enum choice {
        CHOICE_MANUAL_WINDOW = 0x01,
        CHOICE_CONSUME = 0x02, /* give each message back at once */
        CHOICE_FREE_ON_MESSAGE = 0x04,
        CHOICE_DROP_ON_MESSAGE = 0x08,
        CHOICE_PIECES = 0x30,     /* 0: all at once, else at least 1, 7 or 64 bytes */
        CHOICE_CALL_AGAIN = 0x40, /* a further call when one has ended */
        CHOICE_FRAMED = 0x80,
};

struct call {
        struct peer *peer;
        struct grpc_call *call;
        bool streaming;
        unsigned closed, messages;
};

struct peer {
        uint8_t choices;
        struct span talk; /* not said yet */
        size_t piece;
        int fd; /* our end; -1: closed */
        bool begun, ended, called_again;
        unsigned waited; /* steps since the end */
        struct grpc_channel *channel;
        struct call calls[3];
        size_t call_count;
};

static struct peer *peer; /* the one of this input, for the dial */

/* ---- in place of h2_dial.c ------------------------------------------------------------------------------ */

struct h2_dial {
        struct event_source *deferred;
        h2_dial_handler handler;
        void *userdata;
};

static int on_dial(void *userdata) {
        struct h2_dial *dial = userdata;
        int fds[2];

        if (peer->fd >= 0 || peer->ended) /* one connection an input */
                return dial->handler(-ECONNREFUSED, "refused", dial->userdata);
        FUZZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0);
        peer->fd = fds[0];
        return dial->handler(fds[1], "", dial->userdata);
}

int h2_dial_start(struct event *event, struct resolve *resolve, const char *host, uint16_t port, unsigned rotation,
                  h2_dial_handler handler, void *userdata, struct h2_dial **ret) {
        struct h2_dial *dial = calloc(1, sizeof(*dial));

        (void)resolve;
        (void)rotation;
        FUZZ_CHECK(dial && strcmp(host, "192.0.2.1") == 0 && port == 443);
        *dial = (struct h2_dial){ .handler = handler, .userdata = userdata };
        FUZZ_CHECK(event_add_deferred(event, "fuzz-dial", on_dial, dial, &dial->deferred) == 0);
        FUZZ_CHECK(event_deferred_schedule(dial->deferred) == 0);
        *ret = dial;
        return 0;
}

struct h2_dial *h2_dial_free(struct h2_dial *dial) {
        if (dial)
                event_source_free(dial->deferred);
        free(dial);
        return NULL;
}

const char *h2_dial_stage(const struct h2_dial *dial) {
        (void)dial;
        return "connecting";
}

void h2_address_to_text(const struct sockaddr *address, socklen_t size, char text[H2_ADDRESS_TEXT_MAX]) {
        (void)address;
        (void)size;
        (void)base_text_copy(text, H2_ADDRESS_TEXT_MAX, "192.0.2.1:443");
}

/* ---- the calls ---------------------------------------------------------------------------------------------- */

static void call_start(struct peer *with, bool streaming);

static int on_message(struct grpc_call *grpc, struct span message, void *userdata) {
        struct call *call = userdata;
        uint8_t choices = call->peer->choices;
        volatile uint8_t sum = 0;

        FUZZ_CHECK(grpc == call->call && call->closed == 0);
        FUZZ_CHECK(message.size <= MESSAGE_MAX);
        FUZZ_CHECK(call->streaming || call->messages == 0);
        call->messages++;
        for (size_t i = 0; i < message.size; i++)
                sum = (uint8_t)(sum + message.data[i]); /* all of it can be read */
        if (choices & CHOICE_CONSUME)
                grpc_call_consume(grpc, message.size);
        if (choices & CHOICE_DROP_ON_MESSAGE)
                grpc_channel_drop(call->peer->channel);
        if (call->streaming && (choices & CHOICE_FREE_ON_MESSAGE))
                call->call = grpc_call_free(grpc);
        return 0;
}

static int on_close(struct grpc_call *grpc, const struct grpc_result *result, void *userdata) {
        struct call *call = userdata;

        FUZZ_CHECK(grpc == call->call && call->closed == 0);
        call->closed++;
        FUZZ_CHECK(result->status <= GRPC_UNAUTHENTICATED);
        FUZZ_CHECK(result->message && strlen(result->message) <= 1024 && fuzz_is_clean(result->message));
        FUZZ_CHECK(*grpc_status_to_text(result->status));
        FUZZ_CHECK(result->status != GRPC_OK || result->from_peer);
        if (!call->streaming)
                FUZZ_CHECK((call->messages == 1) == (result->status == GRPC_OK));
        if ((call->peer->choices & CHOICE_CALL_AGAIN) && !call->peer->called_again) {
                call->peer->called_again = true;
                call_start(call->peer, true);
        }
        return 0;
}

static void call_start(struct peer *with, bool streaming) {
        static const struct grpc_call_handlers handlers = { on_message, on_close };
        struct call *call = &with->calls[with->call_count++];
        const struct grpc_call_options options = {
                .path = streaming ? "/s.S/Watch" : "/s.S/Report",
                .request = { (const uint8_t *)"request", 7 },
                .bearer_token = "secret",
                .timeout_usec = USEC_NEVER,
                .response_max = MESSAGE_MAX,
                .streaming = streaming,
                .manual_window = streaming && (with->choices & CHOICE_MANUAL_WINDOW),
        };

        *call = (struct call){ .peer = with, .streaming = streaming };
        FUZZ_CHECK(grpc_call_start(with->channel, &options, &handlers, call, &call->call) == 0);
}

/* ---- the peer ------------------------------------------------------------------------------------------------- */

/* What the client says must not fill the socket: it is thrown away. */
static void hear(const struct peer *with) {
        uint8_t bytes[4096];

        while (recv(with->fd, bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
                ;
}

/* The calls begin only when the server's first SETTINGS are there, and what is said of a stream before it exists ends
 * the connection. So the first frame, or what stands in its place, comes alone. */
static size_t first_frame(struct span talk) {
        return talk.size < 9 ? talk.size : 9 + ((size_t)talk.data[0] << 16 | (size_t)talk.data[1] << 8 | talk.data[2]);
}

static bool calls_are_over(const struct peer *with) {
        for (size_t i = 0; i < with->call_count; i++)
                if (with->calls[i].call && with->calls[i].closed == 0)
                        return false;
        return true;
}

static bool peer_step(void *userdata) {
        struct peer *with = userdata;

        if (with->fd < 0)
                return false;
        hear(with);
        if (with->ended)
                return !calls_are_over(with) && ++with->waited < END_STEPS_MAX;
        if (with->talk.size > 0) {
                size_t size = base_min_u64(with->begun ? with->piece : first_frame(with->talk), with->talk.size);
                ssize_t n = send(with->fd, with->talk.data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
                with->begun = true;
                if (n > 0) {
                        (void)fuzz_take(&with->talk, (size_t)n);
                        return true;
                }
        }
        with->ended = true; /* all is said, or nobody listens any more */
        (void)shutdown(with->fd, SHUT_WR);
        return true;
}

static void put_frame(struct buffer *talk, uint8_t type, uint8_t flags, uint8_t stream, struct span payload) {
        const uint8_t header[9] = {
                0, (uint8_t)(payload.size >> 8), (uint8_t)payload.size, type, flags, 0, 0, 0, stream
        };

        FUZZ_CHECK(buffer_append(talk, header, sizeof(header)) == 0);
        FUZZ_CHECK(buffer_append(talk, payload.data, payload.size) == 0);
}

static void make_frames(struct buffer *talk, struct span input) {
        put_frame(talk, 4, 0, 0, (struct span){ 0 }); /* SETTINGS */
        put_frame(talk, 4, 1, 0, (struct span){ 0 }); /* and the acknowledgement of ours */
        for (unsigned i = 0; i < FRAMES_MAX && input.size > 0; i++) {
                uint8_t type = fuzz_take_u8(&input), flags = fuzz_take_u8(&input), stream = fuzz_take_u8(&input);
                size_t size = fuzz_take_u8(&input);
                if (type & 0x80) /* a large one */
                        size = size << 8 | fuzz_take_u8(&input);
                put_frame(talk, type & 0x7f, flags, stream, fuzz_take(&input, size));
        }
}

static void check_end(struct peer *with) {
        for (size_t i = 0; i < with->call_count; i++) {
                struct call *call = &with->calls[i];
                /* The connection is over, so every call has ended, unless it was freed before. */
                FUZZ_CHECK(call->call ? call->closed == 1 : call->closed == 0);
                call->call = grpc_call_free(call->call);
        }
        FUZZ_CHECK(grpc_channel_peer(with->channel)[0] == '\0');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static const size_t pieces[] = { SIZE_MAX, 1, 7, 64 };
        static const struct grpc_channel_options options = { .endpoint = "http://192.0.2.1:443",
                                                             .user_agent = "fuzz/1",
                                                             .connect_timeout_usec = USEC_PER_HOUR,
                                                             .stream_window = STREAM_WINDOW };
        _cleanup_(buffer_deinit) struct buffer talk = BUFFER_INIT(TALK_MAX);
        struct fuzz_loop *loop = fuzz_loop();
        struct span input = { data, size };
        struct peer with = { .choices = fuzz_take_u8(&input), .fd = -1 };

        peer = &with;
        with.talk = input;
        if (with.choices & CHOICE_FRAMED) {
                make_frames(&talk, input);
                with.talk = (struct span){ talk.data, talk.size };
        }
        with.piece = pieces[(with.choices & CHOICE_PIECES) >> 4];
        with.piece = base_max_u64(with.piece, with.talk.size / PIECES_MAX + 1);
        FUZZ_CHECK(grpc_channel_new(loop->event, NULL, &options, &with.channel) == 0);
        call_start(&with, true);
        call_start(&with, false);
        fuzz_loop_run(loop, peer_step, &with);
        check_end(&with);
        grpc_channel_free(with.channel);
        base_close_pointer(&with.fd);
        peer = NULL;
        return 0;
}
