"""Counts how often models are loaded for jobs that alternate between two models.

`python -m benchmarks.alternating`: a `serve` accepts ten jobs A and ten jobs B in turn, all before
the first one runs, in the order of arrival and with the default of JOBS_MAY_OVERTAKE. The node
cache of ComfyUI keeps the models of the last job, so each change of the model is a load. It needs
the stand-in weights.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from benchmarks.place import wait_for
from handler.settings import PROJECT, Settings

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
    for may_overtake in (0, Settings().jobs_may_overtake):
        with tempfile.TemporaryDirectory(prefix="lc-bench-") as folder:
            loads, order = count_loads(Path(folder), may_overtake)
        print(f"JOBS_MAY_OVERTAKE={may_overtake:<2}  {loads:2} loads  {order}")


def count_loads(folder: Path, may_overtake: int) -> tuple[int, str]:
    """How many loaders ran, and the jobs in the order in which they were queued in ComfyUI."""
    log = folder / "log"
    with _serve(folder, log, may_overtake):
        wait_for(lambda: _api(log) != "")
        url = _api(log)
        names = [f"{name}{number}" for number in range(_JOBS) for name in _LOADERS]
        for name in names:
            request = {"input": {"request_id": name, "workflow_json": workflow(name[0])}}
            requests.post(f"{url}/generate", json=request, timeout=30).raise_for_status()
        for name in names:
            while (status := _status(url, name)) != "completed":
                assert status in ("queued", "processing", "generating"), status
                time.sleep(0.05)
    events = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    loads = sum(
        each["event"] == "node.started" and each["class_type"] in _CLASSES.values()
        for each in events
        if "event" in each
    )
    queued = (each["request_id"][0] for each in events if each.get("event") == "job.queued")
    return loads, "".join(queued)


def workflow(name: str) -> dict[str, Any]:
    """A loader, and a node that shows that there is a model."""
    return {
        "1": {"class_type": _CLASSES[name], "inputs": _LOADERS[name]},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }


@contextmanager
def _serve(folder: Path, log: Path, may_overtake: int) -> Iterator[None]:
    environ = os.environ | {
        "WORKER_DIR": str(folder / "worker"),
        "COMFYUI_DATA_DIR": str(folder / "data"),
        "COMFYUI_PORT": "0",
        "SERVE_PORT": "0",
        "API_PORT": "0",
        "JOBS_MAY_OVERTAKE": str(may_overtake),
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
