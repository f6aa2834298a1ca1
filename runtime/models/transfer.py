"""The bytes of one file from one opened source: which ranges are read now, and which are next.

The threads of a Downloader read the ranges. The state is guarded by `changed`, the lock of all
downloads; `fetch` takes it by itself, the other methods are called with it held.
"""

import threading
import time

from runtime.models.errors import DownloadError, TooSlowError
from runtime.models.foreign_errors import defects
from runtime.models.http_connection import HttpConnection
from runtime.models.part_file import PartFile
from runtime.models.patience import Patience, Retries
from runtime.models.range_request import receive_range
from runtime.models.ranges import FreeRanges, RangeRun
from runtime.models.sources import Remote, shown
from runtime.models.speed import SpeedWatch


class Transfer:
    """Ends when all bytes are there, or with `error`: then `part` waits for no more bytes."""

    def __init__(
        self, remote: Remote, part: PartFile, patience: Patience, changed: threading.Condition
    ) -> None:
        self.error: DownloadError | None = None
        self._remote, self._part = remote, part
        self._patience, self._changed = patience, changed
        self._free = FreeRanges(part.missing())
        self._runs: set[RangeRun] = set()
        self._retries = Retries(patience)
        self._speed = SpeedWatch(patience)
        self._received_bytes = 0

    @property
    def has_free_ranges(self) -> bool:
        return bool(self._free) and self.error is None

    @property
    def is_running(self) -> bool:
        return bool(self._runs)

    @property
    def not_before(self) -> float:
        """The time.monotonic() before which no range is to be asked for."""
        return self._retries.not_before

    def take(self, now: float, connection: HttpConnection, connections: int) -> RangeRun | None:
        """The next range, if there is one now. `connections` is how many there are in all."""
        if not self.has_free_ranges or now < self._retries.not_before:
            return None
        start, end = (
            self._free.take(connections) if self._remote.has_ranges else self._free.take_all()
        )
        run = RangeRun(start, end, connection)
        self._runs.add(run)
        return run

    def fetch(self, run: RangeRun) -> None:
        """Read a range of `take`."""
        error: DownloadError | None = None
        done_before = self._part.done_bytes
        try:
            with defects(shown(self._remote.source)):
                receive_range(run, self._remote, self._part)
        except DownloadError as failure:
            error = failure
        with self._changed:
            self._runs.discard(run)
            self._received_bytes += run.received_bytes
            if run.position < run.end:
                self._free.give_back(run.position, run.end)
            is_new = self._remote.has_ranges and run.received_bytes > 0
            if is_new or self._part.done_bytes > done_before:
                self._retries.progressed()
            if error and not run.must_stop:
                self._note_failure(error)
            self._changed.notify_all()

    def fail(self, error: DownloadError) -> None:
        """End all ranges. The first error counts."""
        self.error = self.error or error
        self._part.end()
        for run in self._runs:
            run.stop()
        self._changed.notify_all()

    def yield_connections(self) -> None:
        """Let the ranges under way end at the next block: another file needs the line."""
        if self._remote.has_ranges:
            for run in self._runs:
                run.must_stop = True

    def check_speed(self, now: float, *, is_first: bool) -> None:
        """Leave connections that are much slower than the others, and a source that is too slow.

        How fast a file is that does not come first depends on the others.
        """
        for run in self._speed.slow_runs(self._runs, now):
            run.stop()
        received = self._received_bytes + sum(run.received_bytes for run in self._runs)
        rate = self._speed.rate(now, received, is_running=is_first and self.is_running)
        if rate is not None and rate < self._patience.least_bytes_per_s:
            self.fail(
                TooSlowError(
                    f"{shown(self._remote.source)}: {rate / 1000:.1f} KB a second over"
                    f" {self._patience.window_s:.0f} s, which is too slow to wait for"
                )
            )

    def _note_failure(self, error: DownloadError) -> None:
        """Of one range: try again after a pause, or give the source up."""
        now = time.monotonic()
        if not error.may_pass or not self._retries.may_retry(now, error.retry_after_s):
            self.fail(error)
