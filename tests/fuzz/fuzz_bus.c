/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The local bus: what a local user writes into the socket, from the first byte on, against the real bus.c and sd-bus.
 *
 * libFuzzer: -max_len=4096
 *
 * The first byte chooses:
 * - bytes as they are;
 * - bytes behind a good authentication;
 * - calls: [member, signature size, signature, body size, body]..., to which the message's header is made here, so that
 *   the arguments are reached.
 *
 * What the bus says must be whole D-Bus messages, and it must do nothing that was not asked for: the handlers check.
 */
#include "fuzz_files.h"
#include "fuzz_loop.h"
#include "fuzz_message.h"
#include "bus.h"

#include <sys/socket.h>
#include <sys/un.h>

#define TALK_MAX (64 * 1024)
#define CALLS_MAX 32
#define HEARD_MAX (4 * 1024 * 1024)
#define SHOWN_STATUS "clean \xe2\x82\xac, \x1b[31m hostile \xff"

enum choice { CHOICE_RAW, CHOICE_MESSAGES, CHOICE_CALLS, CHOICE_COUNT };

struct peer {
        int fd;
        struct span talk;
        bool ended;
        struct buffer heard;
        unsigned reloads, retries, cancels;
};

static struct bus_call *kept; /* a Find that is not answered yet */
static struct peer *peer;
static struct bus *bus;

/* ---- the agent behind the bus --------------------------------------------------------------------------------- */

static void on_status(struct bus_status *ret, void *userdata) {
        (void)userdata;
        *ret = (struct bus_status){ .version = "1", .summary = SHOWN_STATUS, .connected = true, .revision = -1 };
}

static int on_list(bool all, int (*visit)(const struct bus_operation *operation, void *visitor), void *visitor,
                   void *userdata) {
        static const struct bus_operation operations[] = {
                { .operation_id = "op-1", .job_id = "j1", .state = "WAIT", .kill_requests = 2 },
                { .operation_id = "op-2", .job_id = "j2", .state = "DONE", .message = SHOWN_STATUS },
        };

        (void)userdata;
        for (size_t i = 0; i < (all ? 2 : 1); i++) {
                int r = visit(&operations[i], visitor);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int on_reload(char *error, size_t error_size, void *userdata) {
        (void)userdata;
        peer->reloads++;
        (void)base_text_copy(error, error_size, SHOWN_STATUS);
        return peer->reloads & 1 ? 0 : -EINVAL;
}

static int on_retry(const char *operation_id, void *userdata) {
        (void)userdata;
        FUZZ_CHECK(base_text_is_utf8(operation_id, strlen(operation_id)));
        peer->retries++;
        return strcmp(operation_id, "op-1") == 0 ? 0 : strcmp(operation_id, "op-2") == 0 ? -EINVAL : -ENOENT;
}

static int on_metrics(struct buffer *out, void *userdata) {
        (void)userdata;
        return buffer_append_text(out, "x 1\n");
}

static void answer_kept(void) {
        static const struct bus_lookalike lookalike = { 1, SHOWN_STATUS };

        if (kept)
                bus_call_answer_find(TAKE(kept), &(struct bus_find){ .job_id = "j1", .reason = SHOWN_STATUS },
                                     &lookalike, 1);
}

/* Answered when all that the peer says is on its way. */
static int on_find(const char *job_id, struct bus_call *call, void *userdata) {
        (void)userdata;
        FUZZ_CHECK(base_id_is_valid(job_id, strlen(job_id), JOB_ID_MAX));
        answer_kept(); /* of a peer that was dropped */
        kept = call;
        return 0;
}

static int on_cancel(const char *job_id, uint32_t uid, struct bus_call *call, void *userdata) {
        (void)userdata;
        FUZZ_CHECK(base_id_is_valid(job_id, strlen(job_id), JOB_ID_MAX) && uid == geteuid());
        if (peer->cancels++ & 1)
                return -EBUSY;
        bus_call_answer_cancel(call, "local-1");
        return 0;
}

static int on_check(struct bus_call *call, void *userdata) {
        static const struct bus_finding finding = { "name", "ok", SHOWN_STATUS, "" };

        (void)userdata;
        bus_call_answer_check(call, &finding, 1);
        return 0;
}

static void start(void) {
        static const struct bus_handlers handlers = { on_status,  on_list, on_reload, on_retry,
                                                      on_metrics, on_find, on_cancel, on_check };
        char path[100];

        if (bus)
                return;
        fuzz_make_directory();
        (void)snprintf(path, sizeof(path), "%s/bus", fuzz_directory);
        FUZZ_CHECK(bus_new(fuzz_loop()->event, path, &handlers, NULL, &bus) == 0);
}

/* ---- what the peer says ----------------------------------------------------------------------------------------- */

static void put_call(struct buffer *out, uint8_t choice, uint32_t serial, struct span signature, struct span body) {
        static const struct {
                const char *path, *interface, *member;
        } members[] = {
                { BUS_PATH, BUS_NAME, "Status" },
                { BUS_PATH, BUS_NAME, "List" },
                { BUS_PATH, BUS_NAME, "Show" },
                { BUS_PATH, BUS_NAME, "Metrics" },
                { BUS_PATH, BUS_NAME, "Reload" },
                { BUS_PATH, BUS_NAME, "Retry" },
                { BUS_PATH, BUS_NAME, "Nonsense" },
                { BUS_PATH, "org.freedesktop.DBus.Properties", "Get" },
                { BUS_PATH, "org.freedesktop.DBus.Properties", "Set" },
                { BUS_PATH, "org.freedesktop.DBus.Properties", "GetAll" },
                { BUS_PATH, "org.freedesktop.DBus.Introspectable", "Introspect" },
                { BUS_PATH, "org.freedesktop.DBus.Peer", "Ping" },
                { "/", "org.freedesktop.DBus.Introspectable", "Introspect" },
                { "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello" },
                { BUS_PATH, BUS_NAME, "Find" },
                { BUS_PATH, BUS_NAME, "Cancel" },
                { BUS_PATH, BUS_NAME, "Check" },
        };
        const size_t member = (choice & 0x7f) % ARRAY_SIZE(members);

        fuzz_message_put(out, &(struct fuzz_message){ .type = FUZZ_MESSAGE_CALL,
                                                      .no_reply_expected = choice & 0x80,
                                                      .serial = serial,
                                                      .path = members[member].path,
                                                      .interface = members[member].interface,
                                                      .member = members[member].member,
                                                      .signature = signature,
                                                      .body = body });
}

static void put_calls(struct buffer *out, struct span input) {
        for (uint32_t serial = 1; serial <= CALLS_MAX && input.size > 0; serial++) {
                uint8_t choice = fuzz_take_u8(&input);
                struct span signature = fuzz_take(&input, fuzz_take_u8(&input));
                struct span body = fuzz_take(&input, fuzz_take_u8(&input));
                put_call(out, choice, serial, signature, body);
        }
}

/* ---- what the bus says ------------------------------------------------------------------------------------------- */

static uint32_t get_u32(const uint8_t *bytes) {
        return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

/* Lines of the authentication, then whole messages: replies and errors, nothing else. */
static void check_heard(struct span heard) {
        while (heard.size > 0 && heard.data[0] != 'l') {
                const uint8_t *end = memchr(heard.data, '\n', heard.size);
                FUZZ_CHECK(end && end > heard.data && end[-1] == '\r');
                FUZZ_CHECK(memcmp(heard.data, "OK ", 3) == 0 || memcmp(heard.data, "DATA", 4) == 0 ||
                           memcmp(heard.data, "REJECTED", 8) == 0 || memcmp(heard.data, "ERROR", 5) == 0 ||
                           memcmp(heard.data, "AGREE", 5) == 0);
                (void)fuzz_take(&heard, (size_t)(end + 1 - heard.data));
        }
        while (heard.size > 0) {
                FUZZ_CHECK(heard.size >= 16 && heard.data[0] == 'l' && heard.data[3] == 1);
                FUZZ_CHECK(heard.data[1] == 2 || heard.data[1] == 3);
                size_t fields = get_u32(heard.data + 12), body = get_u32(heard.data + 4);
                size_t size = 16 + (fields + 7) / 8 * 8 + body;
                FUZZ_CHECK(size <= heard.size);
                (void)fuzz_take(&heard, size);
        }
}

static void hear(struct peer *with) {
        uint8_t bytes[16384];
        ssize_t n;

        while ((n = recv(with->fd, bytes, sizeof(bytes), MSG_DONTWAIT)) > 0)
                FUZZ_CHECK(buffer_append(&with->heard, bytes, (size_t)n) == 0);
}

static bool peer_step(void *userdata) {
        struct peer *with = userdata;

        hear(with);
        if (with->ended)
                return false;
        if (with->talk.size > 0) {
                ssize_t n = send(with->fd, with->talk.data, with->talk.size, MSG_NOSIGNAL | MSG_DONTWAIT);
                if (n > 0) {
                        (void)fuzz_take(&with->talk, (size_t)n);
                        return true;
                }
        }
        if (kept) { /* nothing is read from the peer before that */
                answer_kept();
                return true;
        }
        with->ended = true;
        (void)shutdown(with->fd, SHUT_WR);
        return true;
}

static int connect_bus(void) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

        (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s/bus", fuzz_directory);
        FUZZ_CHECK(fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0);
        return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static const char authentication[] = "\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n";
        _cleanup_(buffer_deinit) struct buffer talk = BUFFER_INIT(TALK_MAX);
        struct span input = { data, size };
        const enum choice choice = (enum choice)(fuzz_take_u8(&input) % CHOICE_COUNT);
        struct peer with = { .heard = BUFFER_INIT(HEARD_MAX) };

        start();
        if (choice != CHOICE_RAW)
                FUZZ_CHECK(buffer_append(&talk, authentication, sizeof(authentication) - 1) == 0);
        if (choice == CHOICE_CALLS)
                put_calls(&talk, input);
        else
                FUZZ_CHECK(buffer_append(&talk, input.data, base_min_u64(input.size, 4096)) == 0);
        with.talk = (struct span){ talk.data, talk.size };
        peer = &with;
        with.fd = connect_bus();
        fuzz_loop_run(fuzz_loop(), peer_step, &with);
        answer_kept();
        hear(&with);
        check_heard((struct span){ with.heard.data, with.heard.size });
        /* Only what was asked for by name was done. */
        FUZZ_CHECK(with.reloads == 0 || memmem(talk.data, talk.size, "Reload", 6));
        FUZZ_CHECK(with.retries == 0 || memmem(talk.data, talk.size, "Retry", 5));
        FUZZ_CHECK(with.cancels == 0 || memmem(talk.data, talk.size, "Cancel", 6));
        base_close_pointer(&with.fd);
        buffer_deinit(&with.heard);
        return 0;
}
