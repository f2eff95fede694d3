# SPDX-License-Identifier: Apache-2.0
"""
parts: what is measured of the agent, with the harness of the integration tests

The agent is the real binary; the control plane is the reference one; masters are scripted and drivers only look like
JVMs, so what they cost is not Spark's. Times inside the agent are the stamps of its own debug log.
"""
import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from datetime import datetime

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

import certificates  # noqa: E402
import figures  # noqa: E402
import harness  # noqa: E402
from figures import Figures  # noqa: E402

BURST = 1000
WATCHDOG_USEC = 30_000_000  # WatchdogSec= of the unit
PATIENT = {"poll": 3600.0, "deadline": 600.0, "not_found_grace": 600.0, "heartbeat": 10.0}  # no events but those measured


@contextlib.contextmanager
def node(plane=None, **agent):
    """A started node; ends whatever happens."""
    made = harness.Node()
    try:
        made.start(plane={**PATIENT, **(plane or {})}, agent={"log_level": "info", **agent})
        yield made
        made.agent.stop()
        made.agent.check()
    finally:
        made.close()


def metrics(agent):
    """`spark-cancelctl metrics`: name without the prefix -> value."""
    done = subprocess.run([harness.BUILD / "spark-cancelctl", f"--socket={agent.directory}/run/bus", "metrics"],
                          capture_output=True, text=True, check=True, timeout=harness.LIMIT)
    found = re.findall(r"^spark_cancel_agent_(\w+) ([\d.e+]+)$", done.stdout, re.MULTILINE)
    return {name: float(value) for name, value in found}


def cancel(made, job_id):
    """One whole cancel by the public API, until its report is acknowledged -> operation, ms to the caller's done."""
    begin = time.monotonic()
    operation = made.cancel(job_id)
    made.plane.wait_done(operation, harness.LIMIT)
    took = (time.monotonic() - begin) * 1e3
    made.agent.wait_log(f"report acknowledged.*{operation}")
    return operation, took


# ---- 1. one cancel

STAMP = re.compile(r"^(\S+Z) \w+ (.*)$")


def stamp(line):
    """(milliseconds since 1970, text) of a line of the agent's log."""
    match = STAMP.match(line)
    return (datetime.fromisoformat(match[1].replace("Z", "+00:00")).timestamp() * 1e3, match[2]) if match else (0.0, line)


def covered(spans, begin, end):
    """How much of begin..end the spans cover together."""
    total, at = 0.0, begin
    for start, stop in sorted(spans):
        start, stop = max(start, at), min(stop, end)
        if stop > start:
            total += stop - start
            at = stop
    return total


class Story:
    """The log of one cancel as times (ms): from the command's arrival to the kill request, and on."""

    def __init__(self, lines, operation, driver_id):
        stamped = [stamp(line) for line in lines]
        begin = next(i for i, (_, text) in enumerate(stamped) if text.startswith("cancel received") and operation in text)
        stamped = stamped[begin:]

        def first(text):
            return next(at for at, said in stamped if said.startswith(text))

        self.received = stamped[0][0]
        self.asked = first(f"status of {driver_id}: asked")
        self.answered = first(f"status of {driver_id}: accepted")
        self.kill = first(f"kill of {driver_id}: asked")
        self.dead = first("driver is gone")
        self.outcome = first("outcome")
        commits = [(at, int(match[1]) / 1e3) for at, said in stamped if (match := re.match(r"commit took (\d+) us", said))]
        self.commits = [(at - took, at) for at, took in commits]
        self.before = [span for span in self.commits if span[1] <= self.kill]

    @property
    def total(self):
        return self.kill - self.received

    @property
    def commit(self):
        return covered(self.before, self.received, self.kill)

    @property
    def status(self):
        return self.answered - self.asked

    @property
    def own(self):
        """Neither a commit nor Spark's answer was waited for."""
        return self.total - covered([*self.before, (self.asked, self.answered)], self.received, self.kill)


def one_cancel(count):
    part = Figures(f"One cancel, {count} in a row")
    stories, callers, at_master, gone = [], [], [], []
    with node(log_level="debug") as made:
        cancel(made, made.run_job("warm").job_id)
        pid, offset = made.agent.process.pid, (time.time() - time.monotonic()) * 1e3
        written, cpu, before = figures.written_bytes(pid), figures.cpu_seconds(pid), metrics(made.agent)
        for number in range(count):
            driver, mark = made.run_job(f"job-{number}"), made.agent.mark()
            operation, took = cancel(made, driver.job_id)
            callers.append(took)
            story = Story(made.agent.lines[mark:], operation, driver.id)
            stories.append(story)
            at_master.append(made.master.requests_for("kill", driver.id)[0].time * 1e3 + offset - story.received)
            gone.append(story.dead - story.received)
        written = (figures.written_bytes(pid) - written) / count
        cpu = (figures.cpu_seconds(pid) - cpu) * 1e3 / count
        after = metrics(made.agent)
        folder = figures.file_system(made.agent.keys["state_directory"])
        processes = figures.process_count()
    part.add("command received to kill request handed to libcurl", [s.total for s in stories], "ms", 2)
    part.add("  of it: commits to the store", [s.commit for s in stories], "ms", 2)
    part.add("  of it: Spark's status answer", [s.status for s in stories], "ms", 2)
    part.add("  of it: our own share (neither was waited for)", [s.own for s in stories], "ms", 2)
    part.add("    of that: until status was asked (the scan)", [s.asked - s.received for s in stories], "ms", 2)
    part.add("command received to kill request at the master", at_master, "ms", 2)
    part.add("command received to the driver's death seen", gone, "ms", 2)
    part.add("caller: Cancel called to operation done", callers, "ms", 2)
    part.add("commits before the kill request", [float(len(s.before)) for s in stories], "", 0)
    for name, key in (("commits", "commits_total"), ("scans of /proc", "scans_total")):
        part.add(f"{name} per cancel", (after[key] - before[key]) / count, "", 2)
    part.add("written to disk per cancel (/proc/PID/io)", written / 1024, "KiB", 1)
    part.add("CPU time per cancel (scans and debug log included)", cpu, "ms", 2)
    part.note(f"The state directory is on {folder}; {processes} processes on the machine. The commits and the status answer")
    part.note("overlap, so the three shares do not add up to the total. All times include the debug log's cost.")
    return part, []


# ---- 2, 3. idle

def start_idle(kind):
    """A node that has done one cancel and has nothing to do now."""
    made = harness.Node()
    plane, agent = {}, {}
    if kind == "mTLS":
        authority = certificates.Authority(made.directory)
        server, client = authority.issue("server"), authority.issue("n1")
        plane = {"tls_cert": server.certificate, "tls_key": server.key, "client_ca": authority.certificate}
        agent = {"ca_file": authority.certificate, "certificate_file": client.certificate, "private_key_file": client.key}
    try:
        made.start(plane={**PATIENT, **plane}, agent={"log_level": "info", **agent})
        made.run_job("warm")
        operation = made.plane.cancel("warm").id
        made.agent.wait_log(f"report acknowledged.*{operation}")
    except BaseException:
        made.close()
        raise
    return made


class Idle:
    def __init__(self, made):
        self.node, self.pid = made, made.agent.process.pid
        self.begin = self.count()

    def count(self):
        stream = self.node.plane.streams()[0]
        watchdogs = sum(line == "WATCHDOG=1" for line in self.node.agent.notify.messages)
        return figures.wakeups(self.pid), stream.sent, watchdogs

    def end(self):
        return [now - then for now, then in zip(self.count(), self.begin)]


def idle(seconds, settle=4.0):
    part = Figures(f"Idle, {seconds:.0f} s, the stream open")
    checks = []
    os.environ["WATCHDOG_USEC"] = str(WATCHDOG_USEC)
    with contextlib.ExitStack() as stack:
        nodes = {}
        for kind in ("mTLS", "h2c"):
            nodes[kind] = start_idle(kind)
            stack.callback(nodes[kind].close)
        traced = None
        if figures.have_strace():
            traced = start_idle("mTLS")
            stack.callback(traced.close)
        del os.environ["WATCHDOG_USEC"]
        time.sleep(settle)  # the status line for systemd is written a second after the last change
        idles = {kind: Idle(made) for kind, made in nodes.items()}
        if traced:
            with figures.Trace(traced.agent.process.pid) as trace:
                time.sleep(seconds)
        else:
            time.sleep(seconds)
        for kind, one in idles.items():
            woken, heartbeats, watchdogs = one.end()
            part.add(f"{kind}: times a thread went to sleep and woke up", woken)
            part.add(f"{kind}: heartbeats received / watchdog pings", f"{heartbeats} / {watchdogs}")
            most = heartbeats + watchdogs + round(seconds / 20) + 3  # the server pings each 20 s, and what nobody foresaw
            checks.append((f"{kind}: {woken} wake-ups in {seconds:.0f} idle seconds; at most {most}: heartbeats, watchdog "
                           "pings, the server's HTTP/2 pings, 3 more", woken <= most))
            memory = figures.memory(one.pid)
            part.add(f"{kind}: private dirty memory", memory["Private_Dirty"] / 1024, "MiB", 2)
            part.add(f"{kind}: proportional (Pss)", memory["Pss"] / 1024, "MiB", 2)
            part.add(f"{kind}: resident (Rss)", memory["Rss"] / 1024, "MiB", 2)
            part.add(f"{kind}: threads", memory["Threads"])
            if not sanitized():
                checks.append((f"{kind}: private dirty memory ({memory['Private_Dirty'] / 1024:.2f} MiB) at most 3 MB",
                               memory["Private_Dirty"] * 1024 <= 3_000_000))
    if traced:
        names = {"socket": "watchdog ping (socket)", "recvfrom socket": "stream (recvfrom)"}
        causes = ", ".join(f"{count} x {names.get(cause, cause)}" for cause, count in trace.causes().most_common(6))
        part.note(f"What a third agent (mTLS, under strace) did first each time it woke up: {causes or 'nothing'}.")
    part.note(f"Heartbeats come each {PATIENT['heartbeat']:.0f} s; gRPC's server sends HTTP/2 pings of its own each 20 s.")
    part.note("The watchdog is served when the loop is awake anyway.")
    return part, checks


# ---- 4. the binary

def sanitized():
    return b"__asan_init" in harness.AGENT.read_bytes() or b"__ubsan_handle" in harness.AGENT.read_bytes()


def binary(directory):
    part = Figures("The binary")
    for program in (harness.AGENT, harness.BUILD / "spark-cancelctl"):
        bare = directory / program.name
        subprocess.run(["strip", "-o", bare, program], check=True)
        part.add(f"{program.name}, stripped", bare.stat().st_size / 1024, "KiB", 0)
        dynamic = subprocess.run(["readelf", "-d", program], capture_output=True, text=True, check=True).stdout
        loaded = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        part.add(f"{program.name}: shared libraries named / loaded", f"{dynamic.count('(NEEDED)')} / {loaded.count('=>')}")
    return part, []


# ---- 5. bursts

def commands(made, jobs, at_once):
    """Cancel them all -> job id -> operation id. `at_once`: the agent finds every command in its socket when it looks."""
    process, stream = made.agent.process, made.plane.streams()[0]
    if at_once:
        process.send_signal(signal.SIGSTOP)
    try:
        sent = stream.sent
        with made.plane.state.transaction():  # nobody sees one before all are there
            operations = {job: made.plane.cancel(job).id for job in jobs}
        if at_once:
            harness.until(lambda: stream.sent - sent >= len(jobs), "the last command to leave the control plane")
    finally:
        process.send_signal(signal.SIGCONT)
    return operations


def burst(with_driver, at_once=True):
    """BURST commands, `with_driver` of them for drivers on this node."""
    what = f"{with_driver} with drivers here" if with_driver else "none with a driver here"
    part = Figures(f"{BURST:,} commands {'at once' if at_once else 'as fast as the control plane sends them'}, {what}")
    with node() as made:
        drivers = [made.run_job(f"here-{number}") for number in range(with_driver)]
        jobs = [(driver.job_id, (number + 0.5) / with_driver) for number, driver in enumerate(drivers)]
        with made.plane.state.transaction():
            for number in range(BURST - with_driver):
                made.plane.add_job(f"away-{number}", f"driver-20250101000000-{number:04d}")
                jobs.append((f"away-{number}", number / BURST))
        jobs.sort(key=lambda job: job[1])  # those of drivers evenly among the others
        pid = made.agent.process.pid
        before, cpu, mark = metrics(made.agent), figures.cpu_seconds(pid), made.agent.mark()
        operations = commands(made, [job for job, _ in jobs], at_once)

        def reported():
            return made.plane.state.rows("SELECT count(DISTINCT operation_id) AS n, max(at) AS at FROM report")[0]

        made.plane.wait(lambda: reported()["n"] == BURST, 60, f"a report of each of {BURST} operations")
        first_reports = reported()["at"] / 1e3
        for driver in drivers:
            made.plane.wait_done(operations[driver.job_id], 60)
            made.agent.wait_log(f"report acknowledged.*{operations[driver.job_id]}")
        last_report = reported()["at"] / 1e3
        received = [stamp(line)[0] for line in made.agent.lines[mark:] if " cancel received: " in line]
        after, cpu = metrics(made.agent), figures.cpu_seconds(pid) - cpu
        memory = figures.memory(pid)
        assert len(received) == BURST and all(not driver.alive() for driver in drivers)
    commits = round(after["commits_total"] - before["commits_total"])
    scans = round(after["scans_total"] - before["scans_total"])
    part.add("first command received to the last one received", received[-1] - received[0], "ms", 0)
    part.add("first command received to each job reported once", first_reports - received[0], "ms", 0)
    if with_driver:
        part.add(f"first command received to {with_driver} drivers dead, reported", last_report - received[0], "ms", 0)
    part.add("commits", commits)
    part.add("scans of /proc", scans)
    part.add("agent's CPU time", cpu * 1e3, "ms", 0)
    part.add(f"private dirty memory with {BURST - with_driver} open operations", memory["Private_Dirty"] / 1024, "MiB", 2)
    if not at_once:
        part.note("Each command is acted on when it comes: what comes during a scan and a commit waits for the next.")
        return part, []
    if with_driver:
        part.note("A Worker kills one driver at a time, and so does the agent: the kills follow each other.")
        commit_max, scan_max = 1 + 6 * with_driver, 1 + 3 * with_driver  # what as many single cancels would take
        commands_here = f"for {BURST} commands at once, {what}"
        return part, [(f"{commits} commits {commands_here}: at most {commit_max}", commits <= commit_max),
                      (f"{scans} scans of /proc {commands_here}: at most {scan_max}", scans <= scan_max)]
    return part, [(f"{commits} commits for {BURST} commands at once: at most 50", commits <= 50),
                  (f"{scans} scans of /proc for {BURST} commands at once: at most 50", scans <= 50)]


# ---- 6. system calls

def system_calls(count):
    part = Figures(f"System calls of a whole cancel, {count} under strace")
    if not figures.have_strace():
        part.note("Left out: strace is not installed or may not trace.")
        return part, []
    with node() as made:
        cancel(made, made.run_job("warm").job_id)
        drivers = [made.run_job(f"job-{number}") for number in range(count)]
        before = metrics(made.agent)
        with figures.Trace(made.agent.process.pid) as trace:
            for driver in drivers:
                cancel(made, driver.job_id)
        scans = (metrics(made.agent)["scans_total"] - before["scans_total"]) / count
        processes = figures.process_count()
    counts = trace.counts()
    reading = ("openat", "close", "read", "newfstatat", "getdents64", "readlinkat")
    scan = sum(counts[name] for name in reading)
    written, flushes = trace.store()
    part.add("all", sum(counts.values()) / count, "calls", 0)
    part.add(f"  {', '.join(reading[:4])} … ({scans:.1f} scans)", scan / count, "calls", 0)
    part.add("  all others", (sum(counts.values()) - scan) / count, "calls", 0)
    for name, number in counts.most_common():
        if name not in reading and number / count >= 1:
            part.add(f"    {name}", number / count, "calls", 1)
    part.add("written to the database and its log", written / count / 1024, "KiB", 1)
    part.add("flushes to disk (fdatasync, fsync)", flushes / count, "", 1)
    part.note(f"{processes} processes on the machine. A scan makes 12 calls or more for a process of the drivers' user,")
    part.note("here root, and one for any other process.")
    return part, []
