"""Runs a workflow of the worker's own in its ComfyUI: a benchmark or a warm-up.

It is no job: nothing is stored, and the files that it has made are removed. A job that arrives ends
it.
"""

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handler.workflow import fill_random_ints
from runtime.errors import LambdaComfyUIError
from runtime.worker.housekeeping import CLOCK_STEP_S, MADE_BY_COMFYUI

if TYPE_CHECKING:
    from handler.comfyui_api import ComfyUIApi, HistoryEntry

_POLL_S = 0.05
_CALL_WITHIN_S = 10.0
_STOP_WITHIN_S = 4.0


class OwnRunError(LambdaComfyUIError):
    """The workflow cannot be read, was refused by ComfyUI, or has failed; the message says why."""


def read_workflow(path: Path) -> dict[str, Any]:
    """A workflow in API format; also a request that holds one. Raises OwnRunError."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise OwnRunError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise OwnRunError(f"{path} is not JSON: {error}") from error
    request = content.get("input", content) if isinstance(content, dict) else content
    workflow = request.get("workflow_json", request) if isinstance(request, dict) else request
    if not isinstance(workflow, dict) or not all(
        isinstance(node, dict) and "class_type" in node and isinstance(node.get("inputs"), dict)
        for node in workflow.values()
    ):
        raise OwnRunError(
            f"{path} is no workflow in API format: export it with Workflow > Export (API)"
        )
    return workflow


def run_workflow(
    api: "ComfyUIApi",
    workflow: dict[str, Any],
    is_cancelled: Callable[[], bool],
    folders: dict[str, Path],
) -> float | None:
    """Run it with new random numbers; its seconds by ComfyUI's own clock, None if cancelled.

    `folders` are those of ComfyUI's files, by output type. Raises OwnRunError, ComfyUIGone and
    ComfyUITimeout.
    """
    prompt_id, began = str(uuid.uuid4()), time.time()
    body = {"prompt": fill_random_ints(workflow), "prompt_id": prompt_id, "client_id": prompt_id}
    status, answer = api.submit(body, _CALL_WITHIN_S)
    if status != 200:
        raise OwnRunError(f"ComfyUI refused the workflow: {_refusal(answer, workflow, status)}")
    while (entry := _result(api, prompt_id)) is None:
        if is_cancelled():
            api.interrupt(prompt_id, _STOP_WITHIN_S)
            return None
        time.sleep(_POLL_S)
    for path in made_files(entry["outputs"], folders, began - CLOCK_STEP_S):
        with contextlib.suppress(OSError):
            path.unlink()
    api.forget([prompt_id])
    if is_cancelled():
        return None
    return _seconds(entry)


def made_files(outputs: dict[str, Any], folders: dict[str, Path], since: float) -> Iterator[Path]:
    """The files that the outputs of a run name, if they were written `since` (Unix time).

    A node may also name a file that was there before: an input, or an output of a job.
    """
    for item in _items(outputs):
        name, kind = item.get("filename"), item.get("type")
        if not isinstance(name, str) or kind not in MADE_BY_COMFYUI:
            continue
        folder = folders[kind].resolve()
        # ValueError: a NUL in the name.
        with contextlib.suppress(OSError, ValueError):
            path = (folder / str(item.get("subfolder") or "") / name).resolve()
            if path.is_relative_to(folder) and path.stat().st_mtime >= since:
                yield path


def _items(outputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for output in outputs.values():
        for items in output.values():
            for item in items if isinstance(items, list) else ():
                if isinstance(item, dict):
                    yield item


def _result(api: "ComfyUIApi", prompt_id: str) -> "HistoryEntry | None":
    try:
        return api.history(prompt_id, _CALL_WITHIN_S)
    except ValueError as error:
        raise OwnRunError(
            "ComfyUI cannot give the result of the run: a node's output is no JSON"
        ) from error


def _refusal(answer: dict[str, Any], workflow: dict[str, Any], status: int) -> str:
    from handler.rejection import explain_rejection  # noqa: PLC0415 - after a failure alone

    return str(explain_rejection(answer, workflow, status, lambda _: {}))


def _seconds(entry: "HistoryEntry") -> float:
    """From the messages of the run; their times are milliseconds of Unix time."""
    messages = dict(entry["status"].get("messages", ()))
    if entry["status"].get("status_str") != "success":
        error = messages.get("execution_error", {})
        reason = error.get("exception_message", "it was interrupted").strip()
        raise OwnRunError(f"node {error.get('node_id')} ({error.get('node_type')}): {reason}")
    cached = set(messages.get("execution_cached", {}).get("nodes", ()))
    if entry["outputs"] and entry["outputs"].keys() <= cached:
        raise OwnRunError(
            'ComfyUI did not run it, because nothing in it changes: write "__RANDOM_INT__" as the'
            " seed of its sampler"
        )
    ended, began = (
        messages[name]["timestamp"] for name in ("execution_success", "execution_start")
    )
    return float(ended - began) / 1000
