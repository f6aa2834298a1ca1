"""The file of --env-vars: its variables, and the mistakes that are refused without a value."""

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.sam.env_vars_file import EnvVarsError, EnvVarsFile, read_env_vars


def written(folder: Path, content: Any) -> str:
    path = folder / "env.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def file_of(*owners: str) -> EnvVarsFile:
    return EnvVarsFile("env.json", {owner: {} for owner in owners})


def test_values_become_text(tmp_path: Path) -> None:
    values = {"A": "a", "B": 7, "C": 1.5, "D": True, "E": False, "F": None, "G": ""}

    file = read_env_vars(written(tmp_path, {"Parameters": values}))

    assert file.variables["Parameters"] == {
        **{"A": "a", "B": "7", "C": "1.5", "D": "true", "E": "false"},
        **{"F": None, "G": None},
    }


def test_variables_of_the_function_win_over_those_of_every_function(tmp_path: Path) -> None:
    content = {"Parameters": {"A": "all", "B": "all"}, "F": {"B": "own"}, "G": {"B": "other"}}
    file = read_env_vars(written(tmp_path, content))

    assert file.variables_of("F") == {"A": "all", "B": "own"}
    assert file.variables_of("H") == file.variables_of(None) == {"A": "all", "B": "all"}


def test_only_function_of_the_file_needs_no_name() -> None:
    assert file_of("Parameters", "F").only_function(None) == "F"
    assert file_of("F", "G").only_function("G") == "G"
    assert file_of("Parameters").only_function(None) is None


@pytest.mark.parametrize(
    ("name", "message"), [(None, "several functions.*: F, G"), ("H", "no function H.*: F, G")]
)
def test_function_must_be_chosen_from_the_file(name: str | None, message: str) -> None:
    with pytest.raises(EnvVarsError, match=message):
        file_of("F", "G").only_function(name)


def test_function_that_the_template_lacks_is_refused() -> None:
    file_of("Parameters", "F").check_functions(["F", "G"])

    with pytest.raises(EnvVarsError, match=r"^env.json: Ff: .* expected Parameters, F, G$"):
        file_of("Ff").check_functions(["F", "G"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{secret", "is not JSON"),
        ("[]", 'expected {"Parameters": {…}}'),
        ({"Parameters": "secret"}, "Parameters: expected an object"),
        # A frequent mistake: the variables stand at the top level.
        ({"S3_BUCKET_NAME": "secret"}, "S3_BUCKET_NAME: expected an object"),
        ({"F": {"A": ["secret"]}}, "F.A: expected a text, a number"),
        ({"F": {"A": {"secret": 1}}}, "F.A: expected a text, a number"),
        ({"F": {"A": "secret\0"}}, "F.A: expected a text"),
        ({"F": {"A": "secret\ud800"}}, "F.A: expected a text"),
        ({"F": {"A=B": "secret"}}, "F.A=B: expected a name"),
    ],
)
def test_wrong_file_is_refused_without_a_value(content: Any, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)

    with pytest.raises(EnvVarsError) as refused:
        read_env_vars(path)

    assert f"{path}: " in str(refused.value)
    assert message in str(refused.value)
    assert "secret" not in str(refused.value)


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvVarsError, match="cannot be read: No such file"):
        read_env_vars(str(tmp_path / "nothing"))
