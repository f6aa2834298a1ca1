"""The isolated environment in which a comparison runs, without any other ComfyUI."""

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
from handler.worker_protocol import SOCKET_NAME
from runtime.worker.ownership import lock_folder

_OURS = ("S3_", "WEBHOOK_", "AWS_", "COMFYUI_", "WORKER_", "STANDIN_", "DEADLINE_", "POWERTOOLS_")
_PLACES = ("COMFYUI_HOME", "COMFYUI_DIR", "COMFYUI_PYTHON", "STANDIN_MODELS_DIR")
_TIMEOUT_S = 60.0
_colours = count(1)


def small_image() -> dict[str, Any]:
    """EmptyImage -> SaveImage, 64x64, in a new colour each time: ComfyUI cannot cache it."""
    image = {"width": 64, "height": 64, "batch_size": 1, "color": next(_colours)}
    return {
        "1": {"class_type": "EmptyImage", "inputs": image},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "b"}},
    }


def event(workflow: dict[str, Any]) -> dict[str, Any]:
    return {"input": {"workflow_json": workflow}}


@contextmanager
def own_environment() -> Iterator[Settings]:
    """Settings with temporary folders, without S3 and webhook, with the caller's ComfyUI.

    The context ends, and the folders are removed, when a worker in them has ended.
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
    """A worker as an extension starts it, with its ComfyUI ready. Both end with the context.

    The worker reads the files in `models` while ComfyUI starts.
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
        process.wait(_TIMEOUT_S)


def wait_for(condition: Callable[[], bool], every_s: float = 0.01) -> None:
    give_up = time.monotonic() + _TIMEOUT_S
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"the condition is still false after {_TIMEOUT_S:.0f} s")
        time.sleep(every_s)


def check_completed(response: dict[str, Any]) -> None:
    """Exit unless the run completed, because a failed run is not a measurement."""
    if response["status"] != "completed" or len(response["output"]) != 1:
        raise SystemExit(f"nothing was measured, because the run failed: {response['message']}")


def _has_no_worker(folder: Path) -> bool:
    if (lock := lock_folder(folder)) is None:
        return False
    lock.close()
    return True
