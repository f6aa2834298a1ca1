"""Where model files lie: the folders that ComfyUI searches for each kind of model, in its order.

ComfyUI's own `models` folder comes first, then its `extra_model_paths.yaml`, the folders of
MODELS_DIR, and the files of `--extra-model-paths-config` in COMFYUI_ARGS. The stand-in weights come
last, so that a real file of the same name is always preferred.
runtime/worker/comfyui_arguments.py passes the folders to ComfyUI in this order;
runtime/models/prefetch.py reads from them ahead of ComfyUI, runtime/models/download.py writes.

How ComfyUI searches: its folder_paths.py and utils/extra_config.py.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from handler.settings import Settings

MODEL_PATHS_FILE = "extra_model_paths.yaml"
MODEL_PATHS_FLAG = "--extra-model-paths-config"
# ComfyUI's `map_legacy`: older names of two kinds.
_KINDS_BY_OLD_NAME = {"unet": "diffusion_models", "clip": "text_encoders"}


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder with model files of one kind, as ComfyUI names kinds (`vae`, `loras`, …)."""

    kind: str
    path: Path


def model_folders(settings: Settings) -> list[ModelFolder]:
    """The folders of all model files, the stand-ins last."""
    return [*_real_folders(settings), *_standin_folders(settings)]


def find_models(names: Iterable[str], folders: Sequence[ModelFolder]) -> list[Path]:
    """The files of these names (`file` or `subfolder/file`), each from the first folder with it."""
    paths = (next(_files(name, folders), None) for name in names)
    return [path for path in paths if path is not None]


def model_path(kind: str, name: str, settings: Settings) -> Path:
    """Where the model of this kind and name is, or where a download has to put it.

    That is the first folder of MODELS_DIR that can be written, else ComfyUI's own `models`.
    """
    folders = [folder for folder in _real_folders(settings) if folder.kind == kind]
    found = find_models([name], folders)
    return found[0] if found else download_root(settings) / kind / name


def download_root(settings: Settings) -> Path:
    """The folder, laid out like ComfyUI's `models`, into which models are downloaded."""
    own = settings.comfyui_code / "models"
    return next((root for root in settings.models_dirs if _is_writable(root)), own)


def standins_used(names: Iterable[str], settings: Settings) -> list[str]:
    """Those of the model files that ComfyUI takes from the stand-ins: there is no real one."""
    standins = _standin_folders(settings)
    candidates = [
        (name, folder.kind)
        for name in names
        for folder in standins
        if find_models([name], [folder])
    ]
    if not candidates:
        return []
    real = _real_folders(settings)
    return sorted(
        name
        for name, kind in candidates
        if not find_models([name], [folder for folder in real if folder.kind == kind])
    )


def kinds_in(folder: Path) -> list[ModelFolder]:
    """The subfolders of a folder that is laid out like ComfyUI's `models`."""
    with contextlib.suppress(OSError):
        paths = sorted(path for path in folder.iterdir() if path.is_dir())
        return [_folder(path.name, path) for path in paths]
    return []


def _real_folders(settings: Settings) -> list[ModelFolder]:
    folders = kinds_in(settings.comfyui_code / "models")
    folders = _with_config(folders, settings.comfyui_code / MODEL_PATHS_FILE)
    for root in settings.models_dirs:
        folders += kinds_in(root)
    for path in _config_arguments(settings.comfyui_args):
        folders = _with_config(folders, settings.comfyui_code / path)
    return folders


def _standin_folders(settings: Settings) -> list[ModelFolder]:
    folder = settings.standins
    return kinds_in(folder) if (folder / MODEL_PATHS_FILE).is_file() else []


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in it; a folder that is missing can be made in its parents."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return os.access(existing, os.W_OK)


def _config_arguments(arguments: Sequence[str]) -> list[str]:
    # Not at the top: handlers come here only where there are stand-ins.
    import argparse  # noqa: PLC0415

    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument(MODEL_PATHS_FLAG, dest="configs", nargs="+", action="append", default=[])
    try:
        known, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError:
        # ComfyUI refuses such arguments, and says why.
        return []
    return list(chain.from_iterable(known.configs))


def _with_config(known: list[ModelFolder], config: Path) -> list[ModelFolder]:
    """The known folders and those of an `extra_model_paths.yaml`, which may go before them."""
    # Not at the top: most installations have no such file.
    import yaml  # noqa: PLC0415

    try:
        sections = yaml.safe_load(config.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        # If the file is there, ComfyUI says what is wrong with it.
        return known
    for section in sections.values() if isinstance(sections, dict) else ():
        if isinstance(section, dict):
            folders = list(_folders_of(section, config.parent))
            known = [*reversed(folders), *known] if section.get("is_default") else known + folders
    return known


def _folders_of(section: dict[str, Any], config_folder: Path) -> Iterator[ModelFolder]:
    base = os.path.expandvars(os.path.expanduser(str(section.get("base_path") or "")))
    for kind, paths in section.items():
        if kind not in ("base_path", "is_default"):
            for path in filter(None, str(paths).split("\n")):
                yield _folder(kind, config_folder / base / path)


def _folder(kind: str, path: Path) -> ModelFolder:
    return ModelFolder(_KINDS_BY_OLD_NAME.get(kind, kind), path)


def _files(name: str, folders: Iterable[ModelFolder]) -> Iterator[Path]:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return
    for folder in folders:
        # A folder that cannot be read, and names that no file can have.
        with contextlib.suppress(OSError, ValueError):
            if (path := folder.path / name).is_file():
                yield path
