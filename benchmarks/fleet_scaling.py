"""A simulated fleet that scales by the router's own rules, as the load changes."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from runtime.fleet.registry import Status, Worker
from runtime.fleet.scaling import Demand, Plan, ScalerState, ScalingRules, plan

STEP_S = 5.0
# How long a worker needs to wake, and a machine to come up.
WAKE_S, START_S = 30.0, 120.0


@dataclass(slots=True)
class ScaledFleet:
    """Workers of score 1 that do what the plans say. `active` and `present`: capacity a step."""

    rules: ScalingRules
    workers: dict[int, Worker] = field(default_factory=dict)
    state: ScalerState = field(default_factory=ScalerState)
    coming: list[float] = field(default_factory=list)
    waking: dict[int, float] = field(default_factory=dict)
    machines: int = 0
    changes: int = 0
    load: list[float] = field(default_factory=list)
    active: list[float] = field(default_factory=list)
    present: list[float] = field(default_factory=list)

    def step(self, load: float, now: float) -> None:
        """The fleet `STEP_S` seconds later, under this load."""
        for at in [at for at in self.coming if at <= now]:
            self.coming.remove(at)
            self.machines += 1
            self.workers[self.machines] = Worker(
                id=self.machines,
                url="",
                status=Status.INACTIVE,
                score=1.0,
                joined_at=now,
                reported_at=now,
            )
        for number in [number for number, at in self.waking.items() if at <= now]:
            del self.waking[number]
            self._set(number, Status.READY)
        made, self.state = plan(
            self.rules,
            self.workers.values(),
            Demand(load),
            self.state,
            now,
            starting=len(self.coming),
        )
        self._apply(made, now)
        awake = [each for each in self.workers.values() if each.status is not Status.INACTIVE]
        self.load.append(load)
        self.active.append(float(len(awake)))
        self.present.append(float(len(self.workers)))

    def _apply(self, made: Plan, now: float) -> None:
        for number in made.wake:
            self._set(number, Status.STARTING)
            self.waking[number] = now + WAKE_S
        for number in made.sleep:
            self._set(number, Status.INACTIVE)
        for number in made.stop:
            assert self.workers.pop(number).status is Status.INACTIVE
        self.coming += [now + START_S] * made.start
        self.changes += len(made.wake) + len(made.sleep) + len(made.stop) + made.start
        assert len(self.workers) + len(self.coming) <= self.rules.max_workers

    def _set(self, number: int, status: Status) -> None:
        self.workers[number] = replace(self.workers[number], status=status)


def scaled(load: Callable[[float], float], hours: float, rules: ScalingRules) -> ScaledFleet:
    """The fleet after so many hours. `load` is that of a second since the start."""
    fleet = ScaledFleet(rules)
    for step in range(int(hours * 3600 / STEP_S)):
        fleet.step(load(step * STEP_S), step * STEP_S)
    return fleet
