"""Which downloads run now: in the order of need, as far as the disk has room.

The order, and what may leave the disk, is decided in need.py; what is removed, in room.py; how
files are downloaded, in download.py. Not for several threads at once: ModelSupply holds its lock.
"""

import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from handler.settings import Settings
from runtime.models.errors import DiskFullError, DownloadError
from runtime.models.known_files import KnownFiles
from runtime.models.need import Need
from runtime.models.parts import is_complete
from runtime.models.placeholders import used_bytes
from runtime.models.room import Room

if TYPE_CHECKING:
    from runtime.models.download import Downloader, FileState

# ComfyUI lets go of a file when it has made the model from it.
_RELEASED_WITHIN_S = 60.0


class Schedule:
    """Downloads nothing before `start`."""

    def __init__(self, settings: Settings, known: KnownFiles) -> None:
        self._settings, self._known = settings, known
        self._room = Room(known.root, settings.clean_below_mb * 1_000_000, known.files)
        self._no_room: dict[Path, DiskFullError] = {}
        self._lacks_room: set[Path] = set()
        self._blocked_since: float | None = None
        self._last_order: list[Path] = []
        self.downloader: Downloader | None = None

    def start(self) -> None:
        # Not at the top: a worker without manifests downloads nothing.
        from runtime.models.download import Downloader  # noqa: PLC0415

        self.downloader = Downloader(self._settings, kept_bytes=self._room.kept_bytes)

    def update(self, need: Need, loading: Collection[Path], retried: Collection[Path]) -> None:
        """Add the downloads that are due, and put them into the order of need.

        No file of `loading` leaves the disk. Those of `retried` that have failed are tried again.
        """
        if self.downloader is None:
            return
        order = need.order()
        for target in retried:
            self._no_room.pop(target, None)
        blocked = None
        for target in order:
            self._note_told_size(target)
            has_failed = self.error(target) and target not in retried
            file = self._known.files[target]
            if self.is_coming(target) or has_failed or is_complete(file, target):
                continue
            if not self._make_room(target, need, loading):
                blocked = target
                break
            # The file may have a size by now.
            self.downloader.add(self._known.files[target], target, self._known.allowed(target))
            self._lacks_room.discard(target)
        self._note_blocked(blocked, need)
        coming = [target for target in order if self.is_coming(target)]
        if coming != self._last_order:
            self._last_order = coming
            self.downloader.prioritise(coming)

    def is_coming(self, target: Path) -> bool:
        download = self._download(target)
        return download is not None and not download.is_final

    def progress(self, target: Path) -> tuple[int, int]:
        """How many bytes are there, and how many will be, 0 while nobody knows."""
        download = self._download(target)
        return download.done_bytes if download else 0, self._size(target)

    def error(self, target: Path) -> DownloadError | None:
        """Why the file will not come; None where it is only to wait for room on the disk."""
        if target in self._no_room:
            return self._no_room[target]
        download = self._download(target)
        if download is None or target in self._lacks_room or self._has_told_size(target):
            return None
        return download.error

    def _note_told_size(self, target: Path) -> None:
        """Know how large the file is, if its source has told that when there was no room."""
        if (download := self._download(target)) and self._has_told_size(target):
            self._known.note_size(target, download.size_bytes)
            self._lacks_room.add(target)

    def _has_told_size(self, target: Path) -> bool:
        """Whether there was no room for a file, whose size was not known before."""
        file, download = self._known.files[target], self._download(target)
        return (
            download is not None
            and isinstance(download.error, DiskFullError)
            and download.size_bytes not in (file.size_bytes, file.expected_bytes)
        )

    def _make_room(self, target: Path, need: Need, loading: Collection[Path]) -> bool:
        """Whether the disk has room for the whole file; models that may go are removed for it."""
        missing = self._missing_bytes(target) - self._free_bytes()
        if missing <= 0:
            return True
        removable = need.removable_for(target, self._known.last_used)
        kept = {*loading, *filter(self.is_coming, self._known.files)}
        return self._room.remove(missing, removable, kept)

    def _note_blocked(self, target: Path | None, need: Need) -> None:
        """A loader's file for which there is no room, for a while now, will not come."""
        now = time.monotonic()
        if target is None or target not in need.awaited:
            self._blocked_since = None
        elif self._blocked_since is None:
            self._blocked_since = now
        elif now - self._blocked_since > _RELEASED_WITHIN_S:
            self._blocked_since = None
            self._no_room[target] = DiskFullError(
                f"{self._room.root} has no room for {target.name}, {self._size(target)} bytes:"
                f" {max(self._free_bytes(), 0)} bytes may be used, CLEAN_BELOW stays free, and"
                " no other model can be removed"
            )

    def _free_bytes(self) -> int:
        """What the downloads that were added leave free."""
        coming = filter(self.is_coming, self._known.files)
        return self._room.free_bytes() - sum(map(self._missing_bytes, coming))

    def _missing_bytes(self, target: Path) -> int:
        return self._size(target) - used_bytes(target)

    def _size(self, target: Path) -> int:
        file, download = self._known.files[target], self._download(target)
        told = download.size_bytes if download else None
        return file.size_bytes or told or file.expected_bytes or 0

    def _download(self, target: Path) -> "FileState | None":
        try:
            return self.downloader.state(target) if self.downloader else None
        except KeyError:
            return None
