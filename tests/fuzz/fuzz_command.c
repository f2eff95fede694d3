/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control plane's messages: WatchResponse and ReportResponse, and the report that is built from a command.
 *
 * Whatever is decoded must be encodable: a command that the agent took over and cannot report on is a lost operation.
 * And what the Operation carries besides the agent's own fields 5 to 9 must come back byte by byte.
 */
#include "fuzz.h"
#include "command.h"
#include "command_wire.h"

#include "sparkcancel/agent/v1/cancel_agent_service.pb-c.h"

#define CLUSTER "c1"
#define RESULTS_MAX 8
#define REAL_USEC_LAST (UINT64_C(253402300800) * USEC_PER_SEC)

static void check_event(const struct command_event *event, struct span message) {
        FUZZ_CHECK_TEXT(event->reason);
        FUZZ_CHECK_TEXT(event->operation_id);
        FUZZ_CHECK_TEXT(event->cluster_id);
        FUZZ_CHECK_TEXT(event->job_id);
        FUZZ_CHECK_TEXT(event->created_by);
        FUZZ_CHECK_TEXT(event->driver_id);
        FUZZ_CHECK(event->deadline_real_usec <= REAL_USEC_LAST && event->server_real_usec <= REAL_USEC_LAST);
        FUZZ_CHECK(event->heartbeat_interval_usec == 0 || (event->heartbeat_interval_usec >= USEC_PER_SEC &&
                                                           event->heartbeat_interval_usec <= 60 * USEC_PER_SEC));
        FUZZ_CHECK(event->operation.size <= OPERATION_BYTES_MAX);
        FUZZ_CHECK(event->operation.size == 0 ||
                   (event->operation.data >= message.data &&
                    event->operation.data + event->operation.size <= message.data + message.size));
        FUZZ_CHECK((event->verdict == COMMAND_VALID) == (event->reason[0] == '\0'));
}

/* What the agent would act on: never for another cluster, and only with ids that may stand in a URL and a log. */
static void check_valid(const struct command_event *event) {
        if (event->verdict != COMMAND_UNREPORTABLE &&
            (event->kind == COMMAND_EVENT_CANCEL || event->kind == COMMAND_EVENT_WITHDRAWN))
                FUZZ_CHECK(base_id_is_valid(event->operation_id, strlen(event->operation_id), OPERATION_ID_MAX));
        if (event->kind != COMMAND_EVENT_CANCEL || event->verdict != COMMAND_VALID)
                return;
        FUZZ_CHECK(strcmp(event->cluster_id, CLUSTER) == 0);
        FUZZ_CHECK(base_id_is_valid(event->job_id, strlen(event->job_id), JOB_ID_MAX));
        FUZZ_CHECK(event->driver_id[0] == '\0' || base_driver_id_is_valid(event->driver_id, strlen(event->driver_id)));
        FUZZ_CHECK(event->operation.size > 0);
}

static bool field_is_ours(const struct command_wire_field *field) {
        return field->number >= 5 && field->number <= 9;
}

/* next_foreign() - the next field that is not ours. */
static bool next_foreign(struct span *rest, struct command_wire_field *ret) {
        int r;

        while ((r = command_wire_next(rest, ret)) == COMMAND_WIRE_FIELD)
                if (!field_is_ours(ret))
                        return true;
        FUZZ_CHECK(r == 0);
        return false;
}

/* The Operation of the report has the command's foreign fields, in their order and bytes, and no other. */
static void check_unowned(struct span before, struct span after) {
        struct command_wire_field was, is;

        while (next_foreign(&before, &was)) {
                FUZZ_CHECK(next_foreign(&after, &is));
                FUZZ_CHECK(was.raw.size == is.raw.size && memcmp(was.raw.data, is.raw.data, was.raw.size) == 0);
        }
        FUZZ_CHECK(!next_foreign(&after, &is));
}

static struct span report_operation(struct span encoded) {
        struct command_wire_field field;

        /* CancelReport.operation (1) alone stands first. `encoded` is a ReportRequest's field. */
        FUZZ_CHECK(command_wire_next(&encoded, &field) == COMMAND_WIRE_FIELD);
        FUZZ_CHECK(field.number == 1 && field.type == COMMAND_WIRE_BYTES);
        return field.bytes;
}

static bool is_readable_operation(struct span bytes) {
        Yandex__Cloud__Operation__Operation *operation =
                yandex__cloud__operation__operation__unpack(NULL, bytes.size, bytes.data);

        yandex__cloud__operation__operation__free_unpacked(operation, NULL);
        return operation;
}

/* protobuf-c, which shares no code with our walker, must be able to read the report. It is stricter than protobuf: a
 * known number with another wire type is no unknown field to it, so what it refuses as it came proves nothing. */
static void check_readable(struct span encoded, const struct command_report *report) {
        if (!is_readable_operation(report->operation))
                return;
        Sparkcancel__Agent__V1__CancelReport *message =
                sparkcancel__agent__v1__cancel_report__unpack(NULL, encoded.size, encoded.data);

        FUZZ_CHECK(message && message->operation);
        FUZZ_CHECK(message->sequence == report->sequence);
        FUZZ_CHECK(message->operation->done == report->done);
        FUZZ_CHECK(strcmp(message->operation->id, report->operation_id) == 0);
        sparkcancel__agent__v1__cancel_report__free_unpacked(message, NULL);
}

static void check_report(const struct command_event *event) {
        _cleanup_(buffer_deinit) struct buffer out = BUFFER_INIT(256 * 1024), again = BUFFER_INIT(256 * 1024);
        const struct command_report report = {
                .operation = event->operation,
                .operation_id = event->operation_id,
                .cluster_id = event->cluster_id,
                .job_id = event->job_id,
                .node = "node \x1b[31m\xff",
                .driver_id = event->driver_id,
                .driver_state = "RUNNING",
                .message = event->reason,
                .agent_version = "1",
                .outcome = 3,
                .job_status = 6,
                .done = event->revision & 1,
                .success = event->revision & 2,
                .error_code = 3,
                .outcome_name = "CANCELLED",
                .received_real_usec = event->server_real_usec,
                .ended_real_usec = event->deadline_real_usec,
                .modified_real_usec = UINT64_MAX - 1,
                .kill_requests = UINT32_MAX,
                .sequence = event->revision,
        };

        FUZZ_CHECK(command_encode_report(&report, &out) == 0);
        FUZZ_CHECK(command_encode_report(&report, &again) == 0);
        FUZZ_CHECK(out.size == again.size && memcmp(out.data, again.data, out.size) == 0);
        const struct span encoded = { out.data, out.size };
        if (report.operation.size > 0)
                check_unowned(report.operation, report_operation(encoded));
        check_readable(encoded, &report);
}

static void check_stripped_report(const struct command_event *event, struct span operation) {
        _cleanup_(buffer_deinit) struct buffer out = BUFFER_INIT(1024 * 1024);
        const struct command_report report = {
                .operation = operation,
                .without_unknown_fields = true,
                .operation_id = event->operation_id,
                .done = true,
        };

        (void)command_encode_report(&report, &out); /* arbitrary bytes may be no protobuf: -EBADMSG */
}

static void check_results(struct span message) {
        struct command_report_result results[RESULTS_MAX];
        size_t count = RESULTS_MAX;

        if (command_decode_report_response(message, results, RESULTS_MAX, &count) < 0)
                return;
        FUZZ_CHECK(count <= RESULTS_MAX);
        for (size_t i = 0; i < count; i++) {
                FUZZ_CHECK_TEXT(results[i].reason);
                FUZZ_CHECK_TEXT(results[i].operation_id);
                FUZZ_CHECK(results[i].disposition <= COMMAND_REJECTED);
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        const struct span message = { data, size };
        struct command_event event;

        check_results(message);
        if (command_decode_event(message, CLUSTER, &event) < 0)
                return 0;
        check_event(&event, message);
        check_valid(&event);
        if (event.kind == COMMAND_EVENT_CANCEL && event.verdict != COMMAND_UNREPORTABLE)
                check_report(&event);
        check_stripped_report(&event, message);
        return 0;
}
