/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is said on the local bus: methods, properties and errors.
 *
 * Most answers are made from what the agent knows at that moment. Three take time (Find asks Spark, Check asks all
 * masters, Cancel is answered when it is stored): their handlers get a `struct bus_call` and answer it later. A
 * connection has at most one of these under way, and nothing is read from it until it is answered.
 */
#include "bus_internal.h"

#define TEXT_MAX (2 * REPORT_MESSAGE_MAX)
#define METRICS_BYTES_MAX (1024 * 1024)
#define RELOAD_ERROR_MAX 1024

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
        STATUS('s', mode, "Mode"),
        STATUS('s', summary, "Summary"),
        STATUS('b', connected, "Connected"),
        STATUS('s', connection_error, "ConnectionError"),
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
        OPERATION('s', requested_by),
        OPERATION('b', local),
        OPERATION('b', observed),
        OPERATION('s', message),
};

#define FIND(type_, key_)                                                                                              \
        { #key_, NULL, type_, offsetof(struct bus_find, key_) }
static const struct bus_field find_fields[] = {
        FIND('s', job_id),
        FIND('s', mode),
        FIND('b', would_kill),
        FIND('s', reason),
        FIND('s', driver_id),
        FIND('i', driver_pid),
        FIND('s', driver_state),
        FIND('i', worker_pid),
        FIND('s', app_name),
        FIND('b', supervised),
        FIND('t', started_real_usec),
        FIND('s', recent_driver_id),
};

static const struct bus_field lookalike_fields[] = {
        {"pid", NULL, 'i', offsetof(struct bus_lookalike, pid)},
        {"reason", NULL, 's', offsetof(struct bus_lookalike, reason)},
};

#define FINDING(key_)                                                                                                  \
        { #key_, NULL, 's', offsetof(struct bus_finding, key_) }
static const struct bus_field finding_fields[] = {FINDING(name), FINDING(level), FINDING(text), FINDING(remedy)};

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

/* ---- calls that are answered later ------------------------------------------------------------------ */

static struct bus_call *call_free(struct bus_call *call) {
        sd_bus_message_unref(call->message);
        free(call);
        return NULL;
}

void bus_call_detach(struct bus_call *call) {
        if (!call)
                return;
        call->connection = NULL;
        call->message = sd_bus_message_unref(call->message);
}

/* call_finish() - send `reply` (NULL, or a negative `result`: an error) and let the connection go on. */
static void call_finish(struct bus_call *call, int result, sd_bus_message *reply) {
        struct bus_connection *connection = call->connection;
        bool in_method = call->in_method;

        if (connection) {
                if (result >= 0 && reply)
                        result = sd_bus_send(NULL, reply, NULL);
                if (result < 0)
                        (void)sd_bus_reply_method_errno(call->message, result, NULL);
                connection->call = NULL;
        }
        call_free(call);
        if (connection && !in_method)
                bus_connection_resume(connection);
}

static int append_array(sd_bus_message *reply, const struct bus_field *fields, size_t field_count, const void *objects,
                        size_t size, size_t count) {
        int r = sd_bus_message_open_container(reply, 'a', "a{sv}");

        for (size_t i = 0; r >= 0 && i < count; i++)
                r = append_object(reply, fields, field_count, true, (const char *)objects + i * size);
        return r < 0 ? r : sd_bus_message_close_container(reply);
}

void bus_call_answer_find(struct bus_call *call, const struct bus_find *find, const struct bus_lookalike *lookalikes,
                          size_t count) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        int r = 0;

        if (call->connection)
                r = sd_bus_message_new_method_return(call->message, &reply);
        if (reply)
                r = append_object(reply, find_fields, ARRAY_SIZE(find_fields), true, find);
        if (reply && r >= 0)
                r = append_array(reply, lookalike_fields, ARRAY_SIZE(lookalike_fields), lookalikes, sizeof(*lookalikes),
                                 count);
        call_finish(call, r, reply);
}

void bus_call_answer_cancel(struct bus_call *call, const char *operation_id) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        int r = 0;

        if (call->connection)
                r = sd_bus_message_new_method_return(call->message, &reply);
        if (reply)
                r = sd_bus_message_append(reply, "s", operation_id);
        call_finish(call, r, reply);
}

void bus_call_answer_check(struct bus_call *call, const struct bus_finding *findings, size_t count) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        int r = 0;

        if (call->connection)
                r = sd_bus_message_new_method_return(call->message, &reply);
        if (reply)
                r = append_array(reply, finding_fields, ARRAY_SIZE(finding_fields), findings, sizeof(*findings), count);
        call_finish(call, r, reply);
}

void bus_call_fail(struct bus_call *call, const char *text) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *reply = NULL;
        char shown[RELOAD_ERROR_MAX];
        int r = 0;

        base_text_escape(shown, sizeof(shown), text, strlen(text));
        if (call->connection)
                r = sd_bus_message_new_method_errorf(call->message, &reply, SD_BUS_ERROR_FAILED, "%s", shown);
        call_finish(call, r, reply);
}

bool bus_call_is_wanted(const struct bus_call *call) {
        return call->connection;
}

bool bus_call_is_privileged(const struct bus_call *call) {
        return call->connection && call->connection->privileged;
}

/* call_begin() - the message is kept until it is answered. */
static struct bus_call *call_begin(struct bus_connection *connection, sd_bus_message *message) {
        struct bus_call *call = calloc(1, sizeof(*call));

        if (!call)
                return NULL;
        call->connection = connection;
        call->message = sd_bus_message_ref(message);
        call->in_method = true;
        connection->call = call;
        return call;
}

/* call_begun() - what the handler said. The call is its own when that was 0, and it may have answered already. */
static int call_begun(struct bus_connection *connection, struct bus_call *call, int result, sd_bus_error *error) {
        if (result == 0) {
                if (connection->call)
                        connection->call->in_method = false;
                return 1;
        }
        connection->call = NULL;
        call_free(call);
        if (result == -EBUSY)
                return sd_bus_error_set(error, SD_BUS_ERROR_LIMITS_EXCEEDED, "Too many of these are under way, try again");
        if (result == -ENOBUFS)
                return sd_bus_error_set(error, SD_BUS_ERROR_LIMITS_EXCEEDED, "Too many operations are open");
        if (result == -EAGAIN)
                return sd_bus_error_set(error, BUS_ERROR_NOT_NOW, "The agent is stopping");
        return result;
}

static int read_job(sd_bus_message *message, const char **ret, sd_bus_error *error) {
        int r = sd_bus_message_read(message, "s", ret);

        if (r < 0)
                return r;
        if (!base_id_is_valid(*ret, strlen(*ret), JOB_ID_MAX))
                return sd_bus_error_set(error, BUS_ERROR_BAD_JOB,
                                        "A job id is 1 to 50 characters of printable ASCII without space");
        return 0;
}

static int method_find(sd_bus_message *message, void *userdata, sd_bus_error *error) {
        struct bus_connection *connection = userdata;
        struct bus *bus = connection->bus;
        struct bus_call *call;
        const char *job_id;

        int r = read_job(message, &job_id, error);
        if (r < 0)
                return r;
        call = call_begin(connection, message);
        if (!call)
                return -ENOMEM;
        return call_begun(connection, call, bus->handlers.find(job_id, call, bus->userdata), error);
}

static int method_cancel(sd_bus_message *message, void *userdata, sd_bus_error *error) {
        struct bus_connection *connection = userdata;
        struct bus *bus = connection->bus;
        struct bus_call *call;
        const char *job_id;

        int r = read_job(message, &job_id, error);
        if (r >= 0)
                r = check_privilege(connection, error);
        if (r < 0)
                return r;
        call = call_begin(connection, message);
        if (!call)
                return -ENOMEM;
        r = bus->handlers.cancel(job_id, connection->uid, call, bus->userdata);
        return call_begun(connection, call, r, error);
}

static int method_check(sd_bus_message *message, void *userdata, sd_bus_error *error) {
        struct bus_connection *connection = userdata;
        struct bus *bus = connection->bus;
        struct bus_call *call = call_begin(connection, message);

        if (!call)
                return -ENOMEM;
        return call_begun(connection, call, bus->handlers.check(call, bus->userdata), error);
}

static int method_hello(sd_bus_message *call, void *userdata, sd_bus_error *error) {
        struct bus_connection *connection = userdata;
        char name[32];

        (void)error;
        (void)snprintf(name, sizeof(name), ":1.%" PRIu64, ++connection->bus->hello_count);
        return sd_bus_reply_method_return(call, "s", name);
}

/* UNPRIVILEGED: sd-bus would otherwise let only root and our own user call; privileges are checked above. */
const sd_bus_vtable bus_agent_vtable[] = {
        SD_BUS_VTABLE_START(0),
        SD_BUS_PROPERTY("Version", "s", property_status, 0, 0),
        SD_BUS_PROPERTY("ClusterId", "s", property_status, 0, 0),
        SD_BUS_PROPERTY("Node", "s", property_status, 0, 0),
        SD_BUS_PROPERTY("Endpoint", "s", property_status, 0, 0),
        SD_BUS_PROPERTY("Mode", "s", property_status, 0, 0),
        SD_BUS_PROPERTY("Summary", "s", property_status, 0, 0),
        SD_BUS_PROPERTY("Connected", "b", property_status, 0, 0),
        SD_BUS_PROPERTY("ConnectionError", "s", property_status, 0, 0),
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
        SD_BUS_METHOD_WITH_ARGS("Find", SD_BUS_ARGS("s", job_id), SD_BUS_RESULT("a{sv}", answer, "aa{sv}", lookalikes),
                                method_find, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Check", SD_BUS_NO_ARGS, SD_BUS_RESULT("aa{sv}", findings), method_check,
                                SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Cancel", SD_BUS_ARGS("s", job_id), SD_BUS_RESULT("s", operation_id), method_cancel,
                                SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Metrics", SD_BUS_NO_ARGS, SD_BUS_RESULT("s", text), method_metrics,
                                SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Reload", SD_BUS_NO_ARGS, SD_BUS_NO_RESULT, method_reload, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD_WITH_ARGS("Retry", SD_BUS_ARGS("s", operation_id), SD_BUS_NO_RESULT, method_retry,
                                SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_VTABLE_END,
};

const sd_bus_vtable bus_hello_vtable[] = {
        SD_BUS_VTABLE_START(0),
        SD_BUS_METHOD_WITH_ARGS("Hello", SD_BUS_NO_ARGS, SD_BUS_RESULT("s", name), method_hello,
                                SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_VTABLE_END,
};
