"""Where model files are searched, and when a stand-in is the one that ComfyUI takes."""

import json
from pathlib import Path

import pytest

from handler.model_folders import ModelFolder, find_models, model_folders, standins_used
from handler.settings import Settings
from runtime.models.manifest import ModelFile
from runtime.models.placeholders import put_placeholder

NAME = "a.safetensors"


def add_file(kind_folder: Path) -> Path:
    kind_folder.mkdir(parents=True, exist_ok=True)
    (kind_folder / NAME).touch()
    return kind_folder / NAME


def add_config(path: Path, **section: object) -> None:
    """An extra_model_paths.yaml with one section; JSON is YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"mine": section}))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A ComfyUI without models, a stand-in VAE, an empty MODELS_DIR, and one more config."""
    standins = tmp_path / "standins"
    add_file(standins / "vae")
    add_config(standins / "extra_model_paths.yaml", base_path=str(standins), vae="vae")
    (tmp_path / "comfyui" / "models").mkdir(parents=True)
    (tmp_path / "mount").mkdir()
    return Settings(
        comfyui_dir=tmp_path / "comfyui",
        models_dirs=(tmp_path / "mount",),
        standin_models_dir=standins,
        comfyui_args=("--extra-model-paths-config", str(tmp_path / "more.yaml"), "--cpu"),
    )


def test_stand_in_is_used_where_there_is_no_real_file(settings: Settings) -> None:
    assert standins_used([NAME, "other.safetensors"], settings) == [NAME]


@pytest.mark.parametrize("folder", ["comfyui/models/vae", "mount/vae"])
def test_real_file_is_no_stand_in(folder: str, settings: Settings, tmp_path: Path) -> None:
    add_file(tmp_path / folder)

    assert standins_used([NAME], settings) == []


def test_model_that_is_being_downloaded_is_no_stand_in(settings: Settings, tmp_path: Path) -> None:
    # ComfyUI waits for the real one.
    file = ModelFile(name=NAME, folder="vae", sources=("https://host/a",))
    put_placeholder(file, tmp_path / "mount" / "vae" / NAME)

    assert standins_used([NAME], settings) == []


@pytest.mark.parametrize("config", ["more.yaml", "comfyui/extra_model_paths.yaml"])
def test_real_file_in_extra_model_paths_is_no_stand_in(
    config: str, settings: Settings, tmp_path: Path
) -> None:
    add_file(tmp_path / "elsewhere" / "autoencoders")
    add_config(tmp_path / config, base_path=str(tmp_path), vae="none\nelsewhere/autoencoders\n")

    assert standins_used([NAME], settings) == []


def test_real_file_of_another_kind_does_not_replace_a_stand_in(
    settings: Settings, tmp_path: Path
) -> None:
    add_file(tmp_path / "mount" / "loras")

    assert standins_used([NAME], settings) == [NAME]


def test_old_names_of_kinds_mean_the_new_ones(settings: Settings, tmp_path: Path) -> None:
    add_file(tmp_path / "standins" / "diffusion_models")
    (tmp_path / "standins" / "vae" / NAME).unlink()
    assert standins_used([NAME], settings) == [NAME]

    add_file(tmp_path / "mount" / "unet")

    assert standins_used([NAME], settings) == []


def test_folder_without_a_config_holds_no_stand_ins(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "standins" / "extra_model_paths.yaml").unlink()

    assert standins_used([NAME], settings) == []


def test_folders_are_searched_in_the_order_of_comfyui(settings: Settings, tmp_path: Path) -> None:
    for folder in ("comfyui/models/vae", "mount/vae", "more", "first"):
        add_file(tmp_path / folder)
    sections = {
        "more": {"vae": str(tmp_path / "more")},
        "first": {"vae": str(tmp_path / "first"), "is_default": True},
    }
    (tmp_path / "more.yaml").write_text(json.dumps(sections))

    folders = model_folders(settings)

    expected = ["first", "comfyui/models/vae", "mount/vae", "more", "standins/vae"]
    assert folders == [ModelFolder("vae", tmp_path / folder) for folder in expected]
    assert find_models([NAME], folders) == [tmp_path / "first" / NAME]


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: 3", "a: {base_path: [", "a: {vae: }"])
def test_config_that_cannot_be_read_adds_nothing(
    text: str, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "more.yaml").write_text(text)

    assert standins_used([NAME], settings) == [NAME]


def test_file_names_that_leave_the_folder_or_cannot_exist_are_not_found(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "standins" / "vae" / "sub").mkdir()
    names = ["../x", str(tmp_path / "standins" / "vae" / NAME), "none.pt", "x" * 300, "a\0.pt"]

    assert find_models(names, model_folders(settings)) == []
