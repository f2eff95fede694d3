/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * control: the session with the control plane: Watch with resume, Report with retry
 *
 * Watch: one stream from the last stored revision; heartbeats (Bookmark); silence of three intervals drops the
 * connection; reconnects with jittered exponential back-off that only useful progress resets (the stored
 * position went forward, or the stream lived for a heartbeat interval);
 * OUT_OF_RANGE starts over from 0; ABORTED ("another agent calls itself NODE") waits reconnect_max.
 * An event's bytes stay charged to the stream's window until the agent has stored it: a flood is held at the
 * server, not in our memory.
 * Report: the agent hands each stored report over once; control batches (256 a call, one of each operation, the
 * lowest sequence first), sends, retries by the contract's table, splits a refused batch until the guilty report
 * stands alone, and calls back once per report. A link-time seam: tests/sim has a fake of this header.
 */
#include "base.h"
#include "command.h"

struct event;
struct grpc_channel;
struct control;
struct token;

#define CONTROL_BATCH_MAX 256
#define CONTROL_STREAM_WINDOW (1024 * 1024) /* for grpc_channel_options.stream_window */

struct control_options { /* all copied */
        const char *cluster_id, *node, *instance_id, *agent_version;
        uint64_t reconnect_min_usec, reconnect_max_usec, report_timeout_usec;
};

enum control_answer {
        CONTROL_REPORT_ACCEPTED, /* APPLIED, ALREADY_APPLIED, SUPERSEDED, UNKNOWN_OPERATION: the duty is over */
        CONTROL_REPORT_REJECTED, /* REJECTED, or refused alone with INVALID_ARGUMENT or FAILED_PRECONDITION */
};

enum control_notice { /* things an operator may meet; the agent logs them */
        CONTROL_CONNECTED,        /* first message of a stream; detail: the peer's address */
        /* A stream ended, or could not be opened: one of the next four. */
        CONTROL_DISCONNECTED,     /* detail: why, and when the next try is; only after a connected stream, or when
                                   * the reason has changed */
        CONTROL_SILENT,           /* three heartbeat intervals without a message */
        CONTROL_NODE_TAKEN,       /* ABORTED: another agent calls itself NODE */
        CONTROL_HISTORY_GONE,     /* OUT_OF_RANGE: starting over from 0 */
        CONTROL_REPORTS_FAILING,  /* no Report has got through for 5 minutes, or one report on which the server
                                   * chokes has not; once until one does; detail: the last error */
        CONTROL_REVISION_BACKWARD,/* a lower or equal revision within a stream */
        CONTROL_BAD_MESSAGE,      /* a message that is no WatchResponse; detail */
        CONTROL_TOKEN_FAILED,     /* no usable token; detail */
};

struct control_handlers {
        /* One decoded event, Bookmarks included; its `size` must be given back with control_taken(). The event
         * (and the operation's bytes in it) is valid during the call. */
        int (*on_event)(const struct command_event *event, size_t size, void *userdata);
        /* A new order of revisions begins at 0 (OUT_OF_RANGE, or a stream begun with 0 after one that delivered
         * something which is not stored yet): store 0. Revisions of events that came before mean nothing any more. */
        int (*on_restart)(void *userdata);
        int (*on_report)(const char *operation_id, int64_t sequence, enum control_answer answer,
                         const char *reason, void *userdata);
        int (*on_notice)(enum control_notice notice, const char *detail, void *userdata);
};

/* Handlers may call every function below but control_free(). A negative value ends the loop. Calls are made from
 * the loop only, never from within control_start(), control_report(), control_drain(), control_reload() and so on.
 * control counts METRICS_STREAM_UP, _STREAM_CONNECTS, _LAST_CONTACT, _REVISIONS_BACKWARD and _REPORT_RETRIES itself.
 *
 * control_new() - nothing is sent before control_start() or control_report(). Event, channel and token must outlive
 * it. -ENOMEM; -EINVAL: an option is too long (cluster_id 50, node 255, instance_id and agent_version 64). */
int control_new(struct event *event, struct grpc_channel *channel, struct token *token,
                const struct control_options *options, const struct control_handlers *handlers, void *userdata,
                struct control **ret);
struct control *control_free(struct control *control);
DEFINE_CLEANUP(struct control *, control_free)

/* control_start() - open the stream after `revision` (0: everything open). */
int control_start(struct control *control, int64_t after_revision);

/* control_taken() - events up to `revision` are stored, `size` bytes of them are given back to the window. The
 * next Watch resumes after `revision`. Bytes are to be given back in the order of their events (those that need no
 * store may overtake); the position only goes forward, never above what was delivered. */
void control_taken(struct control *control, int64_t revision, size_t size);

/* control_set_reading() - false: max_open is reached, silence does not count while we hold the window. (It does not
 * count either while the agent holds nearly all of CONTROL_STREAM_WINDOW: a stalled disk is not a silent server.) */
void control_set_reading(struct control *control, bool reading);

/* control_deadline_usec() - a server's wall-clock time on our event clock, by the last Bookmark's `now` and its
 * arrival (our own wall clock before the first). */
uint64_t control_deadline_usec(const struct control *control, uint64_t server_real_usec);

/* control_report() - take over one stored report (bytes are copied); sent until answered. A further report of the
 * same operation waits for the earlier one, except that `final` drops unanswered progress reports of the
 * operation, without a call of on_report. Handing over the same (operation, sequence) again while it waits changes
 * nothing. -ENOMEM; -EINVAL: the operation id is longer than OPERATION_ID_MAX, or the report too large for a call. */
int control_report(struct control *control, const char *operation_id, int64_t sequence, bool final,
                   struct span report);

/* control_drain() - SIGTERM: close the stream, take no new work, keep sending reports (at once, whatever back-off
 * they are in); `done` is called, once and from the loop, when none is left or when `timeout_usec` (a duration) is
 * over. control_report() is still allowed. */
int control_drain(struct control *control, uint64_t timeout_usec, int (*done)(void *userdata), void *userdata);

/* control_reload() - tokens and TLS files changed: drop the connection and read them again; stream and reports go
 * out on a new one at once, whatever back-off they were in. */
void control_reload(struct control *control);

/* control_set_times() - replace the three times of control_options: they count from the next wait or call on. */
void control_set_times(struct control *control, uint64_t reconnect_min_usec, uint64_t reconnect_max_usec,
                       uint64_t report_timeout_usec);

bool control_is_connected(const struct control *control);
size_t control_reports_waiting(const struct control *control);
