"""Where a variable comes from: --env-vars, then the shell, then the template."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest

from runtime import cli
from runtime.errors import UsageError
from runtime.sam import environment
from runtime.sam.environment import FunctionEnvironment, environment_of

TEMPLATE = """
Parameters: {Stage: {Type: String, Default: dev}}
Resources:
  Table: {Type: AWS::DynamoDB::Table}
  F:
    Type: AWS::Lambda::Function
    Properties:
      Timeout: 77
      Environment:
        Variables: {A: written, B: written, C: written, STAGE: !Ref Stage, TABLE: !Ref Table,
                    REGION: !Ref AWS::Region}
"""


@pytest.fixture
def template(tmp_path: Path) -> str:
    path = tmp_path / "template.yaml"
    path.write_text(TEMPLATE)
    return str(path)


def env_vars(folder: Path, **owners: Any) -> str:
    path = folder / "env.json"
    path.write_text(json.dumps(owners))
    return str(path)


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--timeout", type=float)
    environment.add_arguments(parser)
    return parser.parse_args(arguments)


def chosen(*arguments: str, **shell: str) -> FunctionEnvironment:
    return environment_of(parsed(*arguments), shell)


def test_without_an_argument_it_is_the_shells() -> None:
    assert chosen(A="shell", EMPTY="") == FunctionEnvironment(environ={"A": "shell", "EMPTY": ""})


def test_file_wins_over_the_shell_and_the_shell_over_the_template(
    template: str, tmp_path: Path
) -> None:
    file = env_vars(tmp_path, Parameters={"A": "file", "NEW": "file"})

    environ = chosen("-t", template, "-n", file, A="shell", B="shell", HOME="/home/me").environ

    assert environ == {
        **{"A": "file", "B": "shell", "C": "written", "HOME": "/home/me", "NEW": "file"},
        **{"STAGE": "dev", "REGION": "us-east-1", "AWS_LAMBDA_FUNCTION_NAME": "F"},
    }


def test_null_unsets_and_an_empty_variable_of_the_shell_is_an_absent_one(
    template: str, tmp_path: Path
) -> None:
    file = env_vars(tmp_path, F={"A": None, "B": ""})

    environ = chosen("-t", template, "-n", file, A="shell", C="").environ

    assert not {"A", "B"} & environ.keys()
    assert environ["C"] == "written"


def test_variable_with_a_value_is_not_unresolved(template: str, tmp_path: Path) -> None:
    file = env_vars(tmp_path, F={"TABLE": None})

    assert chosen("-t", template).unresolved == ("TABLE",)
    assert chosen("-t", template, TABLE="").unresolved == ("TABLE",)
    assert chosen("-t", template, TABLE="jobs").unresolved == ()
    assert chosen("-t", template, "-n", file).unresolved == ()


def test_region_is_the_shells(template: str) -> None:
    assert chosen("-t", template, AWS_REGION="eu-west-1").environ["REGION"] == "eu-west-1"
    assert chosen("-t", template, AWS_DEFAULT_REGION="eu-west-2").environ["REGION"] == "eu-west-2"


def test_overrides_reach_the_parameters(template: str) -> None:
    function = chosen("F", "-t", template, "--parameter-overrides", "Stage=a=b c")

    assert function.environ["STAGE"] == "a=b c"


@pytest.mark.parametrize("arguments", [("F", "-t", "x", "-n", "y"), ("-t", "x", "F", "-n", "y")])
def test_function_may_stand_anywhere(arguments: tuple[str, ...]) -> None:
    assert parsed(*arguments).function == "F"


def test_file_applies_without_a_template(tmp_path: Path) -> None:
    file = env_vars(tmp_path, Parameters={"A": 1}, F={"B": 2}, G={"B": 3})

    assert chosen("G", "-n", file).environ == {"A": "1", "B": "3"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("F",), "FUNCTION F needs --template or --env-vars"),
        (("--parameter-overrides", "A=b"), "--parameter-overrides needs --template"),
        (("-n", "nothing.json"), "nothing.json: cannot be read"),
        (("-t", "nothing.yaml"), "nothing.yaml: cannot be read"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        chosen(*arguments)

    assert message in str(refused.value)


def test_message_names_file_and_key(template: str, tmp_path: Path) -> None:
    file = env_vars(tmp_path, Ff={"A": "secret"})

    with pytest.raises(UsageError) as refused:
        chosen("-t", template, "-n", file)

    message = f"{file}: Ff: the template has no such function, expected Parameters, F"
    assert str(refused.value) == message


def test_override_must_be_a_pair(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parsed("--parameter-overrides", "Stage")

    assert "--parameter-overrides: expected NAME=VALUE, got 'Stage'" in capsys.readouterr().err


def test_command_gets_that_environment_and_prints_in_one_line_what_is_omitted(
    template: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GONE", "shell")
    args = parsed("-t", template, "-n", env_vars(tmp_path, Parameters={"GONE": None}))

    environ = environment.environ_of(args)

    assert environ["C"] == "written"
    assert "GONE" not in environ
    assert args.timeout == 77
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"{template}: omitted, because only a deployed stack knows their values: TABLE"
        " (set them with --env-vars)\n"
    )


def test_environment_of_the_process_stays_as_it_is(template: str) -> None:
    before = dict(os.environ)

    environment.environ_of(parsed("-t", template))

    assert dict(os.environ) == before


def test_timeout_that_is_given_wins(template: str) -> None:
    args = parsed("-t", template, "--timeout", "5")

    environment.environ_of(args)

    assert args.timeout == 5


@pytest.mark.parametrize("command", [("invoke", "-e", "-"), ("start-lambda",)])
def test_wrong_value_in_the_file_is_reported_as_one_of_the_shell_is(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = env_vars(tmp_path, Parameters={"SERVE_PORT": "many"})

    status = cli.main([*command, "-n", file])

    assert status == 2
    assert "invalid environment variables: SERVE_PORT" in capsys.readouterr().err
