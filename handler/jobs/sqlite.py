"""Job records in a file of SQLite, which all handlers of one machine share.

One row a record, every change a transaction. What a row holds is decided in `record`.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from handler.jobs.record import JobRecord, Lease, Status, from_item, in_ms, to_item

_BUSY_S = 2.0
# Version 0: the records are in the table `jobs`. Versions 1 and 2: they lack columns of _ADDED.
_VERSION = 3
_SCHEMA = (
    """
    CREATE TABLE IF NOT EXISTS job_records (
        id TEXT PRIMARY KEY,
        status TEXT NOT NULL,
        owner TEXT NOT NULL,
        in_progress_expiration INTEGER NOT NULL,
        expiration INTEGER NOT NULL,
        data TEXT NOT NULL
    ) WITHOUT ROWID
    """,
    "CREATE INDEX IF NOT EXISTS job_records_by_expiration ON job_records (expiration)",
    "CREATE TABLE IF NOT EXISTS store (only INTEGER PRIMARY KEY CHECK (only = 1), name TEXT)",
    "INSERT OR IGNORE INTO store VALUES (1, hex(randomblob(16)))",
    f"PRAGMA user_version = {_VERSION}",
)
_TAKE_OVER_OLD_TABLE = (
    """
    INSERT OR IGNORE INTO job_records
    SELECT id, status, '', in_progress_expiration, expiration, data, '', '' FROM jobs
    """,
    "DROP TABLE jobs",
)
_ADDED = ("request", "webhook")
_COLUMNS = ("id", "status", "owner", "in_progress_expiration", "expiration", "data", *_ADDED)
_PUT_IF = f"""
    INSERT INTO job_records ({", ".join(_COLUMNS)})
    VALUES ({", ".join(f":{name}" for name in _COLUMNS)})
    ON CONFLICT (id) DO UPDATE
    SET {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[1:])}
    WHERE job_records.owner = excluded.owner
"""
_IS_SAME_RUNNING = f"""(
    job_records.status = '{Status.RUNNING.value}' AND job_records.request = excluded.request
)"""
_CLAIM = f"{_PUT_IF} OR ({_IS_SAME_RUNNING} AND job_records.in_progress_expiration < :now_ms)"
_COMPLETE = f"{_PUT_IF} OR ({_IS_SAME_RUNNING} AND job_records.owner = '')"
_FORGET_EXPIRED = "DELETE FROM job_records WHERE expiration <= :now"
_GET = f"SELECT {', '.join(_COLUMNS)} FROM job_records WHERE id = :id"
_RENEW = """
    UPDATE job_records SET in_progress_expiration = :until_ms WHERE id = :id AND owner = :owner
"""
_TAKE_DELIVERY = """
    UPDATE job_records SET owner = :owner, in_progress_expiration = :until_ms
    WHERE id = :id AND webhook <> '' AND in_progress_expiration < :now_ms
"""
_END_DELIVERY = "UPDATE job_records SET webhook = '' WHERE id = :id AND owner = :owner"
_RELEASE = f"""
    UPDATE job_records SET owner = '', in_progress_expiration = 0
    WHERE id = :id AND owner = :owner AND status = '{Status.RUNNING.value}'
"""
_DELETE = "DELETE FROM job_records WHERE id = :id AND owner = :owner"


class SqliteStore:
    """The records in the file `path`; `identity` is a random name that the file holds.

    The file, and the folders that it needs, are created for this user alone.
    """

    max_response_bytes: int | None = None

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Only SQLite may open an existing file. Another close of it in this process would end the
        # locks that SQLite holds
        # (https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_).
        if not path.exists():
            path.touch(mode=0o600)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(
            path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        try:
            _prepare(self._db)
            self.identity = str(self._db.execute("SELECT name FROM store").fetchone()[0])
        except Exception:
            self._db.close()
            raise

    def claim(self, record: JobRecord, now: float) -> JobRecord | None:
        values = {**to_item(record), "now": int(now), "now_ms": in_ms(now)}
        with self._lock, _transaction(self._db):
            # SQLite has no time to live. This also keeps the file small.
            self._db.execute(_FORGET_EXPIRED, values)
            if self._db.execute(_CLAIM, values).rowcount == 1:
                return None
            row = self._db.execute(_GET, values).fetchone()
        return _record_in(row)

    def get(self, record_id: str, now: float) -> JobRecord | None:
        with self._lock:
            row = self._db.execute(_GET, {"id": record_id}).fetchone()
        record = _record_in(row) if row else None
        return record if record and record.expires_at > int(now) else None

    def renew(self, record_id: str, lease: Lease) -> bool:
        until_ms = in_ms(lease.until)
        return self._write(_RENEW, {"id": record_id, "owner": lease.owner, "until_ms": until_ms})

    def complete(self, record: JobRecord) -> bool:
        return self._write(_COMPLETE, to_item(record))

    def take_delivery(self, record_id: str, lease: Lease, now: float) -> bool:
        values = {"id": record_id, "owner": lease.owner, "until_ms": in_ms(lease.until)}
        return self._write(_TAKE_DELIVERY, {**values, "now_ms": in_ms(now)})

    def end_delivery(self, record_id: str, owner: str) -> bool:
        return self._write(_END_DELIVERY, {"id": record_id, "owner": owner})

    def release(self, record_id: str, owner: str) -> bool:
        return self._write(_RELEASE, {"id": record_id, "owner": owner})

    def delete(self, record_id: str, owner: str) -> bool:
        return self._write(_DELETE, {"id": record_id, "owner": owner})

    def close(self) -> None:
        self._db.close()

    def _write(self, statement: str, values: dict[str, Any]) -> bool:
        """Run the statement; return whether a row met its condition."""
        with self._lock, _transaction(self._db):
            return self._db.execute(statement, values).rowcount == 1


def _record_in(row: tuple[Any, ...]) -> JobRecord:
    return from_item(dict(zip(_COLUMNS, row, strict=True)))


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    with db:
        # Immediate: a transaction that reads before it writes does not wait for other writers.
        db.execute("BEGIN IMMEDIATE")
        yield


def _prepare(db: sqlite3.Connection) -> None:
    """Create the tables, unless they exist. Many handlers may do so at the same time."""
    give_up = time.monotonic() + _BUSY_S
    while True:
        try:
            # SQLite does not wait for other connections here, whatever the timeout:
            # https://sqlite.org/wal.html#activating_and_configuring_wal_mode
            db.execute("PRAGMA journal_mode = WAL")
            # A killed process loses nothing. A machine that loses power may lose its last records,
            # and its jobs with them.
            db.execute("PRAGMA synchronous = NORMAL")
            _create_tables(db)
            return
        except sqlite3.Error as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def _create_tables(db: sqlite3.Connection) -> None:
    if _version(db) >= _VERSION:
        return
    with _transaction(db):
        if _version(db) >= _VERSION:
            return
        for statement in _SCHEMA:
            db.execute(statement)
        for column in _missing_columns(db):
            db.execute(f"ALTER TABLE job_records ADD COLUMN {column} TEXT NOT NULL DEFAULT ''")
        if _has_old_table(db):
            for statement in _TAKE_OVER_OLD_TABLE:
                db.execute(statement)


def _missing_columns(db: sqlite3.Connection) -> list[str]:
    present = {name for (name,) in db.execute("SELECT name FROM pragma_table_info('job_records')")}
    return [column for column in _ADDED if column not in present]


def _has_old_table(db: sqlite3.Connection) -> bool:
    row = db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'jobs'").fetchone()
    return row is not None


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
