"""Calls the webhook while a job goes on, where its request asks for that (`webhook.events`).

These calls are hints: each is tried once, a slow receiver misses some, and none delays the job.
The call about the end of a job is made by job_webhook.py.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from events.job import ENDS
from handler.job_events import JobEvent, NodeProgress, NodeStarted
from handler.jobs.record import Progress
from handler.log import write_event
from handler.recorded_progress import progress_after
from handler.unfinished_response import unfinished_response

PROGRESS_EVERY_S = 5.0
# The final call waits that long for one that is under way, so that they arrive in order.
_LAST_WITHIN_S = 2.0
_MAX_WAITING = 4


class ProgressCalls:
    """Subscribes to the events of one job.

    `call` delivers one body, passes the event of that on, and must not raise. `wanted` are the
    names in `webhook.events`; `items` returns the items of `output` by now.
    """

    def __init__(
        self,
        request_id: str,
        wanted: tuple[str, ...],
        call: Callable[[dict[str, Any], Callable[[JobEvent], None]], object],
        items: Callable[[], list[dict[str, Any]]],
    ) -> None:
        self._request_id, self._wanted = request_id, frozenset(wanted) - ENDS
        self._call, self._items = call, items
        self._began = time.monotonic()
        self._called_at = self._began
        self._progress = Progress()
        self._has_begun, self._is_over = False, False
        self._bodies: queue.Queue[dict[str, Any] | None] = queue.Queue(_MAX_WAITING)
        self._thread = threading.Thread(target=self._work, name="webhook-progress", daemon=True)

    def __enter__(self) -> "ProgressCalls":
        if self._wanted:
            self._thread.start()
            self._put("queued", "queued")
        return self

    def __exit__(self, *_: object) -> None:
        if self._wanted:
            # What still waits is outdated.
            while not self._bodies.empty():
                self._bodies.get_nowait()
            self._bodies.put(None)
            self._thread.join(_LAST_WITHIN_S)
            self._is_over = True

    def note(self, event: JobEvent) -> None:
        """Never raises, never waits."""
        if not self._wanted:
            return
        self._progress = progress_after(self._progress, event)
        if not isinstance(event, NodeStarted | NodeProgress):
            return
        if not self._has_begun:
            self._has_begun = True
            self._put("processing", "processing")
        elif time.monotonic() - self._called_at >= PROGRESS_EVERY_S:
            self._put("progress", "generating")

    def _put(self, name: str, status: str) -> None:
        if name not in self._wanted:
            return
        self._called_at = time.monotonic()
        total_ms = (time.monotonic() - self._began) * 1000
        body = unfinished_response(
            self._request_id,
            status,
            output=self._items(),
            timings={"total_ms": round(total_ms, 1)},
            progress=self._progress,
        )
        try:
            self._bodies.put_nowait(body)
        except queue.Full:
            # The receiver is slow.
            return

    def _work(self) -> None:
        while (body := self._bodies.get()) is not None:
            self._call(body, self._report)

    def _report(self, event: JobEvent) -> None:
        """Log how a call went; not for the subscribers, who belong to the thread of the job.

        The log lines of this process may be those of another job when a late call ends.
        """
        if not self._is_over:
            write_event(event)
