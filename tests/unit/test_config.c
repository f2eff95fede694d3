/* SPDX-License-Identifier: Apache-2.0 */
/* config: what an operator may write, and what is said about a mistake. Files live in a directory of the test's own. */
#include "config_internal.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <setjmp.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <cmocka.h>

#define REQUIRED_LINES                                                                                                 \
        "[agent]\ncluster_id = c1\n[control-plane]\nendpoint = https://cp.example:443\n[spark]\n"                      \
        "masters = http://m1:6066\n"

static char directory[64], path[96];
static char error[CONFIG_ERROR_MAX];

static int setup(void **state) {
        (void)state;
        (void)base_text_copy(directory, sizeof(directory), "/tmp/test-config-XXXXXX");
        assert_non_null(mkdtemp(directory));
        (void)snprintf(path, sizeof(path), "%s/agent.conf", directory);
        unsetenv("STATE_DIRECTORY");
        unsetenv("RUNTIME_DIRECTORY");
        unsetenv("CREDENTIALS_DIRECTORY");
        return 0;
}

static int teardown(void **state) {
        (void)state;
        (void)unlink(path);
        assert_int_equal(rmdir(directory), 0);
        return 0;
}

static void write_bytes(const void *bytes, size_t size) {
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        assert_int_equal(write(fd, bytes, size), size);
        assert_int_equal(close(fd), 0);
}

/* load() - the configuration of that text, or NULL with `error`. */
static struct config *load(const char *text) {
        struct config *config = NULL;
        write_bytes(text, strlen(text));
        (void)base_text_copy(error, sizeof(error), "unset");
        int r = config_load(path, &config, error);
        if (r == 0)
                assert_string_equal(error, "");
        else
                assert_null(config);
        return config;
}

/* refused() - what is said of the text, without the file's name. */
static const char *refused(const char *text) {
        struct config *config = load(text);
        if (config) {
                config_free(config);
                fail_msg("accepted:\n%s", text);
        }
        const char *rest = base_text_starts_with(error, path);
        if (!rest)
                fail_msg("no file name in: %s", error);
        return rest;
}

static struct config *loaded(const char *text) {
        struct config *config = load(text);
        if (!config)
                fail_msg("refused: %s\n%s", error, text);
        return config;
}

/* ---- defaults ------------------------------------------------------------------------------------- */

static bool list_has(const struct config_list *list, const char *item) {
        for (size_t i = 0; i < list->count; i++)
                if (strcasecmp(list->items[i], item) == 0)
                        return true;
        return false;
}

static void test_defaults(void **state) {
        char host[256];

        (void)state;
        struct config *config = loaded(REQUIRED_LINES);
        assert_string_equal(config->path, path);
        assert_string_equal(config->cluster_id, "c1");
        assert_int_equal(gethostname(host, sizeof(host)), 0);
        assert_string_equal(config->node, host);
        assert_string_equal(config->state_directory, "/var/lib/spark-cancel-agent");
        assert_string_equal(config->runtime_directory, "/run/spark-cancel-agent");
        assert_null(config->metrics_file);
        assert_int_equal(config->log_level, LOG_PRIORITY_INFO);
        assert_string_equal(config->endpoint, "https://cp.example:443");
        assert_null(config->ca_file);
        assert_null(config->token_file);
        assert_int_equal(config->connect_timeout_usec, 10 * USEC_PER_SEC);
        assert_int_equal(config->report_timeout_usec, 10 * USEC_PER_SEC);
        assert_int_equal(config->reconnect_min_usec, 200 * USEC_PER_MSEC);
        assert_int_equal(config->reconnect_max_usec, 30 * USEC_PER_SEC);
        assert_int_equal(config->masters.count, 1);
        assert_string_equal(config->masters.items[0], "http://m1:6066");
        assert_string_equal(config->work_directory, "/opt/spark/work");
        assert_string_equal(config->job_id_property, "spark.yandex.job.id");
        assert_null(config->driver_user);
        assert_int_equal(config->driver_uid, -1);
        assert_int_equal(config->worker_terminate_timeout_usec, 10 * USEC_PER_SEC);
        assert_int_equal(config->worker_heartbeat_usec, 15 * USEC_PER_SEC);
        assert_int_equal(config->request_timeout_usec, 10 * USEC_PER_SEC);
        assert_int_equal(config->default_deadline_usec, 15 * USEC_PER_MINUTE);
        assert_int_equal(config->kill_retry_usec, 25 * USEC_PER_SEC);
        assert_int_equal(config->kills_per_worker, 1);
        assert_int_equal(config->escalation, CANCEL_ESCALATION_NONE);
        assert_int_equal(config->escalate_after_usec, 60 * USEC_PER_SEC);
        assert_int_equal(config->force_after_usec, 30 * USEC_PER_SEC);
        assert_int_equal(config->relaunch_window_usec, 75 * USEC_PER_SEC);
        assert_false(config->queued_drivers);
        assert_int_equal(config->max_open, 100000);
        assert_int_equal(config->retention_usec, 7 * 24 * USEC_PER_HOUR);
        assert_int_equal(config->retention_max, 200000);
        host[strcspn(host, ".")] = '\0';
        assert_true(list_has(&config->worker_hosts, host));
        assert_false(list_has(&config->worker_hosts, "localhost")); /* every machine's own name */
        assert_false(list_has(&config->worker_hosts, "127.0.0.1"));
        config_free(config);
}

/* Masters on this machine: then its Workers may be known under loopback names, too. */
static void test_worker_hosts_beside_local_masters(void **state) {
        struct config *config = loaded("[agent]\ncluster_id = c1\n[control-plane]\nendpoint = https://cp.example:443\n"
                                          "[spark]\nmasters = http://127.0.0.1:6066\n");
        (void)state;

        assert_true(list_has(&config->worker_hosts, "localhost"));
        assert_true(list_has(&config->worker_hosts, "127.0.0.1"));
        config_free(config);
}

static void test_environment(void **state) {
        (void)state;
        assert_int_equal(setenv("STATE_DIRECTORY", "/s/one:/s/two", 1), 0);
        assert_int_equal(setenv("RUNTIME_DIRECTORY", "/r/one", 1), 0);
        assert_int_equal(setenv("CREDENTIALS_DIRECTORY", "/c", 1), 0);
        struct config *config = loaded(REQUIRED_LINES "token_file = credential:spark.token\n[control-plane]\n"
                                                      "token_file=credential:cp\nca_file=/ca.pem\n");
        assert_string_equal(config->state_directory, "/s/one");
        assert_string_equal(config->runtime_directory, "/r/one");
        assert_string_equal(config->token_file, "/c/cp");
        assert_string_equal(config->spark_token_file, "/c/spark.token");
        assert_string_equal(config->ca_file, "/ca.pem");
        config_free(config);
        config = loaded(REQUIRED_LINES "[agent]\nstate_directory = /mine\n"); /* the file comes first */
        assert_string_equal(config->state_directory, "/mine");
        config_free(config);
        assert_int_equal(setenv("STATE_DIRECTORY", "relative", 1), 0);
        assert_non_null(
                strstr(refused(REQUIRED_LINES), "[agent] state_directory: $STATE_DIRECTORY: 'relative' is not"));
        unsetenv("STATE_DIRECTORY");
        unsetenv("RUNTIME_DIRECTORY");
        unsetenv("CREDENTIALS_DIRECTORY");
}

/* ---- values --------------------------------------------------------------------------------------- */

static void test_forms(void **state) {
        (void)state;
        assert_non_null(
                strstr(refused("\xef\xbb\xbf[agent]\r\ncluster_id = c\r\n\tlog_level = debug\r\n"),
                       ":3: cluster_id: an indented line continues the value above, and this key takes one line"));
        struct config *config = loaded(
                "\xef\xbb\xbf; a byte order mark, comments, blank lines, CRLF\r\n\r\n[agent] ; comment\r\n"
                "  cluster_id: c-1 ; inih cuts this\r\n   # an indented comment\r\nlog_level=debug\r\n"
                "[spark]\nmasters = http://m1:6066, https://[2001:db8::1]:443,\n\n    http://10.0.0.1:1 ,http://m2:2\n"
                "\thttp://m1:6066\n[control-plane]\nendpoint\t=\thttp://localhost:80\n[agent]\nnode = n;1#2");
        assert_string_equal(config->cluster_id, "c-1");
        assert_string_equal(config->node, "n;1#2");
        assert_int_equal(config->log_level, LOG_PRIORITY_DEBUG);
        assert_int_equal(config->masters.count, 4); /* the fifth is the first again */
        assert_string_equal(config->masters.items[1], "https://[2001:db8::1]:443");
        assert_string_equal(config->masters.items[3], "http://m2:2");
        config_free(config);
}

static void test_times(void **state) {
        static const struct {
                const char *text;
                uint64_t usec;
        } good[] = {
                {"1h", USEC_PER_HOUR},
                {"60min", USEC_PER_HOUR},
                {"3600s", USEC_PER_HOUR},
                {"3600000ms", USEC_PER_HOUR},
                {"365d", 365 * 24 * USEC_PER_HOUR},
                {"0001d", 24 * USEC_PER_HOUR},
                {"8760h", 365 * 24 * USEC_PER_HOUR},
        };
        static const char *const bad[] = {
                "x",
                "1",
                "1 h",
                "h",
                "-1h",
                "1.5h",
                "1H",
                "1hour",
                "1h30min",
                "0x1h",
                "+1h",
                "366d",
                "59min",
                "0s",
                "18446744073709551616h",
                "999999999999999999999999999999999h",
                "18446744073709551615d",
                "1\xc2\xb5s",
        };
        char text[512];

        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
                (void)snprintf(text, sizeof(text), REQUIRED_LINES "[cancel]\nretention = %s\n", good[i].text);
                struct config *config = loaded(text);
                assert_int_equal(config->retention_usec, good[i].usec);
                config_free(config);
        }
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                (void)snprintf(text, sizeof(text), REQUIRED_LINES "[cancel]\nretention = %s\n", bad[i]);
                const char *said = refused(text);
                assert_non_null(base_text_starts_with(said, ":8: retention: '"));
                assert_non_null(strstr(said, " (allowed: 1h to 365d)"));
        }
}

static void test_urls(void **state) {
        static const char *const good[] = {
                "https://h:1",
                "http://127.0.0.1:65535",
                "http://[::1]:80",
                "http://a-b.c_d.example:6066",
        };
        static const char *const bad[] = {
                "h:1",           "https://h",      "https://h:",         "https://h:0",   "https://h:65536",
                "https://h:1/",  "https://h:1/x",  "https://:1",         "https://u@h:1", "https://u:p@h:1",
                "ftp://h:1",     "HTTPS://h:1",    "https://[::1:1",     "https://[::1]", "https://[::g]:1",
                "https://h:1?x", "https://h h:1",  "https://h:1x",       "https://-h:1",  "https://h:+1",
                "https://::1:1", "https://h%41:1", "https://\xc3\xa9:1", "https://[]:1",
        };
        char text[512];

        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
                (void)snprintf(text, sizeof(text),
                               "[agent]\ncluster_id=c\n[spark]\nmasters=%s\n[control-plane]\nendpoint=%s\n", good[i],
                               good[i]);
                config_free(loaded(text));
        }
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                (void)snprintf(text, sizeof(text), "[control-plane]\nendpoint=%s\n", bad[i]);
                assert_non_null(base_text_starts_with(refused(text), ":2: endpoint: '"));
                (void)snprintf(text, sizeof(text), "[spark]\nmasters=http://m:1, %s\n", bad[i]);
                assert_non_null(base_text_starts_with(refused(text), ":2: masters: '"));
        }
}

/* ---- mistakes and what is said -------------------------------------------------------------------- */

static void test_mistakes(void **state) {
        static const struct {
                const char *text, *said;
        } cases[] = {
                {"", ": [agent] cluster_id: is missing (allowed: 1 to 50 printable ASCII characters without space)"},
                {"[agent]\ncluster_id = c\n[spark]\nmasters=http://m:1\n",
                 ": [control-plane] endpoint: is missing (allowed: "
                 "https://host:port or http://host:port, nothing behind the port)"},
                {"[agent]\ncluster_id=c\n[control-plane]\nendpoint=https://h:1\n",
                 ": [spark] masters: is missing (allowed: "
                 "1 to 16, separated by commas, each https://host:port or http://host:port, nothing behind the port)"},
                {"cluster_id = c\n", ":1: cluster_id: stands before the first [section]"},
                {"[agnet]\ncluster_id = c\n", ":2: cluster_id: unknown section [agnet] (allowed: agent, control-plane, "
                                              "spark, cancel)"},
                {"[agent]\n\ncluster = c\n", ":3: cluster: unknown key in section [agent]"},
                {"[agent]\nmasters = http://m:1\n", ":2: masters: belongs into section [spark], not [agent]"},
                {"[agent]\ncluster_id = a\ncluster_id = b\n", ":3: cluster_id: is set in line 2 already"},
                {"[agent]\ncluster_id = a\n[spark]\n[agent]\n\ncluster_id = a\n",
                 ":6: cluster_id: is set in line 2 already"},
                {"[spark]\nmasters = http://a:1\nmasters = http://b:1\n", ":3: masters: is set in line 2 already"},
                {"[agent\ncluster_id = a\n", ":1: a section ends with ']'"},
                {"[agent] cluster_id = a\n", ":1: text behind the [section]"},
                {"[agent]\nwhat\n", ":2: neither [section] nor key = value"},
                {"[agent]\n   what\n", ":2: neither [section] nor key = value"},
                {"[agent]\ncluster_id =\n", ":2: cluster_id: '' is empty (allowed: 1 to 50 printable ASCII characters "
                                            "without space)"},
                {"[agent]\ncluster_id = a b\n", ":2: cluster_id: 'a b' is not an id (allowed: 1 to 50 printable ASCII "
                                                "characters without space)"},
                {"[agent]\ncluster_id = a # b\n", ":2: cluster_id: a comment stands on a line of its own"},
                {"[agent]\ncluster_id = # b\n", ":2: cluster_id: a comment stands on a line of its own"},
                {"[spark]\nmasters = http://m:1,\n  http://n:2 ; other\n",
                 ":3: masters: a comment stands on a line of its own"},
                {"[agent]\nlog_level = INFO\n",
                 ":2: log_level: 'INFO' is not a log level (allowed: debug, info, notice, "
                 "warning, err)"},
                {"[agent]\nstate_directory = var\n",
                 ":2: state_directory: 'var' is not an absolute path (allowed: /path)"},
                {"[agent]\nnode = \x1b[31m\n",
                 ":2: node: '\\x1B[31m' is not a node name (allowed: 1 to 255 printable ASCII "
                 "characters without space)"},
                {"[agent]\n\xff\xfe = 1\n", ":2: \\xFF\\xFE: unknown key in section [agent]"},
                {"[control-plane]\nconnect_timeout = 10\n",
                 ":2: connect_timeout: '10' is not a time (allowed: 100ms to 5min)"},
                {"[control-plane]\nconnect_timeout = 6min\n",
                 ":2: connect_timeout: '6min' is out of range (allowed: 100ms to "
                 "5min)"},
                {"[control-plane]\nca_file = ca.pem\n",
                 ":2: ca_file: 'ca.pem' is not a file (allowed: an absolute path, or "
                 "credential:NAME)"},
                {"[control-plane]\nca_file = credential:ca\n",
                 ":2: ca_file: 'credential:ca' needs $CREDENTIALS_DIRECTORY, "
                 "which is not set: does the unit have LoadCredential=? (allowed: an absolute path, or "
                 "credential:NAME)"},
                {"[control-plane]\nca_file = credential:../x\n",
                 ":2: ca_file: 'credential:../x' names no credential (allowed: "
                 "an absolute path, or credential:NAME)"},
                {"[control-plane]\nca_file = credential:..\n",
                 ":2: ca_file: 'credential:..' names no credential (allowed: an "
                 "absolute path, or credential:NAME)"},
                {"[cancel]\nmax_open = 0\n", ":2: max_open: '0' is out of range (allowed: 1 to 10000000)"},
                {"[cancel]\nmax_open = 1e3\n", ":2: max_open: '1e3' is not a number (allowed: 1 to 10000000)"},
                {"[cancel]\nmax_open = 99999999999999999999\n", ":2: max_open: '99999999999999999999' is out of range "
                                                                "(allowed: 1 to 10000000)"},
                {"[cancel]\nescalation = sigkill\n",
                 ":2: escalation: 'sigkill' is not an escalation (allowed: none, term, "
                 "kill)"},
                {"[cancel]\nqueued_drivers = 1\n", ":2: queued_drivers: '1' is not yes or no (allowed: yes, no)"},
                {"[spark]\nmasters = http://m:1,,http://n:1\n",
                 ":2: masters: '' is not a server's address (allowed: 1 to 16, "
                 "separated by commas, each https://host:port or http://host:port, nothing behind the port)"},
                {"[spark]\nworker_hosts = a, b:7077\n",
                 ":2: worker_hosts: 'b:7077' is not a host name or address (allowed: 1 "
                 "to 64, separated by commas, each a host name or address without port)"},
                {"[spark]\njob_id_property = a=b\n",
                 ":2: job_id_property: 'a=b' is not a property name (allowed: letters, "
                 "digits, '.', '_', '-')"},
                {"[control-plane]\ntoken_url = http://h/a b\n", ":2: token_url: 'http://h/a b' is not a URL (allowed: "
                                                                "http(s)://host[:port]/path)"},
                /* the whole */
                {REQUIRED_LINES "certificate_file = /c\n", ":7: certificate_file: needs private_key_file beside it"},
                {REQUIRED_LINES "[control-plane]\nprivate_key_file = /k\n",
                 ":8: private_key_file: needs certificate_file "
                 "beside it"},
                {REQUIRED_LINES "[control-plane]\ntoken_file = /t\ntoken_url=http://h/\n",
                 ":9: token_url: excludes "
                 "token_file; set one of the two"},
                {REQUIRED_LINES "[control-plane]\nreconnect_min = 1min\n",
                 ": [control-plane] reconnect_max: must not be "
                 "below reconnect_min"},
                {REQUIRED_LINES "worker_terminate_timeout = 12500ms\n",
                 ": [cancel] kill_retry: must be more than 2 x "
                 "worker_terminate_timeout: until then the Worker is still at the first kill"},
                {REQUIRED_LINES "[cancel]\nkill_retry = 20s\n",
                 ":8: kill_retry: must be more than 2 x "
                 "worker_terminate_timeout: until then the Worker is still at the first kill"},
                {REQUIRED_LINES "driver_user = no-such-user-here\n",
                 ":7: driver_user: there is no user 'no-such-user-here' "
                 "(allowed: a user's name or number)"},
                {REQUIRED_LINES "driver_user = 4294967295\n",
                 ":7: driver_user: there is no user '4294967295' (allowed: a "
                 "user's name or number)"},
                /* the first of two counts */
                {"[agent]\nlog_level = a\nlog_level = b\nx = y\n[bad\n",
                 ":2: log_level: 'a' is not a log level (allowed: "
                 "debug, info, notice, warning, err)"},
        };

        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
                assert_string_equal(refused(cases[i].text), cases[i].said);
}

static void test_token_in_cleartext(void **state) {
        static const struct {
                const char *endpoint;
                bool allowed;
        } cases[] = {
                {"https://cp.example:443", true},
                {"http://localhost:80", true},
                {"http://127.0.0.1:80", true},
                {"http://127.9.9.9:80", true},
                {"http://[::1]:80", true},
                {"http://cp.example:80", false},
                {"http://10.0.0.1:80", false},
                {"http://[::2]:80", false},
                {"http://127.0.0.1.example:80", false},
                {"http://localhost.example:80", false},
                {"http://1.0.0.127:80", false},
        };
        static const char *const tokens[] = {"token_file = /t", "token_url = http://169.254.169.254/token"};
        char text[512];

        (void)state;
        for (size_t i = 0; i < 2 * ARRAY_SIZE(cases); i++) {
                (void)snprintf(text, sizeof(text),
                               "[agent]\ncluster_id=c\n[spark]\nmasters=http://m:1\n[control-plane]\nendpoint=%s\n%s\n",
                               cases[i / 2].endpoint, tokens[i % 2]);
                if (cases[i / 2].allowed)
                        config_free(loaded(text));
                else
                        assert_non_null(strstr(refused(text), ":7: token_"));
        }
}

static void set_cap_kill(bool on) {
        struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
        struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
        assert_int_equal(syscall(SYS_capget, &header, data), 0);
        if (on)
                data[0].effective |= data[0].permitted & (UINT32_C(1) << CAP_KILL);
        else
                data[0].effective &= ~(UINT32_C(1) << CAP_KILL);
        assert_int_equal(syscall(SYS_capset, &header, data), 0);
}

static void test_escalation_needs_the_right(void **state) {
        char text[1024];

        (void)state;
        set_cap_kill(false);
        for (int word = 0; word < 2; word++) {
                const char *escalation = word ? "kill" : "term";
                (void)snprintf(text, sizeof(text), REQUIRED_LINES "driver_user = %u\n[cancel]\nescalation = %s\n",
                               (unsigned)geteuid() + 1, escalation);
                assert_non_null(strstr(refused(text), ":9: escalation: this process may not signal the drivers' user"));
                (void)snprintf(text, sizeof(text), REQUIRED_LINES "driver_user = %u\n[cancel]\nescalation = %s\n",
                               (unsigned)geteuid(), escalation);
                struct config *config = loaded(text);
                assert_int_equal(config->driver_uid, geteuid());
                assert_int_equal(config->escalation, word ? CANCEL_ESCALATION_SIGKILL : CANCEL_ESCALATION_SIGTERM);
                config_free(config);
                /* no driver_user: the owner of the work directory, ours; then nobody knows */
                (void)snprintf(text, sizeof(text), REQUIRED_LINES "work_directory = %s\n[cancel]\nescalation = %s\n",
                               directory, escalation);
                config_free(loaded(text));
                (void)snprintf(text, sizeof(text),
                               REQUIRED_LINES "work_directory = %s/none\n[cancel]\nescalation = %s\n", directory,
                               escalation);
                assert_non_null(strstr(refused(text), ":9: escalation: work_directory is not there yet"));
        }
        set_cap_kill(true);
        if (config_host_can_signal(-1)) { /* as root */
                (void)snprintf(text, sizeof(text), REQUIRED_LINES "driver_user = %u\n[cancel]\nescalation = kill\n",
                               (unsigned)geteuid() + 1);
                config_free(loaded(text));
        }
}

static void test_driver_user_by_name(void **state) {
        (void)state;
        struct config *config = loaded(REQUIRED_LINES "driver_user = root\n");
        assert_int_equal(config->driver_uid, 0);
        config_free(config);
        config = loaded(REQUIRED_LINES "driver_user = 54321\n"); /* needs no entry */
        assert_int_equal(config->driver_uid, 54321);
        config_free(config);
}

/* ---- the file as bytes ---------------------------------------------------------------------------- */

static void test_long_lines(void **state) {
        struct buffer text = BUFFER_INIT(100000);
        struct buffer list = BUFFER_INIT(100000);

        (void)state;
        for (int i = 1; i <= 16; i++)
                assert_int_equal(buffer_append_format(&list,
                                                      "%shttp://spark-master-number-%d.with-a-long-name.example:6066",
                                                      i > 1 ? ", " : "", i),
                                 0);
        assert_int_equal(
                buffer_append_format(&text,
                                     "# %0500d\n[agent]\ncluster_id=c\n[spark]\nmasters = %s\n[control-plane]\n"
                                     "endpoint=https://h:1\n",
                                     0, buffer_text(&list)),
                0);
        struct config *config = loaded(buffer_text(&text));
        assert_int_equal(config->masters.count, 16);
        assert_string_equal(config->masters.items[15], "http://spark-master-number-16.with-a-long-name.example:6066");
        config_free(config);

        assert_int_equal(buffer_append_text(&text, "  # note\nconnect_timeout = x\n"), 0);
        assert_non_null(
                strstr(refused(buffer_text(&text)), ":9: connect_timeout: 'x' is not a time")); /* counts real lines */
        text.size = 0;
        assert_int_equal(buffer_append_format(&text, "[spark]\nmasters = %s\n[agent]\n  bad\n", buffer_text(&list)), 0);
        assert_string_equal(refused(buffer_text(&text)), ":4: neither [section] nor key = value");
        text.size = 0;
        assert_int_equal(buffer_append_format(&text, "[spark]\nmasters = %s, http://one-more:1\n", buffer_text(&list)),
                         0);
        assert_non_null(strstr(refused(buffer_text(&text)),
                               ":2: masters: 'http://one-more:1' is one too many (allowed: 1 to 16"));
        text.size = 0;
        assert_int_equal(buffer_append_format(&text, "[agent]\nstate_directory = /%0300d\n", 0), 0);
        assert_non_null(strstr(refused(buffer_text(&text)), ":2: longer than "));
        text.size = 0;
        for (int i = 0; i < 1000; i++)
                assert_int_equal(buffer_append_text(&text, "[agent]\n"), 0);
        assert_int_equal(buffer_append_text(&text, "  bad"), 0);
        assert_string_equal(refused(buffer_text(&text)), ":1001: neither [section] nor key = value");
        buffer_deinit(&text);
        buffer_deinit(&list);
}

static void test_odd_files(void **state) {
        struct config *config = NULL;
        char expected[512];

        (void)state;
        write_bytes("[agent]\ncluster_id = a\0b\n", 25);
        assert_int_equal(config_load(path, &config, error), -EINVAL);
        assert_string_equal(error + strlen(path), ":2: a NUL byte");

        char *big = malloc(300000);
        assert_non_null(big);
        memset(big, '\n', 300000);
        write_bytes(big, 300000);
        free(big);
        assert_int_equal(config_load(path, &config, error), -EINVAL);
        assert_string_equal(error + strlen(path), ": is larger than 262144 bytes");

        assert_int_equal(unlink(path), 0);
        assert_int_equal(config_load(path, &config, error), -ENOENT);
        (void)snprintf(expected, sizeof(expected), "%s: can't be read: No such file or directory", path);
        assert_string_equal(error, expected);
        assert_int_equal(config_load(directory, &config, error), -EISDIR);
        assert_null(config);
        assert_null(config_free(NULL));
}

/* Random bytes and random edits of a good file: an answer, never a crash, never a leak. */
static void test_random(void **state) {
        static const char good[] = REQUIRED_LINES "worker_hosts = a,b,\n  c\n[cancel]\nkill_retry = 30s\n; x\n";
        static const char spice[] = "[]=:;#,\n\r\t \\\"'\0\xff/.0123456789abc";
        uint64_t seed = base_random_u64();
        const char *text = getenv("SEED");
        char bytes[sizeof(good)];

        (void)state;
        if (text)
                assert_int_equal(base_parse_u64(text, 0, UINT64_MAX, &seed), 0);
        print_message("SEED=%" PRIu64 "\n", seed);
        for (int round = 0; round < 3000; round++) {
                struct config *config = NULL;
                memcpy(bytes, good, sizeof(good));
                for (uint64_t edits = base_random_next(&seed) % 4 + 1; edits > 0; edits--)
                        bytes[base_random_next(&seed) % (sizeof(good) - 1)] =
                                spice[base_random_next(&seed) % (sizeof(spice) - 1)];
                write_bytes(bytes, sizeof(good) - 1 - base_random_next(&seed) % 20);
                int r = config_load(path, &config, error);
                assert_true((r == 0 && config) || (r < 0 && !config && *error));
                config_free(config);
        }
}

/* ---- printing and reloading ----------------------------------------------------------------------- */

static char *printed(const struct config *config) {
        struct buffer text = BUFFER_INIT(100000);
        assert_int_equal(config_print(config, &text), 0);
        assert_non_null(buffer_text(&text));
        return (char *)text.data;
}

static void test_print_is_loadable(void **state) {
        static const char *const cases[] = {
                REQUIRED_LINES,
                REQUIRED_LINES
                "worker_hosts = a, 10.0.0.1,\n ::1\ndriver_user=root\ncertificate_file=/c\nprivate_key_file=/k\n"
                "token_file = /path with space\nworker_heartbeat = 0s\n[cancel]\nretention=36h\n"
                "kill_retry = 90500ms\n[control-plane]\ntoken_url = http://169.254.169.254:80/x?y=z\n"
                "[agent]\nnode = n;1#2\nmetrics_file=/m.prom\nlog_level=err\n",
        };

        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                struct config *config = loaded(cases[i]);
                _cleanup_free_ char *first = printed(config);
                for (size_t k = 0; k < config_option_count; k++) /* every key is there, as a value or as a comment */
                        assert_non_null(strstr(first, config_options[k].key));
                struct config *again = loaded(first);
                _cleanup_free_ char *second = printed(again);
                assert_string_equal(first, second);
                assert_null(config_reload_conflict(config, again));
                config_free(config);
                config_free(again);
        }
}

static void test_reload_conflict(void **state) {
        static const struct {
                const char *lines, *conflict;
        } cases[] = {
                {"", NULL},
                {"[agent]\nlog_level = debug\nmetrics_file = /m\n", NULL},
                {"[cancel]\nkill_retry = 30s\nretention = 1d\nmax_open = 5\nkills_per_worker = 2\n", NULL},
                {"worker_terminate_timeout = 5s\nworker_heartbeat = 1s\n", NULL},
                {"worker_hosts = a\n", NULL},
                {"job_id_property = x\n", "job_id_property"},
                {"ca_file = /ca\ncertificate_file = /c\nprivate_key_file = /k\n", NULL},
                {"[control-plane]\nca_file = /ca\n", "ca_file"},
                {"[agent]\nnode = other\n", "node"},
                {"[agent]\nstate_directory = /other\n", "state_directory"},
                {"[control-plane]\nserver_name = x\n", "server_name"},
                {"[control-plane]\nconnect_timeout = 9s\nreport_timeout = 9s\nreconnect_min = 1s\nreconnect_max = 2s\n", NULL},
                {"request_timeout = 5s\n", NULL},
        };
        char text[512];

        (void)state;
        struct config *running = loaded(REQUIRED_LINES);
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                (void)snprintf(text, sizeof(text), REQUIRED_LINES "%s", cases[i].lines);
                struct config *fresh = loaded(text);
                const char *conflict = config_reload_conflict(running, fresh);
                if (cases[i].conflict)
                        assert_string_equal(conflict, cases[i].conflict);
                else
                        assert_null(conflict);
                config_free(fresh);
        }
        struct config *fresh = loaded(REQUIRED_LINES);
        free(fresh->worker_hosts.items[--fresh->worker_hosts.count]); /* an address went: not the operator's doing */
        assert_null(config_reload_conflict(running, fresh));
        config_free(fresh);
        config_free(running);
}

/* ---- etc/agent.conf against the table ------------------------------------------------------------- */

/* A line "#key = value" of the shipped file. */
static bool commented_key(const char *line, char *key, size_t key_size, const char **value) {
        if (*line != '#' || line[1] == ' ' || line[1] == '\n' || line[1] == '\0')
                return false;
        const char *end = strstr(line, " = ");
        assert_non_null(end);
        assert_true((size_t)(end - line) < key_size);
        memcpy(key, line + 1, (size_t)(end - line - 1));
        key[end - line - 1] = '\0';
        *value = end + 3;
        return true;
}

static void test_shipped_file(void **state) {
        FILE *file = fopen("etc/agent.conf", "re");
        char line[256], section[64] = "", key[64];
        size_t next = 0;

        (void)state;
        if (!file)
                fail_msg("etc/agent.conf: run from the project's directory");
        assert_int_equal(setenv("CREDENTIALS_DIRECTORY", "/c", 1), 0);
        struct config *scratch = calloc(1, sizeof(*scratch));
        assert_non_null(scratch);
        while (fgets(line, sizeof(line), file)) {
                const char *value;
                line[strcspn(line, "\n")] = '\0';
                assert_true(strlen(line) <= 120);
                if (*line == '[')
                        (void)base_text_copy(section, strcspn(line, "]"), line + 1);
                else if (*line && *line != '#')
                        fail_msg("a key that is not commented out: %s", line);
                if (!commented_key(line, key, sizeof(key), &value))
                        continue;
                if (next >= config_option_count)
                        fail_msg("one key too many: %s", line);
                const struct config_option *option = &config_options[next++];
                assert_string_equal(section, option->section);
                assert_string_equal(key, option->key); /* the table's order */
                if (option->fallback)
                        assert_string_equal(value, option->fallback);
                if (config_value_parse(option, value, scratch, error) < 0) /* an example that works */
                        fail_msg("%s: %s", key, error);
        }
        assert_int_equal(next, config_option_count);
        (void)fclose(file);
        config_free(scratch);
        unsetenv("CREDENTIALS_DIRECTORY");
        struct config *config = NULL;
        assert_int_equal(config_load("etc/agent.conf", &config, error), -EINVAL);
        assert_non_null(strstr(error, "etc/agent.conf: [agent] cluster_id: is missing"));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
        const struct CMUnitTest tests[] = {
                TEST(test_defaults),
                TEST(test_worker_hosts_beside_local_masters),
                TEST(test_environment),
                TEST(test_forms),
                TEST(test_times),
                TEST(test_urls),
                TEST(test_mistakes),
                TEST(test_token_in_cleartext),
                TEST(test_escalation_needs_the_right),
                TEST(test_driver_user_by_name),
                TEST(test_long_lines),
                TEST(test_odd_files),
                TEST(test_random),
                TEST(test_print_is_loadable),
                TEST(test_reload_conflict),
                TEST(test_shipped_file),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
