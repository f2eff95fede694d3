/* SPDX-License-Identifier: Apache-2.0 */
/*
 * /proc/PID/stat, /proc/PID/status and /proc/stat. A process chooses its own name, so parts of these are a hostile
 * user's. The same bytes go to all three readers.
 *
 * What was read is written down again in the kernel's form and read once more: the numbers must stay.
 */
#include "fuzz.h"
#include "driver_stat.h"

static void check_stat(const char *bytes, size_t size) {
        struct driver_stat stat, again;
        char text[256];

        if (driver_stat_parse(bytes, size, &stat) < 0)
                return;
        FUZZ_CHECK(stat.pid >= 0 && stat.parent >= 0);
        FUZZ_CHECK(stat.state >= 'A' && stat.state <= 'z');
        int length =
                snprintf(text, sizeof(text), "%d (a) b (c) %c %d 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 %u 0 %" PRIu64 " 0\n",
                         stat.pid, stat.state, stat.parent, stat.threads, stat.start_ticks);
        FUZZ_CHECK(driver_stat_parse(text, (size_t)length, &again) == 0);
        FUZZ_CHECK(stat.pid == again.pid && stat.state == again.state && stat.parent == again.parent &&
                   stat.threads == again.threads && stat.start_ticks == again.start_ticks);
        FUZZ_CHECK(driver_stat_is_alive(&stat) == driver_stat_is_alive(&again));
        FUZZ_CHECK(driver_stat_is_alive(&stat) || strchr("XxZ", stat.state));
}

/* The line must stand in the bytes as one of its own. */
static void check_status(const char *bytes, size_t size) {
        uint32_t uids[4], again[4];
        char text[128];

        if (driver_status_parse_uids(bytes, size, uids) < 0)
                return;
        int length =
                snprintf(text, sizeof(text), "Name:\tx\nUid:\t%u\t%u\t%u\t%u\n", uids[0], uids[1], uids[2], uids[3]);
        FUZZ_CHECK(driver_status_parse_uids(text, (size_t)length, again) == 0);
        FUZZ_CHECK(memcmp(uids, again, sizeof(uids)) == 0);
        FUZZ_CHECK(memmem(bytes, size, "Uid:", 4));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        const char *bytes = (const char *)data;
        uint64_t seconds;

        check_stat(bytes, size);
        check_status(bytes, size);
        if (driver_boot_parse(bytes, size, &seconds) == 0)
                FUZZ_CHECK(seconds <= UINT64_MAX / USEC_PER_SEC);
        return 0;
}
