"""One child process: its output is read line by line, and it never outlives this process.

What the lines mean, and whether a child that has ended is started again, is decided by its owner.
"""

import contextlib
import errno
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_DIE_WITH_PARENT = Path(__file__).with_name("die_with_parent.py")
_TAIL_LINES = 40
_DRAIN_WITHIN_S = 1.0
_CATCH_UP_EVERY_S = 0.001
_READ_BYTES = 65536
# The RIC ends the lines of a traceback with "\r".
_LINE_END = re.compile(rb"\r\n?|\n")


class Child:
    """A started command, the leader of its own process group.

    When the leader ends, the rest of its group is killed. `on_death` is called at once, before the
    last lines are read; `on_end` is called afterwards, when `wait` returns the exit status and
    `tail` is complete. Both run in a thread of the child's own.

    The kernel sends `dies_with` to the child when the *thread* that made the Child ends, or when
    this process is killed: make a Child in a thread that lives as long as the child may.

    Raises OSError when the command cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        on_line: Callable[[str], object],
        on_death: Callable[[], object] = lambda: None,
        on_end: Callable[[], object] = lambda: None,
        dies_with: signal.Signals = signal.SIGKILL,
        has_stdin: bool = False,
    ) -> None:
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._on_line, self._on_death, self._on_end = on_line, on_death, on_end
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._ended = threading.Event()
        prefix = [
            sys.executable,
            "-I",
            "-S",
            str(_DIE_WITH_PARENT),
            str(int(dies_with)),
            str(os.getpid()),
        ]
        self._popen = subprocess.Popen(
            [*prefix, *command],
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE if has_stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._drainer = threading.Thread(target=self._drain, daemon=True)
        try:
            self._drainer.start()
            threading.Thread(target=self._watch, daemon=True).start()
        except RuntimeError as error:
            # Without its threads the child would have no owner.
            os.killpg(self.pid, signal.SIGKILL)
            self._popen.wait()
            raise BlockingIOError(errno.EAGAIN, str(error)) from error

    @property
    def pid(self) -> int:
        return self._popen.pid

    def write_line(self, line: str) -> None:
        """Write a line to its stdin, then close it. Raises OSError when the child has ended."""
        assert self._popen.stdin is not None
        with self._popen.stdin as stdin:
            stdin.write(line.encode() + b"\n")

    def wait(self, timeout_s: float | None = None) -> int | None:
        """The exit status (negative: the signal), or None if it still runs after `timeout_s`."""
        return self._popen.returncode if self._ended.wait(timeout_s) else None

    def stop(self, grace_s: float) -> None:
        """End the group: SIGTERM, then SIGKILL after `grace_s` seconds (0: SIGKILL at once)."""
        if grace_s > 0:
            self._signal_group(signal.SIGTERM)
            self.wait(grace_s)
        self._signal_group(signal.SIGKILL)
        self.wait()

    def catch_up(self) -> None:
        """Return when `on_line` has had every line that the child has written until now.

        After one second it returns in any case: a child may write without end.
        """
        give_up = time.monotonic() + _DRAIN_WITHIN_S
        while (left_s := give_up - time.monotonic()) > 0 and self._has_unread(left_s):
            time.sleep(_CATCH_UP_EVERY_S)

    def tail(self) -> tuple[str, ...]:
        """The last lines of its output; complete once the child has ended."""
        return tuple(self._tail)

    def _signal_group(self, number: signal.Signals) -> None:
        # Under the lock: once the leader is reaped, its number may belong to another process.
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._popen.returncode is None:
                os.killpg(self.pid, number)

    def _watch(self) -> None:
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        self._signal_group(signal.SIGKILL)
        with self._lock:
            self._popen.wait()
        self._on_death()
        # A descendant that left the group may keep the pipe open without limit.
        self._drainer.join(_DRAIN_WITHIN_S)
        if self._popen.stdin:
            with contextlib.suppress(OSError):
                self._popen.stdin.close()
        self._ended.set()
        self._on_end()

    def _has_unread(self, timeout_s: float) -> bool:
        assert self._popen.stdout is not None
        if not self._reading.acquire(timeout=timeout_s):
            return True
        try:
            return not self._popen.stdout.closed and _has_data(self._popen.stdout.fileno())
        finally:
            self._reading.release()

    def _drain(self) -> None:
        assert self._popen.stdout is not None
        pipe, pending = self._popen.stdout.fileno(), b""
        while True:
            _wait_readable(pipe)
            # What was read counts as unread until `on_line` has had its lines.
            with self._reading:
                chunk = os.read(pipe, _READ_BYTES)
                first, *others = _LINE_END.split(chunk)
                pending += first
                for line in others:
                    self._emit(pending)
                    pending = line
                if not chunk:
                    self._emit(pending)
                    self._popen.stdout.close()
                    return

    def _emit(self, raw: bytes) -> None:
        if line := raw.decode(errors="replace").rstrip():
            self._tail.append(line)
            self._on_line(line)


def describe_exit(status: int) -> str:
    """`exit status 3` or `signal: killed`, the words that Lambda and Go's os/exec use.

    `status` is that of `Child.wait`: negative for a signal.
    """
    if status < 0:
        return f"signal: {signal.strsignal(-status) or -status}".lower()
    return f"exit status {status}"


def _wait_readable(pipe: int) -> None:
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    poll.poll()


def _has_data(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    # At its end a pipe without data reports POLLHUP alone.
    return any(event & select.POLLIN for _, event in poll.poll(0))
