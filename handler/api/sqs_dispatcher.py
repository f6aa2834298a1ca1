"""Runs jobs through the queue of another function: the API of a function without a GPU."""

import asyncio
import time
from collections.abc import Callable

from events.event_context import Response
from handler.api.dispatcher import (
    Accepted,
    Unavailable,
)
from handler.api.envelope import envelope_of
from handler.api.job_board import JobBoard
from handler.api.without_worker import WithoutWorker
from handler.jobs.record import JobRecord

_POLL_S = 1.0
# For the answer itself.
_MARGIN_S = 2.0


class SqsDispatcher(WithoutWorker):
    """`send` puts a job into the queue. `time_left_s` is that of the invocation, set for each."""

    def __init__(self, board: JobBoard, send: Callable[[Accepted], None]) -> None:
        self._board, self._send = board, send
        self.time_left_s: Callable[[], float | None] = lambda: None

    async def run(self, accepted: Accepted) -> Response:
        """Queue the job, and wait for its end for as long as the invocation may."""
        left_s = self.time_left_s()
        until = time.monotonic() + (60.0 if left_s is None else left_s - _MARGIN_S)
        record = self._record(accepted)
        # A GPU is not started for a job that has its answer.
        if not record.status.is_final or record.has_open_webhook:
            self._send(accepted)
        while not record.status.is_final and time.monotonic() + _POLL_S <= until:
            await asyncio.sleep(_POLL_S)
            record = self._record(accepted)
        return envelope_of(record, self._board.now())

    def _record(self, accepted: Accepted) -> JobRecord:
        record = self._board.get(accepted.job.id)
        if record is None:
            raise Unavailable("the job is not on record any more")
        return record

    async def accept(self, accepted: Accepted) -> None:
        self._send(accepted)
