"""Which source an event came from: the first one that recognizes it, else `direct`.

docs/extending.md shows how to add a source.
"""

from typing import Any, Protocol

from events import direct, eventbridge, http, s3, sns, sqs, stepfunctions
from events.event_context import EventContext, Response


class Source(Protocol):
    """A module that knows one source: the shape of its events, and the reply that it expects."""

    __name__: str

    def matches(self, event: Any) -> bool:
        """Whether the event came from this source. It changes nothing and never raises."""
        ...

    def process(self, event: Any, context: EventContext) -> Response:
        """Give each request in the event to `context.handle`, and return the source's reply.

        Raises only where that is how the source learns of a failure (TryAgain, NotTold).
        """
        ...


# At most one of the others recognizes an event; `direct` recognizes every event.
SOURCES: tuple[Source, ...] = (sqs, sns, s3, eventbridge, http, stepfunctions, direct)


def recognize(event: Any) -> Source:
    """The source that an event, any JSON value, came from."""
    return next(source for source in SOURCES if source.matches(event))


def name_of(source: Source) -> str:
    """`sqs`, `s3`, …: the module's name, which the log calls `source`."""
    return source.__name__.rpartition(".")[2]
