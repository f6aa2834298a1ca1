"""The score of this machine: 100 ÷ the seconds of its benchmark. All of `fleet` reads it here."""

from handler.api.dispatcher import WorkerReport

# Of a worker that has not measured one: equal machines get equal work.
USUAL_SCORE = 1.0


def score_of(report: WorkerReport) -> float:
    """The scores of the host's workers together; USUAL_SCORE for one that has measured none."""
    workers = report.workers or (report,)
    return sum(worker.score or USUAL_SCORE for worker in workers)
