/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bus: the local interface: sd-bus without a broker
 *
 * Each accepted socket is a D-Bus connection of its own on which we are the server, so nothing but this process
 * is needed: it works in a rescue shell and before dbus.service. busctl(1) asks every peer for
 * org.freedesktop.DBus.Hello first, hence that one method.
 *
 * sd-bus is driven through event.h (its descriptor, events and timeout), not attached to sd-event: the loop stays
 * behind one door and the tests' virtual clock works.
 *
 * The socket is open to every local user, so a peer is bounded in all it can cost: connections, replies it has
 * not read (sd-bus would queue a thousand), the loop's time, rows per reply, idle time, no descriptors.
 * Who may change things is decided by the kernel's word about the socket's peer at accept(2), never by anything
 * in a message.
 */
#include "bus_internal.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define COSTLY_USEC USEC_PER_MSEC /* a message that took longer makes the bus rest */
#define REST_FACTOR 4             /* this many times as long: a fifth of the loop's time at most */
#define UNREAD_MAX 8
#define IDLE_USEC USEC_PER_MINUTE
#define STALL_USEC (10 * USEC_PER_SEC)
#define ACCEPT_PAUSE_USEC USEC_PER_SEC
#define GROUP_BYTES_MAX (1024 * 1024)
#define GROUPS_MAX 65536 /* NGROUPS_MAX of Linux */

/* ---- a connection --------------------------------------------------------------------------------- */

static struct bus_connection *connection_free(struct bus_connection *connection) {
        if (!connection)
                return NULL;
        event_source_free(connection->io); /* before sd-bus closes the descriptor */
        event_source_free(connection->timer);
        bus_call_detach(connection->call);
        sd_bus_close_unref(connection->peer);
        free(connection);
        return NULL;
}
DEFINE_CLEANUP(struct bus_connection *, connection_free)

static void connection_drop(struct bus_connection *connection) {
        TAILQ_REMOVE(&connection->bus->connections, connection, entry);
        connection->bus->connection_count--;
        connection_free(connection);
}

static uint64_t monotonic_usec(void) {
        struct timespec now = {0};
        (void)clock_gettime(CLOCK_MONOTONIC, &now); /* fails for unknown clocks only */
        return (uint64_t)now.tv_sec * USEC_PER_SEC + (uint64_t)now.tv_nsec / 1000;
}

/* peer_timeout_usec() - when sd-bus wants to be called, on the event clock. sd-bus speaks CLOCK_MONOTONIC. */
static int peer_timeout_usec(struct bus_connection *connection, uint64_t *ret) {
        uint64_t usec;

        int r = sd_bus_get_timeout(connection->peer, &usec);
        if (r < 0)
                return r;
        if (usec == USEC_NEVER) {
                *ret = USEC_NEVER;
                return 0;
        }
        *ret = base_usec_add(event_now_usec(connection->bus->event), base_usec_sub(usec, monotonic_usec()));
        return 0;
}

/* connection_arm() - wait for what comes next. While replies wait for a slow reader nothing more is read from it. */
static int connection_arm(struct bus_connection *connection) {
        uint64_t unread, wake_usec = USEC_NEVER, now_usec = event_now_usec(connection->bus->event);
        uint32_t epoll_events = 0;

        int r = sd_bus_get_n_queued_write(connection->peer, &unread);
        if (r < 0)
                return r;
        if (unread > UNREAD_MAX)
                return -ENOBUFS;
        if (unread == 0)
                connection->stalled_usec = USEC_NEVER;
        else if (connection->stalled_usec == USEC_NEVER)
                connection->stalled_usec = now_usec;
        int poll_events = sd_bus_get_events(connection->peer);
        if (poll_events < 0)
                return poll_events;
        if (connection->call) { /* its reply will be the next thing that happens; nothing waits to be written */
                poll_events = 0;
                epoll_events = EPOLLRDHUP;
        }
        if ((poll_events & POLLIN) && unread == 0)
                epoll_events |= EPOLLIN;
        if (poll_events & POLLOUT)
                epoll_events |= EPOLLOUT;
        r = event_io_set(connection->io, epoll_events);
        if (r < 0)
                return r;
        r = peer_timeout_usec(connection, &wake_usec);
        if (r < 0)
                return r;
        if (unread > 0 || connection->call) /* its further messages wait too */
                wake_usec = USEC_NEVER;
        wake_usec = base_min_u64(wake_usec, base_usec_add(connection->active_usec, IDLE_USEC));
        wake_usec = base_min_u64(wake_usec, base_usec_add(connection->stalled_usec, STALL_USEC));
        return event_timer_set(connection->timer, wake_usec);
}

/* connection_rest() - a driver that hammers at the bus must not be able to put off its own kill. */
static int connection_rest(struct bus_connection *connection) {
        int r = event_io_set(connection->io, 0);
        if (r < 0)
                return r;
        return event_timer_set(connection->timer, connection->bus->rest_until_usec);
}

/* connection_process() - one message, then the others' turn. Negative: the connection is over. */
static int connection_process(struct bus_connection *connection) {
        struct bus *bus = connection->bus;
        uint64_t begin_usec = monotonic_usec(), now_usec = event_now_usec(bus->event);

        if (connection->call)
                return connection_arm(connection);
        if (!connection->privileged && now_usec < bus->rest_until_usec)
                return connection_rest(connection);
        int r = sd_bus_process(connection->peer, NULL);
        if (r < 0)
                return r;
        if (sd_bus_is_open(connection->peer) <= 0)
                return -ECONNRESET;
        if (r > 0)
                connection->active_usec = now_usec;
        uint64_t took_usec = base_usec_sub(monotonic_usec(), begin_usec);
        if (took_usec > COSTLY_USEC)
                bus->rest_until_usec = now_usec + (1 + REST_FACTOR) * took_usec;
        return connection_arm(connection);
}

/* A peer's fault ends its connection and nothing else, hence the return value 0 towards the loop. */
static int on_connection_io(uint32_t epoll_events, void *userdata) {
        struct bus_connection *connection = userdata;

        bool gone = connection->call && (epoll_events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR));

        if (gone || connection_process(connection) < 0)
                connection_drop(connection);
        return 0;
}

static int on_connection_timer(void *userdata) {
        struct bus_connection *connection = userdata;
        uint64_t now_usec = event_now_usec(connection->bus->event);

        if (now_usec >= base_usec_add(connection->active_usec, IDLE_USEC) ||
            now_usec >= base_usec_add(connection->stalled_usec, STALL_USEC) || connection_process(connection) < 0)
                connection_drop(connection);
        return 0;
}

void bus_connection_resume(struct bus_connection *connection) {
        if (connection_arm(connection) < 0)
                connection_drop(connection);
}

static bool in_group(int fd, gid_t primary, gid_t group) {
        socklen_t size = 0;

        if (primary == group)
                return true;
        if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, NULL, &size) == 0 || errno != ERANGE)
                return false; /* none, or unknown: no privilege */
        if (size > GROUPS_MAX * sizeof(gid_t))
                return false;
        _cleanup_free_ gid_t *groups = malloc(size);
        if (!groups || getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &size) < 0)
                return false;
        for (size_t i = 0; i < size / sizeof(gid_t); i++)
                if (groups[i] == group)
                        return true;
        return false;
}

static bool peer_is_privileged(const struct bus *bus, int fd, uid_t *ret_uid) {
        struct ucred credentials;
        socklen_t size = sizeof(credentials);

        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) < 0)
                return false;
        *ret_uid = credentials.uid;
        if (credentials.uid == 0 || credentials.uid == geteuid())
                return true;
        return bus->has_group && in_group(fd, credentials.gid, bus->group);
}

/* peer_start() - an sd-bus on `fd`, which it takes over on success, with us as its server. */
static int peer_start(struct bus_connection *connection, int *fd) {
        _cleanup_(sd_bus_close_unrefp) sd_bus *peer = NULL;
        sd_id128_t id;

        int r = sd_id128_randomize(&id);
        if (r < 0)
                return r;
        r = sd_bus_new(&peer);
        if (r < 0)
                return r;
        r = sd_bus_set_fd(peer, *fd, *fd);
        if (r < 0)
                return r;
        *fd = -1;
        r = sd_bus_set_server(peer, 1, id);
        if (r < 0)
                return r;
        r = sd_bus_negotiate_fds(peer, 0);
        if (r < 0)
                return r;
        r = sd_bus_add_object_vtable(peer, NULL, BUS_PATH, BUS_NAME, bus_agent_vtable, connection);
        if (r < 0)
                return r;
        r = sd_bus_add_object_vtable(peer, NULL, "/org/freedesktop/DBus", "org.freedesktop.DBus", bus_hello_vtable,
                                     connection);
        if (r < 0)
                return r;
        r = sd_bus_start(peer);
        if (r < 0)
                return r;
        connection->peer = TAKE(peer);
        return 0;
}

/* connection_new() - takes `fd` over in every case. */
static int connection_new(struct bus *bus, int accepted, bool privileged, uid_t uid) {
        _cleanup_close_ int fd = accepted;
        _cleanup_(connection_free_pointer) struct bus_connection *connection = calloc(1, sizeof(*connection));

        if (!connection)
                return -ENOMEM;
        connection->bus = bus;
        connection->privileged = privileged;
        connection->uid = uid;
        connection->active_usec = event_now_usec(bus->event);
        connection->stalled_usec = USEC_NEVER;
        int r = peer_start(connection, &fd);
        if (r < 0)
                return r;
        r = event_add_io(bus->event, "bus-connection", accepted, EPOLLIN, on_connection_io, connection,
                         &connection->io);
        if (r < 0)
                return r;
        r = event_add_timer(bus->event, "bus-connection", on_connection_timer, connection, &connection->timer);
        if (r < 0)
                return r;
        r = connection_arm(connection);
        if (r < 0)
                return r;
        TAILQ_INSERT_TAIL(&bus->connections, connection, entry);
        bus->connection_count++;
        connection = NULL;
        return 0;
}

/* ---- the socket ----------------------------------------------------------------------------------- */

/* make_room() - for one more connection; a privileged one may displace the longest idle unprivileged one. */
static bool make_room(struct bus *bus, bool privileged) {
        struct bus_connection *connection, *oldest = NULL;

        if (bus->connection_count < BUS_CONNECTIONS_MAX)
                return true;
        if (!privileged)
                return false;
        TAILQ_FOREACH(connection, &bus->connections, entry) {
                if (!connection->privileged && (!oldest || connection->active_usec < oldest->active_usec))
                        oldest = connection;
        }
        if (!oldest)
                return false;
        connection_drop(oldest);
        return true;
}

/* accept_pause() - no descriptors or memory left: the socket would stay readable and the loop would spin. */
static int accept_pause(struct bus *bus) {
        int r = event_io_set(bus->listen, 0);
        if (r < 0)
                return r;
        return event_timer_set(bus->listen_again, base_usec_add(event_now_usec(bus->event), ACCEPT_PAUSE_USEC));
}

static int on_listen_again(void *userdata) {
        struct bus *bus = userdata;
        return event_io_set(bus->listen, EPOLLIN);
}

static int on_listen(uint32_t epoll_events, void *userdata) {
        struct bus *bus = userdata;

        (void)epoll_events;
        _cleanup_close_ int fd = accept4(bus->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0)
                return errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS ? accept_pause(bus)
                                                                                                 : 0;
        uid_t uid = (uid_t)-1;
        bool privileged = peer_is_privileged(bus, fd, &uid);
        if (make_room(bus, privileged))
                (void)connection_new(bus, TAKE_FD(fd), privileged, uid); /* no memory: the peer sees its socket close */
        return 0;
}

static int remove_stale(const char *path) {
        struct stat status;

        if (lstat(path, &status) < 0)
                return errno == ENOENT ? 0 : -errno;
        if (!S_ISSOCK(status.st_mode))
                return -EEXIST;
        return unlink(path) < 0 && errno != ENOENT ? -errno : 0;
}

static int bus_listen(struct bus *bus) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};

        if (!base_text_copy(address.sun_path, sizeof(address.sun_path), bus->path))
                return -ENAMETOOLONG;
        int r = remove_stale(bus->path);
        if (r < 0)
                return r;
        bus->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (bus->listen_fd < 0)
                return -errno;
        if (bind(bus->listen_fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
                return -errno;
        bus->bound = true;
        if (chmod(bus->path, 0666) < 0) /* nobody can connect before listen(2), so there is no gap */
                return -errno;
        if (listen(bus->listen_fd, BUS_CONNECTIONS_MAX) < 0)
                return -errno;
        return event_add_io(bus->event, "bus", bus->listen_fd, EPOLLIN, on_listen, bus, &bus->listen);
}

/* find_group() - once, at the start: a look-up may go over the network. No such group: only the users count. */
static void find_group(struct bus *bus) {
        struct group entry, *found = NULL;

        for (size_t size = 4096; size <= GROUP_BYTES_MAX; size *= 4) {
                _cleanup_free_ char *bytes = malloc(size);
                if (!bytes)
                        return;
                int r = getgrnam_r(BUS_GROUP, &entry, bytes, size, &found);
                if (r == ERANGE)
                        continue; /* many members */
                bus->has_group = r == 0 && found;
                if (bus->has_group)
                        bus->group = found->gr_gid;
                return;
        }
}

int bus_new(struct event *event, const char *path, const struct bus_handlers *handlers, void *userdata,
            struct bus **ret) {
        _cleanup_(bus_free_pointer) struct bus *bus = calloc(1, sizeof(*bus));

        if (!bus)
                return -ENOMEM;
        TAILQ_INIT(&bus->connections);
        bus->listen_fd = -1;
        bus->event = event;
        bus->handlers = *handlers;
        bus->userdata = userdata;
        bus->path = strdup(path);
        if (!bus->path)
                return -ENOMEM;
        find_group(bus);
        int r = event_add_timer(event, "bus-listen-again", on_listen_again, bus, &bus->listen_again);
        if (r < 0)
                return r;
        r = bus_listen(bus);
        if (r < 0)
                return r;
        *ret = TAKE(bus);
        return 0;
}

struct bus *bus_free(struct bus *bus) {
        if (!bus)
                return NULL;
        while (!TAILQ_EMPTY(&bus->connections))
                connection_drop(TAILQ_FIRST(&bus->connections));
        event_source_free(bus->listen);
        event_source_free(bus->listen_again);
        base_close_pointer(&bus->listen_fd);
        if (bus->bound)
                (void)unlink(bus->path);
        free(bus->path);
        free(bus);
        return NULL;
}
