/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * jsonread: read a peer's JSON strictly and within bounds
 *
 * json-c by itself takes half a document, what follows a document, a NUL as its end, and 32 levels. Here a text is one
 * whole object (RFC 8259) in UTF-8 or it is nothing. A field is there with the right type, absent (JSON null counts
 * as absent), or of the wrong type; the callers must not mistake the third for the second.
 */
#include "base.h"

struct json_object;

#define JSONREAD_DEPTH_MAX 8

/* jsonread_object() - the object that is all of `text`; release with jsonread_free(). -EBADMSG: it is not one;
 * -ENOMEM. Memory is some hundred times the size of a hostile text, so bound the text. */
int jsonread_object(struct span text, struct json_object **ret);
struct json_object *jsonread_free(struct json_object *object);
DEFINE_CLEANUP(struct json_object *, jsonread_free)

/* jsonread_text() and the others - the field `name`; of two with the same name the last counts. -ENOENT: absent or
 * null; -EBADMSG: of another type (text with a NUL inside, a number that is no int64). The span lives as long as
 * the object; a NUL follows it. */
int jsonread_text(struct json_object *object, const char *name, struct span *ret);
int jsonread_bool(struct json_object *object, const char *name, bool *ret);
int jsonread_int64(struct json_object *object, const char *name, int64_t *ret);
