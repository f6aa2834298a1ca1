"""One HTTP connection at a time, kept open between requests to the same server.

The bodies of answers go straight into the caller's buffer, which costs less CPU time per gigabyte
than any client library that was measured (benchmarks/weights_download.py).
"""

import contextlib
import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from functools import cache, cached_property, lru_cache
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi

from handler.outbound import Allowed, addresses_of
from runtime.models.errors import TooSlowError

# The longest time without one byte of an answer.
READ_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
# From the beginning of a connection until all headers are there: they may come byte by byte.
ANSWER_WITHIN_S = 60.0
# Simple servers let five connections wait to be accepted (request_queue_size of socketserver). A
# kernel drops the others, whose next attempt takes a second.
_NEW_AT_ONCE = 4
_BUFFER_BYTES = 512 * 1024
_NOT_IN_A_URL = re.compile(r"[^!-~]")


class ConnectionGate:
    """Lets a few threads connect to each server at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gates: dict[str, threading.Semaphore] = {}

    def to(self, netloc: str) -> threading.Semaphore:
        """The gate of one server: a server that is silent holds up no other one."""
        with self._lock:
            return self._gates.setdefault(netloc, threading.Semaphore(_NEW_AT_ONCE))


class HttpConnection:
    """The connection of one thread. Others may call `abort`, `interrupt` and `end_late_request`."""

    def __init__(self, gate: ConnectionGate) -> None:
        self._gate = gate
        self._server: tuple[Any, ...] = ()
        self._connection: http.client.HTTPConnection | None = None
        self._socket: socket.socket | None = None
        self._response: http.client.HTTPResponse | None = None
        self._aborted = False
        self._asked_at: float | None = None
        self._is_late = False

    @cached_property
    def buffer(self) -> memoryview:
        """For the body. Made when it is needed: a connection that opens a source reads none."""
        return memoryview(bytearray(_BUFFER_BYTES))

    def get(
        self, url: str, headers: Mapping[str, str], allowed: Allowed | None = None
    ) -> http.client.HTTPResponse:
        """Ask for a URL, without following redirects.

        `allowed` restricts the addresses of a caller's URL. Raises ForbiddenAddress, TooSlowError,
        OSError or http.client.HTTPException.
        """
        with self._in_time():
            return self._get(url, headers, allowed)

    def read_beginning(self, most_bytes: int) -> bytes:
        """The first bytes of the body, or all of it. Raises LateAnswer, OSError, HTTPException."""
        if self._response is None:
            return b""
        with self._in_time():
            return self._response.read(most_bytes)

    @contextlib.contextmanager
    def _in_time(self) -> Iterator[None]:
        """What `end_late_request` ends."""
        self._asked_at, self._is_late = time.monotonic(), False
        try:
            yield
        finally:
            self._asked_at = None
            # Instead of any error, and of an answer: headers that are cut count as complete.
            if self._is_late:
                raise TooSlowError(
                    f"no answer within {ANSWER_WITHIN_S:g} s, which is too slow to wait for"
                )

    def _get(
        self, url: str, headers: Mapping[str, str], allowed: Allowed | None
    ) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        server = (parts.scheme, parts.netloc, allowed)
        if self._aborted:
            raise ConnectionAbortedError("the download was stopped")
        if _NOT_IN_A_URL.search(parts.path + parts.query):
            raise http.client.InvalidURL
        if server != self._server or not self._is_kept():
            return self._ask_anew(parts, server, headers)
        try:
            return self._ask(parts, headers)
        except (ConnectionError, http.client.BadStatusLine):
            if self._aborted or self._is_late:
                raise
            # The server has closed the connection since the last answer, which is its right.
            return self._ask_anew(parts, server, headers)

    def keep(self) -> None:
        """The body was read from `fp` to its last byte: the next request may follow."""
        if self._response is not None and not self._response.chunked:
            self._response.close()

    def abort(self) -> None:
        """End the request under way, and refuse others. Any thread may call it."""
        self._aborted = True
        self.interrupt()

    def interrupt(self) -> None:
        """End the request under way: its thread gets an OSError. Any thread may call it."""
        # Not that of the HTTPConnection, which forgets it where the server will close it.
        if (sock := self._socket) is not None:
            try:
                # Not SSLSocket's own, which takes the TLS state away from the thread that reads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                return

    def end_late_request(self, now: float) -> None:
        """End a request that has been without its answer for too long. Any thread may call it."""
        asked_at = self._asked_at
        if asked_at is not None and now - asked_at > ANSWER_WITHIN_S:
            self._is_late = True
            self.interrupt()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._response is not None:
            # It alone has the socket where the server will close it.
            self._response.close()
        self._connection = self._response = self._socket = None

    def _is_kept(self) -> bool:
        """Whether the last answer was read to its end, and its server has kept the connection."""
        is_open = self._connection is not None and self._connection.sock is not None
        return is_open and self._response is not None and self._response.isclosed()

    def _ask_anew(
        self, parts: SplitResult, server: tuple[Any, ...], headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        self.close()
        self._asked_at = None
        with self._gate.to(parts.netloc):
            self._asked_at = time.monotonic()
            self._connection = _connection_to(
                parts, _proxy_of(parts.scheme, parts.netloc), server[2]
            )
            self._server = server
            self._connection.connect()
            self._socket = self._connection.sock
            self._socket.settimeout(READ_TIMEOUT_S)
            return self._ask(parts, headers)

    def _ask(self, parts: SplitResult, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        if self._connection is None or self._aborted:
            raise ConnectionAbortedError("the download was stopped")
        target = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
        if parts.scheme == "http" and _proxy_of(parts.scheme, parts.netloc):
            target = parts._replace(fragment="").geturl()
        given = {"Host": parts.netloc.rpartition("@")[2], "Accept-Encoding": "identity", **headers}
        # Without an answer, this connection is of no more use.
        self._response = None
        self._connection.request("GET", target, headers=given)
        self._response = self._connection.getresponse()
        return self._response


class _PinnedConnection(http.client.HTTPConnection):
    """Connects to a checked address of its host: a second look-up could give another one."""

    def __init__(
        self, host: str, port: int, allowed: Allowed, context: ssl.SSLContext | None
    ) -> None:
        super().__init__(host, port, timeout=CONNECT_TIMEOUT_S)
        self._allowed, self._context = allowed, context

    def connect(self) -> None:
        for address in addresses_of(self.host, self.port, self._allowed):
            try:
                sock = socket.create_connection((address, self.port), CONNECT_TIMEOUT_S)
                break
            except OSError as error:
                reason = error
        else:
            raise reason
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        if self._context:
            self.sock = self._context.wrap_socket(sock, server_hostname=self.host)


def _connection_to(
    parts: SplitResult, proxy: SplitResult | None, allowed: Allowed | None
) -> http.client.HTTPConnection:
    host, is_tls = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if is_tls else 80)
    if proxy:
        if allowed is not None:
            # A host without an address here may have one at the proxy.
            with contextlib.suppress(OSError, UnicodeError):
                addresses_of(host, port, allowed)
        connection = _plain_connection(proxy.hostname or "", proxy.port or 80, is_tls=is_tls)
        if is_tls:
            connection.set_tunnel(host, port)
        return connection
    if allowed is not None:
        return _PinnedConnection(host, port, allowed, _tls_context() if is_tls else None)
    return _plain_connection(host, port, is_tls=is_tls)


def _plain_connection(host: str, port: int, *, is_tls: bool) -> http.client.HTTPConnection:
    if is_tls:
        return http.client.HTTPSConnection(
            host, port, timeout=CONNECT_TIMEOUT_S, context=_tls_context()
        )
    return http.client.HTTPConnection(host, port, timeout=CONNECT_TIMEOUT_S)


@lru_cache(maxsize=100)
def _proxy_of(scheme: str, netloc: str) -> SplitResult | None:
    """The proxy that the environment names for this server: HTTPS_PROXY, NO_PROXY, …"""
    proxy = getproxies().get(scheme)
    if not proxy or proxy_bypass(netloc.rpartition("@")[2]):
        return None
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}")


@cache
def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    # Small images have no certificates of their own.
    context.load_verify_locations(certifi.where())
    return context
