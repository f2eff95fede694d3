/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Output for people: fields, tables, findings.
 *
 * A column is as wide as its widest cell, so rows are kept until all are known: at most BUS_ROWS_MAX of them. Colour is
 * for terminals alone, and not there where NO_COLOR is set. Everything that came from the agent is escaped before it
 * is printed.
 */
#include "ctl_internal.h"

#define CELLS_MAX 16
#define WIDTH_MAX 60 /* a longer cell moves its row, not the whole table */

/* ---- the terminal ---------------------------------------------------------------------------------- */

bool ctl_is_terminal(void) {
        return isatty(STDOUT_FILENO) == 1;
}

static bool colour_is_wanted(void) {
        const char *none = getenv("NO_COLOR"), *term = getenv("TERM");

        return ctl_is_terminal() && !(none && *none) && !(term && strcmp(term, "dumb") == 0);
}

const char *ctl_colour(enum ctl_colour colour) {
        if (!colour_is_wanted())
                return "";
        switch (colour) {
        case CTL_PLAIN:
                return "\x1b[0m";
        case CTL_GREEN:
                return "\x1b[32m";
        case CTL_YELLOW:
                return "\x1b[33m";
        case CTL_RED:
                return "\x1b[31m";
        case CTL_BOLD:
                return "\x1b[1m";
        }
        return "";
}

/* ---- values ----------------------------------------------------------------------------------------- */

void ctl_print_text(const char *text) {
        char escaped[CTL_TEXT_MAX];

        base_text_escape(escaped, sizeof(escaped), text, strlen(text));
        fputs(escaped, stdout);
}

static bool ends_with(const char *text, const char *end) {
        size_t size = strlen(text), end_size = strlen(end);
        return size >= end_size && strcmp(text + size - end_size, end) == 0;
}

/* RFC 3339 in UTC, "-" for 0. */
void ctl_time_to_text(uint64_t usec, char *text, size_t size) {
        time_t seconds = (time_t)(usec / USEC_PER_SEC);
        struct tm broken;

        if (usec == 0 || !gmtime_r(&seconds, &broken) || strftime(text, size, "%Y-%m-%dT%H:%M:%SZ", &broken) == 0)
                (void)base_text_copy(text, size, "-");
}

void ctl_field_to_text(const struct ctl_field *field, char *text, size_t size) {
        switch (field->type) {
        case 's':
                base_text_escape(text, size, *field->text ? field->text : "-", *field->text ? strlen(field->text) : 1);
                return;
        case 'b':
                (void)base_text_copy(text, size, field->number ? "yes" : "no");
                return;
        case 't':
                if (ends_with(field->key, "_usec")) {
                        ctl_time_to_text(field->whole, text, size);
                        return;
                }
                (void)snprintf(text, size, "%" PRIu64, field->whole);
                return;
        case 'u':
                (void)snprintf(text, size, "%" PRIu64, field->whole);
                return;
        }
        (void)snprintf(text, size, "%" PRId64, field->number);
}

/* One "name  value" a line; received_real_usec is shown as "received". */
void ctl_print_object(const struct ctl_object *object) {
        char text[CTL_TEXT_MAX], name[64];

        for (size_t i = 0; i < object->count; i++) {
                const struct ctl_field *field = &object->fields[i];
                (void)base_text_copy(name, sizeof(name), field->key);
                if (ends_with(name, "_real_usec"))
                        name[strlen(name) - strlen("_real_usec")] = '\0';
                for (char *at = name; *at; at++)
                        if (*at == '_')
                                *at = ' ';
                ctl_field_to_text(field, text, sizeof(text));
                ctl_print_text(name);
                printf("%*s%s\n", strlen(name) < 17 ? (int)(18 - strlen(name)) : 1, "", text);
        }
}

/* ---- tables ----------------------------------------------------------------------------------------- */

struct row {
        char *cells[CELLS_MAX];
        enum ctl_colour colour;
};

struct ctl_table {
        const char *const *headings;
        size_t columns;
        struct row *rows;
        size_t count, allocated;
};

struct ctl_table *ctl_table_new(const char *const *headings, size_t columns) {
        struct ctl_table *table = columns <= CELLS_MAX ? calloc(1, sizeof(*table)) : NULL;

        if (table) {
                table->headings = headings;
                table->columns = columns;
        }
        return table;
}

static void row_deinit(struct row *row) {
        for (size_t column = 0; column < CELLS_MAX; column++)
                free(row->cells[column]);
}

struct ctl_table *ctl_table_free(struct ctl_table *table) {
        if (!table)
                return NULL;
        for (size_t i = 0; i < table->count; i++)
                row_deinit(&table->rows[i]);
        free(table->rows);
        free(table);
        return NULL;
}

static char *cell_copy(const char *text) {
        char escaped[CTL_TEXT_MAX];

        base_text_escape(escaped, sizeof(escaped), *text ? text : "-", *text ? strlen(text) : 1);
        return strdup(escaped);
}

int ctl_table_add(struct ctl_table *table, const char *const *cells, enum ctl_colour colour) {
        struct row row = {.colour = colour};

        if (table->count == table->allocated) {
                size_t room = table->allocated * 2 + 16;
                struct row *rows = reallocarray(table->rows, room, sizeof(*rows));
                if (!rows)
                        return -ENOMEM;
                table->rows = rows;
                table->allocated = room;
        }
        for (size_t column = 0; column < table->columns; column++) {
                row.cells[column] = cell_copy(cells[column]);
                if (!row.cells[column]) {
                        row_deinit(&row);
                        return -ENOMEM;
                }
        }
        table->rows[table->count++] = row;
        return 0;
}

/* width() - characters, not bytes: the text is UTF-8. */
static size_t width(const char *text) {
        size_t count = 0;

        for (; *text; text++)
                count += ((unsigned char)*text & 0xc0) != 0x80;
        return count;
}

static void print_row(const struct ctl_table *table, const char *const *cells, const size_t *widths) {
        for (size_t column = 0; column < table->columns; column++) {
                size_t here = width(cells[column]);
                bool last = column + 1 == table->columns;
                fputs(cells[column], stdout);
                if (!last)
                        printf("%*s", (int)(here < widths[column] ? widths[column] - here : 0) + 2, "");
        }
}

void ctl_table_print(const struct ctl_table *table) {
        size_t widths[CELLS_MAX] = {0};

        for (size_t column = 0; column < table->columns; column++) {
                widths[column] = width(table->headings[column]);
                for (size_t i = 0; i < table->count; i++) {
                        size_t here = width(table->rows[i].cells[column]);
                        if (here > widths[column] && here <= WIDTH_MAX)
                                widths[column] = here;
                }
        }
        fputs(ctl_colour(CTL_BOLD), stdout);
        print_row(table, table->headings, widths);
        printf("%s\n", ctl_colour(CTL_PLAIN));
        for (size_t i = 0; i < table->count; i++) {
                const struct row *row = &table->rows[i];
                if (row->colour != CTL_PLAIN)
                        fputs(ctl_colour(row->colour), stdout);
                print_row(table, (const char *const *)row->cells, widths);
                printf("%s\n", row->colour != CTL_PLAIN ? ctl_colour(CTL_PLAIN) : "");
        }
}

/* ---- findings --------------------------------------------------------------------------------------- */

static enum ctl_colour level_colour(const char *level) {
        return strcmp(level, "ok") == 0 ? CTL_GREEN : strcmp(level, "warning") == 0 ? CTL_YELLOW : CTL_RED;
}

bool ctl_findings_able(const struct ctl_finding *findings, size_t count) {
        for (size_t i = 0; i < count; i++)
                if (strcmp(findings[i].level, "failure") == 0)
                        return false;
        return true;
}

/* One line for what was found, one more for what to do about it. */
void ctl_print_findings(const struct ctl_finding *findings, size_t count) {
        size_t name_width = 0;

        for (size_t i = 0; i < count; i++)
                if (width(findings[i].name) > name_width && width(findings[i].name) <= WIDTH_MAX)
                        name_width = width(findings[i].name);
        for (size_t i = 0; i < count; i++) {
                const struct ctl_finding *finding = &findings[i];
                size_t here = width(finding->name);
                char level[32];

                base_text_escape(level, sizeof(level), finding->level, strlen(finding->level));
                printf("%s%-7s%s  ", ctl_colour(level_colour(finding->level)), level, ctl_colour(CTL_PLAIN));
                ctl_print_text(finding->name);
                printf("%*s", (int)(here < name_width ? name_width - here : 0) + 2, "");
                ctl_print_text(finding->text);
                if (*finding->remedy) {
                        fputs("\n         -> ", stdout);
                        ctl_print_text(finding->remedy);
                }
                putchar('\n');
        }
}
