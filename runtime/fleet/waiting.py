"""The requests for which no worker had a place yet, and the load that clients ask for."""

import math
import threading
from dataclasses import dataclass

# The load is an average over about this time.
_AVERAGE_S = 60.0
# More requests wait as well, but are not counted: who asks with ever new ones fills no memory.
_MAX_COUNTED = 100_000


@dataclass(frozen=True, slots=True)
class _Asked:
    cost: float
    first_at: float
    until: float


@dataclass(frozen=True, slots=True)
class Queue:
    """How many requests wait, their cost, and for how long the first one of them has."""

    requests: int = 0
    cost: float = 0.0
    oldest_s: float = 0.0


class Waiting:
    """Threads may share it. Times are seconds of Unix time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[int, _Asked] = {}
        self._load, self._load_at = 0.0, 0.0

    def ask(self, request_idx: int, cost: float, now: float, keep_s: float) -> None:
        """A request has come, or has come again; it waits for `keep_s` from now on."""
        with self._lock:
            before = self._asked.get(request_idx)
            if before is None and len(self._asked) >= _MAX_COUNTED:
                return
            first_at = before.first_at if before else now
            self._asked[request_idx] = _Asked(cost, first_at, now + keep_s)

    def serve(self, request_idx: int) -> None:
        """It has a worker."""
        with self._lock:
            self._asked.pop(request_idx, None)

    def sweep(self, now: float) -> None:
        """Forget the requests whose clients ask no more."""
        with self._lock:
            gone = [idx for idx, asked in self._asked.items() if asked.until < now]
            for idx in gone:
                del self._asked[idx]

    def add_load(self, cost: float, now: float) -> None:
        """A new request has come."""
        with self._lock:
            self._load = self._load_now(now) + cost / _AVERAGE_S
            self._load_at = now

    def load(self, now: float) -> float:
        """The cost per second that new requests have had lately."""
        with self._lock:
            return self._load_now(now)

    def costs(self) -> dict[int, float]:
        """The cost of each request that waits, by its number."""
        with self._lock:
            return {request_idx: asked.cost for request_idx, asked in self._asked.items()}

    def queue(self, now: float) -> Queue:
        with self._lock:
            asked = list(self._asked.values())
        oldest = min((each.first_at for each in asked), default=now)
        return Queue(len(asked), sum(each.cost for each in asked), now - oldest)

    def _load_now(self, now: float) -> float:
        return self._load * math.exp(-max(now - self._load_at, 0.0) / _AVERAGE_S)
