/* SPDX-License-Identifier: Apache-2.0 */
/* Connections that come, go and fall silent; deadlines; freeing in callbacks. */
#include "grpc_client.h"
#include "fake_names.h"

#include <sys/resource.h>

static const struct peer_row rows[] = {
        {"/Unary", "h|m pong|t 0"},
        {"/Wait", "h|m first|k|m last|t 0"},
        {"/WaitGoaway", "h|m first|g 1 0|k|m last|t 0"},
        {"/Never", "k"},
        {"/Above", "n 1|g -1 0|h|m pong|t 0"},
        {"/Refuse", "n 1|r 7|h|m pong|t 0"},
        {"/RefuseThird", "n 3|r 7|h|m pong|t 0"},
        {"/GoawayAlways", "g -1 0"},
        {"/Silent", "h|m first|s"},
        {"/Three", "h|m a|m b|m c|t 0"},
        {"/Kill", "x"},
};

static struct peer *peer_of_rows(void) {
        struct peer *peer = peer_new(rows, ARRAY_SIZE(rows));

        peer_start(peer);
        return peer;
}

static void end(struct client *client, struct peer *peer) {
        client_free(client);
        peer_stop(peer);
}

static struct client *client_with(const char *host, uint16_t port, uint64_t connect_timeout_usec) {
        char endpoint[64];

        snprintf(endpoint, sizeof(endpoint), "http://%s:%u", host, port);
        return client_new(&(struct grpc_channel_options){
                .endpoint = endpoint, .connect_timeout_usec = connect_timeout_usec, .stream_window = 65536});
}

static void assert_unavailable(const struct seen *seen, const char *part) {
        assert_int_equal(seen->closed, 1);
        if (seen->status != GRPC_UNAVAILABLE || seen->from_peer || !strstr(seen->message, part))
                fail_msg("%s, no \"%s\" in: %s", grpc_status_to_text(seen->status), part, seen->message);
}

static void assert_good(struct client *client) {
        struct seen seen = client_call(client, "/Unary", false);

        if (seen.status != GRPC_OK)
                fail_msg("%s: %s", grpc_status_to_text(seen.status), seen.message);
        assert_string_equal(seen.text, "pong");
}

/* ---- GOAWAY and refusals -------------------------------------------------------------------------- */

static void test_goaway_graceful(void **state) {
        (void)state;
        struct peer *peer = peer_of_rows();
        struct client *client = client_to(peer, "http");
        struct seen stream = {0};

        client_start(client, "/WaitGoaway", true, &stream);
        client_run(client, seen_has_message, &stream);
        assert_good(client);
        assert_good(client);
        assert_int_equal(atomic_load(&peer->connections), 2);
        assert_int_equal(stream.closed, 0);
        peer_release(peer);
        client_finish(client, &stream);
        assert_int_equal(stream.status, GRPC_OK);
        assert_string_equal(stream.text, "first,last");
        assert_good(client);
        assert_int_equal(atomic_load(&peer->connections), 2);
        end(client, peer);
}

static void test_goaway_above(void **state) {
        (void)state;
        struct peer *peer = peer_of_rows();
        struct client *client = client_to(peer, "http");
        struct seen seen = client_call(client, "/Above", false);

        assert_int_equal(seen.status, GRPC_OK);
        assert_string_equal(seen.text, "pong");
        assert_int_equal(atomic_load(&peer->connections), 2);
        end(client, peer);
}

static void test_refused_once(void **state) {
        (void)state;
        struct peer *peer = peer_of_rows();
        struct client *client = client_to(peer, "http");
        struct seen seen = client_call(client, "/Refuse", false);

        assert_int_equal(seen.status, GRPC_OK);
        assert_int_equal(atomic_load(&peer->requests), 2);
        assert_int_equal(atomic_load(&peer->connections), 1);
        seen = client_call(client, "/RefuseThird", false);
        assert_int_equal(seen.status, GRPC_OK);
        assert_int_equal(peer->last_body_size, 9);
        assert_memory_equal(peer->last_body, "\0\0\0\0\4ping", 9);
        end(client, peer);
}

static void test_goaway_always(void **state) {
        (void)state;
        struct peer *peer = peer_of_rows();
        struct client *client = client_to(peer, "http");
        struct seen seen = client_call(client, "/GoawayAlways", false);

        assert_unavailable(&seen, "");
        assert_int_equal(atomic_load(&peer->requests), 2);
        end(client, peer);

        peer = peer_new(rows, ARRAY_SIZE(rows));
        peer->goaway_first = true;
        peer_start(peer);
        client = client_to(peer, "http");
        seen = client_call(client, "/Unary", false);
        assert_unavailable(&seen, "");
        assert_in_range(atomic_load(&peer->connections), 1, 3);
        end(client, peer);
}

static void test_max_streams(void **state) {
        (void)state;
        struct peer *peer = peer_new(rows, ARRAY_SIZE(rows));
        peer->max_streams = 1;
        peer_start(peer);
        struct client *client = client_to(peer, "http");
        struct seen stream = {0}, waiting = {0}, freed = {0}, late = {0};
        struct grpc_call_options options = client_options("/Unary", false);

        client_start(client, "/Wait", true, &stream);
        client_run(client, seen_has_message, &stream);
        client_start(client, "/Unary", false, &waiting);
        client_start(client, "/Unary", false, &freed);
        options.timeout_usec = 50 * USEC_PER_MSEC;
        client_start_with(client, &options, &late);
        client_finish(client, &late);
        assert_int_equal(late.status, GRPC_DEADLINE_EXCEEDED);
        assert_int_equal(waiting.closed, 0);
        freed.call = grpc_call_free(freed.call);
        peer_release(peer);
        client_finish(client, &waiting);
        assert_int_equal(waiting.status, GRPC_OK);
        client_finish(client, &stream);
        assert_int_equal(freed.closed, 0);
        assert_int_equal(atomic_load(&peer->requests), 2);
        assert_int_equal(atomic_load(&peer->connections), 1);
        end(client, peer);
}

/* ---- deadlines, cancellation ---------------------------------------------------------------------- */

static bool peer_saw_reset(void *userdata) {
        struct peer *peer = userdata;

        return atomic_load(&peer->resets) > 0;
}

static void test_deadline(void **state) {
        (void)state;
        struct peer *peer = peer_of_rows();
        struct client *client = client_to(peer, "http");
        struct grpc_call_options options = client_options("/Never", true);
        struct seen seen = {0};

        options.timeout_usec = 100 * USEC_PER_MSEC;
        uint64_t begin = event_now_usec(client->event);
        client_start_with(client, &options, &seen);
        client_finish(client, &seen);
        assert_int_equal(seen.status, GRPC_DEADLINE_EXCEEDED);
        assert_false(seen.from_peer);
        assert_true(event_now_usec(client->event) - begin >= 100 * USEC_PER_MSEC);
        client_run(client, peer_saw_reset, peer);
        assert_int_equal(atomic_load(&peer->last_reset_code), NGHTTP2_CANCEL);
        assert_good(client);
        assert_int_equal(atomic_load(&peer->connections), 1);
        end(client, peer);
}

static void test_free_cancels(void **state) {
        (void)state;
        struct peer *peer = peer_of_rows();
        struct client *client = client_to(peer, "http");
        struct seen seen = {0}, unborn = {0};

        client_start(client, "/Unary", false, &unborn); /* before there is a connection */
        unborn.call = grpc_call_free(unborn.call);
        client_start(client, "/Wait", true, &seen);
        client_run(client, seen_has_message, &seen);
        seen.call = grpc_call_free(seen.call);
        client_run(client, peer_saw_reset, peer);
        assert_int_equal(atomic_load(&peer->last_reset_code), NGHTTP2_CANCEL);
        peer_release(peer);
        assert_good(client);
        assert_int_equal(seen.messages, 1);
        assert_int_equal(seen.closed + unborn.closed, 0);
        end(client, peer);
}

/* The last words of a channel that goes: RST_STREAM and GOAWAY reach the peer. */
static bool peer_saw_goaway(void *userdata) {
        struct peer *peer = userdata;

        return atomic_load(&peer->goaways) > 0;
}

static void test_goodbye(void **state) {
        (void)state;
        struct peer *peer = peer_of_rows();
        struct client *client = client_to(peer, "http"), *other = client_to(peer, "http");
        struct seen seen = {0};

        client_start(client, "/Wait", true, &seen);
        client_run(client, seen_has_message, &seen);
        seen.call = grpc_call_free(seen.call);
        client_free(client);
        client_run(other, peer_saw_goaway, peer);
        assert_int_equal(atomic_load(&peer->resets), 1);
        end(other, peer);
}

/* ---- connections that die ------------------------------------------------------------------------- */

static void test_killed(void **state) {
        (void)state;
        struct peer *peer = peer_of_rows();
        struct client *client = client_to(peer, "http");
        struct seen stream = {0}, unary = {0}, killer = {0};

        client_start(client, "/Wait", true, &stream);
        client_run(client, seen_has_message, &stream);
        assert_string_not_equal(grpc_channel_peer(client->channel), "");
        client_start(client, "/Never", false, &unary);
        client_start(client, "/Kill", false, &killer);
        client_finish(client, &killer);
        assert_unavailable(&killer, "closed by the peer");
        client_finish(client, &stream);
        assert_unavailable(&stream, "closed by the peer");
        client_finish(client, &unary);
        assert_unavailable(&unary, "closed by the peer");
        assert_string_equal(grpc_channel_peer(client->channel), "");
        assert_good(client);
        assert_int_equal(atomic_load(&peer->connections), 2);
        end(client, peer);
}

/* A peer that falls silent: only who waits for heartbeats can know. Then the connection goes, not just the call. */
static void test_drop(void **state) {
        (void)state;
        struct peer *peer = peer_of_rows();
        struct client *client = client_to(peer, "http");
        struct seen stream = {0}, unary = {0}, waiting = {0};

        client_start(client, "/Silent", true, &stream);
        client_run(client, seen_has_message, &stream);
        client_start(client, "/Unary", false, &unary);
        client_start(client, "/Unary", false, &waiting);
        grpc_channel_drop(client->channel);
        assert_int_equal(stream.closed + unary.closed + waiting.closed, 0);
        assert_string_equal(grpc_channel_peer(client->channel), "");
        assert_good(client);
        client_finish(client, &stream);
        client_finish(client, &unary);
        client_finish(client, &waiting);
        assert_unavailable(&stream, "dropped");
        assert_unavailable(&unary, "dropped");
        assert_unavailable(&waiting, "dropped");
        grpc_channel_drop(client->channel); /* also with nothing to drop */
        grpc_channel_drop(client->channel);
        assert_good(client);
        assert_int_equal(atomic_load(&peer->connections), 3);
        end(client, peer);
}

static void drop_hook(struct seen *seen) {
        grpc_channel_drop(seen->client->channel);
}

static void test_drop_in_callback(void **state) {
        (void)state;
        struct peer *peer = peer_of_rows();
        struct client *client = client_to(peer, "http");
        struct seen seen = {.hook = drop_hook}, other = {0};

        client_start(client, "/Wait", true, &other);
        client_start(client, "/Wait", true, &seen);
        client_finish(client, &seen);
        assert_unavailable(&seen, "dropped");
        assert_string_equal(seen.text, "first");
        client_finish(client, &other);
        assert_unavailable(&other, "dropped");
        assert_good(client);
        end(client, peer);
}

static void test_http1(void **state) {
        (void)state;
        struct peer *peer = peer_new(rows, ARRAY_SIZE(rows));
        peer->greeting = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
        peer_start(peer);
        struct client *client = client_to(peer, "http");
        struct seen seen = client_call(client, "/Unary", false);

        assert_unavailable(&seen, "HTTP/1.1");
        end(client, peer);
}

static void test_garbage_greeting(void **state) {
        (void)state;
        struct peer *peer = peer_new(rows, ARRAY_SIZE(rows));
        peer->greeting = "SSH-2.0-OpenSSH_9.2p1\r\n";
        peer_start(peer);
        struct client *client = client_to(peer, "http");
        struct seen seen = client_call(client, "/Unary", false);

        assert_unavailable(&seen, "");
        end(client, peer);
}

static void test_settings_never_acked(void **state) {
        (void)state;
        struct peer *peer = peer_new(rows, ARRAY_SIZE(rows));
        peer->ack_settings = false;
        peer_start(peer);
        struct client *client = client_to(peer, "http");

        assert_good(client);
        end(client, peer);
}

/* ---- connecting ----------------------------------------------------------------------------------- */

static void test_connect_timeout(void **state) {
        (void)state;
        struct peer *peer = peer_new(rows, ARRAY_SIZE(rows));
        peer->mute = true;
        peer_start(peer);
        struct client *client = client_with("127.0.0.1", peer->port, 100 * USEC_PER_MSEC);
        struct seen seen = client_call(client, "/Unary", false);
        assert_unavailable(&seen, "no connection within 100 ms (waiting for SETTINGS)");
        client_free(client);

        char endpoint[64];
        snprintf(endpoint, sizeof(endpoint), "https://127.0.0.1:%u", peer->port);
        client = client_new(&(struct grpc_channel_options){
                .endpoint = endpoint, .connect_timeout_usec = 100 * USEC_PER_MSEC, .stream_window = 65536});
        seen = client_call(client, "/Unary", false);
        assert_unavailable(&seen, "no connection within 100 ms (TLS handshake)");
        client_free(client);

        pthread_mutex_lock(&names.gate);
        client = client_with("cp.example", peer->port, 100 * USEC_PER_MSEC);
        seen = client_call(client, "/Unary", false);
        assert_unavailable(&seen, "no connection within 100 ms (resolving the name)");
        pthread_mutex_unlock(&names.gate);
        end(client, peer);
}

static void test_deadline_while_connecting(void **state) {
        (void)state;
        struct peer *peer = peer_new(rows, ARRAY_SIZE(rows));
        peer->mute = true;
        peer_start(peer);
        struct client *client = client_to(peer, "http");
        struct grpc_call_options options = client_options("/Unary", false);
        struct seen seen = {0};

        options.timeout_usec = 50 * USEC_PER_MSEC;
        client_start_with(client, &options, &seen);
        client_finish(client, &seen);
        assert_int_equal(seen.status, GRPC_DEADLINE_EXCEEDED);
        end(client, peer);
}

static uint16_t closed_port(void) {
        uint16_t port = 0;

        close(peer_listen("127.0.0.1", &port, 1));
        return port;
}

static void test_refused_connection(void **state) {
        static const char *const two[] = {"127.0.0.1", "127.0.0.3"};
        (void)state;
        struct client *client = client_with("127.0.0.1", closed_port(), USEC_PER_SEC);
        struct seen seen = client_call(client, "/Unary", false);
        assert_unavailable(&seen, "Connection refused");
        client_free(client);

        names_set(two, 2);
        client = client_with("cp.example", closed_port(), USEC_PER_SEC);
        seen = client_call(client, "/Unary", false);
        assert_unavailable(&seen, "; 127.0.0.3:");
        client_free(client);

        names.result = EAI_NONAME;
        client = client_with("cp.example", 1, USEC_PER_SEC);
        seen = client_call(client, "/Unary", false);
        assert_unavailable(&seen, "name cp.example: no such name");
        client_free(client);
}

/* The peer of the others is on 127.0.0.1; this one shares its port on another address. */
static void test_next_address(void **state) {
        static const char *const addresses[] = {"127.0.0.2", "127.0.0.1"};
        char peer_text[64];
        (void)state;
        struct peer *peer = peer_of_rows();
        names_set(addresses, 2);
        struct client *client = client_with("cp.example", peer->port, 5 * USEC_PER_SEC);

        assert_good(client); /* 127.0.0.2 refuses: the next one at once */
        snprintf(peer_text, sizeof(peer_text), "127.0.0.1:%u", peer->port);
        assert_string_equal(grpc_channel_peer(client->channel), peer_text);
        end(client, peer);
}

/* black_hole() - a listener whose backlog is full drops further SYNs. `fds` are to be closed. */
static void black_hole(const char *address, uint16_t port, int fds[8]) {
        struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(port)};

        inet_pton(AF_INET, address, &in.sin_addr);
        fds[0] = peer_listen(address, &port, 0);
        assert_true(fds[0] >= 0);
        for (int i = 1; i < 8; i++) {
                fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
                (void)connect(fds[i], (struct sockaddr *)&in, sizeof(in));
        }
}

static void test_black_hole(void **state) {
        static const char *const addresses[] = {"127.0.0.2", "127.0.0.1"};
        int fds[8];
        (void)state;
        struct peer *peer = peer_of_rows();
        black_hole("127.0.0.2", peer->port, fds);
        names_set(addresses, 2);
        struct client *client = client_with("cp.example", peer->port, 5 * USEC_PER_SEC);

        uint64_t begin = event_now_usec(client->event);
        assert_good(client);
        assert_in_range(event_now_usec(client->event) - begin, 250 * USEC_PER_MSEC, 3 * USEC_PER_SEC);
        for (int i = 0; i < 8; i++)
                close(fds[i]);
        end(client, peer);
}

/* A peer that takes TCP and nothing else does not lock us out while another would serve. */
static void test_rotation(void **state) {
        static const char *const addresses[] = {"127.0.0.2", "127.0.0.1"};
        (void)state;
        struct peer *peer = peer_of_rows();
        uint16_t port = peer->port;
        int fd = peer_listen("127.0.0.2", &port, 8);
        assert_true(fd >= 0);
        names_set(addresses, 2);
        struct client *client = client_with("cp.example", peer->port, 400 * USEC_PER_MSEC);
        struct seen seen = client_call(client, "/Unary", false);

        assert_unavailable(&seen, "waiting for SETTINGS");
        assert_good(client);
        close(fd);
        end(client, peer);
}

/* ---- callbacks ------------------------------------------------------------------------------------ */

static void test_free_in_callbacks(void **state) {
        (void)state;
        struct peer *peer = peer_of_rows();
        struct client *client = client_to(peer, "http");
        struct seen marker = {0};

        for (int i = 0; i < 4; i++) {
                struct seen first = {0}, second = {0};
                first.free_on_message = i & 1;
                first.free_on_close = true;
                if (i & 2)
                        first.also_free = &second;
                client_start(client, "/Three", true, &first);
                client_start(client, "/Three", true, &second);
                marker = client_call(client, "/Unary", false);
                assert_int_equal(marker.status, GRPC_OK);
                if (second.call)
                        client_finish(client, &second);
                assert_null(first.call);
                assert_int_equal(first.closed, i & 1 ? 0 : 1);
                assert_int_equal(first.messages, i & 1 ? 1 : 3);
                if (i & 2)
                        assert_true(second.closed == 0);
        }
        end(client, peer);
}

static void free_channel_hook(struct seen *seen) {
        seen->call = grpc_call_free(seen->call);
        seen->client->channel = grpc_channel_free(seen->client->channel);
        seen->closed = 1; /* ends the run */
}

static void test_free_channel_in_callback(void **state) {
        (void)state;
        struct peer *peer = peer_of_rows();
        struct client *client = client_to(peer, "http");
        struct seen seen = {.hook = free_channel_hook};

        client_start(client, "/Three", true, &seen);
        client_run(client, seen_is_closed, &seen);
        assert_int_equal(seen.messages, 1);
        end(client, peer);
}

static void start_hook(struct seen *seen) {
        if (!seen->also_free)
                return;
        client_start(seen->client, "/Unary", false, seen->also_free);
        seen->also_free = NULL;
}

static void test_start_in_callback(void **state) {
        (void)state;
        struct peer *peer = peer_of_rows();
        struct client *client = client_to(peer, "http");
        struct seen inner = {0}, outer = {.hook = start_hook, .also_free = &inner};

        client_start(client, "/Three", true, &outer);
        client_finish(client, &outer);
        client_finish(client, &inner);
        assert_int_equal(inner.status, GRPC_OK);
        end(client, peer);
}

static int failing_on_close(struct grpc_call *call, const struct grpc_result *result, void *userdata) {
        (void)call;
        (void)result;
        (void)userdata;
        return -EPIPE;
}

static void test_failing_callback(void **state) {
        static const struct grpc_call_handlers handlers = {seen_on_message, failing_on_close};
        (void)state;
        struct peer *peer = peer_of_rows();
        struct client *client = client_to(peer, "http");
        struct grpc_call_options options = client_options("/Unary", false);
        struct seen seen = {.client = client};

        assert_int_equal(grpc_call_start(client->channel, &options, &handlers, &seen, &seen.call), 0);
        assert_int_equal(event_run(client->event), -EPIPE);
        grpc_call_free(seen.call);
        end(client, peer);
}

/* ---- rest ----------------------------------------------------------------------------------------- */

static int on_stop(void *userdata) {
        event_exit(userdata, 0);
        return 0;
}

/* With a stream open and nothing to say the process sleeps. */
static void test_idle(void **state) {
        struct rusage before, after;
        struct event_source *timer = NULL;
        (void)state;
        struct peer *peer = peer_of_rows();
        struct client *client = client_to(peer, "http");
        struct seen stream = {0};

        client_start(client, "/Wait", true, &stream);
        client_run(client, seen_has_message, &stream);
        assert_good(client);
        assert_int_equal(event_add_timer(client->event, "stop", on_stop, client->event, &timer), 0);
        assert_int_equal(event_timer_set(timer, event_now_usec(client->event) + 700 * USEC_PER_MSEC), 0);
        getrusage(RUSAGE_THREAD, &before);
        assert_int_equal(event_run(client->event), 0);
        getrusage(RUSAGE_THREAD, &after);
        assert_in_range(after.ru_nvcsw - before.ru_nvcsw, 0, 3);
        event_source_free(timer);
        grpc_call_free(stream.call);
        end(client, peer);
}

int main(void) {
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_goaway_graceful),
                cmocka_unit_test(test_goaway_above),
                cmocka_unit_test(test_refused_once),
                cmocka_unit_test(test_goaway_always),
                cmocka_unit_test(test_max_streams),
                cmocka_unit_test(test_deadline),
                cmocka_unit_test(test_free_cancels),
                cmocka_unit_test(test_goodbye),
                cmocka_unit_test(test_killed),
                cmocka_unit_test(test_drop),
                cmocka_unit_test(test_drop_in_callback),
                cmocka_unit_test(test_http1),
                cmocka_unit_test(test_garbage_greeting),
                cmocka_unit_test(test_settings_never_acked),
                cmocka_unit_test(test_connect_timeout),
                cmocka_unit_test(test_deadline_while_connecting),
                cmocka_unit_test(test_refused_connection),
                cmocka_unit_test(test_next_address),
                cmocka_unit_test(test_black_hole),
                cmocka_unit_test(test_rotation),
                cmocka_unit_test(test_free_in_callbacks),
                cmocka_unit_test(test_free_channel_in_callback),
                cmocka_unit_test(test_start_in_callback),
                cmocka_unit_test(test_failing_callback),
                cmocka_unit_test(test_idle),
        };

        return cmocka_run_group_tests_name("grpc_connection", tests, NULL, NULL);
}
