# SPDX-License-Identifier: Apache-2.0
"""One real cluster for the whole run; a control plane and an agent of its own for each test."""
import os
import pathlib
import subprocess
import sys

import grpc
import pytest

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent), str(pathlib.Path(__file__).resolve().parent.parent /
                                                                 "controlplane")]
import cluster as cluster_module  # noqa: E402
from cluster import Agent, Cluster, ROOT, SMALL_DRIVER, tail, until  # noqa: E402
from plane import options, server, wire  # noqa: E402  (generates the wire's Python code)
from yandex.cloud.operation import operation_service_pb2, operation_service_pb2_grpc  # noqa: E402
from yandex.cloud.spark.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc  # noqa: E402

SPARK_VERSION = os.environ.get("SPARK_VERSION", "3.5.9")
BUILD = ROOT / os.environ.get("BUILD", "build")
CLUSTER_ID = "c1"


class Kit:
    """What is fetched and compiled once: Spark, the JDK, the jobs' jar, the look-alikes' body."""

    def __init__(self):
        self.version = SPARK_VERSION
        self.spark = cluster_module.spark_home(SPARK_VERSION)
        self.java = cluster_module.java_home()
        self.jar = cluster_module.build_jobs(self.java, self.spark, BUILD / "spark")
        self.pause = BUILD / "spark/pause"
        subprocess.run(["cc", "-o", self.pause, cluster_module.JOBS / "pause.c"], check=True)


class Node:
    """A control plane, one agent, and a caller who speaks the published API over the network."""

    def __init__(self, directory, kit, cluster, plane_options, agent_keys):
        self.kit, self.cluster, self.directory = kit, cluster, directory
        self.plane = server.ControlPlane(options.Options(**{
            "clusters": [CLUSTER_ID], "state": str(directory / "plane.db"), "masters": [cluster.rest_url],
            "master_uis": [cluster.ui_url],
            "spark_master": cluster.master_url, "poll": 0.2, "heartbeat": 2.0, "deadline": 120.0,
        } | plane_options))
        self.agent_keys = {"cancel__kill_retry": "8s"} | agent_keys
        self.agent = self.channel = None

    def start(self):
        self.plane.start()
        self.agent = Agent(self.directory, self.cluster, self.plane.endpoint, cluster_id=CLUSTER_ID, **self.agent_keys)
        self.agent.start()
        self.agent.wait("connected")
        self.plane.wait_watching("n1")
        self.channel = grpc.insecure_channel(self.plane.address)
        self.jobs = job_service_pb2_grpc.JobServiceStub(self.channel)
        self.operations = operation_service_pb2_grpc.OperationServiceStub(self.channel)

    def submit(self, main_class, *arguments, jar=None, **properties):
        """Create a job by the published API; its id, when Spark has taken it."""
        operation = self.jobs.Create(job_service_pb2.CreateJobRequest(
            cluster_id=CLUSTER_ID, name=main_class.lower() + "-job",
            spark_job=job_pb2.SparkJob(main_class=main_class, main_jar_file_uri=jar or f"file:{self.kit.jar}",
                                       args=arguments, properties=SMALL_DRIVER | properties)), timeout=10)
        operation = until(lambda: self.ended(operation.id), 20, "the job's creation")
        assert not operation.HasField("error"), operation.error.message
        return wire.unpack(operation.metadata, wire.CreateJobMetadata).job_id

    def run(self, main_class, *arguments, **properties):
        """Create a job and wait till its main() runs: its id and the watched driver process."""
        job_id = self.submit(main_class, *arguments, **properties)
        return job_id, self.cluster.wait_driver(job_id)

    def cancel(self, job_id):
        return self.jobs.Cancel(job_service_pb2.CancelJobRequest(cluster_id=CLUSTER_ID, job_id=job_id), timeout=10)

    def job(self, job_id):
        return self.jobs.Get(job_service_pb2.GetJobRequest(cluster_id=CLUSTER_ID, job_id=job_id), timeout=10)

    def operation(self, operation_id):
        return self.operations.Get(operation_service_pb2.GetOperationRequest(operation_id=operation_id), timeout=10)

    def ended(self, operation_id):
        operation = self.operation(operation_id)
        return operation if operation.done else None

    def wait(self, operation_id, seconds=30):
        """The ended operation as a caller sees it."""
        return until(lambda: self.ended(operation_id), seconds, f"the end of {operation_id}", self.agent.log)

    def final(self, operation_id):
        """The one final report that the control plane applied."""
        reports = [report for report in self.plane.reports(operation_id, disposition="APPLIED")
                   if report.operation.done]
        assert len(reports) == 1, reports
        return reports[0]

    def stop(self):
        if self.channel:
            self.channel.close()
        code = self.agent.stop() if self.agent else 0
        self.plane.stop()
        return code


@pytest.fixture(scope="session")
def kit():
    return Kit()


@pytest.fixture(scope="session")
def cluster(kit, tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("cluster"), kit.spark, kit.java, cores=64, memory="64g",
                   terminate_timeout="3s")
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def make_node(kit, cluster, tmp_path_factory):
    """make_node(plane={…}, cancel__escalation="kill"): a node with other settings."""
    def make(plane=None, on=None, **agent_keys):
        node = Node(tmp_path_factory.mktemp("node"), kit, on or cluster, plane or {}, agent_keys)
        make.nodes.append(node)
        node.start()
        return node

    make.nodes = []
    yield make
    cluster.end_drivers()
    for node in make.nodes:
        assert node.stop() == 0, tail(node.directory / "agent.log")


@pytest.fixture
def node(make_node):
    return make_node()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    """A failed test shows the end of its agents' logs."""
    outcome = yield
    report = outcome.get_result()
    make = getattr(item, "funcargs", {}).get("make_node")
    if report.failed and make is not None:
        for node in make.nodes:
            report.sections.append(("agent's log", tail(node.directory / "agent.log", 60)))
