/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * http: HTTP/1.1 requests, one libcurl multi handle on the loop
 *
 * A request is a slot: the owner frees it; freeing cancels and no callback comes any more. Completions are
 * delivered by a deferred source, one per turn, never from inside libcurl. Inside libcurl's callbacks only
 * bytes are copied and flags set. No proxy from the environment, no redirect followed, only http and https.
 *
 * The process must ignore SIGPIPE: OpenSSL writes without MSG_NOSIGNAL, and libcurl is told to leave signals alone.
 */
#include "base.h"

struct event;
struct resolve;
struct http;
struct http_request;

enum http_outcome {
        HTTP_ANSWERED,     /* a complete response: look at `status` */
        HTTP_UNREACHABLE,  /* no connection, or it broke before a complete response; also TLS failures */
        HTTP_TIMEOUT,
        HTTP_TOO_LARGE,    /* the body passed body_max, or the headers HTTP_HEADERS_MAX */
};

#define HTTP_HEADERS_MAX (32 * 1024)
#define HTTP_HOST_CONNECTIONS_MAX 8 /* per scheme, host and port; further requests wait, their time runs meanwhile */

struct http_result { /* valid during the callback, also when the request is freed in it */
        enum http_outcome outcome;
        int status;                /* 0 unless HTTP_ANSWERED */
        struct span body;          /* NUL follows, not counted; empty unless HTTP_ANSWERED */
        const char *error;         /* for people: "Connection refused"; "" when answered */
};

typedef int (*http_handler)(const struct http_result *result, void *userdata);

struct http_options { /* all copied */
        const char *url;           /* http or https; a host name of [A-Za-z0-9._-] or a numeric address; no user */
        const char *method;        /* "GET" or "POST" (with an empty body, Content-Length: 0) */
        const char *bearer_token;  /* NULL: none */
        const char *header;        /* one further "Name: value", NULL: none */
        uint64_t timeout_usec;     /* of everything: waiting for a connection, name, TCP, TLS, answer */
        size_t body_max;
        const char *ca_file, *certificate_file, *private_key_file; /* https; NULL: the system's, none, none */
};

int http_new(struct event *event, struct resolve *resolve, struct http **ret);
/* All requests must have been freed before. */
struct http *http_free(struct http *http);
DEFINE_CLEANUP(struct http *, http_free)

/* http_request_start() - the handler is called once, on the loop, never from within this call. A request on a
 * kept-alive connection that the server closed before any byte of an answer is sent once more on a new one (by
 * libcurl), so use it for idempotent requests only. -EINVAL: a URL, method, token or header that is not acceptable;
 * -ENOMEM; -EAGAIN: too many different names are being resolved. */
int http_request_start(struct http *http, const struct http_options *options, http_handler handler,
                       void *userdata, struct http_request **ret);
/* http_request_free() - at any time, also in the request's own handler or in another's. */
struct http_request *http_request_free(struct http_request *request);
DEFINE_CLEANUP(struct http_request *, http_request_free)
