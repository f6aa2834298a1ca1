"""A function in a SAM or CloudFormation template: the environment and the timeout it is given.

What refers to a resource of the stack has no value here, and its variable is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from runtime.sam.intrinsics import NO_VALUE, Intrinsics, UnresolvableError

# As SAM CLI has it.
STACK_NAME = "local"
_SERVERLESS = "AWS::Serverless::Function"
_FUNCTIONS = ("AWS::Lambda::Function", _SERVERLESS)
_LONGEST_TIMEOUT_S = 86_400.0
_YAML = "tag:yaml.org,2002:"
# Of all that YAML takes for something else than a text.
_KEPT = {f"{_YAML}{name}" for name in ("bool", "null", "merge")}


class TemplateError(ValueError):
    """The template cannot be read, or has no such function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateFunction:
    """`name` is the logical id; `left_out` names the variables that only a stack can know."""

    name: str
    variables: Mapping[str, str]
    left_out: tuple[str, ...]
    timeout_s: float | None


def read_template(path: str) -> dict[str, Any]:
    """Parse the file. Raises TemplateError."""
    try:
        return parse_template(Path(path).read_text())
    except OSError as error:
        raise TemplateError(f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TemplateError("is not a text in UTF-8") from error


def parse_template(text: str) -> dict[str, Any]:
    """The template, with `!Ref` and the like as `{"Ref": …}`. Raises TemplateError."""
    try:
        template = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        # Not the error's own text: it quotes the file, and there may be a secret in that line.
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise TemplateError(f"is not YAML: line {line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise TemplateError("is not YAML") from error
    if not isinstance(template, dict) or not isinstance(template.get("Resources"), dict):
        raise TemplateError("expected a template, with Resources")
    return template


def function_names(template: Mapping[str, Any]) -> list[str]:
    """The logical ids of its functions."""
    resources = template["Resources"]
    return [name for name in resources if _mapping(resources, name).get("Type") in _FUNCTIONS]


def function_in(
    template: Mapping[str, Any], name: str | None, *, overrides: Mapping[str, str], region: str
) -> TemplateFunction:
    """The function of that name, or the only one. `overrides` are values of parameters.

    Raises TemplateError.
    """
    name = _chosen(function_names(template), name)
    intrinsics = Intrinsics(
        parameters=_parameters(template, overrides, region),
        conditions=_mapping(template, "Conditions"),
        mappings=_mapping(template, "Mappings"),
    )
    resource = template["Resources"][name]
    sources = [_mapping(resource, "Properties")]
    if resource["Type"] == _SERVERLESS:
        sources.insert(0, _mapping(_mapping(template, "Globals"), "Function"))
    written: dict[str, Any] = {}
    timeout_s = None
    try:
        for source in sources:
            written |= _written_variables(source, intrinsics)
            timeout_s = _timeout(source, intrinsics) or timeout_s
        variables, left_out = _resolved(written, intrinsics)
    except TemplateError as error:
        raise TemplateError(f"{name}: {error}") from error
    except RecursionError as error:
        raise TemplateError("Conditions refer to each other in a circle") from error
    return TemplateFunction(name=name, variables=variables, left_out=left_out, timeout_s=timeout_s)


def _chosen(names: list[str], name: str | None) -> str:
    if not names:
        raise TemplateError(f"has no function, expected one of {' or '.join(_FUNCTIONS)}")
    choices = ", ".join(names)
    if name is None and len(names) > 1:
        raise TemplateError(f"has several functions, name one as FUNCTION: {choices}")
    if name is not None and name not in names:
        raise TemplateError(f"has no function {name}, expected one of: {choices}")
    return name or names[0]


def _parameters(
    template: Mapping[str, Any], overrides: Mapping[str, str], region: str
) -> dict[str, str]:
    declared = _mapping(template, "Parameters")
    if unknown := sorted(overrides.keys() - declared.keys()):
        raise TemplateError(f"has no parameter {', '.join(unknown)}")
    values = {"AWS::Region": region, "AWS::StackName": STACK_NAME}
    for name in declared:
        declaration = _mapping(declared, name)
        default = declaration.get("Default")
        # There the default is the name of a stored value, not the value.
        is_stored = str(declaration.get("Type")).startswith("AWS::SSM::Parameter::Value")
        if name in overrides:
            values[name] = overrides[name]
        elif isinstance(default, str) and not is_stored:
            values[name] = default
    return values


def _written_variables(source: Mapping[str, Any], intrinsics: Intrinsics) -> dict[str, Any]:
    """The variables as they are written there, not resolved."""
    try:
        environment = intrinsics.resolve(source.get("Environment"))
        if environment is NO_VALUE or environment is None:
            return {}
        variables = intrinsics.resolve(_checked(environment, "Environment").get("Variables"))
    except UnresolvableError as error:
        raise TemplateError("Environment: cannot be resolved without the stack") from error
    if variables is NO_VALUE or variables is None:
        return {}
    return _checked(variables, "Environment.Variables")


def _resolved(
    written: Mapping[str, Any], intrinsics: Intrinsics
) -> tuple[dict[str, str], tuple[str, ...]]:
    variables: dict[str, str] = {}
    left_out = []
    for name, value in written.items():
        try:
            resolved = intrinsics.resolve(value)
        except UnresolvableError:
            left_out.append(name)
            continue
        if resolved is NO_VALUE or not resolved:
            continue
        if not isinstance(resolved, str):
            raise TemplateError(f"Environment.Variables.{name}: expected a text")
        variables[name] = resolved
    return variables, tuple(left_out)


def _timeout(source: Mapping[str, Any], intrinsics: Intrinsics) -> float | None:
    try:
        raw = intrinsics.resolve(source.get("Timeout"))
    except UnresolvableError:
        return None
    if raw is NO_VALUE or raw is None:
        return None
    try:
        seconds = float(raw)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds <= _LONGEST_TIMEOUT_S:
        raise TemplateError("Timeout: expected seconds, more than 0, at most a day")
    return seconds


def _mapping(owner: Mapping[str, Any], key: str) -> dict[str, Any]:
    return _checked(owner.get(key) or {}, key)


def _checked(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TemplateError(f"{what}: expected a mapping")
    return value


class _Loader(yaml.SafeLoader):
    """Scalars are the text that is written, for a variable is one: `010` is no 8, `1.10` no 1.1."""


def _function_call(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    name = suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}"
    if isinstance(node, yaml.ScalarNode):
        return {name: loader.construct_scalar(node)}
    if isinstance(node, yaml.SequenceNode):
        return {name: loader.construct_sequence(node, deep=True)}
    assert isinstance(node, yaml.MappingNode)
    return {name: loader.construct_mapping(node, deep=True)}


def _bool_text(loader: _Loader, node: yaml.Node) -> str:
    assert isinstance(node, yaml.ScalarNode)
    return "true" if loader.construct_yaml_bool(node) else "false"


_Loader.yaml_implicit_resolvers = {
    first: [item for item in resolvers if item[0] in _KEPT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor(f"{_YAML}bool", _bool_text)
_Loader.add_multi_constructor("!", _function_call)
