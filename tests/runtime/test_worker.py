"""The worker process and its ComfyUI: one owner, restarts, and an end that leaves nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from handler.settings import PROJECT
from runtime.worker.comfyui_process import child_environment
from tests.processes import connect_to, is_running, wait_until


def own_folders(folder: Path) -> dict[str, str]:
    """The variables of a worker that has nothing to do with that of the other tests."""
    return {"WORKER_DIR": str(folder), "COMFYUI_DATA_DIR": str(folder / "data")}


StartWorker = Callable[..., "RunningWorker"]


class RunningWorker:
    """A worker process of this test's own, and the questions that a handler asks it."""

    def __init__(self, folder: Path, options: list[str], variables: dict[str, str]) -> None:
        self.folder = folder
        self.socket = folder / "worker.sock"
        environ = os.environ | own_folders(folder) | {"COMFYUI_PORT": "0"} | variables
        line = [sys.executable, "-m", "runtime", "worker", *options]
        self.process = subprocess.Popen(line, cwd=PROJECT, env=environ, stderr=subprocess.PIPE)
        assert wait_until(lambda: self.socket.exists() or self.process.poll() is not None)

    def connect(self) -> socket.socket:
        return connect_to(self.socket)

    def ask(self, operation: str, **details: str) -> dict[str, Any]:
        """The answer to one question. What `wake` began has ended when it is returned."""
        with self.connect() as connection:
            answer = ask(connection, operation, **details)
            if operation == "wake":
                connection.sendall(b'{"op": "done"}\n')
                ask(connection, "state")
        return answer


def ask(connection: socket.socket, operation: str, **details: str) -> dict[str, Any]:
    """The answer to one question; of `wake`, the one that comes when the worker has settled."""
    connection.sendall(json.dumps({"op": operation, **details}).encode() + b"\n")
    return read_answer(connection, operation)


def read_answer(connection: socket.socket, operation: str) -> dict[str, Any]:
    with connection.makefile() as lines:
        answer: dict[str, Any] = json.loads(lines.readline())
        if operation == "wake" and answer["state"] != "ready":
            answer = json.loads(lines.readline())
    return answer


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    with ExitStack() as stack:

        def start(*options: str, **variables: str) -> RunningWorker:
            worker = RunningWorker(tmp_path, list(options), variables)
            stack.enter_context(worker.process)
            stack.callback(worker.process.kill)
            return worker

        yield start


def test_wake_answers_when_comfyui_serves_and_term_ends_everything(
    start_worker: StartWorker,
) -> None:
    worker = start_worker()
    answers = [worker.connect() for _ in range(20)]
    for connection in answers:
        connection.sendall(b'{"op": "wake"}\n')

    states = [read_answer(connection, "wake") for connection in answers]

    assert {answer["state"] for answer in states} == {"ready"}
    assert {answer["starts"] for answer in states} == {1}
    pid = states[0]["comfyui_pid"]
    assert is_running(pid)
    began = time.monotonic()
    worker.process.terminate()
    assert worker.process.wait(30) == 0
    # Lambda's limit; a quiet machine needs a tenth of it.
    assert time.monotonic() - began < 2.0
    assert not is_running(pid)
    assert not worker.socket.exists()
    for connection in answers:
        connection.close()


def test_term_during_a_cold_start_is_obeyed_at_once(start_worker: StartWorker) -> None:
    worker = start_worker()
    assert wait_until(lambda: worker.ask("state")["comfyui_pid"] is not None)
    pid = worker.ask("state")["comfyui_pid"]

    worker.process.terminate()

    assert worker.process.wait(30) == 0
    assert not is_running(pid)
    assert worker.process.stderr
    said = worker.process.stderr.read()
    assert b"worker starting -> draining" in said
    assert b"-> ready" not in said


def test_comfyui_dies_with_a_killed_worker(start_worker: StartWorker) -> None:
    worker = start_worker()
    assert wait_until(lambda: worker.ask("state")["comfyui_pid"] is not None)
    pid = worker.ask("state")["comfyui_pid"]

    worker.process.kill()

    assert wait_until(lambda: not is_running(pid))


def test_second_worker_leaves_the_first_alone(start_worker: StartWorker) -> None:
    first = start_worker()
    assert wait_until(lambda: first.ask("state")["comfyui_pid"] is not None)
    pid = first.ask("state")["comfyui_pid"]
    second = start_worker()

    assert second.process.wait(30) == 0
    assert first.process.poll() is None
    left = first.ask("state")
    assert left["state"] in ("starting", "ready")
    assert left["comfyui_pid"] == pid
    assert left["starts"] <= 1


def test_leased_worker_ends_with_its_last_connection(start_worker: StartWorker) -> None:
    worker = start_worker("--leased")
    one, other = worker.connect(), worker.connect()
    ask(one, "state")
    pid = ask(other, "state")["comfyui_pid"]

    one.close()
    time.sleep(0.2)
    assert worker.process.poll() is None
    other.close()

    assert worker.process.wait(30) == 0
    assert pid is None or not is_running(pid)


def test_start_that_fails_is_answered_with_comfyuis_last_words(start_worker: StartWorker) -> None:
    worker = start_worker(COMFYUI_ARGS="--no-such-flag")

    answer = worker.ask("wake")

    assert answer["state"] == "inactive"
    assert "exit status 2" in answer["failure"]
    assert "unrecognized arguments: --no-such-flag" in answer["failure"]


@pytest.mark.slow
def test_worker_that_cannot_start_gives_up(start_worker: StartWorker) -> None:
    worker = start_worker(COMFYUI_ARGS="--no-such-flag")

    states = [worker.ask("wake")["state"] for _ in range(6)]

    assert states[0] == "inactive"
    assert states[-1] == "failed"


def test_start_that_takes_too_long_is_ended(start_worker: StartWorker) -> None:
    worker = start_worker(COMFYUI_START_TIMEOUT="0.3")

    assert "not ready within 0.3 s" in worker.ask("wake")["failure"]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"COMFYUI_DIR": "/nowhere"}, "python -m runtime install"),
        ({"COMFYUI_PYTHON": "/nowhere/python"}, "COMFYUI_PYTHON"),
        ({"MODELS_DIR": "/nowhere/models"}, "MODELS_DIR"),
    ],
)
def test_missing_comfyui_is_named_with_the_command_that_helps(
    variables: dict[str, str], words: str, start_worker: StartWorker
) -> None:
    failure = start_worker(**variables).ask("wake")["failure"]

    assert "/nowhere" in failure
    assert words in failure


def test_killed_comfyui_is_replaced(start_worker: StartWorker) -> None:
    worker = start_worker()
    pid = worker.ask("wake")["comfyui_pid"]

    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: has_begun_again(worker.ask("state")))
    answer = worker.ask("wake")

    assert answer["starts"] == 2
    assert answer["comfyui_pid"] != pid
    assert "signal: killed" in answer["failure"]


def has_begun_again(told: dict[str, Any]) -> bool:
    """Whether the worker has noted the death; a start may be over before anybody sees it."""
    return bool(told["state"] == "starting" or told["starts"] == 2)


def test_comfyui_gets_none_of_the_credentials(start_worker: StartWorker) -> None:
    worker = start_worker(
        S3_SECRET_ACCESS_KEY="canary", AWS_SESSION_TOKEN="canary", WEBHOOK_SECRET="canary"
    )
    assert wait_until(lambda: worker.ask("state")["comfyui_pid"] is not None)
    pid = worker.ask("state")["comfyui_pid"]
    assert wait_until(lambda: b"inside_comfyui.py" in Path(f"/proc/{pid}/cmdline").read_bytes())

    assert b"canary" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_comfyui_does_not_find_our_packages_before_its_own() -> None:
    given = {"PYTHONPATH": f"{PROJECT}:/somebody/else", "ON_FAILURE_URL": "secret", "HOME": "/x"}

    environ = child_environment(given)

    assert environ == {"PYTHONPATH": "/somebody/else", "HOME": "/x", "PYTHONUNBUFFERED": "1"}


def test_last_lines_of_comfyui_can_be_asked_for(start_worker: StartWorker) -> None:
    worker = start_worker()
    worker.ask("wake")

    assert any("Starting server" in line for line in worker.ask("log")["lines"])


def test_second_worker_that_would_write_to_the_same_folder_is_refused(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    first = start_worker()
    assert first.ask("wake")["state"] == "ready"
    other = os.environ | own_folders(tmp_path) | {"WORKER_DIR": str(tmp_path / "other")}

    done = subprocess.run(
        [sys.executable, "-m", "runtime", "worker"],
        cwd=PROJECT,
        env=other,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "set COMFYUI_DATA_DIR to a folder of its own" in done.stderr


def test_unknown_operation_is_refused(start_worker: StartWorker) -> None:
    worker = start_worker()

    assert "unknown op" in worker.ask("dance")["error"]


def test_socket_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    line = [sys.executable, "-m", "runtime", "worker"]

    done = subprocess.run(
        line,
        cwd=PROJECT,
        env=os.environ | {"WORKER_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "WORKER_DIR is too long" in done.stderr
