# SPDX-License-Identifier: Apache-2.0
"""
wire: ids, times, raw protobuf fields, the table of outcomes

A report's bytes are what "the same report" means (ALREADY_APPLIED: same sequence, same bytes), and a parsed and
serialized message need not give them back. So they are cut out of the request raw.
"""
import os
import re
import time

from google.protobuf import any_pb2, timestamp_pb2
from google.rpc import error_details_pb2, status_pb2
from sparkcancel.agent.v1 import cancel_agent_service_pb2 as agent_pb2
from yandex.cloud.operation import operation_pb2
from yandex.cloud.spark.v1 import job_pb2, job_service_pb2

USEC = 1_000_000
ID_MAX = 50
NODE_MAX = 255
BATCH_MAX = 256
OPERATION_BYTES_MAX = 16 * 1024
REPORT_MESSAGE_MAX = 1024
DOMAIN = "spark-cancel-agent"
ID = re.compile(r"[!-~]{1,50}\Z")
DRIVER_ID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,128}\Z")

Job = job_pb2.Job
PROGRESS = (agent_pb2.IN_PROGRESS, agent_pb2.NOT_ON_NODE)
# outcome -> (the operation's error codes, or () for a response; the job statuses that may stand with it, None: any)
FINAL = {
    agent_pb2.CANCELLED: ((), (Job.CANCELLED,)),
    agent_pb2.ALREADY_DONE: ((), (Job.DONE,)),
    agent_pb2.ALREADY_FAILED: ((), (Job.ERROR,)),
    agent_pb2.DRY_RUN: ((), None),
    agent_pb2.NOT_FOUND: ((5,), (Job.STATUS_UNSPECIFIED,)),
    agent_pb2.SPARK_UNREACHABLE: ((14,), (Job.STATUS_UNSPECIFIED,)),
    agent_pb2.SPARK_REFUSED: ((7, 9), (Job.STATUS_UNSPECIFIED,)),
    agent_pb2.DEADLINE_EXCEEDED: ((4,), (Job.STATUS_UNSPECIFIED,)),
    agent_pb2.DRIVER_SURVIVED: ((13,), (Job.STATUS_UNSPECIFIED,)),
    agent_pb2.DRIVER_LOST: ((10,), (Job.STATUS_UNSPECIFIED, Job.ERROR)),
    agent_pb2.INVALID_COMMAND: ((3,), (Job.STATUS_UNSPECIFIED,)),
}


def now_usec():
    return time.time_ns() // 1000


def timestamp(usec):
    return timestamp_pb2.Timestamp(seconds=usec // USEC, nanos=usec % USEC * 1000)


def from_timestamp(stamp):
    return stamp.seconds * USEC + stamp.nanos // 1000


def make_id(prefix):
    """A published-looking id: a prefix and 17 characters, 85 random bits."""
    bits = int.from_bytes(os.urandom(11), "big")
    return prefix + "".join("0123456789abcdefghijklmnopqrstuv"[bits >> 5 * i & 31] for i in range(17))


def pack(message):
    value = any_pb2.Any()
    value.Pack(message)
    return value


def unpack(value, kind):
    """The message in an Any, or None when it is not of that kind or broken. Readers compare what follows the last slash."""
    if value.type_url.rpartition("/")[2] != kind.DESCRIPTOR.full_name:
        return None
    try:
        return kind.FromString(value.value)
    except Exception:  # DecodeError differs between protobuf's implementations
        return None


def error(code, outcome, message):
    """The google.rpc.Status of an outcome."""
    info = error_details_pb2.ErrorInfo(reason=outcome, domain=DOMAIN)
    return status_pb2.Status(code=code, message=message, details=[pack(info)])


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def with_revision(revision, event):
    """A WatchResponse: protobuf merges what is concatenated."""
    return b"\x08" + varint(revision) + event


def _read_varint(data, at):
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a broken varint")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def fields(data):
    """The raw fields of one message: (number, wire type, value bytes or int). ValueError when it is none."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _read_varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = data[at:at + size], at + size
        elif kind == 2:
            size, at = _read_varint(data, at)
            value, at = data[at:at + size], at + size
        else:
            raise ValueError(f"wire type {kind}")
        if number == 0 or at > len(data):
            raise ValueError("a broken field")
        yield number, kind, value


def field_bytes(data, number):
    """Every length-delimited value of one field, raw."""
    return [value for found, kind, value in fields(data) if found == number and kind == 2]


def without_fields(data, numbers):
    """The message's raw fields, in order, less some numbers, as a list that can be compared."""
    return [field for field in fields(data) if field[0] not in numbers]


def report_of(report):
    """A CancelReport -> its CancelJobMetadata, or None."""
    return unpack(report.operation.metadata, agent_pb2.CancelJobMetadata)


Operation = operation_pb2.Operation
CreateJobMetadata = job_service_pb2.CreateJobMetadata
