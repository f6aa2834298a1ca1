"""Arguments of several commands: how a value on the command line is read, and overrides a setting.

Each reader raises argparse.ArgumentTypeError; argparse puts the option's name before the message.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from handler.settings import Settings

LONGEST_S = 86_400.0


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """A reader of whole numbers from `least` to `most`, both included."""
    expected = f"a whole number, {least} or more"
    if most is not None:
        expected = f"a whole number from {least} to {most}"

    def read(raw: str) -> int:
        try:
            value = int(raw)
        except ValueError:
            value = None
        if value is None or value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {raw!r}")
        return value

    return read


port = whole_number(0, 65_535)


def seconds(raw: str) -> float:
    """A time of more than 0 and at most LONGEST_S seconds."""
    try:
        value = float(raw)
    except ValueError:
        value = 0.0
    if not 0 < value <= LONGEST_S:
        raise argparse.ArgumentTypeError(
            f"expected seconds, more than 0 and at most {LONGEST_S:.0f}, got {raw!r}"
        )
    return value


def add_verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verbose", action="store_true", help="show ComfyUI's log lines too")


def override(settings: Settings, arguments: Mapping[str, Any]) -> Settings:
    """The settings with these fields, except those whose argument was not given."""
    given = {name: value for name, value in arguments.items() if value not in (None, "")}
    return replace(settings, **given)
