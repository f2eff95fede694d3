/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cancel JOB [--wait]: order a cancel on this node, and look on until it has ended.
 *
 * The operation is the agent's: it is stored before its id is told, so this program may end at any time, and the agent
 * may be restarted meanwhile: then the connection is made again and the same operation looked at. In a terminal one
 * line is written over and over, elsewhere one line for each change.
 */
#include "ctl_internal.h"

#define LOOK_INTERVAL_MSEC 200
#define AWAY_USEC (60 * USEC_PER_SEC) /* how long a restarted agent is waited for */

struct live {
        const char *socket;
        const char *operation_id;
        bool terminal, quiet;
        uint64_t begin_usec, away_since_usec; /* 0: it answers */
        char last[256];
};

static uint64_t monotonic_usec(void) {
        struct timespec now = {0};

        (void)clock_gettime(CLOCK_MONOTONIC, &now);
        return (uint64_t)now.tv_sec * USEC_PER_SEC + (uint64_t)now.tv_nsec / 1000;
}

static void pause_a_little(void) {
        const struct timespec interval = {.tv_nsec = LOOK_INTERVAL_MSEC * 1000000L};

        (void)nanosleep(&interval, NULL);
}

/* What is happening, in a word or two. */
static const char *state_words(const char *state) {
        static const struct {
                const char *state, *words;
        } table[] = {
                {"SEARCH", "no driver of the job here yet, looking on"},
                {"KILL", "driver found, asking Spark to kill it"},
                {"WAIT", "kill accepted, waiting for its end"},
                {"TERM", "SIGTERM sent, waiting for its end"},
                {"FORCE", "SIGKILL sent, waiting for its end"},
                {"SETTLE", "the process is gone, looking whether it stays so"},
        };

        for (size_t i = 0; i < ARRAY_SIZE(table); i++)
                if (strcmp(table[i].state, state) == 0)
                        return table[i].words;
        return state;
}

/* live_say() - over the last line in a terminal; elsewhere only what is new. */
static void live_say(struct live *live, const char *text) {
        uint64_t elapsed_usec = monotonic_usec() - live->begin_usec;
        char escaped[sizeof(live->last)];

        if (live->quiet)
                return;
        base_text_escape(escaped, sizeof(escaped), text, strlen(text));
        if (live->terminal)
                printf("\r\x1b[K%s  %5.1f s  %s", live->operation_id, (double)elapsed_usec / 1e6, escaped);
        else if (strcmp(live->last, escaped) != 0)
                printf("%s: %s\n", live->operation_id, escaped);
        (void)base_text_copy(live->last, sizeof(live->last), escaped);
        (void)fflush(stdout);
}

static void live_end(const struct live *live) {
        if (live->terminal && !live->quiet)
                fputs("\r\x1b[K", stdout);
}

static void live_say_state(struct live *live, const struct ctl_object *object) {
        char text[sizeof(live->last)];
        const char *driver = ctl_object_text(object, "driver_id");
        uint64_t pid = ctl_object_number(object, "driver_pid"), kills = ctl_object_number(object, "kill_requests");
        int used = snprintf(text, sizeof(text), "%s", state_words(ctl_object_text(object, "state")));

        if (*driver && used > 0 && (size_t)used < sizeof(text))
                used += snprintf(text + used, sizeof(text) - (size_t)used, "; %s, process %" PRIu64, driver, pid);
        if (kills > 1 && used > 0 && (size_t)used < sizeof(text))
                (void)snprintf(text + used, sizeof(text) - (size_t)used, ", asked %" PRIu64 " times", kills);
        live_say(live, text);
}

/* ---- the end ---------------------------------------------------------------------------------------- */

static bool outcome_is_good(const char *outcome) {
        return strcmp(outcome, "CANCELLED") == 0 || strcmp(outcome, "ALREADY_DONE") == 0 ||
               strcmp(outcome, "ALREADY_FAILED") == 0;
}

static int finish(const struct live *live, const struct ctl_object *object, const struct ctl_options *options) {
        const char *outcome = ctl_object_text(object, "outcome");
        bool good = outcome_is_good(outcome);

        live_end(live);
        if (options->json) {
                ctl_json_operation(object);
                putchar('\n');
        } else if (!*outcome)
                puts("No driver of the job was found on this node until the deadline.");
        else {
                printf("%s", ctl_colour(good ? CTL_GREEN : CTL_RED));
                ctl_print_text(outcome);
                printf("%s: ", ctl_colour(CTL_PLAIN));
                ctl_print_text(ctl_object_text(object, "message"));
                putchar('\n');
        }
        int code = ctl_finish_output();
        return code ? code : good ? CTL_FINE : CTL_NO;
}

/* ---- looking ---------------------------------------------------------------------------------------- */

enum look { LOOK_OPEN = 1, LOOK_ENDED, LOOK_AWAY };

/* look() - one question. An enum look, or the negative of an exit code (why was said). */
static int look(struct live *live, sd_bus *bus, struct ctl_object *object, sd_bus_message **reply) {
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;

        int r = ctl_try(bus, "Show", "s", false, live->operation_id, &error, reply);
        if (r < 0 && (sd_bus_is_open(bus) <= 0 || !sd_bus_error_is_set(&error) ||
                      sd_bus_error_has_name(&error, SD_BUS_ERROR_NO_REPLY)))
                return LOOK_AWAY;
        if (r < 0) {
                live_end(live);
                return -ctl_call_failed(bus, r, &error);
        }
        r = ctl_object_read(*reply, object);
        if (r <= 0)
                return -ctl_answer_is_odd(r < 0 ? r : -EBADMSG);
        return strcmp(ctl_object_text(object, "state"), "DONE") == 0 ? LOOK_ENDED : LOOK_OPEN;
}

/* come_back() - a new connection, or NULL for now. False: it was away for too long. */
static bool come_back(struct live *live, sd_bus **bus) {
        uint64_t now_usec = monotonic_usec();

        *bus = sd_bus_close_unref(*bus);
        if (live->away_since_usec == 0)
                live->away_since_usec = now_usec;
        live_say(live, "the agent does not answer; its restart is waited for, the operation is stored");
        if (ctl_connect(live->socket, bus) < 0)
                *bus = NULL;
        return now_usec - live->away_since_usec < AWAY_USEC;
}

static int look_on(struct live *live, const struct ctl_options *options) {
        _cleanup_(sd_bus_close_unrefp) sd_bus *bus = NULL;

        (void)ctl_connect(live->socket, &bus);
        for (;;) {
                _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
                struct ctl_object object;
                int r = bus ? look(live, bus, &object, &reply) : LOOK_AWAY;

                if (r < 0)
                        return -r;
                if (r == LOOK_ENDED)
                        return finish(live, &object, options);
                if (r == LOOK_OPEN) {
                        live->away_since_usec = 0;
                        live_say_state(live, &object);
                } else if (!come_back(live, &bus)) {
                        live_end(live);
                        return ctl_unreachable(live->socket, -ETIMEDOUT);
                }
                pause_a_little();
        }
}

int ctl_cancel(sd_bus *bus, const struct ctl_options *options) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        struct live live = {
                .socket = options->socket,
                .terminal = ctl_is_terminal(),
                .quiet = options->json,
                .begin_usec = monotonic_usec(),
        };

        int code = ctl_call(bus, "Cancel", "s", false, options->argument, &reply);
        if (code)
                return code;
        int r = sd_bus_message_read_basic(reply, 's', &live.operation_id);
        if (r < 0 || !base_id_is_valid(live.operation_id, strlen(live.operation_id), OPERATION_ID_MAX))
                return ctl_answer_is_odd(r < 0 ? r : -EBADMSG);
        if (options->wait)
                return look_on(&live, options);
        printf(options->json ? "{\"operation_id\":\"%s\"}\n" : "%s\n", live.operation_id);
        return ctl_finish_output();
}
