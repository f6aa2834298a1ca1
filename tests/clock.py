"""A clock that stands until a test sets it, for what takes a clock."""


class Clock:
    """`now` in seconds."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
