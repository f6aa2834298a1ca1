"""The routes that say how a front door and its worker are."""

from collections.abc import Sequence
from dataclasses import asdict

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from handler.api import metrics
from handler.api.dispatcher import Health, NotOffered
from handler.api.json_answer import JsonAnswer
from handler.jobs.record import Status


def routes() -> Sequence[BaseRoute]:
    return [
        Route("/queue-info", queue_info, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
        Route("/ready", ready, methods=["GET"]),
        Route("/worker", worker, methods=["GET"]),
        Route("/metrics", prometheus, methods=["GET"]),
    ]


async def queue_info(request: Request) -> Response:
    """How many jobs wait and run, and how long one takes."""
    context = request.app.state.context
    counts = await to_thread.run_sync(context.board.counts)
    usual_s = await to_thread.run_sync(context.board.usual_run_s)
    return JsonAnswer(
        {
            "waiting": await to_thread.run_sync(context.dispatcher.waiting),
            "jobs": {status.name.lower(): counts.get(status, 0) for status in Status},
            "usual_run_s": None if usual_s is None else round(usual_s, 3),
        }
    )


async def health(request: Request) -> Response:
    """200 while jobs are worked on."""
    report = await request.app.state.context.dispatcher.health()
    return _report(report.is_healthy, report)


async def ready(request: Request) -> Response:
    """200 while a new job would be taken."""
    report = await request.app.state.context.dispatcher.health()
    return _report(report.is_ready, report)


async def worker(request: Request) -> Response:
    """The state of the worker that owns ComfyUI."""
    status = await request.app.state.context.dispatcher.worker()
    if status is None:
        raise NotOffered("this front door has no worker of its own")
    return JsonAnswer(asdict(status))


async def prometheus(request: Request) -> Response:
    """Metrics in the text format of Prometheus."""
    context = request.app.state.context
    counts = await to_thread.run_sync(context.board.counts)
    usual_s = await to_thread.run_sync(context.board.usual_run_s)
    status = await context.dispatcher.worker()
    waiting = await to_thread.run_sync(context.dispatcher.waiting)
    text = metrics.render(counts, waiting, usual_s, status, context.dispatcher.cost())
    return PlainTextResponse(text, media_type=metrics.CONTENT_TYPE)


def _report(is_well: bool, health: Health) -> Response:
    # Their names alone: anybody may ask this, and GET /worker has the reasons.
    failed = {"failed_nodes": health.failed_nodes} if health.failed_nodes else {}
    if is_well:
        return JsonAnswer({"status": "ok", **failed})
    return JsonAnswer({"status": "unavailable", "message": health.reason, **failed}, 503)
