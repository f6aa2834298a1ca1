"""A server of model files that can be slow, and that can be told to misbehave."""

import contextlib
import hashlib
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_PIECE_BYTES = 64 * 1024


@dataclass(kw_only=True)
class Faults:
    """What is wrong with one file. A number that is counted down is one of answers with bytes."""

    statuses: list[int] = field(default_factory=list)
    """Given instead of the file, one for each request, first to last."""
    always_status: int | None = None
    retry_after: str = ""
    cuts: int = 0
    """How many answers end after `cut_after` bytes; -1: all."""
    cut_after: int = 0
    wrong_answers: int = 0
    """How many answers have one wrong byte; -1: all."""
    etag_changes_after: int | None = None
    """After this many answers the file is another one, by its ETag."""
    etag_changes: bool = False
    """It is another one in each answer."""
    truncated_to: int | None = None
    """The bytes that are left of the file, although its length is what it was."""
    dripping_answers: int = 0
    """How many answers come at `drip_bytes_per_s`; -1: all."""
    drip_bytes_per_s: float = 10.0
    """Also of the headers, if these drip."""
    drips_headers: bool = False
    """The headers come at that rate, and have no end."""
    has_no_ranges: bool = False
    has_unknown_size: bool = False
    """Ranges are of a file of unknown size."""
    last_modified: str = ""
    """Sent instead of the ETag."""
    content_type: str = "application/octet-stream"
    redirects_to: str = ""
    is_endless: bool = False
    """The body of the redirect has no end."""
    token: str = ""
    """What the header Authorization must have."""


class ModelServer:
    """Files in memory. Everything may be changed while it runs."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.faults: dict[str, Faults] = {}
        self.bytes_per_s: float | None = None
        """Of all connections together."""
        self.sent_bytes: Counter[str] = Counter()
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.lock = threading.Lock()
        self._free_at = time.monotonic()
        self._server = _HttpServer(self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
            self.url = f"https://localhost:{self._server.server_port}"

    def add(self, name: str, content: bytes, faults: Faults | None = None) -> str:
        """The URL of a file."""
        self.files[f"/{name}"] = content
        self.etags[f"/{name}"] = f'"{hashlib.md5(content).hexdigest()}"'
        self.faults[f"/{name}"] = faults or Faults()
        return f"{self.url}/{name}"

    def serve_forever(self) -> None:
        self._server.serve_forever(poll_interval=0.05)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def throttle(self, size: int) -> None:
        """Wait until the line has room for these bytes: a token bucket for all connections."""
        if self.bytes_per_s is None:
            return
        with self.lock:
            self._free_at = max(self._free_at, time.monotonic()) + size / self.bytes_per_s
            until = self._free_at
        # In steps: the rate may be changed meanwhile.
        while self.bytes_per_s is not None and (left_s := until - time.monotonic()) > 0:
            time.sleep(min(left_s, 0.05))


@contextmanager
def model_server(tls: ssl.SSLContext | None = None) -> Iterator[ModelServer]:
    server = ModelServer(tls)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that has gone, or trusts nobody, is no error."""

    def __init__(self, owner: ModelServer) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def owner(self) -> ModelServer:
        assert isinstance(self.server, _HttpServer)
        return self.server.owner

    def do_GET(self) -> None:
        # A proxy gets a whole URL.
        path = urlsplit(self.path).path
        with self.owner.lock:
            self.owner.requests.append((path, dict(self.headers)))
            faults = self.owner.faults.get(path, Faults())
            status = faults.statuses.pop(0) if faults.statuses else faults.always_status
        if faults.token and self.headers.get("Authorization") != faults.token:
            status = 401
        if path not in self.owner.files and not faults.redirects_to:
            status = 404
        if faults.drips_headers:
            self._drip_headers(faults.drip_bytes_per_s)
        elif status:
            self._refuse(status, faults.retry_after)
        elif faults.redirects_to:
            self.send_response(302)
            self.send_header("Location", faults.redirects_to)
            if faults.is_endless:
                self.end_headers()
                self._send_until_closed()
                return
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._send(path, self.owner.files[path], faults)

    def do_HEAD(self) -> None:
        path = self.path.partition("?")[0]
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.owner.files[path])))
        self.send_header("ETag", self.owner.etags[path])
        self.end_headers()

    def _drip_headers(self, bytes_per_s: float) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.write(b"HTTP/1.1 206 Partial Content\r\nX-Drip: ")
            while True:
                self.wfile.write(b"x")
                time.sleep(1 / bytes_per_s)

    def _send_until_closed(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(bytes(_PIECE_BYTES))

    def _refuse(self, status: int, retry_after: str) -> None:
        self.send_response(status)
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, path: str, content: bytes, faults: Faults) -> None:
        etag = self.owner.etags[path]
        if faults.etag_changes:
            etag = f'"{time.monotonic_ns()}"'
        if faults.etag_changes_after is not None:
            faults.etag_changes_after -= 1
            etag = '"changed"' if faults.etag_changes_after < 0 else etag
        wanted = self.headers.get("If-Match")
        if wanted and wanted != etag:
            self._refuse(412, "")
            return
        found = _RANGE.fullmatch(self.headers.get("Range", ""))
        is_range = bool(found) and not faults.has_no_ranges
        start, last = (int(found[1]), int(found[2])) if found and is_range else (0, 2**62)
        last = min(last, len(content) - 1)
        self.send_response(206 if is_range else 200)
        if is_range:
            total = "*" if faults.has_unknown_size else len(content)
            self.send_header("Content-Range", f"bytes {start}-{last}/{total}")
        self.send_header("Content-Length", str(last + 1 - start))
        self.send_header("Content-Type", faults.content_type)
        if faults.last_modified:
            self.send_header("Last-Modified", faults.last_modified)
        else:
            self.send_header("ETag", etag)
        self.end_headers()
        self._send_bytes(path, memoryview(content)[start : last + 1], start, faults)

    def _send_bytes(self, path: str, data: memoryview, start: int, faults: Faults) -> None:
        # The first byte alone is how a source is opened.
        if len(data) > 1:
            with self.owner.lock:
                end = self._end_of(start, len(data), faults)
                is_wrong, faults.wrong_answers = _count_down(faults.wrong_answers)
                drips, faults.dripping_answers = _count_down(faults.dripping_answers)
            if is_wrong:
                data = memoryview(bytes([data[0] ^ 1]) + bytes(data[1:]))
        else:
            end, drips = len(data), False
        position = 0
        while position < end:
            size = 1 if drips else min(_PIECE_BYTES, end - position)
            if drips:
                time.sleep(1 / faults.drip_bytes_per_s)
            self.owner.throttle(size)
            try:
                self.wfile.write(data[position : position + size])
            except OSError:
                self.close_connection = True
                return
            position += size
            with self.owner.lock:
                self.owner.sent_bytes[path] += size
        if end < len(data):
            self.close_connection = True

    def _end_of(self, start: int, size: int, faults: Faults) -> int:
        """How many of the bytes are sent."""
        end = size
        is_cut, faults.cuts = _count_down(faults.cuts)
        if is_cut:
            end = min(end, faults.cut_after)
        if faults.truncated_to is not None:
            end = min(end, max(0, faults.truncated_to - start))
        return end

    def log_message(self, *_: object) -> None:
        pass


def _count_down(number: int) -> tuple[bool, int]:
    """Whether a fault still happens, and how often after this."""
    return number != 0, max(number - 1, -1) if number > 0 else number
