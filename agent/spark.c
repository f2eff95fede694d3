/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spark: the masters' REST submission API: kill and status
 *
 * The I/O around spark_reply.c, which knows what a reply means. A request walks over the masters, one at a time: asking
 * them all at once would send one kill to several masters in a failover, and gain a few milliseconds. The master that
 * answered as ALIVE last goes first, so in quiet times a question is one request on a kept-alive connection.
 *
 * Whatever fails before a request is handed to the HTTP client (no token, no memory) counts as that master's answer, so
 * the round always ends with one call of the handler. If that happens before anything was sent the end is delivered by
 * a deferred source: the handler is never called from within spark_kill().
 */
#include "spark.h"
#include "event.h"
#include "http.h"
#include "metrics.h"
#include "spark_reply.h"
#include "token.h"

#define MASTER_URL_MAX 300
#define PATH_PREFIX "/v1/submissions/"

/* Whom to ask, and how. A round goes to its end with those that it began with, whatever is configured meanwhile. */
struct targets {
        unsigned references;
        char **masters; /* without a slash at the end */
        size_t master_count;
        char **worker_hosts;
        size_t worker_host_count;
        uint64_t request_timeout_usec;
        char *ca_file, *certificate_file, *private_key_file;
};

struct spark {
        struct event *event;
        struct http *http;
        struct token *token;
        struct targets *targets;
        bool observe; /* for the object's life: spark_reconfigure() leaves it */
        size_t alive; /* index of the master that answered as ALIVE last */
};

struct spark_request {
        struct spark *spark;
        struct targets *targets;
        enum spark_question question;
        char driver_id[DRIVER_ID_MAX + 1];
        spark_handler handler;
        void *userdata;
        struct http_request *http;
        struct event_source *deferred;
        size_t first;   /* where the round began */
        size_t visited; /* masters done with */
        size_t current; /* the one that is being asked, or was last */
        uint32_t asked;
        enum spark_answer answer; /* combined, of those visited */
        char version[SPARK_VERSION_MAX + 1];
        char detail[SPARK_DETAIL_MAX + 1];
};

const char *spark_answer_to_text(enum spark_answer answer) {
        switch (answer) {
        case SPARK_ACCEPTED:
                return "accepted";
        case SPARK_UNKNOWN_ID:
                return "unknown id";
        case SPARK_NOT_ALIVE:
                return "not alive";
        case SPARK_UNREACHABLE:
                return "unreachable";
        case SPARK_REFUSED:
                return "refused";
        case SPARK_REFUSED_AUTH:
                return "refused auth";
        case SPARK_ANSWER_MAX:
                break;
        }
        return "invalid";
}

/* ---- the end of a round --------------------------------------------------------------------------- */

static bool worker_is_here(const struct targets *targets, const struct spark_reply *reply) {
        for (size_t i = 0; i < targets->worker_host_count; i++)
                if (spark_host_is_same(reply->worker_host, targets->worker_hosts[i]))
                        return true;
        return false;
}

/* request_deliver() - the handler may free the request, so nothing of it is touched after the call. */
static int request_deliver(struct spark_request *request, const struct spark_result *result) {
        int r = request->handler(result, request->userdata);
        return r < 0 ? r : 0;
}

static int request_finish(struct spark_request *request, const struct spark_reply *reply) {
        const struct targets *targets = request->targets;
        struct spark_result result = {
                .answer = reply->answer,
                .state = reply->state,
                .worker_named = reply->worker_named,
                .worker_here = reply->worker_named && worker_is_here(targets, reply),
                .master = targets->masters[request->current],
                .detail = reply->detail,
                .asked = request->asked,
        };
        (void)base_text_copy(result.state_text, sizeof(result.state_text), reply->state_text);
        (void)base_text_copy(result.version, sizeof(result.version), reply->version);
        (void)base_text_copy(result.worker_host_port, sizeof(result.worker_host_port), reply->worker_host_port);
        return request_deliver(request, &result);
}

/* No ALIVE master was met. */
static int request_finish_without(struct spark_request *request) {
        char detail[SPARK_DETAIL_MAX + 1];

        (void)base_text_copy(detail, sizeof(detail), request->detail);
        struct spark_result result = {
                .answer = request->answer,
                .master = request->targets->masters[request->current],
                .detail = detail,
                .asked = request->asked,
        };
        (void)base_text_copy(result.version, sizeof(result.version), request->version);
        return request_deliver(request, &result);
}

/* ---- one master after the other ------------------------------------------------------------------- */

/* Appends "master: detail" to what people read at the end. */
static void request_note(struct spark_request *request, const char *detail) {
        char text[MASTER_URL_MAX + SPARK_DETAIL_MAX + 8];
        size_t used = strlen(request->detail);

        snprintf(text, sizeof(text), "%s%s: %s", used > 0 ? "; " : "", request->targets->masters[request->current],
                 detail);
        base_text_escape(request->detail + used, sizeof(request->detail) - used, text, strlen(text));
}

static void request_pass_by(struct spark_request *request, enum spark_answer answer, const char *detail) {
        request_note(request, detail);
        request->answer = spark_reply_combine(request->answer, answer);
        request->visited++;
}

static int request_continue(struct spark_request *request);

static int on_http(const struct http_result *http, void *userdata) {
        struct spark_request *request = userdata;
        struct spark_reply reply = {.answer = SPARK_UNREACHABLE};

        if (http->outcome == HTTP_ANSWERED)
                spark_reply_classify(request->question, request->driver_id, http->status, http->body, &reply);
        else
                base_text_escape(reply.detail, sizeof(reply.detail), http->error, strlen(http->error));
        if (reply.version[0])
                (void)base_text_copy(request->version, sizeof(request->version), reply.version);
        token_redact(request->spark->token, reply.detail);
        request->http = http_request_free(request->http);
        metrics_add(METRICS_MASTER_ANSWERS, spark_answer_to_text(reply.answer), 1);
        if (spark_reply_is_final(reply.answer)) {
                if (request->targets == request->spark->targets)
                        request->spark->alive = request->current;
                return request_finish(request, &reply);
        }
        request_pass_by(request, reply.answer, reply.detail);
        return request_continue(request);
}

/* Which failures of token_get() pass by themselves? The rest needs a person. */
static bool error_is_passing(int error) {
        return error == -EAGAIN || error == -ENOMEM || error == -EMFILE || error == -ENFILE || error == -EIO ||
               error == -ESTALE || error == -EINTR;
}

static int request_ask(struct spark_request *request, const char *token) {
        const struct targets *targets = request->targets;
        bool is_kill = request->question == SPARK_QUESTION_KILL;
        char url[MASTER_URL_MAX + sizeof(PATH_PREFIX) + 8 + DRIVER_ID_MAX];

        snprintf(url, sizeof(url), "%s" PATH_PREFIX "%s/%s", targets->masters[request->current],
                 is_kill ? "kill" : "status", request->driver_id);
        struct http_options options = {
                .url = url,
                .method = is_kill ? "POST" : "GET",
                .bearer_token = token,
                .timeout_usec = targets->request_timeout_usec,
                .body_max = SPARK_REPLY_BYTES_MAX,
                .ca_file = targets->ca_file,
                .certificate_file = targets->certificate_file,
                .private_key_file = targets->private_key_file,
        };
        int r = http_request_start(request->spark->http, &options, on_http, request, &request->http);
        if (r < 0)
                return r;
        request->asked++;
        return 0;
}

/* request_step() - ask the next master. 1: one is asked; 0: none is left. */
static int request_step(struct spark_request *request) {
        const struct spark *spark = request->spark;
        char text[SPARK_DETAIL_MAX];

        while (request->visited < request->targets->master_count) {
                /* The first one, then the list from its beginning without it. */
                size_t index = request->visited - (request->visited <= request->first ? 1 : 0);
                const char *token;
                request->current = request->visited == 0 ? request->first : index;

                int r = token_get(spark->token, &token);
                if (r < 0) {
                        const char *reason = token_error(spark->token);
                        snprintf(text, sizeof(text), "no token: %s", reason[0] ? reason : strerrordesc_np(-r));
                        request_pass_by(request, error_is_passing(r) ? SPARK_UNREACHABLE : SPARK_REFUSED_AUTH, text);
                        continue;
                }
                r = request_ask(request, token);
                if (r == 0)
                        return 1;
                snprintf(text, sizeof(text), "cannot ask: %s", strerrordesc_np(-r));
                request_pass_by(request, SPARK_UNREACHABLE, text);
        }
        return 0;
}

static int request_continue(struct spark_request *request) {
        return request_step(request) > 0 ? 0 : request_finish_without(request);
}

static int on_deferred(void *userdata) {
        return request_finish_without(userdata);
}

/* ---- targets ---------------------------------------------------------------------------------------- */

static void texts_free(char **texts, size_t count) {
        for (size_t i = 0; texts && i < count; i++)
                free(texts[i]);
        free(texts);
}

static struct targets *targets_free(struct targets *targets) {
        if (!targets || --targets->references > 0)
                return NULL;
        texts_free(targets->masters, targets->master_count);
        texts_free(targets->worker_hosts, targets->worker_host_count);
        free(targets->ca_file);
        free(targets->certificate_file);
        free(targets->private_key_file);
        free(targets);
        return NULL;
}
DEFINE_CLEANUP(struct targets *, targets_free)

/* ---- requests --------------------------------------------------------------------------------------- */

static int request_start(struct spark *spark, enum spark_question question, const char *driver_id,
                         spark_handler handler, void *userdata, struct spark_request **ret) {
        if (!base_driver_id_is_valid(driver_id, strlen(driver_id)))
                return -EINVAL;
        _cleanup_(spark_request_free_pointer) struct spark_request *request = calloc(1, sizeof(*request));
        if (!request)
                return -ENOMEM;
        request->spark = spark;
        request->targets = spark->targets;
        request->targets->references++;
        request->question = question;
        request->handler = handler;
        request->userdata = userdata;
        request->answer = SPARK_NOT_ALIVE;
        request->first = request->current = spark->alive;
        (void)base_text_copy(request->driver_id, sizeof(request->driver_id), driver_id);
        int r = event_add_deferred(spark->event, "spark-round", on_deferred, request, &request->deferred);
        if (r < 0)
                return r;
        if (request_step(request) == 0) {
                r = event_deferred_schedule(request->deferred);
                if (r < 0)
                        return r;
        }
        *ret = TAKE(request);
        return 0;
}

int spark_kill(struct spark *spark, const char *driver_id, spark_handler handler, void *userdata,
               struct spark_request **ret) {
        if (spark->observe)
                return -ECANCELED;
        return request_start(spark, SPARK_QUESTION_KILL, driver_id, handler, userdata, ret);
}

int spark_status(struct spark *spark, const char *driver_id, spark_handler handler, void *userdata,
                 struct spark_request **ret) {
        return request_start(spark, SPARK_QUESTION_STATUS, driver_id, handler, userdata, ret);
}

struct spark_request *spark_request_free(struct spark_request *request) {
        if (!request)
                return NULL;
        http_request_free(request->http);
        event_source_free(request->deferred);
        targets_free(request->targets);
        free(request);
        return NULL;
}

/* ---- the object --------------------------------------------------------------------------------------- */

/* gcc's analyzer does not see that texts_free() frees as many as were copied. */
#ifndef __clang__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wanalyzer-malloc-leak"
#endif
static int texts_copy(const char *const *texts, size_t count, char ***ret, size_t *ret_count) {
        char **copy = calloc(count > 0 ? count : 1, sizeof(*copy));
        if (!copy)
                return -ENOMEM;
        for (size_t i = 0; i < count; i++) {
                copy[i] = strdup(texts[i]);
                if (!copy[i]) {
                        texts_free(copy, i);
                        return -ENOMEM;
                }
        }
        *ret = copy;
        *ret_count = count;
        return 0;
}
#ifndef __clang__
#pragma GCC diagnostic pop
#endif

static int text_copy(const char *text, char **ret) {
        if (!text)
                return 0;
        char *copy = strdup(text);
        if (!copy)
                return -ENOMEM;
        *ret = copy;
        return 0;
}

static int targets_copy(struct targets *targets, const struct spark_options *options) {
        int r = texts_copy(options->masters, options->master_count, &targets->masters, &targets->master_count);
        if (r == 0)
                r = texts_copy(options->worker_hosts, options->worker_host_count, &targets->worker_hosts,
                               &targets->worker_host_count);
        if (r == 0)
                r = text_copy(options->ca_file, &targets->ca_file);
        if (r == 0)
                r = text_copy(options->certificate_file, &targets->certificate_file);
        if (r == 0)
                r = text_copy(options->private_key_file, &targets->private_key_file);
        if (r < 0)
                return r;
        for (size_t i = 0; i < targets->master_count; i++) {
                size_t size = strlen(targets->masters[i]);
                while (size > 0 && targets->masters[i][size - 1] == '/')
                        targets->masters[i][--size] = '\0';
                if (size == 0 || size > MASTER_URL_MAX)
                        return -EINVAL;
        }
        return 0;
}

static int targets_new(const struct spark_options *options, struct targets **ret) {
        if (options->master_count == 0 || options->master_count > SPARK_MASTERS_MAX)
                return -EINVAL;
        _cleanup_(targets_free_pointer) struct targets *targets = calloc(1, sizeof(*targets));
        if (!targets)
                return -ENOMEM;
        targets->references = 1;
        targets->request_timeout_usec = options->request_timeout_usec;
        int r = targets_copy(targets, options);
        if (r < 0)
                return r;
        *ret = TAKE(targets);
        return 0;
}

int spark_new(struct event *event, struct http *http, const struct spark_options *options, struct spark **ret) {
        _cleanup_(spark_free_pointer) struct spark *spark = calloc(1, sizeof(*spark));
        if (!spark)
                return -ENOMEM;
        spark->event = event;
        spark->http = http;
        spark->observe = options->observe;
        int r = spark_reconfigure(spark, options);
        if (r < 0)
                return r;
        *ret = TAKE(spark);
        return 0;
}

int spark_reconfigure(struct spark *spark, const struct spark_options *options) {
        struct targets *targets;
        int r = targets_new(options, &targets);
        if (r < 0)
                return r;
        targets_free(spark->targets);
        spark->targets = targets;
        spark->token = options->token;
        spark->alive = 0;
        return 0;
}

struct spark *spark_free(struct spark *spark) {
        if (!spark)
                return NULL;
        targets_free(spark->targets);
        free(spark);
        return NULL;
}
