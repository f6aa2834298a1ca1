"""Compares the wake of a sleeping worker with a plain start of ComfyUI, in turn.

`python -m benchmarks.wake`: the ratio is the wake from the prewarmed process divided by the plain
start. Both times end when the worker reports that ComfyUI is ready.
"""

import argparse
import os
import subprocess
import sys
import time

from benchmarks.place import own_environment, wait_for
from benchmarks.report import print_table
from handler.settings import PROJECT, Settings
from handler.worker_client import WorkerClient
from handler.worker_protocol import SOCKET_NAME

TARGET = 0.35
# Long enough for the prewarmed process to have imported everything.
_PREPARED_AFTER_S = 8.0


def boot_and_wake() -> tuple[float, float]:
    """Milliseconds of ComfyUI's plain start, and of its wake after a sleep."""
    with own_environment():
        os.environ["IDLE_STOP_AFTER"] = "0.2"
        settings = Settings.from_env(os.environ)
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime", "worker"], cwd=PROJECT, stderr=subprocess.DEVNULL
        )
        worker = WorkerClient(settings)
        started = time.perf_counter()
        try:
            wait_for((settings.worker_dir / SOCKET_NAME).exists)
            worker.begin_wake(())
            worker.wait_ready(None)
            boot_ms = (time.perf_counter() - started) * 1000
            worker.end_job()
            time.sleep(_PREPARED_AFTER_S)
            began = time.perf_counter()
            if worker.begin_wake(()):
                raise SystemExit("nothing was measured, because the worker did not sleep")
            worker.wait_ready(None)
            return boot_ms, (time.perf_counter() - began) * 1000
        finally:
            worker.close()
            process.terminate()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wake")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    measured = [boot_and_wake() for _ in range(parser.parse_args().rounds)]
    boots, wakes = ([pair[side] for pair in measured] for side in (0, 1))
    print_table({"plain start": boots, "wake": wakes}, {"wake": TARGET})


if __name__ == "__main__":
    main()
