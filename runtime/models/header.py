"""Zeros where the format of a model has a header: that is no model.

`cp -L` and `rsync -L` make such files of placeholders: regular ones, in the size of the models.
"""

import os
import stat
from pathlib import Path

# They begin with the length of a header, with `GGUF`, as a ZIP archive or as a pickle. Files of
# other names may begin with anything.
# https://github.com/huggingface/safetensors#format
_FORMATS = (".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pt2", ".pth")
HEADER_BYTES = 8


def lacks_header(name: str, beginning: bytes) -> bool:
    """Whether the file of this name cannot be a model, because of its first HEADER_BYTES."""
    return name.lower().endswith(_FORMATS) and beginning == bytes(HEADER_BYTES)


# The inode and the time of each file that has a header. What has none is looked at each time: the
# file may be written within the same tick of the clock.
_with_header: dict[Path, tuple[int, int]] = {}


def is_copied_placeholder(path: Path) -> bool:
    """Whether the file has the zeros of a placeholder. The placeholder itself counts, too.

    Reads each model once, as long as it stays what it is.
    """
    try:
        status = path.stat()
        version = status.st_ino, status.st_mtime_ns
        if not stat.S_ISREG(status.st_mode) or _with_header.get(path) == version:
            return False
        if lacks_header(path.name, _beginning(path)):
            return True
    except (OSError, ValueError):
        return False
    _with_header[path] = version
    return False


def _beginning(path: Path) -> bytes:
    try:
        # Not a use of the model: the time of the last one decides what leaves a small disk.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOATIME)
    except PermissionError:
        # For the owner alone: open(2).
        descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, HEADER_BYTES, 0)
    finally:
        os.close(descriptor)
