/* SPDX-License-Identifier: Apache-2.0 */
/*
 * h2_dial: a name, its addresses, the first that answers
 *
 * The way of RFC 8305 ("happy eyeballs") without its DNS half: getaddrinfo(3) answers for both families at once.
 * The families alternate, so that eight dead IPv6 addresses do not hold up IPv4 for two seconds. Addresses that
 * were started stay in the race; the first to connect wins and the others are closed.
 *
 * Trap: connect(2) to an address of this host may succeed or fail at once. Nothing is told from within
 * h2_dial_start(): the look-up's callback always comes first, and that is on the loop.
 */
#include "h2_internal.h"
#include "event.h"
#include "resolve.h"

#include <netdb.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>

#define STAGGER_USEC (250 * USEC_PER_MSEC) /* RFC 8305 section 8 */
#define KEEPALIVE_IDLE_SEC 20
#define KEEPALIVE_INTERVAL_SEC 5
#define KEEPALIVE_PROBES 3
#define USER_TIMEOUT_MSEC 20000

struct attempt {
        struct h2_dial *dial;
        int fd; /* -1: not started, or failed */
        struct event_source *source;
};

struct h2_dial {
        struct event *event;
        struct resolve_query *query;
        struct event_source *stagger;
        unsigned rotation;
        struct resolve_address addresses[RESOLVE_ADDRESSES_MAX];
        struct attempt attempts[RESOLVE_ADDRESSES_MAX];
        size_t count, next;
        char host[256];
        char error[320];
        int last_error;
        h2_dial_handler handler;
        void *userdata;
};

void h2_address_to_text(const struct sockaddr *address, socklen_t size, char text[H2_ADDRESS_TEXT_MAX]) {
        char host[INET6_ADDRSTRLEN + 16], port[8];

        if (getnameinfo(address, size, host, sizeof(host), port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) != 0)
                base_text_copy(text, H2_ADDRESS_TEXT_MAX, "unknown address");
        else
                snprintf(text, H2_ADDRESS_TEXT_MAX, address->sa_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}

/* ---- one address ---------------------------------------------------------------------------------- */

static void attempt_close(struct attempt *attempt) {
        attempt->source = event_source_free(attempt->source);
        base_close_pointer(&attempt->fd);
        attempt->fd = -1;
}

static void dial_note_error(struct h2_dial *dial, const struct resolve_address *address, int error) {
        char text[H2_ADDRESS_TEXT_MAX];
        size_t used = strlen(dial->error);

        dial->last_error = error;
        h2_address_to_text((const struct sockaddr *)&address->address, address->size, text);
        snprintf(dial->error + used, sizeof(dial->error) - used, "%s%s: %s", used > 0 ? "; " : "", text,
                 strerror(-error));
}

static int set_option(int fd, int level, int name, int value) {
        return setsockopt(fd, level, name, &value, sizeof(value)) < 0 ? -errno : 0;
}

/* A peer whose host is gone is noticed within about 35 s when idle (keepalive) and 20 s when we have written
 * (TCP_USER_TIMEOUT); a peer that is frozen only by who waits for its heartbeats. */
static int socket_set_options(int fd) {
        int r = set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
        if (r < 0)
                return r;
        r = set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
        if (r < 0)
                return r;
        r = set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_SEC);
        if (r < 0)
                return r;
        r = set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_SEC);
        if (r < 0)
                return r;
        r = set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES);
        if (r < 0)
                return r;
        return set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, USER_TIMEOUT_MSEC);
}

static int on_connectable(uint32_t epoll_events, void *userdata);

static int attempt_start(struct attempt *attempt, const struct resolve_address *address) {
        const struct sockaddr *sockaddr = (const struct sockaddr *)&address->address;

        attempt->fd = socket(sockaddr->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (attempt->fd < 0)
                return -errno;
        int r = socket_set_options(attempt->fd);
        if (r < 0)
                return r;
        /* Also a connect that succeeded at once is learned from EPOLLOUT: one way for both. */
        if (connect(attempt->fd, sockaddr, address->size) < 0 && errno != EINPROGRESS)
                return -errno;
        return event_add_io(attempt->dial->event, "h2-connect", attempt->fd, EPOLLOUT, on_connectable, attempt,
                            &attempt->source);
}

/* ---- all of them ---------------------------------------------------------------------------------- */

static int dial_fail(struct h2_dial *dial, int error, const char *text) {
        return dial->handler(error, text, dial->userdata);
}

static bool dial_is_racing(const struct h2_dial *dial) {
        for (size_t i = 0; i < dial->next; i++)
                if (dial->attempts[i].fd >= 0)
                        return true;
        return false;
}

static int dial_arm_stagger(struct h2_dial *dial) {
        bool more = dial->next < dial->count;

        return event_timer_set(dial->stagger,
                               more ? base_usec_add(event_now_usec(dial->event), STAGGER_USEC) : USEC_NEVER);
}

/* dial_go_on() - start addresses until one is under way; tell when none is left. */
static int dial_go_on(struct h2_dial *dial) {
        while (dial->next < dial->count) {
                size_t index = dial->next++;
                int r = attempt_start(&dial->attempts[index], &dial->addresses[index]);
                if (r >= 0)
                        r = dial_arm_stagger(dial);
                if (r >= 0)
                        return 0;
                attempt_close(&dial->attempts[index]);
                dial_note_error(dial, &dial->addresses[index], r);
        }
        return dial_is_racing(dial) ? 0 : dial_fail(dial, dial->last_error, dial->error);
}

static int on_stagger(void *userdata) {
        struct h2_dial *dial = userdata;

        return dial->next < dial->count ? dial_go_on(dial) : 0;
}

static int on_connectable(uint32_t epoll_events, void *userdata) {
        struct attempt *attempt = userdata;
        struct h2_dial *dial = attempt->dial;
        size_t index = (size_t)(attempt - dial->attempts);
        int error = 0;
        socklen_t size = sizeof(error);

        (void)epoll_events;
        if (getsockopt(attempt->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
                error = errno;
        if (error == 0) {
                attempt->source = event_source_free(attempt->source);
                return dial->handler(TAKE_FD(attempt->fd), "", dial->userdata);
        }
        attempt_close(attempt);
        dial_note_error(dial, &dial->addresses[index], -error);
        return dial_go_on(dial);
}

/* order_addresses() - alternate the families, beginning with the first one's, then turn by `rotation`. */
static void order_addresses(struct h2_dial *dial, const struct resolve_address *addresses, size_t count) {
        struct resolve_address ordered[RESOLVE_ADDRESSES_MAX];
        bool taken[RESOLVE_ADDRESSES_MAX] = {false};
        sa_family_t family = addresses[0].address.ss_family;

        for (size_t n = 0; n < count; n++) {
                size_t best = count;
                for (size_t i = 0; i < count; i++)
                        if (!taken[i] && (best == count || (addresses[i].address.ss_family == family &&
                                                            addresses[best].address.ss_family != family)))
                                best = i;
                taken[best] = true;
                ordered[n] = addresses[best];
                family = ordered[n].address.ss_family == AF_INET ? AF_INET6 : AF_INET;
        }
        for (size_t n = 0; n < count; n++)
                dial->addresses[n] = ordered[(n + dial->rotation) % count];
        dial->count = count;
}

static int on_resolved(int result, const struct resolve_address *addresses, size_t count, void *userdata) {
        struct h2_dial *dial = userdata;

        if (result < 0) {
                snprintf(dial->error, sizeof(dial->error), "name %s: %s", dial->host,
                         result == -ENXIO    ? "no such name, or it has no address"
                         : result == -EAGAIN ? "the name service does not answer"
                                             : strerror(-result));
                return dial_fail(dial, result, dial->error);
        }
        order_addresses(dial, addresses, count);
        return dial_go_on(dial);
}

int h2_dial_start(struct event *event, struct resolve *resolve, const char *host, uint16_t port, unsigned rotation,
                  h2_dial_handler handler, void *userdata, struct h2_dial **ret) {
        _cleanup_(h2_dial_free_pointer) struct h2_dial *dial = calloc(1, sizeof(*dial));
        if (!dial)
                return -ENOMEM;
        dial->event = event;
        dial->rotation = rotation;
        dial->handler = handler;
        dial->userdata = userdata;
        base_text_copy(dial->host, sizeof(dial->host), host);
        for (size_t i = 0; i < RESOLVE_ADDRESSES_MAX; i++)
                dial->attempts[i] = (struct attempt){.dial = dial, .fd = -1};
        int r = event_add_timer(event, "h2-stagger", on_stagger, dial, &dial->stagger);
        if (r < 0)
                return r;
        r = resolve_start(resolve, host, port, on_resolved, dial, &dial->query);
        if (r < 0)
                return r;
        *ret = TAKE(dial);
        return 0;
}

struct h2_dial *h2_dial_free(struct h2_dial *dial) {
        if (!dial)
                return NULL;
        resolve_cancel(dial->query);
        event_source_free(dial->stagger);
        for (size_t i = 0; i < RESOLVE_ADDRESSES_MAX; i++)
                if (dial->attempts[i].dial)
                        attempt_close(&dial->attempts[i]);
        free(dial);
        return NULL;
}

const char *h2_dial_stage(const struct h2_dial *dial) {
        return dial->count == 0 ? "resolving the name" : "connecting";
}
