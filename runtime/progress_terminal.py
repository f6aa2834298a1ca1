"""The live display of progress on a terminal: a spinner, a bar for steps, finished lines above.

Which events it shows, and in which words, is decided in progress.py.
"""

import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.text import Text

from runtime.time_left import time_left

_REFRESH_PER_S = 10


class _SecondsColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.elapsed or 0.0:.1f} s", style="cyan")


class TerminalRenderer:
    """One moving line for the current activity, and a second one for the run, once it has begun.

    The second line has the steps of the activity, if it counts them, and the bar of the whole run.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._activity_text = ""
        self._began = 0.0
        self._activity = _progress(console, SpinnerColumn(), _description(), _SecondsColumn())
        self._run = _progress(
            console,
            TextColumn("   {task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %"),
            TextColumn("{task.fields[left]}"),
        )
        self._bar: TaskID | None = None
        self._live = Live(
            Group(self._activity, self._run),
            console=console,
            refresh_per_second=_REFRESH_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def note(self, text: str, *, style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)

    def begin(self, text: str, percentage: float | None = None, eta_s: float | None = None) -> None:
        self.end()
        self._activity_text, self._began = text, time.monotonic()
        self._activity.add_task(text, total=None)
        if percentage is not None:
            self._show_run("", percentage, eta_s)

    def update(self, text: str) -> None:
        self._activity_text = text
        for task in self._activity.task_ids:
            self._activity.update(task, description=text)

    def step(self, value: float, maximum: float, percentage: float, eta_s: float | None) -> None:
        self._show_run(f"step {value:g}/{maximum:g}", percentage, eta_s)

    def end(self, text: str = "") -> None:
        for progress in (self._activity, self._run):
            for task in progress.task_ids:
                progress.remove_task(task)
        if self._activity_text:
            self.note(
                f"{time.monotonic() - self._began:7.1f} s  {self._activity_text}", style="dim"
            )
        self._activity_text, self._bar = "", None

    def _show_run(self, steps: str, percentage: float, eta_s: float | None) -> None:
        if self._bar is None:
            self._bar = self._run.add_task("", total=100, left="")
        self._run.update(self._bar, completed=percentage, description=steps, left=time_left(eta_s))

    def close(self) -> None:
        self._live.stop()


def _progress(console: Console, *columns: Any) -> Progress:
    return Progress(*columns, console=console)


def _description() -> TextColumn:
    # A title comes from the workflow: what looks like markup in it is text.
    return TextColumn("{task.description}", markup=False)
