"""Passes each event of a job to every subscriber. What the events are: job_events.py."""

from collections.abc import Callable

from handler.job_events import JobEvent
from handler.log import write_event

# In this order, in the thread that emits. A subscriber must not raise.
SUBSCRIBERS: tuple[Callable[[JobEvent], None], ...] = (write_event,)


def emit(event: JobEvent) -> None:
    """Pass the event to every subscriber."""
    for subscriber in SUBSCRIBERS:
        subscriber(event)
