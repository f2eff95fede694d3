/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * bus_internal: what bus.c (socket, connections, their bounds) and bus_methods.c (what is said on them) share; nobody
 * else includes it
 */
#include "bus.h"
#include "event.h"

#include <sys/queue.h>
#include <sys/types.h>
#include <systemd/sd-bus.h>

/* A method call whose answer comes later. */
struct bus_call {
        struct bus_connection *connection; /* NULL: the peer has gone */
        sd_bus_message *message;
        bool in_method; /* its handler has not returned yet */
};

struct bus_connection {
        struct bus *bus;
        sd_bus *peer;
        struct event_source *io, *timer;
        bool privileged;
        uid_t uid;               /* the peer's, at connect(2) */
        struct bus_call *call;   /* a method that is being answered: nothing more is read meanwhile; NULL: none */
        uint64_t active_usec;  /* last message from it */
        uint64_t stalled_usec; /* since when replies wait for it; USEC_NEVER: none do */
        TAILQ_ENTRY(bus_connection) entry;
};

struct bus {
        struct event *event;
        struct bus_handlers handlers;
        void *userdata;
        char *path;
        int listen_fd;
        bool bound;
        struct event_source *listen, *listen_again;
        bool has_group;
        gid_t group;
        uint64_t hello_count;
        uint64_t rest_until_usec; /* unprivileged peers wait until then */
        size_t connection_count;
        TAILQ_HEAD(, bus_connection) connections;
};

extern const sd_bus_vtable bus_agent_vtable[], bus_hello_vtable[]; /* userdata: the connection */

/* bus_call_detach() - the connection goes: whoever is at work on the answer may go on, nobody gets it. */
void bus_call_detach(struct bus_call *call);

/* bus_connection_resume() - its call has been answered: go on reading. May drop the connection. */
void bus_connection_resume(struct bus_connection *connection);
