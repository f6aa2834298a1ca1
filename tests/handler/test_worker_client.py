"""The handler's side of the worker's socket: a worker that is frozen, strange, or cannot start."""

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from events.errors import WorkerUnavailable
from handler import worker_client
from handler.settings import Settings
from handler.worker_client import WorkerClient
from handler.worker_codec import decode_request, encode
from handler.worker_connection import WorkerConnection
from handler.worker_protocol import LOG_NAME, SOCKET_NAME, LogLines, Status
from tests.handler.test_worker_codec import READY
from tests.processes import processes_with, wait_until

pytestmark = pytest.mark.timeout(60)
SECRET = "canary-of-the-worker-log"


def settings_in(folder: Path) -> Settings:
    return Settings.from_env(os.environ | {"WORKER_DIR": str(folder)})


@contextmanager
def listening(folder: Path) -> Iterator[socket.socket]:
    """A worker's socket at which this test answers, or does not."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / SOCKET_NAME))
        server.listen(100)
        yield server


@pytest.mark.slow
def test_frozen_worker_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_client, "CONNECT_TIMEOUT_S", 0.2)
    client = WorkerClient(settings_in(tmp_path))
    # The kernel takes connections and requests, as it does for a process that was stopped.
    with listening(tmp_path):
        with pytest.raises(TimeoutError):
            client.begin_wake(())
        client.restart()
        client.end_job()

        # Each request waits for its own limit alone, until the kernel takes no more either.
        for _ in range(3):
            with pytest.raises(TimeoutError):
                client.begin_wake(["x" * 100_000])
            client.end_job()
        assert client.last_lines() == ""
        assert client.is_ours_alone()
    client.close()


def test_worker_that_is_being_killed_is_asked_until_another_one_answers(tmp_path: Path) -> None:
    with listening(tmp_path) as server, ThreadPoolExecutor(1) as pool:
        client = WorkerClient(settings_in(tmp_path))
        is_ready = pool.submit(client.begin_wake, ())
        for _ in range(3):
            worker, _ = server.accept()
            worker.close()
        worker, _ = server.accept()
        with worker, worker.makefile("rb") as requests:
            request = decode_request(requests.readline())
            worker.sendall(encode(Status(id=request.id, is_final=True, worker=READY)))

            assert is_ready.result()
            client.close()


def test_answer_to_an_earlier_request_is_skipped(tmp_path: Path) -> None:
    with listening(tmp_path) as server:
        connection = WorkerConnection(tmp_path / SOCKET_NAME, 5)
        worker, _ = server.accept()
        with pytest.raises(TimeoutError):
            connection.receive(1, 0.01)

        worker.sendall(encode(LogLines(id=1, lines=("old",))))
        worker.sendall(encode(LogLines(id=2, lines=("new",))))

        assert connection.receive(2, 5) == LogLines(id=2, lines=("new",))
        connection.close()
        worker.close()


def test_answer_that_comes_in_pieces_survives_a_timeout(tmp_path: Path) -> None:
    line = encode(LogLines(id=1, lines=("a", "b")))
    with listening(tmp_path) as server:
        connection = WorkerConnection(tmp_path / SOCKET_NAME, 5)
        worker, _ = server.accept()

        worker.sendall(line[:9])
        with pytest.raises(TimeoutError):
            connection.receive(1, 0.01)
        worker.sendall(line[9:])

        assert connection.receive(1, 5) == LogLines(id=1, lines=("a", "b"))
        worker.close()
        with pytest.raises(ConnectionError):
            connection.receive(1, 5)
        connection.close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b'{"type": "dance", "id": 1}\n', "expected status"),
        (b"garbage\n", "cannot be read: 'garbage' is not a message"),
        (b'{"type": "refused", "id": 1, "reason": "no"}\n', "the worker refused a request: no"),
        (b'{"type": "log_lines", "id": 1, "lines": []}\n', "expected status"),
    ],
)
def test_answer_that_the_handler_does_not_know_is_an_error(
    answer: bytes, words: str, tmp_path: Path
) -> None:
    with listening(tmp_path) as server:
        client = WorkerClient(settings_in(tmp_path))
        # The answer is there before the request: the kernel keeps both.
        client._connection = WorkerConnection(tmp_path / SOCKET_NAME, 5)
        worker, _ = server.accept()
        worker.sendall(answer)

        with pytest.raises(WorkerUnavailable) as caught:
            client.begin_wake(())

        assert words in str(caught.value)
        worker.close()
        client.close()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORKER_HOOKS": "nowhere:Hook"}, "WORKER_HOOKS 'nowhere:Hook': No module named"),
        ({"WORKER_HOOKS": f"{__name__}:RaisingHook"}, "LookupError: a hook's own mistake"),
    ],
)
def test_worker_that_ends_of_a_wrong_setting_gives_the_reason_and_its_log(
    variables: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"WORKER_DIR": str(tmp_path), "S3_SECRET_ACCESS_KEY": SECRET, "S3_BUCKET": "b"}
    for name, value in (given | variables).items():
        monkeypatch.setenv(name, value)
    (tmp_path / LOG_NAME).write_text("a line of an earlier worker\n")
    client = WorkerClient(Settings.from_env(os.environ))

    with pytest.raises(WorkerUnavailable) as caught:
        client.begin_wake(())

    assert words in str(caught.value)
    assert f"its log: {tmp_path / LOG_NAME}" in str(caught.value)
    assert words in (tmp_path / LOG_NAME).read_text()
    assert SECRET not in (tmp_path / LOG_NAME).read_text() + str(caught.value)
    client.close()


class RaisingHook:
    def __init__(self) -> None:
        raise LookupError("a hook's own mistake")


def test_worker_folder_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("WORKER_DIR", str(tmp_path / "file" / "worker"))
    client = WorkerClient(Settings.from_env(os.environ))

    with pytest.raises(WorkerUnavailable, match=r"WORKER_DIR cannot be used: .*/file/worker"):
        client.begin_wake(())
    client.close()


def test_line_of_an_earlier_worker_is_not_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / LOG_NAME
    log.write_text("a line of an earlier worker\n")
    os.utime(log, (1, 1))
    # The new one ends before it may write to the log.
    (tmp_path / "worker.lock").mkdir()
    monkeypatch.setenv("WORKER_DIR", str(tmp_path))
    client = WorkerClient(Settings.from_env(os.environ))

    with pytest.raises(WorkerUnavailable, match="before it could write") as caught:
        client.begin_wake(())

    assert "a line of" not in str(caught.value)
    client.close()


def test_started_worker_logs_to_its_file_and_ends_with_its_handler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORKER_DIR", str(tmp_path))
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path / "no-comfyui"))
    monkeypatch.setenv("COMFYUI_DATA_DIR", str(tmp_path / "data"))
    client = WorkerClient(Settings.from_env(os.environ))
    client.begin_wake(())
    with pytest.raises(WorkerUnavailable, match="there is no ComfyUI at"):
        client.wait_ready(60)
    client.close()

    log = (tmp_path / LOG_NAME).read_text()
    assert "worker starting -> inactive" in log
    assert log in capfd.readouterr().err
    assert wait_until(lambda: not processes_with(f"WORKER_DIR={tmp_path}", "worker"))
