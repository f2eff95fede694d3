# SPDX-License-Identifier: Apache-2.0
"""
A disk that does not work: the state directory on a small filesystem of the test's own that fills up, is made read-only,
refuses writes, or does not answer. A cancel goes on and ends CANCELLED all the same; journal, status and metrics say what
is true; what only memory had is written when it can be; and a crash meanwhile leaves one true outcome.
"""
import ctypes
import fcntl
import json
import os
import pathlib
import re
import subprocess

import pytest

from harness import AGENT, LIMIT, until

CTL = AGENT.parent / "spark-cancelctl"
FIFREEZE, FITHAW = 0xC0045877, 0xC0045878  # linux/fs.h
MNT_DETACH = 2
MEBIBYTE = 1 << 20
SMALL = 6 * MEBIBYTE  # too small for the agent to set space aside, so a full disk is felt at once


def run(*command):
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert result.returncode == 0, (command, result.stderr)
    return result.stdout


class Disk:
    """A filesystem mounted at `path`, a directory of the test's own; nothing of it is left at the end."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.path.mkdir(exist_ok=True)
        self.filler = self.path / "filler"
        self.mounted = self.frozen = False

    def mount(self, read_only=False):
        raise NotImplementedError

    def fill(self):
        """To the last byte."""
        with open(self.filler, "ab", buffering=0) as file:
            size = 64 * 1024
            while size:
                try:
                    file.write(bytes(size))
                    os.fsync(file.fileno())
                except OSError:
                    size //= 2

    def free(self):
        self.filler.unlink()

    def unmount(self):
        """Although the agent may have it open."""
        if self.mounted and ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(self.path), MNT_DETACH):
            raise OSError(ctypes.get_errno(), "umount2")
        self.mounted = False

    def close(self):
        self.unmount()


class Tmpfs(Disk):
    def mount(self, read_only=False):
        run("mount", "-t", "tmpfs", "-o", f"size={SMALL},mode=0700", "spark-cancel-test", self.path)
        self.mounted = True


class Ext4(Disk):
    """In a file, through a loop device."""

    def __init__(self, path):
        super().__init__(path)
        self.image = self.path.parent / "disk.img"
        with open(self.image, "wb") as file:
            file.truncate(8 * MEBIBYTE)
        run("mkfs.ext4", "-q", "-F", self.image)

    def mount(self, read_only=False):
        run("mount", "-o", "loop,errors=remount-ro" + (",ro" if read_only else ""), self.image, self.path)
        self.mounted = True

    def refuse_writes(self, refuse=True):
        """Each write to the database is refused, also through descriptors that are open."""
        run("chattr", "+i" if refuse else "-i", *self.path.glob("agent.db*"))

    def _freeze(self, request):
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, request, 0)
        finally:
            os.close(descriptor)
        self.frozen = request == FIFREEZE

    def freeze(self):
        """A write does not return."""
        self._freeze(FIFREEZE)

    def thaw(self):
        self._freeze(FITHAW)

    def turn_read_only(self):
        """What the kernel does when it meets an error."""
        device = os.path.basename(os.path.realpath(run("findmnt", "-n", "-o", "SOURCE", self.path).strip()))
        pathlib.Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("test\n", encoding="ascii")

    def repair(self):
        """Unmounted, checked, mounted anew."""
        self.unmount()
        until(lambda: not run("losetup", "-j", self.image).strip(), "the loop device to be free")
        assert subprocess.run(["e2fsck", "-p", "-f", self.image], capture_output=True, timeout=LIMIT, check=False).returncode < 4
        self.mount()

    def close(self):
        if self.frozen:
            self.thaw()
        super().close()


def make_disk(node, kind):
    if os.geteuid() != 0:
        pytest.skip("not root, cannot mount a small disk")
    disk = kind(node.directory / "state")
    try:
        disk.mount()
    except AssertionError as error:
        pytest.skip(f"cannot mount a small disk: {error}")
    return disk


@pytest.fixture
def tmpfs(node):
    disk = make_disk(node, Tmpfs)
    yield disk
    end(node, disk)


@pytest.fixture
def ext4(node):
    disk = make_disk(node, Ext4)
    yield disk
    end(node, disk)


def end(node, disk):
    """Thawed first: the agent could not end. The clean stop that `node` asks for comes before the disk goes."""
    if disk.frozen:
        disk.thaw()
    if node.agent and node.agent.running():
        node.agent.stop()
    disk.close()


class Full:
    """The faults that pass, each with its begin and its end, and the words that the status has for them."""
    words = "No space left on device"

    @staticmethod
    def begin(disk):
        disk.fill()

    @staticmethod
    def over(disk):
        disk.free()


class Refused:
    words = "Input/output error"

    @staticmethod
    def begin(disk):
        disk.refuse_writes()

    @staticmethod
    def over(disk):
        disk.refuse_writes(False)


class Frozen:
    words = "no answer"

    @staticmethod
    def begin(disk):
        disk.freeze()

    @staticmethod
    def over(disk):
        disk.thaw()


GONE_ON = "going on from memory"
WRITTEN = "can be written again, and has everything"


def status(node):
    socket = node.agent.keys["runtime_directory"] / "bus"
    return json.loads(run(CTL, f"--socket={socket}", "status", "--json"))


def metric(node, name):
    socket = node.agent.keys["runtime_directory"] / "bus"
    return float(re.search(rf"^spark_cancel_agent_{name} (\S+)$", run(CTL, f"--socket={socket}", "metrics"), re.M).group(1))


def check_told(node, fault):
    """While it lasts: once in the journal, with what a crash would lose; in the status; as a metric."""
    lines = [line for line in node.agent.log().splitlines() if GONE_ON in line]
    assert len(lines) == 1 and "lost by a crash" in lines[0] and "come again from the control plane" in lines[0]
    now = status(node)
    assert now["from_memory"] is True and now["unwritten"] > 0
    assert "from memory" in now["summary"] and fault.words in now["summary"]
    assert metric(node, "store_failing") == 1 and metric(node, "records_unwritten") > 0
    assert WRITTEN not in node.agent.log()


def check_healed(node):
    node.agent.wait_log(WRITTEN)
    now = status(node)
    assert now["from_memory"] is False and now["unwritten"] == 0 and "memory" not in now["summary"]
    until(lambda: metric(node, "store_failing") == 0 and metric(node, "records_unwritten") == 0, "the metrics")


def check_nothing_again(node, operation, driver):
    """A restart knows all of it: nothing is killed, nothing is reported once more."""
    kills, reports = len(driver.kills), len(node.plane.reports(operation))
    node.agent.restart()
    node.plane.wait_watching("n1")
    other = node.run_job("another")
    node.wait_cancelled(node.cancel("another"), other)
    assert len(driver.kills) == kills and len(node.plane.reports(operation)) == reports
    rows = json.loads(run(CTL, f"--socket={node.agent.keys['runtime_directory'] / 'bus'}", "list", "--all", "--json"))
    assert {row["operation_id"]: row["outcome"] for row in rows["operations"]}[operation] == "CANCELLED"


@pytest.mark.parametrize("fault", [Full, Refused, Frozen], ids=lambda fault: fault.__name__.lower())
def test_cancel_on_a_bad_disk(node, ext4, fault):
    """The command comes when nothing can be stored: found, killed, proved dead, reported, acknowledged; then written."""
    node.start()
    driver, bystander = node.run_job("j1"), node.run_job("bystander")
    revision = status(node)["revision"]
    fault.begin(ext4)
    operation = node.cancel("j1")
    node.wait_cancelled(operation, driver)
    node.agent.wait_log("(?i)acknowledged")
    check_told(node, fault)
    assert status(node)["revision"] == revision, "only what is stored is told as stored"
    fault.over(ext4)
    check_healed(node)
    assert status(node)["revision"] > revision
    check_nothing_again(node, operation, driver)
    assert bystander.alive() and not bystander.kills


def in_search(node, break_disk):
    node.plane.add_job("j1", status="PENDING")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "NOT_ON_NODE")
    break_disk()
    return operation, node.start_driver("j1")


def while_spark_is_asked(node, break_disk):
    driver = node.run_job("j1")
    node.master.fault("hang", "status", count=1)
    operation = node.cancel("j1")
    node.master.wait_request("status", driver.id)
    break_disk()
    return operation, driver


def while_a_kill_hangs(node, break_disk):
    driver = node.run_job("j1")
    node.master.fault("hang", "kill", count=1)
    operation = node.cancel("j1")
    node.master.wait_request("kill", driver.id)
    break_disk()
    return operation, driver


def while_it_dies(node, break_disk):
    driver = node.run_job("j1", sigterm="ignore")
    operation = node.cancel("j1")
    node.agent.wait_log("kill accepted")
    break_disk()
    return operation, driver


def while_its_report_waits(node, break_disk):
    driver = node.run_job("j1", sigterm="ignore")
    operation = node.cancel("j1")
    node.plane.wait_report(operation, "IN_PROGRESS")
    fault = node.plane.faults.add("report", "status", code="UNAVAILABLE", times=0)
    driver.wait_gone()
    until(lambda: fault.hits, "a report")
    break_disk()
    node.plane.faults.clear()
    return operation, driver


PHASES = [in_search, while_spark_is_asked, while_a_kill_hangs, while_it_dies, while_its_report_waits]


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
def test_disk_fills_up_in_each_phase(node, tmpfs, phase):
    node.start()
    operation, driver = phase(node, tmpfs.fill)
    node.wait_cancelled(operation, driver)
    node.agent.wait_log("(?i)acknowledged")
    node.agent.wait_log(GONE_ON)
    tmpfs.free()
    check_healed(node)
    check_nothing_again(node, operation, driver)


def crash_and_repair(node, disk):
    """kill -9; the disk is still read-only; then it is repaired, and the agent comes back."""
    node.agent.wait_log(GONE_ON)
    node.agent.kill()
    refused = node.agent.start(ready=False)  # it does not guess what it has done; it says why, and systemd tries again
    assert refused.wait_exit() == 1
    refused.wait_log("cannot open the state database: .*(Read-only file system|Input/output error|disk I/O error)")
    disk.repair()
    node.agent.start()


def check_one_outcome(node, operation, driver):
    node.wait_done(operation)
    assert not driver.alive()
    assert {report.outcome for report in node.finals(operation)} == {"CANCELLED"}


@pytest.mark.parametrize("phase", PHASES[1:], ids=lambda phase: phase.__name__)
def test_crash_from_memory(node, ext4, phase):
    """The kernel makes the disk read-only, the agent goes on and is killed: what was stored before leads to the one true
    outcome."""
    def break_disk():
        node.agent.wait_log("commit took .*: stored", start=mark)
        ext4.turn_read_only()

    node.start()
    bystander = node.run_job("bystander")
    mark = node.agent.mark()
    operation, driver = phase(node, break_disk)
    crash_and_repair(node, ext4)
    check_one_outcome(node, operation, driver)
    assert bystander.alive() and not bystander.kills


@pytest.mark.parametrize("stored", [True, False], ids=["command_stored", "command_in_memory"])
def test_crash_with_the_kill_in_memory(node, ext4, stored):
    """Driver and kill, or even the command, are known to memory alone: it comes again, and the driver is killed."""
    node.start()
    node.master.fault("lost", "kill", count=1)
    if stored:
        operation, driver = in_search(node, ext4.turn_read_only)
    else:
        ext4.turn_read_only()
        driver = node.run_job("j1")
        operation = node.cancel("j1")
    node.agent.wait_log("kill accepted")
    crash_and_repair(node, ext4)
    check_one_outcome(node, operation, driver)
    assert len(driver.kills) == 2


def test_crash_after_the_end(node, tmpfs):
    """Reported and acknowledged from memory, then killed: the command is over at the control plane, and nothing is done again."""
    node.start()
    tmpfs.fill()
    driver = node.run_job("j1")
    operation = node.cancel("j1")
    node.wait_cancelled(operation, driver)
    node.agent.wait_log("(?i)acknowledged")
    node.agent.kill()
    tmpfs.free()
    again = node.start_driver("j1")
    node.agent.start()
    node.plane.wait_watching("n1")
    other = node.run_job("j2")
    node.wait_cancelled(node.cancel("j2"), other)
    assert again.alive() and not again.kills and len(node.finals(operation)) == 1


def test_stop_on_a_bad_disk(node, tmpfs):
    """SIGTERM: one last try, and a clean end."""
    node.start()
    tmpfs.fill()
    driver = node.run_job("j1")
    operation = node.cancel("j1")
    node.wait_cancelled(operation, driver)
    node.agent.wait_log("(?i)acknowledged")
    tmpfs.free()
    node.agent.stop()
    node.agent.wait_log(WRITTEN)
    node.agent.start()
    check_nothing_again(node, operation, driver)


def test_no_start_without_a_store(node, ext4):
    """A disk that is full or read-only at the first start: not READY, exit 1, and the reason; then it starts."""
    node.add_master()
    node.start_plane()
    node.make_agent()
    ext4.fill()
    assert node.agent.start(ready=False).wait_exit() == 1
    node.agent.wait_log("cannot open the state database: .*(full|No space left)")
    ext4.free()
    ext4.unmount()
    ext4.mount(read_only=True)
    assert node.agent.start(ready=False).wait_exit() == 1
    node.agent.wait_log("cannot open the state database: .*Read-only file system")
    ext4.unmount()
    ext4.mount()
    node.agent.start()
    node.plane.wait_watching("n1", timeout=LIMIT)
    driver = node.run_job("j1")
    node.wait_cancelled(node.cancel("j1"), driver)


def test_steady_flow_on_a_full_disk(node, tmpfs):
    """Twenty cancels while it is full, several times in a row: each ends, and the last word is in the database."""
    node.start()
    done = []
    for turn in range(3):
        mark = node.agent.mark()
        tmpfs.fill()
        drivers = [node.run_job(f"j{turn}-{number}") for number in range(7)]
        operations = [node.cancel(driver.job_id) for driver in drivers]
        for operation, driver in zip(operations, drivers):
            node.wait_cancelled(operation, driver)
        tmpfs.free()
        until(lambda: status(node)["unwritten"] == 0 and not status(node)["from_memory"], "the end of the fault")
        done += zip(operations, drivers)
        assert len([line for line in node.agent.log().splitlines()[mark:] if GONE_ON in line]) <= 1
    node.agent.restart()
    rows = json.loads(run(CTL, f"--socket={node.agent.keys['runtime_directory'] / 'bus'}", "list", "--all", "--json"))["operations"]
    stored = {row["operation_id"]: row["outcome"] for row in rows}
    assert all(stored[operation] == "CANCELLED" for operation, _ in done)
