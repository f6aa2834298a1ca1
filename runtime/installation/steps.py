"""The steps of an installation: what each one installs, and how it knows that it is done.

A step writes a marker file into the folder that it makes, so that both are deleted together. Which
ComfyUI and which PyTorch are installed is decided in runtime/commands/install.py.
"""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from runtime.installation import pip
from runtime.installation.check import check
from runtime.installation.command import run_command
from runtime.installation.pins import Pin
from runtime.installation.pytorch import OF_PYPI, PyTorch, is_of_pytorch
from runtime.installation.requirements import needs_of
from runtime.installation.source import MARKERS, Source, get_comfyui


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One part of the installation. `content` is the text of the marker once it is done.

    `is_source` is the step that gets ComfyUI itself: after it, the version is known to exist.
    """

    title: str
    marker: Path
    content: Callable[[], str]
    install: Callable[[], None]
    intact: Callable[[], bool] = lambda: True
    is_source: bool = False

    def is_done(self) -> bool:
        try:
            return self.marker.read_text() == self.content() and self.intact()
        except OSError:
            return False

    def perform(self) -> None:
        # A ComfyUI that cannot be had leaves the one in place, and its marker, as they are.
        if not self.is_source:
            self.marker.unlink(missing_ok=True)
        self.install()
        self.marker.parent.mkdir(exist_ok=True)
        self.marker.write_text(self.content())


def steps_for(source: Source, pytorch: PyTorch, pins: tuple[Pin, ...], home: Path) -> list[Step]:
    """The steps, each after those that it depends on. `pins` are those of the lock."""
    tree, venv = home / "ComfyUI", home / "venv"
    python = venv / "bin" / "python"
    source_marker, requirements = tree / MARKERS / "source", tree / "requirements.txt"

    def packages() -> str:
        needs = needs_of(requirements, pins)
        return "".join(f"{line}\n" for line in (*map(str, needs.pinned), *needs.own))

    def all_of_it() -> str:
        return f"{source}, {source_marker.stat().st_mtime_ns}\n{torch}{packages()}"

    torch = f"{pytorch.build} {_digest((pin.entry for pin in pytorch.pins), pytorch.from_index)}\n"
    return [
        Step(
            title="virtual environment",
            marker=venv / MARKERS / "venv",
            # pip would leave the CUDA libraries of another build in it.
            content=lambda: "made\n" if pytorch.build == OF_PYPI else f"for {pytorch.build}\n",
            install=lambda: _make_venv(venv),
            intact=lambda: _runs(python),
        ),
        Step(
            title=f"ComfyUI from {source}",
            marker=source_marker,
            content=lambda: f"{source}\n",
            install=lambda: get_comfyui(source, home, python),
            intact=lambda: (tree / "main.py").is_file() and requirements.is_file(),
            is_source=True,
        ),
        Step(
            title=f"PyTorch {pytorch.build}, several gigabytes",
            marker=venv / MARKERS / "torch",
            content=lambda: torch,
            install=lambda: _install_pytorch(python, pytorch, pins),
        ),
        Step(
            title="ComfyUI's other packages",
            marker=venv / MARKERS / "packages",
            content=packages,
            install=lambda: _install_packages(python, requirements, pytorch, pins),
        ),
        Step(
            title="bytecode, for a faster start",
            marker=tree / MARKERS / "bytecode",
            content=lambda: f"{sys.implementation.cache_tag}\n",
            install=lambda: _compile(python, tree),
        ),
        Step(
            title="check",
            marker=venv / MARKERS / "checked",
            content=all_of_it,
            install=lambda: check(python, tree),
        ),
    ]


def _digest(*parts: Iterable[str]) -> str:
    return hashlib.sha256("".join(line for part in parts for line in part).encode()).hexdigest()


def _runs(python: Path) -> bool:
    probe = "import importlib.util as u, sys; sys.exit(u.find_spec('pip') is None)"
    try:
        process = subprocess.run([python, "-c", probe], capture_output=True, check=False)
    except OSError:
        return False
    return process.returncode == 0


def _make_venv(venv: Path) -> None:
    run_command(
        [sys.executable, "-m", "venv", "--clear", venv],
        hint="install Python's venv and ensurepip (Debian, Ubuntu: apt install python3-venv)",
    )


def _install_pytorch(python: Path, pytorch: PyTorch, pins: tuple[Pin, ...]) -> None:
    if pytorch.from_index:
        others = [pin for pin in pins if not is_of_pytorch(pin.name)]
        pip.install_from_index(python, pytorch, others)
    else:
        pip.install_pins(python, pytorch.pins)


def _install_packages(
    python: Path, requirements: Path, pytorch: PyTorch, pins: tuple[Pin, ...]
) -> None:
    needs = needs_of(requirements, pins)
    pip.install_pins(python, needs.pinned)
    pip.install_requirements(python, needs.own, pytorch)


def _compile(python: Path, tree: Path) -> None:
    # The status does not matter: a custom node may have a file that does not compile.
    subprocess.run(
        [python, "-m", "compileall", "-qq", "-j", "0", tree],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
