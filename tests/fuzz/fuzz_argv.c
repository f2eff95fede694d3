/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process's command line: any local user can write one. The first byte says whether it was cut.
 *
 * A plain second reading of the same bytes stands beside the matcher: a driver's job id is the value of an element that
 * begins with -D<property>=, stands before the main class, and no such element stands before it.
 */
#include "fuzz.h"
#include "driver_argv.h"

#define PROPERTY "spark.yandex.job.id"
#define OPTION "-D" PROPERTY "="
#define MAIN_CLASS "org.apache.spark.deploy.worker.DriverWrapper"

static bool within(const void *at, struct span bytes) {
        return (const uint8_t *)at >= bytes.data && (const uint8_t *)at <= bytes.data + bytes.size;
}

static bool element_begins_at(const uint8_t *at, struct span bytes) {
        return at == bytes.data || (at > bytes.data && at[-1] == 0);
}

/* Is there an element MAIN_CLASS between the job id and the jar? */
static void check_order(const struct driver_argv *argv, struct span bytes) {
        const uint8_t *end = (const uint8_t *)argv->jar;
        size_t classes = 0;

        FUZZ_CHECK(within(end, bytes) && element_begins_at(end, bytes));
        FUZZ_CHECK(strlen(argv->jar) == argv->jar_size);
        for (const uint8_t *at = bytes.data; at < end; at += strlen((const char *)at) + 1)
                if (strcmp((const char *)at, MAIN_CLASS) == 0 && (!argv->job_id.data || at > argv->job_id.data))
                        classes++;
        FUZZ_CHECK(classes > 0);
}

/* The whole value of one element; whatever else may stand before it, no option of that property at its own place. */
static void check_job_id(struct span job_id, struct span bytes) {
        const uint8_t *element = job_id.data - strlen(OPTION);

        FUZZ_CHECK(within(job_id.data, bytes) && within(job_id.data + job_id.size, bytes));
        FUZZ_CHECK(job_id.data[job_id.size] == 0 && !memchr(job_id.data, 0, job_id.size));
        FUZZ_CHECK(within(element, bytes) && element_begins_at(element, bytes));
        FUZZ_CHECK(memcmp(element, OPTION, strlen(OPTION)) == 0);
        for (const uint8_t *at = bytes.data, *last = NULL; at < element; last = at, at += strlen((const char *)at) + 1)
                if (last && strncmp((const char *)at, OPTION, strlen(OPTION)) == 0)
                        /* passed over: it is the value of a two-element option, and none of these is a -D */
                        FUZZ_CHECK(last[0] == '-' && last[1] != 'D');
}

static void check_driver(const struct driver_argv *argv, struct span bytes) {
        FUZZ_CHECK(!argv->refusal && argv->jar);
        check_order(argv, bytes);
        if (argv->job_id.data)
                check_job_id(argv->job_id, bytes);
        if (argv->app_name.data)
                FUZZ_CHECK(within(argv->app_name.data + argv->app_name.size, bytes));
}

static void check_mentions(struct span bytes) {
        size_t offset = 0, before = 0;
        struct span mention;

        while (driver_argv_next_mention((const char *)bytes.data, bytes.size, PROPERTY, &offset, &mention)) {
                FUZZ_CHECK(offset > before && offset <= bytes.size);
                FUZZ_CHECK(within(mention.data, bytes) && within(mention.data + mention.size, bytes));
                FUZZ_CHECK(mention.size <= JOB_ID_MAX + 1);
                before = offset;
                _cleanup_free_ char *text = fuzz_text(mention);
                FUZZ_CHECK(fuzz_is_clean(text));
                FUZZ_CHECK(mention.size == 0 || driver_argv_mention_is(text, text));
                FUZZ_CHECK(!driver_argv_mention_is(text, "no such job"));
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct span input = { data, size };
        const bool cut = fuzz_take_u8(&input) & 1;
        struct driver_argv argv;

        driver_argv_parse((const char *)input.data, input.size, cut, PROPERTY, &argv);
        switch (argv.kind) {
        case DRIVER_ARGV_DRIVER:
                check_driver(&argv, input);
                break;
        case DRIVER_ARGV_OTHER:
                FUZZ_CHECK(argv.refusal);
                FUZZ_CHECK(!argv.job_id.data && !argv.jar && !argv.app_name.data && !argv.supervised);
                break;
        case DRIVER_ARGV_WORKER:
                FUZZ_CHECK(!argv.refusal);
                FUZZ_CHECK(!argv.job_id.data && !argv.jar && !argv.app_name.data && !argv.supervised);
                break;
        }
        check_mentions(input);
        return 0;
}
