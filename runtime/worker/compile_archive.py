"""The folders of compiled code as one file, and back.

The file is a ZIP: each of its members has a checksum, and a part of such a file is none. Its
comment is the name under which it was stored. PyTorch and Triton find their files by hashes, so the
files of several machines can be put together, and a file that is there is never replaced.
"""

import json
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from runtime.errors import LambdaComfyUIError

# The variable of each folder: torch/_inductor/runtime/cache_dir_utils.py, triton/knobs.py.
FOLDERS = {"inductor": "TORCHINDUCTOR_CACHE_DIR", "triton": "TRITON_CACHE_DIR"}
# Triton's lists of files that belong together have absolute paths: triton/runtime/cache.py.
_LIST = "__grp__"
_ROOT = b"@LAMBDA_COMFYUI_ROOT@"
_FAST = 1
# What the library raises for an archive that it cannot read.
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


class ArchiveError(LambdaComfyUIError):
    """A file that holds no compiled code for this machine, or too much."""


@dataclass(frozen=True, slots=True)
class FileState:
    """What changes when a file is written."""

    size_bytes: int
    modified_ns: int


def files_in(root: Path) -> dict[str, FileState]:
    """The files of FOLDERS, by their path below `root`. What vanishes meanwhile is left out."""
    found = {}
    # Not `rglob`, which raises an error when a folder vanishes.
    for top in FOLDERS:
        for folder, _, names in os.walk(root / top):
            for path in (Path(folder, name) for name in names):
                if state := _state_of(path):
                    found[str(path.relative_to(root))] = state
    return found


def pack(
    root: Path, files: Mapping[str, FileState], name: str, target: Path, max_bytes: int
) -> set[str]:
    """Write those files to `target` that are still as in `files`; their paths.

    Raises ArchiveError when they are more than `max_bytes`, and OSError.
    """
    _check_size(sum(state.size_bytes for state in files.values()), max_bytes)
    packed = set()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=_FAST) as archive:
        archive.comment = name.encode()
        for path, state in files.items():
            try:
                content = (root / path).read_bytes()
            except FileNotFoundError:
                continue
            if _state_of(root / path) == state:
                archive.writestr(path, _moved(path, content, _as_json(root), _ROOT))
                packed.add(path)
    return packed


def unpack(source: Path, root: Path, name: str, scratch: Path, max_bytes: int) -> set[str]:
    """Put the files of an archive below `root`, all or none; their paths.

    `scratch` is a folder on the same disk, for this call alone. Raises ArchiveError when the
    archive is broken, not that of `name`, or of more than `max_bytes`; and OSError.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        paths = _extract(source, scratch, root, name, max_bytes)
        for path in paths:
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                # ComfyUI may be compiling: each file appears as a whole.
                (scratch / path).rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return paths


def _extract(source: Path, folder: Path, root: Path, name: str, max_bytes: int) -> set[str]:
    try:
        with zipfile.ZipFile(source) as archive:
            if archive.comment != name.encode():
                raise ArchiveError("it was not stored under this name")
            members = archive.infolist()
            _check_size(sum(member.file_size for member in members), max_bytes)
            for member in members:
                target = folder / _checked(member.filename)
                content = _moved(member.filename, archive.read(member), _ROOT, _as_json(root))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            return {member.filename for member in members}
    except _BROKEN as error:
        raise ArchiveError(f"it is broken ({type(error).__name__})") from error


def _checked(path: str) -> str:
    """Raises ArchiveError for a path that is not below one of FOLDERS."""
    parts = PurePosixPath(path).parts
    if len(parts) < 2 or parts[0] not in FOLDERS or ".." in parts:
        raise ArchiveError("it has a file that belongs into no folder of compiled code")
    return path


def _moved(path: str, content: bytes, before: bytes, after: bytes) -> bytes:
    return content.replace(before, after) if PurePosixPath(path).name.startswith(_LIST) else content


def _as_json(root: Path) -> bytes:
    """The path, as it stands inside a text of JSON."""
    return json.dumps(str(root))[1:-1].encode()


def _check_size(size_bytes: int, max_bytes: int) -> None:
    if size_bytes > max_bytes:
        raise ArchiveError(
            f"it has {size_bytes / 1e6:.0f} MB unpacked, and {max(max_bytes, 0) / 1e6:.0f} MB are"
            " the most that there is room for"
        )


def _state_of(path: Path) -> FileState | None:
    """None for what is no file, or not there."""
    try:
        status = path.lstat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return FileState(status.st_size, status.st_mtime_ns)
