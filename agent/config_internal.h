/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * config_internal: what config.c, config_value.c and config_host.c share; tests read the table through it
 */
#include "config.h"

#define CONFIG_NAME "spark-cancel-agent"
#define CONFIG_CREDENTIAL_PREFIX "credential:"

enum config_kind {
        CONFIG_TEXT,       /* char *, judged by the option's rule */
        CONFIG_FILE,       /* char *, an absolute path or credential:NAME */
        CONFIG_LIST,       /* struct config_list, items judged by the rule; `max` items */
        CONFIG_TIME,       /* uint64_t in microseconds, [min, max] */
        CONFIG_NUMBER,     /* uint64_t, [min, max] */
        CONFIG_BOOL,       /* bool */
        CONFIG_LEVEL,      /* enum log_priority */
        CONFIG_ESCALATION, /* enum cancel_escalation */
        CONFIG_MODE,       /* bool: observe */
};

struct config_rule {
        bool (*check)(const char *text);
        const char *what;    /* "an id" */
        const char *allowed; /* "1 to 50 printable ASCII characters without space" */
};

struct config_option {
        const char *section, *key;
        enum config_kind kind;
        size_t offset;                  /* in struct config */
        const struct config_rule *rule; /* TEXT, LIST */
        uint64_t min, max;
        const char *fallback;           /* as it would stand in the file; NULL: none, or found at the start */
        const char *fallback_note;      /* for people, where `fallback` is NULL: "the host name" */
        bool required;
        bool restart;                   /* a change needs a restart */
        const char *help;
};

extern const struct config_option config_options[];
extern const size_t config_option_count;

/* config_value_parse() - set the option's field from `text`; a list is added to. -EINVAL with `error`
 * (CONFIG_ERROR_MAX) = "'x' is not a time (allowed: 1h to 365d)"; -ENOMEM. */
int config_value_parse(const struct config_option *option, const char *text, struct config *config, char *error);
/* config_value_allowed() - what the option takes, for people. */
void config_value_allowed(const struct config_option *option, char *text, size_t size);
/* config_value_print() - append the value as config_value_parse() takes it; nothing for one that is not set. */
int config_value_print(const struct config_option *option, const struct config *config, struct buffer *out);
bool config_value_is_set(const struct config_option *option, const struct config *config);
void config_value_free(const struct config_option *option, struct config *config);

extern const struct config_rule config_rule_id, config_rule_node, config_rule_path, config_rule_socket_directory,
        config_rule_url, config_rule_token_url, config_rule_host, config_rule_property, config_rule_user;

/* config_url_is_cleartext_beyond_loopback() - http:// to something else than localhost, 127.0.0.0/8 or [::1]. */
bool config_url_is_cleartext_beyond_loopback(const char *url);
/* config_url_is_loopback() - its host is localhost, in 127/8 or ::1. */
bool config_url_is_loopback(const char *url);

/* config_host_name() - the node's name; free it. config_host_list() - names and addresses of this machine, without
 * asking DNS. config_host_uid() - -ENOENT: no such user. config_host_can_signal() - may this process signal one of
 * `uid` (-1: of a user not known yet)? */
int config_host_name(char **ret);
int config_host_list(struct config_list *list, bool with_loopback);
int config_host_uid(const char *user, int64_t *ret);
bool config_host_can_signal(int64_t uid);
/* config_list_add() - a copy, unless it is there already (without case). -ENOBUFS when full, -ENOMEM. */
int config_list_add(struct config_list *list, size_t max, const char *item);
