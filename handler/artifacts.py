"""The artifacts of a job: every file that a node's output names, copied into the job's own folder.

Files are not moved: ComfyUI's node cache names them again when the same workflow comes back. They
are not linked: a node that always writes the same file would change the result of an earlier job.
Values without a file (text, numbers) become small files beside them. How the artifacts are
uploaded is decided in storage.py.
"""

import errno
import json
import os
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote

# Lists that only describe the files of another list of the same node.
_FLAGS = frozenset({"animated", "has_preview"})
_MAX_NAME_BYTES = 255
_MAX_STEM_BYTES = 200
_MAX_PATH = 1000
_COPY_BYTES = 2**30
# The kernel's times of files lag behind its clock by up to one tick.
_CLOCK_STEP_S = 0.05
MARKER = ".lambda-comfyui-job"


class Fault(Enum):
    """What kept the file of an artifact out of the job's folder."""

    MISSING = "the node named a file that does not exist"
    NOT_A_RESULT = "the node named something that is never a result"
    MACHINE = "the file exists, but could not be put into the job's folder"


@dataclass(frozen=True, slots=True)
class Artifact:
    """One result of a job. `key` is its key in the bucket: the job's folder and the path in it.

    `fault` is None if the file is in the job's folder; else `problem` says what is wrong.
    """

    filename: str
    local_path: Path
    key: str
    subfolder: str
    type: str
    node_id: str
    output_type: str
    text: str | None = None
    problem: str = ""
    fault: Fault | None = None

    def as_dict(self) -> dict[str, Any]:
        """The item of `output` in the response, without what storage adds to it."""
        item: dict[str, Any] = {
            "filename": self.filename,
            "local_path": str(self.local_path),
            "type": self.type,
            "subfolder": self.subfolder,
            "node_id": self.node_id,
            "output_type": self.output_type,
        }
        if self.text is not None:
            item["text"] = self.text
        return item


class NamedFile(NamedTuple):
    """A file as ComfyUI names it: `type` is one of its folders (output, temp, input)."""

    name: str
    subfolder: str
    type: str


class Collector:
    """Collects the artifacts of one job; the same output of a node gives its artifacts once."""

    def __init__(
        self,
        request_id: str,
        folders: dict[str, Path],
        *,
        include_temp: bool,
        made_since: float = 0.0,
    ) -> None:
        """`made_since`: a bare path of an older file, in seconds since the epoch, is no result."""
        self.left_out_temp = False
        # What ComfyUI itself made for the job: `<type>/<path in that folder>`, see deliveries.py.
        self.comfyui_files: set[str] = set()
        self._request_id, self._folders = request_id, folders
        self._include_temp, self._made_since = include_temp, made_since
        self._collected: set[tuple[str, ...]] = set()
        self._owners: dict[Path, NamedFile] = {}

    @cached_property
    def folder(self) -> Path:
        """The job's folder, made when its first artifact needs it."""
        return _claim_folder(self._folders["output"], self._request_id)

    def folder_name(self) -> str:
        """The name of that folder, also if it was not made."""
        return self.folder.name if "folder" in vars(self) else folder_name(self._request_id)

    def collect(self, node_id: str, output: dict[str, Any]) -> Iterator[Artifact]:
        """The artifacts of one node's output (`{kind: [items]}`) that were not collected yet."""
        for kind, position, item in _items(output):
            file = self._file_named_by(kind, item)
            if file and file.type in ("output", "temp"):
                self.comfyui_files.add(f"{file.type}/{PurePosixPath(file.subfolder, file.name)}")
            if file and file.type == "temp" and not self._include_temp:
                self.left_out_temp = True
                continue
            identity = (node_id, *(file or (kind, str(position), "value")))
            if identity in self._collected:
                continue
            self._collected.add(identity)
            if file:
                yield self._copy_file(node_id, kind, file)
            else:
                yield self._write_value(node_id, kind, position, item)

    def forget(self, nodes: Collection[str]) -> None:
        """Collect the outputs of these nodes again when they come again."""
        self._collected = {item for item in self._collected if item[0] not in nodes}

    def _copy_file(self, node_id: str, kind: str, file: NamedFile) -> Artifact:
        target = self._target_of(file)
        problem, fault = "", None
        try:
            _copy(self._source_of(file), target)
        except FileNotFoundError as error:
            problem, fault = _reason(error), Fault.MISSING
        except ValueError as error:
            problem, fault = str(error), Fault.NOT_A_RESULT
        except OSError as error:
            problem, fault = _reason(error), Fault.MACHINE
        return Artifact(
            filename=PurePosixPath(file.name).name or file.name,
            local_path=target,
            key=self._key(target),
            subfolder=file.subfolder,
            type=file.type,
            node_id=node_id,
            output_type=kind,
            problem=f"{fault.value}: {problem}" if fault else "",
            fault=fault,
        )

    def _write_value(self, node_id: str, kind: str, position: int, item: Any) -> Artifact:
        is_text = isinstance(item, str)
        text = item if is_text else json.dumps(item, ensure_ascii=False, default=str)
        name = _as_name(f"{node_id}_{kind}_{position}", _MAX_STEM_BYTES)
        target = self.folder / f"{name}.{'txt' if is_text else 'json'}"
        target.write_text(text, encoding="utf-8", errors="replace")
        return Artifact(
            filename=target.name,
            local_path=target,
            key=self._key(target),
            subfolder="",
            type="output",
            node_id=node_id,
            output_type=kind,
            text=text,
        )

    def _source_of(self, file: NamedFile) -> Path:
        """Raises FileNotFoundError, and ValueError for what is never a result."""
        if file.type not in self._folders:
            raise ValueError(f"unknown type {file.type!r}")
        # Not `resolve`, which raises RuntimeError at a loop of symbolic links.
        root = Path(os.path.realpath(self._folders[file.type]))
        source = Path(os.path.realpath(root / file.subfolder / file.name))
        if not source.is_relative_to(root):
            raise ValueError(f"it lies outside the {file.type} folder")
        try:
            mode = source.stat().st_mode
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ValueError(_reason(error)) from error
        # A named pipe blocks its reader for ever; a device never ends.
        if not stat.S_ISREG(mode):
            raise ValueError("it is not a regular file")
        return source

    def _target_of(self, file: NamedFile) -> Path:
        """Directly in the job's folder, as documented; in a subfolder if another file is there."""
        name = PurePosixPath(file.name).name or "unnamed"
        target = self.folder / name
        owner = self._owners.setdefault(target, file)
        if owner == file:
            return target
        parts = [part for part in PurePosixPath(file.subfolder).parts if part not in ("..", "/")]
        target = self.folder.joinpath(_as_name(file.type, _MAX_NAME_BYTES), *parts, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _key(self, target: Path) -> str:
        return target.relative_to(self.folder.parent).as_posix()

    def _file_named_by(self, kind: str, item: Any) -> NamedFile | None:
        """The file that an item stands for; None if the item is a value."""
        if isinstance(item, dict):
            name = item.get("filename")
            if not isinstance(name, str) or not name:
                return None
            subfolder, type_ = str(item.get("subfolder") or ""), str(item.get("type") or "output")
            return NamedFile(name, subfolder, type_)
        if not isinstance(item, str) or kind == "text" or len(item) > _MAX_PATH:
            return None
        # Some nodes give the bare path of an output (Preview3D: `result`).
        root = self._folders["output"].resolve()
        try:
            path = (root / item).resolve()
            if not path.is_file() or not path.is_relative_to(root):
                return None
            if path.stat().st_mtime < self._made_since - _CLOCK_STEP_S:
                # The workflow gave the path to the node: the file may be that of another job.
                return None
        except (OSError, ValueError, RuntimeError):
            # RuntimeError: a loop of symbolic links.
            return None
        relative = path.relative_to(root)
        subfolder = str(relative.parent) if relative.parent.parts else ""
        return NamedFile(relative.name, subfolder, "output")


def _items(output: dict[str, Any]) -> Iterator[tuple[str, int, Any]]:
    """(kind, position, item) of everything that may be an artifact."""
    for kind, items in output.items():
        if kind not in _FLAGS and isinstance(items, list | tuple):
            yield from ((kind, n, item) for n, item in enumerate(items) if item is not None)


def folder_name(request_id: str) -> str:
    """The job's folder: the id itself, where it can be the name of a folder."""
    return _as_name(request_id, _MAX_NAME_BYTES)


def _as_name(text: str, limit: int) -> str:
    name = quote(text, safe=" !#$&'()+,;=@[]", errors="replace")
    return _hash(text) if name in (".", "..") or len(name) > limit else name


def _hash(text: str) -> str:
    return sha256(text.encode(errors="replace")).hexdigest()


def _claim_folder(output: Path, request_id: str) -> Path:
    """The folder of this request id, made by us. A folder that a workflow made is never used."""
    for name in (folder_name(request_id), _hash(request_id)):
        folder = output / name
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            with suppress(FileNotFoundError, NotADirectoryError):
                # As new: what an earlier job of this id has left is in use again.
                os.utime(folder / MARKER)
                return folder
        else:
            (folder / MARKER).touch()
            return folder
    raise FileExistsError(f"both folders for the job {request_id!r} were made by workflows")


def _copy(source: Path, target: Path) -> None:
    """Copy a file. Raises OSError, also if another job writes the file meanwhile."""
    # It may be a hard link to the source, from an earlier version.
    target.unlink(missing_ok=True)
    try:
        with source.open("rb") as reader:
            before = os.fstat(reader.fileno())
            try:
                _clone(reader.fileno(), target)
            except OSError:
                # Two file systems, or one that cannot do it (an S3 mount).
                shutil.copyfile(source, target)
            after = os.fstat(reader.fileno())
        if (before.st_size, before.st_mtime_ns) != (target.stat().st_size, after.st_mtime_ns):
            raise OSError(errno.EBUSY, "another job wrote the file while it was copied")
    except OSError:
        target.unlink(missing_ok=True)
        raise


def _clone(source: int, target: Path) -> None:
    """Copy in the kernel; XFS and Btrfs share the blocks, so the copy takes no space there.

    https://man7.org/linux/man-pages/man2/copy_file_range.2.html
    """
    with target.open("wb") as writer:
        while os.copy_file_range(source, writer.fileno(), _COPY_BYTES):
            pass


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
