"""Servers that answer otherwise than a client expects: the file comes right, or an error soon."""

import gzip
import random
import re
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from handler.settings import Settings
from runtime.models import download as download_module
from runtime.models import file_download, http_connection
from runtime.models.download import Downloader, FileState, Phase
from runtime.models.errors import (
    AccessDeniedError,
    ConnectionLostError,
    TooSlowError,
    WrongSizeError,
)
from runtime.models.manifest import ModelFile
from runtime.models.patience import Patience

pytestmark = pytest.mark.slow

SIZE = 1_000_003
CONTENT = random.Random(2).randbytes(SIZE)
IMPATIENT = Patience(tries=3, first_pause_s=0.01, longest_pause_s=0.05, window_s=2.0)
# So that a client which waits for the end does so no longer than its test.
_DRIPS_FOR_S = 20.0
# How many connections to one server are made at the same time, less that of the other server.
_SILENT = 3


@dataclass(frozen=True)
class Question:
    """A request: its path, its range, and how many requests of the path there were before."""

    path: str
    start: int
    end: int
    number: int

    @property
    def is_first_byte(self) -> bool:
        """How a source is opened."""
        return self.end == 1


Answer = Callable[[Question], Iterator[bytes]]


@contextmanager
def hostile_server(answer: Answer) -> Iterator[str]:
    """Sends what `answer` yields, byte for byte. A connection ends after an answer that says so."""
    numbers: dict[str, int] = {}

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while head := b"".join(iter(self.rfile.readline, b"\r\n")):
                path = head.split(b" ")[1].decode()
                found = re.search(rb"bytes=(\d+)-(\d+)", head)
                assert found
                number = numbers[path] = numbers.get(path, -1) + 1
                sent = b""
                for piece in answer(Question(path, int(found[1]), int(found[2]) + 1, number)):
                    self.wfile.write(piece)
                    sent = sent or piece
                if b"Connection: close" in sent:
                    return

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 50

        def handle_error(self, *_: object) -> None:
            """A client that leaves such a server is right."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def model(url: str, size: int | None = SIZE) -> ModelFile:
    return ModelFile(name="a.safetensors", folder="vae", sources=(url,), size_bytes=size)


def download(
    url: str, folder: Path, *, size: int | None = SIZE, patience: Patience = IMPATIENT
) -> FileState:
    file = model(url, size)
    target = folder / file.name
    with Downloader(Settings(), connections=4, patience=patience) as downloader:
        downloader.add(file, target)
        assert downloader.wait([target], _DRIPS_FOR_S / 2), "it still waits"
        return downloader.state(target)


def headers(status: int, length: int, *others: str) -> bytes:
    lines = [f"HTTP/1.1 {status} -", f"Content-Length: {length}", 'ETag: "1"', *others]
    return "\r\n".join([*lines, "", ""]).encode()


def part(question: Question, *others: str, content: bytes = CONTENT) -> Iterator[bytes]:
    """The right answer."""
    end = min(question.end, len(content))
    where = f"Content-Range: bytes {question.start}-{end - 1}/{len(content)}"
    yield headers(206, end - question.start, where, *others)
    yield content[question.start : end]


def drip() -> Iterator[bytes]:
    until = time.monotonic() + _DRIPS_FOR_S
    while time.monotonic() < until:
        time.sleep(0.05)
        yield b"x"


def test_body_that_drips_is_left_also_if_its_server_will_close_the_connection(
    tmp_path: Path,
) -> None:
    def answer(question: Question) -> Iterator[bytes]:
        if question.is_first_byte:
            yield from part(question)
        else:
            yield next(part(question, "Connection: close"))
            yield from drip()

    with hostile_server(answer) as url:
        assert isinstance(download(f"{url}/a", tmp_path).error, TooSlowError)


@pytest.mark.parametrize(
    "first_line",
    [
        pytest.param(headers(206, 60_000, f"Content-Range: bytes 0-0/{SIZE}"), id="first byte"),
        pytest.param(headers(302, 60_000, "Location: /other"), id="redirect"),
        pytest.param(headers(403, 60_000, "Content-Type: application/xml"), id="refusal"),
    ],
)
def test_body_of_the_first_answer_that_drips_is_left(
    first_line: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connection, "ANSWER_WITHIN_S", 0.5)

    def answer(_: Question) -> Iterator[bytes]:
        yield first_line
        yield from drip()

    with hostile_server(answer) as url:
        assert "no answer within 0.5 s" in str(download(f"{url}/a", tmp_path).error)


@pytest.mark.parametrize("says_so", [True, False])
def test_server_that_sends_less_than_was_asked_for_is_asked_for_the_rest(
    says_so: bool, tmp_path: Path
) -> None:
    def answer(question: Question) -> Iterator[bytes]:
        end = min(question.end, question.start + 100_000)
        last = (end if says_so else question.end) - 1
        where = f"Content-Range: bytes {question.start}-{last}/{SIZE}"
        yield headers(206, end - question.start, where)
        yield CONTENT[question.start : end]

    with hostile_server(answer) as url:
        assert download(f"{url}/a", tmp_path).error is None
    assert (tmp_path / "a.safetensors").read_bytes() == CONTENT


def test_file_that_a_server_compresses_is_no_model(tmp_path: Path) -> None:
    compressed = gzip.compress(CONTENT)

    def answer(question: Question) -> Iterator[bytes]:
        return part(question, "Content-Encoding: gzip", content=compressed)

    with hostile_server(answer) as url:
        error = download(f"{url}/a", tmp_path, size=None).error

    assert isinstance(error, WrongSizeError)
    assert "compressed (gzip)" in str(error)
    assert not (tmp_path / "a.safetensors").exists()


def test_server_that_was_silent_once_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connection, "READ_TIMEOUT_S", 2.0)

    def answer(question: Question) -> Iterator[bytes]:
        if question.number == 0:
            time.sleep(4)
            yield headers(500, 0, "Connection: close")
        else:
            yield from part(question)

    with hostile_server(answer) as url:
        assert download(f"{url}/a", tmp_path).error is None
    assert (tmp_path / "a.safetensors").read_bytes() == CONTENT


def silence(_: Question) -> Iterator[bytes]:
    time.sleep(_DRIPS_FOR_S)
    yield headers(500, 0, "Connection: close")


def test_source_that_stays_silent_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(file_download, "ANSWER_WITHIN_S", 0.5)
    patience = replace(IMPATIENT, tries=1000)

    with hostile_server(silence) as url:
        error = download(f"{url}/a", tmp_path, patience=patience).error

    assert isinstance(error, ConnectionLostError)
    assert "timed out" in str(error)


def test_server_that_is_silent_holds_up_no_other_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "_HEAD_START_S", 0.0)
    are_asked = threading.Semaphore(0)

    def stay_silent(question: Question) -> Iterator[bytes]:
        are_asked.release()
        return silence(question)

    def answer(question: Question) -> Iterator[bytes]:
        if question.is_first_byte:
            for _ in range(_SILENT):
                are_asked.acquire(timeout=_DRIPS_FOR_S / 4)
        yield from part(question)

    with (
        hostile_server(answer) as url,
        hostile_server(stay_silent) as silent_url,
        Downloader(Settings(), connections=4, patience=IMPATIENT) as downloader,
    ):
        downloader.add(model(f"{url}/a"), tmp_path / "a.safetensors")
        for number in range(_SILENT + 1):
            downloader.add(model(f"{silent_url}/{number}"), tmp_path / f"{number}.safetensors")
        assert downloader.wait([tmp_path / "a.safetensors"], _DRIPS_FOR_S / 2), "it still waits"
        assert downloader.state(tmp_path / "a.safetensors").error is None


def signed(question: Question, requests: int) -> Iterator[bytes]:
    """`/a` leads to a new URL each time, which may be used so often."""
    if question.path == "/a":
        yield headers(302, 0, f"Location: /signed/{question.number}")
    elif question.number >= requests:
        yield headers(403, 0)
    else:
        yield from part(question)


def test_url_that_is_refused_after_some_requests_is_asked_for_again(tmp_path: Path) -> None:
    with hostile_server(lambda question: signed(question, 3)) as url:
        assert download(f"{url}/a", tmp_path).error is None
    assert (tmp_path / "a.safetensors").read_bytes() == CONTENT


@pytest.mark.parametrize("fresh_s", [0.0, 30.0])
def test_source_whose_urls_bring_nothing_is_an_error(
    fresh_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_download, "_FRESH_S", fresh_s)
    with hostile_server(lambda question: signed(question, 1)) as url:
        state = download(f"{url}/a", tmp_path)

    assert state.phase is Phase.FAILED
    assert isinstance(state.error, AccessDeniedError)
