"""What is free on a disk, and whether files fit there, before the first byte is downloaded."""

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from runtime.models.errors import DiskFullError
from runtime.models.manifest import ModelFile
from runtime.models.part_file import done_bytes_on_disk
from runtime.models.parts import Parts, is_complete

# Free space that is left for results, inputs and ComfyUI's own files.
RESERVE_BYTES = 512 * 1024**2


def free_bytes(folder: Path) -> int:
    """What is free on the disk of a folder, which need not exist yet. Raises OSError."""
    return shutil.disk_usage(_existing(folder)).free


def check_size(size_bytes: int, target: Path, kept_bytes: int) -> None:
    """Raises DiskFullError for a file that does not fit, or OSError. `kept_bytes` stay free."""
    missing = size_bytes - done_bytes_on_disk(Parts(target))
    free = max(free_bytes(target.parent) - kept_bytes, 0)
    if missing > free:
        raise DiskFullError(
            f"{target}: {missing / 1e9:.1f} GB are missing, {free / 1e9:.1f} GB are free for it;"
            " free some, or download to a larger disk"
        )


def check_space(files: Iterable[tuple[ModelFile, Path]]) -> None:
    """Raises DiskFullError for files that do not fit. A size that is not known counts as 0."""
    needed: dict[int, int] = defaultdict(int)
    folders: dict[int, Path] = {}
    for file, target in files:
        folder = _existing(target.parent)
        device = os.stat(folder).st_dev
        folders.setdefault(device, folder)
        if not is_complete(file, target):
            size = file.size_bytes or file.expected_bytes or 0
            needed[device] += max(0, size - done_bytes_on_disk(Parts(target)))
    for device, size in needed.items():
        free = free_bytes(folders[device]) - RESERVE_BYTES
        if size > free:
            raise DiskFullError(
                f"{size / 1e9:.1f} GB of models do not fit into the {max(free, 0) / 1e9:.1f} GB"
                f" that are free for them in {folders[device]}: free some, or name a larger disk in"
                " MODELS_DIR (of a function: raise TmpMiB, or use ModelStorage efs or s3files)"
            )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())
