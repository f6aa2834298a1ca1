"""`lambda-comfyui invoke`: one event through AWS's own runtime client, the response on stdout.

Progress, errors and the paths of files without a URL go to stderr. What the response holds is
decided in handler/response.py.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from handler.settings import PROJECT, Settings
from runtime.commands.local_development import allow_loopback
from runtime.commands.options import add_verbose, seconds
from runtime.errors import LambdaComfyUIError
from runtime.extras import require
from runtime.lambda_host.failures import InvocationResult
from runtime.lambda_host.function import HANDLER, Function
from runtime.lambda_host.host import LambdaHost
from runtime.output_files import files_without_url, responses_in
from runtime.process.child import Child
from runtime.process.signals import on_stop_signal
from runtime.progress import progress_on
from runtime.sam import environment

DEFAULT_TIMEOUT_S = 900.0
_WORKER_STOP_GRACE_S = 10.0


class EventFileError(LambdaComfyUIError):
    """The event cannot be read, or is not JSON."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-e", "--event", required=True, metavar="FILE", help="the event, JSON; - reads stdin"
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help=f"the function's timeout (default: the template's, or {DEFAULT_TIMEOUT_S:g})",
    )
    environment.add_arguments(parser)
    add_verbose(parser)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0: completed; 1: failed, or a function error; 130, 143: stopped by a signal.

    Raises EventFileError.
    """
    return until_stopped(lambda: _run(args, settings))


def _run(args: argparse.Namespace, settings: Settings) -> int:
    event = read_event(args.event)
    with invoked(
        event,
        environ=args.environ,
        timeout_s=args.timeout or DEFAULT_TIMEOUT_S,
        is_verbose=args.verbose,
    ) as result:
        answer = json.loads(result.payload)
        print(json.dumps(answer, indent=2), flush=True)
    for line in files_without_url(answer, settings.comfyui_data / "output"):
        print(line, file=sys.stderr, flush=True)
    return 0 if outcome_of(result)[1] else 1


def read_event(name: str) -> Any:
    """Parse the file, or stdin if the name is `-`. Raises EventFileError."""
    shown = "stdin" if name == "-" else name
    try:
        text = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise EventFileError(f"cannot read {shown}: {error.strerror}") from error
    try:
        return json.loads(text)
    except ValueError as error:
        raise EventFileError(f"{shown} is not JSON: {error}") from error


@contextmanager
def invoked(
    event: Any, *, environ: Mapping[str, str], timeout_s: float, is_verbose: bool = False
) -> Iterator[InvocationResult]:
    """Run one event and show its progress on stderr; leaving the context stops every process.

    `environ` is the environment of the handler and of the worker. The event may name loopback.
    """
    require("awslambdaric")
    if sys.stderr.isatty():
        require("rich")
    environ = allow_loopback(environ)
    with progress_on(sys.stderr, is_verbose=is_verbose) as progress:
        # First of all: ComfyUI needs the longest. SIGTERM if we are killed: it stops ComfyUI.
        worker = Child(
            [sys.executable, "-m", "runtime", "worker"],
            cwd=PROJECT,
            env=environ,
            on_line=progress.feed,
            dies_with=signal.SIGTERM,
        )
        try:
            function = Function(handler=HANDLER, environ=environ)
            with LambdaHost(function, on_line=progress.feed) as host:
                result = host.invoke(json.dumps(event).encode(), timeout_s=timeout_s)
            # After the host: by now every line of the runtime client is here.
            outcome, is_success = outcome_of(result)
            is_error = result.function_error is not None
            progress.summarize(outcome, is_success=is_success, show_log=is_error)
            yield result
        finally:
            worker.stop(_WORKER_STOP_GRACE_S)


def outcome_of(result: InvocationResult) -> tuple[str, bool]:
    """The result in two words, and whether it is a success."""
    if result.function_error is not None:
        return f"function error {result.function_error}", False
    answer = json.loads(result.payload)
    if isinstance(answer, dict) and "batchItemFailures" in answer:
        failures = answer["batchItemFailures"]
        return ("failed" if failures else "completed"), not failures
    statuses = [str(response["status"]) for response in responses_in(answer)]
    if not statuses:
        return "answered without a status", False
    worst = next((status for status in statuses if status != "completed"), "completed")
    return worst, worst == "completed"


def until_stopped(action: Callable[[], int]) -> int:
    """Run `action`. SIGINT and SIGTERM raise SystemExit in it, so that it stops its children.

    The exit status is 128 + the signal's number. A second signal ends the process at once.
    """

    def unwind(number: int) -> None:
        raise SystemExit(128 + number)

    with on_stop_signal(unwind):
        return action()
