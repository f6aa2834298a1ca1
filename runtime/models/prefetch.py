"""Reads the model files that a workflow names into the page cache, ahead of ComfyUI.

ComfyUI maps the files into memory when a node loads them. From a cold disk or a network mount that
takes most of the time, and page after page is the slowest way to read. Reading whole files first
costs nothing that loading them would not cost. Where the files lie is in handler/model_folders.py.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from handler.model_folders import find_models, model_folders
from handler.settings import Settings

_CHUNK_BYTES = 8 * 1024 * 1024
# The share of the free memory that may be filled: the rest belongs to ComfyUI itself.
_MEMORY_SHARE = 0.7


class Prefetcher:
    """Reads each file once in the life of a ComfyUI. Any thread may use it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._begun: set[str] = set()
        self._reading: Prefetch | None = None

    @property
    def read_bytes(self) -> int:
        reading = self._reading
        return reading.read_bytes if reading else 0

    def begin(self, names: Iterable[str]) -> None:
        """Read the files of these names, unless they were read or others are being read now."""
        with self._lock:
            new = [name for name in names if name not in self._begun]
            if not new or (self._reading and not self._reading.join(0)):
                return
            self._begun.update(new)
            self._reading = Prefetch(new, self._settings)

    def stop(self) -> None:
        """End the reading and forget what was read: the next ComfyUI may start much later."""
        with self._lock:
            self._begun.clear()
            if self._reading:
                self._reading.stop()
            self._reading = None


class Prefetch:
    """Finds and reads the files in a thread of its own until all are read, or it is stopped."""

    def __init__(self, names: Sequence[str], settings: Settings) -> None:
        self.read_bytes = 0
        self._names, self._settings = names, settings
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read_all, daemon=True, name="prefetch")
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def join(self, timeout_s: float | None = None) -> bool:
        """Whether it has ended, after `timeout_s` seconds at most."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _read_all(self) -> None:
        budget = int(_available_bytes() * _MEMORY_SHARE)
        buffer = bytearray(_CHUNK_BYTES)
        paths = find_models(self._names, model_folders(self._settings))
        for size in _chunks(paths, buffer):
            self.read_bytes += size
            if self._stopped.is_set() or self.read_bytes > budget:
                return


def _chunks(paths: Iterable[Path], buffer: bytearray) -> Iterator[int]:
    for path in paths:
        try:
            with path.open("rb", buffering=0) as file:
                while size := file.readinto(buffer):
                    yield size
        except OSError:
            # ComfyUI says what is wrong with the file.
            continue


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
