"""The environment's variables: defaults, wrong values, and the table that documents them."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from handler.settings import PROJECT, Settings, SettingsError


def test_empty_environment_gives_the_defaults() -> None:
    settings = Settings.from_env({})

    assert settings.s3_bucket_name == ""
    assert settings.comfyui_code == PROJECT / ".comfyui" / "ComfyUI"
    assert settings.comfyui_interpreter == PROJECT / ".comfyui" / "venv" / "bin" / "python"


def test_empty_variable_counts_as_unset() -> None:
    assert Settings.from_env({"COMFYUI_PORT": " ", "S3_REGION": ""}) == Settings()


def test_all_wrong_values_are_named_at_once() -> None:
    wrong = {"COMFYUI_PORT": "70000", "WEBHOOK_TIMEOUT": "-1", "COMFYUI_START_TIMEOUT": "nan"}

    with pytest.raises(SettingsError) as refused:
        Settings.from_env(wrong)

    assert str(refused.value).startswith("invalid environment variables: ")
    for name, value in wrong.items():
        assert f"{name} {value!r}" in str(refused.value)


def test_text_where_a_number_is_expected_is_answered_with_what_to_write() -> None:
    with pytest.raises(
        SettingsError, match=r"SERVE_PORT 'abc': expected a port number, 0 to 65535$"
    ):
        Settings.from_env({"SERVE_PORT": "abc"})


@pytest.mark.parametrize("name", ["S3_URL_EXPIRES", "WEBHOOK_TIMEOUT"])
def test_zero_seconds_switch_nothing_off(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} '0': .*more than 0"):
        Settings.from_env({name: "0"})


@pytest.mark.parametrize(
    ("raw", "prefix"),
    [
        ("s3://bucket/some/prefix/", "s3://bucket/some/prefix/"),
        ("s3://bucket/prefix", "s3://bucket/prefix/"),
        ("s3://bucket/", "s3://bucket/"),
        ("s3://bucket", "s3://bucket/"),
    ],
)
def test_prefix_of_compiled_code_ends_with_a_slash(raw: str, prefix: str) -> None:
    assert Settings.from_env({"COMPILE_CACHE": raw}).compile_cache == prefix


@pytest.mark.parametrize("raw", ["bucket/prefix", "s3://", "s3:///prefix", "https://bucket/p/"])
def test_place_of_compiled_code_that_is_no_bucket_is_refused(raw: str) -> None:
    with pytest.raises(SettingsError, match=r"COMPILE_CACHE .*: expected s3://bucket/prefix/"):
        Settings.from_env({"COMPILE_CACHE": raw})


def test_existing_comfyui_is_run_by_the_python_in_its_folder(tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()

    settings = Settings.from_env({"COMFYUI_DIR": str(tmp_path)})

    assert settings.comfyui_interpreter == python


def test_two_comfyuis_on_one_machine_have_two_workers() -> None:
    one, other = (Settings.from_env({"COMFYUI_DIR": path}) for path in ("/a", "/b"))

    assert one.worker_dir != other.worker_dir


def test_secrets_never_show_in_a_repr() -> None:
    secrets = {item.metadata["env"]: "canary" for item in fields(Settings) if _is_secret(item.name)}

    assert "canary" not in repr(Settings.from_env(secrets))


def test_table_of_variables_is_the_documentation_of_the_code() -> None:
    table = (PROJECT / "docs" / "configuration.md").read_text()

    documented = re.findall(r"^\| `([A-Z0-9_]+)` \|", table, re.MULTILINE)

    assert documented == [item.metadata["env"] for item in fields(Settings)]


def _is_secret(name: str) -> bool:
    return any(word in name for word in ("secret", "key_id", "webhook_url"))
