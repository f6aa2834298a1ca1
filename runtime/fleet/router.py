"""Joins the rule, the changes of workers and the store: what each call of the router does.

The index is this process's view of the fleet. Another router may have changed a worker since: the
store then refuses the change, and the call goes on with what is stored. Its methods block, and
threads may share it. They raise what the store raises.
"""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from runtime.fleet import registry
from runtime.fleet.deviations import score_warnings
from runtime.fleet.registry import FORGOTTEN_AFTER_S, SILENT_AFTER_S, Report, Status, Worker
from runtime.fleet.route import RouteRules, WorkerIndex
from runtime.fleet.store import FleetStore, FleetStoreError, next_version
from runtime.fleet.waiting import Waiting

_MAX_TRIES = 50
_KEPT_EVENTS = 50
# Numbers that JavaScript and the like read exactly.
_IDX_BITS = 48

Clock = Callable[[], float]
Change = Callable[[Worker | None], Worker | None]


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks a worker for. `request_idx` is 0 for a new request.

    `loads` names whose models it needs, as far as the client says.
    """

    endpoint: str
    cost: float
    request_idx: int = 0
    keep_s: float = 60.0
    loads: str = ""


@dataclass(frozen=True, slots=True)
class Routed:
    """The answer: the worker, as it is with the request, or None while no one has a place."""

    request_idx: int
    worker: Worker | None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a worker, in one sentence, at `at` (Unix time)."""

    at: float
    text: str


class Router:
    """A fleet. `clock` returns Unix time in seconds, `on_event` gets what happens to workers."""

    def __init__(
        self,
        store: FleetStore,
        rules: RouteRules,
        *,
        clock: Clock = time.time,
        on_event: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._store, self._clock, self._on_event = store, clock, on_event
        self._lock, self._route_lock = threading.Lock(), threading.Lock()
        self._index = WorkerIndex(rules)
        self._holders: dict[int, int] = {}
        self._warned: frozenset[int] = frozenset()
        self._events: deque[Event] = deque(maxlen=_KEPT_EVENTS)
        self._began_at = clock()
        self.waiting = Waiting()
        self.refresh()

    def route(self, request: Request) -> Routed:
        """Give the request to a worker. The same `request_idx` again moves it, and adds no load."""
        now = self._clock()
        request_idx = request.request_idx or secrets.randbits(_IDX_BITS) or 1
        if not request.request_idx:
            self.waiting.add_load(request.cost, now)
        avoid = self._take_back(request_idx, now)
        # One at a time, or they would all want the same worker.
        with self._route_lock:
            worker = self._give(request, request_idx, avoid, now)
        if worker is None:
            self.waiting.ask(request_idx, request.cost, now, request.keep_s)
        else:
            self.waiting.serve(request_idx)
        return Routed(request_idx, worker)

    def report(self, report: Report) -> Worker:
        """Note what a worker says about itself."""
        now = self._clock()
        with self._lock:
            average_s = self._index.average_s
        before = self._index.get(report.id)
        after = self._change(report.id, lambda w: registry.reported(w, report, now, average_s))
        assert after is not None
        self._note_status(before, after)
        return after

    def finish(
        self, worker_id: int, done: Collection[int], undone: Collection[int]
    ) -> Worker | None:
        """The worker has ended these requests; `undone` are those that it has not worked off."""
        now = self._clock()

        def change(worker: Worker | None) -> Worker | None:
            if worker is None:
                return None
            return registry.finished(registry.taken_back(worker, undone, now), done, now)

        return self._change(worker_id, change)

    def deregister(self, worker_id: int) -> None:
        """The worker has ended."""
        worker = self._index.get(worker_id)
        while worker is not None and not self._store.remove(worker):
            self._reload(worker_id)
            worker = self._index.get(worker_id)
        with self._lock:
            self._forget(worker_id)
        if worker:
            self._note(f"worker {worker_id} at {worker.url} has left")

    def retire(self, worker_id: int) -> Worker | None:
        """Give nothing more to a worker that sleeps; None if it has a request, or is awake."""

        def change(worker: Worker | None) -> Worker | None:
            if worker is None or worker.held or worker.status is not Status.INACTIVE:
                return worker
            return replace(worker, status=Status.DRAINING)

        after = self._change(worker_id, change)
        return after if after and after.status is Status.DRAINING else None

    def drain(self, worker_id: int, *, is_drained: bool) -> Worker | None:
        """Give a worker nothing more, or something again after its next report.

        None if there is no such worker. One that leaves and joins again is not drained any more.
        """

        def change(worker: Worker | None) -> Worker | None:
            if worker is None or is_drained:
                return worker and registry.drained(worker)
            return replace(worker, is_drained=False)

        before = self._index.get(worker_id)
        after = self._change(worker_id, change)
        if after:
            self._note_status(before, after)
        return after

    def sweep(self) -> None:
        """Take the requests of silent workers back, and forget workers that stay silent.

        Note the scores that have come to differ from those of equal GPUs.
        """
        now = self._clock()
        self.waiting.sweep(now)
        self._note_warnings()
        if not self.is_settled:
            return
        for worker in self.workers():
            if worker.reported_at < now - FORGOTTEN_AFTER_S:
                self.deregister(worker.id)
            elif worker.is_silent(now) and worker.status is not Status.LOST:
                self._lose(worker, now)

    @property
    def is_settled(self) -> bool:
        """Whether all workers could report since the start: while no router ran, they could not."""
        return self._clock() - self._began_at >= SILENT_AFTER_S

    def refresh(self) -> None:
        """Read what other routers have changed."""
        if not self._store.is_changed_elsewhere():
            return
        known = {worker.id for worker in self.workers()}
        stored = self._store.workers()
        for worker in stored:
            self._set_if_newer(worker)
        for worker_id in known - {worker.id for worker in stored}:
            # It has left, or the list is not up to date.
            self._reload(worker_id)

    def workers(self) -> Sequence[Worker]:
        """All workers, by their id."""
        with self._lock:
            return sorted(self._index, key=lambda worker: worker.id)

    def events(self) -> Sequence[Event]:
        """What happened last, the newest first."""
        return list(reversed(self._events))

    def _give(
        self, request: Request, request_idx: int, avoid: int | None, now: float
    ) -> Worker | None:
        loads = request.loads or request.endpoint
        for _ in range(_MAX_TRIES):
            with self._lock:
                chosen = self._index.choose(request.cost, now, loads=loads, avoid=avoid)
            if chosen is None:
                return None
            after = next_version(registry.given(chosen, request_idx, request.cost, loads, now))
            if self._store.put(after, chosen.version):
                self._set_if_newer(after)
                return after
            self._reload(chosen.id)
        raise FleetStoreError(f"{_MAX_TRIES} workers were changed by others meanwhile")

    def _take_back(self, request_idx: int, now: float) -> int | None:
        """Take the request from the worker that has failed it; return the worker."""
        worker_id = self._holders.get(request_idx)
        if worker_id is not None:
            self._change(worker_id, lambda w: w and registry.doubted(w, request_idx, now))
        return worker_id

    def _lose(self, worker: Worker, now: float) -> None:
        def change(current: Worker | None) -> Worker | None:
            return registry.lost(current, now) if current and current.is_silent(now) else current

        after = self._change(worker.id, change)
        if after and after.status is Status.LOST:
            self._note(
                f"worker {worker.id} at {worker.url} does not report;"
                f" requests to route again: {len(worker.held)}"
            )

    def _change(self, worker_id: int, change: Change) -> Worker | None:
        """Store what `change` makes of the worker; return the worker as it is now."""
        for _ in range(_MAX_TRIES):
            before = self._index.get(worker_id)
            after = change(before)
            if after is None or after == before:
                return after
            version = before.version if before else 0
            after = replace(after, version=version + 1)
            if self._store.put(after, version):
                self._set_if_newer(after)
                return after
            self._reload(worker_id)
        raise FleetStoreError(f"worker {worker_id} was changed by others {_MAX_TRIES} times")

    def _reload(self, worker_id: int) -> None:
        stored = self._store.get(worker_id)
        with self._lock:
            if stored:
                self._set(stored)
            else:
                self._forget(worker_id)

    def _set_if_newer(self, worker: Worker) -> None:
        with self._lock:
            known = self._index.get(worker.id)
            if known is None or known.version < worker.version:
                self._set(worker)

    def _set(self, worker: Worker) -> None:
        before = self._index.get(worker.id)
        for held in before.held if before else ():
            if self._holders.get(held.request_idx) == worker.id:
                del self._holders[held.request_idx]
        for held in worker.held:
            self._holders[held.request_idx] = worker.id
            self.waiting.serve(held.request_idx)  # Another router may have given it away.
        self._index.put(worker)

    def _forget(self, worker_id: int) -> None:
        worker = self._index.get(worker_id)
        for held in worker.held if worker else ():
            self._holders.pop(held.request_idx, None)
        self._index.remove(worker_id)

    def _note_status(self, before: Worker | None, after: Worker) -> None:
        reason = f": {after.error}" if after.error else ""
        if before is None:
            self._note(f"worker {after.id} at {after.url} has joined, {after.status}{reason}")
        elif before.status is not after.status or before.error != after.error:
            self._note(f"worker {after.id} at {after.url} is {after.status}{reason}")

    def _note_warnings(self) -> None:
        workers = self.workers()
        warnings = score_warnings(workers)
        for worker in workers:
            if worker.id in warnings and worker.id not in self._warned:
                self._note(f"worker {worker.id} at {worker.url}: {warnings[worker.id]}")
        self._warned = frozenset(warnings)

    def _note(self, text: str) -> None:
        self._events.append(Event(self._clock(), text))
        self._on_event(text)
