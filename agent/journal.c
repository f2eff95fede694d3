/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of events and the one place where their fields are put together.
 */
#include "journal.h"

#define MESSAGE_MAX 2048

struct event_row {
        const char *name;
        const char *id;
        enum log_priority priority;
};

static const struct event_row rows[JOURNAL_EVENT_MAX] = {
#define X(event_name, event_id, event_priority) \
        [JOURNAL_##event_name] = { #event_name, event_id, LOG_PRIORITY_##event_priority },
        JOURNAL_EVENTS(X)
#undef X
};

void journal_write(enum journal_event event, const struct journal_subject *subject, const char *format, ...) {
        static const struct journal_subject nobody;
        const struct journal_subject *s = subject ? subject : &nobody;
        char message[MESSAGE_MAX], pid[16] = "";
        va_list arguments;

        if (rows[event].priority > log_get_level())
                return;
        va_start(arguments, format);
        (void)vsnprintf(message, sizeof message, format, arguments);
        va_end(arguments);
        if (s->driver_pid > 0)
                (void)snprintf(pid, sizeof pid, "%" PRId32, s->driver_pid);

        const struct log_field fields[] = {
                { "SPARK_OPERATION_ID", s->operation_id }, { "SPARK_REQUESTED_BY", s->requested_by },
                { "SPARK_JOB_ID", s->job_id },             { "SPARK_CLUSTER_ID", s->cluster_id },
                { "SPARK_DRIVER_ID", s->driver_id },       { "SPARK_DRIVER_PID", pid },
                { "SPARK_MASTER", s->master },             { "SPARK_STATE", s->state },
                { "SPARK_OUTCOME", s->outcome },
        };
        log_write(rows[event].priority, rows[event].id, fields, ARRAY_SIZE(fields), "%s", message);
}

const char *journal_event_id(enum journal_event event) {
        return event < JOURNAL_EVENT_MAX ? rows[event].id : "";
}

const char *journal_event_name(enum journal_event event) {
        return event < JOURNAL_EVENT_MAX ? rows[event].name : "";
}
