"""Which files a run made, whatever kind of output a node calls them, each in the job's own folder.

Files are linked, never moved: ComfyUI's node cache names them again when the same workflow comes
back. Values without a file (text, numbers) become small files beside them, so nothing is dropped.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

# Lists that only describe the files of another list of the same node.
_FLAGS = frozenset({"animated", "has_preview"})
_MAX_NAME_BYTES = 255


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
        self.folder = folders["output"] / folder_name(request_id)
        self.left_out_temp = False
        self._folders = folders
        self._include_temp = include_temp
        self._seen: set[tuple[str, str, str, str]] = set()
        self._taken: dict[Path, tuple[str, str, str]] = {}

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

    def _artifact(self, node_id: str, kind: str, position: int, item: Any) -> Artifact | None:
        if isinstance(item, dict) and isinstance(item.get("filename"), str):
            place = (item["filename"], str(item.get("subfolder") or ""), item.get("type", "output"))
            if place[2] == "temp" and not self._include_temp:
                self.left_out_temp = True
                return None
            return self._file(node_id, kind, *place) if self._is_new(node_id, *place) else None
        if isinstance(item, str) and (found := self._named_file(item)):
            return self._file(node_id, kind, *found) if self._is_new(node_id, *found) else None
        if not self._is_new(node_id, kind, str(position), "value"):
            return None
        return self._value(node_id, kind, position, item)

    def _is_new(self, *identity: str) -> bool:
        key = (identity[0], identity[1], identity[2], identity[3])
        is_new = key not in self._seen
        self._seen.add(key)
        return is_new

    def _file(self, node_id: str, kind: str, name: str, subfolder: str, type_: str) -> Artifact:
        place, problem = self._place(name, subfolder, type_), ""
        try:
            source = self._source(name, subfolder, type_)
            _link(source, place)
        except (OSError, ValueError) as error:
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
        )

    def _value(self, node_id: str, kind: str, position: int, item: Any) -> Artifact:
        is_text = isinstance(item, str)
        text = item if is_text else json.dumps(item, ensure_ascii=False, default=str)
        name = f"{quote(node_id, safe='')}_{quote(kind, safe='')}_{position}"
        place = self.folder / f"{name[:200]}.{'txt' if is_text else 'json'}"
        self.folder.mkdir(parents=True, exist_ok=True)
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
        return self.folder.joinpath(quote(type_, safe=""), *inside, safe)

    def _key(self, place: Path) -> str:
        return place.relative_to(self.folder.parent).as_posix()

    def _named_file(self, text: str) -> tuple[str, str, str] | None:
        """Where a node gives a bare path instead of a file item: that path, if it is an output."""
        if not text or len(text) > 1000 or "\n" in text or "\0" in text:
            return None
        root = self._folders["output"].resolve()
        try:
            path = (root / text).resolve()
            if not path.is_file() or not path.is_relative_to(root):
                return None
        except OSError:
            return None
        inside = path.relative_to(root)
        return inside.name, str(inside.parent) if inside.parent.parts else "", "output"


def folder_name(request_id: str) -> str:
    """The job's folder: the id itself, where it can be the name of a folder."""
    name = quote(request_id, safe=" !#$&'()+,;=@[]", errors="replace")
    if name in (".", "..") or len(name) > _MAX_NAME_BYTES:
        return sha256(request_id.encode(errors="replace")).hexdigest()
    return name


def _link(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
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
