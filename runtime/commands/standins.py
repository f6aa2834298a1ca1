"""Generates the folder of stand-in weights: `python -m runtime standins`.

Random numbers under the names of the Wan 2.2 files, for running its workflow without the models.
"""

import argparse
import hashlib
import json
import shutil
import sys
import time
from pathlib import Path

from handler.settings import PROJECT, Settings
from runtime.commands.install import locked, say
from runtime.install_steps import DISK_HINT, InstallError, run_command

SCRIPT = PROJECT / "infra" / "standin_weights.py"
MARKER = "recipe.sha256"
MODEL_PATHS = "extra_model_paths.yaml"
MODEL_FOLDERS = ("diffusion_models", "loras", "text_encoders", "vae")
README = """\
These files hold random numbers, not models. They carry the names of the Wan 2.2 files so that the
documented workflow runs, node for node, through ComfyUI's own loaders on any machine. All that
they exercise is the code path: the video that comes out is noise. Never copy them to where real
weights belong. `python -m runtime standins` writes them anew.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--into", type=Path, metavar="DIR", help="write there instead of STANDIN_MODELS_DIR"
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Generate and return the exit status."""
    target = (args.into or settings.standins).absolute()
    try:
        generate(target, settings.comfyui_interpreter, settings.comfyui_code)
    except InstallError as error:
        print(f"standins: {error}", file=sys.stderr)
        return 1
    return 0


def generate(target: Path, python: Path, comfyui: Path) -> None:
    """Fill `target`, unless it is complete. Raises InstallError."""
    if is_complete(target):
        say(f"stand-in weights are in place in {target}")
        return
    started = time.monotonic()
    try:
        target.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f".{target.name}.lock")):
            if not is_complete(target):
                _write(target, python, comfyui)
    except OSError as error:
        raise InstallError(f"{error}. Try: {DISK_HINT}.") from error
    say(f"stand-in weights are in {target}, after {time.monotonic() - started:.1f} s")


def is_complete(target: Path) -> bool:
    """Say whether `target` holds what the script of today writes, and was not moved since."""
    try:
        paths = (target / MODEL_PATHS).read_text()
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
        hint="`python -m runtime install`, which makes the Python and the ComfyUI that this needs",
    )
    (new / "README.txt").write_text(README)
    (new / MODEL_PATHS).write_text(_model_paths(target))
    marker.write_text("unfinished\n")
    for file in [path for path in new.rglob("*") if path.is_file()]:
        place = target / file.relative_to(new)
        place.parent.mkdir(exist_ok=True)
        file.replace(place)
    marker.write_text(_recipe())
    shutil.rmtree(new)


def _recipe() -> str:
    return hashlib.sha256(SCRIPT.read_bytes()).hexdigest() + "\n"


def _model_paths(target: Path) -> str:
    # A JSON string is a YAML string, whatever characters the path has.
    lines = ["lambda_comfyui_standins:", f"  base_path: {json.dumps(str(target))}"]
    return "\n".join([*lines, *(f"  {name}: {name}" for name in MODEL_FOLDERS)]) + "\n"
