"""The gate inside ComfyUI's process: a loader waits until its model file is complete.

A model that is still being downloaded has a placeholder under its name, so that ComfyUI accepts the
workflow at once (runtime/models/placeholders.py). Every load of a model asks the worker first, over
a Unix socket; runtime/worker/gate.py answers. The connection stays open until the load has ended,
so the worker knows which files are being loaded, also when this process is killed.

runtime/worker/inside_comfyui.py loads this file before ComfyUI. ComfyUI's Python runs it, so it
imports nothing of this project; the messages are defined here, for both sides.
"""

import contextlib
import fcntl
import functools
import importlib.abc
import importlib.machinery
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

# The environment variable with the path of the worker's socket.
SOCKET_VARIABLE = "LAMBDA_COMFYUI_GATE"
# The type of the message to the client of a prompt whose loader waits, for handler/execution.py.
WAIT_MESSAGE = "lambda_comfyui.weights"
LOADER_MODULE = "comfy.utils"
LOADER = "load_torch_file"
_CHECK_EVERY_S = 0.1
_MAX_LINE = 65_536


class ModelUnavailable(Exception):
    """A model file cannot be brought to this machine; the message names the file and the reason."""


class ModelNotFound(Exception):
    """The URL of a model in the request leads to no model; the message says why."""


@dataclass(frozen=True)
class Answer:
    """What the worker says about the file that is to be loaded, a line of JSON.

    `is_complete`: load it now. `failure`: why it will not come, '' while it may; with
    `is_request_wrong`, because the request names a URL without such a file. Otherwise it is
    being downloaded: `done_bytes` of `total_bytes` are there.
    """

    is_complete: bool = False
    failure: str = ""
    is_request_wrong: bool = False
    done_bytes: int = 0
    total_bytes: int = 0

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


def install(before_load: Callable[[str], None] | None = None) -> None:
    """Have ComfyUI's loader ask the worker, as soon as ComfyUI has imported it.

    `before_load` is called with the path of each file when it is complete, before it is read.
    """
    if address := os.environ.get(SOCKET_VARIABLE):
        sys.meta_path.insert(0, _Finder(address, before_load))


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the loader before anyone can import it from its module by name."""

    def __init__(self, address: str, before_load: Callable[[str], None] | None) -> None:
        self._address, self._before_load = address, before_load

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != LOADER_MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def execute_and_wrap(module: ModuleType) -> None:
                execute(module)
                load = getattr(module, LOADER)
                setattr(module, LOADER, gated(load, self._address, self._before_load))

            spec.loader.exec_module = execute_and_wrap  # type: ignore[method-assign]
        return spec


def gated(
    load: Callable[..., Any], address: str, before_load: Callable[[str], None] | None = None
) -> Callable[..., Any]:
    """`load`, whose first argument is the path of a model file, for complete files only.

    Raises ModelUnavailable, ModelNotFound, and what ComfyUI raises in an interrupted job.
    """

    @functools.wraps(load)
    def load_when_complete(ckpt: Any, *arguments: Any, **options: Any) -> Any:
        path = os.path.abspath(ckpt)
        with _complete(path, address):
            if before_load:
                before_load(path)
            return load(ckpt, *arguments, **options)

    return load_when_complete


@contextlib.contextmanager
def _complete(path: str, address: str) -> Iterator[None]:
    """The file is complete, and stays until the context ends."""
    while True:
        with contextlib.ExitStack() as stack:
            _wait(path, address, stack)
            # What is missing or cannot be read, the loader says.
            with contextlib.suppress(OSError):
                file = stack.enter_context(open(path, "rb", buffering=0))
                # A worker that frees disk space leaves a locked file alone.
                fcntl.flock(file, fcntl.LOCK_SH)
            if is_placeholder(path):
                # Another worker has removed the file since.
                continue
            yield
            return


def is_placeholder(path: str) -> bool:
    """Whether there is a placeholder under the model's name: see runtime/models/parts.py."""
    try:
        return os.readlink(path) == f"{os.path.basename(path)}.placeholder"
    except OSError:
        return False


def _wait(path: str, address: str, stack: contextlib.ExitStack) -> None:
    """Return when the file is complete. The stack gets the connection, which says that it is used.

    Raises ModelUnavailable, ModelNotFound.
    """
    connection = stack.enter_context(socket.socket(socket.AF_UNIX))
    began = time.monotonic()
    has_waited = False
    try:
        connection.connect(address)
        connection.sendall(json.dumps(path).encode() + b"\n")
        for answer in _answers(connection):
            if has_waited or not answer.is_complete:
                has_waited = True
                _report(path, answer, time.monotonic() - began)
            if answer.failure and answer.is_request_wrong:
                raise ModelNotFound(answer.failure)
            if answer.failure:
                raise ModelUnavailable(answer.failure)
            if answer.is_complete:
                return
    except OSError:
        # Without its worker, this process is about to end.
        pass
    if is_placeholder(path):
        raise ModelUnavailable(
            f"{os.path.basename(path)} is not complete, and no worker downloads it"
        )


def _answers(connection: socket.socket) -> Iterator[Answer]:
    """The worker's answers until the connection ends."""
    connection.settimeout(_CHECK_EVERY_S)
    received = b""
    while True:
        _end_if_interrupted()
        try:
            part = connection.recv(_MAX_LINE)
        except TimeoutError:
            continue
        if not part:
            return
        *lines, received = (received + part).split(b"\n")
        yield from (Answer(**json.loads(line)) for line in lines)


def _end_if_interrupted() -> None:
    """Raise what ComfyUI raises in a job whose end was requested."""
    if management := sys.modules.get("comfy.model_management"):
        management.throw_exception_if_processing_interrupted()


def _report(path: str, answer: Answer, waited_s: float) -> None:
    """Tell the client of the prompt that runs."""
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    if server is None:
        return
    message = {
        "prompt_id": getattr(server.instance, "last_prompt_id", None),
        "file": os.path.basename(path),
        "waited_s": waited_s,
        **asdict(answer),
    }
    server.instance.send_sync(WAIT_MESSAGE, message, server.instance.client_id)
