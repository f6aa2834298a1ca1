"""Brings models to ComfyUI while it boots and runs: those that it needs first come first.

All files of the manifests have placeholders from the start, so that ComfyUI accepts a workflow. Its
loaders ask here (runtime/worker/gate.py) and wait for their file. What is next, and what may leave
a disk that is too small, is decided in need.py; how files are downloaded, in download.py.
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from handler.model_folders import download_root, model_path
from handler.settings import Settings
from handler.worker_protocol import ModelUrl
from runtime.log import log
from runtime.models.errors import (
    AccessDeniedError,
    DiskFullError,
    DownloadError,
    SourceMissingError,
)
from runtime.models.header import is_copied_placeholder
from runtime.models.manifest import Manifest, ModelFile
from runtime.models.merged_files import merged_files
from runtime.models.need import Need
from runtime.models.parts import is_complete, is_placeholder
from runtime.models.placeholders import put_placeholder, used_bytes
from runtime.models.prefetch import Prefetcher
from runtime.models.room import Room
from runtime.models.url_files import find_url_files

if TYPE_CHECKING:
    from runtime.models.download import Downloader, FileState

_REPORT_EVERY_S = 0.5
_LOOK_FOR_ROOM_EVERY_S = 0.25
# ComfyUI lets go of a file when it has made the model from it.
_RELEASED_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class LoadState:
    """How far the file is that a loader asks for. `failure` says why it will not come.

    `is_request_wrong`: because the request names a URL without such a file.
    """

    is_complete: bool = False
    failure: str = ""
    is_request_wrong: bool = False
    done_bytes: int = 0
    total_bytes: int = 0


@dataclass(slots=True, eq=False)
class _Load:
    """A loader of ComfyUI that waits for a file, or reads it."""

    target: Path
    is_complete: bool = False


@dataclass(slots=True, eq=False)
class JobModels:
    """The models that a running job names, in the order of need."""

    targets: tuple[Path, ...] = ()


class ModelSupply:
    """The models of one worker. Call `start` before ComfyUI starts. Any thread may call it."""

    def __init__(self, settings: Settings, manifests: Iterable[Manifest]) -> None:
        """Raises ManifestError for manifests that contradict each other."""
        self._settings = settings
        self._files = {
            _real(model_path(file.folder, file.name, settings)): file
            for file in merged_files(manifests)
        }
        root = _real(download_root(settings) / "any").parent
        self._room = Room(root, settings.clean_below_mb * 1_000_000, self._files)
        self._prefetcher = Prefetcher(settings)
        self._lock = threading.RLock()
        self._of_callers: set[Path] = set()
        self._jobs: list[JobModels] = []
        self._loads: list[_Load] = []
        self._loaded: set[Path] = set()
        self._last_used = {target: _last_access(target) for target in self._files}
        self._no_room: dict[Path, str] = {}
        self._lacks_room: set[Path] = set()
        self._blocked_since: float | None = None
        self._last_order: list[Path] = []
        self._stopped = threading.Event()
        self._downloader: Downloader | None = None

    @property
    def read_bytes(self) -> int:
        """How many bytes were read ahead into the page cache."""
        return self._prefetcher.read_bytes

    def start(self) -> None:
        """Put placeholders where models are missing, and begin to download."""
        with self._lock:
            self._put_placeholders(self._files)
            for target, file in find_url_files(self._room.root).items():
                self._files.setdefault(_real(target), file)
                self._last_used.setdefault(_real(target), _last_access(target))
                self._of_callers.add(_real(target))
            if self._files:
                self._start_downloader()
                self._schedule()

    def add_urls(self, models: Iterable[ModelUrl]) -> None:
        """Download the models that a request names by URL, too. Call it before `begin_job`."""
        with self._lock:
            files = {
                _real(model_path(model.folder, model.name, self._settings)): ModelFile(
                    name=model.name, folder=model.folder, sources=(model.url,)
                )
                for model in models
            }
            if not files or self._stopped.is_set():
                return
            self._put_placeholders(files)
            for target, file in files.items():
                self._last_used.setdefault(target, _last_access(target))
                if not self._has_source(target):
                    self._files[target] = file
                    self._of_callers.add(target)
            self._start_downloader()

    def _put_placeholders(self, files: Mapping[Path, ModelFile]) -> None:
        for target, file in files.items():
            try:
                put_placeholder(file, target)
            except OSError as error:
                log(f"no placeholder can be put at {target}: {error.strerror}")

    def _start_downloader(self) -> None:
        if self._downloader is None:
            # Not at the top: a worker without manifests downloads nothing.
            from runtime.models.download import Downloader  # noqa: PLC0415

            self._downloader = Downloader(self._settings, kept_bytes=self._room.kept_bytes)
            threading.Thread(target=self._look_for_room, name="model room", daemon=True).start()

    def stop(self) -> None:
        """End the downloads and the reading ahead. What was downloaded stays on the disk."""
        self._stopped.set()
        self._prefetcher.stop()
        with self._lock:
            downloader, self._downloader = self._downloader, None
        if downloader:
            downloader.stop()

    def begin_job(self, names: Sequence[str]) -> JobModels:
        """A job is about to load the models of these names, in this order."""
        self._prefetcher.begin(names)
        targets = [
            target for name in names for target, file in self._files.items() if file.name == name
        ]
        job = JobModels(tuple(targets))
        with self._lock:
            self._jobs.append(job)
            self._schedule(retried=targets)
        return job

    def end_job(self, job: JobModels) -> None:
        """A second call changes nothing."""
        with self._lock:
            if job in self._jobs:
                self._jobs.remove(job)

    @contextmanager
    def needed_by_a_job(self, names: Sequence[str]) -> Iterator[None]:
        """For a workflow of the worker's own, until the context ends."""
        job = self.begin_job(names)
        try:
            yield
        finally:
            self.end_job(job)

    def forget_loads(self) -> None:
        """ComfyUI has ended: the next one loads everything again."""
        self._prefetcher.stop()
        with self._lock:
            self._loaded.clear()

    @contextmanager
    def load(self, path: Path) -> Iterator[Iterator[LoadState]]:
        """A loader reads this file from now on, until the context ends.

        Yields the states of the file, until it is complete or will not come.
        """
        load = _Load(_real(path))
        with self._lock:
            self._loads.append(load)
            self._schedule(retried=[load.target])
        try:
            yield self._states(load)
        finally:
            with self._lock:
                self._loads.remove(load)
                self._prefetcher.note_loaded(load.target)
                if load.is_complete and load.target in self._files:
                    self._loaded.add(load.target)
                    self._last_used[load.target] = time.time()
                    self._schedule()

    def _states(self, load: _Load) -> Iterator[LoadState]:
        before = None
        while not self._stopped.is_set():
            state = self._state(load.target)
            load.is_complete = state.is_complete
            if state != before:
                yield state
            if state.is_complete or state.failure:
                return
            before = state
            downloader = self._downloader
            if downloader and self._is_coming(load.target):
                downloader.wait([load.target], _REPORT_EVERY_S)
            else:
                self._stopped.wait(_LOOK_FOR_ROOM_EVERY_S)
        yield LoadState(failure=f"{load.target.name} is not complete, and the worker ends")

    def _state(self, target: Path) -> LoadState:
        file = self._files.get(target)
        if file is None:
            is_left_over = is_placeholder(target) or is_copied_placeholder(target)
            failure = (
                f"{target.name} is a placeholder or the copy of one, and no manifest of this worker"
                f" names it: list it in one of MODEL_MANIFESTS, or delete {target}"
            )
            return LoadState(failure=failure) if is_left_over else LoadState(is_complete=True)
        with self._lock:
            if is_complete(file, target):
                return LoadState(is_complete=True)
            if target in self._no_room:
                return LoadState(failure=self._no_room[target])
            download, error = self._download(target), self._error(target)
        if error:
            is_request_wrong = target in self._of_callers and isinstance(
                error, (SourceMissingError, AccessDeniedError)
            )
            return LoadState(failure=str(error), is_request_wrong=is_request_wrong)
        done_bytes = download.done_bytes if download else 0
        return LoadState(done_bytes=done_bytes, total_bytes=self._size(target))

    def _schedule(self, retried: Sequence[Path] = ()) -> None:
        """Add downloads in the order of need, as far as the disk has room; call it with the lock.

        Those of the files `retried` that have failed are tried again.
        """
        if self._downloader is None:
            return
        need = self._need()
        order = need.order()
        for target in retried:
            self._no_room.pop(target, None)
        blocked = None
        for target in order:
            has_failed = self._error(target) and target not in retried
            if self._is_coming(target) or has_failed or is_complete(self._files[target], target):
                continue
            if target in self._no_room:
                continue
            if not self._make_room(target, need):
                blocked = target
                break
            allowed = self._settings.outbound_allow if target in self._of_callers else None
            self._downloader.add(self._files[target], target, allowed)
            self._lacks_room.discard(target)
        self._note_blocked(blocked, need)
        coming = [target for target in order if self._is_coming(target)]
        if coming != self._last_order:
            self._last_order = coming
            self._downloader.prioritise(coming)

    def _has_source(self, target: Path) -> bool:
        return target in self._files and bool(self._files[target].sources)

    def _need(self) -> Need:
        awaited = [load.target for load in self._loads if not load.is_complete]
        return Need(
            awaited=[target for target in awaited if target in self._files],
            named=[target for job in self._jobs for target in job.targets],
            listed=[target for target in self._files if self._has_source(target)],
            left=[target for target in self._files if not self._has_source(target)],
            loaded=self._loaded,
        )

    def _make_room(self, target: Path, need: Need) -> bool:
        """Whether the disk has room for the whole file; models that may go are removed for it."""
        missing = self._missing_bytes(target) - self._free_bytes()
        removable = need.removable_for(target, self._last_used)
        coming = {path for path in self._files if self._is_coming(path)}
        kept = coming.union(load.target for load in self._loads)
        return missing <= 0 or self._room.remove(missing, removable, kept)

    def _note_blocked(self, target: Path | None, need: Need) -> None:
        """A loader's file for which there is no room, for a while now, will not come."""
        now = time.monotonic()
        if target is None or target not in need.awaited:
            self._blocked_since = None
        elif self._blocked_since is None:
            self._blocked_since = now
        elif now - self._blocked_since > _RELEASED_WITHIN_S:
            self._blocked_since = None
            self._no_room[target] = (
                f"{self._room.root} has no room for {target.name}, {self._size(target)} bytes:"
                f" {max(self._free_bytes(), 0)} bytes may be used, CLEAN_BELOW stays free, and"
                " ComfyUI has the other models open"
            )

    def _free_bytes(self) -> int:
        """What the downloads that were added leave free."""
        coming = [target for target in self._files if self._is_coming(target)]
        return self._room.free_bytes() - sum(map(self._missing_bytes, coming))

    def _missing_bytes(self, target: Path) -> int:
        return self._size(target) - used_bytes(target)

    def _is_coming(self, target: Path) -> bool:
        download = self._download(target)
        return download is not None and not download.is_final

    def _download(self, target: Path) -> "FileState | None":
        try:
            return self._downloader.state(target) if self._downloader else None
        except KeyError:
            return None

    def _error(self, target: Path) -> DownloadError | None:
        """Why the download has failed; None where it is only to wait for room on the disk.

        That is if the source has told the size of the file when there was no room: it is known now.
        """
        download = self._download(target)
        if download is None or download.error is None or target in self._lacks_room:
            return None
        file = self._files[target]
        is_news = download.size_bytes not in (file.size_bytes, file.expected_bytes)
        if isinstance(download.error, DiskFullError) and is_news:
            self._files[target] = replace(file, expected_bytes=download.size_bytes)
            self._lacks_room.add(target)
            return None
        return download.error

    def _size(self, target: Path) -> int:
        file, download = self._files[target], self._download(target)
        told = download.size_bytes if download else None
        return file.size_bytes or told or file.expected_bytes or 0

    def _look_for_room(self) -> None:
        """Go on with downloads for which there was no room, once there is some."""
        while not self._stopped.wait(_LOOK_FOR_ROOM_EVERY_S):
            with self._lock:
                self._schedule()


def _real(path: Path) -> Path:
    """The path without links in its folders. The name itself may be that of a placeholder."""
    return Path(os.path.realpath(path.parent)) / path.name


def _last_access(target: Path) -> float:
    """When the file was used last, in seconds since the epoch, as far as the disk knows."""
    try:
        status = target.lstat()
    except OSError:
        return 0.0
    return max(status.st_atime, status.st_mtime)
