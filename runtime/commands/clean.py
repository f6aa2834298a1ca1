"""`lambda-comfyui clean`: removes now what housekeeping removes, or lists it with `--dry-run`.

What is removed is decided in runtime/worker/housekeeping.py.
"""

import argparse
from contextlib import closing

from handler.settings import Settings
from handler.worker_connection import WorkerConnection
from handler.worker_protocol import SOCKET_NAME, GetState, ProtocolError, Status
from runtime.errors import LambdaComfyUIError
from runtime.worker.housekeeping import clean, find_due

_TIMEOUT_S = 10.0


class UnreadableWorkerError(LambdaComfyUIError):
    """A worker runs, but its jobs are not known; the message names its socket."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="list what would be removed, and remove nothing"
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0. One line on stdout for each file or folder: its size, its path, and the reason.

    Raises UnreadableWorkerError.
    """
    act = find_due if args.dry_run else clean
    removals = act(settings, _running_since(settings))
    for removal in removals:
        print(f"{removal.size_bytes / 1e6:10.1f} MB  {removal.path}  {removal.reason}")
    total_mb = sum(removal.size_bytes for removal in removals) / 1e6
    done = "would be removed" if args.dry_run else "removed"
    print(f"{total_mb:10.1f} MB in {len(removals)} files and folders {done}")
    return 0


def _running_since(settings: Settings) -> float | None:
    """When the oldest running job of the worker began; None without a job or a worker."""
    path = settings.worker_dir / SOCKET_NAME
    try:
        with closing(WorkerConnection(path, _TIMEOUT_S)) as connection:
            connection.send(GetState(id=1), _TIMEOUT_S)
            answer = connection.receive(1, _TIMEOUT_S)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except (OSError, ProtocolError) as error:
        raise UnreadableWorkerError(f"the worker at {path} does not answer: {error}") from error
    if not isinstance(answer, Status):
        raise UnreadableWorkerError(f"the worker at {path} answered {answer.NAME}, expected status")
    return answer.worker.running_since
