# SPDX-License-Identifier: Apache-2.0
"""Processes that bear a job's id and are not its driver, and drivers that claim to be another job: all untouched."""
import os
import shutil
import subprocess

import pytest

from cluster import JOB_ID_PROPERTY, WRAPPER, SMALL_DRIVER, Watched, command_line, until
from plane import wire
from plane.wire import Job


@pytest.fixture
def impostor(kit):
    """impostor(argv, user=None): a process with exactly that argv."""
    started = []

    def start(argv, user=None, cwd=None):
        options = {"user": user, "group": "nogroup", "extra_groups": []} if user else {}
        process = subprocess.Popen(argv, executable=body(user), cwd=cwd, stdin=subprocess.DEVNULL, **options)
        started.append(process)
        until(lambda: command_line(process.pid) == list(map(str, argv)), 5, "the look-alike's argv")
        return Watched(process.pid)

    def body(user):
        if not user:
            return kit.pause
        # another user may not reach the build folder
        path = f"/tmp/pause-{os.getpid()}"
        shutil.copy(kit.pause, path)
        os.chmod(path, 0o755)
        return path

    yield start
    for process in started:
        process.kill()
        process.wait()
    shutil.rmtree(f"/tmp/pause-{os.getpid()}", ignore_errors=True)
    if os.path.exists(f"/tmp/pause-{os.getpid()}"):
        os.unlink(f"/tmp/pause-{os.getpid()}")


def cancel_for_good(node, job_id):
    operation = node.wait(node.cancel(job_id).id, 60)
    assert wire.unpack(operation.response, Job).status == Job.CANCELLED
    assert node.final(operation.id).metadata.kill_requests == 1


def test_other_programs_with_the_id_in_their_arguments(node, impostor):
    job_id, process = node.run("Sleep")
    define = f"-D{JOB_ID_PROPERTY}={job_id}"
    others = [
        impostor(["/usr/lib/jvm/java-17/bin/java", "-cp", "/opt/spark/jars/*", "-Xmx1g",
                  "org.apache.spark.deploy.SparkSubmit", "--conf", f"{JOB_ID_PROPERTY}={job_id}", "--class", "Sleep",
                  "job.jar"]),
        impostor(["java", "-cp", "x", define, "org.apache.spark.executor.CoarseGrainedExecutorBackend"]),
        impostor(["sh", "-c", f"tail -f {job_id}", define]),
        impostor(["vi", job_id]),
    ]
    cancel_for_good(node, job_id)
    assert not process.alive()
    assert all(other.alive() for other in others)


def test_another_users_process_with_the_drivers_very_argv(node, impostor):
    """A copy of the driver's argv, run by another user."""
    if os.getuid() != 0:
        pytest.skip("only root can run a process as another user")
    job_id, process = node.run("Sleep")
    copy = impostor(command_line(process.pid), user="nobody")
    cancel_for_good(node, job_id)
    assert not process.alive() and copy.alive()


def test_a_forged_claim_does_not_kill_another_job(make_node, impostor):
    """A process that says: I am the driver of job "bait", and my driver id is the victim's."""
    node = make_node(plane={"not_found_grace": 2.0})
    victim, process = node.run("Sleep")
    node.plane.add_job("bait")
    define = f"-D{JOB_ID_PROPERTY}="
    argv = [define + "bait" if word.startswith(define) else word for word in command_line(process.pid)]
    forged = [impostor(argv, cwd=f"/proc/{process.pid}/cwd")]
    if os.getuid() == 0:
        forged.append(impostor(argv, user="nobody"))
    operation = node.wait(node.cancel("bait").id)
    assert operation.error.code == 5, operation
    assert process.alive() and all(one.alive() for one in forged)
    assert node.cluster.driver_state(node.cluster.driver_id(process.pid)) == "RUNNING"
    # and the victim's own cancel is not hindered for good by the claim: when the forger has gone it goes through
    for one in forged:
        one.send(9)
        one.wait(5)
    cancel_for_good(node, victim)
    assert not process.alive()


def test_a_job_that_names_another_job_in_its_options(node):
    """A user may put the victim's id into extraJavaOptions, another property or an argument: still not that job."""
    victim, victim_process = node.run("Sleep")
    define = f"-D{JOB_ID_PROPERTY}={victim}"
    options = SMALL_DRIVER["spark.driver.extraJavaOptions"]
    liar, liar_process = node.run("Sleep", "3600", define, **{
        "spark.driver.extraJavaOptions": f"{options} {define}", "spark.executor.extraJavaOptions": define})
    assert define in command_line(liar_process.pid)
    cancel_for_good(node, victim)
    assert not victim_process.alive() and liar_process.alive()
    cancel_for_good(node, liar)
    assert not liar_process.alive()


def test_a_driver_started_by_hand(make_node, kit, impostor):
    """DriverWrapper run by the right user without a Worker as its parent: no driver of Spark's."""
    node = make_node(plane={"not_found_grace": 2.0})
    node.plane.add_job("byhand")
    directory = node.cluster.work / "driver-20000101000000-0000"
    directory.mkdir(exist_ok=True)
    mine = impostor(["java", "-cp", "x", f"-D{JOB_ID_PROPERTY}=byhand", WRAPPER, "spark://Worker@127.0.0.1:1",
                     directory / kit.jar.name, "Sleep"], cwd=directory)
    operation = node.wait(node.cancel("byhand").id)
    assert operation.error.code == 5 and mine.alive()
