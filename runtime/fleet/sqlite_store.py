"""The state of a fleet in a file of SQLite: one router, or several on one machine."""

import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from runtime.fleet.registry import Worker
from runtime.fleet.store import from_json, to_json

_BUSY_S = 5.0
# Each start of a router is another one.
_FORGET_ROUTERS_S = 3600.0
_SCHEMA = """
    CREATE TABLE IF NOT EXISTS fleet_workers (
        id INTEGER PRIMARY KEY, version INTEGER NOT NULL, data TEXT NOT NULL
    );
    CREATE TABLE IF NOT EXISTS fleet_routers (
        id TEXT PRIMARY KEY, told REAL NOT NULL, data TEXT NOT NULL
    );
    CREATE TABLE IF NOT EXISTS fleet_secrets (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_INSERT = "INSERT OR IGNORE INTO fleet_workers VALUES (:id, :version, :data)"
_UPDATE = """
    UPDATE fleet_workers SET version = :version, data = :data WHERE id = :id AND version = :before
"""
_DELETE = "DELETE FROM fleet_workers WHERE id = ? AND version = ?"


class SqliteFleetStore:
    """The workers in the file `path`, which is created for this user alone."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # As for the store of jobs, which may be the same file: only SQLite opens an existing one.
        if not path.exists():
            path.touch(mode=0o600)
        self._lock = threading.Lock()
        self._data_version = 0
        self._db = sqlite3.connect(
            path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
        except Exception:
            self._db.close()
            raise

    def workers(self) -> Sequence[Worker]:
        with self._lock:
            rows = self._db.execute("SELECT data FROM fleet_workers").fetchall()
        return [from_json(data) for (data,) in rows]

    def is_changed_elsewhere(self) -> bool:
        # Of this connection's own changes it takes no notice:
        # https://sqlite.org/pragma.html#pragma_data_version
        with self._lock:
            (version,) = self._db.execute("PRAGMA data_version").fetchone()
        before, self._data_version = self._data_version, int(version)
        return before != self._data_version

    def get(self, worker_id: int) -> Worker | None:
        with self._lock:
            row = self._db.execute(
                "SELECT data FROM fleet_workers WHERE id = ?", (worker_id,)
            ).fetchone()
        return from_json(row[0]) if row else None

    def put(self, worker: Worker, version: int) -> bool:
        values = {
            "id": worker.id,
            "version": worker.version,
            "data": to_json(worker),
            "before": version,
        }
        with self._lock:
            return self._db.execute(_UPDATE if version else _INSERT, values).rowcount == 1

    def remove(self, worker: Worker) -> bool:
        with self._lock:
            return self._db.execute(_DELETE, (worker.id, worker.version)).rowcount == 1

    def secret(self, name: str, make: Callable[[], str]) -> str:
        select = "SELECT value FROM fleet_secrets WHERE name = ?"
        with self._lock:
            if not (row := self._db.execute(select, (name,)).fetchone()):
                insert = "INSERT OR IGNORE INTO fleet_secrets VALUES (?, ?)"
                self._db.execute(insert, (name, make()))
                row = self._db.execute(select, (name,)).fetchone()
        return str(row[0])

    def publish(self, router: str, text: str, now: float) -> None:
        with self._lock:
            self._db.execute(
                "INSERT OR REPLACE INTO fleet_routers VALUES (?, ?, ?)", (router, now, text)
            )
            self._db.execute("DELETE FROM fleet_routers WHERE told < ?", (now - _FORGET_ROUTERS_S,))

    def published(self, since: float) -> Mapping[str, str]:
        select = "SELECT id, data FROM fleet_routers WHERE told >= ?"
        with self._lock:
            return dict(self._db.execute(select, (since,)).fetchall())

    def close(self) -> None:
        self._db.close()
