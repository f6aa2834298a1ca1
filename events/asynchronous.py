"""Sources that invoke the function asynchronously: SNS, S3 and EventBridge.

Their reply reaches only an on-success destination. If the function raises, Lambda repeats the
event: https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-error-handling.html
"""

from collections.abc import Iterable, Sequence
from typing import Any

from events.errors import JobError, class_of
from events.event_context import EventContext, Response


class TryAgain(Exception):
    """Another delivery of the event may succeed.

    Lambda repeats the event, and sends it to the on-failure destination after the last try. If the
    event came in an SQS message, that message goes back to its queue. `errors` are the classes of
    the jobs' errors; empty if no job was run. `retry_after_s` is the longest `retry_after_s` of
    these errors, 0 if none of them has one.
    """

    def __init__(
        self, message: str, errors: Sequence[type[JobError]] = (), retry_after_s: int = 0
    ) -> None:
        super().__init__(message)
        self.errors, self.retry_after_s = tuple(errors), retry_after_s


def try_again_after(errors: Sequence[dict[str, Any]]) -> TryAgain:
    """The TryAgain for the `error` of one or more responses."""
    return TryAgain(
        "; ".join(f"{error['type']}: {error['message']}" for error in errors),
        [class_of(error) for error in errors],
        max(error.get("retry_after_s", 0) for error in errors),
    )


def run(requests: Iterable[Any], context: EventContext) -> Response:
    """Run every request, and return `{"responses": [...]}`.

    Raises TryAgain, after the last request, if any of them failed retryably. Failures that are not
    retryable are in the reply: a repeat would fail as well.
    """
    responses = [
        context.handle(request, comes_again=lambda: not context.is_last_delivery())
        for request in requests
    ]
    errors = [response["error"] for response in responses if response.get("error")]
    if retryable := [error for error in errors if error["retryable"]]:
        raise try_again_after(retryable)
    return {"responses": responses}
