"""Answers the requests of handlers on the worker's socket.

The requests and answers are in handler/worker_protocol.py, what the worker does in
runtime/worker/lifecycle.py, who may own the socket in runtime/worker/ownership.py.
"""

import contextlib
import math
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, assert_never

from handler.worker_codec import decode_request, encode
from handler.worker_protocol import (
    AnnouncePrompt,
    Answer,
    BenchmarkDone,
    Drain,
    EndJob,
    GetLog,
    GetState,
    LogLines,
    ProtocolError,
    Refused,
    ReportFault,
    Request,
    Restart,
    RunBenchmark,
    Sleep,
    State,
    Status,
    Wake,
)
from runtime.models.supply import JobModels
from runtime.worker.housekeeper import RunningJob
from runtime.worker.lifecycle import Worker

_FIRST_LEASE_WITHIN_S = 30.0

OnGone = Callable[[int], None]
SlowRequest = TypeVar("SlowRequest", Wake, Sleep | Restart | RunBenchmark)


class ControlServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Listens at `path`. Every open connection is a lease: a handler needs the worker.

    A leased worker stops when it has no lease left, or got none in its first 30 seconds. `on_gone`
    gets the process id of every handler whose connection ended. Raises OSError.
    """

    daemon_threads = True
    # Many handler processes may connect in the same moment, one for each concurrent invocation.
    request_queue_size = 128

    def __init__(self, path: Path, worker: Worker, *, is_leased: bool, on_gone: OnGone) -> None:
        self.worker, self.on_gone = worker, on_gone
        self._leases, self._is_leased = 0, is_leased
        self._lock = threading.Lock()
        path.unlink(missing_ok=True)
        super().__init__(str(path), _Connection)
        if is_leased:
            timer = threading.Timer(_FIRST_LEASE_WITHIN_S, self._stop_if_unused)
            timer.daemon = True
            timer.start()

    def lease(self) -> None:
        with self._lock:
            self._leases += 1

    def release(self) -> None:
        with self._lock:
            self._leases -= 1
        self._stop_if_unused()

    def _stop_if_unused(self) -> None:
        if self._is_leased and self._leases == 0:
            self.worker.stop()


class _Connection(socketserver.StreamRequestHandler):
    """The requests of one handler, and its job.

    What takes long runs in a thread of its own: a handler may end its job, or ask for the log,
    while the worker wakes for it.
    """

    server: ControlServer
    _has_job, _prompt_id = False, ""

    def handle(self) -> None:
        self._write_lock = threading.Lock()
        self._running_job, self._models = RunningJob(time.time()), JobModels()
        self.server.lease()
        pid = _peer_pid(self.request)
        try:
            while line := self._read_line():
                try:
                    self._obey(decode_request(line))
                except ProtocolError as error:
                    self._write(Refused(id=error.message_id, reason=str(error)))
        finally:
            if self._has_job and self._prompt_id:
                self.server.worker.drop(self._prompt_id)
            self._end_job()
            self.server.release()
            self.server.on_gone(pid)

    def _obey(self, request: Request) -> None:
        worker = self.server.worker
        match request:
            case Wake():
                self._wake(request)
            case AnnouncePrompt():
                self._prompt_id = request.prompt_id
                self._running_job.prompt_ids.append(request.prompt_id)
            case EndJob():
                self._end_job(has_completed=request.has_completed)
            case ReportFault():
                worker.report_fault(request.job, request.starts, request.reason)
            case GetState():
                self._write_status(request)
            case GetLog():
                self._write(LogLines(id=request.id, lines=tuple(worker.last_lines())))
            case Drain():
                worker.stop(grace_s=math.inf)
                self._write_status(request)
            case Sleep() | Restart() | RunBenchmark():
                self._in_thread(self._obey_slowly, request)
            case _:
                assert_never(request)

    def _wake(self, request: Wake) -> None:
        worker = self.server.worker
        self._end_job()
        self._has_job = True
        worker.begin_job()
        self._running_job = worker.housekeeper.begin_job()
        # Before the answer: ComfyUI refuses a prompt whose models are not even placeholders.
        worker.models.add_urls(request.model_urls)
        worker.models.place(request.models)
        status = worker.describe()
        is_ready = status.state is State.READY
        self._write(Status(id=request.id, is_final=is_ready, worker=status))
        self._models = worker.models.begin_job(request.models)
        if not is_ready:
            self._in_thread(self._wait_awake, request)

    def _wait_awake(self, request: Wake) -> None:
        self.server.worker.wake()
        self._write_status(request)

    def _obey_slowly(self, request: Sleep | Restart | RunBenchmark) -> None:
        match request:
            case Sleep():
                self._sleep(request)
            case Restart():
                self.server.worker.restart()
                self._write_status(request)
            case RunBenchmark():
                self._benchmark(request)

    def _sleep(self, request: Sleep) -> None:
        if self.server.worker.sleep(request.depth):
            self._write_status(request)
        else:
            reason = "a job runs: the worker sleeps only when it is idle"
            self._write(Refused(id=request.id, reason=reason))

    def _benchmark(self, request: RunBenchmark) -> None:
        result = self.server.worker.run_benchmark()
        if isinstance(result, str):
            self._write(Refused(id=request.id, reason=result))
        else:
            self._write(BenchmarkDone(id=request.id, result=result))

    def _end_job(self, *, has_completed: bool = False) -> None:
        if self._has_job:
            self._has_job, self._prompt_id = False, ""
            self.server.worker.housekeeper.end_job(self._running_job)
            self.server.worker.models.end_job(self._models)
            self.server.worker.end_job(has_completed=has_completed)

    def _in_thread(self, action: Callable[[SlowRequest], None], request: SlowRequest) -> None:
        threading.Thread(target=action, args=(request,), daemon=True).start()

    def _read_line(self) -> bytes:
        """A line; empty when the handler has closed the connection."""
        with contextlib.suppress(OSError):
            return self.rfile.readline()
        return b""

    def _write_status(self, request: Request) -> None:
        self._write(Status(id=request.id, is_final=True, worker=self.server.worker.describe()))

    def _write(self, answer: Answer) -> None:
        # A handler that has closed the connection is noticed by the next `_read_line`.
        with contextlib.suppress(OSError), self._write_lock:
            self.wfile.write(encode(answer))


def _peer_pid(connection: socket.socket) -> int:
    # struct ucred {pid, uid, gid}, see unix(7).
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", raw)[0]
    return pid
