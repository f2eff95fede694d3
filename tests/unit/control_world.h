/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * control_world: everything around control, for its unit tests: an agent that takes notes, a loop on virtual time, a
 * gRPC channel and a token that the test plays itself. The last three stand in for event.h, grpc.h and token.h at
 * link time: five minutes of a dead server take no time, and every back-off can be read to the microsecond.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include <cmocka.h>

#include "base.h"
#include "event.h"
#include "grpc.h"
#include "command.h"
#include "command_wire.h"
#include "control.h"
#include "token.h"

#include "sparkcancel/agent/v1/cancel_agent_service.pb-c.h"

#define MIN_USEC (200 * USEC_PER_MSEC)
#define MAX_USEC (30 * USEC_PER_SEC)
#define REPORT_TIMEOUT_USEC (10 * USEC_PER_SEC)

/* ---- the loop --------------------------------------------------------------------------------------- */

struct event_source {
        TAILQ_ENTRY(event_source) entry;
        event_handler handler;
        void *userdata;
        bool deferred, scheduled;
        uint64_t at_usec;
};

static struct {
        TAILQ_HEAD(, event_source) sources;
        uint64_t now_usec, real_usec;
        unsigned timers_set; /* calls of event_timer_set*() */
        unsigned wakeups;    /* timers that fired */
        int failure;         /* a handler's negative value */
} loop;

static inline int add_source(event_handler handler, void *userdata, bool deferred, struct event_source **ret) {
        struct event_source *source = calloc(1, sizeof(*source));

        assert_non_null(source);
        *source = (struct event_source){
                .handler = handler, .userdata = userdata, .deferred = deferred, .at_usec = USEC_NEVER
        };
        TAILQ_INSERT_TAIL(&loop.sources, source, entry);
        *ret = source;
        return 0;
}

int event_add_timer(struct event *event, const char *name, event_handler handler, void *userdata,
                    struct event_source **ret) {
        (void)event;
        (void)name;
        return add_source(handler, userdata, false, ret);
}

int event_add_deferred(struct event *event, const char *name, event_handler handler, void *userdata,
                       struct event_source **ret) {
        (void)event;
        (void)name;
        return add_source(handler, userdata, true, ret);
}

int event_timer_set(struct event_source *source, uint64_t at_usec) {
        loop.timers_set++;
        source->at_usec = at_usec;
        return 0;
}

int event_timer_set_coarse(struct event_source *source, uint64_t at_usec, uint64_t slack_usec) {
        (void)slack_usec;
        return event_timer_set(source, at_usec);
}

int event_deferred_schedule(struct event_source *source) {
        source->scheduled = true;
        return 0;
}

struct event_source *event_source_free(struct event_source *source) {
        if (source) {
                TAILQ_REMOVE(&loop.sources, source, entry);
                free(source);
        }
        return NULL;
}

uint64_t event_now_usec(struct event *event) {
        (void)event;
        return loop.now_usec;
}

uint64_t event_real_usec(struct event *event) {
        (void)event;
        return loop.real_usec + loop.now_usec;
}

static inline struct event_source *next_source(void) {
        struct event_source *source, *first = NULL;

        TAILQ_FOREACH(source, &loop.sources, entry)
                if (source->deferred && source->scheduled)
                        return source;
        TAILQ_FOREACH(source, &loop.sources, entry)
                if (!source->deferred && source->at_usec != USEC_NEVER && (!first || source->at_usec < first->at_usec))
                        first = source;
        return first;
}

/* Let time go by to `until_usec`, or stop as soon as `*condition` is true (NULL: never). */
static inline void run_until(uint64_t until_usec, const bool *condition) {
        struct event_source *source;

        while (!(condition && *condition) && loop.failure >= 0 && (source = next_source())) {
                if (source->deferred)
                        source->scheduled = false;
                else if (source->at_usec > until_usec)
                        break;
                else {
                        loop.now_usec = base_max_u64(loop.now_usec, source->at_usec);
                        source->at_usec = USEC_NEVER;
                        loop.wakeups++;
                }
                int r = source->handler(source->userdata);
                if (r < 0)
                        loop.failure = r;
        }
        if (!(condition && *condition))
                loop.now_usec = base_max_u64(loop.now_usec, until_usec);
}

static inline void run_for(uint64_t usec) {
        run_until(loop.now_usec + usec, NULL);
}

static inline void run_turn(void) {
        run_for(0);
}

/* ---- gRPC ------------------------------------------------------------------------------------------- */

struct grpc_call {
        struct grpc_call_options options;
        struct grpc_call_handlers handlers;
        void *userdata;
        struct buffer request;
        char *token, *path;
        size_t consumed;
};

static struct {
        struct grpc_call *watch, *report; /* the open ones */
        bool has_watch, has_report;
        unsigned watches, reports, drops;
        int start_result; /* what grpc_call_start() returns */
} channel;

const char *grpc_status_to_text(enum grpc_status status) {
        static const char *const names[] = {
                "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
                "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
                "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
        };

        return names[status];
}

int grpc_call_start(struct grpc_channel *unused, const struct grpc_call_options *options,
                    const struct grpc_call_handlers *handlers, void *userdata, struct grpc_call **ret) {
        struct grpc_call *call;

        (void)unused;
        if (channel.start_result < 0)
                return channel.start_result;
        call = calloc(1, sizeof(*call));
        assert_non_null(call);
        call->options = *options;
        call->handlers = *handlers;
        call->userdata = userdata;
        call->request = BUFFER_INIT(2 * 1024 * 1024);
        assert_int_equal(buffer_append(&call->request, options->request.data, options->request.size), 0);
        call->token = options->bearer_token ? strdup(options->bearer_token) : NULL;
        call->path = strdup(options->path);
        assert_non_null(call->path);
        if (options->streaming) {
                assert_null(channel.watch); /* at most one stream */
                channel.watch = call;
                channel.has_watch = true;
                channel.watches++;
        } else {
                assert_null(channel.report); /* at most one call */
                channel.report = call;
                channel.has_report = true;
                channel.reports++;
        }
        *ret = call;
        return 0;
}

struct grpc_call *grpc_call_free(struct grpc_call *call) {
        if (!call)
                return NULL;
        if (channel.watch == call) {
                channel.watch = NULL;
                channel.has_watch = false;
        }
        if (channel.report == call) {
                channel.report = NULL;
                channel.has_report = false;
        }
        buffer_deinit(&call->request);
        free(call->token);
        free(call->path);
        free(call);
        return NULL;
}

void grpc_call_consume(struct grpc_call *call, size_t size) {
        call->consumed += size;
}

void grpc_channel_drop(struct grpc_channel *unused) {
        (void)unused;
        channel.drops++;
}

const char *grpc_channel_peer(const struct grpc_channel *unused) {
        (void)unused;
        return "198.51.100.7:443";
}

static inline void keep_failure(int r) {
        if (r < 0)
                loop.failure = r;
}

static inline void send_message(struct grpc_call *call, const struct buffer *message) {
        /* a copy of its own: a use after the handler is seen by the sanitizer */
        uint8_t *copy = malloc(message->size + 1);

        assert_non_null(copy);
        assert_non_null(call);
        if (message->size)
                memcpy(copy, message->data, message->size);
        keep_failure(call->handlers.on_message(call, (struct span){ copy, message->size }, call->userdata));
        free(copy);
}

static inline void close_call(struct grpc_call *call, const struct grpc_result *result) {
        struct grpc_result copy = *result;

        assert_non_null(call);
        if (!copy.message)
                copy.message = "";
        keep_failure(call->handlers.on_close(call, &copy, call->userdata));
}

/* ---- the token -------------------------------------------------------------------------------------- */

static struct {
        int result;
        const char *token, *error;
        unsigned refreshed;
} tokens;

int token_get(struct token *token, const char **ret) {
        (void)token;
        if (tokens.result < 0)
                return tokens.result;
        *ret = tokens.token;
        return 0;
}

const char *token_error(const struct token *token) {
        (void)token;
        return tokens.error ? tokens.error : "";
}

void token_redact(const struct token *token, char *text) {
        (void)token;
        (void)text;
}

void token_refresh(struct token *token) {
        (void)token;
        tokens.refreshed++;
}

static inline void reset_world(void) {
        memset(&loop, 0, sizeof(loop));
        TAILQ_INIT(&loop.sources);
        loop.now_usec = 1000 * USEC_PER_SEC;
        loop.real_usec = UINT64_C(1700000000) * USEC_PER_SEC;
        memset(&channel, 0, sizeof(channel));
        memset(&tokens, 0, sizeof(tokens));
        tokens.token = "secret";
}

/* Nothing may be left behind. */
static inline void check_world(void) {
        assert_true(TAILQ_EMPTY(&loop.sources));
        assert_null(channel.watch);
        assert_null(channel.report);
        assert_true(loop.failure >= 0);
}

/* ---- the agent -------------------------------------------------------------------------------------- */

struct answer {
        char operation_id[OPERATION_ID_MAX + 1];
        int64_t sequence;
        enum control_answer answer;
        char reason[COMMAND_REASON_MAX + 1];
};

static struct {
        struct control *control;
        struct command_event event; /* the last one */
        size_t size;
        unsigned events, restarts, drained;
        unsigned notices[CONTROL_TOKEN_FAILED + 1];
        char detail[CONTROL_TOKEN_FAILED + 1][600];
        struct answer *answers;
        size_t answer_count;
        bool take_at_once;          /* give each event back from within on_event */
        int (*in_report)(const struct answer *answer);
        int (*in_event)(void);
        int fail;                   /* what on_report returns */
} agent;

static inline int on_event(const struct command_event *event, size_t size, void *userdata) {
        (void)userdata;
        agent.event = *event;
        agent.size = size;
        agent.events++;
        if (agent.take_at_once)
                control_taken(agent.control, event->revision, size);
        return agent.in_event ? agent.in_event() : 0;
}

static inline int on_restart(void *userdata) {
        (void)userdata;
        agent.restarts++;
        return 0;
}

static inline int on_report(const char *operation_id, int64_t sequence, enum control_answer answer, const char *reason,
                     void *userdata) {
        struct answer *entry;

        (void)userdata;
        if ((agent.answer_count & (agent.answer_count + 1)) == 0) { /* room for 2^n - 1 */
                agent.answers = realloc(agent.answers, (2 * agent.answer_count + 1) * sizeof(*agent.answers));
                assert_non_null(agent.answers);
        }
        entry = &agent.answers[agent.answer_count++];
        *entry = (struct answer){ .sequence = sequence, .answer = answer };
        assert_true(base_text_copy(entry->operation_id, sizeof(entry->operation_id), operation_id));
        (void)base_text_copy(entry->reason, sizeof(entry->reason), reason);
        if (agent.in_report) {
                struct answer copy = *entry;
                return agent.in_report(&copy);
        }
        return agent.fail;
}

static inline int on_notice(enum control_notice notice, const char *detail, void *userdata) {
        (void)userdata;
        agent.notices[notice]++;
        (void)base_text_copy(agent.detail[notice], sizeof(agent.detail[notice]), detail);
        return 0;
}

static inline int on_drained(void *userdata) {
        (void)userdata;
        agent.drained++;
        return 0;
}

static inline struct control_options default_options(void) {
        return (struct control_options){
                .cluster_id = "c1", .node = "node-1", .instance_id = "i-1", .agent_version = "1.0",
                .reconnect_min_usec = MIN_USEC, .reconnect_max_usec = MAX_USEC,
                .report_timeout_usec = REPORT_TIMEOUT_USEC,
        };
}

static inline int setup(void **state) {
        static const struct control_handlers handlers = {
                .on_event = on_event, .on_restart = on_restart, .on_report = on_report, .on_notice = on_notice
        };
        struct control_options options = default_options();

        (void)state;
        reset_world();
        memset(&agent, 0, sizeof(agent));
        agent.take_at_once = true;
        return control_new(NULL, NULL, NULL, &options, &handlers, NULL, &agent.control);
}

static inline int teardown(void **state) {
        (void)state;
        agent.control = control_free(agent.control);
        free(agent.answers);
        check_world();
        return 0;
}

/* ---- the server's side of Watch --------------------------------------------------------------------- */

static inline void put(struct buffer *out, uint32_t number, const void *bytes, size_t size) {
        assert_int_equal(command_wire_put_bytes(out, number, bytes, size), 0);
}

static inline void put_number(struct buffer *out, uint32_t number, uint64_t value) {
        assert_int_equal(command_wire_put_varint(out, number, value), 0);
}

static inline void put_seconds(struct buffer *out, uint32_t number, uint64_t seconds) {
        struct buffer time = BUFFER_INIT(64);

        put_number(&time, 1, seconds);
        put(out, number, time.data, time.size);
        buffer_deinit(&time);
}

/* A Bookmark; 0 leaves a part out. Returns the message's size. */
static inline size_t send_bookmark(int64_t revision, uint64_t interval_seconds, uint64_t now_seconds) {
        struct buffer message = BUFFER_INIT(256), bookmark = BUFFER_INIT(128);
        size_t size;

        put_number(&message, 1, (uint64_t)revision);
        if (interval_seconds)
                put_seconds(&bookmark, 1, interval_seconds);
        if (now_seconds)
                put_seconds(&bookmark, 2, now_seconds);
        put(&message, 4, bookmark.data, bookmark.size);
        send_message(channel.watch, &message);
        size = message.size;
        buffer_deinit(&bookmark);
        buffer_deinit(&message);
        return size;
}

static inline size_t send_withdrawn(int64_t revision) {
        struct buffer message = BUFFER_INIT(256);
        size_t size;

        put_number(&message, 1, (uint64_t)revision);
        put(&message, 3, "\x0a\x04op-1", 6);
        send_message(channel.watch, &message);
        size = message.size;
        buffer_deinit(&message);
        return size;
}

static inline void close_watch(enum grpc_status status, bool from_peer) {
        const struct grpc_result result = { .status = status, .message = "why", .from_peer = from_peer };

        close_call(channel.watch, &result);
}

static inline void start(int64_t revision) {
        assert_int_equal(control_start(agent.control, revision), 0);
        assert_null(channel.watch); /* from the loop only */
        run_turn();
        assert_non_null(channel.watch);
}

/* Wait for the next stream and tell how long it took. */
static inline uint64_t wait_watch(void) {
        uint64_t from = loop.now_usec;

        assert_null(channel.watch);
        run_until(from + USEC_PER_HOUR, &channel.has_watch);
        assert_non_null(channel.watch);
        return loop.now_usec - from;
}

static inline int64_t asked_revision(void) {
        Sparkcancel__Agent__V1__WatchRequest *request;
        int64_t revision;

        request = sparkcancel__agent__v1__watch_request__unpack(NULL, channel.watch->request.size,
                                                                channel.watch->request.data);
        assert_non_null(request);
        assert_string_equal(request->cluster_id, "c1");
        assert_string_equal(request->node, "node-1");
        assert_string_equal(request->instance_id, "i-1");
        assert_string_equal(request->agent_version, "1.0");
        revision = request->after_revision;
        sparkcancel__agent__v1__watch_request__free_unpacked(request, NULL);
        return revision;
}

/* Each try waits between half and all of min * 2^n, up to max. */
static inline void assert_backoff(uint64_t waited, unsigned attempt) {
        uint64_t value = MIN_USEC;

        for (; attempt && value < MAX_USEC; attempt--)
                value = base_min_u64(2 * value, MAX_USEC);
        assert_in_range(waited, value / 2, value);
}
