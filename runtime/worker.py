"""The owner of ComfyUI in a container: its states, its restarts, and the socket to ask it.

Many handler processes talk to one worker. They send one JSON object a line, `{"op": ...}`, and get
one line back for each: `wake` answers when ComfyUI is ready or the attempt failed, `state` at once,
and `restart` replaces a ComfyUI that hangs.
"""

import argparse
import contextlib
import fcntl
import json
import os
import signal
import socketserver
import sys
import threading
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

from handler.settings import Settings
from runtime.comfyui_process import ComfyUIProcess, ComfyUIStartError, describe_exit

SOCKET_NAME = "worker.sock"
MAX_FAILED_STARTS = 5
_MAX_BACKOFF_S = 8.0
_STABLE_AFTER_S = 60.0
_FIRST_LEASE_WITHIN_S = 30.0
# sockaddr_un: 108 bytes with the closing NUL, see unix(7).
_MAX_SOCKET_PATH = 107


class State(StrEnum):
    """`ready` and `inactive` are the documented worker states; the others lie between them."""

    STARTING = "starting"
    READY = "ready"
    INACTIVE = "inactive"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass
class Worker:
    """Keeps one ComfyUI alive. `supervise` runs in the main thread, the rest in any thread."""

    settings: Settings
    state: State = State.STARTING
    starts: int = 0
    cold_start_ms: float = 0.0
    last_failure: str = ""
    _failed_starts: int = 0
    _early_deaths: int = 0
    _attempts: int = 0
    _process: ComfyUIProcess | None = None
    _wanted: bool = True
    _stopping: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def supervise(self) -> None:
        """Start ComfyUI, watch it, start it again; returns after `stop`."""
        while self._wait_until_wanted():
            if not self._start():
                continue
            ready_at = time.monotonic()
            status = self._watch()
            with self._changed:
                if self._stopping:
                    break
                is_early = time.monotonic() - ready_at < _STABLE_AFTER_S
                self._early_deaths = self._early_deaths + 1 if is_early else 0
                self._note_death(status)
        self._end_process()

    def wake(self) -> None:
        """Block until ComfyUI is ready, or the start that is under way (or made now) has failed."""
        with self._changed:
            seen = self._attempts
            self._wanted = True
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: (
                    self.state in (State.READY, State.FAILED, State.DRAINING)
                    or self._attempts > seen
                )
            )

    def restart(self) -> None:
        """Kill ComfyUI now; the supervisor starts a new one."""
        with self._changed:
            process = self._process
            if self.state is State.READY and process:
                self.state = State.STARTING
                log("ComfyUI does not give up its job: restarting it")
                process.stop(grace_s=0.0)

    def stop(self) -> None:
        """Take nothing new and let `supervise` end."""
        with self._changed:
            self._stopping = True
            self.state = State.DRAINING
            self._changed.notify_all()

    def describe(self) -> dict[str, Any]:
        """What a handler needs to know: state, and where ComfyUI and its files are."""
        data = self.settings.comfyui_data
        with self._changed:
            process = self._process
            return {
                "state": self.state.value,
                "starts": self.starts,
                "cold_start_ms": self.cold_start_ms,
                "failure": self.last_failure,
                "base_url": process.base_url if process else "",
                "comfyui_pid": process.pid if process else None,
                "folders": {
                    "output": str(data / "output"),
                    "input": str(data / "input"),
                    "temp": str(data / "temp"),
                },
            }

    def _wait_until_wanted(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._wanted or self._stopping)
            if (in_a_row := self._failed_starts + self._early_deaths) > 1:
                pause = min(2.0 ** (in_a_row - 2), _MAX_BACKOFF_S)
                self._changed.wait_for(lambda: self._stopping, timeout=pause)
            if self._stopping:
                return False
            self.state = State.STARTING
            return True

    def _start(self) -> bool:
        began = time.monotonic()
        self._end_process()
        try:
            process = ComfyUIProcess(self.settings, on_line=lambda line: log(f"comfyui: {line}"))
            with self._changed:
                self._process = process
            timeout_s = self.settings.comfyui_start_timeout_s
            if not process.wait_until_ready(timeout_s, lambda: self._stopping):
                return False
        except ComfyUIStartError as error:
            self._end_process()
            self._note_failed_start(str(error))
            return False
        with self._changed:
            if self._stopping:
                return True
            self.state = State.READY
            self.starts += 1
            self._failed_starts = 0
            self.cold_start_ms = round((time.monotonic() - began) * 1000, 1)
            log(f"ComfyUI is ready after {self.cold_start_ms / 1000:.1f} s at {process.base_url}")
            self._changed.notify_all()
        return True

    def _watch(self) -> int | None:
        while not self._stopping:
            assert self._process is not None
            if (status := self._process.wait(0.05)) is not None:
                return status
        return None

    def _note_failed_start(self, reason: str) -> None:
        with self._changed:
            self._attempts += 1
            self._failed_starts += 1
            self.last_failure = reason
            if self._stopping:
                return
            is_hopeless = self._failed_starts >= MAX_FAILED_STARTS
            self.state = State.FAILED if is_hopeless else State.INACTIVE
            # The next event decides whether another start is worth its time.
            self._wanted = False
            log(f"start failed ({self._failed_starts} in a row): {reason}")
            self._changed.notify_all()

    def _note_death(self, status: int | None) -> None:
        assert self._process is not None
        ended = describe_exit(status) if status is not None else "an unknown status"
        self.last_failure = self._process.explain(f"ComfyUI ended with {ended}")
        log(self.last_failure)
        self.state = State.STARTING
        self._changed.notify_all()

    def _end_process(self) -> None:
        with self._changed:
            process, self._process = self._process, None
        if process:
            process.stop()


class ControlServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """The worker's socket. Every open connection is a lease: somebody still needs the worker."""

    daemon_threads = True
    # Many handler processes may connect in the same moment, one for each concurrent invocation.
    request_queue_size = 128

    def __init__(self, path: Path, worker: Worker, *, leased: bool) -> None:
        self.worker = worker
        self.leases = 0
        self._leased = leased
        self._lock = threading.Lock()
        path.unlink(missing_ok=True)
        super().__init__(str(path), _Connection)
        if leased:
            timer = threading.Timer(_FIRST_LEASE_WITHIN_S, self._stop_if_unused)
            timer.daemon = True
            timer.start()

    def lease(self) -> None:
        with self._lock:
            self.leases += 1

    def release(self) -> None:
        with self._lock:
            self.leases -= 1
        self._stop_if_unused()

    def _stop_if_unused(self) -> None:
        if self._leased and self.leases == 0:
            self.worker.stop()


class _Connection(socketserver.StreamRequestHandler):
    server: ControlServer

    def handle(self) -> None:
        self.server.lease()
        try:
            for line in self.rfile:
                self.wfile.write(json.dumps(self._answer(line)).encode() + b"\n")
        except OSError:
            pass  # the handler process is gone, its lease ends below
        finally:
            self.server.release()

    def _answer(self, line: bytes) -> dict[str, Any]:
        worker = self.server.worker
        try:
            operation = json.loads(line)["op"]
        except (ValueError, KeyError, TypeError):
            return {"error": 'expected {"op": "wake" | "state" | "restart"}'}
        if operation == "wake":
            worker.wake()
        elif operation == "restart":
            worker.restart()
        elif operation != "state":
            return {"error": f"unknown op {operation!r}"}
        return worker.describe()


def log(line: str) -> None:
    """One plain line on stderr: the platform's log in a container, the terminal elsewhere."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def own_worker_dir(folder: Path) -> TextIO | None:
    """The lock that makes this process the only owner, or None when another one holds it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = (folder / "worker.lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--leased",
        action="store_true",
        help="stop when no handler is connected any more (handlers start it so)",
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Own ComfyUI until SIGTERM, or until the last lease ends. 0 also when another one owns it."""
    path = settings.worker_dir / SOCKET_NAME
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        log(f"WORKER_DIR is too long for a Unix socket ({_MAX_SOCKET_PATH} bytes): {path}")
        return 2
    lock = own_worker_dir(settings.worker_dir)
    if lock is None:
        return 0
    worker = Worker(settings)
    with lock, ControlServer(path, worker, leased=args.leased) as server:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: threading.Thread(target=worker.stop).start())
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            worker.supervise()
        finally:
            server.shutdown()
            path.unlink(missing_ok=True)
    return 0
