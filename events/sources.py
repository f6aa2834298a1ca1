"""Which source an event came from: the first that recognises it; a direct invocation otherwise."""

from collections.abc import Callable
from typing import Any, Protocol

from events import direct, eventbridge, http, s3, sns, sqs, stepfunctions


class Source(Protocol):
    """A module that knows one source: how its events look, and how its reply must look."""

    __name__: str

    def matches(self, event: Any) -> bool:
        """Whether the event came from this source; looks only, never raises."""
        ...

    def process(self, event: Any, handle: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Give each request in the event to `handle`, and return the source's own reply."""
        ...


# No event is recognised by two of them but by `direct`, which takes what the others leave.
SOURCES: tuple[Source, ...] = (sqs, sns, s3, eventbridge, http, stepfunctions, direct)


def recognise(event: Any) -> Source:
    return next(source for source in SOURCES if source.matches(event))


def name_of(source: Source) -> str:
    return source.__name__.rpartition(".")[2]
