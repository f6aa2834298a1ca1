"""Asks the worker for a ready ComfyUI, and starts a worker where the container has none.

The worker is another process (runtime/commands/worker.py); this is its line protocol, seen from a
handler.
The connection stays open between events: as long as it is, the worker knows that it is needed.
"""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from events.errors import WorkerUnavailable
from handler.settings import PROJECT, Settings

CONNECT_TIMEOUT_S = 10.0
_START_MARGIN_S = 30.0
_RETRY_S = 0.01
_DEATH_NOTED_WITHIN_S = 2.0
# These are asked when the invocation's time is nearly over.
_TOLD_WITHIN_S = 1.0
_RENEWED_WITHIN_S = 1.0
_RESTARTED_WITHIN_S = 0.5
_ENDED_WITHIN_S = 2.0
_CONNECTED_WITHIN_S = 1.0


@dataclass(frozen=True, slots=True)
class ReadyWorker:
    """A ComfyUI that serves: where it listens, and the folders of its files by output type."""

    base_url: str
    folders: dict[str, Path]
    starts: int


class WorkerClient:
    """The worker of this container. One object per handler process, used by one thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = settings.worker_dir / "worker.sock"
        self._socket: socket.socket | None = None
        self._unread = b""
        self._owes_answer = False
        self._ready: dict[str, Any] = {}
        self._started: subprocess.Popen[bytes] | None = None

    def begin_wake(self, model_names: Sequence[str], timeout_s: float | None = None) -> bool:
        """Begin a job: ask for a ready ComfyUI without waiting. True when it is ready now.

        A cold worker reads the files of these names from the disk while ComfyUI starts. Raises
        WorkerUnavailable when no worker answers and none can be started, OSError when one does not
        answer within CONNECT_TIMEOUT_S and `timeout_s`.
        """
        limit_s = CONNECT_TIMEOUT_S
        if timeout_s is not None:
            limit_s = min(max(timeout_s, _TOLD_WITHIN_S), CONNECT_TIMEOUT_S)
        for attempt in (1, 2):
            try:
                self._send("wake", models=model_names)
                self._ready = self._receive(limit_s)
                if attempt == 1 and self._ready["state"] in ("draining", "stopped"):
                    # If it ends because its last handler has gone, another one can be started.
                    self._wait_for_its_end()
                    continue
                self._owes_answer = self._ready["state"] != "ready"
                return not self._owes_answer
            except OSError as error:
                # The worker of the last event is gone; a new connection finds or starts another.
                self._disconnect()
                if attempt == 2 or isinstance(error, TimeoutError):
                    raise
        raise AssertionError

    def wait_ready(self, timeout_s: float | None) -> ReadyWorker:
        """The answer to `begin_wake`, waiting at most `timeout_s` seconds.

        Raises WorkerUnavailable with ComfyUI's last log lines when it did not come up, and
        TimeoutError when the time was over first.
        """
        limit = self._settings.comfyui_start_timeout_s + _START_MARGIN_S
        answer = self._ready
        if self._owes_answer:
            answer = self._receive(min(timeout_s, limit) if timeout_s is not None else limit)
        if answer["state"] != "ready":
            # A worker that is draining may have had a failure long ago; one that is starting has
            # failed just now, and begun again for somebody else.
            has_failed = answer["state"] in ("inactive", "failed", "starting")
            reason = (has_failed and answer["failure"]) or f"the worker is {answer['state']}"
            raise WorkerUnavailable(f"ComfyUI is not available: {reason}")
        return ReadyWorker(
            base_url=answer["base_url"],
            folders={name: Path(path) for name, path in answer["folders"].items()},
            starts=answer["starts"],
        )

    def runs(self, prompt_id: str) -> None:
        """Say which prompt the job is: if this process is killed, it is taken out of ComfyUI."""
        with contextlib.suppress(OSError, WorkerUnavailable):
            if self._socket:
                self._send("runs", prompt=prompt_id)
                self._owes_answer = False

    def done(self) -> None:
        """End the job; the worker may let ComfyUI sleep when there is no other."""
        with contextlib.suppress(OSError, WorkerUnavailable):
            if self._socket:
                self._send("done")
                self._owes_answer = False

    def restart(self) -> None:
        """Have a ComfyUI that hangs replaced; waits a moment for its end."""
        with contextlib.suppress(OSError, WorkerUnavailable):
            self._ask("restart", _RESTARTED_WITHIN_S)

    def is_ours_alone(self) -> bool:
        """Whether no other handler has a job; also when nobody says."""
        with contextlib.suppress(OSError, WorkerUnavailable):
            return bool(self._ask("state", _TOLD_WITHIN_S)["jobs"] <= 1)
        return True

    def last_lines(self) -> str:
        """What ComfyUI has logged last, to end a message with; '' when nobody knows."""
        with contextlib.suppress(OSError, WorkerUnavailable, KeyError):
            if lines := self._ask("log", _TOLD_WITHIN_S)["lines"]:
                return "\n".join(["Its last log lines:", *lines])
        return ""

    def last_words(self, dead: ReadyWorker) -> str:
        """Why the ComfyUI that was `dead` is gone, with its last log lines; '' when nobody knows.

        It returns once the worker has noticed the death, so a wake after it is one for the next.
        """
        give_up = time.monotonic() + _DEATH_NOTED_WITHIN_S
        with contextlib.suppress(OSError, WorkerUnavailable):
            while time.monotonic() < give_up:
                answer = self._ask("state", _TOLD_WITHIN_S)
                if answer["state"] != "ready" or answer["starts"] != dead.starts:
                    return str(answer["failure"])
                time.sleep(_RETRY_S)
        return ""

    def close(self) -> None:
        """Give up the connection; wait for the end of a worker that was started for us alone."""
        self._disconnect()
        if self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._started.wait(CONNECT_TIMEOUT_S)

    def _wait_for_its_end(self) -> None:
        self._disconnect()
        give_up = time.monotonic() + _ENDED_WITHIN_S
        while time.monotonic() < give_up:
            if (connection := _try_connect(self._path)) is None:
                return
            connection.close()
            time.sleep(_RETRY_S)

    def _disconnect(self) -> None:
        if self._socket:
            self._socket.close()
        self._socket, self._unread, self._owes_answer = None, b"", False

    def _renew(self) -> None:
        """Another connection instead of one with an answer on its way; the lease never ends.

        Without that a job that was too short for a cold start would end the start with itself.
        """
        old, self._socket = self._socket, _try_connect(self._path)
        self._unread, self._owes_answer = b"", False
        if self._socket:
            try:
                self._socket.settimeout(_RENEWED_WITHIN_S)
                self._socket.sendall(b'{"op": "state"}\n')
                # Its answer says that the new lease counts.
                with self._socket.makefile("rb") as answers:
                    answers.readline()
            except OSError:
                # The kernel takes connections for a worker that does nothing any more.
                self._disconnect()
        if old:
            old.close()

    def _ask(self, operation: str, timeout_s: float) -> dict[str, Any]:
        self._send(operation)
        return self._receive(timeout_s)

    def _send(self, operation: str, **details: Any) -> None:
        if self._owes_answer:
            # A job ended before it asked for its answer, which would be taken for the next one.
            self._renew()
        if self._socket is None:
            self._socket = self._connect()
        self._socket.settimeout(CONNECT_TIMEOUT_S)
        self._owes_answer = True
        self._socket.sendall(json.dumps({"op": operation, **details}).encode() + b"\n")

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        if self._socket is None:
            raise ConnectionError("not connected")
        give_up = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            self._socket.settimeout(max(give_up - time.monotonic(), 0.001))
            try:
                chunk = self._socket.recv(65536)
            except TimeoutError:
                # The answer may still come and would be taken for the next one.
                self._renew()
                raise
            if not chunk:
                self._disconnect()
                raise ConnectionError("the worker closed its socket")
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        self._owes_answer = False
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _connect(self) -> socket.socket:
        give_up = time.monotonic() + CONNECT_TIMEOUT_S
        if self._started and self._started.poll() is not None:
            # It has served, and is gone: how it ended says nothing about the next one.
            self._started = None
        while (connection := _try_connect(self._path)) is None:
            if time.monotonic() > give_up:
                raise WorkerUnavailable(
                    f"no worker answered at {self._path} within {CONNECT_TIMEOUT_S:g} s"
                )
            status = self._started.poll() if self._started else 0
            if status == 0:
                # None was started yet, or it found the lock taken, by one that comes or one that
                # goes: in both cases the next one settles it.
                self._started = _start_worker()
            elif status is not None and self._started:
                self._started = None
                raise WorkerUnavailable(f"the worker process ended with {status}; its log says why")
            time.sleep(_RETRY_S)
        return connection


def _start_worker() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "runtime", "worker", "--leased"],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        # What it logs belongs to the log of this process; stdout may be somebody's answer.
        stdout=sys.stderr.fileno() if _has_fileno(sys.stderr) else subprocess.DEVNULL,
        start_new_session=True,
    )


def _try_connect(path: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    # A worker that stands still takes no connections when those that wait are too many.
    connection.settimeout(_CONNECTED_WITHIN_S)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        return None
    return connection


def _has_fileno(stream: Any) -> bool:
    try:
        stream.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True
