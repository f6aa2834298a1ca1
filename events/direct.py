"""A direct invocation: the event is the request itself, the reply is the response itself.

It is also where every event ends up that no other source recognises; the contract refuses those.
"""

from collections.abc import Callable
from typing import Any


def matches(event: Any) -> bool:
    return True


def process(event: Any, handle: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    return handle(event)
