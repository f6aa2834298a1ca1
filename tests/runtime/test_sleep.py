"""How a worker falls asleep, in three depths, and how it wakes; hooks; what is read beforehand."""

import json
import os
import subprocess
import time
import uuid
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import pytest

from handler.comfyui import ComfyUI
from handler.comfyui_version import ComfyUIVersion
from handler.settings import Settings
from handler.worker_protocol import Depth, Drain, EndJob, Refused, State, Wake
from runtime.hooks import Change, HookError, Hooks, PyWorkerLines, call_hooks, load_hooks
from runtime.models import prefetch
from runtime.worker.states import MOVES, IllegalMove, check_move
from tests.processes import is_running, run_command, wait_until
from tests.runtime.test_worker import RunningWorker, StartWorker, start_worker
from tests.worker import comfyui_pid, end_job, final_answer, send, status, status_in, wake
from tests.workflows import node

pytestmark = pytest.mark.slow

__all__ = ["start_worker"]


@pytest.mark.slow
def test_idle_worker_sleeps_and_twenty_wakes_share_one_start(start_worker: StartWorker) -> None:
    worker = start_worker(IDLE_STOP_AFTER="0.5")
    first = comfyui_pid(worker.wake())
    assert wait_until(lambda: worker.status().state is State.INACTIVE)
    assert wait_until(lambda: not is_running(first))
    prewarmed = worker.prewarmed_pid()

    connections = [worker.connect() for _ in range(20)]
    wakes = [(connection, send(connection, Wake, models=())) for connection in connections]
    answers = [status_in(final_answer(*each)) for each in wakes]

    assert {answer.state for answer in answers} == {State.READY}
    assert {answer.starts for answer in answers} == {2}
    assert answers[0].comfyui_pid == prewarmed
    for connection in connections:
        connection.close()


@pytest.mark.slow
def test_worker_with_a_job_does_not_sleep(start_worker: StartWorker) -> None:
    worker = start_worker(IDLE_STOP_AFTER="0.3")
    with closing(worker.connect()) as busy:
        assert wake(busy).jobs == 1
        time.sleep(1.0)
        assert status(busy).state is State.READY

        assert end_job(busy).jobs == 0
        assert wait_until(lambda: status(busy).state is State.INACTIVE)


@pytest.mark.slow
def test_job_of_a_handler_that_died_does_not_keep_the_worker_awake(
    start_worker: StartWorker,
) -> None:
    worker = start_worker(IDLE_STOP_AFTER="0.3")
    busy = worker.connect()
    wake(busy)

    busy.close()

    assert wait_until(lambda: worker.status().state is State.INACTIVE)


@pytest.mark.slow
def test_deepest_sleep_keeps_no_process(start_worker: StartWorker) -> None:
    # ComfyUI may take a second to stop; the prewarmed process lives for what is left of the time.
    worker = start_worker(IDLE_STOP_AFTER="0.3", IDLE_EXIT_AFTER="6")
    worker.wake()
    prewarmed = worker.prewarmed_pid()

    assert wait_until(lambda: worker.status().prewarmed_pid is None)

    assert not is_running(prewarmed)
    assert worker.wake().state is State.READY


@pytest.mark.slow
def test_killed_prepared_process_costs_time_but_no_job(start_worker: StartWorker) -> None:
    worker = start_worker(IDLE_STOP_AFTER="0.3")
    worker.wake()
    os.kill(worker.prewarmed_pid(), 9)
    assert wait_until(lambda: worker.status().prewarmed_pid is None)

    assert worker.wake().state is State.READY


@pytest.mark.slow
def test_worker_sleeps_as_deep_as_requested(start_worker: StartWorker) -> None:
    worker = start_worker()
    awake = comfyui_pid(worker.wake())

    freed = status_in(worker.sleep(Depth.FREE))
    stopped = status_in(worker.sleep(Depth.STOP))
    was_running = is_running(awake)
    gone = status_in(worker.sleep(Depth.EXIT))

    assert (freed.state, freed.comfyui_pid) == (State.READY, awake)
    assert (stopped.state, stopped.comfyui_pid) == (State.INACTIVE, None)
    assert not was_running
    assert wait_until(lambda: worker.status().prewarmed_pid is None)
    assert gone.state is State.INACTIVE
    assert worker.wake().state is State.READY


@pytest.mark.slow
def test_lightest_sleep_gives_the_memory_back(start_worker: StartWorker) -> None:
    worker = start_worker()
    woken = worker.wake()
    pid = comfyui_pid(woken)
    client = ComfyUI(woken.base_url, ComfyUIVersion(woken.comfyui_version))
    prompt_id = str(uuid.uuid4())
    # 600 MB in ComfyUI's cache of node outputs, where models are, too.
    image = node("EmptyImage", width=1024, height=1024, batch_size=50, color=7)
    client.submit({"1": image, "2": node("PreviewAny", source=["1", 0])}, prompt_id)
    client.follow(prompt_id, lambda _: None, deadline=time.monotonic() + 60)
    client.close()
    loaded = resident_mb(pid)

    worker.sleep(Depth.FREE)

    assert wait_until(lambda: resident_mb(pid) < loaded - 500)


def resident_mb(pid: int) -> float:
    (line,) = (
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in line
    )
    return int(line.split()[1]) / 1024


def test_worker_with_a_job_refuses_to_sleep(start_worker: StartWorker) -> None:
    worker = start_worker()
    with closing(worker.connect()) as busy:
        wake(busy)

        answer = worker.sleep(Depth.STOP)

        assert isinstance(answer, Refused)
        assert "a job runs" in answer.reason
        assert worker.status().state is State.READY


def test_draining_worker_accepts_no_job_and_ends_with_its_last_one(
    start_worker: StartWorker,
) -> None:
    worker = start_worker()
    busy = worker.connect()
    pid = comfyui_pid(wake(busy))

    assert status_in(worker.ask(Drain)).state is State.DRAINING
    assert worker.wake().state is State.DRAINING
    time.sleep(0.5)
    assert is_running(pid)
    send(busy, EndJob)

    assert worker.process.wait(30) == 0
    assert not is_running(pid)
    busy.close()


def test_termination_cuts_a_drain_short(start_worker: StartWorker) -> None:
    worker = start_worker()
    busy = worker.connect()
    wake(busy)
    worker.ask(Drain)

    worker.process.terminate()

    # Without it the worker would wait for as long as the job is not done.
    assert worker.process.wait(30) == 0
    busy.close()


def run_ask(worker: RunningWorker, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return run_command("ask", *arguments, WORKER_DIR=str(worker.folder))


def test_worker_is_asked_from_the_command_line(start_worker: StartWorker) -> None:
    worker = start_worker()

    woken = run_ask(worker, "wake")
    asleep = run_ask(worker, "sleep", "--depth", "exit")
    worker.process.terminate()
    worker.process.wait(30)
    unanswered = run_ask(worker, "state")

    assert (woken.returncode, json.loads(woken.stdout)["state"]) == (0, "ready")
    assert (asleep.returncode, json.loads(asleep.stdout)["state"]) == (0, "inactive")
    assert (unanswered.returncode, unanswered.stdout) == (1, "")
    assert "no worker answers at" in unanswered.stderr


def test_every_move_is_in_the_table() -> None:
    with pytest.raises(IllegalMove, match="from stopped to ready"):
        check_move(State.STOPPED, State.READY)
    assert set(MOVES) == set(State)
    living = set(State) - {State.DRAINING, State.STOPPED}
    assert all(State.DRAINING in MOVES[state] for state in living)


class Recorder(Hooks):
    heard: ClassVar[list[State]] = []

    def on_ready(self, change: Change) -> None:
        self.heard.append(change.new)


class Broken(Hooks):
    def on_ready(self, change: Change) -> None:
        raise ValueError("no")


def test_hooks_hear_changes_and_a_broken_one_changes_nothing() -> None:
    lines: list[str] = []
    hooks = load_hooks([f"{__name__}:Broken", f"{__name__}:Recorder"])

    call_hooks(hooks, Change(State.STARTING, State.READY, 1.0, ""), lines.append)
    call_hooks(hooks, Change(State.READY, State.STARTING, 1.0, ""), lines.append)

    assert Recorder.heard == [State.READY]
    assert lines == ["hook Broken raised ValueError: no"]


@pytest.mark.parametrize("name", ["nowhere:X", "runtime.hooks:Nothing", "runtime.hooks", ":"])
def test_hook_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(HookError, match="WORKER_HOOKS"):
        load_hooks([name])


def test_pyworker_finds_its_lines_in_the_file(tmp_path: Path) -> None:
    hook = PyWorkerLines(tmp_path / "log")

    hook.on_ready(Change(State.STARTING, State.READY, 1.0, ""))
    hook.on_failed(Change(State.STARTING, State.FAILED, 1.0, ""))

    assert (tmp_path / "log").read_text().split() == ["BACKENDS_READY", "BACKEND_UNRECOVERABLE"]


def test_named_model_files_are_read_from_the_first_folder_that_has_them(tmp_path: Path) -> None:
    for folder, content in (("one/models", b"x" * 1000), ("two", b"y" * 10)):
        (tmp_path / folder / "vae" / "sub").mkdir(parents=True)
        (tmp_path / folder / "vae" / "sub" / "a.safetensors").write_bytes(content)
    (tmp_path / "one" / "models" / "a file").touch()
    names = ["sub/a.safetensors", "../x", "/etc/passwd", "none.pt", "x" * 300 + ".pt", "a\0.pt"]

    reading = prefetch.Prefetch(
        names, Settings(comfyui_dir=tmp_path / "one", models_dirs=(tmp_path / "two",))
    )

    assert reading.join(30)
    assert reading.read_bytes == 1000


def test_each_file_is_read_once_in_the_life_of_a_comfyui(tmp_path: Path) -> None:
    for name, size in (("a.pt", 1000), ("b.pt", 10)):
        (tmp_path / "vae").mkdir(exist_ok=True)
        (tmp_path / "vae" / name).write_bytes(b"x" * size)
    prefetcher = prefetch.Prefetcher(Settings(models_dirs=(tmp_path,), comfyui_dir=tmp_path / "no"))

    prefetcher.begin(["a.pt"])
    assert bytes_of_the_reading(prefetcher) == 1000
    prefetcher.begin(["a.pt", "b.pt"])
    assert bytes_of_the_reading(prefetcher) == 10
    prefetcher.begin(["a.pt", "b.pt"])
    assert bytes_of_the_reading(prefetcher) == 10

    prefetcher.stop()
    prefetcher.begin(["a.pt"])
    assert bytes_of_the_reading(prefetcher) == 1000


def bytes_of_the_reading(prefetcher: prefetch.Prefetcher) -> int:
    """When it is over: until then no other one begins."""
    assert prefetcher._reading
    assert prefetcher._reading.join(30)
    return prefetcher.read_bytes
