/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * agent: the imperative shell: the turn
 *
 * Gather → step → commit → act. All that happened since the last turn is gathered as events, among them one scan
 * for all operations that search; each event is fed to its operation's pure step; what changed is committed in
 * one transaction on the writer thread; when that is done the deeds run (kills, signals, reports). Questions
 * (scan, status) change nothing and do not wait for the commit. What comes in during a commit gathers for the
 * next turn: that is the group commit.
 */
#include "base.h"

struct agent;
struct config;
struct control;
struct driver;
struct event;
struct spark;
struct store;
struct store_info;
struct bus_call;
struct bus_status;
struct http;
struct token;
struct bus_operation;
struct command_event;

struct agent_options {
        const struct config *config;   /* not owned; must outlive the agent or be replaced by agent_reconfigure() */
        const char *agent_version;
};

/* agent_new() - the parts are not owned; wire them with agent_attach() before agent_start(). */
int agent_new(struct event *event, const struct agent_options *options, struct agent **ret);
struct agent *agent_free(struct agent *agent);
DEFINE_CLEANUP(struct agent *, agent_free)
void agent_attach(struct agent *agent, struct control *control, struct driver *driver, struct spark *spark,
                  struct store *store);

/* agent_start() - load the store, feed RESTARTED to every open operation, open the stream. */
int agent_start(struct agent *agent, const struct store_info *info);

/* agent_stop() - no new work, flush reports for `timeout_usec`, then event_exit(0). */
int agent_stop(struct agent *agent, uint64_t timeout_usec);

/* agent_reconfigure() - times and limits of a reloaded configuration apply from the next step on. */
void agent_reconfigure(struct agent *agent, const struct config *config);

/* agent_status_text() - the STATUS= line: "Connected to cp.example:443; 2 open, 1 waiting for a driver". */
void agent_status_text(const struct agent *agent, char *text, size_t size);
/* agent_set_gauges() - bring the counts of operations among the metrics up to date: before these are written. */
void agent_set_gauges(const struct agent *agent);
/* agent_on_status() - called when the line may have changed, at most once a second. */
void agent_on_status(struct agent *agent, int (*changed)(void *userdata), void *userdata);

/* The functions behind the bus. */
void agent_bus_status(struct bus_status *ret, void *userdata);
int agent_bus_list(bool all, int (*visit)(const struct bus_operation *operation, void *visitor), void *visitor,
                   void *userdata);
int agent_bus_retry(const char *operation_id, void *userdata);
int agent_bus_find(const char *job_id, struct bus_call *call, void *userdata);
int agent_bus_cancel(const char *job_id, uint32_t uid, struct bus_call *call, void *userdata);
int agent_bus_check(struct bus_call *call, void *userdata);

/* agent_lend() - what a preflight needs and the agent has no use for itself. */
void agent_lend(struct agent *agent, struct http *http, struct token *spark_token);

/* Handlers of control and driver; userdata is the agent. main.c passes them when it makes these parts. */
extern const struct control_handlers agent_control_handlers;
int agent_driver_wake(void *userdata);
