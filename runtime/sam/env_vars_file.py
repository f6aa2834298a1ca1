"""The file of `--env-vars`, as `sam local` has it: variables for every function, and for one.

`{"Parameters": {NAME: value}, "LogicalFunctionId": {NAME: value}}`. No message shows a value,
because it may be a secret.
"""

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import UsageError

PARAMETERS = "Parameters"
_VALUE = "a text, a number, true, false, or null to unset it"

# None: the variable is unset.
Variables = Mapping[str, str | None]


class EnvVarsError(UsageError):
    """The file cannot be read, or does not have the form above; the message names the file."""


@dataclass(frozen=True, slots=True)
class EnvVarsFile:
    """The content of the file at `path`: the variables by their owner, PARAMETERS or a function."""

    path: str
    variables: Mapping[str, Variables]

    @property
    def functions(self) -> list[str]:
        """The logical ids of functions that the file names."""
        return [owner for owner in self.variables if owner != PARAMETERS]

    def only_function(self, name: str | None) -> str | None:
        """The function whose variables apply without a template: `name`, or the only one.

        None if the file has variables for every function alone. Raises EnvVarsError.
        """
        choices = ", ".join(self.functions) or "none"
        if name is not None and name not in self.functions:
            raise EnvVarsError(f"{self.path}: has no function {name}, there are: {choices}")
        if name is None and len(self.functions) > 1:
            raise EnvVarsError(
                f"{self.path}: has several functions, name one as FUNCTION: {choices}"
            )
        return name or next(iter(self.functions), None)

    def check_functions(self, known: Collection[str]) -> None:
        """Raises EnvVarsError if the file names a function that is not one of `known`."""
        for name in self.functions:
            if name not in known:
                expected = ", ".join([PARAMETERS, *known])
                raise EnvVarsError(
                    f"{self.path}: {name}: the template has no such function, expected {expected}"
                )

    def variables_of(self, function: str | None) -> Variables:
        """The variables of that function: those for every function, and its own over them."""
        own = self.variables.get(function, {}) if function else {}
        return {**self.variables.get(PARAMETERS, {}), **own}


def read_env_vars(path: str) -> EnvVarsFile:
    """Read the file. Raises EnvVarsError."""
    try:
        return EnvVarsFile(path, _parsed(Path(path).read_bytes()))
    except OSError as error:
        raise EnvVarsError(f"{path}: cannot be read: {error.strerror}") from error
    except EnvVarsError as error:
        raise EnvVarsError(f"{path}: {error}") from error


def _parsed(raw: bytes) -> dict[str, Variables]:
    try:
        content = json.loads(raw)
    except ValueError as error:
        raise EnvVarsError(f"is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise EnvVarsError('expected {"Parameters": {…}} or {"FunctionId": {…}}')
    return {owner: _variables(owner, values) for owner, values in content.items()}


def _variables(owner: str, values: Any) -> Variables:
    if not isinstance(values, dict):
        raise EnvVarsError(f"{owner}: expected an object of variables")
    return {name: _text(f"{owner}.{name}", name, value) for name, value in values.items()}


def _text(key: str, name: str, value: Any) -> str | None:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise EnvVarsError(f"{key}: expected a name of letters, digits and underscores")
    if value is None or value == "":
        return None
    if not isinstance(value, str | int | float):
        raise EnvVarsError(f"{key}: expected {_VALUE}")
    text = value if isinstance(value, str) else json.dumps(value)
    try:
        is_text = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        is_text = False
    if not is_text:
        raise EnvVarsError(f"{key}: expected {_VALUE}, without NUL and lone surrogates")
    return text
