"""The Python that waits, while ComfyUI is stopped, to become the next one.

Why it is there: docs/decisions/0006-prepared-python.md.
"""

import contextlib
from collections.abc import Callable

from handler.settings import Settings
from runtime.log import log
from runtime.worker.comfyui_process import ComfyUIProcess, ComfyUIStartError


class Prepared:
    """One at most. Its owner calls from the thread that supervises, but for `pid`."""

    def __init__(self, settings: Settings, on_line: Callable[[str], None]) -> None:
        self._settings, self._on_line = settings, on_line
        self._process: ComfyUIProcess | None = None

    @property
    def pid(self) -> int | None:
        """None where there is none, or it has died."""
        process = self._living()
        return process.pid if process else None

    @property
    def is_there(self) -> bool:
        """Whether one has been started and not ended by us; it may have died."""
        return self._process is not None

    def start(self) -> None:
        """Begin to prepare one. Without it the next start only takes longer."""
        with contextlib.suppress(ComfyUIStartError, OSError):
            self._process = ComfyUIProcess(self._settings, self._on_line, is_prepared=True)

    def take(self) -> ComfyUIProcess | None:
        """Hand it over, if it lives; `begin` makes it ComfyUI."""
        process, self._process = self._living(), None
        return process

    def end(self, reason: str = "") -> None:
        """Kill it; a reason is logged."""
        process, self._process = self._process, None
        if process:
            if reason:
                log(f"{reason}: the prepared process ends, too")
            process.stop(grace_s=0.0)

    def _living(self) -> ComfyUIProcess | None:
        process = self._process
        return process if process and process.wait(0) is None else None
