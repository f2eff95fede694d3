/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base: the words everyone uses
 *
 * Plain functions of their arguments; the one door to the outside is getrandom(2), which needs no descriptor.
 * Trap: text from peers is judged byte by byte and never through <ctype.h> or the locale, so the answer is the
 * same on every machine.
 */
#include "base.h"

#include <sys/random.h>

/* ---- identifiers ---------------------------------------------------------------------------------- */

bool base_id_is_valid(const char *text, size_t size, size_t max) {
        if (!text || size == 0 || size > max)
                return false;
        for (size_t i = 0; i < size; i++)
                if (text[i] <= ' ' || text[i] > '~')
                        return false;
        return true;
}

static bool byte_is_driver_id(char byte) {
        return (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') || (byte >= '0' && byte <= '9') ||
               byte == '.' || byte == '_' || byte == '-';
}

bool base_driver_id_is_valid(const char *text, size_t size) {
        if (!text || size == 0 || size > DRIVER_ID_MAX)
                return false;
        for (size_t i = 0; i < size; i++)
                if (!byte_is_driver_id(text[i]))
                        return false;
        bool dots = text[0] == '.' && (size == 1 || (size == 2 && text[1] == '.'));
        return !dots;
}

/* ---- bounded text --------------------------------------------------------------------------------- */

bool base_text_copy(char *target, size_t size, const char *source) {
        if (size == 0)
                return false;
        if (!source)
                source = "";
        size_t length = strnlen(source, size);
        bool fits = length < size;
        if (!fits)
                length = size - 1;
        memcpy(target, source, length);
        target[length] = '\0';
        return fits;
}

/* utf8_length() - bytes of the well-formed UTF-8 character at `bytes`, 0 when there is none (Unicode 15,
 * table 3-7: no overlong forms, no surrogates, nothing above U+10FFFF). */
static size_t utf8_length(const uint8_t *bytes, size_t size) {
        uint8_t first = bytes[0], low = 0x80, high = 0xbf;
        size_t length;

        if (first < 0x80)
                return 1;
        if (first >= 0xc2 && first <= 0xdf)
                length = 2;
        else if (first >= 0xe0 && first <= 0xef)
                length = 3;
        else if (first >= 0xf0 && first <= 0xf4)
                length = 4;
        else
                return 0;
        if (length > size)
                return 0;
        if (first == 0xe0)
                low = 0xa0; /* overlong below */
        else if (first == 0xed)
                high = 0x9f; /* surrogates above */
        else if (first == 0xf0)
                low = 0x90; /* overlong below */
        else if (first == 0xf4)
                high = 0x8f; /* past U+10FFFF above */
        if (bytes[1] < low || bytes[1] > high)
                return 0;
        for (size_t i = 2; i < length; i++)
                if (bytes[i] < 0x80 || bytes[i] > 0xbf)
                        return 0;
        return length;
}

/* utf8_is_control() - C0, DEL and C1 (U+0080 to U+009F), which terminals obey; U+2028 to U+202E and U+2066 to U+2069,
 * which end a line in some viewers, or turn the order of what is shown. */
static bool utf8_is_control(const uint8_t *bytes, size_t length) {
        if (length == 1)
                return bytes[0] < 0x20 || bytes[0] == 0x7f;
        if (length == 2)
                return bytes[0] == 0xc2 && bytes[1] < 0xa0;
        if (length != 3 || bytes[0] != 0xe2)
                return false;
        return (bytes[1] == 0x80 && bytes[2] >= 0xa8 && bytes[2] <= 0xae) ||
               (bytes[1] == 0x81 && bytes[2] >= 0xa6 && bytes[2] <= 0xa9);
}

void base_text_escape(char *target, size_t target_size, const void *source, size_t size) {
        static const char hex[] = "0123456789ABCDEF";
        const uint8_t *bytes = source;
        size_t used = 0;

        if (target_size == 0)
                return;
        for (size_t i = 0; i < size;) {
                size_t length = utf8_length(bytes + i, size - i);
                size_t room = target_size - 1 - used;
                if (length > 0 && !utf8_is_control(bytes + i, length)) {
                        if (length > room)
                                break;
                        memcpy(target + used, bytes + i, length);
                        used += length;
                        i += length;
                        continue;
                }
                if (room < 4)
                        break;
                target[used++] = '\\';
                target[used++] = 'x';
                target[used++] = hex[bytes[i] >> 4];
                target[used++] = hex[bytes[i] & 15];
                i++;
        }
        target[used] = '\0';
}

bool base_text_is_utf8(const void *bytes, size_t size) {
        const uint8_t *at = bytes;
        for (size_t i = 0; i < size;) {
                size_t length = utf8_length(at + i, size - i);
                if (length == 0)
                        return false;
                i += length;
        }
        return true;
}

const char *base_text_starts_with(const char *text, const char *prefix) {
        size_t length = strlen(prefix);
        return strncmp(text, prefix, length) == 0 ? text + length : NULL;
}

int base_parse_u64(const char *text, uint64_t min, uint64_t max, uint64_t *ret) {
        uint64_t value = 0;
        bool overflow = false;

        if (!text || !*text)
                return -EINVAL;
        for (; *text; text++) {
                if (*text < '0' || *text > '9')
                        return -EINVAL;
                overflow |= __builtin_mul_overflow(value, UINT64_C(10), &value);
                overflow |= __builtin_add_overflow(value, (uint64_t)(*text - '0'), &value);
        }
        if (overflow || value < min || value > max)
                return -ERANGE;
        *ret = value;
        return 0;
}

/* ---- bounded bytes -------------------------------------------------------------------------------- */

/* buffer_reserve() - room for `size` further bytes and one NUL, which buffer_text() may put behind them. Doubling
 * keeps the cost of many small appends linear. */
static int buffer_reserve(struct buffer *buffer, size_t size) {
        if (size > buffer->max || buffer->size > buffer->max - size)
                return -ENOBUFS;
        size_t wanted = buffer->size + size;
        if (wanted == SIZE_MAX)
                return -ENOBUFS;
        wanted++;
        if (wanted <= buffer->allocated)
                return 0;
        size_t doubled = buffer->allocated > SIZE_MAX / 2 ? SIZE_MAX : buffer->allocated * 2;
        size_t allocate = doubled > wanted ? doubled : wanted;
        if (allocate < 64)
                allocate = 64;
        if (allocate - 1 > buffer->max)
                allocate = buffer->max + 1;
        uint8_t *data = realloc(buffer->data, allocate);
        if (!data)
                return -ENOMEM;
        buffer->data = data;
        buffer->allocated = allocate;
        return 0;
}

int buffer_append(struct buffer *buffer, const void *bytes, size_t size) {
        if (size == 0)
                return 0;
        int r = buffer_reserve(buffer, size);
        if (r < 0)
                return r;
        memcpy(buffer->data + buffer->size, bytes, size);
        buffer->size += size;
        return 0;
}

int buffer_append_text(struct buffer *buffer, const char *text) {
        return buffer_append(buffer, text, strlen(text));
}

int buffer_append_format(struct buffer *buffer, const char *format, ...) {
        va_list arguments;

        va_start(arguments, format);
        int length = vsnprintf(NULL, 0, format, arguments);
        va_end(arguments);
        if (length < 0)
                return -EINVAL;
        int r = buffer_reserve(buffer, (size_t)length);
        if (r < 0)
                return r;
        va_start(arguments, format);
        (void)vsnprintf((char *)buffer->data + buffer->size, (size_t)length + 1, format, arguments);
        va_end(arguments);
        buffer->size += (size_t)length;
        return 0;
}

void buffer_consume(struct buffer *buffer, size_t size) {
        if (size >= buffer->size) {
                buffer->size = 0;
                return;
        }
        if (size == 0)
                return;
        memmove(buffer->data, buffer->data + size, buffer->size - size);
        buffer->size -= size;
}

const char *buffer_text(struct buffer *buffer) {
        if (buffer_reserve(buffer, 0) < 0)
                return NULL;
        buffer->data[buffer->size] = '\0';
        return (const char *)buffer->data;
}

void buffer_deinit(struct buffer *buffer) {
        if (!buffer)
                return;
        free(buffer->data);
        *buffer = BUFFER_INIT(buffer->max);
}

/* ---- small helpers -------------------------------------------------------------------------------- */

uint64_t base_random_u64(void) {
        uint64_t value;
        for (;;) {
                ssize_t size = getrandom(&value, sizeof(value), 0);
                if (size == (ssize_t)sizeof(value))
                        return value;
                if (size < 0 && errno != EINTR)
                        abort(); /* no kernel that runs this program lacks the call; ids must not be guessable */
        }
}

uint64_t base_random_next(uint64_t *seed) {
        /* splitmix64, Sebastiano Vigna, public domain */
        uint64_t value = *seed += UINT64_C(0x9e3779b97f4a7c15);
        value = (value ^ (value >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        value = (value ^ (value >> 27)) * UINT64_C(0x94d049bb133111eb);
        return value ^ (value >> 31);
}

uint64_t base_backoff_usec(uint32_t attempt, uint64_t min_usec, uint64_t max_usec, uint64_t *seed) {
        uint64_t value = base_min_u64(min_usec, max_usec);
        for (; attempt > 0 && value > 0 && value < max_usec; attempt--)
                value = value > max_usec / 2 ? max_usec : value * 2;
        uint64_t half = value / 2;
        return half + base_random_next(seed) % (value - half + 1);
}

void base_free_pointer(void *pointer_to_pointer) {
        void **pointer = pointer_to_pointer;
        free(*pointer);
        *pointer = NULL;
}

void base_close_pointer(int *fd) {
        if (*fd < 0)
                return;
        int saved = errno; /* runs at the end of error paths, whose errno must survive */
        (void)close(*fd);
        errno = saved;
        *fd = -1;
}
