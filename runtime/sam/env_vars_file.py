"""The file of `--env-vars`, as `sam local` has it: variables for every function, and for one.

`{"Parameters": {NAME: value}, "LogicalFunctionId": {NAME: value}}`. No message holds a value.
"""

import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

PARAMETERS = "Parameters"
_VALUE = "a text, a number, true, false, or null to unset it"

# None: the variable is unset.
Variables = Mapping[str, str | None]


class EnvVarsError(ValueError):
    """The file cannot be read, or does not say what variables of which function."""


def read_env_vars(path: str) -> dict[str, Variables]:
    """Read the file. Raises EnvVarsError."""
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise EnvVarsError(f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise EnvVarsError(f"is not JSON: {error}") from error
    return {owner: _variables(owner, values) for owner, values in _object(content).items()}


def functions_of(env_vars: Mapping[str, Variables]) -> list[str]:
    """The logical ids that the file names."""
    return [owner for owner in env_vars if owner != PARAMETERS]


def only_function(env_vars: Mapping[str, Variables], name: str | None) -> str | None:
    """Whose variables apply where no template tells: those of `name`, or the only ones.

    Raises EnvVarsError.
    """
    functions = functions_of(env_vars)
    choices = ", ".join(functions) or "none"
    if name is not None and name not in functions:
        raise EnvVarsError(f"has no function {name}, there are: {choices}")
    if name is None and len(functions) > 1:
        raise EnvVarsError(f"has several functions, name one as FUNCTION: {choices}")
    return name or next(iter(functions), None)


def must_be_known(env_vars: Mapping[str, Variables], functions: Collection[str]) -> None:
    """Raises EnvVarsError if the file names a function that is not one of these."""
    for name in functions_of(env_vars):
        if name not in functions:
            expected = ", ".join([PARAMETERS, *functions])
            raise EnvVarsError(f"{name}: the template has no such function, expected {expected}")


def variables_of(env_vars: Mapping[str, Variables], function: str | None) -> Variables:
    """The variables of that function: those for all, and its own over them."""
    own = env_vars.get(function, {}) if function else {}
    return {**env_vars.get(PARAMETERS, {}), **own}


def _object(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise EnvVarsError('expected {"Parameters": {…}} or {"FunctionId": {…}}')
    return content


def _variables(owner: str, values: Any) -> Variables:
    if not isinstance(values, dict):
        raise EnvVarsError(f"{owner}: expected an object of variables")
    return {name: _text(f"{owner}.{name}", name, value) for name, value in values.items()}


def _text(place: str, name: str, value: Any) -> str | None:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise EnvVarsError(f"{place}: expected a name of letters, digits and underscores")
    if value is None or value == "":
        return None
    if not isinstance(value, str | int | float):
        raise EnvVarsError(f"{place}: expected {_VALUE}")
    text = value if isinstance(value, str) else json.dumps(value)
    try:
        is_text = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        is_text = False
    if not is_text:
        raise EnvVarsError(f"{place}: expected {_VALUE}, without NUL and half characters")
    return text
