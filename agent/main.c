/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon: argv, configuration, log, loop, READY, exit code.
 *
 * Everything is made here in one visible order and freed in the reverse. READY means: the configuration is valid
 * and the store is open, whether or not the control plane can be reached.
 */
#include "agent.h"
#include "bus.h"
#include "config.h"
#include "control.h"
#include "driver.h"
#include "event.h"
#include "grpc.h"
#include "http.h"
#include "journal.h"
#include "metrics.h"
#include "resolve.h"
#include "spark.h"
#include "store.h"
#include "token.h"

#include <fcntl.h>
#include <getopt.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>

#define CONFIG_DEFAULT "/etc/spark-cancel-agent/agent.conf"
#define EXIT_CONFIG 78                            /* EX_CONFIG of sysexits.h; the unit does not restart on it */
#define DRAIN_USEC (5 * USEC_PER_SEC)

/* What the program is made of. Freed in the reverse order of its fields. */
struct program {
        struct config *config;
        struct event *event;
        struct resolve *resolve;
        struct http *http;
        struct token *token, *spark_token;
        struct grpc_channel *channel;
        struct store *store;
        struct agent *agent;
        struct spark *spark;
        struct driver *driver;
        struct control *control;
        struct bus *bus;
        struct event_source *sigterm, *sigint, *sighup;
        int proc_fd;
        const char *config_path;
        uint64_t metrics_generation;
};

static void program_deinit(struct program *p) {
        p->bus = bus_free(p->bus);
        p->sighup = event_source_free(p->sighup);
        p->sigint = event_source_free(p->sigint);
        p->sigterm = event_source_free(p->sigterm);
        p->store = store_close(p->store); /* waits for a running commit; nothing calls back after it */
        p->agent = agent_free(p->agent);
        p->control = control_free(p->control);
        p->driver = driver_free(p->driver);
        p->spark = spark_free(p->spark);
        p->channel = grpc_channel_free(p->channel);
        p->spark_token = token_free(p->spark_token);
        p->token = token_free(p->token);
        p->http = http_free(p->http);
        p->resolve = resolve_free(p->resolve);
        p->event = event_free(p->event);
        p->config = config_free(p->config);
        base_close_pointer(&p->proc_fd);
}

/* ---- argv --------------------------------------------------------------------------------------------------------- */

static const char usage[] =
        "spark-cancel-agent [--config=FILE] [--check-config] [--version] [--help]\n"
        "\n"
        "Cancels Spark drivers of this node on the word of a control plane. See spark-cancel-agent(8).\n"
        "\n"
        "  --config=FILE    configuration, default " CONFIG_DEFAULT "\n"
        "  --check-config   check it, print every effective key, exit 0 or 78\n"
        "  --version        print the version\n"
        "  --help           print this\n";

enum main_action { ACTION_RUN, ACTION_CHECK, ACTION_EXIT };

static int parse_argv(int argc, char *argv[], const char **ret_config, enum main_action *ret_action) {
        static const struct option options[] = {
                { "config", required_argument, NULL, 'c' }, { "check-config", no_argument, NULL, 'k' },
                { "version", no_argument, NULL, 'v' },      { "help", no_argument, NULL, 'h' },
                { NULL, 0, NULL, 0 },
        };
        int option;

        *ret_config = CONFIG_DEFAULT;
        *ret_action = ACTION_RUN;
        while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
                switch (option) {
                case 'c':
                        *ret_config = optarg;
                        break;
                case 'k':
                        *ret_action = ACTION_CHECK;
                        break;
                case 'v':
                        (void)puts("spark-cancel-agent " VERSION);
                        *ret_action = ACTION_EXIT;
                        return 0;
                case 'h':
                        (void)fputs(usage, stdout);
                        *ret_action = ACTION_EXIT;
                        return 0;
                default:
                        (void)fputs(usage, stderr);
                        return -EINVAL;
                }
        }
        if (optind < argc) {
                (void)fprintf(stderr, "spark-cancel-agent: '%s': no arguments are taken\n%s", argv[optind], usage);
                return -EINVAL;
        }
        return 0;
}

/* What may be over at the next start is no fault of the configuration: systemd must start us again. */
static int config_exit_code(int result) {
        switch (-result) {
        case ENOMEM:
        case EMFILE:
        case ENFILE:
        case ENOBUFS:
        case EIO:
        case EINTR:
        case EAGAIN:
                return EXIT_FAILURE;
        default:
                return EXIT_CONFIG;
        }
}

static int check_config(const struct config *config) {
        struct buffer text = BUFFER_INIT(1024 * 1024);
        int r = config_print(config, &text);

        if (r == 0)
                (void)fwrite(text.data, 1, text.size, stdout);
        buffer_deinit(&text);
        return r;
}

/* ---- parts -------------------------------------------------------------------------------------------------------- */

static int fail(const char *what, int r) {
        log_write(LOG_PRIORITY_ERR, NULL, NULL, 0, "cannot start: %s: %s", what, strerror(-r));
        return r < 0 ? r : -EIO;
}

static int make_token(struct program *p, const char *file, const char *url, struct token **ret) {
        if (!file && !url)
                return 0;
        return token_new(p->event, p->http, &(struct token_options){ .file = file, .url = url }, ret);
}

static int make_transports(struct program *p) {
        const struct config *c = p->config;
        int r = event_new(true, &p->event);

        if (r == 0)
                r = resolve_new(p->event, &p->resolve);
        if (r == 0)
                r = http_new(p->event, p->resolve, &p->http);
        if (r == 0)
                r = make_token(p, c->token_file, c->token_url, &p->token);
        if (r == 0)
                r = make_token(p, c->spark_token_file, NULL, &p->spark_token);
        if (r < 0)
                return fail("event loop", r);
        r = grpc_channel_new(p->event, p->resolve,
                             &(struct grpc_channel_options){
                                     .endpoint = c->endpoint,
                                     .ca_file = c->ca_file,
                                     .certificate_file = c->certificate_file,
                                     .private_key_file = c->private_key_file,
                                     .server_name = c->server_name,
                                     .user_agent = "spark-cancel-agent/" VERSION,
                                     .connect_timeout_usec = c->connect_timeout_usec,
                                     .stream_window = CONTROL_STREAM_WINDOW,
                             },
                             &p->channel);
        return r < 0 ? fail("control plane", r) : 0;
}

static int make_store(struct program *p, struct store_info *ret_info) {
        char error[512] = "";
        int r = store_open(p->event, p->config->state_directory, event_real_usec(p->event), ret_info, error, sizeof error,
                           &p->store);

        if (r != 0) {
                log_write(LOG_PRIORITY_ERR, NULL, NULL, 0, "cannot open the state database: %s", error);
                return r < 0 ? r : -EBUSY;
        }
        if (ret_info->set_aside)
                journal_write(JOURNAL_STORE_SET_ASIDE, NULL,
                              "the state database was damaged; it was set aside as %s and a fresh one made; open operations come again from the control plane",
                              ret_info->aside);
        if (!ret_info->reserved)
                journal_write(JOURNAL_STORE_NO_RESERVE, NULL,
                              "no disk space could be set aside in %s: on a full disk cancels go on from memory, and a crash loses what was done; free some and restart",
                              p->config->state_directory);
        return 0;
}

static struct spark_options spark_options_of(const struct program *p, const struct config *c) {
        return (struct spark_options){
                .masters = (const char *const *)c->masters.items,
                .master_count = c->masters.count,
                .worker_hosts = (const char *const *)c->worker_hosts.items,
                .worker_host_count = c->worker_hosts.count,
                .request_timeout_usec = c->request_timeout_usec,
                .token = p->spark_token,
                .observe = c->observe,
                .ca_file = c->spark_ca_file,
                .certificate_file = c->spark_certificate_file,
                .private_key_file = c->spark_private_key_file,
        };
}

static int make_agent(struct program *p) {
        const struct config *c = p->config;
        struct spark_options options;
        char instance[33];
        int r;

        (void)snprintf(instance, sizeof instance, "%016" PRIx64 "%016" PRIx64, base_random_u64(), base_random_u64());
        r = agent_new(p->event, &(struct agent_options){ .config = c, .agent_version = VERSION }, &p->agent);
        if (r < 0)
                return fail("agent", r);
        options = spark_options_of(p, c);
        r = spark_new(p->event, p->http, &options, &p->spark);
        if (r < 0)
                return fail("spark", r);
        r = driver_new(p->event,
                       &(struct driver_options){
                               .proc_fd = p->proc_fd,
                               .work_directory = c->work_directory,
                               .job_id_property = c->job_id_property,
                               .driver_uid = c->driver_uid,
                               .observe = c->observe,
                       },
                       agent_driver_wake, p->agent, &p->driver);
        if (r < 0)
                return fail("driver look-up", r);
        r = control_new(p->event, p->channel, p->token,
                        &(struct control_options){
                                .cluster_id = c->cluster_id,
                                .node = c->node,
                                .instance_id = instance,
                                .agent_version = VERSION,
                                .reconnect_min_usec = c->reconnect_min_usec,
                                .reconnect_max_usec = c->reconnect_max_usec,
                                .report_timeout_usec = c->report_timeout_usec,
                        },
                        &agent_control_handlers, p->agent, &p->control);
        if (r < 0)
                return fail("session with the control plane", r);
        agent_attach(p->agent, p->control, p->driver, p->spark, p->store);
        agent_lend(p->agent, p->http, p->spark_token);
        return 0;
}

/* ---- signals, status, metrics ---------------------------------------------------------------------------------------- */

static int on_sigterm(void *userdata) {
        struct program *p = userdata;

        journal_write(JOURNAL_STOPPING, NULL, "stopping on request; reports that are not through stay stored");
        (void)sd_notify(0, "STOPPING=1");
        return agent_stop(p->agent, DRAIN_USEC);
}

/* Replace the configuration: times, limits, log level, tokens and TLS files. The old one is freed when nothing
 * points into it any more. */
static int program_reload(char *error, size_t error_size, void *userdata) {
        struct program *p = userdata;
        char text[CONFIG_ERROR_MAX] = "";
        const char *conflict;
        struct spark_options spark_options;
        struct config *fresh, *old = p->config;
        int r = config_load(p->config_path, &fresh, text);

        if (r < 0) {
                (void)snprintf(error, error_size, "%s", text);
                return r;
        }
        conflict = config_reload_conflict(old, fresh);
        if (conflict) {
                (void)snprintf(error, error_size, "%s was changed: that needs a restart; nothing was reloaded", conflict);
                config_free(fresh);
                return -EINVAL;
        }
        spark_options = spark_options_of(p, fresh);
        r = spark_reconfigure(p->spark, &spark_options);
        if (r < 0) {
                (void)snprintf(error, error_size, "%s", strerror(-r));
                config_free(fresh);
                return r;
        }
        p->config = fresh;
        log_set_level(fresh->log_level);
        agent_reconfigure(p->agent, fresh);
        grpc_channel_set_connect_timeout(p->channel, fresh->connect_timeout_usec);
        control_set_times(p->control, fresh->reconnect_min_usec, fresh->reconnect_max_usec, fresh->report_timeout_usec);
        token_refresh(p->spark_token);
        control_reload(p->control);
        config_free(old);
        return 0;
}

static int program_reload_logged(char *error, size_t error_size, void *userdata) {
        int r = program_reload(error, error_size, userdata);

        if (r < 0)
                journal_write(JOURNAL_RELOAD_FAILED, NULL, "not reloaded, the running configuration stays: %s", error);
        else
                journal_write(JOURNAL_RELOADED, NULL, "configuration reloaded");
        return r;
}

static int on_sighup(void *userdata) {
        char error[CONFIG_ERROR_MAX] = "";
        struct timespec now = { 0 };

        (void)clock_gettime(CLOCK_MONOTONIC, &now); /* sd_notify(3) asks for this clock; the loop's counts suspend, too */
        (void)sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64,
                         (uint64_t)now.tv_sec * USEC_PER_SEC + (uint64_t)now.tv_nsec / 1000);
        (void)program_reload_logged(error, sizeof error, userdata);
        (void)sd_notify(0, "READY=1");
        return 0;
}

static int on_status(void *userdata) {
        struct program *p = userdata;
        char text[512];

        agent_status_text(p->agent, text, sizeof text);
        (void)sd_notifyf(0, "STATUS=%s", text);
        if (p->config->metrics_file)
                agent_set_gauges(p->agent);
        if (p->config->metrics_file && p->metrics_generation != metrics_generation()) {
                p->metrics_generation = metrics_generation();
                if (metrics_write_file(p->config->metrics_file) < 0)
                        log_debug("cannot write %s", p->config->metrics_file);
        }
        return 0;
}

static int bus_metrics(struct buffer *out, void *userdata) {
        agent_set_gauges(((struct program *)userdata)->agent);
        return metrics_render(out);
}

/* The functions behind the bus get the program; those of the agent are handed on. */
static void bus_status(struct bus_status *ret, void *userdata) {
        agent_bus_status(ret, ((struct program *)userdata)->agent);
}

static int bus_list(bool all, int (*visit)(const struct bus_operation *operation, void *visitor), void *visitor,
                    void *userdata) {
        return agent_bus_list(all, visit, visitor, ((struct program *)userdata)->agent);
}

static int bus_retry(const char *operation_id, void *userdata) {
        return agent_bus_retry(operation_id, ((struct program *)userdata)->agent);
}

static int bus_find(const char *job_id, struct bus_call *call, void *userdata) {
        return agent_bus_find(job_id, call, ((struct program *)userdata)->agent);
}

static int bus_cancel(const char *job_id, uint32_t uid, struct bus_call *call, void *userdata) {
        return agent_bus_cancel(job_id, uid, call, ((struct program *)userdata)->agent);
}

static int bus_check(struct bus_call *call, void *userdata) {
        return agent_bus_check(call, ((struct program *)userdata)->agent);
}

static int make_bus(struct program *p) {
        static const struct bus_handlers handlers = {
                .status = bus_status,
                .list = bus_list,
                .reload = program_reload_logged,
                .retry = bus_retry,
                .metrics = bus_metrics,
                .find = bus_find,
                .cancel = bus_cancel,
                .check = bus_check,
        };
        char path[4096];
        int r;

        if (snprintf(path, sizeof path, "%s/bus", p->config->runtime_directory) >= (int)sizeof path)
                return fail("local bus", -ENAMETOOLONG);
        r = bus_new(p->event, path, &handlers, p, &p->bus);
        return r < 0 ? fail(path, r) : 0;
}

static int make_signals(struct program *p) {
        int r = event_add_signal(p->event, "sigterm", SIGTERM, on_sigterm, p, &p->sigterm);

        if (r == 0)
                r = event_add_signal(p->event, "sigint", SIGINT, on_sigterm, p, &p->sigint);
        if (r == 0)
                r = event_add_signal(p->event, "sighup", SIGHUP, on_sighup, p, &p->sighup);
        return r < 0 ? fail("signals", r) : 0;
}

/* Tokens and keys are in this memory. No core is written, and no process of the same user (with `escalation` that is
 * every job on the node) may attach to it or read it through /proc/PID/mem; root may. LeakSanitizer attaches. */
static void hide_memory(void) {
#ifndef DEBUG_CHECKS
        (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
#endif
}

/* ---- run ------------------------------------------------------------------------------------------------------------- */

static int run(struct program *p) {
        struct store_info info = { 0 };
        const char *problem;
        int r = make_transports(p);

        if (r == 0)
                r = make_signals(p);
        if (r == 0)
                r = make_store(p, &info);
        if (r == 0)
                r = make_agent(p);
        if (r == 0)
                r = make_bus(p);
        if (r == 0)
                r = agent_start(p->agent, &info);
        if (r < 0)
                return r;
        journal_write(JOURNAL_STARTED, NULL, "spark-cancel-agent " VERSION ": cluster %s, node %s, control plane %s",
                      p->config->cluster_id, p->config->node, p->config->endpoint);
        metrics_set(METRICS_BUILD_INFO, VERSION, 1);
        metrics_set(METRICS_OBSERVE_MODE, NULL, p->config->observe ? 1 : 0);
        if (p->config->observe)
                journal_write(JOURNAL_OBSERVING, NULL, "observe mode: no kill, no signal and no final report leaves this node");
        problem = driver_work_directory_status(p->driver);
        if (problem)
                journal_write(JOURNAL_WORK_DIRECTORY, NULL, "work directory %s: %s; watching for it", p->config->work_directory,
                              problem);
        agent_on_status(p->agent, on_status, p);
        (void)sd_notify(0, "READY=1");
        (void)on_status(p);
        r = event_run(p->event);
        if (r < 0)
                log_write(LOG_PRIORITY_ERR, NULL, NULL, 0, "stopping: %s", strerror(-r));
        return r;
}

int main(int argc, char *argv[]) {
        struct program program = { .proc_fd = -1 };
        char error[CONFIG_ERROR_MAX] = "";
        enum main_action action;
        int r;

        if (parse_argv(argc, argv, &program.config_path, &action) < 0)
                return EXIT_FAILURE;
        if (action == ACTION_EXIT)
                return EXIT_SUCCESS;
        hide_memory();
        if (action == ACTION_RUN)
                log_open();
        (void)umask(0077);
        (void)signal(SIGPIPE, SIG_IGN);
        r = config_load(program.config_path, &program.config, error);
        if (r < 0) {
                if (action == ACTION_RUN)
                        log_write(LOG_PRIORITY_ERR, NULL, NULL, 0, "%s", error);
                else
                        (void)fprintf(stderr, "%s\n", error);
                return config_exit_code(r);
        }
        if (action == ACTION_CHECK) {
                r = check_config(program.config);
                program_deinit(&program);
                return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
        }
        log_set_level(program.config->log_level);
        program.proc_fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        r = program.proc_fd < 0 ? fail("/proc", -errno) : run(&program);
        program_deinit(&program);
        return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
