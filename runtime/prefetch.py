"""Reads the model files that a workflow names into the page cache, while ComfyUI still imports.

ComfyUI maps the files into memory when a node loads them; from a cold disk or a network mount that
is when the time passes. Reading them beforehand costs nothing that the loading would not cost.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

_CHUNK_BYTES = 8 * 1024 * 1024
# What may be filled of the memory that is free now: the rest belongs to ComfyUI itself.
_MEMORY_SHARE = 0.7


def find(names: Iterable[str], folders: Sequence[Path]) -> list[Path]:
    """The files of these names (`file` or `subfolder/file`), each from the first folder with it."""
    return [path for name in names if (path := _first(name, folders)) is not None]


class Prefetch:
    """Reads files in a thread of its own until it is through, or stopped."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.read_bytes = 0
        self._files = files
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
        for path in self._files:
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
        for kind in sorted(folder.iterdir()):
            if (path := kind / name).is_file():
                return path
    return None


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
