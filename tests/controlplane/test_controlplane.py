# SPDX-License-Identifier: Apache-2.0
"""
The reference control plane, tried from both sides: as a caller and as an agent, over real gRPC.
"""
import json
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time

import grpc
import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "integration"))

from plane import wire  # noqa: E402
from plane.options import Options  # noqa: E402
from plane.server import ControlPlane  # noqa: E402
from plane.wire import Job, agent_pb2  # noqa: E402
from sparkcancel.agent.v1 import cancel_agent_service_pb2_grpc as agent_grpc  # noqa: E402
from yandex.cloud.endpoint import api_endpoint_service_pb2, api_endpoint_service_pb2_grpc  # noqa: E402
from yandex.cloud.operation import operation_service_pb2, operation_service_pb2_grpc  # noqa: E402
from yandex.cloud.spark.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc  # noqa: E402
import sparkmaster  # noqa: E402

LIMIT = 10  # seconds; nothing here takes long unless it fails
CODE = grpc.StatusCode


class Caller:
    def __init__(self, plane, token=None, channel=None):
        self.channel = channel or grpc.insecure_channel(plane.address)
        self.jobs = job_service_pb2_grpc.JobServiceStub(self.channel)
        self.operations = operation_service_pb2_grpc.OperationServiceStub(self.channel)
        self.metadata = [("authorization", f"Bearer {token}")] if token else []

    def cancel(self, job_id, cluster_id="c1", *extra):
        return self.jobs.Cancel(job_service_pb2.CancelJobRequest(cluster_id=cluster_id, job_id=job_id),
                                metadata=[*self.metadata, *extra], timeout=LIMIT)

    def get(self, job_id, cluster_id="c1"):
        return self.jobs.Get(job_service_pb2.GetJobRequest(cluster_id=cluster_id, job_id=job_id), metadata=self.metadata,
                             timeout=LIMIT)

    def create(self, cluster_id="c1", **fields):
        fields.setdefault("main_class", "Main")
        fields.setdefault("main_jar_file_uri", "file:/a.jar")
        return self.jobs.Create(job_service_pb2.CreateJobRequest(cluster_id=cluster_id, spark_job=job_pb2.SparkJob(**fields)),
                                metadata=self.metadata, timeout=LIMIT)

    def operation(self, operation_id):
        return self.operations.Get(operation_service_pb2.GetOperationRequest(operation_id=operation_id),
                                   metadata=self.metadata, timeout=LIMIT)


class Agent:
    """An agent of one node, without a node."""

    def __init__(self, plane, node="n1", instance="i1", token=None, channel=None):
        self.node = node
        self.instance = instance
        self.metadata = [("authorization", f"Bearer {token}")] if token else []
        self.stub = agent_grpc.CancelAgentServiceStub(channel or grpc.insecure_channel(plane.address))
        self.sequence = 0
        self.events = queue.Queue()
        self.call = None

    def watch(self, after=0, cluster_id="c1"):
        self.call = self.stub.Watch(agent_pb2.WatchRequest(cluster_id=cluster_id, node=self.node, instance_id=self.instance,
                                                           after_revision=after), metadata=self.metadata)
        threading.Thread(target=self._read, args=(self.call,), daemon=True).start()
        return self

    def _read(self, call):
        try:
            for message in call:
                self.events.put(message)
            self.events.put(None)
        except grpc.RpcError as error:
            self.events.put(error)

    def next(self):
        return self.events.get(timeout=LIMIT)

    def event(self):
        """The next message that is no Bookmark."""
        while True:
            message = self.next()
            if not isinstance(message, agent_pb2.WatchResponse) or message.WhichOneof("event") != "bookmark":
                return message

    def replay(self):
        """All up to the closing Bookmark -> (messages between, its revision)."""
        opening = self.next()
        assert opening.WhichOneof("event") == "bookmark", opening
        messages = []
        while True:
            message = self.next()
            if message.WhichOneof("event") == "bookmark":
                return messages, message.revision
            messages.append(message)

    def ended(self):
        while True:
            message = self.next()
            if isinstance(message, grpc.RpcError):
                return message.code()
            assert message is not None, "the stream ended with OK"

    def make(self, command, outcome, sequence=None, **metadata):
        """A correct CancelReport for a command."""
        asked = wire.unpack(command.operation.metadata, wire.CreateJobMetadata)
        if sequence is None:
            self.sequence += 1
            sequence = self.sequence
        report = agent_pb2.CancelReport(operation=command.operation, sequence=sequence)
        report.operation.modified_at.GetCurrentTime()
        values = {"cluster_id": asked.cluster_id, "job_id": asked.job_id, "node": self.node, "outcome": outcome}
        codes, statuses = wire.FINAL.get(outcome, (None, None))
        if outcome == agent_pb2.IN_PROGRESS:
            values.update(driver_id="driver-1", job_status=Job.CANCELLING)
        if codes is not None:
            values.update(job_status=statuses[0] if statuses else Job.RUNNING)
            report.operation.done = True
        if outcome == agent_pb2.CANCELLED:
            values.update(driver_state="KILLED", kill_accepted_at=wire.timestamp(wire.now_usec()),
                          ended_at=wire.timestamp(wire.now_usec()))
        values.update(metadata)
        message = agent_pb2.CancelJobMetadata(**values)
        report.operation.metadata.CopyFrom(wire.pack(message))
        if codes == ():
            report.operation.response.CopyFrom(wire.pack(Job(id=message.job_id, cluster_id=message.cluster_id,
                                                             status=message.job_status)))
        elif codes:
            report.operation.error.CopyFrom(wire.error(codes[0], agent_pb2.Outcome.Name(outcome), "why"))
        return report

    def send(self, *reports, cluster_id="c1"):
        answer = self.stub.Report(agent_pb2.ReportRequest(cluster_id=cluster_id, node=self.node, instance_id=self.instance,
                                                          reports=reports), metadata=self.metadata, timeout=LIMIT)
        return [agent_pb2.Disposition.Name(result.disposition) for result in answer.results]

    def report(self, command, outcome, **metadata):
        return self.send(self.make(command, outcome, **metadata))[0]


@pytest.fixture
def plane(tmp_path):
    with ControlPlane(Options(state=str(tmp_path / "state.db"), clusters=["c1", "c2"], not_found_grace=0.2, invalid_grace=0.3,
                              relaunch_window=0.4, deadline_grace=0.2, heartbeat=10)) as plane:
        yield plane


@pytest.fixture
def caller(plane):
    return Caller(plane)


def code_of(call, *arguments, **more):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **more)
    return caught.value.code()


def watched(plane, job_id="j1", node="n1", **job):
    """A job, an agent that watches, and the command of its cancel."""
    plane.add_job(job_id, **job)
    agent = Agent(plane, node).watch()
    agent.replay()
    operation = plane.cancel(job_id)
    command = agent.event().cancel
    assert command.operation.id == operation.id
    return agent, command, operation


# ---- callers

def test_cancel_answers_at_once(plane, caller):
    plane.add_job("j1")
    operation = caller.cancel("j1")
    assert not operation.done and operation.description == "Cancel Spark job"
    metadata = wire.unpack(operation.metadata, wire.CreateJobMetadata)
    assert (metadata.cluster_id, metadata.job_id) == ("c1", "j1")
    assert caller.get("j1").status == Job.CANCELLING
    assert caller.cancel("j1").id == operation.id
    assert caller.operation(operation.id) == operation


@pytest.mark.parametrize("cluster_id, job_id, code", [
    ("", "j1", CODE.INVALID_ARGUMENT), ("c1", "", CODE.INVALID_ARGUMENT), ("c1", "j" * 51, CODE.INVALID_ARGUMENT),
    ("c" * 51, "j1", CODE.INVALID_ARGUMENT), ("c9", "j1", CODE.NOT_FOUND), ("c1", "j9", CODE.NOT_FOUND),
    ("c2", "j1", CODE.NOT_FOUND)])
def test_cancel_refuses(plane, caller, cluster_id, job_id, code):
    plane.add_job("j1")
    assert code_of(caller.cancel, job_id, cluster_id) == code


@pytest.mark.parametrize("status", ["CANCELLED", "DONE", "ERROR"])
def test_cancel_of_a_finished_job_is_done(plane, caller, status):
    plane.add_job("j1", status=status)
    operation = caller.cancel("j1")
    assert operation.done and wire.unpack(operation.response, Job).status == Job.Status.Value(status)
    assert caller.operation(operation.id) == operation


def test_open_operations_are_limited(tmp_path):
    with ControlPlane(Options(state=str(tmp_path / "s"), clusters=["c1"], max_open=2)) as plane:
        for number in range(3):
            plane.add_job(f"j{number}")
        caller = Caller(plane)
        caller.cancel("j0")
        caller.cancel("j1")
        assert code_of(caller.cancel, "j2") == CODE.RESOURCE_EXHAUSTED
        caller.cancel("j0")


def test_operation_service(plane, caller):
    assert code_of(caller.operation, "nothing") == CODE.NOT_FOUND
    assert code_of(caller.operation, "") == CODE.INVALID_ARGUMENT
    agent, command, operation = watched(plane)
    request = operation_service_pb2.CancelOperationRequest(operation_id=operation.id)
    withdrawn = caller.operations.Cancel(request)
    assert withdrawn.done and withdrawn.error.code == 1
    assert agent.event().withdrawn.operation_id == operation.id
    assert caller.get("j1").status == Job.RUNNING
    assert agent.report(command, agent_pb2.CANCELLED) == "SUPERSEDED"
    assert caller.operations.Cancel(request) == withdrawn


def test_list_pages_and_filters(plane, caller):
    for number in range(5):
        plane.add_job(f"j{number}", status="DONE" if number % 2 else "RUNNING", name=f"name-{number}")
    request = job_service_pb2.ListJobsRequest(cluster_id="c1", page_size=2)
    first = caller.jobs.List(request)
    request.page_token = first.next_page_token
    second = caller.jobs.List(request)
    request.page_token = second.next_page_token
    third = caller.jobs.List(request)
    assert [j.id for page in (first, second, third) for j in page.jobs] == ["j4", "j3", "j2", "j1", "j0"]
    assert third.next_page_token == ""
    done = caller.jobs.List(job_service_pb2.ListJobsRequest(cluster_id="c1", filter='status = "DONE"'))
    assert [j.id for j in done.jobs] == ["j3", "j1"]
    for bad in ({"page_size": 1001}, {"page_size": -1}, {"page_token": "x"}, {"filter": "1=1"}, {"cluster_id": ""}):
        fields = {"cluster_id": "c1", **bad}
        assert code_of(caller.jobs.List, job_service_pb2.ListJobsRequest(**fields)) == CODE.INVALID_ARGUMENT


def test_endpoints_lead_back_here(plane):
    stub = api_endpoint_service_pb2_grpc.ApiEndpointServiceStub(grpc.insecure_channel(plane.address))
    found = {e.id: e.address for e in stub.List(api_endpoint_service_pb2.ListApiEndpointsRequest()).endpoints}
    assert found["managed-spark"] == found["operation"] == found["iam"] == plane.address
    assert code_of(stub.Get, api_endpoint_service_pb2.GetApiEndpointRequest(api_endpoint_id="x")) == CODE.NOT_FOUND


# ---- Create and Spark

@pytest.fixture
def spark(tmp_path):
    with sparkmaster.SparkMaster(mode="STANDBY") as standby, sparkmaster.SparkMaster() as master:
        options = Options(state=str(tmp_path / "spark.db"), clusters=["c1"], masters=[standby.url, master.url], poll=0.05,
                          not_found_grace=0.1, send_driver_id=True)
        with ControlPlane(options) as plane:
            yield plane, master


def wait_status(caller, job_id, status):
    end = time.monotonic() + LIMIT
    while caller.get(job_id).status != status:
        assert time.monotonic() < end, Job.Status.Name(caller.get(job_id).status)


def test_create_submits_with_the_job_id(spark):
    plane, master = spark
    caller = Caller(plane)
    operation = caller.create(args=["a", "b"], properties={"spark.driver.memory": "64m"}, jar_file_uris=["file:/b.jar"])
    operation = plane.wait_done(operation.id)
    job = wire.unpack(operation.response, Job)
    body = json.loads(master.requests_for("create")[0].body)
    assert body["sparkProperties"]["spark.yandex.job.id"] == job.id
    assert list(body["sparkProperties"])[-1] == "spark.yandex.job.id"
    assert body["sparkProperties"]["spark.driver.memory"] == "64m" and body["sparkProperties"]["spark.jars"] == "file:/b.jar"
    assert body["sparkProperties"]["spark.submit.deployMode"] == "cluster"
    assert (body["appResource"], body["mainClass"], body["appArgs"]) == ("file:/a.jar", "Main", ["a", "b"])
    driver_id = list(master.drivers)[0]
    assert job.status == Job.PENDING
    plane.wait(lambda: plane.state.job("c1", job.id)["spark_state"] == "SUBMITTED", LIMIT)
    master.set_state(driver_id, "RUNNING")
    wait_status(caller, job.id, Job.RUNNING)
    master.set_state(driver_id, "FINISHED")
    wait_status(caller, job.id, Job.DONE)
    assert caller.get(job.id).HasField("started_at") and caller.get(job.id).HasField("finished_at")
    assert caller.cancel(job.id).done


def create_spec(plane, **spec):
    """JobService.Create of any kind of job -> the Job."""
    operation = Caller(plane).jobs.Create(job_service_pb2.CreateJobRequest(cluster_id="c1", name="my-job", **spec), timeout=LIMIT)
    return wire.unpack(plane.wait_done(operation.id).response, Job)


def test_create_submits_a_pyspark_job(spark):
    """Spark's own PythonRunner is the main class; the job's kind and its fields come back in the Job."""
    plane, master = spark
    spec = job_pb2.PysparkJob(main_python_file_uri="file:/main.py", python_file_uris=["file:/a.py", "file:/b.zip"], args=["x", "y"],
                              properties={"spark.executor.memory": "1g"}, packages=["g:a:1"], file_uris=["file:/f"])
    job = create_spec(plane, pyspark_job=spec)
    body = json.loads(master.requests_for("create")[0].body)
    assert (body["appResource"], body["mainClass"]) == ("", "org.apache.spark.deploy.PythonRunner")
    assert body["appArgs"] == ["file:/main.py", "file:/a.py,file:/b.zip", "x", "y"]
    properties = body["sparkProperties"]
    assert properties["spark.yandex.job.id"] == job.id and properties["spark.app.name"] == "my-job"
    assert (properties["spark.jars.packages"], properties["spark.files"]) == ("g:a:1", "file:/f")
    assert job.WhichOneof("job_spec") == "pyspark_job" and job.pyspark_job == spec
    master.set_state(list(master.drivers)[0], "RUNNING")
    wait_status(Caller(plane), job.id, Job.RUNNING)
    assert not Caller(plane).cancel(job.id).done


def test_create_submits_a_spark_connect_job(spark):
    plane, master = spark
    job = create_spec(plane, spark_connect_job=job_pb2.SparkConnectJob(properties={"spark.executor.memory": "1g"}))
    body = json.loads(master.requests_for("create")[0].body)
    assert body["mainClass"] == "org.apache.spark.sql.connect.service.SparkConnectServer"
    assert body["sparkProperties"]["spark.yandex.job.id"] == job.id and job.WhichOneof("job_spec") == "spark_connect_job"


@pytest.mark.parametrize("spec", [
    {}, {"pyspark_job": job_pb2.PysparkJob()}, {"pyspark_job": job_pb2.PysparkJob(main_python_file_uri="x", args=["x"] * 101)},
    {"pyspark_job": job_pb2.PysparkJob(main_python_file_uri="x", properties={"spark.yandex.job.id": "mine"})}])
def test_create_refuses_other_kinds(spark, spec):
    plane, master = spark
    request = job_service_pb2.CreateJobRequest(cluster_id="c1", **spec)
    assert code_of(Caller(plane).jobs.Create, request, timeout=LIMIT) == CODE.INVALID_ARGUMENT
    assert not master.requests_for("create")


@pytest.mark.parametrize("fields", [
    {"properties": {"spark.yandex.job.id": "mine"}}, {"properties": {"1x": "y"}}, {"properties": {"x": "y" * 257}},
    {"args": ["x"] * 101}, {"args": ["x" * 2048]}, {"main_class": "M" * 256}, {"main_class": ""}, {"main_jar_file_uri": ""}])
def test_create_refuses(spark, fields):
    plane, master = spark
    assert code_of(Caller(plane).create, **fields) == CODE.INVALID_ARGUMENT
    assert not master.requests_for("create")


def test_create_fails_when_spark_refuses(spark):
    plane, master = spark
    master.mode = "RECOVERING"
    operation = plane.wait_done(Caller(plane).create().id)
    assert operation.error.code == 14
    assert plane.job(wire.unpack(operation.metadata, wire.CreateJobMetadata).job_id).status == Job.ERROR


def test_create_of_unknown_end_stays_cancellable(spark):
    plane, master = spark
    master.fault("unanswered", "create")
    operation = plane.wait_done(Caller(plane).create().id)
    job_id = wire.unpack(operation.metadata, wire.CreateJobMetadata).job_id
    assert operation.error.code == 14 and plane.job(job_id).status == Job.PROVISIONING
    assert not Caller(plane).cancel(job_id).done


def test_spark_does_not_end_a_job_that_is_being_cancelled(spark):
    plane, master = spark
    master.add_driver("driver-7")
    plane.add_job("j7", "driver-7")
    agent = Agent(plane).watch()
    agent.replay()
    plane.cancel("j7")
    command = agent.event().cancel
    assert command.driver_id == "driver-7"
    master.set_state("driver-7", "KILLED")
    plane.wait(lambda: plane.state.job("c1", "j7")["spark_state"] == "KILLED", LIMIT)
    assert plane.job("j7").status == Job.CANCELLING
    assert agent.report(command, agent_pb2.DRIVER_SURVIVED) == "APPLIED"
    assert plane.job("j7").status == Job.RUNNING  # the status from before, and Spark's word is no longer believed
    asked = plane.state.job("c1", "j7")["spark_asked"]
    plane.wait(lambda: plane.state.job("c1", "j7")["spark_asked"] > asked, LIMIT)
    assert plane.job("j7").status == Job.RUNNING


def test_not_found_waits_for_spark(spark):
    plane, master = spark
    master.add_driver("driver-7")
    plane.add_job("j7", "driver-7")
    agent = Agent(plane).watch()
    agent.replay()
    operation = plane.cancel("j7")
    agent.report(agent.event().cancel, agent_pb2.NOT_ON_NODE)
    plane.wait(lambda: wire.now_usec() > wire.from_timestamp(operation.created_at) + 700_000, LIMIT)
    assert not plane.operation(operation.id).done
    master.forget("driver-7")
    assert plane.wait_done(operation.id).error.code == 5


# ---- Watch

def test_watch_from_the_start(plane):
    for number in range(3):
        plane.add_job(f"j{number}")
    operations = [plane.cancel(f"j{number}") for number in range(3)]
    plane.withdraw(operations[1].id)
    agent = Agent(plane).watch()
    opening = agent.next()
    assert opening.revision == 0 and opening.bookmark.heartbeat_interval.seconds == 10
    assert abs(opening.bookmark.now.seconds - time.time()) < 5
    first, second, closing = agent.next(), agent.next(), agent.next()
    assert [first.cancel.operation.id, second.cancel.operation.id] == [operations[0].id, operations[2].id]
    assert (first.revision, second.revision, closing.revision) == (1, 3, 4)
    assert first.cancel.operation == operations[0] and first.cancel.HasField("deadline")
    plane.add_job("j3")
    third = plane.cancel("j3")
    live = agent.event()
    assert (live.revision, live.cancel.operation.id) == (5, third.id)


def test_watch_resumes(plane):
    for number in range(4):
        plane.add_job(f"j{number}")
    operations = [plane.cancel(f"j{number}") for number in range(3)]
    plane.withdraw(operations[1].id)
    messages, position = Agent(plane).watch(after=1).replay()
    assert [m.revision for m in messages] == [3, 4] and position == 4  # the ended one's command is left out
    assert messages[1].withdrawn.operation_id == operations[1].id
    plane.restart()
    agent = Agent(plane).watch(after=4)
    assert agent.replay() == ([], 4)
    plane.cancel("j3")
    assert agent.event().revision == 5


def test_revisions_do_not_come_from_the_rows_that_are_left(plane):
    plane.add_job("j1")
    plane.add_job("j2")
    plane.withdraw(plane.cancel("j1").id)
    with plane.state.transaction():
        plane.state.trim("c1", 2)
    plane.restart()
    plane.cancel("j2")
    messages, position = Agent(plane).watch().replay()
    assert [m.revision for m in messages] == [3] and position == 3


@pytest.mark.parametrize("after", [1, 9])
def test_out_of_range(plane, after):
    for number in range(3):
        plane.add_job(f"j{number}")
        plane.cancel(f"j{number}")
    with plane.state.transaction():
        plane.state.trim("c1", 2)
    assert Agent(plane).watch(after=after).ended() == CODE.OUT_OF_RANGE
    messages, _ = Agent(plane).watch().replay()
    assert [m.revision for m in messages] == [1, 2, 3]  # commands of open operations are never trimmed
    assert Agent(plane, "n2").watch(after=2).replay()[1] == 3


def test_heartbeats(tmp_path):
    with ControlPlane(Options(state=str(tmp_path / "s"), clusters=["c1"], heartbeat=0.1)) as plane:
        agent = Agent(plane).watch()
        agent.replay()
        assert [agent.next().WhichOneof("event") for _ in range(3)] == ["bookmark"] * 3


def test_second_instance_ends_the_first(plane):
    first = Agent(plane, instance="i1").watch()
    first.replay()
    second = Agent(plane, instance="i2").watch()
    second.replay()
    assert first.ended() == CODE.ABORTED
    again = Agent(plane, instance="i2").watch()
    again.replay()
    assert second.ended() == CODE.CANCELLED
    assert len(plane.streams("n1")) == 1


def test_watch_refuses(plane):
    assert Agent(plane).watch(cluster_id="c9").ended() == CODE.NOT_FOUND
    assert Agent(plane, instance="").watch().ended() == CODE.INVALID_ARGUMENT
    assert Agent(plane, node="").watch().ended() == CODE.INVALID_ARGUMENT


# ---- Report

def test_a_cancel_to_its_end(plane, caller):
    agent, command, operation = watched(plane)
    assert agent.report(command, agent_pb2.IN_PROGRESS) == "APPLIED"
    assert not caller.operation(operation.id).done
    final = agent.make(command, agent_pb2.CANCELLED)
    assert agent.send(final) == ["APPLIED"]
    done = caller.operation(operation.id)
    assert done.done and done.metadata == operation.metadata and done.created_at == operation.created_at
    job = wire.unpack(done.response, Job)
    assert (job.id, job.status, job.created_by) == ("j1", Job.CANCELLED, "test")
    assert job.HasField("finished_at") and caller.get("j1") == job
    assert agent.event().withdrawn.operation_id == operation.id
    assert agent.send(final) == ["ALREADY_APPLIED"]
    assert agent.report(command, agent_pb2.CANCELLED) == "SUPERSEDED"
    assert [r.outcome for r in plane.reports(operation.id)] == ["IN_PROGRESS", "CANCELLED", "CANCELLED", "CANCELLED"]
    assert caller.cancel("j1").done


def test_error_is_passed_on_as_it_is(plane, caller):
    agent, command, operation = watched(plane)
    report = agent.make(command, agent_pb2.SPARK_UNREACHABLE)
    assert agent.send(report) == ["APPLIED"]
    assert caller.operation(operation.id).error == report.operation.error
    assert caller.get("j1").status == Job.RUNNING
    assert caller.cancel("j1").id != operation.id


@pytest.mark.parametrize("outcome, status", [(agent_pb2.ALREADY_DONE, Job.DONE), (agent_pb2.ALREADY_FAILED, Job.ERROR)])
def test_job_that_won_the_race(plane, caller, outcome, status):
    agent, command, operation = watched(plane)
    assert agent.report(command, outcome) == "APPLIED"
    assert wire.unpack(caller.operation(operation.id).response, Job).status == status == caller.get("j1").status


def test_dry_run(plane, caller):
    plane.add_job("j1")
    agent = Agent(plane).watch()
    agent.replay()
    operation = caller.cancel("j1", "c1", ("x-dry-run", "1"))
    assert caller.get("j1").status == Job.RUNNING
    real = caller.cancel("j1")
    assert real.id != operation.id
    command = agent.event().cancel
    assert command.dry_run and command.operation.id == operation.id and not agent.event().cancel.dry_run
    assert agent.report(command, agent_pb2.CANCELLED) == "REJECTED"
    assert agent.report(command, agent_pb2.DRY_RUN) == "APPLIED"
    assert caller.operation(operation.id).done and not caller.operation(real.id).done


def test_progress_goes_by_sequence(plane):
    agent, command, operation = watched(plane)
    second = agent.make(command, agent_pb2.IN_PROGRESS, sequence=20)
    assert agent.send(second) == ["APPLIED"]
    assert agent.send(second) == ["ALREADY_APPLIED"]
    assert agent.send(agent.make(command, agent_pb2.NOT_ON_NODE, sequence=10)) == ["SUPERSEDED"]
    assert agent.send(agent.make(command, agent_pb2.NOT_ON_NODE, sequence=20)) == ["REJECTED"]
    assert agent.send(agent.make(command, agent_pb2.CANCELLED, sequence=5)) == ["APPLIED"]  # a final one is never refused
    assert plane.operation(operation.id).done


def broken_reports():
    def change(**values):
        return lambda agent, command: agent.make(command, agent_pb2.CANCELLED, **values)

    def edit(outcome, function):
        def make(agent, command):
            report = agent.make(command, outcome)
            function(report.operation)
            return report
        return make

    return {
        "other job": change(job_id="j2"), "other cluster": change(cluster_id="c2"), "other node": change(node="n9"),
        "wrong status": change(job_status=Job.DONE), "no outcome": lambda agent, command: agent.make(command, 0),
        "unknown outcome": lambda agent, command: agent.make(command, 99),
        "control characters": change(message="a\nb"), "long message": change(message="x" * 1025),
        "NOT_FOUND": lambda agent, command: agent.make(command, agent_pb2.NOT_FOUND),
        "dry run of a real one": lambda agent, command: agent.make(command, agent_pb2.DRY_RUN),
        "sequence 0": lambda agent, command: agent.make(command, agent_pb2.CANCELLED, sequence=0),
        "not done": edit(agent_pb2.CANCELLED, lambda o: setattr(o, "done", False)),
        "no result": edit(agent_pb2.CANCELLED, lambda o: o.ClearField("response")),
        "response is no Job": edit(agent_pb2.CANCELLED, lambda o: o.response.CopyFrom(o.metadata)),
        "metadata of another type": edit(agent_pb2.CANCELLED, lambda o: o.metadata.Pack(wire.CreateJobMetadata(job_id="j1"))),
        "metadata is garbage": edit(agent_pb2.CANCELLED, lambda o: setattr(o.metadata, "value", b"\xff")),
        "changed description": edit(agent_pb2.CANCELLED, lambda o: setattr(o, "description", "x")),
        "wrong error code": edit(agent_pb2.SPARK_UNREACHABLE, lambda o: setattr(o.error, "code", 13)),
        "error without ErrorInfo": edit(agent_pb2.SPARK_UNREACHABLE, lambda o: o.error.ClearField("details")),
        "progress that is done": edit(agent_pb2.IN_PROGRESS, lambda o: setattr(o, "done", True)),
        "CANCELLED without a kill": lambda agent, command: agent.make(
            command, agent_pb2.CANCELLED, kill_accepted_at=None, driver_state="FINISHED"),
    }


@pytest.mark.parametrize("name", broken_reports())
def test_broken_report_is_rejected(plane, name):
    agent, command, operation = watched(plane)
    assert agent.send(broken_reports()[name](agent, command)) == ["REJECTED"]
    assert not plane.operation(operation.id).done
    assert agent.report(command, agent_pb2.CANCELLED) == "APPLIED"


def test_report_batches(plane):
    agent, command, operation = watched(plane)
    stranger = agent_pb2.CancelReport(sequence=1)
    stranger.operation.id = "local-1"
    assert agent.send(stranger, agent.make(command, agent_pb2.IN_PROGRESS)) == ["UNKNOWN_OPERATION", "APPLIED"]
    many = []
    for number in range(257):
        many.append(agent_pb2.CancelReport(sequence=1))
        many[-1].operation.id = f"x{number}"
    assert agent.send(*many[:256]) == ["UNKNOWN_OPERATION"] * 256
    assert code_of(agent.send, *many) == CODE.INVALID_ARGUMENT
    assert code_of(agent.send, many[0], many[0]) == CODE.INVALID_ARGUMENT
    assert code_of(agent.send, cluster_id="c9") == CODE.NOT_FOUND


def test_report_that_is_no_message(plane):
    channel = grpc.insecure_channel(plane.address)
    call = channel.unary_unary("/sparkcancel.agent.v1.CancelAgentService/Report")
    assert code_of(call, b"\xff\xff", timeout=LIMIT) == CODE.INVALID_ARGUMENT
    huge = agent_pb2.ReportRequest(cluster_id="c1", node="x" * (1 << 20), instance_id="i").SerializeToString()
    assert code_of(call, huge, timeout=LIMIT) == CODE.RESOURCE_EXHAUSTED


def test_unknown_fields_survive(plane):
    """The command's Operation goes out byte for byte, and comes back so."""
    operation = wire.Operation(id="op-raw", metadata=wire.pack(wire.CreateJobMetadata(cluster_id="c1", job_id="j1")))
    raw = operation.SerializeToString() + b"\xba\x3e\x03abc"  # field 999
    plane.add_job("j1")
    plane.inject_cancel(raw, job_id="j1")
    agent = Agent(plane).watch()
    messages, _ = agent.replay()
    command = messages[0].cancel
    assert command.operation.SerializeToString().endswith(b"\xba\x3e\x03abc")
    lossy = agent.make(command, agent_pb2.CANCELLED)
    lossy.operation.DiscardUnknownFields()
    assert agent.send(lossy) == ["REJECTED"]
    assert agent.report(command, agent_pb2.CANCELLED) == "APPLIED"


# ---- the control plane's own decisions

def test_not_found_needs_every_live_node(plane):
    agent, command, operation = watched(plane)
    other = Agent(plane, "n2").watch()
    other.replay()
    agent.report(command, agent_pb2.NOT_ON_NODE)
    plane.wait(lambda: wire.now_usec() > wire.from_timestamp(operation.created_at) + 500_000, LIMIT)
    assert not plane.operation(operation.id).done
    other.report(command, agent_pb2.NOT_ON_NODE)
    done = plane.wait_done(operation.id)
    assert done.error.code == 5 and wire.unpack(done.error.details[0], wire.error_details_pb2.ErrorInfo).reason == "NOT_FOUND"
    assert plane.job("j1").status == Job.RUNNING


def test_a_node_that_has_gone_is_waited_for(tmp_path):
    with ControlPlane(Options(state=str(tmp_path / "s"), clusters=["c1"], not_found_grace=0, node_lifetime=1.0)) as plane:
        gone = Agent(plane, "n2").watch()
        gone.replay()
        gone.call.cancel()
        plane.wait(lambda: not plane.streams("n2"), LIMIT)
        left = wire.now_usec()
        agent, command, operation = watched(plane)
        agent.report(command, agent_pb2.NOT_ON_NODE)
        plane.wait_done(operation.id)
        assert wire.now_usec() - left > 900_000


@pytest.mark.parametrize("status", ["PROVISIONING", "PENDING"])
def test_not_found_waits_for_a_starting_job(plane, status):
    agent, command, operation = watched(plane, status=status)
    agent.report(command, agent_pb2.NOT_ON_NODE)
    plane.wait(lambda: wire.now_usec() > wire.from_timestamp(operation.created_at) + 500_000, LIMIT)
    assert not plane.operation(operation.id).done
    assert agent.report(command, agent_pb2.IN_PROGRESS) == "APPLIED"
    assert agent.report(command, agent_pb2.CANCELLED) == "APPLIED"


def test_deadline_and_grace(plane):
    plane.add_job("j1")
    operation = plane.cancel("j1", deadline=0.2)
    done = plane.wait_done(operation.id)
    assert done.error.code == 4 and plane.job("j1").status == Job.RUNNING
    took = wire.from_timestamp(done.modified_at) - wire.from_timestamp(operation.created_at)
    assert took >= 400_000


def test_invalid_command_is_final_when_all_say_so(tmp_path):
    with ControlPlane(Options(state=str(tmp_path / "s"), clusters=["c1"], invalid_grace=600)) as plane:
        agent, command, operation = watched(plane)
        other = Agent(plane, "n2").watch()
        other.replay()
        assert agent.report(command, agent_pb2.INVALID_COMMAND) == "APPLIED"
        assert not plane.operation(operation.id).done
        assert other.report(command, agent_pb2.INVALID_COMMAND) == "APPLIED"
        assert plane.wait_done(operation.id).error.code == 3


def test_invalid_command_does_not_speak_for_a_busy_node(plane):
    agent, command, operation = watched(plane)
    other = Agent(plane, "n2").watch()
    other.replay()
    other.report(command, agent_pb2.IN_PROGRESS)
    agent.report(command, agent_pb2.INVALID_COMMAND)
    plane.wait(lambda: wire.now_usec() > wire.from_timestamp(operation.created_at) + 700_000, LIMIT)
    assert not plane.operation(operation.id).done
    other.report(command, agent_pb2.CANCELLED)
    assert plane.wait_done(operation.id).WhichOneof("result") == "response"


def test_invalid_command_alone_ends_after_its_grace(plane):
    agent, command, operation = watched(plane)
    Agent(plane, "n2").watch().replay()
    agent.report(command, agent_pb2.INVALID_COMMAND)
    assert plane.wait_done(operation.id).error.code == 3


def test_doubtful_cancelled_of_a_supervised_job_is_held(plane):
    agent, command, operation = watched(plane, supervised=True)
    assert agent.report(command, agent_pb2.CANCELLED, driver_state="ERROR") == "APPLIED"
    assert not plane.operation(operation.id).done
    done = plane.wait_done(operation.id)
    assert wire.unpack(done.response, Job).status == Job.CANCELLED
    assert wire.from_timestamp(done.modified_at) - wire.from_timestamp(operation.created_at) >= 400_000


def test_held_cancelled_gives_way_to_a_relaunch(plane):
    agent, command, operation = watched(plane, supervised=True)
    other = Agent(plane, "n2").watch()
    other.replay()
    agent.report(command, agent_pb2.CANCELLED, driver_state="")
    other.report(command, agent_pb2.IN_PROGRESS, driver_id="driver-2")
    plane.wait(lambda: wire.now_usec() > wire.from_timestamp(operation.created_at) + 800_000, LIMIT)
    assert not plane.operation(operation.id).done
    other.report(command, agent_pb2.DRIVER_SURVIVED)
    assert plane.wait_done(operation.id).error.code == 13


def test_confirmed_cancelled_of_a_supervised_job_is_final(plane):
    agent, command, operation = watched(plane, supervised=True)
    agent.report(command, agent_pb2.CANCELLED, driver_state="KILLED")
    assert plane.operation(operation.id).done


# ---- faults

def test_faults(plane):
    agent, command, operation = watched(plane)
    report = agent.make(command, agent_pb2.IN_PROGRESS)
    plane.faults.add("report", "status", code="INTERNAL", pushback=7)
    with pytest.raises(grpc.RpcError) as caught:
        agent.send(report)
    assert caught.value.code() == CODE.INTERNAL
    assert ("grpc-retry-pushback-ms", "7") in [tuple(pair) for pair in caught.value.trailing_metadata()]
    plane.faults.add("report", "unspecified")
    assert agent.send(report) == ["DISPOSITION_UNSPECIFIED"]
    plane.faults.add("report", "short")
    assert agent.send(report) == []
    plane.faults.add("report", "poison", operation=operation.id, code="FAILED_PRECONDITION")
    assert code_of(agent.send, report) == CODE.FAILED_PRECONDITION
    plane.faults.add("report", "reject", operation=operation.id)
    assert agent.send(report) == ["REJECTED"]
    plane.faults.add("report", "lost")
    assert code_of(agent.send, report) == CODE.UNAVAILABLE
    assert agent.send(report) == ["ALREADY_APPLIED"]
    for text in ("watch:nothing", "watch:drop,after", "watch:drop,x=1", "x:drop", "watch:status,code=x"):
        with pytest.raises(ValueError):
            plane.faults.parse(text)


def test_stream_faults(plane):
    plane.faults.parse("watch:drop,after=2")
    assert Agent(plane).watch().ended() == CODE.UNAVAILABLE
    plane.faults.parse("watch:status,code=UNAUTHENTICATED,times=2")
    assert [Agent(plane).watch().ended() for _ in range(2)] == [CODE.UNAUTHENTICATED] * 2
    plane.faults.parse("watch:garbage,after=1")
    call = grpc.insecure_channel(plane.address).unary_stream("/sparkcancel.agent.v1.CancelAgentService/Watch")
    stream = call(agent_pb2.WatchRequest(cluster_id="c1", node="n1", instance_id="i1").SerializeToString())
    agent_pb2.WatchResponse.FromString(next(stream))
    with pytest.raises(Exception, match="[Pp]ars|Truncated|wire"):
        agent_pb2.WatchResponse.FromString(next(stream))
    assert agent_pb2.WatchResponse.FromString(next(stream)).WhichOneof("event") == "bookmark"
    stream.cancel()


# ---- access

def tokens(tmp_path, text):
    path = tmp_path / "tokens"
    path.write_text(text)
    return str(path)


def test_tokens_bind_cluster_and_node(tmp_path):
    path = tokens(tmp_path, "ta c1 n1\ntb c1 n2\n# comment\ntc c1 * alice\ntd c2 *\n")
    with ControlPlane(Options(state=str(tmp_path / "s"), clusters=["c1", "c2"], tokens=path)) as plane:
        plane.add_job("j1")
        assert Agent(plane, "n1").watch().ended() == CODE.UNAUTHENTICATED
        assert Agent(plane, "n1", token="nobody").watch().ended() == CODE.UNAUTHENTICATED
        assert Agent(plane, "n1", token="tb").watch().ended() == CODE.PERMISSION_DENIED
        assert Agent(plane, "n1", token="tc").watch().ended() == CODE.PERMISSION_DENIED
        assert Agent(plane, "n1", token="ta").watch(cluster_id="c2").ended() == CODE.PERMISSION_DENIED
        Agent(plane, "n1", token="ta").watch().replay()
        assert code_of(Agent(plane, "n1", token="tb").send) == CODE.PERMISSION_DENIED
        assert Agent(plane, "n1", token="ta").send() == []
        assert code_of(Caller(plane).cancel, "j1") == CODE.UNAUTHENTICATED
        assert code_of(Caller(plane, "ta").cancel, "j1") == CODE.PERMISSION_DENIED
        assert code_of(Caller(plane, "td").cancel, "j1") == CODE.PERMISSION_DENIED
        operation = Caller(plane, "tc").cancel("j1")
        assert operation.created_by == "alice"
        assert code_of(Caller(plane, "td").operation, operation.id) == CODE.NOT_FOUND
        tokens(tmp_path, "tz c1 *\n")
        assert code_of(Caller(plane, "tc").cancel, "j1") == CODE.UNAUTHENTICATED
        assert Caller(plane, "tz").cancel("j1").id == operation.id


def make_certificate(directory, name, issuer=None, san=None):
    """An openssl certificate -> (cert path, key path). issuer None: a CA of its own."""
    cert, key = str(directory / f"{name}.pem"), str(directory / f"{name}.key")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
               "-subj", f"/CN={name}", "-keyout", key, "-out", cert]
    if issuer:
        command += ["-CA", issuer[0], "-CAkey", issuer[1], "-addext", "basicConstraints=critical,CA:FALSE"]
    if san:
        command += ["-addext", f"subjectAltName={san}"]
    if subprocess.run(command, capture_output=True).returncode != 0:  # OpenSSL 3.0's req has no -CA
        request = str(directory / f"{name}.csr")
        subprocess.run(["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj",
                        f"/CN={name}", "-keyout", key, "-out", request, *(["-addext", f"subjectAltName={san}"] if san else [])],
                       check=True, capture_output=True)
        subprocess.run(["openssl", "x509", "-req", "-in", request, "-CA", issuer[0], "-CAkey", issuer[1], "-CAcreateserial",
                        "-days", "2", "-copy_extensions", "copy", "-out", cert], check=True, capture_output=True)
    return cert, key


def read(path):
    return pathlib.Path(path).read_bytes()


def test_certificates_bind_the_node(tmp_path):
    ca = make_certificate(tmp_path, "ca")
    server = make_certificate(tmp_path, "server", ca, "IP:127.0.0.1,DNS:localhost")
    node = make_certificate(tmp_path, "n1", ca)
    bound = make_certificate(tmp_path, "agents", ca)
    path = tokens(tmp_path, "cn:agents c2 n7\n")
    options = Options(state=str(tmp_path / "s"), clusters=["c1", "c2"], tls_cert=server[0], tls_key=server[1], client_ca=ca[0],
                      tokens=path)
    with ControlPlane(options) as plane:
        def channel(pair):
            return grpc.secure_channel(plane.address, grpc.ssl_channel_credentials(
                read(ca[0]), read(pair[1]) if pair else None, read(pair[0]) if pair else None))
        Agent(plane, "n1", channel=channel(node)).watch().replay()
        assert Agent(plane, "n2", channel=channel(node)).watch().ended() == CODE.PERMISSION_DENIED
        assert Agent(plane, "n1", channel=channel(bound)).watch().ended() == CODE.PERMISSION_DENIED
        Agent(plane, "n7", channel=channel(bound)).watch(cluster_id="c2").replay()
        assert Agent(plane, "n1", channel=channel(None)).watch().ended() == CODE.UNAVAILABLE


# ---- the commands

def run(*arguments, code=0):
    result = subprocess.run([str(HERE / "sparkjob"), *arguments], capture_output=True, text=True, timeout=30)
    assert result.returncode == code, result
    return result


def test_the_commands(tmp_path):
    state = str(tmp_path / "state.db")
    server = subprocess.Popen([str(HERE / "controlplane"), "--state", state, "--cluster", "c1", "--job", "j1:driver-1",
                               "--job", "j2", "--deadline-grace", "100ms"], stdout=subprocess.PIPE, text=True)
    try:
        word, _, address = server.stdout.readline().strip().rpartition(" ")
        assert word == "listening on"
        base = ["--endpoint", f"http://{address}", "--cluster", "c1"]
        assert json.loads(run(*base, "get", "j1").stdout)["status"] == "RUNNING"
        operation = json.loads(run(*base, "cancel", "j1").stdout)
        assert operation["metadata"] == {"@type": "type.googleapis.com/yandex.cloud.spark.v1.CreateJobMetadata",
                                         "cluster_id": "c1", "job_id": "j1"}
        assert not operation.get("done")
        late = run(*base, "--timeout", "100ms", "wait", operation["id"], code=4)
        assert "not done" in late.stderr
        assert json.loads(run(*base, "cancel", "j1").stdout)["id"] == operation["id"]
        assert json.loads(run(*base, "withdraw", operation["id"]).stdout)["error"]["code"] == 1
        assert "withdrawn" in run(*base, "wait", operation["id"], code=1).stderr
        ended = json.loads(run(*base, "cancel", "j2", "--deadline", "100ms", "--wait", code=1).stdout)
        assert ended["error"]["code"] == 4
        assert [job["id"] for job in json.loads(run(*base, "list").stdout)["jobs"]] == ["j2", "j1"]
        assert "--master-uis" in run(*base, "log", "j1", code=1).stderr
        assert "NOT_FOUND" in run(*base, "get", "j9", code=1).stderr
        run("--endpoint", "nothing", "list", code=2)
        run("--endpoint", "http://127.0.0.1:1", "--cluster", "c1", "list", code=3)
        shown = subprocess.run([str(HERE / "controlplane"), "operations", "--state", state, "--reports"], capture_output=True,
                               text=True, check=True, timeout=30)
        rows = [json.loads(line) for line in shown.stdout.splitlines()]
        assert [row["operation"]["id"] for row in rows] == [operation["id"], ended["id"]] and rows[0]["reports"] == []
        told = subprocess.run([str(HERE / "controlplane"), "history", "--state", state, "--job", "j1"], capture_output=True,
                              text=True, check=True, timeout=30)
        assert "RUNNING" in told.stdout and f"cancel {operation['id']}" in told.stdout
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0
        server.stdout.close()
