"""Makes a lock of the custom nodes of a ComfyUI, and installs one into a ComfyUI.

Nothing is changed until every node was fetched and its packages were resolved. An interrupted
installation is continued by the next one.
"""

import shutil
import tempfile
import tomllib
from collections.abc import Collection, Sequence
from pathlib import Path

from runtime.custom_nodes import packages, repository
from runtime.custom_nodes.lock_file import LockedNode
from runtime.custom_nodes.repository import RepositoryError, Source
from runtime.errors import LambdaComfyUIError
from runtime.log import log
from runtime.process.file_lock import hold_file_lock

FOLDER = "custom_nodes"
# ComfyUI loads no folder with this end.
_DISABLED = ".disabled"
_FETCHED = f".fetched{_DISABLED}"
# They belong to ComfyUI's own repository.
_COMFYUIS_OWN = {"websocket_image_save.py", "example_node.py.example"}


class CustomNodeError(LambdaComfyUIError):
    """A custom node cannot be locked or installed; the message names it and the fix."""


def lock(comfyui: Path, left_out: Collection[str]) -> tuple[LockedNode, ...]:
    """The custom nodes in the folder of a ComfyUI, but for those `left_out`.

    Each is fetched from its repository, as the installation will do it. Raises CustomNodeError,
    whose message lists all nodes that cannot be locked.
    """
    folder = comfyui / FOLDER
    names = _names_in(folder)
    if strangers := sorted(set(left_out) - set(names)):
        raise CustomNodeError(f"there is no {', '.join(strangers)} in {folder}")
    nodes, problems = [], []
    for name in names:
        if name in left_out:
            continue
        try:
            nodes.append(_lock_one(folder / name))
        except RepositoryError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise CustomNodeError(
            "these custom nodes cannot be locked:\n"
            + "\n".join(problems)
            + "\nInstall each from its git repository, or leave it out with --without NAME"
        )
    return tuple(nodes)


def install(nodes: Sequence[LockedNode], comfyui: Path, python: Path) -> None:
    """Install the nodes of a lock, and their packages into the environment of `python`.

    Other nodes stay as they are. Raises CustomNodeError, PackageError and RepositoryError.
    """
    if not comfyui.is_dir():
        raise CustomNodeError(
            f"there is no folder {comfyui}; run `lambda-comfyui install`, or set COMFYUI_DIR"
        )
    folder = comfyui / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        with hold_file_lock(comfyui / ".custom_nodes.lock"):
            _install(nodes, folder, python)
    except OSError as error:
        raise CustomNodeError(
            f"{error}. Try: check the permissions and the free disk space."
        ) from error


def _install(nodes: Sequence[LockedNode], folder: Path, python: Path) -> None:
    missing = [node for node in nodes if not _is_in_place(node, folder / node.name)]
    try:
        for node in missing:
            _fetch(node, folder / f"{node.name}{_FETCHED}")
        folders = {
            node.name: folder / (f"{node.name}{_FETCHED}" if node in missing else node.name)
            for node in nodes
        }
        requirements = packages.requirements_of(folders)
        to_install = packages.resolve(python, requirements)
        for node in missing:
            _put_in_place(node, folder)
    finally:
        # Also what an interrupted run has left.
        for node in nodes:
            shutil.rmtree(folder / f"{node.name}{_FETCHED}", ignore_errors=True)
    if to_install:
        log(f"packages of custom nodes: {', '.join(map(str, to_install))} …")
        in_place = packages.requirements_of({node.name: folder / node.name for node in nodes})
        packages.install(python, to_install, in_place)
    log(f"custom nodes in {folder}: {len(nodes)} of the lock file, {len(missing)} new or changed")


def _is_in_place(node: LockedNode, folder: Path) -> bool:
    """Whether the folder holds the node already. Raises CustomNodeError if others' files are there.

    A clone whose files nobody has changed is moved to the locked commit; so is one whose move was
    killed before its submodules had followed.
    """
    if not folder.exists():
        return False
    try:
        source = repository.source_of(folder)
        is_moving = repository.is_moving(folder)
        changed = repository.changed_files(folder, with_submodules=not is_moving)
    except RepositoryError as error:
        raise CustomNodeError(
            f"custom node {node.name}: {folder} exists, but {error}. Remove or rename it"
        ) from error
    if changed:
        raise CustomNodeError(
            f"custom node {node.name}: these files in {folder} are not those of its commit:"
            f" {', '.join(changed[:5])}. Commit or undo the changes"
        )
    return source == Source(node.repository, node.commit) and not is_moving


def _fetch(node: LockedNode, into: Path) -> None:
    log(f"custom node {node.name}, commit {node.commit[:10]} …")
    shutil.rmtree(into, ignore_errors=True)
    try:
        repository.fetch(Source(node.repository, node.commit), into)
        sha256 = repository.tree_sha256(into)
    except RepositoryError as error:
        raise CustomNodeError(
            f"custom node {node.name} cannot be fetched from {node.repository}: {error}"
        ) from error
    if sha256 != node.sha256:
        raise CustomNodeError(
            f"custom node {node.name}: the files of commit {node.commit} in {node.repository} have"
            f" the SHA-256 {sha256}, and the lock file says {node.sha256}. Ask who has made the"
            " lock file, or make it again"
        )


def _put_in_place(node: LockedNode, folder: Path) -> None:
    target, fetched = folder / node.name, folder / f"{node.name}{_FETCHED}"
    if not target.exists():
        fetched.rename(target)
        return
    # In place, because a node may keep models, caches and settings among its files.
    repository.move_to(Source(node.repository, node.commit), target)


def _lock_one(folder: Path) -> LockedNode:
    source = repository.source_of(folder)
    if changed := repository.changed_files(folder):
        raise RepositoryError(f"these files are in no commit: {', '.join(changed[:5])}")
    log(f"custom node {folder.name}, commit {source.commit[:10]} …")
    with tempfile.TemporaryDirectory() as temporary:
        fetched = Path(temporary, folder.name)
        repository.fetch(source, fetched)
        return LockedNode(
            name=folder.name,
            repository=source.repository,
            commit=source.commit,
            sha256=repository.tree_sha256(fetched),
            registry_id=_registry_id(fetched),
        )


def _names_in(folder: Path) -> list[str]:
    """The custom nodes in a folder, as ComfyUI finds them (its nodes.py)."""
    if not folder.is_dir():
        raise CustomNodeError(f"there is no folder {folder}; set COMFYUI_DIR to that of ComfyUI")
    return sorted(
        path.name
        for path in folder.iterdir()
        if (path.is_dir() or path.suffix == ".py")
        and path.name != "__pycache__"
        and not path.name.startswith(".")
        and not path.name.endswith(_DISABLED)
        and path.name not in _COMFYUIS_OWN
    )


def _registry_id(folder: Path) -> str:
    """The name in the registry, which a published node has in its pyproject.toml; '' for none.

    https://docs.comfy.org/registry/specifications
    """
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))
        is_published = bool(project["tool"]["comfy"]["PublisherId"])
        return str(project["project"]["name"]) if is_published else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
