/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * metrics: counters, gauges and latency histograms, kept in one const table of names
 *
 * A metric is an index into the table in metrics.c; there is no registration and no allocation. The whole set
 * is rendered as Prometheus text (exposition format 0.0.4) for node_exporter's textfile collector and for the
 * local bus. Loop thread only.
 */
#include "base.h"

enum metrics_id { /* the table in metrics.c has one row for each, with name, type and help */
        METRICS_BUILD_INFO,            /* gauge 1 with label version */
        METRICS_OBSERVE_MODE,          /* gauge 0/1 */
        METRICS_STREAM_UP,             /* gauge 0/1 */
        METRICS_STREAM_CONNECTS,       /* counter: Watch streams opened */
        METRICS_LAST_CONTACT,          /* gauge: unix seconds of the last message from the control plane */
        METRICS_COMMANDS,              /* counter: cancel commands received */
        METRICS_COMMANDS_INVALID,      /* counter */
        METRICS_COMMANDS_DUPLICATE,    /* counter */
        METRICS_REVISIONS_BACKWARD,    /* counter: lower or equal revisions seen within a stream */
        METRICS_OPERATIONS_OPEN,       /* gauge: not DONE, not QUARANTINE */
        METRICS_OPERATIONS_SEARCHING,  /* gauge */
        METRICS_OPERATIONS_QUARANTINED,/* gauge */
        METRICS_OUTCOMES,              /* counter with label outcome */
        METRICS_KILL_REQUESTS,         /* counter */
        METRICS_MASTER_ANSWERS,        /* counter with label answer */
        METRICS_REPORT_RETRIES,        /* counter: failed Report calls */
        METRICS_SCANS,                 /* counter: passes over /proc */
        METRICS_SCAN_SECONDS,          /* histogram */
        METRICS_SCAN_PROCESSES,        /* gauge: processes seen in the last scan */
        METRICS_COMMITS,               /* counter */
        METRICS_COMMIT_SECONDS,        /* histogram */
        METRICS_STORE_FAILING,         /* gauge 0/1: the agent goes on from memory */
        METRICS_RECORDS_UNWRITTEN,     /* gauge: operations whose record only memory has */
        METRICS_KILL_SECONDS,          /* histogram: command received to kill request sent */
        METRICS_DEATH_SECONDS,         /* histogram: command received to process proved gone */
        METRICS_ID_MAX,
};

/* metrics_add() - add to a counter. `label` is the value of the metric's one label, NULL for a metric without;
 * at most 32 label values per metric are kept, further ones count under "other". The label must stay valid
 * (a literal). metrics_set() - set a gauge. metrics_observe_usec() - put a duration into a histogram. */
void metrics_add(enum metrics_id id, const char *label, uint64_t amount);
void metrics_set(enum metrics_id id, const char *label, double value);
void metrics_observe_usec(enum metrics_id id, uint64_t usec);
uint64_t metrics_get(enum metrics_id id, const char *label);

/* metrics_generation() - grows with each change: tells whether the file must be written again. */
uint64_t metrics_generation(void);

/* metrics_render() - append the text to `out`. -ENOMEM, -ENOBUFS. */
int metrics_render(struct buffer *out);

/* metrics_write_file() - render and replace `path` atomically (temporary file in the same directory, mode 0644,
 * rename). Blocking but small. -errno. */
int metrics_write_file(const char *path);
