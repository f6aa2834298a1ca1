"""The generator of stand-in weights, in ComfyUI's own interpreter where that is installed."""

import argparse
import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from handler.settings import Settings
from runtime.commands.standins import add_arguments, generate, run

pytestmark = pytest.mark.slow

NAMES = {
    "checkpoints/v1-5-pruned-emaonly-fp16.safetensors",
    "diffusion_models/wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors",
    "diffusion_models/wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors",
    "loras/wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors",
    "loras/wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise.safetensors",
    "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    "vae/wan_2.1_vae.safetensors",
}


def header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: its length in eight bytes, then JSON."""
    with path.open("rb") as file:
        found: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return found


def weights(folder: Path) -> dict[str, Path]:
    return {str(p.relative_to(folder)): p for p in folder.rglob("*.safetensors")}


@pytest.fixture(scope="module")
def comfyui() -> Settings:
    settings = Settings.from_env(os.environ)
    if not settings.comfyui_interpreter.exists():
        pytest.skip("ComfyUI is not installed: lambda-comfyui install")
    return settings


@pytest.fixture(scope="module")
def generated(comfyui: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated") / "stand-ins"
    generate(folder, comfyui.comfyui_interpreter, comfyui.comfyui_code)
    return folder


@pytest.mark.slow
def test_every_file_has_its_real_name_and_says_that_it_is_none(generated: Path) -> None:
    files = weights(generated)
    readable = stat.S_IMODE((generated / "README.txt").stat().st_mode)

    assert set(files) == NAMES
    for path in files.values():
        metadata = header(path)["__metadata__"]
        assert metadata == {
            "lambda_comfyui": "stand-in weights, random numbers or zeros, not a model"
        }
        assert stat.S_IMODE(path.stat().st_mode) == readable
    assert "random numbers or zeros, not models" in (generated / "README.txt").read_text()


@pytest.mark.slow
def test_loras_change_the_attention_of_the_models(generated: Path) -> None:
    model = header(next(generated.glob("diffusion_models/*high*")))
    lora = header(next(generated.glob("loras/*high*")))

    changed = {
        key.removesuffix(".lora_up.weight") for key in lora if key.endswith("lora_up.weight")
    }
    assert len(changed) == 8
    assert {f"{key.removeprefix('diffusion_model.')}.weight" for key in changed} <= set(model)


@pytest.mark.slow
def test_model_paths_name_the_folder_itself(generated: Path) -> None:
    lines = (generated / "extra_model_paths.yaml").read_text().splitlines()

    assert lines[1] == f'  base_path: "{generated}"'
    assert {line.split(":")[0].strip() for line in lines[2:]} == {n.split("/")[0] for n in NAMES}


@pytest.mark.slow
def test_second_run_writes_nothing(generated: Path, comfyui: Settings) -> None:
    before = {path: path.stat().st_ino for path in generated.rglob("*")}

    generate(generated, Path("/no/python"), comfyui.comfyui_code)

    assert {path: path.stat().st_ino for path in generated.rglob("*")} == before


@pytest.mark.slow
def test_moved_folder_is_written_anew_for_its_place(
    generated: Path, comfyui: Settings, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    # The file of zeros takes no space, and its copy should take none.
    subprocess.run(["cp", "-a", "--sparse=always", generated, moved], check=True)
    (moved / "loras/mine.safetensors").write_text("mine")

    generate(moved, comfyui.comfyui_interpreter, comfyui.comfyui_code)

    assert f'"{moved}"' in (moved / "extra_model_paths.yaml").read_text()
    assert (moved / "loras/mine.safetensors").read_text() == "mine"


def test_folder_with_other_files_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = tmp_path / "vae/wan_2.1_vae.safetensors"
    real.parent.mkdir()
    real.write_text("real weights")

    assert run(argparse.Namespace(into=tmp_path), Settings()) == 1

    assert "holds other files" in capsys.readouterr().err
    assert real.read_text() == "real weights"


def test_missing_interpreter_is_an_error_that_says_what_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["--into", str(tmp_path / "stand-ins")])

    assert run(args, Settings(comfyui_python=Path("/no/python"))) == 1

    assert "lambda-comfyui install" in capsys.readouterr().err
