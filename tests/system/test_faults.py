# SPDX-License-Identifier: Apache-2.0
"""
What breaks in the field, with the shipped unit: network, control plane, agent, power, disk of an upgrade. Each test asks the
same at the end: the operation has one answer, it is the right one, and the driver is dead.
"""
import threading
import time

from lab import until
from test_cancel import IDS
from world import CONFIG, UNIT, repack


def wait_underway(field, operation):
    """The kill is stored, asked for and accepted."""
    return field.plane.wait_report(operation, "IN_PROGRESS", timeout=30)


def main_pid(node):
    return node.show(UNIT, "MainPID")["MainPID"]


def restarts(node):
    return int(node.show(UNIT, "NRestarts")["NRestarts"])


# ---- network

def test_node_cut_off_and_healed(field):
    """A cancel for a node without a network waits for it."""
    node, job = field.nodes["n1"], field.run_job("n1")
    node.cut()
    operation = field.cancel(job.id)
    field.plane.wait_report(operation, "NOT_ON_NODE", node="n2")
    field.plane.wait_report(operation, "NOT_ON_NODE", node="n3")
    assert job.alive() and not field.plane.operation(operation).done
    node.heal()
    field.wait_cancelled(operation, job)


def test_cut_off_in_the_middle(field):
    """The driver dies while its node is cut off: the outcome is kept and comes through afterwards."""
    node, job = field.nodes["n1"], field.run_job("n1", "Deaf")
    operation = field.cancel(job.id)
    wait_underway(field, operation)
    node.cut()
    until(lambda: not job.alive(), 30, "the Worker to end the driver")
    node.wait_entry(f"MESSAGE_ID={IDS['OUTCOME']}", f"SPARK_JOB_ID={job.id}", seconds=40)
    assert not field.plane.operation(operation).done
    node.heal()
    field.wait_cancelled(operation, job)


def test_master_out_of_reach(field):
    """The node sees the control plane, not the Spark master: it asks until the master answers."""
    job = field.run_job("n2")
    node = field.nodes["n2"]
    # tcp from the node to the master's REST port, and nothing else
    field.lab.rules(f"iifname {node.port} ether type ip tcp dport 6066 drop")
    operation = field.cancel(job.id)
    node.wait_entry(f"MESSAGE_ID={IDS['COMMAND_RECEIVED']}", f"SPARK_JOB_ID={job.id}")
    assert job.alive()
    field.lab.rules()
    field.wait_cancelled(operation, job)


# ---- control plane

def test_control_plane_away_for_long(field):
    """No restart, no flood of lines, one answer when it is back."""
    node, job = field.nodes["n3"], field.run_job("n3", "Deaf")
    operation = field.cancel(job.id)
    wait_underway(field, operation)
    mark, before = node.cursor(), restarts(node)
    field.plane.stop()
    until(lambda: not job.alive(), 30, "the Worker to end the driver")
    outcome = node.wait_entry(f"MESSAGE_ID={IDS['OUTCOME']}", f"SPARK_JOB_ID={job.id}")
    # ten times the longest pause between two attempts (reconnect_max = 2s)
    end = int(outcome["__MONOTONIC_TIMESTAMP"]) / 1e6 + 20
    until(lambda: time.monotonic() > end, 60, "time to pass", pause=1)
    lines = node.journal("-u", UNIT, since=mark)
    told = [line["MESSAGE"] for line in lines if line.get("MESSAGE_ID") == IDS["DISCONNECTED"]]
    assert 1 <= len(told) <= 3, told  # one line for each reason: it is stopping, it refuses; not one for each attempt
    assert len(lines) <= 8, [line["MESSAGE"] for line in lines]
    field.plane.start()
    field.wait_cancelled(operation, job)
    assert restarts(node) == before


# ---- the agent's own end

def test_kill_9(field):
    """Dead in the middle of a cancel: systemd starts it again, and it goes on where it was."""
    node, job = field.nodes["n1"], field.run_job("n1", "Deaf")
    operation = field.cancel(job.id)
    wait_underway(field, operation)
    before, pid = restarts(node), main_pid(node)
    node.run("sh", "-c", f"kill -9 {pid}")
    field.wait_cancelled(operation, job)
    until(lambda: restarts(node) == before + 1, 10, "systemd to have started it again")


def test_a_sigterm_from_anybody(field):
    """Not by systemctl: it comes back. By systemctl: it stays away."""
    node = field.nodes["n2"]
    before, pid = restarts(node), main_pid(node)
    node.run("sh", "-c", f"kill {pid}")
    until(lambda: restarts(node) == before + 1 and main_pid(node) not in ("0", pid), 20, "systemd to start it again")
    node.run("systemctl", "stop", UNIT)
    assert node.run("systemctl", "is-active", UNIT, check=False).strip() == "inactive"
    node.run("systemctl", "start", UNIT)


def test_never_given_up(field):
    """Whatever keeps it from starting, systemd goes on trying, and it works as soon as the cause is gone."""
    node = field.nodes["n3"]
    node.drop_in("quick", "[Service]\nRestartSec=100ms\n")
    node.run("systemctl", "stop", UNIT)
    # a state database that can't be opened: a folder stands in its place
    node.run("sh", "-c", "cd /var/lib/spark-cancel-agent && mkdir ../aside && mv agent.db* ../aside && mkdir agent.db")
    node.run("systemctl", "start", UNIT, check=False)
    until(lambda: restarts(node) >= 8, 60, "eight attempts: more than systemd's default limit of five")
    assert node.run("systemctl", "is-failed", UNIT, check=False).strip() != "failed"
    job = field.run_job("n3")
    operation = field.cancel(job.id)
    node.run("sh", "-c", "cd /var/lib/spark-cancel-agent && rmdir agent.db && mv ../aside/* . && rmdir ../aside")
    field.wait_cancelled(operation, job)


def test_hung_agent(field):
    """One that is alive and does nothing is found out by the watchdog."""
    node = field.nodes["n1"]
    node.drop_in("watchdog", "[Service]\nWatchdogSec=2\n")
    node.run("systemctl", "restart", UNIT)
    field.wait_watching("n1")
    job, mark, pid = field.run_job("n1"), node.cursor(), main_pid(node)
    node.run("sh", "-c", f"kill -STOP {pid}")
    operation = field.cancel(job.id)
    node.wait_entry("_PID=1", since=mark, text="Watchdog timeout")
    field.wait_cancelled(operation, job)
    assert main_pid(node) != pid


def test_power_cut(field):
    """The node goes dark with a cancel under way; it boots, and what was asked before is answered."""
    node, job = field.nodes["n2"], field.run_job("n2", "Deaf")
    operation = field.cancel(job.id)
    wait_underway(field, operation)
    boot = node.journal("-n1")[-1]["_BOOT_ID"]
    node.power_cut()
    assert not job.alive()
    node.start()
    field.wait_watching("n2")
    field.wait_cancelled(operation, job, seconds=90)
    assert node.journal("-n1")[-1]["_BOOT_ID"] != boot


# ---- the administrator

def test_reload(field):
    """It takes the new values, keeps the process and what is under way, and says no to a wrong file."""
    node, job = field.nodes["n1"], field.run_job("n1", "Deaf")
    pid = main_pid(node)
    operation = field.cancel(job.id)
    wait_underway(field, operation)
    node.write(CONFIG, field.config("n1", agent__log_level="debug"))
    mark = node.cursor()
    node.run("systemctl", "reload", UNIT)
    node.wait_entry(f"MESSAGE_ID={IDS['RELOADED']}", since=mark)
    node.wait_entry("_SYSTEMD_UNIT=" + UNIT, "PRIORITY=7", since=mark)
    for wrong, word in (({"cancel__kill_retry": "soon"}, "kill_retry"), ({"agent__node": "other"}, "node")):
        node.write(CONFIG, field.config("n1", **wrong))
        mark = node.cursor()
        assert node.code("systemctl", "reload", UNIT) != 0
        assert word in node.wait_entry(f"MESSAGE_ID={IDS['RELOAD_FAILED']}", since=mark)["MESSAGE"]
    assert main_pid(node) == pid
    field.wait_cancelled(operation, job)


def test_upgrade_under_load(field):
    """dpkg -i of a newer version while cancels pour in: every one gets its answer, none two."""
    node = field.nodes["n1"]
    newer = repack(field.deb, "99.0", field.directory)
    (field.directory / "shown/newer.deb").write_bytes(newer.read_bytes())
    jobs = [field.run_job("n1", "Deaf"), field.run_job("n1"), field.run_job("n2")]
    operations, stop = {}, threading.Event()

    def pour():
        """Cancels of jobs that are nowhere, one after the other."""
        number = 0
        while not stop.is_set() and number < 2000:
            job_id = f"nowhere-{number}"
            field.plane.add_job(job_id)
            operations[field.cancel(job_id)] = job_id
            number += 1
            stop.wait(0.01)

    pid = main_pid(node)
    caller = threading.Thread(target=pour)
    caller.start()
    try:
        until(lambda: len(operations) > 20, 30, "load")
        real = {field.cancel(job.id): job for job in jobs}
        node.run("dpkg", "-i", "/mnt/shown/newer.deb")
        assert main_pid(node) not in ("0", pid)
        field.wait_watching("n1")
        count = len(operations)
        until(lambda: len(operations) > count + 20, 30, "more load")
    finally:
        stop.set()
        caller.join()
    for operation, job in real.items():
        field.wait_cancelled(operation, job)
    for operation in operations:
        ended = field.plane.wait_done(operation, 60)
        assert ended.error.code == 5, ended  # NOT_FOUND, by the word of all nodes
        assert field.plane.reports(operation, outcome="NOT_ON_NODE", node="n1"), "n1 has never answered"
    assert node.run("dpkg-query", "-W", "-f", "${Version}", "spark-cancel-agent") == "99.0"
    assert node.run("cat", CONFIG) == field.config("n1")
