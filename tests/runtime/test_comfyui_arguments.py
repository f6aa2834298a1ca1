"""How ComfyUI is called depends on what the ComfyUI in the folder can do."""

import os
import subprocess
from pathlib import Path

import pytest

from handler.settings import Settings
from runtime.worker.comfyui_arguments import arguments
from runtime.worker.comfyui_features import ComfyUIFeatures
from tests.runtime.test_worker import StartWorker, start_worker

__all__ = ["start_worker"]

OLD = """
parser.add_argument("--cpu", action="store_true", help="see --offline")
vram.add_argument("--normalvram", action="store_true")
parser.add_argument("--disable-api-nodes", action="store_true")
"""
NEW = """
parser.add_argument("--cpu", action="store_true")
parser.add_argument(
    "--offline", "--no-network", action="store_true",
)
assets.add_argument('--disable-assets', action="store_true")
"""
BOTH_NAMES = 'parser.add_argument("--offline", "--disable-api-nodes", action="store_true")'


def comfyui_with(folder: Path, options: str, version: str = "1.2.3") -> Path:
    """The folder of a ComfyUI, of which there are only the files that say what it can do."""
    (folder / "comfy").mkdir(parents=True)
    (folder / "comfy" / "cli_args.py").write_text(options)
    (folder / "comfyui_version.py").write_text(f'# made\n__version__ = "{version}"\n')
    return folder


def line_for(folder: Path, given: str) -> list[str]:
    # No stand-ins: the arguments of the user are the last ones then.
    places = dict.fromkeys(("COMFYUI_HOME", "COMFYUI_DIR", "WORKER_DIR"), str(folder))
    return arguments(Settings.from_env({**places, "COMFYUI_ARGS": given}), 18188)


@pytest.mark.slow
def test_options_are_those_that_comfyui_names() -> None:
    settings = Settings.from_env(os.environ)
    line = [str(settings.comfyui_interpreter), "-B", "main.py", "--help"]
    shown = subprocess.run(
        line, cwd=settings.comfyui_code, capture_output=True, text=True, check=True
    ).stdout
    first = {line.split()[0].strip(",") for line in shown.splitlines() if line.startswith("  --")}

    features = ComfyUIFeatures.of(settings.comfyui_code)

    assert len(first) > 50
    assert first == features.options
    assert features.version in (settings.comfyui_code / "pyproject.toml").read_text()


def test_options_and_version_are_read_from_the_source(tmp_path: Path) -> None:
    assert ComfyUIFeatures.of(comfyui_with(tmp_path, NEW)) == ComfyUIFeatures(
        version="1.2.3",
        options=frozenset({"--cpu", "--offline", "--no-network", "--disable-assets"}),
        cache_type="",
    )


def test_nothing_is_known_of_an_empty_folder(tmp_path: Path) -> None:
    assert ComfyUIFeatures.of(tmp_path) == ComfyUIFeatures("", frozenset(), cache_type="")


@pytest.mark.parametrize(
    ("options", "given", "kept"),
    [
        (OLD, "--normalvram --disable-api-nodes", ["--normalvram", "--disable-api-nodes"]),
        (NEW, "--disable-api-nodes", ["--offline"]),
        (BOTH_NAMES, "--disable-api-nodes", ["--disable-api-nodes"]),
        (NEW, "--novram --no-such-flag", ["--novram", "--no-such-flag"]),
        ("", "--normalvram", ["--normalvram"]),
    ],
)
def test_argument_that_is_gone_is_replaced(
    options: str, given: str, kept: list[str], tmp_path: Path
) -> None:
    assert line_for(comfyui_with(tmp_path, options), given)[-len(kept) :] == kept


def test_argument_without_a_substitute_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = line_for(comfyui_with(tmp_path, NEW), "--normalvram --cpu")

    assert "--normalvram" not in line
    assert "COMFYUI_ARGS: ComfyUI 1.2.3 has no --normalvram any more" in capsys.readouterr().err


def test_list_of_assets_is_off_unless_it_is_asked_for(tmp_path: Path) -> None:
    old, new = comfyui_with(tmp_path / "old", OLD), comfyui_with(tmp_path / "new", NEW)

    assert "--disable-assets" not in line_for(old, "")
    assert "--disable-assets" in line_for(new, "")
    assert "--disable-assets" not in line_for(new, "--enable-assets")


@pytest.mark.slow
def test_comfyui_writes_no_database(start_worker: StartWorker) -> None:
    worker = start_worker()

    assert (
        worker.wake().comfyui_version
        == ComfyUIFeatures.of(Settings.from_env(os.environ).comfyui_code).version
    )

    assert not list((worker.folder / "data").rglob("*.db*"))
