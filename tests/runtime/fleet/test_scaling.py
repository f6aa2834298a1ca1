"""How many workers a fleet keeps active and asleep, and that it does not flap."""

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.fleet_scaling import scaled
from runtime.fleet.registry import Held, Status, Worker
from runtime.fleet.scaling import (
    SETTLED_S,
    Demand,
    Plan,
    ScalerState,
    ScalingRules,
    plan,
    targets,
)

NOW = 1_800_000_000.0
NO_LOAD = Demand(0.0)


def worker(number: int, status: Status = Status.READY, score: float = 1.0, **fields: Any) -> Worker:
    return Worker(
        id=number,
        url="",
        status=status,
        score=score,
        joined_at=NOW,
        reported_at=NOW,
        **fields,
    )


def rules(**fields: Any) -> ScalingRules:
    return replace(ScalingRules(min_workers=0, min_load=0.0, cold_mult=1.0), **fields)


def settled_plan(given: ScalingRules, workers: list[Worker], demand: Demand) -> Plan:
    """The plan once the same has been so for long enough."""
    _, state = plan(given, workers, demand, ScalerState(), NOW)
    made, _ = plan(given, workers, demand, state, NOW + SETTLED_S)
    return made


@pytest.mark.parametrize(
    ("given", "demand", "active", "inactive"),
    [
        ({"target_util": 0.9}, Demand(9.0), 10.0, 0.0),
        ({"min_load": 1.8}, Demand(0.0), 2.0, 0.0),
        ({"cold_mult": 3.0}, Demand(9.0), 10.0, 20.0),
        ({"min_cold_load": 7.0}, Demand(9.0), 10.0, 7.0),
        # The largest inactive target wins.
        ({"cold_mult": 3.0, "min_cold_load": 7.0}, Demand(9.0), 10.0, 20.0),
        # 500 units of work are to be worked off in 10 seconds.
        ({"target_queue_s": 10.0}, Demand(9.0, queued=500.0), 59.0, 0.0),
    ],
)
def test_targets_follow_the_parameters(
    given: dict[str, float], demand: Demand, active: float, inactive: float
) -> None:
    made = targets(rules(**given), demand, ScalerState(), NOW)

    assert made.active == pytest.approx(active)
    assert made.inactive == pytest.approx(inactive)


def test_load_wakes_the_fewest_workers() -> None:
    asleep = [worker(number, Status.INACTIVE, score=number) for number in (1, 2, 3)]

    made, _ = plan(rules(), asleep, Demand(2.7), ScalerState(), NOW)

    assert made.wake == (3,)


def test_idle_worker_sleeps_once_it_was_not_needed_for_long() -> None:
    workers = [worker(1), worker(2, score=0.5), worker(3)]

    early, _ = plan(rules(), workers, Demand(0.9), ScalerState(), NOW)

    assert early.sleep == ()
    assert settled_plan(rules(), workers, Demand(0.9)).sleep == (2,)


def test_busy_worker_neither_sleeps_nor_stops() -> None:
    busy = (Held(1, 100.0, NOW),)
    workers = [worker(1, held=busy), worker(2, Status.INACTIVE, held=busy)]

    made = settled_plan(rules(), workers, NO_LOAD)

    assert (made.sleep, made.stop) == ((), ())


def test_sleeping_worker_that_nobody_needs_is_stopped() -> None:
    workers = [worker(1), worker(2, Status.INACTIVE), worker(3, Status.INACTIVE)]

    assert settled_plan(rules(), workers, Demand(0.9)).stop == (2,)
    assert settled_plan(rules(min_workers=3), workers, Demand(0.9)).stop == ()
    assert settled_plan(rules(cold_mult=4.0), workers, Demand(0.9)).stop == ()


def test_machines_are_started_for_load_and_reserve_up_to_the_limit() -> None:
    workers = [worker(1), worker(2)]

    assert plan(rules(), workers, Demand(4.5), ScalerState(), NOW)[0].start == 3
    started = plan(rules(), workers, Demand(4.5), ScalerState(), NOW, starting=3)[0]
    assert started.start == 0
    assert plan(rules(max_workers=4), workers, Demand(45.0), ScalerState(), NOW)[0].start == 2
    assert plan(rules(min_workers=5), workers, NO_LOAD, ScalerState(), NOW)[0].start == 3
    assert plan(rules(cold_mult=3.0), workers, Demand(1.8), ScalerState(), NOW)[0].start == 4


def test_worker_that_starts_without_a_score_counts_as_a_usual_one() -> None:
    starting = [worker(number, Status.STARTING, score=0.0) for number in (1, 2)]

    assert plan(rules(), starting, Demand(1.8), ScalerState(), NOW)[0] == Plan()
    with_measured = [worker(3, score=2.0), *starting]
    assert plan(rules(), with_measured, Demand(5.4), ScalerState(), NOW)[0] == Plan()
    # It is no reason to let another one sleep.
    assert settled_plan(rules(), with_measured, Demand(1.0)).sleep == ()


def test_fleet_above_its_limit_shrinks() -> None:
    workers = [worker(number, Status.INACTIVE) for number in range(3)]

    made = settled_plan(rules(max_workers=2, cold_mult=9.0), workers, Demand(0.9))

    assert len(made.stop) <= 1
    assert made.start == 0


def test_fleet_without_load_for_long_keeps_nobody_active() -> None:
    given = rules(min_load=1.0, inactivity_timeout_s=600.0)
    _, state = plan(given, [worker(1)], Demand(1.0), ScalerState(), NOW)

    soon = targets(given, NO_LOAD, state, NOW + 599)
    late = targets(given, NO_LOAD, state, NOW + 601)

    assert soon.active > 0
    assert late.active == 0


def test_load_that_swings_does_not_make_the_fleet_flap() -> None:
    chance = random.Random(1)
    settled = scaled(lambda _: 5.0, 1.0, ScalingRules())
    noisy = scaled(lambda _: chance.gauss(5.0, 0.25), 8.0, ScalingRules())

    assert settled.active[-1] >= 5.0 / 0.9
    assert noisy.changes <= settled.changes + 4


def test_fleet_follows_the_load_of_a_day() -> None:
    day = scaled(
        lambda s: 4.0 - 3.5 * math.cos(2 * math.pi * s / 86_400), 24.0, ScalingRules(max_workers=40)
    )

    assert max(day.active) >= 7.5 / 0.9
    # At night it has not kept what noon had needed.
    assert day.active[-1] <= 3.0
    # Up and down once.
    assert day.changes <= 4 * 10 + 2 * 20 * 2
