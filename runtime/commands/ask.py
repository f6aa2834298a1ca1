"""`lambda-comfyui ask OPERATION`: a request to this machine's worker, its answer as JSON.

What can be asked, and what is answered, is in handler/worker_protocol.py.
"""

import argparse
import json
import sys

from handler.settings import Settings
from handler.worker_codec import readable
from handler.worker_protocol import (
    DEPTHS,
    SOCKET_NAME,
    Answer,
    BenchmarkDone,
    Depth,
    Drain,
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
)
from runtime.worker_request import ask_worker


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
        answer = ask_worker(path, request)
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
