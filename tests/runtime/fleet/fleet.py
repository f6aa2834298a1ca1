"""A fleet of real processes: routers, and workers that sleep instead of running ComfyUI."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from handler.settings import PROJECT
from tests.processes import free_ports, wait_until

CALLERS, WORKERS = "of-callers", "of-workers"
VASTAI_PYTHON = PROJECT / ".venv-vastai" / "bin" / "python"
CLIENT = Path(__file__).with_name("vastai_client.py")


class RouterProcess:
    """`lambda-comfyui router` on a port that stays the same after a restart."""

    def __init__(self, folder: Path, **variables: str) -> None:
        (self._port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self._port}"
        self.database = folder / "router.sqlite"
        self._log = folder / f"router-{self._port}.log"
        self._environ = {
            **os.environ,
            "ROUTER_TOKEN": CALLERS,
            "ROUTER_WORKER_TOKEN": WORKERS,
            "ROUTER_PORT": str(self._port),
            "JOBS_DB": str(self.database),
            **variables,
        }
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "runtime", "router"],
                cwd=PROJECT,
                env=self._environ,
                stdout=log,
                stderr=log,
            )
        assert wait_until(self._is_up, 60), self.log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def get(self, path: str, **options: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {CALLERS}"}
        return requests.get(self.url + path, headers=headers, timeout=30, **options)

    def post(self, path: str, body: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=30)

    def route(self, **fields: Any) -> dict[str, Any]:
        body = {"endpoint": "comfyui", "api_key": CALLERS, "cost": 100, **fields}
        answer: dict[str, Any] = self.post("/route/", body).json()
        return answer

    def fleet(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.get("/fleet").json()
        return answer

    def statuses(self) -> list[str]:
        return sorted(worker["status"] for worker in self.fleet()["workers"])

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(30) == 0, self.log

    def _is_up(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            return requests.get(f"{self.url}/health", timeout=5).ok
        except requests.ConnectionError:
            return False


@contextmanager
def router_process(folder: Path, **variables: str) -> Iterator[RouterProcess]:
    router = RouterProcess(folder, **variables)
    try:
        yield router
    finally:
        router.process.kill()
        router.process.wait(30)


@contextmanager
def slow_workers(
    router: RouterProcess, scores: Sequence[float], folder: Path
) -> Iterator[dict[float, "subprocess.Popen[bytes]"]]:
    """One worker of each score; the router knows all of them."""
    processes = {}
    try:
        for score in scores:
            with (folder / f"worker-{score}.log").open("wb") as log:
                processes[score] = subprocess.Popen(
                    [sys.executable, "-m", SLOW_WORKER, router.url, str(score), "0"],
                    cwd=PROJECT,
                    stdout=log,
                    stderr=log,
                )
        assert wait_until(lambda: router.statuses() == ["ready"] * len(scores), 60), router.log
        yield processes
    finally:
        for process in processes.values():
            process.kill()
            process.wait(30)


def vastai_client(url: str, requests_: int, workflow: str = "{}") -> "subprocess.Popen[str]":
    """The official client with this many requests at once; its result is JSON on stdout."""
    return subprocess.Popen(
        [require_vastai(), str(CLIENT), url, CALLERS, str(requests_), workflow],
        stdout=subprocess.PIPE,
        text=True,
    )


def require_vastai() -> str:
    """The Python that has `vastai`; a test that needs it is skipped without, but fails in CI."""
    if not VASTAI_PYTHON.exists():
        if os.environ.get("CI"):
            pytest.fail(NO_VASTAI)
        pytest.skip(NO_VASTAI)
    return str(VASTAI_PYTHON)


SLOW_WORKER = "tests.runtime.fleet.slow_worker"
NO_VASTAI = "the client `vastai` is not installed; `make .venv-vastai/.installed` does it"
