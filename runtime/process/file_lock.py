"""Locks between processes that write to the same folder. They end with the process."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from runtime.log import log


@contextmanager
def hold_file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file. A second process logs that it waits, and waits.

    Children inherit the lock unless their file descriptors are closed. Raises OSError when the file
    cannot be written.
    """
    with path.open("w") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"another run holds {path}: waiting for it to end")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def lock_file(path: Path) -> BinaryIO | None:
    """An exclusive lock until the file is closed; None if another process has it. The file stays.

    Raises OSError when the file cannot be written.
    """
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def try_file_lock(path: Path) -> int | None:
    """Take an exclusive lock: a file descriptor that holds it, None if another process has it.

    `unlock_file` gives it back. Raises OSError when the file cannot be written.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if _is_file_of(path, descriptor):
            return descriptor
        # The holder before has deleted this file, and somebody may hold a new one by now.
        os.close(descriptor)


def unlock_file(path: Path, descriptor: int) -> None:
    """Give a lock of `try_file_lock` back, and delete its file.

    Raises OSError when the file cannot be deleted; the lock is given back all the same.
    """
    try:
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _is_file_of(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
