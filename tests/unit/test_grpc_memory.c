/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every allocation fails once, ours and nghttp2's and OpenSSL's and sd-event's: each call still ends with one
 * on_close, the loop goes on, nothing leaks, and the next call is a good one. Under AddressSanitizer, which has an
 * allocator of its own, there is nothing to do here.
 */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#        define WITH_SANITIZER 1
#elif defined(__has_feature)
#        if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#                define WITH_SANITIZER 1
#        endif
#endif

#ifdef WITH_SANITIZER
#        include <stdio.h>

int main(void) {
        puts("skipped: the sanitizer's allocator can't be made to fail");
        return 0;
}
#else

#        include "grpc_client.h"
#        include "grpc_certificates.h"

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *pointer, size_t size);
extern void __libc_free(void *pointer);

static __thread struct {
        bool counting;
        long live;               /* allocations of this thread less its frees */
        unsigned long countdown; /* 0: off */
        bool fired;
} memory;

static bool fails(void) {
        if (memory.countdown == 0 || --memory.countdown > 0)
                return false;
        memory.fired = true;
        errno = ENOMEM;
        return true;
}

static void *count(void *pointer) {
        memory.live += memory.counting && pointer;
        return pointer;
}

void *malloc(size_t size) {
        return fails() ? NULL : count(__libc_malloc(size));
}

void *calloc(size_t n, size_t size) {
        return fails() ? NULL : count(__libc_calloc(n, size));
}

void *realloc(void *pointer, size_t size) {
        if (fails())
                return NULL;
        void *result = __libc_realloc(pointer, size);
        memory.live += memory.counting && !pointer && result;
        return result;
}

void free(void *pointer) {
        memory.live -= memory.counting && pointer;
        __libc_free(pointer);
}

/* ---- one run -------------------------------------------------------------------------------------- */

static const struct peer_row rows[] = {
        {"/Unary", "h|m pong|t 0"},
        {"/Stream", "h|m a|f 20 3000|T grpc-status=5&grpc-message=no%20more"},
};

struct run {
        struct event *event;
        struct resolve *resolve;
        struct event_source *limit;
        unsigned closed, unary_ok, stream_ok;
};

static int run_on_message(struct grpc_call *call, struct span message, void *userdata) {
        (void)userdata;
        grpc_call_consume(call, message.size);
        return 0;
}

static int run_on_close(struct grpc_call *call, const struct grpc_result *result, void *userdata) {
        struct run *run = userdata;

        (void)call;
        run->closed++;
        run->unary_ok += result->status == GRPC_OK;
        run->stream_ok += result->status == GRPC_NOT_FOUND;
        if (result->status != GRPC_OK && result->status != GRPC_NOT_FOUND && !memory.fired)
                print_error("%s: %s\n", grpc_status_to_text(result->status), result->message);
        event_exit(run->event, 0);
        return 0;
}

static void run_call(struct run *run, struct grpc_channel *channel, const char *path, bool streaming) {
        static const struct grpc_call_handlers handlers = {run_on_message, run_on_close};
        struct grpc_call_options options = client_options(path, streaming);
        struct grpc_call *call = NULL;
        unsigned before = run->closed;

        options.timeout_usec = 5 * USEC_PER_SEC;
        options.manual_window = streaming;
        options.bearer_token = "token";
        if (grpc_call_start(channel, &options, &handlers, run, &call) < 0)
                return;
        int r = event_run(run->event);
        grpc_call_free(call);
        assert_int_equal(r, 0);
        assert_int_equal(run->closed, before + 1);
}

static void run_once(struct run *run, const struct grpc_channel_options *options, unsigned long countdown) {
        struct grpc_channel *channel = NULL;

        run->closed = run->unary_ok = run->stream_ok = 0;
        assert_int_equal(event_timer_set(run->limit, event_now_usec(run->event) + CLIENT_LIMIT_USEC), 0);
        memory.fired = false;
        memory.countdown = countdown;
        if (grpc_channel_new(run->event, run->resolve, options, &channel) == 0) {
                run_call(run, channel, "/Unary", false);
                run_call(run, channel, "/Stream", true);
                memory.countdown = 0;
                run->unary_ok = 0;
                run_call(run, channel, "/Unary", false); /* whatever it was, it is over */
                assert_int_equal(run->unary_ok, 1);
                grpc_channel_free(channel);
        }
        memory.countdown = 0;
        OPENSSL_thread_stop(); /* its error queue keeps the texts of errors */
}

static unsigned check_all(const struct grpc_channel_options *options, unsigned long step) {
        struct run run = {0};
        /* All of TLS's would take half a minute: each run takes others. SEED=… repeats one. */
        const char *text = getenv("SEED");
        unsigned long seed = text ? strtoul(text, NULL, 0) : (unsigned long)(base_random_u64() % 1000);
        unsigned long n = 1 + seed % step;

        print_message("SEED=%lu\n", seed);
        assert_int_equal(event_new(false, &run.event), 0);
        assert_int_equal(resolve_new(run.event, &run.resolve), 0);
        assert_int_equal(event_add_timer(run.event, "limit", client_on_limit, NULL, &run.limit), 0);
        run_once(&run, options, 0); /* what is made once and kept */
        run_once(&run, options, 0);
        assert_int_equal(run.stream_ok, 1);
        memory.counting = true;
        do {
                long live = memory.live;
                run_once(&run, options, n);
                if (memory.live != live) { /* made once and kept, by a library? Then not a second time. */
                        live = memory.live;
                        run_once(&run, options, n);
                }
                if (memory.live > live)
                        fail_msg("SEED=%lu, allocation %lu: %ld left behind", seed, n, memory.live - live);
                n += step;
        } while (memory.fired);
        memory.counting = false;
        event_source_free(run.limit);
        resolve_free(run.resolve);
        event_free(run.event);
        return (unsigned)n;
}

static void test_cleartext(void **state) {
        char endpoint[64];
        (void)state;
        struct peer *peer = peer_new(rows, ARRAY_SIZE(rows));
        peer_start(peer);
        snprintf(endpoint, sizeof(endpoint), "http://127.0.0.1:%u", peer->port);
        const struct grpc_channel_options options = {
                .endpoint = endpoint, .connect_timeout_usec = 5 * USEC_PER_SEC, .stream_window = 65536};
        unsigned n = check_all(&options, 1);
        print_message("%u allocations\n", n);
        assert_in_range(n, 50, 100000);
        peer_stop(peer);
}

static int select_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_size, const unsigned char *in,
                       unsigned int in_size, void *userdata) {
        (void)ssl;
        (void)in;
        (void)in_size;
        *out = (const unsigned char *)userdata + 1;
        *out_size = 2;
        return SSL_TLSEXT_ERR_OK;
}

static void test_tls(void **state) {
        char endpoint[64], directory[] = "/tmp/test-grpc-memory-XXXXXX", path[96];
        (void)state;
        assert_non_null(mkdtemp(directory));
        snprintf(path, sizeof(path), "%s/ca.pem", directory);
        struct identity ca = identity_make(NULL, "CA", NULL, -3600, 3600);
        struct identity server = identity_make(&ca, "server", "IP:127.0.0.1", -3600, 3600);
        identity_write(&ca, path, NULL);
        struct peer *peer = peer_new(rows, ARRAY_SIZE(rows));
        peer->tls = SSL_CTX_new(TLS_server_method());
        SSL_CTX_use_certificate(peer->tls, server.certificate);
        SSL_CTX_use_PrivateKey(peer->tls, server.key);
        static const unsigned char h2[] = {2, 'h', '2'};
        SSL_CTX_set_alpn_select_cb(peer->tls, select_alpn, (void *)(uintptr_t)h2);
        peer_start(peer);
        snprintf(endpoint, sizeof(endpoint), "https://127.0.0.1:%u", peer->port);
        const struct grpc_channel_options options = {.endpoint = endpoint,
                                                     .ca_file = path,
                                                     .connect_timeout_usec = 5 * USEC_PER_SEC,
                                                     .stream_window = 65536};
        unsigned n = check_all(&options, 7);
        print_message("%u allocations\n", n);
        peer_stop(peer);
        identity_free(&ca);
        identity_free(&server);
        unlink(path);
        rmdir(directory);
}

int main(void) {
        const struct CMUnitTest tests[] = {cmocka_unit_test(test_cleartext), cmocka_unit_test(test_tls)};

        return cmocka_run_group_tests_name("grpc_memory", tests, NULL, NULL);
}
#endif
