"""Lambda's Extensions API over HTTP, the server's side, for extension processes.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-extensions-api.html. The runtime clients'
servers answer the same calls: an extension that registers there is an internal one.
"""

import json
import socket
import uuid
from http import HTTPStatus
from typing import Any

from runtime.lambda_host.api_server import ApiCall, ApiServer
from runtime.lambda_host.extensions import ExtensionRefusedError, Extensions
from runtime.lambda_host.function import ACCOUNT, FUNCTION_VERSION, Function

PREFIX = "/2020-01-01/extension"
_MAX_BODY_BYTES = 1024 * 1024


class ExtensionsCall(ApiCall):
    """One call of an extension. It is internal if the runtime client's own process makes it."""

    server: "ExtensionsApiServer"
    is_external = True

    def do_GET(self) -> None:
        if self.path != f"{PREFIX}/event/next":
            self.reject(HTTPStatus.NOT_FOUND, "InvalidRequest", self.path)
            return
        try:
            event = self.server.extensions.next_event(self._identifier)
        except ExtensionRefusedError as refused:
            self._refuse(refused)
        else:
            headers = {"Lambda-Extension-Event-Identifier": str(uuid.uuid4())}
            self.reply(HTTPStatus.OK, json.dumps(event).encode(), headers)

    def do_POST(self) -> None:
        body = self.body(_MAX_BODY_BYTES)
        try:
            match self.path:
                case "/2020-01-01/extension/register":
                    self._register(body or b"")
                case "/2020-01-01/extension/init/error" | "/2020-01-01/extension/exit/error":
                    error_type = self.headers.get("Lambda-Extension-Function-Error-Type")
                    is_init = self.path == f"{PREFIX}/init/error"
                    reason = _parse_reason(body)
                    self.server.extensions.fail(
                        self._identifier, error_type, reason, is_init=is_init
                    )
                    self.reply(HTTPStatus.ACCEPTED, b'{"status": "OK"}')
                case _:
                    self.reject(HTTPStatus.NOT_FOUND, "InvalidRequest", self.path)
        except ExtensionRefusedError as refused:
            self._refuse(refused)

    @property
    def _identifier(self) -> str | None:
        return self.headers.get("Lambda-Extension-Identifier")

    def _refuse(self, refused: ExtensionRefusedError) -> None:
        self.reject(HTTPStatus.FORBIDDEN, refused.error_type, str(refused))

    def _register(self, body: bytes) -> None:
        name = self.headers.get("Lambda-Extension-Name") or ""
        events = _parse_events(body)
        identifier = self.server.extensions.register(name, events, is_external=self.is_external)
        function = self.server.function
        answer = {
            "functionName": function.name,
            "functionVersion": FUNCTION_VERSION,
            "handler": function.handler,
        }
        features = self.headers.get("Lambda-Extension-Accept-Feature") or ""
        if "accountId" in features.replace(" ", "").split(","):
            answer["accountId"] = ACCOUNT
        headers = {"Lambda-Extension-Identifier": identifier}
        self.reply(HTTPStatus.OK, json.dumps(answer).encode(), headers)


class ExtensionsApiServer(ApiServer):
    """Serves the Extensions API on `listener` while it is entered."""

    def __init__(
        self,
        listener: socket.socket,
        extensions: Extensions,
        function: Function,
        call: type[ExtensionsCall] = ExtensionsCall,
    ) -> None:
        super().__init__(listener, call)
        self.extensions, self.function = extensions, function


def _parse_events(body: bytes) -> list[str]:
    """Raises ExtensionRefusedError when the body is not {"events": [...]}."""
    try:
        registration: Any = json.loads(body)
        events = registration.get("events") or []
        if all(isinstance(event, str) for event in events):
            return list(events)
    except (ValueError, AttributeError, TypeError):
        pass
    raise ExtensionRefusedError("InvalidRequestFormat", 'expected {"events": [...]}')


def _parse_reason(body: bytes | None) -> str:
    """`errorMessage` of a reported error; the body is optional, and may be anything."""
    try:
        reason = json.loads(body or b"")["errorMessage"]
    except (ValueError, TypeError, KeyError):
        reason = None
    return reason if isinstance(reason, str) else "an extension reported an error"
