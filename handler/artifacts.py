"""Which files a run made, whatever kind of output a node calls them, each in the job's own folder.

Files are linked, never moved: ComfyUI's node cache names them again when the same workflow comes
back. Values without a file (text, numbers) become small files beside them, so nothing is dropped.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

# Lists that only describe the files of another list of the same node.
_FLAGS = frozenset({"animated", "has_preview"})
_MAX_NAME_BYTES = 255
_MAX_STEM_BYTES = 200
_MAX_PATH = 1000
_MARKER = ".lambda-comfyui-job"


@dataclass(frozen=True, slots=True)
class Artifact:
    """One result of a job. `key` is its place in the bucket: the job's folder and the path in it.

    `problem` says why the file is not there; it is empty where all is well.
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
    is_missing: bool = False

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


class Collector:
    """Collects the artifacts of one job; asking twice for the same output gives nothing new."""

    def __init__(self, request_id: str, folders: dict[str, Path], *, include_temp: bool) -> None:
        self.left_out_temp = False
        self._request_id, self._folders = request_id, folders
        self._include_temp = include_temp
        self._seen: set[tuple[str, ...]] = set()
        self._taken: dict[Path, tuple[str, str, str]] = {}

    @cached_property
    def folder(self) -> Path:
        """The job's folder, made when its first artifact needs it."""
        return _claim_folder(self._folders["output"], self._request_id)

    def collect(self, node_id: str, output: dict[str, Any]) -> Iterator[Artifact]:
        """The artifacts of one node's output (`{kind: [items]}`) that were not collected yet."""
        for kind, items in output.items():
            if kind in _FLAGS or not isinstance(items, list | tuple):
                continue
            for position, item in enumerate(items):
                if item is None:
                    continue
                artifact = self._artifact(node_id, kind, position, item)
                if artifact:
                    yield artifact

    def forget(self, nodes: Iterable[str]) -> None:
        """Take the outputs of these nodes for new when they come again."""
        gone = set(nodes)
        self._seen = {identity for identity in self._seen if identity[0] not in gone}

    def _artifact(self, node_id: str, kind: str, position: int, item: Any) -> Artifact | None:
        named = self._named_file(kind, item)
        if named is None:
            is_new = self._is_new(node_id, kind, str(position), "value")
            return self._value(node_id, kind, position, item) if is_new else None
        if named[2] == "temp" and not self._include_temp:
            self.left_out_temp = True
            return None
        return self._file(node_id, kind, *named) if self._is_new(node_id, *named) else None

    def _is_new(self, *identity: str) -> bool:
        is_new = identity not in self._seen
        self._seen.add(identity)
        return is_new

    def _file(self, node_id: str, kind: str, name: str, subfolder: str, type_: str) -> Artifact:
        place, problem, is_missing = self._place(name, subfolder, type_), "", False
        try:
            _link(self._source(name, subfolder, type_), place)
        except (OSError, ValueError) as error:
            is_missing = isinstance(error, FileNotFoundError)
            problem = f"the file that the node named is not there: {_reason(error)}"
        return Artifact(
            filename=PurePosixPath(name).name or name,
            local_path=place,
            key=self._key(place),
            subfolder=subfolder,
            type=type_,
            node_id=node_id,
            output_type=kind,
            problem=problem,
            is_missing=is_missing,
        )

    def _value(self, node_id: str, kind: str, position: int, item: Any) -> Artifact:
        is_text = isinstance(item, str)
        text = item if is_text else json.dumps(item, ensure_ascii=False, default=str)
        name = _as_name(f"{node_id}_{kind}_{position}", _MAX_STEM_BYTES)
        place = self.folder / f"{name}.{'txt' if is_text else 'json'}"
        place.write_text(text, encoding="utf-8", errors="replace")
        return Artifact(
            filename=place.name,
            local_path=place,
            key=self._key(place),
            subfolder="",
            type="output",
            node_id=node_id,
            output_type=kind,
            text=text,
        )

    def _source(self, name: str, subfolder: str, type_: str) -> Path:
        if type_ not in self._folders:
            raise ValueError(f"unknown type {type_!r}")
        root = self._folders[type_].resolve()
        source = (root / subfolder / name).resolve()
        if not source.is_relative_to(root):
            raise ValueError(f"it lies outside the {type_} folder")
        return source

    def _place(self, name: str, subfolder: str, type_: str) -> Path:
        """Flat in the job's folder, as documented; below it where the name is taken."""
        safe = PurePosixPath(name).name or "unnamed"
        identity = (name, subfolder, type_)
        if self._taken.setdefault(self.folder / safe, identity) == identity:
            return self.folder / safe
        inside = [part for part in PurePosixPath(subfolder).parts if part not in ("..", "/")]
        place = self.folder.joinpath(_as_name(type_, _MAX_NAME_BYTES), *inside, safe)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def _key(self, place: Path) -> str:
        return place.relative_to(self.folder.parent).as_posix()

    def _named_file(self, kind: str, item: Any) -> tuple[str, str, str] | None:
        """(name, subfolder, type) of the file that an item stands for; None if it is a value."""
        if isinstance(item, dict):
            name = item.get("filename")
            if not isinstance(name, str) or not name:
                return None
            return name, str(item.get("subfolder") or ""), str(item.get("type") or "output")
        if not isinstance(item, str) or kind == "text" or len(item) > _MAX_PATH:
            return None
        # Some nodes give the bare path of an output (Preview3D: `result`).
        root = self._folders["output"].resolve()
        try:
            path = (root / item).resolve()
            if not path.is_file() or not path.is_relative_to(root):
                return None
        except (OSError, ValueError):
            return None
        inside = path.relative_to(root)
        return inside.name, str(inside.parent) if inside.parent.parts else "", "output"


def folder_name(request_id: str) -> str:
    """The job's folder: the id itself, where it can be the name of a folder."""
    return _as_name(request_id, _MAX_NAME_BYTES)


def _as_name(text: str, limit: int) -> str:
    name = quote(text, safe=" !#$&'()+,;=@[]", errors="replace")
    return _hash(text) if name in (".", "..") or len(name) > limit else name


def _hash(text: str) -> str:
    return sha256(text.encode(errors="replace")).hexdigest()


def _claim_folder(output: Path, request_id: str) -> Path:
    """The folder of this request id. One that ComfyUI has made for itself is never taken."""
    for name in (folder_name(request_id), _hash(request_id)):
        folder = output / name
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if (folder / _MARKER).exists():
                return folder
        else:
            (folder / _MARKER).touch()
            return folder
    raise FileExistsError(f"both folders for the job {request_id!r} belong to somebody else")


def _link(source: Path, place: Path) -> None:
    if place.exists():
        if place.samefile(source):
            return
        place.unlink()
    try:
        os.link(source, place)
    except FileNotFoundError:
        raise
    except OSError:
        # Another file system, or one without hard links (an S3 mount).
        shutil.copy2(source, place)


def _reason(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
