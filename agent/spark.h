/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * spark: the masters' REST submission API: kill and status
 *
 * One question is a round over the list of masters: the one that answered as ALIVE last is asked first, a
 * standby, recovering, dead or odd one is passed by, and the round ends with the first answer of an ALIVE
 * master. Every reply is classified into a closed enum at this edge: HTTP 200 proves nothing by itself, the
 * JSON's `action`, `success` and `message` do (facts: core/src/main/scala/org/apache/spark/deploy/rest/ and
 * deploy/master/Master.scala). A link-time seam: tests/sim has a fake of this header.
 */
#include "base.h"

struct event;
struct http;
struct spark;
struct spark_request;
struct token;

#define SPARK_MASTERS_MAX 16
#define SPARK_VERSION_MAX 31

enum spark_answer { /* of a whole round */
        SPARK_ACCEPTED,     /* kill: success:true; status: the id is known */
        SPARK_UNKNOWN_ID,   /* an ALIVE master: "already finished or does not exist", or status success:false without a message */
        SPARK_NOT_ALIVE,    /* every master answered that it is standby or recovering */
        SPARK_UNREACHABLE,  /* none answered as ALIVE, and at least one was silent, busy (408, 425, 429, 5xx) or talked nonsense */
        SPARK_REFUSED,      /* none ALIVE or silent, at least one refused for good: 400, 404, 405, 414, 431, 468, a redirect */
        SPARK_REFUSED_AUTH, /* the same, and one said 401 or 403 */
        SPARK_ANSWER_MAX,
};

enum spark_driver_state { /* deploy/master/DriverState.scala */
        SPARK_STATE_NONE, SPARK_STATE_SUBMITTED, SPARK_STATE_RUNNING, SPARK_STATE_FINISHED, SPARK_STATE_RELAUNCHING,
        SPARK_STATE_KILLED, SPARK_STATE_FAILED, SPARK_STATE_ERROR, SPARK_STATE_OTHER,
};

struct spark_result { /* valid during the callback */
        enum spark_answer answer;
        enum spark_driver_state state;         /* status only */
        char state_text[DRIVER_STATE_MAX + 1]; /* Spark's own word, escaped */
        bool worker_named;                     /* status: workerHostPort was there */
        bool worker_here;                      /* … and its host is among worker_hosts */
        char worker_host_port[280];            /* escaped */
        char version[SPARK_VERSION_MAX + 1];   /* of Spark, by its last answer in the round; escaped; "": not told */
        const char *master;                    /* URL of the master whose answer decided; of the last asked otherwise */
        const char *detail;                    /* for people: Spark's message or the error of each master, escaped, at most 512 */
        uint32_t asked;                        /* masters to which the request was handed: 0 without a readable token */
};

typedef int (*spark_handler)(const struct spark_result *result, void *userdata);

struct spark_options { /* all copied */
        const char *const *masters;      /* URLs, scheme://host:port */
        size_t master_count;
        const char *const *worker_hosts; /* names and addresses under which Spark knows this node's worker, compared without case */
        size_t worker_host_count;
        uint64_t request_timeout_usec;   /* per master */
        struct token *token;             /* NULL: no Authorization header; not owned. See spark_kill(). */
        const char *ca_file, *certificate_file, *private_key_file;
        bool observe;                    /* no kill request leaves: spark_kill() is -ECANCELED */
};

/* spark_new() - -EINVAL: no master or more than SPARK_MASTERS_MAX, or a URL too long. */
int spark_new(struct event *event, struct http *http, const struct spark_options *options, struct spark **ret);
struct spark *spark_free(struct spark *spark); /* all requests must have been freed */
DEFINE_CLEANUP(struct spark *, spark_free)

/* spark_reconfigure() - other options for the rounds that begin from now on; those under way go to their end with the
 * old ones. `observe` stays what it was. -EINVAL as above, -ENOMEM: nothing has changed. */
int spark_reconfigure(struct spark *spark, const struct spark_options *options);

/* spark_kill() / spark_status() - one round for a valid driver id (base_driver_id_is_valid(), else -EINVAL).
 * The handler is called once, on the loop, never from within this call. Slots: freeing cancels, at any time. A kill
 * that was cancelled, or whose round ended as SPARK_UNREACHABLE, may have been carried out all the same.
 * While a configured token cannot be had nobody is asked. A file that is missing, unreadable or unusable makes the
 * round SPARK_REFUSED_AUTH: a person is needed; the next round reads it again. What passes by itself, such as a
 * metadata service that has not answered yet, makes it SPARK_UNREACHABLE. spark_kill(): -ECANCELED with `observe`. */
int spark_kill(struct spark *spark, const char *driver_id, spark_handler handler, void *userdata,
               struct spark_request **ret);
int spark_status(struct spark *spark, const char *driver_id, spark_handler handler, void *userdata,
                 struct spark_request **ret);
struct spark_request *spark_request_free(struct spark_request *request);
DEFINE_CLEANUP(struct spark_request *, spark_request_free)

const char *spark_answer_to_text(enum spark_answer answer); /* "accepted", "unknown id", … */
