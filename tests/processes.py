"""What tests ask about processes and conditions: is it running, has it come true by now."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from handler.settings import PROJECT


def run_command(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """Run `lambda-comfyui` with these arguments and variables. No status is an error."""
    return subprocess.run(
        [sys.executable, "-m", "runtime", *arguments],
        cwd=PROJECT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def is_running(pid: int) -> bool:
    """Whether the process still does something; a zombie does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def processes_with(variable: str, word: str = "") -> list[int]:
    """The processes with this `NAME=value` in their environment and the word in their command."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environ = (entry / "environ").read_bytes().split(b"\0")
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            is_ours = variable.encode() in environ and word.encode() in command
            if is_ours and is_running(int(entry.name)):
                found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    give_up = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.01)
    return True


def connect_to(path: Path) -> socket.socket:
    """A connection to a Unix socket. Its file is there from bind() on, which is before listen()."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    assert wait_until(lambda: connection.connect_ex(str(path)) == 0), (
        f"no process listens on {path}"
    )
    return connection


def free_ports(count: int) -> list[int]:
    """Different ports of the loopback on which no process listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports
