/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * store: durable operations in one SQLite database: open, migrate, load, commit a turn, prune
 *
 * WAL, synchronous=FULL, exclusive locking (a second agent on the same state directory is told so and exits). All
 * that one turn of the agent changed is ONE transaction, run on the writer thread; the loop goes on meanwhile.
 * The schema's version is migrated in place; a newer or foreign database is refused, a corrupt one set aside
 * under a dated name. A link-time seam: tests/sim may put a faulty disk below it.
 */
#include "base.h"
#include "cancel.h"

struct event;
struct store;
struct store_turn;

/* One operation as it is stored. Strings are copied by store_turn_put(); on load they are valid during the visit. */
struct store_operation {
        const char *operation_id, *cluster_id, *job_id, *created_by;
        const char *boot_id;             /* under which the record's event-clock times were written */
        struct span operation;           /* raw bytes of the command's Operation; empty: only the id is kept */
        struct cancel_record record;
        const char *driver_state;        /* Spark's own last word, "" */
        const char *app_name;            /* "" */
        const char *message;             /* the final report's message, or the reason of INVALID_COMMAND; "" */
        uint64_t started_real_usec;      /* driver process start; 0 */
        int64_t sequence;                /* of the last report made; the store's base before the first */
        int64_t acknowledged_sequence;   /* of the last report answered; 0 */
        int64_t report_sequence;         /* of `report`; 0: none */
        bool report_final;
        struct span report;              /* last stored, encoded CancelReport */
        uint64_t done_real_usec;         /* entered DONE; 0; for retention */
};

enum store_open_result {
        STORE_OPENED = 0,
        STORE_LOCKED = 1,     /* another agent has it */
        STORE_NEWER = 2,      /* written by a newer version */
        STORE_FOREIGN = 3,    /* a database, but not ours */
};

struct store_info {
        bool created;             /* fresh */
        bool set_aside;           /* a corrupt one was renamed to `aside` */
        char aside[100];          /* its new name within the directory; its log has the same with "-wal" behind it */
        char aside_reason[300];   /* what was wrong with it, for people */
        bool reserved;            /* space is set aside, so that commits go on when the disk is full */
        int64_t revision;         /* the stored position */
        int64_t sequence_base;    /* creation time of this store, microseconds of the wall clock */
        uint32_t schema_version;
};

/* store_open() - open or make `directory`/agent.db. Blocking (start-up). Positive: enum store_open_result, nothing is
 * opened; negative -errno, with `error` (at least 300 bytes, for people) filled in both cases. `real_usec` is the
 * wall clock, for a fresh store.
 * The directory must exist (-ENOENT): systemd makes it. A database that SQLite can't read, or that fails its
 * quick_check, or whose log has a damaged header, is renamed to agent.db.corrupt-DATE-N and a fresh one is made;
 * that is safe by the contract (the control plane replays all open operations from revision 0, and the sequences
 * of the fresh store are above those of the lost one), but must be told: info.set_aside. */
int store_open(struct event *event, const char *directory, uint64_t real_usec, struct store_info *ret_info,
               char *error, size_t error_size, struct store **ret);
/* store_close() - waits for the running commit, then closes; its `done` is not called any more. The database is left
 * in one file, the log beside it empty. */
struct store *store_close(struct store *store);
DEFINE_CLEANUP(struct store *, store_close)

/* store_load() - visit every stored operation in the order in which they were first put. Blocking; before the first
 * commit only (-EBUSY after it). A negative value of `visit` ends it and is returned (`error` is "" then).
 * Every value is checked for type, range and word. -EBADMSG: one is wrong, `error` (at least 300 bytes) names
 * operation and column. A readable file is not set aside for that: nothing of it may be lost in silence, so the
 * agent does not start, and a person repairs the row with sqlite3 or moves agent.db away. -EUCLEAN: unreadable. */
int store_load(struct store *store, int (*visit)(const struct store_operation *operation, void *userdata),
               void *userdata, char *error, size_t error_size);

/* A turn: changes are gathered, then handed over by store_commit(). They are done in the order in which they were
 * given: of several puts of one operation the last wins.
 * store_turn_put() refuses what could not be read back and leaves the turn as before: -EINVAL (no operation id, an
 * enum without a name, a driver id that is none), -ERANGE (a time above INT64_MAX that is not USEC_NEVER),
 * -EMSGSIZE (a text above 16 KiB, bytes above 256 KiB); -ENOMEM. Text pointers may be NULL: stored as "".
 * store_turn_delete(): an id that is not stored is no error; -EINVAL: no operation id; -ENOMEM. */
int store_turn_new(struct store *store, struct store_turn **ret);
struct store_turn *store_turn_free(struct store_turn *turn);
DEFINE_CLEANUP(struct store_turn *, store_turn_free)
int store_turn_put(struct store_turn *turn, const struct store_operation *operation); /* insert or replace; copies */
int store_turn_delete(struct store_turn *turn, const char *operation_id);
void store_turn_set_revision(struct store_turn *turn, int64_t revision);
bool store_turn_is_empty(const struct store_turn *turn);

/* store_commit() - run the turn as one transaction on the writer thread; takes the turn over on success. `done`
 * comes on the loop: 0, or negative when nothing of it is stored (-ENOSPC, -EIO, …); `error` for people ("" when
 * there is none; valid during the call), and how long the writer worked on it.
 * After a failure the turn is gone: what the caller still wants stored it hands over again, and the connection works
 * as soon as the disk does. (A flush that failed may still have reached the disk. After a crash such a turn can turn
 * out to be stored: as if the crash had come a moment later.)
 * -EBADMSG, -EMSGSIZE: SQLite refuses the statement or the value, a defect of ours; every other failure is the disk's
 * or the memory's.
 * One commit at a time: -EBUSY before `done`. -ENOMEM: the turn is the caller's. */
int store_commit(struct store *store, struct store_turn *turn,
                 int (*done)(int result, const char *error, uint64_t took_usec, void *userdata), void *userdata);
