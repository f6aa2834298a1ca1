"""The router as a process: its routes, who may call them, its page."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from runtime.fleet.signature import Grant, Signer, Verifier, new_key
from tests.processes import wait_until
from tests.runtime.fleet.fleet import CALLERS, WORKERS, RouterProcess, router_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

REPORT = {"id": 1, "mtoken": WORKERS, "url": "http://worker", "max_perf": 2.0}


def of_gpu(number: int, gpu: str, score: float) -> dict[str, Any]:
    """The report of a worker with a measured score."""
    benchmark = {"gpu": gpu, "workflow_hash": "0b3b", "score": score}
    return REPORT | {"id": number, "max_perf": score, "benchmarks": [benchmark]}


CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouterProcess]:
    folder = tmp_path_factory.mktemp("router")
    with router_process(folder, ROUTER_ENDPOINTS="comfyui, videos") as process:
        yield process
        process.stop()


@pytest.fixture
def worker(router: RouterProcess) -> Iterator[RouterProcess]:
    """The router with one worker, which holds nothing."""
    assert router.post("/worker_status/", REPORT).json() == {"success": True}
    yield router
    router.post("/worker_status/", REPORT | {"state": "stopped"})


def test_endpoints_are_those_of_the_setting(router: RouterProcess) -> None:
    body = router.get("/api/v0/endptjobs/").json()

    assert [each["endpoint_name"] for each in body["results"]] == ["comfyui", "videos"]
    assert set(body["results"][0]) == {"endpoint_name", "id", "api_key", "user_id", "created_at"}
    assert router.get("/api/v0/endptjobs/2/").json()["result"]["endpoint_name"] == "videos"
    assert router.get("/api/v0/endptjobs/3/").status_code == 404


def test_key_of_an_endpoint_opens_the_route_alone(worker: RouterProcess) -> None:
    key = worker.get("/api/v0/endptjobs/").json()["results"][0]["api_key"]

    assert worker.route(api_key=key)["url"] == "http://worker"
    assert key not in (CALLERS, WORKERS)
    answer = requests.get(f"{worker.url}/workers?api_key={key}", timeout=30)
    assert answer.status_code == 401


def test_routed_request_has_all_that_the_client_and_pyworker_need(worker: RouterProcess) -> None:
    answer = worker.route(endpoint="videos", cost=250)

    assert {"url", "reqnum", "cost", "endpoint", "request_idx", "signature"} <= set(answer)
    assert (answer["url"], answer["cost"]) == ("http://worker", 250)
    grant = Grant(
        url=answer["url"],
        endpoint="videos",
        cost=250.0,
        reqnum=answer["reqnum"],
        request_idx=answer["request_idx"],
        expires=answer["expires"],
    )
    verifier = Verifier(requests.get(f"{worker.url}/pubkey/", timeout=30).text)
    assert verifier.is_signed(grant, answer["grant"])


def test_client_asks_again_while_no_worker_is_ready(router: RouterProcess) -> None:
    answer = router.route()

    assert set(answer) == {"endpoint", "request_idx", "status"}
    assert router.route(request_idx=answer["request_idx"])["request_idx"] == answer["request_idx"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"endpoint": "other"}, "endpoint: 'other' is none of this router's: comfyui, videos"),
        ({"cost": "much"}, "cost: expected a number"),
        ({"cost": -1}, "cost: expected a number from 0 to 1e+09"),
        ({"cost": 10**400}, "cost: expected a number"),
        ({"request_idx": -1}, "request_idx: expected a whole number"),
        ({"request_idx": True}, "request_idx: expected a whole number"),
        ({"replay_timeout": None}, "replay_timeout: expected a number"),
        ({"loads": 1}, "loads: expected a text of 200 characters at most"),
        ({"loads": "a" * 201}, "loads: expected a text of 200 characters at most"),
    ],
)
def test_wrong_field_of_a_request_is_named(
    router: RouterProcess, fields: dict[str, Any], named: str
) -> None:
    assert router.route(**fields)["error"] == named


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"id": "one"}, "id: expected a whole number"),
        ({"url": "worker:80"}, "url: expected the http or https address"),
        ({"url": 5}, "url: expected a text"),
        ({"max_perf": "fast"}, "max_perf: expected a number"),
        ({"working_request_idxs": 3}, "working_request_idxs: expected a list"),
        ({"places": 1.5}, "places: expected a whole number"),
        ({"benchmarks": [1]}, "benchmarks: expected a list of objects"),
        ({"benchmarks": [{"gpu": 1}]}, "gpu: expected a text"),
    ],
)
def test_wrong_field_of_a_report_is_named(
    router: RouterProcess, fields: dict[str, Any], named: str
) -> None:
    answer = router.post("/worker_status/", REPORT | fields)

    assert answer.status_code == 400
    assert answer.json()["error"].startswith(named)


@pytest.mark.parametrize("path", ["/worker_status/", "/delete_requests/"])
@pytest.mark.parametrize("token", ["", CALLERS, "forged"])
def test_forged_report_is_refused(router: RouterProcess, path: str, token: str) -> None:
    answer = router.post(path, REPORT | {"worker_id": 1, "requests": [], "mtoken": token})

    assert answer.status_code == 401
    assert "ROUTER_WORKER_TOKEN" in answer.json()["error"]
    assert router.fleet()["workers"] == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *[("GET", path) for path in ("/api/v0/endptjobs/", "/workers", "/fleet", "/metrics", "/")],
        ("GET", "/api/v0/endptjobs/1/"),
        *[("POST", path) for path in ("/route/", "/get_endpoint_workers/", "/drain/")],
    ],
)
def test_stranger_is_refused(router: RouterProcess, method: str, path: str) -> None:
    for token in ("", WORKERS, "forged"):
        answer = requests.request(
            method,
            router.url + path,
            headers={"Authorization": f"Bearer {token}"},
            json={"endpoint": "comfyui"},
            timeout=30,
        )
        assert answer.status_code == 401
        assert "ROUTER_TOKEN" in answer.json()["error"]


def test_ended_requests_are_taken_from_their_worker(worker: RouterProcess) -> None:
    first, second = worker.route(cost=40), worker.route(cost=20)
    requests_ = [
        {"request_idx": first["request_idx"], "success": True},
        {"request_idx": second["request_idx"], "success": False, "status": "Rejected"},
    ]

    ended = {"worker_id": 1, "mtoken": WORKERS, "requests": requests_}
    answer = worker.post("/delete_requests/", ended)

    assert answer.status_code == 200
    (view,) = worker.get("/workers").json()
    assert (view["reqs_working"], view["work"], view["requests"]) == (0, 40.0, 2)
    wrong = worker.post("/delete_requests/", {"worker_id": 1, "mtoken": WORKERS, "requests": [1]})
    assert wrong.json()["error"].startswith("requests: expected a list of objects")


def test_worker_that_is_slower_than_its_equals_is_warned_about(router: RouterProcess) -> None:
    for number, score in enumerate((1.0, 1.1, 0.7), start=1):
        router.post("/worker_status/", of_gpu(number, "NVIDIA L4", score))
    router.post("/worker_status/", of_gpu(4, "NVIDIA L40S", 4.0))
    warning = "score 0.7 is 30% below 1, the median of 3 GPUs of the fleet, NVIDIA L4"

    warnings = [each["warning"].partition(":")[0] for each in router.get("/workers").json()]

    assert warnings == ["", "", warning, ""]
    # It is logged once, however often it is seen.
    line = f"router: worker 3 at http://worker: {warning}: check its temperature"
    assert wait_until(lambda: line in router.log), router.log
    assert router.log.count(line) == 1
    for number in range(1, 5):
        router.post("/worker_status/", REPORT | {"id": number, "state": "stopped"})


def test_drained_worker_gets_nothing_until_it_has_joined_again(worker: RouterProcess) -> None:
    def drain(**fields: Any) -> requests.Response:
        return worker.post("/drain/", {"api_key": CALLERS, "id": 1, **fields})

    def report(**fields: Any) -> None:
        worker.post("/worker_status/", REPORT | fields)

    worker.route()

    assert drain().json() == {"id": 1, "reqs_working": 1}
    for state in ("ready", "inactive", "starting"):
        report(state=state)
        assert worker.statuses() == ["draining"]
        assert "url" not in worker.route()
    assert drain(drained=False).json() == {"id": 1, "reqs_working": 1}
    report()
    assert worker.statuses() == ["ready"]
    drain()
    report(state="stopped")
    report()
    assert worker.statuses() == ["ready"]
    assert worker.route()["url"] == "http://worker"


@pytest.mark.parametrize(
    ("fields", "status", "error"),
    [
        ({"id": 5}, 404, "id: there is no worker 5"),
        ({"id": "x"}, 400, "id: expected a whole number"),
        ({"id": 5, "drained": 1}, 400, "drained: expected true or false"),
    ],
)
def test_wrong_call_to_drain_is_answered_with_the_reason(
    router: RouterProcess, fields: dict[str, Any], status: int, error: str
) -> None:
    answer = router.post("/drain/", {"api_key": CALLERS, **fields})

    assert (answer.status_code, answer.json()) == (status, {"error": error})


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"max_perf": 0}, "starting"),
        ({"error_msg": "no GPU"}, "failed"),
        ({"state": "inactive"}, "inactive"),
        ({"state": "draining"}, "draining"),
        ({"state": "benchmarking"}, "starting"),
        ({"state": "failed", "error_msg": "no GPU"}, "failed"),
    ],
)
def test_state_of_a_worker_follows_its_report(
    worker: RouterProcess, fields: dict[str, Any], status: str
) -> None:
    worker.post("/worker_status/", REPORT | fields)

    assert worker.statuses() == [status]


def test_metrics_count_workers_and_requests(worker: RouterProcess) -> None:
    worker.route()

    text = worker.get("/metrics").text

    assert 'lambda_comfyui_fleet_workers{status="ready"} 1.0' in text
    assert "lambda_comfyui_fleet_requests 1.0" in text
    assert "lambda_comfyui_fleet_capacity 2.0" in text


def test_unknown_path_and_broken_body_have_an_answer(router: RouterProcess) -> None:
    assert router.get("/nothing").status_code == 404
    answer = requests.post(f"{router.url}/route/", data=b"{", timeout=30)
    assert (answer.status_code, answer.json()["error"]) == (400, "the body is no JSON object")
    large = requests.post(f"{router.url}/route/", data=b" " * 2_000_000, timeout=30)
    assert large.status_code == 413


@pytest.mark.skipif(not CHROMIUM, reason="needs Debian's package chromium")
def test_page_shows_the_fleet_in_a_browser(worker: RouterProcess, tmp_path: Path) -> None:
    worker.route()
    worker.post("/worker_status/", of_gpu(1, "NVIDIA L4", 2.0))
    worker.post("/worker_status/", of_gpu(2, "NVIDIA L4", 1.0) | {"state": "inactive"})
    address = worker.url.replace("http://", f"http://reader:{CALLERS}@")

    assert CHROMIUM
    page = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"),
            *(f"--user-data-dir={tmp_path}", "--virtual-time-budget=10000", "--dump-dom"),
            f"{address}/",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    ).stdout

    assert "http://worker</td>" in page
    worker.post("/worker_status/", REPORT | {"id": 2, "state": "stopped"})
    assert "50% below 2, the median of 2 GPUs of the fleet, NVIDIA L4" in page
    assert "2 workers, 1 ready with a score of 2.00 together" in page
    assert "100.0 %" in page
    assert "has joined, ready" in page
    assert 'role="alert"></p>' in page
    # Nothing comes from elsewhere.
    assert "src=" not in page
    assert "href=" not in page


def test_router_without_a_token_listens_on_loopback_alone(tmp_path: Path) -> None:
    with router_process(tmp_path, ROUTER_TOKEN="", ROUTER_ADDRESS="0.0.0.0") as router:
        assert "no ROUTER_TOKEN: listening on 127.0.0.1 instead of 0.0.0.0" in router.log
        foreign = {"Origin": "http://a.page"}
        answer = requests.get(f"{router.url}/fleet", headers=foreign, timeout=30)
        assert answer.status_code == 403
        assert requests.get(f"{router.url}/fleet", timeout=30).status_code == 200
        router.stop()


def test_signature_of_another_key_is_refused() -> None:
    grant = Grant("http://worker", "comfyui", 100.0, 1, 1, 1.0)

    signature = Signer(new_key()).sign(grant)

    assert not Verifier(Signer(new_key()).public_pem).is_signed(grant, signature)
