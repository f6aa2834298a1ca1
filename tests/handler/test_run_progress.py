"""The progress of a run is one percentage that only rises, and a list that stays short."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest

from handler.run_progress import MAX_UPDATES, RunProgress
from tests.workflows import node

TWO_SAMPLERS = {
    "1": node("KSamplerAdvanced", latent_image=["9", 0]),
    "2": node("KSamplerAdvanced", latent_image=["1", 0]),
    "3": node("VAEDecodeTiled", samples=["2", 0]),
}


def percentages(
    reports: Iterable[tuple[str, float, float]], workflow: dict[str, Any] = TWO_SAMPLERS
) -> list[float]:
    """Of the updates of a run that succeeded."""
    progress = RunProgress(workflow)
    for at, (node_id, value, maximum) in enumerate(reports):
        progress.report(node_id, value, maximum, float(at))
    progress.finish(1e6)
    return [update["percentage"] for update in progress.updates()]


def test_two_samplers_share_the_percentage() -> None:
    reports = [("1", 1, 2), ("1", 2, 2), ("2", 1, 2), ("2", 2, 2)]

    assert percentages(reports) == [25, 50, 75, 100]


def test_sampler_whose_result_is_cached_is_not_waited_for() -> None:
    progress = RunProgress(TWO_SAMPLERS)
    progress.leave_out(["1"])

    updates = [progress.report("2", value, 10, 0.0) for value in (1, 2, 10)]

    assert [update and update["percentage"] for update in updates] == [10, 20, 100]
    assert progress.finish(1.0) is None


@pytest.mark.parametrize(
    "reports",
    [
        [("1", 9, 10), ("1", 2, 10)],
        [("1", 2, 2), ("1", 1, 2), ("2", 1, 2)],
        [("1", 1, 2), ("3", 1, 9), ("2", 1, 2)],
        [("3", 1, 9)],
        [("1", -3, 10), ("1", 20, 10), ("1", 5, 0)],
        [("2", 1, 2), ("1", 1, 2)],
    ],
)
def test_percentage_never_falls_and_ends_at_100(reports: list[tuple[str, float, float]]) -> None:
    shares = percentages(reports)

    assert shares == sorted(shares)
    assert shares[0] >= 0
    assert shares[-1] == 100


def test_node_that_reports_counts_where_there_is_no_sampler() -> None:
    assert percentages([("3", 1, 4), ("3", 4, 4)], {"3": TWO_SAMPLERS["3"]}) == [25, 100]


def test_run_without_reports_has_no_updates() -> None:
    assert percentages([]) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "5", None, 10**400])
def test_number_that_is_not_finite_is_no_update(value: Any) -> None:
    assert RunProgress(TWO_SAMPLERS).report("1", value, 10, 0.0) is None
    assert RunProgress(TWO_SAMPLERS).report("1", 1, value, 0.0) is None


@pytest.mark.parametrize("count", [MAX_UPDATES - 1, MAX_UPDATES, 200_000])
def test_many_reports_are_thinned_evenly(count: int) -> None:
    progress = RunProgress(TWO_SAMPLERS)
    for value in range(1, count + 1):
        progress.report("1", value, count, float(value))

    values = [update["value"] for update in progress.updates()]
    assert values == sorted(set(values))
    assert MAX_UPDATES / 2 <= len(values) <= MAX_UPDATES
    assert (values[0], values[-1]) == (1, count)
    steps = {later - earlier for earlier, later in pairwise(values[:-1])}
    assert len(steps) == 1
