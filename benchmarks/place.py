"""Where a comparison runs: an environment of its own, so that no other ComfyUI is in it."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from handler.settings import PROJECT, Settings
from handler.worker_client import ReadyWorker, WorkerClient
from runtime.worker.control import SOCKET_NAME, lock_folder

_OURS = ("S3_", "WEBHOOK_", "AWS_", "COMFYUI_", "WORKER_", "STANDIN_", "DEADLINE_", "POWERTOOLS_")
_PLACES = ("COMFYUI_HOME", "COMFYUI_DIR", "COMFYUI_PYTHON", "STANDIN_MODELS_DIR")
_PATIENCE_S = 60.0
_colours = count(1)


def small_image() -> dict[str, Any]:
    """EmptyImage -> SaveImage, 64x64, in a new colour each time: ComfyUI can cache nothing."""
    image = {"width": 64, "height": 64, "batch_size": 1, "color": next(_colours)}
    return {
        "1": {"class_type": "EmptyImage", "inputs": image},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "b"}},
    }


def event(workflow: dict[str, Any]) -> dict[str, Any]:
    return {"input": {"workflow_json": workflow}}


@contextmanager
def own_environment() -> Iterator[Settings]:
    """Temporary folders, no S3, no webhook, and of the caller's settings only the installation.

    It is left again, and the folders are removed, when the worker in them (if any) has ended.
    """
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="lc-bench-") as folder:
        for name in before:
            if name.startswith(_OURS) and name not in _PLACES:
                del os.environ[name]
        os.environ |= {
            "WORKER_DIR": f"{folder}/worker",
            "COMFYUI_DATA_DIR": f"{folder}/data",
            "COMFYUI_PORT": "0",
        }
        try:
            settings = Settings.from_env(os.environ)
            yield settings
            wait_for(lambda: _has_no_worker(settings.worker_dir))
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def running_comfyui(settings: Settings, models: Sequence[str] = ()) -> Iterator[ReadyWorker]:
    """A worker as an extension would start it, with its ComfyUI ready; both end with the block.

    The files of `models` are read while it boots.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime", "worker"], cwd=PROJECT, stderr=subprocess.DEVNULL
    )
    worker = WorkerClient(settings)
    try:
        wait_for((settings.worker_dir / SOCKET_NAME).exists)
        worker.begin_wake(models)
        yield worker.wait_ready(None)
    finally:
        worker.close()
        process.terminate()
        process.wait(_PATIENCE_S)


def wait_for(condition: Callable[[], bool], every_s: float = 0.01) -> None:
    give_up = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError("waited in vain")
        time.sleep(every_s)


def check_completed(response: dict[str, Any]) -> None:
    """A run that failed is no measurement."""
    if response["status"] != "completed" or len(response["output"]) != 1:
        raise SystemExit(f"the run failed, nothing was measured: {response['message']}")


def _has_no_worker(folder: Path) -> bool:
    if (lock := lock_folder(folder)) is None:
        return False
    lock.close()
    return True
