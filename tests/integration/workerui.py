# SPDX-License-Identifier: Apache-2.0
"""
workerui: the web UI of a Worker, as the real one serves a driver's log (seen on Spark 3.5.9 and 4.3.0)
"""
import http.server
import json
import threading
import urllib.parse

import sparkmaster


class WorkerUi:
    """A Worker's web UI and, on the same port, the master's /json/ that names it."""

    def __init__(self):
        self.files = {}  # (driver id, "stdout"): bytes; absent: "invalid log directory"
        self.worker_id = sparkmaster.WORKER_ID
        self.body = None  # in place of every log page
        self.pages = 0
        ui = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                url = urllib.parse.urlsplit(self.path)
                query = {name: values[0] for name, values in urllib.parse.parse_qs(url.query).items()}
                body = ui.page(query) if url.path == "/log/" else ui.json() if url.path == "/json/" else None
                self.send_response(404 if body is None else 200)
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def json(self):
        return json.dumps({"status": "ALIVE", "workers": [
            {"id": "worker-x", "webuiaddress": "http://127.0.0.1:1"},
            {"id": self.worker_id, "webuiaddress": self.url}]}).encode()

    def page(self, query):
        """LogPage.renderLog()."""
        self.pages += 1
        if self.body is not None:
            return self.body
        driver_id, stream = query["driverId"], query["logType"]
        path = f"/opt/spark/work/{driver_id}/"
        data = self.files.get((driver_id, stream))
        if data is None:
            return f"==== Bytes 0-0 of 0 of {path}{stream} ====\nError: invalid log directory {path}".encode()
        start = min(int(query["offset"]), len(data))
        end = min(start + int(query["byteLength"]), len(data))
        text = data[start:end].decode("utf-8", "replace").encode()
        return f"==== Bytes {start}-{end} of {len(data)} of {path}{stream} ====\n".encode() + text

    def write(self, driver_id, stream, data):
        self.files.setdefault((driver_id, "stdout"), b"")
        self.files.setdefault((driver_id, "stderr"), b"")
        self.files[driver_id, stream] += data

    def stop(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
