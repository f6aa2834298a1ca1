"""Simulates fleets with the router's own rule and changes of workers, beside other rules.

Scores are 0.5, 1, 2 and 4 in equal parts, job sizes exponential with a mean of 100, which a worker
of score 1 needs 100 seconds for. The router knows the size of a job as its cost. All rules get the
same jobs. The first fifth of them is not measured.

`share error` is the largest |share of work ÷ share of score - 1| of the four kinds of workers. The
central queue, which binds a job to a worker only when that is free, is the best that waits can be.

Run: python -m benchmarks.fleet            the tables, some minutes
     python -m benchmarks.fleet --quick    small fleets only
     python -m benchmarks.fleet --plots docs/images
"""

import argparse
import math
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

import simpy

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

SCORES = (0.5, 1.0, 2.0, 4.0)
MEAN_COST = 100.0
WARM_UP = 0.2
_REPORT_EVERY_S = 10.0
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


class Simulation:
    """Runs a scenario under one rule: `choose` returns the machine of a job, None for later."""

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

    def choose(self, job: Job) -> Machine | None:
        raise NotImplementedError

    def ended(self, machine: Machine, job: Job) -> None:
        """A job has ended."""

    def crashed(self, machine: Machine, jobs: Sequence[Job]) -> None:
        """A machine is gone; the clients of its jobs ask again."""

    def came_back(self, machine: Machine) -> None:
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
            self._index.put(
                Worker(
                    id=machine.id,
                    url="",
                    status=Status.READY,
                    score=machine.score,
                    joined_at=0.0,
                    reported_at=0.0 if is_reporting else math.inf,
                )
            )
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
        self._index.put(
            Worker(
                id=machine.id,
                url="",
                status=Status.READY,
                score=machine.score,
                joined_at=0.0,
                reported_at=math.inf,
                virtual_s=virtual_s,
            )
        )


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


def p95(values: Sequence[float]) -> float:
    return sorted(values)[int(len(values) * 0.95)]


def print_targets(sizes: Sequence[int], loads: Sequence[float]) -> None:
    """The rule `proportional` against its targets."""
    print("| workers | load | share error | mean wait, s | central queue, s | ratio | µs |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for size in sizes:
        for load in loads:
            scenario = Scenario(size, load, jobs=max(300_000, 20 * size))
            routed, central = Routed(scenario).run(), Central(scenario).run()
            ratio = routed.mean_wait / central.mean_wait if central.mean_wait > 1e-3 else 1.0
            print(
                f"| {size} | {load:g} | {routed.share_error:.3f} | {routed.mean_wait:.2f}"
                f" | {central.mean_wait:.2f} | {ratio:.2f} | {routed.decision_us:.0f} |",
                flush=True,
            )


def print_rules(title: str, scenario: Scenario, rules: Sequence[str]) -> None:
    print(f"\n{title}\n")
    print(
        "| rule | share error | mean wait, s | p95 wait, s | mean response, s | p95 response, s |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for name in rules:
        result = RULES[name](scenario).run()
        print(
            f"| {name} | {result.share_error:.2f} | {result.mean_wait:.2f}"
            f" | {p95(result.waits):.1f} | {statistics.fmean(result.responses):.1f}"
            f" | {p95(result.responses):.1f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="small fleets only")
    args = parser.parse_args()
    print_targets((8, 40) if args.quick else (8, 40, 400, 10_000), (0.3, 0.8, 0.95))
    usual = Scenario(40, 0.8, jobs=40_000)
    print_rules("40 workers, load 0.8", usual, list(RULES))
    compared = ("central queue", "proportional", "fastest")
    print_rules("Bursts", replace(usual, is_bursty=True), compared)
    print_rules("Crashes", replace(usual, crashes=True, load=0.7), compared)
    print_rules("Scores that drift by 30 %", replace(usual, drifts=True), compared)
    print_rules("The cost of a job says nothing", replace(usual, knows_cost=False), compared)


if __name__ == "__main__":
    main()
