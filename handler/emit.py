"""Passes each event of a job to every subscriber. What the events are: job_events.py."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from handler.job_events import JobEvent
from handler.log import write_event

Subscriber = Callable[[JobEvent], None]

# In this order, in the thread that emits. A subscriber must not raise.
_subscribers: tuple[Subscriber, ...] = (write_event,)


def emit(event: JobEvent) -> None:
    """Pass the event to every subscriber."""
    for subscriber in _subscribers:
        subscriber(event)


@contextmanager
def subscribed(subscriber: Subscriber) -> Iterator[None]:
    """Pass events to this subscriber, too: those of the one job that this process runs now."""
    global _subscribers  # noqa: PLW0603 - a process runs one job at a time
    before = _subscribers
    _subscribers = (*before, subscriber)
    try:
        yield
    finally:
        _subscribers = before
