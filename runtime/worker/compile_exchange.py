"""Fills the folders of compiled code from the bucket, and puts their content there.

When that is done is decided in runtime/worker/compile_cache.py.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from handler.settings import Settings
from runtime.models.space import free_bytes
from runtime.worker.compile_archive import ArchiveError, FileState, files_in, pack, unpack

if TYPE_CHECKING:
    from runtime.worker.compile_store import CompileStore

MAX_BYTES = 2 * 1024**3
# Of workers that store at the same time.
_TRIES = 5


class Exchange:
    """Of the folders below `root`. One thread uses it."""

    def __init__(self, settings: Settings, root: Path) -> None:
        self._settings, self._root = settings, root
        self._scratch = root / "scratch"
        self._store: CompileStore | None = None

    def load(self, name: str) -> set[str] | None:
        """The paths of the object's files, which are in the folders now; None if there is none.

        Raises CompileStoreError, ArchiveError, OSError.
        """
        source = self._scratch / "object.zip"
        with _removed(source):
            if self._fetch(name, source) is None:
                return None
            return self._unpack(name, source)

    def store(self, name: str, files: Mapping[str, FileState]) -> set[str]:
        """Put these files into the object, beside those that it has; the paths of all.

        Raises CompileStoreError, ArchiveError, OSError.
        """
        from runtime.worker.compile_store import CompileStoreError, KeyTaken  # noqa: PLC0415

        for _ in range(_TRIES):
            seen, theirs = self._merge(name)
            added = {path: state for path, state in files_in(self._root).items() if path in theirs}
            target = self._scratch / "new.zip"
            with _removed(target), contextlib.suppress(KeyTaken):
                packed = pack(self._root, {**added, **files}, name, target, self._room_bytes())
                if not packed >= theirs:
                    raise ArchiveError("its files were removed from this machine meanwhile")
                self._bucket().store(name, target, seen)
                return packed
        raise CompileStoreError("other workers have stored theirs at each attempt")

    def url(self, name: str) -> str:
        """The object, as text for the log."""
        return f"{self._settings.compile_cache}{name}"

    def _merge(self, name: str) -> tuple[str | None, set[str]]:
        """The ETag of the object, and its files. One that is broken has none."""
        source = self._scratch / "object.zip"
        with _removed(source):
            seen = self._fetch(name, source)
            if seen is None:
                return None, set()
            with contextlib.suppress(ArchiveError):
                return seen, self._unpack(name, source)
            return seen, set()

    def _fetch(self, name: str, target: Path) -> str | None:
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self._bucket().fetch(name, target, self._room_bytes())

    def _unpack(self, name: str, source: Path) -> set[str]:
        scratch = self._scratch / "files"
        return unpack(source, self._root, name, scratch, self._room_bytes())

    def _room_bytes(self) -> int:
        kept = self._settings.clean_below_mb * 1_000_000
        return min(MAX_BYTES, free_bytes(self._root) - kept)

    def _bucket(self) -> "CompileStore":
        if self._store is None:
            # It imports boto3 at once, and a worker without this setting may need none.
            from runtime.worker.compile_store import CompileStore  # noqa: PLC0415

            self._store = CompileStore(self._settings)
        return self._store


@contextlib.contextmanager
def _removed(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
