"""Asynchronous invocations: accepted at once, run later, tried again after a failure.

The rules are Lambda's:
https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-error-handling.html. The job of an
event that the API has accepted is also tried again if its response says that it may succeed then.
The events are in a file (event_store.py): those that wait when the host ends run after its next
start.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from events.errors import AlreadyRunning
from events.invoker import COMES_AGAIN
from runtime.lambda_host.affinity import COMPARED_JOBS, choose, models_in
from runtime.lambda_host.destination import FailedEvent
from runtime.lambda_host.event_store import EventStore, StoredEvent
from runtime.lambda_host.failures import InvocationResult
from runtime.lambda_host.host import LambdaHost, is_unavailable
from runtime.lambda_host.invocations import Invocation

# Lambda waits one minute before the second try and two before the third.
FIRST_RETRY_AFTER_S = 60.0
_STORE_PAUSE_S = 1.0
_ALREADY_RUNNING = AlreadyRunning.__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncRules:
    """`retries` after a failure; `limit` events at once; `max_age_s` seconds of an event.

    An event may be overtaken `may_overtake` times by later ones whose models are loaded.
    """

    retries: int = 2
    max_age_s: float = 21_600.0
    limit: int = 1000
    first_retry_after_s: float = FIRST_RETRY_AFTER_S
    may_overtake: int = 0


@dataclass(slots=True)
class _WaitingEvent:
    models: frozenset[str]
    overtaken: int = 0


class AsyncInvocations:
    """Runs accepted events while it is started; as many at once as the host has clients.

    `on_failure` gets every event that is not tried again, in another thread; it must not raise.
    `on_state` gets a sentence when the file cannot be used.
    """

    def __init__(
        self,
        host: LambdaHost,
        store: EventStore,
        rules: AsyncRules,
        *,
        timeout_s: float,
        on_failure: Callable[[FailedEvent], object],
        on_state: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._on_state = on_state
        self._host, self._store, self._rules = host, store, rules
        self._timeout_s, self._on_failure = timeout_s, on_failure
        self._changed = threading.Condition()
        self._running: set[int] = set()
        self._waiting: dict[int, _WaitingEvent] = {}
        self._is_stopped = False
        self._threads = [
            threading.Thread(target=self._work, daemon=True) for _ in range(host.concurrency)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def accept(self, event: bytes, request_id: str, *, is_job: bool = False) -> bool:
        """Store the event. False when the queue is full, or closed; one that is stored is not."""
        with self._changed:
            is_new = not self._store.has(request_id)
            if is_new and (self._is_stopped or self._store.count() >= self._rules.limit):
                return False
            self._store.put(request_id, event, is_job=is_job)
            self._changed.notify_all()
            return True

    def waiting(self) -> int:
        """How many events are stored and do not run."""
        with self._changed:
            return self._store.count() - len(self._running)

    def position(self, request_id: str) -> int | None:
        """How many events are before this one; None if it is not stored."""
        return self._store.position(request_id)

    def stop(self) -> None:
        """Begin no other event; those that run go on, and the others stay stored."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def close(self, timeout_s: float) -> bool:
        """Wait for the events that run; False after `timeout_s` seconds.

        Stop the host first: it ends the events that run.
        """
        self.stop()
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while not self._is_stopped:
            try:
                self._run_next()
            except sqlite3.Error as error:
                # A full disk, for example: the event is in the file, and is tried again.
                self._on_state(f"accepted events: {error}")
                time.sleep(_STORE_PAUSE_S)

    def _run_next(self) -> None:
        event = self._take()
        if event is None:
            return
        try:
            self._try(event)
        finally:
            with self._changed:
                self._running.discard(event.number)

    def _take(self) -> StoredEvent | None:
        with self._changed:
            while not self._is_stopped:
                event = self._store.next(self._running)
                left_s = event.due_at - time.time() if event else None
                if event and left_s is not None and left_s <= 0:
                    event = self._choose(event)
                    self._waiting.pop(event.number, None)
                    self._running.add(event.number)
                    return event
                self._changed.wait(left_s)
            return None

    def _choose(self, first: StoredEvent) -> StoredEvent:
        """`first`, which is due, or a later one that is due and whose models are loaded."""
        numbers = self._store.due(self._running, COMPARED_JOBS)
        places = self._host.next_models()
        if len(numbers) < 2 or not places or not self._rules.may_overtake:
            return first
        for number in numbers:
            if number not in self._waiting:
                models = models_in(self._store.read(number).event)
                self._waiting[number] = _WaitingEvent(models)
        waiting = [self._waiting[number] for number in numbers]
        chosen, _ = choose(waiting, places, may_overtake=self._rules.may_overtake)
        for other in waiting[:chosen]:
            other.overtaken += 1
        return self._store.read(numbers[chosen])

    def _try(self, event: StoredEvent) -> None:
        if time.time() - event.born_at > self._rules.max_age_s:
            self._give_up(event, event.tries, "EventAgeExceeded", None)
            return
        invocation = Invocation(event.event, self._timeout_s, event.id)
        tries = event.tries + 1
        if event.is_job and tries <= self._rules.retries:
            invocation.client_context = COMES_AGAIN
        result = self._host.run(invocation)
        if is_unavailable(result) or self._was_cut_off(result):
            # It is run after the next start of the host.
            return
        failure = _failure_in(event, result)
        if failure is None:
            self._store.remove(event)
        elif failure.get("type") == _ALREADY_RUNNING:
            # Not a try: the job runs elsewhere, or ran when the host was killed.
            due_at = time.time() + float(failure.get("retry_after_s", 1.0))
            self._store.postpone(event, due_at, event.tries)
        elif tries > self._rules.retries:
            self._give_up(event, tries, "RetriesExhausted", result)
        else:
            due_at = time.time() + self._rules.first_retry_after_s * tries
            self._store.postpone(event, due_at, tries)

    def _was_cut_off(self, result: InvocationResult) -> bool:
        """Whether the stop of the host has ended the invocation."""
        return self._is_stopped and result.function_error is not None

    def _give_up(
        self, event: StoredEvent, tries: int, condition: str, result: InvocationResult | None
    ) -> None:
        self._on_failure(
            FailedEvent(
                request_id=event.id,
                function_arn=self._host.function.arn,
                condition=condition,
                tries=tries,
                event=event.event,
                result=result,
            )
        )
        self._store.remove(event)


def _failure_in(event: StoredEvent, result: InvocationResult) -> dict[str, Any] | None:
    """Why the event is to be tried again; None if it is not."""
    if result.function_error is not None:
        return {"type": result.function_error}
    if not event.is_job:
        return None
    error = json.loads(result.payload).get("error") or {}
    return error if error.get("retryable") else None
