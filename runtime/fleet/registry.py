"""The workers of a fleet as the router knows them, and every change of one.

The changes are pure functions from one worker to the next. `route` chooses among workers, the
stores keep them. Work has the unit of a request's cost: the usual request costs 100, and a worker
of score 1.0 does it in 100 seconds. Times are seconds of Unix time.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum

from handler.worker_protocol import State

# A worker reports every 10 seconds.
SILENT_AFTER_S = 30.0
# A worker that is silent for longer is forgotten, with what it has done.
FORGOTTEN_AFTER_S = 3600.0
# A client posts to a worker at once. A request that a worker has not mentioned in a report of this
# much later never came, or has ended.
UNCLAIMED_AFTER_S = 15.0
# More is no cost of a request.
MAX_COST = 1e9
# The cold start of a worker that has not measured one.
USUAL_COLD_START_S = 60.0


class Status(StrEnum):
    """What the router may do with a worker."""

    STARTING = State.STARTING.value
    READY = State.READY.value
    INACTIVE = State.INACTIVE.value
    DRAINING = State.DRAINING.value
    FAILED = State.FAILED.value
    LOST = "lost"


# Those that can do a job now, or once they are awake.
USABLE = frozenset({Status.READY, Status.INACTIVE})
_MAY_WORK = USABLE | {Status.STARTING}


@dataclass(frozen=True, slots=True)
class Held:
    """A request that a worker was given and has not finished."""

    request_idx: int
    cost: float
    given_at: float


@dataclass(frozen=True, slots=True)
class Benchmarked:
    """The score of one GPU. Those of the same GPU model and workflow can be compared."""

    gpu: str
    workflow_hash: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a worker says about itself. `working` are the requests that it has now.

    `score` is that of its `places` GPUs together. `cold_start_s` is how long its last start took.
    `benchmarks` are those of its GPUs. `measured` goes to clients as it came.
    """

    id: int
    url: str
    status: Status
    score: float
    cold_start_s: float = 0.0
    error: str = ""
    working: frozenset[int] = frozenset()
    places: int = 1
    benchmarks: tuple[Benchmarked, ...] = ()
    measured: "Measured"


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures of a report that clients ask for, and no decision needs. Disk in gigabytes."""

    cur_load: float = 0.0
    new_load: float = 0.0
    cur_perf: float = 0.0
    disk_usage: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One worker.

    `work` is the cost of all that it was given and has not failed. `virtual_s` is that work, each
    request divided by the score of its time: the seconds that the worker was needed for. The worker
    with the least of it is furthest behind its share. `given` counts what it was given. `places` is
    how many requests it does at the same time, each with its part of the score. `ends_at` is when
    it should have finished what it holds, `free_at` when it should have a free place. `loaded`
    names whose models it used last. `is_doubted`: a client has failed to get its answer there, and
    no report has come since. `is_drained`: an operator wants it to be given nothing more.
    """

    id: int
    url: str
    status: Status
    score: float
    joined_at: float
    reported_at: float
    cold_start_s: float = USUAL_COLD_START_S
    error: str = ""
    work: float = 0.0
    virtual_s: float = 0.0
    given: int = 0
    held: tuple[Held, ...] = ()
    places: int = 1
    ends_at: float = 0.0
    free_at: float = 0.0
    loaded: str = ""
    is_doubted: bool = False
    is_drained: bool = False
    benchmarks: tuple[Benchmarked, ...] = ()
    measured: Measured = Measured()
    version: int = 0

    @property
    def outstanding(self) -> float:
        """The work of the requests that it holds."""
        return sum(held.cost for held in self.held)

    def is_silent(self, now: float) -> bool:
        """Whether its reports have stopped."""
        return self.reported_at < now - SILENT_AFTER_S

    def can_work(self, now: float) -> bool:
        """Whether it may be given a request: it is ready, sleeps, or starts for one already."""
        is_woken = self.status is Status.STARTING and bool(self.held)
        is_able = self.status in USABLE or is_woken
        return is_able and self.score > 0 and not (self.is_doubted or self.is_silent(now))

    @property
    def speed(self) -> float:
        """The score of one place."""
        return self.score / self.places

    @property
    def has_free_place(self) -> bool:
        """Whether a request would begin at once, or once the worker is awake."""
        is_partly_free = self.status is Status.READY and len(self.held) < self.places
        return is_partly_free or not self.held

    def expected_free_at(self, now: float) -> float:
        """When it should have a free place. See `expected_end`."""
        if self.held and self.has_free_place:
            return now
        return self._expected(self.free_at, now)

    def expected_end(self, now: float) -> float:
        """When it should have finished all that it holds.

        A worker that takes longer than its score promises is expected to need as long again.
        """
        return self._expected(self.ends_at, now)

    def _expected(self, at: float, now: float) -> float:
        if not self.held:
            return now + (self.cold_start_s if self.status is Status.INACTIVE else 0.0)
        return at if at >= now else now + self.held[0].cost / self.speed


def reported(worker: Worker | None, report: Report, now: float, average_s: float) -> Worker:
    """The worker after a report. `average_s` is the fleet's `virtual_s`.

    A worker that is new, or was away, begins with the average: it has not missed work, so it does
    not make up for any. If it works on requests, it holds them, whatever became of them meanwhile.
    """
    if worker and not report.score:
        # It has been started anew, and not measured yet: what it held is gone.
        worker = taken_back(worker, [held.request_idx for held in worker.held], now)
    known = worker or Worker(
        id=report.id, url=report.url, status=Status.LOST, score=0.0, joined_at=now, reported_at=now
    )
    status = Status.DRAINING if known.is_drained and report.status in _MAY_WORK else report.status
    has_come_back = known.status not in USABLE and status in USABLE
    after = replace(
        known,
        url=report.url,
        status=status,
        score=report.score,
        reported_at=now,
        cold_start_s=report.cold_start_s or known.cold_start_s,
        error=report.error,
        virtual_s=max(known.virtual_s, average_s) if has_come_back else known.virtual_s,
        is_doubted=False,
        places=report.places,
        benchmarks=report.benchmarks,
        measured=report.measured,
    )
    unclaimed = [
        held.request_idx
        for held in after.held
        if held.given_at < now - UNCLAIMED_AFTER_S and held.request_idx not in report.working
    ]
    after = finished(after, unclaimed, now) if unclaimed else after
    is_known = worker is not None and worker.status is not Status.LOST
    return after if is_known or not after.score else _resumed(after, report, now)


def _resumed(worker: Worker, report: Report, now: float) -> Worker:
    """The worker with the requests that it still has after the router had given it up."""
    unknown = report.working - {held.request_idx for held in worker.held}
    cost = min(report.measured.cur_load / max(len(report.working), 1), MAX_COST)
    for request_idx in sorted(unknown):
        worker = given(worker, request_idx, max(cost, 0.0), worker.loaded, now)
    return worker


def drained(worker: Worker) -> Worker:
    """The worker, which is given nothing more and goes on with what it holds."""
    status = Status.DRAINING if worker.status in _MAY_WORK else worker.status
    return replace(worker, is_drained=True, status=status)


def given(worker: Worker, request_idx: int, cost: float, loads: str, now: float) -> Worker:
    """The worker with one more request, which uses the models of `loads`."""
    seconds = cost / worker.score
    held = (*worker.held, Held(request_idx, cost, now))
    ends_at = worker.expected_end(now) + seconds
    return replace(
        worker,
        work=worker.work + cost,
        virtual_s=worker.virtual_s + seconds,
        given=worker.given + 1,
        held=held,
        ends_at=ends_at,
        free_at=_free_at(len(held), worker.places, ends_at, now),
        loaded=loads,
    )


def finished(worker: Worker, request_idxs: Collection[int], now: float) -> Worker:
    """The worker without these requests, which it has worked on."""
    held = tuple(held for held in worker.held if held.request_idx not in request_idxs)
    if len(held) == len(worker.held):
        return worker
    left = sum(each.cost for each in held)
    ends_at = now + left / worker.score if held else now
    free_at = _free_at(len(held), worker.places, ends_at, now)
    return replace(worker, held=held, ends_at=ends_at, free_at=free_at)


def _free_at(held: int, places: int, ends_at: float, now: float) -> float:
    """When a worker that should end `held` requests by `ends_at` should have a free place.

    They are taken to end one after another, in equal intervals.
    """
    if places == 1 or not held:
        return ends_at
    return now + (ends_at - now) * max(held - places + 1, 1) / held


def taken_back(worker: Worker, request_idxs: Collection[int], now: float) -> Worker:
    """The worker without these requests, which it has not done: they are not part of its work."""
    lost = sum(held.cost for held in worker.held if held.request_idx in request_idxs)
    after = finished(worker, request_idxs, now)
    if after is worker:
        return worker
    seconds = lost / worker.score if worker.score else 0.0
    return replace(after, work=after.work - lost, virtual_s=after.virtual_s - seconds)


def doubted(worker: Worker, request_idx: int, now: float) -> Worker:
    """The worker after the client of this request has asked for another worker."""
    after = taken_back(worker, frozenset({request_idx}), now)
    return worker if after is worker else replace(after, is_doubted=True)


def lost(worker: Worker, now: float) -> Worker:
    """The worker after its reports have stopped: its requests are routed again when clients ask."""
    every = [held.request_idx for held in worker.held]
    return replace(taken_back(worker, every, now), status=Status.LOST)
