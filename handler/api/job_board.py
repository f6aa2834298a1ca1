"""What the API asks the store of jobs: accept, look up, list, cancel.

Its methods block; the application calls them in threads.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

from events.errors import Cancelled, IdConflict, WorkerUnavailable
from events.event_context import Response
from events.job import Caller, Job
from handler.api.dispatcher import NotOffered, Unavailable
from handler.jobs import moves
from handler.jobs.claims import new_record
from handler.jobs.record import FREE, JobRecord, Status, record_id
from handler.jobs.store import JobPage, JobQuery, Store, StoreError
from handler.response import JobResult, build_response
from handler.webhook import new_event_id

CANCELLED_WHILE_QUEUED = "the job was cancelled by a request, before it began"
_SAMPLE = 20
_NO_STORE = (
    "this front door has no store of jobs, which is needed for that; set JOBS_TABLE or JOBS_DB"
)


@dataclass(frozen=True, slots=True)
class Listed:
    """The record of a job. `is_new`: this call has put it there, and not an earlier one."""

    record: JobRecord
    is_new: bool


class JobBoard:
    """The jobs in `store`; None where no store is configured.

    Every method raises NotOffered without a store, and Unavailable if it does not work.
    `clock` returns Unix time in seconds.
    """

    def __init__(
        self, store: Store | None, keep_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._given_store, self._keep_s, self._clock = store, keep_s, clock

    @property
    def has_store(self) -> bool:
        return self._given_store is not None

    def now(self) -> float:
        return self._clock()

    def accept(self, job: Job) -> Listed:
        """Put the job on record as queued, unless it is known already.

        Raises IdConflict if the id stands for another request.
        """
        now = self._clock()
        record = new_record(job, status=Status.QUEUED, lease=FREE, source="http", now=now)
        store = self._store
        try:
            changed = store.change(record.id, moves.accept(record, now), now)
        except Exception as error:
            raise _unavailable(error) from error
        current = changed.after or record
        if not changed.is_made and moves.is_other(current, record):
            raise IdConflict(
                "input.request_id: this id stands for another request, whose workflow, bucket,"
                " webhook or flags are different; send the new request with a new id"
            )
        return Listed(current, is_new=changed.is_made)

    def get(self, request_id: str) -> JobRecord | None:
        """The record of a job; None if its id is not known."""
        store = self._store
        try:
            return store.get(record_id(request_id), self._clock())
        except Exception as error:
            raise _unavailable(error) from error

    def list(self, query: JobQuery) -> JobPage:
        """Raises ValueError for a cursor that no page had."""
        store = self._store
        try:
            return store.list(query, self._clock())
        except ValueError:
            raise
        except StoreError as error:
            raise NotOffered(str(error)) from error
        except Exception as error:
            raise _unavailable(error) from error

    def counts(self) -> dict[Status, int]:
        """How many jobs have each status; empty without a store that can count."""
        if self._given_store is None:
            return {}
        try:
            return dict(self._given_store.counts(self._clock()))
        except Exception:
            return {}

    def usual_run_s(self) -> float | None:
        """The median time of the latest jobs that have completed; None if there are none."""
        query = JobQuery(statuses=frozenset({Status.COMPLETED}), limit=_SAMPLE)
        try:
            records = self.list(query).records
        except (NotOffered, Unavailable):
            return None
        times = [r.finished - r.started for r in records if r.finished and r.started]
        return median(times) if times else None

    def cancel(self, request_id: str) -> JobRecord | None:
        """Ask for the end of a job; its record after that, None if its id is not known."""
        now = self._clock()
        response = cancelled_response(request_id)
        move = moves.request_cancel(response, new_event_id(), now, self._keep_s)
        store = self._store
        try:
            return store.change(record_id(request_id), move, now).after
        except Exception as error:
            raise _unavailable(error) from error

    def abandon(self, request_id: str, reason: str) -> None:
        """End a job that nothing will run, as a failure that may be repeated. Raises nothing."""
        if self._given_store is None:
            return
        now = self._clock()
        error = WorkerUnavailable(reason)
        response = build_response(JobResult(Caller(request_id=request_id), error=error))
        # Without it, the record would be that of a job that waits.
        with suppress(Exception):
            move = moves.abandon(response, now, self._keep_s)
            self._given_store.change(record_id(request_id), move, now)

    @property
    def _store(self) -> Store:
        if self._given_store is None:
            raise NotOffered(_NO_STORE)
        return self._given_store


def cancelled_response(request_id: str) -> Response:
    """The documented response of a job that was cancelled before it began."""
    caller = Caller(request_id=request_id)
    return build_response(JobResult(caller, error=Cancelled(CANCELLED_WHILE_QUEUED)))


def _unavailable(error: Exception) -> Unavailable:
    return Unavailable(f"the store of jobs does not work: {type(error).__name__}")
