/* SPDX-License-Identifier: Apache-2.0 */
/*
 * grpc_status: the words and numbers of gRPC over HTTP/2
 *
 * Pure functions on text: status tables, percent-decoding, the timeout header, the endpoint's syntax. All input
 * but the endpoint comes from the peer and may be anything.
 */
#include "grpc_internal.h"

#include <ctype.h>
#include <nghttp2/nghttp2.h>

const char *grpc_status_to_text(enum grpc_status status) {
        switch (status) {
        case GRPC_OK:
                return "OK";
        case GRPC_CANCELLED:
                return "CANCELLED";
        case GRPC_UNKNOWN:
                return "UNKNOWN";
        case GRPC_INVALID_ARGUMENT:
                return "INVALID_ARGUMENT";
        case GRPC_DEADLINE_EXCEEDED:
                return "DEADLINE_EXCEEDED";
        case GRPC_NOT_FOUND:
                return "NOT_FOUND";
        case GRPC_ALREADY_EXISTS:
                return "ALREADY_EXISTS";
        case GRPC_PERMISSION_DENIED:
                return "PERMISSION_DENIED";
        case GRPC_RESOURCE_EXHAUSTED:
                return "RESOURCE_EXHAUSTED";
        case GRPC_FAILED_PRECONDITION:
                return "FAILED_PRECONDITION";
        case GRPC_ABORTED:
                return "ABORTED";
        case GRPC_OUT_OF_RANGE:
                return "OUT_OF_RANGE";
        case GRPC_UNIMPLEMENTED:
                return "UNIMPLEMENTED";
        case GRPC_INTERNAL:
                return "INTERNAL";
        case GRPC_UNAVAILABLE:
                return "UNAVAILABLE";
        case GRPC_DATA_LOSS:
                return "DATA_LOSS";
        case GRPC_UNAUTHENTICATED:
                return "UNAUTHENTICATED";
        }
        return "UNKNOWN";
}

enum grpc_status grpc_status_from_http(unsigned http_status) {
        switch (http_status) {
        case 400:
                return GRPC_INTERNAL;
        case 401:
                return GRPC_UNAUTHENTICATED;
        case 403:
                return GRPC_PERMISSION_DENIED;
        case 404:
                return GRPC_UNIMPLEMENTED;
        case 429:
        case 502:
        case 503:
        case 504:
                return GRPC_UNAVAILABLE;
        default:
                return GRPC_UNKNOWN;
        }
}

enum grpc_status grpc_status_from_h2(uint32_t error_code) {
        switch (error_code) {
        case NGHTTP2_NO_ERROR: /* also this: a status should have come first */
        case NGHTTP2_PROTOCOL_ERROR:
        case NGHTTP2_INTERNAL_ERROR:
        case NGHTTP2_FLOW_CONTROL_ERROR:
        case NGHTTP2_SETTINGS_TIMEOUT:
        case NGHTTP2_FRAME_SIZE_ERROR:
        case NGHTTP2_COMPRESSION_ERROR:
        case NGHTTP2_CONNECT_ERROR:
                return GRPC_INTERNAL;
        case NGHTTP2_REFUSED_STREAM:
                return GRPC_UNAVAILABLE;
        case NGHTTP2_CANCEL:
                return GRPC_CANCELLED;
        case NGHTTP2_ENHANCE_YOUR_CALM:
                return GRPC_RESOURCE_EXHAUSTED;
        case NGHTTP2_INADEQUATE_SECURITY:
                return GRPC_PERMISSION_DENIED;
        default: /* STREAM_CLOSED and HTTP_1_1_REQUIRED have no mapping; the others are not known */
                return GRPC_UNKNOWN;
        }
}

unsigned grpc_status_parse(struct span text) {
        unsigned value = 0;

        if (text.size == 0 || text.size > 4)
                return UINT_MAX;
        for (size_t i = 0; i < text.size; i++) {
                if (text.data[i] < '0' || text.data[i] > '9')
                        return UINT_MAX;
                value = value * 10 + (unsigned)(text.data[i] - '0');
        }
        return value;
}

static int hex_value(uint8_t c) {
        if (c >= '0' && c <= '9')
                return c - '0';
        if (c >= 'A' && c <= 'F')
                return c - 'A' + 10;
        if (c >= 'a' && c <= 'f')
                return c - 'a' + 10;
        return -1;
}

size_t grpc_message_decode(struct span text, uint8_t *bytes, size_t size) {
        size_t done = 0;

        for (size_t i = 0; i < text.size && done < size; i++) {
                int high = text.data[i] == '%' && text.size - i > 2 ? hex_value(text.data[i + 1]) : -1;
                int low = high >= 0 ? hex_value(text.data[i + 2]) : -1;
                if (low >= 0) {
                        bytes[done++] = (uint8_t)(high * 16 + low);
                        i += 2;
                } else
                        bytes[done++] = text.data[i];
        }
        return done;
}

int64_t grpc_pushback_parse(struct span text) {
        int64_t value = 0;

        if (text.size == 0 || text.size > 10)
                return -1;
        for (size_t i = 0; i < text.size; i++) {
                if (text.data[i] < '0' || text.data[i] > '9')
                        return -1;
                value = value * 10 + (text.data[i] - '0');
        }
        return value;
}

void grpc_timeout_format(uint64_t usec, char text[GRPC_TIMEOUT_TEXT_MAX]) {
        static const struct {
                char letter;
                uint64_t usec;
        } units[] = {
                {'m', USEC_PER_MSEC},
                {'S', USEC_PER_SEC},
                {'M', USEC_PER_MINUTE},
                {'H', USEC_PER_HOUR},
        };
        const uint64_t value_max = 99999999;
        size_t unit = 0;

        while (unit + 1 < ARRAY_SIZE(units) && usec / units[unit].usec >= value_max)
                unit++;
        uint64_t value = usec / units[unit].usec + (usec % units[unit].usec != 0);
        value = base_max_u64(1, base_min_u64(value, value_max));
        snprintf(text, GRPC_TIMEOUT_TEXT_MAX, "%" PRIu64 "%c", value, units[unit].letter);
}

bool grpc_content_type_is_grpc(const char *content_type) {
        const char *rest = base_text_starts_with(content_type, "application/grpc");

        return rest && (*rest == '\0' || *rest == '+' || *rest == ';');
}

/* ---- the endpoint --------------------------------------------------------------------------------- */

static bool host_is_valid(const char *host, size_t size, bool brackets) {
        if (size == 0 || size > GRPC_HOST_MAX)
                return false;
        for (size_t i = 0; i < size; i++)
                if (!isalnum((unsigned char)host[i]) && !strchr(brackets ? ":." : "-._", host[i]))
                        return false;
        return true;
}

static int port_parse(const char *text, uint16_t standard, uint16_t *ret) {
        char digits[6];
        size_t size = strcspn(text, "/");
        uint64_t port = standard;

        if (strcmp(text + size, "") != 0 && strcmp(text + size, "/") != 0)
                return -EINVAL;
        if (size > 0) {
                if (text[0] != ':' || size - 1 >= sizeof(digits))
                        return -EINVAL;
                memcpy(digits, text + 1, size - 1);
                digits[size - 1] = '\0';
                if (base_parse_u64(digits, 1, UINT16_MAX, &port) < 0)
                        return -EINVAL;
        }
        *ret = (uint16_t)port;
        return 0;
}

int grpc_endpoint_parse(const char *text, struct grpc_endpoint *ret) {
        struct grpc_endpoint endpoint = {0};
        const char *rest = base_text_starts_with(text, "https://");

        endpoint.tls = rest;
        if (!rest)
                rest = base_text_starts_with(text, "http://");
        if (!rest)
                return -EINVAL;
        bool brackets = *rest == '[';
        rest += brackets;
        size_t size = strcspn(rest, brackets ? "]" : ":/");
        if (!host_is_valid(rest, size, brackets) || (brackets && rest[size] != ']'))
                return -EINVAL;
        memcpy(endpoint.host, rest, size);
        int r = port_parse(rest + size + brackets, endpoint.tls ? 443 : 80, &endpoint.port);
        if (r < 0)
                return r;
        snprintf(endpoint.authority, sizeof(endpoint.authority), brackets ? "[%s]:%u" : "%s:%u", endpoint.host,
                 endpoint.port);
        *ret = endpoint;
        return 0;
}
