"""An answer in JSON, also where a value has none.

A custom node can put NaN into ComfyUI's history, which JSON does not know: it becomes null, as in
the replies of AWS's runtime client. Half of a Unicode surrogate pair becomes a question mark.
"""

import json
from typing import Any

from starlette.responses import JSONResponse


class JsonAnswer(JSONResponse):
    """Never fails for a value that `json` can write."""

    def render(self, content: Any) -> bytes:
        try:
            return super().render(content)
        except ValueError:
            readable = json.loads(json.dumps(content), parse_constant=lambda _: None)
            return json.dumps(readable, ensure_ascii=False).encode("utf-8", "replace")
