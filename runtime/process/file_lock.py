"""A lock between processes, for commands that write to the same folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
