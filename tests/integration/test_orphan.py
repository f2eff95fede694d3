# SPDX-License-Identifier: Apache-2.0
"""
Orphans: drivers whose Worker JVM is gone. The kernel has given them another parent, so nobody on the node vouches for them
any more. They count if the agent saw them under their Worker before, or if Spark still places their driver id here.
"""
import pytest

from harness import agent_pb2

STAY = {"FAKEJVM_EOF": "stay"}  # a real driver ends with its Worker (WorkerWatcher); one whose threads hang does not


def run_orphan(node, job_id="j1", **record):
    """A driver whose Worker has just been killed, and a Worker that was started in its place."""
    worker = node.root()
    driver = node.start_driver(job_id, worker=worker, environment=STAY, **record)
    node.plane.add_job(job_id, driver.id)
    assert node.worker.alive()
    worker.kill()
    worker.wait_gone()
    return driver


def test_orphan_that_spark_places_here(node):
    """The master has not noticed, or the Worker has come back under its old address: Spark vouches for it."""
    node.start()
    driver = run_orphan(node)
    bystander = node.run_job("j2")
    node.wait_cancelled(node.cancel("j1"), driver)
    assert bystander.alive() and not bystander.kills


@pytest.mark.parametrize("record", [{"register": False}, {"worker_host_port": "192.0.2.7:7078"}], ids=["unknown", "elsewhere"])
def test_orphan_that_nobody_vouches_for(node, record):
    """Anybody can start a process with such an argv: without a Worker above it and Spark's word it is left alone."""
    node.start()
    driver = run_orphan(node, **record)
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "NOT_ON_NODE")
    other = node.run_job("j2")
    node.wait_cancelled(node.cancel("j2"), other)
    assert driver.alive() and not driver.kills


def test_orphan_that_was_seen_under_its_worker(node):
    """Its Worker dies between the kill, which is lost with it, and the next one; the agent, too, is started anew."""
    node.start(agent={"worker_terminate_timeout": "200ms", "kill_retry": "500ms", "escalation": "term", "escalate_after": "1s"})
    worker = node.root()
    driver = node.start_driver("j1", worker=worker, environment=STAY)
    node.plane.add_job("j1", driver.id)
    node.master.fault("lost", "kill", count=None)
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "IN_PROGRESS")  # the kill and its answer are stored
    node.agent.kill()
    worker.kill()
    worker.wait_gone()
    node.cluster.forget(driver.id)
    node.agent.start()
    metadata = node.wait_cancelled(operation, driver)  # by the local signal: nobody at Spark knows it
    assert metadata.escalation == agent_pb2.ESCALATION_SIGTERM


def test_orphan_that_claims_the_id_of_a_live_driver(node):
    """Two processes under one driver id: the one with a Worker above it counts, and is the only one touched."""
    node.start()
    real = node.run_job("j1")
    worker = node.root()
    claimant = node.start_driver("j1", driver_id=real.id, worker=worker, environment=STAY, register=False)
    worker.kill()
    worker.wait_gone()
    operation = node.cancel("j1")
    node.master.wait_request("kill", real.id, timeout=30)
    real.wait_gone()
    assert claimant.alive() and not node.plane.operation(operation).done
