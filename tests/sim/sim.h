/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * sim: the real agent in a made-up world, in virtual time
 *
 * One process, one thread, one seed. The real agent*.c, cancel*.c, command*.c, store*.c and journal.c run above
 * link-time fakes of event.h, control.h, spark.h, driver.h and log.h; the store writes to a real SQLite database in
 * memory-backed files, through a VFS that knows what was flushed. Everything that happens is an item of one agenda,
 * ordered by virtual time; ties are broken by the seed.
 *
 * sim_event.c    agenda, virtual clocks, timers, deferred sources, the worker; log lines
 * sim_disk.c     the SQLite VFS: failing writes and flushes, outages, power cuts
 * sim_world.c    the truth: jobs, drivers, processes, Workers
 * sim_masters.c  what the masters know of it; spark.h
 * sim_driver.c   driver.h
 * sim_control.c  the control plane; control.h
 * sim_life.c     one life of the agent after the other: start, crash, reboot, stop
 * sim_check.c    what must never happen, what must happen, and coverage
 * sim.c          schedules and the command line
 */
#include "agent_internal.h"

#include <sqlite3.h>

#define SIM_CLUSTER "c9q-sim"
#define SIM_NODE "node-1"
#define SIM_WORKERS_MAX 2
#define SIM_MASTERS_MAX 3
#define SIM_JOBS_MAX 24
#define SIM_OPERATIONS_MAX 40
#define SIM_DRIVERS_MAX 400
#define SIM_PROCESSES_MAX 1200
#define SIM_ID_MAX 64

/* ---- chance ----------------------------------------------------------------------------------------------------- */

uint64_t sim_below(uint64_t limit);                       /* [0, limit) */
uint64_t sim_between(uint64_t from, uint64_t to);         /* [from, to] */
uint64_t sim_spread(uint64_t from, uint64_t to);          /* the same, each order of magnitude alike */
bool sim_chance(unsigned permille);

void *sim_alloc(size_t size); /* zeroed; freed when the schedule is over */
void sim_alloc_clear(void);

/* ---- agenda ------------------------------------------------------------------------------------------------------- */

typedef void (*sim_action)(void *argument);

struct sim_item {
        uint64_t at, order;
        size_t place;           /* in the heap, from 1; 0: not in it */
        sim_action action;
        void *argument;
        bool owned;             /* freed after it ran */
};

void sim_item_set(struct sim_item *item, uint64_t at);
void sim_item_cancel(struct sim_item *item);
void sim_after(uint64_t delay, sim_action action, void *argument);
bool sim_agenda_step(uint64_t end); /* false: nothing more before `end` */
void sim_agenda_clear(void);

/* ---- the world ------------------------------------------------------------------------------------------------------ */

struct sim_worker {
        int32_t pid;
        uint64_t start_ticks;
        uint64_t started_at;
        bool up, lost;          /* lost: the masters do not hear it */
        bool busy;              /* it is killing somebody */
        struct sim_driver *queue[SIM_DRIVERS_MAX];
        size_t queued;
};

struct sim_process {
        int32_t pid, worker_pid; /* worker_pid 0: orphan */
        uint64_t start_ticks, worker_start_ticks;
        uint64_t started_at, ended_at;
        bool alive;
        struct sim_driver *driver; /* NULL: a process that only claims to be one */
        unsigned job;
        bool supervised;
        char claimed_id[SIM_ID_MAX];
        unsigned leftovers;     /* children that it leaves behind when it ends, until: */
        uint64_t leftovers_until;
        bool leftovers_deaf;
        uint64_t boot;          /* in which it ran */
};

struct sim_driver {
        char id[SIM_ID_MAX];
        unsigned job;
        bool here, supervised, directory;
        bool deaf, unkillable;
        int exit_code, term_code; /* by itself; after SIGTERM */
        uint64_t start_delay, life_time;
        struct sim_worker *worker;
        struct sim_process *process;
        bool runner;            /* the Worker has it */
        bool kill_flag;         /* the Worker was told to kill it */
        bool is_queued;         /* in the Worker's queue of kills */
        unsigned restarts;
        bool successor_made;

        bool known, placed;     /* by the masters */
        enum spark_driver_state word;
        bool was_word[SPARK_STATE_OTHER + 1]; /* words that the masters ever had */
        uint64_t word_at;
        unsigned accepted;      /* kills that a master accepted */
        int last_exit;          /* exit code of the last process; -1: none ended */
};

struct sim_job {
        char id[SIM_ID_MAX];
        bool cancelled;         /* has an operation */
        bool here;              /* has a driver on this node at some time */
};

enum sim_role { ROLE_ALIVE, ROLE_STANDBY, ROLE_RECOVERING, ROLE_DOWN };
enum sim_mood { MOOD_FINE, MOOD_SILENT, MOOD_BUSY, MOOD_REFUSING, MOOD_REFUSING_AUTH, MOOD_MAX };

struct sim_master {
        enum sim_role role;
        enum sim_mood mood;
};

enum sim_verdict { SIM_VALID, SIM_INVALID, SIM_UNREPORTABLE };

struct sim_operation {
        char id[SIM_ID_MAX];
        unsigned job;
        enum sim_verdict verdict;
        unsigned defect;        /* what is wrong with an invalid one */
        bool dry_run;
        char driver_id[SIM_ID_MAX];
        uint64_t deadline;      /* on the agenda's clock; USEC_NEVER: none in the command */
        uint64_t created_at;

        /* the control plane's view */
        int64_t revision, withdrawn_revision; /* places in the log; 0: not yet */
        bool open, sent;
        bool server_final;
        enum cancel_outcome server_outcome;

        /* what the agent did */
        bool delivered;              /* the command reached it */
        unsigned delivered_order, withdrawn_order; /* the order of revisions in which command and Withdrawn did; 0 */
        uint64_t delivered_at;
        bool confirmed;         /* a position that covers it was given back, or a deed was done: must never be lost */
        bool withdrawn_in_time; /* Withdrawn was stored before any kill was sent */
        unsigned kills;         /* handed to spark_kill() */
        char killed_id[SIM_ID_MAX]; /* the last of them */
        unsigned asked, asked_decided; /* requests to masters that these were, as far as it was told; at the decision */
        const struct sim_process *signalled; /* the last process that a signal reached */
        uint64_t escalated_at;
        unsigned escalated_life; /* in which TERM or FORCE was decided; 0: in none */
        char placed_id[SIM_ID_MAX]; /* the driver that Spark last placed here, by an answer that was delivered */
        char accepted_id[SIM_ID_MAX]; /* the driver for which the agent was last told of an accepted kill */
        bool alive_answer;      /* some answer of an ALIVE master was delivered */
        uint64_t refused_since; /* 0: the last round was no refusal */
        uint64_t kill_at;       /* last kill, agenda's clock */
        uint64_t kill_boot;
        int32_t kill_worker_pid;
        uint64_t kill_worker_ticks;
        bool kill_holds;        /* … and its slot is held */
        int64_t last_sequence;
        int64_t own_sequence;        /* the same, of what is not lost */
        int64_t owed_sequence;  /* stored and not answered when this life began; 0: handed over since */
        uint8_t *last_bytes;
        size_t last_size;
        enum cancel_outcome outcome; /* the final one, stored and handed over */
        enum cancel_outcome decided; /* in this life, perhaps not yet stored */
        enum cancel_state state;     /* as of the last step */
        bool exists;                 /* the agent has it in memory */
        uint64_t scanned_at;         /* last scan that was fed to it */
        uint64_t decided_scan;       /* … and when its outcome was decided */
        bool done_seen;
        bool excused;           /* pruned as DONE, and it came again: the configuration keeps too few */
        bool ahead;             /* a deed was done whose record is not stored, since the disk does not work */
        bool lost;              /* … and a crash or stop took it: an earlier life did what is not known any more */
};

/* Chances in permille, times in which faults happen: drawn anew for each schedule. */
struct sim_faults {
        unsigned request_lost, answer_lost, kill_lost, answer_slow;
        unsigned report_lost, report_rejected, stream_cut;
        unsigned crash_point, commit_slow, commit_stalled, disk_fails;
        bool only_disk;         /* nothing else fails, and the disk from soon on for long */
        unsigned scan_fails, hold_fails, wake_lost, signal_denied;
};

struct sim {
        uint64_t seed, random;
        uint64_t time;          /* the agenda's clock: true time */
        uint64_t boot_at;       /* when this boot's clock was 0 */
        uint64_t boot;          /* number of the boot, from 1 */
        uint64_t wall_offset;   /* the node's wall clock is time + wall_offset */
        uint64_t server_offset;
        uint64_t faults_end;    /* before it faults happen */
        bool healed;
        bool clock_back;        /* the node's wall clock was stepped backward */
        struct sim_faults faults;
        struct config config;

        struct sim_item **heap;
        size_t heap_size, heap_allocated;

        struct sim_worker workers[SIM_WORKERS_MAX];
        unsigned worker_count;
        struct sim_master masters[SIM_MASTERS_MAX];
        unsigned master_count;
        struct sim_job jobs[SIM_JOBS_MAX];
        unsigned job_count;
        struct sim_driver *drivers[SIM_DRIVERS_MAX];
        unsigned driver_count;
        struct sim_process *processes[SIM_PROCESSES_MAX];
        unsigned process_count;
        struct sim_operation operations[SIM_OPERATIONS_MAX];
        unsigned operation_count;
        unsigned operations_to_come;
        int32_t next_pid;

        /* the agent's present life */
        bool up, dying, exited;
        struct agent *agent;
        struct control *control;
        struct driver *driver;
        struct spark *spark;
        struct store *store;
        sqlite3_stmt *row;
        char boot_id[40];
        unsigned lives, boots;
        unsigned order;         /* of revisions: a stream from 0 begins a new one */
        uint64_t up_since;

        uint64_t steps;         /* of the agent's loop */
        uint64_t second, second_steps;
        uint64_t instant, instant_steps;

        bool tracing, echo;
        bool failed;
        char failure[1000];
};

extern struct sim sim;
extern struct event sim_event;

static inline bool sim_faulty(void) {
        return !sim.healed;
}

static inline bool sim_fault(unsigned permille) {
        return !sim.healed && permille > 0 && sim_chance(permille);
}

/* ---- trace and failure ------------------------------------------------------------------------------------------------ */

void sim_trace_line(const char *format, ...) __attribute__((format(printf, 1, 2)));
#define TRACE(...)                                    \
        do {                                          \
                if (sim.tracing)                      \
                        sim_trace_line(__VA_ARGS__);  \
        } while (0)
void sim_trace_clear(void);
void sim_trace_print(unsigned lines);
void sim_fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

/* ---- sim_event.c -------------------------------------------------------------------------------------------------------- */

bool sim_loop_step(uint64_t end);      /* one step of the agent's loop or of the world */
void sim_loop_reset(void);             /* forget what a failed schedule has left */
void sim_worker_crash(void);           /* what becomes of the job that runs while the agent dies */
void sim_crash_point(void);            /* here the agent may die */

/* ---- sim_disk.c ------------------------------------------------------------------------------------------------------------ */

enum sim_outage { OUTAGE_NONE, OUTAGE_FULL, OUTAGE_READ_ONLY, OUTAGE_EIO, OUTAGE_FLUSH, OUTAGE_MAX };

int sim_disk_init(void);
void sim_disk_outage(enum sim_outage kind);
bool sim_disk_works(void);
void sim_disk_reset(const char *directory);
void sim_disk_fail(unsigned permille, bool full);
void sim_disk_die_after(unsigned operations); /* the process dies in the middle: what it writes after is not written */
void sim_disk_revive(void);
void sim_disk_power_cut(void);

/* ---- sim_world.c ------------------------------------------------------------------------------------------------------------ */

void sim_world_make(void);
void sim_world_heal(void);
void sim_world_reboot(void);
void sim_world_up(void);               /* Workers start again after the reboot */
struct sim_driver *sim_driver_find(const char *id);
struct sim_driver *sim_driver_new(unsigned job, bool here, bool supervised);
void sim_driver_launch(struct sim_driver *driver, struct sim_worker *worker);
void sim_driver_set_word(struct sim_driver *driver, enum spark_driver_state word);
void sim_driver_succeed(struct sim_driver *driver); /* relaunch under a new id */
void sim_worker_kill(void *driver);    /* KillDriver has reached the Worker */
void sim_process_signal(struct sim_process *process, int signal_number);
struct sim_process *sim_process_of_job(unsigned job); /* an alive one on this node that counts, the newest; NULL: none */
bool sim_id_contested(const char *driver_id);
struct sim_worker *sim_any_worker(void);

/* ---- sim_masters.c ------------------------------------------------------------------------------------------------------------ */

void sim_masters_make(void);
void sim_masters_heal(void);
void sim_masters_clear(void);
bool sim_masters_listen(void);         /* is there an ALIVE master that hears a Worker? */
bool sim_masters_fine(void);

/* ---- sim_driver.c --------------------------------------------------------------------------------------------------------------- */

struct driver *sim_driver_make(int (*wake)(void *userdata), void *userdata);
void sim_driver_reset(void);
void sim_driver_exited(struct sim_process *process);
void sim_driver_directory_made(void);

/* ---- sim_control.c ---------------------------------------------------------------------------------------------------------------- */

struct control *sim_control_make(const struct control_handlers *handlers, void *userdata);
void sim_server_make(void);
void sim_server_free(void);
void sim_server_heal(void);
void sim_server_cancel(void *operation);
bool sim_server_quiet(void);           /* everything was delivered, every report is through */
int64_t sim_server_position(void);
struct sim_operation *sim_operation_find(const char *id);
void sim_control_check_end(void);

/* ---- sim_life.c ---------------------------------------------------------------------------------------------------------------------- */

struct sim_row {
        char state[16], outcome[24], escalation[12], driver_id[SIM_ID_MAX];
        int64_t kill_requests, report_sequence, acknowledged_sequence;
        bool withdrawn, master_answered, accepted;
        uint64_t killed_usec;
        const void *report; /* valid until the next call */
        size_t report_size;
};

void sim_life_make(const char *directory);
void sim_life_start(void *unused);
void sim_life_crash(bool power);
void sim_life_after_step(void);        /* carry out the crash that was decided on */
void sim_life_end(void);
bool sim_life_row(const char *operation_id, struct sim_row *ret); /* as it is stored */
int64_t sim_life_stored_revision(void);

/* ---- sim_check.c ---------------------------------------------------------------------------------------------------------------------- */

void sim_check_kill(struct operation *o, const char *driver_id);
void sim_check_kill_answer(struct operation *o, enum spark_answer answer, uint32_t asked);
void sim_check_status_answer(struct operation *o, const char *driver_id, const struct spark_result *result);
void sim_check_signal(struct operation *o, struct sim_process *process, int signal_number);
void sim_check_signalled(const struct operation *o, const struct sim_process *process);
void sim_check_leftover_signal(const struct operation *o, const struct sim_process *process, int signal_number);
void sim_check_report(const char *operation_id, int64_t sequence, bool final, struct span report);
void sim_check_taken(int64_t revision);
void sim_check_applied(const struct sim_operation *operation, enum cancel_outcome outcome);
bool sim_may_be_pruned(const struct sim_operation *operation);
void sim_check_stopped(void);          /* before the end of a life that was asked to stop */
void sim_check_loaded(void);           /* after a start: nothing that was acknowledged is lost */
void sim_check_end(void);
bool sim_check_all_done(void);
enum cancel_outcome sim_report_outcome(struct span report, bool *ret_done, int64_t *ret_sequence, int64_t *ret_kills);
void sim_coverage_set(void *memory);
size_t sim_coverage_size(void);
void sim_coverage_print(bool all);
