"""Makes any response fit for its way back: at most 6 MiB, and nothing that UTF-8 cannot carry."""

import json
from typing import Any

from events.contract.response_size import smaller

# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
MAX_RESPONSE_BYTES = 6 * 1024 * 1024


def encoded_size(body: Any) -> int:
    """Bytes of the body as JSON, as awslambdaric writes it (not escaped to ASCII)."""
    return len(_encode(body))


def fit(body: dict[str, Any]) -> dict[str, Any]:
    """The body, with the least important parts left out (and a warning) until it is small enough.

    Text of outputs goes first, for their files have it; then ComfyUI's own outputs and prompt; then
    what any narrow way leaves out.
    """
    try:
        raw = json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raw = _encode(body)
        body = _decode(raw)
    if len(raw) <= MAX_RESPONSE_BYTES:
        return body
    body = _decode(raw)
    for leave_out in (_text_of_outputs, _history_outputs, _history_prompt):
        body.setdefault("warnings", []).append(
            f"{leave_out(body)} left out: a response may have 6 MiB at most"
        )
        if encoded_size(body) <= MAX_RESPONSE_BYTES:
            break
    return smaller(body, MAX_RESPONSE_BYTES, encoded_size)


def _text_of_outputs(body: dict[str, Any]) -> str:
    for item in body["output"]:
        item.pop("text", None)
    return "the text of the outputs is (read their files)"


def _history_outputs(body: dict[str, Any]) -> str:
    for entry in _entries(body):
        entry["outputs"] = {}
    return "ComfyUI's outputs are"


def _history_prompt(body: dict[str, Any]) -> str:
    for entry in _entries(body):
        number, prompt_id, _, extra, targets = entry["prompt"][:5]
        entry["prompt"] = [number, prompt_id, {}, extra, targets]
    return "the workflow is"


def _entries(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [e for name, e in body["comfyui_response"].items() if name != "execution_details"]


def _encode(body: Any) -> bytes:
    # Half of a surrogate pair becomes a question mark.
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def _decode(raw: bytes) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(raw)
    return decoded
