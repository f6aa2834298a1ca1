"""Which worker gets the next request.

The rule `proportional`: the least expected wait for a free place first, and among workers with the
same wait, as the idle ones have, the one that is furthest behind its share, work so far ÷ score.
Among idle workers, one that has the request's models loaded goes first if it is not far ahead of
the others.

The rule `fastest`: the earliest expected end, wait + cost ÷ score. Fast workers get more than their
share with it, and slow ones little.

A worker that sleeps is chosen, and so woken, only if no other has a place.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from runtime.fleet.lazy_heap import Entry, IsCurrent, LazyHeap
from runtime.fleet.registry import Status, Worker

# How many requests ahead of its share a worker may be and still get one for its loaded models.
AFFINITY_REQUESTS = 3
# Waits are predictions: `proportional` takes those as equal that differ by less than 5 %, and looks
# at a few of them.
_EQUAL_WAITS = 1.05
_COMPARED = 4
# So many names of models are kept at least.
_MIN_REBUILD = 64
# `fastest` takes scores within 5 % as equal.
_SCORE_STEP = 1.05


class Balance(StrEnum):
    """The rules."""

    PROPORTIONAL = "proportional"
    FASTEST = "fastest"


@dataclass(frozen=True, slots=True)
class RouteRules:
    """A worker whose wait is longer than `max_queue_s` seconds has no place."""

    balance: Balance = Balance.PROPORTIONAL
    max_queue_s: float = 30.0


class WorkerIndex:
    """The workers, ordered so that a choice among thousands takes microseconds.

    Each worker is in one heap, by a number that does not change with time.
    """

    def __init__(self, rules: RouteRules) -> None:
        self._rules = rules
        self._workers: dict[int, Worker] = {}
        self._places: dict[int, _Place] = {}
        self._lanes: dict[int, _Lane] = {}
        self._serial = 0
        self._now = 0.0
        self._score_sum = 0.0
        self._weighted_s = 0.0

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._workers.values()))

    def get(self, worker_id: int) -> Worker | None:
        return self._workers.get(worker_id)

    @property
    def average_s(self) -> float:
        """The `virtual_s` of the usable workers, weighted by their scores."""
        return self._weighted_s / self._score_sum if self._score_sum > 0 else 0.0

    def put(self, worker: Worker) -> None:
        """Add the worker, or replace what is known of it."""
        self._weigh(self._workers.get(worker.id), -1)
        self._workers[worker.id] = worker
        self._weigh(worker, 1)
        if worker.can_work(worker.reported_at):
            self._place(worker, worker.free_at)
        else:
            self._places.pop(worker.id, None)

    def remove(self, worker_id: int) -> None:
        """Forget the worker, if it is there."""
        self._weigh(self._workers.pop(worker_id, None), -1)
        self._places.pop(worker_id, None)

    def choose(
        self, cost: float, now: float, *, loads: str = "", avoid: int | None = None
    ) -> Worker | None:
        """The worker for a request of this cost; None if no one has a place.

        `loads` names whose models the request needs. `avoid` is chosen only if no other can be.
        """
        self._now = now
        chosen = self._awake(cost, loads, avoid) or self._asleep(avoid)
        if chosen is None and avoid is not None:
            chosen = self._awake(cost, loads, None) or self._asleep(None)
        return chosen

    def _awake(self, cost: float, loads: str, avoid: int | None) -> Worker | None:
        """The worker with the best figure of its lane's best ones; the rule makes the figure."""
        best, best_s = None, math.inf
        for lane in self._lanes.values():
            worker = self._first_idle(lane, cost, loads, avoid) or self._first_busy(lane, avoid)
            if worker is None:
                continue
            figure_s = wait_s = worker.expected_free_at(self._now) - self._now
            if self._rules.balance is Balance.FASTEST:
                figure_s += cost / worker.speed
            if wait_s <= self._rules.max_queue_s and figure_s < best_s:
                best, best_s = worker, figure_s
        return best

    def _asleep(self, avoid: int | None) -> Worker | None:
        """The one that wakes up soonest."""
        entries = [lane.asleep.first(avoid) for lane in self._lanes.values()]
        first = min((entry for entry in entries if entry), default=None)
        return first and self._workers[first.worker_id]

    def _first_idle(
        self, lane: "_Lane", cost: float, loads: str, avoid: int | None
    ) -> Worker | None:
        behind = lane.idle.first(avoid)
        if behind is None:
            return None
        loaded = lane.idle_with[loads].first(avoid) if loads in lane.idle_with else None
        if loaded:
            worker = self._workers[loaded.worker_id]
            if loaded.key - behind.key <= AFFINITY_REQUESTS * cost / worker.score:
                return worker
        return self._workers[behind.worker_id]

    def _first_busy(self, lane: "_Lane", avoid: int | None) -> Worker | None:
        while entry := lane.busy.first(avoid):
            worker = self._workers[entry.worker_id]
            free_at = worker.expected_free_at(self._now)
            if free_at <= entry.key:
                return self._furthest_behind(lane, entry.key, avoid) or worker
            # It takes longer than its score promises.
            self._place(worker, free_at)
        return None

    def _furthest_behind(self, lane: "_Lane", free_at: float, avoid: int | None) -> Worker | None:
        """Of the workers that should be free at about this time."""
        if self._rules.balance is Balance.FASTEST:
            return None
        until = self._now + (free_at - self._now) * _EQUAL_WAITS
        entries = lane.busy.first_few(_COMPARED, avoid)
        equal = [self._workers[entry.worker_id] for entry in entries if entry.key <= until]
        return min(equal, key=lambda worker: worker.virtual_s)

    def _place(self, worker: Worker, free_at: float) -> None:
        """Put a worker that can work into its heap; one that is there already stays."""
        lane = self._lane_of(worker)
        loads = ""
        if not worker.has_free_place:
            heap, key = lane.busy, free_at
        elif worker.status is Status.INACTIVE:
            heap, key = lane.asleep, worker.cold_start_s
        else:
            heap, key, loads = lane.idle, worker.virtual_s, worker.loaded
        before = self._places.get(worker.id)
        if before and before.heap is heap and before.key == key and before.loads == loads:
            return
        self._serial += 1
        self._places[worker.id] = _Place(heap, key, loads, self._serial)
        entry = Entry(key, worker.id, self._serial)
        heap.push(entry)
        if loads:
            lane.idle_heap(loads).push(entry)

    def _lane_of(self, worker: Worker) -> "_Lane":
        number = 0
        if self._rules.balance is Balance.FASTEST:
            number = round(math.log(worker.speed, _SCORE_STEP))
        if number not in self._lanes:
            self._lanes[number] = _Lane(self._is_current)
        return self._lanes[number]

    def _is_current(self, entry: Entry) -> bool:
        place = self._places.get(entry.worker_id)
        if place is None or place.serial != entry.serial:
            return False
        if self._workers[entry.worker_id].is_silent(self._now):
            # Its next report gives it a place again.
            del self._places[entry.worker_id]
            return False
        return True

    def _weigh(self, worker: Worker | None, sign: int) -> None:
        if worker and worker.can_work(worker.reported_at):
            self._score_sum += sign * worker.score
            self._weighted_s += sign * worker.score * worker.virtual_s


class _Lane:
    """The workers whose order one figure decides: all of them, or those of about one score."""

    def __init__(self, is_current: IsCurrent) -> None:
        self._is_current = is_current
        self.idle, self.busy, self.asleep = (LazyHeap(is_current) for _ in range(3))
        # The idle ones again, by the models that they have loaded.
        self.idle_with: dict[str, LazyHeap] = {}
        self._rebuild_at = _MIN_REBUILD

    def idle_heap(self, loads: str) -> LazyHeap:
        """The heap of `idle_with`. Those without a worker are dropped now and then."""
        if loads not in self.idle_with:
            if len(self.idle_with) >= self._rebuild_at:
                self.idle_with = {
                    name: heap for name, heap in self.idle_with.items() if heap.first()
                }
                self._rebuild_at = max(2 * len(self.idle_with), _MIN_REBUILD)
            self.idle_with[loads] = LazyHeap(self._is_current)
        return self.idle_with[loads]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the current entry of a worker is."""

    heap: LazyHeap
    key: float
    loads: str
    serial: int
