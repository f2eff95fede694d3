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

/* label_size() - bytes of the quoted text at `text`, with its quotes; 0: it is none. The escapes that it may have (\\, \"
 * and \n) are the same in JSON, which knows no others of Prometheus's. */
static size_t label_size(const char *text) {
        size_t size = 1;

        for (; text[size] != '"'; size++) {
                const unsigned char *at = (const unsigned char *)text + size;
                if (*at < ' ' || *at == 0x7f || (at[0] == 0xc2 && at[1] < 0xa0)) /* controls: C0, DEL, C1 */
                        return 0;
                if (text[size] == '\\' && !memchr("\\\"n", text[++size], 3))
                        return 0;
        }
        return size + 1;
}

/* labels_to_json() - {name="value",...} at `*at` as a JSON object; *at moves behind it. */
static int labels_to_json(const char **at, struct buffer *out) {
        const char *text = *at + 1;
        int r = buffer_append_text(out, ",\"labels\":{");

        for (bool first = true; r >= 0 && *text != '}'; first = false) {
                if (!first && *text++ != ',')
                        return -EBADMSG;
                size_t name = name_size(text);
                if (name == 0 || strncmp(text + name, "=\"", 2) != 0)
                        return -EBADMSG;
                size_t value = label_size(text + name + 1);
                if (value == 0)
                        return -EBADMSG;
                r = buffer_append_format(out, "%s\"%.*s\":%.*s", first ? "" : ",", (int)name, text, (int)value,
                                         text + name + 1);
                text += name + 1 + value;
        }
        if (r < 0)
                return r;
        *at = text + 1;
        return buffer_append_text(out, "}");
}

/* is_json_number() - RFC 8259 section 6. NaN, +Inf, 01 and .5 are Prometheus's, and none. */
static bool is_json_number(const char *text, size_t size) {
        static const char digits[] = "0123456789";
        const char *at = text + (*text == '-');
        size_t whole = strspn(at, digits);

        if (whole == 0 || (*at == '0' && whole > 1))
                return false;
        at += whole;
        if (*at == '.') {
                size_t fraction = strspn(at + 1, digits);
                if (fraction == 0)
                        return false;
                at += 1 + fraction;
        }
        if (*at == 'e' || *at == 'E') {
                at += 1 + (at[1] == '+' || at[1] == '-');
                size_t exponent = strspn(at, digits);
                if (exponent == 0)
                        return false;
                at += exponent;
        }
        return (size_t)(at - text) == size;
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
        size_t number = strspn(at, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-.");
        if (number == 0 || (at[number] != '\n' && at[number] != '\0'))
                return -EBADMSG;
        bool odd = !is_json_number(at, number);
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
