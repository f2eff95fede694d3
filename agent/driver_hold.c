/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver_hold: keep a proved process by its pidfd
 *
 * A pid found by a scan may be another process a moment later. A pidfd is bound to one process for ever; the
 * start time, read after it was opened, proves that it is the one that was found. From then on its end is an
 * event (the pidfd becomes readable when the last thread has ended, whoever reaps it), and a signal can't hit
 * anybody else.
 */
#include "driver_internal.h"
#include "event.h"

#include <sys/epoll.h>
#include <sys/syscall.h>

/* By number: glibc has the functions from 2.36 on, RHEL 9 has 2.34. */
static int pidfd_open_raw(int32_t pid) {
        int fd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0U);

        return fd < 0 ? -errno : fd;
}

static int on_exit_seen(uint32_t epoll_events, void *userdata) {
        struct driver_hold *hold = userdata;

        (void)epoll_events;
        hold->source = event_source_free(hold->source);
        driver_kin_leave(hold);
        return hold->exited(hold->userdata); /* may free the hold */
}

/* prove() - is (pid, start time), read now, still the process found? 0; 1: gone; -errno. */
static int prove(const struct driver *driver, const struct driver_found *found) {
        struct driver_stat stat;
        int r = driver_proc_stat(driver->proc_fd, found->pid, &stat);

        if (driver_proc_vanished(r))
                return 1;
        if (r < 0)
                return r;
        return stat.pid == found->pid && stat.start_ticks == found->start_ticks && driver_stat_is_alive(&stat) ? 0 : 1;
}

int driver_hold(struct driver *driver, const struct driver_found *found, int (*exited)(void *userdata), void *userdata,
                struct driver_hold **ret) {
        _cleanup_(driver_hold_free_pointer) struct driver_hold *hold = NULL;
        int r;

        if (found->pid <= 0)
                return -EINVAL;
        hold = calloc(1, sizeof(*hold));
        if (!hold)
                return -ENOMEM;
        hold->pid = found->pid;
        hold->observe = driver->observe;
        hold->exited = exited;
        hold->userdata = userdata;
        hold->pidfd = pidfd_open_raw(found->pid);
        if (hold->pidfd == -ESRCH)
                return 1;
        if (hold->pidfd < 0)
                return hold->pidfd;
        r = prove(driver, found);
        if (r != 0)
                return r;
        r = event_add_io(driver->event, "driver-exit", hold->pidfd, EPOLLIN, on_exit_seen, hold, &hold->source);
        if (r < 0)
                return r;
        hold->driver = driver;
        TAILQ_INSERT_TAIL(&driver->holds, hold, link);
        driver_kin_note(hold);
        *ret = TAKE(hold);
        return 0;
}

struct driver_hold *driver_hold_free(struct driver_hold *hold) {
        if (!hold)
                return NULL;
        driver_kin_leave(hold);
        driver_kin_forget(hold);
        event_source_free(hold->source);
        if (hold->pidfd >= 0)
                close(hold->pidfd);
        free(hold);
        return NULL;
}

int driver_signal(struct driver_hold *hold, int signal_number) {
        if (signal_number != SIGTERM && signal_number != SIGKILL)
                return -EINVAL;
        if (hold->observe)
                return -ECANCELED;
        if (!hold->source)
                return -ESRCH;
        return syscall(SYS_pidfd_send_signal, hold->pidfd, signal_number, NULL, 0U) < 0 ? -errno : 0;
}
