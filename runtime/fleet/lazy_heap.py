"""A heap of workers by a number. A worker that moves leaves its old entry behind.

An entry that is out of date is dropped when it comes first, so none has to be searched for.
"""

import heapq
from collections.abc import Callable
from typing import NamedTuple

_MIN_REBUILD = 64


class Entry(NamedTuple):
    """A worker with its place in the order; `serial` tells it from its other entries."""

    key: float
    worker_id: int
    serial: int


IsCurrent = Callable[[Entry], bool]


class LazyHeap:
    """Entries, the least key first."""

    def __init__(self, is_current: IsCurrent) -> None:
        self._is_current = is_current
        self._entries: list[Entry] = []
        self._rebuild_at = _MIN_REBUILD

    def push(self, entry: Entry) -> None:
        heapq.heappush(self._entries, entry)
        if len(self._entries) > self._rebuild_at:
            self._entries = [each for each in self._entries if self._is_current(each)]
            heapq.heapify(self._entries)
            self._rebuild_at = max(2 * len(self._entries), _MIN_REBUILD)

    def first(self, avoid: int | None = None) -> Entry | None:
        """The first entry that is up to date, and is not of the worker `avoid`."""
        first = self._drop_stale()
        if first is None or first.worker_id != avoid:
            return first
        heapq.heappop(self._entries)
        second = self._drop_stale()
        heapq.heappush(self._entries, first)
        return second

    def first_few(self, count: int, avoid: int | None = None) -> list[Entry]:
        """The first entries that are up to date, `count` at most, as `first` has one."""
        found: list[Entry] = []
        avoided: list[Entry] = []
        while len(found) < count and (entry := self._drop_stale()):
            (avoided if entry.worker_id == avoid else found).append(entry)
            heapq.heappop(self._entries)
        for entry in (*found, *avoided):
            heapq.heappush(self._entries, entry)
        return found

    def _drop_stale(self) -> Entry | None:
        while self._entries and not self._is_current(self._entries[0]):
            heapq.heappop(self._entries)
        return self._entries[0] if self._entries else None
