"""Stores input files under the hash of their content; many that want one fetch it once.

A file has its name only when it is complete. A lock for each reference lets those wait that want
the same at the same time; a later job fetches the file again, because it may have changed. What a
killed process leaves of a file is removed by runtime/worker/housekeeping.py.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from handler.inputs.sources import BadReference, Content

_LOCK_POLL_S = 0.05
# Hidden, so that ComfyUI does not list them.
PART_PREFIX, PART_SUFFIX = ".fetch-", ".part"
# The same content has the same name and time: nodes compare the time to see a change.
_MODIFIED_S = 1


class InputFolder:
    """ComfyUI's input folder; the locks are in `locks`."""

    def __init__(self, folder: Path, locks: Path) -> None:
        self._folder, self._locks = folder, locks

    def fetch(self, identity: str, store: Callable[[], str], check: Callable[[], None]) -> str:
        """The name of the file that `identity` stands for, which `store` returns.

        If another process stores it now, its file is taken. `check` is called while it does, and
        ends the wait by raising.
        """
        self._locks.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._locks / sha256(identity.encode()).hexdigest()
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while not _try_lock(handle):
                check()
                time.sleep(_LOCK_POLL_S)
            if name := self._stored(handle):
                return name
            try:
                name = store()
            finally:
                # Those that wait have it open; who comes later fetches the file again.
                path.unlink(missing_ok=True)
            os.pwrite(handle, name.encode(), 0)
            return name
        finally:
            os.close(handle)

    def store(
        self, content: Content, subfolder: str, max_bytes: int, check: Callable[[], None]
    ) -> str:
        """Write the content into the subfolder, and return the name of its file.

        Raises BadReference, OSError, and what `check` raises.
        """
        folder = self._folder / subfolder
        folder.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=folder, prefix=PART_PREFIX, suffix=PART_SUFFIX)
        digest, size = sha256(), 0
        try:
            with os.fdopen(handle, "wb") as file:
                for chunk in content.chunks:
                    check()
                    size += len(chunk)
                    if size > max_bytes:
                        raise BadReference(
                            f"it is larger than {max_bytes // 1024 // 1024} MiB, the limit of"
                            " INPUT_MAX_MB"
                        )
                    digest.update(chunk)
                    file.write(chunk)
            if size == 0:
                raise BadReference("it is empty")
            name = f"{digest.hexdigest()}{content.suffix}"
            os.chmod(part, 0o644)
            os.utime(part, (time.time(), _MODIFIED_S))
            os.replace(part, folder / name)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise
        return f"{subfolder}/{name}" if subfolder else name

    def _stored(self, handle: int) -> str:
        """The name that the holder of the lock before has written; "" if it has failed."""
        name = os.pread(handle, 4096, 0).decode()
        return name if name and (self._folder / name).exists() else ""


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
