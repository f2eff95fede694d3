# SPDX-License-Identifier: Apache-2.0
"""
logs: what a driver wrote, page by page, from the web UI of the Worker that ran it

A driver's stdout and stderr lie in the Worker's work directory, and only the Worker serves them:

    REST master   /v1/submissions/status/DRIVER              workerId, also after the driver's end
    master's UI   /json/                                     workers[].id, webuiaddress
    Worker's UI   /log/?driverId=DRIVER&logType=stdout&offset=N&byteLength=M
                  "==== Bytes 0-5 of 8 of /work/DRIVER/stdout ====", newline, the text; offset is cut to the length; a
                  fault comes as 200, too: "Bytes 0-0 of 0", then "Error: ..." (deploy/worker/ui/LogPage.scala)

The address of the UI is stored for each driver, so a log can still be had when the master has forgotten the driver.

A page token is `OUT:ERR:LAST`: how many bytes of stdout and stderr were given, and of which one the last ones were. As
tail(1) does it, a line `==> stdout <==` stands where the text changes from one to the other. The Worker decodes what it
serves, so a character that lies across the end of a page would be lost: such a page is asked for again, shorter.
"""
import json
import re
import urllib.error
import urllib.parse
import urllib.request

import grpc

from . import wire
from .masters import NoRedirect, SparkError
from .rules import FINISHED, Refusal

PAGE_MAX = 1 << 20  # also the default
CHARACTER_MAX = 4   # bytes
HOLD_SECONDS = 1.0  # an empty page of a running job comes so late: who follows a log in a bare loop is slowed down
JSON_MAX = 8 << 20
STREAMS = ("stdout", "stderr")
TOKEN = re.compile(r"(\d{1,15}):(\d{1,15}):(stdout|stderr|)\Z")
HEADER = re.compile(rb"==== Bytes (\d{1,15})-(\d{1,15}) of (\d{1,15}) of (.{1,8192}) ====\n")
CODE = grpc.StatusCode


class Missing(Exception):
    """The Worker has no log of that driver (yet, or any more)."""


class Part:
    """Some bytes of one stream, as the Worker gave them."""

    def __init__(self, start, end, length, text):
        self.start, self.end, self.length, self.text = start, end, length, text


def read_token(token):
    if not token:
        return [0, 0], ""
    found = TOKEN.match(token)
    if not found:
        raise Refusal(CODE.INVALID_ARGUMENT, "page_token is not one that this service gave")
    return [int(found[1]), int(found[2])], found[3]


def page_size(value):
    if not 0 <= value <= PAGE_MAX:
        raise Refusal(CODE.INVALID_ARGUMENT, f"page_size must be 0 to {PAGE_MAX}")
    return max(value or PAGE_MAX, CHARACTER_MAX)


class Logs:
    def __init__(self, state, options, masters):
        self.state = state
        self.options = options
        self.masters = masters
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirect())

    # ---- HTTP

    def _get(self, url, limit):
        with self._opener.open(url, timeout=self.options.spark_timeout) as answer:
            body = answer.read(limit + 1)
        if len(body) > limit:
            raise ValueError("the answer is too large")
        return body

    def _look_up(self, driver_id):
        """The web UI of the driver's Worker; "" when it was placed on none. SparkError: it can't be said."""
        worker = self.masters.worker(driver_id)
        errors = []
        for url in self.options.master_uis if worker else ():
            try:
                fields = json.loads(self._get(url.rstrip("/") + "/json/", JSON_MAX))
                for row in fields["workers"]:
                    if row["id"] == worker and row["webuiaddress"].startswith(("http://", "https://")):
                        return row["webuiaddress"].rstrip("/")
            except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
                errors.append(f"{url}: {getattr(error, 'reason', error)}")
        if worker:
            raise SparkError(f"no master's web UI knows the address of {worker}" + "".join(f"; {error}" for error in errors))
        return ""

    def _address(self, driver_id, fresh):
        row = None if fresh else self.state.row("SELECT address FROM driver_ui WHERE driver_id = ?", driver_id)
        if row:
            return row["address"]
        address = self._look_up(driver_id)
        if address:
            with self.state.transaction():
                self.state.execute("INSERT OR REPLACE INTO driver_ui VALUES (?, ?)", driver_id, address)
        return address

    def _ask(self, address, driver_id, stream, offset, size):
        query = urllib.parse.urlencode({"driverId": driver_id, "logType": stream, "offset": offset, "byteLength": size})
        body = self._get(f"{address}/log/?{query}", 3 * size + 16384)  # a byte that is no text becomes three
        header = HEADER.match(body)
        if not header or not header[4].endswith(f"/{driver_id}/{stream}".encode()):
            raise ValueError("no log page of this driver")
        start, end, length = (int(header[number]) for number in (1, 2, 3))
        text = body[header.end():]
        if length == 0 and text:
            raise Missing(text[:300].decode("utf-8", "replace"))
        if not start <= end <= length or end - start > size:
            raise ValueError("a log page that contradicts itself")
        return Part(start, end, length, text)

    def _part(self, address, driver_id, stream, offset, size):
        """As _ask(), with no character cut in two at the end where that can be avoided."""
        first = part = self._ask(address, driver_id, stream, offset, size)
        for cut in range(1, CHARACTER_MAX):
            if not part.text.endswith("\ufffd".encode()) or first.end - first.start <= cut:
                break
            part = self._ask(address, driver_id, stream, offset, first.end - first.start - cut)
        return first if part.text.endswith("\ufffd".encode()) else part

    # ---- pages

    def page(self, row, size, token):
        """(content, next token) of a job's row. Refusal says why there is no log."""
        offsets, last = read_token(token)
        size = page_size(size)
        finished = row["status"] in FINISHED
        driver_id = row["driver_id"]
        if not driver_id:
            return self._nothing(finished, token, "the job was never submitted to Spark: it has no log")
        if not wire.DRIVER_ID.match(driver_id):
            raise Refusal(CODE.FAILED_PRECONDITION, "Spark's id of the driver can't be put into a URL")
        if not self.options.master_uis:
            raise Refusal(CODE.FAILED_PRECONDITION, "this control plane was started without --master-uis: it can't tell which"
                          " Worker has the log")
        try:
            parts = self._parts(driver_id, offsets, size)
        except Missing as error:
            return self._nothing(finished, token, f"the Worker has no log of {driver_id} any more: {error}")
        if parts is None:
            return self._nothing(finished, token, f"{driver_id} never ran on a Worker: it has no log")
        content = ""
        for index, part in enumerate(parts):
            if part.text and STREAMS[index] != last:
                content += ("\n" if content and not content.endswith("\n") else "") + f"==> {STREAMS[index]} <==\n"
                last = STREAMS[index]
            content += part.text.decode("utf-8", "replace")
            offsets[index] = part.end
        more = not finished or any(part.end < part.length for part in parts)
        return content, f"{offsets[0]}:{offsets[1]}:{last}" if more else ""

    @staticmethod
    def _nothing(finished, token, why):
        if finished:
            raise Refusal(CODE.NOT_FOUND, why)
        return "", token or "0:0:"

    def _parts(self, driver_id, offsets, size):
        """One Part of each stream, `size` bytes together; None: it ran nowhere."""
        errors, missing = [], None
        for fresh in (False, True):  # the address that is stored may be that of a Worker that was started anew since
            try:
                address = self._address(driver_id, fresh)
                if not address:
                    break
                out = self._part(address, driver_id, "stdout", offsets[0], size)
                room = size - (out.end - out.start)
                if room >= CHARACTER_MAX:
                    return [out, self._part(address, driver_id, "stderr", offsets[1], room)]
                return [out, Part(offsets[1], offsets[1], offsets[1] + 1, b"")]  # its turn comes; there may be more
            except Missing as error:
                missing = error
            except SparkError as error:
                errors.append(str(error))
            except (OSError, ValueError, EOFError) as error:
                errors.append(f"{address}: {getattr(error, 'reason', error)}")
        if missing:
            raise missing
        if errors:
            why = "; ".join(dict.fromkeys(errors))[:500]
            raise Refusal(CODE.UNAVAILABLE, f"the log of {driver_id} can't be had now: {why}")
        return None
