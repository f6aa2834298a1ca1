"""`serve` with the real extension and handler: who owns ComfyUI, and what a failed start does."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from handler.settings import PROJECT
from handler.worker_protocol import State
from tests import workflows
from tests.processes import processes_with, wait_until
from tests.runtime.test_worker import StartWorker, own_folders, start_worker
from tests.workflows import event

__all__ = ["start_worker"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


class Host:
    """A running `serve`: its log, and calls of its endpoint."""

    def __init__(self, process: "subprocess.Popen[bytes]", path: Path) -> None:
        self.process, self._path = process, path

    @property
    def log(self) -> str:
        return self._path.read_text(errors="replace")

    def invoke(self, request: Any) -> Any:
        address = r"listening on (http://\S+),"
        assert wait_until(lambda: bool(re.search(address, self.log))), self.log
        (url,) = re.findall(address, self.log)
        path = "/2015-03-31/functions/function/invocations"
        return requests.post(url + path, json=request, timeout=60).json()


@contextmanager
def serve(folder: Path, **variables: str) -> Iterator[Host]:
    environ = os.environ | own_folders(folder) | {"SERVE_PORT": "0"} | variables
    log = folder / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime", "serve"],
            cwd=PROJECT,
            env=environ,
            stdout=output,
            stderr=output,
        )
        try:
            yield Host(process, log)
        finally:
            process.terminate()
            assert process.wait(30) in (0, 1)
    assert not processes_with(f"WORKER_DIR={folder}", "serve")


def test_worker_that_runs_already_is_used_and_left_as_it_is(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker()
    pid = worker.wake().comfyui_pid

    with serve(tmp_path) as host:
        assert host.invoke(event(workflows.image()))["status"] == "completed"
        assert worker.status().comfyui_pid == pid
        assert "another process owns ComfyUI" in host.log

    assert worker.process.poll() is None
    assert worker.status().state is State.READY


def test_environment_whose_comfyui_cannot_start_is_replaced(tmp_path: Path) -> None:
    with serve(tmp_path, COMFYUI_ARGS="--no-such-flag") as host:
        for _ in range(6):
            answer = host.invoke(event(workflows.image()))
            assert "completed" not in json.dumps(answer)

        assert wait_until(lambda: "environment crashed (1 in a row): Worker.Failed" in host.log)


def test_drained_worker_ends_its_environment_after_the_answer(tmp_path: Path) -> None:
    with serve(tmp_path) as host:
        assert host.invoke(event(workflows.image()))["status"] == "completed"
        started = host.log.count("node.started")
        sleeper = event(workflows.one("TestSleep", seconds=5.0, deaf=False))
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(host.invoke, sleeper)
            assert wait_until(lambda: host.log.count("node.started") > started)
            drained = subprocess.run(
                [sys.executable, "-m", "runtime", "ask", "drain"],
                cwd=PROJECT,
                env=os.environ | {"WORKER_DIR": str(tmp_path)},
                capture_output=True,
                check=True,
            )

        state = json.loads(drained.stdout)
        assert (state["state"], state["jobs"]) == ("draining", 1)
        assert answer.result()["status"] == "completed"
        # Another environment with a worker of its own.
        assert wait_until(
            lambda: host.invoke(event(workflows.image())).get("status") == "completed", 60
        )
