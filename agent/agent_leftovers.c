/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an ended driver left behind: asked with each scan of SETTLE, named in the journal and in the report.
 *
 * The machine decides when they are counted and whether they are signalled; the driver module knows who they are. The
 * hold of the driver that has ended is kept for that as long as the operation may still ask.
 */
#include "agent_internal.h"

#define NAMES_MAX 320 /* bytes of their names in a report, whose message has 1 KiB */

struct names {
        struct buffer text;
        uint32_t unnamed;
        bool held;
};

static void add_name(const struct driver_leftover *leftover, void *userdata) {
        struct names *names = userdata;

        names->held |= leftover->held;
        if (names->unnamed > 0 || buffer_append_format(&names->text, "%s%" PRId32 " (%s)", names->text.size > 0 ? ", " : "",
                                                       leftover->pid, leftover->comm) < 0)
                names->unnamed++;
}

/* "and 3 more" has its own room. */
static char *names_to_text(struct names *names) {
        const char *text;

        names->text.max += 32;
        if (names->unnamed > 0)
                (void)buffer_append_format(&names->text, "%s%" PRIu32 " more", names->text.size > 0 ? " and " : "", names->unnamed);
        text = names->text.size > 0 ? buffer_text(&names->text) : NULL;
        return text ? strdup(text) : NULL;
}

void operation_look_for_leftovers(struct operation *o, struct cancel_event *event) {
        struct names names = { .text = BUFFER_INIT(NAMES_MAX) };

        free(o->leftovers);
        event->leftovers = driver_leftovers(o->agent->driver, o->ended, o->cancel.record.driver_id, add_name, &names);
        event->leftovers_held = names.held;
        o->leftovers = names_to_text(&names);
        buffer_deinit(&names.text);
}

void operation_signal_leftovers(struct operation *o, int signal_number, const char *name) {
        int r;

        if (!o->ended)
                return; /* concluded while the commit was under way */
        r = driver_signal_leftovers(o->ended, signal_number);
        if (r < 0)
                operation_journal(o, JOURNAL_LEFTOVERS, "%s to what driver %s of job %s left behind: %s", name,
                                  o->cancel.record.driver_id, o->job_id, strerror(-r));
        else
                operation_journal(o, JOURNAL_LEFTOVERS, "%s to what driver %s of job %s left behind: sent to %d process%s", name,
                                  o->cancel.record.driver_id, o->job_id, r, r == 1 ? "" : "es");
}

void operation_tell_leftovers(const struct operation *o, const struct cancel_record *before) {
        const struct cancel_record *r = &o->cancel.record;

        if (r->leftover_processes == 0 || before->leftover_processes == r->leftover_processes)
                return;
        operation_journal(o, JOURNAL_LEFTOVERS, "driver %s of job %s has left %" PRId32 " process%s behind: %s", r->driver_id,
                          o->job_id, r->leftover_processes, r->leftover_processes == 1 ? "" : "es",
                          o->leftovers ? o->leftovers : "");
}
