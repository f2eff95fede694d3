/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The report sender: each stored report goes out until it is answered.
 *
 * One call at a time. It keeps an operation's reports in their order without a lock per operation, a refusal names
 * one known set of reports, and 256 reports a round trip are more than a node's cancels will ever need; what
 * arrives meanwhile makes the next batch. When nothing is under way a report leaves in the same turn of the loop.
 *
 * An operation with unanswered reports is in exactly one place: the `ready` list, or one batch. A batch is in
 * flight or in the `waiting` list with a time of its own. What a failed call means is one of four words:
 *   REFUSED   INVALID_ARGUMENT, FAILED_PRECONDITION: some report in it is bad. Halve until it stands alone; the
 *             guilty one is given back as rejected.
 *   TROUBLED  INTERNAL, UNKNOWN, RESOURCE_EXHAUSTED from the server, an unreadable answer, or none for any report:
 *             may be the server, may be a report. Three times for the same batch: halve. A report that is
 *             alone by then goes on with a back-off of its own and holds up no other.
 *   FAILED    everything else says nothing about a report: all wait for one common back-off.
 *   ANSWERED  each report for itself.
 * Waiting batches and ready reports take turns, so neither a bad report nor a flood of new ones starves the other.
 *
 * The known bad ones among themselves go out at most one in reconnect_min, so that a server that chokes on
 * everything is not hammered with single reports; the first of them that gets through shows that it was the server,
 * and all go back to `ready`.
 *
 * Times of back-off are set before a handler is called, and a report has left all lists before its handler is called:
 * the handler may hand over new reports, also of the same operation.
 */
#include <search.h>

#include "control_internal.h"
#include "metrics.h"

#define REPORT_PATH "/sparkcancel.agent.v1.CancelAgentService/Report"
#define REQUEST_MAX (1024 * 1024)
#define RESPONSE_MAX (1024 * 1024)
#define REQUEST_HEAD_MAX 1024  /* cluster, node and instance id */
#define REPORT_OVERHEAD 8      /* tag and length of one report */
#define TROUBLES_MAX 3
#define FAILING_USEC (5 * USEC_PER_MINUTE)

enum verdict {
        VERDICT_ANSWERED,
        VERDICT_REFUSED,
        VERDICT_TROUBLED,
        VERDICT_FAILED,
};

/* ---- operations and their reports ------------------------------------------------------------------- */

static int compare_operations(const void *a, const void *b) {
        const struct control_report_operation *left = a, *right = b;

        return strcmp(left->id, right->id);
}

static struct control_report_operation *find_operation(struct control_sender *sender, const char *id) {
        struct control_report_operation key;
        void *node;

        (void)base_text_copy(key.id, sizeof(key.id), id);
        node = tfind(&key, &sender->operations, compare_operations);
        return node ? *(struct control_report_operation **)node : NULL;
}

static void put_ready(struct control_sender *sender, struct control_report_operation *operation) {
        STAILQ_INSERT_TAIL(&sender->ready, operation, entry);
}

static struct control_report_operation *add_operation(struct control_sender *sender, const char *id) {
        struct control_report_operation *operation = calloc(1, sizeof(*operation));

        if (!operation)
                return NULL;
        TAILQ_INIT(&operation->reports);
        (void)base_text_copy(operation->id, sizeof(operation->id), id);
        if (!tsearch(operation, &sender->operations, compare_operations)) {
                free(operation);
                return NULL;
        }
        put_ready(sender, operation);
        return operation;
}

static void remove_item(struct control_sender *sender, struct control_report_operation *operation,
                        struct control_report_item *item) {
        TAILQ_REMOVE(&operation->reports, item, entry);
        free(item);
        sender->count--;
}

static struct control_report_item *find_item(struct control_report_operation *operation, int64_t sequence) {
        struct control_report_item *item;

        TAILQ_FOREACH(item, &operation->reports, entry)
                if (item->sequence == sequence)
                        return item;
        return NULL;
}

/* The highest sequence is nearly always the newest: search from the end. */
static void insert_item(struct control_sender *sender, struct control_report_operation *operation,
                        struct control_report_item *item) {
        struct control_report_item *before;

        TAILQ_FOREACH_REVERSE(before, &operation->reports, control_report_list, entry)
                if (before->sequence < item->sequence)
                        break;
        if (before)
                TAILQ_INSERT_AFTER(&operation->reports, before, item, entry);
        else
                TAILQ_INSERT_HEAD(&operation->reports, item, entry);
        sender->count++;
}

/* A progress report in flight is dropped, too: its answer then finds nothing to answer. */
static void drop_progress(struct control_sender *sender, struct control_report_operation *operation) {
        struct control_report_item *item = TAILQ_FIRST(&operation->reports), *next;

        for (; item; item = next) {
                next = TAILQ_NEXT(item, entry);
                if (!item->final)
                        remove_item(sender, operation, item);
        }
}

int control_sender_put(struct control *control, const char *operation_id, int64_t sequence, bool final,
                       struct span report) {
        struct control_sender *sender = &control->sender;
        struct control_report_operation *operation;
        struct control_report_item *item;

        if (strlen(operation_id) > OPERATION_ID_MAX ||
            report.size > REQUEST_MAX - REQUEST_HEAD_MAX - REPORT_OVERHEAD)
                return -EINVAL;
        operation = find_operation(sender, operation_id);
        if (operation && find_item(operation, sequence))
                return 0;
        item = malloc(sizeof(*item) + report.size);
        if (!item)
                return -ENOMEM;
        if (!operation)
                operation = add_operation(sender, operation_id);
        if (!operation) {
                free(item);
                return -ENOMEM;
        }
        *item = (struct control_report_item){ .sequence = sequence, .final = final, .size = report.size };
        if (report.size)
                memcpy(item->bytes, report.data, report.size);
        if (final)
                drop_progress(sender, operation);
        insert_item(sender, operation, item);
        control_schedule(control);
        return 0;
}

/* ---- batches ---------------------------------------------------------------------------------------- */

static struct control_report_batch *new_batch(size_t capacity) {
        struct control_report_batch *batch = calloc(1, sizeof(*batch) + capacity * sizeof(batch->slots[0]));

        if (batch)
                batch->since_usec = USEC_NEVER;
        return batch;
}

/* The operation leaves its batch: to the ready list while it has reports, else away. */
static void release_operation(struct control_sender *sender, struct control_report_operation *operation) {
        if (!TAILQ_EMPTY(&operation->reports)) {
                put_ready(sender, operation);
                return;
        }
        (void)tdelete(operation, &sender->operations, compare_operations);
        free(operation);
}

static void dissolve(struct control_sender *sender, struct control_report_batch *batch) {
        for (size_t i = 0; i < batch->count; i++)
                release_operation(sender, batch->slots[i].operation);
        free(batch);
}

static void wait_until(struct control_sender *sender, struct control_report_batch *batch, uint64_t due_usec) {
        batch->due_usec = due_usec;
        TAILQ_INSERT_TAIL(&sender->waiting, batch, entry);
}

/* Alone, and the server has choked on it often enough: it holds up no other. */
static bool is_known_bad(const struct control_report_batch *batch) {
        return batch->count == 1 && batch->troubles >= TROUBLES_MAX;
}

static uint64_t batch_due_usec(const struct control_sender *sender, const struct control_report_batch *batch) {
        return is_known_bad(batch) ? base_max_u64(batch->due_usec, sender->lone_usec) : batch->due_usec;
}

static size_t first_size(struct control_report_operation *operation) {
        return TAILQ_FIRST(&operation->reports)->size + REPORT_OVERHEAD;
}

static struct control_report_batch *take_ready(struct control_sender *sender) {
        struct control_report_batch *batch = new_batch(CONTROL_BATCH_MAX);
        struct control_report_operation *operation;
        size_t size = REQUEST_HEAD_MAX;

        if (!batch)
                return NULL;
        while (batch->count < CONTROL_BATCH_MAX && (operation = STAILQ_FIRST(&sender->ready))) {
                size += first_size(operation);
                if (size > REQUEST_MAX)
                        break;
                STAILQ_REMOVE_HEAD(&sender->ready, entry);
                batch->slots[batch->count++].operation = operation;
        }
        return batch;
}

/* A waiting batch may have grown: a final report took a progress report's place. What no longer fits is ready. */
static void trim(struct control_sender *sender, struct control_report_batch *batch) {
        size_t size = REQUEST_HEAD_MAX, kept = 0;

        for (; kept < batch->count; kept++) {
                size += first_size(batch->slots[kept].operation);
                if (size > REQUEST_MAX)
                        break;
        }
        for (size_t i = kept; i < batch->count; i++)
                put_ready(sender, batch->slots[i].operation);
        batch->count = kept;
}

/* split() - the second half as a batch of its own; NULL without memory: then the batch stays whole for now. */
static struct control_report_batch *split(struct control_report_batch *batch) {
        size_t half = batch->count / 2;
        struct control_report_batch *second = new_batch(batch->count - half);

        if (!second)
                return NULL;
        second->count = batch->count - half;
        memcpy(second->slots, batch->slots + half, second->count * sizeof(second->slots[0]));
        second->since_usec = batch->since_usec;
        batch->count = half;
        batch->kept = second->kept = true;
        batch->troubles = 0;
        return second;
}

/* ---- after a call ----------------------------------------------------------------------------------- */

static int answer_slot(struct control *control, struct control_report_slot *slot, enum control_answer answer,
                       const char *reason) {
        struct control_sender *sender = &control->sender;
        struct control_report_operation *operation = slot->operation;
        struct control_report_item *item = find_item(operation, slot->sequence);
        char id[OPERATION_ID_MAX + 1];
        bool dropped = !item;

        (void)base_text_copy(id, sizeof(id), operation->id);
        if (item)
                remove_item(sender, operation, item);
        release_operation(sender, operation);
        if (dropped) /* a final report took its place while it was under way */
                return 0;
        return control->handlers.on_report(id, slot->sequence, answer, reason, control->userdata);
}

static void release_known_bad(struct control_sender *sender) {
        struct control_report_batch *batch = TAILQ_FIRST(&sender->waiting), *next;

        for (; batch; batch = next) {
                next = TAILQ_NEXT(batch, entry);
                if (!is_known_bad(batch))
                        continue;
                TAILQ_REMOVE(&sender->waiting, batch, entry);
                dissolve(sender, batch);
        }
}

static void got_through(struct control_sender *sender) {
        sender->attempts = 0;
        sender->next_usec = 0;
        sender->unreachable = false;
        sender->since_usec = USEC_NEVER;
        sender->told = false;
        sender->error[0] = '\0';
}

/* For five minutes nothing got through, or not this known bad report: to be told once. */
static bool must_tell(struct control *control, struct control_report_batch *batch) {
        struct control_sender *sender = &control->sender;
        uint64_t now = event_now_usec(control->event);
        bool all = base_usec_sub(now, sender->since_usec) >= FAILING_USEC;
        bool alone = is_known_bad(batch) && !batch->told && base_usec_sub(now, batch->since_usec) >= FAILING_USEC;

        if (sender->told || !(all || alone))
                return false;
        batch->told = true;
        sender->told = all;
        return true;
}

static int tell_failing(struct control *control, bool tell) {
        return tell ? control_notify(control, CONTROL_REPORTS_FAILING, "%s", control->sender.error) : 0;
}

static void note_failure(struct control *control, struct control_report_batch *batch, const char *error) {
        struct control_sender *sender = &control->sender;
        uint64_t now = event_now_usec(control->event);

        metrics_add(METRICS_REPORT_RETRIES, NULL, 1);
        (void)base_text_copy(sender->error, sizeof(sender->error), error);
        sender->since_usec = base_min_u64(sender->since_usec, now);
        batch->since_usec = base_min_u64(batch->since_usec, now);
}

/* Everyone waits. A batch that is no part of a search dissolves: its reports go out with what else has come. */
static int failed(struct control *control, struct control_report_batch *batch, const struct grpc_result *result,
                  const char *error) {
        struct control_sender *sender = &control->sender;
        uint64_t now = event_now_usec(control->event);
        bool tell;

        note_failure(control, batch, error);
        sender->unreachable = !result || !result->from_peer;
        if (result && result->status == GRPC_UNAUTHENTICATED)
                token_refresh(control->token);
        sender->next_usec = base_usec_add(now, control_backoff(control, &sender->attempts, result));
        tell = must_tell(control, batch);
        if (batch->kept)
                wait_until(sender, batch, sender->next_usec);
        else
                dissolve(sender, batch);
        return tell_failing(control, tell);
}

static int troubled(struct control *control, struct control_report_batch *batch, const struct grpc_result *result,
                    const char *error) {
        struct control_sender *sender = &control->sender;
        uint64_t now = event_now_usec(control->event), due;
        struct control_report_batch *second = NULL;
        bool tell;

        note_failure(control, batch, error);
        sender->unreachable = false;
        batch->kept = true;
        batch->troubles++;
        due = base_usec_add(now, control_backoff(control, &batch->attempts, result));
        if (is_known_bad(batch))
                sender->lone_usec = base_usec_add(now, control->reconnect_min_usec);
        else
                sender->next_usec = base_usec_add(now, control_backoff(control, &sender->attempts, result));
        tell = must_tell(control, batch);
        if (batch->count > 1 && batch->troubles >= TROUBLES_MAX)
                second = split(batch);
        wait_until(sender, batch, due);
        if (second)
                wait_until(sender, second, due);
        return tell_failing(control, tell);
}

/* The halves go out at once: each call brings the search nearer to its end, and none is a blind retry. */
static int refused(struct control *control, struct control_report_batch *batch, const char *error) {
        struct control_sender *sender = &control->sender;
        struct control_report_batch *second;
        int r;

        metrics_add(METRICS_REPORT_RETRIES, NULL, 1);
        got_through(sender);
        if (batch->count == 1) {
                r = answer_slot(control, &batch->slots[0], CONTROL_REPORT_REJECTED, error);
                free(batch);
                return r;
        }
        second = split(batch);
        if (!second) {
                wait_until(sender, batch, base_usec_add(event_now_usec(control->event), control->reconnect_max_usec));
                return 0;
        }
        batch->due_usec = second->due_usec = 0;
        TAILQ_INSERT_HEAD(&sender->waiting, second, entry);
        TAILQ_INSERT_HEAD(&sender->waiting, batch, entry);
        return 0;
}

/* COMMAND_DISPOSITION_UNSPECIFIED for a result that is missing or another operation's. */
static enum command_disposition disposition_of(const struct command_report_result *results, size_t count, size_t i,
                                               const struct control_report_slot *slot) {
        if (i >= count || strcmp(results[i].operation_id, slot->operation->id) != 0)
                return COMMAND_DISPOSITION_UNSPECIFIED;
        return results[i].disposition;
}

/* Give every answer to the agent; what is not answered stays in the batch. After a handler's failure the rest
 * counts as not answered: the loop is about to end. */
static int give_answers(struct control *control, struct control_report_batch *batch,
                        const struct command_report_result *results, size_t count) {
        size_t kept = 0;
        int r = 0;

        for (size_t i = 0; i < batch->count; i++) {
                struct control_report_slot slot = batch->slots[i];

                switch (r < 0 ? COMMAND_DISPOSITION_UNSPECIFIED : disposition_of(results, count, i, &slot)) {
                case COMMAND_APPLIED:
                case COMMAND_ALREADY_APPLIED:
                case COMMAND_SUPERSEDED:
                case COMMAND_UNKNOWN_OPERATION:
                        r = answer_slot(control, &slot, CONTROL_REPORT_ACCEPTED, results[i].reason);
                        break;
                case COMMAND_REJECTED:
                        r = answer_slot(control, &slot, CONTROL_REPORT_REJECTED, results[i].reason);
                        break;
                case COMMAND_DISPOSITION_UNSPECIFIED:
                        batch->slots[kept++] = slot;
                        break;
                }
        }
        batch->count = kept;
        return r;
}

static int answered(struct control *control, struct control_report_batch *batch,
                    const struct command_report_result *results, size_t count) {
        struct control_sender *sender = &control->sender;
        size_t sent = batch->count;
        bool was_bad = is_known_bad(batch);
        uint64_t delay;
        int r;

        r = give_answers(control, batch, results, count);
        if (batch->count == sent) /* so no handler was called, and none has failed */
                return troubled(control, batch, NULL, "the answer has no result for any report");
        got_through(sender);
        if (was_bad)
                release_known_bad(sender);
        if (!batch->count) {
                free(batch);
                return r;
        }
        batch->kept = true;
        batch->troubles = 1;
        delay = control_backoff(control, &batch->attempts, NULL);
        wait_until(sender, batch, base_usec_add(event_now_usec(control->event), delay));
        return r;
}

/* ---- a call ----------------------------------------------------------------------------------------- */

static enum verdict verdict_of(const struct grpc_result *result, int result_error) {
        if (result->status == GRPC_OK)
                return result_error < 0 ? VERDICT_TROUBLED : VERDICT_ANSWERED;
        if (!result->from_peer)
                return VERDICT_FAILED;
        switch (result->status) {
        case GRPC_INVALID_ARGUMENT:
        case GRPC_FAILED_PRECONDITION:
                return VERDICT_REFUSED;
        case GRPC_INTERNAL:
        case GRPC_UNKNOWN:
        case GRPC_RESOURCE_EXHAUSTED:
                return VERDICT_TROUBLED;
        case GRPC_OK:
        case GRPC_CANCELLED:
        case GRPC_DEADLINE_EXCEEDED:
        case GRPC_NOT_FOUND:
        case GRPC_ALREADY_EXISTS:
        case GRPC_PERMISSION_DENIED:
        case GRPC_ABORTED:
        case GRPC_OUT_OF_RANGE:
        case GRPC_UNIMPLEMENTED:
        case GRPC_UNAVAILABLE:
        case GRPC_DATA_LOSS:
        case GRPC_UNAUTHENTICATED:
                return VERDICT_FAILED;
        }
        return VERDICT_FAILED;
}

static int settle(struct control *control, struct control_report_batch *batch, const struct grpc_result *result,
                  const struct command_report_result *results, size_t count, int result_error) {
        char error[CONTROL_TEXT_MAX];

        if (result->status == GRPC_OK)
                (void)base_text_copy(error, sizeof(error), "the answer is no ReportResponse");
        else
                control_describe(result, error, sizeof(error));
        switch (verdict_of(result, result_error)) {
        case VERDICT_ANSWERED:
                return answered(control, batch, results, count);
        case VERDICT_REFUSED:
                return refused(control, batch, error);
        case VERDICT_TROUBLED:
                return troubled(control, batch, result, error);
        case VERDICT_FAILED:
                return failed(control, batch, result, error);
        }
        return 0;
}

static int on_message(struct grpc_call *call, struct span message, void *userdata) {
        struct control_sender *sender = &((struct control *)userdata)->sender;
        size_t max = sender->flight->count;

        (void)call;
        free(sender->results);
        sender->result_count = 0;
        sender->result_error = -ENOMEM;
        sender->results = calloc(max, sizeof(*sender->results));
        if (sender->results)
                sender->result_error = command_decode_report_response(message, sender->results, max,
                                                                      &sender->result_count);
        return 0;
}

static int on_close(struct grpc_call *call, const struct grpc_result *result, void *userdata) {
        struct control *control = userdata;
        struct control_sender *sender = &control->sender;
        struct control_report_batch *batch = TAKE(sender->flight);
        struct command_report_result *results = TAKE(sender->results);
        int r;

        (void)call;
        r = settle(control, batch, result, results, sender->result_count, sender->result_error);
        free(results);
        sender->call = grpc_call_free(sender->call);
        control_schedule(control);
        return r;
}

static int encode_batch(struct control *control, struct control_report_batch *batch, struct buffer *request) {
        struct span reports[CONTROL_BATCH_MAX];

        for (size_t i = 0; i < batch->count; i++) {
                struct control_report_item *item = TAILQ_FIRST(&batch->slots[i].operation->reports);

                batch->slots[i].sequence = item->sequence;
                reports[i] = (struct span){ item->bytes, item->size };
        }
        return command_encode_report_request(control->cluster_id, control->node, control->instance_id, reports,
                                             batch->count, request);
}

static int start_call(struct control *control, struct control_report_batch *batch, const char *token) {
        static const struct grpc_call_handlers handlers = { .on_message = on_message, .on_close = on_close };
        struct buffer request = BUFFER_INIT(REQUEST_MAX);
        int r;

        r = encode_batch(control, batch, &request);
        if (r >= 0) {
                const struct grpc_call_options options = {
                        .path = REPORT_PATH,
                        .request = { request.data, request.size },
                        .bearer_token = token,
                        .timeout_usec = control->report_timeout_usec,
                        .response_max = RESPONSE_MAX,
                };

                r = grpc_call_start(control->channel, &options, &handlers, control, &control->sender.call);
        }
        buffer_deinit(&request);
        return r;
}

static int send_batch(struct control *control, struct control_report_batch *batch) {
        struct control_sender *sender = &control->sender;
        const char *token = NULL;
        int r;

        trim(sender, batch);
        sender->result_error = -ENODATA;
        sender->result_count = 0;
        sender->flight = batch; /* a handler that is called from here must not start another */
        r = control_take_token(control, &token);
        if (r == CONTROL_TOKEN_READY) {
                r = start_call(control, batch, token);
                if (r >= 0)
                        return 0;
                sender->flight = NULL;
                return failed(control, batch, NULL, strerror(-r));
        }
        sender->flight = NULL;
        if (r < 0) {
                dissolve(sender, batch);
                return r;
        }
        return failed(control, batch, NULL, "there is no usable token");
}

/* ---- what goes out next ----------------------------------------------------------------------------- */

static struct control_report_batch *first_due(struct control_sender *sender, uint64_t now, uint64_t *ret_next_usec) {
        struct control_report_batch *batch;
        uint64_t next = USEC_NEVER;

        TAILQ_FOREACH(batch, &sender->waiting, entry) {
                uint64_t due = batch_due_usec(sender, batch);

                if (due <= now)
                        return batch;
                next = base_min_u64(next, due);
        }
        *ret_next_usec = next;
        return NULL;
}

/* NULL: nothing may go out before `*ret_next_usec`. */
static struct control_report_batch *choose_batch(struct control *control, uint64_t now, uint64_t *ret_next_usec) {
        struct control_sender *sender = &control->sender;
        struct control_report_batch *batch, *fresh;

        *ret_next_usec = sender->next_usec;
        if (sender->next_usec > now)
                return NULL;
        batch = first_due(sender, now, ret_next_usec);
        if (!STAILQ_EMPTY(&sender->ready) && !(batch && sender->prefer_waiting)) {
                sender->prefer_waiting = true;
                fresh = take_ready(sender);
                if (fresh)
                        return fresh;
                *ret_next_usec = base_usec_add(now, control->reconnect_min_usec); /* no memory: later */
        }
        if (!batch)
                return NULL;
        sender->prefer_waiting = false;
        TAILQ_REMOVE(&sender->waiting, batch, entry);
        return batch;
}

int control_sender_pump(struct control *control) {
        struct control_sender *sender = &control->sender;
        struct control_report_batch *batch;
        uint64_t next = USEC_NEVER;
        int r;

        while (!sender->flight && sender->count) {
                batch = choose_batch(control, event_now_usec(control->event), &next);
                if (!batch)
                        return event_timer_set(sender->timer, next);
                r = send_batch(control, batch);
                if (r < 0)
                        return r;
        }
        return event_timer_set(sender->timer, USEC_NEVER);
}

static int on_timer(void *userdata) {
        return control_sender_pump(userdata);
}

void control_sender_hurry(struct control *control, bool everything) {
        struct control_sender *sender = &control->sender;
        struct control_report_batch *batch;

        sender->next_usec = 0;
        if (everything) {
                sender->attempts = 0;
                sender->lone_usec = 0;
                TAILQ_FOREACH(batch, &sender->waiting, entry)
                        batch->due_usec = 0;
        }
        control_schedule(control);
}

void control_sender_restart(struct control *control) {
        struct control_sender *sender = &control->sender;
        struct control_report_batch *batch = TAKE(sender->flight);

        sender->call = grpc_call_free(sender->call);
        if (batch && batch->kept)
                wait_until(sender, batch, 0);
        else if (batch)
                dissolve(sender, batch);
        sender->attempts = 0;
        control_sender_hurry(control, false);
}

int control_sender_init(struct control *control) {
        struct control_sender *sender = &control->sender;

        STAILQ_INIT(&sender->ready);
        TAILQ_INIT(&sender->waiting);
        sender->since_usec = USEC_NEVER;
        return event_add_timer(control->event, "control-report", on_timer, control, &sender->timer);
}

static void free_operation(void *node) {
        struct control_report_operation *operation = node;
        struct control_report_item *item;

        while ((item = TAILQ_FIRST(&operation->reports))) {
                TAILQ_REMOVE(&operation->reports, item, entry);
                free(item);
        }
        free(operation);
}

void control_sender_deinit(struct control *control) {
        struct control_sender *sender = &control->sender;
        struct control_report_batch *batch;

        sender->call = grpc_call_free(sender->call);
        sender->timer = event_source_free(sender->timer);
        free(TAKE(sender->results));
        free(TAKE(sender->flight));
        while (sender->waiting.tqh_last && (batch = TAILQ_FIRST(&sender->waiting))) {
                TAILQ_REMOVE(&sender->waiting, batch, entry);
                free(batch);
        }
        tdestroy(sender->operations, free_operation);
        sender->operations = NULL;
}
