/* SPDX-License-Identifier: Apache-2.0 */
/* base: identifiers, text and bytes from hostile hands; arithmetic that must not wrap. */
#include "base.h"

#include <fcntl.h>
#include <setjmp.h>
#include <cmocka.h>

static uint64_t seed_from_environment(void) {
        uint64_t seed = base_random_u64();
        const char *text = getenv("SEED");
        if (text)
                assert_int_equal(base_parse_u64(text, 0, UINT64_MAX, &seed), 0);
        print_message("SEED=%" PRIu64 "\n", seed);
        return seed;
}

static void test_usec(void **state) {
        (void)state;
        assert_int_equal(base_usec_add(1, 2), 3);
        assert_true(base_usec_add(USEC_NEVER, 1) == USEC_NEVER);
        assert_true(base_usec_add(USEC_NEVER - 1, 5) == USEC_NEVER);
        assert_int_equal(base_usec_sub(3, 5), 0);
        assert_int_equal(base_usec_sub(5, 3), 2);
        assert_true(base_usec_sub(USEC_NEVER, 5) == USEC_NEVER);
}

static void test_ids(void **state) {
        static const struct {
                const char *text;
                size_t size;
                bool id, driver_id;
        } cases[] = {
                {"", 0, false, false},
                {"a", 1, true, true},
                {".", 1, true, false},
                {"..", 2, true, false},
                {"...", 3, true, true},
                {".a", 2, true, true},
                {"driver-20261124140203-0001", 26, true, true},
                {"a b", 3, false, false},
                {"a\0b", 3, false, false},
                {"a\n", 2, false, false},
                {"a\x7f", 2, false, false},
                {"\xc3\xa9", 2, false, false},
                {"a/b", 3, true, false},
                {"a%2e", 4, true, false},
                {"~!", 2, true, false},
        };
        char longest[DRIVER_ID_MAX + 1];

        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                assert_int_equal(base_id_is_valid(cases[i].text, cases[i].size, OPERATION_ID_MAX), cases[i].id);
                assert_int_equal(base_driver_id_is_valid(cases[i].text, cases[i].size), cases[i].driver_id);
        }
        memset(longest, 'x', sizeof(longest));
        assert_true(base_id_is_valid(longest, 50, 50));
        assert_false(base_id_is_valid(longest, 51, 50));
        assert_true(base_driver_id_is_valid(longest, DRIVER_ID_MAX));
        assert_false(base_driver_id_is_valid(longest, DRIVER_ID_MAX + 1));
        assert_false(base_id_is_valid(NULL, 1, 50));
        assert_false(base_driver_id_is_valid(NULL, 0));
}

static void test_copy(void **state) {
        char target[4];

        (void)state;
        assert_true(base_text_copy(target, sizeof(target), "abc"));
        assert_string_equal(target, "abc");
        assert_false(base_text_copy(target, sizeof(target), "abcd"));
        assert_string_equal(target, "abc");
        assert_true(base_text_copy(target, sizeof(target), NULL));
        assert_string_equal(target, "");
        assert_false(base_text_copy(target, 1, "a"));
        assert_string_equal(target, "");
        assert_false(base_text_copy(NULL, 0, "a"));
}

static void test_escape(void **state) {
        static const struct {
                const char *source;
                size_t size;
                size_t room;
                const char *expected;
        } cases[] = {
                {"plain", 5, 64, "plain"},
                {"", 0, 64, ""},
                {"a\nb\0c\x7f", 6, 64, "a\\x0Ab\\x00c\\x7F"},
                {"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 9, 64, "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"},
                {"\xc2\x9b", 2, 64, "\\xC2\\x9B"},          /* C1: a terminal takes it for ESC [ */
                {"a\xe2\x80\xaez", 5, 64, "a\\xE2\\x80\\xAEz"}, /* U+202E: what follows is shown backwards */
                {"\xe2\x80\xa8\xe2\x81\xa9", 6, 64, "\\xE2\\x80\\xA8\\xE2\\x81\\xA9"},
                {"\xe2\x80\xa7\xe2\x81\xaa", 6, 64, "\xe2\x80\xa7\xe2\x81\xaa"}, /* their neighbours */
                {"\xc0\xaf", 2, 64, "\\xC0\\xAF"},          /* overlong */
                {"\xe0\x80\xaf", 3, 64, "\\xE0\\x80\\xAF"}, /* overlong */
                {"\xed\xa0\x80", 3, 64, "\\xED\\xA0\\x80"}, /* surrogate */
                {"\xf4\x90\x80\x80", 4, 64, "\\xF4\\x90\\x80\\x80"},
                {"\xf0\x80\x80\x80", 4, 64, "\\xF0\\x80\\x80\\x80"},
                {"\xff", 1, 64, "\\xFF"},
                {"\xe2\x82", 2, 64, "\\xE2\\x82"}, /* ends too early */
                {"a\xe2\x82\xac", 4, 4, "a"},      /* cut at a whole character */
                {"a\xe2\x82\xac", 4, 5, "a\xe2\x82\xac"},
                {"a\nb", 3, 5, "a"}, /* and at a whole escape */
                {"a\nb", 3, 6, "a\\x0A"},
                {"abc", 3, 1, ""},
        };
        char target[64];

        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                base_text_escape(target, cases[i].room, cases[i].source, cases[i].size);
                assert_string_equal(target, cases[i].expected);
        }
        base_text_escape(NULL, 0, "x", 1);
}

/* Whatever the bytes are: the result is UTF-8, has no control byte and ends within its room. */
static void test_escape_random(void **state) {
        uint64_t seed = seed_from_environment();
        uint8_t bytes[48];
        char target[96];

        (void)state;
        for (int round = 0; round < 20000; round++) {
                size_t size = base_random_next(&seed) % (sizeof(bytes) + 1);
                size_t room = 1 + base_random_next(&seed) % sizeof(target);
                for (size_t i = 0; i < size; i++)
                        bytes[i] = (uint8_t)(base_random_next(&seed) | (base_random_next(&seed) % 3 ? 0x80 : 0));
                memset(target, 'Z', sizeof(target));
                base_text_escape(target, room, bytes, size);
                size_t length = strnlen(target, room);
                assert_true(length < room);
                assert_true(base_text_is_utf8(target, length));
                for (size_t i = 0; i < length; i++)
                        assert_true((uint8_t)target[i] >= 0x20 && target[i] != 0x7f);
        }
}

static void test_parse(void **state) {
        static const struct {
                const char *text;
                int result;
                uint64_t value;
        } cases[] = {
                {"5", 0, 5},
                {"10", 0, 10},
                {"007", 0, 7},
                {"4", -ERANGE, 0},
                {"11", -ERANGE, 0},
                {"", -EINVAL, 0},
                {"-5", -EINVAL, 0},
                {"+5", -EINVAL, 0},
                {" 5", -EINVAL, 0},
                {"5 ", -EINVAL, 0},
                {"0x5", -EINVAL, 0},
                {"5.0", -EINVAL, 0},
                {"18446744073709551616", -ERANGE, 0},
                {"99999999999999999999999", -ERANGE, 0},
                {"18446744073709551621", -ERANGE, 0}, /* wraps to 5 */
        };
        uint64_t value;

        (void)state;
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                value = 77;
                assert_int_equal(base_parse_u64(cases[i].text, 5, 10, &value), cases[i].result);
                assert_int_equal(value, cases[i].result == 0 ? cases[i].value : 77);
        }
        assert_int_equal(base_parse_u64("18446744073709551615", 0, UINT64_MAX, &value), 0);
        assert_true(value == UINT64_MAX);
        assert_int_equal(base_parse_u64(NULL, 0, 1, &value), -EINVAL);
}

static void test_buffer(void **state) {
        struct buffer buffer = BUFFER_INIT(10);

        (void)state;
        assert_string_equal(buffer_text(&buffer), "");
        assert_int_equal(buffer_append_text(&buffer, "hello"), 0);
        assert_int_equal(buffer_append_format(&buffer, "%d", 12345), 0);
        assert_int_equal(buffer.size, 10);
        assert_string_equal(buffer_text(&buffer), "hello12345"); /* full, and still a C string */
        assert_int_equal(buffer_append(&buffer, "x", 1), -ENOBUFS);
        assert_int_equal(buffer_append_format(&buffer, "%s", "x"), -ENOBUFS);
        assert_int_equal(buffer_append(&buffer, "", SIZE_MAX), -ENOBUFS);
        assert_int_equal(buffer_append(&buffer, NULL, 0), 0);
        assert_string_equal(buffer_text(&buffer), "hello12345");
        buffer_consume(&buffer, 5);
        assert_string_equal(buffer_text(&buffer), "12345");
        buffer_consume(&buffer, 0);
        buffer_consume(&buffer, 1000);
        assert_int_equal(buffer.size, 0);
        buffer_deinit(&buffer);
        buffer_deinit(&buffer);
        assert_int_equal(buffer.max, 10);
        buffer_deinit(NULL);
        struct buffer none = BUFFER_INIT(0);
        assert_int_equal(buffer_append(&none, "x", 1), -ENOBUFS);
        assert_string_equal(buffer_text(&none), "");
        buffer_deinit(&none);
}

static void test_buffer_grows(void **state) {
        struct buffer buffer = BUFFER_INIT(100000);

        (void)state;
        for (unsigned i = 0; i < 25000; i++)
                assert_int_equal(buffer_append_format(&buffer, "%04x", i), 0);
        assert_int_equal(buffer.size, 100000);
        assert_true(buffer.allocated <= buffer.max + 1);
        assert_memory_equal(buffer.data + 4 * 0x61a7, "61a7", 4);
        buffer_deinit(&buffer);
}

static void test_backoff(void **state) {
        uint64_t seed = seed_from_environment();

        (void)state;
        for (uint32_t attempt = 0; attempt < 80; attempt++) {
                uint64_t wanted = attempt < 8 ? UINT64_C(200) << attempt : 30000;
                uint64_t value = base_backoff_usec(attempt, 200, 30000, &seed);
                assert_in_range(value, wanted / 2, wanted);
        }
        assert_in_range(base_backoff_usec(UINT32_MAX, 1, USEC_NEVER, &seed), USEC_NEVER / 2, USEC_NEVER);
        assert_in_range(base_backoff_usec(0, 500, 100, &seed), 50, 100); /* min above max: max */
        assert_int_equal(base_backoff_usec(9, 0, 0, &seed), 0);
        uint64_t one = 42, two = 42;
        assert_int_equal(base_backoff_usec(3, 200, 30000, &one), base_backoff_usec(3, 200, 30000, &two));
        assert_true(one == two);
}

static void test_cleanup(void **state) {
        int seen;

        (void)state;
        {
                _cleanup_close_ int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
                assert_true(fd >= 0);
                seen = fd;
                errno = E2BIG;
        }
        assert_int_equal(errno, E2BIG);
        assert_int_equal(fcntl(seen, F_GETFD), -1);
        _cleanup_free_ char *text = strdup("x");
        char *taken = TAKE(text);
        assert_null(text);
        free(taken);
        _cleanup_close_ int fd = 3;
        assert_int_equal(TAKE_FD(fd), 3);
        assert_int_equal(fd, -1);
        assert_string_equal(base_text_starts_with("-Dkey=1", "-Dkey="), "1");
        assert_null(base_text_starts_with("-D", "-Dkey="));
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_usec),    cmocka_unit_test(test_ids),           cmocka_unit_test(test_copy),
                cmocka_unit_test(test_escape),  cmocka_unit_test(test_escape_random), cmocka_unit_test(test_parse),
                cmocka_unit_test(test_buffer),  cmocka_unit_test(test_buffer_grows),  cmocka_unit_test(test_backoff),
                cmocka_unit_test(test_cleanup),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
