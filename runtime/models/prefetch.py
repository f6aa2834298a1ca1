"""Reads the model files that a workflow names into the page cache, ahead of ComfyUI.

ComfyUI maps the files into memory when a node loads them. From a cold disk or a network mount that
takes most of the time, and page after page is the slowest way to read. Reading whole files first,
many pieces at once, costs nothing that loading them would not cost. Where the files lie is in
handler/model_folders.py.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from handler.model_folders import find_models, model_folders
from handler.settings import Settings
from runtime.models.parts import is_placeholder
from runtime.process.memory import available_bytes
from runtime.process.open_files import open_files

# On a network mount, each read waits for an answer: many have to be under way.
READERS = 32
_CHUNK_BYTES = 1024 * 1024
# The share of the free memory that may be filled: the rest belongs to ComfyUI itself.
_MEMORY_SHARE = 0.7
_LOOK_FOR_ROOM_EVERY_S = 0.25


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
            if not new or (self._reading and self._reading.is_reading):
                return
            if self._reading:
                self._reading.stop()
            self._begun.update(new)
            self._reading = Prefetch(new, self._settings)

    def note_loaded(self, path: Path) -> None:
        """ComfyUI has loaded this file: where memory is short, it makes room for others."""
        if reading := self._reading:
            reading.note_loaded(path)

    def stop(self) -> None:
        """End the reading and forget what was read: the next ComfyUI may start much later."""
        with self._lock:
            self._begun.clear()
            if self._reading:
                self._reading.stop()
            self._reading = None


class _Chunk(NamedTuple):
    descriptor: int
    offset: int


class Prefetch:
    """Finds the files and reads them in this order, in threads of its own, until it is stopped.

    No more is read than memory is free. What ComfyUI has loaded leaves the page cache then, and
    the reading goes on.
    """

    def __init__(
        self,
        names: Sequence[str],
        settings: Settings,
        *,
        readers: int = READERS,
        available: Callable[[], int] = available_bytes,
    ) -> None:
        self.read_bytes = 0
        self._names, self._settings, self._readers = names, settings, readers
        self._available = available
        self._lock = threading.Lock()
        # Of the files that may be in the page cache because of this reading.
        self._sizes: dict[Path, int] = {}
        self._loaded: list[Path] = []
        self._stopped, self._is_waiting = threading.Event(), False
        self._thread = threading.Thread(target=self._read_all, daemon=True, name="prefetch")
        self._thread.start()

    @property
    def is_reading(self) -> bool:
        """Whether it has not ended, and does not wait for memory."""
        return self._thread.is_alive() and not self._is_waiting

    def stop(self) -> None:
        self._stopped.set()

    def join(self, timeout_s: float | None = None) -> bool:
        """Whether it has ended, after `timeout_s` seconds at most."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def note_loaded(self, path: Path) -> None:
        """ComfyUI has loaded the file of this path, which has no links in its folders."""
        self._loaded.append(path)

    def _read_all(self) -> None:
        paths = find_models(self._names, model_folders(self._settings))
        with ExitStack() as stack:
            chunks = self._chunks([path for path in paths if not is_placeholder(path)], stack)
            threads = [
                threading.Thread(target=self._read, args=(chunks,), daemon=True)
                for _ in range(self._readers)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def _read(self, chunks: Iterator[_Chunk]) -> None:
        buffer = bytearray(_CHUNK_BYTES)
        while chunk := self._next(chunks):
            try:
                size = os.preadv(chunk.descriptor, [buffer], chunk.offset)
            except OSError:
                # ComfyUI says what is wrong with the file.
                continue
            with self._lock:
                self.read_bytes += size

    def _next(self, chunks: Iterator[_Chunk]) -> _Chunk | None:
        with self._lock:
            return None if self._stopped.is_set() else next(chunks, None)

    def _chunks(self, paths: Sequence[Path], stack: ExitStack) -> Iterator[_Chunk]:
        budget = int(self._available() * _MEMORY_SHARE)
        for path in paths:
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except OSError:
                continue
            stack.callback(os.close, descriptor)
            real = path.resolve()
            self._sizes[real] = 0
            for offset in range(0, os.fstat(descriptor).st_size, _CHUNK_BYTES):
                while sum(self._sizes.values()) + _CHUNK_BYTES > budget:
                    self._is_waiting = True
                    if self._stopped.wait(_LOOK_FOR_ROOM_EVERY_S):
                        return
                    self._drop_loaded()
                self._is_waiting = False
                self._sizes[real] += _CHUNK_BYTES
                yield _Chunk(descriptor, offset)

    def _drop_loaded(self) -> None:
        """Drop from the page cache what ComfyUI has loaded, and does not map any more."""
        loaded = {path for path in self._loaded if path in self._sizes}
        for path in loaded - open_files(loaded):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            del self._sizes[path]
