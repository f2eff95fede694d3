# SPDX-License-Identifier: Apache-2.0
"""
spark-cancelctl against the running agent: what an operator does on a node.
"""
import json
import subprocess

import pytest

from harness import AGENT, LIMIT, Job, until

CTL = AGENT.parent / "spark-cancelctl"


@pytest.fixture
def ctl(node):
    if not CTL.exists():
        pytest.skip(f"{CTL} is not built")

    def run(*arguments, code=0):
        socket = node.agent.keys["runtime_directory"] / "bus"
        result = subprocess.run([CTL, f"--socket={socket}", *arguments], capture_output=True, text=True, timeout=LIMIT)
        assert result.returncode == code, result
        return json.loads(result.stdout) if "--json" in arguments else result.stdout + result.stderr

    return run


def listed(ctl, *options):
    return [row["operation_id"] for row in ctl("list", "--json", *options)["operations"]]


def test_status_and_metrics(node, ctl):
    node.start()
    status = ctl("status", "--json")
    assert status["connected"] is True and status["node"] == "n1" and status["cluster_id"] == "c1"
    driver = node.run_job("j1")
    node.wait_cancelled(node.cancel("j1"), driver)
    assert "# TYPE" in ctl("metrics")
    node.plane.stop()
    until(lambda: ctl("status", "--json")["connected"] is False, "the loss of the connection")


def test_a_cancel_as_the_operator_sees_it(node, ctl):
    node.start()
    driver = node.run_job("j1")
    node.master.fault("status", "kill", count=None, code=503)
    operation = node.cancel("j1")
    node.master.wait_request("kill", driver.id)
    shown = ctl("show", operation, "--json")
    assert shown["job_id"] == "j1" and shown["driver_id"] == driver.id and shown["state"] in ("KILL", "WAIT")
    assert listed(ctl) == [operation]
    node.master.clear_faults()
    node.wait_cancelled(operation, driver)
    node.agent.wait_log("acknowledged")
    until(lambda: listed(ctl) == [], "the end")
    assert listed(ctl, "--all") == [operation]
    assert "CANCELLED" in ctl("show", operation)


def test_rejected_report_is_sent_again_by_the_operator(node, ctl):
    node.start()
    driver = node.run_job("j1")
    operation = node.cancel("j1")
    node.plane.faults.add("report", "reject", operation=operation, times=0)
    driver.wait_gone()
    until(lambda: ctl("show", operation, "--json")["state"] == "QUARANTINE", "the quarantine")
    assert not node.plane.operation(operation).done
    node.plane.faults.clear()
    ctl("retry", operation)
    assert node.job_of(node.wait_done(operation)).status == Job.CANCELLED
    until(lambda: ctl("show", operation, "--json")["state"] == "DONE", "the acknowledgement")
    ctl("retry", operation, code=1)


def test_reload(node, ctl):
    node.start()
    ctl("reload")
    node.agent.config.write_text("[agent]\nbroken\n")
    assert "agent.conf:2" in ctl("reload", code=1)


def test_exit_codes(node, ctl):
    node.start()
    ctl("show", "no-such-operation", code=1)
    ctl("retry", "no-such-operation", code=1)
    ctl("show", code=2)
    ctl("nonsense", code=2)
    node.agent.stop()
    ctl("status", code=3)
