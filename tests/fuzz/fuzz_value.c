/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Single values: each option's text, and the small readers of peers' words (endpoint, gRPC status, message, push-back).
 * The first byte chooses the reader, the rest is the text.
 */
#include "fuzz.h"
#include "config_internal.h"
#include "grpc_internal.h"

static void check_option(const struct config_option *option, const char *text) {
        _cleanup_(buffer_deinit) struct buffer printed = BUFFER_INIT(1024 * 1024), again = BUFFER_INIT(1024 * 1024);
        struct config config = { 0 }, same = { 0 };
        char error[CONFIG_ERROR_MAX] = "";

        if (config_value_parse(option, text, &config, error) < 0)
                FUZZ_CHECK_TEXT(error);
        else {
                FUZZ_CHECK(error[0] == '\0');
                FUZZ_CHECK(config_value_print(option, &config, &printed) == 0);
                if (config_value_is_set(option, &config) && option->kind != CONFIG_LIST) {
                        FUZZ_CHECK(buffer_text(&printed));
                        FUZZ_CHECK(config_value_parse(option, buffer_text(&printed), &same, error) == 0);
                        FUZZ_CHECK(config_value_print(option, &same, &again) == 0);
                        FUZZ_CHECK(printed.size == again.size && memcmp(printed.data, again.data, again.size) == 0);
                }
        }
        config_value_free(option, &config);
        config_value_free(option, &same);
}

/* An endpoint that the configuration takes must be one that the channel takes. */
static void check_endpoint(const char *text) {
        struct grpc_endpoint endpoint;
        int r = grpc_endpoint_parse(text, &endpoint);

        FUZZ_CHECK(r == 0 || !config_rule_url.check(text));
        if (r < 0)
                return;
        FUZZ_CHECK_TEXT(endpoint.host);
        FUZZ_CHECK_TEXT(endpoint.authority);
        FUZZ_CHECK(endpoint.port > 0 && endpoint.host[0]);
        if (config_rule_url.check(text) && !config_url_is_cleartext_beyond_loopback(text))
                FUZZ_CHECK(endpoint.tls || config_url_is_loopback(text));
}

static void check_status_words(struct span text) {
        uint8_t message[GRPC_MESSAGE_MAX];
        size_t size = grpc_message_decode(text, message, sizeof(message));
        int64_t pushback = grpc_pushback_parse(text);

        FUZZ_CHECK(size <= sizeof(message) && size <= text.size);
        FUZZ_CHECK(pushback >= -1);
        (void)grpc_status_parse(text);
        (void)grpc_message_decode(text, message, 3);
        _cleanup_free_ char *type = fuzz_text(text);
        (void)grpc_content_type_is_grpc(type);
}

static void check_escape(struct span text) {
        char whole[1024], small[8];

        base_text_escape(whole, sizeof(whole), text.data, text.size);
        base_text_escape(small, sizeof(small), text.data, text.size);
        FUZZ_CHECK_TEXT(whole);
        FUZZ_CHECK_TEXT(small);
        FUZZ_CHECK(base_text_starts_with(whole, small));
}

static void check_timeout(struct span input) {
        char text[GRPC_TIMEOUT_TEXT_MAX];
        uint64_t usec = 0;

        for (size_t i = 0; i < sizeof(usec); i++)
                usec = usec << 8 | fuzz_take_u8(&input);
        grpc_timeout_format(usec, text);
        FUZZ_CHECK_TEXT(text);
        size_t digits = strspn(text, "0123456789");
        FUZZ_CHECK(digits >= 1 && digits <= 8 && strlen(text) == digits + 1 && strchr("HMSmun", text[digits]));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct span input = { data, size };
        size_t choice = fuzz_take_u8(&input);
        _cleanup_free_ char *text = fuzz_text(input);
        _cleanup_free_ uint8_t *bytes = fuzz_bytes(input);

        if (choice < config_option_count)
                check_option(&config_options[choice], text);
        check_endpoint(text);
        check_status_words((struct span){ bytes, input.size });
        check_escape((struct span){ bytes, input.size });
        check_timeout(input);
        return 0;
}
