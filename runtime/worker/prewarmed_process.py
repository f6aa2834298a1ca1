"""The Python that waits, while ComfyUI is stopped, to become the next ComfyUI.

Why there is one: docs/decisions/0006-prewarmed-python.md. When it is started, used and ended is
decided in runtime/worker/supervisor.py.
"""

import contextlib
from collections.abc import Callable

from handler.settings import Settings
from runtime.log import log
from runtime.worker.comfyui_process import ComfyUIProcess, ComfyUIStartError
from runtime.worker.compile_cache import CompileCache


class Prewarmed:
    """One process at most. All of it but `pid` is used by the thread that supervises ComfyUI."""

    def __init__(
        self, settings: Settings, on_end: Callable[[], None], compile_cache: CompileCache
    ) -> None:
        self._settings, self._on_end, self._compile_cache = settings, on_end, compile_cache
        self._process: ComfyUIProcess | None = None

    @property
    def pid(self) -> int | None:
        """Its process id; None when there is none, or it has died."""
        process = self._living()
        return process.pid if process else None

    @property
    def exists(self) -> bool:
        """Whether it was started and neither taken nor ended; it may have died."""
        return self._process is not None

    def start(self) -> None:
        """Start one. If that fails, the next start of ComfyUI only takes longer."""
        with contextlib.suppress(ComfyUIStartError, OSError):
            self._process = ComfyUIProcess(
                self._settings,
                self._on_end,
                is_prewarmed=True,
                compile_cache=self._compile_cache,
            )

    def take(self) -> ComfyUIProcess | None:
        """Hand the process over if it lives; `ComfyUIProcess.begin` makes it ComfyUI."""
        process, self._process = self._living(), None
        return process

    def end(self, reason: str = "") -> None:
        """Kill it. A reason is logged."""
        process, self._process = self._process, None
        if process:
            if reason:
                log(f"{reason}: ending the prewarmed process")
            process.stop(grace_s=0.0)

    def _living(self) -> ComfyUIProcess | None:
        process = self._process
        return process if process and process.wait(0) is None else None
