"""What people see of a run: recorded log lines in, plain lines or a live display out."""

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from runtime.progress import PlainRenderer, Progress, parse, progress_on, readable_size
from runtime.progress_terminal import TerminalRenderer
from tests.processes import wait_until

pytestmark = pytest.mark.timeout(90)


def is_shown(console: Console, text: str) -> bool:
    """Whether the display, which is drawn ten times a second, came to that."""
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

    def feed(self, event: str, *, at: float = 0.0, **fields: Any) -> None:
        self.now = at
        self.progress.feed(line(event, **fields))

    def lines(self) -> list[str]:
        return self._stream.getvalue().splitlines()


def line(event: str, **fields: Any) -> str:
    entry = {"level": "INFO", "message": "m", "service": "lambda-comfyui", "event": event}
    return json.dumps({**entry, **fields})


def feed_a_run(feed: Callable[..., None]) -> None:
    feed("job.received", request_id="r-1", source="direct")
    feed("worker.starting", at=0.1)
    feed("worker.ready", at=5.2, cold_start_ms=5123.4)
    feed("job.queued", at=5.3, prompt_id="p", nodes=14)
    sampler = {"node_id": "96", "class_type": "KSamplerAdvanced", "title": "Sampler, high noise"}
    feed("node.started", at=12.3, **sampler, done=4, total=14)
    for value, at in [(1, 12.5), (2, 13.0), (3, 13.6), (9, 13.7), (10, 13.8)]:
        feed("node.progress", at=at, node_id="96", value=value, max=10, percentage=10 * value)
    feed("node.started", at=14.0, node_id="7", class_type="SaveVideo", title="", done=14, total=14)
    feed("artifact.stored", at=15.0, file="a.mp4", size_bytes=1_234_567, ms=210.4)
    feed("webhook.delivered", at=15.1, attempts=2, status=204)
    feed("job.completed", at=15.2, timings={"total_ms": 15_200})


def test_run_is_told_in_plain_lines() -> None:
    watched = Watched()

    feed_a_run(watched.feed)
    watched.progress.summarize("completed", is_success=True)

    assert watched.lines() == [
        "[   0.0 s] job r-1 from direct",
        "[   0.1 s] cold start …",
        "[   5.2 s] worker ready, cold start 5.1 s",
        "[   5.3 s] queued, 14 nodes",
        "[  12.3 s] node 4/14  96 KSamplerAdvanced  Sampler, high noise",
        "[  12.5 s]   step 1/10 10 %",
        "[  13.6 s]   step 3/10 30 %",
        "[  13.8 s]   step 10/10 100 %",
        "[  14.0 s] node 14/14  7 SaveVideo",
        "[  15.0 s] stored a.mp4, 1.2 MB, in 0.2 s",
        "[  15.1 s] webhook delivered, status 204, attempts: 2",
        "[  15.2 s] completed after 15.2 s, cold start 5.1 s, files: a.mp4",
    ]


def test_run_is_told_on_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, record=True)
    progress = Progress(lambda: TerminalRenderer(console), elapsed_s=lambda: 15.2)

    def feed(event: str, *, at: float = 0.0, **fields: Any) -> None:
        progress.feed(line(event, **fields))
        if fields.get("value") == 3:
            assert is_shown(console, "step 3/10")

    with progress:
        feed_a_run(feed)
        progress.summarize("completed", is_success=True)

    text = console.export_text()
    assert "s  cold start …\n" in text
    assert "s  node 4/14  96 KSamplerAdvanced  Sampler, high noise\n" in text
    assert "stored a.mp4, 1.2 MB" in text
    assert text.rstrip().endswith("completed after 15.2 s, cold start 5.1 s, files: a.mp4")


def test_second_sampling_in_one_node_starts_a_new_bar() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, record=True)

    with Progress(lambda: TerminalRenderer(console), elapsed_s=lambda: 0.0) as progress:
        progress.feed(line("node.started", node_id="1", class_type="[red]X", done=1, total=1))
        for value, maximum in [(4, 4), (1, 20)]:
            progress.feed(line("node.progress", value=value, max=maximum))

        assert is_shown(console, "step 1/20")
        assert is_shown(console, "node 1/1  1 [red]X")


def test_failures_are_told() -> None:
    watched = Watched()
    error = {"type": "WorkerUnavailable", "message": "ComfyUI died.\nlast words"}

    watched.feed("artifact.failed", file="a.mp4", reason="AccessDenied")
    watched.feed("webhook.failed", reason="HTTP 500")
    watched.feed("job.failed", level="ERROR", error=error)
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


@pytest.mark.parametrize("value", [None, "x", [], {}, True, 10**400, float("nan"), -1])
def test_no_value_breaks_the_display(value: object) -> None:
    names = "request_id source cold_start_ms nodes node_id class_type title done total value max"
    names += " percentage file size_bytes ms reason attempts status timings error"
    fields: dict[str, Any] = dict.fromkeys(names.split(), value)
    console = Console(file=io.StringIO(), force_terminal=True)
    watched = Watched()

    with Progress(lambda: TerminalRenderer(console), elapsed_s=lambda: 0.0) as progress:
        for event in ["worker.starting", "node.started", "node.progress", "unheard.of"]:
            progress.feed(line(event, **fields))
        feed_a_run(lambda event, at=0.0, **_: watched.feed(event, **fields))
        feed_a_run(lambda event, at=0.0, **_: watched.feed(event))


@pytest.mark.parametrize("text", ["", "3", "null", "[1]", '{"a":', "[" * 100_000, "\x1b[31mred"])
def test_line_that_is_no_object_is_taken_as_it_is(text: str) -> None:
    parsed = parse(text)

    assert (parsed.text, parsed.level, parsed.event) == (text, "", "")


def test_reader_that_is_gone_does_not_stop_the_run() -> None:
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
