/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * bus: the local interface: sd-bus without a broker on <runtime_directory>/bus
 *
 * Object /org/sparkcancel/Agent1, interface org.sparkcancel.Agent1. Reading is for everyone (socket mode 0666);
 * changing calls need root, the agent's own user or group spark-cancel, by peer credentials. bus knows nothing of
 * the agent: it calls the table of functions that it was given.
 *
 * At most BUS_CONNECTIONS_MAX connections; a privileged peer takes the place of the longest idle unprivileged one.
 * A peer that does not read its replies, or that is idle for a minute, is closed. All unprivileged peers together
 * get at most about a fifth of the loop's time.
 *
 * Methods: Status() → a{sv}; List(b all) → aa{sv}, t (rows: at most BUS_ROWS_MAX, and how many there are);
 * Show(s operation) → a{sv}; Metrics() → s; Reload(); Retry(s operation). Keys are the names of the structs below;
 * times are microseconds of the wall clock; List leaves out what is empty or 0. Properties: the fields of Status, in CamelCase.
 * Errors: org.sparkcancel.Error.NoSuchOperation, .NotQuarantined, .ReloadFailed,
 * org.freedesktop.DBus.Error.AccessDenied.
 */
#include "base.h"

#define BUS_NAME "org.sparkcancel.Agent1"
#define BUS_PATH "/org/sparkcancel/Agent1"
#define BUS_GROUP "spark-cancel"
#define BUS_CONNECTIONS_MAX 16
#define BUS_ROWS_MAX 2000
#define BUS_ERROR_NO_SUCH_OPERATION "org.sparkcancel.Error.NoSuchOperation"
#define BUS_ERROR_NOT_QUARANTINED "org.sparkcancel.Error.NotQuarantined"
#define BUS_ERROR_RELOAD_FAILED "org.sparkcancel.Error.ReloadFailed"

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
        bool from_memory;       /* the state database cannot be written */
        uint64_t open, searching, quarantined, reports_waiting;
        uint64_t unwritten;     /* records that only memory has */
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

/* bus_new() - make the socket `path` (a stale one is replaced; what is no socket is -EEXIST) and serve it. Handlers are
 * copied. -errno. bus_free() - closes the connections and removes the socket. */
int bus_new(struct event *event, const char *path, const struct bus_handlers *handlers, void *userdata,
            struct bus **ret);
struct bus *bus_free(struct bus *bus);
DEFINE_CLEANUP(struct bus *, bus_free)
