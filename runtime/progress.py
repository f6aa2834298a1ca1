"""Live progress of an invocation, read from the log lines of the handler and the worker.

What is shown is decided here, how it looks by a renderer: plain lines below, a live display in
progress_terminal.py. What the events of a job are is decided in handler/job_events.py.
"""

import contextlib
import functools
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self, TextIO

from handler import job_events
from handler.job_events import JobEvent
from runtime.time_left import time_left

_RING_LINES = 40
_STEP_EVERY_S = 1.0
# AWS's client writes these 90 words before every error at import, and then the error.
_BOILERPLATE = "LAMBDA_WARNING: Unhandled exception."
_LOUD_LEVELS = frozenset({"WARNING", "ERROR", "CRITICAL"})


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of output. `level` is empty where the line is not a JSON object."""

    text: str
    level: str = ""
    event: JobEvent | None = None
    trace: tuple[str, ...] = ()


def parse(line: str) -> LogLine:
    """Read a line of Powertools' Logger, of AWS's runtime client, or of a plain print."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return LogLine(line)
    if not isinstance(entry, dict):
        return LogLine(line)
    # AWS's client reports an exception without "message".
    text = entry.get("message") or f"{entry.get('errorType')}: {entry.get('errorMessage')}"
    if str(text).startswith(_BOILERPLATE):
        return LogLine(str(text))
    trace = entry.get("exception") or entry.get("stackTrace") or []
    trace = trace if isinstance(trace, list) else [trace]
    return LogLine(
        text=_one_line(text),
        level=str(entry.get("level") or "INFO"),
        event=job_events.decode(entry),
        trace=tuple(line for part in trace for line in str(part).splitlines()),
    )


class Renderer(Protocol):
    """Shows progress: notes, and one current activity. Called by one thread at a time."""

    def note(self, text: str, *, style: str = "") -> None:
        """Write a line that stays; `style` is one of rich's: dim, yellow, red, green."""

    def begin(self, text: str, percentage: float | None = None, eta_s: float | None = None) -> None:
        """Begin an activity; the one before it ends.

        `percentage` is that of the whole run, 0 to 100, None before it has begun; `eta_s` its
        seconds left, None if unknown.
        """

    def update(self, text: str) -> None:
        """Show another text for the current activity."""

    def step(self, value: float, maximum: float, percentage: float, eta_s: float | None) -> None:
        """Show that the current activity has done `value` of `maximum` steps."""

    def end(self, text: str = "") -> None:
        """End the activity; `text` is for renderers that do not show durations themselves."""

    def close(self) -> None:
        """Leave the terminal as it was; only `note` may follow."""


class PlainRenderer:
    """One line each, beginning with the seconds since the start: for files and pipes."""

    def __init__(self, stream: TextIO, elapsed_s: Callable[[], float]) -> None:
        self._stream, self._elapsed_s = stream, elapsed_s
        self._stepped_at = float("-inf")

    def note(self, text: str, *, style: str = "") -> None:
        # A reader that has ended (`2>&1 | head`) does not end the invocation.
        with contextlib.suppress(OSError):
            print(f"[{self._elapsed_s():6.1f} s] {text}", file=self._stream, flush=True)

    def begin(self, text: str, percentage: float | None = None, eta_s: float | None = None) -> None:
        self._stepped_at = float("-inf")
        self.note(text if percentage is None else f"{text}, {_of_run(percentage, eta_s)}")

    def update(self, text: str) -> None:
        if self._is_due():
            self._stepped_at = self._elapsed_s()
            self.note(f"  {text}")

    def step(self, value: float, maximum: float, percentage: float, eta_s: float | None) -> None:
        if self._is_due() or value >= maximum:
            self._stepped_at = self._elapsed_s()
            self.note(f"  step {value:g}/{maximum:g}, {_of_run(percentage, eta_s)}")

    def end(self, text: str = "") -> None:
        if text:
            self.note(text)

    def close(self) -> None:
        """A stream needs no clean-up."""

    def _is_due(self) -> bool:
        return self._elapsed_s() - self._stepped_at >= _STEP_EVERY_S


class Progress:
    """Turns log lines into calls of a renderer, which is made when the first line is shown.

    `feed` may be called by any thread. Leave the context to close the renderer.
    """

    def __init__(
        self,
        make_renderer: Callable[[], Renderer],
        *,
        elapsed_s: Callable[[], float],
        is_verbose: bool = False,
    ) -> None:
        self._make_renderer, self._elapsed_s = make_renderer, elapsed_s
        self._is_verbose = is_verbose
        self._ring: deque[str] = deque(maxlen=_RING_LINES)
        self._lock = threading.Lock()
        self._is_closed = False
        self._cold_start_s: float | None = None
        self._files: list[str] = []
        # The model file that the run waits for.
        self._awaited = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._is_closed = True
            self._renderer.close()

    def feed(self, line: str) -> None:
        """Show one line of output, if it is worth it, and remember it for `summarize`."""
        parsed = parse(line)
        with self._lock:
            self._ring.extend(parsed.trace if parsed.level else [line])
            if self._is_closed:
                return
            if parsed.event:
                self._show(parsed.event)
            elif parsed.level in _LOUD_LEVELS:
                self._renderer.note(f"warning: {parsed.text}", style="yellow")
            elif self._is_verbose:
                self._renderer.note(parsed.text, style="dim")

    def summarize(self, outcome: str, *, is_success: bool, show_log: bool = False) -> None:
        """Write the last line, which begins with `outcome`; the last log lines before it."""
        with self._lock:
            self._is_closed = True
            self._renderer.end()
            self._renderer.close()
            for line in self._ring if show_log else ():
                self._renderer.note(line, style="dim")
            parts = [f"{outcome} after {self._elapsed_s():.1f} s"]
            if self._cold_start_s is not None:
                parts.append(f"cold start {self._cold_start_s:.1f} s")
            if self._files:
                parts.append("files: " + ", ".join(self._files))
            self._renderer.note(", ".join(parts), style="green" if is_success else "red")

    @functools.cached_property
    def _renderer(self) -> Renderer:
        return self._make_renderer()

    @functools.singledispatchmethod
    def _show(self, event: JobEvent) -> None:
        self._renderer.note(_one_line(event.log_message()))

    @_show.register
    def _(self, event: job_events.JobReceived) -> None:
        self._renderer.note(_one_line(f"job {event.request_id} from {event.source}"))

    @_show.register
    def _(self, event: job_events.JobPostponed) -> None:
        self._renderer.end()
        self._renderer.note(_one_line(f"postponed: {event.message}"), style="yellow")

    @_show.register
    def _(self, event: job_events.JobStoreFailed) -> None:
        text = _one_line(f"warning: {event.message}: {event.reason}")
        self._renderer.note(text, style="yellow")

    @_show.register
    def _(self, event: job_events.WorkerStarting) -> None:
        self._renderer.begin("cold start …")

    @_show.register
    def _(self, event: job_events.WorkerReady) -> None:
        self._cold_start_s = event.cold_start_ms / 1000
        self._renderer.end(f"worker ready, cold start {self._cold_start_s:.1f} s")

    @_show.register
    def _(self, event: job_events.JobQueued) -> None:
        self._renderer.begin(f"queued, {event.nodes} nodes")

    @_show.register
    def _(self, event: job_events.NodeStarted) -> None:
        names = _one_line(f"{event.node_id} {event.class_type}")
        text = f"node {event.done + 1}/{event.total}  {names}  {_one_line(event.title)}"
        self._renderer.begin(text.rstrip(), event.percentage, event.eta_s)

    @_show.register
    def _(self, event: job_events.NodeProgress) -> None:
        # At the end of the run, nothing is left to show.
        if event.max > 0 and event.node_id is not None:
            self._renderer.step(event.value, event.max, event.percentage, event.eta_s)

    @_show.register
    def _(self, event: job_events.WeightsAwaited) -> None:
        text = f"{event.log_message()}  {_one_line(event.file)}"
        if self._awaited == event.file:
            self._renderer.update(text)
        else:
            self._awaited = event.file
            self._renderer.begin(text)

    @_show.register
    def _(self, event: job_events.WeightsArrived) -> None:
        self._awaited = ""
        self._renderer.end(_one_line(event.log_message()))

    @_show.register
    def _(self, event: job_events.JobCancelled) -> None:
        self._renderer.end()
        self._renderer.note(_one_line(event.message), style="yellow")

    @_show.register
    def _(self, event: job_events.JobWaiting) -> None:
        self._renderer.begin(event.log_message())

    @_show.register
    def _(self, event: job_events.ArtifactStored) -> None:
        name, size = _one_line(event.file), readable_size(event.size_bytes)
        self._files.append(name)
        self._renderer.note(f"stored {name}, {size}, in {event.ms / 1000:.1f} s")

    @_show.register
    def _(self, event: job_events.ArtifactFailed) -> None:
        text = _one_line(f"not stored: {event.file}: {event.reason}")
        self._renderer.note(text, style="red")

    @_show.register
    def _(self, event: job_events.ArtifactRemoved) -> None:
        self._renderer.note(_one_line(f"{event.log_message()}: {event.file}"), style="dim")

    @_show.register
    def _(self, event: job_events.ArtifactKept) -> None:
        text = _one_line(f"warning: {event.log_message()}: {event.reason}")
        self._renderer.note(text, style="yellow")

    @_show.register
    def _(self, event: job_events.WebhookDelivered) -> None:
        self._renderer.note(f"webhook delivered, status {event.status}")

    @_show.register
    def _(self, event: job_events.WebhookFailed) -> None:
        self._renderer.note(_one_line(f"webhook failed: {event.reason}"), style="red")

    @_show.register
    def _(self, event: job_events.JobCompleted) -> None:
        self._renderer.end()

    @_show.register
    def _(self, event: job_events.JobFailed) -> None:
        self._renderer.end()
        # The lines after the first are the last lines of ComfyUI's log.
        first, *more = str(event.error.get("message") or "").splitlines() or [""]
        parts = ["failed", _one_line(event.error.get("type") or ""), first]
        self._renderer.note(": ".join(filter(None, parts)), style="red")
        for line in more:
            self._renderer.note(line, style="dim")


def progress_on(stream: TextIO, *, is_verbose: bool) -> Progress:
    """The display that fits the stream: live on a terminal, plain lines elsewhere."""
    started = time.monotonic()

    def elapsed_s() -> float:
        return time.monotonic() - started

    def make_renderer() -> Renderer:
        if not stream.isatty():
            return PlainRenderer(stream, elapsed_s)
        # Late: rich takes 40 ms to import, and the first line comes after the handler's start.
        from rich.console import Console  # noqa: PLC0415

        from runtime.progress_terminal import TerminalRenderer  # noqa: PLC0415

        return TerminalRenderer(Console(file=stream))

    return Progress(make_renderer, elapsed_s=elapsed_s, is_verbose=is_verbose)


def readable_size(size_bytes: float) -> str:
    """`512 B`, `3.4 KB`, `12.0 MB`."""
    for unit in ("B", "KB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} GB"


def _of_run(percentage: float, eta_s: float | None) -> str:
    return ", ".join(filter(None, [f"{percentage:.0f} %", time_left(eta_s)]))


def _one_line(value: object) -> str:
    return " ".join(str(value).split())
