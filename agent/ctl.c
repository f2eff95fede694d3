/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ctl: spark-cancelctl, the operator's tool on a node
 *
 * A client of the agent's local socket and nothing more: each command is one method call. It prints what it got
 * field by field without a list of fields of its own, so an older tool shows what a newer agent says.
 *
 * Exit codes, for scripts: 0 fine; 1 the answer is no (no such operation, not allowed, reload refused); 2 wrong
 * usage; 3 the agent can't be reached.
 *
 * Everything that came from the agent is escaped before it goes to a terminal.
 */
#include "bus.h"

#include <getopt.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-bus.h>

#define SOCKET_DEFAULT "/run/spark-cancel-agent/bus"
#define CALL_TIMEOUT_USEC (30 * USEC_PER_SEC)
#define TEXT_MAX 8192
#define FIELDS_MAX 64

enum exit_code {
        EXIT_FINE = 0,
        EXIT_NO = 1,
        EXIT_USAGE = 2,
        EXIT_UNREACHABLE = 3,
};

struct options {
        const char *socket;
        const char *operation_id;
        bool all, json;
};

struct command {
        const char *name;
        const char *argument; /* NULL: takes none */
        const char *help;
        bool takes_all;
        int (*run)(sd_bus *bus, const struct options *options);
};

/* ---- output --------------------------------------------------------------------------------------- */

/* print_json_text() - a JSON string. What came is UTF-8 (D-Bus), and without control characters after escaping. */
static void print_json_text(const char *text) {
        char escaped[TEXT_MAX];

        base_text_escape(escaped, sizeof(escaped), text, strlen(text));
        putchar('"');
        for (const char *at = escaped; *at; at++) {
                if (*at == '"' || *at == '\\')
                        putchar('\\');
                putchar(*at);
        }
        putchar('"');
}

static void print_text(const char *text) {
        char escaped[TEXT_MAX];
        base_text_escape(escaped, sizeof(escaped), text, strlen(text));
        fputs(escaped, stdout);
}

static bool ends_with(const char *text, const char *end) {
        size_t size = strlen(text), end_size = strlen(end);
        return size >= end_size && strcmp(text + size - end_size, end) == 0;
}

/* time_to_text() - RFC 3339 in UTC, "-" for 0. */
static void time_to_text(uint64_t usec, char *text, size_t size) {
        time_t seconds = (time_t)(usec / USEC_PER_SEC);
        struct tm broken;

        if (usec == 0 || !gmtime_r(&seconds, &broken) || strftime(text, size, "%Y-%m-%dT%H:%M:%SZ", &broken) == 0)
                (void)base_text_copy(text, size, "-");
}

static int finish_output(void) {
        if (fflush(stdout) == 0 && !ferror(stdout))
                return EXIT_FINE;
        (void)fprintf(stderr, "spark-cancelctl: can't write the output: %s\n", strerror(errno));
        return EXIT_NO;
}

/* ---- fields of a{sv} ------------------------------------------------------------------------------ */

struct field {
        const char *key; /* points into the message */
        char type;
        const char *text; /* type s */
        int64_t number;   /* i, x, b */
        uint64_t whole;   /* u, t */
};

struct object {
        struct field fields[FIELDS_MAX];
        size_t count;
};

static int read_value(sd_bus_message *message, char type, struct field *field) {
        int32_t small;
        uint32_t small_whole;
        int flag, r;

        field->type = type;
        switch (type) {
        case 's':
                return sd_bus_message_read_basic(message, 's', &field->text);
        case 'b':
                r = sd_bus_message_read_basic(message, 'b', &flag);
                field->number = r < 0 ? 0 : flag;
                return r;
        case 'i':
                r = sd_bus_message_read_basic(message, 'i', &small);
                field->number = r < 0 ? 0 : small;
                return r;
        case 'x':
                return sd_bus_message_read_basic(message, 'x', &field->number);
        case 'u':
                r = sd_bus_message_read_basic(message, 'u', &small_whole);
                field->whole = r < 0 ? 0 : small_whole;
                return r;
        case 't':
                return sd_bus_message_read_basic(message, 't', &field->whole);
        }
        return -EBADMSG;
}

/* read_entry() - one key and value. A value of a type we can't show is left out. */
static int read_entry(sd_bus_message *message, struct object *object) {
        struct field field = {0};
        const char *contents;
        char type;

        int r = sd_bus_message_read_basic(message, 's', &field.key);
        if (r < 0)
                return r;
        r = sd_bus_message_peek_type(message, &type, &contents);
        if (r < 0)
                return r;
        if (!contents || strlen(contents) != 1 || !strchr("sbixut", *contents) || object->count >= FIELDS_MAX)
                return sd_bus_message_skip(message, "v");
        char signature[] = {*contents, '\0'};
        r = sd_bus_message_enter_container(message, 'v', signature);
        if (r < 0)
                return r;
        r = read_value(message, signature[0], &field);
        if (r < 0)
                return r;
        object->fields[object->count++] = field;
        return sd_bus_message_exit_container(message);
}

/* read_object() - 1: read; 0: no further one in this array. */
static int read_object(sd_bus_message *message, struct object *object) {
        object->count = 0;
        int r = sd_bus_message_enter_container(message, 'a', "{sv}");
        if (r <= 0)
                return r;
        while ((r = sd_bus_message_enter_container(message, 'e', "sv")) > 0) {
                r = read_entry(message, object);
                if (r < 0)
                        return r;
                r = sd_bus_message_exit_container(message);
                if (r < 0)
                        return r;
        }
        if (r < 0)
                return r;
        r = sd_bus_message_exit_container(message);
        return r < 0 ? r : 1;
}

static void field_to_text(const struct field *field, char *text, size_t size) {
        switch (field->type) {
        case 's':
                base_text_escape(text, size, *field->text ? field->text : "-", *field->text ? strlen(field->text) : 1);
                return;
        case 'b':
                (void)base_text_copy(text, size, field->number ? "yes" : "no");
                return;
        case 't':
                if (ends_with(field->key, "_usec")) {
                        time_to_text(field->whole, text, size);
                        return;
                }
                (void)snprintf(text, size, "%" PRIu64, field->whole);
                return;
        case 'u':
                (void)snprintf(text, size, "%" PRIu64, field->whole);
                return;
        }
        (void)snprintf(text, size, "%" PRId64, field->number);
}

static void print_object_json(const struct object *object) {
        putchar('{');
        for (size_t i = 0; i < object->count; i++) {
                const struct field *field = &object->fields[i];
                if (i > 0)
                        putchar(',');
                print_json_text(field->key);
                putchar(':');
                if (field->type == 's')
                        print_json_text(field->text);
                else if (field->type == 'b')
                        fputs(field->number ? "true" : "false", stdout);
                else if (field->type == 't' || field->type == 'u')
                        printf("%" PRIu64, field->whole);
                else
                        printf("%" PRId64, field->number);
        }
        putchar('}');
}

/* print_object() - one "name  value" a line; received_real_usec is shown as "received". */
static void print_object(const struct object *object) {
        char text[TEXT_MAX], name[64];

        for (size_t i = 0; i < object->count; i++) {
                const struct field *field = &object->fields[i];
                (void)base_text_copy(name, sizeof(name), field->key);
                if (ends_with(name, "_real_usec"))
                        name[strlen(name) - strlen("_real_usec")] = '\0';
                for (char *at = name; *at; at++)
                        if (*at == '_')
                                *at = ' ';
                field_to_text(field, text, sizeof(text));
                print_text(name);
                printf("%*s%s\n", strlen(name) < 17 ? (int)(18 - strlen(name)) : 1, "", text);
        }
}

static const struct field *object_field(const struct object *object, const char *key) {
        for (size_t i = 0; i < object->count; i++)
                if (strcmp(object->fields[i].key, key) == 0)
                        return &object->fields[i];
        return NULL;
}

/* ---- calls ---------------------------------------------------------------------------------------- */

/* call_failed() - say why, and which exit code that is: an answer that says no, or no answer. */
static int call_failed(sd_bus *bus, int result, const sd_bus_error *error) {
        char text[TEXT_MAX];
        const char *why = error->message ? error->message : strerror(-result);

        base_text_escape(text, sizeof(text), why, strlen(why));
        (void)fprintf(stderr, "spark-cancelctl: %s\n", text);
        if (sd_bus_is_open(bus) <= 0 || !sd_bus_error_is_set(error) ||
            sd_bus_error_has_name(error, SD_BUS_ERROR_NO_REPLY) || sd_bus_error_has_name(error, SD_BUS_ERROR_TIMEOUT) ||
            sd_bus_error_has_name(error, SD_BUS_ERROR_DISCONNECTED))
                return EXIT_UNREACHABLE;
        return EXIT_NO;
}

static int answer_is_odd(int result) {
        (void)fprintf(stderr, "spark-cancelctl: the agent's answer can't be read: %s\n", strerror(-result));
        return EXIT_UNREACHABLE;
}

/* call() - 0 with the reply, else the exit code. `argument` may be NULL; `flag` is List's. */
static int call(sd_bus *bus, const char *method, const char *signature, bool flag, const char *argument,
                sd_bus_message **ret) {
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *message = NULL;

        int r = sd_bus_message_new_method_call(bus, &message, NULL, BUS_PATH, BUS_NAME, method);
        if (r >= 0 && *signature == 's')
                r = sd_bus_message_append(message, "s", argument);
        else if (r >= 0 && *signature == 'b')
                r = sd_bus_message_append(message, "b", (int)flag);
        if (r >= 0)
                r = sd_bus_call(bus, message, CALL_TIMEOUT_USEC, &error, ret);
        return r < 0 ? call_failed(bus, r, &error) : 0;
}

/* print_one() - a reply that is one a{sv}. */
static int print_one(sd_bus_message *reply, bool json) {
        struct object object;
        int r = read_object(reply, &object);
        if (r <= 0)
                return answer_is_odd(r < 0 ? r : -EBADMSG);
        if (json) {
                print_object_json(&object);
                putchar('\n');
        } else
                print_object(&object);
        return finish_output();
}

static int run_status(sd_bus *bus, const struct options *options) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        int code = call(bus, "Status", "", false, NULL, &reply);
        return code ? code : print_one(reply, options->json);
}

static int run_show(sd_bus *bus, const struct options *options) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        int code = call(bus, "Show", "s", false, options->operation_id, &reply);
        return code ? code : print_one(reply, options->json);
}

static void print_row(const struct object *object) {
        static const struct {
                const char *key;
                int width;
        } columns[] = {
                {"received_real_usec", 20}, {"operation_id", 24}, {"job_id", 24}, {"state", 10}, {"outcome", 18},
                {"driver_id", 0},
        };
        char text[TEXT_MAX];

        for (size_t i = 0; i < ARRAY_SIZE(columns); i++) {
                const struct field *field = object_field(object, columns[i].key);
                (void)base_text_copy(text, sizeof(text), "-");
                if (field)
                        field_to_text(field, text, sizeof(text));
                printf("%s%-*s", i > 0 ? "  " : "", columns[i].width, text);
        }
        putchar('\n');
}

/* print_rows() - the array of operations; *ret_count: how many. */
static int print_rows(sd_bus_message *reply, bool json, uint64_t *ret_count) {
        struct object object;
        uint64_t count = 0;

        int r = sd_bus_message_enter_container(reply, 'a', "a{sv}");
        if (r < 0)
                return r;
        while ((r = read_object(reply, &object)) > 0) {
                if (json) {
                        fputs(count > 0 ? ",\n" : "\n", stdout);
                        print_object_json(&object);
                } else {
                        if (count == 0)
                                printf("%-20s  %-24s  %-24s  %-10s  %-18s  %s\n", "RECEIVED", "OPERATION", "JOB",
                                       "STATE", "OUTCOME", "DRIVER");
                        print_row(&object);
                }
                count++;
        }
        if (r < 0)
                return r;
        *ret_count = count;
        return sd_bus_message_exit_container(reply);
}

static int run_list(sd_bus *bus, const struct options *options) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        uint64_t count = 0, total = 0;

        int code = call(bus, "List", "b", options->all, NULL, &reply);
        if (code)
                return code;
        if (options->json)
                fputs("{\"operations\":[", stdout);
        int r = print_rows(reply, options->json, &count);
        if (r >= 0)
                r = sd_bus_message_read_basic(reply, 't', &total);
        if (r < 0)
                return answer_is_odd(r);
        if (options->json)
                printf("%s],\"total\":%" PRIu64 "}\n", count > 0 ? "\n" : "", total);
        else if (total == 0)
                puts(options->all ? "No operations." : "No open operations.");
        else if (total > count)
                printf("... and %" PRIu64 " more\n", total - count);
        return finish_output();
}

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

static void print_metrics_json(const char *text) {
        bool first = true;

        fputs("{\"metrics\":[", stdout);
        for (const char *line = text; *line;) {
                _cleanup_(buffer_deinit) struct buffer sample = BUFFER_INIT(TEXT_MAX);
                if (*line != '#' && sample_to_json(line, &sample) >= 0 && buffer_text(&sample)) {
                        printf("%s%s", first ? "\n" : ",\n", buffer_text(&sample));
                        first = false;
                }
                line += strcspn(line, "\n");
                line += *line == '\n';
        }
        fputs("\n]}\n", stdout);
}

static int run_metrics(sd_bus *bus, const struct options *options) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        const char *text;

        int code = call(bus, "Metrics", "", false, NULL, &reply);
        if (code)
                return code;
        int r = sd_bus_message_read_basic(reply, 's', &text);
        if (r < 0)
                return answer_is_odd(r);
        if (options->json)
                print_metrics_json(text);
        else
                fputs(text, stdout); /* Prometheus text as it is, for a pipe */
        return finish_output();
}

static int run_reload(sd_bus *bus, const struct options *options) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        (void)options;
        return call(bus, "Reload", "", false, NULL, &reply);
}

static int run_retry(sd_bus *bus, const struct options *options) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        return call(bus, "Retry", "s", false, options->operation_id, &reply);
}

/* ---- the connection ------------------------------------------------------------------------------- */

static int connect_socket(const char *path) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};

        if (!base_text_copy(address.sun_path, sizeof(address.sun_path), path))
                return -ENAMETOOLONG;
        _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0)
                return -errno;
        if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
                return -errno;
        return TAKE_FD(fd);
}

static int connect_agent(const char *path, sd_bus **ret) {
        _cleanup_(sd_bus_close_unrefp) sd_bus *bus = NULL;
        _cleanup_close_ int fd = connect_socket(path);

        if (fd < 0)
                return fd;
        int r = sd_bus_new(&bus);
        if (r < 0)
                return r;
        r = sd_bus_set_fd(bus, fd, fd);
        if (r < 0)
                return r;
        fd = -1;
        r = sd_bus_start(bus);
        if (r < 0)
                return r;
        *ret = TAKE(bus);
        return 0;
}

/* ---- the command line ----------------------------------------------------------------------------- */

static const struct command commands[] = {
        {"status", NULL, "how the agent is", false, run_status},
        {"list", NULL, "the open operations; with --all those that have ended, too", true, run_list},
        {"show", "OPERATION", "all that is known of one operation", false, run_show},
        {"retry", "OPERATION", "send a rejected report again (privileged)", false, run_retry},
        {"reload", NULL, "read the configuration again (privileged)", false, run_reload},
        {"metrics", NULL, "the metrics as Prometheus text", false, run_metrics},
};

static int print_help(void) {
        puts("Usage: spark-cancelctl [OPTIONS] COMMAND\n\nSpeaks with the spark-cancel-agent of this "
             "node.\n\nCommands:");
        for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
                printf("  %s%s%-*s  %s\n", commands[i].name, commands[i].argument ? " " : "",
                       (int)(18 - strlen(commands[i].name) - (commands[i].argument ? 1 : 0)),
                       commands[i].argument ? commands[i].argument : "", commands[i].help);
        puts("\nOptions:\n"
             "  --all                for list: ended operations, too\n"
             "  --json               print JSON; times are microseconds since 1970\n"
             "  --socket=PATH        the agent's socket (default: " SOCKET_DEFAULT ")\n"
             "  --help, --version\n\n"
             "Exit codes: 0 fine, 1 the answer is no, 2 wrong usage, 3 the agent can't be reached.\n"
             "Privileged commands are for root, the agent's own user and group " BUS_GROUP ".");
        return finish_output();
}

static int usage(const char *what, const char *which) {
        char shown[128];
        base_text_escape(shown, sizeof(shown), which, strlen(which));
        (void)fprintf(stderr, "spark-cancelctl: %s%s (see spark-cancelctl --help)\n", what, shown);
        return EXIT_USAGE;
}

static const struct command *find_command(const char *name) {
        for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
                if (strcmp(commands[i].name, name) == 0)
                        return &commands[i];
        return NULL;
}

static int run_command(const struct command *command, const struct options *options) {
        _cleanup_(sd_bus_close_unrefp) sd_bus *bus = NULL;

        int r = connect_agent(options->socket, &bus);
        if (r < 0) {
                char path[128];
                base_text_escape(path, sizeof(path), options->socket, strlen(options->socket));
                (void)fprintf(stderr, "spark-cancelctl: %s: %s: is spark-cancel-agent running?\n", path, strerror(-r));
                return EXIT_UNREACHABLE;
        }
        return command->run(bus, options);
}

static int parse_operands(char **operands, int count, struct options *options, const struct command **ret) {
        if (count == 0)
                return usage("a command is missing", "");
        const struct command *command = find_command(operands[0]);
        if (!command)
                return usage("unknown command: ", operands[0]);
        if (command->argument && count < 2)
                return usage("an operation's id is missing after ", command->name);
        if (count > (command->argument ? 2 : 1))
                return usage("too much: ", operands[command->argument ? 2 : 1]);
        if (options->all && !command->takes_all)
                return usage("--all does not go with ", command->name);
        if (command->argument && !base_id_is_valid(operands[1], strlen(operands[1]), OPERATION_ID_MAX))
                return usage("not an operation's id: ", operands[1]);
        options->operation_id = command->argument ? operands[1] : NULL;
        *ret = command;
        return 0;
}

int main(int argc, char **argv) {
        static const struct option longs[] = {
                {"all", no_argument, NULL, 'a'},          {"json", no_argument, NULL, 'j'},
                {"socket", required_argument, NULL, 's'}, {"help", no_argument, NULL, 'h'},
                {"version", no_argument, NULL, 'V'},      {0},
        };
        struct options options = {.socket = SOCKET_DEFAULT};
        const struct command *command = NULL;
        int option;

        while ((option = getopt_long(argc, argv, "h", longs, NULL)) != -1)
                switch (option) {
                case 'a':
                        options.all = true;
                        break;
                case 'j':
                        options.json = true;
                        break;
                case 's':
                        options.socket = optarg;
                        break;
                case 'h':
                        return print_help();
                case 'V':
                        puts("spark-cancelctl " VERSION);
                        return finish_output();
                default:
                        return EXIT_USAGE; /* getopt_long(3) has said why */
                }
        int code = parse_operands(argv + optind, argc - optind, &options, &command);
        return code ? code : run_command(command, &options);
}
