/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config_value: one option's text ↔ its field in struct config
 *
 * Parsers are strict: what is not fully understood is refused with what would be allowed, because a guess here
 * decides later which process is killed and when. Printing gives text that the parser takes back unchanged.
 */
#include "config_internal.h"

#include <arpa/inet.h>

#define SHOWN_MAX 64 /* of a refused value */
#define URL_MAX 1024
#define HOST_MAX 253

/* ---- characters ----------------------------------------------------------------------------------- */

static bool byte_is_alnum(char byte) {
        return (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') || (byte >= '0' && byte <= '9');
}

static bool text_consists_of(const char *text, size_t max, const char *others) {
        size_t size = strlen(text);
        if (size == 0 || size > max)
                return false;
        for (size_t i = 0; i < size; i++)
                if (!byte_is_alnum(text[i]) && !strchr(others, text[i]))
                        return false;
        return true;
}

/* ---- rules ---------------------------------------------------------------------------------------- */

static bool check_id(const char *text) {
        return base_id_is_valid(text, strlen(text), CLUSTER_ID_MAX);
}

static bool check_node(const char *text) {
        return base_id_is_valid(text, strlen(text), NODE_NAME_MAX);
}

static bool check_path(const char *text) {
        size_t size = strlen(text);
        if (*text != '/' || size >= PATH_MAX - 32) /* room for what we hang below */
                return false;
        for (size_t i = 0; i < size; i++)
                if ((unsigned char)text[i] < ' ' || text[i] == 0x7f)
                        return false;
        return true;
}

/* The socket's path must fit into sun_path, 108 bytes with "/bus" and the NUL. */
static bool check_socket_directory(const char *text) {
        return check_path(text) && strlen(text) <= 100;
}

static bool check_host_name(const char *text) {
        return text_consists_of(text, HOST_MAX, "-._") && *text != '-' && *text != '.';
}

static bool check_host(const char *text) {
        struct in6_addr address;
        return check_host_name(text) || inet_pton(AF_INET6, text, &address) == 1;
}

/* url_split() - scheme://host[:port][/path] into host (without brackets) and what follows it. */
static bool url_split(const char *url, bool *ret_tls, char host[HOST_MAX + 1], const char **ret_rest) {
        const char *tls = base_text_starts_with(url, "https://"),
                   *at = tls ? tls : base_text_starts_with(url, "http://");
        if (!at || strlen(url) > URL_MAX)
                return false;
        bool bracket = *at == '[';
        if (bracket)
                at++;
        size_t size = strcspn(at, bracket ? "]" : ":/");
        if (size == 0 || size > HOST_MAX || (bracket && at[size] != ']'))
                return false;
        memcpy(host, at, size);
        host[size] = '\0';
        struct in6_addr address;
        if (bracket ? inet_pton(AF_INET6, host, &address) != 1 : !check_host_name(host))
                return false;
        *ret_tls = tls;
        *ret_rest = at + size + (bracket ? 1 : 0);
        return true;
}

static bool check_port(const char *text, size_t size) {
        char digits[6];
        uint64_t port;
        if (size == 0 || size >= sizeof(digits))
                return false;
        memcpy(digits, text, size);
        digits[size] = '\0';
        return base_parse_u64(digits, 1, 65535, &port) == 0;
}

static bool check_url(const char *text) {
        char host[HOST_MAX + 1];
        const char *rest;
        bool tls;
        return url_split(text, &tls, host, &rest) && *rest == ':' && check_port(rest + 1, strlen(rest + 1));
}

static bool check_token_url(const char *text) {
        char host[HOST_MAX + 1];
        const char *rest;
        bool tls;
        if (!url_split(text, &tls, host, &rest))
                return false;
        if (*rest == ':') {
                size_t size = strcspn(rest + 1, "/");
                if (!check_port(rest + 1, size))
                        return false;
                rest += 1 + size;
        }
        return *rest == '\0' || (*rest == '/' && base_id_is_valid(rest, strlen(rest), URL_MAX));
}

/* host_is_loopback() - localhost, 127/8 or ::1; a name that is none of these may lead anywhere. */
static bool host_is_loopback(const char *host) {
        struct in_addr four;
        struct in6_addr six;

        if (strcasecmp(host, "localhost") == 0)
                return true;
        if (inet_pton(AF_INET, host, &four) == 1)
                return ntohl(four.s_addr) >> 24 == 127;
        return inet_pton(AF_INET6, host, &six) == 1 && IN6_IS_ADDR_LOOPBACK(&six);
}

bool config_url_is_cleartext_beyond_loopback(const char *url) {
        char host[HOST_MAX + 1];
        const char *rest;
        bool tls;

        return !url_split(url, &tls, host, &rest) || (!tls && !host_is_loopback(host));
}

bool config_url_is_loopback(const char *url) {
        char host[HOST_MAX + 1];
        const char *rest;
        bool tls;

        return url_split(url, &tls, host, &rest) && host_is_loopback(host);
}

static bool check_property(const char *text) {
        return text_consists_of(text, 128, "-._");
}

static bool check_user(const char *text) {
        return text_consists_of(text, 255, "-._$@") && *text != '-';
}

const struct config_rule config_rule_id = {check_id, "an id", "1 to 50 printable ASCII characters without space"};
const struct config_rule config_rule_node = {check_node, "a node name",
                                             "1 to 255 printable ASCII characters without space"};
const struct config_rule config_rule_path = {check_path, "an absolute path", "/path"};
const struct config_rule config_rule_socket_directory = {check_socket_directory, "an absolute path",
                                                         "/path of at most 100 characters"};
const struct config_rule config_rule_url = {check_url, "a server's address",
                                            "https://host:port or http://host:port, nothing behind the port"};
const struct config_rule config_rule_token_url = {check_token_url, "a URL", "http(s)://host[:port]/path"};
const struct config_rule config_rule_host = {check_host, "a host name or address",
                                             "a host name or address without port"};
const struct config_rule config_rule_property = {check_property, "a property name", "letters, digits, '.', '_', '-'"};
const struct config_rule config_rule_user = {check_user, "a user", "a user's name or number"};

/* ---- times ---------------------------------------------------------------------------------------- */

static const struct {
        const char *name;
        uint64_t usec;
} units[] = {
        /* largest first: printing takes the first one that divides */
        {"d", 24 * USEC_PER_HOUR}, {"h", USEC_PER_HOUR},  {"min", USEC_PER_MINUTE},
        {"s", USEC_PER_SEC},       {"ms", USEC_PER_MSEC},
};

static void time_print(uint64_t usec, char *text, size_t size) {
        size_t i = 0;
        if (usec == 0)
                i = 3; /* 0s */
        while (i + 1 < ARRAY_SIZE(units) && usec % units[i].usec != 0)
                i++;
        (void)snprintf(text, size, "%" PRIu64 "%s", usec / units[i].usec, units[i].name);
}

static bool time_parse(const char *text, uint64_t *ret) {
        char digits[24];
        uint64_t number, usec;
        size_t size = strspn(text, "0123456789");

        if (size == 0 || size >= sizeof(digits))
                return false;
        memcpy(digits, text, size);
        digits[size] = '\0';
        if (base_parse_u64(digits, 0, UINT64_MAX, &number) < 0)
                return false;
        for (size_t i = 0; i < ARRAY_SIZE(units); i++)
                if (strcmp(text + size, units[i].name) == 0) {
                        if (__builtin_mul_overflow(number, units[i].usec, &usec))
                                return false;
                        *ret = usec;
                        return true;
                }
        return false;
}

/* ---- words ---------------------------------------------------------------------------------------- */

static const char *const escalation_words[] = {
        [CANCEL_ESCALATION_NONE] = "none",
        [CANCEL_ESCALATION_SIGTERM] = "term",
        [CANCEL_ESCALATION_SIGKILL] = "kill",
};

static bool escalation_parse(const char *text, enum cancel_escalation *ret) {
        for (size_t i = 0; i < ARRAY_SIZE(escalation_words); i++)
                if (strcmp(text, escalation_words[i]) == 0) {
                        *ret = (enum cancel_escalation)i;
                        return true;
                }
        return false;
}

static bool mode_parse(const char *text, bool *ret_observe) {
        bool observe = strcmp(text, "observe") == 0;
        if (!observe && strcmp(text, "act") != 0)
                return false;
        *ret_observe = observe;
        return true;
}

static bool bool_parse(const char *text, bool *ret) {
        bool yes = strcmp(text, "yes") == 0 || strcmp(text, "true") == 0;
        if (!yes && strcmp(text, "no") != 0 && strcmp(text, "false") != 0)
                return false;
        *ret = yes;
        return true;
}

/* ---- errors --------------------------------------------------------------------------------------- */

static const char *what_of(const struct config_option *option) {
        switch (option->kind) {
        case CONFIG_TEXT:
        case CONFIG_LIST:
                return option->rule->what;
        case CONFIG_FILE:
                return "a file";
        case CONFIG_TIME:
                return "a time";
        case CONFIG_NUMBER:
                return "a number";
        case CONFIG_BOOL:
                return "yes or no";
        case CONFIG_LEVEL:
                return "a log level";
        case CONFIG_ESCALATION:
                return "an escalation";
        case CONFIG_MODE:
                return "a mode";
        }
        return "a value";
}

void config_value_allowed(const struct config_option *option, char *text, size_t size) {
        char low[32], high[32];

        switch (option->kind) {
        case CONFIG_TEXT:
                (void)base_text_copy(text, size, option->rule->allowed);
                return;
        case CONFIG_LIST:
                (void)snprintf(text, size, "1 to %" PRIu64 ", separated by commas, each %s", option->max,
                               option->rule->allowed);
                return;
        case CONFIG_FILE:
                (void)base_text_copy(text, size, "an absolute path, or credential:NAME");
                return;
        case CONFIG_TIME:
                time_print(option->min, low, sizeof(low));
                time_print(option->max, high, sizeof(high));
                (void)snprintf(text, size, "%s to %s", low, high);
                return;
        case CONFIG_NUMBER:
                (void)snprintf(text, size, "%" PRIu64 " to %" PRIu64, option->min, option->max);
                return;
        case CONFIG_BOOL:
                (void)base_text_copy(text, size, "yes, no");
                return;
        case CONFIG_LEVEL:
                (void)base_text_copy(text, size, "debug, info, notice, warning, err");
                return;
        case CONFIG_ESCALATION:
                (void)base_text_copy(text, size, "none, term, kill");
                return;
        case CONFIG_MODE:
                (void)base_text_copy(text, size, "act, observe");
                return;
        }
}

static int refuse(const struct config_option *option, const char *value, const char *why, char *error) {
        char shown[SHOWN_MAX], allowed[160];
        base_text_escape(shown, sizeof(shown), value, strlen(value));
        config_value_allowed(option, allowed, sizeof(allowed));
        (void)snprintf(error, CONFIG_ERROR_MAX, "'%s' %s (allowed: %s)", shown, why, allowed);
        return -EINVAL;
}

static int refuse_kind(const struct config_option *option, const char *value, char *error) {
        char why[64];
        (void)snprintf(why, sizeof(why), "is not %s", what_of(option));
        return refuse(option, value, why, error);
}

/* ---- fields --------------------------------------------------------------------------------------- */

static void *field_of(const struct config_option *option, struct config *config) {
        return (char *)config + option->offset;
}

static const void *field_of_const(const struct config_option *option, const struct config *config) {
        return (const char *)config + option->offset;
}

static int set_text(char **field, const char *text) {
        char *copy = strdup(text);
        if (!copy)
                return -ENOMEM;
        free(*field);
        *field = copy;
        return 0;
}

static int parse_file(const struct config_option *option, const char *text, char **field, char *error) {
        const char *name = base_text_starts_with(text, CONFIG_CREDENTIAL_PREFIX);
        const char *directory = getenv("CREDENTIALS_DIRECTORY");
        char path[PATH_MAX];

        if (!name)
                return check_path(text) ? set_text(field, text) : refuse_kind(option, text, error);
        if (!text_consists_of(name, 255, "-._") || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
                return refuse(option, text, "names no credential", error);
        if (!directory || *directory != '/')
                return refuse(option, text,
                              "needs $CREDENTIALS_DIRECTORY, which is not set: does the unit have LoadCredential=?",
                              error);
        int length = snprintf(path, sizeof(path), "%s/%s", directory, name);
        if (length < 0 || (size_t)length >= sizeof(path))
                return refuse(option, text, "makes too long a path", error);
        return set_text(field, path);
}

int config_list_add(struct config_list *list, size_t max, const char *item) {
        for (size_t i = 0; i < list->count; i++)
                if (strcasecmp(list->items[i], item) == 0)
                        return 0;
        if (list->count >= base_min_u64(max, CONFIG_LIST_MAX))
                return -ENOBUFS;
        char *copy = strdup(item);
        if (!copy)
                return -ENOMEM;
        list->items[list->count++] = copy;
        return 0;
}

static int parse_list(const struct config_option *option, const char *text, struct config_list *list, char *error) {
        _cleanup_free_ char *copy = strdup(text);
        if (!copy)
                return -ENOMEM;
        char *rest = copy, *item;
        while ((item = strsep(&rest, ","))) {
                item += strspn(item, " \t");
                size_t size = strlen(item);
                while (size > 0 && (item[size - 1] == ' ' || item[size - 1] == '\t'))
                        item[--size] = '\0';
                if (size == 0 && !rest)
                        break; /* a comma at the end of a line that goes on in the next one */
                if (!option->rule->check(item))
                        return refuse_kind(option, item, error);
                int r = config_list_add(list, option->max, item);
                if (r == -ENOBUFS)
                        return refuse(option, item, "is one too many", error);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int parse_number(const struct config_option *option, const char *text, uint64_t *field, char *error) {
        int r = base_parse_u64(text, option->min, option->max, field);
        if (r == -ERANGE)
                return refuse(option, text, "is out of range", error);
        return r < 0 ? refuse_kind(option, text, error) : 0;
}

static int parse_time(const struct config_option *option, const char *text, uint64_t *field, char *error) {
        uint64_t usec;
        if (!time_parse(text, &usec))
                return refuse_kind(option, text, error);
        if (usec < option->min || usec > option->max)
                return refuse(option, text, "is out of range", error);
        *field = usec;
        return 0;
}

int config_value_parse(const struct config_option *option, const char *text, struct config *config, char *error) {
        void *field = field_of(option, config);

        if (!*text)
                return refuse(option, text, "is empty", error);
        switch (option->kind) {
        case CONFIG_TEXT:
                return option->rule->check(text) ? set_text(field, text) : refuse_kind(option, text, error);
        case CONFIG_FILE:
                return parse_file(option, text, field, error);
        case CONFIG_LIST:
                return parse_list(option, text, field, error);
        case CONFIG_TIME:
                return parse_time(option, text, field, error);
        case CONFIG_NUMBER:
                return parse_number(option, text, field, error);
        case CONFIG_BOOL:
                return bool_parse(text, field) ? 0 : refuse_kind(option, text, error);
        case CONFIG_LEVEL:
                return log_level_from_text(text, field) == 0 ? 0 : refuse_kind(option, text, error);
        case CONFIG_ESCALATION:
                return escalation_parse(text, field) ? 0 : refuse_kind(option, text, error);
        case CONFIG_MODE:
                return mode_parse(text, field) ? 0 : refuse_kind(option, text, error);
        }
        return -EINVAL;
}

/* ---- printing ------------------------------------------------------------------------------------- */

static int print_list(const struct config_list *list, struct buffer *out) {
        for (size_t i = 0; i < list->count; i++) {
                int r = buffer_append_format(out, "%s%s", i == 0 ? "" : ",\n        ", list->items[i]);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int print_time(uint64_t usec, struct buffer *out) {
        char text[32];
        time_print(usec, text, sizeof(text));
        return buffer_append_text(out, text);
}

int config_value_print(const struct config_option *option, const struct config *config, struct buffer *out) {
        const void *field = field_of_const(option, config);

        switch (option->kind) {
        case CONFIG_TEXT:
        case CONFIG_FILE: {
                const char *text = *(char *const *)field;
                return buffer_append_text(out, text ? text : "");
        }
        case CONFIG_LIST:
                return print_list(field, out);
        case CONFIG_TIME:
                return print_time(*(const uint64_t *)field, out);
        case CONFIG_NUMBER:
                return buffer_append_format(out, "%" PRIu64, *(const uint64_t *)field);
        case CONFIG_BOOL:
                return buffer_append_text(out, *(const bool *)field ? "yes" : "no");
        case CONFIG_LEVEL:
                return buffer_append_text(out, log_level_to_text(*(const enum log_priority *)field));
        case CONFIG_ESCALATION:
                return buffer_append_text(out, escalation_words[*(const enum cancel_escalation *)field]);
        case CONFIG_MODE:
                return buffer_append_text(out, *(const bool *)field ? "observe" : "act");
        }
        return -EINVAL;
}

bool config_value_is_set(const struct config_option *option, const struct config *config) {
        const void *field = field_of_const(option, config);
        if (option->kind == CONFIG_LIST)
                return ((const struct config_list *)field)->count > 0;
        if (option->kind == CONFIG_TEXT || option->kind == CONFIG_FILE)
                return *(char *const *)field;
        return true;
}

void config_value_free(const struct config_option *option, struct config *config) {
        void *field = field_of(option, config);
        if (option->kind == CONFIG_LIST) {
                struct config_list *list = field;
                while (list->count > 0)
                        free(list->items[--list->count]);
        } else if (option->kind == CONFIG_TEXT || option->kind == CONFIG_FILE)
                base_free_pointer(field);
}
