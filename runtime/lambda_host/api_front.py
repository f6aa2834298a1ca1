"""The HTTP API of a host: the application, its store of jobs, and its server."""

import socket
import threading
from dataclasses import dataclass, field

from handler.api.application import ApiContext, create_app
from handler.api.job_board import JobBoard
from handler.jobs.held_claim import LEASE_S
from handler.jobs.record import Status
from handler.jobs.store import open_store
from handler.settings import Settings
from handler.worker_protocol import SOCKET_NAME
from runtime.lambda_host.async_invocations import AsyncInvocations
from runtime.lambda_host.host import LambdaHost
from runtime.lambda_host.host_dispatcher import HostDispatcher
from runtime.lambda_host.http_front import HttpFront
from runtime.lambda_host.live_events import LiveEvents


@dataclass(frozen=True, slots=True)
class ApiRules:
    """Where the API listens, and which token its callers need; "" for none.

    `settings` name the store of jobs.
    """

    listener: socket.socket
    settings: Settings
    token: str = field(default="", repr=False)


class ApiFront:
    """Serves the API of `host` between `start` and `stop`.

    `limit` jobs wait for their response at most, each of which may take `timeout_s` seconds.
    """

    def __init__(
        self,
        rules: ApiRules,
        host: LambdaHost,
        events: AsyncInvocations,
        live: LiveEvents,
        *,
        timeout_s: float,
        limit: int,
    ) -> None:
        settings = rules.settings
        self._store = open_store(settings)
        board = JobBoard(self._store, settings.jobs_expire_s)
        self._dispatcher = HostDispatcher(
            host,
            events,
            live,
            board,
            timeout_s=timeout_s,
            limit=limit,
            worker_socket=str(settings.worker_dir / SOCKET_NAME),
        )
        context = ApiContext(
            board=board,
            dispatcher=self._dispatcher,
            max_body_bytes=settings.api_max_body_mb * 1024 * 1024,
            fit=lambda response: response,
            input_folder=lambda: str(settings.comfyui_data / "input"),
        )
        # A claim of an earlier host has lapsed by then, unless its handler lives.
        self._timer = threading.Timer(
            2 * LEASE_S, self._dispatcher.end_abandoned, (Status.RUNNING,)
        )
        self._timer.daemon = True
        self._front = HttpFront(create_app(context, rules.token), rules.listener)

    def start(self) -> None:
        if self._store.has_one_clock:
            # It is this machine's own: what it does not run, nothing does.
            self._dispatcher.end_abandoned(Status.QUEUED)
            self._timer.start()
        self._front.start()

    def stop(self) -> None:
        self._timer.cancel()
        self._front.stop()
        self._dispatcher.close()
        self._store.close()
