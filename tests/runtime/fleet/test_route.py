"""Which worker gets the next request, and what that makes of the fleet's shares."""

import random
import statistics
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from runtime.fleet.registry import (
    SILENT_AFTER_S,
    Measured,
    Report,
    Status,
    Worker,
    doubted,
    finished,
    given,
    lost,
    reported,
    taken_back,
)
from runtime.fleet.route import AFFINITY_REQUESTS, Balance, RouteRules, WorkerIndex

NOW = 1_800_000_000.0
COST = 100.0


def worker(number: int, score: float = 1.0, **given_fields: Any) -> Worker:
    fields = {"status": Status.READY, "joined_at": NOW, "reported_at": NOW, **given_fields}
    return Worker(id=number, url=f"http://worker-{number}", score=score, **fields)


def index_of(*workers: Worker, **rules: Any) -> WorkerIndex:
    index = WorkerIndex(RouteRules(**rules))
    for each in workers:
        index.put(each)
    return index


def report(number: int = 1, **fields: Any) -> Report:
    given_fields = {"status": Status.READY, "score": 1.0, "measured": Measured(), **fields}
    return Report(id=number, url=f"http://worker-{number}", **given_fields)


def route(index: WorkerIndex, now: float = NOW, request_idx: int = 1, **options: Any) -> int | None:
    """Give the next request to the worker that the rule chooses; return its id."""
    chosen = index.choose(COST, now, **options)
    if chosen is None:
        return None
    index.put(given(chosen, request_idx, COST, options.get("loads", ""), now))
    return chosen.id


def test_burst_is_shared_in_proportion_to_score() -> None:
    index = index_of(worker(1, 1.0), worker(2, 2.0), worker(3, 4.0), max_queue_s=1e6)

    chosen = Counter(route(index, request_idx=number) for number in range(70))

    assert chosen == {1: 10, 2: 20, 3: 40}


def test_requests_that_find_all_workers_idle_are_shared_in_proportion_to_score() -> None:
    index = index_of(worker(1, 1.0), worker(2, 2.0), worker(3, 4.0))

    chosen: Counter[int | None] = Counter()
    for number in range(70):
        number_of_worker = route(index, request_idx=number)
        assert number_of_worker is not None
        busy = index.get(number_of_worker)
        assert busy is not None
        index.put(finished(busy, {number}, NOW))
        chosen[number_of_worker] += 1

    assert chosen == {1: 10, 2: 20, 3: 40}


def test_fastest_ends_a_request_soonest() -> None:
    index = index_of(worker(1, 1.0), worker(2, 4.0), balance=Balance.FASTEST, max_queue_s=1e6)

    chosen = [route(index, request_idx=number) for number in range(5)]

    # Three wait for the fast worker, and end before the slow one would end its first.
    assert chosen.count(2) == 4
    assert chosen.count(1) == 1


def test_worker_whose_wait_is_too_long_has_no_place() -> None:
    index = index_of(worker(1, 10.0), max_queue_s=15)

    assert [route(index, request_idx=number) for number in range(4)] == [1, 1, None, None]
    assert route(index, NOW + 10) == 1


def test_without_a_queue_only_a_free_worker_has_a_place() -> None:
    index = index_of(worker(1), max_queue_s=0)

    assert [route(index), route(index), route(index, NOW + 500)] == [1, None, None]
    busy = index.get(1)
    assert busy is not None
    index.put(reported(finished(busy, {1}, NOW + 500), report(), NOW + 500, 0.0))
    assert route(index, NOW + 500) == 1


def test_worker_of_several_gpus_has_no_wait_while_one_is_free() -> None:
    index = index_of(worker(1, 4.0, places=4), max_queue_s=0)

    assert [route(index, request_idx=number) for number in range(5)] == [1, 1, 1, 1, None]
    busy = index.get(1)
    assert busy is not None
    index.put(finished(busy, {2}, NOW + 20))
    assert [route(index, NOW + 20), route(index, NOW + 20)] == [1, None]


def test_wait_for_a_worker_of_several_gpus_is_that_for_the_first_of_them() -> None:
    busy = worker(1, 4.0, places=4)
    for number in range(5):
        busy = given(busy, number, COST, "", NOW)

    # All of it takes 125 s, and the second of five ends before the next one begins.
    assert busy.expected_end(NOW) == NOW + 125
    assert busy.expected_free_at(NOW) == NOW + 50
    # One that is late is expected to need as long again, on its own GPU.
    assert busy.expected_free_at(NOW + 51) == NOW + 151


def test_several_gpus_get_the_share_of_their_scores() -> None:
    index = index_of(worker(1, 4.0, places=4), worker(2, 1.0), worker(3, 2.0), max_queue_s=1e6)

    chosen = Counter(route(index, request_idx=number) for number in range(70))

    assert chosen == {1: 40, 2: 10, 3: 20}


def test_fastest_compares_single_gpus() -> None:
    many_slow, one_fast = worker(1, 4.0, places=4), worker(2, 2.0)

    assert route(index_of(many_slow, one_fast, balance=Balance.FASTEST)) == 2


def test_worker_of_several_gpus_that_is_woken_has_to_start_first() -> None:
    asleep = worker(1, 4.0, places=4, status=Status.INACTIVE, cold_start_s=20.0)
    index = index_of(asleep, max_queue_s=30)

    assert [route(index), route(index)] == [1, None]
    waking = index.get(1)
    assert waking is not None
    index.put(replace(waking, status=Status.READY))
    assert route(index) == 1


def test_sleeping_worker_is_woken_only_if_nobody_else_has_a_place() -> None:
    asleep = worker(2, status=Status.INACTIVE, cold_start_s=20.0)
    index = index_of(worker(1, 10.0), asleep, max_queue_s=10)

    assert [route(index, request_idx=number) for number in range(3)] == [1, 1, 2]


def test_worker_that_starts_for_a_request_takes_no_other_until_it_has_a_place() -> None:
    index = index_of(worker(1, status=Status.INACTIVE, cold_start_s=20.0), max_queue_s=30)

    assert [route(index), route(index)] == [1, None]
    waking = index.get(1)
    assert waking is not None
    # 20 s of start, and 100 s of work.
    assert waking.free_at == NOW + 120
    index.put(replace(waking, status=Status.STARTING, reported_at=NOW + 95))
    assert route(index, NOW + 95) == 1


@pytest.mark.parametrize("status", [Status.STARTING, Status.DRAINING, Status.FAILED, Status.LOST])
def test_worker_that_cannot_work_gets_nothing(status: Status) -> None:
    assert route(index_of(worker(1, status=status))) is None


def test_silent_worker_gets_nothing_until_it_reports_again() -> None:
    index = index_of(worker(1))
    later = NOW + SILENT_AFTER_S + 1

    assert route(index, later) is None
    index.put(reported(worker(1), report(), later, 0.0))
    assert route(index, later) == 1


def test_worker_that_takes_too_long_is_expected_to_need_as_long_again() -> None:
    slow, other = worker(1, 1.0), worker(2, 0.5)
    index = index_of(slow, other, max_queue_s=1e6)
    assert [route(index, request_idx=number) for number in range(2)] == [1, 2]
    late = NOW + 150
    for number in (1, 2):
        current = index.get(number)
        assert current is not None
        index.put(replace(current, reported_at=late))

    # The first should be free since 50 s, the second is so in 50 s.
    assert route(index, late, request_idx=3) == 2


def test_request_that_is_sent_again_goes_to_another_worker() -> None:
    index = index_of(worker(1), worker(2, virtual_s=50.0))

    assert route(index, avoid=1) == 2
    assert route(index_of(worker(1)), avoid=1) == 1


def test_worker_with_the_models_goes_first_while_it_is_not_far_ahead() -> None:
    loaded = worker(1, virtual_s=COST, loaded="wan")
    index = index_of(loaded, worker(2))

    assert route(index, loads="flux") == 2
    index = index_of(loaded, worker(2))
    assert route(index, loads="wan") == 1
    far_ahead = replace(loaded, virtual_s=(AFFINITY_REQUESTS + 1) * COST)
    assert route(index_of(far_ahead, worker(2)), loads="wan") == 2


def test_worker_that_joins_does_not_make_up_for_the_past() -> None:
    index = index_of(worker(1, virtual_s=1000.0), worker(2, virtual_s=1000.0))

    index.put(reported(None, report(3), NOW, index.average_s))

    assert index.average_s == 1000.0
    chosen: Counter[int | None] = Counter()
    for number in range(30):
        chosen[route(index, request_idx=number, now=NOW)] += 1
        for each in index:
            index.put(finished(each, {number}, NOW))
    assert set(chosen.values()) == {10}


def test_failed_request_is_not_part_of_the_work_of_its_worker() -> None:
    before = worker(1, 2.0)
    busy = given(given(before, 1, COST, "", NOW), 2, COST, "", NOW)

    after = taken_back(busy, {1}, NOW)

    assert (after.work, after.virtual_s, after.outstanding) == (100.0, 50.0, 100.0)
    assert after.free_at == NOW + 50
    assert finished(busy, {3}, NOW) is busy


def test_doubted_worker_gets_nothing_until_it_reports() -> None:
    doubtful = doubted(given(worker(1), 1, COST, "", NOW), 1, NOW)

    assert route(index_of(doubtful)) is None
    assert route(index_of(reported(doubtful, report(), NOW, 0.0))) == 1
    # A request that it does not hold says nothing.
    assert doubted(worker(1), 7, NOW) == worker(1)


def test_requests_of_a_lost_worker_are_free() -> None:
    gone = lost(given(worker(1), 1, COST, "", NOW), NOW)

    assert (gone.status, gone.held, gone.work) == (Status.LOST, (), 0.0)


@pytest.mark.parametrize("before", [None, lost(given(worker(1), 1, COST, "", NOW), NOW)])
def test_worker_that_comes_back_holds_what_it_still_works_on(before: Worker | None) -> None:
    measured = Measured(cur_load=2 * COST)

    back = reported(before, report(working=frozenset({1, 2}), measured=measured), NOW + 60, 0.0)

    assert [(held.request_idx, held.cost) for held in back.held] == [(1, COST), (2, COST)]
    assert back.work == 2 * COST
    assert route(index_of(back), NOW + 60) is None
    assert finished(back, {1, 2}, NOW + 90).held == ()
    # A worker that the router has not given up holds what the router says.
    assert reported(worker(1), report(working=frozenset({1})), NOW, 0.0).held == ()


def test_worker_that_begins_anew_without_a_score_holds_nothing() -> None:
    busy = given(given(worker(1, 2.0), 1, COST, "", NOW), 2, COST, "", NOW)

    anew = reported(busy, report(score=0.0, status=Status.STARTING), NOW + 20, 0.0)

    assert (anew.held, anew.work, anew.virtual_s) == ((), 0.0, 0.0)
    assert anew.expected_free_at(NOW + 20) == NOW + 20
    assert route(index_of(anew), NOW + 20) is None


def test_names_of_models_are_forgotten_with_the_workers_that_had_them() -> None:
    index = index_of(worker(1))

    for number in range(1000):
        assert route(index, request_idx=number, loads=f"model {number}") == 1
        busy = index.get(1)
        assert busy is not None
        index.put(finished(busy, {number}, NOW))

    assert sum(len(lane.idle_with) for lane in index._lanes.values()) < 100


def test_request_that_a_worker_does_not_mention_has_ended() -> None:
    busy = given(given(worker(1), 1, COST, "", NOW), 2, COST, "", NOW)

    soon = reported(busy, report(working=frozenset({2})), NOW + 5, 0.0)
    late = reported(busy, report(working=frozenset({2})), NOW + 20, 0.0)

    assert len(soon.held) == 2
    assert [held.request_idx for held in late.held] == [2]


def test_score_that_drifts_changes_the_share_from_then_on() -> None:
    first = given(worker(1, 1.0), 1, COST, "", NOW)
    second = given(finished(first, {1}, NOW), 2, COST, "", NOW)
    drifted = given(
        reported(finished(second, {2}, NOW), report(score=4.0), NOW, 0.0), 3, COST, "", NOW
    )

    assert drifted.virtual_s == 100 + 100 + 25


@pytest.mark.slow
@pytest.mark.parametrize("balance", Balance)
def test_choice_among_ten_thousand_workers_takes_less_than_a_millisecond(balance: Balance) -> None:
    chance = random.Random(1)
    workers = [worker(number, chance.uniform(0.5, 4.0)) for number in range(10_000)]
    index = index_of(*workers, balance=balance, max_queue_s=1e6)

    seconds = []
    for number in range(20_000):
        began = time.thread_time()
        route(index, NOW + number / 1000, request_idx=number)
        seconds.append(time.thread_time() - began)

    assert statistics.mean(seconds) < 0.001
