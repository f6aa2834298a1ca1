"""Reads the body of a call as a request, within a limit."""

import json
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.types import Message

from events.contract import as_request, parse_request
from events.decode import json_or_text
from events.job import Caller
from handler.api.dispatcher import Accepted


class BodyTooLarge(Exception):
    """The body has more than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body is larger than {limit} bytes; send large inputs as URLs")


def limited(request: Request, limit: int) -> Request:
    """The same call; reading its body, however it is sent, raises BodyTooLarge above `limit` bytes.

    Raises BodyTooLarge at once if the header Content-Length announces more.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise BodyTooLarge(limit)
    size = 0

    async def receive() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > limit:
            raise BodyTooLarge(limit)
        return message

    return Request(request.scope, receive)


def decode_body(body: bytes) -> Any:
    """The JSON value of a body. One that is not UTF-8 or JSON is returned as text.

    The contract refuses it.
    """
    try:
        return json_or_text(body.decode())
    except UnicodeDecodeError:
        return body.decode(errors="replace")


def parse_job(event: Any, caller: Caller) -> Accepted:
    """The job of a request, with its id filled in. Raises InvalidRequest."""
    job = parse_request(event, caller)
    request = as_request(event)
    request = {**request, "input": {**request["input"], "request_id": caller.request_id}}
    # As the handler reads the request that has its id.
    job = replace(job, caller=replace(caller, is_id_given=True))
    return Accepted(job, json.dumps(request).encode())
