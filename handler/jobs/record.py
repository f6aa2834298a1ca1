"""The job record: all that is kept about one job, and the form in which every store keeps it.

Who may change a record, and when, is decided in `store`; what may be its response in
`stored_response`; when the handler asks for a change in `claims`; which requests are the same job
in `fingerprint`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from events.job import Job
from handler.jobs.fingerprint import fingerprint

Response = dict[str, Any]


class UnreadableRecord(ValueError):
    """A store holds something under a job's id that is no job record."""


class Status(StrEnum):
    """How far a job is.

    A job that failed is RUNNING with a lease that has ended: the same request may run again.
    """

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

    `request` is the `request_fingerprint` of the one request that the id stands for. `webhook` is
    the id of a completed job's webhook event until its delivery has ended, else empty; the lease is
    then that of the delivery. A store forgets the record at `expires_at`, in seconds of Unix time.
    """

    id: str
    status: Status
    lease: Lease
    expires_at: int
    request: str
    response: Response | None = None
    webhook: str = ""


def record_id(request_id: str) -> str:
    """The key of a job's record; the id of the request is enough to find it."""
    return f"id#{request_id}"


def earlier_record_id(job: Job) -> str:
    """The key that earlier versions gave the job's record; it covers everything in the request."""
    flags = [job.return_base64, job.return_temp]
    request = fingerprint([asdict(job.caller), job.workflow, asdict(job.s3), *flags])
    return f"job#{fingerprint([job.id, request])}"


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
        "request": record.request,
        "webhook": record.webhook,
        "data": "" if record.response is None else encode_response(record.response),
    }


def from_item(item: Mapping[str, Any]) -> JobRecord:
    """The record that `to_item` made an item of.

    Earlier versions wrote no `owner`, `request` and `webhook`. Raises UnreadableRecord.
    """
    try:
        status = Status(item["status"])
        return JobRecord(
            id=str(item["id"]),
            status=status,
            lease=Lease(str(item.get("owner", "")), int(item["in_progress_expiration"]) / 1000),
            expires_at=int(item["expiration"]),
            request=str(item.get("request", "")),
            response=_decode_response(item["data"]) if status is Status.COMPLETED else None,
            webhook=str(item.get("webhook", "")),
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
