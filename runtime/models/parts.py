"""The files beside a model file while it is downloaded, and whether it is complete.

    NAME                 the model: complete and verified, or a link to its placeholder
    NAME.placeholder     a sparse file of the model's size, for ComfyUI's validation
    NAME.part            the bytes so far; renamed to NAME when they are verified
    NAME.part.state      which blocks of NAME.part are there
    NAME.part.lock       held by the process that downloads (flock: it ends with the process)

A placeholder is a link, because a link can be told from a model after any crash, and renaming a
file over it, or a link over a file, is atomic. None of the names has an extension of a model, so
ComfyUI does not list them.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from runtime.models.header import is_copied_placeholder
from runtime.models.manifest import ModelFile


@dataclass(frozen=True, slots=True)
class Parts:
    """The names beside one model file."""

    target: Path

    @property
    def placeholder(self) -> Path:
        return self._beside(".placeholder")

    @property
    def part(self) -> Path:
        return self._beside(".part")

    @property
    def state(self) -> Path:
        return self._beside(".part.state")

    @property
    def lock(self) -> Path:
        return self._beside(".part.lock")

    def _beside(self, suffix: str) -> Path:
        return self.target.with_name(self.target.name + suffix)


def is_placeholder(target: Path) -> bool:
    """Whether there is a placeholder under the model's name."""
    try:
        return os.readlink(target) == Parts(target).placeholder.name
    except (OSError, ValueError):
        # No link, or no longer: another process may have put the model there.
        return False


def is_complete(file: ModelFile, target: Path) -> bool:
    """Whether the model is there, in its size: no placeholder, and no copy of one."""
    try:
        status = target.stat()
    except (OSError, ValueError):
        return False
    # Asked last: another process may have put a placeholder there, whose size is that of the model.
    is_model = stat.S_ISREG(status.st_mode) and not is_placeholder(target)
    has_size = file.size_bytes in (None, status.st_size)
    return is_model and has_size and not is_copied_placeholder(target)
