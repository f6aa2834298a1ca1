"""The API inside the function: events of API Gateway, function URLs and load balancers.

Mangum translates them: https://mangum.fastapiexpert.com. The jobs run in this process, one after
the other, so everything is done in the thread of the event.
"""

import asyncio
import base64
import binascii
import json
import re
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from mangum import Mangum

from events.contract.response_size import shrink
from events.event_context import Handle, Response
from events.http import is_function_url, is_load_balancer
from handler.api.application import ApiContext, create_app
from handler.api.dispatcher import (
    Accepted,
    Dispatcher,
    NotOffered,
)
from handler.api.job_board import JobBoard
from handler.api.without_worker import WithoutWorker
from handler.log import logger

# Of a whole reply, in which the body is a string: its quotes are escaped once more.
# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
MAX_REPLY_BYTES = 6 * 1024 * 1024 - 4096
# https://docs.aws.amazon.com/elasticloadbalancing/latest/application/lambda-functions.html
MAX_ALB_REPLY_BYTES = 1024 * 1024 - 4096
# Behind API Gateway the path may begin with the stage, or with the base path of a custom domain.
_STAGE = re.compile(
    r"^(?:/.+?)??(?=/(?:generate|result/|cancel/|jobs|templates|queue-info|upload/image|health|ready"
    r"|worker|metrics|openapi\.json|docs))"
)

_UNREADABLE = {
    "statusCode": 400,
    "headers": {"content-type": "application/json"},
    "body": json.dumps({"message": "the HTTP event could not be read; the log says why"}),
    "isBase64Encoded": False,
}


class LambdaFront:
    """Answers HTTP events."""

    def __init__(
        self,
        board: JobBoard,
        dispatcher: Dispatcher,
        token: str,
        *,
        templates_folder: Path | None = None,
    ) -> None:
        self._max_bytes = MAX_REPLY_BYTES
        context = ApiContext(
            board=board,
            dispatcher=dispatcher,
            max_body_bytes=MAX_REPLY_BYTES,
            fit=self._fit,
            input_folder=None,
            templates_folder=templates_folder,
        )
        self._app = create_app(context, token)

    def answer(self, event: dict[str, Any]) -> dict[str, Any]:
        """The reply that the service in front of the function expects."""
        self._max_bytes = MAX_ALB_REPLY_BYTES if is_load_balancer(event) else MAX_REPLY_BYTES
        with asyncio.Runner() as runner:
            # Mangum uses the loop of the thread, which is closed after the call: no thread is left.
            asyncio.set_event_loop(runner.get_loop())
            try:
                reply = Mangum(self._app, lifespan="off")(readable(event), None)  # type: ignore[arg-type]
            except Exception:
                # A field of the event is not what its service sends, so no route was called.
                logger.exception("the HTTP event could not be read")
                reply = _UNREADABLE
        if is_load_balancer(event):
            status = HTTPStatus(reply["statusCode"])
            reply["statusDescription"] = f"{status.value} {status.phrase}"
        return reply

    def _fit(self, response: Response) -> Response:
        return shrink(response, self._max_bytes, _size_in_reply)


class FunctionDispatcher(WithoutWorker):
    """Runs jobs in this process. `accept_job` puts one into a queue; None without a queue."""

    def __init__(self, accept_job: Callable[[Accepted], None] | None) -> None:
        self._accept_job = accept_job
        self.handle: Handle | None = None

    async def run(self, accepted: Accepted) -> Response:
        assert self.handle is not None
        # In this thread: the handler gives its claim up at SIGTERM, which only the main thread can.
        return self.handle(json.loads(accepted.body))

    async def accept(self, accepted: Accepted) -> None:
        if self._accept_job is None:
            raise NotOffered(
                "this function has no queue of jobs; POST /generate/sync, or set JOBS_QUEUE_URL"
            )
        self._accept_job(accepted)


def readable(event: dict[str, Any]) -> dict[str, Any]:
    """The event without what would make Mangum raise, and its path without the stage."""
    event = dict(event)
    for name in ("headers", "queryStringParameters"):
        if isinstance(event.get(name), dict):
            event[name] = {k: v for k, v in event[name].items() if isinstance(v, str)}
    for name in ("multiValueHeaders", "multiValueQueryStringParameters"):
        if isinstance(event.get(name), dict):
            event[name] = {
                k: [item for item in v if isinstance(item, str)]
                for k, v in event[name].items()
                if isinstance(v, list)
            }
    if event.get("isBase64Encoded") and not _is_base64(event.get("body")):
        event["isBase64Encoded"] = False
    key = "rawPath" if "rawPath" in event else "path"
    if not is_load_balancer(event) and not is_function_url(event):
        event[key] = _STAGE.sub("", event[key].rstrip("/") or "/", count=1)
    if key == "rawPath":
        # Mangum takes the path of a call in the newer format from here.
        http = {**event["requestContext"]["http"], "path": event[key]}
        event["requestContext"] = {**event["requestContext"], "http": http}
    return event


def _is_base64(body: Any) -> bool:
    try:
        base64.b64decode(body or "", validate=True)
    except (ValueError, binascii.Error):
        return False
    return True


def _size_in_reply(body: Response) -> int:
    return len(json.dumps(json.dumps(body, ensure_ascii=False), ensure_ascii=False).encode())
