"""Shows downloads while they run: bars on a terminal, plain lines in a log."""

import importlib.util
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from runtime.log import log
from runtime.models.file_state import FileState, Phase
from runtime.time_left import time_left

_RATE_OVER_S = 10.0
_LINE_EVERY_S = 10.0


class Display(Protocol):
    def update(self, states: Sequence[FileState]) -> None:
        """Show the states of all files; called several times a second."""


@contextmanager
def download_display() -> Iterator[Display]:
    """Bars where stderr is a terminal and rich is installed, else lines."""
    if sys.stderr.isatty() and importlib.util.find_spec("rich"):
        from runtime.models.download_bars import Bars  # noqa: PLC0415

        with Bars() as bars:
            yield bars
    else:
        yield Lines()


class Rate:
    """Bytes a second over the last seconds, and the time that is left at this rate."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, done_bytes: int) -> float:
        now = time.monotonic()
        self._samples.append((now, done_bytes))
        while now - self._samples[0][0] > _RATE_OVER_S:
            self._samples.popleft()
        began, before = self._samples[0]
        return (done_bytes - before) / (now - began) if now > began else 0.0


class Lines:
    """A line for each file that ends, and one every ten seconds for all of them."""

    def __init__(self) -> None:
        self._rate = Rate()
        self._ended: set[str] = set()
        self._waiting: set[str] = set()
        self._next_line = time.monotonic() + _LINE_EVERY_S

    def update(self, states: Sequence[FileState]) -> None:
        done = sum(state.done_bytes for state in states)
        size = sum(state.size_bytes or 0 for state in states)
        rate = self._rate.add(done)
        for state in states:
            self._note(state)
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_EVERY_S
            left = time_left((size - done) / rate) if rate else ""
            text = f"models: {done / 1e9:.2f} of {size / 1e9:.2f} GB, {rate / 1e6:.0f} MB/s"
            log(f"{text}, {left}" if left else text)

    def _note(self, state: FileState) -> None:
        name = f"{state.file.folder}/{state.file.name}"
        if state.phase is Phase.ELSEWHERE and name not in self._waiting:
            self._waiting.add(name)
            log(f"models: {name} is being downloaded by another process: waiting for it")
        if not state.is_final or name in self._ended:
            return
        self._ended.add(name)
        if state.phase is Phase.DONE:
            log(f"models: {name} is there, {state.done_bytes / 1e9:.2f} GB")
