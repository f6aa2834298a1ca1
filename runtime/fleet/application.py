"""The router as an ASGI application. docs/fleet.md describes its routes."""

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any

from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from events.decode import json_or_text
from handler.api.authentication import LocalCallers
from handler.api.json_answer import JsonAnswer
from handler.api.metrics import CONTENT_TYPE
from handler.api.request_body import BodyTooLarge, limited
from handler.log import logger
from runtime.fleet import metrics, protocol
from runtime.fleet.access import Tokens, given_token
from runtime.fleet.protocol import BadBodyError
from runtime.fleet.router import Routed, Router
from runtime.fleet.signature import Signer

_MAX_BODY_BYTES = 1024 * 1024
# A browser does not send the token by itself.
_LOGIN = {"WWW-Authenticate": 'Basic realm="fleet"'}


@dataclass(frozen=True, slots=True)
class RouterContext:
    """What the routes use; they find it as `request.app.state.context`."""

    router: Router
    signer: Signer
    tokens: Tokens
    endpoints: Sequence[str]
    created_at: float


def create_router_app(context: RouterContext) -> ASGIApp:
    """The application of a router. Without a token, it refuses what web pages send."""
    app = Starlette(
        routes=[
            Route("/api/v0/endptjobs/", list_endpoints),
            Route("/api/v0/endptjobs/{id:int}/", show_endpoint),
            Route("/route/", route, methods=["POST"]),
            Route("/get_endpoint_workers/", endpoint_workers, methods=["POST"]),
            Route("/pubkey/", public_key),
            Route("/worker_status/", worker_status, methods=["POST"]),
            Route("/delete_requests/", delete_requests, methods=["POST"]),
            Route("/drain/", drain, methods=["POST"]),
            Route("/workers", workers),
            Route("/fleet", fleet),
            Route("/health", health),
            Route("/metrics", prometheus),
            Route("/", page),
        ],
        exception_handlers={
            HTTPException: _http_error,
            BadBodyError: _bad_body,
            BodyTooLarge: _body_too_large,
            Exception: _internal_error,
        },
    )
    app.state.context = context
    return app if context.tokens.callers else LocalCallers(app, "ROUTER_TOKEN")


async def list_endpoints(request: Request) -> Response:
    """The endpoints: the client looks for its own by its name."""
    context = _context(request)
    _require(context.tokens.is_caller(given_token(request)))
    found = [_endpoint(context, number) for number in range(1, len(context.endpoints) + 1)]
    return JsonAnswer({"success": True, "results": found})


async def show_endpoint(request: Request) -> Response:
    """One endpoint: clients ask for it again every few days."""
    context, number = _context(request), request.path_params["id"]
    _require(context.tokens.is_caller(given_token(request)))
    if not 1 <= number <= len(context.endpoints):
        raise HTTPException(404, f"there is no endpoint {number}")
    return JsonAnswer({"success": True, "result": _endpoint(context, number)})


async def route(request: Request) -> Response:
    """A worker for a request."""
    context, body = _context(request), await _body(request)
    _require(context.tokens.is_client(given_token(request, body)))
    wanted = protocol.route_request(body, context.endpoints)
    try:
        routed = await to_thread.run_sync(context.router.route, wanted)
    except Exception as error:
        # A client gives up after any other answer.
        logger.error("a request was not routed", exc_info=error)
        routed = Routed(wanted.request_idx, None)
    answer = await to_thread.run_sync(
        protocol.route_answer, wanted, routed, context.signer, time.time()
    )
    return JsonAnswer(answer)


# Those that write all workers of a large fleet are no coroutines: starlette runs them in threads.


async def endpoint_workers(request: Request) -> Response:
    """What the client's `get_endpoint_workers` asks."""
    context, body = _context(request), await _body(request)
    _require(context.tokens.is_caller(given_token(request, body)))
    return await to_thread.run_sync(_workers, context)


def workers(request: Request) -> Response:
    """The same for operators."""
    context = _context(request)
    _require(context.tokens.is_caller(given_token(request)))
    return _workers(context)


async def public_key(request: Request) -> Response:
    """The key with which workers check signatures."""
    return PlainTextResponse(_context(request).signer.public_pem)


async def worker_status(request: Request) -> Response:
    """A report of a worker."""
    context = _context(request)
    call = protocol.status_call(await _report_body(request))
    if call.report is None:
        await to_thread.run_sync(context.router.deregister, call.worker_id)
    else:
        await to_thread.run_sync(context.router.report, call.report)
    return JsonAnswer({"success": True})


async def delete_requests(request: Request) -> Response:
    """Requests that a worker has ended."""
    context = _context(request)
    call = protocol.ended_call(await _report_body(request))
    await to_thread.run_sync(context.router.finish, call.worker_id, call.done, call.undone)
    return JsonAnswer({"success": True})


async def drain(request: Request) -> Response:
    """Give a worker nothing more, for an operator who is about to stop it."""
    context, body = _context(request), await _body(request)
    _require(context.tokens.is_caller(given_token(request, body)))
    call = protocol.drain_call(body)
    worker = await to_thread.run_sync(
        partial(context.router.drain, call.worker_id, is_drained=call.is_drained)
    )
    if worker is None:
        raise HTTPException(404, f"id: there is no worker {call.worker_id}")
    return JsonAnswer({"id": worker.id, "reqs_working": len(worker.held)})


def fleet(request: Request) -> Response:
    """What the page shows."""
    context = _context(request)
    _require_reader(request, context)
    now = time.time()
    queue = context.router.waiting.queue(now)
    return JsonAnswer(
        {
            "workers": protocol.worker_views(context.router.workers(), now),
            "queue": {"requests": queue.requests, "oldest_s": round(queue.oldest_s, 1)},
            "load": round(context.router.waiting.load(now), 3),
            "events": [{"at": each.at, "text": each.text} for each in context.router.events()],
        }
    )


def page(request: Request) -> Response:
    """The page of the fleet."""
    _require_reader(request, _context(request))
    text = resources.files("runtime.fleet").joinpath("page.html").read_text()
    return HTMLResponse(text)


async def health(_: Request) -> Response:
    """Liveness, without a token."""
    return JsonAnswer({"status": "ok"})


def prometheus(request: Request) -> Response:
    """Figures of the fleet."""
    context = _context(request)
    _require(context.tokens.is_caller(given_token(request)))
    text = metrics.render(context.router, time.time())
    return Response(text, media_type=CONTENT_TYPE)


def _context(request: Request) -> RouterContext:
    context: RouterContext = request.app.state.context
    return context


def _workers(context: RouterContext) -> Response:
    return JsonAnswer(protocol.worker_views(context.router.workers(), time.time()))


def _endpoint(context: RouterContext, number: int) -> dict[str, Any]:
    return {
        "id": number,
        "endpoint_name": context.endpoints[number - 1],
        "api_key": context.tokens.endpoint,
        "user_id": 1,
        "created_at": context.created_at,
    }


async def _body(request: Request) -> dict[str, Any]:
    """Raises BadBodyError, BodyTooLarge."""
    raw = await limited(request, _MAX_BODY_BYTES).body()
    body = json_or_text(raw.decode("utf-8", "replace"))
    if not isinstance(body, dict):
        raise BadBodyError("the body is no JSON object")
    return body


async def _report_body(request: Request) -> dict[str, Any]:
    """Raises HTTPException 401 for a forged report; BadBodyError, BodyTooLarge."""
    body = await _body(request)
    if not _context(request).tokens.is_worker(str(body.get("mtoken", ""))):
        raise HTTPException(401, "mtoken: a report needs the token of ROUTER_WORKER_TOKEN")
    return body


def _require(is_allowed: bool) -> None:
    if not is_allowed:
        text = "this call needs ROUTER_TOKEN as a bearer token, or as `api_key`"
        raise HTTPException(401, text, {"WWW-Authenticate": "Bearer"})


def _require_reader(request: Request, context: RouterContext) -> None:
    """As `_require`, and a browser may ask its user: the token is the password."""
    if context.tokens.is_caller(given_token(request) or _password(request)):
        return
    raise HTTPException(401, "this page needs ROUTER_TOKEN; give it as the password", _LOGIN)


def _password(request: Request) -> str:
    """Of HTTP's Basic authentication (RFC 7617)."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value).decode().partition(":")[2]
    except ValueError:
        return ""


def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JsonAnswer({"error": error.detail}, error.status_code, error.headers)


def _bad_body(_: Request, error: Exception) -> Response:
    return JsonAnswer({"error": str(error)}, 400)


def _body_too_large(_: Request, error: Exception) -> Response:
    return JsonAnswer({"error": str(error)}, 413, {"Connection": "close"})


def _internal_error(_: Request, error: Exception) -> Response:
    logger.error("unexpected error of the router", exc_info=error)
    return JsonAnswer(
        {"error": f"unexpected {type(error).__name__}; the log has the traceback"}, 500
    )
