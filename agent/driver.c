/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver: the door of the module: make it, and ask what the last scan saw
 *
 * The work is elsewhere: driver_argv.c and driver_stat.c read texts (pure), driver_proc.c reads one process's
 * files, driver_place.c checks paths, driver_scan.c makes the pass and the proof, driver_watch.c watches the work
 * directory, driver_hold.c keeps a proved process, driver_kin.c its descendants, driver_header.c reads what ended drivers left behind.
 *
 * The table is sorted by job id, best candidate first, so that a turn with 100,000 searching jobs costs as many
 * binary searches over a few hundred drivers and no hash to keep.
 */
#include "driver_internal.h"

#include <fcntl.h>
#include <sys/stat.h>

int driver_place_open(const struct driver *driver, struct driver_place *ret) {
        _cleanup_close_ int fd = open(driver->work_directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        bool readable = fd >= 0;
        struct stat st;

        /* A directory that can only be passed through is enough to prove a driver, not to watch for one. */
        if (fd < 0 && errno == EACCES)
                fd = open(driver->work_directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        if (fstat(fd, &st) < 0)
                return -errno;
        *ret = (struct driver_place){
                .fd = TAKE_FD(fd), .device = st.st_dev, .inode = st.st_ino, .owner = st.st_uid, .readable = readable};
        return 0;
}

void driver_place_close(struct driver_place *place) {
        base_close_pointer(&place->fd);
        place->fd = -1;
}

/* work_note() - remember for driver_work_directory_status() how opening it (0, -errno) went. */
static void work_note(struct driver *driver, int result) {
        if (result == 0)
                driver->work_status[0] = 0;
        else if (result == -ENOENT)
                base_text_copy(driver->work_status, sizeof(driver->work_status), "does not exist");
        else if (result == -EACCES)
                base_text_copy(driver->work_status, sizeof(driver->work_status), "no permission to read it");
        else if (result == -ENOTDIR)
                base_text_copy(driver->work_status, sizeof(driver->work_status), "is not a directory");
        else
                snprintf(driver->work_status, sizeof(driver->work_status), "can't be read: %s",
                         strerrordesc_np(-result));
}

int driver_place_look(struct driver *driver, struct driver_place *ret) {
        int r = driver_place_open(driver, ret);

        work_note(driver, r < 0 || ret->readable ? r : -EACCES);
        return r;
}

int driver_new(struct event *event, const struct driver_options *options, int (*wake)(void *userdata), void *userdata,
               struct driver **ret) {
        _cleanup_(driver_free_pointer) struct driver *driver = NULL;
        struct driver_place place = {.fd = -1};
        long ticks = sysconf(_SC_CLK_TCK);
        int r;

        if (!options->job_id_property || !*options->job_id_property || !options->work_directory ||
            options->work_directory[0] != '/')
                return -EINVAL;
        driver = calloc(1, sizeof(*driver));
        if (!driver)
                return -ENOMEM;
        driver->event = event;
        r = driver_kin_init(driver);
        if (r < 0)
                return r;
        driver->proc_fd = options->proc_fd;
        driver->driver_uid = options->driver_uid;
        driver->observe = options->observe;
        driver->ticks_per_second = ticks > 0 ? (uint64_t)ticks : 100;
        driver->argv_bytes = BUFFER_INIT(DRIVER_ARGV_MAX);
        driver->parent_bytes = BUFFER_INIT(DRIVER_ARGV_MAX);
        driver->work_directory = strdup(options->work_directory);
        driver->job_id_property = strdup(options->job_id_property);
        if (!driver->work_directory || !driver->job_id_property)
                return -ENOMEM;
        r = driver_watch_new(driver, wake, userdata, &driver->watch);
        if (r < 0)
                return r;
        driver_place_look(driver, &place);
        driver_place_close(&place);
        *ret = TAKE(driver);
        return 0;
}

struct driver *driver_free(struct driver *driver) {
        if (!driver)
                return NULL;
        driver_watch_free(driver->watch);
        driver_kin_deinit(driver);
        driver_table_deinit(&driver->table);
        buffer_deinit(&driver->argv_bytes);
        buffer_deinit(&driver->parent_bytes);
        free(driver->work_directory);
        free(driver->job_id_property);
        free(driver);
        return NULL;
}

uint32_t driver_scan_size(const struct driver *driver) {
        return driver->table.size;
}

uint32_t driver_count(const struct driver *driver) {
        uint32_t count = 0;

        for (size_t i = 0; i < driver->table.count; i++)
                count += driver->table.processes[i].found.job_id[0] != 0;
        return count;
}

/* find_first() - the first of the job's processes; NULL: none. */
static const struct driver_process *find_first(const struct driver_table *table, const char *job_id) {
        size_t low = 0, high = table->count;

        while (low < high) {
                size_t middle = low + (high - low) / 2;

                if (strcmp(table->processes[middle].found.job_id, job_id) < 0)
                        low = middle + 1;
                else
                        high = middle;
        }
        if (low == table->count || strcmp(table->processes[low].found.job_id, job_id) != 0)
                return NULL;
        return &table->processes[low];
}

/* is_behind() - does this process stand behind `after` in its job's order? See compare_by_job(). */
static bool is_behind(const struct driver_process *process, const struct driver_found *after) {
        const struct driver_found *found = &process->found;

        if (found->start_ticks != after->start_ticks)
                return found->start_ticks < after->start_ticks;
        return found->pid < after->pid;
}

enum driver_match driver_match(const struct driver *driver, const char *job_id, const struct driver_found *after,
                               struct driver_found *ret) {
        const struct driver_table *table = &driver->table;
        const struct driver_process *process, *contested = NULL;

        if (*job_id == 0) /* that is where drivers without a job id stand */
                return DRIVER_MATCH_NONE;
        process = find_first(table, job_id);
        for (; process && process < table->processes + table->count && strcmp(process->found.job_id, job_id) == 0; process++) {
                if (after && !is_behind(process, after))
                        continue;
                if (!process->contested) {
                        *ret = process->found;
                        return process->orphan ? DRIVER_MATCH_ORPHAN : DRIVER_MATCH_ONE;
                }
                contested = contested ? contested : process;
        }
        if (!contested)
                return DRIVER_MATCH_NONE;
        *ret = contested->found;
        return DRIVER_MATCH_CONTESTED;
}

bool driver_process_alive(const struct driver *driver, int32_t pid, uint64_t start_ticks) {
        struct driver_stat stat;

        int r;

        if (pid <= 0)
                return false;
        r = driver_proc_stat(driver->proc_fd, pid, &stat);
        if (r < 0) /* not to have been able to look is no proof of a death */
                return !driver_proc_vanished(r);
        return stat.pid == pid && stat.start_ticks == start_ticks && driver_stat_is_alive(&stat);
}

bool driver_directory_exists(const struct driver *driver, const char *driver_id) {
        _cleanup_close_ int fd = -1;
        struct stat st;

        if (!base_driver_id_is_valid(driver_id, strlen(driver_id)))
                return false;
        fd = open(driver->work_directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
        return fd >= 0 && fstatat(fd, driver_id, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode);
}

void driver_lookalikes(const struct driver *driver, const char *job_id,
                       void (*visit)(const struct driver_lookalike *lookalike, void *userdata), void *userdata) {
        const struct driver_table *table = &driver->table;
        int32_t last = 0;

        for (size_t i = 0; i < table->mention_count; i++) {
                const struct driver_mention *mention = &table->mentions[i];
                struct driver_lookalike lookalike = {.pid = mention->pid, .reason = mention->reason};

                if (mention->pid == last || !driver_argv_mention_is(mention->text, job_id))
                        continue;
                last = mention->pid;
                visit(&lookalike, userdata);
        }
}

const char *driver_work_directory_status(const struct driver *driver) {
        return driver->work_status[0] ? driver->work_status : driver_watch_trouble(driver->watch);
}
