"""The routes of the documented API wrapper: generate, result, stream, cancel, list, health.

docs/api.md describes them; `openapi` has the same for programs.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

from anyio import to_thread
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from events.contract import caller_of
from events.errors import IdConflict, InvalidRequest, JobError
from events.job import Caller
from handler.api import metrics, request_body
from handler.api.dispatcher import Accepted, NotOffered, QueueFull, Unavailable
from handler.api.envelope import envelope_of, status_of, summary_of
from handler.api.http_status import CLIENT_CLOSED_REQUEST, headers_of
from handler.api.http_status import status_of as http_status_of
from handler.api.job_board import Listed
from handler.api.json_answer import JsonAnswer
from handler.api.uploads import upload_image
from handler.jobs.record import JobRecord, Status
from handler.jobs.store import JobQuery
from handler.response import JobResult, build_response

MAX_LIMIT = 500
# The year 9999.
MAX_UNIX_S = 253_402_300_799
# A cancelled job ends soon; one that ignores the interrupt needs another ComfyUI.
_CANCEL_WAIT_S = 10.0
_CANCEL_POLL_S = 0.1
_SSE_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_STATUSES = {
    "queued": {Status.QUEUED},
    "processing": {Status.RUNNING},
    "generating": {Status.RUNNING},
    "completed": {Status.COMPLETED},
    "failed": {Status.FAILED},
    "cancelled": {Status.CANCELLED},
}
# The dispatcher has not taken the job.
NOT_TAKEN = (QueueFull, NotOffered, Unavailable)
T = TypeVar("T")


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
        Route("/jobs", jobs, methods=["GET"]),
        Route("/queue-info", queue_info, methods=["GET"]),
        Route("/upload/image", upload_image, methods=["POST"]),
        Route("/health", health, methods=["GET"]),
        Route("/ready", ready, methods=["GET"]),
        Route("/worker", worker, methods=["GET"]),
        Route("/metrics", prometheus, methods=["GET"]),
    ]


async def generate_sync(request: Request) -> Response:
    """Run a job and answer with its response. The client's disconnect cancels the job."""
    context = request.app.state.context
    try:
        accepted = await _read_job(request)
        is_new = False
        if context.board.has_store:
            listed: Listed = await in_thread(context.board.accept, accepted.job)
            is_new = listed.is_new
    except _Refused as refused:
        return refused.answer
    except IdConflict as error:
        return _respond(request, _failed(accepted.job.caller, error))
    is_detached = request.query_params.get("detach", "").lower() in ("true", "1")
    if is_detached or not context.dispatcher.can_stream:
        return _respond(request, await _run(request, accepted, is_new))
    run = asyncio.ensure_future(_run(request, accepted, is_new))
    gone = asyncio.ensure_future(_disconnected(request))
    await asyncio.wait({run, gone}, return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    if run.done():
        return _respond(request, run.result())
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
    try:
        accepted = await _read_job(request)
        record = await _accept(request, accepted)
    except _Refused as refused:
        return refused.answer
    except IdConflict as error:
        return _respond(request, _failed(accepted.job.caller, error))
    return _answer(request, record, status=200 if record.status.is_final else 202)


async def generate_stream(request: Request) -> Response:
    """Accept a job, and answer with its events."""
    _require_stream(request)
    try:
        accepted = await _read_job(request)
        record = await _accept(request, accepted)
    except _Refused as refused:
        return refused.answer
    except IdConflict as error:
        return _respond(request, _failed(accepted.job.caller, error))
    return _event_stream(request, record)


async def stream(request: Request) -> Response:
    """The events of a job: how it is now, every event after that, and its response."""
    _require_stream(request)
    record = await _find(request)
    return record if isinstance(record, Response) else _event_stream(request, record)


async def result(request: Request) -> Response:
    """How a job is now: its response, if it has ended."""
    record = await _find(request)
    return record if isinstance(record, Response) else _answer(request, record)


async def cancel(request: Request) -> Response:
    """End a job, whatever it does now; the answer says how it is after that."""
    board = request.app.state.context.board
    request_id = request.path_params["id"]
    record = await in_thread(board.cancel, request_id)
    waited_s = 0.0
    while record and not record.status.is_final and waited_s < _CANCEL_WAIT_S:
        await asyncio.sleep(_CANCEL_POLL_S)
        waited_s += _CANCEL_POLL_S
        record = await in_thread(board.get, request_id)
    if record is None or not record.is_retained(board.now()):
        return _missing(request_id, is_known=record is not None)
    return _answer(request, record, status=200 if record.status.is_final else 202)


async def jobs(request: Request) -> Response:
    """A page of jobs, the newest first."""
    query = request.query_params
    try:
        limit = int(query.get("limit", "50"))
        before = query.get("created_before")
        created_before = float(before) if before else None
        if created_before is not None and not 0 <= created_before <= MAX_UNIX_S:
            raise ValueError
    except ValueError:
        return _bad_query("limit: expected a whole number; created_before: Unix time in seconds")
    if not 1 <= limit <= MAX_LIMIT:
        return _bad_query(f"limit: expected 1 to {MAX_LIMIT}, got {limit}")
    names = [name for name in query.get("status", "").split(",") if name]
    if unknown := [name for name in names if name not in _STATUSES]:
        return _bad_query(f"status: {unknown[0][:40]!r} is none of {', '.join(_STATUSES)}")
    job_query = JobQuery(
        statuses=frozenset().union(*(_STATUSES[name] for name in names)),
        source=query.get("source", ""),
        created_before=created_before,
        limit=limit,
        cursor=query.get("cursor", ""),
    )
    try:
        page = await in_thread(request.app.state.context.board.list, job_query)
    except (ValueError, OverflowError) as error:
        return _bad_query(f"cursor: {error}")
    body: dict[str, Any] = {"jobs": [summary_of(record) for record in page.records]}
    if page.cursor:
        body["next_cursor"] = page.cursor
    return JsonAnswer(body)


async def queue_info(request: Request) -> Response:
    """How many jobs wait and run, and how long one takes."""
    context = request.app.state.context
    counts = await in_thread(context.board.counts)
    usual_s = await in_thread(context.board.usual_run_s)
    return JsonAnswer(
        {
            "waiting": context.dispatcher.waiting(),
            "jobs": {status.name.lower(): counts.get(status, 0) for status in Status},
            "usual_run_s": None if usual_s is None else round(usual_s, 3),
        }
    )


async def health(request: Request) -> Response:
    """200 while jobs are worked on."""
    report = await request.app.state.context.dispatcher.health()
    return _report(report.is_healthy, report.reason)


async def ready(request: Request) -> Response:
    """200 while a new job would be taken."""
    report = await request.app.state.context.dispatcher.health()
    return _report(report.is_ready, report.reason)


async def worker(request: Request) -> Response:
    """The state of the worker that owns ComfyUI."""
    status = await request.app.state.context.dispatcher.worker()
    if status is None:
        raise NotOffered("this front door has no worker of its own")
    return JsonAnswer(asdict(status))


async def prometheus(request: Request) -> Response:
    """Metrics in the text format of Prometheus."""
    context = request.app.state.context
    counts = await in_thread(context.board.counts)
    usual_s = await in_thread(context.board.usual_run_s)
    status = await context.dispatcher.worker()
    text = metrics.render(counts, context.dispatcher.waiting(), usual_s, status)
    return PlainTextResponse(text, media_type=metrics.CONTENT_TYPE)


class _Refused(Exception):
    """The request breaks the contract, and this is the answer."""

    def __init__(self, answer: Response) -> None:
        super().__init__()
        self.answer = answer


async def _read_job(request: Request) -> Accepted:
    """Raises _Refused, BodyTooLarge."""
    limit = request.app.state.context.max_body_bytes
    body = await request_body.limited(request, limit).body()
    event = request_body.decode_body(body)
    caller = caller_of(event)
    try:
        return request_body.parse_job(event, caller)
    except InvalidRequest as error:
        raise _Refused(_respond(request, _failed(caller, error))) from None


async def _run(request: Request, accepted: Accepted, is_new: bool) -> dict[str, Any]:
    context = request.app.state.context
    try:
        response: dict[str, Any] = await context.dispatcher.run(accepted)
    except NOT_TAKEN as error:
        if is_new:
            await in_thread(context.board.abandon, accepted.job.id, str(error))
        raise
    return response


async def _accept(request: Request, accepted: Accepted) -> JobRecord:
    """Raises IdConflict."""
    context = request.app.state.context
    listed: Listed = await in_thread(context.board.accept, accepted.job)
    record = listed.record
    # Also if it was queued before: the queue may not have taken it then. A job that has ended does
    # not run again; the handler calls its webhook.
    if record.status is Status.QUEUED or record.has_open_webhook:
        try:
            await context.dispatcher.accept(accepted)
        except NOT_TAKEN as error:
            if listed.is_new:
                await in_thread(context.board.abandon, accepted.job.id, str(error))
            raise
    return record


async def _find(request: Request) -> JobRecord | Response:
    board = request.app.state.context.board
    request_id = request.path_params["id"]
    record: JobRecord | None = await in_thread(board.get, request_id)
    if record is None or not record.is_retained(board.now()):
        return _missing(request_id, is_known=record is not None)
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
        yield _frame("status", _envelope(request, record))
        async for event in context.dispatcher.events(request_id, after):
            yield ": waiting\n\n" if event is None else _frame(event.name, event.data, event.id)
        record = await in_thread(context.board.get, request_id) or record
    yield _frame("end", _envelope(request, record))


def _frame(name: str, data: Any, event_id: str = "") -> str:
    """https://html.spec.whatwg.org/multipage/server-sent-events.html"""
    prefix = f"id: {event_id}\n" if event_id else ""
    return f"{prefix}event: {name}\ndata: {bytes(JsonAnswer(data).body).decode()}\n\n"


async def _disconnected(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(_CANCEL_POLL_S)


def _failed(caller: Caller, error: JobError) -> dict[str, Any]:
    return build_response(JobResult(caller, error=error))


def _respond(request: Request, response: dict[str, Any]) -> Response:
    status = http_status_of(response)
    body = request.app.state.context.fit(response)
    return JsonAnswer(body, status, headers_of(response, status))


def _answer(request: Request, record: JobRecord, status: int = 200) -> Response:
    return JsonAnswer(_envelope(request, record), status)


def _envelope(request: Request, record: JobRecord) -> dict[str, Any]:
    context = request.app.state.context
    position = None
    if status_of(record) == "queued":
        position = context.dispatcher.queue_position(record.request_id)
    fitted: dict[str, Any] = context.fit(envelope_of(record, context.board.now(), position))
    return fitted


def _missing(request_id: str, *, is_known: bool) -> Response:
    if is_known:
        text = f"job {request_id[:200]!r} has ended, and its response is no longer kept"
        return JsonAnswer({"message": text}, 410)
    return JsonAnswer({"message": f"there is no job with the id {request_id[:200]!r}"}, 404)


def _bad_query(text: str) -> Response:
    return JsonAnswer({"message": text}, 400)


def _report(is_well: bool, reason: str) -> Response:
    if is_well:
        return JsonAnswer({"status": "ok"})
    return JsonAnswer({"status": "unavailable", "message": reason}, 503)


async def in_thread(call: Callable[..., T], *arguments: Any) -> T:
    """Call a function that blocks."""
    return await to_thread.run_sync(partial(call, *arguments))
