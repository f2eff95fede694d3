/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config_host: what the machine says of itself
 *
 * Start-up must not wait for DNS, so no name is looked up: names come from uname(2) and /etc/hosts
 * (gethostent(3) enumerates, which DNS can't do), addresses from the interfaces.
 */
#include "config_internal.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <linux/capability.h>
#include <net/if.h>
#include <netdb.h>
#include <pwd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>

#define HOSTS_MAX 10000 /* lines of /etc/hosts looked at */
#define PASSWD_BYTES_MAX (1024 * 1024)

int config_host_name(char **ret) {
        struct utsname names;
        if (uname(&names) < 0)
                return -EFAULT; /* its only error */
        char *name = strdup(names.nodename);
        if (!name)
                return -ENOMEM;
        *ret = name;
        return 0;
}

/* list_try() - a full list is not an error here: the rest is left out. */
static int list_try(struct config_list *list, const char *item) {
        if (!config_rule_host.check(item))
                return 0;
        int r = config_list_add(list, CONFIG_LIST_MAX, item);
        return r == -ENOBUFS ? 0 : r;
}

static bool entry_names(const struct hostent *entry, const char *name) {
        if (strcasecmp(entry->h_name, name) == 0)
                return true;
        for (char **alias = entry->h_aliases; *alias; alias++)
                if (strcasecmp(*alias, name) == 0)
                        return true;
        return false;
}

static int add_entry(struct config_list *list, const struct hostent *entry) {
        int r = list_try(list, entry->h_name);
        for (char **alias = entry->h_aliases; r >= 0 && *alias; alias++)
                r = list_try(list, *alias);
        return r;
}

/* add_names() - the host name, its first part, and what /etc/hosts has beside them. */
static int add_names(struct config_list *list) {
        _cleanup_free_ char *name = NULL, *short_name = NULL;
        struct hostent *entry;

        int r = config_host_name(&name);
        if (r < 0)
                return r;
        short_name = strndup(name, strcspn(name, "."));
        if (!short_name)
                return -ENOMEM;
        r = list_try(list, name);
        if (r >= 0)
                r = list_try(list, short_name);
        sethostent(0);
        for (int i = 0; r >= 0 && i < HOSTS_MAX && (entry = gethostent()); i++)
                if (entry_names(entry, name) || entry_names(entry, short_name))
                        r = add_entry(list, entry);
        endhostent();
        return r;
}

static int add_address(struct config_list *list, const struct sockaddr *address, bool with_loopback) {
        char text[INET6_ADDRSTRLEN];
        const void *bytes;

        if (!address)
                return 0;
        if (address->sa_family == AF_INET)
                bytes = &((const struct sockaddr_in *)(const void *)address)->sin_addr;
        else if (address->sa_family == AF_INET6)
                bytes = &((const struct sockaddr_in6 *)(const void *)address)->sin6_addr;
        else
                return 0;
        if (address->sa_family == AF_INET6 && IN6_IS_ADDR_LINKLOCAL((const struct in6_addr *)bytes))
                return 0; /* the same on every machine's every interface: says nothing about this node */
        if (!with_loopback && (address->sa_family == AF_INET ? ((const uint8_t *)bytes)[0] == 127
                                                            : IN6_IS_ADDR_LOOPBACK((const struct in6_addr *)bytes)))
                return 0;
        if (!inet_ntop(address->sa_family, bytes, text, sizeof(text)))
                return -errno;
        return list_try(list, text);
}

/* Loopback names are every machine's own. They count only where the masters are on this machine, too: in a cluster whose
 * Workers register as localhost each node would take every driver for its own. */
int config_host_list(struct config_list *list, bool with_loopback) {
        struct ifaddrs *addresses;

        int r = add_names(list);
        if (r >= 0 && with_loopback)
                r = list_try(list, "localhost");
        if (r < 0)
                return r;
        if (getifaddrs(&addresses) < 0)
                return -errno;
        for (struct ifaddrs *at = addresses; r >= 0 && at; at = at->ifa_next)
                r = add_address(list, at->ifa_addr, with_loopback);
        freeifaddrs(addresses);
        return r;
}

int config_host_uid(const char *user, int64_t *ret) {
        struct passwd entry, *found = NULL;
        uint64_t number;

        int r = base_parse_u64(user, 0, UINT32_MAX - 1, &number);
        if (r >= 0) {
                *ret = (int64_t)number; /* also one without an entry: containers have such */
                return 0;
        }
        if (r == -ERANGE)
                return -ENOENT;
        for (size_t size = 1024; size <= PASSWD_BYTES_MAX; size *= 4) {
                _cleanup_free_ char *bytes = malloc(size);
                if (!bytes)
                        return -ENOMEM;
                r = getpwnam_r(user, &entry, bytes, size, &found);
                if (r == ERANGE)
                        continue;
                if (r > 0 && r != ENOENT && r != ESRCH)
                        return -r;
                if (!found)
                        return -ENOENT;
                *ret = (int64_t)entry.pw_uid;
                return 0;
        }
        return -E2BIG;
}

/* The unit's SystemCallFilter= refuses the call unless a drop-in allows it. */
static bool signals_pass_filter(void) {
        _cleanup_close_ int fd = (int)syscall(SYS_pidfd_open, getpid(), 0);

        return fd >= 0 && syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0U) == 0;
}

/* kill(2): CAP_KILL, or the sender's real or effective user is the target's real or saved one. A driver is started
 * by its Worker with all of them the same. */
bool config_host_can_signal(int64_t uid) {
        struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
        struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {0};

        if (!signals_pass_filter())
                return false;
        if (uid >= 0 && (uid == (int64_t)geteuid() || uid == (int64_t)getuid()))
                return true;
        if (syscall(SYS_capget, &header, data) < 0)
                return false;
        return data[0].effective & (UINT32_C(1) << CAP_KILL);
}
