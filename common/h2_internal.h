/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Shared by h2.c and h2_dial.c only. */
#include "h2.h"
#include <sys/socket.h>

struct h2_dial;

/* Called once, on the loop. `fd` >= 0: a connected socket that now belongs to the callee. Else -errno, and `error`
 * says for people what happened at each address. The dial may be freed here. */
typedef int (*h2_dial_handler)(int fd, const char *error, void *userdata);

/* h2_dial_start() - resolve `host` and connect to the first address that answers: they are tried in getaddrinfo's
 * order with the families alternating (RFC 8305 section 4), beginning with number `rotation` (modulo their
 * count); the next one starts when the one before fails or after 250 ms. No limit on the whole: that is the
 * caller's timer. The handler is never called from within this call. */
int h2_dial_start(struct event *event, struct resolve *resolve, const char *host, uint16_t port, unsigned rotation,
                  h2_dial_handler handler, void *userdata, struct h2_dial **ret);
struct h2_dial *h2_dial_free(struct h2_dial *dial);
DEFINE_CLEANUP(struct h2_dial *, h2_dial_free)

/* h2_dial_stage() - "resolving" or "connecting". */
const char *h2_dial_stage(const struct h2_dial *dial);

#define H2_ADDRESS_TEXT_MAX 80

/* h2_address_to_text() - "198.51.100.7:443", "[2001:db8::7]:443". */
void h2_address_to_text(const struct sockaddr *address, socklen_t size, char text[H2_ADDRESS_TEXT_MAX]);
