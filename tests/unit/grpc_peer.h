/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * grpc_peer: a scripted HTTP/2 server of raw frames, in threads of the test program
 *
 * It knows no manners, so that it can break each of them: what it sends for a request is a script, operations
 * separated by '|':
 *   h            ":status 200" and gRPC's content type          H a=b&c=d   a header block
 *   T a=b&c=d    a header block that ends the stream             t N         T grpc-status=N
 *   m TEXT       a message                                       M N         a message of N bytes
 *   b TEXT       a message, a DATA frame for each byte           d HEX       DATA as it stands
 *   f N SIZE     N messages of SIZE bytes                        e           an empty DATA frame with END_STREAM
 *   o N SIZE     as f with 3 bytes of padding in each frame
 *   r CODE       RST_STREAM                                      g LAST CODE GOAWAY (LAST -1: this stream's id less 2)
 *   w HEX        bytes onto the connection                       p N         N PINGs
 *   P            PINGs, none of whose answers is read, until the connection is gone
 *   c N          N CONTINUATIONs' worth of header fields         i N         N informational (103) blocks
 *   y            a new session ticket (with what comes next)
 *   x            close the connection                            s           neither read nor write any more
 *   k            wait for peer_release()                         n N         do the next one only for request number N
 * Flow control is obeyed for DATA. The script of a request is found by its path.
 */
#include "base.h"

#include <arpa/inet.h>
#include <assert.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>

#define PEER_CONNECTIONS_MAX 2048
#define PEER_STREAMS_MAX 256
#define PEER_BLOCK_MAX 16384

struct peer_row {
        const char *path, *script;
};

struct peer {
        int listen_fd;
        uint16_t port;
        SSL_CTX *tls;           /* NULL: cleartext */
        const char *greeting;   /* instead of SETTINGS, then the connection is closed */
        bool mute;              /* accept, then say nothing */
        bool goaway_first;      /* SETTINGS, then GOAWAY at once */
        bool first_ticket_only; /* further connections get no session tickets of their own */
        bool ack_settings;
        uint32_t max_streams; /* 0: not told */
        const struct peer_row *rows;
        size_t row_count;
        pthread_t accept_thread, threads[PEER_CONNECTIONS_MAX];
        size_t thread_count;
        int wake[2]; /* closed at the end: ends every thread */
        atomic_uint connections, resumed, requests, releases, resets, window_updates, goaways, pings_acked;
        atomic_uint handshakes_failed, settings_acked;
        atomic_uint last_reset_code;
        atomic_ullong data_sent;
        pthread_mutex_t mutex;
        char last_headers[8192]; /* "name: value\n"… of the last request */
        uint8_t last_body[4096];
        size_t last_body_size;
        char sni[256]; /* of the last handshake */
};

struct peer_stream {
        int32_t id;         /* 0: free */
        const char *script; /* where it stands; NULL: done */
        int64_t window;
        uint8_t *data; /* DATA that waits for the window */
        size_t data_size, data_done, piece;
        unsigned repeat, repeat_size, padding;
        unsigned number; /* of the request, from 1 */
        bool skip;
        bool end;
        uint8_t body[4096];
        size_t body_size;
};

struct peer_connection {
        struct peer *peer;
        int fd;
        SSL *ssl;
        nghttp2_hd_inflater *inflater;
        int64_t window, initial_window;
        struct peer_stream streams[PEER_STREAMS_MAX];
        bool closing, silent;
        uint8_t input[65536];
        size_t input_size;
};

/* ---- bytes ---------------------------------------------------------------------------------------- */

static void peer_write(struct peer_connection *c, const void *bytes, size_t size) {
        const uint8_t *at = bytes;

        while (size > 0 && !c->closing) {
                ssize_t n;
                if (c->ssl) {
                        n = SSL_write(c->ssl, at, (int)size);
                        if (n <= 0 && (SSL_get_error(c->ssl, (int)n) == SSL_ERROR_WANT_WRITE ||
                                       SSL_get_error(c->ssl, (int)n) == SSL_ERROR_WANT_READ))
                                n = -2;
                } else {
                        n = send(c->fd, at, size, MSG_NOSIGNAL);
                        if (n < 0 && errno == EAGAIN)
                                n = -2;
                }
                if (n == -2) {
                        struct pollfd polls[2] = {{c->fd, POLLOUT, 0}, {c->peer->wake[0], POLLIN, 0}};
                        (void)poll(polls, 2, 1000);
                        if (polls[1].revents != 0)
                                c->closing = true;
                        continue;
                }
                if (n <= 0) {
                        c->closing = true;
                        return;
                }
                at += n;
                size -= (size_t)n;
        }
}

static void peer_frame(struct peer_connection *c, uint8_t type, uint8_t flags, int32_t stream, const void *payload,
                       size_t size) {
        uint8_t frame[9 + 65536];
        const uint32_t id = (uint32_t)stream;

        assert(size <= 65536);
        const uint8_t head[9] = {(uint8_t)(size >> 16), (uint8_t)(size >> 8), (uint8_t)size,      type,       flags,
                                 (uint8_t)(id >> 24),   (uint8_t)(id >> 16),  (uint8_t)(id >> 8), (uint8_t)id};
        memcpy(frame, head, 9);
        if (size > 0)
                memcpy(frame + 9, payload, size);
        peer_write(c, frame, 9 + size);
}

static size_t peer_put_int(uint8_t *at, size_t value) { /* HPACK: 7-bit prefix integer, no Huffman */
        if (value < 127) {
                *at = (uint8_t)value;
                return 1;
        }
        size_t n = 0;
        at[n++] = 127;
        for (value -= 127; value >= 128; value /= 128)
                at[n++] = (uint8_t)(value % 128 + 128);
        at[n++] = (uint8_t)value;
        return n;
}

static size_t peer_put_field(uint8_t *at, const char *name, size_t name_size, const char *value, size_t value_size) {
        size_t n = 0;

        at[n++] = 0; /* literal, not indexed, new name */
        n += peer_put_int(at + n, name_size);
        memcpy(at + n, name, name_size);
        n += name_size;
        n += peer_put_int(at + n, value_size);
        memcpy(at + n, value, value_size);
        return n + value_size;
}

/* "a=b&c=d"; "{N}" as a value is N letters. */
static void peer_headers(struct peer_connection *c, int32_t stream, bool end, const char *text, size_t size) {
        uint8_t *block = malloc(200000);
        size_t n = 0;

        while (size > 0) {
                size_t item = 0, name = 0;
                while (item < size && text[item] != '&')
                        item++;
                while (name < item && text[name] != '=')
                        name++;
                const char *value = text + name + 1;
                size_t value_size = item - name - 1;
                char *long_value = NULL;
                if (value_size > 1 && value[0] == '{') {
                        value_size = strtoul(value + 1, NULL, 10);
                        value = long_value = malloc(value_size);
                        memset(long_value, 'x', value_size);
                }
                n += peer_put_field(block + n, text, name, value, value_size);
                free(long_value);
                text += item + (item < size);
                size -= item + (item < size);
        }
        for (size_t done = 0; done < n || done == 0;) { /* HEADERS, then CONTINUATIONs */
                size_t part = n - done < PEER_BLOCK_MAX ? n - done : PEER_BLOCK_MAX;
                bool first = done == 0, last = done + part == n;
                peer_frame(
                        c, first ? NGHTTP2_HEADERS : NGHTTP2_CONTINUATION,
                        (uint8_t)((last ? NGHTTP2_FLAG_END_HEADERS : 0) | (first && end ? NGHTTP2_FLAG_END_STREAM : 0)),
                        stream, block + done, part);
                done += part;
                if (last)
                        break;
        }
        free(block);
}

/* ---- scripts -------------------------------------------------------------------------------------- */

static void peer_set_data(struct peer_stream *s, const void *bytes, size_t size, size_t piece) {
        s->data = malloc(size + 1);
        memcpy(s->data, bytes, size);
        s->data_size = size;
        s->data_done = 0;
        s->piece = piece;
}

static void peer_set_message(struct peer_stream *s, const void *bytes, size_t size, size_t piece) {
        uint8_t *message = malloc(size + 5);

        message[0] = 0;
        for (int i = 0; i < 4; i++)
                message[1 + i] = (uint8_t)(size >> (24 - 8 * i));
        if (bytes)
                memcpy(message + 5, bytes, size);
        else
                memset(message + 5, 'x', size);
        peer_set_data(s, message, size + 5, piece);
        free(message);
}

static size_t peer_hex(const char *text, size_t size, uint8_t *bytes) {
        size_t n = 0;

        for (size_t i = 0; i + 1 < size; i += 2) {
                char pair[3] = {text[i], text[i + 1], '\0'};
                bytes[n++] = (uint8_t)strtoul(pair, NULL, 16);
        }
        return n;
}

static void peer_put_u32(uint8_t *at, uint32_t value) {
        for (int i = 0; i < 4; i++)
                at[i] = (uint8_t)(value >> (24 - 8 * i));
}

static void peer_goaway(struct peer_connection *c, int32_t last, uint32_t code) {
        uint8_t payload[8 + 14];

        peer_put_u32(payload, (uint32_t)last);
        peer_put_u32(payload + 4, code);
        memcpy(payload + 8, "too_many\npings", 14);
        peer_frame(c, NGHTTP2_GOAWAY, 0, 0, payload, sizeof(payload));
}

/* peer_put_pings() - as many PING frames as fit; their bytes. */
static size_t peer_put_pings(uint8_t *bytes, size_t size) {
        static const uint8_t ping[17] = {0, 0, 8, NGHTTP2_PING, 0, 0, 0, 0, 0, '1', '2', '3', '4', '5', '6', '7', '8'};
        size_t n = 0;

        for (; n + sizeof(ping) <= size; n += sizeof(ping))
                memcpy(bytes + n, ping, sizeof(ping));
        return n;
}

/* peer_do() - one operation that is no DATA (or begins some); false: it has to wait. */
static bool peer_do(struct peer_connection *c, struct peer_stream *s, const char *op, size_t size) {
        static const char ok[] = ":status=200&content-type=application/grpc";
        const char *rest = size > 2 ? op + 2 : "";
        size_t rest_size = size > 2 ? size - 2 : 0;
        uint8_t bytes[8192];
        char word[64] = "";
        unsigned n;

        switch (op[0]) {
        case 'h':
                peer_headers(c, s->id, false, ok, strlen(ok));
                return true;
        case 'H':
                peer_headers(c, s->id, false, rest, rest_size);
                return true;
        case 'T':
                peer_headers(c, s->id, true, rest, rest_size);
                s->end = true;
                return true;
        case 't':
                snprintf(word, sizeof(word), "grpc-status=%lu", strtoul(rest, NULL, 10));
                peer_headers(c, s->id, true, word, strlen(word));
                s->end = true;
                return true;
        case 'm':
                peer_set_message(s, rest, rest_size, 16384);
                return true;
        case 'M':
                peer_set_message(s, NULL, strtoul(rest, NULL, 10), 16384);
                return true;
        case 'b':
                peer_set_message(s, rest, rest_size, 1);
                return true;
        case 'd':
                peer_set_data(s, bytes, peer_hex(rest, rest_size, bytes), 16384);
                return true;
        case 'o':
                s->padding = 3;
                /* fall through */
        case 'f':
                sscanf(rest, "%u %u", &s->repeat, &s->repeat_size);
                return true;
        case 'e':
                peer_frame(c, NGHTTP2_DATA, NGHTTP2_FLAG_END_STREAM, s->id, NULL, 0);
                s->end = true;
                return true;
        case 'r':
                peer_put_u32(bytes, (uint32_t)strtoul(rest, NULL, 10));
                peer_frame(c, NGHTTP2_RST_STREAM, 0, s->id, bytes, 4);
                s->end = true;
                return true;
        case 'g': {
                int last;
                sscanf(rest, "%d %u", &last, &n);
                peer_goaway(c, last >= 0 ? last : s->id > 1 ? s->id - 2 : 0, n);
                return true;
        }
        case 'w':
                peer_write(c, bytes, peer_hex(rest, rest_size, bytes));
                return true;
        case 'p':
                for (n = 0; n < strtoul(rest, NULL, 10); n++)
                        peer_frame(c, NGHTTP2_PING, 0, 0, "12345678", 8);
                return true;
        case 'P':
                /* A count would not do: how many answers fit into the sockets' buffers is the kernel's affair. */
                while (!c->closing)
                        peer_write(c, bytes, peer_put_pings(bytes, sizeof(bytes)));
                return true;
        case 'i':
                for (n = 0; n < strtoul(rest, NULL, 10); n++)
                        peer_headers(c, s->id, false, ":status=103&link=x", 18);
                return true;
        case 'c': {
                char field[] = "x-fill={1000}";
                peer_frame(c, NGHTTP2_HEADERS, 0, s->id, bytes, peer_put_field(bytes, ":status", 7, "200", 3));
                for (n = 0; n < strtoul(rest, NULL, 10); n++) {
                        memset(bytes + 4096, 'y', 1000);
                        size_t field_size = peer_put_field(bytes, field, 6, (char *)bytes + 4096, 1000);
                        peer_frame(c, NGHTTP2_CONTINUATION, 0, s->id, bytes, field_size);
                }
                return true;
        }
        case 'n':
                s->skip = s->number != strtoul(rest, NULL, 10);
                return true;
        case 'y':
                SSL_new_session_ticket(c->ssl);
                return true;
        case 'x':
                c->closing = true;
                return true;
        case 's':
                c->silent = true;
                return true;
        case 'k': {
                unsigned releases = atomic_load(&c->peer->releases);
                while (releases > 0)
                        if (atomic_compare_exchange_weak(&c->peer->releases, &releases, releases - 1))
                                return true;
                return false;
        }
        default:
                abort();
                return true;
        }
}

/* peer_send_data() - as much as the windows allow; true: all of it is out. */
static bool peer_send_data(struct peer_connection *c, struct peer_stream *s) {
        while (s->data) {
                size_t size = s->data_size - s->data_done;
                size_t extra = s->padding ? s->padding + 1 : 0;
                if (size > s->piece)
                        size = s->piece;
                if ((int64_t)(size + extra) > s->window)
                        size = s->window > (int64_t)extra ? (size_t)s->window - extra : 0;
                if ((int64_t)(size + extra) > c->window)
                        size = c->window > (int64_t)extra ? (size_t)c->window - extra : 0;
                if (size == 0 && s->data_size > 0)
                        return false;
                uint8_t payload[16384 + 8] = {(uint8_t)s->padding};
                memcpy(payload + (extra ? 1 : 0), s->data + s->data_done, size);
                peer_frame(c, NGHTTP2_DATA, extra ? NGHTTP2_FLAG_PADDED : 0, s->id, payload, size + extra);
                s->window -= (int64_t)(size + extra);
                c->window -= (int64_t)(size + extra);
                s->data_done += size;
                atomic_fetch_add(&c->peer->data_sent, size);
                if (s->data_done == s->data_size) {
                        free(s->data);
                        s->data = NULL;
                }
        }
        return true;
}

static void peer_run(struct peer_connection *c, struct peer_stream *s) {
        while (s->script && !c->closing && !c->silent) {
                if (!peer_send_data(c, s))
                        return;
                if (s->repeat > 0) {
                        s->repeat--;
                        peer_set_message(s, NULL, s->repeat_size, 16384);
                        continue;
                }
                s->padding = s->repeat > 0 ? s->padding : 0;
                if (*s->script == '\0' || s->end) {
                        if (s->end)
                                s->id = 0;
                        s->script = NULL;
                        s->end = false;
                        return;
                }
                size_t size = strcspn(s->script, "|");
                bool skip = s->skip;
                s->skip = false;
                if (!skip && !peer_do(c, s, s->script, size))
                        return;
                s->script += size + (s->script[size] == '|');
        }
}

/* ---- frames that come ------------------------------------------------------------------------------ */

static struct peer_stream *peer_find(struct peer_connection *c, int32_t id) {
        for (size_t i = 0; i < PEER_STREAMS_MAX; i++)
                if (c->streams[i].id == id)
                        return &c->streams[i];
        return NULL;
}

static const char *peer_script(struct peer *peer, const char *path) {
        for (size_t i = 0; i < peer->row_count; i++)
                if (strcmp(peer->rows[i].path, path) == 0)
                        return peer->rows[i].script;
        return "T :status=200&content-type=application/grpc&grpc-status=12";
}

static void peer_on_headers(struct peer_connection *c, int32_t id, const uint8_t *block, size_t size) {
        char text[8192] = "", path[256] = "";
        size_t used = 0;

        for (;;) {
                nghttp2_nv nv;
                int flags = 0;
                ssize_t n = nghttp2_hd_inflate_hd2(c->inflater, &nv, &flags, block, size, 1);
                if (n < 0) {
                        c->closing = true;
                        return;
                }
                block += n;
                size -= (size_t)n;
                if (flags & NGHTTP2_HD_INFLATE_EMIT) {
                        if (used < sizeof(text) - 1)
                                used += (size_t)snprintf(text + used, sizeof(text) - used, "%s: %s%s\n", nv.name,
                                                         nv.value,
                                                         nv.flags & NGHTTP2_NV_FLAG_NO_INDEX ? " [secret]" : "");
                        if (strcmp((char *)nv.name, ":path") == 0)
                                snprintf(path, sizeof(path), "%s", nv.value);
                }
                if ((flags & NGHTTP2_HD_INFLATE_FINAL) || (size == 0 && !(flags & NGHTTP2_HD_INFLATE_EMIT)))
                        break;
        }
        nghttp2_hd_inflate_end_headers(c->inflater);
        pthread_mutex_lock(&c->peer->mutex);
        base_text_copy(c->peer->last_headers, sizeof(c->peer->last_headers), text);
        pthread_mutex_unlock(&c->peer->mutex);
        struct peer_stream *s = peer_find(c, 0);
        assert(s);
        *s = (struct peer_stream){.id = id, .window = c->initial_window};
        s->script = NULL;
        /* The script begins at END_STREAM; "!" in front of the path: at once. */
        if (path[0] == '!')
                s->script = peer_script(c->peer, path + 1);
        pthread_mutex_lock(&c->peer->mutex);
        s->body_size = 0;
        pthread_mutex_unlock(&c->peer->mutex);
        base_text_copy((char *)s->body + 3000, 1000, path);
}

static void peer_on_end(struct peer_connection *c, struct peer_stream *s) {
        pthread_mutex_lock(&c->peer->mutex);
        memcpy(c->peer->last_body, s->body, s->body_size);
        c->peer->last_body_size = s->body_size;
        pthread_mutex_unlock(&c->peer->mutex);
        if (!s->script)
                s->script = peer_script(c->peer, (char *)s->body + 3000);
        s->number = atomic_fetch_add(&c->peer->requests, 1) + 1;
        peer_run(c, s);
}

static void peer_on_data(struct peer_connection *c, struct peer_stream *s, const uint8_t *bytes, size_t size) {
        uint8_t update[4];

        if (size > 0 && s->body_size + size <= 3000) {
                memcpy(s->body + s->body_size, bytes, size);
                s->body_size += size;
        }
        if (size == 0)
                return;
        peer_put_u32(update, (uint32_t)size);
        peer_frame(c, NGHTTP2_WINDOW_UPDATE, 0, 0, update, 4);
        peer_frame(c, NGHTTP2_WINDOW_UPDATE, 0, s->id, update, 4);
}

static uint32_t peer_u32(const uint8_t *at) {
        return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static void peer_on_settings(struct peer_connection *c, uint8_t flags, const uint8_t *payload, size_t size) {
        if (flags & NGHTTP2_FLAG_ACK) {
                atomic_fetch_add(&c->peer->settings_acked, 1);
                return;
        }
        for (size_t i = 0; i + 6 <= size; i += 6)
                if (payload[i + 1] == NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE)
                        c->initial_window = peer_u32(payload + i + 2);
        if (c->peer->ack_settings)
                peer_frame(c, NGHTTP2_SETTINGS, NGHTTP2_FLAG_ACK, 0, NULL, 0);
}

static void peer_run_all(struct peer_connection *c) {
        for (size_t i = 0; i < PEER_STREAMS_MAX; i++)
                if (c->streams[i].script)
                        peer_run(c, &c->streams[i]);
}

static void peer_on_frame(struct peer_connection *c, const uint8_t head[9], const uint8_t *payload, size_t size) {
        int32_t id = (int32_t)peer_u32(head + 5);
        struct peer_stream *s = id > 0 ? peer_find(c, id) : NULL;

        switch (head[3]) {
        case NGHTTP2_SETTINGS:
                peer_on_settings(c, head[4], payload, size);
                break;
        case NGHTTP2_HEADERS:
                peer_on_headers(c, id, payload, size); /* clients of ours send no padding, no priority */
                break;
        case NGHTTP2_DATA:
                if (s)
                        peer_on_data(c, s, payload, size);
                if (s && (head[4] & NGHTTP2_FLAG_END_STREAM))
                        peer_on_end(c, s);
                break;
        case NGHTTP2_RST_STREAM:
                atomic_store(&c->peer->last_reset_code, peer_u32(payload));
                atomic_fetch_add(&c->peer->resets, 1);
                if (s) {
                        free(s->data);
                        *s = (struct peer_stream){0};
                }
                break;
        case NGHTTP2_WINDOW_UPDATE:
                atomic_fetch_add(&c->peer->window_updates, 1);
                if (s)
                        s->window += peer_u32(payload);
                else if (id == 0)
                        c->window += peer_u32(payload);
                break;
        case NGHTTP2_PING:
                if (head[4] & NGHTTP2_FLAG_ACK)
                        atomic_fetch_add(&c->peer->pings_acked, 1);
                break;
        case NGHTTP2_GOAWAY:
                atomic_fetch_add(&c->peer->goaways, 1);
                break;
        default:
                break;
        }
        peer_run_all(c);
}

static void peer_consume(struct peer_connection *c, size_t size) {
        c->input_size -= size;
        memmove(c->input, c->input + size, c->input_size);
}

static void peer_parse(struct peer_connection *c) {
        while (!c->closing && !c->silent && c->input_size >= 9) {
                size_t size = (size_t)c->input[0] << 16 | (size_t)c->input[1] << 8 | c->input[2];
                if (c->input_size < 9 + size)
                        return;
                peer_on_frame(c, c->input, c->input + 9, size);
                peer_consume(c, 9 + size);
        }
}

/* ---- connections ---------------------------------------------------------------------------------- */

/* peer_fill() - more bytes, or 10 ms have passed. */
static void peer_fill(struct peer_connection *c) {
        struct pollfd polls[2] = {{c->fd, POLLIN, 0}, {c->peer->wake[0], POLLIN, 0}};
        ssize_t n = -1;

        if (!c->ssl || !SSL_has_pending(c->ssl))
                (void)poll(polls, 2, 10);
        if (polls[1].revents != 0) {
                c->closing = true;
                return;
        }
        if (c->ssl) {
                n = SSL_read(c->ssl, c->input + c->input_size, (int)(sizeof(c->input) - c->input_size));
                if (n <= 0 && SSL_get_error(c->ssl, (int)n) == SSL_ERROR_WANT_READ)
                        return;
        } else {
                n = recv(c->fd, c->input + c->input_size, sizeof(c->input) - c->input_size, MSG_DONTWAIT);
                if (n < 0 && errno == EAGAIN)
                        return;
        }
        if (n <= 0)
                c->closing = true;
        else
                c->input_size += (size_t)n;
}

static void peer_wait_end(struct peer_connection *c) {
        struct pollfd polls[1] = {{c->peer->wake[0], POLLIN, 0}};

        (void)poll(polls, 1, -1);
        c->closing = true;
}

static bool peer_handshake(struct peer_connection *c) {
        if (!c->peer->tls)
                return true;
        c->ssl = SSL_new(c->peer->tls);
        SSL_set_fd(c->ssl, c->fd);
        if (c->peer->first_ticket_only && atomic_load(&c->peer->connections) > 1)
                SSL_set_num_tickets(c->ssl, 0);
        for (;;) {
                int n = SSL_accept(c->ssl);
                if (n == 1)
                        break;
                int error = SSL_get_error(c->ssl, n);
                struct pollfd polls[2] = {{c->fd, error == SSL_ERROR_WANT_WRITE ? POLLOUT : POLLIN, 0},
                                          {c->peer->wake[0], POLLIN, 0}};
                if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) {
                        atomic_fetch_add(&c->peer->handshakes_failed, 1);
                        ERR_clear_error();
                        return false;
                }
                (void)poll(polls, 2, -1);
                if (polls[1].revents != 0)
                        return false;
        }
        const char *sni = SSL_get_servername(c->ssl, TLSEXT_NAMETYPE_host_name);
        pthread_mutex_lock(&c->peer->mutex);
        base_text_copy(c->peer->sni, sizeof(c->peer->sni), sni);
        pthread_mutex_unlock(&c->peer->mutex);
        if (SSL_session_reused(c->ssl))
                atomic_fetch_add(&c->peer->resumed, 1);
        return true;
}

static void peer_greet(struct peer_connection *c) {
        uint8_t settings[6] = {0, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS};

        if (c->peer->greeting) {
                while (!c->closing && c->input_size == 0)
                        peer_fill(c);
                peer_write(c, c->peer->greeting, strlen(c->peer->greeting));
                c->closing = true;
                return;
        }
        peer_put_u32(settings + 2, c->peer->max_streams);
        peer_frame(c, NGHTTP2_SETTINGS, 0, 0, settings, c->peer->max_streams > 0 ? 6 : 0);
        if (c->peer->goaway_first)
                peer_goaway(c, 0, 0);
        while (!c->closing && c->input_size < 24)
                peer_fill(c);
        if (!c->closing)
                peer_consume(c, 24);
}

static void *peer_connection_main(void *userdata) {
        struct peer_connection *c = userdata;
        sigset_t set;

        /* In this thread alone: that the client makes no SIGPIPE is a part of the test. */
        sigemptyset(&set);
        sigaddset(&set, SIGPIPE);
        pthread_sigmask(SIG_BLOCK, &set, NULL);

        if (!peer_handshake(c))
                c->closing = true;
        if (!c->closing && c->peer->mute)
                peer_wait_end(c);
        if (!c->closing)
                peer_greet(c);
        while (!c->closing) {
                peer_parse(c);
                if (c->silent)
                        peer_wait_end(c);
                if (!c->closing)
                        peer_fill(c);
                if (!c->closing)
                        peer_run_all(c);
        }
        for (size_t i = 0; i < PEER_STREAMS_MAX; i++)
                free(c->streams[i].data);
        if (c->ssl)
                (void)SSL_shutdown(c->ssl);
        SSL_free(c->ssl);
        close(c->fd);
        nghttp2_hd_inflate_del(c->inflater);
        free(c);
        return NULL;
}

static void *peer_accept_main(void *userdata) {
        struct peer *peer = userdata;

        for (;;) {
                struct pollfd polls[2] = {{peer->listen_fd, POLLIN, 0}, {peer->wake[0], POLLIN, 0}};
                (void)poll(polls, 2, -1);
                if (polls[1].revents != 0)
                        return NULL;
                int fd = accept4(peer->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
                if (fd < 0)
                        continue;
                int one = 1;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
                struct peer_connection *c = calloc(1, sizeof(*c));
                *c = (struct peer_connection){.peer = peer, .fd = fd, .window = 65535, .initial_window = 65535};
                nghttp2_hd_inflate_new(&c->inflater);
                atomic_fetch_add(&peer->connections, 1);
                assert(peer->thread_count < PEER_CONNECTIONS_MAX);
                pthread_create(&peer->threads[peer->thread_count++], NULL, peer_connection_main, c);
        }
}

/* ---- the peer ------------------------------------------------------------------------------------- */

static int peer_listen(const char *address, uint16_t *port, int backlog) {
        struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(*port)};
        socklen_t size = sizeof(in);
        int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

        inet_pton(AF_INET, address, &in.sin_addr);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
        if (bind(fd, (struct sockaddr *)&in, sizeof(in)) < 0 || listen(fd, backlog) < 0) {
                close(fd);
                return -errno;
        }
        getsockname(fd, (struct sockaddr *)&in, &size);
        *port = ntohs(in.sin_port);
        return fd;
}

static struct peer *peer_new(const struct peer_row *rows, size_t row_count) {
        struct peer *peer = calloc(1, sizeof(*peer));

        peer->rows = rows;
        peer->row_count = row_count;
        peer->ack_settings = true;
        pthread_mutex_init(&peer->mutex, NULL);
        assert(pipe(peer->wake) == 0);
        peer->listen_fd = peer_listen("127.0.0.1", &peer->port, 64);
        assert(peer->listen_fd >= 0);
        return peer;
}

static void peer_start(struct peer *peer) {
        pthread_create(&peer->accept_thread, NULL, peer_accept_main, peer);
}

static void peer_stop(struct peer *peer) {
        close(peer->wake[1]);
        pthread_join(peer->accept_thread, NULL);
        for (size_t i = 0; i < peer->thread_count; i++)
                pthread_join(peer->threads[i], NULL);
        close(peer->wake[0]);
        close(peer->listen_fd);
        SSL_CTX_free(peer->tls);
        pthread_mutex_destroy(&peer->mutex);
        free(peer);
}

__attribute__((unused)) static void peer_release(struct peer *peer) {
        atomic_fetch_add(&peer->releases, 1);
}
