"""A real PyWorker as a worker of our router: its reports, and its check of our signatures."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from tests.processes import free_ports, wait_until
from tests.runtime.fleet.fleet import (
    WORKERS,
    RouterProcess,
    require_vastai,
    router_process,
    vastai_client,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PYWORKER = Path(__file__).with_name("pyworker.py")
JOB_S = 0.5


@contextmanager
def wrapper() -> Iterator[int]:
    """An API wrapper whose jobs take JOB_S; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(JOB_S)
            self._answer({"id": body["input"].get("request_id", ""), "status": "completed"})

        def _answer(self, body: object) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@contextmanager
def pyworker(router: RouterProcess, folder: Path) -> Iterator[str]:
    """The address of a PyWorker that is ready."""
    python = require_vastai()
    port, _ = free_ports(2)
    log = folder / "backend.log"
    log.write_text("BACKENDS_READY\n")
    environ = {
        **os.environ,
        "CONTAINER_ID": "4711",
        "REPORT_ADDR": router.url,
        "WORKER_PORT": str(port),
        "WORKER_HTTP_PORT": "0",
        f"VAST_TCP_PORT_{port}": str(port),
        "PUBLIC_IPADDR": "127.0.0.1",
        "UNSECURED": "false",
        "MASTER_TOKEN": WORKERS,
    }
    with wrapper() as wrapped, (folder / "pyworker.log").open("wb") as output:
        process = subprocess.Popen(
            [python, str(PYWORKER), str(wrapped), str(log)],
            cwd=folder,
            env=environ,
            stdout=output,
            stderr=output,
        )
        try:
            is_ready = wait_until(lambda: router.statuses() == ["ready"], 120)
            assert is_ready, (folder / "pyworker.log").read_text()
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait(30)


def test_pyworker_works_for_our_router_in_its_secured_mode(tmp_path: Path) -> None:
    with router_process(tmp_path) as router, pyworker(router, tmp_path) as url:
        (worker,) = router.fleet()["workers"]
        assert (worker["id"], worker["url"]) == (4711, url)
        # 100 ÷ seconds, as PyWorker measures it.
        assert 0 < worker["score"] <= 100 / JOB_S

        client = vastai_client(router.url, 5)
        output, _ = client.communicate(timeout=200)

        answers = json.loads(output)["answers"]
        assert [each["ok"] for each in answers] == [True] * 5
        assert {each["response"]["id"] for each in answers} == {f"job-{n}" for n in range(5)}
        # It has told the router of each end.
        assert wait_until(lambda: router.fleet()["workers"][0]["reqs_working"] == 0)
        assert router.fleet()["workers"][0]["requests"] == 5

        forged = router.route() | {"signature": "bm8="}
        answer = requests.post(
            f"{url}/generate/sync",
            json={"auth_data": forged, "session_id": None, "payload": {"input": {}}},
            timeout=30,
        )
        assert answer.status_code == 401
