/* SPDX-License-Identifier: Apache-2.0 */
/*
 * check without an agent: the same preflight, from the configuration, before the first start.
 *
 * What the service may do is what its user may do, so root becomes that user first: a private key that only root can read
 * would pass otherwise. The unit's sandbox can't be had here; once the agent runs, `check` asks it instead.
 */
#include "config.h"
#include "ctl_internal.h"
#include "driver.h"
#include "event.h"
#include "grpc.h"
#include "http.h"
#include "preflight.h"
#include "resolve.h"
#include "token.h"

#include <fcntl.h>
#include <grp.h>
#include <pwd.h>

#define WINDOW (64 * 1024)
#define FINDINGS_MAX (PREFLIGHT_FINDINGS_MAX + 2)

struct alone {
        struct config *config;
        struct event *event;
        struct resolve *resolve;
        struct http *http;
        struct token *token, *spark_token;
        struct grpc_channel *channel;
        struct driver *driver;
        struct preflight *preflight;
        int proc_fd;
        struct ctl_finding findings[FINDINGS_MAX];
        size_t count;
        char user_text[160], config_text[CONFIG_ERROR_MAX];
};

static void alone_deinit(struct alone *a) {
        a->preflight = preflight_free(a->preflight);
        a->driver = driver_free(a->driver);
        a->channel = grpc_channel_free(a->channel);
        a->spark_token = token_free(a->spark_token);
        a->token = token_free(a->token);
        a->http = http_free(a->http);
        a->resolve = resolve_free(a->resolve);
        a->event = event_free(a->event);
        a->config = config_free(a->config);
        base_close_pointer(&a->proc_fd);
}

static void add(struct alone *a, const char *name, const char *level, const char *text, const char *remedy) {
        a->findings[a->count++] = (struct ctl_finding){name, level, text, remedy};
}

/* become() - the user that the service runs as. Not root: as who we are. */
static void become(struct alone *a, const char *user) {
        const struct passwd *entry = geteuid() == 0 ? getpwnam(user) : NULL;
        char name[64];

        base_text_escape(name, sizeof(name), user, strlen(user));
        if (geteuid() != 0)
                (void)snprintf(a->user_text, sizeof(a->user_text), "checked as user %u, not as the service's", (unsigned)geteuid());
        else if (!entry)
                (void)snprintf(a->user_text, sizeof(a->user_text), "there is no user %s: checked as root", name);
        else if (initgroups(entry->pw_name, entry->pw_gid) < 0 ||
                 setresgid(entry->pw_gid, entry->pw_gid, entry->pw_gid) < 0 ||
                 setresuid(entry->pw_uid, entry->pw_uid, entry->pw_uid) < 0)
                (void)snprintf(a->user_text, sizeof(a->user_text), "can't become user %s: %s", name, strerror(errno));
        else {
                (void)snprintf(a->user_text, sizeof(a->user_text), "checked as user %s", name);
                add(a, "user", "ok", a->user_text, "");
                return;
        }
        add(a, "user", "warning", a->user_text, "Run it as root, with --user=NAME if the unit's User= is another than " CTL_USER_DEFAULT);
}

static int on_done(void *userdata) {
        struct alone *a = userdata;

        event_exit(a->event, 0);
        return 0;
}

static int on_wake(void *userdata) {
        (void)userdata;
        return 0;
}

static int make_clients(struct alone *a) {
        const struct config *c = a->config;
        int r = event_new(false, &a->event);

        if (r == 0)
                r = resolve_new(a->event, &a->resolve);
        if (r == 0)
                r = http_new(a->event, a->resolve, &a->http);
        if (r == 0 && (c->token_file || c->token_url))
                r = token_new(a->event, a->http, &(struct token_options){.file = c->token_file, .url = c->token_url},
                              &a->token);
        if (r == 0 && c->spark_token_file)
                r = token_new(a->event, a->http, &(struct token_options){.file = c->spark_token_file}, &a->spark_token);
        if (r < 0)
                return r;
        return grpc_channel_new(a->event, a->resolve,
                                &(struct grpc_channel_options){
                                        .endpoint = c->endpoint,
                                        .ca_file = c->ca_file,
                                        .certificate_file = c->certificate_file,
                                        .private_key_file = c->private_key_file,
                                        .server_name = c->server_name,
                                        .user_agent = "spark-cancelctl/" VERSION,
                                        .connect_timeout_usec =
                                                base_min_u64(c->connect_timeout_usec, PREFLIGHT_TIMEOUT_USEC),
                                        .stream_window = WINDOW,
                                },
                                &a->channel);
}

static int make_preflight(struct alone *a) {
        const struct config *c = a->config;
        int r = make_clients(a);

        if (r < 0)
                return r;
        a->proc_fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (a->proc_fd < 0)
                return -errno;
        r = driver_new(a->event,
                       &(struct driver_options){
                               .proc_fd = a->proc_fd,
                               .work_directory = c->work_directory,
                               .job_id_property = c->job_id_property,
                               .driver_uid = c->driver_uid,
                               .observe = true,
                       },
                       on_wake, NULL, &a->driver);
        if (r < 0)
                return r;
        return preflight_new(a->event,
                             &(struct preflight_options){
                                     .config = c,
                                     .http = a->http,
                                     .driver = a->driver,
                                     .spark_token = a->spark_token,
                                     .channel = a->channel,
                                     .token = a->token,
                             },
                             on_done, a, &a->preflight);
}

static int run(struct alone *a) {
        size_t count;
        int r = make_preflight(a);

        if (r == 0)
                r = event_run(a->event);
        if (r < 0)
                return r;
        const struct preflight_finding *findings = preflight_findings(a->preflight, &count);
        for (size_t i = 0; i < count; i++)
                add(a, findings[i].name, preflight_level_to_text(findings[i].level), findings[i].text,
                    findings[i].remedy);
        return 0;
}

int ctl_check_alone(const struct ctl_options *options) {
        _cleanup_(alone_deinit) struct alone a = {.proc_fd = -1};

        (void)signal(SIGPIPE, SIG_IGN);
        become(&a, options->user);
        if (config_load(options->config, &a.config, a.config_text) < 0)
                add(&a, "configuration", "failure", a.config_text,
                    "Mend it; `spark-cancel-agent --check-config` prints every effective key. Files named credential:NAME are "
                    "there only when systemd starts the agent: then check again");
        else {
                add(&a, "configuration", "ok", options->config, "");
                int r = run(&a);
                if (r < 0) {
                        (void)fprintf(stderr, "spark-cancelctl: can't check: %s\n", strerror(-r));
                        return CTL_NO;
                }
        }
        return ctl_print_check(a.findings, a.count, "configuration", options->json);
}
