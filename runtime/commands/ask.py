"""`python -m runtime ask OPERATION`: a question to this machine's worker, its answer as JSON.

What may be asked, and what is answered, is in runtime/worker/control.py.
"""

import argparse
import json
import socket
import sys
from typing import Any, TextIO

from handler.settings import Settings
from runtime.worker.control import SOCKET_NAME
from runtime.worker.states import DEPTHS, State

OPERATIONS = ("state", "log", "wake", "sleep", "drain", "restart")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("operation", choices=OPERATIONS)
    parser.add_argument(
        "--depth",
        choices=tuple(DEPTHS),
        default="stop",
        help="of `sleep`: unload the models, stop ComfyUI, or keep nothing (default: %(default)s)",
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0: done, the answer is on stdout; 1: refused, or no worker runs."""
    path = settings.worker_dir / SOCKET_NAME
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
            answer = _ask(connection, args.operation, args.depth)
        except OSError as error:
            print(f"no worker answers at {path}: {error.strerror or error}", file=sys.stderr)
            return 1
    print(json.dumps(answer, indent=2))
    return 1 if "error" in answer else 0


def _ask(connection: socket.socket, operation: str, depth: str) -> dict[str, Any]:
    with connection.makefile("rw") as lines:
        _send(lines, {"op": operation, "depth": depth})
        answer = _next(lines)
        if operation == "wake":
            if answer["state"] != State.READY:
                answer = _next(lines)
            # Whoever asked may order sleep next, which a job that is still counted would forbid.
            _send(lines, {"op": "done"})
            _send(lines, {"op": "state"})
            _next(lines)
    return answer


def _send(lines: TextIO, question: dict[str, str]) -> None:
    lines.write(json.dumps(question) + "\n")
    lines.flush()


def _next(lines: TextIO) -> dict[str, Any]:
    if not (line := lines.readline()):
        raise ConnectionResetError("it ended before it answered")
    answer: dict[str, Any] = json.loads(line)
    return answer
