# SPDX-License-Identifier: Apache-2.0
"""
The session with the control plane: reports that are refused, streams that break, credentials that are wrong.
"""
import contextlib
import ctypes
import json
import os
import signal
import socket
import stat
import subprocess

import grpc
import pytest

from certificates import Authority
from harness import CLUSTER, LIMIT, ROOT, agent_pb2, rules, until, wire
from metadata import MetadataService
from sparkcancel.agent.v1 import cancel_agent_service_pb2_grpc as agent_grpc

PIDFD_GETFD = 438  # pidfd_getfd(2): the same number on every architecture


def cancelled(node, job_id="again"):
    """The node works: a whole cancel."""
    driver = node.run_job(job_id)
    node.wait_cancelled(node.cancel(job_id), driver)


# ---- Report

@pytest.mark.parametrize("code", ["UNAVAILABLE", "UNIMPLEMENTED", "PERMISSION_DENIED", "INTERNAL", "UNKNOWN", "RESOURCE_EXHAUSTED",
                                  "DEADLINE_EXCEEDED", "ABORTED"])
def test_report_is_refused_for_a_while(node, code):
    """The status says nothing about the report: it is kept and delivered unchanged."""
    node.start()
    fault = node.plane.faults.add("report", "status", code=code, times=4)
    driver = node.run_job("j1")
    operation = node.cancel("j1")
    node.wait_cancelled(operation, driver)
    assert fault.hits == 4


def test_pushback_is_honoured(node):
    """Up to reconnect_max."""
    node.start(agent={"reconnect_max": "5s"})
    node.plane.faults.add("report", "status", code="UNAVAILABLE", pushback=1500)
    driver = node.run_job("j1")
    operation = node.cancel("j1")
    driver.wait_gone()
    node.wait_cancelled(operation, driver)
    first = node.plane.reports(operation)[0]
    received = wire.from_timestamp(node.final(operation).metadata.received_at)
    assert first.at - received >= 1_400_000


def test_answer_is_lost(node):
    """Applied, but nobody was told: sent again under the same sequence, byte for byte."""
    node.start()
    driver = node.run_job("j1")
    node.plane.faults.add("report", "lost", times=3)
    operation = node.cancel("j1")
    node.wait_cancelled(operation, driver)
    node.plane.wait_report(operation, disposition="ALREADY_APPLIED")
    node.agent.wait_log("(?i)acknowledged")


@pytest.mark.parametrize("kind", ["unspecified", "short"])
def test_answer_says_nothing(node, kind):
    """A missing result or DISPOSITION_UNSPECIFIED counts as not answered."""
    node.start()
    fault = node.plane.faults.add("report", kind, times=3)
    driver = node.run_job("j1")
    node.wait_cancelled(node.cancel("j1"), driver)
    assert fault.hits == 3


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "FAILED_PRECONDITION"])
def test_one_report_poisons_a_batch(node, code):
    """The batch is split until the guilty one stands alone; the others get through, and it is quarantined."""
    node.start()
    drivers = [node.run_job(f"j{number}", sigterm="ignore" if number == 0 else "die") for number in range(6)]
    node.plane.faults.add("report", "status", code="UNAVAILABLE", times=8)
    operations = [node.cancel(f"j{number}") for number in range(6)]
    node.plane.faults.add("report", "poison", operation=operations[0], code=code, times=0)
    for operation, driver in list(zip(operations, drivers))[1:]:
        node.wait_cancelled(operation, driver)
    node.agent.wait_log("(?i)quarantin")
    assert not node.plane.operation(operations[0]).done
    drivers[0].wait_gone()


def test_rejected_report_is_quarantined(node):
    """Visible, kept over a restart, and not sent again by itself."""
    node.start()
    driver = node.run_job("j1")
    operation = node.cancel("j1")
    fault = node.plane.faults.add("report", "reject", operation=operation, times=0)
    driver.wait_gone()
    node.agent.wait_log("(?i)quarantin")
    hits = fault.hits
    node.agent.stop()
    node.agent.start()
    node.plane.wait_watching("n1")
    cancelled(node)
    assert fault.hits == hits


def test_many_reports_in_few_calls(node):
    """What was kept while the control plane refused goes out in batches."""
    node.start()
    for number in range(60):
        node.plane.add_job(f"j{number}", status="PENDING")
    fault = node.plane.faults.add("report", "status", code="UNAVAILABLE", times=0)
    operations = [node.plane.cancel(f"j{number}").id for number in range(60)]
    until(lambda: fault.hits, "a report")
    node.agent.wait_log("j59.*(?i:not here|no driver)|(?i:no driver|not here).*j59")
    node.plane.faults.clear()
    for operation in operations:
        node.plane.wait_report(operation, "NOT_ON_NODE")
    stamps = {report.at // 1000 for report in node.plane.reports()}
    assert len(node.plane.reports()) == 60 and len(stamps) < 60


# ---- Watch

@pytest.mark.parametrize("fault", ["watch:drop,after=2", "watch:drop,after=0,times=3", "watch:status,code=UNAVAILABLE,times=3",
                                   "watch:status,code=INTERNAL,times=3", "watch:status,code=UNIMPLEMENTED,times=2",
                                   "watch:delay,seconds=0.5"])
def test_stream_breaks(node, fault):
    node.start()
    node.plane.faults.parse(fault)
    node.plane.restart()
    cancelled(node)


def test_silent_stream_is_dropped(node):
    """Three intervals without a heartbeat: the connection is dropped, not only the call."""
    node.start()
    fault = node.plane.faults.add("watch", "silence", after=2)
    node.plane.restart()
    until(lambda: fault.hits, "the silent stream")
    start = node.agent.mark()
    driver = node.run_job("j1")
    operation = node.cancel("j1")
    node.wait_cancelled(operation, driver)
    assert node.agent.wait_log("(?i)silen|heartbeat|nothing (came|heard)", start=start)


def test_garbage_on_the_stream(node):
    """Told, and it hurts nobody."""
    node.start()
    node.plane.faults.add("watch", "garbage", after=2)
    node.plane.restart()
    cancelled(node)


def test_old_revision_within_a_stream(node):
    """Logged; the event is handled by its id, and the stored position does not go back."""
    node.start()
    cancelled(node, "j0")
    driver = node.run_job("j1")
    metadata = wire.pack(wire.CreateJobMetadata(cluster_id=CLUSTER, job_id="j1"))
    operation = wire.Operation(id="op-old", description="Cancel Spark job", metadata=metadata).SerializeToString()
    with node.plane.state.transaction():
        node.plane.state.execute(
            "INSERT INTO operation (operation_id, kind, cluster_id, job_id, operation, created, deadline) VALUES"
            " ('op-old', 'cancel', ?, 'j1', ?, ?, ?)", CLUSTER, operation, wire.now_usec(), wire.now_usec() + 60_000_000)
    node.plane.send("n1", wire.with_revision(1, rules.cancel_event(operation)))
    node.plane.wait_done("op-old")
    assert not driver.alive()
    node.agent.restart()
    assert node.plane.wait_watching("n1")[0].after_revision > 1


def test_another_agent_of_the_same_node(node):
    """ABORTED: said plainly, and not fought over."""
    node.start()
    channel = grpc.insecure_channel(node.plane.address)
    other = agent_grpc.CancelAgentServiceStub(channel).Watch(
        agent_pb2.WatchRequest(cluster_id=CLUSTER, node="n1", instance_id="other"), timeout=LIMIT)
    next(other)
    node.agent.wait_log("another agent calls itself n1")
    cancelled(node)
    channel.close()


def connections(node):
    """The agent's connections to the control plane, each by its socket options."""
    port, found = int(node.plane.address.rpartition(":")[2]), []
    pidfd = os.pidfd_open(node.agent.process.pid)
    for name in os.listdir(f"/proc/{node.agent.process.pid}/fd"):
        fd = ctypes.CDLL(None).syscall(PIDFD_GETFD, pidfd, int(name), 0)
        if fd >= 0 and not stat.S_ISSOCK(os.fstat(fd).st_mode):
            os.close(fd)
        elif fd >= 0:
            with socket.socket(fileno=fd) as one, contextlib.suppress(OSError):
                peer = one.getpeername()
                if isinstance(peer, tuple) and peer[1] == port:
                    found.append([one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)] + [
                        one.getsockopt(socket.IPPROTO_TCP, option) for option in (
                            socket.TCP_NODELAY, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT,
                            socket.TCP_USER_TIMEOUT)])
    os.close(pidfd)
    return found


@pytest.mark.parametrize("grace", [60.0, 0.2], ids=["the stream goes on", "the stream is cut"])
def test_connections_that_age(node, grace):
    """GOAWAY again and again, as servers and proxies that are drained send it: no command and no report is lost."""
    node.start(plane={"connection_age": 0.3, "connection_grace": grace, "heartbeat": 1.0})
    for number in range(200):
        cancelled(node, f"j{number}")
        if grace > 1 and len(connections(node)) >= 2:  # the old stream, and a new one for the calls
            break
        if grace < 1 and node.agent.log().count("connected to the control plane at") >= 4:
            break
    else:
        raise AssertionError("no connection has aged")
    cancelled(node, "last")


def test_options_of_the_connection(node):
    """A peer whose host has gone is noticed: keepalive when idle, TCP_USER_TIMEOUT when something was written."""
    node.start()
    assert connections(node) == [[1, 1, 20, 5, 3, 20000]]


def test_many_open_operations(node):
    """Beyond max_open the stream is not read; nothing is dropped, and all is worked off."""
    node.start(agent={"max_open": "10"})
    for number in range(40):
        node.plane.add_job(f"j{number}", status="PENDING")
    operations = [node.plane.cancel(f"j{number}").id for number in range(40)]
    node.plane.wait_report(operations[0], "NOT_ON_NODE")
    driver = node.run_job("last")
    last = node.cancel("last")
    for operation in operations:
        node.plane.withdraw(operation)
    node.wait_cancelled(last, driver)


# ---- TLS, certificates, tokens

@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


def start_with(node, plane, agent, wait=True):
    """Start with TLS or tokens; a caller's fixture can't speak to that, so jobs are cancelled in-process."""
    node.add_master()
    node.start_plane(**plane)
    node.make_agent(**agent).start()
    if wait:
        node.plane.wait_watching("n1", timeout=LIMIT)


def cancelled_inside(node, job_id="j1"):
    driver = node.run_job(job_id)
    operation = node.plane.cancel(job_id)
    node.plane.wait_done(operation.id)
    assert not driver.alive() and node.final(operation.id).outcome == "CANCELLED"


def write(path, text):
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_tls(node, authority):
    server = authority.issue("server")
    start_with(node, {"tls_cert": server.certificate, "tls_key": server.key}, {"ca_file": authority.certificate})
    cancelled_inside(node)


def test_mutual_tls_and_token(node, authority):
    server, client = authority.issue("server"), authority.issue("n1")
    tokens = write(node.directory / "tokens", f"secret {CLUSTER} n1\n")
    token = write(node.directory / "token", "secret\n")
    start_with(node, {"tls_cert": server.certificate, "tls_key": server.key, "client_ca": authority.certificate,
                      "tokens": str(tokens)},
               {"ca_file": authority.certificate, "certificate_file": client.certificate, "private_key_file": client.key,
                "token_file": token})
    cancelled_inside(node)
    assert "secret" not in node.agent.log()


def test_server_name(node, authority):
    """The certificate's name is another than the endpoint's, and that is said."""
    server = authority.issue("named", "DNS:control.example")
    start_with(node, {"tls_cert": server.certificate, "tls_key": server.key},
               {"ca_file": authority.certificate, "server_name": "control.example"})
    cancelled_inside(node)


@pytest.mark.parametrize("wrong", ["ca", "name", "no certificate", "foreign certificate", "other node"])
def test_wrong_credentials(node, authority, wrong, tmp_path_factory):
    """Not connected, said why, and still alive; with the right ones after SIGHUP or at the next try it works."""
    server = authority.issue("server", "DNS:elsewhere.example" if wrong == "name" else "IP:127.0.0.1")
    client = authority.issue("n2" if wrong == "other node" else "n1")
    stranger = Authority(tmp_path_factory.mktemp("stranger"), "stranger")
    foreign = stranger.issue("n1")
    plane = {"tls_cert": server.certificate, "tls_key": server.key, "client_ca": authority.certificate}
    pair = foreign if wrong == "foreign certificate" else client
    agent = {"ca_file": (stranger if wrong == "ca" else authority).certificate, "certificate_file": pair.certificate,
             "private_key_file": pair.key}
    if wrong == "no certificate":
        agent.update(certificate_file=None, private_key_file=None)
    start_with(node, plane, agent, wait=False)
    line = node.agent.wait_log("(?i)certificate|tls|ssl|alert|handshake|PERMISSION_DENIED|unavailable|closed")
    assert not node.plane.streams("n1"), line
    assert node.agent.running()


def test_certificate_is_renewed(node, authority):
    """Files are read again at each connect."""
    server, client = authority.issue("server"), authority.issue("n1")
    stranger = Authority(node.directory, "stranger")
    wrong = stranger.issue("n1")
    certificate = node.directory / "agent.pem"
    key = node.directory / "agent.key"
    for target, source in ((certificate, wrong.certificate), (key, wrong.key)):
        target.write_text(open(source, encoding="ascii").read())
    start_with(node, {"tls_cert": server.certificate, "tls_key": server.key, "client_ca": authority.certificate},
               {"ca_file": authority.certificate, "certificate_file": certificate, "private_key_file": key}, wait=False)
    node.agent.wait_log("(?i)certificate|tls|ssl|alert|handshake|closed")
    for target, source in ((key, client.key), (certificate, client.certificate)):
        target.write_text(open(source, encoding="ascii").read())
    cancelled_inside(node)


def test_wrong_token_then_the_right_one(node):
    tokens = write(node.directory / "tokens", f"right {CLUSTER} n1\n")
    token = write(node.directory / "token", "wrong\n")
    start_with(node, {"tokens": str(tokens)}, {"token_file": token}, wait=False)
    node.agent.wait_log("(?i)unauthenticated|token")
    assert not node.plane.streams("n1")
    write(node.directory / "token", "right\n")
    cancelled_inside(node)


def test_token_is_rotated(node):
    """The old token stops to be good while the agent is connected."""
    tokens = write(node.directory / "tokens", f"old {CLUSTER} n1\n")
    token = write(node.directory / "token", "old\n")
    start_with(node, {"tokens": str(tokens)}, {"token_file": token})
    cancelled_inside(node, "j1")
    write(node.directory / "tokens", f"new {CLUSTER} n1\n")
    write(node.directory / "token", "new\n")
    cancelled_inside(node, "j2")


def metadata_node(node, service):
    tokens = write(node.directory / "tokens", f"first {CLUSTER} n1\n")
    start_with(node, {"tokens": str(tokens)}, {"token_url": service.url}, wait=False)
    return tokens


def test_token_of_a_metadata_service(node):
    """token_url: asked with Metadata-Flavor: Google, once for many calls; the token is in no log."""
    with MetadataService("first") as service:
        metadata_node(node, service)
        cancelled_inside(node, "j1")
        cancelled_inside(node, "j2")
        assert service.requests == 1
    assert "first" not in node.agent.log()


def test_token_of_a_metadata_service_that_comes_late(node):
    """Busy, then talking nonsense, when the agent starts: said, and asked again until there is a token."""
    with MetadataService(None) as service:
        metadata_node(node, service)
        node.agent.wait_log("HTTP status 503")
        assert not node.plane.streams("n1")
        service.body, service.token = b"<html>login</html>", "first"
        node.agent.wait_log("no usable access_token")
        service.body = None
        cancelled_inside(node)


def test_token_of_a_metadata_service_is_renewed(node):
    """UNAUTHENTICATED: the service is asked again, and the calls go on with its new token."""
    with MetadataService("first") as service:
        tokens = metadata_node(node, service)
        cancelled_inside(node, "j1")
        service.token = "second"
        write(tokens, f"second {CLUSTER} n1\n")
        cancelled_inside(node, "j2")
        assert service.requests >= 2


# ---- the reference control plane as a command

def test_the_commands_and_a_crash_of_the_control_plane(node):
    """controlplane and sparkjob as their users start them; kill -9 of the control plane in the middle of a cancel."""
    node.add_master()
    state = node.directory / "command.db"

    def serve(listen):
        process = subprocess.Popen(
            [ROOT / "tests/controlplane/controlplane", "--cluster", CLUSTER, "--state", state, "--listen", listen, "--masters",
             node.master.url, "--heartbeat", "1s", "--not-found-grace", "60s", "--poll", "200ms"],
            stdout=subprocess.PIPE, text=True)
        return process, process.stdout.readline().split()[-1]

    def caller(*arguments, code=0):
        result = subprocess.run([ROOT / "tests/controlplane/sparkjob", "--endpoint", f"http://{address}", "--cluster", CLUSTER,
                                 *arguments], capture_output=True, text=True, timeout=60)
        assert result.returncode == code, result
        return json.loads(result.stdout)

    server, address = serve("127.0.0.1:0")
    try:
        node.cluster.on_create = lambda record, request: drivers.append(node.start_driver(
            request["sparkProperties"]["spark.yandex.job.id"], record.id, sigterm="ignore"))
        drivers = []
        node.make_agent(endpoint=f"http://{address}").start()
        created = caller("create", "--jar", "file:/job.jar", "--class", "Main", "--wait")
        job = created["response"]
        assert job["status"] in ("PENDING", "RUNNING")
        until(lambda: drivers, "the driver")
        operation = caller("cancel", job["id"])
        node.agent.wait_log("(?i)accepted")
        server.send_signal(signal.SIGKILL)
        server.wait()
        server.stdout.close()
        drivers[0].wait_gone()
        server, address = serve(address)
        ended = caller("wait", operation["id"])
        assert ended["response"]["status"] == "CANCELLED" and ended["response"].get("name") == job.get("name")
        assert caller("get", job["id"])["status"] == "CANCELLED"
        shown = subprocess.run([ROOT / "tests/controlplane/controlplane", "operations", "--state", state, "--reports", "--job",
                                job["id"]], capture_output=True, text=True, check=True, timeout=30).stdout
        reports = [json.loads(line) for line in shown.splitlines()][-1]["reports"]
        assert [r["outcome"] for r in reports if r["disposition"] == "APPLIED"][-1] == "CANCELLED"
    finally:
        server.terminate()
        assert server.wait(LIMIT) == 0
        server.stdout.close()
