"""Starts a worker process for the handlers of a container, and says why one has ended.

Which process owns the worker's folder is decided in runtime/worker/ownership.py, and what goes into
its log file in runtime/log.py.
"""

import contextlib
import subprocess
import sys
import time
from typing import Any

from events.errors import WorkerUnavailable
from handler.settings import PROJECT, Settings
from handler.worker_protocol import LOG_NAME

_TAIL_BYTES = 4096
# The clock of file times may lag behind that of the process by one tick of the kernel.
_CLOCK_STEP_S = 0.02


class StartedWorker:
    """A worker process that this handler has started; it ends with its last connection."""

    def __init__(self, settings: Settings) -> None:
        """Start it. Raises WorkerUnavailable when WORKER_DIR cannot be written, OSError when there
        is no memory for a process.
        """
        self._log = settings.worker_dir / LOG_NAME
        try:
            settings.worker_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._log.open("ab").close()
        except OSError as error:
            raise WorkerUnavailable(f"WORKER_DIR cannot be used: {error}") from error
        self._started_at = time.time()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "runtime", "worker", "--leased"],
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            # What it logs belongs to the log of this process, whose stdout may be an answer.
            stdout=sys.stderr.fileno() if _has_fileno(sys.stderr) else subprocess.DEVNULL,
            start_new_session=True,
        )

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self, timeout_s: float) -> None:
        """Wait for its end, at most `timeout_s` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)

    def failure(self) -> str:
        """Why it has ended: its exit status, the last line and the path of its log.

        '' when it ended well: another worker owns the folder, or has no handler left.
        """
        status = self._process.wait()
        if status == 0:
            return ""
        # Negative: the number of a signal.
        end = f"the worker ended with exit status {status}"
        if reason := self._last_log_line():
            return f"{end}: {reason} (its log: {self._log})"
        return f"{end}, before it could write {self._log}; see stderr"

    def _last_log_line(self) -> str:
        """'' when this worker has written none: a log may be left from an earlier one."""
        with contextlib.suppress(OSError), self._log.open("rb") as file:
            if self._log.stat().st_mtime >= self._started_at - _CLOCK_STEP_S:
                file.seek(max(self._log.stat().st_size - _TAIL_BYTES, 0))
                lines = file.read().decode(errors="replace").split("\n")
                return next((line for line in reversed(lines) if line.strip()), "")
        return ""


def _has_fileno(stream: Any) -> bool:
    try:
        stream.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True
