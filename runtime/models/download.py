"""Downloads model files in an order that can change while it runs."""

import os
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from handler.outbound import Allowed
from handler.settings import Settings
from runtime.models.file_download import FileDownload, Surroundings
from runtime.models.file_state import FileState, Phase
from runtime.models.http_connection import ConnectionGate, HttpConnection
from runtime.models.manifest import ModelFile
from runtime.models.patience import Patience
from runtime.models.ranges import RangeRun
from runtime.models.sources import Sources
from runtime.models.transfer import Transfer

__all__ = ["CONNECTIONS", "Downloader", "FileState", "Phase"]

CONNECTIONS = 32
# How long connections wait for the first file of the order to be opened, before they help another.
_HEAD_START_S = 2.0


class Downloader:
    """Downloads files with one pool of connections: the first file of the order gets them all.

    A context manager. Any thread may call it; none of its methods but `wait` and `stop` waits.
    `changed` is notified at least when the phase of a file changes; not for every byte.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        connections: int = CONNECTIONS,
        patience: Patience | None = None,
        kept_bytes: int = 0,
    ) -> None:
        """The threads start with the first file. Tokens come from the environment: sources.py.

        `kept_bytes` of a disk stay free where only a source knows how large a file is.
        """
        self.changed = threading.Condition()
        self._stopped = threading.Event()
        self._patience = patience or Patience()
        gate = ConnectionGate()
        self._common = Surroundings(
            Sources(settings, os.environ),
            self._patience,
            self.changed,
            self._stopped,
            gate,
            kept_bytes,
        )
        self._downloads: dict[Path, FileDownload] = {}
        self._order: list[FileDownload] = []
        self._connections = [HttpConnection(gate) for _ in range(connections)]
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Downloader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def add(self, file: ModelFile, target: Path, allowed: Allowed | None = None) -> None:
        """Download the file to `target`, after the files that were added before it.

        A complete file is DONE at once. A FAILED file, and a DONE one that was evicted since, is
        downloaded again. `allowed` restricts the addresses of a source that a caller has named.
        """
        with self.changed:
            known = self._find(target)
            if known and not known.is_final:
                return
            new = FileDownload(file, target, self._common, allowed)
            if known:
                self._order[self._order.index(known)] = new
            else:
                self._order.append(new)
            self._downloads[target] = new
            self._start_threads()
            self.changed.notify_all()

    def prioritise(self, targets: Sequence[Path]) -> None:
        """Download these files first, in this order. The others keep their order behind them.

        Connections leave other files in the middle of a range for the first one.
        """
        with self.changed:
            first = [download for target in targets if (download := self._find(target))]
            self._order = [*first, *(each for each in self._order if each not in first)]
            is_behind = False
            for download in self._order:
                if is_behind and download.transfer:
                    download.transfer.yield_connections()
                is_behind = is_behind or download.wants_connections
            self.changed.notify_all()

    def state(self, target: Path) -> FileState:
        """Raises KeyError for a file that was not added."""
        with self.changed:
            download = self._find(target)
            if download is None:
                raise KeyError(target)
            return download.state()

    def states(self) -> list[FileState]:
        """All files in the present order."""
        with self.changed:
            return [download.state() for download in self._order]

    def wait(self, targets: Iterable[Path], timeout_s: float | None = None) -> bool:
        """Whether all of these files are DONE or FAILED, after `timeout_s` seconds at most."""
        wanted = set(targets)
        with self.changed:
            return self.changed.wait_for(
                lambda: all(each.is_final for each in self._order if each.target in wanted),
                timeout_s,
            )

    def stop(self) -> None:
        """End all connections and threads. What was downloaded stays on the disk."""
        self._stopped.set()
        with self.changed:
            self.changed.notify_all()
        for connection in self._connections:
            connection.abort()
        for download in self._order:
            download.stop()
        for thread in self._threads:
            thread.join()

    def _find(self, target: Path) -> FileDownload | None:
        return self._downloads.get(target)

    def _start_threads(self) -> None:
        if self._threads or self._stopped.is_set():
            return
        for connection in self._connections:
            self._threads.append(
                threading.Thread(
                    target=self._work, args=(connection,), name="download", daemon=True
                )
            )
        self._threads.append(
            threading.Thread(target=self._watch, name="download speed", daemon=True)
        )
        for thread in self._threads:
            thread.start()

    def _work(self, connection: HttpConnection) -> None:
        """The thread of one connection."""
        while task := self._next(connection):
            transfer, run = task
            transfer.fetch(run)
        connection.close()

    def _next(self, connection: HttpConnection) -> tuple[Transfer, RangeRun] | None:
        """Wait for the next range, of the first file that has one; None after `stop`."""
        with self.changed:
            while not self._stopped.is_set():
                now = time.monotonic()
                wake_at = []
                for download in self._order:
                    if transfer := download.transfer:
                        if run := transfer.take(now, connection, len(self._connections)):
                            return transfer, run
                        if transfer.has_free_ranges:
                            wake_at.append(transfer.not_before)
                        continue
                    download.start()
                    if download.is_opening and now < download.opening_since + _HEAD_START_S:
                        wake_at.append(download.opening_since + _HEAD_START_S)
                        break
                self.changed.wait(max(0.0, min(wake_at) - now) if wake_at else None)
        return None

    def _watch(self) -> None:
        """The thread that finds connections and sources that are too slow."""
        while not self._stopped.wait(self._patience.window_s / 5):
            with self.changed:
                now, is_first = time.monotonic(), True
                for download in self._order:
                    download.end_late_request(now)
                    if transfer := download.transfer:
                        transfer.check_speed(now, is_first=is_first)
                        is_first = is_first and not transfer.is_running
