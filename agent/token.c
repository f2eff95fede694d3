/* SPDX-License-Identifier: Apache-2.0 */
/*
 * token: a bearer token from a file (read again when it changes) or from a GCE-style metadata service
 *
 * A file is looked at on each use: stat(2) is cheap, and a rotated secret counts at once. Its identity is device,
 * inode, size, mtime and ctime; a file written within the last two seconds is read again in any case, because a second
 * write in the same tick of the file system's clock would leave the same times. It is opened non-blocking and must be a
 * regular file: a FIFO put in its place must not stop the loop.
 *
 * The metadata service says how long its token lives. It is asked again at half of that time and then, while it fails,
 * with back-off; the old token serves until its last second. Traps: the life is counted from the moment of asking, on
 * the clock that goes on in suspend; token_refresh() asks anew but keeps the old token meanwhile, since a service that
 * is down must not take a good token away.
 *
 * No function here writes a token, or a part of one, into an error text.
 */
#include "token.h"
#include "event.h"
#include "http.h"
#include "jsonread.h"

#include <fcntl.h>
#include <sys/stat.h>

#define FILE_SPACE_MAX 1024 /* white space around a token in a file */
#define SETTLED_USEC (2 * USEC_PER_SEC)
#define ASK_TIMEOUT_USEC (5 * USEC_PER_SEC)
#define ASK_INTERVAL_MIN_USEC USEC_PER_SEC
#define RETRY_MIN_USEC USEC_PER_SEC
#define RETRY_MAX_USEC USEC_PER_MINUTE
#define LIFE_SECONDS_MAX INT64_C(604800)
#define HALF_LIFE_MIN_USEC (5 * USEC_PER_SEC)
#define ANSWER_BYTES_MAX (64 * 1024)
#define ERROR_MAX 255
#define REDACT_MIN 8

struct token {
        struct event *event;
        struct http *http;
        char *file, *url;
        char value[TOKEN_BYTES_MAX + 1]; /* "": none */
        char error[ERROR_MAX + 1];
        int result; /* of the last attempt, 0 or -errno */
        /* file */
        struct stat seen; /* what `value` was read from */
        bool settled;     /* `seen` tells every later change */
        /* url */
        struct http_request *request;
        struct event_source *timer;
        uint64_t asked_usec, expires_usec;
        uint32_t attempt;
        uint64_t seed;
};

/* ---- the text ----------------------------------------------------------------------------------------- */

static void token_forget(struct token *token) {
        explicit_bzero(token->value, sizeof(token->value));
        token->settled = false;
}

__attribute__((format(printf, 3, 4))) static int token_fail(struct token *token, int error, const char *format, ...) {
        va_list arguments;

        va_start(arguments, format);
        vsnprintf(token->error, sizeof(token->error), format, arguments);
        va_end(arguments);
        token->result = error;
        return error;
}

static bool byte_is_space(uint8_t byte) {
        return byte == ' ' || (byte >= '\t' && byte <= '\r');
}

/* token_take() - the trimmed text becomes the value. -EINVAL: it is no token. */
static int token_take(struct token *token, struct span text) {
        while (text.size > 0 && byte_is_space(text.data[0])) {
                text.data++;
                text.size--;
        }
        while (text.size > 0 && byte_is_space(text.data[text.size - 1]))
                text.size--;
        if (text.size == 0 || text.size > TOKEN_BYTES_MAX)
                return -EINVAL;
        for (size_t i = 0; i < text.size; i++)
                if (text.data[i] <= ' ' || text.data[i] > '~')
                        return -EINVAL;
        token_forget(token);
        memcpy(token->value, text.data, text.size);
        token->result = 0;
        token->error[0] = '\0';
        return 0;
}

/* ---- file --------------------------------------------------------------------------------------------- */

static bool time_is_same(struct timespec a, struct timespec b) {
        return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

static bool stat_is_same(const struct stat *a, const struct stat *b) {
        return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
               time_is_same(a->st_mtim, b->st_mtim) && time_is_same(a->st_ctim, b->st_ctim);
}

static uint64_t timespec_usec(struct timespec time) {
        return time.tv_sec < 0 ? 0 : (uint64_t)time.tv_sec * USEC_PER_SEC + (uint64_t)time.tv_nsec / 1000;
}

/* Old enough that a later write must get another time? The file system's clock ticks coarser than it counts. */
static bool stat_is_settled(const struct stat *seen, uint64_t now_usec) {
        uint64_t changed_usec = base_max_u64(timespec_usec(seen->st_mtim), timespec_usec(seen->st_ctim));
        return now_usec > base_usec_add(changed_usec, SETTLED_USEC);
}

/* read_all() - at most `size` bytes; returns how many, or -errno. */
static ssize_t read_all(int fd, uint8_t *bytes, size_t size) {
        size_t used = 0;

        while (used < size) {
                ssize_t count = read(fd, bytes + used, size - used);
                if (count < 0 && errno == EINTR)
                        continue;
                if (count < 0)
                        return -errno;
                if (count == 0)
                        break;
                used += (size_t)count;
        }
        return (ssize_t)used;
}

static int file_read(struct token *token) {
        uint8_t bytes[TOKEN_BYTES_MAX + FILE_SPACE_MAX + 1];
        struct stat seen;
        _cleanup_close_ int fd = open(token->file, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

        if (fd < 0)
                return token_fail(token, -errno, "%s: %s", token->file, strerrordesc_np(errno));
        if (fstat(fd, &seen) < 0)
                return token_fail(token, -errno, "%s: %s", token->file, strerrordesc_np(errno));
        if (!S_ISREG(seen.st_mode))
                return token_fail(token, -EINVAL, "%s: not a regular file", token->file);
        ssize_t size = read_all(fd, bytes, sizeof(bytes));
        if (size < 0)
                return token_fail(token, (int)size, "%s: %s", token->file, strerrordesc_np((int)-size));
        int r = (size_t)size == sizeof(bytes) ? -EINVAL
                                              : token_take(token, (struct span){.data = bytes, .size = (size_t)size});
        explicit_bzero(bytes, sizeof(bytes));
        if (r < 0)
                return token_fail(token, r, "%s: not a token of 1 to %d visible ASCII characters", token->file,
                                  TOKEN_BYTES_MAX);
        token->seen = seen;
        token->settled = stat_is_settled(&seen, event_real_usec(token->event));
        return 0;
}

static int file_get(struct token *token) {
        struct stat now;

        if (token->value[0] != '\0' && token->settled && stat(token->file, &now) == 0 &&
            stat_is_same(&now, &token->seen))
                return 0;
        int r = file_read(token);
        if (r < 0)
                token_forget(token);
        return r;
}

/* ---- metadata service --------------------------------------------------------------------------------- */

static int url_retry(struct token *token) {
        uint64_t delay_usec = base_backoff_usec(token->attempt, RETRY_MIN_USEC, RETRY_MAX_USEC, &token->seed);

        if (token->attempt < UINT32_MAX)
                token->attempt++;
        return event_timer_set(token->timer, base_usec_add(event_now_usec(token->event), delay_usec));
}

/* Parse {"access_token": "...", "expires_in": 3599, "token_type": "Bearer"}. */
static int url_take(struct token *token, struct span body) {
        _cleanup_(jsonread_free_pointer) struct json_object *object = NULL;
        struct span text;
        int64_t seconds;

        if (jsonread_object(body, &object) < 0 || jsonread_text(object, "access_token", &text) < 0 ||
            jsonread_int64(object, "expires_in", &seconds) < 0 || seconds <= 0 || token_take(token, text) < 0)
                return token_fail(token, -EINVAL, "%s: the answer has no usable access_token and expires_in",
                                  token->url);
        uint64_t life_usec = (uint64_t)(seconds < LIFE_SECONDS_MAX ? seconds : LIFE_SECONDS_MAX) * USEC_PER_SEC;
        token->expires_usec = base_usec_add(token->asked_usec, life_usec);
        token->attempt = 0;
        uint64_t next_usec = base_usec_add(token->asked_usec, base_max_u64(life_usec / 2, HALF_LIFE_MIN_USEC));
        return event_timer_set(token->timer, next_usec);
}

static int on_answer(const struct http_result *result, void *userdata) {
        struct token *token = userdata;
        int r;

        if (result->outcome != HTTP_ANSWERED)
                r = token_fail(token, -EAGAIN, "%s: %s", token->url, result->error);
        else if (result->status != 200)
                r = token_fail(token, -EAGAIN, "%s: HTTP status %d", token->url, result->status);
        else
                r = url_take(token, result->body);
        token->request = http_request_free(token->request);
        return r < 0 ? url_retry(token) : 0;
}

static int url_ask(struct token *token) {
        struct http_options options = {
                .url = token->url,
                .method = "GET",
                .header = "Metadata-Flavor: Google",
                .timeout_usec = ASK_TIMEOUT_USEC,
                .body_max = ANSWER_BYTES_MAX,
        };
        token->asked_usec = event_now_usec(token->event);
        return http_request_start(token->http, &options, on_answer, token, &token->request);
}

static int on_timer(void *userdata) {
        struct token *token = userdata;

        if (token->request)
                return 0;
        int r = url_ask(token);
        if (r == 0)
                return 0;
        token_fail(token, -EAGAIN, "%s: %s", token->url, strerrordesc_np(-r));
        return url_retry(token);
}

static int url_get(struct token *token) {
        if (token->value[0] != '\0' && event_now_usec(token->event) < token->expires_usec)
                return 0;
        token_forget(token);
        return token->result == -EINVAL ? -EINVAL : -EAGAIN;
}

/* ---- the object --------------------------------------------------------------------------------------- */

static int token_start(struct token *token, const struct token_options *options) {
        if (options->file) {
                token->file = strdup(options->file);
                return token->file ? 0 : -ENOMEM;
        }
        token->url = strdup(options->url);
        if (!token->url)
                return -ENOMEM;
        int r = event_add_timer(token->event, "token", on_timer, token, &token->timer);
        if (r < 0)
                return r;
        (void)token_fail(token, -EAGAIN, "%s: no answer yet", token->url);
        return url_ask(token);
}

int token_new(struct event *event, struct http *http, const struct token_options *options, struct token **ret) {
        if (!options->file == !options->url)
                return -EINVAL;
        _cleanup_(token_free_pointer) struct token *token = calloc(1, sizeof(*token));
        if (!token)
                return -ENOMEM;
        token->event = event;
        token->http = http;
        token->seed = base_random_u64();
        int r = token_start(token, options);
        if (r < 0)
                return r;
        *ret = TAKE(token);
        return 0;
}

struct token *token_free(struct token *token) {
        if (!token)
                return NULL;
        http_request_free(token->request);
        event_source_free(token->timer);
        explicit_bzero(token->value, sizeof(token->value));
        free(token->file);
        free(token->url);
        free(token);
        return NULL;
}

int token_get(struct token *token, const char **ret) {
        if (!token) {
                *ret = NULL;
                return 0;
        }
        int r = token->file ? file_get(token) : url_get(token);
        if (r < 0)
                return r;
        *ret = token->value;
        return 0;
}

const char *token_error(const struct token *token) {
        return token ? token->error : "";
}

void token_redact(const struct token *token, char *text) {
        size_t size = token ? strlen(token->value) : 0, least = base_min_u64(size, REDACT_MIN);

        while (size > 0 && *text) {
                size_t same = 0;

                while (same < size && text[same] == token->value[same])
                        same++;
                if (same >= least)
                        memset(text, '*', same);
                text += same >= least ? same : 1;
        }
}

void token_refresh(struct token *token) {
        if (!token)
                return;
        token->settled = false;
        if (token->url && !token->request)
                (void)event_timer_set(token->timer, base_usec_add(token->asked_usec, ASK_INTERVAL_MIN_USEC));
}
