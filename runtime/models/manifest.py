"""What a model file is and where it comes from: `infra/models/*.yaml` and users' own manifests.

The fields are explained in docs/models.md; infra/models/manifest.schema.json is the schema. Where
a file belongs on this machine is decided in handler/model_folders.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


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
    needed_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The files of one profile or workflow, in the order in which they are needed."""

    name: str
    files: tuple[ModelFile, ...]


def read_manifest(path: Path) -> Manifest:
    """Read and check one manifest. Raises ManifestError, which names the file and the field."""
    raise NotImplementedError(path)


def find_file(manifests: Iterable[Manifest], folder: str | None, name: str) -> ModelFile | None:
    """The file that a workflow names, or None. `folder` None: in any folder."""
    files = (file for manifest in manifests for file in manifest.files if file.name == name)
    return next((file for file in files if folder in (None, file.folder)), None)
