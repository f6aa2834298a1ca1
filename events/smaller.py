"""A response that must pass a narrower way than Lambda's own."""

from collections.abc import Callable
from typing import Any

LEFT_OUT = "base64, text and ComfyUI's history are left out: they are too large for this reply"


def smaller(response: dict[str, Any], max_bytes: int, size: Callable[[Any], int]) -> dict[str, Any]:
    """The response; without what `local_path` and `url` lead to as well, if it is too large."""
    if size(response) <= max_bytes:
        return response
    return {
        **response,
        "comfyui_response": {},
        "output": [
            {name: value for name, value in item.items() if name not in ("base64", "text")}
            for item in response["output"]
        ],
        "warnings": [*response.get("warnings", []), LEFT_OUT],
    }
