"""What a model file is and where it comes from: `infra/models/*.yaml` and users' own manifests.

The fields are explained in docs/models.md; infra/models/manifest.schema.json is the schema. Where
a file belongs on this machine is decided in handler/model_folders.py.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from handler.settings import PROJECT, Settings
from runtime.models.errors import ManifestError

SHIPPED = PROJECT / "infra" / "models"
_SCHEMA = SHIPPED / "manifest.schema.json"
_MAX_PROBLEMS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One file of a manifest.

    `size_bytes` and `sha256` are None where they are not known. `expected_bytes` is a size that
    nobody has verified: good enough for progress, free space and a placeholder, never for a check.
    """

    name: str
    """As a workflow names it: `file` or `subfolder/file`, below `folder`."""
    folder: str
    """The kind of model, a folder below ComfyUI's `models`: `vae`, `loras`, …"""
    sources: tuple[str, ...]
    """In the order in which they are tried: `s3://`, `hf://` or `https://`."""
    size_bytes: int | None = None
    sha256: str | None = None
    expected_bytes: int | None = None
    licence: str = ""
    needed_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The files of one profile or workflow, in the order in which they are needed."""

    name: str
    files: tuple[ModelFile, ...]
    path: Path | None = None
    """The file that it was read from, None for the content of a bucket."""

    @property
    def shown(self) -> str:
        """As messages name it: two files may give their manifests the same name."""
        return str(self.path or self.name)


def configured_manifests(settings: Settings) -> list[Manifest]:
    """The manifests of MODEL_MANIFESTS. Raises ManifestError."""
    return [read_manifest(find_manifest(name), settings) for name in settings.model_manifests]


def find_manifest(name: str) -> Path:
    """The file of a manifest that is shipped, `sd15`, or of a path. Raises ManifestError."""
    shipped = SHIPPED / f"{name}.yaml"
    path = shipped if shipped.is_file() else Path(name).expanduser()
    if not path.is_file():
        names = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.yaml")))
        raise ManifestError(f"there is no manifest {name}: give {names}, or the path of a file")
    return path


def read_manifest(path: Path, settings: Settings) -> Manifest:
    """Read and check one manifest. Raises ManifestError, which names the file and the field.

    With MODELS_S3_URI, the copy of each file below that prefix is its first source.
    """
    # Not at the top: the worker imports this module, and most have no manifest.
    import yaml  # noqa: PLC0415

    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except yaml.MarkedYAMLError as error:
        # Never the whole text of the error, which quotes the lines: a URL may contain a password.
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ManifestError(f"{path}, line {line}: {error.problem}; expected YAML") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ManifestError(f"{path} cannot be read as a manifest: {error}") from error
    problems = list(_problems(content))
    if problems:
        raise ManifestError(f"{path}: {'; '.join(problems[:_MAX_PROBLEMS])}")
    files = [_file(given) for given in content["files"]]
    if settings.models_s3_uri:
        files = [_with_copy(file, settings.models_s3_uri) for file in files]
    return Manifest(name=content["name"], files=tuple(files), path=path)


def find_file(manifests: Iterable[Manifest], folder: str | None, name: str) -> ModelFile | None:
    """The file that a workflow names, or None. `folder` None: in any folder."""
    files = (file for manifest in manifests for file in manifest.files if file.name == name)
    return next((file for file in files if folder in (None, file.folder)), None)


def _problems(content: Any) -> Iterator[str]:
    from jsonschema import Draft202012Validator  # noqa: PLC0415

    validator = Draft202012Validator(json.loads(_SCHEMA.read_text("utf-8")))
    for error in validator.iter_errors(content):
        where = ".".join(str(part) for part in error.absolute_path) or "the manifest"
        match error.validator:
            case "required" | "additionalProperties":
                yield f"{where}: {error.message}"
            case _:
                # Never the value: a URL may contain a password.
                expected = error.schema.get("description", f"a valid {error.validator}")
                yield f"{where}: expected {expected}"


def _file(given: dict[str, Any]) -> ModelFile:
    unverified = given.get("unverified", ())
    size = given.get("size")
    return ModelFile(
        name=given["file"],
        folder=given["folder"],
        sources=tuple(given["sources"]),
        size_bytes=None if "size" in unverified else size,
        sha256=None if "sha256" in unverified else given.get("sha256"),
        expected_bytes=size,
        licence=given.get("licence", ""),
        needed_by=given.get("needed_by", ""),
    )


def _with_copy(file: ModelFile, prefix: str) -> ModelFile:
    copy = f"{prefix.rstrip('/')}/{file.folder}/{file.name}"
    return replace(file, sources=(copy, *file.sources))
