"""One ComfyUI process: how it is started, when it is ready, how its whole group is stopped.

Its arguments and environment are decided in runtime/worker/comfyui_arguments.py; when it is started
and what happens after it died, in runtime/worker/supervisor.py. What runs inside the process before
ComfyUI's own code is runtime/worker/inside_comfyui.py.
"""

import contextlib
import json
import os
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from handler.comfyui_version import ComfyUIVersion
from handler.settings import Settings
from runtime.errors import LambdaComfyUIError
from runtime.log import log
from runtime.process.child import Child, describe_exit
from runtime.worker.comfyui_arguments import HOST, arguments, child_environment
from runtime.worker.compile_cache import CompileCache
from runtime.worker.device_fault import device_fault
from runtime.worker.gate import gate_socket
from runtime.worker.inside_gate import SOCKET_VARIABLE
from runtime.worker.node_cache import cache_environment
from runtime.worker.start_reports import StartReports

if TYPE_CHECKING:
    from handler.comfyui_api import ComfyUIApi

DEFAULT_PORT = 18188
STOP_GRACE_S = 1.0
_PROBE_TIMEOUT_S = 1.0
_PROBE_EVERY_S = 0.02
# `/free` only sets a flag. A shutdown must not wait for it.
_FREE_TIMEOUT_S = 0.5
# A ComfyUI that takes longer to answer counts as hung.
_DROP_TIMEOUT_S = 4.0
_TCP_LISTEN = "0A"
_INSIDE_COMFYUI = Path(__file__).with_name("inside_comfyui.py")
_TAIL_LINES = 200
_SHOWN_LINES = 20
# See runtime/worker/inside_executor.py.
_PROMPT_BEGINS = re.compile(r"\[(\S+) begins\]$")
_PROMPT_ENDED = re.compile(r"\[\S+ has ended\]$")
_PROGRESS_BAR = re.compile(r"\s*\d+%\|")


class ComfyUIStartError(LambdaComfyUIError):
    """ComfyUI did not become ready; the message ends with its last log lines."""


class UnfitDeviceError(ComfyUIStartError):
    """The device can run no job, and another start finds the same one."""


class ComfyUIProcess:
    """A ComfyUI, started at once; or a prewarmed Python that becomes ComfyUI with `begin`.

    Its lines are logged. `on_end` is called when it has ended by itself or was stopped. Make it in
    a thread that lives as long as it may: see Child. With `has_self_test`, it becomes ready only if
    it passes the self-test of runtime/worker/inside_executor.py. Raises ComfyUIStartError if no
    ComfyUI is installed, and OSError.
    """

    def __init__(
        self,
        settings: Settings,
        on_end: Callable[[], None],
        *,
        is_prewarmed: bool = False,
        has_self_test: bool = False,
        compile_cache: CompileCache | None = None,
    ) -> None:
        check_installed(settings)
        self.port = 0
        # Unknown until it is ready.
        self.version = ComfyUIVersion()
        # The prompt that began last, '' for none.
        self.last_prompt = ""
        self.reports = StartReports()
        self._settings = settings
        self._compile_cache = compile_cache
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._waits_for_begin = is_prewarmed
        program = ["--prewarm", *self._command_for(0)] if is_prewarmed else self._command()
        if has_self_test:
            program.insert(0, "--self-test")
        self._child = Child(
            [str(settings.comfyui_interpreter), "-u", str(_INSIDE_COMFYUI), *program],
            cwd=settings.comfyui_code,
            env={
                **child_environment(os.environ),
                **cache_environment(settings),
                **(compile_cache.begin_process() if compile_cache else {}),
                SOCKET_VARIABLE: str(gate_socket(settings)),
            },
            on_line=self._take,
            on_end=on_end,
            has_stdin=is_prewarmed,
        )

    @property
    def base_url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        return self._child.pid

    def begin(self) -> None:
        """Let a prewarmed process become ComfyUI; nothing for one that was started at once.

        Raises ComfyUIStartError when the process has ended.
        """
        if self._waits_for_begin:
            self._waits_for_begin = False
            try:
                self._child.write_line(json.dumps(self._command()))
            except (OSError, ValueError) as error:
                raise ComfyUIStartError(self.explain("the prewarmed process has ended")) from error

    def wait_until_ready(self, timeout_s: float, is_cancelled: Callable[[], bool]) -> bool:
        """True once `/system_stats` and the WebSocket both answer; False when cancelled.

        Raises ComfyUIStartError the moment the process ends, after `timeout_s` seconds, or when the
        device or a required custom node is missing.
        """
        with contextlib.closing(self.api()) as api:
            give_up = time.monotonic() + timeout_s
            while time.monotonic() < give_up:
                if is_cancelled():
                    return False
                if (status := self._child.wait(_PROBE_EVERY_S)) is not None:
                    self._check_device()
                    reason = f"ComfyUI ended with {describe_exit(status)}{self.reports.during}"
                    raise ComfyUIStartError(self.explain(reason))
                if self._listens() and (version := api.ready_version(_PROBE_TIMEOUT_S)):
                    self._check_device()
                    self._check_custom_nodes()
                    self.version = version
                    return True
        reason = f"ComfyUI was not ready within {timeout_s:g} s{self.reports.during}"
        raise ComfyUIStartError(self.explain(reason))

    def wait(self, timeout_s: float) -> int | None:
        """The exit status (negative: the signal), or None if it still runs after `timeout_s`."""
        return self._child.wait(timeout_s)

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """End the whole process group: SIGTERM, then SIGKILL after `grace_s` seconds."""
        self._child.stop(grace_s)

    def free(self) -> None:
        """Have ComfyUI unload its models. One that does not answer is left as it is."""
        with contextlib.closing(self.api()) as api, contextlib.suppress(OSError):
            api.free(_FREE_TIMEOUT_S)

    def drop(self, prompt_id: str) -> bool:
        """Take a prompt out of ComfyUI's queue, or interrupt it; False if it does not answer.

        A ComfyUI that answers later does so then.
        """
        with contextlib.closing(self.api()) as api, contextlib.suppress(OSError):
            return api.interrupt(prompt_id, _DROP_TIMEOUT_S)
        return False

    def forget(self, prompt_ids: Sequence[str]) -> None:
        """Remove prompts from ComfyUI's history. One that does not answer keeps them."""
        with contextlib.closing(self.api()) as api, contextlib.suppress(OSError):
            api.forget(prompt_ids)

    def last_lines(self) -> list[str]:
        """The last log lines, the newest at the end."""
        return list(self._tail)[-_SHOWN_LINES:]

    def explain(self, reason: str) -> str:
        """`reason`, followed by the last log lines."""
        return "\n".join([f"{reason}. Its last log lines:", *self.last_lines()])

    def _command(self) -> list[str]:
        preferred = self._settings.comfyui_port
        self.port = preferred or _free_port(DEFAULT_PORT if preferred is None else 0)
        return self._command_for(self.port)

    def _command_for(self, port: int) -> list[str]:
        return ["main.py", *arguments(self._settings, port)]

    def _check_device(self) -> None:
        self._child.catch_up()
        self.reports.complete()
        if self.reports.device and (fault := device_fault(self.reports.device)):
            raise UnfitDeviceError(self.explain(fault))

    def _check_custom_nodes(self) -> None:
        if missing := self.reports.missing_nodes(self._settings.custom_nodes_required):
            raise ComfyUIStartError(f"required custom nodes are missing: {missing}")

    def _take(self, line: str) -> None:
        if begins := _PROMPT_BEGINS.search(line):
            self.last_prompt = begins[1]
            if self._compile_cache:
                self._compile_cache.begin_prompt()
            return
        if _PROMPT_ENDED.search(line):
            if self._compile_cache:
                self._compile_cache.end_prompt()
            return
        if self.reports.take(line) or (self._compile_cache and self._compile_cache.take(line)):
            return
        # A progress bar rewrites its line for every step; the handler reports the steps.
        if not _PROGRESS_BAR.match(line):
            self._tail.append(line)
            log(f"comfyui: {line}")

    def _listens(self) -> bool:
        # The first check is much cheaper. The second excludes another process that took the port.
        return _is_open(self.port) and _owns_port(self.pid, self.port)

    def api(self) -> "ComfyUIApi":
        """A connection to this ComfyUI; close it."""
        # A quarter of the worker's imports: nothing waits for it here, where ComfyUI boots or runs.
        from handler.comfyui_api import ComfyUIApi  # noqa: PLC0415

        return ComfyUIApi(self.base_url, self.version)


def check_installed(settings: Settings) -> None:
    """Raise ComfyUIStartError that names the path that is missing and the fix."""
    main = settings.comfyui_code / "main.py"
    if not main.is_file():
        raise ComfyUIStartError(
            f"there is no ComfyUI at {main}: run `lambda-comfyui install`, or set COMFYUI_DIR"
            " to the folder that holds its main.py"
        )
    for root in settings.models_dirs:
        if not root.is_dir():
            raise ComfyUIStartError(f"MODELS_DIR: there is no folder {root}")
    if not settings.comfyui_interpreter.exists():
        raise ComfyUIStartError(
            f"there is no Python for ComfyUI at {settings.comfyui_interpreter}:"
            " run `lambda-comfyui install`, or set COMFYUI_PYTHON"
        )


def _free_port(preferred: int) -> int:
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            free_port: int = probe.getsockname()[1]
            return free_port
    raise ComfyUIStartError("no free TCP port on the loopback interface")


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return port != 0 and probe.connect_ex((HOST, port)) == 0


def _owns_port(pid: int, port: int) -> bool:
    """Whether this process listens on the port: proc(5), /proc/PID/net/tcp and /proc/PID/fd."""
    with contextlib.suppress(OSError):
        inodes = {
            fields[9]
            for fields in map(str.split, Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:])
            if fields[1].endswith(f":{port:04X}") and fields[3] == _TCP_LISTEN
        }
        if inodes:
            names = (os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir())
            return any(name[8:-1] in inodes for name in names if name.startswith("socket:["))
    return False
