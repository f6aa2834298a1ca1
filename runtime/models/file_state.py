"""How far the download of one file is, as others see it."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from runtime.models.errors import DownloadError
from runtime.models.manifest import ModelFile


class Phase(StrEnum):
    """DONE and FAILED are final until the file is added again."""

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
