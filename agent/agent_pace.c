/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One kill at a time per Worker.
 *
 * A Worker kills inside its message loop and does nothing else meanwhile, heartbeats included; a flood of kills for
 * deaf drivers makes the master give the whole Worker up, and healthy bystanders die. So at most kills_per_worker
 * are outstanding at one Worker process (pid and start time); the next one goes out when the last one's death is
 * proved or its kill_retry is over, and after a slow one the Worker gets room for its heartbeats. It costs nothing,
 * since the Worker is serial anyway, and lets us choose the order. An operation that ends first (its deadline passed,
 * the driver lives) leaves its slot behind: the Worker knows nothing of deadlines.
 */
#include "agent_internal.h"

#define SLOW_KILL_USEC (5 * USEC_PER_SEC)

static struct worker *worker_get(struct agent *agent, const struct cancel_process *process) {
        struct worker *worker;

        TAILQ_FOREACH(worker, &agent->workers, link)
                if (worker->pid == process->worker_pid && worker->start_ticks == process->worker_start_ticks)
                        return worker;
        worker = calloc(1, sizeof *worker);
        if (!worker)
                return NULL;
        worker->pid = process->worker_pid;
        worker->start_ticks = process->worker_start_ticks;
        TAILQ_INIT(&worker->waiting);
        TAILQ_INIT(&worker->kept);
        TAILQ_INSERT_TAIL(&agent->workers, worker, link);
        return worker;
}

static void worker_drop_if_idle(struct agent *agent, struct worker *worker) {
        if (worker->outstanding > 0 || !TAILQ_EMPTY(&worker->waiting))
                return;
        if (worker->free_usec > event_now_usec(agent->event))
                return; /* its room must be remembered */
        TAILQ_REMOVE(&agent->workers, worker, link);
        free(worker);
}

void pace_want(struct operation *o) {
        struct worker *worker;

        agent_schedule_turn(o->agent);
        if (o->worker) { /* it holds the slot already and has its turn in pace_grant(), or waits for it */
                agent_touch(o);
                return;
        }
        worker = worker_get(o->agent, &o->cancel.record.process);
        if (!worker) { /* out of memory: in the next turn again */
                o->cancel.wants_slot = false;
                o->cancel.retry_usec = event_now_usec(o->agent->event) + USEC_PER_SEC;
                return;
        }
        o->worker = worker;
        TAILQ_INSERT_TAIL(&worker->waiting, o, slot_link);
}

/* Until when the Worker may be at this operation's last kill; 0: it is not. */
static uint64_t busy_until_usec(const struct operation *o) {
        const struct cancel_record *r = &o->cancel.record;
        uint64_t until = base_usec_add(r->killed_usec, o->agent->config->kill_retry_usec);
        bool gone = r->state == CANCEL_SETTLE || r->ended_usec > r->killed_usec;

        return r->killed_usec == 0 || gone || until <= event_now_usec(o->agent->event) ? 0 : until;
}

/* The slot stays taken. Without memory for it nothing is sent to this Worker for as long. */
static void worker_keep(struct worker *worker, uint64_t until_usec) {
        struct kept_slot *kept = calloc(1, sizeof *kept), *later;

        if (!kept) {
                worker->outstanding--;
                worker->free_usec = base_max_u64(worker->free_usec, until_usec);
                return;
        }
        kept->until_usec = until_usec;
        TAILQ_FOREACH(later, &worker->kept, link)
                if (later->until_usec > until_usec)
                        break;
        if (later)
                TAILQ_INSERT_BEFORE(later, kept, link);
        else
                TAILQ_INSERT_TAIL(&worker->kept, kept, link);
}

static void worker_expire(struct worker *worker, uint64_t now) {
        struct kept_slot *kept;

        while ((kept = TAILQ_FIRST(&worker->kept)) && kept->until_usec <= now) {
                TAILQ_REMOVE(&worker->kept, kept, link);
                worker->outstanding--;
                free(kept);
        }
}

static void release_slot(struct operation *o, uint64_t now) {
        struct worker *worker = o->worker;
        uint64_t until = busy_until_usec(o), killed = o->cancel.record.killed_usec;

        if (until > 0) {
                worker_keep(worker, until);
                return;
        }
        worker->outstanding--;
        if (killed > 0 && base_usec_sub(now, killed) > SLOW_KILL_USEC)
                worker->free_usec = base_max_u64(worker->free_usec, now + o->agent->config->worker_heartbeat_usec);
}

void pace_release(struct operation *o) {
        struct worker *worker = o->worker;
        uint64_t now = event_now_usec(o->agent->event);

        if (!worker)
                return;
        if (o->has_slot)
                release_slot(o, now);
        else
                TAILQ_REMOVE(&worker->waiting, o, slot_link);
        o->worker = NULL;
        o->has_slot = false;
        worker_drop_if_idle(o->agent, worker);
        agent_schedule_turn(o->agent);
}

void pace_adopt(struct operation *o) {
        struct worker *worker = worker_get(o->agent, &o->cancel.record.process);

        if (!worker)
                return;
        o->worker = worker;
        o->has_slot = true;
        worker->outstanding++;
}

void pace_keep(struct operation *o) {
        struct worker *worker;
        uint64_t until = busy_until_usec(o);

        if (until == 0 || !(worker = worker_get(o->agent, &o->cancel.record.process)))
                return;
        worker->outstanding++;
        worker_keep(worker, until);
}

/* Who was never tried goes first, the nearest deadline before others; then who was tried longest ago: a driver that
 * cannot be killed must not keep the others from their turn. */
static bool goes_before(const struct cancel_record *a, const struct cancel_record *b) {
        if (a->killed_usec != b->killed_usec)
                return a->killed_usec < b->killed_usec;
        return a->deadline_usec < b->deadline_usec;
}

static struct operation *worker_next(struct worker *worker) {
        struct operation *o, *first = NULL;

        TAILQ_FOREACH(o, &worker->waiting, slot_link)
                if (!first || goes_before(&o->cancel.record, &first->cancel.record))
                        first = o;
        return first;
}

/* A driver without a process may be any Worker's: its kill counts at all of them. */
static uint64_t worker_outstanding(const struct agent *agent, const struct worker *worker) {
        const struct worker *other;
        uint64_t sum = 0;

        TAILQ_FOREACH(other, &agent->workers, link)
                if (other == worker || other->pid == 0 || worker->pid == 0)
                        sum += other->outstanding;
        return sum;
}

static void worker_grant(struct agent *agent, struct worker *worker) {
        struct operation *o;

        while (worker_outstanding(agent, worker) < agent->config->kills_per_worker && (o = worker_next(worker))) {
                TAILQ_REMOVE(&worker->waiting, o, slot_link);
                o->has_slot = true;
                worker->outstanding++;
                operation_feed_simple(o, CANCEL_EVENT_SLOT);
                if (!o->has_slot)
                        return; /* it gave the slot back, and the Worker may be freed: the next turn goes on */
        }
}

void pace_grant(struct agent *agent) {
        uint64_t now = event_now_usec(agent->event);
        struct worker *worker, *next;
        struct operation *o, *next_operation;

        /* Who holds a slot and wants to kill again has its turn. */
        TAILQ_FOREACH_SAFE_(o, &agent->touched, touched_link, next_operation)
                if (o->has_slot && o->cancel.wants_slot)
                        operation_feed_simple(o, CANCEL_EVENT_SLOT);
        TAILQ_FOREACH(worker, &agent->workers, link)
                worker_expire(worker, now);
        TAILQ_FOREACH_SAFE_(worker, &agent->workers, link, next) {
                if (!TAILQ_EMPTY(&worker->kept))
                        agent_try_again(agent, TAILQ_FIRST(&worker->kept)->until_usec);
                if (TAILQ_EMPTY(&worker->waiting)) {
                        worker_drop_if_idle(agent, worker);
                        continue;
                }
                if (worker->free_usec > now)
                        agent_try_again(agent, worker->free_usec);
                else
                        worker_grant(agent, worker);
        }
}

void pace_deinit(struct agent *agent) {
        struct worker *worker;

        while ((worker = TAILQ_FIRST(&agent->workers))) {
                worker_expire(worker, USEC_NEVER);
                TAILQ_REMOVE(&agent->workers, worker, link);
                free(worker);
        }
}
