"""The worker process and its ComfyUI: one owner, restarts, and an end that leaves nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from handler.settings import PROJECT, Settings
from handler.worker_codec import decode_answer, encode
from handler.worker_connection import WorkerConnection
from handler.worker_protocol import (
    SOCKET_NAME,
    Answer,
    Depth,
    GetLog,
    GetState,
    LogLines,
    Refused,
    Request,
    Sleep,
    State,
    Wake,
    WorkerStatus,
)
from runtime.commands import extension
from runtime.worker.comfyui_arguments import child_environment
from runtime.worker.comfyui_process import STOP_GRACE_S
from tests.processes import connect_to, is_running, run_command, wait_until
from tests.worker import (
    ask,
    comfyui_pid,
    connect,
    end_job,
    final_answer,
    send,
    status,
    status_in,
    wake,
)

pytestmark = pytest.mark.slow


def own_folders(folder: Path) -> dict[str, str]:
    """The variables of a worker that has nothing to do with that of the other tests."""
    return {"WORKER_DIR": str(folder), "COMFYUI_DATA_DIR": str(folder / "data")}


StartWorker = Callable[..., "RunningWorker"]


class RunningWorker:
    """A worker process of this test's own, and the requests that a handler sends it."""

    def __init__(self, folder: Path, options: list[str], variables: dict[str, str]) -> None:
        self.folder = folder
        self.socket = folder / SOCKET_NAME
        environ = os.environ | own_folders(folder) | {"COMFYUI_PORT": "0"} | variables
        line = [sys.executable, "-m", "runtime", "worker", *options]
        self.process = subprocess.Popen(line, cwd=PROJECT, env=environ, stderr=subprocess.PIPE)
        assert wait_until(lambda: self.socket.exists() or self.process.poll() is not None)

    def connect(self) -> WorkerConnection:
        return connect(self.socket)

    def ask(self, kind: Callable[..., Request], **fields: Any) -> Answer:
        """The final answer to one request, on a connection of its own."""
        with closing(self.connect()) as connection:
            return ask(connection, kind, **fields)

    def status(self) -> WorkerStatus:
        return status_in(self.ask(GetState))

    def wake(self) -> WorkerStatus:
        """How the worker is when it has settled; the job that was begun for that has ended."""
        with closing(self.connect()) as connection:
            settled = wake(connection)
            end_job(connection)
        return settled

    def sleep(self, depth: Depth) -> Answer:
        return self.ask(Sleep, depth=depth)

    def comfyui_pid(self) -> int:
        """The process id of its ComfyUI, once that is started."""
        assert wait_until(lambda: self.status().comfyui_pid is not None)
        return comfyui_pid(self.status())

    def prewarmed_pid(self) -> int:
        """The process id of its prewarmed Python, once that is started."""
        assert wait_until(lambda: self.status().prewarmed_pid is not None)
        pid = self.status().prewarmed_pid
        assert pid is not None
        return pid


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
    connections = [worker.connect() for _ in range(20)]
    wakes = [(connection, send(connection, Wake, models=())) for connection in connections]

    answers = [status_in(final_answer(*each)) for each in wakes]

    assert {answer.state for answer in answers} == {State.READY}
    assert {answer.starts for answer in answers} == {1}
    pid = comfyui_pid(answers[0])
    assert is_running(pid)
    worker.process.terminate()
    assert worker.process.wait(30) == 0
    assert not is_running(pid)
    assert not worker.socket.exists()
    for connection in connections:
        connection.close()


def test_stop_of_comfyui_takes_no_longer_than_an_extension_keeps_for_it() -> None:
    # Lambda ends everything two seconds after SHUTDOWN; test_lifecycle_states.py holds that a stop
    # waits for nothing else.
    assert STOP_GRACE_S <= extension._END_WITHIN_S


def test_term_during_a_cold_start_is_obeyed_at_once(start_worker: StartWorker) -> None:
    worker = start_worker()
    pid = worker.comfyui_pid()

    worker.process.terminate()

    assert worker.process.wait(30) == 0
    assert not is_running(pid)
    assert worker.process.stderr
    output = worker.process.stderr.read()
    assert b"worker starting -> draining" in output
    assert b"-> ready" not in output


def test_comfyui_dies_with_a_killed_worker(start_worker: StartWorker) -> None:
    worker = start_worker()
    pid = worker.comfyui_pid()

    worker.process.kill()

    assert wait_until(lambda: not is_running(pid))


def test_second_worker_leaves_the_first_alone(start_worker: StartWorker) -> None:
    first = start_worker()
    pid = first.comfyui_pid()
    second = start_worker()

    assert second.process.wait(30) == 0
    assert first.process.poll() is None
    now = first.status()
    assert now.state in (State.STARTING, State.READY)
    assert now.comfyui_pid == pid
    assert now.starts <= 1


def test_leased_worker_ends_with_its_last_connection(start_worker: StartWorker) -> None:
    worker = start_worker("--leased")
    one, other = worker.connect(), worker.connect()
    status(one)
    pid = status(other).comfyui_pid

    one.close()
    time.sleep(0.2)
    assert worker.process.poll() is None
    other.close()

    assert worker.process.wait(30) == 0
    assert pid is None or not is_running(pid)


def test_handler_that_waits_for_a_cold_start_is_answered_and_may_end_its_job(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    # A ComfyUI that starts when this test says so.
    python, go_on = tmp_path / "python", tmp_path / "go-on"
    interpreter = Settings.from_env(os.environ).comfyui_interpreter
    wait = f'while [ ! -e "{go_on}" ]; do sleep 0.05; done'
    python.write_text(f'#!/bin/sh\n{wait}\nexec "{interpreter}" "$@"\n')
    python.chmod(0o755)
    worker = start_worker("--leased", COMFYUI_PYTHON=str(python))
    with closing(worker.connect()) as connection:
        waiting = send(connection, Wake, models=())

        log, ended = ask(connection, GetLog), end_job(connection)
        go_on.touch()
        settled = status_in(final_answer(connection, waiting))

        assert isinstance(log, LogLines)
        # The start that the job has begun goes on without it.
        assert (ended.state, ended.starts, ended.jobs) == (State.STARTING, 0, 0)
        assert (settled.state, settled.starts) == (State.READY, 1)


def test_start_that_fails_is_answered_with_comfyuis_last_log_lines(
    start_worker: StartWorker,
) -> None:
    worker = start_worker(COMFYUI_ARGS="--no-such-flag")

    answer = worker.wake()

    assert answer.state is State.INACTIVE
    assert "exit status 2" in answer.failure
    assert "unrecognized arguments: --no-such-flag" in answer.failure


@pytest.mark.slow
def test_worker_that_cannot_start_gives_up(start_worker: StartWorker) -> None:
    worker = start_worker(COMFYUI_ARGS="--no-such-flag")

    states = [worker.wake().state for _ in range(6)]

    assert states[0] is State.INACTIVE
    assert states[-1] is State.FAILED


def test_start_that_takes_too_long_is_ended(start_worker: StartWorker) -> None:
    worker = start_worker(COMFYUI_START_TIMEOUT="0.3")

    assert "not ready within 0.3 s" in worker.wake().failure


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"COMFYUI_DIR": "/nowhere"}, "lambda-comfyui install"),
        ({"COMFYUI_PYTHON": "/nowhere/python"}, "COMFYUI_PYTHON"),
        ({"MODELS_DIR": "/nowhere/models"}, "MODELS_DIR"),
    ],
)
def test_missing_comfyui_is_named_with_the_command_that_helps(
    variables: dict[str, str], words: str, start_worker: StartWorker
) -> None:
    failure = start_worker(**variables).wake().failure

    assert "/nowhere" in failure
    assert words in failure


def test_killed_comfyui_is_replaced(start_worker: StartWorker) -> None:
    worker = start_worker()
    pid = comfyui_pid(worker.wake())

    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: has_begun_again(worker.status()))
    answer = worker.wake()

    assert answer.starts == 2
    assert answer.comfyui_pid != pid
    assert "signal: killed" in answer.failure


def has_begun_again(worker: WorkerStatus) -> bool:
    """Whether the worker has noted the death; the new start may be over before it is asked."""
    return worker.state is State.STARTING or worker.starts == 2


def test_comfyui_gets_none_of_the_credentials(start_worker: StartWorker) -> None:
    worker = start_worker(
        S3_SECRET_ACCESS_KEY="canary", AWS_SESSION_TOKEN="canary", WEBHOOK_SECRET="canary"
    )
    pid = worker.comfyui_pid()
    assert wait_until(lambda: b"inside_comfyui.py" in Path(f"/proc/{pid}/cmdline").read_bytes())

    assert b"canary" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_comfyui_does_not_find_our_packages_before_its_own() -> None:
    given = {"PYTHONPATH": f"{PROJECT}:/somebody/else", "ON_FAILURE_URL": "secret", "CC": "/x"}

    environ = child_environment(given)

    assert environ == {"PYTHONPATH": "/somebody/else", "CC": "/x", "PYTHONUNBUFFERED": "1"}


def test_kernels_in_triton_are_off_where_no_compiler_is(tmp_path: Path) -> None:
    switch = "TORCH_DISABLE_NATIVE_JIT"
    bare = {"PATH": str(tmp_path)}
    assert child_environment(bare)[switch] == "1"
    assert child_environment(bare | {switch: "0"})[switch] == "0"
    assert switch not in child_environment(bare | {"CC": "/opt/cc"})
    compiler = tmp_path / "gcc"
    compiler.touch(mode=0o755)
    assert switch not in child_environment(bare)


def test_last_lines_of_comfyui_can_be_asked_for(start_worker: StartWorker) -> None:
    worker = start_worker()
    worker.wake()

    log = worker.ask(GetLog)

    assert isinstance(log, LogLines)
    assert any("Starting server" in line for line in log.lines)


def test_second_worker_that_would_write_to_the_same_folder_is_refused(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    first = start_worker()
    assert first.wake().state is State.READY
    other = own_folders(tmp_path) | {"WORKER_DIR": str(tmp_path / "other")}

    done = run_command("worker", **other)

    assert done.returncode == 2
    assert "set COMFYUI_DATA_DIR to a folder of its own" in done.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"type": "dance", "id": 3}', "'dance', expected wake | announce_prompt"),
        (b'{"type": "sleep", "id": 3, "depth": "coma"}', "expected free | stop | exit"),
    ],
)
def test_request_that_the_worker_does_not_know_is_refused(
    line: bytes, words: str, start_worker: StartWorker
) -> None:
    worker = start_worker()
    with connect_to(worker.socket) as connection, connection.makefile("rb") as answers:
        connection.sendall(line + b"\n")

        answer = decode_answer(answers.readline())

    assert isinstance(answer, Refused)
    assert answer.id == 3
    assert words in answer.reason


def test_request_that_is_not_json_is_refused_and_the_next_is_answered(
    start_worker: StartWorker,
) -> None:
    worker = start_worker()
    with connect_to(worker.socket) as connection, connection.makefile("rb") as answers:
        connection.sendall(b"garbage\n" + encode(GetState(id=4)))

        refused, state = decode_answer(answers.readline()), decode_answer(answers.readline())

    assert isinstance(refused, Refused)
    assert "'garbage' is not a message" in refused.reason
    assert status_in(state).state in State


def test_socket_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)

    done = run_command("worker", WORKER_DIR=str(folder))

    assert done.returncode == 2
    assert "WORKER_DIR is too long" in done.stderr


def test_socket_that_cannot_be_made_is_refused_with_its_reason(tmp_path: Path) -> None:
    # What a worker would remove if it were an old socket.
    (tmp_path / SOCKET_NAME).mkdir()

    done = run_command("worker", **own_folders(tmp_path))

    assert done.returncode == 2
    assert f"the worker's socket {tmp_path / SOCKET_NAME} cannot be made: " in done.stderr
    assert "Is a directory; set WORKER_DIR" in done.stderr
    assert "Traceback" not in done.stderr
