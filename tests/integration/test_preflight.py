# SPDX-License-Identifier: Apache-2.0
"""
spark-cancelctl check: could this node cancel a job, before any must be cancelled? By the running agent, and without one
from the configuration. Each finding has its remedy.
"""
import json
import os
import re
import socket
import subprocess
import time

import pytest

from certificates import Authority
from harness import AGENT, CLUSTER, LIMIT, ROOT, until

CTL = AGENT.parent / "spark-cancelctl"


def run(node, *arguments):
    path = node.agent.keys["runtime_directory"] / "bus"
    return subprocess.run([CTL, f"--socket={path}", *arguments], capture_output=True, text=True, timeout=LIMIT)


def check(node, *arguments, code=0):
    """-> findings by name, each (level, text, remedy)."""
    result = run(node, "check", "--json", *arguments)
    assert result.returncode == code, result
    answer = json.loads(result.stdout)
    assert answer["able"] is (code == 0)
    found = {row["name"]: (row["level"], row["text"], row["remedy"]) for row in answer["findings"]}
    for name, (level, text, remedy) in found.items():
        assert level in ("ok", "warning", "failure") and text, name
        assert level == "ok" or remedy, f"{name}: {text}: without a remedy"
    return found


def alone(a_node, code=0, **keys):
    """Without an agent."""
    a_node.agent.keys.update(keys)
    a_node.agent.write_config()
    return check(a_node, f"--config={a_node.agent.config}", "--user=root", code=code)


def prepare(node, plane=None, masters=("ALIVE",), **keys):
    """A node whose agent is configured and not started."""
    for mode in masters:
        node.add_master(mode)
    node.start_plane(**(plane or {}))
    return node.make_agent(**keys)


def free_port():
    """Bound and not listening for as long as the caller keeps the socket."""
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    return held, held.getsockname()[1]


# ---- spark-cancel-agent --check-config

def test_check_config_prints_every_effective_key(node):
    """Those of the commented etc/agent.conf, which has them all; what it prints it takes again."""
    prepare(node, escalation="none")
    node.agent.write_config()
    result = node.agent.run(f"--config={node.agent.config}", "--check-config")
    assert result.returncode == 0, result.stderr
    known = [(line[0], line[1]) for line in keys_of((ROOT / "etc" / "agent.conf").read_text(), r"#?([a-z_]+) =")]
    printed = keys_of(result.stdout, r"(?:# )?([a-z_]+)(?: =|:)")
    assert len(known) > 40 and sorted(known) == sorted(printed)
    again = node.directory / "again.conf"
    again.write_text(result.stdout)
    assert node.agent.run(f"--config={again}", "--check-config").stdout == result.stdout


def keys_of(text, pattern):
    section, found = None, []
    for line in text.splitlines():
        if match := re.fullmatch(r"\[([a-z-]+)\]", line):
            section = match[1]
        elif section and (match := re.match(pattern, line)):
            found.append((section, match[1]))
    return found


# ---- by the agent

def test_all_is_well(node):
    node.start()
    node.run_job("j1")
    found = check(node)
    assert found["control plane"][:2] == ("ok", f"connected to {node.plane.endpoint}")
    assert found[f"master {node.master.url}"][0] == "ok" and "ALIVE, Spark 3." in found[f"master {node.master.url}"][1]
    assert found["work directory"][0] == found["clock"][0] == found["state directory"][0] == "ok"
    assert found["drivers"][0] == "ok" and found["drivers"][1].startswith("1 running driver recognised")
    text = run(node, "check").stdout
    assert "This node could cancel a job." in text and "\x1b" not in text
    status = json.loads(run(node, "status", "--json").stdout)
    assert status["able"] is True
    assert "able         yes\n" in run(node, "status").stdout


def test_a_preflight_kills_and_cancels_nothing(node):
    node.start()
    driver = node.run_job("j1")
    check(node)
    assert driver.alive() and not node.master.requests_for("kill", None) and not node.plane.reports()


def test_control_plane_gone(node):
    node.start()
    node.plane.stop()
    until(lambda: not json.loads(run(node, "status", "--json").stdout)["connected"], "the loss of the connection")
    status = json.loads(run(node, "status", "--json").stdout)
    assert status["connection_error"] and status["able"] in (True, False)
    until(lambda: run(node, "check").returncode == 1, "a preflight that is made anew")
    level, text, remedy = check(node, code=1)["control plane"]
    assert level == "failure" and "not connected" in text and "journalctl" in remedy


def test_no_alive_master(node):
    node.start(masters=("STANDBY", "STANDBY"))
    found = check(node, code=1)
    for master in node.masters:
        level, text, remedy = found[f"master {master.url}"]
        assert level == "failure" and "no master is ALIVE" in text and "ZooKeeper" in remedy
    assert "able         no; master" in run(node, "status").stdout


def test_one_of_two_masters_is_enough(node):
    node.start(masters=("STANDBY", "ALIVE"))
    found = check(node)
    assert "standby" in found[f"master {node.masters[0].url}"][1]
    assert found[f"master {node.masters[1].url}"][0] == "ok"


def test_master_that_does_not_answer(node):
    held, port = free_port()
    with held:
        prepare(node)
        node.agent.keys["masters"] = f"http://127.0.0.1:{port}"
        node.agent.start()
        node.plane.wait_watching("n1", timeout=LIMIT)
        level, text, remedy = check(node, code=1)[f"master http://127.0.0.1:{port}"]
    assert level == "failure" and "no answer" in text and "6066" in remedy and "rest.enabled" in remedy


def test_wrong_port_of_the_master(node):
    """Something else listens there: it speaks HTTP and is no REST server."""
    node.start()
    node.master.fault("status", "status", count=None, code=404)
    level, text, remedy = check(node, code=1)[f"master {node.master.url}"]
    assert level == "failure" and "404" in text and "6066" in remedy


def test_master_that_wants_a_token(node):
    node.start()
    node.master.fault("status", "status", count=None, code=401)
    level, text, remedy = check(node, code=1)[f"master {node.master.url}"]
    assert level == "failure" and "token_file" in remedy


def test_silent_master_holds_nothing_up_for_long(node):
    node.start(agent={"request_timeout": "500ms"})
    node.master.fault("hang", "status", count=None)
    assert "failure" == check(node, code=1)[f"master {node.master.url}"][0]


def test_no_driver_runs(node):
    node.start()
    level, text, remedy = check(node)["drivers"]
    assert level == "warning" and "spark.yandex.job.id" in text and "spark-cancelctl find" in remedy


def test_work_directory_is_not_there(node):
    node.start(agent={"work_directory": node.directory / "none"})
    level, text, remedy = check(node)["work directory"]
    assert level == "warning" and "does not exist" in text and "SPARK_WORKER_DIR" in remedy


def test_observe_mode_is_said(node):
    node.start(agent={"mode": "observe"})
    level, text, remedy = check(node)["rights"]
    assert level == "warning" and "observe" in text and "mode = act" in remedy


def test_many_ask_at_once(node):
    """One preflight serves all who ask while it is under way, and for 2 s after."""
    node.start()
    path = node.agent.keys["runtime_directory"] / "bus"
    before = len(node.master.requests_for("status", None))
    crowd = [subprocess.Popen([CTL, f"--socket={path}", "check"], stdout=subprocess.DEVNULL) for _ in range(10)]
    assert [process.wait(LIMIT) for process in crowd] == [0] * 10
    assert 1 <= len(node.master.requests_for("status", None)) - before <= 10


# ---- without an agent

def test_alone_all_is_well(node):
    prepare(node)
    node.start_driver("j1")
    found = alone(node)
    assert found["control plane"][0] == "ok" and "no token is configured" in found["control plane"][1]
    assert "ALIVE, Spark 3." in found[f"master {node.master.url}"][1]
    assert found["drivers"][1].startswith("1 running driver") and found["configuration"][0] == "ok"
    assert not node.plane.reports() and not node.plane.streams()


def test_alone_when_no_agent_answers(node):
    """Nobody said --config: the default one, which is not there on this machine."""
    prepare(node)
    result = run(node, "check")
    assert result.returncode in (0, 1) and "configuration" in result.stdout


def test_alone_configuration_is_wrong(node):
    prepare(node)
    node.agent.config.write_text("[agent]\nbroken\n")
    level, text, remedy = check(node, f"--config={node.agent.config}", code=1)["configuration"]
    assert level == "failure" and "agent.conf:2" in text and "--check-config" in remedy


def test_alone_control_plane_does_not_answer(node):
    prepare(node)
    held, port = free_port()
    with held:
        level, text, remedy = alone(node, code=1, endpoint=f"http://127.0.0.1:{port}")["control plane"]
    assert level == "failure" and "no connection" in text and "DNS" in remedy


def test_alone_name_that_nobody_knows(node):
    prepare(node)
    level, text, _ = alone(node, code=1, endpoint="http://no-such-host.invalid:443")["control plane"]
    assert level == "failure" and "no-such-host.invalid" in text


def test_alone_token(node):
    """A token that is not taken, one that is, and a file that is not there."""
    tokens = node.directory / "tokens"
    tokens.write_text(f"good {CLUSTER} n1\n")
    tokens.chmod(0o600)
    prepare(node, plane={"tokens": str(tokens)})
    token = node.directory / "token"
    token.write_text("wrong")
    level, text, remedy = alone(node, code=1, token_file=token)["control plane"]
    assert level == "failure" and "does not take the credentials" in text and "token_file" in remedy
    token.write_text("good")
    assert "the token is taken" in alone(node)["control plane"][1]
    assert "refuses this node" in alone(node, code=1, node="n2")["control plane"][1]
    token.unlink()
    level, text, remedy = alone(node, code=1, node="n1")["control plane"]
    assert level == "failure" and "no token" in text


def test_alone_certificate(node):
    """The CA that signed it, another one, and a name that it does not bear."""
    ca, other = Authority(node.directory), Authority(node.directory, "other")
    server = ca.issue("server")
    prepare(node, plane={"tls_cert": server.certificate, "tls_key": server.key})
    endpoint = f"https://localhost:{node.plane.endpoint.rpartition(':')[2]}"
    assert alone(node, endpoint=endpoint, ca_file=ca.certificate)["control plane"][0] == "ok"
    level, text, remedy = alone(node, code=1, ca_file=other.certificate)["control plane"]
    assert level == "failure" and "certificate" in text and "ca_file" in remedy
    level, text, remedy = alone(node, code=1, ca_file=ca.certificate, server_name="cp.example")["control plane"]
    assert level == "failure" and "server_name" in remedy


@pytest.mark.parametrize("days,level,words", [(-1, "failure", "has expired"), (5, "warning", "expires in 4 days"),
                                              (100, "ok", "expires in 99 days")])
def test_alone_own_certificate(node, days, level, words):
    """It is told before it expires."""
    certificate, key = node.directory / "own.pem", node.directory / "own.key"
    prepare(node)
    end = time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + days * 86400 - 3600))
    make_certificate(certificate, key, end)
    found = alone(node, code=level == "failure", certificate_file=certificate, private_key_file=key)["certificate"]
    assert found[0] == level and words in found[1]


def make_certificate(certificate, key, end):
    """Self-signed, valid until `end`."""
    directory = certificate.parent
    (directory / "index.txt").write_text("")
    (directory / "ca.conf").write_text(f"[ca]\ndefault_ca = own\n[own]\nnew_certs_dir = {directory}\ndatabase = {directory}/index.txt\n"
                                       f"rand_serial = yes\ndefault_md = sha256\npolicy = any\n[any]\ncommonName = supplied\n")
    subprocess.run(["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=n1",
                    "-keyout", key, "-out", directory / "own.csr"], check=True, capture_output=True, timeout=LIMIT)
    subprocess.run(["openssl", "ca", "-batch", "-config", directory / "ca.conf", "-selfsign", "-keyfile", key, "-in",
                    directory / "own.csr", "-out", certificate, "-startdate", "20200101000000Z", "-enddate", end, "-notext"],
                   check=True, capture_output=True, timeout=LIMIT)


def test_alone_looks_as_the_service(node):
    """Root can read everything; the service's user can't."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    prepare(node)
    os.chmod(node.directory, 0o755)
    node.agent.write_config()
    os.chmod(node.work, 0o700)
    found = check(node, f"--config={node.agent.config}", "--user=nobody", code=1)
    assert found["user"][1] == "checked as user nobody"
    level, text, remedy = found["work directory"]
    assert level == "failure" and "Permission denied" in text and "group" in remedy
    assert found["state directory"][0] == "failure"
    unknown = check(node, f"--config={node.agent.config}", "--user=no-such-user")["user"]
    assert unknown[0] == "warning" and "checked as root" in unknown[1]


def test_alone_right_to_signal(node):
    """Escalation without the right is a wrong configuration, said before the first start."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    prepare(node, escalation="kill", driver_user="0")
    os.chmod(node.directory, 0o755)
    node.agent.write_config()
    level, text, _ = check(node, f"--config={node.agent.config}", "--user=nobody", code=1)["configuration"]
    assert level == "failure" and "may not signal" in text
    assert "escalation = kill" in alone(node)["rights"][1]
