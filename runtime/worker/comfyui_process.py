"""One ComfyUI process: how it is started, when it is ready, how its whole group is stopped.

Who wants it running, and what happens after it died, is decided in runtime/worker/lifecycle.py.
"""

import contextlib
import json
import os
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import fields
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from handler.settings import PROJECT, Settings
from runtime.errors import LambdaComfyUIError
from runtime.process.child import Child, describe_exit

DEFAULT_PORT = 18188
HOST = "127.0.0.1"
STOP_GRACE_S = 1.0
_PROBE_TIMEOUT_S = 1.0
_PROBE_EVERY_S = 0.02
# It only sets a flag. A shutdown must not wait for it.
_FREE_TIMEOUT_S = 0.5
# After it ComfyUI counts as hung.
_DROP_TIMEOUT_S = 2.0
_TCP_LISTEN = "0A"
_LAUNCH = Path(__file__).with_name("inside_comfyui.py")
_TAIL_LINES = 200
_SHOWN_LINES = 20
# Custom nodes are other people's code: they get none of the handler's credentials.
_WITHHELD_PREFIXES = ("S3_", "WEBHOOK_", "AWS_")
_WITHHELD = {item.metadata["env"] for item in fields(Settings) if item.metadata["secret"]}
_PROGRESS_BAR = re.compile(r"\s*\d+%\|")


class ComfyUIStartError(LambdaComfyUIError):
    """ComfyUI did not become ready; the message ends with its last log lines."""


class ComfyUIProcess:
    """A ComfyUI, started at once, or prepared: its Python has imported what takes long, and waits.

    Make it in a thread that lives on: see Child. Raises ComfyUIStartError if none is installed.
    """

    def __init__(
        self, settings: Settings, on_line: Callable[[str], None], *, is_prepared: bool = False
    ) -> None:
        check_installed(settings)
        self.port = 0
        self._settings = settings
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._on_line = on_line
        self._waits = is_prepared
        program = ["--prepare"] if is_prepared else self._command()
        self._child = Child(
            [str(settings.comfyui_interpreter), "-u", str(_LAUNCH), *program],
            cwd=settings.comfyui_code,
            env=child_environment(os.environ),
            on_line=self._take,
            has_stdin=is_prepared,
        )

    def begin(self) -> None:
        """Let a prepared process become ComfyUI. Raises ComfyUIStartError when it is gone."""
        if self._waits:
            self._waits = False
            try:
                self._child.write_line(json.dumps(self._command()))
            except (OSError, ValueError) as error:
                raise ComfyUIStartError(self.explain("the prepared ComfyUI has ended")) from error

    @property
    def base_url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        return self._child.pid

    def _command(self) -> list[str]:
        given = self._settings.comfyui_port
        self.port = given or _free_port(DEFAULT_PORT if given is None else 0)
        return ["main.py", *arguments(self._settings, self.port)]

    def wait_until_ready(self, timeout_s: float, is_cancelled: Callable[[], bool]) -> bool:
        """True once `/system_stats` and the WebSocket both answer; False when cancelled.

        Raises ComfyUIStartError the moment the process ends, or after `timeout_s` seconds.
        """
        give_up = time.monotonic() + timeout_s
        while time.monotonic() < give_up:
            if is_cancelled():
                return False
            if (status := self._child.wait(_PROBE_EVERY_S)) is not None:
                raise ComfyUIStartError(self.explain(f"ComfyUI ended with {describe_exit(status)}"))
            # The owner of the port, too: a stranger that took it must not pass for ours.
            if _is_open(self.port) and _listens(self.pid, self.port) and self._serves():
                return True
        raise ComfyUIStartError(self.explain(f"ComfyUI was not ready within {timeout_s:g} s"))

    def wait(self, timeout_s: float) -> int | None:
        """The exit status, or None when it still runs after `timeout_s` seconds."""
        return self._child.wait(timeout_s)

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """End the whole process group: SIGTERM, then SIGKILL after `grace_s` seconds."""
        self._child.stop(grace_s)

    def free(self) -> None:
        """Have it unload its models."""
        self._post("/free", {"unload_models": True, "free_memory": True}, _FREE_TIMEOUT_S)

    def drop(self, prompt_id: str) -> bool:
        """Take a prompt out of its queue, or interrupt it; False if it does not answer.

        It then does so when it reads it.
        """
        answers = [
            self._post("/queue", {"delete": [prompt_id]}, _DROP_TIMEOUT_S),
            self._post("/interrupt", {"prompt_id": prompt_id}, _DROP_TIMEOUT_S),
        ]
        return all(answers)

    def _post(self, path: str, body: dict[str, object], timeout_s: float) -> bool:
        connection = HTTPConnection(HOST, self.port, timeout=timeout_s)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            connection.getresponse()
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()
        return True

    def last_lines(self) -> list[str]:
        """The last log lines, the newest at the end."""
        return list(self._tail)[-_SHOWN_LINES:]

    def explain(self, what: str) -> str:
        """`what`, followed by the last log lines."""
        return "\n".join([f"{what}. Its last log lines:", *self.last_lines()])

    def _take(self, line: str) -> None:
        # A progress bar rewrites its line for every step; the handler reports the steps.
        if not _PROGRESS_BAR.match(line):
            self._tail.append(line)
            self._on_line(line)

    def _serves(self) -> bool:
        return _answers(self.port, "/system_stats", 200) and _answers(self.port, "/ws", 101)


def check_installed(settings: Settings) -> None:
    """Raise ComfyUIStartError that says which path is missing and what to do about it."""
    main = settings.comfyui_code / "main.py"
    if not main.is_file():
        raise ComfyUIStartError(
            f"there is no ComfyUI at {main}: run `python -m runtime install`, or set COMFYUI_DIR"
            " to the folder that holds its main.py"
        )
    if settings.models_dir and not settings.models_dir.is_dir():
        raise ComfyUIStartError(f"MODELS_DIR: there is no folder {settings.models_dir}")
    if not settings.comfyui_interpreter.exists():
        raise ComfyUIStartError(
            f"there is no Python for ComfyUI at {settings.comfyui_interpreter}:"
            " run `python -m runtime install`, or set COMFYUI_PYTHON"
        )


def arguments(settings: Settings, port: int) -> list[str]:
    """The arguments of ComfyUI's main.py (its flags: comfy/cli_args.py)."""
    line = ["--listen", HOST, "--port", str(port), "--disable-auto-launch"]
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
    if settings.models_dir:
        line += ["--extra-model-paths-config", str(_write_model_paths(settings))]
    if (config := settings.standins / "extra_model_paths.yaml").is_file():
        line += ["--extra-model-paths-config", str(config)]
    return [*line, *settings.comfyui_args]


def _write_model_paths(settings: Settings) -> Path:
    """An extra_model_paths.yaml for MODELS_DIR: each of its folders is a kind of model."""
    assert settings.models_dir is not None
    kinds = sorted(entry.name for entry in settings.models_dir.iterdir() if entry.is_dir())
    paths = {"base_path": str(settings.models_dir), **{kind: kind for kind in kinds}}
    settings.worker_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    config = settings.worker_dir / "extra_model_paths.yaml"
    # JSON is YAML: https://yaml.org/spec/1.2.2/, section 1.3.
    config.write_text(json.dumps({"models_dir": paths}))
    return config


def has_gpu() -> bool:
    """Whether the kernel shows a GPU that torch can use (NVIDIA, WSL, ROCm device files)."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or any(
        Path(device).exists() for device in ("/dev/dxg", "/dev/kfd")
    )


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What ComfyUI gets of our environment: all but the handler's settings and credentials."""
    kept = {
        name: value
        for name, value in environ.items()
        if name not in _WITHHELD and not name.startswith(_WITHHELD_PREFIXES)
    }
    # A host puts this project there for its handlers; our packages must not hide ComfyUI's.
    places = [place for place in kept.pop("PYTHONPATH", "").split(os.pathsep) if place]
    if others := [place for place in places if Path(place) != PROJECT]:
        kept["PYTHONPATH"] = os.pathsep.join(others)
    return {**kept, "PYTHONUNBUFFERED": "1"}


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


def _is_open(port: int) -> bool:
    """Whether anybody listens; much cheaper than to ask who."""
    with socket.socket() as probe:
        return port != 0 and probe.connect_ex((HOST, port)) == 0


def _listens(pid: int, port: int) -> bool:
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
