"""The rules that are compared: the router's own, on its index and changes of workers, and others.

The central queue binds a job to a machine only when that is free.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Sequence

import simpy

from benchmarks.fleet_simulation import MEAN_COST, Job, Machine, Scenario, Simulation
from runtime.fleet.registry import (
    Measured,
    Report,
    Status,
    Worker,
    doubted,
    finished,
    given,
    lost,
    reported,
)
from runtime.fleet.route import Balance, RouteRules, WorkerIndex

_REPORT_EVERY_S = 10.0


def _worker_of(machine: Machine, *, reported_at: float, virtual_s: float) -> Worker:
    """The machine as the router knows it; `reported_at` infinite: it is never silent."""
    return Worker(
        id=machine.id,
        url="",
        status=Status.READY,
        score=machine.score,
        joined_at=0.0,
        reported_at=reported_at,
        virtual_s=virtual_s,
    )


class Routed(Simulation):
    """The router's rule, on its own index and changes of workers."""

    balance = Balance.PROPORTIONAL

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario)
        self._index = WorkerIndex(RouteRules(self.balance, max_queue_s=math.inf))
        self._waiting: deque[Job] = deque()
        # Without crashes no report tells the router anything new.
        is_reporting = scenario.crashes or scenario.drifts
        for machine in self.machines:
            reported_at = 0.0 if is_reporting else math.inf
            self._index.put(_worker_of(machine, reported_at=reported_at, virtual_s=0.0))
            if is_reporting:
                self.environment.process(self._report(machine))

    def choose(self, job: Job) -> Machine | None:
        cost = job.cost if self.scenario.knows_cost else MEAN_COST
        worker = self._index.choose(cost, self.now)
        if worker is None:
            self._waiting.append(job)
            return None
        self._index.put(given(worker, job.number, cost, "", self.now))
        return self.machines[worker.id]

    def ended(self, machine: Machine, job: Job) -> None:
        self._index.put(finished(self._worker(machine), {job.number}, self.now))

    def crashed(self, machine: Machine, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._index.put(doubted(self._worker(machine), job.number, self.now))
        for job in jobs:
            self.route(job)

    def _worker(self, machine: Machine) -> Worker:
        worker = self._index.get(machine.id)
        assert worker is not None
        return worker

    def _report(self, machine: Machine) -> Generator[simpy.Event, None, None]:
        yield self.environment.timeout(_REPORT_EVERY_S * machine.phase)
        while True:
            worker = self._worker(machine)
            if machine.is_up:
                report = Report(
                    id=machine.id,
                    url="",
                    status=Status.READY,
                    score=self.speed_of(machine),
                    measured=Measured(),
                    working=frozenset(job.number for job in machine.queue),
                )
                self._index.put(reported(worker, report, self.now, self._index.average_s))
                for _ in range(len(self._waiting)):
                    self.route(self._waiting.popleft())
            elif worker.is_silent(self.now) and worker.status is not Status.LOST:
                self._index.put(lost(worker, self.now))
            yield self.environment.timeout(_REPORT_EVERY_S)


class Fastest(Routed):
    balance = Balance.FASTEST


class Central(Simulation):
    """One queue for all; a job is bound to a worker when that is free, by the router's share."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario)
        self._queue: deque[Job] = deque()
        self._index = WorkerIndex(RouteRules())
        for machine in self.machines:
            self._free(machine, 0.0)

    def choose(self, job: Job) -> Machine | None:
        worker = self._index.choose(job.cost, self.now)
        if worker is None:
            self._queue.append(job)
            return None
        self._index.remove(worker.id)
        machine = self.machines[worker.id]
        machine.virtual_s = worker.virtual_s + job.cost / machine.score
        return machine

    def ended(self, machine: Machine, job: Job) -> None:
        if not machine.is_up:
            return
        if self._queue:
            following = self._queue.popleft()
            machine.virtual_s += following.cost / machine.score
            self.give(machine, following)
        else:
            self._free(machine, machine.virtual_s)

    def crashed(self, machine: Machine, jobs: Sequence[Job]) -> None:
        self._index.remove(machine.id)
        for job in jobs:
            self.route(job)

    def came_back(self, machine: Machine) -> None:
        if self._queue:
            self.give(machine, self._queue.popleft())
        else:
            self._free(machine, max(machine.virtual_s, self._index.average_s))

    def _free(self, machine: Machine, virtual_s: float) -> None:
        self._index.put(_worker_of(machine, reported_at=math.inf, virtual_s=virtual_s))


class RandomByScore(Simulation):
    def choose(self, job: Job) -> Machine:
        weights = [machine.score for machine in self.machines]
        return self.chance.choices(self.machines, weights)[0]


class RoundRobin(Simulation):
    def choose(self, job: Job) -> Machine:
        return self.machines[job.number % len(self.machines)]


class LeastConnections(Simulation):
    def choose(self, job: Job) -> Machine:
        return min(self.machines, key=lambda machine: len(machine.queue))


RULES: dict[str, Callable[[Scenario], Simulation]] = {
    "central queue": Central,
    "proportional": Routed,
    "fastest": Fastest,
    "random by score": RandomByScore,
    "least connections": LeastConnections,
    "round-robin": RoundRobin,
}
