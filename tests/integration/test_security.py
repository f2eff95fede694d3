# SPDX-License-Identifier: Apache-2.0
"""
What docs/security.md promises and no other test shows; and that each test it names is there.
"""
import contextlib
import json
import os
import pathlib
import pwd
import re
import resource
import shutil
import signal
import stat
import subprocess
import tempfile

import pytest

from certificates import Authority
from harness import AGENT, CLUSTER, LIMIT, ROOT, Agent, Job, NotifySocket, config_text, driver_argv, rules, until, wire

CTL = AGENT.parent / "spark-cancelctl"
FORGED = "FORGED outcome CANCELLED"
ESCAPES = f"a\r\n{FORGED}\x1b[2J\x1b]0;owned\x07\x9b31m\u202e"
CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")  # a tab may stand in a line


def sanitized():
    """A build with AddressSanitizer: LeakSanitizer must attach, and a SIGSEGV is its own."""
    return b"__asan_init" in AGENT.read_bytes()


def check_log(node):
    """No peer and no process can end a line, begin one, or talk to a terminal."""
    for line in node.agent.log().split("\n"):
        assert not CONTROL.search(line), repr(line)
        assert not line.startswith(FORGED[:6]), line


# ---- the document

def test_the_document_names_tests_that_exist():
    """Each `file::test` of docs/security.md is there, and each test of this file is in it."""
    text = (ROOT / "docs" / "security.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.(?:py|c))::(\w+)`", text)
    assert len(named) > 40
    for path, test in named:
        source = (ROOT / path).read_text()
        start = "def" if path.endswith(".py") else "static void"
        assert re.search(rf"^{start} {test}\(", source, re.MULTILINE), f"{path} has no {test}"
    mine = set(re.findall(r"^def (test_\w+)\(", pathlib.Path(__file__).read_text(), re.MULTILINE))
    assert mine == {test for path, test in named if path.endswith("test_security.py")}


# ---- secrets

def test_no_secret_gets_out(node):
    """Two tokens and a key, through refusals, a restart and a whole cancel, at log level debug."""
    secrets = {"plane": "plane-secret-9c1f", "spark": "spark-secret-77aa"}
    files = {}
    for name, secret in secrets.items():
        files[name] = node.directory / f"{name}.token"
        files[name].write_text(secret + "\n")
    authority = Authority(node.directory)
    server, client = authority.issue("server"), authority.issue("n1")
    tokens = node.directory / "tokens"
    tokens.write_text(f"{secrets['plane']} {CLUSTER} n1\n")
    node.add_master(token="another")
    node.start_plane(tls_cert=server.certificate, tls_key=server.key, client_ca=authority.certificate, tokens=str(tokens))
    metrics = node.directory / "agent.prom"
    agent = node.make_agent(ca_file=authority.certificate, certificate_file=client.certificate, private_key_file=client.key,
                            token_file=files["plane"], metrics_file=metrics)
    write = agent.write_config
    agent.write_config = lambda: (write(), agent.config.write_text(
        agent.config.read_text().replace("[spark]\n", f"[spark]\ntoken_file = {files['spark']}\n")))
    files["plane"].write_text("wrong-secret-1b2c\n")
    agent.start()
    agent.wait_log("UNAUTHENTICATED")
    files["plane"].write_text(secrets["plane"] + "\n")
    node.plane.wait_watching("n1", timeout=LIMIT)
    driver = node.run_job("j1")
    operation = node.plane.cancel("j1").id
    node.master.wait_request("status", driver.id, timeout=LIMIT)  # refused: another token
    node.master.fault("body", count=2, code=403, body=json.dumps({
        "action": "ErrorResponse", "message": f"ECHO {secrets['spark']}", "serverSparkVersion": "3.5.9"}).encode())
    node.master.token = None
    agent.wait_log(r"ECHO \*{8}")
    node.master.token = "another"
    agent.restart()
    node.master.token = secrets["spark"]
    node.plane.wait_done(operation, LIMIT)
    driver.wait_gone()
    assert node.final(operation).outcome == "CANCELLED"

    agent.wait_log("(?i)acknowledged")
    until(metrics.exists, "the metrics")
    bus = agent.keys["runtime_directory"] / "bus"
    places = {"log": agent.log().encode(), "systemd": "\n".join(agent.notify.messages).encode(), "metrics": metrics.read_bytes(),
              "configuration": agent.run(f"--config={agent.config}", "--check-config").stdout.encode()}
    for words in (["status"], ["list", "--all"], ["show", operation], ["metrics"], ["status", "--json"]):
        places["ctl " + " ".join(words)] = subprocess.run([CTL, f"--socket={bus}", *words], capture_output=True, check=True,
                                                           timeout=LIMIT).stdout
    for name in ("cmdline", "environ"):
        places[name] = pathlib.Path(f"/proc/{agent.process.pid}/{name}").read_bytes()
    for file in agent.keys["state_directory"].iterdir():
        places[file.name] = file.read_bytes()
    for number, report in enumerate(node.plane.reports()):
        places[f"report {number}"] = report.raw
    for number, request in enumerate(node.master.requests):
        places[f"request {number}"] = request.path.encode() + request.body + repr(
            [item for item in request.headers.items() if item[0] != "authorization"]).encode()
    key = pathlib.Path(client.key).read_bytes().split(b"\n")[1]
    for place, content in places.items():
        for secret in (*(text.encode() for text in secrets.values()), b"wrong-secret", key):
            assert secret not in content, f"{secret} is in {place}"
    assert any(request.headers.get("authorization") == f"Bearer {secrets['spark']}" for request in node.master.requests)


# ---- the agent's own process

@pytest.fixture
def small_user():
    """(user, directory of theirs with the programs in it): nobody when the tests run as root, else whoever runs them."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="sca-security-"))
    user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    for program in (AGENT, CTL):
        shutil.copy(program, directory)
    for name in ("state", "run", "work"):
        (directory / name).mkdir()
    try:
        for path in (directory, *directory.iterdir()):
            path.chmod(0o755)
            if os.geteuid() == 0:
                shutil.chown(path, user)
        yield user, directory
    finally:
        shutil.rmtree(directory)


def as_user(user):
    """Keywords for subprocess."""
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}


@contextlib.contextmanager
def started(user, directory, before=None):
    """An agent of that user, without anything that it could reach."""
    config = directory / "agent.conf"
    config.write_text(config_text({
        "cluster_id": CLUSTER, "node": "n1", "endpoint": "http://127.0.0.1:1", "masters": "http://127.0.0.1:1",
        "state_directory": directory / "state", "runtime_directory": directory / "run", "work_directory": directory / "work"}))
    notify = NotifySocket(directory / "notify")
    os.chmod(notify.path, 0o777)
    process = subprocess.Popen([directory / AGENT.name, f"--config={config}"], cwd=directory, stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env={"NOTIFY_SOCKET": notify.path}, preexec_fn=before, **as_user(user))
    try:
        notify.wait("READY=1", lambda: process.poll() is None)
        yield process
    finally:
        process.kill()
        process.wait()
        notify.close()


def can_read(user, path):
    """May a process of that user?"""
    return subprocess.run(["/bin/cat", path], capture_output=True, check=False, cwd="/", **as_user(user)).returncode == 0


def test_memory_is_closed_to_the_agents_own_user(small_user):
    """With `escalation` a job may run as the agent's user. It must not get at the tokens by ptrace or /proc."""
    if sanitized():
        return
    if os.geteuid() != 0:
        pytest.skip("only root can tell whether another process of the user is allowed to")
    user, directory = small_user
    other = subprocess.Popen(["/bin/sleep", "60"], cwd="/", **as_user(user))
    try:
        assert can_read(user, f"/proc/{other.pid}/environ"), "a process of the same user may read an ordinary one"
        with started(user, directory) as process:
            for name in ("environ", "maps", "auxv"):
                assert not can_read(user, f"/proc/{process.pid}/{name}"), name
            attach = "import ctypes, sys; sys.exit(ctypes.CDLL(None).ptrace(16, int(sys.argv[1]), 0, 0) == 0)"
            assert subprocess.run(["/usr/bin/python3", "-c", attach, str(process.pid)], check=False, cwd="/",
                                  **as_user(user)).returncode == 0
    finally:
        other.kill()
        other.wait()


def test_a_crash_leaves_no_core(small_user):
    """Although the limit would allow one."""
    if sanitized():
        return
    user, directory = small_user
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    with started(user, directory, before=lambda: resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))) as process:
        process.send_signal(signal.SIGSEGV)
        end = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert (end.si_code, end.si_status) == (os.CLD_KILLED, signal.SIGSEGV), "a core was written"
    assert not list(directory.glob("core*"))


def test_the_local_socket_is_for_reading(small_user):
    """Anybody may look; what changes something is for root, the agent's user and its group."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    user, directory = small_user
    with started("root", directory):
        mode = os.stat(directory / "run" / "bus").st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o666

        def ctl(*words):
            return subprocess.run([directory / CTL.name, f"--socket={directory}/run/bus", *words], capture_output=True, text=True,
                                  check=False, cwd="/", timeout=LIMIT, **as_user(user))

        assert ctl("status").returncode == 0 and ctl("list").returncode == 0
        for words in (["reload"], ["retry", "op-1"]):
            refused = ctl(*words)
            assert refused.returncode == 1 and "Only root" in refused.stderr, refused


def test_files_do_not_depend_on_the_umask(node):
    before = os.umask(0)
    try:
        node.start(agent={"metrics_file": node.directory / "agent.prom"})
    finally:
        os.umask(before)
    driver = node.run_job("j1")
    node.wait_cancelled(node.cancel("j1"), driver)
    for file in node.agent.keys["state_directory"].iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    metrics = node.directory / "agent.prom"
    until(metrics.exists, "the metrics")
    assert stat.S_IMODE(metrics.stat().st_mode) == 0o644  # for node_exporter


# ---- a job that is hostile

def test_names_cannot_forge_the_journal(node):
    """The application's name, a decoy id, and the name of a process that is left behind."""
    node.start()
    before = [f"-Dspark.yandex.job.id={ESCAPES}", f"-Dspark.extra={ESCAPES}"]
    argv = driver_argv(node.work, "driver-20260101000000-0001", "j1", before=before)
    argv[argv.index("-Dspark.app.name=daily report")] = f"-Dspark.app.name={ESCAPES}"
    driver = node.start_driver("j1", "driver-20260101000000-0001", argv=argv)
    node.plane.add_job("j1", driver.id)
    child = driver.process.spawn(["x"], "/", FAKEJVM_EOF="stay", FAKEJVM_NAME=f"e\r\n\x1b[2J{FORGED}"[:15])
    operation = node.cancel("j1")
    metadata = node.wait_cancelled(operation, driver)
    assert metadata.leftover_processes == 1 and str(child.pid) in metadata.message
    report = node.final(operation).operation
    for text in (metadata.message, report.description, wire.unpack(report.response, Job).name):
        assert not CONTROL.search(text) and "\n" not in text, repr(text)
    check_log(node)


def test_work_directory_that_is_hostile(node):
    """Whatever a job has put there, the cancel of another one is not held up, and nothing is followed or read for ever."""
    node.start()
    outside = node.directory / "outside"
    outside.mkdir()
    for number, name in enumerate(["driver-\n1", "driver-\x1b[2J", "d" * 255, "driver-\udcff", "..driver", "-rf"]):
        (node.work / name).mkdir()
        (node.work / name / "stderr").write_text(f'Launch Command: "java" "-Dspark.yandex.job.id=j{number}\n{FORGED}"')
    os.symlink(".", node.work / "driver-loop")
    os.symlink("/", node.work / "driver-root")
    os.symlink("driver-self", node.work / "driver-self")
    huge = node.work / "driver-20260101000000-9001"
    huge.mkdir()
    with open(huge / "stderr", "wb") as file:
        file.write(b'Launch Command: "java" ')
        file.truncate(1 << 40)
    pipe = node.work / "driver-20260101000000-9002"
    pipe.mkdir()
    os.mkfifo(pipe / "stderr")
    # a driver whose directory is a link out of the work directory is not Spark's
    os.symlink(outside, node.work / "driver-20260101000000-9003")
    liar = node.start_driver("j1", "driver-20260101000000-9003")
    driver = node.run_job("j2")
    node.wait_cancelled(node.cancel("j2"), driver)
    node.plane.add_job("j1")
    operation = node.cancel("j1")
    assert node.wait_done(operation).error.code == 5
    assert liar.alive() and not liar.kills
    check_log(node)


def test_ids_do_not_break_out_of_a_url(node):
    """Neither from a command nor from a process: what is no plain id is never asked for at a master."""
    node.start(plane={"deadline_grace": 0.5})
    ids = ["../../v1/submissions/kill/x", "a%2f..%2fb", "a?x=1", "a#b", "a b", "a\r\nX-Evil: 1", "a\\b", ".", "..", "d\u00e9", "a;b",
           "killall", "d" * 129]
    for number, driver_id in enumerate(ids):
        operation = wire.Operation(id=f"op-{number}", metadata=wire.pack(
            wire.CreateJobMetadata(cluster_id=CLUSTER, job_id=f"url{number}")))
        node.plane.inject_cancel(operation, job_id=f"url{number}", driver_id=driver_id, deadline=wire.now_usec() + 1_500_000)
    liars = []
    for number, driver_id in enumerate(["a%2f..%2fb", "a?x=1", "a#b", "a b", "a\nb"]):
        liars.append(node.start_driver(f"liar{number}", driver_id))
        node.plane.add_job(f"liar{number}")
        assert node.wait_done(node.cancel(f"liar{number}")).error.code == 5
    for number, driver_id in enumerate(ids):
        node.plane.wait_done(f"op-{number}", LIMIT)
        said = {report.outcome for report in node.plane.reports(f"op-{number}")}
        assert said == ({"NOT_ON_NODE"} if driver_id == "killall" else {"INVALID_COMMAND"}), (driver_id, said)
    driver = node.run_job("real")
    node.wait_cancelled(node.cancel("real"), driver)
    asked = {request.driver_id for request in node.master.requests}
    # "killall" is a well-formed id; it stands where an id stands and is none that any driver has
    assert asked <= {driver.id, "killall"}, asked
    assert not node.master.requests_for("kill", "killall") and not node.master.requests_for("killall")
    assert all(liar.alive() for liar in liars)
    check_log(node)


# ---- a master, or a control plane, that is hostile

def test_a_master_cannot_forge_the_journal(node):
    node.start(agent={"kill_retry": "2500ms"})
    driver = node.run_job("j1")

    def reply(**fields):
        return json.dumps({"action": "KillSubmissionResponse", "serverSparkVersion": ESCAPES, "submissionId": driver.id,
                           **fields}).encode()

    node.master.fault("body", "kill", body=reply(success=False, message=ESCAPES))
    node.master.fault("status", "kill", code=302, location=f"http://127.0.0.1:1/{FORGED}")
    metadata = node.wait_cancelled(node.cancel("j1"), driver)
    assert not CONTROL.search(metadata.message), repr(metadata.message)
    check_log(node)


def test_a_control_plane_cannot_forge_the_journal(node):
    node.start()
    metadata = wire.pack(wire.CreateJobMetadata(cluster_id=CLUSTER, job_id=ESCAPES[:40]))
    broken = wire.Operation(id="broken", description=ESCAPES, created_by=ESCAPES, metadata=metadata)
    node.plane.inject_cancel(broken, job_id="x")
    node.plane.inject(rules.cancel_event(wire.Operation(id=ESCAPES[:30]).SerializeToString()))
    driver = node.run_job("j1")
    sound = wire.Operation(id="sound", description=ESCAPES, created_by=ESCAPES, metadata=wire.pack(
        wire.CreateJobMetadata(cluster_id=CLUSTER, job_id="j1")))
    node.plane.faults.add("report", "reject", operation="sound", times=1)
    node.plane.inject_cancel(sound, job_id="j1")
    node.plane.wait_done("broken", LIMIT)
    driver.wait_gone()
    node.agent.wait_log("(?i)quarantin|acknowledged")
    assert node.final("broken").outcome == "INVALID_COMMAND"
    check_log(node)
    bus = node.agent.keys["runtime_directory"] / "bus"
    for words in (["list", "--all"], ["show", "sound"], ["status"]):
        shown = subprocess.run([CTL, f"--socket={bus}", *words], capture_output=True, text=True, check=True, timeout=LIMIT)
        for line in shown.stdout.split("\n"):
            assert not CONTROL.search(line) and not line.startswith(FORGED), repr(line)
