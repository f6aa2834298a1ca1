"""The id of a request that gives none: its message's id, which is the same in each delivery."""

from typing import Any

from events.contract.request import as_request


def with_default_id(event: Any, request_id: str) -> Any:
    """The request in the event, with `request_id` unless it has an id of its own.

    An event that holds no request is returned unchanged; the contract refuses it.
    """
    request = as_request(event)
    if not isinstance(request, dict) or not isinstance(request.get("input"), dict):
        return event
    fields = request["input"]
    return {**request, "input": {**fields, "request_id": fields.get("request_id") or request_id}}
