# SPDX-License-Identifier: Apache-2.0
"""A real Spark standalone cluster and the agent under test, on loopback, in a folder of their own.

Shared by the tests in this folder and by scripts/demo. Standard library only. Every port is chosen by the kernel
(port 0) and read from the log of the one who bound it: Spark takes the next port in silence when one is in use, so a
port that was chosen beforehand proves nothing. Processes are ended through pidfds, and each dies with its parent.
"""
import contextlib
import datetime
import json
import os
import pathlib
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
JOBS = pathlib.Path(__file__).resolve().parent / "jobs"
JOB_ID_PROPERTY = "spark.yandex.job.id"
WRAPPER = "org.apache.spark.deploy.worker.DriverWrapper"
# The smallest driver JVM that Spark's launcher starts reliably.
SMALL_DRIVER = {
    "spark.driver.memory": "64m",
    "spark.driver.extraJavaOptions": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:CICompilerCount=1",
}
# Spark 3.5 gives a REST-submitted driver none of the module options that a SparkContext needs on JDK 17. These are
# the ones that the job Context needs: a property's value may have 256 characters at most.
MODULE_OPTIONS = " ".join(f"--add-opens=java.base/{package}=ALL-UNNAMED"
                          for package in ("java.lang.invoke", "java.nio", "sun.nio.ch"))



class Failure(Exception):
    """What went wrong, for people; `log` is the file that tells more."""

    def __init__(self, text, log=None):
        super().__init__(text)
        self.log = log


# What each limit is multiplied by. A limit ends a wait that would never end; it measures nothing, and several JVMs on a
# busy machine take many times what they take alone.
PATIENCE = 5


def until(condition, seconds, what, log=None, pause=0.02):
    """Wait for the first true value of condition() and return it."""
    seconds *= PATIENCE
    limit = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > limit:
            raise Failure(f"waited {seconds} s in vain for: {what}", log)
        time.sleep(pause)


def tail(path, lines=20):
    """The last lines of a log, for people."""
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"({error})"
    return "\n".join(text.splitlines()[-lines:])


# ---- processes ---------------------------------------------------------------------------------------------


class Watched:
    """A process held by its pidfd: signals and waits can never hit another one that got the same pid."""

    def __init__(self, pid):
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)

    def alive(self):
        return not select.select([self.pidfd], [], [], 0)[0]

    def wait(self, seconds):
        """True when the process has ended within `seconds`."""
        return bool(select.select([self.pidfd], [], [], seconds)[0])

    def send(self, number):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def close(self):
        os.close(self.pidfd)


class Daemon:
    """A program that runs until it is stopped; stdout and stderr go to one log file."""

    def __init__(self, name, argv, log, environment=None, stdout=None):
        self.name = name
        self.log = pathlib.Path(log)
        # setpriv: when this harness is killed outright, the daemon gets SIGTERM from the kernel.
        with open(self.log, "ab") as file, open(stdout or os.devnull, "ab") as out:
            self.popen = subprocess.Popen(["setpriv", "--pdeathsig", "TERM", *map(str, argv)], env=environment,
                                          stdin=subprocess.DEVNULL, stdout=out if stdout else file, stderr=file)
        self.pid = self.popen.pid

    def text(self):
        return self.log.read_text(encoding="utf-8", errors="replace")

    def running(self):
        return self.popen.poll() is None

    def wait_line(self, pattern, seconds):
        """Wait for a log line; return the match. Fails at once when the process has ended."""
        def look():
            match = re.search(pattern, self.text(), re.MULTILINE)
            if not match and not self.running():
                match = re.search(pattern, self.text(), re.MULTILINE)
                if not match:
                    raise Failure(f"{self.name} ended with {self.popen.returncode}", self.log)
            return match
        return until(look, seconds, f"{self.name} to say /{pattern}/", self.log)

    def send(self, number):
        if self.running():
            self.popen.send_signal(number)

    def stop(self, number=signal.SIGTERM, seconds=10):
        """Signal, wait, then SIGKILL; the exit code."""
        self.send(number)
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait()


def children(pid):
    """The child processes of `pid`, all its threads' together."""
    found = []
    for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in path.read_text(encoding="ascii").split()]
    return found


def processes_below(directory):
    """Processes whose working directory lies in `directory`."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if pathlib.Path(os.readlink(path)).is_relative_to(directory):
                found.append(int(path.parent.name))
    return found


def command_line(pid):
    """argv of a process, [] when there is none (any more)."""
    try:
        raw = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [word.decode("utf-8", "replace") for word in raw.rstrip(b"\0").split(b"\0")] if raw else []


# ---- jobs --------------------------------------------------------------------------------------------------


def java_home():
    done = subprocess.run([ROOT / "scripts/java-home"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure("no JDK of version 17 to 21 (scripts/deps installs one)")
    return pathlib.Path(done.stdout.strip())


def spark_home(version, *options):
    done = subprocess.run([ROOT / "scripts/spark-fetch", *options, version], stdout=subprocess.PIPE, text=True,
                          check=False)
    if done.returncode:
        raise Failure(f"Spark {version} could not be fetched")
    return pathlib.Path(done.stdout.strip())


def build_jobs(java, spark, directory):
    """Compile the jobs into one jar, unless it is there and up to date."""
    sources = sorted(JOBS.glob("*.java"))
    core = next(spark.glob("jars/spark-core_*.jar")).stem
    jar = pathlib.Path(directory) / f"jobs-{core}.jar"
    if jar.exists() and all(jar.stat().st_mtime > source.stat().st_mtime for source in sources):
        return jar
    jar.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=jar.parent) as work:
        classes = pathlib.Path(work) / "classes"
        log = jar.with_suffix(".log")
        with open(log, "wb") as file:
            for argv in (
                    [java / "bin/javac", "-cp", f"{spark}/jars/*", "-d", classes, *sources],
                    [java / "bin/jar", "cf", f"{work}/jobs.jar", "-C", classes, "."]):
                if subprocess.run(argv, stdout=file, stderr=file, check=False).returncode:
                    raise Failure("the jobs do not compile", log)
        os.replace(f"{work}/jobs.jar", jar)
    return jar


# ---- the cluster -------------------------------------------------------------------------------------------


class Cluster:
    """One master with its REST server and one worker."""

    def __init__(self, directory, spark, java, cores=4, memory="4g", terminate_timeout="10s", master_options="",
                 worker_timeout=60):
        self.directory = pathlib.Path(directory).resolve()
        self.spark, self.java = spark, java
        self.cores, self.memory = cores, memory
        self.terminate_timeout = terminate_timeout
        self.worker_timeout = f"-Dspark.worker.timeout={worker_timeout}"  # both sides derive their times from it
        self.master_options = master_options
        self.work = self.directory / "work"
        self.master = self.worker = None
        self.master_url = self.rest_url = self.ui_url = None
        for name in ("work", "conf", "tmp", "local"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)

    def environment(self, **more):
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("SPARK_", "JAVA_", "_JAVA"))}
        return clean | {
            "SPARK_HOME": str(self.spark),
            "JAVA_HOME": str(self.java),
            "SPARK_CONF_DIR": str(self.directory / "conf"),
            "SPARK_LOCAL_DIRS": str(self.directory / "local"),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_DAEMON_MEMORY": "256m",
            "SPARK_DAEMON_JAVA_OPTS": f"-XX:+UseSerialGC -Djava.io.tmpdir={self.directory}/tmp",
        } | more

    def start(self):
        self.start_master()
        self.start_worker()
        until(lambda: self.master_json().get("aliveworkers") == 1, 30, "the worker to register with the master",
              self.worker.log)

    def start_master(self):
        """Ports stay the same when the master is started again, as an operator's do."""
        ports = [re.search(r":(\d+)$", url).group(1) if url else "0"
                 for url in (self.master_url, self.ui_url, self.rest_url)]
        log = self.directory / "master.log"
        log.unlink(missing_ok=True)
        self.master = Daemon("spark master", [
            self.spark / "bin/spark-class", "org.apache.spark.deploy.master.Master", "--host", "127.0.0.1",
            "--port", ports[0], "--webui-port", ports[1],
        ], log, self.environment(SPARK_MASTER_OPTS=" ".join([
            "-Dspark.master.rest.enabled=true", f"-Dspark.master.rest.port={ports[2]}", "-Dspark.port.maxRetries=0",
            self.worker_timeout, self.master_options])))
        self.master_url = self.master.wait_line(r"Starting Spark master at (spark://127\.0\.0\.1:\d+)", 60).group(1)
        ui_port = self.master.wait_line(r"MasterWebUI.* at http://.*:(\d+)$", 30).group(1)
        rest_port = self.master.wait_line(r"Started REST server .* on 127\.0\.0\.1 with port (\d+)", 30).group(1)
        self.ui_url, self.rest_url = f"http://127.0.0.1:{ui_port}", f"http://127.0.0.1:{rest_port}"
        self.master.wait_line(r"New state: ALIVE|Recovery complete", 60)

    def start_worker(self):
        log = self.directory / "worker.log"
        log.unlink(missing_ok=True)
        self.worker = Daemon("spark worker", [
            self.spark / "bin/spark-class", "org.apache.spark.deploy.worker.Worker", "--host", "127.0.0.1",
            "--port", "0", "--webui-port", "0", "--cores", self.cores, "--memory", self.memory,
            "--work-dir", self.work, self.master_url,
        ], log, self.environment(
            SPARK_WORKER_OPTS=f"-Dspark.worker.driverTerminateTimeout={self.terminate_timeout} {self.worker_timeout}"))

    def stop(self):
        """At once and without ceremony: everything lies in a folder that is removed afterwards."""
        if self.worker:
            self.end_drivers()
        for daemon in (self.worker, self.master):
            if daemon:
                daemon.stop(signal.SIGKILL)
        self.end(processes_below(self.work))
        self.worker = self.master = None

    def end_drivers(self):
        """Drivers and executors, while the worker is there to reap them."""
        self.end(children(self.worker.pid))

    def end(self, pids):
        held = [process for process in map(self.hold, pids) if process]
        for process in held:
            process.send(signal.SIGKILL)
        for process in held:
            process.wait(5)
            process.close()

    @staticmethod
    def hold(pid):
        try:
            return Watched(pid)
        except ProcessLookupError:
            return None

    # -- what Spark says --

    def request(self, method, url, body=None):
        data = json.dumps(body).encode() if body is not None else None
        question = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(question, timeout=10) as answer:
            return json.loads(answer.read())

    def master_json(self):
        try:
            return self.request("GET", f"{self.ui_url}/json/")
        except (OSError, ValueError):
            return {}

    def create(self, job_id, main_class, jar, arguments=(), **properties):
        """Submit past the control plane; the driver's id."""
        answer = self.request("POST", f"{self.rest_url}/v1/submissions/create", {
            "action": "CreateSubmissionRequest", "clientSparkVersion": "", "appResource": f"file:{jar}",
            "mainClass": main_class, "appArgs": list(arguments), "environmentVariables": {},
            "sparkProperties": SMALL_DRIVER | {
                "spark.app.name": job_id, "spark.master": self.master_url, JOB_ID_PROPERTY: job_id,
            } | properties,
        })
        if not answer.get("success"):
            raise Failure(f"Spark refused the job: {answer}", self.master.log)
        return answer["submissionId"]

    def driver_state(self, driver_id):
        """Spark's word for a driver, None when the master does not know it."""
        return self.request("GET", f"{self.rest_url}/v1/submissions/status/{driver_id}").get("driverState")

    # -- what the machine says --

    def driver_pids(self, job_id):
        """Processes that are a driver of the job: what /proc says, whatever anybody reports."""
        wanted = f"-D{JOB_ID_PROPERTY}={job_id}"
        found = []
        for path in pathlib.Path("/proc").glob("[0-9]*"):
            argv = command_line(path.name)
            if wanted in argv and WRAPPER in argv and any(word.startswith(f"{self.work}/") for word in argv):
                found.append(int(path.name))
        return found

    def driver_id(self, pid):
        """From the jar's path, the second argument after DriverWrapper."""
        argv = command_line(pid)
        return pathlib.Path(argv[argv.index(WRAPPER) + 2]).relative_to(self.work).parts[0]

    def driver_output(self, driver_id):
        try:
            return (self.work / driver_id / "stdout").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def wait_driver(self, job_id, seconds=60, in_main=True):
        """Wait till the job's driver process is there (and its main() has printed its first line)."""
        pid = until(lambda: self.driver_pids(job_id), seconds, f"the driver process of {job_id}", self.worker.log)[0]
        process = Watched(pid)
        if in_main:
            driver_id = self.driver_id(pid)
            until(lambda: "running" in self.driver_output(driver_id), seconds, f"the main() of {job_id}",
                  self.work / driver_id / "stderr")
        return process


# ---- the agent ---------------------------------------------------------------------------------------------


def parse_time(line):
    """The time stamp at the start of one of the agent's lines."""
    match = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3,6})(Z|[+-]\d\d:?\d\d)?", line)
    if not match:
        return None
    zone = (match.group(2) or "").replace("Z", "+00:00")
    moment = datetime.datetime.fromisoformat(match.group(1) + zone)
    return moment if moment.tzinfo else moment.astimezone()


class Agent:
    """build/spark-cancel-agent with a configuration of its own."""

    def __init__(self, directory, cluster, endpoint, program=None, cluster_id="c1", node="n1", **keys):
        self.directory = pathlib.Path(directory).resolve()
        self.program = pathlib.Path(program or ROOT / os.environ.get("BUILD", "build") / "spark-cancel-agent")
        self.log = self.directory / "agent.log"
        self.configuration = self.directory / "agent.conf"
        self.daemon = None
        for name in ("state", "run"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        sections = {
            "agent": {"cluster_id": cluster_id, "node": node, "state_directory": self.directory / "state",
                      "runtime_directory": self.directory / "run"},
            "control-plane": {"endpoint": endpoint},
            "spark": {"masters": cluster.rest_url, "work_directory": cluster.work, "worker_hosts": "127.0.0.1",
                      "worker_terminate_timeout": cluster.terminate_timeout},
            "cancel": {},
        }
        for name, value in keys.items():  # agent__log_level="debug"
            section, _, key = name.partition("__")
            sections[section.replace("_", "-")][key] = value
        self.configuration.write_text("".join(
            f"[{section}]\n" + "".join(f"{key} = {value}\n" for key, value in values.items()) + "\n"
            for section, values in sections.items()), encoding="utf-8")

    def start(self):
        environment = {key: value for key, value in os.environ.items()
                       if key not in ("NOTIFY_SOCKET", "JOURNAL_STREAM", "STATE_DIRECTORY", "RUNTIME_DIRECTORY")}
        self.daemon = Daemon("agent", [self.program, f"--config={self.configuration}"], self.log, environment)
        return self

    def lines(self, operation_id=None):
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return [line for line in text.splitlines() if operation_id is None or f"operation_id={operation_id}" in line]

    def find(self, message, operation_id=None):
        """The first line that bears `message`."""
        return next((line for line in self.lines(operation_id) if message in line), None)

    def wait(self, message, operation_id=None, seconds=30):
        def look():
            line = self.find(message, operation_id)
            if not line and not self.daemon.running():
                raise Failure(f"the agent ended with {self.daemon.popen.returncode}", self.log)
            return line
        return until(look, seconds, f"the agent to say '{message}'", self.log)

    def stop(self):
        """SIGTERM, as systemd does; the exit code."""
        return self.daemon.stop(signal.SIGTERM, 20) if self.daemon else 0

    def kill(self):
        """kill -9."""
        return self.daemon.stop(signal.SIGKILL)


@contextlib.contextmanager
def temporary_directory(prefix, keep=False):
    """A folder below $TMPDIR that goes away in the end, but stays (and is named) after a failure when asked to."""
    path = tempfile.mkdtemp(prefix=prefix)
    try:
        yield pathlib.Path(path)
    except BaseException:
        if not keep:
            shutil.rmtree(path, ignore_errors=True)
        raise
    else:
        shutil.rmtree(path, ignore_errors=True)
