/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The commands: each asks the agent one or two questions and prints the answer, for people or as JSON.
 */
#include "ctl_internal.h"

/* print_one() - a reply that is one a{sv}. */
static int print_one(sd_bus_message *reply, bool json, void (*print_json)(const struct ctl_object *object)) {
        struct ctl_object object;
        int r = ctl_object_read(reply, &object);

        if (r <= 0)
                return ctl_answer_is_odd(r < 0 ? r : -EBADMSG);
        if (json) {
                print_json(&object);
                putchar('\n');
        } else
                ctl_print_object(&object);
        return ctl_finish_output();
}

int ctl_show(sd_bus *bus, const struct ctl_options *options) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        int code = ctl_call(bus, "Show", "s", false, options->argument, &reply);

        return code ? code : print_one(reply, options->json, ctl_json_operation);
}

int ctl_reload(sd_bus *bus, const struct ctl_options *options) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;

        (void)options;
        return ctl_call(bus, "Reload", "", false, NULL, &reply);
}

int ctl_retry(sd_bus *bus, const struct ctl_options *options) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;

        return ctl_call(bus, "Retry", "s", false, options->argument, &reply);
}

int ctl_metrics(sd_bus *bus, const struct ctl_options *options) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        const char *text;

        int code = ctl_call(bus, "Metrics", "", false, NULL, &reply);
        if (code)
                return code;
        int r = sd_bus_message_read_basic(reply, 's', &text);
        if (r < 0)
                return ctl_answer_is_odd(r);
        if (options->json)
                ctl_json_metrics(text);
        else
                fputs(text, stdout); /* Prometheus text as it is, for a pipe */
        return ctl_finish_output();
}

/* ---- list ------------------------------------------------------------------------------------------- */

static int add_row(struct ctl_table *table, const struct ctl_object *object) {
        char received[64];
        const char *outcome = ctl_object_text(object, "outcome"), *driver = ctl_object_text(object, "driver_id"),
                   *state = ctl_object_text(object, "state");
        const char *cells[6] = {received, ctl_object_text(object, "operation_id"), ctl_object_text(object, "job_id"),
                                state, outcome, driver};
        enum ctl_colour colour = strcmp(state, "QUARANTINE") == 0 ? CTL_RED : CTL_PLAIN;

        ctl_time_to_text(ctl_object_number(object, "received_real_usec"), received, sizeof(received));
        return ctl_table_add(table, cells, colour);
}

/* print_rows() - the array of operations; *ret_count: how many. */
static int print_rows(sd_bus_message *reply, bool json, uint64_t *ret_count) {
        static const char *const headings[] = {"RECEIVED", "OPERATION", "JOB", "STATE", "OUTCOME", "DRIVER"};
        _cleanup_(ctl_table_free_pointer) struct ctl_table *table = ctl_table_new(headings, ARRAY_SIZE(headings));
        struct ctl_object object;
        uint64_t count = 0;

        if (!table)
                return -ENOMEM;
        int r = sd_bus_message_enter_container(reply, 'a', "a{sv}");
        if (r < 0)
                return r;
        while ((r = ctl_object_read(reply, &object)) > 0) {
                if (json) {
                        fputs(count > 0 ? ",\n" : "\n", stdout);
                        ctl_json_operation(&object);
                } else if ((r = add_row(table, &object)) < 0)
                        return r;
                count++;
        }
        if (r < 0)
                return r;
        if (!json && count > 0)
                ctl_table_print(table);
        *ret_count = count;
        return sd_bus_message_exit_container(reply);
}

int ctl_list(sd_bus *bus, const struct ctl_options *options) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        uint64_t count = 0, total = 0;

        int code = ctl_call(bus, "List", "b", options->all, NULL, &reply);
        if (code)
                return code;
        if (options->json)
                fputs("{\"operations\":[", stdout);
        int r = print_rows(reply, options->json, &count);
        if (r >= 0)
                r = sd_bus_message_read_basic(reply, 't', &total);
        if (r < 0)
                return ctl_answer_is_odd(r);
        if (options->json)
                printf("%s],\"total\":%" PRIu64 "}\n", count > 0 ? "\n" : "", total);
        else if (total == 0)
                puts(options->all ? "No operations." : "No open operations.");
        else if (total > count)
                printf("... and %" PRIu64 " more\n", total - count);
        return ctl_finish_output();
}

/* ---- find ------------------------------------------------------------------------------------------- */

static int print_lookalikes(sd_bus_message *reply, bool json) {
        static const char *const headings[] = {"PROCESS", "NOT THE JOB'S DRIVER, BECAUSE"};
        _cleanup_(ctl_table_free_pointer) struct ctl_table *table = ctl_table_new(headings, ARRAY_SIZE(headings));
        struct ctl_object object;
        char pid[24];
        size_t count = 0;

        if (!table)
                return -ENOMEM;
        int r = sd_bus_message_enter_container(reply, 'a', "a{sv}");
        if (r < 0)
                return r;
        for (; (r = ctl_object_read(reply, &object)) > 0; count++) {
                const char *cells[] = {pid, ctl_object_text(&object, "reason")};
                (void)snprintf(pid, sizeof(pid), "%" PRIu64, ctl_object_number(&object, "pid"));
                if (json) {
                        fputs(count > 0 ? ",\n" : "\n", stdout);
                        ctl_json_object(&object);
                } else if ((r = ctl_table_add(table, cells, CTL_PLAIN)) < 0)
                        return r;
        }
        if (r < 0)
                return r;
        if (!json && count > 0) {
                putchar('\n');
                ctl_table_print(table);
        }
        return sd_bus_message_exit_container(reply);
}

static void print_find(const struct ctl_object *object) {
        bool would_kill = ctl_object_number(object, "would_kill");

        printf("%s%s%s\n", ctl_colour(would_kill ? CTL_GREEN : CTL_YELLOW),
               !would_kill                                                   ? "A cancel would kill nothing here."
               : strcmp(ctl_object_text(object, "mode"), "observe") == 0 ? "A cancel would name this driver (observe mode):"
                                                                         : "A cancel would kill this driver:",
               ctl_colour(CTL_PLAIN));
        ctl_print_object(object);
}

int ctl_find(sd_bus *bus, const struct ctl_options *options) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        struct ctl_object object;

        int code = ctl_call(bus, "Find", "s", false, options->argument, &reply);
        if (code)
                return code;
        int r = ctl_object_read(reply, &object);
        if (r <= 0)
                return ctl_answer_is_odd(r < 0 ? r : -EBADMSG);
        bool would_kill = ctl_object_number(&object, "would_kill");
        if (options->json) {
                putchar('{');
                ctl_json_fields(&object);
                printf("%s\"lookalikes\":[", object.count > 0 ? "," : "");
        } else
                print_find(&object);
        r = print_lookalikes(reply, options->json);
        if (r < 0)
                return ctl_answer_is_odd(r);
        if (options->json)
                puts("]}");
        code = ctl_finish_output();
        return code ? code : would_kill ? CTL_FINE : CTL_NO;
}

/* ---- check and status --------------------------------------------------------------------------------- */

#define FINDINGS_MAX 64

/* read_findings() - texts point into the reply. */
static int read_findings(sd_bus_message *reply, struct ctl_finding findings[FINDINGS_MAX], size_t *ret_count) {
        struct ctl_object object;
        size_t count = 0;

        int r = sd_bus_message_enter_container(reply, 'a', "a{sv}");
        if (r < 0)
                return r;
        while ((r = ctl_object_read(reply, &object)) > 0)
                if (count < FINDINGS_MAX)
                        findings[count++] = (struct ctl_finding){
                                ctl_object_text(&object, "name"), ctl_object_text(&object, "level"),
                                ctl_object_text(&object, "text"), ctl_object_text(&object, "remedy")};
        *ret_count = count;
        return r;
}

int ctl_check(sd_bus *bus, const struct ctl_options *options) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        struct ctl_finding findings[FINDINGS_MAX];
        size_t count;

        int code = ctl_call(bus, "Check", "", false, NULL, &reply);
        if (code)
                return code;
        int r = read_findings(reply, findings, &count);
        if (r < 0)
                return ctl_answer_is_odd(r);
        return ctl_print_check(findings, count, "agent", options->json);
}

int ctl_print_check(const struct ctl_finding *findings, size_t count, const char *by, bool json) {
        bool able = ctl_findings_able(findings, count);

        if (json) {
                printf("{\"able\":%s,\"checked_by\":\"%s\",\"findings\":", able ? "true" : "false", by);
                ctl_json_findings(findings, count);
                puts("}");
        } else {
                ctl_print_findings(findings, count);
                printf("\n%s%s%s\n", ctl_colour(able ? CTL_GREEN : CTL_RED),
                       able ? "This node could cancel a job." : "This node could not cancel a job.", ctl_colour(CTL_PLAIN));
        }
        int code = ctl_finish_output();
        return code ? code : able ? CTL_FINE : CTL_NO;
}

static void print_connected(const struct ctl_object *status) {
        bool connected = ctl_object_number(status, "connected");

        printf("%sconnected%s    %s, ", ctl_colour(connected ? CTL_GREEN : CTL_RED), ctl_colour(CTL_PLAIN),
               connected ? "yes" : "no");
        ctl_print_text(ctl_object_text(status, "endpoint"));
        if (!connected && *ctl_object_text(status, "connection_error")) {
                fputs(": ", stdout);
                ctl_print_text(ctl_object_text(status, "connection_error"));
        }
        putchar('\n');
}

static void print_able(const struct ctl_finding *findings, size_t count) {
        bool able = count > 0 && ctl_findings_able(findings, count);
        size_t warnings = 0;

        printf("%sable%s         %s", ctl_colour(able ? CTL_GREEN : CTL_RED), ctl_colour(CTL_PLAIN),
               count == 0 ? "not known" : able ? "yes" : "no");
        for (size_t i = 0; i < count; i++) {
                warnings += strcmp(findings[i].level, "warning") == 0;
                if (strcmp(findings[i].level, "failure") != 0)
                        continue;
                fputs("; ", stdout);
                ctl_print_text(findings[i].name);
                fputs(": ", stdout);
                ctl_print_text(findings[i].text);
        }
        if (warnings > 0)
                printf("; %zu warning%s", warnings, warnings == 1 ? "" : "s");
        puts(able && warnings == 0 ? "" : " (see spark-cancelctl check)");
}

static void print_doing(const struct ctl_object *status) {
        uint64_t quarantined = ctl_object_number(status, "quarantined");

        printf("%sdoing%s        %" PRIu64 " open, %" PRIu64 " waiting for a driver, %s%" PRIu64 " quarantined%s, %" PRIu64
               " reports to be answered%s\n\n",
               ctl_colour(CTL_GREEN), ctl_colour(CTL_PLAIN), ctl_object_number(status, "open"),
               ctl_object_number(status, "searching"), quarantined > 0 ? ctl_colour(CTL_RED) : "", quarantined,
               quarantined > 0 ? ctl_colour(CTL_PLAIN) : "", ctl_object_number(status, "reports_waiting"),
               strcmp(ctl_object_text(status, "mode"), "observe") == 0 ? "; observe mode: kills nothing" : "");
}

static int print_status(sd_bus_message *reply, const struct ctl_finding *findings, size_t count, bool json) {
        struct ctl_object object;
        int r = ctl_object_read(reply, &object);

        if (r <= 0)
                return ctl_answer_is_odd(r < 0 ? r : -EBADMSG);
        if (json) {
                putchar('{');
                ctl_json_fields(&object);
                printf("%s\"able\":%s,\"findings\":", object.count > 0 ? "," : "",
                       count == 0 ? "null" : ctl_findings_able(findings, count) ? "true" : "false");
                ctl_json_findings(findings, count);
                puts("}");
        } else {
                print_connected(&object);
                print_able(findings, count);
                print_doing(&object);
                ctl_print_object(&object);
        }
        return ctl_finish_output();
}

/* Three questions: is it connected, is it able, what is it doing? The second takes a preflight; an agent that can't make
 * one now, or does not know how, has answered the others all the same. */
int ctl_status(sd_bus *bus, const struct ctl_options *options) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *status = NULL, *check = NULL;
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
        struct ctl_finding findings[FINDINGS_MAX];
        size_t count = 0;

        int code = ctl_call(bus, "Status", "", false, NULL, &status);
        if (code)
                return code;
        if (ctl_try(bus, "Check", "", false, NULL, &error, &check) < 0 || read_findings(check, findings, &count) < 0)
                count = 0;
        return print_status(status, findings, count, options->json);
}
