# SPDX-License-Identifier: Apache-2.0
"""
queued_drivers = yes: an agent, best on the master's node, answers from Spark's records alone for drivers that the command
names and that run on no node that could answer.
"""
import pytest

from harness import LIMIT, Job

ELSEWHERE = {"worker_host_port": "192.0.2.7:7078"}


def start(node, queued="yes", send_driver_id=True, **plane):
    node.start(agent={"queued_drivers": queued}, plane={"send_driver_id": send_driver_id, "poll": 3600, **plane})


def add(node, state, **record):
    """A driver that Spark knows and that has nothing on this node, and a job for which the control plane does not ask again."""
    driver_id = node.next_driver_id()
    node.cluster.add_driver(driver_id, state="RUNNING" if record else state, **record)
    node.plane.add_job("j1", driver_id)
    if record:
        node.plane.wait(lambda: node.plane.state.job("c1", "j1")["spark_state"] == "RUNNING", LIMIT, "the control plane's look")
        node.cluster.set_state(driver_id, state)
    return driver_id


def test_queued_driver_is_cancelled(node):
    start(node)
    driver_id = add(node, "SUBMITTED")
    operation = node.cancel("j1")
    assert node.job_of(node.wait_done(operation)).status == Job.CANCELLED
    metadata = node.final(operation).metadata
    assert (metadata.driver_id, metadata.driver_state, metadata.kill_requests) == (driver_id, "KILLED", 1)
    assert metadata.HasField("kill_accepted_at") and node.cluster.drivers[driver_id].state == "KILLED"


def test_queued_driver_that_is_placed_here_before_its_kill(node):
    """It becomes an ordinary driver of this node."""
    start(node)
    driver_id = add(node, "SUBMITTED")
    node.master.fault("status", "kill", code=503, count=None)
    operation = node.cancel("j1")
    node.master.wait_request("kill", driver_id, timeout=LIMIT)
    driver = node.start_driver("j1", driver_id)
    node.master.clear_faults()
    node.wait_cancelled(operation, driver)


@pytest.mark.parametrize("queued, send_driver_id", [("no", True), ("yes", False)], ids=["not configured", "not named"])
def test_queued_driver_is_left_alone(node, queued, send_driver_id):
    """Without queued_drivers, and where the command does not name the driver."""
    start(node, queued, send_driver_id, not_found_grace=600.0)
    driver_id = add(node, "SUBMITTED")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "NOT_ON_NODE")
    other = node.run_job("j2")
    node.wait_cancelled(node.cancel("j2"), other)
    assert node.cluster.drivers[driver_id].state == "SUBMITTED" and not node.master.requests_for("kill", driver_id)


@pytest.mark.parametrize("state, outcome, status", [
    ("FINISHED", "ALREADY_DONE", Job.DONE), ("FAILED", "ALREADY_FAILED", Job.ERROR), ("KILLED", "CANCELLED", Job.CANCELLED)])
def test_driver_of_another_node_that_has_ended(node, state, outcome, status):
    """Its node may not be there any more to say so."""
    start(node)
    driver_id = add(node, state, **ELSEWHERE)
    operation = node.cancel("j1")
    assert node.job_of(node.wait_done(operation)).status == status
    report = node.final(operation)
    assert report.outcome == outcome and report.metadata.driver_state == state
    assert not node.master.requests_for("kill", driver_id)


def test_process_that_claims_a_queued_driver_of_another_job(node):
    """Spark places that driver nowhere, which proves nothing for a process: nothing is killed, least of all the other job."""
    start(node, not_found_grace=600.0)
    add(node, "SUBMITTED")
    victim = node.next_driver_id()
    node.cluster.add_driver(victim, state="SUBMITTED")
    thief = node.start_driver("j1", driver_id=victim, register=False)
    operation = node.cancel("j1")
    node.master.wait_request("status", victim, count=4, timeout=LIMIT)
    assert not node.master.requests_for("kill") and node.cluster.drivers[victim].state == "SUBMITTED"
    assert thief.alive() and not node.plane.operation(operation).done


def test_driver_that_spark_lost_with_its_worker(node):
    """ERROR, and no node proves its process gone: DRIVER_LOST, not ALREADY_FAILED, after relaunch_window (1 s here)."""
    start(node, not_found_grace=600.0)
    driver_id = add(node, "ERROR", **ELSEWHERE)
    operation = node.cancel("j1")
    assert node.wait_done(operation).error.code == 10
    report = node.final(operation)
    assert report.outcome == "DRIVER_LOST" and report.metadata.job_status == Job.ERROR
    assert "ERROR" in report.metadata.message and node.plane.job("j1").status == Job.ERROR
    assert not node.master.requests_for("kill", driver_id)


def test_driver_that_runs_on_another_node(node):
    """That node's business: NOT_ON_NODE, and no kill."""
    start(node, not_found_grace=600.0)
    driver_id = add(node, "RUNNING", **ELSEWHERE)
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "NOT_ON_NODE")
    other = node.run_job("j2")
    node.wait_cancelled(node.cancel("j2"), other)
    assert not node.master.requests_for("kill", driver_id) and not node.finals(operation)


def test_driver_that_spark_does_not_know(node):
    """NOT_FOUND is the control plane's word; this node only says that it is not here."""
    start(node, poll=0.2)
    driver_id = add(node, "RUNNING", **ELSEWHERE)
    node.cluster.forget(driver_id)
    operation = node.cancel("j1")
    assert node.wait_done(operation).error.code == 5
    assert [r.outcome for r in node.plane.reports(operation)] == ["NOT_ON_NODE"]


def test_queued_driver_and_a_crash(node):
    """kill -9 when the kill is out: one outcome."""
    start(node)
    driver_id = add(node, "SUBMITTED")
    node.master.fault("lost", "kill")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "IN_PROGRESS")
    node.agent.kill()
    node.agent.start()
    assert node.job_of(node.wait_done(operation)).status == Job.CANCELLED
    assert node.final(operation).outcome == "CANCELLED" and node.cluster.drivers[driver_id].state == "KILLED"


def test_dry_run_of_a_queued_driver(node):
    start(node)
    driver_id = add(node, "SUBMITTED")
    operation = node.cancel("j1", dry_run=True)
    node.wait_done(operation)
    report = node.final(operation)
    assert report.outcome == "DRY_RUN"
    assert report.metadata.message == f"Dry run: a cancel would have Spark kill driver {driver_id}; it has no process here."
    assert node.cluster.drivers[driver_id].state == "SUBMITTED" and not node.master.requests_for("kill")
