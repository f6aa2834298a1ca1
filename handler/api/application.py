"""Makes the ASGI application: the routes, who may call them, and what a failure answers.

Another dialect of the API has modules of routes of its own, which are mounted here as well.
"""

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp

from events.event_context import Response as JobResponse
from handler.api import (
    description_routes,
    job_routes,
    list_routes,
    report_routes,
    template_routes,
    uploads,
)
from handler.api.authentication import LocalCallers, TokenAuthentication
from handler.api.dispatcher import Dispatcher, NotOffered, QueueFull, Unavailable
from handler.api.http_status import CLIENT_CLOSED_REQUEST
from handler.api.job_board import JobBoard
from handler.api.job_routes import JobRefused
from handler.api.json_answer import message
from handler.api.request_body import BodyTooLarge
from handler.log import logger

_ROUTES = (
    job_routes,
    list_routes,
    template_routes,
    uploads,
    report_routes,
    description_routes,
)


@dataclass(frozen=True, slots=True)
class ApiContext:
    """What the routes use; they find it as `request.app.state.context`.

    `fit` makes a response as small as the front door needs it. A body may have `max_body_bytes`.
    `input_folder` is ComfyUI's, `templates_folder` that of the workflow templates; None where there
    is none.
    """

    board: JobBoard
    dispatcher: Dispatcher
    max_body_bytes: int
    fit: Callable[[JobResponse], JobResponse]
    input_folder: Path | None
    templates_folder: Path | None = None


def create_app(context: ApiContext, token: str = "", *, is_local: bool = False) -> ASGIApp:
    """The application. With a `token`, callers must send it.

    Without one, `is_local` refuses what web pages send to an API on the reader's own machine.
    """
    app = Starlette(
        routes=[route for module in _ROUTES for route in module.routes()],
        exception_handlers={
            HTTPException: _http_error,
            JobRefused: _job_refused,
            BodyTooLarge: _body_too_large,
            ClientDisconnect: _client_gone,
            QueueFull: _queue_full,
            NotOffered: _not_offered,
            Unavailable: _unavailable,
            Exception: _internal_error,
        },
    )
    # An id may end with a slash.
    app.router.redirect_slashes = False
    app.state.context = context
    if token:
        return TokenAuthentication(app, token)
    return LocalCallers(app) if is_local else app


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = str(error.detail)
    if error.status_code == 404 and text == HTTPStatus.NOT_FOUND.phrase:
        text = f"there is no route {request.method} {request.url.path[:200]}; GET /docs lists them"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        text = f"this route does not take {request.method}, but {allowed} {request.url.path[:200]}"
    return message(error.status_code, text, dict(error.headers or {}))


def _job_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, JobRefused)
    return job_routes.refuse(request, error)


def _body_too_large(_: Request, error: Exception) -> Response:
    # The rest of the body is not read.
    return message(413, str(error), {"Connection": "close"})


def _client_gone(_: Request, __: Exception) -> Response:
    # It left before its body had come; nobody reads this.
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _queue_full(_: Request, error: Exception) -> Response:
    assert isinstance(error, QueueFull)
    return message(503, str(error), {"Retry-After": str(error.retry_after_s)})


def _not_offered(_: Request, error: Exception) -> Response:
    return message(501, str(error))


def _unavailable(_: Request, error: Exception) -> Response:
    return message(503, str(error), {"Retry-After": "5"})


def _internal_error(_: Request, error: Exception) -> Response:
    logger.error("unexpected error of the API", exc_info=error)
    return message(500, f"unexpected {type(error).__name__}; the log has the traceback")
