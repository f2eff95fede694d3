/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * log: one event, one line
 *
 * Under journald (`$JOURNAL_STREAM` names the device and inode of stderr) an event is sent with structured
 * fields; elsewhere the same event is one readable line on stderr, `key=value` fields at its end. Modules
 * under common/ do not log above debug; agent/ logs each failure once, with the operation's fields.
 * All text is escaped here (control characters, broken UTF-8), so no caller can be used for log injection.
 */
#include "base.h"

enum log_priority { /* the numbers are syslog's and journald's */
        LOG_PRIORITY_ERR = 3,     /* a person is needed */
        LOG_PRIORITY_WARNING = 4,
        LOG_PRIORITY_NOTICE = 5,
        LOG_PRIORITY_INFO = 6,
        LOG_PRIORITY_DEBUG = 7,
};

/* A field of the event. `name` is the journal's (SPARK_JOB_ID); on stderr it is shown as `job_id`.
 * A field whose value is NULL or "" is left out. */
struct log_field {
        const char *name;
        const char *value;
};

/* log_open() - choose journald or stderr. Call once at start; before it everything goes to stderr. */
void log_open(void);

/* log_set_level() / log_get_level() - events of a higher number are dropped. Default LOG_PRIORITY_INFO. */
void log_set_level(enum log_priority level);
enum log_priority log_get_level(void);

/* log_level_from_text() - "debug", "info", "notice", "warning", "err". -EINVAL otherwise. */
int log_level_from_text(const char *text, enum log_priority *ret);
const char *log_level_to_text(enum log_priority level);

/* log_write() - write one event. `message_id` is 32 hex digits (a journald MESSAGE_ID) or NULL; `fields` may be
 * NULL when `field_count` is 0. The formatted message is cut at 2 KiB. Never fails, never blocks for long,
 * keeps errno. Safe on every thread. */
void log_write(enum log_priority priority, const char *message_id, const struct log_field *fields,
               size_t field_count, const char *format, ...) __attribute__((format(printf, 5, 6)));

/* log_debug() - for the person who debugs this program; no fields, no id. */
#define log_debug(...)                                                                  \
        do {                                                                            \
                if (log_get_level() >= LOG_PRIORITY_DEBUG)                              \
                        log_write(LOG_PRIORITY_DEBUG, NULL, NULL, 0, __VA_ARGS__);      \
        } while (0)
