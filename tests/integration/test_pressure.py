# SPDX-License-Identifier: Apache-2.0
"""
An agent that runs short of something: nothing is lost, and it does not spin.
"""
import os
import resource
import time

from harness import need_to_look_into, until


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
