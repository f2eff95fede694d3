/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The commit of a turn, and a disk that does not take it.
 *
 * As long as the disk works, a deed waits for the commit of the record that allows it. A disk that is full, read-only,
 * failing, or that does not answer for 5 s must not stop a cancel: the job that fills the disk is the one to be
 * cancelled. The agent then goes on from memory (`failing`): records that changed are kept as `unwritten`, and their
 * deeds do not wait.
 *
 *  - Whatever is wrong with the disk, it is one way: full, EIO, read-only, damaged under us, a commit that hangs.
 *  - No memory is another thing: a process that has none may end at any moment, so this is no time to do what is not
 *    stored. The deeds wait, as they do for a commit that runs.
 *  - A statement that SQLite refuses is a defect of ours, and ends the process: nothing was done that is not stored, and
 *    a fresh start is all that might help.
 *  - The control plane is told the position that is really stored and no later one, so after a crash it sends the
 *    commands again. What a crash loses is what was done for them since: a kill may be sent twice, a report be made
 *    anew. It comes under a higher sequence (agent_start()), and of two final ones the control plane takes the first.
 *  - Unwritten records are never dropped, ended ones neither. Their number is bounded: at `max_open` of them the
 *    stream is held as it is for open operations.
 *  - The next try takes all of them, up to `unwritten_batch`: a turn is a copy, and a million rows in one transaction
 *    would be a burden at each failed try. The position is stored with the last of them, since it covers them all.
 *    While there are more than a batch the agent stays in this mode; the rest then waits for its commit like any other.
 *  - A commit that hangs keeps the writer. Its records are still in its hands when their deeds are done; how it ends is
 *    heard when it ends.
 */
#include "agent_internal.h"

#define COMMIT_SLOW_USEC (5 * USEC_PER_SEC)
#define COMMIT_RETRY_MIN (200 * USEC_PER_MSEC)
#define COMMIT_RETRY_MAX (10 * USEC_PER_SEC)
#define DRAIN_AGAIN_USEC (1 * USEC_PER_SEC)
#define TELL_APART_USEC USEC_PER_MINUTE
#define PRUNE_PER_TURN 256
#define UNWRITTEN_BATCH 2000

/* ---- from memory ---------------------------------------------------------------------------------------------- */

static void commit_keep(struct operation *o) {
        operation_tell_stored(o, true);
        if (o->unwritten)
                return;
        o->unwritten = true;
        TAILQ_INSERT_TAIL(&o->agent->unwritten, o, unwritten_link);
        o->agent->unwritten_count++;
}

static void commit_unkeep(struct operation *o) {
        o->unwritten = false;
        TAILQ_REMOVE(&o->agent->unwritten, o, unwritten_link);
        o->agent->unwritten_count--;
}

/* The bytes go back to the server's window, unless max_open holds the stream. */
static void agent_give_back(struct agent *agent, size_t *size) {
        if (agent->full)
                agent->held += *size;
        control_taken(agent->control, agent->revision, agent->full ? 0 : *size);
        *size = 0;
}

/* The deeds of this commit need not wait for it any more: with the next turn. */
static void commit_let_go(struct agent *agent) {
        struct operation *o;

        TAILQ_FOREACH(o, &agent->committing_list, commit_link) {
                operation_tell_stored(o, true);
                if (!o->act_committing)
                        continue;
                o->act |= o->act_committing;
                o->act_committing = 0;
                agent_keep_touched(o);
        }
        agent_schedule_turn(agent);
}

/* Told once, however long it lasts, and at most once a minute when it comes and goes. */
static void commit_tell_failure(struct agent *agent, int result, const char *error) {
        uint64_t now = event_now_usec(agent->event);

        if (agent->failure_told || (agent->told_usec > 0 && now < agent->told_usec + TELL_APART_USEC))
                return;
        agent->failure_told = true;
        agent->told_usec = now;
        journal_write(result < 0 ? JOURNAL_STORE_FAILED : JOURNAL_STORE_SLOW, NULL,
                      "%s in %s: %s; going on from memory: cancels are carried out and reported. What happens from now on is "
                      "lost by a crash until it can be written: commands after revision %" PRId64 " then come again from the "
                      "control plane, and kills and reports may be repeated%s",
                      result < 0 ? "cannot write the state database" : "the state database is not written",
                      agent->config->state_directory, error, agent->revision,
                      result == -EUCLEAN ? ". The database is damaged; at the next start it is set aside" : "");
}

static void commit_tell_recovered(struct agent *agent) {
        if (agent->failure_told)
                journal_write(JOURNAL_STORE_RECOVERED, NULL, "the state database can be written again, and has everything");
        agent->failure_told = false;
}

static void commit_from_memory(struct agent *agent, int result, const char *error) {
        if (!agent->failing)
                agent_counts_changed(agent);
        agent->failing = agent->behind = true;
        agent->failure = result;
        commit_let_go(agent);
        agent_give_back(agent, &agent->taken_committing);
        commit_tell_failure(agent, result, error);
}

/* In this mode a record that changed is as good as stored. */
static void commit_keep_touched(struct agent *agent) {
        struct operation *o;

        TAILQ_FOREACH(o, &agent->touched, touched_link)
                if (o->dirty) {
                        o->dirty = false;
                        commit_keep(o);
                }
        agent_give_back(agent, &agent->taken);
}

/* A commit went well. Records that are left wait for theirs like any others, unless they are too many for one. */
static void commit_recover(struct agent *agent) {
        struct operation *o;

        if (agent->unwritten_count > agent->unwritten_batch)
                return;
        agent->failing = false;
        agent_counts_changed(agent);
        while ((o = TAILQ_FIRST(&agent->unwritten))) {
                commit_unkeep(o);
                o->dirty = true;
                agent_keep_touched(o);
        }
}

static bool commit_leaves_some(const struct agent *agent) {
        const struct operation *o;

        if (agent->failing)
                return true;
        TAILQ_FOREACH(o, &agent->touched, touched_link)
                if (o->dirty)
                        return true;
        return agent->revision_reset;
}

/* ---- what it takes -------------------------------------------------------------------------------------------- */

static bool agent_done_is_over(const struct agent *agent, const struct operation *o, uint64_t real_usec) {
        return agent->done_count > agent->config->retention_max ||
               base_usec_add(o->done_real_usec, agent->config->retention_usec) < real_usec;
}

/* Old DONE operations leave with a turn that writes anyway: some more than came, or a flood would outrun it. Never with
 * one that is only tried: what it deletes is gone from memory at once. */
static int commit_prune(struct agent *agent, struct store_turn *turn, size_t put) {
        uint64_t real_usec = event_real_usec(agent->event);
        struct operation *o;
        size_t pruned = 0;
        int r;

        while (pruned++ < PRUNE_PER_TURN + put && (o = TAILQ_FIRST(&agent->done_list))) {
                if (o->touched || o->committing || o->unwritten || !agent_done_is_over(agent, o, real_usec))
                        return 0;
                r = store_turn_delete(turn, o->id);
                if (r < 0)
                        return r;
                TAILQ_REMOVE(&agent->done_list, o, done_link);
                agent->done_count--;
                agent_forget(agent, o);
        }
        return 0;
}

/* What could not be read back is not stored, and so not acted on; the others must not wait for it. A defect of ours. */
static void commit_leave_out(struct operation *o, int result) {
        operation_journal(o, JOURNAL_STORE_FAILED, "operation %s cannot be stored (%s) and is not acted on: please report this",
                          o->id, strerror(-result));
        if (o->unwritten)
                commit_unkeep(o);
        o->dirty = false;
        o->act = 0;
}

static int commit_put(struct operation *o, struct store_turn *turn, size_t *put) {
        struct store_operation row;
        int r;

        operation_to_store(o, &row);
        r = store_turn_put(turn, &row);
        if (r == -ENOMEM)
                return r;
        if (r < 0)
                commit_leave_out(o, r);
        else
                ++*put;
        return 0;
}

static int commit_gather(struct agent *agent, struct store_turn *turn, size_t *put) {
        struct operation *o;
        int r = 0;

        TAILQ_FOREACH(o, &agent->touched, touched_link)
                if (o->dirty && (r = commit_put(o, turn, put)) < 0)
                        return r;
        if (agent->revision_next != agent->revision || agent->revision_reset)
                store_turn_set_revision(turn, agent->revision_next);
        return commit_prune(agent, turn, *put);
}

/* It writes something in any case, since it is also the question whether the disk works again. */
static int commit_gather_unwritten(struct agent *agent, struct store_turn *turn, size_t *put) {
        struct operation *o, *next;
        int r = 0;

        TAILQ_FOREACH_SAFE_(o, &agent->unwritten, unwritten_link, next) {
                if (*put >= agent->unwritten_batch)
                        break;
                if ((r = commit_put(o, turn, put)) < 0)
                        return r;
        }
        if (*put >= agent->unwritten_count)
                store_turn_set_revision(turn, agent->revision_next);
        return 0;
}

/* ---- its end -------------------------------------------------------------------------------------------------- */

/* As if it had not been tried: the deeds go on waiting. */
static void commit_put_back(struct agent *agent) {
        struct operation *o;

        if (agent->commit_failures == 1)
                journal_write(JOURNAL_STORE_FAILED, NULL, "no memory to write the state database in %s: no kill is sent until there is some",
                              agent->config->state_directory);
        agent->behind = agent->failure_told = true;
        commit_let_go(agent);
        while ((o = TAILQ_FIRST(&agent->committing_list))) {
                TAILQ_REMOVE(&agent->committing_list, o, commit_link);
                o->committing = false;
                o->dirty = true;
                agent_keep_touched(o);
        }
        agent->taken += agent->taken_committing;
        agent->taken_committing = 0;
}

static void commit_keep_all(struct agent *agent) {
        struct operation *o;

        while ((o = TAILQ_FIRST(&agent->committing_list))) {
                TAILQ_REMOVE(&agent->committing_list, o, commit_link);
                o->committing = false;
                commit_keep(o);
        }
}

static void commit_failed(struct agent *agent, int result, const char *error) {
        uint64_t delay = base_min_u64(COMMIT_RETRY_MIN << base_min_u64(agent->commit_failures, 10), COMMIT_RETRY_MAX);

        agent->commit_failures++;
        if (result == -ENOMEM && !agent->failing) {
                commit_put_back(agent);
        } else {
                commit_from_memory(agent, result, error);
                commit_keep_all(agent);
        }
        agent->revision_reset |= agent->reset_committing;
        agent->reset_committing = false;
        agent->commit_again_usec = event_now_usec(agent->event) + delay;
}

/* What the commit covered is stored: its window goes back to the server, its deeds may be done. */
static void commit_stored(struct agent *agent) {
        struct operation *o;
        uint32_t deeds;

        if (!agent->revision_reset) /* else another order has begun meanwhile */
                agent->revision = agent->revision_committing;
        agent->reset_committing = false;
        agent->commit_failures = 0;
        agent->commit_again_usec = 0;
        agent_give_back(agent, &agent->taken_committing);
        if (agent->failing)
                commit_recover(agent);
        while ((o = TAILQ_FIRST(&agent->committing_list))) {
                TAILQ_REMOVE(&agent->committing_list, o, commit_link);
                o->committing = false;
                deeds = o->act_committing;
                o->act_committing = 0;
                operation_tell_stored(o, true);
                operation_do(o, deeds);
        }
        if (agent->behind && !commit_leaves_some(agent)) {
                agent->behind = false;
                commit_tell_recovered(agent);
        }
}

/* SQLite refuses a statement, or a value is out of all bounds: trying again does not help. */
static bool commit_is_defect(int result) {
        return result == -EBADMSG || result == -EMSGSIZE;
}

static int commit_done(int result, const char *error, uint64_t took_usec, void *userdata) {
        struct agent *agent = userdata;

        (void)event_timer_set(agent->slow, USEC_NEVER);
        agent->commit_running = false;
        if (commit_is_defect(result)) {
                journal_write(JOURNAL_STORE_FAILED, NULL, "the state database refuses a record: %s; ending, please report this", error);
                return result;
        }
        log_debug("commit took %" PRIu64 " us: %s", took_usec, result < 0 ? error : "stored");
        if (result < 0)
                commit_failed(agent, result, error);
        else
                commit_stored(agent);
        agent_schedule_turn(agent);
        if (!agent->drained)
                return 0;
        if (result == 0) /* it may have held reports: they go out now */
                return control_drain(agent->control, DRAIN_AGAIN_USEC, agent_commit_last, agent);
        event_exit(agent->event, 0);
        return 0;
}

static int commit_slow(void *userdata) {
        struct agent *agent = userdata;

        if (agent->commit_running)
                commit_from_memory(agent, 0, "a commit takes more than 5 s, the disk is failing or overloaded");
        return 0;
}

/* ---- its begin ------------------------------------------------------------------------------------------------ */

static void commit_take(struct operation *o) {
        o->committing = true;
        o->act_committing = o->act;
        o->act = 0;
        TAILQ_INSERT_TAIL(&o->agent->committing_list, o, commit_link);
}

/* The operations of the turn move from `touched` to the commit; their deeds with them. */
static void commit_take_touched(struct agent *agent) {
        struct operation *o;

        TAILQ_FOREACH(o, &agent->touched, touched_link)
                if (o->dirty) {
                        o->dirty = false;
                        commit_take(o);
                }
        agent->taken_committing = agent->taken;
        agent->taken = 0;
        agent->revision_committing = agent->revision_next;
}

/* The first `count` records that were kept; their deeds do not wait. */
static void commit_take_unwritten(struct agent *agent, size_t count) {
        struct operation *o;
        bool whole = count >= agent->unwritten_count;

        while (count-- > 0 && (o = TAILQ_FIRST(&agent->unwritten))) {
                commit_unkeep(o);
                o->committing = true;
                TAILQ_INSERT_TAIL(&agent->committing_list, o, commit_link);
        }
        agent->revision_committing = whole ? agent->revision_next : agent->revision;
}

static bool commit_is_needed(const struct agent *agent) {
        const struct operation *o;

        if (agent->failing || agent->revision_reset)
                return true;
        TAILQ_FOREACH(o, &agent->touched, touched_link)
                if (o->dirty)
                        return true;
        return false;
}

static int commit_begin(struct agent *agent) {
        _cleanup_(store_turn_free_pointer) struct store_turn *turn = NULL;
        bool whole;
        size_t put = 0;
        int r = store_turn_new(agent->store, &turn);

        if (r == 0)
                r = agent->failing ? commit_gather_unwritten(agent, turn, &put) : commit_gather(agent, turn, &put);
        if (r == 0)
                r = store_commit(agent->store, turn, commit_done, agent);
        if (r < 0)
                return r;
        (void)TAKE(turn);
        whole = !agent->failing || put >= agent->unwritten_count;
        if (agent->failing)
                commit_take_unwritten(agent, put);
        else
                commit_take_touched(agent);
        if (whole) {
                agent->reset_committing = agent->revision_reset;
                agent->revision_reset = false;
        }
        agent->commit_running = true;
        (void)event_timer_set_coarse(agent->slow, event_now_usec(agent->event) + COMMIT_SLOW_USEC, USEC_PER_SEC);
        return 0;
}

void agent_commit(struct agent *agent) {
        uint64_t now = event_now_usec(agent->event);
        int r;

        if (agent->failing)
                commit_keep_touched(agent);
        if (agent->commit_running)
                return;
        if (now < agent->commit_again_usec) {
                agent_try_again(agent, agent->commit_again_usec);
                return;
        }
        if (!commit_is_needed(agent)) {
                if (agent->taken > 0) /* heartbeats only: nothing to store */
                        agent_give_back(agent, &agent->taken);
                return;
        }
        r = commit_begin(agent);
        if (r < 0) {
                commit_failed(agent, r, strerror(-r));
                agent_try_again(agent, agent->commit_again_usec);
        }
}

/* ---- life ----------------------------------------------------------------------------------------------------- */

/* A commit that is under way may hold reports: they go out once more after it. On a disk that fails one last try. */
int agent_commit_last(void *userdata) {
        struct agent *agent = userdata;

        if (agent->behind && !agent->commit_running) {
                agent->commit_again_usec = 0;
                agent_commit(agent);
        }
        agent->drained = agent->commit_running;
        if (!agent->drained)
                event_exit(agent->event, 0);
        return 0;
}

int agent_commit_init(struct agent *agent) {
        agent->unwritten_batch = UNWRITTEN_BATCH;
        return event_add_timer(agent->event, "slow-commit", commit_slow, agent, &agent->slow);
}

void agent_commit_deinit(struct agent *agent) {
        agent->slow = event_source_free(agent->slow);
}
