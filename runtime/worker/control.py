"""The worker's socket: who holds it, what may be asked, and who still needs the worker.

One JSON object a line, `{"op": ...}`:

- `wake` begins a job (`models`: names of files to read ahead of ComfyUI). It is answered at once,
  and once more, unless that said `ready`, when ComfyUI is ready or its start has failed.
- `runs` says which `prompt` the job is, and has no answer: if the connection ends before the job,
  the prompt is taken out of ComfyUI.
- `done` ends the job and has no answer.
- `state` tells how things are.
- `sleep` lets an idle worker sleep now (`depth`: `free`, `stop` or `exit`),
  and is answered when it does; while a job runs, with an error.
- `drain` takes nothing new, and ends the worker when the jobs that run are done.
- `restart` replaces a ComfyUI that hangs.
- `log` tells what ComfyUI has logged last: `{"lines": [...]}`.
"""

import contextlib
import fcntl
import json
import math
import os
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from handler.settings import Settings
from runtime.errors import UsageError
from runtime.hooks import Hooks, PyWorkerLines, StateMetrics, load_hooks
from runtime.worker.lifecycle import Worker
from runtime.worker.states import DEPTHS, Depth, State

SOCKET_NAME = "worker.sock"
OPERATIONS = ("wake", "runs", "done", "state", "sleep", "drain", "restart", "log")
_FIRST_LEASE_WITHIN_S = 30.0
_LOCK_EVERY_S = 0.05
# sockaddr_un: 108 bytes with the closing NUL, see unix(7).
_MAX_SOCKET_PATH = 107

OnGone = Callable[[int], None]


class ControlError(UsageError):
    """The socket cannot be made where WORKER_DIR says."""


@contextmanager
def owned_worker(
    settings: Settings,
    *,
    is_leased: bool = False,
    on_gone: OnGone = lambda _pid: None,
    hooks: Sequence[Hooks] = (),
    wait_s: float = 0.0,
) -> Iterator[Worker | None]:
    """A worker behind its socket, or None when another process owns it already, after `wait_s`.

    The caller runs `supervise`. A leased worker stops when nobody is connected any more. `on_gone`
    gets the process id of every handler whose connection ended; `hooks` are told beside those of
    the settings. Raises ControlError, HookError.
    """
    path = settings.worker_dir / SOCKET_NAME
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise ControlError(f"WORKER_DIR is too long for a Unix socket: {path}")
    give_up = time.monotonic() + wait_s
    while (lock := lock_folder(settings.worker_dir)) is None and time.monotonic() < give_up:
        time.sleep(_LOCK_EVERY_S)
    if lock is None:
        yield None
        return
    worker = Worker(settings, [*hooks, *_hooks(settings)])
    with (
        lock,
        _sole_writer(settings),
        _ControlServer(path, worker, is_leased=is_leased, on_gone=on_gone) as server,
    ):
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield worker
        finally:
            server.shutdown()
            path.unlink(missing_ok=True)


class _ControlServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Every open connection is a lease: somebody still needs the worker."""

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
    server: _ControlServer
    _has_job, _prompt = False, ""

    def handle(self) -> None:
        self.server.lease()
        pid = _peer_pid(self.request)
        try:
            while line := self._read():
                for answer in self._answers(line):
                    self._write(answer)
        finally:
            if self._has_job and self._prompt:
                self.server.worker.drop(self._prompt)
            self._end_job()
            self.server.release()
            self.server.on_gone(pid)

    def _read(self) -> bytes:
        """A line; empty when the handler process is gone, whose job and lease then end."""
        with contextlib.suppress(OSError):
            return self.rfile.readline()
        return b""

    def _write(self, answer: dict[str, Any]) -> None:
        # The next `_read` finds out that nobody listens.
        with contextlib.suppress(OSError):
            self.wfile.write(json.dumps(answer).encode() + b"\n")

    def _answers(self, line: bytes) -> Iterator[dict[str, Any]]:
        try:
            asked = json.loads(line)
            operation, models = asked["op"], [str(name) for name in asked.get("models", ())]
            prompt, depth = str(asked.get("prompt", "")), DEPTHS[asked.get("depth", "stop")]
        except (ValueError, KeyError, TypeError, AttributeError):
            operations, depths = " | ".join(OPERATIONS), " | ".join(DEPTHS)
            yield {"error": f'expected {{"op": {operations}, "depth": {depths}}}'}
            return
        match operation:
            case "wake":
                yield from self._wake(models)
            case "runs":
                self._prompt = prompt
            case "done":
                self._end_job()
            case "log":
                yield {"lines": self.server.worker.last_lines()}
            case _:
                yield self._order(operation, depth)

    def _order(self, operation: str, depth: Depth) -> dict[str, Any]:
        worker = self.server.worker
        match operation:
            case "state":
                pass
            case "sleep":
                if not worker.sleep(depth):
                    return {"error": "a job runs: the worker sleeps only when it is idle"}
            case "drain":
                worker.stop(grace_s=math.inf)
            case "restart":
                worker.restart()
            case _:
                return {"error": f"unknown op {operation!r}"}
        return worker.describe()

    def _wake(self, models: list[str]) -> Iterator[dict[str, Any]]:
        worker = self.server.worker
        self._end_job()
        self._has_job = True
        worker.begin_job()
        first = worker.describe()
        yield first
        worker.prefetch(models)
        if first["state"] != State.READY:
            worker.wake()
            yield worker.describe()

    def _end_job(self) -> None:
        if self._has_job:
            self._has_job, self._prompt = False, ""
            self.server.worker.end_job()


@contextmanager
def _sole_writer(settings: Settings) -> Iterator[None]:
    """Hold the output folder, too: two ComfyUIs would give their files the same numbers.

    Raises ControlError when another worker has it.
    """
    output = settings.comfyui_data / "output"
    if settings.comfyui_data_dir is None and not settings.comfyui_code.is_dir():
        # There is no ComfyUI, as its start will tell.
        yield
        return
    output.mkdir(parents=True, exist_ok=True)
    if (lock := _lock(output / ".worker.lock")) is None:
        where = "set COMFYUI_DATA_DIR to a folder of its own"
        raise ControlError(f"another worker's ComfyUI writes to {output}: {where}")
    with lock:
        yield


def _hooks(settings: Settings) -> list[Hooks]:
    hooks: list[Hooks] = [StateMetrics()] if "AWS_LAMBDA_FUNCTION_NAME" in os.environ else []
    if settings.pyworker_log:
        hooks.append(PyWorkerLines(settings.pyworker_log))
    return [*hooks, *load_hooks(settings.worker_hooks)]


def lock_folder(folder: Path) -> TextIO | None:
    """The lock that makes this process the only owner, or None when another one holds it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return _lock(folder / "worker.lock")


def _lock(path: Path) -> TextIO | None:
    lock = path.open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def _peer_pid(connection: socket.socket) -> int:
    # struct ucred {pid, uid, gid}, see unix(7).
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", raw)[0]
    return pid
