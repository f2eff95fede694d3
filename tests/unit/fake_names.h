/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* fake_names: getaddrinfo(3) of the test's own, so that names have the addresses that a test wants. It takes the
 * place of libc's at link time. */
#include "base.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <pthread.h>
#include <stdatomic.h>

static struct {
        pthread_mutex_t gate; /* held by the test: look-ups wait */
        atomic_uint calls;
        const char *addresses[32]; /* numeric, NULL ends */
        int result;                /* EAI_… instead */
} names = {.gate = PTHREAD_MUTEX_INITIALIZER};

static struct addrinfo *names_make(const char *text) {
        struct addrinfo *info = calloc(1, sizeof(*info));
        struct sockaddr_storage *address = calloc(1, sizeof(*address));
        struct sockaddr_in *in = (struct sockaddr_in *)address;
        struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)address;

        info->ai_addr = (struct sockaddr *)address;
        info->ai_socktype = SOCK_STREAM;
        if (inet_pton(AF_INET, text, &in->sin_addr) == 1)
                info->ai_addrlen = sizeof(*in);
        else if (inet_pton(AF_INET6, text, &in6->sin6_addr) == 1)
                info->ai_addrlen = sizeof(*in6);
        address->ss_family = info->ai_addrlen == sizeof(*in) ? AF_INET : AF_INET6;
        info->ai_family = address->ss_family;
        return info;
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
        struct addrinfo **end = result;

        (void)name;
        (void)service;
        (void)hints;
        atomic_fetch_add(&names.calls, 1);
        pthread_mutex_lock(&names.gate);
        pthread_mutex_unlock(&names.gate);
        if (names.result != 0)
                return names.result;
        *result = NULL;
        for (size_t i = 0; i < ARRAY_SIZE(names.addresses) && names.addresses[i]; i++) {
                *end = names_make(names.addresses[i]);
                end = &(*end)->ai_next;
        }
        return 0;
}

void freeaddrinfo(struct addrinfo *info) {
        while (info) {
                struct addrinfo *next = info->ai_next;
                free(info->ai_addr);
                free(info);
                info = next;
        }
}

static void names_set(const char *const *addresses, size_t count) {
        memset(names.addresses, 0, sizeof(names.addresses));
        for (size_t i = 0; i < count; i++)
                names.addresses[i] = addresses[i];
        names.result = 0;
}
