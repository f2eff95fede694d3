/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration file. The machine (host name, addresses, users) is replaced when the program is linked, for the
 * same file must mean the same on each machine.
 *
 * A file that is taken must be complete, hold together, and print as a file that is taken as the same; one that is
 * refused must say why in one clean line.
 */
#include "fuzz.h"
#include "config_internal.h"

#include <sys/mman.h>

/* ---- in place of config_host.c ---------------------------------------------------------------------------- */

int config_host_name(char **ret) {
        *ret = strdup("node-1");
        return *ret ? 0 : -ENOMEM;
}

int config_host_list(struct config_list *list, bool with_loopback) {
        int r = config_list_add(list, CONFIG_LIST_MAX, "node-1");
        return r < 0 || !with_loopback ? r : config_list_add(list, CONFIG_LIST_MAX, "127.0.0.1");
}

int config_host_uid(const char *user, int64_t *ret) {
        uint64_t uid;

        if (strcmp(user, "spark") == 0)
                uid = 1000;
        else if (base_parse_u64(user, 0, UINT32_MAX - 1, &uid) < 0)
                return -ENOENT;
        *ret = (int64_t)uid;
        return 0;
}

bool config_host_can_signal(int64_t uid) {
        return uid == 1000;
}

/* ---- the file ---------------------------------------------------------------------------------------------------- */

static char path[40];

static int load(struct span bytes, struct config **ret, char *error) {
        static int fd = -1;

        if (fd < 0) {
                fd = memfd_create("agent.conf", MFD_CLOEXEC);
                (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        }
        FUZZ_CHECK(fd >= 0 && ftruncate(fd, 0) == 0);
        FUZZ_CHECK(pwrite(fd, bytes.data, bytes.size, 0) == (ssize_t)bytes.size);
        return config_load(path, ret, error);
}

static void check_range(const struct config_option *option, const struct config *config) {
        const char *field = (const char *)config + option->offset;

        if (option->kind != CONFIG_TIME && option->kind != CONFIG_NUMBER)
                return;
        uint64_t value = *(const uint64_t *)(const void *)field;
        FUZZ_CHECK(value >= option->min && value <= option->max);
}

static void check_whole(const struct config *config) {
        FUZZ_CHECK(base_id_is_valid(config->cluster_id, strlen(config->cluster_id), CLUSTER_ID_MAX));
        FUZZ_CHECK(config->node && config->endpoint && config->masters.count > 0 && config->work_directory);
        FUZZ_CHECK(config->state_directory[0] == '/' && config->runtime_directory[0] == '/');
        FUZZ_CHECK(config->worker_hosts.count > 0 && config->worker_hosts.count <= CONFIG_LIST_MAX);
        FUZZ_CHECK(!config->certificate_file == !config->private_key_file);
        FUZZ_CHECK(!config->spark_certificate_file == !config->spark_private_key_file);
        FUZZ_CHECK(!config->token_file || !config->token_url);
        FUZZ_CHECK((!config->token_file && !config->token_url) ||
                   !config_url_is_cleartext_beyond_loopback(config->endpoint));
        FUZZ_CHECK(config->kill_retry_usec > 2 * config->worker_terminate_timeout_usec);
        FUZZ_CHECK(config->reconnect_max_usec >= config->reconnect_min_usec);
        FUZZ_CHECK(config->escalation == CANCEL_ESCALATION_NONE || config->driver_uid == 1000);
        for (size_t i = 0; i < config_option_count; i++)
                check_range(&config_options[i], config);
}

static void check_round_trip(const struct config *config) {
        _cleanup_(buffer_deinit) struct buffer text = BUFFER_INIT(256 * 1024), again = BUFFER_INIT(256 * 1024);
        _cleanup_(config_free_pointer) struct config *same = NULL;
        char error[CONFIG_ERROR_MAX];

        FUZZ_CHECK(config_print(config, &text) == 0);
        int r = load((struct span){ text.data, text.size }, &same, error);
        if (r < 0)
                (void)fprintf(stderr, "%s\n%s", error, buffer_text(&text));
        FUZZ_CHECK(r == 0);
        FUZZ_CHECK(config_print(same, &again) == 0);
        FUZZ_CHECK(text.size == again.size && memcmp(text.data, again.data, text.size) == 0);
        FUZZ_CHECK(!config_reload_conflict(config, same) && !config_reload_conflict(same, config));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        _cleanup_(config_free_pointer) struct config *config = NULL;
        char error[CONFIG_ERROR_MAX];

        if (load((struct span){ data, size }, &config, error) < 0) {
                FUZZ_CHECK_TEXT(error);
                FUZZ_CHECK(base_text_starts_with(error, path));
                return 0;
        }
        check_whole(config);
        check_round_trip(config);
        return 0;
}
