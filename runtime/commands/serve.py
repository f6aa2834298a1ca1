"""`python -m runtime serve`: this machine as a worker of a queue, and as a Lambda endpoint.

The command line and the settings meet here; what serves is runtime/lambda_host/service.py.
"""

import argparse
import contextlib
import os
import queue
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TextIO

from handler.settings import Settings
from runtime.commands.invoke import HANDLER, seconds
from runtime.lambda_host.async_invocations import AsyncRules
from runtime.lambda_host.destination import destination_of
from runtime.lambda_host.function import Function
from runtime.lambda_host.service import Service, ServiceRules
from runtime.lambda_host.sqs_poller import PollerRules
from runtime.lambda_host.sqs_queue import QueueError, SqsQueue
from runtime.process.signals import get_beside_signals

# As on Managed Instances: the function's timeout, but at least 130 s and at most 900.
_MIN_INIT_S, _MAX_INIT_S = 130.0, 900.0
_LISTEN_BACKLOG = 128
_POLL_CONNECTIONS = 2  # of each poller: its own calls and its heartbeat


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_endpoint_arguments(parser)
    parser.add_argument("--queue", metavar="URL", help="an SQS queue (QUEUE_URL)")
    parser.add_argument(
        "--batch-size", type=int, choices=range(1, 11), metavar="N", help="messages of one event"
    )


def add_endpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """What `serve` and `start-lambda` have in common; a variable stands for what is not given."""
    parser.add_argument("--host", metavar="ADDRESS", help="listen there (SERVE_ADDRESS)")
    parser.add_argument("--port", type=_port, metavar="N", help="0: any free one (SERVE_PORT)")
    parser.add_argument(
        "--concurrency",
        type=_positive,
        metavar="N",
        help="events at the same time (SERVE_CONCURRENCY)",
    )
    parser.add_argument(
        "--timeout", type=seconds, metavar="S", help="seconds of one event (SERVE_TIMEOUT)"
    )
    parser.add_argument(
        "--on-failure", metavar="URL", help="queue or HTTP address for lost events (ON_FAILURE_URL)"
    )
    parser.add_argument(
        "--grace", type=seconds, metavar="S", help="seconds that a stop may take (SERVE_GRACE)"
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0: stopped by SIGTERM or SIGINT; 1: it could not start, or its environment cannot."""
    address, port = args.host or settings.serve_address, _given(args.port, settings.serve_port)
    queue_url = args.queue or settings.queue_url
    concurrency = args.concurrency or settings.serve_concurrency
    # Before anything is started: these are what people get wrong.
    try:
        listener = socket.create_server((address, port), backlog=_LISTEN_BACKLOG)
    except OSError as error:
        say(f"cannot listen on {address}:{port}: {error.strerror or error}")
        return 1
    with listener:
        try:
            connections = _POLL_CONNECTIONS * concurrency
            sqs = SqsQueue(queue_url, connections=connections) if queue_url else None
        except QueueError as error:
            say(f"cannot use the queue {queue_url}: {error}")
            return 1
        return _serve(args, settings, listener, sqs)


def _with_job_store(environ: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """A queue delivers more than once, so a host of one keeps what it has answered."""
    if settings.jobs_table or settings.jobs_db:
        return dict(environ)
    return {**environ, "JOBS_DB": str(settings.worker_dir / "jobs.sqlite")}


def _serve(
    args: argparse.Namespace,
    settings: Settings,
    listener: socket.socket,
    sqs: SqsQueue | None,
) -> int:
    rules = _rules(args, settings)
    function = Function(
        handler=HANDLER,
        environ=_with_job_store(os.environ, settings),
        concurrency=args.concurrency or settings.serve_concurrency,
        extensions=extension_commands(),
        init_timeout_s=min(max(rules.timeout_s, _MIN_INIT_S), _MAX_INIT_S),
    )
    with _stops() as stops:
        service = Service(
            function,
            rules,
            listener,
            sqs,
            on_line=show,
            on_state=say,
            on_failure=destination_of(args.on_failure or settings.on_failure_url, say),
            on_give_up=lambda: stops.put(1),
        )
        with service:
            _announce(function, listener, sqs)
            status = get_beside_signals(stops)
            say(f"stopping, within {rules.grace_s:g} s" if status == 0 else "giving up")
    say("stopped")
    return status


def _rules(args: argparse.Namespace, settings: Settings) -> ServiceRules:
    batch_size = getattr(args, "batch_size", None) or settings.queue_batch_size
    return ServiceRules(
        timeout_s=args.timeout or settings.serve_timeout_s,
        waiting=settings.serve_waiting,
        grace_s=args.grace or settings.serve_grace_s,
        events=AsyncRules(retries=settings.event_retries, max_age_s=settings.event_max_age_s),
        poller=PollerRules(batch_size=batch_size),
    )


def extension_commands() -> Sequence[Sequence[str]]:
    """What is started before the handlers: the owner of ComfyUI."""
    return [[sys.executable, "-m", "runtime", "extension"]]


@contextmanager
def _stops() -> Iterator["queue.SimpleQueue[int]"]:
    """Gets the exit status when it is time to stop. A second signal does not wait."""
    # SimpleQueue: its `put` is made for signal handlers, an Event's `set` may lock up in one.
    stops: queue.SimpleQueue[int] = queue.SimpleQueue()

    def stop(*_: object) -> None:
        for each in previous:
            signal.signal(each, signal.SIG_DFL)
        stops.put(0)

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, stop)
    try:
        yield stops
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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
    # One write, so that lines of several threads do not mix; and nobody has to read them.
    with contextlib.suppress(OSError, ValueError):
        stream.write(f"{line}\n")
        stream.flush()


def _positive(raw: str) -> int:
    if (value := int(raw)) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more: {raw}")
    return value


def _port(raw: str) -> int:
    if not 0 <= (value := int(raw)) <= 65_535:
        raise argparse.ArgumentTypeError(f"expected 0 to 65535: {raw}")
    return value


def _given(value: int | None, default: int) -> int:
    return default if value is None else value
