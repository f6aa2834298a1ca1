"""Makes room on the disk that takes downloads, by removing models that can be downloaded again."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from runtime.log import log
from runtime.models.manifest import ModelFile
from runtime.models.placeholders import remove_model, used_bytes
from runtime.models.space import free_bytes
from runtime.process.open_files import open_files


class Room:
    """The disk of `root`, of which `kept_bytes` stay free, and the models that may be on it."""

    def __init__(self, root: Path, kept_bytes: int, files: Mapping[Path, ModelFile]) -> None:
        self.root, self.kept_bytes, self._files = root, kept_bytes, files

    def free_bytes(self) -> int:
        """What may still be used; below 0 where less is free than is to stay free."""
        return free_bytes(self.root) - self.kept_bytes

    def remove(self, missing_bytes: int, removable: Sequence[Path], kept: Collection[Path]) -> bool:
        """Remove the first of the models that free so many bytes; none if all are not enough.

        None of `kept` goes, and none that a process has open or mapped: its space would stay taken.
        """
        in_use = {*kept, *open_files(removable)}
        going = []
        for path in removable:
            size = used_bytes(path)
            if missing_bytes > 0 and size and path not in in_use and self.root in path.parents:
                missing_bytes -= size
                going.append(path)
        if missing_bytes > 0:
            return False
        gone = [path for path in going if self._remove(path)]
        if gone:
            log(f"models: removed {', '.join(path.name for path in gone)}, to make room")
        return gone == going

    def _remove(self, path: Path) -> bool:
        try:
            return remove_model(self._files[path], path)
        except OSError as error:
            log(f"models: {path} cannot be removed: {error.strerror}")
            return False
