/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spark_reply: PURE: one master's reply → one word of a closed list
 *
 * The order of the tests is the design: HTTP status, whole JSON object, action, id, success, message. Every test that
 * fails leaves by the door "odd" (SPARK_UNREACHABLE with a reason); "accepted" is the last line of a long way.
 *
 * Traps, all seen on real masters:
 * - A standby, a recovering and an ALIVE master that does not know the id answer HTTP 200 and success:false alike.
 *   The message tells them apart: a prefix for kill; for status a phrase somewhere inside a stack trace.
 * - Status of an id that is not known has no message at all.
 * - Only a status with success:false may be searched for that phrase: with success:true the message is the driver's own
 *   exception, and a job can write there what it likes.
 */
#include "spark_reply.h"
#include "jsonread.h"

#include <arpa/inet.h>
#include <strings.h>

static bool span_is(struct span span, const char *text) {
        return span.size == strlen(text) && memcmp(span.data, text, span.size) == 0;
}

static bool span_has(struct span span, const char *text) {
        return span.size > 0 && memmem(span.data, span.size, text, strlen(text));
}

static bool span_starts_with(struct span span, const char *text) {
        return span.size >= strlen(text) && memcmp(span.data, text, strlen(text)) == 0;
}

static void reply_set(struct spark_reply *reply, enum spark_answer answer, struct span detail) {
        reply->answer = answer;
        base_text_escape(reply->detail, sizeof(reply->detail), detail.data, detail.size);
}

__attribute__((format(printf, 3, 4))) static void reply_say(struct spark_reply *reply, enum spark_answer answer,
                                                            const char *format, ...) {
        char text[SPARK_DETAIL_MAX + 1];
        va_list arguments;

        va_start(arguments, format);
        vsnprintf(text, sizeof(text), format, arguments);
        va_end(arguments);
        reply_set(reply, answer, (struct span){.data = (const uint8_t *)text, .size = strlen(text)});
}

/* ---- HTTP statuses other than 200 ------------------------------------------------------------------ */

static enum spark_answer status_to_answer(int status) {
        if (status >= 300 && status <= 399)
                return SPARK_REFUSED; /* a redirect is never followed */
        switch (status) {
        case 401:
        case 403:
                return SPARK_REFUSED_AUTH;
        case 400:
        case 404:
        case 405:
        case 414:
        case 431:
        case 468: /* wrong protocol version, RestSubmissionServer.SC_UNKNOWN_PROTOCOL_VERSION */
                return SPARK_REFUSED;
        default: /* 408, 425, 429 and 5xx say so; anything else is odd */
                return SPARK_UNREACHABLE;
        }
}

/* The title of an HTML error page: Jetty and JWSFilter put their reason there, "Error 403 JWT Validate Fail". */
static struct span html_title(struct span body) {
        static const char open[] = "<title>", close[] = "</title>";

        for (size_t i = 0; i + sizeof(open) - 1 <= body.size; i++) {
                if (strncasecmp((const char *)body.data + i, open, sizeof(open) - 1) != 0)
                        continue;
                struct span title = {.data = body.data + i + sizeof(open) - 1,
                                     .size = body.size - i - (sizeof(open) - 1)};
                const uint8_t *end = memmem(title.data, title.size, close, sizeof(close) - 1);
                title.size = end ? (size_t)(end - title.data) : 0;
                return title;
        }
        return (struct span){0};
}

/* An ErrorResponse carries its reason in `message`, a page in its title. */
static void classify_error(int status, struct span body, struct spark_reply *reply) {
        _cleanup_(jsonread_free_pointer) struct json_object *object = NULL;
        struct span text = {0};
        char reason[256] = "";

        if (jsonread_object(body, &object) < 0)
                text = html_title(body);
        else if (jsonread_text(object, "message", &text) < 0)
                text = (struct span){0};
        if (text.size > 0)
                base_text_escape(reason, sizeof(reason), text.data, text.size);
        reply_say(reply, status_to_answer(status), "HTTP status %d%s%s", status, reason[0] ? ": " : "", reason);
}

/* ---- kill --------------------------------------------------------------------------------------------- */

/* RECOVERING and COMPLETING_RECOVERY carry the prefix too: the right master, too early. Before 1.4 there was none. */
static bool message_is_not_alive(struct span message) {
        return span_starts_with(message, "Current state is not alive") ||
               span_starts_with(message, "Can only kill drivers in ALIVE state.");
}

static void classify_kill(bool success, struct span message, struct spark_reply *reply) {
        if (success && !message_is_not_alive(message))
                reply_set(reply, SPARK_ACCEPTED, message);
        else if (success)
                reply_say(reply, SPARK_UNREACHABLE, "odd answer: success from a master that is not alive");
        else if (message_is_not_alive(message))
                reply_set(reply, SPARK_NOT_ALIVE, message);
        else if (span_has(message, "has already finished or does not exist"))
                reply_set(reply, SPARK_UNKNOWN_ID, message);
        else
                reply_set(reply, SPARK_UNREACHABLE, message);
}

/* ---- status ------------------------------------------------------------------------------------------- */

static enum spark_driver_state state_from_text(struct span text) {
        static const struct {
                const char *word;
                enum spark_driver_state state;
        } words[] = {
                {"SUBMITTED", SPARK_STATE_SUBMITTED}, {"RUNNING", SPARK_STATE_RUNNING},
                {"FINISHED", SPARK_STATE_FINISHED},   {"RELAUNCHING", SPARK_STATE_RELAUNCHING},
                {"KILLED", SPARK_STATE_KILLED},       {"FAILED", SPARK_STATE_FAILED},
                {"ERROR", SPARK_STATE_ERROR},
        };
        for (size_t i = 0; i < ARRAY_SIZE(words); i++)
                if (span_is(text, words[i].word))
                        return words[i].state;
        return SPARK_STATE_OTHER; /* UNKNOWN too: in the enum, never assigned */
}

/* "host:port", "[v6]:port", and from old versions "v6:port": the last colon parts them. */
static void parse_worker_host(struct span text, char *host, size_t size) {
        const uint8_t *colon = memrchr(text.data, ':', text.size);
        uint64_t port;

        host[0] = '\0';
        if (!colon || base_parse_u64((const char *)colon + 1, 1, UINT16_MAX, &port) < 0)
                return;
        size_t length = (size_t)(colon - text.data);
        const uint8_t *start = text.data;
        if (length >= 2 && start[0] == '[' && start[length - 1] == ']') {
                start++;
                length -= 2;
        }
        if (length == 0 || length >= size)
                return;
        memcpy(host, start, length);
        host[length] = '\0';
}

static void classify_worker(struct span host_port, struct spark_reply *reply) {
        char host[sizeof(reply->worker_host)];

        reply->worker_named = true;
        base_text_escape(reply->worker_host_port, sizeof(reply->worker_host_port), host_port.data, host_port.size);
        parse_worker_host(host_port, host, sizeof(host));
        base_text_escape(reply->worker_host, sizeof(reply->worker_host), host, strlen(host));
}

static void classify_found(struct json_object *object, struct span message, struct spark_reply *reply) {
        struct span state, host_port;

        if (jsonread_text(object, "driverState", &state) < 0) {
                reply_say(reply, SPARK_UNREACHABLE, "odd answer: a known driver without a state");
                return;
        }
        int r = jsonread_text(object, "workerHostPort", &host_port);
        if (r < 0 && r != -ENOENT) {
                reply_say(reply, SPARK_UNREACHABLE, "odd answer: workerHostPort is not a text");
                return;
        }
        if (r == 0)
                classify_worker(host_port, reply);
        reply->state = state_from_text(state);
        base_text_escape(reply->state_text, sizeof(reply->state_text), state.data, state.size);
        reply_set(reply, SPARK_ACCEPTED, message);
}

/* The line of a stack trace that people need. */
static struct span line_from(struct span text, const char *start) {
        const uint8_t *from = memmem(text.data, text.size, start, strlen(start));
        struct span line = text;

        if (from) {
                line.data = from;
                line.size = text.size - (size_t)(from - text.data);
        }
        const uint8_t *end = memchr(line.data, '\n', line.size);
        if (end)
                line.size = (size_t)(end - line.data);
        return line;
}

static void classify_status(struct json_object *object, bool success, struct span message, struct spark_reply *reply) {
        if (success)
                classify_found(object, message, reply);
        else if (message.size == 0)
                reply_say(reply, SPARK_UNKNOWN_ID, "the master does not know this driver");
        else if (span_has(message, "Can only request driver status in ALIVE state.") ||
                 span_starts_with(message, "Current state is not alive"))
                reply_set(reply, SPARK_NOT_ALIVE, line_from(message, "Current state is not alive"));
        else
                reply_set(reply, SPARK_UNREACHABLE, message);
}

/* ---- a reply ------------------------------------------------------------------------------------------ */

/* What keeps this object from being the answer to the question? NULL: nothing. */
static const char *find_oddness(struct json_object *object, const char *action, const char *driver_id, bool *success,
                                struct span *message) {
        struct span text;

        if (jsonread_text(object, "action", &text) < 0)
                return "no action";
        if (!span_is(text, action))
                return "an action that was not asked for";
        int r = jsonread_text(object, "submissionId", &text);
        if (r != -ENOENT && (r < 0 || !span_is(text, driver_id)))
                return "another driver's id";
        if (jsonread_bool(object, "success", success) < 0)
                return "success is missing or not a boolean";
        r = jsonread_text(object, "message", message);
        if (r < 0 && r != -ENOENT)
                return "message is not a text";
        return NULL;
}

static void classify_json(enum spark_question question, const char *driver_id, struct json_object *object,
                          struct spark_reply *reply) {
        const char *action = question == SPARK_QUESTION_KILL ? "KillSubmissionResponse" : "SubmissionStatusResponse";
        struct span message = {0}, version;
        bool success = false;
        const char *odd = find_oddness(object, action, driver_id, &success, &message);

        if (jsonread_text(object, "serverSparkVersion", &version) == 0)
                base_text_escape(reply->version, sizeof(reply->version), version.data, version.size);
        if (odd)
                reply_say(reply, SPARK_UNREACHABLE, "odd answer: %s", odd);
        else if (question == SPARK_QUESTION_KILL)
                classify_kill(success, message, reply);
        else
                classify_status(object, success, message, reply);
}

void spark_reply_classify(enum spark_question question, const char *driver_id, int http_status, struct span body,
                          struct spark_reply *ret) {
        _cleanup_(jsonread_free_pointer) struct json_object *object = NULL;
        struct spark_reply reply = {.answer = SPARK_UNREACHABLE};

        if (body.size > SPARK_REPLY_BYTES_MAX)
                body.size = SPARK_REPLY_BYTES_MAX; /* half an object is none */
        if (http_status != 200)
                classify_error(http_status, body, &reply);
        else if (jsonread_object(body, &object) < 0)
                reply_say(&reply, SPARK_UNREACHABLE, "odd answer: not one whole JSON object");
        else
                classify_json(question, driver_id, object, &reply);
        *ret = reply;
}

/* ---- rounds ------------------------------------------------------------------------------------------- */

bool spark_reply_is_final(enum spark_answer answer) {
        return answer == SPARK_ACCEPTED || answer == SPARK_UNKNOWN_ID;
}

static int answer_rank(enum spark_answer answer) {
        switch (answer) {
        case SPARK_NOT_ALIVE:
                return 0;
        case SPARK_REFUSED:
                return 1;
        case SPARK_REFUSED_AUTH:
                return 2;
        case SPARK_UNREACHABLE:
                return 3;
        case SPARK_UNKNOWN_ID:
        case SPARK_ACCEPTED:
        case SPARK_ANSWER_MAX:
                break;
        }
        return 4;
}

enum spark_answer spark_reply_combine(enum spark_answer so_far, enum spark_answer next) {
        return answer_rank(next) > answer_rank(so_far) ? next : so_far;
}

/* ---- hosts -------------------------------------------------------------------------------------------- */

static bool parse_address(const char *text, struct in6_addr *ret) {
        char plain[INET6_ADDRSTRLEN + 2];
        struct in_addr four;
        size_t size = strlen(text);

        if (size >= 2 && text[0] == '[' && text[size - 1] == ']') {
                text++;
                size -= 2;
        }
        if (size >= sizeof(plain))
                return false;
        memcpy(plain, text, size);
        plain[size] = '\0';
        memset(ret, 0, sizeof(*ret));
        if (inet_pton(AF_INET6, plain, ret) == 1)
                return true;
        if (inet_pton(AF_INET, plain, &four) != 1)
                return false;
        ret->s6_addr[10] = ret->s6_addr[11] = 0xff; /* ::ffff:a.b.c.d */
        memcpy(&ret->s6_addr[12], &four, sizeof(four));
        return true;
}

bool spark_host_is_same(const char *a, const char *b) {
        struct in6_addr left, right;
        bool is_left = parse_address(a, &left), is_right = parse_address(b, &right);

        if (is_left && is_right)
                return memcmp(&left, &right, sizeof(left)) == 0;
        return !is_left && !is_right && a[0] != '\0' && strcasecmp(a, b) == 0;
}
