"""The time of a job: `timings` of the response, and the deadline of the invocation."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_MARGIN_SHARE = 0.2
_RETURN_S = 1.0
_RETURN_SHARE = 0.05
STAGES = (
    "queue_ms",
    "cold_start_ms",
    "preprocess_ms",
    "weights_ms",
    "generation_ms",
    "upload_ms",
    "postprocess_ms",
    "total_ms",
)


class Timings:
    """Milliseconds by stage; a stage that did not happen has 0."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._ms = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to the stage, also when it raises."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(name, (time.monotonic() - began) * 1000)

    def add(self, name: str, ms: float) -> None:
        self._ms[name] += ms

    def as_dict(self) -> dict[str, float]:
        """`timings` of the response; `total_ms` is the time since this object was made."""
        total = (time.monotonic() - self._began) * 1000
        return {name: round(ms, 1) for name, ms in {**self._ms, "total_ms": total}.items()}


class Deadline:
    """When the invocation must have answered, and when the work must stop for that.

    Both are times of `time.monotonic()`, None without a deadline. Managed Instances do not stop a
    late invocation, so the handler ends it itself:
    https://docs.aws.amazon.com/lambda/latest/dg/lambda-managed-instances-execution-environment.html
    """

    def __init__(self, context: Any, margin_s: float) -> None:
        self.answer_by: float | None = None
        self.work_until: float | None = None
        if hasattr(context, "get_remaining_time_in_millis"):
            left_s = context.get_remaining_time_in_millis() / 1000
            now = time.monotonic()
            # The rest is for returning the response.
            self.answer_by = now + left_s - min(_RETURN_S, left_s * _RETURN_SHARE)
            # At most a fifth of a short invocation is kept back.
            self.work_until = now + left_s - min(margin_s, left_s * _MARGIN_SHARE)

    def work_left_s(self) -> float | None:
        """Seconds until the work must stop; None without a deadline, below 0 after it."""
        return None if self.work_until is None else self.work_until - time.monotonic()

    def answer_left_s(self) -> float | None:
        """Seconds until the answer must be there; None without a deadline, below 0 after it."""
        return None if self.answer_by is None else self.answer_by - time.monotonic()
