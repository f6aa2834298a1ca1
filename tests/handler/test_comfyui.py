"""The client against the real ComfyUI: lost sockets, foreign messages, the handler's own worker."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from handler import comfyui
from handler.run_progress import MAX_UPDATES
from handler.settings import PROJECT
from handler.worker_protocol import SOCKET_NAME, State
from tests import workflows
from tests.conftest import current_client, run, when_comfyui, worker_status
from tests.processes import is_running, processes_with, wait_until
from tests.runtime.test_worker import own_folders

pytestmark = pytest.mark.usefixtures("comfyui")

# Two nodes that sleep, so that there is a second one whose messages come after a reconnect.
SLEEPER: dict[str, Any] = {
    "1": workflows.node("TestSleep", seconds=2.0, deaf=False),
    "2": workflows.node("TestSleep", seconds=2.0, deaf=False),
}


def drop_websocket() -> None:
    current = current_client()._socket
    assert current is not None
    assert current.sock is not None
    current.sock.shutdown(socket.SHUT_RDWR)


def test_job_survives_a_dropped_websocket() -> None:
    run(workflows.image())

    with when_comfyui("queue_running", drop_websocket):
        response = run(SLEEPER)

    assert response["status"] == "completed"
    assert len(response["output"]) == 2
    assert len(response["comfyui_response"]["execution_details"]["nodes_executed"]) == 2


def test_websocket_that_was_lost_between_two_jobs_is_opened_again() -> None:
    run(workflows.image())
    drop_websocket()

    details = run(workflows.image())["comfyui_response"]["execution_details"]

    assert details["nodes_executed"] == ["1", "2"]


def test_connections_are_kept_between_jobs() -> None:
    run(workflows.image())
    before = current_client(), current_client()._socket

    run(workflows.image())

    assert (current_client(), current_client()._socket) == before


def test_handler_without_a_job_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    run(workflows.image())
    client = current_client()
    monkeypatch.setattr(comfyui, "LISTEN_IDLE_S", 0.0)

    assert wait_until(lambda: client._socket is None)
    details = run(workflows.image())["comfyui_response"]["execution_details"]

    assert details["nodes_executed"] == ["1", "2"]


def test_many_progress_updates_push_nothing_out_of_the_response() -> None:
    response = run(workflows.one("TestManyProgress", reports=5000))

    details = response["comfyui_response"]["execution_details"]
    assert len(details["progress_updates"]) <= MAX_UPDATES
    assert details["progress_updates"][-1]["percentage"] == 100
    assert response["output"][0]["text"] == "done"
    assert "warnings" not in response


def test_progress_updates_count_up_in_time() -> None:
    workflow = workflows.wan(steps=2)
    for name in ("91", "99"):
        # No text encoder: the progress of two samplers is what counts here.
        workflow[name] = workflows.node("ConditioningZeroOut", conditioning=["3", 0])
    workflow["3"] = workflows.node("TestConditioning")
    del workflow["90"]

    updates = run(workflow)["comfyui_response"]["execution_details"]["progress_updates"]

    assert [update["percentage"] for update in updates] == [50, 100]
    assert all(update["value"] == update["max"] == 1 for update in updates)
    assert 0 < updates[0]["time"] < updates[1]["time"]


@pytest.mark.slow
def test_handler_without_a_worker_starts_one_which_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import json, sys; from handler.app import lambda_handler;"
        "print(json.dumps(lambda_handler(json.load(sys.stdin), None)), flush=True)"
    )
    environ = os.environ | own_folders(tmp_path) | {"POWERTOOLS_LOG_LEVEL": "CRITICAL"}

    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(workflows.event(workflows.image())),
        cwd=PROJECT,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )

    assert json.loads(done.stdout)["status"] == "completed"
    assert wait_until(lambda: not (tmp_path / SOCKET_NAME).exists())
    lines = [line for line in done.stderr.splitlines() if "starting -> ready" in line]
    assert len(lines) == 1


def test_handler_says_why_comfyui_does_not_come_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in own_folders(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COMFYUI_ARGS", "--no-such-flag")

    response = run(workflows.image())

    assert response["status"] == "failed"
    assert response["error"]["type"] == "WorkerUnavailable"
    assert response["error"]["retryable"] is True
    assert "unrecognized arguments: --no-such-flag" in response["message"]


def test_wrong_environment_is_answered_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PORT", "http")
    monkeypatch.setenv("S3_URL_EXPIRES", "soon")

    response = run(workflows.image())

    assert response["error"]["type"] == "Misconfigured"
    assert "COMFYUI_PORT 'http'" in response["message"]
    assert "S3_URL_EXPIRES 'soon'" in response["message"]


@pytest.mark.slow
def test_job_that_is_too_short_for_the_cold_start_leaves_the_start_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in own_folders(tmp_path).items():
        monkeypatch.setenv(name, value)

    short = run(workflows.image(), seconds=1.5)
    workers = worker_pids(tmp_path)
    assert wait_until(lambda: worker_status().state is State.READY)
    time.sleep(0.5)
    next_one = run(workflows.image())

    assert short["error"]["type"] == "DeadlineExceeded"
    assert short["error"]["retryable"] is True
    assert next_one["status"] == "completed"
    assert worker_status().starts == 1
    assert worker_pids(tmp_path) == workers


def test_worker_that_was_killed_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in own_folders(tmp_path).items():
        monkeypatch.setenv(name, value)
    assert run(workflows.image())["status"] == "completed"
    pids = worker_pids(tmp_path)
    for pid in pids:
        os.kill(pid, 9)
    assert wait_until(lambda: not any(is_running(pid) for pid in pids))

    assert run(workflows.image())["status"] == "completed"


def worker_pids(folder: Path) -> list[int]:
    """The processes whose environment names this folder, the tests' own apart."""
    return processes_with(f"WORKER_DIR={folder}", "worker")
