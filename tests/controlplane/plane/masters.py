# SPDX-License-Identifier: Apache-2.0
"""
masters: Spark's REST API: create and status

HTTP 200 proves nothing by itself: a standby master and an unknown id answer 200, too. The masters are asked one after
another, the one that answered as ALIVE last first. Redirects are not followed and proxies of the environment not used.
"""
import json
import urllib.error
import urllib.request

NOT_ALIVE = "Current state is not alive"
ANSWER_MAX = 1 << 20


class SparkError(Exception):
    """No master could be made to do it. `sent`: one may have done it all the same."""

    def __init__(self, text, sent=False):
        super().__init__(text)
        self.sent = sent


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments):
        return None


class Masters:
    def __init__(self, urls, timeout=10.0, token_file=None):
        self.urls = [url.rstrip("/") for url in urls]
        self.timeout = timeout
        self.token_file = token_file
        self._first = 0  # the one that was ALIVE last
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirect())

    def _ask(self, url, path, body=None, timeout=None):
        request = urllib.request.Request(f"{url}/v1/submissions/{path}", data=body)
        request.add_header("Content-Type", "application/json")
        if self.token_file:
            with open(self.token_file, encoding="ascii") as file:
                request.add_header("Authorization", "Bearer " + file.read().strip())
        with self._opener.open(request, timeout=timeout or self.timeout) as answer:
            fields = json.loads(answer.read(ANSWER_MAX))
        if not isinstance(fields, dict):
            raise ValueError("the answer is no JSON object")
        return fields

    def _round(self, path, body=None, timeout=None):
        """The first answer of an ALIVE master."""
        errors, sent = [], False
        for i in range(len(self.urls)):
            number = (self._first + i) % len(self.urls)
            url = self.urls[number]
            try:
                fields = self._ask(url, path, body, timeout)
            except urllib.error.HTTPError as error:
                error.close()
                errors.append(f"{url}: HTTP {error.code}")
                sent = sent or error.code >= 500
            except (OSError, ValueError, EOFError) as error:
                reason = getattr(error, "reason", error)
                errors.append(f"{url}: {reason}")
                sent = sent or not isinstance(reason, ConnectionRefusedError)
            else:
                if NOT_ALIVE not in str(fields.get("message", "")):
                    self._first = number
                    return fields
                errors.append(f"{url}: not alive")
        raise SparkError("; ".join(errors) or "no master is configured", sent)

    def create(self, request):
        """Submit -> driver id. SparkError."""
        fields = self._round("create", json.dumps({"action": "CreateSubmissionRequest", "clientSparkVersion": "", **request}).encode())
        driver_id = fields.get("submissionId")
        if fields.get("success") is not True or not isinstance(driver_id, str) or not driver_id:
            raise SparkError(str(fields.get("message", "Spark refused the submission"))[:500])
        return driver_id

    def status(self, driver_id, timeout=None):
        """Spark's word: a driver state; "" when an ALIVE master does not know the id. SparkError: none answered."""
        fields = self._round(f"status/{driver_id}", timeout=timeout)
        state = fields.get("driverState")
        return state[:31] if fields.get("success") is True and isinstance(state, str) else ""

    def worker(self, driver_id):
        """The id of the Worker that Spark has placed a driver on, also after its end; "": none, or the id is not known."""
        worker = self._round(f"status/{driver_id}").get("workerId")
        return worker if isinstance(worker, str) else ""
