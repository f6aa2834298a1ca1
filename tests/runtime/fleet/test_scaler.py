"""The scaler on a real router: what workers are told, and which machines start and stop."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from handler.settings import Settings
from runtime.fleet.machines import MachinesError
from runtime.fleet.registry import SILENT_AFTER_S, Measured, Report, Status, Worker
from runtime.fleet.route import RouteRules
from runtime.fleet.router import Request, Router
from runtime.fleet.scaler import Scaler
from runtime.fleet.scaling import SETTLED_S, Demand, ScalingRules
from runtime.fleet.signature import Signer, new_key
from runtime.fleet.store import open_fleet_store
from tests.clock import Clock
from tests.conftest import WebhookReceiver, serve_webhook

NOW = 1_800_000_000.0


class Machines:
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.started = 0
        self.stopped: list[str] = []
        self.fails = False

    def start(self, count: int) -> None:
        self.started += count
        if self.fails:
            raise MachinesError("no quota")

    def stop(self, worker: Worker) -> None:
        self.stopped.append(worker.url)


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def router(tmp_path: Path, clock: Clock) -> Iterator[Router]:
    with closing(open_fleet_store(Settings(jobs_db=tmp_path / "fleet.sqlite"))) as store:
        yield Router(store, RouteRules(), clock=clock)


@pytest.fixture
def machines() -> Machines:
    return Machines()


@pytest.fixture
def front() -> Iterator[WebhookReceiver]:
    """A worker's front, which takes every command."""
    with serve_webhook() as receiver:
        receiver.answers += [202]
        yield receiver


def report(number: int, status: Status, url: str = "http://127.0.0.1:1") -> Report:
    return Report(id=number, url=url, status=status, score=1.0, measured=Measured())


def scaler(
    router: Router, machines: Machines | None, clock: Clock, said: list[str], **rules: float
) -> Scaler:
    """A scaler that has run for long enough to know all workers."""
    given = ScalingRules(**{"min_load": 0.0, "min_workers": 0, "cold_mult": 1.0, **rules})  # type: ignore[arg-type]
    made = Scaler(
        router,
        Signer(new_key()),
        given,
        machines,
        demand=lambda now: Demand(router.waiting.load(now), router.waiting.queue(now).cost),
        on_state=said.append,
        clock=clock,
    )
    clock.now += SILENT_AFTER_S
    return made


def test_worker_is_woken_by_a_signed_command(
    router: Router, machines: Machines, clock: Clock, front: WebhookReceiver
) -> None:
    said: list[str] = []
    router.report(report(1, Status.INACTIVE, front.url))

    scaler(router, machines, clock, said, min_load=0.5).scale()

    (command,) = front.bodies()
    assert (command["action"], command["url"]) == ("wake", front.url)
    assert command["expires"] > NOW
    assert command["signature"]
    assert said == [f"scaling: wake {front.url}"]


def test_command_that_does_not_arrive_is_logged(
    router: Router, machines: Machines, clock: Clock
) -> None:
    said: list[str] = []
    router.report(report(1, Status.INACTIVE))

    scaler(router, machines, clock, said, min_load=0.5).scale()

    assert said == ["scaling: wake http://127.0.0.1:1: ConnectionError"]


def test_command_is_not_led_to_another_address(
    router: Router, machines: Machines, clock: Clock, front: WebhookReceiver
) -> None:
    said: list[str] = []
    front.answers[:] = [307]
    router.report(report(1, Status.INACTIVE, front.url))
    with serve_webhook() as other:
        front.location = other.url

        scaler(router, machines, clock, said, min_load=0.5).scale()

        assert other.calls == []
    assert said == [f"scaling: wake {front.url}: status 307"]


def test_scaler_waits_for_the_reports_of_a_fleet_whose_router_was_down(
    tmp_path: Path, machines: Machines, clock: Clock
) -> None:
    with closing(open_fleet_store(Settings(jobs_db=tmp_path / "fleet.sqlite"))) as store:
        Router(store, RouteRules(), clock=clock).report(report(1, Status.READY))
        clock.now += 600
        router = Router(store, RouteRules(), clock=clock)
        scales = scaler(router, machines, clock, [], min_workers=1)
        clock.now -= SILENT_AFTER_S

        scales.scale()
        assert machines.started == 0
        clock.now += 10
        router.report(report(1, Status.READY))
        clock.now += SILENT_AFTER_S - 10
        scales.scale()
        assert machines.started == 0


def test_start_that_failed_is_tried_again_after_a_minute(
    router: Router, machines: Machines, clock: Clock
) -> None:
    said: list[str] = []
    scales = scaler(router, machines, clock, said, min_workers=2)
    machines.fails = True

    for _ in range(3):
        scales.scale()
        clock.now += 15
    assert (machines.started, said[-1]) == (2, "scaling: no quota")
    machines.fails = False
    clock.now += 20
    scales.scale()
    assert machines.started == 4
    clock.now += 100
    scales.scale()
    assert machines.started == 4


def test_machines_are_started_once(router: Router, machines: Machines, clock: Clock) -> None:
    scales = scaler(router, machines, clock, [], min_workers=2)

    for _ in range(3):
        scales.scale()
    assert machines.started == 2
    router.report(report(1, Status.READY))
    scales.scale()
    assert machines.started == 2
    # The other one does not come.
    clock.now += 1000
    router.report(report(1, Status.READY))
    scales.scale()
    assert machines.started == 3


def test_sleeping_machine_that_is_not_needed_is_stopped_and_gets_nothing_more(
    router: Router, machines: Machines, clock: Clock
) -> None:
    scales = scaler(router, machines, clock, [])
    for _ in range(int(SETTLED_S / 10) + 1):
        router.report(report(1, Status.INACTIVE))
        scales.scale()
        clock.now += 10

    assert machines.stopped == ["http://127.0.0.1:1"]
    assert router.route(Request("comfyui", 100.0)).worker is None


def test_worker_that_was_given_a_request_is_not_retired(router: Router) -> None:
    router.report(report(1, Status.INACTIVE))
    router.route(Request("comfyui", 100.0))

    assert router.retire(1) is None
    assert router.retire(2) is None


def test_fleet_without_machines_wakes_and_sleeps_only(router: Router, clock: Clock) -> None:
    said: list[str] = []
    scales = scaler(router, None, clock, said, min_workers=3)

    scales.scale()

    assert said == []
