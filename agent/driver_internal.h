/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * driver_internal: what the parts of the driver module share (driver.c, driver_scan.c, driver_prove.c,
 * driver_watch.c, driver_hold.c, driver_kin.c, driver_header.c); nobody else includes it
 */
#include "driver.h"
#include "driver_argv.h"
#include "driver_stat.h"

#include <sys/queue.h>
#include <sys/types.h>

#define DRIVER_PROCESSES_MAX 65536    /* driver processes of one scan */
#define DRIVER_MENTIONS_MAX 256       /* look-alikes kept of one scan */
#define DRIVER_PROCESS_MENTIONS_MAX 4 /* of these from one process */

struct driver_watch;

/* A process that passed all of the identity's checks. job_id "" when it has no (valid) job id: it is nobody's
 * answer, but it claims its driver id. */
struct driver_process {
        struct driver_found found;
        bool orphan;
        bool contested;
};

/* A process that names some job id and is not that job's driver. */
struct driver_mention {
        int32_t pid;
        const char *reason;
        char text[JOB_ID_MAX + 2]; /* what stands after "<property>=" */
};

/* A process's place in the tree. */
struct driver_kin {
        int32_t pid;
        int32_t parent;
        uint64_t start_ticks;
};

struct driver_kin_list {
        struct driver_kin *entries; /* sorted by parent */
        size_t count;
        size_t allocated;
};

/* A process that is no driver and works in a driver's directory. */
struct driver_dweller {
        int32_t pid;
        uint64_t start_ticks;
        char driver_id[DRIVER_ID_MAX + 1];
};

/* The result of one scan. */
struct driver_table {
        struct driver_process *processes; /* sorted by job id; within one, the one to act on first */
        size_t count;
        size_t allocated;
        struct driver_mention *mentions; /* in the order in which they were seen */
        size_t mention_count;
        uint32_t size; /* processes seen, of whatever user */
        struct driver_kin_list kin; /* those of the expected user */
        struct driver_dweller *dwellers; /* of them; found when first asked for */
        size_t dweller_count;
        bool dwellers_known;
};

/* A descendant of a held driver, proved while it lived. */
struct driver_relative {
        int pidfd;
        int32_t pid;
};

struct driver_hold {
        TAILQ_ENTRY(driver_hold) link; /* in driver->holds until the exit was seen */
        struct driver *driver;         /* NULL: not there */
        int pidfd;
        int32_t pid;
        struct event_source *source; /* NULL once the exit was seen */
        int (*exited)(void *userdata);
        void *userdata;
        struct driver_relative *relatives; /* NULL: none yet */
        size_t relative_count;
        bool observe;                      /* never to be signalled */
};

struct driver {
        struct event *event;
        int proc_fd;
        char *work_directory;
        char *job_id_property;
        int64_t driver_uid;
        bool observe;
        uint64_t ticks_per_second;
        struct driver_table table;
        struct buffer argv_bytes;   /* the cmdline that is looked at */
        struct buffer parent_bytes; /* its parent's */
        struct driver_watch *watch;
        TAILQ_HEAD(, driver_hold) holds; /* of drivers that live */
        struct event_source *note_timer;
        bool noting;
        char work_status[128]; /* "": readable */
};

/* The work directory as one scan sees it. */
struct driver_place {
        int fd; /* -1: not there or not readable */
        dev_t device;
        ino_t inode;
        uid_t owner;
        bool readable; /* false: only passed through */
};

/* ---- driver.c ---- */

/* driver_place_open() - open the work directory; -errno. driver_place_look() - and remember for
 * driver_work_directory_status() how that went. driver_place_close() takes one that was never opened (fd -1). */
int driver_place_open(const struct driver *driver, struct driver_place *ret);
int driver_place_look(struct driver *driver, struct driver_place *ret);
void driver_place_close(struct driver_place *place);

/* ---- driver_scan.c ---- */

void driver_table_deinit(struct driver_table *table);

/* ---- driver_proc.c: one process's files ---- */

/* driver_proc_vanished() - does this error mean that the process ended while it was looked at? */
bool driver_proc_vanished(int error);

/* driver_proc_open() - its directory, if it belongs to `uid`: the effective user, which the kernel makes the owner.
 * 1: it is somebody else's (nothing of it was read); -errno. */
int driver_proc_open(int proc_fd, int32_t pid, uid_t uid, int *ret_fd);

/* driver_proc_read_stat() - of the process with this directory. -EBADMSG; -errno. */
int driver_proc_read_stat(int process_fd, struct driver_stat *ret);

/* driver_proc_stat() - the same for `pid` below `proc_fd`, whoever owns it. */
int driver_proc_stat(int proc_fd, int32_t pid, struct driver_stat *ret);

/* driver_proc_read_uids() - 0; 1: not all four are `uid`; -errno. */
int driver_proc_check_uids(int process_fd, uid_t uid);

/* driver_proc_read_argv() - fill `bytes` with the cmdline of the process, at most its maximum; `ret_cut` says that
 * there was more. -errno. */
int driver_proc_read_argv(int process_fd, const struct driver_stat *stat, struct buffer *bytes, bool *ret_cut);

/* driver_proc_read_comm() - the process's name, escaped; "" when it can't be read. */
void driver_proc_read_comm(int proc_fd, int32_t pid, char *ret, size_t size);

/* driver_proc_read_boot() - /proc/stat's boot time in microseconds of the wall clock; 0 when it can't be read. */
uint64_t driver_proc_read_boot(int proc_fd, struct buffer *bytes);

/* ---- driver_place.c: the claim against the work directory ---- */

/* driver_place_find_id() - the driver id in a user jar path, which must stand directly below the work directory:
 * <work>/<id>/<jar>, or <work>/<id> for a job without a jar. NULL on success, else the reason as a literal. */
const char *driver_place_find_id(const struct driver_place *place, const char *jar,
                                 char ret_driver_id[DRIVER_ID_MAX + 1]);

/* driver_place_check_cwd() - NULL when the process's working directory is `driver_id`'s or can't be read, else the
 * reason. */
const char *driver_place_check_cwd(int process_fd, const char *driver_id);

/* ---- driver_kin.c: descendants ---- */

int driver_kin_init(struct driver *driver);
void driver_kin_deinit(struct driver *driver); /* holds may outlive the driver object */

/* driver_kin_list_add() - what there is no memory for is left out: the list is a hint, and what follows from it is proved. */
void driver_kin_list_add(struct driver_kin_list *list, const struct driver_stat *stat);
void driver_kin_list_sort(struct driver_kin_list *list);
void driver_kin_list_deinit(struct driver_kin_list *list);

/* driver_kin_note() - note the descendants that the last scan saw. driver_kin_note_all() - of all holds. */
void driver_kin_note(struct driver_hold *hold);
void driver_kin_note_all(struct driver *driver);

/* driver_kin_leave() - note no more: the driver has ended. driver_kin_forget() - let all that was noted go. */
void driver_kin_leave(struct driver_hold *hold);
void driver_kin_forget(struct driver_hold *hold);

/* ---- driver_watch.c: inotify on the work directory ---- */

int driver_watch_new(struct driver *driver, int (*wake)(void *userdata), void *userdata, struct driver_watch **ret);
struct driver_watch *driver_watch_free(struct driver_watch *watch);
DEFINE_CLEANUP(struct driver_watch *, driver_watch_free)

/* driver_watch_check() - is what is watched still the directory of that name? Watches the right one again if not:
 * a symlink on the way there can have been turned without a word from inotify. */
void driver_watch_check(struct driver_watch *watch);

/* driver_watch_trouble() - NULL, or why the directory can't be watched. */
const char *driver_watch_trouble(const struct driver_watch *watch);
