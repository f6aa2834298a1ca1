"""`lambda-comfyui benchmark`: measures how fast this machine is, and prints the results so far.

The worker runs it, and is started if none runs. What is measured, and when a worker does it by
itself, is in runtime/worker/benchmark.py.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import closing

from events.errors import WorkerUnavailable
from handler.settings import Settings
from handler.worker_client import WorkerClient
from handler.worker_protocol import BenchmarkResult
from runtime.worker.benchmark import RESULTS_NAME, read_results

_TITLES = ("date", "score", "seconds", "runs", "GPU", "ComfyUI", "PyTorch", "workflow")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments: the variables choose the workflow."""


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0: the table is on stdout, a warning on stderr; 1: no result, the reason is on stderr."""
    try:
        with closing(WorkerClient(settings)) as client:
            result = client.run_benchmark()
    except (WorkerUnavailable, OSError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    earlier = read_results(settings.worker_dir / RESULTS_NAME)
    print(table(earlier or [result]))
    if result.warning:
        print(f"warning: {result.warning}", file=sys.stderr)
    return 0


def table(results: Sequence[BenchmarkResult]) -> str:
    """The results as text, one a line, the newest last."""
    rows = [_TITLES, *(_row(result) for result in results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _row(result: BenchmarkResult) -> tuple[str, ...]:
    return (
        time.strftime("%Y-%m-%d %H:%M", time.localtime(result.at)),
        f"{result.score:g}",
        f"{result.seconds:.2f}",
        str(result.runs),
        result.gpu,
        result.comfyui,
        result.torch,
        result.workflow,
    )
