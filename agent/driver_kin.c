/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver_kin: a driver's descendants, noted while it lives, looked for when it is gone
 *
 * A driver may start processes: Python, shells, whatever its job wants. Spark ends the driver alone, and what survives it
 * gets another parent at once, so the tree must be seen before. A scan reads the parent of each process of the expected
 * user anyway and costs nothing more here: that list serves holds as they are made and at each later scan. What a driver
 * starts between that and its end, and children that run as another user, are seen by a pass of its own soon after the
 * kill left: a JVM takes 50 to 350 ms to end, the pass some 10 us for each process of the node.
 *
 * A list is stale when it is read, so each candidate is proved: its pidfd is opened first; then its parent is read; then
 * child, parent and driver are seen to live, by their pidfds. None of them can have changed hands in between, so the chain
 * is unbroken, and whoever is signalled later is a descendant. All of this is a lower bound: who left the tree before
 * it was noted is missed, unless it still works in the driver's directory and the agent may see that. One of those is
 * counted and never signalled, for a working directory proves nothing.
 */
#include "driver_internal.h"
#include "event.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#define RELATIVES_MAX 256
#define DWELLERS_MAX 1024
#define ENTRIES_MAX 65536U
#define NOTE_DELAY_USEC (5 * USEC_PER_MSEC) /* the kill leaves first */

/* ---- the list --------------------------------------------------------------------------------------------------- */

void driver_kin_list_deinit(struct driver_kin_list *list) {
        free(list->entries);
        *list = (struct driver_kin_list){0};
}

void driver_kin_list_add(struct driver_kin_list *list, const struct driver_stat *stat) {
        if (list->count == list->allocated) {
                size_t allocated = list->allocated ? list->allocated * 2 : 64;
                struct driver_kin *entries;

                if (list->count >= ENTRIES_MAX)
                        return;
                entries = reallocarray(list->entries, allocated, sizeof(*entries));
                if (!entries)
                        return;
                list->entries = entries;
                list->allocated = allocated;
        }
        list->entries[list->count++] =
                (struct driver_kin){.pid = stat->pid, .parent = stat->parent, .start_ticks = stat->start_ticks};
}

static int compare_parents(const void *a, const void *b) {
        const struct driver_kin *x = a, *y = b;

        return x->parent < y->parent ? -1 : x->parent > y->parent;
}

void driver_kin_list_sort(struct driver_kin_list *list) {
        if (list->count > 0)
                qsort(list->entries, list->count, sizeof(*list->entries), compare_parents);
}

/* first_child() - its index, or `count`. */
static size_t first_child(const struct driver_kin_list *list, int32_t parent) {
        size_t low = 0, high = list->count;

        while (low < high) {
                size_t middle = low + (high - low) / 2;

                if (list->entries[middle].parent < parent)
                        low = middle + 1;
                else
                        high = middle;
        }
        return low;
}

/* read_all() - every process of whatever user. Who ends meanwhile is left out, and so is who can't be read. */
static int read_all(int proc_fd, struct driver_kin_list *list) {
        int fd = openat(proc_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        struct dirent *entry;
        DIR *directory;

        if (fd < 0)
                return -errno;
        directory = fdopendir(fd);
        if (!directory) {
                int r = -errno;

                close(fd);
                return r;
        }
        while ((entry = readdir(directory))) {
                struct driver_stat stat;
                uint64_t pid;

                if (base_parse_u64(entry->d_name, 1, INT32_MAX, &pid) == 0 &&
                    driver_proc_stat(proc_fd, (int32_t)pid, &stat) == 0 && driver_stat_is_alive(&stat))
                        driver_kin_list_add(list, &stat);
        }
        closedir(directory);
        driver_kin_list_sort(list);
        return 0;
}

/* ---- notes -------------------------------------------------------------------------------------------------------- */

/* has_ended() - a pidfd is readable when the last thread is gone. What can't be asked counts as gone: nothing is proved
 * then. */
static bool has_ended(int pidfd) {
        struct pollfd poll_fd = {.fd = pidfd, .events = POLLIN};

        return poll(&poll_fd, 1, 0) != 0;
}

/* is_dear() - the last quarter of our descriptors is for those who need them more. */
static bool is_dear(int fd) {
        struct rlimit limit;

        if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY)
                return false;
        return (rlim_t)fd >= limit.rlim_cur - limit.rlim_cur / 4;
}

static void forget_ended(struct driver_hold *hold) {
        size_t kept = 0;

        for (size_t i = 0; i < hold->relative_count; i++) {
                if (has_ended(hold->relatives[i].pidfd))
                        close(hold->relatives[i].pidfd);
                else
                        hold->relatives[kept++] = hold->relatives[i];
        }
        hold->relative_count = kept;
}

static const struct driver_relative *find_relative(const struct driver_hold *hold, int32_t pid) {
        for (size_t i = 0; hold && i < hold->relative_count; i++)
                if (hold->relatives[i].pid == pid && !has_ended(hold->relatives[i].pidfd))
                        return &hold->relatives[i];
        return NULL;
}

/* add_relative() - takes the pidfd over. gcc's analyzer follows `hold` over two rounds of a list, loses it, and calls the
 * array leaked; driver_kin_forget() frees it. */
#ifndef __clang__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wanalyzer-malloc-leak"
#endif
static void add_relative(struct driver_hold *hold, struct driver_relative relative) {
        if (!hold->relatives)
                hold->relatives = calloc(RELATIVES_MAX, sizeof(*hold->relatives));
        if (!hold->relatives || hold->relative_count >= RELATIVES_MAX)
                close(relative.pidfd);
        else
                hold->relatives[hold->relative_count++] = relative;
}
#ifndef __clang__
#pragma GCC diagnostic pop
#endif

/* note_child() - prove that `child` is one of `parent`'s (the driver or a relative), and keep it. */
static void note_child(struct driver_hold *hold, struct driver_relative parent, const struct driver_kin *child) {
        _cleanup_close_ int pidfd = -1;
        struct driver_stat stat;

        if (hold->relative_count >= RELATIVES_MAX || find_relative(hold, child->pid))
                return;
        pidfd = (int)syscall(SYS_pidfd_open, (pid_t)child->pid, 0U);
        if (pidfd < 0 || is_dear(pidfd))
                return;
        if (driver_proc_stat(hold->driver->proc_fd, child->pid, &stat) < 0 || stat.pid != child->pid ||
            stat.start_ticks != child->start_ticks || stat.parent != parent.pid)
                return;
        /* In this order: the child lived when its parent was read, so it was this child's; the parent lives still, so it
         * was this parent. */
        if (has_ended(pidfd) || has_ended(parent.pidfd) || has_ended(hold->pidfd))
                return;
        add_relative(hold, (struct driver_relative){.pidfd = TAKE_FD(pidfd), .pid = child->pid});
}

/* note() - the tree below the driver, as far as the list knows it. The relatives are the queue of their own search. */
static void note(struct driver_hold *hold, const struct driver_kin_list *list) {
        struct driver_relative parent = {.pidfd = hold->pidfd, .pid = hold->pid};

        forget_ended(hold);
        for (size_t next = 0;; parent = hold->relatives[next++]) {
                for (size_t i = first_child(list, parent.pid); i < list->count && list->entries[i].parent == parent.pid; i++)
                        note_child(hold, parent, &list->entries[i]);
                if (next == hold->relative_count)
                        return;
        }
}

void driver_kin_note(struct driver_hold *hold) {
        note(hold, &hold->driver->table.kin);
}

void driver_kin_note_all(struct driver *driver) {
        struct driver_hold *hold;

        TAILQ_FOREACH(hold, &driver->holds, link)
                note(hold, &driver->table.kin);
}

static int on_note(void *userdata) {
        struct driver *driver = userdata;
        struct driver_kin_list list = {0};
        struct driver_hold *hold;

        driver->noting = false;
        if (!TAILQ_EMPTY(&driver->holds) && read_all(driver->proc_fd, &list) == 0) {
                TAILQ_FOREACH(hold, &driver->holds, link)
                        note(hold, &list);
        }
        driver_kin_list_deinit(&list);
        return 0; /* what can't be read is not noted: a lower bound */
}

int driver_kin_init(struct driver *driver) {
        TAILQ_INIT(&driver->holds);
        return event_add_timer(driver->event, "driver-kin", on_note, driver, &driver->note_timer);
}

void driver_kin_deinit(struct driver *driver) {
        struct driver_hold *hold;

        while ((hold = TAILQ_FIRST(&driver->holds)))
                driver_kin_leave(hold);
        driver->note_timer = event_source_free(driver->note_timer);
}

void driver_kin_leave(struct driver_hold *hold) {
        if (hold->driver)
                TAILQ_REMOVE(&hold->driver->holds, hold, link);
        hold->driver = NULL;
}

void driver_kin_forget(struct driver_hold *hold) {
        for (size_t i = 0; i < hold->relative_count; i++)
                close(hold->relatives[i].pidfd);
        free(hold->relatives);
        hold->relatives = NULL;
        hold->relative_count = 0;
}

void driver_note_descendants(struct driver_hold *hold) {
        struct driver *driver = hold->driver;

        if (!driver || driver->noting)
                return;
        driver->noting = event_timer_set(driver->note_timer, event_now_usec(driver->event) + NOTE_DELAY_USEC) == 0;
}

void driver_hold_join(struct driver_hold *hold, struct driver_hold *earlier) {
        if (!earlier)
                return;
        forget_ended(earlier);
        while (earlier->relative_count > 0)
                add_relative(hold, earlier->relatives[--earlier->relative_count]);
        driver_hold_free(earlier);
}

/* ---- who is left ------------------------------------------------------------------------------------------------- */

static bool is_driver(const struct driver_table *table, int32_t pid) {
        for (size_t i = 0; i < table->count; i++)
                if (table->processes[i].found.pid == pid)
                        return true;
        return false;
}

/* dweller_id() - the driver id whose directory the process works in. False: none, or not for us to see. */
static bool dweller_id(const struct driver *driver, const char *work, int32_t pid, char ret[DRIVER_ID_MAX + 1]) {
        char name[32], path[PATH_MAX];
        const char *tail;
        ssize_t size;

        snprintf(name, sizeof(name), "%" PRId32 "/cwd", pid);
        size = readlinkat(driver->proc_fd, name, path, sizeof(path) - 1);
        if (size < 0)
                return false;
        path[size] = 0;
        tail = base_text_starts_with(path, work);
        if (!tail || *tail != '/' || !base_driver_id_is_valid(tail + 1, strlen(tail + 1)))
                return false;
        return base_text_copy(ret, DRIVER_ID_MAX + 1, tail + 1);
}

/* find_dwellers() - once for each scan and only when it is asked for: the links can mostly not be read. */
static void find_dwellers(struct driver *driver) {
        _cleanup_free_ char *work = realpath(driver->work_directory, NULL);
        struct driver_table *table = &driver->table;

        table->dwellers_known = true;
        for (size_t i = 0; work && i < table->kin.count && table->dweller_count < DWELLERS_MAX; i++) {
                const struct driver_kin *kin = &table->kin.entries[i];
                struct driver_dweller dweller = {.pid = kin->pid, .start_ticks = kin->start_ticks}, *dwellers;

                if (!dweller_id(driver, work, kin->pid, dweller.driver_id) || is_driver(table, kin->pid))
                        continue;
                dwellers = reallocarray(table->dwellers, table->dweller_count + 1, sizeof(*dwellers));
                if (!dwellers)
                        return;
                table->dwellers = dwellers;
                dwellers[table->dweller_count++] = dweller;
        }
}

uint32_t driver_leftovers(struct driver *driver, const struct driver_hold *hold, const char *driver_id,
                          void (*visit)(const struct driver_leftover *leftover, void *userdata), void *userdata) {
        uint32_t count = 0;

        for (size_t i = 0; hold && i < hold->relative_count; i++) {
                struct driver_leftover leftover = {.pid = hold->relatives[i].pid, .held = true};

                driver_proc_read_comm(driver->proc_fd, leftover.pid, leftover.comm, sizeof(leftover.comm));
                if (has_ended(hold->relatives[i].pidfd)) /* asked after the name was read, so that it is its own */
                        continue;
                visit(&leftover, userdata);
                count++;
        }
        if (!driver->table.dwellers_known)
                find_dwellers(driver);
        for (size_t i = 0; i < driver->table.dweller_count; i++) {
                const struct driver_dweller *dweller = &driver->table.dwellers[i];
                struct driver_leftover leftover = {.pid = dweller->pid};

                if (strcmp(dweller->driver_id, driver_id) != 0 || find_relative(hold, dweller->pid))
                        continue;
                driver_proc_read_comm(driver->proc_fd, leftover.pid, leftover.comm, sizeof(leftover.comm));
                if (!driver_process_alive(driver, dweller->pid, dweller->start_ticks))
                        continue;
                visit(&leftover, userdata);
                count++;
        }
        return count;
}

int driver_signal_leftovers(struct driver_hold *hold, int signal_number) {
        int sent = 0, error = -ESRCH;

        if (signal_number != SIGTERM && signal_number != SIGKILL)
                return -EINVAL;
        if (hold->observe)
                return -ECANCELED;
        for (size_t i = 0; i < hold->relative_count; i++) {
                if (has_ended(hold->relatives[i].pidfd))
                        continue; /* a dead one that nobody has reaped would take it */
                if (syscall(SYS_pidfd_send_signal, hold->relatives[i].pidfd, signal_number, NULL, 0U) == 0)
                        sent++;
                else if (errno != ESRCH)
                        error = -errno;
        }
        return sent > 0 ? sent : error;
}
