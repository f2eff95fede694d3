# SPDX-License-Identifier: Apache-2.0
"""
The bash completion, as bash runs it: COMP_WORDS in, COMPREPLY out.
"""
import re
import subprocess

import pytest

from harness import AGENT, LIMIT, ROOT

CTL = AGENT.parent / "spark-cancelctl"
SCRIPT = ROOT / "packaging" / "completion" / "spark-cancelctl"
COMMANDS = ["cancel", "check", "find", "list", "metrics", "reload", "retry", "show", "status"]


def complete(*words, function="_spark_cancelctl"):
    """What is offered for the last word, as bash splits the line ('=' is a word of its own)."""
    script = f'source "{SCRIPT}"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); {function}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    result = subprocess.run(["bash", "-uc", script, "bash", *map(str, words)], capture_output=True, text=True, timeout=LIMIT)
    assert result.returncode == 0 and not result.stderr, result
    return sorted(line for line in result.stdout.splitlines() if line)


def test_commands():
    assert complete(CTL, "") == COMMANDS
    assert complete(CTL, "re") == ["reload", "retry"]
    assert complete(CTL, "--json", "st") == ["status"]
    assert complete(CTL, "--socket", "=", "/run/x", "can") == ["cancel"]


def test_commands_are_those_of_the_program():
    text = subprocess.run([CTL, "--help"], capture_output=True, text=True, timeout=LIMIT).stdout
    assert sorted(re.findall(r"^  ([a-z]+) ", text, re.M)) == COMMANDS
    options = set(re.findall(r"--[a-z]+", text))
    offered = {word.rstrip("=") for command in COMMANDS for word in complete(CTL, command, "--")}
    assert options == offered


def test_options():
    assert complete(CTL, "list", "--a") == ["--all"] and complete(CTL, "show", "--a") == []
    assert complete(CTL, "cancel", "j1", "--w") == ["--wait"]
    assert complete(CTL, "check", "--") == ["--config=", "--help", "--json", "--socket=", "--user=", "--version"]
    assert complete("spark-cancel-agent", "--ch", function="_spark_cancel_agent") == ["--check-config"]


def test_values(tmp_path):
    (tmp_path / "agent.conf").write_text("")
    assert complete(CTL, "check", "--config", "=", f"{tmp_path}/a") == [f"{tmp_path}/agent.conf"]
    assert complete(CTL, "--socket", "=", f"{tmp_path}/a") == [f"{tmp_path}/agent.conf"]
    assert "root" in complete(CTL, "check", "--user", "=", "roo")
    assert complete("spark-cancel-agent", "--config", "=", f"{tmp_path}/", function="_spark_cancel_agent") == [
        f"{tmp_path}/agent.conf"]


def test_ids_that_the_agent_knows(node):
    node.start()
    socket = node.agent.keys["runtime_directory"] / "bus"
    driver = node.run_job("j1")
    done = node.cancel("j1")
    node.wait_cancelled(done, driver)
    node.agent.wait_log("acknowledged")
    node.plane.add_job("j2", status="PENDING")
    searching = node.cancel("j2")
    node.plane.wait_report(searching, "NOT_ON_NODE")
    line = (CTL, "--socket", "=", socket)
    assert complete(*line, "show", "") == sorted([done, searching])
    assert complete(*line, "show", done[:-1]) == [word for word in sorted([done, searching]) if word.startswith(done[:-1])]
    assert complete(*line, "retry", "") == [searching]
    assert complete(*line, "find", "") == ["j2"] == complete(*line, "cancel", "j")


def test_hostile_ids_stay_words(node):
    """A job's id may hold what a shell would run."""
    node.start()
    socket = node.agent.keys["runtime_directory"] / "bus"
    hostile = ["$(touch${IFS}/tmp/x);`id`|", "*"]
    for job_id in hostile:
        node.plane.add_job(job_id, status="PENDING")
        node.plane.wait_report(node.cancel(job_id), "NOT_ON_NODE")
    offered = complete(CTL, "--socket", "=", socket, "find", "")
    echoed = subprocess.run(["bash", "-c", f"printf '%s\\n' {' '.join(offered)}"], capture_output=True, text=True, timeout=LIMIT)
    assert sorted(echoed.stdout.splitlines()) == sorted(hostile)


def test_no_agent(node):
    assert complete(CTL, "--socket", "=", "/nonexistent", "show", "") == []


@pytest.mark.parametrize("script", sorted((ROOT / "packaging" / "completion").iterdir()), ids=lambda path: path.name)
def test_script_is_well_formed(script):
    subprocess.run(["bash", "-n", script], check=True, timeout=LIMIT)
