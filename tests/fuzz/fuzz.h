/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * fuzz: what the fuzz targets share
 *
 * A target is one function over bytes that a hostile peer, process or file could have given. It checks what the
 * product promises of any such bytes (bounds, well-formed text, round trips), for a crash is only the loudest way to
 * be wrong. The same bytes must take the same path: no clock, no random choice, no state from one input to the next.
 */
#include "base.h"

/* libFuzzer's entry point; replay.c calls it, too. `data` is a heap block of just `size` bytes. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* FUZZ_CHECK() - what the product promises; ends the program in any build. */
#define FUZZ_CHECK(condition)                                                                                          \
        do {                                                                                                           \
                if (!(condition)) {                                                                                    \
                        (void)fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #condition);                  \
                        abort();                                                                                       \
                }                                                                                                      \
        } while (0)

/* fuzz_is_clean() - UTF-8 without control characters (C0, DEL, C1). A second statement of what base_text_escape()
 * does, and so not made of it. */
static inline bool fuzz_is_clean(const char *text) {
        if (!base_text_is_utf8(text, strlen(text)))
                return false;
        for (const uint8_t *at = (const uint8_t *)text; *at; at++)
                if (*at < 0x20 || *at == 0x7f || (*at == 0xc2 && at[1] < 0xa0))
                        return false;
        return true;
}

/* FUZZ_CHECK_TEXT() - text for people or the wire: terminated within its array, and clean. */
#define FUZZ_CHECK_TEXT(array)                                                                                         \
        do {                                                                                                           \
                FUZZ_CHECK(strnlen(array, sizeof(array)) < sizeof(array));                                             \
                FUZZ_CHECK(fuzz_is_clean(array));                                                                      \
        } while (0)

/* ---- the input as a sequence of small choices; what is not there is 0 ------------------------------------- */

static inline uint8_t fuzz_take_u8(struct span *input) {
        if (input->size == 0)
                return 0;
        uint8_t value = *input->data;
        input->data++;
        input->size--;
        return value;
}

static inline uint16_t fuzz_take_u16(struct span *input) {
        uint16_t high = fuzz_take_u8(input);
        return (uint16_t)(high << 8 | fuzz_take_u8(input));
}

/* fuzz_take() - the next `size` bytes, or as many as there are. */
static inline struct span fuzz_take(struct span *input, size_t size) {
        struct span taken = { input->data, size < input->size ? size : input->size };
        input->data += taken.size;
        input->size -= taken.size;
        return taken;
}

/* fuzz_text() - bytes as a C string on the heap, so that a sanitizer sees who reads past it; it ends at the first NUL.
 */
static inline char *fuzz_text(struct span bytes) {
        char *text = malloc(bytes.size + 1);
        FUZZ_CHECK(text);
        if (bytes.size > 0)
                memcpy(text, bytes.data, bytes.size);
        text[bytes.size] = '\0';
        return text;
}

/* fuzz_bytes() - a copy in a heap block of its own size. */
static inline uint8_t *fuzz_bytes(struct span bytes) {
        uint8_t *copy = malloc(bytes.size > 0 ? bytes.size : 1);
        FUZZ_CHECK(copy);
        if (bytes.size > 0)
                memcpy(copy, bytes.data, bytes.size);
        return copy;
}
