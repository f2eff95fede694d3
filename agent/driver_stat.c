/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver_stat: parse the kernel's text
 *
 * The kernel writes these files, but a process chooses parts of them (its comm), and tests and a cut read can
 * give anything: every number is parsed with its range, and a line that does not fit is an error, not a guess.
 */
#include "driver_stat.h"

/* A cursor over text with no NUL at its end. */
struct cursor {
        const char *next;
        const char *end;
};

static void skip_blanks(struct cursor *cursor) {
        while (cursor->next < cursor->end && (*cursor->next == ' ' || *cursor->next == '\t'))
                cursor->next++;
}

/* take_number() - an unsigned decimal number of at most `max` that ends at a blank, a newline or the end. */
static int take_number(struct cursor *cursor, uint64_t max, uint64_t *ret) {
        uint64_t value = 0;
        const char *start;

        skip_blanks(cursor);
        for (start = cursor->next; cursor->next < cursor->end; cursor->next++) {
                char c = *cursor->next;

                if (c < '0' || c > '9')
                        break;
                if (value > (max - (uint64_t)(c - '0')) / 10)
                        return -EBADMSG;
                value = value * 10 + (uint64_t)(c - '0');
        }
        if (cursor->next == start)
                return -EBADMSG;
        if (cursor->next < cursor->end && !memchr(" \t\n", *cursor->next, 3))
                return -EBADMSG;
        *ret = value;
        return 0;
}

/* skip_fields() - whatever stands there, `count` words of it. */
static int skip_fields(struct cursor *cursor, unsigned count) {
        for (; count > 0; count--) {
                const char *start;

                skip_blanks(cursor);
                for (start = cursor->next; cursor->next < cursor->end; cursor->next++)
                        if (memchr(" \t\n", *cursor->next, 3))
                                break;
                if (cursor->next == start)
                        return -EBADMSG;
        }
        return 0;
}

static int take_state(struct cursor *cursor, char *ret) {
        skip_blanks(cursor);
        if (cursor->next == cursor->end || *cursor->next < 'A' || *cursor->next > 'z')
                return -EBADMSG;
        *ret = *cursor->next++;
        return cursor->next < cursor->end && *cursor->next == ' ' ? 0 : -EBADMSG;
}

/* Fields 3 to 22, behind the comm. */
static int parse_fields(struct cursor *cursor, struct driver_stat *stat) {
        uint64_t parent, threads;
        int r;

        r = take_state(cursor, &stat->state);
        if (r < 0)
                return r;
        r = take_number(cursor, INT32_MAX, &parent);
        if (r < 0)
                return r;
        r = skip_fields(cursor, 15); /* pgrp (5) to nice (19) */
        if (r < 0)
                return r;
        r = take_number(cursor, UINT32_MAX, &threads);
        if (r < 0)
                return r;
        r = skip_fields(cursor, 1); /* itrealvalue (21) */
        if (r < 0)
                return r;
        r = take_number(cursor, UINT64_MAX, &stat->start_ticks);
        if (r < 0)
                return r;
        /* A number that runs into the end of the bytes may have been cut. */
        if (cursor->next == cursor->end)
                return -EBADMSG;
        stat->parent = (int32_t)parent;
        stat->threads = (uint32_t)threads;
        return 0;
}

int driver_stat_parse(const char *bytes, size_t size, struct driver_stat *ret) {
        struct cursor cursor = {.next = bytes, .end = bytes + size};
        struct driver_stat stat = {0};
        const char *comm_end;
        uint64_t pid;
        int r;

        r = take_number(&cursor, INT32_MAX, &pid);
        if (r < 0)
                return r;
        comm_end = memrchr(cursor.next, ')', (size_t)(cursor.end - cursor.next));
        if (!comm_end)
                return -EBADMSG;
        stat.pid = (int32_t)pid;
        cursor.next = comm_end + 1;
        r = parse_fields(&cursor, &stat);
        if (r < 0)
                return r;
        *ret = stat;
        return 0;
}

bool driver_stat_is_alive(const struct driver_stat *stat) {
        switch (stat->state) {
        case 'X':
        case 'x':
                return false;
        case 'Z':
                return stat->threads > 1;
        default:
                return true;
        }
}

/* find_line() - a cursor behind `label` at the start of a line. */
static bool find_line(const char *bytes, size_t size, const char *label, struct cursor *ret) {
        const char *next = bytes, *end = bytes + size;
        size_t label_size = strlen(label);

        while ((size_t)(end - next) >= label_size) {
                if (memcmp(next, label, label_size) == 0) {
                        *ret = (struct cursor){.next = next + label_size, .end = end};
                        return true;
                }
                next = memchr(next, '\n', (size_t)(end - next));
                if (!next)
                        return false;
                next++;
        }
        return false;
}

int driver_status_parse_uids(const char *bytes, size_t size, uint32_t ret_uids[4]) {
        struct cursor cursor;
        uint64_t uids[4];

        /* The kernel escapes newlines in "Name:", so a line of that name can't be forged there. */
        if (!find_line(bytes, size, "Uid:", &cursor))
                return -EBADMSG;
        for (size_t i = 0; i < 4; i++) {
                int r = take_number(&cursor, UINT32_MAX, &uids[i]);

                if (r < 0)
                        return r;
        }
        if (cursor.next == cursor.end || *cursor.next != '\n')
                return -EBADMSG;
        for (size_t i = 0; i < 4; i++)
                ret_uids[i] = (uint32_t)uids[i];
        return 0;
}

int driver_boot_parse(const char *bytes, size_t size, uint64_t *ret) {
        struct cursor cursor;

        if (!find_line(bytes, size, "btime ", &cursor))
                return -EBADMSG;
        return take_number(&cursor, UINT64_MAX / USEC_PER_SEC, ret);
}
