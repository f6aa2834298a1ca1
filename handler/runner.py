"""Runs one prompt on a ComfyUI that may be cold, die, stand still, or not let go in time.

Every such case becomes one of the errors that a caller can act on; see events/errors.py.
"""

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from events.errors import DeadlineExceeded, WorkerUnavailable
from handler.clock import Deadline, Timings
from handler.comfyui import SUBMIT_TIMEOUT_S, ComfyUI, ComfyUIStuck
from handler.comfyui_api import ComfyUIGone, ComfyUIMute, HistoryEntry
from handler.emit import emit
from handler.execution import Execution
from handler.job_events import JobQueued, WorkerReady, WorkerStarting
from handler.settings import Settings
from handler.worker_client import ReadyWorker, WorkerClient

_INTERRUPT_WAIT_S = 5.0
_INTERRUPT_POLL_S = 0.05


class _DiedBeforeOurJob(Exception):
    """ComfyUI died, and this job had not begun: it came just then, waited behind another one, or
    killed it."""


class Runner:
    """The connections of a handler process to its worker and to ComfyUI, kept between jobs."""

    def __init__(self, settings: Settings) -> None:
        self._worker = WorkerClient(settings)
        self._client: tuple[ReadyWorker, ComfyUI] | None = None

    def begin(self, models: Sequence[str], deadline: Deadline) -> bool:
        """Ask for a ready ComfyUI without waiting; True when it is ready now.

        Raises WorkerUnavailable.
        """
        try:
            is_ready = self._worker.begin_wake(models, deadline.work_left_s())
        except OSError as error:
            reason = error.strerror or "it stands still"
            raise WorkerUnavailable(f"the worker does not answer: {reason}") from error
        if not is_ready:
            emit(WorkerStarting())
        return is_ready

    def wait_ready(self, is_ready: bool, timings: Timings, deadline: Deadline) -> ReadyWorker:
        """The worker after `begin`. Raises WorkerUnavailable, and DeadlineExceeded."""
        began = time.monotonic()
        try:
            worker = self._worker.wait_ready(deadline.work_left_s())
        except TimeoutError:
            said = (
                "the invocation ran out of time while ComfyUI was starting; the job was not begun."
            )
            raise DeadlineExceeded(f"{said} {self._worker.last_lines()}", began=False) from None
        except OSError as error:
            raise WorkerUnavailable("the worker died while ComfyUI was starting") from error
        if not is_ready:
            waited_ms = round((time.monotonic() - began) * 1000, 1)
            timings.add("cold_start_ms", waited_ms)
            emit(WorkerReady(cold_start_ms=waited_ms))
        return worker

    def run(
        self,
        workflow: dict[str, Any],
        worker: ReadyWorker,
        execution: Execution,
        timings: Timings,
        deadline: Deadline,
    ) -> HistoryEntry:
        """Submit the workflow and follow it to its end; the history entry tells how it ended.

        Raises WorkflowRejected, WorkerUnavailable, DeadlineExceeded.
        """
        began = time.monotonic()
        try:
            # Twice at most: a job that kills ComfyUI in its first moment looks like this, too.
            for attempt in (1, 2):
                try:
                    self._submit(workflow, worker, execution, deadline)
                    return self._follow(worker, execution, deadline)
                except _DiedBeforeOurJob as died:
                    if attempt == 2:
                        raise WorkerUnavailable(
                            f"ComfyUI died before the job ran. {died}"
                        ) from died
                    worker = self.wait_ready(self.begin((), deadline), timings, deadline)
            raise AssertionError
        finally:
            ran_ms = (time.monotonic() - began) * 1000
            timings.add("queue_ms", execution.queue_ms)
            timings.add("generation_ms", ran_ms - execution.queue_ms)

    def free(self, worker: ReadyWorker) -> None:
        """Have ComfyUI unload its models before its next prompt. Raises OSError."""
        self._client_of(worker).free()

    def done(self) -> None:
        """End the job: the worker may let ComfyUI sleep."""
        self._worker.end_job()
        if self._client:
            self._client[1].rest()

    def close(self) -> None:
        """Give up the connections; a worker that was started for this process alone stops."""
        if self._client:
            self._client[1].close()
        self._worker.close()

    def _submit(
        self,
        workflow: dict[str, Any],
        worker: ReadyWorker,
        execution: Execution,
        deadline: Deadline,
    ) -> None:
        left_s = deadline.work_left_s()
        if left_s is not None and left_s <= 0:
            raise _deadline_exceeded(execution)
        self._worker.announce_prompt(execution.prompt_id)
        client = self._client_of(worker)
        try:
            client.submit(workflow, execution.prompt_id, left_s)
        except ComfyUIMute as error:
            # Another job's node keeps it from answering: as good as waiting in its queue.
            self._interrupt(client, execution, deadline)
            if left_s is None or left_s > SUBMIT_TIMEOUT_S:
                raise WorkerUnavailable(f"{error}. {self._worker.last_lines()}") from error
            raise _deadline_exceeded(execution) from None
        except ComfyUIGone as error:
            # It died since the last event, and the worker is about to replace it.
            raise _DiedBeforeOurJob(self._worker.death_reason(worker) or str(error)) from error
        emit(JobQueued(prompt_id=execution.prompt_id, nodes=len(workflow)))

    def _follow(
        self, worker: ReadyWorker, execution: Execution, deadline: Deadline
    ) -> HistoryEntry:
        client = self._client_of(worker)
        try:
            return client.follow(
                execution.prompt_id, execution.observe, deadline=deadline.work_until
            )
        except TimeoutError:
            self._interrupt(client, execution, deadline)
            raise _deadline_exceeded(execution) from None
        except ComfyUIStuck as error:
            lines = self._worker.last_lines()
            self._worker.restart()
            raise WorkerUnavailable(f"{error}; it is restarted. {lines}") from error
        except ComfyUIGone as error:
            if not (words := self._worker.death_reason(worker)):
                raise WorkerUnavailable(f"{error}. {self._worker.last_lines()}") from error
            if not execution.began:
                raise _DiedBeforeOurJob(words) from error
            raise WorkerUnavailable(f"ComfyUI died while the job ran. {words}") from error

    def _interrupt(self, client: ComfyUI, execution: Execution, deadline: Deadline) -> None:
        """Interrupt the job; a ComfyUI that does not let go of it is replaced.

        Unless the job has only waited: what keeps ComfyUI busy is another one's, with a deadline of
        its own, and this one is taken out of the queue once ComfyUI reads it.
        """
        left_s = deadline.answer_left_s()
        wait_s = _INTERRUPT_WAIT_S if left_s is None else min(_INTERRUPT_WAIT_S, left_s / 2)
        give_up = time.monotonic() + wait_s
        with contextlib.suppress(ComfyUIGone):
            client.interrupt(execution.prompt_id, wait_s / 2)
            while not client.is_over(execution.prompt_id, give_up - time.monotonic()):
                if time.monotonic() > give_up:
                    if execution.began or self._worker.is_ours_alone():
                        self._worker.restart()
                    return
                time.sleep(_INTERRUPT_POLL_S)

    def _client_of(self, worker: ReadyWorker) -> ComfyUI:
        if self._client is None or self._client[0] != worker:
            if self._client:
                self._client[1].close()
            self._client = (worker, ComfyUI(worker.base_url))
        return self._client[1]


def _deadline_exceeded(execution: Execution) -> DeadlineExceeded:
    if not execution.began:
        return DeadlineExceeded(
            "the invocation ran out of time while the job waited in ComfyUI's queue", began=False
        )
    at = execution.nodes_executed[-1] if execution.nodes_executed else "?"
    return DeadlineExceeded(
        f"the invocation ran out of time at node {at}; raise the function's timeout,"
        " or make the workflow smaller",
        began=True,
    )
