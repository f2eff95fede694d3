/* SPDX-License-Identifier: Apache-2.0 */
/*
 * log: one event, one line
 *
 * No queue and no lock: each event is built on the caller's stack and leaves in one call, so threads cannot mix
 * their lines and a crash loses nothing that was logged before it.
 *
 * A log must not stop the program. A line on stderr is at most PIPE_BUF bytes and is written after poll(2) said
 * that there is room, which for a pipe means room for that many bytes: the write does not block. A reader that
 * hangs costs STDERR_WAIT_MSEC once; from then on lines are dropped and counted until there is room again.
 *
 * journald's socket is different: sd_journal_sendv(3) waits while journald takes nothing, as every service's log does;
 * systemd's own watchdog over journald bounds that.
 *
 * Traps: $JOURNAL_STREAM is inherited by children whose stderr is something else, hence the comparison with
 * what stderr is now (systemd.exec(5)). A message may hold a peer's bytes: everything is escaped here.
 */
#include "log.h"

#include <poll.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/uio.h>
#define SD_JOURNAL_SUPPRESS_LOCATION /* it would name this file for every event */
#include <systemd/sd-journal.h>

#define MESSAGE_MAX 2048
#define FIELDS_MAX 24
#define FIELD_NAME_MAX 64
#define JOURNAL_TEXT_MAX (16 * 1024) /* all fields of one event together */
#define LINE_MAX_BYTES 4096          /* PIPE_BUF */
#define STDERR_WAIT_MSEC 100

_Static_assert(LINE_MAX_BYTES <= PIPE_BUF, "a longer line is not written at once");

static atomic_int level_now = LOG_PRIORITY_INFO;
static atomic_bool journal_used;
static atomic_bool stderr_stuck;
static atomic_uint lines_dropped;

static const struct {
        const char *text;
        enum log_priority level;
} levels[] = {
        {"err", LOG_PRIORITY_ERR},   {"warning", LOG_PRIORITY_WARNING}, {"notice", LOG_PRIORITY_NOTICE},
        {"info", LOG_PRIORITY_INFO}, {"debug", LOG_PRIORITY_DEBUG},
};

int log_level_from_text(const char *text, enum log_priority *ret) {
        for (size_t i = 0; i < ARRAY_SIZE(levels); i++)
                if (strcmp(text, levels[i].text) == 0) {
                        *ret = levels[i].level;
                        return 0;
                }
        return -EINVAL;
}

const char *log_level_to_text(enum log_priority level) {
        for (size_t i = 0; i < ARRAY_SIZE(levels); i++)
                if (level == levels[i].level)
                        return levels[i].text;
        return "err";
}

void log_set_level(enum log_priority level) {
        atomic_store(&level_now, (int)level);
}

enum log_priority log_get_level(void) {
        return (enum log_priority)atomic_load(&level_now);
}

/* stderr_is_journal() - `text` is $JOURNAL_STREAM: "DEVICE:INODE" in decimal. */
static bool stderr_is_journal(const char *text) {
        struct stat status;
        char expected[64];

        if (!text || fstat(STDERR_FILENO, &status) < 0)
                return false;
        (void)snprintf(expected, sizeof(expected), "%ju:%ju", (uintmax_t)status.st_dev, (uintmax_t)status.st_ino);
        return strcmp(text, expected) == 0;
}

void log_open(void) {
        atomic_store(&journal_used, stderr_is_journal(getenv("JOURNAL_STREAM")));
}

/* ---- text of a bounded size ----------------------------------------------------------------------- */

struct text {
        char *data;
        size_t size; /* with the NUL */
        size_t used;
};

static size_t text_room(const struct text *text) {
        return text->size - 1 - text->used;
}

static void text_add(struct text *text, const char *bytes, size_t size) {
        if (size > text_room(text))
                size = text_room(text);
        memcpy(text->data + text->used, bytes, size);
        text->used += size;
        text->data[text->used] = '\0';
}

static void text_add_escaped(struct text *text, const char *source) {
        base_text_escape(text->data + text->used, text_room(text) + 1, source, strlen(source));
        text->used += strlen(text->data + text->used);
}

static bool field_is_shown(const struct log_field *field) {
        return field->name && field->value && *field->value;
}

/* ---- journald ------------------------------------------------------------------------------------- */

/* journal_add() - one NAME=value, escaped, as the next iovec. */
static void journal_add(struct text *text, struct iovec *iov, size_t *count, const char *name, const char *value) {
        size_t begin = text->used;

        if (*count >= FIELDS_MAX || strlen(name) > FIELD_NAME_MAX || strlen(name) + 2 > text_room(text))
                return;
        text_add(text, name, strlen(name));
        text_add(text, "=", 1);
        text_add_escaped(text, value);
        iov[(*count)++] = (struct iovec){.iov_base = text->data + begin, .iov_len = text->used - begin};
        text->used++; /* keep the NUL: pieces stay apart for who looks with a debugger */
        if (text->used >= text->size)
                text->used = text->size - 1;
}

static int journal_write(enum log_priority priority, const char *message_id, const struct log_field *fields,
                         size_t field_count, const char *message) {
        char bytes[JOURNAL_TEXT_MAX], number[16];
        struct text text = {.data = bytes, .size = sizeof(bytes)};
        struct iovec iov[FIELDS_MAX];
        size_t count = 0;

        bytes[0] = '\0';
        (void)snprintf(number, sizeof(number), "%d", (int)priority);
        journal_add(&text, iov, &count, "MESSAGE", message);
        journal_add(&text, iov, &count, "PRIORITY", number);
        journal_add(&text, iov, &count, "SYSLOG_IDENTIFIER", program_invocation_short_name);
        if (message_id)
                journal_add(&text, iov, &count, "MESSAGE_ID", message_id);
        for (size_t i = 0; i < field_count; i++)
                if (field_is_shown(&fields[i]))
                        journal_add(&text, iov, &count, fields[i].name, fields[i].value);
        return sd_journal_sendv(iov, (int)count);
}

/* ---- stderr --------------------------------------------------------------------------------------- */

/* line_add_value() - bare when that is unambiguous, else in quotes with \" and \\ inside. */
static void line_add_value(struct text *line, const char *value) {
        char bytes[MESSAGE_MAX + 1];
        struct text escaped = {.data = bytes, .size = sizeof(bytes)};

        bytes[0] = '\0';
        text_add_escaped(&escaped, value);
        if (!strpbrk(bytes, " \"=")) {
                text_add(line, bytes, escaped.used);
                return;
        }
        text_add(line, "\"", 1);
        for (const char *at = bytes; *at; at++) {
                if (*at == '"' || *at == '\\')
                        text_add(line, "\\", 1);
                text_add(line, at, 1);
        }
        text_add(line, "\"", 1);
}

/* line_add_name() - SPARK_JOB_ID is shown as job_id. */
static void line_add_name(struct text *line, const char *name) {
        const char *rest = base_text_starts_with(name, "SPARK_");
        for (const char *at = rest ? rest : name; *at; at++) {
                char byte = *at >= 'A' && *at <= 'Z' ? (char)(*at + ('a' - 'A')) : *at;
                text_add(line, &byte, 1);
        }
}

static void line_add_time(struct text *line) {
        struct timespec now;
        struct tm broken;
        char stamp[40];

        if (clock_gettime(CLOCK_REALTIME, &now) < 0 || !gmtime_r(&now.tv_sec, &broken))
                return;
        size_t size = strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%S", &broken);
        text_add(line, stamp, size);
        (void)snprintf(stamp, sizeof(stamp), ".%06ldZ ", now.tv_nsec / 1000);
        text_add(line, stamp, strlen(stamp));
}

static void stderr_send(const char *line, size_t size) {
        struct pollfd poll_fd = {.fd = STDERR_FILENO, .events = POLLOUT};
        int wait_msec = atomic_load(&stderr_stuck) ? 0 : STDERR_WAIT_MSEC;

        if (poll(&poll_fd, 1, wait_msec) != 1 || !(poll_fd.revents & POLLOUT) ||
            write(STDERR_FILENO, line, size) != (ssize_t)size) {
                atomic_store(&stderr_stuck, true);
                atomic_fetch_add(&lines_dropped, 1);
                return;
        }
        atomic_store(&stderr_stuck, false);
}

/* stderr_send_dropped() - once there is room again, say what is missing. */
static void stderr_send_dropped(void) {
        struct pollfd poll_fd = {.fd = STDERR_FILENO, .events = POLLOUT};
        char bytes[128];
        struct text line = {.data = bytes, .size = sizeof(bytes)};

        if (atomic_load(&lines_dropped) == 0 || poll(&poll_fd, 1, 0) != 1 || !(poll_fd.revents & POLLOUT))
                return;
        unsigned dropped = atomic_exchange(&lines_dropped, 0);
        if (dropped == 0)
                return;
        line_add_time(&line);
        line.used += (size_t)snprintf(bytes + line.used, sizeof(bytes) - line.used,
                                      "warning %u log lines dropped: stderr took no more\n", dropped);
        stderr_send(bytes, line.used);
}

static void stderr_write(enum log_priority priority, const struct log_field *fields, size_t field_count,
                         const char *message) {
        char bytes[LINE_MAX_BYTES + 1];
        struct text line = {.data = bytes, .size = sizeof(bytes) - 1}; /* one byte stays for the newline */
        bool first = true;

        bytes[0] = '\0';
        line_add_time(&line);
        text_add(&line, log_level_to_text(priority), strlen(log_level_to_text(priority)));
        text_add(&line, " ", 1);
        text_add(&line, message, strlen(message));
        for (size_t i = 0; i < field_count; i++) {
                if (!field_is_shown(&fields[i]))
                        continue;
                text_add(&line, first ? "  " : " ", first ? 2 : 1);
                first = false;
                line_add_name(&line, fields[i].name);
                text_add(&line, "=", 1);
                line_add_value(&line, fields[i].value);
        }
        bytes[line.used++] = '\n';
        stderr_send_dropped();
        stderr_send(bytes, line.used);
}

void log_write(enum log_priority priority, const char *message_id, const struct log_field *fields, size_t field_count,
               const char *format, ...) {
        int saved_errno = errno;
        char raw[MESSAGE_MAX + 8]; /* longer than `message`, so the cut is made by the escaping, at a whole character */
        char message[MESSAGE_MAX + 1];
        va_list arguments;

        if ((int)priority > atomic_load(&level_now))
                return;
        va_start(arguments, format);
        int length = vsnprintf(raw, sizeof(raw), format, arguments);
        va_end(arguments);
        if (length < 0)
                (void)base_text_copy(raw, sizeof(raw), format);
        base_text_escape(message, sizeof(message), raw, strlen(raw));
        if (!atomic_load(&journal_used) || journal_write(priority, message_id, fields, field_count, message) < 0)
                stderr_write(priority, fields, field_count, message);
        errno = saved_errno;
}
