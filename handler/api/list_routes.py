"""`GET /jobs`: the jobs on record, page by page."""

from collections.abc import Sequence
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from handler.api.envelope import summary_of
from handler.api.json_answer import JsonAnswer, message
from handler.jobs.record import Status
from handler.jobs.store import JobQuery

MAX_LIMIT = 500
# The year 9999.
MAX_UNIX_S = 253_402_300_799
# A list holds no progress, so a job that generates is `processing` in it.
_STATUSES = {
    "queued": Status.QUEUED,
    "processing": Status.RUNNING,
    "generating": Status.RUNNING,
    "completed": Status.COMPLETED,
    "failed": Status.FAILED,
    "cancelled": Status.CANCELLED,
}


def routes() -> Sequence[BaseRoute]:
    return [Route("/jobs", jobs, methods=["GET"])]


async def jobs(request: Request) -> Response:
    """A page of jobs, the newest first."""
    try:
        query = _query_of(request)
        page = await to_thread.run_sync(request.app.state.context.board.list, query)
    except (ValueError, OverflowError) as error:
        return message(400, str(error))
    body: dict[str, Any] = {"jobs": [summary_of(record) for record in page.records]}
    if page.cursor:
        body["next_cursor"] = page.cursor
    return JsonAnswer(body)


def _query_of(request: Request) -> JobQuery:
    """Raises ValueError, whose text names the parameter and what is expected."""
    given = request.query_params
    names = [name for name in given.get("status", "").split(",") if name]
    if unknown := [name for name in names if name not in _STATUSES]:
        raise ValueError(f"status: {unknown[0][:40]!r} is none of {', '.join(_STATUSES)}")
    before = given.get("created_before")
    return JobQuery(
        statuses=frozenset(_STATUSES[name] for name in names),
        source=given.get("source", ""),
        created_before=_unix_time(before) if before else None,
        limit=_limit(given.get("limit", "50")),
        cursor=given.get("cursor", ""),
    )


def _limit(raw: str) -> int:
    # Python refuses a longer number with a message of its own.
    limit = int(raw) if raw.isdecimal() and len(raw) < 10 else 0
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"limit: expected a whole number, 1 to {MAX_LIMIT}, got {raw[:40]!r}")
    return limit


def _unix_time(raw: str) -> float:
    expected = f"created_before: expected Unix time in seconds, got {raw[:40]!r}"
    try:
        seconds = float(raw)
    except ValueError:
        raise ValueError(expected) from None
    if not 0 <= seconds <= MAX_UNIX_S:
        raise ValueError(expected)
    return seconds
