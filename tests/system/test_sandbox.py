# SPDX-License-Identifier: Apache-2.0
"""
The shipped unit's sandbox and limits: that they take effect, that the work is done inside them, and that each example drop-in
gives what it says. systemd does not say when a setting has no effect, so effects are looked at, beside a unit without them.
"""
import re

import pytest

from lab import HERE, until
from test_cancel import IDS
from test_faults import main_pid
from world import CONFIG, ROOT, UNIT

EXAMPLES = ROOT / "packaging/systemd/examples"
NEEDED = {"write-state", "write-runtime", "see-other-users", "read-work-directory", "read-boot-id"}


def outcomes(text):
    return dict(line.split() for line in text.splitlines() if re.fullmatch(r"[\w-]+ (yes|no)", line))


def control_group(node, controller, *names):
    """What one controller has for the agent's control group: the first of these files, v1's and v2's name for the same."""
    groups = [line.split(":", 2)[1:] for line in node.run("cat", f"/proc/{main_pid(node)}/cgroup").splitlines()]
    folder = next((f"/{names}{path}" for names, path in groups if controller in names.split(",")), None)
    folder = folder or next(path for names, path in groups if names == "")
    return next(node.run("cat", f"/sys/fs/cgroup{folder}/{name}").strip() for name in names
                if node.code("test", "-e", f"/sys/fs/cgroup{folder}/{name}") == 0)


def test_sandbox_takes_effect(field):
    """The same probe in a unit with the shipped sandbox and in a plain one as root."""
    node = field.nodes["n1"]
    node.write("/usr/local/bin/probe", (HERE / "probe").read_text(encoding="ascii"), 0o755)
    node.run("touch", "/var/tmp/shared")
    shipped = node.run("cat", f"/lib/systemd/system/{UNIT}")
    # the shipped text, but another program, and folders of its own
    dropped = r"(?m)^(Type|NotifyAccess|ExecStart|ExecReload|WatchdogSec|Restart|RestartSec|StateDirectory|RuntimeDirectory)=.*\n"
    text = re.sub(dropped, "", re.sub(r"(?ms)^ExecCondition=.*?exit 1'\n", "", shipped)).replace("[Service]\n", (
        "[Service]\nType=oneshot\nExecStart=/usr/local/bin/probe\nStateDirectory=probe\nRuntimeDirectory=probe\n"
        "Environment=STATE=/var/lib/probe RUNTIME=/run/probe\nStandardOutput=truncate:/var/tmp/probe.out\n"), 1)
    assert "SystemCallFilter=" in text and "ProtectSystem=strict" in text and "spark-cancel-agent --config" not in text
    node.write("/etc/systemd/system/probe.service", text)
    node.run("systemctl", "daemon-reload")
    node.run("systemctl", "start", "probe.service")
    inside = outcomes(node.run("cat", "/var/tmp/probe.out"))
    plain = outcomes(node.run_as_unit("/usr/local/bin/probe", properties=(
        "StateDirectory=plain", "RuntimeDirectory=plain", "Environment=STATE=/var/lib/plain RUNTIME=/run/plain",
        "LimitCORE=infinity")))
    assert inside.keys() == plain.keys() and len(inside) > 20
    assert {name for name, answer in inside.items() if answer == "yes"} == NEEDED
    # what the plain unit can't do either proves nothing about ours
    unproved = {name for name, answer in plain.items() if answer == "no"}
    assert unproved <= {"make-fifo-device", "see-devices", "realtime", "set-host-name"}, unproved
    node.run("rm", "-rf", "/etc/systemd/system/probe.service", "/var/lib/probe", "/var/lib/plain")
    node.run("systemctl", "daemon-reload")


def test_limits_take_effect(field):
    """Read where the kernel keeps them, for the running agent."""
    node = field.nodes["n1"]
    assert control_group(node, "memory", "memory.limit_in_bytes", "memory.max") == str(1 << 30)
    assert control_group(node, "pids", "pids.max") == "64"
    # CPUWeight=1000: ten times that of another service
    assert control_group(node, "cpu", "cpu.weight", "cpu.shares") in ("1000", "10240")
    limits = node.run("cat", f"/proc/{main_pid(node)}/limits")
    assert re.search(r"Max core file size +0 +0 ", limits), limits
    assert int(control_group(node, "pids", "pids.current")) <= 8
    used = int(control_group(node, "memory", "memory.usage_in_bytes", "memory.current"))
    assert used < 64 << 20, f"the agent's control group uses {used} bytes"


def test_memory_fence(field):
    """MemoryMax= kills what grows beyond it, in a unit of the same kind: it is no mere number here."""
    node = field.nodes["n1"]
    grow = ("sh", "-c", "head -c 90M /dev/zero | tail >/dev/null")
    assert node.code(*node_unit(grow, "MemoryMax=256M")) == 0
    assert node.code(*node_unit(grow, "MemoryMax=32M")) != 0


def node_unit(argv, *properties):
    words = [word for item in properties for word in ("-p", item)]
    return ("systemd-run", "-q", "--wait", "--pipe", *words, *argv)


def test_every_system_call_is_allowed(field):
    """With a filter that kills instead of refusing: a start, a cancel, the local bus, a reload and a stop call nothing that
    is not on the list."""
    node = field.nodes["n1"]
    node.drop_in("deadly", "[Service]\nSystemCallErrorNumber=kill\nRestart=no\n")
    node.run("systemctl", "restart", UNIT)
    field.wait_watching("n1")
    pid = main_pid(node)
    job = field.run_job("n1", supervise=True)
    field.wait_cancelled(field.cancel(job.id), job)
    for words in (("status",), ("list", "--all"), ("metrics",), ("reload",)):
        assert node.code("spark-cancelctl", *words) == 0
    node.run("systemctl", "reload", UNIT)
    assert main_pid(node) == pid
    node.run("systemctl", "stop", UNIT)
    shown = node.show(UNIT, "Result", "ExecMainStatus", "ExecMainCode")
    assert (shown["Result"], shown["ExecMainStatus"], shown["ExecMainCode"]) == ("success", "0", "1"), shown


def test_no_signal_without_a_drop_in(field):
    """escalation in agent.conf alone: refused at the start, with what to do."""
    node = field.nodes["n1"]
    node.write(CONFIG, field.config("n1", cancel__escalation="kill"))
    mark = node.cursor()
    node.run("systemctl", "restart", UNIT, check=False)
    until(lambda: node.show(UNIT, "ActiveState")["ActiveState"] == "failed", 20, "the refusal")
    assert node.show(UNIT, "ExecMainStatus")["ExecMainStatus"] == "78"
    node.wait_entry("_SYSTEMD_UNIT=" + UNIT, since=mark, text="may not signal the drivers' user")


@pytest.mark.parametrize("name, example", [("n1", "escalation-cap-kill"), ("n3", "escalation-user")])
def test_escalation(field, name, example):
    """With the drop-in the agent ends a deaf driver itself, where a Worker hangs that has taken the kill."""
    node, job = field.nodes[name], field.run_job(name, "Deaf")
    worker = node.show("spark-worker", "MainPID")["MainPID"]
    node.drop_in("example", (EXAMPLES / f"{example}.conf").read_text(encoding="utf-8"))
    node.write(CONFIG, field.config(name, cancel__escalation="kill", cancel__escalate_after="1s", cancel__force_after="1s"))
    node.run("systemctl", "restart", UNIT)
    field.wait_watching(name)
    node.run("sh", "-c", f"kill -STOP {worker}")
    try:
        operation = field.cancel(job.id)
        until(lambda: not job.alive(), 60, "the agent to end the driver")
    finally:
        node.run("sh", "-c", f"kill -CONT {worker}")
    assert field.wait_cancelled(operation, job).escalation == 2


def test_textfile_collector(field):
    """metrics_file is written where the drop-in opens the folder."""
    node = field.nodes["n2"]
    folder = "/var/lib/prometheus/node-exporter"
    node.run("mkdir", "-p", folder)
    node.run("chgrp", "spark-cancel", folder)
    node.run("chmod", "g+w", folder)
    node.write(CONFIG, field.config("n2", agent__metrics_file=f"{folder}/spark-cancel-agent.prom"))
    node.drop_in("example", (EXAMPLES / "textfile-collector.conf").read_text(encoding="utf-8"))
    node.run("systemctl", "restart", UNIT)
    until(lambda: node.code("test", "-s", f"{folder}/spark-cancel-agent.prom") == 0, 20, "the file")
    assert node.run("stat", "-c", "%a", f"{folder}/spark-cancel-agent.prom").strip() == "644"
    assert "# TYPE spark_cancel" in node.run("cat", f"{folder}/spark-cancel-agent.prom")


def test_credentials(field):
    """Secrets that only root can read, through LoadCredential."""
    node = field.nodes["n3"]
    node.run("sh", "-c", "cd /etc/spark-cancel-agent && echo secret >token && chown root:root node.pem node.key token &&"
                         " chmod 400 node.pem node.key token")
    node.drop_in("example", (EXAMPLES / "credentials.conf").read_text(encoding="utf-8"))
    node.write(CONFIG, field.config("n3", credentials=True, control_plane__certificate_file="credential:node.pem",
                                    control_plane__private_key_file="credential:node.key"))
    node.run("systemctl", "restart", UNIT)
    field.wait_watching("n3")
    job = field.run_job("n3")
    field.wait_cancelled(field.cancel(job.id), job)
    field.give_files("n3")


def test_hidden_processes(field):
    """Under hidepid= the agent says that it is blind; with the drop-in for its group it sees and cancels."""
    node = field.nodes["n2"]
    job, mark = field.run_job("n2"), node.cursor()
    node.run("groupadd", "--system", "--gid", "950", "proc")
    try:
        node.run("mount", "-o", "remount,hidepid=invisible,gid=950", "/proc")
        operation = field.cancel(job.id)
        node.wait_entry(f"MESSAGE_ID={IDS['SCAN_FAILED']}", since=mark)
        assert job.alive()
        node.drop_in("example", (EXAMPLES / "hidepid.conf").read_text(encoding="utf-8"))
        node.run("systemctl", "restart", UNIT)
        field.wait_cancelled(operation, job)
    finally:
        node.run("mount", "-o", "remount,hidepid=off,gid=0", "/proc")
        node.run("groupdel", "proc")
