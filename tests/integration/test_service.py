# SPDX-License-Identifier: Apache-2.0
"""
The binary as a service: its configuration and exit codes, READY, SIGTERM, SIGHUP, one agent to a state directory.
"""
import os
import re
import signal
import socket
import sqlite3
import time

import pytest

from harness import LIMIT, VERSION, Agent, Job, config_text, need_to_look_into, until

GOOD = {"cluster_id": "c1", "endpoint": "http://127.0.0.1:1", "masters": "http://127.0.0.1:6066"}


@pytest.fixture
def bare(node):
    """An agent's configuration, not started."""
    agent = Agent(node.directory, **GOOD, work_directory=node.work)
    agent.write_config()
    return agent


def changed(agent, **keys):
    agent.keys.update(keys)
    agent.write_config()
    return agent


# ---- argv and configuration

def test_version_and_help(bare):
    version = bare.run("--version")
    assert version.returncode == 0 and VERSION in version.stdout
    usage = bare.run("--help")
    assert usage.returncode == 0 and "--check-config" in usage.stdout
    assert bare.run("--nonsense").returncode == 1
    assert bare.run("argument").returncode == 1


def test_check_config_prints_what_it_would_accept(bare):
    first = bare.run(f"--config={bare.config}", "--check-config")
    assert first.returncode == 0, first.stderr
    for expected in ("kill_retry = 25s", "default_deadline = 15min", "job_id_property = spark.yandex.job.id", "escalation = none"):
        assert re.search(expected.replace(" ", r"\s*").replace(".", r"\."), first.stdout), expected
    bare.config.write_text(first.stdout)
    again = bare.run(f"--config={bare.config}", "--check-config")
    assert (again.returncode, again.stdout) == (0, first.stdout)


BAD = {
    "no cluster": ({"cluster_id": None}, "cluster_id"),
    "long cluster": ({"cluster_id": "c" * 51}, "cluster_id"),
    "no endpoint": ({"endpoint": None}, "endpoint"),
    "endpoint without a scheme": ({"endpoint": "127.0.0.1:1"}, "endpoint"),
    "no masters": ({"masters": None}, "masters"),
    "a master that is no URL": ({"masters": "m1:6066"}, "masters"),
    "a time that is none": ({"kill_retry": "soon"}, "kill_retry"),
    "a time out of range": ({"kill_retry": "9999h"}, "kill_retry"),
    "retry below twice the Worker's timeout": ({"kill_retry": "15s"}, "kill_retry"),
    "an unknown word": ({"escalation": "maybe"}, "escalation"),
    "two sources of a token": ({"token_file": "/t", "token_url": "http://127.0.0.1/x"}, "token"),
    "a token over cleartext": ({"endpoint": "http://control.example:1", "token_file": "/t"}, "token"),
    "certificate without key": ({"endpoint": "https://x:1", "certificate_file": "/c"}, "private_key_file"),
    "a user that is none": ({"driver_user": "no-such-user-here"}, "driver_user"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_configuration(bare, name):
    keys, word = BAD[name]
    changed(bare, **keys)
    for arguments in ([f"--config={bare.config}", "--check-config"], [f"--config={bare.config}"]):
        result = bare.run(*arguments)
        assert result.returncode == 78, result
        assert word in result.stderr and "agent.conf" in result.stderr, result.stderr


@pytest.mark.parametrize("text, word", [
    ("[agent]\ncluster = c1\n", "cluster"), ("[agnet]\ncluster_id = c1\n", "agnet"), ("[agent]\nnonsense\n", "agent.conf:2"), ("", "cluster_id"),
    ("[agent]\ncluster_id = c1\ncluster_id = c2\n", "cluster_id")])
def test_broken_file(bare, text, word):
    bare.config.write_text(text)
    result = bare.run(f"--config={bare.config}", "--check-config")
    assert result.returncode == 78 and word in result.stderr, result


def test_missing_file(bare):
    result = bare.run(f"--config={bare.directory}/nothing.conf")
    assert result.returncode == 78 and "nothing.conf" in result.stderr


def test_the_line_is_named(bare):
    lines = config_text({**bare.keys, "kill_retry": "soon"}).splitlines()
    bare.config.write_text("\n".join(lines) + "\n")
    number = lines.index("kill_retry = soon") + 1
    assert f"agent.conf:{number}:" in bare.run(f"--config={bare.config}", "--check-config").stderr


# ---- life

def test_ready_without_anything_to_reach(bare):
    """READY when the configuration is valid and the store is open."""
    bare.start()
    assert bare.notify.wait("STATUS=", bare.running)
    assert (bare.keys["state_directory"] / "agent.db").exists() and (bare.keys["runtime_directory"] / "bus").exists()
    bare.stop()
    assert "STOPPING=1" in bare.notify.messages


def test_watchdog_is_served(bare, monkeypatch):
    """More than twice in its time; not any more when the loop stands still."""
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    bare.start()
    until(lambda: bare.notify.messages.count("WATCHDOG=1") >= 4, "the watchdog's messages")
    bare.process.send_signal(signal.SIGSTOP)
    until(lambda: "T" in open(f"/proc/{bare.process.pid}/stat", encoding="ascii").read().rsplit(")")[1].split()[0], "its stop")
    served = bare.notify.messages.count("WATCHDOG=1")
    end = time.monotonic() + 1
    until(lambda: time.monotonic() > end, "the end of a second")
    assert bare.notify.messages.count("WATCHDOG=1") <= served + 1  # one may have been on its way
    bare.process.send_signal(signal.SIGCONT)
    until(lambda: bare.notify.messages.count("WATCHDOG=1") > served + 1, "the watchdog's messages")


def test_files_are_private(bare):
    bare.start()
    for file in bare.keys["state_directory"].iterdir():
        assert file.stat().st_mode & 0o077 == 0, file


def test_sigterm_while_a_driver_dies(node):
    """It stops; the next start takes the cancel to its end."""
    node.start()
    driver = node.run_job("j1", sigterm="ignore")
    operation = node.cancel("j1")
    node.agent.wait_log("kill accepted")
    node.agent.stop()
    driver.wait_gone()
    node.agent.start()
    node.wait_cancelled(operation, driver)


def test_sigterm_flushes_reports(node):
    """Reports that wait are sent before it ends."""
    node.start()
    driver = node.run_job("j1")
    fault = node.plane.faults.add("report", "status", code="UNAVAILABLE", times=0)
    operation = node.cancel("j1")
    driver.wait_gone()
    node.agent.wait_log("CANCELLED")
    until(lambda: fault.hits, "a report")
    node.agent.process.terminate()
    node.agent.wait_log("(?i)stopping")
    node.plane.faults.clear()
    assert node.agent.wait_exit() == 0
    assert node.job_of(node.wait_done(operation)).status == Job.CANCELLED


def test_second_agent_on_one_state_directory(node):
    node.start()
    second = Agent(node.directory, **{**node.agent.keys, "node": "n2", "runtime_directory": node.directory / "run2"})
    second.config = node.directory / "second.conf"
    second.start(ready=False)
    assert second.wait_exit() == 1
    assert re.search("(?i)another|in use|locked", second.log()), second.log()
    driver = node.run_job("j1")
    node.wait_cancelled(node.cancel("j1"), driver)


def test_newer_database_is_refused(bare):
    bare.start()
    bare.stop()
    with sqlite3.connect(bare.keys["state_directory"] / "agent.db") as base:
        base.execute("PRAGMA user_version = 9999")
    base.close()
    bare.start(ready=False)
    assert bare.wait_exit() == 1 and re.search("(?i)newer", bare.log())


def test_foreign_database_is_refused(bare):
    """A database of somebody else is neither used nor set aside."""
    path = bare.keys["state_directory"] / "agent.db"
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE photos (name TEXT)")
    base.close()
    bare.start(ready=False)
    assert bare.wait_exit() == 1 and path.exists()


def test_state_directory_that_is_none(bare):
    changed(bare, state_directory=bare.directory / "nowhere")
    result = bare.run(f"--config={bare.config}")
    assert result.returncode in (1, 78) and "nowhere" in result.stderr


def test_sighup_reloads(node):
    node.start()
    node.agent.keys["log_level"] = "info"
    node.agent.write_config()
    start = node.agent.mark()
    node.agent.process.send_signal(signal.SIGHUP)
    node.agent.wait_log("(?i)reloaded", start=start)
    node.agent.config.write_text("[agent]\nbroken\n")
    start = node.agent.mark()
    node.agent.process.send_signal(signal.SIGHUP)
    node.agent.wait_log("agent.conf:2", start=start)
    node.agent.keys["cluster_id"] = "c2"
    node.agent.write_config()
    start = node.agent.mark()
    node.agent.process.send_signal(signal.SIGHUP)
    node.agent.wait_log("cluster_id.*restart|restart.*cluster_id", start=start)
    driver = node.run_job("j1")
    node.wait_cancelled(node.cancel("j1"), driver)


def reload(agent, **keys):
    changed(agent, **keys)
    start = agent.mark()
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_log("configuration reloaded", start=start)


def test_sighup_takes_the_reconnect_times(node):
    """The pause is an hour, and a reload makes it short for all that come after."""
    node.start(agent={"reconnect_min": "5min", "reconnect_max": "1h"})
    reload(node.agent, reconnect_min="20ms", reconnect_max="100ms")
    node.plane.wait_watching("n1")
    node.plane.restart()
    node.agent.wait_log(r"next try in 0\.[01] s")
    driver = node.run_job("j1")
    node.wait_cancelled(node.cancel("j1"), driver)


def test_sighup_takes_the_connect_timeout(node):
    """A server that accepts and says nothing: the limit of the new connection is the new one."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        agent = Agent(node.directory, **{**GOOD, "endpoint": f"http://127.0.0.1:{silent.getsockname()[1]}",
                                         "work_directory": node.work, "connect_timeout": "5min"}).start()
        connection, _ = silent.accept()
        reload(agent, connect_timeout="200ms")
        agent.wait_log("within 200 ms")
        connection.close()


def test_sighup_takes_the_report_timeout(node):
    """The answer to a Report does not come: with the new limit it is sent again at once."""
    node.start(agent={"report_timeout": "5min"})
    reload(node.agent, report_timeout="300ms")
    node.plane.wait_watching("n1")
    node.plane.faults.add("report", "delay", seconds=20)
    node.run_job("j1")
    assert node.job_of(node.wait_done(node.cancel("j1"), timeout=15)).status == Job.CANCELLED


def test_sighup_takes_the_request_timeout(node):
    """A master that accepts and never answers holds nobody up for longer than the new limit."""
    node.start(agent={"request_timeout": "5min"}, masters=("ALIVE", "ALIVE"))
    reload(node.agent, request_timeout="200ms")
    node.plane.wait_watching("n1")
    node.masters[0].fault("hang", None, count=None)
    driver = node.run_job("j1")
    node.wait_cancelled(node.cancel("j1"), driver)


def test_sighup_takes_other_masters(node):
    """Also for a cancel that is under way: nobody answered so far, and now somebody does."""
    node.start(masters=("STANDBY",))
    driver = node.run_job("j1")
    operation = node.cancel("j1")
    node.master.wait_request("status", driver.id, timeout=LIMIT)
    added = node.add_master()
    reload(node.agent, masters=f"{node.master.url},{added.url}")
    node.wait_cancelled(operation, driver)
    assert added.requests_for("kill")
    reload(node.agent, masters=added.url, worker_hosts="192.0.2.1")  # this Worker is not ours any more
    other = node.run_job("j2")
    operation = node.cancel("j2")
    node.plane.wait_report(operation, "NOT_ON_NODE")
    assert other.alive() and not other.kills


def test_work_directory_comes_later(node):
    """The Worker is not installed yet: a warning, and watched for."""
    late = node.directory / "late" / "work"
    node.work = late
    node.start(agent={"work_directory": late, "driver_user": str(os.geteuid())})
    node.agent.wait_log("(?i)work directory")
    late.mkdir(parents=True)
    driver = node.run_job("j1")
    node.wait_cancelled(node.cancel("j1"), driver)


def test_metrics_file(node):
    path = node.directory / "agent.prom"
    node.start(agent={"metrics_file": path})
    driver = node.run_job("j1")
    node.wait_cancelled(node.cancel("j1"), driver)
    text = until(lambda: path.exists() and "CANCELLED" in path.read_text().upper() and path.read_text(), "the metrics", LIMIT)
    assert "# TYPE" in text and "# HELP" in text


def test_cancels_leave_no_descriptor_behind(node):
    """No pidfd stays open, and the connections to Spark are kept in a small pool."""
    node.start()
    need_to_look_into(node.agent.process.pid)
    directory = f"/proc/{node.agent.process.pid}/fd"

    def descriptors(kind=""):
        links = []
        for name in os.listdir(directory):
            try:
                links.append(os.readlink(f"{directory}/{name}"))
            except FileNotFoundError:
                pass
        return [link for link in links if kind in link]

    before = len(descriptors())
    for number in range(12):
        driver = node.run_job(f"j{number}")
        node.wait_cancelled(node.cancel(f"j{number}"), driver)
    until(lambda: not descriptors("pidfd"), "the end of every pidfd")
    assert len(descriptors()) <= before + 8, descriptors()
