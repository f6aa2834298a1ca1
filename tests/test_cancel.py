"""A job is cancelled in every state of a host, and the jobs beside it are not.

A real `serve` with four handlers and one ComfyUI, over HTTP. A job that waits in SQS is cancelled
in test_api_function.py, an upload in tests/handler/test_stopped_upload.py.
"""

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from handler.worker_protocol import SOCKET_NAME, State, WorkerStatus
from tests import workflows
from tests.processes import wait_until
from tests.test_http_api import Api, serve
from tests.worker import comfyui_pid, connect, status
from tests.workflows import event, node, one

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

HANDLERS = 4
_numbers = itertools.count()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serve(tmp_path_factory.mktemp("cancel"), SERVE_CONCURRENCY=str(HANDLERS)) as api:
        assert wait_until(lambda: api.get("/worker").json()["state"] == "ready", 60)
        yield api


def accept(api: Api, workflow: Any, **given: Any) -> str:
    """The id of a job that was accepted."""
    request_id = f"job-{next(_numbers)}"
    answer = api.post("/generate", event(workflow, request_id=request_id, **given))
    assert answer.status_code == 202
    return request_id


def has_event(api: Api, request_id: str, name: str) -> bool:
    return any(f'"{request_id}"' in line and f'"{name}"' in line for line in api.log.splitlines())


def worker_of(api: Api) -> WorkerStatus:
    with closing(connect(api.folder / SOCKET_NAME)) as connection:
        return status(connection)


def cancel(api: Api, request_id: str) -> dict[str, Any]:
    """The answer to a request to cancel; the second one is the same."""
    answers = [api.post(f"/cancel/{request_id}") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    first, second = (answer.json() for answer in answers)
    bodies: list[dict[str, Any]] = [first, second, api.result(request_id)]
    for body in bodies:
        # The end of the call about it comes after the job's end.
        body.pop("webhook", None)
    assert bodies[0] == bodies[1] == bodies[2]
    return bodies[0]


@contextmanager
def held(api: Api, tmp_path: Path, *, jobs: int) -> Iterator[list[str]]:
    """Jobs that wait for a file, the first of which ComfyUI runs; they must complete at the end."""
    release = tmp_path / f"release-{next(_numbers)}"
    ids = [accept(api, one("TestWait", file=str(release))) for _ in range(jobs)]
    assert wait_until(lambda: any(has_event(api, i, "node.started") for i in ids))
    yield ids
    release.touch()
    for request_id in ids:
        assert wait_until(lambda request_id=request_id: api.is_over(request_id), 60)  # type: ignore[misc]
        assert api.status(request_id) == "completed"


@contextmanager
def behind(api: Api) -> Iterator[None]:
    """Two jobs that are accepted in the block's beginning, and must complete."""
    ids = [accept(api, workflows.image()) for _ in range(2)]
    yield
    for request_id in ids:
        assert wait_until(lambda request_id=request_id: api.is_over(request_id), 90)  # type: ignore[misc]
        assert api.status(request_id) == "completed"


def cancel_accepted(api: Api, tmp_path: Path) -> dict[str, Any]:
    with held(api, tmp_path, jobs=HANDLERS):
        target = accept(api, workflows.image())
        return cancel(api, target)


def cancel_while_inputs_are_fetched(api: Api, tmp_path: Path) -> dict[str, Any]:
    with silent_server() as (url, has_call):
        workflow = {
            "1": node("LoadImage", image=f"{url}/picture.png"),
            "2": node("SaveImage", images=["1", 0], filename_prefix="loaded"),
        }
        target = accept(api, workflow)
        with behind(api):
            assert has_call.wait(60)
            return cancel(api, target)


def cancel_while_comfyui_starts(api: Api, tmp_path: Path) -> dict[str, Any]:
    """The start goes on, and the jobs that wait for it complete."""
    before = worker_of(api)
    os.kill(comfyui_pid(before), signal.SIGKILL)
    assert wait_until(lambda: worker_of(api).state is State.STARTING)
    target = accept(api, workflows.image())
    with behind(api):
        assert wait_until(lambda: has_event(api, target, "worker.starting"))
        response = cancel(api, target)
    assert worker_of(api).starts == before.starts + 1
    return response


def cancel_while_comfyui_does_not_read(api: Api, tmp_path: Path) -> dict[str, Any]:
    """A node of another job keeps ComfyUI from answering; that job completes."""
    before = worker_of(api)

    def is_silent() -> bool:
        try:
            requests.get(f"{before.base_url}/queue", timeout=0.5)
        except requests.Timeout:
            return True
        return False

    holder = accept(api, one("TestHold", seconds=15))
    assert wait_until(is_silent)
    target = accept(api, workflows.image())
    assert wait_until(lambda: has_event(api, target, "job.received"))
    response = cancel(api, target)
    assert is_silent()

    assert wait_until(lambda: api.is_over(holder), 60)
    assert api.status(holder) == "completed"
    with behind(api):
        pass
    # ComfyUI has read it meanwhile, and has not run it.
    queue = requests.get(f"{before.base_url}/queue", timeout=30).json()
    assert queue == {"queue_running": [], "queue_pending": []}
    assert not has_event(api, target, "node.started")
    assert worker_of(api).starts == before.starts
    return response


def cancel_in_the_queue_of_comfyui(api: Api, tmp_path: Path) -> dict[str, Any]:
    with held(api, tmp_path, jobs=2):
        target = accept(api, workflows.image())
        assert wait_until(lambda: has_event(api, target, "job.queued"))
        return cancel(api, target)


def cancel_as_it_begins(api: Api, tmp_path: Path) -> dict[str, Any]:
    target = accept(api, one("TestSleep", seconds=20.0, deaf=False))
    with behind(api):
        assert wait_until(lambda: has_event(api, target, "job.queued"))
        return cancel(api, target)


def cancel_as_it_begins_with_a_deaf_node(api: Api, tmp_path: Path) -> dict[str, Any]:
    """The handler may not have read yet that it has begun."""
    target = accept(api, one("TestSleep", seconds=60.0, deaf=True))
    with behind(api):
        assert wait_until(lambda: has_event(api, target, "job.queued"))
        return cancel(api, target)


def cancel_in_a_node(api: Api, tmp_path: Path) -> dict[str, Any]:
    target = accept(api, one("TestSleep", seconds=20.0, deaf=False))
    with behind(api):
        assert wait_until(lambda: has_event(api, target, "node.started"))
        return cancel(api, target)


def cancel_in_a_deaf_node(api: Api, tmp_path: Path) -> dict[str, Any]:
    target = accept(api, one("TestSleep", seconds=60.0, deaf=True))
    with behind(api):
        assert wait_until(lambda: has_event(api, target, "node.started"))
        return cancel(api, target)


@contextmanager
def silent_server() -> Iterator[tuple[str, threading.Event]]:
    """The address of a server that answers no call, and whether one has come."""
    has_call, is_over = threading.Event(), threading.Event()

    class Call(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            has_call.set()
            is_over.wait(60)
            self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None: ...

    with serving(Call) as url:
        yield url, has_call
        is_over.set()


@contextmanager
def serving(call: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), call) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@contextmanager
def stuck_bucket() -> Iterator[str]:
    """A bucket that is empty, and takes no object."""
    is_over = threading.Event()

    class Call(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_PUT(self) -> None:
            is_over.wait(60)
            self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None: ...

    with serving(Call) as url:
        yield url
        is_over.set()


def cancel_while_uploading(api: Api, tmp_path: Path) -> dict[str, Any]:
    with stuck_bucket() as url:
        fields = {
            "endpoint_url": url,
            "bucket_name": "b",
            "access_key_id": "a",
            "secret_access_key": "b",
        }
        target = accept(api, workflows.image(), s3=fields)
        with behind(api):
            assert wait_until(lambda: has_event(api, target, "node.progress"))
            return cancel(api, target)


STATES: dict[str, tuple[Callable[[Api, Path], dict[str, Any]], str]] = {
    "accepted": (cancel_accepted, "before it began"),
    "fetching inputs": (cancel_while_inputs_are_fetched, "while its input files were fetched"),
    "starting ComfyUI": (cancel_while_comfyui_starts, "while ComfyUI was starting"),
    "given to a ComfyUI that does not read": (cancel_while_comfyui_does_not_read, "ComfyUI"),
    "in ComfyUI's queue": (cancel_in_the_queue_of_comfyui, "while it waited in ComfyUI's queue"),
    "as it begins": (cancel_as_it_begins, ""),
    "as it begins with a node that never checks": (cancel_as_it_begins_with_a_deaf_node, ""),
    "in a node": (cancel_in_a_node, "at node"),
    "in a node that never checks": (cancel_in_a_deaf_node, "at node"),
    "while uploading": (cancel_while_uploading, "while its files were uploaded"),
}


@pytest.mark.parametrize("state", STATES)
def test_job_is_cancelled_and_the_jobs_beside_it_are_not(
    api: Api, tmp_path: Path, state: str
) -> None:
    act, stage = STATES[state]

    response = act(api, tmp_path)

    assert response["status"] == "cancelled"
    assert response["error"]["type"] == "Cancelled"
    assert stage in response["message"]


def test_job_that_has_ended_stays_as_it_is(api: Api) -> None:
    target = accept(api, workflows.image())
    assert wait_until(lambda: api.is_over(target))
    before = api.result(target)

    assert cancel(api, target) == before
    assert before["status"] == "completed"


def test_job_that_was_cancelled_does_not_run_again(api: Api, tmp_path: Path) -> None:
    release = tmp_path / "release"
    target = accept(api, one("TestWait", file=str(release)))
    assert wait_until(lambda: has_event(api, target, "node.started"))

    assert api.post(f"/cancel/{target}").json()["status"] == "cancelled"
    # It is not run again under its id.
    again = api.post("/generate", event(one("TestWait", file=str(release)), request_id=target))
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")


@pytest.mark.parametrize("is_killed", [False, True], ids=["stopped", "killed"])
def test_job_that_is_cancelled_while_its_machine_ends_does_not_run_on_the_next_one(
    tmp_path: Path, is_killed: bool
) -> None:
    with serve(tmp_path) as api:
        target = accept(api, one("TestSleep", seconds=100.0, deaf=True))
        # ComfyUI starts first.
        assert wait_until(lambda: has_event(api, target, "node.started"), 90)
        # The answer would come when the job has ended.
        with pytest.raises(requests.Timeout):
            requests.post(f"{api.url}/cancel/{target}", timeout=0.5)

        if is_killed:
            api.kill_everything()
        else:
            api.process.terminate()
            api.process.wait(40)
        api.start()

        assert wait_until(lambda: api.is_over(target), 60)
        assert api.status(target) == "cancelled"
        assert not has_event(api, target, "node.started")
