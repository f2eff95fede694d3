/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * driver: find a job's driver on this node, prove that it is, and see it end
 *
 * argv can be written by any local user, so identity is proved, not read (docs/architecture.md, "Identity"):
 * owner, DriverWrapper as main class, the FIRST -D<job_id_property>= before it, a Worker JVM of the same owner as
 * parent, and driver ids of argv, jar path and (where readable) cwd that agree; the jar's directory lies under
 * the work directory. One pass over /proc serves all who ask in a turn. A proved process is held by its pidfd:
 * its end is seen there, never by polling a pid, and its descendants are noted while it lives. Directories come in as descriptors, so tests scan built trees.
 * A link-time seam: tests/sim has a fake of this header.
 */
#include "base.h"

struct event;
struct driver;
struct driver_hold;

struct driver_options {
        int proc_fd;                 /* a directory like /proc; not owned */
        const char *work_directory;  /* path; may not exist yet: watched for */
        const char *job_id_property; /* spark.yandex.job.id */
        int64_t driver_uid;          /* the expected owner; -1: owner of the work directory */
        bool observe;                /* no signal is sent: driver_signal*() are -ECANCELED */
};

struct driver_found {
        int32_t pid, worker_pid; /* worker_pid 0: orphan, its Worker is gone */
        uint64_t start_ticks, worker_start_ticks;
        char job_id[JOB_ID_MAX + 1];
        char driver_id[DRIVER_ID_MAX + 1];
        char app_name[64]; /* -Dspark.app.name, escaped and cut; "" */
        uint64_t started_real_usec;
        bool supervised;
};

enum driver_match {
        DRIVER_MATCH_NONE = 0,
        DRIVER_MATCH_ONE = 1,       /* `ret` is filled */
        DRIVER_MATCH_CONTESTED = 2, /* its driver id is claimed by a process of another job too: kill neither */
        DRIVER_MATCH_ORPHAN = 3, /* `ret` is filled; parent is no Worker: counts only if it was seen before under one */
};

/* A process that looked like the job's driver and was refused. For logs and `spark-cancelctl find`. */
struct driver_lookalike {
        int32_t pid;
        const char *reason; /* a literal: "owner is not the expected user" */
};

/* `wake` is called (with the driver's userdata) when the work directory shows that a driver is starting. */
int driver_new(struct event *event, const struct driver_options *options, int (*wake)(void *userdata), void *userdata,
               struct driver **ret);
struct driver *driver_free(struct driver *driver);
DEFINE_CLEANUP(struct driver *, driver_free)

/* driver_scan() - one pass over the processes; replaces the table that driver_match() reads. Processes that vanish
 * meanwhile are normal; -errno when we could not look (no descriptor or memory left, no permission), and then the
 * table stays as it was: a scan that failed must not be taken for "no driver". -EACCES: other users' processes are
 * not shown (hidepid=, ProtectProc=). */
int driver_scan(struct driver *driver);
uint32_t driver_scan_size(const struct driver *driver); /* processes seen in the last pass */

/* driver_count() - the processes of the last scan that passed as some job's driver. */
uint32_t driver_count(const struct driver *driver);

/* driver_match() - what the last scan says of `job_id`: the first of its processes, in a fixed order, that stands behind
 * `after` (pid, start_ticks; NULL: of all). Any process of the drivers' user can claim to be a driver of any job, so a
 * caller that finds one to be none goes on with the next: none hides another. The newest comes first, so what starts later
 * stands before all that was seen. Contested ones are passed over; CONTESTED says that nothing else is left, and `ret` is
 * one of them. O(log n), and the number of the job's own processes. */
enum driver_match driver_match(const struct driver *driver, const char *job_id, const struct driver_found *after,
                               struct driver_found *ret);

/* driver_process_alive() - does (pid, start time) still exist, and is it no zombie? Reads the process directory now.
 * True as well when that can't be read: false is a proof of its end. */
bool driver_process_alive(const struct driver *driver, int32_t pid, uint64_t start_ticks);

/* driver_directory_exists() - is there a directory of that (valid) driver id in the work directory, no symlink? */
bool driver_directory_exists(const struct driver *driver, const char *driver_id);

/* driver_lookalikes() - visit the refused processes of the last scan that bear `job_id` anywhere in their argv, each
 * once. At most 256 of a scan are kept. Other users' processes are not among them: their argv is never read. */
void driver_lookalikes(const struct driver *driver, const char *job_id,
                       void (*visit)(const struct driver_lookalike *lookalike, void *userdata), void *userdata);

/* driver_hold() - open a pidfd and prove, after it is open, that it is still the found process (start time).
 * `exited` is called once, on the loop, when the process has ended. 0; 1: it is gone already (no hold is made);
 * -errno. driver_hold_free() - no callback any more; closes the pidfd. */
int driver_hold(struct driver *driver, const struct driver_found *found, int (*exited)(void *userdata), void *userdata,
                struct driver_hold **ret);
struct driver_hold *driver_hold_free(struct driver_hold *hold);
DEFINE_CLEANUP(struct driver_hold *, driver_hold_free)

/* A process that outlived its driver. */
struct driver_leftover {
        int32_t pid;
        bool held;     /* a noted descendant: driver_signal_leftovers() reaches it */
        char comm[64]; /* /proc/PID/comm, escaped; "" when it can't be read. Chosen by the process */
};

/* driver_note_descendants() - note the processes that descend from the held driver: soon, some milliseconds from now and
 * in one pass for all holds, so that a kill that has just been handed over leaves first. For the time right after a
 * kill request: driver_hold() and each driver_scan() note those of the expected user without being asked. At most 256
 * of a hold. */
void driver_note_descendants(struct driver_hold *hold);

/* driver_hold_join() - `hold` takes over what an `earlier` one (may be NULL), which is freed, has noted: one operation may
 * see several drivers end. */
void driver_hold_join(struct driver_hold *hold, struct driver_hold *earlier);

/* driver_leftovers() - visit the processes that an ended driver has left behind, each once, and count them: noted
 * descendants that are alive (of `hold`, NULL: nothing was noted), and processes of the expected user that the last scan
 * saw work in the directory of `driver_id` and that are no drivers, where we have the right to see that. A lower bound. */
uint32_t driver_leftovers(struct driver *driver, const struct driver_hold *hold, const char *driver_id,
                          void (*visit)(const struct driver_leftover *leftover, void *userdata), void *userdata);

/* driver_signal_leftovers() - SIGTERM or SIGKILL to the noted descendants that are alive, through their pidfds; never to
 * one that is known by its working directory only. How many got it; -ESRCH: nobody is left; -EPERM; -errno. */
int driver_signal_leftovers(struct driver_hold *hold, int signal_number);

/* driver_signal() - SIGTERM or SIGKILL through the held pidfd. -ESRCH: it is gone; -EPERM; -errno. */
int driver_signal(struct driver_hold *hold, int signal_number);

/* driver_work_directory_status() - NULL when readable and watched, else why not ("does not exist"), for STATUS and
 * `spark-cancelctl status`. As of the last scan; valid until the next one. */
const char *driver_work_directory_status(const struct driver *driver);

/* driver_recent() - the driver that ran `job_id` here not long ago, by what its Worker wrote into the driver's
 * directory: for people and logs. A hint only, since the job's owner can write there: no kill and no report may rest on
 * it. Reads up to 256 files of the work directory, so ask once, not in each turn. 0; 1: none known; -errno. */
int driver_recent(const struct driver *driver, const char *job_id, char ret_driver_id[DRIVER_ID_MAX + 1]);
