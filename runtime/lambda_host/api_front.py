"""The HTTP API of a host: the application, its store of jobs, and its server."""

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from events.repeating_timer import RepeatingTimer
from handler.api.application import ApiContext, create_app
from handler.api.dispatcher import NotOffered, Unavailable
from handler.api.job_board import JobBoard
from handler.jobs.held_claim import LEASE_S
from handler.jobs.record import Status
from handler.jobs.store import open_store
from handler.settings import Settings
from runtime.lambda_host.async_invocations import AsyncInvocations
from runtime.lambda_host.destination import FailedEvent
from runtime.lambda_host.host import LambdaHost
from runtime.lambda_host.host_dispatcher import HostDispatcher
from runtime.lambda_host.http_front import HttpFront
from runtime.lambda_host.live_events import LiveEvents

if TYPE_CHECKING:
    from runtime.fleet.member import Member


@dataclass(frozen=True, slots=True)
class ApiRules:
    """Where the API listens, and which token its callers need; "" for none.

    `settings` name the store of jobs.
    """

    listener: socket.socket
    settings: Settings
    token: str = field(default="", repr=False)
    on_state: Callable[[str], object] = lambda _: None


class ApiFront:
    """Serves the API of `host` between `start` and `stop`.

    `limit` jobs wait for their response at most, each of which may take `timeout_s` seconds.
    `is_alone`: no other host of this machine uses the store.
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
        worker_sockets: Sequence[Path],
        is_alone: bool,
    ) -> None:
        self._is_alone = is_alone
        settings = rules.settings
        self._store = open_store(settings)
        board = self._board = JobBoard(self._store, settings.jobs_expire_s)
        self._dispatcher = HostDispatcher(
            host,
            events,
            live,
            board,
            timeout_s=timeout_s,
            limit=limit,
            worker_sockets=worker_sockets,
        )
        context = ApiContext(
            board=board,
            dispatcher=self._dispatcher,
            max_body_bytes=settings.api_max_body_mb * 1024 * 1024,
            fit=lambda response: response,
            input_folder=settings.comfyui_data / "input",
            templates_folder=settings.workflow_templates,
        )
        # The handler of a job may have been killed; its claim lapses soon.
        self._timer = RepeatingTimer(2 * LEASE_S, self._end_abandoned)
        self._member: Member | None = None
        app = create_app(context, rules.token, is_local=True)
        if settings.router_url:
            app = self._join_fleet(rules, context, worker_sockets)
        self._front = HttpFront(app, rules.listener)

    def start(self) -> None:
        if self._store.has_one_clock:
            # It is this machine's own: what its hosts do not run, nothing does.
            if self._is_alone:
                self._dispatcher.end_abandoned(Status.QUEUED)
            self._timer.start()
        self._front.start()
        if self._member:
            self._member.start()

    def drain(self) -> None:
        """The host takes nothing more: so says the worker of a fleet to its router."""
        if self._member:
            self._member.drain()

    def abandon(self, failed: FailedEvent) -> None:
        """End the job of an event that is not tried again."""
        self._board.abandon(failed.request_id, f"the job was given up: {failed.condition}")

    def _join_fleet(
        self, rules: ApiRules, context: ApiContext, worker_sockets: Sequence[Path]
    ) -> ASGIApp:
        from runtime.fleet.member_front import join_fleet  # noqa: PLC0415 - cryptography

        self._member, app = join_fleet(
            context,
            rules.settings,
            rules.token,
            worker_report=self._dispatcher.worker_report,
            worker_sockets=worker_sockets,
            on_state=rules.on_state,
        )
        return app

    def _end_abandoned(self) -> bool:
        # If the store does not work now, the next time does it.
        with suppress(NotOffered, Unavailable):
            self._dispatcher.end_abandoned(Status.RUNNING)
        return True

    def stop(self) -> None:
        self._timer.stop(wait_s=0)
        if self._member:
            self._member.stop()
        self._front.stop()
        self._dispatcher.close()
        self._store.close()
