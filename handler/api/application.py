"""Makes the ASGI application: the routes, who may call them, and what a failure answers.

A route that another dialect of the API adds belongs into a module of its own beside
`wrapper_routes`, and into `routes` here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from events.event_context import Response as JobResponse
from handler.api import description_routes, wrapper_routes
from handler.api.authentication import TokenAuthentication
from handler.api.dispatcher import Dispatcher, NotOffered, QueueFull, Unavailable
from handler.api.http_status import CLIENT_CLOSED_REQUEST
from handler.api.job_board import JobBoard
from handler.api.request_body import BodyTooLarge
from handler.log import logger


@dataclass(frozen=True, slots=True)
class ApiContext:
    """What the routes use; they find it as `request.app.state.context`.

    `fit` makes a response as small as the front door needs it. A body may have `max_body_bytes`.
    `input_folder` returns ComfyUI's; None where there is none.
    """

    board: JobBoard
    dispatcher: Dispatcher
    max_body_bytes: int
    fit: Callable[[JobResponse], JobResponse]
    input_folder: Callable[[], str | None]


def create_app(context: ApiContext, token: str = "") -> TokenAuthentication:
    """The application. With a `token`, callers must send it."""
    app = Starlette(
        routes=[*wrapper_routes.routes(), *description_routes.routes()],
        exception_handlers={
            HTTPException: _http_error,
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
    return TokenAuthentication(app, token)


def message(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An answer that is no response of a job."""
    return JSONResponse({"message": text}, status, headers)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = str(error.detail)
    if error.status_code == 404:
        text = f"there is no route {request.method} {request.url.path[:200]}; GET /docs lists them"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        text = f"this route does not take {request.method}, but {allowed} {request.url.path[:200]}"
    return message(error.status_code, text, dict(error.headers or {}))


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
