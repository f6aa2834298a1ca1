"""The environment of a local function, as `sam local` makes it: -t, --env-vars and the shell.

The file of --env-vars wins over the shell, and the shell over the template.
"""

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from handler.settings import SettingsError
from runtime.sam.env_vars_file import (
    EnvVarsError,
    Variables,
    must_be_known,
    only_function,
    read_env_vars,
    variables_of,
)

_REGION = "us-east-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionEnvironment:
    """`left_out` names the variables of the template that have no value at all."""

    environ: Mapping[str, str]
    timeout_s: float | None = None
    left_out: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "function",
        nargs="?",
        metavar="FUNCTION",
        help="its logical id, where template or variables are of several functions",
    )
    parser.add_argument(
        "-t",
        "--template",
        "--template-file",
        metavar="FILE",
        help="take variables and timeout of the function in this SAM template",
    )
    parser.add_argument(
        "-n", "--env-vars", metavar="FILE", help='variables, JSON: {"Parameters": {NAME: value}}'
    )
    parser.add_argument(
        "--parameter-overrides",
        nargs="+",
        action="extend",
        type=_override,
        default=[],
        metavar="NAME=VALUE",
        help="parameters of the template",
    )


def take(args: argparse.Namespace) -> None:
    """Make it the environment of this process, whose children are the function.

    Says on stderr which variables have no value. Raises SettingsError.
    """
    chosen = environment_of(args, os.environ)
    if chosen.left_out:
        print(
            f"{args.template}: left out, as only a deployed stack has them:"
            f" {', '.join(chosen.left_out)} (give them with --env-vars)",
            file=sys.stderr,
        )
    args.timeout = args.timeout or chosen.timeout_s
    os.environ.clear()
    os.environ.update(chosen.environ)


def environment_of(args: argparse.Namespace, shell: Mapping[str, str]) -> FunctionEnvironment:
    """What the arguments make of the shell's environment. Raises SettingsError."""
    try:
        env_vars = read_env_vars(args.env_vars) if args.env_vars else {}
        if args.template:
            return _with_template(args, env_vars, shell)
        if args.parameter_overrides:
            raise SettingsError("--parameter-overrides: expected --template with it")
        if args.function and not args.env_vars:
            raise SettingsError(f"{args.function}: expected --template or --env-vars with it")
        function = only_function(env_vars, args.function)
    except EnvVarsError as error:
        raise SettingsError(f"{args.env_vars}: {error}") from error
    return FunctionEnvironment(environ=_merged({}, shell, variables_of(env_vars, function)))


def _with_template(
    args: argparse.Namespace, env_vars: Mapping[str, Variables], shell: Mapping[str, str]
) -> FunctionEnvironment:
    # PyYAML is there for this alone, and takes its time.
    from runtime.sam.template import (  # noqa: PLC0415
        TemplateError,
        function_in,
        function_names,
        read_template,
    )

    try:
        template = read_template(args.template)
        must_be_known(env_vars, function_names(template))
        region = shell.get("AWS_REGION") or shell.get("AWS_DEFAULT_REGION") or _REGION
        function = function_in(
            template, args.function, overrides=dict(args.parameter_overrides), region=region
        )
    except TemplateError as error:
        raise SettingsError(f"{args.template}: {error}") from error
    given = variables_of(env_vars, function.name)
    # By its logical id callers know it, as with `sam local start-lambda`.
    written = {"AWS_LAMBDA_FUNCTION_NAME": function.name, **function.variables}
    environ = _merged(written, shell, given)
    return FunctionEnvironment(
        environ=environ,
        timeout_s=function.timeout_s,
        left_out=tuple(n for n in function.left_out if n not in given and not environ.get(n)),
    )


def _merged(
    written: Mapping[str, str], shell: Mapping[str, str], given: Variables
) -> dict[str, str]:
    # An empty variable of the shell is an absent one, here as in the settings.
    environ = {**shell, **{n: v for n, v in written.items() if not shell.get(n, "").strip()}}
    for name, value in given.items():
        environ.pop(name, None)
        if value is not None:
            environ[name] = value
    return environ


def _override(raw: str) -> tuple[str, str]:
    name, is_pair, value = raw.partition("=")
    if not name or not is_pair:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE: {raw}")
    return name, value
