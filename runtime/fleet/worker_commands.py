"""What a host does with its workers when its router says so: wake, or let sleep."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from handler.worker_protocol import Depth, ProtocolError, Request, Sleep, Wake
from runtime.worker_request import ask_worker

WAKE, SLEEP = Wake.NAME, Sleep.NAME
ACTIONS = (WAKE, SLEEP)


def command_workers(sockets: Sequence[Path], action: str) -> None:
    """Ask every worker, in threads of their own: a start takes a minute.

    A worker that runs a job does not sleep. How each is in the end is in the host's next report.
    """
    request = Wake(id=1, models=()) if action == WAKE else Sleep(id=1, depth=Depth.STOP)
    for socket in sockets:
        threading.Thread(target=_ask, args=(socket, request), daemon=True).start()


def _ask(socket: Path, request: Request) -> None:
    with suppress(OSError, ProtocolError):
        ask_worker(socket, request)
