/* SPDX-License-Identifier: Apache-2.0 */
/*
 * jsonread: read a peer's JSON strictly and within bounds
 *
 * A thin layer over json-c's tokener (0.14 to 0.18). Trap: json_tokener_parse_ex() takes a length but still ends at a
 * NUL byte, so bytes with one are refused first; and it reports `json_tokener_continue` for half a document, which must
 * not pass for success. Another trap: before 0.17 it does not check the allocation of a member's name, and a process
 * without memory ends there by SIGSEGV. So a document is parsed only when there is plainly room for what it becomes.
 */
#include "jsonread.h"

#include <json-c/json.h>

#define ROOM_MIN (16 * 1024) /* the tokener and its stack */
#define ROOM_PER_BYTE 64     /* {"a":1,"b":1,…}: six bytes become a name, a value, and a table that doubles */

static bool has_room(size_t size) {
        volatile char *room = malloc(ROOM_MIN + size * ROOM_PER_BYTE);

        if (!room)
                return false;
        room[0] = 0; /* lest the compiler leaves out both */
        free((void *)room);
        return true;
}

int jsonread_object(struct span text, struct json_object **ret) {
        if (text.size == 0 || text.size > INT_MAX || memchr(text.data, '\0', text.size))
                return -EBADMSG;
        if (!has_room(text.size))
                return -ENOMEM;
        struct json_tokener *tokener = json_tokener_new_ex(JSONREAD_DEPTH_MAX);
        if (!tokener)
                return -ENOMEM;
        json_tokener_set_flags(tokener, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
        _cleanup_(jsonread_free_pointer) struct json_object *object =
                json_tokener_parse_ex(tokener, (const char *)text.data, (int)text.size);
        bool whole = json_tokener_get_error(tokener) == json_tokener_success &&
                     json_tokener_get_parse_end(tokener) == text.size;
        json_tokener_free(tokener);
        if (!whole || !json_object_is_type(object, json_type_object))
                return -EBADMSG;
        *ret = TAKE(object);
        return 0;
}

struct json_object *jsonread_free(struct json_object *object) {
        json_object_put(object);
        return NULL;
}

static int find(struct json_object *object, const char *name, enum json_type type, struct json_object **ret) {
        struct json_object *field;

        if (!json_object_object_get_ex(object, name, &field) || !field)
                return -ENOENT;
        if (!json_object_is_type(field, type))
                return -EBADMSG;
        *ret = field;
        return 0;
}

int jsonread_text(struct json_object *object, const char *name, struct span *ret) {
        struct json_object *field;
        int r = find(object, name, json_type_string, &field);
        if (r < 0)
                return r;
        struct span text = {.data = (const uint8_t *)json_object_get_string(field),
                            .size = (size_t)json_object_get_string_len(field)};
        if (memchr(text.data, '\0', text.size)) /* written as \u0000 */
                return -EBADMSG;
        *ret = text;
        return 0;
}

int jsonread_bool(struct json_object *object, const char *name, bool *ret) {
        struct json_object *field;
        int r = find(object, name, json_type_boolean, &field);
        if (r < 0)
                return r;
        *ret = json_object_get_boolean(field);
        return 0;
}

int jsonread_int64(struct json_object *object, const char *name, int64_t *ret) {
        struct json_object *field;
        int r = find(object, name, json_type_int, &field);
        if (r < 0)
                return r;
        errno = 0;
        int64_t number = json_object_get_int64(field);
        if (errno != 0 || number == INT64_MAX || number == INT64_MIN) /* saturated */
                return -EBADMSG;
        *ret = number;
        return 0;
}
