# SPDX-License-Identifier: Apache-2.0
"""
figures: medians with their spread, what the kernel says of a process, what strace saw, the table

A figure is one number or many; many are shown as median, least, 99th percentile and most. JSON keeps the same fields.
"""
import collections
import json
import math
import pathlib
import re
import subprocess
import tempfile


class Figures:
    """What one part of the benchmark found, in the order in which it was found."""

    def __init__(self, title):
        self.title = title
        self.rows = []
        self.notes = []

    def add(self, name, values, unit="", digits=0):
        """`values`: a number, a text or a list of numbers."""
        row = {"name": name, "unit": unit, "digits": digits}
        if isinstance(values, (list, tuple)):
            ordered = sorted(values)
            if not ordered:
                return
            row.update(n=len(ordered), median=percentile(ordered, 50), min=ordered[0], p99=percentile(ordered, 99),
                       max=ordered[-1])
        else:
            row["value"] = values
        self.rows.append(row)

    def note(self, text):
        self.notes.append(text)

    def table(self):
        lines = [f"## {self.title}", "", f"{'':<64}{'median':>12}{'min':>12}{'p99':>12}{'max':>12}  unit"]
        for row in self.rows:
            if "value" in row:
                cells = [shown(row["value"], row["digits"]), "", "", ""]
            else:
                cells = [shown(row[name], row["digits"]) for name in ("median", "min", "p99", "max")]
                if row["n"] < 100:  # there is no 99th percentile of so few
                    cells[2] = ""
            count = f" (n={row['n']})" if "n" in row else ""
            line = f"{row['name'] + count:<64}" + "".join(f"{cell:>12}" for cell in cells) + f"  {row['unit']}"
            lines.append(line.rstrip())
        return "\n".join(lines + [f"  {note}" for note in self.notes]) + "\n"

    def data(self):
        return {"title": self.title, "figures": self.rows, "notes": self.notes}


def percentile(ordered, percent):
    """Nearest rank; the median of an even number is the mean of the two in the middle."""
    size = len(ordered)
    if percent == 50 and size % 2 == 0:
        return (ordered[size // 2 - 1] + ordered[size // 2]) / 2
    return ordered[max(0, math.ceil(size * percent / 100) - 1)]


def shown(value, digits):
    return value if isinstance(value, str) else f"{value:,.{digits}f}"


def write_json(path, parts, machine, checks):
    data = {"machine": machine, "parts": [part.data() for part in parts],
            "checks": [{"goal": goal, "met": met} for goal, met in checks]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


# ---- what the kernel says of a process

def fields(path):
    """"Name: number ..." lines of a file in /proc."""
    found = {}
    for line in pathlib.Path(path).read_text().splitlines():
        match = re.match(r"(\w+):\s+(\d+)", line)
        if match:
            found[match[1]] = int(match[2])
    return found


def memory(pid):
    """Private_Dirty, Pss, Rss (KiB) and Threads."""
    return fields(f"/proc/{pid}/smaps_rollup") | {"Threads": fields(f"/proc/{pid}/status")["Threads"]}


def wakeups(pid):
    """Times that a thread gave the processor away to wait: each is followed by one wake-up."""
    return sum(fields(task / "status")["voluntary_ctxt_switches"] for task in pathlib.Path(f"/proc/{pid}/task").iterdir())


def cpu_seconds(pid):
    """Finer than the clock ticks of /proc/PID/stat."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in pathlib.Path(f"/proc/{pid}/task").iterdir()) / 1e9


def written_bytes(pid):
    """Bytes that went towards a disk."""
    return fields(f"/proc/{pid}/io")["write_bytes"]


def file_system(path):
    """Of a folder: "ext4 on /dev/vda"."""
    done = subprocess.run(["df", "--output=fstype,source", path], capture_output=True, text=True, check=False)
    words = done.stdout.split()[-2:]
    return " on ".join(words) if len(words) == 2 else "unknown"


def process_count():
    return len(list(pathlib.Path("/proc").glob("[0-9]*")))


# ---- what strace saw

CALL = re.compile(r"^(\d+) +([\d.]+) (?:<\.\.\. )?(\w+)(.*)$")
WRITE = re.compile(r"^\(\d+<([^>]*)>, .*, (\d+), \d+(?:\)| <unfinished)")


class Trace:
    """strace attached to a running process, until it is left."""

    def __init__(self, pid):
        self.pid = pid
        self._file = tempfile.NamedTemporaryFile(prefix="sca-strace-")

    def __enter__(self):
        self._strace = subprocess.Popen(
            ["strace", "-f", "-y", "-ttt", "-s", "16", "-e", "signal=none", "-o", self._file.name, "-p", f"{self.pid}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for line in self._strace.stderr:
            if "attached" in line:
                return self
        raise OSError(f"strace could not attach to {self.pid}")

    def __exit__(self, *_):
        self._strace.terminate()
        self._strace.communicate()
        self.lines = pathlib.Path(self._file.name).read_text(errors="replace").splitlines()
        self._file.close()

    def calls(self):
        """(thread, name, rest of the line) of each call, at its begin."""
        for line in self.lines:
            match = CALL.match(line)
            if match and "<... " not in line[:40]:
                yield match[1], match[3], match[4]

    def counts(self):
        return collections.Counter(name for _, name, _ in self.calls())

    def store(self):
        """Bytes written to, and flushes of, the state database and its log."""
        written = flushes = 0
        for _, name, rest in self.calls():
            if name == "pwrite64" and (match := WRITE.match(rest)) and "/agent.db" in match[1]:
                written += int(match[2])
            flushes += name in ("fdatasync", "fsync")
        return written, flushes

    def causes(self):
        """What the loop did first each time that it had waited: Counter of call and kind of descriptor."""
        found, waiting = collections.Counter(), set()
        for line in self.lines:
            match = CALL.match(line)
            if not match:
                continue
            thread, _, name, rest = match.groups()
            if name == "epoll_wait" and ("<unfinished" in line or rest.endswith("= 1")) and ", -1" in rest:
                waiting.add(thread)
            elif name == "epoll_wait":
                continue
            elif thread in waiting and "<... " not in line[:40]:
                kind = re.match(r"\(\d+<(?:anon_inode:\[)?(\w+)", rest)
                found[f"{name} {kind[1] if kind else ''}".strip()] += 1
                waiting.discard(thread)
        return found


def have_strace():
    try:
        return subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
