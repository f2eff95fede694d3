/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver_argv: read an argument list as the java launcher does
 *
 * A substring search for the job id hits the wrong process: the submitter's --conf, a shell that greps, an
 * option's value, an application argument. So the elements are walked from argv[1] the way ParseArguments() of
 * OpenJDK's launcher walks them: an element that starts with '-' is an option, the element after a two-element
 * option is that option's value whatever it looks like (a user chooses the whole of -cp's value with
 * spark.driver.extraClassPath), and the first other element is the main class.
 *
 * The FIRST -D<property>= decides. Spark writes one -D for each property of the submission, the service's own
 * among them, and only after those the user's spark.driver.extraJavaOptions; so an element of the user's making
 * can only come later.
 *
 * Traps: an element can hold spaces, newlines and quotes; it can be empty; an @file element is expanded by the
 * launcher (JDK 9 and later) and so counts as an option here, not as the main class: it is of the user's making
 * too and must not hide a driver. With -jar or -m the first other element is no class, so there is no driver.
 */
#include "driver_argv.h"

#include <strings.h>

#define CLASS_DRIVER "org.apache.spark.deploy.worker.DriverWrapper"
#define CLASS_WORKER "org.apache.spark.deploy.worker.Worker"

/* IsWhiteSpaceOption() of libjli/java.c, JDK 9 to 25; JDK 8 knows the first two only and does not start with the
 * others. An option that a later JDK adds would make its value look like the main class: refused, not misread. */
static const char *const two_element_options[] = {
        "-cp",
        "-classpath",
        "--class-path",
        "-p",
        "--module-path",
        "--upgrade-module-path",
        "--add-modules",
        "--enable-native-access",
        "--limit-modules",
        "--add-exports",
        "--add-opens",
        "--add-reads",
        "--patch-module",
        "--describe-module",
        "-d",
        "--source",
};

/* Options after which the first other element is a file or a module. */
static const char *const no_class_options[] = {"-jar", "-m", "--module"};

struct walk {
        const char *next;
        const char *end;
};

/* walk_next() - the next element, terminated inside the bytes; NULL at the end and for an unterminated rest. */
static const char *walk_next(struct walk *walk) {
        const char *element = walk->next;
        const char *nul = memchr(element, 0, (size_t)(walk->end - element));

        if (!nul)
                return NULL;
        walk->next = nul + 1;
        return element;
}

static bool is_one_of(const char *element, const char *const *list, size_t count) {
        for (size_t i = 0; i < count; i++)
                if (strcmp(element, list[i]) == 0)
                        return true;
        return false;
}

static const char *skip_prefix(const char *text, const char *prefix, size_t prefix_size) {
        return strncmp(text, prefix, prefix_size) == 0 ? text + prefix_size : NULL;
}

/* property_value() - the value when `element` is -D<property>=<value>. */
static const char *property_value(const char *element, const char *property) {
        const char *rest = skip_prefix(element, "-D", 2);

        if (rest)
                rest = skip_prefix(rest, property, strlen(property));
        return rest && *rest == '=' ? rest + 1 : NULL;
}

static void keep_first(struct span *span, const char *value) {
        if (!span->data)
                *span = (struct span){.data = (const uint8_t *)value, .size = strlen(value)};
}

static void take_option(const char *element, const char *property, struct driver_argv *argv) {
        const char *value;

        value = property_value(element, property);
        if (value)
                keep_first(&argv->job_id, value);
        value = property_value(element, "spark.app.name");
        if (value)
                keep_first(&argv->app_name, value);
        /* Scala's toBoolean takes any case. A decoy can only make the agent wait for a return that does not come. */
        value = property_value(element, "spark.driver.supervise");
        if (value && strcasecmp(value, "true") == 0)
                argv->supervised = true;
}

/* find_main_class() - walk the options; NULL when there is no main class. */
static const char *find_main_class(struct walk *walk, const char *property, struct driver_argv *argv) {
        bool no_class = false;

        for (const char *element; (element = walk_next(walk));) {
                if (*element != '-' && *element != '@')
                        return no_class ? NULL : element;
                take_option(element, property, argv);
                no_class |= is_one_of(element, no_class_options, ARRAY_SIZE(no_class_options));
                if (is_one_of(element, two_element_options, ARRAY_SIZE(two_element_options)) && !walk_next(walk))
                        return NULL;
        }
        return NULL;
}

static const char *take_driver_arguments(struct walk *walk, bool cut, struct driver_argv *argv) {
        const char *worker_url, *jar, *user_class;

        worker_url = walk_next(walk);
        jar = worker_url ? walk_next(walk) : NULL;
        user_class = jar ? walk_next(walk) : NULL;
        if (!user_class)
                return cut ? "its argument list is too long" : "arguments after DriverWrapper are missing";
        if (strncmp(worker_url, "spark://", strlen("spark://")) != 0)
                return "the argument after DriverWrapper is no worker URL";
        argv->jar = jar;
        argv->jar_size = strlen(jar);
        argv->kind = DRIVER_ARGV_DRIVER;
        return NULL;
}

static const char *classify(const char *bytes, size_t size, bool cut, const char *property, struct driver_argv *argv) {
        struct walk walk = {.next = bytes, .end = bytes + size};
        const char *main_class;

        if (size == 0)
                return "its argument list is empty";
        /* The kernel ends argv with NUL; without one the process has overwritten its own arguments. */
        if (!cut && bytes[size - 1] != 0)
                return "its argument list was rewritten";
        walk_next(&walk); /* argv[0] */
        main_class = find_main_class(&walk, property, argv);
        if (!main_class)
                return cut ? "its argument list is too long" : "it has no main class";
        if (strcmp(main_class, CLASS_WORKER) == 0) {
                argv->kind = DRIVER_ARGV_WORKER;
                return NULL;
        }
        if (strcmp(main_class, CLASS_DRIVER) != 0)
                return "its main class is not DriverWrapper";
        return take_driver_arguments(&walk, cut, argv);
}

void driver_argv_parse(const char *bytes, size_t size, bool cut, const char *property, struct driver_argv *ret) {
        struct driver_argv argv = {.kind = DRIVER_ARGV_OTHER};

        argv.refusal = classify(bytes, size, cut, property, &argv);
        if (argv.kind != DRIVER_ARGV_DRIVER)
                argv = (struct driver_argv){.kind = argv.kind, .refusal = argv.refusal};
        *ret = argv;
}

static bool is_id_character(char c) {
        return c > 0x20 && c < 0x7f;
}

bool driver_argv_next_mention(const char *bytes, size_t size, const char *property, size_t *offset, struct span *ret) {
        size_t property_size = strlen(property);

        while (*offset < size) {
                const char *hit = memmem(bytes + *offset, size - *offset, property, property_size);
                size_t start, length = 0;

                if (!hit)
                        break;
                start = (size_t)(hit - bytes) + property_size;
                *offset = start;
                if (start >= size || bytes[start] != '=')
                        continue;
                start++;
                while (length <= JOB_ID_MAX && start + length < size && is_id_character(bytes[start + length]))
                        length++;
                *ret = (struct span){.data = (const uint8_t *)bytes + start, .size = length};
                return true;
        }
        *offset = size;
        return false;
}

bool driver_argv_mention_is(const char *mention, const char *job_id) {
        const char *rest = base_text_starts_with(mention, job_id);

        return rest && (*rest == 0 || (*rest != '-' && *rest != '.' && *rest != '_' &&
                                       !((*rest >= '0' && *rest <= '9') || (*rest >= 'A' && *rest <= 'Z') ||
                                         (*rest >= 'a' && *rest <= 'z'))));
}
