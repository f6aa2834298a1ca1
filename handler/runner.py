"""Runs prompts on a ComfyUI that may be cold, die, hang, or ignore an interrupt.

Every such case becomes one of the errors that a caller can act on; see events/errors.py. What the
worker is asked is decided in worker_client.py, what ComfyUI is asked in comfyui.py.
"""

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from events.errors import Cancelled, DeadlineExceeded, ModelUnavailable, WorkerUnavailable
from handler.cancellation import Cancellation
from handler.clock import Deadline, Timings
from handler.comfyui import SUBMIT_TIMEOUT_S, ComfyUI, ComfyUIStuck, Place
from handler.comfyui_api import ComfyUIGone, ComfyUITimeout, HistoryEntry
from handler.connections import Connections
from handler.emit import emit
from handler.execution import Execution
from handler.input_files import LoadableFiles, check_files
from handler.job_events import JobQueued, WorkerReady, WorkerStarting
from handler.node_failure import failure_in
from handler.worker_client import ReadyWorker, WorkerClient
from handler.worker_protocol import ModelUrl
from handler.workflow import unneeded_nodes

_INTERRUPT_WAIT_S = 5.0
_INTERRUPT_POLL_S = 0.05
_INTERRUPT_EVERY_S = 0.5
_MAX_SUBMISSIONS = 5


class JobDied(Exception):
    """ComfyUI ended by itself while it ran this job. The text is why, with its last log lines."""


class _DiedBeforeJobBegan(Exception):
    """ComfyUI died before this job began: the job had just come, or waited behind another one."""


class Wake:
    """A worker that was asked for a ready ComfyUI when this object was made."""

    def __init__(
        self,
        worker: WorkerClient,
        models: Sequence[str],
        timings: Timings,
        deadline: Deadline,
        model_urls: Sequence[ModelUrl] = (),
    ) -> None:
        """Ask without waiting for a cold ComfyUI; `models` are the files that the job will read.

        Those of `model_urls` are downloaded before.

        Raises WorkerUnavailable.
        """
        self._worker, self._timings, self._deadline = worker, timings, deadline
        self._models = models
        try:
            self._is_warm = worker.begin_wake(models, deadline.work_left_s(), model_urls)
        except OSError as error:
            reason = error.strerror or "it does not react"
            raise WorkerUnavailable(f"the worker does not answer: {reason}") from error
        if not self._is_warm:
            emit(WorkerStarting())

    def wait(self, cancellation: Cancellation) -> ReadyWorker:
        """The worker, once its ComfyUI is ready.

        Raises WorkerUnavailable, DeadlineExceeded, Cancelled, and ModelUnavailable where the disk
        takes no file for a model of a manifest: ComfyUI would refuse the workflow for it.
        """
        began = time.monotonic()
        try:
            worker = self._worker.wait_ready(
                self._deadline.work_left_s(),
                lambda: cancellation.check("while ComfyUI was starting"),
            )
        except TimeoutError:
            message = (
                "the invocation ran out of time while ComfyUI was starting; the job was not begun."
                f" {self._worker.last_lines()}"
            )
            raise DeadlineExceeded(message, began=False) from None
        except OSError as error:
            raise WorkerUnavailable("the worker died while ComfyUI was starting") from error
        if not self._is_warm:
            cold_start_ms = round((time.monotonic() - began) * 1000, 1)
            self._timings.add("cold_start_ms", cold_start_ms)
            emit(WorkerReady(cold_start_ms=cold_start_ms))
        for name in self._models:
            if reason := worker.unplaced_models.get(name):
                raise ModelUnavailable(f"{name} cannot be put on the disk of the worker: {reason}")
        return worker


class Runner:
    """Runs the prompts of one job on the ComfyUI of this container."""

    def __init__(
        self,
        connections: Connections,
        worker: ReadyWorker,
        timings: Timings,
        deadline: Deadline,
        cancellation: Cancellation,
    ) -> None:
        self._connections, self._worker = connections, connections.worker
        self._timings, self._deadline = timings, deadline
        self._cancellation = cancellation
        self._ready = worker

    def run(self, execution: Execution) -> HistoryEntry:
        """Submit the execution's workflow and follow it to its end.

        The history entry says how it ended. If ComfyUI dies before the job began, the job is
        submitted again, _MAX_SUBMISSIONS times at most: it pays for no other job. Raises
        WorkflowRejected, WorkerUnavailable, DeadlineExceeded, Cancelled, JobDied.
        """
        began = time.monotonic()
        try:
            for _ in range(_MAX_SUBMISSIONS - 1):
                try:
                    return self._run_once(execution)
                except _DiedBeforeJobBegan:
                    self._ready = Wake(self._worker, (), self._timings, self._deadline).wait(
                        self._cancellation
                    )
            try:
                return self._run_once(execution)
            except _DiedBeforeJobBegan as death:
                raise WorkerUnavailable(f"ComfyUI died before the job ran. {death}") from death
        finally:
            ran_ms = (time.monotonic() - began) * 1000
            self._timings.add("queue_ms", execution.queue_ms)
            self._timings.add("weights_ms", execution.weights_ms)
            self._timings.add("generation_ms", ran_ms - execution.queue_ms - execution.weights_ms)

    def node_info(self, class_type: str) -> dict[str, Any]:
        """The declaration of a node class. Raises WorkerUnavailable, ValueError."""
        comfyui = self._connections.connect_comfyui(self._ready)
        try:
            return comfyui.node_info(class_type)
        except (ComfyUIGone, ComfyUITimeout) as error:
            raise WorkerUnavailable(f"{error}. {self._worker.last_lines()}") from error

    def check_files(self, workflow: dict[str, Any], loadable: LoadableFiles) -> None:
        """Refuse a workflow that loads other files. Raises WorkflowRejected, WorkerUnavailable."""
        comfyui = self._connections.connect_comfyui(self._ready)
        try:
            check_files(workflow, loadable, comfyui.node_info)
        except (ComfyUIGone, ComfyUITimeout) as error:
            raise WorkerUnavailable(f"{error}. {self._worker.last_lines()}") from error

    def free_memory(self) -> None:
        """Have ComfyUI unload its models before its next prompt. Raises OSError."""
        self._connections.connect_comfyui(self._ready).free()

    def _run_once(self, execution: Execution) -> HistoryEntry:
        self._cancellation.check("before it was given to ComfyUI")
        comfyui = self._connections.connect_comfyui(self._ready)
        self._submit(execution, comfyui)
        # Now, because the job does not wait for it. Without an answer every node counts.
        with contextlib.suppress(ComfyUIGone, ComfyUITimeout, ValueError):
            execution.leave_out(unneeded_nodes(execution.workflow, comfyui.is_output))
        emit(JobQueued(prompt_id=execution.prompt_id, nodes=execution.nodes_total))
        return self._follow(execution, comfyui)

    def _submit(self, execution: Execution, comfyui: ComfyUI) -> None:
        left_s = self._deadline.work_left_s()
        if left_s is not None and left_s <= 0:
            raise _deadline_exceeded(execution)
        self._worker.announce_prompt(execution.prompt_id)
        try:
            comfyui.submit(
                execution.workflow,
                execution.prompt_id,
                left_s,
                lambda: self._cancellation.check(execution.stage()),
            )
        except ComfyUITimeout as error:
            # The node of another job keeps ComfyUI from answering: the job waits, as in the queue.
            self._interrupt(execution, comfyui)
            if left_s is None or left_s > SUBMIT_TIMEOUT_S:
                raise WorkerUnavailable(f"{error}. {self._worker.last_lines()}") from error
            raise _deadline_exceeded(execution) from None
        except ComfyUIGone as error:
            # It died since the last job, and the worker is about to replace it.
            death = self._worker.death_of(self._ready)
            if death and death.prompt_id == execution.prompt_id:
                raise JobDied(death.reason) from error
            raise _DiedBeforeJobBegan(death.reason if death else str(error)) from error

    def _follow(self, execution: Execution, comfyui: ComfyUI) -> HistoryEntry:
        try:
            return comfyui.follow(
                execution.prompt_id,
                execution.observe,
                deadline=self._deadline.work_until,
                check=lambda: self._cancellation.check(execution.stage()),
            )
        except Cancelled:
            self._interrupt(execution, comfyui)
            entry = comfyui.entry(execution.prompt_id)
            if entry is None:
                raise
            if not isinstance(failure_in(entry), Cancelled):
                # It had ended before ComfyUI read the interrupt.
                return entry
            execution.end(entry)
            raise
        except TimeoutError:
            self._interrupt(execution, comfyui)
            raise _deadline_exceeded(execution) from None
        except ComfyUIStuck as error:
            lines = self._worker.last_lines()
            self._worker.restart()
            raise WorkerUnavailable(f"{error}; it is restarted. {lines}") from error
        except ComfyUIGone as error:
            death = self._worker.death_of(self._ready)
            if death is None:
                raise WorkerUnavailable(f"{error}. {self._worker.last_lines()}") from error
            if death.prompt_id == execution.prompt_id:
                raise JobDied(death.reason) from error
            if not execution.began:
                raise _DiedBeforeJobBegan(death.reason) from error
            # The worker has ended it, because another job hung or had met a fault of the machine.
            # Or the job was over, and the next one killed ComfyUI before the history was read.
            text = f"ComfyUI ended before the result of the job was read. {death.reason}"
            raise WorkerUnavailable(text) from error

    def _interrupt(self, execution: Execution, comfyui: ComfyUI) -> None:
        """Interrupt the job; a ComfyUI that goes on with it is replaced.

        If the job has only waited, ComfyUI is busy with another handler's job, which has a deadline
        of its own. Then ComfyUI is left alone: it takes this job out of its queue once it reads the
        request.
        """
        left_s = self._deadline.answer_left_s()
        wait_s = _INTERRUPT_WAIT_S if left_s is None else min(_INTERRUPT_WAIT_S, left_s / 2)
        until = time.monotonic() + wait_s
        repeat_at = 0.0
        has_begun = execution.began
        with contextlib.suppress(ComfyUIGone):
            while time.monotonic() <= until:
                # A run that begins at this moment clears an interrupt that came before it.
                if time.monotonic() >= repeat_at:
                    comfyui.interrupt(execution.prompt_id, max(until - time.monotonic(), 0) / 2)
                    repeat_at = time.monotonic() + _INTERRUPT_EVERY_S
                place = comfyui.place_of(execution.prompt_id, until - time.monotonic())
                if place is Place.OVER:
                    return
                # The message of its beginning may not have been read.
                has_begun = has_begun or place is Place.RUNS
                time.sleep(_INTERRUPT_POLL_S)
            if has_begun or self._worker.is_ours_alone():
                self._worker.restart()


def _deadline_exceeded(execution: Execution) -> DeadlineExceeded:
    if not execution.began:
        return DeadlineExceeded(
            "the invocation ran out of time while the job waited in ComfyUI's queue", began=False
        )
    if execution.awaited:
        return DeadlineExceeded(
            f"the invocation ran out of time while the job waited for {execution.awaited},"
            " which is still being downloaded",
            began=False,
        )
    node = execution.nodes_executed[-1] if execution.nodes_executed else "?"
    return DeadlineExceeded(
        f"the invocation ran out of time at node {node}; raise the function's timeout,"
        " or make the workflow smaller",
        began=True,
    )
