/* SPDX-License-Identifier: Apache-2.0 */
/*
 * metrics: counters, gauges and latency histograms, kept in one const table of names
 *
 * The table says all that is public: name, type, label and help. Values live beside it in arrays of a fixed size,
 * so counting never allocates and never fails. Label values are bounded: a peer's word that became a label could
 * otherwise grow without end, here and in the monitoring behind us.
 *
 * Text: https://prometheus.io/docs/instrumenting/exposition_formats/ (0.0.4); names and base units by
 * https://prometheus.io/docs/practices/naming/. Sums of durations are kept and printed as whole microseconds:
 * no rounding adds up over months.
 */
#include "metrics.h"

#include <fcntl.h>
#include <math.h>
#include <sys/stat.h>

#define PREFIX "spark_cancel_agent_"
#define LABELS_MAX 32
#define LABEL_TEXT_MAX 128
#define FILE_BYTES_MAX (512 * 1024)

enum metrics_type {
        METRICS_COUNTER,
        METRICS_GAUGE,
        METRICS_HISTOGRAM,
};

static const struct {
        const char *name;
        enum metrics_type type;
        const char *label; /* name of its one label; NULL: none */
        const char *help;  /* plain text without backslash or newline */
} table[METRICS_ID_MAX] = {
        [METRICS_BUILD_INFO] = {"build_info", METRICS_GAUGE, "version", "Version of the running agent; always 1."},
        [METRICS_OBSERVE_MODE] = {"observe_mode", METRICS_GAUGE, NULL,
                                  "Whether the agent only observes and kills nothing (1) or acts (0)."},
        [METRICS_STREAM_UP] = {"stream_up", METRICS_GAUGE, NULL,
                               "Whether the Watch stream to the control plane is up (1) or not (0)."},
        [METRICS_STREAM_CONNECTS] = {"stream_connects_total", METRICS_COUNTER, NULL, "Watch streams opened."},
        [METRICS_LAST_CONTACT] = {"last_contact_timestamp_seconds", METRICS_GAUGE, NULL,
                                  "Time of the last message from the control plane; 0 before the first."},
        [METRICS_COMMANDS] = {"commands_total", METRICS_COUNTER, NULL, "Cancel commands received."},
        [METRICS_COMMANDS_INVALID] = {"commands_invalid_total", METRICS_COUNTER, NULL,
                                      "Cancel commands that broke a limit of the contract."},
        [METRICS_COMMANDS_DUPLICATE] = {"commands_duplicate_total", METRICS_COUNTER, NULL,
                                        "Cancel commands for an operation that was known already."},
        [METRICS_REVISIONS_BACKWARD] = {"revisions_backward_total", METRICS_COUNTER, NULL,
                                        "Revisions that were not higher than the one before within a stream."},
        [METRICS_OPERATIONS_OPEN] = {"operations_open", METRICS_GAUGE, NULL,
                                     "Operations that are neither done nor quarantined."},
        [METRICS_OPERATIONS_SEARCHING] = {"operations_searching", METRICS_GAUGE, NULL,
                                          "Open operations with no driver of their job known on this node."},
        [METRICS_OPERATIONS_QUARANTINED] = {"operations_quarantined", METRICS_GAUGE, NULL,
                                            "Operations whose report the control plane rejected."},
        [METRICS_OUTCOMES] = {"outcomes_total", METRICS_COUNTER, "outcome", "Operations that ended, by outcome."},
        [METRICS_KILL_REQUESTS] = {"kill_requests_total", METRICS_COUNTER, NULL,
                                   "Kill requests sent to Spark masters."},
        [METRICS_MASTER_ANSWERS] = {"master_answers_total", METRICS_COUNTER, "answer",
                                    "Questions to the Spark masters, by answer."},
        [METRICS_REPORT_RETRIES] = {"report_retries_total", METRICS_COUNTER, NULL, "Failed Report calls."},
        [METRICS_SCANS] = {"scans_total", METRICS_COUNTER, NULL, "Passes over the process table."},
        [METRICS_SCAN_SECONDS] = {"scan_duration_seconds", METRICS_HISTOGRAM, NULL,
                                  "Time of one pass over the process table."},
        [METRICS_SCAN_PROCESSES] = {"scan_processes", METRICS_GAUGE, NULL, "Processes seen by the last pass."},
        [METRICS_COMMITS] = {"commits_total", METRICS_COUNTER, NULL, "Transactions committed to the store."},
        [METRICS_COMMIT_SECONDS] = {"commit_duration_seconds", METRICS_HISTOGRAM, NULL,
                                    "Time of one commit, flush included."},
        [METRICS_STORE_FAILING] = {"store_failing", METRICS_GAUGE, NULL,
                                   "1 while the disk takes no commits and the agent goes on from memory."},
        [METRICS_RECORDS_UNWRITTEN] = {"records_unwritten", METRICS_GAUGE, NULL,
                                       "Operations whose present record is only in memory."},
        [METRICS_KILL_SECONDS] = {"kill_delay_seconds", METRICS_HISTOGRAM, NULL,
                                  "Time from the command's arrival to its first kill request."},
        [METRICS_DEATH_SECONDS] = {"death_delay_seconds", METRICS_HISTOGRAM, NULL,
                                   "Time from the command's arrival to the proof that the driver is gone."},
};

static const struct {
        uint64_t usec;
        const char *text;
} buckets[] = {
        {1000, "0.001"},  {2500, "0.0025"}, {5000, "0.005"},  {10000, "0.01"},    {25000, "0.025"}, {50000, "0.05"},
        {100000, "0.1"},  {250000, "0.25"}, {500000, "0.5"},  {1000000, "1"},     {2500000, "2.5"}, {5000000, "5"},
        {10000000, "10"}, {30000000, "30"}, {60000000, "60"}, {300000000, "300"},
};

struct series {
        const char *label; /* value of the label; NULL: a metric without one */
        uint64_t count;    /* counter */
        double value;      /* gauge */
};

static struct {
        struct series series[LABELS_MAX + 1]; /* the last one is for "other" */
        size_t series_count;
        uint64_t bucket[ARRAY_SIZE(buckets) + 1]; /* not cumulative; the last one is +Inf */
        uint64_t sum_usec;
} values[METRICS_ID_MAX];

static uint64_t generation;

/* ---- counting ------------------------------------------------------------------------------------- */

static struct series *series_find(enum metrics_id id, const char *label) {
        for (size_t i = 0; i < values[id].series_count; i++) {
                struct series *series = &values[id].series[i];
                if (!label || strcmp(series->label, label) == 0)
                        return series;
        }
        return NULL;
}

/* series_get() - the row for that label, made when it is new; the overflow row "other" when there are too many. */
static struct series *series_get(enum metrics_id id, const char *label) {
        if (!table[id].label)
                label = NULL;
        else if (!label)
                label = "other";
        struct series *series = series_find(id, label);
        if (series)
                return series;
        if (values[id].series_count >= LABELS_MAX) {
                label = "other";
                series = series_find(id, label);
                if (series)
                        return series;
        }
        series = &values[id].series[values[id].series_count++];
        series->label = label;
        return series;
}

void metrics_add(enum metrics_id id, const char *label, uint64_t amount) {
        if (table[id].type != METRICS_COUNTER)
                return;
        series_get(id, label)->count += amount;
        generation++;
}

void metrics_set(enum metrics_id id, const char *label, double value) {
        if (table[id].type != METRICS_GAUGE)
                return;
        struct series *series = series_get(id, label);
        if (series->value >= value && series->value <= value) /* equal, said without -Wfloat-equal's warning */
                return;
        series->value = value;
        generation++;
}

void metrics_observe_usec(enum metrics_id id, uint64_t usec) {
        size_t i = 0;

        if (table[id].type != METRICS_HISTOGRAM)
                return;
        while (i < ARRAY_SIZE(buckets) && usec > buckets[i].usec)
                i++;
        values[id].bucket[i]++;
        values[id].sum_usec = base_usec_add(values[id].sum_usec, usec);
        generation++;
}

static uint64_t histogram_count(enum metrics_id id) {
        uint64_t count = 0;
        for (size_t i = 0; i <= ARRAY_SIZE(buckets); i++)
                count += values[id].bucket[i];
        return count;
}

uint64_t metrics_get(enum metrics_id id, const char *label) {
        if (table[id].type == METRICS_HISTOGRAM)
                return histogram_count(id);
        const struct series *series = series_find(id, table[id].label ? (label ? label : "other") : NULL);
        if (!series)
                return 0;
        if (table[id].type == METRICS_COUNTER)
                return series->count;
        return series->value > 0 ? (uint64_t)series->value : 0;
}

uint64_t metrics_generation(void) {
        return generation;
}

/* ---- rendering ------------------------------------------------------------------------------------ */

static const char *type_to_text(enum metrics_type type) {
        switch (type) {
        case METRICS_COUNTER:
                return "counter";
        case METRICS_GAUGE:
                return "gauge";
        case METRICS_HISTOGRAM:
                return "histogram";
        }
        return "untyped";
}

/* render_label() - {name="value"} with \\ and \" escaped; valid UTF-8 without newline by base_text_escape(). */
static int render_label(const char *name, const char *value, struct buffer *out) {
        char escaped[LABEL_TEXT_MAX], quoted[2 * LABEL_TEXT_MAX];
        size_t used = 0;

        base_text_escape(escaped, sizeof(escaped), value, strlen(value));
        for (const char *at = escaped; *at; at++) {
                if (*at == '"' || *at == '\\')
                        quoted[used++] = '\\';
                quoted[used++] = *at;
        }
        quoted[used] = '\0';
        return buffer_append_format(out, "{%s=\"%s\"}", name, quoted);
}

static int render_double(double value, struct buffer *out) {
        if (isnan(value))
                return buffer_append_text(out, " NaN\n");
        if (isinf(value))
                return buffer_append_text(out, value > 0 ? " +Inf\n" : " -Inf\n");
        return buffer_append_format(out, " %.16g\n", value);
}

static int render_series(enum metrics_id id, const struct series *series, struct buffer *out) {
        int r = buffer_append_format(out, PREFIX "%s", table[id].name);
        if (r < 0)
                return r;
        if (series->label) {
                r = render_label(table[id].label, series->label, out);
                if (r < 0)
                        return r;
        }
        if (table[id].type == METRICS_COUNTER)
                return buffer_append_format(out, " %" PRIu64 "\n", series->count);
        return render_double(series->value, out);
}

static int render_histogram(enum metrics_id id, struct buffer *out) {
        const char *name = table[id].name;
        uint64_t count = 0;

        for (size_t i = 0; i <= ARRAY_SIZE(buckets); i++) {
                count += values[id].bucket[i];
                int r = buffer_append_format(out, PREFIX "%s_bucket{le=\"%s\"} %" PRIu64 "\n", name,
                                             i < ARRAY_SIZE(buckets) ? buckets[i].text : "+Inf", count);
                if (r < 0)
                        return r;
        }
        return buffer_append_format(out, PREFIX "%s_sum %" PRIu64 ".%06" PRIu64 "\n" PREFIX "%s_count %" PRIu64 "\n",
                                    name, values[id].sum_usec / USEC_PER_SEC, values[id].sum_usec % USEC_PER_SEC, name,
                                    count);
}

static int render_metric(enum metrics_id id, struct buffer *out) {
        static const struct series zero;

        if (table[id].label && values[id].series_count == 0)
                return 0; /* no label value seen yet: no sample */
        int r = buffer_append_format(out, "# HELP " PREFIX "%s %s\n# TYPE " PREFIX "%s %s\n", table[id].name,
                                     table[id].help, table[id].name, type_to_text(table[id].type));
        if (r < 0)
                return r;
        if (table[id].type == METRICS_HISTOGRAM)
                return render_histogram(id, out);
        if (values[id].series_count == 0)
                return render_series(id, &zero, out);
        for (size_t i = 0; i < values[id].series_count; i++) {
                r = render_series(id, &values[id].series[i], out);
                if (r < 0)
                        return r;
        }
        return 0;
}

int metrics_render(struct buffer *out) {
        for (int id = 0; id < METRICS_ID_MAX; id++) {
                int r = render_metric((enum metrics_id)id, out);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* ---- the file ------------------------------------------------------------------------------------- */

static int write_all(int fd, const uint8_t *data, size_t size) {
        while (size > 0) {
                ssize_t written = write(fd, data, size);
                if (written < 0 && errno == EINTR)
                        continue;
                if (written < 0)
                        return -errno;
                data += written;
                size -= (size_t)written;
        }
        return 0;
}

/* write_new() - `path` as a new file of mode 0644. A leftover of a crash is removed first; O_EXCL keeps us from
 * writing through somebody's link in a directory that others may write to. */
static int write_new(const char *path, const struct buffer *text) {
        if (unlink(path) < 0 && errno != ENOENT)
                return -errno;
        _cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
        if (fd < 0)
                return -errno;
        if (fchmod(fd, 0644) < 0)
                return -errno;
        return write_all(fd, text->data, text->size);
}

int metrics_write_file(const char *path) {
        _cleanup_(buffer_deinit) struct buffer text = BUFFER_INIT(FILE_BYTES_MAX);
        _cleanup_free_ char *temporary = NULL;

        /* Not ending in .prom: the collector must not read it. One fixed name: crashes leave one file at most. */
        if (asprintf(&temporary, "%s.tmp", path) < 0) {
                temporary = NULL; /* undefined after a failure */
                return -ENOMEM;
        }
        int r = metrics_render(&text);
        if (r < 0)
                return r;
        r = write_new(temporary, &text);
        if (r >= 0 && rename(temporary, path) < 0)
                r = -errno;
        if (r < 0)
                (void)unlink(temporary);
        return r;
}
