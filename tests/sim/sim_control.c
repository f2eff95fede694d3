/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control plane, and control.h as a session with it.
 *
 * The server keeps a log of revisions (cancels, Withdrawn, kinds that nobody knows) and its operations. The session
 * follows docs/contract.md: resume after the last stored revision, replay from 0, OUT_OF_RANGE when the history is
 * gone, a flow-control window that is given back by the agent. Duplicates, late commands, lower revisions, cut
 * streams, outages, lost and rejected reports come by chance. Events are real WatchResponse bytes and go through the
 * real decoder; reports are decoded with protobuf-c.
 */
#include "sim.h"

#include "sparkcancel/agent/v1/cancel_agent_service.pb-c.h"
#include "yandex/cloud/spark/v1/job_service.pb-c.h"

#define LOG_MAX 600
#define HEARTBEAT (10 * USEC_PER_SEC)
#define EXPIRY (5 * USEC_PER_MINUTE) /* after the deadline the server ends an operation by itself */
#define METADATA_URL "type.googleapis.com/yandex.cloud.spark.v1.CreateJobMetadata"

enum log_kind { LOG_CANCEL, LOG_WITHDRAWN, LOG_ODD };

struct log_entry {
        int64_t revision;
        enum log_kind kind;
        struct sim_operation *operation;
};

static struct {
        struct log_entry log[LOG_MAX];
        size_t count;
        int64_t position, oldest; /* history before `oldest` is gone */
        bool down;
        size_t window;
} server;

struct report_call;

struct report_item {
        struct sim_operation *operation;
        char id[OPERATION_ID_MAX + 1];
        int64_t sequence;
        bool final;
        uint8_t *bytes;
        size_t size;
        unsigned attempts;
        struct report_call *call; /* NULL: waits */
        uint64_t due;
        TAILQ_ENTRY(report_item) entry;
};

struct report_call {
        struct report_item *item; /* NULL: nobody waits any more */
        struct sim_operation *operation;
        uint8_t *bytes;
        size_t size;
        int64_t sequence;
        bool final, rejected;
};

struct control {
        struct control_handlers handlers;
        void *userdata;
        bool connected, reading, draining;
        int64_t position, delivered, stream_revision;
        size_t outstanding, foreign, stale;
        size_t cursor, replay_end; /* places in the log */
        bool replaying, opening;
        uint64_t bookmark_at;
        unsigned attempts;
        uint64_t server_real, server_usec;
        struct sim_item stream, pump, drain;
        int (*drained)(void *userdata);
        void *drained_userdata;
        TAILQ_HEAD(report_list, report_item) reports;
        size_t report_count;
};

/* ---- the server --------------------------------------------------------------------------------------------------------- */

struct sim_operation *sim_operation_find(const char *id) {
        for (unsigned i = 0; i < sim.operation_count; i++)
                if (strcmp(sim.operations[i].id, id) == 0)
                        return &sim.operations[i];
        return NULL;
}

int64_t sim_server_position(void) {
        return server.position;
}

static uint64_t server_real(void) {
        return sim.time + sim.server_offset;
}

static void nudge(void) {
        if (sim.control && sim.control->connected)
                sim_item_set(&sim.control->stream, sim.time + sim_below(2000));
}

static void log_add(enum log_kind kind, struct sim_operation *operation) {
        if (server.count == LOG_MAX)
                return;
        server.position += (int64_t)sim_between(1, 4);
        server.log[server.count++] = (struct log_entry){ server.position, kind, operation };
        if (kind == LOG_CANCEL)
                operation->revision = server.position;
        if (kind == LOG_WITHDRAWN)
                operation->withdrawn_revision = server.position;
        nudge();
}

static void server_end(struct sim_operation *operation) {
        if (!operation->open)
                return;
        operation->open = false;
        TRACE("server: %s has ended", operation->id);
        log_add(LOG_WITHDRAWN, operation);
}

static void withdraw(void *argument) {
        server_end(argument);
}

void sim_server_cancel(void *argument) {
        struct sim_operation *operation = argument;

        operation->sent = operation->open = true;
        operation->created_at = sim.time;
        sim.operations_to_come--;
        if (operation->verdict == SIM_VALID)
                sim.jobs[operation->job].cancelled = true;
        TRACE("server: %s cancels %s%s%s", operation->id, sim.jobs[operation->job].id,
              operation->dry_run ? ", dry run" : "", operation->verdict == SIM_VALID ? "" : ", not valid");
        if (sim_chance(30)) /* Withdrawn before the command, as a server that lost its order might do */
                log_add(LOG_WITHDRAWN, operation);
        log_add(LOG_CANCEL, operation);
        if (operation->deadline != USEC_NEVER)
                sim_after(base_usec_sub(operation->deadline, sim.time) + EXPIRY, withdraw, operation);
        else
                sim_after(sim.config.default_deadline_usec + EXPIRY, withdraw, operation);
        if (sim_chance(200))
                sim_after(sim_spread(USEC_PER_MSEC, 3 * USEC_PER_MINUTE), withdraw, operation);
}

static void outage_over(void *argument) {
        (void)argument;
        server.down = false;
}

static void stream_lost(struct control *control, const char *why);

static void outage(void *argument) {
        (void)argument;
        if (!sim_faulty() || server.down)
                return;
        TRACE("server: outage");
        server.down = true;
        sim_after(sim_spread(USEC_PER_SEC, 20 * USEC_PER_MINUTE), outage_over, NULL);
        if (sim.control && sim.control->connected && !sim.dying)
                stream_lost(sim.control, "outage");
}

static void trim_history(void *argument) {
        (void)argument;
        if (sim_faulty())
                server.oldest = server.position;
}

static void odd_event(void *argument) {
        (void)argument;
        log_add(LOG_ODD, NULL);
}

void sim_server_make(void) {
        static const size_t windows[] = { 700, 4096, 64 * 1024, CONTROL_STREAM_WINDOW };
        uint64_t span = base_usec_sub(sim.faults_end, sim.time);

        memset(&server, 0, sizeof server);
        server.position = server.oldest = (int64_t)sim_below(1000000);
        server.window = windows[sim_below(ARRAY_SIZE(windows))];
        for (uint64_t n = sim_chance(400) ? sim_between(1, 5) : 0; n > 0; n--)
                sim_after(sim_below(span), outage, NULL);
        for (uint64_t n = sim_chance(200) ? sim_between(1, 3) : 0; n > 0; n--)
                sim_after(sim_below(span), trim_history, NULL);
        for (uint64_t n = sim_below(3); n > 0; n--)
                sim_after(sim_below(span), odd_event, NULL);
}

void sim_server_heal(void) {
        server.down = false;
}

/* ---- events as bytes ------------------------------------------------------------------------------------------------------ */

static void to_timestamp(uint64_t usec, Google__Protobuf__Timestamp *ret) {
        google__protobuf__timestamp__init(ret);
        ret->seconds = (int64_t)(usec / USEC_PER_SEC);
        ret->nanos = (int32_t)(usec % USEC_PER_SEC * 1000);
}

static size_t pack(const Sparkcancel__Agent__V1__WatchResponse *response, uint8_t *bytes, size_t max) {
        size_t size = sparkcancel__agent__v1__watch_response__get_packed_size(response);

        if (size > max)
                abort();
        return sparkcancel__agent__v1__watch_response__pack(response, bytes);
}

static size_t encode_cancel(const struct sim_operation *operation, int64_t revision, uint8_t *bytes, size_t max) {
        Sparkcancel__Agent__V1__WatchResponse response = SPARKCANCEL__AGENT__V1__WATCH_RESPONSE__INIT;
        Sparkcancel__Agent__V1__CancelCommand command = SPARKCANCEL__AGENT__V1__CANCEL_COMMAND__INIT;
        Yandex__Cloud__Operation__Operation op = YANDEX__CLOUD__OPERATION__OPERATION__INIT;
        Yandex__Cloud__Spark__V1__CreateJobMetadata job = YANDEX__CLOUD__SPARK__V1__CREATE_JOB_METADATA__INIT;
        Google__Protobuf__Any any = GOOGLE__PROTOBUF__ANY__INIT;
        Google__Protobuf__Timestamp deadline;
        uint8_t metadata[300];
        char id[SIM_ID_MAX + 60], job_id[SIM_ID_MAX], cluster[] = SIM_CLUSTER, other[] = "another-cluster",
             url[] = METADATA_URL, odd_url[] = "type.googleapis.com/google.protobuf.Empty", created_by[] = "somebody",
             driver_id[SIM_ID_MAX + 8];

        (void)snprintf(id, sizeof id, "%s%s", operation->id,
                       operation->verdict == SIM_UNREPORTABLE ? " with spaces, which no id has" : "");
        base_text_copy(job_id, sizeof job_id, sim.jobs[operation->job].id);
        (void)snprintf(driver_id, sizeof driver_id, "%s%s", operation->driver_id,
                       operation->verdict == SIM_INVALID && operation->defect == 2 ? "/../x" : "");
        job.cluster_id = operation->verdict == SIM_INVALID && operation->defect == 0 ? other : cluster;
        job.job_id = job_id;
        any.type_url = operation->verdict == SIM_INVALID && operation->defect == 1 ? odd_url : url;
        any.value.len = yandex__cloud__spark__v1__create_job_metadata__pack(&job, metadata);
        any.value.data = metadata;
        op.id = id;
        op.created_by = created_by;
        op.metadata = &any;
        command.operation = &op;
        command.driver_id = driver_id;
        command.dry_run = operation->dry_run;
        if (operation->deadline != USEC_NEVER) {
                to_timestamp(operation->deadline + sim.server_offset, &deadline);
                command.deadline = &deadline;
        }
        response.revision = revision;
        response.event_case = SPARKCANCEL__AGENT__V1__WATCH_RESPONSE__EVENT_CANCEL;
        response.cancel = &command;
        return pack(&response, bytes, max);
}

static size_t encode_withdrawn(const struct sim_operation *operation, int64_t revision, uint8_t *bytes, size_t max) {
        Sparkcancel__Agent__V1__WatchResponse response = SPARKCANCEL__AGENT__V1__WATCH_RESPONSE__INIT;
        Sparkcancel__Agent__V1__Withdrawn withdrawn = SPARKCANCEL__AGENT__V1__WITHDRAWN__INIT;
        char id[SIM_ID_MAX];

        base_text_copy(id, sizeof id, operation->id);
        withdrawn.operation_id = id;
        response.revision = revision;
        response.event_case = SPARKCANCEL__AGENT__V1__WATCH_RESPONSE__EVENT_WITHDRAWN;
        response.withdrawn = &withdrawn;
        return pack(&response, bytes, max);
}

static size_t encode_bookmark(int64_t revision, uint8_t *bytes, size_t max) {
        Sparkcancel__Agent__V1__WatchResponse response = SPARKCANCEL__AGENT__V1__WATCH_RESPONSE__INIT;
        Sparkcancel__Agent__V1__Bookmark bookmark = SPARKCANCEL__AGENT__V1__BOOKMARK__INIT;
        Google__Protobuf__Duration interval = GOOGLE__PROTOBUF__DURATION__INIT;
        Google__Protobuf__Timestamp now;

        interval.seconds = (int64_t)(HEARTBEAT / USEC_PER_SEC);
        to_timestamp(server_real(), &now);
        bookmark.heartbeat_interval = &interval;
        bookmark.now = &now;
        response.revision = revision;
        response.event_case = SPARKCANCEL__AGENT__V1__WATCH_RESPONSE__EVENT_BOOKMARK;
        response.bookmark = &bookmark;
        return pack(&response, bytes, max);
}

/* ---- the stream ------------------------------------------------------------------------------------------------------------- */

static void notice(struct control *control, enum control_notice kind, const char *detail) {
        if (control->handlers.on_notice(kind, detail, control->userdata) < 0)
                sim_fail("on_notice failed");
}

static void retry_later(struct control *control) {
        uint64_t delay = base_backoff_usec(control->attempts++, 200 * USEC_PER_MSEC, 30 * USEC_PER_SEC, &sim.random);

        sim_item_set(&control->stream, sim.time + delay);
}

static void forget_stream(struct control *control) {
        control->connected = false;
        control->foreign = control->outstanding;
}

static void stream_lost(struct control *control, const char *why) {
        TRACE("stream lost: %s", why);
        forget_stream(control);
        retry_later(control);
        notice(control, CONTROL_DISCONNECTED, why);
}

/* True when the order before had delivered something: then the agent must be told. */
static bool begin_order(struct control *control) {
        bool used = control->position != 0 || control->delivered != 0;

        sim.order++;
        control->position = control->delivered = 0;
        control->stale = control->outstanding;
        return used;
}

static void history_gone(struct control *control) {
        TRACE("stream: OUT_OF_RANGE after %" PRId64, control->position);
        (void)begin_order(control);
        sim_item_set(&control->stream, sim.time + sim_below(USEC_PER_SEC));
        if (control->handlers.on_restart(control->userdata) < 0)
                sim_fail("on_restart failed");
        notice(control, CONTROL_HISTORY_GONE, "OUT_OF_RANGE");
}

static void stream_open(struct control *control) {
        if (server.down || sim_fault(sim.faults.stream_cut)) {
                retry_later(control);
                return;
        }
        if (control->position == 0 && begin_order(control) && control->handlers.on_restart(control->userdata) < 0)
                sim_fail("on_restart failed");
        if (control->position != 0 && (control->position < server.oldest || control->position > server.position)) {
                history_gone(control);
                return;
        }
        control->replaying = control->position == 0;
        control->replay_end = server.count;
        control->cursor = 0;
        while (!control->replaying && control->cursor < server.count &&
               server.log[control->cursor].revision <= control->position)
                control->cursor++;
        TRACE("stream opens after %" PRId64 " of %" PRId64, control->position, server.position);
        control->connected = control->opening = true;
        control->attempts = 0;
        control->stream_revision = control->position;
        control->bookmark_at = sim.time;
        sim_item_set(&control->stream, sim.time);
        notice(control, CONTROL_CONNECTED, "127.0.0.1");
}

static bool window_has_room(const struct control *control, size_t size) {
        return control->outstanding - control->foreign + size <= server.window;
}

/* `fresh`: above every revision of this order so far. What is not was covered by an earlier position. */
static void note_operation(const struct command_event *event, struct sim_operation *operation, bool fresh) {
        struct operation *known;

        if (!operation)
                return;
        known = agent_find(sim.agent, operation->id);
        operation->excused |= !known && sim_may_be_pruned(operation);
        if (event->kind == COMMAND_EVENT_CANCEL) {
                if (!operation->delivered)
                        operation->delivered_at = sim.time;
                operation->delivered = true;
                if (fresh)
                        operation->delivered_order = sim.order;
        }
        if (event->kind != COMMAND_EVENT_WITHDRAWN)
                return;
        operation->withdrawn_order = fresh ? sim.order : operation->withdrawn_order > 0 ? operation->withdrawn_order : UINT_MAX;
        if (!known || (known->cancel.record.kill_requests - known->cancel.kill_planned == 0 &&
                       known->cancel.record.escalation == CANCEL_ESCALATION_NONE &&
                       (known->cancel.record.state == CANCEL_SEARCH || known->cancel.record.state == CANCEL_KILL)))
                operation->withdrawn_in_time = true;
}

/* false: the window is full */
static bool deliver(struct control *control, const uint8_t *bytes, size_t size, struct sim_operation *operation) {
        struct command_event event;
        bool fresh;

        if (!window_has_room(control, size))
                return false;
        if (command_decode_event((struct span){ bytes, size }, SIM_CLUSTER, &event) < 0)
                sim_fail("an event cannot be decoded");
        if (event.kind == COMMAND_EVENT_BOOKMARK) {
                control->server_real = event.server_real_usec;
                control->server_usec = event_now_usec(&sim_event);
        }
        TRACE("event %" PRId64 " kind %d %s", event.revision, (int)event.kind, event.operation_id);
        fresh = event.revision > control->delivered;
        control->outstanding += size;
        if (event.revision > control->delivered)
                control->delivered = event.revision;
        if (event.revision > control->stream_revision)
                control->stream_revision = event.revision;
        note_operation(&event, operation, fresh);
        control->opening = false;
        if (control->handlers.on_event(&event, size, control->userdata) < 0)
                sim_fail("on_event failed");
        return true;
}

static bool deliver_entry(struct control *control, const struct log_entry *entry) {
        uint8_t bytes[2048];
        size_t size = 0;

        switch (entry->kind) {
        case LOG_CANCEL:
                size = encode_cancel(entry->operation, entry->revision, bytes, sizeof bytes);
                break;
        case LOG_WITHDRAWN:
                size = encode_withdrawn(entry->operation, entry->revision, bytes, sizeof bytes);
                break;
        case LOG_ODD: {
                Sparkcancel__Agent__V1__WatchResponse odd = SPARKCANCEL__AGENT__V1__WATCH_RESPONSE__INIT;

                odd.revision = entry->revision;
                size = pack(&odd, bytes, sizeof bytes);
                break;
        }
        }
        return deliver(control, bytes, size, entry->operation);
}

/* A replay from 0 has the open operations only. */
static bool is_due(const struct control *control, const struct log_entry *entry) {
        if (!control->replaying || control->cursor >= control->replay_end)
                return true;
        return entry->kind == LOG_CANCEL && entry->operation->open;
}

static bool deliver_bookmark(struct control *control) {
        int64_t revision = control->opening || control->cursor < server.count ? control->stream_revision : server.position;
        uint8_t bytes[100];

        if (control->replaying && control->cursor < control->replay_end)
                revision = 0; /* the position is told when the replay is over */
        if (!deliver(control, bytes, encode_bookmark(revision, bytes, sizeof bytes), NULL))
                return false;
        control->bookmark_at = sim.time + HEARTBEAT - sim_below(USEC_PER_SEC);
        return true;
}

/* An old one, or one from before this order: no position covers it. */
static bool deliver_again(struct control *control, const struct log_entry *entry) {
        const struct sim_operation before = *entry->operation;
        bool delivered = deliver_entry(control, entry);

        entry->operation->delivered_order = before.delivered_order;
        entry->operation->withdrawn_order = before.withdrawn_order > 0 || entry->operation->withdrawn_order == 0 ? before.withdrawn_order : UINT_MAX;
        return delivered;
}

static bool deliver_next(struct control *control) {
        const struct log_entry *old = &server.log[sim_below(control->cursor)];

        if (control->opening || sim.time >= control->bookmark_at)
                return deliver_bookmark(control);
        if (sim.config.retention_max > LOG_MAX && control->cursor > 0 && old->operation && sim_fault(5))
                return deliver_again(control, old);
        if (control->cursor >= server.count)
                return false;
        if (is_due(control, &server.log[control->cursor]) && !deliver_entry(control, &server.log[control->cursor]))
                return false;
        control->cursor++;
        if (control->replaying && control->cursor >= control->replay_end) {
                control->replaying = false;
                control->bookmark_at = sim.time; /* closes the replay */
        }
        return true;
}

static bool is_held(const struct control *control) {
        return !control->reading || !window_has_room(control, 600);
}

static void on_stream(void *argument) {
        struct control *control = argument;
        unsigned burst = sim_chance(500) ? 1 : (unsigned)sim_between(1, 40);
        bool more = true;

        if (sim.dying || control->draining)
                return;
        if (!control->connected) {
                stream_open(control);
                return;
        }
        if (sim_fault(sim.faults.stream_cut)) {
                stream_lost(control, "cut");
                return;
        }
        while (burst-- > 0 && more && !sim.dying)
                more = deliver_next(control);
        if (more)
                sim_item_set(&control->stream, sim.time + sim_below(3000));
        else if (is_held(control))
                sim_item_set(&control->stream, sim.time + HEARTBEAT); /* or when the window is given back */
        else
                sim_item_set(&control->stream, base_max_u64(control->bookmark_at, sim.time + USEC_PER_MSEC));
}

void control_taken(struct control *control, int64_t revision, size_t size) {
        size_t foreign = base_min_u64(size, control->foreign);
        bool of_this_order;

        if (sim.dying)
                return;
        if (size > control->outstanding)
                sim_fail("%zu bytes of the window given back, but only %zu are out", size, control->outstanding);
        of_this_order = control->stale == 0 || size > control->stale;
        control->outstanding -= size;
        control->foreign -= foreign;
        control->stale -= base_min_u64(size, control->stale);
        if (of_this_order && revision > control->position && revision <= control->delivered) {
                control->position = revision;
                sim_check_taken(revision);
        }
        if (control->connected && size > 0)
                nudge();
}

void control_set_reading(struct control *control, bool reading) {
        control->reading = reading;
}

uint64_t control_deadline_usec(const struct control *control, uint64_t server_real_usec) {
        uint64_t real = control->server_real ? control->server_real : event_real_usec(&sim_event);
        uint64_t usec = control->server_real ? control->server_usec : event_now_usec(&sim_event);

        if (server_real_usec >= real)
                return base_usec_add(usec, server_real_usec - real);
        return base_usec_sub(usec, real - server_real_usec);
}

/* ---- reports -------------------------------------------------------------------------------------------------------------------- */

static void item_free(struct control *control, struct report_item *item) {
        if (item->call)
                item->call->item = NULL;
        TAILQ_REMOVE(&control->reports, item, entry);
        control->report_count--;
        free(item->bytes);
        free(item);
}

static void check_drained(struct control *control) {
        int (*drained)(void *userdata) = control->drained;

        if (!drained || control->report_count > 0)
                return;
        control->drained = NULL;
        sim_item_cancel(&control->drain);
        (void)drained(control->drained_userdata);
}

static void call_answered(void *argument) {
        struct report_call *call = argument;
        struct report_item *item = call->item;
        struct control *control = sim.control;
        char id[OPERATION_ID_MAX + 1];
        int64_t sequence;

        if (!item || sim.dying)
                return;
        base_text_copy(id, sizeof id, item->id);
        sequence = item->sequence;
        item_free(control, item);
        sim_item_set(&control->pump, sim.time);
        TRACE("report %s %" PRId64 " is answered: %s", id, sequence, call->rejected ? "rejected" : "accepted");
        if (control->handlers.on_report(id, sequence, call->rejected ? CONTROL_REPORT_REJECTED : CONTROL_REPORT_ACCEPTED,
                                        call->rejected ? "the server says so" : "", control->userdata) < 0)
                sim_fail("on_report failed");
        if (!sim.dying)
                check_drained(control);
}

static void call_failed(void *argument) {
        struct report_call *call = argument;
        struct report_item *item = call->item;

        if (!item || sim.dying)
                return;
        item->call = NULL;
        item->due = sim.time + base_backoff_usec(item->attempts++, 200 * USEC_PER_MSEC, 30 * USEC_PER_SEC, &sim.random);
        sim_item_set(&sim.control->pump, base_min_u64(sim.control->pump.place ? sim.control->pump.at : USEC_NEVER, item->due));
}

static void server_apply(struct report_call *call) {
        struct sim_operation *operation = call->operation;
        bool done;
        int64_t sequence, kills;
        enum cancel_outcome outcome = sim_report_outcome((struct span){ call->bytes, call->size }, &done, &sequence, &kills);

        if (sim_fault(sim.faults.report_rejected)) {
                call->rejected = true;
                return;
        }
        if (!operation || operation->server_final)
                return;
        if (done) {
                TRACE("server: %s of %s", cancel_outcome_to_text(outcome), operation->id);
                sim_check_applied(operation, outcome);
                operation->server_final = true;
                operation->server_outcome = outcome;
        }
        if (done)
                server_end(operation);
}

static void call_arrives(void *argument) {
        struct report_call *call = argument;

        if (!call->item && sim_chance(500))
                return;
        if (server.down || sim_fault(sim.faults.report_lost)) {
                sim_after(sim_chance(500) ? USEC_PER_MSEC : 10 * USEC_PER_SEC, call_failed, call);
                return;
        }
        server_apply(call);
        if (sim_fault(sim.faults.report_lost))
                sim_after(10 * USEC_PER_SEC, call_failed, call);
        else
                sim_after(sim_between(200, 3000), call_answered, call);
}

static void start_call(struct report_item *item) {
        struct report_call *call = sim_alloc(sizeof *call + item->size);

        call->item = item;
        call->operation = item->operation;
        call->bytes = (uint8_t *)(call + 1);
        memcpy(call->bytes, item->bytes, item->size);
        call->size = item->size;
        call->sequence = item->sequence;
        call->final = item->final;
        item->call = call;
        sim_after(sim_between(200, sim_fault(100) ? USEC_PER_SEC : 3000), call_arrives, call);
}

/* The lowest sequence of its operation, and no other of it under way. */
static bool may_go(const struct control *control, const struct report_item *item) {
        const struct report_item *other;

        TAILQ_FOREACH(other, &control->reports, entry)
                if (other != item && strcmp(other->id, item->id) == 0 && (other->call || other->sequence < item->sequence))
                        return false;
        return !item->call;
}

static void on_pump(void *argument) {
        struct control *control = argument;
        struct report_item *item;
        uint64_t next = USEC_NEVER;

        if (sim.dying)
                return;
        TAILQ_FOREACH(item, &control->reports, entry) {
                if (!may_go(control, item))
                        continue;
                if (item->due <= sim.time)
                        start_call(item);
                else
                        next = base_min_u64(next, item->due);
        }
        sim_item_set(&control->pump, next);
}

int control_report(struct control *control, const char *operation_id, int64_t sequence, bool final,
                   struct span report) {
        struct report_item *item, *next;

        sim_crash_point();
        if (sim.dying)
                return 0;
        sim_check_report(operation_id, sequence, final, report);
        TAILQ_FOREACH(item, &control->reports, entry)
                if (strcmp(item->id, operation_id) == 0 && item->sequence == sequence)
                        return 0;
        if (final)
                TAILQ_FOREACH_SAFE_(item, &control->reports, entry, next)
                        if (strcmp(item->id, operation_id) == 0 && !item->final)
                                item_free(control, item);
        item = calloc(1, sizeof *item);
        if (!item || !(item->bytes = malloc(report.size)))
                abort();
        memcpy(item->bytes, report.data, report.size);
        item->size = report.size;
        item->sequence = sequence;
        item->final = final;
        item->operation = sim_operation_find(operation_id);
        base_text_copy(item->id, sizeof item->id, operation_id);
        TAILQ_INSERT_TAIL(&control->reports, item, entry);
        control->report_count++;
        sim_item_set(&control->pump, sim.time);
        sim_crash_point();
        return 0;
}

size_t control_reports_waiting(const struct control *control) {
        return control->report_count;
}

bool control_is_connected(const struct control *control) {
        return control->connected && !control->draining;
}

/* ---- life ------------------------------------------------------------------------------------------------------------------------------ */

static void on_drain_timeout(void *argument) {
        struct control *control = argument;
        int (*drained)(void *userdata) = control->drained;

        if (sim.dying || !drained)
                return;
        control->drained = NULL;
        (void)drained(control->drained_userdata);
}

int control_drain(struct control *control, uint64_t timeout_usec, int (*done)(void *userdata), void *userdata) {
        control->draining = true;
        control->drained = done;
        control->drained_userdata = userdata;
        forget_stream(control);
        sim_item_cancel(&control->stream);
        sim_item_set(&control->drain, sim.time + (control->report_count > 0 ? timeout_usec : 0));
        return 0;
}

struct control *sim_control_make(const struct control_handlers *handlers, void *userdata) {
        struct control *control = calloc(1, sizeof *control);

        if (!control)
                abort();
        control->handlers = *handlers;
        control->userdata = userdata;
        control->reading = true;
        control->stream = (struct sim_item){ .action = on_stream, .argument = control };
        control->pump = (struct sim_item){ .action = on_pump, .argument = control };
        control->drain = (struct sim_item){ .action = on_drain_timeout, .argument = control };
        TAILQ_INIT(&control->reports);
        return control;
}

int control_start(struct control *control, int64_t after_revision) {
        control->position = control->delivered = after_revision;
        sim_item_set(&control->stream, sim.time + sim_below(5000));
        return 0;
}

struct control *control_free(struct control *control) {
        struct report_item *item;

        if (!control)
                return NULL;
        while ((item = TAILQ_FIRST(&control->reports)))
                item_free(control, item);
        sim_item_cancel(&control->stream);
        sim_item_cancel(&control->pump);
        sim_item_cancel(&control->drain);
        free(control);
        return NULL;
}

bool sim_server_quiet(void) {
        return sim.control && sim.control->connected && sim.control->cursor >= server.count &&
               sim.control->report_count == 0;
}

void sim_control_check_end(void) {
        if (sim.control && sim.control->outstanding > 0)
                sim_fail("%zu bytes of the stream's window were never given back", sim.control->outstanding);
}
