"""Hosts with several workers: one for each GPU, with folders, a port and a socket of its own."""

import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from handler.api.dispatcher import WorkerReport, pool_report
from handler.settings import Settings
from handler.worker_protocol import SOCKET_NAME, State
from runtime.lambda_host.failures import WORKER_UNFIT, Failure
from runtime.lambda_host.function import Function
from runtime.lambda_host.host import LambdaHost
from runtime.lambda_host.pool import PoolError, pooled_workers
from runtime.local_s3 import LocalS3
from runtime.worker.benchmark import benchmark_workflow
from tests import workflows
from tests.aws import objects_in
from tests.processes import wait_until
from tests.runtime.test_serve_comfyui import Host, serve
from tests.test_queue_pipeline import Queues, machine, queues
from tests.workflows import event, node

__all__ = ["queues"]


def settings(folder: Path, **variables: str) -> Settings:
    places = {"WORKER_DIR": str(folder / "worker"), "COMFYUI_DATA_DIR": str(folder / "data")}
    return Settings.from_env(places | variables)


def test_host_without_several_gpus_has_one_worker_with_the_folders_of_the_settings(
    tmp_path: Path,
) -> None:
    (worker,) = pooled_workers(settings(tmp_path), {"CUDA_VISIBLE_DEVICES": ""})

    assert worker.variables == {}
    assert worker.socket == tmp_path / "worker" / SOCKET_NAME


def test_each_visible_gpu_gets_a_worker_of_its_own(tmp_path: Path) -> None:
    first, second = pooled_workers(
        settings(tmp_path, COMFYUI_PORT="18188"), {"CUDA_VISIBLE_DEVICES": "3,GPU-5c7a"}
    )

    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "PYWORKER_LOG": ""}
    assert first.variables == {"CUDA_VISIBLE_DEVICES": "3"} | order
    assert second.variables == order | {
        "CUDA_VISIBLE_DEVICES": "GPU-5c7a",
        "WORKER_DIR": str(tmp_path / "worker" / "gpu-1"),
        "COMFYUI_DATA_DIR": str(tmp_path / "data" / "gpu-1"),
        "COMFYUI_PORT": "18189",
    }
    assert second.socket == tmp_path / "worker" / "gpu-1" / SOCKET_NAME


def test_gpus_limits_the_number_of_workers(tmp_path: Path) -> None:
    workers = pooled_workers(settings(tmp_path, GPUS="2"), {"CUDA_VISIBLE_DEVICES": "0,1,2"})

    assert [worker.variables["CUDA_VISIBLE_DEVICES"] for worker in workers] == ["0", "1"]


def test_single_worker_of_several_gpus_writes_its_own_lines_for_a_pyworker(tmp_path: Path) -> None:
    (worker,) = pooled_workers(settings(tmp_path, GPUS="1"), {"CUDA_VISIBLE_DEVICES": "0, 1"})

    assert worker.variables == {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def test_spaces_in_the_list_of_gpus_are_no_part_of_a_gpu(tmp_path: Path) -> None:
    workers = pooled_workers(settings(tmp_path), {"CUDA_VISIBLE_DEVICES": "0, 1"})

    assert [worker.variables["CUDA_VISIBLE_DEVICES"] for worker in workers] == ["0", "1"]


def test_more_workers_than_gpus_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="GPUS is 3, but there are 2: 0, 1"):
        pooled_workers(settings(tmp_path, GPUS="3"), {"CUDA_VISIBLE_DEVICES": "0,1"})


def test_workers_share_the_input_folder_also_after_another_start(tmp_path: Path) -> None:
    for _ in range(2):
        pooled_workers(settings(tmp_path, GPUS="2"), {})

    (tmp_path / "data" / "input" / "image.png").write_bytes(b"png")
    assert (tmp_path / "data" / "gpu-1" / "input" / "image.png").read_bytes() == b"png"


def test_workers_share_the_input_folder_also_after_a_move_of_their_folders(tmp_path: Path) -> None:
    pooled_workers(settings(tmp_path / "old", GPUS="2"), {})
    (tmp_path / "old").rename(tmp_path / "new")

    pooled_workers(settings(tmp_path / "new", GPUS="2"), {})

    (tmp_path / "new" / "data" / "input" / "image.png").write_bytes(b"png")
    assert (tmp_path / "new" / "data" / "gpu-1" / "input" / "image.png").read_bytes() == b"png"


def test_folder_that_cannot_be_made_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")

    with pytest.raises(PoolError, match=r"data.*COMFYUI_DATA_DIR to folders"):
        pooled_workers(settings(tmp_path, GPUS="2"), {})


def test_workers_run_the_same_provisioned_benchmark(tmp_path: Path) -> None:
    given = settings(tmp_path, GPUS="2")
    _, second = pooled_workers(given, {})
    image = workflows.image()
    given.provisioned_benchmark.write_text(json.dumps(image))

    chosen = benchmark_workflow(Settings.from_env(second.variables))

    assert chosen == ("BENCHMARK_JSON_URL", image)


def test_folder_of_sockets_and_logs_is_of_this_user_alone(tmp_path: Path) -> None:
    pooled_workers(settings(tmp_path, GPUS="2"), {})

    assert (tmp_path / "worker").stat().st_mode & 0o777 == 0o700


def test_report_of_several_workers_has_the_best_state_and_each_worker() -> None:
    failed = WorkerReport(state=State.FAILED, starts=2, failure="no GPU")
    ready = WorkerReport(state=State.READY, starts=1, jobs=1, running_since=5.0)

    report = pool_report([failed, ready])

    assert (report.state, report.starts, report.jobs) == (State.READY, 3, 1)
    assert (report.failure, report.running_since) == ("no GPU", 5.0)
    assert report.workers == (failed, ready)
    assert pool_report([failed, failed]).state is State.FAILED
    assert pool_report([ready]) is ready


class Pair:
    """A host with two environments, whose handlers do what their event says."""

    def __init__(self, folder: Path, extensions: list[list[str]] | None = None) -> None:
        self.states: list[str] = []
        self.gave_up: list[Failure] = []
        self.host = LambdaHost(
            Function(
                handler="tests.runtime.host_handlers.acts",
                environ=os.environ,
                extensions=extensions or [],
            ),
            on_line=lambda _: None,
            on_state=self.states.append,
            on_give_up=self.gave_up.append,
            environments=[{"PLACE": str(number)} for number in range(2)],
            may_overtake=4,
        )
        self._marks = folder

    def run(self, name: str, **action: object) -> str | None:
        """Run an action; why it failed."""
        given = {"name": name, "marks": str(self._marks), **action}
        return self.host.invoke(json.dumps(given).encode(), timeout_s=60).function_error

    def process_of(self, name: str) -> int:
        return int((self._marks / f"{name}.begin").read_text().split()[0])

    def has_begun(self, name: str) -> bool:
        return (self._marks / f"{name}.begin").exists()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path)
    with pair.host:
        assert wait_until(lambda: len(pair.states) == 2)
        yield pair


@pytest.mark.slow
def test_two_environments_run_two_events_at_once(pair: Pair) -> None:
    assert pair.host.concurrency == 2
    with ThreadPoolExecutor(2) as pool:
        # Each one waits until the other has begun.
        results = [pool.submit(pair.run, str(n), together=2) for n in range(2)]
        assert [result.result() for result in results] == [None, None]

    assert pair.process_of("0") != pair.process_of("1")
    assert sorted(text.partition(" ")[2][:8] for text in pair.states) == ["0: ready", "1: ready"]


@pytest.mark.slow
def test_event_goes_to_the_environment_that_has_loaded_its_models(
    pair: Pair, tmp_path: Path
) -> None:
    end = tmp_path / "end"
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(pair.run, "a", models=["a.safetensors"], until=str(end))
        assert wait_until(lambda: pair.has_begun("a"))
        pair.run("b", models=["b.safetensors"])
        end.touch()
        assert busy.result() is None

    for number in range(3):
        assert wait_until(lambda: len(pair.host._queue._free()) == 2)
        pair.run(f"b{number}", models=["b.safetensors"])
        assert wait_until(lambda: len(pair.host._queue._free()) == 2)
        pair.run(f"a{number}", models=["a.safetensors"])

    assert {pair.process_of(f"b{number}") for number in range(3)} == {pair.process_of("b")}
    assert {pair.process_of(f"a{number}") for number in range(3)} == {pair.process_of("a")}


@pytest.mark.slow
def test_dead_client_of_one_environment_does_not_disturb_the_other(
    pair: Pair, tmp_path: Path
) -> None:
    end = tmp_path / "end"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(pair.run, "goes on", until=str(end))
        assert wait_until(lambda: pair.has_begun("goes on"))
        assert pair.run("dies", do="die") == "Runtime.ExitError"
        end.touch()
        assert running.result() is None


UNFIT = """
import os, sys, time
from http.client import HTTPConnection
from runtime.commands.extension import ExtensionsApiClient
api = ExtensionsApiClient(os.environ["AWS_LAMBDA_RUNTIME_API"])
api.register()
if os.environ["PLACE"] in sys.argv[1:]:
    api.exit_error("Worker.Unfit", "the GPU has fallen off the bus")
else:
    api.next_event()
"""


@pytest.mark.slow
def test_unfit_environment_is_retired_alone(tmp_path: Path) -> None:
    script = tmp_path / "extension.py"
    script.write_text(UNFIT)
    pair = Pair(tmp_path, [[sys.executable, str(script), "1"]])
    with pair.host:
        assert wait_until(lambda: any("not used any more" in text for text in pair.states))
        for number in range(3):
            assert pair.run(str(number)) is None
        assert not pair.host.is_closed

    assert "gpu 1: not used any more: the GPU has fallen off the bus" in pair.states
    assert pair.gave_up == []


@pytest.mark.slow
def test_host_gives_up_when_all_its_environments_are_unfit(tmp_path: Path) -> None:
    script = tmp_path / "extension.py"
    script.write_text(UNFIT)
    pair = Pair(tmp_path, [[sys.executable, str(script), "0", "1"]])
    with pair.host:
        assert wait_until(lambda: bool(pair.gave_up))

    assert [failure.error_type for failure in pair.gave_up] == [WORKER_UNFIT]


def worker_report(host: Host) -> dict[str, object]:
    (url,) = {
        line.partition("HTTP API on ")[2].partition(",")[0]
        for line in host.log.splitlines()
        if "HTTP API on" in line
    }
    report: dict[str, object] = requests.get(f"{url}/worker", timeout=30).json()
    return report


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_serve_runs_jobs_on_two_workers_at_once(tmp_path: Path) -> None:
    held = tmp_path / "held"
    lines = tmp_path / "pyworker.log"
    given = {"GPUS": "2", "PYWORKER_LOG": str(lines)}
    with serve(tmp_path, **given) as host, ThreadPoolExecutor(2) as pool:
        assert wait_until(lambda: host.log.count("host: gpu") >= 2, 120), host.log
        waits = [event(workflows.one("TestWait", file=str(held), number=n)) for n in range(2)]
        answers = [pool.submit(host.invoke, request) for request in waits]
        assert wait_until(lambda: worker_report(host)["jobs"] == 2, 60), host.log
        report = worker_report(host)
        held.touch()
        assert [answer.result()["status"] for answer in answers] == ["completed"] * 2

    workers = report["workers"]
    assert isinstance(workers, list)
    assert [worker["jobs"] for worker in workers] == [1, 1]
    assert lines.read_text().split() == ["BACKENDS_READY"] * 2


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_faulted_gpu_is_retired_alone_and_costs_no_job(
    tmp_path: Path, queues: Queues, s3: LocalS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUS", "2")
    fault = tmp_path / "fault"
    fault.write_text(str(tmp_path / "worker" / "gpu-1"))
    ids: list[str] = []
    with machine(tmp_path, "pair", queues, s3) as pair:
        assert wait_until(lambda: pair.log.count(": ready, init") == 2, 120), pair.log
        # The second fault is only met once its ComfyUI has started again.
        while "host: gpu 1: not used any more" not in pair.log:
            ids.append(f"job-{len(ids)}")
            device = node("TestDevice", file=str(fault), number=len(ids))
            request = event(workflows.image() | {"7": device}, request_id=ids[-1])
            queues.send(json.dumps(request))
            time.sleep(0.5)
        assert wait_until(lambda: queues.count() == 0, 200), pair.log
        assert pair.process.poll() is None

    assert {key.partition("/")[0] for key in objects_in(s3) if key.endswith(".png")} == set(ids)
    assert queues.dead_letters() == {}
