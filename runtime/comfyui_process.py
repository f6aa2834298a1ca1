"""One ComfyUI process: how it is started, when it is ready, how its whole group is stopped.

Who wants it running, and what happens after it died, is decided in runtime/worker.py.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from handler.settings import Settings

DEFAULT_PORT = 18188
HOST = "127.0.0.1"
STOP_GRACE_S = 1.0
_PROBE_TIMEOUT_S = 2.0
_PROBE_EVERY_S = 0.02
_TAIL_LINES = 200
_PR_SET_PDEATHSIG = 1
# Custom nodes are other people's code: they get none of the handler's credentials.
_WITHHELD_PREFIXES = ("S3_", "WEBHOOK_", "AWS_")
_libc = ctypes.CDLL(None, use_errno=True)


class ComfyUIStartError(RuntimeError):
    """ComfyUI did not become ready; the message ends with its last log lines."""


class ComfyUIProcess:
    """A started ComfyUI. Its output is drained, kept as a tail, and its group dies with us."""

    def __init__(self, settings: Settings, on_line: Callable[[str], None]) -> None:
        check_installed(settings)
        self.port = settings.comfyui_port or _free_port(DEFAULT_PORT)
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._popen = subprocess.Popen(
            command(settings, self.port),
            cwd=settings.comfyui_code,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - one system call, no lock is taken in it
        )
        self._reader = threading.Thread(target=self._drain, args=(on_line,), daemon=True)
        self._reader.start()

    @property
    def base_url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        return self._popen.pid

    def wait_until_ready(self, timeout_s: float) -> None:
        """Return once `/system_stats` and the WebSocket both answer.

        Raises ComfyUIStartError the moment the process ends, or after `timeout_s` seconds.
        """
        give_up = time.monotonic() + timeout_s
        while time.monotonic() < give_up:
            if (status := self._popen.poll()) is not None:
                raise ComfyUIStartError(self.explain(f"ComfyUI ended with {describe_exit(status)}"))
            if _answers(self.port, "/system_stats", 200) and _answers(self.port, "/ws", 101):
                return
            time.sleep(_PROBE_EVERY_S)
        raise ComfyUIStartError(self.explain(f"ComfyUI was not ready within {timeout_s:g} s"))

    def wait(self, timeout_s: float | None = None) -> int | None:
        """The exit status, or None when it still runs after `timeout_s` seconds."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """End the whole process group: SIGTERM, then SIGKILL after `grace_s` seconds."""
        self._signal_group(signal.SIGTERM)
        self.wait(grace_s)
        self._signal_group(signal.SIGKILL)
        self._popen.wait()
        self._reader.join(1.0)
        if self._popen.stdout and not self._reader.is_alive():
            self._popen.stdout.close()

    def tail(self, lines: int = 20) -> list[str]:
        """The last lines that ComfyUI wrote."""
        return list(self._tail)[-lines:]

    def explain(self, what: str) -> str:
        """`what`, followed by the last log lines."""
        self._reader.join(0.2)
        return "\n".join([f"{what}. Its last log lines:", *self.tail()])

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, number)

    def _drain(self, on_line: Callable[[str], None]) -> None:
        assert self._popen.stdout is not None
        for raw in self._popen.stdout:
            # Progress bars rewrite their line: only what was written last counts.
            line = raw.decode(errors="replace").rstrip("\r\n").rpartition("\r")[2].rstrip()
            if line:
                self._tail.append(line)
                on_line(line)


def check_installed(settings: Settings) -> None:
    """Raise ComfyUIStartError that says which path is missing and what to do about it."""
    main = settings.comfyui_code / "main.py"
    if not main.is_file():
        raise ComfyUIStartError(
            f"there is no ComfyUI at {main}: run `python -m runtime install`, or set COMFYUI_DIR"
            " to the folder that holds its main.py"
        )
    if not settings.comfyui_interpreter.exists():
        raise ComfyUIStartError(
            f"there is no Python for ComfyUI at {settings.comfyui_interpreter}:"
            " run `python -m runtime install`, or set COMFYUI_PYTHON"
        )


def command(settings: Settings, port: int) -> list[str]:
    """The command line of ComfyUI (its flags: comfy/cli_args.py)."""
    line = [str(settings.comfyui_interpreter), "-u", "main.py"]
    line += ["--listen", HOST, "--port", str(port), "--disable-auto-launch"]
    if not has_gpu() and "--cpu" not in settings.comfyui_args:
        # On a CPU ComfyUI would pick sub-quadratic attention: 19 s instead of 7 s a step of Wan.
        line += ["--cpu", "--use-pytorch-cross-attention"]
    if settings.comfyui_data_dir:
        data = settings.comfyui_data_dir
        for folder in ("output", "input", "user"):
            (data / folder).mkdir(parents=True, exist_ok=True)
            line += [f"--{folder}-directory", str(data / folder)]
        line += ["--temp-directory", str(data)]
        line += ["--database-url", f"sqlite:///{data / 'user' / 'comfyui.db'}"]
    if (config := settings.standins / "extra_model_paths.yaml").is_file():
        line += ["--extra-model-paths-config", str(config)]
    return [*line, *settings.comfyui_args]


def has_gpu() -> bool:
    """Whether the kernel shows a GPU that torch can use (NVIDIA, WSL, ROCm device files)."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or any(
        Path(device).exists() for device in ("/dev/dxg", "/dev/kfd")
    )


def child_environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_WITHHELD_PREFIXES)}
    return {**kept, "PYTHONUNBUFFERED": "1"}


def describe_exit(status: int) -> str:
    """`signal SIGKILL` or `exit status 3`."""
    if status < 0:
        return f"signal {signal.Signals(-status).name}"
    return f"exit status {status}"


def _die_with_parent() -> None:
    # See prctl(2): the kernel kills ComfyUI when the thread that started it is gone.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port(preferred: int) -> int:
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise ComfyUIStartError("no free TCP port on the loopback interface")


def _answers(port: int, path: str, expected: int) -> bool:
    connection = HTTPConnection(HOST, port, timeout=_PROBE_TIMEOUT_S)
    upgrade = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "bGFtYmRhLWNvbWZ5dWkxMg==",
    }
    try:
        connection.request("GET", path, headers=upgrade if expected == 101 else {})
        return connection.getresponse().status == expected
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


if sys.platform != "linux":
    raise ImportError("lambda-comfyui runs on Linux: process groups and prctl are used")
