"""The function that is read from a template: its variables and its timeout."""

from pathlib import Path
from typing import Any

import pytest

from handler.settings import PROJECT, Settings
from runtime.sam.template import (
    TemplateError,
    TemplateFunction,
    function_in,
    function_names,
    parse_template,
    read_template,
)

TWO_FUNCTIONS = """
Globals:
  Function: {Timeout: 60, Environment: {Variables: {SHARED: all, OWN: all, GONE: all}}}
Resources:
  Table: {Type: AWS::DynamoDB::Table}
  Served:
    Type: AWS::Serverless::Function
    Properties:
      Timeout: 90
      Environment: {Variables: {OWN: mine, GONE: !Ref AWS::NoValue}}
  Plain:
    Type: AWS::Lambda::Function
    Properties: {Handler: a.b}
"""


def function(text: str, name: str | None = None, **overrides: str) -> TemplateFunction:
    return function_in(parse_template(text), name, overrides=overrides, region="eu-west-1")


def with_variables(variables: str, rest: str = "") -> str:
    return (
        "Resources: {F: {Type: AWS::Lambda::Function, Properties: {Environment: "
        f"{{Variables: {variables}}}}}}}}}\n{rest}"
    )


def of_the_project(**overrides: str) -> TemplateFunction:
    template = read_template(str(PROJECT / "template.yaml"))
    return function_in(template, None, overrides=overrides, region="eu-west-1")


def test_template_of_the_project_gives_variables_and_timeout() -> None:
    result = of_the_project()

    assert result.name == "ComfyUI"
    assert result.timeout_s == 900
    assert result.unresolved == (
        "S3_BUCKET_NAME",
        "JOBS_TABLE",
        "JOBS_QUEUE_URL",
        "DEAD_LETTER_QUEUE_URL",
    )
    assert result.variables["S3_REGION"] == "eu-west-1"
    assert result.variables["HOME"] == "/tmp"
    assert result.variables["COMFYUI_ARGS"].split() == ["--disable-api-nodes"]
    assert not {"MODELS_DIR", "MODELS_S3_URI", "WEBHOOK_URL"} & result.variables.keys()
    assert Settings.from_env(result.variables).comfyui_start_timeout_s == 600


def test_overrides_choose_other_branches_of_the_template_of_the_project() -> None:
    result = of_the_project(ModelStorage="s3", ModelsBucket="b", TimeoutSeconds="1800")

    assert result.variables["MODELS_DIR"] == "/tmp/models"
    assert result.variables["MODELS_S3_URI"] == "s3://b/models/"
    assert result.timeout_s == 1800
    assert of_the_project(ModelStorage="efs").variables["MODELS_DIR"] == "/mnt/models"


def test_globals_apply_to_a_serverless_function_and_not_to_a_plain_one() -> None:
    served, plain = function(TWO_FUNCTIONS, "Served"), function(TWO_FUNCTIONS, "Plain")

    assert served.variables == {"SHARED": "all", "OWN": "mine"}
    assert served.timeout_s == 90
    assert plain.variables == {}
    assert plain.timeout_s is None


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("010", "010"),
        ("1.10", "1.10"),
        ("2012-10-17", "2012-10-17"),
        ("True", "true"),
        ("'True'", "True"),
        ("!Ref Number", "24"),
        ("!If [IsOn, on, off]", "true"),
        ("!Sub ['a-${X}', {X: !Ref Number}]", "a-24"),
    ],
)
def test_variable_is_the_text_in_the_file(written: str, value: str) -> None:
    rest = (
        "Parameters: {Number: {Type: Number, Default: 24}, Switch: {Type: String, Default: true}}\n"
        "Conditions: {IsOn: !Equals [!Ref Switch, 'true']}\n"
    )

    assert function(with_variables(f"{{X: {written}}}", rest)).variables == {"X": value}


@pytest.mark.parametrize("written", ["''", "null", "!Ref AWS::NoValue", "!Ref Empty"])
def test_empty_variable_is_an_absent_one(written: str) -> None:
    rest = "Parameters: {Empty: {Type: String, Default: ''}}"

    result = function(with_variables(f"{{X: {written}}}", rest))

    assert (result.variables, result.unresolved) == ({}, ())


@pytest.mark.parametrize(
    "written",
    ["!Ref Table", "!GetAtt Table.Arn", "!Sub '${Table}'", "!Ref NoDefault", "!Ref Stored"],
)
def test_variable_that_only_a_stack_knows_is_unresolved(written: str) -> None:
    rest = (
        "Parameters:\n  NoDefault: {Type: String}\n"
        "  Stored: {Type: 'AWS::SSM::Parameter::Value<String>', Default: /name/of/it}\n"
    )

    result = function(with_variables(f"{{X: {written}, Y: y}}", rest))

    assert (dict(result.variables), result.unresolved) == ({"Y": "y"}, ("X",))


@pytest.mark.parametrize("parameter", ["NoDefault", "Stored"])
def test_override_gives_a_parameter_its_value(parameter: str) -> None:
    rest = f"Parameters: {{{parameter}: {{Type: 'AWS::SSM::Parameter::Value<String>'}}}}"

    result = function(with_variables(f"{{X: !Ref {parameter}}}", rest), **{parameter: "given"})

    assert result.variables == {"X": "given"}


def test_timeout_that_only_a_stack_knows_is_none() -> None:
    text = "Resources: {F: {Type: AWS::Lambda::Function, Properties: {Timeout: !Ref X}}}"

    assert function(text).timeout_s is None


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (TWO_FUNCTIONS, None, "several functions, name one as FUNCTION: Served, Plain"),
        (TWO_FUNCTIONS, "Other", "no function Other, expected one of: Served, Plain"),
        ("Resources: {T: {Type: AWS::SQS::Queue}}", None, "has no function"),
        (with_variables("[A]"), None, "F: Environment.Variables: expected a mapping"),
        (with_variables("{X: [a]}"), None, "F: Environment.Variables.X: expected a text"),
        (
            "Resources: {F: {Type: AWS::Lambda::Function, Properties: {Timeout: soon}}}",
            None,
            "F: Timeout: expected seconds",
        ),
        (
            with_variables("{X: !If [A, a, b]}", "Conditions: {A: !Not [!Condition A]}"),
            None,
            "Conditions refer to each other in a cycle",
        ),
    ],
)
def test_function_that_the_template_lacks_or_gets_wrong_is_refused(
    text: str, name: str | None, message: str
) -> None:
    with pytest.raises(TemplateError) as refused:
        function(text, name)

    assert message in str(refused.value)


def test_override_of_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(TemplateError, match="has no parameter Sttage"):
        function(with_variables("{}"), Sttage="dev")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Resources:\n  X: [secret", "is not YAML: line 2"),
        ("X: !!python/object:os.system secret", "is not YAML: line 1"),
        ("- secret", "expected a template, with Resources"),
        ("\x01secret", "is not YAML"),
    ],
)
def test_file_that_is_not_a_template_is_refused_without_its_content(
    text: str, message: str
) -> None:
    with pytest.raises(TemplateError) as refused:
        parse_template(text)

    assert message in str(refused.value)
    assert "secret" not in str(refused.value)


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"\xff")

    with pytest.raises(TemplateError, match="No such file"):
        read_template(str(tmp_path / "nothing"))
    with pytest.raises(TemplateError, match="UTF-8"):
        read_template(str(tmp_path / "latin"))


def test_functions_are_found_in_a_template_of_json() -> None:
    text: Any = '{"Resources": {"F": {"Type": "AWS::Serverless::Function"}, "Q": {"Type": "x"}}}'

    assert function_names(parse_template(text)) == ["F"]
