/* SPDX-License-Identifier: Apache-2.0 */
/*
 * resolve: names to addresses without blocking the loop
 *
 * getaddrinfo(3) blocks for as long as the name servers keep it waiting, so it runs on a worker thread, made
 * when the first name comes along; numeric hosts never need it. A look-up cannot be broken off: a query that is
 * cancelled leaves its look-up behind. So look-ups are shared by host: while one is under way (or waits behind
 * another), further queries for the same host join it. A name server that hangs for minutes therefore costs one
 * look-up per host and not one per reconnect.
 *
 * Who owns what: a query belongs to its caller and sits in one list: of its look-up, or of the numeric queries
 * that wait for the deferred source, or (called back already) in none. A look-up belongs to `resolve`; its
 * `host` and `result` are the thread's until done.
 */
#include "resolve.h"
#include "event.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/queue.h>

#define HOST_MAX 255
#define LOOKUPS_MAX 64 /* different hosts at once */

TAILQ_HEAD(query_list, resolve_query);

struct lookup {
        struct resolve *resolve;
        char host[HOST_MAX + 1];
        struct addrinfo *result;
        struct query_list queries;
        TAILQ_ENTRY(lookup) entry;
};

struct resolve_query {
        struct query_list *list; /* where it waits; NULL: has called back */
        TAILQ_ENTRY(resolve_query) entry;
        struct resolve_address numeric;
        in_port_t port; /* network order */
        resolve_handler handler;
        void *userdata;
};

struct resolve {
        struct event *event;
        struct event_worker *worker; /* NULL until a name has to be looked up */
        struct event_source *deferred;
        struct query_list numeric;
        TAILQ_HEAD(, lookup) lookups;
        size_t lookup_count;
};

static void query_enlist(struct resolve_query *query, struct query_list *list) {
        query->list = list;
        TAILQ_INSERT_TAIL(list, query, entry);
}

static void query_delist(struct resolve_query *query) {
        if (query->list)
                TAILQ_REMOVE(query->list, query, entry);
        query->list = NULL;
}

/* ---- numeric hosts -------------------------------------------------------------------------------- */

static bool numeric_parse(const char *host, in_port_t port, struct resolve_address *ret) {
        struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = port};
        struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = port};
        struct resolve_address address = {0};

        if (inet_pton(AF_INET, host, &in.sin_addr) == 1) {
                memcpy(&address.address, &in, sizeof(in));
                address.size = sizeof(in);
        } else if (inet_pton(AF_INET6, host, &in6.sin6_addr) == 1) {
                memcpy(&address.address, &in6, sizeof(in6));
                address.size = sizeof(in6);
        } else
                return false;
        *ret = address;
        return true;
}

/* A handler may cancel any query, also those that wait behind it: so take from the head until none is left. */
static int on_deferred(void *userdata) {
        struct resolve *resolve = userdata;
        struct query_list ready = TAILQ_HEAD_INITIALIZER(ready);
        struct resolve_query *query;
        int r = 0;

        while ((query = TAILQ_FIRST(&resolve->numeric))) {
                query_delist(query);
                query_enlist(query, &ready);
        }
        while (r >= 0 && (query = TAILQ_FIRST(&ready))) {
                struct resolve_address address = query->numeric;
                query_delist(query);
                r = query->handler(0, &address, 1, query->userdata);
        }
        while ((query = TAILQ_FIRST(&ready)))
                query_delist(query);
        return r;
}

/* ---- names ---------------------------------------------------------------------------------------- */

static int eai_to_errno(int eai) {
        switch (eai) {
        case 0:
                return 0;
        case EAI_NONAME:
#ifdef EAI_NODATA
        case EAI_NODATA:
#endif
#ifdef EAI_ADDRFAMILY
        case EAI_ADDRFAMILY:
#endif
                return -ENXIO;
        case EAI_AGAIN:
                return -EAGAIN;
        case EAI_MEMORY:
                return -ENOMEM;
        case EAI_SYSTEM:
                return errno > 0 ? -errno : -EIO;
        default:
                return -EIO;
        }
}

/* On the thread. No AI_ADDRCONFIG: an address of a family that this host lacks fails at once in connect(2), while
 * the flag hides ::1 and 127.0.0.1 on a host whose only interface is the loopback. */
static int lookup_run(void *userdata) {
        static const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
        struct lookup *lookup = userdata;

        return eai_to_errno(getaddrinfo(lookup->host, NULL, &hints, &lookup->result));
}

static struct lookup *lookup_free(struct lookup *lookup) {
        if (!lookup)
                return NULL;
        if (lookup->result)
                freeaddrinfo(lookup->result);
        free(lookup);
        return NULL;
}

static void address_set_port(struct resolve_address *address, in_port_t port) {
        if (address->address.ss_family == AF_INET)
                ((struct sockaddr_in *)&address->address)->sin_port = port;
        else
                ((struct sockaddr_in6 *)&address->address)->sin6_port = port;
}

static size_t lookup_addresses(const struct lookup *lookup, struct resolve_address *addresses) {
        size_t count = 0;

        for (const struct addrinfo *i = lookup->result; i && count < RESOLVE_ADDRESSES_MAX; i = i->ai_next) {
                if (i->ai_family != AF_INET && i->ai_family != AF_INET6)
                        continue;
                addresses[count] = (struct resolve_address){.size = i->ai_addrlen};
                memcpy(&addresses[count].address, i->ai_addr, i->ai_addrlen);
                count++;
        }
        return count;
}

static int lookup_answer(struct lookup *lookup, int result) {
        struct resolve_address addresses[RESOLVE_ADDRESSES_MAX];
        size_t count = result == 0 ? lookup_addresses(lookup, addresses) : 0;
        struct resolve_query *query;
        int r = 0;

        if (result == 0 && count == 0)
                result = -ENXIO;
        while (r >= 0 && (query = TAILQ_FIRST(&lookup->queries))) {
                query_delist(query);
                for (size_t i = 0; i < count; i++)
                        address_set_port(&addresses[i], query->port);
                r = query->handler(result, count > 0 ? addresses : NULL, count, query->userdata);
        }
        while ((query = TAILQ_FIRST(&lookup->queries)))
                query_delist(query);
        return r;
}

static int lookup_done(int result, void *userdata) {
        struct lookup *lookup = userdata;

        /* Out of the list before any handler runs: a query started there wants a fresh look-up. */
        TAILQ_REMOVE(&lookup->resolve->lookups, lookup, entry);
        lookup->resolve->lookup_count--;
        int r = lookup_answer(lookup, result);
        lookup_free(lookup);
        return r;
}

static struct lookup *lookup_find(struct resolve *resolve, const char *host) {
        struct lookup *lookup;

        for (lookup = TAILQ_FIRST(&resolve->lookups); lookup; lookup = TAILQ_NEXT(lookup, entry))
                if (strcmp(lookup->host, host) == 0)
                        return lookup;
        return NULL;
}

static int lookup_start(struct resolve *resolve, const char *host, struct lookup **ret) {
        if (resolve->lookup_count >= LOOKUPS_MAX)
                return -EAGAIN;
        if (!resolve->worker) {
                int r = event_worker_new(resolve->event, "resolve", &resolve->worker);
                if (r < 0)
                        return r;
        }
        struct lookup *lookup = calloc(1, sizeof(*lookup));
        if (!lookup)
                return -ENOMEM;
        lookup->resolve = resolve;
        TAILQ_INIT(&lookup->queries);
        base_text_copy(lookup->host, sizeof(lookup->host), host);
        int r = event_worker_run(resolve->worker, lookup_run, lookup_done, lookup);
        if (r < 0) {
                lookup_free(lookup);
                return r;
        }
        TAILQ_INSERT_TAIL(&resolve->lookups, lookup, entry);
        resolve->lookup_count++;
        *ret = lookup;
        return 0;
}

/* ---- the module ----------------------------------------------------------------------------------- */

int resolve_new(struct event *event, struct resolve **ret) {
        _cleanup_(resolve_free_pointer) struct resolve *resolve = calloc(1, sizeof(*resolve));
        if (!resolve)
                return -ENOMEM;
        resolve->event = event;
        TAILQ_INIT(&resolve->numeric);
        TAILQ_INIT(&resolve->lookups);
        int r = event_add_deferred(event, "resolve", on_deferred, resolve, &resolve->deferred);
        if (r < 0)
                return r;
        *ret = TAKE(resolve);
        return 0;
}

struct resolve *resolve_free(struct resolve *resolve) {
        struct lookup *lookup;
        struct resolve_query *query;

        if (!resolve)
                return NULL;
        /* Waits for the look-up that runs; after it no `done` comes, so the look-ups are ours to free. */
        event_worker_free(resolve->worker);
        while ((lookup = TAILQ_FIRST(&resolve->lookups))) {
                TAILQ_REMOVE(&resolve->lookups, lookup, entry);
                while ((query = TAILQ_FIRST(&lookup->queries)))
                        query_delist(query);
                lookup_free(lookup);
        }
        while ((query = TAILQ_FIRST(&resolve->numeric)))
                query_delist(query);
        event_source_free(resolve->deferred);
        free(resolve);
        return NULL;
}

static int query_place(struct resolve *resolve, struct resolve_query *query, const char *host) {
        if (numeric_parse(host, query->port, &query->numeric)) {
                query_enlist(query, &resolve->numeric);
                return event_deferred_schedule(resolve->deferred);
        }
        struct lookup *lookup = lookup_find(resolve, host);
        if (!lookup) {
                int r = lookup_start(resolve, host, &lookup);
                if (r < 0)
                        return r;
        }
        query_enlist(query, &lookup->queries);
        return 0;
}

int resolve_start(struct resolve *resolve, const char *host, uint16_t port, resolve_handler handler, void *userdata,
                  struct resolve_query **ret) {
        if (!*host || strlen(host) > HOST_MAX)
                return -EINVAL;
        struct resolve_query *query = calloc(1, sizeof(*query));
        if (!query)
                return -ENOMEM;
        query->port = htons(port);
        query->handler = handler;
        query->userdata = userdata;
        int r = query_place(resolve, query, host);
        if (r < 0) {
                resolve_cancel(query);
                return r;
        }
        *ret = query;
        return 0;
}

struct resolve_query *resolve_cancel(struct resolve_query *query) {
        if (!query)
                return NULL;
        query_delist(query);
        free(query);
        return NULL;
}
