"""The worker in this process, with a stand-in for ComfyUI: its log, its idle time, its failures."""

import math
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from handler.settings import PROJECT, Settings
from handler.worker_codec import encode
from handler.worker_protocol import SOCKET_NAME, Depth, ModelUrl, State, Wake
from runtime.hooks import Change, Hooks
from runtime.models.parts import is_placeholder
from runtime.worker.idle import Idle
from runtime.worker.lifecycle import Worker
from runtime.worker.ownership import owned_worker
from runtime.worker.start_failures import MAX_IN_A_ROW, StartFailures


class HangingHook(Hooks):
    """Does not return before it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def on_ready(self, change: Change) -> None:
        self.released.wait()


@contextmanager
def running(worker: Worker) -> Iterator[Worker]:
    thread = threading.Thread(target=worker.supervise)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    with ExitStack() as stack:

        def start(*hooks: Hooks) -> Worker:
            settings = Settings(
                comfyui_dir=PROJECT / "tests" / "fakes" / "comfyui",
                comfyui_python=Path(sys.executable),
                comfyui_args=("--cpu",),
                comfyui_port=0,
                comfyui_data_dir=tmp_path,
                worker_dir_given=tmp_path / "worker",
            )
            return stack.enter_context(running(Worker(settings, hooks)))

        yield start


def test_change_is_in_the_log_before_it_has_an_effect(
    start: Callable[..., Worker], capsys: pytest.CaptureFixture[str]
) -> None:
    hook = HangingHook()
    worker = start(hook)

    worker.begin_job()
    worker.wake()
    assert "worker starting -> ready after" in capsys.readouterr().err

    worker.stop(math.inf)
    assert worker.state is State.DRAINING
    assert "worker ready -> draining after" in capsys.readouterr().err
    hook.released.set()


def test_idle_time_ends_at_the_next_limit() -> None:
    idle = Idle(Settings(idle_free_after_s=1e-9, idle_stop_after_s=1e9))

    assert idle.depth() is Depth.FREE
    assert 1e8 < idle.until_next_limit_s() <= 1e9

    idle.begin_job()
    assert idle.depth() is Depth.AWAKE
    assert idle.until_next_limit_s() == math.inf


def test_requested_sleep_is_as_deep_as_the_request_or_deeper() -> None:
    idle = Idle(Settings(idle_stop_after_s=1e-9))

    idle.requested_depth = Depth.FREE
    assert idle.depth() is Depth.STOP

    idle.requested_depth = Depth.EXIT
    assert idle.depth() is Depth.EXIT
    assert idle.until_next_limit_s() == math.inf


def test_pauses_between_failures_grow_to_a_limit_and_end_with_success() -> None:
    failures = StartFailures()

    pauses = []
    for _ in range(6):
        failures.note_failed_start("broken")
        pauses.append(failures.pause_s())

    assert pauses == [0, 1, 2, 4, 8, 8]
    assert failures.has_failed_too_often()
    failures.note_start()
    assert failures.pause_s() == 0
    assert (failures.has_failed_too_often(), failures.failed_starts_ever) == (False, 6)


def test_only_early_deaths_in_a_row_are_too_many() -> None:
    failures = StartFailures()

    for _ in range(MAX_IN_A_ROW):
        failures.note_death("killed", ran_s=1)
    assert failures.has_died_too_often()

    failures.note_death("killed", ran_s=3600)
    assert not failures.has_died_too_often()

    for _ in range(MAX_IN_A_ROW):
        failures.note_death("killed", ran_s=1)
    failures.note_end_of_job()
    assert not failures.has_died_too_often()


def test_models_by_url_have_placeholders_before_a_handler_gets_its_answer(tmp_path: Path) -> None:
    models = tmp_path / "models"
    settings = Settings(
        models_dirs=(models,), comfyui_dir=tmp_path / "no", worker_dir_given=tmp_path / "worker"
    )
    # Many, so that an answer that comes too early does come before the last of them.
    urls = tuple(
        ModelUrl(url="http://127.0.0.1:9/a", folder="vae", name=f"from_url/{number}/a.gguf")
        for number in range(200)
    )
    with owned_worker(settings) as worker:
        assert worker
        try:
            with socket.socket(socket.AF_UNIX) as handler:
                handler.connect(str(tmp_path / "worker" / SOCKET_NAME))
                handler.sendall(encode(Wake(id=1, models=(), model_urls=urls)))
                assert handler.recv(1)

                assert all(is_placeholder(models / "vae" / url.name) for url in urls)
        finally:
            worker.models.stop()
