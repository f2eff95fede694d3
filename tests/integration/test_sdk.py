# SPDX-License-Identifier: Apache-2.0
"""
The published Python SDK, untouched, against the reference control plane over TLS: sdk_caller.py is what its users write.

It is given one address. There it asks ApiEndpointService.List, without a token, for the addresses of `iam`,
`managed-spark` and `operation`; then it needs a token: one that it was given (iam_token), one of a metadata service, or
an OAuth token that it exchanges at IamTokenService.Create (service_account_key works alike, with a JWT).
"""
import json
import os
import subprocess

import pytest

from certificates import Authority
from harness import CLUSTER, LIMIT, ROOT
from metadata import MetadataService
from workerui import WorkerUi

SDK_LIMIT = 120  # seconds; to import the SDK alone takes some on a busy machine


@pytest.fixture(scope="session")
def sdk():
    """The folder with the SDK; fetched once."""
    fetched = subprocess.run([ROOT / "scripts/sdk-fetch"], stdout=subprocess.PIPE, text=True, check=False)
    if fetched.returncode:
        pytest.skip("the SDK can't be fetched")
    return fetched.stdout.strip()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def worker_ui():
    made = WorkerUi()
    yield made
    made.stop()


@pytest.fixture
def call(node, authority, sdk, worker_ui):
    """A node behind TLS and tokens -> call(run, auth, **more): what sdk_caller.py printed."""
    server = authority.issue("server")
    for name, text in (("tokens", f"sesame {CLUSTER} * alice\nagents {CLUSTER} n1\n"), ("token", "agents\n")):
        (node.directory / name).write_text(text)
    node.add_master()
    node.start_plane(tls_cert=server.certificate, tls_key=server.key, tokens=str(node.directory / "tokens"),
                     master_uis=[worker_ui.url])
    node.make_agent(ca_file=authority.certificate, token_file=node.directory / "token").start()
    node.plane.wait_watching("n1", timeout=LIMIT)

    def run(name, auth, environment=(), **more):
        given = {"endpoint": node.plane.address, "ca": authority.certificate, "cluster": CLUSTER, "auth": auth, "run": name, **more}
        clean = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        done = subprocess.run(["/usr/bin/python3", "-S", "-B", ROOT / "tests/integration/sdk_caller.py", json.dumps(given)],
                              env={**clean, "PYTHONPATH": sdk, **dict(environment)}, capture_output=True, text=True,
                              timeout=SDK_LIMIT, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_sdk_creates_lists_and_cancels_a_job(node, call, worker_ui):
    """Its own helpers wait, unpack and read the log; what they give are its own types."""
    drivers = []

    def on_create(record, request):
        worker_ui.write(record.id, "stdout", b"one\ntwo\n")
        drivers.append(node.start_driver(request["sparkProperties"]["spark.yandex.job.id"], record.id))

    node.cluster.on_create = on_create
    told = call("whole_life", {"iam_token": "sesame"})
    job_id = told["job_id"]
    assert told["created"] == {"job_id": job_id, "name": "daily-report", "class": "Main"}
    assert told["listed"] == [job_id]
    assert not told["operation"]["done"] and told["operation"]["description"] == "Cancel Spark job"
    assert told["meanwhile"] in ("CANCELLING", "CANCELLED")
    assert told["ended"] == {"meta": [CLUSTER, job_id], "job_id": job_id, "name": "daily-report", "status": "CANCELLED",
                             "finished": True}
    assert told["waited"] and told["again"] and told["status"] == "CANCELLED"
    assert told["log"] == ["==> stdout <==", "one", "two", ""]
    assert not drivers[0].alive() and node.final(told["operation"]["id"]).outcome == "CANCELLED"


def test_sdk_tells_why_a_cancel_failed(node, call):
    node.plane.add_job("ghost")
    told = call("failed_cancel", {"iam_token": "sesame"}, job="ghost")
    assert told["code"] == 5 and told["meta"] == "ghost" and "NOT_FOUND" in told["message"] + told["reason"]
    assert (told["reason"], told["domain"]) == ("NOT_FOUND", "spark-cancel-agent")


def test_sdk_exchanges_an_oauth_token(node, call):
    """IamTokenService.Create at the endpoint that `iam` leads to."""
    node.plane.add_job("j1")
    assert call("list_jobs", {"token": "sesame"}) == {"jobs": ["j1"]}
    wrong = call("list_jobs", {"token": "open"})
    assert wrong["code"] in ("UNAUTHENTICATED", "UNAVAILABLE") and "not known" in wrong["details"]


def test_sdk_takes_a_token_of_the_metadata_service(node, call):
    node.plane.add_job("j1")
    with MetadataService("sesame") as service:
        assert call("list_jobs", {}, {"YC_METADATA_ADDR": service.address}) == {"jobs": ["j1"]}
        assert service.requests == 1


def test_sdk_with_a_token_that_is_not_a_callers(node, call):
    """Nobody's, and an agent's."""
    assert call("list_jobs", {"iam_token": "open"})["code"] == "UNAUTHENTICATED"
    assert call("list_jobs", {"iam_token": "agents"})["code"] == "PERMISSION_DENIED"
