"""What a store keeps of a response: a success whole, or without what its files' URLs lead to.

docs/contract.md ("Repeated requests") says the same to users.
"""

from typing import Any

from events.contract.response_size import smaller
from handler.jobs.record import Response, encode_response
from handler.log import logger

_LEFT_OUT = (
    "this request was answered before; what ComfyUI reported is left out of the stored response,"
    " because it was too large"
)


def storable(response: Response, max_bytes: int | None) -> Response | None:
    """The response within the store's limit, None if it must not be stored.

    No failure is stored: the request that is sent again comes with another node, model or timeout.
    And no success without a file whose only place is the response.
    """
    if response["status"] != "completed" or "error" in response:
        return None
    if max_bytes is None or _size(response) <= max_bytes:
        return response
    compact = _without_reports(response)
    if _size(compact) <= max_bytes:
        return compact
    if all("url" in item for item in response["output"]):
        return smaller(compact, max_bytes, _size)
    logger.warning(
        "the response is too large for the job store and is not stored: the same request would run"
        " again"
    )
    return None


def _without_reports(response: Response) -> Response:
    """The response without ComfyUI's history and progress, and without the content of its files
    that have a URL."""
    details = response["comfyui_response"].get("execution_details")
    return {
        **response,
        "comfyui_response": (
            {"execution_details": {**details, "progress_updates": []}} if details else {}
        ),
        "output": [_without_content(item) for item in response["output"]],
        "warnings": [*response.get("warnings", []), _LEFT_OUT],
    }


def _without_content(item: dict[str, Any]) -> dict[str, Any]:
    if "url" not in item:
        return item
    return {name: value for name, value in item.items() if name not in ("base64", "text")}


def _size(response: Response) -> int:
    return len(encode_response(response))
