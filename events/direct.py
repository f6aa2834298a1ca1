"""A direct invocation: the event is one request, and the reply is its response.

Events that no other source recognizes come here, too; the contract refuses them.
"""

from typing import Any

from events.event_context import EventContext, Response


def matches(event: Any) -> bool:
    return True


def process(event: Any, context: EventContext) -> Response:
    return context.handle(event)
