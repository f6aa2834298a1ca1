"""One percentage over the graph of a run, and what it learns from the runs before."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from handler.execution import Execution
from handler.graph_progress import GraphProgress
from handler.node_durations import FILE_NAME, NodeDurations
from tests.workflows import node

WORKFLOW = {
    "load": node("Load", name="a"),
    "sample": node("Sampler", steps=20, seed=1, model=["load", 0]),
    "save": node("Save", images=["sample", 0]),
    "other": node("Other"),
}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def run(durations: NodeDurations, clock: Clock, workflow: Any = WORKFLOW) -> Iterator[float]:
    """A run of 1 s, 8 s and 1 s; the percentage after each step, and `eta_s` with it."""
    progress = GraphProgress(workflow, durations, clock)
    progress.enter("load")
    yield progress.percentage
    clock.now += 1
    progress.enter("sample")
    for step in range(1, 21):
        clock.now += 0.4
        progress.report(step, 20)
        yield progress.percentage
    progress.enter("save")
    clock.now += 1
    yield progress.percentage
    progress.finish()
    yield progress.percentage


def test_nodes_weigh_the_same_at_first_and_what_they_took_later(
    tmp_path: Path, clock: Clock
) -> None:
    durations = NodeDurations(tmp_path)
    first = list(run(durations, clock))
    second = list(run(durations, clock, {**WORKFLOW, "sample": node("Sampler", steps=20, seed=9)}))

    for percentages in (first, second):
        assert percentages == sorted(percentages)
        assert percentages[-1] == 100
        assert max(percentages[:-1]) <= 99
    # Half of the sampler: an eighth of the way at first, half of the time later.
    assert first[10] == pytest.approx(37.5)
    # The node that did not run counts as long as the others on average, until it is known.
    assert second[10] == pytest.approx(100 * 5 / (10 + 10 / 3), abs=1)


def test_time_left_is_known_once_every_node_is(tmp_path: Path, clock: Clock) -> None:
    workflow = {name: WORKFLOW[name] for name in ("load", "sample", "save")}
    durations = NodeDurations(tmp_path)
    assert GraphProgress(workflow, durations, clock).eta_s is None
    list(run(durations, clock, workflow))

    progress = GraphProgress(workflow, durations, clock)
    assert progress.eta_s == pytest.approx(10)
    progress.enter("load")
    clock.now += 1
    progress.enter("sample")
    clock.now += 4
    progress.report(10, 20)
    assert progress.eta_s == pytest.approx(5)
    assert progress.percentage == pytest.approx(50)


def test_second_pass_in_a_node_does_not_put_the_percentage_back(
    tmp_path: Path, clock: Clock
) -> None:
    progress = GraphProgress(WORKFLOW, NodeDurations(tmp_path), clock)
    progress.enter("sample")
    progress.report(20, 20)
    before = progress.percentage
    progress.report(1, 20)

    assert progress.percentage == before
    assert (progress.step, progress.steps) == (1, 20)


def test_cached_nodes_are_done_and_weigh_nothing(tmp_path: Path, clock: Clock) -> None:
    progress = GraphProgress(WORKFLOW, NodeDurations(tmp_path), clock)
    progress.leave_out(["load", "other", "unknown"])
    progress.enter("sample")
    progress.report(1, 2)

    assert progress.percentage == pytest.approx(25)
    assert (progress.nodes_done, progress.nodes_total) == (2, 4)


def test_failed_run_never_shows_100(tmp_path: Path, clock: Clock) -> None:
    progress = GraphProgress({"1": node("A")}, NodeDurations(tmp_path), clock)
    progress.enter("1")
    progress.report(1, 1)

    assert progress.percentage == 99


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"A": "x"}', '{"A": -1}', '{"A": 1e99}'])
def test_file_that_cannot_be_used_is_replaced(tmp_path: Path, damage: str) -> None:
    (tmp_path / FILE_NAME).write_text(damage)
    durations = NodeDurations(tmp_path)
    durations.refresh()
    assert durations.of(node("A")) is None

    durations.store({"1": 2.0}, {"1": node("A", steps=3)})

    other = NodeDurations(tmp_path)
    other.refresh()
    assert other.of(node("A", steps=3)) == other.of(node("A", steps=4)) == 2.0
    assert list(tmp_path.iterdir()) == [tmp_path / FILE_NAME]


def test_folder_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    durations = NodeDurations(Path("/proc/nowhere"))
    durations.refresh()

    durations.store({"1": 2.0}, {"1": node("A")})

    assert durations.of(node("A")) == 2.0


def test_small_differences_are_not_written(tmp_path: Path) -> None:
    durations = NodeDurations(tmp_path)
    durations.store({"1": 2.0}, {"1": node("A")})
    (tmp_path / FILE_NAME).unlink()

    durations.store({"1": 2.3}, {"1": node("A")})
    assert not (tmp_path / FILE_NAME).exists()
    durations.store({"1": 3.0}, {"1": node("A")})
    assert (tmp_path / FILE_NAME).exists()


def test_place_in_the_queue_is_noted_when_it_changes(tmp_path: Path) -> None:
    execution = Execution("p", WORKFLOW, lambda *_: None, NodeDurations(tmp_path))

    for position in (2, 2, 1):
        execution.observe({"type": "queue_position", "data": {"position": position}})

    assert execution.stage() == "while it waited in ComfyUI's queue"
