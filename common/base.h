/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * base: the words everyone uses
 *
 * Bounded bytes, bounded text, time units, cleanup helpers and the list of banned functions. Nothing here
 * knows a clock, a descriptor, a log or the loop, so the pure modules (cancel, command) may include it.
 *
 * Return values, everywhere in this program: zero is success; a negative value is our own failure (-errno);
 * a positive value is a named answer (an enum of the module) that the caller must handle where it arrives
 * and never passes on. `ret_` outputs are written on success only. Destructors take NULL, half-built and
 * already-done objects, and return NULL. Times are unsigned 64-bit microseconds and end in `_usec`.
 */

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- time ---------------------------------------------------------------------------------------- */

#define USEC_PER_MSEC UINT64_C(1000)
#define USEC_PER_SEC UINT64_C(1000000)
#define USEC_PER_MINUTE (60 * USEC_PER_SEC)
#define USEC_PER_HOUR (60 * USEC_PER_MINUTE)
#define USEC_NEVER UINT64_MAX

/* base_usec_add() - a + b, saturating at USEC_NEVER: "never plus anything" stays never. */
static inline uint64_t base_usec_add(uint64_t a, uint64_t b) {
        return a > USEC_NEVER - b ? USEC_NEVER : a + b;
}

/* base_usec_sub() - a - b, never below zero; USEC_NEVER minus anything stays USEC_NEVER. */
static inline uint64_t base_usec_sub(uint64_t a, uint64_t b) {
        return a == USEC_NEVER ? USEC_NEVER : a > b ? a - b : 0;
}

static inline uint64_t base_min_u64(uint64_t a, uint64_t b) {
        return a < b ? a : b;
}

static inline uint64_t base_max_u64(uint64_t a, uint64_t b) {
        return a > b ? a : b;
}

/* ---- identifiers: limits of the wire (docs/contract.md) ------------------------------------------- */

#define OPERATION_ID_MAX 50 /* also cluster and job ids: printable ASCII without space */
#define CLUSTER_ID_MAX 50
#define JOB_ID_MAX 50
#define DRIVER_ID_MAX 128 /* [A-Za-z0-9._-], not "." or ".." */
#define NODE_NAME_MAX 255
#define DRIVER_STATE_MAX 31  /* Spark's own word for a state, e.g. RUNNING */
#define REPORT_MESSAGE_MAX 1024
#define OPERATION_BYTES_MAX (16 * 1024)

/* base_id_is_valid() - is `size` bytes at `text` an operation, cluster or job id: 1 to `max` bytes of
 * printable ASCII without space? A NUL inside counts as a violation, so the length is an argument. */
bool base_id_is_valid(const char *text, size_t size, size_t max);

/* base_driver_id_is_valid() - 1 to DRIVER_ID_MAX bytes of [A-Za-z0-9._-], and neither "." nor "..": the only
 * text that may become a part of a URL path or of a file name. */
bool base_driver_id_is_valid(const char *text, size_t size);

/* ---- bounded text --------------------------------------------------------------------------------- */

/* base_text_copy() - copy NUL-terminated `source` into `target` of `size` bytes, cut to fit, always
 * terminated. Returns true when all of it fitted. `source` NULL counts as "". */
bool base_text_copy(char *target, size_t size, const char *source);

/* base_text_escape() - write `size` bytes at `source` into `target` (at most `target_size` with the NUL) as
 * valid UTF-8 without control characters (those of direction and of lines among them): well-formed UTF-8 stays,
 * anything else becomes \xNN. What does not fit is cut at a whole character. For all text that comes from a peer
 * or a process and goes to a log or on the wire. */
void base_text_escape(char *target, size_t target_size, const void *source, size_t size);

/* base_text_is_utf8() - are these bytes well-formed UTF-8 (no surrogates, no overlong forms)? */
bool base_text_is_utf8(const void *bytes, size_t size);

/* base_text_starts_with() - the rest of `text` after `prefix`, or NULL. */
const char *base_text_starts_with(const char *text, const char *prefix);

/* base_parse_u64() - all of `text` as an unsigned decimal number in [min, max]. -EINVAL: not a number;
 * -ERANGE: outside. */
int base_parse_u64(const char *text, uint64_t min, uint64_t max, uint64_t *ret);

/* ---- bounded bytes -------------------------------------------------------------------------------- */

/* A view of bytes that somebody else owns. */
struct span {
        const uint8_t *data;
        size_t size;
};

/* A growable buffer with a compulsory maximum. Grows with the bytes that arrive, never by an announced
 * length. BUFFER_INIT(max) makes an empty one; it allocates at the first append. */
struct buffer {
        uint8_t *data;
        size_t size;
        size_t allocated;
        size_t max;
};

#define BUFFER_INIT(maximum) ((struct buffer){ .max = (maximum) })

/* buffer_append() - copy `size` bytes to the end. -ENOBUFS: that would pass `max`; -ENOMEM. On failure the
 * buffer is as before. */
int buffer_append(struct buffer *buffer, const void *bytes, size_t size);
int buffer_append_text(struct buffer *buffer, const char *text);
int buffer_append_format(struct buffer *buffer, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* buffer_consume() - drop `size` bytes (at most all) from the front. */
void buffer_consume(struct buffer *buffer, size_t size);
/* buffer_text() - the content as a C string: appends a NUL that does not count. NULL on -ENOMEM/-ENOBUFS. */
const char *buffer_text(struct buffer *buffer);
/* buffer_deinit() - free; the buffer is empty again and keeps its maximum. */
void buffer_deinit(struct buffer *buffer);

/* ---- small helpers -------------------------------------------------------------------------------- */

#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))
#define CONTAINER_OF(pointer, type, member) ((type *)((char *)(pointer) - offsetof(type, member)))

/* base_random_u64() - bytes of the kernel's generator; for ids and seeds. Never fails on a booted Linux. */
uint64_t base_random_u64(void);

/* base_random_next() - next value of a small seeded generator (splitmix64): jitter that tests can repeat. */
uint64_t base_random_next(uint64_t *seed);

/* base_backoff_usec() - exponential back-off with full jitter in its upper half: attempt 0 gives about `min`,
 * each further attempt doubles, capped at `max`; the result lies in [value/2, value]. */
uint64_t base_backoff_usec(uint32_t attempt, uint64_t min_usec, uint64_t max_usec, uint64_t *seed);

void base_free_pointer(void *pointer_to_pointer);
void base_close_pointer(int *fd);

/* _cleanup_(f): call f(&variable) at the end of the scope. */
#define _cleanup_(function) __attribute__((cleanup(function)))
#define _cleanup_free_ _cleanup_(base_free_pointer)
#define _cleanup_close_ _cleanup_(base_close_pointer)

/* TAKE(): hand the value over and leave NULL (TAKE_FD: -1) behind, so that the cleanup does nothing. */
#define TAKE(pointer)                           \
        ({                                      \
                __typeof__(pointer) taken_ = (pointer); \
                (pointer) = NULL;               \
                taken_;                         \
        })
#define TAKE_FD(fd)                             \
        ({                                      \
                int taken_ = (fd);              \
                (fd) = -1;                      \
                taken_;                         \
        })

/* DEFINE_CLEANUP(): the function that _cleanup_(function##_pointer) needs for a destructor. */
#define DEFINE_CLEANUP(type, destructor)                                      \
        __attribute__((unused)) static inline void destructor##_pointer(type *pointer) { \
                if (*pointer)                                                  \
                        destructor(*pointer);                                  \
        }

/* Banned: each has a bounded or checked twin above or in POSIX. kill(2) is banned because a process is
 * signalled through a proved pidfd only. The way is git's banned.h: a use becomes an undeclared name. */
#define BASE_BANNED(name) name##_is_banned_see_common_base_h
#undef strcpy
#define strcpy(...) BASE_BANNED(strcpy)
#undef strcat
#define strcat(...) BASE_BANNED(strcat)
#undef strncpy
#define strncpy(...) BASE_BANNED(strncpy)
#undef sprintf
#define sprintf(...) BASE_BANNED(sprintf)
#undef vsprintf
#define vsprintf(...) BASE_BANNED(vsprintf)
#undef atoi
#define atoi(...) BASE_BANNED(atoi)
#undef strtok
#define strtok(...) BASE_BANNED(strtok)
#undef localtime
#define localtime(...) BASE_BANNED(localtime)
#undef gmtime
#define gmtime(...) BASE_BANNED(gmtime)
#undef system
#define system(...) BASE_BANNED(system)
#undef kill
#define kill(...) BASE_BANNED(kill)
