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
 * Show(s operation) → a{sv}; Find(s job) → a{sv}, aa{sv} (the answer, and the look-alikes); Check() → aa{sv} (findings);
 * Metrics() → s; and, privileged, Cancel(s job) → s (the operation, when it is stored); Reload(); Retry(s operation).
 * Keys are the names of the structs below; times are microseconds of the wall clock; List leaves out what is empty or
 * 0. Properties: the fields of Status, in CamelCase.
 * Errors: org.sparkcancel.Error.NoSuchOperation, .NotQuarantined, .ReloadFailed, .BadJob, .NotNow,
 * org.freedesktop.DBus.Error.AccessDenied, .LimitsExceeded, .Failed.
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
#define BUS_ERROR_BAD_JOB "org.sparkcancel.Error.BadJob"
#define BUS_ERROR_NOT_NOW "org.sparkcancel.Error.NotNow"

struct event;
struct bus;
struct bus_call;

struct bus_operation { /* one row of List and Show */
        const char *operation_id, *job_id, *state, *outcome, *driver_id, *driver_state, *message;
        int32_t driver_pid;
        uint64_t received_real_usec, deadline_real_usec, accepted_real_usec, ended_real_usec;
        uint32_t kill_requests;
        const char *requested_by; /* operation.created_by; the peer's uid for a local one */
        bool local;               /* ordered on this node over the bus: not reported to the control plane */
        bool observed;            /* mode = observe: nothing is killed for it, and it is not reported */
};

struct bus_status {
        const char *version, *cluster_id, *node, *endpoint, *mode, *summary; /* mode: act, observe; summary: the STATUS= line */
        bool connected;
        const char *connection_error; /* why not; "" while it is, or when nobody said yet */
        bool from_memory;       /* the state database cannot be written */
        uint64_t open, searching, quarantined, reports_waiting;
        uint64_t unwritten;     /* records that only memory has */
        int64_t revision;
};

struct bus_find { /* what a cancel of the job would hit on this node, now */
        const char *job_id, *mode;
        bool would_kill;          /* a cancel would have `driver_pid` killed (in observe mode: name it) */
        const char *reason;       /* why, or why not, as a sentence */
        const char *driver_id, *driver_state, *app_name;
        int32_t driver_pid, worker_pid;
        bool supervised;
        uint64_t started_real_usec;
        const char *recent_driver_id; /* no driver is here: the one that ran the job here not long ago, a hint */
};

struct bus_lookalike { /* a process that bears the job's id and is not its driver */
        int32_t pid;
        const char *reason;
};

struct bus_finding { /* one row of Check */
        const char *name;  /* what was looked at: "control plane", "master http://m1:6066" */
        const char *level; /* ok, warning, failure */
        const char *text, *remedy;
};

struct bus_handlers {
        void (*status)(struct bus_status *ret, void *userdata);
        /* Visit operations; `all`: DONE ones too. The visitor returns negative to stop. */
        int (*list)(bool all, int (*visit)(const struct bus_operation *operation, void *visitor), void *visitor,
                    void *userdata);
        int (*reload)(char *error, size_t error_size, void *userdata);       /* 0 or -errno with error */
        int (*retry)(const char *operation_id, void *userdata);              /* 0; -ENOENT; -EINVAL not quarantined */
        int (*metrics)(struct buffer *out, void *userdata);

        /* 0: the handler has answered `call`, or will, with one of the functions below; -errno: it will not. `job_id` is
         * valid. -EBUSY: too many are under way; -EAGAIN: the program is stopping; -ENOBUFS: too many are open. */
        int (*find)(const char *job_id, struct bus_call *call, void *userdata);
        int (*cancel)(const char *job_id, uint32_t uid, struct bus_call *call, void *userdata);
        int (*check)(struct bus_call *call, void *userdata);
};

/* Answers to a call; each frees it. The peer may have gone, and the bus as well: then nothing is sent. */
void bus_call_answer_find(struct bus_call *call, const struct bus_find *find, const struct bus_lookalike *lookalikes,
                          size_t count);
void bus_call_answer_cancel(struct bus_call *call, const char *operation_id);
void bus_call_answer_check(struct bus_call *call, const struct bus_finding *findings, size_t count);
void bus_call_fail(struct bus_call *call, const char *text);

/* bus_call_is_wanted() - is the peer still there? bus_call_is_privileged() - may it change things? (False when it is not.) */
bool bus_call_is_wanted(const struct bus_call *call);
bool bus_call_is_privileged(const struct bus_call *call);

/* bus_new() - make the socket `path` (a stale one is replaced; what is no socket is -EEXIST) and serve it. Handlers are
 * copied. -errno. bus_free() - closes the connections and removes the socket. */
int bus_new(struct event *event, const char *path, const struct bus_handlers *handlers, void *userdata,
            struct bus **ret);
struct bus *bus_free(struct bus *bus);
DEFINE_CLEANUP(struct bus *, bus_free)
