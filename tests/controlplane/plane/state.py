# SPDX-License-Identifier: Apache-2.0
"""
state: SQLite: jobs, operations, the append-only log, verdicts, reports; one lock

One connection, one lock, WAL with synchronous=FULL: an agent forgets a report once it was told APPLIED, so what was
answered is on the disk. A revision is the position of a cluster's log, kept in a row of its own: rows that are
deleted never make it go back. Watch streams wait on a condition per cluster, tests on `changed`; both share the
lock and are woken after the commit.
"""
import contextlib
import sqlite3
import threading
import time

from . import wire

SCHEMA_VERSION = 2
DRIVER_UI = "CREATE TABLE driver_ui (driver_id TEXT PRIMARY KEY, address TEXT NOT NULL) WITHOUT ROWID;"  # since 2
SCHEMA = DRIVER_UI + """
CREATE TABLE cluster (cluster_id TEXT PRIMARY KEY, position INTEGER NOT NULL, trimmed INTEGER NOT NULL);
CREATE TABLE job (number INTEGER PRIMARY KEY AUTOINCREMENT, cluster_id TEXT NOT NULL, job_id TEXT NOT NULL,
    job BLOB NOT NULL, status INTEGER NOT NULL, driver_id TEXT NOT NULL DEFAULT '', supervised INTEGER NOT NULL DEFAULT 0,
    spark_state TEXT NOT NULL DEFAULT '', spark_asked INTEGER NOT NULL DEFAULT 0, disputed INTEGER NOT NULL DEFAULT 0,
    UNIQUE (cluster_id, job_id));
CREATE INDEX job_status ON job (status, spark_asked);
CREATE TABLE job_log (number INTEGER PRIMARY KEY AUTOINCREMENT, cluster_id TEXT NOT NULL, job_id TEXT NOT NULL,
    line TEXT NOT NULL);
CREATE INDEX job_log_job ON job_log (cluster_id, job_id, number);
CREATE TABLE operation (number INTEGER PRIMARY KEY AUTOINCREMENT, operation_id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
    cluster_id TEXT NOT NULL, job_id TEXT NOT NULL, operation BLOB NOT NULL, done INTEGER NOT NULL DEFAULT 0,
    dry_run INTEGER NOT NULL DEFAULT 0, created INTEGER NOT NULL, deadline INTEGER NOT NULL DEFAULT 0,
    next_check INTEGER, held BLOB, held_at INTEGER, invalid BLOB, invalid_at INTEGER);
CREATE INDEX operation_job ON operation (cluster_id, job_id, done);
CREATE INDEX operation_check ON operation (next_check) WHERE done = 0 AND kind = 'cancel';
CREATE TABLE log (cluster_id TEXT NOT NULL, revision INTEGER NOT NULL, kind TEXT NOT NULL, operation_id TEXT NOT NULL,
    event BLOB NOT NULL, PRIMARY KEY (cluster_id, revision)) WITHOUT ROWID;
CREATE INDEX log_operation ON log (operation_id);
CREATE TABLE node (cluster_id TEXT NOT NULL, node TEXT NOT NULL, instance_id TEXT NOT NULL, version TEXT NOT NULL,
    last_seen INTEGER NOT NULL, PRIMARY KEY (cluster_id, node));
CREATE TABLE verdict (operation_id TEXT NOT NULL, node TEXT NOT NULL, outcome INTEGER NOT NULL, sequence INTEGER NOT NULL,
    at INTEGER NOT NULL, report BLOB NOT NULL, PRIMARY KEY (operation_id, node)) WITHOUT ROWID;
CREATE TABLE report (number INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, cluster_id TEXT NOT NULL,
    operation_id TEXT NOT NULL, node TEXT NOT NULL, instance_id TEXT NOT NULL, sequence INTEGER NOT NULL,
    disposition INTEGER NOT NULL, reason TEXT NOT NULL, report BLOB NOT NULL);
CREATE INDEX report_operation ON report (operation_id, node, sequence);
"""


class StateError(Exception):
    pass


def connect(path):
    base = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    base.row_factory = sqlite3.Row
    return base


class State:
    def __init__(self, path, clusters=(), keep_log=100_000):
        self.path = str(path)
        self.keep_log = keep_log
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self._conditions = {}
        self._touched = set()
        self._depth = 0
        self._base = connect(self.path)
        self._base.execute("PRAGMA journal_mode=WAL")
        self._base.execute("PRAGMA synchronous=FULL")
        self._migrate()
        with self.transaction():
            for cluster_id in clusters:
                self.execute("INSERT OR IGNORE INTO cluster VALUES (?, 0, 0)", cluster_id)

    def _migrate(self):
        version = self._base.execute("PRAGMA user_version").fetchone()[0]
        if not 0 <= version <= SCHEMA_VERSION:
            raise StateError(f"{self.path} has schema {version}; this program knows {SCHEMA_VERSION}")
        if version < SCHEMA_VERSION:
            change = SCHEMA if version == 0 else DRIVER_UI
            self._base.executescript(f"BEGIN; {change} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")

    def close(self):
        with self.lock:
            self._base.close()

    # ---- transactions

    @contextlib.contextmanager
    def transaction(self):
        """Everything inside is one commit; those who wait are woken after it. Nests."""
        with self.lock:
            if self._depth == 0:
                self._base.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield self
            except BaseException:
                self._depth -= 1
                if self._depth == 0:
                    self._base.execute("ROLLBACK")
                    self._touched.clear()
                raise
            self._depth -= 1
            if self._depth == 0:
                self._base.execute("COMMIT")
                self._wake()

    def _wake(self):
        for cluster_id in self._touched:
            self.condition(cluster_id).notify_all()
        self._touched.clear()
        self.changed.notify_all()

    def condition(self, cluster_id):
        """Notified when the cluster's log has grown. Shares the lock."""
        with self.lock:
            if cluster_id not in self._conditions:
                self._conditions[cluster_id] = threading.Condition(self.lock)
            return self._conditions[cluster_id]

    def execute(self, sql, *arguments):
        return self._base.execute(sql, arguments)

    def row(self, sql, *arguments):
        with self.lock:
            return self._base.execute(sql, arguments).fetchone()

    def rows(self, sql, *arguments):
        with self.lock:
            return self._base.execute(sql, arguments).fetchall()

    def wait(self, test, timeout):
        """Wait until test() is true; it is asked after each commit, under the lock -> its last value."""
        end = time.monotonic() + timeout
        with self.lock:
            while True:
                value = test()
                rest = end - time.monotonic()
                if value or rest <= 0:
                    return value
                self.changed.wait(min(rest, 1.0))

    # ---- the log

    def position(self, cluster_id):
        """(position, trimmed up to) of a cluster's log, or None."""
        row = self.row("SELECT position, trimmed FROM cluster WHERE cluster_id = ?", cluster_id)
        return (row["position"], row["trimmed"]) if row else None

    def append(self, cluster_id, kind, operation_id, event):
        """Append one event (a serialized WatchResponse without revision) -> its revision."""
        position, _ = self.position(cluster_id)
        revision = position + 1
        self.execute("UPDATE cluster SET position = ? WHERE cluster_id = ?", revision, cluster_id)
        self.execute("INSERT INTO log VALUES (?, ?, ?, ?, ?)", cluster_id, revision, kind, operation_id, event)
        self._touched.add(cluster_id)
        if self.keep_log is not None and revision % 64 == 0:
            self.trim(cluster_id, revision - self.keep_log)
        return revision

    def trim(self, cluster_id, up_to):
        """Forget history up to a revision. The commands of open operations stay: after_revision=0 needs them."""
        if up_to <= self.position(cluster_id)[1]:
            return
        self.execute(
            "DELETE FROM log WHERE cluster_id = ? AND revision <= ? AND NOT (kind = 'cancel' AND operation_id IN"
            " (SELECT operation_id FROM operation WHERE cluster_id = ? AND done = 0))", cluster_id, up_to, cluster_id)
        self.execute("UPDATE cluster SET trimmed = ? WHERE cluster_id = ?", up_to, cluster_id)

    def open_events(self, cluster_id, after, up_to, limit):
        """The commands of open operations, oldest first."""
        return self.rows(
            "SELECT log.revision, log.event FROM log JOIN operation USING (operation_id) WHERE log.cluster_id = ?"
            " AND log.kind = 'cancel' AND operation.done = 0 AND revision > ? AND revision <= ? ORDER BY revision LIMIT ?",
            cluster_id, after, up_to, limit)

    def events(self, cluster_id, after, limit):
        """What came after a revision. An ended operation's command is left out: its Withdrawn follows."""
        return self.rows(
            "SELECT log.revision, CASE WHEN log.kind = 'cancel' AND operation.done THEN NULL ELSE log.event END AS event"
            " FROM log LEFT JOIN operation USING (operation_id) WHERE log.cluster_id = ? AND revision > ?"
            " ORDER BY revision LIMIT ?", cluster_id, after, limit)

    # ---- rows

    def job(self, cluster_id, job_id):
        return self.row("SELECT * FROM job WHERE cluster_id = ? AND job_id = ?", cluster_id, job_id)

    def operation(self, operation_id):
        return self.row("SELECT * FROM operation WHERE operation_id = ?", operation_id)

    def open_cancel(self, cluster_id, job_id, dry_run):
        return self.row("SELECT * FROM operation WHERE cluster_id = ? AND job_id = ? AND done = 0 AND kind = 'cancel'"
                        " AND dry_run = ? ORDER BY number LIMIT 1", cluster_id, job_id, int(dry_run))

    def open_count(self, cluster_id):
        return self.row("SELECT count(*) FROM operation WHERE cluster_id = ? AND done = 0 AND kind = 'cancel'",
                        cluster_id)[0]

    def verdicts(self, operation_id):
        """node -> row of the last report that was applied."""
        return {row["node"]: row for row in self.rows("SELECT * FROM verdict WHERE operation_id = ?", operation_id)}

    def nodes(self, cluster_id):
        return self.rows("SELECT * FROM node WHERE cluster_id = ?", cluster_id)

    def note(self, cluster_id, job_id, text):
        """One line of the job's history, for `controlplane history`."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        self.execute("INSERT INTO job_log (cluster_id, job_id, line) VALUES (?, ?, ?)", cluster_id, job_id,
                     f"{moment}Z {text}\n")

    def set_job(self, cluster_id, job_id, **values):
        for name, value in values.items():
            self.execute(f"UPDATE job SET {name} = ? WHERE cluster_id = ? AND job_id = ?", value, cluster_id, job_id)

    def set_operation(self, operation_id, **values):
        for name, value in values.items():
            self.execute(f"UPDATE operation SET {name} = ? WHERE operation_id = ?", value, operation_id)

    def seen(self, cluster_id, node, instance_id, version=None):
        """A node spoke to us."""
        self.execute(
            "INSERT INTO node VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET instance_id = excluded.instance_id,"
            " version = coalesce(?, version), last_seen = excluded.last_seen",
            cluster_id, node, instance_id, version or "", wire.now_usec(), version)
