"""Which files any process has open or mapped: proc(5)."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path


def open_files(paths: Iterable[Path]) -> set[Path]:
    """Those of the paths that another process of this machine has open or mapped.

    Processes of other users cannot be asked, unless this one is root.
    """
    wanted = {os.path.realpath(path): path for path in paths}
    found: set[Path] = set()
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            names = [*_mapped_by(process), *_opened_by(process)]
            found.update(wanted[name] for name in names if name in wanted)
    return found


def _mapped_by(process: Path) -> list[str]:
    # It may end at any moment.
    with contextlib.suppress(OSError):
        lines = (process / "maps").read_text(errors="surrogateescape").splitlines()
        return [line[line.index("/") :] for line in lines if "/" in line]
    return []


def _opened_by(process: Path) -> list[str]:
    names = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(process / "fd"):
            with contextlib.suppress(OSError):
                names.append(os.readlink(entry))
    return names
