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
        struct span operation;           /* raw bytes of the command's Operation; empty: id remembered only (withdrawn) */
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
        char aside[300];
        int64_t revision;         /* the stored position */
        int64_t sequence_base;    /* creation time of this store, microseconds of the wall clock */
        uint32_t schema_version;
};

/* store_open() - open or make `directory`/agent.db. Blocking (start-up). Positive: enum store_open_result, nothing is
 * opened; negative -errno, with `error` (at least 300 bytes, for people) filled in both cases. `real_usec` is the
 * wall clock, for a fresh store. */
int store_open(struct event *event, const char *directory, uint64_t real_usec, struct store_info *ret_info,
               char *error, size_t error_size, struct store **ret);
/* store_close() - waits for the running commit, then closes. */
struct store *store_close(struct store *store);
DEFINE_CLEANUP(struct store *, store_close)

/* store_load() - visit every stored operation, oldest first. Blocking; before the first commit only. */
int store_load(struct store *store, int (*visit)(const struct store_operation *operation, void *userdata),
               void *userdata);

/* A turn: changes are gathered, then handed over by store_commit(). */
int store_turn_new(struct store *store, struct store_turn **ret);
struct store_turn *store_turn_free(struct store_turn *turn);
DEFINE_CLEANUP(struct store_turn *, store_turn_free)
int store_turn_put(struct store_turn *turn, const struct store_operation *operation); /* insert or replace; copies */
int store_turn_delete(struct store_turn *turn, const char *operation_id);
void store_turn_set_revision(struct store_turn *turn, int64_t revision);
bool store_turn_is_empty(const struct store_turn *turn);

/* store_commit() - run the turn as one transaction on the writer thread; takes the turn over on success. `done`
 * comes on the loop: 0, or negative when nothing of it is stored (-ENOSPC, -EIO, …); `error` for people, and how
 * long the commit took. One commit at a time: a second one before `done` is -EBUSY. */
int store_commit(struct store *store, struct store_turn *turn,
                 int (*done)(int result, const char *error, uint64_t took_usec, void *userdata), void *userdata);

/* store_retry() - after a failed commit: run the same turn again, `done` as before. -EINVAL if there is none. */
int store_retry(struct store *store);
