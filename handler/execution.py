"""What ComfyUI's messages say about one run: the order of nodes, progress, outputs, the end.

The messages and their order: execution.py and server.py of ComfyUI.
"""

import math
import time
from collections.abc import Callable
from typing import Any

from events.errors import Cancelled, ExecutionFailed, JobError, OutOfMemory
from handler.comfyui import Message
from handler.comfyui_api import HistoryEntry
from handler.emit import emit
from handler.job_events import NodeProgress, NodeStarted

PROGRESS_LOG_EVERY_S = 0.5
MAX_SAID = 2000
# torch raises OutOfMemoryError on a GPU; on a CPU the allocator's RuntimeError says it in words.
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_cpu")

_TOLD_OF_A_RUN = {"execution_start", "execution_cached", "executing", "progress", "executed"}

OnOutput = Callable[[str, dict[str, Any]], None]


class Execution:
    """The record of one run. Give every message to `observe`, then the history entry to `judge`."""

    def __init__(self, prompt_id: str, workflow: dict[str, Any], on_output: OnOutput) -> None:
        self.prompt_id = prompt_id
        self.began = False
        self.queue_ms = 0.0
        self.nodes_executed: list[str] = []
        self.progress_updates: list[dict[str, float]] = []
        self._workflow = workflow
        self._on_output = on_output
        self._submitted = time.monotonic()
        self._began_at = self._submitted
        self._cached = 0
        self._logged_at = 0.0

    def observe(self, message: Message) -> None:
        """Take in one message of this prompt."""
        data, kind = message["data"], message["type"]
        # The first message may have come while nobody listened.
        if kind in _TOLD_OF_A_RUN and not self.began:
            self._begin()
        match kind:
            case "execution_cached":
                self._cached = len(data["nodes"])
            case "executing" if data["node"] is not None:
                self._note_node(str(data.get("display_node") or data["node"]))
            case "progress":
                self._note_progress(data)
            case "executed" if data.get("output"):
                self._on_output(str(data.get("display_node") or data["node"]), data["output"])

    def details(self, error: JobError | None) -> dict[str, Any]:
        """`execution_details` of the response."""
        return {
            "prompt_id": self.prompt_id,
            "nodes_executed": self.nodes_executed,
            "progress_updates": self.progress_updates,
            "completed": error is None,
            "error": error.message if error else None,
        }

    def _begin(self) -> None:
        self.began = True
        self._began_at = time.monotonic()
        self.queue_ms = (self._began_at - self._submitted) * 1000

    def _note_node(self, node_id: str) -> None:
        if node_id in self.nodes_executed:
            return
        self.nodes_executed.append(node_id)
        node = self._workflow.get(node_id, {})
        emit(
            NodeStarted(
                node_id=node_id,
                class_type=node.get("class_type", ""),
                title=str((node.get("_meta") or {}).get("title") or ""),
                done=self._cached + len(self.nodes_executed),
                total=len(self._workflow),
            )
        )

    def _note_progress(self, data: dict[str, Any]) -> None:
        now = time.monotonic()
        value, maximum = data["value"], data["max"]
        if not (_is_finite(value) and _is_finite(maximum)):
            # A custom node's slip; it says nothing that could be told.
            return
        share = 100 * value / maximum if maximum else 100.0
        update = {
            "time": round(now - self._began_at, 3),
            "value": value,
            "max": maximum,
            "percentage": _plain(min(max(share, 0.0), 100.0)),
        }
        self.progress_updates.append(update)
        if now - self._logged_at >= PROGRESS_LOG_EVERY_S or value == maximum:
            self._logged_at = now
            emit(NodeProgress(node_id=data.get("node"), **update))


def failure_in(entry: HistoryEntry) -> JobError | None:
    """What a history entry says went wrong; None when the run succeeded.

    Only the entry decides: an `execution_error` message can belong to a run that went on.
    """
    status = entry["status"]
    if status["completed"] and status["status_str"] == "success":
        return None
    for name, data in reversed(status["messages"]):
        if name == "execution_interrupted":
            return Cancelled(
                f"the run was interrupted at node {data['node_id']} ({data['node_type']})",
                node_id=str(data["node_id"]),
            )
        if name == "execution_error":
            return _node_failure(data)
    return ExecutionFailed("ComfyUI reports an error without saying which")


def _node_failure(data: dict[str, Any]) -> JobError:
    said = str(data["exception_message"]).strip()
    kind = str(data["exception_type"])
    node_id, class_type = str(data["node_id"]), data["node_type"]
    said = said if len(said) <= MAX_SAID else said[: MAX_SAID - 3] + "..."
    is_memory = "OutOfMemory" in kind or any(word in said.lower() for word in _MEMORY_WORDS)
    error = OutOfMemory if is_memory else ExecutionFailed
    what = "ran out of memory" if is_memory else "failed"
    because = f"{kind}: {said}" if said else kind
    return error(f"node {node_id} ({class_type}) {what}: {because}", node_id=node_id)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _plain(value: float) -> float:
    """10 instead of 10.0, 33.33 instead of 33.333333."""
    return int(value) if value == int(value) else round(value, 2)
