"""What a source needs beside its event. handler/app.py makes it, the same for all sources."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Response = dict[str, Any]
Handle = Callable[[Any], Response]


def _no_limit() -> float | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventContext:
    """How the requests of one event are run, and within which limits.

    - `handle` runs one request, valid or not, and returns the documented response. It never raises.
    - `time_left_s` returns the seconds until the invocation must answer; None without a limit.
    - `dead_letter_queue_url` is the variable DEAD_LETTER_QUEUE_URL; "" if it is not set.
    - `caller_hides_messages` is True if the invoker keeps the event's SQS messages hidden itself
      (events/sqs_visibility.py).
    """

    handle: Handle
    time_left_s: Callable[[], float | None] = _no_limit
    dead_letter_queue_url: str = ""
    caller_hides_messages: bool = False
