"""Counts how often models are loaded for jobs that alternate between two models.

`python -m benchmarks.alternating`: a `serve` accepts ten jobs A and ten jobs B in turn, each of
which names a model of its own. It needs the stand-in weights.

- All are accepted before the first one runs, in the order of arrival and with the default of
  JOBS_MAY_OVERTAKE, on the classic node cache: each change of the model is a load.
- Each is accepted when the one before has ended, on the classic node cache and with the default.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from benchmarks.place import wait_for
from handler.settings import PROJECT, Settings

CLASSIC = "--cache-classic"
_JOBS = 10
_LOADERS = {
    "a": {"vae_name": "wan_2.1_vae.safetensors"},
    "b": {
        "unet_name": "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors",
        "weight_dtype": "default",
    },
}
_CLASSES = {"a": "VAELoader", "b": "UNETLoader"}


def main() -> None:
    print("accepted together, --cache-classic")
    for may_overtake in (0, Settings().jobs_may_overtake):
        run = _in_a_folder(COMFYUI_ARGS=CLASSIC, JOBS_MAY_OVERTAKE=str(may_overtake))
        print(f"JOBS_MAY_OVERTAKE={may_overtake:<2}  {run.line}")
    print("accepted one after another")
    for arguments in (CLASSIC, ""):
        run = _in_a_folder(is_one_after_another=True, COMFYUI_ARGS=arguments)
        print(f"{arguments or 'the default':<15}  {run.line}")


@dataclass(frozen=True, slots=True)
class Run:
    """The loaders that ran, by job A or B, and the jobs in the order of ComfyUI's queue."""

    loads: tuple[str, ...]
    order: str

    @property
    def loaded_bytes(self) -> int:
        """The sizes of the loaded files."""
        return sum(_model_file(name).stat().st_size for name in self.loads)

    @property
    def line(self) -> str:
        return f"{len(self.loads):2} loads  {self.loaded_bytes:>10,} bytes  {self.order}"


def _in_a_folder(*, is_one_after_another: bool = False, **variables: str) -> Run:
    with tempfile.TemporaryDirectory(prefix="lc-bench-") as folder:
        return run_jobs(Path(folder), is_one_after_another=is_one_after_another, **variables)


def run_jobs(folder: Path, *, is_one_after_another: bool, **variables: str) -> Run:
    """Ten jobs A and ten jobs B in turn, with these variables in the environment of the host."""
    log = folder / "log"
    with _serve(folder, log, variables):
        wait_for(lambda: _api(log) != "")
        url = _api(log)
        names = [f"{name}{number}" for number in range(_JOBS) for name in _LOADERS]
        for name in names:
            request = {"input": {"request_id": name, "workflow_json": workflow(name[0])}}
            requests.post(f"{url}/generate", json=request, timeout=30).raise_for_status()
            if is_one_after_another:
                _wait(url, name)
        for name in names:
            _wait(url, name)
    events = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    started = [each for each in events if each.get("event") == "node.started"]
    loads = [each for each in started if each["class_type"] in _CLASSES.values()]
    queued = [each for each in events if each.get("event") == "job.queued"]
    return Run(
        tuple(each["request_id"][0] for each in loads),
        "".join(each["request_id"][0] for each in queued),
    )


def _wait(url: str, name: str) -> None:
    while (status := _status(url, name)) != "completed":
        assert status in ("queued", "processing", "generating"), status
        time.sleep(0.05)


def _model_file(name: str) -> Path:
    file_name = next(value for key, value in _LOADERS[name].items() if key.endswith("_name"))
    return next(Settings.from_env(os.environ).standins.rglob(file_name))


def workflow(name: str) -> dict[str, Any]:
    """A loader, and a node that shows that there is a model."""
    return {
        "1": {"class_type": _CLASSES[name], "inputs": _LOADERS[name]},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }


@contextmanager
def _serve(folder: Path, log: Path, variables: Mapping[str, str]) -> Iterator[None]:
    environ = os.environ | {
        "WORKER_DIR": str(folder / "worker"),
        "COMFYUI_DATA_DIR": str(folder / "data"),
        "COMFYUI_PORT": "0",
        "SERVE_PORT": "0",
        "API_PORT": "0",
        **variables,
    }
    command = [sys.executable, "-m", "runtime", "serve"]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=PROJECT, env=environ, stdout=output, stderr=output)
        try:
            yield
        finally:
            process.terminate()
            process.wait(40)


def _api(log: Path) -> str:
    found = re.search(r"HTTP API on (\S+),", log.read_text())
    return found[1] if found else ""


def _status(url: str, name: str) -> str:
    status: str = requests.get(f"{url}/result/{name}", timeout=30).json()["status"]
    return status


if __name__ == "__main__":
    main()
