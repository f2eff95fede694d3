# SPDX-License-Identifier: Apache-2.0
"""
metadata: a GCE-style metadata service for tests

    with MetadataService("token-1", life=3600) as service:
        service.url        what `token_url` takes;  service.address  "127.0.0.1:PORT"
        service.token      may be assigned; None: HTTP 503
        service.body       in place of every answer
        service.requests   how many came with the right path and header
"""
import http.server
import json
import threading

PATH = "/computeMetadata/v1/instance/service-accounts/default/token"


class MetadataService:
    def __init__(self, token, life=3600):
        self.token, self.life, self.body, self.requests = token, life, None, 0
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                if self.path != PATH or self.headers.get("Metadata-Flavor") != "Google":
                    code, body = 403, b"<html>Missing Metadata-Flavor:Google header.</html>"
                elif service.token is None:
                    code, body = 503, b"busy"
                else:
                    code, body = 200, service.body or json.dumps({
                        "access_token": service.token, "expires_in": service.life, "token_type": "Bearer"}).encode()
                    service.requests += 1
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.address}{PATH}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
