/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * command_wire: a bounded walker over protobuf's wire format; internal to command
 *
 * Source: protobuf.dev/programming-guides/encoding. Nothing is copied and nothing allocated: a field is a view
 * into the caller's bytes.
 */
#include "base.h"

enum command_wire_type { /* the numbers are the wire's; 3 and 4 (groups) are refused */
        COMMAND_WIRE_VARINT = 0,
        COMMAND_WIRE_FIXED64 = 1,
        COMMAND_WIRE_BYTES = 2,
        COMMAND_WIRE_FIXED32 = 5,
};

struct command_wire_field {
        uint32_t number;
        enum command_wire_type type;
        uint64_t varint;   /* VARINT */
        struct span bytes; /* BYTES: the content */
        struct span raw;   /* tag and content, as they stand in the message */
};

enum command_wire_answer {
        COMMAND_WIRE_END = 0,
        COMMAND_WIRE_FIELD = 1,
};

/* command_wire_next() - take the next field off `rest`. enum command_wire_answer; -EBADMSG: cut short, a group,
 * field number 0, or a varint of more than 64 bits. */
int command_wire_next(struct span *rest, struct command_wire_field *ret);

/* command_wire_put_bytes(), command_wire_put_varint() - append one field. -ENOMEM, -ENOBUFS. */
int command_wire_put_bytes(struct buffer *out, uint32_t number, const void *bytes, size_t size);
int command_wire_put_varint(struct buffer *out, uint32_t number, uint64_t value);
