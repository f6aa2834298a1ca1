"""The file of --env-vars: what it says, and what is refused without showing a value."""

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.sam.env_vars_file import (
    EnvVarsError,
    must_be_known,
    only_function,
    read_env_vars,
    variables_of,
)


def written(folder: Path, content: Any) -> str:
    path = folder / "env.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_values_become_text(tmp_path: Path) -> None:
    values = {"A": "a", "B": 7, "C": 1.5, "D": True, "E": False, "F": None, "G": ""}

    found = read_env_vars(written(tmp_path, {"Parameters": values}))["Parameters"]

    assert found == {
        **{"A": "a", "B": "7", "C": "1.5", "D": "true", "E": "false"},
        **{"F": None, "G": None},
    }


def test_variables_of_the_function_win_over_those_of_all(tmp_path: Path) -> None:
    content = {"Parameters": {"A": "all", "B": "all"}, "F": {"B": "own"}, "G": {"B": "other"}}
    env_vars = read_env_vars(written(tmp_path, content))

    assert variables_of(env_vars, "F") == {"A": "all", "B": "own"}
    assert variables_of(env_vars, "H") == variables_of(env_vars, None) == {"A": "all", "B": "all"}


def test_only_function_of_the_file_needs_no_name() -> None:
    assert only_function({"Parameters": {}, "F": {}}, None) == "F"
    assert only_function({"F": {}, "G": {}}, "G") == "G"
    assert only_function({"Parameters": {}}, None) is None


@pytest.mark.parametrize(
    ("name", "told"), [(None, "several functions.*: F, G"), ("H", "no function H.*: F, G")]
)
def test_function_must_be_chosen_from_the_file(name: str | None, told: str) -> None:
    with pytest.raises(EnvVarsError, match=told):
        only_function({"F": {}, "G": {}}, name)


def test_function_that_the_template_lacks_is_refused() -> None:
    must_be_known({"Parameters": {}, "F": {}}, ["F", "G"])

    with pytest.raises(EnvVarsError, match=r"^Ff: .* expected Parameters, F, G$"):
        must_be_known({"Ff": {}}, ["F", "G"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{secret", "is not JSON"),
        ("[]", 'expected {"Parameters": {…}}'),
        ({"Parameters": "secret"}, "Parameters: expected an object"),
        # What people write who have not met `sam local`.
        ({"S3_BUCKET_NAME": "secret"}, "S3_BUCKET_NAME: expected an object"),
        ({"F": {"A": ["secret"]}}, "F.A: expected a text, a number"),
        ({"F": {"A": {"secret": 1}}}, "F.A: expected a text, a number"),
        ({"F": {"A": "secret\0"}}, "F.A: expected a text"),
        ({"F": {"A": "secret\ud800"}}, "F.A: expected a text"),
        ({"F": {"A=B": "secret"}}, "F.A=B: expected a name"),
    ],
)
def test_wrong_file_is_refused_without_a_value(content: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(EnvVarsError) as refused:
        read_env_vars(written(tmp_path, content))

    assert told in str(refused.value)
    assert "secret" not in str(refused.value)


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvVarsError, match="cannot be read: No such file"):
        read_env_vars(str(tmp_path / "nothing"))
