"""What ComfyUI's messages say about one run: the order of nodes, progress, outputs.

What a run's failure means is decided in node_failure.py; which percentage the progress is, in
graph_progress.py, and for the response in run_progress.py. The messages and their order:
execution.py and server.py of ComfyUI.
"""

import time
from collections.abc import Callable, Collection
from typing import Any

from events.errors import JobError
from handler.comfyui import Message
from handler.comfyui_api import HistoryEntry
from handler.emit import emit
from handler.graph_progress import GraphProgress
from handler.job_events import (
    JobWaiting,
    NodeProgress,
    NodeStarted,
    WeightsArrived,
    WeightsAwaited,
)
from handler.node_durations import NodeDurations
from handler.run_progress import RunProgress

PROGRESS_LOG_EVERY_S = 0.5

_MESSAGES_OF_A_RUN = {"execution_start", "execution_cached", "executing", "progress", "executed"}

OnOutput = Callable[[str, dict[str, Any]], None]


class Execution:
    """The record of one prompt. Give every message to `observe`, the history entry to `end`.

    Call `finish` if the run has succeeded.

    `percentage` is that of an earlier prompt of the same job: the progress does not fall below it.
    `began` says whether the run has left ComfyUI's queue, `history_entry` is None until it is over.
    """

    def __init__(
        self,
        prompt_id: str,
        workflow: dict[str, Any],
        on_output: OnOutput,
        durations: NodeDurations,
        percentage: float = 0.0,
    ) -> None:
        self.prompt_id = prompt_id
        self.workflow = workflow
        self.began = False
        self.queue_ms = 0.0
        # By model file: how long its loader has waited for it, in milliseconds.
        self._waits: dict[str, float] = {}
        # The model file that the run waits for now, '' for none.
        self.awaited = ""
        self.nodes_executed: list[str] = []
        self.history_entry: HistoryEntry | None = None
        self._on_output = on_output
        self._created_at = time.monotonic()
        self._began_at = self._created_at
        self._graph = GraphProgress(workflow, durations, percentage=percentage)
        # A node of a subgraph is shown as the node of the workflow that expands into it.
        self._shown_as: dict[str, str] = {}
        self._position: int | None = None
        self._progress = RunProgress(workflow)
        self._progress_emitted_at = 0.0
        self._reported_the_end: set[str] = set()

    @property
    def percentage(self) -> float:
        return self._graph.percentage

    @property
    def weights_ms(self) -> float:
        """How long the run has waited for model files."""
        return sum(self._waits.values())

    @property
    def nodes_total(self) -> int:
        return self._graph.nodes_total

    def leave_out(self, unneeded: Collection[str]) -> None:
        """ComfyUI does not run these nodes."""
        self._graph.leave_out(unneeded)

    def observe(self, message: Message) -> None:
        """Record one message of this prompt."""
        data, kind = message["data"], message["type"]
        # The first message may have been lost.
        if kind in _MESSAGES_OF_A_RUN and not self.began:
            self._begin()
        match kind:
            case "queue_position":
                self._note_position(data["position"])
            case "execution_cached":
                self._graph.note_cached(data["nodes"])
                self._progress.leave_out(data["nodes"])
            case "executing" if data["node"] is not None:
                shown = str(data.get("display_node") or data["node"])
                self._shown_as[str(data["node"])] = shown
                self._note_node(shown)
            case "progress_state":
                self._note_states(data.get("nodes") or {})
            case "progress":
                self._note_progress(data)
            case "lambda_comfyui.weights":
                self._note_weights(data)
            case "executed" if data.get("output"):
                self._on_output(str(data.get("display_node") or data["node"]), data["output"])

    def end(self, entry: HistoryEntry) -> None:
        """Record the history entry, and pass on its outputs: their messages may have been lost."""
        self.history_entry = entry
        for node_id, output in entry["outputs"].items():
            meta = entry["meta"].get(node_id) or {}
            self._on_output(str(meta.get("display_node") or node_id), output)

    def stage(self) -> str:
        """What the run does now, as the end of a sentence."""
        if not self.began:
            return "while it waited in ComfyUI's queue"
        if self.awaited:
            return f"while it waited for {self.awaited}, which is being downloaded"
        return f"at node {self.nodes_executed[-1]}" if self.nodes_executed else "as its run began"

    def finish(self) -> None:
        """The run has succeeded: its progress is 100 %."""
        time_s = time.monotonic() - self._began_at
        self._progress.finish(time_s)
        self._graph.finish()
        self._emit_progress(None, time_s, 1, 1)

    def details(self, error: JobError | None) -> dict[str, Any]:
        """`execution_details` of the response."""
        return {
            "prompt_id": self.prompt_id,
            "nodes_executed": self.nodes_executed,
            "progress_updates": self._progress.updates(),
            "completed": error is None,
            "error": error.message if error else None,
        }

    def _begin(self) -> None:
        self.began = True
        self._began_at = time.monotonic()
        self.queue_ms = (self._began_at - self._created_at) * 1000

    def _note_position(self, position: int) -> None:
        if position != self._position:
            self._position = position
            emit(JobWaiting(position=position))

    def _note_node(self, node_id: str) -> None:
        self._graph.enter(node_id)
        if node_id in self.nodes_executed:
            return
        self.nodes_executed.append(node_id)
        class_type, title = self._names_of(node_id)
        graph = self._graph
        emit(
            NodeStarted(
                node_id=node_id,
                class_type=class_type,
                title=title,
                done=graph.nodes_done,
                total=graph.nodes_total,
                percentage=graph.percentage,
                eta_s=graph.eta_s,
            )
        )

    def _note_states(self, states: dict[str, dict[str, Any]]) -> None:
        running = {
            str(state.get("display_node_id") or node_id)
            for node_id, state in states.items()
            if state.get("state") == "running"
        }
        self._graph.note_unfinished(running)

    def _node_of(self, progress: dict[str, Any]) -> str:
        """The node of the workflow that reports. The message may name one of a subgraph."""
        node_id = str(progress.get("node"))
        if node_id in self._shown_as:
            return self._shown_as[node_id]
        if node_id in self.workflow:
            return node_id
        # The message that says what it is shown as was lost.
        return self._graph.node_id or node_id

    def _note_weights(self, data: dict[str, Any]) -> None:
        """The running node waits for a model file: runtime/worker/inside_gate.py."""
        waited_ms = round(data["waited_s"] * 1000, 1)
        self._waits[data["file"]] = waited_ms
        self.awaited = "" if data["is_complete"] else data["file"]
        if data["is_complete"]:
            self._graph.note_wait(data["waited_s"])
            emit(WeightsArrived(file=data["file"], ms=waited_ms))
        elif not data["failure"]:
            emit(
                WeightsAwaited(
                    file=data["file"],
                    done_bytes=data["done_bytes"],
                    total_bytes=data["total_bytes"],
                )
            )

    def _names_of(self, node_id: str) -> tuple[str, str]:
        """The class and the title of a node."""
        node = self.workflow.get(node_id, {})
        return node.get("class_type", ""), str((node.get("_meta") or {}).get("title") or "")

    def _note_progress(self, data: dict[str, Any]) -> None:
        value, maximum = data["value"], data["max"]
        node_id = self._node_of(data)
        now = time.monotonic()
        if self._progress.report(node_id, value, maximum, now - self._began_at) is None:
            return
        is_first_end = value == maximum and node_id not in self._reported_the_end
        is_due = now - self._progress_emitted_at >= PROGRESS_LOG_EVERY_S or is_first_end
        self._graph.enter(node_id)
        self._graph.report(value, maximum, is_part=str(data.get("node")) != node_id)
        if is_due:
            self._progress_emitted_at = now
            if value == maximum:
                self._reported_the_end.add(node_id)
            self._emit_progress(node_id, now - self._began_at, value, maximum)

    def _emit_progress(
        self, node_id: str | None, time_s: float, value: float, maximum: float
    ) -> None:
        class_type, title = self._names_of(node_id) if node_id else ("", "")
        graph = self._graph
        emit(
            NodeProgress(
                node_id=node_id,
                class_type=class_type,
                title=title,
                time=round(time_s, 3),
                value=value,
                max=maximum,
                done=graph.nodes_done,
                total=graph.nodes_total,
                percentage=graph.percentage,
                eta_s=graph.eta_s,
            )
        )
