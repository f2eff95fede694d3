# SPDX-License-Identifier: Apache-2.0
"""
faults: what a test wants to go wrong

    METHOD:KIND[,key=value...]         METHOD: watch or report; KIND one of the table below; times=N (default 1, 0: for ever)

    status     code=UNAVAILABLE [pushback=MS]   the call ends with that status, nothing is done
    delay      seconds=1                        then as usual
    drop       after=N                          watch: the stream ends with UNAVAILABLE after N messages
    silence    after=N                          watch: nothing is sent after N messages, heartbeats included; the call stays
    garbage    after=N                          watch: one message that is no WatchResponse after N messages
    lost       code=UNAVAILABLE                 report: it is applied, the answer is lost
    unspecified                                 report: nothing is applied, every disposition is DISPOSITION_UNSPECIFIED
    short                                       report: the last result is missing, its report is not applied
    reject     [operation=ID]                   report: REJECTED, for each report (of that operation)
    poison     operation=ID code=INVALID_ARGUMENT   report: every call with a report of that operation is refused

`node=NAME` restricts any of them to one node. GOAWAY is a matter of whole connections: --connection-age.
"""
import threading

import grpc

KINDS = {"watch": ("status", "delay", "drop", "silence", "garbage"),
         "report": ("status", "delay", "lost", "unspecified", "short", "reject", "poison")}
NUMBERS = ("times", "after", "pushback")


class Fault:
    def __init__(self, method, kind, times=1, **arguments):
        if kind not in KINDS.get(method, ()):
            raise ValueError(f"{method}:{kind}: methods and kinds are {KINDS}")
        self.method = method
        self.kind = kind
        self.left = times  # 0: for ever
        code = arguments.pop("code", "UNAVAILABLE")
        if code not in grpc.StatusCode.__members__:
            raise ValueError(f"{method}:{kind}: no status code {code!r}")
        self.code = grpc.StatusCode[code]
        self.after = arguments.pop("after", 0)
        self.seconds = float(arguments.pop("seconds", 1))
        self.pushback = arguments.pop("pushback", None)
        self.node = arguments.pop("node", None)
        self.operation = arguments.pop("operation", None)
        self.hits = 0
        if arguments:
            raise ValueError(f"{method}:{kind}: unknown {', '.join(arguments)}")


class Faults:
    def __init__(self):
        self._lock = threading.Lock()
        self._faults = []

    def add(self, method, kind, **arguments):
        fault = Fault(method, kind, **arguments)
        with self._lock:
            self._faults.append(fault)
        return fault

    def parse(self, text):
        """One --fault. ValueError says what is wrong."""
        head, *rest = text.split(",")
        method, _, kind = head.partition(":")
        arguments = {}
        for part in rest:
            key, equals, value = part.partition("=")
            if not equals:
                raise ValueError(f"{text!r}: {part!r} is not key=value")
            arguments[key] = int(value) if key in NUMBERS else value
        return self.add(method, kind, **arguments)

    def clear(self):
        with self._lock:
            self._faults.clear()

    def take(self, method, node, kinds, operations=()):
        """The first fault that is due for a call of `node`, counted down."""
        with self._lock:
            for fault in self._faults:
                if fault.method != method or fault.kind not in kinds or fault.node not in (None, node):
                    continue
                if fault.operation is not None and fault.operation not in operations:
                    continue
                fault.hits += 1
                fault.left -= 1
                if fault.left == 0:
                    self._faults.remove(fault)
                return fault
        return None
