/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * spark_reply: PURE: one master's reply → one word of a closed list
 *
 * Bytes and an HTTP status in, a classified reply out; no I/O, no clock, no log. HTTP 200 proves nothing by itself and
 * neither does `success`: a reply counts as an ALIVE master's word only when its `action` is that of the question, its
 * `submissionId`, where present, is the id that was asked, and the rest fits. What fits nothing is odd, and an odd
 * master counts as a silent one: no harm comes from asking again.
 *
 * Sources: core/src/main/scala/org/apache/spark/deploy/rest/{RestSubmissionServer,StandaloneRestServer,
 * SubmitRestProtocolResponse}.scala, deploy/master/Master.scala (RequestKillDriver, RequestDriverStatus).
 */
#include "base.h"
#include "spark.h"

#define SPARK_REPLY_BYTES_MAX (64 * 1024)
#define SPARK_DETAIL_MAX 512

enum spark_question {
        SPARK_QUESTION_KILL,
        SPARK_QUESTION_STATUS,
};

struct spark_reply { /* all text is escaped */
        enum spark_answer answer; /* of this one master: SPARK_UNREACHABLE also means busy or odd */
        enum spark_driver_state state;
        char state_text[DRIVER_STATE_MAX + 1];
        bool worker_named;
        char worker_host_port[280];
        char worker_host[256];            /* its host without port and brackets; "" when it cannot be read */
        char version[SPARK_VERSION_MAX + 1]; /* serverSparkVersion; "": not told */
        char detail[SPARK_DETAIL_MAX + 1]; /* Spark's message, or what is wrong with the reply */
};

/* spark_reply_classify() - never fails: what cannot be understood is SPARK_UNREACHABLE. */
void spark_reply_classify(enum spark_question question, const char *driver_id, int http_status, struct span body,
                          struct spark_reply *ret);

/* spark_reply_is_final() - does this answer end the round? There is one ALIVE master, so its word does. */
bool spark_reply_is_final(enum spark_answer answer);

/* spark_reply_combine() - the answer of a round in which no ALIVE master was met, from the answers of its masters: one
 * that was silent leaves all open; then a refusal counts, for the token before any other; then "not alive". */
enum spark_answer spark_reply_combine(enum spark_answer so_far, enum spark_answer next);

/* spark_host_is_same() - two names or addresses of a host: addresses by value, brackets or not, names without case. */
bool spark_host_is_same(const char *a, const char *b);
