"""The envelope of a job that has not ended, and what a record says in a list of jobs."""

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from events.event_context import Response
from handler.jobs.record import JobRecord, Progress, Status
from handler.unfinished_response import unfinished_response


@dataclass(frozen=True, slots=True)
class Webhook:
    """How far the call of the webhook is, and the id of its event."""

    state: str
    event_id: str


def envelope_of(record: JobRecord, now: float, queue_position: int | None = None) -> Response:
    """The documented response of a job as it is at `now`, in seconds of Unix time."""
    if record.response is not None:
        return dict(record.response) | _webhook_of(record)
    status = status_of(record)
    progress = record.progress or Progress()
    if status == "queued":
        progress = replace(progress, queue_position=queue_position)
    waited_until = record.started if record.started and status != "queued" else now
    return unfinished_response(
        record.request_id,
        status,
        output=record.outputs,
        timings={
            "queue_ms": round(max(waited_until - record.created, 0.0) * 1000, 1),
            "total_ms": round(max(now - record.created, 0.0) * 1000, 1),
        },
        progress=progress,
    )


def status_of(record: JobRecord) -> str:
    """The documented word for the status of a job."""
    match record.status:
        case Status.QUEUED:
            return "queued"
        case Status.RUNNING:
            is_generating = record.progress is not None and record.progress.is_generating
            return "generating" if is_generating else "processing"
        case Status.COMPLETED:
            return "completed"
        case Status.CANCELLED:
            return "cancelled"
    return "failed"


def summary_of(record: JobRecord) -> dict[str, Any]:
    """One item of a list of jobs."""
    return {
        "id": record.request_id,
        "status": status_of(record),
        "source": record.source,
        "created_at": _time(record.created),
        "started_at": _time(record.started),
        "finished_at": _time(record.finished),
        "attempt": record.attempt,
        "worker": record.worker,
    }


def _webhook_of(record: JobRecord) -> dict[str, Any]:
    """How far the call of the webhook is, where it was not delivered."""
    if record.has_open_webhook:
        return {"webhook": asdict(Webhook(record.webhook_state.value, record.webhook))}
    return {}


def _time(seconds: float | None) -> str | None:
    """RFC 3339, in UTC."""
    if not seconds:
        return None
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
