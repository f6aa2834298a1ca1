"""Passes what the events of a job say about its progress on to the job's record.

What an event says is decided in job_events.py, when it is stored in handler/jobs/held_claim.py.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from handler.job_events import (
    ArtifactStored,
    JobEvent,
    JobQueued,
    JobWaiting,
    NodeProgress,
    NodeStarted,
    WeightsArrived,
    WeightsAwaited,
)
from handler.jobs import Claim
from handler.jobs.record import Progress


class RecordedProgress:
    """A subscriber to the events of the job that holds `claim`.

    `items` returns the items of `output` that are there by now.
    """

    def __init__(self, claim: Claim, items: Callable[[], list[dict[str, Any]]]) -> None:
        self._claim, self._items = claim, items
        self._progress = Progress()

    def note(self, event: JobEvent) -> None:
        """Never raises."""
        progress = progress_after(self._progress, event)
        if progress is not self._progress:
            self._progress = progress
            self._claim.note_progress(progress)
        if isinstance(event, ArtifactStored | NodeStarted):
            self._claim.note_outputs(self._items())


def progress_after(progress: Progress, event: JobEvent) -> Progress:
    """The progress of a job after an event; the same object if the event says nothing about it."""
    match event:
        case JobQueued():
            return Progress(percentage=progress.percentage, nodes_total=event.nodes)
        case JobWaiting():
            return replace(progress, queue_position=event.position)
        case WeightsAwaited():
            return replace(
                progress,
                weights_done_bytes=event.done_bytes,
                weights_total_bytes=event.total_bytes,
            )
        case WeightsArrived():
            return replace(progress, weights_done_bytes=None, weights_total_bytes=None)
        case NodeStarted() | NodeProgress():
            return replace(
                progress,
                percentage=event.percentage,
                node_id=event.node_id,
                class_type=event.class_type,
                title=event.title,
                step=event.value if isinstance(event, NodeProgress) else None,
                steps=event.max if isinstance(event, NodeProgress) else None,
                nodes_done=event.done,
                nodes_total=event.total,
                eta_s=event.eta_s,
                queue_position=0,
                is_generating=True,
            )
    return progress
