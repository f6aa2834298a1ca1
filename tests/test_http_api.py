"""The HTTP API of a host: a real `serve` with the real ComfyUI, called over HTTP."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from events.contract import response_problems
from handler.settings import PROJECT
from tests import workflows
from tests.conftest import WebhookReceiver
from tests.processes import processes_with, wait_until
from tests.runtime.test_worker import own_folders
from tests.workflows import event, one

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


class Api:
    """A running `serve`, and calls of its API."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder, self._variables = folder, variables
        self._log = folder / "serve.log"
        self.start()

    def start(self) -> None:
        environ = os.environ | own_folders(self.folder) | {"SERVE_PORT": "0"} | self._variables
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "runtime", "serve"],
                cwd=PROJECT,
                env=environ,
                stdout=output,
                stderr=output,
            )
        assert wait_until(lambda: "HTTP API on " in self.log), self.log
        self.url = self.log.partition("HTTP API on ")[2].partition(",")[0]

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def post(self, path: str, request: Any = None, **options: Any) -> requests.Response:
        return requests.post(self.url + path, json=request, timeout=60, **options)

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=60, **options)

    def result(self, request_id: str) -> dict[str, Any]:
        body: dict[str, Any] = self.get(f"/result/{request_id}").json()
        return body

    def status(self, request_id: str) -> str:
        return str(self.result(request_id).get("status"))

    def is_over(self, request_id: str) -> bool:
        return self.status(request_id) in ("completed", "failed", "cancelled")

    def kill_everything(self) -> None:
        for pid in processes_with(f"WORKER_DIR={self.folder}"):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(30)


@contextmanager
def serve(folder: Path, **variables: str) -> Iterator[Api]:
    api = Api(folder, **variables)
    try:
        yield api
    finally:
        api.process.terminate()
        assert api.process.wait(40) == 0
        assert not processes_with(f"WORKER_DIR={folder}", "serve")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A host that the tests of this module share; two handlers."""
    folder = tmp_path_factory.mktemp("api")
    # A price of 10 a second.
    variables = {"SERVE_CONCURRENCY": "2", "API_MAX_BODY": "1", "PRICE_PER_HOUR": "36000"}
    with serve(folder, **variables) as api:
        yield api


def test_documented_request_is_run_and_answered(api: Api) -> None:
    answer = api.post("/generate/sync", event(workflows.image()))

    assert answer.status_code == 200
    assert response_problems(answer.json()) == []
    assert answer.json()["status"] == "completed"
    # What was answered can be asked for again.
    assert api.result(answer.json()["id"]) == answer.json()


def test_envelope_of_pyworker_and_a_bare_workflow_are_requests(api: Api) -> None:
    envelope = {"auth_data": {"a": 1}, "session_id": None, "payload": event(workflows.image())}

    assert api.post("/generate/sync?api_key=key", envelope).status_code == 200
    assert api.post("/generate/sync", workflows.image()).status_code == 200


def test_accepted_job_runs_later_and_is_listed(api: Api) -> None:
    accepted = api.post("/generate", event(workflows.image(), request_id="later"))

    assert accepted.status_code == 202
    assert accepted.json()["id"] == "later"
    assert response_problems(accepted.json()) == []
    assert wait_until(lambda: api.status("later") == "completed")
    (job,) = [job for job in api.get("/jobs").json()["jobs"] if job["id"] == "later"]
    assert (job["status"], job["source"], job["attempt"]) == ("completed", "http", 1)
    again = api.post("/generate", event(workflows.image(), request_id="later"))
    assert (again.status_code, again.json()["error"]["type"]) == (409, "IdConflict")


@pytest.mark.parametrize("request_id", ["a/b/", "ü %2F?#", "../x", " . "])
def test_any_id_can_be_asked_for(api: Api, request_id: str) -> None:
    api.post("/generate/sync", event(workflows.image(), request_id=request_id))

    quoted = quote(request_id, safe="").replace(".", "%2E")
    assert api.result(quoted)["id"] == request_id


def test_failed_job_is_answered_with_its_reason(api: Api) -> None:
    answer = api.post("/generate/sync", event(one("TestRaise", message="why"), request_id="bad"))

    assert answer.status_code == 422
    assert "why" in answer.json()["message"]
    assert api.result("bad") == answer.json()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/result/unknown", 404),
        ("/generate/stream/unknown", 404),
        ("/nowhere", 404),
        ("/generate", 405),
        ("/jobs?limit=0", 400),
        ("/jobs?limit=x", 400),
        ("/jobs?status=lost", 400),
        ("/jobs?cursor=x", 400),
        ("/jobs?created_before=nan", 400),
    ],
)
def test_wrong_call_is_answered_with_a_message(api: Api, path: str, status: int) -> None:
    answer = api.get(path)

    assert answer.status_code == status
    assert answer.json()["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"[" * 100_000, b'{"input": 5}', b"{}"]
)
def test_body_that_is_no_request_is_a_400_in_the_envelope(api: Api, body: bytes) -> None:
    for path in ("/generate/sync", "/generate"):
        answer = requests.post(api.url + path, data=body, timeout=60)
        assert answer.status_code == 400
        assert response_problems(answer.json()) == []
        assert answer.json()["error"]["type"] == "InvalidRequest"


def test_body_above_the_limit_is_refused_however_it_is_sent(api: Api) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 65_536

    for body in (b" " * (1024 * 1024 + 1), endless()):
        answer = requests.post(api.url + "/generate/sync", data=body, timeout=60)
        assert answer.status_code == 413
        assert "larger than 1048576 bytes" in answer.json()["message"]


def frames(answer: requests.Response) -> Iterator[dict[str, str]]:
    """The frames of an event stream."""
    frame: dict[str, str] = {}
    for line in answer.iter_lines(decode_unicode=True):
        if line:
            name, _, value = line.partition(": ")
            frame[name] = value
        elif frame:
            yield frame
            frame = {}


def test_events_of_a_job_are_streamed_and_resumed(api: Api) -> None:
    request = event(one("TestSleep", seconds=1.0, deaf=False), request_id="watched")

    with api.post("/generate/stream", request, stream=True) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        seen = list(frames(answer))

    names = [frame["event"] for frame in seen]
    assert (names[0], names[-1]) == ("status", "end")
    assert "node.started" in names
    assert json.loads(seen[-1]["data"])["status"] == "completed"
    # That is for the operator.
    assert not any("cost" in json.loads(frame["data"]) for frame in seen)
    numbers = [int(frame["id"]) for frame in seen if "id" in frame]
    assert numbers == sorted(set(numbers))
    percentages = [
        json.loads(frame["data"])["percentage"]
        for frame in seen
        if frame["event"] in ("node.started", "node.progress")
    ]
    assert percentages == sorted(percentages)
    assert percentages[-1] == 100


def test_reader_that_comes_back_misses_nothing_and_sees_nothing_twice(
    api: Api, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    request = event(one("TestWait", file=str(release)), request_id="resumed")

    with api.post("/generate/stream", request, stream=True) as answer:
        first = []
        for frame in frames(answer):
            first.append(frame)
            if frame["event"] == "node.started":
                break
    release.touch()
    headers = {"Last-Event-ID": first[-1]["id"]}
    with api.get("/generate/stream/resumed", headers=headers, stream=True) as answer:
        rest = list(frames(answer))

    numbers = [frame["id"] for frame in first + rest if "id" in frame]
    assert len(numbers) == len(set(numbers))
    assert rest[-1]["event"] == "end"


def test_disconnect_of_the_caller_cancels_the_job_unless_it_is_detached(
    api: Api, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    for request_id, query in (("gone", ""), ("detached", "?detach=true")):
        request = event(one("TestWait", file=str(release)), request_id=request_id)
        with pytest.raises(requests.Timeout):
            requests.post(f"{api.url}/generate/sync{query}", json=request, timeout=1.5)

    assert wait_until(lambda: api.status("gone") == "cancelled")
    release.touch()
    assert wait_until(lambda: api.status("detached") == "completed")


def test_webhook_of_a_job_that_was_cancelled_while_it_waited_is_called_once(
    api: Api, tmp_path: Path, webhook_receiver: WebhookReceiver
) -> None:
    release = tmp_path / "release"
    for number in range(2):
        request = event(one("TestWait", file=str(release)), request_id=f"before-{number}")
        api.post("/generate", request)
    waiting = event(workflows.image(), request_id="waits", webhook={"url": webhook_receiver.url})
    api.post("/generate", waiting)

    for _ in range(2):
        cancelled = api.post("/cancel/waits")
        assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    release.touch()

    assert wait_until(lambda: bool(webhook_receiver.calls))
    assert wait_until(lambda: api.is_over("before-0") and api.is_over("before-1"))
    assert [body["status"] for body in webhook_receiver.bodies()] == ["cancelled"]
    assert api.status("waits") == "cancelled"


def test_description_has_every_route_and_its_example_runs(api: Api) -> None:
    description = api.get("/openapi.json").json()
    example = description["paths"]["/generate/sync"]["post"]["requestBody"]["content"]

    assert api.post("/generate/sync", example["application/json"]["example"]).status_code == 200
    page = api.get("/docs").text
    assert "http" not in page.partition("<script>")[0]
    assert all(path in page for path in description["paths"])


def test_reports_of_the_host(api: Api) -> None:
    assert api.get("/health").json() == {"status": "ok"}
    assert api.get("/ready").status_code == 200
    assert api.get("/worker").json()["state"] == "ready"
    assert api.get("/queue-info").json()["jobs"]["completed"] > 0
    assert 'lambda_comfyui_worker{lambda_comfyui_worker="ready"} 1.0' in api.get("/metrics").text


def test_cost_of_a_job_is_in_the_log_and_the_metrics_alone(api: Api) -> None:
    answer = api.post("/generate/sync", event(workflows.image(), request_id="priced")).json()
    ends: list[dict[str, Any]] = []

    def has_ended() -> bool:
        lines = [json.loads(line) for line in api.log.splitlines() if '"cost"' in line]
        ends[:] = [line for line in lines if line["request_id"] == "priced"]
        return bool(ends)

    assert wait_until(has_ended)
    ms = answer["timings"]["cold_start_ms"] + answer["timings"]["generation_ms"]
    assert ends[0]["cost"] == pytest.approx(ms / 100)
    assert "cost" not in answer
    total = api.get("/metrics").text.partition("\nlambda_comfyui_cost_total ")[2].split()[0]
    assert float(total) >= ends[0]["cost"]


def test_uploaded_file_is_an_input(api: Api) -> None:
    # A picture of one pixel: PNG, https://www.w3.org/TR/png-3/.
    png = bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154"
        "789c63f8cfc000000301010018dd8db00000000049454e44ae426082"
    )
    names = [
        api.post("/upload/image", files={"image": ("../a b.png", data)}).json()["name"]
        for data in (png, png, png + b"other")
    ]

    assert names == ["a b.png", "a b.png", "a b (1).png"]
    workflow = {
        "1": workflows.node("LoadImage", image="a b.png"),
        "2": workflows.node("SaveImage", images=["1", 0], filename_prefix="loaded"),
    }
    assert api.post("/generate/sync", event(workflow)).json()["status"] == "completed"
    for wrong in ({"subfolder": "../.."}, {"type": "output"}):
        answer = api.post("/upload/image", files={"image": ("a.png", png)}, data=wrong)
        assert answer.status_code == 400
    assert api.post("/upload/image").status_code == 400


def test_many_jobs_at_once_are_accepted_and_their_queue_survives_a_kill(tmp_path: Path) -> None:
    with serve(tmp_path) as api:

        def accept(number: int) -> int:
            request = event(workflows.image(), request_id=f"job-{number}")
            return api.post("/generate", request).status_code

        with ThreadPoolExecutor(20) as pool:
            assert set(pool.map(accept, range(40))) == {202}
        assert wait_until(lambda: api.get("/queue-info").json()["jobs"]["completed"] > 5)
        before = api.get("/jobs?status=completed&limit=500").json()["jobs"]
        api.kill_everything()
        api.start()

        assert wait_until(lambda: api.get("/queue-info").json()["jobs"]["completed"] == 40, 120)
        after = {job["id"]: job for job in api.get("/jobs?limit=500").json()["jobs"]}
        # A job that had succeeded did not run again.
        assert all(after[job["id"]] == job for job in before)


def in_background(api: Api, path: str, request: Any) -> None:
    """Send a request whose answer nobody needs; the host may be killed meanwhile."""

    def call() -> None:
        with suppress(requests.ConnectionError):
            api.post(path, request)

    threading.Thread(target=call, daemon=True).start()


def test_job_whose_handler_or_host_was_killed_ends_as_failed(tmp_path: Path) -> None:
    wait = one("TestWait", file=str(tmp_path / "release"))
    with serve(tmp_path) as api:
        in_background(api, "/generate/sync", event(wait, request_id="of the handler"))
        assert wait_until(lambda: api.status("of the handler") == "generating")
        for pid in processes_with(f"WORKER_DIR={tmp_path}", "awslambdaric"):
            os.kill(pid, signal.SIGKILL)
        # Its claim lapses first.
        assert wait_until(lambda: api.status("of the handler") == "failed", 90)

        in_background(api, "/generate/sync", event(wait, request_id="runs"))
        assert wait_until(lambda: api.status("runs") == "generating")
        in_background(api, "/generate/sync", event(wait, request_id="waits"))
        assert wait_until(lambda: api.status("waits") == "queued")
        api.kill_everything()
        api.start()
        assert wait_until(lambda: api.status("waits") == "failed")
        assert api.result("waits")["error"]["retryable"]


def test_second_host_with_the_same_store_leaves_the_jobs_of_the_first_alone(
    tmp_path: Path,
) -> None:
    release = tmp_path / "release"
    store = {"JOBS_DB": str(tmp_path / "jobs.sqlite")}
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()

    with serve(folders[0], **store) as first:
        wait = event(one("TestWait", file=str(release)), request_id="runs")
        in_background(first, "/generate/sync?detach=true", wait)
        assert wait_until(lambda: first.status("runs") == "generating")
        in_background(first, "/generate/sync", event(workflows.image(), request_id="waits"))
        assert wait_until(lambda: first.status("waits") == "queued")
        first.post("/generate", event(workflows.image(), request_id="accepted"))
        with serve(folders[1], **store) as second:
            assert wait_until(lambda: second.get("/worker").json()["state"] == "ready")
            assert (second.status("waits"), second.status("accepted")) == ("queued", "queued")
            release.touch()
            assert wait_until(lambda: second.is_over("waits") and second.is_over("accepted"))
        jobs = first.get("/jobs").json()["jobs"]
        assert [(job["status"], job["attempt"]) for job in jobs] == [("completed", 1)] * 3


def test_calls_need_the_token_where_there_is_one(tmp_path: Path) -> None:
    with serve(tmp_path, API_TOKEN="canary-4711", API_ADDRESS="127.0.0.1") as api:
        for path in ("/jobs", "/docs", "/worker", "/metrics", "/result/x"):
            assert api.get(path).status_code == 401
            wrong = api.get(path, headers={"Authorization": "Bearer wrong"})
            assert wrong.headers["www-authenticate"] == "Bearer"
        for path in ("/health", "/ready"):
            assert api.get(path).status_code == 200
        headers = {"Authorization": "Bearer canary-4711"}
        assert api.get("/jobs", headers=headers).status_code == 200
    assert "canary-4711" not in api.log


def test_without_a_token_the_api_listens_on_loopback_alone(tmp_path: Path) -> None:
    with serve(tmp_path, API_ADDRESS="0.0.0.0") as api:
        assert api.url.startswith("http://127.0.0.1:")
        assert "no API_TOKEN: the HTTP API listens on 127.0.0.1 instead of 0.0.0.0" in api.log


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("Origin", "https://example.com", 403),
        ("Origin", "null", 403),
        ("Host", "rebound.example.com", 403),
        ("Host", "10.0.0.1", 403),
        ("Host", "localhost:18288", 200),
        ("Host", "[::1]:18288", 200),
    ],
)
def test_web_pages_reach_no_api_without_a_token(
    api: Api, header: str, value: str, status: int
) -> None:
    answer = api.post("/generate/sync", event(workflows.image()), headers={header: value})

    assert answer.status_code == status


def test_page_of_the_api_itself_may_call_it(api: Api) -> None:
    assert api.get("/health", headers={"Origin": api.url}).status_code == 200


def test_worker_is_asked_for_its_health_while_a_job_runs(api: Api, tmp_path: Path) -> None:
    release = tmp_path / "release"
    thread = threading.Thread(
        target=api.post, args=("/generate/sync", event(one("TestWait", file=str(release))))
    )
    thread.start()
    assert wait_until(lambda: api.get("/worker").json()["jobs"] == 1)

    assert api.get("/health").status_code == 200
    release.touch()
    thread.join()
