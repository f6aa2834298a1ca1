"""One connection to the worker: sends requests, and receives the answers to one of them.

What is sent is in handler/worker_protocol.py, as handler/worker_codec.py writes it; what a handler
asks, in handler/worker_client.py.
"""

import socket
import time
from pathlib import Path

from handler.worker_codec import decode_answer, encode
from handler.worker_protocol import Answer, Request

_CHUNK_BYTES = 65536
_LEAST_WAIT_S = 0.001


class WorkerConnection:
    """Open from its making to `close`. Used by one thread."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        """Connect to the socket at `path`. Raises OSError when no worker takes the connection."""
        self._unread = b""
        self._socket = socket.socket(socket.AF_UNIX)
        # A frozen worker takes no connections when its queue of new ones is full.
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise

    def send(self, request: Request, timeout_s: float) -> None:
        """Raises OSError; a request may then be sent in part, and the connection is of no use."""
        self._socket.settimeout(timeout_s)
        self._socket.sendall(encode(request))

    def receive(self, request_id: int, timeout_s: float | None) -> Answer:
        """The next answer to that request; answers to other requests are skipped.

        Raises TimeoutError after `timeout_s` seconds, ConnectionError when the worker has ended,
        ProtocolError. After a TimeoutError it may be called again.
        """
        give_up = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            answer = decode_answer(self._read_line(give_up))
            if answer.id == request_id:
                return answer

    def close(self) -> None:
        """End the lease, and with it the job."""
        self._socket.close()

    def _read_line(self, give_up: float | None) -> bytes:
        while b"\n" not in self._unread:
            if give_up is not None:
                self._socket.settimeout(max(give_up - time.monotonic(), _LEAST_WAIT_S))
            else:
                self._socket.settimeout(None)
            chunk = self._socket.recv(_CHUNK_BYTES)
            if not chunk:
                raise ConnectionResetError("the worker has ended")
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return line
