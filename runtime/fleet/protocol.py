"""The bodies that clients and workers send to the router, and what it answers.

The fields are those of `vastai` 1.9.1, its client and its PyWorker. Reports of our own workers have
more: `state`, because a PyWorker knows no sleep, `cold_start_s`, `places` and `benchmarks`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from handler.worker_protocol import State
from runtime.errors import LambdaComfyUIError
from runtime.fleet.deviations import score_warnings
from runtime.fleet.registry import MAX_COST, Benchmarked, Measured, Report, Status, Worker
from runtime.fleet.router import Request, Routed
from runtime.fleet.signature import Grant, Signer

USUAL_COST = 100.0
# For how long a worker takes a request that it was given. A client posts to it at once.
GRANT_S = 120.0
# A score beyond these is an error of the worker: it would get all requests, or one for ever.
_MIN_SCORE, _MAX_SCORE = 1e-6, 1e6
_MAX_COLD_START_S = 3600.0
_MAX_URL, _MAX_LOADS, _MAX_ERROR = 2000, 200, 500
# An item of DynamoDB has 400 KB.
_MAX_WORKING = 2000
# A worker with places for all requests would get all of them.
_MAX_GPUS, _MAX_NAME = 64, 200
_MAX_KEEP_S = 3600.0
# The state of our worker that has ended: it is forgotten.
STOPPED = "stopped"


class BadBodyError(LambdaComfyUIError):
    """A body lacks a field, or has a wrong one; the message names it."""


@dataclass(frozen=True, slots=True)
class StatusCall:
    """`POST /worker_status/`: a report, or None for a worker that has ended."""

    worker_id: int
    report: Report | None


@dataclass(frozen=True, slots=True)
class EndedCall:
    """`POST /delete_requests/`: which requests of a worker have ended, worked off or not."""

    worker_id: int
    done: frozenset[int]
    undone: frozenset[int]


@dataclass(frozen=True, slots=True)
class DrainCall:
    """`POST /drain/`: whether a worker is to be given nothing more."""

    worker_id: int
    is_drained: bool


def route_request(body: Mapping[str, Any], endpoints: Sequence[str]) -> Request:
    """Raises BadBodyError."""
    endpoint = str(body.get("endpoint"))
    if endpoint not in endpoints:
        names = ", ".join(endpoints)
        raise BadBodyError(f"endpoint: {endpoint[:200]!r} is none of this router's: {names}")
    loads = body.get("loads", "")
    if not isinstance(loads, str) or len(loads) > _MAX_LOADS:
        raise BadBodyError(f"loads: expected a text of {_MAX_LOADS} characters at most")
    return Request(
        endpoint=endpoint,
        cost=_number_up_to(body, "cost", USUAL_COST, MAX_COST),
        request_idx=_whole(body, "request_idx", 0),
        keep_s=min(max(_number(body, "replay_timeout", 60.0), 1.0), _MAX_KEEP_S),
        loads=loads,
    )


def route_answer(request: Request, routed: Routed, signer: Signer, now: float) -> dict[str, Any]:
    """The worker's address and the grant, or that the client has to ask again."""
    worker = routed.worker
    common = {"endpoint": request.endpoint, "request_idx": routed.request_idx}
    if worker is None:
        return {**common, "status": "no worker is ready; ask again with this request_idx"}
    grant = Grant(
        url=worker.url,
        endpoint=request.endpoint,
        cost=request.cost,
        reqnum=worker.given,
        request_idx=routed.request_idx,
        expires=float(math.ceil(now + GRANT_S)),
    )
    return {
        **common,
        "url": worker.url,
        "cost": request.cost,
        "reqnum": worker.given,
        "signature": signer.sign_url(worker.url),
        "__request_id": str(routed.request_idx),
        "expires": grant.expires,
        "grant": signer.sign(grant),
    }


def status_call(body: Mapping[str, Any]) -> StatusCall:
    """Raises BadBodyError."""
    worker_id, state = _whole(body, "id"), _text(body, "state")
    if state == STOPPED:
        return StatusCall(worker_id, None)
    score = max(_number(body, "max_perf", 0.0), 0.0)
    if score and not _MIN_SCORE <= score <= _MAX_SCORE:
        limits = f"{_MIN_SCORE:g} to {_MAX_SCORE:g}"
        raise BadBodyError(f"max_perf: expected 0, or a number from {limits}")
    error = _text(body, "error_msg")
    working = body.get("working_request_idxs", [])
    if not isinstance(working, list) or len(working) > _MAX_WORKING:
        raise BadBodyError(
            f"working_request_idxs: expected a list of {_MAX_WORKING} numbers at most"
        )
    places = _whole(body, "places", 1)
    if places > _MAX_GPUS:
        raise BadBodyError(f"places: expected the number of GPUs, {_MAX_GPUS} at most")
    report = Report(
        id=worker_id,
        url=_url(body),
        status=_status(state, score, error),
        score=score,
        cold_start_s=_number_up_to(body, "cold_start_s", 0.0, _MAX_COLD_START_S),
        error=_one_line(error, _MAX_ERROR),
        working=frozenset(idx for idx in working if isinstance(idx, int)),
        places=max(places, 1),
        benchmarks=_benchmarks(body),
        measured=Measured(
            cur_load=_number(body, "cur_load", 0.0),
            new_load=_number(body, "new_load", 0.0),
            cur_perf=_number(body, "cur_perf", 0.0),
            disk_usage=_number(body, "disk_usage", 0.0),
        ),
    )
    return StatusCall(worker_id, report)


def ended_call(body: Mapping[str, Any]) -> EndedCall:
    """Raises BadBodyError."""
    requests = body.get("requests")
    if not isinstance(requests, list) or not all(isinstance(each, dict) for each in requests):
        raise BadBodyError("requests: expected a list of objects with a request_idx")
    ended = {_whole(each, "request_idx"): bool(each.get("success")) for each in requests}
    return EndedCall(
        _whole(body, "worker_id"),
        done=frozenset(idx for idx, success in ended.items() if success),
        undone=frozenset(idx for idx, success in ended.items() if not success),
    )


def drain_call(body: Mapping[str, Any]) -> DrainCall:
    """Raises BadBodyError."""
    is_drained = body.get("drained", True)
    if not isinstance(is_drained, bool):
        raise BadBodyError("drained: expected true or false")
    return DrainCall(_whole(body, "id"), is_drained)


def worker_views(workers: Sequence[Worker], now: float) -> list[dict[str, Any]]:
    """The items of `get_endpoint_workers`."""
    warnings = score_warnings(workers)
    return [_worker_view(worker, warnings.get(worker.id, ""), now) for worker in workers]


def _worker_view(worker: Worker, warning: str, now: float) -> dict[str, Any]:
    """One item; the fields after `started_at` are ours."""
    return {
        "id": worker.id,
        "status": worker.status.value,
        "cur_load": worker.measured.cur_load,
        "new_load": worker.measured.new_load,
        "cur_load_rolling_avg": worker.measured.cur_load,
        "cur_perf": worker.measured.cur_perf,
        "perf": worker.score,
        "measured_perf": worker.score,
        "dlperf": 0.0,
        "reliability": 0.0 if worker.status is Status.LOST else 1.0,
        "reqs_working": len(worker.held),
        "disk_usage": worker.measured.disk_usage,
        "loaded_at": worker.joined_at,
        "started_at": worker.joined_at,
        "url": worker.url,
        "score": worker.score,
        "work": worker.work,
        "requests": worker.given,
        "wait_s": round(max(worker.expected_free_at(now) - now, 0.0), 3),
        "reported_s": round(max(now - worker.reported_at, 0.0), 3),
        "error": worker.error,
        "places": worker.places,
        "gpus": [each.gpu for each in worker.benchmarks],
        "warning": warning,
    }


# The words that a worker of ours reports; the others mean that it does not take jobs yet.
_STATES = {
    State.READY.value: Status.READY,
    State.INACTIVE.value: Status.INACTIVE,
    State.DRAINING.value: Status.DRAINING,
    State.FAILED.value: Status.FAILED,
}


def _status(state: str, score: float, error: str) -> Status:
    if error and state in ("", State.FAILED):
        return Status.FAILED
    if score <= 0:
        # A PyWorker has a score once its benchmark is over.
        return Status.DRAINING if state == State.DRAINING else Status.STARTING
    return _STATES.get(state, Status.STARTING) if state else Status.READY


def _benchmarks(body: Mapping[str, Any]) -> tuple[Benchmarked, ...]:
    given = body.get("benchmarks", [])
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise BadBodyError("benchmarks: expected a list of objects")
    found = (
        Benchmarked(
            _one_line(_text(each, "gpu"), _MAX_NAME),
            _one_line(_text(each, "workflow_hash"), _MAX_NAME),
            _number(each, "score", 0.0),
        )
        for each in given[:_MAX_GPUS]
    )
    return tuple(each for each in found if each.score > 0)


def _whole(body: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise BadBodyError(f"{name}: expected a whole number")
    return value


def _number(body: Mapping[str, Any], name: str, default: float) -> float:
    value = body.get(name, default)
    try:
        if isinstance(value, bool) or not math.isfinite(value):
            raise ValueError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise BadBodyError(f"{name}: expected a number") from None


def _one_line(text: str, longest: int) -> str:
    """A text of a worker as the log and the page show it."""
    return "".join(each if each.isprintable() else " " for each in text[:longest])


def _number_up_to(body: Mapping[str, Any], name: str, default: float, most: float) -> float:
    value = _number(body, name, default)
    if not 0 <= value <= most:
        raise BadBodyError(f"{name}: expected a number from 0 to {most:g}")
    return value


def _url(body: Mapping[str, Any]) -> str:
    """The worker's address. Clients and the router append paths to it, and logs show it."""
    url = _text(body, "url").rstrip("/")
    is_plain = url.isascii() and url.isprintable() and not set(url) & set(" ?#@\\")
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        # A script that has to stop the machine may pass the name on to `ssh`.
        has_host = host != "" and not host.startswith("-")
        has_host = has_host and parts.scheme in ("http", "https") and parts.port != 0
    except ValueError:
        has_host = False
    if not (is_plain and has_host) or len(url) > _MAX_URL:
        raise BadBodyError(
            "url: expected the http or https address at which clients reach the worker,"
            " without user, query and fragment"
        )
    return url


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name) or ""
    if not isinstance(value, str):
        raise BadBodyError(f"{name}: expected a text")
    return value
