"""An answer in JSON, also where a value has none.

A custom node can put NaN into ComfyUI's history, which JSON does not know: it becomes null, as in
the replies of AWS's runtime client. Half of a Unicode surrogate pair becomes a question mark.
"""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

_COMPACT = (",", ":")


def encode(content: Any) -> bytes:
    """The JSON text of any value that `json` can write."""
    try:
        return json.dumps(
            content, ensure_ascii=False, allow_nan=False, separators=_COMPACT
        ).encode()
    except ValueError:
        readable = json.loads(json.dumps(content), parse_constant=lambda _: None)
        text = json.dumps(readable, ensure_ascii=False, separators=_COMPACT)
        return text.encode("utf-8", "replace")


class JsonAnswer(JSONResponse):
    """Never fails for a value that `json` can write."""

    def render(self, content: Any) -> bytes:
        return encode(content)


def message(status: int, text: str, headers: Mapping[str, str] | None = None) -> JsonAnswer:
    """An answer that is no response of a job."""
    return JsonAnswer({"message": text}, status, headers)
