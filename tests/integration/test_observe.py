# SPDX-License-Identifier: Apache-2.0
"""
mode = observe: the agent finds, logs and shows what a cancel would kill. No kill request, no signal and no final report
leaves the node, by whatever way a cancel comes.
"""
import json
import subprocess

from harness import AGENT, LIMIT, until

CTL = AGENT.parent / "spark-cancelctl"
OBSERVE = {"mode": "observe"}


def ctl(node, *arguments, code=0):
    socket = node.agent.keys["runtime_directory"] / "bus"
    result = subprocess.run([CTL, f"--socket={socket}", *arguments], capture_output=True, text=True, timeout=LIMIT)
    assert result.returncode == code, result
    return json.loads(result.stdout) if "--json" in arguments else result.stdout


def shown(node, operation):
    return ctl(node, "show", operation, "--json")


def wait_observed(node, operation, driver):
    """The agent has done with it, the driver lives, and nobody was asked or told anything."""
    node.agent.wait_log(f"outcome .* operation_id={operation}")
    until(lambda: shown(node, operation)["state"] == "DONE", "the end of the observation")
    row = shown(node, operation)
    assert row["outcome"] == "DRY_RUN" and row["kill_requests"] == 0
    assert f"Observe mode: a cancel would kill driver {driver.id}, process {driver.pid}" in row["message"]
    assert_untouched(node, driver)


def assert_untouched(node, *drivers):
    for driver in drivers:
        assert driver.alive() and not driver.kills
    assert {report.outcome for report in node.plane.reports()} <= {"NOT_ON_NODE"}


def test_finds_and_kills_nothing(node):
    node.start(agent=OBSERVE)
    driver = node.run_job("j1")
    operation = node.cancel("j1")
    wait_observed(node, operation, driver)
    assert not node.plane.operation(operation).done
    node.agent.wait_log("observe mode: no kill, no signal and no final report")
    line = node.agent.wait_log("outcome DRY_RUN: Observe mode")
    assert " job_id=j1 " in line and line.endswith(" outcome=DRY_RUN")


def test_says_so_in_status_and_metrics(node):
    node.start(agent=OBSERVE)
    status = ctl(node, "status", "--json")
    assert status["mode"] == "observe" and "Observe mode" in status["summary"]
    assert "spark_cancel_agent_observe_mode 1" in ctl(node, "metrics")
    until(lambda: any("STATUS=Observe mode" in line for line in node.agent.notify.messages), "the status line")


def test_driver_that_comes_later(node):
    """NOT_ON_NODE is true and is said; what follows is not."""
    node.start(agent=OBSERVE)
    node.plane.add_job("j1", status="PENDING")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "NOT_ON_NODE")
    driver = node.start_driver("j1")
    wait_observed(node, operation, driver)


def test_no_signal_where_escalation_is_allowed(node):
    """Nobody answers at Spark: in act mode this ends with SIGKILL after 0.2 s."""
    node.start(agent={**OBSERVE, "escalation": "kill", "escalate_after": "100ms", "force_after": "100ms",
                      "default_deadline": "2s"})
    driver = node.run_job("j1")
    node.master.fault("status", "status", count=None, code=503)
    operation = node.cancel("j1", deadline=2)
    node.agent.wait_log(f"outcome .* operation_id={operation}")
    until(lambda: shown(node, operation)["state"] == "DONE", "the deadline")
    assert shown(node, operation)["outcome"] == "SPARK_UNREACHABLE"
    assert_untouched(node, driver)


def test_operation_that_was_killing_when_the_mode_changed(node):
    """It was ordered in act mode, a kill request was sent and lost; after the restart none follows and nobody is
    signalled. What was done in act mode is reported at its deadline: it is a duty that is older than the mode."""
    escalation = {"escalation": "kill", "escalate_after": "2s", "force_after": "100ms"}
    node.start(agent={"worker_terminate_timeout": "200ms", "kill_retry": "500ms", **escalation, "escalate_after": "1h"})
    driver = node.run_job("j1")
    node.master.fault("lost", "kill", count=None)
    operation = node.cancel("j1", deadline=6)
    node.master.wait_request("kill", driver.id)
    node.agent.kill()
    sent = len(driver.kills)
    node.agent.keys.update({"mode": "observe", **escalation})
    node.agent.start()
    node.wait_done(operation)
    assert len(driver.kills) == sent and driver.alive()
    assert node.final(operation).outcome == "DEADLINE_EXCEEDED"


def test_what_only_searched_is_acted_on_in_act_mode(node):
    node.start(agent=OBSERVE)
    node.plane.add_job("j1", status="PENDING")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "NOT_ON_NODE")
    node.agent.stop()
    node.agent.keys["mode"] = "act"
    node.agent.start()
    driver = node.start_driver("j1")
    node.wait_cancelled(operation, driver)


def test_what_was_observed_is_not_acted_on_later(node):
    node.start(agent=OBSERVE)
    observed = node.run_job("j1")
    operation = node.cancel("j1")
    wait_observed(node, operation, observed)
    node.agent.stop()
    node.agent.keys["mode"] = "act"
    node.agent.start()
    other = node.run_job("j2")
    node.wait_cancelled(node.cancel("j2"), other)
    assert observed.alive() and not observed.kills and not node.finals(operation)


def test_dry_run_is_observed_too(node):
    node.start(agent=OBSERVE)
    driver = node.run_job("j1")
    operation = node.cancel("j1", dry_run=True)
    wait_observed(node, operation, driver)


def test_mode_needs_a_restart(node):
    node.start(agent=OBSERVE)
    node.agent.keys["mode"] = "act"
    node.agent.write_config()
    ctl(node, "reload", code=1)
    assert ctl(node, "status", "--json")["mode"] == "observe"


def test_wrong_mode(node, tmp_path):
    node.start(agent=OBSERVE)
    node.agent.keys["mode"] = "watch"
    node.agent.write_config()
    result = node.agent.run(f"--config={node.agent.config}", "--check-config")
    assert result.returncode == 78 and "mode: 'watch' is not a mode (allowed: act, observe)" in result.stderr
