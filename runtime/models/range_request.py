"""One ranged read: asks for the bytes, checks that they are of the same file, writes them."""

import http.client
import re

from runtime.models.answers import check_status
from runtime.models.errors import SourceChangedError
from runtime.models.foreign_errors import disk_errors, network_errors
from runtime.models.part_file import BLOCK_BYTES, PartFile
from runtime.models.ranges import RangeRun
from runtime.models.sources import Remote, shown, version_of

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


def receive_range(run: RangeRun, remote: Remote, part: PartFile) -> None:
    """Read the range until its end, or until it must stop. `run.position` says how far it came.

    Raises DownloadError.
    """
    headers = dict(remote.headers)
    if remote.has_ranges:
        headers["Range"] = f"bytes={run.position}-{run.end - 1}"
        # Neither a date nor a weak ETag: https://www.rfc-editor.org/rfc/rfc9110#field.if-match
        if remote.version and remote.version.startswith('"'):
            headers["If-Match"] = remote.version
    with network_errors(shown(remote.source)):
        answer = run.connection.get(remote.url, headers, remote.allowed)
        check_status(answer, run.connection, shown(remote.source))
        _check_same_file(answer, run, remote)
        end_of_answer = run.position + answer.length if answer.length is not None else None
        # A server may send less than it was asked for, and be asked for the rest:
        # https://www.rfc-editor.org/rfc/rfc9110#section-15.3.7
        end = run.end if end_of_answer is None else min(run.end, end_of_answer)
        if end == run.position:
            raise ConnectionError(f"asked for bytes from {run.position} on, got none")
        while run.position < end and not run.must_stop:
            _receive(answer, run, end, part)
        if run.position == end_of_answer:
            run.connection.keep()


def _receive(answer: http.client.HTTPResponse, run: RangeRun, end: int, part: PartFile) -> None:
    """Read about a block, and write what came, also of a line that breaks then."""
    # Straight from the socket into the buffer, for which HTTPResponse itself has no method.
    read = answer.readinto if answer.chunked else answer.fp.readinto1
    buffer, received = run.connection.buffer, 0
    wanted = min(end - run.position, len(buffer))
    try:
        while received < min(BLOCK_BYTES, wanted):
            size = read(buffer[received:wanted])
            if not size:
                raise ConnectionError(f"the line was cut after byte {run.position + received}")
            received += size
            run.received_bytes += size
    finally:
        with disk_errors(part.path):
            part.write(buffer[:received], run.position)
        run.position += received


def _check_same_file(answer: http.client.HTTPResponse, run: RangeRun, remote: Remote) -> None:
    replaced = f"{shown(remote.source)}: the file was replaced during the download"
    if (version := version_of(answer)) != remote.version:
        raise SourceChangedError(f"{replaced} ({remote.version}, now {version})")
    if not remote.has_ranges:
        if (length := answer.headers.get("Content-Length")) != str(remote.size_bytes):
            raise SourceChangedError(f"{replaced} ({remote.size_bytes} bytes, now {length})")
        return
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if answer.status != 206 or not found or int(found[1]) != run.position:
        raise ConnectionError(f"asked for bytes from {run.position} on, got others")
    if found[3] not in ("*", str(remote.size_bytes)):
        raise SourceChangedError(f"{replaced} ({remote.size_bytes} bytes, now {found[3]})")
