"""Which changes of a job record are allowed: the one place that decides it, for every store.

Each function takes the record as it is, and returns what it becomes, or None if it must stay. It
knows no store: a store applies it to the record that it holds, and nobody changes the record in
between (`Store.change`). A record that is no longer retained counts as absent.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from handler.jobs.record import (
    FREE,
    JobRecord,
    Lease,
    Progress,
    Response,
    Status,
    WebhookState,
)

# The record as it is (None: absent) → the record as it becomes (None: it stays as it is).
Move = Callable[[JobRecord | None], JobRecord | None]

# From which status a job may come into which; None: it is not known, or its retention is over.
# tests/handler/test_job_moves.py tries all others.
MOVES: Mapping[Status | None, frozenset[Status]] = {
    None: frozenset(Status),
    Status.QUEUED: frozenset({Status.RUNNING, Status.CANCELLED, Status.COMPLETED, Status.FAILED}),
    Status.RUNNING: frozenset(
        {Status.RUNNING, Status.QUEUED, Status.COMPLETED, Status.FAILED, Status.CANCELLED}
    ),
    # The same request is sent again, or a dead letter is sent back.
    Status.FAILED: frozenset({Status.QUEUED, Status.RUNNING}),
    # If its response does not answer a repeat.
    Status.COMPLETED: frozenset({Status.QUEUED, Status.RUNNING}),
    # If it was interrupted in ComfyUI, and nobody has asked for its end.
    Status.CANCELLED: frozenset({Status.QUEUED, Status.RUNNING}),
}


def accept(record: JobRecord, now: float) -> Move:
    """A request is put into a queue: `record` is QUEUED.

    Refused if the id stands for another request, or its job is queued, runs, or has an answer.
    """

    def move(existing: JobRecord | None) -> JobRecord | None:
        if existing is None or not existing.is_retained(now):
            return record
        if is_other(existing, record) or not _may_run_again(existing):
            return None
        return replace(record, attempt=existing.attempt, deaths=existing.deaths)

    return move


ANY_VERSION = -1


def claim(record: JobRecord, now: float, seen_version: int | None = ANY_VERSION) -> Move:
    """A handler begins to run the job: `record` is RUNNING, with a lease of the handler.

    Refused if the id stands for another request, if another handler's lease has not lapsed, and if
    the job has an answer. A lapsed lease is taken over only if the record still has `seen_version`;
    None takes over none. A request to cancel the job stays: its handler ends it.
    """

    def move(existing: JobRecord | None) -> JobRecord | None:
        if existing is None or not existing.is_retained(now):
            return replace(record, attempt=1)
        if is_other(existing, record):
            return None
        if existing.lease.owner == record.lease.owner:
            # The call was repeated.
            return existing
        is_left = has_lapsed(existing, now) and seen_version in (ANY_VERSION, existing.version)
        is_free = existing.status is Status.QUEUED or is_left
        if not (is_free or _may_run_again(existing)):
            return None
        return replace(
            record,
            source=existing.source or record.source,
            created=(existing.created or record.created) if is_free else record.created,
            attempt=existing.attempt + 1,
            deaths=existing.deaths,
            is_cancel_requested=existing.is_cancel_requested and is_free,
        )

    return move


def renew(
    lease: Lease, progress: Progress | None = None, outputs: tuple[dict[str, Any], ...] = ()
) -> Move:
    """The owner of the lease goes on; `progress` and `outputs` are what is known by now."""

    def move(existing: JobRecord | None) -> JobRecord | None:
        if existing is None or existing.lease.owner != lease.owner:
            return None
        if existing.status.is_final:
            # The lease is that of the webhook call.
            return replace(existing, lease=lease)
        return replace(
            existing,
            lease=lease,
            progress=progress or existing.progress,
            outputs=outputs or existing.outputs,
        )

    return move


def finish(record: JobRecord) -> Move:
    """The handler ends the job: `record` has its final status and response.

    Refused if another handler has taken the job over. A handler whose record was lost still stores
    its end; so does a success whose job another handler has given up meanwhile.
    """

    def move(existing: JobRecord | None) -> JobRecord | None:
        if existing is None:
            return record
        if existing.lease.owner == record.lease.owner:
            if existing.status is not Status.RUNNING:
                return None
            return replace(record, is_cancel_requested=existing.is_cancel_requested)
        is_given_up = existing.status is Status.QUEUED and existing.lease == FREE
        if is_given_up and not is_other(existing, record) and record.status is Status.COMPLETED:
            return record
        return None

    return move


def requeue(owner: str) -> Move:
    """The handler gives the job up, and the same request may be claimed at once."""

    def move(existing: JobRecord | None) -> JobRecord | None:
        if existing is None or existing.lease.owner != owner:
            return None
        if existing.status is not Status.RUNNING:
            return None
        return replace(existing, status=Status.QUEUED, lease=FREE, progress=None)

    return move


def request_cancel(response: Response, event_id: str, now: float, keep_s: float) -> Move:
    """Somebody asks for the job's end.

    A job that waits has ended with it: `response` is its answer, kept for `keep_s` seconds, and
    `event_id` tells its webhook of that when its message arrives. So has one whose handler is gone.
    A job that runs is ended by its handler. A job that has ended stays as it is.
    """

    def move(existing: JobRecord | None) -> JobRecord | None:
        if existing is None or not existing.is_retained(now) or existing.status.is_final:
            return None
        if existing.status is Status.RUNNING and not has_lapsed(existing, now):
            return (
                None
                if existing.is_cancel_requested
                else replace(existing, is_cancel_requested=True)
            )
        return replace(
            existing,
            status=Status.CANCELLED,
            lease=FREE,
            is_cancel_requested=True,
            finished=now,
            retained_until=math.ceil(now + keep_s),
            response=response,
            webhook=event_id,
            webhook_state=WebhookState.PENDING,
        )

    return move


def abandon(response: Response, now: float, keep_s: float) -> Move:
    """Nothing will run a job that waits, or whose handler is gone: `response` says why.

    The same request may be sent again.
    """

    def move(existing: JobRecord | None) -> JobRecord | None:
        if existing is None or not existing.is_retained(now):
            return None
        if existing.status is not Status.QUEUED and not has_lapsed(existing, now):
            return None
        return replace(
            existing,
            status=Status.FAILED,
            lease=FREE,
            finished=now,
            retained_until=math.ceil(now + keep_s),
            response=response,
        )

    return move


def take_delivery(lease: Lease, now: float) -> Move:
    """A handler takes over the call of the webhook about a job that has an answer.

    Refused if there is none to make, or if another handler's lease has not lapsed.
    """

    def move(existing: JobRecord | None) -> JobRecord | None:
        if existing is None or not existing.status.is_final or not existing.is_retained(now):
            return None
        if not existing.has_open_webhook or existing.lease.until >= now:
            return None
        return replace(existing, lease=lease, webhook_state=WebhookState.PENDING)

    return move


def end_delivery(owner: str, state: WebhookState) -> Move:
    """The call of the webhook has ended: it was delivered, failed, or there was none to make."""

    def move(existing: JobRecord | None) -> JobRecord | None:
        if existing is None or existing.lease.owner != owner or not existing.status.is_final:
            return None
        webhook = existing.webhook if state else ""
        return replace(existing, webhook=webhook, webhook_state=state, lease=Lease(owner, 0.0))

    return move


def note_death(owner: str) -> Move:
    """ComfyUI has died while it ran the job of this owner."""

    def move(existing: JobRecord | None) -> JobRecord | None:
        if existing is None or existing.lease.owner != owner:
            return None
        return replace(existing, deaths=existing.deaths + 1)

    return move


def is_other(existing: JobRecord, record: JobRecord) -> bool:
    """Whether the id of `existing` stands for another request than `record`."""
    # A request that was refused leaves its id free.
    return existing.request not in ("", record.request)


def has_lapsed(existing: JobRecord, now: float) -> bool:
    """Whether the lease of a running job ended before `now`."""
    return existing.status is Status.RUNNING and existing.lease.until < now


def _may_run_again(existing: JobRecord) -> bool:
    match existing.status:
        case Status.FAILED:
            return True
        case Status.COMPLETED:
            return existing.must_rerun
        case Status.CANCELLED:
            return not existing.is_cancel_requested
    return False
