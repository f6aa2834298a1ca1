"""The bytes of a model file that are on the disk already, and which are not.

A download can be killed at any time. What it has written is in NAME.part; NAME.part.state has one
byte for each block that is complete there, behind a header that says of which file. A block is
marked after its bytes are written, so after a kill every marked block is right. After a crash of
the machine it may not be: then the SHA-256 says so, or, without one, the header's boot.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from runtime.models.parts import Parts

BLOCK_BYTES = 64 * 1024
_HEADER_BYTES = 4096
_READ_AHEAD_BLOCKS = 64
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which bytes are in a part: those of another origin must not be mixed with them."""

    size_bytes: int
    sha256: str | None
    source: str
    version: str | None

    def may_continue(self, other: "Origin") -> bool:
        """Whether bytes of `other` may be added to these.

        With a hash, bytes of all sources count as the same: the hash will say whether they are.
        """
        if self.size_bytes != other.size_bytes or self.sha256 != other.sha256:
            return False
        if self.sha256:
            return True
        return self.version is not None and (
            (self.source, self.version) == (other.source, other.version)
        )


class PartFile:
    """One NAME.part, open for writing by many threads. Only the holder of its lock may have one.

    Raises OSError where the disk is full or the folder cannot be written.
    """

    def __init__(self, parts: Parts, origin: Origin) -> None:
        """Open what is there of this origin, or begin anew."""
        self.origin = origin
        self.path = parts.part
        self._parts = parts
        self._marked = threading.Condition()
        self._ended = False
        self._awaited = 0
        blocks = -(-origin.size_bytes // BLOCK_BYTES)
        self._blocks = bytearray(blocks)
        marks = _read_marks(parts, origin)
        self.is_resumed = marks is not None and any(marks)
        if marks is None:
            _begin(parts, origin, blocks)
        else:
            self._blocks[:] = marks
        self.done_bytes = _bytes_in(self._blocks, origin.size_bytes)
        self._data = os.open(parts.part, os.O_RDWR)
        self._state = os.open(parts.state, os.O_RDWR)
        self._descriptors: tuple[int, ...] = (self._data, self._state)

    def missing(self) -> list[tuple[int, int]]:
        """The ranges that are not there, first byte and end, in order."""
        ranges: list[tuple[int, int]] = []
        for number, done in enumerate(self._blocks):
            if done:
                continue
            start = number * BLOCK_BYTES
            end = min(start + BLOCK_BYTES, self.origin.size_bytes)
            if ranges and ranges[-1][1] == start:
                ranges[-1] = (ranges[-1][0], end)
            else:
                ranges.append((start, end))
        return ranges

    def write(self, data: memoryview, position: int) -> None:
        """Write bytes, and mark the blocks that they complete: blocks are written front to back."""
        start, size = position, self.origin.size_bytes
        while data:
            written = os.pwrite(self._data, data, position)
            data, position = data[written:], position + written
        first = start // BLOCK_BYTES
        end = len(self._blocks) if position == size else position // BLOCK_BYTES
        # A range that was cut before its first byte completes nothing.
        if position > start and end > first:
            self._mark(first, end)

    def wait_for(self, position: int) -> int:
        """Wait until the bytes from `position` on are there; the end of what follows without a gap.

        That are some megabytes, where more are missing. 0 when the download has ended before.
        """
        number = position // BLOCK_BYTES
        last = min(number + _READ_AHEAD_BLOCKS, len(self._blocks) - 1)
        with self._marked:
            # The last one first: else each block would wake this thread.
            for self._awaited in (last, *range(number, last)):
                self._marked.wait_for(lambda: self._ended or self._blocks[self._awaited])
            gap = self._blocks.find(0, number)
        if gap < 0:
            return self.origin.size_bytes
        return gap * BLOCK_BYTES if gap > number else 0

    def read_into(self, buffer: memoryview, position: int) -> int:
        """Read bytes that are there; the number of them."""
        return os.preadv(self._data, [buffer], position)

    def finish(self, target: Path) -> None:
        """Give the file its final name, with all its bytes on the disk first."""
        try:
            os.fsync(self._data)
        except OSError:
            # The kernel has forgotten the bytes, and reports that once: fsync(2). Without a hash,
            # the next run would take them to be there.
            self.discard()
            raise
        # Until `close`: no other worker may remove the model while its placeholder is deleted.
        with contextlib.suppress(OSError):
            fcntl.flock(self._data, fcntl.LOCK_SH)
        self._parts.part.replace(target)
        _sync_folder(target.parent)
        self._parts.state.unlink(missing_ok=True)
        self._parts.placeholder.unlink(missing_ok=True)

    def discard(self) -> None:
        """Delete what was downloaded: it is wrong."""
        self._parts.state.unlink(missing_ok=True)
        self._parts.part.unlink(missing_ok=True)

    def end(self) -> None:
        """Let `wait_for` return: nothing more will be written."""
        with self._marked:
            self._ended = True
            self._marked.notify_all()

    def close(self) -> None:
        """Close the files. No other thread may still write or read."""
        self.end()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = ()

    def _mark(self, first: int, end: int) -> None:
        os.pwrite(self._state, b"\1" * (end - first), _HEADER_BYTES + first)
        with self._marked:
            before = self._blocks[first:end]
            self._blocks[first:end] = b"\1" * (end - first)
            for number, was_done in enumerate(before, first):
                if not was_done:
                    self.done_bytes += _bytes_of(number, self.origin.size_bytes)
            if first <= self._awaited < end:
                self._marked.notify_all()


def done_bytes_on_disk(parts: Parts) -> int:
    """How much of a file another process has downloaded so far; 0 where nothing can be read."""
    state = _read_state(parts)
    return _bytes_in(state.marks, state.origin.size_bytes) if state else 0


def _begin(parts: Parts, origin: Origin, blocks: int) -> None:
    parts.state.unlink(missing_ok=True)
    with parts.part.open("wb") as part:
        part.truncate(origin.size_bytes)
    new = parts.state.with_name(f"{parts.state.name}.new")
    header = json.dumps({**asdict(_stored(origin)), "boot": _boot_id()}).encode()
    new.write_bytes(header.ljust(_HEADER_BYTES) + bytes(blocks))
    # Under its name at once and whole: a state that is cut short would count as no state.
    new.replace(parts.state)


class _State(NamedTuple):
    origin: Origin
    boot: str
    marks: bytes


def _read_state(parts: Parts) -> _State | None:
    """What NAME.part.state says; None where it or NAME.part is missing, or is damaged."""
    try:
        raw = parts.state.read_bytes()
        header = json.loads(raw[:_HEADER_BYTES])
        boot = header.pop("boot")
        origin = Origin(**header)
        blocks = -(-origin.size_bytes // BLOCK_BYTES)
        size = parts.part.stat().st_size
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    marks = raw[_HEADER_BYTES:]
    is_whole = size == origin.size_bytes and len(marks) == blocks and not marks.strip(b"\0\1")
    return _State(origin, boot, marks) if is_whole else None


def _read_marks(parts: Parts, origin: Origin) -> bytes | None:
    """The blocks that are there, None where the part cannot be continued."""
    state = _read_state(parts)
    if state is None or not state.origin.may_continue(_stored(origin)):
        return None
    is_lost = state.boot != _boot_id() and not origin.sha256
    return None if is_lost else state.marks


def _stored(origin: Origin) -> Origin:
    # A source may contain a password, so only its hash is stored.
    return replace(origin, source=hashlib.sha256(origin.source.encode()).hexdigest())


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _bytes_in(blocks: bytes | bytearray, size_bytes: int) -> int:
    done = sum(blocks) * BLOCK_BYTES
    if blocks and blocks[-1]:
        done -= BLOCK_BYTES - _bytes_of(len(blocks) - 1, size_bytes)
    return done


def _bytes_of(number: int, size_bytes: int) -> int:
    return min(BLOCK_BYTES, size_bytes - number * BLOCK_BYTES)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
