"""Makes this process the only owner of a worker's folders, and opens the worker's socket there.

What is answered on the socket is in runtime/worker/control.py; who runs a worker, in
runtime/commands/worker.py and runtime/commands/extension.py.
"""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from handler.settings import Settings
from handler.worker_protocol import LOG_NAME, SOCKET_NAME
from runtime.errors import UsageError
from runtime.hooks import Hooks, PyWorkerLines, StateMetrics, load_hooks
from runtime.log import log_to
from runtime.process.file_lock import lock_file
from runtime.worker.control import ControlServer, OnGone
from runtime.worker.gate import gate_socket, open_gate
from runtime.worker.housekeeping import LOCK_NAME
from runtime.worker.lifecycle import Worker

_LOCK_EVERY_S = 0.05
_SERVER_ENDS_WITHIN_S = 0.05
# sockaddr_un: 108 bytes with the closing NUL, see unix(7).
_MAX_SOCKET_PATH = 107


class OwnershipError(UsageError):
    """The worker cannot use a folder of its settings; the message names the setting."""


@contextmanager
def owned_worker(
    settings: Settings,
    *,
    is_leased: bool = False,
    on_gone: OnGone = lambda _pid: None,
    hooks: Sequence[Hooks] = (),
    wait_s: float = 0.0,
) -> Iterator[Worker | None]:
    """A worker behind its socket, or None when another process owns it already, after `wait_s`.

    The caller runs `supervise`. A leased worker stops when its last connection ends. `on_gone` gets
    the process id of every handler whose connection ended; `hooks` are called besides those of the
    settings. What is logged is in the worker's log file, too. Raises OwnershipError, HookError.
    """
    if (lock := _wait_for_lock(settings.worker_dir, wait_s)) is None:
        yield None
        return
    with lock:
        log_to(settings.worker_dir / LOG_NAME)
        path = settings.worker_dir / SOCKET_NAME
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
            raise OwnershipError(
                f"WORKER_DIR is too long for a Unix socket: {path} has more than"
                f" {_MAX_SOCKET_PATH} bytes; set WORKER_DIR to a shorter path"
            )
        worker = Worker(settings, [*hooks, *_hooks(settings)])
        with (
            _sole_writer(settings),
            _listening(path, worker, is_leased=is_leased, on_gone=on_gone) as server,
            open_gate(gate_socket(settings), worker.models),
        ):
            serve = threading.Thread(
                target=server.serve_forever, args=(_SERVER_ENDS_WITHIN_S,), daemon=True
            )
            serve.start()
            try:
                yield worker
            finally:
                server.shutdown()
                path.unlink(missing_ok=True)


def lock_folder(folder: Path) -> BinaryIO | None:
    """The lock that makes this process the only owner, or None when another one holds it.

    Raises OwnershipError when the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return lock_file(folder / "worker.lock")
    except OSError as error:
        raise OwnershipError(
            f"WORKER_DIR {folder} cannot be used: {error.strerror}; set it to a folder that this"
            " user can write"
        ) from error


def _wait_for_lock(folder: Path, wait_s: float) -> BinaryIO | None:
    give_up = time.monotonic() + wait_s
    while (lock := lock_folder(folder)) is None and time.monotonic() < give_up:
        time.sleep(_LOCK_EVERY_S)
    return lock


@contextmanager
def _sole_writer(settings: Settings) -> Iterator[None]:
    """Hold the output folder, too: two ComfyUIs would give their files the same numbers.

    Raises OwnershipError when another worker has it, or it cannot be written.
    """
    output = settings.comfyui_data / "output"
    if settings.comfyui_data_dir is None and not settings.comfyui_code.is_dir():
        # There is no ComfyUI: its start raises an error that names the path.
        yield
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = lock_file(output / LOCK_NAME)
    except OSError as error:
        raise OwnershipError(
            f"ComfyUI's output folder {output} cannot be used: {error.strerror};"
            " set COMFYUI_DATA_DIR to a folder that this user can write"
        ) from error
    if lock is None:
        raise OwnershipError(
            f"another worker's ComfyUI writes to {output}:"
            " set COMFYUI_DATA_DIR to a folder of its own"
        )
    with lock:
        yield


def _listening(path: Path, worker: Worker, *, is_leased: bool, on_gone: OnGone) -> ControlServer:
    """Raises OwnershipError when the socket cannot be made: not every file system has them."""
    try:
        return ControlServer(path, worker, is_leased=is_leased, on_gone=on_gone)
    except OSError as error:
        raise OwnershipError(
            f"the worker's socket {path} cannot be made: {error.strerror};"
            " set WORKER_DIR to a folder of a local disk that this user can write"
        ) from error


def _hooks(settings: Settings) -> list[Hooks]:
    hooks: list[Hooks] = [StateMetrics()] if "AWS_LAMBDA_FUNCTION_NAME" in os.environ else []
    if settings.pyworker_log:
        hooks.append(PyWorkerLines(settings.pyworker_log))
    return [*hooks, *load_hooks(settings.worker_hooks)]
