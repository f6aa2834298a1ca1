"""The download of one file from beginning to end, in a thread of its own.

The thread takes the file's lock, tries the sources in their order, and hashes the bytes while the
threads of the Downloader write them.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from handler.outbound import Allowed
from runtime.log import log
from runtime.models.errors import (
    AccessDeniedError,
    ConnectionLostError,
    DiskFullError,
    DownloadError,
    SourceChangedError,
    SourceMissingError,
    TargetError,
    WrongHashError,
    WrongSizeError,
)
from runtime.models.file_state import FileState, Phase
from runtime.models.foreign_errors import defects, disk_errors
from runtime.models.header import HEADER_BYTES, lacks_header
from runtime.models.http_connection import ANSWER_WITHIN_S, ConnectionGate, HttpConnection
from runtime.models.manifest import ModelFile
from runtime.models.part_file import Origin, PartFile, done_bytes_on_disk
from runtime.models.parts import Parts, is_complete
from runtime.models.patience import Patience, Retries
from runtime.models.sources import Remote, Sources, shown
from runtime.models.space import check_size
from runtime.models.transfer import Transfer
from runtime.models.verification import digest_of_arriving
from runtime.process.file_lock import try_file_lock, unlock_file

_ELSEWHERE_POLL_S = 0.5
_CORRECT_IT = "correct the source or the manifest"
# The URL of a source that was opened longer ago may have expired.
_FRESH_S = 30.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all files of a Downloader have in common."""

    sources: Sources
    patience: Patience
    changed: threading.Condition
    stopped: threading.Event
    gate: ConnectionGate
    kept_bytes: int


class FileDownload:
    """`phase`, `error` and `transfer` are guarded by `changed`."""

    def __init__(
        self, file: ModelFile, target: Path, common: Surroundings, allowed: Allowed | None = None
    ) -> None:
        self.file, self.target = file, target
        self.phase = Phase.DONE if is_complete(file, target) else Phase.QUEUED
        self.error: DownloadError | None = None
        self.transfer: Transfer | None = None
        self.opening_since = 0.0
        """The time.monotonic() since which there has been a thread, but no transfer."""
        self._common, self._allowed, self._parts = common, allowed, Parts(target)
        self._part: PartFile | None = None
        self._told_bytes: int | None = None
        self._was_resumed = False
        self._thread: threading.Thread | None = None
        self._connection = HttpConnection(common.gate)

    @property
    def is_final(self) -> bool:
        return self.phase in (Phase.DONE, Phase.FAILED)

    @property
    def is_opening(self) -> bool:
        """Whether it asks a source for the file, before bytes can be read."""
        return not self.is_final and self.phase is not Phase.ELSEWHERE and self.transfer is None

    @property
    def wants_connections(self) -> bool:
        return self.transfer.has_free_ranges if self.transfer else self.is_opening

    def state(self) -> FileState:
        """What is known now. With `changed` held, as all other methods but `stop`."""
        phase, part = self.phase, self._part
        done, size = 0, self.file.size_bytes or self._told_bytes or self.file.expected_bytes
        if phase is Phase.ELSEWHERE:
            done = done_bytes_on_disk(self._parts)
        elif phase is Phase.DONE:
            with contextlib.suppress(OSError):
                done = size = self.target.stat().st_size
        elif part:
            done, size = part.done_bytes, part.origin.size_bytes
            if phase is Phase.DOWNLOADING and done == size:
                phase = Phase.VERIFYING
        return FileState(
            file=self.file,
            target=self.target,
            phase=phase,
            done_bytes=done,
            size_bytes=size,
            error=self.error,
        )

    def start(self) -> None:
        """Start the thread, if there is something to do and it was not started before."""
        if self._thread is None and not self.is_final:
            self.opening_since = time.monotonic()
            self._thread = threading.Thread(
                target=self._run, daemon=True, name=f"model {self.file.name}"
            )
            self._thread.start()

    def end_late_request(self, now: float) -> None:
        """Leave a source that sends its first answer byte by byte: no Transfer watches that."""
        self._connection.end_late_request(now)

    def stop(self) -> None:
        """End the thread and wait for it. `stopped` is set, and `changed` is not held."""
        self._connection.abort()
        with self._common.changed:
            if self.transfer:
                self.transfer.fail(ConnectionLostError("the download was stopped"))
        if self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            with defects(str(self.target)), self._locked() as must_download:
                if must_download:
                    self._download()
            self._enter(Phase.DONE)
        except DownloadError as error:
            if not self._common.stopped.is_set():
                kept = type(error)(f"{self.file.folder}/{self.file.name}: {error}")
                self._enter(Phase.FAILED, kept)
        finally:
            self._connection.close()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[bool]:
        """Hold the file's lock; whether the file is still to be downloaded then."""
        with disk_errors(self.target):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            while (lock := try_file_lock(self._parts.lock)) is None:
                self._enter(Phase.ELSEWHERE)
                self._pause(_ELSEWHERE_POLL_S)
        try:
            yield not is_complete(self.file, self.target)
        finally:
            with disk_errors(self.target):
                unlock_file(self._parts.lock, lock)

    def _download(self) -> None:
        """Try all sources. Raises DownloadError, of the kind of the last source's."""
        errors: list[DownloadError] = []
        for source in self.file.sources:
            try:
                self._download_from(source)
                return
            except (DiskFullError, TargetError):
                raise
            except DownloadError as error:
                self._check_stopped()
                errors.append(error)
                if source != self.file.sources[-1]:
                    log(f"models: {error}; going on with the next source")
        if not errors:
            raise SourceMissingError(
                "nothing says where it comes from: name it by its URL again, or in a manifest"
            )
        raise type(errors[-1])("; then ".join(str(error) for error in errors))

    def _download_from(self, source: str) -> None:
        """Download from one source; from the first byte again if what was there proves wrong.

        A URL that a source leads to may be refused after a time, or after some requests: the source
        is asked for a new one, unless the last one was new or the second, and has brought nothing.
        """
        is_second_time = is_second_url = False
        while True:
            remote = self._open(source)
            done_before = done_bytes_on_disk(self._parts)
            try:
                self._transfer(remote)
                return
            except (WrongHashError, SourceChangedError) as error:
                # An earlier run, or another source, may have left wrong bytes.
                is_cause_gone = isinstance(error, SourceChangedError) or self._was_resumed
                if is_second_time or not is_cause_gone:
                    raise
                is_second_time = True
            except AccessDeniedError:
                is_new = time.monotonic() - remote.opened_at < _FRESH_S
                has_brought_none = done_bytes_on_disk(self._parts) <= done_before
                if has_brought_none and (is_new or is_second_url):
                    raise
                is_second_url = has_brought_none

    def _open(self, source: str) -> Remote:
        """Open the source, however often that takes within the patience.

        No longer than a minute where it is silent: each try takes half of that.
        """
        retries, began = Retries(self._common.patience), time.monotonic()
        while True:
            try:
                remote = self._common.sources.open(source, self._connection, self._allowed)
                break
            except DownloadError as error:
                now = time.monotonic()
                is_silent = isinstance(error, ConnectionLostError) and now > began + ANSWER_WITHIN_S
                may_retry = error.may_pass and not is_silent
                if not may_retry or not retries.may_retry(now, error.retry_after_s):
                    raise
                self._pause(retries.not_before - now)
        if self.file.size_bytes not in (None, remote.size_bytes):
            raise WrongSizeError(
                f"{shown(source)}: has {remote.size_bytes} bytes,"
                f" the manifest says {self.file.size_bytes}: {_CORRECT_IT}"
            )
        if self.file.sha256 and remote.sha256 not in (None, self.file.sha256):
            raise WrongHashError(
                f"{shown(source)}: has the SHA-256 {remote.sha256},"
                f" the manifest says {self.file.sha256}: {_CORRECT_IT}"
            )
        return remote

    def _transfer(self, remote: Remote) -> None:
        """Have the bytes that are missing read, hash all, and give the file its name."""
        origin = Origin(
            size_bytes=remote.size_bytes,
            sha256=self.file.sha256 or remote.sha256,
            source=remote.source,
            version=remote.version,
        )
        self._told_bytes = remote.size_bytes
        with disk_errors(self.target):
            if self.file.size_bytes is None:
                # Nobody has made room for it.
                check_size(remote.size_bytes, self.target, self._common.kept_bytes)
            part = PartFile(self._parts, origin)
        self._was_resumed = part.is_resumed
        try:
            digest = self._receive(part, remote)
            if digest != (origin.sha256 or ""):
                raise WrongHashError(
                    f"{shown(remote.source)}: the SHA-256 of what came is {digest},"
                    f" expected {origin.sha256}: {_CORRECT_IT}"
                )
            with disk_errors(self.target):
                beginning = memoryview(bytearray(HEADER_BYTES))
                if lacks_header(self.file.name, bytes(beginning[: part.read_into(beginning, 0)])):
                    raise WrongHashError(
                        f"{shown(remote.source)}: the file begins with zeros, so it is no model"
                    )
                part.finish(self.target)
        except (WrongHashError, SourceChangedError):
            part.discard()
            raise
        finally:
            part.close()

    def _receive(self, part: PartFile, remote: Remote) -> str:
        """Offer the missing bytes to the connections until all are there; see verification.py."""
        changed, digest = self._common.changed, None
        transfer = Transfer(remote, part, self._common.patience, changed)
        with changed:
            self._part, self.transfer = part, transfer
            self._enter(Phase.DOWNLOADING)
        try:
            # A `stop` before this moment has found no transfer to end.
            self._check_stopped()
            with disk_errors(self.target):
                digest = digest_of_arriving(part)
        finally:
            with changed:
                if digest is None:
                    transfer.fail(ConnectionLostError("the download was stopped"))
                changed.wait_for(lambda: not transfer.is_running)
                self.opening_since, self.transfer = time.monotonic(), None
        if digest is None:
            raise transfer.error or AssertionError
        return digest

    def _pause(self, seconds: float) -> None:
        """Raises ConnectionLostError when the Downloader was stopped."""
        self._common.stopped.wait(seconds)
        self._check_stopped()

    def _check_stopped(self) -> None:
        if self._common.stopped.is_set():
            raise ConnectionLostError("the download was stopped")

    def _enter(self, phase: Phase, error: DownloadError | None = None) -> None:
        with self._common.changed:
            self.phase, self.error = phase, error
            self._common.changed.notify_all()
