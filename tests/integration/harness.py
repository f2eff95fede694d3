# SPDX-License-Identifier: Apache-2.0
"""
harness: one node for tests: the real agent, the reference control plane, scripted masters, drivers that look real

    node.start()                                  control plane, master and agent; waits until the agent watches
    driver = node.run_job("j1")                   a job, its driver's process under a Worker, Spark's record of it
    operation = node.cancel("j1")                 by JobService over the network
    done = node.wait_done(operation)
    node.final(operation)                         the one final report, with its metadata

Nothing here sleeps: every wait is for an event (a line of the agent's log, a commit of the control plane, a request at a
master, a pidfd) and has a limit. Processes are started here and ended through their pidfd.
"""
import contextlib
import itertools
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "tests" / "controlplane")]

import grpc  # noqa: E402
import pytest  # noqa: E402
import sparkmaster  # noqa: E402
from plane import rules, wire  # noqa: E402
from plane.options import Options  # noqa: E402
from plane.server import ControlPlane  # noqa: E402
from plane.wire import Job, agent_pb2  # noqa: E402
from yandex.cloud.operation import operation_service_pb2, operation_service_pb2_grpc  # noqa: E402
from yandex.cloud.spark.v1 import job_service_pb2, job_service_pb2_grpc  # noqa: E402

BUILD = pathlib.Path(ROOT, os.environ.get("BUILD") or "build")
AGENT = pathlib.Path(os.environ.get("AGENT") or BUILD / "spark-cancel-agent")
VERSION = (ROOT / "VERSION").read_text().strip()
LIMIT = 60  # seconds; the limit of a wait, not its length: on a busy machine all takes longer
CLUSTER = "c1"
WORKER_HOST_PORT = "127.0.0.1:7078"
SANITIZER = re.compile(r"(ERROR: (Address|Leak|Thread)Sanitizer|runtime error:|Assertion .* failed|Invariant)")
FINAL = [name for name, number in agent_pb2.Outcome.items() if number > agent_pb2.NOT_ON_NODE]

__all__ = ["rules", "wire", "Job", "agent_pb2", "Options", "sparkmaster"]


def until(test, what, timeout=LIMIT):
    """For conditions that nobody announces: ask until test() is true."""
    end = time.monotonic() + timeout
    tick = threading.Event()
    while True:
        value = test()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not come within {timeout} s")
        tick.wait(0.02)


def need_to_look_into(pid):
    """The agent is closed to others of its user (docs/security.md): counting its descriptors takes CAP_SYS_PTRACE."""
    try:
        os.readlink(f"/proc/{pid}/exe")
    except PermissionError:
        pytest.skip("only root can look into the agent")


# ---- processes that look like JVMs

def fakejvm():
    """Compile it once -> its path."""
    source, program = HERE / "fakejvm.c", BUILD / "fakejvm"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        BUILD.mkdir(parents=True, exist_ok=True)
        fresh = program.with_suffix(f".{os.getpid()}")
        subprocess.run([os.environ.get("CC") or "cc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", fresh, source], check=True)
        fresh.rename(program)
    return str(program)


class Process:
    """A process that this test started; watched and signalled through its pidfd."""

    def __init__(self, pid, jvm):
        self.pid = pid
        self.jvm = jvm  # the root that holds the pipes
        self.pidfd = os.pidfd_open(pid)

    def alive(self):
        return not select.select([self.pidfd], [], [], 0)[0]

    def wait_gone(self, timeout=LIMIT):
        if not select.select([self.pidfd], [], [], timeout)[0]:
            raise AssertionError(f"process {self.pid} lives after {timeout} s")

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def kill(self):
        self.signal(signal.SIGKILL)

    def exit(self, code):
        """End by itself with that exit code."""
        self.jvm.command("tell", self.pid, "exit", code)

    def spawn(self, argv, directory="/", **environment):
        """A child of this process."""
        return self.jvm.spawn(argv, directory, parent=self, **environment)

    def close(self):
        self.kill()
        os.close(self.pidfd)


class Jvm(Process):
    """A root process, a Worker by its argv unless told otherwise, and the parent of drivers."""

    def __init__(self, argv=None, directory="/", **environment):
        argv = argv or ["/usr/lib/jvm/java-17/bin/java", "-cp", "/opt/spark/conf/:/opt/spark/jars/*", "-Xmx1g",
                        "org.apache.spark.deploy.worker.Worker", "--webui-port", "8081", "spark://127.0.0.1:7077"]
        self._popen = subprocess.Popen(argv, executable=fakejvm(), cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       env={**os.environ, **environment}, bufsize=0)
        super().__init__(self._popen.pid, self)
        self.argv = argv
        self.children = []
        self._lock = threading.Lock()
        self._lines = []
        self._said = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._wait(lambda words: words[0] == "ready" and int(words[1]) == self.pid, 0)

    def _read(self):
        for line in self._popen.stdout:
            with self._said:
                self._lines.append(line.decode().split())
                self._said.notify_all()

    def _wait(self, test, start):
        with self._said:
            found = self._said.wait_for(lambda: [words for words in self._lines[start:] if test(words)], LIMIT)
            assert found, f"{self.argv[0]} said nothing of the kind: {self._lines[start:]}"
            return found[0]

    def command(self, *words):
        self._popen.stdin.write("\x1f".join(map(str, words)).encode() + b"\x1e")

    def spawn(self, argv, directory="/", parent=None, **environment):
        """Fork a child (of `parent`, a descendant), when it runs -> Process."""
        with self._lock:
            start, owner = len(self._lines), (parent or self).pid
            words = ["spawn", directory, *[f"{name}={value}" for name, value in environment.items()], "--", *argv]
            self.command(*(["tell", parent.pid] if parent and parent is not self else []), *words)
            pid = int(self._wait(lambda words: words[0] == "ready" and int(words[2]) == owner, start)[1])
        child = Process(pid, self)
        self.children.append(child)
        return child

    def close(self):
        for child in self.children:
            child.close()
        super().close()
        self._popen.wait()
        self._popen.stdin.close()
        self._reader.join(LIMIT)
        self._popen.stdout.close()


def driver_argv(work, driver_id, job_id, before=(), after=(), jar=None, main="org.apache.spark.deploy.worker.DriverWrapper"):
    """The argv of a driver that was submitted over REST (facts: launcher WorkerCommandBuilder, DriverRunner)."""
    return ["/usr/lib/jvm/java-17/bin/java", "-cp", "/opt/spark/conf/:/opt/spark/jars/*", "-Xmx1024M",
            "-Dspark.app.name=daily report", "-Dspark.driver.memory=1g", f"-Dspark.yandex.job.id={job_id}",
            "-Dspark.submit.deployMode=cluster", *before, main, "spark://Worker@127.0.0.1:7078",
            jar or f"{work}/{driver_id}/job.jar", "Main", *after]


# ---- the agent

class NotifySocket:
    """What the agent tells systemd."""

    def __init__(self, path):
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self.messages = []
        self._said = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        while not self._closing:
            if not select.select([self._socket], [], [], 0.2)[0]:
                continue
            text = self._socket.recv(65536).decode()
            with self._said:
                self.messages += text.splitlines()
                self._said.notify_all()

    def wait(self, prefix, alive, timeout=LIMIT):
        end = time.monotonic() + timeout
        with self._said:
            while True:
                found = [line for line in self.messages if line.startswith(prefix)]
                if found:
                    return found[-1]
                assert alive() and time.monotonic() < end, f"no {prefix} from the agent"
                self._said.wait(0.2)

    def close(self):
        self._closing = True
        self._thread.join()
        self._socket.close()
        os.unlink(self.path)


AGENTS = []  # of the running test, for its failure's report
NUMBERS = itertools.count()

SECTION = {
    "agent": ("cluster_id", "node", "state_directory", "runtime_directory", "metrics_file", "log_level"),
    "control-plane": ("endpoint", "ca_file", "certificate_file", "private_key_file", "server_name", "token_file", "token_url",
                      "connect_timeout", "report_timeout", "reconnect_min", "reconnect_max"),
    "spark": ("masters", "work_directory", "worker_hosts", "worker_terminate_timeout", "worker_heartbeat", "job_id_property",
              "driver_user", "request_timeout"),
    "cancel": ("mode", "default_deadline", "kill_retry", "kills_per_worker", "escalation", "escalate_after", "force_after",
               "relaunch_window", "queued_drivers", "max_open", "retention", "retention_max"),
}


def config_text(keys):
    """agent.conf of these keys; the section follows from the key. None leaves a key out."""
    lines = []
    for section, names in SECTION.items():
        lines.append(f"[{section}]")
        lines += [f"{name} = {keys[name]}" for name in names if keys.get(name) is not None]
    unknown = set(keys) - {name for names in SECTION.values() for name in names}
    assert not unknown, unknown
    return "\n".join(lines) + "\n"


class Agent:
    """The real binary with a configuration of its own."""

    def __init__(self, directory, **keys):
        self.directory = pathlib.Path(directory)
        self.config = self.directory / "agent.conf"
        self.keys = {"state_directory": self.directory / "state", "runtime_directory": self.directory / "run",
                     "log_level": "debug", **keys}
        for name in ("state_directory", "runtime_directory"):
            pathlib.Path(self.keys[name]).mkdir(exist_ok=True)
        self.lines = []
        self.process = None
        self.notify = None
        self._said = threading.Condition()
        AGENTS.append(self)

    def write_config(self):
        self.config.write_text(config_text(self.keys))

    def start(self, ready=True):
        """Start it; with `ready`, wait until it tells systemd READY=1."""
        self.write_config()
        self.notify = NotifySocket(self.directory / f"notify{next(NUMBERS)}")
        environment = {name: value for name, value in os.environ.items()
                       if name in ("PATH", "LANG", "ASAN_OPTIONS", "UBSAN_OPTIONS", "LSAN_OPTIONS", "TMPDIR",
                                   "WATCHDOG_USEC")}
        self.process = subprocess.Popen([AGENT, f"--config={self.config}"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE, env={**environment, "NOTIFY_SOCKET": self.notify.path})
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
        self._reader.start()
        if ready:
            self.notify.wait("READY=1", lambda: self.process.poll() is None)
        return self

    def _read(self, stream):
        for line in stream:
            with self._said:
                self.lines.append(line.decode("utf-8", "backslashreplace").rstrip("\n"))
                self._said.notify_all()
        stream.close()

    def log(self):
        with self._said:
            return "\n".join(self.lines)

    def wait_log(self, pattern, timeout=LIMIT, start=0):
        """The first line that matches, from line `start` on."""
        regex = re.compile(pattern)
        with self._said:
            found = self._said.wait_for(lambda: [line for line in self.lines[start:] if regex.search(line)], timeout)
        assert found, f"the agent did not log {pattern!r} within {timeout} s"
        return found[0]

    def mark(self):
        """For wait_log(start=...): what is said from now on."""
        with self._said:
            return len(self.lines)

    def wait_exit(self, timeout=LIMIT):
        code = self.process.wait(timeout)
        self._reader.join(timeout)
        self.notify.close()
        return code

    def kill(self):
        """kill -9, as a crash."""
        self.process.kill()
        return self.wait_exit()

    def stop(self):
        """SIGTERM; it must end cleanly."""
        self.process.terminate()
        code = self.wait_exit()
        assert code == 0, f"the agent ended with {code} on SIGTERM"

    def running(self):
        return self.process is not None and self.process.poll() is None

    def restart(self):
        if self.running():
            self.kill()
        return self.start()

    def check(self):
        """No sanitizer and no broken invariant has spoken."""
        assert not SANITIZER.search(self.log()), "the agent's log names a sanitizer or an invariant"

    def run(self, *arguments, timeout=LIMIT):
        """The binary once, for its exit code -> CompletedProcess."""
        return subprocess.run([AGENT, *arguments], capture_output=True, text=True, timeout=timeout)


# ---- a node

class Driver:
    """A driver: its id, its process (a Process), and its record at the masters."""

    def __init__(self, node, driver_id, job_id, process):
        self.node = node
        self.id = driver_id
        self.job_id = job_id
        self.process = process
        self.pid = process.pid

    def alive(self):
        return self.process.alive()

    def wait_gone(self, timeout=LIMIT):
        self.process.wait_gone(timeout)

    @property
    def kills(self):
        """Kill requests for it that any master saw."""
        return [r for master in self.node.masters for r in master.requests_for("kill", self.id)]


class Node:
    """Everything of one test; made by the fixture `node`, which ends it."""

    agent_defaults = {
        "cluster_id": CLUSTER, "node": "n1", "worker_hosts": "127.0.0.1", "connect_timeout": "10s", "report_timeout": "10s",
        "reconnect_min": "20ms", "reconnect_max": "500ms", "request_timeout": "2s", "worker_terminate_timeout": "1s",
        "worker_heartbeat": "100ms", "kill_retry": "2500ms", "relaunch_window": "1s",
    }
    plane_defaults = {
        "clusters": [CLUSTER, "c2"], "heartbeat": 1.0, "not_found_grace": 0.0, "invalid_grace": 0.0, "relaunch_window": 1.5,
        "deadline": 60.0, "deadline_grace": 5.0, "poll": 0.2,
    }

    def __init__(self):
        self.directory = pathlib.Path(os.path.realpath(tempfile.mkdtemp(prefix="sca-")))
        self.work = self.directory / "work"
        self.work.mkdir()
        self.cluster = sparkmaster.Cluster(terminate_timeout=1.0)
        self.masters = []
        self.plane = self.agent = self._worker = None
        self._roots = []
        self._driver_count = 0
        self._channel = None

    # ---- parts

    def add_master(self, mode="ALIVE", **options):
        master = sparkmaster.SparkMaster(mode=mode, cluster=self.cluster, **options)
        self.masters.append(master.start() or master)
        return master

    @property
    def master(self):
        return self.masters[0]

    def start_plane(self, **options):
        defaults = {**self.plane_defaults, "state": str(self.directory / "plane.db"), "spark_timeout": 1.0,
                    "masters": [master.url for master in self.masters]}
        self.plane = ControlPlane(Options(**{**defaults, **options})).start()
        return self.plane

    def make_agent(self, **keys):
        defaults = {**self.agent_defaults, "endpoint": self.plane.endpoint if self.plane else None, "work_directory": self.work,
                    "masters": ",".join(master.url for master in self.masters) or "http://127.0.0.1:1"}
        self.agent = Agent(self.directory, **{**defaults, **keys})
        return self.agent

    def start(self, plane=None, agent=None, masters=("ALIVE",)):
        for mode in masters:
            self.add_master(mode)
        self.start_plane(**(plane or {}))
        self.make_agent(**(agent or {})).start()
        self.plane.wait_watching(self.agent.keys["node"], timeout=LIMIT)
        return self

    @property
    def worker(self):
        """The Worker JVM, made when it is first wanted."""
        if self._worker is None:
            self._worker = self.root()
        return self._worker

    def root(self, argv=None, **environment):
        jvm = Jvm(argv, **environment)
        self._roots.append(jvm)
        return jvm

    # ---- jobs and drivers

    def next_driver_id(self):
        self._driver_count += 1
        return f"driver-20260101000000-{self._driver_count:04d}"

    def start_driver(self, job_id, driver_id=None, sigterm="die", before=(), after=(), worker=None, argv=None, register=True,
                     directory=None, environment=None, **record):
        """A driver's process as a Worker starts it, and Spark's record of it."""
        driver_id = driver_id or self.next_driver_id()
        directory = directory or self.work / driver_id
        directory.mkdir(exist_ok=True)
        process = (worker or self.worker).spawn(argv or driver_argv(self.work, driver_id, job_id, before, after), directory,
                                                FAKEJVM_SIGTERM=sigterm, **(environment or {}))
        if register and driver_id in self.cluster.drivers:
            self.cluster.place(driver_id, process.pid, worker_host_port=WORKER_HOST_PORT)
        elif register:
            self.cluster.add_driver(driver_id, pid=process.pid, **{"worker_host_port": WORKER_HOST_PORT, **record})
        return Driver(self, driver_id, job_id, process)

    def run_job(self, job_id, supervised=False, **driver):
        """A RUNNING job with its driver here."""
        before = ["-Dspark.driver.supervise=true"] if supervised else []
        driver = self.start_driver(job_id, before=[*before, *driver.pop("before", ())], **driver)
        self.plane.add_job(job_id, driver.id, supervised=supervised)
        return driver

    # ---- the caller

    @property
    def jobs(self):
        if self._channel is None:
            self._channel = grpc.insecure_channel(self.plane.address)
        return job_service_pb2_grpc.JobServiceStub(self._channel)

    @property
    def operations(self):
        assert self.jobs
        return operation_service_pb2_grpc.OperationServiceStub(self._channel)

    def cancel(self, job_id, deadline=None, dry_run=False):
        """JobService.Cancel, over the network -> the operation's id."""
        metadata = [("x-deadline", str(deadline))] if deadline else []
        metadata += [("x-dry-run", "1")] if dry_run else []
        operation = self.jobs.Cancel(job_service_pb2.CancelJobRequest(cluster_id=CLUSTER, job_id=job_id), metadata=metadata,
                                     timeout=LIMIT, wait_for_ready=True)
        assert not operation.done
        return operation.id

    def wait_done(self, operation_id, timeout=LIMIT):
        """The ended operation, as a caller gets it."""
        self.plane.wait_done(operation_id, timeout)
        return self.operations.Get(operation_service_pb2.GetOperationRequest(operation_id=operation_id), timeout=LIMIT,
                                   wait_for_ready=True)

    def job_of(self, operation):
        """The Job in a successful operation; its metadata must be published, too."""
        assert wire.unpack(operation.metadata, wire.CreateJobMetadata) is not None, operation.metadata.type_url
        assert operation.WhichOneof("result") == "response", operation.error.message
        return wire.unpack(operation.response, Job)

    def finals(self, operation_id):
        """The final reports of an operation, each once however often it was sent."""
        found = [r for r in self.plane.reports(operation_id) if r.outcome in FINAL]
        return list({r.raw: r for r in found}.values())

    def final(self, operation_id):
        """The one final report."""
        found = self.finals(operation_id)
        assert len(found) == 1, found
        return found[0]

    def wait_cancelled(self, operation_id, driver):
        """The usual end, with all that must be true of it -> the metadata of the final report."""
        job = self.job_of(self.wait_done(operation_id))
        assert not driver.alive(), "CANCELLED means dead"
        assert job.status == Job.CANCELLED
        report = self.final(operation_id)
        assert report.outcome == "CANCELLED" and report.metadata.driver_id == driver.id
        assert report.metadata.node == "n1" and report.metadata.job_status == Job.CANCELLED
        return report.metadata

    # ---- end

    def close(self):
        for agent in [a for a in AGENTS if a.directory == self.directory or self.directory in a.directory.parents]:
            if agent.running():
                agent.kill()
        if self._channel:
            self._channel.close()
        if self.plane:
            self.plane.stop()
        for master in self.masters:
            master.stop()
        self.cluster.close()
        for root in self._roots:
            root.close()
        shutil.rmtree(self.directory, ignore_errors=True)
