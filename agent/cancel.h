/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * cancel: PURE: the state machine of one operation
 *
 * (value, event, now) → (value, update). The step does no I/O, reads no clock, allocates nothing, logs nothing
 * and keeps no pointer, so it can be tabled, walked exhaustively, simulated and replayed. The shell (agent.c)
 * owns every effect: it stores the record when `durable` is set, and only then does what `act` allows;
 * `ask` changes nothing in the world and may be done at once.
 *
 *   SEARCH   no driver of the job known here
 *   KILL     driver identified; Spark is asked to kill it
 *   WAIT     a kill was accepted; death not yet seen
 *   TERM, FORCE   local SIGTERM, SIGKILL, only where `escalation` allows; Spark is asked on
 *   SETTLE   the process is gone: last scan, Spark's final word, leftovers
 *   REPORT   outcome fixed, stored, not yet acknowledged
 *   QUARANTINE    the control plane rejected the report
 *   DONE     kept for retention
 *
 * cancel_transition_allowed() is a second, independent statement of the moves; cancel_check() states the
 * invariants. Tests and debug builds check both after each step.
 */
#include "base.h"

enum cancel_state {
        CANCEL_SEARCH, CANCEL_KILL, CANCEL_WAIT, CANCEL_TERM, CANCEL_FORCE, CANCEL_SETTLE, CANCEL_REPORT,
        CANCEL_QUARANTINE, CANCEL_DONE, CANCEL_STATE_MAX,
};

enum cancel_outcome { /* the numbers are the wire's (sparkcancel.agent.v1.Outcome) */
        CANCEL_OUTCOME_NONE = 0, CANCEL_IN_PROGRESS = 1, CANCEL_NOT_ON_NODE = 2, CANCEL_CANCELLED = 3,
        CANCEL_ALREADY_DONE = 4, CANCEL_ALREADY_FAILED = 5, CANCEL_DRY_RUN = 6, CANCEL_NOT_FOUND = 7,
        CANCEL_SPARK_UNREACHABLE = 8, CANCEL_SPARK_REFUSED = 9, CANCEL_DEADLINE_EXCEEDED = 10,
        CANCEL_DRIVER_SURVIVED = 11, CANCEL_DRIVER_LOST = 12, CANCEL_INVALID_COMMAND = 13, CANCEL_OUTCOME_MAX,
};

enum cancel_escalation { /* numbers are the wire's */
        CANCEL_ESCALATION_NONE = 0, CANCEL_ESCALATION_SIGTERM = 1, CANCEL_ESCALATION_SIGKILL = 2,
};

enum cancel_word { /* Spark's word for the driver's state (deploy/master/DriverState.scala) */
        CANCEL_WORD_NONE,        /* not asked, or no answer yet */
        CANCEL_WORD_SUBMITTED, CANCEL_WORD_RUNNING, CANCEL_WORD_FINISHED, CANCEL_WORD_RELAUNCHING,
        CANCEL_WORD_KILLED, CANCEL_WORD_FAILED, CANCEL_WORD_ERROR,
        CANCEL_WORD_OTHER,       /* a word that we do not know */
        CANCEL_WORD_UNKNOWN_ID,  /* an ALIVE master does not know the id */
        CANCEL_WORD_MAX,
};

/* A driver process on this node. pid 0: none. Start times are /proc/PID/stat field 22, in clock ticks since boot. */
struct cancel_process {
        int32_t pid;
        int32_t worker_pid;
        uint64_t start_ticks;
        uint64_t worker_start_ticks;
};

/* A driver of the job that a scan offers. */
struct cancel_found {
        struct cancel_process process;          /* pid 0: none, only a directory with the id that the command names */
        bool supervised;
        bool orphan;                            /* its Worker is gone, and we never saw it under one */
        char driver_id[DRIVER_ID_MAX + 1];
};

/* The durable part: what store keeps of the machine, and all that a report is made of. */
struct cancel_record {
        enum cancel_state state;
        enum cancel_outcome outcome;            /* set exactly on entering REPORT, never changed */
        bool dry_run;
        bool withdrawn;                         /* the control plane has ended the operation */
        bool supervised;                        /* -Dspark.driver.supervise=true */
        bool master_answered;                   /* some master answered as ALIVE since the driver was found */
        bool refused_auth;                      /* among Spark's refusals was a 401 or 403 */
        enum cancel_outcome progress;           /* last progress reported: NONE, NOT_ON_NODE, IN_PROGRESS */
        enum cancel_word word;                  /* Spark's last word */
        enum cancel_escalation escalation;      /* the strongest signal that `process` was sent, or may be sent: counted
                                                 * before it goes out */
        char command_driver_id[DRIVER_ID_MAX + 1]; /* from the command, may be "" */
        char driver_id[DRIVER_ID_MAX + 1];      /* the driver found, "" while none is */
        struct cancel_process process;
        uint32_t kill_requests;                 /* requests sent, or allowed to be sent: counted before they go out */
        int32_t leftover_processes;             /* descendants still there 2 s after the driver's end: a lower bound */
        uint64_t received_usec, received_real_usec;      /* both clocks: event clock (boot time), wall clock */
        uint64_t deadline_usec, deadline_real_usec;
        uint64_t killed_usec;                   /* last kill request that may be outstanding, event clock; 0: none */
        uint64_t answered_usec;                 /* first kill request that was answered, or first round that failed at
                                                 * every master, the earlier: escalate_after counts from here; 0: none */
        uint64_t accepted_usec, accepted_real_usec;      /* first accepted kill of driver_id; 0: none */
        uint64_t ended_usec, ended_real_usec;   /* process proved gone; 0: not */
};

/* One operation: the record and what is proved anew after a restart. Start from zero, then cancel_begin() or a
 * loaded record with CANCEL_EVENT_RESTARTED. */
struct cancel {
        struct cancel_record record;
        bool invalid;            /* the command broke a limit: set by cancel_begin() only */
        bool driver_held;        /* the process is proved alive and watched through its pidfd */
        bool orphan;             /* not seen under its Worker: it counts only when Spark's status places it here */
        bool placed_here;        /* Spark's status named a worker of this node for record.driver_id */
        bool by_record;          /* the last scan said RECORD: Spark's records alone answer for record.driver_id */
        bool kill_planned;       /* the last counted kill request has not been sent */
        bool wants_slot;         /* waits for its turn at the worker */
        bool asking;             /* a status question is in flight */
        bool kill_due;           /* it has its turn: CANCEL_ACT_KILL waits for its commit */
        bool killing;            /* a kill request is in flight */
        bool denied;             /* the process could not be signalled: no right to */
        bool looking;            /* KILL: a scan was asked for, for another process of the job */
        bool looked;             /* KILL: … and there was none behind this one; not again before look_usec */
        uint32_t asides;         /* processes that this pass has set aside */
        bool passed;             /* SETTLE: the pass has come to its end; what came meanwhile stands at its head */
        bool unresolved;         /* SETTLE: one that was set aside is neither ours nor another's, as far as Spark says */
        struct cancel_process head; /* SETTLE: the newest process that this pass has seen */
        uint32_t kills_before;   /* kill requests that were for earlier drivers */
        enum cancel_escalation signalled; /* of record.escalation: what is known to be sent, or was before a restart */
        struct cancel_process aside; /* the scan offers what stands behind this process; pid 0: the first */
        struct cancel_found suspect; /* SETTLE: another process of the job; Spark is asked where its driver is */
        bool unproved;           /* after a restart, until the first scan: the stored process may be gone */
        bool scanned;            /* SEARCH: a scan was made; SETTLE: one since the process was gone found nothing */
        bool asked;              /* SETTLE: Spark was asked since the process was gone */
        bool leftovers_counted;  /* SETTLE: the last scan came late enough to call what it saw left behind */
        uint32_t leftovers;      /* SETTLE: descendants of the driver that the last scan saw alive */
        bool leftovers_held;     /* SETTLE: some of them can be signalled */
        uint64_t leftovers_usec; /* SETTLE: when they are counted */
        enum cancel_escalation leftovers_signal; /* the strongest signal sent to them */
        uint32_t attempts;       /* status questions or kill rounds that failed in a row */
        uint32_t unknown_answers;/* "unknown id", counted at most once per kill_retry */
        uint64_t unknown_usec;   /* when the last was counted */
        uint64_t refused_usec;   /* first refusal of the present row of refusals; 0: none */
        uint64_t since_usec;     /* of the command's arrival, or of the restart */
        uint64_t ask_usec;       /* next status question; USEC_NEVER: none */
        uint64_t scan_usec;      /* next scan; USEC_NEVER: none */
        uint64_t retry_usec;     /* next kill; USEC_NEVER: none */
        uint64_t force_usec;     /* TERM: next signal; USEC_NEVER: none */
        uint64_t look_usec;
};

struct cancel_config {
        uint64_t kill_retry_usec;
        uint64_t escalate_after_usec, force_after_usec;
        uint64_t relaunch_window_usec;
        enum cancel_escalation escalation;      /* the most that is allowed */
        uint64_t search_interval_usec;          /* the slow re-scan behind the work directory's wake-ups */
};

struct cancel_now {
        uint64_t usec;           /* event clock: boot time */
        uint64_t real_usec;      /* wall clock, for reports only */
};

enum cancel_event_type {
        CANCEL_EVENT_COMMAND,         /* the operation has just begun (after cancel_begin()) */
        CANCEL_EVENT_DUPLICATE,       /* the same command came again */
        CANCEL_EVENT_WITHDRAWN,
        CANCEL_EVENT_RESTARTED,       /* first event after a load; `same_boot` */
        CANCEL_EVENT_SCANNED,         /* the answer to CANCEL_ASK_SCAN */
        CANCEL_EVENT_EXITED,          /* the held process is gone, seen through its pidfd */
        CANCEL_EVENT_STATUS,          /* the answer to CANCEL_ASK_STATUS */
        CANCEL_EVENT_KILL_SENT,       /* CANCEL_ACT_KILL is being done: the request leaves now */
        CANCEL_EVENT_KILL_ANSWERED,   /* the answer to it */
        CANCEL_EVENT_SIGNALLED,       /* CANCEL_ACT_TERM or CANCEL_ACT_FORCE was done: `signal`, `signal_result` */
        CANCEL_EVENT_SLOT,            /* its turn at the worker has come */
        CANCEL_EVENT_TIMER,           /* update.wake_usec has come */
        CANCEL_EVENT_REPORT_ANSWERED, /* the final report was answered */
        CANCEL_EVENT_RETRY,           /* an operator asks to send a quarantined report again */
        CANCEL_EVENT_TYPE_MAX,
};

enum cancel_scan { /* what one pass over the node says about the job, behind `aside` */
        CANCEL_SCAN_NONE,        /* no driver of the job, or one that does not count (claimed by two jobs) */
        CANCEL_SCAN_PROCESS,     /* a proved process: `found` */
        CANCEL_SCAN_DIRECTORY,   /* no process, but the command's driver id has a directory here: `found.driver_id` */
        CANCEL_SCAN_RECORD,      /* neither, but this agent answers for the command's driver id from Spark's records alone
                                  * (queued_drivers): `found.driver_id` */
        CANCEL_SCAN_MAX,
};

enum cancel_signal_result {
        CANCEL_SIGNAL_SENT,
        CANCEL_SIGNAL_GONE,      /* the process had ended: what it did not get did not end it */
        CANCEL_SIGNAL_DENIED,    /* no right to signal it */
        CANCEL_SIGNAL_RESULT_MAX,
};

enum cancel_answer { /* a round over the masters, in six words */
        CANCEL_ANSWER_ACCEPTED,     /* kill: success; status: the id is known, see `word` and `here` */
        CANCEL_ANSWER_UNKNOWN_ID,   /* an ALIVE master: already finished or does not exist */
        CANCEL_ANSWER_NOT_ALIVE,    /* all that answered are standby or recovering */
        CANCEL_ANSWER_UNREACHABLE,  /* none answered sensibly, or a silent one leaves it open */
        CANCEL_ANSWER_REFUSED,      /* every master refused for good: 400, 404, 405, … */
        CANCEL_ANSWER_REFUSED_AUTH, /* the same, and one said 401 or 403 */
        CANCEL_ANSWER_MAX,
};

struct cancel_event {
        enum cancel_event_type type;
        bool same_boot;                     /* RESTARTED */
        enum cancel_scan scan;              /* SCANNED */
        bool process_alive;                 /* SCANNED: record.process (pid and start time) still exists */
        struct cancel_found found;          /* SCANNED, PROCESS or DIRECTORY */
        uint32_t leftovers;                 /* SCANNED, in SETTLE: the ended driver's descendants that are alive */
        bool leftovers_held;                /* SCANNED, in SETTLE: for some there is a pidfd */
        enum cancel_answer answer;          /* STATUS, KILL_ANSWERED */
        uint32_t asked;                     /* KILL_ANSWERED: the masters that the request was handed to */
        enum cancel_word word;              /* STATUS */
        bool here;                          /* STATUS: the worker it names is this node's */
        bool elsewhere;                     /* STATUS: it names a worker of another node */
        bool accepted;                      /* REPORT_ANSWERED: the duty is over; false: rejected */
        enum cancel_escalation signal;      /* SIGNALLED: which */
        enum cancel_signal_result signal_result;
};

enum cancel_ask { /* questions: change nothing, need no commit */
        CANCEL_ASK_SCAN = 1 << 0,   /* what stands behind `aside` */
        CANCEL_ASK_STATUS = 1 << 1, /* of cancel_status_id() */
};

enum cancel_act { /* deeds: only after the update was stored */
        CANCEL_ACT_KILL = 1 << 0,       /* send a kill request for record.driver_id */
        CANCEL_ACT_PROGRESS = 1 << 1,   /* make, store and send the progress report record.progress */
        CANCEL_ACT_REPORT = 1 << 2,     /* make (once), store and send the final report record.outcome */
        CANCEL_ACT_RESEND = 1 << 3,     /* send the last stored final report again, unchanged */
        CANCEL_ACT_TERM = 1 << 4,       /* SIGTERM through the held pidfd */
        CANCEL_ACT_FORCE = 1 << 5,      /* SIGKILL through the held pidfd */
        CANCEL_ACT_TERM_LEFTOVERS = 1 << 6,  /* SIGTERM, SIGKILL to the ended driver's descendants, through pidfds that */
        CANCEL_ACT_FORCE_LEFTOVERS = 1 << 7, /* were opened while it lived */
};

enum cancel_change { /* bookkeeping of the shell, done when the step returns */
        CANCEL_HOLD = 1 << 0,           /* hold the pidfd of the scanned process from now on */
        CANCEL_RELEASE = 1 << 1,        /* let the held process go */
        CANCEL_SLOT_WANTED = 1 << 2,    /* put into the worker's queue */
        CANCEL_SLOT_RELEASED = 1 << 3,  /* leave the queue, or give the slot to the next */
};

struct cancel_update {
        bool durable;           /* the record changed: store before `act` */
        uint32_t ask;           /* enum cancel_ask */
        uint32_t act;           /* enum cancel_act */
        uint32_t change;        /* enum cancel_change */
        uint64_t wake_usec;     /* feed TIMER at this time; USEC_NEVER: no timer */
};

/* cancel_begin() - a new operation from a checked command. `invalid`: the command broke a limit; the outcome is
 * INVALID_COMMAND. Feed CANCEL_EVENT_COMMAND next. `command_driver_id` may be "". */
void cancel_begin(struct cancel *cancel, const struct cancel_now *now, uint64_t deadline_usec, bool dry_run,
                  bool invalid, const char *command_driver_id);

/* cancel_step() - the one public step. Every event is legal in every state; what makes no sense changes nothing. */
void cancel_step(struct cancel *cancel, const struct cancel_config *config, const struct cancel_event *event,
                 const struct cancel_now *now, struct cancel_update *ret_update);

/* cancel_status_id() - the driver that CANCEL_ASK_STATUS asks about. */
const char *cancel_status_id(const struct cancel *cancel);

/* cancel_kills_of_driver() - kill requests for record.driver_id that may have left this node; after a restart those for
 * earlier drivers are among them. */
uint32_t cancel_kills_of_driver(const struct cancel *cancel);

bool cancel_transition_allowed(enum cancel_state from, enum cancel_state to);

/* cancel_check() - NULL, or the invariant that this step broke, as a sentence. */
const char *cancel_check(const struct cancel *before, const struct cancel *after, const struct cancel_update *update);

/* cancel_is_open() - not DONE and not QUARANTINE. cancel_counts_open() - counts against max_open: open and not
 * REPORT. */
bool cancel_is_open(enum cancel_state state);
bool cancel_counts_open(enum cancel_state state);
/* cancel_outcome_is_success() - the operation's result is a Job (true) or an error (false). Final outcomes only. */
bool cancel_outcome_is_success(enum cancel_outcome outcome);

const char *cancel_state_to_text(enum cancel_state state);       /* "SEARCH" */
const char *cancel_outcome_to_text(enum cancel_outcome outcome); /* "ALREADY_DONE" */
const char *cancel_word_to_text(enum cancel_word word);          /* "RUNNING"; "" for NONE and UNKNOWN_ID */
const char *cancel_answer_to_text(enum cancel_answer answer);    /* "accepted" */
