# SPDX-License-Identifier: Apache-2.0
"""
rules: what a report does to an operation, and who ends it when

Every function here runs inside one transaction of the state. Three things end a cancel: a node's final report,
the control plane itself (NOT_FOUND, DEADLINE_EXCEEDED), a caller's OperationService.Cancel. Two final reports do not
end it at once: INVALID_COMMAND, because a single old agent must not speak for a node that is busy killing, and the
CANCELLED of a supervised job whose end Spark does not confirm, because its driver may come back on another node.

While a cancel is open the job's own record is kept beside CANCELLING and moves only forward (PENDING to RUNNING): when
the cancel fails, the job gets that status back, and Spark's word alone never makes a job CANCELLED under an agent
that is still proving it.
"""
import grpc

from . import wire
from .wire import Job, Operation, agent_pb2

DESCRIPTION = "Cancel Spark job"
FINISHED = (Job.CANCELLED, Job.DONE, Job.ERROR)
LIVE_STATES = ("SUBMITTED", "RUNNING", "RELAUNCHING")
RETRY_USEC = wire.USEC // 2
CODE = {code.value[0]: code for code in grpc.StatusCode}


class Refusal(Exception):
    """An answer other than OK."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code
        self.text = text


def outcome_name(outcome):
    return agent_pb2.Outcome.Name(outcome) if outcome in agent_pb2.Outcome.values() else str(outcome)


def length_delimited(number, data):
    return wire.varint(number << 3 | 2) + wire.varint(len(data)) + data


def cancel_event(operation, driver_id="", deadline=0, dry_run=False):
    """A WatchResponse with a CancelCommand around the raw operation, which agents must give back byte for byte."""
    command = agent_pb2.CancelCommand(driver_id=driver_id, dry_run=dry_run)
    if deadline:
        command.deadline.CopyFrom(wire.timestamp(deadline))
    return length_delimited(2, length_delimited(1, operation) + command.SerializeToString())


def withdrawn_event(operation_id):
    return agent_pb2.WatchResponse(withdrawn=agent_pb2.Withdrawn(operation_id=operation_id)).SerializeToString()


class Rules:
    def __init__(self, state, options, live_nodes):
        self.state = state
        self.options = options
        self.live_nodes = live_nodes  # cluster id -> names of the nodes that count as live

    # ---- what callers see

    def shown_job(self, row):
        job = Job.FromString(row["job"])
        job.status = row["status"]
        if row["status"] not in FINISHED and self.state.open_cancel(row["cluster_id"], row["job_id"], False):
            job.status = Job.CANCELLING
        return job

    def cancel(self, cluster_id, job_id, who, dry_run=False, deadline_usec=None):
        """JobService.Cancel -> Operation."""
        state = self.state
        with state.transaction():
            job = state.job(cluster_id, job_id)
            if job is None:
                raise Refusal(grpc.StatusCode.NOT_FOUND, f"no job {job_id!r} in cluster {cluster_id!r}")
            if job["status"] in FINISHED:
                return self._already_over(job, who, dry_run)
            row = state.open_cancel(cluster_id, job_id, dry_run)
            if row is not None:
                return Operation.FromString(row["operation"])
            if state.open_count(cluster_id) >= self.options.max_open:
                raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED,
                              f"{self.options.max_open} cancels of cluster {cluster_id!r} are open; try again later")
            return self._begin(job, who, dry_run, deadline_usec)

    def _new_operation(self, cluster_id, job_id, who, dry_run):
        now = wire.timestamp(wire.now_usec())
        return Operation(id=wire.make_id("c9q"), description=DESCRIPTION + (" (dry run)" if dry_run else ""),
                         created_at=now, created_by=who, modified_at=now,
                         metadata=wire.pack(wire.CreateJobMetadata(cluster_id=cluster_id, job_id=job_id)))

    def _already_over(self, job, who, dry_run):
        operation = self._new_operation(job["cluster_id"], job["job_id"], who, dry_run)
        operation.done = True
        operation.response.CopyFrom(wire.pack(self.shown_job(job)))
        self.state.execute(
            "INSERT INTO operation (operation_id, kind, cluster_id, job_id, operation, done, dry_run, created)"
            " VALUES (?, 'cancel', ?, ?, ?, 1, ?, ?)", operation.id, job["cluster_id"], job["job_id"],
            operation.SerializeToString(), int(dry_run), wire.now_usec())
        return operation

    def _begin(self, job, who, dry_run, deadline_usec):
        operation = self._new_operation(job["cluster_id"], job["job_id"], who, dry_run)
        deadline = wire.now_usec() + (deadline_usec or self.options.usec("deadline"))
        driver_id = job["driver_id"] if self.options.send_driver_id else ""
        self.open(operation.id, job["cluster_id"], job["job_id"], operation.SerializeToString(), driver_id, deadline,
                  dry_run)
        self.state.note(job["cluster_id"], job["job_id"], f"cancel {operation.id} asked for by {who}")
        return operation

    def open(self, operation_id, cluster_id, job_id, operation, driver_id="", deadline=0, dry_run=False):
        """Store an open cancel and append its command to the log -> its revision."""
        state, now = self.state, wire.now_usec()
        with state.transaction():
            state.execute(
                "INSERT INTO operation (operation_id, kind, cluster_id, job_id, operation, dry_run, created, deadline,"
                " next_check) VALUES (?, 'cancel', ?, ?, ?, ?, ?, ?, ?)", operation_id, cluster_id, job_id, operation,
                int(dry_run), now, deadline, now)
            return state.append(cluster_id, "cancel", operation_id, cancel_event(operation, driver_id, deadline, dry_run))

    def withdraw(self, operation_id, who):
        """OperationService.Cancel: an open cancel is withdrawn; an ended operation is answered as it is."""
        with self.state.transaction():
            row = self.state.operation(operation_id)
            if row is None:
                raise Refusal(grpc.StatusCode.NOT_FOUND, f"no operation {operation_id!r}")
            if row["done"]:
                return Operation.FromString(row["operation"])
            if row["kind"] != "cancel":
                raise Refusal(grpc.StatusCode.FAILED_PRECONDITION,
                              "only a cancel can be withdrawn; to stop the job use JobService.Cancel")
            return self._end(row, error=wire.error(1, "WITHDRAWN", f"withdrawn by {who}; the job may have been killed all the"
                                                                   " same if its driver was already being killed"))

    # ---- what agents say

    def apply_report(self, cluster_id, node, instance_id, raw):
        """One CancelReport, raw -> ReportResult."""
        with self.state.transaction():
            report = agent_pb2.CancelReport.FromString(raw)
            disposition, reason = self._judge(cluster_id, node, report, raw)
            self.state.execute(
                "INSERT INTO report (at, cluster_id, operation_id, node, instance_id, sequence, disposition, reason, report)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", wire.now_usec(), cluster_id, report.operation.id, node, instance_id,
                report.sequence, disposition, reason, raw)
            return agent_pb2.ReportResult(operation_id=report.operation.id, disposition=disposition, reason=reason)

    def _judge(self, cluster_id, node, report, raw):
        state, operation_id = self.state, report.operation.id
        if not operation_id:
            return agent_pb2.REJECTED, "the report names no operation"
        row = state.operation(operation_id)
        if row is None or row["cluster_id"] != cluster_id or row["kind"] != "cancel":
            return agent_pb2.UNKNOWN_OPERATION, f"no cancel {operation_id!r} in cluster {cluster_id!r}"
        if state.row("SELECT 1 FROM report WHERE operation_id = ? AND node = ? AND sequence = ? AND disposition = ?"
                     " AND report = ?", operation_id, node, report.sequence, agent_pb2.APPLIED, raw):
            return agent_pb2.ALREADY_APPLIED, ""
        if row["done"]:
            return agent_pb2.SUPERSEDED, "the operation is done"
        reason = self.broken(row, node, report, raw)
        if reason:
            return agent_pb2.REJECTED, reason
        metadata = wire.report_of(report)
        last = state.verdicts(operation_id).get(node)
        if last is not None and metadata.outcome in wire.PROGRESS and report.sequence <= last["sequence"]:
            if report.sequence < last["sequence"]:
                return agent_pb2.SUPERSEDED, f"sequence {last['sequence']} was applied"
            return agent_pb2.REJECTED, f"sequence {report.sequence} was used for another report"
        self._apply(row, node, report, metadata, raw)
        return agent_pb2.APPLIED, ""

    def broken(self, row, node, report, raw):
        """Which rule of the contract the report breaks, or None."""
        metadata = wire.report_of(report)
        if metadata is None:
            return "metadata is not sparkcancel.agent.v1.CancelJobMetadata"
        if report.sequence <= 0:
            return "sequence is not positive"
        if metadata.node != node:
            return f"metadata.node is {metadata.node!r}, the call's node {node!r}"
        if len(metadata.message.encode()) > wire.REPORT_MESSAGE_MAX or any(ord(c) < 32 for c in metadata.message):
            return "message is longer than 1 KiB or has control characters"
        if not report.operation.HasField("modified_at"):
            return "modified_at is not set"
        if metadata.outcome != agent_pb2.INVALID_COMMAND:
            if (metadata.cluster_id, metadata.job_id) != (row["cluster_id"], row["job_id"]):
                return "cluster_id or job_id is not the operation's"
            ours = {5, 6, 7, 8, 9}
            given = b"".join(wire.field_bytes(raw, 1))
            if wire.without_fields(given, ours) != wire.without_fields(row["operation"], ours):
                return "the operation's own fields were changed"
        if metadata.outcome in wire.PROGRESS:
            return self._broken_progress(report.operation, metadata)
        return self._broken_final(row, report.operation, metadata)

    def _broken_progress(self, operation, metadata):
        if operation.done or operation.WhichOneof("result"):
            return "a progress report is done or has a result"
        if metadata.outcome == agent_pb2.IN_PROGRESS and (not metadata.driver_id or metadata.job_status != Job.CANCELLING):
            return "IN_PROGRESS without a driver id or job_status CANCELLING"
        if metadata.outcome == agent_pb2.NOT_ON_NODE and metadata.job_status != Job.STATUS_UNSPECIFIED:
            return "NOT_ON_NODE with a job_status"
        return None

    def _broken_final(self, row, operation, metadata):
        if metadata.outcome not in wire.FINAL or metadata.outcome == agent_pb2.NOT_FOUND:
            return f"outcome {outcome_name(metadata.outcome)} is not one that an agent reports"
        codes, statuses = wire.FINAL[metadata.outcome]
        if not operation.done:
            return "a final report with done=false"
        if statuses is not None and metadata.job_status not in statuses:
            return f"job_status {metadata.job_status} does not go with {outcome_name(metadata.outcome)}"
        if (metadata.outcome == agent_pb2.DRY_RUN) and not row["dry_run"]:
            return "DRY_RUN of an operation that is none"
        if codes:
            return self._broken_error(operation, metadata, codes)
        return self._broken_response(row, operation, metadata)

    def _broken_error(self, operation, metadata, codes):
        if operation.WhichOneof("result") != "error" or operation.error.code not in codes:
            return f"{outcome_name(metadata.outcome)} without an error of code {' or '.join(map(str, codes))}"
        infos = [wire.unpack(detail, wire.error_details_pb2.ErrorInfo) for detail in operation.error.details]
        if not any(info and (info.reason, info.domain) == (outcome_name(metadata.outcome), wire.DOMAIN) for info in infos):
            return "error.details has no ErrorInfo of the outcome"
        return None

    def _broken_response(self, row, operation, metadata):
        job = wire.unpack(operation.response, Job) if operation.WhichOneof("result") == "response" else None
        if job is None or (job.id, job.cluster_id) != (row["job_id"], row["cluster_id"]):
            return "the response is not the operation's yandex.cloud.spark.v1.Job"
        if job.status != metadata.job_status:
            return "the Job's status is not metadata.job_status"
        if metadata.outcome == agent_pb2.CANCELLED:
            if row["dry_run"]:
                return "CANCELLED of a dry run"
            if not metadata.HasField("kill_accepted_at") and not metadata.escalation and metadata.driver_state != "KILLED":
                return "CANCELLED although no kill was accepted, no signal sent and Spark does not say KILLED"
        return None

    def _apply(self, row, node, report, metadata, raw):
        state, now = self.state, wire.now_usec()
        state.execute("INSERT OR REPLACE INTO verdict VALUES (?, ?, ?, ?, ?, ?)", row["operation_id"], node,
                      metadata.outcome, report.sequence, now, raw)
        if metadata.outcome in wire.PROGRESS:
            state.set_operation(row["operation_id"], next_check=now)
        elif metadata.outcome == agent_pb2.INVALID_COMMAND:
            if row["invalid_at"] is None:
                state.set_operation(row["operation_id"], invalid=raw, invalid_at=now)
        elif self._is_held(row, metadata):
            state.set_operation(row["operation_id"], held=raw, held_at=now)
        else:
            self._end_by(row, raw)
            return
        self.evaluate(state.operation(row["operation_id"]))

    def _is_held(self, row, metadata):
        job = self.state.job(row["cluster_id"], row["job_id"])
        return bool(metadata.outcome == agent_pb2.CANCELLED and job is not None and job["supervised"]
                    and metadata.driver_state in ("", "ERROR"))

    # ---- what the control plane decides

    def evaluate_due(self, limit=500):
        """Look at every operation whose time has come -> seconds until the next one, at most 1."""
        with self.state.transaction():
            now = wire.now_usec()
            for row in self.state.rows("SELECT * FROM operation WHERE done = 0 AND kind = 'cancel' AND next_check <= ?"
                                       " ORDER BY next_check LIMIT ?", now, limit):
                self.evaluate(row)
            first = self.state.row("SELECT min(next_check) FROM operation WHERE done = 0 AND kind = 'cancel'")[0]
        return 1.0 if first is None else min(1.0, max(0.01, (first - wire.now_usec()) / wire.USEC))

    def evaluate(self, row):
        """End the operation if its time has come, else note when to look again."""
        now = wire.now_usec()
        end = row["deadline"] + self.options.usec("deadline_grace")
        verdicts = self.state.verdicts(row["operation_id"])
        if row["held"] is not None:
            at = self._evaluate_held(row, verdicts, now, end)
        elif row["invalid"] is not None:
            at = self._evaluate_invalid(row, verdicts, now, end)
        elif now >= end:
            at = self._end(row, error=wire.error(4, "DEADLINE_EXCEEDED", "no node has ended the cancel by its deadline; see"
                                                 " whether the node of the job's driver is connected, then cancel again"))
        else:
            at = self._evaluate_not_found(row, verdicts, now)
        if isinstance(at, int):
            self.state.set_operation(row["operation_id"], next_check=min(at, end) if now < end else at)

    def _busy_elsewhere(self, raw, verdicts):
        node = wire.report_of(agent_pb2.CancelReport.FromString(raw)).node
        return any(v["outcome"] == agent_pb2.IN_PROGRESS and name != node for name, v in verdicts.items())

    def _evaluate_held(self, row, verdicts, now, end):
        metadata = wire.report_of(agent_pb2.CancelReport.FromString(row["held"]))
        ended = wire.from_timestamp(metadata.ended_at) if metadata.HasField("ended_at") else row["held_at"]
        until = min(max(ended, row["created"]), row["held_at"]) + self.options.usec("relaunch_window")
        if self._busy_elsewhere(row["held"], verdicts):
            if now < end:
                return end  # that node's final report counts
            return self._end(row, error=wire.error(4, "DEADLINE_EXCEEDED", "the driver came back on another node, and that node"
                                                   " has not ended it by the deadline; cancel again"))
        return until if now < until else self._end_by(row, row["held"])

    def _evaluate_invalid(self, row, verdicts, now, end):
        invalid = {name for name, v in verdicts.items() if v["outcome"] == agent_pb2.INVALID_COMMAND}
        over = row["invalid_at"] + self.options.usec("invalid_grace")
        busy = any(v["outcome"] == agent_pb2.IN_PROGRESS for v in verdicts.values())
        live = self.live_nodes(row["cluster_id"])
        if live <= invalid or now >= end or (now >= over and not busy):
            return self._end_by(row, row["invalid"])
        return now + RETRY_USEC if now < over else end

    def _evaluate_not_found(self, row, verdicts, now):
        grace_over = row["created"] + self.options.usec("not_found_grace")
        if now < grace_over:
            return grace_over
        if not verdicts or any(v["outcome"] != agent_pb2.NOT_ON_NODE for v in verdicts.values()):
            return 1 << 62  # the next report brings us here again
        if self.why_not_absent(row, verdicts):
            return now + RETRY_USEC
        return self._end(row, error=wire.error(5, "NOT_FOUND", "no node runs the job's driver and Spark does not show it queued or"
                                               " running; see whether the job has ended, or was sent to another cluster"))

    def why_not_absent(self, row, verdicts):
        """What speaks against NOT_FOUND, or None."""
        live = self.live_nodes(row["cluster_id"])
        if not live:
            return "no node is connected"
        missing = sorted(live - {name for name, v in verdicts.items() if v["outcome"] == agent_pb2.NOT_ON_NODE})
        if missing:
            return f"node {missing[0]} has not answered"
        job = self.state.job(row["cluster_id"], row["job_id"])
        if job is None:
            return None
        if job["status"] in (Job.PROVISIONING, Job.PENDING):
            return "the job is starting"
        if job["driver_id"] and self.options.masters and (job["spark_state"] in LIVE_STATES
                                                          or job["spark_asked"] < row["created"]):
            return f"Spark shows driver {job['driver_id']} as {job['spark_state'] or 'not known yet'}"
        return None

    # ---- ends

    def _end_by(self, row, raw):
        """The operation's end as a node's final report says."""
        report = agent_pb2.CancelReport.FromString(raw)
        metadata = wire.report_of(report)
        if report.operation.WhichOneof("result") == "error":
            return self._end(row, error=report.operation.error, metadata=metadata)
        return self._end(row, metadata=metadata, job=wire.unpack(report.operation.response, Job))

    def _end(self, row, error=None, metadata=None, job=None):
        """done=true, published types only; the job's status; Withdrawn to every node -> the Operation."""
        state, now = self.state, wire.now_usec()
        operation = Operation.FromString(row["operation"])
        operation.done = True
        operation.modified_at.CopyFrom(wire.timestamp(now))
        self._end_job(row, metadata, job)
        if error is not None:
            operation.error.CopyFrom(error)
        else:
            own = state.job(row["cluster_id"], row["job_id"])
            shown = Job.FromString(own["job"]) if own else job
            shown.status = own["status"] if own else job.status
            operation.response.CopyFrom(wire.pack(shown))
        state.set_operation(row["operation_id"], operation=operation.SerializeToString(), done=1, held=None, invalid=None)
        state.append(row["cluster_id"], "withdrawn", row["operation_id"], withdrawn_event(row["operation_id"]))
        name = outcome_name(metadata.outcome) if metadata else CODE[error.code].name
        state.note(row["cluster_id"], row["job_id"], f"cancel {row['operation_id']} ended: {name}"
                   + (f" on {metadata.node}" if metadata else ""))
        return operation

    def _end_job(self, row, metadata, reported):
        """The job's own record after the end. An unspecified status gives it back the one from before."""
        own = self.state.job(row["cluster_id"], row["job_id"])
        if own is None or metadata is None or metadata.outcome == agent_pb2.DRY_RUN:
            return
        if metadata.outcome == agent_pb2.DRIVER_SURVIVED:
            self.state.set_job(row["cluster_id"], row["job_id"], disputed=1)  # Spark's word is proved wrong
        if metadata.job_status not in FINISHED:
            return
        job = Job.FromString(own["job"])
        if reported is not None and not job.HasField("started_at") and reported.HasField("started_at"):
            job.started_at.CopyFrom(reported.started_at)
        if not job.HasField("finished_at"):
            ended = metadata.ended_at if metadata.HasField("ended_at") else wire.timestamp(wire.now_usec())
            job.finished_at.CopyFrom(ended)
        self.state.set_job(row["cluster_id"], row["job_id"], job=job.SerializeToString(), status=metadata.job_status)
