"""Brings models to ComfyUI while it boots and runs: those that it needs first come first.

All files of the manifests have placeholders from the start, so that ComfyUI accepts a workflow. Its
loaders ask here (runtime/worker/gate.py) and wait for their file. Which files there are is in
known_files.py; what is downloaded now, in schedule.py; what loaders are told, in load_state.py.
"""

import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from handler.settings import Settings
from handler.worker_protocol import ModelUrl
from runtime.models.known_files import KnownFiles, real_path
from runtime.models.load_state import LoadState, load_state
from runtime.models.manifest import Manifest
from runtime.models.need import Need
from runtime.models.prefetch import Prefetcher
from runtime.models.schedule import Schedule

_REPORT_EVERY_S = 0.5
_LOOK_FOR_ROOM_EVERY_S = 0.25


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
        self._known = KnownFiles(settings, manifests)
        self._schedule = Schedule(settings, self._known)
        self._prefetcher = Prefetcher(settings)
        self._lock = threading.RLock()
        self._jobs: list[JobModels] = []
        self._loads: list[_Load] = []
        self._loaded: set[Path] = set()
        self._stopped = threading.Event()

    @property
    def read_bytes(self) -> int:
        """How many bytes were read ahead into the page cache."""
        return self._prefetcher.read_bytes

    def start(self) -> None:
        """Put placeholders where models are missing, and begin to download."""
        with self._lock:
            self._known.begin()
            if self._known.files:
                self._start_schedule()
                self._update()

    def place(self, names: Iterable[str]) -> None:
        """ComfyUI is to find the models of these names, as placeholders at least."""
        with self._lock:
            self._known.place(names)

    @property
    def unplaced(self) -> dict[str, str]:
        """The names of models that ComfyUI cannot find, each with the reason."""
        with self._lock:
            return dict(self._known.unplaced)

    def add_urls(self, models: Sequence[ModelUrl]) -> None:
        """Download the models that a request names by URL, too. Call it before `begin_job`."""
        with self._lock:
            if models and not self._stopped.is_set():
                self._known.add_urls(models)
                self._start_schedule()

    def _start_schedule(self) -> None:
        if self._schedule.downloader is None:
            self._schedule.start()
            threading.Thread(target=self._look_for_room, name="model room", daemon=True).start()

    def stop(self) -> None:
        """End the downloads and the reading ahead. What was downloaded stays on the disk."""
        self._stopped.set()
        self._prefetcher.stop()
        with self._lock:
            downloader, self._schedule.downloader = self._schedule.downloader, None
        if downloader:
            downloader.stop()

    def begin_job(self, names: Sequence[str]) -> JobModels:
        """A job is about to load the models of these names, in this order."""
        self._prefetcher.begin(names)
        with self._lock:
            job = JobModels(tuple(self._known.named(names)))
            self._jobs.append(job)
            self._update(retried=job.targets)
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
        load = _Load(real_path(path))
        with self._lock:
            self._loads.append(load)
            self._update(retried=[load.target])
        try:
            yield self._states(load)
        finally:
            with self._lock:
                self._loads.remove(load)
                self._prefetcher.note_loaded(load.target)
                if load.is_complete and load.target in self._known.files:
                    self._loaded.add(load.target)
                    self._known.last_used[load.target] = time.time()
                    self._update()

    def _states(self, load: _Load) -> Iterator[LoadState]:
        before = None
        while not self._stopped.is_set():
            with self._lock:
                state = load_state(load.target, self._known, self._schedule)
                downloader = self._schedule.downloader
                is_coming = self._schedule.is_coming(load.target)
            load.is_complete = state.is_complete
            if state != before:
                yield state
            if state.is_complete or state.failure:
                return
            before = state
            if downloader and is_coming:
                downloader.wait([load.target], _REPORT_EVERY_S)
            else:
                self._stopped.wait(_LOOK_FOR_ROOM_EVERY_S)
        yield LoadState(failure=f"{load.target.name} is not complete, and the worker ends")

    def _look_for_room(self) -> None:
        """Go on with downloads for which there was no room, once there is some."""
        while not self._stopped.wait(_LOOK_FOR_ROOM_EVERY_S):
            with self._lock:
                self._update()

    def _update(self, retried: Collection[Path] = ()) -> None:
        """After what is needed has changed; with the lock."""
        awaited = [load.target for load in self._loads if not load.is_complete]
        need = Need(
            awaited=[target for target in awaited if target in self._known.files],
            named=[target for job in self._jobs for target in job.targets],
            listed=self._known.listed(),
            left=self._known.left(),
            loaded=self._loaded,
        )
        self._schedule.update(need, [load.target for load in self._loads], retried)
