#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""
sparkmaster: a scripted Spark standalone master for tests (Python 3.11, standard library only)

It speaks the REST submission API as the real master does: same routes, statuses, field order, pretty-printing and
texts, keep-alive with 30 s of idle time, HTML where Jetty answers by itself (sources: deploy/rest/*.scala,
deploy/master/Master.scala; seen on Spark 3.5.9 and 4.3.0). Behind it stands a model of Workers that kill one driver
at a time: SIGTERM, wait `terminate_timeout`, SIGKILL, and a moment after the death the state changes. Processes are
signalled through a pidfd taken when the driver is registered, so never a stranger's. It binds 127.0.0.1 on a
free port and never waits longer than a test asked for.

    with SparkMaster() as master:                       # master.url is "http://127.0.0.1:PORT"
        driver = master.add_driver("driver-1", pid=process.pid, worker_host_port="127.0.0.1:7078")
        ...
        assert master.requests_for("kill", "driver-1") and driver.state == "KILLED"

    SparkMaster(mode="ALIVE", cluster=None, port=0, version="3.5.9", token=None)
        mode      ALIVE, STANDBY, RECOVERING or COMPLETING_RECOVERY; may be assigned at any time
        cluster   a Cluster shared by several masters (HA); None: one of its own, `master.cluster`
        version   decides killall/clear/readyz (from 4.0)
        token     Authorization: Bearer <token> is required, else 403 HTML as JWSFilter does it; may be assigned
      .start() .stop()           also by `with`; after stop() the port refuses; start() takes the same port again
      .url .port
      .requests                  list of Request(method, path, route, driver_id, headers, body, time, answer), oldest
                                 first; route is "kill", "status", ...; headers lower case; time is time.monotonic();
                                 answer the HTTP status, or the name of the fault for one that got none
      .requests_for(route, driver_id=None)
      .wait_request(route, driver_id=None, count=1, timeout=10)   the count-th such request, or AssertionError
      .fault(kind, route=None, count=1, **arguments)              see FAULTS; count=None: until clear_faults()
      .clear_faults()
      .add_driver() .set_state() .forget() .drivers               those of the cluster

    Cluster(terminate_timeout=10.0, end_delay=0.01)
      .add_driver(id, pid=None, state="RUNNING", worker_id=..., worker_host_port="127.0.0.1:7078",
                  killed_state="KILLED", exit_state="FAILED") -> Driver
                                 state "SUBMITTED": queued, no worker. killed_state: after a kill (a JVM that exits 0
                                 on SIGTERM gives "FINISHED"). exit_state: after it ended unasked; None: stays as it is
                                 (supervised).
      .place(id, pid, worker_id=..., worker_host_port=...)        the process of a queued or relaunched driver
      .set_state(id, state)
      .forget(id)                as after a failover or `clear`: the id is unknown from now on
      .wait_state(id, *states, timeout=10)
      .close()                   lets its threads go (a master's own cluster: done by `with`); processes are left alone
      .drivers                   id -> Driver(id, pid, state, worker_id, worker_host_port, kills, request)
      .on_kill = function(driver)             in place of the Worker's work, on a thread; must set the state itself
      .on_create = function(driver, request)  after a create was answered, on a thread; usually place()s a process

    FAULTS: what happens to the next `count` requests of `route` ("the real answer": what was asked is also done)
      "hang"                     read it and never answer
      "close" / "reset"          close, or reset, the connection without an answer
      "unanswered"               do what was asked, then close: the answer is lost
      "lost"                     kill: answer success:true and do nothing
      "status", code=503         an HTML error page (also 403, 404, 500, a redirect with location="...")
      "delay", seconds=1.0       then the real answer
      "drip", seconds=0.05       the real answer, that long between single bytes
      "truncated"                the real answer: Content-Length as announced, half of the body, close
      "broken"                   the real answer, complete but with JSON that stops half way
      "action", action="..."     the real answer under another `action`
      "huge", size=1 MiB         JSON with a message of that size
      "body", body=b"", code=200, content_type="application/json;charset=utf-8"    any bytes

As a command it prints its URL on the first line, then each request as a line of JSON, and reads commands as lines of
JSON from stdin until end of file: {"mode": "STANDBY"}, {"add_driver": {"id": "driver-1", "pid": 123}},
{"place": {...}}, {"set_state": {"id": "driver-1", "state": "ERROR"}}, {"forget": {"id": ...}},
{"fault": {"kind": "hang"}}, {"clear_faults": {}}.
"""
import argparse
import asyncio
import collections
import dataclasses
import html
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import urllib.parse
from email.utils import formatdate

IDLE_SECONDS = 30  # Jetty's idle timeout
LINE_MAX = 8192  # Jetty's limit of a request line and of all headers
BODY_MAX = 1 << 20
PREFIX = "/v1/submissions/"
HTML = "text/html;charset=iso-8859-1"
ALIVE_STATES = ("SUBMITTED", "RUNNING")
WORKER_ID = "worker-20260101000000-127.0.0.1-7078"
WORKER_HOST_PORT = "127.0.0.1:7078"
REASONS = {
    200: "OK", 302: "Found", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 408: "Request Timeout", 414: "URI Too Long", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 500: "Server Error", 501: "Not Implemented", 502: "Bad Gateway",
    503: "Service Unavailable",
}
FAULTS = ("hang", "close", "reset", "unanswered", "lost", "status", "delay", "drip", "truncated", "broken", "action",
          "huge", "body")


@dataclasses.dataclass
class Request:
    method: str
    path: str
    route: str
    driver_id: str
    headers: dict
    body: bytes
    time: float
    answer: object = None


@dataclasses.dataclass
class Answer:
    code: int
    body: bytes
    content_type: str = "application/json;charset=utf-8"
    headers: tuple = ()
    close: bool = False


class Driver:
    def __init__(self, driver_id, state, killed_state, exit_state):
        self.id = driver_id
        self.state = state
        self.killed_state = killed_state
        self.exit_state = exit_state
        self.worker_id = None
        self.worker_host_port = None
        self.pid = None
        self.kills = 0  # kill messages that reached the worker
        self.request = None  # the CreateSubmissionRequest
        self.killed = False
        self.gone = threading.Event()  # no process, or it has ended
        self.gone.set()
        self.pidfd = -1


def spark_json(fields):
    """The bytes of json4s' pretty printer over Jackson: two blanks, ` : `, keys sorted, null fields left out."""
    lines = []
    for key in sorted(fields):
        value = fields[key]
        if value is None:
            continue
        if isinstance(value, (list, tuple)):
            text = "[ " + ", ".join(json.dumps(item, ensure_ascii=False) for item in value) + " ]"
        else:
            text = json.dumps(value, ensure_ascii=False)
        lines.append(f'  {json.dumps(key)} : {text}')
    return ("{\n" + ",\n".join(lines) + "\n}").encode()


def jetty_html(code, message, uri="", servlet="org.apache.spark.deploy.rest.StandaloneKillRequestServlet"):
    """Jetty's own error page."""
    message = html.escape(message)
    rows = (("URI:", html.escape(uri)), ("STATUS:", str(code)), ("MESSAGE:", message), ("SERVLET:", servlet))
    table = "\n".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows)
    return (f'<html>\n<head>\n<meta http-equiv="Content-Type" content="text/html;charset=ISO-8859-1"/>\n'
            f"<title>Error {code} {message}</title>\n</head>\n<body><h2>HTTP ERROR {code} {message}</h2>\n"
            f"<table>\n{table}\n</table>\n\n</body>\n</html>\n").encode()


class Cluster:
    """What the masters of one cluster know in common, and the Workers: drivers, their processes, their ends."""

    def __init__(self, terminate_timeout=10.0, end_delay=0.01):
        self.terminate_timeout = terminate_timeout
        self.end_delay = end_delay
        self.on_kill = None
        self.on_create = None
        self.drivers = {}
        self._changed = threading.Condition()
        self._workers = {}  # worker id -> kills that wait, and whether a thread serves them
        self._number = 0
        self._closed = threading.Event()

    def add_driver(self, id, pid=None, state="RUNNING", worker_id=WORKER_ID, worker_host_port=WORKER_HOST_PORT,
                   killed_state="KILLED", exit_state="FAILED"):
        driver = Driver(id, state, killed_state, exit_state)
        with self._changed:
            self.drivers[id] = driver
            if state == "SUBMITTED" and pid is None:
                self._changed.notify_all()
                return driver
        self.place(id, pid, worker_id, worker_host_port, state=state)
        return driver

    def place(self, id, pid, worker_id=WORKER_ID, worker_host_port=WORKER_HOST_PORT, state="RUNNING"):
        with self._changed:
            driver = self.drivers[id]
            driver.worker_id, driver.worker_host_port = worker_id, worker_host_port
            driver.pid, driver.state, driver.killed = pid, state, False
            driver.pidfd = -1 if pid is None else os.pidfd_open(pid)
            driver.gone = threading.Event()
            if pid is None:
                driver.gone.set()
            else:
                threading.Thread(target=self._watch, args=(driver, driver.pidfd, driver.gone), daemon=True).start()
            self._changed.notify_all()

    def set_state(self, id, state):
        with self._changed:
            self.drivers[id].state = state
            self._changed.notify_all()

    def forget(self, id):
        with self._changed:
            self.drivers.pop(id, None)
            self._changed.notify_all()

    def wait_state(self, id, *states, timeout=10):
        with self._changed:
            if not self._changed.wait_for(lambda: id in self.drivers and self.drivers[id].state in states, timeout):
                raise AssertionError(f"{id} is {getattr(self.drivers.get(id), 'state', None)}, not {states}")
            return self.drivers[id]

    def close(self):
        """Let waiting Workers go. Processes are left alone."""
        self._closed.set()

    # ---- the master's half

    def kill(self, id):
        """RequestKillDriver of an ALIVE master -> was the id live?"""
        with self._changed:
            driver = self.drivers.get(id)
            if driver is None or driver.state not in ALIVE_STATES:
                return False
            if driver.worker_id is None:  # queued: leaves the queue by a message the master sends itself
                threading.Timer(0.004, self.set_state, (id, "KILLED")).start()
                return True
            queue = self._workers.setdefault(driver.worker_id, collections.deque())
            queue.append(driver)
            if len(queue) == 1:
                threading.Thread(target=self._work, args=(queue,), daemon=True).start()
            return True

    def create(self, request):
        with self._changed:
            id = f"driver-{time.strftime('%Y%m%d%H%M%S')}-{self._number:04d}"
            self._number += 1
        driver = self.add_driver(id, state="SUBMITTED")
        driver.request = request
        return driver

    # ---- the Workers' half

    def _work(self, queue):
        """A Worker's message loop: one kill after another, each until its process is gone."""
        while True:
            with self._changed:
                driver = queue[0]
                driver.kills += 1
            if self.on_kill is not None:
                self.on_kill(driver)
            else:
                self._work_kill(driver)
            with self._changed:
                queue.popleft()
                if not queue or self._closed.is_set():
                    queue.clear()
                    return

    def _work_kill(self, driver):
        with self._changed:
            if driver.state not in ALIVE_STATES:
                return
            driver.killed = True
            gone = driver.gone
        self._signal(driver, signal.SIGTERM)
        if not self._wait_gone(gone):
            self._signal(driver, signal.SIGKILL)
            if not self._wait_gone(gone):
                return  # "This process will likely be orphaned": no state change
        self._closed.wait(self.end_delay)
        with self._changed:
            if driver.state in ALIVE_STATES:
                driver.state = driver.killed_state
                self._changed.notify_all()

    def _signal(self, driver, number):
        with self._changed:  # _watch() closes the descriptor
            if driver.pidfd < 0:
                return
            try:
                signal.pidfd_send_signal(driver.pidfd, number)
            except ProcessLookupError:
                pass

    def _wait_gone(self, gone):
        deadline = time.monotonic() + self.terminate_timeout
        while not gone.is_set() and not self._closed.is_set():
            rest = deadline - time.monotonic()
            if rest <= 0:
                return False
            gone.wait(min(rest, 0.2))
        return gone.is_set()

    def _watch(self, driver, pidfd, gone):
        """A pidfd is readable when its process has ended, also as a zombie."""
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        while not poll.poll(200):
            if self._closed.is_set():
                break
        with self._changed:
            if driver.pidfd == pidfd:
                driver.pidfd = -1
            os.close(pidfd)
            if self._closed.is_set():
                return
            gone.set()
        self._closed.wait(self.end_delay)
        with self._changed:
            if not driver.killed and driver.exit_state and driver.gone is gone and driver.state in ALIVE_STATES:
                driver.state = driver.exit_state
            self._changed.notify_all()


class SparkMaster:
    def __init__(self, mode="ALIVE", cluster=None, port=0, version="3.5.9", token=None, host="127.0.0.1"):
        self.mode = mode
        self.cluster = cluster or Cluster()
        self.host, self.port = host, port
        self.version = version
        self.token = token
        self.requests = []
        self.on_request = None  # called with each Request when it has its answer
        self._arrived = threading.Condition()
        self._faults = []
        self._loop = None
        self._thread = None
        self._owns_cluster = cluster is None

    @property
    def url(self):
        return f"http://{self.host}:{self.port}"

    @property
    def drivers(self):
        return self.cluster.drivers

    def add_driver(self, *arguments, **named):
        return self.cluster.add_driver(*arguments, **named)

    def set_state(self, id, state):
        self.cluster.set_state(id, state)

    def forget(self, id):
        self.cluster.forget(id)

    # ---- scripting

    def fault(self, kind, route=None, count=1, **arguments):
        if kind not in FAULTS:
            raise ValueError(f"no such fault: {kind}")
        with self._arrived:
            self._faults.append([kind, route, count, arguments])

    def clear_faults(self):
        with self._arrived:
            self._faults.clear()

    def _take_fault(self, route):
        with self._arrived:
            for number, fault in enumerate(self._faults):
                if fault[1] in (None, route):
                    if fault[2] is not None:
                        fault[2] -= 1
                        if fault[2] <= 0:
                            del self._faults[number]
                    return fault[0], fault[3]
        return None, {}

    def requests_for(self, route, driver_id=None):
        with self._arrived:
            return [r for r in self.requests if r.route == route and driver_id in (None, r.driver_id)]

    def wait_request(self, route, driver_id=None, count=1, timeout=10):
        with self._arrived:
            if not self._arrived.wait_for(lambda: len(self.requests_for(route, driver_id)) >= count, timeout):
                raise AssertionError(f"{len(self.requests_for(route, driver_id))} requests {route} {driver_id or ''}, "
                                     f"not {count}, after {timeout} s")
            return self.requests_for(route, driver_id)[count - 1]

    # ---- life

    def start(self):
        listener = socket.create_server((self.host, self.port), backlog=1024)
        self.port = listener.getsockname()[1]
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(listener, ready), daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def stop(self):
        if self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._thread = None

    def __enter__(self):
        return self.start()

    def __exit__(self, *exception):
        self.stop()
        if self._owns_cluster:
            self.cluster.close()

    def _run(self, listener, ready):
        asyncio.run(self._serve(listener, ready))

    async def _serve(self, listener, ready):
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        tasks = set()

        async def connected(reader, writer):
            tasks.add(asyncio.current_task())
            try:
                await self._connection(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
                pass
            finally:
                tasks.discard(asyncio.current_task())
                writer.close()

        server = await asyncio.start_server(connected, sock=listener, limit=65536)
        ready.set()
        await self._stopping.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(list(tasks), timeout=1)

    # ---- HTTP

    async def _connection(self, reader, writer):
        while True:
            try:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), IDLE_SECONDS)
            except asyncio.TimeoutError:
                return
            request, keep, refusal = await self._parse(reader, head)
            answer = refusal or await self._handle(request, reader, writer)
            if answer is None:
                return
            if refusal:
                self._record(request, refusal.code)
            await self._write(writer, answer, keep and not answer.close)
            if not keep or answer.close:
                return

    async def _parse(self, reader, head):
        """-> (Request, keep the connection?, Answer for one that Jetty refuses by itself, or None)"""
        lines = head.decode("latin-1").split("\r\n")
        parts = lines[0].split(" ")
        headers = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if colon:
                headers[name.strip().lower()] = value.strip()
        method, path, protocol = parts if len(parts) == 3 else ("?", "?", "?")
        length = headers.get("content-length", "0")
        size = int(length) if length.isdigit() else 0
        body = await reader.readexactly(min(size, BODY_MAX)) if size else b""
        route, driver_id = self._route(path)
        request = Request(method, path, route, driver_id, headers, body, time.monotonic())
        connection = headers.get("connection", "").lower()
        keep = protocol == "HTTP/1.1" and connection != "close" or protocol == "HTTP/1.0" and connection == "keep-alive"
        refusal = None
        if len(lines[0]) > LINE_MAX:
            refusal = 414
        elif len(head) > LINE_MAX:
            refusal = 431
        elif not protocol.startswith("HTTP/1.") or (protocol == "HTTP/1.1" and "host" not in headers):
            refusal = 400
        if refusal:
            page = jetty_html(refusal, REASONS[refusal], path)
            return request, False, Answer(refusal, page, HTML, close=True)
        return request, keep, None

    def _route(self, path):
        path = path.split("?")[0].split(";")[0]
        if not path.startswith(PREFIX):
            return "", ""
        elements = path[len(PREFIX):].split("/")
        return elements[0], urllib.parse.unquote(elements[1]) if len(elements) > 1 else ""

    def _record(self, request, answer):
        request.answer = answer
        if self.on_request:
            self.on_request(request)

    async def _handle(self, request, reader, writer):
        """-> the Answer, or None when the connection is to be closed."""
        kind, arguments = self._take_fault(request.route)
        with self._arrived:
            self.requests.append(request)
            self._arrived.notify_all()
        if kind in ("hang", "close", "reset"):
            self._record(request, kind)
            if kind == "hang":
                while await reader.read(4096):  # until the client gives up, or stop()
                    pass
            if kind == "reset":
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            return None
        if kind == "delay":
            await asyncio.sleep(arguments.get("seconds", 1.0))
        answer = self._answer(request, kind, arguments)
        if kind == "unanswered":
            self._record(request, kind)
            return None
        self._record(request, answer.code)
        if kind == "truncated" or kind == "drip":
            await self._write_odd(writer, answer, kind, arguments)
            return None
        return answer

    def _answer(self, request, kind, arguments):
        if kind == "status":
            code = arguments.get("code", 503)
            headers = (("Location", arguments["location"]),) if "location" in arguments else ()
            return Answer(code, jetty_html(code, REASONS.get(code, str(code)), request.path), HTML, headers)
        if kind == "body":
            return Answer(arguments.get("code", 200), arguments.get("body", b""),
                          arguments.get("content_type", "application/json;charset=utf-8"))
        if kind == "huge":
            return self._reply({"action": "KillSubmissionResponse", "message": "x" * arguments.get("size", 1 << 20),
                                "submissionId": request.driver_id, "success": True})
        answer = self._process(request, lost=kind == "lost")
        if kind == "broken":
            answer.body = answer.body[:len(answer.body) // 2]
        if kind == "action":
            fields = json.loads(answer.body)
            fields["action"] = arguments.get("action", "CreateSubmissionResponse")
            answer.body = spark_json(fields)
        return answer

    def _head(self, answer, keep):
        reason = REASONS.get(answer.code, str(answer.code))
        lines = [f"HTTP/1.1 {answer.code} {reason}", f"Date: {formatdate(usegmt=True)}"]
        if answer.body:
            lines.append(f"Content-Type: {answer.content_type}")
        lines += [f"{name}: {value}" for name, value in answer.headers]
        lines.append(f"Content-Length: {len(answer.body)}")
        if not keep:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def _write(self, writer, answer, keep):
        writer.write(self._head(answer, keep) + answer.body)
        await writer.drain()

    async def _write_odd(self, writer, answer, kind, arguments):
        if kind == "truncated":
            writer.write(self._head(answer, True) + answer.body[:len(answer.body) // 2])
            return await writer.drain()
        for byte in self._head(answer, False) + answer.body:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(arguments.get("seconds", 0.05))

    # ---- the REST servlets

    def _reply(self, fields, code=200):
        return Answer(code, spark_json({"serverSparkVersion": self.version, **fields}))

    def _error(self, code, message, **fields):
        return self._reply({"action": "ErrorResponse", "message": message, **fields}, code)

    def _html(self, code, message, request):
        return Answer(code, jetty_html(code, message, request.path), HTML)

    def _modern(self):
        return int(self.version.split(".")[0]) >= 4

    def _process(self, request, lost=False):
        if self.token is not None:
            given = request.headers.get("authorization")
            if given != f"Bearer {self.token}":
                text = ("Authorization header is missing." if given is None else "JWT Validate Fail"
                        if given.startswith("Bearer ") else "Malformed Authorization header.")
                return self._html(403, text, request)
        if request.method not in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE"):
            return Answer(501, b"", "")
        if request.method not in ("GET", "POST"):
            return Answer(405, b"", "")
        routes = {"create": ("POST", self._create), "kill": ("POST", self._kill), "status": ("GET", self._status)}
        if self._modern():
            routes.update(killall=("POST", self._killall), clear=("POST", self._clear), readyz=("GET", self._readyz))
        if request.route not in routes:
            return self._wrong_route(request)
        method, servlet = routes[request.route]
        if request.method != method:
            return self._html(405, "HTTP method " + request.method + " is not supported by this URL", request)
        return servlet(request, lost)

    def _wrong_route(self, request):
        elements = [e for e in request.path.split("?")[0].split("/") if e]
        tail = f" Please submit requests through http://[host]:[port]{PREFIX[:-1]}/..."
        if not elements:
            return self._error(400, "Missing protocol version." + tail)
        if elements[0] != "v1" or len(elements) > 1 and elements[1] != "submissions":
            return self._error(468, f"Unknown protocol version '{elements[0]}'." + tail, highestProtocolVersion="v1")
        if len(elements) == 1:
            return self._error(400, "Missing the /submissions prefix." + tail)
        actions = "/create, /kill, or /status"
        if self._modern():
            actions = "/create, /kill, /killall, /clear, /status, or /readyz"
        return self._error(400, f"Missing an action: please specify one of {actions}." + tail)

    def _kill(self, request, lost):
        id = request.driver_id
        if not id:
            return self._error(400, "Submission ID is missing in kill request.")
        if self.mode != "ALIVE":
            success, message = False, f"Current state is not alive: {self.mode}. Can only kill drivers in ALIVE state."
        elif lost or self.cluster.kill(id):
            success, message = True, f"Kill request for {id} submitted"
        else:
            success, message = False, f"Driver {id} has already finished or does not exist"
        return self._reply({"action": "KillSubmissionResponse", "message": message, "submissionId": id,
                            "success": success})

    def _status(self, request, lost):
        id = request.driver_id
        if not id:
            return self._error(400, "Submission ID is missing in status request.")
        fields = {"action": "SubmissionStatusResponse", "submissionId": id, "success": False}
        driver = self.drivers.get(id)
        if self.mode != "ALIVE":
            fields["message"] = (
                "Exception from the cluster:\njava.lang.Exception: Current state is not alive: "
                f"{self.mode}. Can only request driver status in ALIVE state.\n"
                "\torg.apache.spark.deploy.master.Master$$anonfun$receiveAndReply$1.applyOrElse(Master.scala:501)\n"
                "\torg.apache.spark.rpc.netty.Inbox.$anonfun$process$1(Inbox.scala:103)\n"
                "\tjava.base/java.lang.Thread.run(Thread.java:840)")
        elif driver is not None:
            fields.update(success=True, driverState=driver.state, workerId=driver.worker_id,
                          workerHostPort=driver.worker_host_port)
        return self._reply(fields)

    def _killall(self, request, lost):
        if self.mode != "ALIVE":
            return self._reply({"action": "KillAllSubmissionResponse", "success": False, "message":
                                f"Current state is not alive: {self.mode}. Can only kill drivers in ALIVE state."})
        for id in list(self.drivers):
            self.cluster.kill(id)
        return self._reply({"action": "KillAllSubmissionResponse", "message": "Kill request for all drivers submitted",
                            "success": True})

    def _clear(self, request, lost):
        for id, driver in list(self.drivers.items()):
            if driver.state not in ALIVE_STATES:
                self.forget(id)
        return self._reply({"action": "ClearResponse", "message": "", "success": True})

    def _readyz(self, request, lost):
        if self.mode == "STANDBY":
            return self._error(503, "Master is not ready.")
        return self._reply({"action": "ReadyzResponse", "message": "", "success": True})

    def _create(self, request, lost):
        try:
            fields = json.loads(request.body)
        except ValueError as error:
            return self._error(400, f"Malformed request: {error}")
        if not isinstance(fields, dict) or fields.get("action") != "CreateSubmissionRequest":
            return self._error(400, "Received message of unexpected type.")
        for field, text in (("clientSparkVersion", "clientSparkVersion"), ("appResource", "Application jar"),
                            ("mainClass", "Main class")):
            if not isinstance(fields.get(field), str):
                return self._error(400, f"Malformed request: {text} is missing.")
        properties = fields.get("sparkProperties")
        if not isinstance(properties, dict) or "spark.app.name" not in properties and not self._modern():
            return self._error(400, "Malformed request: sparkProperties is missing or has no spark.app.name.")
        if self.mode != "ALIVE":
            message = f"Current state is not alive: {self.mode}. Can only accept driver submissions in ALIVE state."
            return self._reply({"action": "CreateSubmissionResponse", "success": False, "message": message})
        known = {"action", "clientSparkVersion", "appResource", "mainClass", "sparkProperties", "appArgs",
                 "environmentVariables", "message"}
        driver = self.cluster.create(fields)
        if self.cluster.on_create is not None:
            threading.Timer(0.005, self.cluster.on_create, (driver, fields)).start()
        return self._reply({"action": "CreateSubmissionResponse", "submissionId": driver.id, "success": True,
                            "message": f"Driver successfully submitted as {driver.id}",
                            "unknownFields": [name for name in fields if name not in known] or None})


def main():
    parser = argparse.ArgumentParser(description="A scripted Spark standalone master (REST submission API).")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--mode", default="ALIVE", choices=("ALIVE", "STANDBY", "RECOVERING", "COMPLETING_RECOVERY"))
    parser.add_argument("--spark-version", default="3.5.9")
    parser.add_argument("--token", help="require this bearer token")
    parser.add_argument("--terminate-timeout", type=float, default=10.0)
    options = parser.parse_args()
    cluster = Cluster(terminate_timeout=options.terminate_timeout)
    master = SparkMaster(options.mode, cluster, options.port, options.spark_version, options.token)

    def show(request):
        shown = {name: getattr(request, name) for name in ("method", "path", "answer", "time")}
        print(json.dumps(shown), flush=True)

    master.on_request = show
    with master:
        print(master.url, flush=True)
        for line in sys.stdin:
            for name, value in (json.loads(line) if line.strip() else {}).items():
                if name == "mode":
                    master.mode = value
                elif name in ("add_driver", "set_state", "forget", "fault", "clear_faults"):
                    getattr(master, name)(**value)
                elif name == "place":
                    cluster.place(**value)
                else:
                    print(json.dumps({"error": f"unknown command {name}"}), flush=True)


if __name__ == "__main__":
    main()
