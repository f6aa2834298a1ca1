"""The score that a host reports, and how many GPUs have it."""

from dataclasses import replace

import pytest

from handler.api.dispatcher import WorkerReport, pool_report
from handler.worker_protocol import State
from runtime.fleet.score import score_of, usable_workers

READY = WorkerReport(state=State.READY, score=2.0)
UNMEASURED = WorkerReport(state=State.STARTING)
FAILED = replace(READY, state=State.FAILED)


@pytest.mark.parametrize(
    ("reports", "score", "places"),
    [
        ([READY], 2.0, 1),
        ([UNMEASURED], 1.0, 1),
        ([READY, READY, UNMEASURED], 5.0, 3),
        # A GPU that has failed does no jobs.
        ([READY, FAILED], 2.0, 1),
        ([FAILED, FAILED], 4.0, 2),
        ([FAILED], 2.0, 1),
    ],
)
def test_score_of_a_host_is_the_sum_of_its_gpus(
    reports: list[WorkerReport], score: float, places: int
) -> None:
    report = pool_report(reports)

    assert score_of(report) == score
    assert len(usable_workers(report)) == places
