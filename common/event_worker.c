/* SPDX-License-Identifier: Apache-2.0 */
/*
 * event_worker: one thread for work that must block
 *
 * Jobs go to the thread through a queue under a mutex; finished ones come back through a second queue, and an
 * eventfd wakes the loop. The eventfd is a semaphore: each turn of the loop takes exactly one finished job and
 * calls its `done` as its very last deed, so `done` may free the worker, and many completions cannot starve
 * the other sources.
 *
 * The thread starts with all signals blocked: signals are for the loop's signalfd alone. It is made at once and
 * not with the first job, so a machine that has no room for a thread says so at the start.
 */
#include "event.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/queue.h>

struct event_job {
        int (*job)(void *userdata);
        int (*done)(int result, void *userdata);
        void *userdata;
        int result;
        STAILQ_ENTRY(event_job) entry;
};

STAILQ_HEAD(event_job_queue, event_job);

struct event_worker {
        struct event_source *source;
        int event_fd;
        pthread_t thread;
        bool thread_runs;
        pthread_mutex_t mutex; /* guards the three below */
        pthread_cond_t wake;
        struct event_job_queue waiting, finished;
        bool stopping;
};

/* queue_pop() - the first job or NULL; the caller holds the mutex. */
static struct event_job *queue_pop(struct event_job_queue *queue) {
        struct event_job *job = STAILQ_FIRST(queue);
        if (job)
                STAILQ_REMOVE_HEAD(queue, entry);
        return job;
}

static struct event_job *worker_wait(struct event_worker *worker) {
        struct event_job *job = NULL;

        pthread_mutex_lock(&worker->mutex);
        while (!worker->stopping && !(job = queue_pop(&worker->waiting)))
                pthread_cond_wait(&worker->wake, &worker->mutex);
        pthread_mutex_unlock(&worker->mutex);
        return job;
}

static void worker_finish(struct event_worker *worker, struct event_job *job) {
        pthread_mutex_lock(&worker->mutex);
        STAILQ_INSERT_TAIL(&worker->finished, job, entry);
        pthread_mutex_unlock(&worker->mutex);
        /* Can't fail: the counter would have to reach 2^64 - 1. */
        (void)eventfd_write(worker->event_fd, 1);
}

static void *worker_main(void *userdata) {
        struct event_worker *worker = userdata;
        struct event_job *job;

        while ((job = worker_wait(worker))) {
                job->result = job->job(job->userdata);
                worker_finish(worker, job);
        }
        return NULL;
}

static int on_finished(uint32_t epoll_events, void *userdata) {
        struct event_worker *worker = userdata;
        eventfd_t count;

        (void)epoll_events;
        if (eventfd_read(worker->event_fd, &count) < 0)
                return errno == EAGAIN ? 0 : -errno;
        pthread_mutex_lock(&worker->mutex);
        struct event_job *job = queue_pop(&worker->finished);
        pthread_mutex_unlock(&worker->mutex);
        if (!job)
                return 0;
        struct event_job copy = *job;
        free(job);
        return copy.done(copy.result, copy.userdata); /* the worker may be gone after this */
}

static int worker_start(struct event_worker *worker, const char *name) {
        sigset_t all, before;

        (void)sigfillset(&all);
        int r = pthread_sigmask(SIG_SETMASK, &all, &before);
        if (r > 0)
                return -r;
        int created = pthread_create(&worker->thread, NULL, worker_main, worker);
        (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (created > 0)
                return -created;
        worker->thread_runs = true;
        char short_name[16]; /* the kernel's limit */
        (void)base_text_copy(short_name, sizeof(short_name), name);
        (void)pthread_setname_np(worker->thread, short_name);
        return 0;
}

int event_worker_new(struct event *event, const char *name, struct event_worker **ret) {
        _cleanup_(event_worker_free_pointer) struct event_worker *worker = calloc(1, sizeof(*worker));
        if (!worker)
                return -ENOMEM;
        STAILQ_INIT(&worker->waiting);
        STAILQ_INIT(&worker->finished);
        worker->mutex = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
        worker->wake = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
        worker->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE);
        if (worker->event_fd < 0)
                return -errno;
        int r = event_add_io(event, name, worker->event_fd, EPOLLIN, on_finished, worker, &worker->source);
        if (r < 0)
                return r;
        r = worker_start(worker, name);
        if (r < 0)
                return r;
        *ret = TAKE(worker);
        return 0;
}

static void queue_drop(struct event_job_queue *queue) {
        struct event_job *job;
        while ((job = queue_pop(queue)))
                free(job);
}

struct event_worker *event_worker_free(struct event_worker *worker) {
        if (!worker)
                return NULL;
        if (worker->thread_runs) {
                pthread_mutex_lock(&worker->mutex);
                worker->stopping = true;
                pthread_cond_signal(&worker->wake);
                pthread_mutex_unlock(&worker->mutex);
                pthread_join(worker->thread, NULL);
        }
        queue_drop(&worker->waiting);
        queue_drop(&worker->finished);
        event_source_free(worker->source);
        base_close_pointer(&worker->event_fd);
        pthread_cond_destroy(&worker->wake);
        pthread_mutex_destroy(&worker->mutex);
        free(worker);
        return NULL;
}

int event_worker_run(struct event_worker *worker, int (*job)(void *userdata), int (*done)(int result, void *userdata),
                     void *userdata) {
        struct event_job *item = calloc(1, sizeof(*item));
        if (!item)
                return -ENOMEM;
        item->job = job;
        item->done = done;
        item->userdata = userdata;
        pthread_mutex_lock(&worker->mutex);
        STAILQ_INSERT_TAIL(&worker->waiting, item, entry);
        pthread_cond_signal(&worker->wake);
        pthread_mutex_unlock(&worker->mutex);
        return 0;
}
