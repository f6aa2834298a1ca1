"""The pinned versions of ComfyUI's environment: infra/locks/comfyui.txt, read entry by entry.

`make lock` writes the file with uv. Each entry has the version, the hashes of its files and, after
it, the packages that require it. pip itself reads the conditions ("markers") of the entries.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from runtime.installation.command import InstallError

_ENTRY = re.compile(
    r"^(?P<name>[a-z0-9-]+)==(?P<version>\S+)(?P<rest>.*(?:\n[ ].*)*)", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Pin:
    """One package. `entry` is its part of the lock file, as pip reads it."""

    name: str
    version: str
    entry: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


def read_pins(lock: Path) -> tuple[Pin, ...]:
    """The pins of a lock file, in its order. Raises InstallError."""
    try:
        text = lock.read_text()
    except OSError as error:
        raise InstallError(f"cannot read the package versions from {lock}: {error}") from error
    return tuple(Pin(found["name"], found["version"], found[0]) for found in _ENTRY.finditer(text))
