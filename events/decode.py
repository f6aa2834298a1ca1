"""Requests that come as text."""

import json
from typing import Any


def request_of(text: Any) -> Any:
    """The request in a text; one that is not JSON stays text and is refused as such."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return text
