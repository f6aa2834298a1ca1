"""The score of this machine, 100 ÷ the seconds of its benchmark, and how many GPUs have it."""

from collections.abc import Sequence

from handler.api.dispatcher import WorkerReport
from handler.worker_protocol import State

# Of a worker that has not measured one: equal machines get equal work.
USUAL_SCORE = 1.0


def score_of(report: WorkerReport) -> float:
    """The scores of the host's workers together; USUAL_SCORE for one that has measured none."""
    return sum(worker.score or USUAL_SCORE for worker in usable_workers(report))


def usable_workers(report: WorkerReport) -> Sequence[WorkerReport]:
    """The host's workers, one for each GPU, without those that have failed beside others.

    A ComfyUI runs one job at a time, so this is how many the host runs at the same time.
    """
    workers = report.workers or (report,)
    return [each for each in workers if each.state is not State.FAILED] or workers
