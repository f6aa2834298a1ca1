"""Serves the HTTP API of a host with uvicorn, in a thread: https://www.uvicorn.org/."""

import socket
import threading
from typing import Any

import uvicorn

_KEEP_ALIVE_S = 75
_END_WITHIN_S = 2


class HttpFront:
    """Serves `app` on `listener` from `start` to `stop`."""

    def __init__(self, app: Any, listener: socket.socket) -> None:
        # Accepted connections inherit it. asyncio sets it only for sockets with a protocol number,
        # and head and body of an answer are two writes: 40 ms each (Nagle against delayed ACK).
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_END_WITHIN_S,
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="http-front", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the connections; calls that are not answered within _END_WITHIN_S are cut off."""
        self._server.should_exit = True
        self._thread.join(2 * _END_WITHIN_S)
