"""What the worker and its commands say."""

import contextlib
import sys


def log(line: str) -> None:
    """One plain line on stderr: the platform's log in a container, the terminal elsewhere."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
