"""When compiled code is loaded from the bucket of COMPILE_CACHE, and stored there.

PyTorch and Triton keep what they have compiled in two folders in WORKER_DIR. The worker fills them
while ComfyUI boots, and stores what was added. ComfyUI's process gets no credentials, and nothing
in it waits for this: docs/decisions/0018-compile-cache.md.
"""

import math
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from handler.settings import Settings
from runtime.errors import LambdaComfyUIError
from runtime.log import log
from runtime.worker import inside_compiler
from runtime.worker.compile_archive import FOLDERS, FileState, files_in
from runtime.worker.compile_exchange import Exchange
from runtime.worker.compile_key import object_name, read_compiler, this_cpu, this_system

# Without a prompt, before what was compiled is stored.
QUIET_S = 2.0
# The most that it waits for a pause between prompts.
PATIENCE_S = 60.0


class CompileCache:
    """Does nothing without COMPILE_CACHE. Any thread may call it."""

    def __init__(self, settings: Settings) -> None:
        self._is_on = bool(settings.compile_cache)
        self._root = settings.worker_dir / "compiled"
        self._exchange = Exchange(settings, self._root)
        self._changed = threading.Condition()
        # How often the folders were emptied.
        self._round = 0
        # Of the object; '' until ComfyUI's process has said what it depends on.
        self._name = ""
        self._is_loaded = False
        # True also while nobody knows who was writing to the folders.
        self._has_prompt = True
        self._quiet_since = 0.0
        # What was complete when the last prompt had ended.
        self._files: Mapping[str, FileState] = {}
        # The files that the bucket has, or does not take.
        self._known: set[str] = set()
        self._added_at = math.inf
        self._stop_at = math.inf
        self._thread = threading.Thread(target=self._run, name="compile-cache", daemon=True)

    def start(self) -> None:
        if self._is_on:
            self._thread.start()

    def stop(self, until: float) -> None:
        """Store what was added until this time.monotonic(); not at all if that is infinite."""
        if not self._thread.is_alive():
            return
        with self._changed:
            self._stop_at = until if until < math.inf else 0.0
            self._changed.notify_all()
        # An upload that has not ended by then ends with this process: the object stays as it was.
        self._thread.join(max(self._stop_at - time.monotonic(), 0.0))

    def begin_process(self) -> dict[str, str]:
        """The variables of a ComfyUI that is about to be started.

        A file that an earlier one was writing when it was killed is incomplete, and what it was
        running may be why it has died. The folders are then emptied, and loaded again.
        """
        if not self._is_on:
            return {}
        with self._changed:
            if self._has_prompt:
                self._round += 1
                self._has_prompt = self._is_loaded = False
                self._files, self._known, self._added_at = {}, set(), math.inf
                shutil.rmtree(self._root, ignore_errors=True)
                self._changed.notify_all()
        folders = {variable: str(self._root / name) for name, variable in FOLDERS.items()}
        return {**folders, inside_compiler.VARIABLE: "1"}

    def take(self, line: str) -> bool:
        """Whether this line of ComfyUI's process is the one that says what code depends on."""
        if not self._is_on or (compiler := read_compiler(line)) is None:
            return False
        name = object_name(compiler, this_system(), this_cpu())
        with self._changed:
            if name != self._name:
                self._name, self._is_loaded = name, False
            self._changed.notify_all()
        return True

    def begin_prompt(self) -> None:
        """Note that ComfyUI may compile from now on."""
        with self._changed:
            self._has_prompt = True

    def end_prompt(self) -> None:
        """Note what is complete: ComfyUI runs one prompt at a time, and compiles in prompts only.

        The next prompt may have begun. It has not compiled anything within these milliseconds.
        """
        if not self._is_on:
            return
        files = files_in(self._root)
        with self._changed:
            self._files, self._has_prompt = files, False
            self._quiet_since = time.monotonic()
            if files.keys() - self._known:
                self._added_at = min(self._added_at, self._quiet_since)
            self._changed.notify_all()

    def _run(self) -> None:
        while task := self._next_task():
            task()

    def _next_task(self) -> Callable[[], None] | None:
        """Wait for something to do; None when the worker ends."""
        with self._changed:
            while True:
                now = time.monotonic()
                if now >= self._stop_at:
                    return None
                is_stopping = self._stop_at < math.inf
                if self._name and not self._is_loaded and not is_stopping:
                    return self._load
                due_at = self._due_at()
                if due_at <= now or (is_stopping and due_at < math.inf):
                    return self._store
                if is_stopping:
                    return None
                self._changed.wait(min(due_at - now, threading.TIMEOUT_MAX))

    def _due_at(self) -> float:
        """When to store what was added; infinite if nothing was, or nobody knows for what."""
        if not self._name:
            return math.inf
        latest = self._added_at + PATIENCE_S
        if self._has_prompt or self._added_at == math.inf:
            return latest
        return min(latest, self._quiet_since + QUIET_S)

    def _load(self) -> None:
        with self._changed:
            name, round_ = self._name, self._round
            self._is_loaded = True
        began = time.monotonic()
        url = self._exchange.url(name)
        try:
            paths = self._exchange.load(name)
        except Exception as error:
            # Whatever an object holds: without it, jobs compile by themselves.
            log(f"compiled code: {url} is not used: {_reason(error)}")
            return
        if paths is None:
            log(f"compiled code: there is none yet at {url}")
            return
        self._note_known(round_, paths)
        log(f"compiled code: {len(paths)} files of {url}, after {time.monotonic() - began:.1f} s")

    def _store(self) -> None:
        with self._changed:
            name, round_, files = self._name, self._round, self._files
            self._added_at = math.inf
        self._note_known(round_, files.keys())
        began = time.monotonic()
        url = self._exchange.url(name)
        try:
            paths = self._exchange.store(name, files)
        except Exception as error:
            log(f"compiled code: it is not stored at {url}: {_reason(error)}")
            return
        self._note_known(round_, paths)
        took_s = time.monotonic() - began
        log(f"compiled code: stored {len(paths)} files at {url}, after {took_s:.1f} s")

    def _note_known(self, round_: int, paths: Iterable[str]) -> None:
        with self._changed:
            # Else they were removed since.
            if round_ == self._round:
                self._known.update(paths)
                if self._files.keys() <= self._known:
                    self._added_at = math.inf


def _reason(error: Exception) -> str:
    """Why it failed, without any text that may hold a credential."""
    if isinstance(error, LambdaComfyUIError):
        return str(error)
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__
