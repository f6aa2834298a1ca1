"""The job record: all that is kept about one job, and the form in which every store keeps it.

Which changes of a record are allowed is decided in `moves`; what may be its response in
`stored_response`; when the handler asks for a change in `claims`; which requests are the same job
in `fingerprint`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

Response = dict[str, Any]

# How long an id is known to have existed after its response was forgotten.
TOMBSTONE_S = 30 * 86_400


# What a store holds instead of a response that it has forgotten: None, as JSON.
FORGOTTEN = "null"


class UnreadableRecord(ValueError):
    """A store holds something under a job's id that is no job record."""


class Status(StrEnum):
    """How far a job is. The values of RUNNING and COMPLETED are those of earlier versions."""

    QUEUED = "QUEUED"
    RUNNING = "INPROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)


class WebhookState(StrEnum):
    """How far the call of the webhook about a job's end is."""

    NONE = ""
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Lease:
    """Who runs the job, and until when others must leave it alone.

    `owner` is a random token, another one for every claim; "" while nobody runs it. `until` is Unix
    time in seconds.
    """

    owner: str
    until: float


FREE = Lease("", 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the run of a job is.

    `percentage` is that of the whole graph, 0 to 100; it never falls within an attempt. `step` and
    `steps` are those of the current node, `eta_s` is an estimate of the seconds left, and
    `queue_position` the number of prompts before this one in ComfyUI's queue.
    """

    percentage: float = 0.0
    node_id: str | None = None
    class_type: str = ""
    title: str = ""
    step: float | None = None
    steps: float | None = None
    nodes_done: int = 0
    nodes_total: int = 0
    queue_position: int | None = None
    eta_s: float | None = None
    # Of the model file that the running node waits for; None while it waits for none.
    weights_done_bytes: int | None = None
    weights_total_bytes: int | None = None
    # The prompt has left ComfyUI's queue.
    is_generating: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One job, under the `id` that `record_id` gives it.

    - `request` is the `request_fingerprint` of the one request that the id stands for; "" once that
      request was refused, so that the id is free.
    - `source` is the name of the event source, `worker` the host that ran the job last.
    - `created`, `started` and `finished` are Unix time in seconds; `started` is that of the latest
      attempt.
    - `attempt` counts the claims, `deaths` the times that ComfyUI died while it ran the job.
    - `outputs` are the items of `output` so far; `response` is the documented response of the job's
      end.
    - `must_rerun`: the stored response does not answer the same request, which runs again.
    - `webhook` is the id of the event that tells of the job's end; the lease of a job that has
      ended is that of the call.
    - At `retained_until`, in seconds of Unix time, everything but the id is forgotten.
    - `version` counts the changes.
    """

    id: str
    status: Status
    lease: Lease
    retained_until: int
    request: str
    source: str = ""
    created: float = 0.0
    started: float | None = None
    finished: float | None = None
    attempt: int = 0
    deaths: int = 0
    worker: str = ""
    is_cancel_requested: bool = False
    progress: Progress | None = None
    outputs: tuple[dict[str, Any], ...] = ()
    response: Response | None = None
    must_rerun: bool = False
    webhook: str = ""
    webhook_state: WebhookState = WebhookState.NONE
    version: int = 0

    @property
    def request_id(self) -> str:
        return self.id.removeprefix(_ID_PREFIX)

    @property
    def has_open_webhook(self) -> bool:
        """Whether the webhook is still to be told of the job's end."""
        return self.webhook_state in (WebhookState.PENDING, WebhookState.FAILED)

    def is_retained(self, now: float) -> bool:
        """Whether more than the id is known; `now` is Unix time in seconds."""
        return self.retained_until > int(now)

    def is_known(self, now: float) -> bool:
        """Whether the id is known to have existed."""
        return self.retained_until + TOMBSTONE_S > int(now)


_ID_PREFIX = "id#"


def record_id(request_id: str) -> str:
    """The key of a job's record; the id of the request is enough to find it."""
    return f"{_ID_PREFIX}{request_id}"


def encode_response(response: Response) -> str:
    """The response as a record holds it: JSON in ASCII, so one character is one byte."""
    return json.dumps(response)


def to_item(record: JobRecord) -> dict[str, str | int]:
    """The record by the names of DynamoDB's attributes and SQLite's columns.

    Some names are those that Powertools' Idempotency wrote for earlier versions: their records are
    found, and while a stack is updated, both share its table.
    """
    return {
        "id": record.id,
        "status": record.status.value,
        "owner": record.lease.owner,
        "in_progress_expiration": in_ms(record.lease.until),
        "retained_until": record.retained_until,
        "expiration": record.retained_until + TOMBSTONE_S,
        "request": record.request,
        "source": record.source,
        "created": in_ms(record.created),
        "started": in_ms(record.started or 0),
        "finished": in_ms(record.finished or 0),
        "attempt": record.attempt,
        "deaths": record.deaths,
        "worker": record.worker,
        "cancel_requested": int(record.is_cancel_requested),
        "progress": "" if record.progress is None else json.dumps(asdict(record.progress)),
        "outputs": json.dumps(record.outputs) if record.outputs else "",
        "data": _encode_data(record),
        "must_rerun": int(record.must_rerun),
        "webhook": record.webhook,
        "webhook_state": record.webhook_state.value,
        "version": record.version,
    }


def from_item(item: Mapping[str, Any]) -> JobRecord:
    """The record that `to_item` made an item of, with defaults for what earlier versions lack.

    Raises UnreadableRecord.
    """
    try:
        status = Status(item["status"])
        return JobRecord(
            id=str(item["id"]),
            status=status,
            lease=Lease(str(item.get("owner", "")), int(item["in_progress_expiration"]) / 1000),
            retained_until=int(item.get("retained_until") or item["expiration"]),
            request=str(item.get("request", "")),
            source=str(item.get("source", "")),
            created=int(item.get("created", 0)) / 1000,
            started=_time(item.get("started")),
            finished=_time(item.get("finished")),
            attempt=int(item.get("attempt", 0)),
            deaths=int(item.get("deaths", 0)),
            worker=str(item.get("worker", "")),
            is_cancel_requested=bool(item.get("cancel_requested")),
            progress=_decode_progress(item.get("progress")),
            outputs=tuple(json.loads(item.get("outputs") or "[]")),
            response=_decode_response(item, status),
            must_rerun=bool(item.get("must_rerun")),
            webhook=str(item.get("webhook", "")),
            webhook_state=_webhook_state(item),
            version=int(item.get("version", 0)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        # The item may hold pre-signed URLs: the message names none of its values.
        raise UnreadableRecord(
            f"the record of the job is damaged: {type(error).__name__}"
        ) from None


def _encode_data(record: JobRecord) -> str:
    if record.response is None:
        return FORGOTTEN if record.status.is_final else ""
    return encode_response(record.response)


def in_ms(seconds: float) -> int:
    """Seconds as the whole milliseconds that an item holds."""
    return round(seconds * 1000)


def _time(ms: Any) -> float | None:
    return int(ms) / 1000 if ms else None


def _decode_progress(raw: Any) -> Progress | None:
    return Progress(**json.loads(raw)) if raw else None


def _webhook_state(item: Mapping[str, Any]) -> WebhookState:
    if not item.get("webhook_state") and item.get("webhook"):
        # An earlier version: the id was there until the call had ended.
        return WebhookState.PENDING
    return WebhookState(item.get("webhook_state") or "")


def _decode_response(item: Mapping[str, Any], status: Status) -> Response | None:
    # A list of records has none.
    if not status.is_final or "data" not in item:
        return None
    response: Response | None = json.loads(item["data"])
    if response is None:
        return None
    if (response["status"] == "completed") != (status is Status.COMPLETED):
        raise ValueError
    return response
