/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Output for programs. What the agent said is escaped first, so control characters and broken UTF-8 never get in. The
 * keys are a promise (docs/spark-cancelctl.md, and a test compares): they are added to, never renamed or removed.
 */
#include "ctl_internal.h"

/* A JSON string. What came is UTF-8 (D-Bus), and without control characters after escaping. */
void ctl_json_text(const char *text) {
        char escaped[CTL_TEXT_MAX];

        base_text_escape(escaped, sizeof(escaped), text, strlen(text));
        putchar('"');
        for (const char *at = escaped; *at; at++) {
                if (*at == '"' || *at == '\\')
                        putchar('\\');
                putchar(*at);
        }
        putchar('"');
}

static void print_value(const struct ctl_field *field) {
        if (field->type == 's')
                ctl_json_text(field->text);
        else if (field->type == 'b')
                fputs(field->number ? "true" : "false", stdout);
        else if (field->type == 't' || field->type == 'u')
                printf("%" PRIu64, field->whole);
        else
                printf("%" PRId64, field->number);
}

void ctl_json_fields(const struct ctl_object *object) {
        for (size_t i = 0; i < object->count; i++) {
                if (i > 0)
                        putchar(',');
                ctl_json_text(object->fields[i].key);
                putchar(':');
                print_value(&object->fields[i]);
        }
}

void ctl_json_object(const struct ctl_object *object) {
        putchar('{');
        ctl_json_fields(object);
        putchar('}');
}

void ctl_json_operation(const struct ctl_object *object) {
        static const struct {
                const char *key, *empty;
        } keys[] = {
                {"operation_id", "\"\""}, {"job_id", "\"\""},       {"state", "\"\""},
                {"outcome", "\"\""},      {"driver_id", "\"\""},    {"driver_pid", "0"},
                {"driver_state", "\"\""}, {"kill_requests", "0"},   {"received_real_usec", "0"},
                {"deadline_real_usec", "0"}, {"accepted_real_usec", "0"}, {"ended_real_usec", "0"},
                {"requested_by", "\"\""}, {"local", "false"},       {"observed", "false"},
                {"message", "\"\""},
        };

        putchar('{');
        ctl_json_fields(object);
        for (size_t i = 0, count = object->count; i < ARRAY_SIZE(keys); i++)
                if (!ctl_object_field(object, keys[i].key))
                        printf("%s\"%s\":%s", count++ > 0 ? "," : "", keys[i].key, keys[i].empty);
        putchar('}');
}

void ctl_json_findings(const struct ctl_finding *findings, size_t count) {
        putchar('[');
        for (size_t i = 0; i < count; i++) {
                fputs(i > 0 ? ",\n{\"name\":" : "\n{\"name\":", stdout);
                ctl_json_text(findings[i].name);
                fputs(",\"level\":", stdout);
                ctl_json_text(findings[i].level);
                fputs(",\"text\":", stdout);
                ctl_json_text(findings[i].text);
                fputs(",\"remedy\":", stdout);
                ctl_json_text(findings[i].remedy);
                putchar('}');
        }
        fputs(count > 0 ? "\n]" : "]", stdout);
}

/* ---- metrics ---------------------------------------------------------------------------------------- */

static size_t name_size(const char *text) {
        return strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_:");
}

/* labels_to_json() - {name="value",...} at `*at` as a JSON object; *at moves behind it. A value's escapes (\\, \" and
 * \n) are the same in both. */
static int labels_to_json(const char **at, struct buffer *out) {
        const char *text = *at + 1;
        int r = buffer_append_text(out, ",\"labels\":{");

        for (bool first = true; r >= 0 && *text != '}'; first = false) {
                if (!first && *text++ != ',')
                        return -EBADMSG;
                size_t name = name_size(text), value = 0;
                if (name == 0 || strncmp(text + name, "=\"", 2) != 0)
                        return -EBADMSG;
                const char *begin = text + name + 1;
                for (value = 1; begin[value] != '"'; value++) {
                        if (begin[value] == '\\')
                                value++;
                        if ((unsigned char)begin[value] < ' ')
                                return -EBADMSG;
                }
                r = buffer_append_format(out, "%s\"%.*s\":%.*s", first ? "" : ",", (int)name, text, (int)value + 1,
                                         begin);
                text = begin + value + 1;
        }
        if (r < 0)
                return r;
        *at = text + 1;
        return buffer_append_text(out, "}");
}

/* sample_to_json() - one line of Prometheus text: name{labels} number. -EBADMSG: it is not one. */
static int sample_to_json(const char *line, struct buffer *out) {
        size_t name = name_size(line);
        if (name == 0)
                return -EBADMSG;
        int r = buffer_append_format(out, "{\"name\":\"%.*s\"", (int)name, line);
        if (r < 0)
                return r;
        const char *at = line + name;
        if (*at == '{') {
                r = labels_to_json(&at, out);
                if (r < 0)
                        return r;
        }
        if (*at++ != ' ')
                return -EBADMSG;
        size_t number = strcspn(at, " \n"), plain = strspn(at, "-0123456789.e+");
        if (number == 0 || at[number] == ' ' || memchr(at, '"', number) || memchr(at, '\\', number))
                return -EBADMSG;
        bool odd = plain != number || *at == '+' || *at == '.'; /* NaN and +Inf are no JSON numbers */
        return buffer_append_format(out, ",\"value\":%s%.*s%s}", odd ? "\"" : "", (int)number, at, odd ? "\"" : "");
}

void ctl_json_metrics(const char *text) {
        bool first = true;

        fputs("{\"metrics\":[", stdout);
        for (const char *line = text; *line;) {
                _cleanup_(buffer_deinit) struct buffer sample = BUFFER_INIT(CTL_TEXT_MAX);
                if (*line != '#' && sample_to_json(line, &sample) >= 0 && buffer_text(&sample)) {
                        printf("%s%s", first ? "\n" : ",\n", buffer_text(&sample));
                        first = false;
                }
                line += strcspn(line, "\n");
                line += *line == '\n';
        }
        fputs("\n]}\n", stdout);
}
