"""`lambda-comfyui serve`: makes this machine a worker of a queue, and a Lambda endpoint.

This module joins the command line and the settings; runtime/lambda_host/service.py serves.
"""

import argparse
import contextlib
import queue
import socket
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

from events import aws
from handler.settings import Settings
from handler.workflow_templates import problems_of_templates
from runtime.commands.listening import LOOPBACK, StartError, is_loopback, listen
from runtime.commands.options import override, port, seconds, whole_number
from runtime.extras import require
from runtime.hooks import PyWorkerLines
from runtime.lambda_host.async_invocations import AsyncRules
from runtime.lambda_host.destination import destination_of
from runtime.lambda_host.event_store import EventStore
from runtime.lambda_host.failures import WORKER_UNFIT, Failure
from runtime.lambda_host.function import HANDLER, Function
from runtime.lambda_host.pool import PooledWorker, pooled_workers
from runtime.lambda_host.service import Listeners, Service, ServiceRules, Sources
from runtime.lambda_host.sqs_poller import PollerRules
from runtime.lambda_host.sqs_queue import QueueError, SqsQueue
from runtime.process.signals import get_beside_signals, on_stop_signal

if TYPE_CHECKING:
    from runtime.lambda_host.api_front import ApiRules

# As on Managed Instances: the function's timeout, but at least 130 s and at most 900.
_MIN_INIT_S, _MAX_INIT_S = 130.0, 900.0
_POLL_CONNECTIONS = 2  # of each poller: its own calls and its heartbeat
_MAX_BATCH = 10  # of SQS
# 1 and 2 are those of runtime/errors.py.
_EXIT_UNFIT = 3
_QUEUE_HINT = "check its URL, the Region and the AWS credentials"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--queue", metavar="URL", help="the SQS queue to poll (QUEUE_URL)")
    parser.add_argument(
        "--batch-size",
        type=whole_number(1, _MAX_BATCH),
        metavar="N",
        help="messages of one event (QUEUE_BATCH_SIZE)",
    )
    add_endpoint_arguments(parser, default_port="SERVE_PORT")
    parser.add_argument("--no-api", action="store_true", help="do not serve the HTTP API")
    parser.add_argument(
        "--api-host", metavar="ADDRESS", help="address of the HTTP API (API_ADDRESS)"
    )
    parser.add_argument(
        "--api-port", type=port, metavar="N", help="port of the HTTP API; 0: any (API_PORT)"
    )


def add_endpoint_arguments(parser: argparse.ArgumentParser, *, default_port: str) -> None:
    """What `serve` and `start-lambda` have in common. The help names each default's variable."""
    parser.add_argument("--host", metavar="ADDRESS", help="listen on this address (SERVE_ADDRESS)")
    parser.add_argument(
        "--port",
        type=port,
        metavar="N",
        help=f"listen on this port; 0: any free one ({default_port})",
    )
    parser.add_argument(
        "--concurrency",
        type=whole_number(1),
        metavar="N",
        help="events at the same time (SERVE_CONCURRENCY)",
    )
    parser.add_argument(
        "--timeout", type=seconds, metavar="S", help="seconds of one event (SERVE_TIMEOUT)"
    )
    parser.add_argument(
        "--on-failure",
        metavar="URL",
        help="SQS queue or HTTP URL for failed events (ON_FAILURE_URL)",
    )
    parser.add_argument(
        "--grace", type=seconds, metavar="S", help="seconds that a stop may take (SERVE_GRACE)"
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Serve with `settings`, which the arguments override; `args.environ` is the function's.

    0: stopped by SIGTERM or SIGINT; 1: it could not start, or its environments fail; 3: this
    machine is unfit for jobs.
    """
    settings = _with_job_store(with_arguments(settings, args))
    require("awslambdaric")
    # Before any process starts: a port in use and a missing queue are frequent mistakes.
    try:
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(
                listen(settings.serve_address, settings.serve_port, "--host, --port")
            )
            api = None if args.no_api else _api(settings, stack)
            for problem in problems_of_templates(settings.workflow_templates):
                say(problem)
            workers = pooled_workers(settings, args.environ)
            sqs = _queue(settings, len(workers) * settings.serve_concurrency)
            return _serve(args.environ, settings, listener, sqs, api, workers)
    except StartError as error:
        say(str(error))
        return 1


def _api(settings: Settings, stack: contextlib.ExitStack) -> "ApiRules":
    """Raises StartError."""
    require("uvicorn")
    if settings.router_url:
        require("cryptography")
    from handler.api.authentication import read_token  # noqa: PLC0415 - starlette, for the API alone
    from runtime.lambda_host.api_front import ApiRules  # noqa: PLC0415 - uvicorn

    try:
        token = read_token(settings.api_token)
    except Exception as error:
        raise StartError(f"cannot read API_TOKEN: {aws.error_name(error)}") from error
    address = settings.api_address
    if settings.router_url and not settings.public_url:
        text = "ROUTER_URL needs PUBLIC_URL: the address at which clients reach this worker"
        raise StartError(text)
    if not token and not settings.router_url and not is_loopback(address):
        say(f"no API_TOKEN: the HTTP API listens on {LOOPBACK} instead of {address}")
        address = LOOPBACK
    listener = listen(address, settings.api_port, "--api-host, --api-port, --no-api")
    return ApiRules(stack.enter_context(listener), settings, token, on_state=say)


def with_arguments(settings: Settings, args: argparse.Namespace) -> Settings:
    """The settings, in which an argument of the command line replaces its variable."""
    arguments = {
        "serve_address": args.host,
        "serve_port": args.port,
        "serve_concurrency": args.concurrency,
        "serve_timeout_s": args.timeout,
        "serve_grace_s": args.grace,
        "on_failure_url": args.on_failure,
        "queue_url": args.queue,
        "queue_batch_size": args.batch_size,
        "api_address": args.api_host,
        "api_port": args.api_port,
    }
    return override(settings, arguments)


def _queue(settings: Settings, clients: int) -> SqsQueue | None:
    """Raises StartError."""
    if not settings.queue_url:
        return None
    try:
        return SqsQueue(settings.queue_url, connections=_POLL_CONNECTIONS * clients)
    except QueueError as error:
        text = f"cannot use the queue {settings.queue_url}: {error}; {_QUEUE_HINT}"
        raise StartError(text) from error


def _event_store(settings: Settings) -> EventStore:
    """Raises StartError."""
    assert settings.jobs_db is not None
    folder = settings.jobs_db.parent
    try:
        return EventStore(folder)
    except (OSError, sqlite3.Error) as error:
        raise StartError(f"cannot use {folder}: {error}; set JOBS_DB to another folder") from error


def _serve(
    environ: Mapping[str, str],
    settings: Settings,
    listener: socket.socket,
    sqs: SqsQueue | None,
    api: "ApiRules | None",
    workers: Sequence[PooledWorker],
) -> int:
    function = _function(environ, settings)
    rules = ServiceRules(
        timeout_s=settings.serve_timeout_s,
        waiting=settings.serve_waiting,
        grace_s=settings.serve_grace_s,
        may_overtake=settings.jobs_may_overtake,
        events=AsyncRules(
            retries=settings.event_retries,
            max_age_s=settings.event_max_age_s,
            may_overtake=settings.jobs_may_overtake,
        ),
        poller=PollerRules(batch_size=settings.queue_batch_size),
    )
    pyworker = None
    # A single worker writes these lines itself.
    if settings.pyworker_log and len(workers) > 1:
        pyworker = PyWorkerLines(settings.pyworker_log)
    # SimpleQueue: its `put` is made for signal handlers, an Event's `set` may lock up in one.
    status: queue.SimpleQueue[int] = queue.SimpleQueue()
    with on_stop_signal(lambda _: status.put(0)):
        service = Service(
            function,
            rules,
            Sources(listener, _event_store(settings), sqs, api),
            workers,
            Listeners(
                line=show,
                state=say,
                ready=pyworker.note_ready if pyworker else lambda: None,
                failed=destination_of(settings.on_failure_url, say),
                gave_up=lambda failure: status.put(_note_end(failure, pyworker)),
            ),
        )
        with service:
            _announce(function, listener, sqs, api, len(workers))
            code = get_beside_signals(status)
            say(f"stopping, within {rules.grace_s:g} s" if code == 0 else "giving up")
    say("stopped")
    return code


def _note_end(failure: Failure, pyworker: PyWorkerLines | None) -> int:
    """Log why nothing more is taken; the exit status."""
    if pyworker:
        pyworker.note_failed()
    if failure.error_type != WORKER_UNFIT:
        return 1
    say(f"this machine is unfit for jobs, nothing more is taken: {failure.message}")
    return _EXIT_UNFIT


def _function(environ: Mapping[str, str], settings: Settings) -> Function:
    return Function(
        handler=HANDLER,
        environ=_with_store(environ, settings),
        concurrency=settings.serve_concurrency,
        extensions=extension_commands(),
        init_timeout_s=min(max(settings.serve_timeout_s, _MIN_INIT_S), _MAX_INIT_S),
    )


def _with_job_store(settings: Settings) -> Settings:
    """A queue delivers a message more than once, and the API lists jobs, so jobs are on record."""
    if settings.jobs_db:
        return settings
    return replace(settings, jobs_db=settings.worker_dir / "jobs.sqlite")


def _with_store(environ: Mapping[str, str], settings: Settings) -> Mapping[str, str]:
    """The environment of the handlers, which use the same store."""
    return environ if settings.jobs_table else {**environ, "JOBS_DB": str(settings.jobs_db)}


def extension_commands() -> Sequence[Sequence[str]]:
    """What is started before the handlers: the owner of ComfyUI."""
    return [[sys.executable, "-m", "runtime", "extension"]]


def _announce(
    function: Function,
    listener: socket.socket,
    sqs: SqsQueue | None,
    api: "ApiRules | None",
    workers: int,
) -> None:
    address, port = listener.getsockname()[:2]
    on_workers = f" on each of {workers} workers" if workers > 1 else ""
    say(
        f"listening on http://{address}:{port}, function {function.name},"
        f" {function.concurrency} at a time{on_workers}"
    )
    if api:
        address, port = api.listener.getsockname()[:2]
        say(f"HTTP API on http://{address}:{port}, described at /docs")
    if sqs:
        say(f"taking messages from {sqs.arn}")


def say(text: str) -> None:
    """A line of the host's own, on stderr."""
    _write(sys.stderr, f"host: {text}")


def show(line: str) -> None:
    """A line of a handler or an extension, on stdout as on Lambda."""
    _write(sys.stdout, line)


def _write(stream: TextIO, line: str) -> None:
    # One write, so that lines of several threads do not mix. The reader may be gone.
    with contextlib.suppress(OSError, ValueError):
        stream.write(f"{line}\n")
        stream.flush()
