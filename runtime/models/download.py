"""Downloads model files in an order that can change while it runs."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType

from handler.settings import Settings
from runtime.errors import LambdaComfyUIError
from runtime.models.manifest import ModelFile

CONNECTIONS = 32


class DownloadError(LambdaComfyUIError):
    """A file cannot be downloaded; the message names it, its source, the reason and the fix."""


class Phase(StrEnum):
    """How far one file is. DONE and FAILED are final until the file is added again."""

    QUEUED = "queued"
    ELSEWHERE = "elsewhere"  # another process downloads it
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileState:
    """One file, as it is now. `size_bytes` is None until a source or the manifest has told it."""

    file: ModelFile
    target: Path
    phase: Phase
    done_bytes: int
    size_bytes: int | None
    error: DownloadError | None = None

    @property
    def is_final(self) -> bool:
        return self.phase in (Phase.DONE, Phase.FAILED)


class Downloader:
    """Downloads files with one pool of connections: the first file of the order gets them all.

    A context manager. Any thread may call it; none of its methods waits for the network. `changed`
    is notified when the phase of a file changes, not for every byte.
    """

    changed: threading.Condition

    def __init__(self, settings: Settings, *, connections: int = CONNECTIONS) -> None:
        """Start the threads. Tokens come from the environment: HF_TOKEN, S3_*, AWS_*."""
        raise NotImplementedError(settings, connections)

    def __enter__(self) -> "Downloader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def add(self, file: ModelFile, target: Path) -> None:
        """Download the file to `target`, after the files that were added before it.

        A complete file is DONE at once. A FAILED file, and a DONE one that was evicted since, is
        downloaded again.
        """
        raise NotImplementedError

    def prioritise(self, targets: Sequence[Path]) -> None:
        """Download these files first, in this order. The others keep their order behind them.

        Connections leave other files in the middle of a range for the first one.
        """
        raise NotImplementedError

    def state(self, target: Path) -> FileState:
        """Raises KeyError for a file that was not added."""
        raise NotImplementedError

    def states(self) -> list[FileState]:
        """All files in the present order."""
        raise NotImplementedError

    def wait(self, targets: Iterable[Path], timeout_s: float | None = None) -> bool:
        """Whether all of these files are DONE or FAILED, after `timeout_s` seconds at most."""
        raise NotImplementedError

    def stop(self) -> None:
        """End all connections and threads. What was downloaded stays on the disk."""
        raise NotImplementedError
