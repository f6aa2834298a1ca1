"""The events that a host has accepted and not run yet, in a file of SQLite.

An event is in the file before its caller is answered, and leaves it after its last try: it survives
the end of the host, also by a kill or a power cut. Each host has a file of its own, which it locks
while it lives: hosts may share a store of jobs, and no event may be run by two of them. The next
host that starts takes over the events of those that have ended.
"""

import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from runtime.process.file_lock import lock_file

FIRST_FILE = "events.sqlite"
_MOST_FILES = 64
_BUSY_S = 5.0
_SCHEMA = """
    CREATE TABLE IF NOT EXISTS events (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        event BLOB NOT NULL,
        is_job INTEGER NOT NULL,
        born_at REAL NOT NULL,
        due_at REAL NOT NULL,
        tries INTEGER NOT NULL DEFAULT 0,
        generation INTEGER NOT NULL DEFAULT 0
    )
"""
_CONTENT = "id, event, is_job, born_at, due_at, tries"
_COLUMNS = f"number, {_CONTENT}, generation"
# A job that is accepted again while its last try ends must not be removed with that.
_PUT = """
    INSERT INTO events (id, event, is_job, born_at, due_at)
    VALUES (:id, :event, :is_job, :now, :now)
    ON CONFLICT (id) DO UPDATE SET event = excluded.event, generation = generation + 1
"""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One event: JSON in `event`. Times are seconds of Unix time.

    `is_job`: it is the request of one job, which is also tried again after a retryable failure.
    """

    number: int
    id: str
    event: bytes
    is_job: bool
    born_at: float
    due_at: float
    tries: int
    generation: int


class EventStore:
    """A file of events in `folder`, for one host; it is created for this user alone.

    Raises OSError and sqlite3.Error if the folder does not allow it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path, self._file_lock = _lock_a_file(folder)
        self._lock = threading.Lock()
        try:
            self._open()
            # Whether no other host lives; of two that start at once, maybe neither is.
            self.is_alone = self._take_over(folder)
        except BaseException:
            self._file_lock.close()
            raise

    def _open(self) -> None:
        if not self.path.exists():
            self.path.touch(mode=0o600)
        self._db = sqlite3.connect(
            self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        self._db.execute("PRAGMA journal_mode = WAL")
        # What was answered survives a power cut: https://sqlite.org/pragma.html#pragma_synchronous
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute(_SCHEMA)

    def _take_over(self, folder: Path) -> bool:
        """Take the events of the hosts that have ended; False if another host lives."""
        is_alone = True
        for path in _files(folder):
            if path == self.path or not path.exists():
                continue
            if (lock := _locked(path)) is None:
                is_alone = False
                continue
            with lock:
                self._db.execute("ATTACH ? AS other", (str(path),))
                # The host may have been killed before it had one.
                self._db.execute(_SCHEMA.replace("EXISTS events", "EXISTS other.events"))
                # Not in one transaction, which spans no two files in WAL mode: an event is in both
                # files rather than in none. https://sqlite.org/lang_attach.html
                self._db.execute(
                    f"INSERT OR IGNORE INTO events ({_CONTENT})"
                    f" SELECT {_CONTENT} FROM other.events ORDER BY number"
                )
                self._db.execute("DELETE FROM other.events")
                self._db.execute("DETACH other")
        return is_alone

    def put(self, event_id: str, event: bytes, *, is_job: bool) -> None:
        """Store an event that is due now. One with this id keeps its place in the queue."""
        values = {"id": event_id, "event": event, "is_job": is_job, "now": time.time()}
        with self._lock:
            self._db.execute(_PUT, values)

    def has(self, event_id: str) -> bool:
        return bool(self._rows("SELECT 1 FROM events WHERE id = ?", event_id))

    def next(self, running: Collection[int]) -> StoredEvent | None:
        """The event that is due first and is not in `running`; the oldest of those that are due."""
        others = ", ".join(map(str, running))
        rows = self._rows(
            f"SELECT {_COLUMNS} FROM events WHERE number NOT IN ({others})"
            " ORDER BY MAX(due_at, ?), number LIMIT 1",
            time.time(),
        )
        return _event_in(rows[0]) if rows else None

    def due(self, running: Collection[int], limit: int) -> Sequence[int]:
        """The numbers of the events that are due and not in `running`, the oldest first."""
        others = ", ".join(map(str, running))
        rows = self._rows(
            f"SELECT number FROM events WHERE due_at <= ? AND number NOT IN ({others})"
            " ORDER BY number LIMIT ?",
            time.time(),
            limit,
        )
        return [int(number) for (number,) in rows]

    def read(self, number: int) -> StoredEvent:
        """The event with this number, which must be stored."""
        return _event_in(self._rows(f"SELECT {_COLUMNS} FROM events WHERE number = ?", number)[0])

    def postpone(self, event: StoredEvent, due_at: float, tries: int) -> None:
        """The event has been tried `tries` times, and is due again at `due_at`."""
        self._execute(
            "UPDATE events SET due_at = ?, tries = ? WHERE number = ? AND generation = ?",
            due_at,
            tries,
            event.number,
            event.generation,
        )

    def remove(self, event: StoredEvent) -> None:
        """Forget the event, unless it was put again since it was read."""
        self._execute(
            "DELETE FROM events WHERE number = ? AND generation = ?",
            event.number,
            event.generation,
        )

    def count(self) -> int:
        return int(self._rows("SELECT COUNT(*) FROM events")[0][0])

    def position(self, event_id: str) -> int | None:
        """How many events are before this one; None if it is not stored."""
        rows = self._rows(
            "SELECT COUNT(*) FROM events WHERE number < (SELECT number FROM events WHERE id = ?)",
            event_id,
        )
        return int(rows[0][0]) if self.has(event_id) else None

    def close(self) -> None:
        with self._lock:
            self._db.close()
        self._file_lock.close()

    def _execute(self, statement: str, *values: Any) -> None:
        with self._lock:
            self._db.execute(statement, values)

    def _rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(statement, values).fetchall()


def _event_in(row: tuple[Any, ...]) -> StoredEvent:
    number, event_id, event, is_job, born_at, due_at, tries, generation = row
    return StoredEvent(number, event_id, event, bool(is_job), born_at, due_at, tries, generation)


def _files(folder: Path) -> Iterator[Path]:
    first = folder / FIRST_FILE
    yield first
    for number in range(2, _MOST_FILES + 1):
        yield first.with_stem(f"{first.stem}-{number}")


def _lock_a_file(folder: Path) -> tuple[Path, BinaryIO]:
    for path in _files(folder):
        if lock := _locked(path):
            return path, lock
    raise OSError(f"{_MOST_FILES} hosts use it already")


def _locked(path: Path) -> BinaryIO | None:
    """The lock of a file of events, until it is closed; None if another host has it."""
    # A file beside it: to close any descriptor of the database itself would end SQLite's locks.
    # https://sqlite.org/howtocorrupt.html, 2.2. It stays: a host could lock it while another one
    # removes it.
    return lock_file(path.with_suffix(".lock"))
