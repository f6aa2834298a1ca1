"""What is removed from ComfyUI's folders, and in which order:

- The folder of a delivered job, with the files that ComfyUI made for it, after KEEP_OUTPUTS, and
  before that where more than NEWEST_JOBS were delivered since, or the disk is nearly full.
- What is left of an input file whose download was ended by a kill.
- Where less than CLEAN_BELOW is free: every file of output, input and temp, and every job's folder,
  that nothing has used for CLEAN_OLDER_THAN. The oldest goes first, until enough is free.

What a running job may need stays: all that was used since the oldest running job began. Symbolic
links are neither followed nor removed. Which jobs were delivered is recorded by
handler/deliveries.py; when `clean` is called is decided in runtime/worker/housekeeper.py.
"""

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from handler import deliveries
from handler.artifacts import MARKER
from handler.inputs.input_folder import PART_PREFIX, PART_SUFFIX
from handler.inputs.references import SUBFOLDERS
from handler.settings import Settings
from runtime.worker.node_cache import NodeCache, node_cache

# In the output folder: held by the worker that may write there.
LOCK_NAME = ".worker.lock"
# SaveImage lists the folder into which it writes: each entry there costs each job a microsecond.
NEWEST_JOBS = 500
_FOLDERS = ("output", "input", "temp")
# Into these ComfyUI writes; nodes also name files of the input folder.
MADE_BY_COMFYUI = ("output", "temp")
_MB = 1_000_000
# What st_blocks counts, see stat(3type).
_BLOCK_BYTES = 512
# The kernel's times of files lag behind its clock by up to one tick.
CLOCK_STEP_S = 0.05
# No request gets this folder: the names of job folders have no braces (handler/artifacts.py).
_TRASH = "{removed}"


@dataclass(frozen=True, slots=True)
class Removal:
    """A file, or a job's folder, that goes. `used_at` is in seconds since the epoch."""

    path: Path
    size_bytes: int
    used_at: float
    reason: str
    is_job_folder: bool = False


def clean(settings: Settings, running_since: float | None = None) -> list[Removal]:
    """Remove what is due now. Returns what was removed.

    `running_since` is when the oldest running job began, in seconds since the epoch; None when no
    job runs. What cannot be removed stays, and is not in the result. Raises nothing.
    """
    data = settings.comfyui_data
    shutil.rmtree(data / "output" / _TRASH, ignore_errors=True)
    removed = [removal for removal in _due(settings, running_since) if _remove(data, removal.path)]
    if running_since is None:
        # A running job may be about to write into a folder that is empty.
        _remove_empty_parents(data, removed)
    return removed


def caches_many_prompts(settings: Settings) -> bool:
    """Whether ComfyUI's node cache names files of more prompts than the last one.

    A number of a file that was removed is given again, and such a cache would take the new file for
    its own.
    """
    return node_cache(settings) is NodeCache.MANY_PROMPTS


def find_due(settings: Settings, running_since: float | None = None) -> list[Removal]:
    """What `clean` would remove now; nothing is removed."""
    return list(_due(settings, running_since, is_dry_run=True))


def is_low(settings: Settings) -> bool:
    """Whether less than CLEAN_BELOW is free on a disk of ComfyUI's folders."""
    disk = _Disk(settings.clean_below_mb * _MB, is_dry_run=False)
    return any(disk.is_low(settings.comfyui_data / name) for name in _FOLDERS)


def _due(
    settings: Settings, running_since: float | None, *, is_dry_run: bool = False
) -> Iterator[Removal]:
    """The removals in their order. Each one is carried out before the next is asked for."""
    data, now = settings.comfyui_data, time.time()
    disk = _Disk(settings.clean_below_mb * _MB, is_dry_run=is_dry_run)
    for removal in _cut_off_inputs(settings, now):
        disk.note(removal)
        yield removal
    delivered: set[Path] = set()
    for delivery, reason in _expired(settings, disk, now):
        for removal in _left_by(settings, delivery, reason):
            disk.note(removal)
            delivered.add(removal.path)
            yield removal
        if not is_dry_run:
            deliveries.forget(settings.worker_dir, delivery)
    # What is used from now on belongs to a job that begins meanwhile.
    unused_since = min(now - settings.clean_older_than_s, running_since or now) - CLOCK_STEP_S
    roots = [data / name for name in _FOLDERS if disk.is_low(data / name)]
    reason = (
        f"not used for {settings.clean_older_than_s:g} s (CLEAN_OLDER_THAN), and less than"
        f" {settings.clean_below_mb} MB (CLEAN_BELOW) is free"
    )
    files = [item for root in roots for item in _files_below(root, reason)]
    for removal in sorted(files, key=lambda item: item.used_at):
        if removal.path in delivered:
            continue
        if removal.used_at < unused_since and disk.is_low(removal.path.parent):
            disk.note(removal)
            yield removal


def _cut_off_inputs(settings: Settings, now: float) -> Iterator[Removal]:
    """The parts of input files to which nothing is written any more."""
    reason = f"its download has ended: not written for {settings.input_timeout_s:g} s"
    for subfolder in SUBFOLDERS:
        folder = settings.comfyui_data / "input" / subfolder
        for part in folder.glob(f"{PART_PREFIX}*{PART_SUFFIX}"):
            with contextlib.suppress(OSError):
                if (file := _file(part, reason)) and now - file.used_at > settings.input_timeout_s:
                    yield file


def _expired(
    settings: Settings, disk: "_Disk", now: float
) -> Iterator[tuple[deliveries.Delivery, str]]:
    """The delivered jobs whose files go, the oldest first, each with the reason.

    The newest one stays: ComfyUI's cache has the nodes of its last prompt, and would name files
    that are gone.
    """
    entries = deliveries.read_all(settings.worker_dir)
    for position, delivery in enumerate(entries[:-1]):
        if (age_s := now - delivery.at) >= settings.keep_outputs_s:
            reason = f"delivered {age_s:.0f} s ago, KEEP_OUTPUTS is {settings.keep_outputs_s:g} s"
        elif position < len(entries) - NEWEST_JOBS:
            reason = f"delivered, and {NEWEST_JOBS} other jobs since"
        elif disk.is_low(settings.comfyui_data / "output"):
            reason = f"delivered, and less than {settings.clean_below_mb} MB (CLEAN_BELOW) is free"
        else:
            return
        # An output that ComfyUI's cache has answered is a file of several jobs.
        yield replace(delivery, files=delivery.files - entries[-1].files), reason


def _left_by(settings: Settings, delivery: deliveries.Delivery, reason: str) -> Iterator[Removal]:
    """What is left of a delivered job, and was not used for another job since."""
    data = settings.comfyui_data
    folder = data / "output" / delivery.folder
    with contextlib.suppress(OSError):
        if (folder / MARKER).lstat().st_mtime <= delivery.at:
            yield _job_folder(folder, reason)
    for name in () if caches_many_prompts(settings) else sorted(delivery.files):
        kind, _, path = name.partition("/")
        with contextlib.suppress(OSError):
            file = _file(data / kind / path, reason) if kind in MADE_BY_COMFYUI else None
            if file and file.used_at <= delivery.at:
                yield file


def _files_below(folder: Path, reason: str) -> Iterator[Removal]:
    """The files below a folder. A job's folder counts as one, so that it keeps its marker."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                path = Path(entry.path)
                if not entry.is_dir(follow_symlinks=False):
                    if file := _file(path, reason):
                        yield file
                elif (path / MARKER).exists():
                    yield _job_folder(path, reason)
                else:
                    yield from _files_below(path, reason)


def _file(path: Path, reason: str) -> Removal | None:
    """The removal of a regular file; None for anything else, and for the lock. Raises OSError."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or path.name == LOCK_NAME:
        return None
    # Every name of a hard link has to go before the space is free.
    size_bytes = status.st_blocks * _BLOCK_BYTES // status.st_nlink
    return Removal(path, size_bytes, max(status.st_mtime, status.st_atime), reason)


def _job_folder(folder: Path, reason: str) -> Removal:
    """The removal of a job's folder, as old as the newest of its files. Raises OSError."""
    files = [
        file
        for parent, _, names in os.walk(folder)
        for name in names
        if (file := _file(Path(parent, name), reason))
    ]
    used_at = max((file.used_at for file in files), default=folder.lstat().st_mtime)
    size_bytes = sum(file.size_bytes for file in files)
    return Removal(folder, size_bytes, used_at, reason, is_job_folder=True)


class _Disk:
    """Whether less than `wanted_bytes` is free. A dry run counts what it would have removed."""

    def __init__(self, wanted_bytes: int, *, is_dry_run: bool) -> None:
        self._wanted_bytes, self._is_dry_run = wanted_bytes, is_dry_run
        self._noted: dict[int, int] = {}

    def is_low(self, folder: Path) -> bool:
        """False for a folder that does not exist."""
        try:
            free_bytes = shutil.disk_usage(folder).free
            noted_bytes = self._noted.get(folder.stat().st_dev, 0)
        except OSError:
            return False
        return free_bytes + noted_bytes < self._wanted_bytes

    def note(self, removal: Removal) -> None:
        if self._is_dry_run:
            with contextlib.suppress(OSError):
                device = removal.path.parent.stat().st_dev
                self._noted[device] = self._noted.get(device, 0) + removal.size_bytes


def _remove(data: Path, path: Path) -> bool:
    """Remove a file or a job's folder below one of ComfyUI's folders; whether it is gone."""
    try:
        root = data / path.relative_to(data).parts[0]
        # A folder on the way may have become a link to elsewhere.
        if not path.parent.resolve().is_relative_to(root.resolve()):
            return False
        if not path.is_dir():
            path.unlink()
            return True
        # At once, as a whole: a repeat of the job makes a new folder, and finds no half of this.
        trash = root / _TRASH
        path.rename(trash)
    except (OSError, ValueError):
        return False
    shutil.rmtree(trash, ignore_errors=True)
    return True


def _remove_empty_parents(data: Path, removed: list[Removal]) -> None:
    roots = {data / name for name in _FOLDERS}
    for folder in {removal.path.parent for removal in removed}:
        with contextlib.suppress(OSError):
            for parent in (folder, *folder.parents):
                if parent in roots:
                    break
                parent.rmdir()
