"""What tests ask a worker, in the messages of its protocol, and an answer of one."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from handler.worker_connection import WorkerConnection
from handler.worker_protocol import (
    Answer,
    BenchmarkResult,
    EndJob,
    GetState,
    Request,
    Status,
    Wake,
    WorkerStatus,
)

PATIENCE_S = 60.0
_ids = itertools.count(1)

BENCHMARK_RESULT = BenchmarkResult(
    at=1.7e9,
    score=2.0,
    seconds=50.0,
    runs=1,
    workflow="wan.json",
    workflow_hash="0b3b",
    gpu="NVIDIA L40S",
    driver="580.95.05",
    comfyui="0.3.75",
    torch="2.14.1",
    warning="",
)


def connect(path: Path) -> WorkerConnection:
    """A connection to the worker at `path`, once it listens.

    No other connection is tried first: a leased worker ends when its only connection closes.
    """
    give_up = time.monotonic() + PATIENCE_S
    while True:
        try:
            return WorkerConnection(path, PATIENCE_S)
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def send(connection: WorkerConnection, kind: Callable[..., Request], **fields: Any) -> Request:
    """Send a request of this kind; the request, with its id."""
    request = kind(id=next(_ids), **fields)
    connection.send(request, PATIENCE_S)
    return request


def final_answer(connection: WorkerConnection, request: Request) -> Answer:
    """The last answer to the request: of Wake, the one that comes when the worker has settled."""
    answer = connection.receive(request.id, PATIENCE_S)
    while isinstance(answer, Status) and not answer.is_final:
        answer = connection.receive(request.id, PATIENCE_S)
    return answer


def ask(connection: WorkerConnection, kind: Callable[..., Request], **fields: Any) -> Answer:
    return final_answer(connection, send(connection, kind, **fields))


def status(
    connection: WorkerConnection, kind: Callable[..., Request] = GetState, **fields: Any
) -> WorkerStatus:
    """How the worker is after a request of this kind."""
    return status_in(ask(connection, kind, **fields))


def status_in(answer: Answer) -> WorkerStatus:
    assert isinstance(answer, Status), answer
    return answer.worker


def comfyui_pid(worker: WorkerStatus) -> int:
    """The process id of its ComfyUI, which runs."""
    assert worker.comfyui_pid is not None
    return worker.comfyui_pid


def wake(connection: WorkerConnection) -> WorkerStatus:
    """Begin a job; how the worker is when it has settled."""
    return status(connection, Wake, models=())


def end_job(connection: WorkerConnection) -> WorkerStatus:
    """End the job; how the worker is then."""
    send(connection, EndJob)
    return status(connection)
