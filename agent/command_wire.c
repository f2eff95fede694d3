/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A generic protobuf library gives values; we need the bytes behind them: an Operation is sent back as it came,
 * and an id is judged with the NUL that a C string would hide. So this walker is ours. It reads what a peer
 * sent, hence: every length is compared with what is left before it is used, a varint has at most ten bytes and
 * 64 bits, groups (deprecated since proto2, and the one construct that nests without a length) are refused.
 */
#include "command_wire.h"

#define VARINT_BYTES_MAX 10

static int take_varint(struct span *rest, uint64_t *ret) {
        uint64_t value = 0;

        for (size_t i = 0; i < VARINT_BYTES_MAX && i < rest->size; i++) {
                uint8_t byte = rest->data[i];

                if (i == VARINT_BYTES_MAX - 1 && byte > 1)
                        return -EBADMSG;
                value |= (uint64_t)(byte & 0x7f) << (7 * i);
                if (!(byte & 0x80)) {
                        rest->data += i + 1;
                        rest->size -= i + 1;
                        *ret = value;
                        return 0;
                }
        }
        return -EBADMSG;
}

static int take_bytes(struct span *rest, uint64_t size, struct span *ret) {
        if (size > rest->size)
                return -EBADMSG;
        *ret = (struct span){ rest->data, (size_t)size };
        rest->data += size;
        rest->size -= (size_t)size;
        return 0;
}

static int take_content(struct span *rest, uint32_t type, struct command_wire_field *field) {
        struct span fixed;
        uint64_t size;
        int r;

        switch (type) {
        case COMMAND_WIRE_VARINT:
                return take_varint(rest, &field->varint);
        case COMMAND_WIRE_FIXED64:
                return take_bytes(rest, 8, &fixed);
        case COMMAND_WIRE_BYTES:
                r = take_varint(rest, &size);
                if (r < 0)
                        return r;
                return take_bytes(rest, size, &field->bytes);
        case COMMAND_WIRE_FIXED32:
                return take_bytes(rest, 4, &fixed);
        }
        return -EBADMSG; /* groups, and the numbers that mean nothing */
}

int command_wire_next(struct span *rest, struct command_wire_field *ret) {
        struct command_wire_field field = {};
        const uint8_t *start = rest->data;
        struct span left = *rest;
        uint64_t tag;
        int r;

        if (!left.size)
                return COMMAND_WIRE_END;
        r = take_varint(&left, &tag);
        if (r < 0)
                return r;
        if (tag > UINT32_MAX || tag >> 3 == 0)
                return -EBADMSG;
        r = take_content(&left, (uint32_t)tag & 7, &field);
        if (r < 0)
                return r;
        field.number = (uint32_t)tag >> 3;
        field.type = (enum command_wire_type)(tag & 7);
        field.raw = (struct span){ start, (size_t)(left.data - start) };
        *rest = left;
        *ret = field;
        return COMMAND_WIRE_FIELD;
}

static size_t write_varint(uint8_t *target, uint64_t value) {
        size_t size = 0;

        while (value >= 0x80) {
                target[size++] = (uint8_t)(value | 0x80);
                value >>= 7;
        }
        target[size++] = (uint8_t)value;
        return size;
}

int command_wire_put_bytes(struct buffer *out, uint32_t number, const void *bytes, size_t size) {
        uint8_t head[2 * VARINT_BYTES_MAX];
        size_t head_size, before = out->size;
        int r;

        head_size = write_varint(head, (uint64_t)number << 3 | COMMAND_WIRE_BYTES);
        head_size += write_varint(head + head_size, size);
        r = buffer_append(out, head, head_size);
        if (r < 0)
                return r;
        r = buffer_append(out, bytes, size);
        if (r < 0)
                out->size = before;
        return r;
}

int command_wire_put_varint(struct buffer *out, uint32_t number, uint64_t value) {
        uint8_t field[2 * VARINT_BYTES_MAX];
        size_t size;

        size = write_varint(field, (uint64_t)number << 3 | COMMAND_WIRE_VARINT);
        size += write_varint(field + size, value);
        return buffer_append(out, field, size);
}
