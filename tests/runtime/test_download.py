"""Model files come whole and right, or with a clear error: never wrong under their final name."""

import errno
import hashlib
import os
import random
import re
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from handler.outbound import Allowed
from handler.settings import PROJECT, Settings
from runtime.models import file_download, http_connection
from runtime.models.download import Downloader, FileState, Phase
from runtime.models.errors import (
    AccessDeniedError,
    ConnectionLostError,
    DiskFullError,
    DownloadError,
    ServerFailedError,
    SourceChangedError,
    SourceMissingError,
    TargetError,
    TooSlowError,
    WrongHashError,
    WrongSizeError,
)
from runtime.models.manifest import ModelFile
from runtime.models.part_file import BLOCK_BYTES
from runtime.models.parts import Parts, is_complete, is_placeholder
from runtime.models.patience import Patience
from tests.model_server import Faults, ModelServer, model_server
from tests.processes import wait_until

pytestmark = pytest.mark.slow

SIZE = 5_000_003
CONTENT = random.Random(1).randbytes(SIZE)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
# A source that fails is left after a moment.
IMPATIENT = Patience(tries=3, first_pause_s=0.01, longest_pause_s=0.05)
ALL = -1


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as server:
        yield server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "vae" / "a.safetensors"


def model(*sources: str, sha256: str | None = SHA256, size: int | None = SIZE) -> ModelFile:
    return ModelFile(
        name="a.safetensors", folder="vae", sources=sources, size_bytes=size, sha256=sha256
    )


def download(
    file: ModelFile, target: Path, patience: Patience = IMPATIENT, allowed: Allowed | None = None
) -> FileState:
    """The last state of a file."""
    with Downloader(Settings(), patience=patience) as downloader:
        downloader.add(file, target, allowed)
        assert downloader.wait([target], 60)
        return downloader.state(target)


def assert_is_there(target: Path) -> None:
    """The file is right, and nothing else was left."""
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def error_of(state: FileState, kind: type[DownloadError]) -> str:
    """The message of a download that failed; there is no file under the final name."""
    assert state.phase is Phase.FAILED
    assert type(state.error) is kind, state.error
    assert not state.target.exists()
    return str(state.error)


def test_file_comes_whole_in_ranges(server: ModelServer, target: Path) -> None:
    state = download(model(server.add("a", CONTENT)), target)

    assert (state.phase, state.done_bytes, state.error) == (Phase.DONE, SIZE, None)
    assert_is_there(target)
    assert server.sent_bytes["/a"] <= SIZE + 1
    ranges = [headers["Range"] for _, headers in server.requests]
    assert len(ranges) == len(set(ranges)) > 4
    assert all(headers["If-Match"] for _, headers in server.requests[1:])


@pytest.mark.parametrize("size", [1, BLOCK_BYTES, BLOCK_BYTES + 1])
def test_sizes_around_a_block(size: int, server: ModelServer, target: Path) -> None:
    url = server.add("a", CONTENT[:size])

    assert download(model(url, sha256=None, size=None), target).phase is Phase.DONE
    assert target.read_bytes() == CONTENT[:size]


def test_complete_file_is_not_asked_for(server: ModelServer, target: Path) -> None:
    target.parent.mkdir(parents=True)
    target.write_bytes(CONTENT)

    assert download(model(server.add("a", CONTENT)), target).phase is Phase.DONE
    assert server.requests == []


def test_placeholder_is_replaced_by_the_model(server: ModelServer, target: Path) -> None:
    target.parent.mkdir(parents=True)
    with Parts(target).placeholder.open("wb") as sparse:
        sparse.truncate(SIZE)
    target.symlink_to(Parts(target).placeholder.name)
    file = model(server.add("a", CONTENT))
    assert is_placeholder(target)
    assert not is_complete(file, target)

    download(file, target)

    assert not is_placeholder(target)
    assert_is_there(target)


@pytest.mark.parametrize(
    "faults",
    [
        Faults(cuts=30, cut_after=100_000),
        Faults(cuts=5, cut_after=0),
        Faults(statuses=[500, 503, 502, 429]),
        Faults(etag_changes_after=3),
        Faults(etag_changes_after=0),
        Faults(has_no_ranges=True),
        Faults(has_no_ranges=True, cuts=2, cut_after=1_000_000),
    ],
    ids=str,
)
def test_fault_that_passes_does_no_harm(faults: Faults, server: ModelServer, target: Path) -> None:
    patience = replace(IMPATIENT, tries=10)

    assert download(model(server.add("a", CONTENT, faults)), target, patience).error is None
    assert_is_there(target)


@pytest.mark.parametrize(
    ("faults", "kind", "said"),
    [
        (Faults(cuts=ALL), ConnectionLostError, "the line was cut after byte"),
        (Faults(truncated_to=2_000_000), ConnectionLostError, "the line was cut after byte"),
        (Faults(wrong_answers=ALL), WrongHashError, f"expected {SHA256}"),
        (Faults(always_status=401), AccessDeniedError, "HTTP 401"),
        (Faults(always_status=403), AccessDeniedError, "HTTP 403"),
        (Faults(always_status=404), SourceMissingError, "correct the source"),
        (Faults(always_status=410), SourceMissingError, "HTTP 410"),
        (Faults(always_status=400), AccessDeniedError, "HTTP 400"),
        (Faults(always_status=500), ServerFailedError, "HTTP 500"),
        (Faults(always_status=503, retry_after="0"), ServerFailedError, "HTTP 503"),
        (Faults(redirects_to="ftp://x/y"), SourceMissingError, "not http"),
        (Faults(redirects_to="/a"), SourceMissingError, "more than 5"),
    ],
    ids=str,
)
def test_fault_that_stays_is_an_error_of_its_own(
    faults: Faults, kind: type[DownloadError], said: str, server: ModelServer, target: Path
) -> None:
    message = error_of(download(model(server.add("a", CONTENT, faults)), target), kind)

    assert message.startswith("vae/a.safetensors: ")
    assert f"{server.url}/a" in message
    assert said in message


def test_file_that_changes_again_and_again_is_an_error(server: ModelServer, target: Path) -> None:
    state = download(model(server.add("a", CONTENT, Faults(etag_changes=True))), target)

    assert "replaced during the download" in error_of(state, SourceChangedError)
    assert not Parts(target).part.exists()


def test_file_without_an_etag_that_is_replaced_is_downloaded_anew(
    server: ModelServer, target: Path
) -> None:
    url = server.add("a", CONTENT[::-1], Faults(last_modified="Thu, 01 Jan 2026 00:00:00 GMT"))
    server.bytes_per_s = 5_000_000
    with Downloader(Settings(), connections=2) as downloader:
        downloader.add(model(url, sha256=None), target)
        wait_until(lambda: downloader.state(target).done_bytes > SIZE / 3)
        server.add("a", CONTENT, Faults(last_modified="Thu, 01 Jan 2026 00:00:01 GMT"))
        server.bytes_per_s = None
        assert downloader.wait([target], 60)
        assert downloader.state(target).error is None

    assert_is_there(target)


def test_file_without_ranges_and_etag_whose_length_changes_is_downloaded_anew(
    server: ModelServer, target: Path
) -> None:
    faults = Faults(has_no_ranges=True, last_modified="Thu, 01 Jan 2026 00:00:00 GMT")
    url = server.add("a", CONTENT[:-9], replace(faults, cuts=2, cut_after=SIZE // 2))
    server.bytes_per_s = 5_000_000
    with Downloader(Settings()) as downloader:
        downloader.add(model(url, sha256=None, size=None), target)
        wait_until(lambda: downloader.state(target).done_bytes > SIZE / 4)
        server.files["/a"] = CONTENT
        assert downloader.wait([target], 60)
        assert downloader.state(target).error is None

    assert_is_there(target)


def test_web_page_is_no_model(server: ModelServer, target: Path) -> None:
    url = server.add("a", b"<html>Log in", Faults(content_type="text/html; charset=utf-8"))

    message = error_of(download(model(url, sha256=None, size=None), target), AccessDeniedError)

    assert "sends a web page instead of a file" in message


def test_file_of_unknown_size_is_an_error(server: ModelServer, target: Path) -> None:
    url = server.add("a", CONTENT, Faults(has_unknown_size=True))

    message = error_of(download(model(url, sha256=None, size=None), target), ServerFailedError)

    assert "does not say how large the file is" in message


def test_empty_file_is_no_model(server: ModelServer, target: Path) -> None:
    url = server.add("a", b"", Faults(has_no_ranges=True))

    message = error_of(download(model(url, sha256=None, size=None), target), WrongSizeError)

    assert "the file is empty" in message


def test_file_that_begins_with_zeros_is_an_error(server: ModelServer, target: Path) -> None:
    """It counted as missing when it was there, and would come again and again."""
    url = server.add("a", bytes(SIZE))

    message = error_of(download(model(url, sha256=None), target), WrongHashError)

    assert "begins with zeros, so it is no model" in message
    assert len([path for path, _ in server.requests]) < 40


def test_connection_that_drips_is_left_for_another(server: ModelServer, target: Path) -> None:
    url = server.add("a", CONTENT, Faults(dripping_answers=1))
    server.bytes_per_s = 4_000_000
    patience = replace(IMPATIENT, window_s=0.5, least_bytes_per_s=1)

    assert download(model(url), target, patience).error is None
    assert_is_there(target)


def test_source_that_drips_is_left_for_the_next(server: ModelServer, target: Path) -> None:
    slow = server.add("slow", CONTENT, Faults(dripping_answers=ALL))
    patience = replace(IMPATIENT, window_s=0.5)

    assert download(model(slow, server.add("a", CONTENT)), target, patience).error is None
    assert_is_there(target)


def test_only_source_that_drips_is_an_error(server: ModelServer, target: Path) -> None:
    slow = server.add("a", CONTENT, Faults(dripping_answers=ALL))

    state = download(model(slow), target, replace(IMPATIENT, window_s=0.5))

    assert "too slow to wait for" in error_of(state, TooSlowError)


def test_source_whose_headers_drip_is_left_for_the_next(
    server: ModelServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connection, "ANSWER_WITHIN_S", 0.5)
    slow = server.add("slow", CONTENT, Faults(drips_headers=True))
    patience = replace(IMPATIENT, window_s=0.5)

    assert download(model(slow, server.add("a", CONTENT)), target, patience).error is None

    assert_is_there(target)
    assert [path for path, _ in server.requests].count("/slow") == 1


def test_only_source_whose_headers_drip_is_an_error(
    server: ModelServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connection, "ANSWER_WITHIN_S", 0.5)
    slow = server.add("a", CONTENT, Faults(drips_headers=True))

    state = download(model(slow), target, replace(IMPATIENT, window_s=0.5))

    assert "no answer within 0.5 s, which is too slow to wait for" in error_of(state, TooSlowError)


def test_other_size_than_in_the_manifest_is_an_error(server: ModelServer, target: Path) -> None:
    state = download(model(server.add("a", CONTENT[:-1])), target)

    assert f"has {SIZE - 1} bytes, the manifest says {SIZE}" in error_of(state, WrongSizeError)


def test_sources_are_tried_in_order_and_all_are_named(server: ModelServer, target: Path) -> None:
    sources = [
        server.add("none", CONTENT, Faults(always_status=404)),
        server.add("wrong", CONTENT, Faults(wrong_answers=ALL)),
        "http://127.0.0.1:1/closed",
        server.add("forbidden", CONTENT, Faults(always_status=403)),
    ]

    message = error_of(download(model(*sources), target), AccessDeniedError)

    assert [message.index(source) for source in sources] == sorted(
        message.index(source) for source in sources
    )
    assert download(model(*sources, server.add("a", CONTENT)), target).error is None
    assert_is_there(target)


def test_manifest_without_a_source_is_an_error(target: Path) -> None:
    assert "nothing says where it comes from" in error_of(
        download(model(), target), SourceMissingError
    )


def test_secrets_of_a_url_are_in_no_message(server: ModelServer, target: Path) -> None:
    url = server.add("a", CONTENT, Faults(always_status=403))
    secret = url.replace("http://", "http://user:s3cret@") + "?token=s3cret"

    message = error_of(download(model(secret), target), AccessDeniedError)

    assert "s3cret" not in message
    assert all("s3cret" not in path for path, _ in server.requests)
    assert server.requests[0][1]["Authorization"].startswith("Basic ")


@pytest.mark.parametrize(
    "url", ["https://x:port/a?s3cret", "http://[x/a?s3cret", "http://127.0.0.1/a?s3cret and more"]
)
def test_url_that_is_not_valid_is_an_error_and_not_shown(url: str, target: Path) -> None:
    message = error_of(download(model(url), target), SourceMissingError)

    assert "is not valid" in message
    assert "s3cret" not in message


def test_redirect_to_a_url_that_is_not_valid_is_an_error(server: ModelServer, target: Path) -> None:
    url = server.add("a", b"", Faults(redirects_to="https://x:port/?s3cret"))

    message = error_of(download(model(url), target), SourceMissingError)

    assert "is not valid" in message
    assert "s3cret" not in message


def test_redirect_with_an_endless_body_is_followed(server: ModelServer, target: Path) -> None:
    to = server.add("a", CONTENT)
    url = server.add("from", b"", Faults(redirects_to=to, is_endless=True))

    assert download(model(url), target).error is None
    assert_is_there(target)


def test_unforeseen_error_fails_the_file_instead_of_its_waiters(
    server: ModelServer, tmp_path: Path
) -> None:
    state = download(model(server.add("a", CONTENT)), tmp_path / "a\0b")

    assert state.phase is Phase.FAILED
    assert "ValueError, a defect of the download" in str(state.error)


def test_token_goes_to_its_own_host_alone(
    server: ModelServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with model_server() as store:
        path = "owner/repo/resolve/v1/sub/a.safetensors"
        redirect = Faults(redirects_to=store.add("blob", CONTENT), token="Bearer hub-token")
        server.add(path, b"", redirect)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "hub-token")

        state = download(model("hf://owner/repo@v1/sub/a.safetensors"), target)

        assert state.error is None
        assert_is_there(target)
        assert [path for path, _ in server.requests] == [f"/{path}"]
        assert all("Authorization" not in headers for _, headers in store.requests)


def test_caller_s_url_gets_no_token_and_no_private_address(
    server: ModelServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hub-token")
    file = model(server.add("a", CONTENT))

    message = error_of(download(file, target, allowed=Allowed()), AccessDeniedError)
    assert "OUTBOUND_ALLOW" in message
    assert server.requests == []

    assert download(file, target, allowed=Allowed.parse("127.0.0.1")).error is None
    assert all("Authorization" not in headers for _, headers in server.requests)


def test_url_that_expires_during_the_download_is_asked_for_again(
    server: ModelServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_download, "_FRESH_S", 0.0)
    server.bytes_per_s = 5_000_000
    with Downloader(Settings(), connections=2) as downloader:
        downloader.add(model(server.add("a", CONTENT)), target)
        wait_until(lambda: server.sent_bytes["/a"] > SIZE / 4)
        server.faults["/a"].statuses.append(403)
        assert downloader.wait([target], 60)
        assert downloader.state(target).error is None

    assert_is_there(target)
    assert server.faults["/a"].statuses == []


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    """That of a server `localhost`; its certificate is certificate.pem."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    line = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    line += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    line += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(line, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@pytest.mark.parametrize("allowed", [None, Allowed.parse("127.0.0.0/8, ::1")])
def test_file_comes_over_tls(
    allowed: Allowed | None,
    tls: ssl.SSLContext,
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with model_server(tls) as server:
        server.bytes_per_s = 20_000_000
        file = model(server.add("a", CONTENT, Faults(cuts=3, cut_after=100_000)))
        http_connection._tls_context.cache_clear()
        message = error_of(download(file, target, allowed=allowed), AccessDeniedError)
        assert "self-signed certificate" in message or "self signed certificate" in message

        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        http_connection._tls_context.cache_clear()
        assert download(file, target, allowed=allowed).error is None
        http_connection._tls_context.cache_clear()
    assert_is_there(target)


def test_proxy_of_the_environment_is_used(
    server: ModelServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("a", CONTENT)
    monkeypatch.setenv("http_proxy", server.url)

    assert download(model("http://nowhere.invalid/a"), target).error is None

    assert_is_there(target)
    assert {headers["Host"] for _, headers in server.requests} == {"nowhere.invalid"}


def test_full_disk_is_an_error_and_what_came_is_kept(
    server: ModelServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("there is no /dev/full")
    url = server.add("a", CONTENT)
    real_open = os.open
    full = {"is": True}

    def open_full(path: object, flags: int, *mode: int) -> int:
        if str(path).endswith(".part") and full["is"]:
            return real_open("/dev/full", flags)
        return real_open(path, flags, *mode)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", open_full)
    assert "no space is left" in error_of(download(model(url), target), DiskFullError)

    full["is"] = False
    assert download(model(url), target).error is None
    assert_is_there(target)


def test_file_whose_size_only_the_source_knows_leaves_space_on_the_disk(
    server: ModelServer, target: Path
) -> None:
    file = model(server.add("a", CONTENT), sha256=None, size=None)
    with Downloader(Settings(), kept_bytes=2**60) as downloader:
        downloader.add(file, target)
        assert downloader.wait([target], 60)
        state = downloader.state(target)

    assert "are free for it" in error_of(state, DiskFullError)
    assert state.size_bytes == SIZE
    assert list(target.parent.iterdir()) == []


def test_part_whose_bytes_did_not_reach_the_disk_is_not_continued(
    server: ModelServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = model(server.add("a", CONTENT), sha256=None)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        error_of(download(file, target), TargetError)
    assert list(target.parent.iterdir()) == []

    assert download(file, target).error is None
    assert_is_there(target)


def test_folder_that_cannot_be_made_is_an_error(server: ModelServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "vae" / "a.safetensors"

    with Downloader(Settings(), patience=IMPATIENT) as downloader:
        downloader.add(model(server.add("a", CONTENT)), target)
        assert downloader.wait([target], 60)
        assert isinstance(downloader.state(target).error, TargetError)


def test_lock_that_cannot_be_deleted_is_an_error_and_stops_no_later_download(
    server: ModelServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = model(server.add("a", CONTENT))
    real_unlink = Path.unlink

    def fail(path: Path, *, missing_ok: bool = False) -> None:
        if path == Parts(target).lock:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        real_unlink(path, missing_ok=missing_ok)

    with Downloader(Settings(), patience=IMPATIENT) as downloader:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", fail)
            downloader.add(file, target)
            assert downloader.wait([target], 60)
        assert isinstance(downloader.state(target).error, TargetError)
        target.unlink()
        downloader.add(file, target)
        assert downloader.wait([target], 60)
        assert downloader.state(target).error is None

    assert_is_there(target)


def test_first_file_of_the_order_gets_the_connections(server: ModelServer, tmp_path: Path) -> None:
    server.bytes_per_s = 20_000_000
    content = b"x" * 8_000_000
    names = ["a", "b", "c"]
    targets = {name: tmp_path / name for name in names}
    with Downloader(Settings(), connections=4) as downloader:
        for name in names:
            file = model(server.add(name, content), sha256=None, size=len(content))
            downloader.add(file, targets[name])
        wait_until(lambda: server.sent_bytes["/a"] > 1_000_000)
        downloader.prioritise([targets["c"]])
        assert downloader.wait([targets["c"]], 60)

        assert downloader.states()[0].target == targets["c"]
        # What was on the line when the order changed, and at the end of c.
        assert server.sent_bytes["/a"] + server.sent_bytes["/b"] < 10_000_000
        assert downloader.wait(targets.values(), 60)
    assert all(target.read_bytes() == content for target in targets.values())


def test_failed_file_can_be_added_again(server: ModelServer, target: Path) -> None:
    url = server.add("a", CONTENT, Faults(always_status=404))
    with Downloader(Settings(), patience=IMPATIENT) as downloader:
        downloader.add(model(url), target)
        assert downloader.wait([target], 60)
        assert downloader.state(target).phase is Phase.FAILED
        server.faults["/a"] = Faults()

        downloader.add(model(url), target)
        assert downloader.wait([target], 60)

        assert downloader.state(target).phase is Phase.DONE


def test_stop_keeps_what_came_and_the_next_run_goes_on(server: ModelServer, target: Path) -> None:
    file = model(server.add("a", CONTENT))
    _leave_part(server, file, target)
    assert not target.exists()

    assert download(file, target).error is None
    assert _asked_bytes(server) < SIZE * 0.8
    assert_is_there(target)


def test_ranges_that_end_before_their_first_byte_complete_nothing(
    server: ModelServer, target: Path
) -> None:
    file = model(server.add("a", CONTENT), sha256=None)
    server.bytes_per_s = 10_000_000
    for tenth in range(1, 10):
        with Downloader(Settings()) as downloader:
            downloader.add(file, target)
            wait_until(lambda tenth=tenth: downloader.state(target).done_bytes >= SIZE * tenth / 10)  # type: ignore[misc]

    assert download(file, target).error is None
    assert_is_there(target)


def test_what_an_earlier_run_left_wrong_is_downloaded_again(
    server: ModelServer, target: Path
) -> None:
    file = model(server.add("a", CONTENT))
    _leave_part(server, file, target)
    with Parts(target).part.open("r+b") as part:
        part.write(b"damaged")

    assert download(file, target).error is None
    assert_is_there(target)


@pytest.mark.parametrize("change", ["etag", "boot", "size"])
def test_part_without_a_hash_is_continued_only_if_nothing_changed(
    change: str, server: ModelServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = model(server.add("a", CONTENT), sha256=None, size=None)
    _leave_part(server, file, target)
    expected = CONTENT
    if change == "etag":
        server.etags["/a"] = '"other"'
    elif change == "boot":
        monkeypatch.setattr("runtime.models.part_file._boot_id", lambda: "another")
    else:
        expected = CONTENT[:-9]
        server.add("a", expected)

    assert download(file, target).error is None
    assert target.read_bytes() == expected
    assert _asked_bytes(server) >= len(expected)


def test_part_without_a_hash_is_continued(server: ModelServer, target: Path) -> None:
    file = model(server.add("a", CONTENT), sha256=None)
    _leave_part(server, file, target)

    assert download(file, target).error is None
    assert _asked_bytes(server) < SIZE * 0.8
    assert_is_there(target)


def _leave_part(server: ModelServer, file: ModelFile, target: Path) -> None:
    """Download the first third or more, and stop."""
    server.bytes_per_s = 5_000_000
    with Downloader(Settings()) as downloader:
        downloader.add(file, target)
        wait_until(lambda: downloader.state(target).done_bytes > SIZE / 3)
    server.bytes_per_s = None
    server.requests.clear()


def _asked_bytes(server: ModelServer) -> int:
    """In all requests. What a server sends is more: it notices late that a client has gone."""
    ranges = (re.findall(r"\d+", headers["Range"]) for _, headers in server.requests)
    return sum(int(last) + 1 - int(first) for first, last in ranges)


PROGRAM = """
import sys
from pathlib import Path
from handler.settings import Settings
from runtime.models.download import Downloader
from runtime.models.manifest import ModelFile

url, sha256, *targets = sys.argv[1:]
with Downloader(Settings()) as downloader:
    for target in map(Path, targets):
        file = ModelFile(name=target.name, folder="vae", sources=(url,), sha256=sha256)
        downloader.add(file, target)
    downloader.wait(map(Path, targets))
    states = downloader.states()
sys.exit(any(state.error for state in states))
"""

Start = Callable[[str, Path], subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Downloads to a target in a process of its own."""
    processes: list[subprocess.Popen[bytes]] = []

    def run(url: str, target: Path) -> subprocess.Popen[bytes]:
        line = [sys.executable, "-c", PROGRAM, url, SHA256, str(target)]
        processes.append(subprocess.Popen(line, cwd=PROJECT))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.wait()


def test_kill_at_any_byte_leaves_no_wrong_file(
    server: ModelServer, target: Path, start: Start
) -> None:
    url = server.add("a", CONTENT)
    server.bytes_per_s = 10_000_000
    for share in (0.1, 0.37, 0.62, 0.9):
        process = start(url, target)
        wait_until(lambda share=share: server.sent_bytes["/a"] > SIZE * share)  # type: ignore[misc]
        process.kill()
        process.wait()
        assert not target.exists()
    # What a kill costs are the blocks that were under way.
    assert server.sent_bytes["/a"] < SIZE * 2

    assert start(url, target).wait(60) == 0

    assert_is_there(target)


def test_one_of_several_processes_downloads_and_the_others_wait(
    server: ModelServer, target: Path, start: Start
) -> None:
    url = server.add("a", CONTENT)
    server.bytes_per_s = 5_000_000
    processes = [start(url, target) for _ in range(3)]

    with Downloader(Settings()) as downloader:
        wait_until(lambda: server.sent_bytes["/a"] > SIZE / 4)
        downloader.add(model(url), target)
        wait_until(lambda: downloader.state(target).phase is Phase.ELSEWHERE)
        wait_until(lambda: downloader.state(target).done_bytes > 0)
        assert downloader.wait([target], 60)
        assert downloader.state(target).phase is Phase.DONE

    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert server.sent_bytes["/a"] <= SIZE + 1
    assert_is_there(target)


def test_another_process_goes_on_where_a_killed_one_stopped(
    server: ModelServer, target: Path, start: Start
) -> None:
    url = server.add("a", CONTENT)
    server.bytes_per_s = 5_000_000
    first = start(url, target)
    wait_until(lambda: server.sent_bytes["/a"] > SIZE / 2)
    second = start(url, target)

    first.kill()

    assert second.wait(60) == 0
    assert server.sent_bytes["/a"] < SIZE * 1.5
    assert_is_there(target)
