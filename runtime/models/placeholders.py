"""Files that stand for models while these are downloaded, and the removal of models that can be.

ComfyUI's validation asks only whether a file of the name is there. A placeholder has the size of
the model and takes no space on the disk; whoever reads it without asking first meets a header of
zeros. The names of the files are explained in runtime/models/parts.py.
"""

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import IO, Any

from runtime.models.header import is_copied_placeholder
from runtime.models.manifest import ModelFile
from runtime.models.parts import Parts, is_placeholder
from runtime.process.file_lock import try_file_lock, unlock_file

# Where the size is not known: more than the header of an empty model.
_SIZE_IF_UNKNOWN = 1 << 20
_BLOCK_BYTES = 512


def put_placeholder(file: ModelFile, target: Path) -> None:
    """Make a placeholder under the model's name, if no model is there. Raises OSError.

    The time of one that is there becomes the present one: somebody needs it. A copy of one, which
    may take the space of the model, is replaced.
    """
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    # False also for a link whose placeholder did not survive a crash.
    if target.exists():
        if is_placeholder(target):
            os.utime(target, follow_symlinks=False)
        elif is_copied_placeholder(target):
            _replace_copy(file, target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    _write_sparse_file(file, target)
    if target.is_symlink() and not is_placeholder(target):
        _remove_dead_link(target)
    # Another worker may have been faster.
    with contextlib.suppress(FileExistsError):
        target.symlink_to(Parts(target).placeholder.name)


def delete_placeholder(target: Path) -> bool:
    """Delete a placeholder and what was downloaded of its model. Raises OSError.

    False when another process downloads the model at this moment, or has completed it.
    """
    parts = Parts(target)
    if (lock := try_file_lock(parts.lock)) is None:
        return False
    try:
        if not is_placeholder(target):
            return False
        # The name goes last: without it, nobody would find the others after a crash.
        for path in (parts.state, parts.part, parts.placeholder, target):
            path.unlink(missing_ok=True)
        return True
    finally:
        unlock_file(parts.lock, lock)


def remove_model(file: ModelFile, target: Path) -> bool:
    """Replace the model by a placeholder, and remove what was downloaded of it so far.

    False when another process loads or downloads it at this moment. Raises OSError.
    """
    parts = Parts(target)
    if parts.part.exists():
        if (lock := try_file_lock(parts.lock)) is None:
            return False
        try:
            parts.state.unlink(missing_ok=True)
            parts.part.unlink(missing_ok=True)
        finally:
            unlock_file(parts.lock, lock)
    if is_placeholder(target) or not target.exists():
        return True
    # NFS gives an exclusive lock to those alone who may write: flock(2).
    with target.open("r+b" if os.access(target, os.W_OK) else "rb") as model:
        if not _is_locked(model):
            return False
        _replace_by_placeholder(file, target)
    return True


def used_bytes(target: Path) -> int:
    """The disk space of the model, or of what was downloaded of it so far."""
    return sum(_allocated_bytes(path) for path in (target, Parts(target).part))


def _replace_copy(file: ModelFile, target: Path) -> None:
    parts = Parts(target)
    if (lock := try_file_lock(parts.lock)) is None:
        # The model that another process downloads will replace it.
        return
    try:
        if is_copied_placeholder(target):
            _replace_by_placeholder(file, target)
    finally:
        unlock_file(parts.lock, lock)


def _replace_by_placeholder(file: ModelFile, target: Path) -> None:
    """Without a moment in which there is nothing under the name."""
    _write_sparse_file(file, target)
    link = target.with_name(f"{target.name}.placeholder.link")
    link.unlink(missing_ok=True)
    link.symlink_to(Parts(target).placeholder.name)
    link.replace(target)


def _is_locked(file: IO[Any]) -> bool:
    """Whether this process alone holds the file now, until it closes it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_dead_link(target: Path) -> None:
    """Remove a link that leads nowhere, which the model will replace, too."""
    parts = Parts(target)
    # Without the lock, another worker could put the model there at this moment.
    if (lock := try_file_lock(parts.lock)) is None:
        return
    try:
        if not target.exists():
            target.unlink(missing_ok=True)
    finally:
        unlock_file(parts.lock, lock)


def _write_sparse_file(file: ModelFile, target: Path) -> None:
    with Parts(target).placeholder.open("wb") as placeholder:
        placeholder.truncate(file.size_bytes or file.expected_bytes or _SIZE_IF_UNKNOWN)


def _allocated_bytes(path: Path) -> int:
    try:
        return path.lstat().st_blocks * _BLOCK_BYTES
    except OSError:
        return 0
