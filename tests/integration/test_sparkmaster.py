# SPDX-License-Identifier: Apache-2.0
"""The scripted Spark master itself: a test double that is wrong makes every test that uses it worthless."""
import http.client
import json
import signal
import subprocess
import sys
import time

import pytest
import sparkmaster
from sparkmaster import Cluster, SparkMaster, spark_json

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def process():
    processes = []

    def start(*argv):
        processes.append(subprocess.Popen(argv or ("sleep", "60"), stdout=subprocess.PIPE))
        return processes[-1]

    yield start
    for one in processes:
        one.kill()
        one.wait()
        one.stdout.close()


@pytest.fixture
def master():
    with SparkMaster() as one:
        yield one


def ask(master, method, path, headers=None, body=None):
    connection = http.client.HTTPConnection(master.host, master.port, timeout=5)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read(), response
    finally:
        connection.close()


def test_kill_of_a_placed_driver_ends_its_process(master, process):
    job = process()
    driver = master.add_driver("driver-1", pid=job.pid)
    status, body, response = ask(master, "POST", "/v1/submissions/kill/driver-1")
    assert status == 200
    assert body == (b'{\n  "action" : "KillSubmissionResponse",\n  "message" : "Kill request for driver-1 submitted",\n'
                    b'  "serverSparkVersion" : "3.5.9",\n  "submissionId" : "driver-1",\n  "success" : true\n}')
    assert response.getheader("Content-Type") == "application/json;charset=utf-8"
    assert job.wait(5) == -signal.SIGTERM
    master.cluster.wait_state("driver-1", "KILLED")
    assert driver.kills == 1
    body = ask(master, "POST", "/v1/submissions/kill/driver-1")[1]
    assert json.loads(body)["message"] == "Driver driver-1 has already finished or does not exist"


def test_a_worker_kills_one_at_a_time(process):
    cluster = Cluster(terminate_timeout=0.4)
    with SparkMaster(cluster=cluster) as master:
        jobs = [process(sys.executable, "-c", STUBBORN) for _ in range(2)] + [process()]
        for number, job in enumerate(jobs):
            if number < 2:
                job.stdout.readline()
            cluster.add_driver(f"driver-{number}", pid=job.pid)
        began = time.monotonic()
        for number in range(3):
            ask(master, "POST", f"/v1/submissions/kill/driver-{number}")
        cluster.wait_state("driver-2", "KILLED")
        assert time.monotonic() - began >= 0.8
        assert [job.wait(5) for job in jobs] == [-signal.SIGKILL, -signal.SIGKILL, -signal.SIGTERM]
    cluster.close()


def test_status_by_state_and_mode(master, process):
    job = process()
    master.add_driver("driver-1", pid=job.pid, worker_host_port="10.0.0.1:7078")
    master.add_driver("driver-2", state="SUBMITTED")
    fields = json.loads(ask(master, "GET", "/v1/submissions/status/driver-1")[1])
    assert fields["driverState"] == "RUNNING" and fields["workerHostPort"] == "10.0.0.1:7078" and fields["success"]
    fields = json.loads(ask(master, "GET", "/v1/submissions/status/driver-2")[1])
    assert fields["driverState"] == "SUBMITTED" and "workerHostPort" not in fields
    expected = {"action": "SubmissionStatusResponse", "serverSparkVersion": "3.5.9", "submissionId": "driver-3",
                "success": False}
    assert ask(master, "GET", "/v1/submissions/status/driver-3")[1] == spark_json(expected)
    job.terminate()
    master.cluster.wait_state("driver-1", "FAILED")
    for mode in ("STANDBY", "RECOVERING"):
        master.mode = mode
        assert f"Current state is not alive: {mode}. Can only request driver status in ALIVE state." in json.loads(
            ask(master, "GET", "/v1/submissions/status/driver-1")[1])["message"]
        assert json.loads(ask(master, "POST", "/v1/submissions/kill/driver-1")[1])["message"].startswith(
            f"Current state is not alive: {mode}.")


def test_a_queued_driver_is_killed_by_the_master(master):
    master.add_driver("driver-1", state="SUBMITTED")
    assert json.loads(ask(master, "POST", "/v1/submissions/kill/driver-1")[1])["success"]
    master.cluster.wait_state("driver-1", "KILLED")


def test_create_then_place(master, process):
    placed = []

    def on_create(driver, request):
        placed.append(process())
        master.cluster.place(driver.id, placed[0].pid)

    master.cluster.on_create = on_create
    body = json.dumps({"action": "CreateSubmissionRequest", "clientSparkVersion": "", "appResource": "",
                       "mainClass": "Sleep", "appArgs": [], "environmentVariables": {},
                       "sparkProperties": {"spark.app.name": "t"}, "more": 1})
    fields = json.loads(ask(master, "POST", "/v1/submissions/create", body=body)[1])
    assert fields["success"] and fields["unknownFields"] == ["more"]
    driver = master.cluster.wait_state(fields["submissionId"], "RUNNING")
    assert driver.pid == placed[0].pid and driver.request["mainClass"] == "Sleep"


@pytest.mark.parametrize("method, path, code, kind", [
    ("GET", "/v1/submissions/kill/driver-1", 405, "text/html"),
    ("POST", "/v1/submissions/status/driver-1", 405, "text/html"),
    ("DELETE", "/v1/submissions/kill/driver-1", 405, None),
    ("PATCH", "/v1/submissions/kill/driver-1", 501, None),
    ("POST", "/v1/submissions/kill/", 400, "application/json"),
    ("GET", "/v1/submissions/readyz", 400, "application/json"),
    ("GET", "/v2/submissions/status/driver-1", 468, "application/json"),
    ("GET", "/v1/foo", 468, "application/json"),
    ("GET", "/", 400, "application/json"),
    ("POST", "/v1/submissions/kill/" + "a" * 9000, 414, "text/html"),
])
def test_refusals(master, method, path, code, kind):
    status, _, response = ask(master, method, path)
    assert status == code
    assert (response.getheader("Content-Type") or "").startswith(kind or "")
    if code == 468:
        assert response.reason == "468"


def test_token():
    with SparkMaster(token="secret") as master:
        for header, text in ((None, b"Authorization header is missing."),
                             ("bearer secret", b"Malformed Authorization header."),
                             ("Bearer other", b"JWT Validate Fail")):
            headers = {"Authorization": header} if header else {}
            status, body, _ = ask(master, "GET", "/v1/submissions/status/d", headers)
            assert status == 403 and text in body
        assert ask(master, "GET", "/v1/submissions/status/d", {"Authorization": "Bearer secret"})[0] == 200


def test_version_four_has_readyz():
    with SparkMaster(version="4.3.0") as master:
        assert ask(master, "GET", "/v1/submissions/readyz")[0] == 200
        master.mode = "STANDBY"
        assert ask(master, "GET", "/v1/submissions/readyz")[0] == 503


def test_faults(master, process):
    job = process()
    master.add_driver("driver-1", pid=job.pid)
    path = "/v1/submissions/kill/driver-1"
    for kind in ("close", "reset"):
        master.fault(kind)
        with pytest.raises((http.client.HTTPException, OSError)):
            ask(master, "POST", path)
    master.fault("status", code=503)
    assert ask(master, "POST", path)[0] == 503
    master.fault("status", code=302, location="http://127.0.0.1:1/")
    assert ask(master, "POST", path)[2].getheader("Location") == "http://127.0.0.1:1/"
    master.fault("truncated", route="status")
    with pytest.raises(http.client.IncompleteRead):
        ask(master, "GET", "/v1/submissions/status/driver-1")
    master.fault("broken")
    with pytest.raises(ValueError):
        json.loads(ask(master, "GET", "/v1/submissions/status/driver-1")[1])
    master.fault("action", action="ErrorResponse")
    assert json.loads(ask(master, "GET", "/v1/submissions/status/driver-1")[1])["action"] == "ErrorResponse"
    master.fault("huge", size=100000)
    assert len(ask(master, "POST", path)[1]) > 100000
    master.fault("body", body=b"hello", code=200, content_type="text/plain")
    assert ask(master, "POST", path)[1] == b"hello"
    master.fault("delay", seconds=0.2)
    began = time.monotonic()
    ask(master, "GET", "/v1/submissions/status/driver-1")
    assert time.monotonic() - began >= 0.2
    master.fault("drip", seconds=0.0001)
    assert ask(master, "GET", "/v1/submissions/status/driver-1")[0] == 200
    assert job.poll() is None
    master.fault("lost")
    assert json.loads(ask(master, "POST", path)[1])["success"] is True
    assert master.drivers["driver-1"].kills == 0 and job.poll() is None
    master.fault("unanswered")
    with pytest.raises((http.client.HTTPException, OSError)):
        ask(master, "POST", path)
    assert job.wait(5) == -signal.SIGTERM
    assert master.requests[-1].answer == "unanswered"


def test_hang_ends_with_stop_and_start_takes_the_port_again():
    with SparkMaster() as master:
        port = master.port
        master.fault("hang")
        connection = http.client.HTTPConnection(master.host, master.port, timeout=5)
        connection.request("GET", "/v1/submissions/status/d")
        master.wait_request("status", "d")
        master.stop()
        with pytest.raises((http.client.HTTPException, OSError)):
            connection.getresponse()
        connection.close()
        with pytest.raises(OSError):
            ask(master, "GET", "/v1/submissions/status/d")
        master.start()
        assert master.port == port and ask(master, "GET", "/v1/submissions/status/d")[0] == 200


def test_keep_alive_and_forgotten_drivers(master):
    master.add_driver("driver-1")
    connection = http.client.HTTPConnection(master.host, master.port, timeout=5)
    for expected in (True, False):
        connection.request("GET", "/v1/submissions/status/driver-1")
        response = connection.getresponse()
        assert json.loads(response.read())["success"] is expected and not response.will_close
        master.forget("driver-1")
    connection.close()
    assert [r.route for r in master.requests] == ["status", "status"]
    assert len(master.requests_for("status", "driver-1")) == 2


def test_two_masters_share_a_cluster(process):
    cluster = Cluster()
    with SparkMaster(cluster=cluster) as first, SparkMaster("STANDBY", cluster) as second:
        cluster.add_driver("driver-1")
        assert not json.loads(ask(second, "GET", "/v1/submissions/status/driver-1")[1])["success"]
        first.mode, second.mode = "STANDBY", "ALIVE"
        assert json.loads(ask(second, "GET", "/v1/submissions/status/driver-1")[1])["success"]
    cluster.close()


def test_command_line(process):
    with subprocess.Popen([sys.executable, sparkmaster.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as command:
        url = command.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        command.stdin.write('{"add_driver": {"id": "driver-1", "state": "SUBMITTED"}}\n{"nonsense": 1}\n')
        command.stdin.flush()
        assert "error" in json.loads(command.stdout.readline())
        connection = http.client.HTTPConnection(url[7:], timeout=5)
        connection.request("GET", "/v1/submissions/status/driver-1")
        assert json.loads(connection.getresponse().read())["driverState"] == "SUBMITTED"
        connection.close()
        assert json.loads(command.stdout.readline())["path"] == "/v1/submissions/status/driver-1"
        command.stdin.close()
        assert command.wait(5) == 0
