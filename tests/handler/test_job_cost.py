"""What a job has cost."""

import pytest

from handler.clock import Timings
from handler.job_cost import cost_of
from handler.job_events import JobCompleted
from handler.settings import Settings, SettingsError


def test_job_costs_the_time_for_which_it_has_occupied_the_worker() -> None:
    timings = Timings()
    timings.add("cold_start_ms", 6_000)
    timings.add("generation_ms", 30_000)
    # The worker can do another job meanwhile.
    for stage in ("preprocess_ms", "queue_ms", "upload_ms", "postprocess_ms"):
        timings.add(stage, 1e6)

    assert cost_of(timings.as_dict(), 1.5) == 0.015
    assert cost_of(timings.as_dict(), 0.0) == 0.0


def test_cost_is_unknown_and_not_logged_without_a_price() -> None:
    timings = Timings().as_dict()

    assert cost_of(timings, Settings().price_per_hour) is None
    assert "cost" not in JobCompleted(timings=timings, cost=None).log_fields()
    assert JobCompleted(timings=timings, cost=0.0).log_fields()["cost"] == 0.0


@pytest.mark.parametrize("price", ["cheap", "-1", "inf"])
def test_price_is_a_number(price: str) -> None:
    with pytest.raises(SettingsError, match=r"PRICE_PER_HOUR.*expected a number, 0 or more"):
        Settings.from_env({"PRICE_PER_HOUR": price})
