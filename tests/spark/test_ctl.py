# SPDX-License-Identifier: Apache-2.0
"""spark-cancelctl on a node of a real cluster: check, find, a local cancel, observe mode."""
import json
import subprocess

from cluster import until


def ctl(node, *arguments, code=0):
    program = node.agent.program.with_name("spark-cancelctl")
    result = subprocess.run([program, f"--socket={node.agent.directory / 'run' / 'bus'}", *arguments], capture_output=True, text=True,
                            timeout=60)
    assert result.returncode == code, result
    return json.loads(result.stdout) if "--json" in arguments else result.stdout


def test_check(node):
    """Real masters tell their version; a real driver is recognised. With the agent and without it."""
    node.run("Sleep")
    for arguments in ((), (f"--config={node.agent.configuration}", "--user=root")):
        answer = ctl(node, "check", "--json", *arguments)
        found = {row["name"]: (row["level"], row["text"]) for row in answer["findings"]}
        assert found[f"master {node.cluster.rest_url}"] == ("ok", f"ALIVE, Spark {node.kit.version}")
        assert found["drivers"][0] == "ok" and found["work directory"][0] == "ok" and found["control plane"][0] == "ok"


def test_find_and_local_cancel(node):
    """The control plane is down; the driver that was named is the one that dies."""
    job_id, process = node.run("Sleep")
    _, bystander = node.run("Sleep")
    found = ctl(node, "find", job_id, "--json")
    assert found["driver_pid"] == process.pid and found["driver_id"] == node.cluster.driver_id(process.pid)
    node.plane.stop()
    assert "CANCELLED: Driver " + found["driver_id"] in ctl(node, "cancel", job_id, "--wait")
    assert not process.alive() and bystander.alive()
    until(lambda: node.cluster.driver_state(found["driver_id"]) == "KILLED", 20, "Spark to say KILLED")
    recent = ctl(node, "find", job_id, "--json", code=1)
    assert recent["recent_driver_id"] == found["driver_id"], "by the header that the Worker wrote"


def test_observe_mode(make_node):
    node = make_node(cancel__mode="observe")
    job_id, process = node.run("Sleep")
    operation = node.cancel(job_id)
    node.agent.wait("Observe mode: a cancel would kill driver", operation.id)
    assert "Observe mode" in ctl(node, "cancel", job_id, "--wait", code=1)
    assert process.alive() and not node.plane.reports(operation.id)
