"""Pauses grow, and stop growing."""

import pytest

from events.back_off import back_off_s


@pytest.mark.parametrize(
    ("failures", "seconds"), [(-1, 0), (0, 0), (1, 10), (2, 20), (3, 40), (4, 60), (100_000, 60)]
)
def test_pause_grows_with_every_failure_up_to_a_limit(failures: int, seconds: float) -> None:
    assert back_off_s(failures, first_s=10, most_s=60) == seconds


def test_pause_may_grow_faster() -> None:
    assert back_off_s(3, first_s=60, most_s=7200, factor=5) == 1500
