/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config: the one const table of options
 *
 * The file is read whole, bounded, and handed to libinih line by line, because inih alone would let a mistake pass
 * in silence, and here each of these is an error with its line: a key that is set twice; text behind a [section];
 * a line longer than inih's buffer (200 bytes, it would go on reading the rest as a line of its own); a NUL; a
 * comment behind a value (inih cuts `; …` but keeps `# …`, and keeps both in an indented line).
 *
 * An indented line continues the value above (inih); only lists take that. A long list on one line is cut at its
 * commas into such lines before inih sees it.
 *
 * Order of the truth: the file, then the environment systemd gives, then the table's defaults.
 */
#include "config_internal.h"

#include <fcntl.h>
#include <ini.h>
#include <sys/stat.h>

#define FILE_BYTES_MAX (256 * 1024)
#define DAY (24 * USEC_PER_HOUR)
#define OPTIONS_MAX 64

/* clang-format off */
#define FIELD(name) offsetof(struct config, name)
#define OPTION(section_, key_, kind_, field_, ...) \
        { .section = section_, .key = key_, .kind = kind_, .offset = FIELD(field_), __VA_ARGS__ }
#define TEXT(section_, key_, field_, rule_, ...) \
        OPTION(section_, key_, CONFIG_TEXT, field_, .rule = &rule_, __VA_ARGS__)
#define CREDENTIAL(section_, key_, field_, ...) OPTION(section_, key_, CONFIG_FILE, field_, __VA_ARGS__)
#define LIST(section_, key_, field_, rule_, max_, ...) \
        OPTION(section_, key_, CONFIG_LIST, field_, .rule = &rule_, .max = max_, __VA_ARGS__)
#define TIME(section_, key_, fallback_, min_, max_, ...) \
        OPTION(section_, #key_, CONFIG_TIME, key_##_usec, .fallback = fallback_, .min = min_, .max = max_, __VA_ARGS__)
#define NUMBER(section_, key_, fallback_, min_, max_, ...) \
        OPTION(section_, #key_, CONFIG_NUMBER, key_, .fallback = fallback_, .min = min_, .max = max_, __VA_ARGS__)
#define WORD(section_, key_, kind_, fallback_, ...) \
        OPTION(section_, #key_, kind_, key_, .fallback = fallback_, __VA_ARGS__)

const struct config_option config_options[] = {
        TEXT("agent", "cluster_id", cluster_id, config_rule_id, .required = true, .restart = true,
             .help = "Cluster whose cancel operations this agent serves."),
        TEXT("agent", "node", node, config_rule_node, .restart = true, .fallback_note = "the host name",
             .help = "Name of this node towards the control plane; unique in the cluster."),
        TEXT("agent", "state_directory", state_directory, config_rule_path, .restart = true,
             .fallback_note = "$STATE_DIRECTORY, else /var/lib/" CONFIG_NAME,
             .help = "Where the database agent.db is kept."),
        TEXT("agent", "runtime_directory", runtime_directory, config_rule_socket_directory, .restart = true,
             .fallback_note = "$RUNTIME_DIRECTORY, else /run/" CONFIG_NAME,
             .help = "Where the local socket bus is made."),
        TEXT("agent", "metrics_file", metrics_file, config_rule_path,
             .help = "Prometheus text for node_exporter's textfile collector."),
        WORD("agent", log_level, CONFIG_LEVEL, "info", .help = "Least important kind of event that is logged."),

        TEXT("control-plane", "endpoint", endpoint, config_rule_url, .required = true, .restart = true,
             .help = "Address of the control plane."),
        CREDENTIAL("control-plane", "ca_file", ca_file, .restart = true, .fallback_note = "the system's CAs",
             .help = "CAs that may have signed the control plane's certificate (PEM)."),
        CREDENTIAL("control-plane", "certificate_file", certificate_file, .restart = true,
             .help = "This node's certificate (PEM, with chain); together with private_key_file."),
        CREDENTIAL("control-plane", "private_key_file", private_key_file, .restart = true,
             .help = "Private key of certificate_file (PEM)."),
        TEXT("control-plane", "server_name", server_name, config_rule_host, .restart = true,
             .fallback_note = "the host of endpoint", .help = "Name that the control plane's certificate must bear."),
        CREDENTIAL("control-plane", "token_file", token_file, .restart = true,
             .help = "File with the bearer token; not together with token_url."),
        TEXT("control-plane", "token_url", token_url, config_rule_token_url, .restart = true,
             .help = "Metadata service that gives bearer tokens; not together with token_file."),
        TIME("control-plane", connect_timeout, "10s", 100 * USEC_PER_MSEC, 5 * USEC_PER_MINUTE,
             .help = "Limit of one connection attempt: name, TCP, TLS and HTTP/2 together."),
        TIME("control-plane", report_timeout, "10s", 100 * USEC_PER_MSEC, 5 * USEC_PER_MINUTE,
             .help = "Limit of one Report call."),
        TIME("control-plane", reconnect_min, "200ms", 10 * USEC_PER_MSEC, 5 * USEC_PER_MINUTE,
             .help = "First pause before a new connection; doubles, with jitter."),
        TIME("control-plane", reconnect_max, "30s", 10 * USEC_PER_MSEC, USEC_PER_HOUR,
             .help = "Longest pause before a new connection; not below reconnect_min."),

        LIST("spark", "masters", masters, config_rule_url, 16, .required = true,
             .help = "REST submission servers of all Spark masters, standby ones too."),
        TEXT("spark", "work_directory", work_directory, config_rule_path, .fallback = "/opt/spark/work",
             .restart = true,
             .help = "The Spark Worker's work directory."),
        LIST("spark", "worker_hosts", worker_hosts, config_rule_host, CONFIG_LIST_MAX,
             .fallback_note = "this node's names and addresses",
             .help = "Names and addresses under which Spark knows this node's Worker."),
        TIME("spark", worker_terminate_timeout, "10s", 10 * USEC_PER_MSEC, USEC_PER_HOUR,
             .help = "The Worker's spark.worker.driverTerminateTimeout."),
        TIME("spark", worker_heartbeat, "15s", 0, USEC_PER_HOUR,
             .help = "The Worker's heartbeat interval: the master's spark.worker.timeout / 4."),
        TEXT("spark", "job_id_property", job_id_property, config_rule_property, .fallback = "spark.yandex.job.id",
             .restart = true, .help = "Java system property that carries the job id on a driver's command line."),
        TEXT("spark", "driver_user", driver_user, config_rule_user, .restart = true,
             .fallback_note = "the owner of work_directory", .help = "User that drivers run as."),
        TIME("spark", request_timeout, "10s", 100 * USEC_PER_MSEC, 5 * USEC_PER_MINUTE,
             .help = "Limit of one request to one master."),
        CREDENTIAL("spark", "token_file", spark_token_file, .restart = true,
             .help = "File with a bearer token for the masters (JWSFilter)."),
        CREDENTIAL("spark", "ca_file", spark_ca_file, .fallback_note = "the system's CAs",
             .help = "CAs for https:// masters (PEM)."),
        CREDENTIAL("spark", "certificate_file", spark_certificate_file,
             .help = "Client certificate for https:// masters (PEM); together with private_key_file."),
        CREDENTIAL("spark", "private_key_file", spark_private_key_file,
             .help = "Private key of certificate_file (PEM)."),

        OPTION("cancel", "mode", CONFIG_MODE, observe, .fallback = "act", .restart = true,
               .help = "act, or observe: find, log and show what a cancel would kill; kill nothing, report no end."),
        TIME("cancel", default_deadline, "15min", USEC_PER_SEC, 7 * DAY,
             .help = "Time for a cancel whose command names no deadline."),
        TIME("cancel", kill_retry, "25s", 100 * USEC_PER_MSEC, USEC_PER_HOUR,
             .help = "When to ask Spark again for a driver that lives on; more than 2 x worker_terminate_timeout."),
        NUMBER("cancel", kills_per_worker, "1", 1, 64, .help = "Kill requests outstanding at one Worker."),
        WORD("cancel", escalation, CONFIG_ESCALATION, "none",
             .help = "Signals the agent may send itself when Spark does not end a driver: none, term, kill."),
        TIME("cancel", escalate_after, "60s", 0, DAY, .help = "From Spark's first answer to our own SIGTERM."),
        TIME("cancel", force_after, "30s", 0, DAY, .help = "From our SIGTERM to our SIGKILL."),
        TIME("cancel", relaunch_window, "75s", 0, USEC_PER_HOUR,
             .help = "How long a supervised driver is watched for its return."),
        WORD("cancel", queued_drivers, CONFIG_BOOL, "no",
             .help = "Answer from Spark's records for drivers that run nowhere (SUBMITTED); on one node."),
        NUMBER("cancel", max_open, "100000", 1, 10000000,
               .help = "Open operations beyond which no further command is read."),
        TIME("cancel", retention, "7d", USEC_PER_HOUR, 365 * DAY, .help = "How long ended operations are remembered."),
        /* Not below what the control plane may have open and so send again (docs/contract.md: 50,000 of a cluster): one
         * that is forgotten here and open there would be acted on a second time. */
        NUMBER("cancel", retention_max, "200000", 50000, 10000000, .help = "How many ended operations are remembered."),
};
/* clang-format on */

const size_t config_option_count = ARRAY_SIZE(config_options);
_Static_assert(ARRAY_SIZE(config_options) <= OPTIONS_MAX, "enlarge OPTIONS_MAX");

/* ---- errors --------------------------------------------------------------------------------------- */

struct loader {
        struct config *config;
        struct buffer text; /* the whole file */
        size_t at;          /* in `text` */
        bool rest;          /* `at` is within a line that was cut at a comma */
        bool indented;      /* the line that was read last continues a value */
        unsigned line, splits;
        unsigned lines[OPTIONS_MAX]; /* where each option is set; 0: not in the file */
        const struct config_option *last;
        char *error;
        int result;
};

static size_t option_index(const struct config_option *option) {
        return (size_t)(option - config_options);
}

/* loader_fail() - keep the first error: FILE[:LINE]: what. */
static int __attribute__((format(printf, 4, 5)))
loader_fail(struct loader *loader, int result, unsigned line, const char *format, ...) {
        char what[CONFIG_ERROR_MAX], path[200], number[16] = "";
        va_list arguments;

        if (loader->result < 0)
                return loader->result;
        loader->result = result;
        va_start(arguments, format);
        if (vsnprintf(what, sizeof(what), format, arguments) < 0)
                what[0] = '\0';
        va_end(arguments);
        base_text_escape(path, sizeof(path), loader->config->path, strlen(loader->config->path));
        if (line > 0)
                (void)snprintf(number, sizeof(number), ":%u", line);
        if (snprintf(loader->error, CONFIG_ERROR_MAX, "%s%s: %s", path, number, what) < 0)
                loader->error[0] = '\0';
        return result;
}

/* fail_option() - an error of an option as a whole, at the line that sets it. */
static int fail_option(struct loader *loader, const char *section, const char *key, const char *what) {
        for (size_t i = 0; i < config_option_count; i++)
                if (strcmp(config_options[i].section, section) == 0 && strcmp(config_options[i].key, key) == 0) {
                        unsigned line = loader->lines[i];
                        if (line == 0)
                                return loader_fail(loader, -EINVAL, 0, "[%s] %s: %s", section, key, what);
                        return loader_fail(loader, -EINVAL, line, "%s: %s", key, what);
                }
        return loader_fail(loader, -EINVAL, 0, "%s", what);
}

/* ---- lines ---------------------------------------------------------------------------------------- */

static int read_whole(const char *path, struct buffer *text) {
        char bytes[4096];
        ssize_t size;

        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
        if (fd < 0)
                return -errno;
        while ((size = read(fd, bytes, sizeof(bytes))) != 0) {
                if (size < 0 && errno == EINTR)
                        continue;
                if (size < 0)
                        return -errno;
                int r = buffer_append(text, bytes, (size_t)size);
                if (r < 0)
                        return r;
        }
        return 0;
}

static const char *skip_blanks(const char *text) {
        return text + strspn(text, " \t\r\v\f\n");
}

static bool is_comment_or_empty(const char *text) {
        return *text == '\0' || *text == '#' || *text == ';';
}

/* check_form() - what inih would let pass, or report without saying what. `line` has no newline. */
static int check_form(struct loader *loader, const char *line) {
        const char *text = skip_blanks(line);

        loader->indented = text > line;
        if (is_comment_or_empty(text))
                return 0;
        if (*text == '[') {
                const char *end = strchr(text, ']');
                if (!end)
                        return loader_fail(loader, -EINVAL, loader->line, "a section ends with ']'");
                if (!is_comment_or_empty(skip_blanks(end + 1)))
                        return loader_fail(loader, -EINVAL, loader->line, "text behind the [section]");
                return 0;
        }
        if (!loader->indented && !strpbrk(text, "=:"))
                return loader_fail(loader, -EINVAL, loader->line, "neither [section] nor key = value");
        return 0;
}

/* cut_at_comma() - bytes of `line` up to and with the last comma that leaves it within `room`; 0: none. */
static size_t cut_at_comma(const char *line, size_t size, size_t room) {
        size_t cut = base_min_u64(size, room);
        while (cut > 0 && line[cut - 1] != ',')
                cut--;
        return cut;
}

/* next_line() - the bytes of the next line (or of the rest of one), without newline, and the line's form checked. */
static int next_line(struct loader *loader, const char **ret, size_t *ret_size) {
        const char *begin = (const char *)loader->text.data + loader->at;
        const char *newline = memchr(begin, '\n', loader->text.size - loader->at);
        size_t size = newline ? (size_t)(newline - begin) : loader->text.size - loader->at;

        if (loader->rest) {
                loader->rest = false;
                loader->indented = true;
                loader->splits++;
        } else {
                loader->line++;
                if (memchr(begin, '\0', size))
                        return loader_fail(loader, -EINVAL, loader->line, "a NUL byte");
                _cleanup_free_ char *line = strndup(begin, size);
                if (!line)
                        return loader_fail(loader, -ENOMEM, 0, "out of memory");
                int r = check_form(loader, line);
                if (r < 0)
                        return r;
                if (is_comment_or_empty(skip_blanks(line))) {
                        *ret_size = 0; /* inih need not see it, however long it is */
                        *ret = begin;
                        loader->at += size + (newline ? 1 : 0);
                        return 0;
                }
        }
        loader->at += size + (newline ? 1 : 0);
        *ret = begin;
        *ret_size = size;
        return 0;
}

/* read_line() - inih's reader: fgets(3) on the text in memory. NULL ends the parsing, also after an error. */
static char *read_line(char *target, int target_size, void *stream) {
        struct loader *loader = stream;
        const char *line = "";
        size_t size = 0, used = 0;

        if (loader->result < 0 || loader->at >= loader->text.size)
                return NULL;
        bool rest = loader->rest;
        if (next_line(loader, &line, &size) < 0)
                return NULL;
        size_t room = (size_t)target_size - 3; /* a blank, a newline, a NUL */
        if (size > room) {
                size_t cut = cut_at_comma(line, size, room);
                if (cut == 0) {
                        (void)loader_fail(loader, -EINVAL, loader->line,
                                          "longer than %zu characters; a list may go on in an indented line", room);
                        return NULL;
                }
                loader->at = (size_t)((const uint8_t *)line - loader->text.data) + cut;
                loader->rest = true;
                size = cut;
        }
        if (rest)
                target[used++] = ' ';
        memcpy(target + used, line, size);
        used += size;
        target[used++] = '\n';
        target[used] = '\0';
        return target;
}

/* ---- keys ----------------------------------------------------------------------------------------- */

static const struct config_option *find_option(const char *section, const char *key) {
        for (size_t i = 0; i < config_option_count; i++)
                if (strcmp(config_options[i].section, section) == 0 && strcmp(config_options[i].key, key) == 0)
                        return &config_options[i];
        return NULL;
}

static bool section_exists(const char *section) {
        for (size_t i = 0; i < config_option_count; i++)
                if (strcmp(config_options[i].section, section) == 0)
                        return true;
        return false;
}

static int fail_unknown(struct loader *loader, const char *section, const char *key) {
        char shown_section[64], shown_key[64];

        base_text_escape(shown_section, sizeof(shown_section), section, strlen(section));
        base_text_escape(shown_key, sizeof(shown_key), key, strlen(key));
        if (!*section)
                return loader_fail(loader, -EINVAL, loader->line, "%s: stands before the first [section]", shown_key);
        if (!section_exists(section))
                return loader_fail(loader, -EINVAL, loader->line,
                                   "%s: unknown section [%s] (allowed: agent, control-plane, spark, cancel)", shown_key,
                                   shown_section);
        for (size_t i = 0; i < config_option_count; i++)
                if (strcmp(config_options[i].key, key) == 0)
                        return loader_fail(loader, -EINVAL, loader->line, "%s: belongs into section [%s], not [%s]",
                                           shown_key, config_options[i].section, shown_section);
        return loader_fail(loader, -EINVAL, loader->line, "%s: unknown key in section [%s]", shown_key, shown_section);
}

/* has_late_comment() - a blank and a comment sign within a value: the writer meant a comment. */
static bool has_late_comment(const char *value) {
        for (const char *at = value; (at = strpbrk(at, "#;")); at++)
                if (at == value || at[-1] == ' ' || at[-1] == '\t')
                        return true;
        return false;
}

static int set_option(struct loader *loader, const struct config_option *option, const char *value) {
        unsigned *line = &loader->lines[option_index(option)];
        char what[CONFIG_ERROR_MAX] = "out of memory";
        bool goes_on = *line > 0 && loader->indented && loader->last == option;

        if (goes_on && option->kind != CONFIG_LIST)
                return loader_fail(loader, -EINVAL, loader->line,
                                   "%s: an indented line continues the value above, and this key takes one line",
                                   option->key);
        if (!goes_on && *line > 0)
                return loader_fail(loader, -EINVAL, loader->line, "%s: is set in line %u already", option->key, *line);
        if (has_late_comment(value))
                return loader_fail(loader, -EINVAL, loader->line, "%s: a comment stands on a line of its own",
                                   option->key);
        loader->last = option;
        if (*line == 0)
                *line = loader->line;
        int r = config_value_parse(option, value, loader->config, what);
        if (r < 0)
                return loader_fail(loader, r, loader->line, "%s: %s", option->key, what);
        return 0;
}

static int on_key(void *userdata, const char *section, const char *key, const char *value) {
        struct loader *loader = userdata;
        const struct config_option *option = find_option(section, key);

        if (loader->result < 0)
                return 0; /* inih goes on behind an error; the first one counts */
        if (!option)
                return fail_unknown(loader, section, key) >= 0;
        return set_option(loader, option, value) >= 0;
}

static int load_file(struct loader *loader) {
        int r = read_whole(loader->config->path, &loader->text);
        if (r == -ENOBUFS)
                return loader_fail(loader, -EINVAL, 0, "is larger than %d bytes", FILE_BYTES_MAX);
        if (r < 0)
                return loader_fail(loader, r, 0, "can't be read: %s", strerror(-r));
        if (loader->text.size >= 3 && memcmp(loader->text.data, "\xef\xbb\xbf", 3) == 0)
                loader->at = 3; /* UTF-8 byte order mark */
        r = ini_parse_stream(read_line, loader, on_key, loader);
        if (loader->result < 0)
                return loader->result;
        if (r < 0)
                return loader_fail(loader, -ENOMEM, 0, "out of memory");
        if (r > 0)
                return loader_fail(loader, -EINVAL, (unsigned)r - loader->splits, "neither [section] nor key = value");
        return 0;
}

/* ---- defaults ------------------------------------------------------------------------------------- */

/* set_directory() - $variable (the first of a colon-separated list, systemd.exec(5)), else `fallback`. */
static int set_directory(struct loader *loader, const char *key, const char *variable, const char *fallback) {
        const char *value = getenv(variable);
        char what[CONFIG_ERROR_MAX] = "out of memory";

        const struct config_option *option = find_option("agent", key);
        if (!option || config_value_is_set(option, loader->config))
                return 0;
        _cleanup_free_ char *first = value && *value ? strndup(value, strcspn(value, ":")) : strdup(fallback);
        if (!first)
                return loader_fail(loader, -ENOMEM, 0, "out of memory");
        int r = config_value_parse(option, first, loader->config, what);
        if (r < 0)
                return loader_fail(loader, r, 0, "[agent] %s: $%s: %s", key, variable, what);
        return 0;
}

static int set_machine_defaults(struct loader *loader) {
        struct config *config = loader->config;

        int r = set_directory(loader, "state_directory", "STATE_DIRECTORY", "/var/lib/" CONFIG_NAME);
        if (r < 0)
                return r;
        r = set_directory(loader, "runtime_directory", "RUNTIME_DIRECTORY", "/run/" CONFIG_NAME);
        if (r < 0)
                return r;
        if (!config->node) {
                r = config_host_name(&config->node);
                if (r < 0)
                        return loader_fail(loader, r, 0, "[agent] node: the host name can't be read: %s", strerror(-r));
                if (!config_rule_node.check(config->node))
                        return loader_fail(loader, -EINVAL, 0,
                                           "[agent] node: the host name is no node name (allowed: %s)",
                                           config_rule_node.allowed);
        }
        if (config->worker_hosts.count == 0) {
                bool loopback = false;
                for (size_t i = 0; i < config->masters.count; i++)
                        loopback |= config_url_is_loopback(config->masters.items[i]);
                r = config_host_list(&config->worker_hosts, loopback);
                if (r < 0)
                        return loader_fail(loader, r, 0,
                                           "[spark] worker_hosts: this node's addresses can't be read: %s",
                                           strerror(-r));
        }
        return 0;
}

static int set_defaults(struct loader *loader) {
        char what[CONFIG_ERROR_MAX] = "out of memory";

        for (size_t i = 0; i < config_option_count; i++) {
                const struct config_option *option = &config_options[i];
                if (loader->lines[i] > 0 || !option->fallback)
                        continue;
                int r = config_value_parse(option, option->fallback, loader->config, what);
                if (r < 0)
                        return loader_fail(loader, r, 0, "[%s] %s: %s", option->section, option->key, what);
        }
        return set_machine_defaults(loader);
}

/* ---- checks of the whole -------------------------------------------------------------------------- */

static int check_required(struct loader *loader) {
        char allowed[160];

        for (size_t i = 0; i < config_option_count; i++) {
                const struct config_option *option = &config_options[i];
                if (!option->required || config_value_is_set(option, loader->config))
                        continue;
                config_value_allowed(option, allowed, sizeof(allowed));
                return loader_fail(loader, -EINVAL, 0, "[%s] %s: is missing (allowed: %s)", option->section,
                                   option->key, allowed);
        }
        return 0;
}

static int check_pair(struct loader *loader, const char *section, const char *certificate, const char *private_key) {
        if (certificate && !private_key)
                return fail_option(loader, section, "certificate_file", "needs private_key_file beside it");
        if (private_key && !certificate)
                return fail_option(loader, section, "private_key_file", "needs certificate_file beside it");
        return 0;
}

static int check_control_plane(struct loader *loader) {
        const struct config *config = loader->config;

        int r = check_pair(loader, "control-plane", config->certificate_file, config->private_key_file);
        if (r < 0)
                return r;
        if (config->token_file && config->token_url)
                return fail_option(loader, "control-plane", "token_url", "excludes token_file; set one of the two");
        if ((config->token_file || config->token_url) && config_url_is_cleartext_beyond_loopback(config->endpoint))
                return fail_option(loader, "control-plane", config->token_file ? "token_file" : "token_url",
                                   "would send the token in cleartext to endpoint (allowed: an https:// endpoint, or "
                                   "http:// to a loopback address)");
        if (config->reconnect_max_usec < config->reconnect_min_usec)
                return fail_option(loader, "control-plane", "reconnect_max", "must not be below reconnect_min");
        return 0;
}

static int check_spark(struct loader *loader) {
        struct config *config = loader->config;
        char what[CONFIG_ERROR_MAX];

        int r = check_pair(loader, "spark", config->spark_certificate_file, config->spark_private_key_file);
        if (r < 0)
                return r;
        config->driver_uid = -1;
        if (!config->driver_user)
                return 0;
        r = config_host_uid(config->driver_user, &config->driver_uid);
        if (r == -ENOENT)
                (void)snprintf(what, sizeof(what), "there is no user '%s' (allowed: a user's name or number)",
                               config->driver_user);
        else if (r < 0)
                (void)snprintf(what, sizeof(what), "user '%s' can't be looked up: %s", config->driver_user,
                               strerror(-r));
        return r < 0 ? fail_option(loader, "spark", "driver_user", what) : 0;
}

/* expected_uid() - whom we would have to signal: -1 while nobody can tell. */
static int64_t expected_uid(const struct config *config) {
        struct stat status;
        if (config->driver_uid >= 0)
                return config->driver_uid;
        return stat(config->work_directory, &status) == 0 ? (int64_t)status.st_uid : -1;
}

static int check_cancel(struct loader *loader) {
        const struct config *config = loader->config;

        if (config->kill_retry_usec <= 2 * config->worker_terminate_timeout_usec)
                return fail_option(
                        loader, "cancel", "kill_retry",
                        "must be more than 2 x worker_terminate_timeout: until then the Worker is still at the "
                        "first kill");
        if (config->escalation == CANCEL_ESCALATION_NONE || config_host_can_signal(expected_uid(config)))
                return 0;
        if (expected_uid(config) < 0)
                return fail_option(
                        loader, "cancel", "escalation",
                        "work_directory is not there yet, so nobody knows whom to signal: set driver_user, or "
                        "give the agent CAP_KILL (allowed without: none)");
        return fail_option(loader, "cancel", "escalation",
                           "this process may not signal the drivers' user: run it as that user or give it CAP_KILL, "
                           "by a drop-in as in examples/escalation-*.conf (allowed without: none)");
}

static int check_whole(struct loader *loader) {
        int r = check_required(loader);
        if (r >= 0)
                r = check_control_plane(loader);
        if (r >= 0)
                r = check_spark(loader);
        if (r >= 0)
                r = check_cancel(loader);
        return r;
}

/* ---- the object ----------------------------------------------------------------------------------- */

int config_load(const char *path, struct config **ret, char *error) {
        _cleanup_(config_free_pointer) struct config *config = calloc(1, sizeof(*config));
        struct loader loader = {.config = config, .text = BUFFER_INIT(FILE_BYTES_MAX), .error = error};

        error[0] = '\0';
        if (config)
                config->path = strdup(path);
        if (!config || !config->path) {
                (void)base_text_copy(error, CONFIG_ERROR_MAX, "out of memory");
                return -ENOMEM;
        }
        int r = load_file(&loader);
        if (r >= 0)
                r = set_defaults(&loader);
        if (r >= 0)
                r = check_whole(&loader);
        buffer_deinit(&loader.text);
        if (r < 0)
                return r;
        *ret = TAKE(config);
        return 0;
}

struct config *config_free(struct config *config) {
        if (!config)
                return NULL;
        for (size_t i = 0; i < config_option_count; i++)
                config_value_free(&config_options[i], config);
        free(config->path);
        free(config);
        return NULL;
}

static int print_option(const struct config_option *option, const struct config *config, struct buffer *out) {
        if (!config_value_is_set(option, config))
                return buffer_append_format(out, "# %s: %s\n", option->key,
                                            option->fallback_note ? option->fallback_note : "not set");
        int r = buffer_append_format(out, "%s = ", option->key);
        if (r < 0)
                return r;
        r = config_value_print(option, config, out);
        if (r < 0)
                return r;
        return buffer_append_text(out, "\n");
}

int config_print(const struct config *config, struct buffer *out) {
        const char *section = "";

        for (size_t i = 0; i < config_option_count; i++) {
                const struct config_option *option = &config_options[i];
                if (strcmp(section, option->section) != 0) {
                        int r = buffer_append_format(out, "%s[%s]\n", *section ? "\n" : "", option->section);
                        if (r < 0)
                                return r;
                        section = option->section;
                }
                int r = print_option(option, config, out);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* value_differs() - compared as text: one way for all kinds. Out of memory counts as "differs". */
static bool value_differs(const struct config_option *option, const struct config *one, const struct config *other) {
        _cleanup_(buffer_deinit) struct buffer a = BUFFER_INIT(FILE_BYTES_MAX), b = BUFFER_INIT(FILE_BYTES_MAX);

        if (config_value_print(option, one, &a) < 0 || config_value_print(option, other, &b) < 0)
                return true;
        return a.size != b.size || (a.size > 0 && memcmp(a.data, b.data, a.size) != 0);
}

const char *config_reload_conflict(const struct config *running, const struct config *fresh) {
        for (size_t i = 0; i < config_option_count; i++) {
                const struct config_option *option = &config_options[i];
                if (option->restart && value_differs(option, running, fresh))
                        return option->key;
        }
        return NULL;
}
