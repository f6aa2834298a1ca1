"""What a run of the real ComfyUI shows of its progress: events, and what becomes of the record."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from handler import app
from handler.emit import subscribed
from handler.execution import PROGRESS_LOG_EVERY_S
from handler.job_events import JobEvent, JobQueued, JobWaiting, NodeProgress, NodeStarted
from handler.jobs.record import Progress
from handler.node_durations import NodeDurations
from handler.recorded_progress import progress_after
from tests import workflows
from tests.conftest import current_client, run
from tests.workflows import node

pytestmark = [pytest.mark.usefixtures("comfyui"), pytest.mark.slow]

_seeds = count(time.time_ns() % 2**40)


@pytest.fixture(autouse=True)
def durations(tmp_path: Path, comfyui: None) -> Iterator[NodeDurations]:
    """A handler that has not learned anything yet."""
    run(workflows.image())
    (connections,) = app._connections.values()
    before = connections.durations
    connections.durations = NodeDurations(tmp_path)
    yield connections.durations
    connections.durations = before


@dataclass
class Watched:
    """The events of one run, with the seconds since it began, and its response."""

    events: list[tuple[float, JobEvent]] = field(default_factory=list)
    response: dict[str, Any] = field(default_factory=dict)

    def steps(self) -> list[tuple[float, NodeStarted | NodeProgress]]:
        return [(at, e) for at, e in self.events if isinstance(e, NodeStarted | NodeProgress)]

    def percentages(self) -> list[float]:
        return [event.percentage for _, event in self.steps()]


def watch(workflow: dict[str, Any]) -> Watched:
    """Run it; the percentages only rise, and only a run that succeeds ends with 100."""
    watched, began = Watched(), time.monotonic()
    with subscribed(lambda event: watched.events.append((time.monotonic() - began, event))):
        watched.response = run(workflow)
    shown = watched.percentages()
    assert shown == sorted(shown)
    *before, last = shown
    has_succeeded = watched.response["status"] == "completed"
    assert (last == 100) == has_succeeded
    assert max([0, *before]) < 100
    counts = [event.done for _, event in watched.steps()]
    assert counts == sorted(counts)
    return watched


def steps(seconds: float = 0.2, *, after: str = "", **inputs: Any) -> dict[str, Any]:
    given = {"steps": 10, "passes": 1, "seed": next(_seeds)} | inputs
    linked = {"after": [after, 0]} if after else {}
    return node("TestSteps", seconds=seconds, **given, **linked)


def two_samplers(short_s: float, long_s: float) -> dict[str, Any]:
    return {
        "1": node("PrimitiveString", value="the same each time"),
        "2": steps(short_s, after="1"),
        "3": steps(long_s, after="2"),
        "4": node("PreviewAny", source=["3", 0]),
    }


def test_second_run_knows_how_long_each_node_takes() -> None:
    workflow = two_samplers(0.4, 1.6)
    first = watch(workflow)
    again = {name: {**entry, "inputs": dict(entry["inputs"])} for name, entry in workflow.items()}
    for name in ("2", "3"):
        again[name]["inputs"]["seed"] = next(_seeds)
    second = watch(again)

    def at_half(watched: Watched) -> NodeProgress:
        """The first event at which the long sampler has done half of its steps."""
        return next(
            event
            for _, event in watched.steps()
            if isinstance(event, NodeProgress) and event.node_id == "3" and event.value >= 5
        )

    half, exact = at_half(first), at_half(second)
    assert half.eta_s is None
    # Of four equal nodes, two are done.
    assert half.percentage == pytest.approx(100 * (2 + half.value / 10) / 4, abs=1)
    # 0.4 s and 1.6 s, and nearly nothing.
    expected_s = 0.4 + 1.6 * exact.value / 10
    assert exact.percentage == pytest.approx(100 * expected_s / 2, abs=10)
    assert exact.eta_s == pytest.approx(2 - expected_s, abs=0.5)


def test_cached_nodes_are_done() -> None:
    workflow = two_samplers(0.1, 0.1)
    watch(workflow)
    workflow["3"] = steps(0.1, after="2")

    _, begun = watch(workflow).steps()[0]

    assert (begun.node_id, begun.done, begun.total) == ("3", 2, 4)


def test_run_of_which_all_is_cached_ends_with_100() -> None:
    workflow = {"1": node("EmptyImage", width=8, height=8, batch_size=1, color=next(_seeds) % 999)}
    workflow["2"] = node("PreviewImage", images=["1", 0])
    watch(workflow)

    assert watch(workflow).percentages() == [100]


def test_nodes_that_no_output_needs_do_not_count() -> None:
    workflow = {
        **two_samplers(0.1, 0.1),
        "8": steps(after="2"),
        "9": node("PrimitiveString", value="unused"),
    }
    watched = watch(workflow)

    assert [e.nodes for _, e in watched.events if isinstance(e, JobQueued)] == [4]
    assert {event.total for _, event in watched.steps()} == {4}
    assert max(watched.percentages()[:-1]) >= 75


def test_several_passes_of_a_node_do_not_put_the_percentage_back() -> None:
    watched = watch({"1": steps(0.4, passes=4), "2": node("PreviewAny", source=["1", 0])})

    assert watched.response["status"] == "completed"


def test_failed_run_never_shows_100() -> None:
    watched = watch({"1": steps(), "2": node("TestRaise", message=["1", 0])})

    assert watched.response["status"] == "failed"
    assert watched.percentages()[-1] >= 50


def test_subgraph_counts_to_the_node_that_expands_into_it() -> None:
    def workflow() -> dict[str, Any]:
        return {
            "1": steps(0.2),
            "2": node("PreviewAny", source=["1", 0]),
            "7": node("TestExpand", seconds=1.0, seed=next(_seeds)),
            "8": node("PreviewAny", source=["7", 0]),
        }

    watch(workflow())
    watched = watch(workflow())

    shown = [event for _, event in watched.steps() if event.node_id is not None]
    assert {event.node_id for event in shown} == {"1", "2", "7", "8"}
    assert {event.class_type for event in shown} == {"TestSteps", "PreviewAny", "TestExpand"}
    assert watched.steps()[-1][1].done == 4
    # The first of its two parts has ended, and 0.5 s of 1.2 s are over.
    inside = [e for e in shown if e.node_id == "7" and isinstance(e, NodeProgress)]
    half = next(event for event in inside if event.value == event.max)
    others_s = 0.2 if "1" in [e.node_id for e in shown[: shown.index(half)]] else 0.0
    assert half.percentage == pytest.approx(100 * (0.5 + others_s) / 1.2, abs=10)
    assert half.eta_s == pytest.approx(1.2 - 0.5 - others_s, abs=0.3)


def test_log_has_two_lines_of_progress_a_second_at_most() -> None:
    watched = watch(
        {"1": steps(1.5, steps=1, passes=300), "2": node("PreviewAny", source=["1", 0])}
    )

    times = [at for at, e in watched.events if isinstance(e, NodeProgress) and e.node_id]
    # The first one is that of the first end.
    assert len(times) <= 2 + (times[-1] - times[0]) / PROGRESS_LOG_EVERY_S


def test_place_in_the_queue_of_comfyui_is_shown_and_recorded() -> None:
    client = current_client()
    other = workflows.one("TestSleep", seconds=2.5, deaf=False)
    client._api.submit({"prompt": other, "client_id": "other"}, 10)

    watched = watch(workflows.image())

    waits = [event for _, event in watched.events if isinstance(event, JobWaiting)]
    assert [event.position for event in waits] == [1]
    progress, seen = Progress(), []
    for _, event in watched.events:
        progress = progress_after(progress, event)
        seen.append((progress.queue_position, progress.is_generating))
    assert (1, False) in seen
    assert seen[-1] == (0, True)
    assert progress.percentage == 100
