# SPDX-License-Identifier: Apache-2.0
"""
server: ControlPlane: start, stop, restart

    with ControlPlane(Options(state="/tmp/x/state.db", clusters=["c1"])) as plane:
        plane.address                                       "127.0.0.1:PORT", the same after restart()
        plane.add_job("job-1", driver_id="driver-1")        a job that somebody else has submitted
        operation = plane.cancel("job-1")                   as JobService.Cancel, without the network
        plane.wait_done(operation.id)                       the ended Operation, or AssertionError
        plane.reports(operation.id)                         every report that came for it, with its disposition
        plane.faults.add("report", "status", code="UNAVAILABLE", times=3)
        plane.inject(event), plane.send(node, message)      what a control plane must not send
"""
import threading
from concurrent import futures

import grpc

from sparkcancel.agent.v1 import cancel_agent_service_pb2 as agent_pb2
from yandex.cloud.endpoint import api_endpoint_service_pb2_grpc as endpoint_grpc
from yandex.cloud.iam.v1 import iam_token_service_pb2_grpc as iam_grpc
from yandex.cloud.operation import operation_service_pb2_grpc as operation_grpc
from yandex.cloud.spark.v1 import job_service_pb2_grpc as job_grpc

from . import rules as rules_module
from . import wire
from .access import Access
from .agents import Agents
from .callers import ApiEndpointService, IamTokenService, JobService, OperationService
from .faults import Faults
from .jobs import Jobs
from .logs import Logs
from .masters import Masters
from .options import Options
from .rules import Rules
from .state import State
from .wire import Job, Operation

CALL_MAX = 1 << 20


def read(path):
    with open(path, "rb") as file:
        return file.read()


class Report:
    """A report that came in, for tests."""

    def __init__(self, row):
        self.at = row["at"]
        self.node = row["node"]
        self.instance_id = row["instance_id"]
        self.sequence = row["sequence"]
        self.disposition = agent_pb2.Disposition.Name(row["disposition"])
        self.reason = row["reason"]
        self.raw = row["report"]
        self.operation = agent_pb2.CancelReport.FromString(self.raw).operation
        self.metadata = wire.report_of(agent_pb2.CancelReport.FromString(self.raw)) or agent_pb2.CancelJobMetadata()
        self.outcome = rules_module.outcome_name(self.metadata.outcome)

    def __repr__(self):
        return f"<{self.outcome} of {self.operation.id} from {self.node} #{self.sequence}: {self.disposition} {self.reason}>"


class ControlPlane:
    def __init__(self, options=None, **changes):
        self.options = options or Options(**changes)
        self.faults = Faults()
        self.address = ""
        self._listen = self.options.listen
        self._server = None

    # ---- life

    def start(self):
        options = self.options
        self.state = State(options.state, options.clusters, options.keep_log)
        self.access = Access(options.tokens, bool(options.client_ca))
        self.agents = Agents(self)
        self.rules = Rules(self.state, options, self.agents.live_nodes)
        masters = Masters(options.masters, options.spark_timeout, options.spark_token_file)
        self.jobs = Jobs(self.state, options, masters)
        self.logs = Logs(self.state, options, masters)
        self.agents.forgive()
        self.jobs.end_interrupted()
        self._start_server()
        self.stopping = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="ticker", daemon=True)
        self._ticker.start()
        self.jobs.start()
        return self

    def _start_server(self):
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", CALL_MAX),
                   ("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 10_000)]
        if self.options.connection_age:
            options += [("grpc.max_connection_age_ms", round(self.options.connection_age * 1000)),
                        ("grpc.max_connection_age_grace_ms", round(self.options.connection_grace * 1000))]
        self._server = grpc.server(futures.ThreadPoolExecutor(self.options.workers, thread_name_prefix="call"), options=options)
        job_grpc.add_JobServiceServicer_to_server(JobService(self), self._server)
        operation_grpc.add_OperationServiceServicer_to_server(OperationService(self), self._server)
        endpoint_grpc.add_ApiEndpointServiceServicer_to_server(ApiEndpointService(self), self._server)
        iam_grpc.add_IamTokenServiceServicer_to_server(IamTokenService(self), self._server)
        self._server.add_generic_rpc_handlers((self.agents.handler(),))
        if self.options.tls_cert:
            ca = read(self.options.client_ca) if self.options.client_ca else None
            credentials = grpc.ssl_server_credentials([(read(self.options.tls_key), read(self.options.tls_cert))], ca, bool(ca))
            port = self._server.add_secure_port(self._listen, credentials)
        else:
            port = self._server.add_insecure_port(self._listen)
        if port == 0:
            raise OSError(f"can't listen on {self._listen}")
        host = self._listen.rpartition(":")[0]
        self.address = self._listen = f"{host}:{port}"
        self._server.start()

    @property
    def endpoint(self):
        return ("https://" if self.options.tls_cert else "http://") + self.address

    @property
    def advertised(self):
        return self.options.advertise or self.address

    def stop(self):
        """Streams end with UNAVAILABLE; what was answered is stored. The port is kept for start()."""
        if self._server is None:
            return
        self.stopping.set()
        with self.state.lock:
            self.agents.stopping = True
            for stream in self.agents.streams.values():
                self.state.condition(stream.cluster_id).notify_all()
        self.jobs.stop()
        self._server.stop(0.2).wait()
        self._ticker.join()
        self._server = None
        self.state.close()

    def restart(self):
        self.stop()
        return self.start()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    def _tick(self):
        wait = 0.0
        while not self.stopping.wait(wait):
            wait = min(0.25, max(0.05, self.rules.evaluate_due()))

    # ---- for tests and the command line, beside the network

    @property
    def cluster_id(self):
        return self.options.clusters[0]

    def add_job(self, job_id, driver_id="", status="RUNNING", cluster_id=None, name="", supervised=False):
        now = wire.timestamp(wire.now_usec())
        job = Job(id=job_id, cluster_id=cluster_id or self.cluster_id, created_at=now, name=name, created_by="test",
                  status=Job.Status.Value(status))
        if job.status == Job.RUNNING:
            job.started_at.CopyFrom(now)
        self.jobs.add(job, driver_id, supervised)
        return job

    def job(self, job_id, cluster_id=None):
        with self.state.lock:
            return self.rules.shown_job(self.state.job(cluster_id or self.cluster_id, job_id))

    def cancel(self, job_id, dry_run=False, deadline=None, cluster_id=None):
        return self.rules.cancel(cluster_id or self.cluster_id, job_id, "test", dry_run,
                                 round(deadline * wire.USEC) if deadline else None)

    def withdraw(self, operation_id):
        return self.rules.withdraw(operation_id, "test")

    def operation(self, operation_id):
        row = self.state.operation(operation_id)
        return Operation.FromString(row["operation"]) if row else None

    def reports(self, operation_id=None, outcome=None, disposition=None, node=None):
        """Every report that came, oldest first."""
        rows = self.state.rows("SELECT * FROM report WHERE ? IN ('', operation_id) ORDER BY number", operation_id or "")
        found = [Report(row) for row in rows]
        return [r for r in found if outcome in (None, r.outcome) and disposition in (None, r.disposition)
                and node in (None, r.node)]

    def streams(self, node=None):
        with self.state.lock:
            return [s for s in self.agents.streams.values() if node in (None, s.node)]

    def wait(self, test, timeout=20, what="it"):
        value = self.state.wait(test, timeout)
        if not value:
            raise AssertionError(f"{what} did not come within {timeout} s")
        return value

    def wait_done(self, operation_id, timeout=20):
        self.wait(lambda: self.operation(operation_id).done, timeout, f"the end of {operation_id}")
        return self.operation(operation_id)

    def wait_report(self, operation_id, outcome=None, timeout=20, disposition=None, count=1, node=None):
        """The count-th such report."""
        return self.wait(lambda: self.reports(operation_id, outcome, disposition, node)[count - 1:count], timeout,
                         f"report {outcome or ''} of {operation_id}")[0]

    def wait_watching(self, node=None, count=1, timeout=20):
        """Streams whose replay is over."""
        return self.wait(lambda: [s for s in self.streams(node) if s.replayed][:count] if
                         len([s for s in self.streams(node) if s.replayed]) >= count else None, timeout,
                         f"the stream of {node or 'a node'}")

    def inject(self, event, kind="inject", operation_id="", cluster_id=None):
        """Append any event to the log: a WatchResponse without revision, as a message or raw -> its revision."""
        raw = event if isinstance(event, bytes) else event.SerializeToString()
        with self.state.transaction():
            return self.state.append(cluster_id or self.cluster_id, kind, operation_id, raw)

    def inject_cancel(self, operation, cluster_id=None, job_id="", **command):
        """A command around any Operation (a message or raw), known under its id so that its reports count."""
        raw = operation if isinstance(operation, bytes) else operation.SerializeToString()
        command.setdefault("deadline", wire.now_usec() + self.options.usec("deadline"))
        return self.rules.open(Operation.FromString(raw).id, cluster_id or self.cluster_id, job_id, raw, **command)

    def send(self, node, message):
        """Any bytes on a node's open stream, past the log."""
        raw = message if isinstance(message, bytes) else message.SerializeToString()
        with self.state.lock:
            for stream in self.streams(node):
                stream.raw.append(raw)
                self.state.condition(stream.cluster_id).notify_all()
