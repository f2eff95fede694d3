/* SPDX-License-Identifier: Apache-2.0 */
/*
 * command: what the control plane may send, honest and hostile, and what goes back. Encodings are judged by two
 * foreign decoders: protobuf-c, and Python's protobuf where it is installed.
 */
#include <setjmp.h>
#include <spawn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "command.h"
#include "command_wire.h"

#include "google/protobuf/any.pb-c.h"
#include "google/rpc/error_details.pb-c.h"
#include "google/rpc/status.pb-c.h"
#include "sparkcancel/agent/v1/cancel_agent_service.pb-c.h"
#include "yandex/cloud/operation/operation.pb-c.h"
#include "yandex/cloud/spark/v1/job.pb-c.h"

#define METADATA_URL "type.googleapis.com/yandex.cloud.spark.v1.CreateJobMetadata"
#define BIG (256 * 1024)

extern char **environ;

/* ---- building messages ------------------------------------------------------------------------------ */

static struct buffer new_buffer(void) {
        return BUFFER_INIT(BIG);
}

static struct span view(const struct buffer *buffer) {
        return (struct span){ buffer->data, buffer->size };
}

static void put(struct buffer *out, uint32_t number, const void *bytes, size_t size) {
        assert_int_equal(command_wire_put_bytes(out, number, bytes, size), 0);
}

static void put_text(struct buffer *out, uint32_t number, const char *text) {
        put(out, number, text, strlen(text));
}

static void put_number(struct buffer *out, uint32_t number, uint64_t value) {
        assert_int_equal(command_wire_put_varint(out, number, value), 0);
}

/* Put `inner` as a field of `out` and free it. */
static void put_message(struct buffer *out, uint32_t number, struct buffer *inner) {
        put(out, number, inner->data, inner->size);
        buffer_deinit(inner);
}

struct text { /* a string that may hold a NUL */
        const char *bytes;
        size_t size;
};

#define TEXT(literal) ((struct text){ literal, sizeof(literal) - 1 })

/* A command with every part replaceable; zero means the sound default. */
struct sample {
        struct text operation_id, type_url, cluster_id, job_id, driver_id, created_by;
        size_t padding;    /* bytes of an unknown field in the Operation */
        bool no_operation, no_metadata, broken_metadata, second_operation, second_cancel, second_metadata, dry_run;
};

static struct text choose(struct text given, struct text otherwise) {
        return given.bytes ? given : otherwise;
}

static void build_operation(struct buffer *out, const struct sample *sample) {
        struct text id = choose(sample->operation_id, TEXT("op-1"));
        struct text type = choose(sample->type_url, TEXT(METADATA_URL));
        struct text cluster = choose(sample->cluster_id, TEXT("c1")), job = choose(sample->job_id, TEXT("job-1"));
        struct buffer any = new_buffer(), metadata = new_buffer();

        put(out, 1, id.bytes, id.size);
        put_text(out, 2, "Cancel Spark job");
        if (sample->created_by.bytes)
                put(out, 4, sample->created_by.bytes, sample->created_by.size);
        put(&metadata, 1, cluster.bytes, cluster.size);
        put(&metadata, 2, job.bytes, job.size);
        if (sample->broken_metadata)
                metadata.data[1] = 0x7f; /* a length beyond the end */
        put(&any, 1, type.bytes, type.size);
        put_message(&any, 2, &metadata);
        if (!sample->no_metadata)
                put(out, 7, any.data, any.size);
        if (sample->second_metadata) { /* merged: the type stays, the job id changes */
                struct buffer second = new_buffer(), value = new_buffer();

                put_text(&value, 1, "c1");
                put_text(&value, 2, "job-2");
                put_message(&second, 2, &value);
                put_message(out, 7, &second);
        }
        buffer_deinit(&any);
        if (sample->padding) {
                char *padding = calloc(1, sample->padding);

                assert_non_null(padding);
                put(out, 1000, padding, sample->padding);
                free(padding);
        }
}

static void build_command(struct buffer *out, const struct sample *sample) {
        struct buffer operation = new_buffer(), deadline = new_buffer();

        build_operation(&operation, sample);
        if (!sample->no_operation)
                put(out, 1, operation.data, operation.size);
        if (sample->second_operation)
                put(out, 1, operation.data, operation.size);
        buffer_deinit(&operation);
        if (sample->driver_id.bytes)
                put(out, 2, sample->driver_id.bytes, sample->driver_id.size);
        put_number(&deadline, 1, 2000);
        put_number(&deadline, 2, 500000000);
        put_message(out, 3, &deadline);
        if (sample->dry_run)
                put_number(out, 4, 1);
}

static void build_event(struct buffer *out, const struct sample *sample) {
        struct buffer command = new_buffer();

        put_number(out, 1, 42);
        build_command(&command, sample);
        put(out, 2, command.data, command.size);
        if (sample->second_cancel)
                put(out, 2, command.data, command.size);
        buffer_deinit(&command);
}

static struct command_event decode(const struct buffer *message) {
        struct command_event event;

        assert_int_equal(command_decode_event(view(message), "c1", &event), 0);
        return event;
}

/* ---- decoding --------------------------------------------------------------------------------------- */

static void test_sound_command(void **state) {
        (void)state;
        struct buffer message = new_buffer();
        const struct sample sample = { .driver_id = TEXT("driver-20250101000000-0001"), .dry_run = true,
                                       .created_by = TEXT("user\n1") };
        Yandex__Cloud__Operation__Operation *operation;

        build_event(&message, &sample);
        struct command_event event = decode(&message);
        assert_int_equal(event.kind, COMMAND_EVENT_CANCEL);
        assert_int_equal(event.verdict, COMMAND_VALID);
        assert_int_equal(event.revision, 42);
        assert_string_equal(event.reason, "");
        assert_string_equal(event.operation_id, "op-1");
        assert_string_equal(event.cluster_id, "c1");
        assert_string_equal(event.job_id, "job-1");
        assert_string_equal(event.driver_id, "driver-20250101000000-0001");
        assert_string_equal(event.created_by, "user\\x0A1");
        assert_true(event.dry_run);
        assert_true(event.has_deadline);
        assert_int_equal(event.deadline_real_usec, 2000 * USEC_PER_SEC + 500000);

        /* The Operation lies in the message itself. */
        assert_true(event.operation.data > message.data &&
                    event.operation.data + event.operation.size <= message.data + message.size);
        operation = yandex__cloud__operation__operation__unpack(NULL, event.operation.size, event.operation.data);
        assert_non_null(operation);
        assert_string_equal(operation->id, "op-1");
        yandex__cloud__operation__operation__free_unpacked(operation, NULL);
        buffer_deinit(&message);
}

#define FIFTY "12345678901234567890123456789012345678901234567890"
#define DRIVER_128 FIFTY FIFTY "1234567890123456789012345678"

static const struct {
        const char *name;
        struct sample sample;
        enum command_verdict verdict;
        const char *reason; /* a part of it */
        const char *operation_id, *cluster_id, *job_id, *driver_id; /* as shown; NULL: not compared */
        bool without_operation;
} verdicts[] = {
        { "longest ids", { .operation_id = TEXT(FIFTY), .job_id = TEXT(FIFTY), .driver_id = TEXT(DRIVER_128) },
          COMMAND_VALID, "", FIFTY, "c1", FIFTY, DRIVER_128, false },
        { "other type prefix", { .type_url = TEXT("example.com/a/yandex.cloud.spark.v1.CreateJobMetadata") },
          COMMAND_VALID, "", "op-1", "c1", "job-1", "", false },
        { "driver id sent empty", { .driver_id = TEXT("") }, COMMAND_VALID, "", NULL, NULL, NULL, "", false },
        { "metadata twice is merged", { .second_metadata = true }, COMMAND_VALID, "", NULL, "c1", "job-2", "", false },

        { "no operation", { .no_operation = true }, COMMAND_UNREPORTABLE, "operation id", "", "", "", "", true },
        { "operation id empty", { .operation_id = TEXT("") }, COMMAND_UNREPORTABLE, "operation id", "", NULL, NULL,
          NULL, false },
        { "operation id of 51", { .operation_id = TEXT(FIFTY "x") }, COMMAND_UNREPORTABLE, "operation id", FIFTY,
          NULL, NULL, NULL, false },
        { "operation id with NUL", { .operation_id = TEXT("op-1\0") }, COMMAND_UNREPORTABLE, "operation id",
          "op-1\\x00", NULL, NULL, NULL, false },
        { "operation id with space", { .operation_id = TEXT("op 1") }, COMMAND_UNREPORTABLE, "operation id", "op 1",
          NULL, NULL, NULL, false },
        { "operation id not UTF-8", { .operation_id = TEXT("op\xff") }, COMMAND_UNREPORTABLE, "operation id", "",
          NULL, NULL, NULL, false },
        { "unreportable wins", { .operation_id = TEXT("\n"), .job_id = TEXT("\n") }, COMMAND_UNREPORTABLE,
          "operation id", "\\x0A", "c1", "\\x0A", NULL, false },

        { "operation twice", { .second_operation = true }, COMMAND_INVALID, "twice", "op-1", "c1", "job-1", NULL,
          true },
        { "command twice", { .second_cancel = true }, COMMAND_INVALID, "twice", "op-1", NULL, NULL, NULL, true },
        { "other cluster", { .cluster_id = TEXT("c2") }, COMMAND_INVALID, "belongs to cluster c2", "op-1", "c2",
          "job-1", NULL, false },
        { "our cluster and a NUL", { .cluster_id = TEXT("c1\0") }, COMMAND_INVALID, "cluster id", NULL, "c1\\x00",
          NULL, NULL, false },
        { "cluster id empty", { .cluster_id = TEXT("") }, COMMAND_INVALID, "cluster id", NULL, "", NULL, NULL,
          false },
        { "no metadata", { .no_metadata = true }, COMMAND_INVALID, "not CreateJobMetadata but \"\"", "op-1", "", "",
          "", false },
        { "metadata of another type", { .type_url = TEXT("type.googleapis.com/yandex.cloud.spark.v1.Job") },
          COMMAND_INVALID, "not CreateJobMetadata", "op-1", "", "", NULL, false },
        { "type without a slash", { .type_url = TEXT("yandex.cloud.spark.v1.CreateJobMetadata") }, COMMAND_INVALID,
          "not CreateJobMetadata", NULL, NULL, NULL, NULL, false },
        { "type with a tail", { .type_url = TEXT(METADATA_URL "\0") }, COMMAND_INVALID, "not CreateJobMetadata",
          NULL, NULL, NULL, NULL, false },
        { "type of another package", { .type_url = TEXT("t/x.yandex.cloud.spark.v1.CreateJobMetadata") },
          COMMAND_INVALID, "not CreateJobMetadata", NULL, NULL, NULL, NULL, false },
        { "metadata broken", { .broken_metadata = true }, COMMAND_INVALID, "cannot be read", "op-1", "", "", NULL,
          false },
        { "job id empty", { .job_id = TEXT("") }, COMMAND_INVALID, "job id", NULL, "c1", "", NULL, false },
        { "job id of 51", { .job_id = TEXT(FIFTY "x") }, COMMAND_INVALID, "job id", NULL, NULL, FIFTY, NULL,
          false },
        { "job id with NUL", { .job_id = TEXT("job\0-1") }, COMMAND_INVALID, "job id", NULL, NULL, "job\\x00-1",
          NULL, false },
        { "job id not ASCII", { .job_id = TEXT("j\xc3\xbc") }, COMMAND_INVALID, "job id", NULL, NULL, "j\xc3\xbc",
          NULL, false },
        { "job id not UTF-8", { .job_id = TEXT("j\xc3") }, COMMAND_INVALID, "job id", NULL, NULL, "", NULL, false },
        { "job id with control", { .job_id = TEXT("j\x1b[1m") }, COMMAND_INVALID, "job id", NULL, NULL, "j\\x1B[1m",
          NULL, false },
        { "driver id is a path", { .driver_id = TEXT("../driver") }, COMMAND_INVALID, "driver id", NULL, NULL, NULL,
          "../driver", false },
        { "driver id is ..", { .driver_id = TEXT("..") }, COMMAND_INVALID, "driver id", NULL, NULL, NULL, "..",
          false },
        { "driver id of 129", { .driver_id = TEXT(DRIVER_128 "x") }, COMMAND_INVALID, "driver id", NULL, NULL, NULL,
          FIFTY, false },
        { "driver id with NUL", { .driver_id = TEXT("driver-1\0") }, COMMAND_INVALID, "driver id", NULL, NULL, NULL,
          "driver-1\\x00", false },
        { "too large", { .padding = OPERATION_BYTES_MAX }, COMMAND_INVALID, "larger than 16384", "op-1", "c1",
          "job-1", NULL, true },
        { "first of several", { .cluster_id = TEXT("c2"), .driver_id = TEXT(".") }, COMMAND_INVALID, "cluster c2",
          NULL, NULL, NULL, NULL, false },
};

static void test_verdicts(void **state) {
        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(verdicts); i++) {
                struct buffer message = new_buffer();

                build_event(&message, &verdicts[i].sample);
                struct command_event event = decode(&message);
                if (event.verdict != verdicts[i].verdict || !strstr(event.reason, verdicts[i].reason))
                        fail_msg("%s: verdict %d, reason \"%s\"", verdicts[i].name, event.verdict, event.reason);
                const char *shown[] = { event.operation_id, event.cluster_id, event.job_id, event.driver_id };
                const char *expected[] = { verdicts[i].operation_id, verdicts[i].cluster_id, verdicts[i].job_id,
                                           verdicts[i].driver_id };
                for (size_t j = 0; j < ARRAY_SIZE(shown); j++)
                        if (expected[j] && strcmp(shown[j], expected[j]) != 0)
                                fail_msg("%s: id %zu shown as \"%s\"", verdicts[i].name, j, shown[j]);
                if ((event.operation.size == 0) != verdicts[i].without_operation)
                        fail_msg("%s: operation of %zu bytes", verdicts[i].name, event.operation.size);
                assert_int_equal(event.revision, 42);
                buffer_deinit(&message);
        }
}

/* The largest Operation that is allowed, to the byte. */
static void test_operation_limit(void **state) {
        (void)state;
        for (size_t over = 0; over < 2; over++) {
                struct buffer plain = new_buffer(), message = new_buffer();
                const struct sample small = { .padding = 10000 };
                struct sample sample = small;

                build_operation(&plain, &small);
                sample.padding += OPERATION_BYTES_MAX - plain.size + over;
                build_event(&message, &sample);
                struct command_event event = decode(&message);
                assert_int_equal(event.verdict, over ? COMMAND_INVALID : COMMAND_VALID);
                assert_int_equal(event.operation.size, over ? 0 : OPERATION_BYTES_MAX);
                buffer_deinit(&plain);
                buffer_deinit(&message);
        }
}

#define WIRE(literal) { (const uint8_t *)literal, sizeof(literal) - 1 }

/* Messages written by hand, byte by byte, from the encoding guide. */
static const struct {
        const char *name;
        struct span message;
        int result;
        enum command_event_kind kind;
        int64_t revision;
} wires[] = {
        { "empty", WIRE(""), 0, COMMAND_EVENT_UNKNOWN, 0 },
        { "revision alone", WIRE("\x08\x96\x01"), 0, COMMAND_EVENT_UNKNOWN, 150 },
        { "last revision wins", WIRE("\x08\x01\x08\x02"), 0, COMMAND_EVENT_UNKNOWN, 2 },
        { "negative revision", WIRE("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), 0, COMMAND_EVENT_UNKNOWN, -1 },
        { "overlong but legal varint", WIRE("\x08\x81\x80\x00"), 0, COMMAND_EVENT_UNKNOWN, 1 },
        { "unknown kind", WIRE("\x08\x07\x2a\x03" "abc"), 0, COMMAND_EVENT_UNKNOWN, 7 },
        { "unknown fields of every type", WIRE("\x08\x07\xf8\x01\x05\xf9\x01" "12345678" "\xfd\x01" "1234" "\x22\x00"),
          0, COMMAND_EVENT_BOOKMARK, 7 },
        { "empty bookmark", WIRE("\x22\x00"), 0, COMMAND_EVENT_BOOKMARK, 0 },
        { "known number, other type", WIRE("\x20\x05\x0a\x01x"), 0, COMMAND_EVENT_UNKNOWN, 0 },
        { "the last of the oneof wins", WIRE("\x08\x09\x12\x00\x1a\x03\x0a\x01x\x22\x00"), 0, COMMAND_EVENT_BOOKMARK,
          9 },
        { "highest field number", WIRE("\xf8\xff\xff\xff\x0f\x00"), 0, COMMAND_EVENT_UNKNOWN, 0 },

        { "cut in the tag", WIRE("\x88"), -EBADMSG, 0, 0 },
        { "cut in the varint", WIRE("\x08\x96"), -EBADMSG, 0, 0 },
        { "no value", WIRE("\x08"), -EBADMSG, 0, 0 },
        { "length beyond the end", WIRE("\x22\x05\x0a"), -EBADMSG, 0, 0 },
        { "length one beyond the end", WIRE("\x22\x03\x28\x01"), -EBADMSG, 0, 0 },
        { "length of 2^64 - 1", WIRE("\x22\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), -EBADMSG, 0, 0 },
        { "varint of 65 bits", WIRE("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"), -EBADMSG, 0, 0 },
        { "varint of 11 bytes", WIRE("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x81\x00"), -EBADMSG, 0, 0 },
        { "field number 0", WIRE("\x00\x01"), -EBADMSG, 0, 0 },
        { "field number above 2^29", WIRE("\x80\x80\x80\x80\x10\x00"), -EBADMSG, 0, 0 },
        { "start of a group", WIRE("\x2b\x2c"), -EBADMSG, 0, 0 },
        { "end of a group", WIRE("\x2c"), -EBADMSG, 0, 0 },
        { "wire type 6", WIRE("\x2e\x00"), -EBADMSG, 0, 0 },
        { "wire type 7", WIRE("\x2f\x00"), -EBADMSG, 0, 0 },
        { "fixed32 cut", WIRE("\x2d\x01\x02\x03"), -EBADMSG, 0, 0 },
        { "fixed64 cut", WIRE("\x29\x01\x02\x03\x04\x05\x06\x07"), -EBADMSG, 0, 0 },
        { "broken inside the bookmark", WIRE("\x22\x02\x0a\x05"), -EBADMSG, 0, 0 },
        { "broken inside the bookmark's time", WIRE("\x22\x03\x12\x01\x08"), -EBADMSG, 0, 0 },
        { "broken inside the operation", WIRE("\x12\x04\x0a\x02\x0a\x09"), -EBADMSG, 0, 0 },
        { "a group inside the operation", WIRE("\x12\x04\x0a\x02\x53\x54"), -EBADMSG, 0, 0 },
        { "broken inside withdrawn", WIRE("\x1a\x02\x0a\x09"), -EBADMSG, 0, 0 },
};

static void test_wires(void **state) {
        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(wires); i++) {
                /* a copy that ends with its allocation: the sanitizer sees a byte read too far */
                struct span message = wires[i].message;
                uint8_t *copy = malloc(message.size ? message.size : 1);
                struct command_event event;
                int r;

                assert_non_null(copy);
                memcpy(copy, message.data, message.size);
                r = command_decode_event((struct span){ copy, message.size }, "c1", &event);
                if (r != wires[i].result)
                        fail_msg("%s: %d", wires[i].name, r);
                if (r == 0 && (event.kind != wires[i].kind || event.revision != wires[i].revision))
                        fail_msg("%s: kind %d, revision %" PRId64, wires[i].name, event.kind, event.revision);
                free(copy);
        }
}

static void test_withdrawn(void **state) {
        (void)state;
        static const struct {
                struct text id;
                enum command_verdict verdict;
                const char *shown;
        } cases[] = {
                { TEXT("op-7"), COMMAND_VALID, "op-7" },
                { TEXT(""), COMMAND_UNREPORTABLE, "" },
                { TEXT("op\0"), COMMAND_UNREPORTABLE, "op\\x00" },
        };

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                struct buffer message = new_buffer(), withdrawn = new_buffer();

                put_number(&message, 1, 5);
                put_text(&withdrawn, 1, "earlier"); /* the last one wins */
                put(&withdrawn, 1, cases[i].id.bytes, cases[i].id.size);
                put_message(&message, 3, &withdrawn);
                struct command_event event = decode(&message);
                assert_int_equal(event.kind, COMMAND_EVENT_WITHDRAWN);
                assert_int_equal(event.verdict, cases[i].verdict);
                assert_string_equal(event.operation_id, cases[i].shown);
                buffer_deinit(&message);
        }
}

static void put_time(struct buffer *out, uint32_t number, int64_t seconds, int64_t nanos) {
        struct buffer time = new_buffer();

        put_number(&time, 1, (uint64_t)seconds);
        put_number(&time, 2, (uint64_t)nanos);
        put_message(out, number, &time);
}

#define YEAR_9999 (UINT64_C(253402300799) * USEC_PER_SEC)

static void test_times(void **state) {
        (void)state;
        static const struct {
                int64_t seconds, nanos;
                uint64_t now, heartbeat;
        } cases[] = {
                { 15, 0, 15 * USEC_PER_SEC, 15 * USEC_PER_SEC },
                { 1, 500000999, 1500000, 1500000 },
                { 0, 1000, 1, USEC_PER_SEC },                 /* an interval below 1 s is 1 s */
                { 61, 0, 61 * USEC_PER_SEC, 60 * USEC_PER_SEC },
                { 0, 0, 0, 0 },                               /* not given */
                { -5, 0, 0, 0 },
                { 5, -1, 5 * USEC_PER_SEC, 5 * USEC_PER_SEC },
                { 5, INT32_MAX, 5999999, 5999999 },
                { INT64_MAX, 0, YEAR_9999, 60 * USEC_PER_SEC },
                { INT64_MIN, INT32_MIN, 0, 0 },
        };

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                struct buffer message = new_buffer(), bookmark = new_buffer(), command = new_buffer();

                put_time(&bookmark, 1, cases[i].seconds, cases[i].nanos);
                put_time(&bookmark, 2, cases[i].seconds, cases[i].nanos);
                put_message(&message, 4, &bookmark);
                struct command_event event = decode(&message);
                assert_int_equal(event.kind, COMMAND_EVENT_BOOKMARK);
                assert_int_equal(event.server_real_usec, cases[i].now);
                assert_int_equal(event.heartbeat_interval_usec, cases[i].heartbeat);
                buffer_deinit(&message);

                message = new_buffer();
                put_time(&command, 3, cases[i].seconds, cases[i].nanos);
                put_message(&message, 2, &command);
                event = decode(&message);
                assert_true(event.has_deadline);
                assert_int_equal(event.deadline_real_usec, cases[i].now);
                buffer_deinit(&message);
        }
}

static void test_response(void **state) {
        (void)state;
        struct buffer message = new_buffer();
        struct command_report_result results[4];
        size_t count = 99;
        static const struct {
                struct text id;
                uint64_t disposition;
                const char *reason;
        } sent[] = {
                { TEXT("op-1"), 1, "" },
                { TEXT("op-2\0"), 5, "line\nbreak" },
                { TEXT("op-3"), 6, "a later version's word" },
                { TEXT("op-4"), (uint64_t)-1, "" },
                { TEXT("op-5"), 1, "beyond the room" },
        };

        assert_int_equal(command_decode_report_response(view(&message), results, 4, &count), 0);
        assert_int_equal(count, 0);
        for (size_t i = 0; i < ARRAY_SIZE(sent); i++) {
                struct buffer result = new_buffer();

                put(&result, 1, sent[i].id.bytes, sent[i].id.size);
                put_number(&result, 2, sent[i].disposition);
                put_text(&result, 3, sent[i].reason);
                put_message(&message, 1, &result);
        }
        assert_int_equal(command_decode_report_response(view(&message), results, 4, &count), 0);
        assert_int_equal(count, 4);
        assert_string_equal(results[0].operation_id, "op-1");
        assert_int_equal(results[0].disposition, COMMAND_APPLIED);
        assert_string_equal(results[1].operation_id, ""); /* no id: it can match no report */
        assert_string_equal(results[1].reason, "line\\x0Abreak");
        assert_int_equal(results[2].disposition, COMMAND_DISPOSITION_UNSPECIFIED);
        assert_int_equal(results[3].disposition, COMMAND_DISPOSITION_UNSPECIFIED);

        message.size--;
        count = 99;
        assert_int_equal(command_decode_report_response(view(&message), results, 4, &count), -EBADMSG);
        assert_int_equal(count, 99);
        buffer_deinit(&message);
}

/* ---- encoding --------------------------------------------------------------------------------------- */

static const struct command_report final_success = {
        .operation_id = "op-1", .cluster_id = "c1", .job_id = "job-1", .node = "node-1",
        .driver_id = "driver-1", .driver_state = "KILLED", .message = "killed", .agent_version = "1.0",
        .outcome = SPARKCANCEL__AGENT__V1__OUTCOME__CANCELLED,
        .job_status = YANDEX__CLOUD__SPARK__V1__JOB__STATUS__CANCELLED,
        .done = true, .success = true, .outcome_name = "CANCELLED",
        .received_real_usec = 1000000, .accepted_real_usec = 2000001, .ended_real_usec = 3000002,
        .modified_real_usec = 4000003, .kill_requests = 2, .escalation = 1, .leftover_processes = 3,
        .job_name = "word count", .job_started_real_usec = 500000, .job_finished_real_usec = 3000002,
        .sequence = INT64_C(1700000000000001),
};

static struct command_report final_error(void) {
        struct command_report report = final_success;

        report.outcome = SPARKCANCEL__AGENT__V1__OUTCOME__SPARK_UNREACHABLE;
        report.outcome_name = "SPARK_UNREACHABLE";
        report.job_status = 0;
        report.success = false;
        report.error_code = 14;
        report.message = "no master answered; start one";
        return report;
}

struct decoded {
        Sparkcancel__Agent__V1__CancelReport *report;
        Sparkcancel__Agent__V1__CancelJobMetadata *metadata;
};

static struct decoded decode_report(const struct buffer *bytes) {
        struct decoded decoded;

        decoded.report = sparkcancel__agent__v1__cancel_report__unpack(NULL, bytes->size, bytes->data);
        assert_non_null(decoded.report);
        Google__Protobuf__Any *any = decoded.report->operation->metadata;
        assert_string_equal(any->type_url, "type.googleapis.com/sparkcancel.agent.v1.CancelJobMetadata");
        decoded.metadata = sparkcancel__agent__v1__cancel_job_metadata__unpack(NULL, any->value.len,
                                                                                any->value.data);
        assert_non_null(decoded.metadata);
        return decoded;
}

static void free_decoded(struct decoded *decoded) {
        sparkcancel__agent__v1__cancel_job_metadata__free_unpacked(decoded->metadata, NULL);
        sparkcancel__agent__v1__cancel_report__free_unpacked(decoded->report, NULL);
}

static void test_final_success(void **state) {
        (void)state;
        struct buffer out = new_buffer();
        Yandex__Cloud__Spark__V1__Job *job;

        assert_int_equal(command_encode_report(&final_success, &out), 0);
        struct decoded decoded = decode_report(&out);
        assert_int_equal(decoded.report->sequence, INT64_C(1700000000000001));
        Yandex__Cloud__Operation__Operation *operation = decoded.report->operation;
        assert_string_equal(operation->id, "op-1");
        assert_true(operation->done);
        assert_int_equal(operation->modified_at->seconds, 4);
        assert_int_equal(operation->modified_at->nanos, 3000);
        assert_int_equal(operation->result_case, YANDEX__CLOUD__OPERATION__OPERATION__RESULT_RESPONSE);
        assert_string_equal(operation->response->type_url, "type.googleapis.com/yandex.cloud.spark.v1.Job");
        job = yandex__cloud__spark__v1__job__unpack(NULL, operation->response->value.len,
                                                    operation->response->value.data);
        assert_non_null(job);
        assert_string_equal(job->id, "job-1");
        assert_string_equal(job->cluster_id, "c1");
        assert_string_equal(job->name, "word count");
        assert_int_equal(job->status, YANDEX__CLOUD__SPARK__V1__JOB__STATUS__CANCELLED);
        assert_int_equal(job->started_at->nanos, 500000000);
        assert_int_equal(job->finished_at->seconds, 3);
        assert_null(job->created_at);
        yandex__cloud__spark__v1__job__free_unpacked(job, NULL);

        Sparkcancel__Agent__V1__CancelJobMetadata *metadata = decoded.metadata;
        assert_string_equal(metadata->cluster_id, "c1");
        assert_string_equal(metadata->job_id, "job-1");
        assert_int_equal(metadata->outcome, SPARKCANCEL__AGENT__V1__OUTCOME__CANCELLED);
        assert_int_equal(metadata->job_status, YANDEX__CLOUD__SPARK__V1__JOB__STATUS__CANCELLED);
        assert_string_equal(metadata->node, "node-1");
        assert_string_equal(metadata->driver_id, "driver-1");
        assert_string_equal(metadata->driver_state, "KILLED");
        assert_int_equal(metadata->received_at->seconds, 1);
        assert_int_equal(metadata->kill_accepted_at->nanos, 1000);
        assert_int_equal(metadata->ended_at->nanos, 2000);
        assert_int_equal(metadata->kill_requests, 2);
        assert_int_equal(metadata->escalation, SPARKCANCEL__AGENT__V1__ESCALATION__ESCALATION_SIGTERM);
        assert_int_equal(metadata->leftover_processes, 3);
        assert_string_equal(metadata->message, "killed");
        assert_string_equal(metadata->agent_version, "1.0");
        free_decoded(&decoded);
        buffer_deinit(&out);
}

static void test_final_error(void **state) {
        (void)state;
        struct buffer out = new_buffer();
        struct command_report report = final_error();
        Google__Rpc__ErrorInfo *info;

        assert_int_equal(command_encode_report(&report, &out), 0);
        struct decoded decoded = decode_report(&out);
        assert_int_equal(decoded.report->operation->result_case, YANDEX__CLOUD__OPERATION__OPERATION__RESULT_ERROR);
        Google__Rpc__Status *error = decoded.report->operation->error;
        assert_int_equal(error->code, 14);
        assert_string_equal(error->message, "no master answered; start one");
        assert_int_equal(error->n_details, 1);
        assert_string_equal(error->details[0]->type_url, "type.googleapis.com/google.rpc.ErrorInfo");
        info = google__rpc__error_info__unpack(NULL, error->details[0]->value.len, error->details[0]->value.data);
        assert_non_null(info);
        assert_string_equal(info->reason, "SPARK_UNREACHABLE");
        assert_string_equal(info->domain, "spark-cancel-agent");
        assert_int_equal(info->n_metadata, 3);
        assert_string_equal(info->metadata[0]->key, "node");
        assert_string_equal(info->metadata[0]->value, "node-1");
        assert_string_equal(info->metadata[1]->key, "job_id");
        assert_string_equal(info->metadata[2]->value, "driver-1");
        google__rpc__error_info__free_unpacked(info, NULL);
        free_decoded(&decoded);
        buffer_deinit(&out);
}

static void test_progress(void **state) {
        (void)state;
        struct buffer out = new_buffer();
        const struct command_report report = {
                .operation_id = "op-1", .cluster_id = "c1", .job_id = "job-1", .node = "n",
                .outcome = SPARKCANCEL__AGENT__V1__OUTCOME__NOT_ON_NODE, .sequence = 1,
        };

        assert_int_equal(command_encode_report(&report, &out), 0);
        struct decoded decoded = decode_report(&out);
        assert_false(decoded.report->operation->done);
        assert_int_equal(decoded.report->operation->result_case,
                         YANDEX__CLOUD__OPERATION__OPERATION__RESULT__NOT_SET);
        assert_int_equal(decoded.metadata->outcome, SPARKCANCEL__AGENT__V1__OUTCOME__NOT_ON_NODE);
        assert_null(decoded.metadata->ended_at);
        assert_null(decoded.report->operation->modified_at);
        free_decoded(&decoded);
        buffer_deinit(&out);
}

/* The raw bytes of the report's Operation. */
static struct span raw_operation(const struct buffer *report) {
        struct span rest = view(report);
        struct command_wire_field field;

        assert_int_equal(command_wire_next(&rest, &field), COMMAND_WIRE_FIELD);
        assert_int_equal(field.number, 1);
        return field.bytes;
}

/* Every byte of the command's Operation that is not of fields 5 to 9 comes back, in its order and spelling. */
static void test_raw_operation_survives(void **state) {
        (void)state;
        static const struct span parts[] = {
                WIRE("\x0a\x84\x00op-1"),                       /* id with an overlong length */
                WIRE("\xc0\x3e\x05"),                           /* unknown 1000: varint */
                WIRE("\x12\x04" "a\0b\xff"),                    /* description: a NUL, broken UTF-8 */
                WIRE("\x2a\x02\x08\x01"),                       /* 5: ours */
                WIRE("\x2d" "1234"),                            /* 5 with another wire type: ours, too */
                WIRE("\x30\x01"),                               /* 6 */
                WIRE("\x3a\x00"),                               /* 7 */
                WIRE("\x42\x02\x08\x05"),                       /* 8: an error already set */
                WIRE("\x4a\x00"),                               /* 9 */
                WIRE("\x22\x04user"),                           /* created_by */
                WIRE("\x51" "12345678"),                        /* unknown 10: fixed64 */
                WIRE("\x1a\x02\x08\x07"),                       /* created_at */
                WIRE("\xfa\xff\xff\xff\x0f\x01z"),              /* the highest field number */
        };
        static const struct {
                bool without_unknown_fields;
                const char *kept; /* a mark for each part */
        } cases[] = { { false, "111000000111" "1" }, { true, "101000000101" "0" } };

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                struct buffer raw = new_buffer(), expected = new_buffer(), out = new_buffer();
                struct command_report report = final_success;

                for (size_t j = 0; j < ARRAY_SIZE(parts); j++) {
                        assert_int_equal(buffer_append(&raw, parts[j].data, parts[j].size), 0);
                        if (cases[i].kept[j] == '1')
                                assert_int_equal(buffer_append(&expected, parts[j].data, parts[j].size), 0);
                }
                report.operation = view(&raw);
                report.without_unknown_fields = cases[i].without_unknown_fields;
                assert_int_equal(command_encode_report(&report, &out), 0);
                struct span operation = raw_operation(&out);
                assert_true(operation.size > expected.size);
                assert_memory_equal(operation.data, expected.data, expected.size);

                /* what follows is ours: fields 5 to 9, each once, ascending */
                struct span rest = { operation.data + expected.size, operation.size - expected.size };
                struct command_wire_field field;
                static const uint32_t numbers[] = { 5, 6, 7, 9 };
                for (size_t j = 0; j < ARRAY_SIZE(numbers); j++) {
                        assert_int_equal(command_wire_next(&rest, &field), COMMAND_WIRE_FIELD);
                        assert_int_equal(field.number, numbers[j]);
                }
                assert_int_equal(command_wire_next(&rest, &field), COMMAND_WIRE_END);
                buffer_deinit(&raw);
                buffer_deinit(&expected);
                buffer_deinit(&out);
        }
}

static void test_encode_is_deterministic(void **state) {
        (void)state;
        struct buffer first = new_buffer(), second = new_buffer();
        struct command_report report = final_error();

        assert_int_equal(command_encode_report(&report, &first), 0);
        assert_int_equal(command_encode_report(&report, &second), 0);
        assert_int_equal(first.size, second.size);
        assert_memory_equal(first.data, second.data, first.size);
        buffer_deinit(&first);
        buffer_deinit(&second);
}

static void test_encode_refuses(void **state) {
        (void)state;
        struct buffer out = new_buffer(), narrow = BUFFER_INIT(64);
        struct command_report report = final_success;

        assert_int_equal(buffer_append_text(&out, "before"), 0);
        report.operation = (struct span)WIRE("\x0a\x09op");
        assert_int_equal(command_encode_report(&report, &out), -EBADMSG);
        report.operation = (struct span)WIRE("\x0a\x02op\x53\x54");
        assert_int_equal(command_encode_report(&report, &out), -EBADMSG);
        assert_int_equal(out.size, strlen("before"));

        assert_int_equal(buffer_append_text(&narrow, "before"), 0);
        assert_int_equal(command_encode_report(&final_success, &narrow), -ENOBUFS);
        assert_int_equal(narrow.size, strlen("before"));
        buffer_deinit(&out);
        buffer_deinit(&narrow);
}

static void test_strings_are_escaped_and_cut(void **state) {
        (void)state;
        struct buffer out = new_buffer();
        struct command_report report = final_error();
        char longest[5000];

        memset(longest, 'x', sizeof(longest) - 1);
        longest[sizeof(longest) - 1] = '\0';
        report.message = longest;
        report.driver_state = "bad\xff\n";
        report.kill_requests = UINT32_MAX;
        report.modified_real_usec = USEC_NEVER;
        assert_int_equal(command_encode_report(&report, &out), 0);
        struct decoded decoded = decode_report(&out);
        assert_int_equal(strlen(decoded.metadata->message), REPORT_MESSAGE_MAX);
        assert_int_equal(strlen(decoded.report->operation->error->message), REPORT_MESSAGE_MAX);
        assert_string_equal(decoded.metadata->driver_state, "bad\\xFF\\x0A");
        assert_int_equal(decoded.metadata->kill_requests, INT32_MAX);
        assert_int_equal(decoded.report->operation->modified_at->seconds, INT64_C(253402300799));
        free_decoded(&decoded);
        buffer_deinit(&out);
}

static void test_requests(void **state) {
        (void)state;
        struct buffer out = new_buffer(), report = new_buffer();
        Sparkcancel__Agent__V1__WatchRequest *watch;
        Sparkcancel__Agent__V1__ReportRequest *request;

        assert_int_equal(command_encode_watch_request("c1", "node-1", "i-1", "1.0", 77, &out), 0);
        watch = sparkcancel__agent__v1__watch_request__unpack(NULL, out.size, out.data);
        assert_non_null(watch);
        assert_string_equal(watch->cluster_id, "c1");
        assert_string_equal(watch->node, "node-1");
        assert_string_equal(watch->instance_id, "i-1");
        assert_string_equal(watch->agent_version, "1.0");
        assert_int_equal(watch->after_revision, 77);
        sparkcancel__agent__v1__watch_request__free_unpacked(watch, NULL);
        buffer_deinit(&out);

        assert_int_equal(command_encode_report(&final_success, &report), 0);
        const struct span reports[] = { view(&report), view(&report) };
        assert_int_equal(command_encode_report_request("c1", "node-1", "i-1", reports, 2, &out), 0);
        request = sparkcancel__agent__v1__report_request__unpack(NULL, out.size, out.data);
        assert_non_null(request);
        assert_string_equal(request->cluster_id, "c1");
        assert_string_equal(request->node, "node-1");
        assert_string_equal(request->instance_id, "i-1");
        assert_int_equal(request->n_reports, 2);
        assert_string_equal(request->reports[1]->operation->id, "op-1");
        sparkcancel__agent__v1__report_request__free_unpacked(request, NULL);
        buffer_deinit(&out);
        buffer_deinit(&report);
}

/* ---- random ----------------------------------------------------------------------------------------- */

static uint64_t random_seed(void) {
        const char *text = getenv("SEED");
        uint64_t seed = base_random_u64();

        if (text && base_parse_u64(text, 0, UINT64_MAX, &seed) < 0)
                fail_msg("SEED is not a number: %s", text);
        print_message("SEED=%" PRIu64 "\n", seed);
        return seed;
}

/* Mutated commands: whatever comes out is within its limits, and what is VALID is so by the rules. */
static void test_random_mutations(void **state) {
        (void)state;
        uint64_t seed = random_seed();
        const struct sample sample = { .driver_id = TEXT("driver-1"), .padding = 20 };
        struct buffer sound = new_buffer();

        build_event(&sound, &sample);
        for (int round = 0; round < 20000; round++) {
                size_t size = sound.size - base_random_next(&seed) % 4;
                uint8_t *bytes = malloc(size);
                struct command_event event;

                assert_non_null(bytes);
                memcpy(bytes, sound.data, size);
                for (uint64_t i = base_random_next(&seed) % 4; i > 0; i--)
                        bytes[base_random_next(&seed) % size] = (uint8_t)base_random_next(&seed);
                int r = command_decode_event((struct span){ bytes, size }, "c1", &event);
                assert_true(r == 0 || r == -EBADMSG);
                if (r == 0 && event.kind == COMMAND_EVENT_CANCEL) {
                        assert_true(base_text_is_utf8(event.reason, strlen(event.reason)));
                        assert_true(base_text_is_utf8(event.job_id, strlen(event.job_id)));
                        assert_int_equal(event.verdict == COMMAND_VALID, event.reason[0] == '\0');
                        if (event.verdict == COMMAND_VALID) {
                                assert_string_equal(event.cluster_id, "c1");
                                assert_true(base_id_is_valid(event.job_id, strlen(event.job_id), JOB_ID_MAX));
                                assert_true(event.operation.data >= bytes &&
                                            event.operation.data + event.operation.size <= bytes + size);
                        }
                }
                free(bytes);
        }
        buffer_deinit(&sound);
}

/* ---- Python's protobuf as second opinion ------------------------------------------------------------- */

static const char script[] =
        "import sys, subprocess, os\n"
        "d = sys.argv[1]\n"
        "protos = ['google/rpc/status.proto', 'google/rpc/error_details.proto',\n"
        "          'yandex/cloud/operation/operation.proto', 'yandex/cloud/spark/v1/job.proto',\n"
        "          'yandex/cloud/spark/v1/job_service.proto', 'sparkcancel/agent/v1/cancel_agent_service.proto']\n"
        "try:\n"
        "    import google.protobuf, google\n"
        "    subprocess.run(['protoc', '-Icommon/proto', '--python_out=' + d] + protos, check=True)\n"
        "except Exception as e:\n"
        "    print(e); sys.exit(77)\n"
        "sys.path.insert(0, d)\n"
        "google.__path__.append(os.path.join(d, 'google'))\n"
        "from google.rpc import error_details_pb2\n"
        "from yandex.cloud.operation import operation_pb2\n"
        "from yandex.cloud.spark.v1 import job_pb2, job_service_pb2\n"
        "from sparkcancel.agent.v1 import cancel_agent_service_pb2 as pb\n"
        "def load(name):\n"
        "    r = pb.CancelReport()\n"
        "    r.ParseFromString(open(os.path.join(d, name), 'rb').read())\n"
        "    m = pb.CancelJobMetadata()\n"
        "    assert r.operation.metadata.Unpack(m)\n"
        "    return r, m\n"
        "r, m = load('success')\n"
        "assert r.sequence == 1700000000000001 and r.operation.id == 'op-1' and r.operation.done\n"
        "assert r.operation.description == 'Cancel Spark job'\n"
        "j = job_pb2.Job()\n"
        "assert r.operation.WhichOneof('result') == 'response' and r.operation.response.Unpack(j)\n"
        "assert (j.id, j.cluster_id, j.name, j.status) == ('job-1', 'c1', 'word count', job_pb2.Job.CANCELLED)\n"
        "assert j.started_at.ToMicroseconds() == 500000 and j.finished_at.ToMicroseconds() == 3000002\n"
        "assert (m.outcome, m.node, m.driver_state, m.kill_requests) == (pb.CANCELLED, 'node-1', 'KILLED', 2)\n"
        "assert m.kill_accepted_at.ToMicroseconds() == 2000001 and m.leftover_processes == 3\n"
        "assert r.operation.modified_at.ToMicroseconds() == 4000003\n"
        "assert bytes(20) in r.operation.SerializeToString()\n" /* the unknown field */
        "r, m = load('error')\n"
        "i = error_details_pb2.ErrorInfo()\n"
        "assert r.operation.WhichOneof('result') == 'error' and r.operation.error.details[0].Unpack(i)\n"
        "assert r.operation.error.code == 14 and (i.reason, i.domain) == ('SPARK_UNREACHABLE', 'spark-cancel-agent')\n"
        "assert dict(i.metadata) == {'node': 'node-1', 'job_id': 'job-1', 'driver_id': 'driver-1'}\n"
        "e = pb.WatchResponse(revision=2**40)\n"
        "o = e.cancel.operation\n"
        "o.id, o.created_by = 'op-python', 'somebody'\n"
        "o.metadata.Pack(job_service_pb2.CreateJobMetadata(cluster_id='c1', job_id='job-9'))\n"
        "e.cancel.deadline.FromMicroseconds(1234567890123456)\n"
        "e.cancel.driver_id = 'driver-9'\n"
        "open(os.path.join(d, 'event'), 'wb').write(e.SerializeToString())\n";

static void write_file(const char *directory, const char *name, const void *bytes, size_t size) {
        char path[PATH_MAX];
        FILE *file;

        assert_true((size_t)snprintf(path, sizeof(path), "%s/%s", directory, name) < sizeof(path));
        file = fopen(path, "wb");
        assert_non_null(file);
        assert_int_equal(fwrite(bytes, 1, size, file), size);
        assert_int_equal(fclose(file), 0);
}

static int run(char *const *argv) {
        pid_t pid;
        int status;

        if (posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ) != 0)
                return 127;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

static void check_event_of_python(const char *directory) {
        char path[PATH_MAX];
        uint8_t bytes[4096];
        struct command_event event;
        FILE *file;
        size_t size;

        assert_true((size_t)snprintf(path, sizeof(path), "%s/event", directory) < sizeof(path));
        file = fopen(path, "rb");
        assert_non_null(file);
        size = fread(bytes, 1, sizeof(bytes), file);
        assert_int_equal(fclose(file), 0);
        assert_int_equal(command_decode_event((struct span){ bytes, size }, "c1", &event), 0);
        assert_int_equal(event.verdict, COMMAND_VALID);
        assert_int_equal(event.revision, INT64_C(1) << 40);
        assert_string_equal(event.operation_id, "op-python");
        assert_string_equal(event.job_id, "job-9");
        assert_string_equal(event.driver_id, "driver-9");
        assert_int_equal(event.deadline_real_usec, UINT64_C(1234567890123456));
}

static void test_python_agrees(void **state) {
        (void)state;
        char directory[] = "/tmp/test-command-XXXXXX";
        struct buffer success = new_buffer(), error = new_buffer(), operation = new_buffer();
        struct command_report with_error = final_error(), with_success = final_success;
        const struct sample sample = { .padding = 20 };
        int r;

        assert_non_null(mkdtemp(directory));
        build_operation(&operation, &sample);
        with_success.operation = view(&operation);
        assert_int_equal(command_encode_report(&with_success, &success), 0);
        assert_int_equal(command_encode_report(&with_error, &error), 0);
        write_file(directory, "success", success.data, success.size);
        write_file(directory, "error", error.data, error.size);
        r = run((char *[]){ (char *)"/usr/bin/python3", (char *)"-B", (char *)"-c", (char *)script, directory, NULL });
        if (r == 0)
                check_event_of_python(directory);
        (void)run((char *[]){ (char *)"rm", (char *)"-rf", directory, NULL });
        buffer_deinit(&success);
        buffer_deinit(&error);
        buffer_deinit(&operation);
        if (r == 77 || r == 127) {
                print_message("skipped: python3 with protobuf, or protoc, is missing\n");
                assert_null(getenv("REQUIRE_ALL"));
                skip();
        }
        assert_int_equal(r, 0);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_sound_command),
                cmocka_unit_test(test_verdicts),
                cmocka_unit_test(test_operation_limit),
                cmocka_unit_test(test_wires),
                cmocka_unit_test(test_withdrawn),
                cmocka_unit_test(test_times),
                cmocka_unit_test(test_response),
                cmocka_unit_test(test_final_success),
                cmocka_unit_test(test_final_error),
                cmocka_unit_test(test_progress),
                cmocka_unit_test(test_raw_operation_survives),
                cmocka_unit_test(test_encode_is_deterministic),
                cmocka_unit_test(test_encode_refuses),
                cmocka_unit_test(test_strings_are_escaped_and_cut),
                cmocka_unit_test(test_requests),
                cmocka_unit_test(test_random_mutations),
                cmocka_unit_test(test_python_agrees),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
