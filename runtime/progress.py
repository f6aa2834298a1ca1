"""Live progress of an invocation, read from the log lines of the handler and the worker.

What is worth a line is decided here, how it looks by a renderer: plain lines below, a live display
in progress_terminal.py. The lines come from handler/log.py.
"""

import contextlib
import functools
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TextIO

_RING_LINES = 40
_STEP_EVERY_S = 1.0
# AWS's client writes these 90 words before every error at import, and then the error.
_BOILERPLATE = "LAMBDA_WARNING: Unhandled exception."
_LOUD_LEVELS = frozenset({"WARNING", "ERROR", "CRITICAL"})


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of output. `level` is empty for a line that is no JSON object."""

    text: str
    level: str = ""
    event: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    trace: tuple[str, ...] = ()


def parse(line: str) -> LogLine:
    """Read what Powertools' Logger, AWS's runtime client, or anybody's print wrote."""
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
        event=str(entry.get("event") or ""),
        fields=entry,
        trace=tuple(line for part in trace for line in str(part).splitlines()),
    )


class Renderer(Protocol):
    """Shows progress. Called by one thread at a time."""

    def note(self, text: str, *, style: str = "") -> None:
        """A line that stays; `style` is one of rich's: dim, yellow, red, green."""

    def begin(self, text: str) -> None:
        """Something that takes a while begins; what went on before is over."""

    def step(self, value: float, maximum: float) -> None:
        """How far it is, within what goes on."""

    def end(self, text: str = "") -> None:
        """What went on is over; `text` says so where durations are not shown by themselves."""

    def close(self) -> None:
        """Give the terminal back; only `note` may follow."""


class PlainRenderer:
    """One line each, with the seconds since the start in front: for files and pipes."""

    def __init__(self, stream: TextIO, elapsed_s: Callable[[], float]) -> None:
        self._stream, self._elapsed_s = stream, elapsed_s
        self._stepped_at = float("-inf")

    def note(self, text: str, *, style: str = "") -> None:
        # When nobody reads any more (`2>&1 | head`) the invocation goes on all the same.
        with contextlib.suppress(OSError):
            print(f"[{self._elapsed_s():6.1f} s] {text}", file=self._stream, flush=True)

    def begin(self, text: str) -> None:
        self._stepped_at = float("-inf")
        self.note(text)

    def step(self, value: float, maximum: float) -> None:
        now = self._elapsed_s()
        if now - self._stepped_at >= _STEP_EVERY_S or value >= maximum:
            self._stepped_at = now
            self.note(f"  step {value:g}/{maximum:g} {100 * value / maximum:.0f} %")

    def end(self, text: str = "") -> None:
        if text:
            self.note(text)

    def close(self) -> None:
        """Nothing is open."""


class Progress:
    """Turns log lines into calls of a renderer, made for the first line that is shown.

    `feed` may be called by any thread; leaving the context gives the terminal back.
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._is_closed = True
            self._renderer.close()

    def feed(self, line: str) -> None:
        """Take in one line of output."""
        parsed = parse(line)
        with self._lock:
            self._ring.extend(parsed.trace if parsed.level else [line])
            if self._is_closed:
                return
            if parsed.event in _SHOWN:
                _SHOWN[parsed.event](self, parsed.fields)
            elif parsed.level in _LOUD_LEVELS:
                self._renderer.note(f"warning: {parsed.text}", style="yellow")
            elif self._is_verbose:
                self._renderer.note(parsed.text, style="dim")

    def summarize(self, outcome: str, *, is_success: bool, show_log: bool = False) -> None:
        """Write the last line, which begins with `outcome`; before it the last log lines."""
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

    def _received(self, fields: Mapping[str, Any]) -> None:
        self._renderer.note(f"job {_text(fields, 'request_id')} from {_text(fields, 'source')}")

    def _starting(self, fields: Mapping[str, Any]) -> None:
        self._renderer.begin("cold start …")

    def _ready(self, fields: Mapping[str, Any]) -> None:
        self._cold_start_s = _number(fields, "cold_start_ms") / 1000
        self._renderer.end(f"worker ready, cold start {self._cold_start_s:.1f} s")

    def _queued(self, fields: Mapping[str, Any]) -> None:
        self._renderer.begin(f"queued, {_number(fields, 'nodes'):g} nodes")

    def _node(self, fields: Mapping[str, Any]) -> None:
        count = f"{_number(fields, 'done'):g}/{_number(fields, 'total'):g}"
        names = f"{_text(fields, 'node_id')} {_text(fields, 'class_type')}"
        self._renderer.begin(f"node {count}  {names}  {_text(fields, 'title')}".rstrip())

    def _step(self, fields: Mapping[str, Any]) -> None:
        if (maximum := _number(fields, "max")) > 0:
            self._renderer.step(_number(fields, "value"), maximum)

    def _stored(self, fields: Mapping[str, Any]) -> None:
        name = _text(fields, "file")
        size, seconds = readable_size(_number(fields, "size_bytes")), _number(fields, "ms") / 1000
        self._files.append(name)
        self._renderer.note(f"stored {name}, {size}, in {seconds:.1f} s")

    def _not_stored(self, fields: Mapping[str, Any]) -> None:
        what = f"{_text(fields, 'file')}: {_text(fields, 'reason')}"
        self._renderer.note(f"not stored: {what}", style="red")

    def _webhook(self, fields: Mapping[str, Any]) -> None:
        attempts = f", attempts: {fields['attempts']}" if "attempts" in fields else ""
        self._renderer.note(f"webhook delivered, status {_text(fields, 'status')}{attempts}")

    def _no_webhook(self, fields: Mapping[str, Any]) -> None:
        self._renderer.note(f"webhook failed: {_text(fields, 'reason')}", style="red")

    def _completed(self, fields: Mapping[str, Any]) -> None:
        self._renderer.end()

    def _failed(self, fields: Mapping[str, Any]) -> None:
        self._renderer.end()
        error = fields.get("error")
        error = error if isinstance(error, dict) else {"message": error}
        # The lines after the first are ComfyUI's last words.
        first, *more = str(error.get("message") or "").splitlines() or [""]
        self._renderer.note(
            ": ".join(["failed", *filter(None, [_text(error, "type"), first])]), style="red"
        )
        for line in more:
            self._renderer.note(line, style="dim")


_SHOWN: Mapping[str, Callable[[Progress, Mapping[str, Any]], None]] = {
    "job.received": Progress._received,
    "worker.starting": Progress._starting,
    "worker.ready": Progress._ready,
    "job.queued": Progress._queued,
    "node.started": Progress._node,
    "node.progress": Progress._step,
    "artifact.stored": Progress._stored,
    "artifact.failed": Progress._not_stored,
    "webhook.delivered": Progress._webhook,
    "webhook.failed": Progress._no_webhook,
    "job.completed": Progress._completed,
    "job.failed": Progress._failed,
}


def progress_on(stream: TextIO, *, is_verbose: bool) -> Progress:
    """The display that fits the stream: live on a terminal, plain lines elsewhere."""
    started = time.monotonic()

    def elapsed_s() -> float:
        return time.monotonic() - started

    def make_renderer() -> Renderer:
        if not stream.isatty():
            return PlainRenderer(stream, elapsed_s)
        # Only now: rich takes 40 ms to import, and nothing is to show before the handler runs.
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


def _one_line(value: object) -> str:
    return " ".join(str(value).split())


def _text(fields: Mapping[str, Any], name: str) -> str:
    return _one_line(fields.get(name) if fields.get(name) is not None else "")


def _number(fields: Mapping[str, Any], name: str) -> float:
    value = fields.get(name)
    try:
        number = float(value) if isinstance(value, (int, float)) else 0.0
    except OverflowError:
        return 0.0
    return number if math.isfinite(number) else 0.0
