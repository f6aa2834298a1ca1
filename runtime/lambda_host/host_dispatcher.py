"""Runs the jobs of the HTTP API on this host: at once, or through its queue of events."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

from events.errors import WorkerUnavailable
from events.event_context import Response
from handler.api.dispatcher import (
    Accepted,
    Health,
    LiveEvent,
    QueueFull,
    WorkerReport,
    pool_report,
)
from handler.api.job_board import JobBoard
from handler.jobs.record import Status
from handler.jobs.store import JobQuery
from handler.response import JobResult, build_response
from handler.worker_connection import WorkerConnection
from handler.worker_protocol import GetState, ProtocolError, State, WorkerStatus
from handler.worker_protocol import Status as StatusMessage
from runtime.lambda_host.async_invocations import AsyncInvocations
from runtime.lambda_host.host import HostBusyError, LambdaHost
from runtime.lambda_host.invocations import Invocation
from runtime.lambda_host.live_events import LiveEvents

# Proxies close a connection that is silent for a minute, and some for half a minute.
_COMMENT_EVERY_S = 15.0
_USUAL_RUN_S = 10.0
# More than an id has; a client may send any header.
_ID_DIGITS = 20
_WORKER_ANSWERS_WITHIN_S = 2.0
_HOST_ENDED = "the host ended before the job did; send the request again"
# No node of a job is that long without any sign; the largest samplers report each step.
_STUCK_AFTER_S = 1800.0


class HostDispatcher:
    """`limit` jobs wait for their response at most; `worker_sockets` are those of the workers."""

    can_stream = True

    def __init__(
        self,
        host: LambdaHost,
        events: AsyncInvocations,
        live: LiveEvents,
        board: JobBoard,
        *,
        timeout_s: float,
        limit: int,
        worker_sockets: Sequence[Path],
    ) -> None:
        self._host, self._events, self._live, self._board = host, events, live, board
        self._timeout_s, self._limit, self._worker_sockets = timeout_s, limit, worker_sockets
        # Each waits for one job. They are not anyio's, of which there are 40.
        self._threads = ThreadPoolExecutor(limit + host.concurrency + 1, "sync-job")

    async def run(self, accepted: Accepted) -> Response:
        invocation = Invocation(accepted.body, self._timeout_s)
        loop = asyncio.get_running_loop()
        try:
            result = await loop.run_in_executor(
                self._threads, partial(self._host.run, invocation, limit=self._limit)
            )
        except HostBusyError as error:
            retry_after_s = await asyncio.to_thread(self._retry_after_s, self._limit)
            raise QueueFull(str(error), retry_after_s) from error
        if result.function_error is None:
            response: Response = json.loads(result.payload)
            return response
        reason = json.loads(result.payload).get("errorMessage") or result.function_error
        failure = WorkerUnavailable(f"the handler ended before the job did: {reason}")
        # A handler that was stopped has put its job back: nothing else runs it.
        await asyncio.to_thread(self._board.abandon, accepted.job.id, str(failure))
        return build_response(JobResult(accepted.job.caller, error=failure))

    async def accept(self, accepted: Accepted) -> None:
        is_accepted = await asyncio.to_thread(
            self._events.accept, accepted.body, accepted.job.id, is_job=True
        )
        if not is_accepted:
            waiting = self._events.waiting()
            text = f"{waiting} jobs wait already, or the host is stopping"
            raise QueueFull(text, await asyncio.to_thread(self._retry_after_s, waiting))

    async def events(self, request_id: str, after: str) -> AsyncIterator[LiveEvent | None]:
        number = int(after) if after.isdecimal() and len(after) <= _ID_DIGITS else 0
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        notify: Callable[[], object] = partial(loop.call_soon_threadsafe, changed.set)
        self._live.listen(request_id, notify)
        try:
            # It may have ended before anybody listened, or elsewhere.
            has_ended = await self._has_ended(request_id)
            while True:
                changed.clear()
                events, is_over = self._live.after(request_id, number)
                for event in events:
                    number = event.number
                    yield LiveEvent(str(number), event.name, event.data)
                if has_ended or (is_over and await self._has_ended(request_id)):
                    return
                try:
                    await asyncio.wait_for(changed.wait(), _COMMENT_EVERY_S if not is_over else 1.0)
                except TimeoutError:
                    has_ended = await self._has_ended(request_id)
                    if not is_over and not has_ended:
                        yield None
        finally:
            self._live.unlisten(request_id, notify)

    def queue_position(self, request_id: str) -> int | None:
        return self._events.position(request_id)

    def waiting(self) -> int | None:
        return self._events.waiting()

    def cost(self) -> float | None:
        return self._live.cost

    async def worker(self) -> WorkerReport | None:
        return pool_report([_report(status) for status in await self._worker_statuses()])

    async def health(self) -> Health:
        if self._host.is_closed:
            return Health(is_healthy=True, is_ready=False, reason="the host is stopping")
        report = pool_report([_report(status) for status in await self._worker_statuses()])
        failed_nodes = tuple(node.name for node in report.failed_nodes)
        if report.state is State.FAILED:
            return Health(False, False, f"the worker has failed: {report.failure}", failed_nodes)
        silent_s = time.monotonic() - self._live.happened_at
        if report.jobs and silent_s > _STUCK_AFTER_S:
            reason = f"a job runs, and nothing happened for {silent_s:.0f} s"
            return Health(False, False, reason, failed_nodes)
        return Health(is_healthy=True, is_ready=True, failed_nodes=failed_nodes)

    def worker_report(self) -> WorkerReport:
        """The same as `worker`, for a caller without an event loop."""
        return pool_report([_report(_worker_status(socket)) for socket in self._worker_sockets])

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def end_abandoned(self, status: Status) -> None:
        """End the jobs with this status that only a host which has ended would have run."""
        cursor = ""
        while True:
            query = JobQuery(statuses=frozenset({status}), source="http", cursor=cursor)
            page = self._board.list(query)
            for record in page.records:
                if self._events.position(record.request_id) is None:
                    self._board.abandon(record.request_id, _HOST_ENDED)
            if not (cursor := page.cursor):
                return

    async def _has_ended(self, request_id: str) -> bool:
        record = await asyncio.to_thread(self._board.get, request_id)
        return record is None or record.status.is_final

    def _retry_after_s(self, waiting: int) -> float:
        usual_s = self._board.usual_run_s() or _USUAL_RUN_S
        return min(usual_s * max(waiting, 1) / self._host.concurrency / 2, 600.0)

    async def _worker_statuses(self) -> Sequence[WorkerStatus | None]:
        asked = (asyncio.to_thread(_worker_status, socket) for socket in self._worker_sockets)
        return await asyncio.gather(*asked)


def _worker_status(socket: Path) -> WorkerStatus | None:
    """What the worker says; None if none answers."""
    try:
        connection = WorkerConnection(socket, _WORKER_ANSWERS_WITHIN_S)
        with closing(connection):
            request = GetState(id=1)
            connection.send(request, _WORKER_ANSWERS_WITHIN_S)
            answer = connection.receive(request.id, _WORKER_ANSWERS_WITHIN_S)
    except (OSError, ProtocolError):
        return None
    return answer.worker if isinstance(answer, StatusMessage) else None


def _report(status: WorkerStatus | None) -> WorkerReport:
    if status is None:
        return WorkerReport(state=State.STOPPED)
    return WorkerReport(
        state=status.state,
        starts=status.starts,
        jobs=status.jobs,
        cold_start_ms=status.cold_start_ms,
        failure=status.failure,
        running_since=status.running_since,
        score=status.score,
        benchmark=status.benchmark,
        device=status.device,
        failed_nodes=status.failed_nodes,
    )
