"""The command line: which command runs, with which settings, and how its errors become a status.

Each command is a module of runtime/commands with `add_arguments(parser)` and `run(args, settings)`.
Arguments that several commands share are in runtime/commands/options.py.
"""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Collection, Mapping, Sequence
from types import ModuleType
from typing import Any

from handler.settings import Settings, SettingsError
from runtime.errors import LambdaComfyUIError
from runtime.extras import EXTRA_OF, MissingExtraError

SCRIPT = "lambda-comfyui"
MODULE = "python -m runtime"
COMMANDS = {
    "install": "install ComfyUI and its own virtual environment",
    "nodes": "lock the custom nodes of a ComfyUI, or install those of a lock file",
    "standins": "generate stand-in weights for the Wan 2.2 profile (random numbers, no model)",
    "provision": "download the models of manifests, and run PROVISIONING_SCRIPT",
    "manifest": "write a manifest of the models that a workflow names",
    "extension": "own ComfyUI as a Lambda extension, for as long as the environment lives",
    "worker": "own ComfyUI: start, watch and stop it, and answer handlers on a socket",
    "ask": "ask the worker for its state or ComfyUI's log, or have it wake, sleep, drain, restart",
    "benchmark": "measure this machine's score, and print it beside the earlier ones",
    "clean": "remove delivered and old files from ComfyUI's folders, as the worker does",
    "invoke": "run one event through the real Lambda runtime client and print the response",
    "serve": "run events from a queue and from callers of Lambda's Invoke API, until stopped",
    "start-lambda": "serve Lambda's Invoke API alone, as `sam local start-lambda` does",
    "router": "give the requests of a fleet's clients to its workers, by their scores",
    "update-workers": "restart the workers of a router, one after another",
    "example": "run two samples, or one event, with a local S3 server, and download the files",
    "completion": "print a script that completes commands and options in a shell",
}
_DESCRIPTION = "Runs ComfyUI workflows from events, as an AWS Lambda function or beside one."
_INVALID_SETTINGS = 2
# What a shell reports for a program that SIGPIPE has ended. It ends the Unix tools.
_CLOSED_PIPE = 128 + signal.SIGPIPE


def run_script() -> int:
    """The console script `lambda-comfyui`. Returns the exit status."""
    return main(sys.argv[1:], prog=SCRIPT)


def main(arguments: Sequence[str], prog: str = MODULE) -> int:
    """Run one command and return its exit status. `prog` is the program's name in the help.

    0 and 1 are the command's own. An error of runtime/errors.py gives the status that is named
    there, invalid environment variables give 2, and a closed pipe behind stdout or stderr 141.
    Raises SystemExit(2) for invalid arguments.
    """
    try:
        try:
            return _run(arguments, prog)
        finally:
            if sys.stdout:
                sys.stdout.flush()
    except BrokenPipeError:
        _discard_unwritten()
        return _CLOSED_PIPE


def make_parser(
    prog: str,
    loaded: Collection[str],
    parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser,
) -> tuple[argparse.ArgumentParser, dict[str, ModuleType]]:
    """The parser of all commands, and the modules of those `loaded`: only they have arguments."""
    parser = parser_class(prog=prog, description=_DESCRIPTION)
    parser.add_argument("--version", action=_PrintVersion)
    parser.set_defaults(environ_of=_environ_of_shell)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules = {}
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(parser=command)
        if name in loaded:
            module = importlib.import_module(f"runtime.commands.{name.replace('-', '_')}")
            module.add_arguments(command)
            modules[name] = module
    return parser, modules


def _run(arguments: Sequence[str], prog: str) -> int:
    try:
        # One module alone is imported: the worker must be up at once.
        parser, modules = make_parser(prog, arguments[:1])
        args, unknown = parser.parse_known_args(arguments)
        if unknown:
            # argparse itself would print the usage of the program, without the command's options.
            nearest = args.parser if args.command in modules else parser
            nearest.error(f"unrecognized arguments: {' '.join(unknown)}")
        args.environ = args.environ_of(args)
        settings = Settings.from_env(args.environ)
        status: int = modules[args.command].run(args, settings)
    except SettingsError as error:
        return _fail(error, _INVALID_SETTINGS)
    except LambdaComfyUIError as error:
        return _fail(error, error.exit_status)
    except ModuleNotFoundError as error:
        if error.name not in EXTRA_OF:
            raise
        return _fail(MissingExtraError(error.name), MissingExtraError.exit_status)
    return status


def _fail(error: Exception, status: int) -> int:
    print(error, file=sys.stderr)
    return status


def _discard_unwritten() -> None:
    """Discard what a stream without a reader still holds: the interpreter flushes both at exit."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _environ_of_shell(_: argparse.Namespace) -> Mapping[str, str]:
    """The environment of a command that has no arguments for it: see runtime/sam/environment.py."""
    return os.environ


class _PrintVersion(argparse.Action):
    """`--version`. importlib.metadata takes 20 ms to import, so it is imported here."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, help="print the version and exit", **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib import metadata  # noqa: PLC0415

        try:
            version = metadata.version(SCRIPT)
        except metadata.PackageNotFoundError:
            # A checkout, or the image, where the code is copied and not installed.
            version = "of unknown version, because it is not installed as a package"
        print(f"{SCRIPT} {version}")
        parser.exit()
