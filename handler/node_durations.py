"""How long nodes took on this worker, kept in a file of WORKER_DIR for later jobs.

A node is known by its class, and by its numbers without the seed where these matter: the steps of a
sampler and the size of a picture decide how long it takes, its texts do not. The file is a hint:
what cannot be read or written is left out.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

FILE_NAME = "node-durations.json"
_MAX_ENTRIES = 2000
# A difference of less than one of them is not worth a write.
_LEAST_S, _LEAST_SHARE = 0.1, 0.2


class NodeDurations:
    """The durations in `folder`, read when the file has changed.

    Several handlers may use it; the last one to write wins.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._seconds: dict[str, float] = {}
        self._read_at = 0

    def refresh(self) -> None:
        """Read what other handlers have written since."""
        with suppress(OSError, ValueError, RecursionError):
            changed_at = self._path.stat().st_mtime_ns
            if changed_at == self._read_at:
                return
            self._read_at = changed_at
            entries = json.loads(self._path.read_text())
            if isinstance(entries, dict):
                self._seconds = {
                    key: float(value)
                    for key, value in entries.items()
                    if isinstance(value, int | float) and 0 <= value < 1e6
                }

    def of(self, node: Mapping[str, Any]) -> float | None:
        """Seconds that such a node took last; of its class, if its numbers are new."""
        exact = self._seconds.get(_key(node))
        return exact if exact is not None else self._seconds.get(str(node.get("class_type")))

    def store(self, taken_s: Mapping[str, float], workflow: Mapping[str, Any]) -> None:
        """Keep what the nodes of a run took, by their ids; of nodes with one key, the mean."""
        self.refresh()
        taken: dict[tuple[str, str], list[float]] = {}
        for node_id, seconds in taken_s.items():
            if (node := workflow.get(node_id)) is not None:
                class_type = str(node.get("class_type"))
                for key in {_key(node), class_type}:
                    taken.setdefault((key, class_type), []).append(seconds)
        means = {names: sum(times) / len(times) for names, times in taken.items()}
        changed = {
            key: round(mean, 3)
            for (key, class_type), mean in means.items()
            if not _is_near(mean, self._seconds.get(key, self._seconds.get(class_type)))
        }
        if changed:
            for key, seconds in changed.items():
                # The newest entry is the last one.
                self._seconds.pop(key, None)
                self._seconds[key] = seconds
            for key in list(self._seconds)[:-_MAX_ENTRIES]:
                del self._seconds[key]
            with suppress(OSError):
                self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=FILE_NAME)
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(self._seconds, file)
            os.replace(name, self._path)
        except OSError:
            os.unlink(name)
            raise


def _is_near(seconds: float, known: float | None) -> bool:
    if known is None:
        return False
    return abs(seconds - known) <= max(_LEAST_S, _LEAST_SHARE * known)


def _key(node: Mapping[str, Any]) -> str:
    numbers = sorted(
        f"{name}={value}"
        for name, value in node.get("inputs", {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and "seed" not in name
    )
    return " ".join([str(node.get("class_type")), *numbers])[:500]
