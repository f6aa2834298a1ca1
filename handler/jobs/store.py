"""What a store of job records can do, and which one the settings ask for.

Every change is atomic: a store applies a `Move` to the record that it holds, so when two ask at
once, the second one sees what the first one has made. The two stores are `sqlite`, for the handlers
of one machine, and `dynamodb`, for those of many. Each is imported with the first job that needs
it, because boto3 takes longer than the rest of the handler.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from handler.jobs.moves import Move
from handler.jobs.record import JobRecord, Status
from handler.settings import Settings


class StoreError(RuntimeError):
    """A store cannot do what was asked; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Changed:
    """What a change came to.

    `before` is the record that the move was applied to, `after` the record as it is now; both are
    None if there is none. `is_made` is False if the move has refused the change.
    """

    before: JobRecord | None
    after: JobRecord | None
    is_made: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """Which records are listed, the newest first: `limit` of them, those after `cursor`.

    Empty `statuses` and `source` mean all. `cursor` is that of the page before.
    """

    statuses: frozenset[Status] = frozenset()
    source: str = ""
    created_before: float | None = None
    limit: int = 50
    cursor: str = ""


@dataclass(frozen=True, slots=True)
class JobPage:
    """Records without progress, outputs and response; `cursor` is "" on the last page."""

    records: tuple[JobRecord, ...]
    cursor: str = ""


class Store(Protocol):
    """Job records by their id. Its methods raise what SQLite or boto3 raises.

    Threads may share a store: a job's lease is renewed in a thread of its own.
    """

    @property
    def identity(self) -> str:
        """Tells this store from those of other machines."""

    @property
    def max_response_bytes(self) -> int | None:
        """The size of the largest response that it takes, as `encode_response` makes it."""

    @property
    def cancel_poll_s(self) -> float:
        """How often, in seconds, a running job may ask whether its end was requested."""

    @property
    def has_one_clock(self) -> bool:
        """Whether all that use the store have the same clock, so that leases can be compared."""

    def change(
        self, record_id: str, move: Move, now: float, known: JobRecord | None = None
    ) -> Changed:
        """Apply the move to the record, and store what it becomes.

        `known` is the record as the caller saw it last; a store that has to ask another machine
        begins with it. A change that boto3 repeats, because its answer was lost, is made once.
        Raises UnreadableRecord if the existing record is damaged and has not expired at `now`
        (Unix time in seconds).
        """

    def get(self, record_id: str, now: float) -> JobRecord | None:
        """The record; None if it is absent or its id was forgotten. Raises UnreadableRecord."""

    def is_cancel_requested(self, record_id: str) -> bool:
        """Whether somebody has asked for the job's end."""

    def list(self, query: JobQuery, now: float) -> JobPage:
        """Records that are retained. Raises ValueError for a cursor that no page had, StoreError.

        A damaged record is left out.
        """

    def counts(self, now: float) -> Mapping[Status, int]:
        """How many jobs have each status; a store of many machines counts the newest 1000."""

    def close(self) -> None:
        """Close the connection."""


def is_store_configured(settings: Settings) -> bool:
    """Whether JOBS_TABLE or JOBS_DB names a store."""
    return bool(settings.jobs_table or settings.jobs_db)


def open_store(settings: Settings) -> Store:
    """The table of JOBS_TABLE, else the file of JOBS_DB, which is created if it does not exist.

    Raises what SQLite or boto3 raises.
    """
    if settings.jobs_table:
        from handler.jobs.dynamodb import DynamoDBStore  # noqa: PLC0415 - it imports boto3

        return DynamoDBStore(settings.jobs_table)
    from handler.jobs.sqlite import SqliteStore  # noqa: PLC0415 - not needed beside a table

    assert settings.jobs_db is not None
    return SqliteStore(settings.jobs_db)
