"""How many workers of a fleet are active, asleep, and there at all.

The parameters are those of the hosted product, with their documented meaning; how they act together
is decided here, because its algorithm is not published. Capacity and load have the unit of scores:
a load of 1 is 100 units of cost in 100 seconds. docs/fleet.md describes the rules.
"""

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from runtime.fleet.registry import Status, Worker

# What is more than needed is given up only if it is so much more, for so long: a load that swings
# by less starts and stops nothing.
SURPLUS = 1.2
SETTLED_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingRules:
    """Times in seconds. `inactivity_timeout_s` None: never."""

    max_workers: int = 16
    min_workers: int = 5
    min_load: float = 1.0
    target_util: float = 0.9
    cold_mult: float = 3.0
    min_cold_load: float = 0.0
    target_queue_s: float = 10.0
    inactivity_timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Demand:
    """What clients ask for: `load` of the last minute, `queued` work of requests that wait."""

    load: float
    queued: float = 0.0


@dataclass(frozen=True, slots=True)
class ScalerState:
    """What the next decision has to know of the ones before. Times are None if it is not so."""

    last_load_at: float | None = None
    idle_surplus_since: float | None = None
    machine_surplus_since: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Which workers to wake, to put to sleep and to stop, and how many machines to start."""

    wake: tuple[int, ...] = ()
    sleep: tuple[int, ...] = ()
    stop: tuple[int, ...] = ()
    start: int = 0


@dataclass(frozen=True, slots=True)
class Targets:
    """The capacity that is to be active, and that is to be asleep."""

    active: float
    inactive: float


def targets(rules: ScalingRules, demand: Demand, state: ScalerState, now: float) -> Targets:
    """The largest of the reasons for each."""
    load = max(demand.load, rules.min_load)
    timeout_s = rules.inactivity_timeout_s
    if timeout_s is not None and state.last_load_at is not None and not demand.queued:
        load = load if now - state.last_load_at < timeout_s else 0.0
    # What waits is to be worked off within the target, beside what comes meanwhile.
    active = max(load / rules.target_util, load and load + demand.queued / rules.target_queue_s)
    return Targets(active, max(active * (rules.cold_mult - 1), rules.min_cold_load))


def plan(
    rules: ScalingRules,
    workers: Collection[Worker],
    demand: Demand,
    state: ScalerState,
    now: float,
    *,
    starting: int = 0,
) -> tuple[Plan, ScalerState]:
    """What to do now. `starting` machines were started, and have not reported yet."""
    if demand.load > 0 or demand.queued > 0 or state.last_load_at is None:
        state = replace(state, last_load_at=now)
    wanted = targets(rules, demand, state, now)
    awake = [each for each in workers if each.status in (Status.READY, Status.STARTING)]
    asleep = [each for each in workers if each.status is Status.INACTIVE]
    measured = [each.score for each in (*awake, *asleep) if each.score]
    usual = statistics.fmean(measured) if measured else 1.0
    wake = _wake(asleep, wanted.active - _capacity(awake, usual))
    sleep, state = _sleep(awake, wanted.active, state, now)
    count = len(awake) + len(asleep) + starting
    present = _capacity([*awake, *asleep], usual) + starting * usual
    missing = (wanted.active + wanted.inactive - present) / usual
    start = _start(rules, count, missing)
    stop, state = _stop(rules, awake, asleep, wanted, state, now)
    return Plan(wake, sleep, () if wake or start else stop, start), state


def _wake(asleep: Sequence[Worker], missing: float) -> tuple[int, ...]:
    """The fewest workers that have the missing capacity."""
    woken = []
    for worker in sorted(asleep, key=lambda worker: -worker.score):
        if missing <= 0:
            break
        woken.append(worker.id)
        missing -= worker.score
    return tuple(woken)


def _sleep(
    awake: Sequence[Worker], active: float, state: ScalerState, now: float
) -> tuple[tuple[int, ...], ScalerState]:
    """One idle worker at a time, whose capacity was more than enough for SETTLED_S."""
    capacity = _capacity(awake)
    idle = [
        worker
        for worker in awake
        if worker.status is Status.READY
        and not worker.held
        and capacity - worker.score >= active * SURPLUS
    ]
    if not idle:
        return (), replace(state, idle_surplus_since=None)
    since = now if state.idle_surplus_since is None else state.idle_surplus_since
    if now - since < SETTLED_S:
        return (), replace(state, idle_surplus_since=since)
    slowest = min(idle, key=lambda worker: (worker.score, worker.id))
    return (slowest.id,), replace(state, idle_surplus_since=now)


def _start(rules: ScalingRules, count: int, missing: float) -> int:
    """`count` machines are there or come, and the capacity of `missing` usual ones is not."""
    wanted = max(math.ceil(missing - 1e-9), rules.min_workers - count)
    return max(min(wanted, rules.max_workers - count), 0)


def _stop(
    rules: ScalingRules,
    awake: Sequence[Worker],
    asleep: Sequence[Worker],
    wanted: Targets,
    state: ScalerState,
    now: float,
) -> tuple[tuple[int, ...], ScalerState]:
    """One sleeping worker at a time: no other is stopped, so none that is busy."""
    count = len(awake) + len(asleep)
    left = _capacity([*awake, *asleep]) - (wanted.active + wanted.inactive) * SURPLUS
    spare = [worker for worker in asleep if not worker.held and worker.score <= left]
    if count > rules.max_workers:
        spare = [worker for worker in asleep if not worker.held]
    if not spare or count <= rules.min_workers:
        return (), replace(state, machine_surplus_since=None)
    since = now if state.machine_surplus_since is None else state.machine_surplus_since
    if now - since < SETTLED_S:
        return (), replace(state, machine_surplus_since=since)
    slowest = min(spare, key=lambda worker: (worker.score, worker.id))
    return (slowest.id,), replace(state, machine_surplus_since=now)


def _capacity(workers: Collection[Worker], unmeasured: float = 0.0) -> float:
    """The sum of scores. A PyWorker has none while it starts: it counts as `unmeasured`."""
    return sum(worker.score or unmeasured for worker in workers)
