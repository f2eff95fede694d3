/* SPDX-License-Identifier: Apache-2.0 */
/*
 * event: the only door to sd-event
 *
 * Why sd-event: it knows timers on CLOCK_BOOTTIME, signals and systemd's watchdog, and orders what is ready.
 * The loop around it is our own (sd_event_run(), not sd_event_loop()), for two reasons:
 *
 * - Deferred sources are a plain queue here. They run when no descriptor is ready, so that one turn gathers
 *   all the I/O there is; but after DISPATCH_MAX dispatches they run all the same, or a busy client of the
 *   local bus could hold back the kills.
 * - sd_event_exit() is for ever; our tests run one loop many times.
 *
 * Trap: a handler may free its own source (and everything around it). So a trampoline reads all that it needs
 * before the call and touches only the loop after it.
 */
#include "event.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/queue.h>
#include <systemd/sd-event.h>

#define TIMER_ACCURACY_USEC USEC_PER_MSEC /* sd-event takes 0 for 250 ms */
#define DISPATCH_MAX 64
#define BOOT_ID_LENGTH 36

TAILQ_HEAD(event_source_queue, event_source);

struct event {
        sd_event *loop;
        struct event_source_queue scheduled; /* deferred sources that wait for their call, oldest first */
        uint64_t pass;                       /* of run_deferred() */
        bool exiting;
        int exit_value;
        char boot_id[BOOT_ID_LENGTH + 1];
};

struct event_source {
        struct event *event;
        sd_event_source *source; /* NULL: a deferred one */
        event_io_handler io_handler;
        event_handler handler;
        void *userdata;
        bool scheduled;
        uint64_t pass; /* scheduled in this pass: its call is in the next one */
        TAILQ_ENTRY(event_source) entry;
};

/* ---- the loop ------------------------------------------------------------------------------------- */

static int read_boot_id(char boot_id[BOOT_ID_LENGTH + 1]) {
        _cleanup_close_ int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        ssize_t size = read(fd, boot_id, BOOT_ID_LENGTH);
        if (size < 0)
                return -errno;
        if (size != BOOT_ID_LENGTH)
                return -EIO;
        boot_id[BOOT_ID_LENGTH] = '\0';
        return base_id_is_valid(boot_id, BOOT_ID_LENGTH, BOOT_ID_LENGTH) ? 0 : -EIO;
}

int event_new(bool watchdog, struct event **ret) {
        _cleanup_(event_free_pointer) struct event *event = calloc(1, sizeof(*event));
        if (!event)
                return -ENOMEM;
        TAILQ_INIT(&event->scheduled);
        int r = read_boot_id(event->boot_id);
        if (r < 0)
                return r;
        r = sd_event_new(&event->loop);
        if (r < 0)
                return r;
        if (watchdog) {
                r = sd_event_set_watchdog(event->loop, true);
                if (r < 0)
                        return r;
        }
        *ret = TAKE(event);
        return 0;
}

struct event *event_free(struct event *event) {
        if (!event)
                return NULL;
        sd_event_unref(event->loop);
        free(event);
        return NULL;
}

/* The first failure stays: what follows it on the way out must not look like a clean exit. */
void event_exit(struct event *event, int value) {
        if (event->exiting && event->exit_value < 0)
                return;
        event->exiting = true;
        event->exit_value = value;
}

static void event_check_result(struct event *event, int result) {
        if (result < 0)
                event_exit(event, result);
}

/* run_deferred() - those that are scheduled now; one that schedules itself again has its call in the next turn. */
static void run_deferred(struct event *event) {
        uint64_t pass = event->pass++;
        struct event_source *source;

        while (!event->exiting && (source = TAILQ_FIRST(&event->scheduled)) && source->pass <= pass) {
                TAILQ_REMOVE(&event->scheduled, source, entry);
                source->scheduled = false;
                event_check_result(event, source->handler(source->userdata));
        }
}

int event_run(struct event *event) {
        unsigned dispatched = 0;

        while (!event->exiting) {
                bool waiting = !TAILQ_EMPTY(&event->scheduled);
                int r = sd_event_run(event->loop, waiting ? 0 : UINT64_MAX);
                if (r < 0)
                        return r;
                dispatched = r > 0 ? dispatched + 1 : 0;
                if (waiting && !event->exiting && (r == 0 || dispatched >= DISPATCH_MAX)) {
                        run_deferred(event);
                        dispatched = 0;
                }
        }
        event->exiting = false;
        return event->exit_value;
}

static uint64_t now_usec(struct event *event, clockid_t clock) {
        uint64_t usec;
        if (sd_event_now(event->loop, clock, &usec) < 0)
                abort(); /* both clocks are always there; a made-up time could make us lie about a death */
        return usec;
}

uint64_t event_now_usec(struct event *event) {
        return now_usec(event, CLOCK_BOOTTIME);
}

uint64_t event_real_usec(struct event *event) {
        return now_usec(event, CLOCK_REALTIME);
}

const char *event_boot_id(struct event *event) {
        return event->boot_id;
}

/* ---- sources -------------------------------------------------------------------------------------- */

static int source_new(struct event *event, event_handler handler, void *userdata, struct event_source **ret) {
        struct event_source *source = calloc(1, sizeof(*source));
        if (!source)
                return -ENOMEM;
        source->event = event;
        source->handler = handler;
        source->userdata = userdata;
        *ret = source;
        return 0;
}

/* source_finish() - what every sd-event source gets. Handlers' failures are seen by the trampolines; exit-on-failure
 * is for failures within sd-event. */
static int source_finish(struct event_source *source, const char *name) {
        int r = sd_event_source_set_description(source->source, name);
        if (r < 0)
                return r;
        return sd_event_source_set_exit_on_failure(source->source, true);
}

struct event_source *event_source_free(struct event_source *source) {
        if (!source)
                return NULL;
        if (source->scheduled)
                TAILQ_REMOVE(&source->event->scheduled, source, entry);
        sd_event_source_disable_unref(source->source);
        free(source);
        return NULL;
}

static int on_io(sd_event_source *sd_source, int fd, uint32_t epoll_events, void *userdata) {
        struct event_source *source = userdata;
        struct event *event = source->event;

        (void)sd_source;
        (void)fd;
        event_check_result(event, source->io_handler(epoll_events, source->userdata));
        return 0;
}

int event_add_io(struct event *event, const char *name, int fd, uint32_t epoll_events, event_io_handler handler,
                 void *userdata, struct event_source **ret) {
        _cleanup_(event_source_free_pointer) struct event_source *source = NULL;
        int r = source_new(event, NULL, userdata, &source);
        if (r < 0)
                return r;
        source->io_handler = handler;
        r = sd_event_add_io(event->loop, &source->source, fd, epoll_events, on_io, source);
        if (r < 0)
                return r;
        r = source_finish(source, name);
        if (r < 0)
                return r;
        if (epoll_events == 0) {
                r = event_io_set(source, 0);
                if (r < 0)
                        return r;
        }
        *ret = TAKE(source);
        return 0;
}

int event_io_set(struct event_source *source, uint32_t epoll_events) {
        /* epoll reports EPOLLHUP and EPOLLERR even to who asked for nothing: that would spin. */
        if (epoll_events == 0)
                return sd_event_source_set_enabled(source->source, SD_EVENT_OFF);
        int r = sd_event_source_set_io_events(source->source, epoll_events);
        if (r < 0)
                return r;
        return sd_event_source_set_enabled(source->source, SD_EVENT_ON);
}

static int on_timer(sd_event_source *sd_source, uint64_t usec, void *userdata) {
        struct event_source *source = userdata;
        struct event *event = source->event;

        (void)sd_source;
        (void)usec;
        event_check_result(event, source->handler(source->userdata));
        return 0;
}

int event_add_timer(struct event *event, const char *name, event_handler handler, void *userdata,
                    struct event_source **ret) {
        _cleanup_(event_source_free_pointer) struct event_source *source = NULL;
        int r = source_new(event, handler, userdata, &source);
        if (r < 0)
                return r;
        r = sd_event_add_time(event->loop, &source->source, CLOCK_BOOTTIME, USEC_NEVER, TIMER_ACCURACY_USEC, on_timer,
                              source);
        if (r < 0)
                return r;
        r = source_finish(source, name);
        if (r < 0)
                return r;
        r = sd_event_source_set_enabled(source->source, SD_EVENT_OFF);
        if (r < 0)
                return r;
        *ret = TAKE(source);
        return 0;
}

int event_timer_set(struct event_source *source, uint64_t at_usec) {
        return event_timer_set_coarse(source, at_usec, TIMER_ACCURACY_USEC);
}

int event_timer_set_coarse(struct event_source *source, uint64_t at_usec, uint64_t slack_usec) {
        if (at_usec == USEC_NEVER)
                return sd_event_source_set_enabled(source->source, SD_EVENT_OFF);
        int r = sd_event_source_set_time(source->source, at_usec);
        if (r < 0)
                return r;
        r = sd_event_source_set_time_accuracy(source->source, base_max_u64(slack_usec, TIMER_ACCURACY_USEC));
        if (r < 0)
                return r;
        return sd_event_source_set_enabled(source->source, SD_EVENT_ONESHOT);
}

int event_add_deferred(struct event *event, const char *name, event_handler handler, void *userdata,
                       struct event_source **ret) {
        (void)name; /* no sd-event source behind it that could carry the name */
        return source_new(event, handler, userdata, ret);
}

int event_deferred_schedule(struct event_source *source) {
        if (source->scheduled)
                return 0;
        source->scheduled = true;
        source->pass = source->event->pass;
        TAILQ_INSERT_TAIL(&source->event->scheduled, source, entry);
        return 0;
}

static int on_signal(sd_event_source *sd_source, const struct signalfd_siginfo *info, void *userdata) {
        struct event_source *source = userdata;
        struct event *event = source->event;

        (void)sd_source;
        (void)info;
        event_check_result(event, source->handler(source->userdata));
        return 0;
}

int event_add_signal(struct event *event, const char *name, int signal_number, event_handler handler, void *userdata,
                     struct event_source **ret) {
        _cleanup_(event_source_free_pointer) struct event_source *source = NULL;
        sigset_t set;

        if (sigemptyset(&set) < 0 || sigaddset(&set, signal_number) < 0)
                return -errno;
        int r = source_new(event, handler, userdata, &source);
        if (r < 0)
                return r;
        r = pthread_sigmask(SIG_BLOCK, &set, NULL);
        if (r > 0)
                return -r;
        r = sd_event_add_signal(event->loop, &source->source, signal_number, on_signal, source);
        if (r < 0)
                return r;
        r = source_finish(source, name);
        if (r < 0)
                return r;
        *ret = TAKE(source);
        return 0;
}
