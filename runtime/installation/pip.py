"""pip in ComfyUI's environment: required packages, and optional ones that may be missing."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from runtime.installation.command import NETWORK_HINT, InstallError, run_command
from runtime.installation.pins import Pin
from runtime.installation.pytorch import PyTorch
from runtime.installation.requirements import OPTIONAL
from runtime.log import log

PIP_INSTALL = ("-m", "pip", "install", "--disable-pip-version-check", "--no-input")


def install_pins(python: Path, pins: Sequence[Pin]) -> None:
    """Install entries of the lock, each file verified by its hash. Raises InstallError."""
    # The lock has what the packages require, too.
    _install(python, [pin.entry for pin in pins], ["--require-hashes", "--no-deps"], NETWORK_HINT)


def install_from_index(python: Path, pytorch: PyTorch, pins: Sequence[Pin]) -> None:
    """Install a build of PyTorch that PyPI does not have. Raises InstallError.

    What it requires comes from PyPI, in the versions of `pins`. Its CUDA libraries have no pins.
    """
    _install_with(
        python,
        pytorch.from_index,
        [str(pin) for pin in pins],
        ["--extra-index-url", pytorch.index],
        f"check that {pytorch.index} can be reached; {NETWORK_HINT}",
    )


def install_requirements(python: Path, lines: Sequence[str], pytorch: PyTorch) -> None:
    """Install requirements, without a change of PyTorch. Raises InstallError."""
    _install_with(python, lines, pytorch.versions, [], NETWORK_HINT)


def _install_with(
    python: Path, lines: Sequence[str], constraints: Sequence[str], options: list[str], hint: str
) -> None:
    with tempfile.TemporaryDirectory(prefix="lambda-comfyui-") as folder:
        path = Path(folder) / "constraints.txt"
        path.write_text("".join(f"{line}\n" for line in constraints))
        _install(python, lines, [*options, "--constraint", str(path)], hint)


def _install(python: Path, lines: Sequence[str], options: list[str], hint: str) -> None:
    """The required packages in one run, then the optional ones. Raises InstallError."""
    optional = [line for line in lines if _name(line) in OPTIONAL]
    _run_pip(python, [line for line in lines if line not in optional], options, hint)
    try:
        _run_pip(python, optional, options, hint)
    except InstallError:
        for line in optional:
            _try_optional(python, line, options, hint)


def _try_optional(python: Path, line: str, options: list[str], hint: str) -> None:
    try:
        _run_pip(python, [line], options, hint)
    except InstallError as error:
        name = _name(line)
        log(
            f"the optional package {name} is not installed. ComfyUI does without {OPTIONAL[name]}."
            f" To install it later: {python} -m pip install {name}\n{error}"
        )


def _run_pip(python: Path, lines: Sequence[str], options: list[str], hint: str) -> None:
    if not lines:
        return
    with tempfile.TemporaryDirectory(prefix="lambda-comfyui-") as folder:
        path = Path(folder) / "requirements.txt"
        path.write_text("".join(f"{line}\n" for line in lines))
        run_command([python, *PIP_INSTALL, *options, "--requirement", path], hint=hint, show=True)


def _name(line: str) -> str:
    """The package of a requirement, as the lock writes names."""
    found = re.match(r"[A-Za-z0-9._-]+", line)
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else line
