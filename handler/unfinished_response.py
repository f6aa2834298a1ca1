"""The documented response of a job that has not ended: in the HTTP API, and in early webhook calls.

docs/api.md describes it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from handler.clock import STAGES
from handler.jobs.record import Progress

# By the documented words for a job that has not ended.
MESSAGES = {
    "queued": "The job waits to be run.",
    "processing": "The job is being prepared.",
    "generating": "The workflow runs.",
}


def unfinished_response(
    request_id: str,
    status: str,
    *,
    output: Iterable[Mapping[str, Any]],
    timings: Mapping[str, float],
    progress: Progress,
) -> dict[str, Any]:
    """`status` is one of MESSAGES; `timings` has the stages that are known, in milliseconds."""
    shown = asdict(progress)
    # The status says it.
    del shown["is_generating"]
    return {
        "id": request_id,
        "status": status,
        "message": MESSAGES[status],
        "comfyui_response": {},
        "output": list(output),
        "timings": {**dict.fromkeys(STAGES, 0.0), **timings},
        "progress": shown,
    }
