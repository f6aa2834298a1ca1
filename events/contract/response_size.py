"""What is left out of a response that is larger than its destination accepts.

There is one function for each kind of destination: `fit_reply` for a reply of the Lambda function,
`shrink` for a destination with a lower limit (HTTP, Step Functions), `shrink_for_store` for the
store of jobs.
docs/contract.md documents the order and the limits. Which files are added as base64 is decided in
handler/response.py.

Every function returns a new response and leaves its argument unchanged. Whatever is left out is
named by a warning in the response.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

Response = dict[str, Any]
# Returns the response without something, and what that is ("… is", "… are").
_Step = Callable[[Response], tuple[Response, str]]

# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
MAX_RESPONSE_BYTES = 6 * 1024 * 1024
_LEFT_OUT_OF_STORE = (
    "this request was answered before; what ComfyUI reported is left out of the stored response,"
    " because it was too large"
)


def encoded_size(body: Any) -> int:
    """Bytes of the body as awslambdaric sends it: JSON in UTF-8, not escaped to ASCII."""
    return len(_encode(body))


def fit_reply(response: Response) -> Response:
    """The response within MAX_RESPONSE_BYTES, and without text that UTF-8 cannot encode.

    Half of a surrogate pair becomes a question mark.
    """
    try:
        encoded = json.dumps(response, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        encoded = _encode(response)
        response = json.loads(encoded)
    if len(encoded) <= MAX_RESPONSE_BYTES:
        return response
    return _leave_out(
        (_text, _history_outputs, _history_prompt, *_STEPS),
        response,
        MAX_RESPONSE_BYTES,
        encoded_size,
        because="a response may have 6 MiB at most",
    )


def shrink(response: Response, max_bytes: int, size: Callable[[Response], int]) -> Response:
    """The response with `size(response) <= max_bytes`, where `size` counts what is sent."""
    return _leave_out(_STEPS, response, max_bytes, size, because="too large for this reply")


def shrink_for_store(
    response: Response, max_bytes: int, size: Callable[[Response], int]
) -> Response | None:
    """The response that is stored for a repeated request, with `size(response) <= max_bytes`.

    None if only the loss of a file that has no URL would make it small enough.
    """
    if size(response) <= max_bytes:
        return response
    stored = _without_report(response)
    if size(stored) <= max_bytes:
        return stored
    if all("url" in item for item in response["output"]):
        return shrink(stored, max_bytes, size)
    return None


def _leave_out(
    steps: Sequence[_Step],
    response: Response,
    max_bytes: int,
    size: Callable[[Response], int],
    *,
    because: str,
) -> Response:
    """Take one step after the other until the response is small enough."""
    for step in steps:
        if size(response) <= max_bytes:
            break
        smaller, what = step(response)
        if smaller != response:
            response = _with_warning(smaller, f"{what} left out: {because}")
    return response


def _text(response: Response) -> tuple[Response, str]:
    files = [_without(item, "text") for item in response["output"]]
    return {**response, "output": files}, "the text of the outputs is (read their files)"


def _history_outputs(response: Response) -> tuple[Response, str]:
    smaller = _with_history(response, lambda entry: {**entry, "outputs": {}})
    return smaller, "ComfyUI's outputs are"


def _history_prompt(response: Response) -> tuple[Response, str]:
    def without_workflow(entry: dict[str, Any]) -> dict[str, Any]:
        number, prompt_id, _, extra, targets = entry["prompt"][:5]
        return {**entry, "prompt": [number, prompt_id, {}, extra, targets]}

    return _with_history(response, without_workflow), "the workflow is"


def _contents(response: Response) -> tuple[Response, str]:
    files = [_without(item, "base64", "text") for item in response["output"]]
    what = "base64, text and ComfyUI's history are"
    return {**response, "comfyui_response": {}, "output": files}, what


def _urls(response: Response) -> tuple[Response, str]:
    files = [_without(item, "url", "url_expires_at") for item in response["output"]]
    what = "the files' URLs (a file's key in its bucket is the end of its local_path) are"
    return {**response, "output": files}, what


def _files(response: Response) -> tuple[Response, str]:
    what = f"the list of {len(response['output'])} files (below {response['id']}/) is"
    return {**response, "output": []}, what


_STEPS: tuple[_Step, ...] = (_contents, _urls, _files)


def _without_report(response: Response) -> Response:
    """The response without what ComfyUI reported, and without base64 and text of stored files."""
    details = response["comfyui_response"].get("execution_details")
    report = {"execution_details": {**details, "progress_updates": []}} if details else {}
    files = [
        _without(item, "base64", "text") if "url" in item else item for item in response["output"]
    ]
    smaller = {**response, "comfyui_response": report, "output": files}
    return _with_warning(smaller, _LEFT_OUT_OF_STORE)


def _with_history(
    response: Response, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> Response:
    """The response with every history entry changed."""
    report = {
        name: value if name == "execution_details" else change(value)
        for name, value in response["comfyui_response"].items()
    }
    return {**response, "comfyui_response": report}


def _with_warning(response: Response, warning: str) -> Response:
    return {**response, "warnings": [*response.get("warnings", []), warning]}


def _without(item: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in names}


def _encode(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
