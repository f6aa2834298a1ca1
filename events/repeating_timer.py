"""Says again and again that something goes on, for as long as it does."""

import threading
from collections.abc import Callable

_STOP_WITHIN_S = 5.0


class RepeatingTimer:
    """Calls `beat` every `every_s` seconds in a thread of its own, from `start` to `stop`;
    for the first time after `first_after_s`, if that is given.

    It ends by itself when `beat` returns False. `beat` must not raise.
    """

    def __init__(
        self, every_s: float, beat: Callable[[], bool], first_after_s: float | None = None
    ) -> None:
        self._every_s, self._beat = every_s, beat
        self._first_after_s = every_s if first_after_s is None else first_after_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, wait_s: float | None = None) -> None:
        """Returns when no beat is under way any more, or after `wait_s` seconds."""
        self._is_over.set()
        self._thread.join(wait_s)

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self.stop(_STOP_WITHIN_S)

    def _run(self) -> None:
        pause_s = self._first_after_s
        while not self._is_over.wait(pause_s) and self._beat():
            pause_s = self._every_s
