/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * ctl_internal: what the parts of spark-cancelctl share: ctl.c (command line, dispatch), ctl_call.c (the agent's answers),
 * ctl_command.c (one function for each command), ctl_table.c (output for people), ctl_json.c (output for programs),
 * ctl_live.c (cancel and its progress), ctl_check.c (a preflight without an agent); nobody else includes it
 */
#include "bus.h"

#include <systemd/sd-bus.h>

#define CTL_TEXT_MAX 8192
#define CTL_FIELDS_MAX 64
#define CTL_CALL_TIMEOUT_USEC (30 * USEC_PER_SEC)
#define CTL_SOCKET_DEFAULT "/run/spark-cancel-agent/bus"
#define CTL_CONFIG_DEFAULT "/etc/spark-cancel-agent/agent.conf"
#define CTL_USER_DEFAULT "spark-cancel"

enum ctl_exit {
        CTL_FINE = 0,
        CTL_NO = 1,
        CTL_USAGE = 2,
        CTL_UNREACHABLE = 3,
};

struct ctl_options {
        const char *socket, *config, *user;
        const char *argument; /* the operation's or the job's id; NULL: the command takes none */
        bool all, json, wait;
};

/* ---- ctl_call.c: values that came from the agent --------------------------------------------------- */

struct ctl_field {
        const char *key; /* points into the message */
        char type;
        const char *text; /* type s */
        int64_t number;   /* i, x, b */
        uint64_t whole;   /* u, t */
};

struct ctl_object { /* one a{sv} */
        struct ctl_field fields[CTL_FIELDS_MAX];
        size_t count;
};

/* ctl_object_read() - 1: read; 0: no further one in this array; -errno. */
int ctl_object_read(sd_bus_message *message, struct ctl_object *object);
const struct ctl_field *ctl_object_field(const struct ctl_object *object, const char *key); /* NULL: not there */
/* The same as a value: "", 0 and false where it is not there or of another type. */
const char *ctl_object_text(const struct ctl_object *object, const char *key);
uint64_t ctl_object_number(const struct ctl_object *object, const char *key); /* b, i and x that are negative: 0 */

/* ctl_connect() - -errno. */
int ctl_connect(const char *path, sd_bus **ret);
/* ctl_call() - 0 with the reply, else the exit code, and why was said. `signature`: "", "s" with `argument`, "b" with
 * `flag`. ctl_try() - the same with no word said: -errno and `error`, which the caller frees. */
int ctl_call(sd_bus *bus, const char *method, const char *signature, bool flag, const char *argument,
             sd_bus_message **ret);
int ctl_try(sd_bus *bus, const char *method, const char *signature, bool flag, const char *argument,
            sd_bus_error *error, sd_bus_message **ret);
/* ctl_call_failed() - say why, and which exit code that is: an answer that says no, or no answer. */
int ctl_call_failed(sd_bus *bus, int result, const sd_bus_error *error);
int ctl_answer_is_odd(int result);
int ctl_unreachable(const char *path, int result);
int ctl_finish_output(void);

/* ---- ctl_table.c ------------------------------------------------------------------------------------ */

enum ctl_colour { CTL_PLAIN, CTL_GREEN, CTL_YELLOW, CTL_RED, CTL_BOLD };

/* ctl_colour() - the escape sequence that begins a colour or ends it (CTL_PLAIN); "" where output is no terminal, with
 * NO_COLOR (no-color.org) set to anything, or TERM=dumb. */
const char *ctl_colour(enum ctl_colour colour);
bool ctl_is_terminal(void); /* standard output */
void ctl_print_object(const struct ctl_object *object);
/* ctl_print_text() - escaped. ctl_field_to_text() - for people: "-", "yes", a time in RFC 3339. */
void ctl_print_text(const char *text);
void ctl_field_to_text(const struct ctl_field *field, char *text, size_t size);
void ctl_time_to_text(uint64_t usec, char *text, size_t size);

struct ctl_table; /* rows are kept until it is printed: a column is as wide as its widest cell */
struct ctl_table *ctl_table_new(const char *const *headings, size_t columns);
struct ctl_table *ctl_table_free(struct ctl_table *table);
DEFINE_CLEANUP(struct ctl_table *, ctl_table_free)
int ctl_table_add(struct ctl_table *table, const char *const *cells, enum ctl_colour colour); /* -ENOMEM */
void ctl_table_print(const struct ctl_table *table);

struct ctl_finding { /* a row of a preflight */
        const char *name, *level, *text, *remedy;
};
void ctl_print_findings(const struct ctl_finding *findings, size_t count);
/* ctl_findings_able() - is none a failure? */
bool ctl_findings_able(const struct ctl_finding *findings, size_t count);

/* ---- ctl_json.c ------------------------------------------------------------------------------------- */

void ctl_json_text(const char *text);
void ctl_json_fields(const struct ctl_object *object); /* "key":value,… without braces */
void ctl_json_object(const struct ctl_object *object);
/* ctl_json_operation() - with every key of the schema (docs/spark-cancelctl.md), those too that List leaves out. */
void ctl_json_operation(const struct ctl_object *object);
void ctl_json_findings(const struct ctl_finding *findings, size_t count); /* an array */
void ctl_json_metrics(const char *text);

/* ---- commands: each returns the exit code ------------------------------------------------------------- */

int ctl_status(sd_bus *bus, const struct ctl_options *options);
int ctl_list(sd_bus *bus, const struct ctl_options *options);
int ctl_show(sd_bus *bus, const struct ctl_options *options);
int ctl_find(sd_bus *bus, const struct ctl_options *options);
int ctl_cancel(sd_bus *bus, const struct ctl_options *options);
int ctl_retry(sd_bus *bus, const struct ctl_options *options);
int ctl_reload(sd_bus *bus, const struct ctl_options *options);
int ctl_metrics(sd_bus *bus, const struct ctl_options *options);
/* ctl_check() - by the agent; ctl_check_alone() - without one, from the configuration. */
int ctl_check(sd_bus *bus, const struct ctl_options *options);
int ctl_check_alone(const struct ctl_options *options);
/* ctl_print_check() - `by`: agent, configuration. */
int ctl_print_check(const struct ctl_finding *findings, size_t count, const char *by, bool json);
