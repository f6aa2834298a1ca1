"""The handler's side of the job store: claim a job, renew the claim while it runs, end it.

A claim keeps a repeated request from spending GPU time twice, and another request from the id of
the job; the reasons are in docs/decisions/0007-repeated-requests.md. A store that does not work
costs the claim, never the job. What a record holds is decided in `record`, who may change it in
`store`, which requests are the same job in `fingerprint`, what a stored response is in
`stored_response`.
"""

import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from events.errors import AlreadyRunning, IdConflict, InvalidRequest, WorkflowRejected, class_of
from events.job import Job
from events.repeating_timer import RepeatingTimer
from handler.emit import emit
from handler.job_events import JobRepeated, JobStoreFailed
from handler.jobs.fingerprint import fingerprint, request_fingerprint
from handler.jobs.record import (
    JobRecord,
    Lease,
    Response,
    Status,
    earlier_record_id,
    record_id,
)
from handler.jobs.store import Store, is_store_configured, open_store
from handler.jobs.stored_response import storable
from handler.leftovers import Attempt
from handler.settings import Settings
from handler.termination import at_termination

# The claim of a killed handler lapses after this time. It is shorter than the time for which the
# handler's SQS message stays hidden, so the next delivery of the message finds the job free.
LEASE_S = 15.0
_RENEWALS_PER_LEASE = 3
# The job never began, so the id can stand for the request that comes instead.
_REFUSALS = (InvalidRequest, WorkflowRejected, IdConflict)

Clock = Callable[[], float]


class Jobs:
    """The claims of a handler process, and its connection to the store.

    `clock` returns Unix time in seconds. Every handler compares a lease with its own clock, so the
    clocks of the machines that share a store must agree within a few seconds.
    """

    def __init__(self, settings: Settings, clock: Clock = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._store: Store | None = None
        self._held: HeldClaim | None = None

    def claim(self, job: Job) -> "Claim":
        """Claim the job, or find its stored response.

        Raises AlreadyRunning if another invocation holds the claim, and IdConflict if the id stands
        for another request. Nothing is claimed if the request gave no id (a new UUID never comes
        twice), if no store is configured, or if the store does not work.
        """
        if not job.caller.is_id_given or not is_store_configured(self._settings):
            return Claim()
        try:
            store = self._open()
            now = self._clock()
            record = JobRecord(
                id=record_id(job.id),
                status=Status.RUNNING,
                lease=Lease(owner=uuid.uuid4().hex, until=now + LEASE_S),
                expires_at=math.ceil(now + self._settings.jobs_expire_s),
                request=request_fingerprint(job),
            )
            existing = store.claim(record, now) or _claim_of_earlier_version(
                store, job, record, now
            )
        except Exception as error:
            _warn("the job store does not work, the job runs without a claim", type(error).__name__)
            return Claim()
        if existing is None:
            self._held = self._hold(store, record, job)
            # A stop of this process must not keep the job from the next delivery of its message.
            at_termination(self.give_up)
            return Claim(held=self._held)
        if existing.request != record.request:
            raise IdConflict(
                "input.request_id: this id stands for another request, whose workflow, bucket,"
                " webhook or flags are different; send the new request with a new id"
            )
        if existing.webhook and existing.lease.until < now:
            return self._take_delivery(store, existing, record.lease, now)
        if existing.status is Status.RUNNING or existing.webhook:
            raise _already_running(existing.lease.until - now)
        emit(JobRepeated())
        return Claim(stored=existing.response)

    def give_up(self) -> None:
        """End the claim of a job that still runs, because this process ends."""
        if self._held:
            self._held.give_up()

    def close(self) -> None:
        """Close the store; the next claim opens it again."""
        if self._store:
            self._store.close()
        self._store = None

    def _take_delivery(
        self, store: Store, existing: JobRecord, lease: Lease, now: float
    ) -> "Claim":
        """The claim of a completed job whose handler was killed before its webhook was delivered.

        Raises AlreadyRunning if another repeat was faster.
        """
        try:
            is_taken = store.take_delivery(existing.id, lease, now)
        except Exception as error:
            _warn("the webhook of a completed job was not called", type(error).__name__)
            return Claim(stored=existing.response)
        if not is_taken:
            raise _already_running(LEASE_S)
        emit(JobRepeated())
        record = replace(existing, lease=lease)
        held = HeldClaim(store, record, None, self._clock, self._settings.jobs_expire_s)
        return Claim(stored=existing.response, held=held)

    def _open(self) -> Store:
        if self._store is None:
            self._store = open_store(self._settings)
        return self._store

    def _hold(self, store: Store, record: JobRecord, job: Job) -> "HeldClaim":
        # The hash covers the store, because a file of another store's job may be a result of that
        # job, not a leftover. It covers no secret, because a file's URL shows the file's metadata.
        request = fingerprint([store.identity, job.id, job.workflow])
        attempt = Attempt(request, began=datetime.now(UTC))
        return HeldClaim(store, record, attempt, self._clock, self._settings.jobs_expire_s)


@dataclass(frozen=True, slots=True)
class Claim:
    """What `Jobs.claim` came to: a `stored` response, a claim that is `held`, both, or neither.

    Without a stored response the job is the caller's to run. With both, the job has completed, and
    its webhook `webhook_event` is the caller's to call.
    """

    stored: Response | None = None
    held: "HeldClaim | None" = None

    @property
    def attempt(self) -> Attempt | None:
        """What the files of a claimed job are marked with; None for a job without a claim."""
        return self.held.attempt if self.held else None

    @property
    def webhook_event(self) -> str:
        """The id of the event that an earlier handler did not deliver; empty without one."""
        return self.held.webhook_event if self.held else ""

    def begin_delivery(self, response: Response, event_id: str) -> None:
        """Store a success before its webhook is called; the claim is held until `end`.

        If the handler is killed during the call, a repeat calls the webhook, with the same event
        id, and does not run the job.
        """
        if self.held:
            self.held.begin_delivery(response, event_id)

    def end(self, response: Response) -> None:
        """Store the response. One that must not be stored ends the claim: the job may run again."""
        if self.held:
            self.held.end(response)

    def note_death(self) -> bool:
        """Note that ComfyUI died while it ran the job. True if it had done so before.

        False where no store keeps the claim.
        """
        return self.held is not None and self.held.note_death()

    def release(self) -> None:
        """Stop the renewal of the claim: unless it was ended before, it lapses."""
        if self.held:
            self.held.release()


class HeldClaim:
    """A claim of this invocation, renewed in a thread until `end` or `release`.

    Once it has lapsed and another invocation has taken the job over, it changes nothing more.
    A response is kept for `keep_s` seconds.
    """

    def __init__(
        self,
        store: Store,
        record: JobRecord,
        attempt: Attempt | None,
        clock: Clock,
        keep_s: float,
    ) -> None:
        self.attempt = attempt
        self._store, self._record = store, record
        self._clock, self._keep_s = clock, keep_s
        self._timer = RepeatingTimer(LEASE_S / _RENEWALS_PER_LEASE, self._renew)
        self._timer.start()

    @property
    def webhook_event(self) -> str:
        return self._record.webhook

    def begin_delivery(self, response: Response, event_id: str) -> None:
        try:
            kept = storable(response, self._store.max_response_bytes)
            if kept is not None:
                self._complete(kept, event_id)
        except Exception as error:
            _warn("the response was not stored before its webhook", type(error).__name__)

    def end(self, response: Response) -> None:
        self.release()
        try:
            self._end(response)
        except Exception as error:
            # The claim lapses; until then the same request is answered with AlreadyRunning.
            _warn("the response was not stored", type(error).__name__)

    def note_death(self) -> bool:
        # A record of its own, which nothing ends: that of the claim ends with each attempt.
        now = self._clock()
        lease = replace(self._record.lease, until=self._record.expires_at)
        death = replace(self._record, id=f"death#{self._record.id}", lease=lease)
        try:
            # The owner of the claim is another one for each attempt.
            return self._store.claim(death, now) is not None
        except Exception as error:
            _warn("the death of ComfyUI was not noted", type(error).__name__)
            return False

    def give_up(self) -> None:
        """Let another invocation run the job at once; a completed job stays completed."""
        self.release()
        self._store.release(self._record.id, self._record.lease.owner)

    def release(self) -> None:
        # Without waiting for a renewal that is under way: it cannot undo what `end` does.
        self._timer.stop(wait_s=0)

    def _end(self, response: Response) -> None:
        if self._record.webhook:
            self._store.end_delivery(self._record.id, self._record.lease.owner)
            return
        kept = storable(response, self._store.max_response_bytes)
        if kept is None:
            give_up = self._store.delete if _was_refused(response) else self._store.release
            give_up(self._record.id, self._record.lease.owner)
            return
        self._complete(kept, "")

    def _complete(self, response: Response, webhook: str) -> None:
        now = self._clock()
        completed = replace(
            self._record,
            status=Status.COMPLETED,
            lease=replace(self._record.lease, until=now + LEASE_S),
            response=response,
            expires_at=math.ceil(now + self._keep_s),
            webhook=webhook,
        )
        if self._store.complete(completed):
            self._record = completed
        else:
            _warn("the response was not stored, a repeat took the job over", "ClaimLapsed")

    def _renew(self) -> bool:
        lease = replace(self._record.lease, until=self._clock() + LEASE_S)
        try:
            return self._store.renew(self._record.id, lease)
        except Exception as error:
            # The next renewal still comes before the lease ends.
            _warn("the claim was not renewed", type(error).__name__)
            return True


def _already_running(retry_after_s: float) -> AlreadyRunning:
    return AlreadyRunning(
        "the job with this request_id is running in another invocation",
        retry_after_s=retry_after_s,
    )


def _was_refused(response: Response) -> bool:
    error = response.get("error")
    return error is not None and issubclass(class_of(error), _REFUSALS)


def _claim_of_earlier_version(
    store: Store, job: Job, record: JobRecord, now: float
) -> JobRecord | None:
    """What forbids a claim that was made: a record of the same request from an earlier version.

    Its records have other keys. A user who may not read a table has none.
    """
    try:
        earlier = store.get(earlier_record_id(job), now)
    except Exception:  # boto3's error for a table that may only be written
        return None
    if earlier is None or (earlier.status is Status.RUNNING and earlier.lease.until < now):
        return None
    earlier = replace(earlier, request=record.request)
    if earlier.status is Status.RUNNING:
        store.delete(record.id, record.lease.owner)
    else:
        store.complete(replace(earlier, id=record.id, lease=record.lease))
    return earlier


def _warn(message: str, reason: str) -> None:
    emit(JobStoreFailed(message=message, reason=reason))
