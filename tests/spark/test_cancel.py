# SPDX-License-Identifier: Apache-2.0
"""Cancels of real drivers of a real cluster, from the caller's Cancel to the caller's ended Operation."""
import http.server
import socket
import struct
import threading
import time

import pytest

from cluster import JOB_ID_PROPERTY, MODULE_OPTIONS, until
from plane import wire
from plane.wire import Job


def assert_cancelled(node, operation, job_id, process=None):
    """CANCELLED means dead: by the caller's view, the report and the machine."""
    assert operation.done and operation.WhichOneof("result") == "response", operation
    # seen at once, without waiting: it was dead before the caller was told
    if process is not None:
        assert not process.alive()
    assert node.cluster.driver_pids(job_id) == []
    metadata = wire.unpack(operation.metadata, wire.CreateJobMetadata)
    assert metadata and metadata.job_id == job_id
    job = wire.unpack(operation.response, Job)
    assert (job.id, job.status) == (job_id, Job.CANCELLED)
    assert job.HasField("finished_at")
    assert node.job(job_id).status == Job.CANCELLED
    report = node.final(operation.id)
    assert report.outcome == "CANCELLED" and report.node == "n1"
    assert report.metadata.HasField("ended_at")
    return report


def test_plain_job(node):
    job_id, process = node.run("Sleep")
    driver_id = node.cluster.driver_id(process.pid)
    operation = node.cancel(job_id)
    assert not operation.done
    assert node.job(job_id).status == Job.CANCELLING
    report = assert_cancelled(node, node.wait(operation.id), job_id, process)
    assert report.metadata.driver_id == driver_id
    assert report.metadata.driver_state == "KILLED" == node.cluster.driver_state(driver_id)
    assert report.metadata.kill_requests == 1
    assert report.metadata.HasField("kill_accepted_at")
    assert [r.outcome for r in node.plane.reports(operation.id)] == ["IN_PROGRESS", "CANCELLED"]
    # cancelled once more: done at once, nothing happens
    again = node.cancel(job_id)
    assert again.done and wire.unpack(again.response, Job).status == Job.CANCELLED


def test_job_that_had_ended_and_the_control_plane_knew(node):
    job_id = node.submit("Sleep", "0")
    until(lambda: node.job(job_id).status == Job.DONE, 30, "the job to end by itself")
    operation = node.cancel(job_id)
    assert operation.done and wire.unpack(operation.response, Job).status == Job.DONE


@pytest.mark.parametrize("exit_code, spark, outcome, status", [
    ("0", "FINISHED", "ALREADY_DONE", Job.DONE),
    ("3", "FAILED", "ALREADY_FAILED", Job.ERROR),
])
def test_job_that_had_just_ended(make_node, exit_code, spark, outcome, status):
    """The control plane still takes it for running; the agent knows it from the driver id in the command."""
    node = make_node(plane={"poll": 3600.0, "send_driver_id": True})
    job_id, process = node.run("Sleep", "1", exit_code)
    driver_id = node.cluster.driver_id(process.pid)
    until(lambda: node.cluster.driver_state(driver_id) == spark, 20, f"Spark to say {spark}")
    operation = node.wait(node.cancel(job_id).id)
    assert wire.unpack(operation.response, Job).status == status
    report = node.final(operation.id)
    assert report.outcome == outcome
    assert report.metadata.kill_requests == 0 and not report.metadata.HasField("kill_accepted_at")
    assert report.metadata.driver_state == spark


def test_job_that_ends_under_the_eyes_of_a_dry_run(node):
    """A dry run finds the driver, says so and lets it live."""
    job_id, process = node.run("Sleep")
    operation = node.plane.cancel(job_id, dry_run=True)
    operation = node.wait(operation.id)
    report = node.final(operation.id)
    assert report.outcome == "DRY_RUN" and report.metadata.kill_requests == 0
    assert report.metadata.driver_id == node.cluster.driver_id(process.pid)
    assert process.alive()


def test_job_on_no_node(make_node):
    node = make_node(plane={"not_found_grace": 1.0})
    node.plane.add_job("ghost", status="RUNNING")
    operation = node.cancel("ghost")
    node.plane.wait_report(operation.id, "NOT_ON_NODE")
    operation = node.wait(operation.id)
    assert operation.WhichOneof("result") == "error" and operation.error.code == 5
    assert node.job("ghost").status == Job.RUNNING
    node.agent.wait("withdrawn", operation.id)


def test_job_that_ignores_sigterm(node):
    """Spark's worker sends SIGKILL after its terminate timeout; until then the operation stays open."""
    job_id, process = node.run("Deaf")
    start = time.monotonic()
    operation = node.cancel(job_id)
    node.agent.wait("kill accepted", operation.id)
    assert not node.operation(operation.id).done
    assert_cancelled(node, node.wait(operation.id), job_id, process)
    assert time.monotonic() - start > 2.5  # the worker's 3 s


def test_job_that_exits_with_0_on_sigterm(node):
    """Spark calls it FINISHED, and yet it was cancelled: a kill was accepted and the process is gone."""
    job_id, process = node.run("Polite")
    operation = node.cancel(job_id)
    report = assert_cancelled(node, node.wait(operation.id), job_id, process)
    assert report.metadata.driver_state == "FINISHED"


def test_job_that_is_still_starting(node):
    """Cancelled the moment Spark has taken it: its process may not exist yet."""
    job_id = node.submit("Sleep")
    operation = node.cancel(job_id)
    assert_cancelled(node, node.wait(operation.id), job_id)
    # and none comes later: the kill was for the driver id, not for a process
    assert node.cluster.driver_pids(job_id) == []


class SlowJar:
    """Serves the jar and stops in the middle until it is told to go on, or to cut the connection."""

    def __init__(self, jar):
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.cut = False
        content, slow = jar.read_bytes(), self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[:len(content) // 2])
                self.wfile.flush()
                slow.begun.set()
                slow.go_on.wait(120)
                if not slow.cut:
                    self.wfile.write(content[len(content) // 2:])
                    return
                # a reset: an early end alone passes for the whole jar with the Worker
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/jobs.jar"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def slow_jar(kit):
    made = SlowJar(kit.jar)
    yield made
    made.close()


def submit_slowly(node, slow_jar):
    """A job whose jar is half there: Spark says RUNNING, there is a directory, and no process."""
    job_id = node.submit("Sleep", jar=slow_jar.url)
    assert slow_jar.begun.wait(60)
    driver_id = node.plane.state.job("c1", job_id)["driver_id"]
    until(lambda: node.cluster.driver_state(driver_id) == "RUNNING", 30, "Spark to say RUNNING")
    assert (node.cluster.work / driver_id).is_dir() and node.cluster.driver_pids(job_id) == []
    return job_id, driver_id


def assert_never_ran(node, job_id, driver_id):
    """The Worker writes the launch command into stderr right after it has started the process."""
    assert node.cluster.driver_pids(job_id) == []
    assert not (node.cluster.work / driver_id / "stderr").exists()


@pytest.mark.parametrize("cut, words", [(False, ("KILLED",)), (True, ("KILLED", "ERROR"))], ids=["the jar comes", "the jar never comes"])
def test_job_whose_jar_is_on_its_way(make_node, slow_jar, cut, words):
    """The command names the driver: killed before there is a process, and none comes when the jar is there, or its download
    fails: whatever Spark says then (a connection that is cut may pass for the whole jar) it was cancelled."""
    node = make_node(plane={"send_driver_id": True})
    job_id, driver_id = submit_slowly(node, slow_jar)
    operation = node.cancel(job_id)
    node.agent.wait("kill accepted", operation.id)
    assert not node.operation(operation.id).done  # the Worker does not stop fetching, so nobody knows the end yet
    slow_jar.cut = cut
    slow_jar.go_on.set()
    ended = node.wait(operation.id)
    assert wire.unpack(ended.response, Job).status == Job.CANCELLED, ended
    report = node.final(operation.id)
    assert report.outcome == "CANCELLED" and report.metadata.driver_id == driver_id
    assert report.metadata.driver_state == node.cluster.driver_state(driver_id) and report.metadata.driver_state in words
    assert report.metadata.kill_requests >= 1 and report.metadata.HasField("kill_accepted_at")
    assert_never_ran(node, job_id, driver_id)


def test_job_whose_jar_comes_after_the_deadline(make_node, slow_jar):
    """Killed, and its end not known: said as it is. Spark keeps its word all the same: no process comes."""
    node = make_node(plane={"send_driver_id": True})
    job_id, driver_id = submit_slowly(node, slow_jar)
    operation = node.plane.cancel(job_id, deadline=5.0)
    ended = node.wait(operation.id)
    assert ended.error.code == 4
    report = node.final(operation.id)
    assert report.outcome == "DEADLINE_EXCEEDED" and report.metadata.HasField("kill_accepted_at")
    assert not report.metadata.HasField("ended_at")
    slow_jar.go_on.set()
    until(lambda: node.cluster.driver_state(driver_id) == "KILLED", 30, "Spark to say KILLED")
    assert_never_ran(node, job_id, driver_id)


def test_job_whose_jar_is_on_its_way_and_nobody_names_its_driver(make_node, slow_jar):
    """A directory alone proves nothing: the agent keeps looking, and kills the process the moment it is there."""
    node = make_node(plane={"not_found_grace": 600.0})
    job_id, driver_id = submit_slowly(node, slow_jar)
    operation = node.cancel(job_id)
    node.plane.wait_report(operation.id, "NOT_ON_NODE")
    slow_jar.go_on.set()
    report = assert_cancelled(node, node.wait(operation.id), job_id)
    assert report.metadata.driver_id == driver_id


def test_job_that_is_queued(make_node):
    """It asks for more than the cluster has: it runs nowhere, and an agent with queued_drivers answers for it."""
    node = make_node(plane={"send_driver_id": True}, cancel__queued_drivers="yes")
    job_id = node.submit("Sleep", **{"spark.driver.cores": "500"})
    driver_id = node.plane.state.job("c1", job_id)["driver_id"]
    assert node.cluster.driver_state(driver_id) == "SUBMITTED"
    operation = node.wait(node.cancel(job_id).id)
    assert wire.unpack(operation.response, Job).status == Job.CANCELLED
    report = node.final(operation.id)
    assert report.outcome == "CANCELLED" and report.metadata.driver_state == "KILLED" == node.cluster.driver_state(driver_id)
    assert report.metadata.kill_requests == 1 and not (node.cluster.work / driver_id).exists()


def test_job_that_does_not_exist_yet(make_node):
    """The cancel comes first; the driver appears while the agent looks for it."""
    node = make_node(plane={"not_found_grace": 600.0})
    node.plane.add_job("late", status="PROVISIONING")
    operation = node.cancel("late")
    node.plane.wait_report(operation.id, "NOT_ON_NODE")
    node.cluster.create("late", "Sleep", node.kit.jar)
    assert_cancelled(node, node.wait(operation.id), "late")


def test_job_with_a_spark_context(node):
    job_id, process = node.run("Context", **{
        "spark.driver.memory": "512m", "spark.executor.memory": "512m", "spark.cores.max": "1",
        "spark.driver.extraJavaOptions": MODULE_OPTIONS, "spark.jars": f"file:{node.kit.jar}"})
    assert node.cluster.master_json()["activeapps"]
    assert_cancelled(node, node.wait(node.cancel(job_id).id), job_id, process)
    until(lambda: not node.cluster.master_json()["activeapps"], 10, "the application to end")


def test_supervised_job(make_node):
    """Spark starts a supervised driver again whenever it fails, but not after a kill."""
    node = make_node(plane={"relaunch_window": 3.0}, cancel__relaunch_window="3s")
    job_id, process = node.run("Sleep", **{"spark.driver.supervise": "true"})
    operation = node.wait(node.cancel(job_id).id)
    assert_cancelled(node, operation, job_id, process)


def test_ten_of_twenty(node):
    """Ten end, the ten others are untouched: the same processes, still in their main()."""
    jobs = [node.submit("Sleep") for _ in range(20)]
    processes = {job_id: node.cluster.wait_driver(job_id, 120) for job_id in jobs}
    doomed, spared = jobs[::2], jobs[1::2]
    operations = {job_id: node.cancel(job_id) for job_id in doomed}
    for job_id, operation in operations.items():
        assert_cancelled(node, node.wait(operation.id, 60), job_id, processes[job_id])
    for job_id in spared:
        assert processes[job_id].alive()
        assert node.cluster.driver_pids(job_id) == [processes[job_id].pid]
        driver_id = node.cluster.driver_id(processes[job_id].pid)
        assert node.cluster.driver_state(driver_id) == "RUNNING"
        assert "ended" not in node.cluster.driver_output(driver_id)
        assert node.job(job_id).status == Job.RUNNING


@pytest.mark.parametrize("moment", ["cancel received", "driver found", "kill accepted", "driver is gone"])
def test_agent_killed_in_the_middle(node, moment):
    """kill -9 right after a step: started again it goes on, and there is one true outcome."""
    job_id, process = node.run("Deaf")
    operation = node.cancel(job_id)
    node.agent.wait(moment, operation.id)
    node.agent.kill()
    node.agent.start()
    # the operation may have ended before the kill; SIGTERM finds no handler before this
    until(lambda: sum("connected to the control plane" in line for line in node.agent.lines()) == 2, 30, "the second life")
    assert_cancelled(node, node.wait(operation.id, 60), job_id, process)
    finals = [r for r in node.plane.reports(operation.id) if r.operation.done]
    assert {r.outcome for r in finals} == {"CANCELLED"}
    # the same bytes again at the most, never a second opinion
    assert {r.raw for r in finals} == {finals[0].raw}


def test_control_plane_restarted_in_the_middle(node):
    job_id, process = node.run("Deaf")
    operation = node.cancel(job_id)
    node.agent.wait("kill accepted", operation.id)
    node.plane.restart()
    operation = node.plane.wait_done(operation.id, 60)
    assert_cancelled(node, operation, job_id, process)


def test_ids_that_begin_alike(node):
    """4, 42 and 420 are three jobs."""
    processes = {}
    for job_id in ("4", "42", "420"):
        node.plane.add_job(job_id)
        node.cluster.create(job_id, "Sleep", node.kit.jar, **{JOB_ID_PROPERTY: job_id})
    for job_id in ("4", "42", "420"):
        processes[job_id] = node.cluster.wait_driver(job_id)
    assert_cancelled(node, node.wait(node.cancel("42").id), "42", processes["42"])
    assert processes["4"].alive() and processes["420"].alive()
    assert_cancelled(node, node.wait(node.cancel("4").id), "4", processes["4"])
    assert processes["420"].alive()
