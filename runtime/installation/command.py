"""Runs the commands of an installation: pip, git, and ComfyUI's Python."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import LambdaComfyUIError

OUTPUT_LINES_SHOWN = 15
DISK_HINT = "check the permissions and the free disk space"
NETWORK_HINT = "check the network and the free disk space"


class InstallError(LambdaComfyUIError):
    """A step failed. The message has the step, its command and output, and what to try."""


def run_command(
    command: Sequence[str | Path], *, hint: str, show: bool = False, cwd: Path | None = None
) -> str:
    """Run a command and return its output. With `show`, a terminal gets the output live instead.

    Raises InstallError with the end of the output.
    """
    live = show and sys.stderr.isatty()
    try:
        process = subprocess.run(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr if live else subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=cwd,
            check=False,
            # A pip that outlives its killed parent must go on holding the lock of the folder.
            close_fds=False,
        )
    except OSError as error:
        raise InstallError(f"cannot run {command[0]}: {error.strerror}. Try: {hint}.") from error
    if process.returncode == 0:
        return process.stdout or ""
    lines = (process.stdout or "(its output is above)").rstrip().splitlines()[-OUTPUT_LINES_SHOWN:]
    raise InstallError(
        f"`{shlex.join(str(word) for word in command)}` ended with status {process.returncode}:\n"
        + "\n".join(f"    {line}" for line in lines)
        + f"\nTry: {hint}."
    )
