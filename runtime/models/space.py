"""Whether files fit on their disks, before the first byte is downloaded."""

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


def check_space(files: Iterable[tuple[ModelFile, Path]]) -> None:
    """Raises DiskFullError for files that do not fit. A size that is not known counts as 0."""
    needed: dict[int, int] = defaultdict(int)
    folders: dict[int, Path] = {}
    for file, target in files:
        folder = next(path for path in target.parents if path.exists())
        device = os.stat(folder).st_dev
        folders.setdefault(device, folder)
        if not is_complete(file, target):
            size = file.size_bytes or file.expected_bytes or 0
            needed[device] += max(0, size - done_bytes_on_disk(Parts(target)))
    for device, size in needed.items():
        free = shutil.disk_usage(folders[device]).free - RESERVE_BYTES
        if size > free:
            raise DiskFullError(
                f"{size / 1e9:.1f} GB of models do not fit into the {max(free, 0) / 1e9:.1f} GB"
                f" that are free for them in {folders[device]}: free some, or name a larger disk in"
                " MODELS_DIR (of a function: raise TmpMiB, or use ModelStorage efs or s3files)"
            )
