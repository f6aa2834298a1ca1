"""One percentage over the graph of a run, and what it learns from the runs before."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from handler.graph_progress import GraphProgress
from handler.node_durations import FILE_NAME, NodeDurations
from tests.clock import Clock
from tests.workflows import node

WORKFLOW = {
    "load": node("Load", name="a"),
    "sample": node("Sampler", steps=20, seed=1, model=["load", 0]),
    "save": node("Save", images=["sample", 0]),
    "other": node("Other"),
}


@pytest.fixture
def clock() -> Clock:
    return Clock(0.0)


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


def test_subgraph_counts_to_the_node_that_expands_into_it(tmp_path: Path, clock: Clock) -> None:
    durations = NodeDurations(tmp_path)
    durations.store({"sample": 10.0, "load": 1.0, "save": 1.0, "other": 0.0}, WORKFLOW)
    progress = GraphProgress(WORKFLOW, durations, clock)
    progress.enter("sample")
    clock.now += 4
    progress.report(1, 1, is_part=True)
    assert progress.percentage == pytest.approx(100 * 4 / 12, abs=0.2)

    # Another node runs between two of the subgraph.
    progress.note_unfinished({"sample", "load"})
    progress.enter("load")
    clock.now += 1
    assert progress.nodes_done == 0
    assert progress.percentage == pytest.approx(100 * 4 / 12, abs=0.2)
    assert progress.eta_s == pytest.approx(7)
    progress.note_unfinished({"sample"})
    progress.enter("sample")
    clock.now += 3
    progress.report(1, 1, is_part=True)

    assert progress.nodes_done == 1
    assert progress.percentage == pytest.approx(100 * 8 / 12, abs=0.2)
    progress.note_unfinished(())
    progress.enter("save")
    assert progress.nodes_done == 2


def test_nodes_that_no_output_needs_do_not_count(tmp_path: Path, clock: Clock) -> None:
    progress = GraphProgress(WORKFLOW, NodeDurations(tmp_path), clock)
    progress.leave_out({"other"})
    progress.note_cached(["load", "other"])
    progress.enter("sample")
    progress.report(1, 2)

    assert (progress.nodes_done, progress.nodes_total) == (1, 3)
    assert progress.percentage == pytest.approx(25)


def test_nodes_that_only_a_cached_node_reads_do_not_count(tmp_path: Path, clock: Clock) -> None:
    progress = GraphProgress(WORKFLOW, NodeDurations(tmp_path), clock)
    progress.note_cached(["sample"])
    progress.enter("save")
    progress.enter("other")

    assert progress.percentage == pytest.approx(50)
    assert (progress.nodes_done, progress.nodes_total) == (3, 4)


def test_later_prompt_of_the_same_job_does_not_put_the_percentage_back(
    tmp_path: Path, clock: Clock
) -> None:
    progress = GraphProgress(WORKFLOW, NodeDurations(tmp_path), clock, percentage=60.0)
    progress.enter("load")

    assert progress.percentage == 60


def test_speed_of_the_node_corrects_the_time_left(tmp_path: Path, clock: Clock) -> None:
    durations = NodeDurations(tmp_path)
    durations.store({"1": 10.0}, {"1": node("Sampler")})
    progress = GraphProgress({"1": node("Sampler")}, durations, clock)
    progress.enter("1")
    clock.now += 10
    progress.report(5, 10)
    # 10 s at its own speed, 0 s as last time: half is done, so each counts half.
    assert progress.eta_s == pytest.approx(5)
    clock.now += 8
    progress.report(9, 10)

    assert progress.eta_s == pytest.approx(0.9 * 2)


def test_cached_nodes_are_done_and_weigh_nothing(tmp_path: Path, clock: Clock) -> None:
    progress = GraphProgress(WORKFLOW, NodeDurations(tmp_path), clock)
    progress.note_cached(["load", "other", "unknown"])
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


def test_nodes_with_the_same_key_share_their_mean(tmp_path: Path) -> None:
    durations = NodeDurations(tmp_path)
    durations.store({"1": 8.0, "2": 4.0}, {"1": node("A", text="x"), "2": node("A", text="y")})

    assert durations.of(node("A", text="z")) == 6.0


def test_two_handlers_do_not_lose_what_the_other_has_learned(tmp_path: Path) -> None:
    first, second = NodeDurations(tmp_path), NodeDurations(tmp_path)
    first.store({"1": 2.0}, {"1": node("A")})
    second.store({"1": 3.0}, {"1": node("B")})
    first.refresh()

    assert (first.of(node("A")), first.of(node("B"))) == (2.0, 3.0)


def test_file_stays_small(tmp_path: Path) -> None:
    durations = NodeDurations(tmp_path)
    names = {str(number): node(f"Class{number}") for number in range(2500)}
    durations.store(dict.fromkeys(names, 2.0), names)

    assert durations.of(node("Class499")) is None
    assert durations.of(node("Class500")) == 2.0


def test_small_differences_are_not_written(tmp_path: Path) -> None:
    durations = NodeDurations(tmp_path)
    durations.store({"1": 2.0}, {"1": node("A")})
    (tmp_path / FILE_NAME).unlink()

    durations.store({"1": 2.3}, {"1": node("A")})
    assert not (tmp_path / FILE_NAME).exists()
    durations.store({"1": 3.0}, {"1": node("A")})
    assert (tmp_path / FILE_NAME).exists()


def test_wait_for_a_model_is_not_learned_as_the_time_of_its_loader(
    tmp_path: Path, clock: Clock
) -> None:
    workflow = {"load": WORKFLOW["load"]}
    durations = NodeDurations(tmp_path)
    progress = GraphProgress(workflow, durations, clock)
    progress.enter("load")
    clock.now += 101
    progress.note_wait(100)
    progress.finish()

    assert GraphProgress(workflow, durations, clock).eta_s == pytest.approx(1)
