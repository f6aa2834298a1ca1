"""Bars of downloads on a terminal: one for each file, with rate and time left."""

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from runtime.models.file_state import FileState, Phase

_WORDS = {
    Phase.QUEUED: "waits",
    Phase.ELSEWHERE: "another process downloads it",
    Phase.DOWNLOADING: "",
    Phase.VERIFYING: "verifying",
    Phase.DONE: "done",
    Phase.FAILED: "failed",
}


class Bars:
    """A context manager; the bars stay on the screen when it ends."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[word]}"),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def update(self, states: Sequence[FileState]) -> None:
        for state in states:
            name = str(state.target)
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(state.file.name, word="")
            self._progress.update(
                self._tasks[name],
                total=state.size_bytes,
                completed=state.done_bytes,
                word=_WORDS[state.phase],
            )
