"""How fast this machine is: score = 100 / seconds of the benchmark's workflow.

100 s is 1.0, 50 s is 2.0. The result is kept in WORKER_DIR, and the benchmark runs again when the
GPU, the driver, ComfyUI, PyTorch or the workflow is another one. When it runs is decided in
runtime/worker/supervisor.py.
"""

import contextlib
import hashlib
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handler.model_folders import find_models, model_folders
from handler.settings import Settings
from handler.worker_protocol import BenchmarkResult
from handler.workflow import model_names
from runtime.installation.driver import installed_driver
from runtime.log import log
from runtime.models.parts import is_placeholder
from runtime.score_deviation import deviation
from runtime.worker.own_run import OwnRunError, read_workflow, run_workflow

if TYPE_CHECKING:
    from handler.comfyui_api import ComfyUIApi

RESULTS_NAME = "benchmark.json"
WORK = 100.0
_WORKFLOWS = Path(__file__).with_name("benchmark_workflows")
_MOST_RUNS = 3
# One more run is only made while all of them together are shorter.
_ENOUGH_S = 60.0
_KEPT = 20
_STATS_WITHIN_S = 10.0
_QUIET_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a score depends on beside the workflow."""

    gpu: str
    driver: str
    comfyui: str
    torch: str


class Benchmark:
    """The results of this worker's benchmarks, and the next one. Its owner's lock guards it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = settings.worker_dir / RESULTS_NAME
        self._results = read_results(self._path)
        # Why the last one failed; '' if none did.
        self.failure = ""
        self.is_requested, self.is_forced = settings.has_benchmark, False
        # How many have ended.
        self.count = 0

    @property
    def last(self) -> BenchmarkResult | None:
        """The last result; None before the first one."""
        return self._results[-1] if self._results else None

    def run(
        self, api: "ComfyUIApi", folders: dict[str, Path], is_cancelled: Callable[[], bool]
    ) -> None:
        """Run it, unless the last result is of the same machine and workflow.

        One that `is_cancelled` ends stays requested; one that fails is logged and does not.
        """
        try:
            has_ended = self._run(api, folders, is_cancelled)
            self.failure = ""
        except (OwnRunError, OSError) as error:
            log(f"benchmark: {error}")
            self.failure, has_ended = str(error), True
        if has_ended:
            self.is_requested = self.is_forced = False
            self.count += 1

    def due_in_s(self, jobs: int, idle_s: float) -> float:
        """Seconds until it may run beside these jobs; infinite if none may, or none is requested.

        One that a job has ended waits for a pause between jobs.
        """
        if not self.is_requested or jobs:
            return math.inf
        return 0.0 if self.is_forced else _QUIET_S - idle_s

    def force(self) -> None:
        """Request a run although the last result may still hold."""
        self.is_requested, self.is_forced = True, True

    def _run(
        self, api: "ComfyUIApi", folders: dict[str, Path], is_cancelled: Callable[[], bool]
    ) -> bool:
        name, workflow = benchmark_workflow(self._settings)
        machine = machine_of(api.system_stats(_STATS_WITHIN_S))
        digest = workflow_hash(workflow)
        if not self.is_forced and self._holds(machine, digest):
            return True
        log(f"benchmark: {name}, after a run that does not count")
        seconds: list[float] = []
        for number in range(1 + _MOST_RUNS):
            took_s = run_workflow(api, workflow, is_cancelled, folders)
            if took_s is None:
                log("benchmark: ended by a job, and run again when the worker is idle")
                return False
            if number:
                seconds.append(took_s)
            if sum(seconds) >= _ENOUGH_S:
                break
        self._note(name, digest, machine, seconds)
        return True

    def _holds(self, machine: Machine, digest: str) -> bool:
        last = self.last
        return last is not None and (
            Machine(gpu=last.gpu, driver=last.driver, comfyui=last.comfyui, torch=last.torch),
            last.workflow_hash,
        ) == (machine, digest)

    def _note(self, name: str, digest: str, machine: Machine, seconds: Sequence[float]) -> None:
        median_s = statistics.median(seconds)
        score = score_of(median_s)
        earlier = [
            result.score
            for result in self._results
            if (result.gpu, result.workflow_hash) == (machine.gpu, digest)
        ]
        result = BenchmarkResult(
            at=round(time.time(), 3),
            score=score,
            seconds=round(median_s, 3),
            runs=len(seconds),
            workflow=name,
            workflow_hash=digest,
            warning=warning_of(score, earlier),
            **asdict(machine),
        )
        self._results = [*self._results, result][-_KEPT:]
        log(f"benchmark: score {score:g}, {median_s:.2f} s, {machine.gpu}, {name}")
        if result.warning:
            log(f"benchmark: warning: {result.warning}")
        if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
            _emit_metric(score)
        # If it cannot be written, the next worker runs it again.
        with contextlib.suppress(OSError):
            _write_results(self._path, self._results)


def _emit_metric(score: float) -> None:
    """A CloudWatch metric as a log line (embedded metric format)."""
    from aws_lambda_powertools.metrics import MetricUnit, single_metric  # noqa: PLC0415

    with single_metric(
        name="WorkerScore", unit=MetricUnit.NoUnit, value=score, namespace="lambda-comfyui"
    ) as metric:
        metric.add_dimension(name="service", value="lambda-comfyui")


def score_of(seconds: float) -> float:
    """The score of a benchmark that took so long, with four significant digits."""
    return float(f"{WORK / max(seconds, 0.001):.4g}")


def warning_of(score: float, earlier: Sequence[float]) -> str:
    """What is wrong with a score, by those of the same GPU model and workflow; '' if nothing."""
    if not earlier:
        return ""
    of = f"the median of {len(earlier)} earlier results of this GPU model"
    return deviation(score, statistics.median(earlier), of)


def benchmark_workflow(settings: Settings) -> tuple[str, dict[str, Any]]:
    """The name and the workflow: BENCHMARK_JSON_PATH, else the one that `provision` has fetched.

    Without both, Stable Diffusion 1.5 if its weights are there, else a workflow that needs no
    model. Raises OwnRunError.
    """
    if path := settings.benchmark_json_path:
        return path.name, read_workflow(path)
    if settings.provisioned_benchmark.is_file():
        return "BENCHMARK_JSON_URL", read_workflow(settings.provisioned_benchmark)
    sd15 = read_workflow(_WORKFLOWS / "sd15.json")
    found = find_models(model_names(sd15), model_folders(settings))
    # The score must not be that of the download.
    if found and not any(map(is_placeholder, found)):
        sd15["4"]["inputs"] |= {
            "width": settings.benchmark_test_width,
            "height": settings.benchmark_test_height,
        }
        sd15["5"]["inputs"]["steps"] = settings.benchmark_test_steps
        return "Stable Diffusion 1.5", sd15
    return "without a model", read_workflow(_WORKFLOWS / "no_model.json")


def workflow_hash(workflow: dict[str, Any]) -> str:
    """Which workflow it is, before its random numbers are drawn."""
    text = json.dumps(workflow, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest()[:16]


def machine_of(stats: dict[str, Any]) -> Machine:
    """What ComfyUI's `/system_stats` (its server.py) and the NVIDIA driver say."""
    system = stats.get("system", {})
    devices = stats.get("devices") or [{}]
    # "cuda:0 NVIDIA L40S : cudaMallocAsync"
    name = str(devices[0].get("name", "")).removeprefix("cuda:0 ").partition(" : ")[0]
    return Machine(
        gpu=name,
        driver=installed_driver() or "",
        comfyui=str(system.get("comfyui_version", "")),
        torch=str(system.get("pytorch_version", "")),
    )


def read_results(path: Path) -> list[BenchmarkResult]:
    """The results that a worker has kept at `path`, the newest last; empty if there are none."""
    # A file of another version of this project counts as none.
    with contextlib.suppress(OSError, ValueError, TypeError):
        return [BenchmarkResult(**entry) for entry in json.loads(path.read_bytes())]
    return []


def _write_results(path: Path, results: Sequence[BenchmarkResult]) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps([asdict(result) for result in results], indent=1))
    partial.rename(path)
