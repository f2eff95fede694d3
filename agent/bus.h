/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * bus: the local interface: sd-bus without a broker on <runtime_directory>/bus
 *
 * Object /org/sparkcancel/Agent1, interface org.sparkcancel.Agent1. Reading is for everyone (socket mode 0666);
 * changing calls need root, the agent's own user or group spark-cancel, by peer credentials. At most 16
 * connections. bus knows nothing of the agent: it calls the table of functions that it was given.
 */
#include "base.h"

struct event;
struct bus;

struct bus_operation { /* one row of List and Show */
        const char *operation_id, *job_id, *state, *outcome, *driver_id, *driver_state, *message;
        int32_t driver_pid;
        uint64_t received_real_usec, deadline_real_usec, accepted_real_usec, ended_real_usec;
        uint32_t kill_requests;
};

struct bus_status {
        const char *version, *cluster_id, *node, *endpoint, *summary; /* summary: the STATUS= line */
        bool connected;
        uint64_t open, searching, quarantined, reports_waiting;
        int64_t revision;
};

struct bus_handlers {
        void (*status)(struct bus_status *ret, void *userdata);
        /* Visit operations; `all`: DONE ones too. The visitor returns negative to stop. */
        int (*list)(bool all, int (*visit)(const struct bus_operation *operation, void *visitor), void *visitor,
                    void *userdata);
        int (*reload)(char *error, size_t error_size, void *userdata);       /* 0 or -errno with error */
        int (*retry)(const char *operation_id, void *userdata);              /* 0; -ENOENT; -EINVAL not quarantined */
        int (*metrics)(struct buffer *out, void *userdata);
};

/* bus_new() - make the socket `path` (a stale one is replaced) and serve it. -errno. */
int bus_new(struct event *event, const char *path, const struct bus_handlers *handlers, void *userdata,
            struct bus **ret);
struct bus *bus_free(struct bus *bus);
DEFINE_CLEANUP(struct bus *, bus_free)
