# SPDX-License-Identifier: Apache-2.0
"""
The fifteen hard cases of cancelling a job on a node, each under its number, on the real binary.

| nr | the case | here | and in |
|----|----------|------|--------|
| 1 | the cancel meets a job that is still starting | test_01 | test_cancel: withdrawn, directory alone; simulation |
| 2 | the job ends by itself at the same moment | test_02 | test_cancel: ended by itself (both ways) |
| 3 | the agent dies between decision, signal and report | test_03 | test_restart: every stage; simulation: every crash point |
| 4 | a pid is used again; the machine was started anew | test_04 (two) | test_driver_live: pid reuse; simulation: reboots, 40 pids |
| 5 | a process that cannot be killed | test_05 | test_cancel: deadline with the driver alive |
| 6 | descendants that escaped | test_06 | test_cancel: leftovers |
| 7 | the local process is only a submitter | test_07 | test_cancel: look-alikes |
| 8 | the kill was answered by yes, or by 401 | test_08 (two) | test_cancel: lost kill, refused for good |
| 9 | the outcome cannot be delivered for long | test_09 | test_session: every refusal and loss |
| 10 | a command comes twice, stale or out of order | test_10 | test_session, test_wire: revisions |
| 11 | the command vanishes from the list | test_11 | test_restart: lost history |
| 12 | reports that the server refuses | test_12 | test_session: poisoned batch, quarantine; test_wire: each status |
| 13 | the agent is stopped during a cancel | test_13 | test_service: SIGTERM; tests/system: the unit |
| 14 | clocks | test_14 (two) | simulation: wall clock stepped by hours |
| 15 | storms, and helpers that hang | test_15 | test_cancel: ten of twenty; test_session: many |

Beside them: a job that hides its driver behind made-up ones, and a local signal where the right to send it is missing.
"""
import shutil
import sqlite3
import subprocess

import pytest

from harness import AGENT, LIMIT, Job, agent_pb2, wire

HOUR = 3600 * 1_000_000


def alter_store(node, **changes):
    """Change columns of every stored operation; the agent does not run."""
    assert not node.agent.running()
    with sqlite3.connect(node.agent.keys["state_directory"] / "agent.db") as database:
        database.execute("UPDATE operations SET " + ", ".join(f"{name} = {value}" for name, value in changes.items()))
    database.close()


def journal_tells(node, *events):
    """The log names these, in this order."""
    log, place = node.agent.log(), 0
    for event in events:
        found = log.find(event, place)
        assert found >= 0, f"{event!r} does not follow in the log"
        place = found


def test_01_cancel_meets_a_job_that_is_still_starting(node):
    """Not found is no outcome: the node keeps looking, and kills what comes."""
    node.start()
    node.plane.add_job("j1", status="PENDING")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "NOT_ON_NODE")
    assert not node.plane.operation(operation).done
    driver = node.start_driver("j1")
    node.wait_cancelled(operation, driver)
    # the exit may be seen before the master's answer
    journal_tells(node, "no driver of job j1 on this node", "driver found", "kill accepted", "outcome CANCELLED")
    journal_tells(node, "driver found", "driver is gone", "outcome CANCELLED")


def test_02_job_ends_by_itself_at_the_same_moment(node):
    """The kill is under way and nobody answers; the driver exits with 0: the real end wins, and the message says what was sent."""
    node.start()
    driver = node.run_job("j1", exit_state="FINISHED")
    node.master.fault("hang", "kill", count=1)
    operation = node.cancel("j1")
    node.master.wait_request("kill", driver.id, timeout=LIMIT)
    driver.process.exit(0)
    assert node.job_of(node.wait_done(operation)).status == Job.DONE
    report = node.final(operation)
    assert report.outcome == "ALREADY_DONE" and not report.metadata.HasField("kill_accepted_at")
    assert "ended by itself" in report.metadata.message and "none known to be accepted" in report.metadata.message


def test_03_agent_dies_between_decision_signal_and_report(node):
    """After the SIGTERM that a deaf driver ignores: the next life goes on to SIGKILL, and reports once."""
    node.start(agent={"escalation": "kill", "escalate_after": "500ms", "force_after": "4s"})
    driver = node.run_job("j1", sigterm="ignore")
    node.master.fault("lost", "kill", count=None)
    operation = node.cancel("j1")
    node.agent.wait_log("SIGTERM to driver process")
    node.agent.kill()
    assert driver.alive()
    node.agent.start()
    metadata = node.wait_cancelled(operation, driver)
    assert metadata.escalation == agent_pb2.ESCALATION_SIGKILL


def test_04_pid_is_used_again(node):
    """Another job's driver has the stored pid: its start time says that it is another process. It is left alone."""
    node.start()
    driver = node.run_job("j1", sigterm="ignore")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "IN_PROGRESS")
    node.agent.kill()
    driver.wait_gone()
    stranger = node.run_job("j2")
    alter_store(node, pid=stranger.pid)
    node.agent.start()
    node.job_of(node.wait_done(operation))
    assert node.final(operation).outcome == "CANCELLED"
    assert stranger.alive() and not stranger.kills


def test_04_reboot_between_kill_and_report(node):
    """Another boot id: the process is gone, whoever has its pid now. What was stored says how it ended."""
    node.start()
    driver = node.run_job("j1", sigterm="ignore")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "IN_PROGRESS")
    node.agent.kill()
    driver.wait_gone()
    stranger = node.run_job("j2")
    alter_store(node, boot_id="'00000000-0000-4000-8000-000000000000'", pid=stranger.pid)
    node.agent.start()
    node.job_of(node.wait_done(operation))
    report = node.final(operation)
    assert report.outcome == "CANCELLED" and report.metadata.HasField("kill_accepted_at")
    assert stranger.alive() and not stranger.kills


def test_05_process_that_cannot_be_killed(node):
    """Spark says KILLED, the process lives: told as it is, with the evidence; the next job is not held up by it."""
    node.start(agent={"worker_terminate_timeout": "200ms", "kill_retry": "500ms"})
    driver = node.run_job("j1")
    node.cluster.on_kill = lambda record: node.cluster.set_state(record.id, "KILLED")
    operation = node.cancel("j1", deadline=2)
    assert node.wait_done(operation).error.code == 13
    report = node.final(operation)
    assert report.outcome == "DRIVER_SURVIVED" and driver.alive()
    assert report.metadata.driver_state == "KILLED" and not report.metadata.HasField("ended_at")
    assert str(driver.pid) in report.metadata.message and driver.id in report.metadata.message
    node.cluster.on_kill = None
    other = node.run_job("j2")
    node.wait_cancelled(node.cancel("j2"), other)
    assert driver.alive()


def test_06_escaped_descendants(node):
    """Two children outlive the driver, one in another directory: counted, named in report and journal, and left."""
    node.start()
    driver, other = node.run_job("j1"), node.run_job("j2")
    escaped = [driver.process.spawn(["python3", "daemon.py"], directory, FAKEJVM_EOF="stay")
               for directory in ("/", node.work / driver.id)]
    operation = node.cancel("j1")
    metadata = node.wait_cancelled(operation, driver)
    assert metadata.leftover_processes == 2 and other.alive()
    for process in escaped:
        assert process.alive() and str(process.pid) in metadata.message
        node.agent.wait_log(f"has left 2 processes behind.*{process.pid}")


def test_07_submitter_is_not_touched(node):
    """spark-submit, in client or cluster mode, names the job id as a driver does: it is none, and lives on."""
    node.start()
    arguments = ["--conf", "spark.yandex.job.id=j1", "-Dspark.yandex.job.id=j1", "--class", "Main", "job.jar"]
    submitters = [node.root(["java", "-Dspark.yandex.job.id=j1", "-cp", "x", "org.apache.spark.deploy.SparkSubmit", "--deploy-mode",
                             mode, *arguments]) for mode in ("client", "cluster")]
    driver = node.run_job("j1")
    node.wait_cancelled(node.cancel("j1"), driver)
    assert all(submitter.alive() for submitter in submitters)


def test_08_accepted_is_not_dead(node):
    """Spark has accepted the kill, twice, and nothing happened: the operation stays open until the process is gone."""
    node.start(agent={"worker_terminate_timeout": "200ms", "kill_retry": "500ms"})
    driver = node.run_job("j1")
    node.master.fault("lost", "kill", count=2)
    operation = node.cancel("j1")
    node.master.wait_request("kill", driver.id, count=2, timeout=LIMIT)
    assert driver.alive() and not node.plane.operation(operation).done and not node.finals(operation)
    assert node.wait_cancelled(operation, driver).kill_requests == 3


def test_08_401_is_retried(node):
    """Not authorized, for a while (a token that is rotated): never CANCELLED on hope, never given up at once."""
    node.start(agent={"worker_terminate_timeout": "1s", "kill_retry": "30s"})
    driver = node.run_job("j1")
    node.master.fault("status", "kill", count=2, code=401)
    metadata = node.wait_cancelled(node.cancel("j1"), driver)
    assert metadata.kill_requests == 3
    journal_tells(node, "not accepted", "not accepted", "kill accepted")


def test_09_outcome_cannot_be_delivered_for_long(node):
    """The control plane is away, the driver dies, the agent is killed twice: one report, when it is back."""
    node.start()
    driver = node.run_job("j1", sigterm="ignore")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "IN_PROGRESS")
    node.plane.stop()
    driver.wait_gone()
    node.agent.wait_log("outcome CANCELLED")
    for _ in range(2):
        node.agent.restart()
    node.plane.start()
    node.wait_cancelled(operation, driver)
    node.agent.wait_log("report acknowledged")


def test_10_command_comes_twice_and_late(node):
    """While it runs, after its end, and after a restart: the stored answer, unchanged, and no second kill."""
    node.start()
    driver = node.run_job("j1")
    operation = node.cancel("j1")
    event = node.plane.state.row("SELECT event FROM log WHERE operation_id = ? AND kind = 'cancel'", operation)["event"]
    node.plane.inject(event)
    node.wait_cancelled(operation, driver)
    node.agent.wait_log("report acknowledged")
    again = node.start_driver("j1")  # the job runs once more, for another reason
    node.agent.restart()
    node.plane.wait_watching("n1")
    node.plane.inject(event)
    node.plane.wait_report(operation, "CANCELLED", disposition="ALREADY_APPLIED")
    assert len(node.finals(operation)) == 1 and len(driver.kills) == 1
    assert again.alive() and not again.kills


def test_11_command_vanishes_from_the_list(node):
    """The control plane has lost everything while the driver dies: what was accepted is finished, and its report is let go."""
    node.start()
    driver, bystander = node.run_job("j1", sigterm="ignore"), node.run_job("j2")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "IN_PROGRESS")
    node.plane.stop()
    for file in node.directory.glob("plane.db*"):
        file.unlink()
    driver.wait_gone()
    node.agent.wait_log("outcome CANCELLED")
    node.plane.start()
    node.agent.wait_log("report acknowledged")  # UNKNOWN_OPERATION ends the duty
    assert bystander.alive() and not bystander.kills


def test_12_report_that_the_server_refuses(node):
    """Refused for its content: kept and shown, not sent in a loop, and other reports get through."""
    node.start()
    driver, other = node.run_job("j1"), node.run_job("j2")
    operation = node.cancel("j1")
    fault = node.plane.faults.add("report", "reject", operation=operation, times=0)
    driver.wait_gone()
    node.agent.wait_log("rejected the report of job j1: kept, not sent again")
    hits = fault.hits
    node.wait_cancelled(node.cancel("j2"), other)
    assert fault.hits == hits and not node.plane.operation(operation).done


def test_13_agent_is_stopped_during_a_cancel(node):
    """SIGTERM: no new work, a clean end; the driver is not taken along; the next start finishes the cancel."""
    node.start()
    driver, other = node.run_job("j1", sigterm="ignore"), node.run_job("j2")
    operation = node.cancel("j1")
    node.agent.wait_log("kill accepted")
    node.agent.stop()
    assert other.alive()
    driver.wait_gone()
    node.agent.start()
    node.wait_cancelled(operation, driver)
    assert other.alive() and not other.kills


@pytest.mark.parametrize("step", [-5 * HOUR, 5 * HOUR], ids=["back", "forward"])
def test_14_clock_was_stepped_while_the_machine_was_off(node, step):
    """After a reboot times are made anew from the wall clock: a wrong one shortens a deadline, and never adds to it."""
    node.start(agent={"worker_terminate_timeout": "200ms", "kill_retry": "500ms"}, plane={"deadline_grace": 30.0})
    driver = node.run_job("j1")
    node.master.fault("lost", "kill", count=None)
    operation = node.cancel("j1", deadline=20)
    node.plane.wait_report(operation, "IN_PROGRESS")  # its commit stored that the kill was accepted
    node.agent.kill()
    alter_store(node, boot_id="'00000000-0000-4000-8000-000000000000'",
                **{name: f"{name} - ({step})" for name in ("received_real_usec", "deadline_real_usec", "accepted_real_usec")})
    driver.process.kill()
    driver.wait_gone()
    begun = wire.now_usec()
    node.agent.start()
    node.job_of(node.wait_done(operation))
    assert node.final(operation).outcome == "CANCELLED"
    assert wire.now_usec() - begun < 60 * 1_000_000


def test_15_storm_with_a_helper_that_hangs(node):
    """Twenty cancels at once, and one request that nobody answers: the others do not wait for it."""
    node.start(agent={"request_timeout": "20s"}, plane={"poll": 3600})
    stuck = node.run_job("stuck")
    drivers = [node.run_job(f"j{number}") for number in range(20)]
    node.master.fault("hang", "status", count=1)
    held = node.cancel("stuck")
    node.master.wait_request("status", stuck.id, timeout=LIMIT)
    operations = [node.cancel(f"j{number}") for number in range(20)]
    for operation, driver in zip(operations, drivers):
        node.wait_cancelled(operation, driver)
    assert stuck.alive() and not node.plane.operation(held).done
    node.wait_cancelled(held, stuck)


# ---- beside the fifteen

def decoy(node, job_id, driver_id, **record):
    """A process that says it is that driver of that job; the record is of another one."""
    return node.start_driver(job_id, driver_id=driver_id, **record)


def test_job_that_hides_its_driver(node):
    """Younger processes of the same job claim driver ids that Spark places on another node, or does not know: the real one
    is found behind them, killed, and the others neither touched nor in the way."""
    node.start()
    driver = node.run_job("j1")
    elsewhere = [decoy(node, "j1", node.next_driver_id(), worker_host_port="192.0.2.7:7078") for _ in range(3)]
    metadata = node.wait_cancelled(node.cancel("j1"), driver)
    assert metadata.driver_id == driver.id
    assert all(one.alive() and not one.kills for one in elsewhere)
    node.agent.wait_log("Spark places that driver on 192.0.2.7:7078: left alone")


def test_job_that_hides_its_driver_behind_one_that_ended(node):
    """The decoy has the id of a driver of this node that ended long ago: "already finished" is no reason to stop looking."""
    node.start(agent={"worker_terminate_timeout": "200ms", "kill_retry": "500ms"})
    driver = node.run_job("j1")
    old = node.next_driver_id()
    fake = decoy(node, "j1", old)
    node.cluster.set_state(old, "FINISHED")
    operation = node.cancel("j1")
    driver.wait_gone()
    fake.process.exit(0)
    node.job_of(node.wait_done(operation))
    assert node.final(operation).outcome in ("CANCELLED", "ALREADY_DONE")


def test_escalation_without_the_right_to_signal_is_refused(node):
    """At the start, with exit code 78 and the key's name: not when the signal is needed."""
    setpriv = shutil.which("setpriv")
    if not setpriv:
        pytest.skip("setpriv (util-linux) is not installed")
    node.add_master()
    node.start_plane()
    agent = node.make_agent(escalation="term", driver_user="nobody")
    agent.write_config()
    for arguments in (["--check-config"], []):
        done = subprocess.run([setpriv, "--bounding-set=-kill", AGENT, f"--config={agent.config}", *arguments],
                              capture_output=True, text=True, timeout=LIMIT)
        assert done.returncode == 78 and "escalation" in done.stderr and "CAP_KILL" in done.stderr, done
