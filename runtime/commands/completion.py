"""`lambda-comfyui completion SHELL`: prints the script that completes the console script.

shtab writes the script from the parsers, so each new command and option is in it. Nothing of it
runs at the start of another command.
"""

import argparse
from typing import Any

from handler.settings import Settings
from runtime import cli

SHELLS = ("bash", "zsh", "fish")
# Metavar -> what shtab completes there.
_COMPLETE = {"FILE": "FILE", "DIR": "DIRECTORY"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell that reads the script")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0: the script is on stdout. Raises ModuleNotFoundError without the extra `local`."""
    import shtab  # noqa: PLC0415 - of the extra `local`, and `--help` does without

    class Parser(argparse.ArgumentParser):
        """Completes file names after an argument whose metavar is FILE or DIR."""

        def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
            action = super().add_argument(*names, **options)
            if options.get("metavar") in _COMPLETE:
                setattr(action, "complete", getattr(shtab, _COMPLETE[options["metavar"]]))  # noqa: B010
            return action

    parser, _ = cli.make_parser(cli.SCRIPT, cli.COMMANDS, Parser)
    print(shtab.complete(parser, args.shell))
    return 0
