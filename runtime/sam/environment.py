"""The environment of a local function, as `sam local` makes it: -t, --env-vars and the shell.

A variable in the file of --env-vars wins over the shell's, and the shell's over the template's.
What a template says is read in template.py, the file of --env-vars in env_vars_file.py.
"""

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from runtime.errors import UsageError
from runtime.sam.env_vars_file import EnvVarsFile, Variables, read_env_vars

_REGION = "us-east-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionEnvironment:
    """All variables of the function, and its timeout in seconds if the template has one.

    `unresolved` names the variables whose value only a deployed stack knows. They are not set.
    """

    environ: Mapping[str, str]
    timeout_s: float | None = None
    unresolved: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Let the command take the arguments. It finds the result in `args.environ`, see `environ_of`.

    The command must have an argument `--timeout` whose default is None.
    """
    parser.add_argument(
        "function",
        nargs="?",
        metavar="FUNCTION",
        help="the logical id of the function, if the template or --env-vars names several",
    )
    parser.add_argument(
        "-t",
        "--template",
        "--template-file",
        metavar="FILE",
        help="use the variables and the timeout of the function in this SAM template",
    )
    parser.add_argument(
        "-n",
        "--env-vars",
        metavar="FILE",
        help='use the variables in this JSON file: {"Parameters": {NAME: value}}',
    )
    parser.add_argument(
        "--parameter-overrides",
        nargs="+",
        action="extend",
        type=_name_and_value,
        default=[],
        metavar="NAME=VALUE",
        help="values of the template's parameters",
    )
    parser.set_defaults(environ_of=environ_of)


def environ_of(args: argparse.Namespace) -> Mapping[str, str]:
    """The function's environment. Sets `args.timeout` to the template's, if it is not given.

    Prints on stderr which variables have no value. Raises UsageError.
    """
    function = environment_of(args, os.environ)
    if function.unresolved:
        print(
            f"{args.template}: omitted, because only a deployed stack knows their values:"
            f" {', '.join(function.unresolved)} (set them with --env-vars)",
            file=sys.stderr,
        )
    args.timeout = args.timeout or function.timeout_s
    return function.environ


def environment_of(args: argparse.Namespace, shell: Mapping[str, str]) -> FunctionEnvironment:
    """What the arguments make of the shell's environment. Raises UsageError."""
    file = read_env_vars(args.env_vars) if args.env_vars else EnvVarsFile("", {})
    if args.template:
        return _with_template(args, file, shell)
    if args.parameter_overrides:
        raise UsageError("--parameter-overrides needs --template, which declares the parameters")
    if args.function and not args.env_vars:
        raise UsageError(f"FUNCTION {args.function} needs --template or --env-vars")
    function = file.only_function(args.function)
    return FunctionEnvironment(environ=_merged({}, shell, file.variables_of(function)))


def _with_template(
    args: argparse.Namespace, file: EnvVarsFile, shell: Mapping[str, str]
) -> FunctionEnvironment:
    # PyYAML is needed here alone, and takes 20 ms to import.
    from runtime.sam.template import (  # noqa: PLC0415
        TemplateError,
        function_in,
        function_names,
        read_template,
    )

    region = shell.get("AWS_REGION") or shell.get("AWS_DEFAULT_REGION") or _REGION
    try:
        template = read_template(args.template)
        file.check_functions(function_names(template))
        function = function_in(
            template, args.function, overrides=dict(args.parameter_overrides), region=region
        )
    except TemplateError as error:
        raise TemplateError(f"{args.template}: {error}") from error
    overrides = file.variables_of(function.name)
    # Callers name the function by its logical id, as with `sam local start-lambda`.
    defaults = {"AWS_LAMBDA_FUNCTION_NAME": function.name, **function.variables}
    environ = _merged(defaults, shell, overrides)
    return FunctionEnvironment(
        environ=environ,
        timeout_s=function.timeout_s,
        unresolved=tuple(
            name for name in function.unresolved if name not in overrides and not environ.get(name)
        ),
    )


def _merged(
    defaults: Mapping[str, str], shell: Mapping[str, str], overrides: Variables
) -> dict[str, str]:
    # An empty variable of the shell counts as unset, as in the settings.
    environ = {**shell, **{n: v for n, v in defaults.items() if not shell.get(n, "").strip()}}
    for name, value in overrides.items():
        environ.pop(name, None)
        if value is not None:
            environ[name] = value
    return environ


def _name_and_value(raw: str) -> tuple[str, str]:
    """A pair NAME=VALUE; the value may be empty and may contain `=`."""
    name, separator, value = raw.partition("=")
    if not name or not separator:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {raw!r}")
    return name, value
