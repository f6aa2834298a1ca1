"""What a history entry says went wrong while the graph ran, as one of our errors.

What validation refuses before the run is explained in rejection.py. The messages of an entry:
execution.py of ComfyUI, `PromptExecutor.handle_execution_error`.
"""

from typing import Any

from events.errors import Cancelled, ExecutionFailed, JobError, OutOfMemory
from handler.comfyui_api import HistoryEntry

MAX_EXCEPTION_MESSAGE = 2000
# A run ends with one of these: `PromptExecutor.execute_async`.
_LAST_MESSAGES = frozenset({"execution_success", "execution_error", "execution_interrupted"})
# torch raises OutOfMemoryError on a GPU. On a CPU its allocator raises a RuntimeError with one of
# these texts.
_OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "alloc_cpu",
)


def failure_in(entry: HistoryEntry) -> JobError | None:
    """Cancelled, OutOfMemory or ExecutionFailed; None when the run succeeded.

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
    message, exception_type = str(data["exception_message"]).strip(), str(data["exception_type"])
    if len(message) > MAX_EXCEPTION_MESSAGE:
        message = message[: MAX_EXCEPTION_MESSAGE - 3] + "..."
    node_id = str(data["node_id"])
    node = f"node {node_id} ({data['node_type']})"
    cause = f"{exception_type}: {message}" if message else exception_type
    if _is_out_of_memory(exception_type, message):
        return OutOfMemory(f"{node} ran out of memory: {cause}", node_id=node_id)
    return ExecutionFailed(f"{node} failed: {cause}", node_id=node_id)


def _is_out_of_memory(exception_type: str, message: str) -> bool:
    return "OutOfMemory" in exception_type or any(
        text in message.lower() for text in _OUT_OF_MEMORY_TEXTS
    )
