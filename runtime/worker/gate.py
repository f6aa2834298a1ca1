"""Answers ComfyUI's loaders: whether a model file is complete, and how far it is.

The other side, and the messages, are in runtime/worker/inside_gate.py; in which order files come is
decided in runtime/models/supply.py.
"""

import contextlib
import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from handler.settings import Settings
from runtime.models.supply import ModelSupply
from runtime.worker.inside_gate import Answer

_SOCKET_NAME = "gate.sock"
_SERVER_ENDS_WITHIN_S = 0.05


def gate_socket(settings: Settings) -> Path:
    """The path of the socket that the loaders of this worker's ComfyUI ask."""
    return settings.worker_dir / _SOCKET_NAME


@contextmanager
def open_gate(path: Path, supply: ModelSupply) -> Iterator[None]:
    """Answer at the socket `path` until the context ends. Raises OSError."""
    path.unlink(missing_ok=True)
    with _Server(path, supply) as server:
        thread = threading.Thread(
            target=server.serve_forever, args=(_SERVER_ENDS_WITHIN_S,), daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            path.unlink(missing_ok=True)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def __init__(self, path: Path, supply: ModelSupply) -> None:
        self.supply = supply
        super().__init__(str(path), _Connection)


class _Connection(socketserver.StreamRequestHandler):
    """One load of one file, which ends with the connection."""

    server: _Server

    def handle(self) -> None:
        # A ComfyUI that was interrupted, or has died, does not wait for its answer.
        with contextlib.suppress(OSError, ValueError):
            path = Path(json.loads(self.rfile.readline()))
            with self.server.supply.load(path) as states:
                for state in states:
                    self.wfile.write(
                        Answer(
                            is_complete=state.is_complete,
                            failure=state.failure,
                            is_request_wrong=state.is_request_wrong,
                            done_bytes=state.done_bytes,
                            total_bytes=state.total_bytes,
                        ).encode()
                    )
                self.rfile.read()
