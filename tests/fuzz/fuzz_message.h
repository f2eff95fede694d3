/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * fuzz_message: D-Bus messages whose header is sound, whatever the signature and the body are
 *
 * https://dbus.freedesktop.org/doc/dbus-specification.html#message-protocol-messages
 */
#include "fuzz.h"

enum fuzz_message_type { FUZZ_MESSAGE_CALL = 1, FUZZ_MESSAGE_RETURN = 2, FUZZ_MESSAGE_ERROR = 3 };

/* What of it is NULL or 0 is left out. */
struct fuzz_message {
        enum fuzz_message_type type;
        bool no_reply_expected;
        uint32_t serial, reply_serial;
        const char *path, *interface, *member, *error;
        struct span signature, body;
};

static inline void fuzz_message_put_u32(struct buffer *out, size_t value) {
        const uint8_t bytes[] = { (uint8_t)value, (uint8_t)(value >> 8), (uint8_t)(value >> 16),
                                  (uint8_t)(value >> 24) };

        FUZZ_CHECK(buffer_append(out, bytes, sizeof(bytes)) == 0);
}

static inline void fuzz_message_align(struct buffer *out, size_t start_at) {
        while ((out->size - start_at) % 8 != 0)
                FUZZ_CHECK(buffer_append(out, "", 1) == 0);
}

/* One header field: code, variant signature, and a text (for a signature its size is one byte). */
static inline void fuzz_message_put_field(struct buffer *out, size_t start_at, uint8_t code, char type,
                                          struct span text) {
        const char head[] = { (char)code, 1, type, 0 };

        fuzz_message_align(out, start_at);
        FUZZ_CHECK(buffer_append(out, head, sizeof(head)) == 0);
        if (type == 'g')
                FUZZ_CHECK(buffer_append(out, &(uint8_t){ (uint8_t)text.size }, 1) == 0);
        else
                fuzz_message_put_u32(out, text.size);
        FUZZ_CHECK(buffer_append(out, text.data, text.size) == 0 && buffer_append(out, "", 1) == 0);
}

static inline void fuzz_message_put_text(struct buffer *out, size_t start_at, uint8_t code, char type,
                                         const char *text) {
        if (text)
                fuzz_message_put_field(out, start_at, code, type, (struct span){ (const uint8_t *)text, strlen(text) });
}

static inline void fuzz_message_put_reply_serial(struct buffer *out, size_t start_at, uint32_t serial) {
        static const char head[] = { 5, 1, 'u', 0 };

        if (serial == 0)
                return;
        fuzz_message_align(out, start_at);
        FUZZ_CHECK(buffer_append(out, head, sizeof(head)) == 0);
        fuzz_message_put_u32(out, serial);
}

/* fuzz_message_put() - append it. */
static inline void fuzz_message_put(struct buffer *out, const struct fuzz_message *message) {
        const size_t start_at = out->size;
        const uint8_t head[] = { 'l', (uint8_t)message->type, message->no_reply_expected, 1 };

        FUZZ_CHECK(buffer_append(out, head, sizeof(head)) == 0);
        fuzz_message_put_u32(out, message->body.size);
        fuzz_message_put_u32(out, message->serial);
        fuzz_message_put_u32(out, 0); /* the size of the fields, known below */
        const size_t fields_at = out->size;
        fuzz_message_put_text(out, start_at, 1, 'o', message->path);
        fuzz_message_put_text(out, start_at, 2, 's', message->interface);
        fuzz_message_put_text(out, start_at, 3, 's', message->member);
        fuzz_message_put_text(out, start_at, 4, 's', message->error);
        fuzz_message_put_reply_serial(out, start_at, message->reply_serial);
        if (message->signature.size > 0)
                fuzz_message_put_field(out, start_at, 8, 'g', message->signature);
        const size_t size = out->size - fields_at;
        out->data[fields_at - 4] = (uint8_t)size;
        out->data[fields_at - 3] = (uint8_t)(size >> 8);
        fuzz_message_align(out, start_at);
        FUZZ_CHECK(buffer_append(out, message->body.data, message->body.size) == 0);
}
