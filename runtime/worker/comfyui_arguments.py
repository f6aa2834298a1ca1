"""How ComfyUI's process is called: its command line and its environment.

When it is started and how it is watched is in runtime/worker/comfyui_process.py; in which order it
searches for models, in handler/model_folders.py.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from shutil import which

from handler.model_folders import MODEL_PATHS_FILE, MODEL_PATHS_FLAG, kinds_in
from handler.settings import PROJECT, Settings
from runtime.log import log
from runtime.worker.comfyui_features import ComfyUIFeatures

HOST = "127.0.0.1"
NO_ASSETS = "--disable-assets"
# Options that newer versions of ComfyUI do not have any more, and what they have instead.
_GONE = {"--normalvram": None, "--disable-api-nodes": "--offline"}
# Custom nodes are other people's code: they get none of the handler's credentials.
_WITHHELD_PREFIXES = ("S3_", "WEBHOOK_", "AWS_")
_WITHHELD = {item.metadata["env"] for item in fields(Settings) if item.metadata["secret"]}


def arguments(settings: Settings, port: int) -> list[str]:
    """The arguments of ComfyUI's main.py (its flags: comfy/cli_args.py).

    Makes the folders and the file that they name.
    """
    line = ["--listen", HOST, "--port", str(port), "--disable-auto-launch"]
    if not has_gpu() and "--cpu" not in settings.comfyui_args:
        # On a CPU ComfyUI would pick sub-quadratic attention: 19 s instead of 7 s a step of Wan.
        line += ["--cpu", "--use-pytorch-cross-attention"]
    if data := settings.comfyui_data_dir:
        for folder in ("output", "input", "user"):
            (data / folder).mkdir(parents=True, exist_ok=True)
            line += [f"--{folder}-directory", str(data / folder)]
        line += ["--temp-directory", str(data)]
    # No job needs the database, and in memory each process has its own: newer versions lock the
    # file, take a second to make it, and some do not start where they cannot write it.
    line += ["--database-url", "sqlite:///:memory:"]
    features = ComfyUIFeatures.of(settings.comfyui_code)
    given = _as_this_version_has_them(settings.comfyui_args, features)
    if NO_ASSETS in features.options and "--enable-assets" not in given:
        line.append(NO_ASSETS)
    if settings.models_dirs:
        line += [MODEL_PATHS_FLAG, str(_write_model_paths(settings))]
    line += given
    # After every other folder: a real file is preferred to a stand-in.
    if (config := settings.standins / MODEL_PATHS_FILE).is_file():
        line += [MODEL_PATHS_FLAG, str(config)]
    return line


def _as_this_version_has_them(given: Sequence[str], features: ComfyUIFeatures) -> list[str]:
    """The arguments of COMFYUI_ARGS, with what replaces those that this ComfyUI has no more."""
    kept = []
    for word in given:
        if word not in _GONE or word in features.options or not features.options:
            kept.append(word)
        elif (instead := _GONE[word]) in features.options:
            kept.append(instead)
        else:
            log(f"COMFYUI_ARGS: ComfyUI {features.version} has no {word} any more, left out")
    return kept


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` without the handler's settings and credentials."""
    kept = {
        name: value
        for name, value in environ.items()
        if name not in _WITHHELD and not name.startswith(_WITHHELD_PREFIXES)
    }
    # A host puts this project there for its handlers; our packages must not hide ComfyUI's.
    folders = [folder for folder in kept.pop("PYTHONPATH", "").split(os.pathsep) if folder]
    if others := [folder for folder in folders if Path(folder) != PROJECT]:
        kept["PYTHONPATH"] = os.pathsep.join(others)
    if _has_no_compiler(kept):
        # Else PyTorch replaces some operators by kernels in Triton, which compiles C code first:
        # torch/_native/common_utils.py.
        kept.setdefault("TORCH_DISABLE_NATIVE_JIT", "1")
    return {**kept, "PYTHONUNBUFFERED": "1"}


def _has_no_compiler(environ: Mapping[str, str]) -> bool:
    """Whether Triton would find no C compiler: triton/runtime/build.py, `_build`."""
    path = environ.get("PATH")
    return "CC" not in environ and not any(which(name, path=path) for name in ("clang", "gcc"))


def has_gpu() -> bool:
    """Whether the kernel shows a GPU that torch can use (NVIDIA, WSL, ROCm device files)."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or any(
        Path(device).exists() for device in ("/dev/dxg", "/dev/kfd")
    )


def _write_model_paths(settings: Settings) -> Path:
    """An extra_model_paths.yaml for MODELS_DIR: each of its folders is a kind of model.

    So is each folder of ComfyUI's own `models`: it can be made later, by a download.
    """
    own = kinds_in(settings.comfyui_code / "models")
    sections = {}
    for number, root in enumerate(settings.models_dirs, 1):
        kinds = {folder.path.name: folder.path.name for folder in [*kinds_in(root), *own]}
        sections[f"models_dir_{number}"] = {"base_path": str(root), **kinds}
    settings.worker_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    config = settings.worker_dir / MODEL_PATHS_FILE
    # JSON is YAML: https://yaml.org/spec/1.2.2/, section 1.3.
    config.write_text(json.dumps(sections))
    return config
