# SPDX-License-Identifier: Apache-2.0
"""
page: what faults.so is told and what it has seen; the layout is that of struct page in faults.c
"""
import ctypes
import dataclasses
import mmap
import os
import re
import subprocess

KINDS = ["allocate", "open", "read", "write", "sync", "file", "pidfd", "inotify", "epoll", "socket", "connect", "timer",
         "directory", "eventfd", "thread"]
MODULES = ["own", "sqlite", "nghttp2", "protobuf-c", "json-c", "inih", "systemd", "curl", "crypto", "libc", "other"]
TRUSTED = MODULES[:6]  # whose failed calls must never end in a signal; inside the others the process may end
ACTIONS = ["count", "fail", "die-before", "die-after"]
FRAMES = 32
TRACE = 1 << 17


class Frame(ctypes.Structure):
    _fields_ = [("object", ctypes.c_char * 40), ("offset", ctypes.c_uint64)]


class Layout(ctypes.Structure):
    _fields_ = [
        ("action", ctypes.c_uint32), ("kinds", ctypes.c_uint32), ("modules", ctypes.c_uint32), ("store_only", ctypes.c_uint32),
        ("nth", ctypes.c_uint64), ("times", ctypes.c_uint64), ("error", ctypes.c_int32), ("ended", ctypes.c_uint32),
        ("count", ctypes.c_uint64), ("counts", ctypes.c_uint64 * len(MODULES) * len(KINDS)),
        ("live", ctypes.c_uint64 * len(MODULES)),
        ("hits", ctypes.c_uint32), ("hit_kind", ctypes.c_uint32), ("hit_module", ctypes.c_uint32), ("frames", ctypes.c_uint32),
        ("leak_frames", ctypes.c_uint32), ("descriptors", ctypes.c_uint32), ("call", ctypes.c_char * 32),
        ("stack", Frame * FRAMES), ("leaks", Frame * FRAMES), ("leak_modules", ctypes.c_uint32 * FRAMES),
        ("left", ctypes.c_char * 2048), ("trace", ctypes.c_uint64 * TRACE),
    ]


@dataclasses.dataclass
class Plan:
    """The nth call of these kinds by these modules; empty: all of them."""
    action: str = "count"
    kinds: tuple = ()
    modules: tuple = ()
    nth: int = 1
    times: int = 1
    error: int = 0
    store_only: bool = False


def mask(names, of):
    return sum(1 << of.index(name) for name in names or of)


class Page:
    def __init__(self, path):
        self.path = str(path)
        with open(self.path, "wb") as file:
            file.truncate(ctypes.sizeof(Layout))
        with open(self.path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(Layout))
        self.seen = Layout.from_buffer(self._map)

    def set(self, plan):
        ctypes.memset(ctypes.addressof(self.seen), 0, Layout.trace.offset)
        self.seen.action = ACTIONS.index(plan.action)
        self.seen.kinds, self.seen.modules = mask(plan.kinds, KINDS), mask(plan.modules, MODULES)
        self.seen.store_only = plan.store_only
        self.seen.nth, self.seen.times, self.seen.error = plan.nth, plan.times, plan.error

    def hit(self):
        return self.seen.hits > 0

    def hit_module(self):
        return MODULES[self.seen.hit_module]

    def hit_at(self):
        """(module, call), or None."""
        return (self.hit_module(), self.seen.call.decode()) if self.hit() else None

    def trace(self):
        """The chosen calls, in order: (kind, module, a number for the place in the code)."""
        return [(KINDS[word >> 56], MODULES[word >> 48 & 0xff], word & 0xffffffff)
                for word in self.seen.trace[:min(self.seen.count, TRACE)]]

    def live(self):
        return dict(zip(MODULES, self.seen.live))

    def descriptors(self):
        return self.seen.left.decode("utf-8", "replace").split("\n")[:-1]

    def stack(self):
        return [(frame.object.decode(), frame.offset) for frame in self.seen.stack[:self.seen.frames]]

    def leaks(self):
        return [(frame.object.decode(), frame.offset) for frame in self.seen.leaks[:self.seen.leak_frames]]


def names_of(frames, program):
    """Frames of our own program as "function file:line", others as the object's name."""
    own = [offset - 1 for name, offset in frames if not name]
    found = {}
    if own:
        run = subprocess.run(["addr2line", "-f", "-s", "-e", program, *[hex(offset) for offset in own]], capture_output=True,
                             text=True, check=False)
        lines = run.stdout.split("\n")
        for index, offset in enumerate(own):
            function, place = (lines[2 * index:2 * index + 2] + ["?", "?"])[:2]
            found[offset] = f"{function} {re.sub(r' [(]discriminator.*', '', place)}"
    return [found[offset - 1] if not name else name for name, offset in frames
            if not os.path.basename(name).startswith("faults.so")]
