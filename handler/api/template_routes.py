"""The route that lists the workflow templates."""

from collections.abc import Sequence

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from events.errors import Misconfigured
from handler.api.dispatcher import NotOffered, Unavailable
from handler.api.json_answer import JsonAnswer
from handler.workflow_templates import list_templates


def routes() -> Sequence[BaseRoute]:
    return [Route("/templates", templates, methods=["GET"])]


async def templates(request: Request) -> Response:
    """The names that `modifier` may have, each with its parameters."""
    folder = request.app.state.context.templates_folder
    if folder is None:
        raise NotOffered("this front door has no workflow templates: WORKFLOW_TEMPLATES is not set")
    try:
        found = await to_thread.run_sync(list_templates, folder)
    except Misconfigured as error:
        raise Unavailable(error.message) from error
    return JsonAnswer({"templates": found})
