"""How long nobody has needed a worker, and how deep it is to sleep for that."""

import time

from handler.settings import Settings
from handler.worker_protocol import Depth


class Idle:
    """Counts jobs, and the seconds without one. Its owner's lock guards it."""

    def __init__(self, settings: Settings) -> None:
        self.jobs = 0
        self.told = Depth.AWAKE
        self._since = time.monotonic()
        self._limits_s = {
            Depth.FREE: settings.idle_free_after_s,
            Depth.STOP: settings.idle_stop_after_s,
            Depth.EXIT: settings.idle_exit_after_s,
        }

    def begin_job(self) -> None:
        self.jobs += 1
        self.told = Depth.AWAKE

    def end_job(self) -> None:
        self.jobs -= 1
        self.restart()

    def restart(self) -> None:
        """Count the seconds from now on."""
        self._since = time.monotonic()

    def depth(self) -> Depth:
        """How deep the worker is to sleep: for its idle time, or because it was told to."""
        seconds = self._seconds()
        due = [
            depth
            for depth, limit in self._limits_s.items()
            if limit is not None and limit <= seconds
        ]
        return max([self.told, *due])

    def until_exit_s(self) -> float | None:
        """Seconds until nothing may stay; None if that cannot come by itself."""
        limit = self._limits_s[Depth.EXIT]
        if limit is None or self.jobs:
            return None
        return max(limit - self._seconds(), 0.0)

    def reason(self) -> str:
        """Why the worker sleeps, for the log."""
        return "told to sleep" if self.told else f"idle for {self._seconds():.0f} s"

    def _seconds(self) -> float:
        return 0.0 if self.jobs else time.monotonic() - self._since
