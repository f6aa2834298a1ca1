"""`lambda-comfyui extension`: owns ComfyUI as an external extension of a Lambda environment.

Lambda's Init phase ends when every extension has asked for its next event. So the extension asks
when ComfyUI is ready, or when INIT_BUDGET is over.
https://docs.aws.amazon.com/lambda/latest/dg/runtimes-extensions-api.html
"""

import argparse
import json
import os
import signal
import threading
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from handler.settings import Settings
from handler.worker_protocol import State
from runtime.errors import LambdaComfyUIError
from runtime.hooks import Change, HookError, Hooks
from runtime.lambda_host.failures import WORKER_UNFIT
from runtime.log import log
from runtime.process.signals import run_beside_signals
from runtime.worker.lifecycle import Worker
from runtime.worker.ownership import OwnershipError, owned_worker

API = "/2020-01-01/extension"
NAME = "lambda-comfyui"
# Lambda kills all processes 2 s after SHUTDOWN began; the runtime may have used 0.6 s of them.
_END_WITHIN_S = 1.0
_GONE_NOTED_AFTER_S = 1.0
# A worker that a handler of the last environment has started ends soon after that handler.
_OWNER_GONE_WITHIN_S = 3.0
_INIT_TYPE = "AWS_LAMBDA_INITIALIZATION_TYPE"
_MANAGED_INSTANCES = "lambda-managed-instances"


class ExtensionsApiError(LambdaComfyUIError):
    """The Extensions API refused a call."""


class ExtensionsApiClient:
    """The calls of one extension. `address` is AWS_LAMBDA_RUNTIME_API, `HOST:PORT`."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._identifier = ""

    def register(self) -> None:
        """Register for SHUTDOWN, the only event that Lambda Managed Instances allow."""
        headers = {"Lambda-Extension-Name": NAME}
        self._identifier = self._call("POST", "/register", headers, {"events": ["SHUTDOWN"]})

    def next_event(self) -> dict[str, Any]:
        """Wait for the next event without a limit. Raises OSError, HTTPException, ValueError."""
        headers = {"Lambda-Extension-Identifier": self._identifier}
        connection = HTTPConnection(self._address)
        try:
            connection.request("GET", f"{API}/event/next", headers=headers)
            event: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return event

    def exit_error(self, kind: str, reason: str) -> None:
        """Report why the environment must be replaced. The process must end afterwards."""
        headers = {
            "Lambda-Extension-Identifier": self._identifier,
            "Lambda-Extension-Function-Error-Type": kind,
        }
        self._call("POST", "/exit/error", headers, {"errorMessage": reason, "errorType": kind})

    def _call(self, method: str, path: str, headers: dict[str, str], body: Any) -> str:
        connection = HTTPConnection(self._address, timeout=10)
        try:
            connection.request(method, API + path, json.dumps(body), headers)
            answer = connection.getresponse()
            body_text = answer.read().decode(errors="replace")
            if answer.status >= 300:
                raise ExtensionsApiError(f"{method} {path}: HTTP {answer.status} {body_text[:200]}")
            return answer.headers.get("Lambda-Extension-Identifier", "")
        finally:
            connection.close()


class EnvironmentGuard(Hooks):
    """Ends an environment that could not run another job, so that the platform replaces it."""

    def __init__(self, api: ExtensionsApiClient) -> None:
        self.failure = self.reason = ""
        self._api = api
        self._worker: Worker | None = None

    def follow(self, worker: Worker, init_budget_s: float) -> None:
        """Hold Init open, then wait for SHUTDOWN and stop the worker. Runs in its own thread."""
        self._worker = worker
        state = worker.wait_settled(init_budget_s)
        log(f"extension: Init ends with the worker {state}")
        grace_s = self.wait_for_shutdown() - _END_WITHIN_S
        worker.stop(grace_s=min(max(grace_s, 0.0), worker.settings.shutdown_grace_s))

    def wait_for_shutdown(self) -> float:
        """Ask for the next event, which is SHUTDOWN; return the seconds until Lambda kills us."""
        try:
            event = self._api.next_event()
        except (OSError, HTTPException, ValueError) as error:
            log(f"extension: the Extensions API does not answer: {type(error).__name__}")
            return 0.0
        log(f"extension: SHUTDOWN ({event.get('shutdownReason', '')})")
        return float(event.get("deadlineMs", 0)) / 1000 - time.time()

    def on_failed(self, change: Change) -> None:
        """No job can run here: every one would fail, and use up a delivery of its message."""
        is_unfit = self._worker is not None and self._worker.unfit_reason
        self.end(WORKER_UNFIT if is_unfit else "Worker.Failed", change.reason)

    def handler_gone(self, pid: int) -> None:
        """Called when the connection of a handler process has ended.

        On Managed Instances, ends the environment if that process was the last handler and has
        died: the platform does not replace a process of the runtime there.
        """
        if self._worker is None or os.environ.get(_INIT_TYPE) != _MANAGED_INSTANCES:
            return
        # At a shutdown, the runtime ends just before SHUTDOWN comes.
        time.sleep(_GONE_NOTED_AFTER_S)
        if self._worker.state in (State.DRAINING, State.STOPPED):
            return
        if not _is_alive(pid) and not _handlers_alive():
            self.end("Runtime.WorkerGone", "the last handler process has died")

    def end(self, kind: str, reason: str) -> None:
        """End the environment, so that the platform makes a new one. `kind` is the error type."""
        self.failure, self.reason = kind, reason
        log(f"extension: {kind}: {reason}")
        log("extension: ending this environment, so that it is replaced")
        if self._worker:
            self._worker.stop()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments: Lambda passes none."""


def run(args: argparse.Namespace, settings: Settings) -> int:
    """0 after SHUTDOWN or SIGTERM, 1 when the environment must be replaced, 2 for wrong settings.

    Raises KeyError when AWS_LAMBDA_RUNTIME_API is not set, as it is in every Lambda environment.
    """
    api = ExtensionsApiClient(os.environ["AWS_LAMBDA_RUNTIME_API"])
    api.register()
    guard = EnvironmentGuard(api)
    try:
        with owned_worker(
            settings,
            on_gone=guard.handler_gone,
            hooks=[guard],
            wait_s=_OWNER_GONE_WITHIN_S,
        ) as worker:
            if worker is None:
                # For example a worker in another terminal: the handlers find it in WORKER_DIR.
                log("extension: another process owns ComfyUI: it is used, and left as it is")
                guard.wait_for_shutdown()
                return 0
            grace_s = settings.shutdown_grace_s
            signal.signal(
                signal.SIGTERM,
                lambda *_: threading.Thread(target=worker.stop, args=(grace_s,)).start(),
            )
            follower = threading.Thread(
                target=guard.follow, args=(worker, settings.init_budget_s), daemon=True
            )
            follower.start()
            run_beside_signals(worker.supervise)
    except (OwnershipError, HookError) as error:
        log(str(error))
        return 2
    if guard.failure:
        api.exit_error(guard.failure, guard.reason)
        return 1
    return 0


def _handlers_alive() -> bool:
    """Whether any handler process of the runtime client is alive.

    With AWS_LAMBDA_MAX_CONCURRENCY, awslambdaric is a parent that only waits, and one child for
    each handler.
    """
    clients = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _is_alive(int(entry.name)):
            try:
                if b"awslambdaric" in (entry / "cmdline").read_bytes():
                    parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                    clients[int(entry.name)] = int(parent)
            except OSError:
                continue
    return any(parent in clients for parent in clients.values())


def _is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
