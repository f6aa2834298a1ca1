"""Lambda's Invoke operation over HTTP: what boto3, the AWS CLI and curl call.

https://docs.aws.amazon.com/lambda/latest/api/API_Invoke.html. Signatures are not checked: every
client that reaches the port may invoke. There is one version, so a qualifier is ignored.
"""

import base64
import binascii
import json
import re
import socket
import threading
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urlsplit

from runtime.errors import LambdaComfyUIError
from runtime.lambda_host.api_server import ApiCall, ApiServer
from runtime.lambda_host.async_invocations import AsyncInvocations
from runtime.lambda_host.failures import InvocationResult
from runtime.lambda_host.function import FUNCTION_VERSION
from runtime.lambda_host.host import HostBusyError, LambdaHost, is_unavailable
from runtime.lambda_host.invocations import Invocation

MAX_REQUEST_BYTES = 6 * 1024 * 1024
MAX_ASYNC_REQUEST_BYTES = 1024 * 1024
# The name of every function in AWS's emulators.
_ANY_NAME = "function"
_LOG_BYTES = 4096
# An invocation's log is complete when its client asks for the next one or dies, soon after its end.
_LOG_COMPLETE_WITHIN_S = 0.2
_RETRY_AFTER_S = 10
_PATH = re.compile(r"/2015-03-31/functions/([^/]+)/invocations")
# A name, a partial ARN or a whole one, each with or without a qualifier.
_NAME = re.compile(
    r"(?:arn:aws[\w-]*:lambda:[\w-]+:\d{12}:function:|\d{12}:function:)?([\w-]+)(?::[\w$.-]+)?"
)


class InvokeRefusedError(LambdaComfyUIError):
    """A call that gets an error of the Invoke operation: `error_type` is AWS's name of it."""

    def __init__(self, status: HTTPStatus, error_type: str, message: str) -> None:
        super().__init__(message)
        self.status, self.error_type = status, error_type


class InvokeApi(ApiServer):
    """Serves on `listener` while it is entered.

    Up to `limit` synchronous calls wait for a client; further ones are refused. Managed Instances
    refuse a call as soon as all clients are busy, because another environment may be free. Here is
    one machine: a caller would have to try again, and would lose its place in the queue.
    """

    def __init__(
        self,
        listener: socket.socket,
        host: LambdaHost,
        events: AsyncInvocations,
        *,
        timeout_s: float,
        limit: int,
        on_state: Callable[[str], object] = lambda _: None,
    ) -> None:
        super().__init__(listener, _InvokeCall)
        self.host, self.events, self.on_state = host, events, on_state
        self.timeout_s, self.limit = timeout_s, limit
        self._answering = 0
        self._changed = threading.Condition()

    def count(self, change: int) -> None:
        with self._changed:
            self._answering += change
            self._changed.notify_all()

    def wait_until_answered(self, timeout_s: float) -> bool:
        """Block until no call is under way; False if one still is after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._answering == 0, timeout_s)


class _InvokeCall(ApiCall):
    server: InvokeApi
    # Seconds, for socketserver: a peer that sends nothing does not keep its thread.
    timeout = 60.0

    def do_POST(self) -> None:
        self.request_id = str(uuid.uuid4())
        self.server.count(1)
        try:
            self._invoke()
        except InvokeRefusedError as refused:
            self._refuse(refused)
        finally:
            self.server.count(-1)

    def _invoke(self) -> None:
        kind = self.headers.get("X-Amz-Invocation-Type") or "RequestResponse"
        event = self._event(MAX_ASYNC_REQUEST_BYTES if kind == "Event" else MAX_REQUEST_BYTES)
        self._check_name()
        match kind:
            case "RequestResponse":
                self._run(event)
            case "Event":
                if not self.server.events.accept(event, self.request_id):
                    raise _too_many("the queue of events is full")
                self._answer(HTTPStatus.ACCEPTED)
            case "DryRun":
                self._answer(HTTPStatus.NO_CONTENT)
            case _:
                raise InvokeRefusedError(
                    HTTPStatus.BAD_REQUEST,
                    "InvalidParameterValueException",
                    "InvocationType: expected RequestResponse, Event or DryRun",
                )

    def _event(self, limit_bytes: int) -> bytes:
        if not (self.headers.get("Content-Length") or "0").isdecimal() or (
            "Transfer-Encoding" in self.headers
        ):
            self.close_connection = True  # nothing says where the body ends
            message = "expected a body with Content-Length"
            raise InvokeRefusedError(
                HTTPStatus.BAD_REQUEST, "InvalidRequestContentException", message
            )
        body = self.body(limit_bytes)
        if body is None:
            message = f"Request must be smaller than {limit_bytes} bytes for the Invoke operation"
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            raise InvokeRefusedError(status, "RequestTooLargeException", message)
        try:
            parse_json(body or b"{}")
        except (ValueError, RecursionError) as error:
            message = f"Could not parse request body into json: {error}"
            status = HTTPStatus.BAD_REQUEST
            raise InvokeRefusedError(status, "InvalidRequestContentException", message) from error
        return body or b"{}"

    def _check_name(self) -> None:
        path = _PATH.fullmatch(unquote(urlsplit(self.path).path))
        name = _NAME.fullmatch(path[1]) if path else None
        if name is None or name[1] not in (self.server.host.function.name, _ANY_NAME):
            message = f"Function not found: {self.server.host.function.name} is the only one"
            raise InvokeRefusedError(HTTPStatus.NOT_FOUND, "ResourceNotFoundException", message)

    def _run(self, event: bytes) -> None:
        invocation = Invocation(event, self.server.timeout_s, self.request_id)
        invocation.client_context = self._client_context()
        try:
            result = self.server.host.run(invocation, limit=self.server.limit)
        except HostBusyError as error:
            raise _too_many(str(error)) from error
        if is_unavailable(result):
            message = "the host is stopping"
            raise InvokeRefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "ServiceException", message)
        self._answer_result(invocation, result)

    def _answer_result(self, invocation: Invocation, result: InvocationResult) -> None:
        headers = {"X-Amz-Executed-Version": FUNCTION_VERSION}
        if result.function_error:
            headers["X-Amz-Function-Error"] = "Unhandled"
            self.server.on_state(f"invocation {self.request_id}: {result.function_error}")
        if self.headers.get("X-Amz-Log-Type") == "Tail":
            invocation.released.wait(_LOG_COMPLETE_WITHIN_S)
            log = "\n".join(invocation.log).encode()[-_LOG_BYTES:]
            headers["X-Amz-Log-Result"] = base64.b64encode(log).decode()
        self._answer(HTTPStatus.OK, result.payload, headers)

    def _client_context(self) -> str:
        header = self.headers.get("X-Amz-Client-Context") or ""
        try:
            context = parse_json(base64.b64decode(header, validate=True)) if header else None
        except (ValueError, binascii.Error) as error:
            message = "ClientContext: expected base64 of a JSON object"
            status = HTTPStatus.BAD_REQUEST
            raise InvokeRefusedError(status, "InvalidRequestContentException", message) from error
        # As ASCII: the runtime client gets it as a header.
        return json.dumps(context) if context else ""

    def _refuse(self, refused: InvokeRefusedError) -> None:
        is_server_error = refused.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        body = {"Type": "Service" if is_server_error else "User", "message": str(refused)}
        headers = {"x-amzn-ErrorType": refused.error_type}
        if refused.status == HTTPStatus.TOO_MANY_REQUESTS:
            body["Reason"] = "ConcurrentInvocationLimitExceeded"
            headers["Retry-After"] = str(_RETRY_AFTER_S)
        self._answer(refused.status, json.dumps(body).encode(), headers)

    def _answer(
        self, status: HTTPStatus, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        self.reply(status, body, {"x-amzn-RequestId": self.request_id, **(headers or {})})
        self.wfile.flush()


def parse_json(payload: bytes) -> Any:
    """The value of a JSON text in UTF-8: https://www.rfc-editor.org/rfc/rfc8259#section-8.1.

    Python's parser also takes UTF-16, UTF-32, NaN and Infinity. Raises ValueError for them, and
    RecursionError.
    """
    return json.loads(payload.decode("utf-8-sig"), parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _too_many(message: str) -> InvokeRefusedError:
    return InvokeRefusedError(
        HTTPStatus.TOO_MANY_REQUESTS, "TooManyRequestsException", f"Rate Exceeded: {message}"
    )
