/* SPDX-License-Identifier: Apache-2.0 */
/*
 * faults: a library for LD_PRELOAD that makes the n-th call fail, or the process die beside it
 *
 * It stands before libc's functions that allocate, and before those that can fail for the want of a disk, a descriptor or
 * memory. Each call is counted by its kind and by the module that made it: the mapped object that the return address
 * lies in. (A tail call shows the caller's caller; that is the same module, unless one module's exported function hands
 * straight on to libc.) Calls that libc makes of itself are not seen; for directories the functions around them are.
 *
 * What to do is read from a file that is mapped shared, named by FAULTS_PAGE (faults.py has the same layout); what was
 * seen is written there, so it outlives SIGKILL. The page also gets the stack of the call that was hit, and at the end
 * what is left: memory by the module that allocated it, and descriptors. FAULTS_STORE names the state directory: calls
 * on its files can be chosen alone.
 *
 * Traps: dlsym() may allocate before we know where to, hence the small arena of the start; nothing here may allocate
 * after that, since it would count itself.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <unistd.h>

/* ---- the page: keep in step with faults.py ------------------------------------------------------------------------- */

enum kind {
        KIND_ALLOCATE, KIND_OPEN, KIND_READ, KIND_WRITE, KIND_SYNC, KIND_FILE, KIND_PIDFD, KIND_INOTIFY, KIND_EPOLL, KIND_SOCKET,
        KIND_CONNECT, KIND_TIMER, KIND_DIRECTORY, KIND_EVENTFD, KIND_THREAD, KIND_MAX,
};

enum module {
        MODULE_OWN, MODULE_SQLITE, MODULE_NGHTTP2, MODULE_PROTOBUF, MODULE_JSON, MODULE_INI, MODULE_SYSTEMD, MODULE_CURL,
        MODULE_CRYPTO, MODULE_LIBC, MODULE_OTHER, MODULE_MAX,
};

enum action { ACTION_COUNT, ACTION_FAIL, ACTION_DIE_BEFORE, ACTION_DIE_AFTER };

#define FRAMES_MAX 32
#define TRACE_MAX (1 << 17)

struct frame {
        char object[40];
        uint64_t offset;
};

struct page {
        uint32_t action, kinds, modules, store_only; /* what to do: the kinds and modules are masks */
        uint64_t nth, times;                         /* from 1; how many calls in a row fail */
        int32_t error;
        uint32_t ended;                              /* from here on what was seen */
        uint64_t count;                              /* of the chosen calls */
        uint64_t counts[KIND_MAX][MODULE_MAX];
        uint64_t live[MODULE_MAX];                   /* allocations at the end */
        uint32_t hits, hit_kind, hit_module, frames, leak_frames, descriptors;
        char call[32];
        struct frame stack[FRAMES_MAX];
        struct frame leaks[FRAMES_MAX];              /* who made those that live at the end */
        uint32_t leak_modules[FRAMES_MAX];
        char left[2048];                             /* the open descriptors at the end */
        uint64_t trace[TRACE_MAX];                   /* of each chosen call: kind, module, and where it was made */
};

static struct page nothing = { .nth = UINT64_MAX };
static struct page *page = &nothing;

/* ---- modules ------------------------------------------------------------------------------------------------------- */

#define OBJECTS_MAX 96

static struct object {
        uintptr_t begin, end, base;
        enum module module;
        char name[40];
} objects[OBJECTS_MAX];
static size_t object_count;

static enum module module_of_name(const char *name) {
        static const struct {
                const char *part;
                enum module module;
        } names[] = {
                { "libsqlite3", MODULE_SQLITE }, { "libnghttp2", MODULE_NGHTTP2 }, { "libprotobuf-c", MODULE_PROTOBUF },
                { "libjson-c", MODULE_JSON },    { "libinih", MODULE_INI },        { "libsystemd", MODULE_SYSTEMD },
                { "libcurl", MODULE_CURL },      { "libcrypto", MODULE_CRYPTO },   { "libssl", MODULE_CRYPTO },
                { "libc.so", MODULE_LIBC },
        };

        if (!*name)
                return MODULE_OWN;
        for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
                if (strstr(name, names[i].part))
                        return names[i].module;
        return MODULE_OTHER;
}

static int note_object(struct dl_phdr_info *info, size_t size, void *userdata) {
        const char *slash = strrchr(info->dlpi_name, '/');

        (void)size;
        (void)userdata;
        for (int i = 0; i < info->dlpi_phnum && object_count < OBJECTS_MAX; i++) {
                const ElfW(Phdr) *header = &info->dlpi_phdr[i];
                struct object *object = &objects[object_count];

                if (header->p_type != PT_LOAD || !(header->p_flags & PF_X))
                        continue;
                object->base = info->dlpi_addr;
                object->begin = info->dlpi_addr + header->p_vaddr;
                object->end = object->begin + header->p_memsz;
                object->module = module_of_name(info->dlpi_name);
                (void)snprintf(object->name, sizeof object->name, "%s", slash ? slash + 1 : info->dlpi_name);
                object_count++;
        }
        return 0;
}

static const struct object *object_of(const void *address) {
        uintptr_t at = (uintptr_t)address;

        for (size_t i = 0; i < object_count; i++)
                if (at >= objects[i].begin && at < objects[i].end)
                        return &objects[i];
        return NULL;
}

static enum module module_of(const void *address) {
        const struct object *object = object_of(address);

        return object ? object->module : MODULE_OTHER;
}

static void note_frame(struct frame *frame, const void *address) {
        const struct object *object = object_of(address);

        (void)memset(frame, 0, sizeof *frame);
        if (!object)
                return;
        (void)memcpy(frame->object, object->name, sizeof frame->object);
        frame->offset = (uintptr_t)address - object->base;
}

/* ---- the decision -------------------------------------------------------------------------------------------------- */

static void note_hit(enum kind kind, enum module module, const char *call) {
        void *addresses[FRAMES_MAX];
        int count;

        page->hit_kind = kind;
        page->hit_module = module;
        (void)snprintf(page->call, sizeof page->call, "%s", call);
        count = backtrace(addresses, FRAMES_MAX);
        for (int i = 0; i < count; i++)
                note_frame(&page->stack[i], addresses[i]);
        page->frames = (uint32_t)count;
}

static void die(void) {
        (void)syscall(SYS_kill, getpid(), SIGKILL);
}

/* What became of a call: `fails`: errno is set, it must not be made; `dies`: call leave() after it. */
struct verdict {
        bool fails, dies;
};

static struct verdict judge(enum kind kind, const void *address, const char *call, bool store) {
        static _Thread_local bool inside; /* backtrace() may allocate, in its first call in a thread */
        struct verdict verdict = { 0 };
        enum module module = module_of(address);
        uint64_t n;

        if (inside)
                return verdict;
        __atomic_fetch_add(&page->counts[kind][module], 1, __ATOMIC_RELAXED);
        if (!(page->kinds >> kind & 1) || !(page->modules >> module & 1) || (page->store_only && !store))
                return verdict;
        n = __atomic_add_fetch(&page->count, 1, __ATOMIC_RELAXED);
        if (n <= TRACE_MAX && page != &nothing)
                page->trace[n - 1] = (uint64_t)kind << 56 | (uint64_t)module << 48 | ((uintptr_t)address & UINT32_MAX);
        if (page->action == ACTION_COUNT || n < page->nth || n - page->nth >= page->times)
                return verdict;
        inside = true;
        if (__atomic_fetch_add(&page->hits, 1, __ATOMIC_RELAXED) == 0)
                note_hit(kind, module, call);
        inside = false;
        if (page->action == ACTION_DIE_BEFORE)
                die();
        verdict.dies = page->action == ACTION_DIE_AFTER;
        verdict.fails = page->action == ACTION_FAIL;
        if (verdict.fails)
                errno = page->error;
        return verdict;
}

static void leave(struct verdict verdict) {
        if (verdict.dies)
                die();
}

/* ---- the real functions -------------------------------------------------------------------------------------------- */

/* For what is allocated while dlsym() looks for malloc(), and until AddressSanitizer's, which may stand behind us, is ready. */
static _Alignas(16) char arena[1 << 20];
static size_t arena_used;
static bool begun;
void __asan_init(void) __attribute__((weak));

static void *real(void **slot, const char *name) {
        if (!*slot) {
                *slot = dlsym(RTLD_NEXT, name);
                if (!*slot)
                        abort();
        }
        return *slot;
}

#define REAL(name)                                                                         \
        ({                                                                                 \
                static void *slot_;                                                        \
                (__typeof__(&name))real(&slot_, #name);                                    \
        })
#define HERE __builtin_return_address(0)

/* ---- memory -------------------------------------------------------------------------------------------------------- */

#define LIVE_MAX (1u << 18)

static struct live {
        void *pointer;
        const void *address;
} lives[LIVE_MAX];
static int live_lock;
static bool started;

static size_t live_slot(const void *pointer) {
        return (size_t)(((uintptr_t)pointer >> 4) * UINT64_C(0x9e3779b97f4a7c15) >> 46) & (LIVE_MAX - 1);
}

static void lock(void) {
        while (__atomic_exchange_n(&live_lock, 1, __ATOMIC_ACQUIRE))
                ;
}

static void unlock(void) {
        __atomic_store_n(&live_lock, 0, __ATOMIC_RELEASE);
}

static void *live_add(void *pointer, const void *address) {
        if (!pointer || !started)
                return pointer;
        lock();
        for (size_t i = live_slot(pointer), left = LIVE_MAX; left > 0; left--, i = (i + 1) & (LIVE_MAX - 1)) {
                if (lives[i].pointer)
                        continue;
                lives[i] = (struct live){ pointer, address };
                break;
        }
        unlock();
        return pointer;
}

/* Open addressing with backward shift: what follows moves up, so that no mark of the dead is needed. */
static void live_remove_at(size_t i) {
        size_t hole = i;

        for (size_t j = (i + 1) & (LIVE_MAX - 1); lives[j].pointer; j = (j + 1) & (LIVE_MAX - 1)) {
                size_t home = live_slot(lives[j].pointer);

                if (((j - home) & (LIVE_MAX - 1)) < ((j - hole) & (LIVE_MAX - 1)))
                        continue;
                lives[hole] = lives[j];
                hole = j;
        }
        lives[hole].pointer = NULL;
}

static void live_remove(void *pointer) {
        if (!pointer || !started)
                return;
        lock();
        for (size_t i = live_slot(pointer); lives[i].pointer; i = (i + 1) & (LIVE_MAX - 1)) {
                if (lives[i].pointer != pointer)
                        continue;
                live_remove_at(i);
                break;
        }
        unlock();
}

static void *(*real_malloc)(size_t);
static void *(*real_calloc)(size_t, size_t);
static void *(*real_realloc)(void *, size_t);
static void (*real_free)(void *);

static void *arena_allocate(size_t size) {
        size_t at = arena_used;

        if (size > sizeof arena - at)
                abort();
        arena_used = (at + size + 15) & ~(size_t)15;
        return arena + at;
}

static bool in_arena(const void *pointer) {
        return (const char *)pointer >= arena && (const char *)pointer < arena + sizeof arena;
}

static void find_memory(void) {
        static bool looking;

        if (looking)
                return;
        looking = true;
        real_free = (void (*)(void *))dlsym(RTLD_NEXT, "free");
        real_calloc = (void *(*)(size_t, size_t))dlsym(RTLD_NEXT, "calloc");
        real_realloc = (void *(*)(void *, size_t))dlsym(RTLD_NEXT, "realloc");
        real_malloc = (void *(*)(size_t))dlsym(RTLD_NEXT, "malloc");
}

static bool is_early(void) {
        if (!real_malloc)
                find_memory();
        return !real_malloc || (!begun && __asan_init);
}

static bool refused(const void *address, const char *call) {
        return judge(KIND_ALLOCATE, address, call, false).fails;
}

void *malloc(size_t size) {
        if (is_early())
                return arena_allocate(size);
        return refused(HERE, "malloc") ? NULL : live_add(real_malloc(size), HERE);
}

void *calloc(size_t count, size_t size) {
        if (is_early())
                return arena_allocate(count * size); /* zero: it is used once */
        return refused(HERE, "calloc") ? NULL : live_add(real_calloc(count, size), HERE);
}

static void *reallocate(void *pointer, size_t size, const void *address) {
        void *fresh;

        if (in_arena(pointer)) {
                fresh = malloc(size);
                if (fresh)
                        (void)memcpy(fresh, pointer, size < (size_t)(arena + sizeof arena - (char *)pointer) ?
                                                             size : (size_t)(arena + sizeof arena - (char *)pointer));
                return fresh;
        }
        live_remove(pointer); /* before: another thread may get the address at once */
        fresh = real_realloc(pointer, size);
        if (!fresh && size > 0)
                live_add(pointer, address);
        return live_add(fresh, address);
}

void *realloc(void *pointer, size_t size) {
        if (is_early() && !pointer)
                return arena_allocate(size);
        return refused(HERE, "realloc") ? NULL : reallocate(pointer, size, HERE);
}

void *reallocarray(void *pointer, size_t count, size_t size) {
        size_t all;

        if (__builtin_mul_overflow(count, size, &all)) {
                errno = ENOMEM;
                return NULL;
        }
        return refused(HERE, "reallocarray") ? NULL : reallocate(pointer, all, HERE);
}

void free(void *pointer) {
        int saved = errno;

        if (!pointer || in_arena(pointer))
                return;
        live_remove(pointer);
        real_free(pointer);
        errno = saved;
}

static char *duplicate(const char *text, size_t length, const void *address) {
        char *copy = is_early() ? arena_allocate(length + 1) : real_malloc(length + 1);

        if (!copy)
                return NULL;
        (void)memcpy(copy, text, length);
        copy[length] = '\0';
        return live_add(copy, address);
}

char *strdup(const char *text) {
        return refused(HERE, "strdup") ? NULL : duplicate(text, strlen(text), HERE);
}

char *strndup(const char *text, size_t size) {
        return refused(HERE, "strndup") ? NULL : duplicate(text, strnlen(text, size), HERE);
}

int posix_memalign(void **ret, size_t alignment, size_t size) {
        int r;

        if (refused(HERE, "posix_memalign"))
                return ENOMEM;
        r = REAL(posix_memalign)(ret, alignment, size);
        if (r == 0)
                live_add(*ret, HERE);
        return r;
}

void *aligned_alloc(size_t alignment, size_t size) {
        return refused(HERE, "aligned_alloc") ? NULL : live_add(REAL(aligned_alloc)(alignment, size), HERE);
}

/* ---- files of the store -------------------------------------------------------------------------------------------- */

#define FDS_MAX 4096

static bool store_fd[FDS_MAX];
static char store_path[4096];
static size_t store_path_size;

static bool is_store_fd(int fd) {
        return fd >= 0 && fd < FDS_MAX && store_fd[fd];
}

static bool is_store_path(const char *path) {
        return store_path_size > 0 && strncmp(path, store_path, store_path_size) == 0;
}

static bool is_store_at(int directory, const char *path) {
        return is_store_path(path) || (path[0] != '/' && is_store_fd(directory));
}

static int opened(int fd, bool store) {
        if (fd >= 0 && fd < FDS_MAX)
                store_fd[fd] = store;
        return fd;
}

static mode_t mode_argument(int flags, va_list arguments) {
        return flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
}

#define CALL(kind, name, store, failure, ...)                                              \
        ({                                                                                 \
                struct verdict verdict_ = judge(kind, HERE, #name, store);                 \
                __typeof__(name(__VA_ARGS__)) result_ = failure;                           \
                if (!verdict_.fails)                                                       \
                        result_ = REAL(name)(__VA_ARGS__);                                 \
                leave(verdict_);                                                           \
                result_;                                                                   \
        })

#define OPEN(name)                                                                         \
        int name(const char *path, int flags, ...) {                                       \
                va_list arguments;                                                         \
                mode_t mode;                                                               \
                va_start(arguments, flags);                                                \
                mode = mode_argument(flags, arguments);                                    \
                va_end(arguments);                                                         \
                return opened(CALL(KIND_OPEN, name, is_store_path(path), -1, path, flags, mode), is_store_path(path)); \
        }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                       \
        int name(int directory, const char *path, int flags, ...) {                        \
                bool store = is_store_at(directory, path);                                 \
                va_list arguments;                                                         \
                mode_t mode;                                                               \
                va_start(arguments, flags);                                                \
                mode = mode_argument(flags, arguments);                                    \
                va_end(arguments);                                                         \
                return opened(CALL(KIND_OPEN, name, store, -1, directory, path, flags, mode), store); \
        }
OPENAT(openat)
OPENAT(openat64)

int __open64_2(const char *path, int flags);
int __open64_2(const char *path, int flags) {
        return opened(CALL(KIND_OPEN, __open64_2, is_store_path(path), -1, path, flags), is_store_path(path));
}

int __openat64_2(int directory, const char *path, int flags);
int __openat64_2(int directory, const char *path, int flags) {
        bool store = is_store_at(directory, path);

        return opened(CALL(KIND_OPEN, __openat64_2, store, -1, directory, path, flags), store);
}

FILE *fopen(const char *path, const char *mode) {
        return CALL(KIND_OPEN, fopen, is_store_path(path), NULL, path, mode);
}

FILE *fopen64(const char *path, const char *mode) {
        return CALL(KIND_OPEN, fopen64, is_store_path(path), NULL, path, mode);
}

int close(int fd) {
        if (fd >= 0 && fd < FDS_MAX)
                store_fd[fd] = false;
        return REAL(close)(fd);
}

ssize_t read(int fd, void *bytes, size_t size) {
        return CALL(KIND_READ, read, is_store_fd(fd), -1, fd, bytes, size);
}

ssize_t pread(int fd, void *bytes, size_t size, off_t at) {
        return CALL(KIND_READ, pread, is_store_fd(fd), -1, fd, bytes, size, at);
}

ssize_t pread64(int fd, void *bytes, size_t size, off64_t at) {
        return CALL(KIND_READ, pread64, is_store_fd(fd), -1, fd, bytes, size, at);
}

ssize_t readlinkat(int directory, const char *restrict path, char *restrict text, size_t size) {
        return CALL(KIND_READ, readlinkat, false, -1, directory, path, text, size);
}

ssize_t recv(int fd, void *bytes, size_t size, int flags) {
        return CALL(KIND_READ, recv, false, -1, fd, bytes, size, flags);
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags) {
        return CALL(KIND_READ, recvmsg, false, -1, fd, message, flags);
}

ssize_t write(int fd, const void *bytes, size_t size) {
        return CALL(KIND_WRITE, write, is_store_fd(fd), -1, fd, bytes, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
        return CALL(KIND_WRITE, writev, is_store_fd(fd), -1, fd, parts, count);
}

ssize_t pwrite(int fd, const void *bytes, size_t size, off_t at) {
        return CALL(KIND_WRITE, pwrite, is_store_fd(fd), -1, fd, bytes, size, at);
}

ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t at) {
        return CALL(KIND_WRITE, pwrite64, is_store_fd(fd), -1, fd, bytes, size, at);
}

ssize_t send(int fd, const void *bytes, size_t size, int flags) {
        return CALL(KIND_WRITE, send, false, -1, fd, bytes, size, flags);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
        return CALL(KIND_WRITE, sendmsg, false, -1, fd, message, flags);
}

int fsync(int fd) {
        return CALL(KIND_SYNC, fsync, is_store_fd(fd), -1, fd);
}

int fdatasync(int fd) {
        return CALL(KIND_SYNC, fdatasync, is_store_fd(fd), -1, fd);
}

int ftruncate(int fd, off_t size) {
        return CALL(KIND_FILE, ftruncate, is_store_fd(fd), -1, fd, size);
}

int ftruncate64(int fd, off64_t size) {
        return CALL(KIND_FILE, ftruncate64, is_store_fd(fd), -1, fd, size);
}

int unlink(const char *path) {
        return CALL(KIND_FILE, unlink, is_store_path(path), -1, path);
}

int unlinkat(int directory, const char *path, int flags) {
        return CALL(KIND_FILE, unlinkat, is_store_at(directory, path), -1, directory, path, flags);
}

int rename(const char *from, const char *to) {
        return CALL(KIND_FILE, rename, is_store_path(from), -1, from, to);
}

int renameat(int from_directory, const char *from, int to_directory, const char *to) {
        return CALL(KIND_FILE, renameat, is_store_at(from_directory, from), -1, from_directory, from, to_directory, to);
}

/* ---- the rest of the kernel ---------------------------------------------------------------------------------------- */

DIR *opendir(const char *path) {
        return CALL(KIND_DIRECTORY, opendir, false, NULL, path);
}

DIR *fdopendir(int fd) {
        return CALL(KIND_DIRECTORY, fdopendir, false, NULL, fd);
}

struct dirent *readdir(DIR *directory) {
        return CALL(KIND_DIRECTORY, readdir, false, NULL, directory);
}

struct dirent64 *readdir64(DIR *directory) {
        return CALL(KIND_DIRECTORY, readdir64, false, NULL, directory);
}

int inotify_init1(int flags) {
        return CALL(KIND_INOTIFY, inotify_init1, false, -1, flags);
}

int inotify_add_watch(int fd, const char *path, uint32_t mask) {
        return CALL(KIND_INOTIFY, inotify_add_watch, false, -1, fd, path, mask);
}

int epoll_create1(int flags) {
        return CALL(KIND_EPOLL, epoll_create1, false, -1, flags);
}

int epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event) {
        return operation == EPOLL_CTL_DEL ? REAL(epoll_ctl)(epoll, operation, fd, event) : /* it can't fail */
                                            CALL(KIND_EPOLL, epoll_ctl, false, -1, epoll, operation, fd, event);
}

int socket(int domain, int type, int protocol) {
        return CALL(KIND_SOCKET, socket, false, -1, domain, type, protocol);
}

int socketpair(int domain, int type, int protocol, int fds[2]) {
        return CALL(KIND_SOCKET, socketpair, false, -1, domain, type, protocol, fds);
}

int accept4(int fd, struct sockaddr *restrict address, socklen_t *restrict size, int flags) {
        return CALL(KIND_SOCKET, accept4, false, -1, fd, address, size, flags);
}

int connect(int fd, const struct sockaddr *address, socklen_t size) {
        return CALL(KIND_CONNECT, connect, false, -1, fd, address, size);
}

int timerfd_create(int clock, int flags) {
        return CALL(KIND_TIMER, timerfd_create, false, -1, clock, flags);
}

int timerfd_settime(int fd, int flags, const struct itimerspec *fresh, struct itimerspec *old) {
        return CALL(KIND_TIMER, timerfd_settime, false, -1, fd, flags, fresh, old);
}

int eventfd(unsigned value, int flags) {
        return CALL(KIND_EVENTFD, eventfd, false, -1, value, flags);
}

int signalfd(int fd, const sigset_t *signals, int flags) {
        return CALL(KIND_EVENTFD, signalfd, false, -1, fd, signals, flags);
}

int pthread_create(pthread_t *restrict thread, const pthread_attr_t *restrict attributes, void *(*run)(void *),
                   void *restrict userdata) {
        return CALL(KIND_THREAD, pthread_create, false, EAGAIN, thread, attributes, run, userdata);
}

/* Of what goes through syscall(2), pidfd_open() and pidfd_send_signal() can fail for us. */
long syscall(long number, ...) {
        va_list arguments;
        long a[6], r;
        struct verdict verdict = { 0 };

        va_start(arguments, number);
        for (size_t i = 0; i < 6; i++)
                a[i] = va_arg(arguments, long);
        va_end(arguments);
        if (number == SYS_pidfd_open || number == SYS_pidfd_send_signal)
                verdict = judge(KIND_PIDFD, HERE, number == SYS_pidfd_open ? "pidfd_open" : "pidfd_send_signal", false);
        if (verdict.fails)
                return -1;
        r = REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
        leave(verdict);
        return r;
}

/* ---- begin and end ------------------------------------------------------------------------------------------------- */

__attribute__((constructor)) static void begin(void) {
        const char *path = getenv("FAULTS_PAGE"), *store = getenv("FAULTS_STORE");
        void *addresses[4];
        void *mapped;
        int fd;

        (void)is_early();
        begun = true;
        if (!path)
                return;
        (void)backtrace(addresses, 4); /* it loads libgcc_s, which allocates */
        (void)dl_iterate_phdr(note_object, NULL);
        if (store)
                store_path_size = (size_t)snprintf(store_path, sizeof store_path, "%s", store);
        fd = REAL(open)(path, O_RDWR | O_CLOEXEC);
        if (fd < 0)
                abort();
        mapped = mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (mapped == MAP_FAILED)
                abort();
        (void)REAL(close)(fd);
        (void)unsetenv("LD_PRELOAD");
        started = true;
        page = mapped;
}

static void note_descriptors(void) {
        size_t used = 0;

        for (int fd = 3; fd < FDS_MAX; fd++) {
                char path[40], name[256];
                ssize_t size;
                int more;

                (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
                size = readlink(path, name, sizeof name - 1);
                if (size < 0)
                        continue;
                name[size] = '\0';
                page->descriptors++;
                more = snprintf(page->left + used, sizeof page->left - used, "%s\n", name);
                if (more > 0 && (size_t)more < sizeof page->left - used)
                        used += (size_t)more;
        }
}

__attribute__((destructor)) static void end(void) {
        if (page == &nothing)
                return;
        page->kinds = 0;
        note_descriptors();
        lock();
        for (size_t i = 0; i < LIVE_MAX; i++) {
                enum module module;

                if (!lives[i].pointer)
                        continue;
                module = module_of(lives[i].address);
                page->live[module]++;
                if (page->leak_frames < FRAMES_MAX && module <= MODULE_INI) {
                        page->leak_modules[page->leak_frames] = module;
                        note_frame(&page->leaks[page->leak_frames++], lives[i].address);
                }
        }
        unlock();
        page->ended = 1;
}
