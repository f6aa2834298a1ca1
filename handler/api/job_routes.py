"""The routes of one job: run, accept, watch, look up, cancel.

docs/api.md describes them. What a failure that a route raises answers is decided in `application`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from anyio import to_thread
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from events.contract import caller_of
from events.errors import JobError
from events.job import Caller
from handler.api import request_body
from handler.api.dispatcher import Accepted, NotOffered, QueueFull, Unavailable
from handler.api.envelope import envelope_of, status_of
from handler.api.http_status import CLIENT_CLOSED_REQUEST, headers_of
from handler.api.http_status import status_of as http_status_of
from handler.api.job_board import Listed
from handler.api.json_answer import JsonAnswer, encode
from handler.jobs.record import JobRecord, Status
from handler.response import JobResult, build_response

# A cancelled job ends soon; one that ignores the interrupt needs another ComfyUI.
_CANCEL_WAIT_S = 10.0
_POLL_S = 0.1
_SSE_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
# The dispatcher has not taken the job.
_NOT_TAKEN = (QueueFull, NotOffered, Unavailable)
T = TypeVar("T")


class JobRefused(Exception):
    """The contract or the job's id refuses a request: its documented response has this `error`."""

    def __init__(self, caller: Caller, error: JobError) -> None:
        super().__init__(error.message)
        self.caller, self.error = caller, error


class _JobIdConvertor(Convertor[str]):
    """The rest of a path, line ends included: starlette's `path` stops before one."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("job_id", _JobIdConvertor())


def routes() -> Sequence[BaseRoute]:
    """In this order: the first one that matches a path is taken."""
    return [
        Route("/generate/sync", generate_sync, methods=["POST"]),
        Route("/generate/stream", generate_stream, methods=["POST"]),
        Route("/generate/stream/{id:job_id}", stream, methods=["GET"]),
        Route("/generate", generate, methods=["POST"]),
        Route("/result/{id:job_id}", result, methods=["GET"]),
        Route("/cancel/{id:job_id}", cancel, methods=["POST"]),
    ]


async def generate_sync(request: Request) -> Response:
    """Run a job and answer with its response. The client's disconnect cancels the job."""
    context = request.app.state.context
    accepted = await _read_job(request)
    is_new = context.board.has_store and (await _put_on_record(request, accepted)).is_new
    is_detached = request.query_params.get("detach", "").lower() in ("true", "1")
    if is_detached or not context.dispatcher.can_stream:
        return respond(request, await _run(request, accepted, is_new))
    run = asyncio.ensure_future(_run(request, accepted, is_new))
    gone = asyncio.ensure_future(_disconnected(request))
    await asyncio.wait({run, gone}, return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    if run.done():
        return respond(request, run.result())
    # Another caller may wait for a job that was there before.
    if is_new:
        with suppress(NotOffered, Unavailable):
            await in_thread(context.board.cancel, accepted.job.id)
    with suppress(Exception):
        await run
    # Nobody reads it; the log of the front door does.
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def generate(request: Request) -> Response:
    """Accept a job: it is run later, also if this machine is stopped meanwhile."""
    record = await _accept(request)
    return await _answer(request, record, unfinished_status=202)


async def generate_stream(request: Request) -> Response:
    """Accept a job, and answer with its events."""
    _require_stream(request)
    return _event_stream(request, await _accept(request))


async def stream(request: Request) -> Response:
    """The events of a job: how it is now, every event after that, and its response."""
    _require_stream(request)
    return _event_stream(request, await _find(request))


async def result(request: Request) -> Response:
    """How a job is now: its response, if it has ended."""
    return await _answer(request, await _find(request))


async def cancel(request: Request) -> Response:
    """End a job, whatever it does now; the answer says how it is after that."""
    context = request.app.state.context
    await in_thread(context.board.cancel, request.path_params["id"])
    record = await _find(request)
    waited_s = 0.0
    while not record.status.is_final and waited_s < _CANCEL_WAIT_S:
        await asyncio.sleep(_POLL_S)
        waited_s += _POLL_S
        record = await _find(request)
    return await _answer(request, record, unfinished_status=202)


def respond(request: Request, response: dict[str, Any]) -> Response:
    """The answer with the documented response of a job."""
    status = http_status_of(response)
    body = request.app.state.context.fit(response)
    return JsonAnswer(body, status, headers_of(response, status))


def refuse(request: Request, refused: JobRefused) -> Response:
    """The answer to a request that was refused."""
    return respond(request, build_response(JobResult(refused.caller, error=refused.error)))


async def _read_job(request: Request) -> Accepted:
    """Raises JobRefused, BodyTooLarge."""
    limit = request.app.state.context.max_body_bytes
    body = await request_body.limited(request, limit).body()
    event = request_body.decode_body(body)
    caller = caller_of(event)
    try:
        return request_body.parse_job(event, caller)
    except JobError as error:
        raise JobRefused(caller, error) from None


async def _put_on_record(request: Request, accepted: Accepted) -> Listed:
    """Raises JobRefused if the id stands for another request; NotOffered, Unavailable."""
    board = request.app.state.context.board
    try:
        listed: Listed = await in_thread(board.accept, accepted.job)
    except JobError as error:
        raise JobRefused(accepted.job.caller, error) from None
    return listed


async def _run(request: Request, accepted: Accepted, is_new: bool) -> dict[str, Any]:
    context = request.app.state.context
    try:
        response: dict[str, Any] = await context.dispatcher.run(accepted)
    except _NOT_TAKEN as error:
        if is_new:
            await in_thread(context.board.abandon, accepted.job.id, str(error))
        raise
    return response


async def _accept(request: Request) -> JobRecord:
    """Read a job, and put it on record and into the queue."""
    context = request.app.state.context
    accepted = await _read_job(request)
    listed = await _put_on_record(request, accepted)
    record = listed.record
    # Also if it was queued before: the queue may not have taken it then. A job that has ended does
    # not run again; the handler calls its webhook.
    if record.status is Status.QUEUED or record.has_open_webhook:
        try:
            await context.dispatcher.accept(accepted)
        except _NOT_TAKEN as error:
            if listed.is_new:
                await in_thread(context.board.abandon, accepted.job.id, str(error))
            raise
    return record


async def _find(request: Request) -> JobRecord:
    """The job that the path names. Raises HTTPException: 404, and 410 after its retention."""
    board = request.app.state.context.board
    request_id = request.path_params["id"]
    record: JobRecord | None = await in_thread(board.get, request_id)
    if record is None:
        raise HTTPException(404, f"there is no job with the id {request_id[:200]!r}")
    if not record.is_retained(board.now()):
        text = f"job {request_id[:200]!r} has ended, and its response is no longer kept"
        raise HTTPException(410, text)
    return record


def _require_stream(request: Request) -> None:
    if not request.app.state.context.dispatcher.can_stream:
        raise NotOffered("this front door cannot stream events; ask GET /result/{id} instead")


def _event_stream(request: Request, record: JobRecord) -> Response:
    after = request.headers.get("last-event-id", "")
    return StreamingResponse(
        _events(request, record, after), media_type="text/event-stream", headers=_SSE_HEADERS
    )


async def _events(request: Request, record: JobRecord, after: str) -> AsyncIterator[str]:
    context = request.app.state.context
    request_id = record.request_id
    if not record.status.is_final:
        yield _frame("status", await _envelope(request, record))
        async for event in context.dispatcher.events(request_id, after):
            yield ": waiting\n\n" if event is None else _frame(event.name, event.data, event.id)
        record = await in_thread(context.board.get, request_id) or record
    yield _frame("end", await _envelope(request, record))


def _frame(name: str, data: Any, event_id: str = "") -> str:
    """https://html.spec.whatwg.org/multipage/server-sent-events.html"""
    prefix = f"id: {event_id}\n" if event_id else ""
    return f"{prefix}event: {name}\ndata: {encode(data).decode()}\n\n"


async def _disconnected(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(_POLL_S)


async def _answer(request: Request, record: JobRecord, *, unfinished_status: int = 200) -> Response:
    status = 200 if record.status.is_final else unfinished_status
    return JsonAnswer(await _envelope(request, record), status)


async def _envelope(request: Request, record: JobRecord) -> dict[str, Any]:
    context = request.app.state.context
    position = None
    if status_of(record) == "queued":
        position = await in_thread(context.dispatcher.queue_position, record.request_id)
    fitted: dict[str, Any] = context.fit(envelope_of(record, context.board.now(), position))
    return fitted


async def in_thread(call: Callable[..., T], *arguments: Any) -> T:
    """Call a function that blocks."""
    return await to_thread.run_sync(partial(call, *arguments))
