"""The Python packages of custom nodes, beside those that ComfyUI's environment has already.

What is installed stays as it is: all of it constrains pip
(https://pip.pypa.io/en/stable/user_guide/#constraints-files). pip resolves the requirements of all
nodes together, before anything is changed.
"""

import json
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import LambdaComfyUIError

REQUIREMENTS = "requirements.txt"
_OUTPUT_LINES_SHOWN = 10
_PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input")


class PackageError(LambdaComfyUIError):
    """The packages of a node cannot be installed; the message names node, package, versions."""


class PipError(PackageError):
    """pip has failed; the message is the end of its output."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package of ComfyUI's environment, or one that is to be installed there."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def requirements_of(folders: Mapping[str, Path]) -> dict[str, Path]:
    """The requirements files in the folders of nodes, by name; some nodes have none."""
    files = {name: folder / REQUIREMENTS for name, folder in folders.items()}
    return {name: file for name, file in files.items() if file.is_file()}


def resolve(python: Path, requirements: Mapping[str, Path]) -> tuple[Package, ...]:
    """What is missing in ComfyUI's environment, of which nothing is changed.

    `requirements` are files by the names of their nodes. Raises PackageError when they cannot be
    installed beside what is there, or beside each other.
    """
    if not requirements:
        return ()
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "constraints.txt")
        constraints.write_text(_installed(python))
        try:
            return _missing(python, list(requirements.values()), constraints)
        except PipError as error:
            _explain(python, requirements, constraints)
            together = ", ".join(requirements)
            raise PackageError(
                f"the packages of the custom nodes {together} cannot be installed together."
                f" The last lines of pip:\n{error}"
            ) from error


def install(python: Path, packages: Sequence[Package], requirements: Mapping[str, Path]) -> None:
    """Install the packages that `resolve` has found. Raises PackageError."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "constraints.txt")
        # The versions that were found, although newer ones may have come since.
        found = "".join(f"{package.name}=={package.version}\n" for package in packages)
        constraints.write_text(_installed(python) + found)
        try:
            _run(python, "install", "--quiet", *_files(constraints, list(requirements.values())))
        except PipError as error:
            raise PackageError(
                f"the packages {', '.join(map(str, packages))} cannot be installed."
                f" The last lines of pip:\n{error}"
            ) from error


def _explain(python: Path, requirements: Mapping[str, Path], constraints: Path) -> None:
    """Raise PackageError with the nodes that need other versions of what is installed."""
    installed = {
        _normalized(name): version
        for name, _, version in (
            line.partition("==") for line in constraints.read_text().splitlines()
        )
    }
    sentences = []
    for node, file in requirements.items():
        try:
            _missing(python, [file], constraints)
        except PipError as refused:
            sentences.append(_sentence(python, node, file, installed, refused))
    if sentences:
        raise PackageError("\n".join(sentences))


def _sentence(
    python: Path, node: str, file: Path, installed: Mapping[str, str], refused: PipError
) -> str:
    try:
        wanted = _missing(python, [file], constraints=None)
    except PipError as error:
        return f"the packages of the custom node {node} cannot be installed:\n{error}"
    replaced = [package for package in wanted if _normalized(package.name) in installed]
    if not replaced:
        return f"the packages of the custom node {node} cannot be installed:\n{refused}"
    differences = ", ".join(
        f"{package} instead of {installed[_normalized(package.name)]}" for package in replaced
    )
    return (
        f"the custom node {node} needs other versions of packages that ComfyUI's environment has:"
        f" {differences}. They are not replaced, because ComfyUI and other nodes use them. Lock a"
        " commit of the node that fits them"
    )


def _missing(python: Path, files: Sequence[Path], constraints: Path | None) -> tuple[Package, ...]:
    """What pip would install. https://pip.pypa.io/en/stable/reference/installation-report/"""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        options = ("--dry-run", "--quiet", "--report", str(report))
        _run(python, "install", *options, *_files(constraints, files))
        items = json.loads(report.read_text())["install"]
    return tuple(Package(item["metadata"]["name"], item["metadata"]["version"]) for item in items)


def _installed(python: Path) -> str:
    """The packages of the environment, a line `NAME==VERSION` each. Raises PackageError."""
    try:
        return _run(python, "list", "--format=freeze", "--exclude-editable")
    except PipError as error:
        raise PackageError(f"ComfyUI's Python {python} has no working pip:\n{error}") from error


def _normalized(name: str) -> str:
    """https://packaging.python.org/en/latest/specifications/name-normalization/"""
    return re.sub(r"[-_.]+", "-", name).lower()


def _files(constraints: Path | None, requirements: Sequence[Path]) -> list[str]:
    options = ["--constraint", str(constraints)] if constraints else []
    for file in requirements:
        options += ["--requirement", str(file)]
    return options


def _run(python: Path, command: str, *arguments: str) -> str:
    """What pip prints to stdout. Raises PipError, and PackageError when there is no pip."""
    try:
        done = subprocess.run(
            [str(python), *_PIP, command, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise PackageError(f"cannot run ComfyUI's Python {python}: {error.strerror}") from error
    if done.returncode == 0:
        return done.stdout
    raise PipError("\n".join(done.stderr.rstrip().splitlines()[-_OUTPUT_LINES_SHOWN:]))
