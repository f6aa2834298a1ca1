"""The documented response (events/contract/response.schema.json), built from a job's result.

The items of `output` are made in artifacts.py; outputs.py adds the state of their upload. How a
response is kept within its size is decided in events/contract/response_size.py.
"""

import base64
from dataclasses import dataclass, field
from typing import Any

from events.contract.response_size import MAX_RESPONSE_BYTES, encoded_size, fit_reply
from events.errors import Cancelled, JobError, UploadFailed
from events.job import Caller
from handler.artifacts import Artifact
from handler.clock import Timings
from handler.execution import Execution
from handler.outputs import JobOutputs

COMPLETED = "Processing complete."
# The key, quotes and comma around one file's base64.
_BYTES_AROUND_BASE64 = 64


@dataclass(slots=True)
class JobResult:
    """What a job has come to. Each stage adds its part; a response can be built after any of them.

    `outputs` is there from the moment that ComfyUI is ready, `execution` (the last prompt of the
    job) from the moment before it is submitted.
    """

    caller: Caller
    timings: Timings = field(default_factory=Timings)
    error: JobError | None = None
    warnings: list[str] = field(default_factory=list)
    return_base64: bool = False
    outputs: JobOutputs | None = None
    execution: Execution | None = None


def build_response(result: JobResult) -> dict[str, Any]:
    """The response to the result as it is now; at most 6 MiB of JSON."""
    # The workflow has run: a file that S3 did not take is reported beside it, not instead of it.
    failure = None if isinstance(result.error, UploadFailed) else result.error
    response: dict[str, Any] = {
        "id": result.caller.request_id,
        "status": _status(failure),
        "message": failure.message if failure else COMPLETED,
        "comfyui_response": _comfyui_response(result.execution, failure),
        "output": _output(result.outputs, failure),
        "timings": result.timings.as_dict(),
    }
    if result.error:
        response["error"] = result.error.as_dict()
    if result.warnings:
        response["warnings"] = list(result.warnings)
    response = fit_reply(response)
    if result.return_base64 and result.outputs:
        _add_base64(response, result.outputs.artifacts)
    return response


def _output(outputs: JobOutputs | None, failure: JobError | None) -> list[dict[str, Any]]:
    items = outputs.as_dicts() if outputs else []
    return [item | {"from_failed_run": True} for item in items] if failure else items


def _status(failure: JobError | None) -> str:
    if failure is None:
        return "completed"
    return "cancelled" if isinstance(failure, Cancelled) else "failed"


def _comfyui_response(execution: Execution | None, failure: JobError | None) -> dict[str, Any]:
    if execution is None:
        return {}
    entry = execution.history_entry
    history = {execution.prompt_id: entry} if entry else {}
    return {**history, "execution_details": execution.details(failure)}


def _add_base64(response: dict[str, Any], artifacts: list[Artifact]) -> None:
    free_bytes = MAX_RESPONSE_BYTES - encoded_size(response)
    # `fit_reply` may have left out the items, never some of them.
    for artifact, item in zip(artifacts, response["output"], strict=False):
        if artifact.problem:
            continue
        try:
            free_bytes -= artifact.local_path.stat().st_size * 4 // 3 + _BYTES_AROUND_BASE64
            content = artifact.local_path.read_bytes() if free_bytes >= 0 else b""
        except OSError as error:
            _warn(response, f"{artifact.filename}: {error.strerror}")
            continue
        if free_bytes < 0:
            _warn(
                response,
                "the files are larger than a response may be (6 MiB),"
                f" {artifact.filename} and those after it are left out; read them by url",
            )
            return
        item["base64"] = base64.b64encode(content).decode()


def _warn(response: dict[str, Any], text: str) -> None:
    response.setdefault("warnings", []).append(f"return_outputs_as_base64: {text}")
