/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The session with the control plane: what the Watch stream (control_watch.c) and the report sender
 * (control_report.c) have in common.
 *
 * Both live on one HTTP/2 connection and know nothing of each other, with one exception: a stream that gets
 * through tells the sender that an unreachable server is back, so that outcomes do not wait for the rest of a
 * back-off of up to reconnect_max.
 *
 * Re-entrancy. Every handler of the agent may call any function of control.h but control_free(). Two rules make
 * that safe: state is settled before a handler is called; and what ends a call or drops the connection runs from a
 * deferred source, never within a callback of that very call (control_reload() from within on_event).
 */
#include "control_internal.h"

int control_notify(struct control *control, enum control_notice notice, const char *format, ...) {
        char text[2 * CONTROL_TEXT_MAX], detail[2 * CONTROL_TEXT_MAX];
        va_list arguments;

        va_start(arguments, format);
        (void)vsnprintf(text, sizeof(text), format, arguments);
        va_end(arguments);
        token_redact(control->token, text);
        base_text_escape(detail, sizeof(detail), text, strlen(text));
        return control->handlers.on_notice(notice, detail, control->userdata);
}

void control_schedule(struct control *control) {
        (void)event_deferred_schedule(control->work);
}

uint64_t control_backoff(struct control *control, uint32_t *attempts, const struct grpc_result *result) {
        uint64_t delay = base_backoff_usec(*attempts, control->reconnect_min_usec, control->reconnect_max_usec,
                                           &control->seed);

        if (*attempts < UINT32_MAX)
                (*attempts)++;
        if (!result || !result->has_pushback)
                return delay;
        if (result->pushback_ms < 0)
                return control->reconnect_max_usec;
        delay = base_min_u64((uint64_t)result->pushback_ms, UINT64_MAX / USEC_PER_MSEC) * USEC_PER_MSEC;
        delay = base_usec_add(delay, base_random_next(&control->seed) % (delay / 8 + 1)); /* no herd */
        return base_min_u64(base_max_u64(delay, control->reconnect_min_usec), control->reconnect_max_usec);
}

int control_take_token(struct control *control, const char **ret) {
        const char *error;
        int r, failure;

        failure = token_get(control->token, ret);
        if (failure >= 0)
                return CONTROL_TOKEN_READY;
        error = token_error(control->token);
        if (failure == -EAGAIN && !error[0])
                return CONTROL_TOKEN_MISSING; /* asked for, and not answered yet: nothing to tell */
        r = control_notify(control, CONTROL_TOKEN_FAILED, "%s", error[0] ? error : strerror(-failure));
        return r < 0 ? r : CONTROL_TOKEN_MISSING;
}

void control_describe(const struct grpc_result *result, char *text, size_t size) {
        (void)snprintf(text, size, "%s%s%s", grpc_status_to_text(result->status), result->message[0] ? ": " : "",
                       result->message);
}

/* ---- life ------------------------------------------------------------------------------------------- */

static int check_drained(struct control *control) {
        int (*drained)(void *userdata) = control->drained;

        if (!drained || control->sender.count)
                return 0;
        control->drained = NULL;
        return drained(control->drained_userdata);
}

static int on_drain_timeout(void *userdata) {
        struct control *control = userdata;
        int (*drained)(void *userdata) = control->drained;

        if (!drained)
                return 0;
        control->drained = NULL;
        return drained(control->drained_userdata);
}

static int do_reload(struct control *control) {
        int r;

        control->reload_wanted = false;
        r = control_watch_restart(control);
        if (r < 0)
                return r;
        control_sender_restart(control);
        token_refresh(control->token);
        grpc_channel_drop(control->channel);
        return 0;
}

static int on_work(void *userdata) {
        struct control *control = userdata;
        int r;

        if (control->draining)
                control_watch_stop(control);
        if (control->reload_wanted) {
                r = do_reload(control);
                if (r < 0)
                        return r;
        }
        r = control_sender_pump(control);
        return r < 0 ? r : check_drained(control);
}

static int copy_options(struct control *control, const struct control_options *options) {
        if (!base_text_copy(control->cluster_id, sizeof(control->cluster_id), options->cluster_id) ||
            !base_text_copy(control->node, sizeof(control->node), options->node) ||
            !base_text_copy(control->instance_id, sizeof(control->instance_id), options->instance_id) ||
            !base_text_copy(control->agent_version, sizeof(control->agent_version), options->agent_version))
                return -EINVAL;
        control_set_times(control, options->reconnect_min_usec, options->reconnect_max_usec,
                          options->report_timeout_usec);
        return 0;
}

static int add_sources(struct control *control) {
        int r;

        r = event_add_deferred(control->event, "control-work", on_work, control, &control->work);
        if (r < 0)
                return r;
        r = event_add_timer(control->event, "control-drain", on_drain_timeout, control, &control->drain_timer);
        if (r < 0)
                return r;
        r = control_watch_init(control);
        if (r < 0)
                return r;
        return control_sender_init(control);
}

int control_new(struct event *event, struct grpc_channel *channel, struct token *token,
                const struct control_options *options, const struct control_handlers *handlers, void *userdata,
                struct control **ret) {
        _cleanup_(control_free_pointer) struct control *control = NULL;
        int r;

        control = calloc(1, sizeof(*control));
        if (!control)
                return -ENOMEM;
        control->event = event;
        control->channel = channel;
        control->token = token;
        control->handlers = *handlers;
        control->userdata = userdata;
        control->seed = base_random_u64();
        r = copy_options(control, options);
        if (r < 0)
                return r;
        r = add_sources(control);
        if (r < 0)
                return r;
        *ret = TAKE(control);
        return 0;
}

struct control *control_free(struct control *control) {
        if (!control)
                return NULL;
        control_watch_deinit(control);
        control_sender_deinit(control);
        event_source_free(control->drain_timer);
        event_source_free(control->work);
        free(control);
        return NULL;
}

int control_start(struct control *control, int64_t after_revision) {
        return control_watch_start(control, after_revision);
}

int control_report(struct control *control, const char *operation_id, int64_t sequence, bool final,
                   struct span report) {
        return control_sender_put(control, operation_id, sequence, final, report);
}

int control_drain(struct control *control, uint64_t timeout_usec, int (*done)(void *userdata), void *userdata) {
        control->draining = true;
        control->drained = done;
        control->drained_userdata = userdata;
        control_sender_hurry(control, true);
        control_schedule(control);
        return event_timer_set(control->drain_timer, base_usec_add(event_now_usec(control->event), timeout_usec));
}

void control_reload(struct control *control) {
        control->reload_wanted = true;
        control_schedule(control);
}

void control_set_times(struct control *control, uint64_t reconnect_min_usec, uint64_t reconnect_max_usec,
                       uint64_t report_timeout_usec) {
        control->reconnect_min_usec = reconnect_min_usec;
        control->reconnect_max_usec = base_max_u64(reconnect_max_usec, reconnect_min_usec);
        control->report_timeout_usec = report_timeout_usec;
}

uint64_t control_deadline_usec(const struct control *control, uint64_t server_real_usec) {
        const struct control_watch *watch = &control->watch;
        uint64_t real_usec = watch->server_real_usec, usec = watch->server_usec;

        if (server_real_usec == USEC_NEVER)
                return USEC_NEVER;
        if (!real_usec) {
                real_usec = event_real_usec(control->event);
                usec = event_now_usec(control->event);
        }
        if (server_real_usec >= real_usec)
                return base_usec_add(usec, server_real_usec - real_usec);
        return base_usec_sub(usec, real_usec - server_real_usec);
}

bool control_is_connected(const struct control *control) {
        return control->watch.connected && !control->draining;
}

size_t control_reports_waiting(const struct control *control) {
        return control->sender.count;
}
