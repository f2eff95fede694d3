/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver_scan: one pass over the processes
 *
 * The order of the checks is part of the defence. Owner first: of another user's process nothing at all is read,
 * so it can neither be taken for a driver nor cost us more than one fstatat(). Then the argument list, which any
 * process of that user can write; then what it can't write: its real users, its parent, where its directory is;
 * and at the end the start time once more, so that a pid that changed hands meanwhile is dropped.
 *
 * What this can't prove: all drivers of a cluster run as one user, so a job that builds a false Worker with a
 * false driver under it passes. It can then claim a driver id, but not keep others from claiming the same: an id
 * claimed under two job ids is contested and left alone, and Spark's own status is asked before any kill.
 *
 * A failed pass changes nothing. What can be told apart from a process that merely ended (no descriptor left, no
 * memory, no permission) fails the pass: "no driver found" must never be said because we could not look.
 */
#include "driver_internal.h"
#include "metrics.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#define BYTES_KEPT (256U * 1024) /* a buffer that grew beyond it is given back after the pass */
#define PARENTS_KEPT 64          /* parents looked at in one pass that are remembered; few Workers run on a node */

struct parent {
        int32_t pid; /* 0: empty */
        uint64_t start_ticks;
        enum driver_argv_kind kind;
};

struct pass {
        struct driver *driver;
        struct driver_table table;
        struct driver_place place;
        bool owner_known;
        uid_t owner;
        bool boot_known;
        uint64_t boot_usec;
        struct parent parents[PARENTS_KEPT];
        size_t next_parent;
};

/* The process that is looked at. */
struct candidate {
        int fd;
        struct driver_stat stat;
        struct driver_argv argv;
        struct driver_process process;
};

void driver_table_deinit(struct driver_table *table) {
        free(table->processes);
        free(table->mentions);
        free(table->dwellers);
        driver_kin_list_deinit(&table->kin);
        *table = (struct driver_table){0};
}

static void pass_deinit(struct pass *pass) {
        driver_place_close(&pass->place);
        driver_table_deinit(&pass->table);
}

static int table_add(struct driver_table *table, const struct driver_process *process) {
        if (table->count == table->allocated) {
                size_t allocated = table->allocated ? table->allocated * 2 : 64;
                struct driver_process *processes;

                if (table->count >= DRIVER_PROCESSES_MAX)
                        return -ENOBUFS;
                processes = reallocarray(table->processes, allocated, sizeof(*processes));
                if (!processes)
                        return -ENOMEM;
                table->processes = processes;
                table->allocated = allocated;
        }
        table->processes[table->count++] = *process;
        return 0;
}

/* ---- look-alikes ------------------------------------------------------------------------------------ */

/* is_noted() - has this process said this before? */
static bool is_noted(const struct driver_table *table, size_t from, const char *text) {
        for (size_t i = from; i < table->mention_count; i++)
                if (strcmp(table->mentions[i].text, text) == 0)
                        return true;
        return false;
}

/* note_mentions() - keep the job ids that the process names, but for its `own`. */
static void note_mentions(struct pass *pass, int32_t pid, const char *own, const char *reason) {
        const struct driver *driver = pass->driver;
        struct driver_table *table = &pass->table;
        const size_t from = table->mention_count;
        struct span text;
        size_t offset = 0;

        while (table->mention_count < DRIVER_MENTIONS_MAX &&
               table->mention_count - from < DRIVER_PROCESS_MENTIONS_MAX &&
               driver_argv_next_mention((const char *)driver->argv_bytes.data, driver->argv_bytes.size,
                                        driver->job_id_property, &offset, &text)) {
                struct driver_mention *mention = &table->mentions[table->mention_count];

                *mention = (struct driver_mention){.pid = pid, .reason = reason};
                memcpy(mention->text, text.data, text.size);
                if (text.size > 0 && strcmp(mention->text, own) != 0 && !is_noted(table, from, mention->text))
                        table->mention_count++;
        }
}

/* ---- the parent --------------------------------------------------------------------------------------- */

/* inspect_parent() - what runs as `pid`? Whatever does not belong to the owner or ends meanwhile is OTHER. */
static int inspect_parent(struct pass *pass, int32_t pid, struct parent *parent) {
        struct driver *driver = pass->driver;
        _cleanup_close_ int fd = -1;
        struct driver_stat before, after;
        struct driver_argv argv;
        bool cut;
        int r;

        r = driver_proc_open(driver->proc_fd, pid, pass->owner, &fd);
        if (r != 0)
                return r < 0 ? r : 0;
        r = driver_proc_read_stat(fd, &before);
        if (r < 0)
                return r;
        r = driver_proc_read_argv(fd, &before, &driver->parent_bytes, &cut);
        if (r < 0)
                return r;
        driver_argv_parse((const char *)driver->parent_bytes.data, driver->parent_bytes.size, cut,
                          driver->job_id_property, &argv);
        if (argv.kind == DRIVER_ARGV_OTHER)
                return 0;
        r = driver_proc_check_uids(fd, pass->owner);
        if (r != 0)
                return r < 0 ? r : 0;
        r = driver_proc_read_stat(fd, &after);
        if (r < 0)
                return r;
        if (after.start_ticks != before.start_ticks || !driver_stat_is_alive(&after))
                return 0;
        parent->kind = argv.kind;
        parent->start_ticks = before.start_ticks;
        return 0;
}

static int find_parent(struct pass *pass, int32_t pid, struct parent *ret) {
        struct parent parent = {.pid = pid, .kind = DRIVER_ARGV_OTHER};
        int r;

        for (size_t i = 0; i < PARENTS_KEPT; i++) {
                if (pass->parents[i].pid == pid && pid != 0) {
                        *ret = pass->parents[i];
                        return 0;
                }
        }
        r = inspect_parent(pass, pid, &parent);
        if (r < 0 && r != -EBADMSG && !driver_proc_vanished(r))
                return r;
        pass->parents[pass->next_parent++ % PARENTS_KEPT] = parent;
        *ret = parent;
        return 0;
}

/* check_parent() - fill in the Worker, or make it an orphan. 1: refused, with `ret_refusal`. */
static int check_parent(struct pass *pass, struct candidate *candidate, const char **ret_refusal) {
        struct driver_found *found = &candidate->process.found;
        struct parent parent;
        int r;

        r = find_parent(pass, candidate->stat.parent, &parent);
        if (r < 0)
                return r;
        switch (parent.kind) {
        case DRIVER_ARGV_DRIVER:
                *ret_refusal = "its parent is a driver, not a Worker";
                return 1;
        case DRIVER_ARGV_WORKER:
                /* Nobody is younger than a child of theirs: that pid was reused. */
                if (parent.start_ticks <= candidate->stat.start_ticks) {
                        found->worker_pid = parent.pid;
                        found->worker_start_ticks = parent.start_ticks;
                        return 0;
                }
                break;
        case DRIVER_ARGV_OTHER:
                break;
        }
        candidate->process.orphan = true;
        return 0;
}

/* ---- one process ---------------------------------------------------------------------------------------- */

/* prove() - the checks behind the argument list. 0; 1: refused, with `ret_refusal`; -errno. */
static int prove(struct pass *pass, struct candidate *candidate, const char **ret_refusal) {
        struct driver_found *found = &candidate->process.found;
        const char *refusal;
        int r;

        r = driver_proc_check_uids(candidate->fd, pass->owner);
        if (r < 0)
                return r;
        if (r > 0) {
                *ret_refusal = "its real, effective and saved user differ";
                return 1;
        }
        r = check_parent(pass, candidate, ret_refusal);
        if (r != 0)
                return r;
        refusal = driver_place_find_id(&pass->place, candidate->argv.jar, found->driver_id);
        if (!refusal)
                refusal = driver_place_check_cwd(candidate->fd, found->driver_id);
        if (!refusal)
                return 0;
        *ret_refusal = refusal;
        return 1;
}

/* prove_again() - the start time, and the parent: a Worker may have ended while we looked. 1: pid reused, or it
 * ended. */
static int prove_again(struct candidate *candidate) {
        struct driver_found *found = &candidate->process.found;
        struct driver_stat stat;
        int r;

        r = driver_proc_read_stat(candidate->fd, &stat);
        if (r < 0)
                return r;
        if (stat.start_ticks != candidate->stat.start_ticks || !driver_stat_is_alive(&stat))
                return 1;
        if (stat.parent != candidate->stat.parent) {
                candidate->process.orphan = true;
                found->worker_pid = 0;
                found->worker_start_ticks = 0;
        }
        return 0;
}

static uint64_t started_usec(struct pass *pass, uint64_t start_ticks) {
        const uint64_t hz = pass->driver->ticks_per_second;

        /* Read late: on a machine of many cores /proc/stat is dear. */
        if (!pass->boot_known) {
                pass->boot_usec = driver_proc_read_boot(pass->driver->proc_fd, &pass->driver->parent_bytes);
                pass->boot_known = true;
        }
        if (pass->boot_usec == 0 || start_ticks / hz > USEC_NEVER / USEC_PER_SEC / 2)
                return 0;
        return base_usec_add(pass->boot_usec, start_ticks / hz * USEC_PER_SEC + start_ticks % hz * USEC_PER_SEC / hz);
}

/* take_claim() - what the argument list says, once it is believed. Returns why a mention of another job is none. */
static const char *take_claim(struct pass *pass, struct candidate *candidate) {
        struct driver_found *found = &candidate->process.found;
        const struct driver_argv *argv = &candidate->argv;

        found->pid = candidate->stat.pid;
        found->start_ticks = candidate->stat.start_ticks;
        found->started_real_usec = started_usec(pass, found->start_ticks);
        found->supervised = argv->supervised;
        if (argv->app_name.data)
                base_text_escape(found->app_name, sizeof(found->app_name), argv->app_name.data, argv->app_name.size);
        if (!argv->job_id.data)
                return "it names the job id, but not as a JVM option of its own";
        if (!base_id_is_valid((const char *)argv->job_id.data, argv->job_id.size, JOB_ID_MAX))
                return "its job id is not a valid one";
        memcpy(found->job_id, argv->job_id.data, argv->job_id.size);
        found->job_id[argv->job_id.size] = 0;
        return "it is the driver of another job, whose id comes first";
}

/* inspect_driver() - a process of the owner whose argument list is a driver's. */
static int inspect_driver(struct pass *pass, struct candidate *candidate) {
        const char *refusal = NULL, *other;
        int r;

        r = prove(pass, candidate, &refusal);
        if (r < 0)
                return r;
        if (r > 0) {
                note_mentions(pass, candidate->stat.pid, "", refusal);
                return 0;
        }
        r = prove_again(candidate);
        if (r != 0)
                return r < 0 ? r : 0;
        other = take_claim(pass, candidate);
        note_mentions(pass, candidate->stat.pid, candidate->process.found.job_id, other);
        return table_add(&pass->table, &candidate->process);
}

static int inspect_process(struct pass *pass, int32_t pid, int fd) {
        struct driver *driver = pass->driver;
        struct candidate candidate = {.fd = fd};
        bool cut;
        int r;

        r = driver_proc_read_stat(fd, &candidate.stat);
        if (r < 0)
                return r;
        if (candidate.stat.pid != pid || !driver_stat_is_alive(&candidate.stat))
                return 0;
        driver_kin_list_add(&pass->table.kin, &candidate.stat);
        r = driver_proc_read_argv(fd, &candidate.stat, &driver->argv_bytes, &cut);
        if (r < 0)
                return r;
        driver_argv_parse((const char *)driver->argv_bytes.data, driver->argv_bytes.size, cut, driver->job_id_property,
                          &candidate.argv);
        switch (candidate.argv.kind) {
        case DRIVER_ARGV_DRIVER:
                return inspect_driver(pass, &candidate);
        case DRIVER_ARGV_WORKER:
                note_mentions(pass, pid, "", "it is a Worker");
                break;
        case DRIVER_ARGV_OTHER:
                note_mentions(pass, pid, "", candidate.argv.refusal);
                break;
        }
        return 0;
}

static int scan_entry(struct pass *pass, const char *name) {
        _cleanup_close_ int fd = -1;
        uint64_t pid;
        int r;

        if (base_parse_u64(name, 1, INT32_MAX, &pid) < 0)
                return 0;
        pass->table.size++;
        if (!pass->owner_known)
                return 0;
        r = driver_proc_open(pass->driver->proc_fd, (int32_t)pid, pass->owner, &fd);
        if (r == 0)
                r = inspect_process(pass, (int32_t)pid, fd);
        /* It has ended meanwhile, or its text is none of the kernel's. */
        if (r == -EBADMSG || driver_proc_vanished(r))
                return 0;
        return r < 0 ? r : 0;
}

/* ---- the pass ------------------------------------------------------------------------------------------- */

/* scan_entries() - every entry of the process directory. A process that lives through the whole pass is seen. */
static int scan_entries(struct pass *pass) {
        int fd = openat(pass->driver->proc_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), r = 0;
        DIR *directory;

        if (fd < 0)
                return -errno;
        directory = fdopendir(fd);
        if (!directory) {
                r = -errno;
                close(fd);
                return r;
        }
        while (r == 0) {
                struct dirent *entry;

                errno = 0;
                entry = readdir(directory);
                if (!entry) {
                        r = -errno;
                        break;
                }
                r = scan_entry(pass, entry->d_name);
        }
        closedir(directory);
        return r;
}

/* check_sight() - under hidepid= (or ProtectProc=) other users' processes are not listed; then every scan would find
 * nothing and say so in good faith. Process 1 is everyone's test: it is always there. */
static int check_sight(int proc_fd) {
        struct stat st;

        if (fstatat(proc_fd, "1", &st, AT_SYMLINK_NOFOLLOW) == 0)
                return 0;
        return errno == ENOENT || errno == EPERM ? -EACCES : -errno;
}

static int compare_text_then_age(const char *a_text, const char *b_text, const struct driver_process *a,
                                 const struct driver_process *b) {
        int order = strcmp(a_text, b_text);

        if (order != 0)
                return order;
        if (a->found.start_ticks != b->found.start_ticks)
                return a->found.start_ticks > b->found.start_ticks ? -1 : 1;
        return a->found.pid > b->found.pid ? -1 : a->found.pid < b->found.pid ? 1 : 0;
}

static int compare_by_driver(const void *a, const void *b) {
        const struct driver_process *x = a, *y = b;

        return compare_text_then_age(x->found.driver_id, y->found.driver_id, x, y);
}

/* Within a job: newest first. The order is one of facts that never change, since driver_match() goes on behind a process
 * that an earlier scan saw. */
static int compare_by_job(const void *a, const void *b) {
        const struct driver_process *x = a, *y = b;

        return compare_text_then_age(x->found.job_id, y->found.job_id, x, y);
}

/* mark_contested() - a driver id under two job ids is nobody's, until one of them is gone. */
static void mark_contested(struct driver_process *processes, size_t count) {
        for (size_t first = 0, next; first < count; first = next) {
                bool contested = false;

                for (next = first + 1;
                     next < count && strcmp(processes[next].found.driver_id, processes[first].found.driver_id) == 0;
                     next++)
                        contested |= strcmp(processes[next].found.job_id, processes[first].found.job_id) != 0;
                for (size_t i = first; i < next; i++)
                        processes[i].contested = contested;
        }
}

static void sort_table(struct driver_table *table) {
        if (table->count == 0)
                return;
        qsort(table->processes, table->count, sizeof(*table->processes), compare_by_driver);
        mark_contested(table->processes, table->count);
        qsort(table->processes, table->count, sizeof(*table->processes), compare_by_job);
}

static void shrink(struct buffer *bytes) {
        if (bytes->allocated > BYTES_KEPT)
                buffer_deinit(bytes);
}

static void begin(struct pass *pass) {
        struct driver *driver = pass->driver;
        int r = driver_place_look(driver, &pass->place);

        pass->owner_known = driver->driver_uid >= 0 || r == 0;
        pass->owner = driver->driver_uid >= 0 ? (uid_t)driver->driver_uid : pass->place.owner;
}

static int run(struct pass *pass) {
        int r;

        pass->table.mentions = calloc(DRIVER_MENTIONS_MAX, sizeof(*pass->table.mentions));
        if (!pass->table.mentions)
                return -ENOMEM;
        r = check_sight(pass->driver->proc_fd);
        if (r < 0)
                return r;
        begin(pass);
        return scan_entries(pass);
}

static uint64_t monotonic_usec(void) {
        struct timespec now;

        clock_gettime(CLOCK_MONOTONIC, &now);
        return (uint64_t)now.tv_sec * USEC_PER_SEC + (uint64_t)now.tv_nsec / 1000;
}

int driver_scan(struct driver *driver) {
        _cleanup_(pass_deinit) struct pass pass = {.driver = driver, .place = {.fd = -1}};
        const uint64_t begin_usec = monotonic_usec();
        int r;

        driver_watch_check(driver->watch);
        r = run(&pass);
        shrink(&driver->argv_bytes);
        shrink(&driver->parent_bytes);
        metrics_add(METRICS_SCANS, NULL, 1);
        metrics_observe_usec(METRICS_SCAN_SECONDS, monotonic_usec() - begin_usec);
        if (r < 0)
                return r;
        sort_table(&pass.table);
        metrics_set(METRICS_SCAN_PROCESSES, NULL, (double)pass.table.size);
        driver_table_deinit(&driver->table);
        driver->table = pass.table;
        pass.table = (struct driver_table){0};
        driver_kin_list_sort(&driver->table.kin);
        driver_kin_note_all(driver);
        return 0;
}
