"""Job records in a file of SQLite, which all handlers of one machine share.

One row a record, every change a transaction. What a row holds is decided in `record`.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from handler.jobs.listing import Cursor, page_of
from handler.jobs.moves import Move
from handler.jobs.record import FORGOTTEN, JobRecord, Status, from_item, in_ms, to_item
from handler.jobs.store import Changed, JobPage, JobQuery

_BUSY_S = 2.0
# Before version 4, records lack columns of _ADDED.
_VERSION = 4
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
    # Of earlier versions, whose records had other ids.
    "DROP TABLE IF EXISTS jobs",
    f"PRAGMA user_version = {_VERSION}",
)
_TEXT, _NUMBER = "TEXT NOT NULL DEFAULT ''", "INTEGER NOT NULL DEFAULT 0"
_ADDED = {
    **dict.fromkeys(("request", "webhook", "source", "worker", "progress", "outputs"), _TEXT),
    "webhook_state": _TEXT,
    **dict.fromkeys(("created", "started", "finished", "attempt", "deaths", "version"), _NUMBER),
    **dict.fromkeys(("retained_until", "cancel_requested", "must_rerun"), _NUMBER),
}
_HAS_DATA = f"data NOT IN ('', '{FORGOTTEN}')"
_INDEXES = (
    # With all that a query can ask for: a row is large, and is read only if it is listed.
    """
    CREATE INDEX IF NOT EXISTS job_records_by_created
    ON job_records (created, id, status, source, retained_until)
    """,
    # Of the records that have something to forget.
    f"""
    CREATE INDEX IF NOT EXISTS job_records_to_blank ON job_records (retained_until)
    WHERE {_HAS_DATA}
    """,
    "CREATE INDEX IF NOT EXISTS job_records_by_status ON job_records (status, retained_until)",
)
_KEEP_OLD_RETENTION = """
    UPDATE job_records SET retained_until = expiration WHERE retained_until = 0
"""
_COLUMNS = (
    *("id", "status", "owner", "in_progress_expiration", "expiration", "data"),
    *_ADDED,
)
_LISTED = tuple(name for name in _COLUMNS if name not in ("data", "progress", "outputs"))
_PUT = f"""
    INSERT OR REPLACE INTO job_records ({", ".join(_COLUMNS)})
    VALUES ({", ".join(f":{name}" for name in _COLUMNS)})
"""
# A change forgets a few records, because other handlers wait for its end. A job makes several
# changes, so more are forgotten than are added.
_FORGET = """
    DELETE FROM job_records
    WHERE id IN (SELECT id FROM job_records WHERE expiration <= :now LIMIT 20)
"""
_BLANK = f"""
    UPDATE job_records SET data = '{FORGOTTEN}', progress = '', outputs = ''
    WHERE id IN (
        SELECT id FROM job_records WHERE retained_until <= :now AND {_HAS_DATA} LIMIT 20
    )
"""
_GET = f"SELECT {', '.join(_COLUMNS)} FROM job_records WHERE id = :id"
_IS_CANCEL_REQUESTED = "SELECT cancel_requested FROM job_records WHERE id = :id"
_COUNTS = "SELECT status, COUNT(*) FROM job_records WHERE retained_until > :now GROUP BY status"
_PAGE = """
    SELECT id FROM job_records INDEXED BY job_records_by_created
    WHERE retained_until > :now AND (created, id) < (:created, :id)
"""
_NEWEST_FIRST = "ORDER BY created DESC, id DESC"
_LIST = f"SELECT {', '.join(_LISTED)} FROM job_records WHERE id IN ({{page}}) {_NEWEST_FIRST}"
# Greater than every time in milliseconds.
_NEWEST = 2**62


class SqliteStore:
    """The records in the file `path`; `identity` is a random name that the file holds.

    The file, and the folders that it needs, are created for this user alone.
    """

    max_response_bytes: int | None = None
    # A look-up in a local file takes some microseconds.
    cancel_poll_s = 0.2

    has_one_clock = True

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

    def change(
        self, record_id: str, move: Move, now: float, known: JobRecord | None = None
    ) -> Changed:
        with self._lock, _transaction(self._db):
            # SQLite has no time to live. This also keeps the file small.
            self._db.execute(_FORGET, {"now": int(now)})
            self._db.execute(_BLANK, {"now": int(now)})
            before = self._read(record_id)
            after = move(before)
            if after is None:
                return Changed(before, before, is_made=False)
            after = replace(after, version=(before.version if before else 0) + 1)
            self._db.execute(_PUT, to_item(after))
        return Changed(before, after, is_made=True)

    def get(self, record_id: str, now: float) -> JobRecord | None:
        with self._lock:
            record = self._read(record_id)
        return record if record and record.is_known(now) else None

    def is_cancel_requested(self, record_id: str) -> bool:
        with self._lock:
            row = self._db.execute(_IS_CANCEL_REQUESTED, {"id": record_id}).fetchone()
        return row is not None and bool(row[0])

    def list(self, query: JobQuery, now: float) -> JobPage:
        before = query.created_before
        start = Cursor(_NEWEST if before is None else in_ms(before), "")
        if query.cursor:
            start = Cursor.decode(query.cursor)
        values: dict[str, str | int] = {
            "now": int(now),
            "created": start.created_ms,
            "id": start.record_id,
            "limit": query.limit + 1,
            "source": query.source,
        }
        page = _PAGE
        if query.source:
            page += " AND source = :source"
        if query.statuses:
            marks = {f"status{n}": s.value for n, s in enumerate(sorted(query.statuses))}
            values |= marks
            page += f" AND status IN ({', '.join(f':{name}' for name in marks)})"
        statement = _LIST.format(page=f"{page} {_NEWEST_FIRST} LIMIT :limit")
        with self._lock:
            rows = self._db.execute(statement, values).fetchall()
        items = [dict(zip(_LISTED, row, strict=True)) for row in rows]
        return page_of(items, query.limit)

    def counts(self, now: float) -> Mapping[Status, int]:
        with self._lock:
            rows = self._db.execute(_COUNTS, {"now": int(now)}).fetchall()
        known = {status.value for status in Status}
        return {Status(status): count for status, count in rows if status in known}

    def close(self) -> None:
        self._db.close()

    def _read(self, record_id: str) -> JobRecord | None:
        row = self._db.execute(_GET, {"id": record_id}).fetchone()
        return from_item(dict(zip(_COLUMNS, row, strict=True))) if row else None


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
            db.execute(f"ALTER TABLE job_records ADD COLUMN {column} {_ADDED[column]}")
        for statement in _INDEXES:
            db.execute(statement)
        db.execute(_KEEP_OLD_RETENTION)


def _missing_columns(db: sqlite3.Connection) -> list[str]:
    present = {name for (name,) in db.execute("SELECT name FROM pragma_table_info('job_records')")}
    return [column for column in _ADDED if column not in present]


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
