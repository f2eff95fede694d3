/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The Worker's work directory: the job's owner can write there. Names, the stderr header, and the jar path of a claim.
 *
 * Input: [size, name of a directory], [size, jar path; a leading '~' stands for the work directory], header. The
 * directory gets the header as its stderr.
 *
 * A header names a job when it begins like the Worker's and the FIRST -D<property>= in it is the job's to the end:
 * stated here a second time, in another way.
 */
#include "fuzz_files.h"
#include "driver_internal.h"

#define PROPERTY "spark.yandex.job.id"
#define MARK "\"-D" PROPERTY "="
#define START "Launch Command: "
#define JOB "42"
#define HEADER_MAX (64 * 1024)

/* A name that a directory can have. */
static char *take_name(struct span *input) {
        char *name = fuzz_text(fuzz_take(input, fuzz_take_u8(input)));

        for (char *at = name; *at; at++)
                if (*at == '/')
                        *at = '_';
        if (*name && strcmp(name, ".") != 0 && strcmp(name, "..") != 0)
                return name;
        free(name);
        return strdup("driver-1");
}

static bool names_job(struct span header) {
        _cleanup_free_ char *text = malloc(header.size + 1);

        FUZZ_CHECK(text);
        for (size_t i = 0; i < header.size; i++) /* a NUL is a byte like any other here */
                text[i] = header.data[i] ? (char)header.data[i] : '\1';
        text[header.size] = '\0';
        if (!base_text_starts_with(text, START))
                return false;
        const char *mark = strstr(text, MARK);
        return mark && base_text_starts_with(mark, MARK JOB "\"");
}

static void check_recent(const struct driver *driver, const char *name, struct span header) {
        char found[DRIVER_ID_MAX + 1] = "";
        int r = driver_recent(driver, JOB, found);
        bool expected = base_driver_id_is_valid(name, strlen(name)) && names_job(header);

        FUZZ_CHECK(r == (expected ? 0 : 1));
        FUZZ_CHECK(!expected || strcmp(found, name) == 0);
}

static void check_jar(const struct driver *driver, struct span jar) {
        char driver_id[DRIVER_ID_MAX + 1] = "", expected[sizeof(fuzz_directory) + DRIVER_ID_MAX + 2];
        _cleanup_(driver_place_close) struct driver_place place = { .fd = -1 };
        _cleanup_free_ char *text = fuzz_text(jar), *path = NULL;

        if (*text == '~')
                FUZZ_CHECK(asprintf(&path, "%s%s", fuzz_directory, text + 1) > 0);
        FUZZ_CHECK(driver_place_open(driver, &place) == 0);
        if (driver_place_find_id(&place, path ? path : text, driver_id))
                return;
        FUZZ_CHECK(path || strstr(text, fuzz_directory + 1));
        FUZZ_CHECK(base_driver_id_is_valid(driver_id, strlen(driver_id)));
        /* The id stands in the path, as an element of its own. */
        (void)snprintf(expected, sizeof(expected), "/%s", driver_id);
        const char *at = strstr(path ? path : text, expected);
        FUZZ_CHECK(at);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct driver driver = { .work_directory = fuzz_directory,
                                 .job_id_property = (char *)PROPERTY,
                                 .driver_uid = -1 };
        struct span input = { data, size };

        fuzz_make_directory();
        _cleanup_free_ char *name = take_name(&input);
        struct span jar = fuzz_take(&input, fuzz_take_u8(&input));
        struct span header = fuzz_take(&input, HEADER_MAX);
        _cleanup_free_ char *path = NULL;
        FUZZ_CHECK(name && asprintf(&path, "%s/%s", fuzz_directory, name) > 0);
        FUZZ_CHECK(mkdir(path, 0700) == 0);
        _cleanup_close_ int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        FUZZ_CHECK(fd >= 0);
        fuzz_put_file(fd, "stderr", header);
        check_recent(&driver, name, header);
        check_jar(&driver, jar);
        FUZZ_CHECK(unlinkat(fd, "stderr", 0) == 0 && rmdir(path) == 0);
        return 0;
}
