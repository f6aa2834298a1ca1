"""One request to the worker of this machine, and its final answer."""

import contextlib
from pathlib import Path

from handler.worker_connection import WorkerConnection
from handler.worker_protocol import Answer, EndJob, GetState, Request, Status, Wake

_TIMEOUT_S = 10.0


def ask_worker(socket: Path, request: Request) -> Answer:
    """The final answer to the request, for which it waits as long as it takes.

    Raises OSError if no worker answers, ProtocolError if its answer cannot be read.
    """
    with contextlib.closing(WorkerConnection(socket, _TIMEOUT_S)) as connection:
        connection.send(request, _TIMEOUT_S)
        answer = connection.receive(request.id, None)
        while isinstance(answer, Status) and not answer.is_final:
            answer = connection.receive(request.id, None)
        if isinstance(request, Wake):
            # The next request may be `sleep`, which a job that is still counted would forbid.
            state = GetState(id=request.id + 2)
            connection.send(EndJob(id=request.id + 1), _TIMEOUT_S)
            connection.send(state, _TIMEOUT_S)
            connection.receive(state.id, None)
        return answer
