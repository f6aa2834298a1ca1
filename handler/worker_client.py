"""Asks the worker for a ready ComfyUI, and starts a worker where the container has none.

The messages are in handler/worker_protocol.py; how a worker is started, and why one has ended, in
handler/worker_start.py. What becomes of a job when the worker is gone is decided in
handler/runner.py.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from events.errors import WorkerUnavailable
from handler.cancellation import CHECK_EVERY_S
from handler.comfyui_version import ComfyUIVersion
from handler.settings import Settings
from handler.worker_connection import WorkerConnection
from handler.worker_protocol import (
    SOCKET_NAME,
    AnnouncePrompt,
    Answer,
    BenchmarkDone,
    BenchmarkResult,
    EndJob,
    GetLog,
    GetState,
    LogLines,
    ModelUrl,
    ProtocolError,
    Refused,
    ReportFault,
    Request,
    Restart,
    RunBenchmark,
    State,
    Status,
    Wake,
    WorkerStatus,
)

if TYPE_CHECKING:
    from handler.worker_start import StartedWorker

CONNECT_TIMEOUT_S = 10.0
_START_MARGIN_S = 30.0
_RETRY_S = 0.01
_DEATH_NOTED_WITHIN_S = 2.0
# These are asked when the invocation's time is nearly over.
_ANSWER_TIMEOUT_S = 1.0
_RESTART_TIMEOUT_S = 0.5
_SEND_TIMEOUT_S = 1.0
_END_TIMEOUT_S = 2.0
_ONE_CONNECT_TIMEOUT_S = 1.0
_NO_ANSWER = (OSError, WorkerUnavailable)


@dataclass(frozen=True, slots=True)
class ReadyWorker:
    """A ComfyUI that serves: where it listens, and the folders of its files by output type.

    `unplaced_models` are the names of models that it cannot find, each with the reason.
    """

    base_url: str
    comfyui_version: ComfyUIVersion
    folders: dict[str, Path]
    starts: int
    unplaced_models: dict[str, str]


@dataclass(frozen=True, slots=True)
class Death:
    """The end of a ComfyUI: why, with its last log lines, and the prompt that ran then.

    `prompt_id` is '' when none ran, or when the worker has ended ComfyUI.
    """

    reason: str
    prompt_id: str


class WorkerClient:
    """The worker of this container. One object per handler process, used by one thread.

    Its connection stays open between jobs: as long as it is open, the worker knows that it is
    needed.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = settings.worker_dir / SOCKET_NAME
        self._ids = itertools.count(1)
        self._connection: WorkerConnection | None = None
        self._wake: Status | None = None
        self._started: StartedWorker | None = None

    def begin_wake(
        self,
        model_names: Sequence[str],
        timeout_s: float | None = None,
        model_urls: Sequence[ModelUrl] = (),
    ) -> bool:
        """Begin a job: ask for a ready ComfyUI without waiting. True when it is ready now.

        A cold worker reads the files of these names from the disk while ComfyUI starts, and
        downloads those of `model_urls`. Raises
        WorkerUnavailable when no worker answers and none can be started, OSError when one does not
        answer within CONNECT_TIMEOUT_S and `timeout_s`.
        """
        limit_s = CONNECT_TIMEOUT_S
        if timeout_s is not None:
            limit_s = min(max(timeout_s, _ANSWER_TIMEOUT_S), CONNECT_TIMEOUT_S)
        wake = Wake(id=0, models=tuple(model_names), model_urls=tuple(model_urls))
        self._wake = self._send_wake(wake, limit_s)
        if self._wake.worker.state in (State.DRAINING, State.STOPPED):
            # If it ends because its last handler has gone, another one can be started.
            self._wait_for_end()
            self._wake = self._send_wake(wake, limit_s)
        return self._wake.worker.state is State.READY

    def wait_ready(
        self, timeout_s: float | None, check: Callable[[], None] = lambda: None
    ) -> ReadyWorker:
        """The ComfyUI that `begin_wake` asked for, waiting at most `timeout_s` seconds.

        `check` is called every CHECK_EVERY_S and ends the wait by raising.

        Raises WorkerUnavailable with ComfyUI's last log lines when it did not come up,
        TimeoutError when the time was over first, ConnectionError when the worker has ended.
        """
        limit_s = self._settings.comfyui_start_timeout_s + _START_MARGIN_S
        if timeout_s is not None:
            limit_s = min(timeout_s, limit_s)
        if self._wake is None:
            raise ConnectionError("no job was begun")
        if not self._wake.is_final:
            self._wake = self._wait_for_wake(self._wake.id, time.monotonic() + limit_s, check)
        worker = self._wake.worker
        match worker.state:
            case State.READY:
                version = ComfyUIVersion(worker.comfyui_version)
                return ReadyWorker(
                    worker.base_url,
                    version,
                    worker.folders,
                    worker.starts,
                    worker.unplaced_models,
                )
            case State.STARTING | State.BENCHMARKING | State.INACTIVE | State.FAILED:
                # One that is starting has failed just now, and begun again for another handler.
                reason = worker.failure or f"the worker is {worker.state}"
            case State.DRAINING | State.STOPPED:
                # A failure that it names may be long past.
                reason = f"the worker is {worker.state}"
        raise WorkerUnavailable(f"ComfyUI is not available: {reason}")

    def _wait_for_wake(self, request_id: int, give_up: float, check: Callable[[], None]) -> Status:
        while True:
            left_s = give_up - time.monotonic()
            try:
                return _as_status(self._receive(request_id, min(left_s, CHECK_EVERY_S)))
            except TimeoutError:
                if left_s <= CHECK_EVERY_S:
                    raise
            check()

    def announce_prompt(self, prompt_id: str) -> None:
        """Name the job's prompt: if this process is killed, ComfyUI drops it."""
        with contextlib.suppress(*_NO_ANSWER):
            self._send(AnnouncePrompt(id=self._id(), prompt_id=prompt_id))

    def end_job(self, *, has_completed: bool = False) -> None:
        """End the job; the worker may stop ComfyUI when there is no other.

        `has_completed`: ComfyUI has run it without an error.
        """
        with contextlib.suppress(*_NO_ANSWER):
            self._send(EndJob(id=self._id(), has_completed=has_completed))

    def report_fault(self, job_id: str, reason: str) -> None:
        """Report that the machine, not the job, has failed: the worker tests itself, or ends."""
        starts = self._wake.worker.starts if self._wake else 0
        with contextlib.suppress(*_NO_ANSWER):
            self._send(ReportFault(id=self._id(), job=job_id, starts=starts, reason=reason))

    def restart(self) -> None:
        """Have a ComfyUI that hangs replaced; waits a moment for its end."""
        with contextlib.suppress(*_NO_ANSWER):
            self._ask(Restart(id=self._id()), _RESTART_TIMEOUT_S)

    def is_ours_alone(self) -> bool:
        """Whether no other handler has a job; True when the worker does not answer."""
        with contextlib.suppress(*_NO_ANSWER):
            return self._status().jobs <= 1
        return True

    def last_lines(self) -> str:
        """What ComfyUI has logged last, to end a message with; '' when that is not known."""
        with contextlib.suppress(*_NO_ANSWER):
            answer = self._ask(GetLog(id=self._id()), _ANSWER_TIMEOUT_S)
            if isinstance(answer, LogLines) and answer.lines:
                return "\n".join(["Its last log lines:", *answer.lines])
        return ""

    def death_of(self, ready: ReadyWorker) -> Death | None:
        """The end of the ComfyUI that was `ready`; None if it is not known to have ended.

        It returns once the worker has noticed the death, so a wake after it is one for the next.
        """
        give_up = time.monotonic() + _DEATH_NOTED_WITHIN_S
        with contextlib.suppress(*_NO_ANSWER):
            while time.monotonic() < give_up:
                now = self._status()
                if now.state is not State.READY or now.starts != ready.starts:
                    return Death(now.failure, now.killed_by)
                time.sleep(_RETRY_S)
        return None

    def run_benchmark(self) -> BenchmarkResult:
        """Have the worker measure its score, which takes minutes. It begins no job.

        Raises WorkerUnavailable with the reason if there is no result, OSError.
        """
        self._connection = self._connection or self._connect()
        request = RunBenchmark(id=self._id())
        self._send(request)
        answer = self._receive(request.id, None)
        if not isinstance(answer, BenchmarkDone):
            raise WorkerUnavailable(f"the worker answered {answer.NAME}")
        return answer.result

    def close(self) -> None:
        """Close the connection; wait for the end of the worker that this process has started."""
        self._disconnect()
        if self._started:
            self._started.wait(CONNECT_TIMEOUT_S)

    def _send_wake(self, wake: Wake, limit_s: float) -> Status:
        """The first answer to a wake."""
        give_up = time.monotonic() + min(limit_s, _END_TIMEOUT_S)
        while True:
            try:
                return self._try_wake(wake, limit_s)
            except ConnectionError:
                # The worker of the last job has ended; a new connection finds or starts another.
                # One that is being killed still takes connections for a moment.
                if time.monotonic() > give_up:
                    raise
                time.sleep(_RETRY_S)

    def _try_wake(self, wake: Wake, limit_s: float) -> Status:
        if self._connection is None:
            self._connection = self._connect()
        # An id of its own for each time that it is sent.
        return _as_status(self._ask(replace(wake, id=self._id()), limit_s))

    def _status(self) -> WorkerStatus:
        return _as_status(self._ask(GetState(id=self._id()), _ANSWER_TIMEOUT_S)).worker

    def _ask(self, request: Request, timeout_s: float) -> Answer:
        """The next answer to the request. Raises OSError, WorkerUnavailable."""
        self._send(request)
        return self._receive(request.id, timeout_s)

    def _send(self, request: Request) -> None:
        try:
            self._connected().send(request, _SEND_TIMEOUT_S)
        except OSError:
            self._disconnect()
            raise

    def _receive(self, request_id: int, timeout_s: float | None) -> Answer:
        try:
            answer = self._connected().receive(request_id, timeout_s)
        except ConnectionError:
            self._disconnect()
            raise
        except ProtocolError as error:
            raise WorkerUnavailable(f"the worker's answer cannot be read: {error}") from error
        if isinstance(answer, Refused):
            raise WorkerUnavailable(f"the worker refused a request: {answer.reason}")
        return answer

    def _id(self) -> int:
        return next(self._ids)

    def _connected(self) -> WorkerConnection:
        if self._connection is None:
            raise ConnectionError("not connected to the worker")
        return self._connection

    def _disconnect(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None

    def _wait_for_end(self) -> None:
        self._disconnect()
        give_up = time.monotonic() + _END_TIMEOUT_S
        while time.monotonic() < give_up:
            if (connection := self._try_connect()) is None:
                return
            connection.close()
            time.sleep(_RETRY_S)

    def _connect(self) -> WorkerConnection:
        """Connect to the worker, and start one where there is none. Raises WorkerUnavailable."""
        if self._started and self._started.has_ended():
            # It has served since: how it ended says nothing about the next one.
            self._started = None
        give_up = time.monotonic() + CONNECT_TIMEOUT_S
        while (connection := self._try_connect()) is None:
            if time.monotonic() > give_up:
                raise WorkerUnavailable(
                    f"no worker answered at {self._path} within {CONNECT_TIMEOUT_S:g} s"
                )
            self._start_worker()
            time.sleep(_RETRY_S)
        return connection

    def _start_worker(self) -> None:
        """Start a worker unless one is starting. Raises WorkerUnavailable when it has failed."""
        # Where an extension owns the worker, a handler starts none and needs no `subprocess`.
        from handler.worker_start import StartedWorker  # noqa: PLC0415

        if self._started and not self._started.has_ended():
            return
        ended, self._started = self._started, None
        if ended and (failure := ended.failure()):
            raise WorkerUnavailable(failure)
        # One that ended well found that another worker owns the folder, which starts or ends just
        # now: in both cases the next one settles it.
        self._started = StartedWorker(self._settings)

    def _try_connect(self) -> WorkerConnection | None:
        try:
            return WorkerConnection(self._path, _ONE_CONNECT_TIMEOUT_S)
        except OSError:
            return None


def _as_status(answer: Answer) -> Status:
    if not isinstance(answer, Status):
        raise WorkerUnavailable(f"the worker answered {answer.NAME}, expected {Status.NAME}")
    return answer
