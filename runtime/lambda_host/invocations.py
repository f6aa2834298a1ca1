"""The queue of invocations: each waits, is taken by a runtime client, and gets its result.

There is neither HTTP nor a process here: runtime_api.py hands invocations to the clients, host.py
limits their time. Which of them goes where is decided in affinity.py.
"""

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from runtime.lambda_host.affinity import choose, models_in
from runtime.lambda_host.failures import UNAVAILABLE, Failure, InvocationResult

_LOG_LINES = 200


def new_request_id() -> str:
    return str(uuid.uuid4())


@dataclass(eq=False, slots=True)
class Invocation:
    """One event: JSON in `event`. Its `timeout_s` seconds begin when a runtime client takes it.

    Three things happen to it, in this order. It is `taken`. It is `finished`: `result` is set. It
    is `released`: its client has asked for the next one or has ended, so `log` is complete.
    `models` are the model files that the event names; `overtaken` is how many later invocations
    were taken before it.
    """

    event: bytes
    timeout_s: float
    request_id: str = field(default_factory=new_request_id)
    client_context: str = ""
    deadline_ms: int = 0
    taken: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    result: InvocationResult | None = None
    models: frozenset[str] = field(init=False)
    overtaken: int = 0
    log: deque[str] = field(default_factory=lambda: deque(maxlen=_LOG_LINES))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.models = models_in(self.event)

    def take(self) -> None:
        """Start its time. `deadline_ms` is Unix time, as in Lambda-Runtime-Deadline-Ms."""
        self.deadline_ms = int((time.time() + self.timeout_s) * 1000)
        self.taken.set()

    def finish(self, result: InvocationResult) -> bool:
        """Set the result; False when it has one, which stays."""
        with self._lock:
            if self.result is not None:
                return False
            self.result = result
        self.finished.set()
        self.taken.set()
        return True

    def fail(self, failure: Failure) -> bool:
        """The same with the result that a failure gives it."""
        return self.finish(failure.result_for(self.request_id))


@dataclass(eq=False, slots=True)
class Gate:
    """Through which the clients of one environment get invocations; the queue's lock guards it.

    It is open from the end of the init phase to the begin of the shutdown. `loaded` are the model
    files of the last invocation that named some: they are most probably still in memory.
    """

    is_open: bool = False
    loaded: frozenset[str] = frozenset()


@dataclass(eq=False, slots=True)
class QueueConsumer:
    """One runtime client at the queue. The lock of the queue guards the fields.

    `next` is what it takes as soon as its thread runs; `invocation` is the one that it took last;
    `is_retired`: it gets none any more.
    """

    gate: Gate
    next: Invocation | None = None
    invocation: Invocation | None = None
    has_asked: bool = False
    is_retired: bool = False

    @property
    def is_running(self) -> bool:
        invocation = self.next or self.invocation
        return invocation is not None and not invocation.finished.is_set() and not self.is_retired

    @property
    def is_busy(self) -> bool:
        """Whether it runs an invocation, or has not asked for another one since."""
        invocation = self.next or self.invocation
        return invocation is not None and not invocation.released.is_set() and not self.is_retired

    def note(self, line: str) -> None:
        """Add a line that the client wrote to the log of its invocation."""
        if invocation := self.invocation:
            invocation.log.append(line)


class InvocationQueue:
    """Serves `clients` consumers of one environment or several, each while its gate is open.

    An invocation may be overtaken `may_overtake` times by later ones whose models are loaded.
    `changed` is the one lock of a host: the extensions and the environments use it, too.
    """

    def __init__(self, clients: int, *, may_overtake: int = 0) -> None:
        self._clients, self._may_overtake = clients, may_overtake
        self.changed = threading.Condition()
        self._waiting: deque[Invocation] = deque()
        self._consumers: set[QueueConsumer] = set()
        self._asking: list[QueueConsumer] = []
        self._reserved = 0
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def put(self, invocation: Invocation, limit: int | None = None) -> bool:
        """False when `limit` invocations wait already, beside one for each client that is free.

        A client that still starts is free: it takes its invocation when the init phase is over. In
        a closed queue the invocation fails as unavailable.
        """
        with self.changed:
            if self._is_closed:
                return invocation.fail(UNAVAILABLE)
            if limit is not None and len(self._waiting) - self._free_clients() >= limit:
                return False
            self._waiting.append(invocation)
            self._hand_out()
            return True

    def take(self, consumer: QueueConsumer) -> Invocation | None:
        """Block until there is an invocation for this consumer; None once it is retired."""
        with self.changed:
            consumer.has_asked = True
            if consumer.is_retired:
                # Its client died after it had asked.
                self.changed.notify_all()
                return None
            self._consumers.add(consumer)
            if consumer.invocation:
                consumer.invocation.released.set()
            self._asking.append(consumer)
            self._hand_out()
            self.changed.wait_for(lambda: consumer.next or consumer.is_retired)
            if consumer.is_retired or consumer.next is None:
                return None
            consumer.invocation, consumer.next = consumer.next, None
            consumer.invocation.take()
            return consumer.invocation

    def wait_until_asked(self, consumer: QueueConsumer, timeout_s: float) -> bool:
        """Block until the consumer has asked once or is retired; False after `timeout_s`."""
        with self.changed:
            return self.changed.wait_for(
                lambda: consumer.has_asked or consumer.is_retired, timeout_s
            )

    def retire(self, consumer: QueueConsumer) -> Invocation | None:
        """Give the consumer nothing more; returns the invocation that it took last."""
        with self.changed:
            consumer.is_retired = True
            self._consumers.discard(consumer)
            self._asking = [other for other in self._asking if other is not consumer]
            if consumer.invocation:
                consumer.invocation.released.set()
            if consumer.next:
                # Its thread has not run since: another client takes it.
                self._waiting.appendleft(consumer.next)
                consumer.next = None
            if self._is_closed:
                self.fail_waiting(UNAVAILABLE)
            self._hand_out()
            return consumer.invocation

    def open_gate(self, gate: Gate) -> None:
        """Hand out invocations through it from now on: the init phase is over."""
        with self.changed:
            gate.is_open = True
            self._hand_out()

    def close_gate(self, gate: Gate) -> None:
        """Let invocations wait for the next environment, or take another one."""
        with self.changed:
            gate.is_open = False

    def remove_clients(self, count: int) -> None:
        """Expect so many clients no more: their environment is not replaced."""
        with self.changed:
            self._clients -= count

    def next_models(self) -> list[frozenset[str]]:
        """The loaded models where the next invocation will run, as far as that is known.

        Those of the free consumers; if none is free, as just after an answer, those of all.
        """
        with self.changed:
            consumers = self._free() or self._consumers
            return [consumer.gate.loaded for consumer in consumers]

    def reserve(self, timeout_s: float) -> bool:
        """Block until a consumer is free that nobody else has reserved, and reserve it.

        False after `timeout_s` seconds, or once closed. A reservation holds back no invocation; it
        says how many more to fetch. `unreserve` ends it.
        """
        with self.changed:
            self.changed.wait_for(lambda: self._has_free_consumer() or self._is_closed, timeout_s)
            if self._is_closed or not self._has_free_consumer():
                return False
            self._reserved += 1
            return True

    def unreserve(self) -> None:
        with self.changed:
            self._reserved -= 1
            self.changed.notify_all()

    def wait_until_needed(
        self,
        timeout_s: float,
        or_until: Callable[[], bool],
        is_needed: Callable[[], bool] = lambda: True,
    ) -> bool:
        """Block until an invocation waits and `is_needed`; False once the queue is closed.

        For `timeout_s` at most, or until `or_until`.
        """
        with self.changed:
            self.changed.wait_for(
                lambda: (self._waiting and is_needed()) or self._is_closed or or_until(), timeout_s
            )
            return not self._is_closed

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Block until no consumer runs an invocation; False if one does after `timeout_s`."""
        with self.changed:
            return self.changed.wait_for(
                lambda: not any(consumer.is_busy for consumer in self._consumers), timeout_s
            )

    def fail_waiting(self, failure: Failure) -> None:
        """End every invocation that no client has taken."""
        with self.changed:
            while self._waiting:
                self._waiting.popleft().fail(failure)

    def close(self) -> None:
        """Fail what waits, and what comes, as unavailable; what a client has taken goes on."""
        with self.changed:
            self._is_closed = True
            self.changed.notify_all()
        self.fail_waiting(UNAVAILABLE)

    def _free_clients(self) -> int:
        return max(self._clients - self._running(), 0)

    def _running(self) -> int:
        return sum(consumer.is_running for consumer in self._consumers)

    def _has_free_consumer(self) -> bool:
        # Those that wait are handed out at once while a consumer is free.
        return len(self._free()) > self._reserved

    def _free(self) -> list[QueueConsumer]:
        return [consumer for consumer in self._asking if consumer.gate.is_open]

    def _hand_out(self) -> None:
        """Give waiting invocations to free consumers. Call it with the lock, after any change."""
        while self._waiting and (free := self._free()):
            job, place = choose(
                self._waiting,
                [consumer.gate.loaded for consumer in free],
                may_overtake=self._may_overtake,
            )
            for other in range(job):
                self._waiting[other].overtaken += 1
            consumer, invocation = free[place], self._waiting[job]
            del self._waiting[job]
            self._asking.remove(consumer)
            consumer.next = invocation
            consumer.gate.loaded = invocation.models or consumer.gate.loaded
        self.changed.notify_all()
