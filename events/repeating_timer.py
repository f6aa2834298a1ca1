"""Calls a function at regular intervals while something goes on: a heartbeat."""

import threading
from collections.abc import Callable

_STOP_WITHIN_S = 5.0


class RepeatingTimer:
    """Calls `action` every `every_s` seconds in a thread of its own, between `start` and `stop`.

    The first call is after `first_after_s` seconds (default: `every_s`). The timer ends early when
    `action` returns False. `action` must not raise.
    """

    def __init__(
        self, every_s: float, action: Callable[[], bool], first_after_s: float | None = None
    ) -> None:
        self._every_s, self._action = every_s, action
        self._first_after_s = every_s if first_after_s is None else first_after_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="repeating-timer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, wait_s: float | None = None) -> None:
        """Make no further call. Waits until a running call has ended, `wait_s` seconds at most."""
        self._is_over.set()
        self._thread.join(wait_s)

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self.stop(_STOP_WITHIN_S)

    def _run(self) -> None:
        pause_s = self._first_after_s
        while not self._is_over.wait(pause_s) and self._action():
            pause_s = self._every_s
