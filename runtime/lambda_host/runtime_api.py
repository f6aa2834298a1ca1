"""Lambda's Runtime API for one runtime client: hands out invocations, takes their results.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html. Every runtime client gets a server
of its own, because the protocol does not say which client asks; all of them take from one queue.
"""

import json
import secrets
import socket
import time
from collections.abc import Callable
from http import HTTPStatus

from runtime.lambda_host.extensions import Extensions
from runtime.lambda_host.extensions_api import PREFIX as EXTENSIONS_PREFIX
from runtime.lambda_host.extensions_api import ExtensionsApiServer, ExtensionsCall
from runtime.lambda_host.failures import Failure, InvocationResult
from runtime.lambda_host.function import Function
from runtime.lambda_host.invocations import Invocation, InvocationQueue, QueueConsumer

PREFIX = "/2018-06-01/runtime"
MAX_RESPONSE_BYTES = 6 * 1024 * 1024 + 100


class RuntimeApiServer(ExtensionsApiServer):
    """Serves on `listener` while it is entered; `init_failure` is what the client reported.

    `catch_up` returns when all lines are read that the client wrote before the call.
    """

    def __init__(
        self,
        listener: socket.socket,
        extensions: Extensions,
        function: Function,
        queue: InvocationQueue,
        consumer: QueueConsumer,
        catch_up: Callable[[], None],
    ) -> None:
        super().__init__(listener, extensions, function, _RuntimeCall)
        self.queue, self.consumer, self.catch_up = queue, consumer, catch_up
        self.init_failure: Failure | None = None


class _RuntimeCall(ExtensionsCall):
    server: RuntimeApiServer
    is_external = False

    def do_GET(self) -> None:
        if self.path.startswith(EXTENSIONS_PREFIX):
            super().do_GET()
            return
        if self.path != f"{PREFIX}/invocation/next":
            self.reject(HTTPStatus.NOT_FOUND, "InvalidRequest", self.path)
            return
        # The lines belong to the invocation that the client has just ended.
        self.server.catch_up()
        invocation = self.server.queue.take(self.server.consumer)
        if invocation is None:
            self.reject(HTTPStatus.FORBIDDEN, "InvalidStateTransition", "shutting down")
            return
        self.reply(HTTPStatus.OK, invocation.event, self._headers_of(invocation))

    def do_POST(self) -> None:
        if self.path.startswith(EXTENSIONS_PREFIX):
            super().do_POST()
            return
        body = self.body(MAX_RESPONSE_BYTES)
        match self.path.removeprefix(PREFIX).split("/")[1:]:
            case ["init", "error"]:
                error_type = self._error_type(body)
                self.server.init_failure = Failure(error_type=error_type, reported=body or b"{}")
                self.reply(HTTPStatus.ACCEPTED)
            case ["invocation", request_id, "error"]:
                result = InvocationResult(body or b"{}", self._error_type(body))
                self._finish(request_id, result)
            case ["invocation", request_id, "response"] if body is not None:
                self._finish(request_id, InvocationResult(body))
            case ["invocation", request_id, "response"]:
                message = (
                    f"Response payload size ({self.headers['Content-Length']} bytes) exceeded"
                    f" maximum allowed payload size ({MAX_RESPONSE_BYTES} bytes)."
                )
                failure = Failure(error_type="Function.ResponseSizeTooLarge", message=message)
                result = failure.result_for(request_id)
                self._finish(request_id, result, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            case _:
                self.reject(HTTPStatus.NOT_FOUND, "InvalidRequest", self.path)

    def _headers_of(self, invocation: Invocation) -> dict[str, str]:
        root = f"1-{int(time.time()):08x}-{secrets.token_hex(12)}"
        headers = {
            "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
            "Lambda-Runtime-Deadline-Ms": str(invocation.deadline_ms),
            "Lambda-Runtime-Invoked-Function-Arn": self.server.function.arn,
            "Lambda-Runtime-Trace-Id": f"Root={root};Parent={secrets.token_hex(8)};Sampled=0",
        }
        if invocation.client_context:
            headers["Lambda-Runtime-Client-Context"] = invocation.client_context
        return headers

    def _error_type(self, body: bytes | None) -> str:
        """From the header, else from the body, where AWS's client names a handler's exception."""
        error_type = self.headers.get("Lambda-Runtime-Function-Error-Type")
        try:
            error_type = error_type or json.loads(body or b"{}").get("errorType")
        except (ValueError, AttributeError):
            error_type = None
        return error_type or "Unhandled"

    def _finish(
        self,
        request_id: str,
        result: InvocationResult,
        status: HTTPStatus = HTTPStatus.ACCEPTED,
    ) -> None:
        invocation = self.server.consumer.invocation
        if invocation is None or invocation.request_id != request_id:
            self.reject(HTTPStatus.BAD_REQUEST, "InvalidRequestID", request_id)
        elif invocation.finish(result):
            self.reply(status)
        else:
            self.reject(HTTPStatus.GONE, "InvokeTimeout", request_id)
