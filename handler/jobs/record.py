"""The job record: all that is kept about one job, and the form in which every store keeps it.

Who may change a record, and when, is decided in `store`; what may be its response in
`stored_response`; when the handler asks for a change in `claims`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Any

from events.job import Job

Response = dict[str, Any]


class UnreadableRecord(ValueError):
    """A store holds something under a job's id that is no job record."""


class Status(StrEnum):
    """How far a job is. A job that failed has no record: the same request may run again."""

    RUNNING = "INPROGRESS"
    COMPLETED = "COMPLETED"


@dataclass(frozen=True, slots=True)
class Lease:
    """Who runs the job, and until when others must leave it alone.

    `owner` is a random token, another one for every claim. `until` is Unix time in seconds.
    """

    owner: str
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One job, under the `id` that `record_id` gives it. Only a completed job has a `response`.

    A store forgets the record at `expires_at`, in seconds of Unix time.
    """

    id: str
    status: Status
    lease: Lease
    expires_at: int
    response: Response | None = None


def record_id(job: Job) -> str:
    """Two requests have the same one if their id and everything else in them is the same.

    It is a hash, so a store holds no secret of the request.
    """
    flags = [job.return_base64, job.return_temp]
    request = fingerprint([asdict(job.caller), job.workflow, asdict(job.s3), *flags])
    return f"job#{fingerprint([job.id, request])}"


def fingerprint(value: Any) -> str:
    """The SHA-256 hash of a JSON value, in hexadecimal digits."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def encode_response(response: Response) -> str:
    """The response as a record holds it: JSON in ASCII, so one character is one byte."""
    return json.dumps(response)


def to_item(record: JobRecord) -> dict[str, str | int]:
    """The record by the names of DynamoDB's attributes and SQLite's columns.

    The names and the words of `Status` are those that Powertools' Idempotency wrote for earlier
    versions: their records are found, and while a stack is updated, both share its table.
    """
    return {
        "id": record.id,
        "status": record.status.value,
        "owner": record.lease.owner,
        "in_progress_expiration": in_ms(record.lease.until),
        "expiration": record.expires_at,
        "data": "" if record.response is None else encode_response(record.response),
    }


def from_item(item: Mapping[str, Any]) -> JobRecord:
    """The record that `to_item` made an item of. Earlier versions wrote no `owner`.

    Raises UnreadableRecord.
    """
    try:
        status = Status(item["status"])
        return JobRecord(
            id=str(item["id"]),
            status=status,
            lease=Lease(str(item.get("owner", "")), int(item["in_progress_expiration"]) / 1000),
            expires_at=int(item["expiration"]),
            response=_decode_response(item["data"]) if status is Status.COMPLETED else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        # The item may hold pre-signed URLs: the message names none of its values.
        raise UnreadableRecord(
            f"the record of the job is damaged: {type(error).__name__}"
        ) from None


def in_ms(seconds: float) -> int:
    """Seconds as the whole milliseconds that an item holds."""
    return int(seconds * 1000)


def _decode_response(raw: str) -> Response:
    response = json.loads(raw)
    # Only a success is stored.
    if response["status"] != "completed":
        raise ValueError
    decoded: Response = response
    return decoded
