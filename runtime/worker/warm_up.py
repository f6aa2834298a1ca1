"""The warm-up: runs WARMUP_WORKFLOW once after each start of ComfyUI, so its models are loaded."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from handler.load_order import models_in_order
from runtime.log import log
from runtime.models.supply import ModelSupply
from runtime.worker.comfyui_process import ComfyUIProcess
from runtime.worker.own_run import OwnRunError, read_workflow, run_workflow


def warm_up(
    path: Path,
    process: ComfyUIProcess,
    models: ModelSupply,
    is_cancelled: Callable[[], bool],
    folders: dict[str, Path],
    within_s: float,
) -> None:
    """Run the workflow at `path` until `is_cancelled`, for `within_s` seconds at most.

    One that fails or takes longer is logged, and no error.
    """
    began = time.monotonic()

    def must_end() -> bool:
        return is_cancelled() or time.monotonic() - began > within_s

    try:
        workflow = read_workflow(path)
        with (
            models.needed_by_a_job(models_in_order(workflow)),
            contextlib.closing(process.api()) as api,
        ):
            has_run = run_workflow(api, workflow, must_end, folders) is not None
    except (OwnRunError, OSError) as error:
        log(f"WARMUP_WORKFLOW: {error}")
        return
    end = "has run" if has_run else "was ended, for a job or because it takes too long,"
    log(f"WARMUP_WORKFLOW: {path.name} {end} after {time.monotonic() - began:.1f} s")
