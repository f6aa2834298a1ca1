"""A simulated fleet under one rule: jobs arrive, wait for a machine, and end; machines may crash.

Which machine gets a job is decided by a subclass: see fleet_rules.
"""

import math
import random
import statistics
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

import simpy

SCORES = (0.5, 1.0, 2.0, 4.0)
MEAN_COST = 100.0
WARM_UP = 0.2
# Jobs that arrive at once, on average.
_BURST = 10
_UP_S, _DOWN_S = 3000.0, 120.0
_DRIFT, _DRIFT_S = 0.3, 5000.0
_SEED = 20261126


@dataclass(slots=True)
class Job:
    """`cost` is its true size. Times are of the simulation, in seconds."""

    number: int
    arrived: float
    cost: float
    started: float = 0.0
    ended: float = 0.0
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A fleet and what happens to it. `knows_cost`: the router is told the size of a job."""

    workers: int
    load: float
    jobs: int
    is_bursty: bool = False
    crashes: bool = False
    drifts: bool = False
    knows_cost: bool = True


@dataclass(frozen=True, slots=True)
class Result:
    """What a rule made of a scenario. Waits and responses in seconds."""

    share_error: float
    waits: Sequence[float]
    responses: Sequence[float]
    decision_us: float
    lost: int = 0

    @property
    def mean_wait(self) -> float:
        return statistics.fmean(self.waits)


@dataclass(slots=True)
class Machine:
    """A worker as it is, not as the router knows it."""

    id: int
    score: float
    queue: deque[Job] = field(default_factory=deque)
    running: "simpy.Process | None" = None
    is_up: bool = True
    phase: float = 0.0
    virtual_s: float = 0.0


def jobs_of(scenario: Scenario, chance: random.Random) -> Iterator[Job]:
    """The jobs in the order in which they arrive."""
    capacity = scenario.workers * statistics.fmean(SCORES)
    rate = scenario.load * capacity / MEAN_COST
    burst = _BURST if scenario.is_bursty else 1
    now = 0.0
    for number in range(scenario.jobs):
        # A burst is over after each of its jobs with the same chance.
        if chance.random() < 1 / burst:
            now += chance.expovariate(rate / burst)
        yield Job(number, now, chance.expovariate(1 / MEAN_COST))


class Simulation(ABC):
    """Runs a scenario under one rule: `choose` of a subclass. The other hooks may be left out."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.environment = simpy.Environment()
        self.chance = random.Random(_SEED)
        self.machines = [
            Machine(number, SCORES[number % len(SCORES)], phase=self.chance.random())
            for number in range(scenario.workers)
        ]
        self.jobs: list[Job] = []
        self.decisions_s = 0.0
        self.decisions = 0
        self.left = scenario.jobs

    @abstractmethod
    def choose(self, job: Job) -> Machine | None:
        """The machine of a job; None for later."""

    def ended(self, machine: Machine, job: Job) -> None:  # noqa: B027 - optional
        """A job has ended."""

    def crashed(self, machine: Machine, jobs: Sequence[Job]) -> None:  # noqa: B027 - optional
        """A machine is gone; the clients of its jobs ask again."""

    def came_back(self, machine: Machine) -> None:  # noqa: B027 - optional
        """It is there again."""

    def run(self) -> Result:
        self.environment.process(self._arrive())
        if self.scenario.crashes:
            for machine in self.machines:
                self.environment.process(self._crash(machine))
        while self.left:
            self.environment.step()
        return self._result()

    @property
    def now(self) -> float:
        return float(self.environment.now)

    def speed_of(self, machine: Machine) -> float:
        if not self.scenario.drifts:
            return machine.score
        angle = 2 * math.pi * (self.now / _DRIFT_S + machine.phase)
        return machine.score * (1 + _DRIFT * math.sin(angle))

    def route(self, job: Job) -> None:
        began = time.perf_counter()
        machine = self.choose(job)
        self.decisions_s += time.perf_counter() - began
        self.decisions += 1
        if machine is not None:
            self.give(machine, job)

    def give(self, machine: Machine, job: Job) -> None:
        if not machine.is_up:
            self.crashed(machine, [job])
            return
        machine.queue.append(job)
        if machine.running is None:
            machine.running = self.environment.process(self._work(machine))

    def _arrive(self) -> Generator[simpy.Event, None, None]:
        for job in jobs_of(self.scenario, random.Random(_SEED + 1)):
            yield self.environment.timeout(job.arrived - self.now)
            self.jobs.append(job)
            self.route(job)

    def _work(self, machine: Machine) -> Generator[simpy.Event, None, None]:
        try:
            while machine.queue:
                job = machine.queue[0]
                job.started, job.score = self.now, machine.score
                yield self.environment.timeout(job.cost / self.speed_of(machine))
                machine.queue.popleft()
                job.ended = self.now
                self.left -= 1
                self.ended(machine, job)
        except simpy.Interrupt:
            pass
        machine.running = None

    def _crash(self, machine: Machine) -> Generator[simpy.Event, None, None]:
        while True:
            yield self.environment.timeout(self.chance.expovariate(1 / _UP_S))
            machine.is_up = False
            jobs = list(machine.queue)
            machine.queue.clear()
            if machine.running is not None:
                machine.running.interrupt()
            self.crashed(machine, jobs)
            yield self.environment.timeout(_DOWN_S)
            machine.is_up = True
            self.came_back(machine)

    def _result(self) -> Result:
        measured = self.jobs[int(len(self.jobs) * WARM_UP) :]
        work = dict.fromkeys(SCORES, 0.0)
        for job in measured:
            work[job.score] += job.cost
        total = sum(work.values())
        errors = [abs(work[score] / total / (score / sum(SCORES)) - 1) for score in SCORES]
        return Result(
            max(errors),
            [job.started - job.arrived for job in measured],
            [job.ended - job.arrived for job in measured],
            1e6 * self.decisions_s / max(self.decisions, 1),
        )
