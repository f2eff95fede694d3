/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * token: a bearer token from a file (read again when it changes) or from a GCE-style metadata service
 *
 * The token is cut of white space at its ends and must be 1 to 16384 bytes of visible ASCII. It never goes to
 * a log. The metadata service is asked again at half of a token's life, with back-off, on the loop.
 */
#include "base.h"

struct event;
struct http;
struct token;

#define TOKEN_BYTES_MAX 16384

struct token_options {
        const char *file; /* path; at most one of file and url */
        const char *url;  /* http://169.254.169.254/…: GET with Metadata-Flavor: Google, JSON access_token, expires_in */
};

/* token_new() - makes no I/O for a file before token_get(); asks a url at once. */
int token_new(struct event *event, struct http *http, const struct token_options *options, struct token **ret);
struct token *token_free(struct token *token);
DEFINE_CLEANUP(struct token *, token_free)

/* token_get() - the token now, valid until the next call on this object. NULL token: 0 and *ret NULL (no token is
 * configured). -EAGAIN: not there yet (url); -errno of the file; -EINVAL: unusable content. token_error() tells
 * the last failure for people, "" when fine. */
int token_get(struct token *token, const char **ret);
const char *token_error(const struct token *token);

/* token_redact() - asterisks over each copy of the token in `text`, and over each piece that begins like it (8 bytes and
 * more: the text may have been cut). For what a peer wrote: some send back what they did not like. NULL: nothing. */
void token_redact(const struct token *token, char *text);

/* token_refresh() - after UNAUTHENTICATED or SIGHUP: read or ask again at the next use. */
void token_refresh(struct token *token);
