"""The claim that keeps a repeated request from spending GPU time twice, and its stored response.

docs/decisions/0007-repeated-requests.md says what is kept, and why. Powertools' Idempotency has the
records; it is imported with the first request that has an id of its own, for it imports boto3.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from events.job import Job
from handler.clock import Deadline
from handler.errors import AlreadyRunning, Cancelled
from handler.log import emit, logger
from handler.outcome import Outcome
from handler.settings import Settings

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.idempotency import (
        BasePersistenceLayer,
        DynamoDBPersistenceLayer,
    )

# An item has 400 KB at most, and its other attributes need a little:
# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html
MAX_DYNAMODB_BYTES = 390_000
# Without a deadline a claim must end some time: what an invocation may take at most.
_LONGEST_S = 5_400.0
# The handler stops working this long before Lambda ends the invocation, see handler/clock.py.
_GRACE_S = 1.0
_LEFT_OUT = (
    "this request was answered before; what ComfyUI reported is left out of the stored response,"
    " because it was too large"
)


@dataclass(frozen=True, slots=True)
class _Claimed:
    store: "BasePersistenceLayer"
    data: dict[str, Any]
    max_bytes: int | None


@dataclass(frozen=True, slots=True)
class Claim:
    """What `Jobs.claim` found. Without a `stored` response, the job is the caller's to run."""

    stored: dict[str, Any] | None = None
    _claimed: _Claimed | None = None

    def end(self, response: dict[str, Any], outcome: Outcome) -> None:
        """Store the response, or give the claim up so that the same request can run again."""
        if self._claimed is None:
            return
        store, data = self._claimed.store, self._claimed.data
        kept = _small(response, self._claimed.max_bytes) if _is_final(outcome) else None
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
        self._store: BasePersistenceLayer | None = None
        self._close: Callable[[], None] = lambda: None

    def claim(self, job: Job, deadline: Deadline) -> Claim:
        """Claim the job's id until the deadline, if the request gave one.

        Raises AlreadyRunning if somebody else has claimed it. A store that does not work costs the
        claim, never the job.
        """
        # A new UUID never comes twice.
        if not job.caller.is_id_given or not self._is_on:
            return Claim()
        from aws_lambda_powertools.utilities.idempotency.exceptions import (  # noqa: PLC0415
            IdempotencyItemAlreadyExistsError,
        )

        left_s = deadline.answer_left_s()
        expires_s = _LONGEST_S if left_s is None else max(left_s, 0.0) + _GRACE_S
        data = _identity(job)
        try:
            store = self._open()
            store.save_inprogress(data, int(expires_s * 1000))
        except IdempotencyItemAlreadyExistsError as error:
            return Claim(stored=_stored(error.old_data_record))
        except Exception as error:
            _warn("the store of jobs does not work, the job runs without a claim", error)
            return Claim()
        max_bytes = MAX_DYNAMODB_BYTES if self._settings.jobs_table else None
        return Claim(_claimed=_Claimed(store, data, max_bytes))

    def close(self) -> None:
        self._close()
        self._store = None

    @property
    def _is_on(self) -> bool:
        return bool(self._settings.jobs_table or self._settings.jobs_db)

    def _open(self) -> "BasePersistenceLayer":
        if self._store is None:
            self._store = self._connect()
        return self._store

    def _connect(self) -> "BasePersistenceLayer":
        from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig  # noqa: PLC0415

        store: BasePersistenceLayer
        if self._settings.jobs_table:
            dynamodb = _dynamodb(self._settings.jobs_table)
            store, self._close = dynamodb, dynamodb.client.close
        else:
            from handler.jobs_sqlite import SqliteLayer  # noqa: PLC0415

            assert self._settings.jobs_db is not None
            sqlite = SqliteLayer(self._settings.jobs_db)
            store, self._close = sqlite, sqlite.close
        config = IdempotencyConfig(
            event_key_jmespath="[id, request]",
            expires_after_seconds=int(self._settings.jobs_expire_s),
            hash_function="sha256",
        )
        store.configure(config, key_prefix="job")
        return store


def _dynamodb(table: str) -> "DynamoDBPersistenceLayer":
    from aws_lambda_powertools.utilities.idempotency import (  # noqa: PLC0415
        DynamoDBPersistenceLayer,
    )
    from botocore.config import Config  # noqa: PLC0415

    # A table that does not answer holds a job up for some seconds, not for the default minutes.
    retries = {"mode": "standard", "total_max_attempts": 2}
    config = Config(connect_timeout=2, read_timeout=3, retries=retries)
    return DynamoDBPersistenceLayer(table, boto_config=config)


def _identity(job: Job) -> dict[str, Any]:
    """What makes two requests the same one: the id, and everything else that they say.

    Only its hash is stored, so secrets may be part of it.
    """
    said = json.dumps([asdict(job.caller), job.workflow, asdict(job.s3), job.return_base64,
                       job.return_temp], sort_keys=True)  # fmt: skip
    return {"id": job.id, "request": sha256(said.encode()).hexdigest()}


def _stored(record: Any) -> dict[str, Any]:
    if record is None or record.status != "COMPLETED":
        raise AlreadyRunning("the job with this request_id is running in another invocation")
    emit("job.repeated", "the request was answered before, its stored response is returned")
    response: dict[str, Any] = record.response_json_as_dict()
    return response


def _is_final(outcome: Outcome) -> bool:
    """Whether a repeat would spend GPU time for nothing new."""
    error = outcome.error
    if error is None:
        return True
    has_run = outcome.entry is not None or (outcome.execution and outcome.execution.began)
    return bool(has_run) and not error.retryable and not isinstance(error, Cancelled)


def _small(response: dict[str, Any], max_bytes: int | None) -> dict[str, Any] | None:
    """The response within the store's limit; None if that would cost a file that has no URL."""
    if max_bytes is None or _size(response) <= max_bytes:
        return response
    details = response["comfyui_response"].get("execution_details")
    compact = {
        **response,
        "comfyui_response": (
            {"execution_details": {**details, "progress_updates": []}} if details else {}
        ),
        "output": [_small_item(item) for item in response["output"]],
        "warnings": [*response.get("warnings", []), _LEFT_OUT],
    }
    if _size(compact) <= max_bytes:
        return compact
    logger.warning("the response is too large to be stored; the same request would run again")
    return None


def _small_item(item: dict[str, Any]) -> dict[str, Any]:
    if "url" not in item:
        return item
    return {name: value for name, value in item.items() if name not in ("base64", "text")}


def _size(response: dict[str, Any]) -> int:
    # Powertools stores JSON that is escaped to ASCII.
    return len(json.dumps(response))


def _warn(message: str, error: Exception) -> None:
    logger.warning(message, extra={"event": "jobs.failed", "reason": type(error).__name__})
