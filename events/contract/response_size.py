"""A response that must pass a narrower way than Lambda's own."""

from collections.abc import Callable
from typing import Any

Response = dict[str, Any]


def smaller(response: Response, max_bytes: int, size: Callable[[Any], int]) -> Response:
    """The response, with as much left out as its way demands, and a warning of each step.

    First what `local_path` and `url` lead to as well, then the URLs, and at last the files' list.
    """
    for leave_out in (_contents, _urls, _files):
        if size(response) <= max_bytes:
            break
        left, what = leave_out(response)
        if left == response:
            continue
        warning = f"{what} left out: too large for this reply"
        response = {**left, "warnings": [*left.get("warnings", []), warning]}
    return response


def _contents(response: Response) -> tuple[Response, str]:
    files = [_without(item, "base64", "text") for item in response["output"]]
    what = "base64, text and ComfyUI's history are"
    return {**response, "comfyui_response": {}, "output": files}, what


def _urls(response: Response) -> tuple[Response, str]:
    files = [_without(item, "url") for item in response["output"]]
    what = "the files' URLs (a file's key in its bucket is the end of its local_path) are"
    return {**response, "output": files}, what


def _files(response: Response) -> tuple[Response, str]:
    what = f"the list of {len(response['output'])} files (below {response['id']}/) is"
    return {**response, "output": []}, what


def _without(item: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in names}
