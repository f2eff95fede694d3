/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What the files of the shell share: agent.c (the turn), agent_commit.c (its commit, and a disk that does not take
 * it), agent_operation.c (one operation's value, events and effects), agent_silent.c (observed and local ones),
 * agent_leftovers.c (what an ended driver left behind), agent_report.c (what a report says), agent_pace.c (one kill at a
 * time per Worker), agent_load.c (what a restart finds).
 */
#include "agent.h"
#include "cancel.h"
#include "command.h"
#include "config.h"
#include "control.h"
#include "driver.h"
#include "event.h"
#include "journal.h"
#include "metrics.h"
#include "spark.h"
#include "store.h"

#include <sys/queue.h>

#define AGENT_SEARCH_INTERVAL_USEC (5 * USEC_PER_SEC)
#define AGENT_REPORT_BYTES_MAX (64 * 1024)
#define AGENT_LOCAL_PREFIX "local-" /* of the id of an operation that was ordered on this node */

/* glibc's sys/queue.h lacks the form that allows removal of the current element. */
#define TAILQ_FOREACH_SAFE_(variable, head, field, next) \
        for ((variable) = TAILQ_FIRST(head); (variable) && ((next) = TAILQ_NEXT(variable, field), 1); (variable) = (next))

struct operation;

TAILQ_HEAD(operation_list, operation);

/* A slot whose operation has ended while its Worker may still be at the kill. */
struct kept_slot {
        TAILQ_ENTRY(kept_slot) link;
        uint64_t until_usec;
};

/* A Worker process and the kills outstanding at it (design: pacing). pid 0 stands for drivers without a process. */
struct worker {
        TAILQ_ENTRY(worker) link;
        int32_t pid;
        uint64_t start_ticks;
        uint64_t outstanding;          /* slots that are held or kept */
        uint64_t free_usec;            /* room for its heartbeats after a slow kill: nothing before this time */
        struct operation_list waiting;
        TAILQ_HEAD(, kept_slot) kept;  /* the oldest kill first */
};

struct operation {
        char id[OPERATION_ID_MAX + 1]; /* first: the tree compares operations by it */
        char job_id[JOB_ID_MAX + 1];
        char cluster_id[CLUSTER_ID_MAX + 1];
        char created_by[CLUSTER_ID_MAX + 1];
        char driver_state[DRIVER_STATE_MAX + 1]; /* Spark's own word */
        char app_name[64];
        char told_driver_id[DRIVER_ID_MAX + 1];  /* the journal has told of this driver */
        int32_t told_foreign;                    /* … and that this process is not to be touched */
        struct agent *agent;
        struct cancel cancel;
        uint8_t *raw;                  /* the command's Operation; NULL: only the id is remembered */
        size_t raw_size;
        char *message;                 /* the final report's; before that: why the command is invalid, or the drivers
                                        * that were killed before the present one; NULL: none */
        uint64_t started_real_usec;    /* the driver's start */
        uint64_t done_real_usec;

        uint8_t *report;               /* the last stored CancelReport */
        size_t report_size;
        int64_t sequence, acknowledged_sequence, report_sequence;
        bool report_final;

        struct event_source *timer;
        struct driver_hold *hold;
        struct driver_hold *ended;     /* of the driver that has ended: it knows the descendants */
        char *leftovers;               /* "123 (python3), 124 (sh)", as the last scan saw them; NULL: none */
        struct spark_request *status_request, *kill_request;
        const char *master;            /* whose answer is being handled; NULL: none's. For the journal. */
        struct worker *worker;         /* whose queue it waits in or whose slot it holds; NULL: neither */
        bool has_slot;

        uint32_t act;                  /* deeds that wait for the next commit */
        uint32_t act_committing;       /* deeds that the running commit allows */
        bool dirty;                    /* the record has changed since it was last handed to a commit, or kept: */
        bool unwritten;                /* … is kept for a commit to come, and its deeds did not wait (agent->failing) */
        bool committing, wants_scan, wants_hold, hold_failing, ask_failed, touched;
        bool other_boot;               /* loaded from an earlier boot, not yet restarted */
        bool dry_run_asked;            /* by the command; the record's flag is also set when the operation is observed */
        void (*stored)(struct operation *o, bool stored); /* told once: its record is in the store (false: it will not be) */
        void *stored_userdata;
        bool local;                    /* ordered on this node */
        bool observed;                 /* it came, or was loaded unfinished, in observe mode: see agent_silent.c */

        TAILQ_ENTRY(operation) all_link, touched_link, commit_link, unwritten_link, scan_link, slot_link, done_link;
};

/* A question of the local bus that takes time; freed with the agent if it is still under way. */
struct agent_question {
        TAILQ_ENTRY(agent_question) link; /* in agent->questions */
        void (*free)(struct agent_question *question);
};

struct agent {
        struct event *event;
        const struct config *config;
        struct cancel_config cancel_config;
        const char *agent_version;
        struct control *control;
        struct driver *driver;
        struct spark *spark;
        struct store *store;
        struct http *http;             /* lent, for preflights */
        struct token *spark_token;

        void *tree;                    /* tsearch(3), by operation id */
        struct operation_list all, touched, committing_list, unwritten, scanning, done_list;
        TAILQ_HEAD(, worker) workers;
        TAILQ_HEAD(, agent_question) questions;
        size_t open_count, done_count, unwritten_count;

        struct event_source *turn;     /* deferred */
        struct event_source *again;    /* timer: a failed scan, hold or commit is tried again, a Worker's room is over */
        struct event_source *slow;     /* timer: the running commit takes too long */
        struct event_source *status;   /* timer: tell systemd, at most once a second */
        struct event_source *rescan;   /* timer: after the work directory moved */
        uint32_t rescans;
        uint64_t again_usec;
        bool commit_running, stopping, drained, scan_failing;
        uint64_t scanned_usec;         /* the last scan's time */

        bool failing;                  /* the disk does not take the commits: the agent goes on from memory */
        bool behind;                   /* … and not all that was done meanwhile is stored yet */
        bool failure_told;             /* the journal has said so, and not yet that it is over */
        uint64_t told_usec;            /* when; 0: never */
        int failure;                   /* why: -errno; 0: a commit that does not end */
        uint32_t commit_failures;      /* in a row */
        uint64_t commit_again_usec;    /* `failing`: when it is tried again */
        size_t unwritten_batch;        /* records of one such try, at most */

        int64_t revision;              /* last one stored */
        int64_t revision_next;         /* to be stored by the next turn */
        int64_t revision_committing;
        size_t taken, taken_committing;/* bytes of the stream that these turns take over */
        size_t held;                   /* bytes not given back because max_open is reached */
        bool revision_reset;           /* the stored position is of an order that is over */
        bool reset_committing, full, skew_warned, connected, status_armed;
        int64_t sequence_base;
        uint64_t skew_usec;            /* between the clocks of this node and the control plane, as of the last Bookmark */
        bool skew_known;
        char notice[256];              /* why there is no connection to the control plane; "" while there is one */
        struct agent_check *check;     /* the preflight that is under way, and the last one's answer; NULL: never asked */
        uint64_t last_outcome_usec;

        int (*status_changed)(void *userdata);
        void *status_userdata;
};

/* agent.c */
void agent_schedule_turn(struct agent *agent);
void agent_try_again(struct agent *agent, uint64_t at_usec);
struct cancel_now agent_now(const struct agent *agent);
struct operation *agent_find(const struct agent *agent, const char *operation_id);
int agent_insert(struct agent *agent, struct operation *o);
void agent_touch(struct operation *o); /* the next turn, at once, looks at it */
void agent_keep_touched(struct operation *o); /* the next turn, whenever it comes: see agent_try_again() */
void agent_forget(struct agent *agent, struct operation *o);
void agent_counts_changed(struct agent *agent);
int agent_add_local(struct agent *agent, const char *job_id, uint32_t uid, struct operation **ret);

/* agent_commit.c */
int agent_commit_init(struct agent *agent);
void agent_commit_deinit(struct agent *agent);
void agent_commit(struct agent *agent); /* a turn's commit: begin it, or see to it that the turn goes on without */
int agent_commit_last(void *userdata);  /* reports are drained: store what is left, then leave the loop */

/* agent_operation.c */
int operation_new(struct agent *agent, const char *id, struct operation **ret);
struct operation *operation_free(struct operation *o);
void operation_feed(struct operation *o, const struct cancel_event *event);
void operation_feed_simple(struct operation *o, enum cancel_event_type type);
void operation_feed_scan(struct operation *o);
void operation_do(struct operation *o, uint32_t act);
void operation_hold(struct operation *o);
void operation_tell_stored(struct operation *o, bool stored);
void operation_to_store(const struct operation *o, struct store_operation *ret);
void operation_journal(const struct operation *o, enum journal_event event, const char *format, ...)
        __attribute__((format(printf, 3, 4)));

/* agent_leftovers.c */
void operation_look_for_leftovers(struct operation *o, struct cancel_event *event);
void operation_signal_leftovers(struct operation *o, int signal_number, const char *name);
void operation_tell_leftovers(const struct operation *o, const struct cancel_record *before);

/* agent_silent.c: operations of which the control plane hears nothing (more) */
bool operation_was_local(const struct store_operation *row);
bool operation_is_silent(const struct operation *o, enum cancel_outcome outcome);
void operation_observe(struct operation *o);
void operation_end_silently(struct operation *o, const struct cancel_record *before);

/* agent_report.c */
int report_make(struct operation *o, bool final);

/* agent_pace.c */
void pace_want(struct operation *o);
void pace_release(struct operation *o);
/* After a restart: a stored kill that has not ended holds its slot; pace_keep() when its operation has. */
void pace_adopt(struct operation *o);
void pace_keep(struct operation *o);
void pace_grant(struct agent *agent);
void pace_deinit(struct agent *agent);

/* agent_load.c */
int agent_load(struct agent *agent);
