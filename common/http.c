/* SPDX-License-Identifier: Apache-2.0 */
/*
 * http: HTTP/1.1 requests, one libcurl multi handle on the loop
 *
 * libcurl's multi_socket interface tells which descriptors and which timeout it waits for; the loop's sources stand in
 * for them. What shaped this file:
 *
 * - libcurl refuses curl_multi_add_handle() and curl_multi_remove_handle() inside its own callbacks. So nobody
 *   outside this file ever runs there: a finished transfer is taken out of the multi handle right after the
 *   call that finished it, put into a queue, and delivered from a deferred source. Whoever is called back may start and
 *   free whatever they like.
 * - One timer of ours bounds a request from its start to its end. CURLOPT_TIMEOUT_MS would not cover the name
 *   look-up and the wait for a connection, which happen outside of libcurl.
 * - Names are resolved by resolve.h and handed over as CURLOPT_RESOLVE. libcurl's own resolver makes a thread per
 *   look-up, and cancelling one blocks until getaddrinfo(3) returns. A resolver-start hook refuses it for good measure.
 * - At most HTTP_HOST_CONNECTIONS_MAX transfers per host are in the multi handle; the rest wait here. libcurl's
 *   CURLMOPT_MAX_HOST_CONNECTIONS does the same with several known defects (curl#2369, curl#13276, curl#21396).
 * - Idle connections are closed after less than the 30 s after which Jetty closes them, so that a request seldom
 *   meets a dying one. When it does, before a byte of the answer came, libcurl sends it again on a new one.
 */
#include "http.h"
#include "event.h"
#include "resolve.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/queue.h>

#define IDLE_CONNECTIONS_MAX 16L
#define IDLE_SECONDS_MAX 25L
#define ERROR_MAX 255
#define HOST_MAX 255

TAILQ_HEAD(request_queue, http_request);

/* All requests to one scheme, host and port. */
struct http_host {
        char authority[HOST_MAX + 32];
        unsigned references; /* requests that point here */
        unsigned active;     /* of them: hold one of HTTP_HOST_CONNECTIONS_MAX slots */
        struct request_queue waiting;
        LIST_ENTRY(http_host) entry;
};

/* A descriptor that libcurl waits for. */
struct http_socket {
        struct http *http;
        curl_socket_t fd;
        struct event_source *source;
        LIST_ENTRY(http_socket) entry;
};

struct http {
        struct event *event;
        struct resolve *resolve;
        CURLM *multi;
        struct event_source *timer;
        struct event_source *deferred;
        LIST_HEAD(, http_socket) sockets;
        LIST_HEAD(, http_host) hosts;
        struct request_queue done; /* wait for their delivery */
        int failure;               /* of the loop's sources: ends the loop in the next turn */
        bool global;
};

enum request_phase {
        PHASE_IDLE,
        PHASE_WAITING,      /* in host->waiting */
        PHASE_RESOLVING,    /* has a slot */
        PHASE_TRANSFERRING, /* has a slot, in the multi handle */
        PHASE_DONE,         /* in http->done */
        PHASE_DELIVERED,
};

struct http_request {
        struct http *http;
        struct http_host *host;
        http_handler handler;
        void *userdata;
        enum request_phase phase;
        CURL *easy;
        struct curl_slist *headers, *addresses;
        struct resolve_query *query;
        struct event_source *timer;
        uint64_t timeout_usec;
        char name[HOST_MAX + 1]; /* to be resolved; "": a numeric host */
        uint16_t port;
        size_t header_size;
        size_t body_max;
        struct buffer body;
        bool too_large, no_memory, malformed; /* set inside libcurl's callbacks */
        enum http_outcome outcome;
        int status;
        char curl_error[CURL_ERROR_SIZE];
        char error[ERROR_MAX + 1];
        TAILQ_ENTRY(http_request) entry;
};

/* ---- what libcurl waits for ----------------------------------------------------------------------- */

static void http_fail(struct http *http, int error) {
        if (http->failure == 0)
                http->failure = error;
        (void)event_deferred_schedule(http->deferred);
}

static void http_harvest(struct http *http);

static int http_drive(struct http *http, curl_socket_t fd, int mask) {
        int running;
        CURLMcode code = curl_multi_socket_action(http->multi, fd, mask, &running);
        if (code != CURLM_OK && http->failure == 0)
                http->failure = code == CURLM_OUT_OF_MEMORY ? -ENOMEM : -EIO;
        http_harvest(http);
        return http->failure;
}

static int on_socket_ready(uint32_t epoll_events, void *userdata) {
        struct http_socket *socket = userdata;
        int mask = (epoll_events & EPOLLIN ? CURL_CSELECT_IN : 0) | (epoll_events & EPOLLOUT ? CURL_CSELECT_OUT : 0) |
                   (epoll_events & (EPOLLERR | EPOLLHUP) ? CURL_CSELECT_ERR : 0);
        return http_drive(socket->http, socket->fd, mask); /* may free `socket` */
}

static int on_timer(void *userdata) {
        return http_drive(userdata, CURL_SOCKET_TIMEOUT, 0);
}

static struct http_socket *socket_free(struct http_socket *socket) {
        if (!socket)
                return NULL;
        event_source_free(socket->source);
        LIST_REMOVE(socket, entry);
        free(socket);
        return NULL;
}

static int socket_new(struct http *http, curl_socket_t fd, uint32_t epoll_events) {
        struct http_socket *socket = calloc(1, sizeof(*socket));
        if (!socket)
                return -ENOMEM;
        socket->http = http;
        socket->fd = fd;
        LIST_INSERT_HEAD(&http->sockets, socket, entry);
        int r = event_add_io(http->event, "http-socket", fd, epoll_events, on_socket_ready, socket, &socket->source);
        if (r >= 0 && curl_multi_assign(http->multi, fd, socket) != CURLM_OK)
                r = -EIO;
        if (r < 0)
                socket_free(socket);
        return r;
}

/* Inside libcurl. CURL_POLL_REMOVE comes before the descriptor is closed. */
static int on_curl_socket(CURL *easy, curl_socket_t fd, int what, void *userdata, void *socket_data) {
        struct http *http = userdata;
        struct http_socket *socket = socket_data;
        uint32_t epoll_events =
                (what & CURL_POLL_IN ? (uint32_t)EPOLLIN : 0) | (what & CURL_POLL_OUT ? (uint32_t)EPOLLOUT : 0);

        (void)easy;
        if (what == CURL_POLL_REMOVE) {
                socket_free(socket);
                return 0;
        }
        int r = socket ? event_io_set(socket->source, epoll_events) : socket_new(http, fd, epoll_events);
        if (r < 0)
                http_fail(http, r);
        return 0;
}

/* Inside libcurl. */
static int on_curl_timer(CURLM *multi, long timeout_msec, void *userdata) {
        struct http *http = userdata;
        uint64_t at_usec = USEC_NEVER;

        (void)multi;
        if (timeout_msec >= 0)
                at_usec = base_usec_add(event_now_usec(http->event), (uint64_t)timeout_msec * USEC_PER_MSEC);
        int r = event_timer_set(http->timer, at_usec);
        if (r < 0)
                http_fail(http, r);
        return 0;
}

/* ---- what libcurl delivers ------------------------------------------------------------------------ */

/* libcurl calls whatever else begins with "HTTP/" a 200 (RFC 9112 section 4 has the form). */
static bool is_bad_status_line(const char *bytes, size_t size) {
        if (size < 5 || memcmp(bytes, "HTTP/", 5) != 0)
                return false; /* a field */
        if (size < 13 || memcmp(bytes, "HTTP/1.", 7) != 0 || (bytes[7] != '0' && bytes[7] != '1') || bytes[8] != ' ')
                return true;
        for (size_t i = 9; i < 12; i++)
                if (bytes[i] < '0' || bytes[i] > '9')
                        return true;
        return bytes[12] != ' ' && bytes[12] != '\r' && bytes[12] != '\n';
}

static size_t on_curl_header(char *bytes, size_t size, size_t count, void *userdata) {
        struct http_request *request = userdata;

        if (is_bad_status_line(bytes, size * count)) {
                request->malformed = true;
                return 0;
        }
        request->header_size += size * count;
        if (request->header_size <= HTTP_HEADERS_MAX)
                return size * count;
        request->too_large = true;
        return 0;
}

static size_t on_curl_body(char *bytes, size_t size, size_t count, void *userdata) {
        struct http_request *request = userdata;

        size *= count;
        if (size > request->body_max - request->body.size) {
                request->too_large = true;
                return 0;
        }
        if (buffer_append(&request->body, bytes, size) < 0) {
                request->no_memory = true;
                return 0;
        }
        return size;
}

/* A name that gets here was not in CURLOPT_RESOLVE: better an error than libcurl's thread. */
static int on_curl_resolver(void *resolver_state, void *reserved, void *userdata) {
        (void)resolver_state;
        (void)reserved;
        (void)userdata;
        return 1;
}

/* ---- a request's way -------------------------------------------------------------------------------- */

static void host_fill(struct http_host *host);

/* request_stop() - whatever it waits for, it waits no more; its slot goes to the next one. */
static void request_stop(struct http_request *request) {
        enum request_phase phase = request->phase;

        request->phase = PHASE_IDLE;
        request->timer = event_source_free(request->timer);
        request->query = resolve_cancel(request->query);
        if (phase == PHASE_WAITING)
                TAILQ_REMOVE(&request->host->waiting, request, entry);
        if (phase == PHASE_DONE)
                TAILQ_REMOVE(&request->http->done, request, entry);
        if (phase == PHASE_TRANSFERRING)
                (void)curl_multi_remove_handle(request->http->multi, request->easy);
        if (phase == PHASE_RESOLVING || phase == PHASE_TRANSFERRING) {
                request->host->active--;
                host_fill(request->host);
        }
}

static void request_complete(struct http_request *request, enum http_outcome outcome, const char *error) {
        base_text_escape(request->error, sizeof(request->error), error, strlen(error));
        request->outcome = outcome;
        request_stop(request);
        request->phase = PHASE_DONE;
        TAILQ_INSERT_TAIL(&request->http->done, request, entry);
        (void)event_deferred_schedule(request->http->deferred);
}

static int request_transfer(struct http_request *request) {
        CURLMcode code = curl_multi_add_handle(request->http->multi, request->easy);
        if (code != CURLM_OK)
                return code == CURLM_OUT_OF_MEMORY ? -ENOMEM : -EIO;
        request->phase = PHASE_TRANSFERRING;
        return 0;
}

/* "host:port:address,address", IPv6 in brackets. */
static int request_set_addresses(struct http_request *request, const struct resolve_address *addresses, size_t count) {
        char line[HOST_MAX + 16 + RESOLVE_ADDRESSES_MAX * (INET6_ADDRSTRLEN + 3)], text[INET6_ADDRSTRLEN];
        int used = snprintf(line, sizeof(line), "%s:%u:", request->name, request->port);

        for (size_t i = 0; i < count && i < RESOLVE_ADDRESSES_MAX; i++) {
                const struct sockaddr_storage *address = &addresses[i].address;
                bool six = address->ss_family == AF_INET6;
                const void *bytes = six ? (const void *)&((const struct sockaddr_in6 *)address)->sin6_addr
                                        : (const void *)&((const struct sockaddr_in *)address)->sin_addr;
                if (!inet_ntop(address->ss_family, bytes, text, sizeof(text)))
                        return -errno;
                used += snprintf(line + used, sizeof(line) - (size_t)used, six ? "%s[%s]" : "%s%s", i > 0 ? "," : "",
                                 text);
        }
        request->addresses = curl_slist_append(NULL, line);
        if (!request->addresses || curl_easy_setopt(request->easy, CURLOPT_RESOLVE, request->addresses) != CURLE_OK)
                return -ENOMEM;
        return 0;
}

static int on_resolved(int result, const struct resolve_address *addresses, size_t count, void *userdata) {
        struct http_request *request = userdata;
        char error[HOST_MAX + 64], text[128];

        if (result == 0) {
                result = request_set_addresses(request, addresses, count);
                if (result == 0)
                        result = request_transfer(request);
                if (result == 0)
                        return 0;
        }
        snprintf(error, sizeof(error), "cannot resolve %s: %s", request->name,
                 result == -ENXIO    ? "no such name"
                 : result == -EAGAIN ? "no answer from the name server"
                                     : strerror_r(-result, text, sizeof(text)));
        request_complete(request, HTTP_UNREACHABLE, error);
        return 0;
}

/* request_activate() - takes a slot. On failure it has none. */
static int request_activate(struct http_request *request) {
        int r;

        request->host->active++;
        if (request->name[0] != '\0') {
                request->phase = PHASE_RESOLVING;
                r = resolve_start(request->http->resolve, request->name, request->port, on_resolved, request,
                                  &request->query);
        } else
                r = request_transfer(request);
        if (r < 0) {
                request->phase = PHASE_IDLE;
                request->host->active--;
        }
        return r;
}

/* host_fill() - give free slots to those that wait longest. */
static void host_fill(struct http_host *host) {
        struct http_request *request;

        while (host->active < HTTP_HOST_CONNECTIONS_MAX && (request = TAILQ_FIRST(&host->waiting))) {
                TAILQ_REMOVE(&host->waiting, request, entry);
                request->phase = PHASE_IDLE;
                if (request_activate(request) < 0)
                        request_complete(request, HTTP_UNREACHABLE, "out of memory");
        }
}

static const char *phase_to_timeout(const struct http_request *request) {
        long sent = 0;

        switch (request->phase) {
        case PHASE_WAITING:
                return "no free connection";
        case PHASE_RESOLVING:
                return "host name not resolved";
        case PHASE_TRANSFERRING:
                (void)curl_easy_getinfo(request->easy, CURLINFO_REQUEST_SIZE, &sent);
                return sent > 0 ? "no complete answer" : "no connection";
        case PHASE_IDLE:
        case PHASE_DONE:
        case PHASE_DELIVERED:
                break;
        }
        return "nothing";
}

static int on_request_timeout(void *userdata) {
        struct http_request *request = userdata;
        char error[ERROR_MAX + 1];

        snprintf(error, sizeof(error), "%s within %" PRIu64 " ms", phase_to_timeout(request),
                 request->timeout_usec / USEC_PER_MSEC);
        request_complete(request, HTTP_TIMEOUT, error);
        return 0;
}

static void request_fail(struct http_request *request, CURLcode code) {
        char text[128];
        long number = 0;

        if (request->no_memory)
                request_complete(request, HTTP_UNREACHABLE, "out of memory");
        else if (request->malformed)
                request_complete(request, HTTP_UNREACHABLE, "the status line is not HTTP/1.x's");
        else if (request->too_large && request->header_size > HTTP_HEADERS_MAX)
                request_complete(request, HTTP_TOO_LARGE, "the response headers are too large");
        else if (request->too_large)
                request_complete(request, HTTP_TOO_LARGE, "the response body is too large");
        else if (code == CURLE_COULDNT_CONNECT &&
                 curl_easy_getinfo(request->easy, CURLINFO_OS_ERRNO, &number) == CURLE_OK && number > 0)
                request_complete(request, HTTP_UNREACHABLE, strerror_r((int)number, text, sizeof(text)));
        else
                request_complete(request, code == CURLE_OPERATION_TIMEDOUT ? HTTP_TIMEOUT : HTTP_UNREACHABLE,
                                 request->curl_error[0] ? request->curl_error : curl_easy_strerror(code));
}

static void request_finish(struct http_request *request, CURLcode code) {
        long status = 0;

        if (code != CURLE_OK || curl_easy_getinfo(request->easy, CURLINFO_RESPONSE_CODE, &status) != CURLE_OK ||
            status < 100 || status > 999) {
                request_fail(request, code == CURLE_OK ? CURLE_WEIRD_SERVER_REPLY : code);
                return;
        }
        request->status = (int)status;
        request_complete(request, HTTP_ANSWERED, "");
}

/* http_harvest() - outside of libcurl: take finished transfers out of the multi handle. */
static void http_harvest(struct http *http) {
        CURLMsg *message;
        int left;

        while ((message = curl_multi_info_read(http->multi, &left))) {
                struct http_request *request = NULL;
                CURLcode code = message->data.result; /* the message is gone with curl_multi_remove_handle() */
                if (message->msg != CURLMSG_DONE)
                        continue;
                if (curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **)&request) == CURLE_OK && request)
                        request_finish(request, code);
        }
}

/* on_deferred() - deliver one. The handler may free its request, others, and the whole object, so all that is
 * needed later is local. */
static int on_deferred(void *userdata) {
        struct http *http = userdata;
        struct http_request *request = TAILQ_FIRST(&http->done);

        if (http->failure < 0)
                return http->failure;
        if (!request)
                return 0;
        TAILQ_REMOVE(&http->done, request, entry);
        request->phase = PHASE_DELIVERED;
        if (!TAILQ_EMPTY(&http->done)) {
                int r = event_deferred_schedule(http->deferred);
                if (r < 0)
                        return r;
        }

        bool answered = request->outcome == HTTP_ANSWERED;
        char error[ERROR_MAX + 1];
        (void)base_text_copy(error, sizeof(error), request->error);
        struct buffer body = request->body;
        request->body = BUFFER_INIT(0);
        const char *text = answered ? buffer_text(&body) : NULL;
        struct http_result result = {
                .outcome = request->outcome,
                .status = request->status,
                .body = {.data = (const uint8_t *)(text ? text : ""), .size = text ? body.size : 0},
                .error = error,
        };
        int r = request->handler(&result, request->userdata);
        buffer_deinit(&body);
        return r < 0 ? r : 0;
}

/* ---- making a request ------------------------------------------------------------------------------- */

static struct http_host *host_unref(struct http_host *host) {
        if (!host || --host->references > 0)
                return NULL;
        LIST_REMOVE(host, entry);
        free(host);
        return NULL;
}

static int host_ref(struct http *http, const char *authority, struct http_host **ret) {
        struct http_host *host;

        for (host = LIST_FIRST(&http->hosts); host; host = LIST_NEXT(host, entry))
                if (strcasecmp(host->authority, authority) == 0) {
                        host->references++;
                        *ret = host;
                        return 0;
                }
        host = calloc(1, sizeof(*host));
        if (!host)
                return -ENOMEM;
        (void)base_text_copy(host->authority, sizeof(host->authority), authority);
        host->references = 1;
        TAILQ_INIT(&host->waiting);
        LIST_INSERT_HEAD(&http->hosts, host, entry);
        *ret = host;
        return 0;
}

static bool host_is_name(const char *host) {
        struct in_addr address;
        return host[0] != '[' && inet_pton(AF_INET, host, &address) != 1;
}

/* libcurl changes the spelling of other names (IDN) before it looks them up, and they would miss their
 * CURLOPT_RESOLVE entry; so would a trailing dot in some versions. */
static bool host_name_is_valid(const char *name) {
        size_t size = strlen(name);
        if (size == 0 || size > HOST_MAX || name[size - 1] == '.')
                return false;
        return strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == size;
}

static void curl_free_pointer(char **text) {
        curl_free(*text);
}

static void curl_url_free_pointer(CURLU **url) {
        curl_url_cleanup(*url);
}

/* request_set_url() - who is asked? Sets host, name and port. */
static int request_set_url(struct http_request *request, const char *text) {
        _cleanup_(curl_url_free_pointer) CURLU *url = curl_url();
        _cleanup_(curl_free_pointer) char *scheme = NULL;
        _cleanup_(curl_free_pointer) char *host = NULL;
        _cleanup_(curl_free_pointer) char *port = NULL;
        char authority[HOST_MAX + 32];
        uint64_t number;

        if (!url)
                return -ENOMEM;
        CURLUcode code = curl_url_set(url, CURLUPART_URL, text, CURLU_DISALLOW_USER);
        if (code == CURLUE_OK)
                code = curl_url_get(url, CURLUPART_SCHEME, &scheme, 0);
        if (code == CURLUE_OK)
                code = curl_url_get(url, CURLUPART_HOST, &host, 0);
        if (code == CURLUE_OK)
                code = curl_url_get(url, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT);
        if (code != CURLUE_OK)
                return code == CURLUE_OUT_OF_MEMORY ? -ENOMEM : -EINVAL;
        if (strcmp(scheme, "http") != 0 && strcmp(scheme, "https") != 0)
                return -EINVAL;
        if (strlen(host) > HOST_MAX || base_parse_u64(port, 1, UINT16_MAX, &number) < 0)
                return -EINVAL;
        request->port = (uint16_t)number;
        if (host_is_name(host)) {
                if (!host_name_is_valid(host))
                        return -EINVAL;
                (void)base_text_copy(request->name, sizeof(request->name), host);
        }
        snprintf(authority, sizeof(authority), "%s://%s:%s", scheme, host, port);
        return host_ref(request->http, authority, &request->host);
}

static bool text_is_printable(const char *text) {
        for (; *text; text++)
                if (*text < ' ' || *text > '~')
                        return false;
        return true;
}

static int request_add_header(struct http_request *request, const char *line) {
        struct curl_slist *list = curl_slist_append(request->headers, line);
        if (!list)
                return -ENOMEM;
        request->headers = list;
        return 0;
}

static int request_add_token(struct http_request *request, const char *token) {
        _cleanup_free_ char *line = NULL;

        if (asprintf(&line, "Authorization: Bearer %s", token) < 0) {
                line = NULL;
                return -ENOMEM;
        }
        int r = request_add_header(request, line);
        explicit_bzero(line, strlen(line));
        return r;
}

static int request_set_headers(struct http_request *request, const struct http_options *options) {
        const char *token = options->bearer_token, *header = options->header;
        /* "Name:" tells libcurl not to send what it would add by itself. */
        int r = request_add_header(request, "Expect:");
        if (r == 0)
                r = request_add_header(request, "Content-Type:");
        if (r == 0)
                r = request_add_header(request, "Accept: application/json");
        if (r == 0 && token)
                r = token[0] && text_is_printable(token) ? request_add_token(request, token) : -EINVAL;
        if (r == 0 && header)
                r = strchr(header, ':') && text_is_printable(header) ? request_add_header(request, header) : -EINVAL;
        return r;
}

#define SET(option, value)                                                                                             \
        do {                                                                                                           \
                CURLcode code_ = curl_easy_setopt(request->easy, (option), (value));                                   \
                if (code_ != CURLE_OK)                                                                                 \
                        return code_ == CURLE_OUT_OF_MEMORY ? -ENOMEM : -EINVAL;                                       \
        } while (0)

static int request_set_transport(struct http_request *request, const struct http_options *options) {
        uint64_t connect_msec = base_min_u64(options->timeout_usec / USEC_PER_MSEC + 1, INT32_MAX);

        SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
        SET(CURLOPT_NOSIGNAL, 1L);
        SET(CURLOPT_PROXY, ""); /* not even from the environment */
        SET(CURLOPT_FOLLOWLOCATION, 0L);
#if LIBCURL_VERSION_NUM >= 0x075500
        SET(CURLOPT_PROTOCOLS_STR, "http,https");
#else
        SET(CURLOPT_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
        /* Also halves the time of each address where a name has several, so it is set although our timer comes first.
         */
        SET(CURLOPT_CONNECTTIMEOUT_MS, (long)connect_msec);
        SET(CURLOPT_MAXAGE_CONN, IDLE_SECONDS_MAX);
        SET(CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
        SET(CURLOPT_SSL_VERIFYPEER, 1L);
        SET(CURLOPT_SSL_VERIFYHOST, 2L);
#if LIBCURL_VERSION_NUM >= 0x075700
        SET(CURLOPT_CA_CACHE_TIMEOUT, 0L); /* a rotated CA counts at the next connection, not a day later */
#endif
        if (options->ca_file)
                SET(CURLOPT_CAINFO, options->ca_file);
        if (options->certificate_file)
                SET(CURLOPT_SSLCERT, options->certificate_file);
        if (options->private_key_file)
                SET(CURLOPT_SSLKEY, options->private_key_file);
        if (request->name[0] != '\0')
                SET(CURLOPT_RESOLVER_START_FUNCTION, on_curl_resolver);
        return 0;
}

static int request_set_message(struct http_request *request, const struct http_options *options) {
        SET(CURLOPT_URL, options->url);
        if (strcmp(options->method, "POST") == 0) {
                SET(CURLOPT_POST, 1L);
                SET(CURLOPT_POSTFIELDS, "");
                SET(CURLOPT_POSTFIELDSIZE, 0L);
        } else if (strcmp(options->method, "GET") == 0)
                SET(CURLOPT_HTTPGET, 1L);
        else
                return -EINVAL;
        SET(CURLOPT_HTTPHEADER, request->headers);
        SET(CURLOPT_USERAGENT, "spark-cancel-agent/" VERSION);
        SET(CURLOPT_HEADERFUNCTION, on_curl_header);
        SET(CURLOPT_HEADERDATA, request);
        SET(CURLOPT_WRITEFUNCTION, on_curl_body);
        SET(CURLOPT_WRITEDATA, request);
        SET(CURLOPT_ERRORBUFFER, request->curl_error);
        SET(CURLOPT_PRIVATE, request);
        return 0;
}

static int request_prepare(struct http_request *request, const struct http_options *options) {
        int r = request_set_url(request, options->url);
        if (r < 0)
                return r;
        request->easy = curl_easy_init();
        if (!request->easy)
                return -ENOMEM;
        r = request_set_headers(request, options);
        if (r < 0)
                return r;
        r = request_set_message(request, options);
        if (r < 0)
                return r;
        r = request_set_transport(request, options);
        if (r < 0)
                return r;
        r = event_add_timer(request->http->event, "http-timeout", on_request_timeout, request, &request->timer);
        if (r < 0)
                return r;
        return event_timer_set(request->timer,
                               base_usec_add(event_now_usec(request->http->event), options->timeout_usec));
}

int http_request_start(struct http *http, const struct http_options *options, http_handler handler, void *userdata,
                       struct http_request **ret) {
        _cleanup_(http_request_free_pointer) struct http_request *request = calloc(1, sizeof(*request));
        if (!request)
                return -ENOMEM;
        request->http = http;
        request->handler = handler;
        request->userdata = userdata;
        request->timeout_usec = options->timeout_usec;
        request->body_max = base_min_u64(options->body_max, SIZE_MAX - 1);
        request->body = BUFFER_INIT(request->body_max + 1); /* the NUL */
        int r = request_prepare(request, options);
        if (r < 0)
                return r;
        if (request->host->active >= HTTP_HOST_CONNECTIONS_MAX) {
                request->phase = PHASE_WAITING;
                TAILQ_INSERT_TAIL(&request->host->waiting, request, entry);
        } else {
                r = request_activate(request);
                if (r < 0)
                        return r;
        }
        *ret = TAKE(request);
        return 0;
}

struct http_request *http_request_free(struct http_request *request) {
        if (!request)
                return NULL;
        request_stop(request);
        curl_easy_cleanup(request->easy);
        curl_slist_free_all(request->headers);
        curl_slist_free_all(request->addresses);
        buffer_deinit(&request->body);
        host_unref(request->host);
        free(request);
        return NULL;
}

/* ---- the object --------------------------------------------------------------------------------------- */

static int http_set_multi(struct http *http) {
        http->multi = curl_multi_init();
        if (!http->multi)
                return -ENOMEM;
        if (curl_multi_setopt(http->multi, CURLMOPT_SOCKETFUNCTION, on_curl_socket) != CURLM_OK ||
            curl_multi_setopt(http->multi, CURLMOPT_SOCKETDATA, http) != CURLM_OK ||
            curl_multi_setopt(http->multi, CURLMOPT_TIMERFUNCTION, on_curl_timer) != CURLM_OK ||
            curl_multi_setopt(http->multi, CURLMOPT_TIMERDATA, http) != CURLM_OK ||
            curl_multi_setopt(http->multi, CURLMOPT_MAXCONNECTS, IDLE_CONNECTIONS_MAX) != CURLM_OK)
                return -EINVAL;
        return 0;
}

int http_new(struct event *event, struct resolve *resolve, struct http **ret) {
        _cleanup_(http_free_pointer) struct http *http = calloc(1, sizeof(*http));
        if (!http)
                return -ENOMEM;
        http->event = event;
        http->resolve = resolve;
        LIST_INIT(&http->sockets);
        LIST_INIT(&http->hosts);
        TAILQ_INIT(&http->done);
        if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
                return -ENOMEM;
        http->global = true;
        int r = event_add_timer(event, "http-curl", on_timer, http, &http->timer);
        if (r < 0)
                return r;
        r = event_add_deferred(event, "http-done", on_deferred, http, &http->deferred);
        if (r < 0)
                return r;
        r = http_set_multi(http);
        if (r < 0)
                return r;
        *ret = TAKE(http);
        return 0;
}

struct http *http_free(struct http *http) {
        if (!http)
                return NULL;
        if (http->multi)
                (void)curl_multi_cleanup(http->multi); /* calls back for the sockets and the timer */
        while (!LIST_EMPTY(&http->sockets))
                socket_free(LIST_FIRST(&http->sockets));
        event_source_free(http->deferred);
        event_source_free(http->timer);
        if (http->global)
                curl_global_cleanup();
        free(http);
        return NULL;
}
