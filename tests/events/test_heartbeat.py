"""What goes on is said again and again, and no more when it is over."""

import time

from events.repeating_timer import RepeatingTimer
from tests.processes import wait_until


def test_heartbeat_ends_with_what_it_accompanies() -> None:
    beats: list[float] = []

    def beat() -> bool:
        beats.append(time.monotonic())
        return True

    with RepeatingTimer(0.01, beat):
        assert wait_until(lambda: len(beats) >= 3)
    count = len(beats)
    time.sleep(0.05)

    assert len(beats) == count


def test_heartbeat_that_nobody_wants_any_more_ends_early() -> None:
    beats: list[float] = []

    def beat() -> bool:
        beats.append(time.monotonic())
        return len(beats) < 2

    with RepeatingTimer(0.01, beat):
        assert wait_until(lambda: len(beats) == 2)
        time.sleep(0.05)

    assert len(beats) == 2
