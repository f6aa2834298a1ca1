"""The official client of the hosted product, unchanged, against our router and several workers."""

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.processes import wait_until
from tests.runtime.fleet.fleet import RouterProcess, router_process, slow_workers, vastai_client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# Of jobs that take 2.5, 1.25 and 0.625 seconds: much longer than a busy machine delays them.
SCORES = (40.0, 80.0, 160.0)
AT_ONCE = 50


def result_of(client: "subprocess.Popen[str]") -> dict[str, Any]:
    output, _ = client.communicate(timeout=240)
    assert client.returncode == 0
    result: dict[str, Any] = json.loads(output)
    return result


def completed(result: dict[str, Any]) -> set[str]:
    return {each["response"]["id"] for each in result["answers"] if each["ok"]}


def held(router: RouterProcess) -> int:
    return sum(int(worker["reqs_working"]) for worker in router.fleet()["workers"])


def all_are_with_workers(router: RouterProcess) -> bool:
    """Whether every request was routed, and every worker has reported those that it holds."""
    workers = router.fleet()["workers"]
    is_known = all(worker["cur_load"] == 100 * worker["reqs_working"] for worker in workers)
    return is_known and sum(worker["requests"] for worker in workers) == AT_ONCE


def test_fifty_requests_at_once_are_shared_in_proportion_to_score(tmp_path: Path) -> None:
    with router_process(tmp_path) as router, slow_workers(router, SCORES, tmp_path):
        result = result_of(vastai_client(router.url, AT_ONCE))

        shares = Counter(each["response"]["worker"] for each in result["answers"])
        for score in SCORES:
            share, of_score = shares[score] / AT_ONCE, score / sum(SCORES)
            assert abs(share - of_score) <= 0.05, shares
        assert len(completed(result)) == AT_ONCE
        assert sorted(worker["perf"] for worker in result["workers"]) == list(SCORES)
        assert {worker["status"] for worker in result["workers"]} == {"ready"}
        assert wait_until(lambda: held(router) == 0)


def test_no_request_is_lost_while_one_worker_is_killed_and_another_drains(tmp_path: Path) -> None:
    with router_process(tmp_path) as router, slow_workers(router, SCORES, tmp_path) as workers:
        client = vastai_client(router.url, AT_ONCE)
        assert wait_until(lambda: all_are_with_workers(router), 60)

        workers[80.0].kill()
        workers[40.0].terminate()

        result = result_of(client)
        assert len(completed(result)) == AT_ONCE
        # It has worked off what it held.
        assert workers[40.0].wait(120) == 0


def test_router_that_is_killed_under_load_goes_on_after_its_restart(tmp_path: Path) -> None:
    with router_process(tmp_path) as router, slow_workers(router, SCORES, tmp_path):
        client = vastai_client(router.url, AT_ONCE)
        assert wait_until(lambda: all_are_with_workers(router), 60)

        router.process.kill()
        router.process.wait(30)
        router.start()

        assert len(completed(result_of(client))) == AT_ONCE
        assert wait_until(lambda: held(router) == 0, 60)
        work = sum(worker["work"] for worker in router.fleet()["workers"])
        assert work == AT_ONCE * 100
