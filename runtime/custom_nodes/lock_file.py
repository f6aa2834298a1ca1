"""The lock file of custom nodes: which repositories, at which commits.

runtime/custom_nodes/lock.schema.json is its schema. It is made from a ComfyUI, and installed into
one, by runtime/commands/nodes.py.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError

from runtime.errors import UsageError

DEFAULT_PATH = Path("custom_nodes.lock.yaml")
_VERSION = 1
_HEADER = (
    "# The custom nodes of a ComfyUI, made by `lambda-comfyui nodes lock`.\n"
    "# `lambda-comfyui nodes install` and the build of the image install them.\n"
)
# What a `pattern` of the schema means, by the name of its field.
_EXPECTED = {
    "name": "the name of a folder: letters, digits, spaces and . _ + -",
    "repository": "an https, ssh or file URL without a user and a password, or an absolute path",
    "commit": "the 40 hexadecimal digits of a commit's full id",
    "sha256": "64 hexadecimal digits",
}


class LockFileError(UsageError):
    """The lock file cannot be read, or is not one; the message names the file and the field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedNode:
    """A custom node. `name` is its folder in `custom_nodes`; `commit` and `sha256` are hexadecimal.

    `sha256` is what runtime/custom_nodes/repository.py computes of the commit. `registry_id` is the
    node's name in registry.comfy.org, '' where it names none.
    """

    name: str
    repository: str
    commit: str
    sha256: str
    registry_id: str = ""


def read_lock(path: Path) -> tuple[LockedNode, ...]:
    """The nodes of a lock file. Raises LockFileError."""
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise LockFileError(f"cannot read the lock file {path}: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise LockFileError(f"{path} is not YAML: {error}") from error
    if problems := _problems(content):
        raise LockFileError(f"{path} is not a lock file of custom nodes: {problems}")
    nodes = tuple(LockedNode(**node) for node in content["nodes"])
    counts = Counter(node.name for node in nodes)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise LockFileError(f"{path} names these nodes more than once: {', '.join(repeated)}")
    return nodes


def write_lock(path: Path, nodes: Sequence[LockedNode]) -> None:
    """Write the nodes, ordered by name. Raises LockFileError."""
    entries = [
        {name: value for name, value in asdict(node).items() if value}
        for node in sorted(nodes, key=lambda node: node.name.lower())
    ]
    content = {"version": _VERSION, "nodes": entries}
    if problems := _problems(content):
        raise LockFileError(f"these nodes do not fit into a lock file: {problems}")
    text = _HEADER + yaml.safe_dump(content, sort_keys=False, width=1000)
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise LockFileError(f"cannot write the lock file {path}: {error.strerror}") from error


def _problems(content: Any) -> str:
    schema = json.loads(Path(__file__).with_name("lock.schema.json").read_text("utf-8"))
    return "; ".join(map(_sentence, Draft202012Validator(schema).iter_errors(content)))


def _sentence(error: ValidationError) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.path)
    field = error.path[-1] if error.path else ""
    if error.validator == "pattern":
        return f"{place.lstrip('.')}: expected {_EXPECTED[str(field)]}"
    if error.validator == "type" and _is_number(error.instance):
        return f"{place.lstrip('.')}: found a number, expected {error.validator_value} in quotes"
    return f"{place.lstrip('.') or 'the file'}: {error.message}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
