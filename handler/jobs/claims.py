"""The handler's side of the job store: claim a job, or find its answer.

A claim keeps a repeated request from spending GPU time twice, and another request from the id of
the job; the reasons are in docs/decisions/0007-repeated-requests.md. A store that does not work
costs the claim, never the job. What a record holds is decided in `record`, which changes are
allowed in `moves`, which requests are the same job in `fingerprint`, and what happens while a claim
is held in `held_claim`.
"""

import math
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from events.errors import AlreadyRunning, IdConflict
from events.job import Job
from handler.emit import emit
from handler.job_events import JobRepeated
from handler.jobs import held_claim, moves
from handler.jobs.fingerprint import fingerprint, request_fingerprint
from handler.jobs.held_claim import Clock, HeldClaim, warn
from handler.jobs.record import (
    JobRecord,
    Lease,
    Progress,
    Response,
    Status,
    WebhookState,
    record_id,
)
from handler.jobs.store import Changed, Store, is_store_configured, open_store
from handler.leftovers import Attempt
from handler.settings import Settings
from handler.termination import at_termination

# A job that has not ended is known for longer than its message can wait in a queue, two weeks:
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
UNFINISHED_KEPT_S = 15 * 86_400.0
# A handler renews its lease every second. One whose lease has lapsed by the clock of this machine
# alone is seen to renew it within this time.
OBSERVE_S = 2.5


def new_record(job: Job, *, status: Status, lease: Lease, source: str, now: float) -> JobRecord:
    """The record of a job that is accepted, or begins, at `now` (Unix time in seconds)."""
    is_running = status is Status.RUNNING
    return JobRecord(
        id=record_id(job.id),
        status=status,
        lease=lease,
        retained_until=math.ceil(now + UNFINISHED_KEPT_S),
        request=request_fingerprint(job),
        source=source,
        created=now,
        started=now if is_running else None,
        worker=socket.gethostname() if is_running else "",
    )


class Jobs:
    """The claims of a handler process, and its connection to the store.

    `clock` returns Unix time in seconds.
    """

    def __init__(self, settings: Settings, clock: Clock = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._store: Store | None = None
        self._held: HeldClaim | None = None

    def claim(self, job: Job, source: str = "") -> "Claim":
        """Claim the job, or find its stored response.

        Raises AlreadyRunning if another invocation holds the claim, and IdConflict if the id stands
        for another request. Nothing is claimed if no store is configured, or if it does not work.
        """
        if not is_store_configured(self._settings):
            return Claim()
        now = self._clock()
        lease = Lease(owner=uuid.uuid4().hex, until=now + held_claim.LEASE_S)
        record = new_record(job, status=Status.RUNNING, lease=lease, source=source, now=now)
        try:
            store = self._open()
            changed = self._change(store, record, now)
        except Exception as error:
            warn("the job store does not work, the job runs without a claim", error)
            return Claim()
        if changed.is_made and changed.after:
            self._held = self._hold(store, changed.after, job)
            # A stop of this process must not keep the job from the next delivery of its message.
            at_termination(self.give_up)
            return Claim(held=self._held)
        assert changed.before is not None
        return self._refuse(store, changed.before, record, now)

    def give_up(self) -> None:
        """End the claim of a job that still runs, because this process ends."""
        if self._held:
            self._held.give_up()

    def close(self) -> None:
        """Close the store; the next claim opens it again."""
        if self._store:
            self._store.close()
        self._store = None

    def _change(self, store: Store, record: JobRecord, now: float) -> Changed:
        if store.has_one_clock:
            return store.change(record.id, moves.claim(record, now), now)
        changed = store.change(record.id, moves.claim(record, now, seen_version=None), now)
        before = changed.before
        if changed.is_made or before is None or not moves.has_lapsed(before, now):
            return changed
        # Lapsed by the clock of this machine; a handler that lives renews its lease meanwhile.
        time.sleep(OBSERVE_S)
        return store.change(
            record.id, moves.claim(record, now, seen_version=before.version), now, known=before
        )

    def _refuse(self, store: Store, existing: JobRecord, record: JobRecord, now: float) -> "Claim":
        """The stored answer of a job that may not be claimed. Raises AlreadyRunning, IdConflict."""
        if moves.is_other(existing, record):
            raise IdConflict(
                "input.request_id: this id stands for another request, whose workflow, bucket,"
                " webhook or flags are different; send the new request with a new id"
            )
        if existing.status is Status.RUNNING or existing.response is None:
            # One that has just lapsed is renewed.
            raise _already_running(max(existing.lease.until - now, 1.0))
        if existing.has_open_webhook:
            return self._take_delivery(store, existing, record.lease, now)
        emit(JobRepeated())
        return Claim(stored=existing.response)

    def _take_delivery(
        self, store: Store, existing: JobRecord, lease: Lease, now: float
    ) -> "Claim":
        """The claim of a job that has an answer, but whose webhook was not delivered.

        Raises AlreadyRunning if another handler calls it now.
        """
        try:
            changed = store.change(
                existing.id, moves.take_delivery(lease, now), now, known=existing
            )
        except Exception as error:
            warn("the webhook of a completed job was not called", error)
            return Claim(stored=existing.response)
        if not changed.is_made or changed.after is None:
            raise _already_running(max(existing.lease.until - now, 1.0))
        emit(JobRepeated())
        held = HeldClaim(store, changed.after, None, self._clock, self._settings.jobs_expire_s)
        return Claim(stored=existing.response, held=held)

    def _open(self) -> Store:
        if self._store is None:
            self._store = open_store(self._settings)
        return self._store

    def _hold(self, store: Store, record: JobRecord, job: Job) -> HeldClaim:
        # The hash covers the store, because a file of another store's job may be a result of that
        # job, not a leftover. It covers no secret, because a file's URL shows the file's metadata.
        request = fingerprint([store.identity, job.id, job.content])
        attempt = Attempt(request, began=datetime.now(UTC))
        return HeldClaim(store, record, attempt, self._clock, self._settings.jobs_expire_s)


@dataclass(frozen=True, slots=True)
class Claim:
    """What `Jobs.claim` came to: a `stored` response, a claim that is `held`, both, or neither.

    Without a stored response the job is the caller's to run. With both, the job has ended, and its
    webhook `webhook_event` is the caller's to call.
    """

    stored: Response | None = None
    held: HeldClaim | None = None

    @property
    def attempt(self) -> Attempt | None:
        """What the files of a claimed job are marked with; None for a job without a claim."""
        return self.held.attempt if self.held else None

    @property
    def webhook_event(self) -> str:
        """The id of the event that was not delivered yet; empty without one."""
        return self.held.webhook_event if self.held else ""

    def is_cancel_requested(self) -> bool:
        """Whether somebody has asked for the job's end, as known since the latest poll."""
        return self.held is not None and self.held.is_cancel_requested()

    def note_progress(self, progress: Progress) -> None:
        """Store it with the next renewal of the claim."""
        if self.held:
            self.held.note_progress(progress)

    def note_outputs(self, items: Sequence[dict[str, Any]]) -> None:
        """Store the items of `output` that are there by now with the next renewal."""
        if self.held:
            self.held.note_outputs(items)

    def note_death(self) -> bool:
        """Note that ComfyUI died while it ran the job. True if it had done so before.

        False where no store keeps the claim.
        """
        return self.held is not None and self.held.note_death()

    def begin_delivery(self, response: Response, event_id: str) -> None:
        """Store the end of the job before its webhook is called; see HeldClaim."""
        if self.held:
            self.held.begin_delivery(response, event_id)

    def end(
        self,
        response: Response,
        *,
        webhook_state: WebhookState = WebhookState.NONE,
        comes_again: bool = False,
    ) -> None:
        """Store the end of the job, or of the call of its webhook; see HeldClaim."""
        if self.held:
            self.held.end(response, webhook_state=webhook_state, comes_again=comes_again)

    def release(self) -> None:
        """Stop the renewal of the claim: unless it was ended before, it lapses."""
        if self.held:
            self.held.release()


def _already_running(retry_after_s: float) -> AlreadyRunning:
    return AlreadyRunning(
        "the job with this request_id is running in another invocation",
        retry_after_s=retry_after_s,
    )
