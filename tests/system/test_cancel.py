# SPDX-License-Identifier: Apache-2.0
"""
The main path on real nodes: a real Worker's driver, run by user spark, cancelled by the packaged agent in its sandbox.
"""
import re

from lab import run, until
from world import ROOT, UNIT, WORK

IDS = dict(re.findall(r'X\((\w+), "([0-9a-f]{32})"', (ROOT / "agent/journal.h").read_text(encoding="ascii")))
STORY = ["COMMAND_RECEIVED", "DRIVER_FOUND", "KILL_ACCEPTED", "DRIVER_GONE", "OUTCOME", "REPORT_ACKNOWLEDGED"]


def test_the_right_node_cancels(field):
    """Three jobs on three nodes, two layouts: each cancel ends its own and no other."""
    jobs = {name: field.run_job(name) for name in field.nodes}
    for name in ("n2", "n3", "n1"):
        operation = field.cancel(jobs[name].id)
        metadata = field.wait_cancelled(operation, jobs[name])
        assert metadata.kill_requests == 1 and metadata.driver_state == "KILLED", metadata
        others = {report.node for report in field.plane.reports(operation, outcome="NOT_ON_NODE")}
        assert others == set(field.nodes) - {name}
        del jobs[name]
        assert all(job.alive() for job in jobs.values()), "another job's driver is dead"


def test_who_it_runs_as(field):
    """User, sandbox and folders of the running service are those of the unit."""
    node = field.nodes["n1"]
    shown = node.show(UNIT, "MainPID", "User", "ActiveState", "StatusText", "UnitFileState", "NRestarts")
    assert (shown["ActiveState"], shown["UnitFileState"]) == ("active", "enabled")
    status = dict(line.split(":\t", 1) for line in node.run("cat", f"/proc/{shown['MainPID']}/status").splitlines() if ":\t" in line)
    agent_uid = node.run("id", "-u", "spark-cancel").strip()
    assert status["Uid"].split()[0] == agent_uid != node.run("id", "-u", "spark").strip()
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
    assert all(int(status[f"Cap{kind}"], 16) == 0 for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"))
    assert node.run("stat", "-c", "%a %U", "/var/lib/spark-cancel-agent").split() == ["700", "spark-cancel"]
    assert node.run("stat", "-c", "%a %U", WORK["n1"]).split()[1] == "spark"
    assert re.search(r"[Cc]onnected to ", shown["StatusText"]), shown


def test_deaf_driver(field):
    """One that ignores SIGTERM: Spark kills it after its Worker's time, and only then it is CANCELLED."""
    job = field.run_job("n1", "Deaf")
    field.wait_cancelled(field.cancel(job.id), job)


def test_supervised_driver(field):
    """One that Spark would start again stays dead."""
    job = field.run_job("n3", supervise=True)
    field.wait_cancelled(field.cancel(job.id), job)


def test_journal_tells_the_story(field):
    """By job id: every step in order, each with its MESSAGE_ID and fields, from the agent's own user and unit."""
    node = field.nodes["n2"]
    job = field.run_job("n2")
    operation = field.cancel(job.id)
    field.wait_cancelled(operation, job)
    node.wait_entry(f"SPARK_JOB_ID={job.id}", f"MESSAGE_ID={IDS['REPORT_ACKNOWLEDGED']}")
    entries = node.journal(f"SPARK_JOB_ID={job.id}")
    names = {identifier: name for name, identifier in IDS.items()}
    told = [names[entry["MESSAGE_ID"]] for entry in entries]
    assert [name for name in told if name in STORY] == STORY, told
    uid = node.run("id", "-u", "spark-cancel").strip()
    for entry in entries:
        assert (entry["_UID"], entry["_SYSTEMD_UNIT"]) == (uid, UNIT)
        assert entry["SPARK_OPERATION_ID"] == operation and entry["SPARK_CLUSTER_ID"] == "c1"
        assert int(entry["PRIORITY"]) in range(8) and entry["MESSAGE"]
    found = next(entry for entry in entries if entry["MESSAGE_ID"] == IDS["DRIVER_FOUND"])
    assert found["SPARK_DRIVER_ID"] == job.driver_id and int(found["SPARK_DRIVER_PID"]) > 1
    outcome = next(entry for entry in entries if entry["MESSAGE_ID"] == IDS["OUTCOME"])
    assert outcome["SPARK_OUTCOME"] == "CANCELLED"
    accepted = next(entry for entry in entries if entry["MESSAGE_ID"] == IDS["KILL_ACCEPTED"])
    assert "6066" in accepted["SPARK_MASTER"]
    # the time of a line is the journal's; its order is the story's
    stamps = [int(entry["__REALTIME_TIMESTAMP"]) for entry in entries]
    assert stamps == sorted(stamps)


def test_catalog_explains(field):
    """journalctl -x has a paragraph for what was logged, from the package's catalog. Nothing to do while there is none."""
    if not (ROOT / "packaging/catalog").exists():
        return
    node = field.nodes["n2"]
    listed = node.run("journalctl", "--list-catalog")
    for name, identifier in IDS.items():
        assert identifier in listed, f"the catalog has no {name}"
    shown = node.run("journalctl", "-x", "-q", "--no-pager", "-n1", f"MESSAGE_ID={IDS['STARTED']}")
    assert re.search(r"(?m)^░░ ", shown), shown


def test_idle_is_silent(field):
    """Nothing is logged while nothing happens, and the agent's control group holds it alone."""
    node = field.nodes["n3"]
    until(lambda: "Connected" in node.show(UNIT, "StatusText")["StatusText"], 30, "STATUS= to say so")
    quiet = node.journal("-u", UNIT, "-n1")[-1]["__CURSOR"]
    beats = len(field.plane.streams("n3"))
    assert beats == 1
    node.run("sleep", "3")  # three heartbeats of the control plane pass: what is looked for is that nothing comes
    assert node.journal("-u", UNIT, since=quiet) == []


def test_operator_reads_it(field):
    """spark-cancelctl as an ordinary user reads; changes are for root and the agent's group."""
    node = field.nodes["n1"]
    as_nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    assert "n1" in node.run(*as_nobody, "spark-cancelctl", "status")
    assert node.code("spark-cancelctl", "reload") == 0
    assert node.code(*as_nobody, "spark-cancelctl", "reload") == 1
    assert node.code("setpriv", "--reuid=nobody", "--regid=spark-cancel", "--clear-groups", "spark-cancelctl", "reload") == 0
    introspect = run(*node.argv("busctl", "--address=unix:path=/run/spark-cancel-agent/bus", "introspect", "org.sparkcancel.Agent1",
                                "/org/sparkcancel/Agent1"), check=False)
    assert "org.sparkcancel.Agent1" in introspect, introspect


def test_preflight(field):
    """spark-cancelctl check: this node could cancel a job, by the sandboxed agent's own eyes."""
    node, job = field.nodes["n1"], field.run_job("n1")
    shown = node.run("spark-cancelctl", "check", check=False)
    assert node.code("spark-cancelctl", "check") == 0, shown
    found = node.run("spark-cancelctl", "find", job.id)
    assert job.driver_id in found, found
    assert field.nodes["n2"].code("spark-cancelctl", "find", job.id) == 1
    field.wait_cancelled(field.cancel(job.id), job)


def test_break_glass(field):
    """With the control plane down the operator cancels on the node itself."""
    node, job = field.nodes["n3"], field.run_job("n3")
    field.plane.stop()
    assert node.code("spark-cancelctl", "cancel", job.id, "--wait") == 0
    assert not job.alive()
    entry = node.wait_entry(f"SPARK_JOB_ID={job.id}", f"MESSAGE_ID={IDS['OUTCOME']}")
    assert entry["SPARK_OUTCOME"] == "CANCELLED" and entry["SPARK_OPERATION_ID"].startswith("local-")
    field.start_plane()
    field.wait_watching("n3")
