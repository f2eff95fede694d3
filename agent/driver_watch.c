/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver_watch: see a driver start
 *
 * A Worker makes a driver's directory some 150 ms before its process, and writes the head of its `stderr` just
 * when the process has started (DriverRunner). So a new directory in the work directory wakes the agent, is
 * watched for that file, and wakes it again when the file is there; then its watch has done its duty. Wakes are
 * folded into one call per turn of the loop.
 *
 * This is a hint, never a proof: what is missed (a queue that overflowed, a network file system, a supervised
 * driver that starts again in its old directory) is found by the slow scans. So no trouble here is an error of
 * the daemon; it is shown in the work directory's status.
 *
 * The directory may come later than we, be removed and made again, or be another one after a link was turned. While
 * it is not there, its nearest existing ancestor is watched. inotify follows inodes, not names: a name on the way
 * that changes above what is watched is seen by driver_watch_check() at the next scan.
 */
#include "driver_internal.h"
#include "event.h"

#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/stat.h>

#define NEW_DIRECTORIES_MAX 64 /* new driver directories watched at once; the oldest goes first */
#define ARM_ATTEMPTS_MAX 8     /* races between looking and watching in one go */
#define READS_PER_TURN_MAX 16  /* buffers of events in one turn; the rest waits for the next */
#define START_FILE "stderr"

#define WORK_MASK (IN_CREATE | IN_MOVED_TO | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR)
#define ANCESTOR_MASK (IN_CREATE | IN_MOVED_TO | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR)
#define NEW_MASK (IN_CREATE | IN_MOVED_TO | IN_ONLYDIR | IN_DONT_FOLLOW)

struct new_directory {
        int wd; /* -1: free */
        uint64_t order;
};

struct driver_watch {
        struct driver *driver;
        int fd;
        int work_wd;                /* the work directory, or its nearest ancestor; -1: none */
        bool work_there;            /* work_wd is the work directory itself */
        char awaited[NAME_MAX + 1]; /* of an ancestor: the name that must come there */
        dev_t device;               /* of what work_wd watches */
        ino_t inode;
        struct new_directory new_directories[NEW_DIRECTORIES_MAX];
        uint64_t next_order;
        int trouble; /* -errno of the last attempt to watch; 0 */
        struct event_source *source;
        struct event_source *deferred;
        int (*wake)(void *userdata);
        void *userdata;
};

static int call_wake(void *userdata) {
        struct driver_watch *watch = userdata;

        return watch->wake(watch->userdata);
}

static void schedule_wake(struct driver_watch *watch) {
        if (watch->wake)
                event_deferred_schedule(watch->deferred);
}

/* ---- new driver directories --------------------------------------------------------------------------- */

static void forget_new(struct driver_watch *watch, struct new_directory *directory) {
        if (directory->wd >= 0)
                inotify_rm_watch(watch->fd, directory->wd);
        directory->wd = -1;
}

static void forget_all_new(struct driver_watch *watch) {
        for (size_t i = 0; i < NEW_DIRECTORIES_MAX; i++)
                forget_new(watch, &watch->new_directories[i]);
}

static struct new_directory *find_new(struct driver_watch *watch, int wd) {
        for (size_t i = 0; i < NEW_DIRECTORIES_MAX; i++)
                if (watch->new_directories[i].wd == wd)
                        return &watch->new_directories[i];
        return NULL;
}

/* free_slot() - an unused one, else the oldest. */
static struct new_directory *free_slot(struct driver_watch *watch) {
        struct new_directory *slot = &watch->new_directories[0];

        for (size_t i = 0; i < NEW_DIRECTORIES_MAX; i++) {
                struct new_directory *other = &watch->new_directories[i];

                if (other->wd < 0)
                        return other;
                if (other->order < slot->order)
                        slot = other;
        }
        forget_new(watch, slot);
        return slot;
}

/* watch_new() - wait for the start of the driver whose directory has just been made. */
static void watch_new(struct driver_watch *watch, const char *name) {
        char path[PATH_MAX];
        struct new_directory *slot;
        struct stat st;
        size_t size;
        int wd;

        if ((size_t)snprintf(path, sizeof(path), "%s/%s", watch->driver->work_directory, name) >= sizeof(path))
                return;
        wd = inotify_add_watch(watch->fd, path, NEW_MASK);
        if (wd < 0 || wd == watch->work_wd || find_new(watch, wd))
                return;
        slot = free_slot(watch);
        *slot = (struct new_directory){.wd = wd, .order = watch->next_order++};
        /* It may have started before the watch was there; the wake of the new directory covers that. */
        size = strlen(path);
        if ((size_t)snprintf(path + size, sizeof(path) - size, "/" START_FILE) < sizeof(path) - size &&
            lstat(path, &st) == 0)
                forget_new(watch, slot);
}

/* ---- the work directory ----------------------------------------------------------------------------------- */

static void disarm(struct driver_watch *watch) {
        if (watch->work_wd >= 0)
                inotify_rm_watch(watch->fd, watch->work_wd);
        watch->work_wd = -1;
        watch->work_there = false;
        forget_all_new(watch);
}

/* cut_last_element() - "/a/b" to "/a", "/a" to "/". False for "/". */
static bool cut_last_element(char *path) {
        char *slash = strrchr(path, '/');

        if (!slash || strcmp(path, "/") == 0)
                return false;
        slash[slash == path ? 1 : 0] = 0;
        return true;
}

/* try_path() - watch this directory. 0; -errno. */
static int try_path(struct driver_watch *watch, const char *path, uint32_t mask, int *ret_wd) {
        struct stat st;
        int wd = inotify_add_watch(watch->fd, path, mask);

        if (wd < 0)
                return -errno;
        if (stat(path, &st) < 0) {
                int r = -errno;

                inotify_rm_watch(watch->fd, wd);
                return r;
        }
        watch->device = st.st_dev;
        watch->inode = st.st_ino;
        *ret_wd = wd;
        return 0;
}

static bool is_missing(int error) {
        return error == -ENOENT || error == -ENOTDIR || error == -EACCES || error == -ELOOP;
}

/* note_awaited() - the element of the work directory's path that stands behind `ancestor`. */
static void note_awaited(struct driver_watch *watch, const char *ancestor) {
        const char *next = watch->driver->work_directory + strlen(ancestor);
        size_t size;

        next += strspn(next, "/");
        size = strcspn(next, "/");
        snprintf(watch->awaited, sizeof(watch->awaited), "%.*s", (int)base_min_u64(size, NAME_MAX), next);
}

/* try_ancestor() - watch the nearest directory above that can be. */
static int try_ancestor(struct driver_watch *watch, int *ret_wd) {
        char path[PATH_MAX];
        int r = -ENOENT;

        if (!base_text_copy(path, sizeof(path), watch->driver->work_directory))
                return -ENAMETOOLONG;
        while (is_missing(r) && cut_last_element(path)) {
                r = try_path(watch, path, ANCESTOR_MASK, ret_wd);
                note_awaited(watch, path);
        }
        return r;
}

/* arm() - watch the work directory, else its nearest ancestor. Whatever came before the watch was there is looked
 * for after it: the loop ends when nothing changed between the two. */
static void arm(struct driver_watch *watch) {
        disarm(watch);
        for (unsigned attempt = 0; attempt < ARM_ATTEMPTS_MAX; attempt++) {
                int wd = -1, r;

                r = try_path(watch, watch->driver->work_directory, WORK_MASK, &wd);
                watch->work_there = r == 0;
                if (is_missing(r))
                        r = try_ancestor(watch, &wd);
                watch->trouble = r;
                if (r < 0)
                        return;
                if (wd == watch->work_wd)
                        return; /* the same as the last time round: nothing moved */
                if (watch->work_wd >= 0)
                        inotify_rm_watch(watch->fd, watch->work_wd);
                watch->work_wd = wd;
                if (watch->work_there)
                        return;
        }
}

void driver_watch_check(struct driver_watch *watch) {
        struct stat st;
        bool there;

        if (watch->fd < 0)
                return;
        there = stat(watch->driver->work_directory, &st) == 0 && S_ISDIR(st.st_mode);
        if (there == watch->work_there && watch->work_wd >= 0 &&
            (!there || (st.st_dev == watch->device && st.st_ino == watch->inode)))
                return;
        arm(watch);
}

const char *driver_watch_trouble(const struct driver_watch *watch) {
        if (watch->trouble == 0)
                return NULL;
        return watch->trouble == -ENOSPC   ? "no inotify watches left (fs.inotify.max_user_watches)"
               : watch->trouble == -EMFILE ? "no inotify instances left (fs.inotify.max_user_instances)"
                                           : strerrordesc_np(-watch->trouble);
}

/* ---- events ------------------------------------------------------------------------------------------------ */

/* on_work_event() - in the work directory itself. */
static void on_work_event(struct driver_watch *watch, uint32_t mask, const char *name) {
        if (mask & (IN_DELETE_SELF | IN_MOVE_SELF | IN_IGNORED | IN_UNMOUNT)) {
                if (mask & IN_IGNORED)
                        watch->work_wd = -1;
                arm(watch);
                schedule_wake(watch);
                return;
        }
        if (!(mask & IN_ISDIR))
                return;
        watch_new(watch, name);
        schedule_wake(watch);
}

/* on_ancestor_event() - something moved on the way to the work directory. */
static void on_ancestor_event(struct driver_watch *watch, uint32_t mask, const char *name) {
        if (*name && strcmp(name, watch->awaited) != 0)
                return; /* an ancestor may be a busy place, like /tmp */
        if (mask & IN_IGNORED)
                watch->work_wd = -1;
        arm(watch);
        if (watch->work_there)
                schedule_wake(watch);
}

/* on_new_event() - in a new driver directory. A directory in it means that it is an application's, with one
 * directory for each executor, and that no driver will start there. */
static void on_new_event(struct driver_watch *watch, struct new_directory *directory, uint32_t mask, const char *name) {
        if (mask & IN_IGNORED) {
                directory->wd = -1;
        } else if (strcmp(name, START_FILE) == 0) {
                forget_new(watch, directory);
                schedule_wake(watch);
        } else if (mask & IN_ISDIR) {
                forget_new(watch, directory);
        }
}

static void on_event(struct driver_watch *watch, const struct inotify_event *event) {
        const char *name = event->len > 0 ? event->name : "";
        struct new_directory *directory;

        if (event->mask & IN_Q_OVERFLOW) {
                arm(watch);
                schedule_wake(watch);
        } else if (event->wd >= 0 && event->wd == watch->work_wd) {
                if (watch->work_there)
                        on_work_event(watch, event->mask, name);
                else
                        on_ancestor_event(watch, event->mask, name);
        } else if (event->wd >= 0 && (directory = find_new(watch, event->wd))) {
                on_new_event(watch, directory, event->mask, name);
        }
}

static int on_readable(uint32_t epoll_events, void *userdata) {
        _Alignas(struct inotify_event) char bytes[16 * (sizeof(struct inotify_event) + NAME_MAX + 1)];
        struct driver_watch *watch = userdata;

        (void)epoll_events;
        for (unsigned i = 0; i < READS_PER_TURN_MAX; i++) {
                ssize_t size = read(watch->fd, bytes, sizeof(bytes));

                if (size < 0)
                        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
                for (size_t at = 0; at + sizeof(struct inotify_event) <= (size_t)size;) {
                        const struct inotify_event *event = (const struct inotify_event *)(bytes + at);

                        on_event(watch, event);
                        at += sizeof(*event) + event->len;
                }
        }
        return 0;
}

/* ---- construction -------------------------------------------------------------------------------------------- */

int driver_watch_new(struct driver *driver, int (*wake)(void *userdata), void *userdata, struct driver_watch **ret) {
        _cleanup_(driver_watch_free_pointer) struct driver_watch *watch = calloc(1, sizeof(*watch));
        int r;

        if (!watch)
                return -ENOMEM;
        *watch = (struct driver_watch){.driver = driver, .fd = -1, .work_wd = -1, .wake = wake, .userdata = userdata};
        for (size_t i = 0; i < NEW_DIRECTORIES_MAX; i++)
                watch->new_directories[i].wd = -1;
        r = event_add_deferred(driver->event, "driver-wake", call_wake, watch, &watch->deferred);
        if (r < 0)
                return r;
        watch->fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
        if (watch->fd < 0) {
                watch->trouble = -errno; /* the slow scans remain */
                *ret = TAKE(watch);
                return 0;
        }
        r = event_add_io(driver->event, "driver-watch", watch->fd, EPOLLIN, on_readable, watch, &watch->source);
        if (r < 0)
                return r;
        arm(watch);
        *ret = TAKE(watch);
        return 0;
}

struct driver_watch *driver_watch_free(struct driver_watch *watch) {
        if (!watch)
                return NULL;
        event_source_free(watch->source);
        event_source_free(watch->deferred);
        if (watch->fd >= 0)
                close(watch->fd);
        free(watch);
        return NULL;
}
