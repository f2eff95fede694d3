# SPDX-License-Identifier: Apache-2.0
"""
world: the real agent in a scripted world, with faults.so in front of libc, and the judge who knows the truth

One World is one control plane, one master, one Worker, and one state directory that goes on from case to case, so that
each case also starts from what the last one left. A case is a cancel from start to end and stop, during which the agent
is made to fail or to die; it is restarted as often as it ends, as systemd would. Then the judge looks: each operation has
one outcome at the control plane, and it is the true one; bystanders live; nothing is open; nothing was left behind.
"""
import contextlib
import json
import os
import pathlib
import select
import signal
import sqlite3
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "integration")]

import harness  # noqa: E402
from certificates import Authority  # noqa: E402
from harness import SANITIZER  # noqa: E402
from page import MODULES, Page, Plan, TRUSTED, names_of  # noqa: E402

LIBRARY = harness.BUILD / "faults.so"
CTL = harness.BUILD / "spark-cancelctl"
STUCK = 75  # seconds in which the agent must end each cancel by itself; half a minute is the contract's patience with a stream
RESTARTS = 6
CASES_OF_A_STORE = 20  # what is done stays stored; and the calls of a start are more with each row
CONFIG = 78

# Not ours to mend: (module, call) whose failure the library itself does not check. json-c before 0.17: the name of a member.
UNCHECKED = {("json-c", "strdup")}

KEYS = {
    "connect_timeout": "2s", "report_timeout": "2s", "reconnect_min": "10ms", "reconnect_max": "100ms", "request_timeout": "1s",
    "worker_terminate_timeout": "200ms", "worker_heartbeat": "20ms", "kill_retry": "500ms", "relaunch_window": "300ms",
}
PLANE = {"heartbeat": 1.0, "deadline": 600.0, "relaunch_window": 0.5, "poll": 0.5, "workers": 64}


class Life:
    """One process of the agent."""

    def __init__(self, world, page):
        self.world = world
        self.page = page
        environment = {name: value for name, value in os.environ.items()
                       if name in ("PATH", "LANG", "TMPDIR", "ASAN_OPTIONS", "UBSAN_OPTIONS", "LSAN_OPTIONS")}
        if page is not None:
            environment |= {"LD_PRELOAD": str(LIBRARY), "FAULTS_PAGE": page.path, "FAULTS_STORE": str(world.state)}
            environment["ASAN_OPTIONS"] = environment.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0:detect_leaks=0"
        self.process = subprocess.Popen([harness.AGENT, f"--config={world.agent.config}"], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=world.log_file, env=environment)
        self.pidfd = os.pidfd_open(self.process.pid)
        world.lives += 1

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def ended(self, timeout=0.0):
        return bool(select.select([self.pidfd], [], [], timeout)[0])

    def wait(self, timeout=harness.LIMIT):
        """-> the exit code, negative for a signal, or None when it did not end."""
        if not self.ended(timeout):
            return None
        code = self.process.wait()
        os.close(self.pidfd)
        return code

    def kill(self):
        self.signal(signal.SIGKILL)
        return self.wait()


class World:
    def __init__(self, tls=False, **keys):
        self.born = time.monotonic()
        self.node = harness.Node()
        self.node.cluster.terminate_timeout = 0.2
        self.node.cluster.end_delay = 0.002
        self.node.add_master()
        plane = dict(PLANE)
        if tls:
            authority = Authority(self.node.directory)
            pair = authority.issue("server")
            plane |= {"tls_cert": pair.certificate, "tls_key": pair.key}
            keys["ca_file"] = authority.certificate
        self.plane = self.node.start_plane(**plane)
        self.agent = self.node.make_agent(**{**KEYS, "metrics_file": self.node.directory / "metrics.prom", **keys})
        self.agent.write_config()
        self.state = self.agent.keys["state_directory"]
        self.page = Page(self.node.directory / "page")
        self.log = self.node.directory / "agent.log"
        self.log_file = open(self.log, "ab", buffering=0)
        self.lives = self.number = self.cases = 0
        self.baseline = None
        self.bystander = self.run_job(self.name("bystander"))

    def close(self):
        self.log_file.close()
        self.node.close()

    def name(self, word):
        self.number += 1
        return f"{word}-{self.number}"

    def run_job(self, job_id, **driver):
        return self.node.run_job(job_id, **driver)

    # ---- the log

    def mark(self):
        return self.log.stat().st_size

    def said(self, start=0):
        with open(self.log, "rb") as file:
            file.seek(start)
            return file.read().decode("utf-8", "backslashreplace")

    # ---- lives

    def start(self, plan=None):
        if plan is not None:
            self.page.set(plan)
        return Life(self, self.page if plan is not None else None)

    def wait(self, life, test, timeout):
        """Until test() is true -> True; False when the agent ended before; None when neither came."""
        end = time.monotonic() + timeout
        while True:
            with self.plane.state.lock:
                if test():
                    return True
            if life.ended():
                return False
            if time.monotonic() > end:
                return None
            self.plane.state.wait(lambda: test() or life.ended(), 0.05)

    def open_rows(self):
        if not (self.state / "agent.db").exists():
            return {}
        copy = self.node.directory / "copy"
        copy.mkdir(exist_ok=True)
        for old in copy.iterdir():
            old.unlink()
        for name in ("agent.db", "agent.db-wal"):
            if (self.state / name).exists():
                (copy / name).write_bytes((self.state / name).read_bytes())
        with contextlib.closing(sqlite3.connect(copy / "agent.db")) as base:
            return dict(base.execute("SELECT operation_id, state FROM operations WHERE state <> 'DONE'"))

    def clear_store(self):
        for file in self.state.iterdir():
            file.unlink()

    # ---- the truth

    def judge_operation(self, operation_id, driver, allowed=("CANCELLED",)):
        """What is wrong with the end of an operation whose driver is known; [] when all is true."""
        wrong = []
        operation, finals = self.plane.operation(operation_id), self.node.finals(operation_id)
        if not operation.done:
            return [f"{operation_id} has no outcome"]
        if len(finals) != 1:
            return [f"{operation_id} has {len(finals)} final reports: {finals}"]
        report = finals[0]
        if report.outcome not in allowed:
            wrong.append(f"{operation_id} ended as {report.outcome}, not {'/'.join(allowed)}: {report.metadata.message}")
        if report.outcome == "CANCELLED":
            if driver.alive():
                wrong.append(f"{operation_id} is CANCELLED and the driver lives")
            if not driver.kills:
                wrong.append(f"{operation_id} is CANCELLED and no master saw a kill")
            if report.metadata.driver_id != driver.id:
                wrong.append(f"{operation_id} names the driver {report.metadata.driver_id}, not {driver.id}")
            # those that got an answer: libcurl repeats by itself what was lost with a dead connection
            answered = sum(1 for request in driver.kills if request.answer == 200)
            if report.metadata.kill_requests < answered:
                wrong.append(f"{operation_id} reports {report.metadata.kill_requests} kill requests; {answered} were answered")
        sequences = {}
        for one in self.plane.reports(operation_id):
            if sequences.setdefault(one.sequence, one.raw) != one.raw:
                wrong.append(f"{operation_id}: two reports under the sequence {one.sequence}")
            if one.outcome not in harness.FINAL and one.sequence > report.sequence:
                wrong.append(f"{operation_id}: progress after the final report")
        return wrong

    def judge_world(self, start):
        """What is wrong with everything else."""
        wrong = []
        if not self.bystander.alive() or self.bystander.kills:
            wrong.append("a bystander was touched")
        if [file.name for file in self.state.iterdir() if "corrupt" in file.name]:
            wrong.append("the store was set aside")
            for file in self.state.glob("*corrupt*"):
                file.unlink()
        text = self.said(start)
        if self.page.hit() and self.page.hit_module() not in TRUSTED:  # libc says of itself that an assertion failed
            text = "\n".join(line for line in text.split("\n") if "Assertion" not in line)
        if SANITIZER.search(text) and self.page.hit_at() not in UNCHECKED:
            wrong.append("a sanitizer or an invariant has spoken")
        return wrong

    # ---- one case: a cancel from start to end and stop

    def begin(self):
        """Two cancels are open before the agent starts: one whose driver is here, one whose driver comes later."""
        self.here = self.run_job(self.name("here"))
        self.later_id = self.name("later")
        self.plane.add_job(self.later_id, status="PENDING")
        self.later = None
        self.operations = [self.plane.cancel(self.here.job_id).id, self.plane.cancel(self.later_id).id]

    def one_done(self):
        return self.plane.operation(self.operations[0]).done

    def all_done(self):
        return all(self.plane.operation(operation).done for operation in self.operations)

    def middle(self, life):
        """Once, when the first has ended: the second's driver comes; someone looks; the configuration is read again."""
        if self.later is not None:
            return
        self.later = self.node.start_driver(self.later_id)
        life.signal(signal.SIGHUP)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.ask("list", "--all", "--json", timeout=5)

    def judge_exit(self, life, code, plan, asked):
        """A process that has ended: by a plan, cleanly, or wrongly?"""
        if life.page is None:
            clean = (0, -signal.SIGTERM) if asked else ()  # the signal may come before there is a handler
            return [] if code in clean else [f"the agent ended with {code} without a fault"]
        died = plan.action.startswith("die") and self.page.hit()
        if died and code == -signal.SIGKILL:
            return []
        if code < 0:
            if self.page.hit() and (self.page.hit_module() not in TRUSTED or self.page.hit_at() in UNCHECKED):
                return []
            return [f"the agent ended by signal {-code}"]
        if code == CONFIG:
            return ["exit code 78: systemd would not start it again"]
        if code == 0 and not asked:
            return ["exit code 0 that nobody asked for: systemd would not start it again"]
        if not self.page.hit() and code != 0:
            return [f"the agent ended with {code} and nothing had failed"]
        return []

    def judge_left(self, life):
        """What a process that ended by exit() has left."""
        if life.page is None or not self.page.seen.ended or self.baseline is None:
            return []
        wrong = []
        for module, count in self.page.live().items():
            if module in TRUSTED and count > self.baseline[0][module] and self.page.hit_at() not in UNCHECKED:
                names = names_of(self.page.leaks(), str(harness.AGENT))
                wrong.append(f"leak: {count} allocations of {module}: {names[:4]}")
        more = list(self.page.descriptors())
        for name in self.baseline[1]:
            if name in more:
                more.remove(name)
        if more:
            wrong.append(f"descriptors are left: {more[:4]}")
        return wrong

    def case(self, plan, fresh=False):
        """-> what was seen: a dict; `wrong` says what must not be."""
        if fresh:
            self.clear_store()
        elif self.cases >= CASES_OF_A_STORE:
            for first in (True, False):  # the second start still writes more than the later ones
                seen = self.case(Plan(), fresh=first)
                if seen["wrong"]:
                    return seen
        self.cases = 0 if fresh else self.cases + 1
        self.begin()
        start, wrong, codes = self.mark(), [], []
        stuck = False
        life = self.start(plan)
        began = time.monotonic()
        while True:
            state = self.wait(life, self.one_done, STUCK)
            if state:
                self.middle(life)
                state = self.wait(life, self.all_done, STUCK)
            if state:
                break
            if state is None:
                stuck = True
                # In the libraries a set-up that has failed may last as long as the process: counted, and the truth comes after.
                if life.page is None or not self.page.hit() or self.page.hit_module() in TRUSTED:
                    wrong.append(f"stuck: no outcome within {STUCK} s, and it did not end")
                life.signal(signal.SIGABRT if os.environ.get("FAULTS_CORE") else signal.SIGKILL)
                life.wait()
            else:
                codes.append(life.wait())
                wrong += self.judge_exit(life, codes[-1], plan, asked=False) + self.judge_left(life)
            if len(codes) > RESTARTS or (stuck and life.page is None):
                wrong.append(f"given up after {codes}")
                life = None
                break
            life = self.start()
        wrong += self.finish(life, start, plan, codes)
        seen = {"wrong": wrong, "codes": codes, "hit": self.page.hit(), "reached": self.page.seen.count >= plan.nth,
                "took": time.monotonic() - began, "stuck": stuck}
        if self.page.hit():
            seen["call"] = self.page.seen.call.decode()
            seen["module"] = self.page.hit_module()
            if plan.action == "fail":
                seen["stack"] = self.page.stack()
        if wrong:
            seen["log"] = self.said(start)[-6000:]
        return seen

    def finish(self, life, start, plan, codes):
        """Let the answers arrive, SIGTERM, and judge all."""
        wrong = []
        if life is not None:
            end = time.monotonic() + 1
            while self.said(start).count("report acknowledged") < len(self.operations) and time.monotonic() < end and \
                    not life.ended(0.003):
                pass
            asked = not life.ended()
            life.signal(signal.SIGTERM)
            code = life.wait()
            if code is None:
                wrong.append("it does not stop on SIGTERM")
                life.kill()
            else:
                codes.append(code)
                wrong += self.judge_exit(life, code, plan, asked) + self.judge_left(life)
        wrong += self.rest()
        wrong += self.judge_operation(self.operations[0], self.here)
        if self.later is not None:
            wrong += self.judge_operation(self.operations[1], self.later)
        return wrong + self.judge_world(start)

    def ask(self, *words, timeout=harness.LIMIT):
        socket = f"--socket={self.agent.keys['runtime_directory']}/bus"
        return subprocess.run([CTL, socket, *words], capture_output=True, text=True, timeout=timeout, check=False)

    def open_operations(self):
        """What the agent itself says is open; None when it does not answer (yet)."""
        run = self.ask("list", "--json")
        return json.loads(run.stdout)["operations"] if run.returncode == 0 else None

    def rest(self):
        """What is still open in the store is finished by further starts; then nothing may be. (An answer that came right before
        SIGTERM need not be stored: the report is sent once more, and answered as one that is known.)"""
        wrong = []
        for _ in range(5):
            if not self.open_rows() or wrong:
                break
            life = self.start()
            end = time.monotonic() + harness.LIMIT
            while self.open_operations() != [] and time.monotonic() < end and not life.ended(0.01):
                pass
            if not life.ended() and self.open_operations() != []:
                wrong.append(f"still open after {harness.LIMIT} s: {self.open_operations()}")
            life.signal(signal.SIGTERM)
            code = life.wait()
            if code != 0:
                wrong.append(f"the agent ended with {code} without a fault")
        if self.open_rows():
            wrong.append(f"still open in the store: {self.open_rows()}")
        return wrong

    def measure(self):
        """What is left at the end of a clean run."""
        self.baseline = None
        for _ in range(2):
            seen = self.case(Plan())
            assert not seen["wrong"], seen
        assert self.page.seen.ended, "the reference run did not end by itself"
        self.baseline = (self.page.live(), self.page.descriptors())
