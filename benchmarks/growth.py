"""Measures whether the last of many jobs takes as long as the first, on one ComfyUI.

Runs the same small workflow (EmptyImage -> SaveImage, 64x64, a new colour each time) many times
through the whole handler, with a local S3 server or, with `--no-bucket`, without S3. Prints one
line for each tenth of the jobs: the time per job, the entries of the output folder, and the memory
of ComfyUI's process.

How to read it: no column may grow. SaveImage lists the folder into which it writes, so each entry
of the output folder costs time; ComfyUI keeps the workflow of each job in its history, so each
entry there costs memory. Without a bucket the results stay, so the entries grow.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median

from benchmarks.place import check_completed, event, own_environment, running_comfyui, small_image
from benchmarks.report import p90
from handler.app import lambda_handler
from handler.worker_connection import WorkerConnection
from handler.worker_protocol import SOCKET_NAME, GetState, Status
from runtime.local_s3 import local_s3

_BLOCKS = 10
_ANSWER_WITHIN_S = 10.0


def run_job(ballast: str) -> float:
    request = event(small_image())
    request["input"]["workflow_json"]["1"]["_meta"] = {"title": ballast}
    began = time.perf_counter()
    response = lambda_handler(request, None)
    ms = (time.perf_counter() - began) * 1000
    check_completed(response)
    return ms


def comfyui_pid(worker: Path) -> int:
    """The process id of the ComfyUI of the worker behind this socket."""
    with closing(WorkerConnection(worker, _ANSWER_WITHIN_S)) as connection:
        connection.send(GetState(id=1), _ANSWER_WITHIN_S)
        answer = connection.receive(1, _ANSWER_WITHIN_S)
    assert isinstance(answer, Status)
    assert answer.worker.comfyui_pid is not None
    return answer.worker.comfyui_pid


def memory_mb(pid: int) -> float:
    """The resident memory of a process: proc(5), VmRSS."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


@contextmanager
def bucket_of_its_own(*, is_wanted: bool) -> Iterator[None]:
    """The settings of a bucket on a local server in the environment."""
    if not is_wanted:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="lc-s3-") as folder, local_s3(Path(folder)) as server:
        os.environ |= server.environ
        yield


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth")
    parser.add_argument("--jobs", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--no-bucket", action="store_true", help="keep the results on this disk")
    parser.add_argument(
        "--graph-kb", type=int, default=0, help="text added to each workflow (default: none)"
    )
    args = parser.parse_args()
    # The logger keeps sys.stdout, so the file descriptor is redirected instead.
    terminal = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    per_block = args.jobs // _BLOCKS
    with (
        own_environment() as settings,
        bucket_of_its_own(is_wanted=not args.no_bucket),
        running_comfyui(settings) as comfyui,
    ):
        pid = comfyui_pid(settings.worker_dir / SOCKET_NAME)
        print(
            f"{'jobs':>7}  {'p50 ms':>8}  {'p90 ms':>8}  {'names':>7}  {'RSS MB':>7}", file=terminal
        )
        for block in range(_BLOCKS):
            times = [run_job("x" * 1000 * args.graph_kb) for _ in range(per_block)]
            names = len(os.listdir(comfyui.folders["output"]))
            line = f"{(block + 1) * per_block:7}  {median(times):8.1f}  {p90(times):8.1f}"
            print(f"{line}  {names:7}  {memory_mb(pid):7.0f}", file=terminal, flush=True)


if __name__ == "__main__":
    main()
