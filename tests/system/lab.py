# SPDX-License-Identifier: Apache-2.0
"""
lab: real systemd nodes on a private network, made with systemd-nspawn

A Lab is a bridge in a network namespace of its own, without an uplink, and a Debian tree that all nodes share as the lower
layer of their overlays. A Node is one machine: its own PID 1, journal, address and power switch. The program that makes a
Lab moves into a namespace on the same bridge itself (HOST), so that it can play the control plane.

Needs root, namespaces, overlay mounts, writable control groups, and packages of `scripts/deps system`; the tree is made once
by mmdebstrap and kept in ~/.cache/spark-cancel-agent. What is found out here about nspawn was measured on systemd 252:
no machined, no D-Bus on the host, a control group of its own for each node, the leader killed for a power cut (nspawn's own
death would leave it running).
"""
import contextlib
import ctypes
import hashlib
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "spark-cancel-agent"
RELEASE = "bookworm"
# What the agent's package depends on, as nodes have no way to fetch it. No procps, no python: a small system.
PACKAGES = ("systemd", "systemd-sysv", "dbus", "libcurl4", "libinih1", "libjson-c5", "libnghttp2-14", "libprotobuf-c1",
            "libsqlite3-0", "libssl3", "libsystemd0")
MASKED = ("getty.target", "console-getty.service", "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer",
          "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer", "systemd-pstore.service", "systemd-logind.service",
          "systemd-networkd.service", "systemd-resolved.service", "systemd-timesyncd.service")
TOOLS = ("systemd-nspawn", "mmdebstrap", "nsenter", "unshare", "setpriv", "ip", "nft", "journalctl")
HOST_ADDRESS = "10.98.0.1"
CLONE_NEWNET = 0x40000000
INSIDE = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "SYSTEMD_COLORS=0", "SYSTEMD_PAGER="]


class Unable(Exception):
    """This machine can't have such nodes; the text says why."""


class Failure(Exception):
    """Something did not come about in time."""


def until(condition, seconds, what, pause=0.05):
    """The first true value of condition(); Failure after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= end:
            raise Failure(f"waited {seconds} s in vain for: {what() if callable(what) else what}")
        time.sleep(pause)


def run(*argv, check=True, text=None, **more):
    """A command on this machine -> its output."""
    done = subprocess.run([str(word) for word in argv], input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False, **more)
    if check and done.returncode:
        raise Failure(f"{' '.join(map(str, argv))}: exit {done.returncode}: {done.stdout.strip()}")
    return done.stdout


def possible(*argv):
    return subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


def control_groups(name):
    """The folder `name` below this process's control group, in each hierarchy."""
    folders = []
    for line in pathlib.Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "cpuset":
            continue
        root = "/sys/fs/cgroup"
        if controllers:
            root += "/" + controllers.removeprefix("name=")
        elif os.path.isdir("/sys/fs/cgroup/unified"):
            root += "/unified"
        folders.append(pathlib.Path(root + path.rstrip("/")) / name)
    return folders


def remove_control_groups(name):
    """A payload/ left in one hierarchy and not in another keeps nspawn from starting."""
    for folder in control_groups(name):
        for path, _, _ in os.walk(folder, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(path)


class Node:
    """One machine."""

    def __init__(self, lab, name, address):
        self.lab, self.name, self.address = lab, name, address
        self.machine = f"{lab.id}-{name}"
        self.directory = lab.directory / name
        self.upper = self.directory / "upper"
        self.namespace = f"{lab.id}-{name}"
        self.port = f"v-{name}"
        self.options = []
        self.process = None
        for folder in ("upper/etc", "work", "root"):
            (self.directory / folder).mkdir(parents=True)
        lab.join(self.namespace, self.port, address)

    # ---- power

    def start(self, wait=True):
        """Boot; the files below `upper` are there from the first moment."""
        hosts = "".join(f"{node.address} {node.name}\n" for node in self.lab.nodes)
        (self.upper / "etc/hosts").write_text(f"127.0.0.1 localhost\n{HOST_ADDRESS} control\n{hosts}", encoding="ascii")
        (self.upper / "etc/hostname").write_text(self.name + "\n", encoding="ascii")
        remove_control_groups(self.machine)
        self.heal()
        environment = os.environ | {
            "NAME": self.machine, "ROOT": self.directory / "root", "UPPER": self.upper, "WORK": self.directory / "work",
            "LOWER": f"{self.lab.layer}:{self.lab.base}", "NETNS": f"/run/netns/{self.namespace}",
            "CGROUPS": " ".join(map(str, control_groups(self.machine))), "NSPAWN": " ".join([*self.lab.options, *self.options]),
        }
        with open(self.directory / "console.log", "ab") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", "-m", "--propagation", "private", HERE / "start-node"],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if wait:
            self.wait_up()
        return self

    def find_leader(self):
        """The node's PID 1, which is nspawn's only child; looked up each time, as the first child is a helper that goes away."""
        with contextlib.suppress(OSError, ValueError, AttributeError):  # not started, or gone
            comm = pathlib.Path(f"/proc/{self.process.pid}/comm").read_text(encoding="ascii").strip()
            words = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="ascii")
            if comm == "systemd-nspawn":
                return int(words.split()[0]) if words.split() else 0
        return 0

    def wait_up(self, seconds=60):
        def up():
            if self.process.poll() is not None:
                raise Failure(f"{self.name} did not boot: {self.console()}")
            return self.find_leader() and self.run("systemctl", "is-system-running", check=False).strip() in ("running", "degraded")
        until(up, seconds, lambda: f"{self.name} to be up: {self.console()}")

    def console(self):
        return "\n".join((self.directory / "console.log").read_text(encoding="utf-8", errors="replace").splitlines()[-10:])

    def running(self):
        return self.process is not None and self.process.poll() is None

    def wait_off(self, seconds):
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def power_cut(self):
        """All its processes at once, and no word of it on the network. (What the disk's cache held is not lost: it is one
        kernel.)"""
        self.cut()
        leader = self.find_leader()
        if leader:
            with contextlib.suppress(ProcessLookupError):
                os.kill(leader, signal.SIGKILL)
        if not self.wait_off(15):
            self.process.kill()
            self.wait_off(5)

    def power_off(self):
        leader = self.find_leader()
        if leader:
            with contextlib.suppress(ProcessLookupError):
                os.kill(leader, signal.SIGRTMIN + 4)
        if not self.wait_off(30):
            self.power_cut()

    # ---- inside

    def argv(self, *argv):
        leader = self.find_leader()
        if not leader:
            raise Failure(f"{self.name} is down")
        return ["nsenter", "-t", str(leader), "-m", "-u", "-i", "-n", "-p", "-C", *INSIDE, *map(str, argv)]

    def run(self, *argv, check=True, text=None, timeout=120):
        """A command as root, with the host's capabilities: for systemctl and the like -> stdout and stderr."""
        return run(*self.argv(*argv), check=check, text=text, timeout=timeout)

    def code(self, *argv):
        """Exit code."""
        return subprocess.run(self.argv(*argv), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
                              timeout=120).returncode

    def run_as_unit(self, *argv, properties=(), check=True):
        """A command as a service of the node: its control group, capabilities and filter are the node's."""
        words = [word for item in properties for word in ("-p", item)]
        return self.run("systemd-run", "-q", "--wait", "--pipe", *words, *argv, check=check)

    def show(self, unit, *properties):
        """systemctl show -> dict."""
        text = self.run("systemctl", "show", unit, *[f"-p{name}" for name in properties])
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def write(self, path, text, mode=0o644):
        """A file, from outside: also while the node is off. While it is up: through its own root."""
        leader = self.find_leader() if self.running() else 0
        target = (pathlib.Path(f"/proc/{leader}/root") if leader else self.upper) / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        target.chmod(mode)

    def path(self, path):
        """A path of the node as seen from here, while it is up."""
        return pathlib.Path(f"/proc/{self.find_leader()}/root") / path.lstrip("/")

    def drop_in(self, name, text, unit="spark-cancel-agent.service"):
        """A drop-in and daemon-reload; text None removes it."""
        path = f"/etc/systemd/system/{unit}.d/{name}.conf"
        if text is None:
            self.run("rm", "-f", path)
        else:
            self.write(path, text)
        self.run("systemctl", "daemon-reload")

    # ---- journal: read from outside, also of a node that is off

    def journal(self, *match, since=None):
        """Entries as dicts, oldest first; `since` is a cursor."""
        words = ["journalctl", "-D", self.upper / "var/log/journal", "-q", "--no-pager", "-o", "json", "--all", *match]
        if since:
            words.append(f"--after-cursor={since}")
        done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        entries = []
        for line in done.stdout.splitlines():
            with contextlib.suppress(ValueError):
                entries.append(json.loads(line))
        return entries

    def cursor(self):
        """Where the journal ends now."""
        words = ["journalctl", "-D", self.upper / "var/log/journal", "-q", "--no-pager", "-n0", "--show-cursor"]
        text = run(*words)
        return text.rpartition("-- cursor: ")[2].strip() or None

    def wait_entry(self, *match, since=None, text="", seconds=30):
        """The first entry that has these fields and whose MESSAGE contains `text`."""
        def look():
            return next((entry for entry in self.journal(*match, since=since) if text in str(entry.get("MESSAGE"))), None)
        return until(look, seconds, f"{self.name}'s journal to have {match} {text!r}", pause=0.1)

    # ---- network

    def cut(self):
        run("ip", "-n", self.lab.switch, "link", "set", self.port, "down")

    def heal(self):
        run("ip", "-n", self.lab.switch, "link", "set", self.port, "up")


class Lab:
    """The switch, the shared tree, and the nodes."""

    def __init__(self):
        self.id = f"sca{os.getpid()}"
        self.switch = f"{self.id}-sw"
        self.nodes, self.options, self.namespaces = [], [], []
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="spark-cancel-system-", dir="/var/tmp"))
        self.base, self.layer = self.directory / "base", self.directory / "layer"
        self.home_namespace = None

    @staticmethod
    def require():
        """Unable when this machine can't have nodes."""
        if os.getuid() != 0:
            raise Unable("not root")
        missing = [tool for tool in TOOLS if not shutil.which(tool)]
        if missing:
            raise Unable(f"no {', '.join(missing)} (scripts/deps system)")
        if not possible("unshare", "-m", "true"):
            raise Unable("no mount namespaces")
        if not possible("unshare", "-n", "ip", "link", "add", "br0", "type", "bridge"):
            raise Unable("no network namespaces, or no bridge in this kernel")
        if not os.access(control_groups("")[0], os.W_OK):
            raise Unable("control groups are read-only")
        if not hasattr(os, "pidfd_open"):
            raise Unable("no pidfds")

    def open(self):
        self.require()
        for folder in (self.base, self.layer):
            folder.mkdir()
        self.unpack(self.base_tree())
        self.settle()
        run("ip", "netns", "add", self.switch)
        self.namespaces.append(self.switch)
        run("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self.switch, "link", "set", "br0", "up")
        host = f"{self.id}-host"
        self.join(host, "v-host", HOST_ADDRESS)
        self.enter(host)
        return self

    # ---- the tree

    @staticmethod
    def base_tree():
        """The cached tree, made when it is missing: half a minute."""
        key = hashlib.sha256(" ".join((RELEASE, *PACKAGES)).encode()).hexdigest()[:12]
        tar = CACHE / f"system-{RELEASE}-{key}.tar"
        if not tar.exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            part = CACHE / f"system-{os.getpid()}.part.tar"
            try:
                run("mmdebstrap", "--quiet", "--mode=root", "--variant=apt", f"--include={','.join(PACKAGES)}",
                    "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*", RELEASE, part,
                    stdin=subprocess.DEVNULL)
                os.replace(part, tar)
            finally:
                part.unlink(missing_ok=True)
        return tar

    def unpack(self, tar):
        run("tar", "-xpf", tar, "-C", self.base)

    def settle(self):
        """What a tree needs to boot quickly and alone."""
        etc = self.base / "etc"
        (etc / "machine-id").write_text("", encoding="ascii")  # each copy gets its own at its first boot
        for name in ("etc/hostname", "etc/resolv.conf", "usr/sbin/policy-rc.d"):
            (self.base / name).unlink(missing_ok=True)
        for unit in MASKED:
            link = etc / "systemd/system" / unit
            link.unlink(missing_ok=True)
            link.symlink_to("/dev/null")
        default = etc / "systemd/system/default.target"
        default.unlink(missing_ok=True)
        default.symlink_to("/lib/systemd/system/multi-user.target")
        (self.base / "var/log/journal").mkdir(parents=True, exist_ok=True)
        conf = etc / "systemd/journald.conf.d/lab.conf"
        conf.parent.mkdir(parents=True, exist_ok=True)
        conf.write_text("[Journal]\nStorage=persistent\nSystemMaxUse=64M\nSyncIntervalSec=1s\n", encoding="ascii")

    # ---- the network

    def join(self, namespace, port, address):
        """A network namespace with an address on the bridge."""
        run("ip", "netns", "add", namespace)
        self.namespaces.append(namespace)
        run("ip", "-n", self.switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        run("ip", "-n", self.switch, "link", "set", port, "master", "br0", "up")
        run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            run("ip", "-n", namespace, "link", "set", device, "up")

    def enter(self, namespace):
        """This process's calling thread, and all it starts, is on the bridge from now on."""
        self.home_namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        fd = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.setns(fd)
        finally:
            os.close(fd)

    @staticmethod
    def setns(fd):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(fd, CLONE_NEWNET) != 0:
            raise Unable(f"setns: {os.strerror(ctypes.get_errno())}")

    def rules(self, *lines):
        """Frames that the switch drops: nft rules with iifname and oifname v-NODE. None: all pass."""
        run("ip", "netns", "exec", self.switch, "nft", "-f", "-", text="table bridge lab\ndelete table bridge lab\n" + (
            "table bridge lab {\n chain forward {\n type filter hook forward priority 0\n" + "\n".join(lines) + "\n }\n}\n"
            if lines else ""))

    def add(self, name, number):
        node = Node(self, name, f"10.98.0.{number}")
        self.nodes.append(node)
        return node

    # ---- end

    def close(self, keep=False):
        """Only what this Lab made, by pid and by name."""
        for node in self.nodes:
            if node.running():
                node.power_cut()
            remove_control_groups(node.machine)
        if self.home_namespace is not None:
            self.setns(self.home_namespace)
            os.close(self.home_namespace)
        for namespace in self.namespaces:
            run("ip", "netns", "del", namespace, check=False)
        if not keep:
            run("rm", "-rf", "--one-file-system", self.directory, check=False)
