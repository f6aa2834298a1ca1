"""The extension and the handler under AWS's own runtime interface emulator, on the real ComfyUI.

The emulator looks for extensions in /opt/extensions and wants to be root, so it gets a mount
namespace of its own, in which /opt and /var are temporary: nothing of the machine is touched.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from handler.settings import PROJECT
from handler.worker_protocol import State
from runtime.worker.states import MOVES
from tests import workflows
from tests.processes import free_ports, is_running, processes_with, wait_until
from tests.workflows import event

MAY_MOUNT = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    # On a developer's machine; where CI runs, its absence is a failure.
    pytest.mark.skipif(
        MAY_MOUNT.returncode != 0 and "CI" not in os.environ,
        reason="the emulator needs root and a mount namespace of its own",
    ),
]

FUNCTION = "/2015-03-31/functions/function/invocations"
# `make test` puts SAM CLI there, which ships the emulator.
EMULATORS = sorted((PROJECT / ".venv-sam").glob("lib/*/site-packages/samcli/local/rapid/*x86_64"))
# The unprivileged user of Managed Instances must reach a Python that lives in root's home.
SETUP = """
set -e
mount -t tmpfs -o mode=755 none /opt
mount -t tmpfs -o mode=755 none /var
mkdir /opt/extensions /opt/home /var/task
mount --bind "$HOME" /opt/home
mount -t tmpfs -o mode=755 none "$HOME"
for entry in /opt/home/.[!.]* /opt/home/*; do
    if [ -d "$entry" ]; then
        mkdir -p "$HOME/$(basename "$entry")"
        mount --bind "$entry" "$HOME/$(basename "$entry")"
    fi
done
cp "$1/extension" /opt/extensions/lambda-comfyui
cp "$1/bootstrap" /opt/bootstrap
shift
exec "$@"
"""


class Emulator:
    """A running emulator: its address, its log, and the processes that it started."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, folder: Path) -> None:
        self.process, self.port, self.folder = process, port, folder
        self.url = f"http://127.0.0.1:{port}{FUNCTION}"

    def invoke(self, request: Any) -> Any:
        return requests.post(self.url, json=request, timeout=60).json()

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def processes(self, word: str) -> list[int]:
        """The process ids below this emulator whose command line has the word."""
        return processes_with(f"WORKER_DIR={self.folder}/worker", word)


@contextmanager
def emulator(**variables: str) -> Iterator[Emulator]:
    if not EMULATORS:
        pytest.fail("there is no emulator: `make test` installs it with SAM CLI")
    port, api_port = free_ports(2)
    folder = Path(tempfile.mkdtemp(prefix="lc-rie-"))
    folder.chmod(0o777)
    python = PROJECT / ".venv" / "bin" / "python"
    for name, module in (
        ("extension", "runtime extension"),
        ("bootstrap", "awslambdaric handler.app.lambda_handler"),
    ):
        script = folder / name
        script.write_text(f"#!/bin/sh\ncd {PROJECT} && exec {python} -m {module}\n")
        script.chmod(0o755)
    environ = os.environ | {
        "WORKER_DIR": f"{folder}/worker",
        "COMFYUI_DATA_DIR": f"{folder}/data",
        "AWS_EXECUTION_ENV": "AWS_Lambda_python3.12",
        "AWS_LAMBDA_FUNCTION_TIMEOUT": "60",
        "PYTHONDONTWRITEBYTECODE": "1",
        **variables,
    }
    line = ["unshare", "--mount", "sh", "-c", SETUP, "sh", str(folder), str(EMULATORS[0])]
    line += ["--runtime-interface-emulator-address", f"127.0.0.1:{port}"]
    line += ["--runtime-api-address", f"127.0.0.1:{api_port}", "/opt/bootstrap"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            line, cwd=PROJECT, env=environ, stdout=log, stderr=log, start_new_session=True
        )
        try:
            running = Emulator(process, port, folder)
            assert wait_until(lambda: _listens(running)), running.log()
            yield running
        finally:
            process.terminate()
            process.wait(30)
            shutil.rmtree(folder, ignore_errors=True)


def _listens(running: Emulator) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", running.port)) == 0


def test_init_lasts_until_comfyui_is_ready_and_no_process_outlives_shutdown() -> None:
    with emulator() as running:
        cold = running.invoke(event(workflows.image()))
        warm = running.invoke(event(workflows.image()))

        assert cold["status"] == warm["status"] == "completed"
        # ComfyUI was ready before the first event came.
        assert cold["timings"]["cold_start_ms"] == 0
        everything = running.processes("python")
        assert len(everything) >= 3

        running.process.terminate()
        running.process.wait(30)

        # The emulator itself ends when the extension does, or two seconds after SHUTDOWN.
        assert wait_until(lambda: not running.processes("python"))
        assert "extension: SHUTDOWN" in running.log()
        assert not any(is_running(pid) for pid in everything)


def test_death_of_comfyui_costs_one_job_and_death_of_the_extension_one_environment() -> None:
    with emulator() as running:
        killed = running.invoke(event(workflows.one("TestKill")))
        after = running.invoke(event(workflows.image()))

        assert killed["error"]["type"] == "WorkerUnavailable"
        assert after["status"] == "completed"

        (extension,) = running.processes("runtime\0extension")
        os.kill(extension, signal.SIGKILL)
        assert wait_until(lambda: not running.processes("inside_comfyui.py"))

        assert wait_until(
            lambda: running.invoke(event(workflows.image())).get("status") == "completed",
            timeout_s=60,
        )


def test_two_workers_of_managed_instances_share_one_comfyui() -> None:
    with emulator(AWS_LAMBDA_MAX_CONCURRENCY="2") as running:
        first = until_answered(running, event(workflows.image()))
        sleeper = event(workflows.one("TestSleep", seconds=1.0, deaf=False))
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda _: until_answered(running, sleeper), range(2)))

        assert first["status"] == "completed"
        assert [response["status"] for response in both] == ["completed", "completed"]
        assert len(running.processes("inside_comfyui.py")) == 1


@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", ["", "2"], ids=["standard", "managed-instances"])
def test_every_one_of_many_invocations_is_answered_whenever_comfyui_dies(workers: str) -> None:
    variables = {"AWS_LAMBDA_MAX_CONCURRENCY": workers} if workers else {}
    with emulator(**variables) as running:
        assert until_answered(running, event(workflows.image()))["status"] == "completed"
        is_over = threading.Event()
        killer = threading.Thread(target=kill_now_and_then, args=(running, is_over))
        killer.start()
        with ThreadPoolExecutor(int(workers or 1)) as pool:
            answers = list(
                pool.map(lambda _: until_answered(running, event(workflows.image())), range(200))
            )
        is_over.set()
        killer.join()

        ends = Counter(
            answer["error"]["type"] if "error" in answer else answer["status"] for answer in answers
        )
        assert set(ends) <= {"completed", "WorkerUnavailable"}
        # A death ends the jobs that ran or waited for that start, and no others.
        assert ends["WorkerUnavailable"] <= KILLS * int(workers or 1)
        assert wait_until(
            lambda: until_answered(running, event(workflows.image()))["status"] == "completed", 60
        )
        assert len(running.processes("inside_comfyui.py")) == 1

        end_in_the_middle_of(running, event(workflows.one("TestSleep", seconds=300.0, deaf=True)))

        check_states(running.log())


KILLS = 5


def kill_now_and_then(running: Emulator, is_over: threading.Event) -> None:
    """SIGKILL for ComfyUI at KILLS random moments, while it boots or while it runs a job."""
    for _ in range(KILLS):
        if is_over.wait(random.uniform(0.05, 2)):
            return
        for pid in running.processes("inside_comfyui.py"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def end_in_the_middle_of(running: Emulator, request: Any) -> None:
    """SIGTERM while a job runs: SHUTDOWN comes, and no process outlives the emulator."""
    started = running.log().count("node.started")
    with ThreadPoolExecutor(1) as pool:
        cut_off = pool.submit(until_answered, running, request)
        assert wait_until(lambda: running.log().count("node.started") > started)
        running.process.terminate()
        running.process.wait(30)
        assert wait_until(lambda: not running.processes(""))
        with contextlib.suppress(requests.ConnectionError):
            assert cut_off.result().get("status") != "completed"
    assert "extension: SHUTDOWN" in running.log()


def check_states(log: str) -> None:
    """Every move in the log is one of the table, and begins where the one before it ended."""
    moves = re.findall(r"^worker (\w+) -> (\w+) after", log, re.MULTILINE)
    state = State.STARTING
    for old, new in moves:
        assert state == old
        assert State(new) in MOVES[state]
        state = State(new)
    assert state is State.DRAINING


def test_lone_worker_of_managed_instances_that_dies_ends_the_environment() -> None:
    with emulator(AWS_LAMBDA_MAX_CONCURRENCY="1") as running:
        assert until_answered(running, event(workflows.image()))["status"] == "completed"
        clients = running.processes("awslambdaric")
        (worker,) = [pid for pid in clients if parent_of(pid) in clients]
        extension = running.processes("runtime\0extension")

        os.kill(worker, signal.SIGKILL)

        # By the platform when awslambdaric's parent ends as well, else by the extension.
        assert wait_until(lambda: not is_running(extension[0])), running.log()


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def until_answered(running: Emulator, request: Any) -> Any:
    """The answer, asked for again while the emulator has no free worker, as a caller would."""
    give_up = time.monotonic() + 60
    while True:
        answer = requests.post(running.url, data=json.dumps(request), timeout=60,
                               headers={"Content-Type": "application/json"})  # fmt: skip
        body = answer.json() if answer.content else {}
        if "status" in body or time.monotonic() > give_up:
            return body
        time.sleep(0.2)
