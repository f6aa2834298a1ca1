"""Generates the folder of stand-in weights: `lambda-comfyui standins`.

The files hold random numbers and have the names of the Wan 2.2 files, so that its workflow runs
without the models. infra/standin_weights.py writes them, with ComfyUI's Python; when ComfyUI takes
one of them is decided in handler/model_folders.py.
"""

import argparse
import hashlib
import json
import shutil
import sys
import time
from pathlib import Path

from handler.model_folders import MODEL_PATHS_FILE
from handler.settings import PROJECT, Settings
from runtime.installation.command import DISK_HINT, InstallError, run_command
from runtime.log import log
from runtime.process.file_lock import hold_file_lock

SCRIPT = PROJECT / "infra" / "standin_weights.py"
MARKER = "recipe.sha256"
MODEL_FOLDERS = ("checkpoints", "diffusion_models", "loras", "text_encoders", "vae")
README = """\
These files hold random numbers or zeros, not models. They have the names of the files of Wan 2.2
and of Stable Diffusion 1.5, so that the documented workflows run through ComfyUI's own loaders on
any machine, with every node. They only exercise the code: what comes out is noise. Never copy them
into a folder of real weights.
`lambda-comfyui standins` writes them again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--into", type=Path, metavar="DIR", help="write there instead of STANDIN_MODELS_DIR"
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Generate, and return the exit status: 0, or 1 after an error that is printed to stderr."""
    target = (args.into or settings.standins).absolute()
    try:
        generate(target, settings.comfyui_interpreter, settings.comfyui_code)
    except InstallError as error:
        print(f"standins: {error}", file=sys.stderr)
        return 1
    return 0


def generate(target: Path, python: Path, comfyui: Path) -> None:
    """Write the stand-ins to `target`, unless it is complete. Raises InstallError."""
    if is_complete(target):
        log(f"stand-in weights are in place in {target}")
        return
    started = time.monotonic()
    try:
        target.mkdir(parents=True, exist_ok=True)
        with hold_file_lock(target.with_name(f".{target.name}.lock")):
            if not is_complete(target):
                _write(target, python, comfyui)
    except OSError as error:
        raise InstallError(f"{error}. Try: {DISK_HINT}.") from error
    log(f"stand-in weights are in {target}, after {time.monotonic() - started:.1f} s")


def is_complete(target: Path) -> bool:
    """Whether `target` holds what the current script writes, and has not been moved."""
    try:
        paths = (target / MODEL_PATHS_FILE).read_text()
        return (target / MARKER).read_text() == _recipe() and paths == _model_paths(target)
    except OSError:
        return False


def _write(target: Path, python: Path, comfyui: Path) -> None:
    marker = target / MARKER
    if not marker.exists() and any(target.iterdir()):
        # Real weights have the same names.
        raise InstallError(f"{target} holds other files: choose a new or an empty folder.")
    new = target.with_name(f".{target.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    run_command(
        [python, SCRIPT, "--comfyui", comfyui, "--into", new],
        hint="`lambda-comfyui install`, which installs the ComfyUI and the Python for this",
    )
    (new / "README.txt").write_text(README)
    (new / MODEL_PATHS_FILE).write_text(_model_paths(target))
    marker.write_text("unfinished\n")
    for file in [path for path in new.rglob("*") if path.is_file()]:
        destination = target / file.relative_to(new)
        destination.parent.mkdir(exist_ok=True)
        file.replace(destination)
    marker.write_text(_recipe())
    shutil.rmtree(new)


def _recipe() -> str:
    return hashlib.sha256(SCRIPT.read_bytes()).hexdigest() + "\n"


def _model_paths(target: Path) -> str:
    # A JSON string is a YAML string, whatever characters are in the path.
    lines = ["lambda_comfyui_standins:", f"  base_path: {json.dumps(str(target))}"]
    return "\n".join([*lines, *(f"  {name}: {name}" for name in MODEL_FOLDERS)]) + "\n"
