"""Powertools' Idempotency on SQLite: the claims and responses of one machine's handlers.

https://docs.aws.amazon.com/powertools/python/latest/utilities/idempotency/#bring-your-own-persistent-store
Importing Powertools' module costs a tenth of a second (it imports boto3): see handler/jobs.py.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aws_lambda_powertools.utilities.idempotency import BasePersistenceLayer
from aws_lambda_powertools.utilities.idempotency.exceptions import (
    IdempotencyItemAlreadyExistsError,
    IdempotencyItemNotFoundError,
)
from aws_lambda_powertools.utilities.idempotency.persistence.datarecord import DataRecord

_BUSY_S = 2.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY,
    status TEXT NOT NULL,
    expiration INTEGER NOT NULL,
    in_progress_expiration INTEGER,
    data TEXT NOT NULL,
    validation TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS store (only INTEGER PRIMARY KEY CHECK (only = 1), name TEXT);
INSERT OR IGNORE INTO store VALUES (1, hex(randomblob(16)));
CREATE INDEX IF NOT EXISTS jobs_by_expiration ON jobs (expiration);
"""
_COLUMNS = "id, status, expiration, in_progress_expiration, data, validation"
_PUT = f"""
INSERT INTO jobs ({_COLUMNS}) VALUES (?, ?, ?, ?, '', ?)
ON CONFLICT (id) DO UPDATE SET
    status = excluded.status, expiration = excluded.expiration,
    in_progress_expiration = excluded.in_progress_expiration,
    data = '', validation = excluded.validation
WHERE jobs.status = 'INPROGRESS' AND jobs.in_progress_expiration < ?
"""
_GET = f"SELECT {_COLUMNS} FROM jobs WHERE id = ?"
_RENEW = "UPDATE jobs SET in_progress_expiration = ? WHERE id = ?"
_DELETE = "DELETE FROM jobs WHERE id = ? AND status = 'INPROGRESS'"
_UPDATE = "UPDATE jobs SET status = ?, expiration = ?, data = ? WHERE id = ?"


class SqliteLayer(BasePersistenceLayer):
    """One table with the attributes that Powertools gives its DynamoDB items."""

    def __init__(self, path: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Never open the file of an existing store besides SQLite: closing it would end the locks
        # of this process (https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_).
        if not path.exists():
            path.touch(mode=0o600)
        self._db = sqlite3.connect(
            path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        _prepare(self._db)
        # What tells this file from those of other machines.
        self.identity = str(self._db.execute("SELECT name FROM store").fetchone()[0])

    def renew(self, data: dict[str, Any], until_ms: int) -> None:
        """Let the claim of `data` end at `until_ms` (Unix time)."""
        self._db.execute(_RENEW, (until_ms, self._get_hashed_idempotency_key(data)))

    def close(self) -> None:
        self._db.close()

    def _put_record(self, data_record: DataRecord) -> None:
        now = time.time()
        key = data_record.idempotency_key
        with self._transaction():
            # SQLite has no time to live; this also keeps the file small.
            self._db.execute("DELETE FROM jobs WHERE expiration < ?", (int(now),))
            put = self._db.execute(
                _PUT,
                (
                    key,
                    data_record.status,
                    data_record.expiry_timestamp,
                    data_record.in_progress_expiry_timestamp,
                    data_record.payload_hash,
                    int(now * 1000),
                ),
            )
            if put.rowcount == 1:
                return
            found = self._get_record(key)
        self._validate_payload(data_payload=data_record, stored_data_record=found)
        raise IdempotencyItemAlreadyExistsError(old_data_record=found)

    def _get_record(self, idempotency_key: str) -> DataRecord:
        row = self._db.execute(_GET, (idempotency_key,)).fetchone()
        if row is None:
            raise IdempotencyItemNotFoundError
        key, status, expiration, in_progress_expiration, data, validation = row
        return DataRecord(key, status, expiration, in_progress_expiration, data, validation)

    def _update_record(self, data_record: DataRecord) -> None:
        values = (data_record.status, data_record.expiry_timestamp, data_record.response_data)
        self._db.execute(_UPDATE, (*values, data_record.idempotency_key))

    def _delete_record(self, data_record: DataRecord) -> None:
        # Not the response of a repeat that took the claim over when it had lapsed.
        self._db.execute(_DELETE, (data_record.idempotency_key,))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # Immediate: one that reads first and then writes would not wait for other writers.
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _prepare(db: sqlite3.Connection) -> None:
    give_up = time.monotonic() + _BUSY_S
    while True:
        try:
            # The first handlers may come at once, and this change does not wait for the others:
            # https://sqlite.org/wal.html#activating_and_configuring_wal_mode
            db.execute("PRAGMA journal_mode = WAL")
            # A killed process loses nothing; a machine that loses power loses its jobs, too.
            db.execute("PRAGMA synchronous = NORMAL")
            db.executescript(_SCHEMA)
            return
        except sqlite3.Error as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                db.close()
                raise
            time.sleep(0.01)
