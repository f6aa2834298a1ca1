"""The claim that keeps a repeated request from spending GPU time twice, and its stored response.

docs/decisions/0007-repeated-requests.md says what is kept, and why. Powertools' Idempotency has the
records; it is imported with the first request that has an id of its own, for it imports boto3.
"""

import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from events.contract.response_size import shrink_for_store
from events.errors import AlreadyRunning
from events.job import Job
from events.repeating_timer import RepeatingTimer
from handler.leftovers import Attempt
from handler.log import emit, logger
from handler.response import Outcome
from handler.settings import Settings

if TYPE_CHECKING:
    from handler.jobs_dynamodb import DynamoDBLayer
    from handler.jobs_sqlite import SqliteLayer

    Store = DynamoDBLayer | SqliteLayer

# An item has 400 KB at most, and its other attributes need a little:
# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html
MAX_DYNAMODB_BYTES = 390_000
# A claim that nobody renews ends as soon: its holder was killed. Less than a message stays hidden
# that such a holder leaves behind, so that its next delivery finds the job free.
LEASE_S = 15.0
_RENEWALS_IN_A_LEASE = 3


@dataclass(frozen=True, slots=True)
class _Claimed:
    store: "Store"
    data: dict[str, Any]
    max_bytes: int | None
    heartbeat: RepeatingTimer
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Claim:
    """What `Jobs.claim` found. Without a `stored` response, the job is the caller's to run."""

    stored: dict[str, Any] | None = None
    _claimed: _Claimed | None = None

    @property
    def attempt(self) -> Attempt | None:
        """What the files of a claimed job are marked with."""
        return self._claimed.attempt if self._claimed else None

    def release(self) -> None:
        """Renew it no longer: unless it was ended before, it lapses."""
        if self._claimed:
            # A renewal that is under way changes nothing that `end` does.
            self._claimed.heartbeat.stop(wait_s=0)

    def end(self, response: dict[str, Any], outcome: Outcome) -> None:
        """Store the response, or give the claim up so that the same request can run again."""
        if self._claimed is None:
            return
        self.release()
        store, data = self._claimed.store, self._claimed.data
        # Only a success is final: whoever sends a failed job again has mended what was wrong.
        kept = None if outcome.error else _small(response, self._claimed.max_bytes)
        try:
            if kept is None:
                store.delete_record(data, RuntimeError("the job may run again"))
            else:
                store.save_success(data, kept)
        except Exception as error:
            # The claim ends by itself; until then the same request is answered AlreadyRunning.
            _warn("the response was not stored", error)


class Jobs:
    """The store of a handler process: DynamoDB where a table is named, else a file of SQLite."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store: Store | None = None

    def claim(self, job: Job) -> Claim:
        """Claim the job's id until `Claim.end`, if the request gave one.

        Raises AlreadyRunning if somebody else has claimed it. A store that does not work costs the
        claim, never the job.
        """
        # A new UUID never comes twice.
        if not job.caller.is_id_given or not self._is_on:
            return Claim()
        from aws_lambda_powertools.utilities.idempotency.exceptions import (  # noqa: PLC0415
            IdempotencyItemAlreadyExistsError,
        )

        data = _identity(job)
        try:
            store = self._open()
            store.save_inprogress(data, int(LEASE_S * 1000))
        except IdempotencyItemAlreadyExistsError as error:
            return Claim(stored=_stored(error.old_data_record))
        except Exception as error:
            _warn("the store of jobs does not work, the job runs without a claim", error)
            return Claim()
        max_bytes = MAX_DYNAMODB_BYTES if self._settings.jobs_table else None
        # Of another store nobody here knows whether a file was a leftover or a result. Without
        # secrets: whoever has a file's URL can read its metadata.
        request = _hash([store.identity, job.id, job.workflow])
        attempt = Attempt(request, began=datetime.now(UTC))
        heartbeat = RepeatingTimer(LEASE_S / _RENEWALS_IN_A_LEASE, lambda: _renew(store, data))
        heartbeat.start()
        return Claim(_claimed=_Claimed(store, data, max_bytes, heartbeat, attempt))

    def close(self) -> None:
        if self._store:
            self._store.close()
        self._store = None

    @property
    def _is_on(self) -> bool:
        return bool(self._settings.jobs_table or self._settings.jobs_db)

    def _open(self) -> "Store":
        if self._store is None:
            self._store = self._connect()
        return self._store

    def _connect(self) -> "Store":
        from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig  # noqa: PLC0415

        store: Store
        if self._settings.jobs_table:
            from handler.jobs_dynamodb import DynamoDBLayer  # noqa: PLC0415

            store = DynamoDBLayer(self._settings.jobs_table)
        else:
            from handler.jobs_sqlite import SqliteLayer  # noqa: PLC0415

            assert self._settings.jobs_db is not None
            store = SqliteLayer(self._settings.jobs_db)
        config = IdempotencyConfig(
            event_key_jmespath="[id, request]",
            expires_after_seconds=int(self._settings.jobs_expire_s),
            hash_function="sha256",
        )
        store.configure(config, key_prefix="job")
        return store


def _renew(store: "Store", data: dict[str, Any]) -> bool:
    try:
        store.renew(data, int((time.time() + LEASE_S) * 1000))
    except Exception as error:
        # There are others before the claim is anybody else's.
        _warn("the claim was not renewed", error)
    return True


def _identity(job: Job) -> dict[str, Any]:
    """What makes two requests the same one: the id, and everything else that they say.

    Only its hash is stored, so secrets may be part of it.
    """
    flags = [job.return_base64, job.return_temp]
    said = [asdict(job.caller), job.workflow, asdict(job.s3), *flags]
    return {"id": job.id, "request": _hash(said)}


def _hash(said: Any) -> str:
    return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _stored(record: Any) -> dict[str, Any]:
    if record is None or record.status != "COMPLETED":
        raise AlreadyRunning("the job with this request_id is running in another invocation")
    emit("job.repeated", "the request was answered before, its stored response is returned")
    response: dict[str, Any] = record.response_json_as_dict()
    return response


def _small(response: dict[str, Any], max_bytes: int | None) -> dict[str, Any] | None:
    """The response within the store's limit; None if that would cost a file that has no URL."""
    if max_bytes is None:
        return response
    stored = shrink_for_store(response, max_bytes, _size)
    if stored is None:
        logger.warning("the response is too large to be stored; the same request would run again")
    return stored


def _size(response: dict[str, Any]) -> int:
    # Powertools stores JSON that is escaped to ASCII.
    return len(json.dumps(response))


def _warn(message: str, error: Exception) -> None:
    logger.warning(message, extra={"event": "jobs.failed", "reason": type(error).__name__})
