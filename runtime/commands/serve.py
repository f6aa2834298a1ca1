"""`lambda-comfyui serve`: makes this machine a worker of a queue, and a Lambda endpoint.

This module joins the command line and the settings; runtime/lambda_host/service.py serves.
"""

import argparse
import contextlib
import queue
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TextIO

from handler.settings import Settings
from runtime.commands.options import port, seconds, whole_number
from runtime.extras import require
from runtime.lambda_host.async_invocations import AsyncRules
from runtime.lambda_host.destination import destination_of
from runtime.lambda_host.failures import WORKER_UNFIT, Failure
from runtime.lambda_host.function import HANDLER, Function
from runtime.lambda_host.service import Service, ServiceRules
from runtime.lambda_host.sqs_poller import PollerRules
from runtime.lambda_host.sqs_queue import QueueError, SqsQueue
from runtime.process.signals import get_beside_signals, on_stop_signal

# As on Managed Instances: the function's timeout, but at least 130 s and at most 900.
_MIN_INIT_S, _MAX_INIT_S = 130.0, 900.0
_LISTEN_BACKLOG = 128
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
    settings = with_arguments(settings, args)
    require("awslambdaric")
    # Before any process starts: a port in use and a missing queue are frequent mistakes.
    try:
        address = (settings.serve_address, settings.serve_port)
        listener = socket.create_server(address, backlog=_LISTEN_BACKLOG)
    except OSError as error:
        say(f"cannot listen on {address[0]}:{address[1]}: {_reason(error)} (--host, --port)")
        return 1
    with listener:
        try:
            sqs = _queue(settings)
        except QueueError as error:
            say(f"cannot use the queue {settings.queue_url}: {error}; {_QUEUE_HINT}")
            return 1
        return _serve(args.environ, settings, listener, sqs)


def _reason(error: OSError) -> str:
    """The operating system's text, without the address that `create_server` appends to it."""
    return str(error.strerror or error).partition(" (while attempting")[0]


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
    }
    return replace(settings, **{n: v for n, v in arguments.items() if v not in (None, "")})


def _queue(settings: Settings) -> SqsQueue | None:
    """Raises QueueError."""
    if not settings.queue_url:
        return None
    return SqsQueue(settings.queue_url, connections=_POLL_CONNECTIONS * settings.serve_concurrency)


def _serve(
    environ: Mapping[str, str], settings: Settings, listener: socket.socket, sqs: SqsQueue | None
) -> int:
    function = _function(environ, settings)
    rules = ServiceRules(
        timeout_s=settings.serve_timeout_s,
        waiting=settings.serve_waiting,
        grace_s=settings.serve_grace_s,
        events=AsyncRules(retries=settings.event_retries, max_age_s=settings.event_max_age_s),
        poller=PollerRules(batch_size=settings.queue_batch_size),
    )
    # SimpleQueue: its `put` is made for signal handlers, an Event's `set` may lock up in one.
    status: queue.SimpleQueue[int] = queue.SimpleQueue()
    with on_stop_signal(lambda _: status.put(0)):
        service = Service(
            function,
            rules,
            listener,
            sqs,
            on_line=show,
            on_state=say,
            on_failure=destination_of(settings.on_failure_url, say),
            on_give_up=lambda failure: status.put(_note_end(failure)),
        )
        with service:
            _announce(function, listener, sqs)
            code = get_beside_signals(status)
            say(f"stopping, within {rules.grace_s:g} s" if code == 0 else "giving up")
    say("stopped")
    return code


def _note_end(failure: Failure) -> int:
    """Log why nothing more is taken; the exit status."""
    if failure.error_type != WORKER_UNFIT:
        return 1
    say(f"this machine is unfit for jobs, nothing more is taken: {failure.message}")
    return _EXIT_UNFIT


def _function(environ: Mapping[str, str], settings: Settings) -> Function:
    return Function(
        handler=HANDLER,
        environ=_with_job_store(environ, settings),
        concurrency=settings.serve_concurrency,
        extensions=extension_commands(),
        init_timeout_s=min(max(settings.serve_timeout_s, _MIN_INIT_S), _MAX_INIT_S),
    )


def _with_job_store(environ: Mapping[str, str], settings: Settings) -> Mapping[str, str]:
    """A queue delivers a message more than once, so its handlers store their responses."""
    if settings.jobs_table or settings.jobs_db:
        return environ
    return {**environ, "JOBS_DB": str(settings.worker_dir / "jobs.sqlite")}


def extension_commands() -> Sequence[Sequence[str]]:
    """What is started before the handlers: the owner of ComfyUI."""
    return [[sys.executable, "-m", "runtime", "extension"]]


def _announce(function: Function, listener: socket.socket, sqs: SqsQueue | None) -> None:
    address, port = listener.getsockname()[:2]
    say(
        f"listening on http://{address}:{port}, function {function.name},"
        f" {function.concurrency} at a time"
    )
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
