/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Commits on a full disk. A cancel must not hang on somebody else's core dump, so space is set aside while there is
 * some: the log is written out once to its usual length, and the database holds as many free pages. SQLite then
 * overwrites blocks that it has. Measured on an ext4 filled to the last byte: thousands of commits go on, where
 * without a reserve the first one fails.
 *
 *  - Free pages come from a table that is filled and dropped, in two transactions: SQLite does not write out pages
 *    that are freed within the transaction that made them. auto_vacuum would give them back and is off.
 *  - The log keeps its length: journal_size_limit lies above it, and nobody removes the file at close. It is emptied
 *    when half of it is used, so that the other half is there for one big turn (some 1,000 operations). What a still
 *    bigger one, or a reserve that could not be finished, took of the disk is given back by the limit.
 *  - As operations come, free pages are used up; when half of them are gone they are made up again, which costs
 *    some 20 ms once per about 2 MB of growth.
 *  - It is never taken from the last of the disk, only while there is space enough.
 *  - It is a best effort: without a reserve the store works like any other. File systems that never overwrite in
 *    place (btrfs, ZFS) may need new blocks all the same.
 */
#include <sys/statvfs.h>

#include "store_internal.h"

#define PAUSE_COMMITS 256 /* after a failure, for nobody knows when there is space again */
#define ROW_BYTES 3600    /* one row a page: above half a page, below what goes to an overflow page */

#define LOG_HEADER_BYTES 32
#define LOG_FRAME_BYTES (STORE_PAGE_BYTES + 24)
#define LOG_SLACK_PAGES 64
#define SPACE_LEFT_BYTES (1024 * 1024) /* others want to live, too */

int store_reserve_configure(struct store *store) {
        int64_t limit = LOG_HEADER_BYTES + ((int64_t)store->reserve_pages + LOG_SLACK_PAGES) * LOG_FRAME_BYTES;
        char sql[160];

        snprintf(sql, sizeof(sql), "PRAGMA journal_size_limit = %" PRId64 "; PRAGMA wal_autocheckpoint = %" PRIu32,
                 limit, store->reserve_pages > 1 ? store->reserve_pages / 2 : STORE_RESERVE_PAGES / 2);
        return store_exec(store, sql, "cannot set up the log");
}

/* Asked before, because an attempt that runs out of space half way leaves frames in the log that the database has no
 * room for, and so takes the room of the next commits (until space comes back; then all of it heals by itself). */
static bool space_is_there(struct store *store) {
        uint64_t needed = 2 * (uint64_t)store->reserve_pages * LOG_FRAME_BYTES + SPACE_LEFT_BYTES;
        struct statvfs status;

        return fstatvfs(store->directory_fd, &status) == 0 && status.f_bavail >= needed / status.f_frsize;
}

static int fill(struct store *store) {
        char sql[300];
        int r;

        snprintf(sql, sizeof(sql),
                 "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %" PRIu32 ")"
                 " INSERT INTO reserve SELECT zeroblob(%d) FROM n",
                 store->reserve_pages, ROW_BYTES);
        if ((r = store_exec(store, "BEGIN IMMEDIATE", "cannot begin")) < 0 ||
            (r = store_exec(store, "DROP TABLE IF EXISTS reserve", "cannot drop the reserve")) < 0 ||
            (r = store_exec(store, STORE_RESERVE_TABLE, "cannot make the reserve")) < 0 ||
            (r = store_exec(store, sql, "cannot fill the reserve")) < 0 ||
            (r = store_exec(store, "COMMIT", "cannot store the reserve")) < 0)
                return r;
        return store_exec(store, "DROP TABLE reserve", "cannot drop the reserve");
}

/* The log is emptied before, so that it does not grow to twice its length, and after, so that it is not left full. */
static int make_reserve(struct store *store) {
        int code, r;

        if (!space_is_there(store))
                return -ENOSPC;
        code = sqlite3_wal_checkpoint_v2(store->db, NULL, SQLITE_CHECKPOINT_RESTART, NULL, NULL);
        if (code != SQLITE_OK)
                return store_fail(store, code, "cannot empty the log");
        r = fill(store);
        if (r < 0) {
                store_roll_back(store);
                return r;
        }
        code = sqlite3_wal_checkpoint_v2(store->db, NULL, SQLITE_CHECKPOINT_RESTART, NULL, NULL);
        return code == SQLITE_OK ? 0 : store_fail(store, code, "cannot empty the log");
}

bool store_reserve_open(struct store *store) {
        int64_t pages;

        if (store->reserve_pages == 0)
                return false;
        if (store_query_i64(store, "PRAGMA freelist_count", &pages) < 0)
                return false;
        if (pages >= store->reserve_pages / 2 &&
            store_files_log_size(store) >= (int64_t)store->reserve_pages * STORE_PAGE_BYTES)
                return true;
        if (make_reserve(store) >= 0)
                return true;
        store->reserve_pause = PAUSE_COMMITS;
        return false;
}

void store_reserve_keep(struct store *store) {
        sqlite3_stmt *statement = store->statements[STORE_COUNT_FREE];
        int64_t pages = INT64_MAX;

        if (store->reserve_pages == 0)
                return;
        if (store->reserve_pause > 0) {
                store->reserve_pause--;
                return;
        }
        if (sqlite3_step(statement) == SQLITE_ROW)
                pages = sqlite3_column_int64(statement, 0);
        sqlite3_reset(statement);
        if (pages < store->reserve_pages / 2 && make_reserve(store) < 0)
                store->reserve_pause = PAUSE_COMMITS;
}
