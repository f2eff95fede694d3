# SPDX-License-Identifier: Apache-2.0
"""
badserver: a control plane that misbehaves on the wire

    with BadServer() as server:
        server.misbehave("Watch", lambda call: call.trailers_only(14, "busy"), 4)     the next four; then it behaves
        server.misconnect(http_proxy(503), 4)                                         the same for whole connections
        operation = server.cancel("j1")                                               to every stream, and to later ones
        server.wait_final(operation)                                                  the one final report

Where nothing else is scripted it keeps the contract in its simplest form: Watch opens with a Bookmark, replays what is
after the revision, closes with a Bookmark and goes on; Report answers APPLIED, or ALREADY_APPLIED for the same bytes.

hyper-h2 does HPACK and the frames, and its checks of what is sent are off. A connection is one thread, since a Python
TLS socket must not be read and written at once; other threads wake it. Nothing sleeps.
"""
import collections
import contextlib
import functools
import select
import socket
import ssl
import struct
import threading
import time

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import hyperframe.frame

from harness import CLUSTER, FINAL, LIMIT, agent_pb2, rules, wire

GRPC = ("content-type", "application/grpc")
SERVICE = "/sparkcancel.agent.v1.CancelAgentService/"
HEARTBEAT_SECONDS = 60  # the agent's silence limit is three of them: no test here is about that


def frame(message, compressed=0, size=None):
    """A length-prefixed message; `size` is what the prefix claims."""
    raw = message if isinstance(message, bytes) else message.SerializeToString()
    return struct.pack(">BI", compressed, len(raw) if size is None else size) + raw


class Call:
    """One request, and what a script can do to it."""

    def __init__(self, connection, stream, headers):
        self.connection = connection
        self.server = connection.server
        self.stream = stream
        self.headers = dict(headers)
        self.method = self.headers[":path"].removeprefix(SERVICE)
        self.body = b""
        self.at = None
        self.position = 0

    def finish_request(self):
        """All of it is here: before anything is answered."""
        self.at = time.monotonic()
        message = self.body[5:]
        if self.method == "Watch":
            self.request = agent_pb2.WatchRequest.FromString(message)
            self.reports = []
        else:
            self.request = agent_pb2.ReportRequest.FromString(message)
            self.reports = [Sent(raw) for raw in wire.field_bytes(message, 4)]
        self.final = any(report.final for report in self.reports)

    # ---- pieces of an answer

    def head(self, *fields, status=200, end=False):
        self.connection.h2.send_headers(self.stream, [(":status", str(status)), *fields], end_stream=end)

    def data(self, raw, end=False):
        self.connection.h2.send_data(self.stream, raw, end_stream=end)

    def trailers(self, *fields):
        self.connection.h2.send_headers(self.stream, list(fields), end_stream=True)

    def trailers_only(self, status, text="", *fields):
        self.head(GRPC, ("grpc-status", str(status)), ("grpc-message", text), *fields, end=True)

    def html(self, status):
        """What a gateway that speaks HTTP/2 and not gRPC says."""
        self.head(("content-type", "text/html"), ("location", "https://login.example/"), status=status)
        self.data(b"<html><body>Sorry.</body></html>", end=True)

    def begin(self):
        """A proper beginning: headers, and for Watch its first Bookmark."""
        self.head(GRPC)
        if self.method == "Watch":
            self.data(frame(self.server.bookmark(self.request.after_revision)))

    def reset(self, code):
        self.connection.h2.reset_stream(self.stream, code)

    def destroy(self):
        self.connection.destroy()

    # ---- the proper answer

    def behave(self):
        if self.method == "Watch":
            self.begin()
            self.position = self.request.after_revision
            self.pump()
            self.data(frame(self.server.bookmark(self.server.position)))
            self.connection.watches.append(self)
        else:
            self.begin()
            self.data(frame(self.server.apply(self)))
            self.trailers(("grpc-status", "0"))

    def pump(self):
        """What is in the log and was not sent on this stream."""
        for revision, event in self.server.events_after(self.position):
            self.data(frame(wire.with_revision(revision, event)))
            self.position = revision

    def end(self, status=14, text="going away"):
        self.trailers(("grpc-status", str(status)), ("grpc-message", text))


class Sent:
    """A report as it stood in a request."""

    def __init__(self, raw):
        self.raw = raw
        report = agent_pb2.CancelReport.FromString(raw)
        self.operation = report.operation
        self.id = report.operation.id
        self.sequence = report.sequence
        self.metadata = wire.report_of(report)
        self.outcome = rules.outcome_name(self.metadata.outcome)
        self.final = self.outcome in FINAL
        self.disposition = None  # what it was answered; None: nothing

    def __repr__(self):
        return f"<{self.outcome} of {self.id} #{self.sequence}: {self.disposition}>"


class Connection:
    def __init__(self, server, sock):
        self.server = server
        self.socket = sock
        self.closed = False
        self.calls = {}
        self.watches = []
        self.reset_streams = set()  # by the agent
        self.tasks = collections.deque()
        self._wake_in, self._wake_out = socket.socketpair()
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(
            client_side=False, header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False))
        # hpack's Huffman coder takes seconds for 50 KB
        self.h2.encoder.encode = functools.partial(self.h2.encoder.encode, huffman=False)

    def wake(self):
        with contextlib.suppress(OSError):
            self._wake_out.send(b"x")

    def do(self, task):
        """From another thread: task() on this connection's thread."""
        self.tasks.append(task)
        self.wake()

    def destroy(self):
        """RST: as a machine that has lost its state."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.closed = True

    def goaway(self, last_stream=None):
        """By hand: hyper-h2 takes a connection for closed after its own."""
        last = self.h2.highest_inbound_stream_id if last_stream is None else last_stream
        self.flush()
        self.socket.sendall(hyperframe.frame.GoAwayFrame(0, last_stream_id=last, error_code=0).serialize())

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def run(self):
        try:
            self.h2.initiate_connection()
            self.flush()
            while not self.closed:
                self._turn()
        except (OSError, h2.exceptions.ProtocolError):
            pass  # the agent has left, or what a script did has ended the connection
        finally:
            self.socket.close()
            self._wake_in.close()
            self._wake_out.close()

    def _turn(self):
        pending = isinstance(self.socket, ssl.SSLSocket) and self.socket.pending()
        ready = select.select([self.socket, self._wake_in], [], [], 0 if pending else None)[0]
        if self._wake_in in ready:
            self._wake_in.recv(4096)
        if pending or self.socket in ready:
            data = self.socket.recv(65536)
            if not data:
                self.closed = True
                return
            for event in self.h2.receive_data(data):
                self._take(event)
        while self.tasks and not self.closed:
            self.tasks.popleft()()
        for watch in self.watches:
            watch.pump()
        if not self.closed:
            self.flush()

    def _take(self, event):
        if isinstance(event, h2.events.RequestReceived):
            self.calls[event.stream_id] = Call(self, event.stream_id, event.headers)
        elif isinstance(event, h2.events.DataReceived):
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self.calls[event.stream_id].body += event.data
        elif isinstance(event, h2.events.StreamEnded) and not self.closed:
            call = self.calls[event.stream_id]
            call.finish_request()
            self.server.answer(call)
        elif isinstance(event, h2.events.StreamReset):
            self.reset_streams.add(event.stream_id)
            self.watches = [watch for watch in self.watches if watch.stream != event.stream_id]


class BadServer:
    def __init__(self, tls=None):
        self.tls = tls  # an SSLContext
        self.calls = []
        self.connects = []  # when
        self.connections = []
        self.log = []  # (revision, event)
        self.applied = {}  # (operation, sequence) -> raw
        self._scripts = {"Watch": collections.deque(), "Report": collections.deque(), None: collections.deque()}
        self._changed = threading.Condition(threading.RLock())
        self._operations = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self._threads = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    @property
    def endpoint(self):
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(LIMIT)
        for connection in self.connections:
            connection.do(connection.destroy)
        for thread in self._threads:
            thread.join(LIMIT)
            assert not thread.is_alive(), "a connection of the server does not end"

    # ---- scripts

    def misbehave(self, method, behaviour, times):
        """The next calls; of Report those with a final report count, and the others get the same answer."""
        with self._changed:
            self._scripts[method].append([behaviour, times, []])
            return self._scripts[method][-1][2]

    def misconnect(self, behaviour, times):
        """behaviour(server, socket) for the next connections -> the socket to go on with, or None."""
        return self.misbehave(None, behaviour, times)

    def _next(self, method, item, counts):
        with self._changed:
            script = self._scripts[method]
            if not script:
                return None
            script[0][2].append(item)
            script[0][1] -= counts
            self._changed.notify_all()
            return script.popleft()[0] if script[0][1] == 0 else script[0][0]

    def wait(self, test, what, timeout=LIMIT):
        with self._changed:
            found = self._changed.wait_for(test, timeout)
        assert found, f"{what} did not come within {timeout} s"
        return found

    def wait_script(self, method):
        self.wait(lambda: not self._scripts[method], f"the end of the script for {method or 'connections'}")

    # ---- connections

    def _accept(self):
        while True:
            try:
                sock = self._listener.accept()[0]
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(sock, time.monotonic()), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock, now):
        with self._changed:
            self.connects.append(now)
            self._changed.notify_all()
        sock.settimeout(LIMIT)
        behaviour = self._next(None, now, 1)
        try:
            if behaviour:
                sock = behaviour(self, sock)
            elif self.tls:
                sock = self.tls.wrap_socket(sock, server_side=True)
        except OSError:
            sock.close()
            return
        if sock is None:
            return
        connection = Connection(self, sock)
        with self._changed:
            self.connections.append(connection)
        connection.run()

    def answer(self, call):
        with self._changed:
            self.calls.append(call)
            self._changed.notify_all()
        behaviour = self._next(call.method, call, call.method == "Watch" or call.final) or Call.behave
        behaviour(call)

    # ---- the contract

    @property
    def position(self):
        with self._changed:
            return self.log[-1][0] if self.log else 0

    def bookmark(self, revision):
        bookmark = agent_pb2.Bookmark(now=wire.timestamp(wire.now_usec()))
        bookmark.heartbeat_interval.FromSeconds(HEARTBEAT_SECONDS)
        return agent_pb2.WatchResponse(revision=revision, bookmark=bookmark)

    def events_after(self, revision):
        with self._changed:
            return [item for item in self.log if item[0] > revision]

    def new_command(self, job_id, cluster_id=CLUSTER, operation_id=None):
        """-> (operation id, event)"""
        with self._changed:
            self._operations += 1
            operation_id = operation_id or f"op-{self._operations}"
        metadata = wire.pack(wire.CreateJobMetadata(cluster_id=cluster_id, job_id=job_id))
        operation = wire.Operation(id=operation_id, description="Cancel Spark job", metadata=metadata)
        return operation_id, rules.cancel_event(operation.SerializeToString(), deadline=wire.now_usec() + 60_000_000)

    def cancel(self, job_id, **command):
        """A command on every open stream, and in every later replay -> the operation's id."""
        operation_id, event = self.new_command(job_id, **command)
        with self._changed:
            self.log.append((self.position + 1, event))
        for connection in list(self.connections):
            connection.wake()
        return operation_id

    def apply(self, call):
        """A ReportRequest -> ReportResponse."""
        response = agent_pb2.ReportResponse()
        with self._changed:
            for report in call.reports:
                known = self.applied.setdefault((report.id, report.sequence), report.raw)
                assert known == report.raw, "two reports under one sequence"
                again = any(r.disposition for c in self.calls for r in c.reports if r.raw == report.raw)
                report.disposition = "ALREADY_APPLIED" if again else "APPLIED"
                response.results.add(operation_id=report.id, disposition=agent_pb2.Disposition.Value(report.disposition))
            self._changed.notify_all()
        return response

    # ---- what came

    def reports(self, operation_id):
        with self._changed:
            return [report for call in self.calls for report in call.reports if report.id == operation_id]

    def wait_final(self, operation_id, timeout=LIMIT):
        """The final report, when it was applied; exactly one, however often it had to be sent."""
        self.wait(lambda: [r for r in self.reports(operation_id) if r.final and r.disposition], f"the end of {operation_id}",
                  timeout)
        finals = [report for report in self.reports(operation_id) if report.final]
        assert len({report.raw for report in finals}) == 1, finals
        assert [report.disposition for report in finals if report.disposition] == ["APPLIED"], finals
        return finals[0]


# ---- connections that go wrong

def http1(answer, context=None):
    """A server that reads what comes and answers in HTTP/1.1, whatever was said."""
    def behave(_, sock):
        if context:
            sock = context.wrap_socket(sock, server_side=True)
        with sock:
            sock.recv(65536)
            sock.sendall(answer)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
    return behave


def http_proxy(status):
    body = b"<html><head><title>Proxy</title></head><body>Access is not possible.</body></html>"
    return http1(b"HTTP/1.1 %d Something\r\nServer: proxy\r\nContent-Type: text/html\r\nContent-Length: %d\r\n"
                 b"Connection: close\r\n\r\n%s" % (status, len(body), body))


def handshake(context):
    """TLS by another context; the agent is expected to go."""
    def behave(_, sock):
        with context.wrap_socket(sock, server_side=True) as tls:
            while tls.recv(65536):
                pass
    return behave


def alert(number):
    """A fatal TLS alert for the ClientHello (RFC 8446 section 6)."""
    def behave(_, sock):
        with sock:
            sock.recv(65536)
            sock.sendall(bytes((21, 3, 3, 0, 2, 2, number)))
            while sock.recv(65536):
                pass
    return behave
