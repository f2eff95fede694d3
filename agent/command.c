/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decoding: what the control plane sends → plain structs, judged.
 *
 * Everything here comes from a peer. All of it is read with the walker of command_wire.c, without an allocation:
 * the contract wants an id judged on its raw bytes and the Operation kept as it came, and protobuf-c gives neither.
 * Merging follows protobuf: the last value of a scalar field wins, a message field that comes twice is merged
 * field by field (each walk below writes into the same struct, which is just that), another member of a oneof
 * drops the one before. The one exception is an Operation that comes twice: its raw bytes are no longer one span
 * of the message, and no honest server does it, so such a command is INVALID.
 *
 * Protobuf broken anywhere down to the messages that we read makes the whole message unreadable (-EBADMSG), as a
 * generic parser would have it. The content of `metadata` (an Any) is a message of its own: broken, it is no
 * CreateJobMetadata, and the command INVALID.
 *
 * A known field number with another wire type counts as unknown field, as in the generic parsers.
 */
#include "command.h"
#include "command_wire.h"

#define METADATA_TYPE "yandex.cloud.spark.v1.CreateJobMetadata"
#define SECONDS_MAX INT64_C(253402300799) /* the last second of year 9999: Timestamp's own limit */
#define NANOS_PER_SEC INT64_C(1000000000)
#define HEARTBEAT_MIN_USEC (1 * USEC_PER_SEC)
#define HEARTBEAT_MAX_USEC (60 * USEC_PER_SEC)
#define SHOWN_ID_MAX 50 /* of an id that breaks its limit */

struct wire_time { /* Timestamp and Duration have the same shape */
        bool given;
        int64_t seconds;
        int32_t nanos;
};

struct wire_cancel {
        size_t operations; /* how often the field came */
        struct span operation, operation_id, created_by, metadata_type, metadata, driver_id;
        struct wire_time deadline;
        bool dry_run;
};

struct wire_event {
        int64_t revision;
        enum command_event_kind kind;
        struct wire_cancel cancel;
        struct span withdrawn_id;
        struct wire_time heartbeat_interval, now;
};

/* ---- walks: one per message type ------------------------------------------------------------------- */

typedef int (*field_handler)(const struct command_wire_field *field, void *target);

static int walk(struct span message, field_handler handler, void *target) {
        struct command_wire_field field;
        int r;

        while ((r = command_wire_next(&message, &field)) == COMMAND_WIRE_FIELD) {
                r = handler(&field, target);
                if (r < 0)
                        return r;
        }
        return r;
}

static bool is_bytes(const struct command_wire_field *field, uint32_t number) {
        return field->number == number && field->type == COMMAND_WIRE_BYTES;
}

static bool is_varint(const struct command_wire_field *field, uint32_t number) {
        return field->number == number && field->type == COMMAND_WIRE_VARINT;
}

static int on_time_field(const struct command_wire_field *field, void *target) {
        struct wire_time *time = target;

        if (is_varint(field, 1))
                time->seconds = (int64_t)field->varint;
        else if (is_varint(field, 2))
                time->nanos = (int32_t)(uint32_t)field->varint;
        return 0;
}

static int walk_time(struct span message, struct wire_time *time) {
        time->given = true;
        return walk(message, on_time_field, time);
}

static int on_metadata_field(const struct command_wire_field *field, void *target) {
        struct wire_cancel *cancel = target;

        if (is_bytes(field, 1))
                cancel->metadata_type = field->bytes;
        else if (is_bytes(field, 2))
                cancel->metadata = field->bytes;
        return 0;
}

static int on_operation_field(const struct command_wire_field *field, void *target) {
        struct wire_cancel *cancel = target;

        if (is_bytes(field, 1))
                cancel->operation_id = field->bytes;
        else if (is_bytes(field, 4))
                cancel->created_by = field->bytes;
        else if (is_bytes(field, 7))
                return walk(field->bytes, on_metadata_field, cancel);
        return 0;
}

static int on_cancel_field(const struct command_wire_field *field, void *target) {
        struct wire_cancel *cancel = target;

        if (is_bytes(field, 1)) {
                cancel->operations++;
                cancel->operation = field->bytes;
                return walk(field->bytes, on_operation_field, cancel);
        }
        if (is_bytes(field, 2))
                cancel->driver_id = field->bytes;
        else if (is_bytes(field, 3))
                return walk_time(field->bytes, &cancel->deadline);
        else if (is_varint(field, 4))
                cancel->dry_run = field->varint != 0;
        return 0;
}

static int on_withdrawn_field(const struct command_wire_field *field, void *target) {
        struct wire_event *event = target;

        if (is_bytes(field, 1))
                event->withdrawn_id = field->bytes;
        return 0;
}

static int on_bookmark_field(const struct command_wire_field *field, void *target) {
        struct wire_event *event = target;

        if (is_bytes(field, 1))
                return walk_time(field->bytes, &event->heartbeat_interval);
        if (is_bytes(field, 2))
                return walk_time(field->bytes, &event->now);
        return 0;
}

/* A oneof: another member drops what came before it. */
static void choose(struct wire_event *event, enum command_event_kind kind) {
        if (event->kind != kind)
                *event = (struct wire_event){ .revision = event->revision, .kind = kind };
}

static int on_event_field(const struct command_wire_field *field, void *target) {
        struct wire_event *event = target;

        if (is_varint(field, 1))
                event->revision = (int64_t)field->varint;
        if (is_bytes(field, 2)) {
                choose(event, COMMAND_EVENT_CANCEL);
                return walk(field->bytes, on_cancel_field, &event->cancel);
        }
        if (is_bytes(field, 3)) {
                choose(event, COMMAND_EVENT_WITHDRAWN);
                return walk(field->bytes, on_withdrawn_field, event);
        }
        if (is_bytes(field, 4)) {
                choose(event, COMMAND_EVENT_BOOKMARK);
                return walk(field->bytes, on_bookmark_field, event);
        }
        return 0;
}

/* ---- plain values ----------------------------------------------------------------------------------- */

static uint64_t time_to_usec(const struct wire_time *time) {
        int64_t nanos = time->nanos;

        if (!time->given || time->seconds < 0)
                return 0;
        if (time->seconds > SECONDS_MAX)
                return (uint64_t)SECONDS_MAX * USEC_PER_SEC;
        nanos = nanos < 0 ? 0 : nanos >= NANOS_PER_SEC ? NANOS_PER_SEC - 1 : nanos;
        return (uint64_t)time->seconds * USEC_PER_SEC + (uint64_t)nanos / 1000;
}

/* An interval of zero or less is no interval: a peer that forgot to fill it in must not make us drop the
 * connection every three seconds. */
static uint64_t heartbeat_to_usec(const struct wire_time *interval) {
        uint64_t usec = time_to_usec(interval);

        if (!usec)
                return 0;
        return base_min_u64(base_max_u64(usec, HEARTBEAT_MIN_USEC), HEARTBEAT_MAX_USEC);
}

static bool id_is_valid(struct span id) {
        return base_id_is_valid((const char *)id.data, id.size, OPERATION_ID_MAX);
}

/* A sound id as it is; a broken one escaped and cut, "" when it is not UTF-8. */
static void show_id(char *target, struct span id, bool valid) {
        target[0] = '\0';
        if (valid) {
                /* A valid id has a byte at least, and so an address. */
                memcpy(target, id.data, id.size); /* NOLINT(clang-analyzer-core.NonNullParamChecker) */
                target[id.size] = '\0';
        } else if (base_text_is_utf8(id.data, id.size))
                base_text_escape(target, SHOWN_ID_MAX + 1, id.data, id.size);
}

/* ---- judgement -------------------------------------------------------------------------------------- */

/* The first violation is the one that is told. */
__attribute__((format(printf, 3, 4)))
static void refuse(struct command_event *event, enum command_verdict verdict, const char *format, ...) {
        va_list arguments;

        if (event->verdict != COMMAND_VALID)
                return;
        event->verdict = verdict;
        va_start(arguments, format);
        (void)vsnprintf(event->reason, sizeof(event->reason), format, arguments);
        va_end(arguments);
}

static void judge_operation_id(struct command_event *event, struct span id) {
        bool valid = id_is_valid(id);

        show_id(event->operation_id, id, valid);
        if (!valid)
                refuse(event, COMMAND_UNREPORTABLE, "the operation id is not 1 to %d characters of printable ASCII",
                       OPERATION_ID_MAX);
}

static bool type_is(struct span type_url, const char *name) {
        const uint8_t *slash = type_url.size ? memrchr(type_url.data, '/', type_url.size) : NULL;
        size_t size = strlen(name);

        return slash && (size_t)(type_url.data + type_url.size - (slash + 1)) == size &&
               memcmp(slash + 1, name, size) == 0;
}

struct wire_job {
        struct span cluster_id, job_id;
};

static int on_job_field(const struct command_wire_field *field, void *target) {
        struct wire_job *job = target;

        if (is_bytes(field, 1))
                job->cluster_id = field->bytes;
        else if (is_bytes(field, 2))
                job->job_id = field->bytes;
        return 0;
}

static void judge_job(struct command_event *event, const struct wire_job *job, const char *cluster_id) {
        bool cluster_valid = id_is_valid(job->cluster_id), job_valid = id_is_valid(job->job_id);

        show_id(event->cluster_id, job->cluster_id, cluster_valid);
        show_id(event->job_id, job->job_id, job_valid);
        if (!cluster_valid)
                refuse(event, COMMAND_INVALID, "the cluster id is not 1 to %d characters of printable ASCII",
                       CLUSTER_ID_MAX);
        else if (strcmp(event->cluster_id, cluster_id) != 0)
                refuse(event, COMMAND_INVALID, "the operation belongs to cluster %s, this agent to %s",
                       event->cluster_id, cluster_id);
        if (!job_valid)
                refuse(event, COMMAND_INVALID, "the job id is not 1 to %d characters of printable ASCII", JOB_ID_MAX);
}

static void judge_metadata(struct command_event *event, const struct wire_cancel *cancel, const char *cluster_id) {
        struct wire_job job = {};
        char type[SHOWN_ID_MAX + 1];

        if (!type_is(cancel->metadata_type, METADATA_TYPE)) {
                base_text_escape(type, sizeof(type), cancel->metadata_type.data, cancel->metadata_type.size);
                refuse(event, COMMAND_INVALID, "the operation's metadata is not CreateJobMetadata but \"%s\"", type);
        } else if (walk(cancel->metadata, on_job_field, &job) < 0)
                refuse(event, COMMAND_INVALID, "the operation's CreateJobMetadata cannot be read");
        else
                judge_job(event, &job, cluster_id);
}

static void judge_driver_id(struct command_event *event, struct span id) {
        bool valid = base_driver_id_is_valid((const char *)id.data, id.size);

        show_id(event->driver_id, id, valid);
        if (!valid && id.size)
                refuse(event, COMMAND_INVALID, "the driver id is not 1 to %d of A-Z a-z 0-9 . _ -", DRIVER_ID_MAX);
}

static void judge_cancel(struct command_event *event, const struct wire_cancel *cancel, const char *cluster_id) {
        judge_operation_id(event, cancel->operation_id);
        if (cancel->operations > 1)
                refuse(event, COMMAND_INVALID, "the command has its operation twice");
        judge_metadata(event, cancel, cluster_id);
        judge_driver_id(event, cancel->driver_id);
        if (cancel->operation.size > OPERATION_BYTES_MAX)
                refuse(event, COMMAND_INVALID, "the operation is larger than %d bytes", OPERATION_BYTES_MAX);
        if (cancel->operations == 1 && cancel->operation.size <= OPERATION_BYTES_MAX)
                event->operation = cancel->operation;

        base_text_escape(event->created_by, sizeof(event->created_by), cancel->created_by.data,
                         cancel->created_by.size);
        event->dry_run = cancel->dry_run;
        event->has_deadline = cancel->deadline.given;
        event->deadline_real_usec = time_to_usec(&cancel->deadline);
}

int command_decode_event(struct span message, const char *cluster_id, struct command_event *ret) {
        struct wire_event wire = { .kind = COMMAND_EVENT_UNKNOWN };
        struct command_event event = {};
        int r;

        r = walk(message, on_event_field, &wire);
        if (r < 0)
                return r;

        event.revision = wire.revision;
        event.kind = wire.kind;
        switch (wire.kind) {
        case COMMAND_EVENT_CANCEL:
                judge_cancel(&event, &wire.cancel, cluster_id);
                break;
        case COMMAND_EVENT_WITHDRAWN:
                judge_operation_id(&event, wire.withdrawn_id);
                break;
        case COMMAND_EVENT_BOOKMARK:
                event.heartbeat_interval_usec = heartbeat_to_usec(&wire.heartbeat_interval);
                event.server_real_usec = time_to_usec(&wire.now);
                break;
        case COMMAND_EVENT_UNKNOWN:
                break;
        }
        *ret = event;
        return 0;
}

/* ---- ReportResponse --------------------------------------------------------------------------------- */

struct wire_result {
        struct span operation_id, reason;
        uint64_t disposition;
};

struct wire_results {
        struct command_report_result *results;
        size_t max, count;
};

static int on_result_field(const struct command_wire_field *field, void *target) {
        struct wire_result *result = target;

        if (is_bytes(field, 1))
                result->operation_id = field->bytes;
        else if (is_varint(field, 2))
                result->disposition = field->varint;
        else if (is_bytes(field, 3))
                result->reason = field->bytes;
        return 0;
}

static enum command_disposition disposition_from_wire(uint64_t value) {
        return value > COMMAND_REJECTED ? COMMAND_DISPOSITION_UNSPECIFIED : (enum command_disposition)value;
}

static int on_response_field(const struct command_wire_field *field, void *target) {
        struct wire_results *response = target;
        struct wire_result wire = {};
        struct command_report_result *result;
        int r;

        if (!is_bytes(field, 1))
                return 0;
        r = walk(field->bytes, on_result_field, &wire);
        if (r < 0 || response->count == response->max)
                return r;

        /* An id that is none becomes "", which matches no report: never an escaped look-alike of one. */
        result = &response->results[response->count++];
        *result = (struct command_report_result){ .disposition = disposition_from_wire(wire.disposition) };
        if (id_is_valid(wire.operation_id))
                show_id(result->operation_id, wire.operation_id, true);
        base_text_escape(result->reason, sizeof(result->reason), wire.reason.data, wire.reason.size);
        return 0;
}

int command_decode_report_response(struct span message, struct command_report_result *results, size_t max,
                                   size_t *ret_count) {
        struct wire_results response = { results, max, 0 };
        int r;

        r = walk(message, on_response_field, &response);
        if (r < 0)
                return r;
        *ret_count = response.count;
        return 0;
}
