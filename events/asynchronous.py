"""What Lambda's asynchronous sources share: nobody waits for the reply, a raised error is retried.

https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-error-handling.html
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Handle = Callable[[Any], dict[str, Any]]


class TryAgain(Exception):
    """Lambda repeats the event, and gives it to the on-failure destination in the end.

    Of a batch of SQS, the message that holds the request goes back to its queue instead.
    `error_types` are those of the jobs that failed.
    """

    def __init__(self, message: str, error_types: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.error_types = error_types


def run(requests: Iterable[Any], handle: Handle) -> dict[str, Any]:
    """Run every request; the reply, which goes to the on-success destination if there is one.

    Raises TryAgain, after all of them, if another try may help one. What failed for good is
    answered: two more tries would fail as well.
    """
    responses = [handle(request) for request in requests]
    failures = [response["error"] for response in responses if response.get("error")]
    if again := [error for error in failures if error["retryable"]]:
        said = "; ".join(f"{error['type']}: {error['message']}" for error in again)
        raise TryAgain(said, [error["type"] for error in again])
    return {"responses": responses}
