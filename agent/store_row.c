/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One operation as a row. The table below is the only place that says which field is which column: the SQL, the
 * binding, the strict reading and the copy into a turn are all made from it, so they cannot drift apart. A new
 * column is one line here and one step in store_schema.c.
 *
 * Enums are stored as words: a person reads the database with sqlite3, and an enum may be renumbered. These words
 * are a file format and therefore stand here, not where the log takes its words from.
 * SQLite keeps any type in any column, so each value's type is checked on the way back, and its range, and its
 * length: the file may have been edited by hand. What store_row_check() lets in, store_row_read() takes back.
 */
#include "store_internal.h"

enum column_type {
        COLUMN_TEXT,      /* const char * */
        COLUMN_DRIVER_ID, /* char [DRIVER_ID_MAX + 1], "" or a driver id */
        COLUMN_BLOB,      /* struct span */
        COLUMN_FLAG,      /* bool: 0, 1 */
        COLUMN_WORD,      /* an enum by `words` */
        COLUMN_U32,
        COLUMN_I32,
        COLUMN_U64, /* 0 to INT64_MAX; -1: UINT64_MAX, which is "never" */
        COLUMN_I64,
};

struct column {
        const char *name;
        size_t offset;
        enum column_type type;
        const char *const *words;
        uint32_t word_count;
};

static const char *const state_words[] = {
        [CANCEL_SEARCH] = "SEARCH", [CANCEL_KILL] = "KILL",
        [CANCEL_WAIT] = "WAIT",     [CANCEL_TERM] = "TERM",
        [CANCEL_FORCE] = "FORCE",   [CANCEL_SETTLE] = "SETTLE",
        [CANCEL_REPORT] = "REPORT", [CANCEL_QUARANTINE] = "QUARANTINE",
        [CANCEL_DONE] = "DONE",
};
static const char *const outcome_words[] = {
        [CANCEL_OUTCOME_NONE] = "NONE",
        [CANCEL_IN_PROGRESS] = "IN_PROGRESS",
        [CANCEL_NOT_ON_NODE] = "NOT_ON_NODE",
        [CANCEL_CANCELLED] = "CANCELLED",
        [CANCEL_ALREADY_DONE] = "ALREADY_DONE",
        [CANCEL_ALREADY_FAILED] = "ALREADY_FAILED",
        [CANCEL_DRY_RUN] = "DRY_RUN",
        [CANCEL_NOT_FOUND] = "NOT_FOUND",
        [CANCEL_SPARK_UNREACHABLE] = "SPARK_UNREACHABLE",
        [CANCEL_SPARK_REFUSED] = "SPARK_REFUSED",
        [CANCEL_DEADLINE_EXCEEDED] = "DEADLINE_EXCEEDED",
        [CANCEL_DRIVER_SURVIVED] = "DRIVER_SURVIVED",
        [CANCEL_DRIVER_LOST] = "DRIVER_LOST",
        [CANCEL_INVALID_COMMAND] = "INVALID_COMMAND",
};
static const char *const spark_words[] = {
        [CANCEL_WORD_NONE] = "NONE",
        [CANCEL_WORD_SUBMITTED] = "SUBMITTED",
        [CANCEL_WORD_RUNNING] = "RUNNING",
        [CANCEL_WORD_FINISHED] = "FINISHED",
        [CANCEL_WORD_RELAUNCHING] = "RELAUNCHING",
        [CANCEL_WORD_KILLED] = "KILLED",
        [CANCEL_WORD_FAILED] = "FAILED",
        [CANCEL_WORD_ERROR] = "ERROR",
        [CANCEL_WORD_OTHER] = "OTHER",
        [CANCEL_WORD_UNKNOWN_ID] = "UNKNOWN_ID",
};
static const char *const escalation_words[] = {
        [CANCEL_ESCALATION_NONE] = "NONE",
        [CANCEL_ESCALATION_SIGTERM] = "SIGTERM",
        [CANCEL_ESCALATION_SIGKILL] = "SIGKILL",
};
_Static_assert(ARRAY_SIZE(state_words) == CANCEL_STATE_MAX, "a word for each state");
_Static_assert(ARRAY_SIZE(outcome_words) == CANCEL_OUTCOME_MAX, "a word for each outcome");
_Static_assert(ARRAY_SIZE(spark_words) == CANCEL_WORD_MAX, "a word for each of Spark's");
_Static_assert(sizeof(enum cancel_state) == 4 && sizeof(enum cancel_outcome) == 4 && sizeof(enum cancel_word) == 4 &&
                       sizeof(enum cancel_escalation) == 4,
               "COLUMN_WORD copies four bytes");

#define AT(field) offsetof(struct store_operation, field)
#define WORDS(list) .type = COLUMN_WORD, .words = (list), .word_count = ARRAY_SIZE(list)

static const struct column columns[] = {
        {"operation_id", AT(operation_id), .type = COLUMN_TEXT}, /* the first: the key */
        {"cluster_id", AT(cluster_id), .type = COLUMN_TEXT},
        {"job_id", AT(job_id), .type = COLUMN_TEXT},
        {"created_by", AT(created_by), .type = COLUMN_TEXT},
        {"state", AT(record.state), WORDS(state_words)},
        {"outcome", AT(record.outcome), WORDS(outcome_words)},
        {"progress", AT(record.progress), WORDS(outcome_words)},
        {"word", AT(record.word), WORDS(spark_words)},
        {"escalation", AT(record.escalation), WORDS(escalation_words)},
        {"dry_run", AT(record.dry_run), .type = COLUMN_FLAG},
        {"withdrawn", AT(record.withdrawn), .type = COLUMN_FLAG},
        {"supervised", AT(record.supervised), .type = COLUMN_FLAG},
        {"master_answered", AT(record.master_answered), .type = COLUMN_FLAG},
        {"refused_auth", AT(record.refused_auth), .type = COLUMN_FLAG},
        {"command_driver_id", AT(record.command_driver_id), .type = COLUMN_DRIVER_ID},
        {"driver_id", AT(record.driver_id), .type = COLUMN_DRIVER_ID},
        {"driver_state", AT(driver_state), .type = COLUMN_TEXT},
        {"boot_id", AT(boot_id), .type = COLUMN_TEXT},
        {"pid", AT(record.process.pid), .type = COLUMN_I32},
        {"start_ticks", AT(record.process.start_ticks), .type = COLUMN_U64},
        {"worker_pid", AT(record.process.worker_pid), .type = COLUMN_I32},
        {"worker_start_ticks", AT(record.process.worker_start_ticks), .type = COLUMN_U64},
        {"kill_requests", AT(record.kill_requests), .type = COLUMN_U32},
        {"leftover_processes", AT(record.leftover_processes), .type = COLUMN_I32},
        {"received_usec", AT(record.received_usec), .type = COLUMN_U64},
        {"received_real_usec", AT(record.received_real_usec), .type = COLUMN_U64},
        {"deadline_usec", AT(record.deadline_usec), .type = COLUMN_U64},
        {"deadline_real_usec", AT(record.deadline_real_usec), .type = COLUMN_U64},
        {"killed_usec", AT(record.killed_usec), .type = COLUMN_U64},
        {"answered_usec", AT(record.answered_usec), .type = COLUMN_U64},
        {"accepted_usec", AT(record.accepted_usec), .type = COLUMN_U64},
        {"accepted_real_usec", AT(record.accepted_real_usec), .type = COLUMN_U64},
        {"ended_usec", AT(record.ended_usec), .type = COLUMN_U64},
        {"ended_real_usec", AT(record.ended_real_usec), .type = COLUMN_U64},
        {"started_real_usec", AT(started_real_usec), .type = COLUMN_U64},
        {"done_real_usec", AT(done_real_usec), .type = COLUMN_U64},
        {"app_name", AT(app_name), .type = COLUMN_TEXT},
        {"message", AT(message), .type = COLUMN_TEXT},
        {"sequence", AT(sequence), .type = COLUMN_I64},
        {"acknowledged_sequence", AT(acknowledged_sequence), .type = COLUMN_I64},
        {"report_sequence", AT(report_sequence), .type = COLUMN_I64},
        {"report_final", AT(report_final), .type = COLUMN_FLAG},
        {"operation", AT(operation), .type = COLUMN_BLOB},
        {"report", AT(report), .type = COLUMN_BLOB},
};

/* ---- fields by their offset; memcpy, since the compiler may not be told lies about types ------------------ */

static const void *field(const struct store_operation *operation, const struct column *column) {
        return (const char *)operation + column->offset;
}

static void set_field(struct store_operation *operation, const struct column *column, const void *value, size_t size) {
        memcpy((char *)operation + column->offset, value, size);
}

static const char *field_text(const struct store_operation *operation, const struct column *column) {
        const char *text;

        memcpy(&text, field(operation, column), sizeof(text));
        return text ? text : "";
}

static struct span field_span(const struct store_operation *operation, const struct column *column) {
        struct span span;

        memcpy(&span, field(operation, column), sizeof(span));
        return span;
}

static uint32_t field_u32(const struct store_operation *operation, const struct column *column) {
        uint32_t value;

        memcpy(&value, field(operation, column), sizeof(value));
        return value;
}

static int64_t field_i64(const struct store_operation *operation, const struct column *column) {
        int64_t value;

        memcpy(&value, field(operation, column), sizeof(value));
        return value;
}

static bool field_flag(const struct store_operation *operation, const struct column *column) {
        bool value;

        memcpy(&value, field(operation, column), sizeof(value));
        return value;
}

/* ---- SQL ---------------------------------------------------------------------------------------------------- */

static int append_list(struct buffer *sql, const char *format, size_t first) {
        int r = 0;

        for (size_t i = first; i < ARRAY_SIZE(columns) && r >= 0; i++) {
                if (i > first)
                        r = buffer_append_text(sql, ", ");
                for (const char *c = format; *c && r >= 0; c++) {
                        if (*c == '$')
                                r = buffer_append_text(sql, columns[i].name);
                        else
                                r = buffer_append(sql, c, 1);
                }
        }
        return r;
}

int store_row_put_sql(struct buffer *sql) {
        int r;

        /* Not INSERT OR REPLACE: that deletes and inserts, and the row would lose its place in the order. */
        if ((r = buffer_append_text(sql, "INSERT INTO operations (")) < 0 || (r = append_list(sql, "$", 0)) < 0 ||
            (r = buffer_append_text(sql, ") VALUES (")) < 0 || (r = append_list(sql, "?", 0)) < 0 ||
            (r = buffer_append_text(sql, ") ON CONFLICT (operation_id) DO UPDATE SET ")) < 0 ||
            (r = append_list(sql, "$ = excluded.$", 1)) < 0)
                return r;
        return 0;
}

int store_row_select_sql(struct buffer *sql) {
        int r;

        if ((r = buffer_append_text(sql, "SELECT ")) < 0 || (r = append_list(sql, "$", 0)) < 0 ||
            (r = buffer_append_text(sql, " FROM operations ORDER BY id")) < 0)
                return r;
        return 0;
}

/* ---- into the database -------------------------------------------------------------------------------------- */

static bool driver_id_is_sound(const char *text, size_t size) {
        return size == 0 || base_driver_id_is_valid(text, size);
}

static int check_column(const struct store_operation *operation, const struct column *column) {
        switch (column->type) {
        case COLUMN_TEXT:
                return strlen(field_text(operation, column)) > STORE_TEXT_MAX ? -EMSGSIZE : 0;
        case COLUMN_DRIVER_ID: {
                const char *text = field(operation, column);
                size_t size = strnlen(text, DRIVER_ID_MAX + 1);

                return size > DRIVER_ID_MAX || !driver_id_is_sound(text, size) ? -EINVAL : 0;
        }
        case COLUMN_BLOB: {
                struct span span = field_span(operation, column);

                return span.size > STORE_BLOB_MAX ? -EMSGSIZE : span.size > 0 && !span.data ? -EINVAL : 0;
        }
        case COLUMN_WORD:
                return field_u32(operation, column) >= column->word_count ? -EINVAL : 0;
        case COLUMN_U64:
                return field_i64(operation, column) < -1 ? -ERANGE : 0;
        case COLUMN_FLAG:
        case COLUMN_U32:
        case COLUMN_I32:
        case COLUMN_I64:
                return 0;
        }
        return -EINVAL;
}

int store_row_check(const struct store_operation *operation, const char **ret_column) {
        const char *id = operation->operation_id;

        *ret_column = columns[0].name;
        if (!id || !base_id_is_valid(id, strnlen(id, OPERATION_ID_MAX + 1), OPERATION_ID_MAX))
                return -EINVAL;
        for (size_t i = 0; i < ARRAY_SIZE(columns); i++) {
                int r = check_column(operation, &columns[i]);

                *ret_column = columns[i].name;
                if (r < 0)
                        return r;
        }
        return 0;
}

static int bind_text(sqlite3_stmt *statement, int index, const char *text) {
        return sqlite3_bind_text(statement, index, text, -1, SQLITE_STATIC);
}

static int bind_column(sqlite3_stmt *statement, int index, const struct store_operation *operation,
                       const struct column *column) {
        switch (column->type) {
        case COLUMN_TEXT:
                return bind_text(statement, index, field_text(operation, column));
        case COLUMN_DRIVER_ID:
                return bind_text(statement, index, field(operation, column));
        case COLUMN_BLOB: {
                struct span span = field_span(operation, column);

                /* a NULL pointer would be bound as NULL, which is another thing than an empty blob */
                return sqlite3_bind_blob(statement, index, span.size > 0 ? (const void *)span.data : "", (int)span.size,
                                         SQLITE_STATIC);
        }
        case COLUMN_FLAG:
                return sqlite3_bind_int64(statement, index, field_flag(operation, column));
        case COLUMN_WORD:
                return bind_text(statement, index, column->words[field_u32(operation, column)]);
        case COLUMN_U32:
                return sqlite3_bind_int64(statement, index, field_u32(operation, column));
        case COLUMN_I32:
                return sqlite3_bind_int64(statement, index, (int32_t)field_u32(operation, column));
        case COLUMN_U64:
        case COLUMN_I64:
                return sqlite3_bind_int64(statement, index, field_i64(operation, column));
        }
        return SQLITE_MISUSE;
}

int store_row_bind(sqlite3_stmt *statement, const struct store_operation *operation) {
        for (size_t i = 0; i < ARRAY_SIZE(columns); i++) {
                int code = bind_column(statement, (int)i + 1, operation, &columns[i]);

                if (code != SQLITE_OK)
                        return code;
        }
        return SQLITE_OK;
}

/* ---- out of the database ------------------------------------------------------------------------------------ */

/* NULL: the column holds no text, or one with a NUL inside. Set apart by sqlite3_errcode(): no memory. */
static const char *read_text(sqlite3_stmt *statement, int index, size_t max, size_t *ret_size) {
        const char *text;
        size_t size;

        if (sqlite3_column_type(statement, index) != SQLITE_TEXT)
                return NULL;
        text = (const char *)sqlite3_column_text(statement, index);
        size = (size_t)sqlite3_column_bytes(statement, index);
        if (!text || size > max || strlen(text) != size)
                return NULL;
        *ret_size = size;
        return text;
}

static const char *read_word(sqlite3_stmt *statement, int index, const struct column *column,
                             struct store_operation *ret) {
        size_t size;
        const char *text = read_text(statement, index, STORE_TEXT_MAX, &size);

        for (uint32_t i = 0; text && i < column->word_count; i++)
                if (strcmp(text, column->words[i]) == 0) {
                        set_field(ret, column, &i, sizeof(i));
                        return NULL;
                }
        return "not one of the words for it";
}

static const char *read_string(sqlite3_stmt *statement, int index, const struct column *column,
                               struct store_operation *ret) {
        size_t size;
        const char *text = read_text(statement, index, STORE_TEXT_MAX, &size);

        if (!text)
                return "not a text within its limit";
        if (column->type == COLUMN_TEXT) {
                set_field(ret, column, &text, sizeof(text));
                return NULL;
        }
        if (!driver_id_is_sound(text, size))
                return "not a driver id";
        set_field(ret, column, text, size + 1);
        return NULL;
}

static const char *read_blob(sqlite3_stmt *statement, int index, const struct column *column,
                             struct store_operation *ret) {
        struct span span;

        if (sqlite3_column_type(statement, index) != SQLITE_BLOB)
                return "not a blob";
        span.data = sqlite3_column_blob(statement, index);
        span.size = (size_t)sqlite3_column_bytes(statement, index);
        if (span.size > STORE_BLOB_MAX)
                return "above its limit";
        set_field(ret, column, &span, sizeof(span));
        return NULL;
}

static const char *read_number(sqlite3_stmt *statement, int index, const struct column *column, int64_t min,
                               int64_t max, struct store_operation *ret) {
        int64_t value;
        uint32_t narrow;
        bool flag;

        if (sqlite3_column_type(statement, index) != SQLITE_INTEGER)
                return "not an integer";
        value = sqlite3_column_int64(statement, index);
        if (value < min || value > max)
                return "out of range";
        narrow = (uint32_t)value;
        flag = value != 0;
        if (column->type == COLUMN_FLAG)
                set_field(ret, column, &flag, sizeof(flag));
        else if (column->type == COLUMN_U32 || column->type == COLUMN_I32)
                set_field(ret, column, &narrow, sizeof(narrow));
        else
                set_field(ret, column, &value, sizeof(value));
        return NULL;
}

/* NULL, or what is wrong with it */
static const char *read_column(sqlite3_stmt *statement, int index, const struct column *column,
                               struct store_operation *ret) {
        switch (column->type) {
        case COLUMN_TEXT:
        case COLUMN_DRIVER_ID:
                return read_string(statement, index, column, ret);
        case COLUMN_BLOB:
                return read_blob(statement, index, column, ret);
        case COLUMN_WORD:
                return read_word(statement, index, column, ret);
        case COLUMN_FLAG:
                return read_number(statement, index, column, 0, 1, ret);
        case COLUMN_U32:
                return read_number(statement, index, column, 0, UINT32_MAX, ret);
        case COLUMN_I32:
                return read_number(statement, index, column, INT32_MIN, INT32_MAX, ret);
        case COLUMN_U64:
                return read_number(statement, index, column, -1, INT64_MAX, ret);
        case COLUMN_I64:
                return read_number(statement, index, column, INT64_MIN, INT64_MAX, ret);
        }
        return "of a type that is not known";
}

int store_row_read(struct store *store, sqlite3_stmt *statement, struct store_operation *ret) {
        struct store_operation operation = {};

        for (size_t i = 0; i < ARRAY_SIZE(columns); i++) {
                const char *wrong = read_column(statement, (int)i, &columns[i], &operation);

                if (!wrong && i == 0 &&
                    !base_id_is_valid(operation.operation_id, strlen(operation.operation_id), OPERATION_ID_MAX))
                        wrong = "not an operation id";
                if (!wrong)
                        continue;
                if (sqlite3_errcode(store->db) == SQLITE_NOMEM)
                        return store_fail(store, SQLITE_NOMEM, "cannot read an operation");
                return store_set_error(store, -EBADMSG, "%s: operation %.60s: column %s is %s", store->path,
                                       operation.operation_id ? operation.operation_id : "(no id)", columns[i].name,
                                       wrong);
        }
        *ret = operation;
        return 0;
}

/* ---- copies for a turn -------------------------------------------------------------------------------------- */

size_t store_row_copy_size(const struct store_operation *operation) {
        size_t size = 0;

        for (size_t i = 0; i < ARRAY_SIZE(columns); i++) {
                if (columns[i].type == COLUMN_TEXT)
                        size += strlen(field_text(operation, &columns[i])) + 1;
                else if (columns[i].type == COLUMN_BLOB)
                        size += field_span(operation, &columns[i]).size;
        }
        return size;
}

static char *copy_text(struct store_operation *target, const struct column *column, const char *text, char *arena) {
        size_t size = strlen(text) + 1;

        memcpy(arena, text, size);
        set_field(target, column, &arena, sizeof(arena));
        return arena + size;
}

static char *copy_blob(struct store_operation *target, const struct column *column, struct span span, char *arena) {
        struct span copy = {.data = (const uint8_t *)arena, .size = span.size};

        if (span.size > 0)
                memcpy(arena, span.data, span.size);
        set_field(target, column, &copy, sizeof(copy));
        return arena + span.size;
}

void store_row_copy(struct store_operation *target, const struct store_operation *source, char *arena) {
        *target = *source;
        for (size_t i = 0; i < ARRAY_SIZE(columns); i++) {
                const struct column *column = &columns[i];

                if (column->type == COLUMN_TEXT)
                        arena = copy_text(target, column, field_text(source, column), arena);
                else if (column->type == COLUMN_BLOB)
                        arena = copy_blob(target, column, field_span(source, column), arena);
        }
}
