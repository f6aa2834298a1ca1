"""The HTTP server of the host's APIs: a thread for each connection, each answer in one packet.

Which paths there are, and what they mean, is decided in runtime_api, extensions_api, invoke_api.
"""

import json
import socket
import sys
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Self

_READ_BYTES = 1024 * 1024
_POLL_S = 0.05


class ApiServer(ThreadingMixIn, TCPServer):
    """Serves on `listener`, with a thread for each connection, while it is entered."""

    # TCPServer, not HTTPServer, which looks up the name of 127.0.0.1, maybe at a DNS server.
    daemon_threads = True

    def __init__(self, listener: socket.socket, call: type["ApiCall"]) -> None:
        super().__init__(listener.getsockname(), call, bind_and_activate=False)
        self.socket.close()
        self.socket = listener

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(_POLL_S,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # The host watches its processes itself: it knows of a client that died during a call.
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class ApiCall(BaseHTTPRequestHandler):
    """One request; subclasses route it."""

    protocol_version = "HTTP/1.1"
    # Head and body in one packet: two writes cost 40 ms each (Nagle against delayed ACK).
    wbufsize = -1

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: invocations are logged elsewhere, and single calls are not."""

    def body(self, limit_bytes: int) -> bytes | None:
        """The whole body, or None when it is longer than `limit_bytes`.

        A body that is too long is read, too: else the client would see a reset connection instead
        of the answer.
        """
        unread = int(self.headers.get("Content-Length") or 0)
        if unread <= limit_bytes:
            return self.rfile.read(unread)
        while unread > 0 and (chunk := self.rfile.read(min(unread, _READ_BYTES))):
            unread -= len(chunk)
        return None

    def reject(self, status: HTTPStatus, error_type: str, message: str) -> None:
        """Answer with an error in the form of the Runtime and Extensions APIs."""
        body = json.dumps({"errorType": error_type, "errorMessage": message})
        self.reply(status, body.encode())

    def reply(
        self, status: HTTPStatus, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        # RFC 9110, 15.3.5: a response 204 has no content, and so neither of these.
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
