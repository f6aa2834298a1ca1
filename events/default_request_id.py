"""An id for a request that gives none: that of its message, the same for each delivery."""

from typing import Any

from events.contract import unwrap


def identified(request: Any, request_id: str) -> Any:
    """The request, out of its envelope, with this id if it has none; other things as they are."""
    found = unwrap(request)
    if not isinstance(found, dict) or not isinstance(found.get("input"), dict):
        return request
    given = found["input"]
    return {**found, "input": {**given, "request_id": given.get("request_id") or request_id}}
