"""Which model file is needed next, and which may leave the disk: decided here, from plain facts.

A loader that waits needs its file now. After it come the files of the running jobs, each job's in
the order in which ComfyUI will load them (handler/load_order.py), then the manifest's.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What is known about the models of a worker. The paths are those of the models.

    - `awaited`: a loader of ComfyUI waits for them, the first one longest.
    - `named`: running jobs name them, in the order in which they will be loaded.
    - `listed`: all that the manifests list, in their order.
    - `left`: an earlier worker has left them on the disk, and nothing says where they came from.
    - `loaded`: this ComfyUI has loaded them since it started; it keeps what it still needs.
    """

    awaited: Sequence[Path]
    named: Sequence[Path]
    listed: Sequence[Path]
    loaded: Collection[Path]
    left: Sequence[Path] = ()

    def order(self) -> list[Path]:
        """The models that are to be on the disk, the most urgent first."""
        later = [path for path in (*self.named, *self.listed) if path not in self.loaded]
        return list(dict.fromkeys([*self.awaited, *later]))

    def removable_for(self, wanted: Path, last_used: Mapping[Path, float]) -> list[Path]:
        """The models that may leave the disk for this one, the first to go first.

        Nothing goes for a model that no job has asked for. The least recently used go first; a
        model that a running job has loaded already goes after those that no running job names. For
        a loader that waits, also what jobs will load later may go, the last of it first.
        """
        if wanted not in self.awaited and wanted not in self.named:
            return []
        unnamed = [path for path in (*self.listed, *self.left) if path not in self.named]
        loaded = [path for path in self.named if path in self.loaded]
        groups = [sorted(group, key=lambda path: last_used[path]) for group in (unnamed, loaded)]
        if wanted in self.awaited:
            groups.append([path for path in reversed(self.named) if path not in self.loaded])
        kept = {wanted, *self.awaited}
        return [path for path in dict.fromkeys(chain.from_iterable(groups)) if path not in kept]
