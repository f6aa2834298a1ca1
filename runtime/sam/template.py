"""A function in a SAM or CloudFormation template: its variables and its timeout.

A variable whose value refers to a resource, such as a bucket, has no value before the stack is
deployed: it is not set. Which references a template resolves by itself is decided in intrinsics.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from runtime.errors import UsageError
from runtime.sam.intrinsics import NO_VALUE, Intrinsics, UnresolvableError

# The value of AWS::StackName in SAM CLI.
STACK_NAME = "local"
_SERVERLESS = "AWS::Serverless::Function"
_FUNCTIONS = ("AWS::Lambda::Function", _SERVERLESS)
_LONGEST_TIMEOUT_S = 86_400.0
_YAML = "tag:yaml.org,2002:"
# The types of scalars that YAML may tell from text: see _Loader.
_KEPT = {f"{_YAML}{name}" for name in ("bool", "null", "merge")}


class TemplateError(UsageError):
    """The template cannot be read, or does not have the function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateFunction:
    """`name` is the logical id; `timeout_s` seconds, None if the template does not say.

    `unresolved` names the variables whose value only a deployed stack knows.
    """

    name: str
    variables: Mapping[str, str]
    unresolved: tuple[str, ...]
    timeout_s: float | None


def read_template(path: str) -> dict[str, Any]:
    """Parse the file. Raises TemplateError."""
    try:
        return parse_template(Path(path).read_text())
    except OSError as error:
        raise TemplateError(f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TemplateError("is not UTF-8 text") from error


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
    """The function `name`, or the only one. `overrides` are values of parameters by their name.

    Raises TemplateError.
    """
    intrinsics = Intrinsics(
        parameters=_parameters(template, overrides, region),
        conditions=_mapping(template, "Conditions"),
        mappings=_mapping(template, "Mappings"),
    )
    names = function_names(template)
    if name is None:
        names = [one for one in names if _is_created(template["Resources"][one], intrinsics)]
    name = _choose(names, name)
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
        variables, unresolved = _resolved(written, intrinsics)
    except TemplateError as error:
        raise TemplateError(f"{name}: {error}") from error
    except RecursionError as error:
        raise TemplateError("Conditions refer to each other in a cycle") from error
    return TemplateFunction(
        name=name, variables=variables, unresolved=unresolved, timeout_s=timeout_s
    )


def _is_created(resource: Mapping[str, Any], intrinsics: Intrinsics) -> bool:
    """Whether a stack would have the resource; yes if its condition cannot be told."""
    try:
        return "Condition" not in resource or intrinsics.holds(resource["Condition"])
    except (UnresolvableError, RecursionError):
        return True


def _choose(names: list[str], name: str | None) -> str:
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
        # The default of such a parameter is the name of a stored value, not the value.
        is_stored = str(declaration.get("Type")).startswith("AWS::SSM::Parameter::Value")
        if name in overrides:
            values[name] = overrides[name]
        elif isinstance(default, str) and not is_stored:
            values[name] = default
    return values


def _written_variables(source: Mapping[str, Any], intrinsics: Intrinsics) -> dict[str, Any]:
    """The variables as the template writes them, not resolved."""
    try:
        environment = intrinsics.resolve(source.get("Environment"))
        if environment is NO_VALUE or environment is None:
            return {}
        variables = intrinsics.resolve(_checked(environment, "Environment").get("Variables"))
    except UnresolvableError as error:
        raise TemplateError(
            "Environment: cannot be resolved before the stack is deployed"
        ) from error
    if variables is NO_VALUE or variables is None:
        return {}
    return _checked(variables, "Environment.Variables")


def _resolved(
    written: Mapping[str, Any], intrinsics: Intrinsics
) -> tuple[dict[str, str], tuple[str, ...]]:
    variables: dict[str, str] = {}
    unresolved = []
    for name, value in written.items():
        try:
            resolved = intrinsics.resolve(value)
        except UnresolvableError:
            unresolved.append(name)
            continue
        if resolved is NO_VALUE or not resolved:
            continue
        if not isinstance(resolved, str):
            raise TemplateError(f"Environment.Variables.{name}: expected a text")
        variables[name] = resolved
    return variables, tuple(unresolved)


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
        raise TemplateError("Timeout: expected seconds, more than 0 and at most 86400")
    return seconds


def _mapping(owner: Mapping[str, Any], key: str) -> dict[str, Any]:
    return _checked(owner.get(key) or {}, key)


def _checked(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TemplateError(f"{what}: expected a mapping")
    return value


class _Loader(yaml.SafeLoader):
    """Keeps a scalar as the text in the file, as a variable is: `010` is not 8, `1.10` not 1.1."""


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
