"""What a history entry says went wrong while the graph ran, as one of our errors.

What validation refuses before the run is explained in rejection.py. The messages of an entry:
execution.py of ComfyUI, `PromptExecutor.handle_execution_error`.
"""

from typing import Any

from events.errors import (
    Cancelled,
    ExecutionFailed,
    InvalidRequest,
    JobError,
    ModelUnavailable,
    OutOfMemory,
    WorkerUnavailable,
)
from handler.comfyui_api import HistoryEntry
from handler.machine_faults import (
    Cause,
    causes_in,
    is_machine_fault,
    is_missing_model,
    is_out_of_memory,
    is_unknown_model,
)

MAX_EXCEPTION_MESSAGE = 2000
# A run ends with one of these: `PromptExecutor.execute_async`.
_LAST_MESSAGES = frozenset({"execution_success", "execution_error", "execution_interrupted"})


def failure_in(entry: HistoryEntry) -> JobError | None:
    """What the run failed of; None when it succeeded.

    WorkerUnavailable: the failure is the machine's, and the worker must be tested. Otherwise
    Cancelled, InvalidRequest, ModelUnavailable, OutOfMemory or ExecutionFailed.

    Only the entry decides, and in it the last message: ComfyUI's `completed` is true also for a run
    that ended at a cycle in an expanded subgraph. An `execution_error` before the last message, or
    one that came over the WebSocket alone, can belong to a run that went on.
    """
    status = entry["status"]
    if not status:
        return ExecutionFailed(
            "ComfyUI's history entry has no status, so it does not say how the run ended;"
            " a custom node may have replaced part of ComfyUI's queue"
        )
    name, data = _last_message(status)
    if name == "execution_interrupted":
        return Cancelled(
            f"the run was interrupted at node {data['node_id']} ({data['node_type']})",
            node_id=str(data["node_id"]),
        )
    if name == "execution_error":
        return _node_failure(data)
    if status.get("completed") and status.get("status_str") == "success":
        return None
    return ExecutionFailed("ComfyUI reports an error without a message that names it")


def _last_message(status: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    for name, data in reversed(status.get("messages") or ()):
        if name in _LAST_MESSAGES:
            return name, data
    return "", {}


def _node_failure(data: dict[str, Any]) -> JobError:
    causes = causes_in(data)
    node_id = str(data["node_id"])
    node = f"node {node_id} ({data['node_type']})"
    text = _shortened(" caused by ".join(map(str, causes[:1] + _faults_below(causes))))
    if unknown := next(filter(is_unknown_model, causes), None):
        return InvalidRequest(f"{node}: {_shortened(unknown.message)}", node_id=node_id)
    if missing := next(filter(is_missing_model, causes), None):
        return ModelUnavailable(f"{node}: {_shortened(missing.message)}", node_id=node_id)
    if any(map(is_machine_fault, causes)):
        return WorkerUnavailable(f"{node} met a fault of the machine: {text}", node_id=node_id)
    if problem := data.get("self_test"):
        return WorkerUnavailable(
            f"{node} failed, and ComfyUI's self-test after it found a problem of the machine:"
            f" {problem}. The node's error: {text}",
            node_id=node_id,
        )
    if any(map(is_out_of_memory, causes)):
        return OutOfMemory(f"{node} ran out of memory: {text}", node_id=node_id)
    return ExecutionFailed(f"{node} failed: {text}", node_id=node_id)


def _faults_below(causes: list[Cause]) -> list[Cause]:
    """The causes below the outermost exception that decide what the failure is."""
    return [each for each in causes[1:] if is_machine_fault(each) or is_out_of_memory(each)]


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_EXCEPTION_MESSAGE else f"{text[: MAX_EXCEPTION_MESSAGE - 3]}..."
