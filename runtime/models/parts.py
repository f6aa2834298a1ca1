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

from dataclasses import dataclass
from pathlib import Path

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
    return target.is_symlink() and target.readlink() == Path(Parts(target).placeholder.name)


def is_complete(file: ModelFile, target: Path) -> bool:
    """Whether the model is there, in the size of its manifest, and is no placeholder."""
    if is_placeholder(target) or not target.is_file():
        return False
    return file.size_bytes in (None, target.stat().st_size)
