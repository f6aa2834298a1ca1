"""What a source needs beside its event. handler/app.py makes it, the same for all sources."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

Response = dict[str, Any]


def never() -> bool:
    return False


def always() -> bool:
    return True


class Handle(Protocol):
    """Runs one request, valid or not, and returns the documented response. It never raises."""

    def __call__(self, request: Any, /, *, comes_again: Callable[[], bool] = never) -> Response:
        """Run the request.

        `comes_again` says whether the source delivers the request again after a retryable failure:
        such a failure is not the job's end. It is called only after one, because it may take a
        call to the source.
        """


AnswerHttp = Callable[[dict[str, Any], Handle], Response]


def _no_http(event: dict[str, Any], handle: Handle) -> Response:
    raise TypeError("an HTTP call needs a context with answer_http")


def _no_limit() -> float | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventContext:
    """How the requests of one event are run, and within which limits.

    - `handle` runs one request.
    - `answer_http` answers an HTTP call; it is not used for other events.
    - `time_left_s` returns the seconds until the invocation must answer; None without a limit.
    - `dead_letter_queue_url` is the variable DEAD_LETTER_QUEUE_URL; "" if it is not set.
    - `caller_hides_messages` is True if the invoker keeps the event's SQS messages hidden itself
      (events/sqs_visibility.py).
    - `is_last_delivery` says whether the event's source will not deliver it again, whatever happens
      to its jobs. A source that cannot know it says no.
    """

    handle: Handle
    answer_http: AnswerHttp = _no_http
    time_left_s: Callable[[], float | None] = _no_limit
    dead_letter_queue_url: str = ""
    caller_hides_messages: bool = False
    is_last_delivery: Callable[[], bool] = never
