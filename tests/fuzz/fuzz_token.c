/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bearer token: the metadata service's reply, and the token's file. http.c is replaced when the program is linked:
 * what the service says arrives as http.h gives it; its framing is fuzz_spark.c's.
 *
 * The first byte chooses: file or service; the HTTP status; the outcome. What comes out is a token of visible ASCII or
 * none, and no error text has a part of what might be a secret.
 */
#include "fuzz_loop.h"
#include "http.h"
#include "token.h"

#include <sys/mman.h>

#define URL "http://169.254.169.254/computeMetadata/v1/instance/service-accounts/default/token"
#define MARK "SECRET" /* in the dictionary and the corpus */

enum choice { CHOICE_FILE = 1, CHOICE_STATUS = 2, CHOICE_UNREACHABLE = 4 };

/* ---- in place of http.c -------------------------------------------------------------------------------------- */

static http_handler handler;
static void *handler_userdata;
static unsigned requests;

int http_request_start(struct http *http, const struct http_options *options, http_handler on_result, void *userdata,
                       struct http_request **ret) {
        (void)http;
        FUZZ_CHECK(strcmp(options->url, URL) == 0 && strcmp(options->method, "GET") == 0);
        FUZZ_CHECK(strcmp(options->header, "Metadata-Flavor: Google") == 0 && !options->bearer_token);
        handler = on_result;
        handler_userdata = userdata;
        requests++;
        *ret = (struct http_request *)&requests;
        return 0;
}

struct http_request *http_request_free(struct http_request *request) {
        if (request)
                requests--;
        return NULL;
}

/* ---- ------------------------------------------------------------------------------------------------------------- */

static void check(struct token *token, bool may_be_there) {
        const char *value = NULL, *again = NULL;
        int r = token_get(token, &value);

        FUZZ_CHECK(fuzz_is_clean(token_error(token)) && !strstr(token_error(token), MARK));
        if (r < 0) {
                FUZZ_CHECK(*token_error(token));
                return;
        }
        FUZZ_CHECK(may_be_there && value && *value && strlen(value) <= TOKEN_BYTES_MAX);
        for (const char *at = value; *at; at++)
                FUZZ_CHECK(*at > ' ' && *at <= '~');
        FUZZ_CHECK(*token_error(token) == '\0');
        FUZZ_CHECK(token_get(token, &again) == 0 && strcmp(value, again) == 0);
}

static void try_service(struct event *event, uint8_t choices, struct span body) {
        _cleanup_free_ char *text = fuzz_text(body); /* http.h: a NUL follows */
        const bool unreachable = choices & CHOICE_UNREACHABLE, refused = choices & CHOICE_STATUS;
        const struct http_result result = {
                .outcome = unreachable ? HTTP_UNREACHABLE : HTTP_ANSWERED,
                .status = unreachable ? 0
                          : refused   ? 403
                                      : 200,
                .body = { (const uint8_t *)text, unreachable ? 0 : body.size },
                .error = unreachable ? "Connection refused" : "",
        };
        struct token *token = NULL;

        FUZZ_CHECK(token_new(event, NULL, &(struct token_options){ .url = URL }, &token) == 0);
        FUZZ_CHECK(requests == 1);
        check(token, false);
        FUZZ_CHECK(handler(&result, handler_userdata) == 0);
        FUZZ_CHECK(requests == 0);
        check(token, !unreachable && !refused);
        token_refresh(token);
        check(token, !unreachable && !refused);
        token_free(token);
}

static void try_file(struct event *event, struct span bytes) {
        static char path[40];
        static int fd = -1;
        struct token *token = NULL;

        if (fd < 0) {
                fd = memfd_create("token", MFD_CLOEXEC);
                (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        }
        FUZZ_CHECK(fd >= 0 && ftruncate(fd, 0) == 0 && pwrite(fd, bytes.data, bytes.size, 0) == (ssize_t)bytes.size);
        FUZZ_CHECK(token_new(event, NULL, &(struct token_options){ .file = path }, &token) == 0);
        check(token, true);
        token_refresh(token);
        check(token, true);
        token_free(token);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct span input = { data, size };
        uint8_t choices = fuzz_take_u8(&input);

        if (choices & CHOICE_FILE)
                try_file(fuzz_loop()->event, input);
        else
                try_service(fuzz_loop()->event, choices, input);
        return 0;
}
