"""The images under test and their containers, through podman's command line."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
LAMBDA = "docker.io/library/lambda-comfyui:latest"
HOST = "docker.io/library/lambda-comfyui-host:latest"
EMULATOR_URL = "http://127.0.0.1:8080/2015-03-31/functions/function/invocations"

# As Lambda runs it: nothing but /tmp can be written. By itself, podman would add /run and /var/tmp.
READ_ONLY = ("--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp:mode=1777")
NO_NETWORK = ("--network", "none")
LOG_LINES = 40

_POST = (Path(__file__).parent / "post.py").read_text()
_numbers = count(1)


class PodmanError(Exception):
    """podman ended with another status than 0. The message has its output."""


def podman(*words: str, stdin: str = "") -> str:
    """The stdout of a podman command. Raises PodmanError."""
    done = subprocess.run(
        ["podman", *words], input=stdin, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PodmanError(
            f"podman {words[0]} ended with status {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done.stdout


@dataclass(frozen=True)
class Stop:
    """How a container ended: its exit status, and the seconds since SIGTERM."""

    status: int
    seconds: float


@dataclass(frozen=True)
class Container:
    name: str

    def execute(self, *command: str, stdin: str = "") -> str:
        return podman("exec", "--interactive", self.name, *command, stdin=stdin)

    def post(self, url: str, body: Any, timeout_s: float = 600) -> Any:
        """The JSON answer to a call from inside the container, once its server listens.

        Raises PodmanError with the answer of a status that is not 2xx.
        """
        command = ("/opt/handler/bin/python", "-c", _POST, url, f"{timeout_s:g}")
        return json.loads(self.execute(*command, stdin=json.dumps(body)))

    def address(self) -> str:
        """Its address in podman's bridge network."""
        template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return podman("inspect", "--format", template, self.name).strip()

    def log(self) -> str:
        done = subprocess.run(
            ["podman", "logs", self.name],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        return done.stdout

    def stop(self, grace_s: int) -> Stop:
        """SIGTERM, and SIGKILL (status 137) after `grace_s`."""
        started = time.monotonic()
        podman("stop", "--time", str(grace_s), self.name)
        seconds = time.monotonic() - started
        status = podman("inspect", "--format", "{{.State.ExitCode}}", self.name)
        return Stop(int(status), seconds)


@contextmanager
def running(image: str, *options: str, command: tuple[str, ...] = ()) -> Iterator[Container]:
    """A container that is removed at the end. The end of its log is printed after a failure."""
    container = Container(f"lambda-comfyui-test-{os.getpid()}-{next(_numbers)}")
    podman("run", "--detach", "--name", container.name, *options, image, *command)
    try:
        yield container
    except BaseException:
        print("\n".join(["", "the container's log:", *container.log().splitlines()[-LOG_LINES:]]))
        raise
    finally:
        podman("rm", "--force", "--time", "1", container.name)


def free_port() -> int:
    """A port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
