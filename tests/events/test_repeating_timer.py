"""A repeating timer calls its action while something goes on, and no longer."""

import time

from events.repeating_timer import RepeatingTimer
from tests.processes import wait_until


def test_timer_ends_with_its_block() -> None:
    calls: list[float] = []

    def action() -> bool:
        calls.append(time.monotonic())
        return True

    with RepeatingTimer(0.01, action):
        assert wait_until(lambda: len(calls) >= 3)
    count = len(calls)
    time.sleep(0.05)

    assert len(calls) == count


def test_timer_ends_when_its_action_returns_false() -> None:
    calls: list[float] = []

    def action() -> bool:
        calls.append(time.monotonic())
        return len(calls) < 2

    with RepeatingTimer(0.01, action):
        assert wait_until(lambda: len(calls) == 2)
        time.sleep(0.05)

    assert len(calls) == 2
