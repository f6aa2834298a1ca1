"""The published schemas, and the sentences that say where a value differs from one.

A sentence names the path, what is there and what is expected. It never shows a value that may be a
secret.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cache
from importlib import resources
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import relevance
from jsonschema.validators import extend

_MAX_REPORTED = 5
_SECRET_PATHS = (("input", "s3"), ("input", "webhook"))
_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}
_SCHEMA_TYPES = {
    "object": "an object",
    "array": "a list",
    "string": "a string",
    "boolean": "true or false",
    "number": "a number",
    "integer": "a whole number",
}

_BOUNDS = {
    "maximum": "at most",
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "multipleOf": "a multiple of",
}


@cache
def schema(name: str) -> dict[str, Any]:
    """The published schema `request`, `response`, `webhook` or `template`.

    They are JSON Schema 2020-12.
    """
    text = resources.files(__package__).joinpath(f"{name}.schema.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def request_problems(request: Any) -> str:
    """Where a request differs from the schema: five sentences at most; "" if it does not."""
    return _problems(_validator("request"), request)


def template_problems(template: Any) -> str:
    """Where the content of a template's file differs from the schema, as `request_problems`."""
    return _problems(_validator("template"), template, ("template",))


def value_problems(value: Any, expected: Mapping[str, Any], path: Sequence[str]) -> str:
    """Where a value at a path differs from a JSON Schema, as `request_problems`."""
    return _problems(_ValueValidator(expected), value, path)


def response_problems(response: Any) -> list[str]:
    """Where a response differs from the schema; empty if it does not."""
    return [_problem(error) for error in _validator("response").iter_errors(response)]


def webhook_problems(body: Any) -> list[str]:
    """Where a webhook body differs from the schema; empty if it does not."""
    return [_problem(error) for error in _validator("webhook").iter_errors(body)]


def kind_of(value: Any) -> str:
    """What a JSON value is, in words: `an object`, `a list`, …"""
    return _KINDS.get(type(value), type(value).__name__)


def keys_of(value: dict[str, Any]) -> str:
    """Up to ten keys of an object, in words."""
    keys = [_short(str(key)) for key in value]
    return ("the keys " + ", ".join(keys[:10])) if keys else "no keys"


def _problems(validator: Draft202012Validator, value: Any, path: Sequence[str] = ()) -> str:
    errors = sorted(validator.iter_errors(value), key=relevance, reverse=True)
    sentences = list(dict.fromkeys(_problem(error, path) for error in errors))
    reported = "; ".join(sentences[:_MAX_REPORTED])
    others = len(sentences) - _MAX_REPORTED
    return reported + (f"; and {others} more" if others > 0 else "")


def _multiple_of(
    _: Any, step: float, value: Any, __: Mapping[str, Any]
) -> Iterator[ValidationError]:
    """As the digits say. jsonschema divides floats: 0.3 is no multiple of 0.1 then."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and Fraction(str(value)) % Fraction(str(step)):
        yield ValidationError("")


_ValueValidator = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator, {"multipleOf": _multiple_of}
)


@cache
def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(schema(name))


def _problem(error: ValidationError, base: Sequence[str] = ()) -> str:
    path = (*base, *(str(part) for part in error.absolute_path))
    return f"{_path_text(path)}: {_sentence(error, path)}"


def _sentence(error: ValidationError, path: tuple[str, ...]) -> str:
    instance: Any = error.instance
    value: Any = error.validator_value
    found = _value_text(instance, path)
    match error.validator:
        case "required":
            missing = ", ".join(f"'{name}'" for name in value if name not in instance)
            return f"{missing} is missing; the object has {keys_of(instance)}"
        case "type":
            types = [value] if isinstance(value, str) else [t for t in value if t != "null"]
            names = " or ".join(_SCHEMA_TYPES[t] for t in types)
            return f"found {found}, expected {names}"
        case "pattern":
            return f"found {found}, expected an http:// or https:// URL"
        case "minProperties":
            return "found an empty object, expected at least one node"
        case "minLength":
            return "found an empty string, expected text"
        case "maxLength":
            return f"found {len(instance)} characters, expected at most {value}"
        case "additionalProperties":
            return _unknown_names(error)
        case _:
            return f"found {found}, expected {_expected(str(error.validator), value)}"


def _expected(keyword: str, value: Any) -> str:
    """What a keyword of the schema with this value asks for."""
    if keyword == "enum":
        return f"one of: {', '.join(map(str, value))}"
    return f"{_BOUNDS[keyword]} {value}" if keyword in _BOUNDS else f"'{keyword}' of the schema"


def _unknown_names(error: ValidationError) -> str:
    instance: Any = error.instance
    expected: Any = error.schema
    known = expected["properties"]
    unknown = ", ".join(f"'{_short(name)}'" for name in instance if name not in known)
    return f"found {unknown}, expected some of: {', '.join(known) or 'none'}"


def _path_text(path: Iterable[str]) -> str:
    return ".".join(_short(part) for part in path) or "the event"


def _value_text(value: Any, path: tuple[str, ...]) -> str:
    kind = kind_of(value)
    is_secret = any(path[: len(prefix)] == prefix for prefix in _SECRET_PATHS)
    if is_secret or isinstance(value, dict | list) or value is None:
        return kind
    return f"{kind} {_short(json.dumps(value))}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
