# SPDX-License-Identifier: Apache-2.0
"""
One cancel, from the caller's Cancel to the operation's end: every outcome that can be reached, and what must not be touched.
"""
import os

import pytest

from harness import CLUSTER, VERSION, Job, agent_pb2, driver_argv, rules, wire


def usec(stamp):
    return wire.from_timestamp(stamp)


# ---- CANCELLED

def test_plain_cancel(node):
    node.start()
    driver, other = node.run_job("j1"), node.run_job("j2")
    operation = node.cancel("j1")
    metadata = node.wait_cancelled(operation, driver)
    assert other.alive() and not other.kills and len(driver.kills) == 1
    assert (metadata.cluster_id, metadata.job_id, metadata.driver_state) == (CLUSTER, "j1", "KILLED")
    received, now = usec(metadata.received_at), wire.now_usec()
    assert 0 < received <= usec(metadata.kill_accepted_at) <= now  # the end may be seen before Spark's answer
    assert received <= usec(metadata.ended_at) <= now
    assert (metadata.kill_requests, metadata.escalation, metadata.leftover_processes) == (1, agent_pb2.ESCALATION_NONE, 0)
    assert metadata.agent_version == VERSION
    outcomes = [r.outcome for r in node.plane.reports(operation)]
    assert outcomes[-1] == "CANCELLED" and set(outcomes) <= {"IN_PROGRESS", "CANCELLED"}  # progress may be overtaken
    sequences = [r.sequence for r in node.plane.reports(operation)]
    assert sequences == sorted(set(sequences)) and sequences[0] > 0
    reported = wire.unpack(node.final(operation).operation.response, Job)
    assert reported.name == "daily report" and reported.HasField("started_at") and reported.HasField("finished_at")
    assert node.plane.job("j1").status == Job.CANCELLED and node.plane.job("j2").status == Job.RUNNING


def test_command_before_the_driver(node):
    """A job that is still starting: the node keeps looking."""
    node.start()
    node.plane.add_job("j1", status="PENDING")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "NOT_ON_NODE")
    driver = node.start_driver("j1")
    node.wait_cancelled(operation, driver)


def test_driver_that_exits_0_on_sigterm(node):
    """Spark calls it FINISHED, but a kill was accepted."""
    node.start()
    driver = node.run_job("j1", sigterm="exit0", killed_state="FINISHED")
    metadata = node.wait_cancelled(node.cancel("j1"), driver)
    assert metadata.driver_state == "FINISHED" and metadata.HasField("kill_accepted_at")


def test_stubborn_driver(node):
    """It ignores SIGTERM; the Worker kills it when its time is over."""
    node.start()
    driver = node.run_job("j1", sigterm="ignore")
    operation = node.cancel("j1")
    node.wait_cancelled(operation, driver)
    first, last = node.plane.reports(operation)
    assert (first.outcome, last.outcome) == ("IN_PROGRESS", "CANCELLED")
    assert first.metadata.job_status == Job.CANCELLING and first.metadata.driver_id == driver.id


def test_kill_that_was_lost_is_asked_again(node):
    """Master to Worker is a one-way message; the answer said success all the same."""
    node.start(agent={"worker_terminate_timeout": "200ms", "kill_retry": "500ms"})
    driver = node.run_job("j1")
    node.master.fault("lost", "kill", count=2)
    metadata = node.wait_cancelled(node.cancel("j1"), driver)
    assert metadata.kill_requests == 3 == len(driver.kills)


def test_kill_whose_answer_was_lost(node):
    """Nobody told the agent, but Spark says KILLED."""
    node.start()
    driver = node.run_job("j1")
    node.master.fault("unanswered", "kill", count=None)
    metadata = node.wait_cancelled(node.cancel("j1"), driver)
    assert metadata.driver_state == "KILLED" and metadata.kill_requests >= 1


def test_killed_by_somebody_else(node):
    """Spark says KILLED although our own request never got through."""
    node.start()
    driver = node.run_job("j1")
    node.master.fault("status", "kill", count=None, code=503)
    operation = node.cancel("j1")
    node.master.wait_request("kill", driver.id)
    node.cluster.kill(driver.id)
    metadata = node.wait_cancelled(operation, driver)
    assert metadata.driver_state == "KILLED" and not metadata.HasField("kill_accepted_at")


def test_command_that_names_the_driver(node):
    node.start(plane={"send_driver_id": True})
    driver = node.run_job("j1")
    node.wait_cancelled(node.cancel("j1"), driver)


def test_supervised_driver_comes_back_under_a_new_id(node):
    """After a failover: the id that was killed is gone, the job runs again under another one."""
    node.start(agent={"relaunch_window": "3s"})
    first = node.run_job("j1", supervised=True)
    operation = node.cancel("j1")
    first.wait_gone()
    second = node.start_driver("j1", before=["-Dspark.driver.supervise=true"])
    metadata = node.wait_cancelled(operation, second)
    assert not first.alive() and metadata.kill_requests >= 2
    assert first.id in metadata.message and second.id in metadata.message


def test_supervised_driver_comes_back_under_the_same_id(node):
    """The Worker starts it again after its back-off: the kill was lost and the driver died by itself."""
    node.start(agent={"worker_terminate_timeout": "200ms", "kill_retry": "500ms", "relaunch_window": "2s"})
    first = node.run_job("j1", supervised=True, exit_state=None)
    node.master.fault("lost", "kill")
    operation = node.cancel("j1")
    node.master.wait_request("kill", first.id)
    first.process.exit(1)
    first.wait_gone()
    second = node.start_driver("j1", driver_id=first.id, before=["-Dspark.driver.supervise=true"])
    node.wait_cancelled(operation, second)


def test_ten_of_twenty(node):
    node.start()
    drivers = [node.run_job(f"j{number}") for number in range(20)]
    operations = {number: node.cancel(f"j{number}") for number in range(0, 20, 2)}
    for number, operation in operations.items():
        node.wait_cancelled(operation, drivers[number])
    for number in range(1, 20, 2):
        assert drivers[number].alive() and not drivers[number].kills
        assert node.plane.job(f"j{number}").status == Job.RUNNING


# ---- escalation

@pytest.mark.parametrize("escalation, sigterm, said", [
    ("term", "die", agent_pb2.ESCALATION_SIGTERM), ("kill", "ignore", agent_pb2.ESCALATION_SIGKILL)])
def test_escalation(node, escalation, sigterm, said):
    """Only where the operator allows it: the kill is accepted and nothing happens."""
    node.start(agent={"escalation": escalation, "escalate_after": "1s", "force_after": "1s"})
    driver = node.run_job("j1", sigterm=sigterm)
    node.master.fault("lost", "kill", count=None)
    metadata = node.wait_cancelled(node.cancel("j1"), driver)
    assert metadata.escalation == said


def test_escalation_when_no_master_answers(node):
    node.start(agent={"escalation": "term", "escalate_after": "1s"})
    driver = node.run_job("j1")
    node.master.fault("status", "kill", count=None, code=503)
    metadata = node.wait_cancelled(node.cancel("j1"), driver)
    assert metadata.escalation == agent_pb2.ESCALATION_SIGTERM and not metadata.HasField("kill_accepted_at")


# ---- the job won

@pytest.mark.parametrize("state, outcome, status", [("FINISHED", "ALREADY_DONE", Job.DONE), ("FAILED", "ALREADY_FAILED", Job.ERROR)])
def test_ended_by_itself_before_the_command(node, state, outcome, status):
    """The command names the driver, its directory is here, and Spark places it on this node's Worker."""
    node.start(plane={"send_driver_id": True, "poll": 3600})
    driver = node.run_job("j1", exit_state=state)
    driver.process.exit(0)
    node.cluster.wait_state(driver.id, state)
    operation = node.cancel("j1")
    assert node.job_of(node.wait_done(operation)).status == status
    report = node.final(operation)
    assert report.outcome == outcome and report.metadata.driver_state == state
    assert not driver.kills and report.metadata.kill_requests == 0


@pytest.mark.parametrize("state, code, outcome", [("FINISHED", 0, "ALREADY_DONE"), ("FAILED", 1, "ALREADY_FAILED")])
def test_ended_by_itself_before_the_kill_got_through(node, state, code, outcome):
    node.start()
    driver = node.run_job("j1", exit_state=state)
    node.master.fault("status", "kill", count=None, code=503)
    operation = node.cancel("j1")
    node.master.wait_request("kill", driver.id)
    driver.process.exit(code)
    job = node.job_of(node.wait_done(operation))
    report = node.final(operation)
    assert report.outcome == outcome and job.status == report.metadata.job_status
    assert not report.metadata.HasField("kill_accepted_at") and report.metadata.HasField("ended_at")
    assert report.metadata.kill_requests >= 1 and report.metadata.message


# ---- errors

def test_job_that_no_node_has(node):
    node.start()
    node.plane.add_job("j1")
    operation = node.cancel("j1")
    done = node.wait_done(operation)
    assert done.error.code == 5
    assert [r.outcome for r in node.plane.reports(operation)] == ["NOT_ON_NODE"]
    assert node.plane.job("j1").status == Job.RUNNING
    node.agent.wait_log("withdrawn")


def test_deadline_with_the_driver_alive(node):
    node.start(agent={"worker_terminate_timeout": "200ms", "kill_retry": "500ms"})
    driver = node.run_job("j1")
    node.master.fault("lost", "kill", count=None)
    operation = node.cancel("j1", deadline=1.5)
    done = node.wait_done(operation)
    report = node.final(operation)
    assert done.error.code == 4 and report.outcome == "DEADLINE_EXCEEDED" and driver.alive()
    assert report.metadata.kill_requests >= 2 and not report.metadata.HasField("ended_at")
    assert node.plane.job("j1").status == Job.RUNNING


def test_deadline_that_passes_while_searching(node):
    """Nobody has the driver: no report, and the control plane ends it."""
    node.start(plane={"deadline_grace": 0.5})
    node.plane.add_job("j1", status="PENDING")
    operation = node.cancel("j1", deadline=0.5)
    assert node.wait_done(operation).error.code == 4
    assert not node.finals(operation)


def test_deadline_past_at_arrival(node):
    """No kill any more; the node that has the driver says so."""
    node.start()
    driver = node.run_job("j1")
    metadata = wire.pack(wire.CreateJobMetadata(cluster_id=CLUSTER, job_id="j1"))
    command = wire.Operation(id="late", description="Cancel Spark job", metadata=metadata)
    node.plane.inject_cancel(command, job_id="j1", deadline=wire.now_usec() - 1000)
    node.plane.wait_report("late", "DEADLINE_EXCEEDED")
    assert driver.alive() and not driver.kills


def test_driver_that_survives_its_death(node):
    """Spark says KILLED, the process lives: the worst case must be told as it is."""
    node.start(agent={"worker_terminate_timeout": "200ms", "kill_retry": "500ms"})
    driver = node.run_job("j1")
    node.cluster.on_kill = lambda record: node.cluster.set_state(record.id, "KILLED")
    operation = node.cancel("j1", deadline=2)
    assert node.wait_done(operation).error.code == 13
    assert node.final(operation).outcome == "DRIVER_SURVIVED" and driver.alive()
    assert node.plane.job("j1").status == Job.RUNNING


def test_no_master_can_be_reached(node):
    node.start(masters=("ALIVE", "ALIVE"))
    driver = node.run_job("j1")
    for master in node.masters:
        master.stop()
    operation = node.cancel("j1", deadline=1.5)
    done = node.wait_done(operation)
    assert done.error.code == 14 and node.final(operation).outcome == "SPARK_UNREACHABLE"
    assert driver.alive() and done.error.message
    info = wire.unpack(done.error.details[0], wire.error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == ("SPARK_UNREACHABLE", "spark-cancel-agent")


@pytest.mark.parametrize("route", [None, "kill"], ids=["everything", "kill"])
@pytest.mark.parametrize("code, error", [(403, 7), (404, 9)])
def test_spark_refuses_for_good(node, route, code, error):
    """JWSFilter refuses every request; a proxy may let status through and not kill."""
    node.start(agent={"worker_terminate_timeout": "100ms", "kill_retry": "300ms"})
    driver = node.run_job("j1")
    node.master.fault("status", route, count=None, code=code)
    operation = node.cancel("j1")
    assert node.wait_done(operation).error.code == error
    assert node.final(operation).outcome == "SPARK_REFUSED" and driver.alive()


def test_lost_driver(node):
    """The process is gone, no kill was accepted, and no ALIVE master knows the id any more."""
    node.start(agent={"worker_terminate_timeout": "100ms", "kill_retry": "300ms"})
    driver = node.run_job("j1")
    node.master.fault("status", "kill", count=None, code=503)
    operation = node.cancel("j1")
    node.master.wait_request("kill", driver.id)
    node.cluster.forget(driver.id)
    driver.process.exit(1)
    assert node.wait_done(operation).error.code == 10
    assert node.final(operation).outcome == "DRIVER_LOST"


# ---- what a driver leaves behind

def spawn_child(node, driver, directory=None, **environment):
    """A process that the driver started; it outlives the driver."""
    return driver.process.spawn(["python3", "worker.py"], directory or node.work / driver.id, FAKEJVM_EOF="stay", **environment)


def seconds_to_outcome(report):
    """From the driver's end to the outcome, by the agent's own clock."""
    return (usec(report.operation.modified_at) - usec(report.metadata.ended_at)) / 1e6


def test_leftovers_are_counted_and_left(node):
    """A child that outlives the driver does not hinder CANCELLED and is not signalled."""
    node.start()
    driver, other = node.run_job("j1"), node.run_job("j2")
    child, others = spawn_child(node, driver, "/"), spawn_child(node, other)
    operation = node.cancel("j1")
    metadata = node.wait_cancelled(operation, driver)
    assert metadata.leftover_processes == 1 and f"{child.pid} (java)" in metadata.message
    assert metadata.escalation == agent_pb2.ESCALATION_NONE and 2 <= seconds_to_outcome(node.final(operation)) < 10
    assert child.alive() and others.alive() and str(others.pid) not in metadata.message
    node.agent.wait_log(f"left.* behind.*{child.pid}")


def test_leftover_that_ends_is_none(node):
    """Most end a moment after the driver: then the outcome does not wait for the whole two seconds."""
    node.start()
    driver = node.run_job("j1")
    child = spawn_child(node, driver)
    operation = node.cancel("j1")
    node.agent.wait_log("driver is gone")
    child.kill()
    metadata = node.wait_cancelled(operation, driver)
    assert metadata.leftover_processes == 0 and "left behind" not in metadata.message
    assert seconds_to_outcome(node.final(operation)) < 1.9


def test_without_leftover_nothing_is_waited_for(node):
    node.start()
    driver, other = node.run_job("j1"), node.run_job("j2")
    spawn_child(node, other)
    operation = node.cancel("j1")
    node.wait_cancelled(operation, driver)
    assert seconds_to_outcome(node.final(operation)) < 0.9


def test_leftover_that_a_restarted_agent_has_not_noted(node):
    """What works in the driver's directory is counted, what only was a child of it is not known any more."""
    node.start(agent={"escalation": "kill"})
    driver = node.run_job("j1", sigterm="ignore")
    in_directory, elsewhere = spawn_child(node, driver), spawn_child(node, driver, "/")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "IN_PROGRESS")
    node.agent.kill()
    driver.wait_gone()
    node.agent.start()
    metadata = node.wait_cancelled(operation, driver)
    assert metadata.leftover_processes == 1 and str(in_directory.pid) in metadata.message
    assert metadata.escalation == agent_pb2.ESCALATION_NONE
    assert in_directory.alive() and elsewhere.alive()  # a working directory proves nothing: no signal


@pytest.mark.parametrize("escalation", ["term", "kill"])
def test_leftovers_are_ended_where_escalation_allows(node, escalation):
    node.start(agent={"escalation": escalation})
    driver, other = node.run_job("j1"), node.run_job("j2")
    child, deaf = spawn_child(node, driver), spawn_child(node, driver, FAKEJVM_SIGTERM="ignore")
    others = spawn_child(node, other)
    metadata = node.wait_cancelled(node.cancel("j1"), driver)
    child.wait_gone()
    assert deaf.alive() == (escalation == "term")
    assert metadata.leftover_processes == (1 if escalation == "term" else 0)
    assert metadata.escalation == (agent_pb2.ESCALATION_SIGTERM if escalation == "term" else agent_pb2.ESCALATION_SIGKILL)
    assert other.alive() and others.alive()


# ---- masters

def test_first_master_is_standby(node):
    node.start(masters=("STANDBY", "ALIVE"))
    driver = node.run_job("j1")
    node.wait_cancelled(node.cancel("j1"), driver)
    assert not node.masters[0].requests_for("kill") or node.masters[1].requests_for("kill")


@pytest.mark.parametrize("trouble", ["STANDBY", "hang", "stopped"])
def test_master_comes_back(node, trouble):
    """A failover lasts a minute or two: the agent goes on asking."""
    node.start()
    driver = node.run_job("j1")
    if trouble == "hang":
        node.master.fault("hang", count=2)
    elif trouble == "STANDBY":
        node.master.mode = "STANDBY"
    else:
        node.master.stop()
    operation = node.cancel("j1")
    if trouble == "stopped":
        node.agent.wait_log("(?i)driver.*j1|j1.*driver")
        node.master.start()
    else:
        node.master.wait_request("status", driver.id, count=2, timeout=30)
        node.master.mode = "ALIVE"
    node.wait_cancelled(operation, driver)


# ---- what must not be touched

def lookalikes(node):
    """Processes that bear the job's id and are not its driver: name -> how to start one."""
    work, other = node.work, node.directory / "elsewhere"
    other.mkdir()

    def argv(driver_id, **changes):
        return driver_argv(work, driver_id, "j1", **changes)

    def drop(argv, prefix):
        return [element for element in argv if not element.startswith(prefix)]

    wrapper = "org.apache.spark.deploy.worker.DriverWrapper"
    return {
        "no DriverWrapper": lambda d: argv(d, main="com.example.Main"),
        "the id after the main class": lambda d: drop(argv(d), "-Dspark.yandex") + ["-Dspark.yandex.job.id=j1"],
        "inside another property": lambda d: drop(argv(d, before=["-Dspark.driver.extraJavaOptions=-Dspark.yandex.job.id=j1"]),
                                                  "-Dspark.yandex"),
        "argument of -cp": lambda d: drop(argv(d, before=["-cp", "-Dspark.yandex.job.id=j1"]), "-Dspark.yandex")[:0] + [
            "java", "-cp", "-Dspark.yandex.job.id=j1", wrapper, "spark://Worker@127.0.0.1:7078", f"{work}/{d}/job.jar", "Main"],
        "a decoy behind the real id": lambda d: ["java", "-Dspark.yandex.job.id=j9", *argv(d)[1:]],
        "longer id": lambda d: driver_argv(work, d, "j11"),
        "jar outside the work directory": lambda d: argv(d, jar=f"{other}/{d}/job.jar"),
        "jar of another driver": lambda d: argv(d, jar=f"{work}/driver-other/job.jar"),
        "submitter": lambda d: ["java", "-cp", "x", "org.apache.spark.deploy.SparkSubmit", "--conf", "spark.yandex.job.id=j1",
                                "--class", "Main", "job.jar"],
    }


def test_lookalikes_are_left_alone(node):
    node.start()
    started = {}
    for name, make in lookalikes(node).items():
        driver_id = node.next_driver_id()
        started[name] = node.start_driver("j1", driver_id, argv=make(driver_id))
    driver_id = node.next_driver_id()
    (node.work / driver_id).mkdir()
    impostor = node.root(driver_argv(node.work, driver_id, "j1"))  # its parent is no Worker
    shell = node.root(["bash", "start.sh", "org.apache.spark.deploy.worker.Worker"])
    started["a parent that only names the Worker"] = node.start_driver("j1", worker=shell, register=False)
    node.plane.add_job("j1")
    operation = node.cancel("j1")
    assert node.wait_done(operation).error.code == 5
    assert [r.outcome for r in node.plane.reports(operation)] == ["NOT_ON_NODE"]
    real = node.run_job("j2")
    node.wait_cancelled(node.cancel("j2"), real)  # the node works, and has scanned again
    for name, driver in started.items():
        assert driver.alive(), name
    assert impostor.alive() and not [r for r in node.master.requests_for("kill") if r.driver_id != real.id]


def test_lookalikes_beside_the_real_one(node):
    node.start()
    others = []
    for make in lookalikes(node).values():
        driver_id = node.next_driver_id()
        others.append(node.start_driver("j1", driver_id, argv=make(driver_id)))
    driver = node.run_job("j1")
    node.wait_cancelled(node.cancel("j1"), driver)
    assert all(other.alive() and not other.kills for other in others)


def test_driver_of_another_user(node):
    if os.geteuid() != 0:
        pytest.skip("only root can make a process of another user")
    node.start(agent={"driver_user": "nobody"})
    driver = node.run_job("j1")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "NOT_ON_NODE")
    assert driver.alive() and not driver.kills


def test_driver_that_spark_places_elsewhere(node):
    """A job that claims a driver id of another node must not get that one killed."""
    node.start(plane={"deadline_grace": 0.5})
    driver = node.run_job("j1", worker_host_port="192.0.2.7:7078")
    operation = node.cancel("j1", deadline=2)
    node.plane.wait_report(operation, "NOT_ON_NODE")
    assert node.wait_done(operation).error.code == 4
    assert driver.alive() and not driver.kills and not node.finals(operation)


def test_driver_id_that_two_jobs_claim(node):
    """One of them lies; neither is killed."""
    node.start()
    driver = node.run_job("j1")
    thief = node.start_driver("j2", driver_id=driver.id, register=False)
    node.plane.add_job("j2")
    for job_id in ("j1", "j2"):
        node.plane.wait_report(node.cancel(job_id), "NOT_ON_NODE")
    real = node.run_job("j3")
    node.wait_cancelled(node.cancel("j3"), real)
    assert driver.alive() and thief.alive() and not driver.kills


def test_command_that_names_another_jobs_driver(node):
    """The process counts, not the driver id of the command."""
    node.start()
    driver, victim = node.run_job("j1"), node.run_job("j2")
    metadata = wire.pack(wire.CreateJobMetadata(cluster_id=CLUSTER, job_id="j1"))
    command = wire.Operation(id="op-1", description="Cancel Spark job", metadata=metadata)
    node.plane.inject_cancel(command, job_id="j1", driver_id=victim.id)
    node.plane.wait_done("op-1")
    assert not driver.alive() and victim.alive() and not victim.kills


# ---- dry run, duplicates, withdrawn

def test_dry_run(node):
    node.start()
    driver = node.run_job("j1")
    operation = node.cancel("j1", dry_run=True)
    assert node.job_of(node.wait_done(operation)).status == Job.RUNNING
    report = node.final(operation)
    assert report.outcome == "DRY_RUN" and report.metadata.driver_id == driver.id
    assert driver.alive() and not driver.kills
    node.wait_cancelled(node.cancel("j1"), driver)


def test_command_that_comes_twice(node):
    node.start()
    driver = node.run_job("j1")
    operation = node.cancel("j1")
    row = node.plane.state.row("SELECT event FROM log WHERE operation_id = ? AND kind = 'cancel'", operation)
    node.plane.inject(row["event"])
    node.wait_cancelled(operation, driver)
    node.plane.inject(row["event"])
    node.plane.wait_report(operation, "CANCELLED", disposition="ALREADY_APPLIED")  # the stored answer, unchanged
    assert len(node.finals(operation)) == 1 and len(driver.kills) == 1


def test_late_copy_does_not_touch_a_new_driver(node):
    """The operation has ended; the same job runs again; the command comes once more."""
    node.start()
    driver = node.run_job("j1")
    operation = node.cancel("j1")
    node.wait_cancelled(operation, driver)
    again = node.start_driver("j1")
    row = node.plane.state.row("SELECT event FROM log WHERE operation_id = ? AND kind = 'cancel'", operation)
    node.plane.inject(row["event"])
    node.plane.wait_report(operation, "CANCELLED", disposition="ALREADY_APPLIED")
    assert again.alive() and not again.kills


def test_withdrawn_while_searching(node):
    node.start()
    node.plane.add_job("j1", status="PENDING")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "NOT_ON_NODE")
    node.plane.withdraw(operation)
    other = node.run_job("j2")
    second = node.cancel("j2")
    driver = node.start_driver("j1")
    node.wait_cancelled(second, other)
    third = node.run_job("j3")
    node.wait_cancelled(node.cancel("j3"), third)  # by now j1's driver was scanned
    assert driver.alive() and not driver.kills and not node.finals(operation)


def test_withdrawn_before_the_command(node):
    """An id that is not known is remembered: the late command is not acted on."""
    node.start()
    driver = node.run_job("j1")
    metadata = wire.pack(wire.CreateJobMetadata(cluster_id=CLUSTER, job_id="j1"))
    command = wire.Operation(id="op-1", description="Cancel Spark job", metadata=metadata).SerializeToString()
    node.plane.inject(rules.withdrawn_event("op-1"))
    node.plane.inject(rules.cancel_event(command))
    other = node.run_job("j2")
    node.wait_cancelled(node.cancel("j2"), other)
    assert driver.alive() and not driver.kills and not node.plane.reports("op-1")


def test_withdrawn_after_the_kill_was_sent(node):
    """It goes to its end and is reported."""
    node.start()
    driver = node.run_job("j1", sigterm="ignore")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "IN_PROGRESS")
    node.master.wait_request("kill", driver.id, timeout=30)
    node.plane.withdraw(operation)
    node.plane.wait_report(operation, "CANCELLED", disposition="SUPERSEDED")
    driver.wait_gone()


# ---- commands that are none

def broken_commands():
    def operation(name, cluster_id=CLUSTER, job_id="j1", **fields):
        metadata = wire.pack(wire.CreateJobMetadata(cluster_id=cluster_id, job_id=job_id))
        return wire.Operation(**{"id": name, "description": "Cancel Spark job", "metadata": metadata, **fields})

    yield "another cluster", operation("bad-cluster", cluster_id="c2"), {}
    yield "no cluster", operation("no-cluster", cluster_id=""), {}
    yield "no job id", operation("no-job", job_id=""), {}
    yield "long job id", operation("long-job", job_id="j" * 51), {}
    yield "space in the job id", operation("space-job", job_id="j 1"), {}
    yield "NUL in the job id", operation("nul-job", job_id="j1\0"), {}
    yield "job id is not ASCII", operation("utf-job", job_id="j\u00e9"), {}
    yield "newline in the job id", operation("line-job", job_id="j\n1"), {}
    yield "metadata of another type", operation("bad-type", metadata=wire.pack(Job(id="j1", cluster_id=CLUSTER))), {}
    yield "no metadata", wire.Operation(id="no-metadata"), {}
    yield "metadata is garbage", operation("bad-metadata", metadata={
        "type_url": "type.googleapis.com/yandex.cloud.spark.v1.CreateJobMetadata", "value": b"\x0a\xff"}), {}
    yield "driver id ..", operation("dots"), {"driver_id": ".."}
    yield "slash in the driver id", operation("slash"), {"driver_id": "a/b"}
    yield "long driver id", operation("long-driver"), {"driver_id": "d" * 129}
    yield "oversize", operation("oversize", description="x" * 17000), {}


def test_broken_commands_are_refused(node):
    node.start()
    driver = node.run_job("j1")
    expected = []
    for _, operation, more in broken_commands():
        node.plane.inject_cancel(operation, job_id="j1", **more)
        expected.append(operation.id)
    for (name, _, _), operation_id in zip(broken_commands(), expected):
        done = node.plane.wait_done(operation_id)
        assert done.error.code == 3, name
        assert node.final(operation_id).outcome == "INVALID_COMMAND", name
    assert driver.alive() and not driver.kills
    node.wait_cancelled(node.cancel("j1"), driver)  # and a sound one works


def test_commands_that_cannot_be_reported(node):
    """No sound operation id: logged and counted; the stream goes on."""
    node.start()
    driver = node.run_job("j1")
    metadata = wire.pack(wire.CreateJobMetadata(cluster_id=CLUSTER, job_id="j1"))
    for name in ("", "o" * 51, "o 1", "o\n1"):
        node.plane.inject(rules.cancel_event(wire.Operation(id=name, metadata=metadata).SerializeToString()))
        node.plane.inject(rules.withdrawn_event(name))
    node.plane.inject(b"\x7a\x03abc")  # an event of a kind that this agent does not know
    other = node.run_job("j2")
    node.wait_cancelled(node.cancel("j2"), other)
    assert driver.alive() and not driver.kills


def test_command_with_unknown_fields(node):
    """What the agent does not know comes back byte for byte (the control plane checks it)."""
    node.start()
    driver = node.run_job("j1")
    metadata = wire.pack(wire.CreateJobMetadata(cluster_id=CLUSTER, job_id="j1"))
    raw = wire.Operation(id="op-1", description="d\u00e9j\u00e0 vu", metadata=metadata).SerializeToString()
    raw += b"\xba\x3e\x05a\0\xff\nz" + b"\xc0\x3e\x07"  # fields 999 (bytes) and 1000 (varint)
    node.plane.inject_cancel(raw, job_id="j1")
    node.plane.wait_report("op-1", "CANCELLED", disposition="APPLIED")
    assert not driver.alive()
    assert b"\xba\x3e\x05a\0\xff\nz" in node.final("op-1").raw

