"""Requests that arrive as text: the body of a message, the content of an object."""

import json
from typing import Any


def json_or_text(text: Any) -> Any:
    """The JSON value in a text. A text that is not JSON is returned unchanged.

    The contract then refuses it with a message that says what it found.
    """
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return text
