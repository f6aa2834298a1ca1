"""The requests that wait for a worker."""

import pytest

from runtime.fleet import waiting
from runtime.fleet.waiting import Waiting

NOW = 1_800_000_000.0


def test_requests_beyond_the_limit_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_MAX_COUNTED", 3)
    asked = Waiting()

    for request_idx in range(1, 10):
        asked.ask(request_idx, 100.0, NOW, keep_s=60.0)
    # One that is counted keeps its place.
    asked.ask(1, 100.0, NOW + 50, keep_s=60.0)
    assert asked.queue(NOW).requests == 3

    asked.sweep(NOW + 61)
    queue = asked.queue(NOW + 61)
    assert (queue.requests, queue.oldest_s) == (1, 61.0)
