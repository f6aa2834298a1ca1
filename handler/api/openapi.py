"""The description of the API for programs, from the published schemas of request and response.

OpenAPI 3.1 uses JSON Schema 2020-12, as they do: https://spec.openapis.org/oas/v3.1.0
"""

from functools import cache
from typing import Any

from events.contract import schema

# Runs on every ComfyUI, without a model.
EXAMPLE = {
    "input": {
        "workflow_json": {
            "1": {
                "class_type": "EmptyImage",
                "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255},
            },
            "2": {
                "class_type": "SaveImage",
                "inputs": {"images": ["1", 0], "filename_prefix": "example"},
            },
        }
    }
}
_MESSAGE = {
    "type": "object",
    "required": ["message"],
    "properties": {"message": {"type": "string"}},
}
_JOB = {
    "type": "object",
    "required": ["id", "status", "created_at"],
    "properties": {
        "id": {"type": "string"},
        "status": {"type": "string"},
        "source": {"type": "string"},
        "created_at": {"type": ["string", "null"]},
        "started_at": {"type": ["string", "null"]},
        "finished_at": {"type": ["string", "null"]},
        "attempt": {"type": "integer"},
        "worker": {"type": "string"},
    },
}
_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "The id of the job.",
    "schema": {"type": "string", "minLength": 1},
    "example": "my-id",
}
_LIMIT = {"type": "integer", "minimum": 1, "maximum": 500}
_JSON = "application/json"
_ENVELOPE_OR_MESSAGE = {"anyOf": [{"$ref": "#/components/schemas/Response"}, _MESSAGE]}


@cache
def description() -> dict[str, Any]:
    """The OpenAPI document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lambda-comfyui",
            "version": "1",
            "description": "Runs ComfyUI workflows. A job is known by its id.",
        },
        "security": [{}, {"token": []}],
        "paths": {**_run_paths(), **_job_paths(), **_list_paths(), **_report_paths()},
        "components": {
            "schemas": {**_components("Request"), **_components("Response")},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _run_paths() -> dict[str, Any]:
    """The routes that take a job."""
    return {
        "/generate/sync": {
            "post": _operation(
                "Run a job and wait for its response",
                "If the client disconnects, the job is cancelled, unless `detach` is true.",
                {
                    **_ends(),
                    "202": _envelope("The job goes on: ask for its result."),
                },
                body=True,
                parameters=[
                    {
                        "name": "detach",
                        "in": "query",
                        "description": "Let the job run on if the client disconnects.",
                        "schema": {"type": "boolean"},
                    }
                ],
            )
        },
        "/generate": {
            "post": _operation(
                "Accept a job",
                "It is run later, also if the machine is stopped meanwhile.",
                {
                    "200": _envelope("The same request has ended before."),
                    "202": _envelope("Accepted."),
                    **_refusals(),
                },
                body=True,
            )
        },
        "/generate/stream": {
            "post": _operation(
                "Accept a job and watch it",
                "The answer is that of `GET /generate/stream/{id}`.",
                {"200": _stream(), **_refusals()},
                body=True,
            )
        },
    }


def _job_paths() -> dict[str, Any]:
    """The routes of one job."""
    return {
        "/generate/stream/{id}": {
            "get": _operation(
                "Watch a job",
                "Server-Sent Events: how the job is now, each event after that, and its"
                " response at the end. The header `Last-Event-ID` resumes.",
                {"200": _stream(), **_lookups()},
                parameters=[_ID],
            )
        },
        "/result/{id}": {
            "get": _operation(
                "How a job is now",
                "Its response, if it has ended.",
                {"200": _envelope("The job."), **_lookups()},
                parameters=[_ID],
            )
        },
        "/cancel/{id}": {
            "post": _operation(
                "Cancel a job",
                "In every state, and as often as you like. A job that has ended stays as it is.",
                {
                    "200": _envelope("The job has ended."),
                    "202": _envelope("The job is about to end."),
                    **_lookups(),
                },
                parameters=[_ID],
            )
        },
    }


def _list_paths() -> dict[str, Any]:
    """The lists of jobs and of templates, and the upload of files."""
    return {
        "/jobs": {
            "get": _operation(
                "List jobs",
                "The newest first.",
                {
                    "200": _json(
                        "A page of jobs.",
                        {
                            "type": "object",
                            "required": ["jobs"],
                            "properties": {
                                "jobs": {"type": "array", "items": _JOB},
                                "next_cursor": {"type": "string"},
                            },
                        },
                    ),
                    "400": _json("A parameter is wrong.", _MESSAGE),
                    **_common(),
                },
                parameters=[
                    _query("status", "Statuses, separated by commas.", {"type": "string"}),
                    _query("source", "The event source.", {"type": "string"}),
                    _query("created_before", "Unix time in seconds.", {"type": "number"}),
                    _query(
                        "limit",
                        "Jobs a page.",
                        {"type": "integer", "minimum": 1, "maximum": 500},
                    ),
                    _query("cursor", "`next_cursor` of the page before.", {"type": "string"}),
                ],
            )
        },
        "/templates": {
            "get": _operation(
                "List workflow templates",
                "What `modifier` may name, and the parameters that `modifications` may set.",
                {
                    "200": _json(
                        "The templates.",
                        {
                            "type": "object",
                            "required": ["templates"],
                            "properties": {
                                "templates": {"type": "array", "items": {"type": "object"}}
                            },
                        },
                    ),
                    **_common(),
                },
            )
        },
        "/upload/image": {
            "post": {
                **_operation(
                    "Store an input file",
                    "As ComfyUI's own route. A workflow can then name the file.",
                    {
                        "200": _json("The stored file.", {"type": "object"}),
                        "400": _json("The form is wrong.", _MESSAGE),
                        "413": _json("The file is too large.", _MESSAGE),
                        **_common(),
                    },
                ),
                "requestBody": {
                    "content": {
                        "multipart/form-data": {
                            "schema": {
                                "type": "object",
                                "required": ["image"],
                                "properties": {
                                    "image": {"type": "string", "format": "binary"},
                                    "overwrite": {"type": "string"},
                                    "subfolder": {"type": "string"},
                                    "type": {"type": "string"},
                                },
                            }
                        }
                    }
                },
            }
        },
    }


def _report_paths() -> dict[str, Any]:
    """The routes about the front door and its worker."""
    return {
        "/queue-info": {
            "get": _operation(
                "How many jobs wait and run",
                "",
                {"200": _json("The queue.", {"type": "object"}), **_common()},
            )
        },
        "/health": {"get": _report("Whether jobs are worked on")},
        "/ready": {"get": _report("Whether a new job would be taken")},
        "/worker": {
            "get": _operation(
                "The state of the worker",
                "",
                {"200": _json("The worker.", {"type": "object"}), **_common()},
            )
        },
        "/metrics": {
            "get": _operation(
                "Metrics for Prometheus",
                "",
                {
                    "200": {
                        "description": "Text.",
                        "content": {"text/plain": {"schema": {"type": "string"}}},
                    },
                    **_common(),
                },
            )
        },
    }


def _components(name: str) -> dict[str, Any]:
    """A published schema, and the definitions in it, as components."""
    published = _moved(schema(name.lower()), f"#/components/schemas/{name}_")
    definitions = published.pop("$defs")
    return {name: published, **{f"{name}_{key}": value for key, value in definitions.items()}}


def _moved(value: Any, prefix: str) -> Any:
    """A copy in which the references to definitions begin with `prefix`."""
    if isinstance(value, dict):
        return {
            key: prefix + inner.removeprefix("#/$defs/") if key == "$ref" else _moved(inner, prefix)
            for key, inner in value.items()
        }
    return [_moved(item, prefix) for item in value] if isinstance(value, list) else value


def _operation(
    summary: str,
    text: str,
    responses: dict[str, Any],
    *,
    body: bool = False,
    parameters: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "description": text, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if body:
        content = {"schema": {"$ref": "#/components/schemas/Request"}, "example": EXAMPLE}
        operation["requestBody"] = {"required": True, "content": {_JSON: content}}
    return operation


def _query(name: str, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": text, "schema": schema}


def _json(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {_JSON: {"schema": schema}}}


def _envelope(text: str) -> dict[str, Any]:
    return _json(text, {"$ref": "#/components/schemas/Response"})


def _either(text: str) -> dict[str, Any]:
    return _json(text, _ENVELOPE_OR_MESSAGE)


def _stream() -> dict[str, Any]:
    return {
        "description": "Server-Sent Events.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }


def _common() -> dict[str, Any]:
    return {
        "401": _json("The token is missing or wrong.", _MESSAGE),
        "403": _json("Without a token, the call of a web page.", _MESSAGE),
        "500": _json("A defect of this project.", _MESSAGE),
        "501": _json("Not offered by this front door.", _MESSAGE),
        "503": _either("Try again after `Retry-After` seconds."),
    }


def _refusals() -> dict[str, Any]:
    return {
        "400": _envelope("The request breaks the contract."),
        "409": _envelope("The id stands for another request."),
        "413": _json("The body is too large.", _MESSAGE),
        **_common(),
    }


def _ends() -> dict[str, Any]:
    return {
        "200": _envelope("The job has completed."),
        **_refusals(),
        "409": _envelope("The id stands for another request, or the job was cancelled."),
        "422": _envelope("The job has failed, and would fail again."),
        "504": _envelope("The time of the call ran out."),
    }


def _lookups() -> dict[str, Any]:
    return {
        "404": _json("No job has this id.", _MESSAGE),
        "410": _json("The response of the job is no longer kept.", _MESSAGE),
        **_common(),
    }


def _report(summary: str) -> dict[str, Any]:
    operation = _operation(
        summary,
        "Needs no token.",
        {
            "200": _json("It is.", {"type": "object"}),
            "503": _json("It is not; `message` says why.", {"type": "object"}),
        },
    )
    return {**operation, "security": [{}]}
