/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * driver_stat: PURE: the few fields that the agent needs of /proc/PID/stat, /proc/PID/status and /proc/stat
 *
 * See proc_pid_stat(5), proc_pid_status(5), proc_stat(5). The bytes need no NUL at the end.
 */
#include "base.h"

struct driver_stat {
        int32_t pid;          /* field 1 */
        char state;           /* field 3 */
        int32_t parent;       /* field 4 */
        uint32_t threads;     /* field 20 */
        uint64_t start_ticks; /* field 22, in clock ticks since boot */
};

/* driver_stat_parse() - /proc/PID/stat. The comm (field 2) is chosen by the process and may hold spaces and
 * parentheses, so the fields are counted from the last ')'. -EBADMSG. */
int driver_stat_parse(const char *bytes, size_t size, struct driver_stat *ret);

/* driver_stat_is_alive() - false for a dead process or a zombie. A process whose first thread has ended while
 * others run shows 'Z' as well; it lives. */
bool driver_stat_is_alive(const struct driver_stat *stat);

/* driver_status_parse_uids() - the line "Uid:" of /proc/PID/status: real, effective, saved, file system.
 * -EBADMSG. */
int driver_status_parse_uids(const char *bytes, size_t size, uint32_t ret_uids[4]);

/* driver_boot_parse() - the line "btime" of /proc/stat: boot time in seconds of the wall clock. -EBADMSG. */
int driver_boot_parse(const char *bytes, size_t size, uint64_t *ret);
