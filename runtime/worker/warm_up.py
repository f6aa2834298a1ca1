"""The warm-up: runs WARMUP_WORKFLOW once after each start of ComfyUI, so its models are loaded."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from handler.workflow import model_names
from runtime.log import log
from runtime.models.prefetch import Prefetcher
from runtime.worker.comfyui_process import ComfyUIProcess
from runtime.worker.own_run import OwnRunError, read_workflow, run_workflow


def warm_up(
    path: Path,
    process: ComfyUIProcess,
    prefetcher: Prefetcher,
    is_cancelled: Callable[[], bool],
    folders: dict[str, Path],
) -> None:
    """Run the workflow at `path` until `is_cancelled`. One that fails is logged, and no error."""
    began = time.monotonic()
    try:
        workflow = read_workflow(path)
        prefetcher.begin(model_names(workflow))
        with contextlib.closing(process.api()) as api:
            has_run = run_workflow(api, workflow, is_cancelled, folders) is not None
    except (OwnRunError, OSError) as error:
        log(f"WARMUP_WORKFLOW: {error}")
        return
    end = "has run" if has_run else "was ended by a job"
    log(f"WARMUP_WORKFLOW: {path.name} {end} after {time.monotonic() - began:.1f} s")
