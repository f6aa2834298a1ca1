"""The demand of a fleet whose clients ask several routers: each tells the others of its own.

A client that waits asks again, and a load balancer may lead it to another router each time: what
waits is told request by request, and counts once.
"""

import json
import secrets

from runtime.fleet.registry import SILENT_AFTER_S
from runtime.fleet.scaling import Demand
from runtime.fleet.store import FleetStore
from runtime.fleet.waiting import Waiting

_TELL_EVERY_S = 5.0
# An item of DynamoDB of less than 20 KB. All routers tell of those with the lowest numbers, so the
# same ones.
_MOST_TOLD = 500


class SharedDemand:
    """What the clients of all routers of `store` ask for; `waiting` are those of this one.

    Its methods raise what the store raises. Times are seconds of Unix time.
    """

    def __init__(self, store: FleetStore, waiting: Waiting) -> None:
        self._store, self._waiting = store, waiting
        self._router = secrets.token_hex(8)
        self._told_at, self._has_told = 0.0, False

    def tell(self, now: float) -> None:
        """Tell the other routers, every few seconds, as long as there is something to tell."""
        # Below 0 where the clock was put back.
        if 0 <= now - self._told_at < _TELL_EVERY_S:
            return
        load = round(self._waiting.load(now), 3)
        waiting = sorted(self._waiting.costs().items())[:_MOST_TOLD]
        is_asked = bool(load or waiting)
        if is_asked or self._has_told:
            text = json.dumps({"load": load, "waiting": waiting})
            self._store.publish(self._router, text, now)
        self._told_at, self._has_told = now, is_asked

    def total(self, now: float) -> Demand:
        """Of this router, and of those that have told theirs lately."""
        load, waiting = self._waiting.load(now), self._waiting.costs()
        for router, text in self._store.published(now - SILENT_AFTER_S).items():
            if router != self._router:
                demand = json.loads(text)
                load += demand["load"]
                waiting |= dict(demand["waiting"])
        return Demand(load, sum(waiting.values()))
