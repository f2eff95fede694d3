/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control, the report sender, against a server that the test plays, on virtual time (control_world.h).
 */
#include "control_world.h"

/* ---- the server's side of Report -------------------------------------------------------------------- */

static void give_bytes(const char *operation_id, int64_t sequence, bool final, size_t padding) {
        const struct command_report report = {
                .operation_id = operation_id, .cluster_id = "c1", .job_id = "j", .node = "node-1", .done = final,
                .success = true, .sequence = sequence,
        };
        struct buffer bytes = BUFFER_INIT(2 * 1024 * 1024);
        char *filler = calloc(1, padding + 1);

        assert_non_null(filler);
        assert_int_equal(command_encode_report(&report, &bytes), 0);
        if (padding)
                put(&bytes, 100, filler, padding);
        assert_int_equal(control_report(agent.control, operation_id, sequence, final,
                                        (struct span){ bytes.data, bytes.size }), 0);
        buffer_deinit(&bytes);
        free(filler);
}

static void give(const char *operation_id, int64_t sequence, bool final) {
        give_bytes(operation_id, sequence, final, 0);
}

static const char *name_of(unsigned i) {
        static char name[OPERATION_ID_MAX + 1];

        (void)snprintf(name, sizeof(name), "op-%u", i);
        return name;
}

static Sparkcancel__Agent__V1__ReportRequest *decode_request(void) {
        Sparkcancel__Agent__V1__ReportRequest *request;

        assert_non_null(channel.report);
        assert_true(channel.report->request.size <= 1024 * 1024);
        request = sparkcancel__agent__v1__report_request__unpack(NULL, channel.report->request.size,
                                                                 channel.report->request.data);
        assert_non_null(request);
        return request;
}

static void free_request(Sparkcancel__Agent__V1__ReportRequest *request) {
        sparkcancel__agent__v1__report_request__free_unpacked(request, NULL);
}

/* "op-1:7 op-2:9": what the call in flight carries. */
static const char *carried(void) {
        static char text[4096];
        Sparkcancel__Agent__V1__ReportRequest *request = decode_request();
        size_t used = 0;

        text[0] = '\0';
        for (size_t i = 0; i < request->n_reports && used < sizeof(text); i++)
                used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%s:%" PRId64, i ? " " : "",
                                         request->reports[i]->operation->id, request->reports[i]->sequence);
        free_request(request);
        return text;
}

static size_t carried_count(void) {
        Sparkcancel__Agent__V1__ReportRequest *request = decode_request();
        size_t count = request->n_reports;

        free_request(request);
        return count;
}

static void add_result(struct buffer *message, const char *id, uint64_t disposition, const char *reason) {
        struct buffer result = BUFFER_INIT(512);

        put(&result, 1, id, strlen(id));
        put_number(&result, 2, disposition);
        put(&result, 3, reason, strlen(reason));
        put(message, 1, result.data, result.size);
        buffer_deinit(&result);
}

static void finish_report(struct buffer *message) {
        const struct grpc_result result = { .status = GRPC_OK, .from_peer = true };

        send_message(channel.report, message);
        close_call(channel.report, &result);
        buffer_deinit(message);
}

/* Answer every report in flight with one disposition. */
static void answer_all(uint64_t disposition, const char *reason) {
        Sparkcancel__Agent__V1__ReportRequest *request = decode_request();
        struct buffer message = BUFFER_INIT(1024 * 1024);

        for (size_t i = 0; i < request->n_reports; i++)
                add_result(&message, request->reports[i]->operation->id, disposition, reason);
        free_request(request);
        finish_report(&message);
}

static void fail_report(enum grpc_status status, bool from_peer) {
        const struct grpc_result result = { .status = status, .message = "why", .from_peer = from_peer };

        close_call(channel.report, &result);
}

static uint64_t wait_report(void) {
        uint64_t from = loop.now_usec;

        assert_null(channel.report);
        run_until(from + USEC_PER_HOUR, &channel.has_report);
        assert_non_null(channel.report);
        return loop.now_usec - from;
}

static void assert_answer(size_t i, const char *operation_id, int64_t sequence, enum control_answer answer) {
        assert_true(i < agent.answer_count);
        assert_string_equal(agent.answers[i].operation_id, operation_id);
        assert_int_equal(agent.answers[i].sequence, sequence);
        assert_int_equal(agent.answers[i].answer, answer);
}

/* ---- Report ----------------------------------------------------------------------------------------- */

static void test_report_goes_out_at_once(void **state) {
        (void)state;
        Sparkcancel__Agent__V1__ReportRequest *request;

        give("op-1", 7, true);
        give("op-2", 9, false);
        assert_null(channel.report);
        run_turn(); /* what comes in one turn goes in one call */
        assert_string_equal(carried(), "op-1:7 op-2:9");
        request = decode_request();
        assert_string_equal(request->cluster_id, "c1");
        assert_string_equal(request->node, "node-1");
        assert_string_equal(request->instance_id, "i-1");
        free_request(request);
        assert_string_equal(channel.report->path, "/sparkcancel.agent.v1.CancelAgentService/Report");
        assert_string_equal(channel.report->token, "secret");
        assert_int_equal(channel.report->options.timeout_usec, REPORT_TIMEOUT_USEC);
        assert_false(channel.report->options.streaming);

        give("op-3", 1, true); /* waits for the call under way */
        run_turn();
        assert_int_equal(channel.reports, 1);
        assert_int_equal(control_reports_waiting(agent.control), 3);
        answer_all(1, "");
        run_turn();
        assert_string_equal(carried(), "op-3:1");
        answer_all(1, "");
        assert_int_equal(control_reports_waiting(agent.control), 0);
        assert_int_equal(agent.answer_count, 3);
}

static void test_dispositions(void **state) {
        (void)state;
        static const struct {
                uint64_t disposition;
                bool answered;
                enum control_answer answer;
        } cases[] = {
                { 0, false, 0 },
                { 1, true, CONTROL_REPORT_ACCEPTED },
                { 2, true, CONTROL_REPORT_ACCEPTED },
                { 3, true, CONTROL_REPORT_ACCEPTED },
                { 4, true, CONTROL_REPORT_ACCEPTED },
                { 5, true, CONTROL_REPORT_REJECTED },
                { 6, false, 0 },
        };

        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                size_t before = agent.answer_count;

                give("op-1", (int64_t)i + 1, true);
                (void)wait_report();
                answer_all(cases[i].disposition, "the reason");
                if (!cases[i].answered) {
                        assert_int_equal(agent.answer_count, before);
                        assert_backoff(wait_report(), 0);
                        answer_all(1, "the reason");
                }
                assert_answer(before, "op-1", (int64_t)i + 1,
                              cases[i].answered ? cases[i].answer : CONTROL_REPORT_ACCEPTED);
                assert_string_equal(agent.answers[before].reason, "the reason");
                assert_int_equal(agent.answer_count, before + 1);
        }
}

static void test_one_of_each_operation(void **state) {
        (void)state;
        give("op-1", 8, false);
        give("op-1", 7, false);
        give("op-1", 8, false); /* the same again changes nothing */
        give("op-2", 1, false);
        run_turn();
        assert_string_equal(carried(), "op-1:7 op-2:1");
        give("op-1", 7, false);
        answer_all(1, "");
        run_turn();
        assert_string_equal(carried(), "op-1:8");
        answer_all(1, "");
        assert_int_equal(agent.answer_count, 3);
        assert_int_equal(control_reports_waiting(agent.control), 0);
}

static void test_final_drops_progress(void **state) {
        (void)state;
        give("op-1", 7, false);
        run_turn();
        assert_string_equal(carried(), "op-1:7");
        give("op-1", 8, false); /* waits */
        give("op-1", 9, true);  /* drops both; the one in flight is answered in vain */
        assert_int_equal(control_reports_waiting(agent.control), 1);
        answer_all(5, "");
        assert_int_equal(agent.answer_count, 0);
        run_turn();
        assert_string_equal(carried(), "op-1:9");
        answer_all(1, "");
        assert_int_equal(agent.answer_count, 1);
        assert_answer(0, "op-1", 9, CONTROL_REPORT_ACCEPTED);
}

static void test_batches_of_256(void **state) {
        (void)state;
        for (unsigned i = 0; i < 600; i++)
                give(name_of(i), 1, true);
        static const size_t sizes[] = { 256, 256, 88 };
        for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
                (void)wait_report();
                assert_int_equal(carried_count(), sizes[i]);
                answer_all(1, "");
        }
        assert_int_equal(agent.answer_count, 600);
}

static void test_batches_of_one_mebibyte(void **state) {
        (void)state;
        struct buffer large = BUFFER_INIT(2 * 1024 * 1024);
        char *bytes = calloc(1, 1024 * 1024);

        for (unsigned i = 0; i < 100; i++)
                give_bytes(name_of(i), 1, true, 20000);
        unsigned calls = 0;
        for (; control_reports_waiting(agent.control); calls++) {
                (void)wait_report(); /* decode_request() checks the size */
                answer_all(1, "");
        }
        assert_int_equal(calls, 2);
        assert_non_null(bytes);
        assert_int_equal(control_report(agent.control, "op", 1, true, (struct span){ (uint8_t *)bytes, 1024 * 1024 }),
                         -EINVAL);
        assert_int_equal(control_report(agent.control, "123456789012345678901234567890123456789012345678901", 1, true,
                                        (struct span){ (uint8_t *)bytes, 10 }), -EINVAL);
        free(bytes);
        buffer_deinit(&large);
}

/* A waiting batch must not outgrow a call when final reports take the place of small progress reports. */
static void test_grown_batch_is_trimmed(void **state) {
        (void)state;
        for (unsigned i = 0; i < 100; i++)
                give(name_of(i), 1, false);
        (void)wait_report();
        fail_report(GRPC_INTERNAL, true); /* stays together */
        for (unsigned i = 0; i < 100; i++)
                give_bytes(name_of(i), 2, true, 20000);
        while (control_reports_waiting(agent.control)) {
                (void)wait_report();
                answer_all(1, "");
        }
        assert_int_equal(agent.answer_count, 100);
}

static void test_results_by_position_and_id(void **state) {
        (void)state;
        struct buffer message = BUFFER_INIT(4096);

        for (unsigned i = 0; i < 5; i++)
                give(name_of(i), 1, true);
        (void)wait_report();
        add_result(&message, "op-0", 1, "");
        add_result(&message, "op-2", 1, ""); /* not op-1 */
        add_result(&message, "op-1", 1, "");
        add_result(&message, "op-3", 0, "");
        /* op-4: none */
        finish_report(&message);
        assert_int_equal(agent.answer_count, 1);
        assert_backoff(wait_report(), 0);
        assert_string_equal(carried(), "op-1:1 op-2:1 op-3:1 op-4:1");
        answer_all(1, "");
        assert_int_equal(agent.answer_count, 5);
}

static void test_unreadable_answers_are_retried(void **state) {
        (void)state;
        struct buffer message = BUFFER_INIT(64);

        give("op-1", 1, true);
        (void)wait_report();
        assert_int_equal(buffer_append(&message, "\x0a\x7f", 2), 0);
        finish_report(&message);
        assert_backoff(wait_report(), 0);
        finish_report(&message); /* empty */
        assert_backoff(wait_report(), 1);
        fail_report(GRPC_OK, true); /* without any message */
        (void)wait_report();
        assert_int_equal(agent.answer_count, 0);
        answer_all(1, "");
        assert_int_equal(agent.answer_count, 1);
}

/* Play a server that answers a batch with `status` while a bad operation is in it. */
static bool batch_has_bad(const bool *bad) {
        Sparkcancel__Agent__V1__ReportRequest *request = decode_request();
        bool found = false;

        for (size_t i = 0; i < request->n_reports; i++)
                found |= bad[strtoul(request->reports[i]->operation->id + 3, NULL, 10)];
        free_request(request);
        return found;
}

static void test_refused_batch_is_split(void **state) {
        (void)state;
        static const enum grpc_status statuses[] = { GRPC_INVALID_ARGUMENT, GRPC_FAILED_PRECONDITION };

        for (unsigned round = 0; round < 8; round++) {
                bool bad[256] = {};
                unsigned bad_count = 0, calls = 0;
                uint64_t seed = round, from = loop.now_usec;
                size_t before = agent.answer_count;

                for (unsigned i = 0; i < round; i++)
                        bad[base_random_next(&seed) % 256] = true;
                for (unsigned i = 0; i < 256; i++) {
                        bad_count += bad[i];
                        give(name_of(i), round + 1, i % 2);
                }
                for (; control_reports_waiting(agent.control); calls++) {
                        (void)wait_report();
                        if (batch_has_bad(bad))
                                fail_report(statuses[round % 2], true);
                        else
                                answer_all(1, "");
                }
                assert_int_equal(agent.answer_count - before, 256);
                assert_int_equal(loop.now_usec, from); /* a search needs no back-off */
                assert_true(calls <= 1 + 2 * 8 * bad_count);
                for (size_t i = before; i < agent.answer_count; i++) {
                        bool is_bad = bad[strtoul(agent.answers[i].operation_id + 3, NULL, 10)];

                        assert_int_equal(agent.answers[i].answer,
                                         is_bad ? CONTROL_REPORT_REJECTED : CONTROL_REPORT_ACCEPTED);
                        assert_true(!is_bad || strstr(agent.answers[i].reason, ": why"));
                }
        }
}

/* A search that an outage interrupts goes on where it was. */
static void test_split_survives_an_outage(void **state) {
        (void)state;
        bool bad[64] = { true };

        for (unsigned i = 0; i < 64; i++)
                give(name_of(i), 1, true);
        do {
                if (!channel.report)
                        (void)wait_report();
                fail_report(GRPC_INVALID_ARGUMENT, true);
                (void)wait_report();
                assert_true(batch_has_bad(bad));
        } while (carried_count() > 2);
        for (unsigned i = 0; i < 20; i++) {
                fail_report(GRPC_UNAVAILABLE, false);
                (void)wait_report();
        }
        for (;; (void)wait_report()) {
                if (batch_has_bad(bad))
                        break;
                answer_all(1, "");
        }
        assert_int_equal(carried_count(), 2);
}

static void test_troubled_batch_is_split_after_three(void **state) {
        (void)state;
        bool bad[64] = { [5] = true };
        unsigned alone = 0;

        for (unsigned i = 0; i < 64; i++)
                give(name_of(i), 1, true);
        for (unsigned i = 0; i < 3; i++) {
                (void)wait_report();
                assert_int_equal(carried_count(), 64);
                fail_report(GRPC_INTERNAL, true);
        }
        (void)wait_report();
        assert_int_equal(carried_count(), 32);
        while (alone < 20) {
                if (!channel.report)
                        (void)wait_report();
                if (batch_has_bad(bad)) {
                        alone += carried_count() == 1;
                        fail_report(GRPC_INTERNAL, true);
                } else
                        answer_all(1, "");
        }
        assert_int_equal(agent.answer_count, 63); /* kept, never given up, and the only one left */
        assert_int_equal(control_reports_waiting(agent.control), 1);

        /* it holds up no other */
        give("op-99", 1, true);
        run_turn();
        assert_string_equal(carried(), "op-99:1");
        answer_all(1, "");

        /* and gets through as soon as the server can take it */
        assert_true(wait_report() >= MAX_USEC / 4);
        assert_string_equal(carried(), "op-5:1");
        answer_all(1, "");
        assert_answer(64, "op-5", 1, CONTROL_REPORT_ACCEPTED);
}

/* Reports on which the server chokes one by one: paced among themselves, and all free as soon as one gets through. */
static void test_known_bad_reports(void **state) {
        (void)state;
        uint64_t last = 0;

        for (unsigned i = 0; i < 8; i++)
                give(name_of(i), 1, true);
        for (unsigned lone = 0; lone < 500;) {
                (void)wait_report();
                lone = carried_count() == 1 ? lone + 1 : 0;
                if (lone > 100) /* by now each stands alone */
                        assert_true(loop.now_usec - last >= MIN_USEC);
                last = loop.now_usec;
                fail_report(GRPC_INTERNAL, true);
        }
        (void)wait_report();
        answer_all(1, "");
        assert_int_equal(wait_report(), 0);
        assert_int_equal(carried_count(), 7);
        answer_all(1, "");
        assert_int_equal(agent.answer_count, 8);
}

/* A stream of new reports does not starve a batch that failed. */
static void test_failed_batch_takes_its_turn(void **state) {
        (void)state;
        give("op-0", 1, true);
        (void)wait_report();
        fail_report(GRPC_INTERNAL, true);
        give("op-1", 1, true);
        for (unsigned i = 2; i < 8; i++) {
                if (!channel.report)
                        (void)wait_report();
                if (strcmp(carried(), "op-0:1") == 0)
                        return;
                give(name_of(i), 1, true); /* there is always a new one */
                answer_all(1, "");
                run_for(MIN_USEC);
        }
        fail_msg("the failed report was not tried again");
}

/* A server that chokes on everything for hours is not hammered, and all is delivered when it is well again. */
static void test_server_in_trouble(void **state) {
        (void)state;
        uint64_t until = loop.now_usec + 4 * USEC_PER_HOUR;

        for (unsigned i = 0; i < 300; i++)
                give(name_of(i), 1, true);
        while (loop.now_usec < until) {
                (void)wait_report();
                fail_report(GRPC_UNKNOWN, true);
        }
        assert_true(channel.reports < 4 * 3600);
        until = loop.now_usec + 10 * USEC_PER_MINUTE;
        while (control_reports_waiting(agent.control)) {
                (void)wait_report();
                answer_all(1, "");
        }
        assert_int_equal(agent.answer_count, 300);
        assert_true(loop.now_usec < until);
}

static void test_other_statuses_keep_and_retry(void **state) {
        (void)state;
        static const bool troubled[17] = { [GRPC_UNKNOWN] = true, [GRPC_INTERNAL] = true,
                                           [GRPC_RESOURCE_EXHAUSTED] = true };
        static const bool refused[17] = { [GRPC_INVALID_ARGUMENT] = true, [GRPC_FAILED_PRECONDITION] = true };

        for (enum grpc_status status = GRPC_CANCELLED; status <= GRPC_UNAUTHENTICATED; status++) {
                for (int from_peer = 0; from_peer < 2; from_peer++) {
                        size_t before = agent.answer_count;
                        unsigned refreshed = tokens.refreshed;

                        give("op-1", 2 * (int64_t)status + from_peer, true);
                        give("op-2", 2 * (int64_t)status + from_peer, true);
                        (void)wait_report();
                        if (from_peer && (refused[status] || troubled[status]))
                                goto answer;
                        for (unsigned i = 0; i < 12; i++) {
                                fail_report(status, from_peer);
                                assert_int_equal(agent.answer_count, before);
                                assert_backoff(wait_report(), i);
                                assert_int_equal(carried_count(), 2); /* no split */
                        }
                        assert_int_equal(tokens.refreshed - refreshed, status == GRPC_UNAUTHENTICATED ? 12 : 0);
                answer:
                        answer_all(1, "");
                        assert_int_equal(agent.answer_count, before + 2);
                }
        }
}

static void test_report_pushback(void **state) {
        (void)state;
        const struct grpc_result result = { .status = GRPC_UNAVAILABLE, .from_peer = true, .has_pushback = true,
                                            .pushback_ms = 7000 };

        give("op-1", 1, true);
        (void)wait_report();
        close_call(channel.report, &result);
        assert_in_range(wait_report(), 7 * USEC_PER_SEC, 8 * USEC_PER_SEC);
        answer_all(1, "");
}

static void test_new_reports_join_a_failed_batch(void **state) {
        (void)state;
        give("op-1", 1, true);
        (void)wait_report();
        fail_report(GRPC_UNAVAILABLE, false);
        give("op-2", 1, true);
        run_turn();
        assert_null(channel.report); /* new reports do not break the back-off */
        (void)wait_report();
        assert_int_equal(carried_count(), 2);
        answer_all(1, "");
}

static void test_reports_failing_is_told(void **state) {
        (void)state;
        uint64_t from = loop.now_usec;

        give("op-1", 1, true);
        while (loop.now_usec < from + 20 * USEC_PER_MINUTE) {
                bool before = loop.now_usec < from + 4 * USEC_PER_MINUTE;

                (void)wait_report();
                fail_report(GRPC_PERMISSION_DENIED, true);
                if (before)
                        assert_int_equal(agent.notices[CONTROL_REPORTS_FAILING], 0);
        }
        assert_int_equal(agent.notices[CONTROL_REPORTS_FAILING], 1);
        assert_string_equal(agent.detail[CONTROL_REPORTS_FAILING], "PERMISSION_DENIED: why");
        (void)wait_report();
        answer_all(1, "");

        give("op-1", 2, true); /* a success in between: told anew */
        from = loop.now_usec;
        while (loop.now_usec < from + 6 * USEC_PER_MINUTE) {
                (void)wait_report();
                fail_report(GRPC_UNAVAILABLE, false);
        }
        assert_int_equal(agent.notices[CONTROL_REPORTS_FAILING], 2);
}

static void test_reports_without_token(void **state) {
        (void)state;
        tokens.result = -ENOENT;
        tokens.error = "no file";
        give("op-1", 1, true);
        run_for(USEC_PER_MINUTE);
        assert_int_equal(channel.reports, 0);
        assert_true(agent.notices[CONTROL_TOKEN_FAILED] > 1);
        tokens.result = 0;
        (void)wait_report();
        answer_all(1, "");
        assert_int_equal(agent.answer_count, 1);
}

static void test_report_call_start_fails(void **state) {
        (void)state;
        channel.start_result = -ENOMEM;
        give("op-1", 1, true);
        run_for(USEC_PER_MINUTE);
        channel.start_result = 0;
        (void)wait_report();
        answer_all(1, "");
        assert_int_equal(agent.answer_count, 1);
}

/* The next report of the same operation is handed over from within the answer of the one before. */
static int next_in_report(const struct answer *answer) {
        if (answer->sequence < 5)
                give(answer->operation_id, answer->sequence + 1, answer->sequence == 4);
        control_reload(agent.control);
        return 0;
}

static void test_handlers_may_call_back(void **state) {
        (void)state;
        agent.in_report = next_in_report;
        give("op-1", 1, false);
        give("op-2", 1, false);
        for (int i = 0; i < 5; i++) {
                (void)wait_report();
                assert_int_equal(carried_count(), 2);
                answer_all(i == 2 ? 5 : 1, "");
        }
        assert_int_equal(agent.answer_count, 10);
        assert_int_equal(control_reports_waiting(agent.control), 0);
}

static void test_report_handler_failure(void **state) {
        (void)state;
        agent.fail = -EIO;
        give("op-1", 1, true);
        give("op-2", 1, true);
        (void)wait_report();
        answer_all(1, "");
        assert_int_equal(loop.failure, -EIO);
        assert_int_equal(agent.answer_count, 1);
        assert_int_equal(control_reports_waiting(agent.control), 1); /* the other is not lost */
        loop.failure = 0;
}

static void test_connected_stream_hurries_reports(void **state) {
        (void)state;
        start(5);
        give("op-1", 1, true);
        run_turn();
        for (int i = 0; i < 12; i++) {
                fail_report(GRPC_UNAVAILABLE, false);
                (void)wait_report();
        }
        fail_report(GRPC_UNAVAILABLE, false);
        run_turn();
        assert_null(channel.report);
        if (!channel.watch) /* the stream was silent meanwhile */
                (void)wait_watch();
        uint64_t connected = loop.now_usec;
        send_bookmark(5, 10, 0);
        run_turn();
        assert_int_equal(loop.now_usec, connected);
        assert_non_null(channel.report);
        answer_all(1, "");
}

static void test_reload_sends_again(void **state) {
        (void)state;
        give("op-1", 1, true);
        run_turn();
        control_reload(agent.control);
        run_turn();
        assert_int_equal(channel.drops, 1);
        assert_int_equal(channel.reports, 2);
        assert_string_equal(carried(), "op-1:1");
        answer_all(1, "");
        assert_int_equal(agent.answer_count, 1);
}

static void test_drain(void **state) {
        (void)state;
        start(5);
        send_bookmark(5, 10, 0);
        give("op-1", 1, true);
        (void)wait_report();
        for (int i = 0; i < 10; i++) {
                fail_report(GRPC_UNAVAILABLE, true);
                (void)wait_report();
        }
        fail_report(GRPC_UNAVAILABLE, true);
        uint64_t from = loop.now_usec;
        unsigned watches = channel.watches;
        assert_int_equal(control_drain(agent.control, 5 * USEC_PER_SEC, on_drained, NULL), 0);
        assert_false(control_is_connected(agent.control));
        run_turn();
        assert_null(channel.watch);
        assert_non_null(channel.report); /* whatever back-off it was in */
        give("op-2", 1, true);           /* the last commit's report */
        answer_all(1, "");
        run_turn();
        assert_int_equal(agent.drained, 0);
        answer_all(1, "");
        run_turn();
        assert_int_equal(agent.drained, 1);
        assert_int_equal(loop.now_usec, from);
        run_for(USEC_PER_HOUR);
        assert_int_equal(agent.drained, 1);
        assert_int_equal(channel.watches, watches); /* and no new stream */
}

static void test_drain_with_nothing_to_do(void **state) {
        (void)state;
        assert_int_equal(control_drain(agent.control, 5 * USEC_PER_SEC, on_drained, NULL), 0);
        assert_int_equal(agent.drained, 0); /* from the loop only */
        run_turn();
        assert_int_equal(agent.drained, 1);
}

static void test_drain_times_out(void **state) {
        (void)state;
        give("op-1", 1, true);
        (void)wait_report();
        assert_int_equal(control_drain(agent.control, 5 * USEC_PER_SEC, on_drained, NULL), 0);
        run_for(5 * USEC_PER_SEC - 1);
        assert_int_equal(agent.drained, 0);
        run_for(1);
        assert_int_equal(agent.drained, 1);
}

static int drain_in_event(void) {
        return control_drain(agent.control, USEC_PER_SEC, on_drained, NULL);
}

static void test_drain_in_event(void **state) {
        (void)state;
        start(5);
        agent.in_event = drain_in_event;
        send_withdrawn(6);
        agent.in_event = NULL;
        send_withdrawn(7); /* came in the same turn: no new work is taken */
        assert_int_equal(agent.events, 1);
        run_turn();
        assert_null(channel.watch);
        assert_int_equal(agent.drained, 1);
}

static void test_freed_in_the_middle(void **state) {
        (void)state;
        start(5);
        for (unsigned i = 0; i < 300; i++)
                give(name_of(i), 1, true);
        run_turn();
        fail_report(GRPC_INTERNAL, true);
        (void)wait_report(); /* teardown frees it with a call in flight and a batch waiting */
}

static void test_many_reports(void **state) {
        (void)state;
        const unsigned many = 100000;
        struct timespec from, to;

        assert_int_equal(clock_gettime(CLOCK_MONOTONIC, &from), 0);
        for (unsigned i = 0; i < many; i++)
                give(name_of(i), 1, false);
        for (unsigned i = 0; i < many; i++)
                give(name_of(i), 2, true);
        assert_int_equal(control_reports_waiting(agent.control), many);
        while (control_reports_waiting(agent.control)) {
                (void)wait_report();
                answer_all(1, "");
        }
        assert_int_equal(agent.answer_count, many);
        assert_int_equal(clock_gettime(CLOCK_MONOTONIC, &to), 0);
        print_message("%u reports in %ld ms\n", many,
                      (to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000);
        assert_true(to.tv_sec - from.tv_sec < 20); /* it takes well under a second; squared time would take minutes */
}

/* ---- random faults ---------------------------------------------------------------------------------- */

static struct {
        uint64_t seed;
        int64_t last[50];       /* last sequence given */
        int64_t answered[50];   /* highest sequence answered */
        bool final_given[50], final_answered[50];
} storm;

static uint64_t dice(uint64_t sides) {
        return base_random_next(&storm.seed) % sides;
}

static int storm_report(const struct answer *answer) {
        size_t i = strtoul(answer->operation_id + 3, NULL, 10);

        assert_true(answer->sequence > storm.answered[i]); /* in order, and once */
        storm.answered[i] = answer->sequence;
        if (storm.final_given[i] && answer->sequence == storm.last[i])
                storm.final_answered[i] = true;
        return 0;
}

static void storm_give(void) {
        unsigned i = (unsigned)dice(50);

        if (storm.final_given[i])
                return;
        storm.final_given[i] = dice(3) == 0;
        give(name_of(i), storm.last[i] += 1 + (int64_t)dice(3), storm.final_given[i]);
}

static void storm_answer(void) {
        Sparkcancel__Agent__V1__ReportRequest *request = decode_request();
        struct buffer message = BUFFER_INIT(1024 * 1024);

        for (size_t i = 0; i < request->n_reports && dice(40); i++)
                add_result(&message, dice(30) ? request->reports[i]->operation->id : "op-other", dice(7), "");
        free_request(request);
        finish_report(&message);
}

static void storm_step(bool calm) {
        if (!calm && dice(2))
                storm_give();
        if (!channel.report)
                run_for(dice(3) ? 0 : dice(10 * USEC_PER_SEC));
        if (!channel.report)
                return;
        if (calm)
                answer_all(1, "");
        else if (dice(3))
                fail_report(1 + (enum grpc_status)dice(16), dice(2));
        else
                storm_answer();
        if (!calm && dice(20) == 0)
                control_reload(agent.control);
}

/* Whatever the server does: every final report is answered in the end, each report at most once, in order. */
static void test_random_faults(void **state) {
        (void)state;
        const char *text = getenv("SEED");
        uint64_t seed = base_random_u64();

        if (text && base_parse_u64(text, 0, UINT64_MAX, &seed) < 0)
                fail_msg("SEED is not a number: %s", text);
        print_message("SEED=%" PRIu64 "\n", seed);
        memset(&storm, 0, sizeof(storm));
        storm.seed = seed;
        agent.in_report = storm_report;
        for (int i = 0; i < 3000; i++)
                storm_step(false);
        for (int i = 0; i < 5000 && control_reports_waiting(agent.control); i++)
                storm_step(true);
        assert_int_equal(control_reports_waiting(agent.control), 0);
        for (size_t i = 0; i < ARRAY_SIZE(storm.last); i++)
                assert_int_equal(storm.final_given[i], storm.final_answered[i]);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void) {
        const struct CMUnitTest tests[] = {
                TEST(test_report_goes_out_at_once),
                TEST(test_dispositions),
                TEST(test_one_of_each_operation),
                TEST(test_final_drops_progress),
                TEST(test_batches_of_256),
                TEST(test_batches_of_one_mebibyte),
                TEST(test_grown_batch_is_trimmed),
                TEST(test_results_by_position_and_id),
                TEST(test_unreadable_answers_are_retried),
                TEST(test_refused_batch_is_split),
                TEST(test_split_survives_an_outage),
                TEST(test_troubled_batch_is_split_after_three),
                TEST(test_known_bad_reports),
                TEST(test_failed_batch_takes_its_turn),
                TEST(test_server_in_trouble),
                TEST(test_other_statuses_keep_and_retry),
                TEST(test_report_pushback),
                TEST(test_new_reports_join_a_failed_batch),
                TEST(test_reports_failing_is_told),
                TEST(test_reports_without_token),
                TEST(test_report_call_start_fails),
                TEST(test_handlers_may_call_back),
                TEST(test_report_handler_failure),
                TEST(test_connected_stream_hurries_reports),
                TEST(test_reload_sends_again),
                TEST(test_drain),
                TEST(test_drain_with_nothing_to_do),
                TEST(test_drain_times_out),
                TEST(test_drain_in_event),
                TEST(test_freed_in_the_middle),
                TEST(test_many_reports),
                TEST(test_random_faults),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
