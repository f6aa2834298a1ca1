"""Invocations on their way: waiting for a runtime client, held by one, answered.

No HTTP and no processes here: runtime_api.py hands them out, host.py decides about their time.
"""

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from runtime.lambda_host.failures import UNAVAILABLE, InvocationResult

_LOG_LINES = 200


@dataclass(eq=False, slots=True)
class Invocation:
    """One event; its time runs from the moment a runtime client takes it.

    Three things happen to it, in this order: it is `taken`, it is `finished` (the result is
    there), and its client lets go of it (`left`: no line of its `log` comes any more).
    """

    event: bytes
    timeout_s: float
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    client_context: str = ""
    deadline_ms: int = 0
    taken: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    result: InvocationResult | None = None
    log: deque[str] = field(default_factory=lambda: deque(maxlen=_LOG_LINES))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> None:
        """Start its clock. `deadline_ms` is Unix time, as in Lambda-Runtime-Deadline-Ms."""
        self.deadline_ms = int((time.time() + self.timeout_s) * 1000)
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
class QueueConsumer:
    """One runtime client's place at the queue. Its fields belong to the queue's lock."""

    holding: Invocation | None = None
    has_asked: bool = False
    is_dismissed: bool = False

    @property
    def is_busy(self) -> bool:
        held = self.holding
        return held is not None and not held.left.is_set() and not self.is_dismissed

    def note(self, line: str) -> None:
        """A line that the client wrote belongs to the invocation that it holds."""
        if held := self.holding:
            held.log.append(line)


ResultFactory = Callable[[Invocation], InvocationResult]


class InvocationQueue:
    """First come, first served, for any number of takers, while its gate is open.

    `changed` is the one lock of a host: the extensions and the environment use it, too.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._waiting: deque[Invocation] = deque()
        self._takers: set[QueueConsumer] = set()
        self._asking = 0
        self._is_gate_open = False
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def put(self, invocation: Invocation, limit: int | None = None) -> bool:
        """False when `limit` invocations wait already, beside those that a client takes at once.

        A closed queue settles it as unavailable.
        """
        with self.changed:
            if self._is_closed:
                return invocation.finish(UNAVAILABLE)
            if limit is not None and len(self._waiting) - self._asking >= limit:
                return False
            self._waiting.append(invocation)
            self.changed.notify_all()
            return True

    def take(self, taker: QueueConsumer) -> Invocation | None:
        """Block until there is an invocation for this taker; None once it is dismissed."""
        with self.changed:
            self._takers.add(taker)
            taker.has_asked = True
            if taker.holding:
                taker.holding.left.set()
            self._asking += 1
            self.changed.notify_all()
            try:
                self.changed.wait_for(
                    lambda: (self._waiting and self._is_gate_open) or taker.is_dismissed
                )
            finally:
                self._asking -= 1
            if taker.is_dismissed:
                return None
            taker.holding = self._waiting.popleft()
            taker.holding.take()
            return taker.holding

    def wait_until_asked(self, taker: QueueConsumer, timeout_s: float) -> bool:
        """Block until the taker asks for the first time or is dismissed; False if neither."""
        with self.changed:
            return self.changed.wait_for(lambda: taker.has_asked or taker.is_dismissed, timeout_s)

    def dismiss(self, taker: QueueConsumer) -> Invocation | None:
        """Send the taker home; returns the invocation that it held last."""
        with self.changed:
            taker.is_dismissed = True
            self._takers.discard(taker)
            if taker.holding:
                taker.holding.left.set()
            self.changed.notify_all()
            return taker.holding

    def open_gate(self) -> None:
        """From now on takers get what waits: init is over."""
        with self.changed:
            self._is_gate_open = True
            self.changed.notify_all()

    def shut_gate(self) -> None:
        with self.changed:
            self._is_gate_open = False

    def wait_until_free(self, timeout_s: float) -> bool:
        """Block until a taker has nothing to do; False after `timeout_s`, or once closed."""
        with self.changed:
            self.changed.wait_for(lambda: self._has_free_taker() or self._is_closed, timeout_s)
            return self._has_free_taker() and not self._is_closed

    def wait_until_used(self, timeout_s: float, or_until: Callable[[], bool]) -> bool:
        """Block until something waits, `timeout_s` at most; False once the queue is closed."""
        with self.changed:
            self.changed.wait_for(lambda: self._waiting or self._is_closed or or_until(), timeout_s)
            return not self._is_closed

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Block until no taker holds an invocation; False if one still does."""
        with self.changed:
            return self.changed.wait_for(
                lambda: not any(taker.is_busy for taker in self._takers), timeout_s
            )

    def fail_waiting(self, why: ResultFactory) -> None:
        """Settle all that nobody has taken."""
        with self.changed:
            while self._waiting:
                invocation = self._waiting.popleft()
                invocation.finish(why(invocation))

    def close(self) -> None:
        """Settle what waits, and what comes, as unavailable; what is held goes on."""
        with self.changed:
            self._is_closed = True
            self.changed.notify_all()
        self.fail_waiting(lambda _: UNAVAILABLE)

    def _has_free_taker(self) -> bool:
        return self._is_gate_open and self._asking > len(self._waiting)
