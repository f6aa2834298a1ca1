"""Counts the jobs of a worker and the seconds without one: how deep the worker is to sleep.

What each depth means is in handler/worker_protocol.py; runtime/worker/supervisor.py does it.
"""

import math
import time

from handler.settings import Settings
from handler.worker_protocol import Depth


class Idle:
    """The jobs that run, and how long there has been none. The lock of its owner guards it."""

    def __init__(self, settings: Settings) -> None:
        self.jobs = 0
        self.requested_depth = Depth.AWAKE
        self.models_are_unloaded = False
        self._since = time.monotonic()
        self._limits_s = {
            Depth.FREE: settings.idle_free_after_s,
            Depth.STOP: settings.idle_stop_after_s,
            Depth.EXIT: settings.idle_exit_after_s,
        }

    def begin_job(self) -> None:
        self.jobs += 1
        self.requested_depth = Depth.AWAKE
        self.models_are_unloaded = False

    def end_job(self) -> None:
        self.jobs -= 1
        self.restart()

    def restart(self) -> None:
        """Count the idle seconds from now on."""
        self._since = time.monotonic()
        self.models_are_unloaded = False

    def depth(self) -> Depth:
        """How deep the worker is to sleep now: as requested, or deeper for its idle time."""
        idle_s = self.idle_s()
        due = [
            depth
            for depth, limit_s in self._limits_s.items()
            if limit_s is not None and limit_s <= idle_s
        ]
        return max([self.requested_depth, *due])

    def until_next_limit_s(self) -> float:
        """Seconds until `depth` may change by itself; infinite while a job runs."""
        if self.jobs:
            return math.inf
        idle_s = self.idle_s()
        limits = [limit_s for limit_s in self._limits_s.values() if limit_s is not None]
        return min((limit_s - idle_s for limit_s in limits if limit_s > idle_s), default=math.inf)

    def reason(self) -> str:
        """Why the worker sleeps, for the log."""
        return "sleep was requested" if self.requested_depth else f"idle for {self.idle_s():.0f} s"

    def idle_s(self) -> float:
        """Seconds since the last job; 0 while one runs."""
        return 0.0 if self.jobs else time.monotonic() - self._since
