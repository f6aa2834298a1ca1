"""The command line: which command runs, with which settings. Each command is a module."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from handler.settings import Settings, SettingsError

COMMANDS = {
    "install": "install ComfyUI and its own virtual environment",
    "standins": "generate stand-in weights for the Wan 2.2 profile (random numbers, no model)",
    "extension": "own ComfyUI as a Lambda extension, for as long as the environment lives",
    "worker": "own ComfyUI: start, watch and stop it, and answer handlers on a socket",
    "ask": "ask the worker for its state or ComfyUI's log, or have it wake, sleep, drain, restart",
    "invoke": "run one event through the real Lambda runtime client and print the response",
    "serve": "run events from a queue and from callers of Lambda's Invoke API, until stopped",
    "start-lambda": "serve Lambda's Invoke API alone, as `sam local start-lambda` does",
    "example": "invoke with a local S3 server, and fetch the files back",
}


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status; 2 for wrong usage or settings."""
    parser = argparse.ArgumentParser(prog="python -m runtime", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # Only the module of the chosen command is imported: the worker must be up at once.
    chosen = arguments[0] if arguments and arguments[0] in COMMANDS else None
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name == chosen:
            module = importlib.import_module(f"runtime.commands.{name.replace('-', '_')}")
            module.add_arguments(command)
    args = parser.parse_args(arguments)
    try:
        if "env_vars" in args:
            from runtime.sam import environment  # noqa: PLC0415 - as the commands, see above

            environment.take(args)
        settings = Settings.from_env(os.environ)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    status: int = module.run(args, settings)
    return status
