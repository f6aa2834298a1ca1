"""Reads the model files that a workflow names into the page cache, ahead of ComfyUI.

ComfyUI maps the files into memory when a node loads them; from a cold disk or a network mount that
is when the time passes, and page after page is the slowest way to read. Reading them beforehand
costs nothing that the loading would not cost.
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from handler.settings import Settings

_CHUNK_BYTES = 8 * 1024 * 1024
# What may be filled of the memory that is free now: the rest belongs to ComfyUI itself.
_MEMORY_SHARE = 0.7


def find(names: Iterable[str], folders: Sequence[Path]) -> list[Path]:
    """The files of these names (`file` or `subfolder/file`), each from the first folder with it."""
    return [path for name in names if (path := _first(name, folders)) is not None]


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
        """Read the files of these names, unless they were read or others are just being read."""
        with self._lock:
            new = [name for name in names if name not in self._begun]
            if not new or (self._reading and not self._reading.join(0)):
                return
            self._begun.update(new)
            self._reading = Prefetch(new, self._settings.model_folders)

    def stop(self) -> None:
        """End the reading, and forget what was read: another ComfyUI may come much later."""
        with self._lock:
            self._begun.clear()
            if self._reading:
                self._reading.stop()
            self._reading = None


class Prefetch:
    """Finds and reads files in a thread of its own until it is through, or stopped."""

    def __init__(self, names: Sequence[str], folders: Sequence[Path]) -> None:
        self.read_bytes = 0
        self._names, self._folders = names, folders
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read_all, daemon=True, name="prefetch")
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def join(self, timeout_s: float | None = None) -> bool:
        """Whether it was through within the time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _read_all(self) -> None:
        budget = int(_available_bytes() * _MEMORY_SHARE)
        buffer = bytearray(_CHUNK_BYTES)
        for size in self._chunks(buffer):
            self.read_bytes += size
            if self._stopped.is_set() or self.read_bytes > budget:
                return

    def _chunks(self, buffer: bytearray) -> Iterator[int]:
        for path in find(self._names, self._folders):
            try:
                with path.open("rb", buffering=0) as file:
                    while size := file.readinto(buffer):
                        yield size
            except OSError:
                # ComfyUI will say what is wrong with it.
                continue


def _first(name: str, folders: Sequence[Path]) -> Path | None:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return None
    for folder in folders:
        # Folders that are not ours to read, and names that no file can have.
        with contextlib.suppress(OSError):
            for kind in sorted(folder.iterdir()):
                if _is_file(path := kind / name):
                    return path
    return None


def _is_file(path: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return path.is_file()
    return False


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
