/* SPDX-License-Identifier: Apache-2.0 */
/* The words and numbers of gRPC: pure functions. */
#include "grpc_internal.h"

#include <nghttp2/nghttp2.h>
#include <setjmp.h>
#include <cmocka.h>

static struct span text_span(const char *text) {
        return (struct span){(const uint8_t *)text, strlen(text)};
}

static void test_names(void **state) {
        (void)state;
        assert_string_equal(grpc_status_to_text(GRPC_OK), "OK");
        assert_string_equal(grpc_status_to_text(GRPC_CANCELLED), "CANCELLED");
        assert_string_equal(grpc_status_to_text(GRPC_UNAVAILABLE), "UNAVAILABLE");
        assert_string_equal(grpc_status_to_text(GRPC_UNAUTHENTICATED), "UNAUTHENTICATED");
        for (unsigned i = 0; i <= GRPC_UNAUTHENTICATED; i++)
                for (unsigned j = 0; j < i; j++)
                        assert_string_not_equal(grpc_status_to_text((enum grpc_status)i),
                                                grpc_status_to_text((enum grpc_status)j));
}

static void test_http(void **state) {
        static const unsigned rows[][2] = {
                {400, GRPC_INTERNAL},      {401, GRPC_UNAUTHENTICATED}, {403, GRPC_PERMISSION_DENIED},
                {404, GRPC_UNIMPLEMENTED}, {429, GRPC_UNAVAILABLE},     {502, GRPC_UNAVAILABLE},
                {503, GRPC_UNAVAILABLE},   {504, GRPC_UNAVAILABLE},     {500, GRPC_UNKNOWN},
                {200, GRPC_UNKNOWN},       {302, GRPC_UNKNOWN},         {0, GRPC_UNKNOWN},
                {UINT_MAX, GRPC_UNKNOWN},
        };
        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
                assert_int_equal(grpc_status_from_http(rows[i][0]), rows[i][1]);
}

static void test_h2(void **state) {
        static const unsigned rows[][2] = {
                {NGHTTP2_NO_ERROR, GRPC_INTERNAL},
                {NGHTTP2_PROTOCOL_ERROR, GRPC_INTERNAL},
                {NGHTTP2_INTERNAL_ERROR, GRPC_INTERNAL},
                {NGHTTP2_FLOW_CONTROL_ERROR, GRPC_INTERNAL},
                {NGHTTP2_SETTINGS_TIMEOUT, GRPC_INTERNAL},
                {NGHTTP2_STREAM_CLOSED, GRPC_UNKNOWN},
                {NGHTTP2_FRAME_SIZE_ERROR, GRPC_INTERNAL},
                {NGHTTP2_REFUSED_STREAM, GRPC_UNAVAILABLE},
                {NGHTTP2_CANCEL, GRPC_CANCELLED},
                {NGHTTP2_COMPRESSION_ERROR, GRPC_INTERNAL},
                {NGHTTP2_CONNECT_ERROR, GRPC_INTERNAL},
                {NGHTTP2_ENHANCE_YOUR_CALM, GRPC_RESOURCE_EXHAUSTED},
                {NGHTTP2_INADEQUATE_SECURITY, GRPC_PERMISSION_DENIED},
                {NGHTTP2_HTTP_1_1_REQUIRED, GRPC_UNKNOWN},
                {UINT32_MAX, GRPC_UNKNOWN},
        };
        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
                assert_int_equal(grpc_status_from_h2(rows[i][0]), rows[i][1]);
}

static void test_status_parse(void **state) {
        static const struct {
                const char *text;
                unsigned value;
        } rows[] = {{"0", 0},          {"16", 16},        {"99", 99},         {"9999", 9999},
                    {"", UINT_MAX},    {"-1", UINT_MAX},  {"1 ", UINT_MAX},   {" 1", UINT_MAX},
                    {"0x1", UINT_MAX}, {"1.0", UINT_MAX}, {"12345", UINT_MAX}};
        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
                assert_int_equal(grpc_status_parse(text_span(rows[i].text)), rows[i].value);
        assert_int_equal(grpc_status_parse((struct span){(const uint8_t *)"1\0", 2}), UINT_MAX);
        assert_int_equal(grpc_status_parse((struct span){NULL, 0}), UINT_MAX);
}

static void test_pushback(void **state) {
        static const struct {
                const char *text;
                int64_t value;
        } rows[] = {{"0", 0},   {"1500", 1500}, {"9999999999", 9999999999},  {"-1", -1},
                    {"", -1},   {"soon", -1},   {"99999999999", -1},         {"1.5", -1},
                    {"+5", -1}, {"0x10", -1},   {"-9223372036854775808", -1}};
        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
                assert_int_equal(grpc_pushback_parse(text_span(rows[i].text)), rows[i].value);
}

static void test_message(void **state) {
        static const char *const rows[][2] = {
                {"", ""},
                {"plain", "plain"},
                {"%41%62", "Ab"},
                {"a%20b", "a b"},
                {"%", "%"},
                {"%4", "%4"},
                {"%4g", "%4g"},
                {"%%41", "%A"},
                {"%zz", "%zz"},
                {"100%", "100%"},
                {"%E2%82%AC", "\xe2\x82\xac"},
                {"%e2%82%ac", "\xe2\x82\xac"},
                {"%2541", "%41"},
        };
        uint8_t bytes[16];
        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                size_t size = grpc_message_decode(text_span(rows[i][0]), bytes, sizeof(bytes));
                assert_int_equal(size, strlen(rows[i][1]));
                assert_memory_equal(bytes, rows[i][1], size);
        }
        assert_int_equal(grpc_message_decode(text_span("%41%42%43%44"), bytes, 3), 3);
        assert_memory_equal(bytes, "ABC", 3);
        assert_int_equal(grpc_message_decode(text_span("abc"), bytes, 0), 0);
}

static void test_timeout(void **state) {
        static const struct {
                uint64_t usec;
                const char *text;
        } rows[] = {{0, "1m"},
                    {1, "1m"},
                    {1000, "1m"},
                    {1001, "2m"},
                    {2500 * USEC_PER_MSEC, "2500m"},
                    {99999998 * USEC_PER_MSEC, "99999998m"},
                    {99999999 * USEC_PER_MSEC, "100000S"},
                    {99999999 * USEC_PER_SEC, "1666667M"},
                    {USEC_NEVER - 1, "99999999H"}};
        char text[GRPC_TIMEOUT_TEXT_MAX];
        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                grpc_timeout_format(rows[i].usec, text);
                if (i + 1 < ARRAY_SIZE(rows))
                        assert_string_equal(text, rows[i].text);
                assert_in_range(strlen(text), 2, 9);
        }
}

static void test_content_type(void **state) {
        (void)state;
        assert_true(grpc_content_type_is_grpc("application/grpc"));
        assert_true(grpc_content_type_is_grpc("application/grpc+proto"));
        assert_true(grpc_content_type_is_grpc("application/grpc;x=y"));
        assert_false(grpc_content_type_is_grpc("application/grpc-web"));
        assert_false(grpc_content_type_is_grpc("application/grpcx"));
        assert_false(grpc_content_type_is_grpc("text/html"));
        assert_false(grpc_content_type_is_grpc(""));
}

static void test_endpoint(void **state) {
        static const struct {
                const char *text, *host, *authority;
                unsigned port;
                bool tls;
        } good[] = {
                {"https://cp.example:443", "cp.example", "cp.example:443", 443, true},
                {"https://cp.example", "cp.example", "cp.example:443", 443, true},
                {"https://cp.example/", "cp.example", "cp.example:443", 443, true},
                {"http://cp.example", "cp.example", "cp.example:80", 80, false},
                {"http://127.0.0.1:8080/", "127.0.0.1", "127.0.0.1:8080", 8080, false},
                {"https://[::1]:65535", "::1", "[::1]:65535", 65535, true},
                {"https://[2001:db8::7]", "2001:db8::7", "[2001:db8::7]:443", 443, true},
        };
        static const char *const bad[] = {
                "",
                "cp.example:443",
                "ftp://cp.example:1",
                "https://",
                "https://:443",
                "https://a:0",
                "https://a:65536",
                "https://a:",
                "https://a:x",
                "https://a:1/path",
                "https://a/path",
                "https://user@a:1",
                "https://a:1?q",
                "https://[::1:443",
                "https://[]:443",
                "https://a b:1",
                "https://a:443:443",
                "https://a\n:443",
                "https://[::1]x",
                "https://a:4434343434343",
                "HTTPS://a:1",
                "https://[a_b]:1",
                "https:///",
        };
        struct grpc_endpoint endpoint;
        char text[400];
        (void)state;

        for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
                assert_int_equal(grpc_endpoint_parse(good[i].text, &endpoint), 0);
                assert_string_equal(endpoint.host, good[i].host);
                assert_string_equal(endpoint.authority, good[i].authority);
                assert_int_equal(endpoint.port, good[i].port);
                assert_int_equal(endpoint.tls, good[i].tls);
        }
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
                if (grpc_endpoint_parse(bad[i], &endpoint) != -EINVAL)
                        fail_msg("taken: %s", bad[i]);
        snprintf(text, sizeof(text), "https://%0255d:1", 0);
        assert_int_equal(grpc_endpoint_parse(text, &endpoint), 0);
        snprintf(text, sizeof(text), "https://%0256d:1", 0);
        assert_int_equal(grpc_endpoint_parse(text, &endpoint), -EINVAL);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_names),    cmocka_unit_test(test_http),
                cmocka_unit_test(test_h2),       cmocka_unit_test(test_status_parse),
                cmocka_unit_test(test_pushback), cmocka_unit_test(test_message),
                cmocka_unit_test(test_timeout),  cmocka_unit_test(test_content_type),
                cmocka_unit_test(test_endpoint),
        };

        return cmocka_run_group_tests_name("grpc_status", tests, NULL, NULL);
}
