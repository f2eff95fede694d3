# SPDX-License-Identifier: Apache-2.0
"""
spark-cancelctl against the running agent: what an operator does on a node.
"""
import contextlib
import json
import os
import re
import shutil
import subprocess

import pytest

from harness import AGENT, CLUSTER, LIMIT, ROOT, Job, driver_argv, until, wire

from test_disk import tmpfs  # noqa: F401  a fixture

CTL = AGENT.parent / "spark-cancelctl"


@pytest.fixture
def ctl(node):
    if not CTL.exists():
        pytest.skip(f"{CTL} is not built")

    def run(*arguments, code=0, raw=False):
        socket = node.agent.keys["runtime_directory"] / "bus"
        result = subprocess.run([CTL, f"--socket={socket}", *arguments], capture_output=True, text=True, timeout=LIMIT)
        assert result.returncode == code, result
        if raw:
            return result.stdout
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


def test_gauges(node, ctl):
    node.start()
    node.plane.add_job("j1", status="PENDING")
    node.plane.wait_report(node.cancel("j1"), "NOT_ON_NODE")
    driver = node.run_job("j2")
    operation = node.cancel("j2")
    node.plane.faults.add("report", "reject", operation=operation, times=0)
    driver.wait_gone()
    until(lambda: ctl("show", operation, "--json")["state"] == "QUARANTINE", "the quarantine")
    metrics = {row["name"]: row["value"] for row in ctl("metrics", "--json")["metrics"] if "labels" not in row}
    assert metrics["spark_cancel_agent_operations_searching"] == 1
    assert metrics["spark_cancel_agent_operations_quarantined"] == 1
    assert metrics["spark_cancel_agent_operations_open"] == 1


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


# ---- find

def find(ctl, job_id, code):
    return ctl("find", job_id, "--json", code=code)


def test_find_names_what_a_cancel_would_kill(node, ctl):
    node.start()
    driver = node.run_job("j1")
    found = find(ctl, "j1", 0)
    assert found["would_kill"] is True and found["driver_id"] == driver.id and found["driver_pid"] == driver.pid
    assert found["worker_pid"] == node.worker.pid and found["driver_state"] == "RUNNING"
    assert "A cancel would kill this driver" in ctl("find", "j1")
    assert driver.alive() and not driver.kills


def test_find_says_why_lookalikes_are_left_alone(node, ctl):
    node.start()
    node.run_job("j1")
    argument = node.start_driver("j0", after=["-Dspark.yandex.job.id=j1"], register=False)
    other_main = node.worker.spawn(driver_argv(node.work, node.next_driver_id(), "j1", main="org.example.Main"), "/")
    no_worker = node.root(driver_argv(node.work, node.next_driver_id(), "j1"))
    found = find(ctl, "j1", 0)
    reasons = {row["pid"]: row["reason"] for row in found["lookalikes"]}
    assert {argument.pid, other_main.pid} <= set(reasons), reasons
    assert found["driver_pid"] not in reasons and all(reasons.values())
    text = ctl("find", "j1")
    assert str(other_main.pid) in text and reasons[other_main.pid] in text
    assert no_worker.alive() and argument.alive()


def test_find_of_a_driver_that_spark_places_elsewhere(node, ctl):
    node.start()
    node.run_job("j1", worker_host_port="192.0.2.7:7078")
    found = find(ctl, "j1", 1)
    assert found["would_kill"] is False and "192.0.2.7:7078" in found["reason"]


def test_find_when_no_master_answers(node, ctl):
    node.start()
    node.run_job("j1")
    node.master.fault("status", "status", count=None, code=503)
    found = find(ctl, "j1", 1)
    assert found["would_kill"] is False and "No master says" in found["reason"]


def test_find_of_a_job_that_has_ended_here(node, ctl):
    """By the header that its Worker wrote: a hint."""
    node.start()
    driver = node.run_job("j1")
    words = " ".join(f'"{word}"' for word in driver_argv(node.work, driver.id, "j1"))
    (node.work / driver.id / "stderr").write_text(f"Launch Command: {words}\n====\n")
    driver.process.exit(0)
    driver.wait_gone()
    found = find(ctl, "j1", 1)
    assert found["recent_driver_id"] == driver.id and driver.id in found["reason"] and found["driver_pid"] == 0
    assert find(ctl, "j2", 1)["recent_driver_id"] == ""


def test_find_goes_on_behind_a_process_that_only_claims_to_be_the_driver(node, ctl):
    """A newer process of the same user and job, whose driver id Spark places on another node, hides nothing."""
    node.start()
    driver = node.run_job("j1")
    claimant = node.start_driver("j1", worker_host_port="192.0.2.7:7078")
    found = find(ctl, "j1", 0)
    assert found["would_kill"] is True and found["driver_pid"] == driver.pid
    reasons = {row["pid"]: row["reason"] for row in found["lookalikes"]}
    assert "192.0.2.7:7078" in reasons[claimant.pid]
    node.start_driver("j2", worker_host_port="192.0.2.7:7078")
    node.start_driver("j2", worker_host_port="192.0.2.8:7078")
    found = find(ctl, "j2", 1)
    assert found["would_kill"] is False and "192.0.2.8:7078" in found["reason"] and len(found["lookalikes"]) == 1


# ---- cancel

def test_local_cancel_with_the_control_plane_down(node, ctl):
    """Break-glass: the same search and proof; recorded like any other; nobody is told what nobody asked for."""
    node.start()
    driver = node.run_job("j1")
    other = node.run_job("j2")
    node.plane.stop()
    text = ctl("cancel", "j1", "--wait")
    assert not driver.alive() and other.alive() and len(driver.kills) == 1
    assert "CANCELLED: Driver " + driver.id in text
    (operation,) = listed(ctl, "--all")
    row = ctl("show", operation, "--json")
    assert operation.startswith("local-") and row["local"] is True and row["requested_by"] == str(os.getuid())
    assert (row["state"], row["outcome"], row["kill_requests"]) == ("DONE", "CANCELLED", 1)
    line = node.agent.wait_log("cancel ordered on this node: job j1")
    assert f"requested_by={os.getuid()}" in line and f"operation_id={operation}" in line
    assert ctl("status", "--json")["reports_waiting"] == 0


def test_local_cancel_is_not_reported(node, ctl):
    """The control plane never gave this operation: it hears of it neither now nor at a new connection."""
    node.start()
    driver = node.run_job("j1")
    assert json.loads(ctl("cancel", "j1", "--wait", "--json", raw=True))["outcome"] == "CANCELLED"
    node.agent.restart()
    node.plane.wait_watching("n1", timeout=LIMIT)
    later = node.run_job("j2")
    node.wait_cancelled(node.cancel("j2"), later)
    assert not [report for report in node.plane.reports() if report.operation.id.startswith("local-")]
    assert not driver.alive()


def test_control_plane_that_makes_up_such_an_id(node, ctl):
    """It is the control plane's all the same, after a restart, too: it is reported."""
    node.start()
    operation = "local-0123456789abcdef"
    driver = node.run_job("j1")
    node.master.fault("status", "kill", count=None, code=503)
    metadata = wire.pack(wire.CreateJobMetadata(cluster_id=CLUSTER, job_id="j1"))
    node.plane.inject_cancel(wire.Operation(id=operation, metadata=metadata), job_id="j1")
    node.master.wait_request("kill", driver.id)
    assert ctl("show", operation, "--json")["local"] is False
    node.agent.restart()
    node.master.clear_faults()
    driver.wait_gone()
    node.agent.wait_log(f"report acknowledged: .* operation_id={operation} ")
    assert ctl("show", operation, "--json")["local"] is False


def test_local_cancel_beside_one_of_the_control_plane(node, ctl):
    """Both end with the truth."""
    node.start()
    driver = node.run_job("j1", sigterm="ignore")
    operation = node.cancel("j1")
    node.master.wait_request("kill", driver.id)
    ctl("cancel", "j1", "--wait")
    node.wait_cancelled(operation, driver)


def test_local_cancel_comes_twice(node, ctl):
    node.start()
    driver = node.run_job("j1")
    node.master.fault("status", "kill", count=None, code=503)
    first = ctl("cancel", "j1").strip()
    assert ctl("cancel", "j1").strip() == first
    node.master.clear_faults()
    ctl("cancel", "j1", "--wait")
    driver.wait_gone()
    assert listed(ctl, "--all") == [first]


def test_local_cancel_survives_a_restart(node, ctl):
    """The id was told, so it is stored: kill -9, and the one who waits sees its end all the same."""
    node.start()
    driver = node.run_job("j1")
    node.master.fault("status", "kill", count=None, code=503)
    socket = node.agent.keys["runtime_directory"] / "bus"
    waiting = subprocess.Popen([CTL, f"--socket={socket}", "cancel", "j1", "--wait"], stdout=subprocess.PIPE, text=True)
    try:
        first = waiting.stdout.readline()
        assert first.startswith("local-")
        node.agent.kill()
        lines = [first]
        while "does not answer" not in lines[-1]:
            lines.append(waiting.stdout.readline())
            assert lines[-1], lines
        node.master.clear_faults()
        node.agent.start()
        rest = waiting.stdout.read()
        assert waiting.wait(LIMIT) == 0, rest
    finally:
        if waiting.poll() is None:
            waiting.kill()
        waiting.wait()
        waiting.stdout.close()
    assert "CANCELLED" in rest and not driver.alive()
    row = ctl("show", first.split(":")[0], "--json")
    assert row["local"] is True and row["outcome"] == "CANCELLED"


def test_local_cancel_of_a_job_that_ends_by_itself(node, ctl):
    node.start()
    driver = node.run_job("j1", exit_state="FINISHED")
    node.master.fault("status", "kill", count=None, code=503)
    operation = ctl("cancel", "j1").strip()
    node.master.wait_request("kill", driver.id)
    driver.process.exit(0)
    node.agent.wait_log(f"outcome .* operation_id={operation}")
    assert ctl("show", operation, "--json")["outcome"] == "ALREADY_DONE"


def test_local_cancel_of_a_job_that_is_not_here(node, ctl):
    node.start(agent={"default_deadline": "1s"})
    assert "No driver of the job was found on this node" in ctl("cancel", "j9", "--wait", code=1)


def test_local_cancel_that_spark_refuses(node, ctl):
    node.start(agent={"default_deadline": "2s"})
    driver = node.run_job("j1")
    node.master.fault("status", "kill", count=None, code=503)
    text = ctl("cancel", "j1", "--wait", code=1)
    assert "CANCELLED:" not in text and driver.alive()


def test_local_cancel_on_a_full_disk(node, tmpfs, ctl):
    """Nothing can be stored; it is acted on from memory, and said."""
    node.start()
    driver = node.run_job("j1")
    tmpfs.fill()
    assert "CANCELLED: " in ctl("cancel", "j1", "--wait") and not driver.alive()
    assert ctl("status", "--json")["from_memory"] is True
    level, text = next((row["level"], row["text"]) for row in ctl("check", "--json")["findings"] if row["name"] == "state directory")
    assert level == "warning" and "works from memory" in text
    tmpfs.free()
    until(lambda: not ctl("status", "--json")["from_memory"], "the disk that works again")
    (operation,) = listed(ctl, "--all")
    node.agent.restart()
    assert ctl("show", operation, "--json")["outcome"] == "CANCELLED"


def test_local_cancel_is_for_the_privileged(node, ctl):
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    node.start()
    driver = node.run_job("j1")
    for directory in (node.directory, node.agent.keys["runtime_directory"]):
        os.chmod(directory, 0o755)
    socket = node.agent.keys["runtime_directory"] / "bus"

    def as_nobody(*arguments):
        return subprocess.run([CTL, f"--socket={socket}", *arguments], capture_output=True, text=True, timeout=LIMIT, user=65534,
                              group=65534, extra_groups=[])

    refused = as_nobody("cancel", "j1")
    assert refused.returncode == 1 and "Only root" in refused.stderr
    assert as_nobody("find", "j1").returncode == 0 and as_nobody("status").returncode == 0
    assert driver.alive() and listed(ctl, "--all") == []


def test_observe_mode_does_not_cancel_locally(node, ctl):
    node.start(agent={"mode": "observe"})
    driver = node.run_job("j1")
    assert "A cancel would name this driver (observe mode)" in ctl("find", "j1")
    assert f"Observe mode: a cancel would kill driver {driver.id}" in ctl("cancel", "j1", "--wait", code=1)
    assert driver.alive() and not driver.kills


def test_live_line_in_a_terminal(node, ctl):
    """One line over and over, colour, and the outcome at the end; NO_COLOR is honoured."""
    node.start()
    for job_id, environment, coloured in (("j1", {}, True), ("j2", {"NO_COLOR": "1"}, False)):
        driver = node.run_job(job_id)
        node.master.fault("status", "kill", count=None, code=503)
        master, slave = os.openpty()
        socket = node.agent.keys["runtime_directory"] / "bus"
        process = subprocess.Popen([CTL, f"--socket={socket}", "cancel", job_id, "--wait"], stdout=slave, stdin=slave,
                                   env={"PATH": os.environ["PATH"], "TERM": "xterm", **environment})
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while chunk := os.read(master, 65536):
                shown += chunk
                if b"asking Spark to kill it" in shown:
                    node.master.clear_faults()
        os.close(master)
        assert process.wait(LIMIT) == 0
        text = shown.decode()
        assert "\r\x1b[K" in text and driver.id in text
        assert ("\x1b[32mCANCELLED" in text) is coloured
        driver.wait_gone()


# ---- the promise of the JSON

def documented(name):
    """The keys of a table in docs/spark-cancelctl.md: of the one below the heading `name`."""
    text = (ROOT / "docs" / "spark-cancelctl.md").read_text()
    section = text.split(f"\n### {name}\n")[1].split("\n#")[0]
    return set(re.findall(r"^\| `(\w+)`", section, re.M))


def test_json_is_as_documented(node, ctl):
    node.start()
    driver = node.run_job("j1")
    status = ctl("status", "--json")
    assert set(status) == documented("status")
    assert set(status["findings"][0]) == documented("a finding")
    assert set(ctl("check", "--json")) == documented("check")
    found = ctl("find", "j1", "--json")
    assert set(found) == documented("find")
    node.start_driver("j0", after=["-Dspark.yandex.job.id=j1"], register=False)
    assert set(ctl("find", "j1", "--json")["lookalikes"][0]) == documented("a look-alike")
    operation = node.cancel("j1")
    node.wait_cancelled(operation, driver)
    listing = ctl("list", "--all", "--json")
    assert set(listing) == documented("list")
    assert set(listing["operations"][0]) == documented("an operation") == set(ctl("show", operation, "--json"))
    assert set(ctl("cancel", "j7", "--json")) == documented("cancel without --wait")
    metrics = ctl("metrics", "--json")
    assert set(metrics) == documented("metrics")


# ---- busctl

def test_busctl(node, ctl):
    """A D-Bus interface like others: introspected, called and read by the system's own tool."""
    if not shutil.which("busctl"):
        pytest.skip("busctl is not installed")
    node.start()
    driver = node.run_job("j1")
    address = f"unix:path={node.agent.keys['runtime_directory']}/bus"

    def busctl(*words):
        return subprocess.run(["busctl", f"--address={address}", *words], capture_output=True, text=True, timeout=LIMIT)

    there = (":1.1", "/org/sparkcancel/Agent1", "org.sparkcancel.Agent1")
    shown = busctl("introspect", *there).stdout
    for member, kind in (("Cancel", "method"), ("Find", "method"), ("Check", "method"), ("Mode", "property")):
        assert re.search(rf"^\.{member} +{kind} ", shown, re.M), shown
    assert busctl("get-property", *there, "Mode").stdout == 's "act"\n'
    assert driver.id in busctl("call", *there, "Find", "s", "j1").stdout
    assert "job id" in busctl("call", *there, "Cancel", "s", "").stderr
