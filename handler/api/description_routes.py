"""`/openapi.json`, and `/docs`, a page that shows it without anything from the internet."""

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from handler.api.openapi import description


def routes() -> Sequence[BaseRoute]:
    return [
        Route("/openapi.json", openapi, methods=["GET"]),
        Route("/docs", docs, methods=["GET"]),
    ]


async def openapi(_: Request) -> Response:
    """The description of all routes: https://spec.openapis.org/oas/v3.1.0"""
    return JSONResponse(description())


async def docs(_: Request) -> Response:
    """The same for people, with a form that sends each example."""
    return HTMLResponse(_page())


@cache
def _page() -> str:
    page = resources.files(__package__).joinpath("docs.html").read_text("utf-8")
    # In a script element, only "</" could end it.
    text = json.dumps(description()).replace("</", "<\\/")
    return page.replace("/*OPENAPI*/null", text)
