# SPDX-License-Identifier: Apache-2.0
"""
callers: JobService, OperationService, and what SDKs ask first: ApiEndpointService, IamTokenService

Beside the published fields Cancel reads two metadata keys of its own: `x-dry-run: 1` (agents say what they would do) and
`x-deadline: SECONDS`.
"""
import functools
import re

import grpc

from yandex.cloud.endpoint import api_endpoint_service_pb2 as endpoint_pb2
from yandex.cloud.endpoint import api_endpoint_service_pb2_grpc as endpoint_grpc
from yandex.cloud.iam.v1 import iam_token_service_pb2, iam_token_service_pb2_grpc as iam_grpc
from yandex.cloud.operation import operation_service_pb2_grpc as operation_grpc
from yandex.cloud.spark.v1 import job_service_pb2, job_service_pb2_grpc as job_grpc

from . import logs, wire
from .jobs import check_id, invalid
from .rules import Refusal
from .wire import Job, Operation

PAGE_DEFAULT = 100
PAGE_MAX = 1000
FILTER = re.compile(r'\s*(id|name|status)\s*=\s*["\']?([-_A-Za-z0-9]+)["\']?\s*\Z')
REFRESH_SECONDS = 2.0
IAM_TOKEN_SECONDS = 12 * 3600
ENDPOINTS = ("endpoint", "iam", "managed-spark", "operation")


def answering(method):
    """A Refusal becomes the call's status."""
    @functools.wraps(method)
    def call(self, request, context):
        try:
            return method(self, request, context)
        except Refusal as refusal:
            context.abort(refusal.code, refusal.text)
    return call


def page_size(value):
    if not 0 <= value <= PAGE_MAX:
        raise invalid(f"page_size must be 0 to {PAGE_MAX}")
    return value or PAGE_DEFAULT


def page_number(token):
    if not token:
        return None
    if not token.isdigit() or len(token) > 18:
        raise invalid("page_token is not one that this service gave")
    return int(token)


def header(context, name):
    return dict(context.invocation_metadata()).get(name, "")


class JobService(job_grpc.JobServiceServicer):
    def __init__(self, plane):
        self.plane = plane
        self.state = plane.state

    def _job(self, request):
        check_id("cluster_id", request.cluster_id)
        check_id("job_id", request.job_id)
        if self.state.position(request.cluster_id) is None:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"no cluster {request.cluster_id!r}")
        row = self.state.job(request.cluster_id, request.job_id)
        if row is None:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"no job {request.job_id!r} in cluster {request.cluster_id!r}")
        return row

    @answering
    def Create(self, request, context):
        who = self.plane.access.caller(context, request.cluster_id or None)
        return self.plane.jobs.create(request, who.name)

    @answering
    def Get(self, request, context):
        self.plane.access.caller(context, request.cluster_id)
        self.plane.jobs.refresh(self._job(request), REFRESH_SECONDS)
        with self.state.lock:
            return self.plane.rules.shown_job(self._job(request))

    @answering
    def List(self, request, context):
        self.plane.access.caller(context, request.cluster_id)
        check_id("cluster_id", request.cluster_id)
        if self.state.position(request.cluster_id) is None:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"no cluster {request.cluster_id!r}")
        wanted = None
        if request.filter:
            wanted = FILTER.match(request.filter)
            if not wanted:
                raise invalid('filter must be id, name or status = "value"')
        return self._page(request, page_size(request.page_size), page_number(request.page_token), wanted)

    def _page(self, request, size, before, wanted):
        """Newest first; the token is the number of the last job of the page before."""
        answer = job_service_pb2.ListJobsResponse()
        before = before if before is not None else 1 << 62
        while True:
            with self.state.lock:
                rows = self.state.rows("SELECT * FROM job WHERE cluster_id = ? AND number < ? ORDER BY number DESC LIMIT ?",
                                       request.cluster_id, before, PAGE_MAX)
                shown = [(row["number"], self.plane.rules.shown_job(row)) for row in rows]
            for number, job in shown:
                if wanted and wanted[2] != (Job.Status.Name(job.status) if wanted[1] == "status" else getattr(job, wanted[1])):
                    continue
                if len(answer.jobs) == size:
                    answer.next_page_token = str(before)
                    return answer
                answer.jobs.append(job)
                before = number
            if len(rows) < PAGE_MAX:
                return answer
            before = rows[-1]["number"]

    @answering
    def ListLog(self, request, context):
        """What the driver wrote, from its Worker; see logs.py. The token is empty when the job has ended and all was given."""
        self.plane.access.caller(context, request.cluster_id)
        content, token = self.plane.logs.page(self._fresh(request), request.page_size, request.page_token)
        if not content and token:
            self.plane.stopping.wait(logs.HOLD_SECONDS)
            content, token = self.plane.logs.page(self._fresh(request), request.page_size, request.page_token)
        return job_service_pb2.ListJobLogResponse(content=content, next_page_token=token)

    def _fresh(self, request):
        """The job's row; whether it has ended is asked before the log is read, so that its last lines are in there."""
        self.plane.jobs.refresh(self._job(request), REFRESH_SECONDS)
        return self._job(request)

    @answering
    def Cancel(self, request, context):
        who = self.plane.access.caller(context, request.cluster_id or None)
        self._job(request)
        deadline = header(context, "x-deadline")
        try:
            deadline_usec = round(float(deadline) * wire.USEC) if deadline else None
        except (ValueError, OverflowError):
            raise invalid("x-deadline is not a number of seconds") from None
        if deadline_usec is not None and not 0 < deadline_usec <= 7 * 86400 * wire.USEC:
            raise invalid("x-deadline must be above 0 and at most 7 days")
        return self.plane.rules.cancel(request.cluster_id, request.job_id, who.name,
                                       header(context, "x-dry-run") == "1", deadline_usec)


class OperationService(operation_grpc.OperationServiceServicer):
    def __init__(self, plane):
        self.plane = plane
        self.state = plane.state

    def _row(self, request, context):
        who = self.plane.access.caller(context)
        check_id("operation_id", request.operation_id)
        row = self.state.operation(request.operation_id)
        if row is None or who.cluster not in ("*", row["cluster_id"]):
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"no operation {request.operation_id!r}")
        return row, who

    @answering
    def Get(self, request, context):
        return Operation.FromString(self._row(request, context)[0]["operation"])

    @answering
    def Cancel(self, request, context):
        """An open cancel is withdrawn: nodes that have not yet asked Spark to kill stop looking."""
        row, who = self._row(request, context)
        return self.plane.rules.withdraw(row["operation_id"], who.name)


class ApiEndpointService(endpoint_grpc.ApiEndpointServiceServicer):
    def __init__(self, plane):
        self.plane = plane

    def Get(self, request, context):
        if request.api_endpoint_id not in ENDPOINTS:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no endpoint {request.api_endpoint_id!r}")
        return endpoint_pb2.ApiEndpoint(id=request.api_endpoint_id, address=self.plane.advertised)

    def List(self, request, context):
        return endpoint_pb2.ListApiEndpointsResponse(
            endpoints=[endpoint_pb2.ApiEndpoint(id=name, address=self.plane.advertised) for name in ENDPOINTS])


class IamTokenService(iam_grpc.IamTokenServiceServicer):
    """An SDK that was given an OAuth token exchanges it here. A caller's token of --tokens counts as both: it comes back."""

    def __init__(self, plane):
        self.plane = plane

    @answering
    def Create(self, request, context):
        if request.WhichOneof("identity") != "yandex_passport_oauth_token":
            raise Refusal(grpc.StatusCode.UNIMPLEMENTED, "keys of service accounts are not known here: give the SDK an iam_token")
        self.plane.access.exchange(request.yandex_passport_oauth_token)
        return iam_token_service_pb2.CreateIamTokenResponse(
            iam_token=request.yandex_passport_oauth_token,
            expires_at=wire.timestamp(wire.now_usec() + IAM_TOKEN_SECONDS * wire.USEC))
