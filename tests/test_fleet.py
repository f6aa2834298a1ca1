"""A worker of a fleet: a real `serve` with the real ComfyUI, our router, the official client."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from handler.settings import PROJECT, Settings
from runtime.fleet.signature import Command, Grant, Signer, new_key
from runtime.fleet.store import open_fleet_store
from tests import workflows
from tests.processes import free_ports, wait_until
from tests.runtime.fleet.fleet import (
    CALLERS,
    WORKERS,
    RouterProcess,
    router_process,
    vastai_client,
)
from tests.runtime.test_benchmark import QUICK
from tests.test_http_api import Api, serve
from tests.workflows import event

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Fleet:
    """A router and its only worker."""

    router: RouterProcess
    worker: Api

    def grant(self) -> dict[str, Any]:
        """What the router answers once the worker is ready."""
        answers: list[dict[str, Any]] = []

        def is_routed() -> bool:
            answers.append(self.router.route())
            return "url" in answers[-1]

        assert wait_until(is_routed, 120), self.router.log
        return answers[-1]

    @property
    def signer(self) -> Signer:
        return signer_of(self.router)

    def signed(self) -> dict[str, Any]:
        """A grant that the router might have made; it takes no place of the worker."""
        (worker,) = self.router.fleet()["workers"]
        grant = Grant(worker["url"], "comfyui", 100.0, 1, 1, time.time() + 60)
        return {**asdict(grant), "grant": self.signer.sign(grant)}

    def generate(self, auth_data: dict[str, Any], path: str = "/generate/sync") -> Any:
        payload = event(workflows.image())
        return self.worker.post(path, {"auth_data": auth_data, "payload": payload})


def signer_of(router: RouterProcess) -> Signer:
    """Signs as the router does."""
    with closing(open_fleet_store(Settings(jobs_db=router.database))) as store:
        return Signer(store.secret("key", new_key))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with router_process(folder) as router:
        with serve(folder, **member_of(router)) as worker:
            assert wait_until(lambda: router.statuses() == ["ready"], 180), worker.log
            yield Fleet(router, worker)
        assert router.statuses() == []
        events = [each["text"] for each in router.fleet()["events"]]
        assert events[0].endswith("has left")
        assert events[1].endswith("is draining")


def member_of(router: RouterProcess) -> dict[str, str]:
    (port,) = free_ports(1)
    return {
        "BENCHMARK": "0",
        "ROUTER_URL": router.url,
        "ROUTER_WORKER_TOKEN": WORKERS,
        "PUBLIC_URL": f"http://127.0.0.1:{port}",
        "API_PORT": str(port),
    }


def test_official_client_gets_completed_jobs(fleet: Fleet) -> None:
    client = vastai_client(fleet.router.url, 3, json.dumps(workflows.image()))
    output, _ = client.communicate(timeout=240)

    answers = json.loads(output)["answers"]

    assert [each["response"]["status"] for each in answers] == ["completed"] * 3
    assert {each["response"]["id"] for each in answers} == {"job-0", "job-1", "job-2"}
    assert wait_until(lambda: fleet.router.fleet()["workers"][0]["reqs_working"] == 0)


def test_request_with_a_grant_runs_once(fleet: Fleet) -> None:
    grant = fleet.grant()

    first, second = fleet.generate(grant), fleet.generate(grant)

    assert (first.status_code, first.json()["status"]) == (200, "completed")
    assert second.status_code == 401
    assert "was used before" in second.json()["message"]


def test_accepted_job_counts_until_it_has_ended(fleet: Fleet) -> None:
    grant = fleet.grant()

    accepted = fleet.generate(grant, "/generate")

    assert accepted.status_code == 202
    assert wait_until(lambda: fleet.router.fleet()["workers"][0]["reqs_working"] == 0, 60)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"cost": 1}, "has not signed it"),
        ({"reqnum": 99}, "has not signed it"),
        ({"expires": 1e12}, "has not signed it"),
        ({"grant": "bm8="}, "has not signed it"),
        ({"grant": None}, "has not signed it"),
        ({"cost": "much"}, "send the router's answer whole"),
    ],
)
def test_grant_that_was_changed_is_refused(
    fleet: Fleet, changes: dict[str, Any], named: str
) -> None:
    answer = fleet.generate(fleet.signed() | changes)

    assert answer.status_code == 401
    assert named in answer.json()["message"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"url": "http://127.0.0.1:1"}, "has sent this request to another worker"),
        ({"expires": 1.0}, "it has passed"),
    ],
)
def test_grant_for_another_worker_or_time_is_refused(
    fleet: Fleet, changes: dict[str, Any], named: str
) -> None:
    (worker,) = fleet.router.fleet()["workers"]
    usual = Grant(worker["url"], "comfyui", 100.0, 1, 1, time.time() + 60)
    grant = replace(usual, **changes)

    answer = fleet.generate({**asdict(grant), "grant": fleet.signer.sign(grant)})

    assert answer.status_code == 401
    assert named in answer.json()["message"]


def test_grant_without_a_field_is_refused(fleet: Fleet) -> None:
    grant = fleet.signed()
    del grant["expires"]

    answer = fleet.generate(grant)

    assert answer.status_code == 401
    assert answer.json()["message"].startswith("auth_data.expires is missing")


@pytest.mark.parametrize("path", ["/generate/sync", "/generate"])
def test_stranger_is_refused(fleet: Fleet, path: str) -> None:
    answer = fleet.worker.post(path, event(workflows.image()))

    assert answer.status_code == 401
    assert fleet.generate({}).status_code == 401
    assert fleet.worker.get("/jobs").status_code == 401
    assert fleet.worker.get("/health").status_code == 200


def test_command_of_the_router_lets_the_worker_sleep_and_a_request_wakes_it(fleet: Fleet) -> None:
    signer = fleet.signer
    (worker,) = fleet.router.fleet()["workers"]
    command = Command(worker["url"], "sleep", time.time() + 60)
    body = {**asdict(command), "signature": signer.sign(command)}

    forged = fleet.worker.post("/fleet/command", body | {"action": "wake"})
    late = Command(worker["url"], "sleep", time.time() - 1)
    too_late = fleet.worker.post("/fleet/command", {**asdict(late), "signature": signer.sign(late)})
    nothing = fleet.worker.post("/fleet/command", {})
    taken = fleet.worker.post("/fleet/command", body)

    statuses = [each.status_code for each in (forged, too_late, nothing, taken)]
    assert statuses == [401, 401, 400, 202]
    assert wait_until(lambda: fleet.router.statuses() == ["inactive"], 60)
    assert fleet.generate(fleet.grant()).json()["status"] == "completed"
    assert wait_until(lambda: fleet.router.statuses() == ["ready"], 60)


def test_worker_of_a_router_needs_its_own_address() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "runtime", "serve", "--port", "0"],
        cwd=PROJECT,
        env={**os.environ, "ROUTER_URL": "http://127.0.0.1:1", "ROUTER_TOKEN": CALLERS},
        capture_output=True,
        text=True,
        check=False,
    )

    assert process.returncode == 1
    assert "ROUTER_URL needs PUBLIC_URL" in process.stderr


def test_grant_is_refused_by_a_worker_that_was_killed_and_started_again(tmp_path: Path) -> None:
    with router_process(tmp_path) as router:
        variables = member_of(router)
        grant = Grant(variables["PUBLIC_URL"], "comfyui", 100.0, 1, 1, time.time() + 600)
        body = {"auth_data": {**asdict(grant), "grant": signer_of(router).sign(grant)}}

        def answer(worker: Api) -> Any:
            """Once the worker has the key of its router."""
            answers: list[Any] = []

            def is_answered() -> bool:
                answers.append(worker.post("/generate", body))
                return bool(answers[-1].status_code != 503)

            assert wait_until(is_answered, 60), worker.log
            return answers[-1]

        with serve(tmp_path, **variables) as worker:
            # The grant is good, the request is not.
            first = answer(worker)
            worker.process.kill()
            worker.process.wait(30)
            worker.start()
            again = answer(worker)

    assert first.status_code == 400
    assert again.status_code == 401
    assert "was used before" in again.json()["message"]


def test_worker_without_its_router_goes_on(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    variables = {
        "ROUTER_URL": f"http://127.0.0.1:{port}",
        "PUBLIC_URL": "http://127.0.0.1:1",
        "BENCHMARK": "0",
        "API_TOKEN": "of-the-api",
    }
    headers = {"Authorization": "Bearer of-the-api"}

    with serve(tmp_path, **variables) as worker:
        answer = worker.post("/generate/sync", event(workflows.image()), headers=headers)
        granted = worker.post("/generate/sync", {"auth_data": {}, "payload": 1})

        assert answer.json()["status"] == "completed"
        assert granted.status_code == 401
        assert worker.log.count("gives no key") == 1


def test_worker_that_is_ready_reports_the_score_that_it_has_measured(tmp_path: Path) -> None:
    path = tmp_path / "quick.json"
    path.write_text(json.dumps(QUICK))
    with router_process(tmp_path) as router:
        variables = member_of(router) | {"BENCHMARK": "", "BENCHMARK_JSON_PATH": str(path)}
        headers = {"Authorization": "Bearer of-the-api"}
        with serve(tmp_path, API_TOKEN="of-the-api", **variables) as worker:
            assert wait_until(lambda: router.statuses() == ["ready"], 180), worker.log
            (view,) = router.fleet()["workers"]

            measured = worker.get("/worker", headers=headers).json()["score"]

    assert (view["score"], view["gpus"]) == (measured, ["cpu"])
    assert measured > 1.0
