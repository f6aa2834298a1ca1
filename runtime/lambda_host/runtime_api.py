"""Lambda's Runtime API for one runtime client: hands out invocations, takes their results.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html. Every runtime client gets a server
of its own (the protocol does not say who is asking), all of them take from one queue.
"""

import json
import secrets
import socket
import sys
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from types import TracebackType
from typing import Any, Self

from runtime.lambda_host.invocations import (
    Invocation,
    InvocationQueue,
    InvocationResult,
    Taker,
    failure,
)

PREFIX = "/2018-06-01/runtime"
MAX_RESPONSE_BYTES = 6 * 1024 * 1024 + 100
_READ_BYTES = 1024 * 1024
_POLL_S = 0.05


class RuntimeApi(ThreadingMixIn, TCPServer):
    """Serves on `listener` while it is entered; `init_error` is what the client reported."""

    # TCPServer, not HTTPServer: that one looks up the name of 127.0.0.1, maybe at a DNS server.
    daemon_threads = True

    def __init__(
        self, listener: socket.socket, queue: InvocationQueue, taker: Taker, function_arn: str
    ) -> None:
        super().__init__(listener.getsockname(), _Call, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.queue, self.taker, self.function_arn = queue, taker, function_arn
        self.init_error: InvocationResult | None = None

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(_POLL_S,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that died in mid-sentence is the business of whoever watches the process.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Call(BaseHTTPRequestHandler):
    server: RuntimeApi
    protocol_version = "HTTP/1.1"
    # Head and body in one packet: two writes cost 40 ms each (Nagle against delayed ACK).
    wbufsize = -1

    def do_GET(self) -> None:
        if self.path != f"{PREFIX}/invocation/next":
            self._reject(HTTPStatus.NOT_FOUND, "InvalidRequest", self.path)
            return
        invocation = self.server.queue.take(self.server.taker)
        if invocation is None:
            self._reject(HTTPStatus.FORBIDDEN, "InvalidStateTransition", "shutting down")
            return
        self._reply(HTTPStatus.OK, invocation.event, self._headers_of(invocation))

    def do_POST(self) -> None:
        body = self._body()
        match self.path.removeprefix(PREFIX).split("/")[1:]:
            case ["init", "error"]:
                self.server.init_error = self._error(body)
                self._reply(HTTPStatus.ACCEPTED)
            case ["invocation", request_id, "error"]:
                self._finish(request_id, self._error(body))
            case ["invocation", request_id, "response"] if body is not None:
                self._finish(request_id, InvocationResult(body))
            case ["invocation", request_id, "response"]:
                message = f"Response payload size exceeded {MAX_RESPONSE_BYTES} bytes"
                result = failure("Function.ResponseSizeTooLarge", message)
                self._finish(request_id, result, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            case _:
                self._reject(HTTPStatus.NOT_FOUND, "InvalidRequest", self.path)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the invocations are what is worth a line, and others write it."""

    def _headers_of(self, invocation: Invocation) -> dict[str, str]:
        root = f"1-{int(time.time()):08x}-{secrets.token_hex(12)}"
        return {
            "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
            "Lambda-Runtime-Deadline-Ms": str(invocation.deadline_ms),
            "Lambda-Runtime-Invoked-Function-Arn": self.server.function_arn,
            "Lambda-Runtime-Trace-Id": f"Root={root};Parent={secrets.token_hex(8)};Sampled=0",
        }

    def _body(self) -> bytes | None:
        """The whole body, or None when it is too large: read all the same, else the client sees
        a reset connection in place of our answer."""
        left = int(self.headers.get("Content-Length", 0))
        if left <= MAX_RESPONSE_BYTES:
            return self.rfile.read(left)
        while left > 0 and (chunk := self.rfile.read(min(left, _READ_BYTES))):
            left -= len(chunk)
        return None

    def _error(self, body: bytes | None) -> InvocationResult:
        """AWS's client names the type of a handler's exception in the body only."""
        error_type = self.headers.get("Lambda-Runtime-Function-Error-Type")
        try:
            error_type = error_type or json.loads(body or b"{}").get("errorType")
        except (ValueError, AttributeError):
            error_type = None
        return InvocationResult(body or b"{}", error_type or "Unhandled")

    def _finish(
        self,
        request_id: str,
        result: InvocationResult,
        status: HTTPStatus = HTTPStatus.ACCEPTED,
    ) -> None:
        held = self.server.taker.holding
        if held is None or held.request_id != request_id:
            self._reject(HTTPStatus.BAD_REQUEST, "InvalidRequestID", request_id)
        elif held.finish(result):
            self._reply(status)
        else:
            self._reject(HTTPStatus.GONE, "InvokeTimeout", request_id)

    def _reject(self, status: HTTPStatus, error_type: str, message: str) -> None:
        self._reply(status, failure(error_type, message).payload)

    def _reply(
        self, status: HTTPStatus, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
