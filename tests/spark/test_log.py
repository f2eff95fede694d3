# SPDX-License-Identifier: Apache-2.0
"""JobService.ListLog: what a real driver wrote, as a real Worker serves it."""
import grpc
import pytest

from cluster import until
from plane.wire import Job
from yandex.cloud.spark.v1 import job_service_pb2


def page(node, job_id, token="", size=0):
    return node.jobs.ListLog(job_service_pb2.ListJobLogRequest(cluster_id="c1", job_id=job_id, page_token=token,
                                                               page_size=size), timeout=30)


def read(node, job_id, size=0, until_text=None):
    """Page after page: to the end, or till a text is there -> (text, token)."""
    text = token = ""
    while True:
        answer = page(node, job_id, token, size)
        text, token = text + answer.content, answer.next_page_token
        if not token or (until_text and until_text in text):
            return text, token


def test_log_of_a_job_that_runs_and_ends(node):
    job_id, process = node.run("Sleep", "2")
    text, token = read(node, job_id, until_text="Launch Command")
    assert "==> stdout <==\nrunning\n" in text and process.alive() and token
    until(lambda: node.job(job_id).status == Job.DONE, 30, "the job to end by itself")
    whole, token = read(node, job_id)
    assert token == "" and "==> stdout <==\nrunning\nended by itself\n" in whole and "Launch Command" in whole
    in_pieces, _ = read(node, job_id, size=7)
    assert in_pieces.replace("\n==> stderr <==\n", "==> stderr <==\n") == whole.replace("\n==> stderr <==\n", "==> stderr <==\n")


def test_log_of_a_job_that_was_cancelled(node):
    """All up to the kill: what a driver says after its SIGTERM is lost, since Java's Process.destroy() closes the pipes."""
    job_id, _ = node.run("Polite")
    node.wait(node.cancel(job_id).id)
    text, token = read(node, job_id)
    assert "==> stdout <==\nrunning\n" in text and "Launch Command" in text and token == ""


def test_log_of_a_job_that_was_never_placed(node):
    job_id = node.submit("Sleep", **{"spark.driver.cores": "500"})
    answer = page(node, job_id)
    assert answer.content == "" and answer.next_page_token
    driver_id = node.plane.state.job("c1", job_id)["driver_id"]
    node.cluster.request("POST", f"{node.cluster.rest_url}/v1/submissions/kill/{driver_id}")
    until(lambda: node.job(job_id).status == Job.CANCELLED, 30, "the job to be killed in the queue")
    with pytest.raises(grpc.RpcError) as caught:
        page(node, job_id)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND and "never ran" in caught.value.details()
