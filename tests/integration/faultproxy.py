# SPDX-License-Identifier: Apache-2.0
"""
faultproxy: a TCP proxy on the loopback address that does to its connections what networks do, by seed

    with FaultProxy(target_port, seed=7, name="plane") as proxy:      # proxy.port leads to 127.0.0.1:target_port
        ...
        proxy.calm()                                                   # from now on it only passes on

What happens to the n-th connection is drawn from (seed, name, n) alone, for each direction by itself:

    pass      nothing
    delay     each piece comes some milliseconds late
    single    single bytes, each a packet of its own (the first few thousand)
    cut       after some bytes both sides are closed: in the middle of a frame
    reset     the same with a RST
    drop      after some bytes that direction's bytes are thrown away for a while, then the connection is closed
    freeze    after some bytes that direction stands still for a while, then goes on
    refuse    (both directions) a RST in place of an answer

It waits for nothing but its own modelled delays. `proxy.exchanges` is what went through, for a ledger: see Exchange.
"""
import asyncio
import collections
import contextlib
import dataclasses
import random
import re
import socket
import struct
import threading
import time

ENDS = ("cut", "reset", "drop")  # a direction's fault that ends the connection
KINDS = ("pass", "delay", "single", "cut", "reset", "drop", "freeze", "refuse")
SINGLE_BYTES = 3000
PIECE = 65536


@dataclasses.dataclass
class Exchange:
    """One HTTP/1.1 request on a connection, as the proxy saw it. Times are time.time()."""
    connection: int
    line: str
    asked: float  # its first byte came
    is_first: bool = True  # on its connection
    answered: float = None  # the last byte of the answer was passed on, and the connection was not reset later
    answer: bytes = b""


@dataclasses.dataclass
class Plan:
    kind: str
    after: int  # bytes
    seconds: float

    @staticmethod
    def draw(dice, weights, reach, seconds):
        kind = dice.choices([kind for kind in KINDS], [weights.get(kind, 1) for kind in KINDS])[0]
        longest = {"delay": seconds / 20}.get(kind, seconds)
        return Plan(kind, dice.randrange(reach), dice.uniform(longest / 10, longest))


class Connection:
    def __init__(self, proxy, number, reader, writer):
        self.proxy = proxy
        self.number = number
        self.client = (reader, writer)
        self.server = None
        self.was_reset = False
        dice = random.Random(f"{proxy.seed}/{proxy.name}/{number}")
        self.up, self.down = (Plan.draw(dice, proxy.weights, proxy.reach, proxy.seconds) for _ in range(2))
        if proxy.is_calm:
            self.up = self.down = Plan("pass", 0, 0)
        self.seen = {"up": b"", "down": b""}  # what was asked, and what was passed on as answers
        self.asked = []  # (offset of the byte after a piece, when it came)
        self.answered = []

    def reset(self):
        self.was_reset = True
        for _, writer in filter(None, (self.client, self.server)):
            with contextlib.suppress(OSError, AttributeError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def close(self):
        for _, writer in filter(None, (self.client, self.server)):
            writer.close()

    async def run(self):
        if "refuse" in (self.up.kind, self.down.kind):
            self.proxy.count("refuse")
            return self.reset()
        try:
            self.server = await asyncio.open_connection("127.0.0.1", self.proxy.target_port)
        except OSError:
            return self.reset()
        for _, writer in (self.client, self.server):
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ways = [asyncio.ensure_future(self.pump("up", self.up, self.client[0], self.server[1])),
                asyncio.ensure_future(self.pump("down", self.down, self.server[0], self.client[1]))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self.close()

    async def pump(self, way, plan, reader, writer):
        """Until one side has closed, or the plan has."""
        passed = 0
        while True:
            piece = await reader.read(PIECE)
            if not piece:
                return
            if way == "up":
                self.note("up", piece)
            if self.proxy.is_calm:
                plan = Plan("pass", 0, 0)
            if plan.kind == "delay":
                self.proxy.count(plan.kind)
                await asyncio.sleep(plan.seconds)
            elif plan.kind == "single" and passed < SINGLE_BYTES:
                self.proxy.count(plan.kind)
                for at in range(min(len(piece), SINGLE_BYTES)):
                    await self.push(way, writer, piece[at:at + 1])
                piece = piece[SINGLE_BYTES:]
            elif plan.kind in (*ENDS, "freeze") and passed + len(piece) > plan.after:
                self.proxy.count(plan.kind)
                head, piece = piece[:plan.after - passed], piece[plan.after - passed:]
                await self.push(way, writer, head)
                passed += len(head)
                if plan.kind == "reset":
                    return self.reset()
                if plan.kind == "cut":
                    return
                await asyncio.sleep(plan.seconds)
                if plan.kind == "drop":
                    return
                plan = Plan("pass", 0, 0)
            await self.push(way, writer, piece)
            passed += len(piece)

    async def push(self, way, writer, piece):
        if not piece:
            return
        writer.write(piece)
        await writer.drain()
        if way == "down":
            self.note("down", piece)

    # ---- what went through

    def note(self, way, piece):
        if self.proxy.ledger:
            self.seen[way] += piece
            (self.asked if way == "up" else self.answered).append((len(self.seen[way]), time.time()))

    def exchanges(self):
        """HTTP/1.1 without bodies upwards: requests end with an empty line; answers have a Content-Length."""
        found, at = [], 0
        for match in re.finditer(rb"(.*?)\r\n(?:.*?\r\n)*?\r\n", self.seen["up"]):
            found.append(Exchange(self.number, match[1].decode("latin-1"), self.time(self.asked, match.start() + 1), not found))
        for exchange in found:
            match = re.compile(rb"HTTP/1\.1 (?:.*?\r\n)*?content-length: (\d+)\r\n(?:.*?\r\n)*?\r\n", re.IGNORECASE).match(
                self.seen["down"], at)
            if not match or len(self.seen["down"]) < match.end() + int(match[1]):
                break
            at = match.end() + int(match[1])
            exchange.answer = self.seen["down"][match.end():at]
            if not self.was_reset:
                exchange.answered = self.time(self.answered, at)
        return found

    @staticmethod
    def time(log, offset):
        return next(when for end, when in log if end >= offset)


class FaultProxy:
    """weights: of KINDS, 1 unless told otherwise. reach: a fault strikes within so many bytes. seconds: the longest freeze."""

    def __init__(self, target_port, seed, name, weights=None, reach=4000, seconds=2.0, ledger=False):
        self.target_port = target_port
        self.seed, self.name = seed, name
        self.weights = weights or {}
        self.reach, self.seconds, self.ledger = reach, seconds, ledger
        self.is_calm = False
        self.faults = collections.Counter()  # that have struck
        self.connections = []
        self.port = 0
        self._tasks = set()
        self._open = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def start(self):
        self._thread.start()
        assert self._ready.wait(10), "the proxy does not listen"
        return self

    async def _serve(self):
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        connection = Connection(self, self.count("connections") - 1, reader, writer)
        self._open.add(connection)
        if self.ledger:
            self.connections.append(connection)
        try:
            await connection.run()
        except (OSError, asyncio.CancelledError):
            connection.reset()
        finally:
            self._open.discard(connection)
            self._tasks.discard(task)

    def count(self, what):
        self.faults[what] += 1
        return self.faults[what]

    def calm(self):
        """No fault begins any more."""
        self.is_calm = True

    def cut_all(self):
        """Reset every connection that is open."""
        self._loop.call_soon_threadsafe(lambda: [connection.reset() for connection in list(self._open)])

    def exchanges(self):
        return [exchange for connection in self.connections for exchange in connection.exchanges()]

    def close(self):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.close()
