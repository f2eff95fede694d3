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
#include "bus.h"
#include "event.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-bus.h>

#define COSTLY_USEC USEC_PER_MSEC /* a message that took longer makes the bus rest */
#define REST_FACTOR 4             /* this many times as long: a fifth of the loop's time at most */
#define UNREAD_MAX 8
#define IDLE_USEC USEC_PER_MINUTE
#define STALL_USEC (10 * USEC_PER_SEC)
#define ACCEPT_PAUSE_USEC USEC_PER_SEC
#define TEXT_MAX (2 * REPORT_MESSAGE_MAX)
#define METRICS_BYTES_MAX (1024 * 1024)
#define RELOAD_ERROR_MAX 1024
#define GROUP_BYTES_MAX (1024 * 1024)
#define GROUPS_MAX 65536 /* NGROUPS_MAX of Linux */

struct bus_connection {
        struct bus *bus;
        sd_bus *peer;
        struct event_source *io, *timer;
        bool privileged;
        uint64_t active_usec;  /* last message from it */
        uint64_t stalled_usec; /* since when replies wait for it; USEC_NEVER: none do */
        TAILQ_ENTRY(bus_connection) entry;
};

struct bus {
        struct event *event;
        struct bus_handlers handlers;
        void *userdata;
        char *path;
        int listen_fd;
        bool bound;
        struct event_source *listen, *listen_again;
        bool has_group;
        gid_t group;
        uint64_t hello_count;
        uint64_t rest_until_usec; /* unprivileged peers wait until then */
        size_t connection_count;
        TAILQ_HEAD(, bus_connection) connections;
};

/* ---- values --------------------------------------------------------------------------------------- */

/* One field of a struct that goes out as an entry of a{sv}, or as a property. */
struct bus_field {
        const char *key;      /* in a{sv} */
        const char *property; /* NULL: not one */
        char type;            /* D-Bus type: s, b, t, u, i, x */
        size_t offset;
};

#define STATUS(type_, key_, property_)                                                                                 \
        { #key_, property_, type_, offsetof(struct bus_status, key_) }
static const struct bus_field status_fields[] = {
        STATUS('s', version, "Version"),
        STATUS('s', cluster_id, "ClusterId"),
        STATUS('s', node, "Node"),
        STATUS('s', endpoint, "Endpoint"),
        STATUS('s', summary, "Summary"),
        STATUS('b', connected, "Connected"),
        STATUS('t', open, "Open"),
        STATUS('t', searching, "Searching"),
        STATUS('t', quarantined, "Quarantined"),
        STATUS('t', reports_waiting, "ReportsWaiting"),
        STATUS('x', revision, "Revision"),
        STATUS('b', from_memory, "FromMemory"),
        STATUS('t', unwritten, "Unwritten"),
};

#define OPERATION(type_, key_)                                                                                         \
        { #key_, NULL, type_, offsetof(struct bus_operation, key_) }
static const struct bus_field operation_fields[] = {
        OPERATION('s', operation_id),
        OPERATION('s', job_id),
        OPERATION('s', state),
        OPERATION('s', outcome),
        OPERATION('s', driver_id),
        OPERATION('i', driver_pid),
        OPERATION('s', driver_state),
        OPERATION('u', kill_requests),
        OPERATION('t', received_real_usec),
        OPERATION('t', deadline_real_usec),
        OPERATION('t', accepted_real_usec),
        OPERATION('t', ended_real_usec),
        OPERATION('s', message),
};

static int append_value(sd_bus_message *message, char type, const void *field) {
        char text[TEXT_MAX];

        if (type == 's') {
                /* sd-bus refuses a string that is not UTF-8, and people read it on a terminal */
                const char *source = *(const char *const *)field;
                base_text_escape(text, sizeof(text), source ? source : "", source ? strlen(source) : 0);
                return sd_bus_message_append_basic(message, 's', text);
        }
        if (type == 'b') {
                int value = *(const bool *)field;
                return sd_bus_message_append_basic(message, 'b', &value);
        }
        return sd_bus_message_append_basic(message, type, field);
}

static int append_entry(sd_bus_message *message, const struct bus_field *field, const void *object) {
        const char signature[] = {field->type, '\0'};

        int r = sd_bus_message_open_container(message, 'e', "sv");
        if (r < 0)
                return r;
        r = sd_bus_message_append_basic(message, 's', field->key);
        if (r < 0)
                return r;
        r = sd_bus_message_open_container(message, 'v', signature);
        if (r < 0)
                return r;
        r = append_value(message, field->type, (const char *)object + field->offset);
        if (r < 0)
                return r;
        r = sd_bus_message_close_container(message);
        if (r < 0)
                return r;
        return sd_bus_message_close_container(message);
}

static bool field_is_empty(const struct bus_field *field, const void *object) {
        const char *value = (const char *)object + field->offset;
        switch (field->type) {
        case 's': {
                const char *text = *(const char *const *)(const void *)value;
                return !text || !*text;
        }
        case 'i':
        case 'u':
                return *(const uint32_t *)(const void *)value == 0;
        case 't':
        case 'x':
                return *(const uint64_t *)(const void *)value == 0;
        }
        return false;
}

static int append_object(sd_bus_message *message, const struct bus_field *fields, size_t count, bool with_empty,
                         const void *object) {
        int r = sd_bus_message_open_container(message, 'a', "{sv}");
        for (size_t i = 0; r >= 0 && i < count; i++)
                if (with_empty || !field_is_empty(&fields[i], object))
                        r = append_entry(message, &fields[i], object);
        return r < 0 ? r : sd_bus_message_close_container(message);
}

static int append_operation(sd_bus_message *message, bool with_empty, const struct bus_operation *operation) {
        return append_object(message, operation_fields, ARRAY_SIZE(operation_fields), with_empty, operation);
}

/* ---- methods: a negative return becomes a D-Bus error (sd_bus_message_handler_t(3)) ------------------ */

static int method_status(sd_bus_message *call, void *userdata, sd_bus_error *error) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        struct bus_connection *connection = userdata;
        struct bus_status status = {0};

        (void)error;
        connection->bus->handlers.status(&status, connection->bus->userdata);
        int r = sd_bus_message_new_method_return(call, &reply);
        if (r < 0)
                return r;
        r = append_object(reply, status_fields, ARRAY_SIZE(status_fields), true, &status);
        if (r < 0)
                return r;
        return sd_bus_send(NULL, reply, NULL);
}

static int property_status(sd_bus *peer, const char *path, const char *interface, const char *property,
                           sd_bus_message *reply, void *userdata, sd_bus_error *error) {
        struct bus_connection *connection = userdata;
        struct bus_status status = {0};

        (void)peer;
        (void)path;
        (void)interface;
        connection->bus->handlers.status(&status, connection->bus->userdata);
        for (size_t i = 0; i < ARRAY_SIZE(status_fields); i++)
                if (strcmp(status_fields[i].property, property) == 0)
                        return append_value(reply, status_fields[i].type,
                                            (const char *)&status + status_fields[i].offset);
        return sd_bus_error_set(error, SD_BUS_ERROR_UNKNOWN_PROPERTY, "no such property");
}

struct list_visit {
        sd_bus_message *reply;
        uint64_t count;
};

static int visit_list(const struct bus_operation *operation, void *visitor) {
        struct list_visit *visit = visitor;
        if (visit->count++ >= BUS_ROWS_MAX)
                return 0;
        return append_operation(visit->reply, false, operation);
}

static int method_list(sd_bus_message *call, void *userdata, sd_bus_error *error) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        struct bus_connection *connection = userdata;
        struct bus *bus = connection->bus;
        struct list_visit visit = {0};
        int all;

        (void)error;
        if (sd_bus_message_get_expect_reply(call) == 0)
                return 1; /* the one costly answer is not made for nobody */
        int r = sd_bus_message_read(call, "b", &all);
        if (r < 0)
                return r;
        r = sd_bus_message_new_method_return(call, &reply);
        if (r < 0)
                return r;
        r = sd_bus_message_open_container(reply, 'a', "a{sv}");
        if (r < 0)
                return r;
        visit.reply = reply;
        r = bus->handlers.list(all, visit_list, &visit, bus->userdata);
        if (r < 0)
                return r;
        r = sd_bus_message_close_container(reply);
        if (r < 0)
                return r;
        r = sd_bus_message_append(reply, "t", visit.count);
        if (r < 0)
                return r;
        return sd_bus_send(NULL, reply, NULL);
}

struct show_visit {
        const char *operation_id;
        sd_bus_message *reply;
        bool found;
        int result;
};

static int visit_show(const struct bus_operation *operation, void *visitor) {
        struct show_visit *visit = visitor;
        if (strcmp(operation->operation_id, visit->operation_id) != 0)
                return 0;
        visit->found = true;
        visit->result = append_operation(visit->reply, true, operation);
        return -ECANCELED; /* enough */
}

static int fail_no_such_operation(sd_bus_error *error, const char *operation_id) {
        char shown[2 * OPERATION_ID_MAX];
        base_text_escape(shown, sizeof(shown), operation_id, strlen(operation_id));
        return sd_bus_error_setf(error, BUS_ERROR_NO_SUCH_OPERATION, "There is no operation '%s' on this node", shown);
}

static int method_show(sd_bus_message *call, void *userdata, sd_bus_error *error) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        struct bus_connection *connection = userdata;
        struct show_visit visit = {0};

        int r = sd_bus_message_read(call, "s", &visit.operation_id);
        if (r < 0)
                return r;
        r = sd_bus_message_new_method_return(call, &reply);
        if (r < 0)
                return r;
        visit.reply = reply;
        r = connection->bus->handlers.list(true, visit_show, &visit, connection->bus->userdata);
        if (!visit.found)
                return r < 0 ? r : fail_no_such_operation(error, visit.operation_id);
        if (visit.result < 0)
                return visit.result;
        return sd_bus_send(NULL, reply, NULL);
}

static int method_metrics(sd_bus_message *call, void *userdata, sd_bus_error *error) {
        _cleanup_(buffer_deinit) struct buffer text = BUFFER_INIT(METRICS_BYTES_MAX);
        struct bus_connection *connection = userdata;

        (void)error;
        int r = connection->bus->handlers.metrics(&text, connection->bus->userdata);
        if (r < 0)
                return r;
        const char *string = buffer_text(&text);
        if (!string)
                return -ENOMEM;
        return sd_bus_reply_method_return(call, "s", string);
}

static int check_privilege(const struct bus_connection *connection, sd_bus_error *error) {
        if (connection->privileged)
                return 0;
        return sd_bus_error_set(error, SD_BUS_ERROR_ACCESS_DENIED,
                                "Only root, the agent's own user and group " BUS_GROUP " may do this");
}

static int method_reload(sd_bus_message *call, void *userdata, sd_bus_error *error) {
        struct bus_connection *connection = userdata;
        char why[RELOAD_ERROR_MAX] = "", shown[RELOAD_ERROR_MAX];

        int r = check_privilege(connection, error);
        if (r < 0)
                return r;
        r = connection->bus->handlers.reload(why, sizeof(why), connection->bus->userdata);
        if (r >= 0)
                return sd_bus_reply_method_return(call, NULL);
        if (!*why)
                (void)base_text_copy(why, sizeof(why), strerror(-r));
        base_text_escape(shown, sizeof(shown), why, strlen(why));
        return sd_bus_error_set(error, BUS_ERROR_RELOAD_FAILED, shown);
}

static int method_retry(sd_bus_message *call, void *userdata, sd_bus_error *error) {
        struct bus_connection *connection = userdata;
        const char *operation_id;

        int r = sd_bus_message_read(call, "s", &operation_id);
        if (r < 0)
                return r;
        r = check_privilege(connection, error);
        if (r < 0)
                return r;
        r = connection->bus->handlers.retry(operation_id, connection->bus->userdata);
        if (r == -ENOENT)
                return fail_no_such_operation(error, operation_id);
        if (r == -EINVAL)
                return sd_bus_error_set(error, BUS_ERROR_NOT_QUARANTINED,
                                        "The operation's report was not rejected: there is nothing to send again");
        if (r < 0)
                return r;
        return sd_bus_reply_method_return(call, NULL);
}

static int method_hello(sd_bus_message *call, void *userdata, sd_bus_error *error) {
        struct bus_connection *connection = userdata;
        char name[32];

        (void)error;
        (void)snprintf(name, sizeof(name), ":1.%" PRIu64, ++connection->bus->hello_count);
        return sd_bus_reply_method_return(call, "s", name);
}

/* UNPRIVILEGED: sd-bus would otherwise let only root and our own user call; privileges are checked above. */
static const sd_bus_vtable agent_vtable[] = {
        SD_BUS_VTABLE_START(0),
        SD_BUS_PROPERTY("Version", "s", property_status, 0, 0),
        SD_BUS_PROPERTY("ClusterId", "s", property_status, 0, 0),
        SD_BUS_PROPERTY("Node", "s", property_status, 0, 0),
        SD_BUS_PROPERTY("Endpoint", "s", property_status, 0, 0),
        SD_BUS_PROPERTY("Summary", "s", property_status, 0, 0),
        SD_BUS_PROPERTY("Connected", "b", property_status, 0, 0),
        SD_BUS_PROPERTY("Open", "t", property_status, 0, 0),
        SD_BUS_PROPERTY("Searching", "t", property_status, 0, 0),
        SD_BUS_PROPERTY("Quarantined", "t", property_status, 0, 0),
        SD_BUS_PROPERTY("ReportsWaiting", "t", property_status, 0, 0),
        SD_BUS_PROPERTY("Revision", "x", property_status, 0, 0),
        SD_BUS_PROPERTY("FromMemory", "b", property_status, 0, 0),
        SD_BUS_PROPERTY("Unwritten", "t", property_status, 0, 0),
        SD_BUS_METHOD_WITH_ARGS("Status", SD_BUS_NO_ARGS, SD_BUS_RESULT("a{sv}", status), method_status,
                                SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("List", SD_BUS_ARGS("b", all), SD_BUS_RESULT("aa{sv}", operations, "t", total),
                                method_list, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Show", SD_BUS_ARGS("s", operation_id), SD_BUS_RESULT("a{sv}", operation), method_show,
                                SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Metrics", SD_BUS_NO_ARGS, SD_BUS_RESULT("s", text), method_metrics,
                                SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Reload", SD_BUS_NO_ARGS, SD_BUS_NO_RESULT, method_reload, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Retry", SD_BUS_ARGS("s", operation_id), SD_BUS_NO_RESULT, method_retry,
                                SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_VTABLE_END,
};

static const sd_bus_vtable hello_vtable[] = {
        SD_BUS_VTABLE_START(0),
        SD_BUS_METHOD_WITH_ARGS("Hello", SD_BUS_NO_ARGS, SD_BUS_RESULT("s", name), method_hello,
                                SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_VTABLE_END,
};

/* ---- a connection --------------------------------------------------------------------------------- */

static struct bus_connection *connection_free(struct bus_connection *connection) {
        if (!connection)
                return NULL;
        event_source_free(connection->io); /* before sd-bus closes the descriptor */
        event_source_free(connection->timer);
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
        if (unread > 0) /* its further messages wait too */
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

        (void)epoll_events;
        if (connection_process(connection) < 0)
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

static bool peer_is_privileged(const struct bus *bus, int fd) {
        struct ucred credentials;
        socklen_t size = sizeof(credentials);

        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) < 0)
                return false;
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
        r = sd_bus_add_object_vtable(peer, NULL, BUS_PATH, BUS_NAME, agent_vtable, connection);
        if (r < 0)
                return r;
        r = sd_bus_add_object_vtable(peer, NULL, "/org/freedesktop/DBus", "org.freedesktop.DBus", hello_vtable,
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
static int connection_new(struct bus *bus, int accepted, bool privileged) {
        _cleanup_close_ int fd = accepted;
        _cleanup_(connection_free_pointer) struct bus_connection *connection = calloc(1, sizeof(*connection));

        if (!connection)
                return -ENOMEM;
        connection->bus = bus;
        connection->privileged = privileged;
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
        bool privileged = peer_is_privileged(bus, fd);
        if (make_room(bus, privileged))
                (void)connection_new(bus, TAKE_FD(fd), privileged); /* no memory: the peer sees its socket close */
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
