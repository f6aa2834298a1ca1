"""Invocations on their way: waiting for a runtime client, held by one, answered.

No HTTP and no processes here: runtime_api.py hands them out, host.py decides about their time.
"""

import json
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class InvocationResult:
    """What the caller of a function gets.

    `function_error` is the error's type, and then `payload` is its JSON body and `log_tail` holds
    the last lines that the runtime client wrote, if it did not survive.
    """

    payload: bytes
    function_error: str | None = None
    log_tail: tuple[str, ...] = ()


def failure(error_type: str, message: str) -> InvocationResult:
    """An error of the platform, in the shape that Lambda gives it."""
    body = json.dumps({"errorType": error_type, "errorMessage": message})
    return InvocationResult(body.encode(), error_type)


_UNAVAILABLE = failure("Runtime.Unavailable", "the host is stopping")


@dataclass(eq=False, slots=True)
class Invocation:
    """One event; its time runs from the moment a runtime client takes it."""

    event: bytes
    timeout_s: float
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    deadline_ms: int = 0
    taken: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)
    result: InvocationResult | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> None:
        """Start its clock. `deadline_ms` is Unix time, as in Lambda-Runtime-Deadline-Ms."""
        self.deadline_ms = round((time.time() + self.timeout_s) * 1000)
        self.taken.set()

    def finish(self, result: InvocationResult) -> bool:
        """Settle it; False when somebody else was faster, whose result stands."""
        with self._lock:
            if self.result is not None:
                return False
            self.result = result
        self.finished.set()
        self.taken.set()
        return True


@dataclass(eq=False, slots=True)
class Taker:
    """One runtime client's place at the queue. Its fields belong to the queue's lock."""

    holding: Invocation | None = None
    has_asked: bool = False
    is_dismissed: bool = False


class InvocationQueue:
    """First come, first served, for any number of takers."""

    def __init__(self) -> None:
        self._waiting: deque[Invocation] = deque()
        self._changed = threading.Condition()
        self._is_closed = False

    def put(self, invocation: Invocation) -> None:
        with self._changed:
            if self._is_closed:
                invocation.finish(_UNAVAILABLE)
                return
            self._waiting.append(invocation)
            self._changed.notify_all()

    def take(self, taker: Taker) -> Invocation | None:
        """Block until there is an invocation for this taker; None once it is dismissed."""
        with self._changed:
            taker.has_asked = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or taker.is_dismissed)
            if taker.is_dismissed:
                return None
            taker.holding = self._waiting.popleft()
            taker.holding.take()
            return taker.holding

    def wait_until_asked(self, taker: Taker, timeout_s: float) -> bool:
        """Block until the taker asks for the first time or is dismissed; False if neither."""
        with self._changed:
            return self._changed.wait_for(lambda: taker.has_asked or taker.is_dismissed, timeout_s)

    def dismiss(self, taker: Taker) -> Invocation | None:
        """Send the taker home; returns the invocation that it held last."""
        with self._changed:
            taker.is_dismissed = True
            self._changed.notify_all()
            return taker.holding

    def wait_until_used(self) -> bool:
        """Block until something waits in the queue; False once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            return not self._is_closed

    def fail_waiting(self, why: Callable[[Invocation], InvocationResult]) -> None:
        """Settle all that nobody has taken."""
        with self._changed:
            while self._waiting:
                invocation = self._waiting.popleft()
                invocation.finish(why(invocation))

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self.fail_waiting(lambda _: _UNAVAILABLE)
