"""Workflow templates: requests that name one, through the real handler, and their files."""

import copy
import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from events.contract import response_problems
from handler import app
from handler.settings import PROJECT
from handler.workflow_templates import list_templates, problems_of_templates
from tests.conftest import Context
from tests.handler.job_tables import SqliteTable
from tests.workflows import node

TEMPLATE = {
    "description": "A text and a number.",
    "workflow": {
        "1": node("PrimitiveString", value="of the template"),
        "2": node("PreviewAny", source=["1", 0]),
        "3": node("PrimitiveInt", value=1),
        "4": node("PreviewAny", source=["3", 0]),
    },
    "parameters": {
        "prompt": {
            "description": "What is shown.",
            "type": "string",
            "maxLength": 20,
            "to": [{"node": "1", "input": "value"}],
        },
        "steps": {
            "type": "integer",
            "minimum": 2,
            "maximum": 100,
            "multipleOf": 2,
            "default": 20,
            "to": [{"node": "3", "input": "value"}],
        },
    },
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "templates"
    folder.mkdir()
    monkeypatch.setenv("WORKFLOW_TEMPLATES", str(folder))
    (folder / "README.md").touch()
    write(folder, "Text2Text", TEMPLATE)
    return folder


def write(folder: Path, name: str, content: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps(content))


def changed(**parameter: Any) -> dict[str, Any]:
    """The template with another `steps`."""
    template = copy.deepcopy(TEMPLATE)
    template["parameters"]["steps"] |= parameter  # type: ignore[index]
    return template


def nested(levels: int) -> Any:
    return [nested(levels - 1)] if levels else ""


def ask(**fields: Any) -> dict[str, Any]:
    return app.lambda_handler({"input": fields}, Context(100.0))


def texts(response: dict[str, Any]) -> list[str]:
    assert response_problems(response) == []
    assert response["status"] == "completed", response["message"]
    return [item["text"] for item in sorted(response["output"], key=lambda item: item["node_id"])]


def refusal(**fields: Any) -> str:
    response = ask(**fields)
    assert response["error"]["type"] == "InvalidRequest"
    return str(response["message"])


@pytest.mark.usefixtures("comfyui", "folder")
def test_workflow_of_a_template_runs_with_the_values_of_the_request() -> None:
    response = ask(modifier="Text2Text", modifications={"prompt": "a cat", "steps": 4})

    assert texts(response) == ["a cat", "4"]


@pytest.mark.usefixtures("comfyui")
def test_documented_template_runs_as_documented(folder: Path) -> None:
    text = (PROJECT / "docs" / "contract.md").read_text().partition("### Workflow templates")[2]
    request, template = (
        json.loads(each) for each in re.findall(r"```json\n(.*?)```", text, re.S)[:2]
    )
    write(folder, "Colour", template)

    response = ask(**request["input"])

    (picture,) = response["output"]
    # Width and height of a PNG: https://www.w3.org/TR/png-3/#11IHDR
    header = Path(picture["local_path"]).read_bytes()[16:24]
    assert struct.unpack(">II", header) == (128, 128)


@pytest.mark.usefixtures("comfyui", "folder")
def test_values_that_are_not_given_are_the_defaults_and_a_text_may_be_empty() -> None:
    given: dict[str, Any] = {"prompt": "", "steps": ""}

    assert texts(ask(modifier="Text2Text", modifications=given, workflow_json={})) == ["", "20"]
    given = {"prompt": "x", "steps": None}
    assert texts(ask(modifier="Text2Text", modifications=given, workflow_json="")) == ["x", "20"]


@pytest.mark.usefixtures("comfyui")
def test_random_number_may_be_a_default_and_a_value(folder: Path) -> None:
    write(folder, "Text2Text", changed(default="__RANDOM_INT__"))

    by_default = texts(ask(modifier="Text2Text", modifications={"prompt": "x"}))
    given = {"prompt": "__RANDOM_INT__", "steps": "__RANDOM_INT__"}
    by_request = texts(ask(modifier="Text2Text", modifications=given))

    assert by_default[1].isdecimal()
    assert all(text.isdecimal() for text in by_request)


@pytest.mark.usefixtures("comfyui")
def test_random_number_is_the_same_in_all_inputs_and_within_the_limits(folder: Path) -> None:
    both = [{"node": "1", "input": "value"}, {"node": "3", "input": "value"}]
    template = changed(to=both, minimum=90, maximum=101, multipleOf=6, default=90)
    del template["parameters"]["prompt"]
    write(folder, "Text2Text", template)

    first, second = texts(ask(modifier="Text2Text", modifications={"steps": "__RANDOM_INT__"}))

    assert first == second
    assert first in ("90", "96")


@pytest.mark.usefixtures("comfyui")
def test_random_number_is_one_of_the_values_that_are_listed(folder: Path) -> None:
    write(folder, "Text2Text", changed(enum=[4, 500, "6"], default="__RANDOM_INT__"))

    assert texts(ask(modifier="Text2Text", modifications={"prompt": "x"})) == ["x", "4"]


def test_random_number_is_refused_where_the_limits_allow_none(folder: Path) -> None:
    template = changed(minimum=3, maximum=3)
    del template["parameters"]["steps"]["default"]
    write(folder, "Text2Text", template)

    given = {"prompt": "x", "steps": "__RANDOM_INT__"}
    assert "expected a whole number" in refusal(modifier="Text2Text", modifications=given)


@pytest.mark.usefixtures("comfyui")
def test_multiple_of_a_fraction_is_one_as_its_digits_say(folder: Path) -> None:
    template = changed(type="number", multipleOf=0.1, minimum=0, default=0.7)
    template["workflow"]["3"] = node("PrimitiveFloat", value=1.0)
    write(folder, "Text2Text", template)

    def asked(steps: float) -> dict[str, Any]:
        return {"modifier": "Text2Text", "modifications": {"prompt": "x", "steps": steps}}

    assert texts(ask(**asked(0.3))) == ["x", "0.3"]
    assert "expected a multiple of 0.1" in refusal(**asked(0.35))
    assert "expected at most 100" in refusal(**asked(10**400))


def test_refusal_names_some_of_many_templates(folder: Path) -> None:
    for number in range(100):
        write(folder, f"a{number:03}", TEMPLATE)

    message = refusal(modifier="x")

    assert "a048" in message
    assert message.endswith(", and 51 more")


@pytest.mark.usefixtures("comfyui")
def test_repeat_gets_its_answer_although_the_template_has_changed(
    folder: Path, sqlite: SqliteTable
) -> None:
    request = {"request_id": "once", "modifier": "Text2Text", "modifications": {"prompt": "x"}}
    first = ask(**request)
    write(folder, "Text2Text", changed(default=50))

    again = ask(**request)
    conflict = ask(**request | {"modifications": {"prompt": "y"}})

    assert texts(first) == texts(again) == ["x", "20"]
    assert conflict["error"]["type"] == "IdConflict"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", ["text2text", "../templates/Text2Text", "README", "handler.app"])
def test_unknown_template_is_refused_with_the_names_of_the_known_ones(name: str) -> None:
    message = refusal(modifier=name, modifications={"prompt": "x"})

    assert message == f'input.modifier: found "{name}", expected one of: Text2Text'


def test_worker_without_templates_says_so() -> None:
    assert refusal(modifier="x") == 'input.modifier: found "x", this worker has none'


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("modifications", "problem"),
    [
        ({}, "'prompt' is missing; the object has no keys"),
        ({"prompt": None}, "'prompt' is missing; the object has no keys"),
        ({"prompt": "x", "step": 3}, "found 'step', expected some of: prompt, steps"),
        ({"prompt": "x" * 21}, "prompt: found 21 characters, expected at most 20"),
        ({"prompt": ["1", 0]}, "prompt: found a list, expected a string"),
        ({"prompt": "x", "steps": "4"}, 'steps: found a string "4", expected a whole number'),
        ({"prompt": "x", "steps": True}, "steps: found a boolean true, expected a whole number"),
        ({"prompt": "x", "steps": 0}, "steps: found a number 0, expected at least 2"),
        ({"prompt": "x", "steps": 102}, "steps: found a number 102, expected at most 100"),
        ({"prompt": "x", "steps": 5}, "steps: found a number 5, expected a multiple of 2"),
    ],
)
def test_wrong_values_are_refused_with_what_is_expected(
    modifications: dict[str, Any], problem: str
) -> None:
    message = refusal(modifier="Text2Text", modifications=modifications)

    assert re.fullmatch(rf"input\.modifications[.:] ?{re.escape(problem)}", message), message


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "Expecting"),
        ("[" * 100_000, "recursion"),
        (json.dumps(TEMPLATE).replace('"value": 1', '"value": 1e999'), "NaN or Infinity"),
        (changed(description=nested(101)), "template: found more than 100 levels"),
        ({"workflow": TEMPLATE["workflow"]}, "template: 'parameters' is missing"),
        ({**TEMPLATE, "script": "x"}, "template: found 'script', expected some of: description"),
        (changed(type="float"), "steps.type: found a string"),
        (changed(to=[{"node": "9", "input": "value"}]), "the workflow has no node 9"),
        (changed(to=[{"node": "3", "input": "valeu"}]), "node 3 has no input 'valeu'"),
        (changed(default=1), "parameters.steps.default: found a number 1, expected at least 2"),
    ],
)
def test_file_that_is_no_template_is_a_fault_of_the_worker_that_names_it(
    content: Any, problem: str, folder: Path
) -> None:
    path = folder / "Broken.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))

    error = ask(modifier="Broken", modifications={"prompt": "x"})["error"]

    assert error["type"] == "Misconfigured"
    assert f"WORKFLOW_TEMPLATES: {path}" in error["message"].replace("cannot read ", "").replace(
        " is no template", ""
    )
    assert problem in error["message"]
    # The other one can still be used.
    described = list_templates(folder)
    assert [each["name"] for each in described] == ["Broken", "Text2Text"]
    assert problem in described[0]["problem"]
    assert problems_of_templates(folder) == [described[0]["problem"]]


def test_folder_that_is_missing_is_a_fault_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKFLOW_TEMPLATES", str(tmp_path / "nowhere"))

    error = ask(modifier="x")["error"]

    assert error["type"] == "Misconfigured"
    assert f"WORKFLOW_TEMPLATES: cannot read {tmp_path / 'nowhere'}" in error["message"]
    assert problems_of_templates(tmp_path / "nowhere") == [error["message"]]


def test_list_has_what_a_caller_may_set(folder: Path) -> None:
    (described,) = list_templates(folder)

    assert described == {
        "name": "Text2Text",
        "description": "A text and a number.",
        "parameters": {
            "prompt": {"description": "What is shown.", "type": "string", "maxLength": 20},
            "steps": {
                "type": "integer",
                "minimum": 2,
                "maximum": 100,
                "multipleOf": 2,
                "default": 20,
            },
        },
    }
