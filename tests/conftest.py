"""Real parts for the tests: ComfyUI behind the handler, an S3 server, a webhook receiver."""

import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from handler import app
from handler.comfyui import ComfyUI
from handler.settings import PROJECT, Settings
from handler.worker_protocol import SOCKET_NAME, GetState, Request, WorkerStatus
from runtime.local_s3 import LocalS3, local_s3
from tests import worker
from tests.aws import new_bucket
from tests.processes import connect_to, wait_until
from tests.workflows import event

TESTS = PROJECT / "tests"
CUSTOM_NODES = TESTS / "custom_nodes"
_OURS = (
    *("S3_", "WEBHOOK_", "AWS_", "COMFYUI_", "WORKER_", "STANDIN_", "DEAD", "POWERTOOLS_"),
    *("JOBS_", "OUTBOUND_", "API_", "ROUTER_", "PUBLIC_", "SCALE_", "WORKFLOW_", "COMPILE_"),
)
# Fixtures that start a server.
_SERVICES = {"aws", "dynamodb", "s3"}
_PLACES = ("COMFYUI_HOME", "COMFYUI_DIR", "COMFYUI_PYTHON", "STANDIN_MODELS_DIR")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that `make fast` leaves out by the fixtures that they use.

    The tests of whole machines come first: they take longest, and a run of several processes ends
    when the last of its files does.
    """
    items.sort(key=lambda item: item.path.parent != TESTS)
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if "comfyui" in fixtures:
            item.add_marker(pytest.mark.comfyui)
        if fixtures & _SERVICES:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def environment() -> Iterator[Path]:
    """No setting of the developer's shell reaches a test, except where ComfyUI is installed."""
    folder = Path(tempfile.mkdtemp(prefix="lc-"))
    # Readable also for the unprivileged user that AWS's emulator runs things as.
    folder.chmod(0o755)
    nodes = folder / "nodes.yaml"
    nodes.write_text(f"tests:\n  custom_nodes: {CUSTOM_NODES}\n")
    before = dict(os.environ)
    for name in before:
        if name.startswith(_OURS) and name not in _PLACES:
            del os.environ[name]
    os.environ |= {
        "WORKER_DIR": str(folder / "worker"),
        "COMFYUI_DATA_DIR": str(folder / "data"),
        "COMFYUI_PORT": "0",
        "API_PORT": "0",
        # The webhook receivers and the S3 servers of the tests that a request names.
        "OUTBOUND_ALLOW": "127.0.0.1",
        "COMFYUI_ARGS": f"--disable-api-nodes --extra-model-paths-config {nodes}",
    }
    yield folder
    for connections in app._connections.values():
        connections.close()
    os.environ.clear()
    os.environ.update(before)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def comfyui(environment: Path) -> Iterator[None]:
    """A worker with a real ComfyUI, which every handler of this session uses.

    As with an extension, the worker is there before the handlers, and outlives them.
    """
    process = subprocess.Popen([sys.executable, "-m", "runtime", "worker"], cwd=PROJECT)
    connect_to(environment / "worker" / SOCKET_NAME).close()
    yield
    process.terminate()
    assert process.wait(30) == 0


class Context:
    """Lambda's context, as far as the handler reads it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def get_remaining_time_in_millis(self) -> int:
        return int(self.seconds * 1000)


def run(workflow: Any, *, seconds: float = 100.0, **given: Any) -> dict[str, Any]:
    """The handler's response to a request with this workflow."""
    return app.lambda_handler(event(workflow, **given), Context(seconds))


def current_client() -> ComfyUI:
    """The connection to ComfyUI that the handler of this process holds."""
    (connections,) = app._connections.values()
    assert connections.comfyui is not None
    return connections.comfyui


@contextmanager
def when_comfyui(queue: str, act: Callable[[], object]) -> Iterator[None]:
    """Call `act` once a prompt is in this queue: `queue_pending` or `queue_running`."""
    url = f"{current_client().base_url}/queue"

    def wait_and_act() -> None:
        if wait_until(lambda: bool(requests.get(url, timeout=30).json()[queue])):
            act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    yield
    thread.join()


def worker_status(kind: Callable[..., Request] = GetState, **fields: Any) -> WorkerStatus:
    """How the worker of this environment is, after a request of this kind."""
    path = Settings.from_env(os.environ).worker_dir / SOCKET_NAME
    with closing(worker.connect(path)) as connection:
        return worker.status(connection, kind, **fields)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[LocalS3]:
    with tempfile.TemporaryDirectory(prefix="lc-s3-") as folder, local_s3(Path(folder)) as server:
        yield server


@pytest.fixture
def s3(s3_server: LocalS3) -> LocalS3:
    """A server with an empty bucket: the id of a job in it is taken by no other test."""
    return new_bucket(s3_server)


@dataclass
class WebhookReceiver:
    """A real HTTP server that keeps what it gets; `answers` are used up first, then 200.

    `location` is the Location header of every answer.
    """

    url: str = ""
    calls: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    delay_s: float = 0.0
    location: str = ""

    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, body in self.calls]


@contextmanager
def serve_webhook(
    address: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> Iterator[WebhookReceiver]:
    receiver = WebhookReceiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.calls.append((dict(self.headers.items()), body))
            time.sleep(receiver.delay_s)
            self.send_response(receiver.answers.pop(0) if receiver.answers else 200)
            if receiver.location:
                self.send_header("Location", receiver.location)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    with ThreadingHTTPServer((address, port), Handler) as server:
        receiver.url = f"http://{address}:{server.server_port}/hook"
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield receiver
        server.shutdown()
        thread.join()


@pytest.fixture
def webhook_receiver() -> Iterator[WebhookReceiver]:
    with serve_webhook() as receiver:
        yield receiver
