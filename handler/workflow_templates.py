"""Named workflows that requests fill in: the files of the folder WORKFLOW_TEMPLATES.

A template is data: events/contract/template.schema.json describes its file. A request names one
with `modifier`, and gives the values of its parameters with `modifications`. A file is read when a
request asks for it, so a change counts from the next job on.
"""

import copy
import json
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from events.contract.request import refuse_beyond_json
from events.contract.schemas import template_problems, value_problems
from events.errors import InvalidRequest, Misconfigured
from events.job import Job
from handler.workflow import RANDOM_INT, shown

_SETTING = "WORKFLOW_TEMPLATES"
_LIMITS = ("type", "minimum", "maximum", "multipleOf", "maxLength", "enum")
_PATH = ("input", "modifications")
# A response, which has the message, may have to be small.
_MAX_NAMES = 50
# As many as `fill_random_ints` draws from.
_RANDOM_VALUES = 2**32


@dataclass(frozen=True, slots=True)
class Template:
    """The content of a file; `parameters` are by their names."""

    workflow: dict[str, Any]
    parameters: dict[str, dict[str, Any]]
    description: str = ""


def with_workflow(job: Job, folder: Path | None) -> Job:
    """The job with the workflow of the template that it names; one that names none is unchanged.

    Raises InvalidRequest, and Misconfigured if the folder or the file is wrong.
    """
    if not job.template:
        return job
    files = _files(folder)
    if job.template not in files:
        others = len(files) - _MAX_NAMES
        names = ", ".join([*files][:_MAX_NAMES]) + (f", and {others} more" if others > 0 else "")
        expected = f"expected one of: {names}" if files else "this worker has none"
        raise InvalidRequest(f"input.modifier: found {shown(job.template)}, {expected}")
    template = _read(files[job.template])
    return replace(job, workflow=_filled(template, job.modifications))


def list_templates(folder: Path) -> list[dict[str, Any]]:
    """Each template with its parameters, or with the problem of its file. Raises Misconfigured."""
    return [_described(name, path) for name, path in _files(folder).items()]


def problems_of_templates(folder: Path | None) -> list[str]:
    """What is wrong with the folder and with each of its files; empty if all can be used."""
    try:
        templates = list_templates(folder) if folder else []
    except Misconfigured as error:
        return [error.message]
    return [template["problem"] for template in templates if "problem" in template]


def _described(name: str, path: Path) -> dict[str, Any]:
    try:
        template = _read(path)
    except Misconfigured as error:
        return {"name": name, "problem": error.message}
    # Where a value goes is of no use without the workflow.
    parameters = {
        each: {key: value for key, value in parameter.items() if key != "to"}
        for each, parameter in template.parameters.items()
    }
    return {"name": name, "description": template.description, "parameters": parameters}


def _files(folder: Path | None) -> dict[str, Path]:
    """By name: a name of a request is compared with them, and never becomes a path."""
    if folder is None:
        return {}
    try:
        return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix == ".json"}
    except OSError as error:
        raise Misconfigured(f"{_SETTING}: cannot read {folder}: {error.strerror}") from error


def _read(path: Path) -> Template:
    """Raises Misconfigured."""
    try:
        content = json.loads(path.read_text("utf-8"))
        refuse_beyond_json("template", content)
    except InvalidRequest as error:
        raise Misconfigured(f"{_SETTING}: {path}: {error.message}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise Misconfigured(f"{_SETTING}: cannot read {path}: {error}") from error
    if problems := template_problems(content):
        raise Misconfigured(f"{_SETTING}: {path} is no template: {problems}")
    template = Template(**content)
    for name, parameter in template.parameters.items():
        if problem := _problem(template.workflow, parameter):
            raise Misconfigured(f"{_SETTING}: {path}: parameters.{name}.{problem}")
    return template


def _problem(workflow: Mapping[str, Any], parameter: Mapping[str, Any]) -> str:
    """What the schema of templates cannot see."""
    for target in parameter["to"]:
        node = workflow.get(target["node"])
        if node is None:
            return f"to: the workflow has no node {target['node']}"
        if target["input"] not in node["inputs"]:
            return f"to: node {target['node']} has no input '{target['input']}'"
    default = parameter.get("default")
    if default is None:
        return ""
    return value_problems(_drawn(parameter, default), _limits(parameter), ("default",))


def _filled(template: Template, modifications: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the workflow with the values in it. Raises InvalidRequest."""
    parameters = template.parameters
    given = {
        name: _drawn(parameters[name], value) if name in parameters else value
        for name, value in modifications.items()
        if name not in parameters or not _is_not_given(parameters[name], value)
    }
    needed = [
        name
        for name, parameter in parameters.items()
        if "default" not in parameter and name not in given
    ]
    expected = {
        "properties": {name: _limits(parameter) for name, parameter in parameters.items()},
        "required": needed,
        "additionalProperties": False,
    }
    if problems := value_problems(given, expected, _PATH):
        raise InvalidRequest(problems)
    workflow = copy.deepcopy(template.workflow)
    for name, parameter in parameters.items():
        value = given[name] if name in given else _drawn(parameter, parameter["default"])
        for target in parameter["to"]:
            workflow[target["node"]]["inputs"][target["input"]] = value
    return workflow


def _limits(parameter: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a parameter's values."""
    return {name: parameter[name] for name in _LIMITS if name in parameter}


def _is_not_given(parameter: Mapping[str, Any], value: Any) -> bool:
    """As in the other fields of a request; but a text, such as a prompt, may be empty."""
    return value is None or (value == "" and parameter["type"] != "string")


def _drawn(parameter: Mapping[str, Any], value: Any) -> Any:
    """The value; for the placeholder of an integer, a random one that its limits allow.

    It is drawn here, once: all inputs of the parameter get the same one.
    """
    if value != RANDOM_INT or parameter["type"] != "integer":
        return value
    allowed = _allowed_integers(_limits(parameter))
    # Without any, the placeholder is refused like every other value.
    return secrets.choice(allowed) if allowed else value


def _allowed_integers(limits: Mapping[str, Any]) -> Sequence[int]:
    """Those that the limits of an integer allow; the first ones, where they are very many."""
    if "enum" in limits:
        return [value for value in limits["enum"] if not value_problems(value, limits, ())]
    maximum = limits.get("maximum", math.inf)
    low = math.ceil(limits.get("minimum", min(0, maximum)))
    high = math.floor(min(maximum, low + _RANDOM_VALUES - 1))
    step = Fraction(str(limits.get("multipleOf", 1))).numerator
    return range(-(-low // step) * step, high + 1, step)
