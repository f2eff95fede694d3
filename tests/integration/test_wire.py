# SPDX-License-Identifier: Apache-2.0
"""
The agent against a server, or a proxy, that misbehaves on the wire.

Each row does the same wrong thing several times, first to Watch and then to Report while a final report is due. Asserted
are what the operator and the other side see: the agent lives, says what is wrong and no secret, comes back with back-off,
and once the server behaves a cancel goes to its end: CANCELLED with the driver dead, and exactly one final report.
"""
import re
import ssl
import subprocess

import pytest

from badserver import GRPC, HEARTBEAT_SECONDS, BadServer, alert, frame, handshake, http1, http_proxy
from certificates import Authority, run
from harness import CLUSTER, LIMIT, WORKER_HOST_PORT, Job, agent_pb2, until, wire  # noqa: F401

SECRET = "wire-secret-5f2a9c"
TIMES = 4
RECONNECT_MIN, RECONNECT_MAX = 0.020, 0.500
LINE_MAX = 1000
NO_ERROR, PROTOCOL_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 0, 1, 7, 8, 11
OK, UNAVAILABLE = ("grpc-status", "0"), ("grpc-status", "14")


@pytest.fixture
def server():
    with BadServer() as made:
        yield made


def start(node, server, **keys):
    """An agent of that server, with a token."""
    node.add_master()
    token = node.directory / "token"
    token.write_text(SECRET + "\n")
    token.chmod(0o600)
    keys.setdefault("reconnect_min", f"{RECONNECT_MIN * 1000:.0f}ms")
    keys.setdefault("reconnect_max", f"{RECONNECT_MAX * 1000:.0f}ms")
    node.make_agent(endpoint=server.endpoint, token_file=token, **keys).start()


def check_backoff(times, grows, pairs=False):
    """No hammering: between two attempts lies at least half of the step (the other half is jitter)."""
    times = times[::2] if pairs else times
    gaps = [later - earlier for earlier, later in zip(times, times[1:])]
    steps = [min(RECONNECT_MIN * 2 ** (n if grows else 0), RECONNECT_MAX) / 2 for n in range(len(gaps))]
    assert all(gap >= step for gap, step in zip(gaps, steps)), (gaps, steps)


def check_log(node, pattern):
    line = node.agent.wait_log(pattern)
    assert len(line) < LINE_MAX
    assert SECRET not in node.agent.log()
    assert node.agent.running()
    return line


def check_cancelled(server, operation, driver, limit=LIMIT):
    """The end of a cancel, as a control plane and the node see it."""
    report = server.wait_final(operation, limit)
    assert not driver.alive(), "CANCELLED means dead"
    assert report.outcome == "CANCELLED" and report.operation.done
    assert report.metadata.driver_id == driver.id and report.metadata.node == "n1"
    job = wire.unpack(report.operation.response, Job)
    assert job.id == driver.job_id and job.status == Job.CANCELLED
    return report


# ---- calls

def cut(raw):
    """A stream that ends properly, but for what its messages lack."""
    def behave(call):
        call.head(GRPC)
        call.data(raw)
        call.trailers(OK)
    return behave


def data_only(call):
    call.begin()
    call.data(b"", end=True)


def informational(call):
    call.head(status=103)
    call.trailers_only(14, "after 103")


def two_messages(call):
    call.head(GRPC)
    call.data(frame(agent_pb2.ReportResponse()) * 2)
    call.trailers(OK)


def announced(call):
    call.head(GRPC)
    call.data(frame(b"x" * 100, size=0xffffffff))


def compressed(call):
    call.head(GRPC, ("grpc-encoding", "gzip"))
    call.data(frame(b"x" * 100, compressed=1))


def reset(code, begun=False):
    def behave(call):
        if begun:
            call.begin()
        call.reset(code)
    return behave


def destroyed(begun):
    def behave(call):
        if begun:
            call.begin()
            call.data(b"\0\0")
            call.connection.flush()
        call.destroy()
    return behave


def status(*fields):
    def behave(call):
        call.begin()
        call.trailers(*fields)
    return behave


def html(code):
    return lambda call: call.html(code)


def trailers_only(code, text, *fields):
    return lambda call: call.trailers_only(code, text, *fields)


class Row:
    """What is done; what the log says of it; unseen: the call is tried once more at once, as the peer has not acted on it."""

    def __init__(self, name, behaviour, says, unseen=False, methods=("Watch", "Report")):
        self.name, self.behaviour, self.says, self.unseen, self.methods = name, behaviour, says, unseen, methods


ROWS = [
    Row("trailers only", trailers_only(14, "busy"), "UNAVAILABLE: busy"),
    Row("percent-encoding", trailers_only(14, "caf%C3%A9 %zz 100% %0Aforged line"), r"UNAVAILABLE: café %zz 100% \\x0Aforged line"),
    Row("not UTF-8", trailers_only(14, "%ff%fe%1b[2J"), r"UNAVAILABLE: \\xFF\\xFE\\x1B\[2J"),
    Row("HTTP 401", html(401), "UNAUTHENTICATED: HTTP status 401"),
    Row("HTTP 403", html(403), "PERMISSION_DENIED: HTTP status 403"),
    Row("HTTP 404", html(404), "UNIMPLEMENTED: HTTP status 404"),
    Row("HTTP 503", html(503), "UNAVAILABLE: HTTP status 503"),
    Row("HTTP 302", html(302), "UNKNOWN: HTTP status 302"),
    Row("wrong content type", html(200), "not a gRPC response: content-type text/html"),
    Row("no trailers", data_only, "INTERNAL: the stream ended without trailers"),
    Row("grpc-status missing", status(("x-other", "1")), "UNKNOWN: the trailers have no grpc-status"),
    Row("grpc-status garbage", status(("grpc-status", "-0x1")), "UNKNOWN: grpc-status can't be read"),
    Row("grpc-status unknown", status(("grpc-status", "77")), "UNKNOWN: code 77"),
    Row("status 0 without a message", trailers_only(0, ""), "OK"),
    Row("two messages in a unary", two_messages, "", methods=("Report",)),
    Row("message cut short", cut(frame(b"x" * 10, size=100)), "INTERNAL: the last message is cut short"),
    Row("prefix cut short", cut(b"\0\0\0"), "INTERNAL: the last message is cut short"),
    Row("4 GB announced", announced, "RESOURCE_EXHAUSTED: a message of 4294967295 bytes; the limit is"),
    Row("compressed flag", compressed, "INTERNAL: a compressed message"),
    Row("103 before", informational, "UNAVAILABLE: after 103"),
    Row("grpc-message of 50 KB", trailers_only(14, "long" * 12_500), "UNAVAILABLE: longlong"),
    Row("RST_STREAM CANCEL", reset(CANCEL), "CANCELLED: the peer reset the stream"),
    Row("RST_STREAM REFUSED_STREAM", reset(REFUSED_STREAM), "UNAVAILABLE: .*the peer refused the call", unseen=True),
    Row("RST_STREAM ENHANCE_YOUR_CALM", reset(ENHANCE_YOUR_CALM), "RESOURCE_EXHAUSTED: the peer reset the stream"),
    Row("RST_STREAM mid-stream", reset(PROTOCOL_ERROR, begun=True), "INTERNAL: the peer reset the stream"),
    Row("socket destroyed", destroyed(begun=False), "UNAVAILABLE: .*(reset|closed)"),
    Row("socket destroyed mid-message", destroyed(begun=True), "UNAVAILABLE: .*(reset|closed)"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_call(node, server, row):
    count = TIMES * 2 if row.unseen else TIMES
    driver = node.start_driver("j1")
    watches = []
    if "Watch" in row.methods:
        watches = server.misbehave("Watch", row.behaviour, count)
    start(node, server)
    server.wait_script("Watch")
    if watches:
        check_log(node, f"no connection to the control plane: .*{row.says}")

    reports = server.misbehave("Report", row.behaviour, count)
    operation = server.cancel("j1")
    check_cancelled(server, operation, driver)
    check_log(node, "connected to the control plane")
    server.wait_script("Report")
    later = [call.at for call in server.calls if call.method == "Watch"][len(watches):][:1]
    check_backoff([call.at for call in watches] + later, grows=True, pairs=row.unseen)
    check_backoff([call.at for call in reports], grows=False, pairs=row.unseen)
    for call in server.calls:
        check_request(call)


def check_request(call):
    """What every request must bring: RFC 9113 and gRPC's protocol document."""
    fields = call.headers
    assert fields[":method"] == "POST" and fields[":scheme"] == "http" and fields["te"] == "trailers"
    assert fields["content-type"] == "application/grpc" and fields["grpc-accept-encoding"] == "identity"
    assert fields["authorization"] == f"Bearer {SECRET}"
    assert call.body[:5] == frame(call.body[5:])[:5]
    if call.method == "Watch":
        assert "grpc-timeout" not in fields
    else:
        number, unit = re.fullmatch("([0-9]{1,8})([HMSmun])", fields["grpc-timeout"]).groups()
        assert unit == "m" and 9_000 < int(number) <= 10_000  # report_timeout, less what has passed
