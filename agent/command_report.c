/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Encoding: plain structs → what we send.
 *
 * A report's Operation has two parts: the command's own bytes, copied field by field without a look inside, less
 * fields 5 to 9; and behind them an Operation of protobuf-c with just these fields. Protobuf defines a
 * concatenation of encoded messages as their merge, so the whole is one Operation, and what this program does not
 * know of it (fields that are younger than our .proto) reaches the control plane unharmed.
 *
 * The bytes depend on the report alone (protobuf-c packs in field order; the one map is filled in a fixed order):
 * a resend is the same bytes under the same sequence.
 */
#include "command.h"
#include "command_wire.h"

#include "google/protobuf/any.pb-c.h"
#include "google/protobuf/timestamp.pb-c.h"
#include "google/rpc/error_details.pb-c.h"
#include "google/rpc/status.pb-c.h"
#include "sparkcancel/agent/v1/cancel_agent_service.pb-c.h"
#include "yandex/cloud/operation/operation.pb-c.h"
#include "yandex/cloud/spark/v1/job.pb-c.h"

#define ERROR_DOMAIN "spark-cancel-agent"
#define TYPE_URL(name) ((char *)"type.googleapis.com/" name)
#define REAL_USEC_MAX (UINT64_C(253402300800) * USEC_PER_SEC - 1) /* the end of year 9999: Timestamp's limit */
#define JOB_NAME_MAX 256
#define AGENT_VERSION_MAX 64
#define OUTCOME_NAME_MAX 64

enum operation_field { /* of yandex.cloud.operation.Operation */
        OPERATION_ID = 1,
        OPERATION_CREATED_BY = 4,
        OPERATION_MODIFIED_AT = 5,
        OPERATION_RESPONSE = 9,
};

/* Every string of the report, escaped and cut: protobuf-c neither checks UTF-8 nor bounds anything. */
struct report_text {
        char operation_id[OPERATION_ID_MAX + 1];
        char cluster_id[CLUSTER_ID_MAX + 1];
        char job_id[JOB_ID_MAX + 1];
        char node[NODE_NAME_MAX + 1];
        char driver_id[DRIVER_ID_MAX + 1];
        char driver_state[DRIVER_STATE_MAX + 1];
        char message[REPORT_MESSAGE_MAX + 1];
        char agent_version[AGENT_VERSION_MAX + 1];
        char outcome_name[OUTCOME_NAME_MAX + 1];
        char job_name[JOB_NAME_MAX + 1];
};

static void escape(char *target, size_t size, const char *source) {
        base_text_escape(target, size, source ? source : "", source ? strlen(source) : 0);
}

static void escape_report(struct report_text *text, const struct command_report *report) {
        escape(text->operation_id, sizeof(text->operation_id), report->operation_id);
        escape(text->cluster_id, sizeof(text->cluster_id), report->cluster_id);
        escape(text->job_id, sizeof(text->job_id), report->job_id);
        escape(text->node, sizeof(text->node), report->node);
        escape(text->driver_id, sizeof(text->driver_id), report->driver_id);
        escape(text->driver_state, sizeof(text->driver_state), report->driver_state);
        escape(text->message, sizeof(text->message), report->message);
        escape(text->agent_version, sizeof(text->agent_version), report->agent_version);
        escape(text->outcome_name, sizeof(text->outcome_name), report->outcome_name);
        escape(text->job_name, sizeof(text->job_name), report->job_name);
}

/* ---- protobuf-c ------------------------------------------------------------------------------------- */

/* pack() - the message as one heap block; protobuf-c can tell the size before. */
static int pack(const ProtobufCMessage *message, uint8_t **ret, size_t *ret_size) {
        size_t size = protobuf_c_message_get_packed_size(message);
        uint8_t *bytes;

        bytes = malloc(size ? size : 1);
        if (!bytes)
                return -ENOMEM;
        *ret_size = protobuf_c_message_pack(message, bytes);
        *ret = bytes;
        return 0;
}

static int pack_append(const ProtobufCMessage *message, struct buffer *out) {
        _cleanup_free_ uint8_t *bytes = NULL;
        size_t size;
        int r;

        r = pack(message, &bytes, &size);
        if (r < 0)
                return r;
        return buffer_append(out, bytes, size);
}

/* The caller frees any->value.data. */
static int pack_any(const ProtobufCMessage *message, char *type_url, Google__Protobuf__Any *any) {
        any->type_url = type_url;
        return pack(message, &any->value.data, &any->value.len);
}

/* NULL for a time that is not set. */
static Google__Protobuf__Timestamp *timestamp(Google__Protobuf__Timestamp *stamp, uint64_t real_usec) {
        google__protobuf__timestamp__init(stamp);
        if (!real_usec)
                return NULL;
        real_usec = base_min_u64(real_usec, REAL_USEC_MAX);
        stamp->seconds = (int64_t)(real_usec / USEC_PER_SEC);
        stamp->nanos = (int32_t)(real_usec % USEC_PER_SEC * 1000);
        return stamp;
}

/* ---- the parts of a report -------------------------------------------------------------------------- */

static int pack_metadata(const struct command_report *report, struct report_text *text, Google__Protobuf__Any *any) {
        Sparkcancel__Agent__V1__CancelJobMetadata metadata = SPARKCANCEL__AGENT__V1__CANCEL_JOB_METADATA__INIT;
        Google__Protobuf__Timestamp received, accepted, ended;

        metadata.cluster_id = text->cluster_id;
        metadata.job_id = text->job_id;
        metadata.outcome = (Sparkcancel__Agent__V1__Outcome)report->outcome;
        metadata.job_status = (Yandex__Cloud__Spark__V1__Job__Status)report->job_status;
        metadata.node = text->node;
        metadata.driver_id = text->driver_id;
        metadata.driver_state = text->driver_state;
        metadata.received_at = timestamp(&received, report->received_real_usec);
        metadata.kill_accepted_at = timestamp(&accepted, report->accepted_real_usec);
        metadata.ended_at = timestamp(&ended, report->ended_real_usec);
        metadata.kill_requests = (int32_t)base_min_u64(report->kill_requests, INT32_MAX);
        metadata.escalation = (Sparkcancel__Agent__V1__Escalation)report->escalation;
        metadata.leftover_processes = report->leftover_processes;
        metadata.message = text->message;
        metadata.agent_version = text->agent_version;
        return pack_any(&metadata.base, TYPE_URL("sparkcancel.agent.v1.CancelJobMetadata"), any);
}

static int pack_job(const struct command_report *report, struct report_text *text, Google__Protobuf__Any *any) {
        Yandex__Cloud__Spark__V1__Job job = YANDEX__CLOUD__SPARK__V1__JOB__INIT;
        Google__Protobuf__Timestamp started, finished;

        job.id = text->job_id;
        job.cluster_id = text->cluster_id;
        job.name = text->job_name;
        job.started_at = timestamp(&started, report->job_started_real_usec);
        job.finished_at = timestamp(&finished, report->job_finished_real_usec);
        job.status = (Yandex__Cloud__Spark__V1__Job__Status)report->job_status;
        return pack_any(&job.base, TYPE_URL("yandex.cloud.spark.v1.Job"), any);
}

static int pack_error_info(struct report_text *text, Google__Protobuf__Any *any) {
        Google__Rpc__ErrorInfo info = GOOGLE__RPC__ERROR_INFO__INIT;
        Google__Rpc__ErrorInfo__MetadataEntry entries[3], *list[ARRAY_SIZE(entries)];
        struct {
                const char *key;
                char *value;
        } pairs[ARRAY_SIZE(entries)] = {
                { "node", text->node },
                { "job_id", text->job_id },
                { "driver_id", text->driver_id },
        };

        for (size_t i = 0; i < ARRAY_SIZE(entries); i++) {
                google__rpc__error_info__metadata_entry__init(&entries[i]);
                entries[i].key = (char *)pairs[i].key;
                entries[i].value = pairs[i].value;
                list[i] = &entries[i];
        }
        info.reason = text->outcome_name;
        info.domain = (char *)ERROR_DOMAIN;
        info.metadata = list;
        info.n_metadata = ARRAY_SIZE(entries);
        return pack_any(&info.base, TYPE_URL("google.rpc.ErrorInfo"), any);
}

/* Append the Operation's fields 5 to 9, and its id when there are no bytes of the command to carry it. */
static int append_own_fields(const struct command_report *report, struct report_text *text, struct buffer *out) {
        Yandex__Cloud__Operation__Operation operation = YANDEX__CLOUD__OPERATION__OPERATION__INIT;
        Google__Protobuf__Any metadata = GOOGLE__PROTOBUF__ANY__INIT, result = GOOGLE__PROTOBUF__ANY__INIT;
        Google__Protobuf__Any *details = &result;
        Google__Rpc__Status error = GOOGLE__RPC__STATUS__INIT;
        Google__Protobuf__Timestamp modified;
        int r;

        if (!report->operation.size)
                operation.id = text->operation_id;
        operation.modified_at = timestamp(&modified, report->modified_real_usec);
        operation.done = report->done;
        operation.metadata = &metadata;
        r = pack_metadata(report, text, &metadata);
        if (r >= 0 && report->done && report->success) {
                operation.result_case = YANDEX__CLOUD__OPERATION__OPERATION__RESULT_RESPONSE;
                operation.response = &result;
                r = pack_job(report, text, &result);
        } else if (r >= 0 && report->done) {
                operation.result_case = YANDEX__CLOUD__OPERATION__OPERATION__RESULT_ERROR;
                operation.error = &error;
                error.code = report->error_code;
                error.message = text->message;
                error.details = &details;
                error.n_details = 1;
                r = pack_error_info(text, &result);
        }
        if (r >= 0)
                r = pack_append(&operation.base, out);
        free(metadata.value.data);
        free(result.value.data);
        return r;
}

static bool field_is_kept(const struct command_wire_field *field, bool without_unknown_fields) {
        if (field->number >= OPERATION_MODIFIED_AT && field->number <= OPERATION_RESPONSE)
                return false;
        if (!without_unknown_fields)
                return true;
        return field->number >= OPERATION_ID && field->number <= OPERATION_CREATED_BY &&
               field->type == COMMAND_WIRE_BYTES;
}

/* Neighbours are copied in one go: an Operation whose fields 5 to 9 are absent costs one append. */
static int append_command_fields(const struct command_report *report, struct buffer *out) {
        struct span rest = report->operation, kept = {};
        struct command_wire_field field;
        int r;

        while ((r = command_wire_next(&rest, &field)) == COMMAND_WIRE_FIELD) {
                if (field_is_kept(&field, report->without_unknown_fields)) {
                        if (!kept.size)
                                kept.data = field.raw.data;
                        kept.size += field.raw.size;
                        continue;
                }
                r = buffer_append(out, kept.data, kept.size);
                if (r < 0)
                        return r;
                kept = (struct span){};
        }
        return r < 0 ? r : buffer_append(out, kept.data, kept.size);
}

int command_encode_report(const struct command_report *report, struct buffer *out) {
        struct buffer operation = BUFFER_INIT(out->max);
        size_t before = out->size;
        struct report_text text;
        int r;

        escape_report(&text, report);
        r = append_command_fields(report, &operation);
        if (r >= 0)
                r = append_own_fields(report, &text, &operation);
        if (r >= 0)
                r = command_wire_put_bytes(out, 1, operation.data, operation.size);
        if (r >= 0 && report->sequence)
                r = command_wire_put_varint(out, 2, (uint64_t)report->sequence);
        if (r < 0)
                out->size = before;
        buffer_deinit(&operation);
        return r;
}

/* ---- requests --------------------------------------------------------------------------------------- */

int command_encode_watch_request(const char *cluster_id, const char *node, const char *instance_id,
                                 const char *agent_version, int64_t after_revision, struct buffer *out) {
        Sparkcancel__Agent__V1__WatchRequest request = SPARKCANCEL__AGENT__V1__WATCH_REQUEST__INIT;

        request.cluster_id = (char *)cluster_id;
        request.node = (char *)node;
        request.instance_id = (char *)instance_id;
        request.agent_version = (char *)agent_version;
        request.after_revision = after_revision;
        return pack_append(&request.base, out);
}

/* The reports are encoded already: they are appended as fields of the request, never decoded again. */
int command_encode_report_request(const char *cluster_id, const char *node, const char *instance_id,
                                  const struct span *reports, size_t count, struct buffer *out) {
        Sparkcancel__Agent__V1__ReportRequest request = SPARKCANCEL__AGENT__V1__REPORT_REQUEST__INIT;
        size_t before = out->size;
        int r;

        request.cluster_id = (char *)cluster_id;
        request.node = (char *)node;
        request.instance_id = (char *)instance_id;
        r = pack_append(&request.base, out);
        for (size_t i = 0; r >= 0 && i < count; i++)
                r = command_wire_put_bytes(out, 4, reports[i].data, reports[i].size);
        if (r < 0)
                out->size = before;
        return r;
}
