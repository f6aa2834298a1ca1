"""Two router processes on one DynamoDB table, one of which is killed."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from events.repeating_timer import RepeatingTimer
from tests.aws import moto_client
from tests.handler.job_tables import DynamoDBTable
from tests.processes import wait_until
from tests.runtime.fleet.fleet import WORKERS, RouterProcess, router_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

WORKER = {"id": 1, "mtoken": WORKERS, "url": "http://worker", "max_perf": 0.1}


@pytest.fixture
def routers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[RouterProcess, RouterProcess]]:
    """Each gives the worker three requests at most: a fourth would wait for 3000 s."""
    with moto_client(monkeypatch, "dynamodb") as client:
        table = DynamoDBTable(client)
        table.create()
        variables = {"JOBS_TABLE": table.settings.jobs_table, "ROUTER_MAX_QUEUE": "2500"}
        with (
            router_process(tmp_path, **variables) as first,
            router_process(tmp_path, **variables) as second,
        ):
            yield first, second


def report(router: RouterProcess, working: Sequence[int]) -> bool:
    """As a worker does that has these requests; whether the router has taken it."""
    body = WORKER | {"working_request_idxs": list(working)}
    return router.post("/worker_status/", body).ok


def worker_of(router: RouterProcess) -> dict[str, Any]:
    (worker,) = router.fleet()["workers"]
    return dict(worker)


def test_last_places_are_given_away_once_and_outlive_a_killed_router(
    routers: tuple[RouterProcess, RouterProcess],
) -> None:
    first, second = routers
    assert report(first, [])
    assert wait_until(lambda: second.statuses() == ["ready"], 60), second.log

    with ThreadPoolExecutor(12) as threads:
        calls = [threads.submit(routers[number % 2].route) for number in range(12)]
        routed = [answer for call in calls if "url" in (answer := call.result())]

    working = [answer["request_idx"] for answer in routed]
    assert sorted(answer["reqnum"] for answer in routed) == [1, 2, 3]
    first.process.kill()
    first.process.wait(30)
    # The other one knows what the killed one has given.
    assert report(second, working)
    assert worker_of(second)["reqs_working"] == 3
    assert "status" in second.route()
    ended = [{"request_idx": each, "success": True} for each in working]
    second.post("/delete_requests/", {"worker_id": 1, "mtoken": WORKERS, "requests": ended})
    fourth = second.route()
    assert fourth["reqnum"] == 4

    with RepeatingTimer(5.0, lambda: report(second, [fourth["request_idx"]])):
        first.start()
        view = worker_of(first)

    assert (view["requests"], view["reqs_working"], view["work"]) == (4, 1, 400.0)
    assert first.get("/pubkey/").text == second.get("/pubkey/").text
