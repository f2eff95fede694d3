/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * resolve: names to addresses without blocking the loop
 *
 * getaddrinfo(3) on one worker thread. Numeric hosts are answered without the thread. Used by grpc and, as
 * CURLOPT_RESOLVE entries, by http: libcurl's own resolver thread per request is not used.
 */
#include "base.h"
#include <netinet/in.h>
#include <sys/socket.h>

struct event;
struct resolve;
struct resolve_query;

#define RESOLVE_ADDRESSES_MAX 16

struct resolve_address {
        struct sockaddr_storage address;
        socklen_t size;
};

/* Called once, on the loop. `result` 0: `count` (1 to RESOLVE_ADDRESSES_MAX) addresses with the port set, in
 * getaddrinfo's order, valid during the call. Negative: -ENXIO no such name, -EAGAIN try later, -errno. */
typedef int (*resolve_handler)(int result, const struct resolve_address *addresses, size_t count, void *userdata);

int resolve_new(struct event *event, struct resolve **ret);
struct resolve *resolve_free(struct resolve *resolve);
DEFINE_CLEANUP(struct resolve *, resolve_free)

/* resolve_start() - the handler is never called from within this call. resolve_cancel() - no callback any more;
 * takes NULL, returns NULL. A query that has called back is freed by resolve_cancel() too (owner's slot). */
int resolve_start(struct resolve *resolve, const char *host, uint16_t port, resolve_handler handler,
                  void *userdata, struct resolve_query **ret);
struct resolve_query *resolve_cancel(struct resolve_query *query);
