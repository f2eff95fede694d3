/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * command: PURE: protobuf messages ↔ plain structs, every limit of the contract checked
 *
 * The Operation's raw bytes are kept: what we do not own is never unpacked and packed again (protobuf-c turns
 * strings into C strings, which end at the first NUL, and moves unknown fields). So ids are checked on the raw
 * bytes, and a report is the command's own bytes less fields 5 to 9, plus ours. See docs/contract.md.
 * No I/O, no clock, no log. Everything decoded points into the caller's message or is copied into fixed arrays.
 */
#include "base.h"

#define COMMAND_REASON_MAX 200

enum command_event_kind {
        COMMAND_EVENT_CANCEL,
        COMMAND_EVENT_WITHDRAWN,
        COMMAND_EVENT_BOOKMARK,
        COMMAND_EVENT_UNKNOWN, /* a kind that we do not know: ignored, its revision stored */
};

enum command_verdict {
        COMMAND_VALID,
        COMMAND_INVALID,       /* reportable as INVALID_COMMAND: the operation id is sound */
        COMMAND_UNREPORTABLE,  /* the operation id itself breaks its limit: logged and counted only */
};

/* One WatchResponse. Ids that break their limits are shown escaped and cut to 50, "" when not UTF-8. */
struct command_event {
        int64_t revision;
        enum command_event_kind kind;

        /* CANCEL; operation_id for WITHDRAWN, too */
        enum command_verdict verdict;             /* also for WITHDRAWN: COMMAND_UNREPORTABLE when the id is no id */
        char reason[COMMAND_REASON_MAX + 1];      /* why not VALID, for people */
        char operation_id[OPERATION_ID_MAX + 1];
        char cluster_id[CLUSTER_ID_MAX + 1];
        char job_id[JOB_ID_MAX + 1];
        char created_by[CLUSTER_ID_MAX + 1];      /* Operation.created_by, escaped and cut */
        char driver_id[DRIVER_ID_MAX + 1];        /* "" when the command has none */
        bool dry_run;
        bool has_deadline;
        uint64_t deadline_real_usec;              /* the server's wall clock; out of range is cut to [0, year 9999] */
        struct span operation;                    /* the raw Operation, into the message; empty above 16 KiB, and
                                                   * when it came twice */

        /* BOOKMARK */
        uint64_t heartbeat_interval_usec;         /* cut to 1 to 60 s; 0: not given, zero or negative */
        uint64_t server_real_usec;                /* `now`; 0: not given */
};

/* command_decode_event() - one WatchResponse of a stream of `cluster_id`. 0; -EBADMSG: not a WatchResponse
 * (protobuf broken); -ENOMEM. */
int command_decode_event(struct span message, const char *cluster_id, struct command_event *ret);

/* What a report says; the fields of CancelJobMetadata and of the response Job. Times are wall clock, 0: not set. */
struct command_report {
        struct span operation;         /* raw bytes of the command's Operation; empty: made from operation_id */
        bool without_unknown_fields;   /* INVALID_COMMAND of an oversize Operation */
        const char *operation_id, *cluster_id, *job_id, *node, *driver_id, *driver_state, *message, *agent_version;
        int outcome;                   /* sparkcancel.agent.v1.Outcome */
        int job_status;                /* yandex.cloud.spark.v1.Job.Status */
        bool done;                     /* final: response or error follows */
        bool success;                  /* final: response Job; else error */
        int error_code;                /* google.rpc.Code of the error */
        const char *outcome_name;      /* ErrorInfo.reason */
        uint64_t received_real_usec, accepted_real_usec, ended_real_usec, modified_real_usec;
        uint32_t kill_requests;
        int escalation;                /* sparkcancel.agent.v1.Escalation */
        int32_t leftover_processes;
        const char *job_name;          /* response Job.name; NULL: unknown */
        uint64_t job_started_real_usec;
        uint64_t job_finished_real_usec;
        int64_t sequence;
};

/* command_encode_report() - append one encoded CancelReport to `out`. Strings are escaped to valid UTF-8 and cut
 * (message at REPORT_MESSAGE_MAX). -ENOMEM, -ENOBUFS, -EBADMSG (raw bytes are no protobuf message). */
int command_encode_report(const struct command_report *report, struct buffer *out);

/* command_encode_watch_request() / command_encode_report_request() - append a WatchRequest / a ReportRequest of
 * `count` encoded CancelReports to `out`. */
int command_encode_watch_request(const char *cluster_id, const char *node, const char *instance_id,
                                 const char *agent_version, int64_t after_revision, struct buffer *out);
int command_encode_report_request(const char *cluster_id, const char *node, const char *instance_id,
                                  const struct span *reports, size_t count, struct buffer *out);

enum command_disposition { /* the numbers are the wire's; anything else decodes as UNSPECIFIED */
        COMMAND_DISPOSITION_UNSPECIFIED = 0, COMMAND_APPLIED = 1, COMMAND_ALREADY_APPLIED = 2,
        COMMAND_SUPERSEDED = 3, COMMAND_UNKNOWN_OPERATION = 4, COMMAND_REJECTED = 5,
};

struct command_report_result {
        char operation_id[OPERATION_ID_MAX + 1];
        enum command_disposition disposition;
        char reason[COMMAND_REASON_MAX + 1]; /* escaped */
};

/* command_decode_report_response() - at most `max` results, in the server's order; further ones are ignored. */
int command_decode_report_response(struct span message, struct command_report_result *results, size_t max,
                                   size_t *ret_count);
