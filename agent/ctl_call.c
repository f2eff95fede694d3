/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The agent's answers: a connection to its socket, one method call, and a{sv} read into plain fields.
 *
 * Fields are taken as they come, without a list of what there should be, so an older tool shows what a newer agent says.
 */
#include "ctl_internal.h"

#include <sys/socket.h>
#include <sys/un.h>

static int read_value(sd_bus_message *message, char type, struct ctl_field *field) {
        int32_t small;
        uint32_t small_whole;
        int flag, r;

        field->type = type;
        switch (type) {
        case 's':
                return sd_bus_message_read_basic(message, 's', &field->text);
        case 'b':
                r = sd_bus_message_read_basic(message, 'b', &flag);
                field->number = r < 0 ? 0 : flag;
                return r;
        case 'i':
                r = sd_bus_message_read_basic(message, 'i', &small);
                field->number = r < 0 ? 0 : small;
                return r;
        case 'x':
                return sd_bus_message_read_basic(message, 'x', &field->number);
        case 'u':
                r = sd_bus_message_read_basic(message, 'u', &small_whole);
                field->whole = r < 0 ? 0 : small_whole;
                return r;
        case 't':
                return sd_bus_message_read_basic(message, 't', &field->whole);
        }
        return -EBADMSG;
}

/* read_entry() - one key and value. A value of a type we can't show is left out. */
static int read_entry(sd_bus_message *message, struct ctl_object *object) {
        struct ctl_field field = {0};
        const char *contents;
        char type;

        int r = sd_bus_message_read_basic(message, 's', &field.key);
        if (r < 0)
                return r;
        r = sd_bus_message_peek_type(message, &type, &contents);
        if (r < 0)
                return r;
        if (!contents || strlen(contents) != 1 || !strchr("sbixut", *contents) || object->count >= CTL_FIELDS_MAX)
                return sd_bus_message_skip(message, "v");
        char signature[] = {*contents, '\0'};
        r = sd_bus_message_enter_container(message, 'v', signature);
        if (r < 0)
                return r;
        r = read_value(message, signature[0], &field);
        if (r < 0)
                return r;
        object->fields[object->count++] = field;
        return sd_bus_message_exit_container(message);
}

int ctl_object_read(sd_bus_message *message, struct ctl_object *object) {
        object->count = 0;
        int r = sd_bus_message_enter_container(message, 'a', "{sv}");
        if (r <= 0)
                return r;
        while ((r = sd_bus_message_enter_container(message, 'e', "sv")) > 0) {
                r = read_entry(message, object);
                if (r < 0)
                        return r;
                r = sd_bus_message_exit_container(message);
                if (r < 0)
                        return r;
        }
        if (r < 0)
                return r;
        r = sd_bus_message_exit_container(message);
        return r < 0 ? r : 1;
}

const struct ctl_field *ctl_object_field(const struct ctl_object *object, const char *key) {
        for (size_t i = 0; i < object->count; i++)
                if (strcmp(object->fields[i].key, key) == 0)
                        return &object->fields[i];
        return NULL;
}

const char *ctl_object_text(const struct ctl_object *object, const char *key) {
        const struct ctl_field *field = ctl_object_field(object, key);
        return field && field->type == 's' ? field->text : "";
}

uint64_t ctl_object_number(const struct ctl_object *object, const char *key) {
        const struct ctl_field *field = ctl_object_field(object, key);

        if (!field || field->type == 's')
                return 0;
        if (field->type == 'u' || field->type == 't')
                return field->whole;
        return field->number > 0 ? (uint64_t)field->number : 0;
}

/* ---- calls ---------------------------------------------------------------------------------------- */

int ctl_call_failed(sd_bus *bus, int result, const sd_bus_error *error) {
        char text[CTL_TEXT_MAX];
        const char *why = error->message ? error->message : strerror(-result);

        base_text_escape(text, sizeof(text), why, strlen(why));
        (void)fprintf(stderr, "spark-cancelctl: %s\n", text);
        if (sd_bus_is_open(bus) <= 0 || !sd_bus_error_is_set(error) ||
            sd_bus_error_has_name(error, SD_BUS_ERROR_NO_REPLY) || sd_bus_error_has_name(error, SD_BUS_ERROR_TIMEOUT) ||
            sd_bus_error_has_name(error, SD_BUS_ERROR_DISCONNECTED))
                return CTL_UNREACHABLE;
        return CTL_NO;
}

int ctl_answer_is_odd(int result) {
        (void)fprintf(stderr, "spark-cancelctl: the agent's answer can't be read: %s\n", strerror(-result));
        return CTL_UNREACHABLE;
}

int ctl_try(sd_bus *bus, const char *method, const char *signature, bool flag, const char *argument,
            sd_bus_error *error, sd_bus_message **ret) {
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *message = NULL;

        int r = sd_bus_message_new_method_call(bus, &message, NULL, BUS_PATH, BUS_NAME, method);
        if (r >= 0 && *signature == 's')
                r = sd_bus_message_append(message, "s", argument);
        else if (r >= 0 && *signature == 'b')
                r = sd_bus_message_append(message, "b", (int)flag);
        return r < 0 ? r : sd_bus_call(bus, message, CTL_CALL_TIMEOUT_USEC, error, ret);
}

int ctl_call(sd_bus *bus, const char *method, const char *signature, bool flag, const char *argument,
             sd_bus_message **ret) {
        _cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;

        int r = ctl_try(bus, method, signature, flag, argument, &error, ret);
        return r < 0 ? ctl_call_failed(bus, r, &error) : 0;
}

int ctl_finish_output(void) {
        if (fflush(stdout) == 0 && !ferror(stdout))
                return CTL_FINE;
        (void)fprintf(stderr, "spark-cancelctl: can't write the output: %s\n", strerror(errno));
        return CTL_NO;
}

int ctl_unreachable(const char *path, int result) {
        char shown[128];

        base_text_escape(shown, sizeof(shown), path, strlen(path));
        (void)fprintf(stderr, "spark-cancelctl: %s: %s: is spark-cancel-agent running?\n", shown, strerror(-result));
        return CTL_UNREACHABLE;
}

/* ---- the connection ------------------------------------------------------------------------------- */

static int connect_socket(const char *path) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};

        if (!base_text_copy(address.sun_path, sizeof(address.sun_path), path))
                return -ENAMETOOLONG;
        _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0)
                return -errno;
        if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
                return -errno;
        return TAKE_FD(fd);
}

int ctl_connect(const char *path, sd_bus **ret) {
        _cleanup_(sd_bus_close_unrefp) sd_bus *bus = NULL;
        _cleanup_close_ int fd = connect_socket(path);

        if (fd < 0)
                return fd;
        int r = sd_bus_new(&bus);
        if (r < 0)
                return r;
        r = sd_bus_set_fd(bus, fd, fd);
        if (r < 0)
                return r;
        fd = -1;
        r = sd_bus_start(bus);
        if (r < 0)
                return r;
        *ret = TAKE(bus);
        return 0;
}
