/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * event: the only door to sd-event
 *
 * One loop, one thread, one clock reading per turn of the loop. Sources are owned by whoever made them;
 * freeing one means that its callback is never called again, also not later in the same turn. A callback that
 * returns a negative value ends the loop with that value: a dead daemon is restarted, a deaf one is not.
 * This header is a link-time seam: tests/sim has a second event.c with a virtual clock.
 *
 * Work that must block (a commit, a name look-up) goes to a worker: one thread, jobs in order, completion
 * back on the loop. Nothing else in the program makes threads.
 */
#include "base.h"

struct event;        /* the loop */
struct event_source; /* something it waits for */
struct event_worker; /* one thread for blocking work */

/* event_new() - make the loop; `watchdog` also feeds systemd's watchdog from it when the unit asks for one.
 * event_free() frees it; all sources and workers must be freed before. */
int event_new(bool watchdog, struct event **ret);
struct event *event_free(struct event *event);
DEFINE_CLEANUP(struct event *, event_free)

/* event_run() - until event_exit() or a callback's failure; returns the exit value, negative on failure. May be
 * called again afterwards. event_exit(): the running callback is the last one; a failure is not overwritten by a
 * later value. Before event_run() it makes that return at once. */
int event_run(struct event *event);
void event_exit(struct event *event, int value);

/* event_now_usec() - CLOCK_BOOTTIME, read once per turn of the loop. It goes on through suspend and is the same
 * clock for every process of one boot, so a stored value stays good over a restart of the daemon (not of the
 * machine: compare event_boot_id()). event_real_usec() - CLOCK_REALTIME, for what people and peers read. */
uint64_t event_now_usec(struct event *event);
uint64_t event_real_usec(struct event *event);

/* event_boot_id() - 36 characters of the running kernel's boot id, for the loop's lifetime. */
const char *event_boot_id(struct event *event);

/* ---- sources. `name` is a literal, for debugging. -------------------------------------------------- */

typedef int (*event_io_handler)(uint32_t epoll_events, void *userdata);
typedef int (*event_handler)(void *userdata);

/* event_add_io() - call on EPOLLIN/EPOLLOUT/… of `fd` (level-triggered, not owned; free the source before closing
 * it). No events at all (0) pauses the source, EPOLLHUP and EPOLLERR included. */
int event_add_io(struct event *event, const char *name, int fd, uint32_t epoll_events,
                 event_io_handler handler, void *userdata, struct event_source **ret);
int event_io_set(struct event_source *source, uint32_t epoll_events);

/* event_add_timer() - made disarmed. event_timer_set(): fire once at `at_usec` of event_now_usec()'s clock;
 * USEC_NEVER disarms; a time that is past fires in the next turn. Accuracy is 1 ms; event_timer_set_coarse()
 * lets the loop delay it by up to `slack_usec` to share wake-ups. */
int event_add_timer(struct event *event, const char *name, event_handler handler, void *userdata,
                    struct event_source **ret);
int event_timer_set(struct event_source *source, uint64_t at_usec);
int event_timer_set_coarse(struct event_source *source, uint64_t at_usec, uint64_t slack_usec);

/* event_add_deferred() - made idle. event_deferred_schedule(): call once in the next turn; several calls
 * before that are one. Runs after the turn's I/O. */
int event_add_deferred(struct event *event, const char *name, event_handler handler, void *userdata,
                       struct event_source **ret);
int event_deferred_schedule(struct event_source *source);

/* event_add_signal() - SIGTERM, SIGHUP, …: blocks the signal and calls in the loop. */
int event_add_signal(struct event *event, const char *name, int signal_number, event_handler handler,
                     void *userdata, struct event_source **ret);

struct event_source *event_source_free(struct event_source *source);
DEFINE_CLEANUP(struct event_source *, event_source_free)

/* ---- workers --------------------------------------------------------------------------------------- */

/* event_worker_new() - a thread that runs jobs in the order in which they were given, with all signals blocked.
 * event_worker_free() - waits for the running job, drops the ones that have not begun (their `done` is not
 * called) and joins the thread. No `done` is called after it, also not of a job that has ended, so all userdata is
 * the caller's again. Legal within a `done`. */
int event_worker_new(struct event *event, const char *name, struct event_worker **ret);
struct event_worker *event_worker_free(struct event_worker *worker);
DEFINE_CLEANUP(struct event_worker *, event_worker_free)

/* event_worker_run() - `job` runs on the thread and its return value is handed to `done` on the loop. `userdata`
 * belongs to the job until `done` is called. -ENOMEM. */
int event_worker_run(struct event_worker *worker, int (*job)(void *userdata),
                     int (*done)(int result, void *userdata), void *userdata);
