/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The Watch stream: events in, with resume.
 *
 * A stream is opened after the last revision that the agent has stored; what was delivered and not stored comes
 * again. The bytes of an event stay charged to the stream's window until the agent gives them back
 * (control_taken()), so a flood waits at the server.
 *
 * Life and death. A frozen server still acknowledges at TCP level, so only its own heartbeats tell that it lives.
 * One timer watches them. A message does not arm it again, it notes the time; when the timer fires it looks at
 * that note and goes back to sleep: an idle stream costs less than one wake-up an interval besides the message
 * itself. After three intervals of silence the whole connection is dropped, since a new stream on it would hang,
 * too.
 *
 * The back-off falls back to reconnect_min only after useful progress: the stored position went forward, or the
 * stream lived for a whole heartbeat interval. A server that accepts every stream and then fails on the same event
 * is thus not hammered.
 *
 * A new order of revisions (a stream begun with 0) makes all earlier revisions meaningless, also those of events
 * that the agent is storing at this moment. `stale` keeps count of their bytes: a position that comes back with
 * them is not believed.
 */
#include "control_internal.h"
#include "metrics.h"

#define WATCH_PATH "/sparkcancel.agent.v1.CancelAgentService/Watch"
#define WATCH_RESPONSE_MAX (64 * 1024)
#define WATCH_REQUEST_MAX 4096
#define INTERVAL_DEFAULT_USEC (10 * USEC_PER_SEC) /* until the first Bookmark tells: silence is 30 s then */
#define SILENT_INTERVALS 3
#define HELD_MAX (CONTROL_STREAM_WINDOW - 2 * WATCH_RESPONSE_MAX) /* above it the window may be too small to speak */

static int watch_open(struct control *control);

/* ---- orders and windows ----------------------------------------------------------------------------- */

/* The stream is over; what it delivered and the agent still holds has no window to be given back to. */
static void forget_call(struct control_watch *watch) {
        watch->call = grpc_call_free(watch->call);
        watch->foreign = watch->outstanding;
        watch->connected = false;
        metrics_set(METRICS_STREAM_UP, NULL, 0);
}

/* Begin at 0. True when the order before had delivered something: then the agent must be told. */
static bool begin_order(struct control_watch *watch) {
        bool used = watch->revision != 0 || watch->delivered != 0;

        watch->revision = 0;
        watch->delivered = 0;
        watch->stale = watch->outstanding;
        return used;
}

static void progress(struct control_watch *watch) {
        watch->attempts = 0;
        watch->restarts = 0;
}

void control_taken(struct control *control, int64_t revision, size_t size) {
        struct control_watch *watch = &control->watch;
        size_t taken = size < watch->outstanding ? size : watch->outstanding;
        size_t foreign = taken < watch->foreign ? taken : watch->foreign;
        bool of_this_order = watch->stale == 0 || taken > watch->stale;

        watch->outstanding -= taken;
        watch->foreign -= foreign;
        watch->stale -= taken < watch->stale ? taken : watch->stale;
        if (watch->call && taken > foreign)
                grpc_call_consume(watch->call, taken - foreign);

        if (of_this_order && revision > watch->revision && revision <= watch->delivered) {
                watch->revision = revision;
                progress(watch);
        }
}

/* ---- silence ---------------------------------------------------------------------------------------- */

static uint64_t silence_usec(const struct control_watch *watch) {
        return SILENT_INTERVALS * (watch->interval_usec ? watch->interval_usec : INTERVAL_DEFAULT_USEC);
}

/* While we hold the window the server cannot speak, and its silence means nothing. */
static bool is_held(const struct control_watch *watch) {
        return !watch->reading || watch->outstanding - watch->foreign >= HELD_MAX;
}

static int arm_silence(struct control *control, uint64_t from_usec) {
        uint64_t limit = silence_usec(&control->watch);

        return event_timer_set_coarse(control->watch.timer, base_usec_add(from_usec, limit), limit / 16);
}

/* ---- the end of a stream, and the next one ---------------------------------------------------------- */

static int retry(struct control *control, uint64_t delay_usec) {
        return event_timer_set(control->watch.timer, base_usec_add(event_now_usec(control->event), delay_usec));
}

static bool has_lived(const struct control_watch *watch) {
        uint64_t interval = watch->interval_usec ? watch->interval_usec : INTERVAL_DEFAULT_USEC;

        return watch->connected && base_usec_sub(watch->message_usec, watch->opened_usec) >= interval;
}

static int tell_disconnected(struct control *control, const char *error, bool was_connected, uint64_t delay_usec) {
        struct control_watch *watch = &control->watch;

        if (!was_connected && strcmp(watch->error, error) == 0)
                return 0;
        (void)base_text_copy(watch->error, sizeof(watch->error), error);
        return control_notify(control, CONTROL_DISCONNECTED, "%s; next try in %.1f s", error,
                              (double)delay_usec / (double)USEC_PER_SEC);
}

/* OUT_OF_RANGE: at once the first time, since the server has just told us what to do; then with back-off. */
static int history_gone(struct control *control, const char *error, const struct grpc_result *result) {
        struct control_watch *watch = &control->watch;
        bool first = watch->restarts == 0;
        int r;

        if (watch->restarts < UINT32_MAX)
                watch->restarts++;
        (void)begin_order(watch);
        r = retry(control, first ? 0 : control_backoff(control, &watch->attempts, result));
        if (r < 0)
                return r;
        r = control->handlers.on_restart(control->userdata);
        return r < 0 ? r : control_notify(control, CONTROL_HISTORY_GONE, "%s", error);
}

/* ABORTED: the server has given our name to another. Whoever of the two is wrong, it is not settled in seconds. */
static int node_taken(struct control *control, const char *error, const struct grpc_result *result) {
        uint64_t delay = control_backoff(control, &control->watch.attempts, result);
        int r;

        delay = base_usec_add(delay / 2, control->reconnect_max_usec);
        r = retry(control, delay);
        if (r < 0)
                return r;
        return control_notify(control, CONTROL_NODE_TAKEN, "another agent calls itself %s (%s)", control->node, error);
}

static int stream_ended(struct control *control, const struct grpc_result *result) {
        struct control_watch *watch = &control->watch;
        bool was_connected = watch->connected;
        char error[CONTROL_TEXT_MAX];
        uint64_t delay;
        int r;

        if (result->status == GRPC_OK)
                (void)base_text_copy(error, sizeof(error), "the control plane ended the stream");
        else
                control_describe(result, error, sizeof(error));
        if (has_lived(watch))
                progress(watch);
        forget_call(watch);
        if (result->from_peer && result->status == GRPC_OUT_OF_RANGE)
                return history_gone(control, error, result);
        if (result->from_peer && result->status == GRPC_ABORTED)
                return node_taken(control, error, result);
        if (result->status == GRPC_UNAUTHENTICATED)
                token_refresh(control->token);
        delay = control_backoff(control, &watch->attempts, result);
        r = retry(control, delay);
        return r < 0 ? r : tell_disconnected(control, error, was_connected, delay);
}

static int silent(struct control *control) {
        struct control_watch *watch = &control->watch;
        uint64_t limit = silence_usec(watch);
        int r;

        if (has_lived(watch))
                progress(watch);
        forget_call(watch);
        r = retry(control, control_backoff(control, &watch->attempts, NULL));
        if (r < 0)
                return r;
        grpc_channel_drop(control->channel);
        return control_notify(control, CONTROL_SILENT, "no message for %.0f s: connection dropped",
                              (double)limit / (double)USEC_PER_SEC);
}

static int on_timer(void *userdata) {
        struct control *control = userdata;
        struct control_watch *watch = &control->watch;
        uint64_t now = event_now_usec(control->event);

        if (!watch->wanted)
                return 0;
        if (!watch->call)
                return watch_open(control);
        if (is_held(watch))
                watch->message_usec = now;
        if (base_usec_sub(now, watch->message_usec) >= silence_usec(watch))
                return silent(control);
        return arm_silence(control, watch->message_usec);
}

/* ---- messages --------------------------------------------------------------------------------------- */

static int first_message(struct control *control) {
        struct control_watch *watch = &control->watch;

        watch->connected = true;
        watch->error[0] = '\0';
        metrics_set(METRICS_STREAM_UP, NULL, 1);
        metrics_add(METRICS_STREAM_CONNECTS, NULL, 1);
        if (control->sender.unreachable)
                control_sender_hurry(control, false);
        return control_notify(control, CONTROL_CONNECTED, "%s", grpc_channel_peer(control->channel));
}

static int note_bookmark(struct control *control, const struct command_event *event) {
        struct control_watch *watch = &control->watch;

        if (event->server_real_usec) {
                watch->server_real_usec = event->server_real_usec;
                watch->server_usec = event_now_usec(control->event);
        }
        if (!event->heartbeat_interval_usec || event->heartbeat_interval_usec == watch->interval_usec)
                return 0;
        watch->interval_usec = event->heartbeat_interval_usec;
        return arm_silence(control, watch->message_usec);
}

/* A Bookmark may repeat the position, and the one that opens a stream may say 0. */
static bool is_backward(const struct control_watch *watch, const struct command_event *event, bool opening) {
        if (event->kind == COMMAND_EVENT_BOOKMARK)
                return !opening && event->revision < watch->stream_revision;
        return event->revision <= watch->stream_revision;
}

/* The counts come first: the agent may give the bytes back from within its handler. */
static int deliver(struct control *control, const struct command_event *event, size_t size) {
        struct control_watch *watch = &control->watch;

        watch->outstanding += size;
        if (event->revision > watch->delivered)
                watch->delivered = event->revision;
        return control->handlers.on_event(event, size, control->userdata);
}

static int bad_message(struct control *control, struct grpc_call *call, size_t size) {
        grpc_call_consume(call, size);
        return control_notify(control, CONTROL_BAD_MESSAGE, "%zu bytes that are no WatchResponse; ignored", size);
}

static int on_message(struct grpc_call *call, struct span message, void *userdata) {
        struct control *control = userdata;
        struct control_watch *watch = &control->watch;
        bool opening = !watch->connected, backward;
        struct command_event event;
        int r;

        if (control->draining)
                return 0; /* the stream is about to be closed: the event comes again to the next process */
        watch->message_usec = event_now_usec(control->event);
        metrics_set(METRICS_LAST_CONTACT, NULL, (double)(event_real_usec(control->event) / USEC_PER_SEC));
        if (opening) {
                r = first_message(control);
                if (r < 0 || control->draining)
                        return r;
        }
        r = command_decode_event(message, control->cluster_id, &event);
        if (r == -EBADMSG)
                return bad_message(control, call, message.size);
        if (r < 0)
                return r;

        if (event.kind == COMMAND_EVENT_BOOKMARK) {
                r = note_bookmark(control, &event);
                if (r < 0)
                        return r;
        }
        backward = is_backward(watch, &event, opening);
        if (backward)
                metrics_add(METRICS_REVISIONS_BACKWARD, NULL, 1);
        else if (event.revision > watch->stream_revision)
                watch->stream_revision = event.revision;
        r = deliver(control, &event, message.size);
        if (r < 0 || !backward)
                return r;
        return control_notify(control, CONTROL_REVISION_BACKWARD, "revision %" PRId64 " after %" PRId64,
                              event.revision, watch->stream_revision);
}

static int on_close(struct grpc_call *call, const struct grpc_result *result, void *userdata) {
        struct control *control = userdata;

        (void)call;
        if (control->draining) {
                forget_call(&control->watch);
                return 0;
        }
        return stream_ended(control, result);
}

/* ---- opening ---------------------------------------------------------------------------------------- */

static int start_call(struct control *control, const char *token) {
        static const struct grpc_call_handlers handlers = { .on_message = on_message, .on_close = on_close };
        struct buffer request = BUFFER_INIT(WATCH_REQUEST_MAX);
        int r;

        r = command_encode_watch_request(control->cluster_id, control->node, control->instance_id,
                                         control->agent_version, control->watch.revision, &request);
        if (r >= 0) {
                const struct grpc_call_options options = {
                        .path = WATCH_PATH,
                        .request = { request.data, request.size },
                        .bearer_token = token,
                        .timeout_usec = USEC_NEVER,
                        .response_max = WATCH_RESPONSE_MAX,
                        .streaming = true,
                        .manual_window = true,
                };

                r = grpc_call_start(control->channel, &options, &handlers, control, &control->watch.call);
        }
        buffer_deinit(&request);
        return r;
}

static int open_failed(struct control *control, const char *error) {
        uint64_t delay = control_backoff(control, &control->watch.attempts, NULL);
        int r = retry(control, delay);

        return r < 0 || !error ? r : tell_disconnected(control, error, false, delay);
}

static int watch_open(struct control *control) {
        struct control_watch *watch = &control->watch;
        const char *token = NULL;
        int r;

        if (watch->revision == 0 && begin_order(watch)) {
                r = control->handlers.on_restart(control->userdata);
                if (r < 0)
                        return r;
        }
        r = control_take_token(control, &token);
        if (r < 0)
                return r;
        if (r == CONTROL_TOKEN_MISSING)
                return open_failed(control, NULL);
        r = start_call(control, token);
        if (r < 0)
                return open_failed(control, strerror(-r));
        watch->opened_usec = watch->message_usec = event_now_usec(control->event);
        watch->interval_usec = 0;
        watch->stream_revision = watch->revision;
        return arm_silence(control, watch->opened_usec);
}

int control_watch_init(struct control *control) {
        control->watch.reading = true;
        return event_add_timer(control->event, "control-watch", on_timer, control, &control->watch.timer);
}

void control_watch_deinit(struct control *control) {
        forget_call(&control->watch);
        control->watch.timer = event_source_free(control->watch.timer);
}

int control_watch_start(struct control *control, int64_t after_revision) {
        control->watch.wanted = true;
        control->watch.revision = after_revision;
        control->watch.delivered = after_revision;
        return retry(control, 0);
}

void control_watch_stop(struct control *control) {
        control->watch.wanted = false;
        forget_call(&control->watch);
}

int control_watch_restart(struct control *control) {
        if (!control->watch.wanted)
                return 0;
        forget_call(&control->watch);
        control->watch.attempts = 0;
        return retry(control, 0);
}

void control_set_reading(struct control *control, bool reading) {
        if (reading && !control->watch.reading)
                control->watch.message_usec = event_now_usec(control->event);
        control->watch.reading = reading;
}
