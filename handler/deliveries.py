"""The record of delivered jobs: answered, and every file in the bucket. Nothing local is needed.

A handler writes one entry for each, a file in the folder `delivered` of WORKER_DIR, where no
workflow can write: its name is that of the job's folder, its content names the files that ComfyUI
itself made for the job. When they are removed is decided in runtime/worker/housekeeping.py.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_FOLDER = "delivered"


@dataclass(frozen=True, slots=True)
class Delivery:
    """`folder` names the job's folder; `files` are `<output type>/<path in that folder>`.

    `at` is when the entry was written, in seconds since the epoch.
    """

    folder: str
    files: frozenset[str]
    at: float


def record(worker_dir: Path, folder: str, files: Iterable[str]) -> None:
    """Write the entry of a job; that of an earlier run of the same id is overwritten.

    Raises OSError, for example on a full disk: then the files stay until they are old.
    """
    entry = worker_dir / _FOLDER / folder
    entry.parent.mkdir(exist_ok=True)
    entry.write_text(json.dumps(sorted(files)))


def forget(worker_dir: Path, delivery: Delivery) -> None:
    """Remove an entry whose files are gone."""
    (worker_dir / _FOLDER / delivery.folder).unlink(missing_ok=True)


def read_all(worker_dir: Path) -> list[Delivery]:
    """All entries, the oldest first."""
    return sorted(_entries(worker_dir / _FOLDER), key=lambda delivery: delivery.at)


def _entries(folder: Path) -> Iterator[Delivery]:
    with contextlib.suppress(FileNotFoundError):
        for entry in folder.iterdir():
            # Another process may remove it now, and a full disk may have cut its text.
            with contextlib.suppress(FileNotFoundError):
                yield Delivery(entry.name, _files_in(entry), entry.stat().st_mtime)


def _files_in(entry: Path) -> frozenset[str]:
    try:
        return frozenset(json.loads(entry.read_text()))
    except ValueError:
        return frozenset()
