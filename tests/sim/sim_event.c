/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The agenda and, on top of it, event.h: a loop whose clock jumps from one item to the next.
 *
 * The order of things that happen at the same time is drawn, so each seed tries another interleaving. Deferred
 * sources run when nothing is due, as in the real loop, and now and then before something that is due, as there
 * after many dispatches.
 *
 * A job of the worker takes its effect when its time is over: until then a reader of the database sees the state
 * before. When the agent dies meanwhile, the job has been done, has not, or the process died in the middle of it.
 */
#include "sim.h"
#include "event.h"

#include <stdarg.h>

#define STEPS_PER_SECOND_MAX 5000
#define STEPS_PER_INSTANT_MAX 4000
#define LINES_KEPT 4096
#define LINE_MAX_ 400

struct event {
        TAILQ_HEAD(event_source_scheduled_head, event_source) scheduled;
};

struct event_source {
        event_handler handler;
        void *userdata;
        const char *name;
        bool deferred, scheduled;
        struct sim_item item;
        TAILQ_ENTRY(event_source) entry;
};

struct event_worker {
        struct sim_item item;
        bool runs;
        int (*job)(void *userdata);
        int (*done)(int result, void *userdata);
        void *userdata;
};

struct event sim_event = { .scheduled = TAILQ_HEAD_INITIALIZER(sim_event.scheduled) };
static struct event_worker *the_worker;

/* ---- chance ----------------------------------------------------------------------------------------------------- */

uint64_t sim_below(uint64_t limit) {
        return limit == 0 ? 0 : base_random_next(&sim.random) % limit;
}

uint64_t sim_between(uint64_t from, uint64_t to) {
        return from + sim_below(to - from + 1);
}

uint64_t sim_spread(uint64_t from, uint64_t to) {
        unsigned doublings = 0;

        for (uint64_t value = base_max_u64(from, 1); value < to; value *= 2)
                doublings++;
        from = base_max_u64(from, 1) << sim_below(doublings + 1);
        return base_min_u64(sim_between(from, 2 * from), to);
}

bool sim_chance(unsigned permille) {
        return sim_below(1000) < permille;
}

/* ---- memory of one schedule ------------------------------------------------------------------------------------------------ */

struct chunk {
        struct chunk *next;
        max_align_t bytes[];
};

static struct chunk *chunks;

void *sim_alloc(size_t size) {
        struct chunk *chunk = calloc(1, sizeof *chunk + size);

        if (!chunk)
                abort();
        chunk->next = chunks;
        chunks = chunk;
        return chunk->bytes;
}

void sim_alloc_clear(void) {
        while (chunks) {
                struct chunk *next = chunks->next;

                free(chunks);
                chunks = next;
        }
}

/* ---- agenda: a binary heap -------------------------------------------------------------------------------------------- */

static bool is_before(const struct sim_item *a, const struct sim_item *b) {
        return a->at != b->at ? a->at < b->at : a->order < b->order;
}

static void heap_put(size_t place, struct sim_item *item) {
        sim.heap[place] = item;
        item->place = place;
}

static void heap_up(size_t place, struct sim_item *item) {
        for (; place > 1 && is_before(item, sim.heap[place / 2]); place /= 2)
                heap_put(place, sim.heap[place / 2]);
        heap_put(place, item);
}

static void heap_down(size_t place, struct sim_item *item) {
        for (size_t child = 2 * place; child <= sim.heap_size; child = 2 * place) {
                if (child < sim.heap_size && is_before(sim.heap[child + 1], sim.heap[child]))
                        child++;
                if (!is_before(sim.heap[child], item))
                        break;
                heap_put(place, sim.heap[child]);
                place = child;
        }
        heap_put(place, item);
}

void sim_item_cancel(struct sim_item *item) {
        size_t place = item->place;
        struct sim_item *last;

        if (place == 0)
                return;
        item->place = 0;
        last = sim.heap[sim.heap_size--];
        if (last == item)
                return;
        if (place > 1 && is_before(last, sim.heap[place / 2]))
                heap_up(place, last);
        else
                heap_down(place, last);
}

void sim_item_set(struct sim_item *item, uint64_t at) {
        sim_item_cancel(item);
        if (at == USEC_NEVER)
                return;
        item->at = base_max_u64(at, sim.time);
        item->order = base_random_next(&sim.random);
        if (sim.heap_size + 2 > sim.heap_allocated) {
                sim.heap_allocated = base_max_u64(256, 2 * sim.heap_allocated);
                sim.heap = reallocarray(sim.heap, sim.heap_allocated, sizeof *sim.heap);
                if (!sim.heap)
                        abort();
        }
        sim.heap_size++;
        heap_up(sim.heap_size, item);
}

void sim_after(uint64_t delay, sim_action action, void *argument) {
        struct sim_item *item = calloc(1, sizeof *item);

        if (!item)
                abort();
        *item = (struct sim_item){ .action = action, .argument = argument, .owned = true };
        sim_item_set(item, base_usec_add(sim.time, delay));
}

void sim_agenda_clear(void) {
        while (sim.heap_size > 0) {
                struct sim_item *item = sim.heap[1];

                sim_item_cancel(item);
                if (item->owned)
                        free(item);
        }
}

static void agenda_run(void) {
        struct sim_item *item = sim.heap[1];
        sim_action action = item->action;
        void *argument = item->argument;

        sim.time = base_max_u64(sim.time, item->at);
        sim_item_cancel(item);
        if (item->owned)
                free(item);
        action(argument);
}

/* ---- the loop ------------------------------------------------------------------------------------------------------------ */

/* No busy loop: neither many steps at one instant nor many in a second. */
static void count_step(void) {
        uint64_t limit = STEPS_PER_SECOND_MAX + 200 * sim.operation_count;

        sim.steps++;
        if (sim.instant != sim.time) {
                sim.instant = sim.time;
                sim.instant_steps = 0;
        }
        if (sim.second != sim.time / USEC_PER_SEC) {
                sim.second = sim.time / USEC_PER_SEC;
                sim.second_steps = 0;
        }
        if (++sim.instant_steps > STEPS_PER_INSTANT_MAX)
                sim_fail("busy loop: %" PRIu64 " steps without time going on", sim.instant_steps);
        if (++sim.second_steps > limit)
                sim_fail("busy loop: %" PRIu64 " steps within a second", sim.second_steps);
}

static void handler_result(const char *name, int result) {
        if (result < 0 && !sim.dying)
                sim_fail("the handler of %s failed: %s", name, strerror(-result));
}

static void run_deferred(void) {
        struct event_source *last = TAILQ_LAST(&sim_event.scheduled, event_source_scheduled_head), *source;

        while (!sim.dying && (source = TAILQ_FIRST(&sim_event.scheduled))) {
                bool is_last = source == last;

                TAILQ_REMOVE(&sim_event.scheduled, source, entry);
                source->scheduled = false;
                count_step();
                handler_result(source->name, source->handler(source->userdata));
                if (is_last)
                        return;
        }
}

bool sim_loop_step(uint64_t end) {
        bool waiting = !TAILQ_EMPTY(&sim_event.scheduled), due = sim.heap_size > 0 && sim.heap[1]->at <= sim.time;

        if (waiting && (!due || sim_chance(60))) {
                sim.time += sim_below(150);
                run_deferred();
        } else if (sim.heap_size > 0 && sim.heap[1]->at <= end) {
                agenda_run();
        } else {
                sim.time = base_max_u64(sim.time, end);
                return false;
        }
        sim_life_after_step();
        return true;
}

void sim_crash_point(void) {
        if (!sim.dying && sim_fault(sim.faults.crash_point)) {
                TRACE("the agent dies here");
                sim.dying = true;
        }
}

void sim_loop_reset(void) {
        TAILQ_INIT(&sim_event.scheduled);
        the_worker = NULL;
}

/* ---- event.h: clocks ------------------------------------------------------------------------------------------------------ */

uint64_t event_now_usec(struct event *event) {
        (void)event;
        return sim.time - sim.boot_at;
}

uint64_t event_real_usec(struct event *event) {
        (void)event;
        return sim.time + sim.wall_offset;
}

const char *event_boot_id(struct event *event) {
        (void)event;
        return sim.boot_id;
}

void event_exit(struct event *event, int value) {
        (void)event;
        (void)value;
        sim.exited = true;
}

/* ---- event.h: sources ------------------------------------------------------------------------------------------------------ */

static void on_timer(void *argument) {
        struct event_source *source = argument;

        if (sim.dying)
                return;
        count_step();
        handler_result(source->name, source->handler(source->userdata));
}

static int source_new(const char *name, event_handler handler, void *userdata, bool deferred, struct event_source **ret) {
        struct event_source *source = calloc(1, sizeof *source);

        if (!source)
                return -ENOMEM;
        source->name = name;
        source->handler = handler;
        source->userdata = userdata;
        source->deferred = deferred;
        source->item = (struct sim_item){ .action = on_timer, .argument = source };
        *ret = source;
        return 0;
}

int event_add_timer(struct event *event, const char *name, event_handler handler, void *userdata,
                    struct event_source **ret) {
        (void)event;
        return source_new(name, handler, userdata, false, ret);
}

int event_timer_set(struct event_source *source, uint64_t at_usec) {
        return event_timer_set_coarse(source, at_usec, USEC_PER_MSEC);
}

int event_timer_set_coarse(struct event_source *source, uint64_t at_usec, uint64_t slack_usec) {
        uint64_t slack = slack_usec > 0 && sim_chance(500) ? sim_below(slack_usec) : 0;

        sim_item_set(&source->item, at_usec == USEC_NEVER ? USEC_NEVER
                                                          : base_usec_add(base_usec_add(at_usec, sim.boot_at), slack));
        return 0;
}

int event_add_deferred(struct event *event, const char *name, event_handler handler, void *userdata,
                       struct event_source **ret) {
        (void)event;
        return source_new(name, handler, userdata, true, ret);
}

int event_deferred_schedule(struct event_source *source) {
        if (source->scheduled)
                return 0;
        source->scheduled = true;
        TAILQ_INSERT_TAIL(&sim_event.scheduled, source, entry);
        return 0;
}

struct event_source *event_source_free(struct event_source *source) {
        if (!source)
                return NULL;
        if (source->scheduled)
                TAILQ_REMOVE(&sim_event.scheduled, source, entry);
        sim_item_cancel(&source->item);
        free(source);
        return NULL;
}

/* ---- event.h: the worker ---------------------------------------------------------------------------------------------------- */

static void on_job(void *argument) {
        struct event_worker *worker = argument;
        int result;

        if (sim.dying)
                return;
        worker->runs = false;
        if (sim_faulty() && sim.faults.disk_fails > 0)
                sim_disk_fail(sim.faults.disk_fails, sim_chance(500));
        result = worker->job(worker->userdata);
        sim_disk_fail(0, false);
        sim_crash_point(); /* stored, and nobody was told */
        if (sim.dying)
                return;
        count_step();
        handler_result("worker", worker->done(result, worker->userdata));
}

int event_worker_new(struct event *event, const char *name, struct event_worker **ret) {
        struct event_worker *worker = calloc(1, sizeof *worker);

        (void)event;
        (void)name;
        if (!worker)
                return -ENOMEM;
        worker->item = (struct sim_item){ .action = on_job, .argument = worker };
        *ret = the_worker = worker;
        return 0;
}

struct event_worker *event_worker_free(struct event_worker *worker) {
        if (!worker)
                return NULL;
        if (worker->runs && !sim.dying)
                worker->job(worker->userdata); /* it waits for the running job */
        sim_item_cancel(&worker->item);
        the_worker = NULL;
        free(worker);
        return NULL;
}

static uint64_t job_time(void) {
        if (sim_fault(sim.faults.commit_stalled))
                return base_min_u64(sim_spread(USEC_PER_SEC, 3 * USEC_PER_MINUTE), sim.faults_end - sim.time);
        if (sim_fault(sim.faults.commit_slow))
                return sim_spread(20 * USEC_PER_MSEC, 2 * USEC_PER_SEC);
        return sim_between(100, 5000);
}

int event_worker_run(struct event_worker *worker, int (*job)(void *userdata), int (*done)(int result, void *userdata),
                     void *userdata) {
        if (worker->runs)
                sim_fail("two jobs at one worker");
        sim_crash_point();
        worker->runs = true;
        worker->job = job;
        worker->done = done;
        worker->userdata = userdata;
        sim_item_set(&worker->item, sim.time + job_time());
        return 0;
}

void sim_worker_crash(void) {
        struct event_worker *worker = the_worker;

        if (!worker || !worker->runs)
                return;
        worker->runs = false;
        switch (sim_below(3)) {
        case 0:
                TRACE("the running commit had not begun");
                return;
        case 1:
                TRACE("the running commit had just been done");
                (void)worker->job(worker->userdata);
                return;
        default:
                TRACE("in the middle of the running commit");
                sim_disk_die_after((unsigned)sim_below(8));
                (void)worker->job(worker->userdata);
                return;
        }
}

/* ---- log.h, and the trace ----------------------------------------------------------------------------------------------------- */

static char lines[LINES_KEPT][LINE_MAX_];
static size_t line_count;

void sim_trace_line(const char *format, ...) {
        char *line = lines[line_count++ % LINES_KEPT];
        va_list arguments;
        int used;

        used = snprintf(line, LINE_MAX_, "%12.6f ", (double)sim.time / (double)USEC_PER_SEC);
        va_start(arguments, format);
        (void)vsnprintf(line + used, (size_t)(LINE_MAX_ - used), format, arguments);
        va_end(arguments);
        if (sim.echo)
                (void)puts(line);
}

void sim_trace_clear(void) {
        line_count = 0;
}

void sim_trace_print(unsigned count) {
        size_t first = line_count > count ? line_count - count : 0;

        if (line_count - first > LINES_KEPT)
                first = line_count - LINES_KEPT;
        for (size_t i = first; i < line_count; i++)
                (void)puts(lines[i % LINES_KEPT]);
}

enum log_priority log_get_level(void) {
        return sim.tracing ? LOG_PRIORITY_DEBUG : LOG_PRIORITY_NOTICE;
}

static const char *log_operation(const struct log_field *fields, size_t count) {
        for (size_t i = 0; i < count; i++)
                if (strcmp(fields[i].name, "SPARK_OPERATION_ID") == 0 && fields[i].value)
                        return fields[i].value;
        return "-";
}

void log_write(enum log_priority priority, const char *message_id, const struct log_field *fields, size_t field_count,
               const char *format, ...) {
        char text[LINE_MAX_];
        va_list arguments;

        (void)priority;
        (void)message_id;
        if (!sim.tracing)
                return;
        va_start(arguments, format);
        (void)vsnprintf(text, sizeof text, format, arguments);
        va_end(arguments);
        sim_trace_line("  log %s: %s", log_operation(fields, field_count), text);
}
