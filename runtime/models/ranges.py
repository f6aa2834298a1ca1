"""Which bytes of a file the next connection asks for, and how far the ranges under way are."""

import time
from dataclasses import dataclass, field

from runtime.models.http_connection import HttpConnection
from runtime.models.part_file import BLOCK_BYTES

LEAST_BYTES, MOST_BYTES = 256 * 1024, 16 * 1024 * 1024


@dataclass(slots=True, eq=False)
class RangeRun:
    """A range that a connection reads now. `position` is the first byte that is not written yet."""

    position: int
    end: int
    connection: HttpConnection
    received_bytes: int = 0
    must_stop: bool = False
    _since: float = field(default_factory=time.monotonic)
    _bytes_since: int = 0

    def rate(self, now: float, window_s: float) -> float | None:
        """Bytes a second in the window that ends now; None before it ends."""
        seconds = now - self._since
        if seconds < window_s:
            return None
        rate = (self.received_bytes - self._bytes_since) / seconds
        self._since, self._bytes_since = now, self.received_bytes
        return rate

    def stop(self) -> None:
        """Let its thread return at once. Any thread may call it."""
        self.must_stop = True
        self.connection.interrupt()


class FreeRanges:
    """The bytes of a file that nobody has asked for yet, handed out front to back."""

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        self._ranges = ranges

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def take(self, connections: int) -> tuple[int, int]:
        """The next range, first byte and end: the smaller, the fewer bytes are left.

        So the connections end together, and none reads a large rest alone while the others go on
        with the next file. A range ends where a block ends, or the file.
        """
        left = sum(end - start for start, end in self._ranges)
        size = max(LEAST_BYTES, min(MOST_BYTES, left // connections))
        start, end = self._ranges.pop(0)
        cut = (start + size) // BLOCK_BYTES * BLOCK_BYTES
        if cut >= end:
            return start, end
        self._ranges.insert(0, (cut, end))
        return start, cut

    def take_all(self) -> tuple[int, int]:
        """The whole file, for a source that does not know ranges."""
        whole = (0, self._ranges[-1][1])
        self._ranges.clear()
        return whole

    def give_back(self, start: int, end: int) -> None:
        self._ranges.append((start, end))
        self._ranges.sort()
