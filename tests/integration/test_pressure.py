# SPDX-License-Identifier: Apache-2.0
"""
An agent that runs short of something: nothing is lost, and it does not spin.
"""
import os
import resource
import signal
import time

import pytest

from harness import CLUSTER, need_to_look_into, until, wire


def cpu_seconds(pid):
    fields = open(f"/proc/{pid}/stat", encoding="ascii").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def highest_descriptor(pid):
    return max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))


def test_no_descriptors_left(node):
    """Not every driver can be watched, or /proc not be read: it is tried again at leisure, and nothing is claimed."""
    node.start()
    pid = node.agent.process.pid
    need_to_look_into(pid)
    node.master.fault("hang", "status", count=None)  # so that nothing ends, and no descriptor comes free
    drivers = [node.run_job(f"j{number}") for number in range(20)]
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest_descriptor(pid) + 12, hard))
    operations = [node.cancel(driver.job_id) for driver in drivers]
    node.agent.wait_log("cannot watch process|cannot read the list of processes")
    before, mark, end = cpu_seconds(pid), node.agent.mark(), time.monotonic() + 2
    until(lambda: time.monotonic() > end, "the end of two seconds")
    assert cpu_seconds(pid) - before < 1, "the agent spins"
    assert node.agent.mark() - mark < 200
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    node.master.clear_faults()
    for operation, driver in zip(operations, drivers):
        node.wait_cancelled(operation, driver)


def test_kill_that_failed_is_sent_again(node):
    """A master that is busy for a moment: the operation keeps its turn at the Worker and tries again, also the third time."""
    node.start(agent={"kill_retry": "20s", "worker_terminate_timeout": "1s"})
    driver = node.run_job("j1")
    node.master.fault("status", "kill", count=3, code=503)
    metadata = node.wait_cancelled(node.cancel("j1", deadline=10), driver)
    assert metadata.kill_requests == 4 == len(driver.kills)


def test_one_kill_at_a_time_after_a_crash(node):
    """Five drivers of one Worker are found, one kill is under way: a restart must not send all five at once."""
    node.start()
    drivers = [node.run_job(f"j{number}") for number in range(5)]
    node.master.fault("hang", "kill", count=None)
    operations = [node.cancel(driver.job_id) for driver in drivers]
    for driver in drivers:
        node.master.wait_request("status", driver.id)
    until(lambda: node.master.requests_for("kill"), "a kill")
    node.agent.restart()
    for driver in drivers:
        node.master.wait_request("status", driver.id, count=2)
    end = time.monotonic() + 1
    until(lambda: time.monotonic() > end, "the end of a second")
    assert len({request.driver_id for request in node.master.requests_for("kill")}) <= 2
    node.master.clear_faults()
    for operation, driver in zip(operations, drivers):
        node.wait_cancelled(operation, driver)


def big_operation(number):
    """A command's Operation of nearly 16 KiB for a job of its own."""
    operation = wire.Operation(id=f"big-{number}", description="x" * 15_000)
    operation.metadata.Pack(wire.CreateJobMetadata(cluster_id=CLUSTER, job_id=f"absent-{number}"))
    return operation


def virtual_bytes(pid):
    return int(open(f"/proc/{pid}/statm", encoding="ascii").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("room", [0, 2 << 20])
def test_no_memory_left(node, room):
    """The address space is full while a flood of cancels comes: the agent goes on, waits for memory, or ends cleanly, and then
    has them all."""
    node.start()
    drivers = [node.run_job(f"j{number}") for number in range(4)]
    pid = node.agent.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (virtual_bytes(pid) + room, hard))
    mine = [node.cancel(driver.job_id) for driver in drivers[:2]]
    absent = [big_operation(number) for number in range(300)]
    for operation in absent:
        node.plane.inject_cancel(operation, job_id=operation.id.replace("big", "absent"))
    mine += [node.cancel(driver.job_id) for driver in drivers[2:]]
    until(lambda: not node.agent.running() or "out of memory" in node.agent.log() or
          all(node.plane.operation(operation).done for operation in mine), "an end of it")
    if node.agent.running():
        resource.prlimit(pid, resource.RLIMIT_AS, (soft, hard))
    else:
        assert node.agent.wait_exit() == 1, "a clean failure"
        node.agent.start()
    for operation, driver in zip(mine, drivers):
        node.wait_cancelled(operation, driver)
    # answered by the agent, or ended by the control plane while there was no agent to ask
    until(lambda: all(node.plane.operation(operation.id).done or node.plane.reports(operation.id, "NOT_ON_NODE")
                      for operation in absent), "an end of those that are on no node")


def test_frozen_for_longer_than_the_heartbeats(node):
    """SIGSTOP in the midst of a cancel, until the control plane has given the stream up: then it goes on where it was."""
    node.start()
    driver = node.run_job("j1", sigterm="ignore")
    operation = node.cancel("j1")
    node.master.wait_request("kill", driver.id)
    node.agent.process.send_signal(signal.SIGSTOP)
    driver.wait_gone()
    end = time.monotonic() + 4
    until(lambda: time.monotonic() > end, "the end of four seconds")
    node.agent.process.send_signal(signal.SIGCONT)
    node.wait_cancelled(operation, driver)
    assert len(driver.kills) == 1
