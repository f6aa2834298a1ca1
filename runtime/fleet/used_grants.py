"""The grants that a worker has used, in a file of SQLite: no client runs two jobs with one.

The file outlives `serve`, so a grant is also refused by a worker that was started again. Several
workers of a machine may share it: a grant names its worker.
"""

import json
import sqlite3
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from runtime.fleet.signature import Grant

FILE = "grants.sqlite"
_BUSY_S = 5.0
_SCHEMA = """
    CREATE TABLE IF NOT EXISTS used_grants (content TEXT PRIMARY KEY, expires REAL NOT NULL)
"""


class UsedGrants:
    """The file `path`, which is created for this user alone. Threads may share it.

    Raises OSError and sqlite3.Error if the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        with closing(self._open()) as db:
            db.execute(_SCHEMA)

    def use(self, grant: Grant, now: float) -> bool:
        """Whether the grant was not used before; it is then. Those that expired are forgotten.

        Its signature does not count: Base64 writes the same bytes in 16 ways. Raises sqlite3.Error.
        """
        content = json.dumps(asdict(grant), sort_keys=True)
        insert = "INSERT OR IGNORE INTO used_grants VALUES (?, ?)"
        with closing(self._open()) as db, db:
            db.execute("DELETE FROM used_grants WHERE expires < ?", (now,))
            return db.execute(insert, (content, grant.expires)).rowcount == 1

    def _open(self) -> sqlite3.Connection:
        """A connection of its own for each call, whose transactions wait for those of others."""
        return sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level="IMMEDIATE")
