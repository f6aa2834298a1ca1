"""A host with its sources of events: two endpoints, the queue of events, an SQS poller.

This module decides in which order they start and stop, and nothing else.
"""

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from runtime.lambda_host.async_invocations import AsyncInvocations, AsyncRules
from runtime.lambda_host.destination import FailedEvent
from runtime.lambda_host.event_store import EventStore
from runtime.lambda_host.failures import Failure
from runtime.lambda_host.function import Function
from runtime.lambda_host.host import LambdaHost
from runtime.lambda_host.invoke_api import InvokeApi
from runtime.lambda_host.live_events import LiveEvents
from runtime.lambda_host.pool import PooledWorker
from runtime.lambda_host.sqs_poller import PollerRules, SqsPoller
from runtime.lambda_host.sqs_queue import SqsQueue

if TYPE_CHECKING:
    from runtime.lambda_host.api_front import ApiFront, ApiRules

# The part of the grace that is kept for the processes: the extension has a ComfyUI to stop.
_SHUTDOWN_S = 5.0
# The part that is kept for the answers, once the processes have ended.
_ANSWERS_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRules:
    """`timeout_s` of an invocation; `waiting` synchronous ones at most; `grace_s` for a stop.

    Times are in seconds. A job may be overtaken `may_overtake` times by later ones whose models are
    loaded.
    """

    timeout_s: float = 900.0
    waiting: int = 100
    grace_s: float = 25.0
    may_overtake: int = 0
    events: AsyncRules = field(default_factory=AsyncRules)
    poller: PollerRules = field(default_factory=PollerRules)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where events come from: the invoke endpoint on `listener`, and `queue` and `api` if given.

    `events` are those that were accepted; the service closes it at its end.
    """

    listener: socket.socket
    events: EventStore
    queue: SqsQueue | None = None
    api: "ApiRules | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """What a service calls, all of them in its threads.

    `line` gets every line that a process writes, `state` a sentence for every change of state.
    `ready` is called when a worker has started. `failed` gets every event that is not tried again,
    `gave_up` the failure after which the host starts no other environment.
    """

    line: Callable[[str], object]
    state: Callable[[str], object]
    ready: Callable[[], object]
    failed: Callable[[FailedEvent], object]
    gave_up: Callable[[Failure], object]


class Service:
    """Serves the sources with these workers while it is entered.

    Leaving it waits for the jobs that run; a stop takes `rules.grace_s` seconds at most.
    """

    def __init__(
        self,
        function: Function,
        rules: ServiceRules,
        sources: Sources,
        workers: Sequence[PooledWorker],
        listeners: Listeners,
    ) -> None:
        self._rules, self._listeners, self._say = rules, listeners, listeners.state
        self._event_store, self._workers = sources.events, workers
        live = LiveEvents()

        def take_line(line: str) -> None:
            listeners.line(line)
            live.feed(line)

        self._host = LambdaHost(
            function,
            on_line=take_line,
            on_state=listeners.state,
            on_ready=listeners.ready,
            on_give_up=listeners.gave_up,
            environments=[worker.variables for worker in workers],
            may_overtake=rules.may_overtake,
        )
        self._events = AsyncInvocations(
            self._host,
            sources.events,
            rules.events,
            timeout_s=rules.timeout_s,
            on_failure=self._give_up,
            on_state=listeners.state,
        )
        self._front = sources.api and self._make_front(sources.api, live)
        self._api = InvokeApi(
            sources.listener,
            self._host,
            self._events,
            timeout_s=rules.timeout_s,
            limit=rules.waiting,
            on_state=listeners.state,
        )
        self._poller = sources.queue and SqsPoller(
            self._host,
            sources.queue,
            rules.poller,
            concurrency=self._host.concurrency,
            timeout_s=rules.timeout_s,
            on_state=listeners.state,
        )

    def _give_up(self, failed: FailedEvent) -> None:
        self._listeners.failed(failed)
        if self._front:
            self._front.abandon(failed)

    def _make_front(self, api: "ApiRules", live: LiveEvents) -> "ApiFront":
        # Its libraries take 0.3 s to import, and `start-lambda` does not need them.
        from runtime.lambda_host.api_front import ApiFront  # noqa: PLC0415

        return ApiFront(
            api,
            self._host,
            self._events,
            live,
            timeout_s=self._rules.timeout_s,
            limit=self._rules.waiting,
            worker_sockets=[worker.socket for worker in self._workers],
            is_alone=self._event_store.is_alone,
        )

    def __enter__(self) -> Self:
        self._host.__enter__()
        self._events.start()
        self._api.__enter__()
        if self._front:
            self._front.start()
        if self._poller:
            self._poller.start()
        return self

    def __exit__(self, *_: object) -> None:
        grace_s = self._rules.grace_s
        until = time.monotonic() + grace_s
        self._events.stop()
        if self._front:
            self._front.drain()
        if self._poller:
            self._poller.stop()
        if not self._host.drain(grace_s - min(_SHUTDOWN_S, grace_s / 2)):
            self._say("jobs did not end within the grace and are killed")
        self._host.close(max(until - time.monotonic() - _ANSWERS_S, 0))
        # All invocations have ended; their callers get the results now.
        if not self._events.close(max(until - time.monotonic(), _ANSWERS_S)):
            self._say("the on-failure destination takes too long; its event is sent again")
        self._api.wait_until_answered(_ANSWERS_S)
        if self._front:
            self._front.stop()
        self._event_store.close()
        if self._poller and not self._poller.join(max(until - time.monotonic(), _ANSWERS_S)):
            self._say("queue: a poll is still open; its messages are visible in a minute")
        self._api.__exit__(None, None, None)
