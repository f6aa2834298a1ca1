"""The display of a run: log lines in, plain lines or a live display out."""

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from handler.job_events import (
    EVENT_TYPES,
    ArtifactFailed,
    ArtifactStored,
    JobCompleted,
    JobEvent,
    JobFailed,
    JobQueued,
    JobReceived,
    NodeProgress,
    NodeStarted,
    WebhookDelivered,
    WebhookFailed,
    WeightsArrived,
    WeightsAwaited,
    WorkerReady,
    WorkerStarting,
)
from runtime.progress import PlainRenderer, Progress, parse, progress_on, readable_size
from runtime.progress_terminal import TerminalRenderer
from tests.handler.test_job_events import EXAMPLES, entry
from tests.processes import wait_until

pytestmark = pytest.mark.timeout(90)


def is_shown(console: Console, text: str) -> bool:
    """Whether the display, which is drawn ten times a second, shows this text in time."""
    return wait_until(lambda: text in console.export_text(clear=False))


class Watched:
    """A Progress with a clock of its own, and what it wrote."""

    def __init__(self, *, is_verbose: bool = False) -> None:
        self.now = 0.0
        self._stream = io.StringIO()
        self.progress = Progress(
            lambda: PlainRenderer(self._stream, lambda: self.now),
            elapsed_s=lambda: self.now,
            is_verbose=is_verbose,
        )

    def feed(self, event: JobEvent, at: float = 0.0) -> None:
        self.now = at
        self.progress.feed(line(event))

    def lines(self) -> list[str]:
        return self._stream.getvalue().splitlines()


def line(event: JobEvent) -> str:
    return json.dumps(entry(event))


def step(value: float, maximum: float, percentage: float) -> NodeProgress:
    """A step of one node; the percentage is that of the run."""
    return NodeProgress(
        node_id="96",
        class_type="KSamplerAdvanced",
        title="",
        time=0.1,
        value=value,
        max=maximum,
        done=4,
        total=14,
        percentage=percentage,
        eta_s=None,
    )


def started(
    node_id: str,
    class_type: str,
    title: str,
    done: int,
    total: int,
    percentage: float = 0.0,
    eta_s: float | None = None,
) -> NodeStarted:
    return NodeStarted(
        node_id=node_id,
        class_type=class_type,
        title=title,
        done=done,
        total=total,
        percentage=percentage,
        eta_s=eta_s,
    )


def feed_a_run(feed: Callable[[JobEvent, float], None]) -> None:
    feed(JobReceived(request_id="r-1", source="direct"), 0.0)
    feed(WorkerStarting(), 0.1)
    feed(WorkerReady(cold_start_ms=5123.4), 5.2)
    feed(JobQueued(prompt_id="p", nodes=14), 5.3)
    feed(
        started("96", "KSamplerAdvanced", "Sampler, high noise", 3, 14),
        12.3,
    )
    for value, at in [(1, 12.5), (2, 13.0), (3, 13.6), (9, 13.7), (10, 13.8)]:
        feed(step(value, 10, 5 * value), at)
    feed(started("7", "SaveVideo", "", 13, 14, 98.7, 1.2), 14.0)
    feed(ArtifactStored(file="a.mp4", size_bytes=1_234_567, ms=210.4), 15.0)
    feed(WebhookDelivered(host="h", status=204), 15.1)
    feed(JobCompleted(timings={"total_ms": 15_200}, cost=None), 15.2)


def test_run_is_shown_in_plain_lines() -> None:
    watched = Watched()

    feed_a_run(watched.feed)
    watched.progress.summarize("completed", is_success=True)

    assert watched.lines() == [
        "[   0.0 s] job r-1 from direct",
        "[   0.1 s] cold start …",
        "[   5.2 s] worker ready, cold start 5.1 s",
        "[   5.3 s] queued, 14 nodes",
        "[  12.3 s] node 4/14  96 KSamplerAdvanced  Sampler, high noise, 0 %",
        "[  12.5 s]   step 1/10, 5 %",
        "[  13.6 s]   step 3/10, 15 %",
        "[  13.8 s]   step 10/10, 50 %",
        "[  14.0 s] node 14/14  7 SaveVideo, 99 %, about 1 s left",
        "[  15.0 s] stored a.mp4, 1.2 MB, in 0.2 s",
        "[  15.1 s] webhook delivered, status 204",
        "[  15.2 s] completed after 15.2 s, cold start 5.1 s, files: a.mp4",
    ]


def test_run_is_shown_on_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, record=True)
    progress = Progress(lambda: TerminalRenderer(console), elapsed_s=lambda: 15.2)

    def feed(event: JobEvent, at: float) -> None:
        progress.feed(line(event))
        if isinstance(event, NodeProgress) and event.value == 3:
            assert is_shown(console, "step 3/10")
        if isinstance(event, NodeStarted) and event.node_id == "7":
            assert is_shown(console, "99 % about 1 s left")

    with progress:
        feed_a_run(feed)
        progress.summarize("completed", is_success=True)

    text = console.export_text()
    assert "s  cold start …\n" in text
    assert "s  node 4/14  96 KSamplerAdvanced  Sampler, high noise\n" in text
    assert "stored a.mp4, 1.2 MB" in text
    assert text.rstrip().endswith("completed after 15.2 s, cold start 5.1 s, files: a.mp4")


def test_second_sampling_in_one_node_does_not_put_the_bar_back() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, record=True)

    with Progress(lambda: TerminalRenderer(console), elapsed_s=lambda: 0.0) as progress:
        progress.feed(line(started("1", "[red]X", "", 0, 1)))
        for value, maximum in [(4, 4), (1, 20)]:
            progress.feed(line(step(value, maximum, 60)))

        assert is_shown(console, "step 1/20")
        assert is_shown(console, "60 %")
        assert is_shown(console, "node 1/1  1 [red]X")


def feed_a_wait(feed: Callable[[JobEvent, float], None]) -> None:
    feed(started("90", "CLIPLoader", "", 2, 14), 12.0)
    for done, at in [(4_100_000_000, 12.5), (4_200_000_000, 13.0), (9_000_000_000, 14.0)]:
        event = WeightsAwaited(file="a.pt", done_bytes=done, total_bytes=14_300_000_000)
        feed(event, at)
    feed(WeightsArrived(file="a.pt", ms=2345.0), 14.3)


def test_wait_for_a_model_is_shown_in_plain_lines() -> None:
    watched = Watched()

    feed_a_wait(watched.feed)

    assert watched.lines() == [
        "[  12.0 s] node 3/14  90 CLIPLoader, 0 %",
        "[  12.5 s] waiting for weights, 4.1 of 14.3 GB  a.pt",
        "[  13.0 s]   waiting for weights, 4.2 of 14.3 GB  a.pt",
        "[  14.0 s]   waiting for weights, 9.0 of 14.3 GB  a.pt",
        "[  14.3 s] a.pt is there, after 2.3 s",
    ]


def test_wait_for_a_model_is_shown_on_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, record=True)

    def feed(event: JobEvent, at: float) -> None:
        progress.feed(line(event))
        if isinstance(event, WeightsAwaited):
            assert is_shown(console, event.log_message())

    with Progress(lambda: TerminalRenderer(console), elapsed_s=lambda: 0.0) as progress:
        feed_a_wait(feed)

    # One line that stays for the whole wait.
    assert console.export_text().count("s  waiting for weights, 9.0 of 14.3 GB  a.pt\n") == 1


def test_failures_are_shown() -> None:
    watched = Watched()
    error = {"type": "WorkerUnavailable", "message": "ComfyUI died.\nlast words"}

    watched.feed(ArtifactFailed(file="a.mp4", reason="AccessDenied"))
    watched.feed(WebhookFailed(host="h", reason="HTTP 500"))
    watched.feed(JobFailed(error=error, timings={}, cost=None))
    watched.progress.feed(json.dumps({"level": "WARNING", "message": "disk\nis low"}))

    assert watched.lines() == [
        "[   0.0 s] not stored: a.mp4: AccessDenied",
        "[   0.0 s] webhook failed: HTTP 500",
        "[   0.0 s] failed: WorkerUnavailable: ComfyUI died.",
        "[   0.0 s] last words",
        "[   0.0 s] warning: disk is low",
    ]


def test_log_lines_are_shown_only_when_asked_for() -> None:
    quiet, verbose = Watched(), Watched(is_verbose=True)

    for watched in (quiet, verbose):
        watched.progress.feed("comfyui: model loaded")
        watched.progress.feed(json.dumps({"level": "INFO", "message": "connected"}))

    assert quiet.lines() == []
    assert verbose.lines() == ["[   0.0 s] comfyui: model loaded", "[   0.0 s] connected"]


def test_last_log_lines_are_kept_for_a_function_error() -> None:
    watched = Watched()
    exception = {"errorType": "KeyError", "errorMessage": "'a'", "stackTrace": ["  File x\n    y"]}

    for number in range(50):
        watched.progress.feed(f"comfyui: line {number}")
    watched.progress.feed(json.dumps({"level": "ERROR", **exception}))
    watched.progress.summarize("function error KeyError", is_success=False, show_log=True)

    shown = [text.removeprefix("[   0.0 s] ") for text in watched.lines()]
    assert shown[0] == "warning: KeyError: 'a'"
    assert shown[1] == "comfyui: line 12"
    assert shown[-3:] == ["  File x", "    y", "function error KeyError after 0.0 s"]
    assert len(shown) == 42


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: str(event.name))
def test_every_event_is_shown(event: JobEvent) -> None:
    watched = Watched()

    watched.feed(started("1", "KSampler", "", 0, 1))
    watched.feed(event, at=1.0)
    watched.progress.summarize("completed", is_success=True)

    before, *shown, last = watched.lines()
    # The end of a job that succeeded is the last line.
    assert shown or isinstance(event, JobCompleted), (before, last)


@pytest.mark.parametrize("value", [None, "x", [], {}, True, 10**400, float("nan"), -1])
def test_no_value_breaks_the_display(value: object) -> None:
    names = {name for event in EXAMPLES for name in event.log_fields()} | {"message"}
    fields: dict[str, Any] = dict.fromkeys(names, value)
    console = Console(file=io.StringIO(), force_terminal=True)
    watched = Watched()

    with Progress(lambda: TerminalRenderer(console), elapsed_s=lambda: 0.0) as progress:
        for name in [*EVENT_TYPES, "unheard.of"]:
            for text in (json.dumps({"event": name, **fields}), json.dumps({"event": name})):
                progress.feed(text)
                watched.progress.feed(text)


@pytest.mark.parametrize("text", ["", "3", "null", "[1]", '{"a":', "[" * 100_000, "\x1b[31mred"])
def test_line_that_is_not_an_object_is_kept_as_text(text: str) -> None:
    parsed = parse(text)

    assert (parsed.text, parsed.level, parsed.event) == (text, "", None)


def test_reader_that_has_ended_does_not_stop_the_run() -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    progress = progress_on(Broken(), is_verbose=True)

    progress.feed("a line")
    progress.summarize("completed", is_success=True)


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (2.5e9, "2.5 GB")]
)
def test_sizes_are_readable(size_bytes: float, text: str) -> None:
    assert readable_size(size_bytes) == text
