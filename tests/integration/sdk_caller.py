# SPDX-License-Identifier: Apache-2.0
"""
sdk_caller: the published Python SDK, used as its users do; run with its own packages (scripts/sdk-fetch), not Debian's

Reads {"endpoint", "ca", "cluster", "auth": {keyword: value}, "run": name, ...} from argv[1] and prints one JSON object. It
imports nothing of this repository: message types, endpoints, tokens and waiting are all the SDK's.
"""
import json
import logging
import sys
import time

import grpc
import yandexcloud
from google.rpc.error_details_pb2 import ErrorInfo
from yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from yandex.cloud.operation.operation_service_pb2_grpc import OperationServiceStub
from yandex.cloud.spark.v1.job_pb2 import Job
from yandex.cloud.spark.v1.job_service_pb2 import CancelJobRequest, CreateJobMetadata, GetJobRequest, ListJobsRequest
from yandex.cloud.spark.v1.job_service_pb2_grpc import JobServiceStub
from yandexcloud.operations import OperationError

LIMIT = 60  # seconds

given = json.loads(sys.argv[1])
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
with open(given["ca"], "rb") as file:
    sdk = yandexcloud.SDK(endpoint=given["endpoint"], root_certificates=file.read(), **given["auth"])


def status(job):
    return Job.Status.Name(job.status)


def whole_life():
    """Create, get, list, cancel, wait, read the log."""
    cluster = given["cluster"]
    spark = sdk.wrappers.Spark()
    parameters = sdk.wrappers.SparkJobParameters(name="daily-report", main_jar_file_uri="file:/job.jar", main_class="Main",
                                                 args=["a"], properties={"spark.driver.memory": "64m"})
    created = spark.create_spark_job(parameters, cluster_id=cluster)
    job_id = created.meta.job_id
    end = time.monotonic() + LIMIT
    while spark.get_job(job_id, cluster_id=cluster)[1] != "RUNNING":
        assert time.monotonic() < end, "the job does not run"
        time.sleep(0.1)
    jobs = sdk.client(JobServiceStub)
    listed = [job.id for job in jobs.List(ListJobsRequest(cluster_id=cluster, page_size=10)).jobs]
    operation = jobs.Cancel(CancelJobRequest(cluster_id=cluster, job_id=job_id))
    meanwhile = spark.get_job(job_id, cluster_id=cluster)[1]
    ended = sdk.wait_operation_and_get_result(operation, response_type=Job, meta_type=CreateJobMetadata, timeout=LIMIT)
    waiter = sdk.waiter(operation.id, timeout=LIMIT)
    for _ in waiter:
        time.sleep(0.1)
    again = jobs.Cancel(CancelJobRequest(cluster_id=cluster, job_id=job_id))
    return {
        "job_id": job_id, "created": {"job_id": created.response.id, "name": created.response.name,
                                      "class": created.response.spark_job.main_class}, "listed": listed,
        "operation": {"id": operation.id, "done": operation.done, "description": operation.description},
        "meanwhile": meanwhile,
        "ended": {"meta": [ended.meta.cluster_id, ended.meta.job_id], "job_id": ended.response.id,
                  "name": ended.response.name, "status": status(ended.response),
                  "finished": ended.response.HasField("finished_at")},
        "waited": waiter.operation.done and waiter.operation.HasField("response"),
        "again": again.done, "status": status(jobs.Get(GetJobRequest(cluster_id=cluster, job_id=job_id))),
        "log": spark.get_job_log(job_id, cluster_id=cluster),
    }


def failed_cancel():
    """An operation that ends with an error, as the SDK tells it."""
    operation = sdk.client(JobServiceStub).Cancel(CancelJobRequest(cluster_id=given["cluster"], job_id=given["job"]))
    try:
        sdk.wait_operation_and_get_result(operation, response_type=Job, meta_type=CreateJobMetadata, timeout=LIMIT)
        return {}
    except OperationError as error:
        ended = sdk.client(OperationServiceStub).Get(GetOperationRequest(operation_id=operation.id))
        info = ErrorInfo()
        assert ended.error.details[0].Unpack(info)
        return {"message": error.message, "meta": error.operation_result.meta.job_id, "code": ended.error.code,
                "reason": info.reason, "domain": info.domain}


def list_jobs():
    try:
        return {"jobs": [job.id for job in sdk.client(JobServiceStub).List(ListJobsRequest(cluster_id=given["cluster"])).jobs]}
    except grpc.RpcError as error:
        return {"code": error.code().name, "details": error.details()}


print(json.dumps({"whole_life": whole_life, "failed_cancel": failed_cancel, "list_jobs": list_jobs}[given["run"]]()))
