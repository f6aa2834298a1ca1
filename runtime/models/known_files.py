"""The model files that a worker knows: those of its manifests, and those that came by URL.

Not for several threads at once: ModelSupply (supply.py) holds its lock.
"""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from handler.model_folders import download_root, model_path
from handler.outbound import Allowed
from handler.settings import Settings
from handler.worker_protocol import ModelUrl
from runtime.log import log
from runtime.models.manifest import Manifest, ModelFile
from runtime.models.merged_files import merged_files
from runtime.models.placeholders import put_placeholder
from runtime.models.url_files import find_url_files


class KnownFiles:
    """`files` are by the paths of the models, in the order in which they are to come."""

    def __init__(self, settings: Settings, manifests: Iterable[Manifest]) -> None:
        """Raises ManifestError for manifests that contradict each other."""
        self._settings = settings
        self.root = Path(os.path.realpath(download_root(settings)))
        """The folder into which models are downloaded."""
        self.files = {
            real_path(model_path(file.folder, file.name, settings)): file
            for file in merged_files(manifests)
        }
        self.last_used = {target: _last_access(target) for target in self.files}
        """In seconds since the epoch."""
        self.unplaced: dict[str, str] = {}
        """The names of files whose placeholders could not be put, each with the reason."""
        self._of_callers: set[Path] = set()

    def begin(self) -> None:
        """Put placeholders where files are missing, and find what earlier workers have left."""
        for target in self.files:
            self._put_placeholder(target)
        for path, file in find_url_files(self.root).items():
            target = real_path(path)
            if target not in self.files:
                self._add(target, file)

    def add_urls(self, models: Iterable[ModelUrl]) -> None:
        """Add the models that a request names by URL, with a placeholder for each."""
        for model in models:
            target = real_path(model_path(model.folder, model.name, self._settings))
            if not self.has_source(target):
                file = ModelFile(name=model.name, folder=model.folder, sources=(model.url,))
                self._add(target, file)
            self._put_placeholder(target)

    def place(self, names: Iterable[str]) -> None:
        """Put placeholders where files of these names are missing."""
        for target in self.named(names):
            self._put_placeholder(target)

    def named(self, names: Iterable[str]) -> list[Path]:
        """The files of these names, in this order."""
        files = self.files.items()
        return [target for name in names for target, file in files if file.name == name]

    def listed(self) -> list[Path]:
        """Those that can be brought."""
        return [target for target in self.files if self.has_source(target)]

    def left(self) -> list[Path]:
        """Those that an earlier worker has left: nothing says where they came from."""
        return [target for target in self.files if not self.has_source(target)]

    def has_source(self, target: Path) -> bool:
        return target in self.files and bool(self.files[target].sources)

    def is_of_caller(self, target: Path) -> bool:
        """Whether a request has named it by URL, to this worker or to an earlier one."""
        return target in self._of_callers

    def allowed(self, target: Path) -> Allowed | None:
        """The addresses from which it may come, if a caller has named them."""
        return self._settings.outbound_allow if self.is_of_caller(target) else None

    def note_size(self, target: Path, size_bytes: int | None) -> None:
        """A source has told how large the file is."""
        self.files[target] = replace(self.files[target], expected_bytes=size_bytes)

    def _add(self, target: Path, file: ModelFile) -> None:
        self.files[target] = file
        self.last_used.setdefault(target, _last_access(target))
        self._of_callers.add(target)

    def _put_placeholder(self, target: Path) -> None:
        file = self.files[target]
        try:
            put_placeholder(file, target)
            self.unplaced.pop(file.name, None)
        except OSError as error:
            log(f"no placeholder can be put at {target}: {error.strerror}")
            self.unplaced[file.name] = error.strerror or type(error).__name__


def real_path(path: Path) -> Path:
    """The path without links in its folders. The name itself may be that of a placeholder."""
    return Path(os.path.realpath(path.parent)) / path.name


def _last_access(target: Path) -> float:
    """As far as the disk knows."""
    try:
        status = target.lstat()
    except OSError:
        return 0.0
    return max(status.st_atime, status.st_mtime)
