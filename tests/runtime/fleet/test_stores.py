"""What the store of a fleet promises, and what routers make of it: on SQLite and on DynamoDB."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handler.settings import Settings
from runtime.fleet.registry import (
    SILENT_AFTER_S,
    Benchmarked,
    Held,
    Measured,
    Report,
    Status,
    Worker,
)
from runtime.fleet.route import RouteRules
from runtime.fleet.router import Request, Router
from runtime.fleet.shared_demand import SharedDemand
from runtime.fleet.store import FleetStore, FleetStoreError, open_fleet_store
from tests.aws import moto_client
from tests.clock import Clock
from tests.handler.job_tables import DynamoDBTable

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

NOW = 1_800_000_000.0
WORKER = Worker(
    id=7,
    url="http://worker",
    status=Status.READY,
    score=1.5,
    joined_at=NOW,
    reported_at=NOW,
    held=(Held(3, 100.0, NOW),),
    places=2,
    benchmarks=(Benchmarked("NVIDIA L4", "0b3b", 1.5),),
    measured=Measured(cur_load=100.0),
    version=1,
)
REQUEST = Request("comfyui", 100.0)

OpenStore = Callable[[], FleetStore]


@pytest.fixture(params=["sqlite", "dynamodb"])
def open_store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OpenStore]:
    """Opens the same store every time, as another router does."""
    opened: list[FleetStore] = []

    def open_again(settings: Settings) -> FleetStore:
        opened.append(open_fleet_store(settings))
        return opened[-1]

    if request.param == "sqlite":
        yield lambda: open_again(Settings(jobs_db=tmp_path / "fleet.sqlite"))
    else:
        with moto_client(monkeypatch, "dynamodb") as client:
            table = DynamoDBTable(client)
            table.create()
            yield lambda: open_again(table.settings)
    for store in opened:
        store.close()


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def open_router(open_store: OpenStore, clock: Clock) -> Callable[..., Router]:
    def open_one(**rules: Any) -> Router:
        return Router(open_store(), RouteRules(**rules), clock=clock)

    return open_one


OpenRouter = Callable[..., Router]


def report(number: int = 1, score: float = 1.0, **fields: Any) -> Report:
    given = {"status": Status.READY, **fields}
    return Report(
        id=number, url=f"http://worker-{number}", score=score, measured=Measured(), **given
    )


def test_worker_is_kept_as_it_was(open_store: OpenStore) -> None:
    assert open_store().put(WORKER, 0)

    assert open_store().workers() == [WORKER]
    assert open_store().get(7) == WORKER
    assert open_store().get(8) is None


def test_change_of_another_version_is_refused(open_store: OpenStore) -> None:
    store = open_store()
    store.put(WORKER, 0)
    second = replace(WORKER, version=2)

    assert not store.put(replace(WORKER, score=9.0), 0)
    assert store.put(second, 1)
    assert not store.put(replace(second, score=9.0), 1)
    assert not store.remove(WORKER)
    assert store.get(7) == second
    assert store.remove(second)
    assert store.workers() == []


def test_secret_is_made_once(open_store: OpenStore) -> None:
    first, second = open_store(), open_store()

    assert first.secret("key", lambda: "a") == "a"
    assert second.secret("key", lambda: "b") == "a"
    assert second.secret("other", lambda: "b") == "b"


def test_last_that_a_router_has_told_is_read_for_a_while(open_store: OpenStore) -> None:
    first, second = open_store(), open_store()

    first.publish("a", "early", NOW)
    second.publish("b", "other", NOW + 5)
    first.publish("a", "late", NOW + 10)

    assert second.published(NOW) == {"a": "late", "b": "other"}
    assert second.published(NOW + 6) == {"a": "late"}
    assert second.workers() == []


def test_demand_of_several_routers_counts_each_request_once(
    open_store: OpenStore, clock: Clock
) -> None:
    stores = open_store(), open_store()
    routers = [Router(store, RouteRules(), clock=clock) for store in stores]
    first, second = (SharedDemand(s, r.waiting) for s, r in zip(stores, routers, strict=True))
    moving = routers[0].route(REQUEST).request_idx
    routers[1].route(replace(REQUEST, request_idx=moving))
    routers[1].route(replace(REQUEST, cost=20.0))

    second.tell(NOW)
    total = first.total(NOW)

    assert total.queued == 120.0
    assert total.load == pytest.approx(120.0 / 60, abs=0.01)
    # A router that was killed asks for nothing.
    assert first.total(NOW + SILENT_AFTER_S + 1).queued == 100.0


def test_router_tells_the_others_when_nothing_is_asked_for_any_more(
    open_store: OpenStore, clock: Clock
) -> None:
    store = open_store()
    waiting = Router(store, RouteRules(), clock=clock).waiting
    demand = SharedDemand(store, waiting)

    demand.tell(NOW)
    assert store.published(0.0) == {}
    waiting.ask(1, 100.0, NOW, keep_s=60.0)
    demand.tell(NOW + 6)
    waiting.serve(1)
    # Not as often as it is swept.
    demand.tell(NOW + 8)
    (told,) = store.published(NOW + 6).values()
    assert json.loads(told) == {"load": 0.0, "waiting": [[1, 100.0]]}
    demand.tell(NOW + 12)
    demand.tell(NOW + 18)

    assert [json.loads(text)["waiting"] for text in store.published(NOW + 12).values()] == [[]]
    assert store.published(NOW + 18) == {}


def test_router_whose_clock_is_put_back_goes_on_telling(
    open_store: OpenStore, clock: Clock
) -> None:
    store = open_store()
    waiting = Router(store, RouteRules(), clock=clock).waiting
    demand = SharedDemand(store, waiting)
    waiting.ask(1, 100.0, NOW, keep_s=60.0)
    demand.tell(NOW)
    waiting.ask(2, 100.0, NOW - 3600, keep_s=60.0)

    demand.tell(NOW - 3600)

    (told,) = store.published(NOW - 3600).values()
    assert json.loads(told)["waiting"] == [[1, 100.0], [2, 100.0]]


def test_request_that_another_router_has_given_away_waits_no_more(
    open_router: OpenRouter, clock: Clock
) -> None:
    first, second = open_router(), open_router()
    request_idx = first.route(REQUEST).request_idx
    second.report(report())
    second.route(replace(REQUEST, request_idx=request_idx))

    first.refresh()

    assert first.waiting.queue(clock.now).requests == 0


def test_two_routers_do_not_give_the_last_places_away_twice(open_router: OpenRouter) -> None:
    routers = [open_router(max_queue_s=25.0) for _ in range(2)]
    routers[0].report(report(score=10.0))
    routers[1].refresh()

    with ThreadPoolExecutor(12) as threads:
        calls = [threads.submit(routers[number % 2].route, REQUEST) for number in range(12)]
        routed = [call.result() for call in calls]

    # 10 s each: the third one waits for 20 s, a fourth would for 30 s.
    taken = [each.worker for each in routed if each.worker]
    assert len(taken) == 3
    assert {each.given for each in taken} == {1, 2, 3}


def test_request_that_comes_again_moves_and_adds_no_load(
    open_router: OpenRouter, clock: Clock
) -> None:
    router = open_router()
    router.report(report(1))
    router.report(report(2))

    first = router.route(REQUEST)
    load = router.waiting.load(clock.now)
    again = router.route(replace(REQUEST, request_idx=first.request_idx))

    assert first.worker
    assert again.worker
    assert again.worker.id != first.worker.id
    assert again.request_idx == first.request_idx
    assert router.waiting.load(clock.now) == load
    assert sum(len(worker.held) for worker in router.workers()) == 1


def test_request_waits_until_a_worker_has_a_place(open_router: OpenRouter, clock: Clock) -> None:
    router = open_router()

    waiting = router.route(REQUEST)
    assert waiting.worker is None
    assert router.waiting.queue(clock.now).requests == 1
    router.report(report())
    routed = router.route(replace(REQUEST, request_idx=waiting.request_idx))

    assert routed.worker
    assert router.waiting.queue(clock.now).requests == 0


def test_waiting_request_is_forgotten_when_its_client_asks_no_more(
    open_router: OpenRouter, clock: Clock
) -> None:
    router = open_router()
    router.route(replace(REQUEST, keep_s=5.0))

    clock.now += 6
    router.sweep()

    assert router.waiting.queue(clock.now).requests == 0


def test_router_that_is_started_again_knows_what_its_workers_hold(
    open_router: OpenRouter,
) -> None:
    before = open_router()
    before.report(report(1))
    before.report(report(2))
    first = before.route(REQUEST)

    after = open_router()
    second = after.route(REQUEST)

    assert first.worker
    assert second.worker
    assert second.worker.id != first.worker.id
    after.finish(first.worker.id, {first.request_idx}, set())
    assert sum(len(worker.held) for worker in after.workers()) == 1


def test_router_that_was_down_for_long_waits_for_reports(
    open_router: OpenRouter, clock: Clock
) -> None:
    before = open_router()
    before.report(report())
    first = before.route(REQUEST)
    clock.now += 2 * 3600

    after = open_router()
    after.sweep()
    clock.now += 10
    after.report(report(working=frozenset({first.request_idx})))
    clock.now += SILENT_AFTER_S - 10
    after.sweep()

    (worker,) = after.workers()
    assert worker.status is Status.READY
    assert [held.request_idx for held in worker.held] == [first.request_idx]
    clock.now += SILENT_AFTER_S
    after.sweep()
    assert after.workers()[0].status is Status.LOST


def test_worker_that_stops_reporting_loses_its_requests(
    open_router: OpenRouter, clock: Clock
) -> None:
    router, other = open_router(), open_router()
    router.report(report())
    first = router.route(REQUEST)
    clock.now += SILENT_AFTER_S + 1

    router.sweep()
    other.refresh()

    (worker,) = other.workers()
    assert (worker.status, worker.held, worker.work) == (Status.LOST, (), 0.0)
    assert router.route(replace(REQUEST, request_idx=first.request_idx)).worker is None
    assert "does not report; requests to route again: 1" in router.events()[0].text
    router.report(report())
    assert router.route(replace(REQUEST, request_idx=first.request_idx)).worker


def test_worker_that_stays_silent_is_forgotten(open_router: OpenRouter, clock: Clock) -> None:
    router = open_router()
    router.report(report())

    clock.now += 3601
    router.sweep()

    assert router.workers() == []
    assert open_router().workers() == []


def test_worker_that_leaves_is_gone_for_every_router(open_router: OpenRouter) -> None:
    router, other = open_router(), open_router()
    router.report(report())
    other.refresh()
    # The other router has changed it meanwhile.
    other.route(REQUEST)

    router.deregister(1)
    other.refresh()

    assert router.workers() == other.workers() == []
    assert other.route(REQUEST).worker is None


def test_request_that_failed_is_not_work(open_router: OpenRouter) -> None:
    router = open_router()
    router.report(report())
    routed = [router.route(REQUEST) for _ in range(1)]

    router.finish(1, set(), {routed[0].request_idx})

    (worker,) = router.workers()
    assert (worker.held, worker.work, worker.given) == ((), 0.0, 1)
    assert router.finish(2, {1}, set()) is None


def test_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / "fleet.sqlite"
    path.write_text("no database, and longer than the header of one")

    with pytest.raises(FleetStoreError, match=r"JOBS_TABLE, JOBS_DB.*not a database"):
        open_fleet_store(Settings(jobs_db=path))


def test_fleet_and_jobs_can_share_a_file(tmp_path: Path) -> None:
    from handler.jobs.sqlite import SqliteStore  # noqa: PLC0415

    path = tmp_path / "jobs.sqlite"
    with closing(SqliteStore(path)), closing(open_fleet_store(Settings(jobs_db=path))) as store:
        assert store.put(WORKER, 0)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT COUNT(*) FROM job_records").fetchone() == (0,)
