"""`lambda-comfyui update-workers COMMAND`: restarts the workers of a router, one after another.

The router gives a worker nothing more, the command is run when it has no request left, and the next
one follows when it is back. The state is the router's, so the command can be called again.
"""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import requests

from handler.settings import Settings
from runtime.commands.options import seconds
from runtime.errors import LambdaComfyUIError
from runtime.fleet.registry import USABLE, Status

_ASK_EVERY_S = 1.0
_TIMEOUT_S = 30.0
_NOT_FOUND = 404


class UpdateError(LambdaComfyUIError):
    """The workers were not all updated; the message names the one, and why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "restart_command",
        metavar="COMMAND",
        help="what restarts one worker; it is called with the worker's address",
    )
    parser.add_argument(
        "--within",
        type=seconds,
        default=1800.0,
        metavar="S",
        help="seconds that a worker's requests, and its start, may take each (default: 1800)",
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Returns 0 when all workers are back. Raises UpdateError."""
    if not settings.router_url:
        raise UpdateError("ROUTER_URL is not set: the address of the router, with its ROUTER_TOKEN")
    router = Router(settings.router_url, settings.router_token)
    workers = in_order(router.workers())
    for number, worker in enumerate(workers, start=1):
        _say(f"{number} of {len(workers)}: {worker['url']}")
        _update(router, worker, shlex.split(args.restart_command), args.within)
    _say(f"{len(workers)} workers are back")
    return 0


def in_order(workers: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Those that sleep first; a lost one, which has no process to restart, not at all."""
    present = [each for each in workers if each["status"] != Status.LOST]
    return sorted(present, key=lambda each: each["status"] != Status.INACTIVE)


class Router:
    """The router as its operator calls it. Its methods raise UpdateError."""

    def __init__(self, url: str, token: str) -> None:
        self._url, self._token = url, token

    def workers(self) -> Sequence[Mapping[str, Any]]:
        found: list[dict[str, Any]] = self._call("GET", "/workers").json()
        return found

    def drain(self, worker_id: int, *, is_drained: bool) -> None:
        """A worker that is not there needs it no more."""
        self._call("POST", "/drain/", {"id": worker_id, "drained": is_drained})

    def _call(self, method: str, path: str, body: Any = None) -> requests.Response:
        headers = {"Authorization": f"Bearer {self._token}"}
        try:
            answer = requests.request(
                method, self._url + path, json=body, headers=headers, timeout=_TIMEOUT_S
            )
        except requests.RequestException as error:
            text = f"the router at {self._url} does not answer: {type(error).__name__}"
            raise UpdateError(text) from error
        if not answer.ok and answer.status_code != _NOT_FOUND:
            reason = f"status {answer.status_code}, {answer.text[:200]}"
            raise UpdateError(f"the router at {self._url} refuses {path}: {reason}")
        return answer


def _update(
    router: Router, worker: Mapping[str, Any], restart: Sequence[str], within_s: float
) -> None:
    worker_id, url = worker["id"], worker["url"]

    def status_and_requests() -> tuple[str, int]:
        for each in router.workers():
            if each["id"] == worker_id:
                return each["status"], each["reqs_working"]
        return "", 0

    router.drain(worker_id, is_drained=True)
    if not _wait(lambda: not status_and_requests()[1], within_s):
        raise UpdateError(f"{url} still has requests after {within_s:g} s; it stays drained")
    command = [*restart, url]
    try:
        code = subprocess.run(command, check=False).returncode
    except OSError as error:
        raise UpdateError(
            f"{shlex.join(command)}: {error.strerror}; {url} stays drained"
        ) from error
    if code:
        raise UpdateError(f"{shlex.join(command)}: status {code}; {url} stays drained")
    # For a worker that was killed and so has not left.
    router.drain(worker_id, is_drained=False)
    if not _wait(lambda: status_and_requests()[0] in USABLE, within_s):
        status = status_and_requests()[0] or "absent"
        raise UpdateError(f"{url} is {status} {within_s:g} s after its restart")


def _wait(is_so: Callable[[], bool], within_s: float) -> bool:
    until = time.monotonic() + within_s
    while not is_so():
        if time.monotonic() >= until:
            return False
        time.sleep(_ASK_EVERY_S)
    return True


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
