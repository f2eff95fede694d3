/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The machine: a walk over the reachable abstract states, breadth first, and random walks by seed.
 */
#include "cancel_bench.h"

/* ---- all reachable abstract states ----------------------------------------------------------------------------- */

/* What the walk tells apart: everything but the clock; of times only whether they are set or due. */
struct abstract {
        struct cancel cancel;
        uint64_t escalation;
};

static uint64_t fold_time(uint64_t at, uint64_t now) {
        return at == 0 ? 0 : at == USEC_NEVER ? 3 : at <= now ? 1 : 2;
}

/* They steer nothing but SETTLE, and have a walk of their own. */
static void abstract_leftovers(struct cancel *c, uint64_t now, bool settling) {
        c->record.leftover_processes = settling && c->record.leftover_processes > 0;
        c->leftovers = settling && c->leftovers > 0;
        c->leftovers_held = settling && c->leftovers_held;
        c->leftovers_counted = settling && c->leftovers_counted;
        c->leftovers_usec = settling ? fold_time(c->leftovers_usec, now) : 0;
        c->leftovers_signal = settling ? c->leftovers_signal : CANCEL_ESCALATION_NONE;
}

static struct abstract abstract_of(const struct bench *b, bool settling) {
        struct abstract a = { b->cancel, b->config->escalation };
        struct cancel_record *r = &a.cancel.record;

        r->accepted_usec = r->accepted_usec > 0;
        r->ended_usec = r->ended_usec == 0 ? 0 : b->now >= r->ended_usec + SEC ? 2 : 1;
        r->killed_usec = r->killed_usec == 0 ? 0 : b->now >= r->killed_usec + config.kill_retry_usec ? 2 : 1;
        if (r->answered_usec > 0) /* whether a signal is what comes next */
                r->answered_usec = r->answered_usec + config.escalate_after_usec <= a.cancel.retry_usec ? 2 : 1;
        r->deadline_usec = fold_time(r->deadline_usec, b->now);
        r->accepted_real_usec = r->ended_real_usec = r->received_usec = r->received_real_usec = r->deadline_real_usec = 0;
        r->kill_requests = cancel_kills_of_driver(&b->cancel) > 0 ? 2 : r->kill_requests > b->cancel.kill_planned;
        if (!cancel_is_open(r->state) || r->state == CANCEL_REPORT) /* nothing but outcome and withdrawal steers these */
                a.cancel = (struct cancel){ .record = { .state = r->state, .outcome = r->outcome, .withdrawn = r->withdrawn } };
        if (r->word == CANCEL_WORD_OTHER || r->word == CANCEL_WORD_SUBMITTED)
                r->word = CANCEL_WORD_NONE;
        if (r->word == CANCEL_WORD_FAILED) /* steers as FINISHED does, to another name of outcome */
                r->word = CANCEL_WORD_FINISHED;
        if (r->driver_id[0]) /* which of the two drivers it is makes no difference: the events are relative to it */
                base_text_copy(r->driver_id, sizeof r->driver_id, "driver");
        r->process = (struct cancel_process){ .pid = r->process.pid > 0 };
        r->refused_auth = false;
        r->progress = CANCEL_OUTCOME_NONE;
        if (cancel_is_open(r->state) && r->state != CANCEL_REPORT)
                r->withdrawn = false;
        if (r->state != CANCEL_SEARCH && r->state != CANCEL_SETTLE)
                a.cancel.scanned = a.cancel.asked = false;
        if (r->state != CANCEL_SETTLE)
                a.cancel.unknown_answers = 0;
        if (r->state != CANCEL_KILL && r->state != CANCEL_WAIT)
                r->killed_usec = 0;
        if (r->state == CANCEL_SETTLE) {
                r->answered_usec = 0;
                r->escalation = a.cancel.signalled = r->escalation != CANCEL_ESCALATION_NONE;
        } else {
                r->ended_usec = 0;
        }
        if (b->config->escalation == CANCEL_ESCALATION_NONE)
                r->answered_usec = 0;
        abstract_leftovers(&a.cancel, b->now, settling);
        a.cancel.attempts = 0;
        a.cancel.unknown_answers = (uint32_t)base_min_u64(a.cancel.unknown_answers, 2);
        a.cancel.unknown_usec = 0;
        a.cancel.since_usec = 0;
        a.cancel.aside = (struct cancel_process){ .pid = r->state == CANCEL_SETTLE && a.cancel.aside.pid > 0 };
        a.cancel.head = (struct cancel_process){ 0 };
        a.cancel.asides = 0;
        a.cancel.suspect.process = (struct cancel_process){ .pid = a.cancel.suspect.process.pid > 0 };
        if (a.cancel.suspect.driver_id[0])
                base_text_copy(a.cancel.suspect.driver_id, sizeof a.cancel.suspect.driver_id, "suspect");
        a.cancel.suspect.supervised = false;
        a.cancel.kills_before = 0;
        a.cancel.denied = false;
        a.cancel.look_usec = a.cancel.looked ? fold_time(a.cancel.look_usec, b->now) : 0;
        a.cancel.force_usec = fold_time(a.cancel.force_usec, b->now);
        a.cancel.refused_usec = a.cancel.refused_usec > 0;
        a.cancel.ask_usec = fold_time(a.cancel.ask_usec, b->now);
        a.cancel.scan_usec = fold_time(a.cancel.scan_usec, b->now);
        a.cancel.retry_usec = fold_time(a.cancel.retry_usec, b->now);
        return a;
}

static uint64_t hash_of(const struct abstract *a) {
        _Static_assert(sizeof *a % sizeof(uint64_t) == 0, "hashed by words");
        uint64_t hash = UINT64_C(14695981039346656037), word;

        for (size_t i = 0; i < sizeof *a; i += sizeof word) {
                memcpy(&word, (const char *)a + i, sizeof word);
                hash = (hash ^ word) * UINT64_C(0x9e3779b97f4a7c15);
                hash ^= hash >> 32;
        }
        return hash ? hash : 1;
}

#define WALK_MAX (1u << 19)
#define MOVES_SEEN 100000     /* states after which every allowed move has been made */
#define SETTLING_STATES 30000 /* the walk with leftovers looks at so many */

/* How many states the walk looks at, breadth first: there are more than a million, and most differ in what two or three
 * crashes and decoys have left. $WALK_STATES says otherwise (sanitizers are slow, valgrind is slower still). */
static size_t walk_states(void) {
        const char *given = getenv("WALK_STATES");
#ifdef DEBUG_CHECKS
        return given ? strtoull(given, NULL, 10) : 30000;
#else
        return given ? strtoull(given, NULL, 10) : 120000;
#endif
}

struct walk {
        struct bench *queue;
        uint64_t *seen; /* open addressing, by hash */
        size_t head, count;
        bool settling; /* within SETTLE only, with leftovers */
        unsigned pairs[CANCEL_STATE_MAX][CANCEL_EVENT_TYPE_MAX];
        unsigned moves[CANCEL_STATE_MAX][CANCEL_STATE_MAX];
};

static void walk_visit(struct walk *w, const struct bench *b) {
        struct abstract a = abstract_of(b, w->settling);
        uint64_t hash = hash_of(&a);

        if (w->settling && b->cancel.record.state != CANCEL_SETTLE)
                return;
        for (size_t i = hash % (2 * WALK_MAX);; i = (i + 1) % (2 * WALK_MAX)) {
                if (w->seen[i] == hash)
                        return;
                if (w->seen[i] == 0) {
                        w->seen[i] = hash;
                        break;
                }
        }
        if (w->count == WALK_MAX)
                return;
        w->queue[w->count++] = *b;
}

static void walk_step(struct walk *w, const struct bench *from, const struct cancel_event *event) {
        struct bench b = *from;

        b.stalled = true;
        if (event->type == CANCEL_EVENT_TIMER) {
                if (b.update.wake_usec == USEC_NEVER)
                        return;
                b.now = base_max_u64(b.now, b.update.wake_usec);
        }
        if (event->type == CANCEL_EVENT_RESTARTED)
                b.cancel = (struct cancel){ .record = b.cancel.record };
        feed(&b, event);
        w->pairs[from->cancel.record.state][event->type]++;
        w->moves[from->cancel.record.state][b.cancel.record.state]++;
        walk_visit(w, &b);
}

/* Scans: none, the process that the record knows, another one (supervised or not), a directory; leftovers. */
static void walk_scans(struct walk *w, const struct bench *b) {
        bool first = strcmp(b->cancel.record.driver_id, "driver-1") == 0;

        for (int variant = 0; variant < 6; variant++) {
                struct cancel_event event = { .type = CANCEL_EVENT_SCANNED };
                bool another = variant == 3 || variant == 5;
                event.process_alive = variant == 0 || variant == 2;
                if (variant == 1) {
                        event.scan = CANCEL_SCAN_DIRECTORY;
                } else if (variant > 1) {
                        event.scan = CANCEL_SCAN_PROCESS;
                        event.found.process.pid = first != another ? 100 : 101;
                        event.found.process.worker_pid = 7;
                        event.found.supervised = variant > 3;
                        event.found.orphan = variant == 5;
                }
                if (event.scan != CANCEL_SCAN_NONE)
                        base_text_copy(event.found.driver_id, sizeof event.found.driver_id, first != another ? "driver-1" : "driver-2");
                walk_step(w, b, &event);
                event.leftovers = w->settling && event.scan == CANCEL_SCAN_NONE;
                for (int held = 0; held < 2 && event.leftovers > 0; held++) {
                        event.leftovers_held = held;
                        walk_step(w, b, &event);
                }
        }
}

static void walk_answers(struct walk *w, const struct bench *b) {
        for (unsigned answer = 0; answer < CANCEL_ANSWER_MAX; answer++) {
                walk_step(w, b, &(struct cancel_event){ .type = CANCEL_EVENT_KILL_ANSWERED, .answer = answer,
                                                        .asked = answer == CANCEL_ANSWER_UNREACHABLE ? 0 : 1 });
                if (answer != CANCEL_ANSWER_ACCEPTED)
                        walk_step(w, b, &(struct cancel_event){ .type = CANCEL_EVENT_STATUS, .answer = answer });
        }
        for (unsigned word = CANCEL_WORD_SUBMITTED; word <= CANCEL_WORD_OTHER; word++)
                for (int place = 0; place < 3; place++)
                        walk_step(w, b, &(struct cancel_event){ .type = CANCEL_EVENT_STATUS, .answer = CANCEL_ANSWER_ACCEPTED,
                                                                .word = word, .here = place == 1, .elsewhere = place == 2 });
}

static void walk_all(struct walk *w, const struct bench *b) {
        static const enum cancel_event_type plain[] = { CANCEL_EVENT_DUPLICATE, CANCEL_EVENT_WITHDRAWN, CANCEL_EVENT_EXITED,
                                                        CANCEL_EVENT_SLOT, CANCEL_EVENT_TIMER, CANCEL_EVENT_RETRY,
                                                        CANCEL_EVENT_KILL_SENT };

        for (size_t i = 0; i < ARRAY_SIZE(plain); i++)
                walk_step(w, b, &(struct cancel_event){ .type = plain[i] });
        for (int yes = 0; yes < 2; yes++) {
                walk_step(w, b, &(struct cancel_event){ .type = CANCEL_EVENT_RESTARTED, .same_boot = yes });
                walk_step(w, b, &(struct cancel_event){ .type = CANCEL_EVENT_REPORT_ANSWERED, .accepted = yes });
        }
        for (unsigned signal = CANCEL_ESCALATION_SIGTERM; signal <= CANCEL_ESCALATION_SIGKILL; signal++)
                for (unsigned result = 0; result < CANCEL_SIGNAL_RESULT_MAX; result++)
                        walk_step(w, b, &(struct cancel_event){ .type = CANCEL_EVENT_SIGNALLED, .signal = signal,
                                                                .signal_result = result });
        walk_scans(w, b);
        walk_answers(w, b);
}

static void walk_init(struct walk *w) {
        w->queue = calloc(WALK_MAX, sizeof *w->queue);
        w->seen = calloc(2 * WALK_MAX, sizeof *w->seen);
        assert_non_null(w->queue);
        assert_non_null(w->seen);
}

static void walk_deinit(struct walk *w) {
        free(w->queue);
        free(w->seen);
}

static void test_reachable_states(void **state) {
        struct cancel_config kill = config;
        struct walk w = { 0 };
        unsigned pairs = 0, moves = 0;
        size_t limit = walk_states();
        (void)state;

        kill.escalation = CANCEL_ESCALATION_SIGKILL;
        walk_init(&w);
        for (int variant = 0; variant < 3; variant++) {
                struct bench b = begin(variant == 1, variant == 2 ? &kill : &config);
                walk_visit(&w, &b);
        }
        /* The second lost kill looks like the first to the walk, but a signal comes only after it. */
        struct bench lost = begin_accepted();
        lost.config = &kill;
        for (int kills = 0; kills < 2; kills++) {
                feed_at(&lost, lost.update.wake_usec);
                assert_state(&lost, KILL);
                feed_type(&lost, CANCEL_EVENT_SLOT);
                feed_kill(&lost, CANCEL_ANSWER_ACCEPTED);
                assert_state(&lost, WAIT);
        }
        walk_visit(&w, &lost);
        while (w.head < w.count && w.head < limit) {
                struct bench b = w.queue[w.head++];
                walk_all(&w, &b);
        }
        for (unsigned s = 0; s < CANCEL_STATE_MAX; s++) {
                for (unsigned e = 0; e < CANCEL_EVENT_TYPE_MAX; e++)
                        pairs += w.pairs[s][e] > 0;
                for (unsigned t = 0; t < CANCEL_STATE_MAX; t++) {
                        if (s != t && cancel_transition_allowed(s, t) && w.moves[s][t] == 0 && w.head >= MOVES_SEEN)
                                fail_msg("the allowed move %s -> %s was never made", cancel_state_to_text(s), cancel_state_to_text(t));
                        moves += s != t && w.moves[s][t] > 0;
                }
        }
        print_message("%zu of at least %zu abstract states, %u (state, event) pairs, %u different moves\n", w.head, w.count, pairs, moves);
        walk_deinit(&w);
}

/* From each way into SETTLE: all that leftovers can do there. What leaves SETTLE is checked and not followed. */
static void test_every_state_with_leftovers(void **state) {
        struct cancel_config term = config, kill = config;
        const struct cancel_config *const configs[] = { &config, &term, &kill };
        struct walk w = { .settling = true };
        (void)state;

        term.escalation = CANCEL_ESCALATION_SIGTERM;
        kill.escalation = CANCEL_ESCALATION_SIGKILL;
        walk_init(&w);
        for (size_t i = 0; i < ARRAY_SIZE(configs); i++) {
                struct bench starts[] = { begin_found(), begin_kill_sent(), begin_accepted(), begin(true, configs[i]) };

                feed_scan_process(&starts[3], 100, "driver-1", false);
                for (size_t k = 0; k < ARRAY_SIZE(starts); k++)
                        for (int supervised = 0; supervised < 2; supervised++) {
                                struct bench b = starts[k];

                                b.config = configs[i];
                                b.cancel.record.supervised = supervised;
                                exits(&b);
                                walk_visit(&w, &b);
                        }
        }
        while (w.head < w.count && w.head < base_min_u64(walk_states(), SETTLING_STATES)) {
                struct bench b = w.queue[w.head++];
                walk_all(&w, &b);
        }
        for (unsigned to = CANCEL_KILL; to <= CANCEL_REPORT; to++)
                if (to != CANCEL_SETTLE && cancel_transition_allowed(CANCEL_SETTLE, to))
                        assert_int_not_equal(w.moves[CANCEL_SETTLE][to], 0);
        print_message("%zu abstract states of SETTLE with leftovers\n", w.count);
        walk_deinit(&w);
}

/* ---- random walks with a clock: every operation ends by its deadline plus a bound ------------------------------ */

static struct cancel_event random_event(uint64_t *seed) {
        struct cancel_event event = { .type = base_random_next(seed) % CANCEL_EVENT_TYPE_MAX };

        event.same_boot = base_random_next(seed) & 1;
        event.scan = base_random_next(seed) % CANCEL_SCAN_MAX;
        event.process_alive = base_random_next(seed) & 1;
        event.found.process.pid = 100 + (int32_t)(base_random_next(seed) % 2);
        event.found.supervised = base_random_next(seed) % 4 == 0;
        event.answer = base_random_next(seed) % CANCEL_ANSWER_MAX;
        event.word = base_random_next(seed) % CANCEL_WORD_UNKNOWN_ID;
        event.here = base_random_next(seed) & 1;
        event.elsewhere = !event.here && (base_random_next(seed) & 1);
        event.accepted = base_random_next(seed) & 1;
        event.found.orphan = base_random_next(seed) % 8 == 0;
        event.leftovers_held = base_random_next(seed) & 1;
        event.leftovers = (uint32_t)(base_random_next(seed) % 3);
        event.asked = (uint32_t)(base_random_next(seed) % 3);
        event.signal = 1 + base_random_next(seed) % 2;
        event.signal_result = base_random_next(seed) % CANCEL_SIGNAL_RESULT_MAX;
        if (event.scan != CANCEL_SCAN_NONE)
                base_text_copy(event.found.driver_id, sizeof event.found.driver_id, event.found.process.pid == 100 ? "driver-1" : "driver-2");
        if (event.type == CANCEL_EVENT_COMMAND)
                event.type = CANCEL_EVENT_TIMER;
        return event;
}

/* An operation that waits for nothing but its deadline has been forgotten. `scanning`: a scan's answer is to come. */
static bool is_forgotten(const struct cancel *c, bool scanning) {
        enum cancel_state state = c->record.state;

        if (!cancel_counts_open(state))
                return false;
        return !scanning && !c->asking && !c->kill_due && !c->killing && !c->wants_slot && c->ask_usec == USEC_NEVER &&
               c->scan_usec == USEC_NEVER && c->retry_usec == USEC_NEVER;
}

static void test_random_walks(void **state) {
        const char *given = getenv("SEED");
        uint64_t seed = given ? strtoull(given, NULL, 0) : base_random_u64(), first = seed;
        struct cancel_config force = config;
        (void)state;

        force.escalation = CANCEL_ESCALATION_SIGKILL;
        print_message("SEED=%" PRIu64 "\n", first);
        for (int round = 0; round < 3000; round++) {
                struct bench b = begin(base_random_next(&seed) % 8 == 0, base_random_next(&seed) % 2 ? &config : &force);
                bool scanning = true;
                for (int i = 0; i < 60; i++) {
                        struct cancel_event event = random_event(&seed);
                        if (event.type == CANCEL_EVENT_TIMER && b.update.wake_usec != USEC_NEVER)
                                b.now = base_max_u64(b.now, b.update.wake_usec);
                        feed(&b, &event);
                        if (event.type == CANCEL_EVENT_SCANNED || event.type == CANCEL_EVENT_RESTARTED)
                                scanning = false;
                        scanning |= (b.update.ask & CANCEL_ASK_SCAN) != 0;
                        if (b.now < b.cancel.record.deadline_usec && is_forgotten(&b.cancel, scanning))
                                fail_msg("SEED=%" PRIu64 ", round %d: %s waits for nothing after event %d", first, round,
                                         cancel_state_to_text(b.cancel.record.state), (int)event.type);
                }
                for (int i = 0; i < 100000 && b.update.wake_usec != USEC_NEVER; i++) /* silence: only timers */
                        feed_at(&b, base_max_u64(b.now, b.update.wake_usec));
                if (cancel_counts_open(b.cancel.record.state))
                        fail_msg("SEED=%" PRIu64 ", round %d: still %s", first, round, cancel_state_to_text(b.cancel.record.state));
                assert_true(b.now <= base_max_u64(b.cancel.record.deadline_usec, b.cancel.since_usec) + 10 * SEC);
        }
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_reachable_states),
                cmocka_unit_test(test_every_state_with_leftovers),
                cmocka_unit_test(test_random_walks),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
