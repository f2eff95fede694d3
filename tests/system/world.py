# SPDX-License-Identifier: Apache-2.0
"""
world: a Spark cluster on three nodes, as it is met in the field, and the control plane they serve

The test process plays the host `control`: the reference control plane with mutual TLS, and a real Spark master. The nodes run
a real Worker each, as user `spark`: n1 and n2 from /opt/spark with its work directory there, n3 by a unit with its own in
/var/lib. The agent comes from the package, by dpkg, with its unit as shipped.
"""
import json
import os
import pathlib
import re
import socket
import sys
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests/controlplane"), str(ROOT / "tests/spark"), str(ROOT / "tests/integration")]

import certificates  # noqa: E402
import cluster as spark_module  # noqa: E402
from lab import HOST_ADDRESS, Failure, run, until  # noqa: E402
from plane.options import Options  # noqa: E402
from plane.server import ControlPlane  # noqa: E402
from yandex.cloud.spark.v1.job_pb2 import Job  # noqa: E402

BUILD = ROOT / os.environ.get("BUILD", "build")
VERSION = (ROOT / "VERSION").read_text(encoding="ascii").strip()
SPARK_VERSION = os.environ.get("SPARK_VERSION", "3.5.9")
CLUSTER = "c1"
UNIT = "spark-cancel-agent.service"
CONFIG = "/etc/spark-cancel-agent/agent.conf"
# A driver goes where it fits: cores and memory are no more than numbers to a Worker, and these fit one node each.
WORKERS = {"n1": ("1000", "1900m"), "n2": ("50", "10g"), "n3": ("10", "400g")}
PLACES = {"n1": {"spark.driver.cores": "100"}, "n2": {"spark.driver.cores": "20", "spark.driver.memory": "2g"},
          "n3": {"spark.driver.memory": "11g"}}
WORK = {"n1": "/opt/spark/work", "n2": "/opt/spark/work", "n3": "/var/lib/spark/work"}
SMALL = spark_module.SMALL_DRIVER
JVM = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"
TIMES = "-Dspark.worker.driverTerminateTimeout=3s -Dspark.worker.timeout=12"

WORKER_UNIT = f"""[Unit]
Description=Spark Worker
[Service]
User=spark
StateDirectory=spark
WorkingDirectory=/var/lib/spark
EnvironmentFile=/etc/spark-worker.env
Environment=SPARK_HOME=/opt/spark SPARK_DAEMON_MEMORY=192m "SPARK_DAEMON_JAVA_OPTS={JVM}" "SPARK_WORKER_OPTS={TIMES}"
ExecStart=/opt/spark/bin/spark-class org.apache.spark.deploy.worker.Worker --host ${{ADDRESS}} --port 7078 \
    --webui-port 8081 --cores ${{CORES}} --memory ${{MEMORY}} --work-dir ${{WORK}} spark://{HOST_ADDRESS}:7077
KillMode=mixed
TimeoutStopSec=5
SuccessExitStatus=143
Restart=on-failure
RestartSec=1
[Unit]
StartLimitIntervalSec=0
[Install]
WantedBy=multi-user.target
"""


def package():
    """The Debian package under test."""
    found = sorted((BUILD / "deb").glob(f"spark-cancel-agent_{VERSION}_*.deb"))
    if len(found) != 1:
        raise Failure(f"no package in {BUILD / 'deb'} (make deb)")
    return found[0]


def repack(deb, version, target):
    """The same package under another version -> its path: what an upgrade or a downgrade is to dpkg."""
    tree = target / f"tree-{version}"
    run("dpkg-deb", "-R", deb, tree)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*", f"Version: {version}", control.read_text(encoding="utf-8")), encoding="utf-8")
    made = target / f"spark-cancel-agent_{version}.deb"
    run("dpkg-deb", "--root-owner-group", "-b", tree, made)
    return made


def config(**keys):
    """agent.conf; keys as agent__log_level="debug"."""
    sections = {"agent": {"cluster_id": CLUSTER}, "control-plane": {}, "spark": {}, "cancel": {}}
    for name, value in keys.items():
        section, _, key = name.partition("__")
        sections[section.replace("_", "-")][key] = value
    return "".join(f"[{section}]\n" + "".join(f"{key} = {value}\n" for key, value in values.items() if value is not None) + "\n"
                   for section, values in sections.items())


class Running:
    """A job whose driver runs."""

    def __init__(self, job_id, driver_id, node, process):
        self.id, self.driver_id, self.node, self.process = job_id, driver_id, node, process

    def alive(self):
        return self.process.alive()


class World:
    def __init__(self, lab):
        self.lab = lab
        self.directory = lab.directory / "host"
        self.directory.mkdir()
        self.deb = package()
        self.java, self.spark = spark_module.java_home(), spark_module.spark_home(SPARK_VERSION)
        self.jar = spark_module.build_jobs(self.java, self.spark, BUILD / "spark")
        self.master = self.plane = None
        self.count = 0
        self.nodes = {}
        self.held = []

    # ---- making it

    def prepare(self):
        """What all nodes share: folders shown to them, the user, the Worker's unit."""
        shown = self.directory / "shown"
        shown.mkdir()
        run("cp", self.deb, shown / "agent.deb")
        run("cp", self.jar, shown / "jobs.jar")
        jvm = pathlib.Path(os.path.realpath(self.java))
        binds = {shown: "/mnt/shown", self.spark / "bin": "/opt/spark/bin", self.spark / "jars": "/opt/spark/jars",
                 jvm: jvm}
        for folder in ("/etc/java-17-openjdk", "/etc/java-21-openjdk", "/etc/ssl/certs/java"):
            if os.path.isdir(folder):  # Debian's JDK has its configuration there
                binds[folder] = folder
        self.lab.options += [f"--bind-ro={source}:{target}" for source, target in binds.items()]
        base = self.lab.base
        users = base / "usr/lib/sysusers.d/spark.conf"
        users.write_text('u spark 980 "Apache Spark" /var/lib/spark\n', encoding="ascii")
        run("systemd-sysusers", f"--root={base}", users)
        for folder in ("opt/spark/work", "var/lib/spark/work"):
            (base / folder).mkdir(parents=True)
            os.chown(base / folder, 980, 980)
        os.chown(base / "var/lib/spark", 980, 980)
        units = base / "etc/systemd/system"
        (units / "spark-worker.service").write_text(WORKER_UNIT, encoding="ascii")
        (units / "multi-user.target.wants").mkdir(exist_ok=True)

    def make_certificates(self):
        authority = certificates.Authority(self.directory)
        server = authority.issue("control", f"IP:{HOST_ADDRESS},DNS:control")
        for name in WORKERS:
            authority.issue(name, f"DNS:{name}")
        return authority, server

    def start(self):
        """The control plane, the master, and the nodes with a Worker each; no agent yet."""
        self.authority, server = self.make_certificates()
        self.start_master()
        self.plane = ControlPlane(Options(
            clusters=[CLUSTER], listen=f"{HOST_ADDRESS}:9090", state=str(self.directory / "plane.db"),
            masters=[f"http://{HOST_ADDRESS}:6066"], spark_timeout=2.0, poll=0.5, heartbeat=1.0, deadline=60.0, deadline_grace=5.0,
            not_found_grace=0.5, invalid_grace=0.5, relaunch_window=1.0, node_lifetime=600.0,
            tls_cert=server.certificate, tls_key=server.key, client_ca=self.authority.certificate)).start()
        for number, name in enumerate(WORKERS, 11):
            self.add_node(name, number)
        for node in self.nodes.values():
            node.start(wait=False)
        for node in self.nodes.values():
            node.wait_up()
        return self

    def start_master(self):
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("SPARK_", "JAVA_", "_JAVA"))}
        self.master = spark_module.Daemon("spark master", [
            self.spark / "bin/spark-class", "org.apache.spark.deploy.master.Master", "--host", HOST_ADDRESS, "--port", "7077",
            "--webui-port", "8080"], self.directory / "master.log", environment | {
                "SPARK_HOME": str(self.spark), "JAVA_HOME": str(self.java), "SPARK_DAEMON_MEMORY": "192m",
                "SPARK_DAEMON_JAVA_OPTS": JVM, "SPARK_MASTER_OPTS":
                    f"-Dspark.master.rest.enabled=true -Dspark.master.rest.host={HOST_ADDRESS} -Dspark.master.rest.port=6066 {TIMES}"})
        self.master.wait_line(r"New state: ALIVE", 120)

    def add_node(self, name, number):
        node = self.lab.add(name, number)
        cores, memory = WORKERS[name]
        node.write("/etc/spark-worker.env", f"JAVA_HOME={os.path.realpath(self.java)}\nADDRESS={node.address}\nCORES={cores}\n"
                   f"MEMORY={memory}\nWORK={WORK[name]}\n")
        wants = node.upper / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(parents=True)
        (wants / "spark-worker.service").symlink_to("/etc/systemd/system/spark-worker.service")
        self.nodes[name] = node
        return node

    def config(self, name, **keys):
        """The configuration of a node's agent; a key that is None is left out."""
        files = {} if keys.pop("credentials", False) else {
            "control_plane__certificate_file": "/etc/spark-cancel-agent/node.pem",
            "control_plane__private_key_file": "/etc/spark-cancel-agent/node.key"}
        return config(**({"control_plane__endpoint": "https://control:9090",
                          "control_plane__ca_file": "/etc/spark-cancel-agent/ca.pem", "control_plane__reconnect_max": "2s",
                          "spark__masters": f"http://{HOST_ADDRESS}:6066", "spark__work_directory": WORK[name],
                          "spark__request_timeout": "2s", "spark__worker_terminate_timeout": "3s", "spark__worker_heartbeat": "3s", "cancel__kill_retry": "7s",
                          "cancel__relaunch_window": "5s"} | files | keys))

    def give_files(self, name):
        """CA, certificate and key, as an administrator puts them there: the key for group spark-cancel alone."""
        node = self.nodes[name]
        for source, target in ((self.authority.certificate, "ca.pem"), (f"{self.directory}/{name}.pem", "node.pem"),
                               (f"{self.directory}/{name}.key", "node.key")):
            node.write(f"/etc/spark-cancel-agent/{target}", pathlib.Path(source).read_text(encoding="ascii"), 0o640)
            node.run("chgrp", "spark-cancel", f"/etc/spark-cancel-agent/{target}")

    def install(self, name):
        """Package, files, configuration, start: README's way."""
        node = self.nodes[name]
        node.run("dpkg", "-i", "/mnt/shown/agent.deb")
        self.give_files(name)
        node.write(CONFIG, self.config(name))
        node.run("systemctl", "start", UNIT)

    def wait_workers(self, count=3, seconds=120):
        """All Workers are registered."""
        until(lambda: self.ask("http://{}:8080/json/").get("aliveworkers", 0) >= count, seconds, "the Workers to register")

    def wait_watching(self, name, seconds=30):
        return self.plane.wait_watching(name, timeout=seconds)

    def start_plane(self):
        """Where a test has stopped it."""
        try:
            socket.create_connection((HOST_ADDRESS, 9090), timeout=5).close()
        except OSError:
            self.plane.start()

    # ---- Spark

    def ask(self, url, body=None):
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(url.format(HOST_ADDRESS), data=data, headers={"Content-Type": "application/json"},
                                         method="POST" if data else "GET")
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
                return json.loads(answer.read())
        except (OSError, ValueError):
            return {}

    def driver_state(self, driver_id):
        return self.ask("http://{}:6066/v1/submissions/status/" + driver_id).get("driverState")

    def next_job(self):
        self.count += 1
        return f"job-{self.count}"

    def run_job(self, node, main="Sleep", *arguments, supervise=False):
        """A job whose driver runs on that node and is in its main()."""
        job_id = self.next_job()
        properties = SMALL | {"spark.app.name": job_id, "spark.master": f"spark://{HOST_ADDRESS}:7077",
                              "spark.yandex.job.id": job_id} | PLACES[node]
        if supervise:
            properties["spark.driver.supervise"] = "true"
        answer = self.ask("http://{}:6066/v1/submissions/create", {
            "action": "CreateSubmissionRequest", "clientSparkVersion": "", "appResource": "file:/mnt/shown/jobs.jar",
            "mainClass": main, "appArgs": list(arguments), "environmentVariables": {}, "sparkProperties": properties})
        if not answer.get("success"):
            raise Failure(f"Spark refused the job: {answer}\n{spark_module.tail(self.master.log)}")
        driver_id = answer["submissionId"]
        self.plane.add_job(job_id, driver_id, supervised=supervise)
        process = until(lambda: self.find_driver(job_id), 60, f"the driver of {job_id} ({driver_id})")
        output = pathlib.Path(f"/proc/{process.pid}/root{WORK[node]}/{driver_id}/stdout")
        until(lambda: process.alive() and output.exists() and "running" in output.read_text(encoding="utf-8"), 60,
              lambda: f"the main() of {job_id}; Spark says {self.driver_state(driver_id)}")
        found = pathlib.Path(f"/proc/{process.pid}/root/etc/hostname").read_text(encoding="ascii").strip()
        assert found == node, f"the driver of {job_id} runs on {found}, not on {node}"
        return Running(job_id, driver_id, self.nodes[node], process)

    def find_driver(self, job_id):
        """Its process, held by a pidfd: this machine sees the nodes' processes."""
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                argv = spark_module.command_line(int(entry.name))
                if f"-Dspark.yandex.job.id={job_id}" in argv and spark_module.WRAPPER in argv:
                    try:
                        self.held.append(spark_module.Watched(int(entry.name)))
                    except ProcessLookupError:
                        continue
                    return self.held[-1]
        return None

    # ---- the control plane

    def cancel(self, job_id, **more):
        return self.plane.cancel(job_id, **more).id

    def finals(self, operation_id):
        """The final reports, each once however often it was sent."""
        found = [report for report in self.plane.reports(operation_id) if report.operation.done]
        return list({report.raw: report for report in found}.values())

    def wait_cancelled(self, operation_id, job, seconds=60):
        """The usual end with all that must be true of it -> the metadata of the one final report."""
        operation = self.plane.wait_done(operation_id, seconds)
        assert operation.WhichOneof("result") == "response", operation.error.message
        assert not job.alive(), "CANCELLED means dead"
        assert not self.find_driver(job.id)
        finals = self.finals(operation_id)
        assert len(finals) == 1, finals
        assert (finals[0].node, finals[0].outcome) == (job.node.name, "CANCELLED"), finals
        assert finals[0].metadata.driver_id == job.driver_id
        assert self.plane.job(job.id).status == Job.CANCELLED
        return finals[0].metadata

    # ---- end

    def close(self):
        for process in self.held:
            process.close()
        if self.plane:
            self.plane.stop()
        if self.master:
            self.master.stop()


def units_of(text):
    """Messages of a journal's entries, for people."""
    return "\n".join(f"{entry.get('SYSLOG_IDENTIFIER')}: {entry.get('MESSAGE')}" for entry in text)


