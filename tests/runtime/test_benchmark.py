"""The worker's benchmark: its score, when it runs, and what is compared."""

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from handler.comfyui_api import ComfyUIApi
from handler.comfyui_version import ComfyUIVersion
from handler.settings import PROJECT, Settings
from handler.worker_protocol import BenchmarkDone, Refused, RunBenchmark, State
from runtime.commands.benchmark import table
from runtime.worker.benchmark import (
    RESULTS_NAME,
    Machine,
    benchmark_workflow,
    machine_of,
    read_results,
    score_of,
    warning_of,
    workflow_hash,
)
from runtime.worker.own_run import OwnRunError, made_files, read_workflow, run_workflow
from tests import workflows
from tests.processes import wait_until
from tests.runtime.test_worker import RunningWorker, StartWorker, own_folders, start_worker
from tests.worker import BENCHMARK_RESULT, end_job, wake
from tests.workflows import event

__all__ = ["start_worker"]

IMAGE = workflows.image(colour=1)


def write(path: Path, workflow: Any) -> Path:
    path.write_text(json.dumps(workflow))
    return path


def log_of(worker: RunningWorker) -> str:
    return (worker.folder / "worker.log").read_text(errors="replace")


@pytest.mark.parametrize(("seconds", "score"), [(100, 1.0), (50, 2.0), (200, 0.5), (0, 100_000)])
def test_score_is_100_divided_by_the_seconds(seconds: float, score: float) -> None:
    assert score_of(seconds) == score


def test_score_far_from_the_median_of_its_gpu_model_is_named() -> None:
    warning = warning_of(0.7, [0.9, 1.0, 1.1])

    assert warning.startswith("score 0.7 is 30% below 1, the median of 3 earlier results")
    assert "temperature, power limit" in warning
    assert "40% above" in warning_of(1.4, [1.0])


@pytest.mark.parametrize("earlier", [[], [1.0], [1.24, 0.1, 1.24]])
def test_score_within_the_tolerance_is_not(earlier: list[float]) -> None:
    assert warning_of(1.0, earlier) == ""


def test_workflow_is_the_one_that_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "own.json", IMAGE)

    name, workflow = benchmark_workflow(Settings.from_env({"BENCHMARK_JSON_PATH": str(path)}))

    assert (name, workflow) == ("own.json", IMAGE)


def test_without_one_it_is_stable_diffusion_with_the_sizes_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "v1-5-pruned-emaonly-fp16.safetensors").touch()
    variables = {"MODELS_DIR": str(tmp_path), "BENCHMARK_TEST_WIDTH": "64"}

    name, workflow = benchmark_workflow(
        Settings.from_env(variables | {"BENCHMARK_TEST_HEIGHT": "128", "BENCHMARK_TEST_STEPS": "2"})
    )

    assert name == "Stable Diffusion 1.5"
    latent, sampler = (
        next(node["inputs"] for node in workflow.values() if node["class_type"] == kind)
        for kind in ("EmptyLatentImage", "KSampler")
    )
    assert (latent["width"], latent["height"], sampler["steps"]) == (64, 128, 2)


def test_without_its_weights_it_needs_no_model(tmp_path: Path) -> None:
    variables = {"COMFYUI_DIR": str(tmp_path), "STANDIN_MODELS_DIR": str(tmp_path)}

    assert benchmark_workflow(Settings.from_env(variables))[0] == "without a model"


def test_workflow_is_read_from_a_request_too(tmp_path: Path) -> None:
    path = write(tmp_path / "request.json", event(IMAGE))

    assert read_workflow(path) == IMAGE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "no workflow in API format"),
        ('{"nodes": [], "links": []}', "no workflow in API format"),
        ('{"1": {"class_type": "A"}}', "no workflow in API format"),
    ],
)
def test_file_that_is_no_workflow_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)

    with pytest.raises(OwnRunError, match=f"bad.json.*{message}"):
        read_workflow(path)
    with pytest.raises(OwnRunError, match="cannot be read: No such file"):
        read_workflow(tmp_path / "absent.json")


def test_run_removes_only_files_that_it_has_made(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("output", "input", "temp")}
    for folder in folders.values():
        folder.mkdir()
    began = time.time() - 60
    made, made_below = folders["temp"] / "a.png", folders["output"] / "below" / "a.png"
    of_a_job, given, outside = (
        folders["output"] / "old.png",
        folders["input"] / "a.png",
        tmp_path / "a.png",
    )
    made_below.parent.mkdir()
    for path in (made, made_below, of_a_job, given, outside):
        path.touch()
    os.utime(of_a_job, (began - 60, began - 60))
    images = [
        {"filename": "a.png", "subfolder": "", "type": "temp"},
        {"filename": "a.png", "subfolder": "below", "type": "output"},
        {"filename": "old.png", "subfolder": "", "type": "output"},
        {"filename": "a.png", "subfolder": "", "type": "input"},
        {"filename": "a.png", "subfolder": "..", "type": "output"},
        {"filename": "a.png", "subfolder": str(tmp_path), "type": "output"},
        {"filename": None, "subfolder": None, "type": "output"},
        {"filename": "absent.png", "type": "output"},
    ]

    files = made_files({"9": {"images": images, "text": ["a"], "animated": True}}, folders, began)

    assert list(files) == [made, made_below]


class Unreadable(BaseHTTPRequestHandler):
    """A ComfyUI that takes every prompt, and whose history is an error page."""

    def do_GET(self) -> None:
        self._answer(500, b"500 Internal Server Error")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, b"{}")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


def test_result_that_comfyui_cannot_give_is_an_error_of_the_run() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Unreadable) as server, ThreadPoolExecutor(1) as pool:
        pool.submit(server.serve_forever, 0.05)
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            api = ComfyUIApi(url, ComfyUIVersion("0.3.75"))
            with closing(api), pytest.raises(OwnRunError, match="a node's output is no JSON"):
                run_workflow(api, IMAGE, lambda: False, {})
        finally:
            server.shutdown()


def test_same_workflow_has_the_same_hash_whatever_its_order() -> None:
    workflow = workflows.image()

    assert workflow_hash(workflow) == workflow_hash(dict(reversed(workflow.items())))
    assert workflow_hash(workflow) != workflow_hash(workflows.video())


def test_machine_is_what_comfyui_says_of_its_device() -> None:
    stats = {
        "system": {"comfyui_version": "0.3.75", "pytorch_version": "2.14.1+cu130"},
        "devices": [{"name": "cuda:0 NVIDIA L40S : cudaMallocAsync"}],
    }

    machine = machine_of(stats)

    assert (machine.gpu, machine.comfyui, machine.torch) == (
        "NVIDIA L40S",
        "0.3.75",
        "2.14.1+cu130",
    )
    assert machine_of({}) == Machine(gpu="", driver=machine.driver, comfyui="", torch="")


def test_results_of_another_version_count_as_none(tmp_path: Path) -> None:
    write(tmp_path / RESULTS_NAME, [{"score": 1.0}])

    assert read_results(tmp_path / RESULTS_NAME) == []


def test_benchmark_runs_if_a_workflow_is_named_or_it_is_switched_on() -> None:
    assert not Settings().has_benchmark
    assert Settings.from_env({"BENCHMARK": "1"}).has_benchmark
    assert Settings.from_env({"BENCHMARK_JSON_PATH": "/a.json"}).has_benchmark
    assert not Settings.from_env({"BENCHMARK_JSON_PATH": "/a", "BENCHMARK": "0"}).has_benchmark


def test_benchmark_runs_in_a_fleet_unless_it_is_switched_off() -> None:
    fleet = {"ROUTER_URL": "http://router", "PUBLIC_URL": "http://worker"}

    assert Settings.from_env(fleet).has_benchmark
    assert not Settings.from_env(fleet | {"BENCHMARK": "0"}).has_benchmark


def test_table_has_a_line_for_each_result() -> None:
    lines = table([BENCHMARK_RESULT, BENCHMARK_RESULT]).splitlines()

    assert lines[0].split() == [
        *("date", "score", "seconds", "runs", "GPU", "ComfyUI", "PyTorch", "workflow"),
    ]
    assert lines[1] == lines[2]
    assert lines[1].split()[2:] == [
        *("2", "50.00", "1", "NVIDIA", "L40S", "0.3.75", "2.14.1", "wan.json"),
    ]


# A node whose inputs change in each run, so that ComfyUI has nothing in its cache.
QUICK = workflows.one("TestSleep", seconds=0.2, deaf=False, run="__RANDOM_INT__")
ENDLESS = workflows.one("TestSleep", seconds=900.0, deaf=False, run="__RANDOM_INT__")


@pytest.mark.slow
def test_worker_measures_its_score_once_and_keeps_it(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    path = str(write(tmp_path / "quick.json", QUICK))
    first = start_worker(BENCHMARK_JSON_PATH=path)

    assert wait_until(lambda: first.status().state is State.READY, 60)

    log = log_of(first)
    assert "worker starting -> benchmarking" in log
    assert "worker benchmarking -> ready" in log
    score = first.status().score
    assert score
    # Three runs of 0.2 s, on a machine that may be busy.
    assert 5 < score <= 500
    first.process.terminate()
    assert first.process.wait(30) == 0

    second = start_worker(BENCHMARK_JSON_PATH=path)
    assert wait_until(lambda: second.status().state is State.READY, 60)
    assert second.status().score == score
    # The log is that of both.
    assert log_of(second).count("after a run that does not count") == 1


@pytest.mark.slow
def test_benchmark_of_a_worker_that_starts_is_not_run_twice(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker(BENCHMARK_JSON_PATH=str(write(tmp_path / "quick.json", QUICK)))

    answer = worker.ask(RunBenchmark)

    assert isinstance(answer, BenchmarkDone)
    assert read_results(worker.folder / RESULTS_NAME) == [answer.result]
    assert log_of(worker).count("after a run that does not count") == 1


@pytest.mark.slow
def test_job_ends_the_benchmark_and_runs_at_once(start_worker: StartWorker, tmp_path: Path) -> None:
    path = str(write(tmp_path / "endless.json", ENDLESS))
    worker = start_worker(BENCHMARK_JSON_PATH=path)
    assert wait_until(lambda: worker.status().state is State.BENCHMARKING, 60)

    handler = worker.connect()
    assert wake(handler).state is State.READY

    assert "benchmark: ended by a job" in log_of(worker)
    assert worker.status().score is None
    # It is run again, but not at once: the next job may come.
    end_job(handler)
    assert worker.status().state is State.READY
    assert wait_until(lambda: worker.status().state is State.BENCHMARKING, 60)
    handler.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workflow", "reason"),
    [
        (workflows.one("TestRaise", message="no memory"), "node 7 \\(TestRaise\\): no memory"),
        (workflows.one("NoSuchNode"), "ComfyUI refused the workflow: .*NoSuchNode"),
        (workflows.image(colour=2), "nothing in it changes: write"),
    ],
)
def test_benchmark_that_fails_is_refused_with_the_reason_and_the_worker_serves(
    start_worker: StartWorker, tmp_path: Path, workflow: Any, reason: str
) -> None:
    path = str(write(tmp_path / "bad.json", workflow))
    worker = start_worker(BENCHMARK_JSON_PATH=path, BENCHMARK="0")

    answer = worker.ask(RunBenchmark)

    assert isinstance(answer, Refused)
    assert re.search(reason, answer.reason)
    assert worker.status().state is State.READY


@pytest.mark.slow
def test_benchmark_is_refused_while_a_job_runs(start_worker: StartWorker) -> None:
    worker = start_worker()
    handler = worker.connect()
    wake(handler)

    answer = worker.ask(RunBenchmark)

    assert isinstance(answer, Refused)
    assert "1 jobs" in answer.reason
    handler.close()


@pytest.mark.slow
def test_slower_machine_is_warned_about(start_worker: StartWorker, tmp_path: Path) -> None:
    path = write(tmp_path / "quick.json", QUICK)
    worker = start_worker(BENCHMARK_JSON_PATH=str(path), BENCHMARK="0")
    first = worker.ask(RunBenchmark)
    assert isinstance(first, BenchmarkDone)
    # As if equal machines had been twice as fast.
    results = [vars(first.result) | {"score": first.result.score * 2}] * 3
    write(worker.folder / RESULTS_NAME, results)
    worker.process.terminate()
    assert worker.process.wait(30) == 0

    done = subprocess.run(
        [sys.executable, "-m", "runtime", "benchmark"],
        cwd=PROJECT,
        env=os.environ
        | own_folders(worker.folder)
        | {"COMFYUI_PORT": "0", "BENCHMARK_JSON_PATH": str(path), "BENCHMARK": "0"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )

    assert len(done.stdout.splitlines()) == 5
    assert "the median of 3 earlier results of this GPU model" in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_stable_diffusion_runs_on_stand_ins(start_worker: StartWorker) -> None:
    sizes = {"BENCHMARK_TEST_WIDTH": "64", "BENCHMARK_TEST_HEIGHT": "64"}
    worker = start_worker(BENCHMARK_TEST_STEPS="1", BENCHMARK="1", **sizes)

    # It loads 2 GB of zeros and computes in 32 bits.
    assert wait_until(lambda: worker.status().state is State.READY, 240)

    (result,) = read_results(worker.folder / RESULTS_NAME)
    assert (result.workflow, result.gpu) == ("Stable Diffusion 1.5", "cpu")
    assert worker.status().score == result.score


@pytest.mark.slow
def test_warm_up_runs_before_the_worker_is_ready_and_leaves_no_file(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    path = str(write(tmp_path / "warm.json", workflows.image()))
    worker = start_worker(WARMUP_WORKFLOW=path)

    assert wait_until(lambda: worker.status().state is State.READY, 60)

    assert "WARMUP_WORKFLOW: warm.json has run after" in log_of(worker)
    assert not list((worker.folder / "data" / "output").glob("*.png"))


@pytest.mark.slow
def test_warm_up_that_fails_is_logged_and_the_worker_serves(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker(WARMUP_WORKFLOW=str(tmp_path / "absent.json"))

    assert wait_until(lambda: worker.status().state is State.READY, 60)
    assert "WARMUP_WORKFLOW: " in log_of(worker)
    assert "cannot be read: No such file or directory" in log_of(worker)
