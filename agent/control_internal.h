/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * control_internal: the parts of control: the Watch stream and the report sender
 *
 * control.c owns both and is the only one that knows both; each part keeps to its own struct. No part calls the
 * agent, or ends a call, before its own state is settled: every handler may call back into control.
 */
#include <sys/queue.h>

#include "base.h"
#include "control.h"
#include "event.h"
#include "grpc.h"
#include "token.h"

#define CONTROL_TEXT_MAX 300

/* ---- the Watch stream (control_watch.c) ------------------------------------------------------------- */

struct control_watch {
        struct grpc_call *call;        /* the open stream; NULL: waiting for the next try, or not wanted */
        struct event_source *timer;    /* with a stream: its silence; without: the next try */
        bool wanted;                   /* between control_start() and control_drain() */
        bool connected;                /* a message has come on this stream */
        bool reading;
        uint32_t attempts;             /* tries without useful progress, for the back-off */
        uint32_t restarts;             /* OUT_OF_RANGE without useful progress between */
        char error[CONTROL_TEXT_MAX];  /* why the last stream ended, "" while connected */

        int64_t revision;              /* stored by the agent: the next stream resumes after it */
        int64_t delivered;             /* highest one handed to the agent in this order of revisions */
        int64_t stream_revision;       /* highest one seen on this stream */

        /* Bytes handed to the agent and not taken yet. The agent takes events in their order, so what it gives
         * back belongs first to ended streams (their window is gone), and to ended orders (their revisions mean
         * nothing any more). */
        size_t outstanding, foreign, stale;

        uint64_t opened_usec, message_usec;
        uint64_t interval_usec;        /* heartbeats; 0 before the first Bookmark of a stream */
        uint64_t server_real_usec, server_usec; /* the last Bookmark's `now`, and its arrival; 0: none */
};

int control_watch_init(struct control *control);
void control_watch_deinit(struct control *control);
int control_watch_start(struct control *control, int64_t after_revision);
void control_watch_stop(struct control *control);
/* Reconnect at once; the caller drops the connection. */
int control_watch_restart(struct control *control);

/* ---- the report sender (control_report.c) ----------------------------------------------------------- */

struct control_report_item { /* one report */
        TAILQ_ENTRY(control_report_item) entry;
        int64_t sequence;
        bool final;
        size_t size;
        uint8_t bytes[];
};

/* An operation with unanswered reports, lowest sequence first: only the first is sent. It is in the ready list or
 * in one batch, never in both. */
struct control_report_operation {
        STAILQ_ENTRY(control_report_operation) entry;
        TAILQ_HEAD(control_report_list, control_report_item) reports;
        char id[OPERATION_ID_MAX + 1];
};

struct control_report_slot {
        struct control_report_operation *operation;
        int64_t sequence; /* of the report that was sent */
};

struct control_report_batch { /* what goes, or went, into one call */
        TAILQ_ENTRY(control_report_batch) entry;
        uint64_t due_usec;     /* not before */
        uint64_t since_usec;   /* first failure; USEC_NEVER: none */
        uint32_t attempts;     /* for its own back-off */
        uint32_t troubles;     /* in a row: the server choked on these reports, or did not answer them */
        bool kept;             /* stays together when a call fails: part of a search for the guilty report */
        bool told;             /* CONTROL_REPORTS_FAILING was given */
        size_t count;
        struct control_report_slot slots[];
};

struct control_sender {
        void *operations;      /* tsearch(3) tree, by id */
        size_t count;          /* reports waiting, those in flight included */
        STAILQ_HEAD(, control_report_operation) ready;
        TAILQ_HEAD(, control_report_batch) waiting;
        struct control_report_batch *flight;
        struct grpc_call *call;
        struct command_report_result *results;
        size_t result_count;
        int result_error;      /* of the response: -ENODATA before it came */
        struct event_source *timer;
        bool prefer_waiting;   /* ready reports and waiting batches take turns */
        uint64_t next_usec;    /* nothing goes out before */
        uint64_t lone_usec;    /* no known bad report goes out before */
        uint32_t attempts;     /* failed calls in a row, for the back-off */
        bool unreachable;      /* the last failure was made on our side of the wire */
        uint64_t since_usec;   /* first failure since the last success; USEC_NEVER: none */
        bool told;
        char error[CONTROL_TEXT_MAX];
};

int control_sender_init(struct control *control);
void control_sender_deinit(struct control *control);
int control_sender_put(struct control *control, const char *operation_id, int64_t sequence, bool final,
                       struct span report);
/* Send what may be sent now, or arm the timer. */
int control_sender_pump(struct control *control);
/* Forget back-off times. `everything`: also those of single batches. */
void control_sender_hurry(struct control *control, bool everything);
/* The connection goes away on our own wish: the call in flight is made again at once. */
void control_sender_restart(struct control *control);

/* ---- the whole -------------------------------------------------------------------------------------- */

struct control {
        struct event *event;
        struct grpc_channel *channel;
        struct token *token;
        struct control_handlers handlers;
        void *userdata;
        char cluster_id[CLUSTER_ID_MAX + 1];
        char node[NODE_NAME_MAX + 1];
        char instance_id[65];
        char agent_version[65];
        uint64_t reconnect_min_usec, reconnect_max_usec, report_timeout_usec;
        uint64_t seed;

        struct control_watch watch;
        struct control_sender sender;

        struct event_source *work;       /* deferred: reload, drain, sending */
        struct event_source *drain_timer;
        bool reload_wanted;
        bool draining;
        int (*drained)(void *userdata);  /* NULL once it was called */
        void *drained_userdata;
};

/* control_notify() - tell the agent; the detail is formatted, cut and escaped. Returns the handler's value. */
int control_notify(struct control *control, enum control_notice notice, const char *format, ...)
        __attribute__((format(printf, 3, 4)));

/* control_schedule() - run the deferred work in the next turn. */
void control_schedule(struct control *control);

/* control_backoff() - how long to wait after one more failure. A server's grpc-retry-pushback-ms wins, kept within
 * reconnect_min and reconnect_max; "do not retry" is reconnect_max: our duty does not end with its mood.
 * `result` NULL: no call was made. */
uint64_t control_backoff(struct control *control, uint32_t *attempts, const struct grpc_result *result);

enum control_token {
        CONTROL_TOKEN_READY = 0,
        CONTROL_TOKEN_MISSING = 1, /* no call can be made now */
};

/* control_take_token() - enum control_token; `*ret` NULL: none is configured. Negative: a handler's failure. */
int control_take_token(struct control *control, const char **ret);

/* control_describe() - "UNAVAILABLE: connection refused". */
void control_describe(const struct grpc_result *result, char *text, size_t size);
