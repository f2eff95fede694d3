/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * fuzz_loop: for the targets that need the loop and a peer's socket
 *
 * One loop serves all inputs of a process. What the peer says is put into a local socket in pieces; the next piece, and
 * the end, come when the product has nothing left to do: no clock and no thread decides, so the same bytes take the
 * same path. "Nothing left to do" is a deferred source's call, which the loop makes when no descriptor is ready, a few
 * times over, since the product's own deferred sources run in that pass, too.
 */
#include "fuzz.h"
#include "event.h"

#define FUZZ_IDLE_PASSES 3

struct fuzz_loop {
        struct event *event;
        struct event_source *step;
        unsigned idle;
        bool (*next)(void *userdata); /* the peer's next deed; false: it has done all */
        void *userdata;
};

static inline int fuzz_loop_on_step(void *userdata) {
        struct fuzz_loop *loop = userdata;

        if (++loop->idle >= FUZZ_IDLE_PASSES) {
                loop->idle = 0;
                if (!loop->next(loop->userdata)) {
                        event_exit(loop->event, 0);
                        return 0;
                }
        }
        return event_deferred_schedule(loop->step);
}

/* fuzz_loop() - the process's one loop; kept to the end. */
static inline struct fuzz_loop *fuzz_loop(void) {
        static struct fuzz_loop loop;

        if (!loop.event) {
                FUZZ_CHECK(event_new(false, &loop.event) == 0);
                FUZZ_CHECK(event_add_deferred(loop.event, "fuzz", fuzz_loop_on_step, &loop, &loop.step) == 0);
                (void)signal(SIGPIPE, SIG_IGN);
        }
        return &loop;
}

/* fuzz_loop_run() - until `next` says false; a failure of the loop is a defect. */
static inline void fuzz_loop_run(struct fuzz_loop *loop, bool (*next)(void *userdata), void *userdata) {
        loop->next = next;
        loop->userdata = userdata;
        loop->idle = 0;
        FUZZ_CHECK(event_deferred_schedule(loop->step) == 0);
        FUZZ_CHECK(event_run(loop->event) == 0);
}
