"""Whether the end of a job was requested: the pipeline asks at each of its waits.

The request is in the job's record; how it comes from there is decided in
handler/jobs/held_claim.py.
"""

from collections.abc import Callable

from events.errors import Cancelled

# How long a wait may go on before it asks again, in seconds.
CHECK_EVERY_S = 0.1


class Cancellation:
    """The answer to `is_requested`, which costs nothing to ask."""

    def __init__(self, is_requested: Callable[[], bool]) -> None:
        self.is_requested = is_requested

    def check(self, stage: str) -> None:
        """Raise Cancelled if the end of the job was requested; `stage` says what it does now."""
        if self.is_requested():
            raise Cancelled(f"the job was cancelled by a request, {stage}")


def no_cancellation() -> Cancellation:
    """That of a job which nobody can cancel."""
    return Cancellation(lambda: False)
