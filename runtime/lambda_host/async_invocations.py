"""Asynchronous invocations: accepted at once, run later, tried again after a function error.

The rules are Lambda's:
https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-error-handling.html. The queue is in
memory: it ends with the host, and the events that are in it then go to the on-failure destination.
An event that must survive a power cut belongs into an SQS queue.
"""

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from runtime.lambda_host.destination import FailedEvent
from runtime.lambda_host.failures import InvocationResult
from runtime.lambda_host.host import LambdaHost, is_unavailable

# Lambda waits one minute before the second try and two before the third.
FIRST_RETRY_AFTER_S = 60.0
_UNAVAILABLE_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncRules:
    """`retries` after a function error; `limit` events at once; `max_age_s` seconds of an event."""

    retries: int = 2
    max_age_s: float = 21_600.0
    limit: int = 100
    first_retry_after_s: float = FIRST_RETRY_AFTER_S


@dataclass(eq=False, slots=True)
class _Pending:
    event: bytes
    request_id: str
    born_at: float = field(default_factory=time.monotonic)
    tries: int = 0
    result: InvocationResult | None = None


class AsyncInvocations:
    """Runs accepted events while it is started; as many at once as the host has clients.

    `on_failure` gets every event that is not tried again, in another thread; it must not raise.
    """

    def __init__(
        self,
        host: LambdaHost,
        rules: AsyncRules,
        *,
        timeout_s: float,
        on_failure: Callable[[FailedEvent], object],
    ) -> None:
        self._host, self._rules, self._timeout_s = host, rules, timeout_s
        self._on_failure = on_failure
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, _Pending]] = []
        self._order = itertools.count()
        self._count = 0
        self._is_stopped = False
        self._threads = [
            threading.Thread(target=self._work, daemon=True)
            for _ in range(host.function.concurrency)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def accept(self, event: bytes, request_id: str) -> bool:
        """False when the queue is full, or closed."""
        with self._changed:
            if self._is_stopped or self._count >= self._rules.limit:
                return False
            self._count += 1
            self._schedule(_Pending(event, request_id), 0)
            return True

    def stop(self) -> None:
        """Begin no other event; those that run go on."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def close(self, timeout_s: float) -> bool:
        """Wait for the events that run, and give up the others; False after `timeout_s` seconds.

        Stop the host first: it ends the events that run.
        """
        self.stop()
        closing = threading.Thread(target=self._give_up_all, daemon=True)
        closing.start()
        closing.join(timeout_s)
        return not closing.is_alive()

    def _give_up_all(self) -> None:
        for thread in self._threads:
            thread.join()
        while self._due:
            self._give_up(heapq.heappop(self._due)[2], "HostStopped")

    def _schedule(self, pending: _Pending, after_s: float) -> None:
        with self._changed:
            due_at = time.monotonic() + after_s
            heapq.heappush(self._due, (due_at, next(self._order), pending))
            self._changed.notify_all()

    def _work(self) -> None:
        while pending := self._take():
            self._try(pending)

    def _take(self) -> _Pending | None:
        with self._changed:
            while not self._is_stopped:
                now = time.monotonic()
                if self._due and self._due[0][0] <= now:
                    return heapq.heappop(self._due)[2]
                self._changed.wait(self._due[0][0] - now if self._due else None)
            return None

    def _try(self, pending: _Pending) -> None:
        if time.monotonic() - pending.born_at > self._rules.max_age_s:
            self._give_up(pending, "EventAgeExceeded")
            return
        result = self._host.invoke(
            pending.event, timeout_s=self._timeout_s, request_id=pending.request_id
        )
        if is_unavailable(result):
            # It did not run. The host is stopping, so `close` gives it up.
            self._schedule(pending, _UNAVAILABLE_PAUSE_S)
            return
        pending.tries += 1
        pending.result = result
        if result.function_error is None:
            self._forget()
        elif pending.tries > self._rules.retries:
            self._give_up(pending, "RetriesExhausted")
        else:
            self._schedule(pending, self._rules.first_retry_after_s * pending.tries)

    def _give_up(self, pending: _Pending, condition: str) -> None:
        self._forget()
        self._on_failure(
            FailedEvent(
                request_id=pending.request_id,
                function_arn=self._host.function.arn,
                condition=condition,
                tries=pending.tries,
                event=pending.event,
                result=pending.result,
            )
        )

    def _forget(self) -> None:
        with self._changed:
            self._count -= 1
