/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One master's reply, from the HTTP status and the body on. The first two bytes choose the question and the status; the
 * rest is the body.
 *
 * What must never come of it: a reply of another kind or about another driver that counts as an ALIVE master's word.
 */
#include "fuzz.h"
#include "jsonread.h"
#include "spark_reply.h"

#define DRIVER_ID "driver-20261107101500-0001"

static int pick_status(uint8_t choice) {
        static const int statuses[] = {
                200, 200, 200, 200, 400, 401, 403, 404, 405, 408, 414, 431, 468, 500, 503, 302
        };

        return choice < 0xf0 ? statuses[choice % ARRAY_SIZE(statuses)] : choice * 3;
}

static bool text_is(struct json_object *object, const char *name, const char *expected) {
        struct span text;

        return jsonread_text(object, name, &text) == 0 && text.size == strlen(expected) &&
               memcmp(text.data, expected, text.size) == 0;
}

/* A final answer: HTTP 200, one whole object, the right action, and no other id than the one asked for. */
static void check_final(enum spark_question question, int status, struct span body) {
        const char *action = question == SPARK_QUESTION_KILL ? "KillSubmissionResponse" : "SubmissionStatusResponse";
        _cleanup_(jsonread_free_pointer) struct json_object *object = NULL;
        struct span id;

        FUZZ_CHECK(status == 200);
        FUZZ_CHECK(jsonread_object(body, &object) == 0);
        FUZZ_CHECK(text_is(object, "action", action));
        if (jsonread_text(object, "submissionId", &id) != -ENOENT)
                FUZZ_CHECK(text_is(object, "submissionId", DRIVER_ID));
}

static void check_success(const struct spark_reply *reply, enum spark_question question, struct span body) {
        _cleanup_(jsonread_free_pointer) struct json_object *object = NULL;
        bool success;

        FUZZ_CHECK(jsonread_object(body, &object) == 0);
        FUZZ_CHECK(jsonread_bool(object, "success", &success) == 0);
        FUZZ_CHECK(success == (reply->answer == SPARK_ACCEPTED));
        if (question == SPARK_QUESTION_KILL)
                FUZZ_CHECK(reply->state == SPARK_STATE_NONE && !reply->worker_named);
        else
                FUZZ_CHECK((reply->state != SPARK_STATE_NONE) == success);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct span input = { data, size };
        const enum spark_question question = fuzz_take_u8(&input) & 1 ? SPARK_QUESTION_KILL : SPARK_QUESTION_STATUS;
        const int status = pick_status(fuzz_take_u8(&input));
        struct spark_reply reply;

        /* http.h promises a NUL behind the body. */
        _cleanup_free_ char *body = fuzz_text(input);
        input.data = (const uint8_t *)body;
        spark_reply_classify(question, DRIVER_ID, status, input, &reply);
        FUZZ_CHECK(reply.answer < SPARK_ANSWER_MAX);
        FUZZ_CHECK(reply.state <= SPARK_STATE_OTHER);
        FUZZ_CHECK_TEXT(reply.state_text);
        FUZZ_CHECK_TEXT(reply.worker_host_port);
        FUZZ_CHECK_TEXT(reply.worker_host);
        FUZZ_CHECK_TEXT(reply.detail);
        FUZZ_CHECK(reply.worker_named || (!reply.worker_host_port[0] && !reply.worker_host[0]));
        if (spark_reply_is_final(reply.answer)) {
                check_final(question, status, input);
                check_success(&reply, question, input);
        } else
                FUZZ_CHECK(reply.state == SPARK_STATE_NONE);
        FUZZ_CHECK(!spark_reply_is_final(spark_reply_combine(SPARK_NOT_ALIVE, reply.answer)) ||
                   spark_reply_is_final(reply.answer));
        /* The host is compared with this node's names: one that is empty must be nobody's. */
        FUZZ_CHECK(reply.worker_host[0] || !spark_host_is_same(reply.worker_host, reply.worker_host));
        (void)spark_host_is_same(reply.worker_host, "192.0.2.1");
        return 0;
}
