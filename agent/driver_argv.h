/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * driver_argv: PURE: what a process's argument list claims to be
 *
 * The bytes of /proc/PID/cmdline go in, a claim comes out; every pointer points into the bytes. No I/O, no
 * allocation. A claim is no proof: driver_scan.c proves it. Source of order and shape: Spark's DriverRunner and
 * WorkerCommandBuilder, and ParseArguments() of OpenJDK's launcher (libjli/java.c).
 */
#include "base.h"

#define DRIVER_ARGV_MAX (2U * 1024 * 1024) /* bytes of a cmdline that are looked at */

enum driver_argv_kind {
        DRIVER_ARGV_OTHER,  /* not Spark's DriverWrapper and not a Worker; or not known: see `refusal` */
        DRIVER_ARGV_WORKER, /* org.apache.spark.deploy.worker.Worker */
        DRIVER_ARGV_DRIVER, /* org.apache.spark.deploy.worker.DriverWrapper with its three arguments */
};

struct driver_argv {
        enum driver_argv_kind kind;
        const char *refusal;  /* OTHER: why it is no driver, a literal */
        struct span job_id;   /* value of the first -D<property>= before the main class; data NULL: none */
        struct span app_name; /* value of the first -Dspark.app.name=; data NULL: none */
        bool supervised;      /* some -Dspark.driver.supervise= is true */
        const char *jar;      /* second argument after the main class, NUL-terminated */
        size_t jar_size;
};

/* driver_argv_parse() - classify `size` bytes of a cmdline (elements that each end in NUL). `cut`: there was more
 * than these bytes; what is needed stands at the front, so a long tail of application arguments does no harm. */
void driver_argv_parse(const char *bytes, size_t size, bool cut, const char *property, struct driver_argv *ret);

/* driver_argv_next_mention() - walk over every place, in whatever element, where "<property>=" stands, and give
 * the text after it up to a NUL, a space or a byte that no id can have, at most JOB_ID_MAX + 1 bytes. `offset`
 * starts at 0. False: no more. For look-alikes only: a mention identifies nothing. */
bool driver_argv_next_mention(const char *bytes, size_t size, const char *property, size_t *offset, struct span *ret);

/* driver_argv_mention_is() - may this mention mean `job_id`? It does when the id is followed by the end or by a
 * character that seldom stands in ids: `42;` and `42"` mention 42, `420` and `42-b` do not. */
bool driver_argv_mention_is(const char *mention, const char *job_id);
