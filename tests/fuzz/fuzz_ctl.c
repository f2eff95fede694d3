/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spark-cancelctl and what answers it on the socket: an agent gone wrong, a newer one, or somebody else.
 *
 * libFuzzer: -max_len=4096
 *
 * Input: a byte that chooses the command, one for --json, then replies: [kind, signature size, signature, body size
 * (two bytes), body]... The heads of the messages are made here. The bytes lie in the socket before the command asks.
 *
 * Whatever comes, standard output is clean text, and with --json one JSON value; the exit code is one of the four.
 */
#include "fuzz.h"
#include "fuzz_message.h"
#include "ctl_internal.h"

#include <json-c/json.h>
#include <sys/socket.h>

#define REPLIES_MAX 3
#define TALK_MAX (64 * 1024)

static const struct {
        int (*run)(sd_bus *bus, const struct ctl_options *options);
        bool json, plain; /* prints JSON; prints what came as it is without --json */
} commands[] = {
        { ctl_status, true, false }, { ctl_list, true, false },    { ctl_show, true, false },
        { ctl_find, true, false },   { ctl_check, true, false },   { ctl_metrics, true, true },
        { ctl_retry, false, false }, { ctl_reload, false, false },
};

/* What a server says on the way in, and the answers to the calls 1, 2, ... of the client. */
static void make_talk(struct buffer *talk, struct span input) {
        static const char welcome[] = "DATA\r\nOK 00112233445566778899aabbccddeeff\r\nERROR\r\n";

        FUZZ_CHECK(buffer_append(talk, welcome, sizeof(welcome) - 1) == 0);
        for (uint32_t serial = 1; serial <= REPLIES_MAX && input.size > 0; serial++) {
                uint8_t kind = fuzz_take_u8(&input);
                struct span signature = fuzz_take(&input, fuzz_take_u8(&input));
                struct span body = fuzz_take(&input, fuzz_take_u16(&input));
                fuzz_message_put(talk, &(struct fuzz_message){
                                               .type = kind & 1 ? FUZZ_MESSAGE_ERROR : FUZZ_MESSAGE_RETURN,
                                               .serial = serial,
                                               .reply_serial = serial,
                                               .error = kind & 1 ? BUS_ERROR_NOT_QUARANTINED : NULL,
                                               .signature = signature,
                                               .body = body,
                                       });
        }
}

static sd_bus *connect_client(int fd, const struct buffer *talk, int server_fd) {
        sd_bus *client = NULL;

        FUZZ_CHECK(send(server_fd, talk->data, talk->size, MSG_DONTWAIT) == (ssize_t)talk->size);
        FUZZ_CHECK(shutdown(server_fd, SHUT_WR) == 0);
        FUZZ_CHECK(sd_bus_new(&client) >= 0 && sd_bus_set_fd(client, fd, fd) >= 0 && sd_bus_start(client) >= 0);
        return client;
}

static void check_json(const char *text, size_t size) {
        struct json_tokener *tokener = json_tokener_new();

        FUZZ_CHECK(tokener);
        json_tokener_set_flags(tokener,
                               JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8 | JSON_TOKENER_ALLOW_TRAILING_CHARS);
        struct json_object *object = json_tokener_parse_ex(tokener, text, (int)size);
        if (!object)
                (void)fprintf(stderr, "no JSON: %s\n", text);
        FUZZ_CHECK(object && json_tokener_get_error(tokener) == json_tokener_success);
        const char *rest = text + json_tokener_get_parse_end(tokener);
        FUZZ_CHECK(rest[strspn(rest, "\n")] == '\0');
        json_object_put(object);
        json_tokener_free(tokener);
}

static void check_output(const char *text, size_t size, bool json, int code) {
        _cleanup_free_ char *line = fuzz_text((struct span){ (const uint8_t *)text, size });

        FUZZ_CHECK(strlen(text) == size);
        for (char *at = line; *at; at++)
                if (*at == '\n')
                        *at = ' ';
        FUZZ_CHECK(fuzz_is_clean(line));
        if (json && size > 0 && code != CTL_UNREACHABLE)
                check_json(text, size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        _cleanup_(buffer_deinit) struct buffer talk = BUFFER_INIT(TALK_MAX);
        struct span input = { data, size };
        const size_t command = fuzz_take_u8(&input) % ARRAY_SIZE(commands);
        const struct ctl_options options = { .argument = "op-1", .json = fuzz_take_u8(&input) & 1 };
        static FILE *nowhere;
        char *text = NULL;
        size_t text_size = 0;
        int fds[2];

        if (!nowhere)
                nowhere = fopen("/dev/null", "we");
        FILE *out = stdout, *error = stderr;
        make_talk(&talk, input);
        FUZZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
        sd_bus *client = connect_client(fds[1], &talk, fds[0]);
        stdout = open_memstream(&text, &text_size);
        FUZZ_CHECK(stdout && nowhere);
        stderr = nowhere;
        int code = commands[command].run(client, &options);
        FUZZ_CHECK(fclose(stdout) == 0);
        stdout = out;
        stderr = error;
        sd_bus_close_unref(client);
        FUZZ_CHECK(close(fds[0]) == 0);
        FUZZ_CHECK(code >= CTL_FINE && code <= CTL_UNREACHABLE);
        if (options.json || !commands[command].plain)
                check_output(text, text_size, options.json && commands[command].json, code);
        free(text);
        return 0;
}
