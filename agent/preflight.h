/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * preflight: could this node cancel a job, before any must be cancelled?
 *
 * Every part that a cancel needs is looked at once: the control plane (name, certificate, token), each Spark master
 * (reachable, REST enabled, version, one ALIVE), the work directory, the drivers that can be seen, rights, clock.
 * Nothing is changed: masters get a status question for an id that no driver has, the control plane an empty Report.
 * It runs inside the agent, with the agent's rights and sandbox, and without one, from the configuration.
 */
#include "base.h"

struct config;
struct driver;
struct event;
struct grpc_channel;
struct http;
struct preflight;
struct token;

#define PREFLIGHT_FINDINGS_MAX 32
#define PREFLIGHT_TIMEOUT_USEC (5 * USEC_PER_SEC) /* of each question; they go out together */

enum preflight_level {
        PREFLIGHT_OK,
        PREFLIGHT_WARNING, /* a cancel is possible; somebody should look at it */
        PREFLIGHT_FAILURE, /* this node could not cancel */
};

struct preflight_finding {
        char name[320]; /* what was looked at: "control plane", "master http://m1:6066" */
        enum preflight_level level;
        char text[640];
        char remedy[400]; /* "": nothing is to be done */
};

struct preflight_agent { /* what a running agent knows without asking */
        bool connected;
        const char *notice; /* why it is not connected; "" when nobody said */
        bool store_failing;
        bool skew_known;
        uint64_t skew_usec; /* between this node's clock and the control plane's */
};

struct preflight_options { /* nothing is owned; all must outlive the preflight */
        const struct config *config;         /* with `agent`: read while it begins only */
        struct http *http;
        struct driver *driver;
        struct token *spark_token;           /* NULL: none is configured */
        const struct preflight_agent *agent; /* copied; NULL: no agent runs, and then: */
        struct grpc_channel *channel;        /* the control plane is asked through this */
        struct token *token;                 /* NULL: none is configured */
};

/* preflight_new() - look and ask; `done` is called once, from the loop, when all have answered or their time is over
 * (at most PREFLIGHT_TIMEOUT_USEC and the connect time). -errno. preflight_free() - at any time. */
int preflight_new(struct event *event, const struct preflight_options *options, int (*done)(void *userdata),
                  void *userdata, struct preflight **ret);
struct preflight *preflight_free(struct preflight *preflight);
DEFINE_CLEANUP(struct preflight *, preflight_free)

/* preflight_findings() - valid after `done`, as long as the preflight. preflight_is_able() - none is a failure. */
const struct preflight_finding *preflight_findings(const struct preflight *preflight, size_t *ret_count);
bool preflight_is_able(const struct preflight *preflight);

const char *preflight_level_to_text(enum preflight_level level); /* "ok", "warning", "failure" */
