/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * config: the one const table of options: section, key, parser, range, default, help
 *
 * `key = value` in sections, read with libinih. An unknown section or key, a value out of range, a missing
 * required key or two that exclude each other is an error that names file, line, key, what is wrong and what is
 * allowed. --check-config prints every effective key; agent.conf(5) and etc/agent.conf are compared with the
 * table by a test.
 */
#include "base.h"
#include "cancel.h"
#include "log.h"

#define CONFIG_LIST_MAX 64 /* the table's own maximum for `masters` is 16 */
#define CONFIG_ERROR_MAX 512

struct config_list {
        char *items[CONFIG_LIST_MAX];
        size_t count;
};

struct config { /* owned strings; NULL: not set */
        char *path;
        /* [agent] */
        char *cluster_id, *node, *state_directory, *runtime_directory, *metrics_file;
        enum log_priority log_level;
        /* [control-plane] */
        char *endpoint, *ca_file, *certificate_file, *private_key_file, *server_name, *token_file, *token_url;
        uint64_t connect_timeout_usec, report_timeout_usec, reconnect_min_usec, reconnect_max_usec;
        /* [spark] */
        struct config_list masters, worker_hosts;
        char *work_directory, *job_id_property, *driver_user;
        int64_t driver_uid;              /* resolved driver_user; -1: owner of work_directory */
        uint64_t worker_terminate_timeout_usec, worker_heartbeat_usec, request_timeout_usec;
        char *spark_token_file, *spark_ca_file, *spark_certificate_file, *spark_private_key_file;
        /* [cancel] */
        uint64_t default_deadline_usec, kill_retry_usec, escalate_after_usec, force_after_usec, relaunch_window_usec;
        uint64_t kills_per_worker, max_open, retention_max, retention_usec;
        enum cancel_escalation escalation;
        bool queued_drivers;
        bool observe;                    /* mode = observe: nothing is killed and no final report made */
};

/* config_load() - read and check `path`; defaults from the environment ($STATE_DIRECTORY, $RUNTIME_DIRECTORY,
 * $CREDENTIALS_DIRECTORY) and the machine (host name, addresses; no name look-up leaves the machine). 0; -EINVAL or
 * -errno (of memory, descriptors, the disk: it may be over next time) with `error` (CONFIG_ERROR_MAX bytes) = "agent.conf:12: retention: 'x' is not a time (allowed: 1h to 365d)".
 * `credential:NAME` of a *_file key becomes $CREDENTIALS_DIRECTORY/NAME here. */
int config_load(const char *path, struct config **ret, char *error);
struct config *config_free(struct config *config);
DEFINE_CLEANUP(struct config *, config_free)

/* config_print() - every effective key, as a file that config_load() would accept; a key that has no value is a
 * comment. Secrets are only ever file names. -ENOMEM, -ENOBUFS. */
int config_print(const struct config *config, struct buffer *out);

/* config_reload_conflict() - the first key that differs and can't be changed without a restart, or NULL. What can be
 * changed: log_level, metrics_file, every time, whom to ask in [spark] (masters, worker_hosts, TLS files) and all of
 * [cancel]. What stays needs a restart for a reason: who we are and where our state lies, the control plane and our
 * credentials there, and by what a driver is known: the operations in our memory rest on these. */
const char *config_reload_conflict(const struct config *running, const struct config *fresh);
