/* SPDX-License-Identifier: Apache-2.0 */
/*
 * preflight: the questions go out together, what can be seen at once is looked at meanwhile
 *
 * Each master gets a `struct spark` of its own: a round over several ends at the first ALIVE one, and here each is to
 * be heard. They are made with `observe`, so no code path of a preflight can kill.
 *
 * The control plane is asked by a Report without reports. Watch would do as well, and would make the server end the
 * stream of an agent of this node that runs elsewhere ("another agent calls itself NODE").
 *
 * Clock: the agent knows the control plane's from its heartbeats. Without an agent only the kernel can be asked, which
 * knows whether a time service keeps the clock (adjtimex(2)); deadlines do not depend on it.
 */
#include "preflight.h"
#include "command.h"
#include "config.h"
#include "driver.h"
#include "event.h"
#include "grpc.h"
#include "http.h"
#include "spark.h"
#include "tls.h"
#include "token.h"

#include <pwd.h>
#include <sys/stat.h>
#include <sys/timex.h>

#define REPORT_PATH "/sparkcancel.agent.v1.CancelAgentService/Report"
#define NOBODYS_DRIVER "driver-00000000000000-0000" /* Spark's ids begin with a date */
#define RESPONSE_MAX (64 * 1024)
#define TOKEN_POLL_USEC (50 * USEC_PER_MSEC)
#define CERTIFICATE_SOON_DAYS 14
#define SKEW_MAX_USEC (30 * USEC_PER_SEC)

struct master {
        struct preflight *preflight;
        struct spark *spark;
        struct spark_request *request;
        struct preflight_finding *finding;
        bool alive;
};

struct preflight {
        struct preflight_options options;
        struct preflight_agent agent;
        int (*done)(void *userdata);
        void *userdata;
        struct event_source *deferred; /* for the case that nobody had to be asked */
        struct master masters[SPARK_MASTERS_MAX];
        size_t master_count;
        struct grpc_call *call;
        struct event *event;
        struct event_source *token_timer; /* a metadata service has not given the token yet */
        uint64_t token_until_usec;
        struct preflight_finding *plane;
        size_t waiting; /* questions that are out */
        struct preflight_finding findings[PREFLIGHT_FINDINGS_MAX];
        size_t count;
};

const char *preflight_level_to_text(enum preflight_level level) {
        switch (level) {
        case PREFLIGHT_OK:
                return "ok";
        case PREFLIGHT_WARNING:
                return "warning";
        case PREFLIGHT_FAILURE:
                return "failure";
        }
        return "";
}

/* ---- findings ------------------------------------------------------------------------------------------------------ */

/* A row in the order in which people read them; it is filled by say(). */
static struct preflight_finding *add(struct preflight *p, const char *name) {
        struct preflight_finding *finding = &p->findings[p->count < PREFLIGHT_FINDINGS_MAX - 1 ? p->count++ : p->count - 1];

        *finding = (struct preflight_finding){ 0 };
        (void)base_text_copy(finding->name, sizeof finding->name, name);
        return finding;
}

__attribute__((format(printf, 4, 5)))
static void say(struct preflight_finding *finding, enum preflight_level level, const char *remedy, const char *format, ...) {
        va_list arguments;

        finding->level = level;
        (void)base_text_copy(finding->remedy, sizeof finding->remedy, remedy);
        va_start(arguments, format);
        if (vsnprintf(finding->text, sizeof finding->text, format, arguments) < 0)
                finding->text[0] = 0;
        va_end(arguments);
}

/* ---- masters ------------------------------------------------------------------------------------------------------- */

static void master_say(struct master *master, const struct spark_result *result) {
        struct preflight_finding *finding = master->finding;
        const char *version = result->version[0] ? result->version : "unknown";

        switch (result->answer) {
        case SPARK_ACCEPTED:
        case SPARK_UNKNOWN_ID:
                master->alive = true;
                say(finding, PREFLIGHT_OK, "", "ALIVE, Spark %s", version);
                return;
        case SPARK_NOT_ALIVE:
                say(finding, PREFLIGHT_OK, "", "standby or recovering, Spark %s", version);
                return;
        case SPARK_UNREACHABLE:
                say(finding, PREFLIGHT_WARNING, "Is the master running, spark.master.rest.enabled true there, and this the "
                    "address of its REST port (6066, not 7077 or 8080)? Is the way open in the firewall?",
                    "no answer: %s", result->detail);
                return;
        case SPARK_REFUSED:
                say(finding, PREFLIGHT_WARNING, "Does [spark] masters name the REST port (6066) of the master?",
                    "refused: %s", result->detail);
                return;
        case SPARK_REFUSED_AUTH:
                say(finding, PREFLIGHT_WARNING, "Check [spark] token_file: the master demands a token and does not take this one",
                    "refused: %s", result->detail);
                return;
        case SPARK_ANSWER_MAX:
                break;
        }
}

static bool any_alive(const struct preflight *p) {
        for (size_t i = 0; i < p->master_count; i++)
                if (p->masters[i].alive)
                        return true;
        return false;
}

/* One ALIVE master is what a cancel needs; that another does not answer is for somebody to look at. */
static void judge_masters(struct preflight *p) {
        if (any_alive(p))
                return;
        for (size_t i = 0; i < p->master_count; i++) {
                struct preflight_finding *finding = p->masters[i].finding;

                if (finding->level == PREFLIGHT_OK)
                        say(finding, PREFLIGHT_FAILURE, "Look at the masters' logs and at ZooKeeper; is the ALIVE master missing in "
                            "[spark] masters?", "standby or recovering, and no master is ALIVE");
                finding->level = PREFLIGHT_FAILURE;
        }
}

static int answered(struct preflight *p) {
        if (--p->waiting > 0)
                return 0;
        judge_masters(p);
        return p->done(p->userdata); /* may free the preflight */
}

static int master_on_status(const struct spark_result *result, void *userdata) {
        struct master *master = userdata;

        master_say(master, result);
        master->request = spark_request_free(master->request);
        return answered(master->preflight);
}

static int ask_master(struct preflight *p, struct event *event, const char *url) {
        const struct config *c = p->options.config;
        struct master *master = &p->masters[p->master_count];
        char name[320];
        int r;

        (void)snprintf(name, sizeof name, "master %s", url);
        *master = (struct master){ .preflight = p, .finding = add(p, name) };
        r = spark_new(event, p->options.http,
                      &(struct spark_options){
                              .masters = &url,
                              .master_count = 1,
                              .request_timeout_usec = base_min_u64(c->request_timeout_usec, PREFLIGHT_TIMEOUT_USEC),
                              .token = p->options.spark_token,
                              .ca_file = c->spark_ca_file,
                              .certificate_file = c->spark_certificate_file,
                              .private_key_file = c->spark_private_key_file,
                              .observe = true,
                      },
                      &master->spark);
        if (r < 0)
                return r;
        p->master_count++;
        r = spark_status(master->spark, NOBODYS_DRIVER, master_on_status, master, &master->request);
        if (r == 0)
                p->waiting++;
        return r;
}

static int ask_masters(struct preflight *p, struct event *event) {
        const struct config_list *masters = &p->options.config->masters;
        int r = 0;

        for (size_t i = 0; r == 0 && i < masters->count && i < SPARK_MASTERS_MAX; i++)
                r = ask_master(p, event, masters->items[i]);
        return r;
}

/* ---- the control plane --------------------------------------------------------------------------------------------- */

static void plane_say_agent(struct preflight *p) {
        const struct config *c = p->options.config;

        if (p->agent.connected)
                say(p->plane, PREFLIGHT_OK, "", "connected to %s", c->endpoint);
        else
                say(p->plane, PREFLIGHT_FAILURE, "Check [control-plane] endpoint, ca_file, certificate_file and token_file, and the way "
                    "there; `journalctl -u spark-cancel-agent` tells each attempt",
                    "not connected to %s: %s", c->endpoint, p->agent.notice[0] ? p->agent.notice : "no answer yet");
}

static void plane_say_status(struct preflight *p, const struct grpc_result *result) {
        const char *endpoint = p->options.config->endpoint;

        switch (result->status) {
        case GRPC_OK:
        case GRPC_INVALID_ARGUMENT: /* it does not care for an empty Report; that took name, certificate and token */
        case GRPC_FAILED_PRECONDITION:
                say(p->plane, PREFLIGHT_OK, "", "%s answers; %s", endpoint,
                    p->options.token ? "the token is taken" : "no token is configured");
                return;
        case GRPC_UNAUTHENTICATED:
                say(p->plane, PREFLIGHT_FAILURE, "Check [control-plane] token_file or token_url, and that the token is not expired",
                    "%s does not take the credentials: %s", endpoint, result->message);
                return;
        case GRPC_PERMISSION_DENIED:
                say(p->plane, PREFLIGHT_FAILURE, "The certificate or token must be that of this cluster_id and node: compare [agent] "
                    "cluster_id and node with what it was issued for", "%s refuses this node: %s", endpoint, result->message);
                return;
        case GRPC_UNIMPLEMENTED:
                say(p->plane, PREFLIGHT_FAILURE, "Does [control-plane] endpoint name the control plane?",
                    "%s does not serve CancelAgentService: %s", endpoint, result->message);
                return;
        case GRPC_CANCELLED:
        case GRPC_UNKNOWN:
        case GRPC_DEADLINE_EXCEEDED:
        case GRPC_NOT_FOUND:
        case GRPC_ALREADY_EXISTS:
        case GRPC_RESOURCE_EXHAUSTED:
        case GRPC_ABORTED:
        case GRPC_OUT_OF_RANGE:
        case GRPC_INTERNAL:
        case GRPC_UNAVAILABLE:
        case GRPC_DATA_LOSS:
                break;
        }
        say(p->plane, PREFLIGHT_FAILURE, "Check [control-plane] endpoint, its name in DNS, the firewall, and ca_file, server_name and "
            "certificate_file", "no connection to %s: %s: %s", endpoint, grpc_status_to_text(result->status), result->message);
}

static int plane_on_message(struct grpc_call *call, struct span message, void *userdata) {
        (void)call;
        (void)message;
        (void)userdata;
        return 0;
}

static int plane_on_close(struct grpc_call *call, const struct grpc_result *result, void *userdata) {
        struct preflight *p = userdata;

        (void)call;
        plane_say_status(p, result);
        p->call = grpc_call_free(p->call);
        return answered(p);
}

static int ask_plane(struct preflight *p);

static int on_token_timer(void *userdata) {
        struct preflight *p = userdata;
        int r = ask_plane(p);

        if (r < 0)
                say(p->plane, PREFLIGHT_FAILURE, "", "can't ask: %s", strerror(-r));
        return answered(p); /* of this timer: a call that was begun is counted by itself */
}

static int ask_plane(struct preflight *p) {
        static const struct grpc_call_handlers handlers = { plane_on_message, plane_on_close };
        const struct config *c = p->options.config;
        struct buffer request = BUFFER_INIT(4096);
        const char *token = NULL;
        int r = token_get(p->options.token, &token);

        if (r == -EAGAIN && event_now_usec(p->event) < p->token_until_usec) {
                p->waiting++;
                return event_timer_set(p->token_timer, event_now_usec(p->event) + TOKEN_POLL_USEC);
        }
        if (r < 0) {
                say(p->plane, PREFLIGHT_FAILURE, "Check [control-plane] token_file or token_url, and who may read it",
                    "no token: %s", token_error(p->options.token));
                return 0;
        }
        r = command_encode_report_request(c->cluster_id, c->node, "preflight", NULL, 0, &request);
        if (r == 0)
                r = grpc_call_start(p->options.channel,
                                    &(struct grpc_call_options){
                                            .path = REPORT_PATH,
                                            .request = { request.data, request.size },
                                            .bearer_token = token,
                                            .timeout_usec = PREFLIGHT_TIMEOUT_USEC,
                                            .response_max = RESPONSE_MAX,
                                    },
                                    &handlers, p, &p->call);
        buffer_deinit(&request);
        if (r == 0)
                p->waiting++;
        return r;
}

/* ---- what can be seen at once ---------------------------------------------------------------------------------------- */

/* By name only where nobody waits: the look-up may go over the network, and the agent's loop must not. */
static void user_name(const struct preflight *p, uid_t uid, char *text, size_t size) {
        const struct passwd *entry = p->options.agent ? NULL : getpwuid(uid);

        if (entry)
                base_text_escape(text, size, entry->pw_name, strlen(entry->pw_name));
        else
                (void)snprintf(text, size, "%u", (unsigned)uid);
}

static void look_at_work_directory(struct preflight *p) {
        const struct config *c = p->options.config;
        struct preflight_finding *finding = add(p, "work directory");
        char owner[64];
        struct stat st;

        int error = stat(c->work_directory, &st) < 0 ? errno : !S_ISDIR(st.st_mode) ? ENOTDIR : 0;

        if (error == 0 && access(c->work_directory, X_OK) < 0)
                error = errno;
        if (error == ENOENT) {
                say(finding, PREFLIGHT_WARNING, "Is it the Worker's (SPARK_WORKER_DIR, or work below SPARK_HOME)? The Worker makes it "
                    "when it starts", "%s does not exist", c->work_directory);
                return;
        }
        if (error != 0) {
                say(finding, PREFLIGHT_FAILURE, "Let the agent's user pass through it, for example by the group of the drivers' user; see "
                    "also ProtectHome= and the like in the unit", "%s can't be entered: %s", c->work_directory, strerrordesc_np(error));
                return;
        }
        if (access(c->work_directory, R_OK) < 0) {
                say(finding, PREFLIGHT_WARNING, "Let the agent's user read it; without that a starting driver is seen only every 5 s",
                    "%s can be passed through and not be read", c->work_directory);
                return;
        }
        user_name(p, st.st_uid, owner, sizeof owner);
        if (c->driver_uid >= 0 && (uid_t)c->driver_uid != st.st_uid)
                say(finding, PREFLIGHT_WARNING, "Set [spark] driver_user to the user that the Worker runs drivers as",
                    "%s belongs to user %s, and driver_user is %s", c->work_directory, owner, c->driver_user);
        else
                say(finding, PREFLIGHT_OK, "", "%s, owned by user %s", c->work_directory, owner);
}

static void look_for_drivers(struct preflight *p) {
        struct preflight_finding *finding = add(p, "drivers");
        int r = driver_scan(p->options.driver);
        uint32_t count;

        if (r < 0) {
                say(finding, PREFLIGHT_FAILURE, r == -EACCES ? "/proc hides other users' processes: mount it without hidepid=, and the "
                    "unit must not set ProtectProc=invisible" : "", "the processes can't be listed: %s", strerror(-r));
                return;
        }
        count = driver_count(p->options.driver);
        if (count > 0)
                say(finding, PREFLIGHT_OK, "", "%" PRIu32 " running driver%s recognised among %" PRIu32 " processes", count,
                    count == 1 ? "" : "s", driver_scan_size(p->options.driver));
        else
                say(finding, PREFLIGHT_WARNING, "If none runs, all is well. To be sure run a job on this node and check again; a driver "
                    "that is not recognised is explained by `spark-cancelctl find JOB`",
                    "no driver with a %s recognised among %" PRIu32 " processes", p->options.config->job_id_property,
                    driver_scan_size(p->options.driver));
}

/* Escalation without the right to signal is refused when the configuration is read, so here it fits. */
static void look_at_rights(struct preflight *p) {
        const struct config *c = p->options.config;
        struct preflight_finding *finding = add(p, "rights");
        char name[64];

        user_name(p, geteuid(), name, sizeof name);
        if (c->observe)
                say(finding, PREFLIGHT_WARNING, "Set [cancel] mode = act when the roll-out is done",
                    "observe mode: nothing is killed, whatever comes");
        else if (c->escalation == CANCEL_ESCALATION_NONE)
                say(finding, PREFLIGHT_OK, "", "user %s; Spark does the killing (escalation = none)", name);
        else
                say(finding, PREFLIGHT_OK, "", "user %s; may signal the drivers' user (escalation = %s)", name,
                    c->escalation == CANCEL_ESCALATION_SIGTERM ? "term" : "kill");
}

static void look_at_state(struct preflight *p) {
        const char *path = p->options.config->state_directory;
        struct preflight_finding *finding = add(p, "state directory");

        if (p->options.agent && p->agent.store_failing)
                say(finding, PREFLIGHT_WARNING, "Look at the disk: df, dmesg; the journal names the error",
                    "%s can't be written: the agent works from memory, and a crash would lose what it has not written", path);
        else if (p->options.agent || access(path, W_OK | X_OK) == 0)
                say(finding, PREFLIGHT_OK, "", "%s can be written", path);
        else if (errno == ENOENT)
                say(finding, PREFLIGHT_OK, "", "%s is not there yet; systemd makes it", path);
        else
                say(finding, PREFLIGHT_FAILURE, "It must belong to the agent's user (StateDirectory= in the unit sees to that)",
                    "%s can't be written: %s", path, strerrordesc_np(errno));
}

/* Our own; the peers' are judged when a connection is made. */
static void look_at_certificate(struct preflight *p, const char *name, const char *path) {
        static const char remedy[] = "Renew it: issue a new one to the same name and replace the files; they are read again for "
                                     "each connection";
        uint64_t end_usec, now_usec = event_real_usec(p->event);
        struct preflight_finding *finding;
        int r;

        if (!path)
                return;
        finding = add(p, name);
        r = tls_file_expires(path, &end_usec);
        if (r < 0) {
                say(finding, PREFLIGHT_FAILURE, "It must be a PEM file that the agent's user may read", "%s: %s", path,
                    r == -EINVAL ? "no certificate in it" : strerror(-r));
                return;
        }
        if (end_usec <= now_usec)
                say(finding, PREFLIGHT_FAILURE, remedy, "%s has expired", path);
        else {
                uint64_t days = (end_usec - now_usec) / (24 * USEC_PER_HOUR);
                bool soon = days < CERTIFICATE_SOON_DAYS;

                say(finding, soon ? PREFLIGHT_WARNING : PREFLIGHT_OK, soon ? remedy : "", "%s expires in %" PRIu64 " days", path, days);
        }
}

static void look_at_clock(struct preflight *p) {
        struct preflight_finding *finding = add(p, "clock");
        struct timex kernel = { 0 };
        int state;

        if (p->options.agent && p->agent.skew_known) {
                bool far = p->agent.skew_usec > SKEW_MAX_USEC;

                say(finding, far ? PREFLIGHT_WARNING : PREFLIGHT_OK, far ? "Start a time service (chrony, systemd-timesyncd). Deadlines do "
                    "not depend on it, the times in reports do" : "", "%" PRIu64 " s from the control plane's",
                    p->agent.skew_usec / USEC_PER_SEC);
                return;
        }
        if (p->options.agent) {
                say(finding, PREFLIGHT_OK, "", "the control plane's is not known yet");
                return;
        }
        state = adjtimex(&kernel); /* modes 0: reads only */
        if (state < 0)
                say(finding, PREFLIGHT_OK, "", "the kernel does not tell whether it is kept: %s", strerrordesc_np(errno));
        else if (state == TIME_ERROR || (kernel.status & STA_UNSYNC))
                say(finding, PREFLIGHT_WARNING, "Start a time service (chrony, systemd-timesyncd). Deadlines do not depend on it, the "
                    "times in reports do", "no time service keeps it");
        else
                say(finding, PREFLIGHT_OK, "", "kept by a time service");
}

/* ---- life ------------------------------------------------------------------------------------------------------------ */

static int on_nothing_asked(void *userdata) {
        return answered(userdata);
}

static int begin(struct preflight *p, struct event *event) {
        int r = event_add_deferred(event, "preflight", on_nothing_asked, p, &p->deferred);

        if (r == 0)
                r = event_add_timer(event, "preflight-token", on_token_timer, p, &p->token_timer);
        if (r < 0)
                return r;
        p->event = event;
        p->token_until_usec = event_now_usec(event) + PREFLIGHT_TIMEOUT_USEC;
        p->waiting = 1; /* this call itself: nobody is done before it is over */
        p->plane = add(p, "control plane");
        if (p->options.agent)
                plane_say_agent(p);
        else
                r = ask_plane(p);
        if (r == 0)
                r = ask_masters(p, event);
        if (r < 0)
                return r;
        look_at_certificate(p, "certificate", p->options.config->certificate_file);
        look_at_certificate(p, "certificate for the masters", p->options.config->spark_certificate_file);
        look_at_work_directory(p);
        look_for_drivers(p);
        look_at_rights(p);
        look_at_state(p);
        look_at_clock(p);
        return event_deferred_schedule(p->deferred);
}

int preflight_new(struct event *event, const struct preflight_options *options, int (*done)(void *userdata),
                  void *userdata, struct preflight **ret) {
        _cleanup_(preflight_free_pointer) struct preflight *p = calloc(1, sizeof *p);
        int r;

        if (!p)
                return -ENOMEM;
        p->options = *options;
        if (options->agent)
                p->agent = *options->agent;
        p->done = done;
        p->userdata = userdata;
        r = begin(p, event);
        if (r < 0)
                return r;
        *ret = TAKE(p);
        return 0;
}

struct preflight *preflight_free(struct preflight *p) {
        if (!p)
                return NULL;
        p->deferred = event_source_free(p->deferred);
        p->token_timer = event_source_free(p->token_timer);
        p->call = grpc_call_free(p->call);
        for (size_t i = 0; i < p->master_count; i++) {
                p->masters[i].request = spark_request_free(p->masters[i].request);
                p->masters[i].spark = spark_free(p->masters[i].spark);
        }
        free(p);
        return NULL;
}

const struct preflight_finding *preflight_findings(const struct preflight *p, size_t *ret_count) {
        *ret_count = p->count;
        return p->findings;
}

bool preflight_is_able(const struct preflight *p) {
        for (size_t i = 0; i < p->count; i++)
                if (p->findings[i].level == PREFLIGHT_FAILURE)
                        return false;
        return true;
}
