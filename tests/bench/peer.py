# SPDX-License-Identifier: Apache-2.0
"""
peer: `spark-submit --kill`, which is what an operator has without the agent, beside the agent on the same real cluster

It asks for the kill and ends; whether the driver is dead is not its business, and its exit code says 0 either way.
"""
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "spark"), str(ROOT / "tests" / "controlplane")]

import cluster as spark  # noqa: E402
import figures  # noqa: E402
from figures import Figures  # noqa: E402

VERSION = os.environ.get("SPARK_VERSION") or "3.5.9"
EACH = 5
OTHERS = 3  # of each kind that kills nothing
EVERY_DRIVER = 60  # seconds that a driver may take to start, or to die


def fetched():
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return (home / "spark-cancel-agent" / f"spark-{VERSION}" / "bin" / "spark-submit").exists()


class Submit:
    """spark-submit --kill, and what it took."""

    def __init__(self, cluster, port, driver_id):
        begin = time.monotonic()
        process = subprocess.Popen(
            [cluster.spark / "bin/spark-submit", "--master", f"spark://127.0.0.1:{port}", "--kill", driver_id],
            env=cluster.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.text = process.stdout.read().decode("utf-8", "replace")
        process.stdout.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.wall = (time.monotonic() - begin) * 1e3
        self.cpu = (usage.ru_utime + usage.ru_stime) * 1e3
        self.rss = usage.ru_maxrss / 1024
        self.code = process.returncode


class Death:
    """When a process ends, whatever else is waited for."""

    def __init__(self, process):
        self._process, self._begin, self._took = process, time.monotonic(), None
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self):
        if self._process.wait(EVERY_DRIVER):
            self._took = (time.monotonic() - self._begin) * 1e3

    def took(self):
        self._thread.join()
        assert self._took is not None, "spark-submit --kill did not kill"
        return self._took


class Ours:
    """A cancel through the public API, and what it took the agent."""

    def __init__(self, node, job_id, process):
        pid = node.agent.daemon.pid
        cpu, begin = figures.cpu_seconds(pid), time.monotonic()
        operation = node.cancel(job_id)
        node.plane.wait_done(operation, 60)
        self.wall = (time.monotonic() - begin) * 1e3
        assert not process.alive(), "CANCELLED means dead"
        node.agent.wait("report acknowledged", operation)
        self.cpu = (figures.cpu_seconds(pid) - cpu) * 1e3


class Node:
    def __init__(self, directory, cluster):
        import grpc
        from plane import options, server
        from yandex.cloud.spark.v1 import job_service_pb2, job_service_pb2_grpc
        self.plane = server.ControlPlane(options.Options(clusters=["c1"], state=str(directory / "plane.db"), poll=3600.0,
                                                         masters=[cluster.rest_url], deadline=120.0)).start()
        self.agent = spark.Agent(directory, cluster, self.plane.endpoint).start()
        self.agent.wait("connected")
        self.plane.wait_watching("n1")
        self._channel = grpc.insecure_channel(self.plane.address)
        self._jobs = job_service_pb2_grpc.JobServiceStub(self._channel)
        self._request = job_service_pb2.CancelJobRequest

    def cancel(self, job_id):
        return self._jobs.Cancel(self._request(cluster_id="c1", job_id=job_id), timeout=10, wait_for_ready=True).id

    def stop(self):
        self._channel.close()
        self.agent.stop()
        self.plane.stop()


def start_drivers(cluster, jar, count):
    """job id -> (driver id, its process, held)"""
    made = {f"job-{number}": cluster.create(f"job-{number}", "Sleep", jar) for number in range(count)}
    return {job_id: (driver_id, cluster.wait_driver(job_id, EVERY_DRIVER)) for job_id, driver_id in made.items()}


def compare(directory, end):
    """Until `end` at most: what was not reached by then is left out."""
    part = Figures(f"Beside spark-submit --kill, Spark {VERSION}")
    java, home = spark.java_home(), spark.spark_home(VERSION)
    jar = spark.build_jobs(java, home, ROOT / os.environ.get("BUILD", "build") / "spark")
    cluster = spark.Cluster(directory / "spark", home, java, cores=64, memory="64g", terminate_timeout="3s")
    node, ours, accepted, others, gone = None, [], [], {}, []
    closed = socket.socket()  # bound, so nobody else gets its port; not listening, so it refuses
    try:
        closed.bind(("127.0.0.1", 0))
        cluster.start()
        node = Node(directory / "spark", cluster)
        drivers = start_drivers(cluster, jar, 2 * EACH)
        rest_port = cluster.rest_url.rpartition(":")[2]
        for number in range(EACH):  # one of each, in turn: what disturbs the one disturbs the other
            if time.monotonic() > end:
                break
            job_id, other_id = f"job-{2 * number}", f"job-{2 * number + 1}"
            driver_id, process = drivers[job_id]
            node.plane.add_job(job_id, driver_id)
            ours.append(Ours(node, job_id, process))
            driver_id, process = drivers[other_id]
            death = Death(process)
            accepted.append(Submit(cluster, rest_port, driver_id))
            gone.append(death.took())
            if number < OTHERS and time.monotonic() < end:
                others.setdefault("unknown id", []).append(Submit(cluster, rest_port, "driver-20200101000000-0000"))
            if number < OTHERS and time.monotonic() < end:
                others.setdefault("master dead", []).append(Submit(cluster, closed.getsockname()[1], "driver-1"))
        memory = figures.memory(node.agent.daemon.pid)
    finally:
        closed.close()
        if node:
            node.stop()
        cluster.stop()
    part.add("agent: Cancel called to operation done (driver dead)", [one.wall for one in ours], "ms", 0)
    part.add("agent: its CPU time per cancel", [one.cpu for one in ours], "ms", 1)
    part.add("agent: resident all the time (Rss)", memory["Rss"] / 1024, "MiB", 1)
    for name, runs in {"accepted": accepted, **others}.items():
        part.add(f"spark-submit, {name}: until it ends", [run.wall for run in runs], "ms", 0)
        part.add(f"spark-submit, {name}: CPU time", [run.cpu for run in runs], "ms", 0)
        part.add(f"spark-submit, {name}: peak Rss", [run.rss for run in runs], "MiB", 0)
        part.add(f"spark-submit, {name}: exit code", ", ".join(sorted({str(run.code) for run in runs})))
    part.add("spark-submit, accepted: called to driver dead", gone, "ms", 0)
    part.note("The agent's time ends with the proof that the driver is dead, spark-submit's when the master has answered.")
    return part, []
