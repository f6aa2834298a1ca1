"""An upload that nobody waits for any more ends before its file is stored."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from handler.artifacts import Artifact
from handler.job_folder import METADATA, JobMark
from handler.storage import S3Target, Storage

# Less than a multipart upload, more than the buffers of two sockets.
SIZE_BYTES = 7 * 1024 * 1024


class SlowBucket:
    """A bucket whose server reads only the beginning of an upload until `goes_on` is set."""

    def __init__(self) -> None:
        self.has_upload, self.goes_on = threading.Event(), threading.Event()
        self.received: list[int] = []
        self._threads: list[threading.Thread] = []
        self._server = socket.socket()
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        self._server.bind(("127.0.0.1", 0))
        self._server.listen()
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._begin(self._accept)

    def close(self) -> None:
        self.goes_on.set()
        # It ends `accept`, which `close` alone does not.
        self._server.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
        self._server.close()

    def _begin(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self._begin(self._answer, connection)

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            head = connection.recv(8192)
            if head.startswith(b"GET "):
                body = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
                    % (len(body), body)
                )
                return
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            received = len(connection.recv(1024))
            self.has_upload.set()
            self.goes_on.wait(60)
            with suppress(ConnectionResetError):
                while chunk := connection.recv(65_536):
                    received += len(chunk)
            self.received.append(received)


@contextmanager
def slow_bucket() -> Iterator[SlowBucket]:
    bucket = SlowBucket()
    try:
        yield bucket
    finally:
        bucket.close()


@pytest.mark.slow
@pytest.mark.parametrize("mark", [None, JobMark("job", {METADATA: "mark"})], ids=["new id", "id"])
def test_upload_ends_when_its_job_is_over(tmp_path: Path, mark: JobMark | None) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(SIZE_BYTES))
    artifact = Artifact("large.bin", path, "job/large.bin", "", "output", "1", "images")
    with slow_bucket() as bucket:
        target = S3Target("b", "a", "b", endpoint_url=bucket.url)
        uploads = Storage(60).uploads(target, is_callers=True, attempt=None, mark=mark)
        with uploads as begun:
            upload = begun.begin(artifact)
            assert bucket.has_upload.wait(60)
        bucket.goes_on.set()

        assert upload.result(60).upload_error
    assert max(bucket.received) < SIZE_BYTES
