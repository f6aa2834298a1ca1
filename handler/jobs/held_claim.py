"""A claim while it is held: renewed until the job ends, and told what is known about the job.

The renewal writes the progress of the job, and learns whether somebody has asked for its end. What
a record becomes is decided in `moves`.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from events.errors import IdConflict, InvalidRequest, WorkflowRejected, class_of
from events.repeating_timer import RepeatingTimer
from handler.emit import emit
from handler.job_events import JobStoreFailed
from handler.jobs import moves
from handler.jobs.moves import Move
from handler.jobs.record import (
    JobRecord,
    Lease,
    Progress,
    Response,
    Status,
    WebhookState,
)
from handler.jobs.store import Changed, Store
from handler.jobs.stored_response import stored_response
from handler.leftovers import Attempt

# The claim of a killed handler lapses after this time. It is shorter than the time for which the
# handler's SQS message stays hidden, so the next delivery of the message finds the job free.
LEASE_S = 15.0
# Also how often progress is stored.
RENEW_EVERY_S = 1.0
# The job never began, so the id can stand for the request that comes instead.
_REFUSALS = (InvalidRequest, WorkflowRejected, IdConflict)
_STATUSES = {
    "completed": Status.COMPLETED,
    "failed": Status.FAILED,
    "cancelled": Status.CANCELLED,
}

Clock = Callable[[], float]


class HeldClaim:
    """A claim of this invocation, renewed in a thread until `end` or `release`.

    Once it has lapsed and another invocation has taken the job over, it changes nothing more.
    A response is kept for `keep_s` seconds. No method raises.
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
        # One change at a time: each begins with the record that the one before has made.
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._outputs: tuple[dict[str, Any], ...] = ()
        self._is_cancel_requested = record.is_cancel_requested
        self._renewed_at = time.monotonic()
        self._timer = RepeatingTimer(min(store.cancel_poll_s, LEASE_S / 3), self._tick)
        self._timer.start()

    @property
    def webhook_event(self) -> str:
        return self._record.webhook

    def is_cancel_requested(self) -> bool:
        """Whether somebody has asked for the job's end, as known since the latest poll."""
        return self._is_cancel_requested

    def note_progress(self, progress: Progress) -> None:
        """Store it with the next renewal."""
        self._progress = progress

    def note_outputs(self, items: Sequence[dict[str, Any]]) -> None:
        """Store the items of `output` that are there by now with the next renewal."""
        self._outputs = tuple(items)

    def note_death(self) -> bool:
        """Note that ComfyUI died while it ran the job. True if it had done so before."""
        try:
            changed = self._change(moves.note_death(self._record.lease.owner))
        except Exception as error:
            warn("the death of ComfyUI was not noted", error)
            return False
        return changed.is_made and self._record.deaths > 1

    def begin_delivery(self, response: Response, event_id: str) -> None:
        """Store the end of the job before its webhook is called; the claim is held until `end`.

        If the handler is killed during the call, a repeat calls the webhook, with the same event
        id, and does not run the job. That of a failed job runs it again.
        """
        try:
            self._finish(response, event_id)
        except Exception as error:
            warn("the response was not stored before its webhook", error)

    def end(
        self,
        response: Response,
        *,
        webhook_state: WebhookState = WebhookState.NONE,
        comes_again: bool = False,
    ) -> None:
        """Store the end of the job, or of the call of its webhook.

        `comes_again`: the source delivers the request again, so a failure is not the job's end.
        """
        self.release()
        try:
            if self._record.status.is_final:
                self._change(moves.end_delivery(self._record.lease.owner, webhook_state))
            elif comes_again:
                self._change(moves.requeue(self._record.lease.owner))
            else:
                self._finish(response, "")
        except Exception as error:
            # The claim lapses; until then the same request is answered with AlreadyRunning.
            warn("the response was not stored", error)

    def give_up(self) -> None:
        """Let another invocation run the job at once; a job that has ended stays so."""
        self.release()
        try:
            self._change(moves.requeue(self._record.lease.owner))
        except Exception as error:
            warn("the claim was not ended, it lapses", error)

    def release(self) -> None:
        """Stop the renewal of the claim: unless it was ended before, it lapses."""
        # Without waiting for a renewal that is under way: it cannot undo what `end` does.
        self._timer.stop(wait_s=0)

    def _finish(self, response: Response, event_id: str) -> None:
        now = self._clock()
        stored = stored_response(response, self._store.max_response_bytes)
        finished = replace(
            self._record,
            status=_STATUSES[response["status"]],
            lease=replace(self._record.lease, until=now + LEASE_S if event_id else 0.0),
            finished=now,
            retained_until=math.ceil(now + self._keep_s),
            progress=self._progress or self._record.progress,
            outputs=(),
            response=stored.response,
            must_rerun=not stored.answers_repeats,
            request="" if _was_refused(response) else self._record.request,
            webhook=event_id,
            webhook_state=WebhookState.PENDING if event_id else WebhookState.NONE,
        )
        if not self._change(moves.finish(finished)).is_made:
            warn("the response was not stored, a repeat took the job over", "ClaimLapsed")

    def _tick(self) -> bool:
        """Renew the lease if it is time, else ask for a request to cancel. False ends the timer."""
        now = time.monotonic()
        try:
            if now - self._renewed_at >= min(RENEW_EVERY_S, LEASE_S / 3):
                self._renewed_at = now
                return self._renew()
            if not self._is_cancel_requested and not self._record.status.is_final:
                self._is_cancel_requested = self._store.is_cancel_requested(self._record.id)
        except Exception as error:
            # The next renewal still comes before the lease ends.
            warn("the claim was not renewed", error)
        return True

    def _renew(self) -> bool:
        lease = Lease(self._record.lease.owner, self._clock() + LEASE_S)
        changed = self._change(moves.renew(lease, self._progress, self._outputs))
        current = changed.after or self._record
        self._is_cancel_requested |= current.is_cancel_requested
        return changed.is_made

    def _change(self, move: Move) -> Changed:
        with self._lock:
            changed = self._store.change(self._record.id, move, self._clock(), known=self._record)
            if changed.is_made and changed.after:
                self._record = changed.after
        return changed


def _was_refused(response: Response) -> bool:
    error = response.get("error")
    return error is not None and issubclass(class_of(error), _REFUSALS)


def warn(message: str, reason: Exception | str) -> None:
    """Log that the store did not do what was asked; `message` names what that costs."""
    name = reason if isinstance(reason, str) else type(reason).__name__
    emit(JobStoreFailed(message=message, reason=name))
