/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * http: HTTP/1.1 requests, one libcurl multi handle on the loop
 *
 * A request is a slot: the owner frees it; freeing cancels and no callback comes any more. Completions are
 * delivered by a deferred source, one per turn, never from inside libcurl. Inside libcurl's callbacks only
 * bytes are copied and flags set. No proxy from the environment, no redirect followed, only http and https.
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
        HTTP_TOO_LARGE,    /* the body passed body_max */
};

struct http_result { /* valid during the callback */
        enum http_outcome outcome;
        int status;                /* 0 unless HTTP_ANSWERED */
        struct span body;          /* NUL follows, not counted */
        const char *error;         /* for people: "Connection refused"; "" when answered */
};

typedef int (*http_handler)(const struct http_result *result, void *userdata);

struct http_options { /* all copied */
        const char *url;
        const char *method;        /* "GET" or "POST" (with an empty body, Content-Length: 0) */
        const char *bearer_token;  /* NULL: none */
        const char *header;        /* one further "Name: value", NULL: none */
        uint64_t timeout_usec;
        size_t body_max;
        const char *ca_file, *certificate_file, *private_key_file; /* https; NULL: the system's, none, none */
};

int http_new(struct event *event, struct resolve *resolve, struct http **ret);
/* All requests must have been freed before. */
struct http *http_free(struct http *http);
DEFINE_CLEANUP(struct http *, http_free)

int http_request_start(struct http *http, const struct http_options *options, http_handler handler,
                       void *userdata, struct http_request **ret);
struct http_request *http_request_free(struct http_request *request);
DEFINE_CLEANUP(struct http_request *, http_request_free)
