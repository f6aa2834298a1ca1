"""What a store of job records can do, and which one the settings ask for.

A change is one conditional write: when two invocations ask at once, one of them gets it. The two
stores are `sqlite`, for the handlers of one machine, and `dynamodb`, for those of many. Each is
imported with the first job that needs it, because boto3 takes longer than the rest of the handler.
"""

from typing import Protocol

from handler.jobs.record import JobRecord, Lease
from handler.settings import Settings


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

    def claim(self, record: JobRecord, now: float) -> JobRecord | None:
        """Store the record of a job that begins to run. Return None, or the record that forbids it.

        A completed record forbids it, and so does a running one of another owner whose lease has
        not lapsed at `now` (Unix time in seconds) or whose request is another one. A record that
        has expired at `now` counts as absent. A second call with the same owner succeeds like the
        first, because boto3 repeats a call whose answer was lost. Raises UnreadableRecord if the
        existing record is damaged.
        """

    def get(self, record_id: str, now: float) -> JobRecord | None:
        """The record; None if it is absent or has expired at `now`. Raises UnreadableRecord."""

    def renew(self, record_id: str, lease: Lease) -> bool:
        """Let the lease end at `lease.until`. False if the record is absent or another owner's."""

    def complete(self, record: JobRecord) -> bool:
        """Store the record of a completed job.

        False if the existing one is another owner's, or of another request and without an owner.
        """

    def take_delivery(self, record_id: str, lease: Lease, now: float) -> bool:
        """Take over the delivery of a completed job's webhook.

        False if there is none to deliver, or if its lease has not lapsed at `now`.
        """

    def end_delivery(self, record_id: str, owner: str) -> bool:
        """Forget the webhook event of a completed job. False if the record is another owner's."""

    def release(self, record_id: str, owner: str) -> bool:
        """End the lease of a running job, and forget its owner: the same request may run at once.

        False if the record is absent, completed or another owner's.
        """

    def delete(self, record_id: str, owner: str) -> bool:
        """Forget the job. False if the record is absent or another owner's."""

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
