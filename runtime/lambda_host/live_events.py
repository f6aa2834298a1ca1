"""The events of jobs while they happen, from the log lines of the handlers, for many readers.

Every event of a job is one line of JSON (handler/job_events.py). The newest ones of each job are
kept, so that a reader that has lost its connection misses none.
"""

import json
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from handler.job_events import JobCancelled, JobCompleted, JobFailed, JobRepeated, decode

_KEPT_EVENTS = 200
_KEPT_JOBS = 2000
_ENDS = (JobCompleted, JobFailed, JobCancelled, JobRepeated)


@dataclass(frozen=True, slots=True)
class NumberedEvent:
    """`number` is greater than that of every event before it."""

    number: int
    name: str
    data: dict[str, Any]


@dataclass(slots=True)
class _Job:
    events: deque[NumberedEvent] = field(default_factory=lambda: deque(maxlen=_KEPT_EVENTS))
    listeners: list[Callable[[], object]] = field(default_factory=list)
    has_ended: bool = False


class LiveEvents:
    """`feed` gets every line of the handlers, in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        # Numbers of an earlier host are smaller.
        self._number = time.time_ns() // 1_000_000
        self.happened_at = time.monotonic()
        # Of all jobs that have ended; None while no event had one.
        self.cost: float | None = None

    def feed(self, line: str) -> None:
        """Take one line of output; most are no events."""
        if not line.startswith("{") or '"event"' not in line:
            return
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(entry, dict) or not isinstance(entry.get("request_id"), str):
            return
        if (event := decode(entry)) is None:
            return
        request_id = entry["request_id"]
        with self._lock:
            self.happened_at = time.monotonic()
            job = self._job(request_id)
            self._number += 1
            data = dict(vars(event))
            # The operator's, not the caller's.
            if (cost := data.pop("cost", None)) is not None:
                self.cost = (self.cost or 0.0) + cost
            job.events.append(NumberedEvent(self._number, event.name, data))
            job.has_ended = isinstance(event, _ENDS)
            listeners = tuple(job.listeners)
        for notify in listeners:
            notify()

    def after(self, request_id: str, number: int) -> tuple[list[NumberedEvent], bool]:
        """The events of a job after that one, and whether the job has ended."""
        with self._lock:
            job = self._jobs.get(request_id)
            if job is None:
                return [], False
            return [event for event in job.events if event.number > number], job.has_ended

    def listen(self, request_id: str, notify: Callable[[], object]) -> None:
        """Call `notify`, in any thread, after each event of the job."""
        with self._lock:
            self._job(request_id).listeners.append(notify)

    def unlisten(self, request_id: str, notify: Callable[[], object]) -> None:
        with self._lock:
            if job := self._jobs.get(request_id):
                job.listeners.remove(notify)

    def _job(self, request_id: str) -> _Job:
        job = self._jobs.setdefault(request_id, _Job())
        self._jobs.move_to_end(request_id)
        while len(self._jobs) > _KEPT_JOBS:
            oldest = next((key for key, one in self._jobs.items() if not one.listeners), None)
            if oldest is None or oldest == request_id:
                break
            del self._jobs[oldest]
        return job
