"""The envelope of a job that has not ended, and what a record says in a list of jobs."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from events.event_context import Response
from handler.clock import STAGES
from handler.jobs.record import JobRecord, Progress, Status


@dataclass(frozen=True, slots=True)
class Webhook:
    """How far the call of the webhook is, and the id of its event."""

    state: str
    event_id: str


_MESSAGES = {
    "queued": "The job waits to be run.",
    "processing": "The job is being prepared.",
    "generating": "The workflow runs.",
}


def envelope_of(record: JobRecord, now: float, queue_position: int | None = None) -> Response:
    """The documented response of a job as it is at `now`, in seconds of Unix time."""
    if record.response is not None:
        return dict(record.response) | _webhook_of(record)
    status = status_of(record)
    progress = record.progress or Progress()
    waited_until = record.started if record.started and status != "queued" else now
    timings = dict.fromkeys(STAGES, 0.0)
    timings["queue_ms"] = round(max(waited_until - record.created, 0.0) * 1000, 1)
    timings["total_ms"] = round(max(now - record.created, 0.0) * 1000, 1)
    fields = asdict(progress)
    del fields["is_generating"]
    if status == "queued":
        fields["queue_position"] = queue_position
    return {
        "id": record.request_id,
        "status": status,
        "message": _MESSAGES[status],
        "comfyui_response": {},
        "output": list(record.outputs),
        "timings": timings,
        "progress": fields,
    }


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
