"""Measures the effect of reading model files while ComfyUI starts, with 4 GB of cold files.

`python -m benchmarks.prefetch`: a worker starts, and its first job loads two diffusion models of
2 GB each, which were dropped from the page cache before. With prefetch, the handler sends the names
of the files to the worker, as it does for every job. Without prefetch, it does not. The sides take
turns.

- cold: the job is there when the worker starts, as after a sleep. The time runs from the start of
  the worker's process to the end of the job.
- hot: ComfyUI is ready when the job arrives, as after Lambda's Init. The time runs from the arrival
  of the job to its end.

- slow mount: 10 ms are added to each read, as on a network mount, and the reading ahead alone is
  measured: with one reader and with as many as it has. The files are in the page cache.

How to read it: the gain grows with the time that the disk needs for 4 GB, up to the time of
ComfyUI's start. `--folder` puts the files on another disk. The first line of the output shows the
disk's speed.
"""

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.place import own_environment, running_comfyui
from benchmarks.raw_client import RawClient
from benchmarks.report import print_table
from handler.settings import Settings
from handler.worker_client import ReadyWorker, WorkerClient
from handler.workflow import model_names
from runtime.models.prefetch import READERS, Prefetch

_WRITER = Path(__file__).with_name("large_models.py")
_CHUNK_BYTES = 8 * 1024 * 1024
_ADDED_TO_EACH_READ_S = 0.01


def workflow() -> dict[str, Any]:
    """A workflow that loads both models and samples nothing."""
    nodes: dict[str, Any] = {}
    for number, noise in enumerate(("high", "low")):
        loader = {"unet_name": f"large_{noise}.safetensors", "weight_dtype": "default"}
        nodes[f"{number}1"] = {"class_type": "UNETLoader", "inputs": loader}
        shown = {"source": [f"{number}1", 0]}
        nodes[f"{number}2"] = {"class_type": "PreviewAny", "inputs": shown}
    return nodes


def write_models(folder: Path) -> list[Path]:
    settings = Settings.from_env(os.environ)
    subprocess.run(
        [settings.comfyui_interpreter, _WRITER, settings.comfyui_code, folder],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return sorted(folder.rglob("*.safetensors"))


def drop_from_cache(files: list[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(files: list[Path]) -> float:
    """Seconds to read the files from the cold disk."""
    drop_from_cache(files)
    buffer = bytearray(_CHUNK_BYTES)
    began = time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - began


def slow_read_ms(folder: Path, names: Sequence[str], readers: int) -> float:
    """Milliseconds to read the files ahead, where each read takes 10 ms longer."""
    plain_read = os.preadv

    def slow_read(descriptor: int, buffers: Any, offset: int) -> int:
        time.sleep(_ADDED_TO_EACH_READ_S)
        return plain_read(descriptor, buffers, offset)

    os.preadv = slow_read  # type: ignore[assignment]
    try:
        began = time.perf_counter()
        settings = Settings(models_dirs=(folder,), comfyui_dir=folder / "no")
        Prefetch(names, settings, readers=readers).join()
        return (time.perf_counter() - began) * 1000
    finally:
        os.preadv = plain_read


def cold_job(files: list[Path], folder: Path, models: Sequence[str]) -> float:
    """Milliseconds from the start of the worker to the end of the job."""
    with _environment(folder) as settings:
        drop_from_cache(files)
        began = time.perf_counter()
        with running_comfyui(settings, models) as ready:
            return _run(ready, began)


def hot_job(files: list[Path], folder: Path, models: Sequence[str]) -> float:
    """Milliseconds from the arrival of the job to its end, with a ComfyUI that is already ready."""
    with _environment(folder) as settings, running_comfyui(settings) as ready:
        drop_from_cache(files)
        worker = WorkerClient(settings)
        began = time.perf_counter()
        worker.begin_wake(models)
        try:
            return _run(ready, began)
        finally:
            worker.close()


@contextmanager
def _environment(folder: Path) -> Iterator[Settings]:
    with own_environment():
        os.environ["MODELS_DIR"] = str(folder)
        yield Settings.from_env(os.environ)


def _run(ready: ReadyWorker, began: float) -> float:
    client = RawClient(ready.base_url)
    client.run(workflow())
    ms = (time.perf_counter() - began) * 1000
    client.close()
    return ms


_GOALS = {cold_job: 0.5, hot_job: 0.8}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefetch")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--folder", help="where the 4 GB are written (default: the temp folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lc-bench-", dir=args.folder) as name:
        folder = Path(name)
        files = write_models(folder)
        size_gb = sum(path.stat().st_size for path in files) / 1e9
        print(f"{size_gb:.1f} GB, {size_gb / read_all(files):.1f} GB/s from the cold disk")
        names = model_names(workflow())
        sides = {
            side: [slow_read_ms(folder, names, readers)]
            for side, readers in (("one reader", 1), (f"{READERS} readers", READERS))
        }
        print("slow mount:")
        print_table(sides, {f"{READERS} readers": 0.15})
        for job in (cold_job, hot_job):
            sides = {"without prefetch": [], "with prefetch": []}
            for _ in range(args.rounds):
                for side, models in zip(sides, ((), names), strict=True):
                    sides[side].append(job(files, folder, models))
            print(f"{job.__name__}:")
            print_table(sides, {"with prefetch": _GOALS[job]})


if __name__ == "__main__":
    main()
