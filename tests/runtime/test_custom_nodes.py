"""Custom nodes by lock file: real repositories, a real pip in an environment of its own."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from runtime import cli
from runtime.custom_nodes.install import CustomNodeError, install, lock
from runtime.custom_nodes.lock_file import (
    LockedNode,
    LockFileError,
    read_lock,
    write_lock,
)
from runtime.custom_nodes.packages import PackageError
from runtime.custom_nodes.repository import RepositoryError, Source, move_to
from tests.runtime.custom_node_repositories import (
    WORKING_NODE,
    commit,
    git,
    make_repository,
    make_wheel,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    """The folder of a ComfyUI, as far as the commands look at it."""
    folder = tmp_path / "ComfyUI"
    (folder / "custom_nodes").mkdir(parents=True)
    (folder / "custom_nodes" / "websocket_image_save.py").touch()
    return folder


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pinned` 1.0 and 2.0, and packages that need the one or the other."""
    folder = tmp_path_factory.mktemp("wheels")
    for version in ("1.0", "2.0"):
        make_wheel(folder, "pinned", version)
    make_wheel(folder, "fits", "1.0", ["pinned"])
    make_wheel(folder, "modern", "3.0", ["pinned>=2"])
    for version in ("1.0", "2.0"):
        make_wheel(folder, "shared", version)
    return folder


@pytest.fixture(scope="session")
def environment_with_pinned(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Path:
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    options = ["--quiet", "--no-index", "--find-links", str(wheels), "pinned==1.0"]
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", *options], check=True)
    return folder


@pytest.fixture
def python(
    tmp_path: Path, environment_with_pinned: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The Python of an environment that has `pinned` 1.0, and a pip that sees the wheels alone."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    shutil.copytree(environment_with_pinned, tmp_path / "venv", symlinks=True)
    return tmp_path / "venv" / "bin" / "python"


def version_of(python: Path, package: str) -> str:
    """The version that is installed, '' for none."""
    program = f"import {package}; print({package}.VERSION)"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def locked(repository: Path, comfyui: Path) -> LockedNode:
    """What `lock` makes of a clone of this repository."""
    clone = comfyui.parent / "other" / "custom_nodes" / repository.name
    clone.parent.mkdir(parents=True, exist_ok=True)
    git(clone.parent, "clone", "--quiet", f"file://{repository}", clone.name)
    (node,) = (node for node in lock(clone.parent.parent, ()) if node.name == repository.name)
    return node


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repositories" / "doubles"
    make_repository(folder, {"__init__.py": WORKING_NODE, "requirements.txt": "fits\n"})
    return folder


def test_locked_nodes_are_installed_with_their_packages_into_another_comfyui(
    repository: Path, comfyui: Path, python: Path, tmp_path: Path
) -> None:
    file = tmp_path / "custom_nodes.lock.yaml"
    write_lock(file, [locked(repository, comfyui)])

    install(read_lock(file), comfyui, python)

    folder = comfyui / "custom_nodes" / "doubles"
    assert (folder / "__init__.py").read_text() == WORKING_NODE
    assert version_of(python, "fits") == "1.0"
    assert version_of(python, "pinned") == "1.0"


def test_second_installation_changes_nothing(
    repository: Path, comfyui: Path, python: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = locked(repository, comfyui)
    install([node], comfyui, python)
    before = (comfyui / "custom_nodes" / "doubles").stat().st_ino
    repository.rename(repository.with_name("gone"))

    install([node], comfyui, python)

    assert (comfyui / "custom_nodes" / "doubles").stat().st_ino == before
    assert "1 of the lock file, 0 new or changed" in capsys.readouterr().err


def test_packages_that_an_interrupted_installation_has_left_out_are_installed(
    repository: Path, comfyui: Path, python: Path
) -> None:
    node = locked(repository, comfyui)
    # As one that was killed before pip, and another one while it fetched.
    git(comfyui / "custom_nodes", "clone", "--quiet", node.repository, "doubles")
    (comfyui / "custom_nodes" / "doubles.fetched.disabled").mkdir()

    install([node], comfyui, python)

    assert version_of(python, "fits") == "1.0"
    assert not (comfyui / "custom_nodes" / "doubles.fetched.disabled").exists()


def test_node_of_another_commit_is_moved_and_keeps_its_own_files(
    repository: Path, comfyui: Path, python: Path
) -> None:
    old = locked(repository, comfyui)
    install([old], comfyui, python)
    model = comfyui / "custom_nodes" / "doubles" / "model.bin"
    model.write_text("downloaded by the node")
    commit(repository, {"__init__.py": WORKING_NODE + "# newer\n"})
    git(comfyui.parent / "other" / "custom_nodes" / "doubles", "pull", "--quiet")
    (new,) = lock(comfyui.parent / "other", ())

    install([new], comfyui, python)

    assert new.commit != old.commit
    assert (model.parent / "__init__.py").read_text().endswith("# newer\n")
    assert model.read_text() == "downloaded by the node"


@pytest.fixture
def with_submodule(
    tmp_path: Path, comfyui: Path, python: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[LockedNode, LockedNode]:
    """Two commits of a node, each with another commit of its submodule. The first is installed."""
    # git takes no submodule from a folder of this machine without it: CVE-2022-39253.
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "protocol.file.allow")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "always")
    part = tmp_path / "repositories" / "part"
    make_repository(part, {"part.py": "NUMBER = 1\n"})
    whole = tmp_path / "repositories" / "whole"
    make_repository(whole, {"__init__.py": ""})
    git(whole, "submodule", "--quiet", "add", f"file://{part}", "part")
    commit(whole, {})
    old = locked(whole, comfyui)
    install([old], comfyui, python)
    commit(part, {"part.py": "NUMBER = 2\n"})
    git(whole / "part", "pull", "--quiet")
    commit(whole, {"__init__.py": "# newer\n"})
    git(comfyui.parent / "other" / "custom_nodes" / "whole", "pull", "--quiet")
    git(comfyui.parent / "other" / "custom_nodes" / "whole", "submodule", "--quiet", "update")
    (new,) = lock(comfyui.parent / "other", ())
    return old, new


def kill_at_submodules(node: LockedNode, comfyui: Path, python: Path, folder: Path) -> None:
    """Install in a process that is killed as soon as the node's submodules would follow it."""
    real = shutil.which("git")
    git_ = folder / "bin" / "git"
    git_.parent.mkdir()
    git_.write_text(
        "#!/bin/sh\n"
        'case "$2 $3" in */custom_nodes/whole\\ submodule) kill -9 $PPID; exit 1;; esac\n'
        f'exec {real} "$@"\n'
    )
    git_.chmod(0o755)
    lock_file = folder / "killed.yaml"
    write_lock(lock_file, [node])
    command = [sys.executable, "-m", "runtime", "nodes", "install", str(lock_file)]
    variables = {"COMFYUI_DIR": str(comfyui), "COMFYUI_PYTHON": str(python)}
    path = f"{git_.parent}:{os.environ['PATH']}"
    done = subprocess.run(command, env={**os.environ, **variables, "PATH": path}, check=False)
    assert done.returncode == -signal.SIGKILL


def test_move_that_was_killed_before_the_submodules_is_finished(
    with_submodule: tuple[LockedNode, LockedNode],
    comfyui: Path,
    python: Path,
    tmp_path: Path,
) -> None:
    _, new = with_submodule
    folder = comfyui / "custom_nodes" / "whole"
    kill_at_submodules(new, comfyui, python, tmp_path)
    assert git(folder, "rev-parse", "HEAD") == new.commit
    assert (folder / "part" / "part.py").read_text() == "NUMBER = 1\n"

    install([new], comfyui, python)

    assert (folder / "__init__.py").read_text() == "# newer\n"
    assert (folder / "part" / "part.py").read_text() == "NUMBER = 2\n"
    # Once it is finished, a submodule at another commit is somebody's change.
    git(folder / "part", "checkout", "--quiet", "HEAD^")
    with pytest.raises(CustomNodeError, match="not those of its commit: part"):
        install([new], comfyui, python)


def test_changes_in_a_submodule_are_kept_although_a_move_was_killed(
    with_submodule: tuple[LockedNode, LockedNode],
    comfyui: Path,
    python: Path,
    tmp_path: Path,
) -> None:
    _, new = with_submodule
    kill_at_submodules(new, comfyui, python, tmp_path)
    part = comfyui / "custom_nodes" / "whole" / "part" / "part.py"
    part.write_text("NUMBER = 3\n")

    with pytest.raises(CustomNodeError, match=r"not those of its commit: part/part\.py"):
        install([new], comfyui, python)

    assert part.read_text() == "NUMBER = 3\n"


def test_files_with_another_hash_are_not_installed(
    repository: Path, comfyui: Path, python: Path
) -> None:
    node = replace(locked(repository, comfyui), sha256="0" * 64)

    with pytest.raises(CustomNodeError, match=r"doubles: the files of commit .* have the SHA-256"):
        install([node], comfyui, python)

    assert not (comfyui / "custom_nodes" / "doubles").exists()


def test_commit_that_does_not_exist_names_the_node_and_its_repository(
    repository: Path, comfyui: Path, python: Path
) -> None:
    node = replace(locked(repository, comfyui), commit="f" * 40)

    with pytest.raises(CustomNodeError, match=r"doubles: .* has no commit f{40}"):
        install([node], comfyui, python)


@pytest.mark.parametrize("requirement", ["pinned>=2", "modern"], ids=["itself", "through another"])
def test_node_that_needs_another_version_of_an_installed_package_is_refused(
    requirement: str, tmp_path: Path, comfyui: Path, python: Path
) -> None:
    repository = tmp_path / "repositories" / "greedy"
    make_repository(repository, {"__init__.py": "", "requirements.txt": f"{requirement}\n"})
    other = tmp_path / "repositories" / "modest"
    make_repository(other, {"__init__.py": "", "requirements.txt": "fits\n"})

    with pytest.raises(PackageError) as raised:
        install([locked(other, comfyui), locked(repository, comfyui)], comfyui, python)

    assert "the custom node greedy needs other versions" in str(raised.value)
    assert "pinned 2.0 instead of 1.0" in str(raised.value)
    assert "modest" not in str(raised.value)
    assert version_of(python, "pinned") == "1.0"
    assert version_of(python, "fits") == ""
    assert os.listdir(comfyui / "custom_nodes") == ["websocket_image_save.py"]


def test_nodes_whose_packages_exclude_each_other_are_refused_together(
    tmp_path: Path, comfyui: Path, python: Path
) -> None:
    nodes = []
    for name, version in (("first", "1.0"), ("second", "2.0")):
        repository = tmp_path / "repositories" / name
        requirements = f"shared=={version}\n"
        make_repository(repository, {"__init__.py": "", "requirements.txt": requirements})
        nodes.append(locked(repository, comfyui))

    with pytest.raises(PackageError, match="first, second cannot be installed together"):
        install(nodes, comfyui, python)


def test_package_that_nobody_offers_names_the_node(
    tmp_path: Path, comfyui: Path, python: Path
) -> None:
    repository = tmp_path / "repositories" / "lost"
    make_repository(repository, {"__init__.py": "", "requirements.txt": "no-such-package\n"})

    with pytest.raises(PackageError, match="the custom node lost cannot be installed"):
        install([locked(repository, comfyui)], comfyui, python)


def test_environment_without_pip_is_named(repository: Path, comfyui: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    python = tmp_path / "bare" / "bin" / "python"

    with pytest.raises(PackageError, match=f"{python} has no working pip"):
        install([locked(repository, comfyui)], comfyui, python)


def test_folder_that_others_have_changed_is_left_alone(
    repository: Path, comfyui: Path, python: Path
) -> None:
    node = locked(repository, comfyui)
    folder = comfyui / "custom_nodes" / "doubles"
    folder.mkdir()
    with pytest.raises(CustomNodeError, match=r"doubles: .* it is not a git repository"):
        install([node], comfyui, python)
    folder.rmdir()
    git(folder.parent, "clone", "--quiet", node.repository, "doubles")
    (folder / "__init__.py").write_text("# changed by hand\n")

    with pytest.raises(CustomNodeError, match=r"not those of its commit: __init__\.py"):
        install([node], comfyui, python)

    assert (folder / "__init__.py").read_text() == "# changed by hand\n"


def test_nodes_that_no_repository_holds_are_all_named(comfyui: Path, repository: Path) -> None:
    folder = comfyui / "custom_nodes"
    (folder / "by_hand").mkdir()
    (folder / "single.py").touch()
    (folder / "off.disabled").mkdir()
    git(folder, "clone", "--quiet", f"file://{repository}", "changed")
    (folder / "changed" / "__init__.py").write_text("")
    git(folder, "clone", "--quiet", f"file://{repository}", "unpushed")
    unpushed = commit(folder / "unpushed", {"__init__.py": "# of nobody else\n"})

    with pytest.raises(CustomNodeError) as raised:
        lock(comfyui, ())

    message = str(raised.value)
    assert "by_hand: it is not a git repository" in message
    assert "single.py: it is not a git repository" in message
    assert "changed: these files are in no commit: __init__.py" in message
    assert f"unpushed: file://{repository} has no commit {unpushed}; was it pushed?" in message
    assert "off.disabled" not in message
    assert "websocket_image_save" not in message
    assert "--without NAME" in message
    assert lock(comfyui, ["by_hand", "single.py", "changed", "unpushed"]) == ()


def test_comfyui_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CustomNodeError, match=r"there is no folder .*; set COMFYUI_DIR"):
        lock(tmp_path / "nowhere", ())
    with pytest.raises(CustomNodeError, match=r"there is no folder .* or set COMFYUI_DIR"):
        install([], tmp_path / "nowhere", tmp_path / "python")


def test_name_to_leave_out_that_does_not_exist_is_refused(comfyui: Path) -> None:
    with pytest.raises(CustomNodeError, match="there is no typo in"):
        lock(comfyui, ["typo"])


def test_name_in_the_registry_is_that_of_a_published_node(tmp_path: Path, comfyui: Path) -> None:
    repository = tmp_path / "repositories" / "published"
    project = '[project]\nname = "comfyui-doubles"\n[tool.comfy]\nPublisherId = "tester"\n'
    make_repository(repository, {"__init__.py": "", "pyproject.toml": project})

    assert locked(repository, comfyui).registry_id == "comfyui-doubles"


def test_password_in_the_url_of_a_clone_is_in_no_lock(comfyui: Path, repository: Path) -> None:
    folder = comfyui / "custom_nodes"
    git(folder, "clone", "--quiet", f"file://{repository}", "private")
    git(folder / "private", "remote", "set-url", "origin", "http://me:canary@127.0.0.1:9/x")

    with pytest.raises(CustomNodeError) as raised:
        lock(comfyui, ())

    assert "private" in str(raised.value)
    assert "canary" not in str(raised.value)


class GitHandler(SimpleHTTPRequestHandler):
    """git's files, as a server without git gives them; nobody may, if `is_private`."""

    is_private = False

    def do_GET(self) -> None:
        if self.is_private:
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic")
            self.end_headers()
            return
        super().do_GET()


@pytest.fixture
def git_url(repository: Path) -> Iterator[str]:
    """The address of the repository on a server."""
    handler = functools.partial(GitHandler, directory=str(repository / ".git"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        git(repository, "update-server-info")
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_token_in_the_url_of_a_clone_stays_there_when_the_node_is_moved(
    repository: Path, git_url: str, comfyui: Path, python: Path
) -> None:
    old = replace(locked(repository, comfyui), repository=git_url)
    install([old], comfyui, python)
    folder = comfyui / "custom_nodes" / "doubles"
    with_token = git_url.replace("//", "//canary@")
    git(folder, "remote", "set-url", "origin", with_token)
    commit(repository, {"__init__.py": WORKING_NODE + "# newer\n"})
    git(repository, "update-server-info")
    git(comfyui.parent / "other" / "custom_nodes" / "doubles", "pull", "--quiet")
    (new,) = lock(comfyui.parent / "other", ())

    install([replace(new, repository=git_url)], comfyui, python)

    assert git(folder, "rev-parse", "HEAD") == new.commit
    assert git(folder, "remote", "get-url", "origin") == with_token
    # Of another repository, it is not.
    install([new], comfyui, python)
    assert git(folder, "remote", "get-url", "origin") == new.repository


def test_token_that_git_prints_is_not_in_the_message(
    git_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GitHandler, "is_private", True)
    # No program of this machine has a password.
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("GIT_ASKPASS", "SSH_ASKPASS"):
        monkeypatch.delenv(name, raising=False)
    git(tmp_path, "init", "--quiet", "clone")
    git(tmp_path / "clone", "remote", "add", "origin", git_url.replace("//", "//canary@"))

    with pytest.raises(RepositoryError, match=f"could not read Password for '{git_url}'") as raised:
        move_to(Source(git_url, "a" * 40), tmp_path / "clone")

    assert "canary" not in str(raised.value)


GOOD = {
    "name": "doubles",
    "repository": "https://example.com/doubles",
    "commit": "a" * 40,
    "sha256": "b" * 64,
}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nodes: [", "is not YAML"),
        ("{}", "the file: 'version' is a required property"),
        ("{version: 2, nodes: []}", "version: 1 was expected"),
        (f"{{version: 1, nodes: [{GOOD | {'commit': 'main'}}]}}", "[0].commit: expected the 40"),
        (f"{{version: 1, nodes: [{GOOD | {'name': '../up'}}]}}", "[0].name: expected the name"),
        (f"{{version: 1, nodes: [{GOOD | {'commit': 1234}}]}}", "expected string in quotes"),
        (
            f"{{version: 1, nodes: [{GOOD | {'repository': 'https://me:pw@host/x'}}]}}",
            "nodes[0].repository: expected an https, ssh or file URL without a user",
        ),
        (
            # git and ssh would take it for an option.
            f"{{version: 1, nodes: [{GOOD | {'repository': '-tmain@host:x'}}]}}",
            "nodes[0].repository: expected an https, ssh or file URL",
        ),
        (
            f"{{version: 1, nodes: [{GOOD | {'repository': 'ssh://-oProxyCommand=x/y'}}]}}",
            "nodes[0].repository: expected an https, ssh or file URL",
        ),
        (f"{{version: 1, nodes: [{GOOD}, {GOOD}]}}", "more than once: doubles"),
    ],
)  # fmt: skip
def test_file_that_is_no_lock_is_refused_in_words(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "custom_nodes.lock.yaml"
    file.write_text(text)

    with pytest.raises(LockFileError) as raised:
        read_lock(file)

    assert str(file) in str(raised.value)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    "repository",
    ["git@github.com:a/b.git", "ssh://git@host/a", "file:///srv/a", "/srv/a", "https://host/a b"],
)
def test_repository_is_a_url_or_a_path(repository: str, tmp_path: Path) -> None:
    node = LockedNode(**GOOD | {"repository": repository})
    file = tmp_path / "custom_nodes.lock.yaml"

    if " " in repository:
        with pytest.raises(LockFileError, match="do not fit"):
            write_lock(file, [node])
    else:
        write_lock(file, [node])
        assert read_lock(file) == (node,)


def test_commands_lock_and_install(
    repository: Path,
    comfyui: Path,
    python: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    git(comfyui / "custom_nodes", "clone", "--quiet", f"file://{repository}")
    other = tmp_path / "other-comfyui"
    (other / "custom_nodes").mkdir(parents=True)
    file = tmp_path / "nodes.yaml"
    monkeypatch.setenv("COMFYUI_PYTHON", str(python))

    monkeypatch.setenv("COMFYUI_DIR", str(comfyui))
    locked_status = cli.main(["nodes", "lock", str(file)])
    monkeypatch.setenv("COMFYUI_DIR", str(other))
    installed_status = cli.main(["nodes", "install", str(file)])
    missing_status = cli.main(["nodes", "install", str(tmp_path / "nothing.yaml")])

    assert (locked_status, installed_status, missing_status) == (0, 0, 2)
    output = capsys.readouterr()
    assert output.out == f"{file}: 1 custom nodes\n"
    assert f"cannot read the lock file {tmp_path / 'nothing.yaml'}" in output.err
    assert (other / "custom_nodes" / "doubles" / "__init__.py").exists()
