# SPDX-License-Identifier: Apache-2.0
"""
kill -9 of the agent at each stage of a cancel, and of the control plane in the middle: one true outcome all the same.
"""
import os
import random

import pytest

from harness import CLUSTER, Job, until, wire


def crash_while_searching(node):
    node.plane.add_job("j1", status="PENDING")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "NOT_ON_NODE")
    node.agent.kill()
    return operation, node.start_driver("j1")


def crash_while_spark_is_asked(node):
    """The status question hangs: the driver is known, nothing was sent."""
    driver = node.run_job("j1")
    node.master.fault("hang", "status", count=1)
    operation = node.cancel("j1")
    node.master.wait_request("status", driver.id, timeout=30)
    node.agent.kill()
    return operation, driver


def crash_while_a_kill_hangs(node):
    driver = node.run_job("j1")
    node.master.fault("hang", "kill", count=1)
    operation = node.cancel("j1")
    node.master.wait_request("kill", driver.id, timeout=30)
    node.agent.kill()
    return operation, driver


def crash_while_it_dies(node):
    """The kill was accepted; the driver takes its time; it dies while the agent is away."""
    driver = node.run_job("j1", sigterm="ignore")
    operation = node.cancel("j1")
    node.agent.wait_log("kill accepted")
    node.agent.kill()
    driver.wait_gone()
    return operation, driver


def crash_while_it_lives_on(node):
    """The kill was accepted and lost; the driver lives when the agent comes back."""
    driver = node.run_job("j1")
    node.master.fault("lost", "kill", count=1)
    operation = node.cancel("j1")
    node.agent.wait_log("kill accepted")
    node.agent.kill()
    return operation, driver


def crash_before_the_report_is_through(node):
    driver = node.run_job("j1", sigterm="ignore")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "IN_PROGRESS")
    fault = node.plane.faults.add("report", "status", code="UNAVAILABLE", times=0)
    driver.wait_gone()
    until(lambda: fault.hits, "a report")
    node.agent.kill()
    node.plane.faults.clear()
    return operation, driver


def crash_after_an_answer_was_lost(node):
    """The control plane has applied it; the agent does not know."""
    driver = node.run_job("j1", sigterm="ignore")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "IN_PROGRESS")
    node.plane.faults.add("report", "lost", times=0)
    node.plane.wait_report(operation, "CANCELLED", disposition="APPLIED")
    node.agent.kill()
    node.plane.faults.clear()
    return operation, driver


STAGES = [crash_while_searching, crash_while_spark_is_asked, crash_while_a_kill_hangs, crash_while_it_dies, crash_while_it_lives_on,
          crash_before_the_report_is_through, crash_after_an_answer_was_lost]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_agent_crashes(node, stage):
    node.start()
    bystander = node.run_job("bystander")
    operation, driver = stage(node)
    node.agent.start()
    node.wait_cancelled(operation, driver)
    assert bystander.alive() and not bystander.kills
    node.agent.wait_log(r"(?i)acknowledged")


def test_agent_crashes_after_the_end(node):
    """What was answered is not done again."""
    node.start()
    driver = node.run_job("j1")
    operation = node.cancel("j1")
    node.wait_cancelled(operation, driver)
    node.agent.wait_log("(?i)acknowledged")
    again = node.start_driver("j1")
    node.agent.restart()
    node.plane.wait_watching("n1")
    other = node.run_job("j2")
    node.wait_cancelled(node.cancel("j2"), other)
    assert again.alive() and not again.kills and len(node.finals(operation)) == 1


def test_crashes_at_random_moments(node):
    """Several jobs, the agent killed over and over: every one ends CANCELLED once, and the others live."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"SEED={seed}")
    dice = random.Random(seed)
    node.start()
    drivers = [node.run_job(f"j{number}", sigterm=dice.choice(["die", "exit0", "150"])) for number in range(8)]
    bystanders = [node.run_job(f"b{number}") for number in range(3)]
    operations = [node.cancel(f"j{number}") for number in range(8)]
    for _ in range(6):
        wanted = dice.randrange(1, 12)
        start = node.agent.mark()
        until(lambda: node.agent.mark() >= start + wanted or all(node.plane.operation(o).done for o in operations), "log lines")
        node.agent.restart()
    for operation, driver in zip(operations, drivers):
        node.wait_cancelled(operation, driver)
    assert all(b.alive() and not b.kills for b in bystanders)


def test_store_is_lost(node):
    """A node that lost its state gets every open operation again, and is not mistaken for a repeat."""
    node.start()
    driver = node.run_job("j1")
    node.master.mode = "STANDBY"
    operation = node.cancel("j1")
    node.master.wait_request("status", driver.id, timeout=30)
    node.agent.kill()
    for file in node.agent.keys["state_directory"].iterdir():
        file.unlink()
    node.master.mode = "ALIVE"
    node.agent.start()
    node.wait_cancelled(operation, driver)


def test_store_is_damaged(node):
    """Set aside under a dated name, and told; the operations come again."""
    node.start()
    driver = node.run_job("j1")
    node.agent.kill()
    state = node.agent.keys["state_directory"]
    for file in state.iterdir():
        file.write_bytes(b"this is no database, but it is long enough to look like one" * 100)
    node.agent.start()
    node.agent.wait_log("set aside")
    assert [file for file in state.iterdir() if file.name not in ("agent.db", "agent.db-wal", "agent.db-shm")]
    node.wait_cancelled(node.cancel("j1"), driver)


# ---- the control plane

def test_control_plane_restarts_while_searching(node):
    node.start()
    node.plane.add_job("j1", status="PENDING")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "NOT_ON_NODE")
    node.plane.restart()
    driver = node.start_driver("j1")
    node.wait_cancelled(operation, driver)
    stream = node.plane.wait_watching("n1")[0]
    assert stream.after_revision > 0  # it resumed


def test_control_plane_is_away_while_the_driver_dies(node):
    """The report waits, and says the same."""
    node.start()
    driver = node.run_job("j1", sigterm="ignore")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "IN_PROGRESS")
    node.plane.stop()
    driver.wait_gone()
    node.agent.wait_log("CANCELLED")
    node.plane.start()
    metadata = node.wait_cancelled(operation, driver)
    assert wire.from_timestamp(metadata.ended_at) <= wire.now_usec()


def test_control_plane_lost_its_history(node):
    """OUT_OF_RANGE: start over from 0; what is open comes again and is known."""
    node.start()
    driver = node.run_job("j1")
    operation = node.cancel("j1")
    node.wait_cancelled(operation, driver)
    node.agent.wait_log("(?i)acknowledged")
    node.agent.kill()
    node.plane.stop()
    for file in node.directory.glob("plane.db*"):
        file.unlink()
    node.plane.start()
    node.agent.start()
    stream = node.plane.wait_watching("n1")[0]
    assert stream.after_revision == 0
    second = node.start_driver("j2")
    node.plane.add_job("j2", second.id)
    node.wait_cancelled(node.cancel("j2"), second)


def test_control_plane_is_not_there_at_the_start(node):
    """READY does not wait for it."""
    node.add_master()
    node.start_plane()
    node.plane.stop()
    node.make_agent().start()
    driver = node.start_driver("j1")
    node.plane.start()
    node.plane.add_job("j1", driver.id)
    node.wait_cancelled(node.cancel("j1"), driver)
    assert node.plane.job("j1").status == Job.CANCELLED and node.plane.cluster_id == CLUSTER
