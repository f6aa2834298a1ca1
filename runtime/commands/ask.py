"""`lambda-comfyui ask OPERATION`: a request to this machine's worker, its answer as JSON.

What can be asked, and what is answered, is in handler/worker_protocol.py.
"""

import argparse
import contextlib
import json
import sys

from handler.settings import Settings
from handler.worker_connection import WorkerConnection
from handler.worker_protocol import (
    DEPTHS,
    SOCKET_NAME,
    Answer,
    BenchmarkDone,
    Depth,
    Drain,
    EndJob,
    GetLog,
    GetState,
    LogLines,
    ProtocolError,
    Refused,
    Request,
    Restart,
    RunBenchmark,
    Sleep,
    Status,
    Wake,
    readable,
)

_TIMEOUT_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("operation", choices=tuple(_requests(Depth.STOP)))
    parser.add_argument(
        "--depth",
        choices=tuple(DEPTHS),
        default=Depth.STOP.word,
        help=f"of `{Sleep.NAME}`: unload the models, stop ComfyUI, or keep nothing"
        " (default: %(default)s)",
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0: done, the answer is on stdout; 1: refused, or no worker runs."""
    path = settings.worker_dir / SOCKET_NAME
    request = _requests(DEPTHS[args.depth])[args.operation]
    try:
        with contextlib.closing(WorkerConnection(path, _TIMEOUT_S)) as connection:
            answer = _ask(connection, request)
    except OSError as error:
        reason = error.strerror or error
        hint = "`lambda-comfyui worker` starts one"
        print(f"no worker answers at {path}: {reason}; {hint}", file=sys.stderr)
        return 1
    except ProtocolError as error:
        print(f"the answer of the worker at {path} cannot be read: {error}", file=sys.stderr)
        return 1
    print(_shown(answer))
    return 1 if isinstance(answer, Refused) else 0


def _requests(depth: Depth) -> dict[str, Request]:
    """What can be asked here, by name."""
    requests: list[Request] = [
        GetState(id=1),
        GetLog(id=1),
        Wake(id=1, models=()),
        Sleep(id=1, depth=depth),
        Drain(id=1),
        Restart(id=1),
        RunBenchmark(id=1),
    ]
    return {request.NAME: request for request in requests}


def _ask(connection: WorkerConnection, request: Request) -> Answer:
    """The final answer to the request, for which it waits as long as it takes."""
    connection.send(request, _TIMEOUT_S)
    answer = connection.receive(request.id, None)
    while isinstance(answer, Status) and not answer.is_final:
        answer = connection.receive(request.id, None)
    if isinstance(request, Wake):
        # The next command may be `sleep`, which a job that is still counted would forbid.
        state = GetState(id=request.id + 2)
        connection.send(EndJob(id=request.id + 1), _TIMEOUT_S)
        connection.send(state, _TIMEOUT_S)
        connection.receive(state.id, None)
    return answer


def _shown(answer: Answer) -> str:
    match answer:
        case Status():
            return readable(answer.worker)
        case BenchmarkDone():
            return readable(answer.result)
        case LogLines():
            return json.dumps({"lines": answer.lines}, indent=2)
        case Refused():
            return json.dumps({"error": answer.reason}, indent=2)
