"""Compares the files that are in place with the SHA-256 of their manifests.

Nothing is deleted or downloaded here: a file may be the user's own, and a ComfyUI may have it open.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from runtime.log import log
from runtime.models.download_progress import download_display
from runtime.models.errors import DamagedFileError
from runtime.models.file_state import FileState, Phase
from runtime.models.manifest import ModelFile
from runtime.models.parts import is_complete

# One thread reads no mount at its full speed, and none hashes faster than a good disk reads.
_AT_ONCE = 4
_PIECE_BYTES = 1024 * 1024
_SHOW_EVERY_S = 0.25


def damaged_files(files: Iterable[tuple[ModelFile, Path]]) -> list[DamagedFileError]:
    """An error for each file that is there in its size, and has other bytes than its manifest says.

    Files that are missing are left out. Shows how far it is.
    """
    in_place = [(file, target) for file, target in files if is_complete(file, target)]
    for file, _ in in_place:
        if file.sha256 is None:
            log(f"models: {file.folder}/{file.name} has no sha256 in its manifest: not verified")
    checks = [_Check(file, target, file.sha256) for file, target in in_place if file.sha256]
    with ThreadPoolExecutor(_AT_ONCE) as pool, download_display() as display:
        runs = [pool.submit(check.run) for check in checks]
        try:
            while wait(runs, _SHOW_EVERY_S).not_done:
                display.update([check.state() for check in checks])
        finally:
            for check in checks:
                check.is_stopped = True
    errors = [check.error for check in checks if check.error]
    log(f"models: files verified: {len(checks)}, not right: {len(errors)}")
    return errors


class _Check:
    """The comparison of one file. `run` is for a thread of its own."""

    def __init__(self, file: ModelFile, target: Path, sha256: str) -> None:
        self.error: DamagedFileError | None = None
        self.is_stopped = False
        self._file, self._target, self._sha256 = file, target, sha256
        self._size_bytes = file.size_bytes
        self._done_bytes = 0

    def state(self) -> FileState:
        return FileState(
            file=self._file,
            target=self._target,
            phase=Phase.VERIFYING,
            done_bytes=self._done_bytes,
            size_bytes=self._size_bytes,
        )

    def run(self) -> None:
        name = f"{self._file.folder}/{self._file.name}"
        try:
            digest = self._digest()
        except OSError as error:
            self.error = DamagedFileError(
                f"{name}: {self._target} cannot be read: {error.strerror}; check the disk"
            )
            return
        if digest != self._sha256:
            self.error = DamagedFileError(
                f"{name}: {self._target} has the SHA-256 {digest}, the manifest says"
                f" {self._sha256}; delete it and run provision again, or correct the manifest"
            )

    def _digest(self) -> str:
        digest, buffer = hashlib.sha256(), memoryview(bytearray(_PIECE_BYTES))
        with self._target.open("rb", buffering=0) as model:
            self._size_bytes = self._target.stat().st_size
            while not self.is_stopped and (size := model.readinto(buffer)):
                digest.update(buffer[:size])
                self._done_bytes += size
        return digest.hexdigest()
