# SPDX-License-Identifier: Apache-2.0
"""
The agent against a server, or a proxy, that misbehaves on the wire.

Each row does the same wrong thing several times, first to Watch and then to Report while a final report is due. Asserted
are what the operator and the other side see: the agent lives, says what is wrong and no secret, comes back with back-off,
and once the server behaves a cancel goes to its end: CANCELLED with the driver dead, and exactly one final report.
"""
import re
import ssl
import threading
import time

import pytest

from badserver import GRPC, BadServer, alert, frame, handshake, http1, http_proxy
from certificates import Authority, run
from harness import AGENT, CLUSTER, LIMIT, Job, agent_pb2, wire

SECRET = "wire-secret-5f2a9c"
TIMES = 4
RECONNECT_MIN, RECONNECT_MAX = 0.010, 0.250
LINE_MAX = 1000
PROTOCOL_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 1, 7, 8, 11
OK = ("grpc-status", "0")


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
    """What is done, and what the log says of it.

    unseen: each call is tried once more at once, since the peer has not acted on it (RFC 9113 section 8.7).
    lost: the connection dies; a Watch that gets through then brings a report forward, once for each Watch.
    """

    def __init__(self, name, behaviour, says, unseen=False, lost=False, methods=("Watch", "Report")):
        self.name, self.behaviour, self.says, self.methods = name, behaviour, says, methods
        self.unseen, self.lost = unseen, lost


ROWS = [
    Row("trailers only", trailers_only(14, "busy"), "UNAVAILABLE: busy"),
    Row("percent-encoding", trailers_only(14, "caf%C3%A9 %zz 100% %0Aforged line"),
        r"UNAVAILABLE: café %zz 100% \\x0Aforged line"),
    Row("not UTF-8", trailers_only(14, "%ff%fe%1b[2J"), r"UNAVAILABLE: \\xFF\\xFE\\x1B\[2J"),
    Row("the token comes back", trailers_only(14, f"what is Bearer {SECRET}?"), r"UNAVAILABLE: what is Bearer \*+\?"),
    Row("HTTP 401", html(401), "UNAUTHENTICATED: HTTP status 401"),
    Row("HTTP 403", html(403), "PERMISSION_DENIED: HTTP status 403"),
    Row("HTTP 404", html(404), "UNIMPLEMENTED: HTTP status 404"),
    Row("HTTP 503", html(503), "UNAVAILABLE: HTTP status 503"),
    Row("HTTP 302", html(302), "UNKNOWN: HTTP status 302"),
    Row("wrong content type", html(200), "not a gRPC response: content-type text/html"),
    Row("no trailers", data_only, "INTERNAL: the stream ended without trailers"),
    Row("grpc-status missing", status(("x-other", "1")), "UNKNOWN: the trailers have no grpc-status"),
    Row("grpc-status garbage", status(("grpc-status", "-0x1")), "UNKNOWN: grpc-status can't be read"),
    Row("grpc-status unknown", status(("grpc-status", "77")), "UNKNOWN: code 77; next"),
    Row("status 0 without a message", trailers_only(0, ""), "the control plane ended the stream"),
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
    Row("socket destroyed", destroyed(begun=False), "UNAVAILABLE: .*(reset|closed)", lost=True),
    Row("socket destroyed mid-message", destroyed(begun=True), "UNAVAILABLE: .*(reset|closed)", lost=True),
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
    check_backoff([call.at for call in reports], grows=False, pairs=row.unseen or row.lost)
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


def test_report_without_an_answer(node, server):
    """The call ends at its deadline, which the server was told, and the same report goes out again."""
    reports = server.misbehave("Report", lambda call: None, TIMES)
    start(node, server, report_timeout="200ms")
    driver = node.start_driver("j1")
    check_cancelled(server, server.cancel("j1"), driver)
    assert len(reports) >= TIMES and len(server.connects) == 1
    assert all(0 < int(call.headers["grpc-timeout"].removesuffix("m")) <= 200 for call in reports)
    assert reports[-1].at - reports[0].at > 0.2 * (len(reports) - 2)  # one less: the first may have been noted late
    assert {call.stream for call in reports} <= server.connections[0].reset_streams


# ---- graceful and less graceful GOAWAY

def test_goaway_in_the_middle_of_a_stream(node, server):
    """New calls go to a new connection, the old stream goes on: neither a command nor a report is lost."""
    start(node, server)
    slow, later = node.start_driver("j1"), node.start_driver("j2")
    node.master.fault("lost", "kill")  # accepted, but the driver goes on until this test ends it
    first = server.cancel("j1")
    node.agent.wait_log("(?i)kill accepted.*j1")
    old, said = server.connections[0], threading.Event()
    watch = old.watches[0]
    assert slow.alive()
    old.do(lambda: (old.goaway(), said.set()))
    assert said.wait(LIMIT)
    slow.process.kill()
    check_cancelled(server, first, slow)
    second = server.cancel("j2")  # on the old stream
    check_cancelled(server, second, later)
    assert len(server.connects) == 2 and old.watches == [watch] and not old.closed
    assert {call.connection for call in server.calls if call.final} == {server.connections[1]}

    old.do(lambda: (watch.end(), old.watches.clear()))
    server.wait(lambda: [c for c in server.calls if c.method == "Watch" and c.connection is not old], "the next Watch")
    last = node.start_driver("j3")
    check_cancelled(server, server.cancel("j3"), last)
    assert len(server.connects) == 2 and len([c for c in server.calls if c.method == "Watch"]) == 2
    assert SECRET not in node.agent.log()


def goaway_at_once(call):
    call.connection.goaway(0)
    call.connection.closed = True


def test_goaway_above_the_last_stream(node, server):
    """The call was not looked at, so it goes to the next connection; but not in a circle without back-off."""
    watches = server.misbehave("Watch", goaway_at_once, 2 * TIMES)
    start(node, server)
    server.wait_script("Watch")
    check_log(node, "no connection to the control plane: UNAVAILABLE")
    driver = node.start_driver("j1")
    check_cancelled(server, server.cancel("j1"), driver)
    check_backoff([call.at for call in watches], grows=False, pairs=True)


# ---- connections

@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("wire"))


def context(pair, client_ca=None, protocols=("h2",)):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(pair.certificate, pair.key)
    if protocols:
        made.set_alpn_protocols(protocols)
    if client_ca:
        made.load_verify_locations(client_ca)
        made.verify_mode = ssl.CERT_REQUIRED
    return made


def expired(authority):
    """A certificate that was good until yesterday."""
    pair = authority.issue("expired")
    run("x509", "-req", "-in", str(authority.directory / "expired.csr"), "-CA", authority.certificate, "-CAkey", authority.key,
        "-CAcreateserial", "-days", "-1", "-copy_extensions", "copy", "-out", pair.certificate)
    return pair


def stranger(authority):
    directory = authority.directory / "stranger"
    directory.mkdir(exist_ok=True)
    return Authority(directory, "stranger").issue("server")


def check_connections(node, server, says, **keys):
    """The script for the connections runs out with back-off, the log says why, then a cancel goes to its end."""
    times = server.connects
    start(node, server, **keys)
    server.wait_script(None)
    check_log(node, f"no connection to the control plane: UNAVAILABLE: .*{says}")
    driver = node.start_driver("j1")
    check_cancelled(server, server.cancel("j1"), driver)
    check_log(node, "connected to the control plane")
    check_backoff(times[:TIMES + 1], grows=True)
    assert len(times) == TIMES + 1
    assert {call.headers["authorization"] for call in server.calls} == {f"Bearer {SECRET}"}


@pytest.mark.parametrize("wrong, says", [
    ("ca", "certificate is not accepted: .*(unable to get local issuer|self.signed)"),
    ("name", "certificate is not accepted: .*(IP address|[Hh]ost ?name) mismatch"),
    ("expired", "certificate is not accepted: .*expired"),
    ("no client certificate", "certificate required"),
    ("HTTP/1.1 only", "does not offer HTTP/2"),
    ("no ALPN", "does not offer HTTP/2"),
    ("ALPN refused", "no application protocol"),
    ("proxy 403 behind TLS", "does not offer HTTP/2"),
])
def test_tls(node, authority, wrong, says):
    good = authority.issue("server")
    with BadServer(context(good)) as server:
        page = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
        behaviour = {
            "ca": lambda: handshake(context(stranger(authority))),
            "name": lambda: handshake(context(authority.issue("elsewhere", "DNS:elsewhere.example"))),
            "expired": lambda: handshake(context(expired(authority))),
            "no client certificate": lambda: handshake(context(good, authority.certificate)),
            "HTTP/1.1 only": lambda: handshake(context(good, protocols=("http/1.1",))),
            "no ALPN": lambda: handshake(context(good, protocols=())),
            "ALPN refused": lambda: alert(120),
            "proxy 403 behind TLS": lambda: http1(page, context(good, protocols=())),
        }[wrong]()
        server.misconnect(behaviour, TIMES)
        check_connections(node, server, says, ca_file=authority.certificate)


@pytest.mark.parametrize("status", [403, 404, 503])
def test_http_proxy_in_the_way(node, server, status):
    """It answers the preface in HTTP/1.1, with HTML."""
    server.misconnect(http_proxy(status), TIMES)
    check_connections(node, server, "the peer speaks HTTP/1.1, not HTTP/2")


def test_http1_server(node, server):
    server.misconnect(http1(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"), TIMES)
    check_connections(node, server, "the peer speaks HTTP/1.1, not HTTP/2")


# ---- commands in odd order and number

def test_commands_out_of_order(node, server):
    """Each is handled by its id; the stored position does not go back."""
    start(node, server)
    drivers = {job_id: node.start_driver(job_id) for job_id in ("j5", "j3", "j4", "j1")}
    watch = server.wait(lambda: server.connections and server.connections[0].watches, "the stream")[0]
    operations = {}
    events = []
    for job_id in drivers:
        operations[job_id], event = server.new_command(job_id)
        events.append(wire.with_revision(int(job_id[1:]), event))
    watch.connection.do(lambda: [watch.data(frame(event)) for event in events])
    for job_id, driver in drivers.items():
        check_cancelled(server, operations[job_id], driver)
    check_log(node, "a revision went backward within the stream: revision 3 after 5")
    node.agent.restart()
    watches = server.wait(lambda: [c for c in server.calls if c.method == "Watch"][1:], "the next Watch")
    assert watches[0].request.after_revision == 5
    assert watches[0].request.instance_id != watch.request.instance_id


def test_another_clusters_command(node, server):
    """Refused under its id and never acted on, though a driver of that job runs here."""
    start(node, server)
    driver = node.start_driver("j1")
    report = server.wait_final(server.cancel("j1", cluster_id="c2"))
    assert report.outcome == "INVALID_COMMAND" and report.operation.error.code == 3
    other = node.start_driver("j2")
    check_cancelled(server, server.cancel("j2"), other)
    assert driver.alive() and not driver.kills


FLOOD = 10_000
FLOOD_LIMIT = 45  # seconds on a busy machine; it takes a fifth of that
FLOOD_MEMORY_KB = 100 * 1024


def memory_kb(pid, name):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return int(re.search(rf"^{name}:\s*(\d+) kB", file.read(), re.MULTILINE).group(1))


def sanitized():
    """AddressSanitizer keeps what is freed: its memory says nothing."""
    return b"__asan_init" in AGENT.read_bytes()


def test_flood(node):
    """10,000 commands for jobs of no node, and in the middle one for a job that is here."""
    node.start(plane={"not_found_grace": 600.0, "deadline": 600.0, "heartbeat": 10.0})
    driver = node.run_job("here")
    pid = node.agent.process.pid
    before = memory_kb(pid, "VmRSS")
    plane, wanted = node.plane, None
    with plane.state.transaction():
        for number in range(FLOOD):
            if number == FLOOD // 2:
                wanted = plane.cancel("here").id
            metadata = wire.pack(wire.CreateJobMetadata(cluster_id=CLUSTER, job_id=f"absent-{number}"))
            plane.inject_cancel(wire.Operation(id=f"flood-{number}", metadata=metadata), job_id=f"absent-{number}")
    started = time.monotonic()
    plane.wait_done(wanted, FLOOD_LIMIT)
    cancelled = time.monotonic() - started
    assert not driver.alive() and node.final(wanted).outcome == "CANCELLED"

    def reports():
        """Cheap, since it is asked after each message that the control plane sends."""
        other = plane.state.row("SELECT COUNT(*) FROM report WHERE operation_id = ?", wanted)[0]
        return plane.state.row("SELECT MAX(number) FROM report")[0] - other

    plane.wait(lambda: reports() >= FLOOD, FLOOD_LIMIT, "the reports of the flood")
    reported = time.monotonic() - started
    grown, peak = memory_kb(pid, "VmRSS") - before, memory_kb(pid, "VmHWM") - before
    print(f"flood: cancelled after {cancelled:.1f} s, all reported after {reported:.1f} s, memory +{grown} KB (peak +{peak} KB)")
    if not sanitized():
        assert peak < FLOOD_MEMORY_KB
    last = node.run_job("last")
    node.wait_cancelled(node.cancel("last"), last)  # whatever was to come twice has come by now
    flood = [report for report in plane.reports() if report.operation.id.startswith("flood-")]
    assert len(flood) == FLOOD == len({report.operation.id for report in flood})
    assert {report.outcome for report in flood} == {"NOT_ON_NODE"}
    assert node.agent.running()
