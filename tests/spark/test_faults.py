# SPDX-License-Identifier: Apache-2.0
"""Spark's own parts fail in the middle: frozen workers, dead, restarted and frozen masters."""
import signal
import time

import pytest

from cluster import Cluster
from plane import wire
from plane.wire import Job
from test_cancel import assert_cancelled


@pytest.fixture
def own_cluster(kit, tmp_path_factory):
    """A cluster that a test may break; its master keeps drivers over a restart."""
    directory = tmp_path_factory.mktemp("own")
    recovery = directory / "recovery"
    recovery.mkdir()
    made = Cluster(directory, kit.spark, kit.java, cores=8, memory="8g", terminate_timeout="3s",
                   master_options=f"-Dspark.deploy.recoveryMode=FILESYSTEM -Dspark.deploy.recoveryDirectory={recovery}",
                   worker_timeout=10)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def test_frozen_worker(node):
    """Spark accepts the kill, and nothing happens: accepted is not dead, and the operation says so by staying open."""
    job_id, process = node.run("Sleep")
    node.cluster.worker.send(signal.SIGSTOP)
    try:
        operation = node.cancel(job_id)
        node.agent.wait("kill accepted", operation.id)
        time.sleep(1.5)  # nothing is to happen: there is no event to wait for
        assert process.alive() and not node.operation(operation.id).done
    finally:
        node.cluster.worker.send(signal.SIGCONT)
    assert_cancelled(node, node.wait(operation.id, 60), job_id, process)


def test_deadline_with_a_frozen_worker(make_node):
    """What cannot be done by the deadline is reported as not done, and the job is what it was before."""
    node = make_node(plane={"deadline": 3.0})
    job_id, process = node.run("Sleep")
    node.cluster.worker.send(signal.SIGSTOP)
    try:
        operation = node.wait(node.cancel(job_id).id, 20)
        assert operation.error.code == 4
        report = node.final(operation.id)
        assert report.outcome == "DEADLINE_EXCEEDED" and report.metadata.HasField("kill_accepted_at")
        assert not report.metadata.HasField("ended_at")
        assert process.alive() and node.job(job_id).status == Job.RUNNING
    finally:
        node.cluster.worker.send(signal.SIGCONT)


def test_frozen_master(node):
    """A master that accepts connections and never answers: nothing is reported before it answers again."""
    job_id, process = node.run("Sleep")
    node.cluster.master.send(signal.SIGSTOP)
    try:
        operation = node.plane.cancel(job_id)
        node.agent.wait("cancel received", operation.id)
        time.sleep(1)  # nothing is to happen: there is no event to wait for
        assert process.alive() and not node.plane.operation(operation.id).done
    finally:
        node.cluster.master.send(signal.SIGCONT)
    operation = node.plane.wait_done(operation.id, 60)
    assert_cancelled(node, operation, job_id, process)


def test_first_master_of_the_list_is_dead(make_node, cluster):
    node = make_node(spark__masters=f"http://127.0.0.1:1,{cluster.rest_url}")
    job_id, process = node.run("Sleep")
    assert_cancelled(node, node.wait(node.cancel(job_id).id), job_id, process)


def test_no_master_answers_until_the_deadline(make_node, own_cluster):
    node = make_node(on=own_cluster, plane={"deadline": 4.0, "poll": 3600.0})
    job_id, process = node.run("Sleep")
    own_cluster.master.stop(signal.SIGKILL)
    operation = node.plane.wait_done(node.plane.cancel(job_id).id, 30)
    assert operation.error.code == 14
    assert node.final(operation.id).outcome == "SPARK_UNREACHABLE"
    assert process.alive()


def test_local_signal_when_no_master_answers(make_node, own_cluster):
    """Only where the operator allowed it: SIGTERM, then SIGKILL for a driver that is deaf to it."""
    node = make_node(on=own_cluster, plane={"poll": 3600.0}, cancel__escalation="kill", cancel__escalate_after="1s",
                     cancel__force_after="2s")
    job_id, process = node.run("Deaf")
    own_cluster.master.stop(signal.SIGKILL)
    operation = node.plane.wait_done(node.plane.cancel(job_id).id, 60)
    assert not process.alive()
    report = node.final(operation.id)
    assert report.outcome == "CANCELLED" and report.metadata.escalation == 2  # ESCALATION_SIGKILL
    assert not report.metadata.HasField("kill_accepted_at")
    assert wire.unpack(operation.response, Job).status == Job.CANCELLED


def test_master_restarted_after_it_took_the_kill(make_node, own_cluster):
    """A new master knows nothing of the kill. The driver is dead all the same."""
    node = make_node(on=own_cluster)
    job_id, process = node.run("Deaf")
    operation = node.cancel(job_id)
    node.agent.wait("kill accepted", operation.id)
    own_cluster.master.stop(signal.SIGKILL)
    own_cluster.start_master()
    assert_cancelled(node, node.wait(operation.id, 60), job_id, process)


def test_supervised_driver_that_comes_back_after_its_kill(make_node, own_cluster):
    """The master dies between the kill and the worker's report: the new one starts the driver again, under a new id."""
    node = make_node(on=own_cluster, plane={"relaunch_window": 20.0}, cancel__relaunch_window="20s")
    job_id, process = node.run("Sleep", **{"spark.driver.supervise": "true"})
    first = own_cluster.driver_id(process.pid)
    own_cluster.worker.send(signal.SIGSTOP)  # holds the kill back till the master is gone
    operation = node.cancel(job_id)
    node.agent.wait("kill accepted", operation.id)
    own_cluster.master.stop(signal.SIGKILL)
    own_cluster.worker.send(signal.SIGCONT)
    assert process.wait(20)
    own_cluster.start_master()
    operation = node.wait(operation.id, 90)
    report = assert_cancelled(node, operation, job_id, process)
    assert report.metadata.driver_id != first  # it came back under another id, and was killed again
    assert first in report.metadata.message
