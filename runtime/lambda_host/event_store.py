"""The events that a host has accepted and not run yet, in a file of SQLite.

An event is in the file before its caller is answered, and leaves it after its last try: it survives
the end of the host, also by a kill or a power cut.
"""

import sqlite3
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
_COLUMNS = "number, id, event, is_job, born_at, due_at, tries, generation"
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
    """The events in the file `path`, which is created for this user alone. For one host."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            path.touch(mode=0o600)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(
            path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        self._db.execute("PRAGMA journal_mode = WAL")
        # What was answered survives a power cut: https://sqlite.org/pragma.html#pragma_synchronous
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute(_SCHEMA)

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

    def _execute(self, statement: str, *values: Any) -> None:
        with self._lock:
            self._db.execute(statement, values)

    def _rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(statement, values).fetchall()


def _event_in(row: tuple[Any, ...]) -> StoredEvent:
    number, event_id, event, is_job, born_at, due_at, tries, generation = row
    return StoredEvent(number, event_id, event, bool(is_job), born_at, due_at, tries, generation)
