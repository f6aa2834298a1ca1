"""Makes room on the disk that takes downloads, by removing models that can be downloaded again."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from runtime.log import log
from runtime.models.manifest import ModelFile
from runtime.models.placeholders import remove_model, used_bytes
from runtime.process.open_files import open_files


class Room:
    """The disk of `root`, of which `kept_bytes` stay free, and the models that may be on it."""

    def __init__(self, root: Path, kept_bytes: int, files: Mapping[Path, ModelFile]) -> None:
        self.root, self._kept_bytes, self._files = root, kept_bytes, files

    def free_bytes(self) -> int:
        """What may still be used; below 0 where less is free than is to stay free."""
        return shutil.disk_usage(self.root).free - self._kept_bytes

    def remove(self, missing_bytes: int, removable: Sequence[Path], kept: Collection[Path]) -> bool:
        """Remove the first of the models that free so many bytes; none if all are not enough.

        None of `kept` goes, and none that a process has open or mapped: its space would stay taken.
        """
        in_use = {*kept, *open_files(removable)}
        going = []
        for path in removable:
            if missing_bytes > 0 and path not in in_use and self.root in path.parents:
                missing_bytes -= used_bytes(path)
                going.append(path)
        if missing_bytes > 0:
            return False
        is_gone = [remove_model(self._files[path], path) for path in going if used_bytes(path)]
        log(f"models: removed {', '.join(path.name for path in going)}, to make room")
        return all(is_gone)
