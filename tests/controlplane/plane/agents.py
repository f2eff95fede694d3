# SPDX-License-Identifier: Apache-2.0
"""
agents: CancelAgentService

Messages go out and reports come in as raw bytes: the command's Operation must reach the agent byte for byte, and a report
that is no protobuf message must be refused as INVALID_ARGUMENT rather than by the library.
"""
import collections
import time

import grpc

from sparkcancel.agent.v1 import cancel_agent_service_pb2 as agent_pb2

from . import wire
from .rules import Refusal

PAGE = 256
SERVICE = "sparkcancel.agent.v1.CancelAgentService"
GARBAGE = b"\x0a\xff\xff\xff\xff\x07not a message"


class Stream:
    """One open Watch."""

    def __init__(self, request, context):
        self.cluster_id = request.cluster_id
        self.node = request.node
        self.instance_id = request.instance_id
        self.agent_version = request.agent_version
        self.after_revision = request.after_revision
        self.context = context
        self.position = request.after_revision
        self.replayed = False
        self.ended = None  # (code, text)
        self.raw = collections.deque()  # what a test wants sent out of order
        self.sent = 0
        self.opened = wire.now_usec()


class Agents:
    def __init__(self, plane):
        self.plane = plane
        self.state = plane.state
        self.options = plane.options
        self.streams = {}  # (cluster, node) -> Stream; under the state's lock
        self.stopping = False

    def handler(self):
        handlers = {
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch, bytes, bytes),
            "Report": grpc.unary_unary_rpc_method_handler(self.report, bytes, lambda message: message.SerializeToString()),
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    # ---- who is live

    def live_nodes(self, cluster_id):
        """Nodes whose stream is open, or was within node_lifetime."""
        with self.state.lock:
            since = wire.now_usec() - self.options.usec("node_lifetime")
            known = {row["node"] for row in self.state.nodes(cluster_id) if row["last_seen"] >= since}
            return known | {stream.node for stream in self.streams.values() if stream.cluster_id == cluster_id}

    def forgive(self):
        """At a start every node gets node_lifetime to come back before it is taken for gone."""
        with self.state.transaction():
            self.state.execute("UPDATE node SET last_seen = ?", wire.now_usec())

    # ---- Watch

    def watch(self, raw, context):
        try:
            stream = self._open(raw, context)
        except Refusal as refusal:
            context.abort(refusal.code, refusal.text)
        try:
            yield from self._with_faults(stream, self._messages(stream))
        except Refusal as refusal:
            context.abort(refusal.code, refusal.text)
        finally:
            self._close(stream)

    def _request(self, kind, raw, context):
        try:
            request = kind.FromString(raw)
        except Exception:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"the request is no {kind.DESCRIPTOR.name}") from None
        self.plane.access.agent(context, request.cluster_id, request.node)
        if not wire.ID.match(request.cluster_id) or not 0 < len(request.node) <= wire.NODE_MAX or not request.instance_id:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "cluster_id, node and instance_id are required")
        if self.state.position(request.cluster_id) is None:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"no cluster {request.cluster_id!r}")
        return request

    def _open(self, raw, context):
        request = self._request(agent_pb2.WatchRequest, raw, context)
        fault = self.plane.faults.take("watch", request.node, ("status", "delay"))
        if fault:
            self._fail(fault, context)
        stream = Stream(request, context)
        condition = self.state.condition(stream.cluster_id)

        def wake():
            with self.state.lock:
                condition.notify_all()

        if not context.add_callback(wake):
            raise Refusal(grpc.StatusCode.CANCELLED, "the call has ended")
        with self.state.transaction():
            position, trimmed = self.state.position(stream.cluster_id)
            if stream.after_revision and not trimmed <= stream.after_revision <= position:
                raise Refusal(grpc.StatusCode.OUT_OF_RANGE, f"the history has revisions {trimmed} to {position}")
            older = self.streams.get((stream.cluster_id, stream.node))
            if older is not None:
                self._replace(older, stream)
            self.streams[stream.cluster_id, stream.node] = stream
            self.state.seen(stream.cluster_id, stream.node, stream.instance_id, stream.agent_version)
            condition.notify_all()
        return stream

    def _replace(self, older, newer):
        if older.instance_id != newer.instance_id:
            older.ended = (grpc.StatusCode.ABORTED, f"another agent calls itself {newer.node}")
        else:
            older.ended = (grpc.StatusCode.CANCELLED, "a newer stream of the same agent has come")

    def _close(self, stream):
        with self.state.lock:
            if self.streams.get((stream.cluster_id, stream.node)) is stream:
                del self.streams[stream.cluster_id, stream.node]
                if not self.stopping:
                    with self.state.transaction():
                        self.state.seen(stream.cluster_id, stream.node, stream.instance_id)

    def _bookmark(self, revision):
        bookmark = agent_pb2.Bookmark(now=wire.timestamp(wire.now_usec()))
        bookmark.heartbeat_interval.FromMicroseconds(self.options.usec("heartbeat"))
        return agent_pb2.WatchResponse(revision=revision, bookmark=bookmark).SerializeToString()

    def _messages(self, stream):
        """The stream by the contract: opening Bookmark, replay, closing Bookmark, what comes, heartbeats."""
        yield self._bookmark(stream.after_revision)
        end, _ = self.state.position(stream.cluster_id)
        fetch = self._open_page if stream.after_revision == 0 else self._page
        while True:
            rows = fetch(stream, end)
            if not rows:
                break
            for row in rows:
                self._check(stream)
                stream.position = row["revision"]
                if row["event"] is not None:
                    yield wire.with_revision(row["revision"], row["event"])
        stream.position = end
        with self.state.lock:
            stream.replayed = True
            self.state.changed.notify_all()
        yield self._bookmark(end)
        yield from self._live(stream)

    def _open_page(self, stream, end):
        return self.state.open_events(stream.cluster_id, stream.position, end, PAGE)

    def _page(self, stream, end):
        return [row for row in self.state.events(stream.cluster_id, stream.position, PAGE) if row["revision"] <= end]

    def _live(self, stream):
        due = time.monotonic() + self.options.heartbeat
        condition = self.state.condition(stream.cluster_id)
        while True:
            with self.state.lock:
                self._check(stream)
                rows = self.state.events(stream.cluster_id, stream.position, PAGE)
                raw = list(stream.raw)
                stream.raw.clear()
                if not rows and not raw and time.monotonic() < due:
                    condition.wait(due - time.monotonic())
                    continue
            for row in rows:
                stream.position = row["revision"]
                if row["event"] is not None:
                    yield wire.with_revision(row["revision"], row["event"])
            yield from raw
            if time.monotonic() >= due:
                due = time.monotonic() + self.options.heartbeat
                yield self._bookmark(stream.position)

    def _check(self, stream):
        if self.stopping:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "the control plane is stopping")
        if stream.ended:
            raise Refusal(*stream.ended)
        if not stream.context.is_active():
            raise Refusal(grpc.StatusCode.CANCELLED, "the agent has gone")

    def _with_faults(self, stream, messages):
        fault = self.plane.faults.take("watch", stream.node, ("drop", "silence", "garbage"))
        while True:
            if fault and stream.sent >= fault.after:
                if fault.kind == "drop":
                    raise Refusal(grpc.StatusCode.UNAVAILABLE, "dropped by a fault")
                if fault.kind == "silence":
                    self._wait_end(stream)
                fault = None
                yield GARBAGE
            yield next(messages)
            with self.state.lock:
                stream.sent += 1
                self.state.changed.notify_all()

    def _wait_end(self, stream):
        condition = self.state.condition(stream.cluster_id)
        with self.state.lock:
            while True:
                self._check(stream)
                condition.wait(1.0)

    def _fail(self, fault, context):
        """The faults status and delay."""
        if fault.kind == "delay":
            self.plane.stopping.wait(fault.seconds)
            return
        if fault.pushback is not None:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", str(fault.pushback)),))
        raise Refusal(fault.code, "refused by a fault")

    # ---- Report

    def report(self, raw, context):
        try:
            return self._report(raw, context)
        except Refusal as refusal:
            context.abort(refusal.code, refusal.text)

    def _report(self, raw, context):
        request = self._request(agent_pb2.ReportRequest, raw, context)
        reports = wire.field_bytes(raw, 4)
        ids = [report.operation.id for report in request.reports]
        fault = self.plane.faults.take("report", request.node, ("status", "delay", "lost", "unspecified", "short"))
        poison = self.plane.faults.take("report", request.node, ("poison",), ids)
        if poison:
            raise Refusal(poison.code, "a report in this call is refused by a fault")
        if fault and fault.kind in ("status", "delay"):
            self._fail(fault, context)
        self._check_batch(ids, reports)
        if fault and fault.kind == "unspecified":
            return agent_pb2.ReportResponse(results=[agent_pb2.ReportResult(operation_id=one) for one in ids])
        if fault and fault.kind == "short":
            reports = reports[:-1]
        answer = self._apply(request, ids, reports)
        if fault and fault.kind == "lost":
            raise Refusal(fault.code, "the answer is lost by a fault")
        return answer

    def _check_batch(self, ids, reports):
        if len(reports) > wire.BATCH_MAX:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"{len(reports)} reports; at most {wire.BATCH_MAX} in a call")
        named = [one for one in ids if one]
        if len(set(named)) != len(named):
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "two reports of one operation in a call")

    def _apply(self, request, ids, reports):
        answer = agent_pb2.ReportResponse()
        with self.state.transaction():
            self.state.seen(request.cluster_id, request.node, request.instance_id)
            for operation_id, raw in zip(ids, reports):
                fault = self.plane.faults.take("report", request.node, ("reject",), [operation_id])
                if fault:
                    answer.results.add(operation_id=operation_id, disposition=agent_pb2.REJECTED,
                                       reason="rejected by a fault")
                    continue
                answer.results.append(self.plane.rules.apply_report(request.cluster_id, request.node, request.instance_id, raw))
        return answer

