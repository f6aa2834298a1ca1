"""How fast a file and its connections are: which of them are too slow to wait for."""

import statistics
from collections.abc import Collection

from runtime.models.patience import Patience
from runtime.models.ranges import RangeRun

# A connection this much slower than the others is left; the next one may get another server.
_SLOWER = 10
_LEAST_COMPARED = 3


class SpeedWatch:
    """The rates of one file, measured over windows of `Patience.window_s`."""

    def __init__(self, patience: Patience) -> None:
        self._window_s = patience.window_s
        self._usual: float | None = None
        self._began: float | None = None
        self._bytes_before = 0

    def slow_runs(self, runs: Collection[RangeRun], now: float) -> list[RangeRun]:
        """Connections whose last window was much slower than is usual for this file."""
        rates = {run: run.rate(now, self._window_s) for run in runs}
        known = [rate for rate in rates.values() if rate is not None]
        if len(known) >= _LEAST_COMPARED:
            self._usual = statistics.median(known)
        if self._usual is None:
            return []
        limit = self._usual / _SLOWER
        return [run for run, rate in rates.items() if rate is not None and rate < limit]

    def rate(self, now: float, received_bytes: int, *, is_running: bool) -> float | None:
        """Bytes a second of the whole file in the window that ends now, None before it ends."""
        if not is_running or self._began is None:
            self._began, self._bytes_before = (now if is_running else None), received_bytes
            return None
        seconds = now - self._began
        if seconds < self._window_s:
            return None
        rate = (received_bytes - self._bytes_before) / seconds
        self._began, self._bytes_before = now, received_bytes
        return rate
